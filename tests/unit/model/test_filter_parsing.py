"""What parses, into which nodes, and what the error says when it does not."""

from __future__ import annotations

import pickle
from datetime import UTC, date, datetime, timedelta, timezone
from typing import Any

import numpy as np
import pytest

from vecraft_data_model.errors import InvalidFilterError
from vecraft_data_model.filters import (
    BOOL,
    INSTANT,
    NULL,
    NUMBER,
    STRING,
    And,
    Compare,
    Contains,
    DocumentAnd,
    DocumentNot,
    DocumentOr,
    DocumentWhere,
    Eq,
    Exists,
    In,
    Not,
    Or,
    TextContains,
    TextMatches,
    key_of,
    parse_instant,
    parse_where,
    parse_where_document,
)

NEW_YEAR = 1577836800_000_000  # 2020-01-01T00:00Z in microseconds


@pytest.mark.parametrize(
    ("where", "node"),
    [
        ({}, And(())),
        ({"a": 1}, Eq("a", (NUMBER, 1))),
        ({"a": None}, Eq("a", (NULL, None))),
        ({"a": {}}, Eq("a", key_of({}))),
        ({"a": {"b": True}}, Eq("a", key_of({"b": True}))),
        ({"a": [1, "1", True]}, In("a", frozenset({(NUMBER, 1), (STRING, "1"), (BOOL, True)}))),
        ({"a": []}, In("a", frozenset())),
        ({"a": {"$eq": [1, 2]}}, Eq("a", key_of([1, 2]))),
        ({"a": {"$ne": "x"}}, Not(Eq("a", (STRING, "x")))),
        ({"a": {"$nin": [1]}}, Not(In("a", frozenset({(NUMBER, 1)})))),
        ({"a": {"$gt": 1.5}}, Compare("a", "gt", NUMBER, 1.5)),
        ({"a": {"$lte": "m"}}, Compare("a", "lte", STRING, "m")),
        ({"a": {"$gte": "2020-01-01"}}, Compare("a", "gte", INSTANT, NEW_YEAR)),
        ({"a": {"$lt": date(2020, 1, 1)}}, Compare("a", "lt", INSTANT, NEW_YEAR)),
        ({"a": {"$exists": True}}, Exists("a")),
        ({"a": {"$exists": False}}, Not(Exists("a"))),
        ({"a": {"$contains": None}}, Contains("a", (NULL, None))),
        ({"a": {"$not": {"$gt": 1}}}, Not(Compare("a", "gt", NUMBER, 1))),
        ({"a": {"$gt": np.int64(1)}}, Compare("a", "gt", NUMBER, 1)),
        (
            {"a": {"$gt": 1, "$lt": 2}, "b": True},
            And((Compare("a", "gt", NUMBER, 1), Compare("a", "lt", NUMBER, 2), Eq("b", (BOOL, True)))),
        ),
        ({"$and": [{"a": 1}]}, And((Eq("a", (NUMBER, 1)),))),
        ({"$or": [{"a": 1}, {}]}, Or((Eq("a", (NUMBER, 1)), And(())))),
        ({"$not": {"a": 1, "b": 2}}, Not(And((Eq("a", (NUMBER, 1)), Eq("b", (NUMBER, 2)))))),
        ({"": 1, "a.b.": 2}, And((Eq("", (NUMBER, 1)), Eq("a.b.", (NUMBER, 2))))),
        ({'a"; DROP TABLE x --': 1}, Eq('a"; DROP TABLE x --', (NUMBER, 1))),
    ],
)
def test_where(where: Any, node: object) -> None:
    parsed = parse_where(where)
    assert parsed == node
    assert pickle.loads(pickle.dumps(parsed)) == parsed
    assert hash(pickle.loads(pickle.dumps(parsed))) == hash(parsed)


def test_nodes_of_different_kinds_are_different() -> None:
    one, true, text = ({"a": value} for value in (1, True, "1"))
    assert len({parse_where(one), parse_where(true), parse_where(text), parse_where({"a": 1.0})}) == 3


def test_equality_with_a_datetime_meets_every_spelling_of_the_instant() -> None:
    parsed = parse_where({"at": datetime(2020, 1, 1, 1, tzinfo=timezone(timedelta(hours=1)))})
    assert parsed == And((Compare("at", "gte", INSTANT, NEW_YEAR), Compare("at", "lte", INSTANT, NEW_YEAR)))


@pytest.mark.parametrize(
    ("where", "node"),
    [
        ({}, DocumentAnd(())),
        ({"$contains": "x"}, TextContains("x")),
        ({"$not_contains": "x"}, DocumentNot(TextContains("x"))),
        ({"$matches": "Red  red CAT!"}, TextMatches(("cat", "red"))),
        ({"$matches": '" OR * NEAR('}, TextMatches(("near", "or"))),
        ({"$or": [{"$contains": ""}, {"a": 1}]}, DocumentOr((TextContains(""), DocumentWhere(Eq("a", (NUMBER, 1)))))),
        ({"$not": {"$contains": "x"}}, DocumentNot(TextContains("x"))),
        (
            {"a.b": {"$gt": 1, "$lt": 3}},
            DocumentWhere(And((Compare("a.b", "gt", NUMBER, 1), Compare("a.b", "lt", NUMBER, 3)))),
        ),
        (
            {"$and": [{"t": {"$contains": "x"}}]},
            DocumentAnd((DocumentWhere(Contains("t", (STRING, "x"))),)),
        ),
    ],
)
def test_where_document(where: Any, node: object) -> None:
    parsed = parse_where_document(where)
    assert parsed == node
    assert pickle.loads(pickle.dumps(parsed)) == parsed


@pytest.mark.parametrize(
    ("where", "path", "said"),
    [
        (None, "where", "must be an object, got null"),
        ([], "where", "must be an object, got a list of 0"),
        ("a = 1", "where", "must be an object"),
        ({1: 2}, "where", "names must be strings, got the number 1"),
        ({"$nor": []}, "where.$nor", "unknown operator; accepted here are $and, $or, $not"),
        ({"$gt": 5}, "where.$gt", "stands inside a field"),
        ({"$and": {}}, "where.$and", "a list of one or more filters, got an object of 0"),
        ({"$or": []}, "where.$or", "a list of one or more filters"),
        ({"$and": [{"a": 1}, {"age": {"$gt": None}}]}, "where.$and[1].age.$gt", "number, a string or a datetime"),
        ({"$and": [{"a": 1}, 7]}, "where.$and[1]", "must be an object, got the number 7"),
        ({"$not": {"$or": [{"x": {"$regex": "a"}}]}}, "where.$not.$or[0].x.$regex", "unknown operator"),
        ({"a": {"$gt": True}}, "where.a.$gt", "got true"),
        ({"a": {"$lt": [1]}}, "where.a.$lt", "got a list of 1"),
        ({"a": {"$lt": {"b": 1}}}, "where.a.$lt", "got an object of 1"),
        ({"a": {"$lt": float("nan")}}, "where.a.$lt", "finite"),
        ({"a": {"$lt": float("inf")}}, "where.a.$lt", "finite"),
        ({"a": {"$lt": 10**5000}}, "where.a.$lt", "an integer of 16610 bits"),
        ({"a": float("nan")}, "where.a", "finite"),
        ({"a": [1, b"x"]}, "where.a[1]", "must be a JSON value"),
        ({"a": object()}, "where.a", "must be a JSON value"),
        ({"a": [datetime(2020, 1, 1, tzinfo=UTC)]}, "where.a[0]", "datetime, for $gt"),
        ({"a": {"$in": 3}}, "where.a.$in", "must be a list of values"),
        ({"a": {"$nin": "abc"}}, "where.a.$nin", "must be a list of values"),
        ({"a": {"$exists": 1}}, "where.a.$exists", "must be true or false"),
        ({"a": {"$not": 3}}, "where.a.$not", "an object of operators"),
        ({"a": {"$not": {"b": 3}}}, "where.a.$not", "an object of operators"),
        ({"a": {"$gt": 1, "b": 2}}, "where.a.b", "cannot be mixed"),
        ({"a": "\ud800"}, "where.a", "valid Unicode"),
        ({"\ud800": 1}, "where", "valid Unicode"),
        ({"a": {"b": {1: 2}}}, "where.a", "must be a JSON value"),
    ],
)  # fmt: skip
def test_a_faulty_where_is_refused_with_its_path(where: Any, path: str, said: str) -> None:
    with pytest.raises(InvalidFilterError) as caught:
        parse_where(where)
    assert caught.value.details["path"] == path
    assert caught.value.message.startswith(f"{path}: ")
    assert said in caught.value.message


@pytest.mark.parametrize(
    ("where", "path", "said"),
    [
        ("x", "where_document", "must be an object"),
        ({"$contains": 3}, "where_document.$contains", "must be a string, got the number 3"),
        ({"$contains": ["x"]}, "where_document.$contains", "must be a string"),
        ({"$matches": "?!"}, "where_document.$matches", "at least one word"),
        ({"$regex": ".*"}, "where_document.$regex", "unknown operator; accepted here are $contains"),
        ({"$and": [{"$gt": 3}]}, "where_document.$and[0].$gt", "unknown operator"),
        ({"title": {"$matches": "x"}}, "where_document.title.$matches", "unknown operator"),
    ],
)
def test_a_faulty_where_document_is_refused_with_its_path(where: Any, path: str, said: str) -> None:
    with pytest.raises(InvalidFilterError) as caught:
        parse_where_document(where)
    assert caught.value.message.startswith(f"{path}: ")
    assert said in caught.value.message


def nested(depth: int, operator: str = "$and") -> dict[str, Any]:
    where: dict[str, Any] = {"a": 1}
    for _ in range(depth):
        where = {operator: [where] if operator != "$not" else where}
    return where


@pytest.mark.parametrize("operator", ["$and", "$or", "$not"])
@pytest.mark.parametrize("parse", [parse_where, parse_where_document])
def test_nesting_is_bounded(parse: Any, operator: str) -> None:
    parse(nested(60, operator))
    for depth in (70, 1000, 20_000):
        with pytest.raises(InvalidFilterError, match="nests at most 64 deep"):
            parse(nested(depth, operator))


def test_field_level_not_and_values_are_bounded_in_depth_too() -> None:
    condition: Any = {"$gt": 1}
    value: Any = 1
    for _ in range(5000):
        condition, value = {"$not": condition}, [value]
    for where in ({"a": condition}, {"a": {"$eq": value}}, {"a": {"$in": [value]}}, {"a": {"$contains": value}}):
        with pytest.raises(InvalidFilterError, match="nests at most 64 deep"):
            parse_where(where)


def test_the_number_of_conditions_and_of_values_is_bounded() -> None:
    parse_where({"a": {"$in": list(range(100_000))}})
    with pytest.raises(InvalidFilterError, match="at most 100000 of them, this one has 100001"):
        parse_where({"a": {"$in": list(range(100_001))}})
    with pytest.raises(InvalidFilterError, match="at most 10000 conditions"):
        parse_where({"$or": [{"a": i} for i in range(10_001)]})
    with pytest.raises(InvalidFilterError, match="at most 10000 conditions"):
        parse_where({f"f{i}": i for i in range(10_001)})
    with pytest.raises(InvalidFilterError, match="at most 4096 characters"):
        parse_where({"a." * 5000: 1})


@pytest.mark.parametrize(
    ("text", "instant"),
    [
        ("2020-01-01", NEW_YEAR),
        ("2020-01-01T00:00", NEW_YEAR),
        ("2020-01-01 00:00:00", NEW_YEAR),
        ("2020-01-01T00:00:00Z", NEW_YEAR),
        ("2020-01-01t00:00:00z", NEW_YEAR),
        ("2020-01-01T01:00:00+01:00", NEW_YEAR),
        ("2020-01-01T01:00:00+0100", NEW_YEAR),
        ("2020-01-01T01:00:00+01", NEW_YEAR),
        ("2019-12-31T23:59:59.999999Z", NEW_YEAR - 1),
        ("2020-01-01T00:00:00.000001999", NEW_YEAR + 1),
        ("1969-12-31T23:59:59Z", -1_000_000),
        ("0001-01-01T00:00:00+23:59", -62135596800_000_000 - 86340_000_000),
        ("20200101", None), ("10111213", None), ("2020-1-1", None), ("2020-02-30", None), ("2020-W01-1", None),
        ("2020-01-01T24:00", None), ("2020-01-01T12", None), ("2020-01-01T12:00:60", None), ("2020-01-01Z", None),
        ("2020-01-01T12:00 ", None), (" 2020-01-01", None), ("٢٠٢٠-٠١-٠١", None), ("0000-01-01", None), ("", None),
        ("2020-01-01\n", None), ("2020-01-01X12:00", None),
    ],
)  # fmt: skip
def test_instants(text: str, instant: int | None) -> None:
    assert parse_instant(text) == instant
