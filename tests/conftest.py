"""What tests of several folders share: one Ray for the whole session, started when the first test asks for it."""

from __future__ import annotations

import logging
import os
import secrets
import shutil
import signal
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from random_examples import load_profile

load_profile()
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    # A shell starts what it runs in the background so, and all that is started here would inherit it: Ctrl-C that some
    # tests send would do nothing.
    signal.signal(signal.SIGINT, signal.default_int_handler)


def _processes_of(session_directory: Path) -> list[psutil.Process]:
    """The processes of one Ray: all that name its directory, and what they started."""
    found: dict[int, psutil.Process] = {}
    for process in psutil.process_iter(["cmdline"]):
        if any(str(session_directory) in word for word in process.info["cmdline"] or ()):
            found[process.pid] = process
            try:
                found.update((child.pid, child) for child in process.children(recursive=True))
            except psutil.NoSuchProcess:
                continue
    found.pop(os.getpid(), None)
    return list(found.values())


def _alive(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


@pytest.fixture(scope="session")
def ray_session() -> Iterator[Path]:
    """A Ray of this test session's own; its temporary directory. Nothing of it is left when the session ends.

    The process is connected to it, so ``address="auto"`` and ``"local"`` both mean this one.
    """
    import ray

    directory = Path(tempfile.mkdtemp(prefix="vcr", dir="/tmp"))  # short: sockets in it have at most 107 characters
    # A token in the environment keeps Ray from writing one into the home directory.
    os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))
    try:
        ray.init(
            address="local",
            namespace="vecraft",
            include_dashboard=False,
            log_to_driver=False,
            logging_level=logging.ERROR,
            object_store_memory=512 << 20,
            _temp_dir=str(directory),
        )
        yield directory
    finally:
        started = _processes_of(directory)
        if ray.is_initialized():
            ray.shutdown()
        deadline = time.monotonic() + 10
        while any(_alive(process) for process in started) and time.monotonic() < deadline:
            time.sleep(0.05)
        for process in (*started, *_processes_of(directory)):
            if _alive(process):
                process.kill()
        shutil.rmtree(directory, ignore_errors=True)
