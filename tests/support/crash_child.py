"""The process that is killed: says what is in the database, then writes to it until it dies.

Run as ``python crash_child.py ROOT SEED SHARDS``. It speaks lines of JSON on standard output::

    {"state": {collection: {id: [version, checksum of the vector]}}}     what it found when it started
    {"do": operation}                                                    before an operation
    {"done": n}                                                          after it was acknowledged
"""

from __future__ import annotations

import json
import random
import sys
from pathlib import Path
from typing import Any

import numpy as np

from vecraft_data_model import CollectionSchema, DataPacket, QueryPacket, VectorPacket
from vecraft_db.client.vecraft_client import VecraftClient

DIM = 8
COLLECTIONS = ("red", "blue")
IDS = [f"record-{i:02}" for i in range(40)]


def vector_of(record_id: str, version: int) -> np.ndarray:
    """The vector of a version of a record: the parent can compute it, too."""
    rng = np.random.default_rng([version, *record_id.encode()])
    return rng.normal(size=DIM).astype(np.float32)


def operation(rng: random.Random, version: int) -> dict[str, Any]:
    """Choose what to do next."""
    kind = rng.choices(
        ["upsert", "delete", "transaction", "checkpoint", "insert"], weights=[40, 15, 30, 2, 13]
    )[0]
    if kind in ("insert", "upsert", "delete"):
        count = 1 if kind == "insert" else rng.randint(1, 12)
        ids = rng.sample(IDS, count)
        return {"kind": kind, "version": version, "writes": [[rng.choice(COLLECTIONS), sorted(ids)]]}
    if kind == "transaction":
        writes = [[name, sorted(rng.sample(IDS, rng.randint(1, 5)))] for name in COLLECTIONS]
        deletes = [[rng.choice(COLLECTIONS), [rng.choice(IDS)]]]
        return {"kind": kind, "version": version, "writes": writes, "deletes": deletes}
    return {"kind": kind, "version": version, "writes": []}


def packet(record_id: str, version: int) -> DataPacket:
    """The record as it is written."""
    return DataPacket(
        record_id=record_id,
        vector=VectorPacket.from_numpy(vector_of(record_id, version)),
        metadata={"version": version},
        document=f"version {version} of {record_id}",
    )


def carry_out(client: VecraftClient, op: dict[str, Any]) -> None:
    """Do it, through the public interface."""
    version = op["version"]
    if op["kind"] == "checkpoint":
        client.checkpoint()
    elif op["kind"] == "insert":
        (name, ids), *_ = op["writes"]
        client.insert(name, packet(ids[0], version))
    elif op["kind"] == "upsert":
        (name, ids), *_ = op["writes"]
        client.upsert(name, [packet(record_id, version) for record_id in ids])
    elif op["kind"] == "delete":
        (name, ids), *_ = op["writes"]
        client.delete_many(name, ids=ids)
    else:
        with client.transaction() as txn:
            for name, ids in op["writes"]:
                txn.upsert(name, [packet(record_id, version) for record_id in ids])
            for name, ids in op["deletes"]:
                txn.delete(name, ids[0])


def state_of(client: VecraftClient) -> dict[str, Any]:
    """Everything that is there, read three ways that have to agree."""
    state: dict[str, Any] = {}
    for name in COLLECTIONS:
        found = {}
        for record in client.scan(name, include=("metadata", "document", "vector")):
            version = record.metadata["version"]
            vector = np.asarray(record.vector.to_numpy() if hasattr(record.vector, "to_numpy") else record.vector)
            if not np.array_equal(vector, vector_of(record.record_id, version)):
                raise SystemExit(f"{record.record_id} of {name} does not hold the vector of version {version}")
            if record.document != f"version {version} of {record.record_id}":
                raise SystemExit(f"{record.record_id} of {name} holds the document {record.document!r}")
            found[record.record_id] = version
        if client.count(name) != len(found):
            raise SystemExit(f"count says {client.count(name)}, scan found {len(found)} in {name}")
        for record_id, version in list(found.items())[:5]:
            query = QueryPacket(query_vector=vector_of(record_id, version), k=1, exact=True)
            (nearest,) = client.search(name, query)
            if nearest.record_id != record_id:
                raise SystemExit(f"a search for {record_id} of {name} found {nearest.record_id}")
        state[name] = found
    return state


def main(root: Path, seed: int, shards: int) -> None:
    """Say what is there, then write until killed."""
    rng = random.Random(seed)
    client = VecraftClient(root=str(root), shards=shards)
    for name in COLLECTIONS:
        client.create_collection(CollectionSchema(name=name, dim=DIM), if_not_exists=True)
    say({"state": state_of(client)})
    number = 0
    while True:
        number += 1
        op = operation(rng, seed * 100_000 + number)
        say({"do": op})
        carry_out(client, op)
        say({"done": number})


def say(line: dict[str, Any]) -> None:
    """Tell the parent; a full pipe must not lose anything."""
    sys.stdout.write(json.dumps(line) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
