"""The Ray actor that runs one shard: a :class:`~vecraft_cluster.host.ShardHost` behind an actor call.

Calls of each kind have threads of their own, so that one is answered however busy another is::

    data      execute(bytes) → bytes       one batch, as in ``ports``
    control   ping, close                  the controller's
              endpoint                     where to send batches instead: the shard's own socket (``data_server``)
              resume                       ends a pause
    pauses    pause                        for whoever copies the files; waits until it is its turn

Invariants:

* The directory is locked before a file in it is opened, and until this process ends: two incarnations never write one
  directory, even if Ray starts the second while the first still lives (it waits for the lock, and says so).
* Nothing is answered without a valid lease (:mod:`vecraft_cluster.lease`), which is waited for before the directory is
  read: whoever starts this actor, and however early, it does not begin while another one may still answer.
* The constructor returns at once. Opening (lock, lease, recovery) goes on beside it; calls wait for it until their own
  timeout. So a shard that cannot be opened is an actor that says why, not a dead one, and ``ping`` is always answered.
* Nothing depends on an orderly end: ``close`` only saves the next start its recovery.

It decides nothing about when it is started again: that is Ray's (a dead process) and the controller's (anything else).
"""

from __future__ import annotations

import dataclasses
import logging
import os
import threading
import time
from functools import partial
from pathlib import Path
from typing import Any, cast

import msgspec
import ray
from ray import exceptions as ray_errors

from vecraft_cluster.data_server import DataServer
from vecraft_cluster.host import ShardHost
from vecraft_cluster.lease import LEASE_FOLDER, TAKEOVER_S, Lease, LeaseFolder, LeaseKeeper
from vecraft_cluster.memory import with_memory
from vecraft_cluster.ports import (
    Directory,
    RayShardPort,
    actor_class,
    controller_name,
    decode,
    encode,
    look_up,
    translate,
)
from vecraft_cluster.root import shard_path
from vecraft_data_model.errors import ShardUnavailableError, StorageFailureException, TimeoutException, VecraftError
from vecraft_data_model.messages import Batch, BatchReply, Refused, Status, StatusReply
from vecraft_shard.config import ShardConfig
from vecraft_shard.disk import DirectoryLock, OsDisk, lock_directory
from vecraft_shard.recovery import EPOCH_FILE

logger = logging.getLogger(__name__)

DATA_THREADS = 16
"""Batches under way at once: two lanes for each of eight routers; further ones wait in Ray's queue."""

CONTROL_THREADS = 3
PAUSE_THREADS = 2
"""A pause waits for the one before to end; what ends it, and what says that the actor is well, must not wait too."""

THREADS = {"data": DATA_THREADS, "control": CONTROL_THREADS, "pauses": PAUSE_THREADS}
LOCK_PATIENCE_S = 5.0
"""How long to wait for the incarnation before to end; after that the controller starts another attempt."""

LOCK_RETRY_S = 0.05
LEASE_PATIENCE_S = 3 * TAKEOVER_S
CONTROLLER_PATIENCE_S = 30.0


class ShardPlan(msgspec.Struct, frozen=True):
    """What a shard actor needs to know to run its shard.

    Attributes:
        cluster: The cluster's name.
        shard: The shard's number.
        root: The data directory, a path on the node the actor runs on.
        config: The shard's settings.
        sockets: Whether to serve batches on a socket of its own too.
    """

    cluster: str
    shard: int
    root: str
    config: ShardConfig
    sockets: bool = True


class ShardActor:
    """One shard of a cluster, as a Ray actor (see the module's docstring)."""

    def __init__(self, plan: ShardPlan) -> None:
        self._plan = plan
        self._started = time.time()
        self._host: ShardHost | None = None
        self._lock: DirectoryLock | None = None
        self._keeper: LeaseKeeper | None = None
        self._server: DataServer | None = None
        self._failure: VecraftError | None = None
        self._state = "opening"
        self._settled = threading.Event()
        self._ending = threading.Lock()
        self._pauses: dict[int, _Pause] = {}
        self._directory = Directory()
        threading.Thread(target=self._open, name="vecraft-open", daemon=True).start()

    @ray.method(concurrency_group="data", enable_task_events=False)
    def execute(self, data: bytes) -> bytes:
        """Carry out ``encode((timeout, batch))`` and return the encoded ``BatchReply``, or the error it failed with."""
        try:
            message: tuple[float, Batch] = decode(data)
            return encode(_carry_out(self._host or self._wait_for_host(message[0]), message))
        except VecraftError as error:
            return encode(error)

    @ray.method(concurrency_group="control", enable_task_events=False)
    def endpoint(self) -> bytes:
        """Return the encoded :class:`~vecraft_cluster.credentials.Endpoint`, or the error that says why there is none.

        Whoever may call this actor may do anything with the shard already: that is what its keys are given for.
        """
        if self._server is None or self._state != "serving":
            return encode(
                ShardUnavailableError(
                    f"shard {self._plan.shard} serves no socket now ({self._state})", shard=self._plan.shard
                )
            )
        return encode(self._server.endpoint)

    @ray.method(concurrency_group="control", enable_task_events=False)
    def ping(self) -> dict[str, Any]:
        """Say how this incarnation is: its process, and ``state`` (opening, serving, failed or closed)."""
        return {
            "shard": self._plan.shard,
            "state": self._state,
            "pid": os.getpid(),
            "node": ray.get_runtime_context().get_node_id(),
            "started": self._started,
            "error": self._failure.to_dict() if self._failure is not None else None,
        }

    @ray.method(concurrency_group="control", enable_task_events=False)
    def close(self) -> dict[str, Any] | None:
        """Make a checkpoint and let the directory go; the actor stays until it is killed. Returns what went wrong."""
        self._settled.wait()
        with self._ending:
            failure: VecraftError | None = None
            if self._state != "closed":
                self._state = "closed"
                if self._server is not None:
                    self._server.close()
                try:
                    if self._host is not None:
                        self._host.close()
                except VecraftError as error:
                    failure = error
                    logger.exception("closing failed", extra={"shard": self._plan.shard})
                finally:
                    self._give_up_directory()
            return failure.to_dict() if failure is not None else None

    @ray.method(concurrency_group="pauses", enable_task_events=False)
    def pause(self, seconds: float) -> bytes:
        """Keep writers waiting until ``resume``, for at most ``seconds``; returns the encoded number of this pause."""
        try:
            pause = _Pause(self._wait_for_host(seconds), seconds)
        except VecraftError as error:
            return encode(error)
        with self._ending:
            self._pauses[number := len(self._pauses)] = pause
        return encode(number)

    @ray.method(concurrency_group="control", enable_task_events=False)
    def resume(self, number: int) -> bool:
        """End a pause; returns whether it held until now."""
        pause = self._pauses.get(number)
        return pause is not None and pause.end()

    def _open(self) -> None:
        """Lock the directory and recover the shard; runs on a thread of its own."""
        plan = self._plan
        path = shard_path(Path(plan.root), plan.shard)
        try:
            self._lock = self._lock_patiently(path)
            lease = Lease(LeaseFolder(path / LEASE_FOLDER))
            lease.acquire(LEASE_PATIENCE_S)
            self._keeper = LeaseKeeper(lease, self._replaced)
            fresh = not (path / EPOCH_FILE).exists()
            config = self._config_for_empty() if fresh else plan.config
            host = ShardHost(OsDisk(path), plan.shard, config, self._peer, lease=lease)
            if fresh:
                self._say_begun(host)
            self._host = host
            if plan.sockets:
                self._server = self._serve(host)
            self._state = "serving"
        except VecraftError as error:
            self._fail(error)
        except Exception as error:
            self._fail(
                StorageFailureException(f"shard {plan.shard} cannot open {path}: {type(error).__name__}: {error}")
            )
        finally:
            self._settled.set()

    def _config_for_empty(self) -> ShardConfig:
        """Return the settings for an empty directory: it may be begun in only until every shard of this root has begun.

        That is the controller's to say, and now: Ray starts this actor again with the plan that it was made with, maybe
        on a node where the disk is missing.
        """
        return dataclasses.replace(self._plan.config, must_exist=self._ask_controller("peopled"))

    def _say_begun(self, host: ShardHost) -> None:
        """Have it noted, before anything is answered, that this directory is not empty any more."""
        try:
            self._ask_controller("begun", self._plan.shard)
        except BaseException:
            host.kill()
            raise

    def _ask_controller(self, method: str, *arguments: Any) -> Any:
        name = controller_name(self._plan.cluster)
        try:
            return ray.get(getattr(look_up(name), method).remote(*arguments), timeout=CONTROLLER_PATIENCE_S)
        except ray_errors.RayError as error:
            raise translate(error, name) from error

    def _serve(self, host: ShardHost) -> DataServer | None:
        """Listen where Ray listens on this node; where that cannot be, actor calls have to do."""
        try:
            address = cast(Any, ray).util.get_node_ip_address()
            return DataServer(address, self._plan.shard, _epoch_of(host), partial(_carry_out, host))
        except (OSError, VecraftError):
            logger.exception("no socket of its own; actor calls go on", extra={"shard": self._plan.shard})
            return None

    def _lock_patiently(self, path: Path) -> DirectoryLock:
        """Take the directory's lock, which the incarnation before may hold until its process is gone."""
        deadline = time.monotonic() + LOCK_PATIENCE_S
        while True:
            try:
                return lock_directory(path)
            except StorageFailureException:
                if time.monotonic() >= deadline:
                    raise
                time.sleep(LOCK_RETRY_S)

    def _fail(self, error: VecraftError) -> None:
        logger.exception("shard cannot be opened", extra={"shard": self._plan.shard})
        self._failure = error
        self._state = "failed"
        self._give_up_directory()

    def _give_up_directory(self) -> None:
        if self._keeper is not None:
            self._keeper.close()
        if self._lock is not None:
            self._lock.close()

    def _replaced(self) -> None:
        """End at once: another process answers for this shard, and what is in memory here may be out of date."""
        logger.error("shard was taken over; ending this process", extra={"shard": self._plan.shard})
        os._exit(1)

    def _wait_for_host(self, timeout: float) -> ShardHost:
        if not self._settled.wait(timeout):
            raise TimeoutException(
                f"shard {self._plan.shard} is still recovering after {timeout:.1f} s; nothing was done", done=False
            )
        if self._failure is not None:
            raise self._failure
        if self._host is None:
            raise ShardUnavailableError(
                f"shard {self._plan.shard} is closed", shard=self._plan.shard, outcome="not done"
            )
        return self._host

    def _peer(self, shard: int) -> RayShardPort:
        return RayShardPort(self._plan.cluster, shard, self._directory)


def _carry_out(host: ShardHost, message: tuple[float, Batch]) -> BatchReply:
    # Not a method: Ray wraps those of actors, to trace calls that it made itself.
    timeout, batch = message
    reply = host.execute(batch, timeout)
    return with_memory(reply) if Status in map(type, batch.requests) else reply


def _epoch_of(host: ShardHost) -> int:
    answer = host.execute(Batch([Status()]), LOCK_PATIENCE_S).responses[0]
    if isinstance(answer, Refused):
        raise answer.error
    return cast(StatusReply, answer).epoch


class _Pause:
    """Writers wait while it holds. A thread of its own holds it: the calls that begin and end it have others."""

    def __init__(self, host: ShardHost, seconds: float) -> None:
        self._host = host
        self._seconds = seconds
        self._begun = threading.Event()
        self._over = threading.Event()
        self._held = False
        self._failure: VecraftError | None = None
        self._thread = threading.Thread(target=self._hold, name="vecraft-pause", daemon=True)
        self._thread.start()
        if not self._begun.wait(seconds):
            self._over.set()
            raise TimeoutException(f"the shard's writer was busy for {seconds:.0f} s; it was not paused")
        if self._failure is not None:
            raise self._failure

    def end(self) -> bool:
        """Let writers go on; returns whether they had waited until now."""
        self._over.set()
        self._thread.join()
        return self._held

    def _hold(self) -> None:
        try:
            with self._host.paused():
                self._begun.set()
                self._held = self._over.wait(self._seconds)
        except VecraftError as error:
            self._failure = error
            self._begun.set()


def shard_actor_class() -> Any:
    """Return the actor class with the options that never vary: threads, and no retries by Ray."""
    return actor_class(ShardActor, concurrency_groups=THREADS)
