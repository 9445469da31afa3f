"""§5: how cost, memory, disk and the first answer grow with the number of rows.

Clustered vectors of 128 dimensions, made from a seed, 10,000 and 100,000 of them (``VECRAFT_BENCH_ROWS=1000000`` for
more), against hnswlib on the same rows at the same depth. What a process needs is measured in processes of their own
(:mod:`benchmarks.growth_probe`), which open what this one has written.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import hnswlib
import numpy as np
import numpy.typing as npt

from benchmarks.data import K
from benchmarks.measure import Row, Sample, Stopwatch, alternate, anonymous_mb, latencies
from benchmarks.search import EF_CONSTRUCTION, M
from benchmarks.writes import disk_folder
from examples.wordnet import WordNet
from vecraft_data_model import CollectionSchema, QueryPacket
from vecraft_db.client.vecraft_client import VecraftClient

Matrix = npt.NDArray[np.float32]

DIM = 128
SEED = 20
SIZES = (10_000, 100_000)
QUERIES = 200
DEPTH = 64
BATCH = 1000
FIRST_ANSWER_S = 1.0
SEARCH_EVERY_S = 0.5
RECALL_QUERIES = 50
COLLECTION = "growth"


def rows_and_queries(rows: int, queries: int = QUERIES) -> tuple[Matrix, Matrix]:
    """Return clustered vectors and queries of the same kind, always the same ones."""
    rng = np.random.default_rng(SEED)
    centres = rng.normal(size=(max(10, rows // 100), DIM))
    which = rng.integers(0, len(centres), rows + queries)
    every = (centres[which] + 0.6 * rng.normal(size=(rows + queries, DIM))).astype(np.float32)
    return every[:rows], every[rows:]


def measure(data: WordNet, rounds: int) -> Iterator[Row]:
    """Yield the rows of this section; ``data`` is not used."""
    largest = int(os.environ.get("VECRAFT_BENCH_ROWS", str(SIZES[-1])))
    for size in sorted({*(size for size in SIZES if size < largest), largest}):
        yield from _at(size, rounds, last=size == largest)


def _at(size: int, rounds: int, *, last: bool) -> Iterator[Row]:
    vectors, queries = rows_and_queries(size)
    with disk_folder() as folder:
        root, index_file = folder / "db", folder / "raw.hnsw"
        watch = Stopwatch()
        reference = _build_reference(vectors)
        built = watch.read()
        reference.save_index(str(index_file))
        filled, payload = _write(root, vectors, queries)
        wall, cpu = built
        filled.reference.append(Sample(wall, cpu / size))
        yield filled
        with VecraftClient(root=root) as client:
            row = _cost(client, reference, queries, size, rounds)
            row.extra["recall"] = _recall(client, queries)
            yield row
        if last:
            yield _memory(root, index_file, size, rounds)
            yield _disk(root, vectors, payload)
            yield _first_answer(root, index_file, size, rounds)


def _build_reference(vectors: Matrix) -> hnswlib.Index:
    index = hnswlib.Index(space="l2", dim=DIM)
    index.init_index(max_elements=len(vectors), M=M, ef_construction=EF_CONSTRUCTION)
    index.add_items(vectors, np.arange(len(vectors)))
    index.set_ef(DEPTH)
    return index


def metadata_of(numbers: range) -> list[dict[str, Any]]:
    """Return the metadata of rows by their numbers."""
    return [{"number": i, "lang": "de" if i % 3 else "en", "topic": f"t{i % 100}"} for i in numbers]


def _write(root: Path, vectors: Matrix, queries: Matrix) -> tuple[Row, int]:
    """Fill a root, indexed and checkpointed.

    Returns:
        What that took until all was indexed, with searches on the way; and the bytes of all payloads as JSON.
    """
    size, payload = len(vectors), 0
    row = Row(f"5f·{size // 1000}k", f"{size:,} rows written, durably, and indexed", "s", "low", None)
    waiting: list[float] = []
    watch = Stopwatch()
    with VecraftClient(root=root) as client:
        client.create_collection(
            CollectionSchema(name=COLLECTION, dim=DIM, M=M, ef_construction=EF_CONSTRUCTION)
        )
        for first in range(0, size, BATCH):
            part = vectors[first : first + BATCH]
            metadatas = metadata_of(range(first, first + len(part)))
            payload += sum(len(json.dumps(metadata)) for metadata in metadatas)
            ids = [f"row-{i:08}" for i in range(first, first + len(part))]
            client.upsert(COLLECTION, ids=ids, vectors=part, metadatas=metadatas)
        row.extra = {"written_after_s": watch.read()[0]}
        while client.describe_collection(COLLECTION).tail_rows:
            began = time.perf_counter()
            client.search(COLLECTION, QueryPacket(query_vector=queries[len(waiting) % len(queries)], k=K, include=()))
            waiting.append(time.perf_counter() - began)
            time.sleep(SEARCH_EVERY_S)
        wall, cpu = watch.read()
        row.ours.append(Sample(wall, cpu / size))
        row.extra |= {"searches_meanwhile": len(waiting), "anonymous_mb": anonymous_mb()}
        if waiting:
            row.extra["search_p50_meanwhile_ms"] = statistics.median(waiting) * 1000
        client.checkpoint(index=True, timeout=24 * 3600)
        client.alter_collection(COLLECTION, ef=DEPTH)
    return row, payload


def _recall(client: VecraftClient, queries: Matrix) -> float:
    """Recall@10 of the searches, against exact ones of the same database."""
    right = 0
    for query in queries[:RECALL_QUERIES]:
        exact = client.search(COLLECTION, QueryPacket(query_vector=query, k=K, exact=True, include=()))
        found = client.search(COLLECTION, QueryPacket(query_vector=query, k=K, include=()))
        right += sum(hit.distance <= exact[-1].distance * (1 + 1e-5) for hit in found)
    return right / (K * RECALL_QUERIES)


def _cost(client: VecraftClient, reference: hnswlib.Index, queries: Matrix, size: int, rounds: int) -> Row:
    packets = [QueryPacket(query_vector=query, k=K, include=()) for query in queries]
    single = [query.reshape(1, -1) for query in queries]
    row = Row(f"5a·{size // 1000}k", f"search among {size:,} rows, p50", "ms", "low", 1.25)
    row.extra = {"rows": size, "ef": DEPTH}
    return alternate(
        row,
        rounds,
        lambda: latencies(lambda i: client.search(COLLECTION, packets[i]), len(packets)),
        lambda: latencies(lambda i: reference.knn_query(single[i], K, num_threads=1), len(single)),
    )


def _memory(root: Path, index_file: Path, size: int, rounds: int) -> Row:
    """Anonymous memory that holding the rows adds to a process, pages of files not counted."""
    row = Row("5b", f"memory of {size:,} rows beyond the page cache", "MB", "low", 1.35)
    for _ in range(rounds):
        row.ours.append(Sample(_probe("database", root)["anonymous_mb"], 0.0))
        row.reference.append(Sample(_probe("index", index_file)["anonymous_mb"], 0.0))
    return row


def _disk(root: Path, vectors: Matrix, payload: int) -> Row:
    used = sum(path.stat().st_size for path in root.rglob("*") if path.is_file())
    row = Row("5c", "disk, all files, after a checkpoint", "MB", "low", 2.3)
    row.ours.append(Sample(used / 1e6, 0.0))
    row.reference.append(Sample((vectors.nbytes + payload) / 1e6, 0.0))
    return row


def _first_answer(root: Path, index_file: Path, size: int, rounds: int) -> Row:
    """From opening to the first answer, in a new process; beside it, how long only reading the index file takes."""
    row = Row("5d", f"first answer after opening {size:,} rows", "s", "low", None)
    for _ in range(rounds):
        found = _probe("database", root)
        row.ours.append(Sample(found["first_answer_s"], found["cpu_s"]))
        began = time.perf_counter()
        index_file.read_bytes()
        row.reference.append(Sample(time.perf_counter() - began, 0.0))
    row.extra = {"seconds_at_most": FIRST_ANSWER_S, "reached": row.figures[0] <= FIRST_ANSWER_S}
    return row


def _probe(what: str, path: Path) -> dict[str, float]:
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.growth_probe", what, str(path)], check=True, capture_output=True, text=True
    )
    figures: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return figures
