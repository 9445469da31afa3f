"""The indexes of one collection on one shard: which rows match a filter, and which rows are near a vector.

* :mod:`~vecraft_shard.indexes.rowset`: a set of rows, the word all of them speak.
* :mod:`~vecraft_shard.indexes.metadata`: ``where`` → rows; also JSON documents.
* :mod:`~vecraft_shard.indexes.documents`: ``where_document`` → rows.
* :mod:`~vecraft_shard.indexes.hnsw`: the graph over settled rows, approximate.
* :mod:`~vecraft_shard.indexes.tail`: scans, exact: of fresh rows, of few rows, and wherever exactness is asked for.

None of them knows of versions or snapshots: they answer for all rows, and the search drops what a snapshot cannot see.
"""
