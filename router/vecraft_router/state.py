"""The little that a router remembers: its clock, its cluster map, its settings. All of it may be lost at any moment.

Shared by the flows of one router and by the runner that carries their messages (which stamps every batch with the
clock and the map's epoch, and moves the clock to what comes back). Safe to use from several threads.
"""

from __future__ import annotations

import random

from vecraft_data_model.errors import ClockSkewError, InvalidDataException
from vecraft_data_model.hlc import HybridLogicalClock, timestamp
from vecraft_data_model.messages import BatchReply
from vecraft_data_model.placement import ClusterMap
from vecraft_data_model.ports import Clock
from vecraft_data_model.validation import new_txn_id
from vecraft_router.config import RouterConfig
from vecraft_router.skew import SkewWatch

TIMEOUT_S_MAX = 7 * 24 * 3600.0


class RouterState:
    """Clock, map, randomness and settings of one router.

    Args:
        cluster_map: Which shard owns which slot.
        clock: Physical and monotonic time.
        rng: Where jitter and generated ids come from. Give each router its own, seeded differently.
        config: Settings.
    """

    __slots__ = ("clock", "cluster_map", "config", "hlc", "rng", "skew")

    def __init__(self, cluster_map: ClusterMap, clock: Clock, rng: random.Random, config: RouterConfig) -> None:
        self.cluster_map = cluster_map
        self.clock = clock
        self.rng = rng
        self.config = config
        self.hlc = HybridLogicalClock(max_clock_skew_ms=config.max_clock_skew_ms)
        self.skew = SkewWatch(config.max_clock_skew_ms)

    def observe(self, ts: int) -> None:
        """Move the clock to at least ``ts``, a timestamp that an answer rests on.

        Raises:
            ClockSkewError: It is too far ahead of this node's physical clock; the clock stays.
        """
        if ts > self.hlc.last:
            self.hlc.observe(ts, self.clock.now_ms())

    def overhear(self, ts: int) -> bool:
        """Move the clock to the one a batch came with, unless that is too far ahead; return whether it moved.

        Nothing that is answered rests on this timestamp (what does goes through :meth:`observe`, which refuses), so
        a shard whose clock has run away does not make its answers wrong; it just must not drag this clock along.
        """
        if ts <= self.hlc.last:
            return False
        try:
            self.hlc.observe(ts, self.clock.now_ms())
        except ClockSkewError:
            return False
        return True

    def hear(self, shard: int, reply: BatchReply) -> None:
        """Take in what a shard's answer says of time: its clock, and how this node's wall clock compares to its own."""
        self.overhear(reply.clock)
        if reply.sent_ms:
            self.skew.note(shard, reply.sent_ms, reply.now_ms, self.clock.now_ms())

    def now(self) -> int:
        """Return the present as a timestamp: at or above everything seen."""
        return self.hlc.now(self.clock.now_ms())

    def past(self, staleness_ms: int) -> int:
        """Return the last timestamp of the moment ``staleness_ms`` ago."""
        return max(1, timestamp(max(0, self.clock.now_ms() - staleness_ms + 1)) - 1)

    def deadline(self, timeout: float | None = None) -> float:
        """Return the moment, in ``Clock.monotonic`` seconds, that lies ``timeout`` seconds (default: configured) ahead.

        Raises:
            InvalidDataException: ``timeout`` is not a number above 0 and at most a week.
        """
        if timeout is None:
            return self.clock.monotonic() + self.config.timeout_s
        if isinstance(timeout, bool) or not isinstance(timeout, int | float) or not 0 < timeout <= TIMEOUT_S_MAX:
            raise InvalidDataException(
                f"timeout must be a number of seconds above 0 and at most {TIMEOUT_S_MAX:.0f}, got {timeout!r}"
            )
        return self.clock.monotonic() + timeout

    def adopt(self, cluster_map: ClusterMap | None) -> bool:
        """Take over a map if it is newer than the one at hand; return whether it was."""
        if cluster_map is None or cluster_map.epoch <= self.cluster_map.epoch:
            return False
        self.cluster_map = cluster_map
        return True

    def backoff_s(self, attempt: int) -> float:
        """Return the pause before attempt number ``attempt`` (1 for the first retry): exponential, jittered by half."""
        config = self.config
        pause = min(config.retry_max_s, config.retry_first_s * 2.0 ** min(attempt - 1, 32))
        return pause * (0.5 + 0.5 * self.rng.random())

    def random_hex(self, bits: int) -> str:
        """Return a random number of that many bits (a multiple of 4) in hexadecimal."""
        return f"{self.rng.getrandbits(bits):0{bits // 4}x}"

    def new_txn_id(self) -> str:
        """Return a fresh transaction id: a UUIDv7, whose first 48 bits are its creation time in milliseconds."""
        return new_txn_id(self.clock.now_ms(), self.rng)
