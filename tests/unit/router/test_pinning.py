"""Pins of transactions that last: none for short ones, one lease for long ones, and nobody waits for a silent shard."""

from __future__ import annotations

import pytest
from router_workbench import LOSE_REQUEST, Workbench

from vecraft_data_model.errors import OverloadedError, SnapshotTooOldError
from vecraft_data_model.messages import PinSnapshot, ReleaseSnapshot
from vecraft_router.pinning import PIN_AFTER_S, PIN_TTL_MS, RENEW_AFTER_S


@pytest.fixture
def bench() -> Workbench:
    bench = Workbench()
    bench.create()
    bench.run(bench.router.commit([bench.put("a", "b", "c", value=1)]))
    bench.asked.clear()
    return bench


def test_a_short_transaction_costs_no_message_more(bench: Workbench) -> None:
    txn = bench.router.transaction()
    bench.run(txn.get("things", ["a"]))
    bench.clock.sleep(0.9 * PIN_AFTER_S)
    bench.run(txn.put(bench.put("a", value=2)))
    bench.clock.sleep(0.9 * PIN_AFTER_S)
    bench.run(txn.commit())
    bench.run(txn.release())
    assert not txn.pinned and not bench.sent(PinSnapshot) and not bench.sent(ReleaseSnapshot)


def test_a_transaction_that_lasts_holds_its_history_until_it_is_over(bench: Workbench) -> None:
    txn = bench.router.transaction()
    snapshot = bench.run(txn.begin())
    bench.clock.sleep(PIN_AFTER_S)
    for _ in range(3):
        bench.run(txn.get("things", ["a"]))
    (pins,) = {tuple(shard.pins.items()) for shard in bench.shards}
    assert [pinned for _, pinned in pins] == [snapshot] and len(bench.sent(PinSnapshot)) == 3
    bench.clock.sleep(RENEW_AFTER_S)
    bench.run(txn.put(bench.put("a", value=2)))
    asked = [request for _, request in bench.asked if isinstance(request, PinSnapshot)]
    assert len(asked) == 6 and {(pin.pin_id, pin.ttl_ms) for pin in asked} == {(pins[0][0], PIN_TTL_MS)}
    bench.run(txn.commit())
    assert txn.pinned
    bench.run(txn.release())
    assert not txn.pinned and not any(shard.pins for shard in bench.shards)
    bench.run(txn.release())
    assert len(bench.sent(ReleaseSnapshot)) == 3


def test_five_minutes_of_silence_are_outlasted_whenever_they_begin(bench: Workbench) -> None:
    txn = bench.router.transaction()
    bench.run(txn.begin())
    bench.clock.sleep(PIN_AFTER_S)
    bench.run(txn.get("things", ["a"]))
    bench.clock.sleep(0.99 * RENEW_AFTER_S)
    bench.run(txn.get("things", ["a"]))
    asked = [request for _, request in bench.asked if isinstance(request, PinSnapshot)]
    assert len(asked) == 3, "the second read came too soon to renew it"
    assert asked[-1].ttl_ms - 1000 * 0.99 * RENEW_AFTER_S >= 300_000


def test_a_shard_that_does_not_answer_keeps_nobody_from_reading_elsewhere(bench: Workbench) -> None:
    (here,), down = bench.ids_on(0), 1
    bench.run(bench.router.commit([bench.put(here, value=1)]))
    txn = bench.router.transaction()
    bench.run(txn.begin())
    bench.clock.sleep(PIN_AFTER_S)
    bench.fault = lambda shard, request: LOSE_REQUEST if shard == down else None
    assert bench.run(txn.get("things", [here])).rows.ids == [here]
    assert bench.clock.now < 2 * PIN_AFTER_S, "most of the caller's time is left"
    bench.fault = lambda shard, request: None
    bench.run(txn.get("things", [here]))
    assert not bench.shards[down].pins, "it is not tried at every call"
    bench.clock.sleep(PIN_AFTER_S)
    bench.run(txn.get("things", [here]))
    assert all(len(shard.pins) == 1 for shard in bench.shards), "one lease, however often it is tried"
    bench.fault = lambda shard, request: LOSE_REQUEST if shard == down else None
    bench.run(txn.release())
    assert not txn.pinned


def test_a_shard_that_refuses_pins_keeps_nobody_from_reading_and_spoils_no_commit(bench: Workbench) -> None:
    (here,), busy = bench.ids_on(0), 1
    bench.run(bench.router.commit([bench.put(here, value=1)]))
    txn = bench.router.transaction()
    bench.run(txn.begin())
    bench.clock.sleep(PIN_AFTER_S)
    bench.fault = lambda shard, request: OverloadedError("too many wait") if shard == busy else None
    assert bench.run(txn.get("things", [here])).rows.ids == [here]
    bench.run(txn.put(bench.put(here, value=2)))
    assert bench.run(txn.commit()).result.count == 1
    bench.run(txn.release())
    assert not txn.pinned


def test_it_says_so_when_the_history_is_gone(bench: Workbench) -> None:
    txn = bench.router.transaction()
    snapshot = bench.run(txn.begin())
    bench.clock.sleep(PIN_AFTER_S)
    for shard in bench.shards:
        shard.safe_point = snapshot + 1
    with pytest.raises(SnapshotTooOldError):
        bench.run(txn.get("things", ["a"]))
