"""Which memory is a graph's, what is advised for it, and that its contents stay."""

from __future__ import annotations

import mmap
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

from vecraft_shard.indexes import huge_pages
from vecraft_shard.indexes.hnsw import HnswIndex
from vecraft_shard.indexes.huge_pages import PAGE_BYTES, HugePages, appeared, mapped

SWITCH = Path("/sys/kernel/mm/transparent_hugepage/enabled")
needs_huge_pages = pytest.mark.skipif(
    sys.platform != "linux" or not SWITCH.exists() or "[never]" in SWITCH.read_text(encoding="ascii"),
    reason="there are no huge pages here",
)

MAPS = """\
00400000-00401000 r-xp 00000000 fe:00 4242                               /usr/bin/python3
01000000-01200000 rw-p 00000000 00:00 0                                  [heap]
7f0000000000-7f0000400000 rw-p 00000000 00:00 0
7f0000500000-7f0000600000 rw-s 00000000 00:00 0
7f0000600000-7f0000700000 rw-p 00000000 fe:00 77                         /data/a file with blanks
7f0000800000-7f0000900000 r--p 00000000 00:00 0
"""


def test_memory_of_no_file_that_can_be_written_is_what_an_allocator_hands_out() -> None:
    assert mapped(MAPS) == [(0x01000000, 0x01200000), (0x7F0000000000, 0x7F0000400000)]


@pytest.mark.parametrize(
    ("before", "after", "expected"),
    [
        ([], [(10, 20)], [(10, 20)]),
        ([(10, 20)], [(10, 20)], []),
        ([(10, 20)], [], []),
        ([(10, 20)], [(10, 30)], [(20, 30)]),  # grown, or the kernel has put two neighbours together
        ([(10, 20)], [(5, 30)], [(5, 10), (20, 30)]),
        ([(10, 20), (30, 40)], [(10, 40)], [(20, 30)]),
        ([(10, 40)], [(10, 20), (30, 40)], []),  # split
        ([(10, 20)], [(30, 40), (50, 60)], [(30, 40), (50, 60)]),  # moved
    ],
)
def test_what_appeared(
    before: list[tuple[int, int]], after: list[tuple[int, int]], expected: list[tuple[int, int]]
) -> None:
    assert appeared(before, after) == expected


def small_pages_of(pages: HugePages) -> int:
    return len(pages._small)


@needs_huge_pages
def test_what_a_graph_takes_is_advised_and_exchanged() -> None:
    pages, taken = HugePages(), 8 * PAGE_BYTES
    with pages.taking_room(taken):
        room = mmap.mmap(-1, taken, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    contents = np.frombuffer(room, np.uint8)
    first = contents.ctypes.data
    flags = _flags_at(first)
    assert "hg" in flags.split(), "the kernel was not told to use huge pages"
    room.madvise(mmap.MADV_NOHUGEPAGE)  # so that what is written now lies on small pages
    room[:] = bytes(range(256)) * (taken // 256)
    room.madvise(mmap.MADV_HUGEPAGE)
    places = small_pages_of(pages)
    assert places >= 7
    for left in reversed(range(places)):
        assert pages.exchange_one() == (left > 0)
    assert not pages.exchange_one()
    assert room[:] == bytes(range(256)) * (taken // 256)


def _flags_at(address: int) -> str:
    """The kernel's flags of the mapping that holds an address."""
    inside = False
    for line in Path("/proc/self/smaps").read_text(encoding="ascii").splitlines():
        head = line.split()[0]
        if "-" in head and not head.endswith(":"):
            first, _, last = head.partition("-")
            inside = int(first, 16) <= address < int(last, 16)
        elif inside and line.startswith("VmFlags:"):
            return line
    raise AssertionError(f"nothing is mapped at {address:x}")


class RecordedPages(HugePages):
    """Remembers how much room it was told of."""

    def __init__(self) -> None:
        super().__init__()
        self.sizes: list[int] = []

    @contextmanager
    def taking_room(self, size: int) -> Iterator[None]:
        self.sizes.append(size)
        with super().taking_room(size):
            yield


def test_a_graph_says_when_it_takes_room_and_answers_the_same_on_other_pages(tmp_path: Path) -> None:
    vectors = np.random.default_rng(3).normal(size=(6000, 256)).astype(np.float32)
    graph = HnswIndex(256, "l2", M=8, ef_construction=20)
    graph.pages = grown = RecordedPages()
    for first in range(0, len(vectors), 1000):
        graph.add(vectors[first : first + 1000])
    assert grown.sizes == [(256 * 4 + 8 * 8) * rows for rows in (1024, 2000, 3000, 4500, 6750)]

    loaded = HnswIndex(256, "l2", M=8, ef_construction=20)
    loaded.pages = at_once = RecordedPages()
    checksum = graph.save(tmp_path / "graph")
    loaded.load(tmp_path / "graph", checksum, len(vectors), lambda first, last: vectors[first:last])
    assert at_once.sizes == [(256 * 4 + 8 * 8) * len(vectors)]

    before = graph.search(vectors[:50], 10, 40)
    for other in (graph, loaded):
        while other.pages.exchange_one():
            pass
        after = other.search(vectors[:50], 10, 40)
        assert np.array_equal(before[0], after[0])
        assert np.array_equal(before[1], after[1])


def test_small_graphs_and_machines_without_huge_pages_are_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    read = []
    monkeypatch.setattr(huge_pages, "mapped", lambda maps: read.append(maps) or [])
    pages = HugePages()
    with pages.taking_room(huge_pages.WORTH_BYTES - 1):
        pass
    monkeypatch.setattr(huge_pages, "_available", lambda: False)
    with pages.taking_room(1 << 30):
        pass
    assert read == []
    assert not pages.exchange_one()


def test_the_administrator_s_switch_counts(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    switch = tmp_path / "enabled"
    monkeypatch.setattr(huge_pages, "_SWITCH", switch)
    available = huge_pages._available.__wrapped__
    assert not available()
    switch.write_text("always madvise [never]\n", encoding="ascii")
    assert not available()
    switch.write_text("always [madvise] never\n", encoding="ascii")
    assert available() == (sys.platform == "linux")


def test_a_kernel_that_tells_nothing_leaves_graphs_as_they_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As where ``/proc`` is missing or may not be read, or all file descriptors are in use: a directory is no file."""
    vectors = np.random.default_rng(4).normal(size=(4200, 256)).astype(np.float32)
    graph = HnswIndex(256, "l2", M=8, ef_construction=10)
    monkeypatch.setattr(huge_pages, "_MAPS", tmp_path)
    monkeypatch.setattr(huge_pages, "_available", lambda: True)
    graph.add(vectors)
    checksum = graph.save(tmp_path / "graph")
    graph.load(tmp_path / "graph", checksum, len(vectors), lambda first, last: vectors[first:last])
    assert graph.count == len(vectors) and not graph.pages.exchange_one()


@pytest.mark.parametrize(
    ("switch", "expected"), [(None, False), ("always madvise [never]\n", False), ("always [madvise] never\n", True)]
)
def test_advice_is_given_where_the_machine_takes_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, switch: str | None, expected: bool
) -> None:
    file = tmp_path / "enabled"
    file.mkdir() if switch is None else file.write_text(switch)
    monkeypatch.setattr(huge_pages, "_SWITCH", file)
    available = huge_pages._available.__wrapped__  # without what it remembers
    assert available() == (expected and sys.platform == "linux")
