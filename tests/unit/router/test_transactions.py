"""Interactive transactions: one snapshot, own writes visible, nothing visible to others before the commit."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from router_workbench import LOSE_REPLY, LOSE_REQUEST, Workbench, vectors_of

from vecraft_data_model.convert import put_of_columns
from vecraft_data_model.errors import (
    CollectionNotExistedException,
    InvalidDataException,
    NullOrZeroVectorException,
    PreconditionFailedError,
    ReadWriteConflictException,
    ShardUnavailableError,
    VectorDimensionMismatchException,
    WriteConflictException,
)
from vecraft_data_model.filters import parse_where, parse_where_document
from vecraft_data_model.messages import CommitOne, Delete, Prepare, Rows, SetAlias
from vecraft_data_model.payload import decode_payload, verify_payloads
from vecraft_data_model.scan_options import ScanOptions
from vecraft_data_model.search_options import INCLUDABLE, SearchOptions
from vecraft_router.write_buffer import WriteBuffer

IDS = [f"r{number:02d}" for number in range(40)]


@pytest.fixture
def bench() -> Workbench:
    bench = Workbench()
    bench.create()
    bench.create("others", metric="cosine")
    bench.run(bench.router.commit([bench.put(*IDS, value=1), SetAlias("stuff", "things")]))
    bench.asked.clear()
    return bench


def values(rows: Rows) -> list[int]:
    assert rows.payloads is not None
    return [(decode_payload(payload).metadata or {})["value"] for payload in rows.payloads]


def test_reads_see_own_writes_and_nobody_elses(bench: Workbench) -> None:
    txn = bench.router.transaction()
    bench.run(txn.put(bench.put(IDS[0], "new", value=2)))
    bench.run(txn.delete(Delete("things", [IDS[1]])))
    bench.run(bench.router.commit([bench.put(IDS[2], "theirs", value=3)]))
    reply = bench.run(txn.get("things", ["new", IDS[2], IDS[1], IDS[0], "theirs"]))
    assert reply.rows.ids == ["new", IDS[2], IDS[0]] and values(reply.rows) == [2, 1, 2]
    assert reply.rows.begin_ts[0] == 0 < reply.rows.begin_ts[1]
    assert bench.run(txn.count("things")).count == 40
    assert bench.run(bench.router.count("things")).count == 41
    assert bench.values(IDS[0], "new") == [1, None]


def test_commit_is_atomic_and_ends_it(bench: Workbench) -> None:
    txn = bench.router.transaction(txn_id="mine")
    bench.run(txn.put(bench.put(*IDS[:5], value=2)))
    bench.run(txn.put(bench.put("o", collection="others", value=2)))
    bench.run(txn.delete(Delete("things", ["new", IDS[5]])))
    commit = bench.run(txn.commit())
    assert txn.ended == "committed" and commit.result.txn_id == "mine" and commit.result.count == 7
    assert bench.values(*IDS[:6]) == [2] * 5 + [None] and bench.values("o", collection="others") == [2]
    for flow in (txn.commit(), txn.get("things", ["a"]), txn.put(bench.put("a")), txn.begin()):
        with pytest.raises(InvalidDataException, match="committed"):
            bench.run(flow)


def test_abort_tells_nobody(bench: Workbench) -> None:
    txn = bench.router.transaction()
    bench.run(txn.put(bench.put(*IDS, value=2)))
    txn.abort()
    assert txn.ended == "aborted" and not bench.sent(Prepare) and not bench.sent(CommitOne)
    with pytest.raises(InvalidDataException, match="aborted"):
        bench.run(txn.commit())


def test_reading_only_commits_without_asking(bench: Workbench) -> None:
    txn = bench.router.transaction(isolation="serializable")
    bench.run(txn.get("things", IDS))
    bench.run(bench.router.commit([bench.put(IDS[0], value=2)]))
    bench.asked.clear()
    commit = bench.run(txn.commit())
    assert commit.result.count == 0 and commit.result.commit_ts == txn.snapshot and not bench.asked


def test_first_committer_wins(bench: Workbench) -> None:
    one, two = bench.router.transaction(), bench.router.transaction()
    for txn, value in ((one, 2), (two, 3)):
        bench.run(txn.get("things", [IDS[0]]))
        bench.run(txn.put(bench.put(IDS[0], IDS[value], value=value)))
    bench.run(two.commit())
    with pytest.raises(WriteConflictException):
        bench.run(one.commit())
    assert one.ended == "aborted" and bench.values(IDS[0], IDS[2], IDS[3]) == [3, 1, 3]


@pytest.mark.parametrize("isolation", ["snapshot", "serializable"])
def test_write_skew_shows_under_snapshot_only(bench: Workbench, isolation: str) -> None:
    one, two = (bench.router.transaction(isolation=isolation) for _ in range(2))
    for txn, mine in ((one, IDS[0]), (two, IDS[1])):
        assert values(bench.run(txn.get("things", [IDS[0], IDS[1]])).rows) == [1, 1]
        bench.run(txn.put(bench.put(mine, value=0)))
    bench.run(one.commit())
    if isolation == "snapshot":
        bench.run(two.commit())
        assert bench.values(IDS[0], IDS[1]) == [0, 0]
    else:
        with pytest.raises(ReadWriteConflictException):
            bench.run(two.commit())
        assert bench.values(IDS[0], IDS[1]) == [0, 1]


def test_an_alias_names_the_same_records(bench: Workbench) -> None:
    txn = bench.router.transaction()
    bench.run(txn.put(bench.put("new", collection="stuff", value=5)))
    assert values(bench.run(txn.get("things", ["new"])).rows) == [5]
    bench.run(txn.delete(Delete("things", ["new"])))
    assert bench.run(txn.get("stuff", ["new"])).rows.ids == []
    with pytest.raises(CollectionNotExistedException, match="nowhere"):
        bench.run(txn.get("nowhere", ["a"]))
    bench.run(txn.commit())


# ------------------------------------------------------------------------------------------------------- search


def test_search_lays_own_writes_over(bench: Workbench) -> None:
    """The answer is the one that a search after the commit gives."""
    queries = np.random.default_rng(5).normal(size=(6, 4)).astype(np.float32)
    txn = bench.router.transaction()
    moved = put_of_columns("things", IDS[:8], vectors_of([f"elsewhere{i}" for i in IDS[:8]]), [{"value": 2}] * 8)
    bench.run(txn.put(moved))
    bench.run(txn.put(bench.put(*[f"new{n}" for n in range(5)], value=3)))
    bench.run(txn.delete(Delete("things", IDS[30:])))
    after = Workbench()
    after.create()
    after.run(after.router.commit([after.put(*IDS[8:30], value=1), moved]))
    after.run(after.router.commit([after.put(*[f"new{n}" for n in range(5)], value=3)]))
    cases: list[dict[str, Any]] = [{}, {"where": parse_where({"value": {"$gte": 2}})}, {"max_distance": 2.5}]
    for kwargs in [*cases, {"include": INCLUDABLE}]:
        wanted = SearchOptions(k=10, exact=True, **kwargs)
        inside = bench.run(txn.search("things", queries, wanted))
        outside = after.run(after.router.search("things", queries, wanted))
        assert any(hits.ids for hits in inside.hits)
        for one, other in zip(inside.hits, outside.hits, strict=True):
            assert (one.ids, one.distances, one.payloads) == (other.ids, other.distances, other.payloads)
            if wanted.with_vectors:
                assert one.vectors is not None and other.vectors is not None
                np.testing.assert_array_equal(one.vectors, other.vectors)


def test_float16_shows_what_will_be_stored(bench: Workbench) -> None:
    bench.create("halves", vector_type="float16")
    txn = bench.router.transaction()
    bench.run(txn.put(bench.put("a", collection="halves")))
    rows = bench.run(txn.get("halves", ["a"])).rows
    assert rows.vectors is not None and rows.payloads is not None
    np.testing.assert_array_equal(rows.vectors, vectors_of(["a"]).astype(np.float16).astype(np.float32))
    verify_payloads(rows.payloads, rows.vectors)
    bench.run(txn.commit())
    shard = bench.shards[bench.router.state.cluster_map.shard_of("a")]
    np.testing.assert_array_equal(shard.records["halves", "a"][0].vector, vectors_of(["a"])[0])  # as handed in


# ------------------------------------------------------------------------------------------------ scan and count


@pytest.mark.parametrize("limit", [1, 3, 100])
def test_scan_lays_own_writes_over(bench: Workbench, limit: int) -> None:
    txn = bench.router.transaction()
    bench.run(txn.put(bench.put("r00a", "r20x", "zz", "a", IDS[7], value=2)))
    bench.run(txn.delete(Delete("things", [*IDS[10:20], IDS[39]])))
    expected = sorted({"r00a", "r20x", "zz", "a", *IDS} - {*IDS[10:20], IDS[39]})
    for where, wanted in ((None, expected), (parse_where({"value": 2}), ["a", "r00a", IDS[7], "r20x", "zz"])):
        seen: list[str] = []
        more = True
        while more:
            after = seen[-1] if seen else None
            page = bench.run(txn.scan_page("things", ScanOptions(after, limit, where)))
            assert len(page.rows.ids) <= limit and (page.rows.ids or not page.more)
            seen += page.rows.ids
            more = page.more
        assert seen == wanted
        assert bench.run(txn.count("things", where=where)).count == len(wanted)


def test_a_page_of_a_scan_costs_what_is_on_it(bench: Workbench, monkeypatch: pytest.MonkeyPatch) -> None:
    txn = bench.router.transaction()
    bench.run(txn.put(bench.put(*(f"s{number:03}" for number in range(300)), value=2)))
    sizes: list[int] = []
    rows = WriteBuffer.rows

    def counted(self: WriteBuffer, ids: Sequence[str], **parts: bool) -> Rows:
        sizes.append(len(ids))
        return rows(self, ids, **parts)

    monkeypatch.setattr(WriteBuffer, "rows", counted)
    page = bench.run(txn.scan_page("things", ScanOptions(limit=50)))
    assert (page.rows.ids, page.more) == ([*IDS, *(f"s{number:03}" for number in range(10))], True)
    page = bench.run(txn.scan_page("things", ScanOptions("s249", 50, parse_where({"value": 2}))))
    assert (page.rows.ids, page.more) == ([f"s{number:03}" for number in range(250, 300)], False)
    assert sizes == [50, 50]


def test_count_with_documents(bench: Workbench) -> None:
    def texts(*ids: str) -> object:
        return put_of_columns("things", list(ids), vectors_of(ids), None, [f"about {i}" for i in ids])

    bench.run(bench.router.commit([texts("d1", "d2")]))  # type: ignore[list-item]
    txn = bench.router.transaction()
    bench.run(txn.put(texts("d2", "d3")))  # type: ignore[arg-type]
    bench.run(txn.delete(Delete("things", ["d1"])))
    about = parse_where_document({"$contains": "about d"})
    assert bench.run(txn.count("things", where_document=about)).count == 2
    assert bench.run(txn.scan_page("things", ScanOptions(where_document=about))).rows.ids == ["d2", "d3"]


def test_delete_where_sees_own_writes(bench: Workbench) -> None:
    txn = bench.router.transaction()
    bench.run(txn.put(bench.put("new", IDS[0], value=2)))
    assert bench.run(txn.delete_where("things", where=parse_where({"value": 2}))) == 2
    assert bench.run(txn.count("things")).count == 39
    bench.run(txn.commit())
    assert bench.values("new", IDS[0], IDS[1]) == [None, None, 1]


# -------------------------------------------------------------------------------------------------- expectations


def test_expectations_hold_against_snapshot_and_buffer(bench: Workbench) -> None:
    txn = bench.router.transaction()
    began = bench.run(txn.get("things", [IDS[0]])).rows.begin_ts[0]
    bench.run(txn.put(bench.put("new", value=2, expect="absent")))
    bench.run(txn.put(bench.put("new", value=3, expect="present")))
    bench.run(txn.put(bench.put(IDS[0], value=3, expect=began)))
    for put in (
        bench.put("new", expect="absent"),
        bench.put("fresh", IDS[3], expect="absent"),
        bench.put("fresh", expect="present"),
        bench.put(IDS[0], expect=began),
    ):
        with pytest.raises(PreconditionFailedError, match="expected"):
            bench.run(txn.put(put))
    with pytest.raises(PreconditionFailedError, match="this transaction has written it"):
        bench.run(txn.put(bench.put(IDS[0], expect=began)))
    bench.run(txn.delete(Delete("things", ["new"], "present")))
    with pytest.raises(PreconditionFailedError):
        bench.run(txn.delete(Delete("things", ["new"], "present")))
    bench.run(txn.commit())
    assert bench.values("new", "fresh", IDS[0]) == [None, None, 3]


def test_vectors_are_checked_when_they_are_put(bench: Workbench) -> None:
    txn = bench.router.transaction()
    with pytest.raises(VectorDimensionMismatchException, match="4 dimensions"):
        bench.run(txn.put(put_of_columns("things", ["a"], np.ones((1, 3)))))
    with pytest.raises(NullOrZeroVectorException, match="'a'"):
        bench.run(txn.put(put_of_columns("others", ["a"], np.zeros((1, 4)))))
    assert bench.run(txn.commit()).result.count == 0


def test_isolation_is_checked(bench: Workbench) -> None:
    with pytest.raises(InvalidDataException, match="isolation"):
        bench.router.transaction(isolation="chaos")


# ------------------------------------------------------------------------------------------------------- unknown


@pytest.mark.parametrize("lost", [LOSE_REQUEST, LOSE_REPLY])
def test_an_unknown_outcome_can_be_asked_for_again(bench: Workbench, lost: str) -> None:
    txn = bench.router.transaction()
    bench.run(txn.put(bench.put(*bench.one_on_each("n"), value=2)))
    bench.fault = lambda shard, request: lost
    with pytest.raises(ShardUnavailableError, match="unknown"):
        bench.run(txn.commit(deadline=bench.router.deadline(1.0)))
    assert txn.ended is None and txn.txn_id is not None
    bench.fault = lambda shard, request: None
    if lost == LOSE_REPLY:  # an abort that the router heard nothing of was carried out, too
        with pytest.raises(WriteConflictException, match="aborted before"):
            bench.run(txn.commit())
        assert txn.ended == "aborted"
    else:
        bench.run(txn.commit())
        assert bench.values(*bench.one_on_each("n")) == [2, 2, 2]
