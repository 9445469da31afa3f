"""One page of a scan, from pages of several shards."""

from __future__ import annotations

from collections.abc import Mapping

from vecraft_data_model.messages import Response, Rows, RowsReply
from vecraft_data_model.placement import ClusterMap
from vecraft_data_model.scan_options import ScanOptions
from vecraft_router.asking import unexpected
from vecraft_router.merging import concat_rows, merge_pages
from vecraft_router.state import RouterState


class Pages:
    """The pages of one scan, shard by shard, until they make one page of the whole.

    Every shard is first asked for a little more than its share, since ids are spread evenly by their hash; whichever
    shard turns out to be behind is asked for more.

    Args:
        state: For the cluster map.
        wanted: What the page shall be.

    Attributes:
        share: Rows to ask of each shard next.
    """

    def __init__(self, state: RouterState, wanted: ScanOptions) -> None:
        self._state = state
        self._after, self._limit = wanted.after, wanted.limit
        self._begin()

    def _begin(self) -> None:
        self._epoch = self._state.cluster_map.epoch
        self._rows: dict[int, list[Rows]] = {}
        self._ends: dict[int, str | None] = dict.fromkeys(self._state.cluster_map.shards(), self._after)
        self._next: dict[int, str | None] = dict(self._ends)
        shards = len(self._ends)
        even = self._limit / shards
        self.share = self._limit if shards == 1 else min(self._limit, int(even + 3 * even**0.5) + 4)

    def targets(self, cluster_map: ClusterMap) -> dict[int, str | None]:
        """Return the shards to ask next, and after which id; all over again if the map has changed."""
        if cluster_map.epoch != self._epoch:
            self._begin()
        return self._next

    def add(self, answers: Mapping[int, Response]) -> tuple[Rows, bool]:
        """Take the answers; return the merged page so far, and whether others follow."""
        for shard, answer in answers.items():
            if not isinstance(answer, RowsReply):
                raise unexpected(answer)
            self._rows.setdefault(shard, []).append(answer.rows)
            if answer.more and answer.rows.ids:
                self._ends[shard] = answer.rows.ids[-1]
            else:
                self._ends.pop(shard, None)
        rows, more = merge_pages(
            [(concat_rows(rows), self._ends.get(shard)) for shard, rows in self._rows.items()], self._limit
        )
        ends = {shard: end for shard, end in self._ends.items() if end is not None}
        if ends:
            behind = min(ends, key=lambda shard: ends[shard])
            self._next = {behind: ends[behind]}
            self.share = min(self._limit, max(16, self._limit - len(rows.ids)))
        return rows, more
