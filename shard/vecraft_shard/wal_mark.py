"""The high-water mark of a log: how far it was synced, said in a place of its own.

The log alone cannot tell a frame that a crash cut short from one that was damaged later, if nothing comes after it; nor
that its end was cut off altogether. So after each sync the LSN it reached is written here, without a sync of its own::

     0  magic            8    "VCRFTMRK"
     8  format version   u32  1
    12  zeros            4
    16  durable LSN      u64  every record up to here was synced
    24  zeros            4
    28  CRC-32C of 0–27  u32

Invariant: the mark never says more than is true, because it is written after the sync. It may say less: a power
failure can take the last seconds of marks with it, but the death of a process cannot. So a log that ends below its mark
has lost records that were acknowledged, while one that ends above it has lost nothing that the mark knows of.

A mark that is missing or damaged says nothing. It deliberately costs no sync: one write of 32 bytes into the page
cache.
"""

from __future__ import annotations

import struct

from crc32c import crc32c

from vecraft_data_model.ports import Disk, File

MARK_SUFFIX = ".durable"
_MAGIC = b"VCRFTMRK"
_VERSION = 1
_MARK = struct.Struct("<8sI4xQ4xI")
_CRC = struct.Struct("<I")


def mark_name(folder: str) -> str:
    """Return the file name of the mark of the log in ``folder``: beside it."""
    return f"{folder}{MARK_SUFFIX}"


def read_mark(disk: Disk, folder: str) -> int | None:
    """Return the LSN that the mark names; None if there is no mark, or a damaged one."""
    name = mark_name(folder)
    if not disk.exists(name):
        return None
    file = disk.open(name)
    try:
        data = file.pread(_MARK.size, 0)
    finally:
        file.close()
    if len(data) < _MARK.size:
        return None
    magic, version, lsn, crc = _MARK.unpack(data)
    known = magic == _MAGIC and version == _VERSION and crc == crc32c(data[: -_CRC.size])
    return int(lsn) if known else None


class Mark:
    """The mark of an open log."""

    def __init__(self, disk: Disk, folder: str) -> None:
        """Open the mark, made empty if missing. Raises StorageFailureException."""
        self._file: File = disk.open(mark_name(folder))

    def write(self, lsn: int) -> None:
        """Say that every record up to ``lsn`` is synced. Raises StorageFailureException."""
        data = _MARK.pack(_MAGIC, _VERSION, lsn, 0)[: -_CRC.size]
        self._file.pwrite(data + _CRC.pack(crc32c(data)), 0)

    def close(self) -> None:
        """Close the file."""
        self._file.close()
