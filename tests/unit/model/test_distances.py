"""Distances against float64 arithmetic written out, near and far from the origin."""

from __future__ import annotations

import numpy as np
import pytest

from vecraft_data_model.distances import distances, exact_distances, expansion_error, norms
from vecraft_data_model.errors import UnsupportedMetricException

METRICS = ("l2", "cosine", "ip")


def reference(metric: str, rows: np.ndarray, query: np.ndarray) -> np.ndarray:
    found = []
    for row in rows.astype(np.float64):
        point = query.astype(np.float64)
        if metric == "l2":
            found.append(sum((a - b) ** 2 for a, b in zip(row, point, strict=True)))
        else:
            product = sum(a * b for a, b in zip(row, point, strict=True))
            if metric == "cosine":
                product /= np.sqrt(sum(a * a for a in row)) * np.sqrt(sum(b * b for b in point))
            found.append(1 - product)
    return np.array(found)


@pytest.fixture(scope="module")
def data() -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(11)
    return rng.standard_normal((200, 48)).astype(np.float32), rng.standard_normal((7, 48)).astype(np.float32)


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("with_norms", [True, False])
def test_both_kernels_agree_with_the_definition(
    metric: str, with_norms: bool, data: tuple[np.ndarray, np.ndarray]
) -> None:
    matrix, queries = data
    table = distances(metric, matrix, queries, norms(matrix) if with_norms else None)
    assert table.shape == (7, 200)
    assert table.dtype == np.float32
    for i, query in enumerate(queries):
        expected = reference(metric, matrix, query)
        exact = exact_distances(metric, matrix, query)
        assert exact.dtype == np.float32
        np.testing.assert_allclose(exact, expected, rtol=1e-6, atol=1e-7)
        np.testing.assert_allclose(table[i], expected, rtol=1e-4, atol=1e-4)


def test_exact_l2_does_not_cancel_far_from_the_origin() -> None:
    rng = np.random.default_rng(5)
    base = np.full(64, 1000.0)
    rows = (base + rng.standard_normal((50, 64)) * 1e-2).astype(np.float32)
    query = rows[0]
    expected = reference("l2", rows, query)
    np.testing.assert_allclose(exact_distances("l2", rows, query), expected, rtol=1e-6)
    assert exact_distances("l2", rows, query)[0] == 0
    by_expansion = distances("l2", rows, query[None, :])[0]
    assert (by_expansion >= 0).all()
    off = np.abs(by_expansion.astype(np.float64) - expected).max()
    assert off > 1  # it does cancel: that is why the other kernel exists
    assert off <= expansion_error(64, float(norms(query[None, :])[0]), float(norms(rows).max()))


def test_the_error_bound_holds_on_ordinary_data() -> None:
    rng = np.random.default_rng(6)
    for dim in (1, 3, 128, 768):
        for offset in (0.0, 10.0):
            rows = (rng.standard_normal((100, dim)) + offset).astype(np.float32)
            queries = (rng.standard_normal((4, dim)) + offset).astype(np.float32)
            table = distances("l2", rows, queries)
            for i, query in enumerate(queries):
                off = np.abs(table[i] - reference("l2", rows, query)).max()
                assert off <= expansion_error(dim, float(norms(query[None, :])[0]), float(norms(rows).max()))


@pytest.mark.parametrize("metric", METRICS)
def test_an_exact_distance_does_not_depend_on_its_company(metric: str, data: tuple[np.ndarray, np.ndarray]) -> None:
    matrix, queries = data
    together = exact_distances(metric, matrix, queries[0])
    for lo, hi in ((0, 1), (3, 10), (17, 150), (199, 200)):
        assert exact_distances(metric, matrix[lo:hi], queries[0]).tobytes() == together[lo:hi].tobytes()
    odd = np.ascontiguousarray(np.concatenate([matrix[:, :1], matrix], axis=1))[:, 1:]  # unaligned, strided
    assert exact_distances(metric, odd, queries[0]).tobytes() == together.tobytes()


def test_cosine_stays_in_range_and_survives_tiny_vectors() -> None:
    rng = np.random.default_rng(8)
    rows = rng.standard_normal((30, 16)).astype(np.float32)
    tiny = (rows * np.float32(1e-30)).astype(np.float32)
    huge = (rows * np.float32(1e18)).astype(np.float32)
    expected = reference("cosine", rows, rows[0])
    for scaled in (rows, tiny, huge):
        for query in (rows[0], tiny[0], huge[0]):
            table = distances("cosine", scaled, query[None, :])[0]
            exact = exact_distances("cosine", scaled, query)
            assert table.min() >= 0
            assert table.max() <= 2
            assert exact.min() >= 0
            np.testing.assert_allclose(table, expected, atol=2e-6)
            np.testing.assert_allclose(exact, expected, atol=2e-6)
    opposite = exact_distances("cosine", -rows[:1], rows[0])
    assert opposite.tolist() == [2.0]


def test_norms_of_tiny_and_zero_rows() -> None:
    rows = np.array([[3, 4], [3e-30, 4e-30], [0, 0], [1e18, 0]], np.float32)
    np.testing.assert_allclose(norms(rows), [5, 5e-30, 0, 1e18], rtol=1e-6)
    assert norms(np.empty((0, 3), np.float32)).shape == (0,)


@pytest.mark.parametrize("metric", METRICS)
def test_no_rows_and_no_queries(metric: str) -> None:
    some, none = np.ones((2, 3), np.float32), np.empty((0, 3), np.float32)
    assert distances(metric, none, some).shape == (2, 0)
    assert distances(metric, some, none).shape == (0, 2)
    assert exact_distances(metric, none, some[0]).shape == (0,)


def test_the_largest_accepted_vectors_have_finite_distances() -> None:
    largest = np.full((1, 4), 9.2e18 / 2, np.float32)
    for metric in METRICS:
        assert np.isfinite(exact_distances(metric, -largest, largest[0])).all()
        assert np.isfinite(distances(metric, -largest, largest)).all()


def test_other_metrics_are_refused() -> None:
    one = np.ones((1, 2), np.float32)
    with pytest.raises(UnsupportedMetricException, match="'dot'"):
        distances("dot", one, one)
    with pytest.raises(UnsupportedMetricException, match="'dot'"):
        exact_distances("dot", one, one[0])
