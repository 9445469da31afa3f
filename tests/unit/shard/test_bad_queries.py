"""Which queries a shard refuses, by what it was told of them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from shard_workbench import Bench, create, put

from vecraft_data_model.errors import (
    InvalidDataException,
    NullOrZeroVectorException,
    VectorDimensionMismatchException,
)
from vecraft_data_model.messages import Refused, Response, Search, SearchReply


@pytest.fixture(params=[True, False], ids=["unchecked", "checked"])
def bench(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Bench]:
    bench = Bench(tmp_path / "shard", verify_queries=request.param)
    bench.commit(create(metric="cosine"), put("x"))
    yield bench
    bench.shard.abandon()


def answer(bench: Bench, numbers: list[float]) -> Response:
    return bench.ask(Search(collection="c", queries=np.array([numbers], np.float32)))


def refusal(bench: Bench, numbers: list[float]) -> type[Exception]:
    response = answer(bench, numbers)
    assert isinstance(response, Refused), response
    return type(response.error)


def test_what_only_the_collection_can_tell_is_always_checked(bench: Bench) -> None:
    assert refusal(bench, [1, 2, 3]) is VectorDimensionMismatchException
    assert refusal(bench, [0, 0, 0, 0]) is NullOrZeroVectorException


@pytest.mark.parametrize("numbers", [[0, 1, 0, 0], [1e-20, 0, 0, 0], [1, 0, 0, 0], [-1, 2, 3, 4]])
def test_good_queries(bench: Bench, numbers: list[float]) -> None:
    assert isinstance(answer(bench, numbers), SearchReply)


@pytest.mark.parametrize("numbers", [[1, np.nan, 0, 0], [1, np.inf, 0, 0], [1.5e19, 0, 0, 0], [0, np.nan, 0, 0]])
def test_numbers_are_checked_unless_they_were(bench: Bench, numbers: list[float]) -> None:
    if bench.config.verify_queries or not numbers[0]:
        assert refusal(bench, numbers) is InvalidDataException
