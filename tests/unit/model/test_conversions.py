"""From packets and columns to messages and back, and the results that users see."""

from __future__ import annotations

import pickle
import time
from typing import Any

import numpy as np
import pytest

from vecraft_data_model import CollectionInfo, CollectionSchema, CommitResult, DataPacket, SearchResult
from vecraft_data_model.convert import packets_of_rows, put_of_columns, put_of_packets, results_of_hits
from vecraft_data_model.errors import (
    ChecksumValidationFailureError,
    CorruptionError,
    InvalidDataException,
    NullOrZeroVectorException,
    VectorDimensionMismatchException,
)
from vecraft_data_model.messages import DescribeReply, Hits, Rows
from vecraft_data_model.payload import encode_payloads, verify_payloads

N, DIM = 20, 4
VECTORS = np.random.default_rng(3).random((N, DIM), dtype=np.float32)
IDS = [f"r{i}" for i in range(N)]
METADATAS: list[Any] = [{"i": i} if i % 3 else None for i in range(N)]
DOCUMENTS: list[Any] = [f"text {i}" if i % 2 else {"n": i} for i in range(N)]
PAYLOADS = encode_payloads(IDS, VECTORS, METADATAS, DOCUMENTS, "sha256")


def packets() -> list[DataPacket]:
    return [DataPacket(*fields) for fields in zip(IDS, VECTORS, METADATAS, DOCUMENTS, strict=True)]


def rows(**changes: Any) -> Rows:
    fields: dict[str, Any] = {
        "ids": IDS, "begin_ts": list(range(1, N + 1)), "payloads": PAYLOADS, "vectors": VECTORS,
    }  # fmt: skip
    return Rows(**{**fields, **changes})


def test_packets_and_columns_make_the_same_mutation() -> None:
    by_packets = put_of_packets("c", packets(), "absent")
    by_columns = put_of_columns("c", IDS, VECTORS.tolist(), METADATAS, DOCUMENTS, "absent")
    assert by_packets.payloads == by_columns.payloads == PAYLOADS
    assert by_packets.ids == by_columns.ids == IDS
    assert by_packets.expect == by_columns.expect == "absent"
    assert np.array_equal(by_packets.vectors, VECTORS)
    assert by_packets.vectors.flags.c_contiguous
    again = pickle.loads(pickle.dumps(by_columns))
    verify_payloads(again.payloads, again.vectors)


def test_packets_of_several_algorithms_keep_theirs() -> None:
    mixed = [
        DataPacket(f"m{i}", VECTORS[i], checksum_algorithm=name) for i, name in enumerate(["md5", "sha256", "md5"])
    ]
    put = put_of_packets("c", mixed)
    verify_payloads(put.payloads, put.vectors)
    assert [packet.checksum for packet in packets_of_rows(rows(ids=put.ids, begin_ts=[1, 2, 3], payloads=put.payloads,
            vectors=put.vectors))] == [packet.checksum for packet in mixed]  # fmt: skip


def test_a_single_packet_will_do() -> None:
    assert put_of_packets("c", packets()[0]).ids == ["r0"]  # type: ignore[arg-type]


def test_changed_packets_are_not_written() -> None:
    changed = packets()
    changed[7].metadata = {"i": "other"}
    with pytest.raises(ChecksumValidationFailureError, match="'r7'"):
        put_of_packets("c", changed)


@pytest.mark.parametrize(
    ("listed", "error", "said"),
    [
        ([DataPacket("a", [1]), DataPacket("a", [2])], InvalidDataException, "'a' stands at 0 and 1"),
        ([DataPacket("a", [1]), DataPacket("b", [1, 2])], VectorDimensionMismatchException, "as many"),
        ([DataPacket.create_tombstone("a")], InvalidDataException, "only records can be written"),
        ([{"record_id": "a"}], InvalidDataException, "only records can be written"),
        (["a"], InvalidDataException, "only records can be written"),
    ],
)
def test_packets_that_are_refused(listed: Any, error: type[Exception], said: str) -> None:
    with pytest.raises(error, match=said):
        put_of_packets("c", listed)


@pytest.mark.parametrize(
    ("columns", "said"),
    [
        ((["a"], [[1, 2], [3, 4]]), "vectors must be as many as ids, 1; got 2"),
        ((["a", "b"], [[1, 2]]), "as many as ids, 2; got 1"),
        ((["a"], [[1, 2]], [{}, {}]), "metadatas must be as many as ids, 1; got 2"),
        ((["a"], [[1, 2]], None, "x"), "documents must be a list"),
        ((["a"], [[1, 2]], {"a": 1}), "metadatas must be a list"),
        ((["a"], [[1, 2]], 7), "metadatas must be a list"),
        ((["a"], [[1, 2]], ["x"]), "metadata of record 'a'"),
        ((["a"], [[1, float("nan")]]), "of record 'a'"),
        ((["a", "a"], [[1, 2], [3, 4]]), "'a' stands at 0 and 1"),
        (("ab", [[1, 2], [3, 4]]), "must be a list of strings"),
        ((["a"], [[1, 2]], None, None, "soon"), "expect must be"),
        ((["a"], [[1, 2]], None, None, None, "crc"), "checksum_algorithm must be"),
    ],
)
def test_columns_that_are_refused(columns: Any, said: str) -> None:
    with pytest.raises(InvalidDataException, match=said):
        put_of_columns("c", *columns)


def test_a_known_schema_is_checked_against() -> None:
    schema = CollectionSchema("c", 2, metric="cosine")
    with pytest.raises(VectorDimensionMismatchException, match="must have 2 dimensions; got 3"):
        put_of_columns("c", ["a"], [[1, 2, 3]], schema=schema)
    with pytest.raises(NullOrZeroVectorException, match="'b'"):
        put_of_packets("c", [DataPacket("a", [1, 0]), DataPacket("b", [0, 0])], schema=schema)


def test_nothing_to_write_is_an_empty_mutation() -> None:
    assert put_of_columns("c", [], []).payloads == []
    assert put_of_packets("c", []).ids == []


# ------------------------------------------------------------------------------------------------------ out


def test_rows_become_packets() -> None:
    read = packets_of_rows(rows())
    assert read == packets()
    assert [packet.commit_ts for packet in read] == list(range(1, N + 1))
    without = packets_of_rows(rows(vectors=None))
    assert [packet.metadata for packet in without] == METADATAS
    assert without[0].vector is None
    assert packets_of_rows(Rows([], [], [], None)) == []


def test_rows_that_do_not_hold_together() -> None:
    with pytest.raises(ChecksumValidationFailureError, match="'r0'"):
        packets_of_rows(rows(vectors=VECTORS[::-1]))
    with pytest.raises(CorruptionError, match="'r0' belongs to record 'r19'"):
        packets_of_rows(rows(payloads=PAYLOADS[::-1], vectors=None))
    with pytest.raises(InvalidDataException, match="without payloads"):
        packets_of_rows(rows(payloads=None))


def hits(**changes: Any) -> Hits:
    fields: dict[str, Any] = {
        "ids": IDS,
        "distances": [i / 8 for i in range(N)],
        "payloads": PAYLOADS,
        "vectors": VECTORS,
    }
    return Hits(**{**fields, **changes})


def test_hits_become_results() -> None:
    results = results_of_hits(hits(), ("metadata", "document", "vector"))
    assert [result.record_id for result in results] == IDS
    assert [result.distance for result in results] == [i / 8 for i in range(N)]
    assert [result.metadata for result in results] == METADATAS
    assert [result.document for result in results] == DOCUMENTS
    assert [result.data_packet for result in results] == packets()
    assert all(result.vector is not None and result.vector.dtype == np.float32 for result in results)
    assert results[1].to_dict() == {
        "record_id": "r1", "distance": 0.125, "metadata": {"i": 1}, "document": "text 1", "vector": VECTORS[1].tolist(),
    }  # fmt: skip


def test_results_hold_what_was_included_only() -> None:
    only_metadata = results_of_hits(hits(vectors=None), ["metadata"])[1]
    assert (only_metadata.metadata, only_metadata.document, only_metadata.vector) == ({"i": 1}, None, None)
    assert only_metadata.to_dict() == {"record_id": "r1", "distance": 0.125, "metadata": {"i": 1}}
    assert results_of_hits(hits(), ["document"])[1].vector is None
    bare = results_of_hits(hits(payloads=None, vectors=None), [])[1]
    assert (bare.metadata, bare.document, bare.to_dict()) == (None, None, {"record_id": "r1", "distance": 0.125})
    with pytest.raises(InvalidDataException, match="'r1' was not read"):
        _ = bare.data_packet


def test_results_are_values() -> None:
    one, other = results_of_hits(hits())[1], results_of_hits(hits())[1]
    assert one == other == pickle.loads(pickle.dumps(one))
    assert one != results_of_hits(hits())[2]
    assert one != results_of_hits(hits(vectors=VECTORS, payloads=None), ["vector"])[1]
    assert one.metadata is one.metadata  # decoded once
    assert "r1" in repr(one)


def test_hits_with_vectors_are_verified() -> None:
    with pytest.raises(ChecksumValidationFailureError):
        results_of_hits(hits(vectors=VECTORS + 1))
    assert results_of_hits(Hits([], [], [], np.empty((0, DIM), np.float32))) == []


def test_making_results_is_cheap() -> None:
    many = hits(ids=IDS * 500, distances=[0.0] * N * 500, payloads=PAYLOADS * 500, vectors=None)

    def seconds() -> float:
        started = time.thread_time()  # what this thread has worked, not how long it had to wait for the processor
        assert len(results_of_hits(many)) == N * 500
        return time.thread_time() - started

    # A tenth of a microsecond each where measured; the bound is far off, and one turn of several may be held up.
    assert min(seconds() for _ in range(10)) / (N * 500) < 5e-6


# ------------------------------------------------------------------------------------------------- figures


def test_a_collection_adds_up() -> None:
    schema = CollectionSchema("c", DIM)

    def reply(count: int, ef: int, recall: float | None) -> DescribeReply:
        return DescribeReply(
            snapshot=9, schema=schema, collection_id="ab12", count=count, tail_rows=1, indexed_rows=count, dead_rows=2,
            ef=ef, measured_recall=recall, bytes=100,
            recall_interval=None if recall is None else (recall - 0.01, recall + 0.005),
        )  # fmt: skip

    info = CollectionInfo.of_replies({1: reply(5, 64, 0.97), 0: reply(7, 32, None), 2: reply(0, 16, 0.99)})
    assert (info.name, info.count, info.tail_rows, info.indexed_rows, info.dead_rows) == ("c", 12, 3, 12, 6)
    assert (info.ef, info.measured_recall, info.bytes) == (64, 0.97, 300)
    assert info.recall_interval == (0.96, 0.975), "of the worst shard, as the recall is"
    assert [part.shard for part in info.shards] == [0, 1, 2]
    assert info.to_dict()["shards"][0]["count"] == 7
    unmeasured = CollectionInfo.of_replies({0: reply(5, 64, None)})
    assert unmeasured.measured_recall is None and unmeasured.recall_interval is None
    with pytest.raises(InvalidDataException, match="at least one"):
        CollectionInfo.of_replies({})


def test_a_commit_is_a_value() -> None:
    commit = CommitResult("t", 5, 2)
    assert (commit.txn_id, commit.commit_ts, commit.count) == ("t", 5, 2)
    assert pickle.loads(pickle.dumps(commit)) == commit
    assert hash(commit) == hash(CommitResult("t", 5, 2))


def test_a_result_can_be_made_by_hand() -> None:
    result = SearchResult("a", 0.5)
    assert (result.metadata, result.document, result.vector) == (None, None, None)
