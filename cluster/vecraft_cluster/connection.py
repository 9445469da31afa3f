"""The one connection to Ray that a process can have.

It is shared by all clusters this process uses and closed with the last, unless the process was connected before: what
this module did not open it does not close. ``ray stop``, which ends every Ray on the machine, is never called.
"""

from __future__ import annotations

import logging
import shutil
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import ray
from ray import exceptions as ray_errors

from vecraft_cluster.ports import NAMESPACE
from vecraft_data_model.errors import InvalidDataException, ShardUnavailableError

STORE_BYTES = 1 << 30
"""Object store of a local Ray. It holds only calls above 100 KB while they are under way."""

STORE_BYTES_MIN = 512 << 20

_connection = threading.Lock()
_users = 0


def join_ray(address: str) -> Callable[[], None]:
    """Connect this process to Ray if it is not connected.

    Args:
        address: ``"local"`` starts a Ray on this machine; ``"auto"`` or ``"host:port"`` joins one.

    Returns:
        What lets go of the connection; calling it again does nothing.

    Raises:
        InvalidDataException: ``address`` is none of these, or the process is connected to another Ray.
        ShardUnavailableError: Ray cannot be started, or not be joined.
    """
    global _users
    if not isinstance(address, str) or not address or "://" in address:
        raise InvalidDataException(
            f"address must be 'local', 'auto' or 'host:port', got {address!r}; from outside the cluster use url= (REST)"
        )
    with _connection:
        if ray.is_initialized():
            _check_connected(address)
            if not _users:
                return lambda: None  # somebody else's connection: not ours to end
        elif address == "local":
            _start()
        else:
            _attach(address)
        _users += 1
    pending = [True]

    def release() -> None:
        global _users
        with _connection:
            if not pending or not pending.pop():
                return
            _users -= 1
            if _users == 0 and ray.is_initialized():
                ray.shutdown()

    return release


def _check_connected(address: str) -> None:
    present = ray.get_runtime_context().gcs_address
    if address not in ("local", "auto", present):
        raise InvalidDataException(
            f"this process is connected to the Ray at {present} already, and cannot join {address!r}"
        )


def _start() -> None:
    shared = Path("/dev/shm")
    free = shutil.disk_usage(shared).free if shared.exists() else 0
    try:
        with _interrupts_held_back() as interrupted:
            ray.init(
                address="local",
                namespace=NAMESPACE,
                include_dashboard=False,
                log_to_driver=False,
                logging_level=logging.ERROR,
                object_store_memory=STORE_BYTES if free > 2 * STORE_BYTES else STORE_BYTES_MIN,
            )
            if interrupted:
                ray.shutdown()
    except (ray_errors.RayError, OSError, RuntimeError) as error:
        raise ShardUnavailableError(f"no Ray could be started on this machine: {error}") from error


@contextmanager
def _interrupts_held_back() -> Iterator[list[int]]:
    """Let Ctrl-C wait until the body is over: a Ray that is half started leaves processes that nobody ends.

    Yields a list that is not empty once there was one; ``KeyboardInterrupt`` is raised on leaving then.
    """
    interrupted: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield interrupted  # signals only ever interrupt the main thread
        return
    before = signal.signal(signal.SIGINT, lambda number, frame: interrupted.append(number))
    try:
        yield interrupted
    finally:
        signal.signal(signal.SIGINT, before)
    if interrupted:
        raise KeyboardInterrupt


def _attach(address: str) -> None:
    try:
        ray.init(address=address, namespace=NAMESPACE, log_to_driver=False, logging_level=logging.ERROR)
    except (ray_errors.RayError, OSError, RuntimeError) as error:
        raise ShardUnavailableError(
            f"cannot join the Ray at {address!r}: {error}. Is it running ('ray start --head', or address='local')? "
            "Does this process have its token (RAY_AUTH_TOKEN, RAY_AUTH_TOKEN_PATH or ~/.ray/auth_token)?",
            address=address,
        ) from error
