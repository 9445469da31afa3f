"""What routers, shards and shards among themselves say to each other.

One batch goes to one shard and one reply comes back, the responses in the order of the requests::

    Batch(requests=[Search, Get, CommitOne, …], clock, map_epoch)  →  BatchReply(responses=[…], clock)

A request that fails does so alone: its response is ``Refused(error)``. A read that meets a transaction whose
decision is still open gets ``Undecided`` and is asked again by its router, after the primary was asked to decide.

Messages are plain values: they pickle (Ray), and hold numpy arrays that are never written to after they were sent.
"""

from __future__ import annotations

from typing import Any

import msgspec

from vecraft_data_model.errors import VecraftError
from vecraft_data_model.filters import DocumentFilter, Filter, Key
from vecraft_data_model.scan_options import DEFAULT_PAGE, ScanOptions
from vecraft_data_model.schema import CollectionSchema
from vecraft_data_model.search_options import SearchOptions
from vecraft_data_model.text_ranking import TextStatistics
from vecraft_data_model.validation import Expectation as Expectation
from vecraft_data_model.validation import Float32Array as Float32Array

CHOOSE_SNAPSHOT = 0
"""As a read's snapshot: the one shard that is asked reads at its newest settled timestamp (at least ``min_ts``)."""


class Message(msgspec.Struct, frozen=True, gc=False):
    """Base of all messages."""


# ---------------------------------------------------------------------------------------------- mutations


class Put(Message, frozen=True):
    """Insert or replace records: one row of ``vectors`` (n, dim) float32 and one payload per id, ids distinct.

    ``payloads`` are encoded by :mod:`vecraft_data_model.payload` and hold id, metadata, document and checksum.
    """

    collection: str
    ids: list[str]
    vectors: Float32Array
    payloads: list[bytes]
    expect: Expectation = None


class Matched(Message, frozen=True):
    """The filter that records were found by, and the snapshot at which they matched it."""

    snapshot: int
    where: Filter | None = None
    where_document: DocumentFilter | None = None


class Delete(Message, frozen=True):
    """Delete records by id; ids that do not exist are passed over.

    ``matched``: how the records were found; those that have ceased to match are passed over, too.
    """

    collection: str
    ids: list[str]
    expect: Expectation = None
    matched: Matched | None = None


class CreateCollection(Message, frozen=True):
    """Create a collection. ``collection_id`` (hexadecimal) is chosen once by the router, equal on all shards."""

    schema: CollectionSchema
    collection_id: str


class DropCollection(Message, frozen=True):
    """Drop a collection; its history stays readable until the safe point passes."""

    name: str


class AlterCollection(Message, frozen=True):
    """Change the settings of a collection that may change: ``target_recall``, ``ef`` (None: tuned)."""

    name: str
    changes: dict[str, Any]


class SetAlias(Message, frozen=True):
    """Let ``alias`` name the collection ``name``."""

    alias: str
    name: str


class DropAlias(Message, frozen=True):
    """Remove an alias."""

    alias: str


Mutation = Put | Delete | CreateCollection | DropCollection | AlterCollection | SetAlias | DropAlias
DataMutation = Put | Delete
CatalogMutation = CreateCollection | DropCollection | AlterCollection | SetAlias | DropAlias


class Transaction(Message, frozen=True):
    """The part of a transaction that one shard takes part in.

    Attributes:
        txn_id: Chosen by the client, once.
        content_hash: Of the whole transaction over all shards: the same id with other content is refused.
        snapshot: What it read at; ``None`` for blind writes, which are last-writer-wins.
        reads: ``(collection, record_id)`` read by id, validated under ``serializable``.
        want_preimages: Answer with the records that were replaced or deleted.
    """

    txn_id: str
    content_hash: bytes
    mutations: list[Mutation]
    snapshot: int | None = None
    reads: list[tuple[str, str]] = []
    want_preimages: bool = False


# ------------------------------------------------------------------------------------------ write requests


class CommitOne(Message, frozen=True):
    """Commit a transaction that lives on this shard alone → ``Committed``."""

    txn: Transaction


class Prepare(Message, frozen=True):
    """First phase → ``Prepared`` (a durable yes), ``Committed``/``Aborted`` (decided before), or ``Refused`` (no)."""

    txn: Transaction
    primary: int
    participants: list[int]


class Decide(Message, frozen=True):
    """To the primary: commit at ``commit_ts`` → ``Committed`` once durable, or ``Aborted`` if it decided so before."""

    txn_id: str
    commit_ts: int


class AbortTransaction(Message, frozen=True):
    """To the primary: somebody voted no → ``Aborted`` once that is durable (or ``Committed`` if too late)."""

    txn_id: str


class Resolve(Message, frozen=True):
    """To the primary, from whoever is in doubt → ``Committed``, ``Aborted``, or ``Undecided`` if too early.

    ``held``: a participant holds the transaction prepared, so that an outcome of commit would not be forgotten yet.
    Otherwise somebody only knows the id, and one so old that its outcome may be forgotten → ``Refused``.
    """

    txn_id: str
    held: bool = True


class Finish(Message, frozen=True):
    """To the other participants: the decision. ``commit_ts`` 0 means aborted → ``Finished`` after its own fsync.

    ``content_hash`` says of which content, if the sender knows: a client may have used one id for two.
    """

    txn_id: str
    commit_ts: int
    content_hash: bytes = b""


class Acknowledge(Message, frozen=True):
    """To the primary: these participants hold the decision durably → ``Done``."""

    txn_id: str
    shards: list[int]


# ------------------------------------------------------------------------------------------- read requests


class ReadRequest(Message, frozen=True, kw_only=True):
    """Base of reads at a snapshot (``CHOOSE_SNAPSHOT`` when only this shard is asked)."""

    snapshot: int = CHOOSE_SNAPSHOT
    min_ts: int = 0


class Get(ReadRequest, frozen=True, kw_only=True):
    """Records by id → ``RowsReply``, with the missing left out."""

    collection: str
    ids: list[str]
    with_vectors: bool = True


class Search(ReadRequest, frozen=True, kw_only=True):
    """The nearest to each row of ``queries`` (q, dim) float32 → ``SearchReply``.

    With ``options.text`` there is one query, (1, dim) or, for a search by text alone, (1, 0).

    Attributes:
        members_of: With ``options.group_by``, for each query the groups to answer for, however near others are; None:
            the nearest ``options.k``.
    """

    collection: str
    queries: Float32Array
    options: SearchOptions = SearchOptions()
    members_of: tuple[frozenset[Key], ...] | None = None


class Scan(ReadRequest, frozen=True, kw_only=True):
    """→ ``RowsReply`` with at most ``options.limit`` rows."""

    collection: str
    options: ScanOptions = DEFAULT_PAGE


class Count(ReadRequest, frozen=True, kw_only=True):
    """→ ``CountReply``."""

    collection: str
    where: Filter | None = None
    where_document: DocumentFilter | None = None


class CountWords(ReadRequest, frozen=True, kw_only=True):
    """What ranking by these words has to know of all documents → ``WordsReply``."""

    collection: str
    words: tuple[str, ...]


class ListCollections(ReadRequest, frozen=True, kw_only=True):
    """→ ``CatalogReply``."""


class Describe(ReadRequest, frozen=True, kw_only=True):
    """→ ``DescribeReply``."""

    collection: str


class Barrier(Message, frozen=True):
    """For strong reads → ``BarrierReply`` with the clock, or ``Undecided`` while ``waiting_for`` is not all decided.

    The first time ``waiting_for`` is None: the shard answers with all that is undecided on arrival; asked again with
    those ids, it waits for no others.
    """

    waiting_for: list[str] | None = None


# ---------------------------------------------------------------------------------------- service requests


class PinSnapshot(Message, frozen=True):
    """Hold the safe point at or below ``snapshot`` for ``ttl_ms``, renewed by asking again → ``Done``."""

    pin_id: str
    snapshot: int
    ttl_ms: int


class ReleaseSnapshot(Message, frozen=True):
    """→ ``Done``."""

    pin_id: str


class SetEf(Message, frozen=True):
    """Set the search depth of a collection, not durable; ``None`` goes back to the default → ``Done``."""

    collection: str
    ef: int | None


class Checkpoint(Message, frozen=True):
    """Make a checkpoint now; ``compact`` reclaims dead rows first, ``index`` indexes the tail first → ``Done``."""

    compact: bool = False
    index: bool = False


class Status(Message, frozen=True):
    """→ ``StatusReply``: figures for ``/metrics`` and ``cluster status``; also the health probe."""


WriteRequest = CommitOne | Prepare | Decide | AbortTransaction | Resolve | Finish | Acknowledge
ServiceRequest = PinSnapshot | ReleaseSnapshot | SetEf | Checkpoint | Status
Request = WriteRequest | ReadRequest | Barrier | ServiceRequest


# ----------------------------------------------------------------------------------------------- responses


class Rows(Message, frozen=True):
    """Records, column-wise. ``payloads`` None when not asked for; ``vectors`` (n, dim) float32 likewise."""

    ids: list[str]
    begin_ts: list[int]
    payloads: list[bytes] | None
    vectors: Float32Array | None


class Hits(Message, frozen=True):
    """The answer to one query, nearest first, ties by record id. ``distances`` are float32 values as floats.

    ``scores``, larger is better: of each hit's text, or of both rankings joined. ``groups``: of a search that groups,
    each hit's value of that field.
    """

    ids: list[str]
    distances: list[float]
    payloads: list[bytes] | None = None
    vectors: Float32Array | None = None
    scores: list[float] | None = None
    groups: list[Any] | None = None


class Committed(Message, frozen=True):
    """Durable at ``commit_ts``. ``count`` records written or deleted by this shard; ``preimages`` when asked for.

    ``content_hash``: of what was committed, for whoever asked by id alone.
    """

    commit_ts: int
    count: int = 0
    preimages: Rows | None = None
    content_hash: bytes = b""


class Prepared(Message, frozen=True):
    """A durable yes: the transaction can commit at any timestamp from ``prepare_ts``."""

    prepare_ts: int
    count: int = 0
    preimages: Rows | None = None


class Aborted(Message, frozen=True):
    """Durably aborted: no late message of that transaction can win any more."""

    txn_id: str


class Finished(Message, frozen=True):
    """The decision is durable at this participant."""

    txn_id: str


class Done(Message, frozen=True):
    """A service request or acknowledgement was carried out."""


class Undecided(Message, frozen=True):
    """``(txn_id, primary shard)`` of the transactions that stand in the way; ask again."""

    transactions: list[tuple[str, int]]


class Refused(Message, frozen=True, gc=True):
    """The request failed and left no trace."""

    error: VecraftError

    def __post_init__(self) -> None:
        """Let go of where the error was raised.

        Its frames lead to the batch that this answer becomes part of. Batches are invisible to the garbage collector,
        so together they would never be freed.
        """
        error: BaseException | None = self.error
        while error is not None and error.__traceback__ is not None:
            error.__traceback__ = None
            error = error.__cause__ or error.__context__


class RowsReply(Message, frozen=True):
    snapshot: int
    rows: Rows
    more: bool = False


class SearchReply(Message, frozen=True):
    """``explain``: one dict per reply: plan, estimates and actual counts, when asked for.

    With ``options.text`` the hits are the nearest by the vector, if there is one, then those that rank best by their
    texts, best first, ties by record id; ``statistics`` are those that the texts were ranked by.
    """

    snapshot: int
    hits: list[Hits]
    explain: dict[str, Any] | None = None
    statistics: TextStatistics | None = None


class CountReply(Message, frozen=True):
    snapshot: int
    count: int


class WordsReply(Message, frozen=True):
    snapshot: int
    statistics: TextStatistics


class CatalogReply(Message, frozen=True):
    snapshot: int
    collections: list[CollectionSchema]
    aliases: dict[str, str]


class DescribeReply(Message, frozen=True):
    """One shard's part of a collection; the router adds the parts up into ``CollectionInfo``."""

    snapshot: int
    schema: CollectionSchema
    collection_id: str
    count: int
    tail_rows: int
    indexed_rows: int
    dead_rows: int
    ef: int
    measured_recall: float | None
    bytes: int
    recall_interval: tuple[float, float] | None = None


class BarrierReply(Message, frozen=True):
    clock: int


class StatusReply(Message, frozen=True):
    """``figures``: metric name (without prefix) → value; ``collections``: name → rows alive; ``recalls``: name → recall
    at 10 at the depth in force, and its 95% confidence interval.
    """

    shard: int
    epoch: int
    lsn: int
    figures: dict[str, float]
    collections: dict[str, int]
    recalls: dict[str, tuple[float, float, float]] = {}


Response = (
    Committed
    | Prepared
    | Aborted
    | Finished
    | Done
    | Undecided
    | Refused
    | RowsReply
    | SearchReply
    | CountReply
    | WordsReply
    | CatalogReply
    | DescribeReply
    | BarrierReply
    | StatusReply
)


class Batch(Message, frozen=True):
    """What one call carries.

    ``clock``: the sender's; ``map_epoch``: of the map it was routed by (0: not checked); ``sent_ms``: when it left, by
    the sender's wall clock (0: it does not ask what the shard's says).
    """

    requests: list[Request]
    clock: int = 0
    map_epoch: int = 0
    sent_ms: int = 0


class BatchReply(Message, frozen=True):
    """``clock``: the shard's, which the receiver moves its own to.

    ``now_ms``: the shard's wall clock when it began; ``sent_ms``: as in the batch. So clocks can be compared.
    """

    responses: list[Response]
    clock: int = 0
    now_ms: int = 0
    sent_ms: int = 0
