"""Vectors on the wire: JSON lists, or base64 of little-endian numbers.

::

    [0.1, 0.2]                                            one vector
    {"b64": "zczMPc3MTD4="}                               the same, float32
    {"b64": "…", "dtype": "float64", "shape": [10, 2]}    ten vectors
    [[0.1, 0.2], {"b64": "…"}]                            two vectors

What is decided here is only whether something *is* an array of numbers. Whether the numbers are acceptable (finite,
of the right dimension) is the model room's business (:mod:`vecraft_data_model.validation`).
"""

from __future__ import annotations

import binascii
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from vecraft_data_model.errors import InvalidDataException

DTYPES: dict[str, np.dtype[Any]] = {
    "float32": np.dtype("<f4"),
    "float64": np.dtype("<f8"),
    "float16": np.dtype("<f2"),
}
_NUMBERS = frozenset({int, float})
_KEYS = frozenset({"b64", "dtype", "shape"})

FloatArray = npt.NDArray[np.floating[Any]]


def vector_from_wire(value: object, what: str) -> FloatArray:
    """Return one vector, 1-dimensional.

    Raises:
        InvalidDataException: ``value`` is no vector; the message begins with ``what``.
    """
    if isinstance(value, dict):
        array = _from_base64(value, what)
        if array.ndim != 1:
            raise InvalidDataException(f"{what} must be one vector, got shape {list(array.shape)}")
        return array
    if isinstance(value, list):
        return _from_list(value, what)
    raise InvalidDataException(f'{what} must be a list of numbers or {{"b64": …}}, got {_kind(value)}')


def matrix_from_wire(value: object, what: str) -> FloatArray:
    """Return (n, dim) vectors.

    Raises:
        InvalidDataException: ``value`` is not that; the message begins with ``what`` and names the row.
    """
    if isinstance(value, dict):
        array = _from_base64(value, what)
        if array.ndim != 2:
            raise InvalidDataException(f'{what} must come with "shape": [n, dim], got shape {list(array.shape)}')
        return array
    if not isinstance(value, list):
        raise InvalidDataException(
            f'{what} must be a list of vectors or {{"b64": …, "shape": [n, dim]}}, got {_kind(value)}'
        )
    return stack([vector_from_wire(row, f"{what}[{index}]") for index, row in enumerate(value)], what)


def stack(rows: Sequence[FloatArray], what: str) -> FloatArray:
    """Return the rows as one matrix.

    Raises:
        InvalidDataException: They are not all of one length.
    """
    if not rows:
        return np.empty((0, 0), dtype=np.float32)
    dim = len(rows[0])
    for index, row in enumerate(rows):
        if len(row) != dim:
            raise InvalidDataException(
                f"{what} must all have one dimension: {what}[0] has {dim} numbers, {what}[{index}] has {len(row)}"
            )
    return np.stack(rows)


def to_base64(array: npt.NDArray[np.float32]) -> dict[str, Any]:
    """Return ``{"b64", "dtype", "shape"}`` of an array, as float32."""
    data = np.ascontiguousarray(array, dtype="<f4")
    return {
        "b64": binascii.b2a_base64(data.tobytes(), newline=False).decode("ascii"),
        "dtype": "float32",
        "shape": list(data.shape),
    }


def _from_list(value: list[Any], what: str) -> FloatArray:
    kinds = set(map(type, value))
    if not kinds <= _NUMBERS:
        index, wrong = next((i, item) for i, item in enumerate(value) if type(item) not in _NUMBERS)
        raise InvalidDataException(f"{what} must hold numbers only, got {_kind(wrong)} at {index}")
    try:
        return np.array(value, dtype=np.float64)
    except OverflowError:
        raise InvalidDataException(f"{what} holds an integer too large for a float") from None


def _from_base64(value: dict[str, Any], what: str) -> FloatArray:
    if not value.keys() <= _KEYS or "b64" not in value:
        raise InvalidDataException(f"{what} accepts the keys b64, dtype and shape, got {sorted(map(str, value))[:5]}")
    name = value.get("dtype", "float32")
    dtype = DTYPES.get(name) if isinstance(name, str) else None
    if dtype is None:
        raise InvalidDataException(f"{what}.dtype must be one of {', '.join(DTYPES)}, got {str(name)[:40]!r}")
    text = value["b64"]
    if not isinstance(text, str):
        raise InvalidDataException(f"{what}.b64 must be a string, got {_kind(text)}")
    try:
        data = binascii.a2b_base64(text.encode("ascii"), strict_mode=True)
    except (binascii.Error, UnicodeEncodeError) as error:
        raise InvalidDataException(f"{what}.b64 is not base64: {error}") from None
    if len(data) % dtype.itemsize:
        raise InvalidDataException(f"{what}.b64 holds {len(data)} bytes, no multiple of {dtype.itemsize} ({name})")
    array: FloatArray = np.frombuffer(data, dtype=dtype)
    shape = value.get("shape")
    if shape is None:
        return array
    if (
        not isinstance(shape, list)
        or not 1 <= len(shape) <= 2
        or not all(type(n) is int and 0 <= n < 2**31 for n in shape)
        or math.prod(shape) != len(array)
    ):
        raise InvalidDataException(
            f"{what}.shape must be [n] or [n, dim] for the {len(array)} numbers given, got {str(shape)[:60]}"
        )
    return array.reshape(shape)


def _kind(value: object) -> str:
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "a boolean"
    names = {int: "an integer", float: "a number", str: "a string", list: "a list", dict: "an object"}
    return names.get(type(value), type(value).__name__)
