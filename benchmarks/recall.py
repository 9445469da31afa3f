"""§R: whether ``target_recall`` is met, by collections whose depth nobody sets, on data of different difficulty.

Each collection is altered to one target after another, measures itself in the background on queries that it makes up,
and is then asked held-out queries that it has never seen, at the depth it chose. Then it is asked as many others as it
samples, one by one, and all is done again (``asked``): it measures itself on those. A row tells the depth, the recall
of the held-out queries against exact answers, and what the collection believes of itself, with its 95% interval. Rate
and reference are those of the held-out queries at that depth and at a target of 0.95.

Held-out queries are no larger a sample than they are: their recall may lie below a target by its own standard error
(told as ``error``), and is judged with twice that.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

from benchmarks.data import K
from benchmarks.measure import Row, Sample, alternate, per_operation
from benchmarks.peers import Skipped, library
from examples.wordnet import WordNet
from vecraft_data_model import CollectionSchema, QueryPacket
from vecraft_db.client.vecraft_client import VecraftClient
from vecraft_shard.search_depth import QuerySample
from vecraft_shard.tuning import MIN_ROWS

Matrix = npt.NDArray[np.float32]
Kind = Callable[[WordNet], tuple[str, Matrix, Matrix]]
"""Metric, rows, queries: the first :data:`ASKED` to ask, the others held out."""

TARGETS = (0.5, 0.8, 0.95, 0.99, 1.0)
ASKED = QuerySample.CAPACITY
ROWS, QUERIES = 20_000, ASKED + 200
SEED = 7
PATIENCE_S = 300.0


def wordnet(data: WordNet) -> tuple[str, Matrix, Matrix]:
    """Embeddings of glosses, and sentences as queries."""
    return "cosine", data.vectors, data.queries


def gaussian(_: WordNet) -> tuple[str, Matrix, Matrix]:
    """128 independent dimensions: the hardest there is, everything is about as far from everything else."""
    both = np.random.default_rng(SEED).normal(size=(ROWS + QUERIES, 128)).astype(np.float32)
    return "l2", both[:ROWS], both[ROWS:]


def clustered(_: WordNet) -> tuple[str, Matrix, Matrix]:
    """200 clusters in 64 dimensions."""
    rng = np.random.default_rng(SEED)
    centres = rng.normal(size=(200, 64))
    both = centres[rng.integers(0, 200, ROWS + QUERIES)] + 0.3 * rng.normal(size=(ROWS + QUERIES, 64))
    return "l2", both[:ROWS].astype(np.float32), both[ROWS:].astype(np.float32)


def digits(_: WordNet) -> tuple[str, Matrix, Matrix]:
    """Pictures of digits, 8 × 8; too few to be measured, and searched at the depth of the settings."""
    pictures = library("sklearn.datasets", "scikit-learn").load_digits().data.astype(np.float32)
    pictures = pictures[np.random.default_rng(SEED).permutation(len(pictures))]
    return "l2", pictures[QUERIES:], pictures[:QUERIES]


KINDS: dict[str, Kind] = {"wordnet": wordnet, "gaussian 128-d": gaussian, "clusters 64-d": clustered, "digits": digits}


def measure(data: WordNet, rounds: int) -> Iterator[Row]:
    """Yield the rows of this section."""
    for name, kind in KINDS.items():
        try:
            metric, rows, queries = kind(data)
        except Skipped as reason:
            yield Row(f"R·{name}", f"skipped: {reason}", "", "high", None)
            continue
        yield from _kind(name, metric, rows, queries, rounds)


def _kind(name: str, metric: str, rows: Matrix, queries: Matrix, rounds: int) -> Iterator[Row]:
    with VecraftClient(root=":memory:") as client:
        client.create_collection(CollectionSchema("c", rows.shape[1], metric=metric))
        for first in range(0, len(rows), 1000):
            part = rows[first : first + 1000]
            client.upsert("c", ids=[f"r{first + i}" for i in range(len(part))], vectors=part)
        client.checkpoint(index=True, timeout=600)
        asked, held_out = queries[:ASKED], queries[ASKED:]
        exact = np.array([[hit.distance for hit in hits] for hits in _many(client, held_out, exact=True)])
        farthest = exact[:, -1:] + 1e-4 * np.abs(exact[:, -1:]) + 1e-6
        usual = _settled(client, 0.95)["ef"]

        def at(depth: int) -> Sample:
            return per_operation(lambda: _many(client, held_out, ef=depth), len(held_out))

        for how in ("", "·asked"):
            if how:
                for query in np.repeat(asked, 2 * QuerySample.STRIDE, axis=0):
                    client.search("c", QueryPacket(query, k=K, include=()))
            for target in TARGETS:
                facts = _settled(client, target)
                found = np.array([[hit.distance for hit in hits] for hits in _many(client, held_out, ef=facts["ef"])])
                shares = (found <= farthest).mean(axis=1)
                error = float(shares.std(ddof=1)) / len(held_out) ** 0.5
                what = f"{name}, target {target}, depth {facts['ef']}"
                row = Row(f"R·{name}·{target}{how}", what, "queries/s", "high", None)
                row.extra = {
                    "target": target, **facts, "recall": float(shares.mean()), "error": error,
                    "met": float(shares.mean()) + 2 * error >= target,
                }  # fmt: skip
                yield alternate(row, rounds, lambda depth=facts["ef"]: at(depth), lambda: at(usual))  # type: ignore[misc]


def _many(client: VecraftClient, queries: Matrix, **how: Any) -> list[Any]:
    return client.search_many("c", queries, k=K, include=(), **how)


def _settled(client: VecraftClient, target: float) -> dict[str, Any]:
    """Alter the target, and wait until the depth has been measured; a collection of few rows never is."""
    client.alter_collection("c", target_recall=target)
    end = time.monotonic() + PATIENCE_S
    info = client.describe_collection("c")
    while info.indexed_rows >= MIN_ROWS and info.measured_recall is None and time.monotonic() < end:
        time.sleep(0.1)
        info = client.describe_collection("c")
    return {"ef": int(info.ef), "estimate": info.measured_recall, "interval": info.recall_interval}
