"""What breaks besides shards, what freezes, and what is gone for good: all of it comes back by itself."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import ray
from ray_workbench import (
    PATIENCE_S,
    call_actor,
    eventually,
    frozen,
    frozen_shard,
    insist,
    kill_controller,
    kill_router,
    kill_shard,
    ping,
    put_back,
    settle,
    watched_pid,
)

from vecraft_cluster.launch import Cluster
from vecraft_cluster.ports import look_up, shard_name, unwrap
from vecraft_cluster.root import read_root, shard_path
from vecraft_data_model import CollectionSchema, DataPacket, QueryPacket
from vecraft_data_model.errors import (
    CorruptionError,
    InvalidDataException,
    ShardUnavailableError,
    TimeoutException,
)
from vecraft_db.client.vecraft_client import VecraftClient
from vecraft_shard.recovery import EPOCH_FILE

IDS = [f"r{number}" for number in range(40)]
VECTORS = np.random.default_rng(3).normal(size=(40, 4)).astype(np.float32)


@pytest.fixture
def filled(client: VecraftClient, request: pytest.FixtureRequest) -> Iterator[tuple[VecraftClient, str]]:
    """A collection of 40 records over both shards."""
    name = request.node.name.partition("[")[0]
    client.create_collection(CollectionSchema(name=name, dim=4))
    client.upsert(name, ids=IDS, vectors=VECTORS)
    yield client, name
    insist(lambda: client.drop_collection(name))


def test_reads_and_writes_wait_out_a_kill(filled: tuple[VecraftClient, str], cluster: Cluster) -> None:
    client, name = filled
    for shard in (0, 1):
        kill_shard(cluster, shard)
        # No retry here: within its deadline a call waits for the shard to come back.
        assert client.count(name) == 40
        kill_shard(cluster, shard)
        client.upsert(name, ids=IDS, vectors=VECTORS, metadatas=[{"shard": shard}] * 40)
        assert client.count(name, where={"shard": shard}) == 40
        found = [hit.record_id for hit in client.search(name, QueryPacket(VECTORS[5], k=1, exact=True))]
        assert found == ["r5"]


def test_a_deadline_is_kept_while_a_shard_is_frozen(filled: tuple[VecraftClient, str], cluster: Cluster) -> None:
    client, name = filled
    # The client's own timeout is as long as the patience of these tests: a call that kept to that one would not end.
    with frozen_shard(cluster, 0), pytest.raises((TimeoutException, ShardUnavailableError)):
        client.search(name, QueryPacket(VECTORS[0], k=3), timeout=0.5)
    assert insist(lambda: client.count(name)) == 40


def test_a_frozen_shard_is_replaced_and_nothing_is_lost(filled: tuple[VecraftClient, str], cluster: Cluster) -> None:
    client, name = filled
    before = watched_pid(cluster, 1, kill_shard(cluster, 1))  # a young process, whichever test ran before
    with frozen(before):
        assert ping(shard_name(cluster.name, 1))["pid"] != before
        settle(cluster)
    assert insist(lambda: client.count(name)) == 40


def test_pauses_that_wait_for_each_other_let_the_shard_be_looked_at_and_go_on(cluster: Cluster) -> None:
    """Three backups at a time: the second and third wait for the end of the first, which has to be told somehow."""
    name = shard_name(cluster.name, 0)
    shard = look_up(name)
    first = unwrap(call_actor(name, "pause", 2 * PATIENCE_S))
    others = [shard.pause.remote(2 * PATIENCE_S) for _ in range(4)]
    before = call_actor(name, "ping")
    assert call_actor(name, "resume", first)
    while others:
        (next_, *_), others = ray.wait(others, num_returns=1, timeout=PATIENCE_S)
        assert call_actor(name, "resume", unwrap(ray.get(next_)))
    assert call_actor(name, "ping")["pid"] == before["pid"]


def test_a_shard_that_is_started_again_without_its_directory_does_not_begin_anew(
    filled: tuple[VecraftClient, str], cluster: Cluster
) -> None:
    client, name = filled
    root = Path(cluster.membership.root)
    folder, away = shard_path(root, 1), root / "away"
    eventually(lambda: read_root(root).peopled, "the root to know that its shards have served")
    folder.rename(away)  # as on a node where the volume is not mounted
    kill_shard(cluster, 1)

    def missed() -> bool:
        error = cluster.status()["shards"][1]["error"]  # there is none while it is tried again
        return error is not None and EPOCH_FILE in error["message"]

    eventually(missed, "the shard to miss its files")
    with pytest.raises(CorruptionError, match=EPOCH_FILE):
        client.count(name)
    put_back(away, folder)
    settle(cluster)
    assert insist(lambda: client.count(name)) == 40


def test_a_shard_that_is_gone_for_good_is_made_anew(filled: tuple[VecraftClient, str], cluster: Cluster) -> None:
    client, name = filled
    ray.kill(look_up(shard_name(cluster.name, 0)), no_restart=True)
    assert insist(lambda: client.count(name)) == 40


def test_without_its_controller_a_cluster_goes_on_and_gets_it_back(
    filled: tuple[VecraftClient, str], cluster: Cluster
) -> None:
    client, name = filled
    killed = kill_controller(cluster)
    assert client.count(name) == 40
    client.upsert(name, ids=["new"], vectors=VECTORS[:1])
    eventually(lambda: cluster.status()["pid"] != killed, "the controller's next process")
    kill_shard(cluster, 0)
    assert insist(lambda: client.count(name)) == 41
    settle(cluster)


def test_a_router_actor_holds_nothing(cluster: Cluster) -> None:
    with VecraftClient(address="auto", cluster=cluster.name, via_router_actor=True, timeout=PATIENCE_S) as client:
        client.create_collection(CollectionSchema(name="routed", dim=4))
        client.upsert("routed", ids=IDS, vectors=VECTORS)
        for _ in range(2):
            kill_router(cluster)
            assert insist(lambda: client.count("routed")) == 40
            client.insert("routed", DataPacket("own", VECTORS[0]))
            assert client.get("routed", "own").record_id == "own", "a client reads its own writes, whoever routes them"
            client.delete("routed", "own")
        client.drop_collection("routed")


def test_cluster_info_says_who_runs_and_how_often_it_was_restarted(cluster: Cluster, client: VecraftClient) -> None:
    restarts = {shard["shard"]: shard["restarts"] for shard in insist(cluster.status)["shards"]}
    killed = kill_shard(cluster, 1)
    watched_pid(cluster, 1, killed)
    assert insist(cluster.status)["shards"][1]["restarts"] > restarts[1]
    info = client.cluster_info()
    assert info["kind"] == "ray"
    assert [shard["shard"] for shard in info["shards"]] == [0, 1]
    assert info["shards"][1]["pid"] not in (0, killed)


def test_a_cluster_without_router_actors_says_so(ray_session: Path, tmp_path: Path) -> None:
    from vecraft_cluster.launch import launch

    cluster = launch(tmp_path / "data", 1, address="local", routers=0, timeout=PATIENCE_S)
    try:
        with pytest.raises(InvalidDataException, match="routers=1"):
            VecraftClient(address="auto", cluster=cluster.name, via_router_actor=True, timeout=PATIENCE_S)
    finally:
        cluster.close()
