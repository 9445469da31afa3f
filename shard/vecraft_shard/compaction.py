"""Giving back the space of versions that no snapshot can see any more.

A collection with too many dead rows is rewritten as its next *generation*, beside the present one, which goes on
serving reads and writes: rows are copied in slices, then the graph is built in slices. At the end, for a moment and
with everybody kept out, what was written meanwhile is copied too and the new generation takes over; the next checkpoint
makes that durable and removes the old files. A crash before that finds the old generation whole, and the log replays
onto it.

The safe point is made durable first. Whoever reads below it is refused from then on, so nobody can miss what is left
out.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from vecraft_data_model.errors import ChecksumValidationFailureError
from vecraft_data_model.hlc import INFINITY_TS
from vecraft_shard.collection import Collection
from vecraft_shard.state import ShardState
from vecraft_shard.versions import Int64Array

_COPY_ROWS = 256


def raise_safe_point(state: ShardState, now_ms: int) -> int:
    """Move the safe point as far as pins and retention allow, durably. Returns it."""
    safe_point = state.timeline.next_safe_point(now_ms, int(state.config.history_retention_s * 1000))
    if safe_point > state.timeline.safe_point:
        with state.latch.writer():
            state.raise_safe_point(safe_point)
    return safe_point


def worth_compacting(state: ShardState, collection: Collection, now_ms: int) -> bool:
    """Whether enough rows of a collection could be given back."""
    dead = collection.dead_rows
    config = state.config
    if collection.uncompactable or dead < config.compact_min_rows:
        return False
    if dead < config.compact_dead_ratio * collection.versions.rows:
        return False
    safe_point = state.timeline.next_safe_point(now_ms, int(config.history_retention_s * 1000))
    reclaimable = np.count_nonzero(collection.versions.reclaimable(safe_point, collection.versions.rows))
    return bool(reclaimable >= max(config.compact_min_rows, config.compact_dead_ratio * collection.versions.rows))


def forget_dropped(state: ShardState, now_ms: int) -> int:
    """Retire collections that were dropped before the safe point. Returns how many."""
    candidates = [e for e in state.catalog.collections if e.end_ts != INFINITY_TS]
    if not candidates:
        return 0
    reach = state.timeline.next_safe_point(now_ms, int(state.config.history_retention_s * 1000))
    if not any(entry.end_ts <= reach for entry in candidates):
        return 0
    safe_point = raise_safe_point(state, now_ms)
    with state.latch.writer(), state.latch.exclusive():
        gone = state.catalog.forget(safe_point)
        for collection_id in gone:
            state.forget_collection(collection_id)
    return len(gone)


def compact(state: ShardState, collection: Collection, now_ms: int) -> Iterator[None]:
    """Rewrite a collection as its next generation, a slice at a time: advance the iterator when there is time.

    Raises:
        ChecksumValidationFailureError: A record is damaged: the collection stays as it is, so that nothing is derived
            from damage. Replaced or deleted, the record no longer stands in the way once its history is reclaimable.
        StorageFullError: There is no room for the next generation; what was written of it is removed.
        StorageFailureException: The disk failed.
    """
    safe_point = raise_safe_point(state, now_ms)
    state.room.check()
    with state.latch.writer():
        copied = collection.versions.rows
        kept = np.flatnonzero(~collection.versions.reclaimable(safe_point, copied))
        ordinal, state.next_ordinal = state.next_ordinal, state.next_ordinal + 1
    target = Collection.create(
        collection.collection_id,
        ordinal,
        collection.schema,
        state.disk,
        state.locations.connection,
        generation=collection.generation + 1,
    )
    state.shadows.append(target)
    try:
        yield from _fill(state, collection, target, kept, copied)
    except GeneratorExit:
        # The shard was given up, perhaps long ago: files of these names may be another owner's by now, and in use. What
        # is left of this generation is in nobody's way.
        raise
    except BaseException as error:
        collection.uncompactable = isinstance(error, ChecksumValidationFailureError)
        if target in state.shadows:
            state.shadows.remove(target)
        target.close()
        for name in target.files:
            state.disk.remove(f"{target.folder}/{name}")
        raise


def _fill(
    state: ShardState, collection: Collection, target: Collection, kept: Int64Array, copied: int
) -> Iterator[None]:
    """Copy the rows ``kept`` and those from ``copied`` on, build the graph, and let ``target`` take over."""
    for first in range(0, len(kept), _COPY_ROWS):
        _copy(collection, target, kept[first : first + _COPY_ROWS])
        yield
    while collection.indexed and target.index_slice(state.config.index_slice_ms, state.stopwatch):
        yield
    with state.latch.writer(), state.latch.exclusive():
        state.shadows.remove(target)
        if state.collections.get(collection.collection_id) is not collection:
            state.retired.append(target)  # dropped meanwhile
            return
        late = np.arange(copied, collection.versions.rows)
        for first in range(0, len(late), _COPY_ROWS):
            _copy(collection, target, late[first : first + _COPY_ROWS])
        target.reserve(*state.room.promised(collection.collection_id))
        target.versions.refresh_ends(collection.versions.end[np.concatenate([kept, late])])
        target.depth = collection.depth
        target.depth.changes += target.versions.changes - collection.versions.changes  # it counts from anew
        state.collections[collection.collection_id] = target
        state.retired.append(collection)


def _copy(source: Collection, target: Collection, rows: Int64Array) -> None:
    versions = source.versions
    numbers = rows.tolist()
    vectors = source.vectors_of(numbers)
    # Verified, because the indexes of the next generation are made from it.
    payloads = source.payloads_of(numbers)
    target.adopt([versions.ids[row] for row in numbers], vectors, payloads, versions.begin[rows])
