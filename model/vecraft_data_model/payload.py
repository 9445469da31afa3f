"""One record's bytes: the form in which it lies in the payload log, in the WAL, and in messages.

::

    0      2   3     4     5      6      8            12           16
    ┌──────┬───┬─────┬─────┬──────┬──────┬────────────┬────────────┬────────┬────┬──────────┬──────────┐
    │ "VP" │ 1 │ alg │flags│dg.len│id.len│metadata len│document len│ digest │ id │ metadata │ document │
    └──────┴───┴─────┴─────┴──────┴──────┴────────────┴────────────┴────────┴────┴──────────┴──────────┘
      u8×2  u8   u8    u8    u8     u16       u32          u32                     JSON    UTF-8 or JSON

    flags   bits 0–1: document is 0 none, 1 text, 2 a JSON object
            bits 4–5: packet is 0 a record, 1 a tombstone, 2 nonexistent

Integers are little-endian. A metadata length of 0 means none; an empty object is ``{}``, two bytes.
The digest covers header, id, metadata, document and then the vector as float32 little-endian bytes, which are kept
elsewhere (a column): so it proves that a vector and a payload belong together. A collection that stores float16 hands
in the rounded values, made float32 again.

Whatever was encoded is strict JSON: finite numbers, integers within int64, string keys, at most 64 deep. Decoding does
not check digests (``verify_payload`` does); it promises ``CorruptionError`` for bytes that cannot be a payload.
Nothing here is compressed.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import Any, Final

import msgspec
import numpy as np
import numpy.typing as npt

from vecraft_data_model.checksums import CODES, DIGEST_SIZES, HASHES, NAMES, check_algorithm
from vecraft_data_model.errors import ChecksumValidationFailureError, CorruptionError, InvalidDataException
from vecraft_data_model.strict_json import check_json

Json = Any
"""None, bool, int, float, str, list or dict of those."""

MAX_METADATA_BYTES: Final = 1 << 20
MAX_DOCUMENT_BYTES: Final = 16 << 20

RECORD: Final = 0
TOMBSTONE: Final = 1
NONEXISTENT: Final = 2

HEADER: Final = struct.Struct("<2sBBBBHII")
_MAGIC: Final = b"VP"
_VERSION: Final = 1
_TEXT: Final = 1
_JSON: Final = 2
_START: Final = {code: HEADER.size + DIGEST_SIZES[name] for code, name in NAMES.items()}

_HEADER_SIZE: Final = HEADER.size
_HEADERS: Final = np.dtype(
    [
        ("magic", "S2"), ("version", "u1"), ("code", "u1"), ("flags", "u1"), ("digest_size", "u1"), ("id_size", "<u2"),
        ("metadata_size", "<u4"), ("document_size", "<u4"),
    ]
)  # fmt: skip
"""``HEADER``, for many at once."""
_STARTS: Final = np.array([_START.get(code, 0) for code in range(256)], np.int64)
_WORTH_COLUMNS: Final = 24
"""From so many payloads on, numpy is faster than a loop."""
_HASHES_BY_CODE: Final = {code: (HASHES[name], _START[code]) for code, name in NAMES.items()}

_encode_json: Final = msgspec.json.Encoder().encode
_decode_json: Final = msgspec.json.Decoder().decode
_UNDECODABLE: Final = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)


class Payload:
    """A decoded payload. The header is read at once, the parts when they are asked for.

    Attributes:
        data: The payload's bytes.
        algorithm: Name of the checksum algorithm.
        kind: ``RECORD``, ``TOMBSTONE`` or ``NONEXISTENT``.
    """

    __slots__ = ("_document_at", "_flags", "_id_at", "_metadata_at", "algorithm", "data", "kind")

    def __init__(self, data: bytes) -> None:
        code, self._flags, self._id_at, self._metadata_at, self._document_at = _layout(data)
        self.data = data
        self.algorithm = NAMES[code]
        self.kind = self._flags >> 4

    @property
    def record_id(self) -> str:
        """The record's id."""
        return _decoded_text(self.data[self._id_at : self._metadata_at], "id")

    @property
    def metadata(self) -> dict[str, Json] | None:
        """The metadata; None when the record was written without any (``{}`` stays ``{}``)."""
        if self._metadata_at == self._document_at:
            return None
        metadata: dict[str, Json] = _decoded_json(self.data[self._metadata_at : self._document_at], "metadata")
        return metadata

    @property
    def document(self) -> str | dict[str, Json] | None:
        """The document: text, a JSON object, or None."""
        return _document(self.data, self._flags, self._document_at)

    @property
    def digest(self) -> bytes:
        """The checksum computed where the record was made."""
        return self.data[HEADER.size : self._id_at]


def decode_metadata(data: bytes) -> dict[str, Json] | None:
    """Decode a payload's metadata alone.

    Raises:
        CorruptionError: These bytes are no payload.
    """
    _, _, _, at, end = _layout(data)
    if at == end:
        return None
    metadata: dict[str, Json] = _decoded_json(data[at:end], "metadata")
    return metadata


def decode_document(data: bytes) -> str | dict[str, Json] | None:
    """Decode a payload's document alone.

    Raises:
        CorruptionError: These bytes are no payload.
    """
    _, flags, _, _, at = _layout(data)
    return _document(data, flags, at)


def encode_payload(
    record_id: str,
    vector: npt.NDArray[np.float32] | None,
    metadata: dict[str, Json] | None,
    document: str | dict[str, Json] | None,
    algorithm: str,
    kind: int = RECORD,
) -> bytes:
    """Encode one record.

    Args:
        record_id: A valid id (see :mod:`vecraft_data_model.validation`).
        vector: (dim,) float32, contiguous; None only for what is not a record.
        metadata: A JSON object or None; at most 1 MiB encoded.
        document: Text, a JSON object or None; at most 16 MiB encoded.
        algorithm: One of the supported checksum algorithms.
        kind: ``RECORD``, ``TOMBSTONE`` or ``NONEXISTENT``.

    Raises:
        InvalidDataException: Metadata or document is not strict JSON or too large; names the record.
    """
    vectors = None if vector is None else vector.reshape(1, -1)
    return _encode([record_id], vectors, [metadata], [document], check_algorithm(algorithm), kind)[0]


def encode_payloads(
    ids: Sequence[str],
    vectors: npt.NDArray[np.float32],
    metadatas: Sequence[dict[str, Json] | None] | None,
    documents: Sequence[str | dict[str, Json] | None] | None,
    algorithm: str,
) -> list[bytes]:
    """Encode many records, column-wise; as :func:`encode_payload` for each.

    Args:
        ids: n valid ids.
        vectors: (n, dim) float32, C-contiguous.
        metadatas: n of them, or None for none at all.
        documents: Likewise.
        algorithm: For all of them.

    Raises:
        InvalidDataException: As for one; also when the columns differ in length.
    """
    n = len(ids)
    for what, column in (("vectors", vectors), ("metadatas", metadatas), ("documents", documents)):
        if column is not None and len(column) != n:
            raise InvalidDataException(f"{what} must be as many as ids, {n}; got {len(column)}")
    return _encode(ids, vectors, metadatas or [None] * n, documents or [None] * n, check_algorithm(algorithm), RECORD)


def _encode(
    ids: Sequence[str],
    vectors: npt.NDArray[np.float32] | None,
    metadatas: Sequence[dict[str, Json] | None],
    documents: Sequence[str | dict[str, Json] | None],
    algorithm: str,
    kind: int,
) -> list[bytes]:
    # The hot loop of every write: one pass, no helper calls for the common record, the vector's bytes never copied.
    if not ids:
        return []
    code, digest_size, start_hash, pack = CODES[algorithm], DIGEST_SIZES[algorithm], HASHES[algorithm], HEADER.pack
    view = memoryview(b"") if vectors is None else _bytes_of(vectors)
    stride = len(view) // len(ids)
    kind_bits = kind << 4
    payloads: list[bytes] = []
    offset = 0
    for record_id, metadata, document in zip(ids, metadatas, documents, strict=True):
        id_bytes = record_id.encode()
        metadata_bytes = b"" if metadata is None else _encoded(metadata, "metadata", MAX_METADATA_BYTES, record_id)
        flags = kind_bits
        document_bytes = b""
        if document is not None:
            flags |= _TEXT if isinstance(document, str) else _JSON
            document_bytes = _encoded_document(document, record_id)
        header = pack(
            _MAGIC, _VERSION, code, flags, digest_size, len(id_bytes), len(metadata_bytes), len(document_bytes)
        )
        body = id_bytes + metadata_bytes + document_bytes
        hasher = start_hash(header + body)
        hasher.update(view[offset : offset + stride])
        payloads.append(header + hasher.digest() + body)
        offset += stride
    return payloads


def decode_payload(data: bytes) -> Payload:
    """Read a payload's header; its parts are decoded when asked for.

    Raises:
        CorruptionError: These bytes are no payload.
    """
    return Payload(data)


def verify_payload(data: bytes, vector: bytes | memoryview | npt.NDArray[np.float32] | None) -> None:
    """Check a payload and its vector (float32 little-endian, as bytes or (dim,) array) against the digest.

    Raises:
        ChecksumValidationFailureError: They do not match; names the record.
        CorruptionError: The bytes are no payload at all.
    """
    code, _, start, _, _ = _layout(data)
    hasher = HASHES[NAMES[code]](data[: HEADER.size])
    hasher.update(data[start:])
    if vector is not None:
        hasher.update(_bytes_of(vector) if isinstance(vector, np.ndarray) else vector)
    if hasher.digest() != data[HEADER.size : start]:
        raise _mismatch(data)


def verify_payloads(payloads: Sequence[bytes], vectors: npt.NDArray[np.float32] | Sequence[memoryview]) -> None:
    """Check many: :func:`verify_payload` for payload i and vector i.

    Args:
        payloads: n of them.
        vectors: (n, dim) float32, or the float32 little-endian bytes of each.

    Raises:
        ChecksumValidationFailureError: For the first that does not match.
        CorruptionError: Likewise.
        InvalidDataException: Not as many vectors as payloads.
    """
    if len(payloads) != len(vectors):
        raise InvalidDataException(f"{len(payloads)} payloads cannot be verified against {len(vectors)} vectors")
    if not payloads:
        return
    if isinstance(vectors, np.ndarray):
        view = _bytes_of(vectors)
        stride = len(view) // len(payloads)
        vectors = [view[at * stride : (at + 1) * stride] for at in range(len(payloads))]
    for data, vector in zip(payloads, vectors, strict=True):
        # A header that is wrong in any way does not match the digest that it is part of: that is check enough here,
        # and what does not pass is looked at closely.
        code = data[3] if len(data) >= _HEADER_SIZE else -1
        hashed = _HASHES_BY_CODE.get(code)
        if hashed is None:
            verify_payload(data, vector)
            continue
        start_hash, start = hashed
        hasher = start_hash(data[:_HEADER_SIZE] + data[start:])
        hasher.update(vector)
        if hasher.digest() != data[_HEADER_SIZE:start]:
            verify_payload(data, vector)


def reseal_payloads(payloads: Sequence[bytes], vectors: npt.NDArray[np.float32]) -> list[bytes]:
    """Return the payloads with their digests computed anew for these vectors, (n, dim) float32.

    For a store that rounds vectors (float16): it must have verified the old digests, and vouches for the new ones.
    """
    if not payloads:
        return []
    view = _bytes_of(vectors)
    stride = len(view) // len(payloads)
    sealed = []
    for i, data in enumerate(payloads):
        code, _, start, _, _ = _layout(data)
        header, body = data[: HEADER.size], data[start:]
        hasher = HASHES[NAMES[code]](header + body)
        hasher.update(view[i * stride : (i + 1) * stride])
        sealed.append(header + hasher.digest() + body)
    return sealed


def metadata_of(payloads: Sequence[bytes]) -> list[dict[str, Json] | None]:
    """Decode the metadata of many payloads at once.

    Raises:
        CorruptionError: One of them is no payload.
    """
    return _decoded_many([data[at:end] for data, (_, _, at, end) in _laid_out(payloads)], "metadata")


def objects_of(payloads: Sequence[bytes]) -> tuple[list[dict[str, Json] | None], list[dict[str, Json] | None]]:
    """Decode the metadata, and those documents that are JSON objects, of many payloads at once; others are None.

    Raises:
        CorruptionError: One of them is no payload.
    """
    laid_out = _laid_out(payloads)
    metadata = _decoded_many([data[at:end] for data, (_, _, at, end) in laid_out], "metadata")
    documents = [data[at:] if flags & 0x0F == _JSON else b"" for data, (flags, _, _, at) in laid_out]
    return metadata, _decoded_many(documents, "document")


def documents_of(payloads: Sequence[bytes]) -> list[str | dict[str, Json] | None]:
    """Decode the documents of many payloads.

    Raises:
        CorruptionError: One of them is no payload.
    """
    return [_document(data, flags, at) for data, (flags, _, _, at) in _laid_out(payloads)]


def ids_of(payloads: Sequence[bytes]) -> list[str]:
    """Decode the record ids of many payloads.

    Raises:
        CorruptionError: One of them is no payload.
    """
    return [_decoded_text(data[at:end], "id") for data, (_, at, end, _) in _laid_out(payloads)]


# ------------------------------------------------------------------------------------------------ the parts


def _layout(data: bytes) -> tuple[int, int, int, int, int]:
    """Return (algorithm code, flags, offsets of id, metadata and document); the lengths are checked to add up."""
    if len(data) < HEADER.size:
        raise CorruptionError(f"a payload has at least {HEADER.size} bytes, this one has {len(data)}")
    magic, version, code, flags, digest_size, id_size, metadata_size, document_size = HEADER.unpack_from(data)
    start = _START.get(code, 0)
    metadata_at = start + id_size
    document_at = metadata_at + metadata_size
    if (
        magic != _MAGIC
        or version != _VERSION
        or start != HEADER.size + digest_size
        or document_at + document_size != len(data)
        or flags & 0x0F > _JSON
        or flags >> 4 > NONEXISTENT
    ):
        raise CorruptionError(f"these {len(data)} bytes are no payload of version {_VERSION}: header {data[:16].hex()}")
    return code, flags, start, metadata_at, document_at


def _laid_out(payloads: Sequence[bytes]) -> list[tuple[bytes, tuple[int, int, int, int]]]:
    """Return each payload with its flags and offsets, as :func:`_layout`, whose checks are made here for all at once.

    Raises:
        CorruptionError: One of them is no payload.
    """
    if len(payloads) >= _WORTH_COLUMNS:
        heads = b"".join([data[:_HEADER_SIZE] for data in payloads])
        if len(heads) == len(payloads) * _HEADER_SIZE:
            columns = np.frombuffer(heads, _HEADERS)
            start = _STARTS[columns["code"]]
            metadata_at = start + columns["id_size"]
            document_at = metadata_at + columns["metadata_size"]
            flags = columns["flags"]
            sound = (
                (columns["magic"] == _MAGIC)
                & (columns["version"] == _VERSION)
                & (start == _HEADER_SIZE + columns["digest_size"].astype(np.int64))
                & (document_at + columns["document_size"] == np.fromiter(map(len, payloads), np.int64, len(payloads)))
                & (flags & 0x0F <= _JSON)
                & (flags >> 4 <= NONEXISTENT)
            )
            if sound.all():
                places = zip(flags.tolist(), start.tolist(), metadata_at.tolist(), document_at.tolist(), strict=True)
                return list(zip(payloads, places, strict=True))
    return [(data, _layout(data)[1:]) for data in payloads]


def _decoded_many(pieces: Sequence[bytes], what: str) -> list[dict[str, Json] | None]:
    """Decode JSON objects, None for each piece that is empty.

    Each by itself: joined to one list, damaged pieces that complete each other would pass for whole ones.
    """
    try:
        return [_decode_json(piece) if piece else None for piece in pieces]
    except _UNDECODABLE as error:
        raise CorruptionError(f"the {what} in a payload is not JSON: {error}") from error


def _document(data: bytes, flags: int, at: int) -> str | dict[str, Json] | None:
    form = flags & 0x0F
    if form == _TEXT:
        return _decoded_text(data[at:], "document")
    if form == _JSON:
        document: dict[str, Json] = _decoded_json(data[at:], "document")
        return document
    return None


def _encoded(value: object, what: str, limit: int, record_id: str) -> bytes:
    if type(value) is not dict:
        accepted = "an object (dict) or None" if what == "metadata" else "text, an object (dict) or None"
        raise InvalidDataException(
            f"the {what} of record {record_id!r} must be {accepted}; got {type(value).__name__}", record_id=record_id
        )
    check_json(value, what, record_id)
    return _bounded(_encode_json(value), what, limit, record_id)


def _encoded_document(document: object, record_id: str) -> bytes:
    if not isinstance(document, str):
        return _encoded(document, "document", MAX_DOCUMENT_BYTES, record_id)
    try:
        return _bounded(document.encode(), "document", MAX_DOCUMENT_BYTES, record_id)
    except UnicodeEncodeError as error:
        raise InvalidDataException(
            f"the document of record {record_id!r} is not valid Unicode: lone surrogate at character {error.start}",
            record_id=record_id,
        ) from None


def _bounded(encoded: bytes, what: str, limit: int, record_id: str) -> bytes:
    if len(encoded) > limit:
        raise InvalidDataException(
            f"the {what} of record {record_id!r} has {len(encoded)} bytes; at most {limit} are accepted",
            record_id=record_id,
        )
    return encoded


def _decoded_text(data: bytes, what: str) -> str:
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        raise CorruptionError(f"the {what} in a payload is not UTF-8: {error}") from error


def _decoded_json(data: bytes, what: str) -> Any:
    try:
        return _decode_json(data)
    except _UNDECODABLE as error:
        raise CorruptionError(f"the {what} in a payload is not JSON: {error}") from error


def _bytes_of(vectors: npt.NDArray[np.float32]) -> memoryview:
    # Without a copy where it is in that form already: machines are little-endian, callers hand in contiguous rows.
    return np.ascontiguousarray(vectors, dtype="<f4").data.cast("B")


def _mismatch(data: bytes) -> ChecksumValidationFailureError:
    payload = Payload(data)
    record_id = payload.data[payload._id_at : payload._metadata_at].decode(errors="replace")
    return ChecksumValidationFailureError(
        f"record {record_id!r} does not match its {payload.algorithm} checksum {payload.digest.hex()}",
        record_id=record_id,
    )
