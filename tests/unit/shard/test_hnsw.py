"""The graph: right answers, bad input kept out, files verified."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from vecraft_data_model.errors import CorruptionError, InvalidDataException, UnsupportedMetricException
from vecraft_shard.indexes.hnsw import HnswIndex

DIM = 16


def vectors(n: int, seed: int = 0) -> npt.NDArray[np.float32]:
    return np.random.default_rng(seed).normal(size=(n, DIM)).astype(np.float32)


def brute(metric: str, data: npt.NDArray[np.float32], query: npt.NDArray[np.float32]) -> npt.NDArray[Any]:
    wide, point = data.astype(np.float64), query.astype(np.float64)
    distances: npt.NDArray[Any]
    if metric == "l2":
        distances = ((wide - point) ** 2).sum(axis=1)
    elif metric == "ip":
        distances = 1 - wide @ point
    else:
        distances = 1 - wide @ point / (np.linalg.norm(wide, axis=1) * np.linalg.norm(point))
    return distances


@pytest.mark.parametrize("metric", ["l2", "cosine", "ip"])
def test_finds_the_nearest_over_several_additions(metric: str) -> None:
    data, index = vectors(3000), HnswIndex(DIM, metric)
    for at in range(0, 3000, 700):
        index.add(data[at : at + 700])
    queries = vectors(20, seed=1)
    labels, distances = index.search(queries, 10, 200)
    assert labels.dtype == np.int64 and distances.dtype == np.float32
    hits = 0
    for query, line, measured in zip(queries, labels, distances, strict=True):
        exact = brute(metric, data, query)
        np.testing.assert_allclose(measured, exact[line], rtol=1e-4, atol=1e-4)
        assert (np.diff(measured) >= 0).all()
        hits += len(set(line.tolist()) & set(np.argsort(exact)[:10].tolist()))
    assert hits >= 195


def test_float16_columns_are_taken_as_they_are() -> None:
    data, index = vectors(200).astype(np.float16), HnswIndex(DIM, "l2")
    index.add(data)
    labels, distances = index.search(data[7:8].astype(np.float32), 1, 50)
    assert labels.tolist() == [[7]] and distances.tolist() == [[0.0]]


def test_very_short_vectors_have_a_direction_under_cosine() -> None:
    data = vectors(50) * np.float32(1e-30)
    data[::2] *= np.float32(1e38)
    index = HnswIndex(DIM, "cosine")
    index.add(data)
    for factor in (1e-30, 1.0):
        queries = vectors(50) * np.float32(factor)
        labels, distances = index.search(queries, 1, 50)
        assert labels[:, 0].tolist() == list(range(50))
        np.testing.assert_allclose(distances, 0, atol=1e-5)


def test_asks_for_no_more_than_there_is() -> None:
    index = HnswIndex(DIM, "l2")
    assert index.search(vectors(2), 5, 10)[0].shape == (2, 0)
    index.add(vectors(3))
    assert sorted(index.search(vectors(1), 10, 64)[0][0].tolist()) == [0, 1, 2]


def test_a_graph_that_yields_too_little_is_asked_for_less() -> None:
    index = HnswIndex(DIM, "l2", M=2, ef_construction=1)  # so thin that parts of it are out of reach
    index.add(vectors(2000))
    labels, distances = index.search(vectors(30, seed=4), 50, 2000)
    assert len(labels) == 30 and ((labels >= 0) == np.isfinite(distances)).all()
    assert (labels[:, 0] >= 0).all()


@pytest.mark.parametrize("metric", ["L2", "euclidean", ""])
def test_unknown_metrics_are_refused(metric: str) -> None:
    with pytest.raises(UnsupportedMetricException, match="l2, cosine, ip"):
        HnswIndex(DIM, metric)


def test_bad_vectors_and_queries_never_reach_the_library() -> None:
    index = HnswIndex(DIM, "l2")
    with pytest.raises(InvalidDataException, match="shape"):
        index.add(np.zeros((3, DIM + 1), np.float32))
    with pytest.raises(InvalidDataException, match="NaN"):
        index.add(np.full((1, DIM), np.nan, np.float32))
    index.add(vectors(10))
    for query in (np.zeros((1, DIM - 1), np.float32), np.zeros(DIM, np.float32), np.zeros((1, DIM), np.float64)):
        with pytest.raises(InvalidDataException, match="float32 of shape"):
            index.search(query, 1, 10)  # type: ignore[arg-type]
    assert index.count == 10


def test_saved_graphs_are_verified_before_they_are_loaded(tmp_path: Path) -> None:
    data, index = vectors(400), HnswIndex(DIM, "cosine")
    index.add(data)
    path = tmp_path / "graph"
    checksum = index.save(path)
    loaded = HnswIndex(DIM, "cosine")
    loaded.load(path, checksum, 400)
    queries = vectors(5, seed=5)
    np.testing.assert_array_equal(loaded.search(queries, 10, 50)[0], index.search(queries, 10, 50)[0])
    loaded.add(vectors(100, seed=6))
    assert loaded.count == 500

    whole = path.read_bytes()
    fresh = HnswIndex(DIM, "cosine")
    with pytest.raises(CorruptionError, match="expected 399"):
        fresh.load(path, checksum, 399)
    for damaged in (whole[:-1], whole + b"\0", whole[:999] + bytes([whole[999] ^ 1]) + whole[1000:], b""):
        path.write_bytes(damaged)
        with pytest.raises(CorruptionError, match="checksum"):
            fresh.load(path, checksum, 400)
    with pytest.raises(CorruptionError, match="cannot be read"):
        fresh.load(tmp_path / "missing", checksum, 400)
    assert fresh.count == 0


def test_threads_that_ask_for_different_depths_get_them() -> None:
    data, index = vectors(4000), HnswIndex(DIM, "l2")
    index.add(data)
    queries = vectors(20, seed=7)
    expected = {ef: index.search(queries, 10, ef)[0] for ef in (10, 400)}
    wrong: list[int] = []

    def ask(ef: int) -> None:
        wrong.extend(ef for _ in range(20) if not np.array_equal(index.search(queries, 10, ef)[0], expected[ef]))

    threads = [threading.Thread(target=ask, args=(ef,)) for ef in (10, 400, 10, 400)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
