"""A disk that is full for real: a small file system of its own. Reads go on, a restart comes through, room ends it."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

MOUNT = "mount -t tmpfs -o size=40m none {folder} && exec {python} -m tests.support.full_child {folder}"


def can_mount(folder: Path) -> bool:
    """Whether this user may have a file system of its own."""
    if shutil.which("unshare") is None:
        return False
    command = ["unshare", "-rm", "mount", "-t", "tmpfs", "-o", "size=1m", "none", str(folder)]
    return subprocess.run(command, capture_output=True, check=False).returncode == 0


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_a_file_system_that_becomes_full(tmp_path: Path) -> None:
    if not can_mount(tmp_path):
        pytest.skip("this user may not mount a file system in a namespace of its own (unshare -rm)")
    command = ["unshare", "-rm", "sh", "-c", MOUNT.format(folder=tmp_path, python=sys.executable)]
    ran = subprocess.run(command, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr[-3000:] + ran.stdout
    found = json.loads(ran.stdout.splitlines()[-1])
    assert found["written"] >= 20 and found["refused"] == 20 and found["reads"] > 20
