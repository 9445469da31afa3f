"""What filters mean: the reference evaluators, one record at a time, by brute force.

Every index must give exactly these answers (the tests compare them). The rules:

* Kinds never compare with each other: null, bool, number, string, list, object. ``1`` is not ``"1"``, nor ``True``.
* A missing field matches no condition; ``$ne``, ``$nin``, ``$not`` and ``$exists: false`` are complements, so it
  matches those. An explicit null is a value.
* Equality, ``$in`` and ranges do not look into lists; ``$contains`` does.
* The name ``a.b`` means every value reachable by it: key ``"a.b"`` itself, and key ``"b"`` of the object at ``"a"``. If
  there are several, one that matches is enough.
* A range whose operand is an ISO 8601 date or datetime compares instants, with strings that are such and no others; any
  other string operand compares by code point with every string. Equality of strings is always plain.
"""

from __future__ import annotations

import operator
import re
import unicodedata
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Final

from vecraft_data_model.filter_nodes import (
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
    Not,
    Or,
    TextContains,
    TextMatches,
    key_of,
    parse_instant,
)
from vecraft_data_model.payload import documents_of, metadata_of

_SIDES: Final[dict[str, Callable[[Any, Any], bool]]] = {
    "gt": operator.gt,
    "gte": operator.ge,
    "lt": operator.lt,
    "lte": operator.le,
}
_WORD: Final = re.compile(r"[^\W_]+")
_ASCII_WORD: Final = re.compile(r"[0-9a-z]+")


def matches(where: Filter, metadata: Mapping[str, Any] | None) -> bool:
    """Say whether a record with this metadata (None: without any) matches."""
    match where:
        case And(items):
            return all(matches(item, metadata) for item in items)
        case Or(items):
            return any(matches(item, metadata) for item in items)
        case Not(item):
            return not matches(item, metadata)
        case Eq(field, key):
            return any(key_of(value) == key for value in values_at(metadata, field))
        case In(field, keys):
            return any(key_of(value) in keys for value in values_at(metadata, field))
        case Compare(field, _, _, _):
            return any(_compares(where, value) for value in values_at(metadata, field))
        case Exists(field):
            return any(True for _ in values_at(metadata, field))
        case Contains(field, key):
            return any(
                isinstance(value, list | tuple) and any(key_of(element) == key for element in value)
                for value in values_at(metadata, field)
            )


def matches_document(where_document: DocumentFilter, document: str | Mapping[str, Any] | None) -> bool:
    """Say whether a record with this document (None: without one) matches."""
    match where_document:
        case DocumentAnd(items):
            return all(matches_document(item, document) for item in items)
        case DocumentOr(items):
            return any(matches_document(item, document) for item in items)
        case DocumentNot(item):
            return not matches_document(item, document)
        case TextContains(text):
            return isinstance(document, str) and text in document
        case TextMatches(wanted):
            return isinstance(document, str) and set(wanted).issubset(words(document))
        case DocumentWhere(where):
            return matches(where, document if isinstance(document, Mapping) else None)


def matching_payloads(
    payloads: Sequence[bytes], where: Filter | None, where_document: DocumentFilter | None
) -> list[bool]:
    """Say for each payload whether its record matches both filters."""
    keep = [True] * len(payloads)
    if where is not None:
        keep = [matches(where, metadata) for metadata in metadata_of(payloads)]
    if where_document is not None:
        documents = documents_of(payloads)
        keep = [
            wanted and matches_document(where_document, document)
            for wanted, document in zip(keep, documents, strict=True)
        ]
    return keep


def values_at(metadata: Mapping[str, Any] | None, field: str) -> Iterator[Any]:
    """Yield every value that ``field`` names in ``metadata``, literal keys and dotted paths alike."""
    if not metadata:
        return
    if field in metadata:
        yield metadata[field]
    dots = field.count(".")
    if dots == 0:
        return
    if dots <= len(metadata):
        heads = [field[:at] for at, char in enumerate(field) if char == "."]
    else:  # a name of a thousand dots must not cost more than the record has keys
        heads = [key for key in metadata if field.startswith(f"{key}.")]
    for head in heads:
        child = metadata.get(head)
        if isinstance(child, Mapping):
            yield from values_at(child, field[len(head) + 1 :])


def words(text: str) -> list[str]:
    """Return the words of a text, in order: runs of letters and digits, case folded, accents removed.

    The one tokenizer of ``$matches``. An index should store what this gives, not tokenize the text by itself: no two
    tokenizers agree on all of Unicode. Compatibility forms are unified too (``ﬁ`` is ``fi``). ``words`` of words
    joined by spaces are those words.
    """
    if text.isascii():
        return _ASCII_WORD.findall(text.lower())
    # Folding can undo decomposition and the other way round, so each is done until neither has anything left to do.
    folded = unicodedata.normalize("NFKD", unicodedata.normalize("NFKD", text).casefold()).casefold()
    folded = unicodedata.normalize("NFKD", folded)
    return _WORD.findall("".join(char for char in folded if unicodedata.category(char) != "Mn"))


def _compares(condition: Compare, value: Any) -> bool:
    side = _SIDES[condition.operator]
    if condition.kind == NUMBER:
        return isinstance(value, int | float) and not isinstance(value, bool) and side(value, condition.operand)
    if not isinstance(value, str):
        return False
    if condition.kind == STRING:
        return side(value, condition.operand)
    instant = parse_instant(value)
    return instant is not None and side(instant, condition.operand)
