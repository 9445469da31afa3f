"""What calls answer with: search results, commits, figures of a collection.

A :class:`SearchResult` is made thousands of times a second and mostly looked at in part: it holds the payload's bytes,
and decodes metadata and document when they are first asked for.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from operator import itemgetter
from typing import Any, Final

import msgspec
import numpy as np
import numpy.typing as npt

from vecraft_data_model.data_packet import DataPacket
from vecraft_data_model.errors import InvalidDataException
from vecraft_data_model.messages import DescribeReply
from vecraft_data_model.payload import Json, decode_document, decode_metadata
from vecraft_data_model.schema import CollectionSchema

METADATA: Final = 1
DOCUMENT: Final = 2
_UNREAD: Final = msgspec.UNSET


class SearchResult(msgspec.Struct, gc=False, eq=False, weakref=False):
    """One neighbour.

    Attributes:
        record_id: Its id.
        distance: Smaller is nearer, for every metric; NaN in a search by text alone, which compares no vectors.
        payload: The record's bytes; None when neither metadata nor document were included.
        vector: (dim,) float32, when included.
        included: Bits ``METADATA`` and ``DOCUMENT``.
        score: What a search with ``query_text`` ranks by, larger is better; None in one without.
    """

    record_id: str
    distance: float
    payload: bytes | None = None
    vector: npt.NDArray[np.float32] | None = None
    included: int = METADATA | DOCUMENT
    score: float | None = None
    _metadata: Any = _UNREAD
    _document: Any = _UNREAD

    @property
    def metadata(self) -> dict[str, Json] | None:
        """The metadata; None if there are none, or they were not included."""
        if self._metadata is _UNREAD:
            payload = self.payload
            self._metadata = decode_metadata(payload) if payload is not None and self.included & METADATA else None
        metadata: dict[str, Json] | None = self._metadata
        return metadata

    @property
    def document(self) -> str | dict[str, Json] | None:
        """The document; None if there is none, or it was not included."""
        if self._document is _UNREAD:
            payload = self.payload
            self._document = decode_document(payload) if payload is not None and self.included & DOCUMENT else None
        document: str | dict[str, Json] | None = self._document
        return document

    @property
    def data_packet(self) -> DataPacket:
        """The whole record, its checksum checked if the vector was included.

        Raises:
            InvalidDataException: Only id and distance were asked for.
        """
        if self.payload is None:
            raise InvalidDataException(
                f"the record of {self.record_id!r} was not read; search with include=('metadata', 'document', 'vector')"
            )
        return DataPacket.from_payload(self.payload, self.vector)

    def to_dict(self) -> dict[str, Any]:
        """Return ``{"record_id", "distance"}`` and what was included, as JSON values."""
        data: dict[str, Any] = {
            "record_id": self.record_id, "distance": None if math.isnan(self.distance) else self.distance,
        }  # fmt: skip
        if self.score is not None:
            data["score"] = self.score
        if self.payload is not None and self.included & METADATA:
            data["metadata"] = self.metadata
        if self.payload is not None and self.included & DOCUMENT:
            data["document"] = self.document
        if self.vector is not None:
            data["vector"] = self.vector.tolist()
        return data

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, SearchResult):
            return NotImplemented
        same_distance = self.distance == other.distance or (math.isnan(self.distance) and math.isnan(other.distance))
        return same_distance and (self.record_id, self.score, self.metadata, self.document) == (
            other.record_id, other.score, other.metadata, other.document,
        ) and np.array_equal(_or_empty(self.vector), _or_empty(other.vector))  # fmt: skip

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        return f"SearchResult({self.record_id!r}, {self.distance:.6g}, metadata={self.metadata!r})"


class CommitResult(msgspec.Struct, frozen=True, gc=False):
    """A durable commit.

    Attributes:
        txn_id: Of the transaction; give it again to ask whether it happened.
        commit_ts: When it happened; a read at ``as_of=commit_ts`` sees it.
        count: Records written or deleted.
    """

    txn_id: str
    commit_ts: int
    count: int


class ShardPart(msgspec.Struct, frozen=True):
    """One shard's part of a collection; fields as in :class:`CollectionInfo`."""

    shard: int
    count: int
    tail_rows: int
    indexed_rows: int
    dead_rows: int
    ef: int
    measured_recall: float | None
    bytes: int
    recall_interval: tuple[float, float] | None = None


class CollectionInfo(msgspec.Struct, frozen=True):
    """A collection's schema and figures.

    Attributes:
        schema: Its schema.
        collection_id: What its files are called.
        count: Records alive.
        tail_rows: Rows scanned exactly because they are not in the graph yet.
        indexed_rows: Rows in the graph.
        dead_rows: Rows of replaced or deleted records that are still kept.
        ef: Search depth; the largest of its shards.
        measured_recall: Recall at 10 as last measured; the worst of its shards, None before any measurement.
        bytes: Size of its files.
        recall_interval: 95% confidence interval of ``measured_recall``.
        shards: The same, shard by shard.
    """

    schema: CollectionSchema
    collection_id: str
    count: int
    tail_rows: int
    indexed_rows: int
    dead_rows: int
    ef: int
    measured_recall: float | None
    bytes: int
    shards: list[ShardPart]
    recall_interval: tuple[float, float] | None = None

    @property
    def name(self) -> str:
        """The collection's name."""
        return self.schema.name

    @property
    def tail(self) -> int:
        """Rows of the tail, ``tail_rows``."""
        return self.tail_rows

    @property
    def deleted_rows(self) -> int:
        """Rows of replaced and deleted records, ``dead_rows``."""
        return self.dead_rows

    @staticmethod
    def of_replies(replies: Mapping[int, DescribeReply]) -> CollectionInfo:
        """Add up what the shards say of one collection.

        Raises:
            InvalidDataException: No shard said anything.
        """
        if not replies:
            raise InvalidDataException("a collection's figures need at least one shard's reply")
        parts = [
            ShardPart(
                shard, reply.count, reply.tail_rows, reply.indexed_rows, reply.dead_rows, reply.ef,
                reply.measured_recall, reply.bytes, reply.recall_interval,
            )
            for shard, reply in sorted(replies.items())
        ]  # fmt: skip
        first = replies[parts[0].shard]
        measured = [(part.measured_recall, part.recall_interval) for part in parts if part.measured_recall is not None]
        recall, interval = min(measured, key=itemgetter(0), default=(None, None))
        return CollectionInfo(
            schema=first.schema,
            collection_id=first.collection_id,
            count=sum(part.count for part in parts),
            tail_rows=sum(part.tail_rows for part in parts),
            indexed_rows=sum(part.indexed_rows for part in parts),
            dead_rows=sum(part.dead_rows for part in parts),
            ef=max(part.ef for part in parts),
            measured_recall=recall,
            bytes=sum(part.bytes for part in parts),
            shards=parts,
            recall_interval=interval,
        )

    def to_dict(self) -> dict[str, Any]:
        """Return everything as JSON values."""
        data: dict[str, Any] = msgspec.to_builtins(self)
        return data


def _or_empty(vector: npt.NDArray[np.float32] | None) -> npt.NDArray[np.float32]:
    return np.empty(0, dtype=np.float32) if vector is None else vector
