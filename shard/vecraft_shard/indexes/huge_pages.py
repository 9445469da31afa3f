"""Huge pages for graphs (Linux): a walk jumps about in all of a graph, and with pages of 4 KB most jumps miss the TLB.

hnswlib takes its memory itself and does not say where it lies. But the kernel tells what a process has mapped
(``/proc/self/maps``), so what has appeared while a graph took room is its room. Two pieces of advice are given for it
(``madvise(2)``), which change how memory is held and never what is in it:

1. at once: use huge pages for what is touched first from now on (``MADV_HUGEPAGE``);
2. later, one page at a time, where nobody waits: exchange the small pages that are there already (``MADV_COLLAPSE``,
   Linux 6.1; about a millisecond for each huge page). A graph that was loaded or moved has small ones.

If another thread maps as much at the same moment, that is advised, too, which does no harm. Room that the allocator had
left over is not recognised, and stays as it is. Where huge pages are off for the whole machine, there is no such
advice, or nobody tells what is mapped, nothing happens.
"""

from __future__ import annotations

import ctypes
import mmap
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Final

WORTH_BYTES: Final = 4 << 20
"""Smaller graphs mostly lie in the processor's caches, and the TLB reaches far enough for them."""

PAGE_BYTES: Final = 2 << 20
"""Of a huge page on x86-64, and on arm64 with pages of 4 KB; elsewhere the advice is refused or rounded."""

_MAPS: Final = Path("/proc/self/maps")
_SWITCH: Final = Path("/sys/kernel/mm/transparent_hugepage/enabled")
_MADV_COLLAPSE: Final = 25  # not in the module mmap of Python 3.11

Span = tuple[int, int]
"""Addresses ``[first, last)``."""


class HugePages:
    """The pages of one graph. For one thread at a time."""

    def __init__(self) -> None:
        self._small: list[Span] = []

    @contextmanager
    def taking_room(self, size: int) -> Iterator[None]:
        """Advise what is mapped while the body runs, which takes about ``size`` bytes for the graph, anew or moved."""
        if size < WORTH_BYTES or not _available():
            yield
            return
        before = _told(_MAPS)
        self._small = []
        yield
        after = _told(_MAPS)
        if not before or not after:
            return
        for first, last in appeared(mapped(before), mapped(after)):
            if last - first >= WORTH_BYTES and _advise(first, last, mmap.MADV_HUGEPAGE):
                begin = -(-first // PAGE_BYTES) * PAGE_BYTES
                self._small += [(at, at + PAGE_BYTES) for at in range(begin, last - PAGE_BYTES + 1, PAGE_BYTES)]
        self._small.reverse()  # the oldest rows first

    def exchange_one(self) -> bool:
        """Exchange the small pages in the place of one huge page. Returns whether there are more such places.

        Only while the graph is where it was when it took room last: not beside :meth:`taking_room`, nor after its end.
        """
        if self._small:
            # Refused where nothing was touched yet, which will be huge anyhow, or where there is no huge page to be
            # had: then small ones do.
            _advise(*self._small.pop(), _MADV_COLLAPSE)
        return bool(self._small)


def mapped(maps: str) -> list[Span]:
    """Return the private, writable memory that belongs to no file, in order of address, from ``/proc/self/maps``."""
    spans = []
    for line in maps.splitlines():
        addresses, access, _, _, inode, *_ = line.split(maxsplit=5)
        if access == "rw-p" and inode == "0":
            first, _, last = addresses.partition("-")
            spans.append((int(first, 16), int(last, 16)))
    return spans


def appeared(before: Sequence[Span], after: Sequence[Span]) -> list[Span]:
    """Return what ``after`` covers and ``before`` did not; both in order of address."""
    spans = []
    for first, last in after:
        for begin, end in before:
            if end <= first:
                continue
            if begin >= last:
                break
            if begin > first:
                spans.append((first, begin))
            first = end
        if first < last:
            spans.append((first, last))
    return spans


@lru_cache(maxsize=1)
def _available() -> bool:
    """Whether there is such advice here, and the machine's administrator has not switched huge pages off."""
    return sys.platform == "linux" and "[never]" not in (_told(_SWITCH) or "[never]")


def _told(path: Path) -> str:
    """What the kernel says there; nothing where it does not, as in a sandbox, or without a file descriptor to spare."""
    try:
        return path.read_text(encoding="ascii", errors="replace")
    except OSError:
        return ""


@lru_cache(maxsize=1)
def _libc() -> ctypes.CDLL:
    libc = ctypes.CDLL(None)
    libc.madvise.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
    return libc


def _advise(first: int, last: int, advice: int) -> bool:
    """Give one piece of advice; whether it was taken. Lets go of the interpreter's lock meanwhile."""
    return bool(_libc().madvise(first, last - first, advice) == 0)
