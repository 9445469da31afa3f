"""Random use of an embedded database, step by step beside a plain dict and numpy: they must never differ.

Hypothesis chooses inserts, bulk writes, deletes, transactions, snapshots kept open, checkpoints, compactions, clean
restarts and crashes; after each step a search with ``exact=True``, filters, counts and scans are compared with brute
force on the model. A failure is shrunk to the shortest sequence that still fails.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, initialize, invariant, rule
from random_examples import examples

from vecraft_data_model import CollectionSchema, DataPacket, QueryPacket, VectorPacket
from vecraft_data_model.errors import RecordNotFoundError, SnapshotTooOldError, WriteConflictException
from vecraft_db.client.vecraft_client import VecraftClient
from vecraft_db.embedded import EmbeddedEngine

DIM = 3
IDS = [f"r{i}" for i in range(8)]
ids = st.sampled_from(IDS)
# Small integers: every distance is exact, and ties are frequent, so that their order is tested too.
vectors = st.lists(st.integers(-3, 3), min_size=DIM, max_size=DIM)
metadatas = st.fixed_dictionaries(
    {},
    optional={
        "n": st.integers(0, 5),
        "s": st.sampled_from(["x", "y"]),
        "t": st.lists(st.integers(0, 2), max_size=2),
    },
)
Record = tuple[tuple[int, ...], dict[str, Any]]
Model = dict[str, Record]


def nearest(model: Mapping[str, Record], query: list[int], k: int, n: int | None = None) -> list[tuple[str, float]]:
    """The answer by definition: squared distances, ties by id; records with ``n`` of that value only."""
    scored = [
        (float(np.sum((np.array(vector) - np.array(query)) ** 2)), record_id)
        for record_id, (vector, metadata) in model.items()
        if n is None or metadata.get("n") == n
    ]
    return [(record_id, distance) for distance, record_id in sorted(scored)[:k]]


def packet(record_id: str, vector: list[int], metadata: dict[str, Any]) -> DataPacket:
    return DataPacket(record_id=record_id, vector=VectorPacket.from_numpy(np.array(vector)), metadata=metadata)


class DatabaseMachine(RuleBasedStateMachine):
    """A client and its model."""

    snapshots = Bundle("snapshots")
    shards = 1
    history_retention_s = 600.0

    def __init__(self) -> None:
        super().__init__()
        self.folder = Path(tempfile.mkdtemp(prefix="vecraft-machine-"))
        self.model: Model = {}
        self.client = self.open()
        self.client.create_collection(CollectionSchema(name="c", dim=DIM))

    def open(self) -> VecraftClient:
        return VecraftClient(
            root=str(self.folder / "root"), shards=self.shards, history_retention_s=self.history_retention_s
        )

    def teardown(self) -> None:
        self.client.close()
        shutil.rmtree(self.folder)

    @initialize()
    def start(self) -> None:
        pass

    # ------------------------------------------------------------------------------------------- writing

    @rule(record_id=ids, vector=vectors, metadata=metadatas)
    def insert(self, record_id: str, vector: list[int], metadata: dict[str, Any]) -> None:
        before = self.client.insert("c", packet(record_id, vector, metadata))
        known = self.model.get(record_id)
        assert (before is None) == (known is None)
        if before is not None and known is not None:
            assert before.metadata == known[1]
        self.model[record_id] = (tuple(vector), metadata)

    @rule(records=st.dictionaries(ids, st.tuples(vectors, metadatas), min_size=1, max_size=5))
    def upsert(self, records: dict[str, tuple[list[int], dict[str, Any]]]) -> None:
        result = self.client.upsert(
            "c",
            ids=list(records),
            vectors=np.array([vector for vector, _ in records.values()], np.float32),
            metadatas=[metadata for _, metadata in records.values()],
        )
        assert result.count == len(records)
        self.model.update({key: (tuple(vector), metadata) for key, (vector, metadata) in records.items()})

    @rule(record_id=ids)
    def delete(self, record_id: str) -> None:
        try:
            self.client.delete("c", record_id)
            existed = True
        except RecordNotFoundError:
            existed = False
        assert existed in {record_id in self.model, True}
        self.model.pop(record_id, None)

    @rule(n=st.integers(0, 5))
    def delete_by_filter(self, n: int) -> None:
        doomed = [record_id for record_id, (_, metadata) in self.model.items() if metadata.get("n") == n]
        assert self.client.delete_many("c", where={"n": n}).count == len(doomed)
        for record_id in doomed:
            del self.model[record_id]

    @rule(record_id=ids, other=ids, vector=vectors, metadata=metadatas, fail=st.booleans(), k=st.integers(1, 5))
    def transaction(
        self, record_id: str, other: str, vector: list[int], metadata: dict[str, Any], fail: bool, k: int
    ) -> None:
        inside = dict(self.model)
        try:
            with self.client.transaction() as txn:
                txn.insert("c", packet(record_id, vector, metadata))
                inside[record_id] = (tuple(vector), metadata)
                if other in inside and other != record_id:
                    txn.delete("c", other)
                    del inside[other]
                found = txn.search("c", QueryPacket(query_vector=np.array(vector), k=k, exact=True))
                assert [(r.record_id, r.distance) for r in found] == nearest(inside, vector, k)
                assert txn.count("c") == len(inside)
                if fail:
                    raise KeyboardInterrupt
        except KeyboardInterrupt:
            return
        self.model = inside

    @rule(record_id=ids, vector=vectors)
    def conflict(self, record_id: str, vector: list[int]) -> None:
        with pytest.raises(WriteConflictException), self.client.transaction() as txn:
            txn.count("c")
            self.client.insert("c", packet(record_id, [0] * DIM, {}))
            txn.insert("c", packet(record_id, vector, {"n": 1}))
        self.model[record_id] = ((0,) * DIM, {})

    # -------------------------------------------------------------------------------------- life of files

    @rule()
    def checkpoint(self) -> None:
        self.client.checkpoint()

    @rule()
    def compact(self) -> None:
        self.client.checkpoint(compact=True, index=True)

    @rule()
    def crash(self) -> None:
        engine = self.client.engine
        assert isinstance(engine, EmbeddedEngine)
        for host in engine.hosts.values():
            host.kill()
        self.client.close()
        self.client = self.open()

    @rule()
    def restart(self) -> None:
        self.client.close()
        self.client = self.open()

    # ------------------------------------------------------------------------------------------ reading

    @rule(target=snapshots)
    def keep_snapshot(self) -> tuple[int, Model]:
        with self.client.snapshot() as snapshot:
            return snapshot.timestamp, dict(self.model)

    @rule(kept=consumes(snapshots), query=vectors)
    def read_in_the_past(self, kept: tuple[int, Model], query: list[int]) -> None:
        ts, model = kept
        try:
            self._compare_past(ts, model, query)
        except SnapshotTooOldError:
            assert self.history_retention_s < 1

    def _compare_past(self, ts: int, model: Model, query: list[int]) -> None:
        with self.client.snapshot(as_of=ts) as past:
            found = past.search("c", QueryPacket(query_vector=np.array(query), k=5, exact=True))
            assert [(r.record_id, r.distance) for r in found] == nearest(model, query, 5)
            assert past.count("c") == len(model)

    @rule(query=vectors, k=st.integers(1, 10), n=st.one_of(st.none(), st.integers(0, 5)))
    def search(self, query: list[int], k: int, n: int | None) -> None:
        where = None if n is None else {"n": n}
        for exact in (True, False):
            found = self.client.search("c", QueryPacket(query_vector=np.array(query), k=k, where=where, exact=exact))
            assert [(r.record_id, r.distance) for r in found] == nearest(self.model, query, k, n)
            for r in found:
                assert r.metadata == self.model[r.record_id][1]

    @invariant()
    def same_records(self) -> None:
        assert [record.record_id for record in self.client.scan("c")] == sorted(self.model)
        assert self.client.count("c") == len(self.model)
        for record_id, record in zip(IDS, self.client.get_many("c", IDS), strict=True):
            assert (record is not None) == (record_id in self.model)
            if record is not None:
                assert tuple(record.vector.to_numpy()) == self.model[record_id][0]


class ShardedDatabaseMachine(DatabaseMachine):
    """The same on three shards."""

    shards = 3


class ForgetfulDatabaseMachine(DatabaseMachine):
    """The same where old versions are reclaimed at once: history is refused then, and never wrong."""

    history_retention_s = 0.001


_settings = examples(15, stateful_step_count=25)
TestDatabase = DatabaseMachine.TestCase
TestDatabase.settings = _settings
TestForgetfulDatabase = ForgetfulDatabaseMachine.TestCase
TestForgetfulDatabase.settings = _settings
TestShardedDatabase = ShardedDatabaseMachine.TestCase
TestShardedDatabase.settings = _settings
