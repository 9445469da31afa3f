"""The store files of a collection: vectors by row number, payloads by offset.

Both kinds begin with the same 64 bytes, numbers little-endian::

     0  magic            8    "VCRFTVEC" (vectors) or "VCRFTPAY" (payloads)
     8  format version   u32  1
    12  dimension        u32  (0 for payloads)
    16  bytes per item   u32  4: float32, 2: float16 (0 for payloads)
    20  zeros            40
    60  CRC-32C of 0–59  u32

    vectors.f32 / .f16   header │ row 0 │ row 1 │ …            each row dimension × item bytes, IEEE 754
    payloads.log         header │ payload │ payload │ …        opaque here; who appends remembers offset and size

Invariants:

* Rows and payloads are written once, by one writer, and never change; readers in other threads see them through
  read-only maps, without locks. A row is published (``rows``, ``end``) after it is written.
* The files are extended ahead of the data, by room that costs nothing until used, so that maps are renewed rarely. Of
  that, ``reserve`` takes as much from the disk as is needed next: rows and payloads that were reserved can be written
  however full the disk becomes.
* How far the data goes is not written here: after opening, ``rows`` and ``end`` are upper bounds until ``truncate``
  sets what the checkpoint says. What lies beyond stays where it is, as room that the disk cannot take back.
* Views handed out stay valid after growth and ``close``. ``truncate`` is for recovery, before anything is handed out.
* The header is durable before the first row is written; everything else after ``sync``, which may run beside the
  writer. After a failed sync every later one fails too, until the file is opened again.

They deliberately hold no checksums of rows and payloads: a payload carries its record's digest, which covers the
vector too, and :mod:`vecraft_shard.integrity` keeps those of spans of rows.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Sequence

import numpy as np
import numpy.typing as npt
from crc32c import crc32c

from vecraft_data_model.errors import (
    CorruptionError,
    InvalidDataException,
    StorageFailureException,
    StorageFullError,
    VectorDimensionMismatchException,
)
from vecraft_data_model.ports import Disk

VectorArray = npt.NDArray[np.float32] | npt.NDArray[np.float16]

VECTOR_MAGIC = b"VCRFTVEC"
PAYLOAD_MAGIC = b"VCRFTPAY"
FORMAT_VERSION = 1
HEADER_BYTES = 64
_HEADER = struct.Struct("<8sIII40xI")

MIN_STEP_BYTES = 1 << 20
MAX_STEP_BYTES = 64 << 20
"""By how much the length goes ahead of the data: an eighth, within these."""

MIN_TAKEN_BYTES = 16 << 10
MAX_TAKEN_BYTES = 8 << 20
"""By how much the room taken from the disk does."""


class _GrowingFile:
    """A store file: its header, its room ahead, and the current map of it."""

    def __init__(self, disk: Disk, name: str, magic: bytes, dim: int, item_bytes: int) -> None:
        self.name = name
        self._file = disk.open(name)
        header = _HEADER.pack(magic, FORMAT_VERSION, dim, item_bytes, 0)[:-4]
        header += struct.pack("<I", crc32c(header))
        found = self._file.pread(HEADER_BYTES, 0)
        if found != header:
            # Room and rows come only after the header is durable, so a file this short was cut short while it was made.
            if self._file.size() > HEADER_BYTES or _is_header(found):
                self._file.close()
                raise _header_fault(name, found, header)
            try:
                self._file.truncate(0)
                self._file.pwrite(header, 0)
                self._file.sync()
                disk.sync_directory(name.rpartition("/")[0])
            except BaseException:
                self._file.close()
                raise
        self.size = self._file.size()
        self.map = self._file.map()
        self._taken = HEADER_BYTES  # room up to here is known to be ours
        self._dirty = False
        self._failed = False

    def reserve(self, end: int) -> bool:
        """Take the room up to ``end``, and make the map reach there; returns whether the map is a new one.

        Raises:
            StorageFullError: There is not that much room; nothing has changed.
        """
        if end > self._taken:
            self._take(end)
        if end <= self.size:
            return False
        step = min(max(self.size // 8, MIN_STEP_BYTES), MAX_STEP_BYTES)
        size = max(end, self.size + step, self._taken)
        self._file.truncate(size)
        self.map = self._file.map()
        self.size = size
        return True

    def _take(self, end: int) -> None:
        ahead = end + min(max(end // 8, MIN_TAKEN_BYTES), MAX_TAKEN_BYTES)
        if end <= self.size:
            ahead = min(ahead, self.size)  # the map would not reach further
        try:
            self._file.allocate(self._taken, ahead)
            self._taken = ahead
        except StorageFullError:
            self._file.allocate(self._taken, end)  # without anything ahead
            self._taken = end

    def write(self, data: bytes | memoryview, offset: int) -> None:
        try:
            self._file.pwrite(data, offset)
        finally:
            self._dirty = True  # after the write: a sync in another thread may have cleared it meanwhile

    def begin_at(self, end: int) -> None:
        """Take what lies beyond ``end`` for room; CorruptionError if the file is shorter."""
        if end > self.size:
            raise CorruptionError(
                f"{self.name} at {self.size}: the file ends here, but {end} bytes were written",
                file=self.name,
                offset=self.size,
            )
        self._taken = end

    def sync(self) -> None:
        """Make durable what was written before; may run beside the writer, in one thread at a time."""
        if self._failed:
            raise StorageFailureException(
                f"a sync of {self.name} failed before: what it holds is unknown until it is opened again",
                path=self.name,
            )
        if not self._dirty:
            return
        self._dirty = False  # before the sync: a write that comes during it is not covered
        try:
            self._file.sync()
        except BaseException:
            self._failed = True  # the system may have dropped the pages; a second sync would succeed and prove nothing
            raise

    def close(self, end: int | None) -> None:
        """Give back the room beyond ``end`` (no view reaches into it; None: keep it all) and close."""
        try:
            if end is not None and end < max(self.size, self._taken):
                self._file.truncate(end)
        finally:
            self._file.close()


def _is_header(data: bytes) -> bool:
    return len(data) == HEADER_BYTES and struct.unpack_from("<I", data, 60)[0] == crc32c(data[:60])


def _header_fault(name: str, found: bytes, expected: bytes) -> CorruptionError:
    if len(found) < HEADER_BYTES or not _is_header(found):
        what = "the header does not match its checksum"
    else:
        magic, version, dim, item_bytes, _ = _HEADER.unpack(found)
        want = _HEADER.unpack(expected)
        what = (
            f"holds {magic!r} version {version}, dimension {dim}, {item_bytes} bytes per item; "
            f"expected {want[0]!r} version {want[1]}, dimension {want[2]}, {want[3]} bytes per item"
        )
    return CorruptionError(f"{name} at 0: {what}", file=name, offset=0)


class VectorColumn:
    """Vectors by row number, (rows, dim) float32 or float16, mapped."""

    def __init__(self, disk: Disk, name: str, dim: int, dtype: npt.DTypeLike = np.float32) -> None:
        """Open the column, made empty if missing.

        Args:
            disk: Where.
            name: File name on it.
            dim: Numbers per row.
            dtype: ``float32`` or ``float16``, as stored.

        Raises:
            CorruptionError: The file is something else, or of another dimension or type.
            InvalidDataException: Another dtype, or a dimension below 1.
        """
        self.dtype = np.dtype(dtype).newbyteorder("<")
        self.dim = dim
        if self.dtype not in (np.dtype("<f4"), np.dtype("<f2")) or dim < 1:
            raise InvalidDataException(f"a column of {dim} × {self.dtype}: at least 1 × float32 or float16 is accepted")
        self._row_bytes = dim * self.dtype.itemsize
        self._bytes = memoryview(b"")
        self._file = _GrowingFile(disk, name, VECTOR_MAGIC, dim, self.dtype.itemsize)
        self._matrix: VectorArray = self._as_matrix()
        self._rows = len(self._matrix)

    @property
    def name(self) -> str:
        """Name of the file."""
        return self._file.name

    @property
    def rows(self) -> int:
        """Rows that may be read (see the module: an upper bound between opening and ``truncate``)."""
        return self._rows

    @property
    def bytes(self) -> int:
        """Bytes of header and rows, without the room ahead."""
        return HEADER_BYTES + self._rows * self._row_bytes

    def append(self, first_row: int, vectors: npt.NDArray[np.floating]) -> None:
        """Write rows ``first_row …``; they are readable on return, durable after ``sync``.

        Args:
            first_row: At most ``rows``: there are no gaps. Rows that exist are overwritten, which only recovery may do.
            vectors: (n, dim), converted to the column's dtype.

        Raises:
            VectorDimensionMismatchException: Not (n, dim).
            InvalidDataException: A gap.
            StorageFailureException: The disk failed; nothing was published.
        """
        if vectors.ndim != 2 or vectors.shape[1] != self.dim:
            raise VectorDimensionMismatchException(f"vectors of shape {vectors.shape}, the column has (n, {self.dim})")
        if not 0 <= first_row <= self._rows:
            raise InvalidDataException(f"row {first_row} of {self._file.name} would not follow its {self._rows} rows")
        if len(vectors) == 0:
            return
        data = np.ascontiguousarray(vectors, dtype=self.dtype)
        start = HEADER_BYTES + first_row * self._row_bytes
        self.reserve(first_row + len(data))
        self._file.write(data.data.cast("B"), start)
        self._rows = max(self._rows, first_row + len(data))

    def reserve(self, rows: int) -> None:
        """Take room for the rows below ``rows``.

        Raises:
            StorageFullError: The disk has not that much.
        """
        if self._file.reserve(HEADER_BYTES + rows * self._row_bytes):
            self._matrix = self._as_matrix()

    def view(self, lo: int, hi: int) -> VectorArray:
        """Return rows lo … hi-1 as a read-only (hi - lo, dim) array, without copying.

        Raises:
            IndexError: Not within ``0 <= lo <= hi <= rows``.
        """
        if not 0 <= lo <= hi <= self._rows:
            raise IndexError(f"rows {lo} to {hi} of a column of {self._rows} rows")
        return self._matrix[lo:hi]

    def take(self, rows: npt.NDArray[np.integer] | Sequence[int]) -> VectorArray:
        """Return a copy of the rows given, (len(rows), dim), in that order.

        Raises:
            IndexError: A row that does not exist.
        """
        index = np.asarray(rows, dtype=np.int64)
        if index.size and (index.min() < 0 or index.max() >= self._rows):
            raise IndexError(f"rows {index.min()} to {index.max()} of a column of {self._rows} rows")
        return self._matrix[index]

    def stored(self, rows: Sequence[int]) -> list[memoryview]:
        """Return the bytes of rows as they lie in the file, read-only, without copying. Python integers are fastest.

        Raises:
            IndexError: A row that does not exist.
        """
        data, width = self._bytes, self._row_bytes
        if rows and not 0 <= min(rows) <= max(rows) < self._rows:
            raise IndexError(f"rows {min(rows)} to {max(rows)} of a column of {self._rows} rows")
        return [data[at : at + width] for at in [HEADER_BYTES + row * width for row in rows]]

    def sync(self) -> None:
        """Make all rows durable. Raises StorageFailureException."""
        self._file.sync()

    def truncate(self, rows: int) -> None:
        """Set the number of rows to what the checkpoint says. For recovery, before any view.

        Raises:
            CorruptionError: The file holds fewer.
        """
        self._file.begin_at(HEADER_BYTES + rows * self._row_bytes)
        self._rows = rows

    def close(self, *, keep_room: bool = False) -> None:
        """Close; views stay valid. The room ahead of the rows is given back, unless it is to be kept."""
        self._file.close(None if keep_room else self.bytes)

    def _as_matrix(self) -> VectorArray:
        self._bytes = self._file.map.data
        data = self._file.map[HEADER_BYTES:]
        count = len(data) // self._row_bytes
        matrix: VectorArray = data[: count * self._row_bytes].view(self.dtype).reshape(count, self.dim)
        return matrix


class PayloadLog:
    """Payloads by offset, append-only, mapped."""

    def __init__(self, disk: Disk, name: str) -> None:
        """Open the log, made empty if missing.

        Raises:
            CorruptionError: The file is something else.
        """
        self._file = _GrowingFile(disk, name, PAYLOAD_MAGIC, 0, 0)
        self._view = self._file.map.data
        self._end = self._file.size

    @property
    def name(self) -> str:
        """Name of the file."""
        return self._file.name

    @property
    def end(self) -> int:
        """Offset after the last payload (see the module: an upper bound between opening and ``truncate``)."""
        return self._end

    def append(self, payloads: Sequence[bytes]) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int32]]:
        """Write payloads one after the other; they are readable on return, durable after ``sync``.

        Returns:
            Their offsets (n,) int64 and sizes in bytes (n,) int32.

        Raises:
            StorageFailureException: The disk failed; nothing was published.
        """
        sizes = np.fromiter(map(len, payloads), dtype=np.int32, count=len(payloads))
        ends = self._end + np.cumsum(sizes, dtype=np.int64)
        if len(payloads):
            end = int(ends[-1])
            self.reserve(end - self._end)
            self._file.write(b"".join(payloads), self._end)
            self._end = end
        return ends - sizes, sizes

    def reserve(self, size: int) -> None:
        """Take room for payloads of ``size`` bytes together.

        Raises:
            StorageFullError: The disk has not that much.
        """
        if self._file.reserve(self._end + size):
            self._view = self._file.map.data

    def read(self, offset: int, size: int) -> bytes:
        """Return the payload at ``offset``.

        Raises:
            CorruptionError: It does not lie within what was written.
        """
        stop = offset + size
        if offset < HEADER_BYTES or size < 0 or stop > self._end:
            raise self._outside(offset, size)
        return bytes(self._view[offset:stop])

    def view(self, start: int, stop: int) -> memoryview:
        """Return the bytes from ``start`` to ``stop``, read-only, without copying.

        Raises:
            CorruptionError: They do not lie within what was written.
        """
        if start < HEADER_BYTES or stop < start or stop > self._end:
            raise self._outside(start, stop - start)
        return self._view[start:stop]

    def read_many(self, offsets: Iterable[int], sizes: Iterable[int]) -> list[bytes]:
        """Return the payloads at ``offsets`` (Python integers are fastest).

        Raises:
            CorruptionError: One does not lie within what was written.
        """
        view, end = self._view, self._end
        found: list[bytes] = []
        for offset, size in zip(offsets, sizes, strict=True):  # ``read``, written out: every hit passes here
            stop = offset + size
            if offset < HEADER_BYTES or size < 0 or stop > end:
                raise self._outside(offset, size)
            found.append(bytes(view[offset:stop]))
        return found

    def sync(self) -> None:
        """Make all payloads durable. Raises StorageFailureException."""
        self._file.sync()

    def truncate(self, end: int) -> None:
        """Set ``end`` to what the checkpoint says (at least the header's 64). For recovery.

        Raises:
            CorruptionError: The file holds less.
        """
        end = max(end, HEADER_BYTES)
        self._file.begin_at(end)
        self._end = end

    def close(self, *, keep_room: bool = False) -> None:
        """Close; what was read stays. The room ahead is given back, unless it is to be kept."""
        self._file.close(None if keep_room else self._end)

    def _outside(self, offset: int, size: int) -> CorruptionError:
        return CorruptionError(
            f"{self._file.name} at {offset}: no payload of {size} bytes lies within the {self._end} bytes written",
            file=self._file.name,
            offset=offset,
        )
