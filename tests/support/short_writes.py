"""Writes that are cut short for real: fewer bytes are written than were asked for, and the caller is told so.

Run as ``python -m tests.support.short_writes FOLDER WAY COUNT``; lives as in :mod:`tests.support.fault_child`, whose
folders and results these are, too. ``WAY`` is one of::

    goes-on     call ``n`` of ``os.pwrite`` writes a part; the next one writes the rest
    ENOSPC      likewise, but the next one finds the disk full
    EIO         likewise, but the next one fails
    limit       the kernel cuts every write, of SQLite and hnswlib too, where a file reaches the longest it may be
                (``RLIMIT_FSIZE``), and fails the next; after some writes of the life the limit is lifted
"""

from __future__ import annotations

import errno
import os
import random
import resource
import sys
from pathlib import Path
from typing import Any

from tests.support.fault_child import TERM, Life, live_all

THEN = {"goes-on": 0, "ENOSPC": errno.ENOSPC, "EIO": errno.EIO}
LIMITS_PER_TERM = 4
_pwrite = os.pwrite


class ShortWrite:
    """One call of ``os.pwrite`` writes only a part, and says so.

    Args:
        then: The error that the next call fails with; 0: none.
    """

    def __init__(self, then: int) -> None:
        self._then = then
        self._left = 0
        self._failing = False
        self._happened = False

    def begin(self, number: int, life: Life) -> None:
        """Put this in the place of ``os.pwrite``."""
        self._left = number
        os.pwrite = self

    def happened(self) -> bool:
        """Whether it has come to that call."""
        return self._happened

    def __call__(self, fd: int, data: Any, offset: int) -> int:
        if self._failing:
            self._failing = False
            raise OSError(self._then, os.strerror(self._then))
        self._left -= 1
        if self._left:
            return _pwrite(fd, data, offset)
        whole = bytes(data)
        part = random.Random(offset).choice((1, len(whole) // 2, len(whole) - 1))
        self._happened = True
        self._failing = self._then != 0
        return _pwrite(fd, whole[: max(part, 1)], offset)


class FileSizeLimit:
    """No file may become longer than it is, or little longer, for some writes of the life."""

    def __init__(self) -> None:
        self._happened = False

    def begin(self, number: int, life: Life) -> None:
        """Write below the limit: such a life need not be able to read, let alone to write, until it is lifted."""
        if life.base is None or number > LIMITS_PER_TERM:
            return
        self._happened = True
        chances = random.Random(f"{sorted(life.base.items())} {number}")
        lengths = [path.stat().st_size for path in life.folder.rglob("*") if path.is_file()]
        soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (chances.choice(lengths) + chances.randrange(1, 5000), hard))
        try:
            for each in range(-chances.randint(2, TERM), 0):
                life.write(each)
                life.look(must=False)
                if chances.random() < 0.5:
                    life.maintain(checkpoint=True)
            life.end(orderly=chances.random() < 0.5)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))

    def happened(self) -> bool:
        """Whether there was a limit."""
        return self._happened


def main(folder: Path, way: str, count: int) -> None:
    """Live."""
    if way == "limit":
        live_all(folder, count, FileSizeLimit)
    else:
        live_all(folder, count, lambda: ShortWrite(THEN[way]))


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]))
