"""HTTP/1.1 for uvicorn with a bound on request heads, and the server that uses it.

uvicorn with httptools reads a request's head for as long as the peer cares to send it, in any length. Here a head must
be complete within ``HEAD_TIMEOUT_S`` of the connection's (or the request's) first byte and within ``MAX_HEAD_BYTES``;
the connection is closed otherwise, so a peer that dribbles bytes holds a socket for seconds and no memory. Bodies are
bounded in :mod:`vecraft_router.gateway.body`. Messages with both Content-Length and Transfer-Encoding are refused by
the parser.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Awaitable, Callable
from typing import Any

from starlette.types import ASGIApp
from uvicorn import Config, Server
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

HEAD_TIMEOUT_S = 10.0
MAX_HEAD_BYTES = 64 * 1024


class GuardedProtocol(HttpToolsProtocol):
    """One connection."""

    head_timeout_s = HEAD_TIMEOUT_S
    max_head_bytes = MAX_HEAD_BYTES

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._head_timer: asyncio.TimerHandle | None = None
        self._head_bytes = 0
        self._in_head = True

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Give the first head its time."""
        super().connection_made(transport)
        self._head_timer = self.loop.call_later(self.head_timeout_s, self._head_too_late)

    def connection_lost(self, exc: Exception | None) -> None:
        """Forget the timer."""
        self._stop_timer()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Feed the parser, which may close the connection."""
        if self._in_head:
            self._head_bytes += len(data)
        super().data_received(data)
        # What is still a head after the parser has seen all of ``data`` has only grown.
        if self._in_head and self._head_bytes > self.max_head_bytes and not self.transport.is_closing():
            self.send_400_response(f"The request head is larger than {self.max_head_bytes} bytes.")
            self._stop_timer()

    def on_message_begin(self) -> None:
        """A head begins."""
        super().on_message_begin()
        self._in_head = True
        if self._head_timer is None:
            self._head_timer = self.loop.call_later(self.head_timeout_s, self._head_too_late)

    def on_headers_complete(self) -> None:
        """A head is complete."""
        self._in_head = False
        self._head_bytes = 0
        self._stop_timer()
        super().on_headers_complete()

    def _head_too_late(self) -> None:
        self._head_timer = None
        if not self.transport.is_closing():
            self.transport.close()

    def _stop_timer(self) -> None:
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None


class GatewayServer(Server):
    """A uvicorn server that says when it has begun to serve.

    Args:
        config: uvicorn's.
        on_started: Awaited once connections are taken.
    """

    def __init__(self, config: Config, on_started: Callable[[], Awaitable[None]] | None = None) -> None:
        super().__init__(config)
        self._on_started = on_started

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Start, and say so."""
        await super().startup(sockets)
        if self.started and self._on_started is not None:
            await self._on_started()


def make_server(
    app: ASGIApp,
    host: str,
    port: int,
    *,
    on_started: Callable[[], Awaitable[None]] | None = None,
    connections_max: int = 4096,
) -> GatewayServer:
    """Return a server for the gateway: ``run()`` serves until a signal, or until ``should_exit`` is set."""
    return GatewayServer(
        Config(
            app,
            host=host,
            port=port,
            http=GuardedProtocol,
            ws="none",
            access_log=False,
            log_config=None,
            server_header=False,
            timeout_keep_alive=75,
            timeout_graceful_shutdown=10,
            limit_concurrency=connections_max,
            lifespan="on",
        ),
        on_started,
    )
