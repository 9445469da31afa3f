"""How deep a graph has to be searched: measured against exact answers, not guessed.

The search depth ``ef`` that reaches a recall depends on the data: its dimension, its clusters, how many rows there are.
So each collection is measured in the background when it has grown by half since the last time: queries are made from
its own rows, answered exactly and by the graph at rising depths, and the least depth whose recall@10 reaches
``target_recall`` is kept. An explicit ``ef`` (``QueryPacket.ef``, ``set_ef``) overrides it.

Queries are the midpoints of random pairs of rows. A row itself would be far too easy: the graph was built by searching
for it. On 20,000 WordNet glosses, where 200 real sentences need a depth of 48 for a recall of 0.96, rows reach 0.99 at
a depth of 16, and midpoints 0.94 at 48: a little harder than the real thing, which is the safe side.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

from vecraft_data_model.distances import distances
from vecraft_data_model.messages import Float32Array
from vecraft_shard.collection import Collection
from vecraft_shard.state import ShardState

MIN_ROWS = 2000
"""Below this a search is exact or nearly so at any depth."""

DEPTHS = (16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512, 768, 1024)
_QUERIES = 64
_K = 10
_GROWTH = 1.5
_BLOCK_ROWS = 8192


def worth_tuning(collection: Collection) -> bool:
    """Whether the collection's depth was never measured, or it has grown (or shrunk) by half since."""
    rows = collection.indexed
    if rows < MIN_ROWS or collection.tail_rows or collection.integrity.vectors:
        return False
    return not collection.tuned_rows / _GROWTH < rows < collection.tuned_rows * _GROWTH


def tune(state: ShardState, collection: Collection) -> Iterator[None]:
    """Measure a collection and set its depth, a slice at a time: advance the iterator when there is time."""
    rows, schema = collection.indexed, collection.schema
    # Seeded by what is measured: the same collection is tuned the same way on every machine.
    rng = np.random.default_rng([rows, schema.dim])
    pairs = rng.integers(0, rows, size=(2, _QUERIES))
    queries = (collection.vectors_of(pairs[0]) + collection.vectors_of(pairs[1])) / np.float32(2)
    # Opposite vectors have no midpoint that cosine could be asked about.
    queries = np.ascontiguousarray(queries[np.linalg.norm(queries, axis=1) > 1e-6])
    best: npt.NDArray[np.float32] = np.full((len(queries), _K), np.inf, np.float32)
    for first in range(0, rows, _BLOCK_ROWS):
        last = min(rows, first + _BLOCK_ROWS)
        block = np.ascontiguousarray(collection.column.view(first, last), np.float32)
        both = np.concatenate([best, distances(schema.metric, block, queries)], axis=1)
        best = np.partition(both, _K - 1, axis=1)[:, :_K]
        yield
    # The two sides round differently: by a share of what was added up, not of what was left.
    kth = best.max(axis=1)
    kth += 1e-5 * (np.abs(kth) + np.einsum("ij,ij->i", queries, queries))
    for depth in DEPTHS:
        recall = _recall(state, collection, queries, kth, depth)
        if recall >= schema.target_recall or depth == DEPTHS[-1]:
            collection.tuned_ef, collection.measured_recall, collection.tuned_rows = depth, recall, rows
            collection.changed = True
            return
        yield


def _recall(state: ShardState, collection: Collection, queries: Float32Array, kth: Float32Array, depth: int) -> float:
    """Share of the answers that are as near as the exact ones (by distance, so that ties count as right)."""
    with state.latch.shared():
        _, found = collection.hnsw.search(queries, _K, depth)
    return float(np.count_nonzero(found <= kth[:, None]) / (len(queries) * _K))
