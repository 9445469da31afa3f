"""Changes of the catalog in several steps of one transaction, with records, and against a snapshot."""

from __future__ import annotations

from pathlib import Path

import pytest
from shard_workbench import Bench, create, delete, put

from vecraft_data_model.errors import (
    CollectionAlreadyExistedException,
    CollectionNotExistedException,
    InvalidDataException,
    ReadWriteConflictException,
    VecraftError,
    WriteConflictException,
)
from vecraft_data_model.messages import (
    AlterCollection,
    CatalogReply,
    CommitOne,
    Committed,
    Decide,
    DropAlias,
    DropCollection,
    Finish,
    ListCollections,
    Prepare,
    Prepared,
    Refused,
    Response,
    SetAlias,
)

AGAIN = ["as it is", "crash", "reopen"]


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    bench = Bench(tmp_path)
    bench.commit(create("old"))
    bench.commit(put("a", value=1, collection="old"))
    bench.commit(SetAlias("current", "old"))
    return bench


def again(bench: Bench, how: str) -> None:
    {"as it is": lambda: None, "crash": bench.crash, "reopen": bench.reopen}[how]()


def now(bench: Bench) -> int:
    return bench.shard.clock_last


def error_of(response: Response) -> VecraftError:
    assert isinstance(response, Refused), response
    return response.error


def listing(bench: Bench, snapshot: int = 0) -> tuple[list[str], dict[str, str]]:
    reply = bench.ask(ListCollections(snapshot=snapshot))
    assert isinstance(reply, CatalogReply)
    return [schema.name for schema in reply.collections], reply.aliases


# ----------------------------------------------------------------------------------------------------- steps


@pytest.mark.parametrize("how", AGAIN)
@pytest.mark.parametrize("phases", [1, 2])
def test_a_collection_can_be_made_filled_and_named_at_one_moment(bench: Bench, how: str, phases: int) -> None:
    before = now(bench)
    steps = [create("new"), put("a", "b", value=2, collection="new"), SetAlias("current", "new"), DropCollection("old")]
    if phases == 1:
        done = bench.commit(*steps)
    else:
        vote = bench.prepare(*steps, txn_id="t", primary=0, participants=[0, 1])
        assert isinstance(vote, Prepared)
        again(bench, how)
        assert listing(bench, before) == (["old"], {"current": "old"})
        done = bench.ask(Decide("t", vote.prepare_ts))
    assert isinstance(done, Committed)
    assert done.count == 2
    again(bench, how)
    assert listing(bench) == (["new"], {"current": "new"})
    assert bench.get("a", "b", collection="current") == {"a": {"v": 2}, "b": {"v": 2}}
    assert bench.get("a", "b", collection="current", snapshot=done.commit_ts - 1) == {"a": {"v": 1}}
    assert listing(bench, done.commit_ts - 1) == (["old"], {"current": "old"})


def test_steps_that_come_to_nothing_leave_no_trace(bench: Bench) -> None:
    vote = bench.prepare(create("new"), SetAlias("current", "new"), txn_id="t", primary=1, participants=[0, 1])
    assert isinstance(vote, Prepared)
    bench.ask(Finish("t", 0))
    assert listing(bench) == (["old"], {"current": "old"})
    assert isinstance(bench.commit(create("new")), Committed)


@pytest.mark.parametrize("how", AGAIN)
def test_a_name_can_be_given_to_a_new_collection(bench: Bench, how: str) -> None:
    anew = [create("old", dim=2), put("z", collection="old", dim=2)]
    done = bench.commit(DropAlias("current"), DropCollection("old"), *anew)
    assert isinstance(done, Committed), done
    again(bench, how)
    assert bench.get("a", "z", collection="old") == {"z": {"v": 0}}
    assert bench.get("a", collection="old", snapshot=done.commit_ts - 1) == {"a": {"v": 1}}


@pytest.mark.parametrize("how", AGAIN)
def test_what_was_just_made_can_be_altered_and_dropped(bench: Bench, how: str) -> None:
    made = bench.commit(create("new"), AlterCollection("new", {"target_recall": 0.99}))
    assert isinstance(made, Committed)
    brief = bench.commit(create("brief"), put("a", collection="brief"), DropCollection("brief"))
    assert isinstance(brief, Committed)
    again(bench, how)
    reply = bench.ask(ListCollections())
    assert isinstance(reply, CatalogReply)
    assert [(schema.name, schema.target_recall) for schema in reply.collections] == [("new", 0.99), ("old", 0.95)]


@pytest.mark.parametrize(
    ("steps", "error"),
    [
        ([create("new"), create("new")], CollectionAlreadyExistedException),
        ([DropAlias("current"), DropCollection("old"), put("b", collection="old")], CollectionNotExistedException),
        ([put("b", collection="new"), create("new")], CollectionNotExistedException),
        ([SetAlias("other", "new"), create("new")], CollectionNotExistedException),
        ([DropCollection("old"), DropAlias("current")], InvalidDataException),
        ([create("new"), SetAlias("x", "new"), DropCollection("new")], InvalidDataException),
        ([DropAlias("current"), DropAlias("current")], CollectionNotExistedException),
        ([SetAlias("x", "old"), create("x")], CollectionAlreadyExistedException),
    ],
)
def test_each_step_meets_what_the_earlier_ones_did(bench: Bench, steps: list[object], error: type) -> None:
    assert isinstance(error_of(bench.commit(*steps)), error)  # type: ignore[arg-type]
    assert listing(bench) == (["old"], {"current": "old"})


# ----------------------------------------------------------------------------------------------- conflicts


@pytest.mark.parametrize("change", [SetAlias("current", "new"), DropAlias("current"), SetAlias("current", "old")])
def test_a_change_of_a_name_since_the_snapshot_is_a_conflict(bench: Bench, change: object) -> None:
    bench.commit(create("new"))
    snapshot = now(bench)
    assert isinstance(bench.commit(change), Committed)  # type: ignore[arg-type]
    refused = error_of(bench.commit(SetAlias("current", "old"), snapshot=snapshot))
    assert isinstance(refused, WriteConflictException)
    assert "current" in refused.message
    assert not refused.details.get("locked")


def test_a_collection_made_since_the_snapshot_is_a_conflict(bench: Bench) -> None:
    snapshot = now(bench)
    bench.commit(create("new"))
    assert isinstance(error_of(bench.commit(create("new"), snapshot=snapshot)), WriteConflictException)
    bench.commit(DropCollection("new"))
    assert isinstance(error_of(bench.commit(create("new"), snapshot=snapshot)), WriteConflictException)


def test_settings_changed_since_the_snapshot_are_a_conflict_for_who_changes_them(bench: Bench) -> None:
    snapshot = now(bench)
    bench.commit(AlterCollection("old", {"ef": 77}))
    refused = bench.commit(AlterCollection("old", {"ef": 78}), snapshot=snapshot)
    assert isinstance(error_of(refused), WriteConflictException)
    assert isinstance(bench.commit(put("b", collection="old"), snapshot=snapshot), Committed)


@pytest.mark.parametrize("name", ["old", "current"])
def test_a_write_does_not_go_to_what_the_name_means_since(bench: Bench, name: str) -> None:
    """It was meant for what the transaction has read."""
    snapshot = now(bench)
    if name == "old":
        bench.commit(DropAlias("current"), DropCollection("old"), create("old"))
    else:
        bench.commit(create("new"), SetAlias("current", "new"))
    refused = error_of(bench.commit(put("b", collection=name), snapshot=snapshot))
    assert isinstance(refused, WriteConflictException)
    assert isinstance(bench.commit(put("b", collection=name)), Committed)  # a blind write means it as it is now


def test_a_read_by_a_name_that_means_something_else_since_is_not_serializable(bench: Bench) -> None:
    snapshot = now(bench)
    bench.commit(create("new"), SetAlias("current", "new"))
    refused = bench.commit(put("b", collection="old"), snapshot=snapshot, reads=[("current", "a")])
    assert isinstance(error_of(refused), ReadWriteConflictException)
    assert isinstance(bench.commit(put("b", collection="old"), snapshot=now(bench), reads=[("old", "a")]), Committed)


HIDE = [
    pytest.param([DropAlias("current"), DropCollection("old")], id="drop"),
    pytest.param([SetAlias("current", "new")], id="switch"),
    pytest.param([DropAlias("current")], id="drop alias"),
]


@pytest.mark.parametrize("steps", HIDE)
@pytest.mark.parametrize(
    "write", [put("b", collection="old"), put("a", collection="old"), delete("a", collection="old")]
)
def test_records_written_since_are_not_taken_out_of_sight(bench: Bench, steps: list[object], write: object) -> None:
    """Nobody would find them again: an update lost."""
    bench.commit(create("new"))
    snapshot = now(bench)
    bench.commit(write)  # type: ignore[arg-type]
    assert isinstance(error_of(bench.commit(*steps, snapshot=snapshot)), WriteConflictException)  # type: ignore[arg-type]
    assert isinstance(bench.commit(*steps, snapshot=now(bench)), Committed)  # type: ignore[arg-type]


@pytest.mark.parametrize("steps", HIDE)
def test_records_about_to_be_written_are_not_taken_out_of_sight(bench: Bench, steps: list[object]) -> None:
    bench.commit(create("new"))
    vote = bench.prepare(put("b", collection="old"), txn_id="t", primary=0, participants=[0, 1])
    assert isinstance(vote, Prepared)
    refused = error_of(bench.commit(*steps, snapshot=now(bench)))  # type: ignore[arg-type]
    assert isinstance(refused, WriteConflictException)
    assert refused.details["locked"] is True


@pytest.mark.parametrize("how", AGAIN)
def test_nobody_writes_to_what_is_about_to_be_out_of_sight(bench: Bench, how: str) -> None:
    """By its own name neither: the check that nothing was written has been made."""
    bench.commit(create("new"))
    bench.prepare(SetAlias("current", "new"), txn_id="t", primary=0, participants=[0, 1])
    again(bench, how)
    for name in ("current", "old", "new"):
        refused = error_of(bench.commit(put("b", collection=name)))
        assert refused.details.get("locked") is True
    bench.ask(Finish("t", 0))
    assert isinstance(bench.commit(put("b", collection="old")), Committed)


def test_a_blind_switch_takes_whatever_there_is_out_of_sight(bench: Bench) -> None:
    bench.commit(create("new"))
    bench.commit(put("b", collection="old"))
    assert isinstance(bench.commit(SetAlias("current", "new")), Committed)


def test_what_a_prepared_transaction_has_read_is_not_dropped(bench: Bench) -> None:
    bench.commit(DropAlias("current"), create("other"))
    txn = bench.txn(put("b", collection="other"), txn_id="t", snapshot=now(bench), reads=[("old", "a")])
    assert isinstance(bench.ask(Prepare(txn, 0, [0, 1])), Prepared)
    assert error_of(bench.commit(DropCollection("old"))).details.get("locked") is True


# ------------------------------------------------------------------------------------------------- counting


@pytest.mark.parametrize("how", AGAIN)
@pytest.mark.parametrize("phases", [1, 2])
def test_a_repetition_counts_the_deleted_as_the_first_time(bench: Bench, how: str, phases: int) -> None:
    """Records that were not there were not deleted, and a restart must not change that."""
    txn = bench.txn(delete("a", "never", collection="old"), put("b", collection="old"), txn_id="t")
    if phases == 1:
        ask = CommitOne(txn)
        first = bench.ask(ask)
    else:
        vote = bench.ask(Prepare(txn, 0, [0, 1]))
        assert isinstance(vote, Prepared)
        again(bench, how)
        first, ask = bench.ask(Decide("t", vote.prepare_ts)), Prepare(txn, 0, [0, 1])  # type: ignore[assignment]
    assert isinstance(first, Committed)
    assert first.count == 2
    again(bench, how)
    repeated = bench.ask(ask)
    assert isinstance(repeated, Committed)
    assert repeated.count == 2
