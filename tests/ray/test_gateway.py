"""The REST gateway over shard actors: readiness tells the truth, a killed shard costs time and no data."""

from __future__ import annotations

from collections.abc import Iterator

import httpx
import numpy as np
import pytest
from gateway_thread import serving
from ray_workbench import PATIENCE_S, eventually, frozen_shard, insist, kill_shard

from vecraft_cluster.launch import Cluster
from vecraft_data_model import CollectionSchema
from vecraft_db.client.vecraft_client import VecraftClient


@pytest.fixture(scope="module")
def url(cluster: Cluster) -> Iterator[str]:
    """A gateway in front of the module's cluster."""
    with serving(root=None, address="auto", cluster=cluster.name) as address:
        yield address


def ready(url: str) -> httpx.Response:
    return httpx.get(f"{url}/readyz", timeout=PATIENCE_S)


def metrics(url: str) -> str:
    return httpx.get(f"{url}/metrics", timeout=PATIENCE_S).text


def test_readiness_names_a_shard_that_does_not_answer(cluster: Cluster, url: str) -> None:
    eventually(lambda: ready(url).status_code == 200, "the cluster to be ready")
    with frozen_shard(cluster, 1):
        # Each shard has some time to answer; one that needs longer for once is away for that answer.
        answer = ready(url)
        assert answer.status_code == 503 and 1 in answer.json()["details"]["shards"]
        eventually(lambda: ready(url).json()["details"] == {"shards": [1]}, "the other shard to answer")
        assert 'vecraft_shard_up{shard="1"} 0.0' in metrics(url)
        assert httpx.get(f"{url}/healthz", timeout=PATIENCE_S).status_code == 200
    eventually(lambda: ready(url).status_code == 200, "the cluster to be ready again")
    read: list[str] = []

    def both_up() -> bool:
        read.append(metrics(url))
        return all(f'vecraft_shard_up{{shard="{shard}"}} 1.0' in read[-1] for shard in (0, 1))

    eventually(both_up, "the figures of both shards")
    figures = read[-1]
    resident = [line.split() for line in figures.splitlines() if line.startswith("vecraft_resident_memory_bytes{")]
    assert len(resident) == 2, "each shard tells its own"
    assert all(10e6 < float(value) < 10e9 for _, value in resident)


def test_a_killed_shard_costs_time_and_no_data(cluster: Cluster, url: str) -> None:
    vectors = np.eye(40, dtype=np.float32)
    with VecraftClient(url=url, timeout=PATIENCE_S) as client:
        client.create_collection(CollectionSchema(name="killed", dim=40))
        client.upsert("killed", ids=[f"a{i}" for i in range(40)], vectors=vectors)
        kill_shard(cluster, 0)
        ids = [f"b{i}" for i in range(40)]
        assert insist(lambda: client.upsert("killed", ids=ids, vectors=vectors)).count == 40
        assert insist(lambda: client.count("killed")) == 80
        first = client.upsert("killed", ids=ids, vectors=vectors, txn_id="once")
        kill_shard(cluster, 1)
        assert insist(lambda: client.upsert("killed", ids=ids, vectors=vectors, txn_id="once")) == first
    eventually(lambda: ready(url).status_code == 200, "the cluster to be ready again")
