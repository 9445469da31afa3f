"""Opening a shard: the last checkpoint, then the log after it.

1. Become the owner: the directory's lock, and an epoch higher than any before, made durable.
2. Open ``shard.sqlite``; take the store files to be as long as it says; load versions, postings and graphs.
3. Replay the log after the checkpoint's LSN, with the same code that applied it the first time.
4. Start the clock at the durable ceiling.
5. Take the ballast, and the room that was promised to prepared transactions; where there is none, begin read-only.

A disk that is full is no reason not to open: what replaying writes has its place already, and the little that is new
finds room in the ballast, which is given back for it.

Nothing of this is undone by a crash half-way, and nothing is done twice: doing it again gives the same state. That is
so because replaying only ever writes to the store files what stood there before, in the same places.
"""

from __future__ import annotations

from collections.abc import Callable

from vecraft_data_model.errors import CorruptionError, StorageFullError
from vecraft_data_model.hlc import HybridLogicalClock
from vecraft_data_model.ports import Disk, Latch
from vecraft_shard.ballast import Ballast
from vecraft_shard.collection import Collection
from vecraft_shard.config import ShardConfig
from vecraft_shard.locations import Locations, Outcome
from vecraft_shard.records import (
    RecordType,
    decode_decision,
    decode_timestamp,
    decode_transaction,
)
from vecraft_shard.room import Room
from vecraft_shard.state import ShardState
from vecraft_shard.timeline import Timeline
from vecraft_shard.wal import Wal, WalRecord

EPOCH_FILE = "EPOCH"
_EPOCH_DIGITS = 18
"""Log frames have 64 bits for it."""


def raise_epoch(disk: Disk) -> int:
    """Write an epoch one above the last one, durably, and return it.

    Raises:
        CorruptionError: The file does not hold a number.
    """
    file = disk.open(EPOCH_FILE)
    text = file.pread(64, 0).strip()
    file.close()
    if text and (not text.isdigit() or len(text) > _EPOCH_DIGITS):
        raise CorruptionError(
            f"{EPOCH_FILE} at 0: holds {text[:32]!r} instead of a number; write one that is above all earlier epochs",
            file=EPOCH_FILE,
            offset=0,
        )
    epoch = int(text or b"0") + 1
    fresh = disk.open(f"{EPOCH_FILE}.new")
    fresh.truncate(0)
    fresh.pwrite(b"%d\n" % epoch, 0)
    fresh.sync()
    fresh.close()
    disk.rename(f"{EPOCH_FILE}.new", EPOCH_FILE)
    return epoch


def recover(
    disk: Disk,
    shard_id: int,
    now_ms: int,
    config: ShardConfig,
    latch: Latch,
    stopwatch: Callable[[], float],
    salt: int,
) -> ShardState:
    """Return the state of a shard as its last owner left it, or a new one.

    Raises:
        CorruptionError: A file does not say what was written, beyond what a crash explains.
        StorageFullError: There is no room even with the ballast given back.
        StorageFailureException: The disk failed, or another owner holds the directory.
    """
    ballast = Ballast(disk, config.ballast_bytes) if disk.durable else None
    room = Room(shard_id, ballast, config.ballast_bytes)
    try:
        try:
            state = _recover(disk, shard_id, now_ms, config, latch, stopwatch, salt, room)
        except StorageFullError as error:
            room.turn_read_only(error)
            state = _recover(disk, shard_id, now_ms, config, latch, stopwatch, salt, room)
        try:
            room.reserve_promised(state.collections)
        except StorageFullError as error:
            room.turn_read_only(error)
        room.begin()
    except BaseException:
        room.close()
        raise
    return state


def _recover(
    disk: Disk,
    shard_id: int,
    now_ms: int,
    config: ShardConfig,
    latch: Latch,
    stopwatch: Callable[[], float],
    salt: int,
    room: Room,
) -> ShardState:
    room.forget_promises()
    epoch = raise_epoch(disk)
    locations = Locations(disk.path("shard.sqlite") if disk.durable else None)
    collections: dict[str, Collection] = {}
    try:
        after_lsn = locations.meta("checkpoint_lsn", 0)
        wal = Wal.open(disk, epoch=epoch, after_lsn=after_lsn, salt=salt)
        clock = HybridLogicalClock(0, config.max_clock_skew_ms)
        timeline = Timeline(
            clock,
            ceiling=max(locations.meta("ceiling", 0), room.ceiling),
            safe_point=locations.meta("safe_point", 0),
            ceiling_ms=config.ceiling_ms,
        )
        catalog = locations.load_catalog()
        latest = {entry.collection_id: entry for entry in catalog.collections}
        for stored in locations.load_collections():
            entry = latest[stored.collection_id]
            collections[stored.collection_id] = Collection.open(stored, entry.schema, disk, locations)
            collections[stored.collection_id].depth.altered = entry.ef
        state = ShardState(
            shard_id, epoch, config, disk, latch, locations, wal, timeline, catalog, collections, room, stopwatch
        )
        state.next_ordinal = locations.meta("next_ordinal", 1)
        state.checkpoint_ms = locations.meta("checkpoint_ms", 0)
        state.checkpoint_ceiling = locations.meta("ceiling", 0)
        state.recoveries = epoch - 1
        state.recovered_ms = now_ms if state.recoveries else 0
        state.unacknowledged.update(locations.unacknowledged())
        for record in locations.load_prepared():
            state.restore_prepared(decode_transaction(record), now_ms)
        for record_ in wal.replay():
            _replay(state, record_, now_ms)
    except BaseException:
        for collection in collections.values():
            collection.close(keep_room=True)
        locations.close()
        raise
    # Above everything this shard ever issued or served; a jump ahead of the wall clock is bounded by `ceiling_ms`.
    timeline.clock = HybridLogicalClock(max(timeline.ceiling, clock.last), config.max_clock_skew_ms)
    return state


def _replay(state: ShardState, record: WalRecord, now_ms: int) -> None:
    match record.type:
        case RecordType.CEILING:
            state.timeline.ceiling = max(state.timeline.ceiling, decode_timestamp(record.payload))
        case RecordType.SAFE_POINT:
            state.timeline.safe_point = max(state.timeline.safe_point, decode_timestamp(record.payload))
        case RecordType.COMMIT_ONE:
            txn = decode_transaction(record.payload)
            count = state.count_of(txn.mutations)
            state.apply(txn.mutations, txn.ts)
            state.outcomes[txn.txn_id] = Outcome(txn.ts, txn.content_hash, count, state.present_ms(now_ms))
        case RecordType.PREPARE:
            state.restore_prepared(decode_transaction(record.payload), now_ms)
        case RecordType.COMMIT | RecordType.ABORT:
            _replay_decision(state, record, now_ms)
        case RecordType.ACKNOWLEDGED:
            decision = decode_decision(record.payload)
            known = state.outcome_of(decision.txn_id)
            if known is not None:
                state.outcomes[decision.txn_id] = Outcome(known.ts, known.content_hash, known.count, known.decided_ms)
            state.unacknowledged.discard(decision.txn_id)
        case unknown:
            raise CorruptionError(f"log record {record.lsn} has the unknown type {unknown}", lsn=record.lsn)


def _replay_decision(state: ShardState, record: WalRecord, now_ms: int) -> None:
    decision = decode_decision(record.payload)
    prepared = state.prepared.get(decision.txn_id)
    count = 0
    if decision.ts:
        if prepared is None:
            raise CorruptionError(
                f"log record {record.lsn} commits transaction {decision.txn_id}, which was never prepared",
                lsn=record.lsn,
            )
        state.apply(prepared.record.mutations, decision.ts)
        count = prepared.count
    state.let_go(decision.txn_id)
    state.timeline.settle(decision.txn_id)
    state.outcomes[decision.txn_id] = Outcome(
        decision.ts, decision.content_hash, count, state.present_ms(now_ms), frozenset(decision.others)
    )
    if decision.others:
        state.unacknowledged.add(decision.txn_id)


