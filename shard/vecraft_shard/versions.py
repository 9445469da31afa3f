"""The versions of one collection's records: which row is which record, from when to when.

A row is one version of one record, and its number is everything that other structures know of it: the place in the
vector column, the HNSW label, the member of posting lists. Rows are never changed, apart from ``end``::

    row        0        1        2        3
    id         a        b        a        c
    begin     10       10       25       31        commit timestamp of the transaction that wrote it
    end       25       40        ∞        ∞        … of the one that replaced or deleted it
    previous  -1       -1        0       -1        the older version of the same record

A snapshot ``S`` sees a row iff ``begin <= S < end``. A deleted record is one whose newest row has an ``end``: that is
its tombstone. The newest version of each id is kept in ``newest``.

Readers hold the shard's latch shared and writers hold it exclusively, so nothing here locks.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from itertools import repeat

import numpy as np
import numpy.typing as npt

from vecraft_data_model.hlc import INFINITY_TS

Int64Array = npt.NDArray[np.int64]
NO_ROW = -1
_MOMENTS_KEPT = 64


class VersionTable:
    """Row metadata in memory, about 170 bytes a row with an id of 12 characters: that and finding it take most.

    Attributes:
        rows: Rows in use; all arrays are at least as long.
        begin, end: int64, commit timestamps.
        offset, size: int64, int32: where the payload stands.
        previous: int64, the next older version, or -1.
        ids: Record id of each row.
        newest: Record id to newest row.
        alive: Rows whose ``end`` is infinite.
        max_begin: The highest ``begin``.
    """

    def __init__(self) -> None:
        self.rows = 0
        self.begin: Int64Array = np.empty(0, np.int64)
        self.end: Int64Array = np.empty(0, np.int64)
        self.offset: Int64Array = np.empty(0, np.int64)
        self.size: npt.NDArray[np.int32] = np.empty(0, np.int32)
        self.previous: Int64Array = np.empty(0, np.int64)
        self.ids: list[str] = []
        self.newest: dict[str, int] = {}
        self.alive = 0
        self.max_begin = 0
        self._ended_since: dict[int, int] = {}
        self._moments: deque[int] = deque()
        self._forgotten = 0  # moments up to this one are not all remembered

    def append(self, ids: Sequence[str], begin: int, offsets: Int64Array, sizes: npt.NDArray[np.int32]) -> int:
        """Add one version per id, all begun at ``begin``; end the versions they replace. Returns the first row."""
        first, count = self.rows, len(ids)
        last = first + count
        self._reserve(last)
        self.begin[first:last] = begin
        self.end[first:last] = INFINITY_TS
        self.offset[first:last] = offsets
        self.size[first:last] = sizes
        replaced = list(map(self.newest.get, ids, repeat(NO_ROW)))
        self.previous[first:last] = replaced
        self.ids.extend(ids)
        self.newest.update(zip(ids, range(first, last), strict=True))
        if max(replaced, default=NO_ROW) != NO_ROW:
            for row in replaced:
                if row != NO_ROW and self.end[row] == INFINITY_TS:
                    self._end(row, begin)
        self.alive += count
        self.max_begin = max(self.max_begin, begin)
        self.rows = last
        self._remember(begin)
        return first

    def delete(self, record_ids: Sequence[str], ts: int) -> int:
        """End the newest versions of these records at ``ts``. Returns how many there were."""
        ended = 0
        for record_id in record_ids:
            row = self.alive_row(record_id)
            if row != NO_ROW:
                self._end(row, ts)
                ended += 1
        if ended:
            self._remember(ts)
        return ended

    def adopt(
        self, ids: Sequence[str], begin: Int64Array, offsets: Int64Array, sizes: npt.NDArray[np.int32]
    ) -> None:
        """Add versions in row order whose ends are not known yet: :meth:`refresh_ends` completes the table."""
        first, last = self.rows, self.rows + len(ids)
        self._reserve(last)
        self.begin[first:last], self.end[first:last] = begin, INFINITY_TS
        self.offset[first:last], self.size[first:last] = offsets, sizes
        for row, record_id in enumerate(ids, first):
            self.previous[row] = self.newest.get(record_id, NO_ROW)
            self.newest[record_id] = row
        self.ids.extend(ids)
        self.alive += len(ids)
        self.max_begin = max(self.max_begin, int(begin.max()))
        self._forgotten = max(self._forgotten, self.max_begin)
        self.rows = last

    def refresh_ends(self, end: Int64Array) -> None:
        """Set the ends of all rows."""
        self.end[: self.rows] = end
        self.alive = int(np.count_nonzero(end == INFINITY_TS))
        self._forget_moments()

    def load(
        self, ids: list[str], begin: Int64Array, end: Int64Array, offset: Int64Array, size: npt.NDArray[np.int32]
    ) -> None:
        """Fill an empty table with rows in row order, as a checkpoint holds them; the arrays become the table's own."""
        count = len(ids)
        self.begin, self.end, self.offset, self.size = begin, end, offset, size
        self.previous = np.full(count, NO_ROW, np.int64)
        self.newest = dict(zip(ids, range(count), strict=True))
        if len(self.newest) < count:
            older: dict[str, int] = {}
            for row, record_id in enumerate(ids):
                self.previous[row] = older.get(record_id, NO_ROW)
                older[record_id] = row
        self.ids = ids
        self.alive = int(np.count_nonzero(end == INFINITY_TS))
        self.max_begin = int(begin.max()) if count else 0
        self.rows = count
        self._forget_moments()

    # ------------------------------------------------------------------------------------------- reading

    def alive_row(self, record_id: str) -> int:
        """The row of the record's live version, or -1."""
        row = self.newest.get(record_id, NO_ROW)
        return row if row != NO_ROW and self.end[row] == INFINITY_TS else NO_ROW

    def alive_rows(self, record_ids: Sequence[str]) -> list[int]:
        """The row of each record's live version, or -1."""
        rows = list(map(self.newest.get, record_ids, repeat(NO_ROW)))
        if max(rows, default=NO_ROW) == NO_ROW:
            return rows
        return [row if row != NO_ROW and self.end[row] == INFINITY_TS else NO_ROW for row in rows]

    def row_at(self, record_id: str, snapshot: int) -> int:
        """The row of the version that ``snapshot`` sees, or -1."""
        row = self.newest.get(record_id, NO_ROW)
        while row != NO_ROW and self.begin[row] > snapshot:
            row = int(self.previous[row])
        return row if row != NO_ROW and snapshot < self.end[row] else NO_ROW

    def changed_after(self, record_id: str, snapshot: int) -> bool:
        """Whether a version of the record begins or ends after ``snapshot``: the write-write conflict rule."""
        row = self.newest.get(record_id, NO_ROW)
        if row == NO_ROW:
            return False
        end = self.end[row]
        return bool(self.begin[row] > snapshot or (end != INFINITY_TS and end > snapshot))

    def any_changed_after(self, snapshot: int) -> bool:
        """Whether any version begins or ends after ``snapshot``."""
        end = self.end[: self.rows]
        return self.max_begin > snapshot or bool(np.any((end > snapshot) & (end != INFINITY_TS)))

    def all_visible(self, snapshot: int) -> bool:
        """Whether ``snapshot`` sees every row: the common case, in which nothing needs to be masked."""
        return self.alive == self.rows and self.max_begin <= snapshot

    def moments(self, first: int, last: int) -> list[int] | None:
        """When a version began or ended after ``first`` and up to ``last``, in any order; None: that is forgotten."""
        if first < self._forgotten:
            return None
        return [ts for ts in self._moments if first < ts <= last]

    def visible(self, snapshot: int, rows: int) -> npt.NDArray[np.bool_]:
        """For each row below ``rows``: whether ``snapshot`` sees it."""
        mask: npt.NDArray[np.bool_] = (self.begin[:rows] <= snapshot) & (self.end[:rows] > snapshot)
        return mask

    @property
    def changes(self) -> int:
        """How often a version was added or ended in this table: what a measurement of it grows old by."""
        return 2 * self.rows - self.alive

    def reclaimable(self, safe_point: int, rows: int) -> npt.NDArray[np.bool_]:
        """For each row below ``rows``: whether no snapshot from the safe point on can see it."""
        mask: npt.NDArray[np.bool_] = self.end[:rows] <= safe_point
        return mask

    # ---------------------------------------------------------------------------------------- checkpoints

    def take_ended(self) -> dict[int, int]:
        """Rows ended since the last call, with their ``end``: what a checkpoint has to write again."""
        ended, self._ended_since = self._ended_since, {}
        return ended

    def give_back_ended(self, ended: dict[int, int]) -> None:
        """Undo :meth:`take_ended` after a checkpoint that failed."""
        self._ended_since = {**ended, **self._ended_since}

    # --------------------------------------------------------------------------------------------- inside

    def _end(self, row: int, ts: int) -> None:
        self.end[row] = ts
        self._ended_since[row] = ts
        self.alive -= 1

    def _remember(self, ts: int) -> None:
        """Enter a moment among the last ones; they come nearly in order, each once or a few times."""
        moments = self._moments
        if not moments or moments[-1] != ts:
            moments.append(ts)
            if len(moments) > _MOMENTS_KEPT:
                self._forgotten = max(self._forgotten, moments.popleft())

    def _forget_moments(self) -> None:
        """What happened so far came from elsewhere, and not moment by moment."""
        ends = self.end[: self.rows]
        self._moments.clear()
        self._forgotten = max(self.max_begin, int(ends[ends != INFINITY_TS].max(initial=0)))

    def _reserve(self, rows: int) -> None:
        if rows <= len(self.begin):
            return
        capacity = max(rows, 1024, len(self.begin) + len(self.begin) // 2)
        for name in ("begin", "end", "offset", "size", "previous"):
            old = getattr(self, name)
            new = np.empty(capacity, old.dtype)
            new[: self.rows] = old[: self.rows]
            setattr(self, name, new)
