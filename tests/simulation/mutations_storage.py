"""Planted bugs in what is durable and what is visible; the others stand in ``mutations``."""

from __future__ import annotations

from typing import Any

import numpy as np

import vecraft_router.asking
import vecraft_router.attempt
import vecraft_router.merging
import vecraft_router.reads
from tests.simulation.mutations import Patch, mutant, nothing
from vecraft_data_model.errors import VecraftError
from vecraft_data_model.hlc import timestamp
from vecraft_data_model.messages import (
    Hits,
)
from vecraft_shard.checkpoint import Checkpointer
from vecraft_shard.locations import Locations
from vecraft_shard.reads import CollectionView
from vecraft_shard.state import ShardState
from vecraft_shard.store import PayloadLog, VectorColumn
from vecraft_shard.timeline import Timeline
from vecraft_shard.versions import VersionTable
from vecraft_shard.wal import Wal
from vecraft_shard.wal_replay import LogReader

# ----------------------------------------------------------------------------------------------------- durability


@mutant("nothing is answered before it is durable")
def answered_before_fsync() -> list[Patch]:
    return [(ShardState, "append", lambda self, records: self.wal.append(records))]


@mutant("what recovery has read is durable before it is served")
def replayed_but_not_synced() -> list[Patch]:
    return [(LogReader, "repair", nothing)]


@mutant("a prepared transaction survives a restart")
def prepared_lost_at_restart() -> list[Patch]:
    return [(ShardState, "restore_prepared", nothing)]


@mutant("a checkpoint holds the undecided transactions")
def prepared_lost_at_checkpoint() -> list[Patch]:
    return [(Locations, "save_prepared", nothing)]


@mutant("a checkpoint holds the outcomes")
def outcomes_lost_at_checkpoint() -> list[Patch]:
    return [(Locations, "save_outcomes", nothing)]


@mutant("store files are durable before the checkpoint that refers to them")
def checkpoint_before_files() -> list[Patch]:
    return [(VectorColumn, "sync", nothing), (PayloadLog, "sync", nothing)]


@mutant("a checkpoint writes the ends of older rows again")
def ends_lost_at_checkpoint() -> list[Patch]:
    return [(VersionTable, "take_ended", lambda self: {})]


@mutant("the log is trimmed after the checkpoint that covers it", focus="relapses")
def trimmed_before_checkpoint() -> list[Patch]:
    original = Checkpointer._commit

    def commit(self: Checkpointer, cut: Any, now_ms: int) -> None:
        self._state.wal.trim(cut.lsn)
        original(self, cut, now_ms)

    return [(Checkpointer, "_commit", commit)]


@mutant("a log that failed to sync is not written to again")
def failed_sync_forgotten() -> list[Patch]:
    original = Wal.sync

    def sync(self: Wal) -> None:
        try:
            original(self)
        except VecraftError:
            self._failure = None

    return [(Wal, "sync", sync)]


# ----------------------------------------------------------------------------------------------------- visibility


@mutant("a snapshot sees what was committed at it")
def visible_only_above() -> list[Patch]:
    def row_at(self: VersionTable, record_id: str, snapshot: int) -> int:
        row = self.newest.get(record_id, -1)
        while row != -1 and self.begin[row] >= snapshot:
            row = int(self.previous[row])
        return row if row != -1 and snapshot < self.end[row] else -1

    return [(VersionTable, "row_at", row_at)]


@mutant("a snapshot does not see what was ended at it")
def ended_still_visible() -> list[Patch]:
    return [(VersionTable, "visible", lambda self, s, n: (self.begin[:n] <= s) & (self.end[:n] >= s))]


@mutant("a search masks dead rows unless there are none")
def dead_rows_found() -> list[Patch]:
    original = CollectionView.__init__

    def init(self: CollectionView, *arguments: Any) -> None:
        original(self, *arguments)
        self.all_visible = True

    return [(CollectionView, "__init__", init)]


@mutant("history is kept as long as it can be read")
def safe_point_runs_ahead() -> list[Patch]:
    return [
        (Timeline, "next_safe_point", lambda self, now_ms, retention_ms: timestamp(now_ms)),
        (Timeline, "check_readable", nothing),
    ]


@mutant("reads below the safe point are refused", focus="history")
def safe_point_not_checked() -> list[Patch]:
    return [(Timeline, "check_readable", nothing)]


@mutant("compaction takes over the ends of rows that were replaced meanwhile")
def ends_lost_by_compaction() -> list[Patch]:
    def refresh(self: VersionTable, end: Any) -> None:
        self.alive = int(np.count_nonzero(end))

    return [(VersionTable, "refresh_ends", refresh)]


@mutant("answers of shards merge by distance, ties by id")
def merged_in_shard_order() -> list[Patch]:
    def merge(parts: list[Hits], k: int) -> Hits:
        joined = Hits(
            [record_id for part in parts for record_id in part.ids],
            [distance for part in parts for distance in part.distances],
            [payload for part in parts for payload in part.payloads or []],
        )
        order = sorted(range(len(joined.ids)), key=lambda row: joined.distances[row])
        return vecraft_router.merging.take_hits(joined, order[:k])

    return [(vecraft_router.reads, "merge_hits", merge)]
