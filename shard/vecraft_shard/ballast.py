"""What a shard keeps for when its disk is full: room that it can give back, and a place for its clock's ceiling.

``BALLAST`` lies beside the log, numbers little-endian::

        0  header     magic "VCRFTBAL" 8, format version u32 1, zeros 4, room u64, zeros 4, CRC-32C of 0–27 u32
     4096  slot 0     magic "VCRFTCEI" 8, format version u32 1, zeros 4, ceiling u64, zeros 4, CRC-32C of 0–27 u32
     8192  slot 1     likewise; a slot that was never written is all zeros
    12288  room       zeros: allocated, or not there at all while it is given back

While the disk is full, decisions about prepared transactions go into the log, in the room that the ballast gave back.
The ceiling is raised several times a second as long as anybody reads, which would use that room up; so it is written
here then, in place, into the slots by turns: a write that is torn leaves the ceiling before.

Invariant: the highest ceiling of both slots was durable when :meth:`Ballast.write_ceiling` returned. The slots are
never cleared: whoever recovers takes the highest ceiling that it finds anywhere.

It deliberately decides nothing: when to give the room back, and when to take it again, is :mod:`vecraft_shard.room`'s.
"""

from __future__ import annotations

import struct
from typing import Final

from crc32c import crc32c

from vecraft_data_model.errors import StorageFullError
from vecraft_data_model.ports import Disk, File

BALLAST: Final = "BALLAST"
_VERSION = 1
_PAGE = 4096
_HEADER_MAGIC = b"VCRFTBAL"
_SLOT_MAGIC = b"VCRFTCEI"
_ENTRY = struct.Struct("<8sI4xQ4xI")
_CRC = struct.Struct("<I")
_SLOTS = (_PAGE, 2 * _PAGE)
_ROOM_AT = 3 * _PAGE
_CHUNK = 1 << 20


class Ballast:
    """The ballast of one shard.

    Args:
        disk: The shard's directory.
        room: Bytes to keep.

    Attributes:
        ceiling: The highest ceiling that is written here; 0: none.
        held: Whether the room is there. To begin with it is not known to be: :meth:`take` sees to that.

    Raises:
        StorageFullError: The disk is full, and has no such file yet.
        StorageFailureException: The disk failed.
    """

    def __init__(self, disk: Disk, room: int) -> None:
        self._room = room
        self.held = False
        self._file: File = disk.open(BALLAST)
        try:
            found = self._file.pread(_ROOM_AT, 0)
            ceilings = [_entry(found[at : at + _ENTRY.size], _SLOT_MAGIC) or 0 for at in _SLOTS]
            self.ceiling = max(ceilings)
            self._next = ceilings.index(min(ceilings))
            if len(found) < _ROOM_AT or _entry(found, _HEADER_MAGIC) != room:
                header = _encoded(_HEADER_MAGIC, room)
                self._file.pwrite(header, 0)
                if len(found) < _ROOM_AT:
                    start = max(len(found), len(header))
                    self._file.pwrite(bytes(_ROOM_AT - start), start)
                self._file.sync()
            if self._file.size() > _ROOM_AT + room:
                self._file.truncate(_ROOM_AT + room)
        except BaseException:
            self._file.close()
            raise

    def take(self) -> bool:
        """Take the room, unless it is held. Returns whether it is held now.

        Raises:
            StorageFailureException: The disk failed.
        """
        if not self.held:
            try:
                self._file.allocate(_ROOM_AT, _ROOM_AT + self._room)
            except StorageFullError:
                self.give_back()  # what there was of it
                return False
            self.held = True
        return True

    def can_double(self) -> bool:
        """Whether the disk would give as much room once more.

        Raises:
            StorageFailureException: The disk failed.
        """
        size = self._file.size()
        try:
            self._file.allocate(size, size + self._room)
        except StorageFullError:
            return False
        self._file.truncate(size)
        return True

    def give_back(self) -> None:
        """Let others use the room.

        Raises:
            StorageFailureException: The disk failed.
        """
        self.held = False
        self._file.truncate(_ROOM_AT)
        self._file.sync()  # some file systems free blocks only when this is durable

    def write_ceiling(self, ceiling: int) -> None:
        """Make a ceiling durable without taking any room.

        Raises:
            StorageFailureException: The disk failed.
        """
        self._file.pwrite(_encoded(_SLOT_MAGIC, ceiling), _SLOTS[self._next])
        self._file.sync()
        self._next = 1 - self._next
        self.ceiling = max(self.ceiling, ceiling)

    def close(self) -> None:
        """Close the file; the room stays as it is."""
        self._file.close()


def damage_of(disk: Disk) -> str | None:
    """Say what is wrong with the ballast of a shard that nobody has open; None: nothing.

    Raises:
        StorageFailureException: The disk failed.
    """
    if not disk.exists(BALLAST):
        return f"{BALLAST} is missing: it keeps room for when the disk is full, and is made again"
    file = disk.open(BALLAST)
    try:
        size, found = file.size(), file.pread(_ROOM_AT, 0)
        room = _entry(found, _HEADER_MAGIC)
        if room is None or len(found) < _ROOM_AT:
            return f"{BALLAST} at 0: the header does not match its checksum, or the file ends in it"
        if size not in (_ROOM_AT, _ROOM_AT + room):
            return f"{BALLAST} at {size}: the file ends here, with {room} bytes of room it ends at {_ROOM_AT + room}"
        for at, end in zip((0, *_SLOTS), (*_SLOTS, _ROOM_AT), strict=True):
            entry = found[at : at + _ENTRY.size]
            known = any(entry) and _entry(entry, _SLOT_MAGIC if at else _HEADER_MAGIC) is None
            if known or any(found[at + _ENTRY.size : end]):
                return f"{BALLAST} at {at}: does not hold what was written"
        for start in range(_ROOM_AT, size, _CHUNK):
            block = file.pread(_CHUNK, start)
            if block.count(0) != len(block):
                return f"{BALLAST} at {start}: holds something where it keeps room; removed, the file is made again"
    finally:
        file.close()
    return None


def _encoded(magic: bytes, value: int) -> bytes:
    data = _ENTRY.pack(magic, _VERSION, value, 0)[: -_CRC.size]
    return data + _CRC.pack(crc32c(data))


def _entry(data: bytes, magic: bytes) -> int | None:
    """Return the number of an entry; None if it is damaged, or none."""
    if len(data) < _ENTRY.size:
        return None
    found, version, value, crc = _ENTRY.unpack_from(data)
    whole = found == magic and version == _VERSION and crc == crc32c(data[: _ENTRY.size - _CRC.size])
    return int(value) if whole else None
