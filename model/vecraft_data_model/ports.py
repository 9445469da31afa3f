"""The doors between the rooms: what a lower room needs and an upper room hands in.

Time, disk, peers and locks are ports, so that the same code runs embedded, in a Ray actor and in a simulator.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Protocol

import numpy as np
import numpy.typing as npt

from vecraft_data_model.messages import Batch, BatchReply


class Clock(Protocol):
    """Time, handed in."""

    def now_ms(self) -> int:
        """Milliseconds since the Unix epoch (may jump)."""
        ...

    def monotonic(self) -> float:
        """Seconds from an arbitrary start (never jumps): for deadlines."""
        ...


class ShardPort(Protocol):
    """One shard as its router or a peer shard sees it, when the caller may block."""

    def execute(self, batch: Batch, timeout: float) -> BatchReply:
        """Carry a batch there and bring the reply back.

        Raises:
            ShardUnavailableError: No answer; the batch may have been carried out all the same.
            TimeoutException: Likewise, after ``timeout`` seconds.
            StaleMapError: The shard refused the batch's map epoch.
        """
        ...


class AsyncShardPort(Protocol):
    """The same, awaitable."""

    async def execute(self, batch: Batch, timeout: float) -> BatchReply:
        """As :meth:`ShardPort.execute`."""
        ...


class File(Protocol):
    """An open file. Writing is by position; what is not synced may be lost in a crash."""

    def pwrite(self, data: bytes | memoryview, offset: int) -> None:
        """Write all of ``data`` at ``offset``, extending the file if need be."""
        ...

    def pread(self, size: int, offset: int) -> bytes:
        """Read up to ``size`` bytes (fewer at the end of the file)."""
        ...

    def sync(self) -> None:
        """Make the contents durable (fdatasync)."""
        ...

    def truncate(self, size: int) -> None:
        """Cut the file, or extend it by zeros."""
        ...

    def allocate(self, start: int, stop: int) -> None:
        """Take the room for the bytes ``start … stop`` now; the file may become longer by zeros.

        Raises:
            StorageFullError: There is not that much room.
        """
        ...

    def size(self) -> int:
        """Length in bytes."""
        ...

    def map(self) -> npt.NDArray[np.uint8]:
        """Return a read-only array over the file as long as it is now.

        Later writes below that length show in it; after the file was extended, map again. An array handed out stays
        valid for as long as it is referenced, also after ``close``.
        """
        ...

    def close(self) -> None:
        """Close; what was mapped stays."""
        ...


class Disk(Protocol):
    """One directory. Names are relative, with ``/`` between parts; parents are made when a file is."""

    @property
    def durable(self) -> bool:
        """Whether anything outlives the process."""
        ...

    def open(self, name: str) -> File:
        """Open for reading and writing, made empty if missing."""
        ...

    def exists(self, name: str) -> bool:
        """Whether there is a file of that name."""
        ...

    def list(self, folder: str = "") -> Sequence[str]:
        """File names directly in a folder (full names, sorted); empty if there is no such folder."""
        ...

    def remove(self, name: str) -> None:
        """Remove a file, or a folder with all it holds; nothing happens if it is missing."""
        ...

    def rename(self, old: str, new: str) -> None:
        """Rename a file over another atomically, and sync the directory."""
        ...

    def sync_directory(self, folder: str = "") -> None:
        """Make the names in a folder durable."""
        ...

    def path(self, name: str) -> Path | None:
        """The real path, for libraries that open files themselves; None when there is none (memory)."""
        ...


class Latch(Protocol):
    """Mutual exclusion inside one shard, handed in by whatever runs it on several threads.

    ``writer`` is held by one write batch, or one step of maintenance, at a time; ``shared`` by each read while it looks
    at indexes that must not change under it; ``exclusive`` by whoever changes those, briefly, inside ``writer``.
    """

    def writer(self) -> AbstractContextManager[None]:
        """One writer at a time. Re-entrant."""
        ...

    def shared(self) -> AbstractContextManager[None]:
        """Many readers, no exclusive holder. May be entered again and again, by several threads at once."""
        ...

    def exclusive(self) -> AbstractContextManager[None]:
        """Nobody else."""
        ...

    def another(self) -> Latch:
        """One of the same kind, for something else."""
        ...
