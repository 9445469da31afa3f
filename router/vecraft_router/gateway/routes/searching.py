"""Searches: the hot routes."""

from __future__ import annotations

import asyncio
from typing import Any

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from vecraft_data_model.errors import InvalidDataException
from vecraft_data_model.filters import DocumentFilter, Filter, parse_where, parse_where_document
from vecraft_data_model.messages import Float32Array
from vecraft_data_model.query_packet import NO_VECTOR
from vecraft_data_model.schema import validate_name
from vecraft_data_model.search_options import QUERIES_MAX, SearchOptions
from vecraft_data_model.validation import as_matrix, as_vector
from vecraft_router.gateway.body import read_as
from vecraft_router.gateway.columns import hits_to_columns
from vecraft_router.gateway.context import LARGE_BODY_BYTES, Call, Gateway
from vecraft_router.gateway.records import Include, hits_to_json, include_of
from vecraft_router.gateway.routes import Route
from vecraft_router.gateway.schemas import SearchBody, SearchFields, SearchManyBody
from vecraft_router.gateway.vectors import matrix_from_wire, vector_from_wire
from vecraft_router.results import Found


def routes(gateway: Gateway) -> list[Route]:
    """List the routes of this module."""
    here = _Searching(gateway)
    return [
        Route(
            "POST",
            "/collections/{c}/search",
            here.search,
            "The k nearest records",
            SearchBody,
            "[{record_id, distance, metadata, document}], nearest first",
        ),
        Route(
            "POST",
            "/collections/{c}/search_many",
            here.search_many,
            "Several searches",
            SearchManyBody,
            "One list each",
        ),
    ]


def parse_filters(where: object, where_document: object) -> tuple[Filter | None, DocumentFilter | None]:
    """Return both filters, parsed.

    Raises:
        InvalidFilterError: With the path of the fault.
    """
    return (
        None if where is None else parse_where(where),
        None if where_document is None else parse_where_document(where_document),
    )


class _Searching:
    def __init__(self, gateway: Gateway) -> None:
        self._gateway = gateway

    async def search(self, request: Request) -> Response:
        call = self._gateway.call(request, "search")
        body = read_as(request, SearchBody)
        query = body.query
        include = include_of(query.include)
        wanted = _wanted(query, body.explain)
        if query.query_vector is None and wanted.text is not None:
            queries = NO_VECTOR
        else:
            vector = as_vector(vector_from_wire(query.query_vector, "query_vector"), what="query_vector")
            queries = vector.reshape(1, -1)
        found = await self._run(call, queries, wanted, body.partial)
        hits = hits_to_json(found.hits[0], include, call.base64)
        data: Any = {"results": hits, "explain": found.explain} if body.explain else hits
        return _partial(call.answer(data, snapshot=found.snapshot), found)

    async def search_many(self, request: Request) -> Response:
        call = self._gateway.call(request, "search")
        if len(request.scope["vecraft.body"]) > LARGE_BODY_BYTES:
            body, include, queries, wanted = await asyncio.to_thread(self._read_many, request)
        else:
            body, include, queries, wanted = self._read_many(request)
        found = await self._run(call, queries, wanted, body.partial)
        data: Any
        if body.format == "columns":
            data = {
                "snapshot": found.snapshot,
                "hits": [hits_to_columns(hits) for hits in found.hits],
                "missing": found.missing,
                "explain": found.explain,
                "statistics": found.statistics,
            }
        else:
            data = [hits_to_json(hits, include, call.base64) for hits in found.hits]
            if body.explain:
                data = {"results": data, "explain": found.explain}
        return _partial(call.answer(data, snapshot=found.snapshot), found)

    async def _run(self, call: Call, queries: Float32Array, wanted: SearchOptions, partial: bool) -> Found:
        return await self._gateway.run(
            self._gateway.router.search(validate_name(call.path("c")), queries, wanted, call.options(partial))
        )

    def _read_many(self, request: Request) -> tuple[SearchManyBody, Include, Float32Array, SearchOptions]:
        body = read_as(request, SearchManyBody)
        apart = body.fusion is None and body.format == "columns"
        wanted = _wanted(msgspec.structs.replace(body, fusion="rrf") if apart else body, body.explain)
        text = wanted.text
        if text is None:
            queries = as_matrix(matrix_from_wire(body.queries, "queries"), what="queries")
        else:
            queries = NO_VECTOR
            if body.queries is not None:
                queries = as_matrix(matrix_from_wire(body.queries, "queries"), what="queries")
            if len(queries) != 1:
                raise InvalidDataException(f"query_text goes with one query at a time, got {len(queries)}")
            if apart:
                text = msgspec.structs.replace(text, fusion=None)
            if body.statistics is not None:
                text = msgspec.structs.replace(text, statistics=body.statistics.checked(text.words))
            wanted = msgspec.structs.replace(wanted, text=text)
        if len(queries) > QUERIES_MAX:
            raise InvalidDataException(f"queries must be at most {QUERIES_MAX} in one request, got {len(queries)}")
        return body, include_of(body.include), queries, wanted


def _wanted(body: SearchFields, explain: bool) -> SearchOptions:
    """Return what a body asks for."""
    return SearchOptions.checked(
        body.k, body.where, body.where_document, body.ef, body.exact, body.max_distance, body.include, explain,
        body.query_text, body.fusion, body.group_by, body.group_size,
    )  # fmt: skip


def _partial(response: Response, found: Found) -> Response:
    """Say which shards are missing from an answer that may be partial."""
    if found.missing:
        response.headers["X-Vecraft-Missing-Shards"] = ",".join(map(str, found.missing))
    return response
