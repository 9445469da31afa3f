"""Several Ray nodes: shards go where the labels say, and to another node only with their directory and their lease."""

from __future__ import annotations

import json
import os
import secrets
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from vecraft_cluster.lease import TAKEOVER_S

REPOSITORY = Path(__file__).parents[2]


@pytest.fixture
def ray_directory() -> Iterator[Path]:
    """Of a Ray of its own; whatever names it is ended with it."""
    directory = Path(tempfile.mkdtemp(prefix="vcn", dir="/tmp"))  # short: sockets in it have at most 107 characters
    yield directory
    for process in psutil.process_iter(["cmdline"]):
        if any(str(directory) in word for word in process.info["cmdline"] or ()):
            process.kill()
    shutil.rmtree(directory, ignore_errors=True)


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_a_shard_moves_to_another_node_with_its_directory_and_its_lease_only(
    ray_directory: Path, tmp_path: Path
) -> None:
    environment = {**os.environ, "RAY_TMPDIR": str(ray_directory), "RAY_AUTH_TOKEN": secrets.token_hex(32)}
    done = subprocess.run(
        [sys.executable, "-m", "tests.support.two_nodes", str(tmp_path / "data")],
        cwd=REPOSITORY,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-10_000:]
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["waited_s"] >= TAKEOVER_S
    assert "EPOCH" in found["complaint"], found
