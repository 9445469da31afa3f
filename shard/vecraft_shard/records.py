"""What the write-ahead log says: the types of its records, and the bytes of a transaction.

A transaction is written column-wise, and its bulk is copied nowhere: header, then per ``Put`` the vectors as they lie
in memory and the payloads as they will lie in the payload log::

    ┌────────────┬──────────────────────┬───────────────────────────┬──────────────────────┬─ per Put …
    │ u32 length │ TransactionHeader    │ vectors, float32 (n, dim) │ n payloads, in order │
    │            │ (MessagePack)        │ row by row                │ (sizes in the header)│
    └────────────┴──────────────────────┴───────────────────────────┴──────────────────────┴─

Mutations are *resolved*: they name collections by id, so that replaying does not depend on what names meant.
"""

from __future__ import annotations

import enum
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise

import msgspec
import numpy as np

from vecraft_data_model.messages import (
    AlterCollection,
    CatalogMutation,
    CreateCollection,
    DropAlias,
    DropCollection,
    Float32Array,
    SetAlias,
)
from vecraft_data_model.schema import CollectionSchema


class RecordType(enum.IntEnum):
    """Types of log records."""

    CEILING = 1
    """The clock ceiling."""
    COMMIT_ONE = 2
    """A transaction of this shard alone, committed."""
    PREPARE = 3
    """A yes vote, with everything needed to commit later."""
    COMMIT = 4
    """The decision to commit a prepared transaction."""
    ABORT = 5
    """The decision to abort, also of a transaction that was never heard of."""
    ACKNOWLEDGED = 6
    """All participants of a transaction hold its decision."""
    SAFE_POINT = 7
    """History below is given up."""


@dataclass(frozen=True, slots=True)
class ResolvedPut:
    """A ``Put`` by collection id."""

    collection_id: str
    ids: list[str]
    vectors: Float32Array
    payloads: Sequence[bytes]


@dataclass(frozen=True, slots=True)
class ResolvedDelete:
    """A ``Delete`` by collection id. ``matched_at``: the snapshot at which a filter found the records; 0: none did."""

    collection_id: str
    ids: list[str]
    matched_at: int = 0


Resolved = ResolvedPut | ResolvedDelete | CreateCollection | DropCollection | AlterCollection | SetAlias | DropAlias


@dataclass(frozen=True, slots=True)
class TransactionRecord:
    """A transaction as the log holds it. ``ts``: commit timestamp, or prepare timestamp in a PREPARE."""

    txn_id: str
    content_hash: bytes
    ts: int
    mutations: list[Resolved]
    primary: int = 0
    participants: Sequence[int] = ()
    reads: Sequence[tuple[str, str]] = ()
    """``(collection id, record id)`` that must stay as they are while it is prepared: what a serializable transaction
    read, and what a deletion by filter passed over."""
    aliases: Sequence[str] = ()
    """By which it names collections: they must mean the same while it is prepared."""


class DecisionRecord(msgspec.Struct, array_like=True):
    """COMMIT (``ts`` above 0, ``others`` still to be told, at the primary) and ABORT (``ts`` 0)."""

    txn_id: str
    ts: int
    others: list[int] = []
    content_hash: bytes = b""


class _Put(msgspec.Struct, array_like=True, tag="p"):
    collection_id: str
    ids: list[str]
    dim: int
    sizes: bytes


class _Delete(msgspec.Struct, array_like=True, tag="d"):
    collection_id: str
    ids: list[str]
    matched_at: int = 0


class _Create(msgspec.Struct, array_like=True, tag="c"):
    schema: msgspec.Raw
    collection_id: str


class _Drop(msgspec.Struct, array_like=True, tag="r"):
    name: str


class _Alter(msgspec.Struct, array_like=True, tag="l"):
    name: str
    changes: dict[str, float | int | str | None]


class _SetAlias(msgspec.Struct, array_like=True, tag="s"):
    alias: str
    name: str


class _DropAlias(msgspec.Struct, array_like=True, tag="x"):
    alias: str


class _Header(msgspec.Struct, array_like=True):
    txn_id: str
    content_hash: bytes
    ts: int
    primary: int
    participants: list[int]
    reads: list[tuple[str, str]]
    mutations: list[_Put | _Delete | _Create | _Drop | _Alter | _SetAlias | _DropAlias]
    aliases: list[str] = []


_encoder = msgspec.msgpack.Encoder()
_header_decoder = msgspec.msgpack.Decoder(_Header)
_decision_decoder = msgspec.msgpack.Decoder(DecisionRecord)
_LENGTH = struct.Struct("<I")
_TIMESTAMP = struct.Struct("<q")


def encode_transaction(record: TransactionRecord) -> list[bytes | memoryview]:
    """Return the record's bytes in pieces, vectors and payloads uncopied."""
    headers: list[_Put | _Delete | _Create | _Drop | _Alter | _SetAlias | _DropAlias] = []
    bulk: list[bytes | memoryview] = []
    for mutation in record.mutations:
        match mutation:
            case ResolvedPut():
                sizes = np.fromiter(map(len, mutation.payloads), np.uint32, len(mutation.payloads))
                headers.append(
                    _Put(mutation.collection_id, mutation.ids, mutation.vectors.shape[1], sizes.tobytes())
                )
                bulk.append(np.ascontiguousarray(mutation.vectors, np.float32).data.cast("B"))
                bulk.append(b"".join(mutation.payloads))
            case ResolvedDelete():
                headers.append(_Delete(mutation.collection_id, mutation.ids, mutation.matched_at))
            case _:
                headers.append(_catalog_header(mutation))
    header = _encoder.encode(
        _Header(
            record.txn_id,
            record.content_hash,
            record.ts,
            record.primary,
            list(record.participants),
            list(record.reads),
            headers,
            list(record.aliases),
        )
    )
    return [_LENGTH.pack(len(header)), header, *bulk]


def decode_transaction(data: memoryview | bytes) -> TransactionRecord:
    """Read a transaction back. The arrays are copies: ``data`` may go away."""
    data = memoryview(data)
    (length,) = _LENGTH.unpack_from(data)
    at = _LENGTH.size + length
    header = _header_decoder.decode(data[_LENGTH.size : at])
    mutations: list[Resolved] = []
    for item in header.mutations:
        if isinstance(item, _Put):
            rows = len(item.ids)
            width = rows * item.dim * 4
            vectors = np.frombuffer(data[at : at + width], np.float32).reshape(rows, item.dim).copy()
            at += width
            sizes = np.frombuffer(item.sizes, np.uint32).tolist()
            blob = bytes(data[at : at + sum(sizes)])
            at += len(blob)
            payloads = [blob[a:b] for a, b in pairwise(accumulate(sizes, initial=0))]
            mutations.append(ResolvedPut(item.collection_id, item.ids, vectors, payloads))
        elif isinstance(item, _Delete):
            mutations.append(ResolvedDelete(item.collection_id, item.ids, item.matched_at))
        else:
            mutations.append(_catalog_mutation(item))
    return TransactionRecord(
        header.txn_id,
        header.content_hash,
        header.ts,
        mutations,
        header.primary,
        header.participants,
        header.reads,
        header.aliases,
    )


def encode_decision(record: DecisionRecord) -> list[bytes | memoryview]:
    """Bytes of a COMMIT, ABORT or ACKNOWLEDGED record."""
    return [_encoder.encode(record)]


def decode_decision(data: memoryview | bytes) -> DecisionRecord:
    """Read a COMMIT, ABORT or ACKNOWLEDGED record."""
    return _decision_decoder.decode(data)


def encode_timestamp(ts: int) -> list[bytes | memoryview]:
    """Bytes of a CEILING or SAFE_POINT record."""
    return [_TIMESTAMP.pack(ts)]


def decode_timestamp(data: memoryview | bytes) -> int:
    """Read a CEILING or SAFE_POINT record."""
    (ts,) = _TIMESTAMP.unpack(data)
    return int(ts)


def _catalog_header(mutation: CatalogMutation) -> _Create | _Drop | _Alter | _SetAlias | _DropAlias:
    match mutation:
        case CreateCollection(schema=schema, collection_id=collection_id):
            from_schema = msgspec.Raw(_encoder.encode(schema.to_dict()))
            return _Create(from_schema, collection_id)
        case DropCollection(name=name):
            return _Drop(name)
        case AlterCollection(name=name, changes=changes):
            return _Alter(name, changes)
        case SetAlias(alias=alias, name=name):
            return _SetAlias(alias, name)
        case DropAlias(alias=alias):
            return _DropAlias(alias)


def _catalog_mutation(item: _Create | _Drop | _Alter | _SetAlias | _DropAlias) -> CatalogMutation:
    match item:
        case _Create(schema=schema, collection_id=collection_id):
            return CreateCollection(CollectionSchema.from_dict(msgspec.msgpack.decode(schema)), collection_id)
        case _Drop(name=name):
            return DropCollection(name)
        case _Alter(name=name, changes=changes):
            return AlterCollection(name, changes)
        case _SetAlias(alias=alias, name=name):
            return SetAlias(alias, name)
        case _DropAlias(alias=alias):
            return DropAlias(alias)
