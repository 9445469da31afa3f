"""A search as users ask for it, checked when it is made.

What can be wrong without knowing the collection is found here (numbers, filters, names); its dimension and metric are
checked where the collection is known.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Final

import msgspec
import numpy as np
import numpy.typing as npt

from vecraft_data_model.checksums import DEFAULT_ALGORITHM, HASHES, check_algorithm
from vecraft_data_model.errors import ChecksumValidationFailureError, InvalidDataException
from vecraft_data_model.filters import DocumentFilter, Filter, parse_where, parse_where_document
from vecraft_data_model.search_options import DEFAULT_INCLUDE, SearchOptions
from vecraft_data_model.text_ranking import Fusion, TextQuery, check_fusion
from vecraft_data_model.validation import as_vector, shown
from vecraft_data_model.vector_packet import VectorPacket, frozen, vector_from_json, vector_to_json

Float32Array = npt.NDArray[np.float32]

NO_VECTOR: Final = frozen(np.empty((1, 0), np.float32))
"""The queries of a search by text alone."""
_DERIVED: Final = ("filter", "document_filter", "text")


class QueryPacket:
    """The k records nearest to a vector, or that rank best by a vector and a text together, or by a text.

    Args:
        query_vector: A :class:`VectorPacket`, an array or a list of numbers; None to rank by ``query_text`` alone.
        k: How many, 1 to 2**20; with ``group_by``, how many groups.
        where: Filter on metadata.
        where_document: Filter on documents.
        ef: Search depth of the graph, 1 to 65536; None for the collection's own.
        exact: Compare with every record instead of searching the graph.
        max_distance: Leave out what is farther.
        include: What results carry besides id and distance: any of ``metadata``, ``document``, ``vector``.
        checksum_algorithm: Of the packet's own checksum.
        query_text: Words to rank text documents by (Okapi BM25): any of them counts, rare ones more.
        fusion: How the ranking by vector and the ranking by text become one. ``"rrf"``: reciprocal rank fusion. Or two
            weights, ``{"vector": 0.7, "text": 0.3}`` or ``(0.7, 0.3)``: a weighted sum of both normalised scores.
        group_by: A metadata field, dotted if nested: the nearest record of each of its values, of the k nearest such.
            Records that lack the field are left out; null, a list and an object are values, too.
        group_size: How many records of each group, at most; all of them nearest first. k x group_size is at most 2**20.

    Attributes:
        query_vector: (dim,) float32, read-only; None without one.
        text: ``query_text`` and ``fusion``, parsed; None without one.
        filter: ``where``, parsed; None without one.
        document_filter: ``where_document``, parsed; None without one.

    Raises:
        InvalidDataException: An argument that is not accepted (``InvalidFilterError`` for the filters).
    """

    __slots__ = (
        "checksum_algorithm", "document_filter", "ef", "exact", "filter", "fusion", "group_by", "group_size",
        "include", "k", "max_distance", "query_text", "query_vector", "text", "where", "where_document",
    )  # fmt: skip

    def __init__(
        self,
        query_vector: VectorPacket | npt.ArrayLike | None,
        k: int = 10,
        where: dict[str, Any] | None = None,
        where_document: dict[str, Any] | None = None,
        ef: int | None = None,
        exact: bool = False,
        max_distance: float | None = None,
        include: Iterable[str] = DEFAULT_INCLUDE,
        checksum_algorithm: str = DEFAULT_ALGORITHM,
        query_text: str | None = None,
        fusion: str | tuple[float, float] | Mapping[str, float] = "rrf",
        group_by: str | None = None,
        group_size: int = 1,
    ) -> None:
        checked = SearchOptions.checked(
            k, where, where_document, ef, exact, max_distance, include, False, query_text, fusion, group_by, group_size
        )
        self.query_vector: Float32Array | None = None
        if query_vector is not None or checked.text is None:
            # The vector may still be the caller's own array: a packet keeps a copy.
            self.query_vector = frozen(as_vector(query_vector, what="query_vector"), copy=True)
        elif max_distance is not None:
            raise InvalidDataException("max_distance is the distance of a vector: it needs a query_vector")
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
        self.query_text = query_text
        self.text: TextQuery | None = checked.text
        self.fusion: Fusion = "rrf" if checked.text is None else check_fusion(fusion)
        self.group_by = checked.group_by
        self.group_size = checked.group_size

    def options(self, explain: bool = False) -> SearchOptions:
        """Return everything but the vector, as it travels to the shards."""
        return SearchOptions(
            self.k, self.filter, self.document_filter, self.ef, self.exact, self.max_distance, self.include, explain,
            self.text, self.group_by, self.group_size,
        )  # fmt: skip

    def queries(self) -> Float32Array:
        """Return the vector as a matrix of one row, (1, dim) float32; (1, 0) without one."""
        return NO_VECTOR if self.query_vector is None else self.query_vector.reshape(1, -1)

    @property
    def checksum(self) -> str:
        """Digest over the whole query, in hexadecimal."""
        arguments = msgspec.json.encode(self._arguments(), order="deterministic", enc_hook=_plain)
        hasher = HASHES[self.checksum_algorithm](arguments)
        hasher.update(self.queries().astype("<f4", copy=False).tobytes())
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
        vector = None if self.query_vector is None else vector_to_json(self.query_vector)
        return {"query_vector": vector, **data, "checksum": self.checksum}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> QueryPacket:
        """Build a query from a dict: ``to_dict``'s, or one with ``query_vector`` (a list, too) or ``query_text``.

        Raises:
            InvalidDataException: Not an object, an unknown or missing key, a bad value.
            ChecksumValidationFailureError: It comes with a checksum that does not hold.
        """
        if not isinstance(data, Mapping):
            raise InvalidDataException(f"a query must be an object; got {shown(data)}")
        fields = dict(data)
        checksum = fields.pop("checksum", None)
        accepted = [name for name in cls.__slots__ if name not in _DERIVED]
        unknown = [key for key in fields if key not in accepted]
        if unknown:
            raise InvalidDataException(f"unknown query key {shown(unknown[0])}; accepted are {', '.join(accepted)}")
        if "query_vector" not in fields and fields.get("query_text") is None:
            raise InvalidDataException("a query needs a query_vector, or a query_text")
        vector = fields.pop("query_vector", None)
        if vector is not None:
            vector = vector_from_json(vector, "query_vector")
        query = cls(vector, **fields)
        if checksum not in (None, query.checksum):
            raise ChecksumValidationFailureError(
                f"a query came with the checksum {shown(checksum)}, but its contents have {query.checksum}"
            )
        return query

    def _arguments(self) -> dict[str, Any]:
        """All but the vector, as given."""
        return {name: getattr(self, name) for name in self.__slots__ if name not in (*_DERIVED, "query_vector")}

    def __eq__(self, other: object) -> bool:
        return isinstance(other, QueryPacket) and self.checksum == other.checksum

    def __hash__(self) -> int:
        return hash(self.checksum)

    def __reduce__(self) -> tuple[Any, ...]:
        return (_restored, (self.query_vector, self._arguments()))

    def __repr__(self) -> str:
        vector = None if self.query_vector is None else len(self.query_vector)
        text = "" if self.query_text is None else f", query_text={shown(self.query_text)}"
        return f"QueryPacket(dim={vector}, k={self.k}, where={self.where!r}{text})"


def _restored(query_vector: Float32Array | None, arguments: dict[str, Any]) -> QueryPacket:
    return QueryPacket(query_vector, **arguments)


def _plain(value: Any) -> Any:
    """Return a numpy scalar, which filters may hold, as a plain one."""
    if isinstance(value, np.generic):
        return value.item()
    raise TypeError(f"{type(value).__name__} is no JSON value")
