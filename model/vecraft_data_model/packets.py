"""The packets that users hand in and get back, in one place.

:class:`DataPacket` (a record), :class:`VectorPacket` (its vector), :class:`QueryPacket` (a search),
:class:`SearchResult`, :class:`CommitResult` and :class:`CollectionInfo` (answers). They are values: none of them knows
a database.
"""

from __future__ import annotations

from vecraft_data_model.data_packet import DataPacket
from vecraft_data_model.query_packet import QueryPacket
from vecraft_data_model.results import CollectionInfo, CommitResult, SearchResult, ShardPart
from vecraft_data_model.vector_packet import VectorPacket

__all__ = [
    "CollectionInfo", "CommitResult", "DataPacket", "QueryPacket", "SearchResult", "ShardPart", "VectorPacket",
]  # fmt: skip
