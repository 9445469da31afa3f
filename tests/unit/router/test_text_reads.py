"""Searches by text over several shards: two questions, one snapshot, one deadline."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from router_workbench import LOSE_REQUEST, Workbench, vectors_of

from vecraft_data_model.convert import put_of_columns
from vecraft_data_model.errors import ShardUnavailableError
from vecraft_data_model.messages import CountWords, Put, Search
from vecraft_data_model.search_options import SearchOptions
from vecraft_router import ReadOptions

TREES = ["oak", "oak elm", "elm ash oak", "ash", "yew", "oak oak oak"]
IDS = [f"r{number:02d}" for number in range(30)]
NEAREST = np.zeros((1, 4), np.float32)
NO_VECTOR = np.empty((1, 0), np.float32)


def put(ids: list[str], texts: list[str]) -> Put:
    return put_of_columns("things", ids, vectors_of(ids), None, texts, None)


def filled(shards: int) -> Workbench:
    bench = Workbench(shards)
    bench.create()
    bench.run(bench.router.commit([put(IDS, TREES * 5)]))
    bench.asked.clear()
    return bench


def wanted(text: str = "oak elm", **arguments: Any) -> SearchOptions:
    return SearchOptions.checked(k=7, query_text=text, **arguments)


@pytest.mark.parametrize("queries", [NEAREST, NO_VECTOR], ids=["hybrid", "text"])
@pytest.mark.parametrize("fusion", ["rrf", (0.4, 0.6)])
def test_a_ranking_does_not_show_the_number_of_shards(queries: Any, fusion: Any) -> None:
    answers = []
    for shards in (1, 2, 3, 7):
        bench = filled(shards)
        found = bench.run(bench.router.search("things", queries, wanted(fusion=fusion)))
        (hits,) = found.hits
        answers.append((hits.ids, hits.scores, hits.payloads))
        assert len(bench.sent(CountWords)) == (shards if shards > 1 else 0), "one shard knows all by itself"
        assert found.statistics is not None and found.statistics.frequencies == (10, 20)
    assert all(answer == answers[0] for answer in answers)
    assert len(answers[0][0]) == 7


def test_both_questions_are_asked_at_one_snapshot() -> None:
    bench = filled(3)
    before = bench.run(bench.router.search("things", NO_VECTOR, wanted()))
    late = put(["late"], ["oak elm elm"])

    def meanwhile(shard: int, request: Any) -> None:
        if isinstance(request, Search):
            bench.fault = lambda shard, request: None
            bench.run(bench.router.commit([late]))

    bench.fault = meanwhile
    bench.asked.clear()
    found = bench.run(bench.router.search("things", NO_VECTOR, wanted()))
    assert [(hits.ids, hits.scores) for hits in found.hits] == [(hits.ids, hits.scores) for hits in before.hits]
    assert found.statistics == before.statistics
    snapshots = {request.snapshot for _, request in bench.asked if isinstance(request, CountWords | Search)}
    assert snapshots == {found.snapshot}
    assert "late" in bench.run(bench.router.search("things", NO_VECTOR, wanted())).hits[0].ids


def test_both_questions_have_one_deadline() -> None:
    bench = filled(3)

    def slow(shard: int, request: Any) -> str | None:
        if isinstance(request, CountWords):
            bench.clock.sleep(bench.router.state.config.timeout_s / 4)
        return LOSE_REQUEST if isinstance(request, Search) else None

    bench.fault = slow
    began = bench.clock.now
    with pytest.raises(ShardUnavailableError):
        bench.run(bench.router.search("things", NEAREST, wanted()))
    assert bench.clock.now - began <= bench.router.state.config.timeout_s


def test_a_partial_ranking_names_what_is_missing() -> None:
    bench = filled(3)
    bench.fault = lambda shard, request: LOSE_REQUEST if shard == 1 else None
    found = bench.run(bench.router.search("things", NEAREST, wanted(), ReadOptions(partial=True)))
    assert found.missing == (1,)
    lost = [record_id for record_id in IDS if bench.router.state.cluster_map.shard_of(record_id) == 1]
    assert found.hits[0].ids and not set(found.hits[0].ids) & set(lost)
