"""Imports only point down: the contracts of pyproject.toml hold, and would not if an import pointed up."""

from __future__ import annotations

import subprocess
import sys
import tomllib
from pathlib import Path

import pytest


def lint_imports(folder: Path, *arguments: str, path: Path | None = None) -> subprocess.CompletedProcess[str]:
    """Run import-linter in ``folder``, with ``path`` first on the module search path."""
    program = "import sys; from importlinter.cli import lint_imports_command as run; run(sys.argv[1:])"
    environment = {"PATH": "/usr/bin:/bin", "NO_COLOR": "1"} | ({"PYTHONPATH": str(path)} if path else {})
    return subprocess.run(
        [sys.executable, "-c", program, "--no-cache", *arguments],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        timeout=800,
        check=False,
    )


def test_every_contract_is_kept(root: Path) -> None:
    answer = lint_imports(root)
    assert answer.returncode == 0, answer.stdout + answer.stderr
    assert " 0 broken" in answer.stdout


@pytest.mark.parametrize(
    ("importer", "imported"),
    [
        ("vecraft_shard.probe", "vecraft_router.probe"),
        ("vecraft_router.probe", "vecraft_shard.probe"),
        ("vecraft_data_model.probe", "vecraft_shard.probe"),
        ("vecraft_cluster.probe", "vecraft_db.probe"),
        ("vecraft_router.probe", "ray"),
        ("vecraft_db.probe", "ray"),
        ("vecraft_shard.probe", "time"),
    ],
)
def test_an_import_that_points_up_is_found(root: Path, tmp_path: Path, importer: str, imported: str) -> None:
    """The same contracts over five empty packages with one forbidden import between them."""
    packages = tomllib.loads((root / "pyproject.toml").read_text())["tool"]["importlinter"]["root_packages"]
    for package in packages:
        (tmp_path / package).mkdir()
        (tmp_path / package / "__init__.py").write_text("")
        (tmp_path / package / "probe.py").write_text("")
    (tmp_path / (importer.replace(".", "/") + ".py")).write_text(f"import {imported}\n")
    (tmp_path / "pyproject.toml").write_text((root / "pyproject.toml").read_text())
    answer = lint_imports(tmp_path, path=tmp_path)
    assert answer.returncode == 1, answer.stdout + answer.stderr
    assert f"{importer} -> {imported}" in answer.stdout
