"""A filter that went to JSON and back accepts what it accepted before."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from vecraft_data_model.filters import matches, matches_document, parse_where, parse_where_document
from vecraft_db.client.filter_json import where_document_of, where_of

FIELDS = st.sampled_from(["a", "b", "a.b", "x"])
INSTANTS = st.sampled_from(["2020-01-01", "2020-01-01T12:00:00+02:00", "1999-12-31T23:59:59.123456Z"])
SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-3, 3),
    st.sampled_from([0.5, 1.0, 2.0**60]),
    st.sampled_from(["", "u", "$x"]),
    INSTANTS,
)
VALUES = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=2) | st.dictionaries(FIELDS, inner, max_size=2), max_leaves=4
)
ORDERED = st.one_of(st.integers(-3, 3), st.floats(-2, 2), st.sampled_from(["u", "2020"]), INSTANTS)
OPERATORS = st.one_of(
    st.fixed_dictionaries(
        {}, optional={"$gt": ORDERED, "$gte": ORDERED, "$lt": ORDERED, "$lte": ORDERED, "$ne": VALUES}
    ),
    st.fixed_dictionaries({"$in": st.lists(VALUES, max_size=3)}),
    st.fixed_dictionaries({"$nin": st.lists(VALUES, max_size=3)}, optional={"$exists": st.booleans()}),
    st.fixed_dictionaries({"$eq": VALUES}, optional={"$contains": VALUES}),
).filter(bool)
CONDITIONS = st.one_of(OPERATORS, st.fixed_dictionaries({"$not": OPERATORS}, optional={"$gt": ORDERED}), VALUES)


def _valid(where: dict[str, Any]) -> bool:
    try:
        parse_where(where)
    except ValueError:
        return False
    except Exception as error:
        if getattr(error, "code", "") == "invalid_filter":
            return False
        raise
    return True


FLAT = st.dictionaries(FIELDS, CONDITIONS, max_size=3)
WHERES = st.recursive(
    FLAT,
    lambda inner: st.one_of(
        st.fixed_dictionaries({"$and": st.lists(inner, min_size=1, max_size=3)}, optional={"a": CONDITIONS}),
        st.fixed_dictionaries({"$or": st.lists(inner, min_size=1, max_size=3)}, optional={"$not": inner}),
        st.fixed_dictionaries({"$not": inner}, optional={"b": CONDITIONS}),
    ),
    max_leaves=6,
).filter(_valid)
METADATA = st.none() | st.dictionaries(FIELDS, VALUES, max_size=4)


@given(where=WHERES, records=st.lists(METADATA, min_size=1, max_size=5))
@example(  # two conditions on one field, and beside the second what no field's conditions can be joined with
    where={"a": {"$gt": 0}, "$and": [{"a": {"$lt": 3}, "$or": [{"b": 1}, {"c": 1}]}]},
    records=[{"a": 1, "b": 1}, {"a": 3, "b": 1}, {"a": 1, "b": 2}],
)
def test_metadata_filters(where: dict[str, Any], records: list[Any]) -> None:
    node = parse_where(where)
    sent = where_of(node)
    back = parse_where(json.loads(json.dumps(sent)))
    assert [matches(back, record) for record in records] == [matches(node, record) for record in records]
    assert _depth(sent) <= _depth(where) + 3


TEXTS = st.sampled_from(["red fox", "Red", "", "a b c", "été"])
DOCUMENT_LEAVES = st.one_of(
    st.fixed_dictionaries({"$contains": TEXTS}),
    st.fixed_dictionaries({"$not_contains": TEXTS}, optional={"$contains": TEXTS}),
    st.fixed_dictionaries({"$matches": st.sampled_from(["fox red", "Été", "b"])}),
    st.dictionaries(FIELDS, CONDITIONS, max_size=2).filter(_valid),
)
DOCUMENT_FILTERS = st.recursive(
    DOCUMENT_LEAVES,
    lambda inner: st.one_of(
        st.fixed_dictionaries({"$and": st.lists(inner, min_size=1, max_size=3)}),
        st.fixed_dictionaries({"$or": st.lists(inner, min_size=1, max_size=3)}),
        st.fixed_dictionaries({"$not": inner}),
    ),
    max_leaves=5,
)
DOCUMENTS = st.one_of(st.none(), TEXTS, st.dictionaries(FIELDS, VALUES, max_size=3))


@given(where=DOCUMENT_FILTERS, documents=st.lists(DOCUMENTS, min_size=1, max_size=5))
def test_document_filters(where: dict[str, Any], documents: list[Any]) -> None:
    node = parse_where_document(where)
    back = parse_where_document(json.loads(json.dumps(where_document_of(node))))
    assert [matches_document(back, document) for document in documents] == [
        matches_document(node, document) for document in documents
    ]


EDGES = [
    datetime(1, 1, 1, tzinfo=timezone(timedelta(hours=12))),
    datetime(9999, 12, 31, 23, 59, tzinfo=timezone(timedelta(hours=-12))),
    datetime(2024, 2, 29, 1, 2, 3, 456789, tzinfo=UTC),
]


@pytest.mark.parametrize("moment", EDGES, ids=str)
def test_instants_at_the_ends_of_the_calendar(moment: datetime) -> None:
    node = parse_where({"a": {"$gte": moment}})
    assert parse_where(where_of(node)) == node


def test_integers_beyond_64_bits() -> None:
    node = parse_where({"a": {"$gt": 2**70, "$lt": -(2**70)}})
    assert parse_where(json.loads(json.dumps(where_of(node)))) == node


def test_what_was_accepted_at_full_depth_is_accepted_again() -> None:
    where: dict[str, Any] = {"a": 1, "b": 2}
    for level in range(60):
        where = {"x": level, "$not": where} if level % 2 else {"$or": [where], "y": {"$gt": 1, "$lt": 5}}
    where_of(parse_where(where))
    parse_where(where_of(parse_where(where)))


def _depth(value: Any) -> int:
    if isinstance(value, dict):
        return 1 + max(map(_depth, value.values()), default=0)
    if isinstance(value, list):
        return max(map(_depth, value), default=0)
    return 0
