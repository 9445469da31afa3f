"""Backups: consistent under writes, verified, and put back whole or not at all."""

from __future__ import annotations

import hashlib
import json
import shutil
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from vecraft_cluster.root import READY, finish_restore
from vecraft_data_model import CollectionSchema, DataPacket, QueryPacket
from vecraft_data_model.errors import CorruptionError, InvalidDataException
from vecraft_db.backups import MANIFEST
from vecraft_db.client.vecraft_client import VecraftClient


@pytest.fixture
def client(tmp_path: Path) -> Any:
    with VecraftClient(root=tmp_path / "data", shards=2) as client:
        client.create_collection(CollectionSchema(name="c", dim=4))
        rows = np.random.default_rng(0).normal(size=(200, 4))
        ids = [f"r{i:03d}" for i in range(200)]
        client.upsert("c", ids=ids, vectors=rows, metadatas=[{"i": i} for i in range(200)], documents=ids)
        client.delete_many("c", ids[:10])
        yield client


def contents(client: VecraftClient) -> list[dict[str, Any]]:
    return [packet.to_dict() for packet in client.scan("c")]


def test_a_backup_is_a_root_that_opens(client: VecraftClient, tmp_path: Path) -> None:
    before = contents(client)
    manifest = client.backup(tmp_path / "backup")
    assert manifest["shards"] == 2
    assert manifest["bytes"] > 0
    client.insert("c", DataPacket("later", [1, 2, 3, 4]))
    with VecraftClient(root=tmp_path / "backup") as copy:
        assert contents(copy) == before
        assert copy.count("c", where_document={"$contains": "r19"}) == 10


def test_restore_puts_everything_back(client: VecraftClient, tmp_path: Path) -> None:
    before = contents(client)
    nearest = client.search("c", QueryPacket([1, 2, 3, 4], exact=True))
    client.backup(tmp_path / "backup")
    client.delete_many("c", where={"i": {"$lt": 150}})
    client.create_collection(CollectionSchema(name="other", dim=2))
    client.restore(tmp_path / "backup")
    assert contents(client) == before
    assert client.search("c", QueryPacket([1, 2, 3, 4], exact=True)) == nearest
    assert [schema.name for schema in client.list_collections()] == ["c"]
    client.insert("c", DataPacket("new", [1, 2, 3, 4]))
    assert client.count("c") == 191
    client.close()
    with VecraftClient(root=tmp_path / "data") as again:
        assert again.count("c") == 191
    assert sorted(entry.name for entry in (tmp_path / "data").glob("restore*")) == []


def test_a_backup_of_another_shape_takes_its_place(client: VecraftClient, tmp_path: Path) -> None:
    client.backup(tmp_path / "backup")
    with VecraftClient(root=tmp_path / "other", shards=3) as other:
        other.create_collection(CollectionSchema(name="gone", dim=2))
        other.restore(tmp_path / "backup")
        assert other.count("c") == 190
        assert len(other.cluster_info()["shards"]) == 2
        other.upsert("c", ids=["x", "y", "z"], vectors=np.ones((3, 4)))
        assert other.count("c") == 193


def test_a_backup_under_writes_holds_whole_transactions(client: VecraftClient, tmp_path: Path) -> None:
    stop = threading.Event()
    ids = [f"w{i}" for i in range(6)]

    def write() -> None:
        number = 0
        while not stop.is_set():
            number += 1
            client.upsert("c", ids=ids, vectors=np.full((6, 4), number), metadatas=[{"number": number}] * 6)

    thread = threading.Thread(target=write)
    thread.start()
    try:
        for i in range(3):
            client.backup(tmp_path / f"backup-{i}")
    finally:
        stop.set()
        thread.join()
    for i in range(3):
        with VecraftClient(root=tmp_path / f"backup-{i}") as copy:
            numbers = {packet.metadata["number"] for packet in copy.get_many("c", ids) if packet and packet.metadata}
            assert len(numbers) <= 1
            assert copy.count("c") in (190, 196)


def test_a_damaged_backup_changes_nothing(client: VecraftClient, tmp_path: Path) -> None:
    client.backup(tmp_path / "backup")
    client.insert("c", DataPacket("later", [1, 2, 3, 4]))
    (column, *_) = sorted((tmp_path / "backup").rglob("payloads.*"))
    whole = column.read_bytes()
    column.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    with pytest.raises(CorruptionError, match=column.name):
        client.restore(tmp_path / "backup")
    column.unlink()
    with pytest.raises(CorruptionError, match="missing"):
        client.restore(tmp_path / "backup")
    assert client.count("c") == 191


def test_a_forged_manifest_reaches_no_other_files(client: VecraftClient, tmp_path: Path) -> None:
    client.backup(tmp_path / "backup")
    manifest = json.loads((tmp_path / "backup" / MANIFEST).read_text())
    manifest["files"]["../outside"] = {"bytes": 0, "sha256": hashlib.sha256().hexdigest()}
    (tmp_path / "outside").touch()
    for seal, reason in ((manifest["checksum"], "checksum"), (None, "outside of the backup")):
        del manifest["checksum"]
        honest = hashlib.sha256(json.dumps(manifest, sort_keys=True).encode()).hexdigest()
        manifest["checksum"] = seal or honest
        (tmp_path / "backup" / MANIFEST).write_text(json.dumps(manifest))
        with pytest.raises(CorruptionError, match=reason):
            client.restore(tmp_path / "backup")
    assert client.count("c") == 190


@pytest.mark.parametrize("what", ["nothing", "empty", "root"])
def test_what_is_no_backup_is_refused(client: VecraftClient, tmp_path: Path, what: str) -> None:
    path = {"nothing": tmp_path / "none", "empty": tmp_path / "empty", "root": tmp_path / "data"}[what]
    if what == "empty":
        path.mkdir()
    with pytest.raises(InvalidDataException, match="not a backup"):
        client.restore(path)
    assert client.count("c") == 190


def test_a_backup_overwrites_nothing(client: VecraftClient, tmp_path: Path) -> None:
    client.backup(tmp_path / "backup")
    with pytest.raises(InvalidDataException, match="not empty"):
        client.backup(tmp_path / "backup")


@pytest.mark.parametrize("interrupted_after", ["ready", "removal", "half of the moves"])
def test_a_restore_that_was_interrupted_is_completed(
    client: VecraftClient, tmp_path: Path, interrupted_after: str
) -> None:
    before = contents(client)
    client.backup(tmp_path / "backup")
    client.delete_many("c", where={"i": {"$gte": 0}})
    client.close()
    root, ready = tmp_path / "data", tmp_path / "data" / READY
    shutil.copytree(tmp_path / "backup", ready, ignore=shutil.ignore_patterns(MANIFEST))
    if interrupted_after != "ready":
        (root / "vecraft.json").unlink()
        shutil.rmtree(root / "shard-0000")
        if interrupted_after == "half of the moves":
            shutil.rmtree(root / "shard-0001")
            (ready / "old-is-gone").touch()
            (ready / "shard-0001").rename(root / "shard-0001")
    with VecraftClient(root=root) as again:
        assert contents(again) == before
    assert not ready.exists()
    finish_restore(root)
