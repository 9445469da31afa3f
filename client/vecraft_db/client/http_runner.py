"""What carries a client's requests to a gateway: on the caller's thread, or on an event loop.

A :class:`~vecraft_db.client.rest_router.RestRouter` makes flows that yield :class:`Http` and ``Sleep`` effects; the
runners here perform them over httpx. As everywhere in VecraftDB, what goes wrong on the way is a value
(:class:`NoAnswer`), because the flow has to reason about it: was the request sent at all?

There is one URL here. Where several gateways stand in front of one cluster, a transport spreads requests over them
(:mod:`vecraft_db.client.balancing`).
"""

from __future__ import annotations

import asyncio
import threading
import weakref
from collections.abc import Callable, Generator, Mapping
from typing import Any, Literal, TypeVar
from urllib.parse import urlsplit

import httpx
import msgspec

from vecraft_data_model.errors import InvalidDataException
from vecraft_data_model.ports import Clock
from vecraft_router.effects import Sleep

T = TypeVar("T")

CONNECT_TIMEOUT_S = 5.0
ANSWER_GRACE_S = 0.5
"""How much longer than its deadline an answer is waited for: the gateway's own word on it says more than silence."""

LIMITS = httpx.Limits(max_connections=256, max_keepalive_connections=64, keepalive_expiry=60.0)


class Http(msgspec.Struct, frozen=True):
    """One request → :class:`Answer` or :class:`NoAnswer`.

    Attributes:
        method: The HTTP method.
        path: Percent-encoded, from the root, with the query.
        body: JSON, or None.
        headers: In addition to the runner's own.
        deadline: Seconds of ``Clock.monotonic``.
    """

    method: str
    path: str
    body: bytes | None
    headers: dict[str, str]
    deadline: float


class Answer(msgspec.Struct, frozen=True):
    """What a gateway said. ``headers`` have lower-case names."""

    status: int
    headers: Mapping[str, str]
    content: bytes


class NoAnswer(msgspec.Struct, frozen=True):
    """Nobody said anything.

    Attributes:
        sent: The request may have arrived, and may have been carried out.
        reason: Why there is no answer.
        given_up: Why another attempt would not help: no time is left, or the client is closed; else None.
    """

    sent: bool
    reason: str
    given_up: Literal["late", "closed"] | None = None


HttpFlow = Generator[Http | Sleep, Any, T]


def check_url(url: str) -> str:
    """Return a gateway's base URL without a trailing slash.

    Raises:
        InvalidDataException: It is not ``http(s)://host[:port][/prefix]``.
    """
    try:
        parts = urlsplit(url)
        fits = parts.scheme in ("http", "https") and bool(parts.hostname) and not parts.query and not parts.fragment
        fits = fits and (parts.port is None or parts.port > 0)
    except (ValueError, AttributeError, TypeError):
        fits = False
    if not fits:
        raise InvalidDataException(f"url must be like http://host:8000, got {str(url)[:200]!r}")
    return url.rstrip("/")


class _Sender:
    """What both runners know: where to send, what with, and until when."""

    def __init__(self, url: str, clock: Clock, api_key: str | None) -> None:
        self.url = check_url(url)
        self.headers = {"Accept": "application/json", "X-Vector-Encoding": "base64"}
        if api_key is not None:
            if not api_key or not all("!" <= char <= "~" for char in api_key):
                raise InvalidDataException("api_key must be printable ASCII without spaces, and not empty")
            self.headers["X-Api-Key"] = api_key
        self._clock = clock

    def request(self, client: httpx.Client | httpx.AsyncClient, effect: Http) -> httpx.Request | None:
        """Return what to send, or None when there is no time left for it."""
        left = effect.deadline - self._clock.monotonic()
        if left <= 0:
            return None
        headers = {**self.headers, **effect.headers}
        if effect.body is not None:
            headers["Content-Type"] = "application/json"
        timeout = httpx.Timeout(left + ANSWER_GRACE_S, connect=min(CONNECT_TIMEOUT_S, left))
        url = self.url + effect.path
        return client.build_request(effect.method, url, content=effect.body, headers=headers, timeout=timeout)


_TOO_LATE = NoAnswer(sent=False, reason="the deadline passed before the request was sent", given_up="late")
_CLOSED = NoAnswer(sent=False, reason="this client is closed", given_up="closed")
_CLOSED_MEANWHILE = NoAnswer(sent=True, reason="this client was closed meanwhile", given_up="closed")
_NOT_SENT = (httpx.ConnectError, httpx.ConnectTimeout, httpx.PoolTimeout)


class HttpRunner:
    """Runs flows on the calling thread. Safe to use from several threads at once.

    Args:
        url: The gateway.
        clock: Time, for deadlines.
        api_key: Sent with every request.
        transport: Carries requests, instead of plain connections to ``url``; closed with the runner.

    Raises:
        InvalidDataException: ``url`` is none, or ``api_key`` could not stand in a header.
    """

    def __init__(
        self, url: str, clock: Clock, api_key: str | None = None, transport: httpx.BaseTransport | None = None
    ) -> None:
        self._sender = _Sender(url, clock, api_key)
        self._client = httpx.Client(limits=LIMITS, trust_env=False, transport=transport)
        self._stopped = threading.Event()

    def run(self, flow: HttpFlow[T]) -> T:
        """Run a flow to its end and return its result, or raise its error."""
        try:
            effect = next(flow)
            while True:
                if isinstance(effect, Http):
                    effect = flow.send(self._perform(effect))
                else:
                    self._stopped.wait(effect.seconds)
                    effect = flow.send(None)
        except StopIteration as stop:
            result: T = stop.value
            return result

    def close(self) -> None:
        """Close all connections. Flows that still run end with an error."""
        self._stopped.set()
        self._client.close()

    def _perform(self, effect: Http) -> Answer | NoAnswer:
        if self._stopped.is_set():
            return _CLOSED
        request = self._sender.request(self._client, effect)
        if request is None:
            return _TOO_LATE
        try:
            response = self._client.send(request)
        except httpx.HTTPError as error:
            return _failure(error)
        except RuntimeError:  # what httpx says when it was closed in between
            if not self._stopped.is_set():
                raise
            return _CLOSED_MEANWHILE
        return Answer(response.status_code, response.headers, response.content)


class AsyncHttpRunner:
    """Runs flows on event loops: each loop gets its own connections.

    Args:
        url: The gateway.
        clock: Time, for deadlines.
        api_key: Sent with every request.
        transport: Makes what carries requests, for each loop, instead of plain connections to ``url``.
    """

    def __init__(
        self,
        url: str,
        clock: Clock,
        api_key: str | None = None,
        transport: Callable[[], httpx.AsyncBaseTransport] | None = None,
    ) -> None:
        self._sender = _Sender(url, clock, api_key)
        self._transport = transport
        self._clients: weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, httpx.AsyncClient]
        self._clients = weakref.WeakKeyDictionary()
        self._lock = threading.Lock()
        self._closed = False

    async def run(self, flow: HttpFlow[T]) -> T:
        """Run a flow to its end and return its result, or raise its error."""
        try:
            effect = next(flow)
            while True:
                if isinstance(effect, Http):
                    effect = flow.send(await self._perform(effect))
                else:
                    await asyncio.sleep(effect.seconds)
                    effect = flow.send(None)
        except StopIteration as stop:
            result: T = stop.value
            return result
        finally:
            flow.close()

    def close(self) -> None:
        """Close the connections of all loops: those of this thread's loop as soon as it goes on, others at once."""
        with self._lock:
            self._closed = True
            clients = list(self._clients.items())
            self._clients.clear()
        try:
            here: asyncio.AbstractEventLoop | None = asyncio.get_running_loop()
        except RuntimeError:
            here = None
        for loop, client in clients:
            if loop is here:
                task = loop.create_task(client.aclose())
                _CLOSING.add(task)
                task.add_done_callback(_CLOSING.discard)
            elif loop.is_running():
                asyncio.run_coroutine_threadsafe(client.aclose(), loop).result(CONNECT_TIMEOUT_S)

    def _client(self) -> httpx.AsyncClient:
        loop = asyncio.get_running_loop()
        client = self._clients.get(loop)
        if client is None:
            with self._lock:
                client = self._clients.get(loop)
                if client is None:
                    transport = None if self._transport is None else self._transport()
                    client = httpx.AsyncClient(limits=LIMITS, trust_env=False, transport=transport)
                    self._clients[loop] = client
        return client

    async def _perform(self, effect: Http) -> Answer | NoAnswer:
        if self._closed:
            return _CLOSED
        client = self._client()
        request = self._sender.request(client, effect)
        if request is None:
            return _TOO_LATE
        try:
            response = await client.send(request)
        except httpx.HTTPError as error:
            return _failure(error)
        except RuntimeError:  # what httpx says when it was closed in between
            if client in self._clients.values():
                raise
            return _CLOSED_MEANWHILE
        return Answer(response.status_code, response.headers, response.content)


_CLOSING: set[asyncio.Task[None]] = set()
"""Clients being closed: an event loop keeps only weak references to its tasks."""


def _failure(error: httpx.HTTPError) -> NoAnswer:
    text = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
    return NoAnswer(sent=not isinstance(error, _NOT_SENT), reason=text)
