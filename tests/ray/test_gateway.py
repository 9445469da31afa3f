"""The REST gateway over shard actors: readiness tells the truth, a killed shard costs time and no data."""

from __future__ import annotations

from collections.abc import Iterator

import httpx
import numpy as np
import pytest
from gateway_thread import serving
from ray_workbench import eventually, frozen, insist, kill_shard, ping

from vecraft_cluster.launch import Cluster
from vecraft_cluster.ports import shard_name
from vecraft_data_model import CollectionSchema
from vecraft_db.client.vecraft_client import VecraftClient


@pytest.fixture(scope="module")
def url(cluster: Cluster) -> Iterator[str]:
    """A gateway in front of the module's cluster."""
    with serving(root=None, address="auto", cluster=cluster.name) as address:
        yield address


def ready(url: str) -> httpx.Response:
    return httpx.get(f"{url}/readyz", timeout=30)


def test_readiness_names_a_shard_that_does_not_answer(cluster: Cluster, url: str) -> None:
    eventually(lambda: ready(url).status_code == 200, 30, "the cluster is ready")
    with frozen(int(ping(shard_name(cluster.name, 1))["pid"])):
        answer = ready(url)
        assert answer.status_code == 503 and answer.json()["details"] == {"shards": [1]}
        assert 'vecraft_shard_up{shard="1"} 0.0' in httpx.get(f"{url}/metrics", timeout=30).text
        assert httpx.get(f"{url}/healthz").status_code == 200
    eventually(lambda: ready(url).status_code == 200, 60, "the cluster is ready again")
    figures = httpx.get(f"{url}/metrics", timeout=30).text
    assert 'vecraft_shard_up{shard="0"} 1.0' in figures and 'vecraft_shard_up{shard="1"} 1.0' in figures
    resident = [line.split() for line in figures.splitlines() if line.startswith("vecraft_resident_memory_bytes{")]
    assert len(resident) == 2, "each shard tells its own"
    assert all(10e6 < float(value) < 10e9 for _, value in resident)


def test_a_killed_shard_costs_time_and_no_data(cluster: Cluster, url: str) -> None:
    vectors = np.eye(40, dtype=np.float32)
    with VecraftClient(url=url, timeout=60) as client:
        client.create_collection(CollectionSchema(name="killed", dim=40))
        client.upsert("killed", ids=[f"a{i}" for i in range(40)], vectors=vectors)
        kill_shard(cluster, 0)
        ids = [f"b{i}" for i in range(40)]
        assert insist(lambda: client.upsert("killed", ids=ids, vectors=vectors)).count == 40
        assert insist(lambda: client.count("killed")) == 80
        first = client.upsert("killed", ids=ids, vectors=vectors, txn_id="once")
        kill_shard(cluster, 1)
        assert insist(lambda: client.upsert("killed", ids=ids, vectors=vectors, txn_id="once")) == first
    eventually(lambda: ready(url).status_code == 200, 60, "the cluster is ready again")
