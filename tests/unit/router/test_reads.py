"""Reads over several shards: one snapshot, nothing skipped, and answers that do not show how many shards there are."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import numpy as np
import pytest
from router_workbench import LOSE_REPLY, LOSE_REQUEST, START_MS, Workbench, fail_times, vectors_of

from vecraft_data_model.errors import (
    ClockSkewError,
    CollectionNotExistedException,
    InvalidDataException,
    ShardUnavailableError,
    SnapshotTooOldError,
    StaleMapError,
    TimeoutException,
)
from vecraft_data_model.filters import key_of, parse_where
from vecraft_data_model.hlc import timestamp
from vecraft_data_model.messages import (
    CHOOSE_SNAPSHOT,
    Barrier,
    Finish,
    Get,
    Hits,
    ListCollections,
    PinSnapshot,
    Prepare,
    Refused,
    Resolve,
    Scan,
    Search,
    SearchReply,
    SetEf,
    Status,
    StatusReply,
)  # fmt: skip
from vecraft_data_model.placement import initial_map
from vecraft_data_model.scan_options import ScanOptions
from vecraft_data_model.search_options import INCLUDABLE, SearchOptions
from vecraft_router import Bounded, ReadOptions
from vecraft_router.effects import Ask, Effect, Flow, Sleep
from vecraft_router.results import Found

IDS = [f"r{number:03d}" for number in range(120)]


def filled(shards: int) -> Workbench:
    bench = Workbench(shards)
    bench.create()
    bench.run(bench.router.commit([bench.put(*IDS[0::2], value=1), bench.put(*IDS[1::2], value=2)]))
    bench.clock.sleep(10)
    bench.asked.clear()
    return bench


@pytest.fixture
def bench() -> Workbench:
    return filled(3)


# --------------------------------------------------------------------------------------------- the same answers


@pytest.mark.parametrize("where", [None, {"value": 2}, {"value": 77}])
def test_a_search_does_not_show_the_number_of_shards(where: dict[str, int] | None) -> None:
    queries = np.random.default_rng(3).normal(size=(5, 4)).astype(np.float32)
    parsed = None if where is None else parse_where(where)
    answers = []
    for shards in (1, 2, 3, 7):
        bench = filled(shards)
        found = bench.run(
            bench.router.search("things", queries, SearchOptions(k=9, where=parsed, include=INCLUDABLE))
        )
        assert found.missing == () and found.explain is None
        answers.append([(hits.ids, hits.distances, hits.payloads) for hits in found.hits])
        for hits in found.hits:
            if hits.ids:
                assert hits.vectors is not None
                np.testing.assert_array_equal(hits.vectors, vectors_of(hits.ids))
            assert sorted(zip(hits.distances, hits.ids, strict=True)) == list(
                zip(hits.distances, hits.ids, strict=True)
            )
    assert all(answer == answers[0] for answer in answers)
    assert [len(ids) for ids, _, _ in answers[0]] == [0 if where == {"value": 77} else 9] * 5


def test_ties_go_by_record_id(bench: Workbench) -> None:
    twins = bench.one_on_each("twin")
    put = bench.put(*twins)
    put.vectors[:] = 9.0
    bench.run(bench.router.commit([put]))
    found = bench.run(bench.router.search("things", np.full((1, 4), 9, np.float32), SearchOptions(k=2)))
    assert found.hits[0].ids == sorted(twins)[:2] and found.hits[0].distances == [0.0, 0.0]


def test_get_keeps_the_order_that_was_asked_for(bench: Workbench) -> None:
    wanted = [IDS[77], "missing", IDS[3], IDS[50], IDS[1], "also missing"]
    reply = bench.run(bench.router.get("things", wanted))
    assert reply.rows.ids == [IDS[77], IDS[3], IDS[50], IDS[1]]
    assert reply.rows.vectors is not None
    np.testing.assert_array_equal(reply.rows.vectors, vectors_of(reply.rows.ids))
    assert bench.run(bench.router.get("things", [])).rows.ids == []
    assert bench.run(bench.router.get("things", ["missing"])).rows.ids == []


@pytest.mark.parametrize("limit", [1, 7, 50, 120, 500])
@pytest.mark.parametrize("shards", [1, 3])
def test_pages_make_up_the_whole(limit: int, shards: int) -> None:
    bench = filled(shards)
    seen: list[str] = []
    more, after, options = True, None, ReadOptions()
    while more:
        page = bench.run(bench.router.scan_page("things", ScanOptions(after, limit), options))
        assert len(page.rows.ids) == limit or not page.more
        seen += page.rows.ids
        more, after, options = page.more, page.rows.ids[-1], ReadOptions(as_of=page.snapshot)
    assert seen == IDS


def test_a_page_asks_for_little_more_than_it_needs(bench: Workbench) -> None:
    bench.run(bench.router.scan_page("things", ScanOptions(limit=60)))
    asked = [request.options.limit for _, request in bench.asked if isinstance(request, Scan)]
    assert sum(asked[:3]) < 2 * 60 and len(asked) <= 5


def test_a_page_of_uneven_shards(bench: Workbench) -> None:
    """All first ids on one shard: the others have to be held back until that one has caught up."""
    early = bench.ids_on(1, 130, prefix="a")
    bench.run(bench.router.commit([bench.put(*early)]))
    page = bench.run(bench.router.scan_page("things", ScanOptions(limit=len(early) + 10)))
    assert page.rows.ids == sorted([*early, *IDS])[: len(early) + 10] and page.more


def test_count_adds_up(bench: Workbench) -> None:
    assert bench.run(bench.router.count("things")).count == 120
    assert bench.run(bench.router.count("things", where=parse_where({"value": 2}))).count == 60


def test_describe_adds_up(bench: Workbench) -> None:
    info = bench.run(bench.router.describe("things"))
    assert info.count == 120 and len(info.shards) == 3 and info.schema.dim == 4


def test_list_collections_asks_one_shard_that_can_be_reached(bench: Workbench) -> None:
    bench.fault = lambda shard, request: LOSE_REQUEST if shard != 2 else None
    reply = bench.run(bench.router.list_collections())
    assert [schema.name for schema in reply.collections] == ["things"]
    assert bench.sent(ListCollections)[-1] == 2 and bench.clock.now == 10
    bench.fault = lambda shard, request: LOSE_REQUEST
    with pytest.raises(ShardUnavailableError):
        bench.run(bench.router.list_collections(ReadOptions(deadline=bench.router.deadline(1.0))))


def test_explain_is_by_shard(bench: Workbench) -> None:
    found = bench.run(bench.router.search("things", np.zeros((1, 4), np.float32), SearchOptions(k=1, explain=True)))
    assert found.explain == {shard: {"plan": "exact"} for shard in range(3)}


# -------------------------------------------------------------------------------------------------- snapshots


def test_every_shard_is_asked_at_one_snapshot(bench: Workbench) -> None:
    bench.run(bench.router.count("things"))
    snapshots = {request.snapshot for _, request in bench.asked}  # type: ignore[union-attr]
    assert len(snapshots) == 1 and CHOOSE_SNAPSHOT not in snapshots


def test_one_shard_alone_chooses_above_what_was_seen(bench: Workbench) -> None:
    token = timestamp(bench.clock.now_ms() + 3)
    bench.run(bench.router.get("things", [IDS[0]], ReadOptions(min_ts=token)))
    [request] = [request for _, request in bench.asked if isinstance(request, Get)]
    assert request.snapshot == CHOOSE_SNAPSHOT and request.min_ts == token


def test_session_reads_its_own_writes_through_any_router(bench: Workbench) -> None:
    commit = bench.run(bench.router.commit([bench.put(*bench.one_on_each("own"))]))
    bench.clock.now -= 0.4  # the other router's clock is behind
    other = Workbench(3)
    other.clock, other.shards = bench.clock, bench.shards
    other.router.state.clock = bench.clock
    count = other.run(other.router.count("things", options=ReadOptions(min_ts=commit.result.commit_ts)))
    assert count.count == 123 and count.snapshot >= commit.result.commit_ts


def test_a_token_from_the_far_future_is_refused(bench: Workbench) -> None:
    before = bench.router.state.hlc.last
    for shards in (bench, filled(1)):
        with pytest.raises(ClockSkewError):
            shards.run(shards.router.count("things", options=ReadOptions(min_ts=timestamp(START_MS + 60_000))))
    assert bench.router.state.hlc.last == before


def test_strong_waits_for_what_was_undecided_on_arrival(bench: Workbench) -> None:
    """The commit is acknowledged, but two of the shards have not heard of it."""
    bench.background = False
    new = bench.one_on_each("new")
    commit = bench.run(bench.router.commit([bench.put(*new)]))
    other = Workbench(3, seed=2)
    other.shards, other.clock = bench.shards, bench.clock
    other.router.state.clock = bench.clock
    told: list[int] = []

    def tell(shard: int, request: object) -> None:
        if isinstance(request, Barrier) and request.waiting_for is not None and not told:
            told.append(shard)
            bench.drain()

    other.fault = tell
    reply = other.run(other.router.count("things", options=ReadOptions("strong")))
    assert told and reply.count == 123 and reply.snapshot >= commit.result.commit_ts
    again = [request.waiting_for for _, request in other.asked if isinstance(request, Barrier)]
    assert again[:3] == [None] * 3 and set(map(tuple, again[3:])) == {(commit.result.txn_id,)}  # type: ignore[arg-type]


@pytest.mark.parametrize("shards", [1, 3])
def test_stale_reads_do_not_wait(shards: int) -> None:
    bench = filled(shards)
    bench.background = False
    bench.run(bench.router.commit([bench.put(*IDS[:20], value=9)]))
    for options in (ReadOptions("eventual"), ReadOptions(Bounded(1000))):
        started = bench.clock.now
        count = bench.run(bench.router.count("things", where=parse_where({"value": 9}), options=options)).count
        assert bench.clock.now == started and count == (20 if shards == 1 else 0)


@pytest.mark.parametrize("options", [ReadOptions("eventual"), ReadOptions(Bounded(2000))])
def test_a_young_collection_is_found_by_stale_reads(options: ReadOptions) -> None:
    bench = Workbench(3)
    bench.clock.sleep(100)
    bench.create()
    assert bench.run(bench.router.count("things", options=options)).count == 0
    with pytest.raises(CollectionNotExistedException):
        bench.run(bench.router.count("nothing", options=options))


def test_as_of(bench: Workbench) -> None:
    before = bench.run(bench.router.choose_snapshot())
    moment = datetime.fromtimestamp(bench.clock.now_ms() / 1000, UTC)
    bench.clock.sleep(5)
    bench.run(bench.router.commit([bench.put(*bench.one_on_each("new"))]))
    for as_of in (before, moment):
        assert bench.run(bench.router.count("things", options=ReadOptions(as_of=as_of))).count == 120
    assert bench.run(bench.router.count("things")).count == 123


@pytest.mark.parametrize("as_of", [timestamp(START_MS + 3_600_000), -1, 2**63, True])
def test_as_of_what_cannot_be_read(bench: Workbench, as_of: int) -> None:
    with pytest.raises(InvalidDataException):
        bench.run(bench.router.count("things", options=ReadOptions(as_of=as_of)))
    assert not bench.asked


def test_as_of_zero_is_not_an_invitation_to_choose(bench: Workbench) -> None:
    with pytest.raises(CollectionNotExistedException):
        bench.run(bench.router.get("things", [IDS[0]], ReadOptions(as_of=0)))


def test_options_are_checked() -> None:
    with pytest.raises(InvalidDataException, match="consistency"):
        ReadOptions("linear")
    for bound in (-1, True, 1.5, 10**12):
        with pytest.raises(InvalidDataException, match="max_staleness_ms"):
            Bounded(bound)  # type: ignore[arg-type]


# ------------------------------------------------------------------------------------------- what is in the way


def test_a_read_waits_for_the_decision(bench: Workbench) -> None:
    bench.background = False
    bench.run(bench.router.commit([bench.put(*bench.one_on_each("new"))]))
    finish = bench.clock.now + 0.05

    def later(shard: int, request: object) -> None:
        if bench.clock.now >= finish:
            bench.drain()

    bench.fault = later
    assert bench.run(bench.router.count("things")).count == 123
    assert finish <= bench.clock.now < finish + 0.2 and not bench.sent(Resolve)


@pytest.mark.parametrize("decided", [True, False])
def test_a_read_has_the_primary_decide_what_is_old(bench: Workbench, decided: bool) -> None:
    """Its router is gone: before the others were told, or before it could decide."""
    bench.background = False
    new = bench.one_on_each("new")
    if decided:
        bench.run(bench.router.commit([bench.put(*new)]))
    else:
        bench.fault = lambda shard, request: None if isinstance(request, Prepare) else LOSE_REQUEST
        with pytest.raises((ShardUnavailableError, TimeoutException)):
            bench.run(bench.router.commit([bench.put(*new)], deadline=bench.router.deadline(0.2)))
        bench.fault = lambda shard, request: None
    bench.spawned.clear()
    assert any(shard.held for shard in bench.shards)
    started = bench.clock.now
    assert bench.run(bench.router.count("things")).count == (123 if decided else 120)
    assert bench.sent(Resolve) and bench.sent(Finish) and bench.clock.now - started < 2
    assert not any(shard.held for shard in bench.shards if shard.number in bench.sent(Finish))


def test_a_read_never_skips_what_stays_undecided(bench: Workbench) -> None:
    bench.background = False
    bench.run(bench.router.commit([bench.put(*bench.one_on_each("new"))]))
    bench.fault = lambda shard, request: LOSE_REQUEST if isinstance(request, Resolve) else None
    with pytest.raises(TimeoutException, match="undecided"):
        bench.run(bench.router.count("things", options=ReadOptions(deadline=bench.router.deadline(3.0))))


@pytest.mark.parametrize("lost", [LOSE_REQUEST, LOSE_REPLY])
@pytest.mark.parametrize("shards", [1, 3])
def test_a_shard_that_restarts_is_waited_for(shards: int, lost: str) -> None:
    bench = filled(shards)
    bench.fault = fail_times(6, lost)
    found = bench.run(bench.router.search("things", np.zeros((1, 4), np.float32), SearchOptions(k=120)))
    assert len(found.hits[0].ids) == 120


def test_a_shard_that_stays_away_fails_the_read(bench: Workbench) -> None:
    bench.fault = lambda shard, request: LOSE_REQUEST if shard == 1 else None
    with pytest.raises(ShardUnavailableError, match="shard 1"):
        bench.run(bench.router.count("things", options=ReadOptions(deadline=bench.router.deadline(1.0))))
    assert 10.5 < bench.clock.now <= 11


def test_partial_names_the_missing(bench: Workbench) -> None:
    bench.fault = lambda shard, request: LOSE_REQUEST if shard == 1 else None
    for level in ("session", "strong"):
        options = ReadOptions(level, partial=True)
        found = bench.run(bench.router.search("things", np.zeros((1, 4), np.float32), SearchOptions(k=120), options))
        owned = [i for i in IDS if bench.router.state.cluster_map.shard_of(i) != 1]
        assert found.missing == (1,) and sorted(found.hits[0].ids) == owned
    bench.fault = lambda shard, request: LOSE_REQUEST
    with pytest.raises(ShardUnavailableError, match="none of the shards"):
        zeros = np.zeros((1, 4), np.float32)
        bench.run(bench.router.search("things", zeros, SearchOptions(), ReadOptions(partial=True)))


def test_a_refusal_is_the_answer(bench: Workbench) -> None:
    for shard in bench.shards:
        shard.safe_point = timestamp(START_MS + 5000)
    with pytest.raises(SnapshotTooOldError):
        bench.run(bench.router.count("things", options=ReadOptions(as_of=timestamp(START_MS + 1))))
    with pytest.raises(CollectionNotExistedException):
        bench.run(bench.router.search("nothing", np.zeros((1, 4), np.float32), SearchOptions()))
    assert bench.clock.now == 10


@pytest.mark.parametrize("shards", [1, 3])
def test_a_stale_map_is_refreshed(shards: int) -> None:
    bench = filled(shards)
    for shard in bench.shards:
        shard.map_epoch = 2
    bench.newest_map = type(initial_map(shards))(2, initial_map(shards).slots, shards)
    found = bench.run(bench.router.search("things", np.zeros((1, 4), np.float32), SearchOptions(k=7)))
    assert len(found.hits[0].ids) == 7
    assert bench.router.state.cluster_map.epoch == 2
    for shard in bench.shards:
        shard.map_epoch = 3
    with pytest.raises(StaleMapError):
        bench.run(bench.router.count("things", options=ReadOptions(deadline=bench.router.deadline(1.0))))


def test_a_scan_survives_a_change_of_the_map(bench: Workbench) -> None:
    """The map changes between two questions of one page: the page begins again, at the same snapshot."""
    early = bench.ids_on(1, 130, prefix="a")
    bench.run(bench.router.commit([bench.put(*early)]))
    bench.asked.clear()

    def move(shard: int, request: object) -> None:
        if len(bench.sent(Scan)) == 4:  # the second round: the shard that is behind
            bench.newest_map = type(initial_map(3))(2, initial_map(3).slots, 3)
            for each in bench.shards:
                each.map_epoch = 2

    bench.fault = move
    page = bench.run(bench.router.scan_page("things", ScanOptions(limit=100)))
    assert bench.router.state.cluster_map.epoch == 2 and page.rows.ids == sorted([*early, *IDS])[:100]
    assert len({request.snapshot for _, request in bench.asked if isinstance(request, Scan)}) == 1


# ------------------------------------------------------------------------------------------------------ service


def test_pin_and_release(bench: Workbench) -> None:
    pin = bench.run(bench.router.pin(ttl_ms=1000))
    assert all(shard.pins == {pin.pin_id: pin.snapshot} for shard in bench.shards)
    bench.run(bench.router.release(pin.pin_id))
    assert not any(shard.pins for shard in bench.shards)


def test_a_pin_that_comes_too_late_stays_nowhere(bench: Workbench) -> None:
    bench.shards[2].safe_point = timestamp(START_MS + 20_000)
    with pytest.raises(SnapshotTooOldError):
        bench.run(bench.router.pin(timestamp(START_MS + 9000), ttl_ms=1000, pin_id="p"))
    assert bench.sent(PinSnapshot) and not any(shard.pins for shard in bench.shards)


def test_service_reaches_every_shard(bench: Workbench) -> None:
    bench.fault = fail_times(4, LOSE_REQUEST)
    bench.run(bench.router.set_ef("things", 99))
    assert all(shard.ef == {"things": 99} for shard in bench.shards) and set(bench.sent(SetEf)) == {0, 1, 2}
    bench.run(bench.router.checkpoint(compact=True))


def test_status_asks_once_and_hides_nothing(bench: Workbench) -> None:
    bench.fault = lambda shard, request: LOSE_REQUEST if shard == 1 else None
    status = bench.run(bench.router.status())
    assert isinstance(status[1], Refused) and isinstance(status[0], StatusReply)
    assert bench.sent(Status) == [0, 1, 2]


def asked_again(bench: Workbench, options: ReadOptions) -> tuple[Flow[Found], Ask, Ask]:
    """A search for groups three seconds after it began, and its two questions: shard 1 may have more of r0's group."""
    flow = bench.router.search("things", vectors_of(["a"]), SearchOptions(k=1, group_by="g", group_size=2), options)
    first = next(flow)
    bench.clock.sleep(3)
    second = flow.send(
        {shard: SearchReply(1, [Hits([f"r{shard}"], [float(shard)], [b""], groups=[shard])]) for shard in (0, 1)}
    )
    assert isinstance(first, Ask) and isinstance(second, Ask)
    assert (set(first.requests), set(second.requests)) == ({0, 1}, {1})
    return flow, first, second


def test_both_questions_of_a_search_for_groups_have_one_deadline() -> None:
    _, first, second = asked_again(Workbench(2), ReadOptions())
    assert second.deadline == first.deadline


@pytest.mark.parametrize("partial", [True, False])
def test_a_shard_fails_between_the_questions_of_a_search_for_groups(partial: bool) -> None:
    bench = Workbench(2)
    flow, _, second = asked_again(bench, ReadOptions(partial=partial))
    effect: Effect = second
    ended: Any = None
    while ended is None:
        try:
            if isinstance(effect, Sleep):
                bench.clock.sleep(effect.seconds)
            down = {1: Refused(ShardUnavailableError("shard 1 is down"))}
            effect = flow.send(down if isinstance(effect, Ask) else None)
        except (StopIteration, ShardUnavailableError) as end:
            ended = end
    if partial:
        assert ended.value.missing == (1,) and ended.value.hits[0].ids == ["r0"]
    else:
        assert isinstance(ended, ShardUnavailableError)


@pytest.mark.parametrize("count", [1, 20])
def test_one_round_asks_for_the_missing_members_of_all_queries(count: int) -> None:
    """The shard that names the nearer group takes turns; the other may have more of it."""
    bench, wanted = Workbench(2), SearchOptions(k=1, group_by="g", group_size=2)
    flow = bench.router.search("things", vectors_of([f"q{n}" for n in range(count)]), wanted)
    asked = [next(flow)]

    def named(shard: int) -> SearchReply:
        distances = [float(number % 2 != shard) for number in range(count)]
        return SearchReply(1, [Hits([f"r{shard}"], [distance], [b""], groups=[shard]) for distance in distances])

    def member(number: int) -> Hits:
        return Hits([f"m{number}"], [2.0], [b""], groups=[number % 2])

    asked.append(flow.send({0: named(0), 1: named(1)}))
    others = {shard: [number for number in range(count) if number % 2 != shard] for shard in (0, 1)}
    others = {shard: numbers for shard, numbers in others.items() if numbers}
    with pytest.raises(StopIteration) as end:
        flow.send({shard: SearchReply(1, list(map(member, numbers))) for shard, numbers in others.items()})
    assert [hits.ids for hits in end.value.value.hits] == [[f"r{n % 2}", f"m{n}"] for n in range(count)]
    first, second = asked
    assert isinstance(first, Ask) and isinstance(second, Ask) and set(second.requests) == set(others)
    for shard, request in second.requests.items():
        assert isinstance(request, Search) and isinstance(first.requests[shard], Search)
        assert request.members_of == (frozenset([key_of(1 - shard)]),) * len(others[shard])
        np.testing.assert_array_equal(request.queries, first.requests[shard].queries[others[shard]])
