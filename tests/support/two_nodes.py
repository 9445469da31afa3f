"""A database on two Ray nodes, one of them cut off, in a process of its own: no process can be connected to two Rays.

Run as ``python -m tests.support.two_nodes ROOT``. Says what it did in one line of JSON; what goes wrong ends it.

Both nodes, and the one that takes over, are on this machine, with one directory between them. What tells machines apart
is changed from outside, as it would be on two: the lock file is another one, so that it reaches nobody else, and the
lease is of another kernel, so that it has to run out. A directory that a node cannot reach has another name meanwhile.
"""

from __future__ import annotations

import json
import os
import select
import sys
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import ray
from ray._private.ray_constants import PROCESS_TYPE_RAYLET
from ray.cluster_utils import Cluster as RayCluster

from tests.support.ray_workbench import PATIENCE_S, eventually, insist, ping, put_back, version_of
from vecraft_cluster.codec import pack, unpack
from vecraft_cluster.controller import SHARD_LABEL
from vecraft_cluster.launch import Cluster, launch
from vecraft_cluster.lease import LEASE_FOLDER, TAKEOVER_S, Claim, seconds_awake_or_not
from vecraft_cluster.links import connect
from vecraft_cluster.ports import look_up, shard_name, unwrap
from vecraft_cluster.root import shard_path
from vecraft_cluster.wire import Wire
from vecraft_data_model import CollectionSchema, QueryPacket
from vecraft_data_model.errors import ShardUnavailableError, TimeoutException, VecraftError, WriteConflictException
from vecraft_data_model.messages import Batch, Count
from vecraft_data_model.validation import new_txn_id
from vecraft_db.client.vecraft_client import VecraftClient
from vecraft_shard.disk import LOCK_NAME

VECTORS = np.random.default_rng(12).normal(size=(40, 4)).astype(np.float32)
IDS = [f"r{number}" for number in range(40)]
TOO_LATE = (ShardUnavailableError, TimeoutException)
OTHER_KERNEL = "0" * 32
NODE = {"num_cpus": 2, "object_store_memory": 128 << 20}
HEALTH = {
    "health_check_initial_delay_ms": 1000,
    "health_check_period_ms": 1000,
    "health_check_timeout_ms": 3000,
    "health_check_failure_threshold": 7,
}
"""Ray's own patience with a silent node is a minute."""


def require(condition: bool, what: object) -> None:
    """End with ``what`` unless the condition holds."""
    if not condition:
        raise SystemExit(f"wrong: {what}")


def write(client: VecraftClient, version: int, txn_id: str, timeout: float | None = None) -> int:
    """Give all records a version, on both shards at once; returns the commit's timestamp."""
    metadatas = [{"version": version}] * len(IDS)
    result = client.upsert("c", ids=IDS, vectors=VECTORS, metadatas=metadatas, txn_id=txn_id, timeout=timeout)
    return result.commit_ts


def use(client: VecraftClient, version: int) -> None:
    """Write, read, search, and read and write in a transaction, over both shards."""
    insist(lambda: write(client, version - 1, new_txn_id()))
    with client.transaction(timeout=PATIENCE_S) as tx:
        seen = {version_of(packet) for packet in tx.get_many("c", IDS)}
        require(seen == {version - 1}, f"{seen} instead of {version - 1}")
        tx.upsert("c", ids=IDS, vectors=VECTORS, metadatas=[{"version": version}] * len(IDS))
    check(client, version)


def check(client: VecraftClient, version: int) -> None:
    """All records have one version."""
    found = insist(lambda: client.get_many("c", IDS, consistency="strong"))
    seen = {version_of(packet) for packet in found}
    require(seen == {version}, f"{seen} instead of {version}")
    near = insist(lambda: client.search("c", QueryPacket(VECTORS[7], k=1, exact=True)))
    require([hit.record_id for hit in near] == ["r7"], near)


def view(cluster: Cluster, shard: int) -> dict[str, Any]:
    """What the controller says of a shard."""
    found: dict[str, Any] = insist(cluster.status)["shards"][shard]
    return found


def as_of_another_machine(folder: Path) -> None:
    """Let the lock and the lease be somebody's on a machine that this one knows nothing of."""
    os.rename(folder / LOCK_NAME, folder / f"{LOCK_NAME}.there")
    (name,) = os.listdir(folder / LEASE_FOLDER)
    claim = Claim.of(name)
    if claim is None:
        raise SystemExit(f"no lease: {name}")
    os.rename(folder / LEASE_FOLDER / name, folder / LEASE_FOLDER / claim._replace(kernel=OTHER_KERNEL).name)


def ended(process: psutil.Process) -> bool:
    """Whether a process does nothing any more."""
    try:
        return not process.is_running() or process.status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def answer_of(wire: Wire) -> Any:
    """What comes on a connection to a process that goes on now: an answer, or None as it ends."""
    try:
        while True:
            if not select.select([wire.fileno()], [], [], PATIENCE_S)[0]:
                raise SystemExit("the process that was replaced says nothing, and does not end")
            frame = wire.receive()
            if frame is not None:
                return unpack(frame)
    except OSError:
        return None


def run(nodes: RayCluster, root: Path, cluster: Cluster) -> dict[str, Any]:
    """The whole story; returns what to report."""
    home, second = nodes.head_node, next(iter(nodes.worker_nodes))
    name = cluster.name
    with (
        VecraftClient(address="auto", cluster=name) as over_sockets,
        VecraftClient(address="auto", cluster=name, data_plane="actor") as over_calls,
        VecraftClient(address="auto", cluster=name, via_router_actor=True) as over_router,
    ):
        clients = (over_sockets, over_calls, over_router)
        over_sockets.create_collection(CollectionSchema(name="c", dim=4))
        eventually(lambda: view(cluster, 1)["state"] == "serving", "both shards serving")
        places = [view(cluster, shard)["node"] for shard in (0, 1)]
        require(places == [home.node_id, second.node_id], f"shards are on {places}")
        for number, client in enumerate(clients):
            use(client, 10 * number + 10)

        # The second node is cut off, as far as anybody can tell: its raylet and its shard's process stand still.
        endpoint = unwrap(ray.get(look_up(shard_name(name, 1)).endpoint.remote(), timeout=60))
        old_wire = connect(endpoint, 60.0)
        old = psutil.Process(ping(shard_name(name, 1))["pid"])
        raylet = psutil.Process(second.all_processes[PROCESS_TYPE_RAYLET][0].process.pid)
        for process in (raylet, old):
            process.suspend()
        try:
            asked = new_txn_id()
            try:
                write(over_sockets, 31, asked, timeout=2.0)
                raise SystemExit("a write succeeded although one of its shards is gone")
            except (*TOO_LATE, WriteConflictException) as error:
                outcome = error.details["outcome"]
                require(outcome in ("unknown", "aborted"), error.details)
            folder = shard_path(root, 1)
            away = folder.with_name("away")
            as_of_another_machine(folder)
            os.rename(folder, away)

            # Another node takes its place, at first without the directory.
            third = nodes.add_node(**NODE, labels={SHARD_LABEL: "1"})
            eventually(lambda: view(cluster, 1)["state"] == "failed", "the shard to miss its directory")
            complaint = view(cluster, 1)["error"]["message"]
            for client in clients:
                try:
                    raise SystemExit(f"{client.count('c', timeout=1.0)} records counted, of a shard that is not there")
                except VecraftError:
                    continue
            back_at = seconds_awake_or_not()
            put_back(away, folder)
            eventually(lambda: view(cluster, 1)["state"] == "serving", "the shard on its new node")
            waited_s = seconds_awake_or_not() - back_at
            require(waited_s >= TAKEOVER_S, f"the lease was taken after {waited_s} s: it may have been held still")
            require(view(cluster, 1)["node"] == third.node_id, view(cluster, 1))

            # What was asked and not answered is settled; then others write, and the old process goes on.
            if outcome == "aborted":
                check(over_sockets, 30)
                asked = new_txn_id()
            try:
                settled = insist(lambda: write(over_calls, 31, asked))
            except WriteConflictException:  # the shards have given it up before we asked: for good
                require(outcome != "aborted", "a new id was spent")
                check(over_sockets, 30)
                asked = new_txn_id()
                settled = insist(lambda: write(over_calls, 31, asked))
            check(over_sockets, 31)
            insist(lambda: write(over_calls, 32, new_txn_id()))
            old_wire.send(pack(1, (5.0, Batch([Count(collection="c")]))))
        finally:
            old.resume()
        stale = answer_of(old_wire)
        require(stale is None or isinstance(stale, VecraftError), f"the process that was replaced answered {stale}")
        eventually(lambda: ended(old), "the old process to end")
        nodes.remove_node(second, allow_graceful=False)
        for client in clients:
            check(client, 32)
        require(insist(lambda: write(over_router, 31, asked)) == settled, "it was done again")
        check(over_sockets, 32)
        for number, client in enumerate(clients):
            use(client, 10 * number + 40)
        check(over_sockets, 60)
    return {"waited_s": round(waited_s, 1), "complaint": complaint, "stale": type(stale).__name__, "outcome": outcome}


def main(root: Path) -> None:
    """Start a Ray of two nodes, run, and end all of it."""
    head = {**NODE, "include_dashboard": False, "labels": {SHARD_LABEL: "0"}, "_system_config": HEALTH}
    nodes = RayCluster(initialize_head=True, head_node_args=head)
    try:
        nodes.add_node(**NODE, labels={SHARD_LABEL: "1"})
        cluster = launch(root, 2, address=nodes.address, timeout=PATIENCE_S)
        require(ray.get_runtime_context().get_node_id() == nodes.head_node.node_id, "this process is on another node")
        found = run(nodes, root, cluster)
        cluster.halt()
        cluster.close()
    finally:
        ray.shutdown()
        nodes.shutdown()
    print(json.dumps(found))


if __name__ == "__main__":
    main(Path(sys.argv[1]).resolve())
