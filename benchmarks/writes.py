"""§2: durable embedded writes against ``write`` + ``fsync`` of the same bytes, and indexing against hnswlib.

The directory for the files is on the disk of the current directory, never on a tmpfs, where a flush costs nothing.
"""

from __future__ import annotations

import os
import statistics
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from benchmarks.measure import Row, Sample, Stopwatch, alternate, latencies
from benchmarks.search import EF_CONSTRUCTION, M, build_reference
from examples.wordnet import WordNet
from vecraft_data_model import CollectionSchema, DataPacket, QueryPacket
from vecraft_data_model.payload import encode_payloads
from vecraft_db.client.vecraft_client import VecraftClient

BATCH = 1000
SINGLE_INSERTS = 200


@contextmanager
def disk_folder() -> Iterator[Path]:
    """A directory for one round, removed afterwards."""
    base = Path("benchmarks/results")
    base.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="data-", dir=base) as folder:
        yield Path(folder)


def schema(data: WordNet) -> CollectionSchema:
    """The collection that is written to."""
    return CollectionSchema(
        name="wordnet", dim=data.vectors.shape[1], metric="cosine", M=M, ef_construction=EF_CONSTRUCTION
    )


def upsert_batch(client: VecraftClient, data: WordNet, start: int) -> int:
    """Write one batch; returns how many records."""
    part = slice(start, start + BATCH)
    return client.upsert(
        "wordnet",
        ids=data.ids[part],
        vectors=data.vectors[part],
        metadatas=data.metadatas[part],
        documents=data.glosses[part],
    ).count


def payload_bytes(data: WordNet, start: int, count: int) -> bytes:
    """The bytes that those records are made of: payloads and float32 vectors."""
    part = slice(start, start + count)
    payloads = encode_payloads(data.ids[part], data.vectors[part], data.metadatas[part], data.glosses[part], "sha256")
    return b"".join(payloads) + data.vectors[part].tobytes()


def measure(data: WordNet, rounds: int) -> Iterator[Row]:
    """Yield the rows of this section."""
    yield batches(data, rounds)
    yield indexing(data, rounds)
    yield singles(data, rounds)
    yield visibility(data)


def batches(data: WordNet, rounds: int) -> Row:
    """§2a: acknowledged records per second in batches of 1,000, each flushed before its answer."""
    starts = list(range(0, len(data.ids) - BATCH + 1, BATCH))[:10]
    blobs = [payload_bytes(data, start, BATCH) for start in starts]

    def ours() -> Sample:
        with disk_folder() as folder, VecraftClient(root=folder / "db") as client:
            client.create_collection(schema(data))
            watch = Stopwatch()
            records = sum(upsert_batch(client, data, start) for start in starts)
            wall, cpu = watch.read()
        return Sample(records / wall, cpu / records)

    def reference() -> Sample:
        with disk_folder() as folder, open(folder / "log", "wb", buffering=0) as file:
            watch = Stopwatch()
            for blob in blobs:
                file.write(blob)
                os.fsync(file.fileno())
            wall, cpu = watch.read()
        return Sample(BATCH * len(starts) / wall, cpu / (BATCH * len(starts)))

    row = alternate(
        Row("2a", "upsert in batches of 1,000, fsync before each answer", "records/s", "high", 0.3),
        rounds, ours, reference,
    )  # fmt: skip
    row.extra["at_least_15000_per_s"] = row.figures[0] >= 15_000
    return row


def indexing(data: WordNet, rounds: int) -> Row:
    """§2b: from the first write until every row is in the graph, against building the raw index."""

    def ours() -> Sample:
        with disk_folder() as folder, VecraftClient(root=folder / "db") as client:
            client.create_collection(schema(data))
            watch = Stopwatch()
            for start in range(0, len(data.ids), BATCH):
                upsert_batch(client, data, start)
            while client.describe_collection("wordnet").tail_rows:
                time.sleep(0.02)
            wall, cpu = watch.read()
        return Sample(wall, cpu / len(data.ids))

    def reference() -> Sample:
        watch = Stopwatch()
        build_reference(data)
        wall, cpu = watch.read()
        return Sample(wall, cpu / len(data.ids))

    row = Row("2b", "until everything written is indexed", "s", "low", 1.15)
    for _ in range(rounds):
        row.ours.append(ours())
        row.reference.append(reference())
    row.extra["cpu_ratio"] = statistics.median(a.cpu / b.cpu for a, b in zip(row.ours, row.reference, strict=True))
    row.extra["cpu_ratio_at_most"] = 1.2
    return row


def singles(data: WordNet, rounds: int) -> Row:
    """§2c: one durable insert, against writing and flushing its bytes."""
    packets = [
        DataPacket(data.ids[i], data.vectors[i], data.metadatas[i], data.glosses[i]) for i in range(SINGLE_INSERTS)
    ]
    blobs = [payload_bytes(data, i, 1) for i in range(SINGLE_INSERTS)]

    def ours() -> Sample:
        with disk_folder() as folder, VecraftClient(root=folder / "db") as client:
            client.create_collection(schema(data))
            return latencies(lambda i: client.insert("wordnet", packets[i]), SINGLE_INSERTS)

    def reference() -> Sample:
        with disk_folder() as folder, open(folder / "log", "wb", buffering=0) as file:

            def write(i: int) -> None:
                file.write(blobs[i])
                os.fsync(file.fileno())

            return latencies(write, SINGLE_INSERTS)

    return alternate(Row("2c", "single insert, durable, p50", "ms", "low", 4.0), rounds, ours, reference)


def visibility(data: WordNet) -> Row:
    """§2d: whether what ``upsert`` returned is counted and found at once, every time."""
    row = Row("2d", "searchable and countable the moment upsert returns", "", "low", None)
    misses = 0
    with disk_folder() as folder, VecraftClient(root=folder / "db") as client:
        client.create_collection(schema(data))
        total = 0
        for start in range(0, min(len(data.ids), 10 * BATCH), BATCH):
            total += upsert_batch(client, data, start)
            last = min(start + BATCH, len(data.ids)) - 1
            (hit,) = client.search("wordnet", QueryPacket(query_vector=data.vectors[last], k=1))
            misses += client.count("wordnet") != total
            misses += hit.distance > 1e-4
    row.extra = {"batches": total // BATCH, "misses": misses, "always": misses == 0}
    return row
