"""Between JSON records and messages: what comes in becomes ``Put``, what goes out becomes plain JSON objects.

Records are encoded here, so here is where their checksums are made when the client sends none. A client that did make
them is held to them: a ``checksum`` that does not match its record, or an encoded payload that is not exactly what this
server would have made of its contents, is refused with 400.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec

from vecraft_data_model.errors import ChecksumValidationFailureError, CorruptionError, InvalidDataException
from vecraft_data_model.messages import Expectation, Float32Array, Hits, Put, Rows
from vecraft_data_model.payload import (
    RECORD,
    decode_payload,
    documents_of,
    encode_payloads,
    ids_of,
    metadata_of,
    verify_payloads,
)
from vecraft_data_model.validation import as_matrix, check_record_ids
from vecraft_router.gateway.columns import unpack_payloads
from vecraft_router.gateway.problems import BadRequest
from vecraft_router.gateway.schemas import Packet
from vecraft_router.gateway.vectors import matrix_from_wire, stack, to_base64, vector_from_wire

DEFAULT_CHECKSUM = "sha256"
PARTS = ("metadata", "document", "vector")


class Include(msgspec.Struct, frozen=True):
    """Which parts of a record are wanted."""

    metadata: bool
    document: bool
    vector: bool

    @property
    def payload(self) -> bool:
        """Whether the payload is needed."""
        return self.metadata or self.document


def include_of(value: object) -> Include:
    """Return what ``include`` asks for.

    Raises:
        InvalidDataException: It is not a list of ``metadata``, ``document`` and ``vector``.
    """
    if not isinstance(value, list | tuple):
        raise InvalidDataException(f"include must be a list of {', '.join(PARTS)}, got {type(value).__name__}")
    for part in value:
        if part not in PARTS:
            raise InvalidDataException(f"include accepts {', '.join(PARTS)}, got {str(part)[:60]!r}")
    return Include("metadata" in value, "document" in value, "vector" in value)


def put_of_packets(collection: str, packets: Sequence[Packet], expect: Expectation) -> Put:
    """Return the mutation that writes these records.

    Raises:
        InvalidDataException: A record is not acceptable; named.
        BadRequest: A checksum does not match.
    """
    ids = check_record_ids([packet.record_id for packet in packets])
    for packet in packets:
        if packet.type != "RECORD":
            raise InvalidDataException(f"packet {packet.record_id!r} must be a RECORD, got {str(packet.type)[:40]!r}")
    rows = [vector_from_wire(packet.vector, f"vector of record {_short(packet.record_id)}") for packet in packets]
    vectors = as_matrix(stack(rows, "vectors"), what="vector", ids=ids)
    algorithms = [
        DEFAULT_CHECKSUM if packet.checksum_algorithm is None else packet.checksum_algorithm for packet in packets
    ]
    metadatas = [packet.metadata for packet in packets]
    documents = [packet.document for packet in packets]
    payloads = _encode(ids, vectors, metadatas, documents, algorithms)
    for packet, payload in zip(packets, payloads, strict=True):
        if packet.checksum is not None and decode_payload(payload).digest.hex() != packet.checksum:
            raise _bad_checksum(packet.record_id)
    return Put(collection, ids, vectors, payloads, expect)


def put_of_columns(
    collection: str,
    ids: object,
    vectors: object,
    metadatas: list[Any] | None,
    documents: list[Any] | None,
    payloads: object,
    algorithm: Any,
    expect: Expectation,
) -> Put:
    """Return the mutation that writes these columns; arguments as in ``UpsertBody``.

    Raises:
        InvalidDataException: A column is missing, of another length, or not acceptable.
        BadRequest: A payload does not match its record.
    """
    if ids is None or vectors is None:
        raise InvalidDataException('an upsert needs "packets", or "ids" and "vectors"')
    checked = check_record_ids(ids)
    raw = matrix_from_wire(vectors, "vectors")
    if len(raw) != len(checked):
        raise InvalidDataException(f"vectors must be as many as ids, {len(checked)}; got {len(raw)}")
    matrix = as_matrix(raw, what="vectors", ids=checked)
    if payloads is None:
        encoded = encode_payloads(
            checked, matrix, metadatas, documents, DEFAULT_CHECKSUM if algorithm is None else algorithm
        )
    else:
        if metadatas is not None or documents is not None or algorithm is not None:
            raise InvalidDataException(
                "payloads stand for metadatas, documents and checksum_algorithm; give one or the other"
            )
        encoded = _proven(checked, matrix, unpack_payloads(payloads))
    return Put(collection, checked, matrix, encoded, expect)


def rows_to_json(rows: Rows, include: Include, base64: bool) -> list[dict[str, Any]]:
    """Return records as JSON objects, in the rows' order; checksums are verified where the vectors came along.

    Raises:
        ChecksumValidationFailureError: A record does not match.
    """
    payloads = rows.payloads
    if payloads is None:
        payloads = []
    elif rows.vectors is not None:
        verify_payloads(payloads, rows.vectors)
    records: list[dict[str, Any]] = [{"type": "RECORD", "record_id": record_id} for record_id in rows.ids]
    if include.vector and rows.vectors is not None:
        _fill(records, "vector", vectors_to_json(rows.vectors, base64))
    if include.metadata:
        _fill(records, "metadata", metadata_of(payloads))
    if include.document:
        _fill(records, "document", documents_of(payloads))
    for record, payload in zip(records, payloads, strict=False):
        decoded = decode_payload(payload)
        record["checksum_algorithm"] = decoded.algorithm
        record["checksum"] = decoded.digest.hex()
    _fill(records, "commit_ts", rows.begin_ts)
    return records


def hits_to_json(hits: Hits, include: Include, base64: bool) -> list[dict[str, Any]]:
    """Return the answer to one query as JSON objects, nearest first."""
    records: list[dict[str, Any]] = [
        {"record_id": record_id, "distance": distance}
        for record_id, distance in zip(hits.ids, hits.distances, strict=True)
    ]
    if hits.scores is not None:
        _fill(records, "score", hits.scores)
    if hits.payloads is not None:
        if include.metadata:
            _fill(records, "metadata", metadata_of(hits.payloads))
        if include.document:
            _fill(records, "document", documents_of(hits.payloads))
    if include.vector and hits.vectors is not None:
        _fill(records, "vector", vectors_to_json(hits.vectors, base64))
    return records


def vectors_to_json(vectors: Float32Array, base64: bool) -> list[Any]:
    """Return each row as a list, or in base64."""
    return [to_base64(row) for row in vectors] if base64 else vectors.tolist()


def _fill(records: list[dict[str, Any]], name: str, values: Sequence[Any]) -> None:
    for record, value in zip(records, values, strict=True):
        record[name] = value


def _encode(
    ids: list[str], vectors: Float32Array, metadatas: list[Any], documents: list[Any], algorithms: list[Any]
) -> list[bytes]:
    if all(algorithm == algorithms[0] for algorithm in algorithms):
        return encode_payloads(ids, vectors, metadatas, documents, algorithms[0]) if ids else []
    return [
        encode_payloads([ids[i]], vectors[i : i + 1], [metadatas[i]], [documents[i]], algorithm)[0]
        for i, algorithm in enumerate(algorithms)
    ]


def _proven(ids: list[str], vectors: Float32Array, payloads: list[bytes]) -> list[bytes]:
    """Return the payloads if they are, byte for byte, what encoding their own contents gives.

    One comparison proves it all: strict and bounded JSON, the right id, and the checksum over record and vector.
    """
    if len(payloads) != len(ids):
        raise InvalidDataException(f"payloads must be as many as ids, {len(ids)}; got {len(payloads)}")
    if not ids:
        return []
    try:
        headers = [decode_payload(payload) for payload in payloads]
        for record_id, own in zip(ids, ids_of(payloads), strict=True):
            if own != record_id:
                raise InvalidDataException(f"the payload of record {record_id!r} is that of {own[:100]!r}")
        again = _encode(
            ids, vectors, metadata_of(payloads), documents_of(payloads), [header.algorithm for header in headers]
        )
    except CorruptionError as error:
        raise InvalidDataException(f"payloads: {error.message}") from error
    if again != payloads:
        at = next(i for i, payload in enumerate(payloads) if payload != again[i])
        if headers[at].kind != RECORD:
            raise InvalidDataException(f"the payload of {ids[at]!r} is no record but a tombstone")
        raise _bad_checksum(ids[at])
    return payloads


def _bad_checksum(record_id: str) -> BadRequest:
    return BadRequest(
        ChecksumValidationFailureError(
            f"record {record_id!r} does not match the checksum it came with", record_id=record_id
        )
    )


def _short(value: object) -> str:
    return repr(value)[:80] if isinstance(value, str) else "?"
