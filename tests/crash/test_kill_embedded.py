"""``kill -9`` on a writing process: nothing acknowledged is lost, nothing deleted comes back, nothing is torn apart.

Each round starts a process on the same directory, compares everything it finds with a model, lets it write, and kills
it at a random moment. What was under way when it died may have happened or not, but as a whole: a transaction over two
collections and several shards included. ``VECRAFT_KILLS`` says how many rounds.
"""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from track_record import record

CHILD = Path(__file__).parents[1] / "support" / "crash_child.py"
PATIENCE_S = 120.0
KILLS = int(os.environ.get("VECRAFT_KILLS", "80"))
Model = dict[str, dict[str, int]]


def apply(model: Model, op: dict[str, Any]) -> Model:
    """The model after an operation."""
    after = {name: dict(records) for name, records in model.items()}
    for name, ids in op["writes"]:
        for record_id in ids:
            if op["kind"] == "delete":
                after[name].pop(record_id, None)
            else:
                after[name][record_id] = op["version"]
    for name, ids in op.get("deletes", []):
        for record_id in ids:
            after[name].pop(record_id, None)
    return after


class Child:
    """One life of the writing process."""

    def __init__(self, root: Path, seed: int, shards: int) -> None:
        self.process = subprocess.Popen(
            [sys.executable, str(CHILD), str(root), str(seed), str(shards)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        self.lines: list[dict[str, Any]] = []
        self.started = threading.Event()
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            if line.endswith("\n"):
                self.lines.append(json.loads(line))
                self.started.set()
        self.started.set()

    def kill_after(self, seconds: float, lines: int) -> None:
        """Wait for its first words, let it work for so long and say so much, kill it, and collect all that it said."""
        self.started.wait(PATIENCE_S)
        threading.Event().wait(seconds)
        give_up_at = time.monotonic() + PATIENCE_S
        while len(self.lines) < lines and self.process.poll() is None and time.monotonic() < give_up_at:
            threading.Event().wait(0.002)
        self.process.kill()
        self.process.wait()
        self._reader.join()
        assert self.process.stderr is not None
        complaint = self.process.stderr.read()
        self.process.stdout and self.process.stdout.close()
        self.process.stderr.close()
        assert self.process.returncode == -9, complaint


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("shards", [1, 3])
def test_kill_dash_nine_at_any_moment(tmp_path: Path, shards: int) -> None:
    rng = random.Random(shards)
    model: Model = {"red": {}, "blue": {}}
    in_flight: dict[str, Any] | None = None
    acknowledged = 0
    rounds = max(1, KILLS // 2)
    for round_ in range(rounds):
        child = Child(tmp_path / "root", round_ + 1, shards)
        seconds = rng.choice([0.0, 0.005, 0.02, 0.05, 0.1, 0.3]) * rng.random() * 2
        child.kill_after(seconds, lines=rng.choice([0, 0, 2, 3, 7, 12]))  # two lines for each write
        if not child.lines:
            continue  # killed before it could open the database: also a crash, during recovery
        found = child.lines[0]["state"]
        possible = [model] if in_flight is None else [model, apply(model, in_flight)]
        assert found in possible, f"round {round_}: found {found}, expected one of {possible}"
        model, in_flight = found, None
        for line in child.lines[1:]:
            if "do" in line:
                in_flight = line["do"]
            else:
                assert in_flight is not None
                model, in_flight = apply(model, in_flight), None
                acknowledged += 1
    record(
        "processes",
        method=f"`kill -9` of an embedded database of {shards} shards",
        cases=rounds,
        outcome=f"{acknowledged} acknowledged writes, all found again",
    )
    assert acknowledged > rounds, "the writers were killed before they could write: the test proves nothing"
