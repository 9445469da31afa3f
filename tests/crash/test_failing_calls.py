"""System calls that fail in the real process: no write that was acknowledged is lost, and reads go on.

``strace`` lets the first, second, third … call of a kind fail once, each in a process of its own that writes, reads,
makes checkpoints, closes and opens again. ``VECRAFT_FAILING_CALLS`` says how many of each kind. Needs ``strace``.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from itertools import product
from pathlib import Path
from typing import Any

import pytest

CALLS = int(os.environ.get("VECRAFT_FAILING_CALLS", "12"))
KINDS = ("pwrite64", "fdatasync", "fsync", "ftruncate", "fallocate", "rename", "unlink")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(7200),
    pytest.mark.skipif(shutil.which("strace") is None, reason="strace, which lets calls fail, is not installed"),
]


@pytest.fixture
def memory() -> Iterator[Path]:
    """A directory in memory, if that can be."""
    shared = Path("/dev/shm")
    usable = shared.is_dir() and os.access(shared, os.W_OK)
    with tempfile.TemporaryDirectory(prefix="vecraft-calls-", dir=shared if usable else None) as folder:
        yield Path(folder)


def lives(folder: Path, call: str, error: str) -> list[dict[str, Any]]:
    """Let each of the first calls of a kind fail in turn; return what came of those that there were."""
    when = CALLS + 100
    tracer = ["strace", "-f", "-qq", "-s", "0", "-o", str(folder / "trace"), "-e", f"trace={call}", "-e", "signal=none"]
    inject = ["-e", f"inject={call}:error={error}:when={when}"]
    child = ["-m", "tests.support.fault_child", str(folder), call, str(when), "1", str(CALLS), str(max(4, CALLS // 8))]
    environment = {**os.environ, "PYTHONDONTWRITEBYTECODE": "1"}
    ran = subprocess.run(
        [*tracer, *inject, sys.executable, *child], capture_output=True, text=True, env=environment, check=False
    )
    assert ran.returncode == 0, ran.stderr
    hit = {int(line.split()[0]) for line in (folder / "trace").read_text().splitlines() if re.search("INJECTED", line)}
    found = [json.loads(path.read_text()) for path in folder.glob("*.json")]
    assert len(found) == CALLS, ran.stderr
    return [life for life in found if life["pid"] in hit]


@pytest.mark.parametrize(("call", "error"), [*product(KINDS, ("EIO", "ENOSPC")), ("pwrite64", "EDQUOT")])
def test_any_call_may_fail(memory: Path, call: str, error: str) -> None:
    found = lives(memory, call, error)
    assert len(found) >= min(CALLS, 3), "these calls are hardly made: the test proves little"
    problems = [(life["pid"], life["problems"]) for life in found if life["problems"]]
    assert not problems, f"{len(problems)} of {len(found)}: {problems[:3]}"
    assert all(life["acknowledged"] >= 4 for life in found)
    assert all(life["failed_reads"] <= 1 for life in found)
    if error != "EIO" and call in ("pwrite64", "fallocate"):
        refused = [life for life in found if life["refused"]]
        assert refused and not any(life["failed_reads"] for life in refused)
