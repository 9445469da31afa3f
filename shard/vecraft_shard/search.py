"""Searches: the k nearest of the rows that match, at one snapshot.

1. *Filter.* ``view.matching`` turns the filters into a set of rows.
2. *Plan.* :mod:`vecraft_shard.planner` picks a scan, or the graph, by estimated cost.
3. *Find.* By the plan ``exact``: scan what matches and is visible, fresh rows and settled ones alike. Else walk the
   graph for the settled rows, to a fixed depth or until enough are found that a mask allows, drop the candidates that
   do not match or that the snapshot does not see, and scan the fresh rows, the tail.
4. *Repair.* A query that has fewer than ``k`` then (a filter that lies far from it, many dead rows around it) is asked
   again deeper, or scanned, whichever is cheaper. So there are always k answers whenever k rows match.
5. *Merge*, nearest first, ties by record id.

``exact=True`` scans whatever it costs. Nothing here reads payloads or knows of other shards.

A search of everything, where the snapshot sees nearly all rows and few are fresh, takes a short cut
(:mod:`vecraft_shard.short_cut`) that adds some microseconds to the graph's own time.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final

import msgspec
import numpy as np
import numpy.typing as npt

from vecraft_data_model.messages import Search
from vecraft_shard.indexes.hnsw import HnswIndex
from vecraft_shard.indexes.hot import HotFilter
from vecraft_shard.indexes.rowset import RowSet
from vecraft_shard.indexes.tail import Found, ScanSource, joined, nearest, scan_range, scan_rows, within, worth_fetching
from vecraft_shard.indexes.walk_mask import WalkMask
from vecraft_shard.planner import (
    NOMINAL_COSTS,
    Costs,
    Plan,
    Task,
    choose_plan,
    exact_cost,
    gap_of,
    graph_cost,
    overfetch_depth,
    tried_instead,
)
from vecraft_shard.search_view import Float32Array, Int64Array, SearchView, seen
from vecraft_shard.short_cut import walk_nearly_all

Float64Array = npt.NDArray[np.float64]
BoolArray = npt.NDArray[np.bool_]

_SAMPLED_ROWS: Final = 512
_DEEPER: Final = 4
_TRIED_EVERY: Final = 8
"""Scans teach nothing about the graph: one of so many searches with a filter tries it, if it is not much dearer."""


def run_search(view: SearchView, request: Search, threads: int = 1, costs: Costs = NOMINAL_COSTS) -> list[Found]:
    """Carry out a search.

    Args:
        view: The collection at the snapshot.
        request: ``queries`` (q, dim) float32, C-contiguous and validated, ``options.k`` at least 1.
        threads: To spread the queries of one request over.
        costs: Of this machine.

    Returns:
        Rows (int64) and distances (float32) per query, nearest first, ties by record id: ``k``, or all there are.
    """
    found = walk_nearly_all(view, request, threads)
    if found is None:
        return _Execution(view, request, threads, costs).run()
    left = [i for i, answer in enumerate(found) if answer is None]
    again: Iterator[Found] = iter(())
    if left:
        rest = msgspec.structs.replace(request, queries=request.queries[left])
        again = iter(_Execution(view, rest, threads, costs).run())
    answers = [next(again) if answer is None else answer for answer in found]
    return within(answers, request.options.max_distance)


def explain_search(
    view: SearchView, request: Search, threads: int = 1, costs: Costs = NOMINAL_COSTS
) -> tuple[list[Found], dict[str, Any]]:
    """As :func:`run_search`; also says what was planned and estimated, and what it took, all queries together.

    ``candidates`` came from the graph, ``scanned`` were compared exactly (before the snapshot takes out those that it
    does not see), ``found`` is what is answered.
    """
    execution = _Execution(view, request, threads, costs)
    found = execution.run()
    return found, execution.explain(found)


class _Execution:
    """One search on its way."""

    def __init__(self, view: SearchView, request: Search, threads: int, costs: Costs) -> None:
        self.view = view
        self.queries = request.queries
        self.options = request.options
        self.threads = threads
        self.costs = costs
        self.k = min(self.options.k, max(view.rows, 1))
        self.ef = self.options.ef or view.ef
        self.source = ScanSource(view.schema.metric, view.column, view.norms, view.ids)
        self.matching: RowSet | None = None
        self.hot: HotFilter | None = None
        self.visible_mask: BoolArray | None = None
        self.chosen: tuple[Task, Plan] | None = None
        self.repaired = 0
        self.candidates = 0
        self.visited = 0
        self.scanned = 0

    def run(self) -> list[Found]:
        view, options, queries = self.view, self.options, self.queries
        self.matching = view.matching(options.where, options.where_document)
        count = view.rows if self.matching is None else self.matching.count
        if count == 0 or not len(queries):
            nothing = (np.empty(0, np.int64), np.empty(0, np.float32))
            return [nothing] * len(queries)
        if view.hot_filters is not None and not (self.matching is None and view.all_visible):
            self.hot = view.hot_filters.used((options.where, options.where_document))
        task = self._task(count)
        plan = choose_plan(task, self.costs)
        if self.hot is not None and self.hot.uses % _TRIED_EVERY == 0:
            plan = tried_instead(task, plan)
        self.chosen = task, plan
        found = self._scan(queries) if plan.kind == "exact" else self._walk(task, plan)
        return within(found, options.max_distance)

    def explain(self, found: list[Found]) -> dict[str, Any]:
        """What was planned, and what it took, after :meth:`run` has answered this."""
        view = self.view
        if self.chosen is None:
            return {"plan": "nothing", "matching": 0, "rows": view.rows, "found": 0}
        task, plan = self.chosen
        return {
            **plan.to_dict(),
            "rows": view.rows, "indexed": view.indexed, "tail": view.rows - view.indexed, "matching": task.matching,
            "visible_share": task.counting, "k": self.options.k, "ef": self.ef, "queries": len(self.queries),
            "candidates": self.candidates, "visited": self.visited, "scanned": self.scanned,
            "queries_repaired": self.repaired,
            "found": sum(len(rows) for rows, _ in found),
        }  # fmt: skip

    def _task(self, count: int) -> Task:
        view = self.view
        dim, hot = view.schema.dim, self.hot
        share = count / view.rows
        gathered = False
        if hot is not None and view.hot_filters is not None and share < 1 / 3:
            gathered = view.hot_filters.worth_copying(hot, count, view.rows, dim)
        visible_share = self._visible_share()
        # Until there is experience: filters that leave over little tend to be about something, which is far from
        # most queries; those that leave over half hardly can be.
        shortfall, gap, repair = max(0.0, 0.5 - share * visible_share), None, None
        if hot is not None:
            shortfall, gap, repair = hot.shortfall(shortfall), hot.gap(), hot.repair()
        return Task(
            queries=len(self.queries),
            k=self.k,
            dim=dim,
            item_bytes=view.schema.dtype.itemsize,
            M=view.schema.M,
            ef=self.ef,
            exact=self.options.exact,
            indexed=view.indexed if view.hnsw is not None else 0,
            rows=view.rows,
            matching=count,
            counting=visible_share,
            gathered=gathered,
            shortfall=shortfall,
            gap=view.rows if gap is None else shortfall * gap,
            repair=repair,
        )

    # ------------------------------------------------------------------------------------------ visibility

    def _visible_share(self) -> float:
        """Share of the rows that the snapshot sees, from a sample."""
        view = self.view
        if view.all_visible:
            return 1.0
        step = max(view.rows // _SAMPLED_ROWS, 1)
        begin, end = view.begin[: view.rows : step], view.end[: view.rows : step]
        seen = np.count_nonzero((begin <= view.snapshot) & (end > view.snapshot))
        return min(int(seen) / len(begin), 1 - 1 / (view.rows + 1))

    def _visible(self, lo: int, hi: int) -> BoolArray | None:
        """For each of the rows ``[lo, hi)``: whether the snapshot sees it. None: all."""
        view = self.view
        if view.all_visible:
            return None
        if self.visible_mask is None or lo < view.rows - len(self.visible_mask):
            mask: BoolArray = (view.begin[lo : view.rows] <= view.snapshot) & (view.end[lo : view.rows] > view.snapshot)
            self.visible_mask = mask
        first = view.rows - len(self.visible_mask)
        return self.visible_mask[lo - first : hi - first]

    # ---------------------------------------------------------------------------------------------- plans

    def _scan(self, queries: Float32Array) -> list[Found]:
        """Scan all rows that match and are visible, tail included."""
        view, matching = self.view, self.matching
        self.scanned += len(queries) * (view.rows if matching is None else matching.count)
        if matching is None:
            return scan_range(self.source, queries, self.k, 0, view.rows, self._visible(0, view.rows))
        if not worth_fetching(matching.count, view.rows, len(queries)):
            inside, visible = matching.mask(view.rows), self._visible(0, view.rows)
            keep = inside if visible is None else inside & visible
            return scan_range(self.source, queries, self.k, 0, view.rows, keep)
        rows, vectors = matching.rows(), None
        if self.hot is not None and view.hot_filters is not None:
            vectors = view.hot_filters.vectors(self.hot, matching, view.column, view.rows, view.schema.dim)
        counting = None if view.all_visible else seen(view, rows)
        return scan_rows(self.source, queries, self.k, rows, vectors, counting)

    def _walk(self, task: Task, plan: Plan) -> list[Found]:
        """Walk the graph, scan the tail, repair, merge."""
        queries = self.queries
        settled, gaps = self._settled(task, plan)
        tail = self._scan_tail(queries)
        found = [
            nearest(rows, distances, self.k, self.view.ids)
            for rows, distances in (settled if tail is None else map(joined, settled, tail))
        ]
        # Whether a query found enough is judged by the graph's part alone: the tail's says nothing about what it
        # missed.
        short = [i for i, (rows, _) in enumerate(settled) if len(rows) < self.k]
        if short:
            self.repaired = len(short)
            self._repair(task, plan, short, found, gaps)
        if self.hot is not None:
            far = gaps > overfetch_depth(task) / 2
            self.hot.learn(len(queries), int(np.count_nonzero(far)), float(gaps[far].sum()))
        return found

    def _settled(self, task: Task, plan: Plan) -> tuple[list[Found], Float64Array]:
        """Walk the graph as planned.

        Returns:
            What matches and is visible, up to k a query, nearest first; and for each query, how many candidates more
            than by chance there were before it had enough.
        """
        queries = self.queries
        if plan.kind != "hnsw_restricted":
            settled, counting = self._candidates(queries, plan.depth)
            return settled, np.where(counting < self.k, plan.depth - counting / task.share, 0.0)
        settled, visited = self._restricted(plan.depth)
        return settled, np.full(len(queries), gap_of(visited / len(queries), plan.depth, task.share))

    def _repair(
        self, task: Task, plan: Plan, short: list[int], found: list[Found], gaps: Float64Array
    ) -> None:
        """Answer the queries that came short once more, deeper as long as that is cheaper than a scan.

        ``gaps`` learns how much deeper they had to go.
        """
        depth, repaired, spent = plan.depth * _DEEPER, len(short), 0.0
        scan = exact_cost(task, self.costs)
        while short and depth < task.indexed and plan.kind != "hnsw_restricted":
            walk = graph_cost(task, depth, self.costs)
            if (self.matching is not None and self.matching.count < self.k) or scan <= walk * 2:
                break
            spent += walk / task.queries * len(short)
            asked = self.queries[short]
            (settled, counting), tail = self._candidates(asked, depth), self._scan_tail(asked)
            gaps[short] = np.maximum(depth - counting / task.share, 1.0)
            left = []
            for i, place in enumerate(short):
                if len(settled[i][0]) < self.k:
                    left.append(place)
                else:
                    both = settled[i] if tail is None else joined(settled[i], tail[i])
                    found[place] = nearest(*both, self.k, self.view.ids)
            short, depth = left, depth * _DEEPER
        if short:
            if plan.kind != "hnsw_restricted":
                gaps[short] = task.indexed  # for all that is known
            for place, answer in zip(short, self._scan(self.queries[short]), strict=True):
                found[place] = answer
            spent += scan / task.queries * len(short)
        if self.hot is not None and plan.kind != "hnsw_restricted":
            self.hot.learn_repairs(repaired, spent)

    def _restricted(self, wanted: int) -> tuple[list[Found], int]:
        """Walk until each query has found ``wanted`` rows that the mask allows; what of them counts, and the visits."""
        mask = self._walk_mask()
        labels, distances, visited = self._graph().search_allowed(self.queries, wanted, mask.allowed)
        self.candidates += labels.size
        self.visited += visited
        settled, counting = self._that_count(labels, distances)
        if mask.changes != self.view.changes and counting.min() < self.k and self.hot is not None:
            self.hot.mask = None  # what has changed since it was made lies around these queries
            return self._restricted(wanted)
        return settled, visited

    def _graph(self) -> HnswIndex:
        if self.view.hnsw is None:
            raise RuntimeError("a plan that needs the graph was made without one")
        return self.view.hnsw

    def _walk_mask(self) -> WalkMask:
        """The mask of what may be answered, made now or kept from an earlier search."""
        view, hot = self.view, self.hot
        mask = None if hot is None else hot.mask
        if mask is None or not mask.serves(view.snapshot, view.indexed, view.changes):
            mask = WalkMask.of(
                self.matching, view.begin, view.end, view.snapshot, view.rows, view.indexed, view.changes
            )
            if hot is not None and view.hot_filters is not None:
                view.hot_filters.keep_mask(hot, mask, view.rows, view.schema.dim)
        return mask

    def _candidates(self, queries: Float32Array, depth: int) -> tuple[list[Found], Int64Array]:
        """Walk the graph ``depth`` deep; what counts of what is found there, as :meth:`_that_count` returns it."""
        labels, distances = self._graph().search(queries, depth, depth, self.threads)
        self.candidates += labels.size
        return self._that_count(labels, distances)

    def _that_count(self, labels: Int64Array, distances: Float32Array) -> tuple[list[Found], Int64Array]:
        """Of candidates from the graph, (q, n), the first k that match and are visible; and how many those are."""
        view = self.view
        if view.schema.metric == "cosine":
            distances = np.maximum(distances, 0)
        good = labels >= 0
        if self.matching is not None:
            good &= self.matching.contains(labels.ravel()).reshape(labels.shape)
        if not view.all_visible:
            good &= seen(view, labels)
        settled = [
            (line[places], measured[places])
            for line, measured, places in zip(
                labels, distances, (np.flatnonzero(row)[: self.k] for row in good), strict=True
            )
        ]
        return settled, good.sum(axis=1)

    def _scan_tail(self, queries: Float32Array) -> list[Found] | None:
        """Scan the rows that are not in the graph. None: there are none that count."""
        view = self.view
        lo, hi = view.indexed, view.rows
        if lo == hi:
            return None
        keep = self._visible(lo, hi)
        if self.matching is not None:
            inside = self.matching.mask(hi)[lo:hi]
            keep = inside if keep is None else keep & inside
        if keep is not None and not keep.any():
            return None
        self.scanned += len(queries) * (hi - lo)
        return scan_range(self.source, queries, self.k, lo, hi, keep)
