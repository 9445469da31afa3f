"""A search as users ask for it, checked when it is made.

What can be wrong without knowing the collection is found here (numbers, filters, names); its dimension and metric are
checked where the collection is known.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt

from vecraft_data_model.checksums import DEFAULT_ALGORITHM, HASHES, check_algorithm
from vecraft_data_model.errors import ChecksumValidationFailureError, InvalidDataException
from vecraft_data_model.filters import DocumentFilter, Filter, parse_where, parse_where_document
from vecraft_data_model.search_options import DEFAULT_INCLUDE, SearchOptions
from vecraft_data_model.validation import as_vector, shown
from vecraft_data_model.vector_packet import VectorPacket, frozen, vector_from_json, vector_to_json

Float32Array = npt.NDArray[np.float32]


class QueryPacket:
    """The k records nearest to a vector.

    Args:
        query_vector: A :class:`VectorPacket`, an array or a list of numbers.
        k: How many, 1 to 2**20.
        where: Filter on metadata.
        where_document: Filter on documents.
        ef: Search depth of the graph, 1 to 65536; None for the collection's own.
        exact: Compare with every record instead of searching the graph.
        max_distance: Leave out what is farther.
        include: What results carry besides id and distance: any of ``metadata``, ``document``, ``vector``.
        checksum_algorithm: Of the packet's own checksum.

    Attributes:
        query_vector: (dim,) float32, read-only.
        filter: ``where``, parsed; None without one.
        document_filter: ``where_document``, parsed; None without one.

    Raises:
        InvalidDataException: An argument that is not accepted (``InvalidFilterError`` for the filters).
    """

    __slots__ = (
        "checksum_algorithm", "document_filter", "ef", "exact", "filter", "include", "k", "max_distance",
        "query_vector", "where", "where_document",
    )  # fmt: skip

    def __init__(
        self,
        query_vector: VectorPacket | npt.ArrayLike,
        k: int = 10,
        where: dict[str, Any] | None = None,
        where_document: dict[str, Any] | None = None,
        ef: int | None = None,
        exact: bool = False,
        max_distance: float | None = None,
        include: Iterable[str] = DEFAULT_INCLUDE,
        checksum_algorithm: str = DEFAULT_ALGORITHM,
    ) -> None:
        # The vector may still be the caller's own array: a packet keeps a copy.
        self.query_vector: Float32Array = frozen(as_vector(query_vector, what="query_vector"), copy=True)
        checked = SearchOptions.checked(k, where, where_document, ef, exact, max_distance, include)
        self.k = checked.k
        self.where = where
        self.where_document = where_document
        self.filter: Filter | None = checked.where
        self.document_filter: DocumentFilter | None = checked.where_document
        self.ef = checked.ef
        self.exact = checked.exact
        self.max_distance = checked.max_distance
        self.include = checked.include
        self.checksum_algorithm = check_algorithm(checksum_algorithm)

    def options(self, explain: bool = False) -> SearchOptions:
        """Return everything but the vector, as it travels to the shards."""
        return SearchOptions(
            self.k, self.filter, self.document_filter, self.ef, self.exact, self.max_distance, self.include, explain
        )

    @property
    def checksum(self) -> str:
        """Digest over the whole query, in hexadecimal."""
        arguments = msgspec.json.encode(self._arguments(), order="deterministic", enc_hook=_plain)
        hasher = HASHES[self.checksum_algorithm](arguments)
        hasher.update(self.query_vector.astype("<f4", copy=False).tobytes())
        digest: str = hasher.hexdigest()
        return digest

    def to_dict(self) -> dict[str, Any]:
        """Return the query as JSON values, with its checksum. Datetimes in filters become ISO 8601.

        Raises:
            InvalidDataException: A filter asks for equality with a datetime: as text it would mean another thing.
        """
        data: dict[str, Any] = msgspec.to_builtins(self._arguments(), order="deterministic", enc_hook=_plain)
        if (self.filter is not None and parse_where(data["where"]) != self.filter) or (
            self.document_filter is not None and parse_where_document(data["where_document"]) != self.document_filter
        ):
            raise InvalidDataException(
                "equality with a datetime cannot be written as JSON, where it is equality of strings; use $gte and $lte"
            )
        return {"query_vector": vector_to_json(self.query_vector), **data, "checksum": self.checksum}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> QueryPacket:
        """Build a query from a dict: ``to_dict``'s, or one with ``query_vector`` (a list, too) at least.

        Raises:
            InvalidDataException: Not an object, an unknown or missing key, a bad value.
            ChecksumValidationFailureError: It comes with a checksum that does not hold.
        """
        if not isinstance(data, Mapping):
            raise InvalidDataException(f"a query must be an object; got {shown(data)}")
        fields = dict(data)
        checksum = fields.pop("checksum", None)
        accepted = [name for name in cls.__slots__ if name not in ("filter", "document_filter")]
        unknown = [key for key in fields if key not in accepted]
        if unknown:
            raise InvalidDataException(f"unknown query key {shown(unknown[0])}; accepted are {', '.join(accepted)}")
        if "query_vector" not in fields:
            raise InvalidDataException("a query needs a query_vector")
        fields["query_vector"] = vector_from_json(fields["query_vector"], "query_vector")
        query = cls(**fields)
        if checksum not in (None, query.checksum):
            raise ChecksumValidationFailureError(
                f"a query came with the checksum {shown(checksum)}, but its contents have {query.checksum}"
            )
        return query

    def _arguments(self) -> dict[str, Any]:
        """All but the vector, as given."""
        derived = ("filter", "document_filter", "query_vector")
        return {name: getattr(self, name) for name in self.__slots__ if name not in derived}

    def __eq__(self, other: object) -> bool:
        return isinstance(other, QueryPacket) and self.checksum == other.checksum

    def __hash__(self) -> int:
        return hash(self.checksum)

    def __reduce__(self) -> tuple[Any, ...]:
        return (_restored, (self.query_vector, self._arguments()))

    def __repr__(self) -> str:
        return f"QueryPacket(dim={len(self.query_vector)}, k={self.k}, where={self.where!r})"


def _restored(query_vector: Float32Array, arguments: dict[str, Any]) -> QueryPacket:
    return QueryPacket(query_vector, **arguments)


def _plain(value: Any) -> Any:
    """Return a numpy scalar, which filters may hold, as a plain one."""
    if isinstance(value, np.generic):
        return value.item()
    raise TypeError(f"{type(value).__name__} is no JSON value")
