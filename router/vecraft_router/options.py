"""What a caller may say about a read: how fresh, as of when, until when."""

from __future__ import annotations

from datetime import datetime

import msgspec

from vecraft_data_model.errors import InvalidDataException

CONSISTENCY_LEVELS = ("session", "strong", "eventual")
MAX_STALENESS_MS_LIMIT = 7 * 24 * 3600 * 1000


class Bounded(msgspec.Struct, frozen=True):
    """Consistency level: what is read may be up to ``max_staleness_ms`` milliseconds old."""

    max_staleness_ms: int

    def __post_init__(self) -> None:
        """Check the bound.

        Raises:
            InvalidDataException: It is not an integer from 0 to a week.
        """
        bound = self.max_staleness_ms
        if isinstance(bound, bool) or not isinstance(bound, int) or not 0 <= bound <= MAX_STALENESS_MS_LIMIT:
            raise InvalidDataException(
                f"max_staleness_ms must be an integer from 0 to {MAX_STALENESS_MS_LIMIT}, got {bound!r}"
            )


Consistency = str | Bounded
"""``"session"``, ``"strong"``, ``"eventual"`` or ``Bounded(ms)``."""


class ReadOptions(msgspec.Struct, frozen=True):
    """How a read is to be done.

    Attributes:
        consistency: See PROTOCOL: ``session`` (the default) reads one's own writes, ``strong`` everybody's
            acknowledged ones, ``Bounded(ms)`` and ``eventual`` trade freshness for never waiting.
        as_of: A timestamp or a datetime to read at; overrides ``consistency``.
        min_ts: The highest timestamp that the client has seen (its session token); 0 for none.
        deadline: Seconds of ``Clock.monotonic``; None: the router's default timeout from now.
        partial: Only for searches: answer without the shards that cannot be reached, naming them.
    """

    consistency: Consistency = "session"
    as_of: int | datetime | None = None
    min_ts: int = 0
    deadline: float | None = None
    partial: bool = False

    def __post_init__(self) -> None:
        """Check the level.

        Raises:
            InvalidDataException: ``consistency`` is not one of the levels.
        """
        if self.consistency not in CONSISTENCY_LEVELS and not isinstance(self.consistency, Bounded):
            raise InvalidDataException(
                f"consistency must be one of {', '.join(CONSISTENCY_LEVELS)} or Bounded(max_staleness_ms), "
                f"got {self.consistency!r}"
            )


DEFAULT_OPTIONS = ReadOptions()
