"""The shards' own sockets: who gets in, what arrives, and what becomes of calls whose connection ends. No Ray here."""

from __future__ import annotations

import asyncio
import itertools
import select
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any

import numpy as np
import pytest

from vecraft_cluster import data_server
from vecraft_cluster.carriers import LATE, SocketCarrier, bring_all
from vecraft_cluster.codec import INLINE_BYTES, pack
from vecraft_cluster.credentials import TOKEN_BYTES, Endpoint, Identity, client_context
from vecraft_cluster.data_server import DataServer
from vecraft_cluster.links import RETRY_S, Flight, Links, connect
from vecraft_cluster.ports import Directory, endpoint_of
from vecraft_cluster.reactor import Reactor, land_all
from vecraft_cluster.socket_ports import AsyncSocketPort
from vecraft_data_model import CollectionSchema
from vecraft_data_model.errors import RecordNotFoundError, ShardUnavailableError, TimeoutException
from vecraft_data_model.filters import parse_where
from vecraft_data_model.messages import (
    Batch,
    BatchReply,
    Checkpoint,
    CommitOne,
    Count,
    CreateCollection,
    Done,
    Put,
    Refused,
    Rows,
    RowsReply,
    Transaction,
)


class Shard:
    """Echoes what it is sent; waits before that if told to."""

    def __init__(self) -> None:
        self.seen: list[Any] = []
        self.may_answer = threading.Event()
        self.may_answer.set()
        self.answer: Callable[[Any], Any] = lambda message: message

    def execute(self, message: Any) -> Any:
        self.seen.append(message)
        assert self.may_answer.wait(30)
        return self.answer(message)


@pytest.fixture
def shard() -> Iterator[Shard]:
    shard = Shard()
    yield shard
    shard.may_answer.set()


@pytest.fixture
def server(shard: Shard) -> Iterator[DataServer]:
    server = DataServer("127.0.0.1", 3, 17, shard.execute)
    yield server
    server.close()


@pytest.fixture
def links(server: DataServer) -> Iterator[Links]:
    links = Links("shard 3", lambda given_up: server.endpoint, shard=3)
    yield links
    links.close()


def launched(links: Links, message: object) -> Flight:
    """A flight over a socket, as soon as there is a connection."""
    deadline = time.monotonic() + 60
    while (flight := links.launch(message)) is None:
        assert time.monotonic() < deadline, "no connection was made"
        time.sleep(0.002)
    return flight


def answer_of(flight: Flight, seconds: float = 60.0) -> Any:
    land_all([flight], time.monotonic() + seconds)
    return flight.answer


# ------------------------------------------------------------------------------------------------ what arrives


def test_messages_arrive_as_they_were_sent(links: Links, shard: Shard) -> None:
    rng = np.random.default_rng(1)
    big = rng.normal(size=(3000, 64)).astype(np.float32)
    small = rng.normal(size=(2, 4)).astype(np.float32)
    put = Put("c", ["a", "b"], small, [b"x", b"y"])
    batch = Batch(
        [
            CommitOne(Transaction("t", b"h", [put, Put("c", [], big, [])], reads=[("c", "a")])),
            CommitOne(Transaction("u", b"h", [CreateCollection(CollectionSchema(name="c", dim=4), "ff")])),
            Count(collection="c", where=parse_where({"year": {"$gt": 2**70}, "tag": {"$in": ["a", None, 1.5]}})),
        ],
        clock=7,
        map_epoch=2,
    )
    timeout, came = answer_of(launched(links, (1.5, batch)))
    assert timeout == 1.5
    mutations = came.requests[0].txn.mutations
    assert np.array_equal(mutations[0].vectors, small) and np.array_equal(mutations[1].vectors, big)
    assert mutations[1].vectors.flags.writeable and mutations[1].vectors.dtype == np.float32
    assert came.requests[1:] == batch.requests[1:] and (came.clock, came.map_epoch) == (7, 2)

    error = RecordNotFoundError("no such record", record_id="a", score=np.float64(0.5))
    shard.answer = lambda message: BatchReply([Refused(error), Done(), RowsReply(5, Rows(["a"], [1], None, big))], 9)
    reply = answer_of(launched(links, ()))
    assert type(reply.responses[0].error) is RecordNotFoundError
    assert reply.responses[0].error.details == {"record_id": "a", "score": 0.5}
    assert reply.responses[1] == Done() and np.array_equal(reply.responses[2].rows.vectors, big)


@pytest.mark.parametrize("size", [0, 1, INLINE_BYTES - 1, INLINE_BYTES, 65535, 65536, 65537, 5_000_000])
def test_arrays_of_any_size_in_any_number(links: Links, size: int) -> None:
    arrays = [np.arange(count, dtype=np.uint8) if count < 256 else np.full(count, 7, np.uint8) for count in (size, 3)]
    came = answer_of(launched(links, [*arrays, *arrays]))
    assert all(np.array_equal(a, b) for a, b in zip(came, [*arrays, *arrays], strict=True))
    assert answer_of(launched(links, "after")) == "after"


def test_what_is_no_frame_ends_the_connection(server: DataServer, shard: Shard) -> None:
    for garbage in (b"GET / HTTP/1.1\r\n\r\n" + b"x" * 24, b"VDW3" + b"\xff" * 20, b"VDW3" + bytes(12) + b"\xff" * 8):
        wire = connect(server.endpoint)
        wire._socket.setblocking(True)
        wire._socket.settimeout(60)
        wire._socket.sendall(garbage)
        assert wire._socket.recv(1) == b""
        wire.close()
    assert shard.seen == []


# ------------------------------------------------------------------------------------------------- who gets in


def stranger(server: DataServer) -> ssl.SSLSocket:
    """Somebody who reached the port, and even knows the certificate."""
    plain = socket.create_connection((server.endpoint.host, server.endpoint.port), 5)
    return client_context(server.endpoint.certificate).wrap_socket(plain)


def test_without_the_token_nothing_is_read_and_nothing_answered(server: DataServer, shard: Shard) -> None:
    request = pack(1, (1.0, Batch([])))
    nearly = server.endpoint.token[:-1] + bytes([server.endpoint.token[-1] ^ 1])
    for token in (bytes(TOKEN_BYTES), nearly, b""):
        with stranger(server) as peer:
            peer.sendall(token)
            try:
                peer.sendall(request.head)
                peer.settimeout(60)
                assert peer.recv(100) == b""
            except OSError:
                continue  # it hung up while we were talking
    with socket.create_connection((server.endpoint.host, server.endpoint.port), 5) as plain:
        plain.sendall(b"VDW3" + bytes(100))
        with suppress(ConnectionResetError):
            while said := plain.recv(100):
                assert said[0] == 21, "anything but TLS's own alert"
    assert shard.seen == [] and server.connections == 0


def test_a_client_accepts_no_other_key(server: DataServer) -> None:
    real = server.endpoint
    for certificate in (Identity().certificate, DataServer("127.0.0.1", 3, 17, repr).endpoint.certificate):
        forged = Endpoint(real.host, real.port, certificate, real.token, real.shard, real.epoch)
        with pytest.raises(ssl.SSLCertVerificationError):
            connect(forged)
    for shard, epoch in ((4, 17), (3, 18)):
        with pytest.raises(ConnectionRefusedError, match="another"):
            connect(Endpoint(real.host, real.port, real.certificate, real.token, shard, epoch))
    assert real.token.hex() not in repr(real) and repr(real.token) not in repr(real)


def test_strangers_are_few_and_short(server: DataServer, links: Links, monkeypatch: pytest.MonkeyPatch) -> None:
    """Who says nothing is thrown out; while many do, routers that are connected are served all the same."""
    assert answer_of(launched(links, "before")) == "before"
    monkeypatch.setattr(data_server, "ADMISSION_S", 1.0)
    silent = [socket.create_connection((server.endpoint.host, server.endpoint.port), 5) for _ in range(40)]
    assert answer_of(launched(links, "meanwhile")) == "meanwhile"
    for each in silent:
        each.settimeout(60)
        try:
            assert each.recv(1) == b""
        except ConnectionResetError:
            continue
        finally:
            each.close()
    connect(server.endpoint).close()


# --------------------------------------------------------------------------------------- calls and connections


def test_a_call_without_a_connection_is_told_so_and_has_one_made(links: Links, server: DataServer) -> None:
    assert links.launch("first") is None
    assert answer_of(launched(links, "next")) == "next"
    assert server.connections == 1
    assert answer_of(launched(links, "again")) == "again"
    assert server.connections == 1 and links.flights == 2


def test_as_many_connections_as_calls_under_way(links: Links, server: DataServer, shard: Shard) -> None:
    shard.may_answer.clear()
    flights = [launched(links, number) for number in range(3)]
    assert server.connections == 3
    shard.may_answer.set()
    land_all(flights, time.monotonic() + 60)
    assert [flight.answer for flight in flights] == [0, 1, 2]


def test_a_shard_that_ends_leaves_the_outcome_unknown(links: Links, server: DataServer, shard: Shard) -> None:
    shard.may_answer.clear()
    flight = launched(links, "a write")
    while not shard.seen:
        time.sleep(0.002)
    server.close()
    error = answer_of(flight)
    assert isinstance(error, ShardUnavailableError)
    assert error.details == {"outcome": "unknown", "shard": 3}


def test_a_restarted_shard_is_found_by_itself(shard: Shard) -> None:
    servers = [DataServer("127.0.0.1", 3, 1, shard.execute)]
    links = Links("shard 3", lambda given_up: servers[-1].endpoint, shard=3)
    assert answer_of(launched(links, "one")) == "one"
    servers[0].close()
    wait_for(lambda: servers[0].connections == 0)
    servers.append(DataServer("127.0.0.1", 3, 2, shard.execute))
    assert links.launch("lost?") is None, "an ended connection is noticed before anything is sent over it"
    assert answer_of(launched(links, "two")) == "two"
    links.close()
    servers[1].close()


def test_the_answer_to_a_call_that_was_given_up_is_nobody_elses(links: Links, shard: Shard) -> None:
    shard.may_answer.clear()
    flight = launched(links, "slow")
    land_all([flight], time.monotonic() + 0.05)
    assert not flight.landed
    flight.give_up()
    flight.release()
    assert isinstance(flight.answer, TimeoutException)
    shard.may_answer.set()
    assert answer_of(launched(links, "next")) == "next"


def test_a_defect_of_the_shard_reaches_whoever_asked(links: Links, shard: Shard) -> None:
    def fail(message: Any) -> Any:
        raise ZeroDivisionError("oops")

    shard.answer = fail
    error = answer_of(launched(links, "x"))
    assert isinstance(error, ShardUnavailableError) and "ZeroDivisionError: oops" in error.message
    shard.answer = lambda message: "well again"
    assert answer_of(launched(links, "x")) == "well again"


def test_where_nobody_listens_calls_go_the_other_way(shard: Shard) -> None:
    asked: list[float] = []
    server = DataServer("127.0.0.1", 3, 1, shard.execute)
    server.close()

    def endpoint(given_up: Callable[[], bool]) -> Endpoint:
        asked.append(time.monotonic())
        return server.endpoint

    links = Links("shard 3", endpoint, shard=3)
    give_up_at = time.monotonic() + 60
    while len(asked) < 5:
        assert links.launch("x") is None and time.monotonic() < give_up_at
        time.sleep(0.001)
    links.close()
    pauses = [later - sooner for sooner, later in itertools.pairwise(asked)]
    assert all(pause >= RETRY_S[0] * 2**number for number, pause in enumerate(pauses)), "less and less often"


def test_closing_waits_for_nobody(links: Links) -> None:
    waiting = threading.Event()

    def endpoint(given_up: Callable[[], bool]) -> Endpoint:
        waiting.set()
        while not given_up():
            time.sleep(0.002)
        raise TimeoutError

    slow = Links("shard 9", endpoint)
    assert slow.launch("x") is None
    assert waiting.wait(60)
    slow.close()
    assert slow.launch("x") is None and not any(each.name == "vecraft-connect" for each in threading.enumerate())


def test_a_process_that_has_left_ray_asks_no_actor_where_its_socket_is(monkeypatch: pytest.MonkeyPatch) -> None:
    """Asking would start a Ray: so does looking up an actor without being connected."""
    monkeypatch.setattr("ray.is_initialized", lambda: False)

    class Untouched(Directory):
        def find(self, name: str) -> Any:
            raise AssertionError("an actor was looked up")

    with pytest.raises(TimeoutError, match="not connected"):
        endpoint_of(Untouched(), "vecraft:c:shard-0000")(lambda: False)


# ----------------------------------------------------------------------------------------- those who do not wait


def test_the_reactor_lands_what_nobody_waits_for(links: Links, shard: Shard) -> None:
    reactor = Reactor()
    shard.may_answer.clear()
    quick, slow = launched(links, np.zeros(3_000_000, np.uint8)), launched(links, "slow")
    landed: list[Any] = []
    reactor.watch(quick, time.monotonic() + 60, lambda: landed.append(quick.answer))
    reactor.watch(slow, time.monotonic() + 0.05, lambda: landed.append(slow.answer))
    wait_for(lambda: len(landed) == 1)
    assert isinstance(landed[0], TimeoutException), "at its time it is given up"
    shard.may_answer.set()
    wait_for(lambda: len(landed) == 2)
    assert np.array_equal(landed[1], np.zeros(3_000_000, np.uint8))

    shard.may_answer.clear()
    last = launched(links, "last")
    reactor.watch(last, time.monotonic() + 60, lambda: landed.append(last.answer))
    reactor.close()
    assert isinstance(landed[2], TimeoutException), "closing gives up the rest"
    shard.may_answer.set()


class OtherWay:
    """Actor calls, as a carrier makes them."""

    def __init__(self) -> None:
        self.sent: list[Any] = []

    def send(self, message: Any) -> Any:
        self.sent.append(message)
        return f"reference {len(self.sent)}"

    def watch(self, flight: Any, until: float, landed: Callable[[Any], None]) -> None:
        landed(f"answer to {flight}")


def test_a_carrier_uses_a_connection_if_one_is_free_and_an_actor_call_otherwise(links: Links) -> None:
    reactor = Reactor()
    other = OtherWay()
    carrier = SocketCarrier(links, reactor, other)  # type: ignore[arg-type]
    landed: list[Any] = []
    assert not carrier.is_instant()
    carrier.watch(carrier.send("first"), time.monotonic() + 60, landed.append)
    assert landed == ["answer to reference 1"] and other.sent == ["first"]

    wait_for(carrier.is_instant)
    carrier.watch(carrier.send("second"), time.monotonic() + 60, landed.append)
    wait_for(lambda: len(landed) == 2)
    assert landed[1] == "second" and other.sent == ["first"]
    reactor.close()


def test_a_caller_waits_for_calls_of_its_own_until_its_time_is_over(links: Links, shard: Shard) -> None:
    reactor = Reactor()
    carrier = SocketCarrier(links, reactor, OtherWay())  # type: ignore[arg-type]
    for _ in range(2):
        answer_of(launched(links, "make a connection"))
    slow_ones = threading.Event()
    shard.answer = lambda message: message if message == "quick" else slow_ones.wait(60) and message
    first = launched(links, "slow")
    second = launched(links, "quick")
    answers = bring_all([(carrier, first), (carrier, second)], time.monotonic() + 0.2)
    assert answers == [LATE, "quick"]
    slow_ones.set()
    landed: list[Any] = []
    carrier.watch(first, time.monotonic() + 60, landed.append)
    wait_for(lambda: landed == ["slow"])
    reactor.close()


# ------------------------------------------------------------------------------------------- on an event loop


A_READ = Batch([Count(collection="c")])


class ActorPort:
    """The other way to the shard."""

    def __init__(self) -> None:
        self.calls = 0

    async def execute(self, batch: Batch, timeout: float) -> BatchReply:
        self.calls += 1
        return BatchReply([], 1)


async def until(holds: Callable[[], bool]) -> None:
    """Let the loop go on until something holds."""
    for _ in range(5000):
        if holds():
            return
        await asyncio.sleep(0.002)
    raise AssertionError("it never came to hold")


async def over_socket(port: AsyncSocketPort, batch: Batch, timeout: float = 10.0) -> BatchReply:
    """Execute over a socket, as soon as there is one."""
    for _ in range(5000):
        if port.links.free:
            break
        await port.execute(A_READ, 1.0)
        await asyncio.sleep(0.002)
    return await port.execute(batch, timeout)


async def test_a_port_on_an_event_loop(links: Links, shard: Shard) -> None:
    actor = ActorPort()
    port = AsyncSocketPort(links, actor)
    assert await port.execute(A_READ, 1.0) == BatchReply([], 1) and actor.calls == 1
    big = np.full((1000, 1000), 3.0, np.float32)
    shard.answer = lambda message: BatchReply([RowsReply(1, Rows([], [], None, message[1].requests[0].vectors))], 2)
    reply = await over_socket(port, Batch([Put("c", [], big, [])]))  # type: ignore[list-item]
    assert np.array_equal(reply.responses[0].rows.vectors, big)  # type: ignore[union-attr]

    shard.answer = lambda message: RecordNotFoundError("no")
    with pytest.raises(RecordNotFoundError):
        await over_socket(port, A_READ)

    shard.answer = lambda message: BatchReply([], 3)
    shard.may_answer.clear()
    with pytest.raises(TimeoutException):
        await over_socket(port, A_READ, 0.05)
    cancelled = asyncio.ensure_future(over_socket(port, A_READ))
    seen = len(shard.seen)
    await until(lambda: len(shard.seen) > seen)
    cancelled.cancel()
    with pytest.raises(asyncio.CancelledError):
        await cancelled
    shard.may_answer.set()
    assert await over_socket(port, A_READ) == BatchReply([], 3)
    assert links.flights >= 5


async def test_what_may_take_minutes_keeps_no_connection(links: Links) -> None:
    actor = ActorPort()
    port = AsyncSocketPort(links, actor)
    await over_socket(port, A_READ)
    before, flights = actor.calls, links.flights
    await port.execute(Batch([Checkpoint()]), 1.0)
    assert actor.calls == before + 1 and links.flights == flights


async def test_a_connection_that_ends_during_a_call_on_an_event_loop(
    links: Links, server: DataServer, shard: Shard
) -> None:
    port = AsyncSocketPort(links, ActorPort())
    await over_socket(port, A_READ)
    shard.may_answer.clear()
    call = asyncio.ensure_future(port.execute(A_READ, 10.0))
    await until(lambda: len(shard.seen) == 2)
    server.close()
    with pytest.raises(ShardUnavailableError) as refusal:
        await call
    assert refusal.value.details["outcome"] == "unknown"
    assert await port.execute(A_READ, 1.0) == BatchReply([], 1), "the next one goes the other way"


def wait_for(holds: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not holds():
        assert time.monotonic() < deadline, "it never came to hold"
        select.select([], [], [], 0.002)
