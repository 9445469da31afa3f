"""What an embedded database shows when it is opened again: everything that was acknowledged, at once, or an error."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest

from vecraft_cluster.root import SystemClock
from vecraft_data_model import CollectionSchema
from vecraft_data_model.errors import CorruptionError
from vecraft_db.client.vecraft_client import VecraftClient
from vecraft_db.embedded import EmbeddedEngine


def test_a_new_client_reads_above_the_clocks_of_shards_that_were_killed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each kill leaves a shard's clock at its ceiling, ahead of the wall clock, and commits go on from there."""
    moment = SystemClock().now_ms()
    monkeypatch.setattr(SystemClock, "now_ms", lambda _: moment)  # it all happens within a millisecond
    client = VecraftClient(root=tmp_path / "root", shards=3)
    client.create_collection(CollectionSchema(name="c", dim=2))
    for round_ in range(5):
        client.upsert("c", ids=[f"r{round_}"], vectors=np.ones((1, 2), np.float32))
        engine = client.engine
        assert isinstance(engine, EmbeddedEngine)
        for host in engine.hosts.values():
            host.kill()
        client.close()
        client = VecraftClient(root=tmp_path / "root")
        assert client.count("c") == round_ + 1
        assert [record.record_id for record in client.scan("c")] == [f"r{i}" for i in range(round_ + 1)]
    client.close()


def test_a_shard_that_lost_its_directory_does_not_begin_anew(tmp_path: Path) -> None:
    """An empty database where data was is worse than none: it says so instead."""
    root = tmp_path / "root"
    with VecraftClient(root=root, shards=2) as client:
        client.create_collection(CollectionSchema(name="c", dim=2))
        client.upsert("c", ids=["a", "b", "c"], vectors=np.ones((3, 2), np.float32))
    (root / "shard-0001").rename(tmp_path / "elsewhere")
    with pytest.raises(CorruptionError, match="shard 1 was here before"):
        VecraftClient(root=root)
    shutil.rmtree(root / "shard-0001")
    (tmp_path / "elsewhere").rename(root / "shard-0001")
    with VecraftClient(root=root) as client:
        assert client.count("c") == 3
