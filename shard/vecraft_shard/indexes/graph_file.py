"""Saved graphs without their vectors, which the column of their collection holds anyway.

hnswlib's own file has a header and, for each row in the order of their addition, links, vector and label::

    ┌──────────┬────────────────────────────────────────┬────────────────────────┐
    │ header   │ links │ vector │ label   │ … │   × rows  │ links of higher levels │
    │ 96 bytes │       │ f32    │ u64     │   │           │                        │
    └──────────┴────────────────────────────────────────┴────────────────────────┘

A packed one leaves out what is known otherwise. Label and row number are the same; numbers are little-endian::

      0  magic            8   "VCRFTGRF"
      8  format version   u32 1
     12  zeros            4
     16  hnswlib's header 96
    112  links of row 0 │ links of row 1 │ …
         links of higher levels, as hnswlib writes them

A file of hnswlib's whose form is not the one drawn here is not packed. It can be told by its beginning, eight zeros.

Nothing is verified here that a checksum of the packed file would not find.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from pathlib import Path
from shutil import copyfileobj
from typing import BinaryIO, Final, NamedTuple

import numpy as np
import numpy.typing as npt

from vecraft_data_model.errors import CorruptionError

Float32Array = npt.NDArray[np.float32]

MAGIC: Final = b"VCRFTGRF"
FORMAT_VERSION: Final = 1
_START: Final = struct.Struct("<8sI4x")
_HEADER: Final = struct.Struct("<6Q2i3QdQ")
_LABEL_BYTES: Final = 8
_ROWS_AT_ONCE: Final = 1024


class _Layout(NamedTuple):
    """What hnswlib's header says of the rows."""

    rows: int
    row_bytes: int
    vector_at: int
    label_at: int


def _layout(header: bytes, dim: int) -> _Layout | None:
    """Read hnswlib's header; None if it is not of the form that is known here."""
    if len(header) < _HEADER.size:
        return None
    first, _, rows, row_bytes, label_at, vector_at, *_ = _HEADER.unpack(header)
    if first or label_at != vector_at + 4 * dim or row_bytes != label_at + _LABEL_BYTES:
        return None
    return _Layout(rows, row_bytes, vector_at, label_at)


def pack(whole: Path, packed: Path, dim: int) -> bool:
    """Write ``packed`` from hnswlib's file ``whole``. Returns whether that could be done; if not, it is of no use.

    Raises:
        OSError: A file could not be read or written.
    """
    with whole.open("rb") as source, packed.open("wb") as target:
        header = source.read(_HEADER.size)
        layout = _layout(header, dim)
        if layout is None:
            return False
        target.write(_START.pack(MAGIC, FORMAT_VERSION) + header)
        for first in range(0, layout.rows, _ROWS_AT_ONCE):
            count = min(_ROWS_AT_ONCE, layout.rows - first)
            rows = _read(source, count, layout.row_bytes)
            labels = rows[:, layout.label_at :].copy().view("<u8").ravel()
            if not np.array_equal(labels, np.arange(first, first + count, dtype=np.uint64)):
                return False
            target.write(rows[:, : layout.vector_at].tobytes())
        copyfileobj(source, target)
    return True


def is_packed(path: Path) -> bool:
    """Whether a file was written by :func:`pack`.

    Raises:
        OSError: It could not be read.
    """
    with path.open("rb") as file:
        return file.read(len(MAGIC)) == MAGIC


def unpack(packed: Path, whole: Path, dim: int, vectors: Callable[[int, int], Float32Array]) -> None:
    """Write ``whole``, as hnswlib reads it.

    Args:
        packed: What :func:`pack` wrote, verified by its checksum.
        whole: File to write; not made durable.
        dim: Length of the vectors.
        vectors: Returns those of the rows ``[first, last)``, (last − first, dim), as the graph held them.

    Raises:
        CorruptionError: ``packed`` is of another version, or of another dimension.
        OSError: A file could not be read or written.
    """
    with packed.open("rb") as source, whole.open("wb") as target:
        start, header = source.read(_START.size), source.read(_HEADER.size)
        layout = _layout(header, dim)
        if len(start) < _START.size or _START.unpack(start)[1] != FORMAT_VERSION or layout is None:
            raise CorruptionError(
                f"{packed}: not a packed graph of version {FORMAT_VERSION} and dimension {dim}", file=str(packed)
            )
        target.write(header)
        for first in range(0, layout.rows, _ROWS_AT_ONCE):
            count = min(_ROWS_AT_ONCE, layout.rows - first)
            rows = np.empty((count, layout.row_bytes), np.uint8)
            rows[:, : layout.vector_at] = _read(source, count, layout.vector_at)
            values = np.ascontiguousarray(vectors(first, first + count), "<f4")
            rows[:, layout.vector_at : layout.label_at] = values.view(np.uint8)
            rows[:, layout.label_at :] = np.arange(first, first + count, dtype="<u8")[:, None].view(np.uint8)
            target.write(rows.data)
        copyfileobj(source, target)


def _read(file: BinaryIO, count: int, width: int) -> npt.NDArray[np.uint8]:
    data = file.read(count * width)
    if len(data) < count * width:
        raise CorruptionError(f"{file.name}: the file of a graph ends before its rows do", file=str(file.name))
    return np.frombuffer(data, np.uint8).reshape(count, width)
