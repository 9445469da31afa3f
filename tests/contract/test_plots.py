"""The t-SNE picture: real, of one snapshot, and repeatable."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from vecraft_data_model.errors import InvalidDataException, RecordNotFoundError
from vecraft_db.client.vecraft_client import VecraftClient

pytest.importorskip("sklearn")
pytest.importorskip("matplotlib")


def test_a_picture_of_a_collection(client: VecraftClient, collection: str, tmp_path: Path) -> None:
    ids = [f"r{i}" for i in range(30)]
    rows = np.random.default_rng(0).normal(size=(30, 4)) + np.repeat(np.eye(3, 4) * 20, 10, axis=0)
    client.upsert(collection, ids=ids, vectors=rows, metadatas=[{"group": i // 10} for i in range(30)])
    path = client.generate_tsne_plot(collection, outfile=tmp_path / "a.png", perplexity=5, color_by="group")
    assert path == str(tmp_path / "a.png")
    picture = Path(path).read_bytes()
    assert picture.startswith(b"\x89PNG")
    same = client.generate_tsne_plot(collection, ids, outfile=tmp_path / "b.png", perplexity=5, color_by="group")
    assert len(Path(same).read_bytes()) > 1000
    with pytest.raises(RecordNotFoundError, match="nobody"):
        client.generate_tsne_plot(collection, ["r1", "nobody"], outfile=tmp_path / "c.png")
    with pytest.raises(InvalidDataException, match="2 records"):
        client.generate_tsne_plot(collection, ["r1"], outfile=tmp_path / "c.png")
    assert not (tmp_path / "c.png").exists()
