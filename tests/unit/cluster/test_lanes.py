"""Lanes: natural batching, and exactly one answer per ticket whatever happens to its call. No Ray is started here."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, cast

import pytest
from ray import exceptions as ray_errors

from vecraft_cluster.lanes import Gate, Lane, Launcher, Ticket
from vecraft_cluster.ports import translate
from vecraft_data_model.errors import (
    OverloadedError,
    ShardUnavailableError,
    StaleMapError,
    TimeoutException,
    WriteConflictException,
)


class _Actor:
    """Stands in for a carrier; calls land when the test says so."""

    def __init__(self) -> None:
        self.calls: list[tuple[list[Any], Future[Any]]] = []
        self.missing = False
        self.instant = False
        self.answered_by: ThreadPoolExecutor | None = None

    def send(self, message: list[Any]) -> Future[Any]:
        if self.missing:
            raise ShardUnavailableError("no such actor", outcome="not done")
        future: Future[Any] = Future()
        self.calls.append((message, future))
        if self.answered_by is not None:
            self.answered_by.submit(future.set_result, message)
        return future

    def watch(self, flight: Future[Any], until: float, landed: Callable[[Any], None]) -> None:
        flight.add_done_callback(lambda done: landed(done.result()))

    def is_instant(self) -> bool:
        return self.instant

    def land(self, number: int) -> None:
        argument, future = self.calls[number]
        future.set_result([f"answer to {request}" for request in argument])


@pytest.fixture
def launcher() -> Iterator[Launcher]:
    launcher = Launcher("test-send")
    yield launcher
    launcher.close()


@pytest.fixture
def actor() -> _Actor:
    return _Actor()


def _lane(actor: _Actor, launcher: Launcher, **options: Any) -> Lane[_Actor]:
    def pack(requests: Sequence[Any], timeout: float) -> Any:
        return list(requests)

    def unpack(data: Any, count: int) -> list[Any]:
        return list(data)

    return Lane(actor, "shard 7", pack, unpack, launcher, details={"shard": 7}, **options)


def _ticket(request: Any, seconds: float = 600.0) -> tuple[Ticket, Gate]:
    gate = Gate(1)
    return Ticket(request, time.monotonic() + seconds, gate), gate


def _sent(actor: _Actor, count: int) -> list[list[Any]]:
    """Wait until that many calls left, and return what they carried."""
    deadline = time.monotonic() + 60
    while len(actor.calls) < count and time.monotonic() < deadline:
        time.sleep(0.001)
    return [argument for argument, _ in actor.calls]


def test_an_idle_lane_sends_at_once_and_a_busy_one_sends_what_queued_up_together(
    actor: _Actor, launcher: Launcher
) -> None:
    lane = _lane(actor, launcher)
    tickets = [_ticket(name) for name in "abc"]
    for ticket, _ in tickets:
        lane.send(ticket)
    assert _sent(actor, 1) == [["a"]]

    actor.land(0)
    assert _sent(actor, 2) == [["a"], ["b", "c"]]
    assert tickets[0][1].wait(60) and tickets[0][0].answer == "answer to a"
    assert not tickets[1][1].wait(0)

    actor.land(1)
    assert [gate.wait(60) for _, gate in tickets[1:]] == [True, True]
    assert [ticket.answer for ticket, _ in tickets[1:]] == ["answer to b", "answer to c"]


def test_several_calls_may_be_under_way(actor: _Actor, launcher: Launcher) -> None:
    lane = _lane(actor, launcher, in_flight_max=2)
    for name in "abcd":
        lane.send(_ticket(name)[0])
    assert _sent(actor, 2) == [["a"], ["b"]]
    actor.land(1)
    assert _sent(actor, 3) == [["a"], ["b"], ["c", "d"]]


def test_a_call_is_bounded_in_requests_and_bytes(actor: _Actor, launcher: Launcher) -> None:
    lane = _lane(actor, launcher, batch_max=3, weigh=int, bytes_max=10)
    for weight in (1, 2, 3, 4, 50, 6, 4):
        lane.send(_ticket(weight)[0])
    for number in range(4):
        _sent(actor, number + 1)
        actor.land(number)
    assert _sent(actor, 4) == [[1], [2, 3, 4], [50], [6, 4]]


def test_what_is_in_no_hurry_leaves_with_the_next_call(actor: _Actor, launcher: Launcher) -> None:
    lane = _lane(actor, launcher)
    lazy, lazy_gate = _ticket("lazy")
    lane.send_lazily(lazy, 600.0)
    time.sleep(0.02)
    assert actor.calls == [] and lane.queued == 1

    ticket, gate = _ticket("a")
    call = lane.depart(ticket)
    assert call is not None, "the lane is idle: its caller waits itself, for both"
    assert _sent(actor, 1) == [["lazy", "a"]]
    lane.arrived(call, ["answer to lazy", "answer to a"])
    assert gate.wait(0) and lazy_gate.wait(0)
    assert (lazy.answer, ticket.answer) == ("answer to lazy", "answer to a")


def test_what_is_in_no_hurry_leaves_alone_if_nothing_comes(actor: _Actor, launcher: Launcher) -> None:
    lane = _lane(actor, launcher)
    for name, seconds in (("soon", 0.5), ("never", 600.0)):
        lane.send_lazily(_ticket(name)[0], seconds)
    assert _sent(actor, 1) == [["soon", "never"]]


def test_a_caller_waits_itself_only_if_its_request_leaves_at_once(actor: _Actor, launcher: Launcher) -> None:
    lane = _lane(actor, launcher)
    first, _ = _ticket("a")
    second, second_gate = _ticket("b")
    call = lane.depart(first)
    assert call is not None
    assert lane.depart(second) is None
    lane.arrived(call, ShardUnavailableError("gone", outcome="unknown"))
    assert isinstance(first.answer, ShardUnavailableError)
    _sent(actor, 2)
    actor.land(1)
    assert second_gate.wait(60) and second.answer == "answer to b"

    actor.missing = True
    third, third_gate = _ticket("c")
    assert lane.depart(third) is None
    assert third_gate.wait(0) and isinstance(third.answer, ShardUnavailableError)


def test_a_caller_waits_itself_while_another_call_is_under_way(actor: _Actor, launcher: Launcher) -> None:
    lane = _lane(actor, launcher, in_flight_max=2)
    lane.send(_ticket("a")[0])
    ticket, gate = _ticket("b")
    call = lane.depart(ticket)
    assert call is not None
    assert lane.depart(_ticket("c")[0]) is None
    lane.arrived(call, ["answer to b"])
    assert gate.wait(0) and ticket.answer == "answer to b"


def test_giving_up_while_queued_takes_the_request_out(actor: _Actor, launcher: Launcher) -> None:
    lane = _lane(actor, launcher)
    lane.send(_ticket("a")[0])
    ticket, gate = _ticket("b", seconds=0.0)
    lane.send(ticket)
    assert not gate.wait(0)
    lane.give_up(ticket)
    assert isinstance(ticket.answer, TimeoutException)
    assert ticket.answer.details == {"outcome": "not done", "shard": 7}

    actor.land(0)
    time.sleep(0.02)
    assert _sent(actor, 1) == [["a"]]


def test_a_call_that_never_lands_is_written_off_and_the_lane_moves_on(actor: _Actor, launcher: Launcher) -> None:
    lane = _lane(actor, launcher)
    late, gate = _ticket("a", seconds=0.5)
    lane.send(late)
    after, after_gate = _ticket("b")
    lane.send(after)
    assert not gate.wait(late.deadline - time.monotonic())
    lane.give_up(late)
    assert isinstance(late.answer, TimeoutException) and late.answer.details["outcome"] == "unknown"

    assert _sent(actor, 2) == [["a"], ["b"]]
    actor.land(0)  # at last; it changes nothing any more
    assert isinstance(late.answer, TimeoutException)
    actor.land(1)
    assert after_gate.wait(60) and after.answer == "answer to b"


def test_a_failed_call_fails_each_of_its_tickets_and_the_next_call_leaves(actor: _Actor, launcher: Launcher) -> None:
    lane = _lane(actor, launcher)
    first, first_gate = _ticket("a")
    second, second_gate = _ticket("b")
    lane.send(first)
    lane.send(second)
    actor.calls[0][1].set_result(ShardUnavailableError("went away", outcome="unknown", shard=7))
    assert first_gate.wait(60)
    assert isinstance(first.answer, ShardUnavailableError)
    assert first.answer.details == {"outcome": "unknown", "shard": 7}

    _sent(actor, 2)
    actor.land(1)
    assert second_gate.wait(60) and second.answer == "answer to b"


def test_what_nobody_waits_for_any_longer_is_landed_all_the_same(actor: _Actor, launcher: Launcher) -> None:
    """A caller that waited itself gave up; others travel in its call, and behind it."""
    lane = _lane(actor, launcher)
    lazy, lazy_gate = _ticket("lazy")
    lane.send_lazily(lazy, 600.0)
    hasty, gate = _ticket("a", seconds=0.5)
    call = lane.depart(hasty)
    assert call is not None
    behind, behind_gate = _ticket("b")
    lane.send(behind)
    lane.late(call)
    assert not gate.wait(hasty.deadline - time.monotonic())
    lane.give_up(hasty)
    assert isinstance(hasty.answer, TimeoutException)

    actor.land(0)
    assert lazy_gate.wait(60) and lazy.answer == "answer to lazy"
    assert _sent(actor, 2) == [["lazy", "a"], ["b"]]
    actor.land(1)
    assert behind_gate.wait(60) and behind.answer == "answer to b"


def test_what_follows_leaves_from_the_thread_that_landed_if_that_waits_for_nothing(
    actor: _Actor, launcher: Launcher
) -> None:
    actor.instant = True
    lane = _lane(actor, launcher)
    first, _ = _ticket("a")
    second, _ = _ticket("b")
    call = lane.depart(first)
    lane.send(second)
    assert call is not None
    lane.arrived(call, ["answer to a"])
    assert [argument for argument, _ in actor.calls] == [["a"], ["b"]]


def test_an_answer_that_makes_no_sense_is_an_error_to_each_and_the_lane_lives_on(
    actor: _Actor, launcher: Launcher
) -> None:
    lane = _lane(actor, launcher)
    ticket, gate = _ticket("a")
    lane.send(ticket)
    actor.calls[0][1].set_result(None)
    assert gate.wait(60)
    assert isinstance(ticket.answer, ShardUnavailableError) and "TypeError" in ticket.answer.message
    after, after_gate = _ticket("b")
    lane.send(after)
    actor.land(1)
    assert after_gate.wait(60) and after.answer == "answer to b"


def test_an_actor_that_is_not_there_is_an_answer_too(actor: _Actor, launcher: Launcher) -> None:
    actor.missing = True
    ticket, gate = _ticket("a")
    _lane(actor, launcher).send(ticket)
    assert gate.wait(60)
    assert isinstance(ticket.answer, ShardUnavailableError) and ticket.answer.details["outcome"] == "not done"


def test_too_many_waiting_requests_are_refused_before_they_are_sent(actor: _Actor, launcher: Launcher) -> None:
    lane = _lane(actor, launcher, queued_max=1)
    for name in "ab":
        lane.send(_ticket(name)[0])
    ticket, gate = _ticket("c")
    lane.send(ticket)
    assert gate.wait(0) and isinstance(ticket.answer, OverloadedError)


def test_many_threads_each_get_their_own_answer(actor: _Actor, launcher: Launcher) -> None:
    with ThreadPoolExecutor(2) as answering:
        actor.answered_by = answering
        lane = _lane(actor, launcher, in_flight_max=2)
        wrong: list[Any] = []

        def client(number: int) -> None:
            for step in range(200):
                ticket, gate = _ticket((number, step))
                lane.send(ticket)
                if not gate.wait(10) or ticket.answer != (number, step):
                    wrong.append((number, step, ticket.answer))

        threads = [threading.Thread(target=client, args=(number,)) for number in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert wrong == []
    assert sum(len(argument) for argument, _ in actor.calls) == 8 * 200
    assert len(actor.calls) < 8 * 200, "under load requests must share calls"


def test_failures_mean_what_the_caller_may_conclude() -> None:
    cases: list[tuple[BaseException, type, str]] = [
        (ray_errors.GetTimeoutError("late"), TimeoutException, "the outcome is unknown"),
        (ray_errors.ActorUnavailableError("socket closed", None), ShardUnavailableError, "went away"),
        (ray_errors.ActorDiedError(), ShardUnavailableError, "is not running"),
        (ValueError("odd"), ShardUnavailableError, "ValueError: odd"),
    ]
    for error, expected, words in cases:
        meaning = translate(error, "shard 3", shard=3)
        assert type(meaning) is expected and words in meaning.message
    stale = StaleMapError("old map")
    assert translate(stale, "shard 3") is stale
    conflict = WriteConflictException("locked", record_id="a")
    assert translate(cast(Any, ray_errors.RayTaskError)("execute", "trace", conflict), "shard 3") is conflict
