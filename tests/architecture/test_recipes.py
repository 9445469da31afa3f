"""Every recipe runs: its code blocks from top to bottom in one program, and the example that it points to."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
RECIPES = sorted((ROOT / "docs" / "recipes").glob("*.md"))


def run(program: Path, folder: Path) -> str:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("VCRAFT_")}
    done = subprocess.run(
        [sys.executable, str(program)],
        cwd=folder, env=environment, capture_output=True, text=True, timeout=800, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_there_are_recipes() -> None:
    assert [recipe.name for recipe in RECIPES] == ["re_embedding.md"]


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda recipe: recipe.stem)
def test_the_code_of_a_recipe_runs(recipe: Path, tmp_path: Path) -> None:
    text = recipe.read_text()
    code = re.findall(r"^```python\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    assert code
    program = tmp_path / "recipe.py"
    program.write_text("\n".join(code))
    assert run(program, tmp_path) == "['four']\n4 3\n"
    for link in re.findall(r"\]\(([^)#]+)\)", text):
        assert (recipe.parent / link).exists(), link


def test_the_re_embedding_example_runs(tmp_path: Path) -> None:
    out = run(ROOT / "examples" / "re_embedding.py", tmp_path)
    assert "nearest to 'article number 7': ['a7'" in out
    assert list(tmp_path.iterdir()) == []
