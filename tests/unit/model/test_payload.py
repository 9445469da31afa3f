"""Payloads: what is encoded comes back, what is damaged does not."""

from __future__ import annotations

import hashlib
import json
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from random_examples import examples

from vecraft_data_model.checksums import CODES, DIGEST_SIZES
from vecraft_data_model.errors import ChecksumValidationFailureError, CorruptionError, InvalidDataException
from vecraft_data_model.payload import (
    HEADER,
    NONEXISTENT,
    TOMBSTONE,
    decode_payload,
    documents_of,
    encode_payload,
    encode_payloads,
    ids_of,
    metadata_of,
    objects_of,
    reseal_payloads,
    verify_payload,
    verify_payloads,
)

VECTOR = np.array([1.0, -2.5, 3e-40], dtype=np.float32)
MANY = 40
"""So many records are looked at column by column."""

TEXT = st.text(max_size=12)
INT64 = st.integers(-(2**63), 2**63 - 1)
JSON = st.recursive(
    st.none() | st.booleans() | INT64 | st.floats(allow_nan=False, allow_infinity=False) | TEXT,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXT, inner, max_size=4),
    max_leaves=12,
)
OBJECTS = st.dictionaries(TEXT, JSON, max_size=5)
IDS = st.text(min_size=1, max_size=30).filter(lambda text: "\0" not in text)
METADATA = st.none() | OBJECTS
DOCUMENTS = st.none() | st.text(max_size=60) | OBJECTS


GOOD = encode_payload("id", VECTOR, {"a": 1}, {"b": 2}, "sha256")


def exactly(a: Any, b: Any) -> bool:
    """Equal, kinds and the sign of zero included."""
    return repr(a) == repr(b)


@given(IDS, METADATA, DOCUMENTS, st.sampled_from(sorted(CODES)))
def test_round_trip(record_id: str, metadata: Any, document: Any, algorithm: str) -> None:
    data = encode_payload(record_id, VECTOR, metadata, document, algorithm)
    payload = decode_payload(data)
    assert payload.record_id == record_id
    assert exactly(payload.metadata, metadata)
    assert exactly(payload.document, document)
    assert payload.algorithm == algorithm
    assert len(payload.digest) == DIGEST_SIZES[algorithm]
    verify_payload(data, VECTOR)
    verify_payload(data, VECTOR.tobytes())
    # Encoding is deterministic, so a packet rebuilt from its payload has the same checksum again.
    assert encode_payload(record_id, VECTOR, payload.metadata, payload.document, algorithm) == data


@examples(50)
@given(st.lists(st.tuples(IDS, METADATA, DOCUMENTS), max_size=4), st.sampled_from((1, MANY)))
def test_columns_give_the_same_bytes_as_records_one_by_one(records: list[tuple[str, Any, Any]], times: int) -> None:
    records = records * times
    vectors = np.arange(len(records) * 3, dtype=np.float32).reshape(-1, 3)
    ids = [record[0] for record in records]
    metadatas, documents = [record[1] for record in records], [record[2] for record in records]
    payloads = encode_payloads(ids, vectors, metadatas, documents, "sha256")
    singly = [encode_payload(*record, "sha256") for record in zip(ids, vectors, metadatas, documents, strict=True)]
    assert payloads == singly
    assert ids_of(payloads) == ids
    assert exactly(metadata_of(payloads), metadatas)
    assert exactly(documents_of(payloads), documents)
    objects = [document if isinstance(document, dict) else None for document in documents]
    assert exactly(objects_of(payloads), (metadatas, objects))
    verify_payloads(payloads, vectors)


def test_the_layout_is_the_drawn_one() -> None:
    data = encode_payload("é1", VECTOR, {"a": 1}, "text", "sha1")
    header, digest, rest = data[:16], data[16:36], data[36:]
    assert HEADER.unpack(header) == (b"VP", 1, 6, 1, 20, 3, 7, 4)
    assert rest == "é1".encode() + b'{"a":1}' + b"text"
    assert digest == hashlib.sha1(header + rest + VECTOR.astype("<f4").tobytes()).digest()


def test_no_metadata_is_not_empty_metadata_and_no_document_not_an_empty_one() -> None:
    none = encode_payload("a", VECTOR, None, None, "sha256")
    empty = encode_payload("a", VECTOR, {}, "", "sha256")
    json = encode_payload("a", VECTOR, None, {}, "sha256")
    assert metadata_of([none, empty]) == [None, {}]
    assert documents_of([none, empty, json]) == [None, "", {}]
    assert none != empty


def test_columns_may_be_left_out() -> None:
    payloads = encode_payloads(["a", "b"], np.ones((2, 3), np.float32), None, None, "md5")
    assert metadata_of(payloads) == documents_of(payloads) == [None, None]
    assert encode_payloads([], np.ones((0, 3), np.float32), None, None, "md5") == []


def test_columns_of_other_lengths_are_refused() -> None:
    for metadatas, documents in (([{}], None), (None, ["x"] * 3), ([], None)):
        with pytest.raises(InvalidDataException, match="as many as ids, 2"):
            encode_payloads(["a", "b"], np.ones((2, 3), np.float32), metadatas, documents, "sha256")
    with pytest.raises(InvalidDataException, match="vectors must be as many"):
        encode_payloads(["a", "b"], np.ones((1, 3), np.float32), None, None, "sha256")


@pytest.mark.parametrize("algorithm", sorted(CODES))
def test_every_flipped_bit_is_noticed(algorithm: str) -> None:
    data = encode_payload("id", VECTOR, {"a": 1}, "text", algorithm)
    for position in range(len(data)):
        for bit in (1, 0x80):
            damaged = bytearray(data)
            damaged[position] ^= bit
            with pytest.raises((ChecksumValidationFailureError, CorruptionError)):
                verify_payload(bytes(damaged), VECTOR)


def test_another_vector_or_id_is_noticed_and_the_record_named() -> None:
    data = encode_payload("record-7", VECTOR, None, None, "sha256")
    with pytest.raises(ChecksumValidationFailureError, match="'record-7'") as caught:
        verify_payload(data, VECTOR + 1)
    assert caught.value.details == {"record_id": "record-7"}
    with pytest.raises(ChecksumValidationFailureError):
        verify_payload(data, None)
    others = encode_payloads(["x", "y"], np.ones((2, 3), np.float32), None, None, "sha256")
    verify_payloads(others, np.ones((2, 3), np.float32))
    with pytest.raises(ChecksumValidationFailureError, match="'y'"):
        verify_payloads(others, np.array([[1, 1, 1], [1, 1, 2]], np.float32))
    with pytest.raises(InvalidDataException, match="2 payloads cannot be verified against 1 vectors"):
        verify_payloads(others, np.ones((1, 3), np.float32))


@pytest.mark.parametrize("read", [decode_payload, lambda d: metadata_of([d]), lambda d: documents_of([d]),
                                  lambda d: ids_of([d]), lambda d: verify_payload(d, VECTOR),
                                  lambda d: ids_of([*[GOOD] * MANY, d]),
                                  lambda d: objects_of([d, *[GOOD] * MANY])])  # fmt: skip
def test_garbage_is_corruption(read: Any) -> None:
    read(GOOD)
    for cut in (0, 5, 15, 16, 40, len(GOOD) - 1):
        with pytest.raises(CorruptionError):
            read(GOOD[:cut])
    for garbage in (GOOD + b"x", b"\0" * 64, b"VP" + b"\xff" * 62, np.random.default_rng(1).bytes(200)):
        with pytest.raises(CorruptionError):
            read(garbage)


def test_parts_that_do_not_decode_are_corruption() -> None:
    data = bytearray(encode_payload("id", VECTOR, {"a": 1}, "text", "md5"))
    start = HEADER.size + 16
    for at, what in ((start, "record_id"), (start + 2, "metadata"), (len(data) - 1, "document")):
        damaged = bytearray(data)
        damaged[at] = 0xFF
        with pytest.raises(CorruptionError):
            getattr(decode_payload(bytes(damaged)), what)


def test_marks_without_vector() -> None:
    for kind in (TOMBSTONE, NONEXISTENT):
        data = encode_payload("gone", None, None, None, "sha256", kind)
        assert decode_payload(data).kind == kind
        verify_payload(data, None)


def test_resealing_takes_other_vectors_and_nothing_else() -> None:
    rng = np.random.default_rng(7)
    vectors = rng.random((3, 5), dtype=np.float32)
    rounded = vectors.astype(np.float16).astype(np.float32)
    payloads = encode_payloads(["a", "b", "c"], vectors, [{"n": 1}, None, {}], ["x", None, {"y": 1}], "blake2b")
    sealed = reseal_payloads(payloads, rounded)
    verify_payloads(sealed, rounded)
    assert ids_of(sealed) == ["a", "b", "c"]
    assert metadata_of(sealed) == [{"n": 1}, None, {}]
    assert documents_of(sealed) == ["x", None, {"y": 1}]
    assert sealed == encode_payloads(["a", "b", "c"], rounded, [{"n": 1}, None, {}], ["x", None, {"y": 1}], "blake2b")
    assert reseal_payloads([], vectors) == []


class Odd(str):
    """A string that is not quite one."""


def deep(levels: int) -> dict[str, Any]:
    value: Any = 1
    for _ in range(levels - 1):
        value = [value]
    return {"a": value}


@pytest.mark.parametrize(
    ("value", "said"),
    [
        ({"a": float("nan")}, r"\.a .*finite; got nan"),
        ({"a": [1, float("-inf")]}, r"\.a\[1\] .*finite; got -inf"),
        ({"a": {"b": 2**63}}, r"\.a\.b .*int64"),
        ({"a": -(2**63) - 1}, "int64"),
        ({"a": 10**5000}, "int64"),
        ({1: "x"}, "keys must be strings; got a key of type int"),
        ({"a": {None: 1}}, "keys must be strings"),
        ({"a": "\ud800"}, "lone surrogate"),
        ({"\udfff": 1}, "lone surrogate"),
        ({"a": np.float32(1)}, "numpy.float32"),
        ({"a": np.float64(1)}, "numpy.float64"),
        ({"a": {1, 2}}, "builtins.set"),
        ({"a": b"x"}, "builtins.bytes"),
        ({"a": Odd("x")}, "Odd"),
        ({Odd("a"): 1}, "keys must be strings; got a key of type Odd"),
        ({"a": object()}, "builtins.object"),
        (deep(65), "at most 64 deep"),
        (deep(100_000), "at most 64 deep"),
        (["a"], r"must be .*an object \(dict\) or None; got list"),
        ({"a": "x" * (16 << 20)}, "bytes; at most"),
    ],
)
@pytest.mark.parametrize("what", ["metadata", "document"])
def test_what_is_not_strict_json_is_refused_by_record_and_path(value: Any, said: str, what: str) -> None:
    for others in (0, MANY):  # which are right
        values = [{"a": 1}] * others + [value]
        ids = [f"rec-{i}" for i in range(others, -1, -1)]
        columns = (values, None) if what == "metadata" else (None, values)
        with pytest.raises(InvalidDataException, match=said) as caught:
            encode_payloads(ids, np.ones((len(ids), 3), np.float32), *columns, "sha256")
        assert "'rec-0'" in caught.value.message
        assert what in caught.value.message
        assert len(caught.value.message) < 600


def test_what_is_just_within_the_limits_is_accepted() -> None:
    for metadata in (deep(64), {"a": 2**63 - 1, "b": -(2**63)}, {"a": "x" * ((1 << 20) - 8)}, {"t": (1, 2)}):
        encode_payload("a", VECTOR, metadata, None, "sha256")
    with pytest.raises(InvalidDataException, match="1048577 bytes; at most 1048576"):
        encode_payload("a", VECTOR, {"a": "x" * ((1 << 20) - 7)}, None, "sha256")


@pytest.mark.parametrize("document", ["a\ud800", 3, b"text", ["x"]])
def test_documents_of_other_kinds_are_refused(document: Any) -> None:
    with pytest.raises(InvalidDataException, match="document"):
        encode_payload("a", VECTOR, None, document, "sha256")


@pytest.mark.parametrize("algorithm", ["crc32", "SHA256", "", None, 3])
def test_unknown_algorithms_are_refused(algorithm: Any) -> None:
    with pytest.raises(InvalidDataException, match="must be one of sha256"):
        encode_payload("a", VECTOR, None, None, algorithm)


def test_damaged_metadata_of_several_records_is_not_taken_for_one_anothers() -> None:
    """What is missing in one stands too much in another: each is decoded by itself."""
    kept = ['{"k":"xxxxxxxxxx"}', '{"k":"xx"}', '{"k":"xx"}']
    damaged = ['{"a":1},{"bb":222}', '{"aa":1234', '"bb":2345}']
    payloads = []
    for number, (before, after) in enumerate(zip(kept, damaged, strict=True)):
        sealed = encode_payload(f"r{number}", VECTOR, json.loads(before), None, "sha256")
        assert sealed.count(before.encode()) == 1 and len(before) == len(after)
        payloads.append(sealed.replace(before.encode(), after.encode()))
    for decode in (metadata_of, objects_of):
        with pytest.raises(CorruptionError, match="metadata"):
            decode(payloads)
