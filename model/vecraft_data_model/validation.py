"""Checks of what callers hand in, made once, where it enters.

Each check returns the value in the one form the rest of the system uses (ids as ``list[str]``, vectors as C-contiguous
float32), or raises the documented error, naming what was given, what is accepted, and for which record.
Whole batches are checked by whole-array operations; only a batch that fails is searched for the culprit.

Every vector accepted here has a squared norm of at most a quarter of the largest float32, so that no distance between
two of them can overflow. Nothing here knows whether a collection exists: callers pass its dimension and metric.
"""

from __future__ import annotations

import math
import random
import time
import uuid
from collections.abc import Iterable, Sequence
from typing import Any, Final, SupportsFloat

import numpy as np
import numpy.typing as npt

from vecraft_data_model.errors import (
    InvalidDataException,
    NullOrZeroVectorException,
    VectorDimensionMismatchException,
)

Float32Array = npt.NDArray[np.float32]
Expectation = str | int | None
"""``None`` (anything), ``"absent"``, ``"present"``, or the commit timestamp the record must have."""

MAX_ID_BYTES: Final = 1024
MAX_K: Final = 1 << 20
MAX_EF: Final = 1 << 16
MAX_LIMIT: Final = 2**31 - 1
MAX_TIMEOUT_S: Final = 86_400.0
MAX_TXN_ID_CHARS: Final = 128
MAX_NORM_SQUARED: Final = float(np.finfo(np.float32).max) / 4


# ------------------------------------------------------------------------------------------------------ ids


def check_record_id(record_id: object) -> str:
    """Return a record id: a string of 1 to 1024 bytes in UTF-8, without NUL and lone surrogates.

    Raises:
        InvalidDataException: Anything else.
    """
    fault = _id_fault(record_id)
    if fault:
        raise InvalidDataException(f"a record id must be {fault}; got {shown(record_id)}")
    return str(record_id)


def check_record_ids(ids: object, distinct: bool = True) -> list[str]:
    """Return record ids as a list of strings, each valid as for :func:`check_record_id`.

    Args:
        ids: Any iterable of strings that is not itself a string; numpy arrays of strings too.
        distinct: Whether an id may occur only once.

    Raises:
        InvalidDataException: Names the first bad or repeated id and its position.
    """
    if isinstance(ids, np.ndarray):
        ids = ids.tolist()
    if isinstance(ids, str | bytes | dict) or not isinstance(ids, Iterable):
        raise InvalidDataException(f"record ids must be a list of strings; got {shown(ids)}")
    listed: list[str] = ids if type(ids) is list else list(ids)
    if not listed:
        return []
    if set(map(type, listed)) == {str}:
        joined = "".join(listed)
        # Most ids are short ASCII; then the longest has as many bytes as characters, and no surrogates are possible.
        if joined.isascii() and "\0" not in joined and min(map(len, listed)) and max(map(len, listed)) <= MAX_ID_BYTES:
            if distinct and len(set(listed)) != len(listed):
                raise _repeated(listed)
            return listed
    for position, record_id in enumerate(listed):
        fault = _id_fault(record_id)
        if fault:
            raise InvalidDataException(f"record id {position} must be {fault}; got {shown(record_id)}")
    listed = [str(record_id) for record_id in listed]
    if distinct and len(set(listed)) != len(listed):
        raise _repeated(listed)
    return listed


def _id_fault(record_id: object) -> str | None:
    if not isinstance(record_id, str):
        return f"a string of 1 to {MAX_ID_BYTES} bytes"
    try:
        size = len(record_id.encode())
    except UnicodeEncodeError:
        return "valid Unicode, without lone surrogates"
    if not 1 <= size <= MAX_ID_BYTES:
        return f"1 to {MAX_ID_BYTES} bytes long in UTF-8, not {size}"
    return "without NUL characters" if "\0" in record_id else None


def _repeated(ids: Sequence[str]) -> InvalidDataException:
    first: dict[str, int] = {}
    for position, record_id in enumerate(ids):
        if record_id in first:
            return InvalidDataException(
                f"record ids of one batch must be distinct; {record_id!r} stands at {first[record_id]} and {position}",
                record_id=record_id,
            )
        first[record_id] = position
    return InvalidDataException("record ids of one batch must be distinct")


# -------------------------------------------------------------------------------------------------- vectors


def as_matrix(
    vectors: object,
    dim: int | None = None,
    what: str = "vectors",
    *,
    ids: Sequence[str] | None = None,
    metric: str | None = None,
    vector_type: str = "float32",
) -> Float32Array:
    """Return vectors as (n, dim) float32, C-contiguous.

    Args:
        vectors: An array (n, dim) of floats or integers, or a list of such vectors; ``[]`` is no vectors.
        dim: The dimension they must have; None accepts any.
        what: What they are, for messages.
        ids: Whose they are, for messages.
        metric: ``"cosine"`` refuses zero vectors, which have no direction.
        vector_type: ``"float16"`` returns them rounded to it (as float32 again) and bounds them by its range.

    Raises:
        VectorDimensionMismatchException: Not n rows of ``dim``.
        NullOrZeroVectorException: Rows of length 0, or a zero vector under cosine.
        InvalidDataException: Not numbers (booleans, strings, nulls, objects), NaN, infinite, or too large.
    """
    array = _as_array(vectors, what)
    if array.ndim == 1 and array.size == 0 and not isinstance(vectors, np.ndarray):
        array = array.reshape(0, dim or 0)
    if array.ndim != 2:
        raise VectorDimensionMismatchException(
            f"{what} must be a list of vectors, of shape (n, {dim or 'dim'}); got shape {array.shape}"
        )
    return _checked(array, dim, what, ids, metric, vector_type)


def as_vector(
    vector: object,
    dim: int | None = None,
    what: str = "vector",
    *,
    record_id: str | None = None,
    metric: str | None = None,
    vector_type: str = "float32",
) -> Float32Array:
    """Return one vector as (dim,) float32, contiguous; otherwise as :func:`as_matrix`."""
    array = _as_array(vector, what)
    if array.ndim != 1:
        raise VectorDimensionMismatchException(
            f"{what}{_of(record_id)} must be one vector of length {dim or 'dim'}; got shape {array.shape}"
        )
    # The common query takes the short way: one product tells that all is finite and in range, so that the conversion
    # to float32 cannot overflow.
    if array.dtype.kind == "f" and vector_type == "float32" and array.size and (dim is None or array.size == dim):
        with np.errstate(over="ignore", invalid="ignore"):
            squared = float(np.dot(array, array))
        if 1e-30 < squared <= MAX_NORM_SQUARED:
            return np.ascontiguousarray(array, dtype=np.float32)
    ids = None if record_id is None else (record_id,)
    row: Float32Array = _checked(array.reshape(1, -1), dim, what, ids, metric, vector_type)[0]
    return row


def _as_array(vectors: object, what: str) -> npt.NDArray[Any]:
    to_numpy = getattr(vectors, "to_numpy", None)
    if to_numpy is not None:  # VectorPacket; also columns of data frames
        vectors = to_numpy()
    if not isinstance(vectors, np.ndarray):
        if vectors is None:
            raise NullOrZeroVectorException(f"{what} must be numbers; got None")
        if isinstance(vectors, str | bytes | dict | set) or not (
            isinstance(vectors, Sequence) or hasattr(vectors, "__array__")
        ):
            raise InvalidDataException(f"{what} must be an array or a list of numbers; got {shown(vectors)}")
        vectors = _array_of_sequence(vectors, what)
    if vectors.dtype.kind not in "fiu":
        found = "nulls, objects or too large integers" if vectors.dtype == object else f"values of type {vectors.dtype}"
        raise InvalidDataException(f"{what} must be numbers (floats or integers); got {found}")
    return vectors


def _array_of_sequence(vectors: Any, what: str) -> npt.NDArray[Any]:
    if isinstance(vectors, list | tuple):
        rows = [row.to_numpy() if hasattr(row, "to_numpy") else row for row in vectors]
        # numpy would take True beside 1.5 for 1.0.
        if any(_holds_booleans(row) for row in rows):
            raise InvalidDataException(f"{what} must be numbers (floats or integers); got booleans")
        vectors = rows
    try:
        return np.asarray(vectors)
    except (ValueError, TypeError, OverflowError, RecursionError) as error:
        raise VectorDimensionMismatchException(
            f"{what} must be numbers, as many in each vector; got {shown(vectors)}"
        ) from error


def _holds_booleans(row: object) -> bool:
    if isinstance(row, list | tuple):
        return bool in set(map(type, row))
    return type(row) is bool or getattr(row, "dtype", None) == np.bool_


def _checked(
    array: npt.NDArray[Any],
    dim: int | None,
    what: str,
    ids: Sequence[str] | None,
    metric: str | None,
    vector_type: str,
) -> Float32Array:
    if array.shape[1] == 0 and array.shape[0]:
        raise NullOrZeroVectorException(f"{what}{_of(ids[0] if ids else None)} must not be empty; got length 0")
    if dim is not None and array.shape[1] != dim and array.shape[0]:
        raise VectorDimensionMismatchException(
            f"{what}{_of(ids[0] if ids and len(array) == 1 else None)} must have {dim} dimensions; "
            f"got {array.shape[1]}",
            expected=dim,
            got=int(array.shape[1]),
        )
    with np.errstate(over="ignore", invalid="ignore"):
        matrix = np.ascontiguousarray(array, dtype=np.float32)
        if vector_type == "float16":
            matrix = matrix.astype(np.float16).astype(np.float32)
        squared = np.einsum("ij,ij->i", matrix, matrix)
        in_range = squared <= MAX_NORM_SQUARED  # false for NaN too
    if not in_range.all():
        row = int(np.argmin(in_range))
        name = _row_name(what, row, ids, len(matrix))
        raise InvalidDataException(_value_fault(array[row], matrix[row], name, vector_type), row=row)
    if metric == "cosine" and squared.size and not squared.min() > 0:
        # A square can underflow where the vector is not zero: look at the vectors themselves.
        zero = [int(i) for i in np.flatnonzero(squared == 0) if not matrix[i].any()]
        if zero:
            raise NullOrZeroVectorException(
                f"{_row_name(what, zero[0], ids, len(matrix))} is zero, which has no direction under cosine",
                row=zero[0],
            )
    return matrix


def _value_fault(given: npt.NDArray[Any], row: Float32Array, name: str, vector_type: str) -> str:
    finite = np.isfinite(row)
    if not finite.all():
        at = int(np.argmin(finite))
        return f"{name} must be finite in {vector_type}; got {float(given[at])!r} at position {at}"
    norm = math.sqrt(float(np.sum(row.astype(np.float64) ** 2)))
    return (
        f"{name} is too large: its norm may be at most {math.sqrt(MAX_NORM_SQUARED):.4g}, "
        f"so that distances fit float32; got {norm:.4g}"
    )


def _row_name(what: str, row: int, ids: Sequence[str] | None, rows: int) -> str:
    if ids is not None:
        return f"{what}{_of(ids[row])}" if rows == 1 else f"{what}, row {row}{_of(ids[row])}"
    return what if rows == 1 else f"{what}, row {row},"


def _of(record_id: str | None) -> str:
    return "" if record_id is None else f" of record {record_id!r}"


# ------------------------------------------------------------------------------------------------ arguments


def check_integer(value: object, what: str, low: int, high: int) -> int:
    """Return an integer (numpy's too, but no bool and no float) from ``low`` to ``high``.

    Raises:
        InvalidDataException: Anything else.
    """
    if isinstance(value, bool) or not isinstance(value, int | np.integer) or not low <= value <= high:
        raise InvalidDataException(f"{what} must be an integer from {low} to {high}; got {shown(value)}")
    return int(value)


def check_k(k: object) -> int:
    """Return ``k``, the number of nearest neighbours: 1 to 2**20."""
    return check_integer(k, "k", 1, MAX_K)


def check_ef(ef: object) -> int | None:
    """Return ``ef``, the search depth: 1 to 65536, or None for the collection's own."""
    return None if ef is None else check_integer(ef, "ef", 1, MAX_EF)


def check_limit(limit: object) -> int | None:
    """Return ``limit``, how many records at most: 1 to 2**31-1, or None for all."""
    return None if limit is None else check_integer(limit, "limit", 1, MAX_LIMIT)


def check_max_distance(max_distance: object) -> float | None:
    """Return ``max_distance``: a finite number (``ip`` has negative ones), or None for any."""
    return None if max_distance is None else _check_number(max_distance, "max_distance", "a finite number")


def check_timeout(timeout: object) -> float | None:
    """Return ``timeout`` in seconds: above 0, at most a day; or None for the default."""
    if timeout is None:
        return None
    accepted = f"a number of seconds above 0, at most {MAX_TIMEOUT_S:g}"
    seconds = _check_number(timeout, "timeout", accepted)
    if not 0 < seconds <= MAX_TIMEOUT_S:
        raise InvalidDataException(f"timeout must be {accepted}; got {shown(timeout)}")
    return seconds


def check_flag(value: object, what: str) -> bool:
    """Return a bool; nothing else is taken for one."""
    if not isinstance(value, bool | np.bool_):
        raise InvalidDataException(f"{what} must be true or false; got {shown(value)}")
    return bool(value)


def check_expect(expect: object) -> Expectation:
    """Return a write's expectation: None, ``"absent"``, ``"present"`` or a commit timestamp."""
    if expect is None or (isinstance(expect, str) and expect in ("absent", "present")):
        return expect
    if isinstance(expect, bool) or not isinstance(expect, int | np.integer) or not 0 < expect < 2**63:
        raise InvalidDataException(f"expect must be 'absent', 'present' or a commit timestamp; got {shown(expect)}")
    return int(expect)


def _check_number(value: object, what: str, accepted: str) -> float:
    if isinstance(value, int | float | np.integer | np.floating) and not isinstance(value, bool):
        try:
            number = float(value)
        except OverflowError:
            number = math.inf
        if math.isfinite(number):
            return number
    raise InvalidDataException(f"{what} must be {accepted}; got {shown(value)}")


# ------------------------------------------------------------------------------------------ transaction ids


def new_txn_id(now_ms: int | None = None, rng: random.Random | None = None) -> str:
    """Return a new transaction id: a version 7 UUID, which holds its creation time.

    Args:
        now_ms: Milliseconds since the epoch; this machine's clock if not given.
        rng: Source of the 74 random bits; the operating system's if not given.
    """
    stamp = time.time_ns() // 1_000_000 if now_ms is None else now_ms
    bits = (random.SystemRandom() if rng is None else rng).getrandbits(74)
    value = (stamp & (2**48 - 1)) << 80 | 0x7 << 76 | (bits >> 62) << 64 | 0b10 << 62 | bits & (2**62 - 1)
    return str(uuid.UUID(int=value))


def txn_created_ms(txn_id: str) -> int | None:
    """Return when a transaction id was made, in milliseconds since the epoch; None if it does not say."""
    try:
        value = uuid.UUID(txn_id)
    except ValueError:
        return None
    return value.int >> 80 if value.version == 7 else None


def check_txn_id(txn_id: object) -> str:
    """Return a transaction id chosen by a client: 1 to 128 printable characters.

    Raises:
        InvalidDataException: Anything else.
    """
    if not isinstance(txn_id, str) or not 1 <= len(txn_id) <= MAX_TXN_ID_CHARS or not txn_id.isprintable():
        raise InvalidDataException(f"txn_id must be 1 to {MAX_TXN_ID_CHARS} printable characters; got {shown(txn_id)}")
    return txn_id


def shown(value: object) -> str:
    """Return a value as it may stand in a message: at most about 100 characters, whatever it is."""
    if isinstance(value, str | bytes):
        text = repr(value[:80])
        return text if len(value) <= 80 else f"{text}… ({len(value)} long)"
    if isinstance(value, np.ndarray):
        return f"an array of {value.dtype}, shape {value.shape}"
    if isinstance(value, int) and value.bit_length() > 256:
        return f"an integer of {value.bit_length()} bits"
    if isinstance(value, SupportsFloat) or value is None:
        return repr(value)[:100]
    if isinstance(value, list | tuple | dict | set):
        return f"a {type(value).__name__} of {len(value)}"
    return f"a {type(value).__name__}"
