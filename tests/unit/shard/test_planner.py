"""The planner: pure, so its decisions can be pinned down."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace

import pytest

from vecraft_shard.planner import NOMINAL_COSTS, Costs, Task, calibrated, choose_plan, exact_cost

WHOLE = Task(
    queries=1, k=10, dim=384, item_bytes=4, M=16, ef=64, exact=False, indexed=100_000, rows=100_000, matching=100_000
)


def test_everything_is_found_by_the_graph_at_the_depth_asked_for() -> None:
    plan = choose_plan(WHOLE)
    assert (plan.kind, plan.depth) == ("hnsw", 64)
    assert choose_plan(replace(WHOLE, ef=200)).depth == 200
    assert choose_plan(replace(WHOLE, k=100)).depth == 100


def test_exactness_small_collections_and_missing_graphs_are_scanned() -> None:
    for task in (
        replace(WHOLE, exact=True),
        replace(WHOLE, indexed=0),
        replace(WHOLE, rows=500, indexed=500, matching=500),
        replace(WHOLE, k=50_000),
        replace(WHOLE, ef=10**9),
    ):
        plan = choose_plan(task)
        assert (plan.kind, plan.depth) == ("exact", 0), task


@pytest.mark.parametrize(
    ("share", "kind"), [(0.001, "exact"), (0.01, "exact"), (0.5, "hnsw_overfetch"), (0.7, "hnsw_overfetch")]
)
def test_filters_are_scanned_when_they_leave_little(share: float, kind: str) -> None:
    plan = choose_plan(replace(WHOLE, matching=int(share * WHOLE.rows)))
    assert plan.kind == kind
    if kind == "hnsw_overfetch":
        assert plan.depth * share >= WHOLE.k * 2 and plan.depth > WHOLE.ef


def test_dead_rows_make_the_graph_be_searched_deeper() -> None:
    plan = choose_plan(replace(WHOLE, counting=0.5))
    assert plan.kind == "hnsw_overfetch" and plan.depth > WHOLE.ef


def test_copies_and_bad_experience_speak_for_a_scan() -> None:
    tenth = replace(WHOLE, matching=WHOLE.rows // 10)
    assert exact_cost(replace(tenth, gathered=True)) < exact_cost(tenth) / 2
    half = replace(WHOLE, matching=WHOLE.rows // 4, rows=WHOLE.rows)
    assert choose_plan(half).cost_graph < choose_plan(replace(half, shortfall=0.9)).cost_graph
    assert choose_plan(replace(tenth, gathered=True, shortfall=0.5)).kind == "exact"


def test_explains_itself_in_json_numbers() -> None:
    assert choose_plan(replace(WHOLE, exact=True)).to_dict()["estimated_us"]["graph"] is None
    explained = choose_plan(WHOLE).to_dict()
    assert explained["plan"] == "hnsw" and explained["estimated_us"]["exact"] > explained["estimated_us"]["graph"]


def test_costs_are_measured_with_the_stopwatch_that_is_handed_in() -> None:
    ticks = itertools.count()
    slow = calibrated(lambda: next(ticks) * 1.0)
    for name in Costs.__dataclass_fields__:
        disturbed = getattr(slow, name)
        assert disturbed == pytest.approx(4 * getattr(NOMINAL_COSTS, name)), "a disturbed measurement is bounded"
    fast = calibrated(lambda: 0.0)
    assert all(0 < getattr(fast, name) < math.inf for name in Costs.__dataclass_fields__)
