"""Transactions under ids that their clients chose, while shards are killed: carried out once, and not given up."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from ray_workbench import PATIENCE_S, all_decided, kill_shard

from vecraft_cluster.launch import Cluster, launch
from vecraft_data_model import CollectionSchema
from vecraft_data_model.placement import primary_of
from vecraft_data_model.validation import new_txn_id
from vecraft_db.client.vecraft_client import VecraftClient
from vecraft_shard.config import ShardConfig

IDS = [f"r{number}" for number in range(20)]
VECTORS = np.ones((20, 4), dtype=np.float32)


@pytest.fixture(scope="module")
def patient(ray_session: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """Two shards that wait longer than usual, so that a restart on a busy machine is short for them.

    Whoever takes part gives a transaction up that nobody comes back to for a second: here for a minute.
    """
    root = tmp_path_factory.mktemp("patient") / "data"
    cluster = launch(root, 2, address="local", shard_config=ShardConfig(resolve_after_ms=60_000), timeout=PATIENCE_S)
    try:
        yield cluster
    finally:
        cluster.close()


def id_decided_by(shard: int) -> str:
    while True:
        txn_id = new_txn_id()
        if primary_of(txn_id, [0, 1]) == shard:
            return txn_id


@pytest.mark.parametrize("killed", ["the primary", "the other"])
def test_a_killed_shard_does_not_spend_the_id(patient: Cluster, killed: str) -> None:
    with VecraftClient(address="auto", cluster=patient.name, timeout=PATIENCE_S) as client:
        name = "primary" if killed == "the primary" else "other"
        client.create_collection(CollectionSchema(name=name, dim=4))
        for shard in (0, 1):
            txn_id = id_decided_by(shard if killed == "the primary" else 1 - shard)
            all_decided(patient)
            kill_shard(patient, shard)
            metadatas = [{"txn": txn_id}] * 20
            done = client.upsert(name, ids=IDS, vectors=VECTORS, metadatas=metadatas, txn_id=txn_id)
            assert (done.txn_id, done.count) == (txn_id, 20)
            kill_shard(patient, shard)
            again = client.upsert(name, ids=IDS, vectors=VECTORS, metadatas=metadatas, txn_id=txn_id)
            assert again == done
            assert {packet.commit_ts for packet in client.scan(name)} == {done.commit_ts}
            gone = client.delete_many(name, [*IDS, "never there"])
            assert gone.count == 20
