"""Several gateways behind one HTTP client: which one takes a request, and which is left alone for a while.

A request goes to the gateway with the fewest requests outstanding, the longest unused among equals. A gateway that
cannot be reached, or breaks off a connection, is ejected: it gets nothing for a second, then two, four, up to thirty,
until a request to it succeeds. When all are ejected the one whose time is over first is tried, because trying is better
than refusing.

A request that never left (no connection could be made) is tried at the next gateway at once. Any other failure goes to
the caller, who alone knows whether it may be sent twice. The Host header, and the name that a TLS certificate is
checked for, stay those of the URL the client was given: the service's.
"""

from __future__ import annotations

import threading
import time
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

import httpx

EJECTION_SECONDS_MIN = 1.0
EJECTION_SECONDS_MAX = 30.0
LIMITS = httpx.Limits(max_connections=256, max_keepalive_connections=64, keepalive_expiry=60.0)


@dataclass
class _Gateway:
    """What is known of one gateway; ``last_used`` counts requests."""

    outstanding: int = 0
    last_used: int = 0
    failures: int = 0
    ejected_until: float = 0.0


class GatewayPool:
    """The gateways that are ready, as far as is known. Thread-safe.

    Args:
        monotonic: Seconds, for ejection.
    """

    def __init__(self, monotonic: Callable[[], float] = time.monotonic) -> None:
        self._monotonic = monotonic
        self._lock = threading.Lock()
        self._gateways: dict[str, _Gateway] = {}
        self._requests = 0

    def replace(self, urls: Iterable[str]) -> None:
        """Take these base URLs as the gateways there are; one that was known keeps its state."""
        with self._lock:
            self._gateways = {url: self._gateways.get(url) or _Gateway() for url in urls}

    def urls(self) -> Sequence[str]:
        """Return them all, the best first."""
        now = self._monotonic()

        def rank(url: str) -> tuple[float, int, int]:
            gateway = self._gateways[url]
            return (max(0.0, gateway.ejected_until - now), gateway.outstanding, gateway.last_used)

        with self._lock:
            return sorted(self._gateways, key=rank)

    def began(self, url: str) -> None:
        """Count a request to a gateway."""
        with self._lock:
            self._requests += 1
            gateway = self._gateways.get(url)
            if gateway is not None:  # it may have gone since its URL was asked for
                gateway.outstanding += 1
                gateway.last_used = self._requests

    def ended(self, url: str, reached: bool) -> None:
        """Count the request off; eject the gateway if it could not be reached."""
        with self._lock:
            gateway = self._gateways.get(url)
            if gateway is None:
                return
            gateway.outstanding = max(0, gateway.outstanding - 1)
            if reached:
                gateway.failures, gateway.ejected_until = 0, 0.0
            else:
                gateway.failures += 1
                pause = min(EJECTION_SECONDS_MIN * 2 ** (gateway.failures - 1), EJECTION_SECONDS_MAX)
                gateway.ejected_until = self._monotonic() + pause


# Before a byte was sent, so that another gateway may be tried; then all that speaks against a gateway. A slow answer
# does not: the request may be at fault.
_NEVER_SENT = (httpx.ConnectError, httpx.ConnectTimeout)
_AT_FAULT = (httpx.NetworkError, httpx.RemoteProtocolError, httpx.ConnectTimeout)


class BalancedTransport(httpx.BaseTransport):
    """Sends each request to a gateway of the pool.

    Args:
        pool: The gateways; may change at any time.
        inner: What carries a request; closed with this.
    """

    def __init__(self, pool: GatewayPool, inner: httpx.BaseTransport | None = None) -> None:
        self._pool = pool
        self._inner = inner or httpx.HTTPTransport(trust_env=False, limits=LIMITS)

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        """Send the request to the best gateway, or to the next when that cannot be reached.

        Raises:
            httpx.ConnectError: There is no gateway, or none can be reached.
        """
        fault: httpx.TransportError | None = None
        tried = self._pool.urls()
        for url in tried:
            self._pool.began(url)
            try:
                response = self._inner.handle_request(_addressed(request, url))
            except _NEVER_SENT as error:
                self._pool.ended(url, reached=False)
                fault = error
                continue
            except BaseException as error:
                self._pool.ended(url, reached=not isinstance(error, _AT_FAULT))
                raise
            response.stream = _Stream(response.stream, self._pool, url)
            return response
        raise _unreachable(tried, request) from fault

    def close(self) -> None:
        """Close the connections."""
        self._inner.close()


class AsyncBalancedTransport(httpx.AsyncBaseTransport):
    """:class:`BalancedTransport` for coroutines."""

    def __init__(self, pool: GatewayPool, inner: httpx.AsyncBaseTransport | None = None) -> None:
        self._pool = pool
        self._inner = inner or httpx.AsyncHTTPTransport(trust_env=False, limits=LIMITS)

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        """As :meth:`BalancedTransport.handle_request`."""
        fault: httpx.TransportError | None = None
        tried = self._pool.urls()
        for url in tried:
            self._pool.began(url)
            try:
                response = await self._inner.handle_async_request(_addressed(request, url))
            except _NEVER_SENT as error:
                self._pool.ended(url, reached=False)
                fault = error
                continue
            except BaseException as error:
                self._pool.ended(url, reached=not isinstance(error, _AT_FAULT))
                raise
            response.stream = _AsyncStream(response.stream, self._pool, url)
            return response
        raise _unreachable(tried, request) from fault

    async def aclose(self) -> None:
        """Close the connections."""
        await self._inner.aclose()


def _addressed(request: httpx.Request, url: str) -> httpx.Request:
    gateway = httpx.URL(url)
    request.extensions = {"sni_hostname": request.url.host, **request.extensions}
    request.url = request.url.copy_with(scheme=gateway.scheme, host=gateway.host, port=gateway.port)
    return request


def _unreachable(tried: Sequence[str], request: httpx.Request) -> httpx.ConnectError:
    if not tried:
        return httpx.ConnectError("no gateway is ready", request=request)
    return httpx.ConnectError(f"none of {len(tried)} gateways can be reached: {', '.join(tried)}", request=request)


class _Counted:
    """A response under way: counted off once, when its body is closed."""

    def __init__(self, pool: GatewayPool, url: str) -> None:
        self._pool, self._url, self._over = pool, url, False
        self.reached = True

    def over(self) -> None:
        if not self._over:
            self._over = True
            self._pool.ended(self._url, self.reached)


class _Stream(httpx.SyncByteStream):
    def __init__(self, body: object, pool: GatewayPool, url: str) -> None:
        if not isinstance(body, httpx.SyncByteStream):
            raise TypeError(f"a transport's response must be a synchronous stream, got {type(body).__name__}")
        self._body, self._counted = body, _Counted(pool, url)

    def __iter__(self) -> Iterator[bytes]:
        try:
            yield from self._body
        except _AT_FAULT:
            self._counted.reached = False
            raise

    def close(self) -> None:
        try:
            self._body.close()
        finally:
            self._counted.over()


class _AsyncStream(httpx.AsyncByteStream):
    def __init__(self, body: object, pool: GatewayPool, url: str) -> None:
        if not isinstance(body, httpx.AsyncByteStream):
            raise TypeError(f"a transport's response must be an asynchronous stream, got {type(body).__name__}")
        self._body, self._counted = body, _Counted(pool, url)

    async def __aiter__(self) -> AsyncIterator[bytes]:
        try:
            async for part in self._body:
                yield part
        except _AT_FAULT:
            self._counted.reached = False
            raise

    async def aclose(self) -> None:
        try:
            await self._body.aclose()
        finally:
            self._counted.over()
