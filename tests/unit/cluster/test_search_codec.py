"""Searches in their own form: nothing of them is lost, what does not fit goes another way, and damage is refused."""

from __future__ import annotations

import random
from datetime import UTC, datetime
from typing import Any

import msgspec
import numpy as np
import pytest

from vecraft_cluster import search_codec
from vecraft_cluster.codec import INLINE_BYTES, decode, encode, pack, unpack
from vecraft_cluster.filter_codec import read_document, read_where
from vecraft_cluster.wire import Frame
from vecraft_data_model.errors import InvalidDataException
from vecraft_data_model.filters import (
    DICT,
    INSTANT,
    LIST,
    NULL,
    NUMBER,
    STRING,
    In,
    key_of,
    parse_where,
    parse_where_document,
)
from vecraft_data_model.messages import Batch, BatchReply, Count, Hits, Refused, Search, SearchReply
from vecraft_data_model.search_options import SearchOptions
from vecraft_data_model.text_ranking import TextQuery, TextStatistics

PICKLED = 0x80


def searches(count: int, dim: int = 4, **options: Any) -> list[Any]:
    rng = np.random.default_rng(count)
    return [
        Search(
            collection="c", snapshot=i * 2**40, min_ts=i, queries=rng.normal(size=(1 + i % 3, dim)).astype(np.float32),
            options=SearchOptions(**options),
        )
        for i in range(count)
    ]  # fmt: skip


def hits(rng: random.Random, payloads: bool) -> Hits:
    count = rng.randrange(4)
    ids = [f"r{rng.randrange(9)}é" for _ in range(count)]
    return Hits(ids, [rng.random() for _ in ids], [rng.randbytes(5) for _ in ids] if payloads else None)


def both_ways(message: Any) -> list[tuple[bytes | bytearray, Any]]:
    """What it becomes on a socket, buffers as they are received, and in an actor call; and what comes back."""
    frame = pack(7, message)
    received = Frame(7, bytes(frame.head), [bytearray(buffer) for buffer in frame.buffers])
    data = encode(message)
    return [(frame.head, unpack(received)), (data, decode(data))]


@pytest.mark.parametrize(
    "options",
    [{}, {"k": 3, "ef": 40, "exact": True, "max_distance": 0.5, "include": ("vector",)}, {"include": ()}],
)
@pytest.mark.parametrize(("count", "dim"), [(1, 4), (3, 384), (64, 384), (2, 0)])
def test_searches_arrive_as_they_were(count: int, dim: int, options: dict[str, Any]) -> None:
    message = (2.5, Batch(searches(count, dim, **options), 2**60, 3, 1_700_000_000_000))
    for head, came in both_ways(message):
        assert head[0] != PICKLED
        assert came[0] == 2.5
        for field in ("clock", "map_epoch", "sent_ms"):
            assert getattr(came[1], field) == getattr(message[1], field)
        for sent, search in zip(message[1].requests, came[1].requests, strict=True):
            assert all(
                getattr(search, field) == getattr(sent, field) for field in sent.__struct_fields__ if field != "queries"
            )
            assert search.queries.dtype == np.float32 and np.array_equal(search.queries, sent.queries)
            assert search.queries.flags.aligned and search.queries.flags.c_contiguous


def test_many_queries_travel_beside_the_message() -> None:
    frame = pack(1, (1.0, Batch(searches(64, 384))))
    assert len(frame.buffers) == 1 and len(frame.head) < INLINE_BYTES


@pytest.mark.parametrize("payloads", [False, True])
def test_answers_arrive_as_they_were(payloads: bool) -> None:
    rng = random.Random(4)
    responses: list[Any] = [
        SearchReply(2**50 + i, [hits(rng, payloads) for _ in range(rng.randrange(4))]) for i in range(9)
    ]
    message = BatchReply(responses, 2**60, 5, 6)
    for head, came in both_ways(message):
        assert head[0] != PICKLED and came == message
    nan = BatchReply([SearchReply(1, [Hits(["a"], [float("nan")])])])
    assert all(np.isnan(came.responses[0].hits[0].distances[0]) for _, came in both_ways(nan))


def test_what_does_not_fit_is_pickled_and_arrives_too() -> None:
    text = TextQuery.checked("words", "rrf")
    one = searches(1)[0]
    replaced = msgspec.structs.replace
    odd: list[Any] = [
        one,
        (1.0, Batch([])),
        (1.0, Batch([one, Count(collection="c")])),
        (1.0, Batch([one, replaced(one, collection="d")])),
        (1.0, Batch([one, replaced(one, options=SearchOptions(k=11))])),
        (1.0, Batch([one, replaced(one, queries=np.zeros((1, 5), np.float32))])),
        (1.0, Batch([replaced(one, queries=np.zeros(4, np.float32))])),
        (1.0, Batch([replaced(one, members_of=(frozenset([key_of(1)]),))])),
        (1.0, Batch([replaced(one, queries=np.zeros((1, 4), np.float64))])),
        BatchReply([SearchReply(1, [Hits(["a"], [0.0], None, np.ones((1, 4), np.float32))])]),
        BatchReply([SearchReply(1, [Hits(["a"], [0.0], scores=[1.0])])]),
        BatchReply([SearchReply(1, [Hits(["a"], [0.0], groups=["g"])])]),
        BatchReply([SearchReply(1, [], {"plan": "exact"})]),
        BatchReply([SearchReply(1, [], None, TextStatistics(1, 2, (1,)))]),
        BatchReply([SearchReply(1, []), Refused(InvalidDataException("no"))]),
        (1.0, Batch([replaced(one, collection="\ud800")])),
        (1.0, Batch([replaced(one, snapshot=2**64)])),
        BatchReply([SearchReply(1, [Hits(["\udfff"], [0.0])])]),
    ]
    for name, value in (
        ("where", parse_where({"v": 2**70})), ("text", text), ("explain", True), ("group_by", "v"), ("group_size", 2),
    ):  # fmt: skip
        options = replaced(SearchOptions(), **{name: value})
        message = (1.0, Batch([replaced(one, options=options)]))
        odd.append(message)
    for message in odd:
        for head, came in both_ways(message):
            assert head[0] == PICKLED
            assert repr(came) == repr(message)


def test_the_form_knows_every_field() -> None:
    """A field that is added has to be added there, too, or be refused by it, like those of options."""
    assert Batch.__struct_fields__ == ("requests", "clock", "map_epoch", "sent_ms")
    assert set(Search.__struct_fields__) == {"snapshot", "min_ts", "collection", "queries", "options", "members_of"}
    assert BatchReply.__struct_fields__ == ("responses", "clock", "now_ms", "sent_ms")
    assert SearchReply.__struct_fields__ == ("snapshot", "hits", "explain", "statistics")
    assert Hits.__struct_fields__ == ("ids", "distances", "payloads", "vectors", "scores", "groups")
    assert SearchOptions.__struct_fields__ == (
        "k", "where", "where_document", "ef", "exact", "max_distance", "include",
        "explain", "text", "group_by", "group_size",
    )  # fmt: skip


WHERES: list[Any] = [
    {},
    {"kind": "cat", "year": {"$gte": 2019, "$lt": 2021.5}, "$not": {"tags": {"$contains": "draft"}}},
    {"$or": [{"a": None}, {"a": True}, {"a": 1}, {"a": 1.0}, {"a": -(2**63)}, {"a": 2**64 - 1}, {"a": "é"}]},
    {"a": {"$in": [None, False, 0, 1.5, "x", "y", [1, ["z"]], {"b": {"c": [None]}}]}},
    {"a": {"$eq": {"b": [1, {"c": True}]}}, "d": {"$exists": False}, "e": {"$nin": []}},
    {"at": {"$lt": datetime(2020, 1, 1, tzinfo=UTC)}, "name": {"$gt": "m"}},
]
DOCUMENTS: list[Any] = [
    {"$and": [{"$contains": "needle"}, {"$not_contains": "hay"}]},
    {"$or": [{"$matches": "two words"}, {"$not": {"author.name": {"$in": ["x", 3]}}}]},
]


def exactly(value: Any) -> Any:
    """As repr, but sets in some order that equal ones share: 1 and 1.0 are equal, and have to stay what they are."""
    if isinstance(value, msgspec.Struct):
        return [type(value).__name__, [exactly(getattr(value, field)) for field in value.__struct_fields__]]
    if isinstance(value, frozenset):
        return sorted((exactly(item) for item in value), key=repr)
    return [exactly(item) for item in value] if isinstance(value, tuple) else repr(value)


@pytest.mark.parametrize("where", [None, *WHERES])
@pytest.mark.parametrize("where_document", [None, *DOCUMENTS])
def test_filters_arrive_as_they_were(where: Any, where_document: Any) -> None:
    sent = SearchOptions(
        where=None if where is None else parse_where(where),
        where_document=None if where_document is None else parse_where_document(where_document),
    )
    message = (1.0, Batch([msgspec.structs.replace(search, options=sent) for search in searches(2)]))
    for head, came in both_ways(message):
        assert head[0] != PICKLED
        for search in came[1].requests:
            assert search.options == sent and exactly(search.options) == exactly(sent)


def test_a_filter_may_name_as_many_values_as_a_user_may_give() -> None:
    sent = SearchOptions(where=In("id", frozenset((STRING, f"r{i}") for i in range(100_000))))
    message = (1.0, Batch([msgspec.structs.replace(searches(1)[0], options=sent)]))
    for head, came in both_ways(message):
        assert head[0] != PICKLED and came[1].requests[0].options == sent


@pytest.mark.parametrize(
    "written",
    [
        "x", [], ["And"], ["And", "ab"], ["And", [["Eq"]]], ["Nand", []], ["Not", None], ["Eq", 1, [NUMBER, 1]],
        ["Eq", "f", [NUMBER, True]], ["Eq", "f", [NUMBER, "1"]], ["Eq", "f", [STRING, 1]], ["Eq", "f", [NULL, 0]],
        ["Eq", "f", [9, 1]], ["Eq", "f", [LIST, [1]]], ["Eq", "f", [DICT, [["a"]]]],
        ["Eq", "f", [DICT, [[1, [NULL, None]]]]],
        ["In", "f", [[NUMBER, ["a"]]]], ["In", "f", [[LIST, [[NUMBER, 1]]]]], ["In", "f", [[7, []]]], ["In", "f", 3],
        ["Compare", "f", "eq", NUMBER, 1], ["Compare", "f", "gt", NUMBER, "1"], ["Compare", "f", "gt", INSTANT, 1.5],
        ["Compare", "f", "gt", LIST, []], ["Compare", "f", "gt", NUMBER, True], ["Exists", None], ["Exists", "f", 1],
        ["TextContains", "x"], ["DocumentWhere", ["Exists", "f"]],
    ],
)  # fmt: skip
def test_what_is_no_filter_is_refused(written: Any) -> None:
    with pytest.raises(ValueError):
        read_where(written)
    for document in (["DocumentWhere", written], ["DocumentNot", ["DocumentAnd", [["DocumentWhere", written]]]]):
        with pytest.raises(ValueError):
            read_document(document)


@pytest.mark.parametrize(
    "written",
    [None, ["And", []], ["Exists", "f"], ["TextContains", 1], ["TextMatches", ["a", 1]], ["TextMatches", "a"],
     ["DocumentOr", [["Or", []]]], ["DocumentNot"], ["DocumentAnd", 1]],
)  # fmt: skip
def test_what_is_no_filter_on_documents_is_refused(written: Any) -> None:
    with pytest.raises(ValueError):
        read_document(written)


def test_filters_nested_without_end_are_refused() -> None:
    options = SearchOptions(where=parse_where({}))
    head = bytes(pack(1, (1.0, Batch([msgspec.structs.replace(searches(1)[0], options=options)]))).head)
    whole, around = msgspec.msgpack.encode(["And", []]), b"\x92" + msgspec.msgpack.encode("Not")
    assert head.count(whole) == 1
    unpack(Frame(1, head.replace(whole, around * 60 + whole), []))
    with pytest.raises(ValueError):
        unpack(Frame(1, head.replace(whole, around * 100_000 + whole), []))


def test_damaged_messages_are_refused() -> None:
    asked = pack(1, (1.0, Batch(searches(3))))
    filtered = pack(1, (1.0, Batch(searches(1, where=parse_where(WHERES[1]), where_document=None))))
    answered = pack(1, BatchReply([SearchReply(1, [Hits(["a"], [0.5])])]))
    rng = random.Random(1)
    refused = 0
    for frame in (asked, filtered, answered):
        for cut in range(len(frame.head)):
            with pytest.raises(ValueError):
                unpack(Frame(1, frame.head[:cut], []))
        for _ in range(300):
            damaged = bytearray(frame.head)
            damaged[rng.randrange(len(damaged))] = rng.randrange(256)
            try:
                unpack(Frame(1, damaged, []))
            except ValueError:
                refused += 1
    assert refused > 100
    # a matrix that is not as large as the searches say
    wrong = pack(1, (1.0, Batch(searches(64, 384))))
    with pytest.raises(ValueError):
        unpack(Frame(1, wrong.head, [bytearray(12)]))


@pytest.mark.parametrize(
    ("dim", "rows"), [(4, [-1, 6]), (4, [-1]), (-1, [5]), (4, [2**63, 2**63]), (4, [4]), (4, [5, 1]), (4, [])]
)
def test_queries_that_cannot_be_dealt_out_are_refused(dim: int, rows: list[int]) -> None:
    zeros, matrix = [0] * len(rows), memoryview(np.ones((5, 4), np.float32).tobytes())
    asked = search_codec._Asked(
        1.0, 0, 0, 0, "c", 10, None, None, None, False, None, (), dim, rows, zeros, zeros, matrix
    )
    with pytest.raises(ValueError):
        unpack(Frame(1, msgspec.msgpack.encode(asked), []))


@pytest.mark.parametrize(
    ("lines", "ids", "distances"), [([2], 1, 1), ([1], 2, 2), ([-1, 2], 1, 1), ([1], 1, 0), ([0], 0, 1)]
)
def test_answers_that_cannot_be_dealt_out_are_refused(lines: list[int], ids: int, distances: int) -> None:
    answered = search_codec._Answered(
        0, 0, 0, [1] * len(lines), lines, [["a"]] * ids, [[0.5]] * distances, [None] * ids
    )
    with pytest.raises(ValueError):
        unpack(Frame(1, msgspec.msgpack.encode(answered), []))


@pytest.mark.parametrize(
    ("ids", "distances", "payloads"),
    [
        ([["a", "b"], ["c"]], [[0.1], [0.2, 0.3]], [None, None]),
        ([["a"]], [[]], [None]),
        ([["a"]], [[0.1]], [[]]),
        ([["a"], ["b"]], [[0.1], [0.2]], [None, [b"1", b"2"]]),
    ],
)
def test_answers_whose_lines_are_of_different_lengths_are_refused(ids: Any, distances: Any, payloads: Any) -> None:
    answered = search_codec._Answered(0, 0, 0, [1], [len(ids)], ids, distances, payloads)
    with pytest.raises(ValueError):
        unpack(Frame(1, msgspec.msgpack.encode(answered), []))
