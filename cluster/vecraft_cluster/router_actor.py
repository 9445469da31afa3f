"""A router behind an actor call, for processes that hold only a handle and for languages of batches.

It is an object like any other :class:`~vecraft_router.router.Router`, run on an event loop, so the calls of all clients
meet in its outboxes. It holds nothing: any router actor can die at any point, and any other can answer the next call.

A hop costs one more actor call (RAY.md: 450 calls/s at most, but a batch of 64 costs little more than one call), which
is why whoever can runs a router in its own process.
"""

from __future__ import annotations

import asyncio
import os
import random
import time
from typing import Any

import msgspec
import ray

from vecraft_cluster.ports import (
    Directory,
    actor_class,
    call,
    controller_name,
    decode,
    encode,
    translate,
    unwrap,
)
from vecraft_cluster.remote import LATEST_S, REMOTE_METHODS
from vecraft_cluster.root import SystemClock
from vecraft_cluster.socket_ports import SocketRunner
from vecraft_data_model.errors import InvalidDataException, VecraftError
from vecraft_data_model.placement import ClusterMap
from vecraft_router.options import ReadOptions
from vecraft_router.router import Router
from vecraft_router.runners import AsyncRunner

MEMBERSHIP_TIMEOUT_S = 5.0


class RouterPlan(msgspec.Struct, frozen=True):
    """What a router actor needs to know."""

    cluster: str


class RouterActor:
    """One router of a cluster, as an asyncio Ray actor (see the module's docstring)."""

    def __init__(self, plan: RouterPlan) -> None:
        self._plan = plan
        self._started = time.time()
        self._directory = Directory()
        self._clock = SystemClock()
        self._ready: asyncio.Future[tuple[Router, AsyncRunner]] | None = None

    async def ping(self) -> dict[str, Any]:
        """Say how this incarnation is, as shard actors do."""
        return {
            "state": "serving",
            "pid": os.getpid(),
            "node": ray.get_runtime_context().get_node_id(),
            "started": self._started,
            "error": None,
        }

    async def run(self, data: bytes) -> bytes:
        """Run what :func:`~vecraft_cluster.remote.outgoing` made, side by side; return as many answers."""
        clock, calls = decode(data)
        try:
            router, runner = await self._router()
            router.state.observe(clock)
        except VecraftError as error:
            return encode(error)
        answers = await asyncio.gather(*(self._one(router, runner, *each) for each in calls))
        return encode((router.state.hlc.last, answers))

    async def _one(
        self,
        router: Router,
        runner: AsyncRunner,
        method: str,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        left_s: float,
    ) -> Any:
        if method not in REMOTE_METHODS:
            return InvalidDataException(f"a router actor runs {', '.join(sorted(REMOTE_METHODS))}; got {method!r}")
        deadline = self._clock.monotonic() + min(max(left_s, 0.001), LATEST_S)
        try:
            args, kwargs = rebase(args, kwargs, deadline)
            return await runner.run(getattr(router, method)(*args, **kwargs))
        except VecraftError as error:
            return error

    async def _router(self) -> tuple[Router, AsyncRunner]:
        """Make the router at first use; the callers that come meanwhile wait for the same one."""
        if self._ready is None:
            self._ready = asyncio.ensure_future(self._connect())
        try:
            return await asyncio.shield(self._ready)
        except VecraftError:
            self._ready = None  # the next call tries again
            raise

    async def _connect(self) -> tuple[Router, AsyncRunner]:
        membership = await self._membership()
        router = Router(membership.cluster_map, self._clock, random.Random())
        runner = SocketRunner(router, self._plan.cluster, self._directory, self._fetch_map, sockets=membership.sockets)
        return router, runner

    async def _fetch_map(self) -> ClusterMap:
        cluster_map: ClusterMap = (await self._membership()).cluster_map
        return cluster_map

    async def _membership(self) -> Any:
        name = controller_name(self._plan.cluster)
        try:
            controller = await asyncio.to_thread(self._directory.find, name)
            return unwrap(await call(controller.membership, timeout=MEMBERSHIP_TIMEOUT_S))
        except (ray.exceptions.RayError, TimeoutError) as error:
            self._directory.gone(name, error)
            raise translate(error, "the controller") from error


def rebase(args: tuple[Any, ...], kwargs: dict[str, Any], deadline: float) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Put this process's deadline in the place of the caller's, whose clock is another."""

    def moved(value: Any) -> Any:
        return msgspec.structs.replace(value, deadline=deadline) if isinstance(value, ReadOptions) else value

    kwargs = {name: moved(value) for name, value in kwargs.items()}
    if kwargs.get("deadline") is not None:
        kwargs["deadline"] = deadline
    return tuple(moved(value) for value in args), kwargs


def router_actor_class() -> Any:
    """Return the actor class with the options that never vary: restarts, and no retries by Ray."""
    return actor_class(RouterActor)
