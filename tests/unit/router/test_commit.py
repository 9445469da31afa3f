"""The commit protocol, message by message: who is asked what, and what may be told."""

from __future__ import annotations

import pytest
from router_workbench import LOSE_REPLY, LOSE_REQUEST, Workbench, fail_times

from vecraft_data_model.errors import (
    CollectionAlreadyExistedException,
    CollectionNotExistedException,
    InvalidDataException,
    OverloadedError,
    PreconditionFailedError,
    ReadWriteConflictException,
    ShardUnavailableError,
    SnapshotTooOldError,
    StorageFailureException,
    StorageFullError,
    TimeoutException,
    WriteConflictException,
)
from vecraft_data_model.messages import (
    Aborted,
    AbortTransaction,
    Acknowledge,
    CommitOne,
    Committed,
    CreateCollection,
    Decide,
    Delete,
    Finish,
    Prepare,
    SetAlias,
)  # fmt: skip
from vecraft_data_model.placement import ClusterMap, initial_map, primary_of
from vecraft_data_model.schema import CollectionSchema
from vecraft_data_model.validation import txn_created_ms


@pytest.fixture
def bench() -> Workbench:
    bench = Workbench()
    bench.create()
    bench.asked.clear()
    return bench


# ------------------------------------------------------------------------------------------------- one shard


def test_records_of_one_shard_take_one_message(bench: Workbench) -> None:
    ids = bench.ids_on(1, 3)
    commit = bench.run(bench.router.commit([bench.put(*ids, value=7)]))
    assert [(shard, type(request)) for shard, request in bench.asked] == [(1, CommitOne)]
    assert bench.values(*ids) == [7, 7, 7]
    assert commit.result.count == 3 and commit.preimages is None
    assert commit.result.commit_ts <= bench.router.state.hlc.last
    assert txn_created_ms(commit.result.txn_id) == bench.clock.now_ms()


def test_nothing_to_commit_asks_nobody(bench: Workbench) -> None:
    commit = bench.run(bench.router.commit([], txn_id="nothing"))
    assert commit.result.count == 0 and commit.result.txn_id == "nothing" and not bench.asked


@pytest.mark.parametrize("lost", [LOSE_REQUEST, LOSE_REPLY])
def test_a_lost_message_is_sent_again_and_carried_out_once(bench: Workbench, lost: str) -> None:
    [record] = bench.ids_on(2)
    bench.fault = fail_times(3, lost, CommitOne)
    commit = bench.run(bench.router.commit([bench.put(record, value=1, expect="absent")]))
    assert bench.sent(CommitOne) == [2, 2, 2, 2]
    assert len(bench.shards[2].records["things", record]) == 1
    assert commit.result.count == 1


def test_a_shard_that_stays_away_leaves_the_outcome_unknown(bench: Workbench) -> None:
    [record] = bench.ids_on(0)
    bench.fault = lambda shard, request: LOSE_REPLY
    deadline = bench.router.deadline(3.0)
    with pytest.raises(ShardUnavailableError, match="is unknown") as caught:
        bench.run(bench.router.commit([bench.put(record, value=1)], deadline=deadline))
    assert 2.5 < bench.clock.now <= 3.0
    assert caught.value.details["outcome"] == "unknown"
    bench.fault = lambda shard, request: None
    again = bench.run(bench.router.commit([bench.put(record, value=1)], txn_id=caught.value.details["txn_id"]))
    assert len(bench.shards[0].records["things", record]) == 1 and again.result.count == 1


def test_a_write_that_never_arrived_is_aborted_before_that_is_told(bench: Workbench) -> None:
    [record] = bench.ids_on(0)
    bench.fault = fail_times(10**6, LOSE_REQUEST, CommitOne)
    with pytest.raises(ShardUnavailableError, match="was aborted") as caught:
        bench.run(bench.router.commit([bench.put(record)], deadline=bench.router.deadline(2.0)))
    assert caught.value.details["outcome"] == "aborted"
    txn_id = caught.value.details["txn_id"]
    assert bench.shards[0].outcomes[txn_id][0] == 0
    late = next(request for _, request in bench.asked if isinstance(request, CommitOne))
    assert bench.execute(0, late).responses == [Aborted(txn_id)]  # a late copy cannot win


def test_a_conflict_on_one_shard_needs_no_second_message(bench: Workbench) -> None:
    [record] = bench.ids_on(0)
    snapshot = bench.run(bench.router.choose_snapshot())
    bench.run(bench.router.commit([bench.put(record, value=1)]))
    bench.asked.clear()
    with pytest.raises(WriteConflictException):
        bench.run(bench.router.commit([bench.put(record, value=2)], snapshot=snapshot))
    assert bench.sent(CommitOne) == [0] and not bench.sent(AbortTransaction)
    assert bench.values(record) == [1]


def test_a_refusal_that_could_be_outlived_is_aborted_first(bench: Workbench) -> None:
    """Were the collection created later, a late copy of the request would be carried out after all."""
    with pytest.raises(CollectionNotExistedException) as caught:
        bench.run(bench.router.commit([bench.put("a", collection="nowhere")]))
    shard = bench.router.state.cluster_map.shard_of("a")
    assert bench.shards[shard].outcomes[caught.value.details["txn_id"]][0] == 0


def test_invalid_input_is_told_as_it_is(bench: Workbench) -> None:
    bench.fault = lambda shard, request: InvalidDataException("dim 3 is not 4")
    with pytest.raises(InvalidDataException, match="dim 3"):
        bench.run(bench.router.commit([bench.put("a")]))
    assert not bench.sent(AbortTransaction)


def test_what_was_not_done_for_lack_of_room_is_told_at_once(bench: Workbench) -> None:
    bench.fault = lambda shard, request: OverloadedError("full")
    for ids in (["a"], bench.one_on_each()):
        with pytest.raises(OverloadedError):
            bench.run(bench.router.commit([bench.put(*ids)]))
    assert bench.clock.now == 0.0 and not bench.sent(AbortTransaction)


@pytest.mark.parametrize(("refused", "outcome"), [((CommitOne, Prepare), "aborted"), ((object,), "unknown")])
def test_a_write_that_a_full_disk_refused_is_aborted_before_that_is_told(
    bench: Workbench, refused: tuple[type, ...], outcome: str
) -> None:
    """A copy of the request may come late, and find room. If there is none for the abort either, nobody knows."""
    bench.fault = lambda shard, request: StorageFullError("full") if isinstance(request, refused) else None
    for ids in (["a"], bench.one_on_each()):
        bench.asked.clear()
        with pytest.raises(StorageFullError) as caught:
            bench.run(bench.router.commit([bench.put(*ids)]))
        assert caught.value.details["outcome"] == outcome
        assert bench.sent(AbortTransaction)


def test_a_failing_disk_leaves_the_outcome_unknown(bench: Workbench) -> None:
    bench.fault = lambda shard, request: StorageFailureException("fsync failed")
    with pytest.raises(StorageFailureException, match=r"fsync failed.*unknown") as caught:
        bench.run(bench.router.commit([bench.put("a")]))
    assert caught.value.details["outcome"] == "unknown"


def test_a_blind_write_waits_for_a_lock_under_the_same_id(bench: Workbench) -> None:
    ids = bench.one_on_each()
    bench.fault = fail_times(5, WriteConflictException("locked", locked=True), CommitOne)
    bench.run(bench.router.commit([bench.put(ids[0], value=3)]))
    sent = {request.txn.txn_id for _, request in bench.asked if isinstance(request, CommitOne)}
    assert len(sent) == 1 and bench.values(ids[0]) == [3] and bench.clock.now > 0


def test_a_snapshot_transaction_waits_for_a_lock_that_may_be_its_own_last_commit(bench: Workbench) -> None:
    snapshot = bench.run(bench.router.choose_snapshot())
    bench.fault = fail_times(3, WriteConflictException("locked", locked=True), CommitOne)
    bench.run(bench.router.commit([bench.put("a", value=4)], snapshot=snapshot))
    assert bench.values("a") == [4] and bench.clock.now > 0


def test_a_snapshot_transaction_meets_its_conflict_and_is_aborted_durably(bench: Workbench) -> None:
    snapshot = bench.run(bench.router.choose_snapshot())
    bench.run(bench.router.commit([bench.put("a")]))
    with pytest.raises(WriteConflictException) as caught:
        bench.run(bench.router.commit([bench.put("a")], snapshot=snapshot))
    shard = bench.router.state.cluster_map.shard_of("a")
    assert bench.shards[shard].outcomes[caught.value.details["txn_id"]][0] == 0  # durable before it was told


# ---------------------------------------------------------------------------------------------- several shards


def test_two_phases(bench: Workbench) -> None:
    ids = bench.one_on_each()
    commit = bench.run(bench.router.commit([bench.put(*ids, value=5), Delete("things", ["gone"])]))
    primary = primary_of(commit.result.txn_id, [0, 1, 2])
    others = [shard for shard in range(3) if shard != primary]
    assert [(shard, type(request)) for shard, request in bench.asked] == [
        (0, Prepare), (1, Prepare), (2, Prepare), (primary, Decide),
        (others[0], Finish), (others[1], Finish), (primary, Acknowledge),
    ]  # fmt: skip
    assert bench.values(*ids) == [5, 5, 5] and commit.result.count == 3
    begins = {shard.records["things", i][0].begin for shard, i in zip(bench.shards, ids, strict=True)}
    assert begins == {commit.result.commit_ts}
    assert not any(shard.held for shard in bench.shards) and bench.shards[primary].unacknowledged == {
        commit.result.txn_id: set()
    }


def test_the_answer_does_not_wait_for_the_others(bench: Workbench) -> None:
    bench.background = False
    commit = bench.run(bench.router.commit([bench.put(*bench.one_on_each())]))
    assert sum(bool(shard.held) for shard in bench.shards) == 2
    assert len(bench.spawned) == 1 and commit.result.count == 3
    bench.drain()
    assert not any(shard.held for shard in bench.shards)


def test_preimages_come_from_every_shard(bench: Workbench) -> None:
    ids = bench.one_on_each()
    bench.run(bench.router.commit([bench.put(*ids[:2], value=1)]))
    commit = bench.run(bench.router.commit([bench.put(*ids, value=2)], want_preimages=True))
    assert commit.preimages is not None and sorted(commit.preimages.ids) == sorted(ids[:2])
    assert commit.preimages.vectors is not None and commit.preimages.vectors.shape == (2, 4)


@pytest.mark.parametrize("kind", [Prepare, Decide, Finish, Acknowledge])
@pytest.mark.parametrize("lost", [LOSE_REQUEST, LOSE_REPLY])
def test_any_lost_message_is_made_up_for(bench: Workbench, kind: type, lost: str) -> None:
    ids = bench.one_on_each()
    bench.fault = fail_times(2, lost, kind)
    commit = bench.run(bench.router.commit([bench.put(*ids, value=1, expect="absent")]))
    assert commit.result.count == 3
    bench.fault = lambda shard, request: None
    for shard in bench.shards:  # what the primary sees to, should the router's Finish be lost
        for txn_id in list(shard.held):
            bench.execute(shard.number, Finish(txn_id, commit.result.commit_ts))
    assert bench.values(*ids) == [1, 1, 1]
    assert all(len(shard.records["things", i]) == 1 for shard, i in zip(bench.shards, ids, strict=True))


def test_one_no_aborts_all(bench: Workbench) -> None:
    ids = bench.one_on_each()
    bench.run(bench.router.commit([bench.put(ids[1], value=1)]))
    with pytest.raises(PreconditionFailedError) as caught:
        bench.run(bench.router.commit([bench.put(*ids, value=2, expect="absent")]))
    txn_id = caught.value.details["txn_id"]
    assert bench.shards[primary_of(txn_id, [0, 1, 2])].outcomes[txn_id][0] == 0
    assert bench.values(*ids) == [None, 1, None]
    assert not any(shard.held for shard in bench.shards)


def test_the_refusal_that_says_most_is_told(bench: Workbench) -> None:
    ids = bench.one_on_each()
    answers = {0: OverloadedError("full"), 1: PreconditionFailedError("present"), 2: WriteConflictException("locked")}
    bench.fault = lambda shard, request: answers[shard] if isinstance(request, Prepare) else None
    with pytest.raises(PreconditionFailedError):
        bench.run(bench.router.commit([bench.put(*ids)]))


def test_a_blind_write_over_several_shards_starts_anew_after_a_lock(bench: Workbench) -> None:
    ids = bench.one_on_each()
    bench.fault = fail_times(3, WriteConflictException("locked", locked=True), Prepare, shard=1)
    commit = bench.run(bench.router.commit([bench.put(*ids, value=9)]))
    attempts = list(dict.fromkeys(r.txn.txn_id for _, r in bench.asked if isinstance(r, Prepare)))
    assert len(attempts) == 4 and attempts[-1] == commit.result.txn_id
    for txn_id in attempts[:-1]:  # each was durably aborted before the next began
        assert bench.shards[primary_of(txn_id, [0, 1, 2])].outcomes[txn_id][0] == 0
    assert bench.values(*ids) == [9, 9, 9] and not any(shard.held for shard in bench.shards)


def test_a_chosen_id_waits_a_little_for_locks_and_is_then_spent(bench: Workbench) -> None:
    ids = bench.one_on_each()
    bench.fault = fail_times(3, WriteConflictException("locked", locked=True), Prepare, shard=1)
    assert bench.run(bench.router.commit([bench.put(*ids, value=1)], txn_id="mine")).result.txn_id == "mine"
    bench.fault = fail_times(10**6, WriteConflictException("locked", locked=True), Prepare, shard=1)
    with pytest.raises(WriteConflictException) as caught:
        bench.run(bench.router.commit([bench.put(*ids, value=2)], txn_id="mine too"))
    assert caught.value.details == {"locked": True, "txn_id": "mine too", "outcome": "aborted"}
    assert bench.clock.now < 1.0
    bench.fault = lambda shard, request: None
    with pytest.raises(WriteConflictException, match="aborted before"):
        bench.run(bench.router.commit([bench.put(*ids, value=2)], txn_id="mine too"))
    assert bench.values(*ids) == [1, 1, 1]


@pytest.mark.parametrize("spread", [False, True])
def test_the_same_id_is_carried_out_once(bench: Workbench, spread: bool) -> None:
    ids = bench.one_on_each() if spread else bench.ids_on(0, 2)
    first = bench.run(bench.router.commit([bench.put(*ids, value=1)], txn_id="once"))
    bench.run(bench.router.commit([bench.put(*ids, value=2)]))
    again = bench.run(bench.router.commit([bench.put(*ids, value=1)], txn_id="once"))
    assert again.result == first.result and bench.values(*ids) == [2] * len(ids)
    with pytest.raises(InvalidDataException, match="other content"):
        bench.run(bench.router.commit([bench.put(*ids, value=3)], txn_id="once"))
    assert bench.run(bench.router.commit([bench.put(*ids, value=1)], txn_id="once")).result == first.result
    assert not any(shard.held for shard in bench.shards)


def test_an_id_used_for_another_transaction_does_not_harm_that_one(bench: Workbench) -> None:
    """The primary knows the id for a commit; it must not be asked to abort it, nor that commit be taken for ours."""
    ids = bench.one_on_each()
    bench.run(bench.router.commit([bench.put(ids[0], ids[1], value=1)], txn_id="x"))
    for mine in ([ids[0], ids[2]], [ids[1], ids[2]], ids):
        with pytest.raises(InvalidDataException, match="other content"):
            bench.run(bench.router.commit([bench.put(*mine, value=2)], txn_id="x"))
    assert bench.values(*ids) == [1, 1, None] and not any(shard.held for shard in bench.shards)


def test_a_dead_participant_aborts_in_time_to_tell(bench: Workbench) -> None:
    ids = bench.one_on_each()
    txn_id = next(f"t{n}" for n in range(99) if primary_of(f"t{n}", [0, 1, 2]) == 0)
    bench.fault = lambda shard, request: LOSE_REQUEST if shard == 1 else None
    with pytest.raises(ShardUnavailableError, match="was aborted") as caught:
        bench.run(bench.router.commit([bench.put(*ids)], txn_id=txn_id, deadline=bench.router.deadline(4.0)))
    assert caught.value.details["outcome"] == "aborted" and bench.clock.now < 4.0
    assert bench.shards[0].outcomes[txn_id][0] == 0 and bench.values(*ids) == [None, None, None]


def test_a_dead_primary_leaves_the_outcome_unknown(bench: Workbench) -> None:
    ids = bench.one_on_each()
    txn_id = next(f"t{n}" for n in range(99) if primary_of(f"t{n}", [0, 1, 2]) == 1)
    bench.fault = lambda shard, request: LOSE_REPLY if isinstance(request, Decide | AbortTransaction) else None
    with pytest.raises(ShardUnavailableError, match="unknown"):
        bench.run(bench.router.commit([bench.put(*ids, value=1)], txn_id=txn_id, deadline=bench.router.deadline(2.0)))
    bench.fault = lambda shard, request: None
    commit = bench.run(bench.router.commit([bench.put(*ids, value=1)], txn_id=txn_id))
    assert bench.values(*ids) == [1, 1, 1] and commit.result.count == 3


def test_an_abort_that_cannot_be_made_durable_is_not_told(bench: Workbench) -> None:
    ids = bench.one_on_each()
    bench.run(bench.router.commit([bench.put(ids[1], value=1)]))
    bench.fault = lambda shard, request: LOSE_REQUEST if isinstance(request, AbortTransaction) else None
    with pytest.raises((TimeoutException, ShardUnavailableError), match="unknown"):
        bench.run(bench.router.commit([bench.put(*ids, expect="absent")], deadline=bench.router.deadline(2.0)))


def test_a_transaction_that_took_too_long_is_tried_anew(bench: Workbench) -> None:
    """Between the votes and the decision, somebody in doubt has had it aborted."""
    ids = bench.one_on_each()
    done: list[str] = []

    def meddle(shard: int, request: object) -> None:
        if isinstance(request, Decide) and not done:
            done.append(request.txn_id)
            bench.shards[shard]._abort(request.txn_id)

    bench.fault = meddle
    commit = bench.run(bench.router.commit([bench.put(*ids, value=4)]))
    assert commit.result.txn_id != done[0] and bench.values(*ids) == [4, 4, 4]
    done.clear()
    with pytest.raises(WriteConflictException, match="aborted before"):
        bench.run(bench.router.commit([bench.put(*ids, value=5)], txn_id="mine"))
    assert bench.values(*ids) == [4, 4, 4] and not any(shard.held for shard in bench.shards)


def test_a_commit_that_somebody_else_finished_is_a_commit(bench: Workbench) -> None:
    ids = bench.one_on_each()
    bench.background = False
    first = bench.run(bench.router.commit([bench.put(*ids, value=1)], txn_id="x"))
    bench.spawned.clear()  # this router dies before it tells the others
    second = bench.run(bench.router.commit([bench.put(*ids, value=1)], txn_id="x"))
    assert second.result == first.result
    bench.drain()
    assert bench.values(*ids) == [1, 1, 1]


# ----------------------------------------------------------------------------------------- snapshots and reads


def test_lost_update_is_refused(bench: Workbench) -> None:
    ids = bench.one_on_each()
    snapshot = bench.run(bench.router.choose_snapshot())
    bench.run(bench.router.commit([bench.put(ids[0], value=1)]))
    with pytest.raises(WriteConflictException):
        bench.run(bench.router.commit([bench.put(*ids, value=2)], snapshot=snapshot))
    assert bench.values(*ids) == [1, None, None]


def test_a_shard_that_was_only_read_takes_part(bench: Workbench) -> None:
    a, b, _ = bench.one_on_each()
    bench.run(bench.router.commit([bench.put(a, b, value=1)]))
    snapshot = bench.run(bench.router.choose_snapshot())
    bench.run(bench.router.commit([bench.put(a, value=2)]))
    with pytest.raises(ReadWriteConflictException):
        bench.run(bench.router.commit([bench.put(b, value=3)], snapshot=snapshot, reads=[("things", a)]))
    bench.run(bench.router.commit([bench.put(b, value=3)], snapshot=snapshot))  # under snapshot isolation it may
    assert bench.values(a, b) == [2, 3]


@pytest.mark.parametrize("snapshot", [0, -1, 2**62])
def test_a_snapshot_that_cannot_be_is_refused(bench: Workbench, snapshot: int) -> None:
    with pytest.raises(InvalidDataException, match="snapshot"):
        bench.run(bench.router.commit([bench.put("a")], snapshot=snapshot))


def test_a_snapshot_below_the_safe_point_is_refused(bench: Workbench) -> None:
    snapshot = bench.run(bench.router.choose_snapshot())
    for shard in bench.shards:
        shard.safe_point = snapshot + 1
    with pytest.raises(SnapshotTooOldError):
        bench.run(bench.router.commit([bench.put(*bench.one_on_each())], snapshot=snapshot))
    assert not any(shard.held for shard in bench.shards)


def test_reads_need_a_snapshot_and_ids_are_checked(bench: Workbench) -> None:
    with pytest.raises(InvalidDataException, match="snapshot"):
        bench.run(bench.router.commit([bench.put("a")], reads=[("things", "b")]))
    with pytest.raises(InvalidDataException, match="txn_id"):
        bench.run(bench.router.commit([bench.put("a")], txn_id="\n"))


# ------------------------------------------------------------------------------------------------- the catalog


def test_a_collection_is_made_on_all_shards_with_one_id(bench: Workbench) -> None:
    made = CollectionSchema(name="more", dim=4)
    first = bench.run(bench.router.commit([CreateCollection(made, "")], txn_id="make"))
    ids = {shard.schemas["more"][1] for shard in bench.shards}
    assert len(ids) == 1 and len(ids.pop()) == 32
    again = bench.run(bench.router.commit([CreateCollection(made, "")], txn_id="make"))
    assert again.result.commit_ts == first.result.commit_ts
    with pytest.raises(CollectionAlreadyExistedException):
        bench.run(bench.router.commit([CreateCollection(made, "")]))


def test_catalog_and_records_in_one_transaction(bench: Workbench) -> None:
    bench.run(bench.router.commit([SetAlias("stuff", "things"), bench.put("a", value=1)]))
    assert all(shard.aliases == {"stuff": "things"} for shard in bench.shards) and bench.values("a") == [1]


# ------------------------------------------------------------------------------------------------- stale maps


def _swap(cluster_map: ClusterMap) -> ClusterMap:
    """Return the next map, with shards 0 and 1 exchanged."""
    swapped = {0: 1, 1: 0, 2: 2}
    return ClusterMap(cluster_map.epoch + 1, [swapped[shard] for shard in cluster_map.slots], 3)


@pytest.mark.parametrize("txn_id", [None, "mine"])
@pytest.mark.parametrize("spread", [False, True])
def test_a_stale_map_is_refreshed(bench: Workbench, txn_id: str | None, spread: bool) -> None:
    ids = bench.one_on_each() if spread else bench.ids_on(0)
    bench.newest_map = _swap(initial_map(3))
    for shard in bench.shards:
        shard.map_epoch = 2
    bench.run(bench.router.commit([bench.put(*ids, value=1)], txn_id=txn_id))
    assert bench.router.state.cluster_map.epoch == 2 and bench.values(*ids) == [1] * len(ids)
    assert ("things", ids[0]) in bench.shards[1].records


def test_a_map_that_changes_half_way_aborts_the_attempt(bench: Workbench) -> None:
    ids = bench.one_on_each()
    bench.newest_map = _swap(initial_map(3))
    bench.shards[2].map_epoch = 2

    def move(shard: int, request: object) -> None:
        if isinstance(request, AbortTransaction):
            for each in bench.shards:
                each.map_epoch = 2

    bench.fault = move
    bench.run(bench.router.commit([bench.put(*ids, value=1)]))
    assert bench.values(*ids) == [1, 1, 1] and not any(shard.held for shard in bench.shards)
    for shard in bench.shards:
        shard.map_epoch = 0
    bench.shards[2].map_epoch, bench.newest_map = 3, ClusterMap(3, list(_swap(initial_map(3)).slots), 3)
    with pytest.raises(WriteConflictException, match="another txn_id") as caught:
        bench.run(bench.router.commit([bench.put(*ids, value=2)], txn_id="mine"))
    assert caught.value.details["outcome"] == "aborted" and bench.values(*ids) == [1, 1, 1]


# ---------------------------------------------------------------------------------------------------- resolve


def test_resolve_tells_what_became_of_an_id(bench: Workbench) -> None:
    ids = bench.one_on_each()
    bench.background = False
    commit = bench.run(bench.router.commit([bench.put(*ids)], txn_id="x"))
    assert bench.run(bench.router.resolve("x")) == Committed(commit.result.commit_ts, 1)
    assert bench.run(bench.router.resolve("x", participants=[0, 1, 2])) == Committed(commit.result.commit_ts, 1)
    assert bench.run(bench.router.resolve("never sent")) == Aborted("never sent")
    with pytest.raises(WriteConflictException):
        bench.run(bench.router.commit([bench.put(*ids)], txn_id="never sent"))


def test_resolve_waits_until_the_primary_may_decide(bench: Workbench) -> None:
    ids = bench.one_on_each()
    bench.fault = lambda shard, request: LOSE_REQUEST if isinstance(request, Decide | AbortTransaction) else None
    with pytest.raises(ShardUnavailableError):
        bench.run(bench.router.commit([bench.put(*ids)], txn_id="x", deadline=bench.router.deadline(0.5)))
    bench.fault = lambda shard, request: None
    assert bench.run(bench.router.resolve("x")) == Aborted("x")
    assert bench.clock.now >= 1.0
    bench.fault = lambda shard, request: LOSE_REQUEST
    with pytest.raises(ShardUnavailableError):
        bench.run(bench.router.resolve("y", deadline=bench.router.deadline(0.5)))
