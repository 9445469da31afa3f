"""What carries out the effects of flows: on the caller's thread, or on an event loop.

Both runners stamp each batch with the router's clock and map epoch, move the router's clock to the one that comes
back, and turn every failure of a port into a ``Refused`` response, so that flows see values only.

``SyncRunner`` (embedded): a single shard is asked on the caller's own thread, several in parallel on a small pool.
``AsyncRunner`` (Ray, gateway): requests of all flows to one shard meet in its :class:`~vecraft_router.outbox.Outbox`
and leave together.

Not done here: retries, decisions about what a failure means (flows), and starting or finding shards (the cluster room).
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from concurrent.futures import TimeoutError as FutureTimeout
from typing import Protocol, TypeVar

from vecraft_data_model.errors import ShardUnavailableError, TimeoutException, VecraftError
from vecraft_data_model.messages import Batch, Refused, Request, Response
from vecraft_data_model.placement import ClusterMap
from vecraft_data_model.ports import AsyncShardPort, ShardPort
from vecraft_router.effects import Ask, Effect, Flow, RefreshMap, Sleep, Spawn, Tell
from vecraft_router.outbox import Outbox
from vecraft_router.state import RouterState

T = TypeVar("T")

_log = logging.getLogger(__name__)

_POOL_GRACE_S = 0.25


class HasState(Protocol):
    """A router, as far as a runner needs it."""

    @property
    def state(self) -> RouterState:
        """Clock, map and settings."""
        ...


class SyncRunner:
    """Runs flows on the calling thread. Safe to use from several threads at once.

    Args:
        router: Whose flows are run.
        ports: Shard number → its port; may gain shards later.
        refresh: Fetches the newest cluster map; None: there is only the one map.
        sleep: How to let seconds pass.
    """

    def __init__(
        self,
        router: HasState,
        ports: Mapping[int, ShardPort],
        *,
        refresh: Callable[[], ClusterMap] | None = None,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._state = router.state
        self._ports = ports
        self._refresh = refresh
        self._sleep = sleep
        threads = self._state.config.threads
        # Two pools: tasks of the first only call a port, so a spawned flow that waits for one never waits for itself.
        self._asks = ThreadPoolExecutor(threads, thread_name_prefix="vecraft-ask")
        self._spawned = ThreadPoolExecutor(2, thread_name_prefix="vecraft-spawned")
        self._closed = False

    def run(self, flow: Flow[T]) -> T:
        """Run a flow to its end and return its result, or raise its error."""
        try:
            effect = next(flow)
            while True:
                if type(effect) is Ask:
                    effect = flow.send(self._call_all(effect.requests, effect.deadline))
                else:
                    effect = flow.send(self._perform(effect))
        except StopIteration as stop:
            result: T = stop.value
            return result
        finally:
            flow.close()

    def close(self) -> None:
        """Finish what was spawned, and stop the threads. To be called after the last flow has ended."""
        self._closed = True
        self._spawned.shutdown(wait=True)
        self._asks.shutdown(wait=True)

    def _perform(self, effect: Effect) -> ClusterMap | None:
        if isinstance(effect, Sleep):
            self._sleep(effect.seconds)
        elif isinstance(effect, Spawn):
            self._background(effect.flow)
        elif isinstance(effect, Tell):
            self._background(_tell(effect.requests, self._state))
        elif isinstance(effect, RefreshMap):
            return self._fetch_map()
        else:
            raise TypeError(f"not an effect: {effect!r}")
        return None

    def _fetch_map(self) -> ClusterMap | None:
        if self._refresh is None:
            return None
        try:
            return self._refresh()
        except (ShardUnavailableError, TimeoutException):
            return None  # the flow goes on with the map it has, and asks again

    def _background(self, flow: Flow[None]) -> None:
        if self._closed:
            flow.close()
            return
        try:
            self._spawned.submit(self.run, flow).add_done_callback(_report)
        except RuntimeError:  # closed in between: what is spawned may be lost at any time
            flow.close()

    def _call(self, shard: int, request: Request, deadline: float) -> Response:
        state = self._state
        port = self._ports.get(shard)
        if port is None:
            return Refused(ShardUnavailableError(f"there is no connection to shard {shard}", shard=shard))
        timeout = deadline - state.clock.monotonic()
        if timeout <= 0:
            return Refused(TimeoutException(f"the deadline passed before shard {shard} was asked", shard=shard))
        try:
            reply = port.execute(Batch([request], state.hlc.last, state.cluster_map.epoch), timeout)
        except VecraftError as error:
            return Refused(error)
        if reply.clock > state.hlc.last:
            state.overhear(reply.clock)
        return reply.responses[0]

    def _call_all(self, requests: dict[int, Request], deadline: float) -> dict[int, Response]:
        if len(requests) == 1:
            [(shard, request)] = requests.items()
            return {shard: self._call(shard, request, deadline)}
        if not requests:
            return {}
        (last, last_request), *others = reversed(requests.items())
        futures: dict[int, Future[Response]] = {}
        responses: dict[int, Response] = dict.fromkeys(requests, _CLOSED)
        for shard, request in reversed(others):
            try:
                futures[shard] = self._asks.submit(self._call, shard, request, deadline)
            except RuntimeError:  # the pool is shut down
                responses[shard] = _CLOSED
        responses[last] = self._call(last, last_request, deadline)
        for shard, future in futures.items():
            try:
                responses[shard] = future.result(max(0.0, deadline - self._state.clock.monotonic()) + _POOL_GRACE_S)
            except FutureTimeout:
                # not called yet, or the port overran its own timeout: it may still run, so the outcome is unknown
                future.cancel()
                responses[shard] = Refused(
                    TimeoutException(f"shard {shard} did not answer within the deadline", shard=shard)
                )
        return responses


class AsyncRunner:
    """Runs flows on an event loop, many at a time. To be used on one loop only.

    Args:
        router: Whose flows are run.
        ports: Shard number → its port; may gain shards later.
        refresh: Fetches the newest cluster map; None: there is only the one map.
        sleep: How to let seconds pass.
    """

    def __init__(
        self,
        router: HasState,
        ports: Mapping[int, AsyncShardPort],
        *,
        refresh: Callable[[], Awaitable[ClusterMap]] | None = None,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self._state = router.state
        self._ports = ports
        self._refresh = refresh
        self._sleep = sleep
        self._outboxes: dict[int, Outbox] = {}
        self._spawned: set[asyncio.Task[None]] = set()
        self._closed = False

    async def run(self, flow: Flow[T]) -> T:
        """Run a flow to its end and return its result, or raise its error.

        Cancelling the caller cancels what still waits to be sent; what is under way may be carried out all the same.
        """
        try:
            effect = next(flow)
            while True:
                if type(effect) is Ask:
                    effect = flow.send(await self._ask(effect.requests, effect.deadline))
                else:
                    effect = flow.send(await self._perform(effect))
        except StopIteration as stop:
            result: T = stop.value
            return result
        finally:
            flow.close()

    async def close(self) -> None:
        """Give what was spawned a moment to finish, then stop. Requests that still wait are refused."""
        self._closed = True
        if self._spawned:
            await asyncio.wait(self._spawned, timeout=self._state.config.background_s)
        for task in tuple(self._spawned):
            task.cancel()
        await asyncio.gather(*(outbox.close() for outbox in self._outboxes.values()))

    def queued(self) -> dict[int, int]:
        """Return, per shard, how many requests wait to be sent (for metrics)."""
        return {shard: outbox.queued for shard, outbox in self._outboxes.items()}

    async def _ask(self, requests: dict[int, Request], deadline: float) -> dict[int, Response]:
        waiting = {shard: self._submit(shard, request, deadline) for shard, request in requests.items()}
        try:
            return {
                shard: answer if not isinstance(answer, asyncio.Future) else await answer
                for shard, answer in waiting.items()
            }
        except BaseException:
            for answer in waiting.values():
                if isinstance(answer, asyncio.Future):
                    answer.cancel()
            raise

    def _submit(self, shard: int, request: Request, deadline: float) -> asyncio.Future[Response] | Refused:
        outbox = self._outboxes.get(shard)
        if outbox is None:
            port = self._ports.get(shard)
            if port is None or self._closed:
                return Refused(ShardUnavailableError(f"there is no connection to shard {shard}", shard=shard))
            outbox = self._outboxes[shard] = Outbox(shard, port, self._state)
        return outbox.submit(request, deadline)

    async def _perform(self, effect: Effect) -> ClusterMap | None:
        if isinstance(effect, Sleep):
            await self._sleep(effect.seconds)
        elif isinstance(effect, Spawn):
            self._background(effect.flow)
        elif isinstance(effect, Tell):
            self._background(_tell(effect.requests, self._state))
        elif isinstance(effect, RefreshMap):
            return await self._fetch_map()
        else:
            raise TypeError(f"not an effect: {effect!r}")
        return None

    async def _fetch_map(self) -> ClusterMap | None:
        if self._refresh is None:
            return None
        try:
            return await self._refresh()
        except (ShardUnavailableError, TimeoutException):
            return None  # the flow goes on with the map it has, and asks again

    def _background(self, flow: Flow[None]) -> None:
        if self._closed:
            flow.close()
            return
        task = asyncio.get_running_loop().create_task(self.run(flow))
        self._spawned.add(task)  # the loop itself keeps only a weak reference
        task.add_done_callback(self._spawned.discard)
        task.add_done_callback(_report)


_CLOSED = Refused(ShardUnavailableError("the client is closed"))


def _report(ended: Future[None] | asyncio.Task[None]) -> None:
    """Log what a spawned flow failed with: nobody waits for it, so nobody else would hear of it."""
    if not ended.cancelled() and (error := ended.exception()) is not None:
        _log.error("a background flow failed", exc_info=error)


def _tell(requests: dict[int, Request], state: RouterState) -> Flow[None]:
    """Send once and drop the answers."""
    yield Ask(requests, state.deadline(state.config.background_s))
