"""Reading a write-ahead log back: which segments count, in which order, and what may be wrong at its end.

Invariants (why they hold stands in :mod:`vecraft_shard.wal`):

* Segments from the one that holds ``after_lsn + 1`` on must follow each other without a gap; earlier ones are the
  leavings of a trim that was cut short, and are not looked at.
* Only the last segment may end in a torn frame, and only one that nothing shows to have been durable.
* A last segment whose header was never synced (*unborn*) holds nothing; the one before it must be whole.

It deliberately repairs nothing before everything was read and found in order, and yields records one by one: memory is
bounded by the largest frame.
"""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Iterator

from vecraft_data_model.errors import CorruptionError, StorageFailureException
from vecraft_data_model.ports import Disk, File
from vecraft_shard.wal_format import SEGMENT_HEADER_BYTES, FrameReader, SegmentHeader, WalRecord, records_of
from vecraft_shard.wal_mark import mark_name, read_mark

_REWRITE_BYTES = 1 << 20
_SEGMENT_NAME = re.compile(r"(\d{20})\.wal")


def segment_name(folder: str, first_lsn: int) -> str:
    """Return the file name of the segment that begins with ``first_lsn``."""
    return f"{folder}/{first_lsn:020d}.wal"


class LogReader:
    """Reads a log once, from start to end (:meth:`records`), then repairs its end (:meth:`repair`).

    Attributes:
        segments: First LSNs of all segments there are, ascending.
        last: The reader of the last segment, None if there is none; says where and how to go on.
        file: That segment's open file.
        next_lsn: LSN of the next record.
        replayed_bytes: Size of the frames that held records above ``after_lsn``.
        bytes_before: First LSN of a segment → the part of ``replayed_bytes`` that lies in segments before it.
        cut_bytes: Size of the torn end that :meth:`repair` cut off.
    """

    def __init__(self, disk: Disk, folder: str, *, epoch: int, after_lsn: int) -> None:
        self._disk = disk
        self._folder = folder
        self._epoch = epoch
        self._after_lsn = after_lsn
        self._unborn: int | None = None
        self._torn = False
        self._unproven: deque[tuple[int, int]] = deque()  # (last LSN, offset) of what no later frame shows as synced
        self.segments: list[int] = []
        self.last: FrameReader | None = None
        self.file: File | None = None
        self.next_lsn = after_lsn + 1
        self.replayed_bytes = 0
        self.bytes_before: dict[int, int] = {}
        self.cut_bytes = 0

    def records(self) -> Iterator[WalRecord]:
        """Yield the records above ``after_lsn`` in order.

        Raises:
            CorruptionError: Damage other than a torn end, a gap, or an end before ``after_lsn``.
            StorageFailureException: The disk failed, or a higher epoch was found.
        """
        needed = self._find_segments()
        for first_lsn in needed:
            name = segment_name(self._folder, first_lsn)
            self.close()
            self.file = self._disk.open(name)
            reader = self.last = self._reader(self.file, name, first_lsn)
            self.bytes_before[first_lsn] = self.replayed_bytes
            self._unproven = deque([(first_lsn, 0)])  # the segment's header
            for header, body, offset in reader.frames():
                self._refuse_newer_epoch(header.epoch, name)
                while self._unproven and self._unproven[0][0] <= header.durable_lsn:
                    self._unproven.popleft()
                self._unproven.append((header.last_lsn, offset))
                if header.last_lsn <= self._after_lsn:
                    continue
                self.replayed_bytes += reader.offset - offset
                for record in records_of(header, body, name, offset):
                    if record.lsn > self._after_lsn:
                        yield record
            if not reader.ends_in_zeros():
                self._judge_end(reader, name, is_last=first_lsn == needed[-1] and self._unborn is None)
        self._check_end()

    def check_mark(self) -> None:
        """Check that the log, read to its end, reaches as far as it was synced.

        Raises:
            CorruptionError: Its end was cut off or damaged after it had been durable.
        """
        durable = read_mark(self._disk, self._folder)
        if durable is not None and durable >= self.next_lsn:
            self._corrupt(
                segment_name(self._folder, self.segments[-1]) if self.segments else self._folder,
                self.last.offset if self.last is not None else 0,
                f"the log ends at LSN {self.next_lsn - 1}, but records up to {durable} were synced; restore a backup, "
                f"or remove {mark_name(self._folder)} to go on without them",
            )

    def repair(self) -> None:
        """Cut off a torn end, remove an unborn segment, and make what was read durable.

        The last is needed even when nothing is torn: a process that died may have left its last frames, or the name of
        a segment, in the page cache only. They are written again before they are synced: if their sync has failed
        before, the system takes them for clean, and would not write them for another sync.

        Raises:
            StorageFailureException: The disk failed.
        """
        if self._unborn is not None:
            self._disk.remove(segment_name(self._folder, self._unborn))
        if self.last is None or self.file is None:
            return
        if self._torn:
            self.cut_bytes = self.file.size() - self.last.offset
            self.file.truncate(self.last.offset)
        if self._unproven:
            for start in range(self._unproven[0][1], self.last.offset, _REWRITE_BYTES):
                block = self.file.pread(min(_REWRITE_BYTES, self.last.offset - start), start)
                self.file.pwrite(block, start)
        self.file.sync()
        self._disk.sync_directory(self._folder)

    def close(self) -> None:
        """Close the file that is open, if any."""
        file, self.file = self.file, None
        if file is not None:
            file.close()

    def _find_segments(self) -> list[int]:
        """Set ``segments`` and return the first LSNs of those to read."""
        names = (name.rpartition("/")[2] for name in self._disk.list(self._folder))
        self.segments = sorted(int(match[1]) for match in map(_SEGMENT_NAME.fullmatch, names) if match)
        if self.segments and self._is_unborn(self.segments[-1]):
            self._unborn = self.segments.pop()
        start = sum(first_lsn <= self._after_lsn + 1 for first_lsn in self.segments) - 1
        if start < 0 and self.segments:
            self._corrupt(
                segment_name(self._folder, self.segments[0]),
                0,
                f"the log begins at LSN {self.segments[0]}, but records after {self._after_lsn} are needed",
            )
        return self.segments[max(start, 0) :]

    def _is_unborn(self, first_lsn: int) -> bool:
        """Whether a segment's header never became durable. Frames come only after it, so there are none."""
        name = segment_name(self._folder, first_lsn)
        file = self._disk.open(name)
        try:
            return file.size() <= SEGMENT_HEADER_BYTES and not SegmentHeader.is_whole(
                file.pread(SEGMENT_HEADER_BYTES, 0)
            )
        finally:
            file.close()

    def _reader(self, file: File, name: str, first_lsn: int) -> FrameReader:
        """Check a segment's header against its name and the segment before, and return a reader of its frames."""
        header = SegmentHeader.decode(file.pread(SEGMENT_HEADER_BYTES, 0), name)
        if header.first_lsn != first_lsn:
            self._corrupt(name, 0, f"the header says LSN {header.first_lsn}")
        self._refuse_newer_epoch(header.epoch, name)
        before = self.last
        if before is None:
            return FrameReader(file, name, header)
        if before.next_lsn != first_lsn or before.chain != header.chain:
            self._corrupt(name, 0, f"does not follow the segment before it, which ends at LSN {before.next_lsn - 1}")
        return FrameReader(file, name, header, before.epoch)

    def _refuse_newer_epoch(self, epoch: int, name: str) -> None:
        if epoch > self._epoch:
            raise StorageFailureException(
                f"{name} was written under epoch {epoch}, this owner has {self._epoch}: another one took over "
                f"(or the file EPOCH was lost or damaged: then write {epoch} into it)",
                path=name,
                epoch=epoch,
            )

    def _judge_end(self, reader: FrameReader, name: str, *, is_last: bool) -> None:
        """Decide whether a crash can have left what follows the valid frames."""
        proof = reader.proof_of_damage() if is_last else None
        if not is_last or proof is not None:
            witness = f"the frame at {proof}" if is_last else "the segment after it"
            self._corrupt(
                name, reader.offset, f"LSN {reader.next_lsn} is damaged; that it was durable is shown by {witness}"
            )
        self._torn = True

    def _check_end(self) -> None:
        """Check that the log reaches as far as the checkpoint, and an unborn segment, say it did."""
        self.next_lsn = self.last.next_lsn if self.last is not None else self._unborn or 1
        too_short = self.next_lsn <= self._after_lsn
        not_joined = self._unborn is not None and self.next_lsn != self._unborn
        begins_late = self.last is None and self.next_lsn > self._after_lsn + 1
        if too_short or not_joined or begins_late:
            end = f"the log ends at LSN {self.next_lsn - 1}" if self.last is not None else "the log is missing"
            self._corrupt(
                segment_name(self._folder, self.segments[-1]) if self.segments else self._folder,
                self.last.offset if self.last is not None else 0,
                f"{end}, but records up to {max(self._after_lsn, (self._unborn or 1) - 1)} were written",
            )

    def _corrupt(self, name: str, offset: int, what: str) -> None:
        raise CorruptionError(f"{name} at {offset}: {what}", file=name, offset=offset)
