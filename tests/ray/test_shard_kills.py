"""``kill -9`` of shard actors under load, again and again, each time followed by a full comparison with a model.

Every round: writers commit batches that span both shards, a reader checks that no batch is ever seen in halves, a shard
actor is killed at a random moment; writers repeat what was not answered, under the same transaction id. When all is
answered, the database must hold exactly what the model holds: nothing acknowledged is lost, nothing deleted comes
back, nothing is applied twice, nothing that was told to be aborted appears.

It happens to calls over the shards' sockets, and to actor calls.

``VECRAFT_SHARD_KILLS=500 pytest tests/ray/test_shard_kills.py`` kills more often.
"""

from __future__ import annotations

import os
import random
import threading
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from ray_workbench import PATIENCE_S, flights_of, insist, kill_shard, take_off, vector_of, version_of
from track_record import record

from vecraft_cluster.launch import Cluster
from vecraft_data_model import CollectionSchema, QueryPacket
from vecraft_data_model.errors import WriteConflictException
from vecraft_data_model.validation import new_txn_id
from vecraft_db.client.vecraft_client import VecraftClient

KILLS = int(os.environ.get("VECRAFT_SHARD_KILLS", "30"))
SEED = int(os.environ.get("SEED", "1"))
WRITERS = 3
IDS_PER_WRITER = 60
BATCH = 6
DIM = 8


Vector = npt.NDArray[np.float32]
Model = dict[str, tuple[int, Vector]]
"""Record id → version and vector."""


class Writer(threading.Thread):
    """Commits batches over ids of its own until told to stop, and keeps what was acknowledged."""

    def __init__(self, number: int, round_: int, client: VecraftClient, model: Model) -> None:
        super().__init__(name=f"writer-{number}", daemon=True)
        self.number = number
        self.client = client
        self.model = model
        self.random = random.Random(f"{SEED}-{number}-{round_}")
        self.vectors = np.random.default_rng([SEED, number, round_])
        self.stop = threading.Event()
        self.commits = 0
        self.aborts = 0
        self.version = round_ * 1_000_000
        self.error: BaseException | None = None

    def run(self) -> None:
        try:
            self.step()
            while not self.stop.is_set():
                self.step()
        except BaseException as error:
            self.error = error

    def step(self) -> None:
        """One atomic change: a batch is replaced as a whole, or deleted as a whole."""
        self.version += 1
        batch = self.random.randrange(IDS_PER_WRITER // BATCH)
        ids = [f"w{self.number}-{batch:02d}-{place}" for place in range(BATCH)]
        if self.random.random() < 0.2:
            self.commit(lambda txn_id: self.client.delete_many("kills", ids, txn_id=txn_id))
            for record_id in ids:
                self.model.pop(record_id, None)
        else:
            vectors = self.vectors.normal(size=(BATCH, DIM)).astype(np.float32)
            metadatas = [{"batch": f"w{self.number}-{batch:02d}", "version": self.version}] * BATCH
            self.commit(
                lambda txn_id: self.client.upsert("kills", ids=ids, vectors=vectors, metadatas=metadatas, txn_id=txn_id)
            )
            for record_id, vector in zip(ids, vectors, strict=True):
                self.model[record_id] = (self.version, vector)
        self.commits += 1

    def commit(self, write: Callable[[str], object]) -> None:
        """Repeat a write under one id until its outcome is known; one that was aborted for good is begun anew."""
        while True:
            txn_id = new_txn_id()
            try:
                insist(partial(write, txn_id))
            except WriteConflictException:
                self.aborts += 1
            else:
                return


class Reader(threading.Thread):
    """Looks at whole batches: all or none of one, and all of one version."""

    def __init__(self, client: VecraftClient) -> None:
        super().__init__(name="reader", daemon=True)
        self.client = client
        self.random = random.Random(SEED)
        self.stop = threading.Event()
        self.reads = 0
        self.fractured: list[Any] = []
        self.error: BaseException | None = None

    def run(self) -> None:
        try:
            self.step()
            while not self.stop.is_set():
                self.step()
        except BaseException as error:
            self.error = error

    def step(self) -> None:
        writer, batch = self.random.randrange(WRITERS), self.random.randrange(IDS_PER_WRITER // BATCH)
        ids = [f"w{writer}-{batch:02d}-{place}" for place in range(BATCH)]
        packets = insist(lambda: self.client.get_many("kills", ids))
        versions = [version_of(packet) for packet in packets]
        if len(set(versions)) != 1:
            self.fractured.append((ids[0], versions))
        self.reads += 1


def compare(client: VecraftClient, model: Model) -> None:
    """Every way of reading agrees with the model, on all of it."""
    stored = {packet.record_id: packet for packet in client.scan("kills", include=("metadata", "document", "vector"))}
    assert {key: version_of(packet) for key, packet in stored.items()} == {
        key: version for key, (version, _) in model.items()
    }
    for record_id, (_, vector) in model.items():
        assert np.array_equal(vector_of(stored[record_id]), vector), record_id
    assert client.count("kills") == len(model)
    if not model:
        return
    ids = sorted(model)
    matrix = np.stack([model[record_id][1] for record_id in ids])
    query = matrix[0]
    distances = ((matrix - query) ** 2).sum(axis=1)
    nearest = [ids[row] for row in np.lexsort((np.arange(len(ids)), distances))[:10]]
    assert [hit.record_id for hit in client.search("kills", QueryPacket(query, k=10, exact=True))] == nearest
    found = {packet.record_id for packet in client.get_many("kills", ids) if packet is not None}
    assert found == set(ids)


@pytest.mark.slow
@pytest.mark.timeout(1200 + 30 * KILLS)
@pytest.mark.parametrize("data_plane", ["socket", "actor"])
def test_kill_9_under_load_loses_nothing_and_brings_nothing_back(cluster: Cluster, data_plane: str) -> None:
    with VecraftClient(address="auto", cluster=cluster.name, data_plane=data_plane, timeout=PATIENCE_S) as client:
        kill_and_compare(cluster, client, data_plane)
        assert (flights_of(client) > KILLS) == (data_plane == "socket")
        client.drop_collection("kills")


def kill_and_compare(cluster: Cluster, client: VecraftClient, data_plane: str) -> None:
    chance = random.Random(SEED)
    client.create_collection(CollectionSchema(name="kills", dim=DIM))
    models: list[Model] = [{} for _ in range(WRITERS)]
    commits = aborts = reads = 0
    for round_ in range(KILLS):
        if data_plane == "socket":
            take_off(client)  # so that it is calls over sockets that meet the kill
        writers = [Writer(number, round_, client, models[number]) for number in range(WRITERS)]
        reader = Reader(client)
        threads: list[Writer | Reader] = [*writers, reader]
        for thread in threads:
            thread.start()
        time.sleep(chance.uniform(0.05, 0.4))
        kill_shard(cluster, chance.randrange(2))
        time.sleep(chance.uniform(0.0, 0.3))
        for thread in threads:
            thread.stop.set()
        for thread in threads:
            thread.join(3 * PATIENCE_S)
            assert not thread.is_alive(), f"{thread.name} got no answer within {3 * PATIENCE_S} s of kill {round_}"
            if thread.error is not None:
                raise AssertionError(f"{thread.name}, kill {round_}, SEED={SEED}") from thread.error
        assert reader.fractured == [], f"half of a transaction was seen around kill {round_}, SEED={SEED}"
        commits += sum(writer.commits for writer in writers)
        aborts += sum(writer.aborts for writer in writers)
        reads += reader.reads
        insist(lambda: client.count("kills"))
        compare(client, {key: value for model in models for key, value in model.items()})
    restarts = sum(shard["restarts"] for shard in insist(cluster.status)["shards"])
    print(f"\n{KILLS} kills, {restarts} restarts seen, {commits} commits, {aborts} aborts, {reads} reads, all compared")
    record(
        "processes",
        method="`kill -9` of shard actors on Ray",
        cases=KILLS,
        outcome=f"{commits} commits and {reads} reads, all as in the model",
    )
    assert commits >= KILLS * WRITERS
    assert reads >= KILLS
