"""The routes of the interface, in the JSON that people write by hand."""

from __future__ import annotations

import asyncio
import base64
from collections.abc import AsyncIterator
from typing import Any

import httpx
import numpy as np
import pytest
from fastapi import FastAPI

from vecraft_data_model import DataPacket
from vecraft_data_model.convert import put_of_columns
from vecraft_router.gateway.columns import pack_payloads, rows_from_columns, unpack_payloads
from vecraft_router.gateway.vectors import to_base64


@pytest.fixture
async def books(api: httpx.AsyncClient) -> AsyncIterator[str]:
    """The URL of a fresh collection of three records."""
    made = await api.post("/collections/books/create", json={"dim": 2, "metric": "l2"})
    assert made.status_code == 201 and made.headers["location"] == "/collections/books"
    packets = [
        {"record_id": "a", "vector": [0, 0], "metadata": {"year": 1900}, "document": "a red book"},
        {"record_id": "b", "vector": [1, 0], "metadata": {"year": 1950}, "document": "a blue book"},
        {"record_id": "c", "vector": [5, 5], "metadata": None, "document": {"title": "JSON"}},
    ]
    done = (await api.post("/collections/books/upsert", json={"packets": packets})).json()
    assert done["count"] == 3 and done["commit_ts"] > 0 and done["txn_id"]
    yield "/collections/books"
    await api.delete("/collections/books")


async def test_create_list_describe_drop(api: httpx.AsyncClient) -> None:
    body = {"dim": 8, "metric": "ip", "vector_type": "float", "M": 8}
    made = await api.post("/collections/x.1/create", json=body)
    assert made.status_code == 201
    assert made.json()["vector_type"] == "float32" and made.json()["name"] == "x.1"
    again = await api.post("/collections/x.1/create", json=body)
    assert (again.status_code, again.json()["code"]) == (409, "collection_exists")
    tolerant = await api.post("/collections/x.1/create", json={**body, "if_not_exists": True})
    assert (tolerant.status_code, tolerant.json()) == (200, made.json())
    assert made.json() in (await api.get("/collections")).json()
    assert (await api.get("/collections/x.1")).json()["count"] == 0
    other = await api.post("/collections/x.1/create", json={"name": "y", "dim": 8})
    assert other.status_code == 400
    assert (await api.patch("/collections/x.1", json={"changes": {"target_recall": 0.9}})).status_code == 200
    assert (await api.get("/collections/x.1")).json()["schema"]["target_recall"] == 0.9
    assert (await api.put("/collections/x.1/ef", json={"ef": 77})).json() == {"ef": 77}
    assert (await api.get("/collections/x.1")).json()["ef"] == 77
    assert (await api.delete("/collections/x.1")).status_code == 200
    gone = await api.get("/collections/x.1")
    assert (gone.status_code, gone.json()["code"]) == (404, "collection_not_found")


async def test_insert_answers_with_what_it_replaced(api: httpx.AsyncClient, books: str) -> None:
    fresh = await api.post(f"{books}/insert", json={"packet": {"record_id": "d", "vector": [1, 1]}})
    assert fresh.status_code == 200 and fresh.json() is None
    replaced = await api.post(f"{books}/insert", json={"packet": {"record_id": "a", "vector": [9, 9]}})
    old = replaced.json()
    assert (old["record_id"], old["vector"], old["metadata"], old["document"]) == (
        "a",
        [0, 0],
        {"year": 1900},
        "a red book",
    )
    assert DataPacket.from_dict(old).validate_checksum()
    new = (await api.get(f"{books}/records/a")).json()
    assert new["vector"] == [9, 9] and new["metadata"] is None
    assert str(new["commit_ts"]) == replaced.headers["x-vecraft-commit-ts"]
    # what comes out goes in again, checksum and all
    assert (await api.post(f"{books}/insert", json={"packet": old})).status_code == 200
    assert (await api.get(f"{books}/records/a")).json()["checksum"] == old["checksum"]


async def test_expectations(api: httpx.AsyncClient, books: str) -> None:
    packet = {"record_id": "a", "vector": [1, 1]}
    refused = await api.post(f"{books}/insert", json={"packet": packet, "expect": "absent"})
    assert (refused.status_code, refused.json()["code"]) == (409, "precondition_failed")
    ts = (await api.get(f"{books}/records/a")).json()["commit_ts"]
    assert (await api.post(f"{books}/insert", json={"packet": packet, "expect": ts})).status_code == 200
    assert (await api.post(f"{books}/insert", json={"packet": packet, "expect": ts})).status_code == 409
    assert (await api.post(f"{books}/delete", json={"ids": ["zz"], "expect": "present"})).status_code == 409


async def test_search_forms(api: httpx.AsyncClient, books: str) -> None:
    query: dict[str, Any] = {"query_vector": [0, 0], "k": 2}
    hits = (await api.post(f"{books}/search", json={"query": query})).json()
    assert hits == [
        {"record_id": "a", "distance": 0, "metadata": {"year": 1900}, "document": "a red book"},
        {"record_id": "b", "distance": 1, "metadata": {"year": 1950}, "document": "a blue book"},
    ]
    encoded = {"b64": base64.b64encode(np.zeros(2, dtype="<f8").tobytes()).decode(), "dtype": "float64", "shape": [2]}
    assert (await api.post(f"{books}/search", json={"query": {**query, "query_vector": encoded}})).json() == hits
    filtered = {
        **query,
        "where": {"year": {"$gt": 1900}},
        "where_document": {"$contains": "blue"},
        "include": ["vector"],
    }
    answer = await api.post(f"{books}/search", json={"query": filtered})
    assert answer.json() == [{"record_id": "b", "distance": 1, "vector": [1, 0]}]
    answer = await api.post(f"{books}/search", json={"query": filtered}, headers={"X-Vector-Encoding": "base64"})
    assert answer.json()[0]["vector"] == to_base64(np.array([1, 0], dtype=np.float32))
    near = {**query, "k": 10, "max_distance": 0.5, "exact": True, "ef": 50}
    assert [hit["record_id"] for hit in (await api.post(f"{books}/search", json={"query": near})).json()] == ["a"]
    many = (await api.post(f"{books}/search_many", json={"queries": [[0, 0], [5, 5]], "k": 1, "include": []})).json()
    assert many == [[{"record_id": "a", "distance": 0}], [{"record_id": "c", "distance": 0}]]
    explained = (await api.post(f"{books}/search_many", json={"queries": [[0, 0]], "explain": True})).json()
    assert set(explained) == {"results", "explain"} and explained["explain"]


async def test_search_by_text_and_by_group(api: httpx.AsyncClient, books: str) -> None:
    by_text = (await api.post(f"{books}/search", json={"query": {"query_text": "red book", "include": []}})).json()
    assert [(hit["record_id"], hit["distance"]) for hit in by_text] == [("a", None), ("b", None)]
    assert by_text[0]["score"] > by_text[1]["score"] > 0
    both = {"query_vector": [1, 0], "query_text": "red", "fusion": {"vector": 0, "text": 1}, "include": []}
    hits = (await api.post(f"{books}/search", json={"query": both})).json()
    assert (hits[0]["record_id"], hits[0]["distance"]) == ("a", 1)
    many = {"query_text": "red book", "include": []}
    assert (await api.post(f"{books}/search_many", json=many)).json() == [by_text]
    asked = {"query": {"query_text": "red", "include": []}, "explain": True}
    explained = (await api.post(f"{books}/search", json=asked)).json()
    assert [hit["record_id"] for hit in explained["results"]] == ["a"] and explained["explain"]
    grouped = {"query_vector": [0, 0], "group_by": "year", "include": ["metadata"]}
    hits = (await api.post(f"{books}/search", json={"query": grouped})).json()
    assert [hit["metadata"]["year"] for hit in hits] == [1900, 1950]
    apart = {"query_text": "blue", "queries": [[0, 0]], "fusion": None, "format": "columns"}
    answer = (await api.post(f"{books}/search_many", json=apart)).json()
    assert [hits["ids"] for hits in answer["hits"]] == [["a", "b", "c"], ["b"]]
    assert answer["statistics"] == {"documents": 2, "words": 6, "frequencies": [1]}


async def test_get_count_scan_delete(api: httpx.AsyncClient, books: str) -> None:
    some = (await api.post(f"{books}/get", json={"ids": ["c", "zz", "a", "c"], "include": ["document"]})).json()
    assert [record and record["record_id"] for record in some] == ["c", None, "a", "c"]
    assert some[0]["document"] == {"title": "JSON"} and "vector" not in some[0] and "metadata" not in some[0]
    assert (await api.post(f"{books}/get", json={"record_id": "a"})).json()["vector"] == [0, 0]
    missing = await api.post(f"{books}/get", json={"record_id": "zz"})
    assert (missing.status_code, missing.json()["code"]) == (404, "record_not_found")
    assert (await api.post(f"{books}/count", json={"where": {"year": {"$exists": True}}})).json() == {"count": 2}
    first = (await api.post(f"{books}/scan", json={"limit": 2})).json()
    assert [record["record_id"] for record in first["records"]] == ["a", "b"]
    assert (await api.delete(f"{books}/records/c")).json()["record_id"] == "c"
    rest = (await api.post(f"{books}/scan", json={"cursor": first["cursor"]})).json()
    assert [record["record_id"] for record in rest["records"]] == ["c"] and rest["cursor"] is None  # same snapshot
    assert (await api.delete(f"{books}/records/c")).json() is None
    assert (await api.post(f"{books}/delete", json={"record_id": "b"})).json()["record_id"] == "b"
    assert (await api.post(f"{books}/delete", json={"where": {"year": 1900}})).json()["count"] == 1
    assert (await api.post(f"{books}/delete", json={"ids": ["a", "b"]})).json()["count"] == 0
    both = await api.post(f"{books}/delete", json={"ids": ["a"], "where": {}})
    assert both.status_code == 400


async def test_transactions_and_snapshots(api: httpx.AsyncClient, books: str) -> None:
    snapshot = (await api.get("/snapshots")).json()["snapshot"]
    operations = [
        {"op": "insert", "collection": "books", "packet": {"record_id": "d", "vector": [2, 2]}},
        {"op": "delete", "collection": "books", "record_id": "a"},
        {"op": "create_collection", "collection": "more", "schema": {"dim": 3}},
        {"op": "set_alias", "alias": "shelf", "collection": "books"},
    ]
    done = await api.post("/transactions", json={"operations": operations, "snapshot": snapshot, "preimages": True})
    assert done.status_code == 200, done.text
    assert [record["record_id"] for record in done.json()["preimages"]] == ["a"]
    assert (await api.post("/collections/shelf/count", json={})).json() == {"count": 3}
    then = {"X-Vecraft-Snapshot": str(snapshot)}
    before = await api.get(f"{books}/records/a", headers=then)
    assert before.status_code == 200 and before.headers["x-vecraft-snapshot"] == str(snapshot)
    assert (await api.get(f"{books}/records/d", headers=then)).status_code == 404

    late = {"operations": [{"op": "delete", "collection": "books", "ids": ["d"]}], "snapshot": snapshot}
    conflict = await api.post("/transactions", json=late)
    assert (conflict.status_code, conflict.json()["code"]) == (409, "write_conflict")
    reads = {
        "operations": [{"op": "delete", "collection": "books", "ids": ["b"]}],
        "snapshot": snapshot, "isolation": "serializable", "reads": [["books", "a"]],
    }  # fmt: skip
    conflict = await api.post("/transactions", json=reads)
    assert (conflict.status_code, conflict.json()["code"]) == (409, "read_write_conflict")
    named = {**reads, "reads": [{"collection": "books", "record_id": "a"}]}
    assert (await api.post("/transactions", json=named)).json()["code"] == "read_write_conflict"
    for bad in ("a", ["books"], {"collection": "books"}, {"collection": "books", "record_id": "a", "x": 1}, None):
        refused = await api.post("/transactions", json={**reads, "reads": [bad]})
        assert refused.status_code == 400 and "reads[0]" in refused.json()["detail"]
    skewed = await api.post("/transactions", json={**reads, "isolation": "snapshot"})  # read, not written
    assert (skewed.status_code, skewed.json()["count"]) == (200, 1)
    assert (await api.post("/transactions", json={"operations": []})).status_code == 400
    wrong = await api.post(
        "/transactions", json={"operations": [{"op": "delete", "collection": "books", "packets": []}]}
    )
    assert wrong.status_code == 400 and "'packets'" in wrong.json()["detail"]
    drops = [{"op": "drop_alias", "alias": "shelf"}, {"op": "drop_collection", "collection": "more"}]
    assert (await api.post("/transactions", json={"operations": drops})).status_code == 200


async def test_pins(api: httpx.AsyncClient, books: str) -> None:
    pinned = await api.post("/snapshots", json={"ttl_ms": 5000})
    assert pinned.status_code == 201
    ts = pinned.json()["snapshot"]
    assert pinned.json()["pin_id"] == f"snapshot-{ts}"
    own = await api.post("/snapshots", json={"as_of": ts, "pin_id": "mine"})
    assert own.json() == {"snapshot": ts, "pin_id": "mine", "ttl_ms": 60000}
    assert (await api.delete(f"/snapshots/{ts}")).json() == {"snapshot": ts, "pin_id": f"snapshot-{ts}"}
    assert (await api.delete(f"/snapshots/{ts}", params={"pin_id": "mine"})).json()["pin_id"] == "mine"
    for bad in ("0", "-1", "x", str(2**64)):
        assert (await api.delete(f"/snapshots/{bad}")).status_code == 400
    assert (await api.post("/snapshots", json={"ttl_ms": 0})).status_code == 400


async def test_aliases(api: httpx.AsyncClient, books: str) -> None:
    assert (await api.put("/aliases/latest", json={"collection": "books"})).status_code == 200
    assert (await api.get("/aliases")).json() == {"latest": "books"}
    assert (await api.get("/collections/latest/records/a")).json()["record_id"] == "a"
    assert (await api.delete("/aliases/latest")).status_code == 200
    assert (await api.get("/collections/latest/records/a")).status_code == 404
    assert (await api.put("/aliases/latest", json={"collection": "nowhere"})).status_code == 404


async def test_retries_with_an_idempotency_key(api: httpx.AsyncClient, books: str) -> None:
    body = {"ids": ["x"], "vectors": [[1, 2]]}
    key = {"Idempotency-Key": "retry-1"}
    first = (await api.post(f"{books}/upsert", json=body, headers=key)).json()
    await api.delete(f"{books}/records/x")
    again = (await api.post(f"{books}/upsert", json=body, headers=key)).json()
    assert first == again and first["txn_id"] == "retry-1"
    assert (await api.get(f"{books}/records/x")).status_code == 404  # it was not carried out again


async def test_consistency_levels_and_sessions(api: httpx.AsyncClient, books: str) -> None:
    for headers in ({"X-Consistency-Level": "strong"}, {"X-Consistency-Level": "eventual"}, {}):
        assert (await api.get("/collections", headers=headers)).status_code == 200
    bounded = {"X-Consistency-Level": "bounded", "X-Max-Staleness-Ms": "60000"}
    stale = await api.get(f"{books}/records/a", headers=bounded)
    assert stale.status_code in (200, 404)
    done = await api.post(f"{books}/insert", json={"packet": {"record_id": "s", "vector": [1, 1]}})
    token = {"X-Session-Token": done.headers["x-session-token"]}
    read = await api.get(f"{books}/records/s", headers=token)
    assert read.status_code == 200
    assert int(read.headers["x-vecraft-snapshot"]) >= int(done.headers["x-vecraft-commit-ts"])


async def test_columns_carry_payloads_end_to_end(api: httpx.AsyncClient, books: str) -> None:
    put = put_of_columns("books", ["p", "q"], np.eye(2, dtype=np.float32), [{"n": 1}, None], ["x", {"y": 1}])
    body = {"ids": put.ids, "vectors": to_base64(put.vectors), "payloads": pack_payloads(put.payloads)}
    assert (await api.post(f"{books}/upsert", json=body)).json()["count"] == 2
    data = (await api.post(f"{books}/get", json={"ids": ["p", "q"], "format": "columns"})).json()
    rows = rows_from_columns(data["rows"])
    assert rows.payloads == put.payloads and np.array_equal(rows.vectors, put.vectors)  # type: ignore[arg-type]

    flipped = bytearray(put.payloads[0])
    flipped[-1] ^= 1
    swapped = [put.payloads[1], put.payloads[0]]
    for bad, code in (
        ([bytes(flipped), put.payloads[1]], "checksum_mismatch"),
        (swapped, "invalid_argument"),
        ([put.payloads[0][:-1], put.payloads[1]], "invalid_argument"),
        ([b"x" * 80, put.payloads[1]], "invalid_argument"),
        ([put.payloads[0]], "invalid_argument"),
    ):
        refused = await api.post(f"{books}/upsert", json={**body, "payloads": pack_payloads(bad)})
        assert (refused.status_code, refused.json()["code"]) == (400, code)
    other_vector = {**body, "vectors": to_base64(np.ones((2, 2), dtype=np.float32))}
    refused = await api.post(f"{books}/upsert", json=other_vector)
    assert (refused.status_code, refused.json()["code"]) == (400, "checksum_mismatch")
    assert unpack_payloads(pack_payloads(put.payloads)) == put.payloads


async def test_cluster_checkpoint_and_documentation(api: httpx.AsyncClient, books: str) -> None:
    for _ in range(100):
        cluster = (await api.get("/cluster")).json()
        if sum(shard["collections"]["books"] for shard in cluster["shards"]) == 3:
            break
        # A participant hears of a commit a moment after the writer: reads wait for that, figures do not.
        await asyncio.sleep(0.02)
    assert [shard["status"] for shard in cluster["shards"]] == ["up", "up"]
    assert sum(shard["slots"] for shard in cluster["shards"]) == 1024
    assert sum(shard["collections"]["books"] for shard in cluster["shards"]) == 3
    assert (await api.post("/admin/checkpoint", json={"compact": True})).status_code == 200
    assert (await api.post("/admin/checkpoint")).status_code == 200
    assert "text/html" in (await api.get("/docs")).headers["content-type"]
    document = (await api.get("/openapi.json")).json()
    search = document["paths"]["/collections/{c}/search"]["post"]
    reference = search["requestBody"]["content"]["application/json"]["schema"]["$ref"]
    assert reference.rsplit("/", 1)[1] in document["components"]["schemas"]
    assert {"/transactions", "/snapshots", "/aliases/{a}", "/readyz", "/metrics"} <= set(document["paths"])


async def test_plots(api: httpx.AsyncClient, books: str) -> None:
    refused = await api.get(f"{books}/tsne.png", params={"record_ids": ["a"]})
    assert (refused.status_code, refused.json()["code"]) == (400, "invalid_argument")
    for bad in ({"perplexity": "-1"}, {"random_state": "x"}, {"colour": "red"}, {"perplexity": "nan"}):
        assert (await api.get(f"{books}/tsne.png", params=bad)).status_code == 400
    assert (await api.get("/collections/none/tsne.png")).status_code == 404


async def test_keys(engine: Any) -> None:
    from vecraft_db.config import Settings
    from vecraft_db.server import gateway_app

    app: FastAPI = gateway_app(engine, Settings.load({}), ["s3cret", "other-KEY"])
    jwt = "eyJhbGciOiJub25lIn0.eyJzdWIiOiJhZG1pbiJ9."
    transport = httpx.ASGITransport(app)
    async with httpx.AsyncClient(transport=transport, base_url="http://gateway") as api:
        for good in (
            {"Authorization": "Bearer s3cret"},
            {"X-Api-Key": "other-KEY"},
            {"Authorization": "bearer s3cret"},
        ):
            assert (await api.get("/collections", headers=good)).status_code == 200
        for bad in (
            {}, {"X-Api-Key": "S3CRET"}, {"X-Api-Key": "s3cret "}, {"X-Api-Key": "s3"}, {"X-Api-Key": ""},
            {"Authorization": "Bearer  s3cret"}, {"Authorization": "Basic s3cret"}, {"Authorization": "s3cret"},
            {"Authorization": f"Bearer {jwt}"}, {"X-Api-Key": "s3cret,other-KEY"},
        ):  # fmt: skip
            answer = await api.get("/collections", headers=bad)
            assert (answer.status_code, answer.json()["code"]) == (401, "unauthenticated"), bad
            assert answer.headers["www-authenticate"].startswith("Bearer") and "s3cret" not in answer.text
            assert (await api.post("/nope", headers=bad)).status_code == 401
        for open_path in ("/healthz", "/readyz", "/docs"):
            assert (await api.get(open_path)).status_code == 200
        assert (await api.get("/metrics")).status_code == 401
