"""Backups of a running cluster, restored into it and into a directory of another kind of database."""

from __future__ import annotations

import threading
from pathlib import Path

import numpy as np
import pytest
from ray_workbench import PATIENCE_S, call_actor, insist, kill_shard, version_of

from vecraft_cluster.launch import Cluster, launch
from vecraft_cluster.ports import shard_name, unwrap
from vecraft_data_model import CollectionSchema
from vecraft_data_model.errors import InvalidDataException, StorageFailureException, TimeoutException
from vecraft_db.client.vecraft_client import VecraftClient

VECTORS = np.random.default_rng(5).normal(size=(50, 4)).astype(np.float32)
IDS = [f"r{number:02d}" for number in range(50)]


def test_a_backup_under_writes_is_one_consistent_cut_and_comes_back(
    cluster: Cluster, client: VecraftClient, tmp_path: Path
) -> None:
    client.create_collection(CollectionSchema(name="cut", dim=4))
    stop = threading.Event()
    written: list[int] = []

    def write() -> None:
        version = 0
        while not stop.is_set():
            version += 1
            client.upsert("cut", ids=IDS, vectors=VECTORS, metadatas=[{"version": version}] * 50)
            written.append(version)

    writer = threading.Thread(target=write, daemon=True)
    writer.start()
    while len(written) < 3:
        stop.wait(0.01)
    manifest = client.backup(tmp_path / "backup")
    at_backup = len(written)
    stop.set()
    writer.join(PATIENCE_S)
    assert not writer.is_alive()
    assert manifest["shards"] == 2
    last = written[-1]
    assert {version_of(packet) for packet in client.scan("cut")} == {last}

    restored = client.restore(tmp_path / "backup")
    assert restored["database_id"] == cluster.membership.database_id
    versions = {version_of(packet) for packet in client.scan("cut")}
    assert len(versions) == 1, "half of a transaction is in the backup"
    assert (versions.pop() or 0) <= at_backup + 1
    client.upsert("cut", ids=["after"], vectors=VECTORS[:1])
    with VecraftClient(address="auto", cluster=cluster.name, timeout=PATIENCE_S) as other:
        assert other.count("cut") == 51

    with VecraftClient(root=tmp_path / "embedded") as embedded:
        with pytest.raises(InvalidDataException):
            embedded.restore(tmp_path / "nothing")
    kill_shard(cluster, 0)
    assert insist(lambda: client.count("cut")) == 51


def test_other_clients_of_a_restored_cluster_go_on(cluster: Cluster, client: VecraftClient, tmp_path: Path) -> None:
    client.create_collection(CollectionSchema(name="others", dim=4))
    client.upsert("others", ids=IDS, vectors=VECTORS)
    with VecraftClient(address="auto", cluster=cluster.name, via_router_actor=True, timeout=PATIENCE_S) as other:
        assert other.count("others") == 50
        client.backup(tmp_path / "backup")
        client.delete_many("others", IDS)
        assert other.count("others") == 0
        client.restore(tmp_path / "backup")
        assert insist(lambda: other.count("others")) == 50


def test_a_backup_of_another_number_of_shards_is_refused(
    cluster: Cluster, client: VecraftClient, tmp_path: Path
) -> None:
    with VecraftClient(root=tmp_path / "one", shards=1) as embedded:
        embedded.backup(tmp_path / "backup")
    before = client.list_collections()
    with pytest.raises(InvalidDataException, match="1 shard"):
        client.restore(tmp_path / "backup")
    with pytest.raises(InvalidDataException, match="not a backup"):
        client.restore(tmp_path)
    assert client.list_collections() == before


def test_a_pause_holds_writers_and_not_readers_and_ends_by_itself(cluster: Cluster, client: VecraftClient) -> None:
    client.create_collection(CollectionSchema(name="paused", dim=4))
    client.upsert("paused", ids=IDS, vectors=VECTORS)
    actor = shard_name(cluster.name, 0)
    pause = unwrap(call_actor(actor, "pause", PATIENCE_S))
    assert client.count("paused") == 50
    with pytest.raises(TimeoutException):
        client.upsert("paused", ids=IDS, vectors=VECTORS, timeout=0.3)
    assert call_actor(actor, "resume", pause) is True

    pause = unwrap(call_actor(actor, "pause", 3.0))
    client.upsert("paused", ids=IDS, vectors=VECTORS)
    assert call_actor(actor, "resume", pause) is False, "who copies files must hear that the pause was over before"

    with pytest.raises(StorageFailureException, match="try again"), cluster.hosts()[1].paused():
        kill_shard(cluster, 1)
    assert insist(lambda: client.count("paused")) == 50


def test_the_files_must_be_on_this_machine(ray_session: Path, tmp_path: Path) -> None:
    cluster = launch(tmp_path / "data", 1, address="local", routers=0, timeout=PATIENCE_S)
    try:
        with VecraftClient(address="auto", cluster=cluster.name, timeout=PATIENCE_S) as client:
            (tmp_path / "data" / "vecraft.json").rename(tmp_path / "elsewhere")
            with pytest.raises(InvalidDataException, match="machine"):
                client.backup(tmp_path / "backup")
            (tmp_path / "elsewhere").rename(tmp_path / "data" / "vecraft.json")
            assert client.backup(tmp_path / "backup")["shards"] == 1
    finally:
        cluster.close()
