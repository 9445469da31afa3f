"""How messages become bytes: searches in a form of their own (:mod:`vecraft_cluster.search_codec`), others as pickles.

Large arrays stay where they are and travel beside the message. Small ones are put inside, since a buffer of its own
costs more than a copy.

Bytes from a socket are read by :func:`unpack` only, which rebuilds nothing but what messages are made of: a pickle that
names anything else is refused, so that a peer can say wrong things, but not run code.
"""

from __future__ import annotations

import copyreg
import io
import pickle
import sys
from collections.abc import Callable
from typing import Any, Final

import msgspec
import numpy as np
import numpy.typing as npt

from vecraft_cluster.search_codec import decode_brief, encode_brief
from vecraft_cluster.wire import BUFFERS_MAX, Frame
from vecraft_data_model import errors

INLINE_BYTES: Final = 1 << 14
"""Arrays below this travel inside."""

_PICKLED: Final = 0x80
"""What pickles of this protocol begin with, and no search or answer in its own form does."""

Array = npt.NDArray[Any]


def encode(message: object) -> bytes:
    """Return a message as bytes that hold all of it."""
    brief = encode_brief(message, sys.maxsize)
    return brief[0] if brief is not None else _dumps(message, None)


def decode(data: bytes) -> Any:
    """Return the message that :func:`encode` was given. Only for bytes from this cluster's own actors."""
    return pickle.loads(data) if data[0] == _PICKLED else decode_brief(data, [])


def pack(number: int, message: object) -> Frame:
    """Return a message as a frame; large arrays are not copied."""
    if (brief := encode_brief(message, INLINE_BYTES)) is not None:
        return Frame(number, brief[0], [] if brief[1] is None else [brief[1]])
    buffers: list[Any] = []

    def stays_inside(buffer: pickle.PickleBuffer) -> bool:
        raw = buffer.raw()
        if raw.nbytes < INLINE_BYTES or len(buffers) == BUFFERS_MAX:
            return True
        buffers.append(raw)
        return False

    return Frame(number, _dumps(message, stays_inside), buffers)


def unpack(frame: Frame) -> Any:
    """Return the message of a frame.

    Raises:
        ValueError: It is damaged, or names something that no message is made of.
    """
    try:
        if frame.head[0] != _PICKLED:
            return decode_brief(frame.head, frame.buffers)
        return _Reader(io.BytesIO(frame.head), buffers=frame.buffers).load()
    except ValueError:
        raise
    except Exception as error:  # a damaged pickle may fail in any way
        raise ValueError(f"a message cannot be read: {type(error).__name__}: {error}") from error


def _dumps(message: object, buffer_callback: Callable[[pickle.PickleBuffer], bool] | None) -> bytes:
    file = io.BytesIO()
    _Writer(file, 5, buffer_callback=buffer_callback).dump(message)
    return file.getvalue()


def _reduce_array(array: Array) -> Any:
    """As numpy pickles arrays, at a third of the cost: messages hold plain numbers in C order, nearly always."""
    if array.dtype.hasobject or not array.flags.c_contiguous or array.dtype.fields is not None:
        return array.__reduce_ex__(5)
    data: Any = bytearray(array.data) if array.nbytes < INLINE_BYTES else pickle.PickleBuffer(array.data)
    return rebuild_array, (data, array.dtype.str, array.shape)


def rebuild_array(data: Any, dtype: str, shape: tuple[int, ...]) -> Array:
    """Return the array over that memory."""
    return np.frombuffer(data, dtype).reshape(shape)


class _Writer(pickle.Pickler):
    dispatch_table = {**copyreg.dispatch_table, np.ndarray: _reduce_array}


_REBUILDERS: Final = frozenset(
    {
        (__name__, "rebuild_array"),
        ("numpy", "dtype"),
        ("numpy", "ndarray"),
        ("numpy._core.numeric", "_frombuffer"),
        ("numpy._core.multiarray", "_reconstruct"),
        ("numpy._core.multiarray", "scalar"),
        ("msgspec._utils", "rebuild"),
        ("vecraft_data_model.errors", "_rebuild"),
    }
)
"""What arrays, keyword-only structs and errors are rebuilt by."""

_known: dict[tuple[str, str], Any] = {}


class _Reader(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        found = _known.get((module, name))
        return found if found is not None else self._look_up(module, name)

    def _look_up(self, module: str, name: str) -> Any:
        rebuilder = (module, name) in _REBUILDERS
        if not rebuilder and not module.startswith("vecraft_data_model."):
            raise ValueError(f"a message names {module}.{name}, which no message is made of")
        found: Any = super().find_class(module, name)
        if not rebuilder and not (
            isinstance(found, type)
            and issubclass(found, msgspec.Struct | errors.VecraftError)
            and found.__module__.startswith("vecraft_data_model.")
        ):
            raise ValueError(f"a message names {module}.{name}, which no message is made of")
        _known[module, name] = found
        return found
