"""A lane: many threads' requests to one actor, with natural batching and no event loop between.

::

    thread A ──send──▶ nothing under way: A's request leaves at once, as a call of its own
    thread B ──send──▶ queued ┐
    thread C ──send──▶ queued ┴─▶ leave together when a call has landed

An idle lane adds no latency and a loaded one no calls: there is no timer. A caller whose request leaves at once may
wait for the call itself (:meth:`Lane.depart`), which is the cheapest; all other calls are landed by a thread of their
carrier's (:mod:`vecraft_cluster.carriers`), so that nobody waits for another caller's slower shard.

Invariants:

* A ticket is answered exactly once: by its call, by the failure of its call, or by its owner giving up.
* Giving up on a queued ticket takes it out (nothing was done); on one that is under way its outcome is unknown.
* A call that never lands (a frozen actor) is written off when its last owner's time is over, and the lane moves on.
"""

from __future__ import annotations

import heapq
import itertools
import logging
import queue
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, Generic, Protocol, TypeVar

from vecraft_data_model.errors import OverloadedError, ShardUnavailableError, TimeoutException, VecraftError

logger = logging.getLogger(__name__)

Pack = Callable[[Sequence[Any], float], Any]
"""Makes the message of a call from the requests that leave together and the seconds that they have."""

Unpack = Callable[[Any, int], list[Any]]
"""Makes as many answers from what a call was answered; a ``VecraftError`` raised here fails them all."""


class Carrier(Protocol):
    """Takes messages to one actor and brings the answers back. What it answers with is a message, or a
    ``VecraftError``."""

    def send(self, message: Any) -> Any:
        """Send a message off without waiting for its answer; returns the flight, for whoever waits for it.

        Raises:
            VecraftError: It did not leave; nothing was done.
        """
        ...

    def watch(self, flight: Any, until: float, landed: Callable[[Any], None]) -> None:
        """Have ``landed`` called with the answer, once, on any thread.

        ``until`` (monotonic) is the last of its owners' deadlines: a carrier may give up then.
        """
        ...

    def is_instant(self) -> bool:
        """Whether sending now would certainly not wait for anything."""
        ...


class Gate:
    """Counts answers down and wakes whoever waits for the last."""

    __slots__ = ("_left", "_lock", "_open")

    def __init__(self, answers: int) -> None:
        self._left = answers
        self._lock = threading.Lock()
        self._open = threading.Lock()
        self._open.acquire()

    def one_less(self) -> None:
        with self._lock:
            self._left -= 1
            last = self._left == 0
        if last:
            self._open.release()

    def wait(self, timeout: float) -> bool:
        return self._open.acquire(timeout=min(max(timeout, 0.0), threading.TIMEOUT_MAX))


class Ticket:
    """A request on its way. ``answer`` is a response, or the ``VecraftError`` instead of one."""

    __slots__ = ("answer", "deadline", "gate", "request")

    def __init__(self, request: Any, deadline: float, gate: Gate | None) -> None:
        self.request = request
        self.deadline = deadline
        self.gate = gate
        self.answer: Any = None


class Call:
    """Requests that left together: ``flight`` is the carrier's."""

    __slots__ = ("expires", "flight", "tickets")

    def __init__(self, tickets: list[Ticket], expires: float) -> None:
        self.tickets = tickets
        self.expires = expires
        self.flight: Any = None


class Launcher:
    """One thread that sends off what queued up, so that threads that land calls never wait for a send; and what can
    wait."""

    def __init__(self, name: str) -> None:
        self._queue: queue.SimpleQueue[tuple[float, Callable[[], None]] | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    def submit(self, job: Callable[[], None]) -> None:
        """Run a job at once."""
        self._queue.put((0.0, job))

    def later(self, seconds: float, job: Callable[[], None]) -> None:
        """Run a job when that many seconds are over."""
        self._queue.put((time.monotonic() + seconds, job))

    def close(self) -> None:
        """End the thread after what is queued; what was to come later comes now."""
        self._queue.put(None)
        self._thread.join()

    def _run(self) -> None:
        numbers = itertools.count()
        waiting: list[tuple[float, int, Callable[[], None]]] = []
        ending = False
        while not ending or waiting:
            now = time.monotonic()
            while waiting and (ending or waiting[0][0] <= now):
                self._do(heapq.heappop(waiting)[2])
            if ending:
                continue
            try:
                entry = self._queue.get(timeout=max(0.0, waiting[0][0] - now) if waiting else None)
            except queue.Empty:
                continue
            if entry is None:
                ending = True
            elif entry[0] <= now:
                self._do(entry[1])
            else:
                heapq.heappush(waiting, (entry[0], next(numbers), entry[1]))

    def _do(self, job: Callable[[], None]) -> None:
        try:
            job()
        except Exception:  # a job answers its own tickets; what is left is a defect, to be seen and survived
            logger.exception("sending failed")


C = TypeVar("C", bound=Carrier)


class Lane(Generic[C]):
    """Requests to one actor.

    Args:
        carrier: Takes calls there.
        who: The actor, in error messages.
        pack: From requests to a message.
        unpack: From the message that comes back to as many answers.
        launcher: Sends what had to queue.
        in_flight_max: Calls under way before requests queue up.
        batch_max: Most requests in one call.
        queued_max: Most requests that wait; more are refused.
        weigh: Bytes of a request, roughly; a call takes no further request beyond ``bytes_max``.
        call_max_s: Longest that one call may take.
    """

    def __init__(
        self,
        carrier: C,
        who: str,
        pack: Pack,
        unpack: Unpack,
        launcher: Launcher,
        *,
        in_flight_max: int = 1,
        batch_max: int = 256,
        queued_max: int = 4096,
        weigh: Callable[[Any], int] | None = None,
        bytes_max: int = 32 << 20,
        call_max_s: float = 30.0,
        details: dict[str, Any] | None = None,
    ) -> None:
        self.carrier = carrier
        self._who = who
        self._pack = pack
        self._unpack = unpack
        self._launcher = launcher
        self._in_flight_max = in_flight_max
        self._batch_max = batch_max
        self._queued_max = queued_max
        self._weigh = weigh
        self._bytes_max = bytes_max
        self._call_max_s = call_max_s
        self._details = details or {}
        self._lock = threading.Lock()
        self._queue: deque[Ticket] = deque()
        self._calls: set[Call] = set()

    def send(self, ticket: Ticket) -> None:
        """Send a ticket off, or queue it. Never blocks for an answer."""
        with self._lock:
            if len(self._queue) >= self._queued_max:
                refused = True
            else:
                refused = False
                self._queue.append(ticket)
            call = self._board(time.monotonic())
        if refused:
            _answer(
                ticket,
                OverloadedError(
                    f"{len(self._queue)} requests wait for {self._who} already; nothing was done", **self._details
                ),
            )
        if call is not None:
            self._fly(call)

    def depart(self, ticket: Ticket) -> Call | None:
        """Send a ticket off. If it leaves at once, return its call: the caller waits for ``call.flight`` itself and
        hands the answer to :meth:`arrived`, or says that it is :meth:`late`. Otherwise the ticket goes the way of
        :meth:`send`.
        """
        call = None
        with self._lock:
            if len(self._calls) < self._in_flight_max and len(self._queue) < self._batch_max:
                now = time.monotonic()
                if self._queue:
                    self._queue.append(ticket)  # behind what was in no hurry, and now leaves with it
                    call = self._board(now)
                else:
                    call = self._new_call([ticket], now)
        if call is None:
            self.send(ticket)
            return None
        if not self._leave(call):
            return None
        if call.tickets[-1] is ticket:
            return call
        self._watch(call)  # too much was waiting: ours comes with the next call
        return None

    def send_lazily(self, ticket: Ticket, seconds: float) -> None:
        """Queue a ticket to leave with the next call, or after ``seconds`` if there is none."""
        with self._lock:
            self._queue.append(ticket)
        self._launcher.later(seconds, self.nudge)

    @property
    def queued(self) -> int:
        """How many tickets wait."""
        return len(self._queue)

    def nudge(self) -> None:
        """Let what is queued leave, if a call may."""
        with self._lock:
            call = self._board(time.monotonic())
        if call is not None:
            self._fly(call)

    def arrived(self, call: Call, answer: Any) -> None:
        """Land a call that departed: ``answer`` is what came back, or the ``VecraftError`` instead."""
        self._land(call, self._answers(call, answer))

    def late(self, call: Call) -> None:
        """Nobody waits any longer for a call that departed: others may still be served by it, or behind it."""
        self._watch(call)

    def give_up(self, ticket: Ticket) -> None:
        """Answer a ticket whose time is over with a ``TimeoutException``, unless it was answered meanwhile."""
        with self._lock:
            queued = ticket in self._queue
            if queued:
                self._queue.remove(ticket)
            if ticket.answer is None:
                ticket.answer = self._too_late(queued)
            call = self._board(time.monotonic())
        if call is not None:
            self._follow(call)

    def _too_late(self, queued: bool) -> TimeoutException:
        if queued:
            return TimeoutException(
                f"{self._who} was busy until the deadline; nothing was done", outcome="not done", **self._details
            )
        return TimeoutException(
            f"{self._who} did not answer before the deadline; the outcome is unknown",
            outcome="unknown",
            **self._details,
        )

    def _board(self, now: float) -> Call | None:
        """Take what may leave now, if anything; the lock is held."""
        expired = [call for call in self._calls if call.expires <= now]
        self._calls.difference_update(expired)
        if not self._queue or len(self._calls) >= self._in_flight_max:
            return None
        tickets: list[Ticket] = []
        size = 0
        while self._queue and len(tickets) < self._batch_max:
            if self._weigh is not None:
                size += self._weigh(self._queue[0].request)
                if tickets and size > self._bytes_max:
                    break
            tickets.append(self._queue.popleft())
        return self._new_call(tickets, now)

    def _new_call(self, tickets: list[Ticket], now: float) -> Call:
        latest = tickets[0].deadline if len(tickets) == 1 else max(ticket.deadline for ticket in tickets)
        call = Call(tickets, min(latest, now + self._call_max_s))
        self._calls.add(call)
        return call

    def _leave(self, call: Call) -> bool:
        """Send a call off; if that fails, its tickets are answered."""
        try:
            message = self._pack(
                [ticket.request for ticket in call.tickets], max(0.001, call.expires - time.monotonic())
            )
            call.flight = self.carrier.send(message)
        except VecraftError as error:
            self._land(call, [error] * len(call.tickets))
            return False
        except Exception as error:  # whatever kept the call from leaving is the answer to its tickets
            logger.exception("a call could not be sent", extra=self._details)
            self._land(call, [self._failure(error)] * len(call.tickets))
            return False
        return True

    def _fly(self, call: Call) -> None:
        if self._leave(call):
            self._watch(call)

    def _follow(self, call: Call) -> None:
        """Let a call fly that somebody else's thread has found due: from here only if that holds nobody up."""
        if self.carrier.is_instant():
            self._fly(call)
        else:
            self._launcher.submit(lambda: self._fly(call))

    def _watch(self, call: Call) -> None:
        self.carrier.watch(call.flight, call.expires, lambda answer: self.arrived(call, answer))

    def _answers(self, call: Call, answer: Any) -> list[Any]:
        if isinstance(answer, VecraftError):
            return [answer] * len(call.tickets)
        try:
            return self._unpack(answer, len(call.tickets))
        except VecraftError as error:
            return [error] * len(call.tickets)
        except Exception as error:  # what came back is no answer: whoever waits has to see it, the lane lives on
            logger.exception("an answer could not be read", extra=self._details)
            return [self._failure(error)] * len(call.tickets)

    def _failure(self, error: Exception) -> VecraftError:
        return ShardUnavailableError(
            f"{self._who} failed: {type(error).__name__}: {error}", outcome="unknown", **self._details
        )

    def _land(self, call: Call, answers: list[Any]) -> None:
        with self._lock:
            self._calls.discard(call)
            following = self._board(time.monotonic()) if self._queue else None
            for ticket, answer in zip(call.tickets, answers, strict=True):
                if ticket.answer is None:
                    ticket.answer = answer
        if following is not None:
            self._follow(following)
        for ticket in call.tickets:
            if ticket.gate is not None:
                ticket.gate.one_less()


def _answer(ticket: Ticket, answer: VecraftError) -> None:
    ticket.answer = answer
    if ticket.gate is not None:
        ticket.gate.one_less()
