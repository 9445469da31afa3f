"""§5e: searches beside ingest: how late the last hundredth is while rows are written and indexed, against peace.

Clustered vectors of 128 dimensions, made from a seed (:mod:`benchmarks.growth`). 20,000 rows are searched by one
caller, one search after the other, while 100,000 others (``VECRAFT_BENCH_ROWS``) are written, durably, in batches of
1,000, and indexed: an equal part of them in each round, and the same searches in peace before each. Once the rows go to
another collection of the same shard, which shows what indexing and writing keep others from; and once to the collection
that is searched, where every search has to scan besides what is not indexed yet.
"""

from __future__ import annotations

import os
import statistics
import threading
import time
from collections.abc import Callable, Iterator

import numpy as np

from benchmarks.data import K
from benchmarks.growth import BATCH, DEPTH, DIM, Matrix, metadata_of, rows_and_queries
from benchmarks.measure import Row, Sample
from benchmarks.search import EF_CONSTRUCTION, M
from benchmarks.writes import disk_folder
from examples.wordnet import WordNet
from vecraft_data_model import CollectionSchema, QueryPacket
from vecraft_db.client.vecraft_client import VecraftClient

ROWS, SEARCHED_ROWS = 100_000, 20_000
PEACE_SEARCHES = 5000
SEARCHED, OTHER = "searched", "other"
BAR = 4.0
POLL_S = 0.05


def measure(data: WordNet, rounds: int) -> Iterator[Row]:
    """Yield the rows of this section; ``data`` is not used."""
    ingested = int(os.environ.get("VECRAFT_BENCH_ROWS", str(ROWS)))
    searched = min(SEARCHED_ROWS, ingested)
    vectors, queries = rows_and_queries(searched + ingested)
    packets = [QueryPacket(query_vector=query, k=K, include=()) for query in queries]
    with disk_folder() as folder, VecraftClient(root=folder / "db") as client:
        for name in (SEARCHED, OTHER):
            client.create_collection(CollectionSchema(name=name, dim=DIM, M=M, ef_construction=EF_CONSTRUCTION))
            client.set_ef(name, DEPTH)
        _ingest(client, SEARCHED, vectors[:searched], 0)
        parts = np.array_split(vectors[searched:], rounds)
        elsewhere = Row("5e", f"search p99 while {ingested:,} rows are ingested elsewhere", "ms", "low", BAR)
        same = Row("5e·same", "the same, in the collection that is searched", "ms", "low", None)
        for row, collection in ((elsewhere, OTHER), (same, SEARCHED)):
            first = searched
            for part in parts:
                _round(client, row, collection, part, first, packets)
                first += len(part)
            yield row


def _round(
    client: VecraftClient, row: Row, collection: str, vectors: Matrix, first: int, packets: list[QueryPacket]
) -> None:
    """Search in peace, then beside the ingest of some rows, and enter the 99th percentiles of both."""
    peace = _search(client, packets, lambda walls: len(walls) >= PEACE_SEARCHES)
    ingest = threading.Thread(target=_ingest, args=(client, collection, vectors, first))
    began = time.perf_counter()
    ingest.start()
    busy = _search(client, packets, lambda _: not ingest.is_alive())
    ingest.join()
    row.ours.append(Sample(_p99(busy), 0.0))
    row.reference.append(Sample(_p99(peace), 0.0))
    figures = {
        "searches": len(busy), "seconds": time.perf_counter() - began,
        "p50_ms": statistics.median(busy) * 1000, "p50_in_peace_ms": statistics.median(peace) * 1000,
        "longest_ms": max(busy) * 1000, "longest_in_peace_ms": max(peace) * 1000,
    }  # fmt: skip
    row.extra.setdefault("rounds", []).append(figures)


def _search(client: VecraftClient, packets: list[QueryPacket], enough: Callable[[list[float]], bool]) -> list[float]:
    """Search one after the other until that is enough; returns how long each took, in seconds."""
    walls: list[float] = []
    while not enough(walls):
        packet = packets[len(walls) % len(packets)]
        began = time.perf_counter()
        client.search(SEARCHED, packet)
        walls.append(time.perf_counter() - began)
    return walls


def _ingest(client: VecraftClient, collection: str, vectors: Matrix, first: int) -> None:
    """Write rows, numbered from ``first``, and wait until they are indexed."""
    for start in range(0, len(vectors), BATCH):
        part = vectors[start : start + BATCH]
        numbers = range(first + start, first + start + len(part))
        ids = [f"row-{i:08}" for i in numbers]
        client.upsert(collection, ids=ids, vectors=part, metadatas=metadata_of(numbers))
    while client.describe_collection(collection).tail_rows:
        time.sleep(POLL_S)


def _p99(walls: list[float]) -> float:
    return float(np.quantile(walls, 0.99)) * 1000
