"""§1: one embedded search against hnswlib on the same rows, and exact search against numpy."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import hnswlib
import numpy as np

from benchmarks.data import K, recall, tenth_distances
from benchmarks.measure import Row, Sample, alternate, latencies, per_operation
from examples.wordnet import WordNet
from vecraft_data_model import CollectionSchema, QueryPacket
from vecraft_db.client.vecraft_client import VecraftClient

M, EF_CONSTRUCTION, TARGET = 16, 200, 0.95
DEPTHS = (10, 16, 24, 32, 40, 48, 56, 64, 80, 96, 128, 192, 256)
MANY = 1000


def build_reference(data: WordNet, threads: int = 1) -> hnswlib.Index:
    """Return a raw index over all rows."""
    index = hnswlib.Index(space="cosine", dim=data.vectors.shape[1])
    index.init_index(max_elements=len(data.vectors), M=M, ef_construction=EF_CONSTRUCTION)
    index.add_items(data.vectors, np.arange(len(data.vectors)), num_threads=threads)
    return index


def fill(
    client: VecraftClient, data: WordNet, collection: str = "wordnet", vector_type: str = "float32"
) -> None:
    """Create a collection with everything in it, indexed."""
    client.create_collection(
        CollectionSchema(
            name=collection,
            dim=data.vectors.shape[1],
            vector_type=vector_type,
            metric="cosine",
            M=M,
            ef_construction=EF_CONSTRUCTION,
        )
    )
    for start in range(0, len(data.ids), 1000):
        part = slice(start, start + 1000)
        client.upsert(
            collection,
            ids=data.ids[part],
            vectors=data.vectors[part],
            metadatas=data.metadatas[part],
            documents=data.glosses[part],
        )
    client.checkpoint(index=True, timeout=600)


def least_depth(data: WordNet, distances_at: Callable[[int], Any]) -> tuple[int, float]:
    """Return the least search depth whose recall@10 reaches the target, and that recall."""
    tenth = tenth_distances(data)
    reached = 0.0
    for depth in DEPTHS:
        reached = recall(data, distances_at(depth), tenth)
        if reached >= TARGET:
            return depth, reached
    return DEPTHS[-1], reached


def tune_reference(data: WordNet, index: hnswlib.Index) -> tuple[int, float]:
    """Set the index's depth so that it reaches the target."""

    def distances_at(depth: int) -> Any:
        index.set_ef(depth)
        return index.knn_query(data.queries, K, num_threads=1)[1]

    depth, reached = least_depth(data, distances_at)
    index.set_ef(depth)
    return depth, reached


def tune_client(data: WordNet, client: VecraftClient, collection: str = "wordnet") -> tuple[int, float]:
    """Set the collection's depth likewise."""

    def distances_at(depth: int) -> Any:
        client.set_ef(collection, depth)
        answers = client.search_many(collection, data.queries, k=K, include=())
        return [[hit.distance for hit in hits] for hits in answers]

    depth, reached = least_depth(data, distances_at)
    client.set_ef(collection, depth)
    return depth, reached


def measure(data: WordNet, rounds: int) -> Iterator[Row]:
    """Yield the rows of this section."""
    index = build_reference(data)
    with VecraftClient(root=":memory:") as client:
        fill(client, data)
        depths = {
            "reference": dict(zip(("ef", "recall"), tune_reference(data, index), strict=True)),
            "ours": dict(zip(("ef", "recall"), tune_client(data, client), strict=True)),
        }
        single = [query.reshape(1, -1) for query in data.queries]

        def raw() -> Sample:
            return latencies(lambda i: index.knn_query(single[i], K, num_threads=1), len(single))

        bare = [QueryPacket(query_vector=query, k=K, include=()) for query in data.queries]
        whole = [QueryPacket(query_vector=query, k=K) for query in data.queries]

        def search_bare(i: int) -> None:
            client.search("wordnet", bare[i])

        def search_whole(i: int) -> None:
            for hit in client.search("wordnet", whole[i]):
                hit.metadata, hit.document  # noqa: B018 - decoded when first looked at

        row = Row("1a", "search, ids and distances, p50", "ms", "low", 1.25, extra=depths)
        yield alternate(row, rounds, lambda: latencies(search_bare, len(bare)), raw)
        row = Row("1b", "the same with metadata and document of all hits", "ms", "low", 1.8)
        yield alternate(row, rounds, lambda: latencies(search_whole, len(whole)), raw)

        many = np.tile(data.queries, (MANY // len(data.queries) + 1, 1))[:MANY]
        row = Row("1c", "search_many, 1,000 queries", "queries/s", "high", 0.9)
        yield alternate(
            row,
            rounds,
            lambda: per_operation(lambda: client.search_many("wordnet", many, k=K, include=()), MANY),
            lambda: per_operation(lambda: index.knn_query(many, K, num_threads=1), MANY),
        )
        for threads in (2, 4, 8):
            yield _threaded(
                threads, rounds, search_bare, lambda i: index.knn_query(single[i], K, num_threads=1), len(bare)
            )
        yield from _exact(client, data, rounds)


def _threaded(
    threads: int, rounds: int, ours: Callable[[int], Any], reference: Callable[[int], Any], count: int
) -> Row:
    """Several threads calling the same thing as fast as they can."""
    work = [number % count for number in range(max(400, count))]

    def run(call: Callable[[int], Any]) -> Sample:
        with ThreadPoolExecutor(threads) as pool:
            list(pool.map(call, range(threads)))  # the threads are there before the clock starts

            def all_shares() -> None:
                shares = [pool.submit(_loop, call, work[i::threads]) for i in range(threads)]
                for share in shares:
                    share.result()

            return per_operation(all_shares, len(work))

    row = Row(f"1d·{threads}", f"{threads} threads calling search", "queries/s", "high", 0.8)
    return alternate(row, rounds, lambda: run(ours), lambda: run(reference))


def _loop(call: Callable[[int], Any], numbers: list[int]) -> None:
    for number in numbers:
        call(number)


def _exact(client: VecraftClient, data: WordNet, rounds: int) -> Iterator[Row]:
    """Exact search against one matrix product and a partial sort."""
    some = data.queries[:20]
    exact = [QueryPacket(query_vector=query, k=K, exact=True, include=()) for query in some]

    def numpy_of(queries: Any) -> Any:
        distances = 1.0 - queries @ data.vectors.T
        nearest = np.argpartition(distances, K, axis=1)[:, :K]
        order = np.argsort(np.take_along_axis(distances, nearest, axis=1), axis=1)
        return np.take_along_axis(nearest, order, axis=1)

    def throughput(run: Callable[[], object], operations: int) -> Sample:
        began = time.perf_counter()
        repeats = 0
        cpu = time.process_time()
        while repeats == 0 or time.perf_counter() - began < 0.2:
            run()
            repeats += 1
        wall = time.perf_counter() - began
        return Sample(operations * repeats / wall, (time.process_time() - cpu) / (operations * repeats))

    row = Row("1e·1", "exact=True, one query at a time", "queries/s", "high", 0.8)
    yield alternate(
        row,
        rounds,
        lambda: throughput(lambda: [client.search("wordnet", query) for query in exact], len(some)),
        lambda: throughput(lambda: [numpy_of(query.reshape(1, -1)) for query in some], len(some)),
    )
    row = Row("1e·200", f"exact=True, {len(data.queries)} queries at once", "queries/s", "high", 0.8)
    yield alternate(
        row,
        rounds,
        lambda: throughput(
            lambda: client.search_many("wordnet", data.queries, k=K, exact=True, include=()), len(data.queries)
        ),
        lambda: throughput(lambda: numpy_of(data.queries), len(data.queries)),
    )
