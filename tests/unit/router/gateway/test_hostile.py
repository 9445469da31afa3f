"""Hostile inputs through REST: each is refused as documented, by name, and harms nothing that comes after it.

Bodies are written as text, because much of this cannot be said in a language's own values.
"""

from __future__ import annotations

import base64
import json
import struct
from typing import Any

import httpx
import pytest

from vecraft_data_model.search_options import QUERIES_MAX

pytestmark = pytest.mark.filterwarnings("error")

WRITES = {
    "insert": ("/collections/{c}/insert", '{"packet":{"record_id":"h","vector":%s}}'),
    "packets": ("/collections/{c}/upsert", '{"packets":[{"record_id":"h","vector":%s}]}'),
    "columns": ("/collections/{c}/upsert", '{"ids":["h"],"vectors":[%s]}'),
    "transaction": ("/transactions", '{"operations":[{"op":"upsert","collection":"{c}","ids":["h"],"vectors":[%s]}]}'),
}
READS = {
    "search": ("/collections/{c}/search", '{"query":{"query_vector":%s}}'),
    "search_many": ("/collections/{c}/search_many", '{"queries":[%s]}'),
}
EVERYWHERE = WRITES | READS


async def post(api: httpx.AsyncClient, path: str, body: str | bytes, **headers: str) -> httpx.Response:
    return await api.post(path, content=body, headers={"Content-Type": "application/json", **headers})


async def post_vector(api: httpx.AsyncClient, route: str, vector: str, collection: str = "c") -> httpx.Response:
    path, body = EVERYWHERE[route]
    return await post(api, path.replace("{c}", collection), fill(body.replace("{c}", collection), vector))


def refused(answer: httpx.Response, status: int, code: str, *names: str) -> None:
    problem = answer.json()
    assert (answer.status_code, problem["code"]) == (status, code), problem
    assert answer.headers["content-type"] == "application/problem+json"
    assert problem["status"] == status and problem["request_id"] == answer.headers["x-request-id"]
    for name in names:
        assert name in problem["detail"], problem["detail"]
    assert "Traceback" not in answer.text and ".py" not in answer.text and len(answer.content) < 20_000


def fill(template: str, value: str) -> str:
    """Return a body with ``%s`` filled in; JSON is too full of braces and percent signs for formatting."""
    return template.replace("%s", value)


def b64(*numbers: float, form: str = "f") -> str:
    return base64.b64encode(struct.pack(f"<{len(numbers)}{form}", *numbers)).decode()


NAN, INF = float("nan"), float("inf")
VECTORS = [
    pytest.param("[NaN,0,0,0]", 422, "malformed_body", "NaN", id="1 NaN"),
    pytest.param(fill('{"b64":"%s"}', b64(NAN, 0, 0, 0)), 400, "invalid_argument", "nan", id="1 NaN in base64"),
    pytest.param("[Infinity,0,0,0]", 422, "malformed_body", "Infinity", id="2 +inf"),
    pytest.param(fill('{"b64":"%s"}', b64(0, INF, 0, 0)), 400, "invalid_argument", "inf", id="2 +inf in base64"),
    pytest.param(fill('{"b64":"%s"}', b64(0, -INF, 0, 0)), 400, "invalid_argument", "-inf", id="3 -inf in base64"),
    pytest.param("[1e400,0,0,0]", 400, "invalid_argument", "inf", id="4 1e400"),
    pytest.param("[1e39,0,0,0]", 400, "invalid_argument", "finite", id="4 beyond float32"),
    pytest.param("[3e38,3e38,3e38,3e38]", 400, "invalid_argument", "norm", id="5 the norm overflows"),
    pytest.param("[]", 400, "null_or_zero_vector", "empty", id="8 empty"),
    pytest.param('{"b64":""}', 400, "null_or_zero_vector", "empty", id="8 empty in base64"),
    pytest.param("[1,2,3]", 400, "dimension_mismatch", "3", id="9 dim - 1"),
    pytest.param("[1,2,3,4,5]", 400, "dimension_mismatch", "5", id="10 dim + 1"),
    pytest.param("[[1,2,3,4]]", 400, "invalid_argument", "a list", id="11 nested"),
    pytest.param('["1","2","3","4"]', 400, "invalid_argument", "a string", id="12 strings"),
    pytest.param('"1234"', 400, "invalid_argument", "a string", id="12 a string"),
    pytest.param("[null,null,null,null]", 400, "invalid_argument", "null", id="13 nulls"),
    pytest.param("[1,true,0,0]", 400, "invalid_argument", "boolean", id="14 a boolean among numbers"),
    pytest.param("[" + "0," * 999_999 + "1]", 400, "dimension_mismatch", "1000000", id="15 a million dimensions"),
    pytest.param('{"b64":"!!!!"}', 400, "invalid_argument", "base64", id="16 bad base64"),
    pytest.param('{"b64":"AAAA"}', 400, "invalid_argument", "3 bytes", id="16 wrong length"),
    pytest.param('{"b64":"AAAA","dtype":"object"}', 400, "invalid_argument", "object", id="16 object dtype"),
    pytest.param('{"b64":"AAAA","dtype":["float32"]}', 400, "invalid_argument", "dtype", id="16 dtype of no string"),
    pytest.param(
        fill('{"b64":"%s","shape":[5]}', b64(1, 2, 3, 4)), 400, "invalid_argument", "shape", id="16 wrong shape"
    ),
    pytest.param(
        fill('{"b64":"%s","shape":[-4]}', b64(1, 2, 3, 4)), 400, "invalid_argument", "shape", id="16 negative shape"
    ),
    pytest.param(
        fill('{"b64":"%s","shape":[2,2]}', b64(1, 2, 3, 4)), 400, "invalid_argument", "shape", id="16 a matrix"
    ),
    pytest.param(
        fill('{"b64":"%s","extra":1}', b64(1, 2, 3, 4)), 400, "invalid_argument", "extra", id="16 unknown key"
    ),
    pytest.param('{"b64":7}', 400, "invalid_argument", "b64", id="16 b64 of no string"),
    pytest.param("7", 400, "invalid_argument", "an integer", id="a number"),
    pytest.param("null", 400, "invalid_argument", "null", id="null"),
]


@pytest.mark.parametrize("route", EVERYWHERE)
@pytest.mark.parametrize(("vector", "status", "code", "named"), VECTORS)
async def test_vectors(
    unharmed: httpx.AsyncClient, route: str, vector: str, status: int, code: str, named: str
) -> None:
    refused(await post_vector(unharmed, route, vector), status, code, named)


@pytest.mark.parametrize("route", EVERYWHERE)
async def test_7_a_zero_vector_has_no_direction(unharmed: httpx.AsyncClient, route: str) -> None:
    refused(await post_vector(unharmed, route, "[0,0,0,0]", "cos"), 400, "null_or_zero_vector", "cosine")


async def test_6_denormals_are_fine(api: httpx.AsyncClient) -> None:
    await api.post("/collections/denormal/create", json={"dim": 4})
    for route in WRITES:
        assert (await post_vector(api, route, "[1e-40,0,0,0]", "denormal")).status_code == 200
    for route in READS:
        assert (await post_vector(api, route, "[1e-40,0,0,0]", "denormal")).status_code == 200
    await api.delete("/collections/denormal")


SEARCH = [
    ("17", {"k": 0}, "k"),
    ("18", {"k": -1}, "-1"),
    ("19", {"k": 10**9}, "1000000000"),
    ("20", {"k": 1.5}, "1.5"),
    ("21", {"k": "10"}, "'10'"),
    ("21 true", {"k": True}, "True"),
    ("22", {"ef": 0}, "ef"),
    ("23", {"ef": 10**9}, "1000000000"),
    ("exact", {"exact": 1}, "exact"),
    ("max_distance", {"max_distance": "far"}, "max_distance"),
    ("include", {"include": ["vectors"]}, "vectors"),
    ("include text", {"include": "metadata"}, "include"),
    ("text", {"query_text": 7}, "query_text"),
    ("text without words", {"query_text": "?!"}, "query_text"),
    ("fusion", {"query_text": "a", "fusion": "best"}, "fusion"),
    ("fusion of nothing", {"query_text": "a", "fusion": [0, 0]}, "fusion"),
    ("group_by", {"group_by": ["a"]}, "group_by"),
    ("group_size", {"group_by": "a", "group_size": 0}, "group_size"),
    ("group_size alone", {"group_size": 2}, "group_by"),
]


@pytest.mark.parametrize(
    "statistics",
    [
        {"documents": 1, "words": 1, "frequencies": []},
        {"documents": 1, "words": 1, "frequencies": [2]},
        {"documents": 3, "words": 2, "frequencies": [1]},
        {"documents": -1, "words": -1, "frequencies": [-1]},
    ],
)
async def test_statistics_that_cannot_be(unharmed: httpx.AsyncClient, statistics: dict[str, Any]) -> None:
    body = {"query_text": "thing", "fusion": None, "format": "columns", "statistics": statistics}
    refused(await unharmed.post("/collections/c/search_many", json=body), 400, "invalid_argument", "statistics")


async def test_a_text_goes_with_one_query(unharmed: httpx.AsyncClient) -> None:
    body = {"query_text": "thing", "queries": [[1, 2, 3, 4]] * 2}
    refused(await unharmed.post("/collections/c/search_many", json=body), 400, "invalid_argument", "one query")
    body = {"query_text": "thing", "max_distance": 1.0}
    refused(await unharmed.post("/collections/c/search_many", json=body), 400, "invalid_argument", "query_vector")


@pytest.mark.parametrize(("label", "argument", "named"), SEARCH, ids=[label for label, _, _ in SEARCH])
async def test_search_arguments(unharmed: httpx.AsyncClient, label: str, argument: dict[str, Any], named: str) -> None:
    one = await unharmed.post("/collections/c/search", json={"query": {"query_vector": [1, 2, 3, 4], **argument}})
    refused(one, 400, "invalid_argument", named)
    many = await unharmed.post("/collections/c/search_many", json={"queries": [[1, 2, 3, 4]], **argument})
    refused(many, 400, "invalid_argument", named)


async def test_19_more_than_there_are_is_all_there_are(api: httpx.AsyncClient) -> None:
    answer = await api.post("/collections/c/search", json={"query": {"query_vector": [1, 2, 3, 4], "k": 2**20}})
    assert len(answer.json()) == 20


@pytest.mark.parametrize("limit", [-1, 0, 10**9, 1.5, "10", None])
async def test_24_scan_limits(unharmed: httpx.AsyncClient, limit: object) -> None:
    refused(await unharmed.post("/collections/c/scan", json={"limit": limit}), 400, "invalid_argument", "limit")


async def test_25_cursors(unharmed: httpx.AsyncClient) -> None:
    page = (await unharmed.post("/collections/c/scan", json={"limit": 3})).json()
    cursor = page["cursor"]
    flipped = cursor[:-1] + ("A" if cursor[-1] != "A" else "B")
    for bad in (flipped, cursor[:-4], cursor[4:], "", "x" * 100_000, "ü", 7, ["a"], cursor + "=", cursor + "A"):
        refused(await unharmed.post("/collections/c/scan", json={"cursor": bad}), 400, "invalid_argument", "cursor")
    foreign = await unharmed.post("/collections/cos/scan", json={"cursor": cursor})
    refused(foreign, 400, "invalid_argument", "'c'", "'cos'")
    other = await unharmed.post("/collections/c/scan", json={"cursor": cursor, "where": {"i": 1}})
    refused(other, 400, "invalid_argument", "filters")
    token = (await unharmed.get("/collections")).headers["x-session-token"]
    refused(await unharmed.post("/collections/c/scan", json={"cursor": token}), 400, "invalid_argument", "cursor")
    following = (await unharmed.post("/collections/c/scan", json={"cursor": cursor, "limit": 3})).json()
    assert [record["record_id"] for record in following["records"]] == ["r03", "r04", "r05"]


@pytest.mark.parametrize("timeout", ["0", "-1", str(10**18), "abc", "1.5", "", "9" * 5000, "١"])
async def test_26_timeouts(unharmed: httpx.AsyncClient, timeout: str) -> None:
    answer = await unharmed.get("/collections/c", headers={"X-Timeout-Ms": timeout.encode()})
    refused(answer, 400, "invalid_argument", "x-timeout-ms")


@pytest.mark.parametrize(
    "headers",
    [
        {"X-Consistency-Level": "quorum"},
        {"X-Consistency-Level": "bounded"},
        {"X-Consistency-Level": "bounded", "X-Max-Staleness-Ms": "-5"},
        {"X-Max-Staleness-Ms": "100"},
        {"X-Vecraft-Snapshot": "-1"},
        {"X-Vecraft-Snapshot": str(2**63)},
        {"X-Vector-Encoding": "hex"},
    ],
)
async def test_27_consistency_and_other_headers(unharmed: httpx.AsyncClient, headers: dict[str, str]) -> None:
    answer = await unharmed.get("/collections/c/records/r01", headers=headers)
    refused(answer, 400, "invalid_argument")


async def test_27_an_unknown_metric(unharmed: httpx.AsyncClient) -> None:
    answer = await unharmed.post("/collections/new/create", json={"dim": 4, "metric": "manhattan"})
    refused(answer, 400, "unsupported_metric", "manhattan", "cosine")


async def test_28_ten_thousand_queries(unharmed: httpx.AsyncClient) -> None:
    zeros = base64.b64encode(bytes(16 * 10_000)).decode()
    body = {"queries": {"b64": zeros, "shape": [10_000, 4]}, "k": 1, "include": []}
    answer = await unharmed.post("/collections/c/search_many", json=body)
    assert answer.status_code == 200 and len(answer.json()) == 10_000
    more = QUERIES_MAX + 1
    body["queries"] = {"b64": base64.b64encode(bytes(16 * more)).decode(), "shape": [more, 4]}
    refused(await unharmed.post("/collections/c/search_many", json=body), 400, "invalid_argument", str(QUERIES_MAX))


IDS = [
    ("30", "-1"), ("31", str(2**63)), ("32", str(2**64)), ("33", '""'), ("34", '"' + "x" * 1_000_000 + '"'),
    ("35", r'"a\u0000b"'), ("36", r'"\ud800"'), ("null", "null"), ("list", '["a"]'), ("float", "1.5"),
]  # fmt: skip


@pytest.mark.parametrize(("label", "record_id"), IDS, ids=[label for label, _ in IDS])
async def test_ids(unharmed: httpx.AsyncClient, label: str, record_id: str) -> None:
    bodies = [
        ("insert", fill('{"packet":{"record_id":%s,"vector":[1,2,3,4]}}', record_id)),
        ("upsert", fill('{"packets":[{"record_id":%s,"vector":[1,2,3,4]}]}', record_id)),
        ("upsert", fill('{"ids":[%s],"vectors":[[1,2,3,4]]}', record_id)),
        ("get", fill('{"ids":[%s]}', record_id)),
        ("delete", fill('{"ids":[%s]}', record_id)),
    ]
    for route, body in bodies:
        refused(await post(unharmed, f"/collections/c/{route}", body), 400, "invalid_argument")
    operation = fill('{"op":"delete","collection":"c","ids":[%s]}', record_id)
    refused(await post(unharmed, "/transactions", fill('{"operations":[%s]}', operation)), 400, "invalid_argument")


async def test_29_an_id_twice_in_one_batch(unharmed: httpx.AsyncClient) -> None:
    twice = {"ids": ["a", "b", "a"], "vectors": [[1, 2, 3, 4]] * 3}
    refused(await unharmed.post("/collections/c/upsert", json=twice), 400, "invalid_argument", "'a'")
    packets = [{"record_id": "a", "vector": [1, 2, 3, 4]}] * 2
    refused(await unharmed.post("/collections/c/upsert", json={"packets": packets}), 400, "invalid_argument", "'a'")
    operations: list[dict[str, Any]] = [
        {"op": "delete", "collection": "c", "ids": ["b"]},
        {"op": "upsert", "collection": "c", **twice},
    ]
    answer = await unharmed.post("/transactions", json={"operations": operations})
    refused(answer, 400, "invalid_argument", "operations[1]", "'a'")


async def test_37_ids_that_look_alike_and_ids_with_slashes(api: httpx.AsyncClient) -> None:
    await api.post("/collections/ids/create", json={"dim": 4})
    ids = ["caf\u00e9", "cafe\u0301", "a/b", "a%2Fb", "..", ".", "a b", "?q=1#x", "%", "/", "//", "é/ü"]
    body = {"ids": ids, "vectors": [[float(i), 0, 0, 1] for i in range(len(ids))]}
    assert (await api.post("/collections/ids/upsert", json=body)).json()["count"] == len(ids)
    for i, record_id in enumerate(ids):
        quoted = "".join(f"%{byte:02X}" for byte in record_id.encode())
        answer = await api.get(f"/collections/ids/records/{quoted}")
        assert answer.json()["record_id"] == record_id and answer.json()["vector"][0] == i, record_id
    assert (await api.get("/collections/ids/records/a/b")).json()["record_id"] == "a/b"
    gone = await api.delete("/collections/ids/records/%2E%2E")
    assert gone.json()["record_id"] == ".."
    assert (await api.post("/collections/ids/count", json={})).json() == {"count": len(ids) - 1}
    refused(await api.get("/collections/ids/records/%FF"), 400, "invalid_argument", "UTF-8")
    await api.delete("/collections/ids")


NAMES = [
    "%2e%2e%2fx",
    "%2Fetc%2Fpasswd",
    "%2e",
    "%2e%2e",
    "x" * 300,
    "a%00b",
    "a%0Ab",
    "a%27%3BDROP%20TABLE--",
    "%FF",
    "-a",
    "a%2Fb",
]


@pytest.mark.parametrize("name", NAMES)
async def test_names_38_to_42(unharmed: httpx.AsyncClient, name: str) -> None:
    refused(await unharmed.post(f"/collections/{name}/create", json={"dim": 4}), 400, "invalid_argument")
    refused(await unharmed.get(f"/collections/{name}"), 400, "invalid_argument")
    refused(await unharmed.delete(f"/collections/{name}"), 400, "invalid_argument")
    refused(
        await unharmed.post(f"/collections/{name}/search", json={"query": {"query_vector": [1]}}),
        400,
        "invalid_argument",
    )
    refused(await unharmed.put(f"/aliases/{name}", json={"collection": "c"}), 400, "invalid_argument")
    refused(await unharmed.get(f"/collections/{name}/tsne.png"), 400, "invalid_argument")


async def test_42_names_in_bodies_are_checked_too(unharmed: httpx.AsyncClient) -> None:
    for name in ("../x", "/abs", "", "a';DROP TABLE--", 7, None, "\ud800"):
        body = json.dumps({"operations": [{"op": "drop_collection", "collection": name}]})
        refused(await post(unharmed, "/transactions", body), 400, "invalid_argument")
        refused(
            await post(unharmed, "/aliases/x", json.dumps({"collection": name}).encode()), 405, "method_not_allowed"
        )


BODIES = [
    ("43 deep arrays", "[" * 100_000 + "]" * 100_000, 422, "nested"),
    ("43 deep objects", '{"a":' * 100_000 + "1" + "}" * 100_000, 422, "nested"),
    ("44 duplicate keys", '{"query":{"query_vector":[1,2,3,4],"k":1,"k":2}}', 422, "'k'"),
    ("44 duplicate keys, escaped", '{"query":{"query_vector":[1,2,3,4],"k":1,"\\u006b":2}}', 422, "'k'"),
    ("45 invalid UTF-8", b'{"query":{"query_vector":[1,2,3,4],"where":{"a":"\xff"}}}', 422, "0xff"),
    ("45 UTF-16", '{"query":1}'.encode("utf-16"), 422, "UTF-8"),
    ("46 5,000 digits", '{"query":{"query_vector":[1,2,3,4],"k":%s}}' % ("9" * 5000), 422, "number"),
    ("47 truncated", '{"query":{"query_vector":[1,2,3', 422, "line 1"),
    ("47 bytes after the end", '{"query":{"query_vector":[1,2,3,4]}} x', 422, "line 1"),
    ("47 empty", "", 422, "line 1"),
    ("an array", "[]", 422, "an array"),
    ("a string", '"x"', 422, "a string"),
    ("null", "null", 422, "null"),
]


@pytest.mark.parametrize(("label", "body", "status", "named"), BODIES, ids=[label for label, *_ in BODIES])
async def test_bodies(unharmed: httpx.AsyncClient, label: str, body: str | bytes, status: int, named: str) -> None:
    for route in ("search", "upsert", "insert", "scan", "get", "delete", "count", "search_many", "create"):
        refused(await post(unharmed, f"/collections/c/{route}", body), status, "malformed_body")
    refused(await post(unharmed, "/collections/c/search", body), status, "malformed_body", named)
    refused(await post(unharmed, "/transactions", body), status, "malformed_body")


async def test_unknown_and_missing_keys(unharmed: httpx.AsyncClient) -> None:
    answer = await unharmed.post("/collections/c/search", json={"query": {"query_vector": [1, 2, 3, 4], "topk": 3}})
    refused(answer, 400, "invalid_argument", "topk", "query_vector")
    refused(await unharmed.post("/collections/c/search", json={}), 400, "invalid_argument", "query")
    refused(
        await unharmed.post("/collections/c/insert", json={"packet": {"vector": [1]}}),
        400,
        "invalid_argument",
        "record_id",
    )
    answer = await unharmed.post("/collections/new/create", json={"dim": 4, "dims": 4})
    refused(answer, 400, "invalid_argument", "dims", "dim")


@pytest.mark.parametrize("media", ["text/plain", "application/x-www-form-urlencoded", "application/xml", "json"])
async def test_48_content_types(unharmed: httpx.AsyncClient, media: str) -> None:
    body = b'{"query":{"query_vector":[1,2,3,4]}}'
    answer = await unharmed.post("/collections/c/search", content=body, headers={"Content-Type": media})
    refused(answer, 415, "unsupported_media_type", media)


async def test_48_no_content_type_is_taken_for_json(api: httpx.AsyncClient) -> None:
    request = api.build_request("POST", "/collections/c/search", content=b'{"query":{"query_vector":[1,2,3,4],"k":1}}')
    request.headers.pop("content-type", None)
    assert (await api.send(request)).status_code == 200
    charset = {"Content-Type": "application/json; charset=utf-8"}
    answer = await api.post("/collections/c/search", content=b'{"query":{"query_vector":[1,2,3,4]}}', headers=charset)
    assert answer.status_code == 200


def nested(depth: int) -> dict[str, Any]:
    where: dict[str, Any] = {"i": 1}
    for _ in range(depth):
        where = {"$and": [where]}
    return where


FILTERS = [
    ("53 no regular expressions", {"a": {"$regex": "(a+)+$"}}, "$regex"),
    ("54", nested(400), "deep"),
    ("55 too many", {"i": {"$in": list(range(100_001))}}, "100000"),
    ("56 dollar", {"$where": "1"}, "$where"),
    ("unknown operator", {"i": {"$gtt": 1}}, "$gtt"),
    ("wrong operand", {"i": {"$gt": [1]}}, "$gt"),
    ("not an object", [1], "object"),
    ("a string", "i = 1", "object"),
]


@pytest.mark.parametrize(("label", "where", "named"), FILTERS, ids=[label for label, *_ in FILTERS])
async def test_filters(unharmed: httpx.AsyncClient, label: str, where: Any, named: str) -> None:
    bodies = {
        "search": {"query": {"query_vector": [1, 2, 3, 4], "where": where}},
        "search_many": {"queries": [[1, 2, 3, 4]], "where": where},
        "scan": {"where": where},
        "count": {"where": where},
        "delete": {"where": where},
    }
    for route, body in bodies.items():
        refused(await unharmed.post(f"/collections/c/{route}", json=body), 400, "invalid_filter", "where", named)


async def test_55_and_56_strange_filters_that_are_fine(unharmed: httpx.AsyncClient) -> None:
    strange = [
        {"i": {"$in": list(range(100_000))}}, {"a.b.c": 1}, {'"': 1}, {"'; DROP TABLE x; --": 1},
        {"a*": {"$exists": False}},
        {"": 1}, {"i": {"$eq": {"$gt": 0}}}, {"i": 2**70}, {"i": {"$gt": -(2**70)}},
    ]  # fmt: skip
    for where in strange:
        answer = await unharmed.post("/collections/c/count", json={"where": where})
        assert answer.status_code == 200, answer.text
    for text in ('" OR * NEAR(', "text*", 'text" 1', "a AND b", "-x", "(", "text:1", "\u0000", "💥"):
        for operator in ("$contains", "$not_contains", "$matches"):
            answer = await unharmed.post("/collections/c/count", json={"where_document": {operator: text}})
            if answer.status_code != 200:
                refused(answer, 400, "invalid_filter", "where_document")
    answer = await unharmed.post("/collections/c/count", json={"where_document": {"$matches": "1 text"}})
    assert answer.json() == {"count": 1}


async def test_57_a_transaction_id_with_other_content(unharmed: httpx.AsyncClient) -> None:
    await unharmed.post("/collections/once/create", json={"dim": 4})
    body = {"ids": ["a"], "vectors": [[1, 2, 3, 4]], "txn_id": "hostile-57"}
    first = (await unharmed.post("/collections/once/upsert", json=body)).json()
    again = (await unharmed.post("/collections/once/upsert", json=body)).json()
    assert first == again
    other = {**body, "vectors": [[9, 9, 9, 9]]}
    answer = await unharmed.post("/collections/once/upsert", json=other)
    assert 400 <= answer.status_code < 500 and "hostile-57" in answer.json()["detail"]
    for txn_id in ("", "x" * 129, 7, "a\nb"):
        refused(
            await unharmed.post("/collections/once/upsert", json={**body, "txn_id": txn_id}),
            400,
            "invalid_argument",
            "txn_id",
        )
    both = await unharmed.post("/collections/once/upsert", json=body, headers={"Idempotency-Key": "another"})
    refused(both, 400, "invalid_argument", "another", "hostile-57")
    await unharmed.delete("/collections/once")


async def test_metadata_and_documents(unharmed: httpx.AsyncClient) -> None:
    deep: Any = 1
    for _ in range(70):
        deep = {"a": deep}
    for metadata in ([1], "x", 7, {"a": 2**64}, {"a": 1e400}, deep, {"big": "x" * (1 << 20)}, {"s": "\ud800"}):
        body = json.dumps({"packet": {"record_id": "h", "vector": [1, 2, 3, 4], "metadata": metadata}})
        body = body.replace("Infinity", "1e400")
        refused(await post(unharmed, "/collections/c/insert", body), 400, "invalid_argument", "metadata", "'h'")
    for document in (7, [1], True, "\udfff", {"a": 2**64}):
        body = json.dumps({"packet": {"record_id": "h", "vector": [1, 2, 3, 4], "document": document}})
        refused(await post(unharmed, "/collections/c/insert", body), 400, "invalid_argument", "document", "'h'")


async def test_checksums_that_do_not_match(unharmed: httpx.AsyncClient) -> None:
    packet = {"record_id": "h", "vector": [1, 2, 3, 4], "checksum": "00" * 32}
    refused(await unharmed.post("/collections/c/insert", json={"packet": packet}), 400, "checksum_mismatch", "'h'")
    packet = {"record_id": "h", "vector": [1, 2, 3, 4], "checksum_algorithm": "crc7"}
    refused(await unharmed.post("/collections/c/insert", json={"packet": packet}), 400, "invalid_argument", "crc7")
