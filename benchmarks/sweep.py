"""Recall against searches per second, at many depths, as ann-benchmarks does: VecraftDB, bare indexes, other databases.

Every contender holds the same vectors, is asked the same queries one by one from Python on one thread, and is judged
against exact answers by distance, so that ties count as right. Where a contender has a depth it is swept; one without
gives a single point. Contenders that are not installed are skipped, and the report says so.

hnswlib, usearch and faiss are indexes: they hold nothing on disk and know no transactions. They are here to show what
the graph alone costs. (Aumüller, Bernhardsson, Faithfull: ANN-Benchmarks, Information Systems 87, 2020.)
"""

from __future__ import annotations

import importlib
import statistics
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import hnswlib
import numpy as np

from benchmarks.data import K, recall, tenth_distances
from benchmarks.measure import Row, Sample, alternate, per_operation
from benchmarks.search import EF_CONSTRUCTION, M, build_reference, fill, tune_reference
from examples.wordnet import WordNet
from vecraft_data_model import QueryPacket
from vecraft_db.client.vecraft_client import VecraftClient

DEPTHS = (10, 16, 24, 32, 48, 64, 96, 128, 192, 256)
RECALL_COMPARED = 0.95

Ask = Callable[[Any], Any]
"""From a query (dim,) float32 to the distances (1 − cosine) of its ten nearest."""


@dataclass(frozen=True)
class Point:
    """One contender at one depth (0: it has none): recall, and the rates of it and of the reference, round by round."""

    depth: int
    recall: float
    rates: list[Sample]
    pace: list[Sample]

    @property
    def per_second(self) -> float:
        """Searches per second on a machine that was as busy as it was on the median: by the pace of the reference."""
        shares = [own.figure / beside.figure for own, beside in zip(self.rates, self.pace, strict=True)]
        return statistics.median(shares) * statistics.median(beside.figure for beside in self.pace)


class Skipped(Exception):
    """A contender cannot take part; the message says why."""


def measure(data: WordNet, rounds: int) -> Iterator[Row]:
    """Yield a row per contender: its rate at the least depth that reaches the compared recall, against hnswlib's."""
    index = build_reference(data)
    tune_reference(data, index)
    for name, contender in CONTENDERS.items():
        try:
            curve = list(_curve(data, contender(data), rounds, lambda query: _ask_index(index, query)))
        except Skipped as reason:
            yield Row(f"sweep·{name}", f"skipped: {reason}", "", "high", None)
            continue
        point = _at_recall(curve)
        row = Row(f"sweep·{name}", f"at recall {point.recall:.3f}, depth {point.depth}", "queries/s", "high", None)
        row.ours, row.reference = point.rates, point.pace
        row.extra = {"curve": [[each.depth, each.recall, each.per_second] for each in curve]}
        yield row


def _at_recall(curve: list[Point]) -> Point:
    enough = [point for point in curve if point.recall >= RECALL_COMPARED]
    return max(enough or curve, key=lambda point: point.per_second if enough else point.recall)


def _curve(data: WordNet, contender: Iterator[tuple[int, Ask]], rounds: int, pace: Ask) -> Iterator[Point]:
    tenth, some = tenth_distances(data), data.queries[:50]

    def rate(ask: Ask) -> Sample:
        return per_operation(lambda: [ask(query) for query in some], len(some))

    for depth, ask in contender:
        answers = [ask(query) for query in data.queries]
        row = alternate(Row("", "", "", "high", None), rounds, partial(rate, ask), partial(rate, pace))
        yield Point(depth, recall(data, answers, tenth), row.ours, row.reference)


def _ask_index(index: hnswlib.Index, query: Any) -> Any:
    return index.knn_query(query.reshape(1, -1), K, num_threads=1)[1][0]


def _module(name: str, package: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise Skipped(f"{package} is not installed ({error})") from error


# --------------------------------------------------------------------------------------------------- contenders


def vecraftdb(data: WordNet) -> Iterator[tuple[int, Ask]]:
    """Embedded, ids and distances."""

    def curve() -> Iterator[tuple[int, Ask]]:
        with VecraftClient(root=":memory:") as client:
            fill(client, data)
            for depth in DEPTHS:

                def ask(query: Any, depth: int = depth) -> Any:
                    packet = QueryPacket(query_vector=query, k=K, ef=depth, include=())
                    return [hit.distance for hit in client.search("wordnet", packet)]

                yield depth, ask

    return curve()


def bare_hnswlib(data: WordNet) -> Iterator[tuple[int, Ask]]:
    """The reference."""

    def curve() -> Iterator[tuple[int, Ask]]:
        index = build_reference(data)
        for depth in DEPTHS:
            index.set_ef(depth)
            yield depth, partial(_ask_index, index)

    return curve()


def usearch(data: WordNet) -> Iterator[tuple[int, Ask]]:
    """usearch's HNSW in float32."""
    library = _module("usearch.index", "usearch")

    def curve() -> Iterator[tuple[int, Ask]]:
        for depth in DEPTHS:
            index = library.Index(
                ndim=data.vectors.shape[1], metric="cos", dtype="f32",
                connectivity=M, expansion_add=EF_CONSTRUCTION, expansion_search=depth,
            )  # fmt: skip
            index.add(np.arange(len(data.vectors)), data.vectors)
            yield depth, partial(_ask_usearch, index)

    return curve()


def _ask_usearch(index: Any, query: Any) -> Any:
    return index.search(query, K, threads=1).distances


def faiss(data: WordNet) -> Iterator[tuple[int, Ask]]:
    """faiss' HNSW over flat float32 vectors, by inner product of unit vectors."""
    library = _module("faiss", "faiss-cpu")

    def curve() -> Iterator[tuple[int, Ask]]:
        library.omp_set_num_threads(1)
        index = library.IndexHNSWFlat(data.vectors.shape[1], M, library.METRIC_INNER_PRODUCT)
        index.hnsw.efConstruction = EF_CONSTRUCTION
        index.add(data.vectors)
        for depth in DEPTHS:
            index.hnsw.efSearch = depth
            yield depth, lambda query: 1.0 - index.search(query.reshape(1, -1), K)[0][0]

    return curve()


def chroma(data: WordNet) -> Iterator[tuple[int, Ask]]:
    """Chroma, persistent, with its own default depth."""
    library = _module("chromadb", "chromadb")

    def curve() -> Iterator[tuple[int, Ask]]:
        with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
            client = library.PersistentClient(folder)
            collection = client.create_collection("c", metadata={"hnsw:space": "cosine", "hnsw:M": M})
            for first in range(0, len(data.ids), 1000):
                part = slice(first, first + 1000)
                collection.add(ids=data.ids[part], embeddings=data.vectors[part])

            def ask(query: Any) -> Any:
                found = collection.query(query_embeddings=[query], n_results=K, include=["distances"])
                return found["distances"][0]

            yield 0, ask

    return curve()


def lancedb(data: WordNet) -> Iterator[tuple[int, Ask]]:
    """LanceDB on disk, without an index: exact."""
    library = _module("lancedb", "lancedb")

    def curve() -> Iterator[tuple[int, Ask]]:
        with tempfile.TemporaryDirectory() as folder:
            rows = [
                {"id": name, "vector": vector} for name, vector in zip(data.ids, data.vectors, strict=True)
            ]
            table = library.connect(Path(folder)).create_table("t", rows)

            def ask(query: Any) -> Any:
                found = table.search(query).distance_type("cosine").select(["id", "_distance"]).limit(K).to_list()
                return [row["_distance"] for row in found]

            yield 0, ask

    return curve()


def milvus_lite(data: WordNet) -> Iterator[tuple[int, Ask]]:
    """Milvus Lite: a flat index is what it has."""
    library = _module("pymilvus", "pymilvus")
    _module("milvus_lite", "milvus-lite")

    def curve() -> Iterator[tuple[int, Ask]]:
        with tempfile.TemporaryDirectory() as folder:
            client = library.MilvusClient(f"{folder}/m.db")
            client.create_collection("c", dimension=data.vectors.shape[1], metric_type="COSINE")
            for first in range(0, len(data.ids), 1000):
                rows = data.vectors[first : first + 1000]
                client.insert("c", [{"id": first + i, "vector": row.tolist()} for i, row in enumerate(rows)])

            def ask(query: Any) -> Any:
                (hits,) = client.search("c", data=[query.tolist()], limit=K)
                return [1.0 - hit["distance"] for hit in hits]

            yield 0, ask
            client.close()

    return curve()


CONTENDERS: dict[str, Callable[[WordNet], Iterator[tuple[int, Ask]]]] = {
    "hnswlib": bare_hnswlib,
    "vecraftdb": vecraftdb,
    "usearch": usearch,
    "faiss": faiss,
    "chroma": chroma,
    "lancedb": lancedb,
    "milvus-lite": milvus_lite,
}
