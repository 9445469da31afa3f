"""Clusters for tests that break things: each test that asks gets one of its own, on the session's one Ray."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from ray_workbench import PATIENCE_S, settle

from vecraft_cluster.launch import Cluster, launch
from vecraft_db.client.vecraft_client import VecraftClient


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    here = Path(__file__).parent
    for item in items:
        if here in item.path.parents:
            item.add_marker(pytest.mark.ray)


@pytest.fixture(scope="module")
def cluster(ray_session: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """A cluster of two shards and a router actor, shared by the tests of a module."""
    cluster = launch(tmp_path_factory.mktemp("cluster") / "data", 2, address="local", timeout=PATIENCE_S)
    try:
        yield cluster
    finally:
        cluster.close()


@pytest.fixture(autouse=True)
def settled(request: pytest.FixtureRequest) -> None:
    """Each test begins with a cluster that its controller knows to be well, whatever the one before it has broken."""
    if "cluster" in request.fixturenames:
        settle(request.getfixturevalue("cluster"))


@pytest.fixture
def client(cluster: Cluster) -> Iterator[VecraftClient]:
    """A client of that cluster, with a router of its own and much time."""
    with VecraftClient(address="auto", cluster=cluster.name, timeout=PATIENCE_S) as client:
        yield client
