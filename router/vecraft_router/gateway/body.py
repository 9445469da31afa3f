"""Reading a request body: bounded in size and time, and strictly JSON.

Refused here, before anything is looked at: compressed bodies (a megabyte may unfold to a gigabyte), bodies above the
limit (by their declared length at once, otherwise as soon as they pass it), bodies that stop arriving, other media
types than JSON, invalid UTF-8, bytes after the end, duplicate keys (two readers of one message may disagree on which
counts), ``NaN`` and ``Infinity``, nesting beyond the interpreter's stack, more brackets than any honest batch has.
Integers of any size stay integers: msgspec would turn 2**64 into a float, hence :mod:`json`.

What a value means is not decided here: the model room's validators do that, so that REST says what Python says.
"""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Iterator, Sequence
from typing import Any, NoReturn, TypeVar, get_args

import msgspec
from starlette.requests import ClientDisconnect, Request
from starlette.types import Message, Receive

from vecraft_data_model.errors import InvalidDataException
from vecraft_router.gateway.problems import Problem

T = TypeVar("T")

CONTAINERS_MAX = 4_000_000
"""Arrays and objects in one body (a bracket in a string counts too): ``[[],[],…`` takes twenty times its size."""


class BodyBudget:
    """How many bytes of request bodies are held at once, over all requests; above it new ones get 429."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.held = 0

    def take(self, size: int) -> None:
        """Count ``size`` more bytes.

        Raises:
            Problem: 429, when that is more than the limit; nothing is counted then.
        """
        if self.held + size > self.limit:
            raise Problem(429, "overloaded", f"request bodies of {self.held} bytes are under way; retry later")
        self.held += size

    def give_back(self, size: int) -> None:
        """Count ``size`` fewer."""
        self.held -= size


async def read_body(
    receive: Receive, headers: dict[bytes, bytes], max_bytes: int, timeout_s: float, budget: BodyBudget
) -> bytes:
    """Read the whole body; the caller gives ``len(body)`` back to the budget when it is done with it.

    Raises:
        Problem: 413 too large, 415 compressed, 408 too slow, 429 over the budget, 400 ended early.
    """
    encoding = headers.get(b"content-encoding", b"identity").strip().lower()
    if encoding not in (b"", b"identity"):
        raise Problem(
            415,
            "unsupported_media_type",
            f"Content-Encoding {encoding[:40].decode('latin-1')!r} is not accepted: send the body as it is (identity)",
            {"Accept-Encoding": "identity"},
        )
    declared = headers.get(b"content-length")
    if declared is not None and declared.isdigit() and int(declared[:20]) > max_bytes:
        _too_large(max_bytes)
    chunks: list[bytes] = []
    size = 0
    try:
        async with asyncio.timeout(timeout_s):
            while True:
                message: Message = await receive()
                if message["type"] == "http.disconnect":
                    raise ClientDisconnect
                chunk: bytes = message.get("body", b"")
                if chunk:
                    if size + len(chunk) > max_bytes:
                        _too_large(max_bytes)
                    budget.take(len(chunk))
                    size += len(chunk)
                    chunks.append(chunk)
                if not message.get("more_body", False):
                    return chunks[0] if len(chunks) == 1 else b"".join(chunks)
    except TimeoutError:
        budget.give_back(size)
        raise Problem(
            408,
            "request_timeout",
            f"the body did not arrive within {timeout_s:g} s ({size} bytes came)",
        ) from None
    except BaseException:
        budget.give_back(size)
        raise


def _too_large(max_bytes: int) -> NoReturn:
    raise Problem(
        413,
        "too_large",
        f"the body is larger than the {max_bytes} bytes that are accepted",
    )


def parse_json(body: bytes) -> Any:
    """Parse a body strictly.

    Raises:
        Problem: 422, saying where and what is wrong.
    """
    if body.count(b"[") + body.count(b"{") > CONTAINERS_MAX:
        raise Problem(413, "too_large", f"the body holds more than {CONTAINERS_MAX} arrays and objects")
    try:
        text = body.decode("utf-8")
    except UnicodeDecodeError as error:
        raise _malformed(f"the body is not UTF-8: byte {error.start} ({body[error.start]:#04x})") from None
    try:
        return json.loads(text, object_pairs_hook=_unique, parse_constant=_no_constant)
    except json.JSONDecodeError as error:
        where = f"line {error.lineno} column {error.colno}"
        raise _malformed(f"the body is not JSON: {error.msg} at {where}") from None
    except RecursionError:
        raise _malformed("the body is nested too deeply") from None
    except ValueError as error:  # an integer beyond sys.get_int_max_str_digits()
        raise _malformed(f"the body holds a number that cannot be read: {error}") from None


def _malformed(detail: str) -> Problem:
    return Problem(422, "malformed_body", detail)


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    made = dict(pairs)
    if len(made) != len(pairs):
        seen: set[str] = set()
        for key, _ in pairs:
            if key in seen:
                raise _malformed(f"the key {key[:100]!r} stands twice in one object")
            seen.add(key)
    return made


def _no_constant(name: str) -> NoReturn:
    raise _malformed(f"{name} is not JSON")


def read_as(request: Request, shape: type[T], *, optional: bool = False) -> T:
    """Parse the request's body into a msgspec struct whose keys are all there are.

    Args:
        request: The request, its body read.
        shape: The struct.
        optional: Whether no body at all says as much as an object without keys. An empty body that claims to be JSON
            is none.

    Raises:
        Problem: 422 when it is not JSON, or not an object; 415 when it claims to be something else.
        InvalidDataException: A key is unknown or missing, or a value is of the wrong kind.
    """
    content_type = request.headers.get("content-type")
    if content_type is not None:
        media = content_type.partition(";")[0].strip().lower()
        if media != "application/json" and not (media.startswith("application/") and media.endswith("+json")):
            raise Problem(
                415, "unsupported_media_type", f"Content-Type must be application/json, got {content_type[:80]!r}"
            )
    body = request.scope["vecraft.body"]
    nothing = optional and not body and content_type is None
    return convert({} if nothing else parse_json(body), shape)


def convert(data: Any, shape: type[T]) -> T:
    """Turn parsed JSON into a struct.

    Raises:
        Problem: 422, when it is not an object.
        InvalidDataException: A key is unknown or missing, or a value is of the wrong kind.
    """
    if not isinstance(data, dict):
        raise _malformed(f"the body must be a JSON object, got {_kind(data)}")
    try:
        return msgspec.convert(data, shape)
    except msgspec.ValidationError as error:
        names = ", ".join(_keys_at(shape, str(error)))
        raise InvalidDataException(f"request body: {error}; accepted keys are {names}") from None


def _keys_at(shape: type[Any], message: str) -> Sequence[str]:
    """Return the keys of the object that a message of msgspec points at (``… - at `$.query` ``)."""
    _, _, path = message.partition("at `$")
    for name in re.findall(r"\w+", path):
        for field in msgspec.structs.fields(shape):
            if field.encode_name == name:
                inside = [kind for kind in _structs_in(field.type) if issubclass(kind, msgspec.Struct)]
                shape = inside[0] if inside else shape
    return [field.encode_name for field in msgspec.structs.fields(shape)]


def _structs_in(annotation: Any) -> Iterator[type[Any]]:
    """Yield the classes that an annotation mentions."""
    if isinstance(annotation, type) and not get_args(annotation):
        yield annotation
    for part in get_args(annotation):
        yield from _structs_in(part)


def _kind(value: Any) -> str:
    kinds = {list: "an array", str: "a string", bool: "a boolean", int: "a number", float: "a number"}
    return kinds.get(type(value), "null")
