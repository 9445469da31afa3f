"""The store files: rows and payloads come back unchanged, through growth, crashes and other threads."""

from __future__ import annotations

import threading
from typing import Any

import numpy as np
import pytest

from vecraft_data_model.errors import (
    CorruptionError,
    InvalidDataException,
    StorageFailureException,
    VectorDimensionMismatchException,
)
from vecraft_data_model.ports import Disk
from vecraft_shard.disk import MemoryDisk
from vecraft_shard.store import HEADER_BYTES, PayloadLog, VectorColumn


def vectors(first: int, count: int, dim: int) -> np.ndarray[Any, np.dtype[np.float32]]:
    return (np.arange(first * dim, (first + count) * dim, dtype=np.float32) % 1021).reshape(count, dim)


# ------------------------------------------------------------------------------------------------ vectors


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_rows_come_back(any_disk: Disk, dtype: type[np.floating[Any]]) -> None:
    column = VectorColumn(any_disk, "c/vectors", 5, dtype)
    assert column.rows == 0 and column.bytes == HEADER_BYTES and column.view(0, 0).shape == (0, 5)
    column.append(0, vectors(0, 10, 5))
    column.append(10, vectors(10, 3, 5)[:, ::-1])
    column.append(13, vectors(0, 0, 5))
    assert column.rows == 13 and column.bytes == HEADER_BYTES + 13 * 5 * np.dtype(dtype).itemsize
    expected = np.concatenate([vectors(0, 10, 5), vectors(10, 3, 5)[:, ::-1]]).astype(dtype)
    assert np.array_equal(column.view(0, 13), expected) and column.view(4, 7).dtype == np.dtype(dtype)
    assert np.array_equal(column.take(np.array([12, 0, 0, 7])), expected[[12, 0, 0, 7]])
    assert column.take([]).shape == (0, 5)
    assert [bytes(row) for row in column.stored([12, 0, 0, 7])] == [expected[row].tobytes() for row in (12, 0, 0, 7)]
    assert column.stored([]) == []
    column.sync()
    column.close()
    column = VectorColumn(any_disk, "c/vectors", 5, dtype)
    assert column.rows == 13, "closing gives back the room ahead"
    column.truncate(13)
    assert np.array_equal(column.view(0, 13), expected)
    assert any_disk.open("c/vectors").size() == column.bytes


def test_views_cannot_be_written_and_stay_valid_through_growth_and_close(any_disk: Disk) -> None:
    column = VectorColumn(any_disk, "v", 128)
    column.append(0, vectors(0, 100, 128))
    view = column.view(20, 90)
    with pytest.raises(ValueError, match="read-only"):
        view[0, 0] = 1
    for first in range(100, 20_000, 1990):
        column.append(first, vectors(first, 1990, 128))
    newer = column.view(0, column.rows)
    column.close()
    assert np.array_equal(view, vectors(20, 70, 128)) and np.array_equal(newer, vectors(0, len(newer), 128))


def test_the_file_grows_in_steps_so_that_maps_are_renewed_rarely() -> None:
    disk = MemoryDisk()
    column = VectorColumn(disk, "v", 100)
    maps = set()
    for first in range(0, 30_000, 10):
        column.append(first, vectors(first, 10, 100))
        maps.add(disk.open("v").size())
    assert len(maps) < 20
    assert disk.open("v").size() < 1.3 * column.bytes + (1 << 20)


def test_a_view_is_not_a_copy() -> None:
    column = VectorColumn(MemoryDisk(), "v", 4)
    column.append(0, vectors(0, 10, 4))
    assert np.shares_memory(column.view(0, 5), column.view(4, 10))


@pytest.mark.parametrize(("lo", "hi"), [(-1, 2), (0, 11), (5, 4), (11, 11)])
def test_rows_that_do_not_exist_cannot_be_viewed(lo: int, hi: int) -> None:
    column = VectorColumn(MemoryDisk(), "v", 4)
    column.append(0, vectors(0, 10, 4))
    with pytest.raises(IndexError):
        column.view(lo, hi)
    for row in (-1, 10):
        with pytest.raises(IndexError):
            column.take([0, row])
        with pytest.raises(IndexError):
            column.stored([0, row])


def test_what_does_not_fit_is_refused_and_leaves_no_trace() -> None:
    column = VectorColumn(MemoryDisk(), "v", 4)
    column.append(0, vectors(0, 10, 4))
    for wrong in (vectors(0, 1, 3), vectors(0, 1, 5), vectors(0, 1, 4)[0]):
        with pytest.raises(VectorDimensionMismatchException):
            column.append(10, wrong)
    for first in (-1, 11):
        with pytest.raises(InvalidDataException, match="follow"):
            column.append(first, vectors(0, 1, 4))
    for dim, dtype in ((0, np.float32), (4, np.float64), (4, np.int32)):
        with pytest.raises(InvalidDataException):
            VectorColumn(MemoryDisk(), "v", dim, dtype)
    assert column.rows == 10


def test_recovery_goes_back_to_the_checkpoint_and_on_from_there(any_disk: Disk) -> None:
    column = VectorColumn(any_disk, "v", 4)
    column.append(0, vectors(0, 100, 4))
    column = VectorColumn(any_disk, "v", 4)  # the process died: nothing was closed
    assert column.rows >= 100
    column.truncate(60)
    assert column.rows == 60
    with pytest.raises(IndexError):
        column.view(59, 61)
    column.append(60, vectors(200, 5, 4))
    assert np.array_equal(column.view(58, 65), np.concatenate([vectors(58, 2, 4), vectors(200, 5, 4)]))
    column.truncate(0)
    assert column.rows == 0
    size = any_disk.open("v").size()
    with pytest.raises(CorruptionError, match=f"v at {size}"):
        column.truncate(size)


# ------------------------------------------------------------------------------------------------ headers


def test_a_file_of_another_shape_is_refused(any_disk: Disk) -> None:
    column = VectorColumn(any_disk, "v", 4)
    column.append(0, vectors(0, 1, 4))
    with pytest.raises(CorruptionError, match=r"dimension 4, 4 bytes per item; expected .* dimension 8"):
        VectorColumn(any_disk, "v", 8)
    with pytest.raises(CorruptionError, match=r"expected .* 2 bytes per item"):
        VectorColumn(any_disk, "v", 4, np.float16)
    VectorColumn(any_disk, "empty", 4).close()
    with pytest.raises(CorruptionError, match="dimension 4"):
        VectorColumn(any_disk, "empty", 8)
    with pytest.raises(CorruptionError, match=r"VCRFTVEC.*expected.*VCRFTPAY"):
        PayloadLog(any_disk, "v")


@pytest.mark.parametrize("position", range(HEADER_BYTES))
def test_a_damaged_header_is_refused_and_left_alone(position: int) -> None:
    disk = MemoryDisk()
    VectorColumn(disk, "v", 4).append(0, vectors(0, 1, 4))
    file = disk.open("v")
    file.pwrite(bytes([file.pread(1, position)[0] ^ 0x10]), position)
    before = file.pread(file.size(), 0)
    with pytest.raises(CorruptionError) as caught:
        VectorColumn(disk, "v", 4)
    assert caught.value.details == {"file": "v", "offset": 0} and file.pread(file.size(), 0) == before


@pytest.mark.parametrize("left", [0, 1, 63])
def test_a_file_whose_making_was_cut_short_is_made_again(left: int) -> None:
    disk = MemoryDisk()
    VectorColumn(disk, "v", 4)
    disk.open("v").truncate(left)
    column = VectorColumn(disk, "v", 4)
    assert column.rows == 0
    column.append(0, vectors(0, 1, 4))


# ------------------------------------------------------------------------------------------------ payloads


def test_payloads_come_back(any_disk: Disk) -> None:
    log = PayloadLog(any_disk, "p")
    assert log.end == HEADER_BYTES
    offsets, sizes = log.append([b"one", b"", b"three"])
    assert offsets.dtype == np.int64 and sizes.dtype == np.int32
    assert offsets.tolist() == [64, 67, 67] and sizes.tolist() == [3, 0, 5]
    more, more_sizes = log.append([bytes([n]) * 50_000 for n in range(60)])
    nothing, _ = log.append([])
    assert nothing.shape == (0,) and log.end == 72 + 60 * 50_000
    assert [log.read(int(o), int(s)) for o, s in zip(offsets, sizes, strict=True)] == [b"one", b"", b"three"]
    many = log.read_many(more.tolist(), more_sizes.tolist())
    assert many == [bytes([n]) * 50_000 for n in range(60)] and type(many[0]) is bytes
    log.sync()
    log.close()
    log = PayloadLog(any_disk, "p")
    assert log.end == 72 + 60 * 50_000
    log.truncate(67)
    assert log.read(64, 3) == b"one" and log.append([b"2"])[0].tolist() == [67]


@pytest.mark.parametrize(("offset", "size"), [(0, 5), (63, 2), (64, 9), (72, 1), (70, -1), (10**12, 1)])
def test_a_payload_outside_the_log_is_corruption(offset: int, size: int) -> None:
    log = PayloadLog(MemoryDisk(), "p")
    log.append([b"12345678"])
    with pytest.raises(CorruptionError, match=f"p at {offset}"):
        log.read(offset, size)


def test_a_payload_log_shorter_than_its_checkpoint_is_corruption() -> None:
    log = PayloadLog(MemoryDisk(), "p")
    log.truncate(0)
    assert log.end == HEADER_BYTES
    with pytest.raises(CorruptionError, match="p at 64"):
        log.truncate(65)


# ------------------------------------------------------------------------------------------------ threads and crashes


def test_readers_beside_one_writer_see_whole_rows(any_disk: Disk) -> None:
    column, log = VectorColumn(any_disk, "v", 64), PayloadLog(any_disk, "p")
    places: list[tuple[int, int, int]] = []
    faults: list[str] = []
    done = threading.Event()

    def read() -> None:
        rng = np.random.default_rng(0)
        while not done.is_set():
            rows = column.rows
            if rows and not np.array_equal(column.view(rows - 1, rows), vectors(rows - 1, 1, 64)):
                faults.append(f"row {rows - 1}")
            if rows:
                chosen = rng.integers(0, rows, 5)
                if not np.array_equal(column.take(chosen)[:, 0], chosen * 64 % 1021):
                    faults.append(f"rows {chosen}")
            if places:
                offset, size, number = places[-1]
                if log.read(offset, size) != number.to_bytes(4, "little") * 300:
                    faults.append(f"payload {number}")

    threads = [threading.Thread(target=read) for _ in range(2)]
    for thread in threads:
        thread.start()
    try:
        for first in range(0, 30_000, 50):
            column.append(first, vectors(first, 50, 64))
            offsets, sizes = log.append([(first + n).to_bytes(4, "little") * 300 for n in range(5)])
            places += [(int(o), int(s), first + n) for n, (o, s) in enumerate(zip(offsets, sizes, strict=True))]
    finally:
        done.set()
        for thread in threads:
            thread.join()
    assert faults == [] and len(places) == 3000


def test_synced_rows_survive_a_power_failure(faulty_disk: Any) -> None:
    column, log = VectorColumn(faulty_disk, "v", 8), PayloadLog(faulty_disk, "p")
    column.append(0, vectors(0, 50, 8))
    log.append([b"x" * 100, b"y"])
    column.sync()
    log.sync()
    end = log.end
    column.append(50, vectors(50, 500, 8))
    log.append([b"z" * 5000])
    for seed in range(30):
        disk = faulty_disk.lose_power(seed)
        column, log = VectorColumn(disk, "v", 8), PayloadLog(disk, "p")
        column.truncate(50)
        log.truncate(end)
        assert np.array_equal(column.view(0, 50), vectors(0, 50, 8))
        assert log.read(64, 101) == b"x" * 100 + b"y"


@pytest.mark.parametrize("fail_at", range(1, 9))
def test_a_crash_while_the_files_are_made_leaves_them_usable(fail_at: int, faulty_disk: Any) -> None:
    faulty_disk.fail_at = fail_at
    with pytest.raises(StorageFailureException):
        column = VectorColumn(faulty_disk, "c/v", 8)
        for first in range(5):
            column.append(first, vectors(first, 1, 8))
    for seed in range(20):
        column = VectorColumn(faulty_disk.lose_power(seed), "c/v", 8)
        column.truncate(0)
        column.append(0, vectors(0, 1, 8))


def test_rows_written_while_a_sync_is_under_way_are_synced_by_the_next(faulty_disk: Any) -> None:
    column = VectorColumn(faulty_disk, "v", 8)
    column.append(0, vectors(0, 1, 8))
    file = faulty_disk.files["v"]
    sync = file.sync

    def sync_late() -> None:
        sync()
        column.append(1, vectors(1, 1, 8))  # as a writer in another thread would

    file.sync = sync_late
    column.sync()
    file.sync = sync
    assert file.pending
    column.sync()
    assert not file.pending
    syncs = file.syncs
    column.sync()
    assert file.syncs == syncs


def test_after_a_failed_sync_no_later_one_succeeds(faulty_disk: Any) -> None:
    column = VectorColumn(faulty_disk, "v", 8)
    column.append(0, vectors(0, 1, 8))
    faulty_disk.fail_kind = "sync"
    with pytest.raises(StorageFailureException, match="told to fail"):
        column.sync()
    faulty_disk.fail_kind = None
    with pytest.raises(StorageFailureException, match="failed before"):
        column.sync()


def test_a_failed_write_publishes_nothing(faulty_disk: Any) -> None:
    column, log = VectorColumn(faulty_disk, "v", 8), PayloadLog(faulty_disk, "p")
    column.append(0, vectors(0, 1, 8))
    log.append([b"x"])
    faulty_disk.fail_kind = "write"
    with pytest.raises(StorageFailureException):
        column.append(1, vectors(1, 1, 8))
    with pytest.raises(StorageFailureException):
        log.append([b"y"])
    faulty_disk.fail_kind = None
    assert column.rows == 1 and log.end == 65
    column.append(1, vectors(1, 1, 8))
    assert log.append([b"y"])[0].tolist() == [65]
