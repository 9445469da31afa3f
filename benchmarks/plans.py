"""Which plan a filtered search should take, and which it does take: all three forced, and the planner left alone.

100,000 rows of 384 dimensions (``VECRAFT_BENCH_ROWS`` for others), made from a seed: points around 100 centres in 32
dimensions, turned into 384, with a little noise. Filters are about 1, 3, 10 or 30% of the rows. Some have nothing to
do with what is asked; the others match the rows that are nearest to one place, and are asked for from inside of it,
from anywhere, and from as far away as queries come; or they leave out just these rows, and are asked for from inside.

Measured is CPU time of the calling thread per search, on a shard's own collection without a client around it, when a
filter has been used before. The reference is the cheapest plan whose recall@10 is 0.95 or more.
"""

from __future__ import annotations

import os
import sqlite3
import statistics
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from unittest import mock

import msgspec
import numpy as np
import numpy.typing as npt

from benchmarks.data import K
from benchmarks.measure import Row, Sample
from examples.wordnet import WordNet
from vecraft_data_model import CollectionSchema
from vecraft_data_model.filters import parse_where
from vecraft_data_model.messages import Search
from vecraft_data_model.payload import encode_payloads
from vecraft_data_model.search_options import SearchOptions
from vecraft_shard.collection import Collection
from vecraft_shard.disk import MemoryDisk
from vecraft_shard.indexes.hot import HotFilters
from vecraft_shard.indexes.tail import Found
from vecraft_shard.planner import (
    Costs,
    Plan,
    PlanKind,
    Task,
    choose_plan,
    costs_of_this_machine,
    overfetch_depth,
    restricted_depth,
)
from vecraft_shard.reads import CollectionView
from vecraft_shard.search import explain_search, run_search

Matrix = npt.NDArray[np.float32]

ROWS, DIM, SEED = 100_000, 384, 20
LATENT, CENTRES = 32, 100
CANDIDATES, QUERIES = 2000, 50
DEPTH = 64
SHARES = (0.01, 0.03, 0.1, 0.3)
RELATIONS = {
    "random": "none of them near each other",
    "inside": "around the queries",
    "anywhere": "around one place",
    "far": "as far from the queries as they come",
    "hole": "left out: those around the queries",
}
FORCED: tuple[PlanKind, ...] = ("exact", "hnsw_overfetch", "hnsw_restricted")
RECALL_AT_LEAST = 0.95
BAR = 1.3


@dataclass(frozen=True)
class Places:
    """Vectors, unit length, queries of the same kind, and where both lie.

    Attributes:
        vectors, queries: (n, DIM), (q, DIM) float32.
        distances: Of each row from the one place that filters are about.
        query_distances: Of each query.
        centres: Around which centre each row lies, (n,).
    """

    vectors: Matrix
    queries: Matrix
    distances: Matrix
    query_distances: Matrix
    centres: npt.NDArray[np.int64]


def make_places(rows: int) -> Places:
    """Return the data, always the same."""
    rng = np.random.default_rng(SEED)
    centres = rng.normal(size=(CENTRES, LATENT))
    total = rows + CANDIDATES
    which = rng.integers(0, CENTRES, total)
    latent = centres[which] + 0.7 * rng.normal(size=(total, LATENT))
    turn = np.linalg.qr(rng.normal(size=(DIM, LATENT)))[0].T
    every = (latent @ turn).astype(np.float32)
    every += 0.05 * rng.standard_normal(every.shape, np.float32)
    every /= np.linalg.norm(every, axis=1, keepdims=True)
    away = 1 - every @ every[0]
    return Places(every[:rows], every[rows:], away[:rows], away[rows:], which[:rows])


def fill(places: Places) -> Collection:
    """Return a collection in memory that holds the rows, without a graph."""
    schema = CollectionSchema(name="places", dim=DIM, metric="cosine")
    collection = Collection.create("places", 1, schema, MemoryDisk(), sqlite3.connect(":memory:"))
    rows = len(places.vectors)
    ranks = np.empty(rows, np.int64)
    ranks[np.argsort(places.distances)] = np.arange(rows)
    chances = np.random.default_rng(SEED).permutation(rows)
    for first in range(0, rows, 1000):
        part = slice(first, first + 1000)
        ids = [f"row-{i:08}" for i in range(first, min(first + 1000, rows))]
        metadatas = [
            {"place": place, "chance": chance}
            for place, chance in zip(ranks[part].tolist(), chances[part].tolist(), strict=True)
        ]
        payloads = encode_payloads(ids, places.vectors[part], metadatas, None, schema.checksum_algorithm)
        collection.put(ids, places.vectors[part], payloads, first + 1)
    return collection


def index(collection: Collection) -> None:
    """Build the graph."""
    while collection.index_slice(1000.0, time.perf_counter):
        pass


def choose_queries(places: Places, relation: str) -> Matrix:
    """Return the queries that stand in a relation to the one place."""
    order = np.argsort(places.query_distances)
    nearest, farthest = order[:QUERIES], order[-QUERIES:]
    chosen = {"inside": nearest, "hole": nearest, "far": farthest}.get(relation, np.arange(QUERIES))
    return np.ascontiguousarray(places.queries[chosen])


class Question:
    """Queries with one filter, asked by one plan or by the planner's choice; each way has experience of its own.

    Args:
        collection: Whom to ask.
        places: What is in it.
        share: Which part of the rows the filter is about.
        relation: How it is related to the queries.
    """

    def __init__(self, collection: Collection, places: Places, share: float, relation: str) -> None:
        rows = len(places.vectors)
        operator = "$gte" if relation == "hole" else "$lt"
        where = parse_where({"chance" if relation == "random" else "place": {operator: round(share * rows)}})
        self._collection = collection
        self._options = SearchOptions(k=K, where=where, include=())
        self._queries = [query[None] for query in choose_queries(places, relation)]
        self._costs = costs_of_this_machine(time.perf_counter)
        self._experience: dict[PlanKind | None, HotFilters] = {kind: HotFilters() for kind in (None, *FORCED)}
        exact = self._ask(msgspec.structs.replace(self._options, exact=True), None)[0]
        self._farthest = [float(distances[-1]) * (1 + 1e-5) + 1e-6 for _, distances in exact]

    def ask(self, kind: PlanKind | None) -> tuple[float, float]:
        """Ask everything once by one plan; None: by the one that the planner picks.

        Returns:
            CPU milliseconds per search, and recall@10.
        """
        found, cpu = self._ask(self._options, kind)
        right = sum(
            int(np.count_nonzero(distances <= farthest))
            for (_, distances), farthest in zip(found, self._farthest, strict=True)
        )
        return cpu * 1000 / len(found), right / (K * len(found))

    def picked(self) -> dict[str, int]:
        """How often the planner picks which plan."""
        plans: Counter[str] = Counter()
        for query in self._queries:
            plans[explain_search(self._view(None), self._request(query, self._options), 1, self._costs)[1]["plan"]] += 1
        return dict(plans)

    def _ask(self, options: SearchOptions, kind: PlanKind | None) -> tuple[list[Found], float]:
        requests = [self._request(query, options) for query in self._queries]
        with forced(kind):
            began = time.thread_time()
            found = [run_search(self._view(kind), request, 1, self._costs)[0] for request in requests]
            return found, time.thread_time() - began

    def _view(self, kind: PlanKind | None) -> CollectionView:
        view = CollectionView(self._collection, self._collection.versions.max_begin, DEPTH)
        view.hot_filters = self._experience[kind]
        return view

    def _request(self, query: Matrix, options: SearchOptions) -> Search:
        return Search(snapshot=0, collection="places", queries=query, options=options)


@contextmanager
def forced(kind: PlanKind | None) -> Iterator[None]:
    """Have searches take one plan as long as it lasts; None: any."""
    if kind is None:
        yield
        return
    depth_of: dict[PlanKind, Callable[[Task], int]] = {
        "exact": lambda _: 0,
        "hnsw_overfetch": overfetch_depth,
        "hnsw_restricted": restricted_depth,
    }

    def choose(task: Task, costs: Costs) -> Plan:
        if task.exact:
            return choose_plan(task, costs)
        return replace(choose_plan(task, costs), kind=kind, depth=depth_of[kind](task))

    with (
        mock.patch("vecraft_shard.search.choose_plan", choose),
        mock.patch("vecraft_shard.search.tried_instead", lambda _, plan: plan),
    ):
        yield


def measure(data: WordNet, rounds: int) -> Iterator[Row]:
    """Yield the rows of this section; ``data`` is not used."""
    places = make_places(int(os.environ.get("VECRAFT_BENCH_ROWS", str(ROWS))))
    collection = fill(places)
    index(collection)
    for relation in RELATIONS:
        for share in SHARES:
            yield compare(Question(collection, places, share, relation), share, relation, rounds)


def compare(question: Question, share: float, relation: str, rounds: int) -> Row:
    """Ask in all four ways in turn, after a round each that does not count."""
    row = Row(f"plans·{relation}·{share:.0%}", f"{share:.0%} of the rows, {RELATIONS[relation]}", "ms", "low", BAR)
    ways = (None, *FORCED)
    spent: dict[PlanKind | None, list[float]] = {kind: [] for kind in ways}
    recalls: dict[PlanKind | None, float] = {}
    for number in range(rounds + 1):
        for kind in ways:
            cpu, recalls[kind] = question.ask(kind)
            if number:
                spent[kind].append(cpu)
    costs = {kind: statistics.median(spent[kind]) for kind in ways}
    good = [kind for kind in FORCED if recalls[kind] >= RECALL_AT_LEAST]
    best = min(good, key=costs.__getitem__)
    row.ours = [Sample(cpu, cpu / 1000) for cpu in spent[None]]
    row.reference = [Sample(cpu, cpu / 1000) for cpu in spent[best]]
    row.extra = {
        "share": share, "relation": relation, "cheapest": best, "picked": question.picked(), "recall": recalls[None],
        "plans": {kind: {"cpu_ms": costs[kind], "recall": recalls[kind]} for kind in FORCED},
    }  # fmt: skip
    return row
