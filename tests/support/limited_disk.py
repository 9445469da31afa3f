"""A real directory on a disk that is only so large: what does not fit is refused as the operating system would."""

from __future__ import annotations

import errno
import os
from pathlib import Path

from vecraft_data_model.errors import StorageFullError
from vecraft_shard.disk import OsDisk, OsFile


class LimitedDisk(OsDisk):
    """A directory whose files may take ``capacity`` bytes together; None: any number. SQLite's are not counted.

    Attributes:
        capacity: May be changed at any time.
        taken: Bytes that each file has taken: up to where it was written or allocated.
    """

    def __init__(self, root: Path, capacity: int | None = None) -> None:
        super().__init__(root)
        self.capacity = capacity
        self.taken: dict[str, int] = {}

    @property
    def used(self) -> int:
        """Bytes that are taken."""
        return sum(self.taken.values())

    def fill(self, left: int = 0) -> None:
        """Let nothing be free but ``left`` bytes."""
        self.capacity = self.used + left

    def take(self, name: str, end: int, *, partly: bool) -> int:
        """Take a file's room up to ``end``, or (``partly``) as far as there is any; returns how far it goes now."""
        more = end - self.taken.get(name, 0)
        free = more if self.capacity is None else max(0, self.capacity - self.used)
        if more > free and not partly:
            return self.taken.get(name, 0)
        if more > 0:
            self.taken[name] = self.taken.get(name, 0) + min(more, free)
        return self.taken.get(name, 0)

    def open(self, name: str) -> OsFile:
        file = LimitedFile(self, name)
        self.taken[name] = max(self.taken.get(name, 0), file.size() if name.startswith("wal/") else 0)
        return file

    def remove(self, name: str) -> None:
        super().remove(name)
        for key in [key for key in self.taken if key == name or key.startswith(f"{name}/")]:
            del self.taken[key]

    def rename(self, old: str, new: str) -> None:
        super().rename(old, new)
        self.taken[new] = self.taken.pop(old, 0)


class LimitedFile(OsFile):
    """A file of such a disk."""

    def __init__(self, disk: LimitedDisk, name: str) -> None:
        super().__init__(disk.path(name))
        self._disk = disk
        self._name = name

    def pwrite(self, data: bytes | memoryview, offset: int) -> None:
        size = data.nbytes if isinstance(data, memoryview) else len(data)
        reached = self._disk.take(self._name, offset + size, partly=True)
        fits = max(0, reached - offset)
        if fits < size:
            super().pwrite(bytes(data)[:fits], offset)
            raise self._full("write to")
        super().pwrite(data, offset)

    def allocate(self, start: int, stop: int) -> None:
        if self._disk.take(self._name, stop, partly=False) < stop:
            raise self._full("take room for")
        super().allocate(start, stop)

    def truncate(self, size: int) -> None:
        super().truncate(size)
        self._disk.taken[self._name] = min(size, self._disk.taken.get(self._name, 0))

    def _full(self, action: str) -> StorageFullError:
        reason = os.strerror(errno.ENOSPC)
        return StorageFullError(f"cannot {action} {self._name}: {reason}", path=self._name, errno=errno.ENOSPC)
