"""Which gateway gets a request: the least busy, not one that failed, and the next when the first cannot be reached."""

from __future__ import annotations

import httpx
import pytest

from vecraft_db.client.balancing import AsyncBalancedTransport, BalancedTransport, GatewayPool

A, B, C = "http://10.0.0.1:8000", "http://10.0.0.2:8000", "http://10.0.0.3:8000"


class Time:
    """A clock that stands still until it is moved."""

    now = 0.0

    def __call__(self) -> float:
        return self.now


def pool_of(*urls: str) -> tuple[GatewayPool, Time]:
    time = Time()
    pool = GatewayPool(time)
    pool.replace(urls)
    return pool, time


def test_the_least_busy_comes_first_and_idle_ones_take_turns() -> None:
    pool, _ = pool_of(A, B, C)
    order = []
    for _ in range(6):
        url = pool.urls()[0]
        pool.began(url)
        pool.ended(url, reached=True)
        order.append(url)
    assert order == [A, B, C, A, B, C]
    pool.began(A)
    pool.began(B)
    pool.began(B)
    assert pool.urls() == [C, A, B]


def test_a_failed_gateway_rests_longer_each_time_and_is_forgiven_at_the_first_success() -> None:
    pool, time = pool_of(A, B)

    def fail(url: str) -> None:
        pool.began(url)
        pool.ended(url, reached=False)

    for rest in (1.0, 2.0, 4.0, 8.0, 16.0, 30.0, 30.0):
        fail(A)
        pool.began(B)  # busier: would come last if A were in order
        assert pool.urls() == [B, A]
        time.now += rest - 0.01
        assert pool.urls() == [B, A]
        time.now += 0.02
        assert pool.urls() == [A, B]
        pool.ended(B, reached=True)
    pool.began(A)
    pool.ended(A, reached=True)
    fail(A)
    time.now += 1.01
    pool.began(B)
    assert pool.urls() == [A, B]


def test_when_all_have_failed_the_one_that_is_free_soonest_is_tried() -> None:
    pool, time = pool_of(A, B)
    pool.began(A)
    pool.ended(A, reached=False)
    time.now = 0.5
    pool.began(B)
    pool.ended(B, reached=False)
    assert pool.urls() == [A, B]


def test_a_gateway_that_stays_keeps_its_state_and_one_that_went_does_no_harm() -> None:
    pool, _ = pool_of(A, B)
    pool.began(A)
    pool.began(B)
    pool.replace([B, C])
    assert pool.urls() == [C, B]
    pool.ended(A, reached=True)
    pool.ended(B, reached=True)
    assert pool.urls() == [C, B]


def answering(reachable: dict[str, int], seen: list[str]) -> httpx.MockTransport:
    """Gateways as a transport: status by host; a host that is not there cannot be connected to, 0 breaks off."""

    def handle(request: httpx.Request) -> httpx.Response:
        seen.append(request.url.host)
        status = reachable.get(request.url.host)
        if status is None:
            raise httpx.ConnectError("refused", request=request)
        if status == 0:
            raise httpx.ReadError("broken", request=request)
        return httpx.Response(status, text=f"{request.headers['host']}{request.url.path}")

    return httpx.MockTransport(handle)


def test_a_request_that_never_left_goes_to_the_next_gateway() -> None:
    pool, _ = pool_of(A, B, C)
    seen: list[str] = []
    transport = BalancedTransport(pool, answering({"10.0.0.3": 200}, seen))
    with httpx.Client(transport=transport, base_url="http://gateway.prod.svc:8000") as client:
        answer = client.get("/collections")
        assert (answer.status_code, answer.text) == (200, "gateway.prod.svc:8000/collections")
        assert seen == ["10.0.0.1", "10.0.0.2", "10.0.0.3"]
        client.get("/collections")
    assert seen[3:] == ["10.0.0.3"]  # the others rest


def test_a_request_that_may_have_arrived_is_not_sent_twice() -> None:
    pool, _ = pool_of(A, B)
    seen: list[str] = []
    transport = BalancedTransport(pool, answering({"10.0.0.1": 0, "10.0.0.2": 200}, seen))
    with httpx.Client(transport=transport, base_url="http://gateway") as client:
        with pytest.raises(httpx.ReadError):
            client.post("/collections/a/insert")
        assert seen == ["10.0.0.1"]
        assert client.get("/").status_code == 200
    assert seen == ["10.0.0.1", "10.0.0.2"]


def test_none_ready_and_none_reachable_are_told_apart() -> None:
    pool, _ = pool_of()
    with httpx.Client(transport=BalancedTransport(pool), base_url="http://gateway") as client:
        with pytest.raises(httpx.ConnectError, match="no gateway is ready"):
            client.get("/")
    pool.replace([A, B])
    with httpx.Client(transport=BalancedTransport(pool, answering({}, [])), base_url="http://gateway") as client:
        with pytest.raises(httpx.ConnectError, match="none of 2 gateways"):
            client.get("/")


async def test_the_same_for_coroutines() -> None:
    pool, _ = pool_of(A, B)
    seen: list[str] = []
    transport = AsyncBalancedTransport(pool, answering({"10.0.0.2": 503}, seen))
    async with httpx.AsyncClient(transport=transport, base_url="http://gateway") as client:
        assert (await client.get("/readyz")).status_code == 503
        async with client.stream("GET", "/readyz"):
            assert pool.urls() == [B, A]
            pool.replace([B, C])
            assert pool.urls() == [C, B]  # B is busy until its answer was read
        assert seen == ["10.0.0.1", "10.0.0.2", "10.0.0.2"]
