"""What shard tests need: a shard on a memory disk that survives being opened again, and short ways to say requests."""

from __future__ import annotations

import hashlib
import time
import uuid
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from vecraft_data_model.convert import packets_of_rows
from vecraft_data_model.messages import (
    CommitOne,
    Count,
    CreateCollection,
    Delete,
    Get,
    Mutation,
    Prepare,
    Put,
    Request,
    Response,
    Scan,
    Search,
    Transaction,
)
from vecraft_data_model.payload import encode_payloads
from vecraft_data_model.scan_options import ScanOptions
from vecraft_data_model.schema import CollectionSchema
from vecraft_data_model.search_options import SearchOptions
from vecraft_shard.config import ShardConfig
from vecraft_shard.disk import OsDisk
from vecraft_shard.engine import Shard

DIM = 4


class Bench:
    """One shard in a directory, with a clock that the test moves."""

    def __init__(self, folder: Path, shard_id: int = 0, **config: Any) -> None:
        self.folder = folder
        self.shard_id = shard_id
        self.now_ms = 1_700_000_000_000
        self.config = ShardConfig(**config)
        self.shard = self._open()
        self._txn = 0

    def _open(self) -> Shard:
        return Shard.open(OsDisk(self.folder), self.shard_id, self.now_ms, self.config, stopwatch=time.perf_counter)

    def crash(self) -> None:
        """Open again from what is on disk, without a checkpoint."""
        self.shard.abandon()
        self.shard = self._open()

    def reopen(self) -> None:
        """Close cleanly and open again."""
        self.shard.close(self.now_ms)
        self.shard = self._open()

    def pass_time(self, ms: int) -> None:
        """Let physical time pass."""
        self.now_ms += ms

    def ask(self, request: Request) -> Response:
        """Execute one request."""
        return self.shard.execute([request], self.now_ms)[0]

    def batch(self, *requests: Request) -> list[Response]:
        """Execute several requests as one batch."""
        return self.shard.execute(list(requests), self.now_ms)

    def txn(self, *mutations: Mutation, txn_id: str | None = None, **options: Any) -> Transaction:
        """A transaction with an id of its own."""
        self._txn += 1
        content = hashlib.sha256(repr([type(m).__name__ for m in mutations]).encode()).digest()
        return Transaction(txn_id or f"txn-{self.shard_id}-{self._txn}", content, list(mutations), **options)

    def commit(self, *mutations: Mutation, **options: Any) -> Response:
        """Commit on this shard alone."""
        return self.ask(CommitOne(self.txn(*mutations, **options)))

    def prepare(self, *mutations: Mutation, txn_id: str, primary: int, participants: Sequence[int]) -> Response:
        """First phase."""
        return self.ask(Prepare(self.txn(*mutations, txn_id=txn_id), primary, list(participants)))

    def get(self, *ids: str, snapshot: int = 0, collection: str = "c") -> dict[str, Any]:
        """Metadata by id of the records that exist."""
        reply: Any = self.ask(Get(collection=collection, ids=list(ids), snapshot=snapshot))
        return {packet.record_id: packet.metadata for packet in packets_of_rows(reply.rows)}

    def search(self, vector: Sequence[float], k: int = 3, snapshot: int = 0, **options: Any) -> list[str]:
        """Ids of the nearest records."""
        query = np.array([vector], np.float32)
        reply: Any = self.ask(
            Search(collection="c", queries=query, snapshot=snapshot, options=SearchOptions(k=k, **options))
        )
        return list(reply.hits[0].ids)

    def count(self, **options: Any) -> int:
        """Number of records."""
        reply: Any = self.ask(Count(collection="c", **options))
        return int(reply.count)

    def scan(self, limit: int = 1000, **options: Any) -> list[str]:
        """Ids in order."""
        reply: Any = self.ask(Scan(collection="c", options=ScanOptions(limit=limit, **options)))
        return list(reply.rows.ids)


def create(name: str = "c", metric: str = "l2", dim: int = DIM, **options: Any) -> CreateCollection:
    """A catalog mutation that creates a collection."""
    schema = CollectionSchema(name=name, dim=dim, metric=metric, **options)
    return CreateCollection(schema, uuid.uuid4().hex[:16])


def put(*ids: str, value: Any = 0, collection: str = "c", dim: int = DIM, **options: Any) -> Put:
    """Records whose vector is made from their id, and whose metadata is ``{"v": value}``."""
    vectors = np.array([vector_of(record_id, dim) for record_id in ids], np.float32)
    payloads = encode_payloads(list(ids), vectors, [{"v": value}] * len(ids), [f"text {i}" for i in ids], "sha256")
    return Put(collection, list(ids), vectors, payloads, **options)


def vector_of(record_id: str, dim: int = DIM) -> list[float]:
    """A vector that is the same for the same id."""
    rng = np.random.default_rng(list(record_id.encode()))
    return [float(x) for x in rng.normal(size=dim)]


def delete(*ids: str, collection: str = "c", **options: Any) -> Delete:
    """Delete records."""
    return Delete(collection, list(ids), **options)
