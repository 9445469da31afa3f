"""How deep a graph has to be searched: measured against exact answers, not guessed.

The search depth ``ef`` that reaches a recall depends on the data and on the questions. So each collection is measured
in the background: a sample of queries is answered exactly, a block of rows at a time, and then by ordinary searches at
several depths; the least depth whose recall@10 reaches ``target_recall`` is kept. Whoever sets a depth by hand (see
:mod:`vecraft_shard.search_depth`) keeps it, and is told the recall that it has.

*Which queries.* The last ones that were really asked, once there are enough different ones. Before that, some are made
up: a row, moved as far as its tenth neighbour is from it, in the direction of the difference of two other rows.
Measured against held-out queries of four data sets, those are hardly harder than real ones at a recall of 0.95: they
ask for a depth of 64 where 200 real sentences need 48 (WordNet, 384-d), 448 where 320 is needed (Gaussian, 128-d), and
10 to 12 where 10 will do (clusters, 64-d; rank 10 in 256-d). At 0.8 they are easier than sentences (12 where 20 is
needed), which real queries mend. Rows themselves are far too easy, since the graph was built by searching for them,
and midpoints of random pairs too easy on the Gaussian (160) and far too hard between clusters (80).

*When.* When the graph has grown or shrunk by half; at once when the
target was altered; when a depth was set by hand, a quarter of the rows were replaced or
deleted, or the sample has been renewed, but then only so often that measuring takes a hundredth of the time at most.

*At what cost.* In slices of some milliseconds. While there are searches, those take a fifth of the time at most (see
:mod:`vecraft_shard.background`); whoever searches an idle machine for the first time has it measured at full speed.

*How sure.* A depth is enough if the mean of the sample less its standard error reaches the target. The interval that is
published is Wilson's (E. B. Wilson, JASA 1927), with as many trials as would give the mean that standard error: the ten
hits of one query are not independent.
"""

from __future__ import annotations

import math
from collections.abc import Generator, Iterator

import numpy as np
import numpy.typing as npt

from vecraft_data_model.distances import distances, norms
from vecraft_data_model.messages import Float32Array, Search
from vecraft_data_model.search_options import SearchOptions
from vecraft_shard.collection import Collection
from vecraft_shard.reads import CollectionView
from vecraft_shard.search import run_search
from vecraft_shard.search_depth import QuerySample
from vecraft_shard.state import ShardState

Float64Array = npt.NDArray[np.float64]

MIN_ROWS = 2000
"""Below this a search is exact or nearly so at any depth."""

DEPTHS = (
    10, 12, 16, 20, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320, 384, 448, 512, 640, 768, 1024,
)  # fmt: skip
MAX_TAIL_SHARE = 0.1
"""With more rows than this outside of the graph it is not worth measuring: it is about to change."""

_K = 10
_GROWTH = 1.5
_CHURN = 0.25
_REST = 100
_BLOCK_ROWS = 2048
_QUERIES_AT_ONCE = 8
_NEIGHBOUR_DEPTH = 100
_Z = 1.96


def worth_tuning(collection: Collection, now_ms: int) -> bool:
    """Whether the collection's depth was never measured, or something has changed since that it may depend on."""
    depth, rows = collection.depth, collection.indexed
    if rows < MIN_ROWS or collection.tail_rows > MAX_TAIL_SHARE * rows or collection.integrity.vectors:
        return False
    if not depth.rows / _GROWTH < rows < depth.rows * _GROWTH:
        return True
    if now_ms < depth.rest_until_ms:
        return False
    if depth.recall is None:
        return True
    churned = collection.versions.changes - depth.changes > _CHURN * rows
    return churned or depth.sample.taken - depth.sampled >= QuerySample.CAPACITY


def tune(state: ShardState, collection: Collection, now_ms: int) -> Iterator[None]:
    """Measure a collection and set its depth, a slice at a time: advance the iterator when there is time."""
    begun, depth = state.stopwatch(), collection.depth
    rows, changes, sampled = collection.indexed, collection.versions.changes, depth.sample.taken
    queries = depth.sample.queries()
    if queries is None:
        with state.latch.shared():
            queries = _made_up(collection)
    yield
    measurement = _Measurement(state, collection, queries)
    if not (yield from measurement.answer_exactly()):
        return
    low, high = 0, len(DEPTHS) - 1  # the least index that suffices is among these; the last is taken in any case
    target = collection.schema.target_recall
    while low < high:
        middle = (low + high) // 2
        recalls = yield from measurement.recalls(DEPTHS[middle])
        if recalls is None:
            return
        if _surely(recalls) >= target:
            high = middle
        else:
            low = middle + 1
    recalls = yield from measurement.recalls(depth.set_by_hand or DEPTHS[low])
    if recalls is None or collection.schema.target_recall != target:
        return  # altered meanwhile: the next turn begins anew
    depth.tuned, depth.recall, depth.recall_interval = DEPTHS[low], float(recalls.mean()), interval(recalls)
    depth.rows, depth.changes, depth.sampled = rows, changes, sampled
    depth.rest_until_ms = now_ms + math.ceil((state.stopwatch() - begun) * 1000 * _REST)
    collection.changed = True


def interval(recalls: Float64Array) -> tuple[float, float]:
    """The 95% confidence interval of the mean recall, from each query's own; see the module."""
    mean, count = float(recalls.mean()), len(recalls)
    error = _standard_error(recalls)
    trials = mean * (1 - mean) / error**2 if error > 1e-9 else float(count)
    spread = _Z**2 / trials
    centre = (mean + spread / 2) / (1 + spread)
    reach = _Z / (1 + spread) * math.sqrt(mean * (1 - mean) / trials + spread / (4 * trials))
    return max(0.0, centre - reach), min(1.0, max(mean, centre + reach))  # of a mean of 1, rounding


class _Measurement:
    """One snapshot of a collection, asked the same queries in several ways."""

    def __init__(self, state: ShardState, collection: Collection, queries: Float32Array) -> None:
        self._state = state
        self._collection = collection
        self._queries = queries
        self._snapshot = state.timeline.clock.last
        self._farthest: Float32Array = np.empty(0, np.float32)
        self._wanted: Float64Array = np.empty(0)

    def answer_exactly(self) -> Generator[None, None, bool]:
        """Find how far the k-th neighbour of each query is. Returns whether the collection is still there."""
        queries, metric = self._queries, self._collection.schema.metric
        versions, rows = self._collection.versions, self._collection.versions.rows
        best: Float32Array = np.full((len(queries), _K), np.inf, np.float32)
        for first in range(0, rows, _BLOCK_ROWS):
            last = min(rows, first + _BLOCK_ROWS)
            if self._gone():
                return False
            with self._state.latch.shared():
                block = self._collection.column.view(first, last)
                seen = (versions.begin[first:last] <= self._snapshot) & (versions.end[first:last] > self._snapshot)
            measured = distances(metric, np.ascontiguousarray(block, np.float32), queries)
            measured[:, ~seen] = np.inf
            best = np.partition(np.concatenate([best, measured], axis=1), _K - 1, axis=1)[:, :_K]
            yield
        self._wanted = np.maximum(1, np.isfinite(best).sum(axis=1)).astype(np.float64)
        # Searches round differently: by a share of what was added up, not of what was left.
        farthest = best.max(axis=1)
        farthest += 1e-5 * (np.abs(farthest) + np.einsum("ij,ij->i", queries, queries))
        self._farthest = farthest
        return True

    def recalls(self, depth: int) -> Generator[None, None, Float64Array | None]:
        """Each query's share of hits that are as near as the exact ones, so that ties count. None: it is gone."""
        found: list[int] = []
        for first in range(0, len(self._queries), _QUERIES_AT_ONCE):
            if self._gone():
                return None
            part = slice(first, first + _QUERIES_AT_ONCE)
            request = Search(
                snapshot=self._snapshot,
                collection=self._collection.schema.name,
                queries=self._queries[part],
                options=SearchOptions(k=_K, ef=depth, include=()),
            )
            with self._state.latch.shared():
                hits = run_search(CollectionView(self._collection, self._snapshot, depth), request)
            found += [
                int(np.count_nonzero(measured <= farthest))
                for (_, measured), farthest in zip(hits, self._farthest[part].tolist(), strict=True)
            ]
            yield
        return np.minimum(1.0, np.asarray(found) / self._wanted)

    def _gone(self) -> bool:
        """Whether the collection was dropped, or rewritten by a compaction, since the measurement began."""
        return self._state.collections.get(self._collection.collection_id) is not self._collection


def _made_up(collection: Collection) -> Float32Array:
    """Queries made from the rows in the graph; see the module."""
    rows, cosine = collection.indexed, collection.schema.metric == "cosine"
    # Seeded by what is measured: the same collection is tuned the same way on every machine.
    rng = np.random.default_rng([rows, collection.schema.dim])
    origin, minuend, subtrahend = (
        _directions(collection.vectors_of(part), cosine)
        for part in rng.integers(0, rows, size=(3, QuerySample.CAPACITY)).tolist()
    )
    labels, _ = collection.hnsw.search(origin, _K + 1, _NEIGHBOUR_DEPTH)
    farthest = _directions(collection.vectors_of(np.maximum(labels[:, -1], 0).tolist()), cosine)
    reach = norms(farthest - origin)[:, None]
    away = minuend - subtrahend
    length = np.maximum(norms(away)[:, None], np.finfo(np.float32).tiny)
    queries = (origin + reach * (away / length)).astype(np.float32)
    # Opposite vectors may cancel out, and cosine could not be asked about what is left.
    return np.ascontiguousarray(np.where(norms(queries)[:, None] > 1e-6, queries, origin))


def _directions(vectors: Float32Array, cosine: bool) -> Float32Array:
    """Unit vectors under cosine, where lengths mean nothing; else the vectors."""
    if not cosine:
        return vectors
    return np.divide(vectors, np.maximum(norms(vectors)[:, None], np.finfo(np.float32).tiny), dtype=np.float32)


def _surely(recalls: Float64Array) -> float:
    """What the mean recall is at least, give or take nothing that the sample's spread explains."""
    return float(recalls.mean()) - _standard_error(recalls)


def _standard_error(recalls: Float64Array) -> float:
    return float(recalls.std(ddof=1)) / math.sqrt(len(recalls)) if len(recalls) > 1 else 0.0
