"""Two-phase commit on one participant: what it promises with each answer, also after a crash right behind it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from shard_workbench import Bench, create, delete, put

from vecraft_data_model.errors import InvalidDataException, ReadWriteConflictException, WriteConflictException
from vecraft_data_model.messages import (
    Aborted,
    AbortTransaction,
    Acknowledge,
    Barrier,
    BarrierReply,
    Checkpoint,
    CommitOne,
    Committed,
    Count,
    CountReply,
    Decide,
    DropCollection,
    Finish,
    Finished,
    Get,
    Prepare,
    Prepared,
    Refused,
    Resolve,
    RowsReply,
    Status,
    StatusReply,
    Undecided,
)
from vecraft_data_model.validation import new_txn_id


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    bench = Bench(tmp_path / "shard")
    bench.commit(create())
    bench.commit(put("a", value=1))
    yield bench
    bench.shard.abandon()


def prepared_ts(response: object) -> int:
    assert isinstance(response, Prepared), response
    return response.prepare_ts


def error_of(response: object) -> Exception:
    assert isinstance(response, Refused), response
    return response.error


AGAIN = ["as it is", "crash", "reopen"]


def again(bench: Bench, how: str) -> None:
    {"as it is": lambda: None, "crash": bench.crash, "reopen": bench.reopen}[how]()


@pytest.mark.parametrize("how", AGAIN)
class TestPromises:
    def test_a_yes_vote_can_be_committed(self, bench: Bench, how: str) -> None:
        ts = prepared_ts(bench.prepare(put("a", value=2), txn_id="t", primary=0, participants=[0, 1]))
        again(bench, how)
        assert bench.ask(Decide("t", ts + 5)) == Committed(ts + 5, 1)
        again(bench, how)
        assert bench.get("a") == {"a": {"v": 2}}
        answer = bench.ask(Resolve("t"))
        assert isinstance(answer, Committed)
        assert (answer.commit_ts, answer.count) == (ts + 5, 1)

    def test_a_yes_vote_locks_its_keys(self, bench: Bench, how: str) -> None:
        bench.prepare(put("a", value=2), txn_id="t", primary=0, participants=[0, 1])
        again(bench, how)
        error = error_of(bench.commit(put("a", value=3)))
        assert isinstance(error, WriteConflictException)
        assert error.details["locked"]
        assert isinstance(bench.commit(put("b")), Committed)
        bench.ask(AbortTransaction("t"))
        assert isinstance(bench.commit(put("a", value=3)), Committed)

    def test_a_yes_vote_is_never_taken_back_by_a_participant(self, bench: Bench, how: str) -> None:
        ts = prepared_ts(bench.prepare(put("a", value=2), txn_id="t", primary=1, participants=[0, 1]))
        bench.pass_time(60_000)
        bench.shard.maintain(bench.now_ms, 5)
        again(bench, how)
        assert isinstance(error_of(bench.ask(AbortTransaction("t"))), InvalidDataException)
        assert bench.ask(Finish("t", ts)) == Finished("t")
        assert bench.get("a") == {"a": {"v": 2}}

    def test_an_aborted_id_can_neither_prepare_nor_commit_any_more(self, bench: Bench, how: str) -> None:
        assert bench.ask(AbortTransaction("t")) == Aborted("t")
        again(bench, how)
        assert bench.prepare(put("a", value=2), txn_id="t", primary=0, participants=[0, 1]) == Aborted("t")
        assert bench.ask(Decide("t", 10**18)) == Aborted("t")
        assert bench.get("a") == {"a": {"v": 1}}

    def test_the_primary_tells_the_others_until_they_have_acknowledged(self, bench: Bench, how: str) -> None:
        ts = prepared_ts(bench.prepare(put("a", value=2), txn_id="t", primary=0, participants=[0, 1, 2]))
        bench.ask(Decide("t", ts))
        again(bench, how)
        bench.pass_time(2_000)
        assert sorted(bench.shard.outgoing(bench.now_ms)) == [(1, Finish("t", ts)), (2, Finish("t", ts))]
        bench.ask(Acknowledge("t", [1]))
        again(bench, how)
        bench.pass_time(2_000)
        # One acknowledgement of several is not worth a log record: a crash costs one more question.
        left = [(2, Finish("t", ts))] if how != "crash" else [(1, Finish("t", ts)), (2, Finish("t", ts))]
        assert sorted(bench.shard.outgoing(bench.now_ms)) == left
        bench.ask(Acknowledge("t", [1]))
        bench.shard.deliver(2, Finish("t", ts), Finished("t"), bench.now_ms)
        bench.pass_time(2_000)
        assert bench.shard.outgoing(bench.now_ms) == []

    def test_a_participant_in_doubt_asks_the_primary(self, bench: Bench, how: str) -> None:
        ts = prepared_ts(bench.prepare(put("a", value=2), txn_id="t", primary=1, participants=[0, 1]))
        again(bench, how)
        # After a restart at once: it was decided meanwhile, most likely, and others wait for the lock.
        at_once = [] if how == "as it is" else [(1, Resolve("t"))]
        assert bench.shard.outgoing(bench.now_ms) == at_once
        bench.shard.deliver(1, Resolve("t"), Undecided([("t", 1)]), bench.now_ms)
        assert bench.shard.outgoing(bench.now_ms) == []
        bench.pass_time(2_000)
        assert bench.shard.outgoing(bench.now_ms) == [(1, Resolve("t"))]
        bench.shard.deliver(1, Resolve("t"), Committed(ts + 9), bench.now_ms)
        assert bench.get("a") == {"a": {"v": 2}}


def test_the_primary_aborts_what_its_router_abandoned(bench: Bench) -> None:
    bench.prepare(put("a", value=2), txn_id="t", primary=0, participants=[0, 1])
    bench.shard.maintain(bench.now_ms, 5)
    assert isinstance(bench.ask(Resolve("t")), Undecided)
    bench.pass_time(2_000)
    bench.shard.maintain(bench.now_ms, 5)
    assert bench.ask(Resolve("t")) == Aborted("t")
    assert isinstance(bench.commit(put("a", value=3)), Committed)


def test_resolving_an_id_that_was_never_heard_of_waits_for_a_young_one_and_aborts_an_old_one(bench: Bench) -> None:
    young = new_txn_id(bench.now_ms)
    assert isinstance(bench.ask(Resolve(young)), Undecided)
    bench.pass_time(5_000)
    assert bench.ask(Resolve(young)) == Aborted(young)
    assert bench.prepare(put("a"), txn_id=young, primary=0, participants=[0, 1]) == Aborted(young)


def test_readers_wait_for_what_they_could_see_and_for_nothing_else(bench: Bench) -> None:
    bench.commit(create("other"))
    ts = prepared_ts(bench.prepare(put("a", value=2), txn_id="t", primary=0, participants=[0, 1]))
    assert bench.ask(Get(collection="c", ids=["a"], snapshot=ts)) == Undecided([("t", 0)])
    assert isinstance(bench.ask(Get(collection="c", ids=["a"], snapshot=ts - 1)), RowsReply)
    assert isinstance(bench.ask(Count(collection="other", snapshot=ts)), CountReply)
    assert bench.get("a") == {"a": {"v": 1}}  # a chosen snapshot lies below what is undecided
    assert bench.ask(Count(collection="c", min_ts=ts)) == Undecided([("t", 0)])  # … unless the session is further
    bench.ask(Decide("t", ts))
    assert bench.get("a", snapshot=ts) == {"a": {"v": 2}}


def test_a_strong_read_waits_for_what_was_undecided_on_its_arrival_only(bench: Bench) -> None:
    bench.prepare(put("a"), txn_id="t", primary=0, participants=[0, 1])
    waiting = bench.ask(Barrier())
    assert waiting == Undecided([("t", 0)])
    ts = prepared_ts(bench.prepare(put("b"), txn_id="u", primary=0, participants=[0, 1]))
    assert bench.ask(Barrier(["t"])) == Undecided([("t", 0)])
    bench.ask(AbortTransaction("t"))
    reply = bench.ask(Barrier(["t"]))
    assert isinstance(reply, BarrierReply)
    assert reply.clock >= ts


def test_a_prepared_drop_blocks_writers_and_a_prepared_writer_blocks_a_drop(bench: Bench) -> None:
    bench.prepare(DropCollection("c"), txn_id="drop", primary=0, participants=[0, 1])
    assert isinstance(error_of(bench.commit(put("b"))), WriteConflictException)
    bench.ask(AbortTransaction("drop"))
    bench.prepare(put("b"), txn_id="write", primary=0, participants=[0, 1])
    assert isinstance(error_of(bench.commit(DropCollection("c"))), WriteConflictException)


def test_two_creations_of_one_name_cannot_both_be_prepared(bench: Bench) -> None:
    assert isinstance(bench.prepare(create("new"), txn_id="t", primary=0, participants=[0, 1]), Prepared)
    refused = bench.prepare(create("new"), txn_id="u", primary=0, participants=[0, 1])
    assert isinstance(error_of(refused), WriteConflictException)


class TestSerializable:
    def test_a_key_that_was_read_and_has_changed_is_a_conflict(self, bench: Bench) -> None:
        reply: Any = bench.ask(Count(collection="c"))
        bench.commit(put("a", value=2))
        refused = bench.commit(put("b"), snapshot=reply.snapshot, reads=[("c", "a")])
        assert isinstance(error_of(refused), ReadWriteConflictException)

    def test_a_prepared_transaction_locks_what_it_has_read(self, bench: Bench) -> None:
        reply: Any = bench.ask(Count(collection="c"))
        txn = bench.txn(put("b"), txn_id="t", snapshot=reply.snapshot, reads=[("c", "a")])
        assert isinstance(bench.ask(Prepare(txn, 0, [0, 1])), Prepared)
        bench.crash()
        assert isinstance(error_of(bench.commit(put("a"))), WriteConflictException)
        bench.ask(AbortTransaction("t"))
        assert isinstance(bench.commit(put("a")), Committed)


def test_messages_about_one_transaction_in_one_batch_are_taken_in_order(bench: Bench) -> None:
    prepare = Prepare(bench.txn(put("a", value=2), txn_id="t"), 0, [0, 1])
    answers = bench.batch(prepare, AbortTransaction("t"), Decide("t", 10**18), CommitOne(bench.txn(delete("a"))))
    assert [type(answer) for answer in answers] == [Prepared, Aborted, Aborted, Committed]
    assert bench.get("a") == {}


def test_checkpoints_keep_undecided_transactions_and_outcomes(bench: Bench) -> None:
    ts = prepared_ts(bench.prepare(put("a", value=2), txn_id="t", primary=0, participants=[0, 1]))
    bench.commit(put("z"), txn_id="one")
    bench.ask(Checkpoint())
    bench.crash()
    status = bench.ask(Status())
    assert isinstance(status, StatusReply)
    assert status.figures["prepared_transactions"] == 1
    assert isinstance(bench.ask(Resolve("one")), Committed)
    assert bench.ask(Decide("t", ts)) == Committed(ts, 1)
