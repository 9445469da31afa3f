"""Records as columns: what the Python client and the gateway say to each other instead of one object per record.

::

    {"ids": ["a", "b"],
     "payloads": {"b64": "…", "sizes": [210, 198]},          the encoded records (vecraft_data_model.payload), end to
     end "vectors": {"b64": "…", "dtype": "float32", "shape": [2, 384]}, "begin_ts": [1, 1]}
     or "distances" in the answer to a query

A payload holds id, metadata, document and checksum exactly as a shard keeps them, so neither side re-encodes what it
only passes on, and the reader can prove what the writer signed. Both directions stand here, side by side.
"""

from __future__ import annotations

import binascii
import math
from collections.abc import Sequence
from itertools import accumulate
from typing import Any

import numpy as np

from vecraft_data_model.errors import InvalidDataException
from vecraft_data_model.messages import Float32Array, Hits, Rows
from vecraft_router.gateway.vectors import matrix_from_wire, to_base64


def pack_payloads(payloads: Sequence[bytes]) -> dict[str, Any]:
    """Return ``{"b64", "sizes"}``."""
    return {
        "b64": binascii.b2a_base64(b"".join(payloads), newline=False).decode("ascii"),
        "sizes": list(map(len, payloads)),
    }


def unpack_payloads(value: object, what: str = "payloads") -> list[bytes]:
    """Return the payloads.

    Raises:
        InvalidDataException: Not of that form, or the sizes do not add up.
    """
    if not isinstance(value, dict) or value.keys() != {"b64", "sizes"}:
        raise InvalidDataException(f"{what} must be an object with the keys b64 and sizes")
    text, sizes = value["b64"], value["sizes"]
    if not isinstance(sizes, list) or not all(type(size) is int and size > 0 for size in sizes):
        raise InvalidDataException(f"{what}.sizes must be positive integers")
    try:
        data = binascii.a2b_base64(text.encode("ascii"), strict_mode=True)
    except (AttributeError, binascii.Error, UnicodeEncodeError) as error:
        raise InvalidDataException(f"{what}.b64 is not base64: {error}") from None
    if sum(sizes) != len(data):
        raise InvalidDataException(f"{what}.sizes add up to {sum(sizes)} bytes, but {len(data)} came")
    return [data[end - size : end] for size, end in zip(sizes, accumulate(sizes), strict=True)]


def rows_to_columns(rows: Rows) -> dict[str, Any]:
    """Return a JSON-able form of ``rows``."""
    columns: dict[str, Any] = {"ids": rows.ids, "begin_ts": rows.begin_ts}
    if rows.payloads is not None:
        columns["payloads"] = pack_payloads(rows.payloads)
    if rows.vectors is not None:
        columns["vectors"] = to_base64(rows.vectors)
    return columns


def rows_from_columns(columns: dict[str, Any]) -> Rows:
    """Return what :func:`rows_to_columns` was given."""
    return Rows(
        ids=columns["ids"],
        begin_ts=columns["begin_ts"],
        payloads=_payloads(columns),
        vectors=_vectors(columns),
    )


def hits_to_columns(hits: Hits) -> dict[str, Any]:
    """Return a JSON-able form of the answer to one query."""
    columns: dict[str, Any] = {"ids": hits.ids, "distances": hits.distances}
    if hits.payloads is not None:
        columns["payloads"] = pack_payloads(hits.payloads)
    if hits.vectors is not None:
        columns["vectors"] = to_base64(hits.vectors)
    if hits.scores is not None:
        columns["scores"] = hits.scores
    if hits.groups is not None:
        columns["groups"] = hits.groups
    return columns


def hits_from_columns(columns: dict[str, Any]) -> Hits:
    """Return what :func:`hits_to_columns` was given."""
    return Hits(
        ids=columns["ids"],
        # JSON has no NaN, which is the distance where no vectors were compared.
        distances=[math.nan if distance is None else distance for distance in columns["distances"]],
        payloads=_payloads(columns),
        vectors=_vectors(columns),
        scores=columns.get("scores"),
        groups=columns.get("groups"),
    )


def _payloads(columns: dict[str, Any]) -> list[bytes] | None:
    packed = columns.get("payloads")
    return None if packed is None else unpack_payloads(packed)


def _vectors(columns: dict[str, Any]) -> Float32Array | None:
    value = columns.get("vectors")
    return None if value is None else np.ascontiguousarray(matrix_from_wire(value, "vectors"), dtype=np.float32)
