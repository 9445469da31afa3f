"""A running cluster as one process sees it: its map, its actors, and how to route to them."""

from __future__ import annotations

import asyncio
import atexit
import logging
import random
import threading
import time
from collections.abc import Callable
from typing import Any

import ray
from ray import exceptions as ray_errors

from vecraft_cluster.bridge import RayRunner
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
    Directory,
    Handle,
    RayShardPort,
    controller_name,
    decode,
    look_up,
    refuse_unconnected,
    translate,
)
from vecraft_cluster.remote import AsyncRemoteRunner, RemoteRouter, RemoteRunner
from vecraft_cluster.remote_host import RemoteHost, remote_hosts
from vecraft_cluster.root import SystemClock
from vecraft_cluster.socket_ports import SocketRunner
from vecraft_data_model.errors import InvalidDataException, ShardUnavailableError
from vecraft_data_model.messages import Batch, Refused, Status
from vecraft_data_model.placement import ClusterMap
from vecraft_router.config import RouterConfig
from vecraft_router.router import Router

logger = logging.getLogger(__name__)

CALL_TIMEOUT_S = 10.0
STOP_TIMEOUT_S = 30.0
RETRY_S = 0.1


class Cluster:
    """A running cluster, as this process sees it; made by :func:`launch` and :func:`connect`. Threads may share it.

    ``sockets``: whether the runners made here use the shards' own sockets; as the cluster was launched, unless set.
    """

    def __init__(
        self, membership: Membership, controller: Handle, *, stop_on_close: bool, release: Callable[[], None]
    ) -> None:
        self.membership = membership
        self.name = membership.cluster
        self.directory = Directory()
        self.sockets = membership.sockets
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
        return RayRunner(router, self.name, self.directory, self.fetch_map, sockets=self.sockets)

    def async_runner(self, router: Router) -> SocketRunner:
        """Return what runs a router's flows on the event loop that is running."""

        async def refresh() -> ClusterMap:
            return await asyncio.to_thread(self.fetch_map)

        return SocketRunner(router, self.name, self.directory, refresh, sockets=self.sockets)

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
                    time.sleep(RETRY_S)
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

    def hosts(self) -> dict[int, RemoteHost]:
        """Return the shards as hosts, for whoever copies their files."""
        return remote_hosts(self.name, self.membership.cluster_map.all_shards(), self.directory)

    def halt(self) -> ClusterPlan:
        """End all actors, shards after a checkpoint, so that the files are nobody's; returns what :meth:`resume` needs.

        Routers elsewhere wait and retry meanwhile, as for any shard that is away.
        """
        plan: ClusterPlan = self._ask_controller(
            lambda handle: decode(ray.get(handle.plan.remote(), timeout=CALL_TIMEOUT_S))
        )
        stop(self.name)
        return plan

    def resume(self, plan: ClusterPlan, timeout: float = 60.0) -> None:
        """Start the actors again and take over what the root says now.

        Raises:
            VecraftError: Why the cluster, or a shard of it, does not come up.
        """
        self._controller = make_controller(plan)
        self.membership = ask_membership(self._controller, timeout)
        self.wait_ready(timeout)

    def _routers(self) -> int:
        if self.membership.routers < 1:
            raise InvalidDataException(f"cluster {self.name!r} runs no router actors; launch it with routers=1 or more")
        return self.membership.routers

    def _ask_controller(self, ask: Callable[[Handle], Any]) -> Any:
        refuse_unconnected(controller_name(self.name))
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


def make_controller(plan: ClusterPlan) -> Handle:
    """Make a cluster's controller, which makes the rest; or find the one that somebody else has just made."""
    options: dict[str, Any] = {
        "name": controller_name(plan.cluster),
        "namespace": NAMESPACE,
        "lifetime": "detached",
        "get_if_exists": True,
        **placement(None, plan.home_node),
    }
    return controller_actor_class().options(**options).remote(plan)


def ask_membership(controller: Handle, timeout: float) -> Membership:
    """Ask a controller for what a router needs to know, again if the question is lost or it is being started again.

    Raises:
        ShardUnavailableError, TimeoutException: It did not answer in ``timeout`` seconds, or is gone.
        VecraftError: What kept the cluster from starting.
    """
    deadline = time.monotonic() + timeout
    while True:
        try:
            return fetch_membership(controller, max(0.001, deadline - time.monotonic()))
        except ray_errors.ActorUnavailableError as error:
            if time.monotonic() >= deadline:
                raise translate(error, "the controller") from error
            time.sleep(RETRY_S)
        except ray_errors.RayError as error:
            raise translate(error, "the controller") from error
