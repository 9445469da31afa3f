"""The latch keeps readers and exclusive holders apart, lets readers in together, and starves nobody."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest

from vecraft_cluster.latch import ReadWriteLatch

SOON = 60.0


@contextmanager
def running(target: Callable[[], None], count: int = 1) -> Iterator[list[threading.Thread]]:
    threads = [threading.Thread(target=target, daemon=True) for _ in range(count)]
    for thread in threads:
        thread.start()
    yield threads
    for thread in threads:
        thread.join(SOON)
        assert not thread.is_alive()


def test_readers_are_in_together() -> None:
    latch = ReadWriteLatch()
    meeting = threading.Barrier(4)

    def read() -> None:
        with latch.shared():
            meeting.wait(SOON)

    with running(read, 4):
        pass
    assert not meeting.broken


def test_exclusive_waits_for_readers_and_keeps_new_ones_out() -> None:
    latch = ReadWriteLatch()
    events: list[str] = []
    reading, leave = threading.Event(), threading.Event()

    def read() -> None:
        with latch.shared():
            reading.set()
            leave.wait(SOON)
            events.append("read")

    def change() -> None:
        with latch.exclusive():
            events.append("changed")

    def read_late() -> None:
        with latch.shared():
            events.append("late read")

    with running(read):
        assert reading.wait(SOON)
        with running(change):
            wait_until(lambda: latch._closed)
            with running(read_late):
                time.sleep(0.02)
                assert events == []
                leave.set()
    assert events == ["read", "changed", "late read"]


def test_reading_twice_does_not_deadlock_against_a_waiting_writer() -> None:
    latch = ReadWriteLatch()
    done = threading.Event()

    def change() -> None:
        with latch.exclusive():
            done.set()

    with latch.shared(), running(change):
        wait_until(lambda: latch._closed)
        with latch.shared():
            assert not done.is_set()
        latch.leave_shared()
        try:
            assert done.wait(SOON)
        finally:
            latch.enter_shared()


def test_a_reader_that_was_turned_away_comes_before_the_next_exclusive_holder() -> None:
    latch = ReadWriteLatch()
    order: list[str] = []

    def read() -> None:
        with latch.shared():
            order.append("reader")

    latch.enter_exclusive()
    with running(read):
        wait_until(lambda: bool(latch._waiting))
        latch.leave_exclusive()
        with latch.exclusive():
            order.append("writer")
    assert order == ["reader", "writer"]


def test_the_exclusive_holder_may_read() -> None:
    latch = ReadWriteLatch()
    with latch.exclusive(), latch.shared():
        pass
    with latch.shared():
        pass


def test_a_reader_cannot_become_exclusive() -> None:
    latch = ReadWriteLatch()
    with latch.shared(), pytest.raises(RuntimeError, match="reads"), latch.exclusive():
        pass
    with latch.exclusive(), pytest.raises(RuntimeError), latch.exclusive():
        pass


def test_the_writer_door_is_reentrant() -> None:
    latch = ReadWriteLatch()
    with latch.writer(), latch.writer():
        pass


def test_under_load_nobody_sees_a_half_done_change() -> None:
    latch = ReadWriteLatch()
    pair = [0, 0]
    torn: list[tuple[int, int]] = []
    stop = threading.Event()
    reads = [0]

    def read() -> None:
        while not stop.is_set():
            with latch.shared():
                left, right = pair[0], pair[1]
                if left != right:
                    torn.append((left, right))
                reads[0] += 1
            time.sleep(0)

    def write() -> None:
        for _ in range(50):
            with latch.writer(), latch.exclusive():
                pair[0] += 1
                time.sleep(0)
                pair[1] += 1

    with running(read, 3):
        with running(write, 2):
            pass
        stop.set()
    assert torn == []
    assert pair == [100, 100]
    assert reads[0] > 0


def wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + SOON
    while not condition():
        if time.monotonic() > deadline:
            raise AssertionError("it did not happen in time")
        time.sleep(0.001)
