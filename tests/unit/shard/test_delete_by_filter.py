"""A shard checks again what a filter found elsewhere in time: at admission, and it logs what came of that."""

from __future__ import annotations

from pathlib import Path

import pytest
from shard_workbench import Bench, create, delete, put

from vecraft_data_model.errors import CollectionNotExistedException, WriteConflictException
from vecraft_data_model.filters import parse_where, parse_where_document
from vecraft_data_model.messages import (
    CommitOne,
    Committed,
    Decide,
    Delete,
    DropCollection,
    Finish,
    Matched,
    Mutation,
    Prepared,
    Refused,
    SetAlias,
)

IDS = ["same", "again", "other", "gone", "new"]


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    """A collection in which four records matched at a snapshot; since then, one alone has stayed as it was."""
    bench = Bench(tmp_path)
    bench.commit(create())
    bench.commit(put("same", "again", "other", "gone", value=1))
    return bench


def found(bench: Bench, *ids: str, collection: str = "c") -> Delete:
    """The deletion of what matched ``{"v": 1}`` until now."""
    return Delete(collection, list(ids), matched=Matched(bench.shard.clock_last, parse_where({"v": 1})))


def change(bench: Bench) -> None:
    bench.commit(put("again", value=1))
    bench.commit(put("other", value=2))
    bench.commit(delete("gone"))
    bench.commit(put("new", value=1))


def refusal(answer: object) -> Exception:
    assert isinstance(answer, Refused), answer
    return answer.error


def test_only_what_still_matches_is_deleted_and_counted(bench: Bench) -> None:
    deletion = found(bench, "same", "again", "other", "gone")
    change(bench)
    answer = bench.commit(deletion, txn_id="t")
    assert isinstance(answer, Committed)
    assert answer.count == 2
    assert bench.get(*IDS) == {"other": {"v": 2}, "new": {"v": 1}}
    assert bench.commit(deletion, txn_id="t") == answer


def test_a_condition_on_the_document_is_checked_again_too(bench: Bench) -> None:
    condition = parse_where_document({"$contains": "text of another"})
    deletion = Delete("c", ["same"], matched=Matched(bench.shard.clock_last, None, condition))
    bench.commit(put("same", value=1))
    answer = bench.commit(deletion)
    assert isinstance(answer, Committed)
    assert answer.count == 0
    assert bench.get("same")


@pytest.mark.parametrize("checkpoint", [False, True])
def test_the_log_says_what_was_deleted(bench: Bench, checkpoint: bool) -> None:
    """What is applied at recovery does not depend on what matches then."""
    deletion = found(bench, "same", "again", "other", "gone")
    change(bench)
    answer = bench.prepare(deletion, txn_id="t", primary=0, participants=[0, 1])
    assert isinstance(answer, Prepared)
    assert answer.count == 2
    if checkpoint:
        bench.shard.checkpoint(bench.now_ms)
    bench.crash()
    again = bench.prepare(deletion, txn_id="t", primary=0, participants=[0, 1])
    assert isinstance(again, Prepared)
    assert (again.prepare_ts, again.count) == (answer.prepare_ts, 2)
    committed = bench.ask(Decide("t", answer.prepare_ts))
    assert isinstance(committed, Committed)
    assert committed.count == 2
    bench.crash()
    assert bench.get(*IDS) == {"other": {"v": 2}, "new": {"v": 1}}
    repeated = bench.prepare(deletion, txn_id="t", primary=0, participants=[0, 1])
    assert isinstance(repeated, Committed)
    assert (repeated.commit_ts, repeated.count) == (committed.commit_ts, 2)


@pytest.mark.parametrize("crash", [False, True])
def test_what_was_passed_over_stays_as_it_is_until_the_decision(bench: Bench, crash: bool) -> None:
    """Else it could match at the commit, and be there all the same."""
    deletion = found(bench, "same", "other", "gone")
    change(bench)
    assert isinstance(bench.prepare(deletion, txn_id="t", primary=1, participants=[0, 1]), Prepared)
    if crash:
        bench.crash()
    for record_id in ("same", "other", "gone"):
        error = refusal(bench.commit(put(record_id, value=1)))
        assert isinstance(error, WriteConflictException)
        assert error.details["locked"]
    assert isinstance(bench.commit(put("new", value=3)), Committed)
    bench.ask(Finish("t", 0))
    assert isinstance(bench.commit(put("same", "other", "gone", value=1)), Committed)


def test_a_lock_on_any_of_them_is_waited_for(bench: Bench) -> None:
    """What is about to be written may match again, at a timestamp below that of the deletion."""
    deletion = found(bench, "same", "other")
    change(bench)
    assert isinstance(bench.prepare(put("other", value=1), txn_id="w", primary=1, participants=[0, 1]), Prepared)
    error = refusal(bench.commit(deletion, txn_id="t"))
    assert isinstance(error, WriteConflictException)
    assert error.details["locked"]
    bench.ask(Finish("w", 0))
    assert isinstance(bench.commit(deletion, txn_id="t"), Committed)


@pytest.mark.parametrize(
    ("changes", "error"),
    [
        ([SetAlias("by", "d")], WriteConflictException),
        ([SetAlias("by", "d"), DropCollection("c"), create("c")], WriteConflictException),
        ([SetAlias("by", "d"), DropCollection("c")], CollectionNotExistedException),
    ],
    ids=["switched", "made-anew", "dropped"],
)
def test_another_meaning_of_the_name_is_a_conflict(bench: Bench, changes: list[Mutation], error: type) -> None:
    bench.commit(create("d"))
    bench.commit(SetAlias("by", "c"))
    deletion = found(bench, "same", collection="by" if len(changes) == 1 else "c")
    for mutation in changes:
        assert isinstance(bench.commit(mutation), Committed)
    if len(changes) == 1:
        bench.commit(put("same", value=1, collection="d"))
    found_error = refusal(bench.commit(deletion))
    assert isinstance(found_error, error)
    assert not getattr(found_error, "details", {}).get("locked")


def test_a_write_in_the_same_batch_is_looked_at(bench: Bench) -> None:
    """Requests of one batch share a frame of the log, but the deletion must see what the ones before it did."""
    deletion = found(bench, "same", "again")
    answers = bench.batch(CommitOne(bench.txn(put("same", value=2))), CommitOne(bench.txn(deletion, txn_id="t")))
    assert isinstance(answers[1], Committed)
    assert answers[1].count == 1
    assert bench.get("same", "again") == {"same": {"v": 2}}
