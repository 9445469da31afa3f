"""What a search asks for, apart from its vectors and its moment: one value on its way from the client to the shards.

The public methods take these as arguments, :class:`~vecraft_data_model.query_packet.QueryPacket` as attributes, REST as
keys; all of them make a :class:`SearchOptions` by :meth:`SearchOptions.checked`, and from there on it travels whole.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Final

import msgspec

from vecraft_data_model.errors import InvalidDataException
from vecraft_data_model.filters import (
    MAX_FIELD_CHARS,
    DocumentFilter,
    Filter,
    parse_where,
    parse_where_document,
)
from vecraft_data_model.text_ranking import TextQuery
from vecraft_data_model.validation import MAX_K, check_ef, check_flag, check_integer, check_k, check_max_distance, shown

INCLUDABLE: Final = ("metadata", "document", "vector")
DEFAULT_INCLUDE: Final = ("metadata", "document")
QUERIES_MAX: Final = 65_536
"""Queries of one search; more must be sent in parts."""


class SearchOptions(msgspec.Struct, frozen=True, gc=False):
    """How to search. Two searches with equal options differ in nothing but their queries.

    Attributes:
        k: How many neighbours per query; with ``group_by``, how many groups.
        where, where_document: Filters, parsed; None: no filter.
        ef: Search depth of the graph; None: the collection's own.
        exact: Compare with every record instead of searching the graph.
        max_distance: Leave out what is farther.
        include: What hits carry besides id and distance: any of ``metadata``, ``document``, ``vector``.
        explain: Say how each shard searched.
        text: Words to rank texts by, besides or instead of a vector; None: none. Goes with a single query, which is
            (1, 0) where there is no vector.
        group_by: Of the records that have the same value of this metadata field only the nearest count; None: all do.
        group_size: How many of each group, at most.
    """

    k: int = 10
    where: Filter | None = None
    where_document: DocumentFilter | None = None
    ef: int | None = None
    exact: bool = False
    max_distance: float | None = None
    include: tuple[str, ...] = DEFAULT_INCLUDE
    explain: bool = False
    text: TextQuery | None = None
    group_by: str | None = None
    group_size: int = 1

    @property
    def with_payloads(self) -> bool:
        """Whether hits carry their records' payloads."""
        return self.include is DEFAULT_INCLUDE or "metadata" in self.include or "document" in self.include

    @property
    def with_vectors(self) -> bool:
        """Whether hits carry their vectors."""
        return "vector" in self.include

    @classmethod
    def checked(
        cls,
        k: object = 10,
        where: Any = None,
        where_document: Any = None,
        ef: object = None,
        exact: object = False,
        max_distance: object = None,
        include: object = DEFAULT_INCLUDE,
        explain: object = False,
        query_text: object = None,
        fusion: object = "rrf",
        group_by: object = None,
        group_size: object = 1,
    ) -> SearchOptions:
        """Return the options of these arguments, as a user gave them.

        Raises:
            InvalidDataException: An argument that is not accepted (``InvalidFilterError`` for the filters).
        """
        if group_by is not None and query_text is not None:
            raise InvalidDataException("group_by goes with a vector alone: it cannot be combined with query_text")
        wanted, per_group = check_k(k), check_group_size(group_size)
        if per_group > 1 and group_by is None:
            raise InvalidDataException("group_size goes with group_by: without it there are no groups")
        if wanted * per_group > MAX_K:
            raise InvalidDataException(f"k x group_size must be at most {MAX_K}; got {wanted} x {per_group}")
        return cls(
            k=wanted,
            where=None if where is None else parse_where(where),
            where_document=None if where_document is None else parse_where_document(where_document),
            ef=check_ef(ef),
            exact=check_flag(exact, "exact"),
            max_distance=check_max_distance(max_distance),
            include=check_include(include),
            explain=check_flag(explain, "explain"),
            text=TextQuery.checked(query_text, fusion),
            group_by=check_group_by(group_by),
            group_size=per_group,
        )


def check_group_by(group_by: object) -> str | None:
    """Return the name of a metadata field, dotted for a nested one; or None.

    Raises:
        InvalidDataException: Something else.
    """
    if group_by is None or (isinstance(group_by, str) and 0 < len(group_by) <= MAX_FIELD_CHARS):
        return group_by
    raise InvalidDataException(
        f"group_by must be the name of a metadata field, of 1 to {MAX_FIELD_CHARS} characters; got {shown(group_by)}"
    )


def check_group_size(group_size: object) -> int:
    """Return how many records of each group, 1 to 2**20.

    Raises:
        InvalidDataException: Something else.
    """
    return check_integer(group_size, "group_size", 1, MAX_K)


def check_include(include: object) -> tuple[str, ...]:
    """Return what results shall carry: any of ``metadata``, ``document``, ``vector``.

    Raises:
        InvalidDataException: Something else, or a string instead of a list.
    """
    if include is DEFAULT_INCLUDE:
        return DEFAULT_INCLUDE
    if isinstance(include, Iterable) and not isinstance(include, str | bytes | Mapping):
        names = tuple(include)
        if all(isinstance(name, str) and name in INCLUDABLE for name in names):
            return names
        include = names
    raise InvalidDataException(f"include must be a list of {', '.join(INCLUDABLE)}; got {str(include)[:100]!r}")
