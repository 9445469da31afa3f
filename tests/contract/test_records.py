"""Records: written, read back with their checksums, replaced, deleted, conditionally and exactly once."""

from __future__ import annotations

import threading
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from vecraft_data_model import CommitResult, DataPacket, QueryPacket, VectorPacket
from vecraft_data_model.errors import (
    ChecksumValidationFailureError,
    InvalidDataException,
    PreconditionFailedError,
    RecordNotFoundError,
)
from vecraft_db.client.vecraft_client import VecraftClient

METADATA: dict[str, Any] = {
    "text": "naïve ☃ \U0001f600",
    "number": 1.5,
    "whole": 2**53 + 1,
    "yes": True,
    "nothing": None,
    "list": [1, "two", None, [3.0]],
    "nested": {"a": {"b": [{"c": "d"}]}},
    "": "empty key",
    "with.dot": 1,
}


def vector_of(packet: DataPacket) -> npt.NDArray[np.float32]:
    assert packet.vector is not None
    return packet.vector.to_numpy()


def test_a_record_comes_back_as_it_went(client: VecraftClient, collection: str) -> None:
    vector = np.array([0.1, -2.5, 3e10, 1e-20], dtype=np.float32)
    assert client.insert(collection, DataPacket("a", vector, METADATA, "a document ☃")) is None
    got = client.get(collection, "a")
    assert got.record_id == "a"
    assert got.metadata == METADATA
    assert type(got.metadata["whole"]) is int
    assert got.document == "a document ☃"
    np.testing.assert_array_equal(vector_of(got), vector)
    assert got.validate_checksum()
    assert got.checksum == DataPacket("a", vector, METADATA, "a document ☃").checksum


@pytest.mark.parametrize("document", ["", "x", {"title": "t", "pages": [1, 2]}, {}, None])
@pytest.mark.parametrize("metadata", [None, {}, {"a": None}])
def test_nothing_and_empty_are_kept_apart(client: VecraftClient, collection: str, document: Any, metadata: Any) -> None:
    client.insert(collection, DataPacket("a", [1, 2, 3, 4], metadata, document))
    got = client.get(collection, "a")
    assert (got.metadata, got.document) == (metadata, document)


@pytest.mark.parametrize(
    "vector",
    [
        [1, 2, 3, 4],
        (1.0, 2.0, 3.0, 4.0),
        np.arange(1, 5),
        np.arange(1, 5, dtype=np.float16),
        VectorPacket.from_numpy(np.arange(1, 5)),
    ],
    ids=["list", "tuple", "int64", "float16", "packet"],
)
def test_a_vector_may_be_given_in_many_forms(client: VecraftClient, collection: str, vector: Any) -> None:
    client.insert(collection, DataPacket("a", vector))
    np.testing.assert_array_equal(vector_of(client.get(collection, "a")), np.arange(1, 5, dtype=np.float32))


def test_insert_replaces_and_returns_what_was_there(client: VecraftClient, collection: str) -> None:
    first = DataPacket("a", [1, 0, 0, 0], {"version": 1}, "one")
    assert client.insert(collection, first) is None
    replaced = client.insert(collection, DataPacket("a", [0, 1, 0, 0], {"version": 2}))
    assert replaced is not None
    assert replaced == first
    assert replaced.checksum == first.checksum
    assert client.get(collection, "a").metadata == {"version": 2}
    assert client.count(collection) == 1
    hits = client.search(collection, QueryPacket([1, 0, 0, 0], exact=True))
    assert [(hit.record_id, hit.distance) for hit in hits] == [("a", 2.0)]


def test_delete_returns_what_was_there(client: VecraftClient, collection: str) -> None:
    client.insert(collection, DataPacket("a", [1, 2, 3, 4], {"x": 1}))
    gone = client.delete(collection, "a")
    assert gone is not None
    assert gone.metadata == {"x": 1}
    assert client.delete(collection, "a") is None
    with pytest.raises(RecordNotFoundError, match="'a'"):
        client.get(collection, "a")
    assert client.count(collection) == 0
    assert client.search(collection, QueryPacket([1, 2, 3, 4])) == []


def test_upsert_takes_packets_and_columns(client: VecraftClient, collection: str) -> None:
    packets = [DataPacket(f"p{i}", [i, 0, 0, 0], {"i": i}) for i in range(5)]
    result = client.upsert(collection, packets)
    assert isinstance(result, CommitResult)
    assert result.count == 5
    again = client.upsert(
        collection,
        ids=[f"c{i}" for i in range(50)],
        vectors=np.random.default_rng(1).normal(size=(50, 4)),
        metadatas=[{"i": i} for i in range(50)],
        documents=[f"document {i}" for i in range(50)],
    )
    assert again.count == 50
    assert again.commit_ts > result.commit_ts
    assert again.txn_id != result.txn_id
    assert client.count(collection) == 55
    assert client.get(collection, "c49").document == "document 49"
    assert client.get(collection, "p3").metadata == {"i": 3}


def test_columns_may_have_gaps(client: VecraftClient, collection: str) -> None:
    client.upsert(collection, ids=["a", "b"], vectors=np.eye(2, 4), metadatas=[None, {"x": 1}], documents=["d", None])
    first, second = client.get_many(collection, ["a", "b"])
    assert first is not None
    assert second is not None
    assert (first.metadata, first.document) == (None, "d")
    assert (second.metadata, second.document) == ({"x": 1}, None)


def test_get_many_keeps_order_and_places(client: VecraftClient, collection: str) -> None:
    client.upsert(collection, ids=["a", "b", "c"], vectors=np.eye(3, 4))
    found = client.get_many(collection, ["c", "nobody", "a", "c"])
    assert [packet and packet.record_id for packet in found] == ["c", None, "a", "c"]
    assert client.get_many(collection, []) == []


def test_what_is_written_is_seen_at_once(client: VecraftClient, collection: str) -> None:
    for i in range(20):
        client.insert(collection, DataPacket(f"r{i}", [i, 1, 0, 0]))
        assert client.count(collection) == i + 1
        assert client.get(collection, f"r{i}").record_id == f"r{i}"
        assert client.search(collection, QueryPacket([i, 1, 0, 0], k=1))[0].record_id == f"r{i}"


def test_delete_many_by_id_and_by_filter(client: VecraftClient, collection: str) -> None:
    ids = [f"r{i}" for i in range(10)]
    client.upsert(
        collection,
        ids=ids,
        vectors=np.random.default_rng(2).normal(size=(10, 4)),
        metadatas=[{"i": i} for i in range(10)],
        documents=["odd" if i % 2 else "even" for i in range(10)],
    )
    assert client.delete_many(collection, ["r0", "r1", "nobody"]).count == 2
    assert client.delete_many(collection, where={"i": {"$gte": 8}}).count == 2
    assert client.delete_many(collection, where={"i": {"$lt": 5}}, where_document={"$contains": "odd"}).count == 1
    assert [packet.record_id for packet in client.scan(collection)] == ["r2", "r4", "r5", "r6", "r7"]
    nothing = client.delete_many(collection, where={"i": 100})
    assert nothing.count == 0
    assert nothing.commit_ts > 0


@pytest.mark.parametrize(
    "arguments", [{}, {"ids": ["a"], "where": {"x": 1}}, {"ids": ["a"], "where_document": {"$contains": "x"}}]
)
def test_delete_many_wants_ids_or_a_filter(client: VecraftClient, collection: str, arguments: dict[str, Any]) -> None:
    client.insert(collection, DataPacket("a", [1, 2, 3, 4]))
    with pytest.raises(InvalidDataException, match="ids"):
        client.delete_many(collection, **arguments)
    assert client.count(collection) == 1


def test_expectations_guard_writes(client: VecraftClient, collection: str) -> None:
    packet = DataPacket("a", [1, 2, 3, 4])
    with pytest.raises(PreconditionFailedError, match="'a'"):
        client.insert(collection, packet, expect="present")
    assert client.count(collection) == 0
    made = client.upsert(collection, [packet], expect="absent")
    with pytest.raises(PreconditionFailedError, match="'a'"):
        client.insert(collection, packet, expect="absent")
    changed = client.upsert(collection, [packet], expect=made.commit_ts)
    with pytest.raises(PreconditionFailedError, match="'a'"):
        client.upsert(collection, [packet], expect=made.commit_ts)
    with pytest.raises(PreconditionFailedError):
        client.delete(collection, "a", expect=made.commit_ts)
    with pytest.raises(PreconditionFailedError):
        client.delete(collection, "b", expect="present")
    assert client.delete(collection, "a", expect=changed.commit_ts) is not None


def test_a_batch_with_one_failed_expectation_writes_nothing(client: VecraftClient, collection: str) -> None:
    client.insert(collection, DataPacket("r7", [1, 2, 3, 4], {"old": True}))
    with pytest.raises(PreconditionFailedError, match="r7"):
        client.upsert(collection, ids=[f"r{i}" for i in range(20)], vectors=np.ones((20, 4)), expect="absent")
    assert client.count(collection) == 1
    assert client.get(collection, "r7").metadata == {"old": True}


def test_a_retry_with_the_same_id_is_carried_out_once(client: VecraftClient, collection: str) -> None:
    first = client.upsert(collection, ids=["a", "b", "c"], vectors=np.eye(3, 4), txn_id=f"retry-{collection}")
    assert first.txn_id == f"retry-{collection}"
    client.insert(collection, DataPacket("a", [9, 9, 9, 9]))
    again = client.upsert(collection, ids=["a", "b", "c"], vectors=np.eye(3, 4), txn_id=f"retry-{collection}")
    assert again == first
    np.testing.assert_array_equal(vector_of(client.get(collection, "a")), [9, 9, 9, 9])


def test_the_same_id_with_other_content_is_refused(client: VecraftClient, collection: str) -> None:
    client.upsert(collection, ids=["a"], vectors=[[1, 2, 3, 4]], txn_id=f"once-{collection}")
    with pytest.raises(InvalidDataException, match="once-"):
        client.upsert(collection, ids=["a"], vectors=[[4, 3, 2, 1]], txn_id=f"once-{collection}")
    np.testing.assert_array_equal(vector_of(client.get(collection, "a")), [1, 2, 3, 4])


def test_a_retried_delete_tells_the_same_story(client: VecraftClient, collection: str) -> None:
    client.insert(collection, DataPacket("a", [1, 2, 3, 4], {"x": 1}))
    client.delete_many(collection, ["a"], txn_id=f"delete-{collection}")
    client.insert(collection, DataPacket("a", [1, 2, 3, 4], {"x": 2}))
    assert client.delete_many(collection, ["a"], txn_id=f"delete-{collection}").count == 1
    assert client.get(collection, "a").metadata == {"x": 2}


def test_a_packet_changed_after_it_was_made_is_refused(client: VecraftClient, collection: str) -> None:
    good = DataPacket("a", [1, 2, 3, 4], {"x": 1})
    data = good.to_dict()
    data["metadata"] = {"x": 2}
    with pytest.raises(ChecksumValidationFailureError, match="'a'"):
        client.insert(collection, DataPacket.from_dict(data))
    assert client.count(collection) == 0


@pytest.mark.parametrize("algorithm", ["sha256", "sha512", "blake2b", "md5"])
def test_checksum_algorithms(client: VecraftClient, collection: str, algorithm: str) -> None:
    packet = DataPacket("a", [1, 2, 3, 4], {"x": 1}, "d", checksum_algorithm=algorithm)
    client.insert(collection, packet)
    got = client.get(collection, "a")
    assert got.checksum_algorithm == algorithm
    assert got.checksum == packet.checksum


def test_half_precision_rounds_once_and_stays_provable(client: VecraftClient, make: Callable[..., str]) -> None:
    name = make(vector_type="float16")
    vector = np.array([0.1, 1 / 3, 1000.5, -7], dtype=np.float32)
    client.insert(name, DataPacket("a", vector, {"x": 1}))
    client.upsert(name, ids=["b"], vectors=vector[None])
    for record_id in ("a", "b"):
        got = client.get(name, record_id)
        np.testing.assert_array_equal(vector_of(got), vector.astype(np.float16).astype(np.float32))
        assert got.validate_checksum()


def test_odd_ids_are_just_ids(client: VecraftClient, collection: str) -> None:
    ids = ["../x", "a/b", "%2F", "a b", "a';DROP TABLE--", "é", "e\u0301", "\U0001f600", "." * 1024, "\n", "0", "-1"]
    client.upsert(collection, ids=ids, vectors=np.ones((len(ids), 4)))
    assert client.count(collection) == len(ids)
    assert sorted(packet.record_id for packet in client.scan(collection)) == sorted(ids)
    for record_id in ids:
        assert client.get(collection, record_id).record_id == record_id
        assert client.delete(collection, record_id) is not None
    assert client.count(collection) == 0


def test_commit_timestamps_are_moments(client: VecraftClient, collection: str) -> None:
    result = client.upsert(collection, ids=["a"], vectors=[[1, 2, 3, 4]])
    seconds = (result.commit_ts >> 16) / 1000
    assert abs(seconds - datetime.now(UTC).timestamp()) < 60


def test_deleting_by_filter_takes_no_notice_of_other_writers(client: VecraftClient, collection: str) -> None:
    """A writer who rewrites the same records and never pauses does not keep it from its end, nor it the writer."""
    client.upsert(collection, ids=[f"r{i}" for i in range(40)], vectors=np.ones((40, 4)), metadatas=[{"x": 1}] * 40)
    stop = threading.Event()
    errors: list[BaseException] = []

    def rewrite() -> None:
        number = 0
        try:
            while not stop.is_set():
                number += 1
                ids = [f"r{(number + i) % 40}" for i in range(5)]
                client.upsert(collection, ids=ids, vectors=np.ones((5, 4)), metadatas=[{"x": 2}] * 5)
        except BaseException as error:
            errors.append(error)

    writer = threading.Thread(target=rewrite)
    writer.start()
    try:
        for _ in range(10):
            client.delete_many(collection, where={"x": 2}, timeout=30)
    finally:
        stop.set()
        writer.join()
    assert errors == []
    client.delete_many(collection, where={"x": {"$in": [1, 2]}})
    assert client.count(collection) == 0
