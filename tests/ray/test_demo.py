"""``make demo`` as a stranger runs it: to its end, and interrupted; either way nothing is left running."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest
from ray_workbench import PATIENCE_S

ROOT = Path(__file__).resolve().parents[2]
pytestmark = pytest.mark.slow


@pytest.fixture
def short_path() -> Iterator[Path]:
    """A temporary directory of its own for Ray too, whose socket names must stay below 108 characters."""
    with tempfile.TemporaryDirectory(prefix="vd", dir="/tmp", ignore_cleanup_errors=True) as folder:
        yield Path(folder)


@contextmanager
def demo(folder: Path, *arguments: str) -> Iterator[tuple[subprocess.Popen[bytes], Path]]:
    """Run the demo in a folder of its own, its output in a file."""
    output = folder / "output.txt"
    environment = os.environ | {"PYTHONPATH": str(ROOT), "TMPDIR": str(folder), "COLUMNS": "200"}
    with open(output, "wb") as file:
        process = subprocess.Popen(
            [sys.executable, "-m", "examples.demo", *arguments],
            cwd=folder, env=environment, stdout=file, stderr=subprocess.STDOUT, start_new_session=True,
        )  # fmt: skip
    try:
        yield process, output
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
            process.wait(PATIENCE_S)


def children_of(process: subprocess.Popen[bytes]) -> list[psutil.Process]:
    return psutil.Process(process.pid).children(recursive=True)


def assert_gone(processes: list[psutil.Process]) -> None:
    """Ray's agents end when they notice that their raylet is gone, which takes some seconds."""
    _, alive = psutil.wait_procs(processes, timeout=PATIENCE_S)
    assert [each for each in alive if each.is_running() and each.status() != psutil.STATUS_ZOMBIE] == []


def test_the_demo_keeps_every_promise(short_path: Path) -> None:
    with demo(short_path, "--without-pictures") as (process, output):
        started: set[psutil.Process] = set()
        while process.poll() is None:
            try:
                started |= set(children_of(process))
            except psutil.NoSuchProcess:
                break
            time.sleep(0.5)
        text = output.read_text()
        assert process.wait(PATIENCE_S) == 0, text
    for said in (
        "the REST gateway at", "both changed in one commit", "the second was refused", "the snapshot taken before",
        "nothing lost", "recall@10", "everything that was started is stopped",
    ):  # fmt: skip
        assert said in text, text
    assert len(started) > 4
    assert_gone(list(started))


@pytest.mark.parametrize("moment", ["Starting Ray", "Searching"])
def test_control_c_stops_everything(short_path: Path, moment: str) -> None:
    with demo(short_path) as (process, output):
        deadline = time.monotonic() + 2 * PATIENCE_S
        while moment not in output.read_text():
            assert process.poll() is None and time.monotonic() < deadline, output.read_text()
            time.sleep(0.05)
        if moment == "Starting Ray":
            time.sleep(6)  # in the middle of it
        started = children_of(process)
        process.send_signal(signal.SIGINT)
        assert process.wait(PATIENCE_S) == 130, output.read_text()
        assert "Traceback" not in output.read_text()
    assert_gone(started)
    assert [path.name for path in short_path.iterdir() if path.name.startswith("vecraft-demo-")] == []
