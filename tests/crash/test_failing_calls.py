"""System calls that fail, or write less than they should, in the real process: no acknowledged write is lost.

``strace`` lets the first, second, third … call of a kind fail once, each in a process of its own that writes, reads,
makes checkpoints, closes and opens again. Writes are cut short by a wrapper of ``os.pwrite``, which then writes less,
and by the kernel, which writes no file beyond a limit. ``VECRAFT_FAILING_CALLS`` says how many of each kind.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from itertools import product
from pathlib import Path
from typing import Any

import pytest
from track_record import record

from tests.support.fault_child import TERM, WHEN

CALLS = int(os.environ.get("VECRAFT_FAILING_CALLS", "12"))
KINDS = ("pwrite64", "fdatasync", "fsync", "ftruncate", "fallocate", "rename", "unlink")
pytestmark = [pytest.mark.slow, pytest.mark.timeout(7200)]


@pytest.fixture
def memory() -> Iterator[Path]:
    """A directory in memory, if that can be."""
    shared = Path("/dev/shm")
    usable = shared.is_dir() and os.access(shared, os.W_OK)
    with tempfile.TemporaryDirectory(prefix="vecraft-calls-", dir=shared if usable else None) as folder:
        yield Path(folder)


def lives(folder: Path, command: list[str]) -> list[dict[str, Any]]:
    """Run a program of lives; return what came of each."""
    environment = {**os.environ, "PYTHONDONTWRITEBYTECODE": "1"}
    ran = subprocess.run([*command, str(CALLS)], capture_output=True, text=True, env=environment, check=False)
    assert ran.returncode == 0, ran.stderr
    found = [json.loads((folder / f"{life}.json").read_text()) for life in range(CALLS)]
    problems = [(number, life["problems"]) for number, life in enumerate(found) if life["problems"]]
    assert not problems, f"{len(problems)} of {len(found)}: {problems[:3]}"
    assert all(life["acknowledged"] >= TERM for life in found)
    return found


def felt(found: list[dict[str, Any]]) -> int:
    """How many lives noticed anything."""
    ways = ("refused", "unknown", "failed_reads", "failed_upkeep", "failed_opens")
    return sum(any(life[way] for way in ways) for life in found)


def enter(found: list[dict[str, Any]], method: str) -> None:
    """Into the track record."""
    outcome = f"{sum(life['acknowledged'] for life in found)} acknowledged writes, all found again"
    record("processes", method=method, cases=len(found), outcome=outcome)


@pytest.mark.skipif(shutil.which("strace") is None, reason="strace, which lets calls fail, is not installed")
@pytest.mark.parametrize(("call", "error"), [*product(KINDS, ("EIO", "ENOSPC")), ("pwrite64", "EDQUOT")])
def test_any_call_may_fail(memory: Path, call: str, error: str) -> None:
    tracer = ["strace", "-f", "--seccomp-bpf", "-qq", "-s", "0", "-o", str(memory / "trace")]
    tracer += ["-e", f"trace={call}", "-e", "signal=none", "-e", f"inject={call}:error={error}:when={WHEN}"]
    found = lives(memory, [*tracer, sys.executable, "-m", "tests.support.fault_child", str(memory), call])
    assert (memory / "trace").read_text().count("INJECTED") == CALLS
    assert all(life["failed_reads"] <= 1 for life in found)
    assert felt(found), "the test proves little"
    if error != "EIO" and call in ("pwrite64", "fallocate"):
        refused = [life for life in found if life["refused"]]
        assert refused and not any(life["failed_reads"] for life in refused)
    enter(found, f"a failing `{call}` ({error}), each in turn")


@pytest.mark.parametrize("then", ["goes-on", "EIO", "ENOSPC", "limit"])
def test_any_write_may_be_cut_short(memory: Path, then: str) -> None:
    found = lives(memory, [sys.executable, "-m", "tests.support.short_writes", str(memory), then])
    if then == "goes-on":
        assert not felt(found), "a write that goes on is nothing to be seen"
        method = "a write cut short, then completed"
    elif then == "limit":
        assert felt(found) >= len(found) // 2, "the test proves little"
        method = "writes of all libraries cut short by the kernel (`RLIMIT_FSIZE`)"
    else:
        assert felt(found), "the test proves little"
        assert all(life["failed_reads"] <= 1 for life in found)
        method = f"a write cut short, then {then}"
    enter(found, f"{method}, each in turn")
