"""The track record: what long runs found is written down, for ``scripts/reliability.py`` to make a page of.

Nothing is written unless ``VECRAFT_RECORD`` is set, as ``make torture`` does.
"""

from __future__ import annotations

import json
import os
import subprocess
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "reliability"


def record(kind: str, **figures: Any) -> None:
    """Append one line to ``reliability/<kind>.jsonl``: the figures, with today's date and the commit they are about."""
    if not os.environ.get("VECRAFT_RECORD"):
        return
    described = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    line = {"date": datetime.now(UTC).strftime("%Y-%m-%d"), "commit": described.stdout.strip(), **figures}
    with (FOLDER / f"{kind}.jsonl").open("a") as file:
        file.write(json.dumps(line) + "\n")
