"""Schemas and names: what is accepted, and that the error names the value."""

from __future__ import annotations

import pickle
from typing import Any

import numpy as np
import pytest

from vecraft_data_model.errors import InvalidDataException, UnsupportedMetricException
from vecraft_data_model.schema import CollectionSchema, validate_name


def test_defaults_are_the_documented_ones() -> None:
    schema = CollectionSchema("images", 128)
    assert schema.to_dict() == {
        "name": "images", "dim": 128, "vector_type": "float32", "metric": "l2", "M": 16, "ef_construction": 200,
        "target_recall": 0.95, "checksum_algorithm": "sha256",
    }  # fmt: skip
    assert schema.dtype == np.float32


def test_float_means_float32_and_float16_is_stored_as_such() -> None:
    assert CollectionSchema(name="a", dim=1, vector_type="float").vector_type == "float32"
    assert CollectionSchema(name="a", dim=1, vector_type="float16").dtype == np.float16


def test_survives_dict_and_pickle_and_is_hashable() -> None:
    schema = CollectionSchema("ü.x-1", np.int64(3), "float16", "cosine", 32, 100, 1, "blake2b")  # type: ignore[arg-type]
    assert type(schema.dim) is int
    assert CollectionSchema.from_dict(schema.to_dict()) == schema
    assert pickle.loads(pickle.dumps(schema)) == schema
    assert hash(schema) == hash(CollectionSchema.from_dict(schema.to_dict()))


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("dim", 0), ("dim", 65537), ("dim", True), ("dim", 3.0), ("dim", "3"), ("dim", None),
        pytest.param("dim", 10**5000, id="dim-5001 digits"),
        ("M", 1), ("M", 513), ("ef_construction", 0), ("ef_construction", 10_001), ("ef_construction", 1.5),
        ("target_recall", 0.49), ("target_recall", 1.01), ("target_recall", float("nan")), ("target_recall", True),
        ("target_recall", "0.9"), ("vector_type", "int8"), ("vector_type", None), ("vector_type", ["float32"]),
        ("checksum_algorithm", "crc32"), ("checksum_algorithm", 1), ("name", ""), ("name", 5),
    ],
)  # fmt: skip
def test_a_bad_field_is_refused_by_name(field: str, value: Any) -> None:
    good: dict[str, Any] = {"name": "c", "dim": 3}
    with pytest.raises(InvalidDataException, match="name" if field == "name" else field):
        CollectionSchema(**{**good, field: value})


@pytest.mark.parametrize("metric", ["L2", "manhattan", None, 3, ["l2"]])
def test_an_unknown_metric_has_its_own_error(metric: Any) -> None:
    with pytest.raises(UnsupportedMetricException, match="l2, cosine, ip"):
        CollectionSchema("c", 3, metric=metric)


@pytest.mark.parametrize(
    ("data", "said"),
    [
        ({"name": "c", "dim": 3, "m": 16}, "unknown schema key 'm'"),
        ({"name": "c"}, "needs dim"),
        ({}, "needs name and dim"),
        ([("name", "c")], "must be an object"),
    ],
)
def test_a_dict_that_is_no_schema_is_refused(data: object, said: str) -> None:
    with pytest.raises(InvalidDataException, match=said):
        CollectionSchema.from_dict(data)


@pytest.mark.parametrize("name", ["a", "A.b-c_9", "_x", "9", "名前", "é" * 127, "a" * 255, "a..b"])
def test_names_that_are_fine(name: str) -> None:
    assert validate_name(name) == name


@pytest.mark.parametrize(
    "name",
    [
        "", "../x", "%2e%2e%2f", "/etc/passwd", ".", "..", ".hidden", "-x", "a" * 256, "é" * 128, "a\0b", "a\n", "a b",
        "a';DROP TABLE--", "a/b", "a\\b", "\ud800", None, 7, b"a",
    ],
)  # fmt: skip
def test_names_that_are_refused(name: Any) -> None:
    with pytest.raises(InvalidDataException, match="a collection name must be"):
        validate_name(name)
