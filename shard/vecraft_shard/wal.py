"""The write-ahead log of one shard: what is synced here survives; everything else is derived from it.

The log is a folder of segment files ``00000000000000000001.wal …``, each named by its first LSN::

    segment   │ segment header │ frame │ frame │ … │ zeros laid ahead │
    frame     │ frame header: first LSN, durable LSN, epoch, length, count, chain, CRCs │ record │ record │ … │
    record    │ payload length u32 │ type u8 │ payload, padded to 8 bytes │

:mod:`vecraft_shard.wal_format` draws every byte; :mod:`vecraft_shard.wal_replay` reads it back. The life of a log::

    Wal.open ──► replay() to its end ──► append … append ─► sync ──► answer the clients
                                            │                 ▲
                                            └─► rotate ───────┘      trim(LSN) after a checkpoint

Invariants:

* LSNs are dense and increasing from 1; epochs never go down; frames are chained across segments.
* What ``append`` was given counts as a whole or not at all. It is durable when ``sync`` returned, not before.
* A new segment is begun only after the one before is synced to its end: only the last may end in a torn frame.
* A torn end is cut off. It is told from damage by the *durable LSN* that every frame carries, and by the mark beside
  the segments (:mod:`vecraft_shard.wal_mark`): bytes may be missing only where nothing says they had been synced. Any
  other damage, and any gap, is a :class:`CorruptionError` that names file and offset.
* What ``replay`` gave out is durable once it is exhausted, even if the process before died between write and sync:
  nobody may see a record that a power failure could still take away.
* After a failed write or sync nothing is known about the page cache, so the log is broken: every later call raises
  :class:`StorageFailureException`, and only opening it again (recovery) helps.
* A full disk breaks nothing: what it let in of a frame is taken back, and that is durable, before anybody is told
  (:class:`StorageFullError`). So a frame that was refused cannot come back, and shorter ones may still find room. A
  *sync* that fails for want of room is a failed sync.

Writing into blocks that already exist makes a sync faster than extending the file, much so on a busy machine; so small
frames go into zeros that were written ahead, while large ones simply extend the file.

It deliberately does not know what a record means, when to sync, or when to checkpoint, and has no lock: one writer.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from vecraft_data_model.errors import InvalidDataException, StorageFailureException, StorageFullError
from vecraft_data_model.ports import Disk, File
from vecraft_shard.wal_format import FORMAT_VERSION, SEGMENT_HEADER_BYTES, Piece, SegmentHeader, WalRecord, encode_frame
from vecraft_shard.wal_mark import Mark
from vecraft_shard.wal_replay import LogReader, segment_name

__all__ = ["Wal", "WalRecord"]

SEGMENT_BYTES = 64 << 20
ZERO_AHEAD_BYTES = 1 << 20
_FIRST_ZERO_AHEAD_BYTES = 64 << 10
_SMALL_FRAME_SHARE = 16
"""A frame up to this part of ``zero_ahead`` is small: writing its zeros first costs less than what they save."""


class Wal:
    """The write-ahead log of one shard; see the module for its promises. Made by :meth:`open`."""

    def __init__(
        self, disk: Disk, *, epoch: int, after_lsn: int, folder: str, segment_bytes: int, zero_ahead: int, salt: int
    ) -> None:
        self._disk = disk
        self._epoch = epoch
        self._after_lsn = after_lsn
        self._folder = folder
        self._segment_bytes = segment_bytes
        self._zero_ahead = zero_ahead
        self._zero_step = min(zero_ahead, _FIRST_ZERO_AHEAD_BYTES)
        self._salt = salt
        self._segments: list[int] = []  # first LSNs, ascending; the last is the one written to
        self._file: File | None = None  # the last segment; None until replayed, and after close
        self._mark: Mark | None = None  # likewise
        self._state = "opened"
        self._failure: BaseException | None = None
        self._seed = 0
        self._chain = 0
        self._offset = 0  # where the next frame goes
        self._zeroed_to = 0  # the file holds zeros from _offset to here
        self._scarce = False  # there was no room for zeros in this segment
        self._next_lsn = 0
        self._durable_lsn = 0
        self._bytes_written = 0  # of frames, replayed or appended
        self._bytes_trimmed = 0  # of those, how many the last trim took off the account
        self._bytes_before: dict[int, int] = {}  # first LSN of a segment -> _bytes_written when it began
        self._cut_bytes = 0

    @classmethod
    def open(
        cls,
        disk: Disk,
        *,
        epoch: int,
        after_lsn: int = 0,
        folder: str = "wal",
        segment_bytes: int = SEGMENT_BYTES,
        zero_ahead: int = ZERO_AHEAD_BYTES,
        salt: int = 0,
    ) -> Wal:
        """Open the log in ``folder``, or begin one.

        Nothing is written before :meth:`replay` is exhausted, and nothing can be appended.

        Args:
            disk: Where.
            epoch: The owner's, stamped on every frame; not below any in the log.
            after_lsn: Records up to this LSN are held by a checkpoint: they may be missing and are not replayed.
            folder: Name of the folder on ``disk``.
            segment_bytes: A segment that has reached this size is followed by a new one. A frame is never split.
            zero_ahead: Most bytes of zeros laid ahead of small frames at a time; 0 turns it off.
            salt: Unpredictable number stamped on new segments, so that nobody can forge a frame inside a payload.

        Raises:
            StorageFailureException: The folder cannot be read.
        """
        return cls(
            disk,
            epoch=epoch,
            after_lsn=after_lsn,
            folder=folder,
            segment_bytes=segment_bytes,
            zero_ahead=zero_ahead,
            salt=salt,
        )

    # ------------------------------------------------------------------------------------------ recovery

    def replay(self) -> Iterator[WalRecord]:
        """Yield every record above ``after_lsn`` in order; once exhausted, the log is repaired, synced and writable.

        Memory is bounded by the largest frame, and what the caller keeps of the payloads.

        Raises:
            CorruptionError: Damage other than a torn end, a missing segment, or a log that ends before ``after_lsn``.
            StorageFailureException: The disk failed, or a higher epoch was found: another owner took over.
        """
        if self._state != "opened":
            raise RuntimeError("a log is replayed once, right after it was opened")
        self._state = "replaying"
        reader = LogReader(self._disk, self._folder, epoch=self._epoch, after_lsn=self._after_lsn)
        try:
            yield from reader.records()
            reader.check_mark()
            reader.repair()
            self._mark = Mark(self._disk, self._folder)
            self._mark.write(reader.next_lsn - 1)
            self._segments = reader.segments
            self._next_lsn = reader.next_lsn
            self._durable_lsn = reader.next_lsn - 1
            self._bytes_written = reader.replayed_bytes
            self._bytes_before = reader.bytes_before
            self._cut_bytes = reader.cut_bytes
            if reader.last is None or reader.file is None:
                self._begin_segment()
            else:
                self._seed, self._chain, self._offset = reader.last.seed, reader.last.chain, reader.last.offset
                self._zeroed_to = reader.file.size()
                self._file, reader.file = reader.file, None
            self._state = "ready"
            if reader.last is not None and reader.last.header.version != FORMAT_VERSION:
                self._renew_segment(reader.last.header)
        finally:
            reader.close()

    # ------------------------------------------------------------------------------------------- writing

    @property
    def next_lsn(self) -> int:
        """LSN of the next record."""
        return self._next_lsn

    @property
    def durable_lsn(self) -> int:
        """Highest LSN known to be synced."""
        return self._durable_lsn

    @property
    def size_bytes(self) -> int:
        """Bytes of frames that the last :meth:`trim` did not cover: how much a recovery would replay.

        Exact when the log was rotated at the LSN trimmed to; otherwise frames of the segment that holds it count.
        """
        return self._bytes_written - self._bytes_trimmed

    @property
    def cut_bytes(self) -> int:
        """Bytes that :meth:`replay` cut off as a torn end (0: it was whole), for the operator's log."""
        return self._cut_bytes

    def append(self, records: Sequence[tuple[int, Sequence[Piece]]]) -> int:
        """Write records as one frame, which a crash keeps whole or drops whole. Durable after :meth:`sync`.

        Args:
            records: Type (0–255) and payload of each, the payload in pieces (bytes, or C-contiguous views of any item
                type), which are not joined needlessly.

        Returns:
            LSN of the last record (of the last one before, if ``records`` is empty).

        Raises:
            InvalidDataException: A record of 4 GiB or more, or an unknown type; nothing was written.
            StorageFullError: The disk is full; the log is as it was.
            StorageFailureException: The write failed, or the log is broken or closed.
        """
        self._check()
        if not records:
            return self._next_lsn - 1
        if self._offset >= self._segment_bytes and self._next_lsn > self._segments[-1]:
            self.rotate()
        chunks, size, crc = encode_frame(
            records,
            first_lsn=self._next_lsn,
            durable_lsn=self._durable_lsn,
            epoch=self._epoch,
            chain=self._chain,
            seed=self._seed,
        )
        try:
            self._write(chunks, size)
        except StorageFullError:
            raise
        except BaseException as error:
            self._failure = error
            raise
        self._chain = crc
        self._offset += size
        self._bytes_written += size
        self._next_lsn += len(records)
        return self._next_lsn - 1

    def _write(self, chunks: list[bytearray | memoryview], size: int) -> None:
        """Write a frame, and zeros after it where that pays. StorageFullError: nothing is left of it."""
        zeros = self._zeros_after(len(chunks), size)
        parts = [bytearray().join((chunks[0], bytes(zeros)))] if zeros else chunks
        file, offset = self._open_file(), self._offset
        try:
            for part in parts:
                file.pwrite(memoryview(part), offset)
                offset += len(part)
        except StorageFullError:
            self._take_back()
            if not zeros:
                raise
            self._scarce = True
            self._write(chunks, size)
        else:
            self._zeroed_to = max(self._zeroed_to, offset)

    def _zeros_after(self, chunks: int, size: int) -> int:
        """Return how many zeros to lay after a frame."""
        if self._offset + size <= self._zeroed_to or self._scarce:
            return 0
        if chunks > 1 or size > self._zero_ahead // _SMALL_FRAME_SHARE:
            self._zero_step = min(self._zero_ahead, _FIRST_ZERO_AHEAD_BYTES)
            return 0
        zeros, self._zero_step = self._zero_step, min(2 * self._zero_step, self._zero_ahead)
        return zeros

    def _take_back(self) -> None:
        """Remove, durably, what a full disk let in of a frame, and keep the room that was there for it."""
        try:
            file = self._open_file()
            if self._zeroed_to > self._offset:
                file.pwrite(bytes(self._zeroed_to - self._offset), self._offset)
            file.truncate(max(self._zeroed_to, self._offset))
            file.sync()
            self._note_durable()
        except BaseException as error:
            self._failure = error
            if not isinstance(error, Exception):
                raise  # interrupted
            message = f"the log was left in the middle of a write: {error}"
            raise StorageFailureException(message, path=self._folder) from error

    def sync(self) -> None:
        """Make everything appended so far durable; returns at once if it is.

        Raises:
            StorageFailureException: The sync failed, or the log is broken or closed.
        """
        self._check()
        if self._durable_lsn == self._next_lsn - 1:
            return
        try:
            self._open_file().sync()
            self._note_durable()
        except BaseException as error:
            self._failure = error
            raise

    def rotate(self) -> None:
        """Begin a new segment, after making the current one durable; nothing happens if that one is empty.

        Raises:
            StorageFullError: There is no room for it; the log goes on in the current one.
            StorageFailureException: As for :meth:`append`.
        """
        self._check()
        if self._next_lsn == self._segments[-1]:
            return
        try:
            file = self._open_file()
            file.truncate(self._offset)
            self._zeroed_to = self._offset
            file.sync()
            self._note_durable()
        except BaseException as error:
            self._failure = error
            raise
        try:
            self._begin_segment()
            file.close()
        except StorageFullError:
            self._remove_unborn()
            raise
        except BaseException as error:
            self._failure = error
            raise

    def _renew_segment(self, header: SegmentHeader) -> None:
        """Go on in a segment of the present format version: a former one may not be what is written now."""
        if self._next_lsn > self._segments[-1]:
            self.rotate()
            return
        # There is no frame in it, and its header is no longer than a sector, which is written whole or not at all.
        unused = self._open_file()
        self._segments.pop()
        self._chain = header.chain
        self._begin_segment()
        unused.close()

    def _begin_segment(self) -> None:
        name = segment_name(self._folder, self._next_lsn)
        header = SegmentHeader(first_lsn=self._next_lsn, epoch=self._epoch, salt=self._salt, chain=self._chain)
        file = self._disk.open(name)
        try:
            file.pwrite(header.encode(), 0)
            file.sync()
            self._disk.sync_directory(self._folder)
        except BaseException:
            file.close()
            raise
        self._file = file
        self._segments.append(self._next_lsn)
        self._bytes_before[self._next_lsn] = self._bytes_written
        self._seed = self._chain = header.seed
        self._offset = self._zeroed_to = SEGMENT_HEADER_BYTES
        self._zero_step = min(self._zero_ahead, _FIRST_ZERO_AHEAD_BYTES)
        self._scarce = False

    def _remove_unborn(self) -> None:
        """Remove, durably, a segment that there was no room for: frames that go on before it would contradict it."""
        try:
            self._disk.remove(segment_name(self._folder, self._next_lsn))
            self._disk.sync_directory(self._folder)
        except BaseException as error:
            self._failure = error
            if not isinstance(error, Exception):
                raise  # interrupted
            message = f"a segment of the log was left half made: {error}"
            raise StorageFailureException(message, path=self._folder) from error

    def trim(self, up_to_lsn: int) -> None:
        """Remove the segments that hold only records up to ``up_to_lsn``; the one written to stays.

        Raises:
            InvalidDataException: ``up_to_lsn`` lies beyond the last record.
            StorageFailureException: A segment cannot be removed, or the log is broken or closed.
        """
        self._check()
        if up_to_lsn >= self._next_lsn:
            raise InvalidDataException(f"cannot trim the log up to LSN {up_to_lsn}: it ends at {self._next_lsn - 1}")
        covered = [size for first_lsn, size in self._bytes_before.items() if first_lsn <= up_to_lsn + 1]
        everything = [self._bytes_written] if up_to_lsn == self._next_lsn - 1 else []
        self._bytes_trimmed = max([self._bytes_trimmed, *covered, *everything])
        removed = False
        while len(self._segments) > 1 and self._segments[1] <= up_to_lsn + 1:
            self._disk.remove(
                segment_name(self._folder, self._segments[0])
            )  # oldest first, so that what a crash leaves has no gap
            self._bytes_before.pop(self._segments.pop(0), None)
            removed = True
        if removed:
            self._disk.sync_directory(self._folder)

    def close(self) -> None:
        """Close the files without a sync. Closing twice is harmless."""
        file, self._file = self._file, None
        mark, self._mark = self._mark, None
        self._state = "closed"
        if mark is not None:
            mark.close()
        if file is not None:
            file.close()

    def _note_durable(self) -> None:
        """Everything appended is synced: say so in every later frame, and in the mark."""
        self._durable_lsn = self._next_lsn - 1
        if self._mark is not None:
            try:
                self._mark.write(self._durable_lsn)
            except StorageFullError as error:
                # It is written in place, so that is no lack of room; and it must not be taken for a frame's.
                raise StorageFailureException(error.message, **error.details) from error

    def _open_file(self) -> File:
        if self._file is None:
            raise StorageFailureException("the log is closed", path=self._folder)
        return self._file

    def _check(self) -> None:
        if self._failure is not None:
            raise StorageFailureException(
                f"the log stopped after a failed write and must be opened again: {self._failure}",
                path=self._folder,
                errno=getattr(self._failure, "details", {}).get("errno", 0),
            ) from self._failure
        if self._state != "ready":
            if self._state == "closed":
                raise StorageFailureException("the log is closed", path=self._folder)
            raise RuntimeError("the log must be replayed to its end before it is used")
