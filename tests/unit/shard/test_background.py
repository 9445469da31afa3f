"""How long the background indexer keeps searches and writes out at a time, and what comes after it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import numpy as np
import pytest
from shard_workbench import Bench, create, put, vector_of

from vecraft_shard.collection import Collection
from vecraft_shard.disk import OsDisk
from vecraft_shard.engine import NoLatch, Shard
from vecraft_shard.indexes.huge_pages import HugePages

SLICE_MS = 5.0
SHORT_MS = 0.5


class Waiting(NoLatch):
    """Whoever asks for exclusive access waits for readers, by a clock of its own."""

    def __init__(self) -> None:
        self.seconds = 0.0
        self.wait_ms = 0.0

    def exclusive(self) -> AbstractContextManager[None]:
        @contextmanager
        def entered() -> Iterator[None]:
            self.seconds += self.wait_ms / 1000
            yield

        return entered()


class Busy(Bench):
    """A shard with rows that wait to be indexed, whose slices' budgets are on record."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.latch = Waiting()
        super().__init__(folder, index_min_rows=10, index_slice_ms=SLICE_MS)
        self.commit(create())
        self.commit(put(*(f"r{i}" for i in range(400))))
        self.pass_time(1000)
        self.budgets: list[float] = []

        def index_slice(collection: Collection, budget_ms: float, stopwatch: Callable[[], float]) -> int:
            self.budgets.append(budget_ms)
            last = min(collection.indexed + 10, collection.versions.rows)
            collection.hnsw.add(np.asarray(collection.column.view(collection.indexed, last)))
            moved, collection.indexed = last - collection.indexed, last
            return moved

        monkeypatch.setattr(Collection, "index_slice", index_slice)

    def _open(self) -> Shard:
        return Shard.open(
            OsDisk(self.folder), self.shard_id, self.now_ms, self.config, self.latch,
            stopwatch=lambda: self.latch.seconds,
        )  # fmt: skip

    def slice_ms(self) -> float:
        """The budget of the next slice."""
        self.shard.maintain(self.now_ms, 0.0)
        return self.budgets[-1]


@pytest.fixture
def busy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Busy]:
    bench = Busy(tmp_path / "shard", monkeypatch)
    yield bench
    bench.shard.abandon()


def test_a_slice_is_short_while_searches_come_in(busy: Busy) -> None:
    assert busy.slice_ms() == SLICE_MS
    busy.search(vector_of("r1"))
    assert busy.slice_ms() == SHORT_MS
    busy.pass_time(900)
    assert busy.slice_ms() == SHORT_MS, "the next one is expected"
    busy.pass_time(200)
    assert busy.slice_ms() == SLICE_MS


def test_a_slice_is_not_shorter_than_the_searches_that_it_waited_for(busy: Busy) -> None:
    busy.latch.wait_ms = 3.0
    busy.search(vector_of("r1"))
    assert busy.slice_ms() == pytest.approx(3.0), "or long searches would leave hardly any time to index"
    busy.latch.wait_ms = 60.0
    assert busy.slice_ms() == SLICE_MS


class Pages(HugePages):
    """Some that are still to be exchanged."""

    def __init__(self, count: int) -> None:
        super().__init__()
        self.left = count

    def exchange_one(self) -> bool:
        self.left = max(0, self.left - 1)
        return self.left > 0


def test_a_graph_gets_huge_pages_once_it_has_all_rows_and_a_few_at_a_time(busy: Busy) -> None:
    [collection] = busy.shard._state.collections.values()
    collection.hnsw.pages = pages = Pages(3)
    while collection.tail_rows:
        assert pages.left == 3, "it grows yet"
        busy.shard.maintain(busy.now_ms, 0.0)
    pages.left = 3
    assert busy.shard.maintain(busy.now_ms, 0.0), "there is no time for more than one"
    assert pages.left == 2
    assert not busy.shard.maintain(busy.now_ms, 1000.0)
    assert pages.left == 0
