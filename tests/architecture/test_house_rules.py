"""The house rules that a program can check."""

from __future__ import annotations

import ast
import os
import re
import subprocess
from pathlib import Path

import hypothesis

LINES_MAX = 500
UNFINISHED = re.compile(r"\b(TO" + r"DO|FIX" + r"ME|XX" + r"X|HA" + r"CK)\b")
# Absolute paths of somebody's machine. Assembled, so that this file does not hold one.
MACHINE_PATH = re.compile(r"(?<![\w.~$}])/(?:" + "|".join(["home", "Users", "wor" + "k", "root"]) + r")/\w")


def text_files(root: Path) -> list[Path]:
    """All files git would commit, apart from data."""
    listing = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"],
        cwd=root, capture_output=True, text=True, check=True,
    ).stdout.splitlines()  # fmt: skip
    suffixes = {".py", ".md", ".toml", ".yaml", ".yml", ".txt", ".sh", ""}
    return [path for name in listing if (path := root / name).suffix in suffixes and path.is_file()]


def test_no_module_is_longer_than_its_bound(all_modules: list[Path], root: Path) -> None:
    lengths = {str(path.relative_to(root)): len(path.read_text().splitlines()) for path in all_modules}
    assert {name: lines for name, lines in lengths.items() if lines > LINES_MAX} == {}


def test_every_module_says_what_it_is(product_modules: list[Path], root: Path) -> None:
    silent = [path for path in product_modules if not ast.get_docstring(ast.parse(path.read_text()))]
    assert [str(path.relative_to(root)) for path in silent] == []


def test_nothing_is_left_open(root: Path) -> None:
    left = [
        f"{path.relative_to(root)}:{number}: {line.strip()}"
        for path in text_files(root)
        if path.name != Path(__file__).name
        for number, line in enumerate(path.read_text(errors="replace").splitlines(), 1)
        if UNFINISHED.search(line)
    ]
    assert left == []


def test_no_path_of_one_machine_is_written_down(root: Path) -> None:
    found = [
        f"{path.relative_to(root)}:{number}: {line.strip()}"
        for path in text_files(root)
        for number, line in enumerate(path.read_text(errors="replace").splitlines(), 1)
        if MACHINE_PATH.search(line)
    ]
    assert found == []


def test_checks_survive_python_dash_o(product_modules: list[Path], root: Path) -> None:
    """``python -O`` strips ``assert``: product code raises."""
    asserts = [
        f"{path.relative_to(root)}:{node.lineno}"
        for path in product_modules
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Assert)
    ]
    assert asserts == []


def test_no_exception_is_swallowed_whole(product_modules: list[Path], root: Path) -> None:
    """A bare ``except``, or a broad one whose body is only ``pass``, hides what nobody has thought of."""
    swallowed = []
    for path in product_modules:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ExceptHandler):
                broad = isinstance(node.type, ast.Name) and node.type.id in ("Exception", "BaseException")
                silent = all(isinstance(statement, ast.Pass | ast.Continue) for statement in node.body)
                if node.type is None or (broad and silent):
                    swallowed.append(f"{path.relative_to(root)}:{node.lineno}")
    assert swallowed == []


def test_every_package_is_typed(root: Path) -> None:
    markers = sorted(path.parent.name for path in root.glob("*/vecraft_*/py.typed"))
    assert markers == ["vecraft_cluster", "vecraft_data_model", "vecraft_db", "vecraft_router", "vecraft_shard"]


def test_constraints_name_no_host_and_no_local_path(root: Path) -> None:
    lines = [line for line in (root / "constraints.txt").read_text().splitlines() if not line.startswith("#")]
    assert [line for line in lines if not re.fullmatch(r"[\w.\-]+==[\w.]+", line)] == []


def test_property_tests_draw_the_same_examples_every_time(root: Path) -> None:
    """All of them take their settings from :mod:`random_examples`: otherwise the suite would come out by chance."""
    profile = hypothesis.settings.default
    assert profile is not None and profile.deadline is None
    assert profile.derandomize == ("VECRAFT_EXAMPLES" not in os.environ)
    own = [
        str(path.relative_to(root))
        for path in sorted((root / "tests").rglob("*.py"))
        if re.search(r"^from hypothesis import .*\b(settings|seed)\b", path.read_text(), re.MULTILINE)
    ]
    assert own == ["tests/support/random_examples.py"]
