"""How deep a collection is searched, what is known of the recall at that depth, and the queries it is measured with.

Three may set the search depth ``ef``, the first that did wins: an override of this process (``set_ef``), the durable
setting of ``alter_collection``, and what :mod:`vecraft_shard.tuning` has measured to be enough. A request's own ``ef``
beats them all.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final

import numpy as np
import numpy.typing as npt

Float32Array = npt.NDArray[np.float32]

_WHOLE: Final = 2**32 - 1
_GOLDEN: Final = 2_654_435_769
"""2³² over the golden ratio."""


class QuerySample:
    """Some of the last queries of a collection, up to :attr:`CAPACITY`: what its recall is worth measuring on.

    While it is filling up, every search gives one; afterwards one in :attr:`STRIDE` replaces the oldest, so that the
    sample reaches back over about a thousand searches and follows when the questions change. Which one, the multiples
    of the golden ratio say: they are spread evenly, and never in step with questions that come round in turns.

    Searches offer their queries from several threads without a lock: at worst one of them overwrites another's.

    Attributes:
        taken: Queries taken in so far.
        offered: Searches so far.
    """

    CAPACITY: Final = 128
    STRIDE: Final = 8
    _OF_A_MATRIX: Final = 8

    def __init__(self) -> None:
        self.taken = 0
        self.offered = 0
        self._noticed = self._noticed_ms = 0
        self._ring: Float32Array | None = None

    def offer(self, queries: Float32Array) -> None:
        """Consider the queries of one search, (q, dim) float32, q ≥ 1."""
        self.offered += 1
        if self.taken >= self.CAPACITY and (self.offered * _GOLDEN & _WHOLE) * self.STRIDE > _WHOLE:
            return
        ring = self._ring
        if ring is None:
            ring = self._ring = np.zeros((self.CAPACITY, queries.shape[1]), np.float32)
        for query in queries[:: max(1, len(queries) // self._OF_A_MATRIX)][: self._OF_A_MATRIX]:
            ring[self.taken % self.CAPACITY] = query
            self.taken += 1

    def searched_since(self, ms: int, now_ms: int) -> bool:
        """Whether there was a search after ``ms``, as far as who calls this again and again can tell."""
        if self.offered != self._noticed:
            self._noticed, self._noticed_ms = self.offered, now_ms
        return self._noticed_ms > ms

    def queries(self) -> Float32Array | None:
        """The different queries of the sample, (n, dim) float32.

        None while it is not full, or less than half full of different ones: a few questions that are asked again and
        again say little of how deep others have to be searched.
        """
        if self._ring is None or self.taken < self.CAPACITY:
            return None
        different: Float32Array = np.unique(self._ring, axis=0)
        return different if len(different) * 2 >= self.CAPACITY else None


@dataclass(slots=True)
class SearchDepth:
    """The search depth of one collection on one shard, and where it comes from.

    Attributes:
        override: Set for this process, or None.
        altered: Set durably, or None.
        tuned: The least depth that was measured to reach the target, or None.
        recall: Recall@10 at the depth in force as last measured, or None: then it is worth measuring.
        recall_interval: Its 95% confidence interval.
        rows: Rows that were in the graph at the last measurement.
        changes: Rows that had been added or ended then, in all.
        sampled: Queries the sample had taken in then.
        rest_until_ms: Physical time before which only growth is a reason to measure again.
        sample: Queries to measure with.
    """

    override: int | None = None
    altered: int | None = None
    tuned: int | None = None
    recall: float | None = None
    recall_interval: tuple[float, float] | None = None
    rows: int = 0
    changes: int = 0
    sampled: int = 0
    rest_until_ms: int = 0
    sample: QuerySample = field(default_factory=QuerySample)

    def set_override(self, depth: int | None) -> None:
        """Override the depth for this process; None ends that."""
        if depth != self.override:
            self.override = depth
            self.recall = self.recall_interval = None

    def alter(self, depth: int | None) -> None:
        """Set the depth durably; None ends that."""
        if depth != self.altered:
            self.altered = depth
            self.recall = self.recall_interval = None

    def retarget(self) -> None:
        """Have the depth measured anew, and soon: it was tuned to another target."""
        self.recall = self.recall_interval = None
        self.rest_until_ms = 0

    @property
    def lasting(self) -> tuple[float | None, tuple[float, float] | None]:
        """The recall and its interval, where a restart does not change the depth they were measured at."""
        return (self.recall, self.recall_interval) if self.override is None else (None, None)

    @property
    def set_by_hand(self) -> int | None:
        """The depth that somebody chose, or None: then measurements decide."""
        return self.override or self.altered

    def in_force(self, default: int) -> int:
        """The depth of a search that asks for none."""
        return self.override or self.altered or self.tuned or default
