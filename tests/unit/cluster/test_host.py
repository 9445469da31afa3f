"""A shard on threads: groups, pauses, failures it recovers from, and an orderly and a sudden end."""

from __future__ import annotations

import hashlib
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from vecraft_cluster.host import ShardHost, port_lookup
from vecraft_data_model.convert import put_of_columns
from vecraft_data_model.errors import (
    ClockSkewError,
    ShardUnavailableError,
    StorageFailureException,
    TimeoutException,
    VecraftError,
)
from vecraft_data_model.hlc import timestamp
from vecraft_data_model.messages import (
    Aborted,
    Batch,
    BatchReply,
    CommitOne,
    Committed,
    Count,
    CountReply,
    CreateCollection,
    Describe,
    DescribeReply,
    Finish,
    Finished,
    Mutation,
    Prepare,
    Prepared,
    Refused,
    Request,
    Resolve,
    Response,
    Search,
    SearchReply,
    Status,
    StatusReply,
    Transaction,
)
from vecraft_data_model.schema import CollectionSchema
from vecraft_shard.collection import Collection
from vecraft_shard.config import ShardConfig
from vecraft_shard.disk import MemoryDisk, OsDisk

SOON = 60.0


class MovableClock:
    """The machine's time, plus what the test lets pass."""

    def __init__(self) -> None:
        self.ahead_s = 0.0

    def now_ms(self) -> int:
        return time.time_ns() // 1_000_000

    def monotonic(self) -> float:
        return time.monotonic() + self.ahead_s


class FailingDisk(OsDisk):
    """A disk whose files stop being written when ``broken`` is set."""

    broken = False

    def open(self, name: str) -> Any:
        file = super().open(name)
        disk, pwrite = self, file.pwrite

        class Failing:
            def __getattr__(self, attribute: str) -> Any:
                return getattr(file, attribute)

            def pwrite(self, data: bytes | memoryview, offset: int) -> None:
                if disk.broken:
                    raise StorageFailureException("the disk is on fire")
                pwrite(data, offset)

        return Failing()


def transaction(name: str, *mutations: Mutation) -> Transaction:
    return Transaction(name, hashlib.sha256(name.encode()).digest(), list(mutations))


def create(host: ShardHost, name: str = "c") -> None:
    schema, collection_id = CollectionSchema(name=name, dim=4), hashlib.md5(name.encode()).hexdigest()
    assert isinstance(
        one(host, CommitOne(transaction(f"make-{name}", CreateCollection(schema, collection_id)))), Committed
    )


def write(name: str, ids: list[str]) -> CommitOne:
    return CommitOne(transaction(name, put_of_columns("c", ids, np.ones((len(ids), 4), np.float32))))


def one(host: ShardHost, request: Request, timeout: float = SOON, clock: int = 0) -> Response:
    return host.execute(Batch([request], clock), timeout).responses[0]


def count(host: ShardHost) -> int:
    reply = one(host, Count(collection="c"))
    assert isinstance(reply, CountReply), reply
    return reply.count


def figure(host: ShardHost, name: str) -> float:
    reply = one(host, Status())
    assert isinstance(reply, StatusReply)
    return reply.figures[name]


@contextmanager
def opened(disk: Any, **options: Any) -> Iterator[ShardHost]:
    host = ShardHost(disk, 0, **options)
    try:
        yield host
    finally:
        host.close()


def eventually(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + SOON
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.005)


def test_writes_that_queue_up_share_a_group_and_reads_go_on(tmp_path: Path) -> None:
    with opened(OsDisk(tmp_path)) as host:
        create(host)
        groups, syncs = figure(host, "write_batches_total"), figure(host, "wal_syncs_total")
        replies: list[Response] = []
        threads = [
            threading.Thread(target=lambda i=i: replies.append(one(host, write(f"t{i}", [f"r{i}"])))) for i in range(12)
        ]
        with host.paused():
            for thread in threads:
                thread.start()
            eventually(lambda: len(host._queue._waiting) == 12)
            assert count(host) == 0
        for thread in threads:
            thread.join(SOON)
        assert all(isinstance(reply, Committed) for reply in replies)
        assert count(host) == 12
        assert figure(host, "write_batches_total") == groups + 1
        assert figure(host, "wal_syncs_total") <= syncs + 3, "one sync for the group, and some for the clock's ceiling"


def test_a_write_that_cannot_wait_says_that_nothing_was_done(tmp_path: Path) -> None:
    with opened(OsDisk(tmp_path)) as host:
        create(host)
        outcome: list[BaseException] = []

        def impatient() -> None:
            try:
                one(host, write("late", ["late"]), timeout=0.05)
            except VecraftError as error:
                outcome.append(error)

        with host.paused():
            thread = threading.Thread(target=impatient)
            thread.start()
            thread.join(SOON)
        assert isinstance(outcome[0], TimeoutException)
        assert "nothing was done" in str(outcome[0])
        assert count(host) == 0


def test_a_pause_waits_for_decisions_that_readers_wait_for(tmp_path: Path) -> None:
    begun, over = threading.Event(), threading.Event()

    def pause(host: ShardHost) -> None:
        with host.paused():
            begun.set()
            over.wait(SOON)

    with opened(OsDisk(tmp_path), config=ShardConfig(resolve_after_ms=600_000)) as host:
        create(host)
        prepare = Prepare(write("both", ["r"]).txn, primary=1, participants=[0, 1])
        prepared = one(host, prepare)
        assert isinstance(prepared, Prepared)
        thread = threading.Thread(target=pause, args=(host,))
        thread.start()
        try:
            assert not begun.wait(0.2), "the pause began while a transaction was undecided"
            assert isinstance(one(host, Finish("both", prepared.prepare_ts)), Finished)
            assert begun.wait(SOON)
            assert count(host) == 1, "the reader was held by the pause"
        finally:
            over.set()
            thread.join(SOON)


def test_a_pause_does_not_wait_for_ever_for_a_decision(tmp_path: Path) -> None:
    with opened(OsDisk(tmp_path), config=ShardConfig(resolve_after_ms=600_000)) as host:
        create(host)
        one(host, Prepare(write("stuck", ["r"]).txn, primary=1, participants=[0, 1]))
        with host.paused():
            pass
        assert isinstance(one(host, Finish("stuck", 0)), Finished)


def test_only_the_sender_with_the_wrong_clock_is_refused(tmp_path: Path) -> None:
    with opened(OsDisk(tmp_path)) as host:
        create(host)
        future = timestamp(time.time_ns() // 1_000_000 + 60_000)
        replies: dict[str, Response] = {}

        def send(name: str, clock: int) -> None:
            replies[name] = one(host, write(name, [name]), clock=clock)

        threads = [threading.Thread(target=send, args=pair) for pair in (("good", 0), ("bad", future), ("fine", 0))]
        with host.paused():
            for thread in threads:
                thread.start()
            eventually(lambda: len(host._queue._waiting) == 3)
        for thread in threads:
            thread.join(SOON)
        refused = replies["bad"]
        assert isinstance(refused, Refused)
        assert isinstance(refused.error, ClockSkewError)
        assert isinstance(replies["good"], Committed)
        assert isinstance(replies["fine"], Committed)


def test_maintenance_indexes_what_was_written(tmp_path: Path) -> None:
    with opened(OsDisk(tmp_path)) as host:
        create(host)
        one(host, write("many", [f"r{i}" for i in range(1500)]))

        def indexed() -> bool:
            reply = one(host, Describe(collection="c"))
            return isinstance(reply, DescribeReply) and reply.tail_rows == 0

        eventually(indexed)


def test_a_sudden_end_loses_nothing_that_was_answered(tmp_path: Path) -> None:
    host = ShardHost(OsDisk(tmp_path), 0)
    create(host)
    for i in range(20):
        one(host, write(f"t{i}", [f"r{i}"]))
    host.kill()
    with pytest.raises(ShardUnavailableError, match="closed"):
        count(host)
    with opened(OsDisk(tmp_path)) as again:
        assert count(again) == 20
        assert isinstance(one(again, write("t3", ["r3"])), Committed), "the outcome is known: a retry is answered"
        assert count(again) == 20


def test_closing_waits_for_what_is_under_way_and_refuses_what_comes_later(tmp_path: Path) -> None:
    host = ShardHost(OsDisk(tmp_path), 0)
    create(host)
    host.close()
    host.close()
    for request in (Count(collection="c"), write("late", ["late"])):
        with pytest.raises(ShardUnavailableError, match="shard 0 is closed"):
            one(host, request)
    with pytest.raises(ShardUnavailableError):
        host.maintain_once()


def test_a_failed_disk_stops_writes_and_recovery_starts_from_the_files(tmp_path: Path) -> None:
    disk, clock = FailingDisk(tmp_path), MovableClock()
    with opened(disk, clock=clock, maintenance=False) as host:
        create(host)
        one(host, write("before", ["before"]))
        disk.broken = True
        failed = one(host, write("lost", ["lost"]))
        assert isinstance(failed, Refused)
        assert isinstance(failed.error, StorageFailureException)
        with pytest.raises(StorageFailureException, match="on fire"):
            one(host, write("more", ["more"]))
        disk.broken = False
        clock.ahead_s += 2
        assert count(host) == 1
        assert isinstance(one(host, write("after", ["after"])), Committed)
        assert count(host) == 2


def test_an_interrupt_in_the_middle_of_a_write_is_recovered_from(tmp_path: Path, monkeypatch: Any) -> None:
    clock = MovableClock()
    with opened(OsDisk(tmp_path), clock=clock, maintenance=False) as host:
        create(host)
        one(host, write("before", ["before"]))
        broken = host.shard
        execute = broken.execute

        def interrupted(*arguments: Any) -> list[Response]:
            execute(*arguments)
            raise KeyboardInterrupt

        monkeypatch.setattr(broken, "execute", interrupted)
        with pytest.raises(KeyboardInterrupt):
            one(host, write("half", ["half"]))
        clock.ahead_s += 2
        assert count(host) == 2, "it was in the log"
        assert host.shard is not broken
        assert isinstance(one(host, write("after", ["after"])), Committed)


def test_memory_has_nothing_to_recover_from_and_says_so(monkeypatch: Any) -> None:
    clock = MovableClock()
    with opened(MemoryDisk(), clock=clock, maintenance=False) as host:
        create(host)

        def interrupted(*arguments: Any) -> list[Response]:
            raise KeyboardInterrupt

        monkeypatch.setattr(host.shard, "execute", interrupted)
        with pytest.raises(KeyboardInterrupt):
            one(host, write("half", ["half"]))
        clock.ahead_s += 2
        with pytest.raises(StorageFailureException, match="in memory"):
            count(host)


@pytest.mark.parametrize("told", [True, False])
def test_shards_finish_a_transaction_whose_router_died(tmp_path: Path, told: bool) -> None:
    """Two shards prepared, then nobody came back: the participant asks the primary, which aborts."""
    hosts: dict[int, ShardHost] = {}
    config = ShardConfig(resolve_after_ms=50)
    for shard in (0, 1):
        hosts[shard] = ShardHost(OsDisk(tmp_path / str(shard)), shard, config, port_lookup(hosts))
    try:
        for host in hosts.values():
            create(host)
        for shard, host in hosts.items():
            part = transaction("orphan", put_of_columns("c", [f"r{shard}"], np.ones((1, 4), np.float32)))
            assert isinstance(one(host, Prepare(part, primary=0, participants=[0, 1])), Prepared)
        if told:
            eventually(lambda: isinstance(one(hosts[0], Resolve("orphan")), Aborted))
        eventually(lambda: all(figure(host, "prepared_transactions") == 0 for host in hosts.values()))
        assert [count(host) for host in hosts.values()] == [0, 0]
    finally:
        for host in hosts.values():
            host.close()


def test_a_peer_that_is_not_there_is_named() -> None:
    with pytest.raises(ShardUnavailableError, match="shard 7"):
        port_lookup({})(7)


def test_the_reply_carries_the_shards_clock(tmp_path: Path) -> None:
    with opened(OsDisk(tmp_path), maintenance=False) as host:
        create(host)
        reply = host.execute(Batch([write("a", ["a"])]), SOON)
        assert isinstance(reply, BatchReply)
        committed = reply.responses[0]
        assert isinstance(committed, Committed)
        assert reply.clock >= committed.commit_ts


def test_indexing_keeps_only_searches_of_the_same_collection_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    indexing, go_on = threading.Event(), threading.Event()
    index_slice = Collection.index_slice

    def held_up(collection: Collection, budget_ms: float, stopwatch: Callable[[], float]) -> int:
        indexing.set()
        assert go_on.wait(SOON)
        return index_slice(collection, budget_ms, stopwatch)

    def search(name: str) -> list[str]:
        reply = one(host, Search(collection=name, queries=np.ones((1, 4), np.float32)))
        assert isinstance(reply, SearchReply), reply
        return list(reply.hits[0].ids)

    with opened(MemoryDisk(), config=ShardConfig(index_min_rows=1), maintenance=False) as host:
        create(host, "c")
        create(host, "other")
        one(host, CommitOne(transaction("there", put_of_columns("other", ["o"], np.ones((1, 4), np.float32)))))
        one(host, write("here", ["a"]))
        monkeypatch.setattr(Collection, "index_slice", held_up)
        answers: list[list[str]] = []
        indexer = threading.Thread(target=host.maintain_once, daemon=True)
        searcher = threading.Thread(target=lambda: answers.append(search("c")), daemon=True)
        indexer.start()
        try:
            assert indexing.wait(SOON)
            assert search("other") == ["o"]
            assert one(host, write("more", ["b"])) is not None and count(host) == 2, "nor does a write wait"
            searcher.start()
            searcher.join(0.2)
            assert searcher.is_alive() and not answers
        finally:
            go_on.set()
            indexer.join(SOON)
            searcher.join(SOON)
        assert sorted(answers[0]) == ["a", "b"], "each once: from the graph, or from the tail"


def test_searches_beside_indexing_find_each_row_once() -> None:
    rng = np.random.default_rng(5)
    vectors = rng.normal(size=(3000, 4)).astype(np.float32)
    with opened(MemoryDisk(), config=ShardConfig(index_min_rows=1)) as host:
        create(host)
        one(host, CommitOne(transaction("all", put_of_columns("c", [f"r{i}" for i in range(3000)], vectors))))
        tails = []
        for turn in range(10_000):
            query = vectors[turn % 3000 : turn % 3000 + 1]
            reply = one(host, Search(collection="c", queries=query))
            assert isinstance(reply, SearchReply), reply
            found = list(reply.hits[0].ids)
            assert found[0] == f"r{turn % 3000}" and len(set(found)) == 10, found
            described = one(host, Describe(collection="c"))
            assert isinstance(described, DescribeReply), described
            tails.append(described.tail_rows)
            if not tails[-1]:
                break
        assert 0 < tails[len(tails) // 2] < 3000, "they were beside it"
