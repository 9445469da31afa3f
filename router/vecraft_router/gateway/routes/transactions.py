"""Transactions that arrive complete, and the snapshots they are read at.

An interactive transaction over REST is a client's matter: it asks for a snapshot, reads with ``X-Vecraft-Snapshot``,
keeps what it writes to itself, and sends all of it here at the end. So a gateway holds no transaction open for
anybody.

Operations are committed as they came if each writes records of its own. If not, or if one deletes by filter, they are
first carried out in an interactive transaction here, which is left with what is to be committed: so they mean what they
mean in a client's transaction.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

import msgspec
from msgspec import UNSET
from starlette.requests import Request
from starlette.responses import Response

from vecraft_data_model.errors import InvalidDataException, WriteConflictException
from vecraft_data_model.filters import DocumentFilter, Filter, parse_instant
from vecraft_data_model.hlc import INFINITY_TS, timestamp_of
from vecraft_data_model.messages import (
    AlterCollection,
    CreateCollection,
    Delete,
    DropAlias,
    DropCollection,
    Mutation,
    Put,
    SetAlias,
)
from vecraft_data_model.schema import CollectionSchema, validate_name
from vecraft_data_model.validation import (
    check_expect,
    check_integer,
    check_record_id,
    check_record_ids,
    check_txn_id,
    shown,
)
from vecraft_router.asking import Patience
from vecraft_router.effects import Flow
from vecraft_router.gateway.body import read_as
from vecraft_router.gateway.columns import rows_to_columns
from vecraft_router.gateway.context import LARGE_BODY_BYTES, Call, Gateway
from vecraft_router.gateway.records import Include, put_of_columns, put_of_packets, rows_to_json
from vecraft_router.gateway.routes import Route
from vecraft_router.gateway.routes.searching import parse_filters
from vecraft_router.gateway.schemas import Operation, SnapshotBody, TransactionBody
from vecraft_router.options import ReadOptions
from vecraft_router.results import Commit
from vecraft_router.transactions import InteractiveTransaction

TTL_MS_MAX = 24 * 3600 * 1000
EVERYTHING = Include(metadata=True, document=True, vector=True)
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


@dataclass(frozen=True)
class DeleteWhere:
    """Delete what matches at the transaction's snapshot, with what the operations before have written."""

    collection: str
    where: Filter | None
    where_document: DocumentFilter | None


Step = Mutation | DeleteWhere


def routes(gateway: Gateway) -> list[Route]:
    """List the routes of this module."""
    here = _Transactions(gateway)
    return [
        Route("POST", "/transactions", here.commit, "Commit operations, all or none", TransactionBody),
        Route(
            "GET", "/snapshots", here.choose, "A timestamp to read at, as fresh as the headers ask", answer="{snapshot}"
        ),
        Route("POST", "/snapshots", here.pin, "Keep the history of a snapshot", SnapshotBody, "{snapshot, pin_id}"),
        Route("DELETE", "/snapshots/{ts}", here.release, "Let go of it (?pin_id=, if it was pinned under one)"),
    ]


class _Transactions:
    def __init__(self, gateway: Gateway) -> None:
        self._gateway = gateway

    async def commit(self, request: Request) -> Response:
        call = self._gateway.call(request, "insert")
        if len(request.scope["vecraft.body"]) > LARGE_BODY_BYTES:
            body, steps = await asyncio.to_thread(_read, request)
        else:
            body, steps = _read(request)
        commit = await self._gateway.run(self._carry_out(steps, body, call))
        data: dict[str, Any] = msgspec.structs.asdict(commit.result)
        if body.preimages:
            rows = commit.preimages
            if body.format == "columns":
                data["preimages"] = None if rows is None else rows_to_columns(rows)
            else:
                data["preimages"] = [] if rows is None else rows_to_json(rows, EVERYTHING, call.base64)
        return call.answer(data, seen=commit.result.commit_ts)

    def _carry_out(self, steps: Sequence[Step], body: TransactionBody, call: Call) -> Flow[Commit]:
        given = call.txn_id(body.txn_id)
        txn_id = None if given is None else check_txn_id(given)
        snapshot = _snapshot(body, call)
        reads = _reads(body, snapshot)
        router, deadline = self._gateway.router, call.deadline
        mutations = [step for step in steps if not isinstance(step, DeleteWhere)]
        filtered = len(mutations) < len(steps)
        independent = not filtered and _each_writes_its_own(mutations)
        expects = any(isinstance(step, Put | Delete) and step.expect is not None for step in mutations)
        looked_at = snapshot is None and not independent
        chosen_here = looked_at and (filtered or expects)
        changes_catalog = any(not isinstance(step, Put | Delete) for step in mutations)
        if txn_id is not None and (chosen_here or (looked_at and changes_catalog)):
            raise InvalidDataException(
                "a transaction with a txn_id that deletes by filter, or writes records several times and expects "
                "something of them or changes the catalog, needs the snapshot to look at (GET /snapshots): sent again, "
                "it must be the same",
                txn_id=txn_id,
            )
        patience = Patience(router.state, deadline)
        while True:
            validated_at = snapshot
            if not independent:
                transaction = router.transaction(
                    options=call.options() if snapshot is None else ReadOptions(as_of=snapshot)
                )
                for step in steps:
                    yield from _write(transaction, step, deadline)
                mutations = transaction.mutations()
                validated_at = transaction.snapshot if chosen_here else snapshot
            try:
                return (
                    yield from router.commit(
                        mutations,
                        txn_id=txn_id,
                        snapshot=validated_at,
                        reads=reads,
                        want_preimages=body.preimages,
                        deadline=deadline,
                    )
                )
            except WriteConflictException:
                # Nobody has built anything on a snapshot that was chosen here, so another one does as well.
                if not chosen_here or not (yield from patience.pause()):
                    raise

    async def choose(self, request: Request) -> Response:
        call = self._gateway.call(request)
        snapshot = await self._gateway.run(self._gateway.router.choose_snapshot(call.options()))
        return call.answer({"snapshot": snapshot}, snapshot=snapshot)

    async def pin(self, request: Request) -> Response:
        call = self._gateway.call(request)
        body = read_as(request, SnapshotBody, optional=True)
        ttl_ms = check_integer(body.ttl_ms, "ttl_ms", 1, TTL_MS_MAX)
        options = call.options()
        if body.as_of is not None:
            as_of: int | None = _moment(body.as_of)
        else:
            as_of = options.as_of if isinstance(options.as_of, int) else None
        router = self._gateway.router
        if as_of is None:
            as_of = await self._gateway.run(router.choose_snapshot(options))
        pin_id = _shared_pin(as_of) if body.pin_id is None else _check_pin(body.pin_id)
        pin = await self._gateway.run(router.pin(as_of, ttl_ms=ttl_ms, pin_id=pin_id, options=options))
        data = {"snapshot": pin.snapshot, "pin_id": pin.pin_id, "ttl_ms": ttl_ms}
        return call.answer(data, snapshot=pin.snapshot, status=201)

    async def release(self, request: Request) -> Response:
        call = self._gateway.call(request)
        text = call.path("ts")
        ts = check_integer(
            int(text) if text.isascii() and text.isdigit() and len(text) < 20 else text, "ts", 1, INFINITY_TS
        )
        given = request.query_params.get("pin_id")
        pin_id = _shared_pin(ts) if given is None else _check_pin(given)
        await self._gateway.run(self._gateway.router.release(pin_id, deadline=call.deadline))
        return call.answer({"snapshot": ts, "pin_id": pin_id})


def _shared_pin(ts: int) -> str:
    """The pin of those who name none: whoever pins this timestamp renews it, whoever releases it releases it."""
    return f"snapshot-{ts}"


def _moment(as_of: object) -> int:
    """Return the timestamp that is to be read at, given as such or as a datetime."""
    instant = parse_instant(as_of) if isinstance(as_of, str) else None
    if instant is not None:
        return max(1, timestamp_of(_EPOCH + timedelta(microseconds=instant)))
    if isinstance(as_of, str):
        raise InvalidDataException(
            f"as_of must be a commit timestamp or an ISO 8601 datetime like 2025-01-31T12:00:00Z; got {as_of[:80]!r}"
        )
    return check_integer(as_of, "as_of", 1, INFINITY_TS)


def _check_pin(pin_id: object) -> str:
    if not isinstance(pin_id, str) or not 1 <= len(pin_id) <= 128 or not pin_id.isprintable():
        raise InvalidDataException(f"pin_id must be 1 to 128 printable characters, got {str(pin_id)[:100]!r}")
    return pin_id


def _snapshot(body: TransactionBody, call: Call) -> int | None:
    in_header = call.snapshot()
    if body.snapshot is None:
        return in_header
    snapshot = check_integer(body.snapshot, "snapshot", 1, INFINITY_TS)
    if in_header not in (None, snapshot):
        raise InvalidDataException(f"snapshot is {snapshot}, X-Vecraft-Snapshot says {in_header}; give one")
    return snapshot


def _reads(body: TransactionBody, snapshot: int | None) -> list[tuple[str, str]]:
    """Return what is to be validated: ``reads`` count under ``serializable``, which they imply if no level is given."""
    reads = []
    for index, given in enumerate(body.reads):
        pair = [given["collection"], given["record_id"]] if _names_a_record(given) else given
        if not isinstance(pair, list) or len(pair) != 2:
            accepted = '[collection, record_id] or {"collection": …, "record_id": …}'
            raise InvalidDataException(f"reads[{index}] must be {accepted}; got {shown(given)}")
        reads.append((validate_name(pair[0]), check_record_id(pair[1])))
    if body.isolation == "snapshot":
        return []
    if reads and snapshot is None:
        raise InvalidDataException("reads need the snapshot that they were read at")
    return reads


def _names_a_record(given: object) -> bool:
    return isinstance(given, dict) and given.keys() == {"collection", "record_id"}


def _write(transaction: InteractiveTransaction, step: Step, deadline: float) -> Flow[Any]:
    if isinstance(step, DeleteWhere):
        return transaction.delete_where(
            step.collection, where=step.where, where_document=step.where_document, deadline=deadline
        )
    return transaction.write(step, deadline=deadline)


def _each_writes_its_own(mutations: Sequence[Mutation]) -> bool:
    of_records = [mutation for mutation in mutations if isinstance(mutation, Put | Delete)]
    written = [(mutation.collection, record_id) for mutation in of_records for record_id in mutation.ids]
    return len(set(written)) == len(written)


def _read(request: Request) -> tuple[TransactionBody, list[Step]]:
    body = read_as(request, TransactionBody)
    if not body.operations:
        raise InvalidDataException("a transaction needs at least one operation")
    steps: list[Step] = []
    for index, operation in enumerate(body.operations):
        try:
            steps.append(_OPERATIONS[operation.op](operation))
        except InvalidDataException as error:
            raise type(error)(f"operations[{index}]: {error.message}", **error.details) from error
    return body, steps


def _only(operation: Operation, *keys: str) -> None:
    """Refuse keys that this ``op`` does not take."""
    for name in operation.__struct_fields__:
        if name in ("op", "collection", "expect") or name in keys:
            continue
        if getattr(operation, name) is not UNSET:
            raise InvalidDataException(f"op {operation.op!r} does not take {name!r}; it takes {', '.join(keys)}")


def _needed(operation: Operation, key: str) -> Any:
    value = getattr(operation, key)
    if value is UNSET or value is None:
        raise InvalidDataException(f"op {operation.op!r} needs {key!r}")
    return value


def _given(value: Any) -> Any:
    return None if value is UNSET else value


def _insert(operation: Operation) -> Mutation:
    _only(operation, "packet")
    name = validate_name(operation.collection)
    return put_of_packets(name, [_needed(operation, "packet")], check_expect(operation.expect))


def _upsert(operation: Operation) -> Mutation:
    columns = ("ids", "vectors", "metadatas", "documents", "payloads", "checksum_algorithm")
    name = validate_name(operation.collection)
    expect = check_expect(operation.expect)
    if operation.packets is not UNSET:
        _only(operation, "packets")
        return put_of_packets(name, operation.packets, expect)
    _only(operation, *columns)
    ids, vectors, metadatas, documents, payloads, algorithm = (_given(getattr(operation, key)) for key in columns)
    return put_of_columns(name, ids, vectors, metadatas, documents, payloads, algorithm, expect)


def _delete(operation: Operation) -> Step:
    _only(operation, "ids", "record_id", "where", "where_document")
    name = validate_name(operation.collection)
    expect = check_expect(operation.expect)
    where, where_document = _given(operation.where), _given(operation.where_document)
    filtered = where is not None or where_document is not None
    if (operation.ids is not UNSET) + (operation.record_id is not UNSET) + filtered != 1:
        raise InvalidDataException("op 'delete' needs one of 'ids', 'record_id', or a filter (where, where_document)")
    if filtered:
        if expect is not None:
            raise InvalidDataException("expect goes with ids or record_id, not with a filter")
        return DeleteWhere(name, *parse_filters(where, where_document))
    ids = [operation.record_id] if operation.ids is UNSET else operation.ids
    return Delete(name, check_record_ids(ids), expect)


def _create(operation: Operation) -> Mutation:
    _only(operation, "schema")
    fields = _needed(operation, "schema")
    if isinstance(fields, dict) and operation.collection is not None:
        fields = {"name": operation.collection, **fields}
    schema = CollectionSchema.from_dict(fields)
    if operation.collection not in (None, schema.name):
        raise InvalidDataException(f"collection is {operation.collection!r}, schema.name {schema.name!r}")
    return CreateCollection(schema, "")


def _drop(operation: Operation) -> Mutation:
    _only(operation)
    return DropCollection(validate_name(operation.collection))


def _alter(operation: Operation) -> Mutation:
    _only(operation, "changes")
    changes = _needed(operation, "changes")
    if not isinstance(changes, dict):
        raise InvalidDataException("changes must be an object")
    return AlterCollection(validate_name(operation.collection), changes)


def _set_alias(operation: Operation) -> Mutation:
    _only(operation, "alias")
    return SetAlias(validate_name(_needed(operation, "alias"), "an alias"), validate_name(operation.collection))


def _drop_alias(operation: Operation) -> Mutation:
    _only(operation, "alias")
    return DropAlias(validate_name(_needed(operation, "alias"), "an alias"))


_OPERATIONS: dict[str, Callable[[Operation], Step]] = {
    "insert": _insert,
    "upsert": _upsert,
    "delete": _delete,
    "create_collection": _create,
    "drop_collection": _drop,
    "alter_collection": _alter,
    "set_alias": _set_alias,
    "drop_alias": _drop_alias,
}
