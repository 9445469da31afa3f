"""The documents' code runs: what a stranger copies out of the README works, in an empty directory."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

QUICKSTART = """\
import numpy as np
from vecraft_db.client.vecraft_client import VecraftClient
from vecraft_data_model import DataPacket, CollectionSchema, VectorPacket, QueryPacket

client = VecraftClient(root="./vecraft-data")
client.create_collection(CollectionSchema(name="images", dim=128, vector_type="float"))
client.insert("images", DataPacket(record_id="img-001",
              vector=VectorPacket.from_numpy(np.random.rand(128)), metadata={"label": "cat"}))
for r in client.search("images", QueryPacket(query_vector=np.random.rand(128), k=5)):
    print(r.record_id, r.distance)
"""


def blocks(path: Path, language: str) -> list[str]:
    """Return the fenced code blocks of one language."""
    return re.findall(rf"^```{language}\n(.*?)^```$", path.read_text(), re.MULTILINE | re.DOTALL)


def run(command: list[str], folder: Path) -> subprocess.CompletedProcess[str]:
    """Run in a folder, with the commands of this environment found first and no settings of the caller's."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("VCRAFT_")}
    environment["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{environment.get('PATH', '')}"
    return subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, timeout=800, check=False
    )


def test_the_readme_runs_from_top_to_bottom(root: Path, tmp_path: Path) -> None:
    """All Python blocks in one program, then the shell block on the data that they left."""
    python = blocks(root / "README.md", "python")
    assert len(python) >= 3
    (tmp_path / "readme.py").write_text("\n".join(python))
    done = run([sys.executable, "readme.py"], tmp_path)
    assert done.returncode == 0, done.stderr
    assert "{'label': 'wolf'}" in done.stdout
    assert done.stdout.splitlines()[-1] == "99"
    for block in blocks(root / "README.md", "sh"):
        done = run(["sh", "-e", "-c", block], tmp_path)
        assert done.returncode == 0, done.stdout + done.stderr


def test_the_quickstart_runs_verbatim_and_again_with_the_documented_error(root: Path, tmp_path: Path) -> None:
    assert blocks(root / "README.md", "python")[0] == QUICKSTART
    (tmp_path / "quickstart.py").write_text(QUICKSTART)
    first = run([sys.executable, "quickstart.py"], tmp_path)
    assert (first.returncode, first.stderr) == (0, "")
    assert re.fullmatch(r"img-001 \d+\.\d+\n", first.stdout)
    again = run([sys.executable, "quickstart.py"], tmp_path)
    assert again.returncode == 1
    assert "CollectionAlreadyExistedException: collection 'images' exists already" in again.stderr


@pytest.mark.parametrize("name", ["README.md", "ARCHITECTURE.md", "CONTRIBUTING.md", "k8s/README.md"])
def test_links_inside_of_the_repository_lead_somewhere(root: Path, name: str) -> None:
    path = root / name
    targets = re.findall(r"\]\((?!https?:)([^)#\s]+)", path.read_text())
    missing = [target for target in targets if not (path.parent / target).exists()]
    assert missing == []


def test_make_targets_named_in_documents_exist(root: Path) -> None:
    targets = set(re.findall(r"^([a-z-]+):", (root / "Makefile").read_text(), re.MULTILINE))
    for name in ("README.md", "CONTRIBUTING.md"):
        named = set(re.findall(r"`make ([a-z-]+)|^make ([a-z-]+)", (root / name).read_text(), re.MULTILINE))
        assert {word for pair in named for word in pair if word} <= targets
