"""Starts what the demo shows, and stops it again whatever happens: a Ray cluster of two shards, and a REST gateway.

The gateway is a process of its own that joins the cluster, as it would on another machine. Everything that is started
here is stopped here, by the process ids that were started and by no other means.
"""

from __future__ import annotations

import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx
import ray

from vecraft_db.client.vecraft_client import VecraftClient

SHARDS = 2
GATEWAY_START_SECONDS_MAX = 120.0
GATEWAY_STOP_SECONDS_MAX = 15.0


@dataclass(frozen=True)
class Stage:
    """What runs: a client that routes by itself, and one that goes through the gateway."""

    client: VecraftClient
    rest: VecraftClient
    url: str
    log: Path


@contextmanager
def running_stage() -> Iterator[Stage]:
    """Start everything in a temporary directory; stop everything on leaving, also by Ctrl-C, SIGTERM or an error."""
    with ExitStack() as stack, tempfile.TemporaryDirectory(prefix="vecraft-demo-") as folder:
        stack.enter_context(_signals_as_interrupts())
        stack.callback(_end_ray)
        client = VecraftClient(address="local", root=Path(folder) / "data", shards=SHARDS, timeout=60.0)
        stack.callback(client.close)
        log = Path(folder) / "gateway.log"
        url = stack.enter_context(_gateway(str(client.cluster_info()["cluster"]), log))
        rest = stack.enter_context(VecraftClient(url=url, timeout=60.0))
        try:
            yield Stage(client, rest, url, log)
        finally:
            # From here on a second Ctrl-C would only leave processes behind.
            signal.signal(signal.SIGINT, signal.SIG_IGN)
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
            stack.close()


@contextmanager
def _signals_as_interrupts() -> Iterator[None]:
    def interrupt(number: int, frame: object) -> None:
        raise KeyboardInterrupt

    before = {number: signal.signal(number, interrupt) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _end_ray() -> None:
    """End the Ray of this process, should an interrupt have come while it was starting."""
    if ray.is_initialized():
        ray.shutdown()


@contextmanager
def _gateway(cluster: str, log: Path) -> Iterator[str]:
    """Run a gateway on a free port of this machine, joined to the cluster; yield its URL once it is ready."""
    port, address = _free_port(), ray.get_runtime_context().gcs_address
    command = [sys.executable, "-m", "vecraft_db.server", "--address", address]
    command += ["--cluster", cluster, "--port", str(port)]
    with open(log, "wb") as output:
        # In a session of its own: Ctrl-C goes to the demo, which ends the gateway in its turn.
        process = subprocess.Popen(command, stdout=output, stderr=output, start_new_session=True)
    try:
        url = f"http://127.0.0.1:{port}"
        _wait_ready(url, process, log)
        yield url
    finally:
        process.terminate()
        try:
            process.wait(GATEWAY_STOP_SECONDS_MAX)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _wait_ready(url: str, process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + GATEWAY_START_SECONDS_MAX
    while True:
        if process.poll() is not None or time.monotonic() > deadline:
            raise RuntimeError(f"the gateway did not start:\n{log.read_text(errors='replace')[-2000:]}")
        try:
            if httpx.get(f"{url}/readyz", timeout=5.0, trust_env=False).status_code == 200:
                return
        except httpx.TransportError:
            pass  # it does not listen yet
        time.sleep(0.1)


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port: int = probe.getsockname()[1]
        return port
