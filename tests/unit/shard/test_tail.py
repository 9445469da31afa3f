"""Scans are exact: against float64 brute force, on data made to be awkward."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st
from random_examples import examples

from vecraft_data_model.distances import exact_distances, norms
from vecraft_shard.indexes import tail
from vecraft_shard.indexes.tail import ScanSource, nearest, scan_range, scan_rows

Float32Array = npt.NDArray[np.float32]


class Column:
    """Vectors in memory."""

    def __init__(self, vectors: npt.NDArray[np.floating]) -> None:
        self.vectors = vectors

    def view(self, lo: int, hi: int) -> npt.NDArray[np.floating]:
        return self.vectors[lo:hi]


def source(metric: str, vectors: npt.NDArray[np.floating], with_norms: bool = True) -> ScanSource:
    ids = [f"r{i * 7919 % 100_003:06d}" for i in range(len(vectors))]  # not in row order
    return ScanSource(metric, Column(vectors), norms(vectors.astype(np.float32)) if with_norms else None, ids)


def expected(
    src: ScanSource, vectors: npt.NDArray[np.floating], query: Float32Array, k: int, rows: npt.NDArray[np.int64]
) -> list[tuple[float, str, int]]:
    if not len(rows):
        return []
    distances = exact_distances(src.metric, vectors[rows].astype(np.float32), query)
    return sorted(zip(distances.tolist(), (src.ids[r] for r in rows), rows.tolist(), strict=True))[:k]


def found(src: ScanSource, answer: tuple[npt.NDArray[np.int64], Float32Array]) -> list[tuple[float, str, int]]:
    rows, distances = answer
    assert rows.dtype == np.int64 and distances.dtype == np.float32
    return [(d, src.ids[r], r) for r, d in zip(rows.tolist(), distances.tolist(), strict=True)]


def normal(rng: np.random.Generator, n: int, dim: int) -> Float32Array:
    return rng.normal(size=(n, dim)).astype(np.float32)


def far_from_origin(rng: np.random.Generator, n: int, dim: int) -> Float32Array:
    return (1000 + rng.normal(size=(n, dim)) * 0.01).astype(np.float32)


def very_different_norms(rng: np.random.Generator, n: int, dim: int) -> Float32Array:
    return (rng.normal(size=(n, dim)) * 10.0 ** rng.uniform(-20, 15, size=(n, 1))).astype(np.float32)


def many_equal(rng: np.random.Generator, n: int, dim: int) -> Float32Array:
    return rng.integers(0, 2, size=(n, dim)).astype(np.float32) + np.float32(0.5)


@pytest.mark.parametrize("make", [normal, far_from_origin, very_different_norms, many_equal])
@pytest.mark.parametrize("metric", ["l2", "cosine", "ip"])
@pytest.mark.parametrize("queries_count", [1, 5])
def test_ranges_and_row_lists_are_exact(
    metric: str, make: Callable[[np.random.Generator, int, int], Float32Array], queries_count: int
) -> None:
    rng = np.random.default_rng(5)
    dim = 6 if make is many_equal else 24
    vectors = make(rng, 9000, dim)
    src, queries = source(metric, vectors), make(rng, queries_count, dim)
    keep = rng.random(8900) < 0.6
    rare = np.flatnonzero(rng.random(9000) < 0.2)
    answers = {
        "range": (scan_range(src, queries, 10, 50, 8950), np.arange(50, 8950)),
        "masked": (scan_range(src, queries, 10, 50, 8950, keep), np.flatnonzero(keep) + 50),
        "rows": (scan_rows(src, queries, 10, rare), rare),
        "rows given": (scan_rows(src, queries, 10, rare, vectors[rare]), rare),
    }
    for name, (answer, rows) in answers.items():
        for query, line in zip(queries, answer, strict=True):
            assert found(src, line) == expected(src, vectors, query, 10, rows), name


@examples(60)
@given(
    seed=st.integers(0, 2**32 - 1),
    n=st.integers(0, 300),
    k=st.integers(1, 400),
    dim=st.sampled_from([1, 2, 33, 400]),
    metric=st.sampled_from(["l2", "cosine", "ip"]),
    half=st.booleans(),
    with_norms=st.booleans(),
    many=st.booleans(),
)
def test_any_size(seed: int, n: int, k: int, dim: int, metric: str, half: bool, with_norms: bool, many: bool) -> None:
    rng = np.random.default_rng(seed)
    vectors: npt.NDArray[np.floating] = normal(rng, n, dim)
    if half:
        vectors = vectors.astype(np.float16)
        vectors[np.all(vectors == 0, axis=1)] = 1
    src = source(metric, vectors, with_norms)
    queries = normal(rng, 3 if many else 1, dim)
    lo = int(rng.integers(0, n + 1))
    keep = None if rng.random() < 0.5 else rng.random(n - lo) < rng.random()
    rows = np.arange(lo, n) if keep is None else np.flatnonzero(keep) + lo
    for query, by_range, by_rows in zip(
        queries, scan_range(src, queries, k, lo, n, keep), scan_rows(src, queries, k, rows), strict=True
    ):
        want = expected(src, vectors, query, k, rows)
        assert found(src, by_range) == want
        assert found(src, by_rows) == want


def test_a_distance_does_not_depend_on_what_else_is_scanned() -> None:
    rng = np.random.default_rng(1)
    vectors = normal(rng, 6000, 100)
    for metric in ("l2", "cosine", "ip"):
        src, queries = source(metric, vectors), normal(rng, 40, 100)
        together = scan_range(src, queries, 5, 0, 6000)
        for query, (rows, distances) in zip(queries, together, strict=True):
            alone, again = scan_rows(src, query[None], 5, np.sort(rows))[0]
            assert alone.tolist() == rows.tolist() and again.tolist() == distances.tolist()


def test_a_column_of_one_vector_is_all_ties_and_memory_stays_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tail, "_PAIRS_AT_ONCE", 5000)
    grouped: list[int] = []
    scan = tail._scan

    def counting(src: ScanSource, queries: Float32Array, *rest: Any) -> Any:
        grouped.append(len(queries))
        return scan(src, queries, *rest)

    monkeypatch.setattr(tail, "_scan", counting)
    src = source("l2", np.ones((3000, 32), np.float32))
    want = sorted(range(3000), key=src.ids.__getitem__)[:7]
    for rows, distances in scan_range(src, np.full((8, 32), 2, np.float32), 7, 0, 3000):
        assert rows.tolist() == want and distances.tolist() == [32.0] * 7
    assert grouped[0] == 8 and 1 in grouped, "many queries were taken in smaller groups"


def test_nearest_breaks_ties_at_the_edge_by_id() -> None:
    ids = ["d", "c", "b", "a", "e"]
    rows, distances = nearest(np.arange(5), np.array([1, 1, 1, 1, 0], np.float32), 3, ids)
    assert [ids[r] for r in rows] == ["e", "a", "b"] and distances.tolist() == [0, 1, 1]
