"""Shards of this process, for a router on an event loop: each call to a shard runs on a thread.

The router's outboxes decide how many calls to one shard are under way and what they carry; here a call only leaves the
event loop. So under load many requests share one hop to a thread, instead of each having a thread (and the
interpreter's lock) to itself.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor

from vecraft_data_model.errors import ShardUnavailableError
from vecraft_data_model.messages import Batch, BatchReply
from vecraft_data_model.ports import ShardPort
from vecraft_router.config import RouterConfig
from vecraft_router.router import Router
from vecraft_router.runners import AsyncRunner

SERVICE_THREADS = 8
"""For what is neither read nor write: checkpoints may take long."""


class ThreadedPort:
    """One shard, awaitable (a :class:`vecraft_data_model.ports.AsyncShardPort`).

    Args:
        port: Returns the shard as it is at the moment of a call; a restored database has other ones.
        threads: Where calls run.
    """

    def __init__(self, port: Callable[[], ShardPort], threads: ThreadPoolExecutor) -> None:
        self._port = port
        self._threads = threads

    async def execute(self, batch: Batch, timeout: float) -> BatchReply:
        """Carry a batch there and bring the reply back.

        Raises:
            ShardUnavailableError: The shard is closed; otherwise as the shard's own ``execute``.
        """
        try:
            port = self._port()
            call = asyncio.get_running_loop().run_in_executor(self._threads, port.execute, batch, timeout)
        except (KeyError, RuntimeError):  # no such shard any more, or no threads
            raise ShardUnavailableError("this database is closed") from None
        return await call


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
