"""The shards' own sockets on a real Ray: used by default, found again after restarts, of no use to a stranger."""

from __future__ import annotations

import asyncio
import ssl
from pathlib import Path

import numpy as np
import psutil
import pytest
from ray_workbench import (
    PATIENCE_S,
    call_actor,
    eventually,
    flights_of,
    frozen_shard,
    insist,
    kill_shard,
    ping,
    take_off,
)

from vecraft_cluster.credentials import Endpoint
from vecraft_cluster.launch import Cluster, launch
from vecraft_cluster.links import connect
from vecraft_cluster.ports import router_name, shard_name, unwrap
from vecraft_data_model import CollectionSchema, QueryPacket
from vecraft_data_model.errors import InvalidDataException, ShardUnavailableError, TimeoutException
from vecraft_db.client.async_client import AsyncVecraftClient
from vecraft_db.client.vecraft_client import VecraftClient

VECTORS = np.random.default_rng(9).normal(size=(40, 4)).astype(np.float32)
IDS = [f"r{number}" for number in range(40)]


def endpoint_of_shard(cluster: Cluster, shard: int) -> Endpoint:
    """What its actor says about its socket, once it serves."""
    answered: list[Endpoint] = []

    def ask() -> bool:
        answered.append(unwrap(call_actor(shard_name(cluster.name, shard), "endpoint")))
        return True

    eventually(ask, f"the endpoint of shard {shard}")
    return answered[0]


def test_calls_travel_over_sockets_by_default_and_by_actor_calls_where_told_to(
    cluster: Cluster, client: VecraftClient
) -> None:
    client.create_collection(CollectionSchema(name="planes", dim=4))
    client.upsert("planes", ids=IDS, vectors=VECTORS)
    take_off(client)

    def all_over_sockets() -> bool:
        before = flights_of(client)
        for _ in range(10):
            assert client.search("planes", QueryPacket(VECTORS[3], k=1))[0].record_id == "r3"
        return flights_of(client) >= before + 20

    eventually(all_over_sockets, "both shards to be asked over their sockets")
    with VecraftClient(address="auto", cluster=cluster.name, data_plane="actor", timeout=PATIENCE_S) as other:
        assert other.search("planes", QueryPacket(VECTORS[3], k=1))[0].record_id == "r3"
        assert flights_of(other) == 0
    client.drop_collection("planes")


async def test_on_an_event_loop_too(cluster: Cluster) -> None:
    async with await AsyncVecraftClient.open(address="auto", cluster=cluster.name, timeout=PATIENCE_S) as client:
        runners = client._engine._loops  # type: ignore[attr-defined]
        async with asyncio.timeout(PATIENCE_S):
            while True:
                assert await client.list_collections() is not None
                (runner,) = runners.values()
                if runner.flights > 3:
                    break
                await asyncio.sleep(0.005)


def test_a_router_actor_uses_sockets_and_ray_does_not_warn_of_a_blocked_loop(
    ray_session: Path, cluster: Cluster
) -> None:
    router = psutil.Process(ping(router_name(cluster.name, 0))["pid"])
    ports = {endpoint_of_shard(cluster, shard).port for shard in (0, 1)}
    with VecraftClient(address="auto", cluster=cluster.name, via_router_actor=True, timeout=PATIENCE_S) as client:
        client.create_collection(CollectionSchema(name="routed", dim=4))
        client.upsert("routed", ids=IDS, vectors=VECTORS)

        def over_sockets() -> bool:
            client.search("routed", QueryPacket(VECTORS[3], k=1))
            return ports <= {connection.raddr.port for connection in router.net_connections() if connection.raddr}

        eventually(over_sockets, "the router actor's connections to both shards")
        client.drop_collection("routed")
    logs = list((ray_session / "session_latest" / "logs").glob(f"worker-*-{router.pid}.*"))
    assert logs
    said = "".join(path.read_text() for path in logs)
    assert "blocking ray.get" not in said, said


def test_a_restarted_shard_has_other_keys_and_is_found_by_itself(cluster: Cluster, client: VecraftClient) -> None:
    client.create_collection(CollectionSchema(name="found", dim=4))
    client.upsert("found", ids=IDS, vectors=VECTORS)
    take_off(client)
    old = endpoint_of_shard(cluster, 0)
    kill_shard(cluster, 0)
    assert client.count("found") == 40, "within its deadline a call waits for the shard to come back"
    new = endpoint_of_shard(cluster, 0)
    assert new.certificate != old.certificate and new.token != old.token and new.epoch > old.epoch
    with pytest.raises((OSError, ssl.SSLError)):
        connect(Endpoint(new.host, new.port, old.certificate, old.token, 0, old.epoch))
    with pytest.raises(OSError):
        connect(Endpoint(new.host, new.port, new.certificate, old.token, 0, new.epoch))
    take_off(client)
    client.drop_collection("found")


def test_a_frozen_shard_keeps_no_deadline_from_being_kept(cluster: Cluster, client: VecraftClient) -> None:
    client.create_collection(CollectionSchema(name="cold", dim=4))
    client.upsert("cold", ids=IDS, vectors=VECTORS)
    take_off(client)
    with frozen_shard(cluster, 0):
        with pytest.raises((TimeoutException, ShardUnavailableError)):
            client.count("cold", timeout=0.5)
        with pytest.raises((TimeoutException, ShardUnavailableError)):
            client.upsert("cold", ids=IDS, vectors=VECTORS, timeout=0.5)
    assert insist(lambda: client.count("cold")) == 40
    take_off(client)
    client.drop_collection("cold")


def test_a_cluster_may_be_launched_without_sockets(ray_session: Path, tmp_path: Path) -> None:
    with pytest.raises(InvalidDataException, match="data_plane"):
        launch(tmp_path / "data", 1, address="local", routers=0, data_plane="pigeon")
    cluster = launch(tmp_path / "data", 1, address="local", routers=0, data_plane="actor", timeout=PATIENCE_S)
    try:
        with VecraftClient(address="auto", cluster=cluster.name, timeout=PATIENCE_S) as client:
            client.create_collection(CollectionSchema(name="c", dim=4))
            assert client.count("c") == 0 and flights_of(client) == 0
        with pytest.raises(ShardUnavailableError, match="no socket"):
            unwrap(call_actor(shard_name(cluster.name, 0), "endpoint"))
    finally:
        cluster.close()
