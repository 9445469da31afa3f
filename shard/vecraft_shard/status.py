"""The figures of one shard, for ``/metrics``, ``cluster status`` and health probes."""

from __future__ import annotations

from vecraft_data_model.messages import StatusReply
from vecraft_shard.state import ShardState


def status_of(state: ShardState, now_ms: int, checkpoints: int, *, failed: bool) -> StatusReply:
    """Return what the shard can say of itself without touching the disk."""
    collections = list(state.collections.values())
    oldest = min((p.first_ms for p in list(state.prepared.values())), default=now_ms)
    names = {entry.collection_id: entry.schema.name for entry in state.catalog.current()}
    return StatusReply(
        state.shard_id,
        state.epoch,
        state.wal.next_lsn - 1,
        {
            "wal_bytes": state.wal.size_bytes,
            "wal_syncs_total": state.syncs,
            "wal_fsync_seconds_total": state.sync_seconds,
            "write_batches_total": state.batches,
            "write_requests_total": state.requests,
            "tail_rows": sum(c.tail_rows for c in collections),
            "index_rows": sum(c.indexed for c in collections),
            "dead_rows": sum(c.dead_rows for c in collections),
            "damaged_rows": sum(len(c.integrity.vectors.keys() | c.integrity.payloads.keys()) for c in collections),
            "prepared_transactions": len(state.prepared),
            "prepared_oldest_seconds": (now_ms - oldest) / 1000,
            "unacknowledged_transactions": len(state.unacknowledged),
            "conflicts_total": state.conflicts,
            "aborts_total": state.aborts,
            "recoveries_total": state.recoveries,
            "checkpoints_total": checkpoints,
            "checkpoint_age_seconds": max(0, now_ms - state.checkpoint_ms) / 1000 if state.checkpoint_ms else 0,
            "clock_ahead_seconds": max(0, (state.timeline.clock.last >> 16) - now_ms) / 1000,
            "read_only": int(state.room.full is not None),
            "failed": int(failed),
        },
        {names[c.collection_id]: c.versions.alive for c in collections if c.collection_id in names},
        {
            names[c.collection_id]: (c.depth.recall, *c.depth.recall_interval)
            for c in collections
            if c.collection_id in names and c.depth.recall is not None and c.depth.recall_interval is not None
        },
    )
