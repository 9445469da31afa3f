"""The data that ships with the examples: small, complete, licensed, and what the script beside it makes."""

from __future__ import annotations

import filecmp
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).resolve().parents[3]
FOLDER = ROOT / "examples" / "data" / "wordnet3k"
SOURCE = ROOT.parent / "shared" / "data" / "wordnet20k"


@pytest.fixture(autouse=True)
def examples_importable(monkeypatch: pytest.MonkeyPatch) -> None:
    """As in ``python -m examples.demo`` from the repository's root."""
    monkeypatch.syspath_prepend(str(ROOT))


def test_it_is_small_and_complete() -> None:
    from examples.wordnet import load

    data = load()
    assert (data.vectors.shape, data.vectors.dtype) == ((3000, 384), np.float32)
    assert data.queries.shape == (100, 384)
    np.testing.assert_allclose(np.linalg.norm(data.vectors, axis=1), 1.0, atol=1e-6)
    assert len(set(data.ids)) == len(data.metadatas) == len(data.glosses) == 3000
    assert len(data.query_texts) == 100
    assert set(data.metadatas[0]) == {"lemma", "pos", "lexname", "gloss_len"}
    assert all(
        metadata["gloss_len"] == len(gloss) for metadata, gloss in zip(data.metadatas, data.glosses, strict=True)
    )
    assert sum(path.stat().st_size for path in FOLDER.iterdir()) < 3_000_000


def test_the_licence_lies_beside_it() -> None:
    text = " ".join((FOLDER / "WORDNET-LICENSE.txt").read_text().split())
    assert "WordNet 3.0 Copyright 2006 by Princeton University" in text
    assert "without fee or royalty is hereby granted" in text


def test_the_script_makes_the_same_bytes(tmp_path: Path) -> None:
    if not SOURCE.is_dir():
        pytest.skip("the set it was cut out of is not beside this repository (../shared/data/wordnet20k)")
    subprocess.run(
        [sys.executable, str(ROOT / "examples" / "build_wordnet_subset.py"), str(SOURCE), str(tmp_path)],
        check=True,
        timeout=800,
    )
    made = sorted(path.name for path in tmp_path.iterdir())
    match, mismatch, errors = filecmp.cmpfiles(tmp_path, FOLDER, made, shallow=False)
    assert (mismatch, errors) == ([], [])
    assert sorted([*match, "README.md"]) == sorted(path.name for path in FOLDER.iterdir())
