"""One shard from outside: what is written is read, at the right snapshots, also after a crash at any point."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from shard_workbench import Bench, create, delete, put, vector_of

from vecraft_data_model.errors import (
    ClockSkewError,
    CollectionAlreadyExistedException,
    CollectionNotExistedException,
    InvalidDataException,
    NullOrZeroVectorException,
    PreconditionFailedError,
    SnapshotTooOldError,
    StaleMapError,
    VecraftError,
    VectorDimensionMismatchException,
    WriteConflictException,
)
from vecraft_data_model.hlc import timestamp
from vecraft_data_model.messages import (
    AlterCollection,
    CatalogReply,
    Checkpoint,
    CommitOne,
    Committed,
    Count,
    CountReply,
    Describe,
    DescribeReply,
    Done,
    DropAlias,
    DropCollection,
    Get,
    ListCollections,
    PinSnapshot,
    Put,
    Refused,
    ReleaseSnapshot,
    SetAlias,
    SetEf,
    Status,
    StatusReply,
)
from vecraft_shard import background
from vecraft_shard.checkpoint import Checkpointer
from vecraft_shard.disk import OsDisk
from vecraft_shard.engine import Shard


@pytest.fixture
def bench(tmp_path: Path) -> Any:
    bench = Bench(tmp_path / "shard", index_min_rows=10)
    assert isinstance(bench.commit(create()), Committed)
    yield bench
    bench.shard.abandon()


def refusal(response: object) -> VecraftError:
    assert isinstance(response, Refused), response
    return response.error


def commit_ts(response: object) -> int:
    assert isinstance(response, Committed), response
    return response.commit_ts


class TestOneRecord:
    def test_is_there_as_soon_as_it_is_answered(self, bench: Bench) -> None:
        bench.commit(put("a", value=1))
        assert bench.get("a") == {"a": {"v": 1}}
        assert bench.search(vector_of("a"), k=1) == ["a"]
        assert bench.count() == 1
        assert bench.scan() == ["a"]

    def test_is_replaced_by_a_second_write_and_the_first_stays_readable_in_the_past(self, bench: Bench) -> None:
        first = commit_ts(bench.commit(put("a", value=1)))
        bench.commit(put("a", value=2))
        assert bench.get("a") == {"a": {"v": 2}}
        assert bench.get("a", snapshot=first) == {"a": {"v": 1}}
        assert bench.count() == 1

    def test_is_gone_after_its_deletion_and_can_come_back(self, bench: Bench) -> None:
        written = commit_ts(bench.commit(put("a", value=1)))
        deleted = commit_ts(bench.commit(delete("a")))
        assert bench.get("a") == {}
        assert bench.search(vector_of("a")) == []
        bench.commit(put("a", value=3))
        assert bench.get("a", snapshot=written) == {"a": {"v": 1}}
        assert bench.get("a", snapshot=deleted) == {}
        assert bench.get("a") == {"a": {"v": 3}}

    def test_that_never_was_is_passed_over_by_delete(self, bench: Bench) -> None:
        response = bench.commit(delete("nobody"))
        assert isinstance(response, Committed)
        assert response.count == 0

    def test_preimages_are_what_was_replaced(self, bench: Bench) -> None:
        bench.commit(put("a", value=1))
        response = bench.commit(put("a", "b", value=2), want_preimages=True)
        assert isinstance(response, Committed)
        assert response.preimages is not None
        assert response.preimages.ids == ["a"]


class TestBatches:
    def test_requests_of_one_batch_see_each_other_in_order(self, bench: Bench) -> None:
        answers = bench.batch(
            CommitOne(bench.txn(put("a", value=1))),
            CommitOne(bench.txn(put("a", value=2, expect="present"))),
            Get(collection="c", ids=["a"]),
            CommitOne(bench.txn(delete("a"))),
            Count(collection="c"),
        )
        assert [type(answer).__name__ for answer in answers] == [
            "Committed", "Committed", "RowsReply", "Committed", "CountReply",
        ]  # fmt: skip
        assert isinstance(answers[4], CountReply)
        assert answers[4].count == 0

    def test_a_refused_request_leaves_no_trace_and_the_others_are_carried_out(self, bench: Bench) -> None:
        bad = Put("c", ["x"], np.array([[np.nan] * 4], np.float32), put("x").payloads)
        answers = bench.batch(
            CommitOne(bench.txn(put("a"))), CommitOne(bench.txn(bad)), CommitOne(bench.txn(put("b")))
        )
        assert isinstance(refusal(answers[1]), InvalidDataException)
        assert bench.scan() == ["a", "b"]

    def test_a_collection_can_be_created_and_filled_in_one_batch_and_in_one_transaction(self, bench: Bench) -> None:
        bench.batch(CommitOne(bench.txn(create("d"))), CommitOne(bench.txn(put("a", collection="d"))))
        bench.commit(create("e"), put("a", collection="e"))
        assert set(bench.get("a", collection="d")) == set(bench.get("a", collection="e")) == {"a"}

    def test_independent_writes_share_one_log_frame(self, bench: Bench) -> None:
        before = status(bench).figures["wal_syncs_total"]
        bench.batch(*[CommitOne(bench.txn(put(f"r{i}"))) for i in range(20)])
        assert status(bench).figures["wal_syncs_total"] == before + 1


def status(bench: Bench) -> StatusReply:
    reply = bench.ask(Status())
    assert isinstance(reply, StatusReply)
    return reply


class TestConflicts:
    def test_the_first_committer_wins(self, bench: Bench) -> None:
        snapshot = commit_ts(bench.commit(put("a", value=1)))
        bench.commit(put("a", value=2))
        error = refusal(bench.commit(put("a", value=3), snapshot=snapshot))
        assert isinstance(error, WriteConflictException)
        assert "'a'" in str(error)
        assert bench.get("a") == {"a": {"v": 2}}

    def test_a_deletion_conflicts_like_any_write(self, bench: Bench) -> None:
        snapshot = commit_ts(bench.commit(put("a")))
        bench.commit(delete("a"))
        assert isinstance(refusal(bench.commit(put("a"), snapshot=snapshot)), WriteConflictException)

    def test_a_final_refusal_stays_final_for_that_id(self, bench: Bench) -> None:
        snapshot = commit_ts(bench.commit(put("a")))
        bench.commit(put("a"))
        txn = bench.txn(put("a"), snapshot=snapshot)
        bench.ask(CommitOne(txn))
        late = CommitOne(bench.txn(put("a"), txn_id=txn.txn_id))
        assert type(bench.ask(late)).__name__ == "Aborted"
        bench.crash()
        assert type(bench.ask(late)).__name__ == "Aborted"

    def test_expectations(self, bench: Bench) -> None:
        written = commit_ts(bench.commit(put("a", expect="absent")))
        assert isinstance(refusal(bench.commit(put("a", expect="absent"))), PreconditionFailedError)
        assert isinstance(refusal(bench.commit(put("b", expect="present"))), PreconditionFailedError)
        assert isinstance(refusal(bench.commit(put("a", expect=written + 1))), PreconditionFailedError)
        assert isinstance(bench.commit(put("a", expect=written)), Committed)
        assert isinstance(refusal(bench.commit(put("a", expect="maybe"))), InvalidDataException)

    def test_a_retry_with_the_same_id_is_answered_and_not_repeated(self, bench: Bench) -> None:
        txn = bench.txn(put("a", value=1))
        first = commit_ts(bench.ask(CommitOne(txn)))
        bench.commit(put("a", value=2))
        assert commit_ts(bench.ask(CommitOne(txn))) == first
        bench.crash()
        assert commit_ts(bench.ask(CommitOne(txn))) == first
        bench.reopen()
        assert commit_ts(bench.ask(CommitOne(txn))) == first
        assert bench.get("a") == {"a": {"v": 2}}

    def test_the_same_id_with_other_content_is_refused(self, bench: Bench) -> None:
        bench.commit(put("a"), txn_id="mine")
        assert isinstance(refusal(bench.commit(delete("a"), txn_id="mine")), InvalidDataException)


class TestCatalog:
    def test_names(self, bench: Bench) -> None:
        assert isinstance(refusal(bench.commit(create("c"))), CollectionAlreadyExistedException)
        assert isinstance(refusal(bench.commit(DropCollection("nope"))), CollectionNotExistedException)
        assert isinstance(refusal(bench.commit(put("a", collection="nope"))), CollectionNotExistedException)
        assert isinstance(
            refusal(bench.ask(Get(collection="nope", ids=["a"]))), CollectionNotExistedException
        )

    def test_a_dropped_collection_stays_readable_in_the_past(self, bench: Bench) -> None:
        before = commit_ts(bench.commit(put("a", value=7)))
        bench.commit(DropCollection("c"))
        assert isinstance(refusal(bench.ask(Get(collection="c", ids=["a"]))), CollectionNotExistedException)
        assert bench.get("a", snapshot=before) == {"a": {"v": 7}}
        bench.commit(create("c"))
        assert bench.get("a") == {}

    def test_an_alias_switches_and_guards_its_target(self, bench: Bench) -> None:
        bench.commit(create("d"))
        bench.commit(put("old", collection="c"), put("new", collection="d"))
        switched = commit_ts(bench.commit(SetAlias("live", "c")))
        assert set(bench.get("old", "new", collection="live")) == {"old"}
        assert isinstance(refusal(bench.commit(DropCollection("c"))), InvalidDataException)
        bench.commit(SetAlias("live", "d"))
        assert set(bench.get("old", "new", collection="live")) == {"new"}
        assert set(bench.get("old", "new", collection="live", snapshot=switched)) == {"old"}
        bench.commit(DropAlias("live"))
        assert isinstance(refusal(bench.ask(Get(collection="live", ids=["old"]))), CollectionNotExistedException)

    def test_survives_crashes_and_checkpoints(self, bench: Bench) -> None:
        bench.commit(SetAlias("live", "c"))
        bench.commit(AlterCollection("c", {"target_recall": 0.9, "ef": 33}))
        for again in (bench.crash, bench.reopen, bench.crash):
            again()
            reply = bench.ask(ListCollections())
            assert isinstance(reply, CatalogReply)
            assert [(s.name, s.target_recall) for s in reply.collections] == [("c", 0.9)]
            assert reply.aliases == {"live": "c"}
            described = bench.ask(Describe(collection="c"))
            assert isinstance(described, DescribeReply)
            assert described.ef == 33

    def test_what_cannot_be_altered_is_refused(self, bench: Bench) -> None:
        error = refusal(bench.commit(AlterCollection("c", {"dim": 8})))
        assert isinstance(error, InvalidDataException)
        assert "target_recall" in str(error)


class TestBadInput:
    @pytest.mark.parametrize(
        ("vectors", "error"),
        [
            ([[1, 2, 3]], VectorDimensionMismatchException),
            ([[1, 2, 3, np.inf]], InvalidDataException),
            ([[3e38] * 4], InvalidDataException),
        ],
    )
    def test_vectors(self, bench: Bench, vectors: Any, error: type[VecraftError]) -> None:
        bad = Put("c", ["x"], np.array(vectors, np.float32), put("x").payloads)
        assert isinstance(refusal(bench.commit(bad)), error)
        assert bench.count() == 0

    def test_a_zero_vector_has_no_cosine(self, bench: Bench) -> None:
        bench.commit(create("cos", metric="cosine"))
        bad = Put("cos", ["x"], np.zeros((1, 4), np.float32), put("x").payloads)
        assert isinstance(refusal(bench.commit(bad)), NullOrZeroVectorException)

    def test_an_id_twice_in_one_write(self, bench: Bench) -> None:
        assert isinstance(refusal(bench.commit(put("a", "a"))), InvalidDataException)

    def test_a_clock_from_the_future_is_refused_and_does_not_drag_ours_along(self, bench: Bench) -> None:
        far = timestamp(bench.now_ms + 10_000)
        answers = bench.shard.execute([Count(collection="c")], bench.now_ms, clock=far)
        assert isinstance(refusal(answers[0]), ClockSkewError)
        assert isinstance(refusal(bench.ask(Count(collection="c", snapshot=far))), ClockSkewError)
        assert bench.shard.clock_last < far

    def test_a_stale_map_is_refused(self, tmp_path: Path) -> None:
        bench = Bench(tmp_path / "mapped", map_epoch=3)
        answers = bench.shard.execute([Status()], bench.now_ms, map_epoch=2)
        assert isinstance(refusal(answers[0]), StaleMapError)
        bench.shard.abandon()


class TestRecovery:
    def test_everything_acknowledged_is_there_after_a_crash_and_nothing_deleted_comes_back(self, bench: Bench) -> None:
        for i in range(50):
            bench.commit(put(f"r{i:02}", value=i))
        for i in range(0, 50, 3):
            bench.commit(delete(f"r{i:02}"))
        bench.commit(put("r01", value=-1))
        expected = bench.get(*[f"r{i:02}" for i in range(50)])
        for again in (bench.crash, bench.reopen, bench.crash, bench.reopen):
            again()
            assert bench.get(*[f"r{i:02}" for i in range(50)]) == expected
            assert bench.scan() == sorted(expected)
            assert bench.count() == len(expected)

    def test_history_survives_too(self, bench: Bench) -> None:
        first = commit_ts(bench.commit(put("a", value=1)))
        second = commit_ts(bench.commit(put("a", value=2)))
        bench.commit(delete("a"))
        for again in (bench.crash, bench.reopen):
            again()
            assert bench.get("a", snapshot=first) == {"a": {"v": 1}}
            assert bench.get("a", snapshot=second) == {"a": {"v": 2}}
            assert bench.get("a") == {}

    def test_a_crash_between_checkpoint_and_later_writes_replays_only_those(self, bench: Bench) -> None:
        bench.commit(put("a", value=1))
        assert isinstance(bench.ask(Checkpoint()), Done)
        bench.commit(put("b", value=2))
        bench.commit(delete("a"))
        bench.crash()
        assert bench.get("a", "b") == {"b": {"v": 2}}
        bench.reopen()
        assert bench.get("a", "b") == {"b": {"v": 2}}

    def test_a_restarted_clock_stands_above_every_read_that_was_served(self, bench: Bench) -> None:
        bench.commit(put("a"))
        reply: Any = bench.ask(Count(collection="c"))
        for _ in range(3):
            bench.crash()
            assert commit_ts(bench.commit(put("a"))) > reply.snapshot
            reply = bench.ask(Count(collection="c"))
            bench.now_ms -= 50  # the wall clock may even jump back

    @pytest.mark.parametrize("how", ["crash", "reopen"])
    def test_restarts_in_a_row_do_not_drive_the_clock_away(self, bench: Bench, how: str) -> None:
        for _ in range(20):
            getattr(bench, how)()
            bench.commit(put("a"))
            bench.pass_time(1)
        assert (bench.shard.clock_last >> 16) - bench.now_ms < bench.config.max_clock_skew_ms
        assert bench.shard.execute([Count(collection="c")], bench.now_ms, clock=bench.shard.clock_last)

    def test_two_generations_of_files_never_mix(self, bench: Bench) -> None:
        for i in range(30):
            bench.commit(put(f"r{i:02}", value=i))
        for i in range(20):
            bench.commit(delete(f"r{i:02}"))
        expected = bench.get(*[f"r{i:02}" for i in range(30)])
        bench.pass_time(2_000_000)
        assert isinstance(bench.ask(Checkpoint(compact=True, index=True)), Done)
        reply = bench.ask(Describe(collection="c"))
        assert isinstance(reply, DescribeReply)
        assert (reply.dead_rows, reply.count, reply.indexed_rows) == (0, 10, 10)
        for again in (bench.crash, bench.reopen):
            assert bench.get(*[f"r{i:02}" for i in range(30)]) == expected
            again()
        files = sorted(path.name for path in bench.folder.glob("*/vectors.*"))
        assert files == ["vectors.2.f32"]


class TestHistory:
    def test_below_the_safe_point_reads_and_writes_are_refused_and_never_wrong(self, bench: Bench) -> None:
        old = commit_ts(bench.commit(put("a", value=1)))
        bench.commit(put("a", value=2))
        bench.pass_time(1_000_000)
        bench.ask(Checkpoint(compact=True))
        assert isinstance(refusal(bench.ask(Get(collection="c", ids=["a"], snapshot=old))), SnapshotTooOldError)
        assert isinstance(refusal(bench.commit(put("a"), snapshot=old)), SnapshotTooOldError)
        bench.crash()
        assert isinstance(refusal(bench.ask(Get(collection="c", ids=["a"], snapshot=old))), SnapshotTooOldError)
        assert bench.get("a") == {"a": {"v": 2}}

    def test_a_pinned_snapshot_holds_its_history(self, bench: Bench) -> None:
        old = commit_ts(bench.commit(put("a", value=1)))
        bench.ask(PinSnapshot("p", old, 5_000_000))
        bench.commit(put("a", value=2))
        bench.pass_time(1_000_000)
        bench.ask(Checkpoint(compact=True))
        assert bench.get("a", snapshot=old) == {"a": {"v": 1}}
        bench.ask(ReleaseSnapshot("p"))
        bench.ask(Checkpoint(compact=True))
        assert isinstance(refusal(bench.ask(Get(collection="c", ids=["a"], snapshot=old))), SnapshotTooOldError)

    def test_a_dropped_collection_is_removed_with_its_files(self, bench: Bench) -> None:
        bench.commit(put("a"))
        bench.ask(Checkpoint())
        bench.commit(DropCollection("c"))
        assert list(bench.folder.glob("*/vectors.*"))
        bench.pass_time(1_000_000)
        bench.shard.maintain(bench.now_ms, 50)
        assert not list(bench.folder.glob("*/vectors.*"))
        bench.crash()
        assert isinstance(refusal(bench.ask(Count(collection="c"))), CollectionNotExistedException)


class TestIndexing:
    def test_the_tail_moves_to_the_graph_and_answers_stay_the_same(self, bench: Bench) -> None:
        ids = [f"r{i}" for i in range(300)]
        bench.commit(put(*ids))
        before = bench.search(vector_of("r7"), k=10)
        while bench.shard.maintain(bench.now_ms, 20):
            pass
        reply = bench.ask(Describe(collection="c"))
        assert isinstance(reply, DescribeReply)
        assert (reply.tail_rows, reply.indexed_rows) == (0, 300)
        assert bench.search(vector_of("r7"), k=10, ef=300) == before
        assert bench.search(vector_of("r7"), k=10, exact=True) == before

    def test_a_small_collection_is_scanned_and_has_no_graph(self, bench: Bench) -> None:
        bench.commit(put(*[f"r{i}" for i in range(9)]))
        assert not bench.shard.maintain(bench.now_ms, 20)
        bench.ask(Checkpoint(index=True))
        assert tail(bench) == 9
        bench.commit(put("one more"))
        bench.shard.maintain(bench.now_ms, 20)
        assert tail(bench) == 0

    def test_a_saved_graph_is_loaded_and_a_damaged_one_rebuilt(self, bench: Bench) -> None:
        bench.commit(put(*[f"r{i}" for i in range(100)]))
        bench.ask(Checkpoint(index=True))
        expected = bench.search(vector_of("r7"), k=10, exact=True)
        bench.crash()
        assert tail(bench) == 0
        bench.shard.abandon()
        (graph,) = bench.folder.glob("*/hnsw.*")
        data = bytearray(graph.read_bytes())
        data[len(data) // 2] ^= 1
        graph.write_bytes(data)
        bench.shard = bench._open()
        assert tail(bench) == 100
        assert bench.search(vector_of("r7"), k=10) == expected

    @pytest.mark.parametrize("looks", [(Checkpointer, "_outgrown"), (background, "worth_compacting")])
    def test_collections_come_while_maintenance_looks_at_them(
        self, bench: Bench, monkeypatch: pytest.MonkeyPatch, looks: tuple[Any, str]
    ) -> None:
        owner, name = looks
        look = getattr(owner, name)
        fresh = (f"fresh{number}" for number in itertools.count())

        def beside_a_writer(*arguments: Any, **named: Any) -> Any:
            assert isinstance(bench.commit(create(name=next(fresh))), Committed)
            return look(*arguments, **named)

        bench.pass_time(61_000)
        bench.ask(Checkpoint())
        bench.pass_time(61_000)
        monkeypatch.setattr(owner, name, beside_a_writer)
        bench.shard.maintain(bench.now_ms, 20)
        assert next(fresh) != "fresh0", "maintenance has looked"

    def test_a_graph_that_grew_long_after_the_last_write_survives_a_crash(self, bench: Bench) -> None:
        bench.commit(put(*[f"r{i}" for i in range(300)]))
        bench.ask(Checkpoint())
        assert tail(bench) == 300, "the last write is in a checkpoint, its row not yet in the graph"
        while bench.shard.maintain(bench.now_ms, 20):
            pass
        bench.pass_time(61_000)
        bench.shard.maintain(bench.now_ms, 20)
        (graph,) = bench.folder.glob("*/hnsw.*")
        bench.crash()
        assert tail(bench) == 0
        bench.pass_time(61_000)
        bench.shard.maintain(bench.now_ms, 20)
        assert list(bench.folder.glob("*/hnsw.*")) == [graph], "and it is not saved again for nothing"

    def test_background_work_gets_on_where_time_is_always_up(self, tmp_path: Path) -> None:
        bench = Bench(tmp_path / "busy", index_min_rows=10, compact_min_rows=10, history_retention_s=0)
        bench.shard.abandon()
        seconds = itertools.count()
        bench.shard = Shard.open(
            OsDisk(bench.folder), 0, bench.now_ms, bench.config, stopwatch=lambda: float(next(seconds))
        )
        bench.commit(create())
        for value in (1, 2):
            bench.commit(put(*[f"r{i}" for i in range(300)], value=value))
        for _ in range(700):
            bench.pass_time(100)
            bench.shard.maintain(bench.now_ms, 20)
        reply = bench.ask(Describe(collection="c"))
        assert isinstance(reply, DescribeReply)
        assert (reply.dead_rows, reply.tail_rows, reply.indexed_rows) == (0, 0, 300)
        bench.shard.abandon()

    def test_the_search_depth_can_be_set_and_given_back(self, bench: Bench) -> None:
        bench.ask(SetEf("c", 17))
        reply = bench.ask(Describe(collection="c"))
        assert isinstance(reply, DescribeReply)
        assert reply.ef == 17
        assert isinstance(refusal(bench.ask(SetEf("c", 0))), InvalidDataException)


def tail(bench: Bench) -> int:
    reply = bench.ask(Describe(collection="c"))
    assert isinstance(reply, DescribeReply)
    return reply.tail_rows
