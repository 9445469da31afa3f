"""What crosses process boundaries arrives as it left: errors, timestamps, messages."""

from __future__ import annotations

import inspect
import pickle
from datetime import UTC, datetime
from typing import Any

import msgspec
import numpy as np
import pytest

import vecraft_data_model
from vecraft_data_model import messages
from vecraft_data_model.errors import ERRORS_BY_CODE, ClockSkewError, InvalidDataException, VecraftError
from vecraft_data_model.filters import parse_where, parse_where_document
from vecraft_data_model.hlc import HybridLogicalClock, datetime_of, physical_ms, timestamp, timestamp_of
from vecraft_data_model.schema import CollectionSchema
from vecraft_data_model.search_options import SearchOptions


@pytest.mark.parametrize("cls", ERRORS_BY_CODE.values())
def test_errors_survive_pickle_and_dict(cls: type[VecraftError]) -> None:
    error = cls("what happened", record_id="a", n=1)
    for again in (pickle.loads(pickle.dumps(error)), VecraftError.from_dict(error.to_dict())):
        assert type(again) is cls
        assert (str(again), again.details, again.code) == ("what happened", {"record_id": "a", "n": 1}, cls.code)


def test_codes_are_distinct_and_an_unknown_one_is_still_an_error() -> None:
    codes = [cls.code for cls in ERRORS_BY_CODE.values()]
    assert len(set(codes)) == len(codes) >= 23
    assert type(VecraftError.from_dict({"code": "from the future", "message": "m"})) is VecraftError


def test_every_message_is_frozen_and_pickles() -> None:
    where, document = parse_where({"a": {"$gt": 1}}), parse_where_document({"$contains": "x"})
    options = SearchOptions(k=3, where=where, where_document=document)
    search = messages.Search(collection="c", queries=np.ones((1, 2), np.float32), options=options)
    txn = messages.Transaction("t", b"hash", [messages.CreateCollection(CollectionSchema("c", 2), "ab")])
    refused = messages.Refused(InvalidDataException("no", a=1))
    batch = messages.Batch([search, messages.CommitOne(txn), messages.Prepare(txn, 0, [0, 1])], clock=5)
    again: Any = pickle.loads(pickle.dumps(batch))
    assert again.requests[0].options == options
    assert again.requests[0].queries.tolist() == [[1, 1]]
    assert again.requests[1:] == batch.requests[1:]
    assert pickle.loads(pickle.dumps(refused)).error.details == {"a": 1}
    kinds = [cls for _, cls in inspect.getmembers(messages, inspect.isclass) if issubclass(cls, messages.Message)]
    assert len(kinds) > 40
    assert all(cls.__struct_config__.frozen for cls in kinds)
    assert not any(issubclass(cls, msgspec.Struct) and not cls.__doc__ for cls in kinds if cls.__name__ == "Message")


def test_a_clock_only_moves_forward() -> None:
    clock = HybridLogicalClock(timestamp(1000, 5))
    assert clock.tick(900) == timestamp(1000, 6)
    assert clock.tick(2000) == timestamp(2000)
    assert clock.now(1500) == timestamp(2000)
    assert clock.observe(timestamp(2400, 7), 2000) == timestamp(2400, 7)
    assert clock.observe(timestamp(1), 2000) == timestamp(2400, 7)
    assert clock.tick(2000) == timestamp(2400, 8)


def test_a_clock_is_not_dragged_into_the_future() -> None:
    clock = HybridLogicalClock(timestamp(1000), max_clock_skew_ms=500)
    assert clock.observe(timestamp(1500, 9), 1000) == timestamp(1500, 9)
    with pytest.raises(ClockSkewError, match="at most 500 ms"):
        clock.observe(timestamp(1502), 1000)
    assert clock.last == timestamp(1500, 9)


def test_moments_and_timestamps() -> None:
    moment = datetime(2024, 5, 1, 12, tzinfo=UTC)
    assert datetime_of(timestamp_of(moment)) == moment
    assert physical_ms(timestamp_of(moment)) == int(moment.timestamp() * 1000)
    assert timestamp_of(5) == 5
    for bad in (-1, 2**63, True, 1.5, "now", None):
        with pytest.raises(InvalidDataException, match="a timestamp must be"):
            timestamp_of(bad)  # type: ignore[arg-type]


def test_public_names_are_there() -> None:
    for name in ("DataPacket", "VectorPacket", "QueryPacket", "SearchResult", "CollectionSchema", "CommitResult",
                 "CollectionInfo", "VecraftError", "InvalidFilterError"):  # fmt: skip
        assert name in vecraft_data_model.__all__
    for name in vecraft_data_model.__all__:
        assert getattr(vecraft_data_model, name).__name__ == name
