"""Searches of one batch are answered together, and each as if it had been alone."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from shard_workbench import Bench, create, delete, put, vector_of

from vecraft_data_model.errors import CollectionNotExistedException, InvalidDataException
from vecraft_data_model.filters import key_of, parse_where
from vecraft_data_model.messages import (
    Committed,
    Count,
    CountReply,
    Hits,
    Prepared,
    Refused,
    Request,
    Response,
    Search,
    SearchReply,
    SetAlias,
    Undecided,
)
from vecraft_data_model.search_options import SearchOptions
from vecraft_shard import reads
from vecraft_shard import search as searching
from vecraft_shard.batching import answer_all
from vecraft_shard.versions import _MOMENTS_KEPT


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


def test_groups_that_are_named_are_answered_for_and_no_others(bench: Bench) -> None:
    bench.commit(put("far", "near", value=2))

    def members(*groups: int) -> Search:
        asked = search("r1", k=1, group_by="v", group_size=2)
        return msgspec.structs.replace(asked, members_of=(frozenset(map(key_of, groups)),))

    nearest = bench.search(vector_of("r1"), k=2, where=parse_where({"v": 1}), exact=True)
    others = bench.search(vector_of("r1"), k=2, where=parse_where({"v": 2}), exact=True)
    one, two, both, neither = bench.batch(members(1), members(2), members(1, 2), members(3))
    for reply, expected in ((one, nearest), (two, others), (both, [*nearest, *others]), (neither, [])):
        assert isinstance(reply, SearchReply) and sorted(reply.hits[0].ids) == sorted(expected)


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

    answer_all([search("r1", min_ts=3), search("r2", min_ts=9), search("r3", snapshot=5)], answer, lambda *_: None)
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


# ------------------------------------------------------------------------------------------- several snapshots


@pytest.fixture
def walks(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int]]:
    """The snapshot and the number of queries of each search that the shard really carries out."""
    seen: list[tuple[int, int]] = []
    run = reads.run_search

    def counted(view: reads.CollectionView, request: Search, *rest: Any) -> Any:
        seen.append((view.snapshot, len(request.queries)))
        return run(view, request, *rest)

    monkeypatch.setattr(reads, "run_search", counted)
    return seen


def commit_ts(reply: Response) -> int:
    assert isinstance(reply, Committed)
    return reply.commit_ts


def test_snapshots_between_which_nothing_changed_are_searched_as_one(
    bench: Bench, walks: list[tuple[int, int]]
) -> None:
    before = commit_ts(bench.commit(put("new", value=1)))
    bench.pass_time(5)
    change = commit_ts(bench.commit(put("r1", value=2), delete("r2")))
    moments = [change + 2, before + 1, change - 1, change, before, change + 1]
    requests = [search(f"r{i}", k=60, snapshot=snapshot) for i, snapshot in enumerate(moments)]
    together = bench.batch(*requests)
    assert sorted(walks) == [(change - 1, 3), (change + 2, 3)]
    for request, reply in zip(requests, together, strict=True):
        alone = bench.ask(request)
        assert isinstance(reply, SearchReply) and isinstance(alone, SearchReply)
        assert (reply.snapshot, reply.hits) == (request.snapshot, alone.hits)
    assert {"r2" in reply.hits[0].ids for reply in together if isinstance(reply, SearchReply)} == {True, False}


def test_what_is_undecided_holds_up_only_those_that_would_see_it(bench: Bench) -> None:
    settled = commit_ts(bench.commit(put("new", value=1)))
    bench.pass_time(5)
    prepared = bench.prepare(put("r1", value=2), txn_id="t", primary=0, participants=[0, 1])
    assert isinstance(prepared, Prepared)
    snapshots = [settled, prepared.prepare_ts, settled + 1, prepared.prepare_ts + 1]
    answers = bench.batch(*[search("r1", snapshot=snapshot) for snapshot in snapshots])
    assert [type(answer) for answer in answers] == [SearchReply, Undecided, SearchReply, Undecided]


def test_a_commit_that_comes_between_the_look_and_the_read_is_noticed() -> None:
    """At that look it was under way, so all snapshots seemed to see the same."""
    asked: list[tuple[int, int]] = []
    looks = iter([[], [15], [15]])

    def answer(request: Request) -> Response:
        assert isinstance(request, Search)
        asked.append((request.snapshot, len(request.queries)))
        return SearchReply(request.snapshot, [Hits([str(request.snapshot)], [0.0])] * len(request.queries))

    snapshots = [10, 20, 10, 12]
    replies = answer_all([search("r1", snapshot=ts) for ts in snapshots], answer, lambda *_: next(looks))
    assert asked == [(20, 4), (10, 2), (20, 1), (12, 1)]
    assert [reply.hits[0].ids for reply in replies if isinstance(reply, SearchReply)] == [[str(ts)] for ts in snapshots]


def test_a_name_that_meant_something_else_is_read_snapshot_by_snapshot(bench: Bench) -> None:
    first = commit_ts(bench.commit(create("d"), SetAlias("a", "c")))
    second = commit_ts(bench.commit(SetAlias("a", "d")))
    requests = [search("r1", collection="a", snapshot=ts) for ts in (first, second, first)]
    assert [len(reply.hits[0].ids) for reply in bench.batch(*requests) if isinstance(reply, SearchReply)] == [3, 0, 3]


def test_changes_are_known_for_as_long_as_they_are_remembered(bench: Bench) -> None:
    changes = bench.shard._reader.changes
    early = commit_ts(bench.commit(put("a")))
    kept = [commit_ts(bench.commit(put("a", value=i))) for i in range(_MOMENTS_KEPT)]
    assert changes("c", early, kept[-1]) == kept
    assert changes("c", kept[0], kept[3]) == kept[1:4]
    assert changes("c", early - 1, kept[-1]) is None
    bench.reopen()
    assert bench.shard._reader.changes("c", kept[-2], kept[-1]) is None
    assert bench.shard._reader.changes("c", kept[-1], kept[-1] + 1) == []
    assert bench.shard._reader.changes("nope", kept[-1], kept[-1] + 1) is None


@pytest.mark.parametrize("seed", range(5))
def test_random_searches_at_random_moments_are_answered_as_alone(bench: Bench, seed: int) -> None:
    rng = random.Random(seed)
    moments: list[int] = [commit_ts(bench.commit(put("r0")))]
    for _ in range(12):
        bench.pass_time(rng.randrange(3))
        names = [f"r{rng.randrange(70)}" for _ in range(3)]
        reply = bench.commit(rng.choice([put, delete])(*sorted(set(names))))
        moments.append(commit_ts(reply))
    requests = [
        search(f"r{rng.randrange(70)}", k=70, snapshot=rng.choice(moments) + rng.randrange(2)) for _ in range(40)
    ]
    for request, reply in zip(requests, bench.batch(*requests), strict=True):
        alone = bench.ask(request)
        assert isinstance(reply, SearchReply) and isinstance(alone, SearchReply)
        assert (reply.snapshot, reply.hits) == (alone.snapshot, alone.hits)
