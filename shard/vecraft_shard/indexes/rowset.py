"""A set of row numbers, in whichever form is at hand: roaring bitmap, boolean mask, or sorted array.

Filters produce and combine such sets; searches ask them for a mask (is this candidate in?) or for the rows (scan
these). Each form is made from another when first asked for and kept, so a set that is cached and used by many searches
pays once. A ``RowSet`` never changes; what it hands out must not be written to.

Which form an operation works in: two sets of which one has a mask are combined as masks (a vectorised pass over n
bytes), any others as roaring bitmaps.
"""

from __future__ import annotations

from array import array

import numpy as np
import numpy.typing as npt
from pyroaring import BitMap

Int64Array = npt.NDArray[np.int64]
BoolArray = npt.NDArray[np.bool_]


class RowSet:
    """An immutable set of row numbers. Made by the ``of_…`` functions."""

    __slots__ = ("_bitmap", "_mask", "_rows", "count")

    def __init__(
        self, count: int, bitmap: BitMap | None = None, mask: BoolArray | None = None, rows: Int64Array | None = None
    ) -> None:
        self.count = count
        """How many rows."""
        self._bitmap = bitmap
        self._mask = mask
        self._rows = rows

    # -------------------------------------------------------------------------------------------- making

    @staticmethod
    def of_bitmap(bitmap: BitMap) -> RowSet:
        """Make a set of a bitmap, which the set then owns."""
        return RowSet(len(bitmap), bitmap=bitmap)

    @staticmethod
    def of_mask(mask: BoolArray) -> RowSet:
        """Make the set of the rows at which ``mask`` is true."""
        return RowSet(int(np.count_nonzero(mask)), mask=mask)

    @staticmethod
    def of_rows(rows: npt.NDArray[np.integer]) -> RowSet:
        """Make a set of row numbers, ascending and distinct."""
        return RowSet(len(rows), rows=rows.astype(np.int64, copy=False))

    @staticmethod
    def empty() -> RowSet:
        """The set of nothing."""
        return RowSet(0, rows=np.empty(0, np.int64))

    @staticmethod
    def full(n_rows: int) -> RowSet:
        """The set of all rows below ``n_rows``."""
        return RowSet(n_rows, bitmap=BitMap(range(n_rows)))

    # --------------------------------------------------------------------------------------------- forms

    def bitmap(self) -> BitMap:
        """The set as a roaring bitmap."""
        if self._bitmap is None:
            self._bitmap = BitMap(array("I", self.rows().astype(np.uint32).tobytes()))
        return self._bitmap

    def rows(self) -> Int64Array:
        """The rows, ascending."""
        if self._rows is None:
            if self._mask is not None:
                self._rows = np.flatnonzero(self._mask)
            else:
                self._rows = np.frombuffer(self.bitmap().to_array(), np.uint32).astype(np.int64)
        return self._rows

    def mask(self, n_rows: int) -> BoolArray:
        """The set as a mask over the rows below ``n_rows``; members at or above it are left out."""
        mask = self._mask
        if mask is None or len(mask) < n_rows:
            grown = np.zeros(n_rows, np.bool_)
            if mask is not None:
                grown[: len(mask)] = mask
            else:
                rows = self.rows()
                grown[rows if not len(rows) or rows[-1] < n_rows else rows[rows < n_rows]] = True
                if self.count and rows[-1] >= n_rows:
                    return grown  # not the whole set: not to be kept
            self._mask = mask = grown
        return mask if len(mask) == n_rows else mask[:n_rows]

    def contains(self, rows: Int64Array) -> BoolArray:
        """For each of ``rows`` (in any order): whether it is in the set."""
        mask = self._mask
        if mask is None:
            members = self.rows()
            mask = self.mask(int(members[-1]) + 1 if len(members) else 0)
        if not len(mask):
            return np.zeros(len(rows), np.bool_)
        if len(rows) and int(rows.max()) >= len(mask):
            inside = np.zeros(len(rows), np.bool_)
            low = rows < len(mask)
            inside[low] = mask[rows[low]]
            return inside
        return mask[rows]

    @property
    def nbytes(self) -> int:
        """Memory that the forms made so far take, roughly."""
        size = 0 if self._rows is None else self._rows.nbytes
        size += 0 if self._mask is None else self._mask.nbytes
        return size + (0 if self._bitmap is None else min(4 * self.count, self._bitmap.max() // 8 if self.count else 0))

    def __len__(self) -> int:
        return self.count

    # --------------------------------------------------------------------------------------- combination

    def __and__(self, other: RowSet) -> RowSet:
        if not self.count or not other.count:
            return RowSet.empty()
        if self._mask is None and other._mask is None:
            return RowSet.of_bitmap(self.bitmap() & other.bitmap())
        small, large = (self, other) if self.count <= other.count else (other, self)
        if small._mask is None and large._mask is not None:
            rows = small.rows()
            return RowSet.of_rows(rows[large.contains(rows)])
        n_rows = _common_length(self, other)
        return RowSet.of_mask(self.mask(n_rows) & other.mask(n_rows))

    def __or__(self, other: RowSet) -> RowSet:
        if not other.count:
            return self
        if not self.count:
            return other
        if self._mask is None and other._mask is None:
            return RowSet.of_bitmap(self.bitmap() | other.bitmap())
        n_rows = _common_length(self, other)
        return RowSet.of_mask(self.mask(n_rows) | other.mask(n_rows))

    def __sub__(self, other: RowSet) -> RowSet:
        if not self.count or not other.count:
            return self
        if self._mask is None and other._mask is None:
            return RowSet.of_bitmap(self.bitmap() - other.bitmap())
        n_rows = _common_length(self, other)
        return RowSet.of_mask(self.mask(n_rows) & ~other.mask(n_rows))

    def complement(self, n_rows: int) -> RowSet:
        """The rows below ``n_rows`` that are not in the set."""
        if self._mask is not None or self.count * 8 > n_rows:
            return RowSet.of_mask(~self.mask(n_rows))
        return RowSet.of_bitmap(BitMap(range(n_rows)) - self.bitmap())

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, RowSet):
            return NotImplemented
        return self.count == other.count and bool(np.array_equal(self.rows(), other.rows()))

    def __repr__(self) -> str:
        return f"RowSet({self.count} rows)"


def _common_length(left: RowSet, right: RowSet) -> int:
    """The shortest length at which both sets fit into a mask."""
    return max(_length(left), _length(right))


def _length(rowset: RowSet) -> int:
    if rowset._mask is not None:
        return len(rowset._mask)
    rows = rowset.rows()
    return int(rows[-1]) + 1 if len(rows) else 0
