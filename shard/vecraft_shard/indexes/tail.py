"""Exact nearest rows by scanning: the tail, few rows left by a filter, or everything.

Two steps make this both fast and exact:

1. *Candidates.* Distances by matrix product, blockwise, in the expanded form (``|x|² − 2 x·q`` and the like). That form
   is off by rounding, by no more than ``γ (|x|² + |q|²)`` or so: see :func:`_lower_bounds`. Whatever might be among the
   k nearest within that error is a candidate; the k-th best upper bound so far, the *limit*, rules out nearly all rows
   of later blocks by one comparison.
2. *Distances.* The candidates' vectors are fetched again and their distances computed by
   :func:`~vecraft_data_model.distances.exact_distances`, so that a distance depends on the two vectors only: not on the
   block, the shard or the number of queries. The k smallest win, ties by record id.

A handful of rows skips the first step. Memory is bounded by the block, not by the rows: many queries are taken in
groups.

float16 columns are widened per block. ``norms`` (Euclidean, float32, one per row) spare a pass over the vectors.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt

from vecraft_data_model.distances import exact_distances
from vecraft_data_model.distances import norms as norms_of

Float32Array = npt.NDArray[np.float32]
Int64Array = npt.NDArray[np.int64]
BoolArray = npt.NDArray[np.bool_]
Found = tuple[Int64Array, Float32Array]
"""Rows and their distances, nearest first, ties by record id."""

_DIRECT_NUMBERS = 1 << 14
"""Up to so many numbers (rows × dim) skip the first step."""
_FIRST_BLOCK_ROWS = 4096
_FIRST_BLOCK_ROWS_OF_MANY = 1024
_BLOCK_GROWTH = 4
_FETCHED_SHARE = 5
_FETCHED_SHARE_OF_MANY = 3
_SCORES_PER_BLOCK = 1 << 22
_COPIED_NUMBERS_PER_BLOCK = 1 << 21
_PAIRS_AT_ONCE = 1 << 20
_ONE_BLOCK_ROWS = 1 << 14
_TINY_NORM = 1e-15
_EPSILON = float(np.finfo(np.float32).eps)


class VectorSource(Protocol):
    """Where vectors come from: the column of a collection."""

    def view(self, lo: int, hi: int) -> npt.NDArray[np.floating]:
        """Rows ``[lo, hi)``, (hi − lo, dim) float32 or float16, not copied."""
        ...


@dataclass(frozen=True, slots=True)
class ScanSource:
    """What a scan reads.

    Attributes:
        metric: ``l2``, ``cosine`` or ``ip``.
        column: The vectors.
        norms: Euclidean norm of each row, at least as long as the rows scanned; computed on the way if None.
        ids: Record id of each row, for ties.
    """

    metric: str
    column: VectorSource
    norms: Float32Array | None
    ids: Sequence[str]


def scan_range(
    source: ScanSource, queries: Float32Array, k: int, lo: int, hi: int, keep: BoolArray | None = None
) -> list[Found]:
    """Find the k nearest of the rows ``[lo, hi)`` to each query.

    Args:
        source: Where from.
        queries: (q, dim) float32.
        k: How many; fewer are found only if there are fewer.
        lo: First row.
        hi: After the last row.
        keep: For each row of the range, whether it counts; None: all do.

    Returns:
        One entry per query.
    """
    if keep is not None and not keep.all():
        rows = np.flatnonzero(keep) + lo
        if worth_fetching(len(rows), hi - lo, len(queries)) or len(rows) * queries.shape[1] <= _DIRECT_NUMBERS:
            return scan_rows(source, queries, k, rows)
    else:
        keep = None
    if (hi - lo) * queries.shape[1] <= _DIRECT_NUMBERS and len(queries) == 1:
        return [_scan_few(source, queries[0], k, np.arange(lo, hi), source.column.view(lo, hi))]
    return _scan(source, queries, k, _Range(source, lo, hi, keep))


def scan_rows(
    source: ScanSource,
    queries: Float32Array,
    k: int,
    rows: Int64Array,
    vectors: Float32Array | None = None,
    keep: BoolArray | None = None,
) -> list[Found]:
    """Find the k nearest of ``rows`` (ascending) to each query.

    Args:
        source: Where from.
        queries: (q, dim) float32.
        k: How many.
        rows: Which rows count.
        vectors: Their vectors, (len(rows), dim) float32, if the caller has them together already.
        keep: For each of ``rows``, whether it counts after all; None: all do.
    """
    if keep is not None and (vectors is None or len(rows) * queries.shape[1] <= _DIRECT_NUMBERS):
        rows, vectors, keep = rows[keep], None if vectors is None else vectors[keep], None
    if len(rows) * queries.shape[1] <= _DIRECT_NUMBERS:
        if vectors is None:
            vectors = take(source.column, rows)
        return [_scan_few(source, query, k, rows, vectors) for query in queries]
    return _scan(source, queries, k, _Gathered(source, rows, vectors, keep))


def worth_fetching(wanted: int, rows: int, queries: int) -> bool:
    """Whether it is faster to fetch the wanted rows from among others than to scan all of them in order.

    A row of 384 numbers takes 0.055 µs in order and 0.25 besides if it has to be fetched: memory is read ahead only
    where it is read in order. Many queries share that, and would multiply in vain with the rows between.
    """
    return wanted * (_FETCHED_SHARE if queries == 1 else _FETCHED_SHARE_OF_MANY) < rows


def nearest(rows: Int64Array, distances: Float32Array, k: int, ids: Sequence[str]) -> Found:
    """Return the k nearest in order, ties by record id."""
    if len(rows) > 4 * k + 64:
        kth = np.partition(distances, k - 1)[k - 1]
        near = distances <= kth
        rows, distances = rows[near], distances[near]
    order = np.argsort(distances, kind="stable")
    ranked = distances[order]
    width = min(k + 1, len(order))
    if (ranked[1:width] == ranked[: width - 1]).any():
        # Only what ties with one of the first k can move into them.
        last = int(np.searchsorted(ranked, ranked[min(k, len(ranked)) - 1], side="right"))
        pairs = [(float(ranked[i]), ids[int(rows[order[i]])], int(order[i])) for i in range(last)]
        order = np.array([place for _, _, place in sorted(pairs)], np.int64)
    order = order[:k]
    return rows[order], distances[order]


def joined(left: Found, right: Found) -> Found:
    """Both, unordered."""
    return np.concatenate((left[0], right[0])), np.concatenate((left[1], right[1]))


def within(found: list[Found], max_distance: float | None) -> list[Found]:
    """Leave out what is farther than ``max_distance``."""
    if max_distance is None:
        return found
    cut = []
    for rows, distances in found:
        size = int(np.searchsorted(distances.astype(np.float64), max_distance, side="right"))
        cut.append((rows[:size], distances[:size]))
    return cut


def _scan_few(
    source: ScanSource, query: Float32Array, k: int, rows: Int64Array, vectors: npt.NDArray[np.floating]
) -> Found:
    if not len(rows):
        return rows, np.empty(0, np.float32)
    distances = exact_distances(source.metric, vectors.astype(np.float32, copy=False), query)
    return nearest(rows, distances, k, source.ids)


# ----------------------------------------------------------------------------------------------------- blocks


@dataclass(frozen=True, slots=True)
class _Block:
    """Some rows: numbers (int64), vectors (n, dim) float32, norms, and which count (None: all)."""

    rows: Int64Array
    vectors: Float32Array
    norms: Float32Array
    keep: BoolArray | None


class _Range:
    """Blocks of contiguous rows, float32 ones not copied."""

    def __init__(self, source: ScanSource, lo: int, hi: int, keep: BoolArray | None) -> None:
        self.source, self.lo, self.hi, self.keep = source, lo, hi, keep
        self.count = hi - lo
        self.copied = source.column.view(lo, lo).dtype != np.float32

    def block(self, first: int, last: int) -> _Block:
        lo, hi = self.lo + first, self.lo + last
        vectors = self.source.column.view(lo, hi).astype(np.float32, copy=False)
        norms = norms_of(vectors) if self.source.norms is None else self.source.norms[lo:hi]
        keep = None if self.keep is None else self.keep[first:last]
        return _Block(np.arange(lo, hi), vectors, norms, keep)


class _Gathered:
    """Blocks of given rows, fetched one block at a time unless they are at hand."""

    def __init__(
        self, source: ScanSource, rows: Int64Array, vectors: Float32Array | None, keep: BoolArray | None
    ) -> None:
        self.source, self.rows, self.vectors, self.keep = source, rows, vectors, keep
        self.count = len(rows)
        self.copied = vectors is None

    def block(self, first: int, last: int) -> _Block:
        rows = self.rows[first:last]
        vectors = take(self.source.column, rows) if self.vectors is None else self.vectors[first:last]
        norms = norms_of(vectors) if self.source.norms is None else self.source.norms[rows]
        return _Block(rows, vectors, norms, None if self.keep is None else self.keep[first:last])


def _blocks(rows: _Range | _Gathered, queries: Float32Array) -> Iterator[_Block]:
    """Blocks from small, to find a limit, to as large as memory allows, to use it."""
    most = max(_SCORES_PER_BLOCK // len(queries), 256)
    if rows.copied:
        most = min(most, _block_of_copies(queries))
    # Finding the first limit costs a partition of the first block per query.
    first, size = 0, min(_FIRST_BLOCK_ROWS if len(queries) == 1 else _FIRST_BLOCK_ROWS_OF_MANY, most)
    while first < rows.count:
        last = min(rows.count, first + size)
        if rows.count - last < size // 2:
            last = rows.count
        yield rows.block(first, last)
        first, size = last, min(size * _BLOCK_GROWTH, most)


def _block_of_copies(queries: Float32Array) -> int:
    """Rows per block where vectors have to be copied."""
    dim: int = queries.shape[1]
    return max(_COPIED_NUMBERS_PER_BLOCK // dim, 256)


# -------------------------------------------------------------------------------------------------- two steps


class _TooManyCandidates(Exception):
    """So many rows are equally near that the queries have to be taken in smaller groups."""


def _scan(source: ScanSource, queries: Float32Array, k: int, rows: _Range | _Gathered) -> list[Found]:
    if not len(queries):
        return []
    if len(queries) == 1 and rows.count <= (_ONE_BLOCK_ROWS if not rows.copied else _block_of_copies(queries)):
        return [_scan_block(source, queries, k, rows.block(0, rows.count))]
    try:
        lines, found = _candidates(source.metric, queries, k, rows)
    except _TooManyCandidates:
        half = len(queries) // 2
        return _scan(source, queries[:half], k, rows) + _scan(source, queries[half:], k, rows)
    bounds = np.searchsorted(lines, np.arange(len(queries) + 1)).tolist()
    return [
        _settle(source, query, k, found[first:last])
        for query, first, last in zip(queries, bounds[:-1], bounds[1:], strict=True)
    ]


def _scan_block(source: ScanSource, queries: Float32Array, k: int, block: _Block) -> Found:
    """Both steps for one query and one block: what most filtered searches come down to, so without ceremony."""
    query = queries[0]
    wide = query.astype(np.float64)
    norm = math.sqrt(wide.dot(wide))
    gamma = _gamma(len(query))
    if source.metric == "cosine":
        queries = (wide / norm).astype(np.float32)[None, :]
        norm = 1.0
    query_norms = np.array([norm], np.float32)
    lower, slack = _lower_bounds(source.metric, block, queries, query_norms, gamma)
    bounds = lower[0]
    if block.keep is not None:
        bounds = np.where(block.keep, bounds, np.float32(np.inf))
    near = block.keep
    if k < len(bounds):
        best = bounds.argpartition(k - 1)[:k]
        limit = _upper(source.metric, bounds[best], slack[best], query_norms, gamma).max()
        near = ~(bounds > limit) if near is None else near & ~(bounds > limit)
    return _settle(source, query, k, block.rows if near is None else block.rows[near])


def _settle(source: ScanSource, query: Float32Array, k: int, rows: Int64Array) -> Found:
    """The second step, for one query and its candidates; many, when they are all equally near, go in chunks."""
    chunk = max(_COPIED_NUMBERS_PER_BLOCK // len(query), 1)
    if len(rows) <= chunk:
        return _scan_few(source, query, k, rows, take(source.column, rows))
    parts = [
        exact_distances(source.metric, take(source.column, rows[first : first + chunk]), query)
        for first in range(0, len(rows), chunk)
    ]
    return nearest(rows, np.concatenate(parts), k, source.ids)


def _candidates(
    metric: str, queries: Float32Array, k: int, rows: _Range | _Gathered
) -> tuple[Int64Array, Int64Array]:
    """Return (query number, row) of all pairs that may be among the k nearest, sorted by query."""
    count = len(queries)
    gamma = _gamma(queries.shape[1])
    query_norms = norms_of(queries)
    if metric == "cosine":
        queries = queries / query_norms[:, None]
        query_norms = np.ones_like(query_norms)
    best = np.empty((count, 0), np.float32)  # upper bounds of the k nearest so far
    limit = np.full(count, np.inf, np.float32)
    parts: list[tuple[Int64Array, Int64Array, Float32Array]] = []
    pairs = 0
    for block in _blocks(rows, queries):
        lower, slack = _lower_bounds(metric, block, queries, query_norms, gamma)
        near = ~(lower > limit[:, None])  # what is not a number stays in: the second step settles it
        if block.keep is not None:
            near &= block.keep
        if count == 1:
            columns = np.flatnonzero(near)
            lines = np.zeros(len(columns), np.int64)
            bounds = lower[0, columns]
        else:
            lines, columns = np.nonzero(near)
            bounds = lower[lines, columns]
        if not len(lines):
            continue
        parts.append((lines, block.rows[columns], bounds))
        pairs += len(lines)
        if pairs > _PAIRS_AT_ONCE + count * k and count > 1:
            raise _TooManyCandidates
        best = _k_smallest(best, lines, _upper(metric, bounds, slack[columns], query_norms[lines], gamma), k, count)
        if best.shape[1] == k:
            limit = best.max(axis=1)
    if not parts:
        return np.empty(0, np.int64), np.empty(0, np.int64)
    all_lines, all_rows, all_bounds = (np.concatenate(column) for column in zip(*parts, strict=True))
    near = ~(all_bounds > limit[all_lines])
    all_lines, all_rows = all_lines[near], all_rows[near]
    order = np.argsort(all_lines, kind="stable")
    return all_lines[order], all_rows[order]


def _gamma(dim: int) -> float:
    return (dim + 16) * _EPSILON


def _lower_bounds(
    metric: str, block: _Block, queries: Float32Array, query_norms: Float32Array, gamma: float
) -> tuple[Float32Array, Float32Array]:
    """Return lower bounds (q, n) of the distances, up to a constant per query, and the rows' share of the slack.

    A product of float32 vectors computed in any order is off by less than ``dim · ε · |x||q|``, and ``2|x||q| ≤ |x|² +
    |q|²``, so the error is bounded by a term of the row plus a term of the query. The row's is taken off here; twice it
    is the slack that :func:`_upper` adds again, with twice the query's.
    """
    vectors, norms = block.vectors, block.norms
    if metric == "cosine" and len(norms) and norms.min() < _TINY_NORM:  # products would underflow
        vectors, norms = vectors / norms[:, None], np.ones_like(norms)
    # One query is bound by memory, which one thread can saturate: BLAS would call in others for it, and wait for them.
    scores: Float32Array = np.vecdot(vectors, queries[0])[None, :] if len(queries) == 1 else queries @ vectors.T
    if metric == "l2":
        squares = norms * norms
        scores *= -2
        scores += (1 - gamma) * squares
        return scores, (2 * gamma) * squares
    if metric == "cosine":
        scores /= -norms
        return scores, np.zeros(len(norms), np.float32)
    slack = gamma * norms * float(query_norms.max())
    np.negative(scores, out=scores)
    scores -= slack
    return scores, 2 * slack


def _upper(
    metric: str, lower: Float32Array, slack: Float32Array, query_norms: Float32Array, gamma: float
) -> Float32Array:
    """Upper bounds, for pairs."""
    upper = lower + slack
    if metric == "l2":
        upper += (2 * gamma) * query_norms * query_norms
    elif metric == "cosine":
        upper += (2 * gamma) * query_norms
    return upper


def _k_smallest(best: Float32Array, lines: Int64Array, values: Float32Array, k: int, count: int) -> Float32Array:
    """Merge values (sorted by line) into each line's smallest; lines stay equally long, at most k, padded by inf."""
    if count == 1:
        merged = np.concatenate((best[0], values))[None, :]
    else:
        sizes = np.bincount(lines, minlength=count)
        places = np.arange(len(lines)) - np.repeat(np.cumsum(sizes) - sizes, sizes)
        fresh = np.full((count, int(sizes.max())), np.inf, np.float32)
        fresh[lines, places] = values
        merged = np.concatenate((best, fresh), axis=1)
    if merged.shape[1] <= k:
        return merged
    return np.partition(merged, k - 1, axis=1)[:, :k]


def take(column: VectorSource, rows: Int64Array) -> Float32Array:
    """Return the vectors of rows, (n, dim) float32, copied. ``take`` on a view is faster than indexing."""
    if not len(rows):
        return np.empty((0, column.view(0, 0).shape[1]), np.float32)
    vectors = column.view(0, int(rows.max()) + 1).take(rows, axis=0)
    return vectors.astype(np.float32, copy=False)

