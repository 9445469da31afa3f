"""The graph: right answers, bad input kept out, files verified."""

from __future__ import annotations

import errno
import threading
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import xxhash

from vecraft_data_model.errors import (
    CorruptionError,
    InvalidDataException,
    StorageFailureException,
    StorageFullError,
    UnsupportedMetricException,
)
from vecraft_shard.indexes import hnsw
from vecraft_shard.indexes.graph_file import is_packed, pack
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


@pytest.mark.parametrize("metric", ["l2", "cosine", "ip"])
@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_a_loaded_graph_answers_as_the_saved_one(tmp_path: Path, metric: str, dtype: type) -> None:
    data, index = vectors(3000).astype(dtype), HnswIndex(DIM, metric)
    for first in range(0, 3000, 1000):
        index.add(data[first : first + 1000])
    path = tmp_path / "graph"
    checksum = index.save(path)
    assert path.stat().st_size < 3000 * 150, "the vectors are not in it"
    loaded = HnswIndex(DIM, metric)
    loaded.load(path, checksum, 3000, lambda first, last: data[first:last])
    assert [file.name for file in tmp_path.iterdir()] == ["graph"]
    queries = vectors(20, seed=5)
    (labels, distances), (found, measured) = index.search(queries, 10, 50), loaded.search(queries, 10, 50)
    np.testing.assert_array_equal(found, labels)
    if metric == "cosine":
        np.testing.assert_allclose(measured, distances, rtol=0, atol=1e-6)
    else:
        np.testing.assert_array_equal(measured, distances)
    loaded.add(vectors(100, seed=6))
    assert loaded.count == 3100
    if metric != "ip":
        assert loaded.search(vectors(100, seed=6)[:5], 1, 100)[0].ravel().tolist() == [3000, 3001, 3002, 3003, 3004]


def test_saved_graphs_are_verified_before_they_are_loaded(tmp_path: Path) -> None:
    data, index = vectors(400), HnswIndex(DIM, "cosine")
    index.add(data)
    path = tmp_path / "graph"
    checksum = index.save(path)
    fresh = HnswIndex(DIM, "cosine")

    def load(path: Path = path, count: int = 400, checksum: int = checksum) -> None:
        fresh.load(path, checksum, count, lambda first, last: data[first:last])

    whole = path.read_bytes()
    with pytest.raises(CorruptionError, match="expected 399"):
        load(count=399)
    for damaged in (whole[:-1], whole + b"\0", whole[:999] + bytes([whole[999] ^ 1]) + whole[1000:], b""):
        path.write_bytes(damaged)
        with pytest.raises(CorruptionError, match="checksum"):
            load()
    with pytest.raises(CorruptionError, match="cannot be read"):
        load(tmp_path / "missing")
    for other in (whole[:8] + b"\2" + whole[9:], whole[:100], whole[:2000]):  # whole by its checksum, all the same
        path.write_bytes(other)
        with pytest.raises(CorruptionError):
            load(checksum=xxhash.xxh3_64_intdigest(other) & (2**63 - 1))
    assert fresh.count == 0
    assert [file.name for file in tmp_path.iterdir()] == ["graph"]
    path.write_bytes(whole)
    with pytest.raises(InvalidDataException, match="finite"):
        fresh.load(path, checksum, 400, lambda first, last: np.full((last - first, DIM), np.nan, np.float32))
    assert fresh.count == 0
    load()
    assert fresh.count == 400


def test_graphs_as_hnswlib_writes_them_are_loaded(tmp_path: Path) -> None:
    """Earlier states of this format kept them so; and whatever has not the form that can be packed."""
    data, index = vectors(300), HnswIndex(DIM, "l2")
    index.add(data)
    path = tmp_path / "graph"
    index._index.save_index(str(path))
    checksum = xxhash.xxh3_64_intdigest(path.read_bytes()) & (2**63 - 1)

    def nobody(first: int, last: int) -> npt.NDArray[np.float32]:
        raise AssertionError("the vectors are in the file")

    loaded = HnswIndex(DIM, "l2")
    loaded.load(path, checksum, 300, nobody)
    assert loaded.search(data[7:8], 1, 50)[0].tolist() == [[7]]
    assert not pack(path, tmp_path / "packed", DIM + 1), "another dimension than the file's"

    shuffled = HnswIndex(DIM, "l2")
    shuffled.add(data[:2])
    shuffled._index.add_items(data[2:4], np.array([3, 2]))
    shuffled.count = 4
    checksum = shuffled.save(path)
    assert not is_packed(path) and not (tmp_path / "graph.whole").exists()
    loaded.load(path, checksum, 4, nobody)
    assert loaded.search(data[2:3], 1, 4)[0].tolist() == [[3]]


def test_a_disk_without_room_for_hnswlibs_form_is_said_to_be_full(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data, index = vectors(300), HnswIndex(DIM, "l2")
    index.add(data)
    path = tmp_path / "graph"
    checksum = index.save(path)

    def full(*_: object) -> None:
        (tmp_path / "graph.whole").write_bytes(b"some of it")
        raise OSError(errno.ENOSPC, "no room")

    monkeypatch.setattr(hnsw, "unpack", full)
    loaded = HnswIndex(DIM, "l2")
    with pytest.raises(StorageFullError):
        loaded.load(path, checksum, 300, lambda first, last: data[first:last])
    monkeypatch.setattr(hnsw, "pack", full)
    with pytest.raises(StorageFullError):
        index.save(path)
    assert loaded.count == 0 and not (tmp_path / "graph.whole").exists()


@pytest.mark.parametrize(("code", "kind"), [(errno.EIO, StorageFailureException), (errno.ENOSPC, StorageFullError)])
def test_a_disk_that_does_not_remove_hnswlibs_form_is_said_to_have_failed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int, kind: type[StorageFailureException]
) -> None:
    data, index = vectors(300), HnswIndex(DIM, "l2")
    index.add(data)
    path = tmp_path / "graph"
    checksum = index.save(path)

    def stuck(file: Path, missing_ok: bool = False) -> None:
        raise OSError(code, "it stays", str(file))

    monkeypatch.setattr(Path, "unlink", stuck)
    loaded = HnswIndex(DIM, "l2")
    for attempt in (
        lambda: index.save(tmp_path / "another"),
        lambda: loaded.load(path, checksum, 300, lambda first, last: data[first:last]),
    ):
        with pytest.raises(StorageFailureException, match=r"\.whole: it stays") as caught:
            attempt()
        assert type(caught.value) is kind
    assert loaded.count == 0


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
