"""What a search asks for, apart from its vectors and its moment: one value on its way from the client to the shards.

The public methods take these as arguments, :class:`~vecraft_data_model.query_packet.QueryPacket` as attributes, REST as
keys; all of them make a :class:`SearchOptions` by :meth:`SearchOptions.checked`, and from there on it travels whole.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Final

import msgspec

from vecraft_data_model.errors import InvalidDataException
from vecraft_data_model.filters import DocumentFilter, Filter, parse_where, parse_where_document
from vecraft_data_model.validation import check_ef, check_flag, check_k, check_max_distance

INCLUDABLE: Final = ("metadata", "document", "vector")
DEFAULT_INCLUDE: Final = ("metadata", "document")


class SearchOptions(msgspec.Struct, frozen=True, gc=False):
    """How to search. Two searches with equal options differ in nothing but their queries.

    Attributes:
        k: How many neighbours per query.
        where, where_document: Filters, parsed; None: no filter.
        ef: Search depth of the graph; None: the collection's own.
        exact: Compare with every record instead of searching the graph.
        max_distance: Leave out what is farther.
        include: What hits carry besides id and distance: any of ``metadata``, ``document``, ``vector``.
        explain: Say how each shard searched.
    """

    k: int = 10
    where: Filter | None = None
    where_document: DocumentFilter | None = None
    ef: int | None = None
    exact: bool = False
    max_distance: float | None = None
    include: tuple[str, ...] = DEFAULT_INCLUDE
    explain: bool = False

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
    ) -> SearchOptions:
        """Return the options of these arguments, as a user gave them.

        Raises:
            InvalidDataException: An argument that is not accepted (``InvalidFilterError`` for the filters).
        """
        return cls(
            k=check_k(k),
            where=None if where is None else parse_where(where),
            where_document=None if where_document is None else parse_where_document(where_document),
            ef=check_ef(ef),
            exact=check_flag(exact, "exact"),
            max_distance=check_max_distance(max_distance),
            include=check_include(include),
            explain=check_flag(explain, "explain"),
        )


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
