"""What filters mean: corner cases one by one, and a comparison with a second, naive reading of the rules."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vecraft_data_model.filters import (
    matches,
    matches_document,
    parse_instant,
    parse_where,
    parse_where_document,
    values_at,
    words,
)


def holds(where: Any, metadata: Any) -> bool:
    return matches(parse_where(where), metadata)


def document_holds(where: Any, document: Any) -> bool:
    return matches_document(parse_where_document(where), document)


@pytest.mark.parametrize("stored", [1, True, "1", 1.5, None, [1], {"a": 1}, "true", 0, False, "", [], {}])
@pytest.mark.parametrize("asked", [1, True, "1", 1.5, None, "true", 0, False, ""])
def test_kinds_never_mix(stored: Any, asked: Any) -> None:
    same = type(stored) is type(asked) and stored == asked
    assert holds({"x": asked}, {"x": stored}) == same
    assert holds({"x": {"$ne": asked}}, {"x": stored}) != same
    assert holds({"x": {"$in": [asked, "other"]}}, {"x": stored}) == same
    assert holds({"x": {"$nin": [asked, "other"]}}, {"x": stored}) != same


def test_numbers_compare_exactly_across_int_and_float() -> None:
    assert holds({"x": 1.0}, {"x": 1})
    assert holds({"x": 0}, {"x": -0.0})
    big = 2**53
    assert not holds({"x": float(big)}, {"x": big + 1})
    assert holds({"x": {"$gt": float(big)}}, {"x": big + 1})
    assert not holds({"x": {"$lte": float(big)}}, {"x": big + 1})
    assert holds({"x": {"$lt": 2**63}}, {"x": 2**63 - 1})
    assert holds({"x": {"$lt": 10**30}}, {"x": 2**63 - 1})
    assert not holds({"x": {"$in": [2**62 + 1]}}, {"x": 2**62})


@pytest.mark.parametrize("metadata", [{}, None, {"y": 1}, {"x.y": 1}])
def test_a_missing_field_matches_complements_only(metadata: Any) -> None:
    conditions: list[Any] = [
        {"$eq": 1}, {"$eq": None}, {"$in": [1, None]}, {"$gt": 0}, {"$lt": "z"}, {"$exists": True}, {"$contains": 1},
        {"$gte": "2020-01-01"}, {"$lte": 0},
    ]  # fmt: skip
    for condition in conditions:
        assert not holds({"x": condition}, metadata), condition
        assert holds({"x": {"$not": condition}}, metadata), condition
        assert holds({"$not": {"x": condition}}, metadata), condition
    complements: list[Any] = [{"$ne": 1}, {"$ne": None}, {"$nin": [1]}, {"$exists": False}]
    for condition in complements:
        assert holds({"x": condition}, metadata), condition


def test_null_is_a_value() -> None:
    assert holds({"x": None}, {"x": None})
    assert holds({"x": {"$exists": True}}, {"x": None})
    assert not holds({"x": {"$ne": None}}, {"x": None})
    assert not holds({"x": {"$gte": 0}}, {"x": None})


def test_lists_are_looked_into_by_contains_only() -> None:
    stored = {"x": [1, "a", None, [2], {"k": True}]}
    for inside in (1, 1.0, "a", None, [2], {"k": True}):
        assert holds({"x": {"$contains": inside}}, stored), inside
    for absent in (True, "1", 2, {"k": 1}, [2, 2]):
        assert not holds({"x": {"$contains": absent}}, stored), absent
    assert not holds({"x": 1}, stored)
    assert not holds({"x": {"$in": [1, "a"]}}, stored)
    assert not holds({"x": {"$gt": 0}}, stored)
    assert holds({"x": {"$eq": [1, "a", None, [2.0], {"k": True}]}}, stored)
    assert not holds({"x": {"$eq": [1, "a"]}}, stored)
    assert not holds({"x": {"$contains": "a"}}, {"x": "abc"})
    assert not holds({"x": {"$contains": 1}}, {})


def test_dotted_names_reach_in_and_literal_keys_count_too() -> None:
    assert holds({"a.b.c": 1}, {"a": {"b": {"c": 1}}})
    assert holds({"a.b.c": 1}, {"a.b": {"c": 1}})
    assert holds({"a.b.c": 1}, {"a": {"b.c": 1}})
    assert holds({"a.b.c": 1}, {"a.b.c": 1})
    both = {"a.b": 1, "a": {"b": 2}}
    assert holds({"a.b": 1}, both)
    assert holds({"a.b": 2}, both)
    assert not holds({"a.b": {"$ne": 1}}, both)
    assert sorted(values_at(both, "a.b")) == [1, 2]
    assert not holds({"a.b": {"$exists": True}}, {"a": [{"b": 1}]})
    assert not holds({"a.b": {"$exists": True}}, {"a": "b"})
    assert holds({"a": {"b": 1}}, {"a": {"b": 1}})
    assert not holds({"a": {"b": 1}}, {"a": {"b": 1, "c": 2}})
    assert holds({"": 1, ".": 2, "a.": 3}, {"": 1, ".": 2, "a": {"": 3}})


def test_a_name_of_many_dots_costs_no_more_than_the_record_has_keys() -> None:
    record: dict[str, Any] = {}
    inner = record
    for _ in range(60):
        inner["a.a"], inner["a"] = {"b": 1}, {}
        inner = inner["a"]
    inner["a.a.a"] = {"a": 7}
    assert holds({".".join("a" * 64): 7}, record)
    assert list(values_at(record, ".".join("a" * 2000))) == []
    assert list(values_at(record, "a." * 10 + "a.a.b")) == [1]


def test_objects_and_lists_are_equal_by_value_and_kind() -> None:
    assert holds({"x": {"$eq": {"a": [1, {"b": None}]}}}, {"x": {"a": [1.0, {"b": None}]}})
    assert not holds({"x": {"$eq": {"a": [True]}}}, {"x": {"a": [1]}})
    assert not holds({"x": {"$eq": [1, 2]}}, {"x": [2, 1]})


@pytest.mark.parametrize(
    ("condition", "stored", "expected"),
    [
        ({"$gte": "2020-01-01"}, "2020-01-01T00:00:00Z", True),
        ({"$gt": "2020-01-01"}, "2020-01-01T00:00:00Z", False),
        ({"$gt": "2020-01-01T00:30:00+01:00"}, "2020-01-01", True),
        ({"$lt": "2020-01-01"}, "not a date", False),
        ({"$gt": "2020-01-01"}, "not a date", False),
        ({"$lt": "2020-01-01"}, "1999", False),
        ({"$gte": "2020-01-01"}, 1577836800, False),
        ({"$gte": "2020"}, "2020-06-01", True),
        ({"$lt": "b"}, "2020-06-01", True),
        ({"$eq": "2020-01-01"}, "2020-01-01T00:00:00", False),
        ({"$in": ["2020-01-01"]}, "2020-01-01", True),
        ({"$gt": "Z"}, "a", True),
        ({"$gt": "z"}, "é", True),
        ({"$lt": "\U0001f600"}, "\uffff", True),
        ({"$gte": ""}, "", True),
        ({"$gt": ""}, "\0", True),
    ],
)
def test_strings_and_instants_in_ranges(condition: Any, stored: Any, expected: bool) -> None:
    assert holds({"x": condition}, {"x": stored}) is expected


def test_combinations() -> None:
    assert holds({}, {"x": 1})
    assert holds({"$or": [{"x": 2}, {}]}, None)
    assert not holds({"x": []}, {"x": []})
    assert holds({"x": {"$gt": 1, "$lt": 3}, "y": {"$not": {"$eq": 1, "$exists": True}}}, {"x": 2, "y": 2})
    assert holds({"$not": {"$not": {"x": 1}}}, {"x": 1})


def test_documents() -> None:
    text, obj = "The Café is closed; the cafe opens at 9.", {"title": "x", "n": {"k": 3}, "tags": ["a"]}
    assert document_holds({"$contains": "closed; the"}, text)
    assert not document_holds({"$contains": "Closed"}, text)
    assert not document_holds({"$contains": "Cafe"}, text)
    assert document_holds({"$contains": ""}, "")
    assert document_holds({"$matches": "CAFE 9 the"}, text)
    assert not document_holds({"$matches": "clos"}, text)
    assert not document_holds({"$matches": "cafe missing"}, text)
    assert document_holds({"n.k": {"$gt": 2}, "tags": {"$contains": "a"}}, obj)
    assert document_holds({"title": {"$ne": "x"}}, text)
    for other in (obj, None):
        assert not document_holds({"$contains": "x"}, other)
        assert not document_holds({"$matches": "x"}, other)
        assert document_holds({"$not_contains": "x"}, other)
        assert document_holds({"$not": {"$contains": ""}}, other)
    assert document_holds({}, None)
    assert not document_holds({"$contains": "x", "title": "x"}, obj)
    assert document_holds({"$or": [{"$contains": "x"}, {"title": "x"}]}, obj)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Hello, WORLD! it's 3.14_x", ["hello", "world", "it", "s", "3", "14", "x"]),
        ("Crème Brûlée", ["creme", "brulee"]),
        ("Straße STRASSE", ["strasse", "strasse"]),
        ("ﬁn ①", ["fin", "1"]),
        ("日本語 東京", ["日本語", "東京"]),
        ("İstanbul", ["istanbul"]),
        ("ΣΊΣΥΦΟΣ σίσυφος", ["σισυφοσ", "σισυφοσ"]),
        ("\0a\0", ["a"]),
        ("…—!", []),
        ("", []),
    ],
)
def test_words(text: str, expected: list[str]) -> None:
    assert words(text) == expected


@given(st.text(max_size=40))
def test_words_of_words_are_those_words(text: str) -> None:
    found = words(text)
    assert words(" ".join(found)) == found
    assert words(text.upper()) == words(text.upper().lower().upper())


# -------------------------------------------------------------- a second reading of the rules, from raw filters

NAMES = st.sampled_from(["a", "b", "a.b", "a.a", "b.a.b"])
SCALARS = st.sampled_from(
    [None, True, False, 0, 1, -1, 1.0, 0.5, 2**53, 2**53 + 1, float(2**53), 2**63 - 1, -(2**63), "", "0", "1", "a",
     "2020-01-01", "2020-01-01T00:00:00Z", "2020-06-01T12:00+02:00", "zz", "é"]
)  # fmt: skip
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["a", "b", "a.b"]), inner, max_size=2),
    max_leaves=5,
)
METADATA = st.none() | st.dictionaries(st.sampled_from(["a", "b", "a.b", "b.a"]), VALUES, max_size=4)
RANGE_OPERANDS = SCALARS.filter(lambda v: v is not None and not isinstance(v, bool))
CONDITIONS = st.one_of(
    st.fixed_dictionaries({"$eq": VALUES}), st.fixed_dictionaries({"$ne": VALUES}),
    st.fixed_dictionaries({"$in": st.lists(VALUES, max_size=3)}),
    st.fixed_dictionaries({"$nin": st.lists(VALUES, max_size=3)}),
    st.fixed_dictionaries({"$exists": st.booleans()}), st.fixed_dictionaries({"$contains": VALUES}),
    st.fixed_dictionaries({"$gt": RANGE_OPERANDS, "$lte": RANGE_OPERANDS}),
    st.fixed_dictionaries({"$gte": RANGE_OPERANDS}), st.fixed_dictionaries({"$lt": RANGE_OPERANDS}),
)  # fmt: skip
WHERES = st.recursive(
    st.dictionaries(NAMES, CONDITIONS | CONDITIONS.map(lambda c: {"$not": c}) | SCALARS, min_size=1, max_size=2),
    lambda inner: st.one_of(
        st.lists(inner, min_size=1, max_size=3).map(lambda items: {"$and": items}),
        st.lists(inner, min_size=1, max_size=3).map(lambda items: {"$or": items}),
        inner.map(lambda item: {"$not": item}),
    ),
    max_leaves=4,
)


def equal(a: Any, b: Any) -> bool:
    number = (int, float)
    if isinstance(a, bool) or isinstance(b, bool):
        return isinstance(a, bool) and isinstance(b, bool) and a == b
    if isinstance(a, number) and isinstance(b, number):
        return a == b
    if type(a) is not type(b):
        return False
    if isinstance(a, list):
        return len(a) == len(b) and all(map(equal, a, b))
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(equal(a[key], b[key]) for key in a)
    return bool(a == b)


def reachable(value: Any, parts: list[str]) -> list[Any]:
    if not parts:
        return [value]
    if not isinstance(value, dict):
        return []
    found = []
    for n in range(1, len(parts) + 1):
        key = ".".join(parts[:n])
        if key in value:
            found += reachable(value[key], parts[n:])
    return found


def side(operator: str, stored: Any, operand: Any) -> bool:
    if isinstance(operand, str):
        if not isinstance(stored, str):
            return False
        instant = parse_instant(operand)
        if instant is not None:
            there = parse_instant(stored)
            if there is None:
                return False
            stored, operand = there, instant
    elif isinstance(stored, bool) or not isinstance(stored, int | float):
        return False
    if operator in ("$gt", "$gte"):
        return bool(stored > operand or (operator == "$gte" and stored == operand))
    return bool(stored < operand or (operator == "$lte" and stored == operand))


def condition_holds(operator: str, operand: Any, found: list[Any]) -> bool:
    if operator == "$eq":
        return any(equal(value, operand) for value in found)
    if operator == "$ne":
        return not any(equal(value, operand) for value in found)
    if operator == "$in":
        return any(equal(value, item) for value in found for item in operand)
    if operator == "$nin":
        return not any(equal(value, item) for value in found for item in operand)
    if operator == "$exists":
        return bool(found) is operand
    if operator == "$contains":
        return any(isinstance(value, list) and any(equal(item, operand) for item in value) for value in found)
    if operator == "$not":
        return not all(condition_holds(name, inner, found) for name, inner in operand.items())
    return any(side(operator, value, operand) for value in found)


def naive(where: Any, metadata: Any) -> bool:
    for name, operand in where.items():
        if name == "$and":
            held = all(naive(item, metadata) for item in operand)
        elif name == "$or":
            held = any(naive(item, metadata) for item in operand)
        elif name == "$not":
            held = not naive(operand, metadata)
        else:
            found = reachable(metadata or {}, name.split("."))
            conditions = operand if isinstance(operand, dict) else {"$eq": operand}
            held = all(condition_holds(operator, inner, found) for operator, inner in conditions.items())
        if not held:
            return False
    return True


@given(WHERES, METADATA)
def test_agrees_with_a_naive_reading_of_the_rules(where: Any, metadata: Any) -> None:
    assert holds(where, metadata) == naive(where, metadata)
    assert document_holds(where, metadata) == naive(where, metadata)
