"""The black-box workload on a database in this process, and what its checkers find in histories that are wrong."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest

from tests.blackbox.checking import check
from tests.blackbox.content import BANK, COLLECTIONS, LISTS, State, state_of
from tests.blackbox.events import Events, Txn
from tests.blackbox.workload import Workload
from vecraft_db.client.vecraft_client import VecraftClient

Final = dict[str, dict[str, State]]
Run = tuple[Events, Final]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A few hundred transactions by 16 clients on three shards, and the database at their end."""
    with VecraftClient(root=tmp_path_factory.mktemp("blackbox") / "data", shards=3) as client:
        work = Workload([client], workers=16, target=600, seed=1)
        work.prepare(client)
        work.run()
        work.settle()
        return work.events, contents(client)


def contents(client: VecraftClient) -> Final:
    """All records, by collection."""
    return {
        name: {packet.record_id: state for packet in client.scan(name) if (state := state_of(packet)) is not None}
        for name in COLLECTIONS
    }


def test_a_sound_database_passes_and_write_skew_is_seen(run: Run) -> None:
    verdict = check(*run)
    assert verdict.problems == []
    assert verdict.write_skew, "under snapshot isolation it is allowed, and has to be visible to the checker"
    assert all(verdict.checked[kind] > 20 for kind in ("reads", "searches", "counts", "commits", "strong reads"))


def appended(events: Events) -> Txn:
    """A committed append to one list that others appended to afterwards."""
    return next(
        txn
        for txn in events.told("committed")
        if txn.collection == LISTS and len(txn.writes) == 1 and txn.reads and txn.commit_ts
    )


def lose_a_write(events: Events, final: Final) -> None:
    txn = appended(events)
    (key,) = txn.writes
    state = final[LISTS][key]
    assert isinstance(state.value, tuple)
    final[LISTS][key] = State(state.tag, tuple(each for each in state.value if each != txn.serial))


def double_a_write(events: Events, final: Final) -> None:
    txn = appended(events)
    (key,) = txn.writes
    state = final[LISTS][key]
    assert isinstance(state.value, tuple)
    final[LISTS][key] = State(state.tag, (*state.value, txn.serial))


def tell_of_an_abort_that_was_none(events: Events, final: Final) -> None:
    appended(events).told = "aborted"


def see_an_older_version(events: Events, final: Final) -> None:
    txn = next(txn for txn in events.told("committed") if txn.kind == "look" and any(txn.reads.values()))
    key = next(key for key, seen in txn.reads.items() if seen is not None)
    txn.reads[key] = None


def see_half_of_a_transfer(events: Events, final: Final) -> None:
    txn = next(txn for txn in events.told("committed") if txn.kind == "audit" and txn.reads)
    key, seen = next(iter(txn.reads.items()))
    assert seen is not None and isinstance(seen.value, int)
    txn.reads[key] = State(seen.tag, seen.value + 1)


def miss_a_neighbour(events: Events, final: Final) -> None:
    search = next(search for txn in events.transactions for search in txn.searches if len(search.hits) > 1)
    del search.hits[0]


def count_one_more(events: Events, final: Final) -> None:
    txn = next(txn for txn in events.transactions if txn.counts)
    group, own, count = txn.counts[0]
    txn.counts[0] = (group, own, count + 1)


def lose_an_update(events: Events, final: Final) -> None:
    """A transfer that read before another one committed, and committed after it all the same."""
    transfers = [txn for txn in events.told("committed") if txn.kind == "transfer"]
    first, second = next(
        (first, second)
        for first in transfers
        for second in transfers
        if first.commit_ts < second.snapshot and not first.writes.keys().isdisjoint(second.writes)
    )
    second.snapshot = first.commit_ts - 1


def go_back_in_time(events: Events, final: Final) -> None:
    txn = next(txn for txn in events.transactions if txn.snapshot)
    txn.least = txn.snapshot + 1


def read_what_was_stale(events: Events, final: Final) -> None:
    txn = next(txn for txn in reversed(events.transactions) if txn.strong and all(txn.reads.values()))
    txn.reads = dict.fromkeys(txn.reads)


def leave_open_what_happened(events: Events, final: Final) -> None:
    appended(events).told = ""


def be_told_nonsense(events: Events, final: Final) -> None:
    events.unexpected.append("KeyError")


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lose_a_write, "in the end"),
        (double_a_write, "stands twice"),
        (tell_of_an_abort_that_was_none, "was aborted or never appended"),
        (see_an_older_version, "saw"),
        (see_half_of_a_transfer, "in all accounts"),
        (miss_a_neighbour, "found"),
        (count_one_more, "counted"),
        (lose_an_update, "changed it at"),
        (go_back_in_time, "went back in time"),
        (read_what_was_stale, "misses"),
        (leave_open_what_happened, "nobody could tell"),
        (be_told_nonsense, "never be told"),
    ],
)
def test_what_is_wrong_is_found(run: Run, spoil: Callable[[Events, Final], None], said: str) -> None:
    events, final = copy.deepcopy(run)
    spoil(events, final)
    assert any(said in problem for problem in check(events, final).problems)


def test_the_sum_of_the_accounts_never_changes(run: Run) -> None:
    _, final = run
    assert sum(state.value for state in final[BANK].values() if isinstance(state.value, int)) == 1600
