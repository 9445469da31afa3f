"""The filter language: ``where`` on metadata and ``where_document`` on documents, parsed into typed nodes.

::

    {"kind": "cat", "year": {"$gte": 2019, "$lt": 2021}, "$not": {"tags": {"$contains": "draft"}}}
      →  And(Eq(kind), Compare(year gte), Compare(year lt), Not(Contains(tags)))

Parsing checks everything that can be wrong, so that nothing below meets a malformed filter; the error names the path of
the fault (``where.$and[1].age.$gt: …``). The size of a filter is bounded in depth, nodes and operands.
What filters *mean* is :func:`matches` and :func:`matches_document`. Regular expressions are deliberately not offered:
one pattern can take exponential time.

This module is the door: nodes live in :mod:`~vecraft_data_model.filter_nodes`, the reference evaluators in
:mod:`~vecraft_data_model.filter_match`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from datetime import date
from typing import Any, Final, TypeVar, cast

import numpy as np

from vecraft_data_model.errors import InvalidFilterError
from vecraft_data_model.filter_match import matches, matches_document, values_at, words
from vecraft_data_model.filter_nodes import (
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
    Operator,
    Or,
    TextContains,
    TextMatches,
    instant_of,
    key_of,
    parse_instant,
)

__all__ = [
    "BOOL", "DICT", "INSTANT", "LIST", "NULL", "NUMBER", "STRING",
    "And", "Compare", "Contains", "DocumentAnd", "DocumentFilter", "DocumentNot", "DocumentOr", "DocumentWhere",
    "Eq", "Exists", "Filter", "In", "Key", "Not", "Or", "TextContains", "TextMatches",
    "instant_of", "key_of", "matches", "matches_document", "parse_instant", "parse_where", "parse_where_document",
    "values_at", "words",
]  # fmt: skip

_T = TypeVar("_T")

MAX_DEPTH: Final = 64
MAX_NODES: Final = 10_000
MAX_IN_VALUES: Final = 100_000
MAX_FIELD_CHARS: Final = 4096

_COMPARISONS: Final[dict[str, Operator]] = {"$gt": "gt", "$gte": "gte", "$lt": "lt", "$lte": "lte"}
_FIELD_OPERATORS: Final = (
    "$eq", "$ne", "$gt", "$gte", "$lt", "$lte", "$in", "$nin", "$exists", "$contains", "$not",
)  # fmt: skip
_LOGICAL: Final = ("$and", "$or", "$not")
_TEXT_OPERATORS: Final = ("$contains", "$not_contains", "$matches")


def parse_where(where: object) -> Filter:
    """Parse a filter on metadata.

    Args:
        where: A dict as in the module's example; ``{}`` matches every record.

    Raises:
        InvalidFilterError: An unknown operator, a wrong operand, or a filter too deep or too large; with its path.
    """
    return _Parser().where(where, "where", 1)


def parse_where_document(where_document: object) -> DocumentFilter:
    """Parse a filter on documents: text operators, or conditions on the fields of JSON documents.

    Raises:
        InvalidFilterError: As for :func:`parse_where`.
    """
    return _Parser().document(where_document, "where_document", 1)


class _Parser:
    """One parse: counts nodes, everything else is passed down as (value, path, depth)."""

    def __init__(self) -> None:
        self.nodes = 0

    # ------------------------------------------------------------------------------------------------ where

    def where(self, obj: object, path: str, depth: int) -> Filter:
        conditions: list[Filter] = []
        for name, operand in self.entries(obj, path, depth):
            here = f"{path}.{_short(name)}"
            if not name.startswith("$"):
                conditions.extend(self.field(name, operand, here, depth + 1))
            elif name == "$and":
                conditions.append(And(tuple(self.branches(operand, here, depth, self.where))))
            elif name == "$or":
                conditions.append(Or(tuple(self.branches(operand, here, depth, self.where))))
            elif name == "$not":
                conditions.append(Not(self.where(operand, here, depth + 1)))
            elif name in _FIELD_OPERATORS:
                raise _fault(here, f'the operator {name} stands inside a field, as in {{"age": {{"{name}": …}}}}')
            else:
                raise _fault(here, f"unknown operator; accepted here are {', '.join(_LOGICAL)} and field names")
        return conditions[0] if len(conditions) == 1 else And(tuple(conditions))

    def field(self, field: str, condition: object, path: str, depth: int) -> list[Filter]:
        """Parse what stands at a field name: a value, a list of values, or an object of operators."""
        if len(field) > MAX_FIELD_CHARS:
            raise _fault(path, f"a field name has at most {MAX_FIELD_CHARS} characters, this one has {len(field)}")
        if isinstance(condition, list | tuple):
            return [self.membership(field, condition, path)]
        if not isinstance(condition, dict) or not any(_is_operator(name) for name in condition):
            return [self.equality(field, condition, path)]
        return [
            self.operator(field, name, operand, f"{path}.{_short(name)}", depth)
            for name, operand in self.entries(condition, path, depth)
        ]

    def operator(self, field: str, name: str, operand: object, path: str, depth: int) -> Filter:
        if name in _COMPARISONS:
            return self.comparison(field, _COMPARISONS[name], operand, path)
        if name == "$eq":
            return self.equality(field, operand, path)
        if name == "$ne":
            return Not(self.equality(field, operand, path))
        if name == "$in":
            return self.membership(field, operand, path)
        if name == "$nin":
            return Not(self.membership(field, operand, path))
        if name == "$contains":
            return Contains(field, self.key(operand, path))
        if name == "$exists":
            if not isinstance(operand, bool):
                raise _fault(path, f"must be true or false, got {_described(operand)}")
            return Exists(field) if operand else Not(Exists(field))
        if name == "$not":
            if not isinstance(operand, dict) or not operand or not all(map(_is_operator, operand)):
                raise _fault(path, f"must be an object of operators, got {_described(operand)}")
            inner = self.field(field, operand, path, depth + 1)
            return Not(inner[0] if len(inner) == 1 else And(tuple(inner)))
        what = "unknown operator" if _is_operator(name) else "operators and plain names cannot be mixed in one object"
        raise _fault(path, f"{what}; accepted at a field are {', '.join(_FIELD_OPERATORS)}")

    def equality(self, field: str, operand: object, path: str) -> Filter:
        if isinstance(operand, date):  # an instant has many spellings, so it is met as a range, not as a string
            instant = instant_of(operand)
            return And((Compare(field, "gte", INSTANT, instant), Compare(field, "lte", INSTANT, instant)))
        return Eq(field, self.key(operand, path))

    def membership(self, field: str, operand: object, path: str) -> Filter:
        if not isinstance(operand, list | tuple | set | frozenset):
            raise _fault(path, f"must be a list of values, got {_described(operand)}")
        if len(operand) > MAX_IN_VALUES:
            raise _fault(path, f"a list of values has at most {MAX_IN_VALUES} of them, this one has {len(operand)}")
        return In(field, frozenset(self.key(value, f"{path}[{i}]") for i, value in enumerate(operand)))

    def comparison(self, field: str, operator: Operator, operand: object, path: str) -> Filter:
        if isinstance(operand, date):
            return Compare(field, operator, INSTANT, instant_of(operand))
        kind, value = self.key(operand, path) if isinstance(operand, str | int | float | np.generic) else (NULL, None)
        if kind == NUMBER:
            return Compare(field, operator, NUMBER, cast("int | float", value))
        if kind == STRING:
            text = cast("str", value)
            instant = parse_instant(text)
            if instant is not None:
                return Compare(field, operator, INSTANT, instant)
            return Compare(field, operator, STRING, text)
        raise _fault(path, f"must be a number, a string or a datetime, got {_described(operand)}")

    def key(self, value: object, path: str, depth: int = 1) -> Key:
        """Return the key of an operand, checking that it is a JSON value."""
        if isinstance(value, np.generic):
            value = value.item()
        if isinstance(value, str):
            return (STRING, _text(value, path))
        if value is None or isinstance(value, bool):
            return key_of(value)
        if isinstance(value, int | float):
            return (NUMBER, _number(value, path))
        if depth > MAX_DEPTH:
            raise _fault(path, f"a value nests at most {MAX_DEPTH} deep")
        if isinstance(value, list | tuple):
            return (LIST, tuple(self.key(item, path, depth + 1) for item in value))
        if isinstance(value, dict) and all(isinstance(name, str) for name in value):
            return (DICT, frozenset((_text(n, path), self.key(item, path, depth + 1)) for n, item in value.items()))
        raise _fault(
            path, f"must be a JSON value (or a datetime, for {', '.join(_COMPARISONS)}), got {_described(value)}"
        )

    # --------------------------------------------------------------------------------------- where_document

    def document(self, obj: object, path: str, depth: int) -> DocumentFilter:
        conditions: list[DocumentFilter] = []
        for name, operand in self.entries(obj, path, depth):
            here = f"{path}.{_short(name)}"
            if not name.startswith("$"):
                fields = self.field(name, operand, here, depth + 1)
                conditions.append(DocumentWhere(fields[0] if len(fields) == 1 else And(tuple(fields))))
            elif name == "$and":
                conditions.append(DocumentAnd(tuple(self.branches(operand, here, depth, self.document))))
            elif name == "$or":
                conditions.append(DocumentOr(tuple(self.branches(operand, here, depth, self.document))))
            elif name == "$not":
                conditions.append(DocumentNot(self.document(operand, here, depth + 1)))
            elif name in _TEXT_OPERATORS:
                conditions.append(self.text(name, operand, here))
            else:
                accepted = ", ".join((*_TEXT_OPERATORS, *_LOGICAL))
                raise _fault(here, f"unknown operator; accepted here are {accepted} and field names of JSON documents")
        return conditions[0] if len(conditions) == 1 else DocumentAnd(tuple(conditions))

    def text(self, name: str, operand: object, path: str) -> DocumentFilter:
        if not isinstance(operand, str):
            raise _fault(path, f"must be a string, got {_described(operand)}")
        text = _text(operand, path)
        if name == "$contains":
            return TextContains(text)
        if name == "$not_contains":
            return DocumentNot(TextContains(text))
        wanted = tuple(sorted(set(words(text))))
        if not wanted:
            raise _fault(path, f"must hold at least one word (letters or digits), got {_described(operand)}")
        return TextMatches(wanted)

    # ----------------------------------------------------------------------------------------------- shared

    def entries(self, obj: object, path: str, depth: int) -> list[tuple[str, object]]:
        """Return the items of an object whose names are strings, having counted them against the limits."""
        if not isinstance(obj, dict):
            raise _fault(path, f"must be an object, got {_described(obj)}")
        if depth > MAX_DEPTH:
            raise _fault(path, f"a filter nests at most {MAX_DEPTH} deep")
        self.nodes += len(obj)
        if self.nodes > MAX_NODES:
            raise _fault(path, f"a filter has at most {MAX_NODES} conditions")
        for name in obj:
            if not isinstance(name, str):
                raise _fault(path, f"names must be strings, got {_described(name)}")
            _text(name, path)
        return list(obj.items())

    def branches(self, operand: object, path: str, depth: int, parse: Callable[[object, str, int], _T]) -> list[_T]:
        if not isinstance(operand, list | tuple) or not operand:
            raise _fault(path, f"must be a list of one or more filters, got {_described(operand)}")
        return [parse(item, f"{path}[{i}]", depth + 1) for i, item in enumerate(operand)]


def _is_operator(name: object) -> bool:
    return isinstance(name, str) and name.startswith("$")


def _number(value: int | float, path: str) -> int | float:
    try:
        finite = math.isfinite(value)
    except OverflowError:
        finite = False
    if not finite:
        raise _fault(path, f"numbers must be finite, within ±1.8e308, got {_described(value)}")
    return value


def _text(text: str, path: str) -> str:
    try:
        text.encode()
    except UnicodeEncodeError:
        raise _fault(path, f"strings must be valid Unicode, got {_described(text)}") from None
    return text


def _short(name: object) -> str:
    text = name if isinstance(name, str) else repr(name)
    return text if len(text) <= 80 else text[:80] + "…"


def _described(value: Any) -> str:
    """Say what was given, briefly, whatever it is."""
    if isinstance(value, bool) or value is None:
        return {True: "true", False: "false", None: "null"}[value]
    if isinstance(value, int) and value.bit_length() > 256:
        return f"an integer of {value.bit_length()} bits"
    if isinstance(value, int | float):
        return f"the number {value!r}"
    if isinstance(value, str):
        return f"the string {value[:80]!r}" + ("…" if len(value) > 80 else "")
    if isinstance(value, dict):
        return f"an object of {len(value)}"
    if isinstance(value, list | tuple):
        return f"a list of {len(value)}"
    return f"a {type(value).__name__}"


def _fault(path: str, message: str) -> InvalidFilterError:
    return InvalidFilterError(f"{path}: {message}", path=path)
