"""How to carry out a search: scan, or walk the graph, decided by estimated cost. Pure arithmetic.

Four plans, of which all are right and one is fastest:

``exact``
    Scan the rows that match (all, without a filter). Its answer is exact. The cheapest for few rows: below about a
    tenth of the collection it beats every graph.
``hnsw``
    Walk the graph, ``ef`` deep. Only where every row counts.
``hnsw_overfetch``
    Walk it deeper than ``ef`` and keep the candidates that match and are visible. Queries that find too few are scanned
    or asked again, so what this costs depends on how often that happens: on how the filter is correlated with nearness,
    which only experience with that filter tells (*shortfall*).
``hnsw_restricted``
    Walk it until enough rows that match and are visible were found, however far that is: each query goes as deep as it
    has to. Every node on the way costs a look at the mask, so where matching rows are spread evenly the fixed depth is
    cheaper; where they are not, it depends on how many nodes more than by chance lie in between (*gap*).

The unit of cost is the microsecond on the machine the default :class:`Costs` were measured on. Only ratios matter, and
those differ little between machines; :func:`calibrated` measures them where the shard runs, with a stopwatch handed in.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any, Final, Literal

import numpy as np

from vecraft_shard.indexes.tail import worth_fetching

PlanKind = Literal["exact", "hnsw", "hnsw_overfetch", "hnsw_restricted"]

_DEPTH_MARGIN: Final = 1.25
"""A filtered search goes deeper by this: the matching part of a candidate list has a little less recall than all."""
_SPARE_MATCHES: Final = 2.5
"""Depth is chosen so that about so many times ``k`` candidates match."""
_VISITS_PER_CANDIDATE: Final = 1.6
_VISITS_OF_DESCENT: Final = 45
"""Nodes that a walk takes up: so many, and per place of its list 2.4 on WordNet embeddings, 1.2 on rows around centres
in 32 dimensions."""
_SPARE_ALLOWED: Final = 4
"""A walk for a quarter of all that match, or more, might have to see the whole graph."""
_SHARE_OF_A_GAP: Final = 0.25
_DEEPER_BEYOND_A_GAP: Final = 4
"""A walk that has to cross a gap goes deeper by this part of it, but not more than four times as deep."""
_TRIED_UP_TO: Final = 2.0
_BATCH_FROM: Final = 4
"""From so many queries on, a matrix product over all beats one product per query."""
_NOMINAL_SMALL_CALL: Final = 0.8
_NOMINAL_LOOKUP: Final = 0.022
_NOMINAL_STREAM: Final = 0.0205
_NOMINAL_FETCH: Final = 0.032
"""A kilobyte in order, and one from anywhere, of what the processor's cache holds: two thirds and a quarter of what
they take from memory, more of which than the cache holds would take too long to try."""
_MAX_PACE: Final = 4.0
_CALIBRATING_ROUNDS: Final = 8
"""The least of so many short measurements counts: beside other work most of them are interrupted."""


@dataclass(frozen=True, slots=True)
class Costs:
    """What the steps cost, in microseconds (kb: 1024 bytes of vector).

    Attributes:
        scan_call: Fixed, per query or per scan.
        stream_kb: Multiplying one kilobyte of vectors that lie in order, for one query.
        gather_row, gather_kb: Fetching a row from anywhere, besides.
        multiply_million: A million multiply-adds of a matrix product, for many queries at once.
        walk_call: Fixed, per query on the graph.
        link, link_kb: Looking at one neighbour in the graph.
        visit: Looking up one node in a mask, besides.
    """

    scan_call: float = 45.0
    stream_kb: float = 0.03
    gather_row: float = 0.03
    gather_kb: float = 0.125
    multiply_million: float = 20.0
    walk_call: float = 30.0
    link: float = 0.03
    link_kb: float = 0.035
    visit: float = 0.09


@dataclass(frozen=True, slots=True)
class Task:
    """What there is to do.

    Attributes:
        queries, k, dim, item_bytes, M, ef: As they say.
        exact: Nothing but a scan will do.
        indexed: Rows in the graph (0: there is none).
        rows: All rows, tail included.
        matching: Rows that match the filter, or all.
        counting: Share of the matching rows that the snapshot sees, estimated.
        gathered: Whether the matching rows' vectors lie together in memory.
        shortfall: Expected share of queries for which an overfetch finds too few.
        repair: What it costs to answer such a query once more, in microseconds; None: as much as a scan.
        gap: Expected candidates that a walk meets beyond those that it would meet by chance.
    """

    queries: int
    k: int
    dim: int
    item_bytes: int
    M: int
    ef: int
    exact: bool
    indexed: int
    rows: int
    matching: int
    counting: float = 1.0
    gathered: bool = False
    shortfall: float = 0.0
    gap: float = 0.0
    repair: float | None = None

    @property
    def share(self) -> float:
        """Which part of all rows matches and is visible."""
        return self.matching * self.counting / max(self.rows, 1)


@dataclass(frozen=True, slots=True)
class Plan:
    """What to do.

    Attributes:
        kind: See the module.
        depth: Candidates to fetch from the graph, or matching ones if ``hnsw_restricted``; 0 for ``exact``.
        cost_exact, cost_graph, cost_restricted: Estimates for the alternatives, in microseconds; inf where one is
            impossible.
    """

    kind: PlanKind
    depth: int
    cost_exact: float
    cost_graph: float
    cost_restricted: float = math.inf

    def to_dict(self) -> dict[str, Any]:
        """For ``explain``."""
        costs = {"exact": self.cost_exact, "graph": self.cost_graph, "restricted": self.cost_restricted}
        estimated = {name: None if math.isinf(cost) else round(cost, 1) for name, cost in costs.items()}
        return {"plan": self.kind, "depth": self.depth, "estimated_us": estimated}


NOMINAL_COSTS: Final = Costs()


def choose_plan(task: Task, costs: Costs = NOMINAL_COSTS) -> Plan:
    """Return the plan that is estimated to be fastest."""
    exact = exact_cost(task, costs)
    if task.exact or task.indexed == 0:
        return Plan("exact", 0, exact, math.inf)
    if task.share >= 1.0:
        depth = max(task.ef, task.k)
        if depth >= task.indexed:
            return Plan("exact", 0, exact, math.inf)
        graph = graph_cost(task, depth, costs)
        return Plan("exact", 0, exact, graph) if exact <= graph else Plan("hnsw", depth, exact, graph)
    depth = overfetch_depth(task)
    if depth >= task.indexed:
        return Plan("exact", 0, exact, math.inf)
    restricted = restricted_cost(task, costs)
    again = exact if task.repair is None else task.queries * task.repair
    graph = graph_cost(task, depth, costs) + task.shortfall * again
    if exact <= min(graph, restricted):
        return Plan("exact", 0, exact, graph, restricted)
    if graph <= restricted:
        return Plan("hnsw_overfetch", depth, exact, graph, restricted)
    return Plan("hnsw_restricted", restricted_depth(task), exact, graph, restricted)


def tried_instead(task: Task, plan: Plan) -> Plan:
    """Return an overfetch instead of a scan, if it is estimated to cost less than twice as much; else the plan."""
    if plan.kind != "exact" or task.exact or plan.cost_graph > _TRIED_UP_TO * plan.cost_exact or task.share >= 1.0:
        return plan
    return replace(plan, kind="hnsw_overfetch", depth=overfetch_depth(task))


def overfetch_depth(task: Task) -> int:
    """How deep an overfetch goes."""
    return max(math.ceil(task.ef * _DEPTH_MARGIN), math.ceil(_SPARE_MATCHES * task.k / max(task.share, 1e-9)))


def restricted_depth(task: Task) -> int:
    """How many matching rows a restricted walk looks for.

    Where matching rows are spread evenly, fewer would do. But where all that is near matches, or all that is beyond a
    gap, this is a walk among those rows like any other, and it takes its full depth to reach the recall of any other.
    Beyond a gap what is asked is unlike what is stored, and takes more: as much as costs little beside the gap.
    """
    wanted = max(task.ef, task.k)
    spare = _SHARE_OF_A_GAP * task.gap * task.share
    return math.ceil(min(wanted + spare, _DEEPER_BEYOND_A_GAP * wanted))


def restricted_cost(task: Task, costs: Costs = NOMINAL_COSTS) -> float:
    """Estimate a restricted walk for all queries; inf if it might have to see the whole graph."""
    wanted = restricted_depth(task)
    if wanted * _SPARE_ALLOWED > task.indexed * task.share:
        return math.inf
    candidates = min(wanted / task.share + task.gap, task.indexed)
    visits = min(_VISITS_OF_DESCENT + _VISITS_PER_CANDIDATE * candidates, task.indexed)
    return graph_cost(task, math.ceil(candidates), costs) + task.queries * visits * costs.visit


def gap_of(visits: float, wanted: int, share: float) -> float:
    """How many candidates more than by chance a restricted walk met that visited so many nodes."""
    return max((visits - _VISITS_OF_DESCENT) / _VISITS_PER_CANDIDATE - wanted / share, 0.0)


def exact_cost(task: Task, costs: Costs = NOMINAL_COSTS) -> float:
    """Estimate a scan of the matching rows for all queries."""
    row_kb = task.dim * task.item_bytes / 1024
    in_order = task.gathered or not worth_fetching(task.matching, task.rows, task.queries)
    rows = task.matching if task.gathered or not in_order else task.rows
    cost = 0.0 if in_order else rows * (costs.gather_row + costs.gather_kb * row_kb)
    if task.item_bytes < 4 and not task.gathered:
        cost += rows * costs.stream_kb * row_kb * 4  # widening float16
    if task.queries < _BATCH_FROM:
        return cost + task.queries * (costs.scan_call + rows * costs.stream_kb * task.dim * 4 / 1024)
    return cost + task.queries * (costs.scan_call + rows * task.dim / 1e6 * costs.multiply_million)


def graph_cost(task: Task, depth: int, costs: Costs = NOMINAL_COSTS) -> float:
    """Estimate walking the graph ``depth`` deep for all queries."""
    # A node is expanded once per place in the list of candidates; most of its links lead to nodes seen before, about M
    # do not. The walk down to the bottom level adds a few dozen.
    looked_at = min((depth + 4 * math.log2(task.indexed + 1)) * task.M, task.indexed)
    return task.queries * (costs.walk_call + looked_at * (costs.link + costs.link_kb * task.dim * 4 / 1024))


def calibrated(stopwatch: Callable[[], float]) -> Costs:
    """Measure the costs on this machine, in about ten milliseconds.

    Args:
        stopwatch: Returns seconds, from any start.
    """
    dim, rows = 256, 8192  # 8 MB: beyond the second-level cache, within the third
    row_kb = dim * 4 / 1024
    matrix = np.ones((rows, dim), np.float32)
    query = matrix[0]
    picked = (np.arange(2048) * 4099) % rows

    def measured(step: Callable[[], object]) -> float:
        spent = []
        for _ in range(_CALIBRATING_ROUNDS):
            started = stopwatch()
            step()
            spent.append((stopwatch() - started) * 1e6)
        return max(min(spent), 1e-3)

    stream_kb = measured(lambda: np.vecdot(matrix, query)) / (rows * row_kb)  # as a scan does it: on one thread
    gather = measured(lambda: matrix.take(picked, axis=0)) / len(picked)
    block = np.ascontiguousarray(matrix[:1024])
    multiply = measured(lambda: matrix[:64] @ block.T) / (64 * 1024 * dim / 1e6)
    few = matrix[:8]
    call = measured(lambda: [few @ query for _ in range(10)]) / 10
    nominal = NOMINAL_COSTS
    # A mask is looked up by a call from C to C, as this is one.
    places, found = list(range(1024)), bytes(1024).__getitem__
    visit = measured(lambda: deque(map(found, places), maxlen=0)) / len(places)
    # A link is a row from anywhere, compared in place: cheaper than fetching it in the nominal ratio.
    fetching = _pace(gather, _NOMINAL_FETCH)
    calling = _pace(call, _NOMINAL_SMALL_CALL)
    return Costs(
        scan_call=nominal.scan_call * calling,
        stream_kb=nominal.stream_kb * _pace(stream_kb, _NOMINAL_STREAM),
        gather_row=nominal.gather_row * fetching,
        gather_kb=nominal.gather_kb * fetching,
        multiply_million=nominal.multiply_million * _pace(multiply, nominal.multiply_million),
        walk_call=nominal.walk_call * calling,
        link=nominal.link * fetching,
        link_kb=nominal.link_kb * fetching,
        visit=nominal.visit * _pace(visit, _NOMINAL_LOOKUP),
    )


def _pace(measured: float, nominal: float) -> float:
    """How much slower than the reference this machine is; a measurement beyond all reason was disturbed."""
    return min(max(measured / nominal, 1 / _MAX_PACE), _MAX_PACE)


@lru_cache(maxsize=4)
def costs_of_this_machine(stopwatch: Callable[[], float]) -> Costs:
    """Return :func:`calibrated` costs, measured once per process and stopwatch."""
    return calibrated(stopwatch)
