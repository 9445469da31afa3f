"""How a batch travels to a shard actor and back, and what its failures mean.

::

    Batch ──encode──▶ bytes ──actor call──▶ ShardActor.execute ──▶ bytes ──decode──▶ BatchReply

Messages are written in one go (:mod:`vecraft_cluster.codec`) and cross Ray as plain ``bytes``: Ray passes those on
untouched, which is a fifth to a third cheaper than letting it pickle many small objects, and what arrives is the
receiver's own memory, so that nothing that is kept can pin the object store.

Failures are told apart by what the caller may conclude:

* ``ShardUnavailableError(outcome="unknown")``: the actor died, or the link broke, while the call was under way.
* ``ShardUnavailableError(outcome="not done")``: there was no actor to call.
* ``TimeoutException``: no answer in time; the batch may still be carried out.

Nothing is retried here: Ray is told not to (``max_task_retries=0``), and the router, which knows which requests may be
repeated, does it.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable
from concurrent.futures import wait
from typing import Any, cast

import ray
from ray import exceptions as ray_errors

from vecraft_cluster.codec import decode as decode
from vecraft_cluster.codec import encode as encode
from vecraft_cluster.credentials import Endpoint
from vecraft_data_model.errors import ShardUnavailableError, TimeoutException, VecraftError
from vecraft_data_model.messages import Batch, BatchReply

NAMESPACE = "vecraft"
"""The Ray namespace that holds every cluster's actors."""

ENDPOINT_TIMEOUT_S = 5.0

Handle = Any
"""A Ray actor handle. Ray makes its methods at run time, so there is no better type."""


def actor_class(cls: type, **options: Any) -> Any:
    """Return a class as a Ray actor class that Ray restarts for ever and never retries calls of."""
    # Ray's own annotations of `remote` leave some of its options out.
    remote = cast(Any, ray.remote)
    return remote(max_restarts=-1, max_task_retries=0, enable_task_events=False, **options)(cls)


def shard_name(cluster: str, shard: int) -> str:
    """Return the name of a shard's actor."""
    return f"vecraft:{cluster}:shard-{shard:04d}"


def controller_name(cluster: str) -> str:
    """Return the name of a cluster's controller actor."""
    return f"vecraft:{cluster}:controller"


def router_name(cluster: str, number: int) -> str:
    """Return the name of a router actor."""
    return f"vecraft:{cluster}:router-{number}"


def unwrap(data: bytes) -> Any:
    """Decode an answer; an error that travelled as one is raised."""
    answer = decode(data)
    if isinstance(answer, VecraftError):
        raise answer
    return answer


def translate(error: BaseException, who: str, **details: Any) -> VecraftError:
    """Return what a failed actor call means in VecraftDB's words.

    Args:
        error: What Ray raised, or a timeout.
        who: Who was called, for the message.
        details: Go into the error's details.
    """
    if isinstance(error, VecraftError):
        return error
    if isinstance(error, (ray_errors.GetTimeoutError, TimeoutError)):
        return TimeoutException(f"{who} did not answer in time; the outcome is unknown", **details)
    if isinstance(error, ray_errors.ActorUnavailableError):
        return ShardUnavailableError(f"{who} went away during the call", outcome="unknown", **details)
    if isinstance(error, ray_errors.ActorDiedError):
        return ShardUnavailableError(f"{who} is not running", outcome="unknown", **details)
    if isinstance(error, ray_errors.RayTaskError):
        cause = error.cause
        if isinstance(cause, VecraftError):
            return cause
        return ShardUnavailableError(f"{who} failed: {type(cause).__name__}: {cause}", outcome="unknown", **details)
    summary = str(error).strip().splitlines()
    return ShardUnavailableError(
        f"{who} cannot be reached: {type(error).__name__}: {summary[0] if summary else ''}",
        outcome="unknown",
        **details,
    )


class Directory:
    """Actor handles by name, looked up once. Safe to use from several threads.

    A handle outlives restarts by Ray; an actor that was made anew has to be looked up again (:meth:`forget`).
    """

    def __init__(self) -> None:
        self._handles: dict[str, Handle] = {}
        self._lock = threading.Lock()

    def find(self, name: str) -> Handle:
        """Return the handle of a named actor.

        Raises:
            ShardUnavailableError: There is no such actor now, or this process is not connected to Ray (any more).
        """
        handle = self.known(name)
        if handle is None:
            handle = look_up(name)
            with self._lock:
                self._handles[name] = handle
        return handle

    def known(self, name: str) -> Handle | None:
        """Return the handle if it was looked up before, and can be called now."""
        return self._handles.get(name) if ray.is_initialized() else None

    def forget(self, name: str) -> None:
        """Look the name up again next time."""
        with self._lock:
            self._handles.pop(name, None)

    def gone(self, name: str, error: BaseException) -> None:
        """Forget the handle if the failure says that this actor will not come back."""
        if isinstance(error, ray_errors.ActorDiedError):
            self.forget(name)


def refuse_unconnected(name: str) -> None:
    """Raise unless this process is connected to Ray.

    Asked for anything without, Ray would begin with starting a new Ray on this machine, which nobody would end.

    Raises:
        ShardUnavailableError: It is not, or not any more.
    """
    if not ray.is_initialized():
        raise ShardUnavailableError("this process is not connected to Ray", actor=name, outcome="not done")


def look_up(name: str) -> Handle:
    """Return the handle of a named actor.

    Raises:
        ShardUnavailableError: There is no such actor now, or Ray itself does not answer, or was left.
    """
    refuse_unconnected(name)
    try:
        return ray.get_actor(name, namespace=NAMESPACE)
    except ValueError as error:
        raise ShardUnavailableError(f"no actor {name!r} is running", actor=name, outcome="not done") from error
    except ray_errors.RayError as error:
        raise ShardUnavailableError(
            f"Ray cannot look up actor {name!r}: {error}", actor=name, outcome="not done"
        ) from error


def endpoint_of(directory: Directory, name: str) -> Callable[[Callable[[], bool]], Endpoint]:
    """Return what asks a shard actor for its socket, on a thread that may wait; see ``links.AskEndpoint``."""

    def ask(given_up: Callable[[], bool]) -> Endpoint:
        deadline = time.monotonic() + ENDPOINT_TIMEOUT_S
        try:
            if not ray.is_initialized():  # asking would start a Ray of its own
                raise TimeoutError("this process is not connected to Ray any more")
            # Not ray.get: in a router actor Ray would warn of a blocked event loop, though this thread blocks none.
            answer = directory.find(name).endpoint.remote().future()
            # In short steps: a router that is closed must not leave a thread behind that calls a Ray that is gone.
            while not wait([answer], timeout=0.1).done:
                if given_up() or time.monotonic() > deadline or not ray.is_initialized():
                    raise TimeoutError(f"{name} did not say where its socket is")
            endpoint: Endpoint = unwrap(answer.result())
        except ray_errors.RayError as error:
            directory.gone(name, error)
            raise translate(error, name) from error
        return endpoint

    return ask


class RayShardPort:
    """A shard actor, for callers that may block (:class:`vecraft_data_model.ports.ShardPort`)."""

    __slots__ = ("_directory", "_name", "_shard")

    def __init__(self, cluster: str, shard: int, directory: Directory) -> None:
        self._name = shard_name(cluster, shard)
        self._shard = shard
        self._directory = directory

    def execute(self, batch: Batch, timeout: float) -> BatchReply:
        """Carry a batch there and bring the reply back; errors as the port says."""
        handle = self._directory.find(self._name)
        try:
            answer = ray.get(handle.execute.remote(encode((timeout, batch))), timeout=timeout)
        except (ray_errors.RayError, TimeoutError) as error:
            self._directory.gone(self._name, error)
            raise translate(error, f"shard {self._shard}", shard=self._shard) from error
        reply: BatchReply = unwrap(answer)
        return reply


class AsyncRayShardPort:
    """The same, awaitable, on any event loop (:class:`vecraft_data_model.ports.AsyncShardPort`)."""

    __slots__ = ("_directory", "_name", "_shard")

    def __init__(self, cluster: str, shard: int, directory: Directory) -> None:
        self._name = shard_name(cluster, shard)
        self._shard = shard
        self._directory = directory

    async def execute(self, batch: Batch, timeout: float) -> BatchReply:
        """Carry a batch there and bring the reply back; errors as the port says."""
        handle: Handle = self._directory.known(self._name)
        if handle is None:
            handle = await asyncio.to_thread(self._directory.find, self._name)
        try:
            answer = await call(handle.execute, encode((timeout, batch)), timeout=timeout)
        except (ray_errors.RayError, TimeoutError) as error:
            self._directory.gone(self._name, error)
            raise translate(error, f"shard {self._shard}", shard=self._shard) from error
        reply: BatchReply = unwrap(answer)
        return reply


async def call(method: Any, *arguments: object, timeout: float) -> Any:
    """Await an actor method; raises Ray's errors, and ``TimeoutError`` after ``timeout`` seconds."""
    future = asyncio.wrap_future(method.remote(*arguments).future())
    async with asyncio.timeout(timeout):
        return await future
