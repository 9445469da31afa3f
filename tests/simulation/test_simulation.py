"""Some seeds of the simulator, as part of the suite; ``make simulate SEEDS=…`` runs more of them.

``VECRAFT_SEEDS`` says how many, ``VECRAFT_FIRST_SEED`` from which on. They run in a process of their own, whose hash
seed is fixed: a replay must see sets in the same order.
"""

from __future__ import annotations

import builtins
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.simulation.log import Log
from tests.simulation.mutants_all import MUTANTS
from tests.simulation.mutations import Mutant

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


def test_a_log_alone_survives_its_crashes() -> None:
    assert [problem for seed in range(100) for problem in Log(seed).run()] == []


def test_a_seed_replays_exactly() -> None:
    first, second = run("2", "11"), run("2", "11")
    digests = re.findall(r"digest (\w+)", first.stdout)
    assert len(set(digests)) == 2
    assert digests == re.findall(r"digest (\w+)", second.stdout)


def test_a_seed_that_fails_says_how_to_see_it_again_and_fails_again_the_same_way() -> None:
    """With a bug that is found at once; everything that happens is the same in the replay, with and without a trace."""
    failed = run("20", "0", "--mutant", "own-timestamps", "--stop", "--quiet")
    assert failed.returncode == 1, failed.stdout + failed.stderr
    found = re.search(r"seed (\d+) FAILED, digest (\w+); replay: make simulate SEED=(\d+) TRACE=1 ARGS=", failed.stdout)
    assert found is not None and found.group(1) == found.group(3)
    replays = [run("1", found.group(1), "--mutant", "own-timestamps", "--trace") for _ in range(2)]
    traces = {re.search(r"^trace (\w+)$", replay.stdout, re.MULTILINE) for replay in replays}
    assert len({trace.group(1) for trace in traces if trace is not None}) == 1
    assert all(f"seed {found.group(1)} FAILED, digest {found.group(2)}" in replay.stdout for replay in replays)


@pytest.mark.parametrize("mutant", MUTANTS.values(), ids=MUTANTS.keys())
def test_a_planted_bug_replaces_what_is_there_and_goes_without_a_trace(mutant: Mutant) -> None:
    """Else a method that was renamed would leave a bug that is none, or a bug would outlive its hunt."""
    patches = mutant.patches()
    before = [owner.__dict__.get(name) for owner, name, _ in patches]
    assert all(hasattr(owner, name) or hasattr(builtins, name) for owner, name, _ in patches)
    with mutant.planted():
        assert all(owner.__dict__[name] is not old for (owner, name, _), old in zip(patches, before, strict=True))
    assert [owner.__dict__.get(name) for owner, name, _ in patches] == before
