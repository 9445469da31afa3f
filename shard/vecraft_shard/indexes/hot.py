"""What searches learn about filters that are used again and again.

For each recent filter: how often walking the graph found too few matching rows, how much farther than by chance it had
to go for those it found, what it cost to answer once more where it found too few, the mask for walks restricted to
them, and, if scanning them is worth it and the budget allows, a copy of the matching rows' vectors in one place, which
makes the scan several times faster. Rows never change, so a copy stays right; when later rows match as well, it grows.
Searches without a filter count as those with one more.

Nothing here changes an answer. One object belongs to one collection's rows: renumbering them starts a new one.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Hashable
from typing import Final

import numpy as np
import numpy.typing as npt

from vecraft_shard.indexes.rowset import RowSet
from vecraft_shard.indexes.tail import VectorSource, take
from vecraft_shard.indexes.walk_mask import WalkMask

Float32Array = npt.NDArray[np.float32]
Int64Array = npt.NDArray[np.int64]

_REMEMBERED: Final = 128
_USES_BEFORE_COPY: Final = 2
_SHORT_TO_KNOW: Final = 4
_SPARE_ROOM: Final = 4
_BUDGET_BYTES_MIN: Final = 4 << 20
_BUDGET_SHARE: Final = 8
"""Copies and masks take at most this part of the bytes of all vectors."""


class HotFilter:
    """One filter's record. Its counters are estimates, so threads change them without a lock."""

    __slots__ = ("copy", "gaps", "lock", "mask", "repaired", "repairs", "searched", "short", "uses")

    def __init__(self) -> None:
        self.uses = 0
        self.searched = 0
        self.short = 0
        self.gaps = 0.0
        self.repaired = 0
        self.repairs = 0.0
        self.mask: WalkMask | None = None
        self.copy: tuple[Int64Array, Float32Array] | None = None
        """Rows, ascending, and an array that begins with their vectors, (at least n, dim)."""
        self.lock = threading.Lock()
        """Held while a copy is made or grows."""

    @property
    def nbytes(self) -> int:
        """Bytes of the copy and the mask."""
        copy, mask = self.copy, self.mask  # looked at once: a search of another thread may drop them any time
        return (0 if copy is None else copy[1].nbytes) + (0 if mask is None else len(mask.allowed))

    def shortfall(self, prior: float) -> float:
        """Expected share of queries that find too few rows on the graph; ``prior`` weighs as much as 8 queries."""
        return (self.short + 8 * prior) / (self.searched + 8)

    def gap(self) -> float | None:
        """How many candidates more than by chance those met, on average, that found too few; None: hardly known."""
        return self.gaps / self.short if self.short >= _SHORT_TO_KNOW else None

    def repair(self) -> float | None:
        """What it cost on average to answer a query that came short, in the planner's unit; None: hardly known."""
        return self.repairs / self.repaired if self.repaired >= _SHORT_TO_KNOW else None

    def learn_repairs(self, repaired: int, repairs: float) -> None:
        """Remember that so many queries were answered once more, and what that cost in sum."""
        if self.repaired > 1000:
            self.repaired, self.repairs = self.repaired // 2, self.repairs / 2
        self.repaired += repaired
        self.repairs += repairs

    def learn(self, searched: int, short: int, gaps: float) -> None:
        """Remember that of so many queries so many came short, with such gaps in sum; older experience fades."""
        if self.searched > 1000:
            self.searched, self.short, self.gaps = self.searched // 2, self.short // 2, self.gaps / 2
        self.searched += searched
        self.short += short
        self.gaps += gaps


class HotFilters:
    """The recent filters of one collection."""

    def __init__(self) -> None:
        self._filters: OrderedDict[Hashable, HotFilter] = OrderedDict()
        self._lock = threading.Lock()

    def used(self, key: Hashable) -> HotFilter:
        """Count one more use of a filter."""
        with self._lock:
            hot = self._filters.get(key)
            if hot is None:
                hot = self._filters[key] = HotFilter()
                if len(self._filters) > _REMEMBERED:
                    self._filters.popitem(last=False)
            else:
                self._filters.move_to_end(key)
        hot.uses += 1
        return hot

    def vectors(
        self, hot: HotFilter, matching: RowSet, column: VectorSource, rows: int, dim: int
    ) -> Float32Array | None:
        """Return the vectors of the matching rows in one place, copied now if that is worth it, or None.

        Args:
            hot: The filter, as ``used`` returned it.
            matching: What it matches.
            column: Where the vectors are.
            rows: How many there are in all.
            dim: Of the vectors.
        """
        wanted = matching.rows()
        copy = hot.copy
        if copy is not None and copy[0] is wanted:
            return copy[1][: len(wanted)]
        if not self.worth_copying(hot, matching.count, rows, dim):
            return None
        with hot.lock:
            copy = hot.copy
            held = 0 if copy is None else len(copy[0])
            if copy is None or held > len(wanted) or not np.array_equal(copy[0], wanted[:held]):
                held, vectors = 0, take(column, wanted)
            elif len(wanted) <= len(copy[1]):
                vectors = copy[1]  # there is room at its end, which no reader of the shorter copy looks at
            else:
                vectors = np.empty((len(wanted) + len(wanted) // _SPARE_ROOM + 1, dim), np.float32)
                vectors[:held] = copy[1][:held]
            if held:
                vectors[held : len(wanted)] = take(column, wanted[held:])
            hot.copy = (wanted, vectors)
        self._evict(_budget(rows, dim))
        return vectors[: len(wanted)]

    def keep_mask(self, hot: HotFilter, mask: WalkMask, rows: int, dim: int) -> None:
        """Keep a mask for later searches with the same filter, if the budget allows."""
        hot.mask = mask
        self._evict(_budget(rows, dim))

    @staticmethod
    def worth_copying(hot: HotFilter, matching: int, rows: int, dim: int) -> bool:
        """Whether the filter is used again and its rows' vectors fit the budget."""
        return hot.uses >= _USES_BEFORE_COPY and matching * dim * 4 <= _budget(rows, dim)

    @property
    def nbytes(self) -> int:
        """Bytes of all copies and masks."""
        with self._lock:
            return sum(hot.nbytes for hot in self._filters.values())

    def _evict(self, budget: int) -> None:
        with self._lock:
            used = sum(hot.nbytes for hot in self._filters.values())
            for hot in self._filters.values():  # least recently used first
                if used <= budget:
                    break
                used -= hot.nbytes
                hot.copy = hot.mask = None


def _budget(rows: int, dim: int) -> int:
    return max(_BUDGET_BYTES_MIN, rows * dim * 4 // _BUDGET_SHARE)
