"""A disk that forgets what was not synced, tears writes at sectors, fills up, and stops the process at any step.

Names follow ``OsDisk``: a file's name is durable once the file was made or renamed, a removal once its directory was
synced. ``shard.sqlite`` alone lies on a real file system: SQLite's commits are taken as atomic and durable.
"""

from __future__ import annotations

import errno
import random
import re
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from vecraft_data_model.errors import StorageFailureException, StorageFullError
from vecraft_shard.store import HEADER_BYTES

SECTOR = 512
VECTORS = "vectors..f"
LARGE = (VECTORS, "payloads..log", ".wal", "shard.sqlite")
"""Kinds of files, by their names without numbers, that hold most of what there is, and so are damaged most."""
NUMBER_BYTES = 4
EXPONENT_BITS = (4, 5, 6)
"""Of the last byte of a number: those that move a vector far away, or next to zero."""
Bytes = npt.NDArray[np.uint8]


class Crash(BaseException):
    """The process ends here, in the middle of whatever it is doing."""


class Contents:
    """Bytes that grow. Those from ``written`` on are zeros, and cost nothing."""

    __slots__ = ("buffer", "length", "written")

    def __init__(self) -> None:
        self.buffer: Bytes = np.zeros(0, np.uint8)
        self.length = 0
        self.written = 0

    def write(self, offset: int, block: bytes) -> None:
        end = offset + len(block)
        if end > self.length:
            self.resize(end)
        self.written = max(self.written, end)
        self.buffer[offset:end] = np.frombuffer(block, np.uint8)

    def resize(self, length: int) -> None:
        if length < self.length or length > self.buffer.size:
            self.written = min(self.written, length)
            fresh = np.zeros(length if length < self.length else length + length // 4, np.uint8)
            fresh[: self.written] = self.buffer[: self.written]
            self.buffer = fresh
        self.length = length

    def copy(self) -> Contents:
        other = Contents()
        other.resize(self.length)
        other.written = self.written
        other.buffer[: self.written] = self.buffer[: self.written]
        return other


class SimulatedFile:
    """A file as the process sees it, and as it would be after the power failed."""

    def __init__(self, disk: SimulatedDisk, name: str) -> None:
        self._disk = disk
        self.name = name
        self.live = Contents()
        self.durable = Contents()
        self.taken = 0  # bytes that have room on the disk
        self.pending: list[tuple[int, bytes] | int] = []  # (offset, data) of a write, or the length of a truncation

    def pwrite(self, data: bytes | memoryview, offset: int) -> None:
        block = bytes(data)
        try:
            self._disk.step("write", self.name)
            self._disk.take_room(self, offset + len(block))
        except (Crash, StorageFailureException):
            part = block[: self._disk.rng.randint(0, len(block))]
            self.live.write(offset, part)
            self.pending.append((offset, part))
            raise
        self.live.write(offset, block)
        self.pending.append((offset, block))

    def pread(self, size: int, offset: int) -> bytes:
        self._disk.step("read", self.name)
        return self.live.buffer[offset : max(offset, min(offset + size, self.live.length))].tobytes()

    def sync(self) -> None:
        try:
            self._disk.step("sync", self.name)
        except StorageFailureException:
            self.pending.clear()  # the system takes the pages for clean now: no later sync will write them
            raise
        for change in self.pending:
            _apply(self.durable, change)
        self.pending.clear()

    def truncate(self, size: int) -> None:
        self._disk.step("truncate", self.name)
        self.taken = min(self.taken, size)
        self.live.resize(size)
        self.pending.append(size)

    def allocate(self, start: int, stop: int) -> None:
        self._disk.step("allocate", self.name)
        self._disk.take_room(self, stop)
        if stop > self.live.length:
            self.live.resize(stop)
            self.pending.append(stop)

    def size(self) -> int:
        return self.live.length

    def map(self) -> Bytes:
        view = self.live.buffer[: self.live.length]
        view.flags.writeable = False
        return view

    def close(self) -> None:
        pass

    def lose_power(self, rng: random.Random) -> None:
        """Become what the next start finds: what was synced, and some sectors of what was not."""
        data = self.durable
        keep = rng.choice((0.0, 0.5, 0.9, 1.0))
        for change in self.pending:
            if isinstance(change, int):
                if rng.random() < keep:
                    data.resize(change)
                continue
            offset, block = change
            at = 0
            while at < len(block):
                size = min(SECTOR - (offset + at) % SECTOR, len(block) - at)
                if rng.random() < keep:
                    data.write(offset + at, block[at : at + size])
                at += size
        self.live, self.durable = data, data.copy()
        self.pending = []


class SimulatedDisk:
    """The disk of one shard.

    Args:
        folder: Where ``shard.sqlite`` lies.
        rng: Decides what survives.
        on_step: Called before every operation with its kind and file name; it may raise :class:`Crash` or a
            ``StorageFailureException``.
    """

    durable = True

    def __init__(self, folder: Path, rng: random.Random, on_step: Callable[[str, str], None]) -> None:
        self._folder = folder
        self.rng = rng
        self.step = on_step
        self.files: dict[str, SimulatedFile] = {}
        self.capacity: int | None = None
        self._removed: dict[str, SimulatedFile] = {}
        self._damaged = ""

    @property
    def used(self) -> int:
        """Bytes that have room; holes at the end of a file take none."""
        return sum(file.taken for file in self.files.values())

    def take_room(self, file: SimulatedFile, end: int) -> None:
        """Let a file have room up to ``end``. Raises StorageFullError if there is not that much."""
        more = max(0, end - file.taken)
        if self.capacity is not None and self.used + more > self.capacity:
            raise StorageFullError(
                f"cannot write {file.name}: No space left on device", path=file.name, errno=errno.ENOSPC
            )
        file.taken += more

    def open(self, name: str) -> SimulatedFile:
        file = self.files.get(name)
        if file is None:
            self.step("make", name)
            file = self.files[name] = SimulatedFile(self, name)
            self._removed.pop(name, None)
        return file

    def exists(self, name: str) -> bool:
        return name in self.files

    def list(self, folder: str = "") -> Sequence[str]:
        prefix = f"{folder}/" if folder else ""
        return sorted(name for name in self.files if name.startswith(prefix) and "/" not in name[len(prefix) :])

    def remove(self, name: str) -> None:
        self.step("remove", name)
        for found in [key for key in self.files if key == name or key.startswith(f"{name}/")]:
            self._removed[found] = self.files.pop(found)

    def rename(self, old: str, new: str) -> None:
        self.step("rename", old)
        self.files[new] = self.files.pop(old)

    def sync_directory(self, folder: str = "") -> None:
        self.step("sync directory", folder)
        prefix = f"{folder}/" if folder else ""
        self._removed = {name: file for name, file in self._removed.items() if not name.startswith(prefix)}

    def path(self, name: str) -> Path | None:
        return self._folder / name if name == "shard.sqlite" else None

    def flip(self) -> str:
        """Flip one bit of one file, as is found at the next start. Returns what was done."""
        sizes = {name: file.live.length for name, file in self.files.items() if file.live.length}
        real = [path.name for path in self._folder.iterdir() if path.stat().st_size]
        # The kind first: files of the collections are many, and the log is one.
        kinds: dict[str, list[str]] = {}
        for name in sorted([*sizes, *real]):
            kinds.setdefault(re.sub(r"[0-9]+", "", name.rpartition("/")[2]), []).append(name)
        if self._damaged not in kinds:
            # What protects one kind against damage lies in another: only one of them is damaged.
            weights = [3 if kind in LARGE else 1 for kind in sorted(kinds)]
            self._damaged = self.rng.choices(sorted(kinds), weights)[0]
        names = kinds[self._damaged]
        name = self.rng.choices(names, [1 + self.files[name].live.written if name in sizes else 1 for name in names])[0]
        if name in sizes:
            # A file is mostly a hole: what was written counts more.
            file, bit = self.files[name], self.rng.randrange(8)
            anywhere = not file.live.written or self.rng.random() < 0.1
            offset = self.rng.randrange(file.live.length if anywhere else file.live.written)
            numbers = (file.live.written - HEADER_BYTES) // NUMBER_BYTES if self._damaged == VECTORS else 0
            if numbers > 0 and self.rng.random() < 0.8:
                # Small files are mostly header, and most bits of a number hardly change it.
                offset = HEADER_BYTES + NUMBER_BYTES * self.rng.randrange(numbers) + NUMBER_BYTES - 1
                bit = self.rng.choice(EXPONENT_BITS)
            value = bytes([file.live.buffer[offset] ^ 1 << bit])
            file.live.write(offset, value)
            file.durable.write(offset, value)
        else:
            path = self._folder / name
            data = bytearray(path.read_bytes())
            # So are the pages of a small database.
            filled = [place for place, value in enumerate(data) if value]
            offset = self.rng.choice(filled) if self.rng.random() < 0.8 else self.rng.randrange(len(data))
            data[offset] ^= 1 << self.rng.randrange(8)
            path.write_bytes(data)
        return f"a bit of {name} at {offset}"

    def lose_power(self) -> None:
        """Forget what was not synced."""
        for name, file in self._removed.items():
            if name not in self.files and self.rng.random() < 0.5:
                self.files[name] = file
        self._removed.clear()
        for name in sorted(self.files):
            self.files[name].lose_power(self.rng)


def _apply(contents: Contents, change: tuple[int, bytes] | int) -> None:
    if isinstance(change, int):
        contents.resize(change)
    else:
        contents.write(*change)
