"""What the architecture tests look at: the repository's tracked and untracked, not ignored, source files."""

from __future__ import annotations

from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
ROOMS = {
    "vecraft_data_model": ROOT / "model",
    "vecraft_shard": ROOT / "shard",
    "vecraft_router": ROOT / "router",
    "vecraft_cluster": ROOT / "cluster",
    "vecraft_db": ROOT / "client",
}


@pytest.fixture(scope="session")
def root() -> Path:
    """The repository's root."""
    return ROOT


@pytest.fixture(scope="session")
def product_modules() -> list[Path]:
    """Every module that the distribution installs."""
    modules = [path for package, folder in ROOMS.items() for path in sorted((folder / package).rglob("*.py"))]
    if len(modules) < 20:
        raise RuntimeError(f"only {len(modules)} modules found below {ROOT}: the layout changed, so change ROOMS")
    return modules


@pytest.fixture(scope="session")
def all_modules(product_modules: list[Path]) -> list[Path]:
    """The same with tests, examples, benchmarks and scripts."""
    folders = ("tests", "examples", "benchmarks", "scripts")
    return product_modules + [path for name in folders for path in sorted((ROOT / name).rglob("*.py"))]
