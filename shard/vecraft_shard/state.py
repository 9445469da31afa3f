"""What one shard knows, in one place, and the two ways in which it changes: a log record, and applying it.

Everything here is rebuilt by recovery from the last checkpoint and the log after it. Applying happens in log order,
after the fsync, with the latch held exclusively.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

from vecraft_data_model.errors import StorageFullError
from vecraft_data_model.hlc import physical_ms
from vecraft_data_model.messages import Rows
from vecraft_data_model.ports import Disk, Latch
from vecraft_data_model.validation import txn_created_ms
from vecraft_shard.admission import Admission
from vecraft_shard.catalog import Catalog, CollectionEntry
from vecraft_shard.collection import Collection
from vecraft_shard.config import ShardConfig
from vecraft_shard.locations import Locations, Outcome
from vecraft_shard.locks import Locks
from vecraft_shard.records import (
    RecordType,
    Resolved,
    ResolvedDelete,
    ResolvedPut,
    TransactionRecord,
    encode_timestamp,
)
from vecraft_shard.room import Room
from vecraft_shard.timeline import CATALOG, Timeline
from vecraft_shard.versions import NO_ROW
from vecraft_shard.wal import Wal

_HOLDS_MAX = 5
"""For how many ``resolve_after_ms`` routers can keep a prepared transaction open: a killed shard is back sooner."""


@dataclass(frozen=True, slots=True)
class PreparedTransaction:
    """A yes vote that is not decided yet.

    Attributes:
        since_ms: When it was prepared, or recovered, or last asked for again by a router that has not given it up.
        first_ms: When it was prepared, or recovered.
        count: Records it will write or delete.
        recovered: Whether the vote was given before a restart. Its decision was most likely made meanwhile, so the
            primary is asked at once: locks and readers wait for it.
    """

    record: TransactionRecord
    since_ms: int
    first_ms: int
    count: int
    preimages: Rows | None = None
    recovered: bool = False


@dataclass(slots=True)
class ShardState:
    """The state of one shard.

    Attributes:
        stopwatch: Seconds, for figures and for sizing slices; nothing is decided by it.
        outcomes: Decided since the last checkpoint; older ones are in ``locations``.
        checkpoint_ms: When that checkpoint was, by the wall clock.
        checkpoint_ceiling: The ceiling that it holds: it knows no id that was made later.
        recovered_ms: When this incarnation took over from the one before it; 0 for the first.
        retired: Collections, or generations of them, that the next checkpoint removes.
        shadows: Next generations being filled by a compaction.
        unacknowledged: Transactions that this shard, as their primary, still has to tell others about.
        half_applied: What came between writing something to the log and having applied it; None: nothing did.
    """

    shard_id: int
    epoch: int
    config: ShardConfig
    disk: Disk
    latch: Latch
    locations: Locations
    wal: Wal
    timeline: Timeline
    catalog: Catalog
    collections: dict[str, Collection]
    room: Room
    stopwatch: Callable[[], float]
    locks: Locks = field(default_factory=Locks)
    prepared: dict[str, PreparedTransaction] = field(default_factory=dict)
    outcomes: dict[str, Outcome] = field(default_factory=dict)
    unacknowledged: set[str] = field(default_factory=set)
    retired: list[Collection] = field(default_factory=list)
    shadows: list[Collection] = field(default_factory=list)
    checkpoint_ms: int = 0
    checkpoint_ceiling: int = 0
    recovered_ms: int = 0
    wrote_at_ms: int = 0
    next_ordinal: int = 1
    conflicts: int = 0
    aborts: int = 0
    batches: int = 0
    requests: int = 0
    syncs: int = 0
    sync_seconds: float = 0.0
    recoveries: int = 0
    half_applied: BaseException | None = None
    admission: Admission = field(init=False)
    _graph_latches: dict[str, Latch] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.admission = Admission(
            self.catalog, self.collections, self.locks, self.timeline, self.config.verify_writes
        )

    # --------------------------------------------------------------------------------------------- log

    def append(self, records: Sequence[tuple[int, Sequence[bytes | memoryview]]]) -> None:
        """Write records as one frame and make them durable (as far as ``durability`` asks).

        Raises:
            StorageFullError: The disk is full: nothing was written, and the log is as it was.
            StorageFailureException: The disk failed, and the log is broken.
        """
        self.wal.append(records)
        if self.config.durability == "fsync":
            started = self.stopwatch()
            self.wal.sync()
            self.sync_seconds += self.stopwatch() - started
            self.syncs += 1

    def append_lazily(self, record_type: RecordType, pieces: Sequence[bytes | memoryview]) -> None:
        """Write a small record that becomes durable with the next one; on a full disk in the ballast's room.

        Raises:
            StorageFailureException: As for :meth:`append`.
        """
        try:
            self.wal.append([(record_type, pieces)])
        except StorageFullError as error:
            self.room.turn_read_only(error)
            self.wal.append([(record_type, pieces)])

    def raise_ceiling(self, ceiling: int) -> None:
        """Make a ceiling of the clock durable, on a full disk, too.

        Raises:
            StorageFailureException: The disk failed, and the log is broken.
        """
        if self.room.full is None:
            try:
                self.append([(RecordType.CEILING, encode_timestamp(ceiling))])
            except StorageFullError as error:
                self.room.turn_read_only(error)
        if self.room.full is not None:
            self.room.write_ceiling(ceiling)
        self.timeline.ceiling = ceiling

    def raise_safe_point(self, safe_point: int) -> None:
        """Make a safe point durable.

        Raises:
            StorageFailureException: As for :meth:`append`.
        """
        record = [(RecordType.SAFE_POINT, encode_timestamp(safe_point))]
        try:
            self.append(record)
        except StorageFullError as error:
            self.room.turn_read_only(error)
            self.append(record)
        self.timeline.safe_point = safe_point

    # ------------------------------------------------------------------------------------------- applying

    def apply(self, mutations: Sequence[Resolved], ts: int) -> None:
        """Carry out a committed transaction."""
        for mutation in mutations:
            match mutation:
                case ResolvedPut():
                    self.collections[mutation.collection_id].put(mutation.ids, mutation.vectors, mutation.payloads, ts)
                case ResolvedDelete():
                    self.collections[mutation.collection_id].delete(mutation.ids, ts)
                case _:
                    entry = self.catalog.apply(mutation, ts)
                    if entry is not None:
                        self._take_up(entry)

    def _take_up(self, entry: CollectionEntry) -> None:
        existing = self.collections.get(entry.collection_id)
        if existing is not None:
            if existing.schema.target_recall != entry.schema.target_recall:
                existing.depth.retarget()
            existing.schema = entry.schema
            existing.depth.alter(entry.ef)
            return
        self.collections[entry.collection_id] = Collection.create(
            entry.collection_id, self.next_ordinal, entry.schema, self.disk, self.locations.connection
        )
        self.next_ordinal += 1

    def hold(self, prepared: PreparedTransaction) -> None:
        """Keep a prepared transaction and lock what it touches."""
        self.prepared[prepared.record.txn_id] = prepared
        self.locks.acquire(prepared.record, self.catalog)
        self.room.promise(prepared.record.mutations)

    def keep_holding(self, txn_id: str, now_ms: int) -> None:
        """Count the time after which a prepared transaction is taken for given up from now on, within limits."""
        prepared = self.prepared[txn_id]
        if now_ms - prepared.first_ms <= _HOLDS_MAX * self.config.resolve_after_ms:
            self.prepared[txn_id] = replace(prepared, since_ms=now_ms)

    def let_go(self, txn_id: str) -> None:
        """Drop a prepared transaction and its locks; nothing happens if there is none."""
        prepared = self.prepared.pop(txn_id, None)
        if prepared is not None:
            self.locks.release(prepared.record)
            self.room.promise(prepared.record.mutations, -1)

    def restore_prepared(self, record: TransactionRecord, now_ms: int) -> None:
        """Take up a prepared transaction found in the log or in a checkpoint."""
        self.hold(PreparedTransaction(record, now_ms, now_ms, self.count_of(record.mutations), recovered=True))
        self.timeline.restore(record.txn_id, record.ts, record.primary, footprint_of(record.mutations))

    def count_of(self, mutations: Sequence[Resolved]) -> int:
        """How many records mutations that are about to be applied write or delete, as when they were admitted."""
        count = 0
        for mutation in mutations:
            if isinstance(mutation, ResolvedPut):
                count += len(mutation.ids)
            elif isinstance(mutation, ResolvedDelete) and mutation.collection_id in self.collections:
                versions = self.collections[mutation.collection_id].versions
                count += sum(versions.alive_row(record_id) != NO_ROW for record_id in mutation.ids)
        return count

    # ------------------------------------------------------------------------------------------- graphs

    def graph_latch(self, collection_id: str) -> Latch:
        """What keeps searches of a collection and additions to its graph apart, so that others need not wait.

        Rows are appended where nobody reads. So whoever reads, and finds all rows in the graph, needs not enter it.
        """
        latch = self._graph_latches.get(collection_id)
        return latch or self._graph_latches.setdefault(collection_id, self.latch.another())

    def forget_collection(self, collection_id: str) -> None:
        """Let the next checkpoint remove a collection that was dropped."""
        self.retired.append(self.collections.pop(collection_id))
        self._graph_latches.pop(collection_id, None)

    # ------------------------------------------------------------------------------------------- outcomes

    def present_ms(self, now_ms: int) -> int:
        """When something is decided, as far as it matters for how long it is remembered: a clock that is set back must
        not make it seem older than the id, which is refused for its age by the same measure.
        """
        timeline = self.timeline
        latest = timeline.clock.last or timeline.ceiling  # during recovery the clock does not run yet
        return max(now_ms, physical_ms(latest))

    def outcome_of(self, txn_id: str) -> Outcome | None:
        """How a transaction ended here, or None if that was never decided (or is forgotten)."""
        outcome = self.outcomes.get(txn_id)
        if outcome is not None:
            return outcome
        created = txn_created_ms(txn_id)
        # An id made after the checkpoint cannot be in it; clocks may differ by the accepted skew. The wall clock does
        # not tell when that was: it may have been set back.
        latest_ms = physical_ms(self.checkpoint_ceiling) + 2 * self.config.max_clock_skew_ms
        if created is not None and created > latest_ms:
            return None
        return self.locations.outcome(txn_id)


def footprint_of(mutations: Sequence[Resolved]) -> frozenset[str]:
    """Ids of the collections that mutations write to, and CATALOG if they change the catalog."""
    return frozenset(m.collection_id if isinstance(m, ResolvedPut | ResolvedDelete) else CATALOG for m in mutations)
