"""§3: two shards on a real Ray of this machine, against bare Ray calls, hnswlib and the embedded database.

CPU is that of this process and of everything it started (Ray's own processes included).
"""

from __future__ import annotations

import asyncio
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, cast

import hnswlib
import numpy as np
import ray

from benchmarks.data import K
from benchmarks.measure import Row, Sample, Stopwatch, alternate, latencies
from benchmarks.search import EF_CONSTRUCTION, M, fill, tune_client
from benchmarks.writes import BATCH, disk_folder, payload_bytes, schema, upsert_batch
from examples.wordnet import WordNet
from vecraft_data_model import DataPacket, QueryPacket
from vecraft_data_model.placement import initial_map
from vecraft_db.client.async_client import AsyncVecraftClient
from vecraft_db.client.vecraft_client import VecraftClient

SHARDS = 2
IN_FLIGHT = 64
SEARCHES = 200
LOAD_SECONDS = 3.0


class Empty:
    """An actor that does nothing: what any call costs. Threaded, as the shards are."""

    def nothing(self, data: bytes) -> bytes:
        """Answer at once."""
        return data


class Relay:
    """An asynchronous actor that asks two empty ones: a hop more."""

    def __init__(self, targets: list[Any]) -> None:
        self._targets = targets

    async def nothing(self, data: bytes) -> list[bytes]:
        """Ask both at once."""
        return list(await asyncio.gather(*(target.nothing.remote(data) for target in self._targets)))


def measure(data: WordNet, rounds: int) -> Iterator[Row]:
    """Yield the rows of this section."""
    with tempfile.TemporaryDirectory(prefix="data-", dir=_base()) as folder:
        root = Path(folder) / "cluster"
        with VecraftClient(address="local", root=root, shards=SHARDS, timeout=60.0) as client:
            fill(client, data)
            tune_client(data, client)
            _settle(client)
            name = str(client.cluster_info()["cluster"])
            remote_class = cast(Any, ray).remote
            actors = [remote_class(num_cpus=0, max_concurrency=16)(Empty).remote() for _ in range(SHARDS)]
            relay = remote_class(num_cpus=0)(Relay).remote(actors)
            queries = [QueryPacket(query_vector=query, k=K, include=()) for query in data.queries[:100]]
            question = data.queries[0].tobytes()

            def two_calls(_: int) -> None:
                ray.get([actor.nothing.remote(question) for actor in actors])

            with VecraftClient(address="auto", cluster=name, timeout=60.0, data_plane="actor") as by_calls:
                yield from _search_latency(client, by_calls, queries, two_calls, rounds)
            with VecraftClient(address="auto", cluster=name, timeout=60.0, via_router_actor=True) as remote:
                yield _relayed_latency(remote, queries, lambda _: ray.get(relay.nothing.remote(question)), rounds)
            searches, search_on = _throughput(name, data, rounds)
            yield searches
            yield _batches(client, data, rounds)
            yield _small_transactions(client, data, two_calls, rounds)
            _settle(client)
            yield _mixed(client, name, data, rounds, search_on)


def _settle(client: VecraftClient, seconds: float = 60.0) -> None:
    """Have done in the background what earlier writes left to do there: it takes as much time as many searches."""
    client.checkpoint(compact=True, index=True, timeout=600)
    end = time.monotonic() + seconds
    while client.describe_collection("wordnet").measured_recall is None and time.monotonic() < end:
        time.sleep(0.2)


def _base() -> Path:
    base = Path("benchmarks/results")
    base.mkdir(parents=True, exist_ok=True)
    return base


def _search_latency(
    client: VecraftClient,
    by_calls: VecraftClient,
    queries: list[QueryPacket],
    two_calls: Callable[[int], None],
    rounds: int,
) -> Iterator[Row]:
    for key, how, bar, target in (
        ("3a", "actor calls", 1.6, by_calls),
        ("3a′", "the shards' sockets", 0.5, client),
    ):
        yield alternate(
            Row(key, f"search over 2 shards, router in this process, {how}, p50", "ms", "low", bar),
            rounds,
            lambda target=target: latencies(  # type: ignore[misc]
                lambda i: target.search("wordnet", queries[i]), len(queries), family=True
            ),
            lambda: latencies(two_calls, len(queries), family=True),
        )


def _relayed_latency(
    client: VecraftClient, queries: list[QueryPacket], relayed: Callable[[int], Any], rounds: int
) -> Row:
    row = Row("3a·actor", "the same through the router actor", "ms", "low", 2.2)
    return alternate(
        row,
        rounds,
        lambda: latencies(lambda i: client.search("wordnet", queries[i]), len(queries), family=True),
        lambda: latencies(relayed, len(queries), family=True),
    )


# ------------------------------------------------------------------------------------------------- many at once


async def _keep_busy(client: AsyncVecraftClient, act: Callable[[int], Any], seconds: float) -> tuple[int, list[float]]:
    """Keep 64 operations in flight for so long; return how many were done and each one's seconds."""
    walls: list[float] = []
    end = time.perf_counter() + seconds

    async def one(worker: int) -> None:
        number = worker
        while time.perf_counter() < end:
            began = time.perf_counter()
            await act(number)
            walls.append(time.perf_counter() - began)
            number += IN_FLIGHT

    await asyncio.gather(*(one(worker) for worker in range(IN_FLIGHT)))
    return len(walls), walls


def _loaded(cluster: str, act: Callable[[AsyncVecraftClient, int], Any]) -> tuple[Sample, list[float]]:
    """Measure operations per second with 64 in flight, after a short warm-up."""

    async def run() -> tuple[Sample, list[float]]:
        async with await AsyncVecraftClient.open(address="auto", cluster=cluster, timeout=60.0) as client:
            await _keep_busy(client, lambda number: act(client, number), 0.5)
            watch = Stopwatch(family=True)
            done, walls = await _keep_busy(client, lambda number: act(client, number), LOAD_SECONDS)
            wall, cpu = watch.read()
            return Sample(done / wall, cpu / done), walls

    return asyncio.run(run())


def _split_indexes(data: WordNet, depth: int) -> list[hnswlib.Index]:
    """Raw indexes over the rows of each shard."""
    owner = np.array([initial_map(SHARDS).shard_of(record_id) for record_id in data.ids])
    indexes = []
    for shard in range(SHARDS):
        rows = np.flatnonzero(owner == shard)
        index = hnswlib.Index(space="cosine", dim=data.vectors.shape[1])
        index.init_index(max_elements=len(rows), M=M, ef_construction=EF_CONSTRUCTION)
        index.add_items(data.vectors[rows], rows)
        index.set_ef(depth)
        indexes.append(index)
    return indexes


def _throughput(cluster: str, data: WordNet, rounds: int) -> tuple[Row, Callable[[], Sample]]:
    """§3b: searches per second, and how they were measured; the reference runs both halves at once, a thread each."""
    with VecraftClient(address="auto", cluster=cluster, timeout=60.0) as client:
        depth = int(client.describe_collection("wordnet").ef)
    indexes = _split_indexes(data, depth)
    queries = [QueryPacket(query_vector=query, k=K, include=()) for query in data.queries]
    many = np.tile(data.queries, (4, 1))

    def reference() -> Sample:
        with ThreadPoolExecutor(SHARDS) as pool:
            watch = Stopwatch()
            answers = list(pool.map(lambda index: index.knn_query(many, K, num_threads=1), indexes))
            distances = np.concatenate([answer[1] for answer in answers], axis=1)
            np.sort(distances, axis=1)[:, :K]
            wall, cpu = watch.read()
        return Sample(len(many) / wall, cpu / len(many))

    def ours() -> Sample:
        return _loaded(cluster, lambda client, number: client.search("wordnet", queries[number % len(queries)]))[0]

    row = Row("3b", f"searches with {IN_FLIGHT} in flight, 2 shards", "searches/s", "high", 0.6, extra={"ef": depth})
    return alternate(row, rounds, ours, reference), ours


def _mixed(client: VecraftClient, cluster: str, data: WordNet, rounds: int, searches: Callable[[], Sample]) -> Row:
    """§3e: 90% searches, 10% durable upserts, against searches alone: ours of 3b, measured again in turn.

    The old versions that the upserts leave stay within the history that is kept, so these searches are slower than
    those of row 3b, which met none: the share of that row is told beside.
    """
    queries = [QueryPacket(query_vector=query, k=K, include=()) for query in data.queries]
    tails: list[float] = []

    async def act(client: AsyncVecraftClient, number: int) -> None:
        if number % 10:
            await client.search("wordnet", queries[number % len(queries)])
        else:
            row = number % len(data.ids)
            await client.upsert("wordnet", [DataPacket(data.ids[row], data.vectors[row], data.metadatas[row])])

    def ours() -> Sample:
        sample, walls = _loaded(cluster, act)
        tails.append(float(np.quantile(walls, 0.99) / np.quantile(walls, 0.5)))
        client.checkpoint(compact=True, index=True, timeout=600)  # what was written must not slow the other side down
        return sample

    row = Row("3e", f"{IN_FLIGHT} in flight, 90% searches, 10% durable upserts", "operations/s", "high", 0.5)
    alternate(row, rounds, ours, searches)
    row.extra = {"p99_over_p50": statistics.median(tails), "p99_over_p50_at_most": 5.0, "reference": "3b, ours"}
    return row


# ------------------------------------------------------------------------------------------------------- writes


def _batches(client: VecraftClient, data: WordNet, rounds: int) -> Row:
    """§3c: atomic upserts of 1,000 records over both shards, against the embedded database."""
    starts = list(range(0, len(data.ids) - BATCH + 1, BATCH))[:5]

    def run(target: VecraftClient, family: bool) -> Sample:
        watch = Stopwatch(family)
        records = sum(upsert_batch(target, data, start) for start in starts)
        wall, cpu = watch.read()
        if family:  # what these writes left to be indexed must not slow down what is measured next
            target.checkpoint(index=True, timeout=600)
        return Sample(records / wall, cpu / records)

    def embedded() -> Sample:
        with disk_folder() as folder, VecraftClient(root=folder / "db") as local:
            local.create_collection(schema(data))
            return run(local, family=False)

    row = Row("3c", "atomic upsert of 1,000 over 2 shards, durable", "records/s", "high", 0.5)
    return alternate(row, rounds, lambda: run(client, family=True), embedded)


def _small_transactions(client: VecraftClient, data: WordNet, two_calls: Callable[[int], None], rounds: int) -> Row:
    """§3d: two records on two shards, against two rounds of bare calls and two flushes."""
    owners = initial_map(SHARDS)
    halves = [[i for i, record_id in enumerate(data.ids) if owners.shard_of(record_id) == s] for s in range(SHARDS)]
    pairs = [
        [DataPacket(data.ids[i], data.vectors[i], data.metadatas[i]) for i in pair]
        for pair in zip(halves[0][:SEARCHES], halves[1][:SEARCHES], strict=True)
    ]
    blob = payload_bytes(data, 0, 1)

    def reference() -> Sample:
        with disk_folder() as folder, open(folder / "log", "wb", buffering=0) as file:

            def round_trips(i: int) -> None:
                for _ in range(2):
                    two_calls(i)
                    file.write(blob)
                    os.fsync(file.fileno())

            return latencies(round_trips, len(pairs), family=True)

    row = Row("3d", "transaction of 2 records on 2 shards, p50", "ms", "low", 1.6)
    alternate(
        row,
        rounds,
        lambda: latencies(lambda i: client.upsert("wordnet", pairs[i]), len(pairs), family=True),
        reference,
    )
    client.checkpoint(index=True, timeout=600)
    return row
