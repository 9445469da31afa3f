"""A vector as a value: float32, read-only, checked; and the forms it takes in JSON.

Whatever a caller has (a list, an array of any float or integer type) becomes float32 here, once, so that everything
below, checksums included, sees the same bytes. Its dimension is not judged here: only a collection has one.
"""

from __future__ import annotations

import base64
import binascii
import math
from collections.abc import Iterator, Mapping
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from vecraft_data_model.errors import CorruptionError, InvalidDataException, VectorDimensionMismatchException
from vecraft_data_model.validation import as_vector, shown

Float32Array = npt.NDArray[np.float32]

JSON_DTYPES: Final = ("float32", "float64", "float16")


class VectorPacket:
    """A vector of float32. Behaves as an array where one is expected (``np.asarray``, ``len``, indexing).

    Args:
        values: An array, a list of numbers, or another packet. It is copied.

    Raises:
        NullOrZeroVectorException: It is empty.
        VectorDimensionMismatchException: It is not one-dimensional.
        InvalidDataException: Not numbers, not finite, or too large (see :mod:`vecraft_data_model.validation`).
    """

    __slots__ = ("_values",)

    def __init__(self, values: object) -> None:
        # An array may still be written to by its owner; a list was copied already, another packet is read-only.
        self._values = frozen(as_vector(values), copy=not isinstance(values, list | tuple | VectorPacket))

    @classmethod
    def from_numpy(cls, array: npt.NDArray[Any]) -> VectorPacket:
        """Make a packet of a one-dimensional array of any float or integer type."""
        return cls(array)

    @classmethod
    def from_list(cls, values: list[float]) -> VectorPacket:
        """Make a packet of a list of numbers."""
        return cls(values)

    @classmethod
    def from_bytes(cls, data: bytes) -> VectorPacket:
        """Make a packet of float32 little-endian bytes.

        Raises:
            CorruptionError: Not a whole number of float32 values.
        """
        if len(data) % 4:
            raise CorruptionError(f"{len(data)} bytes are not a whole number of float32 values")
        return cls(np.frombuffer(data, dtype="<f4"))

    @classmethod
    def of_valid(cls, values: Float32Array) -> VectorPacket:
        """Wrap a float32 vector that was checked before, without a copy; nobody may write to it afterwards."""
        packet = cls.__new__(cls)
        packet._values = frozen(values)
        return packet

    def to_numpy(self) -> Float32Array:
        """Return the values as (dim,) float32, read-only."""
        return self._values

    def to_list(self) -> list[float]:
        """Return the values as floats."""
        values: list[float] = self._values.tolist()
        return values

    def to_bytes(self) -> bytes:
        """Return the values as float32 little-endian bytes."""
        return self._values.astype("<f4", copy=False).tobytes()

    def to_dict(self) -> dict[str, Any]:
        """Return ``{"b64", "dtype", "shape"}``, the exact form in JSON."""
        return vector_to_json(self._values)

    @property
    def dim(self) -> int:
        """Its length."""
        return len(self._values)

    @property
    def shape(self) -> tuple[int]:
        """``(dim,)``."""
        return (len(self._values),)

    @property
    def dtype(self) -> np.dtype[np.float32]:
        """float32."""
        return self._values.dtype

    def __array__(self, dtype: npt.DTypeLike | None = None, copy: bool | None = None) -> npt.NDArray[Any]:
        return np.array(self._values, dtype=dtype, copy=copy)

    def __len__(self) -> int:
        return len(self._values)

    def __iter__(self) -> Iterator[np.float32]:
        return iter(self._values)

    def __getitem__(self, index: Any) -> Any:
        return self._values[index]

    def __eq__(self, other: object) -> bool:
        return isinstance(other, VectorPacket) and np.array_equal(self._values, other._values)

    def __hash__(self) -> int:
        return hash(self._values.tobytes())

    def __reduce__(self) -> tuple[Any, ...]:
        return (VectorPacket.of_valid, (self._values,))

    def __repr__(self) -> str:
        return f"VectorPacket(dim={self.dim}, [{', '.join(f'{value:.4g}' for value in self._values[:4])}, …])"


def frozen(values: Float32Array, copy: bool = False) -> Float32Array:
    """Return a read-only view of an array, or a read-only copy."""
    view = values.copy() if copy else values.view()
    view.flags.writeable = False
    return view


def vector_to_json(values: Float32Array) -> dict[str, Any]:
    """Return a vector or matrix of float32 as ``{"b64", "dtype", "shape"}``."""
    data = np.ascontiguousarray(values, dtype="<f4").tobytes()
    return {"b64": base64.b64encode(data).decode("ascii"), "dtype": "float32", "shape": list(values.shape)}


def vector_from_json(value: object, what: str = "vector") -> Any:
    """Return what a vector (or a matrix) in JSON says, as an array or the list itself, not checked any further.

    Args:
        value: A list, or ``{"b64": …, "dtype": "float32" | "float64" | "float16", "shape": […]}``, little-endian;
            dtype (float32) and shape (one vector) are optional.
        what: What it is, for messages.

    Raises:
        InvalidDataException: Not that form: bad base64, another dtype, an unknown key, a wrong number of bytes.
        VectorDimensionMismatchException: The shape does not fit the number of values.
    """
    if not isinstance(value, Mapping):
        return value
    unknown = [key for key in value if key not in ("b64", "dtype", "shape")]
    if unknown or not isinstance(value.get("b64"), str):
        raise InvalidDataException(
            f"{what} must be a list of numbers or an object with b64, dtype and shape; got {shown(list(value))}"
            + (f" with the key {shown(unknown[0])}" if unknown else "")
        )
    dtype = value.get("dtype", "float32")
    if dtype not in JSON_DTYPES:
        raise InvalidDataException(f"{what}.dtype must be one of {', '.join(JSON_DTYPES)}; got {shown(dtype)}")
    try:
        data = base64.b64decode(value["b64"], validate=True)
    except (binascii.Error, ValueError) as error:
        raise InvalidDataException(f"{what}.b64 is not base64: {error}") from None
    item = np.dtype(dtype).newbyteorder("<")
    if len(data) % item.itemsize:
        raise InvalidDataException(f"{what}.b64 holds {len(data)} bytes, not a whole number of {dtype} values")
    array = np.frombuffer(data, dtype=item)
    shape = value.get("shape")
    if shape is None:
        return array
    if (
        not isinstance(shape, list | tuple)
        or not 1 <= len(shape) <= 2
        or not all(type(size) is int and size >= 0 for size in shape)
        or math.prod(shape) != array.size
    ):
        raise VectorDimensionMismatchException(
            f"{what}.shape must be one or two sizes that multiply to {array.size}, as b64 holds; got {shape!r}"[:300]
        )
    return array.reshape(shape)
