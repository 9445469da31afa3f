"""One collection on one shard: its files, its versions, and its indexes, kept in step.

A row's number is the same everywhere: in the vector column, the version table, the posting lists, the HNSW graph. New
rows go to the *tail*, which every search scans; :meth:`Collection.index_slice` moves them to the graph in the
background. So a write never waits for the graph, and a search never misses a row::

    rows      0 ──────────────────────── indexed ───────────── rows
              │  HNSW graph             │  tail: exact scan    │

Files belong to a *generation*: compaction writes the rows that are still needed to the files of the next one.
"""

from __future__ import annotations

import logging
import sqlite3
import threading
from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import numpy.typing as npt

from vecraft_data_model.distances import norms
from vecraft_data_model.errors import (
    ChecksumValidationFailureError,
    CorruptionError,
    InvalidDataException,
    StorageFullError,
)
from vecraft_data_model.filters import DocumentFilter, Filter
from vecraft_data_model.messages import Float32Array, Rows
from vecraft_data_model.payload import documents_of, objects_of, verify_payloads
from vecraft_data_model.ports import Disk
from vecraft_data_model.schema import CollectionSchema
from vecraft_shard.indexes.documents import DocumentIndex
from vecraft_shard.indexes.hnsw import HnswIndex
from vecraft_shard.indexes.hot import HotFilters
from vecraft_shard.indexes.metadata import MetadataIndex
from vecraft_shard.indexes.rowset import RowSet
from vecraft_shard.integrity import Integrity
from vecraft_shard.locations import Locations, StoredCollection
from vecraft_shard.row_segments import StoredRows
from vecraft_shard.search_depth import SearchDepth
from vecraft_shard.store import PayloadLog, VectorColumn
from vecraft_shard.versions import NO_ROW, VersionTable

logger = logging.getLogger(__name__)

_FIRST_SLICE_ROWS = 32


class Collection:
    """Rows, versions and indexes of one collection.

    Attributes:
        indexed: Rows below are in the HNSW graph.
        hnsw_saved: File name, rows and checksum of the last saved graph.
        depth: How deep it is searched, and what recall was measured.
        checkpointed: Rows below are in the last checkpoint.
        uncompactable: A compaction met a damaged record: not tried again before the next start, unless asked for.
    """

    def __init__(
        self, collection_id: str, ordinal: int, schema: CollectionSchema, generation: int, disk: Disk,
        connection: sqlite3.Connection,
    ) -> None:
        self.collection_id = collection_id
        self.ordinal = ordinal
        self.schema = schema
        self.generation = generation
        self.folder = collection_id
        self._disk = disk
        suffix = "f16" if schema.dtype == np.float16 else "f32"
        self.files = (f"vectors.{generation}.{suffix}", f"payloads.{generation}.log")
        self.column = VectorColumn(disk, f"{self.folder}/{self.files[0]}", schema.dim, schema.dtype)
        self.payloads = PayloadLog(disk, f"{self.folder}/{self.files[1]}")
        self.versions = VersionTable()
        self.integrity = Integrity(self.column, self.payloads, self.versions)
        self.metadata = MetadataIndex()
        self.documents = DocumentIndex(connection, ordinal, self._texts)
        self.hnsw = HnswIndex(schema.dim, schema.metric, schema.M, schema.ef_construction)
        self.hnsw_saved: tuple[str, int, int] | None = None
        self.hot_filters = HotFilters()
        self.indexed = 0
        self.checkpointed = 0
        self.uncompactable = False
        self.depth = SearchDepth()
        self.changed = True
        self._norms: Float32Array = np.empty(0, np.float32)
        self._slice_rows = _FIRST_SLICE_ROWS
        self._sorted_ids: list[str] = []
        self._sorted_count = 0
        self._sort_lock = threading.Lock()

    @classmethod
    def create(
        cls,
        collection_id: str,
        ordinal: int,
        schema: CollectionSchema,
        disk: Disk,
        connection: sqlite3.Connection,
        generation: int = 1,
    ) -> Collection:
        """Make an empty collection; files left by a crash before its first checkpoint are emptied."""
        collection = cls(collection_id, ordinal, schema, generation, disk, connection)
        collection.column.truncate(0)
        collection.payloads.truncate(0)
        return collection

    @classmethod
    def open(cls, stored: StoredCollection, schema: CollectionSchema, disk: Disk, locations: Locations) -> Collection:
        """Open a collection as its last checkpoint left it; what the files hold beyond that counts for nothing."""
        collection = cls(
            stored.collection_id, stored.ordinal, schema, stored.generation, disk, locations.connection
        )
        collection.column.truncate(stored.rows)
        collection.payloads.truncate(stored.payload_bytes)
        rows = locations.load_rows(stored)
        collection.versions.load(rows.ids, rows.begin, rows.end, rows.offset, rows.size)
        for segment in locations.load_postings(stored.ordinal):
            collection.metadata.load(segment)
        collection.documents.restore(stored.rows)
        collection.checkpointed = stored.rows
        collection.depth = SearchDepth(
            tuned=stored.ef,
            recall=stored.measured_recall,
            recall_interval=stored.recall_interval,
            rows=stored.tuned_rows,
            changes=collection.versions.changes,
        )
        collection.changed = False
        for first, last in collection.integrity.check_vectors(locations.load_spans(stored.ordinal)):
            collection._set_norms(first, np.ascontiguousarray(collection.column.view(first, last), np.float32))
        collection._load_hnsw(stored)
        return collection

    def close(self, *, keep_room: bool = False) -> None:
        """Close the files; what was read from them stays valid. ``keep_room``: also what was taken ahead."""
        try:
            self.column.close(keep_room=keep_room)
        finally:
            self.payloads.close(keep_room=keep_room)

    def reserve(self, rows: int, payload_bytes: int) -> None:
        """Take room on the disk for so many more rows, and so many bytes of their payloads together.

        Raises:
            StorageFullError: There is not that much.
        """
        self.column.reserve(self.versions.rows + rows)
        self.payloads.reserve(payload_bytes)

    # ------------------------------------------------------------------------------------------- writing

    def put(self, ids: Sequence[str], vectors: Float32Array, payloads: Sequence[bytes], ts: int) -> None:
        """Add one version per id, committed at ``ts``."""
        offsets, sizes = self._store(vectors, payloads)
        self.versions.append(ids, ts, offsets, sizes)

    def adopt(
        self, ids: Sequence[str], vectors: Float32Array, payloads: Sequence[bytes], begin: npt.NDArray[np.int64]
    ) -> None:
        """Add versions of another generation, begun at ``begin``; their ends are set later."""
        offsets, sizes = self._store(vectors, payloads)
        self.versions.adopt(ids, begin, offsets, sizes)

    def _store(
        self, vectors: Float32Array, payloads: Sequence[bytes]
    ) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int32]]:
        first = self.versions.rows
        self.column.append(first, vectors)
        offsets, sizes = self.payloads.append(payloads)
        self._set_norms(first, vectors)
        metadata, json_documents = objects_of(payloads)
        self.metadata.add(first, metadata)
        self.documents.add(first, json_documents)
        self.changed = True
        return offsets, sizes

    def delete(self, ids: Sequence[str], ts: int) -> None:
        """End the live versions of these records at ``ts``."""
        self.versions.delete(ids, ts)
        self.changed = True

    # ------------------------------------------------------------------------------------------- reading

    def matching(self, where: Filter | None, where_document: DocumentFilter | None) -> RowSet | None:
        """The rows, of any version, that match both filters; None when there is no filter."""
        rows = self.versions.rows
        found = None if where is None else self.metadata.evaluate(where, rows)
        if where_document is None:
            return found
        in_documents = self.documents.evaluate(where_document, rows)
        return in_documents if found is None else found & in_documents

    @property
    def norms(self) -> Float32Array:
        """Euclidean norms of the rows: they spare scans a pass over the vectors, whatever the metric."""
        return self._norms

    @property
    def tail_rows(self) -> int:
        """Rows that are not in the graph yet."""
        return self.versions.rows - self.indexed

    @property
    def dead_rows(self) -> int:
        """Rows of replaced and deleted versions that still take space."""
        return self.versions.rows - self.versions.alive

    @property
    def disk_bytes(self) -> int:
        """Bytes in the collection's files: vectors, payloads, saved graph."""
        graph = f"{self.folder}/{self.hnsw_saved[0]}" if self.hnsw_saved else None
        path = self._disk.path(graph) if graph else None
        return self.column.bytes + self.payloads.end + (path.stat().st_size if path and path.exists() else 0)

    def vectors_of(self, rows: Sequence[int]) -> Float32Array:
        """Vectors of rows, (n, dim) float32."""
        taken = self.column.take(np.asarray(rows, np.int64))
        return np.ascontiguousarray(taken, np.float32)

    def rows_of(self, rows: Sequence[int], *, with_payloads: bool = True, with_vectors: bool = False) -> Rows:
        """Records of rows, their checksums verified when payloads are read.

        Raises:
            ChecksumValidationFailureError: A record's bytes do not match its checksum.
        """
        versions = self.versions
        ids = [versions.ids[row] for row in rows]
        begin = versions.begin[np.asarray(rows, np.int64)].tolist()
        if not with_payloads and not with_vectors:
            return Rows(ids, begin, None, None)
        payloads = self.payloads_of(rows) if with_payloads else None
        return Rows(ids, begin, payloads, self.vectors_of(rows) if with_vectors else None)

    def payloads_of(self, rows: Sequence[int]) -> list[bytes]:
        """Payloads of rows, verified together with their vectors.

        Raises:
            ChecksumValidationFailureError: A record's bytes do not match its checksum, or are no record at all.
        """
        index = np.asarray(rows, np.int64)
        found = self.payloads.read_many(self.versions.offset[index].tolist(), self.versions.size[index].tolist())
        try:
            # Picking rows out of the matrix would copy them, and let go of the interpreter's lock in every search.
            narrow = self.column.dtype.itemsize < 4
            verify_payloads(found, self.vectors_of(rows) if narrow else self.column.stored(rows))
        except (ChecksumValidationFailureError, CorruptionError):
            self.integrity.raise_damaged(rows)
            raise
        return found

    def ids_after(self, after: str | None) -> Iterator[str]:
        """All record ids ever used and not forgotten, in order, those after ``after``."""
        with self._sort_lock:
            known = len(self.versions.newest)
            if known != self._sorted_count:
                self._sorted_ids = sorted(self.versions.newest)
                self._sorted_count = known
            ids = self._sorted_ids
        start = 0 if after is None else bisect_right(ids, after)
        return (ids[i] for i in range(start, len(ids)))

    # ------------------------------------------------------------------------------------------ indexing

    def index_slice(self, budget_ms: float, stopwatch: Callable[[], float]) -> int:
        """Move one slice of the tail to the graph. Returns the rows moved.

        The slice is sized by the last one's time on ``stopwatch`` (seconds) to take about ``budget_ms``.
        """
        first = self.indexed
        last = min(self.versions.rows, first + self._slice_rows)
        if last <= first:
            return 0
        vectors = self._graph_vectors(first, last)
        started = stopwatch()
        self.hnsw.add(vectors)
        spent_ms = (stopwatch() - started) * 1000
        self.indexed = last
        if last - first == self._slice_rows:
            self._slice_rows = int(np.clip(self._slice_rows * budget_ms / max(spent_ms, 0.01), 1, 4096))
        return last - first

    def rows_since(self, first: int, last: int) -> StoredRows:
        """Copies of the version columns of rows ``[first, last)``, for a checkpoint."""
        v = self.versions
        return StoredRows(
            v.ids[first:last],
            v.begin[first:last].copy(),
            v.end[first:last].copy(),
            v.offset[first:last].copy(),
            v.size[first:last].copy(),
        )

    def texts_between(self, first: int, last: int) -> list[str | None]:
        """Text documents of rows ``[first, last)``."""
        return self._texts(range(first, last))

    # --------------------------------------------------------------------------------------------- inside

    def _graph_vectors(self, first: int, last: int) -> Float32Array:
        """Vectors of the rows ``[first, last)`` for the graph."""
        vectors = np.ascontiguousarray(self.column.view(first, last), np.float32)
        damaged = [row - first for row in list(self.integrity.vectors) if first <= row < last]
        if damaged:  # they need a place in the graph, and could be NaN; nobody sees them there
            vectors = vectors.copy()
            vectors[damaged] = 0
        return vectors

    def _texts(self, rows: Sequence[int]) -> list[str | None]:
        self.integrity.check_payloads(rows)
        damaged = self.integrity.payloads
        if damaged and not damaged.keys().isdisjoint(rows):
            # What they held is unknown; whoever's snapshot sees them is refused.
            return [None if row in damaged else self._texts([row])[0] for row in rows]
        index = np.asarray(rows, np.int64)
        stored = self.payloads.read_many(self.versions.offset[index].tolist(), self.versions.size[index].tolist())
        found = documents_of(stored)
        return [document if isinstance(document, str) else None for document in found]

    def _load_hnsw(self, stored: StoredCollection) -> None:
        path = self._disk.path(f"{self.folder}/{stored.hnsw_file}") if stored.hnsw_file else None
        if path is None or stored.hnsw_file is None or stored.hnsw_rows > stored.rows:
            return
        try:
            self.hnsw.load(path, stored.hnsw_checksum, stored.hnsw_rows, self._graph_vectors)
        except (CorruptionError, InvalidDataException, StorageFullError) as error:
            # The graph is derived data: what is missing or damaged, or finds no room to be put together, is built again
            # from the column, in the background.
            logger.warning("a graph of %s is built again: %s", self.schema.name, error.message)
            self.hnsw = HnswIndex(self.schema.dim, self.schema.metric, self.schema.M, self.schema.ef_construction)
            return
        self.indexed = stored.hnsw_rows
        self.hnsw_saved = (stored.hnsw_file, stored.hnsw_rows, stored.hnsw_checksum)

    def _set_norms(self, first: int, vectors: Float32Array) -> None:
        last = first + len(vectors)
        if last > len(self._norms):
            grown = np.empty(max(last, 1024, len(self._norms) * 3 // 2), np.float32)
            grown[:first] = self._norms[:first]
            self._norms = grown
        self._norms[first:last] = norms(vectors)


def joined_rows(parts: Sequence[Rows]) -> Rows:
    """Put the rows of several collections, or of several shards, together."""
    vectors = [part.vectors for part in parts if part.vectors is not None]
    same_width = len({v.shape[1] for v in vectors}) <= 1
    return Rows(
        [record_id for part in parts for record_id in part.ids],
        [ts for part in parts for ts in part.begin_ts],
        [payload for part in parts for payload in part.payloads or []],
        np.concatenate(vectors) if vectors and same_width else None,
    )


__all__ = ["NO_ROW", "Collection", "joined_rows"]
