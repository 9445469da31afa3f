"""Hostile contents and filters: refused with the documented error, nothing changed, and the next request answered."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from vecraft_data_model import DataPacket, QueryPacket
from vecraft_data_model.errors import InvalidDataException, InvalidFilterError
from vecraft_db.client.vecraft_client import VecraftClient

GOOD = [1.0, 2.0, 3.0, 4.0]
NAN, INF = math.nan, math.inf

METADATA: dict[str, Any] = {
    "set": {"a": {1, 2}},
    "nan": {"a": NAN},
    "inf": {"a": [INF]},
    "integer-key": {1: "a"},
    "list": [1, 2],
    "string": "a",
    "object": {"a": object()},
    "bytes": {"a": b"b"},
    "huge-integer": {"a": 2**64},
    "numpy": {"a": np.float32(1)},
    "surrogate": {"a": "\ud800"},
    "too-large": {"a": "x" * (1 << 20)},
}


def deep(levels: int) -> dict[str, Any]:
    value: dict[str, Any] = {"a": 1}
    for _ in range(levels):
        value = {"a": value}
    return value


def cyclic() -> dict[str, Any]:
    value: dict[str, Any] = {}
    value["a"] = value
    return value


# ---------------------------------------------------------------------------------------- metadata, documents


@pytest.mark.parametrize("metadata", [*METADATA.values(), deep(65), cyclic()], ids=[*METADATA, "deep", "cyclic"])
def test_bad_metadata(client: VecraftClient, guarded: str, metadata: Any) -> None:
    with pytest.raises(InvalidDataException, match="bad"):
        client.insert(guarded, DataPacket("bad", GOOD, metadata))
    with pytest.raises(InvalidDataException, match="bad"):
        client.upsert(guarded, ids=["fine", "bad"], vectors=[GOOD, GOOD], metadatas=[None, metadata])


@pytest.mark.parametrize("document", [1, True, ["a"], b"text", "\ud800", {"a": NAN}, {1: 2}, deep(65)], ids=str)
def test_bad_documents(client: VecraftClient, guarded: str, document: Any) -> None:
    with pytest.raises(InvalidDataException, match="bad"):
        client.insert(guarded, DataPacket("bad", GOOD, None, document))
    with pytest.raises(InvalidDataException, match="bad"):
        client.upsert(guarded, ids=["fine", "bad"], vectors=[GOOD, GOOD], documents=[None, document])


@pytest.mark.parametrize(
    "columns",
    [
        {},
        {"ids": ["a"]},
        {"vectors": [GOOD]},
        {"ids": ["a", "b"], "vectors": [GOOD]},
        {"ids": ["a"], "vectors": [GOOD, GOOD]},
        {"ids": ["a"], "vectors": [GOOD], "metadatas": []},
        {"ids": ["a"], "vectors": [GOOD], "metadatas": [{}, {}]},
        {"ids": ["a"], "vectors": [GOOD], "metadatas": {"a": 1}},
        {"ids": ["a"], "vectors": [GOOD], "documents": ["x", "y"]},
        {"ids": ["a"], "vectors": [GOOD], "documents": "x"},
        {"ids": ["a"], "vectors": GOOD},
        {"ids": [], "vectors": []},
        {"packets": []},
        {"packets": [DataPacket("a", GOOD)], "ids": ["a"], "vectors": [GOOD]},
        {"packets": DataPacket("a", GOOD)},
        {"packets": [DataPacket("a", GOOD), None]},
        {"packets": [DataPacket.create_tombstone("a")]},
        {"packets": "a"},
        {"packets": 5},
        {"metadatas": [{}]},
    ],
    ids=lambda columns: " ".join(f"{name}={str(value)[:30]}" for name, value in columns.items()) or "nothing",
)
def test_bad_columns(client: VecraftClient, guarded: str, columns: dict[str, Any]) -> None:
    with pytest.raises(InvalidDataException):
        client.upsert(guarded, **columns)


@pytest.mark.parametrize("packet", [None, "a", {"record_id": "a"}, DataPacket.create_nonexistent("a")], ids=str)
def test_an_insert_takes_a_record(client: VecraftClient, guarded: str, packet: Any) -> None:
    with pytest.raises(InvalidDataException):
        client.insert(guarded, packet)


@pytest.mark.parametrize("expect", ["here", True, 0, -1, 1.5, 2**63, ["absent"]])
def test_bad_expectations(client: VecraftClient, guarded: str, expect: Any) -> None:
    with pytest.raises(InvalidDataException, match="expect"):
        client.insert(guarded, DataPacket("a", GOOD), expect=expect)
    with pytest.raises(InvalidDataException, match="expect"):
        client.upsert(guarded, [DataPacket("a", GOOD)], expect=expect)
    with pytest.raises(InvalidDataException, match="expect"):
        client.delete(guarded, "good", expect=expect)


@pytest.mark.parametrize("txn_id", ["", "x" * 129, "a\nb", 5, b"a", "\ud800"])
def test_bad_transaction_ids(client: VecraftClient, guarded: str, txn_id: Any) -> None:
    with pytest.raises(InvalidDataException, match="txn_id"):
        client.insert(guarded, DataPacket("a", GOOD), txn_id=txn_id)
    with pytest.raises(InvalidDataException, match="txn_id"):
        client.delete_many(guarded, ["good"], txn_id=txn_id)


def test_arguments_that_do_not_exist(client: VecraftClient, guarded: str) -> None:
    with pytest.raises((TypeError, InvalidDataException)):
        client.search(guarded, QueryPacket(GOOD), colour="red")  # type: ignore[call-arg]
    with pytest.raises((TypeError, InvalidDataException)):
        client.upsert(guarded, ids=["a"], vectors=[GOOD], colours=[1])  # type: ignore[call-arg]


# -------------------------------------------------------------------------------------------------- filters


def nested_and(levels: int) -> dict[str, Any]:
    value: dict[str, Any] = {"a": 1}
    for _ in range(levels):
        value = {"$and": [value]}
    return value


BAD_FILTERS: dict[str, Any] = {
    "unknown-operator": {"a": {"$near": 1}},
    "unknown-top": {"$xor": []},
    "regex": {"a": {"$regex": "(a+)+$"}},
    "and-not-list": {"$and": {"a": 1}},
    "and-empty": {"$and": []},
    "range-of-list": {"a": {"$gt": [1]}},
    "range-of-boolean": {"a": {"$lt": True}},
    "range-of-null": {"a": {"$lt": None}},
    "in-not-list": {"a": {"$in": 5}},
    "exists-not-boolean": {"a": {"$exists": 1}},
    "nan": {"a": NAN},
    "bytes": {"a": b"x"},
    "object": {"a": object()},
    "deep": nested_and(1000),
    "too-many-values": {"a": {"$in": list(range(100_001))}},
    "list": [1],
    "string": "a = 1",
    "integer": 5,
    "integer-field": {1: 2},
    "not-list": {"$not": [{"a": 1}]},
    "mixed": {"a": {"$gt": 1, "b": 2}},
}


@pytest.mark.parametrize("where", list(BAD_FILTERS.values()), ids=list(BAD_FILTERS))
def test_bad_filters(client: VecraftClient, guarded: str, where: Any) -> None:
    for call in (
        lambda: client.search(guarded, QueryPacket(GOOD, where=where)),
        lambda: client.search_many(guarded, [GOOD], where=where),
        lambda: client.count(guarded, where),
        lambda: list(client.scan(guarded, where)),
        lambda: client.delete_many(guarded, where=where),
    ):
        with pytest.raises(InvalidFilterError, match="where"):
            call()


@pytest.mark.parametrize(
    "where_document",
    [{"$contains": 5}, {"$contains": None}, {"$matches": ["a"]}, {"$regex": "a"}, "text", ["a"], {"$or": []}, 5],
    ids=str,
)
def test_bad_document_filters(client: VecraftClient, guarded: str, where_document: Any) -> None:
    for call in (
        lambda: client.search(guarded, QueryPacket(GOOD, where_document=where_document)),
        lambda: client.count(guarded, where_document=where_document),
        lambda: client.delete_many(guarded, where_document=where_document),
    ):
        with pytest.raises(InvalidFilterError, match="where_document"):
            call()


def test_a_filter_of_a_hundred_thousand_values_is_answered(client: VecraftClient, guarded: str) -> None:
    values = list(range(100_000))
    assert client.count(guarded, {"x": {"$in": values}}) == 1
    assert client.count(guarded, {"x": {"$nin": values}}) == 0


@pytest.mark.parametrize(
    "field",
    ["a.b", "a..b", ".", "$", "a$b", "a'b", 'a"b', "a;DROP TABLE x", "a OR 1=1", "NEAR(a)", "*", "\\", "é", " "],
)
def test_odd_field_names_are_names(client: VecraftClient, collection: str, field: str) -> None:
    client.upsert(
        collection, ids=["with", "without"], vectors=[GOOD, GOOD], metadatas=[{field: "yes"}, {"other": "yes"}]
    )
    if field.startswith("$"):
        with pytest.raises(InvalidFilterError):
            client.count(collection, {field: "yes"})
        return
    for _ in range(2):
        assert [packet.record_id for packet in client.scan(collection, {field: "yes"})] == ["with"]
        assert client.count(collection, {field: {"$exists": False}}) == 1
        client.checkpoint()


@pytest.mark.parametrize(
    "text", ['" OR * NEAR(', "a' OR '1'='1", "*", '"', "(", "NOT", "a AND b", "%", "_", "\\", "-x"]
)
def test_full_text_syntax_is_text(client: VecraftClient, collection: str, text: str) -> None:
    client.upsert(collection, ids=["with", "without"], vectors=[GOOD, GOOD], documents=[f"so {text} it is", "plain"])
    for _ in range(2):
        found = [packet.record_id for packet in client.scan(collection, where_document={"$contains": text})]
        assert found == ["with"]
        if any(character.isalnum() for character in text):
            assert client.count(collection, where_document={"$matches": text}) == 1
        else:
            with pytest.raises(InvalidFilterError, match="word"):
                client.count(collection, where_document={"$matches": text})
        client.checkpoint()
