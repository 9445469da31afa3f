"""Aliases that are switched while transactions are under way: what a name means must not differ within one of them."""

from __future__ import annotations

from pathlib import Path

import pytest
from shard_workbench import Bench, create, put

from vecraft_data_model.errors import WriteConflictException
from vecraft_data_model.messages import Committed, Decide, DropAlias, Get, Prepared, Refused, SetAlias, Undecided


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    bench = Bench(tmp_path)
    bench.commit(create("red"))
    bench.commit(create("blue"))
    bench.commit(SetAlias("current", "red"))
    return bench


def restart(bench: Bench, how: str) -> None:
    {"as it is": lambda: None, "crash": bench.crash, "reopen": bench.reopen}[how]()


@pytest.mark.parametrize("how", ["as it is", "crash", "reopen"])
@pytest.mark.parametrize("change", [SetAlias("current", "blue"), DropAlias("current")], ids=["switch", "drop"])
def test_an_alias_stays_while_a_prepared_transaction_writes_by_it(
    bench: Bench, how: str, change: SetAlias | DropAlias
) -> None:
    """Else its other half, prepared elsewhere after the switch, would go to another collection."""
    prepared = bench.prepare(put("a", value=1, collection="current"), txn_id="t", primary=0, participants=[0, 1])
    assert isinstance(prepared, Prepared)
    restart(bench, how)
    refused = bench.commit(change)
    assert isinstance(refused, Refused)
    assert isinstance(refused.error, WriteConflictException)
    assert refused.error.details["locked"] is True
    assert isinstance(bench.ask(Decide("t", prepared.prepare_ts)), Committed)
    assert bench.get("a", collection="red") == {"a": {"v": 1}}
    assert isinstance(bench.commit(change), Committed)


def test_writing_by_its_own_name_does_not_hold_an_alias(bench: Bench) -> None:
    bench.prepare(put("a", collection="red"), txn_id="t", primary=0, participants=[0, 1])
    assert isinstance(bench.commit(SetAlias("current", "blue")), Committed)


def test_a_read_below_a_switch_waits_for_what_is_undecided_in_the_former_collection(bench: Bench) -> None:
    prepared = bench.prepare(put("a", value=1, collection="red"), txn_id="t", primary=0, participants=[0, 1])
    assert isinstance(prepared, Prepared)
    bench.commit(SetAlias("current", "blue"))
    read = Get(collection="current", ids=["a"], snapshot=prepared.prepare_ts)
    assert bench.ask(read) == Undecided([("t", 0)])
    bench.ask(Decide("t", prepared.prepare_ts))
    assert bench.get("a", collection="current", snapshot=prepared.prepare_ts) == {"a": {"v": 1}}
    assert bench.get("a", collection="current") == {}
