"""What routes share: the engine they drive, and what a request's headers say.

======================  =======================================================================================
``X-Consistency-Level``  ``session`` (default), ``strong``, ``eventual``, ``bounded`` (with ``X-Max-Staleness-Ms``)
``X-Session-Token``      in every answer, and to be sent with the next request: read your own writes through any
                         gateway, and write after all that you have seen
``X-Vecraft-Snapshot``   read at this timestamp; in the answer of a read, the timestamp it read at
``X-Timeout-Ms``         deadline of this request
``X-Vector-Encoding``    ``list`` (default) or ``base64``: how vectors come back
``Idempotency-Key``      the transaction id, where the body names none
======================  =======================================================================================
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeVar
from urllib.parse import unquote_to_bytes

import msgspec
import numpy as np
import numpy.typing as npt
from starlette.requests import Request
from starlette.responses import Response

from vecraft_data_model.errors import InvalidDataException
from vecraft_data_model.hlc import COUNTER_BITS, INFINITY_TS
from vecraft_data_model.ports import Clock
from vecraft_router.effects import Flow
from vecraft_router.gateway.door import Limits
from vecraft_router.gateway.metrics import GatewayMetrics
from vecraft_router.options import Bounded, Consistency, ReadOptions
from vecraft_router.router import Router
from vecraft_router.session import SessionTokens

T = TypeVar("T")

LARGE_BODY_BYTES = 256 * 1024
"""Bodies above this are parsed and checked on a thread, so that small requests need not wait for them."""

CONSISTENCY_NAMES = ("session", "strong", "eventual", "bounded")


class Runner(Protocol):
    """What carries out flows on the gateway's event loop (``vecraft_router.runners.AsyncRunner``)."""

    async def run(self, flow: Flow[T]) -> T:
        """Return what the flow returns, or raise what it raises."""
        ...


class Plotter(Protocol):
    """Draws vectors (n, dim) float32 as a PNG, on a thread."""

    def __call__(
        self,
        vectors: npt.NDArray[np.float32],
        labels: Sequence[Any] | None,
        *,
        perplexity: float,
        random_state: int,
        title: str | None,
        label_name: str | None,
    ) -> bytes:
        """Return the picture."""
        ...


class Backups(Protocol):
    """Writes backups where the operator lets them be written, on a thread."""

    def __call__(self, path: str | None) -> dict[str, Any]:
        """Write one at ``path`` (None: anywhere) and say what was written.

        Raises:
            InvalidDataException: There is no place for backups, or not at ``path``.
        """
        ...


@dataclass(frozen=True)
class Engine:
    """The database behind a gateway.

    Attributes:
        router: Makes flows.
        runner: Runs them.
        clock: The router's clock.
        tokens: Signs session tokens and cursors with the cluster's secret.
    """

    router: Router
    runner: Runner
    clock: Clock
    tokens: SessionTokens


@dataclass(frozen=True)
class Gateway:
    """An engine with what one gateway adds to it; handed to every route."""

    engine: Engine
    limits: Limits
    metrics: GatewayMetrics
    plotter: Plotter | None = None
    backups: Backups | None = None
    plotting: asyncio.Lock = field(default_factory=asyncio.Lock)
    backing_up: asyncio.Lock = field(default_factory=asyncio.Lock)

    @property
    def router(self) -> Router:
        """The engine's router."""
        return self.engine.router

    @property
    def tokens(self) -> SessionTokens:
        """Signs session tokens and cursors."""
        return self.engine.tokens

    def run(self, flow: Flow[T]) -> Awaitable[T]:
        """Run a flow."""
        return self.engine.runner.run(flow)

    def call(self, request: Request, kind: str | None = None) -> Call:
        """Read the headers of a request; ``kind`` is what ``/metrics`` counts it as.

        Raises:
            InvalidDataException: A header's value is not accepted.
            AuthenticationError: The session token was not signed by this cluster.
        """
        request.scope["vecraft.kind"] = kind
        return Call(self, request)


class Call:
    """One request's deadline, read options and way of answering."""

    __slots__ = ("_headers", "deadline", "gateway", "min_ts", "request", "timeout_s")

    def __init__(self, gateway: Gateway, request: Request) -> None:
        self.gateway = gateway
        self.request = request
        self._headers = request.headers
        limits = gateway.limits
        timeout_ms = self._integer("x-timeout-ms", 1, int(limits.timeout_s_max * 1000))
        self.timeout_s = limits.timeout_s if timeout_ms is None else timeout_ms / 1000
        self.deadline = gateway.engine.clock.monotonic() + self.timeout_s
        token = self._headers.get("x-session-token")
        self.min_ts = 0 if token is None else gateway.tokens.read(token)
        if self.min_ts:
            gateway.router.state.overhear(self.min_ts)  # what this client writes comes after what it has seen

    def path(self, name: str) -> str:
        """Return a path parameter, decoded on its own.

        Raises:
            InvalidDataException: It is not UTF-8.
        """
        raw: str = self.request.path_params[name]
        if "%" not in raw:
            return raw
        try:
            return unquote_to_bytes(raw).decode("utf-8")
        except UnicodeDecodeError:
            raise InvalidDataException(f"{name} in the path must be percent-encoded UTF-8, got {raw[:100]!r}") from None

    def options(self, partial: bool = False) -> ReadOptions:
        """Return the read options that the headers give."""
        return ReadOptions(
            consistency=self._consistency(),
            as_of=self.snapshot(),
            min_ts=self.min_ts,
            deadline=self.deadline,
            partial=partial,
        )

    def snapshot(self) -> int | None:
        """Return the timestamp of ``X-Vecraft-Snapshot``."""
        return self._integer("x-vecraft-snapshot", 0, INFINITY_TS)

    def txn_id(self, in_body: object) -> Any:
        """Return the transaction id of the body or of ``Idempotency-Key``, or None.

        Raises:
            InvalidDataException: Both are given and differ.
        """
        key = self._headers.get("idempotency-key")
        if key is None:
            return in_body
        if in_body is not None and in_body != key:
            raise InvalidDataException(
                f"Idempotency-Key {key[:128]!r} and txn_id {str(in_body)[:128]!r} differ; give one"
            )
        return key

    @property
    def base64(self) -> bool:
        """Whether vectors are to come back in base64.

        Raises:
            InvalidDataException: The header has another value than ``list`` and ``base64``.
        """
        value = self._headers.get("x-vector-encoding", "list")
        if value not in ("list", "base64"):
            raise InvalidDataException(f"X-Vector-Encoding must be list or base64, got {value[:40]!r}")
        return value == "base64"

    def answer(self, data: Any, *, seen: int = 0, snapshot: int | None = None, status: int = 200) -> Response:
        """Return ``data`` as JSON.

        Args:
            data: Anything msgspec encodes.
            seen: The highest timestamp the client sees by this answer: it becomes its session token.
            snapshot: What was read at, for ``X-Vecraft-Snapshot``.
            status: The status code.
        """
        return self.raw(msgspec.json.encode(data), "application/json", seen=seen, snapshot=snapshot, status=status)

    def raw(
        self, content: bytes, media_type: str, *, seen: int = 0, snapshot: int | None = None, status: int = 200
    ) -> Response:
        """Return bytes; arguments as for :meth:`answer`."""
        response = Response(content, status_code=status, media_type=media_type)
        headers = response.raw_headers
        newest = max(seen, self.min_ts, snapshot or 0)
        if newest:
            headers.append((b"x-session-token", self.gateway.tokens.issue(newest).encode("ascii")))
        if snapshot is not None:
            headers.append((b"x-vecraft-snapshot", str(snapshot).encode("ascii")))
        return response

    def _consistency(self) -> Consistency:
        level = self._headers.get("x-consistency-level", "session")
        staleness = self._integer("x-max-staleness-ms", 0, INFINITY_TS >> COUNTER_BITS)
        if level not in CONSISTENCY_NAMES:
            raise InvalidDataException(
                f"X-Consistency-Level must be one of {', '.join(CONSISTENCY_NAMES)}, got {level[:40]!r}"
            )
        if (level == "bounded") != (staleness is not None):
            raise InvalidDataException(
                "X-Max-Staleness-Ms goes with X-Consistency-Level: bounded, and bounded needs it; "
                f"got {level!r} and {staleness!r}"
            )
        return Bounded(staleness) if staleness is not None else level

    def _integer(self, header: str, low: int, high: int) -> int | None:
        text = self._headers.get(header)
        if text is None:
            return None
        value = int(text) if text.isascii() and text.isdigit() and len(text) <= 19 else -1
        if not low <= value <= high:
            raise InvalidDataException(f"{header} must be an integer from {low} to {high}, got {text[:40]!r}")
        return value
