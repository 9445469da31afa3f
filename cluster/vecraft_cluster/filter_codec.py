"""Filters as values that msgpack knows, and back: exactly the nodes that were sent, and nothing but nodes.

::

    And((Eq("kind", (STRING, "cat")), In("year", {(NUMBER, 2019), (NUMBER, 2020)})))
      ↔  ["And", [["Eq", "kind", [3, "cat"]], ["In", "year", [[2, [2019, 2020]]]]]]

Not the JSON that filters are parsed from: a router may make filters that are larger or deeper than users may, and a
shard would parse them again for each call. What arrives is checked all the same.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable
from itertools import repeat
from typing import Any, Final, cast

from vecraft_data_model.filters import (
    BOOL,
    DICT,
    INSTANT,
    LIST,
    NULL,
    NUMBER,
    STRING,
    And,
    Compare,
    Contains,
    DocumentAnd,
    DocumentFilter,
    DocumentNot,
    DocumentOr,
    DocumentWhere,
    Eq,
    Exists,
    Filter,
    In,
    Key,
    Not,
    Or,
    TextContains,
    TextMatches,
)

_PLAIN: Final[dict[int, frozenset[type]]] = {
    NULL: frozenset({type(None)}),
    BOOL: frozenset({bool}),
    NUMBER: frozenset({int, float}),
    STRING: frozenset({str}),
}
"""What values of the kinds that are one value each are."""

_OPERANDS: Final = {NUMBER: _PLAIN[NUMBER], STRING: _PLAIN[STRING], INSTANT: frozenset({int})}


def written_where(node: Filter) -> list[Any]:
    """Return a filter on metadata as lists of values."""
    name = type(node).__name__
    match node:
        case And(items) | Or(items):
            return [name, [written_where(item) for item in items]]
        case Not(item):
            return [name, written_where(item)]
        case Eq(field, value) | Contains(field, value):
            return [name, field, _written_key(value)]
        case In(field, values):
            return [name, field, _written_keys(values)]
        case Compare(field, operator, kind, operand):
            return [name, field, operator, kind, operand]
        case Exists(field):
            return [name, field]


def read_where(written: Any) -> Filter:
    """Return the filter on metadata.

    Raises:
        ValueError: It is none.
    """
    match written:
        case ["And", [*items]]:
            return And(tuple(map(read_where, items)))
        case ["Or", [*items]]:
            return Or(tuple(map(read_where, items)))
        case ["Not", item]:
            return Not(read_where(item))
        case ["Eq", str(field), value]:
            return Eq(field, _read_key(value))
        case ["Contains", str(field), value]:
            return Contains(field, _read_key(value))
        case ["In", str(field), [*columns]]:
            return In(field, frozenset(key for column in columns for key in _read_keys(column)))
        case ["Compare", str(field), ("gt" | "gte" | "lt" | "lte") as operator, int(kind), operand]:
            if type(operand) in _OPERANDS.get(kind, ()):
                return Compare(field, operator, kind, operand)
        case ["Exists", str(field)]:
            return Exists(field)
    raise ValueError("what arrived is no filter on metadata")


def written_document(node: DocumentFilter) -> list[Any]:
    """Return a filter on documents as lists of values."""
    name = type(node).__name__
    match node:
        case DocumentAnd(items) | DocumentOr(items):
            return [name, [written_document(item) for item in items]]
        case DocumentNot(item):
            return [name, written_document(item)]
        case TextContains(text):
            return [name, text]
        case TextMatches(words):
            return [name, list(words)]
        case DocumentWhere(where):
            return [name, written_where(where)]


def read_document(written: Any) -> DocumentFilter:
    """Return the filter on documents.

    Raises:
        ValueError: It is none.
    """
    match written:
        case ["DocumentAnd", [*items]]:
            return DocumentAnd(tuple(map(read_document, items)))
        case ["DocumentOr", [*items]]:
            return DocumentOr(tuple(map(read_document, items)))
        case ["DocumentNot", item]:
            return DocumentNot(read_document(item))
        case ["TextContains", str(text)]:
            return TextContains(text)
        case ["TextMatches", [*words]] if set(map(type, words)) <= {str}:
            return TextMatches(tuple(words))
        case ["DocumentWhere", where]:
            return DocumentWhere(read_where(where))
    raise ValueError("what arrived is no filter on documents")


def _written_key(key: Key) -> list[Any]:
    kind, value = key
    if kind == LIST:
        return [kind, [_written_key(item) for item in cast("tuple[Key, ...]", value)]]
    if kind == DICT:
        return [kind, [[name, _written_key(item)] for name, item in cast("frozenset[tuple[str, Key]]", value)]]
    return [kind, value]


def _read_key(written: Any) -> Key:
    match written:
        case [int(kind), value] if type(value) in _PLAIN.get(kind, ()):
            return (kind, value)
        case [int(kind), [*items]] if kind == LIST:
            return (LIST, tuple(map(_read_key, items)))
        case [int(kind), [*items]] if kind == DICT:
            return (DICT, frozenset(map(_read_entry, items)))
    raise ValueError("a filter compares with what is no value")


def _read_entry(written: Any) -> tuple[str, Key]:
    match written:
        case [str(name), value]:
            return name, _read_key(value)
    raise ValueError("a filter compares with an object that has no names")


def _written_keys(keys: Iterable[Key]) -> list[list[Any]]:
    """Return keys by kind: there may be a hundred thousand."""
    columns: dict[int, list[Any]] = {}
    for key in keys:
        columns.setdefault(key[0], []).append(_written_key(key) if key[0] in (LIST, DICT) else key[1])
    return [[kind, values] for kind, values in columns.items()]


def _read_keys(written: Any) -> Iterable[Key]:
    match written:
        case [int(kind), [*values]] if kind in _PLAIN and _PLAIN[kind].issuperset(map(type, values)):
            return zip(repeat(kind), cast("list[Hashable]", values))
        case [int(kind), [*values]] if kind in (LIST, DICT):
            keys = list(map(_read_key, values))
            if all(key[0] == kind for key in keys):
                return keys
    raise ValueError("a filter has a set of what are no values")
