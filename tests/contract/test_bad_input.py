"""Hostile values, in every argument they fit: the documented error, nothing changed, and the next request answered."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from vecraft_data_model import CollectionSchema, DataPacket, QueryPacket
from vecraft_data_model.errors import (
    CollectionNotExistedException,
    InvalidDataException,
    NullOrZeroVectorException,
    UnsupportedMetricException,
    VecraftError,
    VectorDimensionMismatchException,
)
from vecraft_db.client.vecraft_client import VecraftClient

GOOD = [1.0, 2.0, 3.0, 4.0]
NAN, INF = math.nan, math.inf

VECTORS: dict[str, Any] = {
    "nan": [1, NAN, 3, 4],
    "inf": [1, INF, 3, 4],
    "minus-inf": [1, -INF, 3, 4],
    "1e400": [1, 1e400, 3, 4],
    "huge-integer": [1, 10**400, 3, 4],
    "norm-overflow": [3e38, 3e38, 3e38, 3e38],
    "double-overflow": np.array([1e39, 0, 0, 0]),
    "empty": [],
    "dim-1": [1, 2, 3],
    "dim+1": [1, 2, 3, 4, 5],
    "nested": [[1, 2, 3, 4]],
    "ragged": [[1], [2, 3], 4, 5],
    "strings": ["1", "2", "3", "4"],
    "string": "1234",
    "bytes": b"1234",
    "nulls": [None, None, None, None],
    "booleans": [True, False, True, False],
    "one-boolean": [True, 1.0, 2.0, 3.0],
    "objects": [object()] * 4,
    "complex": [1j, 2, 3, 4],
    "scalar": 5,
    "none": None,
    "dict": {"0": 1},
    "million": np.ones(1_000_000, np.float32),
    "object-array": np.array([1, 2, 3, 4], dtype=object),
    "text-array": np.array(["1", "2", "3", "4"]),
    "bool-array": np.ones(4, dtype=bool),
    "datetime-array": np.zeros(4, dtype="datetime64[s]"),
}

IDS: dict[str, Any] = {
    "empty": "",
    "minus-one": -1,
    "zero": 0,
    "2**63": 2**63,
    "2**64": 2**64,
    "float": 1.0,
    "none": None,
    "bytes": b"a",
    "boolean": True,
    "list": ["a"],
    "megabyte": "x" * 1_000_000,
    "1025-bytes": "x" * 1025,
    "too-long-in-utf8": "é" * 513,
    "nul": "a\0b",
    "surrogate": "a\ud800",
}

NAMES: dict[str, Any] = {
    "parent": "../x",
    "percent": "%2e%2e%2f",
    "absolute": "/etc/passwd",
    "dot": ".",
    "dots": "..",
    "300-bytes": "x" * 300,
    "control": "a\nb",
    "nul": "a\0b",
    "sql": "a';DROP TABLE--",
    "empty": "",
    "surrogate": "\ud800",
    "space": " a",
    "integer": 1,
    "none": None,
    "bytes": b"a",
    "list": ["a"],
}

# ------------------------------------------------------------------------------------------------- vectors


@pytest.mark.parametrize("vector", list(VECTORS.values()), ids=list(VECTORS))
def test_bad_vectors(client: VecraftClient, guarded: str, vector: Any) -> None:
    with pytest.raises(InvalidDataException):
        client.insert(guarded, DataPacket("bad", vector))
    with pytest.raises(InvalidDataException):
        client.upsert(guarded, ids=["fine", "bad"], vectors=[GOOD, vector])
    with pytest.raises(InvalidDataException):
        client.search(guarded, QueryPacket(vector))
    with pytest.raises(InvalidDataException):
        client.search_many(guarded, [GOOD, vector])


@pytest.mark.parametrize("dim", [3, 5, 1_000_000])
def test_wrong_dimensions_are_named(client: VecraftClient, guarded: str, dim: int) -> None:
    vector = np.ones(dim, np.float32)
    for call in (
        lambda: client.insert(guarded, DataPacket("bad", vector)),
        lambda: client.upsert(guarded, ids=["bad"], vectors=vector[None]),
        lambda: client.search(guarded, QueryPacket(vector)),
        lambda: client.search_many(guarded, vector[None]),
    ):
        with pytest.raises(VectorDimensionMismatchException, match="4") as caught:
            call()
        assert str(dim) in caught.value.message


def test_the_record_with_the_bad_vector_is_named(client: VecraftClient, guarded: str) -> None:
    vectors = np.ones((100, 4), np.float32)
    vectors[42, 1] = NAN
    with pytest.raises(InvalidDataException, match="r42"):
        client.upsert(guarded, ids=[f"r{i}" for i in range(100)], vectors=vectors)


def test_a_zero_vector_has_no_direction(client: VecraftClient, make: Callable[..., str]) -> None:
    name = make(metric="cosine")
    client.insert(name, DataPacket("good", GOOD))
    for call in (
        lambda: client.insert(name, DataPacket("zero", [0, 0, 0, 0])),
        lambda: client.upsert(name, ids=["a", "zero"], vectors=[GOOD, [0, 0, 0, 0]]),
        lambda: client.search(name, QueryPacket([0, 0, 0, 0])),
        lambda: client.search_many(name, [GOOD, [0, 0, 0, 0]]),
    ):
        with pytest.raises(NullOrZeroVectorException):
            call()
    assert client.count(name) == 1
    assert client.search(name, QueryPacket(GOOD, k=1))[0].record_id == "good"


def test_denormals_are_numbers(client: VecraftClient, collection: str) -> None:
    tiny = np.full(4, 1e-42, np.float32)
    client.insert(collection, DataPacket("tiny", tiny))
    np.testing.assert_array_equal(client.get(collection, "tiny").vector.to_numpy(), tiny)  # type: ignore[union-attr]
    assert client.search(collection, QueryPacket(tiny, k=1))[0].distance == 0.0


@pytest.mark.parametrize("vector", [[70000, 0, 0, 0], [-1e6, 0, 0, 0]])
def test_half_precision_has_a_smaller_range(client: VecraftClient, make: Callable[..., str], vector: Any) -> None:
    name = make(vector_type="float16")
    with pytest.raises(InvalidDataException, match="float16"):
        client.insert(name, DataPacket("bad", vector))
    assert client.count(name) == 0


# -------------------------------------------------------------------------------------------- search arguments


@pytest.mark.parametrize("k", [0, -1, 10**9, 1.5, "10", None, True, [1], NAN, 2**20 + 1])
def test_bad_k(client: VecraftClient, guarded: str, k: Any) -> None:
    with pytest.raises(InvalidDataException, match=r"k must be an integer from 1 to 1048576"):
        client.search(guarded, QueryPacket(GOOD, k=k))
    with pytest.raises(InvalidDataException, match="k must be"):
        client.search_many(guarded, [GOOD], k)


@pytest.mark.parametrize("ef", [0, -1, 10**9, 1.5, "10", True])
def test_bad_ef(client: VecraftClient, guarded: str, ef: Any) -> None:
    for call in (
        lambda: client.search(guarded, QueryPacket(GOOD, ef=ef)),
        lambda: client.search_many(guarded, [GOOD], ef=ef),
        lambda: client.set_ef(guarded, ef),
    ):
        with pytest.raises(InvalidDataException, match="ef must be"):
            call()


@pytest.mark.parametrize("max_distance", [NAN, INF, "1", True, [1]])
def test_bad_max_distance(client: VecraftClient, guarded: str, max_distance: Any) -> None:
    with pytest.raises(InvalidDataException, match="max_distance"):
        client.search(guarded, QueryPacket(GOOD, max_distance=max_distance))
    with pytest.raises(InvalidDataException, match="max_distance"):
        client.search_many(guarded, [GOOD], max_distance=max_distance)


@pytest.mark.parametrize("include", ["metadata", ["vectors"], [1], 5, [["metadata"]]])
def test_bad_include(client: VecraftClient, guarded: str, include: Any) -> None:
    with pytest.raises(InvalidDataException, match="include"):
        client.search(guarded, QueryPacket(GOOD, include=include))
    with pytest.raises(InvalidDataException, match="include"):
        client.search_many(guarded, [GOOD], include=include)
    with pytest.raises(InvalidDataException, match="include"):
        list(client.scan(guarded, include=include))


@pytest.mark.parametrize("exact", ["yes", 1, None])
def test_bad_flags(client: VecraftClient, guarded: str, exact: Any) -> None:
    with pytest.raises(InvalidDataException, match="exact"):
        client.search(guarded, QueryPacket(GOOD, exact=exact))
    with pytest.raises(InvalidDataException, match="exact"):
        client.search_many(guarded, [GOOD], exact=exact)


@pytest.mark.parametrize("limit", [0, -1, 1.5, "10", 2**31, True])
def test_bad_limits(client: VecraftClient, guarded: str, limit: Any) -> None:
    with pytest.raises(InvalidDataException, match="limit"):
        list(client.scan(guarded, limit=limit))


@pytest.mark.parametrize("query", [GOOD, None, "x", {"query_vector": GOOD}])
def test_a_search_takes_a_query_packet(client: VecraftClient, guarded: str, query: Any) -> None:
    with pytest.raises(InvalidDataException, match="QueryPacket"):
        client.search(guarded, query)


def test_thousands_of_queries_at_once(client: VecraftClient, collection: str) -> None:
    client.upsert(collection, ids=["a", "b"], vectors=np.eye(2, 4))
    answers = client.search_many(collection, np.tile(np.eye(2, 4), (6000, 1)), 1, include=[], timeout=60)
    assert len(answers) == 12_000
    assert [answer[0].record_id for answer in answers[:4]] == ["a", "b", "a", "b"]
    with pytest.raises(InvalidDataException, match="65536 queries"):
        client.search_many(collection, np.ones((65_537, 4), np.float32))


# ------------------------------------------------------------------------------------------------------ ids


@pytest.mark.parametrize("record_id", list(IDS.values()), ids=list(IDS))
def test_bad_ids(client: VecraftClient, guarded: str, record_id: Any) -> None:
    for call in (
        lambda: client.insert(guarded, DataPacket(record_id, GOOD)),
        lambda: client.upsert(guarded, ids=["fine", record_id], vectors=[GOOD, GOOD]),
        lambda: client.get(guarded, record_id),
        lambda: client.get_many(guarded, ["good", record_id]),
        lambda: client.delete(guarded, record_id),
        lambda: client.delete_many(guarded, ["good", record_id]),
    ):
        with pytest.raises(InvalidDataException, match="id"):
            call()


def test_an_id_twice_in_one_batch(client: VecraftClient, guarded: str) -> None:
    packets = [DataPacket("twice", GOOD), DataPacket("once", GOOD), DataPacket("twice", GOOD)]
    calls: list[Callable[[], Any]] = [
        lambda: client.upsert(guarded, packets),
        lambda: client.upsert(guarded, ids=["twice", "once", "twice"], vectors=[GOOD] * 3),
        lambda: client.delete_many(guarded, ["twice", "good", "twice"]),
    ]
    for call in calls:
        with pytest.raises(InvalidDataException, match="twice"):
            call()


def test_composed_and_decomposed_forms_are_two_ids(client: VecraftClient, collection: str) -> None:
    client.insert(collection, DataPacket("é", [1, 0, 0, 0]))
    client.insert(collection, DataPacket("e\u0301", [0, 1, 0, 0]))
    assert client.count(collection) == 2


@pytest.mark.parametrize("ids", ["good", 5, None, {"a": 1}.values, object()])
def test_ids_must_be_a_list(client: VecraftClient, guarded: str, ids: Any) -> None:
    with pytest.raises(InvalidDataException):
        client.get_many(guarded, ids)
    with pytest.raises(InvalidDataException):
        client.upsert(guarded, ids=ids, vectors=[GOOD])
    with pytest.raises(InvalidDataException):
        client.delete_many(guarded, ids)


# ---------------------------------------------------------------------------------------------------- names


@pytest.mark.parametrize("bad", list(NAMES.values()), ids=list(NAMES))
def test_bad_names(client: VecraftClient, guarded: str, bad: Any) -> None:
    with pytest.raises(InvalidDataException):
        client.create_collection(CollectionSchema(name=bad, dim=4))
    for call in (
        lambda: client.insert(bad, DataPacket("a", GOOD)),
        lambda: client.upsert(bad, ids=["a"], vectors=[GOOD]),
        lambda: client.get(bad, "a"),
        lambda: client.get_many(bad, ["a"]),
        lambda: client.delete(bad, "a"),
        lambda: client.delete_many(bad, where={"a": 1}),
        lambda: client.search(bad, QueryPacket(GOOD)),
        lambda: client.search_many(bad, [GOOD]),
        lambda: client.count(bad),
        lambda: list(client.scan(bad)),
        lambda: client.drop_collection(bad),
        lambda: client.describe_collection(bad),
        lambda: client.set_ef(bad, 10),
    ):
        with pytest.raises((InvalidDataException, CollectionNotExistedException)):
            call()


@pytest.mark.needs("aliases")
@pytest.mark.parametrize("bad", list(NAMES.values()), ids=list(NAMES))
def test_bad_aliases(client: VecraftClient, guarded: str, bad: Any) -> None:
    with pytest.raises(InvalidDataException):
        client.set_alias(bad, guarded)


def test_unknown_collections(client: VecraftClient, name: str) -> None:
    for call in (
        lambda: client.insert(name, DataPacket("a", GOOD)),
        lambda: client.upsert(name, ids=["a"], vectors=[GOOD]),
        lambda: client.get(name, "a"),
        lambda: client.get_many(name, ["a"]),
        lambda: client.delete(name, "a"),
        lambda: client.delete_many(name, where={"a": 1}),
        lambda: client.search(name, QueryPacket(GOOD)),
        lambda: client.search_many(name, [GOOD]),
        lambda: client.search_many(name, []),
        lambda: client.count(name),
        lambda: list(client.scan(name)),
        lambda: client.drop_collection(name),
        lambda: client.describe_collection(name),
        lambda: client.set_ef(name, 10),
        lambda: client.alter_collection(name, target_recall=0.9),
    ):
        with pytest.raises(CollectionNotExistedException, match=name):
            call()


@pytest.mark.parametrize(
    ("settings", "error"),
    [
        ({"dim": 0}, InvalidDataException),
        ({"dim": -1}, InvalidDataException),
        ({"dim": 65_537}, InvalidDataException),
        ({"dim": "4"}, InvalidDataException),
        ({"dim": 4.0}, InvalidDataException),
        ({"dim": True}, InvalidDataException),
        ({"metric": "manhattan"}, UnsupportedMetricException),
        ({"metric": None}, UnsupportedMetricException),
        ({"vector_type": "int8"}, InvalidDataException),
        ({"M": 1}, InvalidDataException),
        ({"M": 513}, InvalidDataException),
        ({"ef_construction": 0}, InvalidDataException),
        ({"target_recall": 1.1}, InvalidDataException),
        ({"target_recall": NAN}, InvalidDataException),
        ({"checksum_algorithm": "crc"}, InvalidDataException),
    ],
    ids=str,
)
def test_bad_schemas(client: VecraftClient, name: str, settings: dict[str, Any], error: type[VecraftError]) -> None:
    fields: dict[str, Any] = {"name": name, "dim": 4} | settings
    with pytest.raises(error):
        client.create_collection(CollectionSchema(**fields))
    with pytest.raises(CollectionNotExistedException):
        client.count(name)


@pytest.mark.parametrize("schema", [None, "c", {"name": "c", "dim": 4}])
def test_a_collection_needs_a_schema(client: VecraftClient, schema: Any) -> None:
    with pytest.raises(InvalidDataException, match="CollectionSchema"):
        client.create_collection(schema)
