"""What a simulation that was killed leaves is removed by the next one; what others are using stays."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from tests.simulation.run import FOLDER, sweep


def test_folders_of_dead_processes_are_swept(tmp_path: Path) -> None:
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    (tmp_path / f"{FOLDER}{ended.pid}-abc" / "shard-0").mkdir(parents=True)
    kept = [f"{FOLDER}{os.getpid()}-abc", f"{FOLDER}1-abc", f"{FOLDER}unknown", f"other-{ended.pid}-abc"]
    for name in kept:
        (tmp_path / name).mkdir()
    sweep(tmp_path)
    assert sorted(folder.name for folder in tmp_path.iterdir()) == sorted(kept)
