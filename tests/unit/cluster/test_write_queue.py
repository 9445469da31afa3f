"""Group commit: what queues up leaves together; giving up says truthfully whether anything was done."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

import pytest

from vecraft_cluster.write_queue import Outcome, WriteQueue
from vecraft_data_model.errors import OverloadedError, ShardUnavailableError, TimeoutException
from vecraft_data_model.messages import Batch, BatchReply, Done, Status

SOON = 60.0


class Recorder:
    """Carries groups out by noting them; holds the first one until told to go on."""

    def __init__(self) -> None:
        self.groups: list[list[int]] = []
        self.started = threading.Event()
        self.go_on = threading.Event()

    def __call__(self, batches: list[Batch]) -> list[Outcome]:
        self.groups.append([batch.clock for batch in batches])
        self.started.set()
        assert self.go_on.wait(SOON)
        return [BatchReply([Done()], batch.clock) for batch in batches]


def batch(number: int) -> Batch:
    return Batch([Status()], clock=number)


def in_thread(call: Callable[[], object]) -> tuple[threading.Thread, list[object]]:
    outcome: list[object] = []

    def run() -> None:
        try:
            outcome.append(call())
        except Exception as error:
            outcome.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    return thread, outcome


def wait_for_line(queue: WriteQueue, length: int) -> None:
    deadline = time.monotonic() + SOON
    while len(queue._waiting) < length:
        assert time.monotonic() < deadline
        time.sleep(0.001)


def test_what_queues_up_during_a_group_leaves_as_the_next() -> None:
    recorder = Recorder()
    queue = WriteQueue(recorder)
    calls = [in_thread(lambda: queue.submit(batch(0), SOON))]
    assert recorder.started.wait(SOON)
    for number in (1, 2, 3):
        calls.append(in_thread(lambda number=number: queue.submit(batch(number), SOON)))  # type: ignore[misc]
        wait_for_line(queue, number)
    recorder.go_on.set()
    for number, (thread, outcome) in enumerate(calls):
        thread.join(SOON)
        assert isinstance(outcome[0], BatchReply)
        assert outcome[0].clock == number
    assert recorder.groups == [[0], [1, 2, 3]]


def test_a_solo_batch_and_a_turn_keep_their_place_in_line() -> None:
    recorder = Recorder()
    queue = WriteQueue(recorder)

    def turn() -> None:
        with queue.turn():
            recorder.groups.append([-1])

    calls = [in_thread(lambda: queue.submit(batch(0), SOON))]
    assert recorder.started.wait(SOON)
    calls.append(in_thread(lambda: queue.submit(batch(1), SOON)))
    wait_for_line(queue, 1)
    calls.append(in_thread(turn))
    wait_for_line(queue, 2)
    calls.append(in_thread(lambda: queue.submit(batch(2), SOON, solo=True)))
    wait_for_line(queue, 3)
    calls.append(in_thread(lambda: queue.submit(batch(3), SOON)))
    wait_for_line(queue, 4)
    recorder.go_on.set()
    for thread, _ in calls:
        thread.join(SOON)
    assert recorder.groups == [[0], [1], [-1], [2], [3]]


def test_giving_up_in_line_leaves_nothing_behind() -> None:
    recorder = Recorder()
    queue = WriteQueue(recorder)
    thread, _ = in_thread(lambda: queue.submit(batch(0), SOON))
    assert recorder.started.wait(SOON)
    with pytest.raises(TimeoutException, match="nothing was done"):
        queue.submit(batch(1), 0.01)
    recorder.go_on.set()
    thread.join(SOON)
    queue.submit(batch(2), SOON)
    assert recorder.groups == [[0], [2]]


def test_giving_up_in_a_group_says_that_the_outcome_is_unknown() -> None:
    held, second, release = threading.Event(), threading.Event(), threading.Event()

    def carry_out(batches: list[Batch]) -> list[Outcome]:
        if len(batches) == 2:
            second.set()
            assert release.wait(SOON)
        else:
            assert held.wait(SOON)
        return [BatchReply([], 0) for _ in batches]

    queue = WriteQueue(carry_out)
    first, _ = in_thread(lambda: queue.submit(batch(0), SOON))
    while not queue._led:
        time.sleep(0.001)
    leader, _ = in_thread(lambda: queue.submit(batch(1), SOON))
    wait_for_line(queue, 1)
    follower, outcome = in_thread(lambda: queue.submit(batch(2), 1.5))
    wait_for_line(queue, 2)
    held.set()
    assert second.wait(SOON)
    follower.join(SOON)
    assert isinstance(outcome[0], TimeoutException)
    assert "unknown" in outcome[0].message
    release.set()
    first.join(SOON)
    leader.join(SOON)
    assert queue.submit(batch(3), SOON) == BatchReply([], 0)


def test_each_caller_gets_its_own_error() -> None:
    queue = WriteQueue(lambda batches: [OverloadedError("full") for _ in batches])
    with pytest.raises(OverloadedError, match="full"):
        queue.submit(batch(0), SOON)


def test_a_leader_that_fails_hands_the_lead_on_and_tells_its_company() -> None:
    started, go_on = threading.Event(), threading.Event()
    groups: list[int] = []

    def carry_out(batches: list[Batch]) -> list[Outcome]:
        groups.append(len(batches))
        if len(groups) == 1:
            started.set()
            assert go_on.wait(SOON)
        if len(groups) == 2:
            raise KeyError("a defect")
        return [BatchReply([], 0) for _ in batches]

    queue = WriteQueue(carry_out)
    calls = [in_thread(lambda: queue.submit(batch(0), SOON))]
    assert started.wait(SOON)
    for number in (1, 2):
        calls.append(in_thread(lambda: queue.submit(batch(1), SOON)))
        wait_for_line(queue, number)
    go_on.set()
    for thread, _ in calls:
        thread.join(SOON)
    assert isinstance(calls[1][1][0], KeyError)
    assert isinstance(calls[2][1][0], ShardUnavailableError)
    assert isinstance(queue.submit(batch(3), SOON), BatchReply)


def test_a_turn_ends_when_its_body_fails() -> None:
    queue = WriteQueue(lambda batches: [BatchReply([], 0) for _ in batches])
    with pytest.raises(KeyError), queue.turn():
        raise KeyError
    assert isinstance(queue.submit(batch(0), SOON), BatchReply)
