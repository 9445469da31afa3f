"""The write-ahead log's bytes: how a frame is encoded, read back, and told from damage.

A log is a run of segment files ``<first LSN, 20 digits>.wal``; numbers are little-endian, frames 8-byte aligned::

    segment   ┌────────────────┬─────────┬─────────┬─────┬────────────────────────────┐
              │ segment header │ frame   │ frame   │  …  │ zeros, laid ahead          │
              └────────────────┴─────────┴─────────┴─────┴────────────────────────────┘
    segment    0  magic "VCRFTWAL"             8
    header     8  format version               u32   2    of the records' payloads, too; 1: see below
    64 bytes  12  chain                        u32   header CRC of the last frame before this segment (0: none)
              16  first LSN                    u64   also the file's name
              24  epoch that made it           u64
              32  salt                         u64   chosen by whoever opened the log; makes the CRCs unguessable
              40  zeros                        20
              60  CRC-32C of bytes 0–59        u32   = the segment's *seed*

    frame      0  magic "VCFR"                 4
    header     4  format version               u16   1
    56 bytes   6  zeros                        2
               8  first LSN                    u64   its records have the LSNs first, first + 1, …
              16  durable LSN                  u64   every record up to here was synced when the frame was written
              24  epoch                        u64
              32  body length                  u64   bytes, a multiple of 8
              40  record count                 u32   at least 1
              44  chain                        u32   header CRC of the frame before (the seed, for the first)
              48  body CRC                     u32   CRC-32C of the body, seeded by the segment's seed
              52  header CRC                   u32   CRC-32C of bytes 0–51, seeded by the segment's seed
    body      records, one after the other, each padded by zeros to a multiple of 8:
    record     0  payload length               u32
               4  type                         u8
               5  zeros                        3
               8  payload                            (so payloads are 8-byte aligned within the body)

A frame is one group write and the unit of atomicity: it counts whole or not at all. Its CRCs are seeded by the segment,
so a frame of another segment, or one forged inside a payload, is not valid here; its chain names the frame before, so
that none can be missing. The *durable LSN* tells a crash from damage: bytes of a frame may be missing only if it was
not synced yet, so a valid later frame that says it was is proof of damage (:meth:`FrameReader.proof_of_damage`).

Segments of version 1 are read, and never written to: their deletions do not say which snapshot a filter found them at
(:mod:`vecraft_shard.records`), so a program that knows no other would pass over it where it stands.

This module deliberately knows one segment at a time: :mod:`vecraft_shard.wal_replay` strings segments together and
:mod:`vecraft_shard.wal` writes them.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from crc32c import crc32c

from vecraft_data_model.errors import CorruptionError, InvalidDataException
from vecraft_data_model.ports import File

SEGMENT_MAGIC = b"VCRFTWAL"
FRAME_MAGIC = b"VCFR"
FORMAT_VERSION = 2
"""Of the segments that are written."""
READABLE_VERSIONS = (1, FORMAT_VERSION)
_FRAME_VERSION = 1

_SEGMENT = struct.Struct("<8sIIQQQ20xI")
_FRAME = struct.Struct("<4sHxxQQQQIIII")
_RECORD = struct.Struct("<IB3x")
_CRC = struct.Struct("<I")
SEGMENT_HEADER_BYTES = _SEGMENT.size
FRAME_HEADER_BYTES = _FRAME.size
RECORD_HEADER_BYTES = _RECORD.size
_FRAME_START = struct.Struct("<4sHxx").pack(FRAME_MAGIC, _FRAME_VERSION)
_PADDING = tuple(bytes(n) for n in range(8))

MAX_RECORD_BYTES = 2**32 - 1
LARGE_PIECE_BYTES = 256 << 10
"""Pieces at least this long go to the disk as they are; shorter ones are joined first."""
_WINDOW_BYTES = 1 << 20

Piece = bytes | memoryview


class WalRecord(NamedTuple):
    """One record read back. ``payload`` is read-only and keeps the block it was read in (about 1 MiB) alive."""

    lsn: int
    epoch: int
    type: int
    payload: memoryview


@dataclass(frozen=True, slots=True)
class SegmentHeader:
    """What a segment file says of itself (the drawing above)."""

    first_lsn: int
    epoch: int
    salt: int
    chain: int
    version: int = FORMAT_VERSION

    def encode(self) -> bytes:
        """Return the 64 bytes of the header."""
        data = _SEGMENT.pack(SEGMENT_MAGIC, self.version, self.chain, self.first_lsn, self.epoch, self.salt, 0)
        return data[:-4] + _CRC.pack(crc32c(data[:-4]))

    @property
    def seed(self) -> int:
        """The CRC of the header, which seeds those of the segment's frames."""
        return crc32c(self.encode()[:-4])

    @staticmethod
    def decode(data: bytes, name: str) -> SegmentHeader:
        """Read a header back.

        Raises:
            CorruptionError: It is not a segment header, is damaged, or of a format version that this build cannot read.
        """
        if len(data) < SEGMENT_HEADER_BYTES or data[:8] != SEGMENT_MAGIC:
            raise CorruptionError(f"{name} at 0: not a segment of a write-ahead log", file=name, offset=0)
        if not SegmentHeader.is_whole(data):
            raise CorruptionError(f"{name} at 0: the segment header does not match its checksum", file=name, offset=0)
        _, version, chain, first_lsn, epoch, salt, _ = _SEGMENT.unpack_from(data)
        if version not in READABLE_VERSIONS:
            readable = " and ".join(map(str, READABLE_VERSIONS))
            raise CorruptionError(
                f"{name} at 0: format version {version}, this build reads {readable}", file=name, offset=0
            )
        return SegmentHeader(first_lsn=first_lsn, epoch=epoch, salt=salt, chain=chain, version=version)

    @staticmethod
    def is_whole(data: bytes) -> bool:
        """Whether these bytes begin with a segment header, of any format version, as it was written."""
        if len(data) < SEGMENT_HEADER_BYTES or data[:8] != SEGMENT_MAGIC:
            return False
        crc: int = _SEGMENT.unpack_from(data)[-1]
        return crc32c(data[: SEGMENT_HEADER_BYTES - 4]) == crc


class FrameHeader(NamedTuple):
    """A frame's header (the drawing above); ``crc`` is its own checksum, the chain value of the next frame."""

    first_lsn: int
    durable_lsn: int
    epoch: int
    body_length: int
    records: int
    chain: int
    body_crc: int
    crc: int

    @property
    def last_lsn(self) -> int:
        """LSN of its last record."""
        return self.first_lsn + self.records - 1


def encode_frame(
    records: Sequence[tuple[int, Sequence[Piece]]],
    *,
    first_lsn: int,
    durable_lsn: int,
    epoch: int,
    chain: int,
    seed: int,
) -> tuple[list[bytearray | memoryview], int, int]:
    """Encode one frame.

    Args:
        records: Type (0–255) and payload, in pieces, of each record; at least one record.
        first_lsn: LSN of the first.
        durable_lsn: Highest LSN known to be synced.
        epoch: The owner's epoch.
        chain: Header CRC of the frame before, or ``seed`` for the first of the segment.
        seed: The segment's seed.

    Returns:
        ``(chunks, size, crc)``: the buffers to write one after the other (large pieces as they were given), their total
        size in bytes, and the header CRC.

    Raises:
        InvalidDataException: A record of 4 GiB or more, or a type outside 0–255.
    """
    run: list[Piece] = [bytes(FRAME_HEADER_BYTES)]
    chunks: list[bytearray | memoryview] = []
    body_length = 0
    for kind, pieces in records:
        views = [piece if type(piece) is bytes else _flat(piece) for piece in pieces]
        lengths = list(map(len, views))
        length = sum(lengths)
        if length > MAX_RECORD_BYTES or not 0 <= kind <= 255:
            raise InvalidDataException(
                f"log record of type {kind} with {length} bytes: types are 0 to 255, at most {MAX_RECORD_BYTES} bytes"
            )
        run.append(_RECORD.pack(length, kind))
        if length < LARGE_PIECE_BYTES or max(lengths) < LARGE_PIECE_BYTES:
            run += views
        else:
            for view, size in zip(views, lengths, strict=True):
                if size < LARGE_PIECE_BYTES:
                    run.append(view)
                else:
                    if run:
                        chunks.append(bytearray().join(run))
                        run = []
                    chunks.append(memoryview(view))
        padding = -length & 7
        run.append(_PADDING[padding])
        body_length += RECORD_HEADER_BYTES + length + padding
    if tail := bytearray().join(run):
        chunks.append(tail)
    head = chunks[0]
    body_crc = crc32c(memoryview(head)[FRAME_HEADER_BYTES:], seed)
    for chunk in chunks[1:]:
        body_crc = crc32c(chunk, body_crc)
    fields = (FRAME_MAGIC, _FRAME_VERSION, first_lsn, durable_lsn, epoch, body_length, len(records), chain, body_crc)
    crc = crc32c(_FRAME.pack(*fields, 0)[:-4], seed)
    _FRAME.pack_into(head, 0, *fields, crc)
    return chunks, FRAME_HEADER_BYTES + body_length, crc


def _flat(piece: Piece) -> Piece:
    """Return a view of single bytes, so that ``len`` is its size (a view of an array counts rows)."""
    view = memoryview(piece)
    return view.cast("B") if view.nbytes else b""


def decode_frame_header(data: bytes | memoryview, seed: int) -> FrameHeader | None:
    """Return the frame header that ``data`` begins with, or None if there is no valid one of this segment."""
    if len(data) < FRAME_HEADER_BYTES or data[: len(_FRAME_START)] != _FRAME_START:
        return None
    header = FrameHeader(*_FRAME.unpack_from(data)[2:])
    return header if crc32c(data[: FRAME_HEADER_BYTES - 4], seed) == header.crc else None


def records_of(header: FrameHeader, body: memoryview, name: str, offset: int) -> Iterator[WalRecord]:
    """Yield the records of a frame whose checksums were verified.

    Raises:
        CorruptionError: They do not fill the body exactly (a fault of whoever wrote it).
    """
    position = 0
    for lsn in range(header.first_lsn, header.first_lsn + header.records):
        start = position + RECORD_HEADER_BYTES
        length, kind = _RECORD.unpack_from(body, position) if start <= len(body) else (len(body), 0)
        position = start + length + (-length & 7)
        if position > len(body):
            break
        yield WalRecord(lsn, header.epoch, kind, body[start : start + length])
    if position != len(body):
        raise CorruptionError(
            f"{name} at {offset}: a frame of {header.records} records does not match its length of {len(body)} bytes",
            file=name,
            offset=offset,
        )


class FrameReader:
    """Reads the frames of one segment in order, up to the first bytes that are not a valid frame.

    Attributes:
        header: The segment's.
        offset: Where the next frame begins; after :meth:`frames` is exhausted, where the valid frames end.
        chain: Header CRC of the last frame read (the seed, before the first).
        next_lsn: LSN that the next frame must begin with.
        epoch: Epoch of the last frame read, which the next may not fall below.
    """

    def __init__(self, file: File, name: str, header: SegmentHeader, epoch: int = 0) -> None:
        self._file = file
        self._name = name
        self._size = file.size()
        self._window = memoryview(b"")
        self._base = 0
        self.header = header
        self.seed = header.seed
        self.offset = SEGMENT_HEADER_BYTES
        self.chain = self.seed
        self.next_lsn = header.first_lsn
        self.epoch = epoch

    def frames(self) -> Iterator[tuple[FrameHeader, memoryview, int]]:
        """Yield ``(header, body, offset)`` of each frame.

        Raises:
            CorruptionError: A frame is intact but not the one that must stand here.
        """
        while (header := decode_frame_header(self._bytes(self.offset, FRAME_HEADER_BYTES), self.seed)) is not None:
            end = self.offset + FRAME_HEADER_BYTES + header.body_length
            if end > self._size:
                return
            body = self._bytes(self.offset + FRAME_HEADER_BYTES, header.body_length)
            if len(body) < header.body_length or crc32c(body, self.seed) != header.body_crc:
                return
            self._check_order(header)
            offset, self.offset = self.offset, end
            self.chain, self.next_lsn, self.epoch = header.crc, header.last_lsn + 1, header.epoch
            yield header, body, offset

    def ends_in_zeros(self) -> bool:
        """Whether nothing but zeros follows the valid frames."""
        for start in range(self.offset, self._size, _WINDOW_BYTES):
            block = self._file.pread(min(_WINDOW_BYTES, self._size - start), start)
            if block.count(0) != len(block):
                return False
        return True

    def proof_of_damage(self) -> int | None:
        """Return where a later frame stands that shows that the one missing at ``offset`` had been durable, or None.

        Every 8-byte aligned offset is looked at. A later frame that was written before the missing one was synced
        proves nothing: a crash may keep either without the other.
        """
        step = _WINDOW_BYTES
        start = self.offset + 8
        while start + FRAME_HEADER_BYTES <= self._size:
            block = self._file.pread(step, start)
            words = np.frombuffer(block, dtype="<u8", count=len(block) // 8)
            for index in np.flatnonzero(words == np.frombuffer(_FRAME_START, dtype="<u8")[0]).tolist():
                if self._proves_damage(start + 8 * index):
                    return start + 8 * index
            start += step
        return None

    def _proves_damage(self, offset: int) -> bool:
        header = decode_frame_header(self._file.pread(FRAME_HEADER_BYTES, offset), self.seed)
        if header is None or header.durable_lsn < self.next_lsn:
            return False
        start, left, crc = offset + FRAME_HEADER_BYTES, header.body_length, self.seed
        if start + left > self._size:
            return False
        while left > 0:
            block = self._file.pread(min(left, _WINDOW_BYTES), start)
            if not block:
                return False
            crc = crc32c(block, crc)
            start, left = start + len(block), left - len(block)
        return crc == header.body_crc

    def _check_order(self, header: FrameHeader) -> None:
        if header.first_lsn != self.next_lsn or header.chain != self.chain:
            self._corrupt(f"the frame of LSN {header.first_lsn} stands where LSN {self.next_lsn} must follow")
        if header.epoch < self.epoch:
            self._corrupt(f"epoch {header.epoch} after epoch {self.epoch}: two owners wrote this log")

    def _corrupt(self, what: str) -> None:
        raise CorruptionError(f"{self._name} at {self.offset}: {what}", file=self._name, offset=self.offset)

    def _bytes(self, offset: int, count: int) -> memoryview:
        """Return ``count`` bytes at ``offset`` (fewer at the end of the file) from the current window, or a new one."""
        start = offset - self._base
        if start < 0 or start + count > len(self._window):
            self._window = memoryview(self._file.pread(max(count, _WINDOW_BYTES), offset))
            self._base, start = offset, 0
        return self._window[start : start + count]
