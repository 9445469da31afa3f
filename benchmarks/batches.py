"""§B: many queries in one call: on all cores, with one filter, and with vectors stored as float16.

The reference of the first is hnswlib with as many threads on the same matrix; of the second, the same queries one by
one; of the last, the same collection in float32, whose sizes on disk are compared as well.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

import numpy as np

from benchmarks.data import K, recall, tenth_distances
from benchmarks.filters import bar_for, choose_filters
from benchmarks.measure import Row, Sample, alternate, latencies, per_operation
from benchmarks.search import MANY, build_reference, fill, tune_client, tune_reference
from benchmarks.writes import disk_folder
from examples.wordnet import WordNet
from vecraft_data_model import QueryPacket
from vecraft_db.client.vecraft_client import VecraftClient


def measure(data: WordNet, rounds: int) -> Iterator[Row]:
    """Yield the rows of this section."""
    with VecraftClient(root=":memory:") as client:
        fill(client, data)
        tune_client(data, client)
        yield _threads(client, data, rounds)
        for each in choose_filters(data, bar_for):
            yield _one_filter(client, data, rounds, each.name, each.where)
    yield from _half(data, rounds)


def _threads(client: VecraftClient, data: WordNet, rounds: int) -> Row:
    index = build_reference(data)
    tune_reference(data, index)
    many = np.tile(data.queries, (MANY // len(data.queries) + 1, 1))[:MANY]
    threads = os.cpu_count() or 1
    return alternate(
        Row("B1", f"search_many, {MANY:,} queries, against hnswlib on {threads} threads", "queries/s", "high", None),
        rounds,
        lambda: per_operation(lambda: client.search_many("wordnet", many, k=K, include=()), MANY),
        lambda: per_operation(lambda: index.knn_query(many, K, num_threads=threads), MANY),
    )


def _one_filter(client: VecraftClient, data: WordNet, rounds: int, name: str, where: dict[str, Any]) -> Row:
    packets = [QueryPacket(query, K, where=where, include=()) for query in data.queries]

    def together() -> Sample:
        return per_operation(
            lambda: client.search_many("wordnet", data.queries, k=K, where=where, include=()), len(packets)
        )

    return alternate(
        Row(f"B2·{name.split()[0]}", f"search_many, one filter: {name}, against one by one", "queries/s", "high", None),
        rounds,
        together,
        lambda: per_operation(lambda: [client.search("wordnet", packet) for packet in packets], len(packets)),
    )


def _half(data: WordNet, rounds: int) -> Iterator[Row]:
    """Searches in float16 and in float32, each at the depth that reaches the target, and what the files take."""
    tenth = tenth_distances(data)
    queries = [QueryPacket(query, K, include=()) for query in data.queries]
    with (
        disk_folder() as folder,
        VecraftClient(root=folder / "float16") as half,
        VecraftClient(root=folder / "float32") as whole,
    ):
        sizes, recalls = [], []
        for client, name in ((half, "float16"), (whole, "float32")):
            fill(client, data, vector_type=name)
            tune_client(data, client)
            sizes.append(sum(file.stat().st_size for file in (folder / name).rglob("vectors.*")))
            answers = client.search_many("wordnet", data.queries, k=K, include=())
            recalls.append(recall(data, [[hit.distance for hit in hits] for hits in answers], tenth))
        row = Row("B3", "search in float16, p50, against float32", "ms", "low", None)
        row.extra = {"vector_bytes": sizes, "recalls": recalls}
        yield alternate(
            row,
            rounds,
            lambda: latencies(lambda i: half.search("wordnet", queries[i]), len(queries)),
            lambda: latencies(lambda i: whole.search("wordnet", queries[i]), len(queries)),
        )
