"""The write-ahead log: what was synced comes back whole and in order, and damage is never taken for a crash."""

from __future__ import annotations

import errno
import struct
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from crc32c import crc32c

from vecraft_data_model.errors import (
    CorruptionError,
    InvalidDataException,
    StorageFailureException,
    StorageFullError,
)
from vecraft_data_model.ports import Disk
from vecraft_shard.disk import MemoryDisk, OsDisk
from vecraft_shard.wal import Wal
from vecraft_shard.wal_format import FRAME_HEADER_BYTES, SEGMENT_HEADER_BYTES, SegmentHeader, encode_frame

Entry = tuple[int, int, int, bytes]  # LSN, epoch, type, payload


def recover(disk: Disk, *, epoch: int = 1, after_lsn: int = 0, **options: Any) -> tuple[Wal, list[Entry]]:
    wal = Wal.open(disk, epoch=epoch, after_lsn=after_lsn, **options)
    return wal, [(record.lsn, record.epoch, record.type, bytes(record.payload)) for record in wal.replay()]


def write(wal: Wal, *payloads: bytes) -> None:
    wal.append([(7, [payload]) for payload in payloads])
    wal.sync()


def payloads(entries: list[Entry]) -> list[bytes]:
    return [payload for _, _, _, payload in entries]


def first_segment(disk: Disk) -> str:
    return disk.list("wal")[0]


# ------------------------------------------------------------------------------------------------ round trips


def test_records_come_back_as_they_were_given(any_disk: Disk) -> None:
    matrix = np.arange(80_000, dtype=np.float32).reshape(100, 800)  # 320 kB: a piece that is not joined
    wal, found = recover(any_disk, epoch=3)
    assert found == [] and wal.next_lsn == 1
    assert wal.append([(1, [b"a", b"", b"bc"]), (255, []), (0, [matrix.data, b"tail", matrix[:, :4].tobytes()])]) == 3
    assert wal.append([]) == 3
    assert wal.append([(9, [memoryview(b"x" * 300_000), memoryview(b"y" * 300_000)])]) == 4
    assert wal.durable_lsn == 0
    wal.sync()
    assert wal.durable_lsn == 4
    wal.close()
    wal, found = recover(any_disk, epoch=4)
    large = matrix.tobytes() + b"tail" + matrix[:, :4].tobytes()
    assert found == [(1, 3, 1, b"abc"), (2, 3, 255, b""), (3, 3, 0, large), (4, 3, 9, b"x" * 300_000 + b"y" * 300_000)]
    assert wal.next_lsn == 5 and wal.cut_bytes == 0
    write(wal, b"more")
    wal.close()
    assert recover(any_disk, epoch=4)[1][4:] == [(5, 4, 7, b"more")]


def test_payloads_can_be_read_as_arrays_in_place() -> None:
    disk = MemoryDisk()
    wal, _ = recover(disk)
    wal.append([(1, [b"odd"]), (2, [np.arange(10, dtype=np.float64).data])])
    wal = Wal.open(disk, epoch=1)
    views = [record.payload for record in wal.replay()]
    array = np.frombuffer(views[1], dtype=np.float64)
    assert array.tolist() == list(range(10)) and array.flags.aligned and not array.flags.writeable


def test_replay_starts_after_the_checkpoint_even_inside_a_frame() -> None:
    disk = MemoryDisk()
    wal, _ = recover(disk)
    write(wal, b"1", b"2", b"3")
    write(wal, b"4")
    for after_lsn, expected in [(0, [b"1", b"2", b"3", b"4"]), (2, [b"3", b"4"]), (3, [b"4"]), (4, [])]:
        assert payloads(recover(disk, after_lsn=after_lsn)[1]) == expected


def test_small_frames_go_into_zeros_laid_ahead_and_large_ones_extend_the_file() -> None:
    disk = MemoryDisk()
    wal, _ = recover(disk)
    file = disk.open(first_segment(disk))
    write(wal, b"x" * 2000)
    ahead = file.size()
    for _ in range(20):
        write(wal, b"x" * 2000)
    assert file.size() == ahead > 21 * 2000
    write(wal, b"y" * 1_000_000)
    assert (
        file.size() == SEGMENT_HEADER_BYTES + 21 * (2000 + FRAME_HEADER_BYTES + 8) + 1_000_000 + FRAME_HEADER_BYTES + 8
    )
    assert len(recover(disk)[1]) == 22


def test_replay_does_not_hold_the_log_in_memory(tmp_path: Path) -> None:
    disk = OsDisk(tmp_path)
    wal, _ = recover(disk, segment_bytes=4 << 20)
    for number in range(64):
        wal.append([(number, [bytes(256 << 10)])])
    wal.close()
    wal = Wal.open(disk, epoch=1, segment_bytes=4 << 20)
    tracemalloc.start()
    types = [record.type for record in wal.replay()]
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert types == list(range(64)) and peak < 4 << 20
    wal.close()


# ------------------------------------------------------------------------------------------------ torn ends and damage


def small_log() -> tuple[MemoryDisk, list[int]]:
    """A log of five synced frames of 1, 2, 3, 4 and 5 records, and where each frame ends."""
    disk = MemoryDisk()
    wal, _ = recover(disk, zero_ahead=0)
    ends = []
    for count in range(1, 6):
        write(wal, *(bytes([count]) * (3 * count) for _ in range(count)))
        ends.append(disk.open(first_segment(disk)).size())
    return disk, ends


def image(disk: Disk) -> bytes:
    file = disk.open(first_segment(disk))
    return file.pread(file.size(), 0)


def disk_of(data: bytes, name: str = "wal/00000000000000000001.wal") -> MemoryDisk:
    disk = MemoryDisk()
    disk.open(name).pwrite(data, 0)
    return disk


def test_cut_at_any_byte_the_whole_frames_before_it_survive() -> None:
    disk, ends = small_log()
    data = image(disk)
    everything = recover(disk_of(data))[1]
    for size in range(len(data) + 1):
        disk = disk_of(data[:size])
        wal, found = recover(disk, epoch=2)
        frames = sum(end <= size for end in ends)
        assert found == everything[: frames * (frames + 1) // 2], size
        write(wal, b"after")
        wal, again = recover(disk, epoch=2)
        assert again == [*found, (len(found) + 1, 2, 7, b"after")], size
        assert wal.cut_bytes == 0


def test_a_flipped_bit_anywhere_is_found() -> None:
    disk, ends = small_log()
    data = image(disk)
    everything = recover(disk_of(data))[1]
    for position in range(len(data)):
        flipped = bytearray(data)
        flipped[position] ^= 1 << position % 8
        disk = disk_of(bytes(flipped))
        if position >= ends[-2]:  # the last frame: nothing shows that it was ever whole
            wal, found = recover(disk)
            assert found == everything[:10] and wal.cut_bytes == ends[-1] - ends[-2], position
            continue
        with pytest.raises(CorruptionError) as caught:
            recover(disk)
        start = max(
            [0 if position < SEGMENT_HEADER_BYTES else SEGMENT_HEADER_BYTES, *(e for e in ends if e <= position)]
        )
        assert caught.value.details == {"file": "wal/00000000000000000001.wal", "offset": start}, position
        assert image(disk) == flipped, "damage must be left as it was found"


def test_a_lost_frame_before_a_frame_that_was_not_synced_either_is_a_crash() -> None:
    """Two frames under one sync: a power failure may keep the second without the first."""
    disk = MemoryDisk()
    wal, _ = recover(disk, zero_ahead=0)
    write(wal, b"kept")
    start = disk.open(first_segment(disk)).size()
    wal.append([(1, [b"lost"])])
    wal.append([(1, [b"left over"])])
    disk.open(first_segment(disk)).pwrite(bytes(FRAME_HEADER_BYTES), start)
    before = image(disk)
    wal, found = recover(disk)
    assert payloads(found) == [b"kept"] and wal.cut_bytes == len(before) - start

    disk = disk_of(before)  # the same, but a later frame says that they had been synced
    wal, _ = recover(disk_of(before[:start]), zero_ahead=0)
    wal.append([(1, [b"lost"])])
    wal.append([(1, [b"left over"])])
    write(wal)
    wal.append([(1, [b"witness"])])
    whole = bytearray(image(wal._disk))
    whole[start : start + FRAME_HEADER_BYTES] = bytes(FRAME_HEADER_BYTES)
    with pytest.raises(CorruptionError, match=f"at {start}.*durable"):
        recover(disk_of(bytes(whole)))


def test_damage_to_what_an_earlier_process_wrote_is_not_taken_for_a_crash() -> None:
    disk = MemoryDisk()
    wal, _ = recover(disk, zero_ahead=0)
    write(wal, b"1")
    start = disk.open(first_segment(disk)).size()
    write(wal, b"2")
    wal, _ = recover(disk, epoch=2, zero_ahead=0)
    wal.append([(1, [b"3, not synced yet"])])
    disk.open(first_segment(disk)).pwrite(b"\xff", start + FRAME_HEADER_BYTES)
    with pytest.raises(CorruptionError, match=f"at {start}: LSN 2 is damaged"):
        recover(disk, epoch=3)


def test_a_frame_that_followed_another_one_is_damage() -> None:
    one, other = MemoryDisk(), MemoryDisk()
    for disk, text in ((one, b"one"), (other, b"two")):
        wal, _ = recover(disk, zero_ahead=0)
        write(wal, text)
        write(wal, b"same")
    start = len(image(one)) - FRAME_HEADER_BYTES - 16
    one.open(first_segment(one)).pwrite(image(other)[start:], start)
    with pytest.raises(CorruptionError, match=f"at {start}: the frame of LSN 2"):
        recover(one)


def test_a_frame_inside_a_payload_proves_nothing() -> None:
    disk = MemoryDisk()
    wal, _ = recover(disk, zero_ahead=0, salt=12345)
    write(wal, b"kept")
    start = disk.open(first_segment(disk)).size()
    guess = SegmentHeader(first_lsn=1, epoch=1, salt=0, chain=0).seed
    chunks, _, _ = encode_frame([(1, [b"forged"])], first_lsn=99, durable_lsn=98, epoch=1, chain=guess, seed=guess)
    write(wal, b"".join(chunks))
    disk.open(first_segment(disk)).pwrite(b"\xff", start)
    disk.remove("wal.durable")  # as after a power failure: the mark would say that the frame had been synced
    assert payloads(recover(disk)[1]) == [b"kept"]


def test_a_frame_of_an_older_epoch_is_damage() -> None:
    disk = MemoryDisk()
    wal, _ = recover(disk, epoch=5)
    write(wal, b"new owner")
    wal._epoch = 4  # an owner that does not know it was replaced
    write(wal, b"old owner")
    with pytest.raises(CorruptionError, match="epoch 4 after epoch 5"):
        recover(disk, epoch=6)


def test_an_owner_with_a_lower_epoch_than_the_log_stops() -> None:
    disk = MemoryDisk()
    wal, _ = recover(disk, epoch=5)
    write(wal, b"x")
    with pytest.raises(StorageFailureException, match="epoch 5"):
        recover(disk, epoch=4)


def test_another_format_version_is_named() -> None:
    header = bytearray(SegmentHeader(first_lsn=1, epoch=1, salt=0, chain=0).encode())
    struct.pack_into("<I", header, 8, 3)
    struct.pack_into("<I", header, 60, crc32c(bytes(header[:60])))
    for frames in (b"frames", b""):  # a segment that has none yet is no reason to take it for one that was never made
        disk = disk_of(bytes(header) + frames)
        with pytest.raises(CorruptionError, match="format version 3, this build reads 1 and 2"):
            recover(disk)
        assert image(disk) == bytes(header) + frames


# ------------------------------------------------------------------------------------------------ segments


def segmented() -> MemoryDisk:
    """Segments beginning with LSN 1, 3, 5 and 7; the last holds 7 and 8."""
    disk = MemoryDisk()
    wal, _ = recover(disk)
    for number in range(1, 9):
        write(wal, str(number).encode())
        if number in (2, 4, 6):
            wal.rotate()
    return disk


def test_a_full_segment_is_followed_by_another(any_disk: Disk) -> None:
    wal, _ = recover(any_disk, segment_bytes=1000)
    for number in range(20):
        write(wal, bytes([number]) * 300)
    names = any_disk.list("wal")
    assert names[:3] == [f"wal/{lsn:020d}.wal" for lsn in (1, 4, 7)]
    assert all(any_disk.open(name).size() < 1500 for name in names[:-1])
    wal.close()
    assert [payload[0] for payload in payloads(recover(any_disk, segment_bytes=1000)[1])] == list(range(20))


def test_rotating_an_empty_segment_does_nothing() -> None:
    disk = segmented()
    wal, _ = recover(disk)
    wal.rotate()
    wal.rotate()
    assert len(disk.list("wal")) == 5


def test_trim_removes_whole_segments_only_and_counts_what_is_left() -> None:
    disk = segmented()
    wal, found = recover(disk)
    frame = FRAME_HEADER_BYTES + 16
    assert len(found) == 8 and wal.size_bytes == 8 * frame
    wal.trim(3)
    assert [int(name[4:24]) for name in disk.list("wal")] == [3, 5, 7] and wal.size_bytes == 6 * frame
    wal.trim(6)
    assert [int(name[4:24]) for name in disk.list("wal")] == [7] and wal.size_bytes == 2 * frame
    wal.trim(8)
    assert [int(name[4:24]) for name in disk.list("wal")] == [7] and wal.size_bytes == 0
    write(wal, b"9")
    assert wal.size_bytes == frame
    with pytest.raises(InvalidDataException):
        wal.trim(10)
    wal, found = recover(disk, after_lsn=8)
    assert payloads(found) == [b"9"] and wal.size_bytes == frame


def test_a_log_that_begins_too_late_is_refused() -> None:
    disk = segmented()
    wal, _ = recover(disk)
    wal.trim(4)
    assert len(recover(disk, after_lsn=4)[1]) == 4
    with pytest.raises(CorruptionError, match="begins at LSN 5"):
        recover(disk, after_lsn=3)


def test_a_missing_segment_is_refused_unless_a_checkpoint_covers_it() -> None:
    disk = segmented()
    disk.remove("wal/00000000000000000003.wal")
    with pytest.raises(CorruptionError, match=r"0005.wal at 0.*ends at LSN 2"):
        recover(disk)
    assert payloads(recover(disk, after_lsn=4)[1]) == [b"5", b"6", b"7", b"8"]


def test_a_log_that_ends_before_the_checkpoint_is_refused() -> None:
    disk = segmented()
    with pytest.raises(CorruptionError, match="ends at LSN 8, but records up to 9"):
        recover(disk, after_lsn=9)
    with pytest.raises(CorruptionError, match="missing"):
        recover(MemoryDisk(), after_lsn=1)


def test_a_segment_of_another_log_does_not_fit() -> None:
    disk, other = segmented(), MemoryDisk()
    wal, _ = recover(other)
    for number in range(1, 9):
        write(wal, f"other {number}".encode())
        if number in (2, 4, 6):
            wal.rotate()
    foreign = other.open("wal/00000000000000000005.wal")
    disk.remove("wal/00000000000000000005.wal")
    disk.open("wal/00000000000000000005.wal").pwrite(foreign.pread(foreign.size(), 0), 0)
    with pytest.raises(CorruptionError, match="does not follow"):
        recover(disk)


def test_a_torn_end_is_damage_when_a_later_segment_was_begun() -> None:
    disk = segmented()
    file = disk.open("wal/00000000000000000005.wal")
    file.truncate(file.size() - 1)
    with pytest.raises(CorruptionError, match=r"0005.wal.*the segment after it"):
        recover(disk)


@pytest.mark.parametrize("left", [0, 1, 63])
def test_a_segment_whose_header_never_arrived_is_begun_again(left: int) -> None:
    disk = segmented()
    recover(disk)[0].rotate()
    name = "wal/00000000000000000009.wal"
    disk.open(name).truncate(left)
    wal, found = recover(disk, epoch=2)
    assert len(found) == 8 and not disk.exists(name)
    write(wal, b"9")
    assert payloads(recover(disk, epoch=2)[1])[8:] == [b"9"]


def test_the_segment_before_an_unborn_one_must_be_whole() -> None:
    disk = segmented()
    file = disk.open("wal/00000000000000000007.wal")
    recover(disk)[0].rotate()
    disk.open("wal/00000000000000000009.wal").truncate(0)
    file.truncate(file.size() - FRAME_HEADER_BYTES - 16)
    with pytest.raises(CorruptionError, match="ends at LSN 7, but records up to 8"):
        recover(disk)


def test_a_renamed_segment_is_refused() -> None:
    disk = segmented()
    disk.rename("wal/00000000000000000007.wal", "wal/00000000000000000008.wal")
    with pytest.raises(CorruptionError, match="header says LSN 7"):
        recover(disk, after_lsn=7)


def test_an_unborn_segment_alone_is_the_beginning() -> None:
    disk = disk_of(b"VCRF")
    wal, found = recover(disk)
    assert found == [] and wal.next_lsn == 1
    with pytest.raises(CorruptionError, match="missing"):
        recover(disk_of(b"VCRF", "wal/00000000000000000005.wal"))


# ------------------------------------------------------------------------------------------------ failures


def test_nothing_is_written_before_the_replay_is_exhausted() -> None:
    disk = segmented()
    wal = Wal.open(disk, epoch=1)
    for use in (lambda: wal.append([(1, [b"x"])]), wal.sync, wal.rotate, lambda: wal.trim(0)):
        with pytest.raises(RuntimeError, match="replayed"):
            use()
    assert next(wal.replay()).lsn == 1
    with pytest.raises(RuntimeError):
        wal.append([(1, [b"x"])])
    with pytest.raises(RuntimeError):
        next(wal.replay())


def test_a_record_that_is_not_accepted_leaves_no_trace() -> None:
    disk = MemoryDisk()
    wal, _ = recover(disk)
    before = image(disk)
    with pytest.raises(InvalidDataException, match="type 256"):
        wal.append([(1, [b"fine"]), (256, [b"x"])])
    assert image(disk) == before
    write(wal, b"good")
    assert payloads(recover(disk)[1]) == [b"good"]


@pytest.mark.parametrize(("kind", "why"), [("write", errno.EIO), ("sync", errno.EIO), ("sync", errno.ENOSPC)])
def test_after_a_failure_the_log_is_broken_until_it_is_opened_again(kind: str, why: int, faulty_disk: Any) -> None:
    wal, _ = recover(faulty_disk)
    write(wal, b"safe")
    faulty_disk.fail_kind, faulty_disk.errno = kind, why
    with pytest.raises(StorageFailureException) as caught:
        write(wal, b"failed")
    assert caught.value.details["errno"] == why and not isinstance(caught.value, StorageFullError)
    faulty_disk.fail_kind = None
    for use in (lambda: wal.append([(1, [b"x"])]), lambda: wal.append([]), wal.sync, wal.rotate, lambda: wal.trim(0)):
        with pytest.raises(StorageFailureException, match="stopped after a failed write") as caught:
            use()
        assert caught.value.details["errno"] == why
    wal.close()
    wal, found = recover(faulty_disk.lose_power(1), epoch=2)
    assert payloads(found)[:1] == [b"safe"]
    write(wal, b"again")


def test_a_closed_log_says_so() -> None:
    wal, _ = recover(MemoryDisk())
    wal.close()
    wal.close()
    with pytest.raises(StorageFailureException, match="closed"):
        wal.append([(1, [b"x"])])


def test_sync_without_anything_new_costs_nothing(faulty_disk: Any) -> None:
    wal, _ = recover(faulty_disk)
    write(wal, b"x")
    steps = faulty_disk.steps
    wal.sync()
    assert faulty_disk.steps == steps


def test_what_was_replayed_survives_a_power_failure_though_its_writer_died_before_the_sync(faulty_disk: Any) -> None:
    wal, _ = recover(faulty_disk)
    wal.append([(1, [b"written, not synced"])])
    disk = faulty_disk.kill()
    assert payloads(recover(disk, epoch=2)[1]) == [b"written, not synced"]
    for seed in range(20):
        assert payloads(recover(disk.lose_power(seed), epoch=3)[1]) == [b"written, not synced"]
