"""Settings of one shard."""

from __future__ import annotations

from dataclasses import dataclass

from vecraft_data_model.errors import InvalidDataException

DURABILITY_LEVELS = ("fsync", "os")


@dataclass(frozen=True, slots=True)
class ShardConfig:
    """Settings of one shard; the defaults are meant to be left alone.

    Attributes:
        durability: ``fsync``: an answered write survives a power cut. ``os``: it survives the process, not the machine.
        checkpoint_wal_bytes: A checkpoint begins when the log has grown by this much.
        checkpoint_interval_s: … or when there was a write, or a graph grew by a fifth, and the last one is this old.
        history_retention_s: How long replaced and deleted versions stay readable by ``as_of``.
        txn_retention_s: How long outcomes are kept, so that a retry with the same id is answered and not repeated.
        resolve_after_ms: How long a prepared transaction waits before its participant asks the primary.
        max_clock_skew_ms: How far ahead of this node's clock a received timestamp may be.
        ceiling_ms: How far the durable clock ceiling runs ahead; below ``max_clock_skew_ms``.
        ef_runtime: HNSW search depth of a collection that has no measured depth and no override.
        search_threads: Threads that the queries of one large request are spread over.
        index_min_rows: A collection with fewer rows is scanned and gets no graph: that is faster, and a graph's locks
            alone take 2.6 MB.
        index_slice_ms: Aim for the time that the background indexer keeps those waiting who search the collection that
            it indexes; less of it while searches come in.
        compact_dead_ratio: Share of dead rows at which a collection is rewritten.
        ballast_bytes: Room kept for the time when the disk is full.
        verify_writes: Check record checksums on arrival (off where client and shard share a process).
        verify_queries: Check that numbers of queries are finite and in range, likewise.
        must_exist: Refuse an empty directory instead of beginning a new shard in it.
        map_epoch: The cluster map this shard was started under; 0 accepts any.
    """

    durability: str = "fsync"
    checkpoint_wal_bytes: int = 64 << 20
    checkpoint_interval_s: float = 60.0
    history_retention_s: float = 600.0
    txn_retention_s: float = 3600.0
    resolve_after_ms: int = 1000
    max_clock_skew_ms: int = 500
    ceiling_ms: int = 400
    ef_runtime: int = 64
    search_threads: int = 1
    index_min_rows: int = 1000
    index_slice_ms: float = 5.0
    compact_dead_ratio: float = 0.25
    compact_min_rows: int = 1000
    ballast_bytes: int = 4 << 20
    verify_writes: bool = False
    verify_queries: bool = True
    must_exist: bool = False
    map_epoch: int = 0

    def __post_init__(self) -> None:
        if self.durability not in DURABILITY_LEVELS:
            raise InvalidDataException(f"durability must be one of {DURABILITY_LEVELS}, got {self.durability!r}")
        if not 0 < self.ceiling_ms < self.max_clock_skew_ms:
            raise InvalidDataException(
                f"ceiling_ms must lie between 0 and max_clock_skew_ms ({self.max_clock_skew_ms}), got {self.ceiling_ms}"
            )
        positive = (
            "checkpoint_wal_bytes",
            "checkpoint_interval_s",
            "resolve_after_ms",
            "ef_runtime",
            "search_threads",
            "index_slice_ms",
            "ballast_bytes",
        )
        for name in positive:
            if getattr(self, name) <= 0:
                raise InvalidDataException(f"{name} must be above 0, got {getattr(self, name)!r}")
        for name in ("history_retention_s", "txn_retention_s"):
            if getattr(self, name) < 0:
                raise InvalidDataException(f"{name} must not be below 0, got {getattr(self, name)!r}")
