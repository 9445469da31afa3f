"""What the REST client says and hears: messages as JSON bodies, answers as replies and errors."""

from __future__ import annotations

import base64
import json
import struct
from typing import Any
from urllib.parse import quote

import msgspec
import numpy as np

from vecraft_data_model.errors import (
    ERRORS_BY_CODE,
    InvalidDataException,
    ShardUnavailableError,
    TimeoutException,
    VecraftError,
)
from vecraft_data_model.filters import DocumentFilter, Filter
from vecraft_data_model.messages import (
    AlterCollection,
    CreateCollection,
    Delete,
    DropAlias,
    DropCollection,
    Mutation,
    Put,
    Refused,
    Rows,
    StatusReply,
)
from vecraft_data_model.packets import CommitResult
from vecraft_data_model.search_options import SearchOptions
from vecraft_db.client.filter_json import where_document_of, where_of
from vecraft_db.client.http_runner import Answer, NoAnswer
from vecraft_router.gateway.columns import pack_payloads, rows_from_columns
from vecraft_router.gateway.vectors import to_base64
from vecraft_router.results import Commit

_REFUSED_INPUT = frozenset({400, 408, 413, 415, 422})
_SEARCH_DEFAULTS = msgspec.structs.asdict(SearchOptions())


def timestamp_in(token: str) -> int:
    """Return the timestamp that a session token says in the open; 0 if it is not one."""
    try:
        ts: int = struct.unpack_from(">Q", base64.urlsafe_b64decode(token + "=" * (-len(token) % 4)))[0]
    except (ValueError, struct.error):
        return 0
    return ts


def error_of(answer: Answer) -> VecraftError:
    """Return the error that a problem response stands for: the same class, message and details as on the server."""
    try:
        problem = msgspec.json.decode(answer.content)
    except (msgspec.DecodeError, UnicodeDecodeError):
        problem = None
    if not isinstance(problem, dict) or "code" not in problem:
        text = answer.content[:200].decode("utf-8", "replace")
        return VecraftError(f"the gateway answered {answer.status}: {text}", status=answer.status)
    details = problem.get("details")
    error = VecraftError.from_dict(
        {
            "code": problem["code"],
            "message": problem.get("detail", ""),
            "details": details if isinstance(details, dict) else {},
        }
    )
    if problem["code"] not in ERRORS_BY_CODE and answer.status in _REFUSED_INPUT:
        return InvalidDataException(error.message, **error.details)
    return error


def is_problem(answer: Answer) -> bool:
    """Return whether the gateway itself said this, in problem details."""
    return answer.headers.get("content-type", "").startswith("application/problem+json")


def unanswered(answer: NoAnswer, details: dict[str, Any]) -> VecraftError:
    """Return the error for a request that got no answer; ``details`` says it was a write, and which."""
    if answer.sent:
        what = "; the outcome is unknown, send it again with the same txn_id" if details else ""
        return TimeoutException(f"the gateway did not answer until the deadline ({answer.reason}){what}", **details)
    if answer.given_up == "late":
        return TimeoutException(answer.reason, **details)
    if answer.given_up == "closed":
        return ShardUnavailableError(answer.reason, **details)
    return ShardUnavailableError(f"no gateway could be reached until the deadline: {answer.reason}", **details)


def encoded(body: dict[str, Any]) -> bytes:
    """Return a request's body."""
    try:
        return msgspec.json.encode(body)
    except OverflowError:  # an integer beyond 64 bits in a filter, which is a number like any other
        return json.dumps(body).encode()


def decoded(answer: Answer) -> Any:
    """Return what is in an answer.

    Raises:
        VecraftError: It is not JSON: something else than a gateway answered.
    """
    try:
        return msgspec.json.decode(answer.content)
    except (msgspec.DecodeError, UnicodeDecodeError):
        raise VecraftError(
            f"the gateway's answer is not JSON: {answer.content[:100]!r}", status=answer.status
        ) from None


def snapshot_of(answer: Answer) -> int:
    """Return the timestamp that a read was answered at."""
    return int(answer.headers["x-vecraft-snapshot"])


def quoted(collection: str) -> str:
    """Return a collection's name as a segment of a path."""
    return quote(collection, safe="")


def parts(with_payloads: bool, with_vectors: bool) -> list[str]:
    """Return what to include."""
    return [*(("metadata", "document") if with_payloads else ()), *(("vector",) if with_vectors else ())]


def filters(where: Filter | None, where_document: DocumentFilter | None) -> dict[str, Any]:
    """Return parsed filters as keys of a body."""
    body: dict[str, Any] = {}
    if where is not None:
        body["where"] = where_of(where)
    if where_document is not None:
        body["where_document"] = where_document_of(where_document)
    return body


def search_body(wanted: SearchOptions) -> dict[str, Any]:
    """Return what a search asks for as keys of a body; what has its default is left out."""
    body = msgspec.structs.asdict(wanted)
    left_out = [name for name, value in body.items() if value == _SEARCH_DEFAULTS[name]]
    for name in (*left_out, "where", "where_document", "text"):
        body.pop(name, None)
    if wanted.text is not None:
        text = wanted.text
        body.update(query_text=" ".join(text.words), fusion=text.fusion, statistics=text.statistics)
    return {**body, **filters(wanted.where, wanted.where_document)}


def operation(mutation: Mutation) -> dict[str, Any]:
    """Return a mutation as an operation of ``POST /transactions``."""
    if isinstance(mutation, Put):
        return {
            "op": "upsert",
            "collection": mutation.collection,
            "ids": mutation.ids,
            "vectors": to_base64(np.asarray(mutation.vectors)),
            "payloads": pack_payloads(mutation.payloads),
            "expect": mutation.expect,
        }
    if isinstance(mutation, Delete):
        return {"op": "delete", "collection": mutation.collection, "ids": mutation.ids, "expect": mutation.expect}
    if isinstance(mutation, CreateCollection):
        return {"op": "create_collection", "schema": mutation.schema.to_dict()}
    if isinstance(mutation, DropCollection):
        return {"op": "drop_collection", "collection": mutation.name}
    if isinstance(mutation, AlterCollection):
        return {"op": "alter_collection", "collection": mutation.name, "changes": mutation.changes}
    if isinstance(mutation, DropAlias):
        return {"op": "drop_alias", "alias": mutation.alias}
    return {"op": "set_alias", "alias": mutation.alias, "collection": mutation.name}


def commit_of(data: dict[str, Any]) -> Commit:
    """Return what a commit was answered with."""
    result = CommitResult(data["txn_id"], data["commit_ts"], data["count"])
    columns = data.get("preimages")
    preimages: Rows | None = None if columns is None else rows_from_columns(columns)
    return Commit(result, preimages)


def status_of(entry: dict[str, Any]) -> StatusReply | Refused:
    """Return one shard's entry of ``GET /cluster`` as the shard itself would have answered."""
    if entry["status"] != "up":
        return Refused(ShardUnavailableError(str(entry.get("error", "no answer")), shard=entry["shard"]))
    return StatusReply(
        shard=entry["shard"],
        epoch=entry["epoch"],
        lsn=entry["lsn"],
        figures=entry["figures"],
        collections=entry["collections"],
    )
