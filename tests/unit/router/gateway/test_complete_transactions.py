"""Transactions whose operations follow on each other: over REST they mean what they mean in a client's transaction."""

from __future__ import annotations

import asyncio
from typing import Any

import httpx
import pytest

from vecraft_data_model.validation import new_txn_id

INTO = "steps"


@pytest.fixture
async def steps(unharmed: httpx.AsyncClient) -> Any:
    await unharmed.post(f"/collections/{INTO}/create", json={"dim": 1})
    rows = {"ids": ["a", "b", "c"], "vectors": [[1], [2], [3]], "metadatas": [{"n": 1}, {"n": 2}, {"n": 3}]}
    assert (await unharmed.post(f"/collections/{INTO}/upsert", json=rows)).status_code == 200
    yield unharmed
    await unharmed.delete(f"/collections/{INTO}")


def upsert(record_id: str, n: int, **more: Any) -> dict[str, Any]:
    return {"op": "upsert", "collection": INTO, "ids": [record_id], "vectors": [[n]], "metadatas": [{"n": n}], **more}


def delete(**what: Any) -> dict[str, Any]:
    return {"op": "delete", "collection": INTO, **what}


async def held(api: httpx.AsyncClient) -> dict[str, int]:
    records = (await api.post(f"/collections/{INTO}/scan", json={})).json()["records"]
    return {record["record_id"]: record["metadata"]["n"] for record in records}


async def send(api: httpx.AsyncClient, *operations: dict[str, Any], **body: Any) -> httpx.Response:
    return await api.post("/transactions", json={"operations": list(operations), **body})


async def test_the_last_write_to_a_record_counts(steps: httpx.AsyncClient) -> None:
    done = await send(steps, upsert("a", 5), upsert("a", 6), delete(ids=["b"]), upsert("b", 7), upsert("d", 8),
                      delete(record_id="d"), preimages=True)  # fmt: skip
    assert done.status_code == 200, done.text
    preimages = {record["record_id"]: record["metadata"]["n"] for record in done.json()["preimages"]}
    assert preimages == {"a": 1, "b": 2}
    assert await held(steps) == {"a": 6, "b": 7, "c": 3}


async def test_a_deletion_by_filter_finds_what_was_written_before_it(steps: httpx.AsyncClient) -> None:
    done = await send(steps, upsert("c", 1), upsert("d", 1), delete(where={"n": 1}), upsert("e", 1))
    assert done.status_code == 200, done.text
    assert await held(steps) == {"b": 2, "e": 1}


async def test_it_looks_at_the_snapshot_that_is_named_and_is_validated_against_it(steps: httpx.AsyncClient) -> None:
    snapshot = (await steps.get("/snapshots")).json()["snapshot"]
    await send(steps, upsert("late", 1))
    assert (await send(steps, delete(where={"n": 1}), snapshot=snapshot)).json()["count"] == 1
    assert await held(steps) == {"b": 2, "c": 3, "late": 1}
    conflict = await send(steps, delete(where={"n": 1}), snapshot=snapshot)
    assert (conflict.status_code, conflict.json()["code"]) == (409, "write_conflict")


async def test_without_a_snapshot_it_meets_no_conflicts(steps: httpx.AsyncClient) -> None:
    """It looks again, as a deletion by filter alone does."""
    operations = [delete(where={"n": 1}), upsert("a", 1), upsert("a", 1)]
    answers = await asyncio.gather(*(send(steps, *operations) for _ in range(8)))
    assert [answer.status_code for answer in answers] == [200] * 8
    assert await held(steps) == {"a": 1, "b": 2, "c": 3}


async def test_expectations_hold_where_they_stand(steps: httpx.AsyncClient) -> None:
    done = await send(steps, upsert("new", 1, expect="absent"), upsert("new", 2, expect="present"))
    assert done.status_code == 200, done.text
    failed = await send(steps, upsert("a", 9), upsert("a", 10, expect="absent"))
    assert (failed.status_code, failed.json()["code"]) == (409, "precondition_failed"), failed.text
    assert await held(steps) == {"a": 1, "b": 2, "c": 3, "new": 2}


async def test_it_is_carried_out_once_under_its_id(steps: httpx.AsyncClient) -> None:
    key = new_txn_id()
    first = await send(steps, upsert("a", 5), upsert("a", 6), txn_id=key)
    assert first.status_code == 200, first.text
    await send(steps, upsert("a", 7))
    assert (await send(steps, upsert("a", 5), upsert("a", 6), txn_id=key)).json() == first.json()
    assert (await held(steps))["a"] == 7

    unnamed = await send(steps, delete(where={"n": 7}), txn_id=new_txn_id())
    assert unnamed.status_code == 400 and "snapshot" in unnamed.json()["detail"]
    snapshot = (await steps.get("/snapshots", headers={"X-Consistency-Level": "strong"})).json()["snapshot"]
    by_filter = [delete(where={"n": 7}), upsert("d", 7)]
    done = await send(steps, *by_filter, txn_id=(key := new_txn_id()), snapshot=snapshot)
    assert done.status_code == 200, done.text
    await send(steps, upsert("a", 7))
    assert (await send(steps, *by_filter, txn_id=key, snapshot=snapshot)).json() == done.json()
    assert await held(steps) == {"a": 7, "b": 2, "c": 3, "d": 7}


async def test_a_collection_is_made_filled_and_cleaned_in_one(steps: httpx.AsyncClient) -> None:
    made = {"op": "create_collection", "schema": {"name": "made-here", "dim": 1}}
    fill = {**upsert("x", 1), "collection": "made-here"}
    clean = {"op": "delete", "collection": "made-here", "where": {"n": 1}}
    done = await send(steps, made, fill, {**upsert("y", 2), "collection": "made-here"}, clean)
    assert done.status_code == 200, done.text
    assert (await steps.post("/collections/made-here/count", json={})).json() == {"count": 1}
    await steps.delete("/collections/made-here")


@pytest.mark.parametrize(
    ("operation", "said"),
    [
        (delete(ids=["a"], where={"n": 1}), "one of"),
        (delete(), "one of"),
        (delete(where={"n": 1}, expect="present"), "expect"),
        (delete(where={"$bad": 1}), "$bad"),
        (upsert("a", 1, where={"n": 1}), "where"),
    ],
)
async def test_what_is_refused(steps: httpx.AsyncClient, operation: dict[str, Any], said: str) -> None:
    refused = await send(steps, upsert("b", 9), operation)
    assert refused.status_code == 400, refused.text
    assert said in refused.json()["detail"] and "operations[1]" in refused.json()["detail"]
    assert await held(steps) == {"a": 1, "b": 2, "c": 3}


async def test_one_that_makes_a_collection_is_carried_out_once_under_its_id(steps: httpx.AsyncClient) -> None:
    """Sent again it looks at the same snapshot, in which the collection is not made yet."""
    key, into = new_txn_id(), {"collection": "made-once"}
    made = {"op": "create_collection", "schema": {"name": "made-once", "dim": 1}}
    operations = [made, {**upsert("x", 1), **into}, {**upsert("x", 2), **into}]
    unnamed = await send(steps, *operations, txn_id=key)
    assert unnamed.status_code == 400 and "snapshot" in unnamed.json()["detail"], unnamed.text
    snapshot = (await steps.get("/snapshots", headers={"X-Consistency-Level": "strong"})).json()["snapshot"]
    first = await send(steps, *operations, txn_id=key, snapshot=snapshot)
    assert first.status_code == 200, first.text
    assert (await send(steps, *operations, txn_id=key, snapshot=snapshot)).json() == first.json()
    await steps.delete("/collections/made-once")
