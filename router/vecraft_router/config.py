"""Settings of a router. All times are in the unit that the name ends in."""

from __future__ import annotations

import msgspec

from vecraft_data_model.errors import InvalidDataException
from vecraft_data_model.hlc import DEFAULT_MAX_CLOCK_SKEW_MS

_MAY_BE_ZERO = frozenset({"abort_reserve_s", "eventual_staleness_ms", "lock_wait_s", "max_clock_skew_ms"})


class RouterConfig(msgspec.Struct, frozen=True, kw_only=True):
    """How patient a router is, and how much it takes on.

    Attributes:
        timeout_s: Deadline of a call that names none.
        max_clock_skew_ms: How far ahead of this node's clock a received timestamp may be.
        retry_first_s: First pause before something is tried again; doubles up to ``retry_max_s``, jittered by half.
        retry_max_s: Longest such pause.
        resolve_after_ms: How old an undecided transaction must be before a reader asks its primary to decide it.
        abort_reserve_s: What is kept of a write's time to make an abort durable, so that its outcome can be told.
        lock_wait_s: About how long a write over several shards waits for locks, holding its own, if its id was chosen
            by the caller, if it is a deletion by filter, or if it has met locks for that long. Any other is aborted at
            once and tried again under a new id.
        eventual_staleness_ms: How far in the past ``eventual`` reads over several shards are: longer than decisions
            usually take, so that they never wait.
        scan_rows_max: Most rows that one scan request asks of one shard.
        reads_in_flight: Calls under way in one shard's lane of quick reads before further requests queue up. One is
            best: a second costs half as much CPU again per search, because batches are smaller.
        scans_in_flight: The same for its lane of reads that may take long.
        writes_in_flight: The same for its lane of writes.
        max_queued: Requests that may wait in one lane; more are refused with ``OverloadedError``.
        max_batch_requests: Most requests that leave as one call.
        max_batch_bytes: About the most vector bytes that leave as one call (one larger request leaves alone).
        max_call_s: Longest that one call of the read and write lanes may take before its lane moves on.
        background_s: How long what was spawned may go on trying (the others of a commit are told).
        threads: Threads over which the sync runner asks several shards at once.
    """

    timeout_s: float = 10.0
    max_clock_skew_ms: int = DEFAULT_MAX_CLOCK_SKEW_MS
    retry_first_s: float = 0.001
    retry_max_s: float = 0.25
    resolve_after_ms: int = 1000
    abort_reserve_s: float = 0.5
    lock_wait_s: float = 0.5
    eventual_staleness_ms: int = 1500
    scan_rows_max: int = 10_000
    reads_in_flight: int = 1
    scans_in_flight: int = 4
    writes_in_flight: int = 2
    max_queued: int = 4096
    max_batch_requests: int = 256
    max_batch_bytes: int = 32 << 20
    max_call_s: float = 30.0
    background_s: float = 5.0
    threads: int = 16

    def __post_init__(self) -> None:
        """Check every figure.

        Raises:
            InvalidDataException: One is not a positive number; some may be 0.
        """
        for name in self.__struct_fields__:
            value = getattr(self, name)
            number = isinstance(value, int | float) and not isinstance(value, bool)
            if not number or value < 0 or (value == 0 and name not in _MAY_BE_ZERO):
                raise InvalidDataException(f"router setting {name} must be a positive number, got {value!r}")
