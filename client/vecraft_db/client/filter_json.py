"""Parsed filters back into the JSON they could have been parsed from, for their way to a gateway.

``parse_where(where_of(f))`` accepts exactly what ``f`` accepts. It need not be the text the user wrote: nodes have
forgotten which of several spellings that was. Conditions that fit into one object are put into one, so that a filter
does not get deeper on the way (depth is bounded, see :mod:`vecraft_data_model.filters`).
"""

from __future__ import annotations

from collections.abc import Iterable
from datetime import UTC, datetime, timedelta, timezone
from typing import Any, cast

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

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_EDGE = timedelta(hours=23)


def where_of(node: Filter) -> dict[str, Any]:
    """Return a filter on metadata as JSON values."""
    if isinstance(node, And):
        return _joined(where_of(item) for item in node.items)
    if isinstance(node, Or):
        return {"$or": [where_of(item) for item in node.items]}
    if isinstance(node, Not):
        return _negated(node.item)
    if isinstance(node, Eq):
        return {node.field: {"$eq": _value(node.value)}}
    if isinstance(node, In):
        return {node.field: {"$in": [_value(value) for value in node.values]}}
    if isinstance(node, Compare):
        operand = _instant(cast("int", node.operand)) if node.kind == INSTANT else node.operand
        return {node.field: {f"${node.operator}": operand}}
    if isinstance(node, Exists):
        return {node.field: {"$exists": True}}
    return {node.field: {"$contains": _value(node.value)}}


def where_document_of(node: DocumentFilter) -> dict[str, Any]:
    """Return a filter on documents as JSON values."""
    if isinstance(node, DocumentAnd):
        return _joined(where_document_of(item) for item in node.items)
    if isinstance(node, DocumentOr):
        return {"$or": [where_document_of(item) for item in node.items]}
    if isinstance(node, DocumentNot):
        if isinstance(node.item, TextContains):
            return {"$not_contains": node.item.text}
        return {"$not": where_document_of(node.item)}
    if isinstance(node, TextContains):
        return {"$contains": node.text}
    if isinstance(node, TextMatches):
        return {"$matches": " ".join(node.words)}
    # Fields mean the same inside: $not and $and commute with "the fields of a JSON document".
    return where_of(node.where)


def _negated(node: Filter) -> dict[str, Any]:
    if isinstance(node, Eq):
        return {node.field: {"$ne": _value(node.value)}}
    if isinstance(node, In):
        return {node.field: {"$nin": [_value(value) for value in node.values]}}
    if isinstance(node, Exists):
        return {node.field: {"$exists": False}}
    if isinstance(node, Compare | Contains):
        ((field, operators),) = where_of(node).items()
        return {field: {"$not": operators}}
    inner = where_of(node)
    if isinstance(node, And) and len(inner) == 1:
        ((field, operators),) = inner.items()
        if not field.startswith("$"):
            return {field: {"$not": operators}}
    return {"$not": inner}


def _joined(objects: Iterable[dict[str, Any]]) -> dict[str, Any]:
    """Return one object that means all of them; what does not fit beside the others goes into ``$and``."""
    whole: dict[str, Any] = {}
    rest: list[dict[str, Any]] = []
    for each in objects:
        clash = whole.keys() & each.keys()
        if not clash:
            whole.update(each)
        elif all(not name.startswith("$") and not whole[name].keys() & each[name].keys() for name in clash):
            for name, operators in each.items():
                whole[name] = {**whole[name], **operators} if name in clash else operators
        else:
            rest.append(each)
    if not rest:
        return whole
    return {"$and": [whole, *rest]}


def _value(key: Key) -> Any:
    kind, value = key
    if kind in (NULL, BOOL, NUMBER, STRING):
        return value
    if kind == LIST:
        return [_value(item) for item in cast("tuple[Key, ...]", value)]
    if kind == DICT:
        return {name: _value(item) for name, item in cast("frozenset[tuple[str, Key]]", value)}
    raise TypeError(f"not the key of a JSON value: {key!r}")


def _instant(microseconds: int) -> str:
    """Return an instant in ISO 8601. Near the ends of the calendar only another offset than UTC can write it."""
    moment = timedelta(microseconds=microseconds)
    try:
        return (_EPOCH + moment).isoformat()
    except OverflowError:
        shift = _EDGE if microseconds < 0 else -_EDGE
        local = _EPOCH.replace(tzinfo=None) + (moment + shift)
        return local.replace(tzinfo=timezone(shift)).isoformat()


__all__ = ["where_document_of", "where_of"]
