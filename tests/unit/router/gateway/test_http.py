"""HTTP itself, over real sockets: messages that lie, dribble, unfold or contradict themselves (HOSTILE 49 to 52)."""

from __future__ import annotations

import gzip
import select
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from urllib.parse import urlsplit

import httpx
import pytest
from gateway_thread import serving

from vecraft_router.gateway.door import Limits
from vecraft_router.gateway.protocol import GuardedProtocol

LIMIT = 1 << 20
HELD = 3 << 20
HASTY_S = 0.5
"""The patience of a gateway whose patience is tested."""

PATIENCE_S = 300.0
"""That of one whose patience is not: a message may be held up anywhere on its way."""


class Wire:
    """A socket that says what it is told, and hears until the other side is done."""

    def __init__(self, url: str) -> None:
        parts = urlsplit(url)
        self.socket = socket.create_connection((parts.hostname or "", parts.port or 0), timeout=60)

    def say(self, data: bytes) -> None:
        self.socket.sendall(data)

    def hear(self) -> bytes:
        heard = b""
        try:
            while chunk := self.socket.recv(65536):
                heard += chunk
        except ConnectionResetError:
            return heard  # closed with bytes of ours unread
        return heard


@contextmanager
def gateway(body_timeout_s: float) -> Iterator[str]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(GuardedProtocol, "head_timeout_s", PATIENCE_S)
        patch.setattr(GuardedProtocol, "max_head_bytes", 16 * 1024)
        limits = Limits(body_bytes_max=LIMIT, body_bytes_held_max=HELD, body_timeout_s=body_timeout_s)
        with serving(limits=limits) as address:
            assert httpx.post(f"{address}/collections/c/create", json={"dim": 2}, timeout=60).status_code == 201
            yield address


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    """A gateway."""
    with gateway(PATIENCE_S) as address:
        yield address


@pytest.fixture(scope="module")
def hasty_url() -> Iterator[str]:
    """One with little patience for bodies."""
    with gateway(HASTY_S) as address:
        yield address


@pytest.fixture
def connect(url: str) -> Iterator[Callable[[], Wire]]:
    """Make connections; whatever is said on them, the next good request is served."""
    with connections_to(url) as make:
        yield make


@pytest.fixture
def connect_to_hasty(hasty_url: str) -> Iterator[Callable[[], Wire]]:
    """The same to the one with little patience for bodies."""
    with connections_to(hasty_url) as make:
        yield make


@contextmanager
def connections_to(url: str) -> Iterator[Callable[[], Wire]]:
    wires: list[Wire] = []

    def make() -> Wire:
        wires.append(Wire(url))
        return wires[-1]

    yield make
    assert httpx.post(f"{url}/collections/c/count", json={}, timeout=60).json() == {"count": 0}
    for wire in wires:
        wire.socket.close()


BODY = b'{"where": null}'
HEAD = b"POST /collections/c/count HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
LENGTH = b"Content-Length: 15\r\n"
CHUNKED = b"Transfer-Encoding: chunked\r\n"
CHUNKS = b"f\r\n" + BODY + b"\r\n0\r\n\r\n"


def status(answer: bytes) -> int:
    return int(answer.split(b" ", 2)[1])


def test_what_is_right_is_served(connect: Callable[[], Wire]) -> None:
    for head, body in ((LENGTH, BODY), (CHUNKED, CHUNKS)):
        wire = connect()
        wire.say(HEAD + head + b"Connection: close\r\n\r\n" + body)
        answer = wire.hear()
        assert status(answer) == 200 and answer.endswith(b'{"count":0}')


def test_49_a_length_that_is_too_long_waits_in_vain(connect_to_hasty: Callable[[], Wire]) -> None:
    wire = connect_to_hasty()
    wire.say(HEAD + b"Content-Length: 100\r\n\r\n" + BODY)
    answer = wire.hear()
    assert status(answer) == 408 and b"request_timeout" in answer and b"(15 bytes came)" in answer


def test_49_a_length_that_is_too_long_and_an_end(connect: Callable[[], Wire]) -> None:
    wire = connect()
    wire.say(HEAD + b"Content-Length: 100\r\n\r\n" + BODY)
    wire.socket.shutdown(socket.SHUT_WR)
    assert b" 200 " not in wire.hear()


def test_49_a_length_that_is_too_short(connect: Callable[[], Wire]) -> None:
    wire = connect()
    wire.say(HEAD + b"Content-Length: 5\r\n\r\n" + BODY)
    answer = wire.hear()
    assert b" 200 " not in answer and b"HTTP/1.1 400" in answer  # what is left over is no request


@pytest.mark.parametrize("length", [b"-1", b"abc", b"1e3", b"9" * 30, b"15, 16", b"+15"])
def test_49_a_length_that_is_none(connect: Callable[[], Wire], length: bytes) -> None:
    wire = connect()
    wire.say(HEAD + b"Content-Length: " + length + b"\r\n\r\n" + BODY)
    assert status(wire.hear()) == 400


def test_49_two_lengths(connect: Callable[[], Wire]) -> None:
    wire = connect()
    wire.say(HEAD + LENGTH + b"Content-Length: 5\r\n\r\n" + BODY)
    assert status(wire.hear()) == 400


@pytest.mark.parametrize("both", [LENGTH + CHUNKED, CHUNKED + LENGTH])
def test_50_a_length_and_chunks(connect: Callable[[], Wire], both: bytes) -> None:
    smuggled = b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n"
    wire = connect()
    wire.say(HEAD + both + b"\r\n" + CHUNKS + smuggled)
    answer = wire.hear()
    assert status(answer) == 400 and answer.count(b"HTTP/1.1 ") == 1


def test_51_slow_heads(connect: Callable[[], Wire], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(GuardedProtocol, "head_timeout_s", HASTY_S)
    silent, dribbling = connect(), connect()
    with pytest.raises((BrokenPipeError, ConnectionResetError)):  # it is closed on us, long before the head is too long
        dribbling.say(b"GET /healthz HTTP/1.1\r\n")
        for number in range(800):
            dribbling.say(b"X-%d: y\r\n" % number)
            time.sleep(0.05)
    assert silent.hear() == b"" and dribbling.hear() == b""


def test_51_a_slow_head_after_a_good_request(connect: Callable[[], Wire], monkeypatch: pytest.MonkeyPatch) -> None:
    wire = connect()
    wire.say(b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n")
    assert b" 200 " in wire.socket.recv(65536)
    monkeypatch.setattr(GuardedProtocol, "head_timeout_s", HASTY_S)
    wire.say(b"GET /healthz HTTP/1.1\r\nX: ")
    assert wire.hear() == b""


def test_51_slow_bodies(connect_to_hasty: Callable[[], Wire]) -> None:
    wire = connect_to_hasty()
    wire.say(HEAD + b"Content-Length: 1000\r\n\r\n")
    answer = b""
    wire.socket.settimeout(0.05)
    for _ in range(800):  # fewer than the body is to have
        wire.say(b" ")
        try:
            answer = wire.socket.recv(65536)
        except TimeoutError:
            continue
        break
    assert status(answer) == 408


def test_51_many_slow_ones_do_not_keep_others_out(connect: Callable[[], Wire], url: str) -> None:
    for _ in range(200):
        connect().say(b"POST /x HTTP/1.1\r\nX: y")
    assert httpx.get(f"{url}/healthz", timeout=60).status_code == 200


def test_a_huge_head(connect: Callable[[], Wire]) -> None:
    wire = connect()
    wire.say(b"GET /healthz HTTP/1.1\r\nX: " + b"y" * 60_000)
    assert status(wire.hear()) == 400


def test_52_compressed_bodies_are_not_unfolded(connect: Callable[[], Wire], url: str) -> None:
    bomb = gzip.compress(bytes(64 << 20))
    for encoding in ("gzip", "deflate", "br", "gzip, identity", "GZIP"):
        headers = {"Content-Encoding": encoding}
        answer = httpx.post(f"{url}/collections/c/count", content=bomb, headers=headers, timeout=60)
        assert answer.status_code == 415 and answer.json()["code"] == "unsupported_media_type"
    plain = httpx.post(f"{url}/collections/c/count", content=BODY, headers={"Content-Encoding": "identity"}, timeout=60)
    assert plain.status_code == 200


def test_bodies_above_the_limit(connect: Callable[[], Wire]) -> None:
    declared = connect()
    declared.say(HEAD + b"Content-Length: %d\r\nExpect: 100-continue\r\n\r\n" % (LIMIT + 1))
    answer = declared.hear()
    assert status(answer) == 413 and b"too_large" in answer and b"connection: close" in answer.lower()

    chunked = connect()
    chunked.say(HEAD + CHUNKED + b"\r\n")
    chunk = b"%x\r\n" % (LIMIT // 2) + b" " * (LIMIT // 2) + b"\r\n"
    heard = b""
    try:
        for _ in range(8):
            chunked.say(chunk)
    except (BrokenPipeError, ConnectionResetError):
        heard = b"HTTP/1.1 413 "  # refused while we were still talking
    heard = chunked.hear() or heard
    assert status(heard) == 413


def test_all_bodies_together_are_bounded(connect: Callable[[], Wire], url: str) -> None:
    wires = {wire.socket: wire for wire in (connect() for _ in range(4))}
    body = BODY + b" " * (LIMIT - len(BODY))
    for wire in wires.values():
        wire.say(HEAD + b"Connection: close\r\nContent-Length: %d\r\n\r\n" % LIMIT + body[:-1])
    (answered, *others), _, _ = select.select(list(wires), [], [], 60)
    refused = wires.pop(answered).hear()
    assert not others and status(refused) == 429
    assert b"retry-after" in refused.lower() and b"overloaded" in refused
    for wire in wires.values():  # there is room for three
        wire.say(body[-1:])
        assert status(wire.hear()) == 200
    # and all of it is given back
    for _ in range(4):
        full = BODY + b" " * (LIMIT - len(BODY))
        headers = {"Content-Type": "application/json"}
        assert httpx.post(f"{url}/collections/c/count", content=full, headers=headers, timeout=60).status_code == 200


def test_headers_that_must_not_come_twice(connect: Callable[[], Wire]) -> None:
    wire = connect()
    wire.say(
        b"GET /collections HTTP/1.1\r\nX-Vecraft-Snapshot: 5\r\nX-Vecraft-Snapshot: 6\r\nConnection: close\r\n\r\n"
    )
    answer = wire.hear()
    assert status(answer) == 400 and b"more than once" in answer


def test_request_ids(url: str) -> None:
    good = httpx.get(f"{url}/healthz", headers={"X-Request-Id": "mine-1"}, timeout=60)
    assert good.headers["x-request-id"] == "mine-1"
    for bad in ("x" * 200, "a b"):
        assert httpx.get(f"{url}/healthz", headers={"X-Request-Id": bad}, timeout=60).headers["x-request-id"] != bad
    assert httpx.get(f"{url}/nope", headers={"X-Request-Id": "mine-2"}, timeout=60).json()["request_id"] == "mine-2"


def test_methods_and_paths(url: str) -> None:
    answer = httpx.put(f"{url}/collections/c/search", json={}, timeout=60)
    assert (
        answer.status_code == 405
        and answer.json()["code"] == "method_not_allowed"
        and answer.headers["allow"] == "POST"
    )
    for path in ("/nope", "/collections/c/nope", "/collections/", "/collections/c/", "/%2e%2e/etc/passwd"):
        answer = httpx.get(f"{url}{path}", timeout=60)
        assert (answer.status_code, answer.json()["code"]) == (404, "no_such_route"), path
