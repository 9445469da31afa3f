"""The bodies that routes accept: which keys there are, and which must be there.

Values that a validator of the model room judges (``k``, ids, vectors, filters, …) are ``Any`` here on purpose: a
wrong one then gets the same error from REST as from Python, naming the value and what is accepted. Unknown keys are
errors everywhere. The same structs give ``/openapi.json`` its schemas.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

import msgspec
from msgspec import UNSET, Meta, UnsetType

from vecraft_data_model.text_ranking import TextStatistics


def _any(description: str, **schema: Any) -> Meta:
    return Meta(description=description, extra_json_schema=schema or None)


Vector = Annotated[
    Any,
    _any(
        "A list of numbers, or {b64, dtype, shape}",
        anyOf=[
            {"type": "array", "items": {"type": "number"}},
            {
                "type": "object",
                "properties": {
                    "b64": {"type": "string", "description": "little-endian numbers in base64"},
                    "dtype": {"enum": ["float32", "float64", "float16"], "default": "float32"},
                    "shape": {"type": "array", "items": {"type": "integer"}},
                },
                "required": ["b64"],
            },
        ],
    ),
]
Vectors = Annotated[Any, _any("A list of vectors, or one {b64, dtype, shape: [n, dim]}")]
RecordId = Annotated[Any, _any("1 to 1024 bytes of UTF-8", type="string")]
RecordIds = Annotated[Any, _any("Distinct record ids", type="array", items={"type": "string"})]
Where = Annotated[Any, _any("A filter on metadata", type="object")]
WhereDocument = Annotated[Any, _any("A filter on documents", type="object")]
Include = Annotated[
    Any,
    _any("What records come with", type="array", items={"enum": ["metadata", "document", "vector"]}),
]
QueryText = Annotated[Any, _any("Words to rank documents by (BM25), besides or instead of a vector", type="string")]
FusionOf = Annotated[
    Any,
    _any(
        'How both rankings become one: "rrf", or weights',
        anyOf=[
            {"enum": ["rrf"]},
            {"type": "object", "properties": {"vector": {"type": "number"}, "text": {"type": "number"}}},
            {"type": "array", "items": {"type": "number"}},
        ],
    ),
]
GroupBy = Annotated[Any, _any("The nearest of each value of this metadata field, of the k nearest", type="string")]
GroupSize = Annotated[Any, _any("With group_by: how many of each value", type="integer", minimum=1, default=1)]
Expect = Annotated[Any, _any('"absent", "present", or the commit timestamp that the records must have')]
TxnId = Annotated[Any, _any("Chosen by the client, once: a retry with the same id is carried out once", type="string")]
Payloads = Annotated[Any, _any("Encoded records {b64, sizes}, instead of metadatas and documents", type="object")]
Format = Annotated[
    Literal["rows", "columns"],
    Meta(
        description="rows: one object per record. columns: ids, payloads (base64, checksums included) and one base64 "
        "matrix of vectors; what the Python client speaks"
    ),
]


class Body(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    """Base of all bodies."""


class CreateBody(Body):
    """The fields of a schema; what is left out has the default of ``CollectionSchema``."""

    dim: Annotated[Any, _any("1 to 65536", type="integer")]
    name: Annotated[Any, _any("As in the path, if it is given", type="string")] = None
    vector_type: Annotated[Any, _any("How it is stored", enum=["float32", "float", "float16"])] = "float32"
    metric: Annotated[Any, _any("Smaller is nearer", enum=["l2", "cosine", "ip"])] = "l2"
    M: Annotated[Any, _any("HNSW links per node", type="integer")] = 16
    ef_construction: Annotated[Any, _any("HNSW build depth", type="integer")] = 200
    target_recall: Annotated[Any, _any("What the search depth is tuned to", type="number")] = 0.95
    checksum_algorithm: Annotated[Any, _any("Of records that do not say", type="string")] = "sha256"
    if_not_exists: Annotated[Any, _any("200 instead of 409 if it exists", type="boolean")] = False
    txn_id: TxnId = None


class Packet(Body):
    """One record; also what ``DataPacket.to_dict`` gives."""

    record_id: RecordId
    vector: Vector
    type: Annotated[Any, _any("RECORD; marks of other kinds are not written", enum=["RECORD"])] = "RECORD"
    metadata: Any = None
    document: Any = None
    checksum_algorithm: Any = None
    checksum: Annotated[Any, _any("Hexadecimal; verified if it is given", type="string")] = None
    commit_ts: Annotated[Any, _any("Of the version it was read as; not used", type="integer")] = None


class InsertBody(Body):
    """Insert or replace one record."""

    packet: Packet
    expect: Expect = None
    txn_id: TxnId = None


class UpsertBody(Body):
    """Insert or replace records, atomically: either ``packets``, or the columns."""

    packets: list[Packet] | None = None
    ids: RecordIds = None
    vectors: Vectors = None
    metadatas: list[Any] | None = None
    documents: list[Any] | None = None
    payloads: Payloads = None
    checksum_algorithm: Any = None
    expect: Expect = None
    txn_id: TxnId = None


class GetBody(Body):
    """Records by id: ``record_id`` answers with one record, ``ids`` with a list that holds null for the missing."""

    record_id: RecordId = None
    ids: RecordIds = None
    include: Include = ("metadata", "document", "vector")
    format: Format = "rows"


class DeleteBody(Body):
    """Delete one record (answers with it), several, or all that match a filter."""

    record_id: RecordId = None
    ids: RecordIds = None
    where: Where = None
    where_document: WhereDocument = None
    expect: Expect = None
    txn_id: TxnId = None


class SearchFields(Body):
    """What is asked of one query and of several alike."""

    k: Annotated[Any, _any("How many", type="integer", minimum=1, default=10)] = 10
    where: Where = None
    where_document: WhereDocument = None
    ef: Annotated[Any, _any("Search depth", type="integer")] = None
    exact: Any = False
    max_distance: Annotated[Any, _any("Farther ones are left out", type="number")] = None
    include: Include = ("metadata", "document")
    query_text: QueryText = None
    fusion: FusionOf = "rrf"
    group_by: GroupBy = None
    group_size: GroupSize = 1


class Query(SearchFields):
    """One query: by a vector, by a text, or by both."""

    query_vector: Vector = None
    checksum_algorithm: Any = None
    checksum: Annotated[Any, _any("Accepted and not used: a query is not stored")] = None


class SearchBody(Body):
    """One search. With ``explain`` the answer is ``{"results": […], "explain": {shard: plan}}``."""

    query: Query
    partial: bool = False
    explain: bool = False


class SearchManyBody(SearchFields):
    """Several searches that share everything but the vector; or one with ``query_text``, with a vector or without.

    Clients that join rankings themselves ask in columns with ``"fusion": null``, and get the ranking by vector, the one
    by text, and the statistics behind it; ``statistics`` says by which to rank.
    """

    queries: Vectors = None
    statistics: TextStatistics | None = None
    partial: bool = False
    explain: bool = False
    format: Format = "rows"


class ScanBody(Body):
    """One page in record id order. ``cursor`` (of the page before) brings collection, snapshot and filter with it."""

    where: Where = None
    where_document: WhereDocument = None
    include: Include = ("metadata", "document")
    limit: Annotated[Any, _any("Records of this page", type="integer", minimum=1, default=1000)] = 1000
    cursor: Annotated[Any, _any("From the page before", type="string")] = None
    after: Annotated[Any, _any("Instead of a cursor: start after this record id", type="string")] = None
    format: Format = "rows"


class CountBody(Body):
    """Count the records, or those that match."""

    where: Where = None
    where_document: WhereDocument = None


class Operation(Body):
    """One mutation of a transaction; which keys it takes depends on ``op``."""

    op: Literal[
        "insert",
        "upsert",
        "delete",
        "create_collection",
        "drop_collection",
        "alter_collection",
        "set_alias",
        "drop_alias",
    ]
    collection: Any = None
    packet: Packet | UnsetType = UNSET
    packets: list[Packet] | UnsetType = UNSET
    record_id: RecordId | UnsetType = UNSET
    ids: RecordIds | UnsetType = UNSET
    where: Where | UnsetType = UNSET
    where_document: WhereDocument | UnsetType = UNSET
    vectors: Vectors | UnsetType = UNSET
    metadatas: list[Any] | UnsetType | None = UNSET
    documents: list[Any] | UnsetType | None = UNSET
    payloads: Payloads | UnsetType = UNSET
    checksum_algorithm: Any = UNSET
    expect: Expect = None
    schema: Any = UNSET
    changes: Any = UNSET
    alias: Any = UNSET


class TransactionBody(Body):
    """A transaction that is complete: it is carried out as a whole, or not at all.

    Operations count in their order: of several that write one record, the last; a deletion by filter finds what those
    before it wrote, too. It looks at the transaction's snapshot: ``snapshot``, or one chosen now (with a ``txn_id`` it
    must be named, so that the same transaction can be sent again).

    With ``snapshot`` it conflicts (409) if anything it writes was written since; with ``isolation`` "serializable",
    also if anything in ``reads`` was.
    """

    operations: list[Operation]
    txn_id: TxnId = None
    snapshot: Annotated[Any, _any("The timestamp it read at", type="integer")] = None
    isolation: Literal["snapshot", "serializable"] | None = None
    reads: Annotated[
        list[Any],
        Meta(description="Records read by id: [collection, record_id], or an object with these two keys"),
    ] = []
    preimages: Annotated[bool, Meta(description="Answer with the records that were replaced or deleted")] = False
    format: Format = "rows"


class SnapshotBody(Body):
    """Pin a snapshot: at a timestamp, or now. Pinning the same ``pin_id`` again renews it."""

    as_of: Annotated[
        Any,
        _any(
            "A commit timestamp, or an ISO 8601 datetime (UTC if it has no offset); now if it is left out",
            type=["integer", "string"],
        ),
    ] = None
    ttl_ms: Annotated[Any, _any("How long it is held", type="integer", default=60000)] = 60_000
    pin_id: Annotated[Any, _any("Chosen by the gateway if it is left out", type="string")] = None


class AliasBody(Body):
    """Let an alias name a collection."""

    collection: Any
    txn_id: TxnId = None


class AlterBody(Body):
    """Change what may change in a collection."""

    changes: Annotated[dict[str, Any], Meta(description="target_recall, ef")]
    txn_id: TxnId = None


class EfBody(Body):
    """Set the search depth, not durably; null goes back to the default."""

    ef: Any


class BackupBody(Body):
    """Write a backup."""

    path: Annotated[
        Any,
        _any("A new directory in the gateway's backup directory, by its name; named after the time if left out"),
    ] = None


class CheckpointBody(Body):
    """Make a checkpoint now."""

    compact: bool = False
    index: bool = False
