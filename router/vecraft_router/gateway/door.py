"""The outermost layer: everything that is decided about a request before and after its route runs.

In order: a request id (the client's ``X-Request-Id`` if it is printable, else a new one) → method and headers → the
API key → the body, bounded (:mod:`vecraft_router.gateway.body`) → the route → its answer, or the problem that any
exception becomes → counted. Nothing raised below leaves this layer, and a body's bytes are given back whatever
happens.

Paths: routes match the path *as it was sent*, still percent-encoded, and each parameter is decoded by itself. So
``%2F`` in a record id is part of the id, ``%2e%2e`` is two dots and never a parent directory, and invalid UTF-8 is an
error instead of ``U+FFFD``.

Pure ASGI, no task of its own: a middleware of the usual kind costs more than a route.
"""

from __future__ import annotations

import os
from time import perf_counter

import msgspec
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from vecraft_router.gateway.auth import ApiKeys
from vecraft_router.gateway.body import BodyBudget, read_body
from vecraft_router.gateway.metrics import GatewayMetrics
from vecraft_router.gateway.problems import Problem, problem_of

SINGLE_HEADERS = (b"content-length", b"x-vecraft-snapshot", b"x-session-token", b"idempotency-key", b"authorization")


class Limits(msgspec.Struct, frozen=True):
    """What one gateway accepts.

    Attributes:
        body_bytes_max: Of one request.
        body_bytes_held_max: Of all requests under way.
        body_timeout_s: From the head of a request to the end of its body.
        timeout_s: Deadline of a request that names none.
        timeout_s_max: The longest a request may ask for.
        plot_points_max: Vectors in one t-SNE picture.
        ready_timeout_s: How long ``/readyz`` and ``/metrics`` wait for a shard.
    """

    body_bytes_max: int = 64 << 20
    body_bytes_held_max: int = 256 << 20
    body_timeout_s: float = 30.0
    timeout_s: float = 10.0
    timeout_s_max: float = 3600.0
    plot_points_max: int = 5000
    ready_timeout_s: float = 2.0


class Door:
    """ASGI middleware; see the module.

    Args:
        app: What is inside.
        limits: What is accepted.
        keys: Who is let in.
        metrics: Where it is counted.
    """

    def __init__(self, app: ASGIApp, limits: Limits, keys: ApiKeys, metrics: GatewayMetrics) -> None:
        self._app = app
        self._limits = limits
        self._keys = keys
        self._metrics = metrics
        self._budget = BodyBudget(limits.body_bytes_held_max)
        metrics.body_bytes.set_function(lambda: self._budget.held)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        began = perf_counter()
        metrics = self._metrics
        metrics.in_flight.inc()
        status = 500
        started = False
        unread = False
        request_id = ""

        async def send_on(message: Message) -> None:
            nonlocal status, started
            if message["type"] == "http.response.start":
                started = True
                status = message["status"]
                message["headers"].append((b"x-request-id", request_id.encode("latin-1")))
                if unread:
                    # Else the rest of the body could go on arriving, at any pace, with nobody's clock on it.
                    message["headers"].append((b"connection", b"close"))
            await send(message)

        body = b""
        try:
            headers: dict[bytes, bytes] = dict(scope["headers"])
            request_id = _request_id(headers.get(b"x-request-id"))
            unread = b"transfer-encoding" in headers or headers.get(b"content-length", b"0") != b"0"
            try:
                if len(headers) != len(scope["headers"]):
                    _refuse_doubles(scope["headers"])
                scope["path"] = scope.get("raw_path", scope["path"].encode()).decode("ascii")
                self._keys.check(scope["path"], headers)
                limits = self._limits
                body = await read_body(receive, headers, limits.body_bytes_max, limits.body_timeout_s, self._budget)
                unread = False
                scope["vecraft.body"] = body
                scope["vecraft.began"] = began
                scope["vecraft.request_id"] = request_id
                scope["vecraft.kind"] = None
                await self._app(scope, receive, send_on)
            except ClientDisconnect:
                status = 499
            except Exception as error:
                if started:
                    raise  # half an answer is out: only closing the connection tells the client
                await problem_of(error, request_id)(scope, receive, send_on)
        finally:
            self._budget.give_back(len(body))
            metrics.in_flight.dec()
            metrics.answered(scope["method"], status, scope.get("vecraft.kind"), perf_counter() - began)


def _request_id(given: bytes | None) -> str:
    if given is not None and 0 < len(given) <= 128 and all(0x21 <= byte <= 0x7E for byte in given):
        return given.decode("ascii")
    return os.urandom(16).hex()


def _refuse_doubles(headers: list[tuple[bytes, bytes]]) -> None:
    """A header that decides something must not come twice: whoever is in front of us might read the other one."""
    names = [name for name, _ in headers]
    for name in SINGLE_HEADERS:
        if names.count(name) > 1:
            raise Problem(400, "invalid_argument", f"the header {name.decode()} came more than once")
