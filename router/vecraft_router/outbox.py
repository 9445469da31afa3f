"""Requests on their way to one shard, on an event loop: natural batching.

While a call to the shard is in flight, further requests queue up, and leave together as the next call. There is no
timer: an idle shard is asked at once, a busy one gets larger batches. A call takes what waits when its task begins, so
that many callers who were answered at once, and ask again in the same turn of the loop, leave together. ::

    submit ─→ reads:   [· · · ·] ─┐  at most reads_in_flight calls
    submit ─→ scans:   [· ·]     ─┤  (reads that may take long: no quick one waits behind them)
    submit ─→ writes:  [· · ·]   ─┼─→ port.execute(Batch) ─→ responses to the waiters
    submit ─→ service: [·]       ─┘  (checkpoints may take long: nothing else waits behind one)

Invariants: every waiter gets exactly one response, at its deadline at the latest. What is cancelled before it was sent
is not sent. A lane holds at most ``max_queued`` requests; more are refused with ``OverloadedError``, and those were
certainly not carried out.

Not done here: retries, and ordering (requests of one lane may be carried out in any order).
"""

from __future__ import annotations

import asyncio
from collections import deque
from typing import Final

from vecraft_data_model.errors import OverloadedError, ShardUnavailableError, TimeoutException, VecraftError
from vecraft_data_model.messages import (
    AbortTransaction,
    Acknowledge,
    Batch,
    Checkpoint,
    CommitOne,
    Count,
    CountWords,
    Decide,
    Describe,
    Finish,
    PinSnapshot,
    Prepare,
    Put,
    Refused,
    ReleaseSnapshot,
    Request,
    Resolve,
    Response,
    Scan,
    Search,
    SetEf,
    Status,
)
from vecraft_data_model.ports import AsyncShardPort
from vecraft_router.state import RouterState

_WRITES: Final = frozenset({CommitOne, Prepare, Decide, AbortTransaction, Resolve, Finish, Acknowledge})
_SERVICE: Final = frozenset({Checkpoint, SetEf, Status, PinSnapshot, ReleaseSnapshot})
_SERVICE_IN_FLIGHT: Final = 8
_QUICK_QUERIES: Final = 8
_SERVICE_CALL_S: Final = 24 * 3600.0


PATIENCE_S: Final[dict[type, float]] = {Finish: 0.001, Acknowledge: 0.05}
"""What is sent after a commit was answered, and how long it may wait for a call to travel with: it then costs neither a
call nor a flush of its own. Until it hears ``Finish`` a participant holds locks, so that one waits hardly at all."""


def lane_of(request: Request) -> str:
    """Return the lane a request travels in: ``"reads"``, ``"scans"``, ``"writes"`` or ``"service"``."""
    kind = type(request)
    if kind in _WRITES:
        return "writes"
    if kind in _SERVICE:
        return "service"
    if isinstance(request, Search):
        options = request.options
        slow = (
            options.exact
            or options.where_document is not None
            or options.text is not None
            or options.group_by is not None
            or len(request.queries) > _QUICK_QUERIES
        )
    elif isinstance(request, Count):
        slow = request.where is not None or request.where_document is not None
    else:
        slow = isinstance(request, Scan | Describe | CountWords)
    return "scans" if slow else "reads"


class Outbox:
    """What is to be sent to one shard. Belongs to one event loop.

    Args:
        shard: Its number, for messages.
        port: Carries batches there.
        state: The router's clock and settings.
    """

    def __init__(self, shard: int, port: AsyncShardPort, state: RouterState) -> None:
        config = state.config
        requests, call_s = config.max_batch_requests, config.max_call_s
        self._lanes = {
            "reads": _Lane(shard, port, state, config.reads_in_flight, requests, call_s),
            "scans": _Lane(shard, port, state, config.scans_in_flight, requests, call_s),
            "writes": _Lane(shard, port, state, config.writes_in_flight, requests, call_s),
            "service": _Lane(shard, port, state, _SERVICE_IN_FLIGHT, 1, _SERVICE_CALL_S),
        }

    @property
    def queued(self) -> int:
        """Requests that wait to be sent."""
        return sum(len(lane.queue) for lane in self._lanes.values())

    def submit(self, request: Request, deadline: float) -> asyncio.Future[Response] | Refused:
        """Queue a request; the future holds its response at ``deadline`` (``Clock.monotonic``) at the latest.

        Refused at once when the lane is full, the deadline has passed or the outbox is closed.
        """
        lane = lane_of(request)
        if lane == "reads":
            self._lanes["writes"].hurry()  # a read must not wait for a decision that waits here
        return self._lanes[lane].submit(request, deadline, PATIENCE_S.get(type(request), 0.0))

    async def close(self) -> None:
        """Refuse what waits, and cancel what is under way (it may have been carried out)."""
        await asyncio.gather(*(lane.close() for lane in self._lanes.values()))


class _Waiter:
    """A request and whoever waits for its response."""

    __slots__ = ("deadline", "future", "request")

    def __init__(self, request: Request, deadline: float, future: asyncio.Future[Response]) -> None:
        self.request = request
        self.deadline = deadline
        self.future = future

    def answer(self, response: Response) -> None:
        if not self.future.done():
            self.future.set_result(response)

    def fail(self, error: BaseException) -> None:
        if not self.future.done():
            self.future.set_exception(error)


class _Lane:
    """One queue and its calls."""

    def __init__(
        self, shard: int, port: AsyncShardPort, state: RouterState, in_flight: int, batch_requests: int, call_s: float
    ) -> None:
        self.queue: deque[_Waiter] = deque()
        self._shard = shard
        self._port = port
        self._state = state
        self._calls_max = in_flight
        self._batch_requests = batch_requests
        self._call_s = call_s
        self._calls: dict[asyncio.Task[None], list[_Waiter]] = {}
        self._boarding: asyncio.Task[None] | None = None
        self._alarm: asyncio.TimerHandle | None = None
        self._alarm_at = 0.0
        self._closed = False

    def submit(self, request: Request, deadline: float, patience_s: float = 0.0) -> asyncio.Future[Response] | Refused:
        remaining = deadline - self._state.clock.monotonic()
        if self._closed:
            return Refused(ShardUnavailableError("the client is closed", shard=self._shard))
        if remaining <= 0:
            return Refused(
                TimeoutException(f"the deadline passed before shard {self._shard} was asked", shard=self._shard)
            )
        if len(self.queue) >= self._state.config.max_queued and not self._drop_done():
            return Refused(
                OverloadedError(
                    f"{len(self.queue)} requests already wait for shard {self._shard}; try again later",
                    shard=self._shard,
                )
            )
        loop = asyncio.get_running_loop()
        future: asyncio.Future[Response] = loop.create_future()
        self.queue.append(_Waiter(request, deadline, future))
        if self._alarm is None or deadline < self._alarm_at:
            self._set_alarm(deadline, remaining)
        if patience_s:
            loop.call_later(patience_s, self.hurry)
        else:
            self._send()
        return future

    def hurry(self) -> None:
        """Send what waits for a call to travel with."""
        if self.queue and not self._closed:
            self._send()

    async def close(self) -> None:
        self._closed = True
        if self._alarm is not None:
            self._alarm.cancel()
        while self.queue:
            self.queue.popleft().answer(Refused(ShardUnavailableError("the client is closed", shard=self._shard)))
        calls = tuple(self._calls)
        for call in calls:
            call.cancel()
        await asyncio.gather(*calls, return_exceptions=True)

    def _set_alarm(self, deadline: float, remaining: float) -> None:
        """Look at the deadlines when the first of them has passed: one timer for all, since hardly any ever does."""
        if self._alarm is not None:
            self._alarm.cancel()
        self._alarm_at = deadline
        self._alarm = asyncio.get_running_loop().call_later(remaining, self._expire)

    def _expire(self) -> None:
        """Answer whose deadline has passed, and set the alarm for the next."""
        self._alarm = None
        now = self._state.clock.monotonic()
        waiting = [waiter for waiters in (self.queue, *self._calls.values()) for waiter in waiters]
        soonest = float("inf")
        for waiter in waiting:
            if waiter.future.done():
                continue
            if waiter.deadline <= now:
                waiter.answer(
                    Refused(
                        TimeoutException(f"shard {self._shard} did not answer within the deadline", shard=self._shard)
                    )
                )
            else:
                soonest = min(soonest, waiter.deadline)
        if soonest < float("inf"):
            self._set_alarm(soonest, soonest - now)

    def _drop_done(self) -> bool:
        """Forget cancelled and expired waiters; return whether there is room again."""
        alive = [waiter for waiter in self.queue if not waiter.future.done()]
        self.queue.clear()
        self.queue.extend(alive)
        return len(alive) < self._state.config.max_queued

    def _send(self) -> None:
        """Have a call leave with what waits once its task begins, if one more may be under way."""
        if self._boarding is not None or not self.queue or len(self._calls) >= self._calls_max:
            return
        waiters: list[_Waiter] = []
        call = asyncio.get_running_loop().create_task(self._call(waiters))
        self._boarding = call
        self._calls[call] = waiters
        call.add_done_callback(self._ended)

    def _ended(self, call: asyncio.Task[None]) -> None:
        del self._calls[call]
        if self._boarding is call:  # cancelled before it began
            self._boarding = None
        if not self._closed:
            self._send()

    def _next_batch(self) -> list[_Waiter]:
        room = self._state.config.max_batch_bytes
        waiters: list[_Waiter] = []
        while self.queue and len(waiters) < self._batch_requests:
            waiter = self.queue[0]
            if waiter.future.done():
                self.queue.popleft()
                continue
            room -= _vector_bytes(waiter.request)
            if room < 0 and waiters:
                break
            waiters.append(self.queue.popleft())
        return waiters

    async def _call(self, waiters: list[_Waiter]) -> None:
        """Take what waits now, carry it to the shard, and hand out the answers; ``waiters`` is filled for others."""
        self._boarding = None
        waiters += self._next_batch()
        self._send()  # for what this call has no room for
        if not waiters:
            return
        state = self._state
        requests = [waiter.request for waiter in waiters]
        batch = Batch(requests, state.hlc.last, state.cluster_map.epoch, state.clock.now_ms())
        latest = max(waiter.deadline for waiter in waiters)
        timeout = min(max(0.001, latest - state.clock.monotonic()), self._call_s)
        try:
            # a port keeps to its timeout by itself; this only makes sure that a faulty one cannot block the lane
            async with asyncio.timeout(timeout + 1.0):
                reply = await self._port.execute(batch, timeout)
        except VecraftError as error:
            refusal = Refused(error)
            for waiter in waiters:
                waiter.answer(refusal)
        except TimeoutError:
            refusal = Refused(
                ShardUnavailableError(f"shard {self._shard} did not answer within {timeout:.1f} s", shard=self._shard)
            )
            for waiter in waiters:
                waiter.answer(refusal)
        except asyncio.CancelledError:
            refusal = Refused(ShardUnavailableError("the client was closed meanwhile", shard=self._shard))
            for waiter in waiters:
                waiter.answer(refusal)
            raise
        except Exception as error:  # a fault of the port itself: whoever waits has to see it, the lane lives on
            for waiter in waiters:
                waiter.fail(error)
        else:
            state.hear(self._shard, reply)
            if len(reply.responses) != len(waiters):
                broken = ShardUnavailableError(
                    f"shard {self._shard} answered {len(reply.responses)} responses to {len(waiters)} requests",
                    shard=self._shard,
                )
                for waiter in waiters:
                    waiter.answer(Refused(broken))
                return
            for waiter, response in zip(waiters, reply.responses, strict=True):
                waiter.answer(response)


def _vector_bytes(request: Request) -> int:
    if isinstance(request, Search):
        return request.queries.nbytes
    if isinstance(request, CommitOne | Prepare):
        return sum(mutation.vectors.nbytes for mutation in request.txn.mutations if isinstance(mutation, Put))
    return 0
