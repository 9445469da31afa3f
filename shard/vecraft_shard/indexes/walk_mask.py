"""Which rows a walk through the graph may answer with: one byte per label, for :meth:`HnswIndex.search_allowed`.

Making one costs a pass over all rows, so it is kept, per filter, and used by later searches at other snapshots. That is
right as long as it leaves out nothing that counts: what a walk finds is checked against filter and snapshot anyhow. A
row that matches will always match, and one that has ended stays ended for all later snapshots; so a mask may be used
from the snapshot on at which the last of the rows that it leaves out had ended. Rows that came, or ended, after it was
made are all allowed. They take up places of a walk, so that a mask that has missed many changes is not used.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from vecraft_data_model.hlc import INFINITY_TS
from vecraft_shard.indexes.rowset import RowSet

Int64Array = npt.NDArray[np.int64]

_SPARE_SHARE: Final = 8
_SPARE_ROWS: Final = 256
_STALE_SHARE: Final = 16
"""A mask that has missed more changes than this part of what it allows is made anew."""
_LATE_SHARE: Final = 32
"""Rows that began after the snapshot are left out if they are more than this part: a look at the past."""


@dataclass(frozen=True, slots=True)
class WalkMask:
    """One mask.

    Attributes:
        allowed: 1 for each label that may be answered, 0 for the others; longer than there were rows.
        first, until: It may be used for snapshots of ``[first, until)``.
        count: Rows it allows, those that were not there yet not counted.
        changes: Of the collection's versions, when it was made.
    """

    allowed: bytes
    first: int
    until: int
    count: int
    changes: int

    @staticmethod
    def of(
        matching: RowSet | None,
        begin: Int64Array,
        end: Int64Array,
        snapshot: int,
        rows: int,
        indexed: int,
        changes: int,
    ) -> WalkMask:
        """Make the mask for a snapshot.

        Args:
            matching: The rows that match; None: all.
            begin, end: Commit timestamps of the rows.
            snapshot: What it sees is allowed.
            rows: Rows there are.
            indexed: Rows in the graph, the first of them.
            changes: Of the collection's versions.
        """
        allowed = np.ones(indexed + indexed // _SPARE_SHARE + _SPARE_ROWS, np.bool_)
        inside = allowed[:indexed]
        if matching is not None:
            inside &= matching.mask(rows)[:indexed]
        first, until = 0, INFINITY_TS
        ended = end[:indexed] <= snapshot
        if ended.any():
            first = int(end[:indexed][ended].max())
            inside &= ~ended
        late = begin[:indexed] > snapshot
        if np.count_nonzero(late) * _LATE_SHARE > indexed:
            until = int(begin[:indexed][late].min())
            inside &= ~late
        return WalkMask(allowed.tobytes(), first, until, int(np.count_nonzero(inside)), changes)

    def serves(self, snapshot: int, indexed: int, changes: int) -> bool:
        """Whether a search may use it, and should."""
        return (
            self.first <= snapshot < self.until
            and indexed <= len(self.allowed)
            and (changes - self.changes) * _STALE_SHARE <= self.count
        )
