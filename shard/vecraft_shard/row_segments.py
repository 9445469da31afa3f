"""The version columns of consecutive rows as one blob: how ``shard.sqlite`` holds them.

A row of an SQLite table per version would take twice the bytes, and thirty times as long to read. A segment is
compressed by zlib at its fastest level, which also has a checksum; numbers are little-endian::

    zlib( MessagePack [ids, begin, first offset, sizes] )
        ids            list of strings
        begin          i64 per row, the commit timestamps
        first offset   where the first row's payload begins: the others lie behind it, one after the other
        sizes          i32 per row, bytes of the payloads

When versions ended is not in it, for that changes: it is kept beside the segments.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from dataclasses import dataclass

import msgspec
import numpy as np
import numpy.typing as npt

from vecraft_data_model.errors import CorruptionError

SEGMENT_ROWS = 4096
_FASTEST = 1


@dataclass(frozen=True, slots=True)
class StoredRows:
    """The version columns of consecutive rows, in row order; their payloads lie one after the other."""

    ids: list[str]
    begin: npt.NDArray[np.int64]
    end: npt.NDArray[np.int64]
    offset: npt.NDArray[np.int64]
    size: npt.NDArray[np.int32]


class Segment(msgspec.Struct, array_like=True):
    """A segment that was read."""

    ids: list[str]
    begin_bytes: bytes
    first_offset: int
    size_bytes: bytes

    @property
    def begin(self) -> npt.NDArray[np.int64]:
        """Commit timestamps."""
        return np.frombuffer(self.begin_bytes, "<i8")

    @property
    def size(self) -> npt.NDArray[np.int32]:
        """Bytes of the payloads."""
        return np.frombuffer(self.size_bytes, "<i4")

    @property
    def offset(self) -> npt.NDArray[np.int64]:
        """Where the payloads begin."""
        size = self.size
        return self.first_offset + np.cumsum(size, dtype=np.int64) - size


_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(Segment)


def encode_segments(rows: StoredRows) -> Iterator[tuple[int, bytes]]:
    """Yield ``(place of its first row in rows, segment)``, of at most ``SEGMENT_ROWS`` rows each."""
    for first in range(0, len(rows.ids), SEGMENT_ROWS):
        part = slice(first, first + SEGMENT_ROWS)
        begin, size = rows.begin[part].astype("<i8"), rows.size[part].astype("<i4")
        segment = Segment(rows.ids[part], begin.tobytes(), int(rows.offset[first]), size.tobytes())
        yield first, zlib.compress(_encoder.encode(segment), _FASTEST)


def decode_segment(blob: bytes) -> Segment:
    """Read a segment.

    Raises:
        CorruptionError: These bytes are none.
    """
    try:
        segment = _decoder.decode(zlib.decompress(blob))
        if len(segment.begin) == len(segment.size) == len(segment.ids):
            return segment
    except (zlib.error, msgspec.MsgspecError, ValueError) as error:
        raise CorruptionError(f"not a segment of rows: {error}") from error
    raise CorruptionError("not a segment of rows: its columns differ in length")
