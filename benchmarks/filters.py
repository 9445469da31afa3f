"""§4: filtered searches at several selectivities against the same searches without a filter, and filtered counts.

Twice: on the data set, and on 100,000 rows (``VECRAFT_BENCH_ROWS``) around 100 centres (:mod:`benchmarks.plans`).

Every answer is compared with the exact one. Filters are ranges of ``gloss_len``, chosen so that they match the wanted
share of the rows as nearly as the data allows, one that has nothing to do with what is asked; and one on the topic
(``lexname``) that is farthest from the queries, which a walk through the graph meets last.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt

from benchmarks.data import K
from benchmarks.measure import Row, Sample, alternate, latencies, per_operation
from benchmarks.plans import SEED, make_places
from benchmarks.search import fill, tune_client
from examples.wordnet import WordNet
from vecraft_data_model import QueryPacket
from vecraft_db.client.vecraft_client import VecraftClient

SHARES = (0.001, 0.01, 0.1, 0.6)
COUNTS = 200
ROWS, QUERIES = 100_000, 200
BAR_OF_LARGE = 0.35
RECALL_AT_LEAST = 0.95


@dataclass(frozen=True)
class Chosen:
    """A filter, the rows it matches (boolean), and what its searches have to reach of the unfiltered rate."""

    name: str
    where: dict[str, Any]
    matches: npt.NDArray[np.bool_]
    bar: float

    @property
    def share(self) -> float:
        """Selectivity."""
        return float(self.matches.mean())


def bar_for(share: float) -> float:
    """What part of the unfiltered rate is asked at a selectivity (20,000 rows)."""
    if share <= 0.015:
        return 1.0
    return 0.4 if share < 0.5 else 0.5


def choose_filters(data: WordNet, bar: Callable[[float], float]) -> list[Chosen]:
    """Return the filters, most selective first."""
    lengths = np.array([metadata["gloss_len"] for metadata in data.metadatas])
    topics = np.array([metadata["lexname"] for metadata in data.metadatas])
    chosen = []
    for share in SHARES:
        low, high = _window(lengths, share)
        matches = (lengths >= low) & (lengths <= high)
        where = {"gloss_len": {"$gte": low, "$lte": high}}
        chosen.append(Chosen(f"{share:.1%} of the rows", where, matches, bar(share)))
    nearness = data.queries @ data.vectors.T
    sizes = {topic: int((topics == topic).sum()) for topic in set(topics.tolist())}
    common = [topic for topic, size in sizes.items() if size >= 10 * K]
    farthest = min(common, key=lambda topic: float(nearness[:, topics == topic].max(axis=1).mean()))
    matches = topics == farthest
    name = f"topic far from the queries ({farthest})"
    chosen.append(Chosen(name, {"lexname": farthest}, matches, bar(float(matches.mean()))))
    return sorted(chosen, key=lambda each: each.share)


def _window(values: npt.NDArray[np.int64], share: float) -> tuple[int, int]:
    """The range of values, ends included, whose share of the rows is nearest to ``share``."""
    distinct, counts = np.unique(values, return_counts=True)
    before = np.concatenate([[0], np.cumsum(counts)]) / len(values)
    spans = before[None, 1:] - before[:-1, None]  # from the value of the line to the one of the column
    spans[np.tril_indices(len(distinct), -1)] = np.inf
    low, high = np.unravel_index(np.argmin(np.abs(spans - share)), spans.shape)
    return int(distinct[low]), int(distinct[high])


def measure(data: WordNet, rounds: int) -> Iterator[Row]:
    """Yield the rows of this section."""
    yield from _section(data, rounds, "4a", bar_for)
    rows = int(os.environ.get("VECRAFT_BENCH_ROWS", str(ROWS)))
    yield from _section(clustered(rows), rounds, f"4a·{rows // 1000}k", lambda _: BAR_OF_LARGE)


def clustered(rows: int) -> WordNet:
    """Return a larger data set of the same fields: topics are the centres, lengths have nothing to do with them."""
    places = make_places(rows)
    lengths = np.random.default_rng(SEED).integers(10, 1000, rows).tolist()
    return WordNet(
        name=f"clustered{rows}",
        ids=[f"row-{i:08}" for i in range(rows)],
        vectors=places.vectors,
        metadatas=[
            {"gloss_len": length, "lexname": f"topic{centre}"}
            for length, centre in zip(lengths, places.centres.tolist(), strict=True)
        ],
        glosses=[""] * rows,
        queries=places.queries[:QUERIES],
        query_texts=[""] * QUERIES,
    )


def _section(data: WordNet, rounds: int, key: str, bar: Callable[[float], float]) -> Iterator[Row]:
    with VecraftClient(root=":memory:") as client:
        fill(client, data)
        tune_client(data, client)
        plain = [QueryPacket(query_vector=query, k=K, include=()) for query in data.queries]

        def unfiltered() -> Sample:
            return per_operation(lambda: [client.search("wordnet", query) for query in plain], len(plain))

        for number, each in enumerate(choose_filters(data, bar)):
            row = Row(f"{key}·{number + 1}", f"filter: {each.name}", "queries/s", "high", each.bar)
            row.extra = _facts(client, data, each)
            yield alternate(row, rounds, partial(_filtered, client, data, each), unfiltered)
        yield _unseen(client, data, rounds, key, min(bar(0.1), 0.4), unfiltered)
        yield _counting(client, data, rounds, key.replace("a", "b"))


def _unseen(
    client: VecraftClient, data: WordNet, rounds: int, key: str, bar: float, unfiltered: Callable[[], Sample]
) -> Row:
    """Every search with a filter that nobody has used before, so that nothing is known of it: about a tenth matches."""
    lengths = sorted(metadata["gloss_len"] for metadata in data.metadatas)
    limit = lengths[len(lengths) // 10]
    fresh = itertools.count()

    def ours() -> Sample:
        queries = [
            QueryPacket(query_vector=query, k=K, where={"gloss_len": {"$lt": limit + next(fresh) / 1e9}}, include=())
            for query in data.queries
        ]
        return per_operation(lambda: [client.search("wordnet", query) for query in queries], len(queries))

    row = Row(f"{key}·new", "filter: 10% of the rows, a new one each time", "queries/s", "high", bar)
    return alternate(row, rounds, ours, unfiltered)


def _filtered(client: VecraftClient, data: WordNet, each: Chosen) -> Sample:
    queries = [QueryPacket(query_vector=query, k=K, where=each.where, include=()) for query in data.queries]
    return per_operation(lambda: [client.search("wordnet", query) for query in queries], len(queries))


def _facts(client: VecraftClient, data: WordNet, each: Chosen) -> dict[str, Any]:
    """Selectivity, and recall against exact answers among the rows that match."""
    inside = np.flatnonzero(each.matches)
    wanted = min(K, len(inside))
    distances = 1.0 - data.queries @ data.vectors[inside].T
    farthest = np.partition(distances, wanted - 1, axis=1)[:, wanted - 1] + 1e-4
    right = short = 0
    for query, limit in zip(data.queries, farthest.tolist(), strict=True):
        hits = client.search("wordnet", QueryPacket(query_vector=query, k=K, where=each.where, include=()))
        right += sum(hit.distance <= limit for hit in hits)
        short += len(hits) < wanted
    recall = right / (wanted * len(data.queries))
    return {
        "selectivity": each.share,
        "recall": recall,
        "recall_reached": recall >= RECALL_AT_LEAST,
        "answers_that_came_short": short,
    }


def _counting(client: VecraftClient, data: WordNet, rounds: int, key: str) -> Row:
    """§4b: an exact count by a filter, against counting a boolean mask of the same rows."""
    chosen = choose_filters(data, bar_for)
    masks = [each.matches for each in chosen]
    row = Row(key, "count(where=…), p50", "ms", "low", None)
    return alternate(
        row,
        rounds,
        lambda: latencies(lambda i: client.count("wordnet", where=chosen[i % len(chosen)].where), COUNTS),
        lambda: latencies(lambda i: int(np.count_nonzero(masks[i % len(masks)])), COUNTS),
    )
