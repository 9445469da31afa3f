"""Transactions: one snapshot, own writes seen, all or nothing, first committer wins."""

from __future__ import annotations

import threading
from collections.abc import Callable

import numpy as np
import pytest

from vecraft_data_model import DataPacket, QueryPacket
from vecraft_data_model.errors import (
    InvalidDataException,
    PreconditionFailedError,
    ReadWriteConflictException,
    RecordNotFoundError,
    VectorDimensionMismatchException,
    WriteConflictException,
)
from vecraft_db.client.vecraft_client import VecraftClient

pytestmark = pytest.mark.needs("transactions")


def put(record_id: str, value: int, vector: list[float] | None = None) -> DataPacket:
    return DataPacket(record_id, vector or [value, 0, 0, 0], {"value": value}, f"value {value}")


def value(client: VecraftClient, collection: str, record_id: str) -> int:
    metadata = client.get(collection, record_id).metadata
    assert metadata is not None
    found = metadata["value"]
    assert isinstance(found, int)
    return found


def test_a_transaction_is_seen_as_a_whole_or_not_at_all(client: VecraftClient, make: Callable[..., str]) -> None:
    first, second = make(), make()
    client.insert(first, put("old", 1))
    with client.transaction() as tx:
        assert tx.insert(first, put("a", 1)) is None
        tx.upsert(second, ids=[f"r{i}" for i in range(20)], vectors=np.ones((20, 4)))
        assert tx.delete(first, "old") == put("old", 1)
        assert client.count(first) == 1
        assert client.count(second) == 0
    assert tx.result is not None
    assert tx.result.count == 22
    assert [packet.record_id for packet in client.scan(first)] == ["a"]
    assert client.count(second) == 20
    assert client.count(first, as_of=tx.result.commit_ts - 1) == 1
    assert client.count(second, as_of=tx.result.commit_ts - 1) == 0
    assert client.count(second, as_of=tx.result.commit_ts) == 20


def test_an_exception_leaves_no_trace(client: VecraftClient, collection: str) -> None:
    client.insert(collection, put("a", 1))
    with pytest.raises(KeyError), client.transaction() as tx:
        tx.insert(collection, put("a", 2))
        tx.insert(collection, put("b", 2))
        raise KeyError("changed my mind")
    assert value(client, collection, "a") == 1
    assert client.count(collection) == 1


def test_own_writes_show_in_every_read(client: VecraftClient, collection: str) -> None:
    client.upsert(collection, [put(f"r{i}", i) for i in range(10)])
    with client.transaction() as tx:
        replaced = tx.insert(collection, put("r3", 100))
        assert replaced == put("r3", 3)
        tx.upsert(collection, [put("new", 3), put("newer", 4)])
        tx.delete(collection, "r4")
        tx.delete_many(collection, ["newer"])
        assert tx.get(collection, "r3").metadata == {"value": 100}
        with pytest.raises(RecordNotFoundError):
            tx.get(collection, "r4")
        assert [packet and packet.record_id for packet in tx.get_many(collection, ["new", "r4", "r0"])] == [
            "new", None, "r0",
        ]  # fmt: skip
        assert tx.count(collection) == 10
        assert tx.count(collection, {"value": {"$lt": 5}}) == 4
        assert tx.count(collection, where_document={"$contains": "100"}) == 1
        assert [packet.record_id for packet in tx.scan(collection)] == [
            "new", "r0", "r1", "r2", "r3", "r5", "r6", "r7", "r8", "r9",
        ]  # fmt: skip
        assert [packet.record_id for packet in tx.scan(collection, where={"value": 3})] == ["new"]
        hits = tx.search(collection, QueryPacket([3, 0, 0, 0], k=3, exact=True))
        assert [(hit.record_id, hit.distance) for hit in hits] == [("new", 0.0), ("r2", 1.0), ("r1", 4.0)]
        assert hits[0].metadata == {"value": 3}
        far = tx.search(collection, QueryPacket([100, 0, 0, 0], k=1))
        assert [(hit.record_id, hit.metadata) for hit in far] == [("r3", {"value": 100})]
        filtered = tx.search(collection, QueryPacket([0, 0, 0, 0], k=10, where={"value": {"$gte": 9}}))
        assert [hit.record_id for hit in filtered] == ["r9", "r3"]
        assert [[hit.record_id for hit in hits] for hits in tx.search_many(collection, [[3, 0, 0, 0]], 1)] == [["new"]]
        tx.abort()
    assert value(client, collection, "r3") == 3
    assert client.count(collection) == 10


def test_deleting_by_filter_inside_sees_own_writes(client: VecraftClient, collection: str) -> None:
    client.upsert(collection, [put(f"r{i}", i) for i in range(6)])
    with client.transaction() as tx:
        tx.upsert(collection, [put("own", 1), put("r5", 0)])
        assert tx.delete_many(collection, where={"value": {"$lte": 1}}) == 4
        assert tx.count(collection) == 3
    assert [packet.record_id for packet in client.scan(collection)] == ["r2", "r3", "r4"]


def test_the_last_write_to_a_record_counts(client: VecraftClient, collection: str) -> None:
    client.upsert(collection, [put("a", 1), put("b", 1), put("c", 1)])
    with client.transaction() as tx:
        tx.upsert(collection, [put("a", 2)])
        tx.upsert(collection, [put("a", 3), put("new", 3)])
        tx.delete_many(collection, ["b", "new"])
        tx.insert(collection, put("b", 4))
        tx.delete(collection, "c")
    assert tx.result is not None and tx.result.count == 3
    left = {packet.record_id: packet.metadata for packet in client.scan(collection)}
    assert left == {"a": {"value": 3}, "b": {"value": 4}}


def test_a_deletion_by_filter_inside_is_validated(client: VecraftClient, collection: str) -> None:
    client.upsert(collection, [put("a", 1), put("b", 2)])
    with pytest.raises(WriteConflictException, match="'a'"), client.transaction() as tx:
        tx.delete_many(collection, where={"value": 1})
        client.upsert(collection, [put("a", 1)])
    assert value(client, collection, "a") == 1
    with client.transaction() as tx:
        assert tx.delete_many(collection, where={"value": 1}) == 1
        client.upsert(collection, [put("late", 1)])
    assert [packet.record_id for packet in client.scan(collection)] == ["b", "late"]


def test_a_transaction_reads_one_moment(client: VecraftClient, collection: str) -> None:
    client.upsert(collection, [put("a", 1), put("b", 1)])
    with client.transaction() as tx:
        assert tx.get(collection, "a").metadata == {"value": 1}
        client.upsert(collection, [put("a", 2), put("b", 2), put("c", 2)])
        assert tx.get(collection, "b").metadata == {"value": 1}
        assert tx.count(collection) == 2
        assert len(tx.search(collection, QueryPacket([2, 0, 0, 0]))) == 2
    assert tx.result is not None
    assert tx.result.count == 0


def test_the_first_committer_wins(client: VecraftClient, collection: str) -> None:
    client.upsert(collection, [put("a", 1), put("b", 1)])
    with pytest.raises(WriteConflictException, match="'a'"), client.transaction() as tx:
        tx.insert(collection, put("a", tx.get(collection, "a").metadata["value"] + 1))  # type: ignore[index]
        tx.insert(collection, put("b", 5))
        client.insert(collection, put("a", 10))
    assert value(client, collection, "a") == 10
    assert value(client, collection, "b") == 1


@pytest.mark.parametrize("change", ["insert", "delete"])
def test_a_record_made_or_deleted_meanwhile_is_a_conflict_too(
    client: VecraftClient, collection: str, change: str
) -> None:
    if change == "delete":
        client.insert(collection, put("a", 1))
    with pytest.raises(WriteConflictException), client.transaction() as tx:
        tx.insert(collection, put("a", 2))
        if change == "insert":
            client.insert(collection, put("a", 10))
        else:
            client.delete(collection, "a")
    assert [packet.metadata for packet in client.scan(collection)] == ([{"value": 10}] if change == "insert" else [])


def skew(client: VecraftClient, collection: str, isolation: str) -> None:
    """Two transactions read both records, and each changes the other one: not serial, whichever comes first."""
    with client.transaction(isolation) as first, client.transaction(isolation) as second:
        for tx, own in ((first, "a"), (second, "b")):
            total = sum(tx.get(collection, record_id).metadata["value"] for record_id in "ab")  # type: ignore[index]
            tx.insert(collection, put(own, total))


def test_write_skew_is_possible_under_snapshot(client: VecraftClient, collection: str) -> None:
    client.upsert(collection, [put("a", 1), put("b", 1)])
    skew(client, collection, "snapshot")
    assert (value(client, collection, "a"), value(client, collection, "b")) == (2, 2)


def test_write_skew_is_not_possible_under_serializable(client: VecraftClient, collection: str) -> None:
    client.upsert(collection, [put("a", 1), put("b", 1)])
    with pytest.raises(ReadWriteConflictException):
        skew(client, collection, "serializable")
    assert sorted([value(client, collection, "a"), value(client, collection, "b")]) == [1, 2]


def test_reading_what_is_not_there_counts_as_a_read(client: VecraftClient, collection: str) -> None:
    with pytest.raises(ReadWriteConflictException), client.transaction("serializable") as tx:
        with pytest.raises(RecordNotFoundError):
            tx.get(collection, "guard")
        tx.insert(collection, put("a", 1))
        client.insert(collection, put("guard", 1))
    assert client.count(collection) == 1


def test_expectations_hold_inside(client: VecraftClient, collection: str) -> None:
    client.insert(collection, put("a", 1))
    with client.transaction() as tx:
        with pytest.raises(PreconditionFailedError):
            tx.insert(collection, put("a", 2), expect="absent")
        with pytest.raises(PreconditionFailedError):
            tx.delete(collection, "b", expect="present")
        tx.insert(collection, put("b", 1), expect="absent")
    assert client.count(collection) == 2


def test_bad_writes_are_refused_where_they_are_made(client: VecraftClient, collection: str) -> None:
    with client.transaction() as tx:
        tx.insert(collection, put("good", 1))
        with pytest.raises(VectorDimensionMismatchException):
            tx.insert(collection, DataPacket("bad", [1, 2, 3]))
    assert [packet.record_id for packet in client.scan(collection)] == ["good"]


def test_it_can_be_committed_by_hand_and_only_once(client: VecraftClient, collection: str) -> None:
    with client.transaction() as tx:
        tx.insert(collection, put("a", 1))
        result = tx.commit()
        assert client.get(collection, "a").commit_ts == result.commit_ts
        assert tx.commit() == result
        with pytest.raises(InvalidDataException, match="committed"):
            tx.insert(collection, put("b", 1))
    assert tx.result == result


def test_a_transaction_with_an_id_is_carried_out_once(client: VecraftClient, collection: str) -> None:
    txn_id = f"tx-{collection}"
    with client.transaction(txn_id=txn_id) as tx:
        tx.insert(collection, put("a", 1))
    assert tx.result is not None
    assert tx.result.txn_id == txn_id
    with pytest.raises(InvalidDataException, match=txn_id), client.transaction(txn_id=txn_id) as other:
        other.insert(collection, put("a", 2))
    assert value(client, collection, "a") == 1


@pytest.mark.parametrize("isolation", ["read committed", "", None, 1])
def test_unknown_isolation_levels_are_refused(client: VecraftClient, isolation: str) -> None:
    with pytest.raises(InvalidDataException, match="snapshot, serializable"):
        client.transaction(isolation)


def test_run_transaction_returns_what_its_body_does(client: VecraftClient, collection: str) -> None:
    client.insert(collection, put("a", 1))
    assert client.run_transaction(lambda tx: tx.count(collection)) == 1


def test_run_transaction_gives_up_after_its_retries(client: VecraftClient, collection: str) -> None:
    attempts: list[int] = []

    def always_late(tx: object) -> None:
        attempts.append(1)
        tx.insert(collection, put("a", 0))  # type: ignore[attr-defined]
        client.insert(collection, put("a", len(attempts)))

    with pytest.raises(WriteConflictException):
        client.run_transaction(always_late, retries=2)
    assert len(attempts) == 3
    assert value(client, collection, "a") == 3


def test_no_update_is_lost_between_threads(client: VecraftClient, collection: str) -> None:
    client.upsert(collection, [put("a", 0), put("b", 100)])
    errors: list[BaseException] = []

    def move() -> None:
        def body(tx: object) -> None:
            for record_id, change in (("a", 1), ("b", -1)):
                now = tx.get(collection, record_id).metadata["value"]  # type: ignore[attr-defined]
                tx.insert(collection, put(record_id, now + change))  # type: ignore[attr-defined]

        try:
            for _ in range(5):
                client.run_transaction(body, retries=1000)
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=move) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    with client.snapshot() as view:
        assert view.get(collection, "a").metadata == {"value": 15}
        assert view.get(collection, "b").metadata == {"value": 85}


def test_nobody_sees_half_of_a_transaction(client: VecraftClient, collection: str) -> None:
    ids = [f"r{i}" for i in range(8)]
    client.upsert(collection, [put(record_id, 0) for record_id in ids])
    stop = threading.Event()
    torn: list[object] = []

    def watch() -> None:
        while not stop.is_set():
            for packets in (client.get_many(collection, ids), list(client.scan(collection))):
                values = {packet.metadata["value"] for packet in packets if packet and packet.metadata}
                if len(values) != 1 or len(packets) != 8:
                    torn.append(values)

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        for number in range(1, 30):
            client.upsert(collection, [put(record_id, number) for record_id in ids])
    finally:
        stop.set()
        watcher.join()
    assert torn == []
