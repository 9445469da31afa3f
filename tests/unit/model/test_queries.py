"""Query packets: everything that can be wrong is found when they are made."""

from __future__ import annotations

import json
import pickle
from datetime import UTC, datetime
from typing import Any

import numpy as np
import pytest

from vecraft_data_model import QueryPacket, VectorPacket
from vecraft_data_model.errors import (
    ChecksumValidationFailureError,
    InvalidDataException,
    InvalidFilterError,
    NullOrZeroVectorException,
    VectorDimensionMismatchException,
)
from vecraft_data_model.filters import parse_where, parse_where_document
from vecraft_data_model.search_options import check_include

VALUES = np.array([0.5, 1.5], np.float32)


def test_defaults_are_the_documented_ones() -> None:
    query = QueryPacket(query_vector=np.array([0.5, 1.5]))
    assert query.query_vector.dtype == np.float32
    assert (query.k, query.where, query.where_document, query.ef, query.exact, query.max_distance, query.include) == (
        10, None, None, None, False, None, ("metadata", "document"),
    )  # fmt: skip
    assert query.checksum_algorithm == "sha256"
    assert query.filter is None


def test_filters_are_parsed() -> None:
    query = QueryPacket(VALUES, where={"a": 1}, where_document={"$contains": "x"})
    assert query.filter == parse_where({"a": 1})
    assert query.document_filter == parse_where_document({"$contains": "x"})


@pytest.mark.parametrize(
    ("arguments", "error", "said"),
    [
        ({"k": 0}, InvalidDataException, "k must be"), ({"k": -1}, InvalidDataException, "k must be"),
        ({"k": 10**9}, InvalidDataException, "got 1000000000"), ({"k": 1.5}, InvalidDataException, "got 1.5"),
        ({"k": "10"}, InvalidDataException, "got '10'"), ({"ef": 0}, InvalidDataException, "ef must be"),
        ({"ef": 10**9}, InvalidDataException, "ef must be"), ({"exact": 1}, InvalidDataException, "exact must be"),
        ({"max_distance": float("nan")}, InvalidDataException, "max_distance must be"),
        ({"include": "metadata"}, InvalidDataException, "include must be a list"),
        ({"include": ["distance"]}, InvalidDataException, "include must be a list"),
        ({"include": None}, InvalidDataException, "include must be a list"),
        ({"include": [["metadata"]]}, InvalidDataException, "include must be a list"),
        ({"where": {"$bad": 1}}, InvalidFilterError, "where.$bad"),
        ({"where": [1]}, InvalidFilterError, "where: must be an object"),
        ({"where_document": {"$contains": 1}}, InvalidFilterError, "where_document.$contains"),
        ({"checksum_algorithm": "crc"}, InvalidDataException, "checksum_algorithm"),
        ({"query_vector": []}, NullOrZeroVectorException, "query_vector must not be empty"),
        ({"query_vector": [[1, 2]]}, VectorDimensionMismatchException, "query_vector must be one vector"),
        ({"query_vector": [float("inf")]}, InvalidDataException, "query_vector must be finite"),
        ({"query_vector": ["a"]}, InvalidDataException, "query_vector must be numbers"),
    ],
)  # fmt: skip
def test_bad_arguments_are_refused(arguments: dict[str, Any], error: type[Exception], said: str) -> None:
    with pytest.raises(error) as caught:
        QueryPacket(**{"query_vector": VALUES, **arguments})
    assert said in str(caught.value)


def test_a_query_keeps_its_own_vector() -> None:
    mine = VALUES.copy()
    query, packet = QueryPacket(mine), QueryPacket(VectorPacket(mine))
    mine[0] = 9
    assert query.query_vector.tolist() == packet.query_vector.tolist() == VALUES.tolist()
    with pytest.raises(ValueError, match="read-only"):
        query.query_vector[0] = 1


def test_every_form_comes_back_the_same() -> None:
    query = QueryPacket(
        VALUES, k=3, where={"at": {"$gte": datetime(2020, 1, 1, tzinfo=UTC)}, "x": [1, "1", np.int64(3)]},
        where_document={"$matches": "cat"}, ef=50, exact=True, max_distance=0.5, include=["vector"],
        checksum_algorithm="md5",
    )  # fmt: skip
    for form in (
        pickle.loads(pickle.dumps(query)),
        QueryPacket.from_dict(query.to_dict()),
        QueryPacket.from_dict(json.loads(json.dumps(query.to_dict()))),
    ):
        assert form == query
        assert form.filter == query.filter
        assert form.include == ("vector",)
        assert hash(form) == hash(query)
    assert query != QueryPacket(VALUES, k=3)


@pytest.mark.parametrize(
    "query",
    [
        QueryPacket(None, query_text="red oak"),
        QueryPacket(VALUES, query_text="red oak", fusion={"vector": 1, "text": 2}),
        QueryPacket(VALUES, query_text="red oak", fusion=(0.25, 0.5)),
        QueryPacket(VALUES, group_by="a.b"),
        QueryPacket(VALUES, group_by="a.b", group_size=3),
    ],
)
def test_searches_by_text_and_by_group_come_back_the_same(query: QueryPacket) -> None:
    forms = [pickle.loads(pickle.dumps(query)), QueryPacket.from_dict(json.loads(json.dumps(query.to_dict())))]
    for form in forms:
        assert form == query and hash(form) == hash(query)
        assert form.options() == query.options()
        assert form.queries().shape == query.queries().shape == ((1, 0) if query.query_vector is None else (1, 2))
    assert query != QueryPacket(VALUES)
    assert query.options().text is None or query.options().text.words == ("oak", "red")  # type: ignore[union-attr]


def test_equality_with_a_datetime_has_no_json_form() -> None:
    moment = datetime(2020, 1, 1, tzinfo=UTC)
    for where in ({"at": moment}, {"at": {"$ne": moment}}):
        query = QueryPacket(VALUES, where=where)
        assert pickle.loads(pickle.dumps(query)) == query
        with pytest.raises(InvalidDataException, match=r"use \$gte and \$lte"):
            query.to_dict()


def test_dicts_that_are_no_query() -> None:
    good = QueryPacket(VALUES).to_dict()
    assert QueryPacket.from_dict({"query_vector": [0.5, 1.5]}) == QueryPacket(VALUES)
    with pytest.raises(ChecksumValidationFailureError):
        QueryPacket.from_dict({**good, "k": 11})
    with pytest.raises(InvalidDataException, match="unknown query key 'top_k'"):
        QueryPacket.from_dict({**good, "top_k": 11})
    with pytest.raises(InvalidDataException, match="needs a query_vector"):
        QueryPacket.from_dict({"k": 3})
    with pytest.raises(InvalidDataException, match="must be an object"):
        QueryPacket.from_dict([1])  # type: ignore[arg-type]


def test_include() -> None:
    assert check_include(()) == ()
    assert check_include({"vector"}) == ("vector",)
    assert check_include(iter(["document"])) == ("document",)
