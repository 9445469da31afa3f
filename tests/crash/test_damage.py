"""Damage to any file of a data directory: what is read is right, or the error says which file or record is damaged.

Each case copies a directory, damages one file (a bit flipped, a sector zeroed, the file cut, removed, or garbage
appended), opens it in a process of its own, reads everything in many ways and compares it with a model; then everything
is rewritten, and read again after another start. Never accepted: a wrong answer, a record that is silently missing, an
error of a library underneath, a crash of the interpreter.

``VECRAFT_DAMAGES`` says how many cases, ``VECRAFT_DAMAGE_SEED`` which. One exception is not tried here, because with a
process that died (rather than a machine) it is none: what a power failure can leave of the very last frame of a log is
pinned down byte by byte in ``tests/unit/shard/test_wal_mark.py``.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from track_record import record

SUPPORT = Path(__file__).parents[1] / "support"
DAMAGES = int(os.environ.get("VECRAFT_DAMAGES", "200"))
SEED = int(os.environ.get("VECRAFT_DAMAGE_SEED", "1"))
ROOTS = [(1, "crashed"), (2, "crashed"), (1, "clean"), (2, "clean")]
WORKERS = 2


@pytest.fixture(scope="module")
def roots(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """The directories to damage: of one and of two shards, left by a kill and by a clean end."""
    found = []
    for shards, end in ROOTS:
        root = tmp_path_factory.mktemp("damage") / f"{shards}-{end}"
        command = [sys.executable, str(SUPPORT / "damage_root.py"), str(root), str(shards), end]
        built = subprocess.run(command, capture_output=True, text=True, check=False)
        assert built.returncode == (0 if end == "clean" else -9), built.stderr
        found.append(root)
    return found


@pytest.fixture
def scratch() -> Iterator[Path]:
    """Where the damaged copies lie: in memory, if that can be, for their many syncs."""
    memory = Path("/dev/shm")
    usable = memory.is_dir() and os.access(memory, os.W_OK) and shutil.disk_usage(memory).free > 1 << 28
    with tempfile.TemporaryDirectory(prefix="vecraft-damage-", dir=memory if usable else None) as folder:
        yield Path(folder)


def run(jobs: list[tuple[Path, int, int]], scratch: Path, *mode: str) -> Iterator[tuple[Path, dict[str, Any]]]:
    """Run cases, ``WORKERS`` processes at a time, each ``(root, first, count)`` in one."""
    waiting, running = list(jobs), []
    while waiting or running:
        while waiting and len(running) < WORKERS:
            root, first, count = waiting.pop(0)
            out = scratch / f"{root.name}-{first}.out"
            command = [
                sys.executable, str(SUPPORT / "damage_child.py"), str(root), str(SEED), str(first), str(count),
                str(scratch / root.name), *mode,
            ]  # fmt: skip
            with out.open("wb") as writing:
                process = subprocess.Popen(command, stdout=writing, stderr=subprocess.PIPE)
            running.append((root, count, out, process))
        root, count, out, process = running.pop(0)
        complaint = process.communicate()[1].decode(errors="replace")
        lines = [json.loads(line) for line in out.read_text().splitlines()]
        assert process.returncode == 0 and len(lines) == count, complaint
        yield from ((root, line) for line in lines)


def judge(results: Iterator[tuple[Path, dict[str, Any]]]) -> Counter[str]:
    """Fail on the first findings, with the commands that repeat them; otherwise count the outcomes."""
    outcomes: Counter[str] = Counter()
    findings = []
    for root, line in results:
        outcomes[line["outcome"]] += 1
        if line["outcome"] in ("wrong", "crashed"):
            mode = " 1 /tmp verify" if line["verify"] else ""
            repeat = f"python {SUPPORT / 'damage_child.py'} {root} {SEED} {line['case']}{mode}"
            findings.append("\n".join([f"{root.name}: {line['damage']}", *line["wrong"], f"again: {repeat}"]))
    assert not findings, f"{len(findings)} of {outcomes.total()}:\n\n" + "\n\n".join(findings[:5])
    return outcomes


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_any_file_damaged_in_any_way(roots: list[Path], scratch: Path) -> None:
    share = -(-DAMAGES // len(roots))
    outcomes = judge(run([(root, 0, share + 1) for root in roots], scratch))
    assert outcomes["right"] >= len(roots), "the undamaged directories at least must be right"
    if DAMAGES >= 100:
        # Every kind of outcome occurs; otherwise the damage misses what it is aimed at.
        assert min(outcomes[kind] for kind in ("right", "partial", "refused")) > 0, outcomes
    record("damage", how="then read and rewritten", outcomes=outcomes)


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_verify_finds_any_damage(roots: list[Path], scratch: Path) -> None:
    """``vecraft verify`` finds more than reads would: damage to history, and to files that protect others."""
    clean = [root for root, (_, end) in zip(roots, ROOTS, strict=True) if end == "clean"]
    share = max(DAMAGES // 8, 1)
    outcomes = judge(run([(root, 0, share + 1) for root in clean], scratch, "verify"))
    assert outcomes["right"] == len(clean)  # the undamaged ones
    record("damage", how="then verified", outcomes=outcomes)


@pytest.mark.timeout(600)
def test_a_few_damages(roots: list[Path], scratch: Path) -> None:
    """The same in short, for every run of the tests: other cases than above."""
    first = random.Random(SEED).randrange(1_000_000, 2_000_000)
    judge(run([(root, first, 4) for root in roots], scratch))
