"""Hybrid logical clocks: one unsigned 64-bit integer that orders events and stays near physical time.

Kulkarni, Demirbas, Madappa, Avva, Leone: "Logical Physical Clocks" (OPODIS 2014). Layout::

    63            16 15        0
    ┌───────────────┬───────────┐
    │ milliseconds  │  counter  │     milliseconds since the Unix epoch
    └───────────────┴───────────┘

A clock here never reads the time by itself: physical milliseconds are handed in, so that a simulator can.
Timestamps stay below 2**63, so they fit SQLite's and numpy's signed 64-bit integers.
"""

from __future__ import annotations

import threading
from datetime import UTC, datetime

import numpy as np

from vecraft_data_model.errors import ClockSkewError, InvalidDataException

COUNTER_BITS = 16
INFINITY_TS = 2**63 - 1
DEFAULT_MAX_CLOCK_SKEW_MS = 500


def timestamp(physical_ms: int, counter: int = 0) -> int:
    """Return the timestamp of a moment: ``physical_ms`` since the epoch and a counter below 65536."""
    return (physical_ms << COUNTER_BITS) | counter


def physical_ms(ts: int) -> int:
    """Return the physical part of a timestamp, in milliseconds since the epoch."""
    return ts >> COUNTER_BITS


def timestamp_of(moment: datetime | int) -> int:
    """Return the last timestamp of a moment (an aware datetime, a naive one taken as local time), or ``moment`` itself.

    A datetime before the first timestamp is 0, one after the last is the last.

    Raises:
        InvalidDataException: ``moment`` is neither a datetime nor a timestamp in ``[0, 2**63)``.
    """
    if isinstance(moment, datetime):
        return min(max(0, timestamp(int(moment.timestamp() * 1000), 2**COUNTER_BITS - 1)), INFINITY_TS)
    if isinstance(moment, bool) or not isinstance(moment, int | np.integer) or not 0 <= moment <= INFINITY_TS:
        raise InvalidDataException(f"a timestamp must be a datetime or an integer from 0 to 2**63-1, got {moment!r}")
    return int(moment)


def datetime_of(ts: int) -> datetime:
    """Return the physical part of a timestamp as an aware UTC datetime."""
    return datetime.fromtimestamp(physical_ms(ts) / 1000, UTC)


class HybridLogicalClock:
    """A clock that only moves forward. Safe to use from several threads.

    Args:
        last: The timestamp to start above (for a restarted shard, its durable ceiling).
        max_clock_skew_ms: How far ahead of physical time a received timestamp may be.

    Attributes:
        last: The highest timestamp issued or observed; to be read only. Every read looks at it several times, so it is
            no property.
    """

    __slots__ = ("_lock", "last", "max_clock_skew_ms")

    def __init__(self, last: int = 0, max_clock_skew_ms: int = DEFAULT_MAX_CLOCK_SKEW_MS) -> None:
        self.last = last
        self._lock = threading.Lock()
        self.max_clock_skew_ms = max_clock_skew_ms

    def tick(self, now_ms: int) -> int:
        """Issue a timestamp above all issued and observed before."""
        with self._lock:
            self.last = max(self.last + 1, now_ms << COUNTER_BITS)
            return self.last

    def now(self, now_ms: int) -> int:
        """Return the current time, which may equal an issued timestamp; what is issued later is above it."""
        present, last = now_ms << COUNTER_BITS, self.last
        if last >= present:  # it never moves back, so this needs no lock
            return last
        with self._lock:
            self.last = max(self.last, present)
            return self.last

    def observe(self, received: int, now_ms: int) -> int:
        """Move the clock to at least ``received``.

        Raises:
            ClockSkewError: ``received`` is too far ahead; the clock is left as it was.
        """
        if received > self.last:
            ahead_ms = (received >> COUNTER_BITS) - now_ms
            if ahead_ms > self.max_clock_skew_ms:
                raise ClockSkewError(
                    f"timestamp {received} is {ahead_ms} ms ahead of this node's clock; "
                    f"at most {self.max_clock_skew_ms} ms is accepted",
                    received=received,
                    ahead_ms=ahead_ms,
                )
            with self._lock:
                self.last = max(self.last, received)
        return self.last
