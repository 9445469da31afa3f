"""Between packets, which users hold, and messages, which travel: column-wise, checked on the way in and on the way out.

In: everything that can be wrong with a write is found here, before anything is sent (the shard checks again). Out:
checksums are verified wherever the vector that they cover came along; otherwise the shard has done so.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import repeat
from typing import Any

from vecraft_data_model.checksums import DEFAULT_ALGORITHM, check_algorithm
from vecraft_data_model.data_packet import DataPacket, checksum_failure
from vecraft_data_model.errors import CorruptionError, InvalidDataException
from vecraft_data_model.messages import Expectation, Hits, Put, Rows
from vecraft_data_model.payload import HEADER, Json, Payload, encode_payloads, verify_payloads
from vecraft_data_model.results import DOCUMENT, METADATA, SearchResult
from vecraft_data_model.schema import CollectionSchema
from vecraft_data_model.validation import as_matrix, check_expect, check_record_ids, shown


def put_of_packets(
    collection: str,
    packets: Iterable[DataPacket],
    expect: Expectation = None,
    schema: CollectionSchema | None = None,
) -> Put:
    """Return the mutation that writes these packets.

    Args:
        collection: Its name, or an alias.
        packets: Records; ids distinct, vectors of one dimension.
        expect: What must hold for each of them: None, ``"absent"``, ``"present"`` or a commit timestamp.
        schema: Of the collection, if known here: then dimension, metric and range are checked at once.

    Raises:
        InvalidDataException: Not records, repeated ids, vectors that differ in length, or what the schema refuses.
        ChecksumValidationFailureError: A packet was changed after it was made.
    """
    listed = [packets] if isinstance(packets, DataPacket) else list(packets)
    for packet in listed:
        if not isinstance(packet, DataPacket) or not packet.is_record():
            raise InvalidDataException(f"only records can be written; got {packet!r}"[:200])
    ids = check_record_ids([packet.record_id for packet in listed])
    vectors = as_matrix([packet.vector for packet in listed], ids=ids, **_wanted(schema))
    payloads: list[bytes] = [b""] * len(listed)
    for algorithm in {packet.checksum_algorithm for packet in listed}:
        at = [i for i, packet in enumerate(listed) if packet.checksum_algorithm == algorithm]
        encoded = encode_payloads(
            [ids[i] for i in at],
            vectors if len(at) == len(listed) else vectors[at],
            [listed[i].metadata for i in at],
            [listed[i].document for i in at],
            algorithm,
        )
        for i, payload in zip(at, encoded, strict=True):
            # The digest's length stands in the header, at offset 5.
            if payload[HEADER.size : HEADER.size + payload[5]].hex() != listed[i].checksum:
                raise checksum_failure(listed[i])
            payloads[i] = payload
    return Put(collection, ids, vectors, payloads, check_expect(expect))


def put_of_columns(
    collection: str,
    ids: Sequence[str],
    vectors: object,
    metadatas: Sequence[dict[str, Json] | None] | None = None,
    documents: Sequence[str | dict[str, Json] | None] | None = None,
    expect: Expectation = None,
    algorithm: str = DEFAULT_ALGORITHM,
    schema: CollectionSchema | None = None,
) -> Put:
    """Return the mutation that writes these columns: the fast path, and the same result as packets.

    Args:
        collection: Its name, or an alias.
        ids: n distinct record ids.
        vectors: (n, dim) floats or integers; float32 and C-contiguous is not copied, and must not be changed until
            the write is answered.
        metadatas: n JSON objects or None each; None for none at all.
        documents: n texts, JSON objects or None each; None for none at all.
        expect: As for :func:`put_of_packets`.
        algorithm: Of the checksums.
        schema: As for :func:`put_of_packets`.

    Raises:
        InvalidDataException: A bad value, or columns that differ in length.
    """
    checked_ids = check_record_ids(ids)
    for what, column in (("metadatas", metadatas), ("documents", documents)):
        if column is not None and (isinstance(column, str | bytes | dict) or not hasattr(column, "__len__")):
            raise InvalidDataException(f"{what} must be a list, one per id, or None; got {shown(column)}")
    if hasattr(vectors, "__len__") and len(vectors) != len(checked_ids):
        raise InvalidDataException(f"vectors must be as many as ids, {len(checked_ids)}; got {len(vectors)}")
    matrix = as_matrix(vectors, ids=checked_ids, **_wanted(schema))
    payloads = encode_payloads(checked_ids, matrix, metadatas, documents, check_algorithm(algorithm))
    return Put(collection, checked_ids, matrix, payloads, check_expect(expect))


def packets_of_rows(rows: Rows) -> list[DataPacket]:
    """Return records as packets, in their order; verified if their vectors were read.

    Raises:
        ChecksumValidationFailureError: A record does not match its checksum.
        CorruptionError: A payload cannot be read, or belongs to another record.
        InvalidDataException: The rows were read without payloads.
    """
    if rows.payloads is None:
        raise InvalidDataException("rows that were read without payloads cannot be made packets")
    if rows.vectors is not None:
        verify_payloads(rows.payloads, rows.vectors)
    vectors: Iterable[Any] = repeat(None) if rows.vectors is None else rows.vectors
    packets = []
    for record_id, begin_ts, data, vector in zip(rows.ids, rows.begin_ts, rows.payloads, vectors, strict=False):
        packet = DataPacket.from_payload(Payload(data), vector, begin_ts, verify=False)
        if packet.record_id != record_id:
            raise CorruptionError(
                f"the payload of record {record_id!r} belongs to record {packet.record_id!r}", record_id=record_id
            )
        packets.append(packet)
    return packets


def results_of_hits(hits: Hits, include: Iterable[str] = ("metadata", "document")) -> list[SearchResult]:
    """Return the answer to one query, nearest first; verified if vectors were read too.

    Args:
        hits: From a shard, or merged.
        include: Any of ``metadata``, ``document``, ``vector``; what was not read stays None.

    Raises:
        ChecksumValidationFailureError: A record does not match its checksum.
    """
    payloads, vectors = hits.payloads, hits.vectors
    if payloads is None and vectors is None and hits.scores is None:
        return list(map(SearchResult, hits.ids, hits.distances))
    included = (METADATA if "metadata" in include else 0) | (DOCUMENT if "document" in include else 0)
    if payloads is not None and vectors is not None:
        verify_payloads(payloads, vectors)
    columns: list[Iterable[Any]] = [
        hits.ids,
        hits.distances,
        repeat(None) if payloads is None else payloads,
        repeat(None) if vectors is None or "vector" not in include else vectors,
        repeat(included),
    ]
    if hits.scores is not None:
        columns.append(hits.scores)
    return list(map(SearchResult, *columns))


def _wanted(schema: CollectionSchema | None) -> dict[str, Any]:
    if schema is None:
        return {}
    # float16 is rounded by the shard that stores it: the digest covers what the caller handed in until then.
    return {"dim": schema.dim, "metric": schema.metric}
