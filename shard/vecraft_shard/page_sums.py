"""Checksums of the pages of an SQLite file, which has none of its own.

SQLite checks the frames of its write-ahead log, but takes a page of the file itself for what was written, as long as it
can make sense of it. So beside ``shard.sqlite`` lies ``shard.sqlite.sums``, numbers little-endian::

     0  magic            8    "VCRFTSUM"
     8  format version   u32  1
    12  bytes per page   u32
    16  pages            u64
    24  zeros            4
    28  CRC-32C          u32  of bytes 0–27, then of all that follows from 32 on
    32  CRC-32C per page u32  …

It is kept in step without ever reading a page of the file: a committed transaction stands in SQLite's log, page by
page, before it is folded into the file::

    COMMIT (synced) ──► sums of the pages in the log ──► sums file replaced ──► log folded into the file, and emptied

A crash between any two of these leaves pages that match either their sum or their image in the log; so at the next
start the log is folded first, and a page that matches neither is damaged. What counts in the log is what SQLite counts:
frames up to the last commit, as far as their chain of checksums holds. A crash in the middle of a commit, or one that
failed, leaves others behind them.

Sums that are missing or damaged are made again from the file as it is. What reads the file must not close another
descriptor of it while SQLite has it open (that would drop SQLite's locks), so this one stays open until ``close``.

It deliberately knows nothing of tables. It checks when a database is opened; what a disk does to pages later is found
at the next start.
"""

from __future__ import annotations

import logging
import os
import struct
from collections import defaultdict
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import BinaryIO

import numpy as np
import numpy.typing as npt
from crc32c import crc32c

from vecraft_data_model.errors import CorruptionError, StorageFailureException
from vecraft_shard.disk import OsDisk, failure

logger = logging.getLogger(__name__)

SUFFIX = ".sums"
_MAGIC = b"VCRFTSUM"
_VERSION = 1
_HEADER = struct.Struct("<8sIIQ4xI")
_CRC = struct.Struct("<I")
_LOG_HEADER = struct.Struct(">8I")
_LOG_HEADER_SUMMED = 24
_FRAME_HEADER = struct.Struct(">6I")
_FRAME_HEADER_SUMMED = 8
_LOG_MAGIC = (0x377F0682, 0x377F0683)
_PAGES_AT_ONCE = 256
_MASK = 2**32 - 1


class PageSums:
    """The checksums of one SQLite file.

    Args:
        path: The SQLite file, which need not exist.

    Raises:
        StorageFailureException: A file cannot be read.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._log = path.with_name(path.name + "-wal")
        self._disk = OsDisk(path.parent)
        self._name = path.name + SUFFIX
        self._fd = -1
        self._page_bytes = 0
        self._sums: npt.NDArray[np.uint32] | None = self._load()
        self._images: dict[int, set[int]] = defaultdict(set)
        for page, _, crc in self._frames():
            self._images[page].add(crc)

    @property
    def known(self) -> bool:
        """Whether there are sums to check the file against."""
        return self._sums is not None

    @property
    def pending(self) -> bool:
        """Whether SQLite's log holds committed pages, which have to be folded into the file before it is verified."""
        return bool(self._images)

    def check_start(self) -> None:
        """Check what must be so before SQLite opens the file, and all of it if nothing is pending.

        Raises:
            CorruptionError: The file is missing, or (nothing pending) a page is damaged.
        """
        if not self.pending:
            self.verify()
        elif not self._path.exists() or not self._path.stat().st_size:
            self._corrupt(0, "the file is missing or empty, though there is a log beside it")

    def verify(self) -> None:
        """Check every page; afterwards the sums are those of the file as it is, durably.

        Raises:
            CorruptionError: A page matches neither its sum nor an image that was in the log.
        """
        if not self._path.exists():
            if self._sums is not None:
                self._corrupt(0, "the file is missing")
            return
        found = self._read_sums()
        if self._sums is None:
            if len(found):
                logger.warning("%s has no checksums: they are made from what it holds", self._path)
        else:
            self._compare(found, self._sums)
        changed = self._sums is None or not np.array_equal(found, self._sums)
        self._sums = found
        if changed and len(found):
            self._write()
        self._images.clear()

    def follow(self) -> None:
        """Take up the pages that a commit has put into SQLite's log, durably, if there are any.

        Raises:
            StorageFailureException: The sums could not be written: there are none until the next call.
        """
        frames = list(self._frames())
        if not frames:
            return
        pages = frames[-1][1]
        known = np.zeros(0, np.uint32) if self._sums is None else self._sums
        grown = np.zeros(pages, np.uint32)
        grown[: min(pages, len(known))] = known[:pages]
        for page, _, crc in frames:
            if page <= pages:
                grown[page - 1] = crc
        self._sums = grown
        try:
            self._write()
        except StorageFailureException:
            # SQLite may fold its log without asking. Then no sums, which are made again, are better than old ones.
            self._disk.remove(self._name)
            self._disk.remove(self._name + ".new")
            self._disk.sync_directory()
            raise

    def close(self) -> None:
        """Close the file; to be called after SQLite has."""
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)

    # --------------------------------------------------------------------------------------------- inside

    def _compare(self, found: npt.NDArray[np.uint32], sums: npt.NDArray[np.uint32]) -> None:
        if len(found) < len(sums):
            self._corrupt(len(found) * self._page_bytes, f"the file ends here, but had {len(sums)} pages")
        expected = np.zeros(len(found), np.uint32)
        expected[: len(sums)] = sums
        differing = np.flatnonzero(found != expected)
        for i in [*differing.tolist(), *range(len(sums), len(found))]:
            if int(found[i]) not in self._images.get(i + 1, ()):
                self._corrupt(i * self._page_bytes, f"page {i + 1} does not match its checksum")

    def _read_sums(self) -> npt.NDArray[np.uint32]:
        try:
            if self._fd < 0:
                self._fd = os.open(self._path, os.O_RDONLY | os.O_CLOEXEC)
            if not self._page_bytes:
                (size,) = struct.unpack(">H", os.pread(self._fd, 2, 16).rjust(2, b"\0"))
                self._page_bytes = 65536 if size == 1 else size or 4096
            page, sums, offset = self._page_bytes, [], 0
            while block := os.pread(self._fd, page * _PAGES_AT_ONCE, offset):
                view = memoryview(block)
                sums += [crc32c(view[start : start + page]) for start in range(0, len(block), page)]
                offset += len(block)
        except OSError as error:
            raise failure("read", self._path, error) from error
        return np.array(sums, np.uint32)

    def _frames(self) -> Iterator[tuple[int, int, int]]:
        """Yield ``(page, pages of the file after it, checksum)`` of SQLite's log, up to its last commit."""
        try:
            with self._log.open("rb") as log:
                yield from self._committed(log)
        except FileNotFoundError:
            return
        except OSError as error:
            raise failure("read", self._log, error) from error

    def _committed(self, log: BinaryIO) -> Iterator[tuple[int, int, int]]:
        header = log.read(_LOG_HEADER.size)
        if len(header) < _LOG_HEADER.size:
            return
        magic, _, page_bytes, _, *salts_and_sums = _LOG_HEADER.unpack(header)
        if magic not in _LOG_MAGIC or page_bytes < 512:
            return
        salts, expected = salts_and_sums[:2], tuple(salts_and_sums[2:])
        words = "<u4" if magic == _LOG_MAGIC[0] else ">u4"
        sums = _log_sums(header[:_LOG_HEADER_SUMMED], (0, 0), words)
        if sums != expected:
            return
        self._page_bytes = self._page_bytes or page_bytes
        uncommitted: list[tuple[int, int, int]] = []
        while len(frame := log.read(_FRAME_HEADER.size + page_bytes)) == _FRAME_HEADER.size + page_bytes:
            page, size, *frame_salts, first, second = _FRAME_HEADER.unpack_from(frame)
            image = memoryview(frame)[_FRAME_HEADER.size :]
            sums = _log_sums(frame[:_FRAME_HEADER_SUMMED] + image, sums, words)
            if frame_salts != salts or sums != (first, second):
                return
            uncommitted.append((page, size, crc32c(image)))
            if size:
                yield from uncommitted
                uncommitted.clear()

    def _load(self) -> npt.NDArray[np.uint32] | None:
        if not self._disk.exists(self._name):
            return None
        file = self._disk.open(self._name)
        try:
            data = file.pread(file.size(), 0)
        finally:
            file.close()
        if len(data) >= _HEADER.size:
            magic, version, page_bytes, pages, crc = _HEADER.unpack_from(data)
            body = data[_HEADER.size :]
            whole = crc == crc32c(body, crc32c(data[: _HEADER.size - _CRC.size]))
            if magic == _MAGIC and version == _VERSION and whole and len(body) == 4 * pages:
                self._page_bytes = page_bytes
                return np.frombuffer(body, "<u4").astype(np.uint32)
        logger.warning("%s is damaged: the checksums are made again", self._path.parent / self._name)
        return None

    def _write(self) -> None:
        sums = np.zeros(0, np.uint32) if self._sums is None else self._sums
        body = sums.astype("<u4").tobytes()
        header = _HEADER.pack(_MAGIC, _VERSION, self._page_bytes, len(sums), 0)[: -_CRC.size]
        fresh = self._disk.open(self._name + ".new")
        try:
            fresh.truncate(0)
            fresh.pwrite(header + _CRC.pack(crc32c(body, crc32c(header))) + body, 0)
            fresh.sync()
        finally:
            fresh.close()
        self._disk.rename(self._name + ".new", self._name)

    def _corrupt(self, offset: int, what: str) -> None:
        raise CorruptionError(f"{self._path} at {offset}: {what}", file=str(self._path), offset=offset)


def _log_sums(data: bytes, sums: tuple[int, int], words: str) -> tuple[int, int]:
    """Carry the checksums of SQLite's log on over ``data`` (sqlite.org/fileformat2.html, section 4.2).

    Its definition goes word by word: ``a += x + b; b += y + a`` modulo 2³². That is linear, so the sums after all words
    are a weighted sum of these, with weights that depend on their number only.
    """
    values = np.frombuffer(data, words).astype(np.uint64)
    weights, ((aa, ab), (ba, bb)) = _log_weights(len(values) // 2)
    a, b = (int(total) for total in weights @ values)
    return (a + aa * sums[0] + ab * sums[1]) & _MASK, (b + ba * sums[0] + bb * sums[1]) & _MASK


@cache
def _log_weights(pairs: int) -> tuple[npt.NDArray[np.uint64], tuple[tuple[int, int], tuple[int, int]]]:
    """Return the weights (2, 2 × pairs) of the words in both sums, and those of the sums before."""
    weights = np.empty((2, 2 * pairs), np.uint64)
    (aa, ab), (ba, bb) = (1, 0), (0, 1)
    for k in reversed(range(pairs)):
        # one step: a' = a + b + x, b' = a + 2b + x + y; what follows it is (aa, ab), (ba, bb)
        weights[:, 2 * k] = (aa + ab) & _MASK, (ba + bb) & _MASK
        weights[:, 2 * k + 1] = ab, bb
        aa, ab = (aa + ab) & _MASK, (aa + 2 * ab) & _MASK
        ba, bb = (ba + bb) & _MASK, (ba + 2 * bb) & _MASK
    return weights, ((aa, ab), (ba, bb))
