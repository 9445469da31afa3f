"""Errors as RFC 9457 problem details, and the status code that each of them has.

::

    HTTP/1.1 409 Conflict
    content-type: application/problem+json

    {"type": "urn:vecraftdb:problem:write_conflict", "title": "Conflict", "status": 409,
     "code": "write_conflict", "detail": "…", "details": {"record_id": "a"}, "request_id": "…"}

``code`` is stable and is what programs look at: it is the ``code`` of the error in :mod:`vecraft_data_model.errors`,
or one of the few that only exist in HTTP (:class:`Problem`). ``detail`` is for people. An exception that is no
:class:`VecraftError` becomes ``internal``: its text and stack go to the log, never to the client.
"""

from __future__ import annotations

import errno
import logging
from http import HTTPStatus
from typing import Any

import msgspec
from starlette.responses import Response

from vecraft_data_model.errors import StorageFailureException, VecraftError

logger = logging.getLogger("vecraft.gateway")

MEDIA_TYPE = "application/problem+json"
MAX_DETAIL_CHARS = 4000

STATUS_BY_CODE: dict[str, int] = {
    "invalid_argument": 400,
    "dimension_mismatch": 400,
    "null_or_zero_vector": 400,
    "unsupported_metric": 400,
    "invalid_filter": 400,
    "unauthenticated": 401,
    "collection_not_found": 404,
    "record_not_found": 404,
    "collection_exists": 409,
    "precondition_failed": 409,
    "write_conflict": 409,
    "read_write_conflict": 409,
    "snapshot_too_old": 410,
    "overloaded": 429,
    "storage_failure": 500,
    "storage_full": 507,
    "corruption": 500,
    "checksum_mismatch": 500,
    "tsne_failure": 500,
    "internal": 500,
    "shard_unavailable": 503,
    "stale_map": 503,
    "clock_skew": 503,
    "deadline_exceeded": 504,
}
"""Status of every code in ``errors.ERRORS_BY_CODE``; a test holds the two together."""

RETRY_AFTER_S = {429: "1", 503: "1"}


class Problem(Exception):
    """A refusal that only HTTP knows: a body that is no JSON, too large, an unknown route, a wrong method.

    Args:
        status: The HTTP status code.
        code: The stable code.
        detail: What was given and what is accepted.
        headers: Further headers of the answer.
    """

    def __init__(self, status: int, code: str, detail: str, headers: dict[str, str] | None = None) -> None:
        super().__init__(detail)
        self.status = status
        self.code = code
        self.detail = detail
        self.headers = headers or {}


class BadRequest(Exception):
    """A :class:`VecraftError` that the client's input caused, although the same error can be the server's fault.

    A checksum that does not match is 500 when a shard finds it on disk, and 400 when the record came that way.
    """

    def __init__(self, error: VecraftError) -> None:
        super().__init__(str(error))
        self.error = error


def status_of(error: VecraftError) -> int:
    """Return the HTTP status of an error. A disk, or a quota, that is full is 507, any other storage failure 500."""
    if isinstance(error, StorageFailureException) and error.details.get("errno") in (errno.ENOSPC, errno.EDQUOT):
        return HTTPStatus.INSUFFICIENT_STORAGE
    return STATUS_BY_CODE.get(error.code, 500)


def problem_of(error: BaseException, request_id: str) -> Response:
    """Return the problem response for any exception; what is not expected is logged with its stack."""
    if isinstance(error, Problem):
        return problem_response(error.status, error.code, error.detail, {}, request_id, error.headers)
    if isinstance(error, BadRequest):
        wrapped = error.error
        return problem_response(400, wrapped.code, wrapped.message, wrapped.details, request_id)
    if isinstance(error, VecraftError):
        status = status_of(error)
        if status >= 500 and status not in (503, 504):
            logger.error("request failed: %s", error, exc_info=error, extra={"request_id": request_id})
        return problem_response(status, error.code, error.message, error.details, request_id)
    logger.error("unexpected %s", type(error).__name__, exc_info=error, extra={"request_id": request_id})
    return problem_response(500, "internal", f"internal error; the log has it under {request_id}", {}, request_id)


def problem_response(
    status: int,
    code: str,
    detail: str,
    details: dict[str, Any],
    request_id: str,
    headers: dict[str, str] | None = None,
) -> Response:
    """Build the response. ``details`` that cannot be JSON are given as text."""
    body = {
        "type": f"urn:vecraftdb:problem:{code}",
        "title": HTTPStatus(status).phrase,
        "status": status,
        "code": code,
        "detail": printable(detail)[:MAX_DETAIL_CHARS],
        "details": details,
        "request_id": request_id,
    }
    try:
        content = msgspec.json.encode(body, enc_hook=_as_text)
    except (UnicodeEncodeError, TypeError, ValueError, RecursionError):
        # A lone surrogate, a NaN-keyed dict, …: the fault may be the very value the error is about.
        content = msgspec.json.encode({**body, "details": {"text": printable(repr(details))[:MAX_DETAIL_CHARS]}})
    all_headers = dict(headers or {})
    if status in RETRY_AFTER_S:
        all_headers.setdefault("Retry-After", RETRY_AFTER_S[status])
    if status == 401:
        all_headers.setdefault("WWW-Authenticate", 'Bearer realm="vecraft"')
    return Response(content, status_code=status, headers=all_headers, media_type=MEDIA_TYPE)


def printable(text: str) -> str:
    """Return ``text`` with lone surrogates written out, so that it is valid UTF-8."""
    return text.encode("utf-8", "backslashreplace").decode("utf-8")


def _as_text(value: Any) -> str:
    return printable(repr(value))[:MAX_DETAIL_CHARS]
