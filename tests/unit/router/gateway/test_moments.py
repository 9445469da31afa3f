"""Snapshots, transactions and session tokens over REST: what each accepts, and what each refuses."""

from __future__ import annotations

import base64
import time
from datetime import UTC, datetime
from typing import Any

import httpx
import pytest

from vecraft_data_model.hlc import timestamp, timestamp_of
from vecraft_data_model.validation import new_txn_id
from vecraft_db.client.engine import Engine

FUTURE = timestamp(2**46)


def code(answer: httpx.Response) -> tuple[int, str]:
    return answer.status_code, answer.json()["code"]


async def now(api: httpx.AsyncClient) -> int:
    return int((await api.get("/snapshots")).json()["snapshot"])


async def test_a_snapshot_far_in_the_future_is_refused_wherever_it_is_named(unharmed: httpx.AsyncClient) -> None:
    header = {"X-Vecraft-Snapshot": str(FUTURE)}
    delete = {"operations": [{"op": "delete", "collection": "c", "ids": ["r01"]}]}
    for answer in (
        await unharmed.post("/snapshots", json={"as_of": FUTURE}),
        await unharmed.post("/snapshots", json={}, headers=header),
        await unharmed.get("/snapshots", headers=header),
        await unharmed.get("/collections", headers=header),
        await unharmed.get("/collections/c", headers=header),
        await unharmed.get("/collections/c/records/r01", headers=header),
        await unharmed.post("/transactions", json={**delete, "snapshot": FUTURE}),
        await unharmed.post("/transactions", json=delete, headers=header),
    ):
        assert code(answer) == (400, "invalid_argument"), answer.text
    pinned = await unharmed.post("/snapshots", json={})
    assert pinned.status_code == 201
    assert pinned.json()["snapshot"] < FUTURE


@pytest.mark.parametrize("text", ["-1", "1.5", "x", "", "9" * 19, "9" * 30, "+5", " 5", "٣"])
async def test_a_snapshot_that_is_none_is_refused(unharmed: httpx.AsyncClient, text: str) -> None:
    answer = await unharmed.get("/collections", headers={"X-Vecraft-Snapshot": text.encode("utf-8")})  # type: ignore[dict-item]
    assert code(answer) == (400, "invalid_argument")


async def test_a_snapshot_may_be_asked_for_by_a_datetime(unharmed: httpx.AsyncClient) -> None:
    before = datetime.now(UTC)
    for moment in (before.isoformat(), before.replace(tzinfo=None).isoformat()):
        pinned = await unharmed.post("/snapshots", json={"as_of": moment})
        assert (pinned.status_code, pinned.json()["snapshot"]) == (201, timestamp_of(before)), pinned.text
    for bad in ("yesterday", "2025-02-30", "", "2999-01-01T00:00:00Z"):
        assert code(await unharmed.post("/snapshots", json={"as_of": bad})) == (400, "invalid_argument")


async def test_no_body_is_an_empty_object_where_no_key_is_needed(unharmed: httpx.AsyncClient) -> None:
    assert (await unharmed.post("/snapshots")).status_code == 201
    for route in ("count", "scan"):
        empty = await unharmed.post(f"/collections/c/{route}", json={})
        assert (await unharmed.post(f"/collections/c/{route}")).status_code == empty.status_code == 200
    for route in ("search", "insert", "upsert", "get", "delete"):
        assert code(await unharmed.post(f"/collections/c/{route}")) == (422, "malformed_body")


async def test_reads_may_name_their_snapshot_in_the_header(unharmed: httpx.AsyncClient) -> None:
    await unharmed.post("/collections/moments/create", json={"dim": 1})
    await unharmed.post("/collections/moments/upsert", json={"ids": ["a"], "vectors": [[1]]})
    snapshot = await now(unharmed)
    write = {
        "operations": [{"op": "upsert", "collection": "moments", "ids": ["b"], "vectors": [[1]]}],
        "isolation": "serializable",
        "reads": [["moments", "a"]],
    }
    header = {"X-Vecraft-Snapshot": str(snapshot)}
    assert (await unharmed.post("/transactions", json=write, headers=header)).status_code == 200
    await unharmed.post("/collections/moments/upsert", json={"ids": ["a"], "vectors": [[2]]})
    write["operations"] = [{"op": "upsert", "collection": "moments", "ids": ["d"], "vectors": [[1]]}]
    late = await unharmed.post("/transactions", json=write, headers=header)
    assert code(late) == (409, "read_write_conflict")
    assert code(await unharmed.post("/transactions", json=write)) == (400, "invalid_argument")
    both = await unharmed.post("/transactions", json={**write, "snapshot": snapshot - 1}, headers=header)
    assert code(both) == (400, "invalid_argument")
    await unharmed.delete("/collections/moments")


async def test_a_catalog_is_changed_and_filled_in_one_transaction(unharmed: httpx.AsyncClient) -> None:
    operations: list[dict[str, Any]] = [
        {"op": "create_collection", "schema": {"name": "made", "dim": 1}},
        {"op": "upsert", "collection": "made", "ids": ["a", "b"], "vectors": [[1], [2]]},
        {"op": "set_alias", "alias": "made-alias", "collection": "made"},
        {"op": "upsert", "collection": "made-alias", "ids": ["d"], "vectors": [[3]]},
    ]
    key = {"Idempotency-Key": new_txn_id()}
    done = await unharmed.post("/transactions", json={"operations": operations}, headers=key)
    assert done.status_code == 200, done.text
    assert done.json()["count"] == 3
    again = await unharmed.post("/transactions", json={"operations": operations}, headers=key)
    assert again.json() == done.json()
    assert (await unharmed.post("/collections/made-alias/count", json={})).json() == {"count": 3}
    token = {"X-Session-Token": done.headers["x-session-token"]}
    assert (await unharmed.get("/aliases", headers=token)).json()["made-alias"] == "made"
    snapshot = await now(unharmed)
    await unharmed.post("/collections/made/upsert", json={"ids": ["late"], "vectors": [[1]]})
    drop = [{"op": "drop_alias", "alias": "made-alias"}, {"op": "drop_collection", "collection": "made"}]
    hidden = await unharmed.post("/transactions", json={"operations": drop, "snapshot": snapshot})
    assert code(hidden) == (409, "write_conflict")
    assert (await unharmed.post("/transactions", json={"operations": drop})).status_code == 200


async def test_an_id_names_one_transaction_whoever_uses_it(unharmed: httpx.AsyncClient) -> None:
    await unharmed.post("/collections/ids/create", json={"dim": 1})
    txn_id = new_txn_id()
    first = {"operations": [{"op": "upsert", "collection": "ids", "ids": ["a"], "vectors": [[1]]}]}
    done = await unharmed.post("/transactions", json=first, headers={"Idempotency-Key": txn_id})
    assert done.json()["txn_id"] == txn_id
    for route, body in (
        ("/transactions", {"operations": [{"op": "delete", "collection": "ids", "ids": ["a"]}]}),
        ("/collections/ids/delete", {"ids": ["a"]}),
        ("/collections/ids/insert", {"packet": {"record_id": "a", "vector": [2]}}),
        ("/collections/ids/delete", {"where": {"x": 1}}),
    ):
        other = await unharmed.post(route, json=body, headers={"Idempotency-Key": txn_id})
        assert code(other) == (400, "invalid_argument"), route
        assert txn_id in other.json()["detail"]
    assert (await unharmed.post("/collections/ids/count", json={})).json() == {"count": 1}
    await unharmed.delete("/collections/ids")


async def test_staleness_goes_with_its_level(unharmed: httpx.AsyncClient) -> None:
    async def count(**headers: str) -> httpx.Response:
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        return await unharmed.post("/collections/c/count", json={}, headers=named)

    for level in ("session", "strong", "eventual"):
        assert (await count(X_Consistency_Level=level)).status_code == 200
    assert (await count(X_Consistency_Level="bounded", X_Max_Staleness_Ms="0")).status_code == 200
    for headers in (
        {"X_Consistency_Level": "bounded"},
        {"X_Max_Staleness_Ms": "5"},
        {"X_Consistency_Level": "strong", "X_Max_Staleness_Ms": "5"},
        {"X_Consistency_Level": "bounded", "X_Max_Staleness_Ms": "-1"},
        {"X_Consistency_Level": "bounded", "X_Max_Staleness_Ms": "1e3"},
        {"X_Consistency_Level": "bounded", "X_Max_Staleness_Ms": str(8 * 24 * 3600 * 1000)},
        {"X_Consistency_Level": "Strong"},
        {"X_Consistency_Level": ""},
    ):
        assert code(await count(**headers)) == (400, "invalid_argument"), headers


async def test_a_write_comes_after_what_its_client_has_seen(unharmed: httpx.AsyncClient, engine: Engine) -> None:
    """Through another gateway perhaps, whose clock was ahead of this one's."""
    await unharmed.post("/collections/after/create", json={"dim": 1})
    seen = timestamp(int(time.time() * 1000) + 300)
    body = {"ids": ["a"], "vectors": [[1]]}
    token = {"X-Session-Token": engine.tokens.issue(seen)}
    done = await unharmed.post("/collections/after/upsert", json=body, headers=token)
    assert done.json()["commit_ts"] > seen
    far = {"X-Session-Token": engine.tokens.issue(FUTURE)}
    assert (await unharmed.post("/collections/after/upsert", json=body, headers=far)).json()["commit_ts"] < FUTURE
    await unharmed.delete("/collections/after")


async def test_a_collection_of_another_shape_is_not_taken_for_the_one_wanted(unharmed: httpx.AsyncClient) -> None:
    wanted = {"dim": 4, "metric": "l2", "if_not_exists": True}
    present = await unharmed.post("/collections/c/create", json=wanted)
    assert (present.status_code, present.json()["dim"]) == (200, 4)
    for other in ({"dim": 5}, {"metric": "ip"}, {"vector_type": "float16"}):
        answer = await unharmed.post("/collections/c/create", json={**wanted, **other})
        assert code(answer) == (409, "collection_exists"), other


async def test_58_snapshots_out_of_reach(unharmed: httpx.AsyncClient) -> None:
    future = str(timestamp(2**46))
    for path, body in (
        ("get", {"ids": ["r01"]}),
        ("count", {}),
        ("scan", {}),
        ("search", {"query": {"query_vector": [1, 2, 3, 4]}}),
    ):
        answer = await unharmed.post(f"/collections/c/{path}", json=body, headers={"X-Vecraft-Snapshot": future})
        assert 400 <= answer.status_code < 500, answer.text
        past = await unharmed.post(f"/collections/c/{path}", json=body, headers={"X-Vecraft-Snapshot": "1"})
        assert past.status_code in (404, 410), past.text
    write = {"operations": [{"op": "delete", "collection": "c", "ids": ["r01"]}], "snapshot": int(future)}
    answer = await unharmed.post("/transactions", json=write)
    assert 400 <= answer.status_code < 500, answer.text
    answer = await unharmed.post("/transactions", json={**write, "snapshot": 1})
    assert answer.status_code in (404, 409, 410), answer.text


async def test_59_session_tokens(unharmed: httpx.AsyncClient) -> None:
    token = (await unharmed.get("/collections")).headers["x-session-token"]
    assert (await unharmed.get("/collections", headers={"X-Session-Token": token})).status_code == 200
    data = bytearray(base64.urlsafe_b64decode(token + "=" * (-len(token) % 4)))
    for position in range(len(data) * 8):
        data[position // 8] ^= 1 << position % 8
        forged = base64.urlsafe_b64encode(data).decode().rstrip("=")
        data[position // 8] ^= 1 << position % 8
        answer = await unharmed.get("/collections", headers={"X-Session-Token": forged})
        assert code(answer) == (401, "unauthenticated")
    for bad in ("", "x", token[:-1], token + "A", "e" * 10_000):
        answer = await unharmed.get("/collections", headers={"X-Session-Token": bad})
        assert code(answer) == (401, "unauthenticated")
