"""One thread that lands calls over sockets for those who do not wait for them themselves.

A caller that finds its lane idle waits for its own call (:func:`land_all`), on its own thread. What it leaves behind
when its time is over, and calls that carry several callers' requests, are waited for here, so that nobody waits for
another caller's slower shard.
"""

from __future__ import annotations

import logging
import os
import select
import selectors
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence

from vecraft_cluster.links import Flight

logger = logging.getLogger(__name__)


class Reactor:
    """Lands flights, and gives those up that take too long."""

    def __init__(self) -> None:
        self._selector = selectors.DefaultSelector()
        self._alarm = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._selector.register(self._alarm, selectors.EVENT_READ)
        self._new: deque[_Watched] = deque()
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None
        self._closed = False

    def watch(self, flight: Flight, until: float, landed: Callable[[], None]) -> None:
        """Have ``landed`` called once the flight has its answer: at ``until`` (monotonic) at the latest."""
        with self._lock:
            if not self._closed:
                self._new.append(_Watched(flight, until, landed))
                if self._thread is None:
                    self._thread = threading.Thread(target=self._run, name="vecraft-land", daemon=True)
                    self._thread.start()
                os.eventfd_write(self._alarm, 1)
                return
        flight.give_up()
        flight.release()
        landed()

    def close(self) -> None:
        """Give up what has not landed, and end the thread."""
        with self._lock:
            if self._closed:
                return
            self._closed = True
            thread = self._thread
            os.eventfd_write(self._alarm, 1)
        if thread is not None:
            thread.join()
        self._selector.close()
        os.close(self._alarm)

    def _run(self) -> None:
        watched: set[_Watched] = set()
        while not self._closed:
            left_s = min((each.until for each in watched), default=time.monotonic() + 60.0) - time.monotonic()
            for key, _ in self._selector.select(max(0.0, left_s)):
                if key.fd == self._alarm:
                    os.eventfd_read(self._alarm)
                elif self._advance(key.data):
                    watched.discard(key.data)
            while self._new:
                each = self._new.popleft()
                if not self._advance(each, registered=False):
                    watched.add(each)
            now = time.monotonic()
            for late in [each for each in watched if each.until <= now]:
                watched.discard(late)
                self._end(late)
        for each in [*watched, *self._new]:
            self._end(each, registered=each in watched)

    def _advance(self, each: _Watched, registered: bool = True) -> bool:
        """Move a flight on; True once it has landed. Otherwise the selector knows what it waits for."""
        flight = each.flight
        if flight.advance():
            self._end(each, registered)
            return True
        events = selectors.EVENT_READ | (selectors.EVENT_WRITE if flight.sending else 0)
        if not registered:
            self._selector.register(flight, events, each)
        elif events != each.events:
            self._selector.modify(flight, events, each)
        each.events = events
        return False

    def _end(self, each: _Watched, registered: bool = True) -> None:
        if registered:
            self._selector.unregister(each.flight)
        each.flight.give_up()  # nothing happens if it has landed
        each.flight.release()
        try:
            each.landed()
        except Exception:  # a defect in what was to be done with the answer, to be seen and survived
            logger.exception("landing failed")


class _Watched:
    __slots__ = ("events", "flight", "landed", "until")

    def __init__(self, flight: Flight, until: float, landed: Callable[[], None]) -> None:
        self.flight = flight
        self.until = until
        self.landed = landed
        self.events = 0


def land_all(flights: Sequence[Flight], deadline: float) -> None:
    """Wait on this thread for flights of its own, until ``deadline`` (monotonic). What has landed is released."""
    poll = select.poll()
    waiting: dict[int, Flight] = {}
    for flight in flights:
        if flight.landed:
            flight.release()
        else:
            descriptor = flight.fileno()
            waiting[descriptor] = flight
            poll.register(descriptor, _events(flight))
    while waiting:
        left_s = deadline - time.monotonic()
        ready = poll.poll(max(0.0, left_s) * 1000)
        for descriptor, _ in ready:
            flight = waiting[descriptor]
            if flight.advance():
                del waiting[descriptor]
                if waiting:
                    poll.unregister(descriptor)
                flight.release()
            else:
                poll.modify(descriptor, _events(flight))
        if not ready and left_s <= 0:
            return


def _events(flight: Flight) -> int:
    return select.POLLIN | select.POLLOUT if flight.sending else select.POLLIN
