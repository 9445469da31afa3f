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

from vecraft_cluster.launch import Cluster
from vecraft_cluster.ports import controller_name, look_up, router_name, shard_name
from vecraft_data_model import DataPacket
from vecraft_data_model.errors import ShardUnavailableError, TimeoutException
from vecraft_db.client.vecraft_client import VecraftClient

T = TypeVar("T")


def ping(actor: str, timeout: float = 30.0) -> dict[str, Any]:
    """Ping an actor until it answers; raises after ``timeout`` seconds."""
    deadline = time.monotonic() + timeout
    while True:
        try:
            answer: dict[str, Any] = ray.get(
                look_up(actor).ping.remote(), timeout=max(0.1, deadline - time.monotonic())
            )
            return answer
        except (ray_errors.RayError, ShardUnavailableError):
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


def watched_pid(cluster: Cluster, shard: int) -> int:
    """The pid of a shard actor, once the controller has heard from that process that it serves.

    Before that the controller takes silence for a slow start, and is patient for minutes.
    """
    pid = int(ping(shard_name(cluster.name, shard))["pid"])

    def heard() -> bool:
        view = insist(cluster.status)["shards"][shard]
        return bool(view["pid"] == pid and view["state"] == "serving")

    eventually(heard, 60, f"the controller to hear from shard {shard}'s process {pid}")
    return pid


def kill_router(cluster: Cluster, number: int = 0) -> int:
    """``kill -9`` the process of a router actor."""
    pid = int(ping(router_name(cluster.name, number))["pid"])
    os.kill(pid, signal.SIGKILL)
    return pid


def kill_controller(cluster: Cluster) -> int:
    """``kill -9`` the process of the controller."""
    pid = int(ray.get(look_up(controller_name(cluster.name)).status.remote(), timeout=30)["pid"])
    os.kill(pid, signal.SIGKILL)
    return pid


@contextmanager
def frozen(pid: int) -> Iterator[None]:
    """Stop a process for a while (``SIGSTOP``); it may have been killed and replaced meanwhile."""
    os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        try:
            os.kill(pid, signal.SIGCONT)
        except ProcessLookupError:
            pid = 0


def version_of(packet: DataPacket | None) -> int | None:
    """The ``version`` in a record's metadata; None for a record that is not there."""
    return None if packet is None or packet.metadata is None else int(packet.metadata["version"])


def vector_of(packet: DataPacket) -> npt.NDArray[np.float32]:
    """A record's vector."""
    assert packet.vector is not None
    return packet.vector.to_numpy()


def insist(operation: Callable[[], T], seconds: float = 60.0) -> T:
    """Repeat an idempotent operation until it is answered: what every client of a cluster under repair does."""
    deadline = time.monotonic() + seconds
    while True:
        try:
            return operation()
        except (ShardUnavailableError, TimeoutException):
            if time.monotonic() > deadline:
                raise


def eventually(condition: Callable[[], bool], seconds: float, what: str) -> None:
    """Wait until a condition holds; fails with ``what`` if it does not in time."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            raise AssertionError(f"not within {seconds} s: {what}")
        time.sleep(0.05)


def take_off(client: VecraftClient) -> None:
    """Ask until a client's calls travel over sockets."""
    before = flights_of(client)
    eventually(lambda: insist(client.list_collections) is not None and flights_of(client) > before + 3, 30, "sockets")


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

    eventually(done, 30, f"{folder} to be put back")
