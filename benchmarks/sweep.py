"""Recall against searches per second, at many depths, as ann-benchmarks does: VecraftDB, bare indexes, other databases.

Every contender holds the same vectors, is asked the same queries one by one from Python on one thread, and is judged
against exact answers by distance, so that ties count as right. Where a contender has a depth it is swept; one without
gives a single point. Contenders that are not installed are skipped, one that fails is left out, and the report says so.

hnswlib, usearch and faiss are indexes: they hold nothing on disk and know no transactions. They are here to show what
the graph alone costs. (Aumüller, Bernhardsson, Faithfull: ANN-Benchmarks, Information Systems 87, 2020.)
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import hnswlib
import numpy as np

from benchmarks.data import K, recall, tenth_distances
from benchmarks.measure import Row, Sample, alternate, per_operation
from benchmarks.peers import DEPTHS, PEERS, Ask, Curve, Skipped, library
from benchmarks.search import EF_CONSTRUCTION, M, build_reference, fill, tune_reference
from examples.wordnet import WordNet
from vecraft_data_model import QueryPacket
from vecraft_db.client.vecraft_client import VecraftClient

RECALL_COMPARED = 0.95


@dataclass(frozen=True)
class Point:
    """One contender at one depth (0: it has none): recall, and the rates of it and of the reference, round by round."""

    depth: int
    recall: float
    rates: list[Sample]
    pace: list[Sample]

    @property
    def share(self) -> float:
        """The rate in units of the reference's in the same rounds: what disturbs one disturbs the other."""
        return statistics.median(own.figure / beside.figure for own, beside in zip(self.rates, self.pace, strict=True))

    @property
    def cpu_share(self) -> float:
        """CPU per search in units of the reference's: steadier still, but the threads of a library count together."""
        return statistics.median(own.cpu / beside.cpu for own, beside in zip(self.rates, self.pace, strict=True))


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
        except Exception as error:
            if name not in PEERS:
                raise
            # Another project's database must not end the report; what it said is what the report says.
            yield Row(f"sweep·{name}", f"failed: {type(error).__name__}: {error}"[:200], "", "high", None)
            continue
        point = _at_recall(curve)
        row = Row(f"sweep·{name}", f"at recall {point.recall:.3f}, depth {point.depth}", "queries/s", "high", None)
        row.ours, row.reference = point.rates, point.pace
        row.extra = {"curve": [[each.depth, each.recall, each.share, each.cpu_share] for each in curve]}
        yield row


def _at_recall(curve: list[Point]) -> Point:
    enough = [point for point in curve if point.recall >= RECALL_COMPARED]
    return enough[0] if enough else max(curve, key=lambda point: point.recall)


def _curve(data: WordNet, contender: Curve, rounds: int, pace: Ask) -> Iterator[Point]:
    tenth, some = tenth_distances(data), data.queries[:50]

    def rate(ask: Ask) -> Sample:
        return per_operation(lambda: [ask(query) for query in some], len(some))

    for depth, ask in contender:
        answers = [ask(query) for query in data.queries]
        row = alternate(Row("", "", "", "high", None), rounds, partial(rate, ask), partial(rate, pace))
        yield Point(depth, recall(data, answers, tenth), row.ours, row.reference)


def _ask_index(index: hnswlib.Index, query: Any) -> Any:
    return index.knn_query(query.reshape(1, -1), K, num_threads=1)[1][0]


# --------------------------------------------------------------------------------------------------- contenders


def vecraftdb(data: WordNet) -> Curve:
    """Embedded, ids and distances."""
    with VecraftClient(root=":memory:") as client:
        fill(client, data)
        for depth in DEPTHS:

            def ask(query: Any, depth: int = depth) -> Any:
                packet = QueryPacket(query_vector=query, k=K, ef=depth, include=())
                return [hit.distance for hit in client.search("wordnet", packet)]

            yield depth, ask


def bare_hnswlib(data: WordNet) -> Curve:
    """The reference."""
    index = build_reference(data)
    for depth in DEPTHS:
        index.set_ef(depth)
        yield depth, partial(_ask_index, index)


def usearch(data: WordNet) -> Curve:
    """usearch's HNSW in float32."""
    index = library("usearch.index", "usearch").Index(
        ndim=data.vectors.shape[1], metric="cos", dtype="f32", connectivity=M, expansion_add=EF_CONSTRUCTION
    )
    index.add(np.arange(len(data.vectors)), data.vectors, threads=1)
    for depth in DEPTHS:
        index.expansion_search = depth
        yield depth, partial(_ask_usearch, index)


def _ask_usearch(index: Any, query: Any) -> Any:
    return index.search(query, K, threads=1).distances


def faiss(data: WordNet) -> Curve:
    """faiss' HNSW over flat float32 vectors, by inner product of unit vectors."""
    bare = library("faiss", "faiss-cpu")
    bare.omp_set_num_threads(1)
    index = bare.IndexHNSWFlat(data.vectors.shape[1], M, bare.METRIC_INNER_PRODUCT)
    index.hnsw.efConstruction = EF_CONSTRUCTION
    index.add(data.vectors)
    for depth in DEPTHS:
        index.hnsw.efSearch = depth
        yield depth, lambda query: 1.0 - index.search(query.reshape(1, -1), K)[0][0]


CONTENDERS: dict[str, Callable[[WordNet], Curve]] = {
    "hnswlib": bare_hnswlib,
    "vecraftdb": vecraftdb,
    "usearch": usearch,
    "faiss": faiss,
    **PEERS,
}
