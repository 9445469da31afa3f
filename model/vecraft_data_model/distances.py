"""Distances between float32 vectors; smaller is nearer, for every metric.

=========  ======================  ==========================================
metric     distance                range
=========  ======================  ==========================================
l2         squared Euclidean       from 0
cosine     1 − cosine              0 to 2; zero vectors are refused before
ip         1 − inner product       any
=========  ======================  ==========================================

There are two kernels. :func:`distances` is for choosing candidates: one matrix product for many queries, and so l2 by
expansion, |a|² − 2ab + |b|², which loses digits when a and b are near to each other and far from the origin; how many
is bounded by :func:`expansion_error`. :func:`exact_distances` is for what is answered: computed row by row in float64
and rounded once, so that the distance of a pair does not depend on what else was in the batch, nor on the shard.
"""

from __future__ import annotations

from typing import Final

import numpy as np
import numpy.typing as npt

from vecraft_data_model.errors import UnsupportedMetricException
from vecraft_data_model.schema import METRICS

Float32Array = npt.NDArray[np.float32]

# Below this, a squared float32 norm has lost digits to underflow.
_TINY: Final = np.float32(1e-30)
_EPSILON: Final = float(np.finfo(np.float32).eps)


def norms(matrix: Float32Array) -> Float32Array:
    """Return the Euclidean norms of rows: (n, dim) float32 → (n,) float32; right for very small rows too."""
    squared = np.einsum("ij,ij->i", matrix, matrix)
    lengths: Float32Array = np.sqrt(squared)
    tiny = np.flatnonzero(squared < _TINY)
    if len(tiny):
        rows = matrix[tiny].astype(np.float64)
        lengths[tiny] = np.sqrt(np.einsum("ij,ij->i", rows, rows))
    return lengths


def distances(
    metric: str, matrix: Float32Array, queries: Float32Array, matrix_norms: Float32Array | None = None
) -> Float32Array:
    """Return the distances of all queries to all rows, to float32 accuracy of the *norms* (see the module).

    Args:
        metric: ``"l2"``, ``"cosine"`` or ``"ip"``.
        matrix: (n, dim) float32.
        queries: (q, dim) float32.
        matrix_norms: (n,) float32, :func:`norms` of ``matrix`` if they are at hand; not used by ip.

    Returns:
        (q, n) float32, a new array.

    Raises:
        UnsupportedMetricException: Another metric.
    """
    if metric == "ip":
        products: Float32Array = queries @ matrix.T
        np.subtract(np.float32(1), products, out=products)
        return products
    lengths = norms(matrix) if matrix_norms is None else matrix_norms
    query_lengths = norms(queries)
    if metric == "l2":
        squares: Float32Array = queries @ matrix.T
        squares *= np.float32(-2)
        squares += (lengths * lengths)[None, :]
        squares += (query_lengths * query_lengths)[:, None]
        np.maximum(squares, np.float32(0), out=squares)
        return squares
    if metric == "cosine":
        # Both sides are made unit vectors where products of tiny ones would underflow.
        if matrix.size and lengths.min() < 1e-15:
            matrix = np.divide(matrix, lengths[:, None], dtype=np.float32)
            lengths = np.ones_like(lengths)
        units: Float32Array = np.divide(queries, query_lengths[:, None], dtype=np.float32)
        cosines: Float32Array = units @ matrix.T
        cosines /= lengths[None, :]
        np.subtract(np.float32(1), cosines, out=cosines)
        np.maximum(cosines, np.float32(0), out=cosines)
        np.minimum(cosines, np.float32(2), out=cosines)
        return cosines
    raise _unsupported(metric)


def exact_distances(metric: str, rows: Float32Array, query: Float32Array) -> Float32Array:
    """Return the distances of one query (dim,) to rows (m, dim), computed in float64: (m,) float32.

    Meant for the rows that are answered, not for scanning. Each depends on its own row and the query alone.

    Raises:
        UnsupportedMetricException: A metric other than l2, cosine and ip.
    """
    wide, point = rows.astype(np.float64), query.astype(np.float64)
    if metric == "l2":
        wide -= point
        result = np.einsum("ij,ij->i", wide, wide)
    elif metric == "ip":
        result = 1.0 - np.einsum("ij,j->i", wide, point)
    elif metric == "cosine":
        lengths = np.sqrt(np.einsum("ij,ij->i", wide, wide)) * np.sqrt(np.einsum("j,j->", point, point))
        result = np.clip(1.0 - np.einsum("ij,j->i", wide, point) / lengths, 0.0, 2.0)
    else:
        raise _unsupported(metric)
    rounded: Float32Array = result.astype(np.float32)
    return rounded


def expansion_error(dim: int, query_norm: float, largest_norm: float) -> float:
    """Return a bound on how far l2 by :func:`distances` may be off, for rows of at most ``largest_norm``.

    Candidates taken with at least twice this margin around the k-th distance hold the true k nearest.
    """
    # Rounding of a float32 product of length dim, summed in any order, is below dim · eps/2 · |a| |b|; BLAS sums in
    # blocks and stays far below. The squares, from rounded norms, and the two additions add a few units.
    return (0.5 * dim + 6.0) * _EPSILON * (query_norm + largest_norm) ** 2


def _unsupported(metric: str) -> UnsupportedMetricException:
    return UnsupportedMetricException(f"metric must be one of {', '.join(METRICS)}; got {metric!r}")
