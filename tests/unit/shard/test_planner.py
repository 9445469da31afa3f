"""The planner: pure, so its decisions can be pinned down."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace

import pytest

from vecraft_shard.planner import NOMINAL_COSTS, Costs, Task, calibrated, choose_plan, exact_cost, gap_of

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


def test_a_restricted_walk_is_for_filters_that_make_a_fixed_depth_fail() -> None:
    third = replace(WHOLE, rows=1_000_000, indexed=1_000_000, matching=300_000)
    assert choose_plan(third).kind == "hnsw_overfetch"
    uneven = choose_plan(replace(third, shortfall=0.7, gap=400.0))
    assert uneven.kind == "hnsw_restricted" and uneven.depth >= WHOLE.ef
    assert uneven.cost_restricted < min(uneven.cost_graph, uneven.cost_exact)
    assert choose_plan(replace(third, matching=30_000, shortfall=1.0, gap=1e6)).kind == "exact"
    assert math.isinf(choose_plan(replace(WHOLE, matching=250)).cost_restricted), "it might see every node"


def test_what_it_costs_to_ask_again_is_known_from_experience() -> None:
    third = replace(WHOLE, matching=30_000, shortfall=0.5)
    assert choose_plan(third).cost_graph == pytest.approx(
        choose_plan(replace(third, shortfall=0.0)).cost_graph + 0.5 * exact_cost(third)
    ), "a scan, for all that is known"
    cheap = replace(third, repair=100.0, queries=2)
    assert choose_plan(cheap).cost_graph == pytest.approx(
        choose_plan(replace(cheap, shortfall=0.0)).cost_graph + 0.5 * 2 * 100.0
    )


def test_how_far_a_walk_went_is_told_by_the_nodes_it_visited() -> None:
    for share in (0.05, 0.5):
        by_chance = 45 + 1.6 * 64 / share
        assert gap_of(by_chance, 64, share) == pytest.approx(0.0, abs=1e-9)
        assert gap_of(by_chance + 1600, 64, share) == pytest.approx(1000.0)
    assert gap_of(10, 64, 0.5) == 0.0


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
    looks = itertools.count()
    calm = [0.0]

    def mostly_disturbed() -> float:
        looked = next(looks)
        calm[0] += 1.0 if looked % 2 and looked % 12 != 7 else 0.0
        return calm[0]

    assert calibrated(mostly_disturbed) == calibrated(lambda: 0.0), "one measurement of six that is not will do"
    fast = calibrated(lambda: 0.0)
    assert all(0 < getattr(fast, name) < math.inf for name in Costs.__dataclass_fields__)
