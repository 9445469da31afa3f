"""The engine of a database on a Ray cluster: started on this machine, or joined.

``address="local"`` starts a Ray for this process, and ``close`` ends it. ``"auto"`` and ``"host:port"`` join the Ray
that runs there, and the cluster on it: the one over ``root`` (launched if it does not run yet and a root is given), the
one named ``cluster``, or the only one.

By default the router is an object in this process: one hop to the shards. With ``via_router_actor`` it is an actor, and
this process holds nothing but a handle to it.
"""

from __future__ import annotations

import asyncio
import os
import threading
import weakref
from collections.abc import Generator
from pathlib import Path
from typing import Any, TypeVar

from vecraft_cluster.bridge import RayRunner
from vecraft_cluster.controller import ClusterPlan
from vecraft_cluster.launch import Cluster, connect, launch
from vecraft_cluster.remote import AsyncRemoteRunner, RemoteRouter, RemoteRunner
from vecraft_cluster.root import ROOT_FILE, RootState, read_root
from vecraft_cluster.socket_ports import SocketRunner
from vecraft_data_model.errors import InvalidDataException, ShardUnavailableError, TimeoutException
from vecraft_db.backups import copy_root, replace_root
from vecraft_db.client.engine import refuse_closed
from vecraft_db.config import DEFAULT_ROOT, Settings, shard_config
from vecraft_router.config import RouterConfig
from vecraft_router.router import Router
from vecraft_router.session import SessionTokens

T = TypeVar("T")
Flow = Generator[Any, Any, T]


CLOCK_TIMEOUT_S = 2.0
"""How long a new client waits to hear the shards' clocks; one that is down does not keep it from starting."""


CLOSE_TIMEOUT_S = 10.0
_closing: set[asyncio.Task[None]] = set()


class RayEngine:
    """A cluster, and a router for it. Safe to use from several threads and event loops.

    Args:
        cluster: The running cluster, closed with the engine.
        settings: Timeouts and clock skew of the router.
        via_router_actor: Whether flows run in a router actor.
    """

    def __init__(self, cluster: Cluster, settings: Settings, *, via_router_actor: bool = False) -> None:
        self.cluster = cluster
        if settings.data_plane == "actor":
            cluster.sockets = False
        self.tokens = SessionTokens(cluster.membership.secret)
        config = RouterConfig(timeout_s=settings.timeout, max_clock_skew_ms=cluster.membership.max_clock_skew_ms)
        self.router: Router
        self._runner: RayRunner | RemoteRunner
        if via_router_actor:
            remote = cluster.remote_router(config)
            self.router, self._runner = remote, cluster.remote_runner(remote)
        else:
            self.router = cluster.router(config)
            self._runner = cluster.runner(self.router)
            # So that a new client reads at or above what was committed before it came, even where a restarted shard's
            # clock runs ahead of this machine's.
            self._runner.run(self.router.status(deadline=self.router.deadline(CLOCK_TIMEOUT_S)))
        self._loops: weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, SocketRunner | AsyncRemoteRunner]
        self._loops = weakref.WeakKeyDictionary()
        self._lock = threading.Lock()
        self._closed = False

    def run(self, flow: Flow[T]) -> T:
        """Run a flow of this engine's router on this thread."""
        if self._closed:
            return refuse_closed(flow)
        return self._runner.run(flow)

    async def run_async(self, flow: Flow[T]) -> T:
        """Run a flow of this engine's router on the running event loop."""
        loop = asyncio.get_running_loop()
        runner = self._loops.get(loop)
        if runner is None or self._closed:
            with self._lock:
                if self._closed:
                    return refuse_closed(flow)
                runner = self._loops.setdefault(loop, self._async_runner())
        return await runner.run(flow)

    def describe(self) -> dict[str, Any]:
        """Say where the database is, and how each of its actors is, as the controller last saw them."""
        via = "actor" if isinstance(self.router, RemoteRouter) else "process"
        about = {"kind": "ray", "router": via, "cluster": self.cluster.name, "root": self.cluster.membership.root}
        try:
            return about | self.cluster.status()
        except (ShardUnavailableError, TimeoutException) as error:
            return about | {"error": error.to_dict()}  # shards are asked all the same: they need no controller

    def backup(self, path: str | os.PathLike[str]) -> dict[str, Any]:
        """Write a consistent, verified copy into a new or empty directory; writes wait meanwhile, reads do not.

        Raises:
            InvalidDataException: The directory is not empty, or the shards' files are on other machines than this one.
            CorruptionError: What was read back is not what was written.
            StorageFailureException: The disk failed, or a shard was restarted meanwhile.
        """
        root, state = self._files_here("backup")
        return copy_root(root, state, self.cluster.hosts(), Path(path))

    def restore(self, path: str | os.PathLike[str]) -> dict[str, Any]:
        """Replace the whole database by a backup, after verifying it. All actors are ended, and started again.

        Raises:
            InvalidDataException: That is no backup, or one of another number of shards, or the files are not here.
            CorruptionError: The backup is damaged; the database is as before.
        """
        root, state = self._files_here("restore")
        backup = Path(path)
        slots = read_root(backup).cluster_map.slots if (backup / ROOT_FILE).is_file() else state.cluster_map.slots
        if slots != state.cluster_map.slots:
            raise InvalidDataException(
                f"the backup {backup} has {len(set(slots))} shard(s), this cluster {state.shards}: stop the cluster, "
                "restore with VecraftClient(root=…), and launch it again"
            )
        halted: list[ClusterPlan] = []
        try:
            return replace_root(root, backup, lambda: halted.append(self.cluster.halt()))
        finally:
            if halted:
                self.cluster.resume(halted[0])
                self.tokens = SessionTokens(self.cluster.membership.secret)

    def _files_here(self, what: str) -> tuple[Path, RootState]:
        root = Path(self.cluster.membership.root)
        try:
            state = read_root(root)
        except OSError:
            state = None
        if state is None or state.database_id != self.cluster.membership.database_id:
            raise InvalidDataException(f"{what}() has to run on the machine that has the cluster's files in {root}")
        return root, state

    def close(self) -> None:
        """Let go of the cluster; it ends if it was started for this process. Closing twice does nothing."""
        with self._lock:
            if self._closed:
                return
            self._closed = True
            loops = list(self._loops.items())
        try:
            for loop, runner in loops:
                if isinstance(runner, SocketRunner):
                    _close_on(loop, runner)
            self._runner.close()
        finally:
            self.cluster.close()

    def _async_runner(self) -> SocketRunner | AsyncRemoteRunner:
        if isinstance(self.router, RemoteRouter):
            return self.cluster.async_remote_runner(self.router)
        return self.cluster.async_runner(self.router)


def _close_on(loop: asyncio.AbstractEventLoop, runner: SocketRunner) -> None:
    """Close a runner on the loop that it belongs to, if that still runs."""
    try:
        here = asyncio.get_running_loop()
    except RuntimeError:
        here = None
    if not loop.is_running():
        runner.hang_up()
    elif loop is here:
        _closing.add(task := loop.create_task(runner.close()))  # waiting for it would keep it from ever ending
        task.add_done_callback(_closing.discard)
    else:
        closing = asyncio.run_coroutine_threadsafe(runner.close(), loop)
        try:
            closing.result(CLOSE_TIMEOUT_S)
        except TimeoutError:  # its loop is busy with something else, or has just ended
            closing.cancel()
            runner.hang_up()


def open_ray(settings: Settings) -> RayEngine:
    """Start or join the cluster that the settings name: ``address``, ``root``, ``shards``, ``cluster``.

    Raises:
        InvalidDataException: No such cluster, or not one that can be told apart; what runs there is listed.
        ShardUnavailableError: Ray, or a shard, does not answer.
        CorruptionError: The root is damaged.
        StorageFailureException: The root is in use by another process, or cannot be read.
    """
    address = settings.address
    if address is None:
        raise InvalidDataException("a Ray cluster needs an address: 'local', 'auto' or 'host:port'")
    if address == "local" or settings.root is not None:
        cluster = launch(
            settings.root or DEFAULT_ROOT,
            settings.shards,
            address=address,
            name=settings.cluster,
            shard_config=shard_config(settings, remote=True),
            data_plane=settings.data_plane,
        )
    else:
        if settings.shards is not None:
            raise InvalidDataException(
                f"shards={settings.shards} applies to a cluster that is started: give root= too, or leave shards out"
            )
        cluster = connect(address, name=settings.cluster)
    try:
        return RayEngine(cluster, settings, via_router_actor=settings.via_router_actor)
    except BaseException:
        cluster.close()
        raise
