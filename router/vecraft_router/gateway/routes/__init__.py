"""The routes of API.md §4, by subject. Each module has a ``routes(gateway)`` that lists what it serves."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from starlette.requests import Request
from starlette.responses import Response

from vecraft_router.gateway.schemas import Body

Handler = Callable[[Request], Awaitable[Response]]


@dataclass(frozen=True)
class Route:
    """One route.

    Attributes:
        method: The HTTP method.
        path: With ``{parameters}``; a parameter is one segment, or all that is left if it ends in ``:path``.
        handler: What serves it.
        summary: One line for ``/docs``.
        body: What its body must look like.
        answer: What it answers with, for ``/docs``.
        media_type: Of the answer.
    """

    method: str
    path: str
    handler: Handler
    summary: str
    body: type[Body] | None = None
    answer: str = "JSON"
    media_type: str = "application/json"
