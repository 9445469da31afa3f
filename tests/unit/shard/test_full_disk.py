"""A full disk: nothing that was answered is lost, nothing that was refused comes back, and what must go on goes on."""

from __future__ import annotations

import errno
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.support.limited_disk import LimitedDisk
from tests.support.shard_workbench import Bench, create, delete, put, vector_of
from vecraft_data_model.errors import StorageFailureException, StorageFullError
from vecraft_data_model.messages import (
    Aborted,
    AbortTransaction,
    Checkpoint,
    CommitOne,
    Committed,
    Decide,
    Done,
    DropCollection,
    Finish,
    Finished,
    Prepare,
    Prepared,
    Refused,
    Status,
)
from vecraft_shard.ballast import BALLAST, Ballast, damage_of
from vecraft_shard.disk import MemoryDisk, OsDisk
from vecraft_shard.engine import Shard
from vecraft_shard.indexes import hnsw
from vecraft_shard.wal import Wal

# ------------------------------------------------------------------------------------------------------------ the log


def recover(disk: Any, epoch: int = 1) -> tuple[Wal, list[bytes]]:
    wal = Wal.open(disk, epoch=epoch, segment_bytes=1 << 14, zero_ahead=1 << 12, salt=7)
    return wal, [bytes(record.payload) for record in wal.replay()]


@pytest.mark.parametrize("left", [0, 1, 30, 60, 100, 600, 3000, 4200])
def test_a_frame_that_a_full_disk_refused_is_gone_for_good(left: int, new_faulty_disk: Callable[[], Any]) -> None:
    disk = new_faulty_disk()
    wal, _ = recover(disk)
    answered = [b"%04d" % i * 25 for i in range(8)]
    for payload in answered:
        wal.append([(1, [payload])])
        wal.sync()
    disk.capacity = disk.used + left
    refused = 0
    for i in range(100, 200):
        payload = b"%04d" % i * (20 if i % 3 else 700)
        try:
            wal.append([(1, [payload])])
            wal.sync()
        except StorageFullError:
            refused += 1
        else:
            answered.append(payload)
        if i % 10 == 0:
            for seed in range(6):
                assert recover(disk.lose_power(seed), epoch=2)[1] == answered
            assert recover(disk.kill(), epoch=2)[1] == answered
    assert refused > 0
    disk.capacity = None
    wal.append([(1, [b"there is room again"])])
    wal.sync()
    assert recover(disk.lose_power(1), epoch=2)[1] == [*answered, b"there is room again"]


def test_a_segment_that_there_is_no_room_for_leaves_the_log_in_the_one_before(new_faulty_disk: Any) -> None:
    disk = new_faulty_disk()
    wal, _ = recover(disk)
    wal.append([(1, [b"one"])])
    wal.sync()
    disk.capacity = 0
    with pytest.raises(StorageFullError):
        wal.rotate()
    assert len(disk.list("wal")) == 1
    disk.capacity = disk.used + 100
    wal.append([(1, [b"two"])])
    wal.sync()
    for seed in range(20):
        assert recover(disk.lose_power(seed), epoch=2)[1] == [b"one", b"two"]
    disk.capacity = None
    wal.rotate()
    wal.append([(1, [b"three"])])
    wal.sync()
    assert recover(disk.lose_power(0), epoch=2)[1] == [b"one", b"two", b"three"]


def test_a_log_that_cannot_take_back_what_was_refused_is_broken(faulty_disk: Any) -> None:
    wal, _ = recover(faulty_disk)
    wal.append([(1, [b"safe"])])
    wal.sync()
    faulty_disk.capacity, faulty_disk.fail_kind = faulty_disk.used, "sync"
    with pytest.raises(StorageFailureException, match="left in the middle of a write") as caught:
        wal.append([(1, [bytes(9000)])])
    assert not isinstance(caught.value, StorageFullError)
    faulty_disk.capacity = faulty_disk.fail_kind = None
    with pytest.raises(StorageFailureException, match="stopped after a failed write"):
        wal.append([(1, [b"x"])])
    assert recover(faulty_disk.kill(), epoch=2)[1] == [b"safe"]


@pytest.mark.parametrize("step", ["append", "rotate"])
def test_an_interrupt_while_a_log_takes_back_what_was_refused_is_an_interrupt(
    faulty_disk: Any, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    wal, _ = recover(faulty_disk)
    wal.append([(1, [b"safe"])])
    wal.sync()
    faulty_disk.capacity = 0

    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        if step == "append":
            patch.setattr(type(wal._open_file()), "sync", interrupted)
            wal.append([(1, [bytes(9000)])])
        else:
            patch.setattr(type(faulty_disk), "remove", interrupted)
            wal.rotate()
    faulty_disk.capacity = None
    with pytest.raises(StorageFailureException, match="stopped after a failed write"):
        wal.append([(1, [b"x"])])
    assert recover(faulty_disk.kill(), epoch=2)[1] == [b"safe"]


# ---------------------------------------------------------------------------------------------------------- the shard


class FullBench(Bench):
    """A shard on a disk that can be made full."""

    disk: LimitedDisk

    def _open(self) -> Shard:
        capacity = self.disk.capacity if hasattr(self, "disk") else None
        taken = self.disk.taken if hasattr(self, "disk") else {}
        self.disk = LimitedDisk(self.folder, capacity)
        self.disk.taken = taken
        return Shard.open(self.disk, self.shard_id, self.now_ms, self.config, stopwatch=time.perf_counter)

    def tick(self, ms: int = 250) -> None:
        """Let time pass, and the shard work in the background."""
        self.pass_time(ms)
        self.shard.maintain(self.now_ms, 5)

    def fill_up(self) -> int:
        """Write until the disk is full; returns how many writes were let in."""
        self.disk.fill()
        for i in range(5000):
            answer = self.commit(put(f"filler{i % 50}", value=i))
            if isinstance(answer, Refused):
                assert isinstance(answer.error, StorageFullError), answer.error
                if self.read_only:
                    return i
        raise AssertionError("the disk does not become full")

    @property
    def read_only(self) -> bool:
        reply: Any = self.ask(Status())
        return bool(reply.figures["read_only"])


@pytest.fixture
def bench(tmp_path: Path) -> FullBench:
    bench = FullBench(tmp_path, ballast_bytes=1 << 16, checkpoint_interval_s=3600)
    assert isinstance(bench.commit(create()), Committed)
    assert isinstance(bench.commit(put("a", "b", value=1)), Committed)
    assert isinstance(bench.ask(Checkpoint()), Done)
    return bench


def error_of(answer: Any) -> Any:
    assert isinstance(answer, Refused), answer
    return answer.error


def test_writes_are_refused_reads_go_on_and_room_ends_it(bench: FullBench) -> None:
    written = bench.fill_up()
    before = bench.get("a", f"filler{(written - 1) % 50}")
    refused = bench.txn(put("a", value=2))
    for request in (CommitOne(refused), Prepare(bench.txn(put("b", value=2), txn_id="p"), 0, [0, 1])):
        error = error_of(bench.ask(request))
        assert isinstance(error, StorageFullError) and "read-only until there is room" in error.message
    assert isinstance(error_of(bench.commit(delete("a"))), StorageFullError)
    for _ in range(400):  # 100 s of reads, each at a snapshot of its own
        bench.tick()
        assert bench.get("a", snapshot=bench.now_ms << 16) == {"a": {"v": 1}}
        assert bench.search([0.0] * 4, k=1, snapshot=bench.now_ms << 16)
    assert bench.read_only and bench.shard.failed is None
    assert before.items() <= bench.get("a", f"filler{(written - 1) % 50}").items()
    bench.disk.capacity = None
    bench.tick(1000)
    assert not bench.read_only
    assert isinstance(bench.ask(CommitOne(refused)), Committed), "the id was not used up"
    bench.crash()
    assert bench.get("a", "b") == {"a": {"v": 2}, "b": {"v": 1}}


def test_decisions_are_written_when_nothing_else_is(bench: FullBench) -> None:
    for name, primary in (("commit", 0), ("abort", 0), ("told", 1), ("untold", 1)):
        answer = bench.prepare(put(name, value=name), txn_id=name, primary=primary, participants=[0, 1])
        assert isinstance(answer, Prepared)
    ts = answer.prepare_ts + 1
    bench.fill_up()
    assert isinstance(bench.ask(Decide("commit", ts)), Committed)
    assert isinstance(bench.ask(AbortTransaction("abort")), Aborted)
    assert isinstance(bench.ask(Finish("told", ts)), Finished)
    assert isinstance(bench.ask(Finish("untold", 0)), Finished)
    for _ in range(2):
        found = bench.get("commit", "abort", "told", "untold", snapshot=(bench.now_ms + 1) << 16)
        assert found == {"commit": {"v": "commit"}, "told": {"v": "told"}}
        bench.crash()  # the disk is still full


def test_a_decision_in_the_group_that_fills_the_disk_is_kept_and_the_rest_refused(bench: FullBench) -> None:
    answer: Any = bench.prepare(put("p", value=1), txn_id="p", primary=0, participants=[0, 1])
    bench.disk.fill()
    wide = {f"w{i}": CommitOne(bench.txn(put(f"w{i}", value="x" * 200_000))) for i in range(3)}
    narrow = [CommitOne(bench.txn(put("n", value=i))) for i in range(1)]
    answers = bench.batch(*narrow, *wide.values(), Decide("p", answer.prepare_ts))
    assert isinstance(answers[-1], Committed)
    assert all(isinstance(error_of(a), StorageFullError) for a in answers[1:-1])
    found = set(bench.get("p", "n", *wide))
    assert found == {"p", "n"} - ({"n"} if isinstance(answers[0], Refused) else set())
    bench.crash()
    assert set(bench.get("p", "n", *wide)) == found


def test_what_is_too_large_is_refused_by_itself(bench: FullBench) -> None:
    bench.disk.fill(300_000)
    too_large, small = CommitOne(bench.txn(put("large", value="x" * 400_000))), CommitOne(bench.txn(put("small")))
    answers = bench.batch(too_large, small)
    assert isinstance(error_of(answers[0]), StorageFullError) and isinstance(answers[1], Committed)
    assert not bench.read_only
    assert isinstance(error_of(bench.ask(too_large)), StorageFullError)
    assert isinstance(bench.commit(put("another")), Committed)
    bench.disk.capacity = None
    assert isinstance(bench.ask(too_large), Committed)
    bench.crash()
    assert bench.get("large", "small")["large"] == {"v": "x" * 400_000}


def test_the_room_for_a_commit_is_taken_with_the_prepare(bench: FullBench) -> None:
    answer: Any = bench.prepare(
        *(put(f"p{i}", value="x" * 20_000) for i in range(40)), txn_id="p", primary=0, participants=[0, 1]
    )
    bench.fill_up()
    assert isinstance(bench.ask(Decide("p", answer.prepare_ts)), Committed)
    assert bench.get("p39", snapshot=(bench.now_ms + 1) << 16) == {"p39": {"v": "x" * 20_000}}


def test_a_shard_opens_on_a_full_disk_and_starts_above_what_it_served(bench: FullBench) -> None:
    bench.fill_up()
    served = (bench.now_ms + 450) << 16  # ahead of the wall clock, as a session of another node may be
    assert bench.get("a", snapshot=served) == {"a": {"v": 1}}
    for _ in range(3):
        bench.crash()
        assert bench.get("a") == {"a": {"v": 1}}
        assert isinstance(error_of(bench.commit(put("late"))), StorageFullError)
        assert bench.shard.clock_last > served
    bench.disk.capacity = None
    bench.tick(1000)
    committed: Any = bench.commit(put("late"))
    assert committed.commit_ts > served


def test_checkpoints_that_there_is_no_room_for_are_refused_and_harm_nothing(
    bench: FullBench, tmp_path: Path
) -> None:
    locations = bench.shard._state.locations
    (pages,) = locations.connection.execute("PRAGMA page_count").fetchone()
    for i in range(3):
        bench.commit(put(*(f"r{j}" for j in range(1000 * i, 1000 * i + 1000)), value=i))
        locations.connection.execute(f"PRAGMA max_page_count = {pages}")
        answer = bench.ask(Checkpoint())
        assert isinstance(error_of(answer), StorageFullError)
        bench.tick(3_700_000)
        assert bench.shard.failed is None and bench.count() == 1000 * i + 1002
        assert not (tmp_path / "shard.sqlite-wal").stat().st_size, "what was rolled back takes no room"
    locations.connection.execute("PRAGMA max_page_count = 1000000")
    bench.tick(10_000)
    assert isinstance(bench.ask(Checkpoint()), Done)
    assert isinstance(bench.commit(put("late")), Committed)
    bench.crash()
    assert bench.count() == 3003 and set(bench.get("a", "r2999", "late")) == {"a", "r2999", "late"}


def test_a_collection_can_be_dropped_to_make_room(tmp_path: Path) -> None:
    bench = FullBench(tmp_path, ballast_bytes=1 << 16, history_retention_s=0)
    for name in ("c", "d"):
        bench.commit(create(name))
    bench.commit(put(*(f"big{i}" for i in range(100)), value="x" * 5000, collection="d"))
    bench.ask(Checkpoint())
    bench.fill_up()
    assert isinstance(bench.commit(DropCollection("d")), Committed)
    for _ in range(40):
        bench.tick(1000)
    assert not bench.read_only
    assert isinstance(bench.commit(put("late")), Committed)


def test_aborts_of_unknown_ids_cannot_use_up_what_decisions_need(bench: FullBench) -> None:
    answer: Any = bench.prepare(put("p", value=1), txn_id="p", primary=0, participants=[0, 1])
    bench.fill_up()
    answers = [bench.ask(AbortTransaction(f"unknown-{i}")) for i in range(2000)]
    aborted = [isinstance(answer, Aborted) for answer in answers]
    assert aborted[0] and not aborted[-1] and aborted.index(False) == sum(aborted) > 50
    assert isinstance(bench.ask(Decide("p", answer.prepare_ts)), Committed)


def test_a_compaction_that_there_is_no_room_for_is_given_up_and_leaves_nothing(tmp_path: Path) -> None:
    bench = FullBench(tmp_path, history_retention_s=0, compact_min_rows=10, compact_dead_ratio=0.1)
    bench.commit(create())
    for version in range(3):
        bench.commit(put(*(f"r{i}" for i in range(100)), value=[version, "x" * 3000]))
    bench.ask(Checkpoint())
    files = sorted(path.name for path in tmp_path.rglob("*.log"))
    bench.disk.fill(100_000)
    for _ in range(20):
        bench.tick(100)
    assert sorted(path.name for path in tmp_path.rglob("*.log")) == files
    assert not bench.read_only and isinstance(bench.commit(put("r1", value=9)), Committed)
    bench.disk.capacity = None
    for _ in range(20):
        bench.tick(10_000)
    assert sorted(path.name for path in tmp_path.rglob("*.log")) != files
    bench.crash()
    assert len(bench.scan()) == 100 and bench.get("r1") == {"r1": {"v": 9}}


# -------------------------------------------------------------------------------------------------------- the ballast


def test_a_ceiling_survives_any_torn_write_of_the_next(tmp_path: Path) -> None:
    disk = OsDisk(tmp_path)
    ballast = Ballast(disk, 1 << 14)
    assert ballast.ceiling == 0 and ballast.take()
    for ceiling in range(1000, 1010):
        ballast.write_ceiling(ceiling)
        before = (tmp_path / BALLAST).read_bytes()
        Ballast(disk, 1 << 14).write_ceiling(ceiling + 1)
        after = (tmp_path / BALLAST).read_bytes()
        for cut in range(len(before)):
            if before[cut] != after[cut]:
                (tmp_path / BALLAST).write_bytes(after[:cut] + before[cut:])
                assert Ballast(disk, 1 << 14).ceiling in (ceiling, ceiling + 1)
        (tmp_path / BALLAST).write_bytes(before)
        ballast = Ballast(disk, 1 << 14)


def test_the_ballast_takes_its_room_and_gives_it_back(tmp_path: Path) -> None:
    disk = OsDisk(tmp_path)
    ballast = Ballast(disk, 1 << 20)
    assert not ballast.held and ballast.take() and ballast.held
    assert (tmp_path / BALLAST).stat().st_blocks * 512 >= 1 << 20
    ballast.give_back()
    assert not ballast.held and (tmp_path / BALLAST).stat().st_blocks * 512 < 1 << 16
    assert damage_of(disk) is None
    assert ballast.take() and damage_of(disk) is None
    assert ballast.can_double() and (tmp_path / BALLAST).stat().st_size == 12288 + (1 << 20)


def test_any_damage_to_the_ballast_is_found_and_mends_itself(tmp_path: Path) -> None:
    disk = OsDisk(tmp_path)
    ballast = Ballast(disk, 1 << 14)
    ballast.take()
    ballast.write_ceiling(5)
    whole = (tmp_path / BALLAST).read_bytes()
    for at in [*range(40), *range(4090, 4140), 8191, *range(8190, 8230), 12287, 12288, 20000, len(whole) - 1]:
        (tmp_path / BALLAST).write_bytes(whole[:at] + bytes([whole[at] ^ 4]) + whole[at + 1 :])
        assert damage_of(disk) is not None, at
        assert Ballast(disk, 1 << 14).take()
    for size in (0, 1, 31, 4096, 12287, 12289, len(whole) - 1):
        (tmp_path / BALLAST).write_bytes(whole[:size])
        assert damage_of(disk) is not None, size
        assert Ballast(disk, 1 << 14).take() and damage_of(disk) is None
    (tmp_path / BALLAST).unlink()
    assert "missing" in str(damage_of(disk))


def test_a_shard_in_memory_needs_no_ballast() -> None:
    disk = MemoryDisk()
    shard = Shard.open(disk, 0, 1_700_000_000_000, stopwatch=time.perf_counter)
    assert not disk.exists(BALLAST) and shard.failed is None


def test_a_graph_that_finds_no_room_to_be_put_together_is_built_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench = Bench(tmp_path, index_min_rows=1)
    bench.commit(create())
    bench.commit(put(*[f"r{i}" for i in range(100)]))
    bench.ask(Checkpoint(index=True))
    expected = bench.search(vector_of("r7"), k=10, exact=True)

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "no room")

    def indexed() -> int:
        (collection,) = bench.shard._state.collections.values()
        return collection.indexed

    with monkeypatch.context() as patched:
        patched.setattr(hnsw, "unpack", full)
        bench.crash()
    assert indexed() == 0 and bench.search(vector_of("r7"), k=10) == expected
    bench.ask(Checkpoint(index=True))
    bench.crash()
    assert indexed() == 100 and bench.search(vector_of("r7"), k=10) == expected
    bench.shard.close(bench.now_ms)
