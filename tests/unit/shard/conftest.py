"""Disks for the shard's tests: real, in memory, and one that fails and loses power when told to."""

from __future__ import annotations

import errno
import random
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

from vecraft_data_model.errors import StorageFailureException, StorageFullError
from vecraft_data_model.ports import Disk
from vecraft_shard.disk import MemoryDisk, OsDisk

SECTOR = 512


class FaultyFile:
    """A file that knows what of it would survive a power failure: what was synced, and any part of the rest."""

    def __init__(self, disk: FaultyDisk, name: str) -> None:
        self._disk = disk
        self.name = name
        self.data = bytearray()
        self.durable = bytearray()
        self.pending: list[tuple[int, bytes] | int] = []  # (offset, data) of a write, or the length of a truncation
        self.syncs = 0
        self.taken = 0  # room taken from the disk: up to here bytes were written or allocated

    def pwrite(self, data: bytes | memoryview, offset: int) -> None:
        block = bytes(data)
        fits = max(0, self._disk.take(self, offset + len(block)) - offset)
        if fits < len(block):
            if fits:
                self._apply(self.data, (offset, block[:fits]))
                self.pending.append((offset, block[:fits]))
            raise self._disk.full(self.name)
        try:
            self._disk.step("write", self.name)
        except StorageFailureException:
            self._apply(self.data, (offset, block[: len(block) // 2]))
            self.pending.append((offset, block[: len(block) // 2]))
            raise
        self._apply(self.data, (offset, block))
        self.pending.append((offset, block))

    def pread(self, size: int, offset: int) -> bytes:
        return bytes(self.data[offset : offset + size])

    def sync(self) -> None:
        self._disk.step("sync", self.name)
        self.durable = bytearray(self.data)
        self.pending.clear()
        self.syncs += 1

    def truncate(self, size: int) -> None:
        self._disk.step("truncate", self.name)
        self.taken = min(self.taken, size)
        self._apply(self.data, size)
        self.pending.append(size)

    def allocate(self, start: int, stop: int) -> None:
        self._disk.step("allocate", self.name)
        before = self.taken
        if self._disk.take(self, stop) < stop:
            self.taken = before
            raise self._disk.full(self.name)
        if stop > len(self.data):
            self._apply(self.data, stop)
            self.pending.append(stop)

    def size(self) -> int:
        return len(self.data)

    def map(self) -> npt.NDArray[np.uint8]:
        return np.frombuffer(bytes(self.data), dtype=np.uint8)

    def close(self) -> None:
        pass

    def after_power_loss(self, rng: random.Random) -> bytearray:
        """What was synced, and each sector of what was not with some probability."""
        data = bytearray(self.durable)
        keep = rng.choice([0.0, 0.5, 0.9, 1.0])
        for change in self.pending:
            if isinstance(change, int):
                if rng.random() < keep:
                    self._apply(data, change)
                continue
            offset, block = change
            at = 0
            while at < len(block):
                size = min(SECTOR - (offset + at) % SECTOR, len(block) - at)
                if rng.random() < keep:
                    self._apply(data, (offset + at, block[at : at + size]))
                at += size
        return data

    @staticmethod
    def _apply(data: bytearray, change: tuple[int, bytes] | int) -> None:
        if isinstance(change, int):
            data.extend(bytes(max(0, change - len(data))))
            del data[change:]
            return
        offset, block = change
        if block:
            data.extend(bytes(max(0, offset + len(block) - len(data))))
            data[offset : offset + len(block)] = block


class FaultyDisk:
    """A disk in memory with a page cache, whose operations can be made to fail.

    Names, too, survive a power failure only once their directory was synced.
    """

    durable = True

    def __init__(self) -> None:
        self.files: dict[str, FaultyFile] = {}
        self.durable_names: dict[str, FaultyFile] = {}
        self.steps = 0
        self.fail_at: int | None = None
        self.fail_kind: str | None = None
        self.errno = errno.EIO
        self.capacity: int | None = None

    @property
    def used(self) -> int:
        return sum(file.taken for file in self.files.values())

    def take(self, file: FaultyFile, end: int) -> int:
        """Take a file's room up to ``end``, as far as there is any; returns how far it goes now."""
        more = max(0, end - file.taken)
        file.taken += more if self.capacity is None else min(more, max(0, self.capacity - self.used))
        return file.taken

    def full(self, name: str) -> StorageFullError:
        return StorageFullError(f"cannot write to {name}: No space left on device", path=name, errno=errno.ENOSPC)

    def step(self, kind: str, name: str) -> None:
        self.steps += 1
        if kind == self.fail_kind or (self.fail_at is not None and self.steps >= self.fail_at):
            full = self.errno == errno.ENOSPC and not kind.startswith("sync")
            error = StorageFullError if full else StorageFailureException
            raise error(f"cannot {kind} {name}: told to fail", path=name, errno=self.errno)

    def open(self, name: str) -> FaultyFile:
        return self.files.setdefault(name, FaultyFile(self, name))

    def exists(self, name: str) -> bool:
        return name in self.files

    def list(self, folder: str = "") -> Sequence[str]:
        prefix = f"{folder}/" if folder else ""
        return sorted(name for name in self.files if name.startswith(prefix) and "/" not in name[len(prefix) :])

    def remove(self, name: str) -> None:
        self.step("remove", name)
        self.files.pop(name, None)

    def rename(self, old: str, new: str) -> None:
        self.files[new] = self.files.pop(old)

    def sync_directory(self, folder: str = "") -> None:
        self.step("sync directory", folder)
        self.durable_names = dict(self.files)

    def path(self, name: str) -> Path | None:
        return None

    def kill(self) -> FaultyDisk:
        """What the next process finds after ``kill -9``: everything written, synced or not."""
        after = FaultyDisk()
        for name, file in self.files.items():
            copy = after.open(name)
            copy.data, copy.durable, copy.pending = bytearray(file.data), bytearray(file.durable), list(file.pending)
            if name in self.durable_names:
                after.durable_names[name] = copy
        return after

    def lose_power(self, seed: int) -> FaultyDisk:
        """What the next process finds after a power failure."""
        rng = random.Random(seed)
        after = FaultyDisk()
        for name in sorted({*self.files, *self.durable_names}):
            file = self.files.get(name) or self.durable_names[name]
            there, certain = name in self.files, self.durable_names.get(name) is file
            if (there and certain) or rng.random() < 0.5:
                copy = after.open(name)
                copy.data = file.after_power_loss(rng)
                copy.durable = bytearray(copy.data)
                after.durable_names[name] = copy
        return after


@pytest.fixture
def faulty_disk() -> FaultyDisk:
    return FaultyDisk()


@pytest.fixture(scope="session")
def new_faulty_disk() -> Callable[[], FaultyDisk]:
    return FaultyDisk


@pytest.fixture(params=["os", "memory"])
def any_disk(request: pytest.FixtureRequest, tmp_path: Path) -> Disk:
    return OsDisk(tmp_path / "disk") if request.param == "os" else MemoryDisk()
