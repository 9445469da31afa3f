"""The engine of a database behind a REST gateway: a :class:`RestRouter`, and httpx to carry what it says."""

from __future__ import annotations

import os
import random
import threading
import time
from collections.abc import Callable
from typing import Any, TypeVar

import httpx

from vecraft_data_model.errors import InvalidDataException
from vecraft_db.client.http_runner import AsyncHttpRunner, HttpFlow, HttpRunner, check_url
from vecraft_db.client.rest_router import RestRouter
from vecraft_db.config import Settings
from vecraft_router.session import SessionTokens

T = TypeVar("T")

BACKUP_TIMEOUT_S = 3600.0
"""The longest that a gateway lets a request take."""

_CURSOR_KEY = b"vecraft rest client: scan cursors"
"""What a client seals comes back to a client: this finds damage. Forgery is the gateway's business."""


class WallClock:
    """This machine's time (a :class:`vecraft_data_model.ports.Clock`)."""

    __slots__ = ()

    def now_ms(self) -> int:
        """Milliseconds since the Unix epoch."""
        return time.time_ns() // 1_000_000

    def monotonic(self) -> float:
        """Seconds from an arbitrary start."""
        return time.monotonic()


class RestEngine:
    """A database behind gateways. Safe to use from several threads and event loops.

    Args:
        settings: ``url``, ``timeout``, ``api_key``.
        transport: Carries requests, instead of plain connections to the URL.
        async_transport: Makes the same for one event loop.

    Raises:
        InvalidDataException: The URL is none, or the API key could not stand in a header.
    """

    def __init__(
        self,
        settings: Settings,
        transport: httpx.BaseTransport | None = None,
        async_transport: Callable[[], httpx.AsyncBaseTransport] | None = None,
    ) -> None:
        self._clock = clock = WallClock()
        self._url = check_url(settings.url or "")
        self.router = RestRouter(clock, random.Random(), settings.timeout)
        self.tokens = SessionTokens(_CURSOR_KEY)
        self._runner = HttpRunner(self._url, clock, settings.api_key, transport)
        self._async_runner = AsyncHttpRunner(self._url, clock, settings.api_key, async_transport)
        self._lock = threading.Lock()
        self._closed = False

    def run(self, flow: HttpFlow[T]) -> T:
        """Run a flow of this engine's router on this thread."""
        return self._runner.run(flow)

    async def run_async(self, flow: HttpFlow[T]) -> T:
        """Run a flow of this engine's router on the running event loop."""
        return await self._async_runner.run(flow)

    def describe(self) -> dict[str, Any]:
        """Say where the database is."""
        return {"kind": "rest", "url": self._url}

    def backup(self, path: str | os.PathLike[str]) -> dict[str, Any]:
        """Have the gateway write a backup; says what was written.

        Args:
            path: A name in the gateway's backup directory, on its machine.

        Raises:
            InvalidDataException: The gateway has no backup directory, or that is no new name in it.
        """
        return self.run(self.router.backup(os.fspath(path), deadline=self._clock.monotonic() + BACKUP_TIMEOUT_S))

    def restore(self, path: str | os.PathLike[str]) -> dict[str, Any]:
        """Refuse: a restore replaces what other gateways are serving.

        Raises:
            InvalidDataException: Always.
        """
        raise InvalidDataException(
            f"restore({os.fspath(path)!r}) works where the files are: stop the gateways, and restore with "
            "VecraftClient(root=…) or `vecraft --root … restore`"
        )

    def close(self) -> None:
        """Close all connections; closing twice does nothing."""
        with self._lock:
            if self._closed:
                return
            self._closed = True
        self._runner.close()
        self._async_runner.close()


def open_rest(
    settings: Settings,
    transport: httpx.BaseTransport | None = None,
    async_transport: Callable[[], httpx.AsyncBaseTransport] | None = None,
) -> RestEngine:
    """Return the engine for ``settings.url``; arguments as for :class:`RestEngine`. Nothing is sent yet."""
    return RestEngine(settings, transport, async_transport)
