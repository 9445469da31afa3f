"""Builds the data directory that the damage test damages, and knows what it holds without asking it.

Run as ``python damage_root.py ROOT SHARDS crashed|clean``. It leaves the directory ``ROOT/data`` as a ``kill -9`` does
(or a clean close) and the model of what it holds as ``ROOT/model.pickle``.

What is in there: a collection of plain vectors with a saved graph, one of texts under cosine, one of JSON documents
stored as float16; records replaced and deleted, before and after the last checkpoint; a collection that was dropped;
transactions prepared and never decided, in the checkpoint and in the log; and one that its primary committed and
answered, of which the other shard only has the PREPARE.
"""

from __future__ import annotations

import os
import pickle
import signal
import sys
from copy import deepcopy
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from vecraft_data_model import CollectionSchema
from vecraft_data_model.convert import put_of_columns
from vecraft_data_model.messages import Batch, Committed, Decide, Prepare, Prepared, Transaction
from vecraft_data_model.validation import new_txn_id
from vecraft_db.client.vecraft_client import VecraftClient
from vecraft_db.config import Settings
from vecraft_router.splitting import content_hash

SCHEMAS = {
    "plain": CollectionSchema(name="plain", dim=16, ef_construction=40, M=8),
    "texts": CollectionSchema(name="texts", dim=8, metric="cosine"),
    "things": CollectionSchema(name="things", dim=12, vector_type="float16"),
}
WORDS = ["amber", "birch", "cedar", "delta", "ember", "fjord", "grove", "heron", "islet", "jetty", "knoll", "lagoon"]


@dataclass
class Record:
    """One record as it must be read back."""

    vector: np.ndarray
    metadata: dict[str, Any] | None
    document: str | dict[str, Any] | None


@dataclass
class Model:
    """What a database holds: at ``middle`` (a timestamp), and at the end."""

    shards: int
    records: dict[str, dict[str, Record]] = field(default_factory=lambda: {name: {} for name in SCHEMAS})
    middle: int = 0
    records_then: dict[str, dict[str, Record]] = field(default_factory=dict)
    aliases: dict[str, str] = field(default_factory=dict)


def settings() -> Settings:
    """Settings under which nothing happens by itself while a test looks."""
    return Settings(
        checkpoint_interval_s=3600.0,
        history_retention_s=86_400.0,
        txn_retention_s=86_400.0,
        timeout=120.0,
        index_min_rows=10,
    )


def make(name: str, number: int, version: int) -> Record:
    """A version of a record: the same numbers give the same record."""
    schema = SCHEMAS[name]
    rng = np.random.default_rng([len(name), number, version])
    vector = rng.normal(size=schema.dim).astype(schema.dtype).astype(np.float32)
    metadata: dict[str, Any] | None = {"n": number, "version": version, "colour": WORDS[number % 5]}
    document: Any = None
    if name == "texts":
        metadata = {"n": number, "tags": [WORDS[number % 7], WORDS[number % 3]], "in": {"depth": number / 4}}
        document = " ".join(WORDS[i] for i in rng.integers(0, len(WORDS), 12)) + f" v{version}"
    elif name == "things":
        metadata = None if number % 5 == 0 else {"n": number}
        document = {"kind": WORDS[number % 4], "size": number * 10 + version, "parts": {"left": version}}
    return Record(vector, metadata, document)


class Builder:
    """Writes to a database and to its model alike."""

    def __init__(self, data: Path, shards: int) -> None:
        self.client = VecraftClient(root=data, shards=shards, settings=settings())
        self.model = Model(shards)

    def upsert(self, name: str, numbers: range | list[int], version: int) -> int:
        """Write versions of records; returns the commit timestamp."""
        ids = [f"{name[0]}{number:04}" for number in numbers]
        made = [make(name, number, version) for number in numbers]
        result = self.client.upsert(
            name,
            ids=ids,
            vectors=np.stack([record.vector for record in made]),
            metadatas=[record.metadata for record in made],
            documents=[record.document for record in made],
        )
        self.model.records[name].update(zip(ids, made, strict=True))
        return result.commit_ts

    def delete(self, name: str, numbers: range | list[int]) -> int:
        """Delete records."""
        ids = [f"{name[0]}{number:04}" for number in numbers]
        result = self.client.delete_many(name, ids=ids)
        for record_id in ids:
            self.model.records[name].pop(record_id)
        return result.commit_ts

    def prepare(self, numbers: list[int], version: int, *, decide: bool) -> None:
        """Prepare a transaction over all shards; ``decide``: commit it at its primary, and tell nobody else."""
        engine: Any = self.client.engine
        txn_id, made = new_txn_id(), {f"p{number:04}": make("plain", number, version) for number in numbers}
        ids = list(made)
        parts = engine.state.cluster_map.split(ids)
        assert len(parts) == self.model.shards, "these ids do not touch every shard"
        metadatas = [record.metadata for record in made.values()]
        whole = put_of_columns("plain", ids, np.stack([record.vector for record in made.values()]), metadatas)
        votes = []
        for shard, places in parts.items():
            mine = [ids[i] for i in places]
            vectors = np.stack([made[record_id].vector for record_id in mine])
            put = put_of_columns("plain", mine, vectors, [made[record_id].metadata for record_id in mine])
            txn = Transaction(txn_id, content_hash([whole]), [put])
            reply = engine.hosts[shard].execute(Batch([Prepare(txn, 0, sorted(parts))]), 10.0)
            assert isinstance(reply.responses[0], Prepared), reply.responses[0]
            votes.append(reply.responses[0].prepare_ts)
        if decide:
            reply = engine.hosts[0].execute(Batch([Decide(txn_id, max(votes))]), 10.0)
            assert isinstance(reply.responses[0], Committed), reply.responses[0]
            self.model.records["plain"].update(made)


def build(data: Path, shards: int) -> Builder:
    """Fill a new directory; the client is left open."""
    builder = Builder(data, shards)
    client, model = builder.client, builder.model
    for schema in SCHEMAS.values():
        client.create_collection(schema)
    client.create_collection(CollectionSchema(name="dropped", dim=4))
    client.set_alias("words", "texts")
    model.aliases = {"words": "texts"}
    builder.upsert("plain", range(1500), 1)
    builder.upsert("texts", range(160), 1)
    builder.upsert("things", range(90), 1)
    builder.upsert("texts", range(10, 25), 2)
    builder.delete("plain", range(0, 60, 3))
    client.checkpoint(index=True)
    builder.upsert("plain", range(100, 140), 2)
    model.middle = builder.delete("things", [3, 4, 5])
    model.records_then = deepcopy(model.records)
    builder.prepare([2000, 2001, 2002, 2003, 700], 5, decide=False)
    builder.delete("texts", [12, 90, 91])
    client.drop_collection("dropped")
    client.checkpoint(index=True)
    builder.prepare([2010, 2011, 2012, 2013, 800], 5, decide=False)
    builder.upsert("plain", range(1490, 1530), 3)
    builder.upsert("texts", [30, 31, 160, 161], 3)
    builder.upsert("things", range(80, 100), 3)
    builder.delete("plain", [1, 2, 1495, 130])
    builder.prepare([2020, 2021, 2022, 2023, 900], 6, decide=True)
    builder.delete("things", [10, 95])
    return builder


def main(root: Path, shards: int, end: str) -> None:
    """Build, write the model down, and end as asked."""
    root.mkdir(parents=True, exist_ok=True)
    builder = build(root / "data", shards)
    (root / "model.pickle").write_bytes(pickle.dumps(builder.model))
    if end == "clean":
        builder.client.close()
    else:
        os.kill(os.getpid(), signal.SIGKILL)


if __name__ == "__main__":
    # Imported by its name, so that what is pickled can be found again by whoever reads it.
    import damage_root

    from vecraft_db import embedded
    from vecraft_shard.config import ShardConfig

    _default = embedded.shard_config

    def _patient(given: Settings) -> ShardConfig:
        import dataclasses

        return dataclasses.replace(_default(given), resolve_after_ms=10**9)  # nobody decides what is left undecided

    embedded.shard_config = _patient
    damage_root.main(Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3])
