"""One id, one content, once: ids used for two contents, ids of clocks that are off, ids that are forgotten."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
from shard_workbench import Bench, create, put

from vecraft_data_model.errors import InvalidDataException, WriteConflictException
from vecraft_data_model.messages import (
    Aborted,
    AbortTransaction,
    CommitOne,
    Committed,
    Decide,
    Delete,
    Finish,
    Finished,
    Matched,
    Prepare,
    Prepared,
    Refused,
    Resolve,
    Transaction,
    Undecided,
)
from vecraft_data_model.validation import new_txn_id

ONE, OTHER = b"1" * 16, b"2" * 16


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    bench = Bench(tmp_path, txn_retention_s=10.0)
    bench.commit(create())
    return bench


def id_made(bench: Bench, ahead_ms: int) -> str:
    return new_txn_id(bench.now_ms + ahead_ms, random.Random(1))


def test_a_repetition_at_another_snapshot_is_not_voted_for(bench: Bench) -> None:
    """Of a deletion by filter one half was that of an earlier snapshot."""
    bench.commit(put("a"), put("b"))
    at = bench.shard.clock_last
    earlier = Transaction("t", ONE, [Delete("c", ["a"], matched=Matched(at - 1))])
    assert isinstance(bench.ask(Prepare(earlier, 1, [0, 1])), Prepared)
    later = Transaction("t", ONE, [Delete("c", ["a", "b"], matched=Matched(at))])
    answer = bench.ask(Prepare(later, 1, [0, 1]))
    assert isinstance(answer, Refused)
    assert isinstance(answer.error, WriteConflictException)
    bench.crash()
    assert isinstance(bench.ask(Prepare(later, 1, [0, 1])), Refused)
    assert isinstance(bench.ask(Prepare(earlier, 1, [0, 1])), Prepared)


def prepare(bench: Bench, txn_id: str, content: bytes, primary: int) -> int:
    txn = Transaction(txn_id, content, [put("a", value=2)])
    answer = bench.ask(Prepare(txn, primary, [0, 1]))
    assert isinstance(answer, Prepared)
    return answer.prepare_ts


def test_the_answer_to_a_question_by_id_says_which_content_it_is_about(bench: Bench) -> None:
    ts = prepare(bench, "t", ONE, primary=0)
    assert isinstance(bench.ask(Decide("t", ts)), Committed)
    answer = bench.ask(Resolve("t"))
    assert isinstance(answer, Committed)
    assert answer.content_hash == ONE


def test_a_commit_of_another_content_is_the_end_of_this_one(bench: Bench) -> None:
    """The primary committed something else under this id, so it can never commit this: the lock must go."""
    ts = prepare(bench, "t", ONE, primary=1)
    bench.shard.deliver(1, Resolve("t"), Committed(ts + 5, 1, content_hash=OTHER), bench.now_ms)
    assert bench.get("a") == {}
    assert isinstance(bench.commit(put("a", value=3)), Committed)
    bench.crash()
    assert bench.get("a") == {"a": {"v": 3}}


def test_two_contents_of_one_id_do_not_wait_for_each_other(bench: Bench) -> None:
    """Seed 137 of the simulator: each was held by the other's primary, and both stayed prepared for ever."""
    prepare(bench, "t", ONE, primary=1)  # and shard 1 holds OTHER, whose primary it takes this shard for
    assert bench.ask(Resolve("t")) == Aborted("t")
    other = Transaction("t", OTHER, [put("b")])
    assert isinstance(bench.ask(Prepare(other, 0, [0, 1])), Refused), "it was told to be aborted"
    assert "t" in bench.shard._state.prepared, "only its own primary decides about the one that is held here"
    bench.shard.deliver(1, Resolve("t"), Aborted("t"), bench.now_ms)
    assert bench.shard._state.prepared == {}
    assert isinstance(bench.ask(Prepare(other, 0, [0, 1])), Refused)


@pytest.mark.parametrize("expect", [None, "absent"])
def test_what_is_prepared_is_not_touched_by_another_content_for_this_shard(bench: Bench, expect: str | None) -> None:
    """Seed 104546 of the simulator: its refusal was logged under the id, and with that the vote was given up."""
    bench.commit(put("b"))
    ts = prepare(bench, "t", ONE, primary=1)
    for answer in (bench.ask(CommitOne(Transaction("t", OTHER, [put("b", value=9, expect=expect)]))) for _ in range(2)):
        assert isinstance(answer, Refused)
        assert isinstance(answer.error, InvalidDataException) and "other content" in answer.error.message
    bench.crash()
    assert bench.ask(Finish("t", ts, ONE)) == Finished("t")
    assert bench.get("a", "b") == {"a": {"v": 2}, "b": {"v": 0}}


def test_one_content_is_not_carried_out_here_alone_while_it_is_prepared(bench: Bench) -> None:
    """As might come of two maps of the cluster."""
    ts = prepare(bench, "t", ONE, primary=1)
    answer = bench.ask(CommitOne(Transaction("t", ONE, [put("a", value=2)])))
    assert isinstance(answer, Refused) and answer.error.details["locked"]
    assert bench.ask(Finish("t", ts, ONE)) == Finished("t")
    assert isinstance(bench.ask(CommitOne(Transaction("t", ONE, [put("a", value=2)]))), Committed)
    assert bench.get("a") == {"a": {"v": 2}}


def test_an_abort_of_another_content_does_not_touch_this_one(bench: Bench) -> None:
    """Else one participant would give up what the primary may yet commit."""
    ts = prepare(bench, "t", ONE, primary=1)
    assert bench.ask(Finish("t", 0, OTHER)) == Finished("t")
    assert bench.ask(Finish("t", ts, ONE)) == Finished("t")
    assert bench.get("a") == {"a": {"v": 2}}


def test_an_abort_of_this_content_or_of_any_releases_it(bench: Bench) -> None:
    for content in (ONE, b""):
        prepare(bench, f"t{content!r}", ONE, primary=1)
        bench.ask(Finish(f"t{content!r}", 0, content))
        assert isinstance(bench.commit(put("a", value=3)), Committed)


def test_an_id_from_the_future_is_refused(bench: Bench) -> None:
    """Its outcome would be looked for in the wrong place, and it would outlive its outcome."""
    answer = bench.ask(CommitOne(Transaction(id_made(bench, 501), ONE, [put("a")])))
    assert isinstance(answer, Refused)
    assert isinstance(answer.error, InvalidDataException)
    assert "in the future" in answer.error.message
    assert isinstance(bench.ask(CommitOne(Transaction(id_made(bench, 500), ONE, [put("a")]))), Committed)


def test_an_id_ahead_of_the_shard_is_recognised_after_a_checkpoint(bench: Bench) -> None:
    txn = Transaction(id_made(bench, 500), ONE, [put("a")])
    first = bench.ask(CommitOne(txn))
    bench.pass_time(-500)  # the clock was set back
    bench.shard.checkpoint(bench.now_ms)
    assert bench.ask(CommitOne(txn)) == first


def test_an_outcome_is_kept_until_its_id_is_refused_for_its_age(bench: Bench) -> None:
    """Also for an id that was made by a node whose clock is ahead of the shard's."""
    txn = Transaction(id_made(bench, 400), ONE, [put("a")])
    first = bench.ask(CommitOne(txn))
    for _ in range(150):
        bench.pass_time(100)
        bench.shard.checkpoint(bench.now_ms)
        answer = bench.ask(CommitOne(txn))
        if answer != first:
            assert isinstance(answer, Refused)
            assert "outcomes are kept for" in answer.error.message
    assert isinstance(bench.ask(CommitOne(txn)), Refused)


def test_a_snapshot_says_how_old_an_id_may_be_that_does_not_say_it(bench: Bench) -> None:
    """A repetition that came after the outcome was forgotten was told that nothing was written."""
    bench.commit(put("a"))
    txn = Transaction("no-time", ONE, [put("a", value=2)], snapshot=bench.shard.clock_last)
    assert isinstance(bench.ask(CommitOne(txn)), Committed)
    for _ in range(3):
        bench.pass_time(6_000)
        bench.shard.checkpoint(bench.now_ms)
    answer = bench.ask(CommitOne(txn))
    assert isinstance(answer, Refused)
    assert answer.error.details["forgotten"]
    bench.commit(put("b"))
    later = Transaction("no-time-2", ONE, [put("a", value=3)], snapshot=bench.shard.clock_last)
    assert isinstance(bench.ask(CommitOne(later)), Committed)


def test_an_id_that_was_never_heard_of_is_aborted_for_good(bench: Bench) -> None:
    txn_id = id_made(bench, -2_000)
    assert bench.ask(Resolve(txn_id)) == Aborted(txn_id)
    assert bench.ask(CommitOne(Transaction(txn_id, ONE, [put("a")]))) == Aborted(txn_id)


def test_an_id_that_may_have_been_forgotten_is_not_aborted_for_whoever_only_knows_the_id(bench: Bench) -> None:
    """It may have been committed: a client that asked hours later was told "aborted"."""
    txn = Transaction(id_made(bench, 0), ONE, [put("a")])
    assert isinstance(bench.ask(CommitOne(txn)), Committed)
    for _ in range(3):
        bench.pass_time(6_000)
        bench.shard.checkpoint(bench.now_ms)
    for question in (Resolve(txn.txn_id, held=False), AbortTransaction(txn.txn_id)):
        answer = bench.ask(question)
        assert isinstance(answer, Refused)
        assert answer.error.details["forgotten"]


def test_an_old_id_that_a_participant_still_holds_is_aborted(bench: Bench) -> None:
    """A commit would not be forgotten before that participant has heard of it; and it waits with its locks."""
    txn_id = id_made(bench, -20_000)
    assert bench.ask(Resolve(txn_id)) == Aborted(txn_id)
    ts = prepare(bench, "t", ONE, primary=0)
    bench.pass_time(20_000)
    assert ts and bench.ask(AbortTransaction("t")) == Aborted("t")


def test_a_question_that_arrives_after_the_outcome_was_forgotten_leaves_nothing_behind(bench: Bench) -> None:
    """Its sender held the transaction when it asked, and has heard of the commit since."""
    txn = Transaction(id_made(bench, 0), ONE, [put("a")])
    assert isinstance(bench.ask(CommitOne(txn)), Committed)
    for _ in range(3):
        bench.pass_time(6_000)
        bench.shard.checkpoint(bench.now_ms)
    lsn = bench.shard._state.wal.next_lsn
    bench.ask(Resolve(txn.txn_id, held=True))
    assert bench.shard._state.wal.next_lsn == lsn, "an abort of what was committed stands in the log"
    answer = bench.ask(Resolve(txn.txn_id, held=False))
    assert isinstance(answer, Refused)
    assert answer.error.details["forgotten"]


def test_a_restarted_primary_gives_routers_time_to_come_back(bench: Bench) -> None:
    """Its Prepare may have been lost with the process; the router repeats it, if nobody has it aborted before."""
    txn_id = id_made(bench, -5_000)
    bench.crash()
    assert bench.ask(Resolve(txn_id)) == Undecided([(txn_id, 0)])
    assert bench.ask(Resolve("chosen freely")) == Undecided([("chosen freely", 0)])
    bench.pass_time(1_000)
    ts = prepare(bench, txn_id, ONE, primary=0)
    assert bench.ask(Resolve(txn_id)) == Undecided([(txn_id, 0)])
    assert isinstance(bench.ask(Decide(txn_id, ts)), Committed)
    assert bench.ask(Resolve("chosen freely")) == Aborted("chosen freely")


def test_a_router_that_comes_back_keeps_a_prepared_transaction_open_for_a_while(bench: Bench) -> None:
    txn_id = id_made(bench, 0)
    prepare(bench, txn_id, ONE, primary=0)
    for _ in range(11):
        bench.pass_time(500)
        prepare(bench, txn_id, ONE, primary=0)
        assert bench.ask(Resolve(txn_id)) == Undecided([(txn_id, 0)])
    bench.pass_time(500)
    prepare(bench, txn_id, ONE, primary=0)
    bench.pass_time(500)
    assert bench.ask(Resolve(txn_id)) == Aborted(txn_id)  # not for ever: readers wait for it


def test_a_repetition_of_what_is_forgotten_here_and_not_at_the_primary_holds_no_lock(bench: Bench) -> None:
    """An id that does not say when it was made: the participant votes once more, the primary answers from its log."""
    ts = prepare(bench, "chosen freely", ONE, primary=1)
    assert bench.ask(Finish("chosen freely", ts, ONE)) == Finished("chosen freely")
    assert isinstance(bench.commit(put("a", value=3)), Committed)
    bench.shard.checkpoint(bench.now_ms)
    bench.pass_time(12_000)
    bench.commit(put("b"))
    bench.shard.checkpoint(bench.now_ms)
    assert prepare(bench, "chosen freely", ONE, primary=1) > ts
    assert bench.ask(Finish("chosen freely", ts, ONE)) == Finished("chosen freely")
    assert bench.get("a") == {"a": {"v": 3}}  # not carried out again
    assert isinstance(bench.commit(put("a", value=4)), Committed)
    bench.crash()
    assert bench.get("a") == {"a": {"v": 4}}


@pytest.mark.parametrize("how", ["as it is", "crash", "reopen"])
def test_an_outcome_is_found_after_a_checkpoint_by_a_clock_that_was_set_back(bench: Bench, how: str) -> None:
    txn = Transaction(id_made(bench, 0), ONE, [put("a")])
    first = bench.ask(CommitOne(txn))
    assert isinstance(first, Committed)
    bench.pass_time(-5_000)
    bench.shard.checkpoint(bench.now_ms)
    {"as it is": lambda: None, "crash": bench.crash, "reopen": bench.reopen}[how]()
    assert bench.ask(CommitOne(txn)) == first


def test_an_outcome_is_kept_for_as_long_when_the_clock_was_set_back_as_it_was_decided(bench: Bench) -> None:
    bench.commit(put("b"))
    bench.pass_time(-8_000)
    txn = Transaction(id_made(bench, 8_000), ONE, [put("a")])
    first = bench.ask(CommitOne(txn))
    assert isinstance(first, Committed)
    bench.shard.checkpoint(bench.now_ms)
    bench.pass_time(8_000 + 3_500)
    bench.commit(put("b"))
    bench.shard.checkpoint(bench.now_ms)
    assert bench.ask(CommitOne(txn)) == first
