"""Reads over time: scans that stand still, snapshots, time travel, consistency levels, deadlines."""

from __future__ import annotations

import threading
import time
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from typing import Any

import numpy as np
import pytest

from vecraft_data_model import DataPacket, QueryPacket
from vecraft_data_model.errors import (
    ClockSkewError,
    CollectionNotExistedException,
    InvalidDataException,
    RecordNotFoundError,
    SnapshotTooOldError,
    TimeoutException,
)
from vecraft_db.client.vecraft_client import VecraftClient
from vecraft_router.options import Bounded


def fill(client: VecraftClient, collection: str, count: int) -> list[str]:
    ids = [f"r{i:05d}" for i in range(count)]
    client.upsert(
        collection,
        ids=ids,
        vectors=np.random.default_rng(3).normal(size=(count, 4)),
        metadatas=[{"i": i} for i in range(count)],
        documents=[f"document {i}" for i in range(count)],
    )
    return ids


# --------------------------------------------------------------------------------------------------- scans


def test_a_scan_goes_through_all_records_in_id_order(client: VecraftClient, collection: str) -> None:
    ids = fill(client, collection, 2500)
    packets = list(client.scan(collection))
    assert [packet.record_id for packet in packets] == ids
    assert packets[17].metadata == {"i": 17}
    assert packets[17].document == "document 17"
    assert packets[17].validate_checksum()


def test_ids_are_ordered_by_code_point(client: VecraftClient, collection: str) -> None:
    ids = ["", "\uffff", "\U00010000", "a", "B", "é", "e\u0301", "10", "9", "Z\n"][1:]
    client.upsert(collection, ids=ids, vectors=np.ones((len(ids), 4)))
    assert [packet.record_id for packet in client.scan(collection)] == sorted(ids)


def test_a_scan_stands_still_while_others_write(client: VecraftClient, collection: str) -> None:
    ids = fill(client, collection, 2200)
    scan = client.scan(collection)
    first = next(scan)
    client.delete_many(collection, ids[1000:])
    client.upsert(collection, ids=["r00001x", "zzz"], vectors=np.ones((2, 4)))
    client.upsert(collection, ids=ids[:10], vectors=np.zeros((10, 4)), metadatas=[{"changed": True}] * 10)
    rest = list(scan)
    assert [first.record_id, *(packet.record_id for packet in rest)] == ids
    assert rest[4].metadata == {"i": 5}
    assert client.count(collection) == 1002


def test_a_scan_goes_on_behind_its_cursor(client: VecraftClient, collection: str) -> None:
    ids = fill(client, collection, 30)
    assert client.scan(collection, limit=12).cursor is None
    scan = client.scan(collection, limit=12)
    assert [packet.record_id for packet in scan] == ids[:12]
    cursor = scan.cursor
    assert isinstance(cursor, str)
    client.delete_many(collection, ids[12:20])
    seen: list[str] = []
    while cursor is not None:
        scan = client.scan(collection, limit=7, cursor=cursor)
        seen += [packet.record_id for packet in scan]
        cursor = scan.cursor
    assert seen == ids[12:]
    assert client.count(collection) == 22


def test_a_view_goes_on_behind_cursors_of_its_own_moment_only(client: VecraftClient, collection: str) -> None:
    ids = fill(client, collection, 6)
    with client.snapshot() as view, client.transaction() as tx:
        scan = view.scan(collection, limit=2)
        assert [packet.record_id for packet in scan] == ids[:2]
        client.insert(collection, DataPacket("z", [0, 0, 0, 0]))
        own = tx.scan(collection, limit=4)
        assert [packet.record_id for packet in own] == ids[:4]
        with client.snapshot() as later:
            assert later.count(collection) == 7
            assert [packet.record_id for packet in view.scan(collection, cursor=scan.cursor)] == ids[2:]
            assert [packet.record_id for packet in tx.scan(collection, cursor=own.cursor)] == ids[4:]
            with pytest.raises(InvalidDataException, match="this cursor goes on at snapshot"):
                list(later.scan(collection, cursor=scan.cursor))
        with client.transaction() as other, pytest.raises(InvalidDataException, match="cursor"):
            list(other.scan(collection, cursor=own.cursor))


@pytest.mark.parametrize("beside", [{"consistency": "strong"}, {"consistency": "session"}, {"as_of": 1}])
def test_a_cursor_brings_its_own_moment(client: VecraftClient, collection: str, beside: dict[str, Any]) -> None:
    fill(client, collection, 4)
    scan = client.scan(collection, limit=2)
    assert len(list(scan)) == 2
    with pytest.raises(InvalidDataException, match=f"cursor=.*{next(iter(beside))}="):
        client.scan(collection, cursor=scan.cursor, **beside)


def test_a_cursor_in_the_middle_of_a_page(client: VecraftClient, collection: str) -> None:
    ids = fill(client, collection, 20)
    scan = client.scan(collection)
    for _ in range(5):
        next(scan)
    assert [packet.record_id for packet in client.scan(collection, cursor=scan.cursor)] == ids[5:]
    scan.close()
    assert list(scan) == []


@pytest.mark.parametrize("taken", [1, 7, 1200])
def test_a_scan_that_was_closed_still_knows_where_to_go_on(
    client: VecraftClient, collection: str, taken: int
) -> None:
    ids = fill(client, collection, 1500)
    scan = client.scan(collection)
    seen = [next(scan).record_id for _ in range(taken)]
    before = scan.cursor
    scan.close()
    assert list(scan) == []
    assert scan.cursor == before and before is not None
    seen += [packet.record_id for packet in client.scan(collection, cursor=scan.cursor)]
    assert seen == ids


def test_a_scan_takes_filters_and_keeps_them(client: VecraftClient, collection: str) -> None:
    ids = fill(client, collection, 50)
    scan = client.scan(collection, where={"i": {"$gte": 40}}, limit=4)
    assert [packet.record_id for packet in scan] == ids[40:44]
    more = client.scan(collection, where={"i": {"$gte": 40}}, cursor=scan.cursor)
    assert [packet.record_id for packet in more] == ids[44:]
    with pytest.raises(InvalidDataException, match="filters"):
        list(client.scan(collection, where={"i": {"$gte": 41}}, cursor=scan.cursor))


@pytest.mark.parametrize("below", [0, 2, 20, 190, 1000])
def test_pages_of_a_filtered_scan_are_whole_however_many_match(
    client: VecraftClient, collection: str, below: int
) -> None:
    ids = fill(client, collection, 200)
    client.delete_many(collection, ids[::7])
    changed = ids[3::9]
    client.upsert(collection, ids=changed, vectors=np.ones((len(changed), 4)), metadatas=[{"i": -1}] * len(changed))
    model = {record_id: i for i, record_id in enumerate(ids)} | dict.fromkeys(changed, -1)
    for record_id in set(ids[::7]) - set(changed):
        del model[record_id]
    wanted = sorted(record_id for record_id, i in model.items() if i < below)
    where = {"i": {"$lt": below}}
    seen: list[str] = []
    scan = client.scan(collection, where, limit=6)
    while True:
        seen += [packet.record_id for packet in scan]
        if scan.cursor is None:
            break
        client.delete_many(collection, seen[-2:])
        scan = client.scan(collection, where, limit=6, cursor=scan.cursor)
    assert seen == wanted


def test_a_scan_brings_the_parts_that_were_asked_for(client: VecraftClient, collection: str) -> None:
    fill(client, collection, 3)
    bare = next(client.scan(collection, include=[]))
    assert (bare.vector, bare.metadata, bare.document) == (None, None, None)
    texts = next(client.scan(collection, include=["document"]))
    assert (texts.vector, texts.metadata, texts.document) == (None, None, "document 0")


def test_forged_cut_and_foreign_cursors_are_refused(client: VecraftClient, collection: str, make: Any) -> None:
    fill(client, collection, 10)
    other = make()
    scan = client.scan(collection, limit=3)
    list(scan)
    cursor = scan.cursor
    assert cursor is not None
    flipped = cursor[:-1] + ("A" if cursor[-1] != "A" else "B")
    for bad in (flipped, cursor[:-4], cursor + "AAAA", "", "nonsense", "\ud800", 17):
        with pytest.raises(InvalidDataException, match="cursor"):
            list(client.scan(collection, cursor=bad))  # type: ignore[arg-type]
    with pytest.raises(InvalidDataException, match="cursor"):
        list(client.scan(other, cursor=cursor))
    assert len(list(client.scan(collection, cursor=cursor))) == 7


# ---------------------------------------------------------------------------------------------- time travel


def test_a_snapshot_does_not_move(client: VecraftClient, collection: str, make: Any) -> None:
    other = make()
    ids = fill(client, collection, 20)
    with client.snapshot() as view:
        client.delete_many(collection, ids[:10])
        client.insert(collection, DataPacket(ids[15], [9, 9, 9, 9], {"new": True}))
        client.insert(other, DataPacket("x", [1, 1, 1, 1]))
        assert view.count(collection) == 20
        assert view.count(other) == 0
        assert view.get(collection, ids[15]).metadata == {"i": 15}
        assert view.get_many(collection, [ids[0], "none"])[1] is None
        assert [packet.record_id for packet in view.scan(collection)] == ids
        assert len(view.search(collection, QueryPacket([9, 9, 9, 9], k=50))) == 20
        assert len(view.search_many(collection, [[9, 9, 9, 9]], 50)[0]) == 20
        assert view.count(collection, {"new": True}) == 0
        assert view.timestamp > 0
    assert client.count(collection) == 10


def test_a_snapshot_sees_the_catalog_of_its_moment(client: VecraftClient, make: Any) -> None:
    old = make()
    client.insert(old, DataPacket("a", [1, 2, 3, 4]))
    with client.snapshot() as view:
        client.drop_collection(old)
        new = make()
        names = [schema.name for schema in view.list_collections()]
        assert old in names
        assert new not in names
        assert view.get(old, "a").record_id == "a"


def test_time_travel_by_timestamp_and_by_datetime(client: VecraftClient, collection: str) -> None:
    first = client.upsert(collection, ids=["a"], vectors=[[1, 0, 0, 0]], metadatas=[{"v": 1}])
    time.sleep(0.01)
    between = datetime.now(UTC)
    time.sleep(0.01)
    second = client.upsert(collection, ids=["a", "b"], vectors=np.eye(2, 4), metadatas=[{"v": 2}, {"v": 2}])
    client.delete(collection, "a")
    for moment in (first.commit_ts, between):
        assert client.get(collection, "a", as_of=moment).metadata == {"v": 1}
        assert client.count(collection, as_of=moment) == 1
        assert [hit.record_id for hit in client.search(collection, QueryPacket([1, 0, 0, 0]), as_of=moment)] == ["a"]
        assert [packet.record_id for packet in client.scan(collection, as_of=moment)] == ["a"]
        with client.snapshot(as_of=moment) as view:
            assert view.count(collection) == 1
    assert client.get(collection, "a", as_of=second.commit_ts).metadata == {"v": 2}
    with pytest.raises(RecordNotFoundError):
        client.get(collection, "a")


@pytest.mark.parametrize(
    "moment", [1, 2**40, np.int64(2**40), datetime(2001, 1, 1, tzinfo=UTC), datetime(1960, 1, 1, tzinfo=UTC)]
)
def test_before_the_beginning_there_is_nothing(client: VecraftClient, collection: str, moment: Any) -> None:
    # Either that history is reclaimed, or it is still known that the collection did not exist: never a count.
    with pytest.raises((SnapshotTooOldError, CollectionNotExistedException)):
        client.count(collection, as_of=moment)
    assert client.count(collection) == 0


@pytest.mark.parametrize(
    "moment", [2**62, datetime.now(UTC) + timedelta(days=1), datetime(9999, 1, 1, tzinfo=UTC)]
)
def test_the_future_is_refused_and_drags_no_clock_along(client: VecraftClient, collection: str, moment: Any) -> None:
    with pytest.raises((ClockSkewError, InvalidDataException), match=r"lies in the future|ahead"):
        client.count(collection, as_of=moment)
    with pytest.raises((ClockSkewError, InvalidDataException)), client.snapshot(as_of=moment):
        pass
    ts = client.upsert(collection, ids=["a"], vectors=[[1, 2, 3, 4]]).commit_ts
    assert abs((ts >> 16) / 1000 - time.time()) < 60


# --------------------------------------------------------------------------------------------- consistency


@pytest.mark.parametrize("consistency", ["session", "strong"])
def test_fresh_reads_see_what_was_acknowledged(client: VecraftClient, collection: str, consistency: str) -> None:
    for i in range(5):
        client.insert(collection, DataPacket(f"r{i}", [i, 0, 0, 0]))
        assert client.count(collection, consistency=consistency) == i + 1
        assert client.get(collection, f"r{i}", consistency=consistency).record_id == f"r{i}"


@pytest.mark.parametrize("consistency", ["eventual", Bounded(60_000), Bounded(0)])
def test_stale_reads_are_some_past_state(client: VecraftClient, collection: str, consistency: Any) -> None:
    client.upsert(collection, ids=["a", "b"], vectors=np.eye(2, 4))
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        try:
            found = client.count(collection, consistency=consistency)
        except CollectionNotExistedException:  # at that moment it was not made yet
            found = 0
        assert found in (0, 2), "half of a transaction"
        if found == 2 or consistency == Bounded(60_000):
            break
        time.sleep(0.1)
    else:
        pytest.fail("an eventual read never caught up")


@pytest.mark.parametrize("consistency", ["linear", "", 1, None.__class__, ["session"]])
def test_unknown_levels_are_refused(client: VecraftClient, collection: str, consistency: Any) -> None:
    with pytest.raises(InvalidDataException, match="consistency"):
        client.count(collection, consistency=consistency)


def test_a_level_and_a_moment_exclude_each_other(client: VecraftClient, collection: str) -> None:
    ts = client.upsert(collection, ids=["a"], vectors=[[1, 2, 3, 4]]).commit_ts
    with pytest.raises(InvalidDataException, match="as_of"):
        client.count(collection, consistency="strong", as_of=ts)


# ------------------------------------------------------------------------------------------------- deadlines


@pytest.mark.parametrize("timeout", [0, -1, 10**18, float("nan"), float("inf"), "1", True])
def test_impossible_timeouts_are_refused(client: VecraftClient, collection: str, timeout: Any) -> None:
    for call in (
        lambda: client.count(collection, timeout=timeout),
        lambda: client.get(collection, "a", timeout=timeout),
        lambda: client.search(collection, QueryPacket([1, 2, 3, 4]), timeout=timeout),
        lambda: client.insert(collection, DataPacket("a", [1, 2, 3, 4]), timeout=timeout),
        lambda: client.delete_many(collection, where={"a": 1}, timeout=timeout),
        lambda: list(client.scan(collection, timeout=timeout)),
    ):
        with pytest.raises(InvalidDataException, match="timeout"):
            call()
    assert client.count(collection, timeout=30) == 0


def test_too_short_a_timeout_is_told_as_nothing_else(client: VecraftClient, collection: str) -> None:
    for call in (
        lambda: client.count(collection, timeout=1e-9),
        lambda: client.insert(collection, DataPacket("a", [1, 2, 3, 4]), timeout=1e-9),
        lambda: client.snapshot(timeout=1e-9).__enter__(),
    ):
        with suppress(TimeoutException):  # or the answer was there before anybody looked at the clock
            call()


# --------------------------------------------------------------------------------------------------- threads


def test_many_threads_share_one_client(client: VecraftClient, collection: str) -> None:
    errors: list[BaseException] = []

    def work(thread: int) -> None:
        try:
            for i in range(15):
                record_id = f"t{thread}-{i}"
                client.upsert(collection, ids=[record_id], vectors=[[thread, i, 0, 1]], metadatas=[{"t": thread}])
                assert client.get(collection, record_id).metadata == {"t": thread}
                hits = client.search(collection, QueryPacket([thread, i, 0, 1], k=1, exact=True))
                assert hits[0].record_id == record_id
                assert client.count(collection, {"t": thread}) == i + 1
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    assert client.count(collection) == 60
