"""Scan cursors: where the next page begins, sealed.

A cursor holds what must stay the same from page to page (collection, snapshot, filter) and the last record id, and is
signed by the cluster, so that a forged, cut or foreign one is refused instead of answering something odd. No server
keeps anything for it: every gateway of the cluster can continue it, for as long as its snapshot's history is kept.
"""

from __future__ import annotations

import hashlib
import json

import msgspec

from vecraft_data_model.errors import AuthenticationError, InvalidDataException
from vecraft_router.session import SessionTokens

_PURPOSE = "scan cursor"


class Cursor(msgspec.Struct, frozen=True, array_like=True):
    """Contents of a cursor. ``filters``: a digest of the page's filters, which every page must repeat."""

    collection: str
    snapshot: int
    after: str
    filters: bytes


def seal(cursor: Cursor, tokens: SessionTokens) -> str:
    """Return the cursor as URL-safe text."""
    return tokens.sign(_PURPOSE, msgspec.msgpack.encode(cursor))


def unseal(text: object, collection: str, filters: bytes, tokens: SessionTokens) -> Cursor:
    """Return what is in a cursor.

    Raises:
        InvalidDataException: It was not made by this cluster, or for another collection or filter.
    """
    if not isinstance(text, str):
        raise InvalidDataException(f"cursor must be the string that a scan answered with, got {type(text).__name__}")
    try:
        cursor = msgspec.msgpack.decode(tokens.verify(_PURPOSE, text), type=Cursor)
    except AuthenticationError:
        raise InvalidDataException(f"cursor {text[:60]!r} was not made by this database, or is damaged") from None
    if cursor.collection != collection or cursor.filters != filters:
        raise InvalidDataException(
            f"this cursor belongs to a scan of {cursor.collection!r} with that scan's filters; "
            f"it cannot continue one of {collection!r} with other filters"
        )
    return cursor


def digest_of(where: object, where_document: object) -> bytes:
    """Return a digest of a scan's filters as they came in JSON; empty if there are none."""
    if where is None and where_document is None:
        return b""
    return hashlib.sha256(json.dumps([where, where_document], sort_keys=True).encode("ascii")).digest()[:16]
