"""The track record says what the records say, and the records name what exists."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest


def test_the_page_is_what_the_script_writes(root: Path) -> None:
    done = subprocess.run(
        [sys.executable, "scripts/reliability.py", "--check"], cwd=root, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


def test_every_bug_names_a_day_a_commit_and_a_test_that_exists(root: Path) -> None:
    for line in (root / "reliability" / "bugs.jsonl").read_text().splitlines():
        bug = json.loads(line)
        assert set(bug) == {"date", "method", "commit", "bug", "shown_by"}, bug
        assert re.fullmatch(r"\d{4}-\d{2}-\d{2}", bug["date"])
        assert re.fullmatch(r"[0-9a-f]{7,}", bug["commit"])
        assert (root / bug["shown_by"]).is_file(), bug["shown_by"]


@pytest.mark.parametrize("kind", ["simulator", "mutants", "processes", "damage", "blackbox"])
def test_every_record_says_when_it_was_made_and_of_what(root: Path, kind: str) -> None:
    path = root / "reliability" / f"{kind}.jsonl"
    for line in path.read_text().splitlines() if path.exists() else ():
        assert {"date", "commit"} <= set(json.loads(line)), line
