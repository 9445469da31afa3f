"""The metadata index against the reference evaluator, on random metadata and random filters."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from random_examples import examples

from vecraft_data_model.errors import CorruptionError, InvalidDataException
from vecraft_data_model.filters import matches, parse_where, values_at
from vecraft_shard.indexes.metadata import MetadataIndex
from vecraft_shard.indexes.postings import hashed_key

NAMES = ("a", "b", "a.b", "a.b.c", "", "a.", "x")
scalars = st.one_of(
    st.none(),
    st.booleans(),
    st.sampled_from([0, 1, 2, -1, 2**53, 2**53 + 1, -(2**53) - 1, 2**62, 2**62 + 1, 2**63 - 1, -(2**63)]),
    st.sampled_from([0.0, -0.0, 1.0, 0.5, float(2**53), float(2**62), 1e300, -2.5, float(2**63)]),
    st.sampled_from(["", "a", "b", "1", "true", "é", "2020-01-01", "2020-01-01T00:00:00Z", "2020-01-01T01:00:00+01:00",
                     "2019-12-31", "2020-13-01", "zz"]),
)  # fmt: skip
values = st.recursive(
    scalars,
    lambda inner: st.one_of(
        st.lists(inner, max_size=3), st.dictionaries(st.sampled_from(["a", "b", "b.c", "", "c"]), inner, max_size=3)
    ),
    max_leaves=6,
)
metadata = st.one_of(st.none(), st.dictionaries(st.sampled_from(NAMES), values, max_size=4))
alike = st.fixed_dictionaries({"a": scalars, "b": st.integers(-3, 3), "x": st.sampled_from("abc")})
comparable = st.one_of(
    st.sampled_from([0, 1, -1, 2**53, 2**53 + 1, 2**62 + 1, 2**63, -(2**63) - 1, 10**25, 0.5, 1e300, float(2**62)]),
    st.sampled_from(["", "a", "b", "2020-01-01", "2019-12-31T23:00:00-01:00", "zz"]),
)
conditions = st.one_of(
    scalars.filter(lambda v: not isinstance(v, dict)),
    st.lists(scalars, min_size=1, max_size=4),
    st.builds(lambda v: {"$eq": v}, values),
    st.builds(lambda v: {"$ne": v}, values),
    st.builds(lambda v: {"$in": v}, st.lists(values, max_size=4)),
    st.builds(lambda v: {"$nin": v}, st.lists(values, max_size=4)),
    st.builds(lambda op, v: {op: v}, st.sampled_from(["$gt", "$gte", "$lt", "$lte"]), comparable),
    st.builds(lambda v: {"$exists": v}, st.booleans()),
    st.builds(lambda v: {"$contains": v}, values),
)
fields = st.dictionaries(st.sampled_from([*NAMES, "x.y", "nowhere"]), conditions, max_size=2)
filters = st.recursive(
    fields,
    lambda inner: st.one_of(
        st.builds(lambda items: {"$and": items}, st.lists(inner, min_size=1, max_size=3)),
        st.builds(lambda items: {"$or": items}, st.lists(inner, min_size=1, max_size=3)),
        st.builds(lambda item: {"$not": item}, inner),
    ),
    max_leaves=5,
)


def matching(index: MetadataIndex, where: dict[str, Any], n_rows: int) -> list[int]:
    rows: list[int] = index.evaluate(parse_where(where), n_rows).rows().tolist()
    return rows


def reference(where: dict[str, Any], records: list[Any]) -> list[int]:
    parsed = parse_where(where)
    return [row for row, record in enumerate(records) if matches(parsed, record)]


@examples(150)
@given(
    batches=st.lists(st.one_of(st.lists(metadata, max_size=6), st.lists(alike, max_size=6)), max_size=4),
    wheres=st.lists(filters, min_size=1, max_size=6),
    data=st.data(),
)
def test_equals_the_reference_evaluator(
    batches: list[list[Any]], wheres: list[dict[str, Any]], data: st.DataObject
) -> None:
    index, loaded = MetadataIndex(), MetadataIndex()
    records: list[Any] = []
    for batch in batches:
        index.add(len(records), batch)
        records += batch
        for where in wheres:
            assert matching(index, where, len(records)) == reference(where, records), where
    below = data.draw(st.integers(0, len(records)))
    cut = data.draw(st.integers(0, len(records)))
    loaded.load(index.dump(0, cut))
    loaded.load(index.dump(cut, len(records)))
    for where in wheres:
        assert matching(index, where, below) == reference(where, records[:below]), where
        assert matching(loaded, where, len(records)) == reference(where, records), where
    loaded.add(len(records), records[:2])
    records += records[:2]
    for where in wheres:
        assert matching(loaded, where, len(records)) == reference(where, records), where


@examples(150)
@given(
    batches=st.lists(st.one_of(st.lists(metadata, max_size=6), st.lists(alike, max_size=6)), max_size=4),
    settled=st.booleans(),
    name=st.sampled_from([*NAMES, "x.y", "nowhere"]),
    data=st.data(),
)
def test_tells_the_value_of_a_row(batches: list[list[Any]], settled: bool, name: str, data: st.DataObject) -> None:
    index = MetadataIndex()
    records: list[Any] = []
    for batch in batches:
        index.add(len(records), batch)
        records += batch
    if settled:
        loaded = MetadataIndex()
        loaded.load(index.dump(0, len(records)))
        index = loaded
    rows = data.draw(st.lists(st.sampled_from(range(len(records))), max_size=8)) if records else []
    keys = index.keys_at(name, np.array(rows, np.int64))
    for row, key in zip(rows, keys, strict=True):
        known = list(values_at(records[row], name))
        assert key == (hashed_key(known[0]) if len(known) == 1 else None)
        if key is not None:
            alike = reference({name: {"$eq": known[0]}}, records)
            assert index.rows_with(name, {key}, len(records)).rows().tolist() == alike


NUMBERS = (
    0, 1, 2, -1, 2**53 - 1, 2**53, 2**53 + 1, 2**53 + 2, -(2**53), -(2**53) - 1, -(2**53) - 2, 2**62, 2**62 + 1,
    2**63 - 1, -(2**63), 0.0, -0.0, 1.0, 0.5, -2.5, float(2**53), float(2**53 + 2), float(2**62), float(2**63), 1e300,
)  # fmt: skip
STRINGS = (
    "", "a", "b", "1", "true", "é", "zz", "2020-01-01", "2020-01-01T00:00:00Z", "2020-01-01T01:00:00+01:00",
    "2019-12-31", "2020-13-01", "2020-01-01 00:00:00.000001",
)  # fmt: skip
SCALARS: tuple[Any, ...] = (None, True, False, *NUMBERS, *STRINGS)
COMPOUNDS: tuple[Any, ...] = (
    [], {}, [1], [1.0], [True], [1, 1], ["a", "a", "b"], [[1], {"a": None}], [2**62 + 1, 2**62 + 1], {"a": 1},
    {"a": True}, {"a": [1]}, ["2020-01-01"], [None, 1, "a"],
)  # fmt: skip
EVERY_WHERE: tuple[dict[str, Any], ...] = (
    *({"v": {operator: value}} for operator in ("$eq", "$ne", "$contains") for value in (*SCALARS, *COMPOUNDS)),
    *({"v": {name: n}} for name in ("$gt", "$gte", "$lt", "$lte") for n in (*NUMBERS, 2**63, -(2**63) - 1, 1e19)),
    *({"v": {operator: s}} for operator in ("$gt", "$gte", "$lt", "$lte") for s in STRINGS),
    *({"v": {"$in": [a, b]}} for a in SCALARS for b in (1, "a", None)),
    {"v": {"$exists": True}}, {"v": {"$exists": False}}, {"v.a": 1}, {"v.a": True}, {"v.a": {"$contains": 1}},
)  # fmt: skip


@pytest.mark.parametrize("batch", [1, 7, 1000])
def test_every_kind_of_value_meets_every_operator(batch: int) -> None:
    records = [{"v": value} for value in (*SCALARS, *COMPOUNDS)] + [None, {}, {"v.a": 1}, {"v": {"a": 2}, "v.a": 1}]
    index, loaded = MetadataIndex(), MetadataIndex()
    for first in range(0, len(records), batch):
        index.add(first, records[first : first + batch])
    loaded.load(index.dump(0, len(records)))
    for where in EVERY_WHERE:
        want = reference(where, records)
        assert matching(index, where, len(records)) == want, where
        assert matching(loaded, where, len(records)) == want, where
    # They come back as other rows.
    again = records[::-1]
    index.add(len(records), again)
    records += again
    for where in EVERY_WHERE:
        assert matching(index, where, len(records)) == reference(where, records), where


def test_one_name_reached_by_two_paths() -> None:
    records: list[Any] = [{"a.b": 1}, {"a": {"b": 2}}, {"a.b": 3}, {"a": {"b": 1}, "a.b": 2}, {"a": {"b": {"c": 1}}}]
    index = MetadataIndex()
    index.add(0, records)
    index.add(5, records[::-1])
    records += records[::-1]
    for where in ({"a.b": 1}, {"a.b": 2}, {"a.b": {"$gt": 1}}, {"a.b.c": 1}, {"a.b": {"$ne": 2}}, {"a.b": [2, 3]}):
        for n_rows in range(len(records) + 1):
            assert matching(index, where, n_rows) == reference(where, records[:n_rows])


def test_an_or_of_thousands_of_equalities_is_one_lookup() -> None:
    index = MetadataIndex()
    index.add(0, [{"n": i, "s": str(i % 7)} for i in range(3000)])
    where = {"$or": [*({"n": i} for i in range(0, 2000, 2)), {"s": ["1", "2"]}, {"n": {"$gt": 2997}}]}
    assert matching(index, where, 3000) == [
        i for i in range(3000) if (i < 2000 and i % 2 == 0) or i % 7 in (1, 2) or i > 2997
    ]


def test_answers_are_kept_and_dropped() -> None:
    index = MetadataIndex()
    index.add(0, [{"n": i} for i in range(100)])
    where = parse_where({"n": {"$lt": 10}})
    first = index.evaluate(where, 100)
    assert index.evaluate(where, 100) is first
    assert index.estimate(where, 100) == 10
    index.add(100, [{"n": 3}])
    assert index.evaluate(where, 101).rows().tolist() == [*range(10), 100]
    for i in range(300):
        index.evaluate(parse_where({"n": i}), 101)
    assert index.evaluate(where, 101).count == 11


def test_rows_are_added_once() -> None:
    index = MetadataIndex()
    index.add(5, [{"a": 1}])
    with pytest.raises(InvalidDataException, match="row 5 was added before"):
        index.add(5, [{"a": 1}])


def test_damaged_segments_are_refused() -> None:
    index = MetadataIndex()
    index.add(0, [{"a": i, "b": "x" * i, "c": [i, {"d": None}]} for i in range(50)])
    blob = index.dump(0, 50)
    for place in range(len(blob)):
        damaged = blob[:place] + bytes([blob[place] ^ 0x40]) + blob[place + 1 :]
        with pytest.raises(CorruptionError):
            MetadataIndex().load(damaged)
    for length in (0, 10, len(blob) - 1):
        with pytest.raises(CorruptionError):
            MetadataIndex().load(blob[:length])
    with pytest.raises(CorruptionError):
        MetadataIndex().load(blob + b"\0")
    loaded = MetadataIndex()
    loaded.load(blob)
    with pytest.raises(CorruptionError, match="does not follow row 50"):
        loaded.load(blob)
