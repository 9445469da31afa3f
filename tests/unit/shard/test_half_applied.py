"""A transaction that the log holds, and that was not applied to its end: no checkpoint may take that for all of it."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from shard_workbench import Bench, create, put

from vecraft_cluster.latch import ReadWriteLatch
from vecraft_data_model.errors import StorageFailureException
from vecraft_data_model.messages import Checkpoint, CommitOne, Refused
from vecraft_shard.collection import Collection
from vecraft_shard.disk import OsDisk
from vecraft_shard.engine import Shard


class FailingPuts:
    """Lets puts of record "b" fail as a store file does, after doing something."""

    def __init__(self, error: BaseException) -> None:
        self.error = error
        self.first = lambda: None
        self.right = Collection.put

    def __call__(
        self, collection: Collection, ids: Sequence[str], vectors: Any, payloads: Sequence[bytes], ts: int
    ) -> None:
        if "b" in ids:
            self.first()
            raise self.error
        self.right(collection, ids, vectors, payloads, ts)

    def patch(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(Collection, "put", lambda *given: self(*given))


def records(bench: Bench) -> list[str]:
    (collection,) = bench.shard._state.collections.values()
    return sorted(collection.versions.newest)


def test_a_checkpoint_after_it_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bench = Bench(tmp_path)
    bench.ask(CommitOne(bench.txn(create())))
    with monkeypatch.context() as patched:
        FailingPuts(StorageFailureException("the disk failed")).patch(patched)
        answers = bench.batch(CommitOne(bench.txn(put("a"), put("b"))), Checkpoint())
    for answer in answers:
        assert isinstance(answer, Refused) and isinstance(answer.error, StorageFailureException)
    bench.crash()
    assert records(bench) == ["a", "b"], "the log has all of it"


@pytest.mark.parametrize("error", [StorageFailureException("the disk failed"), KeyboardInterrupt()])
def test_a_checkpoint_that_waits_for_its_turn_meanwhile_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException
) -> None:
    """It has passed every check of whether the shard works, and gets its turn as soon as the writer has failed."""
    bench = Bench(tmp_path)
    bench.shard.abandon()
    bench.shard = Shard.open(
        OsDisk(tmp_path), 0, bench.now_ms, bench.config, ReadWriteLatch(), stopwatch=time.perf_counter
    )
    bench.ask(CommitOne(bench.txn(create())))
    refused: list[StorageFailureException] = []

    def make_checkpoint() -> None:
        try:
            bench.shard.checkpoint(bench.now_ms)
        except StorageFailureException as failure:
            refused.append(failure)

    other = threading.Thread(target=make_checkpoint)
    failing = FailingPuts(error)
    failing.first = other.start
    with monkeypatch.context() as patched:
        failing.patch(patched)
        try:
            bench.ask(CommitOne(bench.txn(put("a"), put("b"))))
        except KeyboardInterrupt:
            assert error.__class__ is KeyboardInterrupt
        other.join()
    assert "not applied" in refused[0].message
    bench.crash()
    assert records(bench) == ["a", "b"], "the log has all of it"
