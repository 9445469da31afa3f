"""Collections and aliases."""

from __future__ import annotations

from typing import Any
from urllib.parse import quote

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from vecraft_data_model.errors import CollectionAlreadyExistedException, InvalidDataException
from vecraft_data_model.messages import (
    AlterCollection,
    CreateCollection,
    DropAlias,
    DropCollection,
    Mutation,
    SetAlias,
)
from vecraft_data_model.schema import CollectionSchema, check_same_shape, validate_name
from vecraft_data_model.validation import check_ef
from vecraft_router.gateway.body import parse_json, read_as
from vecraft_router.gateway.context import Call, Gateway
from vecraft_router.gateway.problems import Problem
from vecraft_router.gateway.routes import Route
from vecraft_router.gateway.schemas import AliasBody, AlterBody, CreateBody, EfBody
from vecraft_router.options import ReadOptions


def routes(gateway: Gateway) -> list[Route]:
    """List the routes of this module."""
    here = _Catalog(gateway)
    return [
        Route("GET", "/collections", here.list_all, "List the schemas of all collections"),
        Route("POST", "/collections/{c}/create", here.create, "Create a collection", CreateBody, "201: its schema"),
        Route("GET", "/collections/{c}", here.describe, "Describe a collection"),
        Route("PATCH", "/collections/{c}", here.alter, "Change target_recall or ef", AlterBody),
        Route("DELETE", "/collections/{c}", here.drop, "Drop a collection"),
        Route("PUT", "/collections/{c}/ef", here.set_ef, "Set the search depth, not durably", EfBody),
        Route("GET", "/aliases", here.list_aliases, "List aliases: alias → collection"),
        Route("PUT", "/aliases/{a}", here.set_alias, "Let an alias name a collection, atomically", AliasBody),
        Route("DELETE", "/aliases/{a}", here.drop_alias, "Remove an alias"),
    ]


class _Catalog:
    def __init__(self, gateway: Gateway) -> None:
        self._gateway = gateway

    async def list_all(self, request: Request) -> Response:
        call = self._gateway.call(request)
        reply = await self._gateway.run(self._gateway.router.list_collections(call.options()))
        return call.answer([schema.to_dict() for schema in reply.collections], snapshot=reply.snapshot)

    async def list_aliases(self, request: Request) -> Response:
        call = self._gateway.call(request)
        reply = await self._gateway.run(self._gateway.router.list_collections(call.options()))
        return call.answer(reply.aliases, snapshot=reply.snapshot)

    async def create(self, request: Request) -> Response:
        call = self._gateway.call(request)
        name = validate_name(call.path("c"))
        body = parse_json(request.scope["vecraft.body"])
        if not isinstance(body, dict):
            raise Problem(422, "malformed_body", "the body must be a JSON object with the fields of a schema")
        txn_id = call.txn_id(body.pop("txn_id", None))
        if_not_exists = body.pop("if_not_exists", False)
        if not isinstance(if_not_exists, bool):
            raise InvalidDataException(f"if_not_exists must be true or false, got {if_not_exists!r}")
        if body.setdefault("name", name) != name:
            raise InvalidDataException(f"the body names the collection {str(body['name'])[:100]!r}, the path {name!r}")
        schema = CollectionSchema.from_dict(body)
        try:
            seen = await self._commit(call, CreateCollection(schema, ""), txn_id)
        except CollectionAlreadyExistedException:
            if not if_not_exists:
                raise
            now = ReadOptions("strong", deadline=call.deadline)
            present = (await self._gateway.run(self._gateway.router.describe(name, now))).schema
            check_same_shape(schema, present)
            return call.answer(present.to_dict())
        response = call.answer(schema.to_dict(), seen=seen["commit_ts"], status=201)
        response.headers["Location"] = f"/collections/{quote(name, safe='')}"
        return response

    async def describe(self, request: Request) -> Response:
        call = self._gateway.call(request)
        name = validate_name(call.path("c"))
        info = await self._gateway.run(self._gateway.router.describe(name, call.options()))
        return call.answer(info.to_dict())

    async def alter(self, request: Request) -> Response:
        call = self._gateway.call(request)
        body = read_as(request, AlterBody)
        name = validate_name(call.path("c"))
        return await self._committed(call, AlterCollection(name, body.changes), call.txn_id(body.txn_id))

    async def drop(self, request: Request) -> Response:
        call = self._gateway.call(request)
        return await self._committed(call, DropCollection(validate_name(call.path("c"))), call.txn_id(None))

    async def set_ef(self, request: Request) -> Response:
        call = self._gateway.call(request)
        ef = read_as(request, EfBody).ef
        name = validate_name(call.path("c"))
        checked = None if ef is None else check_ef(ef)
        await self._gateway.run(self._gateway.router.set_ef(name, checked, deadline=call.deadline))
        return call.answer({"ef": checked})

    async def set_alias(self, request: Request) -> Response:
        call = self._gateway.call(request)
        body = read_as(request, AliasBody)
        mutation = SetAlias(validate_name(call.path("a"), "an alias"), validate_name(body.collection))
        return await self._committed(call, mutation, call.txn_id(body.txn_id))

    async def drop_alias(self, request: Request) -> Response:
        call = self._gateway.call(request)
        return await self._committed(call, DropAlias(validate_name(call.path("a"), "an alias")), call.txn_id(None))

    async def _commit(self, call: Call, mutation: Mutation, txn_id: Any) -> dict[str, Any]:
        flow = self._gateway.router.commit([mutation], txn_id=txn_id, deadline=call.deadline)
        commit = await self._gateway.run(flow)
        return msgspec.structs.asdict(commit.result)

    async def _committed(self, call: Call, mutation: Mutation, txn_id: Any) -> Response:
        result = await self._commit(call, mutation, txn_id)
        return call.answer(result, seen=result["commit_ts"])
