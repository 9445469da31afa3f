"""Some seeds of the simulator, as part of the suite; ``make simulate SEEDS=…`` runs more of them.

``VECRAFT_SEEDS`` says how many, ``VECRAFT_FIRST_SEED`` from which on. They run in a process of their own, whose hash
seed is fixed: a replay must see sets in the same order.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SEEDS = os.environ.get("VECRAFT_SEEDS", "60")
FIRST_SEED = os.environ.get("VECRAFT_FIRST_SEED", "1000")


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Run ``python -m tests.simulation`` with these arguments."""
    command = [sys.executable, "-m", "tests.simulation", *arguments]
    environment = {**os.environ, "PYTHONHASHSEED": "0"}
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_nothing_goes_wrong_under_faults() -> None:
    done = run(SEEDS, FIRST_SEED, "--quiet")
    assert done.returncode == 0, done.stdout + done.stderr
    skewed = re.search(r"write skew in (\d+)", done.stdout)
    assert skewed is not None
    if int(SEEDS) >= 60:
        assert int(skewed.group(1)) > 0, "write skew was never seen under snapshot isolation"


def test_a_seed_replays_exactly() -> None:
    first, second = run("2", "11"), run("2", "11")
    digests = re.findall(r"digest (\w+)", first.stdout)
    assert len(set(digests)) == 2
    assert digests == re.findall(r"digest (\w+)", second.stdout)
