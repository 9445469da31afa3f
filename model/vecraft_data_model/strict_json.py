"""What metadata and JSON documents may hold: strict JSON, checked before anything is encoded.

The encoder by itself would turn NaN into null, 3 into the key "3", and a datetime into a string: each of them a value
that comes back as another one. Accepted are None, bool, int within int64, finite float, str without lone surrogates,
lists (tuples become lists) and dicts with str keys, nested at most 64 deep. Subclasses (numpy scalars, enums) are not
accepted: say ``float(x)`` or ``x.item()``.
"""

from __future__ import annotations

from math import isfinite
from typing import Any, Final

from vecraft_data_model.errors import InvalidDataException

MAX_DEPTH: Final = 64
INT64_MIN: Final = -(2**63)
INT64_MAX: Final = 2**63 - 1


def check_json(value: dict[str, Any], what: str, record_id: str) -> None:
    """Check a JSON object.

    Args:
        value: The object.
        what: What it is, for messages: ``"metadata"`` or ``"document"``.
        record_id: Whose it is, for messages.

    Raises:
        InvalidDataException: Names the record, the path inside the object, and what was found there.
    """
    for key, item in value.items():
        kind = type(item)
        # The short way for what most metadata hold: nothing nested, nothing outside ASCII.
        if type(key) is str and key.isascii():
            if kind is str:
                if item.isascii():
                    continue
            elif kind is int:
                if INT64_MIN <= item <= INT64_MAX:
                    continue
            elif kind is float:
                if isfinite(item):
                    continue
            elif kind is bool or item is None:
                continue
        _check_key(key, what, record_id, "")
        _check(item, what, record_id, f".{key}", 2)


def _check(value: object, what: str, record_id: str, path: str, depth: int) -> None:
    kind = type(value)
    if kind is str:
        _check_text(value, what, record_id, path)
    elif kind is bool or value is None:
        return
    elif kind is int:
        if not INT64_MIN <= value <= INT64_MAX:  # type: ignore[operator]
            raise _fault(what, record_id, path, "integers must be within int64", "a larger one")
    elif kind is float:
        if not isfinite(value):  # type: ignore[arg-type]
            raise _fault(what, record_id, path, "numbers must be finite", repr(value))
    elif kind is dict or kind is list or kind is tuple:
        if depth > MAX_DEPTH:
            raise _fault(what, record_id, path[:200], f"it may nest at most {MAX_DEPTH} deep", "more")
        if isinstance(value, dict):
            for key, item in value.items():
                _check_key(key, what, record_id, path)
                _check(item, what, record_id, f"{path}.{key}", depth + 1)
        else:
            for i, item in enumerate(value):  # type: ignore[arg-type]
                _check(item, what, record_id, f"{path}[{i}]", depth + 1)
    else:
        accepted = "it must be JSON (null, true, false, numbers, strings, lists, objects)"
        raise _fault(what, record_id, path, accepted, f"a value of type {kind.__module__}.{kind.__qualname__}")


def _check_key(key: object, what: str, record_id: str, path: str) -> None:
    if type(key) is not str:
        raise _fault(what, record_id, path, "keys must be strings", f"a key of type {type(key).__name__}")
    _check_text(key, what, record_id, path)


def _check_text(text: object, what: str, record_id: str, path: str) -> None:
    try:
        str(text).encode()
    except UnicodeEncodeError:
        raise _fault(what, record_id, path, "strings must be valid Unicode", "a lone surrogate") from None


def _fault(what: str, record_id: str, path: str, accepted: str, got: str) -> InvalidDataException:
    place = (what + path).encode("utf-8", "replace").decode()[:300]
    return InvalidDataException(f"{place} of record {record_id!r}: {accepted}; got {got}", record_id=record_id)
