"""The REST gateway as an ASGI application.

    engine = Engine(router, AsyncRunner(router, ports), clock, tokens)
    app = create_app(engine, api_keys=["…"])

One request: :class:`~vecraft_router.gateway.door.Door` (id, key, bounded body) → FastAPI's routing → a handler in
:mod:`vecraft_router.gateway.routes`, which checks its arguments with the model room's validators, runs one flow of
the router and encodes the answer → Door again (problem details, counters).

FastAPI serves ``/docs`` (with the files of Swagger UI, so that a browser needs no internet) and ``/openapi.json`` and
routes requests. Its pydantic validation is not used: bodies are msgspec structs, checked values are the model room's,
so REST and Python report the same errors. The gateway keeps no state between requests; any number of them can stand in
front of one cluster.
"""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any

import msgspec
from fastapi import FastAPI
from fastapi_offline import FastAPIOffline
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route as StarletteRoute
from starlette.types import Receive, Scope, Send

from vecraft_router.gateway.auth import DOCS_FILES, ApiKeys
from vecraft_router.gateway.context import Backups, Engine, Gateway, Plotter
from vecraft_router.gateway.door import Door, Limits
from vecraft_router.gateway.metrics import GatewayMetrics
from vecraft_router.gateway.problems import MEDIA_TYPE, problem_response
from vecraft_router.gateway.routes import Handler, Route, catalog, records, searching, service, transactions

DESCRIPTION = """
A vector is a JSON list, or `{"b64": …, "dtype": "float32", "shape": [n]}`. Errors are RFC 9457 problem details with a
stable `code`.

Headers: `X-Consistency-Level` (session, strong, eventual, bounded), `X-Max-Staleness-Ms`, `X-Session-Token` (from
each answer into the next request), `X-Vecraft-Snapshot` (read at a timestamp), `X-Timeout-Ms`, `X-Vector-Encoding`
(list, base64), `Idempotency-Key` (a transaction id), `X-Request-Id`. A scan with a `cursor` is read at the cursor's
snapshot, whatever the level.
"""


def create_app(
    engine: Engine,
    *,
    api_keys: Sequence[str] = (),
    limits: Limits | None = None,
    plotter: Plotter | None = None,
    backups: Backups | None = None,
    on_shutdown: Callable[[], Awaitable[None]] | None = None,
) -> FastAPI:
    """Return the gateway in front of ``engine``.

    Args:
        engine: The database.
        api_keys: Who may call; nobody needs a key when there are none.
        limits: What one request, and all of them together, may cost.
        plotter: Draws ``tsne.png``; without one that route answers ``tsne_failure``.
        backups: Writes backups; without it that route refuses.
        on_shutdown: Awaited on the server's event loop after the last request.

    Raises:
        InvalidDataException: An API key that no header could carry.
    """

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        try:
            yield
        finally:
            if on_shutdown is not None:
                await on_shutdown()

    limits = limits or Limits()
    metrics = GatewayMetrics()
    gateway = Gateway(engine, limits, metrics, plotter, backups)
    app = FastAPIOffline(
        title="VecraftDB",
        description=DESCRIPTION,
        version="1",
        lifespan=lifespan,
        docs_url="/docs",
        redoc_url=None,
        static_url=DOCS_FILES,
        redirect_slashes=False,
    )
    listed = [route for room in (searching, records, catalog, transactions, service) for route in room.routes(gateway)]
    for route in listed:
        app.router.routes.append(StarletteRoute(route.path, _Endpoint(route.handler), methods=[route.method]))
    _publish(app, listed)
    app.add_exception_handler(HTTPException, _no_route)
    app.add_middleware(Door, limits=limits, keys=ApiKeys(api_keys), metrics=metrics)
    return app


async def _no_route(request: Request, error: Exception) -> Response:
    """What routing itself refuses: an unknown path, a wrong method."""
    request_id = request.scope["vecraft.request_id"]
    if isinstance(error, HTTPException) and error.status_code == 405:
        detail = f"{request.method} is not accepted here"
        return problem_response(405, "method_not_allowed", detail, {}, request_id, dict(error.headers or {}))
    return problem_response(
        404, "no_such_route", f"no route {request.url.path[:200]!r}; /docs lists all", {}, request_id
    )


class _Endpoint:
    """A handler as an ASGI application. FastAPI's own wrapping of handlers costs more than most of them."""

    def __init__(self, handler: Handler) -> None:
        self._handler = handler

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        response = await self._handler(Request(scope, receive))
        await response(scope, receive, send)


def _publish(app: FastAPI, listed: Sequence[Route]) -> None:
    """Describe the routes in ``/openapi.json``, and so in ``/docs``."""
    generate = app.openapi

    def openapi() -> dict[str, Any]:
        if app.openapi_schema is None:
            document = generate()
            bodies = [route.body for route in listed if route.body is not None]
            schemas, components = msgspec.json.schema_components(bodies, ref_template="#/components/schemas/{name}")
            body_schemas = dict(zip(bodies, schemas, strict=True))
            paths: dict[str, Any] = {}
            for route in listed:
                paths.setdefault(route.path.replace(":path", ""), {})[route.method.lower()] = _operation(
                    route, None if route.body is None else body_schemas[route.body]
                )
            document["paths"] = paths
            document["components"] = {"schemas": components}
            app.openapi_schema = document
        return app.openapi_schema

    app.openapi = openapi  # type: ignore[method-assign]


def _operation(route: Route, body_schema: dict[str, Any] | None) -> dict[str, Any]:
    operation: dict[str, Any] = {
        "summary": route.summary,
        "operationId": _operation_id(route),
        "responses": {
            "200": {"description": route.answer, "content": {route.media_type: {}}},
            "default": {"description": "Problem details", "content": {MEDIA_TYPE: {}}},
        },
    }
    names = re.findall(r"{(\w+)(?::path)?}", route.path)
    if names:
        operation["parameters"] = [
            {"name": name, "in": "path", "required": True, "schema": {"type": "string"}} for name in names
        ]
    if body_schema is not None:
        operation["requestBody"] = {"required": True, "content": {"application/json": {"schema": body_schema}}}
    return operation


def _operation_id(route: Route) -> str:
    words = re.findall(r"\w+", route.path.replace(":path", ""))
    return "_".join([route.method.lower(), *words])
