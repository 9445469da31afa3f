"""Searches without a filter in a collection of which the snapshot sees nearly all: what most searches are.

The graph is walked once, a little deeper if some rows are old versions, the fresh rows are scanned, and that is the
answer: nothing is planned or learnt, which would take as long as the walk of a small graph does. Whatever turns out not
to be so simple is left to :mod:`vecraft_shard.search`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import compress
from typing import Final

import numpy as np

from vecraft_data_model.messages import Search
from vecraft_shard.indexes.hnsw import HnswIndex
from vecraft_shard.indexes.tail import Found, ScanSource, joined, nearest, scan_range
from vecraft_shard.search_view import Float32Array, Int64Array, SearchView, seen

_ROWS_PER_STEP: Final = 64
"""With so many rows per step of depth the graph is faster than a scan, and the planner need not be asked."""
_ALIVE: Final = 0.75
"""Of old versions there may be so many that this part of the rows is alive: the walk gets deeper by the rest."""
_FRESH: Final = 16
"""One in so many rows may be fresh, or later than the snapshot."""


def walk_nearly_all(view: SearchView, request: Search, threads: int = 1) -> Sequence[Found | None] | None:
    """Search without a plan.

    Returns:
        As :func:`~vecraft_shard.search.run_search`, but at any distance, and None for each query for which too little
        was found. None if the search is not of this kind.
    """
    options = request.options
    hnsw, rows = view.hnsw, view.rows
    depth = max(options.ef or view.ef, options.k)
    if options.where is not None or options.where_document is not None or options.exact:
        return None
    if hnsw is None or rows < _ROWS_PER_STEP * depth or not len(request.queries):
        return None
    if view.all_visible and view.indexed == rows:
        return _walk_all(view, hnsw, request, depth, threads)
    if _sees_most(view):
        return _walk_most(view, hnsw, request, math.ceil(depth * rows / view.alive), threads)
    return None


def _sees_most(view: SearchView) -> bool:
    """Whether nearly all rows are in the graph, alive, and not later than the snapshot.

    Rows are in the order of their commits, or nearly so: what is asked of one row holds for all before it.
    """
    few = view.rows // _FRESH
    return (
        view.rows - view.indexed <= few
        and view.alive >= view.rows * _ALIVE
        and bool(view.begin[view.rows - few - 1] <= view.snapshot)
    )


def _walk_all(view: SearchView, hnsw: HnswIndex, request: Search, depth: int, threads: int) -> list[Found] | None:
    k = request.options.k
    labels, distances = hnsw.search(request.queries, k, depth, threads)
    if _too_few(labels, k):
        return None
    return _in_order(view, labels, distances)


def _walk_most(
    view: SearchView, hnsw: HnswIndex, request: Search, depth: int, threads: int
) -> Sequence[Found | None] | None:
    """Leave out the candidates that the snapshot does not see, and scan the fresh rows.

    The end of a list of candidates is thin, since what is a little farther was never looked at. So the k that count
    have to stand in its better half; around a query with many dead rows they do not.
    """
    queries, k = request.queries, request.options.k
    labels, distances = hnsw.search(queries, min(max(depth // 2, 2 * k), depth), depth, threads)
    if _too_few(labels, k):
        return None
    visible = seen(view, labels)
    ranks = visible.cumsum(axis=1)
    visible &= ranks <= k
    enough = ranks[:, -1] >= k
    if not enough.all():
        visible &= enough[:, None]
    found = _in_order(view, labels[visible].reshape(-1, k), distances[visible].reshape(-1, k))
    lo, hi = view.indexed, view.rows
    if lo < hi:
        source = ScanSource(view.schema.metric, view.column, view.norms, view.ids)
        tail = scan_range(source, queries, k, lo, hi, seen(view, slice(lo, hi)))
        found = [_merged(view, parts, k) for parts in zip(found, compress(tail, enough), strict=True)]
    if len(found) == len(queries):
        return found
    answers = iter(found)
    return [next(answers) if whole else None for whole in enough.tolist()]


def _too_few(labels: Int64Array, k: int) -> bool:
    """Whether the graph is so thin that some query met fewer rows than it asked for."""
    return bool(labels.shape[1] < k or (labels[0, -1] if len(labels) == 1 else labels[:, -1].min()) < 0)


def _in_order(view: SearchView, rows: Int64Array, distances: Float32Array) -> list[Found]:
    """Answer these (q, k) rows, which are nearest first: ties by record id, nothing rounded to below zero."""
    cosine = view.schema.metric == "cosine"
    if len(rows) == 1:  # a few numbers are dealt with faster by Python than by numpy
        values = distances[0].tolist()
        if len(set(values)) == len(values) and (values[0] >= 0 or not cosine):
            return [(rows[0], distances[0])]
    if cosine:
        distances = np.maximum(distances, 0)
    found = list(zip(rows, distances, strict=True))
    tied = distances[:, 1:] == distances[:, :-1]
    if tied.any():
        for line in np.flatnonzero(tied.any(axis=1)).tolist():
            found[line] = nearest(*found[line], rows.shape[1], view.ids)
    return found


def _merged(view: SearchView, parts: tuple[Found, Found], k: int) -> Found:
    """The k nearest of both, ties by record id."""
    (rows, distances), (fresh, measured) = parts
    if not len(fresh) or (len(rows) == k and measured[0] > distances[-1]):
        return rows, distances
    return nearest(*joined(*parts), k, view.ids)
