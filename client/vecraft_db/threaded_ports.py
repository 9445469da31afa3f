"""Shards of this process, for a router on an event loop: each call to a shard runs on a thread.

The router's outboxes decide how many calls to one shard are under way and what they carry; here a call only leaves the
event loop. So under load many requests share one hop to a thread, instead of each having a thread (and the
interpreter's lock) to itself.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from time import perf_counter

from vecraft_data_model.errors import ShardUnavailableError
from vecraft_data_model.messages import Batch, BatchReply, Get, Request, Search
from vecraft_data_model.ports import ShardPort
from vecraft_router.config import RouterConfig
from vecraft_router.router import Router
from vecraft_router.runners import AsyncRunner

QUICK_S = 0.002
RECENT_CALLS = 32
SERVICE_THREADS = 8
"""For what is neither read nor write: checkpoints may take long."""


class ThreadedPort:
    """One shard, awaitable (a :class:`vecraft_data_model.ports.AsyncShardPort`).

    A lone read of an idle shard is carried out on the event loop itself: a hop to a thread and back costs about as much
    as such a read. Only while all recent ones were quick, so that a slow one holds up the loop once, not again.

    Args:
        port: Returns the shard as it is at the moment of a call; a restored database has other ones.
        threads: Where calls run.
    """

    def __init__(self, port: Callable[[], ShardPort], threads: ThreadPoolExecutor) -> None:
        self._port = port
        self._threads = threads
        self._under_way = 0
        self._recent_s: deque[float] = deque(maxlen=RECENT_CALLS)

    async def execute(self, batch: Batch, timeout: float) -> BatchReply:
        """Carry a batch there and bring the reply back.

        Raises:
            ShardUnavailableError: The shard is closed; otherwise as the shard's own ``execute``.
        """
        lone = len(batch.requests) == 1 and _is_small_read(batch.requests[0])
        began = perf_counter()
        self._under_way += 1
        try:
            port = self._current()
            if lone and self._under_way == 1 and self._all_quick():
                return port.execute(batch, timeout)
            return await self._on_thread(port, batch, timeout)
        finally:
            self._under_way -= 1
            if lone:
                self._recent_s.append(perf_counter() - began)

    def _current(self) -> ShardPort:
        try:
            return self._port()
        except KeyError:  # the database was restored, with fewer shards
            raise ShardUnavailableError("this shard is not there any more") from None

    def _on_thread(self, port: ShardPort, batch: Batch, timeout: float) -> asyncio.Future[BatchReply]:
        try:
            return asyncio.get_running_loop().run_in_executor(self._threads, port.execute, batch, timeout)
        except RuntimeError:  # the threads are gone
            raise ShardUnavailableError("this database is closed") from None

    def _all_quick(self) -> bool:
        recent = self._recent_s
        return len(recent) == RECENT_CALLS and max(recent) < QUICK_S


def _is_small_read(request: Request) -> bool:
    return (isinstance(request, Search) and len(request.queries) == 1) or (
        isinstance(request, Get) and len(request.ids) == 1
    )


class ThreadedRunner(AsyncRunner):
    """Runs a router's flows on one event loop, over shards of this process.

    Args:
        router: Whose flows are run.
        hosts: Returns the shards by number, as they are at that moment.
    """

    def __init__(self, router: Router, hosts: Callable[[], Mapping[int, ShardPort]]) -> None:
        config: RouterConfig = router.state.config
        shards = list(hosts())
        calls = len(shards) * (config.reads_in_flight + config.writes_in_flight) + SERVICE_THREADS
        self._threads = ThreadPoolExecutor(calls, thread_name_prefix="vecraft-shard-call")
        super().__init__(router, {shard: ThreadedPort(_lookup(hosts, shard), self._threads) for shard in shards})

    async def close(self) -> None:
        """Refuse what waits, finish what is under way, stop the threads."""
        await super().close()
        await asyncio.to_thread(self._threads.shutdown)


def _lookup(hosts: Callable[[], Mapping[int, ShardPort]], shard: int) -> Callable[[], ShardPort]:
    return lambda: hosts()[shard]
