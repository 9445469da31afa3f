"""Starting, joining and stopping clusters.

::

    launch(root, shards=2, address="local")     a Ray of this process's own, ended with it
    launch(root, address="auto")                on a Ray that runs already: the actors are detached and stay
    connect("auto")                             join what was launched there
    stop(name)                                  end a cluster on the Ray this process is connected to

A cluster is named after its root unless it is given a name, so launching the same root twice on one Ray joins it.

The connection to Ray itself, of which a process has only one, is :mod:`vecraft_cluster.connection`'s.
"""

from __future__ import annotations

import asyncio
import atexit
import hashlib
import logging
import os
import random
import re
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ray
from ray import exceptions as ray_errors

from vecraft_cluster.bridge import RayRunner
from vecraft_cluster.connection import join_ray
from vecraft_cluster.controller import (
    ClusterPlan,
    Membership,
    controller_actor_class,
    fetch_membership,
    kill_quietly,
    placement,
)
from vecraft_cluster.ports import (
    NAMESPACE,
    AsyncRayShardPort,
    Directory,
    Handle,
    RayShardPort,
    controller_name,
    look_up,
    translate,
)
from vecraft_cluster.remote import AsyncRemoteRunner, RemoteRouter, RemoteRunner
from vecraft_cluster.root import SystemClock
from vecraft_data_model.errors import InvalidDataException, ShardUnavailableError
from vecraft_data_model.messages import Batch, Refused, Status
from vecraft_data_model.placement import ClusterMap
from vecraft_router.config import RouterConfig
from vecraft_router.router import Router
from vecraft_router.runners import AsyncRunner
from vecraft_shard.config import ShardConfig

logger = logging.getLogger(__name__)

CALL_TIMEOUT_S = 10.0
STOP_TIMEOUT_S = 30.0
_CONTROLLER = re.compile(r"vecraft:(?P<cluster>.+):controller")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")


class Cluster:
    """A running cluster, as this process sees it; made by :func:`launch` and :func:`connect`. Threads may share it."""

    def __init__(
        self, membership: Membership, controller: Handle, *, stop_on_close: bool, release: Callable[[], None]
    ) -> None:
        self.membership = membership
        self.name = membership.cluster
        self.directory = Directory()
        self._controller = controller
        self._stop_on_close = stop_on_close
        self._release = release
        self._lock = threading.Lock()
        self._closed = False
        if stop_on_close:
            atexit.register(self.close)

    def router(self, config: RouterConfig | None = None) -> Router:
        """Return a router of this process's own, to be run by :meth:`runner` or :meth:`async_runner`."""
        return Router(self.membership.cluster_map, SystemClock(), random.Random(), config)

    def runner(self, router: Router) -> RayRunner:
        """Return what runs a router's flows for callers that block."""
        return RayRunner(router, self.name, self.directory, self.fetch_map)

    def async_runner(self, router: Router) -> AsyncRunner:
        """Return what runs a router's flows on the event loop that is running."""

        async def refresh() -> ClusterMap:
            return await asyncio.to_thread(self.fetch_map)

        shards = self.membership.cluster_map.all_shards()
        ports = {shard: AsyncRayShardPort(self.name, shard, self.directory) for shard in shards}
        return AsyncRunner(router, ports, refresh=refresh)

    def remote_router(self, config: RouterConfig | None = None) -> RemoteRouter:
        """Return a router whose flows run in a router actor, to be run by :meth:`remote_runner`."""
        return RemoteRouter(self.membership.cluster_map, SystemClock(), random.Random(), config)

    def remote_runner(self, router: RemoteRouter) -> RemoteRunner:
        """Return what runs a remote router's flows.

        Raises:
            InvalidDataException: The cluster was launched without router actors.
        """
        return RemoteRunner(router, self.name, self.directory, self._routers())

    def async_remote_runner(self, router: RemoteRouter) -> AsyncRemoteRunner:
        """The same for an event loop."""
        return AsyncRemoteRunner(router, self.name, self.directory, self._routers())

    def fetch_map(self) -> ClusterMap:
        """Fetch the newest cluster map from the controller.

        Raises:
            ShardUnavailableError: The controller is not there now.
            TimeoutException: It did not answer.
        """
        membership: Membership = self._ask_controller(lambda handle: fetch_membership(handle, CALL_TIMEOUT_S))
        return membership.cluster_map

    def status(self) -> dict[str, Any]:
        """Return how the cluster's actors are, as the controller last saw them: state, pid, node, restarts."""
        status: dict[str, Any] = self._ask_controller(
            lambda handle: ray.get(handle.status.remote(), timeout=CALL_TIMEOUT_S)
        )
        return status

    def wait_ready(self, timeout: float) -> None:
        """Wait until every shard answers.

        Raises:
            VecraftError: Why one does not: corruption, a locked directory, no place to run, the time is over.
        """
        deadline = time.monotonic() + timeout
        for shard in self.membership.cluster_map.all_shards():
            port = RayShardPort(self.name, shard, self.directory)
            while True:
                try:
                    reply = port.execute(Batch([Status()]), max(0.001, deadline - time.monotonic()))
                except ShardUnavailableError as error:
                    if time.monotonic() >= deadline:
                        raise ShardUnavailableError(
                            f"shard {shard} of cluster {self.name!r} did not come up in {timeout:.0f} s: {error}. "
                            "Its actor may wait for a node with its label, or for Ray CPUs.",
                            shard=shard,
                        ) from error
                    time.sleep(0.1)
                else:
                    answer = reply.responses[0]
                    if isinstance(answer, Refused):
                        raise answer.error
                    break

    def close(self) -> None:
        """Let go of the cluster. One that ``launch`` started for this process is stopped; any other goes on."""
        with self._lock:
            if self._closed:
                return
            self._closed = True
        atexit.unregister(self.close)
        try:
            if self._stop_on_close and ray.is_initialized():
                stop(self.name)
        finally:
            self._release()

    def _routers(self) -> int:
        if self.membership.routers < 1:
            raise InvalidDataException(f"cluster {self.name!r} runs no router actors; launch it with routers=1 or more")
        return self.membership.routers

    def _ask_controller(self, ask: Callable[[Handle], Any]) -> Any:
        try:
            return ask(self._controller)
        except ray_errors.ActorDiedError:
            self._controller = look_up(controller_name(self.name))
        except ray_errors.RayError as error:
            raise translate(error, "the controller") from error
        try:
            return ask(self._controller)
        except ray_errors.RayError as error:
            raise translate(error, "the controller") from error


def launch(
    root: str | Path,
    shards: int | None = None,
    *,
    address: str = "local",
    name: str | None = None,
    default_shards: int | None = None,
    routers: int = 1,
    shard_config: ShardConfig | None = None,
    shard_cpus: float = 0,
    timeout: float = 60.0,
) -> Cluster:
    """Start a cluster over a data directory, or join it if it runs there already.

    Args:
        root: The data directory, made if missing; a path on the nodes that hold the shards.
        shards: How many shards it must have; ``None`` takes what is there.
        address: ``"local"``: start a Ray on this machine, ended by ``close`` (a process that is connected to a Ray
            already uses that one). ``"auto"`` or ``"host:port"``: use the Ray that runs there; the cluster stays when
            this process goes.
        name: The cluster's name; from the root if left out.
        default_shards: How many shards a new root gets if ``shards`` is left out; ``None``: one per CPU here.
        routers: Router actors, for clients that use them.
        shard_config: The shards' settings.
        shard_cpus: Ray CPUs that each shard reserves.
        timeout: Seconds until every shard must answer.

    Raises:
        InvalidDataException: An argument is not accepted, or the root has another number of shards.
        CorruptionError: The root is damaged.
        StorageFailureException: It cannot be read or written, or another process has it open.
        ShardUnavailableError: Ray, or a shard, did not come up in time.
    """
    path = Path(root).expanduser().resolve()
    cluster = _checked_name(name) if name is not None else name_of(path)
    release = join_ray(address)
    created = False
    try:
        plan = ClusterPlan(
            cluster=cluster,
            root=str(path),
            shards=shards,
            default_shards=default_shards or os.cpu_count() or 1,
            routers=routers,
            shard_config=shard_config or ShardConfig(),
            shard_cpus=shard_cpus,
            home_node=ray.get_runtime_context().get_node_id(),
        )
        try:
            controller = look_up(controller_name(cluster))
        except ShardUnavailableError:
            created = True
            controller = (
                controller_actor_class()
                .options(
                    name=controller_name(cluster),
                    namespace=NAMESPACE,
                    lifetime="detached",
                    get_if_exists=True,
                    **placement(None, plan.home_node),
                )
                .remote(plan)
            )
        membership = _membership(controller, timeout)
        _check_same(membership, path, shards)
        running = Cluster(membership, controller, stop_on_close=created and address == "local", release=release)
        try:
            running.wait_ready(timeout)
        except BaseException:
            atexit.unregister(running.close)
            raise
        return running
    except BaseException:
        try:
            if created and ray.is_initialized():
                stop(cluster)
        finally:
            release()
        raise


def connect(
    address: str = "auto", *, name: str | None = None, root: str | Path | None = None, timeout: float = 60.0
) -> Cluster:
    """Join a cluster that runs.

    Args:
        address: ``"auto"`` (the Ray of this machine, or ``RAY_ADDRESS``) or ``"host:port"``.
        name: The cluster; may be left out if only one runs there.
        root: Its data directory, instead of its name.
        timeout: Seconds until its controller must answer.

    Raises:
        InvalidDataException: None or several run there and none was named; the message lists them.
        ShardUnavailableError: There is no Ray there, or it refused this process, or the cluster does not answer.
    """
    release = join_ray(address)
    try:
        if name is None and root is not None:
            name = name_of(Path(root).expanduser().resolve())
        if name is None:
            running = clusters()
            if len(running) != 1:
                what = (
                    f"{len(running)} clusters run there ({', '.join(running)}): name one"
                    if running
                    else "none runs there"
                )
                raise InvalidDataException(
                    f"cannot choose a cluster on the Ray at {address!r}: {what}", clusters=running
                )
            name = running[0]
        controller = look_up(controller_name(_checked_name(name)))
        return Cluster(_membership(controller, timeout), controller, stop_on_close=False, release=release)
    except BaseException:
        release()
        raise


def clusters() -> list[str]:
    """Return the names of the clusters on the Ray that this process is connected to, sorted."""
    actors = ray.util.list_named_actors(all_namespaces=True)
    matches = (_CONTROLLER.fullmatch(actor["name"]) for actor in actors if actor["namespace"] == NAMESPACE)
    return sorted(match["cluster"] for match in matches if match)


def stop(name: str, timeout: float = STOP_TIMEOUT_S) -> None:
    """End a cluster's actors, shards after a checkpoint. Nothing happens to actors that are gone already.

    Args:
        name: The cluster.
        timeout: Seconds that checkpoints may take; what is not done then is killed, and recovers from its log.
    """
    try:
        controller = look_up(controller_name(name))
        for error in ray.get(controller.stop.remote(timeout), timeout=2 * timeout + CALL_TIMEOUT_S):
            logger.warning("a shard did not close in order: %s", error["message"])
    except (ShardUnavailableError, ray_errors.RayError) as error:
        logger.warning("cluster %s is ended without its controller: %s", name, error)
    prefix = f"vecraft:{name}:"
    for actor in ray.util.list_named_actors(all_namespaces=True):
        if actor["namespace"] == NAMESPACE and actor["name"].startswith(prefix):
            kill_quietly(actor["name"])


def name_of(root: Path) -> str:
    """Return the name that a cluster gets from its (resolved) data directory."""
    readable = re.sub(r"[^A-Za-z0-9._-]+", "-", root.name).strip("-.") or "root"
    return f"{readable[:60]}-{hashlib.blake2b(str(root).encode(), digest_size=4).hexdigest()}"


def _checked_name(name: str) -> str:
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise InvalidDataException(
            "a cluster's name must be 1 to 100 letters, digits, '.', '_' or '-', and begin with a letter or digit; "
            f"got {name!r}"
        )
    return name


def _membership(controller: Handle, timeout: float) -> Membership:
    try:
        return fetch_membership(controller, timeout)
    except ray_errors.RayError as error:
        raise translate(error, "the controller") from error


def _check_same(membership: Membership, root: Path, shards: int | None) -> None:
    """A cluster that runs already must be the one that was asked for."""
    if membership.root != str(root):
        raise InvalidDataException(
            f"cluster {membership.cluster!r} runs over {membership.root}, not over {root}: choose another name",
            root=membership.root,
        )
    running = membership.cluster_map.shard_count
    if shards is not None and shards != running:
        raise InvalidDataException(f"{root} has {running} shard(s), but shards={shards} was asked for", shards=running)
