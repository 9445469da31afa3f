"""Closing the engine of a cluster ends what runs on event loops too. No Ray is started here."""

from __future__ import annotations

import asyncio
import random
import threading
from typing import Any

import pytest

from vecraft_cluster.cluster import Cluster
from vecraft_cluster.controller import Membership
from vecraft_cluster.root import SystemClock
from vecraft_cluster.socket_ports import SocketRunner
from vecraft_data_model.errors import ShardUnavailableError
from vecraft_data_model.messages import Batch, BatchReply, StatusReply
from vecraft_data_model.placement import initial_map
from vecraft_db.client.ray_engine import RayEngine
from vecraft_db.config import Settings
from vecraft_router.effects import Flow
from vecraft_router.router import Router


class SilentPort:
    """A shard that answers nobody."""

    def __init__(self) -> None:
        self.asked = threading.Event()
        self.closed = False

    async def execute(self, batch: Batch, timeout: float) -> BatchReply:
        self.asked.set()
        await asyncio.sleep(timeout)
        raise AssertionError("nobody waited any longer")

    def close(self) -> None:
        self.closed = True


class Runner:
    """Answers the question for clocks."""

    closed = False

    def run(self, flow: Flow[Any]) -> Any:
        next(flow)
        with pytest.raises(StopIteration):
            flow.send({0: StatusReply(0, 1, 1, {}, {})})

    def close(self) -> None:
        self.closed = True


class FakeCluster(Cluster):
    """A cluster without actors."""

    def __init__(self) -> None:
        cluster_map = initial_map(1)
        self.membership = Membership("c", "/nowhere", "d", cluster_map, b"s" * 32, 1, 500)
        self.name = "c"
        self.sockets = True
        self.port = SilentPort()
        self.blocking = Runner()
        self.ended = False

    def router(self, config: Any = None) -> Router:
        return Router(self.membership.cluster_map, SystemClock(), random.Random(1), config)

    def runner(self, router: Router) -> Any:
        return self.blocking

    def async_runner(self, router: Router) -> SocketRunner:
        runner = super().async_runner(router)
        ports: Any = {0: self.port}
        runner._ports, runner._sockets = ports, [self.port]  # type: ignore[list-item]
        return runner

    def close(self) -> None:
        self.ended = True

    directory: Any = None

    def fetch_map(self) -> Any:
        raise ShardUnavailableError("no controller")


async def test_closing_ends_calls_on_a_loop_and_their_connections() -> None:
    cluster = FakeCluster()
    engine = RayEngine(cluster, Settings())
    call = asyncio.ensure_future(engine.run_async(engine.router.status(deadline=engine.router.deadline(60))))
    await asyncio.to_thread(cluster.port.asked.wait, 5)
    await asyncio.to_thread(engine.close)
    status = await asyncio.wait_for(call, 5)
    assert isinstance(status[0].error, ShardUnavailableError)
    assert cluster.port.closed and cluster.blocking.closed and cluster.ended
    with pytest.raises(ShardUnavailableError, match="closed"):
        await engine.run_async(engine.router.status())


async def test_closing_from_the_loop_itself_does_not_wait_for_it() -> None:
    cluster = FakeCluster()
    engine = RayEngine(cluster, Settings())
    call = asyncio.ensure_future(engine.run_async(engine.router.status(deadline=engine.router.deadline(60))))
    await asyncio.to_thread(cluster.port.asked.wait, 5)
    engine.close()
    status = await asyncio.wait_for(call, 5)
    assert isinstance(status[0].error, ShardUnavailableError)


def test_of_a_loop_that_has_ended_only_the_connections_are_closed() -> None:
    cluster = FakeCluster()
    engine = RayEngine(cluster, Settings())
    loop = asyncio.new_event_loop()

    async def begin() -> None:
        call = asyncio.ensure_future(engine.run_async(engine.router.status()))
        await asyncio.to_thread(cluster.port.asked.wait, 5)
        call.cancel()

    loop.run_until_complete(begin())
    engine.close()
    assert cluster.port.closed
    loop.run_until_complete(asyncio.sleep(0))
    loop.close()
