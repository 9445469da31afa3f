"""Searches of one batch are answered together, and each as if it had been alone."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from shard_workbench import Bench, create, put, vector_of

from vecraft_data_model.errors import CollectionNotExistedException, InvalidDataException
from vecraft_data_model.filters import parse_where
from vecraft_data_model.messages import Count, CountReply, Refused, Request, Response, Search, SearchReply
from vecraft_data_model.search_options import SearchOptions
from vecraft_shard import search as searching
from vecraft_shard.batching import answer_all


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    bench = Bench(tmp_path / "shard")
    bench.commit(create())
    bench.commit(put(*[f"r{i}" for i in range(60)], value=1))
    yield bench
    bench.shard.abandon()


def search(name: str, k: int = 3, **options: object) -> Search:
    place = {field: options.pop(field) for field in ("collection", "min_ts", "snapshot") if field in options}
    wanted = SearchOptions(k=k, **options)  # type: ignore[arg-type]
    return Search(queries=np.array([vector_of(name)], np.float32), options=wanted, **{"collection": "c", **place})  # type: ignore[arg-type]


def test_each_answer_is_what_it_would_be_alone(bench: Bench) -> None:
    requests: list[Request] = [
        search("r1"),
        search("r2", k=5),
        search("r3"),
        Count(collection="c"),
        search("r4", where=parse_where({"v": 1})),
        search("r5", where=parse_where({"v": 2})),
        search("r6", where=parse_where({"v": 1})),
        search("r7", exact=True),
        search("r8"),
    ]
    together = bench.batch(*requests)
    alone = [bench.ask(request) for request in requests]
    for one, other in zip(together, alone, strict=True):
        if isinstance(one, SearchReply) and isinstance(other, SearchReply):
            assert one.hits == other.hits
        else:
            assert isinstance(one, CountReply)
            assert isinstance(other, CountReply)
            assert one.count == other.count


def test_a_bad_query_harms_no_other(bench: Bench) -> None:
    bad = Search(collection="c", queries=np.full((1, 4), np.nan, np.float32), options=SearchOptions(k=3))
    answers = bench.batch(search("r1"), bad, search("r2"), search("r3", collection="nope"))
    assert [type(answer) for answer in answers] == [SearchReply, Refused, SearchReply, Refused]
    assert isinstance(answers[1], Refused)
    assert isinstance(answers[1].error, InvalidDataException)
    assert isinstance(answers[3], Refused)
    assert isinstance(answers[3].error, CollectionNotExistedException)


def test_alike_searches_are_one_and_a_session_is_never_behind_itself() -> None:
    asked: list[Search] = []

    def answer(request: Request) -> Response:
        assert isinstance(request, Search)
        asked.append(request)
        return SearchReply(max(request.min_ts, 7), [])

    answer_all([search("r1", min_ts=3), search("r2", min_ts=9), search("r3", snapshot=5)], answer)
    assert [(len(request.queries), request.min_ts, request.snapshot) for request in asked] == [(2, 9, 0), (1, 0, 5)]


def test_a_search_that_is_explained_is_carried_out_once(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is said of it is then said of the search that gave the answer, not of another one that came later."""
    ran = []
    run = searching._Execution.run

    def counted(execution: searching._Execution) -> object:
        ran.append(execution)
        return run(execution)

    monkeypatch.setattr(searching._Execution, "run", counted)
    plain, explained = bench.ask(search("r1", exact=True)), bench.ask(search("r1", exact=True, explain=True))
    assert isinstance(plain, SearchReply) and isinstance(explained, SearchReply)
    assert explained.hits == plain.hits and explained.explain is not None and explained.explain["plan"] == "exact"
    assert len(ran) == 2
