"""How far this node's wall clock is off, as far as the answers of shards prove it.

A shard reads its wall clock between a request's departure and its answer's arrival. So if the reading lies before the
departure, this node's clock is ahead by at least that much, and if it lies after the arrival, it is behind; in between
nothing is proved. Slow networks therefore never make a clock look wrong.

One shard could be the one that is off. The clock of this node counts as off when more than half of the shards that it
has heard of say so, and by as much as the median of them says.
"""

from __future__ import annotations

import threading

TOLERATED = 0.8
"""Part of the accepted skew beyond which a node refuses to write."""


class SkewWatch:
    """What shards' answers say of this node's clock. Safe to use from several threads.

    Args:
        max_clock_skew_ms: How far clocks may differ.

    Attributes:
        off_ms: By how much this node's clock is ahead (above 0) or behind (below 0), at the least.
    """

    __slots__ = ("_limit_ms", "_lock", "_offsets", "off_ms")

    def __init__(self, max_clock_skew_ms: int) -> None:
        self._limit_ms = TOLERATED * max_clock_skew_ms
        self._lock = threading.Lock()
        self._offsets: dict[int, int] = {}
        self.off_ms = 0

    def note(self, shard: int, sent_ms: int, shard_ms: int, received_ms: int) -> None:
        """Take in when, by this node's clock, a request left and its answer came, and the shard's clock in between."""
        offset = sent_ms - shard_ms if shard_ms < sent_ms else min(0, received_ms - shard_ms)
        if self._offsets.get(shard) == offset:
            return  # nearly always: nothing is proved, as before
        with self._lock:
            self._offsets[shard] = offset
            offsets = sorted(self._offsets.values())
            low, high = offsets[(len(offsets) - 1) // 2], offsets[len(offsets) // 2]
            self.off_ms = low if low > 0 else min(high, 0)

    @property
    def is_off(self) -> bool:
        """Whether this node's clock is too far off to write."""
        return abs(self.off_ms) > self._limit_ms
