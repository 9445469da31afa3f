"""Deletions by filter: what is found at one snapshot is checked again where it lies, when it is deleted."""

from __future__ import annotations

import pytest
from router_workbench import Workbench

from vecraft_data_model.errors import InvalidDataException
from vecraft_data_model.filters import Filter, parse_where
from vecraft_data_model.messages import CommitOne, Committed, Delete, Finish, Matched, Prepare, Transaction
from vecraft_data_model.placement import primary_of
from vecraft_router.splitting import content_hash

IDS = [f"r{number:03d}" for number in range(120)]


@pytest.fixture
def bench() -> Workbench:
    bench = Workbench(3)
    bench.create()
    bench.run(bench.router.commit([bench.put(*IDS[0::2], value=1), bench.put(*IDS[1::2], value=2)]))
    bench.clock.sleep(10)
    bench.asked.clear()
    return bench


@pytest.mark.parametrize("txn_id", [None, "mine"])
def test_delete_where(bench: Workbench, txn_id: str | None) -> None:
    where = parse_where({"value": 2})
    commit = bench.run(bench.router.delete_where("things", where=where, txn_id=txn_id))
    assert commit.result.count == 60 and bench.values(*IDS) == [1, None] * 60
    assert bench.run(bench.router.delete_where("things", where=where)).result.count == 0


def test_delete_where_under_a_chosen_id_happens_once(bench: Workbench) -> None:
    where = parse_where({"value": 2})
    first = bench.run(bench.router.delete_where("things", where=where, txn_id="mine"))
    bench.run(bench.router.commit([bench.put(IDS[1], value=2)]))
    again = bench.run(bench.router.delete_where("things", where=where, txn_id="mine"))
    assert again.result == first.result and bench.values(IDS[1]) == [2]
    with pytest.raises(InvalidDataException, match="other content"):
        bench.run(bench.router.delete_where("things", where=parse_where({"value": 1}), txn_id="mine"))


def test_delete_where_has_the_same_primary_when_it_is_repeated(bench: Workbench) -> None:
    """Its id comes with the error that says "unknown"; what matches then may lie on other shards."""
    bench.run(bench.router.commit([bench.put(IDS[0], value=7)]))
    bench.asked.clear()
    commit = bench.run(bench.router.delete_where("things", where=parse_where({"value": 7})))
    (first,) = {(r.primary, tuple(r.participants)) for _, r in bench.asked if isinstance(r, Prepare)}
    assert first == (primary_of(commit.result.txn_id, [0, 1, 2]), (0, 1, 2))


def test_delete_where_passes_over_what_matches_no_more(bench: Workbench) -> None:
    """Between the look and the commit, one of the records comes to match no more, and another one is written again."""
    done: list[int] = []

    def meddle(shard: int, request: object) -> None:
        if isinstance(request, Prepare) and not done:
            done.append(1)
            for record_id, value in ((IDS[1], 1), (IDS[3], 2)):
                owner = bench.router.state.cluster_map.shard_of(record_id)
                meddler = Transaction(f"meddler {record_id}", b"", [bench.put(record_id, value=value)])
                assert isinstance(bench.execute(owner, CommitOne(meddler)).responses[0], Committed)

    bench.fault = meddle
    commit = bench.run(bench.router.delete_where("things", where=parse_where({"value": 2})))
    assert done and commit.result.count == 59 and bench.values(IDS[1], IDS[3]) == [1, None]
    assert {txn.txn_id for _, txn in prepared(bench)} == {commit.result.txn_id}, "at the first attempt"


def prepared(bench: Workbench) -> list[tuple[int, Transaction]]:
    return [(shard, request.txn) for shard, request in bench.asked if isinstance(request, Prepare)]


@pytest.mark.parametrize("by_filter", [True, False])
def test_who_keeps_meeting_locks_waits_for_them(bench: Workbench, by_filter: bool) -> None:
    """A writer who never pauses holds a lock on one shard, until it meets one on the other."""
    first, last = (next(i for i in IDS if bench.router.state.cluster_map.shard_of(i) == shard) for shard in (0, 1))
    bench.run(bench.router.commit([bench.put(first, last, value=2)]))
    held_since: dict[str, float] = {}

    def writer(shard: int, request: object) -> None:
        if not isinstance(request, Prepare) or shard != 1:
            return
        ours = held_since.setdefault(request.txn.txn_id, bench.clock.now)
        if request.txn.txn_id in bench.shards[0].held and bench.clock.now > ours:
            bench.execute(1, Finish("writer", 0))
        else:
            bench.execute(1, Prepare(Transaction("writer", b"", [bench.put(last, value=2)]), 0, [0, 1]))
            bench.shards[1].outcomes.pop("writer", None)

    bench.fault, began = writer, bench.clock.now
    if by_filter:
        bench.run(bench.router.delete_where("things", where=parse_where({"value": 2})))
        assert bench.values(first, last) == [None, None]
    else:
        bench.run(bench.router.commit([bench.put(first, last, value=3)]))
        assert bench.values(first, last) == [3, 3]
    assert bench.clock.now - began < bench.router.state.config.timeout_s / 2


def test_a_deletion_by_filter_is_known_by_its_filter_in_every_process() -> None:
    """A set of values is walked in another order in another process, or if it was made in another order."""
    values = [f"v{number}" for number in range(64)]
    one, other = (parse_where({"tag": {"$in": order}}) for order in (values, values[::-1]))
    assert one == other
    assert list(one.values) != list(other.values), "or the test shows nothing"  # type: ignore[union-attr]

    def hashed(where: Filter, snapshot: int) -> bytes:
        return content_hash([Delete("c", [], matched=Matched(snapshot, where))])

    assert hashed(one, 5) == hashed(other, 6)
    different = [parse_where(w) for w in ({"$and": [{"a": 1}]}, {"$or": [{"a": 1}]}, {"a": "1"}, {"a": {"$in": ["1"]}})]
    assert len({hashed(where, 5) for where in different}) == len(different)
