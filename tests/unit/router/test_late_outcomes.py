"""Outcomes that are found out late: how much was written, ids that are kept alive, and what is said of spent ones."""

from __future__ import annotations

import pytest
from router_workbench import LOSE_REPLY, LOSE_REQUEST, Workbench

from vecraft_data_model.errors import CollectionNotExistedException, ShardUnavailableError, WriteConflictException
from vecraft_data_model.messages import Delete, Prepare
from vecraft_data_model.placement import primary_of


@pytest.fixture
def bench() -> Workbench:
    bench = Workbench()
    bench.create()
    bench.asked.clear()
    return bench


@pytest.mark.parametrize("heard", ["the primary", "another"])
def test_a_commit_found_out_late_counts_what_every_shard_wrote(bench: Workbench, heard: str) -> None:
    """The one that says that it was committed knows its own part only."""
    ids = bench.one_on_each()
    bench.run(bench.router.commit([bench.put(*ids, value=1)]))
    mutations = [Delete("things", [*ids, "gone", "gone too"])]
    bench.run(bench.router.commit(mutations, txn_id="x"))
    primary = primary_of("x", [0, 1, 2])
    answers = primary if heard == "the primary" else (primary + 1) % 3
    until = bench.clock.now + 1.6  # longer than votes are waited for
    bench.fault = lambda shard, request: LOSE_REPLY if shard != answers and bench.clock.now < until else None
    again = bench.run(bench.router.commit(mutations, txn_id="x", deadline=bench.router.deadline(2.0)))
    assert again.result.count == 3


def test_a_count_that_nobody_can_tell_is_not_made_up(bench: Workbench) -> None:
    ids = bench.one_on_each()
    mutations = [Delete("things", ids)]
    bench.run(bench.router.commit([bench.put(*ids, value=1)]))
    bench.run(bench.router.commit(mutations, txn_id="x"))
    primary = primary_of("x", [0, 1, 2])
    bench.fault = lambda shard, request: LOSE_REQUEST if shard == (primary + 1) % 3 else None
    with pytest.raises(ShardUnavailableError) as caught:
        bench.run(bench.router.commit(mutations, txn_id="x", deadline=bench.router.deadline(2.0)))
    assert caught.value.details["outcome"] == "unknown"
    assert "was committed" in caught.value.message
    bench.fault = lambda shard, request: None
    assert bench.run(bench.router.commit(mutations, txn_id="x")).result.count == 3


def test_what_a_put_writes_is_known_without_asking(bench: Workbench) -> None:
    ids = bench.one_on_each()
    bench.run(bench.router.commit([bench.put(*ids, value=1)], txn_id="x"))
    primary = primary_of("x", [0, 1, 2])
    bench.fault = lambda shard, request: LOSE_REQUEST if shard == (primary + 1) % 3 else None
    again = bench.run(
        bench.router.commit([bench.put(*ids, value=1)], txn_id="x", deadline=bench.router.deadline(2.0))
    )
    assert again.result.count == 3


def test_a_chosen_id_outlives_a_participant_that_is_restarted(bench: Workbench) -> None:
    """The shards that have voted would take it for given up, and an abort would spend the id."""
    ids = bench.one_on_each()
    bench.background = False

    def down_for_a_while(shard: int, request: object) -> str | None:
        for each in bench.shards:  # as their supervisors do
            each.abort_abandoned(bench.clock.now_ms())
        return LOSE_REQUEST if shard == 1 and bench.clock.now < 3.0 else None

    bench.fault = down_for_a_while
    commit = bench.run(bench.router.commit([bench.put(*ids, value=1)], txn_id="mine"))
    assert commit.result.txn_id == "mine"
    assert bench.clock.now >= 3.0
    bench.drain()
    assert bench.values(*ids) == [1, 1, 1]


def test_an_abort_of_a_chosen_id_says_what_to_do(bench: Workbench) -> None:
    ids = bench.one_on_each()
    bench.fault = lambda shard, request: LOSE_REQUEST if shard == 1 and isinstance(request, Prepare) else None
    with pytest.raises(ShardUnavailableError, match=r"Nothing of transaction mine was written.*another txn_id"):
        bench.run(bench.router.commit([bench.put(*ids)], txn_id="mine", deadline=bench.router.deadline(2.0)))
    bench.fault = lambda shard, request: None
    with pytest.raises(WriteConflictException, match=r"aborted before.*another txn_id"):
        bench.run(bench.router.commit([bench.put(*ids)], txn_id="mine"))
    with pytest.raises(CollectionNotExistedException) as caught:
        bench.run(bench.router.commit([bench.put("a", collection="nowhere")]))
    assert "another txn_id" not in caught.value.message  # the next call has another one anyway
