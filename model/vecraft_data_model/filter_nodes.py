"""The nodes of parsed filters, and the values inside them.

Nodes are frozen, hashable and picklable: they travel in messages and may key caches. That works only because a value in
a node is a :data:`Key`, ``(kind, canonical value)``: plain Python would say ``1 == True``, here kinds never mix, while
``(NUMBER, 1)`` equals ``(NUMBER, 1.0)``, as it should. Integers and floats compare exactly, also beyond 2**53.

What a node means is written down once, in :mod:`vecraft_data_model.filter_match`; indexes must agree with it.
"""

from __future__ import annotations

import re
from collections.abc import Hashable
from datetime import UTC, date, datetime, timedelta
from typing import Any, Final, Literal

import msgspec

NULL: Final = 0
BOOL: Final = 1
NUMBER: Final = 2
STRING: Final = 3
LIST: Final = 4
DICT: Final = 5
INSTANT: Final = 6
"""Kinds. ``INSTANT`` occurs in :class:`Compare` only: stored values are JSON, where an instant is a string."""

Key = tuple[int, Hashable]
"""``(NULL, None)``, ``(BOOL, b)``, ``(NUMBER, int | float)``, ``(STRING, s)``, ``(LIST, tuple of Key)``,
``(DICT, frozenset of (name, Key))``."""

Operator = Literal["gt", "gte", "lt", "lte"]


class Node(msgspec.Struct, frozen=True):
    """Base of all nodes."""


class And(Node, frozen=True):
    """All of them; nothing at all matches everything."""

    items: tuple[Filter, ...]


class Or(Node, frozen=True):
    """Any of them."""

    items: tuple[Filter, ...]


class Not(Node, frozen=True):
    """The complement: also what has no such field."""

    item: Filter


class Eq(Node, frozen=True):
    """The field's value is of that kind and equal."""

    field: str
    value: Key


class In(Node, frozen=True):
    """The field's value is one of these."""

    field: str
    values: frozenset[Key]


class Compare(Node, frozen=True):
    """The field's value is of that kind and on that side of the operand.

    Attributes:
        kind: ``NUMBER``; ``STRING``, by code point with every string; or ``INSTANT``, with strings that
            :func:`parse_instant` reads and with no others.
        operand: A number, a string, or microseconds since 1970 UTC (fits int64, not always float64).
    """

    field: str
    operator: Operator
    kind: int
    operand: int | float | str


class Exists(Node, frozen=True):
    """The field is there, whatever its value (null included)."""

    field: str


class Contains(Node, frozen=True):
    """The field's value is a list that holds an equal element."""

    field: str
    value: Key


Filter = And | Or | Not | Eq | In | Compare | Exists | Contains
"""A parsed ``where``."""


class DocumentAnd(Node, frozen=True):
    """All of them; nothing at all matches everything."""

    items: tuple[DocumentFilter, ...]


class DocumentOr(Node, frozen=True):
    """Any of them."""

    items: tuple[DocumentFilter, ...]


class DocumentNot(Node, frozen=True):
    """The complement: also records without a document, or with one of the other form."""

    item: DocumentFilter


class TextContains(Node, frozen=True):
    """A text document that holds this substring; case and accents matter."""

    text: str


class TextMatches(Node, frozen=True):
    """A text document with all these words (as :func:`vecraft_data_model.filters.words` gives them), in any order."""

    words: tuple[str, ...]


class DocumentWhere(Node, frozen=True):
    """A JSON document whose fields match; any other document counts as one without fields."""

    where: Filter


DocumentFilter = DocumentAnd | DocumentOr | DocumentNot | TextContains | TextMatches | DocumentWhere
"""A parsed ``where_document``."""


def key_of(value: Any) -> Key:
    """Return the key of a JSON value (nesting at most 64 deep, as stored values are)."""
    if isinstance(value, str):
        return (STRING, value)
    if value is None:
        return (NULL, None)
    if isinstance(value, bool):
        return (BOOL, value)
    if isinstance(value, int | float):
        return (NUMBER, value)
    if isinstance(value, dict):
        return (DICT, frozenset((name, key_of(item)) for name, item in value.items()))
    return (LIST, tuple(map(key_of, value)))


# The extended ISO 8601 form only: fromisoformat would also take "10111213", which is more often a number than a date.
_ISO: Final = re.compile(
    r"[0-9]{4}-[0-9]{2}-[0-9]{2}"
    r"(?:[Tt ](?:[01][0-9]|2[0-3]):[0-5][0-9](?::[0-5][0-9](?:\.[0-9]{1,9})?)?"
    r"(?:[Zz]|[+-](?:[01][0-9]|2[0-3]):?[0-5][0-9]|[+-](?:[01][0-9]|2[0-3]))?)?"
)
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND: Final = timedelta(microseconds=1)


def parse_instant(text: str) -> int | None:
    """Return the microseconds since 1970 UTC of an ISO 8601 date or datetime, or None if ``text`` is none.

    Accepted: ``YYYY-MM-DD``, optionally ``T`` or a space and ``HH:MM``, ``:SS``, a fraction, and ``Z`` or an offset.
    Without an offset it is UTC. Digits beyond microseconds are cut off.
    """
    if len(text) < 10 or text[4] != "-" or _ISO.fullmatch(text) is None:
        return None
    try:
        return instant_of(datetime.fromisoformat(text.upper()))
    except ValueError:  # 30 February has the right form and is no date
        return None


def instant_of(moment: date) -> int:
    """Return the microseconds since 1970 UTC of a date (its midnight, UTC) or datetime (naive: UTC)."""
    if not isinstance(moment, datetime):
        moment = datetime(moment.year, moment.month, moment.day, tzinfo=UTC)
    elif moment.tzinfo is None:
        moment = moment.replace(tzinfo=UTC)
    return (moment - _EPOCH) // _MICROSECOND
