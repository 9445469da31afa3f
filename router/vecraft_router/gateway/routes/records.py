"""Single records and batches: insert, upsert, get, delete, scan, count."""

from __future__ import annotations

import asyncio
from typing import Any

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from vecraft_data_model.errors import InvalidDataException, RecordNotFoundError
from vecraft_data_model.messages import Delete, Mutation, Put
from vecraft_data_model.scan_options import ScanOptions
from vecraft_data_model.schema import validate_name
from vecraft_data_model.validation import check_expect, check_integer, check_record_id, check_record_ids, check_txn_id
from vecraft_router.gateway import cursors
from vecraft_router.gateway.body import read_as
from vecraft_router.gateway.columns import rows_to_columns
from vecraft_router.gateway.context import LARGE_BODY_BYTES, Call, Gateway
from vecraft_router.gateway.records import Include, include_of, put_of_columns, put_of_packets, rows_to_json
from vecraft_router.gateway.routes import Route
from vecraft_router.gateway.routes.searching import parse_filters
from vecraft_router.gateway.schemas import CountBody, DeleteBody, GetBody, InsertBody, ScanBody, UpsertBody
from vecraft_router.options import ReadOptions
from vecraft_router.results import Commit

SCAN_PAGE_MAX = 10_000
EVERYTHING = Include(metadata=True, document=True, vector=True)


def routes(gateway: Gateway) -> list[Route]:
    """List the routes of this module."""
    here = _Records(gateway)
    one = "/collections/{c}/records/{id:path}"
    return [
        Route("POST", "/collections/{c}/insert", here.insert, "Insert or replace a record", InsertBody, "The preimage"),
        Route("POST", "/collections/{c}/upsert", here.upsert, "Insert or replace records, atomically", UpsertBody),
        Route("POST", "/collections/{c}/get", here.get, "Records by id", GetBody),
        Route("POST", "/collections/{c}/delete", here.delete, "Delete records", DeleteBody),
        Route("POST", "/collections/{c}/scan", here.scan, "A page of records in id order", ScanBody),
        Route("POST", "/collections/{c}/count", here.count, "Count records", CountBody, "{count}"),
        Route("GET", one, here.get_one, "A record"),
        Route("DELETE", one, here.delete_one, "Delete a record", answer="The preimage, or null"),
    ]


class _Records:
    def __init__(self, gateway: Gateway) -> None:
        self._gateway = gateway

    async def insert(self, request: Request) -> Response:
        call = self._gateway.call(request, "insert")
        body = read_as(request, InsertBody)
        put = put_of_packets(validate_name(call.path("c")), [body.packet], check_expect(body.expect))
        return await self._preimage(call, put, body.txn_id)

    async def upsert(self, request: Request) -> Response:
        call = self._gateway.call(request, "insert")
        if len(request.scope["vecraft.body"]) > LARGE_BODY_BYTES:
            txn_id, put = await asyncio.to_thread(self._read_upsert, call, request)
        else:
            txn_id, put = self._read_upsert(call, request)
        commit = await self._commit(call, put, txn_id)
        return call.answer(msgspec.structs.asdict(commit.result), seen=commit.result.commit_ts)

    async def get(self, request: Request) -> Response:
        call = self._gateway.call(request, "get")
        body = read_as(request, GetBody)
        if (body.record_id is None) == (body.ids is None):
            raise InvalidDataException('get needs either "record_id" or "ids"')
        if body.record_id is not None:
            return await self._one(call, check_record_id(body.record_id), include_of(body.include))
        ids = check_record_ids(body.ids, distinct=False)
        include = include_of(body.include)
        name = validate_name(call.path("c"))
        columns = body.format == "columns"
        # Rows always with vectors: without them checksums could not be verified. Columns are verified by their reader.
        reply = await self._gateway.run(
            self._gateway.router.get(
                name, list(dict.fromkeys(ids)), call.options(), with_vectors=include.vector or not columns
            )
        )
        data: Any
        if columns:
            data = {"snapshot": reply.snapshot, "rows": rows_to_columns(reply.rows)}
        else:
            found = dict(zip(reply.rows.ids, rows_to_json(reply.rows, include, call.base64), strict=True))
            data = [found.get(record_id) for record_id in ids]
        return call.answer(data, snapshot=reply.snapshot)

    async def get_one(self, request: Request) -> Response:
        call = self._gateway.call(request, "get")
        return await self._one(call, check_record_id(call.path("id")), EVERYTHING)

    async def delete(self, request: Request) -> Response:
        call = self._gateway.call(request, "delete")
        body = read_as(request, DeleteBody)
        name = validate_name(call.path("c"))
        expect = check_expect(body.expect)
        filtered = body.where is not None or body.where_document is not None
        if (body.record_id is not None) + (body.ids is not None) + filtered != 1:
            raise InvalidDataException(
                'delete needs one of "record_id", "ids", or a filter ("where", "where_document")'
            )
        if body.record_id is not None:
            return await self._preimage(call, Delete(name, [check_record_id(body.record_id)], expect), body.txn_id)
        if body.ids is not None:
            commit = await self._commit(
                call, Delete(name, check_record_ids(body.ids), expect), call.txn_id(body.txn_id)
            )
        else:
            if expect is not None:
                raise InvalidDataException("expect goes with record_id or ids, not with a filter")
            where, where_document = parse_filters(body.where, body.where_document)
            txn_id = call.txn_id(body.txn_id)
            commit = await self._gateway.run(
                self._gateway.router.delete_where(
                    name,
                    where=where,
                    where_document=where_document,
                    txn_id=None if txn_id is None else check_txn_id(txn_id),
                    options=call.options(),
                )
            )
        return call.answer(msgspec.structs.asdict(commit.result), seen=commit.result.commit_ts)

    async def delete_one(self, request: Request) -> Response:
        call = self._gateway.call(request, "delete")
        name = validate_name(call.path("c"))
        return await self._preimage(call, Delete(name, [check_record_id(call.path("id"))]), None)

    async def scan(self, request: Request) -> Response:
        call = self._gateway.call(request)
        body = read_as(request, ScanBody, optional=True)
        name = validate_name(call.path("c"))
        include = include_of(body.include)
        limit = check_integer(body.limit, "limit", 1, SCAN_PAGE_MAX)
        where, where_document = parse_filters(body.where, body.where_document)
        filters = cursors.digest_of(body.where, body.where_document)
        options = call.options()
        after = None if body.after is None else check_record_id(body.after)
        if body.cursor is not None:
            if after is not None:
                raise InvalidDataException("give cursor or after, not both")
            cursor = cursors.unseal(body.cursor, name, filters, self._gateway.tokens)
            if options.as_of not in (None, cursor.snapshot):
                raise InvalidDataException(
                    f"this cursor's snapshot is {cursor.snapshot}, X-Vecraft-Snapshot says {options.as_of}"
                )
            after = cursor.after
            options = ReadOptions(as_of=cursor.snapshot, min_ts=options.min_ts, deadline=options.deadline)
        wanted = ScanOptions(
            after, limit, where, where_document, include.payload or include.vector, with_vectors=include.vector
        )
        reply = await self._gateway.run(self._gateway.router.scan_page(name, wanted, options))
        following = None
        if reply.more and reply.rows.ids:
            following = cursors.seal(
                cursors.Cursor(name, reply.snapshot, reply.rows.ids[-1], filters), self._gateway.tokens
            )
        data: dict[str, Any] = {"cursor": following, "snapshot": reply.snapshot}
        if body.format == "columns":
            data["rows"] = rows_to_columns(reply.rows)
            data["more"] = reply.more
        else:
            data["records"] = rows_to_json(reply.rows, include, call.base64)
        return call.answer(data, snapshot=reply.snapshot)

    async def count(self, request: Request) -> Response:
        call = self._gateway.call(request)
        body = read_as(request, CountBody, optional=True)
        where, where_document = parse_filters(body.where, body.where_document)
        name = validate_name(call.path("c"))
        reply = await self._gateway.run(
            self._gateway.router.count(name, where=where, where_document=where_document, options=call.options())
        )
        return call.answer({"count": reply.count}, snapshot=reply.snapshot)

    def _read_upsert(self, call: Call, request: Request) -> tuple[Any, Put]:
        body = read_as(request, UpsertBody)
        return call.txn_id(body.txn_id), put_of_upsert(validate_name(call.path("c")), body)

    async def _one(self, call: Call, record_id: str, include: Include) -> Response:
        name = validate_name(call.path("c"))
        reply = await self._gateway.run(self._gateway.router.get(name, [record_id], call.options()))
        if not reply.rows.ids:
            raise RecordNotFoundError(
                f"there is no record {record_id!r} in collection {name!r}", collection=name, record_id=record_id
            )
        return call.answer(rows_to_json(reply.rows, include, call.base64)[0], snapshot=reply.snapshot)

    async def _commit(self, call: Call, mutation: Mutation, txn_id: Any, want_preimages: bool = False) -> Commit:
        checked = None if txn_id is None else check_txn_id(txn_id)
        return await self._gateway.run(
            self._gateway.router.commit(
                [mutation], txn_id=checked, want_preimages=want_preimages, deadline=call.deadline
            )
        )

    async def _preimage(self, call: Call, mutation: Mutation, in_body: Any) -> Response:
        commit = await self._commit(call, mutation, call.txn_id(in_body), want_preimages=True)
        rows = commit.preimages
        old = rows_to_json(rows, EVERYTHING, call.base64) if rows is not None and rows.ids else [None]
        response = call.answer(old[0], seen=commit.result.commit_ts)
        response.headers["X-Vecraft-Txn-Id"] = commit.result.txn_id
        response.headers["X-Vecraft-Commit-Ts"] = str(commit.result.commit_ts)
        return response


def put_of_upsert(name: str, body: UpsertBody) -> Put:
    """Return the mutation of an upsert.

    Raises:
        InvalidDataException: Packets and columns together, or neither; or a record is not acceptable.
    """
    expect = check_expect(body.expect)
    if body.packets is not None:
        columns = (body.ids, body.vectors, body.metadatas, body.documents, body.payloads, body.checksum_algorithm)
        if any(column is not None for column in columns):
            raise InvalidDataException('give "packets" or columns ("ids", "vectors", …), not both')
        return put_of_packets(name, body.packets, expect)
    return put_of_columns(
        name, body.ids, body.vectors, body.metadatas, body.documents, body.payloads, body.checksum_algorithm, expect
    )
