"""The REST client's own decisions: what is sent again, what an answer means, what it remembers."""

from __future__ import annotations

import asyncio
import json
import random
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import numpy as np
import pytest
from gateway_thread import serving

from vecraft_data_model import CollectionSchema
from vecraft_data_model.errors import (
    ERRORS_BY_CODE,
    AuthenticationError,
    InvalidDataException,
    ShardUnavailableError,
    TimeoutException,
    VecraftError,
    WriteConflictException,
)
from vecraft_data_model.filters import parse_where
from vecraft_data_model.messages import Delete
from vecraft_db.client.async_client import AsyncVecraftClient
from vecraft_db.client.http_runner import Answer, HttpRunner
from vecraft_db.client.rest_router import RestRouter
from vecraft_db.client.rest_wire import error_of, timestamp_in
from vecraft_db.client.vecraft_client import VecraftClient
from vecraft_router.options import Bounded, ReadOptions
from vecraft_router.session import SessionTokens

TOKENS = SessionTokens(b"0123456789abcdef")
Handler = Callable[[httpx.Request], httpx.Response]


class Clock:
    """Time that passes by itself a little with every look, so that retries end."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def now_ms(self) -> int:
        return int(self.seconds * 1000)

    def monotonic(self) -> float:
        self.seconds += 0.05
        return self.seconds


class Fake:
    """A router and a runner over a gateway that a test plays; remembers what was sent."""

    def __init__(self, *answers: httpx.Response | Exception) -> None:
        self.requests: list[httpx.Request] = []
        self._answers: Iterator[httpx.Response | Exception] = iter(answers)
        clock = Clock()
        self.router = RestRouter(clock, random.Random(0), timeout_s=5)
        self._runner = HttpRunner("http://gateway:1/prefix/", clock, "key", httpx.MockTransport(self._answer))
        self.pauses: list[float] = []
        self._runner._stopped.wait = self.pauses.append  # type: ignore[method-assign, assignment]

    def _answer(self, request: httpx.Request) -> httpx.Response:
        self.requests.append(request)
        answer = next(self._answers, None)
        if answer is None:
            raise httpx.ReadTimeout("nothing more")
        if isinstance(answer, Exception):
            raise answer
        return answer

    def run(self, flow: Any) -> Any:
        return self._runner.run(flow)

    def close(self) -> None:
        self._runner.close()

    def bodies(self) -> list[Any]:
        return [json.loads(request.content) for request in self.requests]


def committed(ts: int = 5) -> httpx.Response:
    token = TOKENS.issue(ts)
    body = {"txn_id": "t", "commit_ts": ts, "count": 1}
    return httpx.Response(200, json=body, headers={"X-Session-Token": token})


def problem(status: int, code: str, detail: str = "why", **details: Any) -> httpx.Response:
    body = {"status": status, "code": code, "detail": detail, "details": details}
    return httpx.Response(status, json=body, headers={"Content-Type": "application/problem+json"})


def counted(ts: int = 7) -> httpx.Response:
    headers = {"X-Session-Token": TOKENS.issue(ts), "X-Vecraft-Snapshot": str(ts)}
    return httpx.Response(200, json={"count": 3}, headers=headers)


def test_requests_carry_key_deadline_and_path() -> None:
    fake = Fake(counted())
    assert fake.run(fake.router.count("a.b")).count == 3
    (request,) = fake.requests
    assert str(request.url) == "http://gateway:1/prefix/collections/a.b/count"
    assert request.headers["x-api-key"] == "key" and 0 < int(request.headers["x-timeout-ms"]) < 5000


@pytest.mark.parametrize(
    "lost",
    [
        httpx.ConnectError("refused"),
        httpx.ReadError("reset"),
        httpx.RemoteProtocolError("gone"),
        httpx.Response(502),
        httpx.Response(503),
    ],
)
def test_what_got_no_answer_is_sent_again(lost: httpx.Response | Exception) -> None:
    fake = Fake(lost, lost, counted())
    assert fake.run(fake.router.count("c")).count == 3
    assert len(fake.requests) == 3


def test_a_write_is_sent_again_under_the_same_id() -> None:
    fake = Fake(httpx.ReadError("reset"), httpx.ConnectError("refused"), committed())
    assert fake.run(fake.router.commit([Delete("c", ["a"])])).result.commit_ts == 5
    ids = {body["txn_id"] for body in fake.bodies()}
    assert len(fake.requests) == 3 and len(ids) == 1
    fake = Fake(httpx.ReadError("reset"), committed())
    fake.run(fake.router.commit([Delete("c", ["a"])], txn_id="mine"))
    assert [body["txn_id"] for body in fake.bodies()] == ["mine", "mine"]


def test_a_closed_client_refuses_at_once() -> None:
    fake = Fake()
    fake.close()
    for flow in (fake.router.count("c"), fake.router.commit([Delete("c", ["a"])])):
        with pytest.raises(ShardUnavailableError, match="this client is closed"):
            fake.run(flow)
    assert fake.pauses == []
    assert fake.requests == []


def test_a_deadline_that_has_passed_is_told_as_one() -> None:
    fake = Fake()
    with pytest.raises(TimeoutException, match="before the request was sent"):
        fake.run(fake.router.count("c", options=ReadOptions(deadline=0)))
    with pytest.raises(TimeoutException, match="before the request was sent") as late:
        fake.run(fake.router.commit([Delete("c", ["a"])], txn_id="mine", deadline=0))
    assert late.value.details == {"txn_id": "mine", "outcome": "aborted"}
    assert fake.requests == []


def test_when_time_is_up_a_write_says_what_is_known() -> None:
    fake = Fake(*[httpx.ReadError("reset")] * 200)
    with pytest.raises(TimeoutException, match="unknown") as unknown:
        fake.run(fake.router.commit([Delete("c", ["a"])], txn_id="mine"))
    assert unknown.value.details == {"txn_id": "mine", "outcome": "unknown"}
    fake = Fake(*[httpx.ConnectError("refused")] * 200)
    with pytest.raises(ShardUnavailableError, match="refused") as never:
        fake.run(fake.router.commit([Delete("c", ["a"])], txn_id="mine"))
    assert never.value.details == {"txn_id": "mine", "outcome": "aborted"}
    fake = Fake(*[httpx.ConnectError("refused")] * 200)
    with pytest.raises(ShardUnavailableError):
        fake.run(fake.router.count("c"))


def test_a_blind_write_that_met_locks_goes_on_under_another_id() -> None:
    fake = Fake(problem(409, "write_conflict"), problem(409, "write_conflict"), committed())
    fake.run(fake.router.commit([Delete("c", ["a"])]))
    assert len({body["txn_id"] for body in fake.bodies()}) == 3
    for chosen in ({"txn_id": "mine"}, {"snapshot": 4}):
        fake = Fake(problem(409, "write_conflict"), committed())
        with pytest.raises(WriteConflictException):
            fake.run(fake.router.commit([Delete("c", ["a"])], **chosen))
        assert len(fake.requests) == 1


def conflict(**details: Any) -> httpx.Response:
    return problem(409, "write_conflict", **details)


def test_a_deletion_by_filter_looks_again_after_a_conflict() -> None:
    fake = Fake(conflict(), conflict(), committed())
    fake.run(fake.router.delete_where("c", where=parse_where({"a": 1})))
    assert len({body["txn_id"] for body in fake.bodies()}) == 3
    fake = Fake(conflict(), committed())
    with pytest.raises(WriteConflictException):
        fake.run(fake.router.delete_where("c", where=parse_where({"a": 1}), txn_id="mine"))
    assert len(fake.requests) == 1


def test_a_transaction_that_only_met_a_lock_goes_on_under_another_id() -> None:
    fake = Fake(conflict(locked=True), problem(409, "read_write_conflict", locked=True), committed())
    fake.run(fake.router.commit([Delete("c", ["a"])], snapshot=7))
    assert len({body["txn_id"] for body in fake.bodies()}) == 3
    fake = Fake(conflict(), committed())
    with pytest.raises(WriteConflictException):
        fake.run(fake.router.commit([Delete("c", ["a"])], snapshot=7))


def test_a_write_says_what_its_client_has_seen() -> None:
    fake = Fake(committed(5), committed(9))
    for _ in range(2):
        fake.run(fake.router.commit([Delete("c", ["a"])]))
    assert [request.headers.get("x-session-token") for request in fake.requests] == [None, TOKENS.issue(5)]


def test_answers_that_are_decided_are_not_asked_for_again() -> None:
    for status, code in (
        (503, "shard_unavailable"),
        (429, "overloaded"),
        (504, "deadline_exceeded"),
        (500, "internal"),
    ):
        fake = Fake(problem(status, code), counted())
        with pytest.raises(VecraftError):
            fake.run(fake.router.count("c"))
        assert len(fake.requests) == 1


def test_the_session_goes_along_and_never_back() -> None:
    fake = Fake(committed(9), counted(4), counted(12), counted(), counted(), counted(), counted())
    router = fake.router
    fake.run(router.commit([Delete("c", ["a"])]))
    for _ in range(3):
        fake.run(router.count("c"))
    sent = [request.headers.get("x-session-token") for request in fake.requests]
    assert [token and timestamp_in(token) for token in sent] == [None, 9, 9, 12]
    fake.run(router.count("c", options=ReadOptions(consistency="strong")))
    fake.run(router.count("c", options=ReadOptions(consistency=Bounded(250))))
    fake.run(router.count("c", options=ReadOptions(as_of=3)))
    strong, bounded, as_of = (dict(request.headers) for request in fake.requests[4:])
    assert strong["x-consistency-level"] == "strong"
    assert (bounded["x-consistency-level"], bounded["x-max-staleness-ms"]) == ("bounded", "250")
    assert as_of["x-vecraft-snapshot"] == "3"


def test_a_timestamp_that_nobody_signed_for_us_asks_for_strong() -> None:
    fake = Fake(counted())
    fake.run(fake.router.count("c", options=ReadOptions(min_ts=10**6)))
    assert fake.requests[0].headers["x-consistency-level"] == "strong"


def test_every_error_comes_back_as_itself() -> None:
    for code, kind in ERRORS_BY_CODE.items():
        error = error_of(
            Answer(400, {}, json.dumps({"code": code, "detail": "why", "details": {"record_id": "a"}}).encode())
        )
        assert type(error) is kind and error.message == "why" and error.details == {"record_id": "a"}
    for status in (400, 413, 415, 422):
        answer = Answer(status, {}, b'{"code": "only_http_knows", "detail": "too much"}')
        assert type(error_of(answer)) is InvalidDataException
    assert "418" in str(error_of(Answer(418, {}, b"<html>")))


def test_urls_and_keys_are_checked() -> None:
    for url in ("", "host:8000", "ftp://host", "http://", "http://host:x", "http://h?q=1"):
        with pytest.raises(InvalidDataException, match="url"):
            VecraftClient(url=url)
    for key in ("a b", "a\n", "ü"):
        with pytest.raises(InvalidDataException, match="api_key"):
            VecraftClient(url="http://localhost:1", api_key=key)


def test_nobody_listens() -> None:
    with VecraftClient(url="http://127.0.0.1:9", api_key="k") as client:
        with pytest.raises(ShardUnavailableError, match="refused"):
            client.list_collections(timeout=2)


def test_a_wrong_key() -> None:
    with serving(["right"]) as url:
        with VecraftClient(url=url, api_key="wrong") as client, pytest.raises(AuthenticationError):
            client.list_collections()
        with VecraftClient(url=url, api_key="right") as client:
            assert client.list_collections() == []


def test_one_client_on_several_event_loops() -> None:
    with serving() as url:
        client = AsyncVecraftClient(url=url)

        async def use(name: str) -> int:
            await client.create_collection(CollectionSchema(name=name, dim=2))
            many = [client.upsert(name, ids=[f"r{i}"], vectors=np.ones((1, 2), dtype=np.float32)) for i in range(20)]
            await asyncio.gather(*many)
            return await client.count(name)

        assert asyncio.run(use("a")) == 20
        assert asyncio.run(use("b")) == 20

        async def end() -> None:
            await client.close()
            with pytest.raises(VecraftError):
                await client.count("a", timeout=0.2)

        asyncio.run(end())
