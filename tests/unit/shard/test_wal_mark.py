"""What damage to the end of a log can be told from a crash, byte by byte, with the mark and without it."""

from __future__ import annotations

import pytest

from vecraft_data_model.errors import CorruptionError
from vecraft_data_model.ports import Disk
from vecraft_shard.disk import MemoryDisk
from vecraft_shard.wal import Wal
from vecraft_shard.wal_format import FRAME_HEADER_BYTES, RECORD_HEADER_BYTES, SEGMENT_HEADER_BYTES
from vecraft_shard.wal_mark import read_mark

SEGMENT = "wal/00000000000000000001.wal"
PAYLOADS = [b"first", b"the second one", b"3"]
ENDS = [SEGMENT_HEADER_BYTES]
for _payload in PAYLOADS:
    ENDS.append(ENDS[-1] + FRAME_HEADER_BYTES + RECORD_HEADER_BYTES + -(-len(_payload) // 8) * 8)
SIZE = ENDS[-1] + 128


def written(disk: Disk, *, synced: int = len(PAYLOADS), mark: bool = True) -> Disk:
    """A log of three frames, of which the first ``synced`` were."""
    wal = Wal.open(disk, epoch=1, zero_ahead=4096)
    assert list(wal.replay()) == []
    for number, payload in enumerate(PAYLOADS):
        wal.append([(7, [payload])])
        if number < synced:
            wal.sync()
    wal.close()
    disk.open(SEGMENT).truncate(SIZE)
    if not mark:
        disk.remove("wal.durable")
    return disk


def recovered(disk: Disk) -> list[bytes]:
    """What the log gives back, twice: recovering must not change it."""
    found = []
    for _ in range(2):
        wal = Wal.open(disk, epoch=2)
        found.append([bytes(record.payload) for record in wal.replay()])
        wal.close()
    assert found[0] == found[1]
    return found[0]


def whole_frames(size: int) -> int:
    """How many frames the first ``size`` bytes hold."""
    return sum(end <= size for end in ENDS[1:])


@pytest.mark.parametrize("mark", [True, False])
def test_a_log_cut_anywhere(mark: bool) -> None:
    for size in range(SIZE):
        disk = written(MemoryDisk(), mark=mark)
        disk.open(SEGMENT).truncate(size)
        if whole_frames(size) < len(PAYLOADS) and mark:
            with pytest.raises(CorruptionError, match=r"at \d+: .* ends at LSN \d, but records up to 3 were synced"):
                recovered(disk)
        else:
            # Without the mark nothing tells a file that was cut from one that was never longer.
            assert recovered(disk) == PAYLOADS[: whole_frames(size)]


@pytest.mark.parametrize("mark", [True, False])
def test_a_bit_flipped_anywhere(mark: bool) -> None:
    for at in range(SIZE):
        disk = written(MemoryDisk(), mark=mark)
        file = disk.open(SEGMENT)
        file.pwrite(bytes([file.pread(1, at)[0] ^ (1 << at % 8)]), at)
        if at >= ENDS[-1]:  # in the zeros laid ahead
            assert recovered(disk) == PAYLOADS
        elif at >= ENDS[-2] and not mark:
            # The one exception: the very last frame looks as if a power failure had cut it short.
            assert recovered(disk) == PAYLOADS[:-1]
        else:
            with pytest.raises(CorruptionError, match=r"at \d+: "):
                recovered(disk)


@pytest.mark.parametrize("synced", range(len(PAYLOADS) + 1))
def test_frames_that_were_not_synced_may_be_torn(synced: int) -> None:
    disk = written(MemoryDisk(), synced=synced)
    assert read_mark(disk, "wal") == synced
    for size in range(ENDS[synced], SIZE):
        disk = written(MemoryDisk(), synced=synced)
        disk.open(SEGMENT).truncate(size)
        assert recovered(disk) == PAYLOADS[: whole_frames(size)]


def test_a_missing_last_segment_is_missed() -> None:
    disk = MemoryDisk()
    wal = Wal.open(disk, epoch=1)
    assert list(wal.replay()) == []
    for payload in PAYLOADS:
        wal.append([(7, [payload])])
        wal.sync()
        wal.rotate()
    wal.append([(7, [b"in the last segment"])])
    wal.sync()
    wal.close()
    disk.remove("wal/00000000000000000004.wal")
    with pytest.raises(CorruptionError, match="ends at LSN 3, but records up to 4 were synced"):
        recovered(disk)


def test_a_log_that_is_gone_is_missed() -> None:
    disk = written(MemoryDisk())
    disk.remove(SEGMENT)
    with pytest.raises(CorruptionError, match=r"remove wal\.durable to go on without them"):
        recovered(disk)


def test_a_mark_that_is_damaged_or_behind_says_nothing() -> None:
    for at in range(32):
        disk = written(MemoryDisk())
        file = disk.open("wal.durable")
        file.pwrite(bytes([file.pread(1, at)[0] ^ 1]), at)
        assert read_mark(disk, "wal") is None
        assert recovered(disk) == PAYLOADS
    for size in range(32):
        disk = written(MemoryDisk())
        disk.open("wal.durable").truncate(size)
        assert recovered(disk) == PAYLOADS
    disk, behind = written(MemoryDisk()), written(MemoryDisk(), synced=1)
    disk.open("wal.durable").pwrite(behind.open("wal.durable").pread(32, 0), 0)
    assert recovered(disk) == PAYLOADS


def test_the_mark_moves_with_every_sync() -> None:
    disk = MemoryDisk()
    wal = Wal.open(disk, epoch=1)
    assert list(wal.replay()) == []
    for number in range(1, 4):
        wal.append([(1, [b"x"])])
        assert read_mark(disk, "wal") == number - 1
        wal.sync()
        assert read_mark(disk, "wal") == number
    wal.append([(1, [b"x"])])
    wal.rotate()
    assert read_mark(disk, "wal") == 4
