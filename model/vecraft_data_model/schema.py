"""The schema of a collection, checked when it is made: an instance that exists is valid.

It is immutable and travels in messages, in the WAL and through REST (``to_dict``/``from_dict``). What may change in a
collection's life (search depth, recall target) changes by a new schema value, never in place.
Names are data: they are checked here so that no layer below has to, and are never used as paths.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Final

import msgspec
import numpy as np

from vecraft_data_model.checksums import DEFAULT_ALGORITHM, check_algorithm
from vecraft_data_model.errors import (
    CollectionAlreadyExistedException,
    InvalidDataException,
    UnsupportedMetricException,
)

METRICS: Final = ("l2", "cosine", "ip")
VECTOR_TYPES: Final = ("float32", "float16")
MAX_DIM: Final = 65536
MAX_NAME_BYTES: Final = 255

ALTERABLE: Final = ("target_recall", "ef")
"""What may change in a collection's life; ``ef``, its search depth, is no part of the schema."""

_NAME: Final = re.compile(r"\w[\w.\-]{0,254}")


def validate_name(name: object, what: str = "a collection name") -> str:
    """Return ``name`` if it may name a collection or an alias.

    Accepted: a letter, digit or underscore (any script), then up to 254 of those, dots and hyphens; at most 255 bytes
    in UTF-8.

    Raises:
        InvalidDataException: Anything else; the message shows what was given.
    """
    if (
        not isinstance(name, str)
        or _NAME.fullmatch(name) is None
        or len(name.encode("utf-8", "surrogatepass")) > MAX_NAME_BYTES
    ):
        raise InvalidDataException(
            f"{what} must be a string of 1 to {MAX_NAME_BYTES} bytes: a letter, digit or '_' first, then letters, "
            f"digits, '_', '.' or '-'; got {_shown(name)}"
        )
    return name


class CollectionSchema(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What a collection holds and how it is searched.

    Attributes:
        name: See :func:`validate_name`.
        dim: Length of its vectors, 1 to 65536.
        vector_type: ``"float32"`` (also given as ``"float"``), or ``"float16"``, which halves what is stored.
        metric: ``"l2"`` (squared Euclidean), ``"cosine"`` (1 − cosine) or ``"ip"`` (1 − inner product).
        M: Neighbours per node of the HNSW graph, 2 to 512.
        ef_construction: Search depth while the graph is built, 1 to 10000.
        target_recall: Recall at 10 that the search depth is tuned to, 0.5 to 1.0.
        checksum_algorithm: What new records are checksummed with where the caller does not say.

    Raises:
        InvalidDataException: A field out of its range, on construction.
        UnsupportedMetricException: A metric not listed above.
    """

    name: str
    dim: int
    vector_type: str = "float32"
    metric: str = "l2"
    M: int = 16
    ef_construction: int = 200
    target_recall: float = 0.95
    checksum_algorithm: str = DEFAULT_ALGORITHM

    def __post_init__(self) -> None:
        validate_name(self.name)
        if self.vector_type == "float":
            msgspec.structs.force_setattr(self, "vector_type", "float32")
        if self.vector_type not in VECTOR_TYPES:
            raise InvalidDataException(
                f"vector_type must be 'float32' (or 'float', the same) or 'float16'; got {self.vector_type!r}"
            )
        if self.metric not in METRICS:
            raise UnsupportedMetricException(f"metric must be one of {', '.join(METRICS)}; got {self.metric!r}")
        for field, low, high in (("dim", 1, MAX_DIM), ("M", 2, 512), ("ef_construction", 1, 10_000)):
            msgspec.structs.force_setattr(self, field, _integer(field, getattr(self, field), low, high))
        msgspec.structs.force_setattr(self, "target_recall", _recall(self.target_recall))
        check_algorithm(self.checksum_algorithm)

    @property
    def dtype(self) -> np.dtype[Any]:
        """The numpy dtype that vectors are stored in (answers and computations are float32 always)."""
        return np.dtype(np.float16 if self.vector_type == "float16" else np.float32)

    def to_dict(self) -> dict[str, Any]:
        """Return all fields as JSON values."""
        return msgspec.structs.asdict(self)

    @staticmethod
    def from_dict(data: object) -> CollectionSchema:
        """Build a schema from a dict of its fields.

        Raises:
            InvalidDataException: Not a dict, ``name`` or ``dim`` missing, an unknown key, or a bad value.
        """
        if not isinstance(data, dict):
            raise InvalidDataException(f"a schema must be an object, got {type(data).__name__}")
        accepted = CollectionSchema.__struct_fields__
        unknown = [key for key in data if key not in accepted]
        if unknown:
            raise InvalidDataException(f"unknown schema key {_shown(unknown[0])}; accepted are {', '.join(accepted)}")
        missing = [key for key in ("name", "dim") if key not in data]
        if missing:
            raise InvalidDataException(f"a schema needs {' and '.join(missing)}; got {_shown(sorted(data))}")
        return CollectionSchema(**data)


def altered_schema(schema: CollectionSchema, changes: Mapping[str, object]) -> CollectionSchema:
    """Return ``schema`` with the changes of an ``alter_collection`` that concern it.

    Raises:
        InvalidDataException: A setting that cannot be altered, or a target recall that is not accepted.
    """
    unknown = sorted(set(changes) - set(ALTERABLE))
    if unknown:
        raise InvalidDataException(
            f"{unknown[0]!r} of collection {schema.name!r} cannot be altered; what can: {', '.join(ALTERABLE)}",
            collection=schema.name,
        )
    recall = changes.get("target_recall", schema.target_recall)
    return CollectionSchema.from_dict({**schema.to_dict(), "target_recall": recall})


def check_same_shape(wanted: CollectionSchema, present: CollectionSchema) -> None:
    """Check that a collection that exists holds what one that was to be made if missing would.

    Raises:
        CollectionAlreadyExistedException: Its vectors, or their distances, are of another kind.
    """
    for name in ("dim", "vector_type", "metric"):
        if getattr(wanted, name) != getattr(present, name):
            raise CollectionAlreadyExistedException(
                f"collection {wanted.name!r} exists with {name}={getattr(present, name)!r}, "
                f"not {getattr(wanted, name)!r}",
                collection=wanted.name,
            )


def _integer(field: str, value: object, low: int, high: int) -> int:
    # numpy integers are welcome, bools and integral floats are not: True is not a dimension.
    if isinstance(value, bool) or not isinstance(value, int | np.integer) or not low <= value <= high:
        raise InvalidDataException(f"{field} must be an integer from {low} to {high}; got {_shown(value)}")
    return int(value)


def _recall(value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float | np.number) or not 0.5 <= value <= 1.0:
        raise InvalidDataException(f"target_recall must be a number from 0.5 to 1.0; got {_shown(value)}")
    return float(value)


def _shown(value: object) -> str:
    """``repr`` of at most about 100 characters, whatever was given (an integer of 5,000 digits has no repr)."""
    if isinstance(value, int) and not isinstance(value, bool) and value.bit_length() > 256:
        return f"an integer of {value.bit_length()} bits"
    text = repr(value[:100]) if isinstance(value, str) else repr(value)
    return text if len(text) <= 110 else text[:100] + "…"
