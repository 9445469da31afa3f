"""The black box on real Ray: processes are killed and stopped, or Ray drops requests and replies; nothing may show.

``VECRAFT_BLACKBOX_TXNS`` says how many transactions have to be committed (20,000; under dropped messages a tenth), and
``SEED`` what the clients do. With fewer than some hundred there is hardly a write skew to be seen.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.blackbox.run import cluster_for, run_on_ray

ENOUGH = 1000
TRANSACTIONS = max(ENOUGH, int(os.environ.get("VECRAFT_BLACKBOX_TXNS", "20000")))
DROPPED_TRANSACTIONS = max(ENOUGH, TRANSACTIONS // 10)
SEED = int(os.environ.get("SEED", "1"))
REPOSITORY = Path(__file__).parents[2]

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(600 + TRANSACTIONS // 5)]


def test_kills_and_stops_under_load_show_nothing(ray_session: Path, tmp_path: Path) -> None:
    with cluster_for(tmp_path / "data") as cluster:
        verdict, record = run_on_ray(cluster, TRANSACTIONS, SEED)
    print(json.dumps(record))
    assert verdict.problems == [], f"SEED={SEED}"
    assert verdict.write_skew, "under snapshot isolation it has to be seen, or the checker proves nothing"
    assert record["transactions"] >= TRANSACTIONS
    assert sum(record["faults"].values()) > 0


def test_dropped_requests_and_replies_show_nothing(tmp_path: Path) -> None:
    """In a process of its own: Ray is told to drop messages before it is loaded."""
    command = [sys.executable, "-m", "tests.blackbox", "--rpc-failures", "3", "--no-kills", "--seed", str(SEED)]
    command += ["--transactions", str(DROPPED_TRANSACTIONS), "--record", str(tmp_path / "record")]
    environment = {**os.environ, "TMPDIR": "/tmp"}  # Ray's sockets have short names only in a short folder
    done = subprocess.run(command, cwd=REPOSITORY, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr[-10_000:]
    record = json.loads((tmp_path / "record").read_text())
    assert record["violations"] == 0
    assert record["write skew seen"]
    assert record["transactions"] >= DROPPED_TRANSACTIONS
