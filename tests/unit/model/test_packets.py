"""Data packets and vectors: checksums that hold end to end, and forms that come back as they were."""

from __future__ import annotations

import base64
import copy
import json
import pickle
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vecraft_data_model import DataPacket, VectorPacket
from vecraft_data_model.errors import (
    ChecksumValidationFailureError,
    CorruptionError,
    InvalidDataException,
    NullOrZeroVectorException,
    VectorDimensionMismatchException,
)
from vecraft_data_model.payload import decode_payload, verify_payload
from vecraft_data_model.vector_packet import vector_from_json, vector_to_json

VALUES = np.array([0.1, -2.0, 3.5], np.float32)


def packet(**changes: Any) -> DataPacket:
    fields: dict[str, Any] = {
        "record_id": "img-1", "vector": VALUES, "metadata": {"label": "cat", "n": 1.0}, "document": "a cat",
    }  # fmt: skip
    return DataPacket(**{**fields, **changes})


@pytest.mark.parametrize("vector", [VALUES, VALUES.astype(np.float64), VALUES.tolist(), tuple(VALUES.tolist()),
                                    VectorPacket.from_numpy(VALUES), VectorPacket(VALUES.tolist())])  # fmt: skip
def test_vectors_may_come_in_any_form(vector: Any) -> None:
    made = packet(vector=vector)
    assert isinstance(made.vector, VectorPacket)
    assert made.vector.to_numpy().dtype == np.float32
    assert made == packet()
    assert made.checksum == packet().checksum


def test_a_vector_packet_behaves_as_an_array() -> None:
    vector = VectorPacket.from_numpy(VALUES)
    assert np.asarray(vector).tolist() == VALUES.tolist() == vector.to_list() == list(vector)
    assert (len(vector), vector.dim, vector.shape, vector.dtype) == (3, 3, (3,), np.dtype(np.float32))
    assert vector[1] == -2
    assert np.asarray(vector, dtype=np.float64).dtype == np.float64
    assert VectorPacket.from_bytes(vector.to_bytes()) == vector
    assert pickle.loads(pickle.dumps(vector)) == vector
    assert hash(VectorPacket(VALUES)) == hash(vector)
    assert vector != VectorPacket([1, 2])
    assert vector != VALUES.tolist()


def test_a_vector_packet_keeps_its_own_read_only_values() -> None:
    mine = VALUES.copy()
    vector = VectorPacket(mine)
    mine[0] = 9
    assert vector[0] == VALUES[0]
    with pytest.raises(ValueError, match="read-only"):
        vector.to_numpy()[0] = 1


@pytest.mark.parametrize(
    ("vector", "error"),
    [([], NullOrZeroVectorException), (None, NullOrZeroVectorException), ([[1, 2]], VectorDimensionMismatchException),
     (["1"], InvalidDataException), ([float("nan")], InvalidDataException), ([True], InvalidDataException)],
)  # fmt: skip
def test_bad_vectors_are_refused(vector: Any, error: type[Exception]) -> None:
    with pytest.raises(error):
        packet(vector=vector)


def test_bytes_that_are_no_vector() -> None:
    with pytest.raises(CorruptionError, match="7 bytes"):
        VectorPacket.from_bytes(b"1234567")


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"record_id": ""}, "record id"), ({"record_id": 5}, "record id"), ({"metadata": [1]}, "metadata"),
        ({"metadata": {"a": float("nan")}}, "finite"), ({"document": 3}, "document"),
        ({"checksum_algorithm": "crc"}, "checksum_algorithm must be one of"),
    ],
)  # fmt: skip
def test_bad_fields_are_refused(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(InvalidDataException, match=said):
        packet(**changes)


def test_every_form_comes_back_the_same() -> None:
    for algorithm in ("sha256", "blake2s"):
        made = packet(checksum_algorithm=algorithm, document={"title": "x"})
        forms = [
            DataPacket.from_bytes(made.to_bytes()),
            DataPacket.from_dict(made.to_dict()),
            DataPacket.from_dict(json.loads(json.dumps(made.to_dict()))),
            pickle.loads(pickle.dumps(made)),
            copy.deepcopy(made),
            DataPacket.from_payload(made.to_payload(), VALUES),
            DataPacket.create_record("img-1", VALUES, made.metadata, made.document, algorithm),
        ]
        for form in forms:
            assert form == made
            assert form.checksum == made.checksum
            assert form.validate_checksum()


@given(st.binary(max_size=60))
def test_arbitrary_bytes_are_no_packet(data: bytes) -> None:
    for candidate in (data, b"VDP\x01" + data):
        with pytest.raises(CorruptionError):
            DataPacket.from_bytes(candidate)


def test_every_flipped_bit_of_a_packet_is_noticed() -> None:
    data = packet().to_bytes()
    for position in range(len(data)):
        damaged = bytearray(data)
        damaged[position] ^= 4
        with pytest.raises((CorruptionError, ChecksumValidationFailureError)):
            DataPacket.from_bytes(bytes(damaged))
    for cut in range(len(data)):
        with pytest.raises(CorruptionError):
            DataPacket.from_bytes(data[:cut])


@pytest.mark.parametrize(
    ("field", "value"),
    [("record_id", "img-2"), ("metadata", {"label": "dog"}), ("metadata", None), ("document", "a dog"),
     ("vector", VectorPacket([1, 2, 3])), ("vector", VALUES + 1), ("checksum", "00"), ("checksum_algorithm", "md5")],
)  # fmt: skip
def test_a_changed_packet_no_longer_holds(field: str, value: Any) -> None:
    made = packet()
    setattr(made, field, value)
    for use in (made.validate_checksum, made.to_payload, made.to_bytes):
        with pytest.raises(ChecksumValidationFailureError, match=made.record_id):
            use()


def test_metadata_changed_in_place_are_noticed_too() -> None:
    made = packet()
    assert made.metadata is not None
    made.metadata["label"] = "dog"
    with pytest.raises(ChecksumValidationFailureError):
        made.validate_checksum()


def test_marks() -> None:
    gone, never = DataPacket.create_tombstone("a"), DataPacket.create_nonexistent("a", "md5")
    assert (gone.is_tombstone(), gone.is_nonexistent(), gone.is_record(), gone.type) == (
        True,
        False,
        False,
        "TOMBSTONE",
    )
    assert (never.is_tombstone(), never.is_nonexistent(), never.is_record()) == (False, True, False)
    assert packet().is_record()
    assert gone.checksum != DataPacket.create_nonexistent("a").checksum
    for mark in (gone, never):
        assert mark.validate_checksum()
        assert mark.vector is None
        assert DataPacket.from_bytes(mark.to_bytes()) == mark
        assert DataPacket.from_dict(mark.to_dict()) == mark
        assert pickle.loads(pickle.dumps(mark)) == mark


def test_from_payload_verifies_and_keeps_the_commit_timestamp() -> None:
    payload = packet().to_payload()
    read = DataPacket.from_payload(payload, VALUES, commit_ts=77)
    assert read.commit_ts == 77
    assert read == packet()
    assert DataPacket.from_dict(read.to_dict()).commit_ts == 77
    with pytest.raises(ChecksumValidationFailureError):
        DataPacket.from_payload(payload, VALUES + 1)
    without = DataPacket.from_payload(payload, None)
    assert (without.vector, without.checksum) == (None, read.checksum)
    with pytest.raises(InvalidDataException, match="without its vector"):
        without.validate_checksum()
    verify_payload(read.to_payload(), VALUES)
    assert decode_payload(payload).digest.hex() == read.checksum


@pytest.mark.parametrize(
    ("data", "error", "said"),
    [
        ([], InvalidDataException, "a packet must be an object"),
        ({"vector": [1]}, InvalidDataException, "needs a record_id"),
        ({"record_id": "a"}, NullOrZeroVectorException, "needs a vector"),
        ({"record_id": "a", "vector": [1], "meta": {}}, InvalidDataException, "unknown packet key 'meta'"),
        ({"record_id": "a", "vector": [1], "type": "ROW"}, InvalidDataException, "type must be one of"),
        ({"record_id": "a", "vector": [1], "checksum": "00"}, ChecksumValidationFailureError, "'a' came with"),
        ({"record_id": "a", "vector": {"b64": "!"}}, InvalidDataException, "not base64"),
    ],
)
def test_dicts_that_are_no_packet(data: Any, error: type[Exception], said: str) -> None:
    with pytest.raises(error, match=said):
        DataPacket.from_dict(data)
    assert DataPacket.from_dict({"record_id": "a", "vector": [1]}) == DataPacket("a", [1])


# ------------------------------------------------------------------------------------------ vectors in JSON


def b64(data: bytes) -> str:
    return base64.b64encode(data).decode()


def test_vectors_in_json() -> None:
    exact = vector_to_json(VALUES)
    assert vector_from_json(exact).tobytes() == VALUES.tobytes()
    assert vector_from_json({"b64": exact["b64"]}).tobytes() == VALUES.tobytes()
    assert vector_from_json([1, 2]) == [1, 2]
    half = {"b64": b64(VALUES.astype("<f2").tobytes()), "dtype": "float16"}
    assert vector_from_json(half).tolist() == VALUES.astype(np.float16).tolist()
    double = {"b64": b64(np.eye(2).tobytes()), "dtype": "float64", "shape": [2, 2]}
    assert vector_from_json(double).tolist() == [[1, 0], [0, 1]]


@pytest.mark.parametrize(
    ("value", "error", "said"),
    [
        ({}, InvalidDataException, "b64, dtype and shape"),
        ({"b64": 5}, InvalidDataException, "b64, dtype and shape"),
        ({"b64": "AAAA", "extra": 1}, InvalidDataException, "with the key 'extra'"),
        ({"b64": "*&^"}, InvalidDataException, "not base64"),
        ({"b64": "AAA"}, InvalidDataException, "not base64"),
        ({"b64": "ü"}, InvalidDataException, "not base64"),
        ({"b64": b64(b"12345")}, InvalidDataException, "holds 5 bytes"),
        ({"b64": b64(b"1234"), "dtype": "object"}, InvalidDataException, "dtype must be one of"),
        ({"b64": b64(b"1234"), "dtype": "int32"}, InvalidDataException, "dtype must be one of"),
        ({"b64": b64(b"1234"), "dtype": ["float32"]}, InvalidDataException, "dtype must be one of"),
        ({"b64": b64(b"1234"), "shape": [2]}, VectorDimensionMismatchException, "multiply to 1"),
        ({"b64": b64(b"1234"), "shape": []}, VectorDimensionMismatchException, "one or two sizes"),
        ({"b64": b64(b"1234"), "shape": [-1, -1]}, VectorDimensionMismatchException, "one or two sizes"),
        ({"b64": b64(b"1234"), "shape": [True]}, VectorDimensionMismatchException, "one or two sizes"),
        ({"b64": b64(b"1234"), "shape": "1"}, VectorDimensionMismatchException, "one or two sizes"),
        ({"b64": b64(b"1234"), "shape": [1, 1, 1]}, VectorDimensionMismatchException, "one or two sizes"),
    ],
)
def test_vectors_in_json_that_are_refused(value: Any, error: type[Exception], said: str) -> None:
    with pytest.raises(error, match=said):
        vector_from_json(value, "query_vector")
