"""What Ray tests do to a cluster: find its processes, kill them, freeze them, and wait until all is well again."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
import ray
from ray import exceptions as ray_errors

from tests.support import standing_still
from vecraft_cluster.launch import Cluster
from vecraft_cluster.ports import controller_name, look_up, router_name, shard_name, translate
from vecraft_data_model import DataPacket
from vecraft_data_model.errors import ShardUnavailableError, TimeoutException
from vecraft_data_model.messages import Batch, Status, StatusReply
from vecraft_db.client.vecraft_client import VecraftClient

T = TypeVar("T")

PATIENCE_S = 180.0
"""How long to wait for what comes by itself: a bound for what is broken, not a measure of how fast anything is.

Starting a process may take Ray tens of seconds on a busy machine, and a shard that failed is tried again ever more
slowly. Every client of these tests has as much time for a call, unless the test is about deadlines.
"""

NOT_NOW = (ShardUnavailableError, TimeoutException, ray_errors.RayError)


def ping(actor: str, timeout: float = PATIENCE_S) -> dict[str, Any]:
    """Ping an actor until it answers; raises after ``timeout`` seconds."""
    deadline = time.monotonic() + timeout
    while True:
        try:
            answer: dict[str, Any] = ray.get(
                look_up(actor).ping.remote(), timeout=max(0.1, deadline - time.monotonic())
            )
            return answer
        except NOT_NOW:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.02)


def flights_of(client: VecraftClient) -> int:
    """How many calls of a client with a router of its own travelled over shards' sockets so far."""
    engine: Any = client._engine
    return int(engine._runner.flights)


def kill_shard(cluster: Cluster, shard: int) -> int:
    """``kill -9`` the process of a shard actor; returns the pid it had."""
    pid = int(ping(shard_name(cluster.name, shard))["pid"])
    os.kill(pid, signal.SIGKILL)
    return pid


def watched_pid(cluster: Cluster, shard: int, other_than: int = 0) -> int:
    """The pid of a shard actor, once the controller has heard from that process that it serves.

    Before that the controller takes silence for a slow start, and is patient for minutes. ``other_than`` is the pid of
    a process that was killed just now, and may not have died yet.
    """
    heard: list[int] = []

    def serves() -> bool:
        pid = int(ping(shard_name(cluster.name, shard))["pid"])
        view = cluster.status()["shards"][shard]
        heard.append(pid)
        return bool(view["pid"] == pid != other_than and view["state"] == "serving")

    eventually(serves, f"the controller to hear from shard {shard}'s process")
    return heard[-1]


def settle(cluster: Cluster) -> None:
    """Wait until the controller has heard from the processes of all shards that they serve, whatever happened before.

    A test that begins earlier would meet what the one before it has left: a shard that is being started again.
    """
    for shard in cluster.membership.cluster_map.all_shards():
        watched_pid(cluster, shard)


def all_decided(cluster: Cluster) -> None:
    """Wait until no shard holds a transaction that it has not heard the outcome of, which comes behind the answer.

    Who writes under an id of its own waits a little for the locks of such a one, and is then refused for good; the
    shard that is killed meanwhile holds them until it is back and has asked.
    """

    def nothing_held(shard: int) -> bool:
        (status,) = cluster.hosts()[shard].execute(Batch([Status()]), PATIENCE_S).responses
        return isinstance(status, StatusReply) and status.figures["prepared_transactions"] == 0

    shards = cluster.membership.cluster_map.all_shards()
    eventually(lambda: all(map(nothing_held, shards)), "all transactions to be decided everywhere")


def kill_router(cluster: Cluster, number: int = 0) -> int:
    """``kill -9`` the process of a router actor."""
    pid = int(ping(router_name(cluster.name, number))["pid"])
    os.kill(pid, signal.SIGKILL)
    return pid


def kill_controller(cluster: Cluster) -> int:
    """``kill -9`` the process of the controller."""
    pid = controller_pid(cluster)
    os.kill(pid, signal.SIGKILL)
    return pid


def controller_pid(cluster: Cluster) -> int:
    """The process of the controller."""
    return int(insist(lambda: call_actor(controller_name(cluster.name), "status"))["pid"])


def call_actor(actor: str, method: str, *arguments: object) -> Any:
    """Call a method of a named actor; all its errors, as ``insist`` knows them."""
    try:
        return ray.get(getattr(look_up(actor), method).remote(*arguments), timeout=PATIENCE_S)
    except ray_errors.RayError as error:
        raise translate(error, actor) from error


@contextmanager
def frozen(pid: int) -> Iterator[None]:
    """Stop a process for a while (``SIGSTOP``); it may have been killed and replaced meanwhile."""
    try:
        standing_still.stop(pid)
        yield
    finally:
        try:
            os.kill(pid, signal.SIGCONT)
        except ProcessLookupError:
            pid = 0


@contextmanager
def frozen_shard(cluster: Cluster, shard: int) -> Iterator[None]:
    """Stop a shard's process, and that of the controller, which would replace it: it stays frozen for as long as that.

    The controller is found and the shard is watched before either stands still.
    """
    controller = controller_pid(cluster)
    with frozen(watched_pid(cluster, shard)), frozen(controller):
        yield
    settle(cluster)


def version_of(packet: DataPacket | None) -> int | None:
    """The ``version`` in a record's metadata; None for a record that is not there."""
    return None if packet is None or packet.metadata is None else int(packet.metadata["version"])


def vector_of(packet: DataPacket) -> npt.NDArray[np.float32]:
    """A record's vector."""
    assert packet.vector is not None
    return packet.vector.to_numpy()


def insist(operation: Callable[[], T], seconds: float = PATIENCE_S) -> T:
    """Repeat an idempotent operation until it is answered: what every client of a cluster under repair does."""
    deadline = time.monotonic() + seconds
    while True:
        try:
            return operation()
        except (ShardUnavailableError, TimeoutException):
            if time.monotonic() > deadline:
                raise


def eventually(condition: Callable[[], bool], what: str, seconds: float = PATIENCE_S) -> None:
    """Wait until a condition holds; fails with ``what`` if it does not in time. No answer is: it does not hold yet."""
    deadline = time.monotonic() + seconds
    while True:
        problem: BaseException | None = None
        try:
            if condition():
                return
        except NOT_NOW as error:
            problem = error
        if time.monotonic() > deadline:
            raise AssertionError(f"not within {seconds} s: {what}") from problem
        time.sleep(0.05)


def take_off(client: VecraftClient) -> None:
    """Ask until a client's calls travel over sockets."""
    before = flights_of(client)
    eventually(lambda: client.list_collections() is not None and flights_of(client) > before + 3, "sockets")


def put_back(away: Path, folder: Path) -> None:
    """Give a shard's directory its name again; whoever looked for it has left an empty one there, and still may."""
    attempts = iter(range(1000))

    def done() -> bool:
        if folder.exists():
            folder.rename(folder.with_name(f"empty-{next(attempts)}"))
        try:
            away.rename(folder)
        except OSError:
            return False
        return True

    eventually(done, f"{folder} to be put back")
