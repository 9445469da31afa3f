"""Depths that are measured: the target is met on data of different difficulty, and followed when things change."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

from vecraft_data_model.convert import put_of_columns
from vecraft_data_model.messages import (
    CHOOSE_SNAPSHOT,
    AlterCollection,
    CommitOne,
    Committed,
    CreateCollection,
    Describe,
    DescribeReply,
    Mutation,
    Request,
    Response,
    Search,
    SearchReply,
    SetEf,
    Status,
    StatusReply,
    Transaction,
)
from vecraft_data_model.schema import CollectionSchema
from vecraft_data_model.search_options import SearchOptions
from vecraft_shard.config import ShardConfig
from vecraft_shard.disk import MemoryDisk, OsDisk
from vecraft_shard.engine import Shard
from vecraft_shard.search_depth import QuerySample, SearchDepth
from vecraft_shard.tuning import DEPTHS, interval

Matrix = npt.NDArray[np.float32]
ROWS, QUERIES = 6000, 200


def gaussian(rng: np.random.Generator, count: int) -> Matrix:
    return rng.normal(size=(count, 32)).astype(np.float32)


def clustered(rng: np.random.Generator, count: int) -> Matrix:
    centres = np.random.default_rng(1).normal(size=(60, 64))
    return (centres[rng.integers(0, 60, count)] + 0.3 * rng.normal(size=(count, 64))).astype(np.float32)


def flat(rng: np.random.Generator, count: int) -> Matrix:
    plane = np.random.default_rng(2).normal(size=(6, 64))
    return (rng.normal(size=(count, 6)) @ plane + 0.02 * rng.normal(size=(count, 64))).astype(np.float32)


class Bench:
    """A shard in memory with one collection ``c``, whose time the test moves."""

    def __init__(
        self,
        metric: str,
        dim: int,
        target: float = 0.95,
        disk: OsDisk | None = None,
        stopwatch: Callable[[], float] = time.perf_counter,
    ) -> None:
        self.now_ms = 1_700_000_000_000
        self.stopwatch = stopwatch
        self.disk = disk or MemoryDisk()
        self.open()
        self.numbers = iter(range(1 << 30))
        schema = CollectionSchema(name="c", dim=dim, metric=metric, target_recall=target)
        self.commit(CreateCollection(schema, "ab" * 16))

    def open(self) -> None:
        config = ShardConfig(index_min_rows=10)
        self.shard = Shard.open(self.disk, 0, self.now_ms, config, stopwatch=self.stopwatch, salt=1)

    def restart(self) -> None:
        self.now_ms += 1000
        self.shard.close(self.now_ms)
        self.open()

    def one(self, request: Request) -> Response:
        self.now_ms += 1
        return self.shard.execute([request], self.now_ms)[0]

    def commit(self, mutation: Mutation) -> None:
        name = f"t{next(self.numbers)}"
        txn = Transaction(name, hashlib.sha256(name.encode()).digest(), [mutation])
        reply = self.one(CommitOne(txn))
        assert isinstance(reply, Committed), reply

    def fill(self, vectors: Matrix, first: int = 0) -> None:
        for start in range(0, len(vectors), 500):
            part = vectors[start : start + 500]
            ids = [f"r{first + start + i}" for i in range(len(part))]
            self.commit(put_of_columns("c", ids, part))

    def settle(self) -> None:
        while self.shard.maintain(self.now_ms, 1000):
            self.now_ms += 1

    def search(self, queries: Matrix, *, exact: bool = False, ef: int | None = None) -> list[list[float]]:
        request = Search(
            snapshot=CHOOSE_SNAPSHOT,
            collection="c",
            queries=np.ascontiguousarray(queries),
            options=SearchOptions(k=10, exact=exact, ef=ef, include=()),
        )
        reply = self.one(request)
        assert isinstance(reply, SearchReply), reply
        return [hits.distances for hits in reply.hits]

    def recall(self, queries: Matrix, ef: int | None = None) -> float:
        found, exact = self.search(queries, ef=ef), self.search(queries, exact=True)
        right = sum(
            sum(distance <= best[-1] * (1 + 1e-4) + 1e-5 for distance in got)
            for got, best in zip(found, exact, strict=True)
        )
        return right / (10 * len(queries))

    def describe(self) -> DescribeReply:
        reply = self.one(Describe(snapshot=CHOOSE_SNAPSHOT, collection="c"))
        assert isinstance(reply, DescribeReply)
        return reply

    def estimate(self) -> tuple[float, float, float]:
        reply = self.one(Status())
        assert isinstance(reply, StatusReply)
        return reply.recalls["c"]


@pytest.mark.parametrize("made", [gaussian, clustered, flat])
@pytest.mark.parametrize("metric", ["l2", "cosine"])
def test_the_target_is_met_whatever_the_data(
    made: Callable[[np.random.Generator, int], Matrix], metric: str
) -> None:
    rng = np.random.default_rng(7)
    vectors, queries = made(rng, ROWS), made(rng, QUERIES)
    bench = Bench(metric, vectors.shape[1])
    bench.fill(vectors)
    bench.settle()
    info = bench.describe()
    assert info.tail_rows == 0
    assert info.ef in DEPTHS
    assert info.measured_recall is not None and info.measured_recall >= 0.95
    assert bench.recall(queries) >= 0.93, "held-out queries fall short by more than their own sampling error"
    recall, low, high = bench.estimate()
    assert low <= recall <= high
    assert recall == info.measured_recall
    assert info.recall_interval == (low, high)


def test_harder_data_and_higher_targets_get_more_depth() -> None:
    depths = {}
    for made, target in ((flat, 0.95), (gaussian, 0.8), (gaussian, 0.95)):
        vectors = made(np.random.default_rng(3), ROWS)
        bench = Bench("l2", vectors.shape[1], target)
        bench.fill(vectors)
        bench.settle()
        depths[made.__name__, target] = bench.describe().ef
    assert depths["flat", 0.95] < depths["gaussian", 0.95]
    assert depths["gaussian", 0.8] < depths["gaussian", 0.95]


def test_the_depth_follows_what_is_really_asked() -> None:
    """Rows lie in a plane, and so do the first questions; then come questions from everywhere."""
    rng = np.random.default_rng(5)
    vectors = gaussian(rng, ROWS)
    bench = Bench("l2", vectors.shape[1])
    bench.fill(vectors)
    bench.settle()
    made_up = bench.describe().ef
    near = vectors[rng.integers(0, ROWS, QuerySample.CAPACITY)] + np.float32(0.01)
    for query in near:  # the easiest that there are: the rows themselves, nearly
        bench.search(query.reshape(1, -1))
    bench.now_ms += 3_600_000
    bench.settle()
    easy = bench.describe().ef
    assert easy < made_up
    for _ in range(QuerySample.STRIDE + 1):
        for query in gaussian(rng, QuerySample.CAPACITY):
            bench.search(query.reshape(1, -1))
    bench.now_ms += 3_600_000
    bench.settle()
    assert bench.describe().ef > easy
    assert bench.recall(gaussian(rng, QUERIES)) >= 0.93


def test_a_depth_set_by_hand_stays_and_its_recall_is_told() -> None:
    rng = np.random.default_rng(6)
    vectors = gaussian(rng, ROWS)
    bench = Bench("l2", vectors.shape[1])
    bench.fill(vectors)
    bench.settle()
    tuned = bench.describe().ef
    bench.one(SetEf("c", 10))
    assert bench.describe().measured_recall is None, "nothing is known of that depth yet"
    bench.now_ms += 3_600_000
    bench.settle()
    info = bench.describe()
    assert info.ef == 10
    assert info.measured_recall is not None and info.measured_recall < 0.8
    bench.one(SetEf("c", None))
    assert bench.describe().ef == tuned


def test_replacing_rows_is_a_reason_to_measure_again() -> None:
    rng = np.random.default_rng(8)
    bench = Bench("l2", 32)
    bench.fill(gaussian(rng, ROWS))
    bench.settle()
    before = bench.estimate()
    bench.fill(gaussian(rng, ROWS // 3))
    bench.now_ms += 3_600_000
    bench.settle()
    assert bench.estimate() != before
    assert bench.recall(gaussian(rng, QUERIES)) >= 0.93


def test_another_target_is_followed_at_once() -> None:
    rng = np.random.default_rng(14)
    vectors, queries = gaussian(rng, ROWS), gaussian(rng, QUERIES)
    bench = Bench("l2", 32)
    bench.fill(vectors)
    bench.settle()
    depths = [bench.describe().ef]
    for target in (0.6, 0.99):
        bench.commit(AlterCollection("c", {"target_recall": target}))
        bench.settle()
        depths.append(bench.describe().ef)
        assert bench.recall(queries) >= target - 0.02
    assert depths[1] < depths[0] < depths[2]
    bench.commit(AlterCollection("c", {"target_recall": 0.99}))
    assert bench.describe().measured_recall is not None, "that is what it was"


def test_what_was_measured_is_known_after_a_restart(tmp_path: Path) -> None:
    rng = np.random.default_rng(11)
    bench = Bench("l2", 32, disk=OsDisk(tmp_path / "disk"))
    bench.fill(gaussian(rng, ROWS))
    bench.settle()
    recall, low, high = bench.estimate()
    assert low < recall < high
    ef = bench.describe().ef
    for _ in range(2):
        bench.restart()
        assert bench.estimate() == (recall, low, high)
        assert bench.describe().ef == ef
    bench.shard.close(bench.now_ms)


def test_the_recall_of_an_override_ends_with_it(tmp_path: Path) -> None:
    rng = np.random.default_rng(12)
    bench = Bench("l2", 32, disk=OsDisk(tmp_path / "disk"))
    bench.fill(gaussian(rng, ROWS))
    bench.one(SetEf("c", 10))
    bench.settle()
    measured = bench.describe().measured_recall
    assert measured is not None and measured < 0.8
    bench.restart()
    info = bench.describe()
    assert info.ef > 10 and info.measured_recall is None, "that was the recall of another depth"
    bench.settle()
    again = bench.describe().measured_recall
    assert again is not None and again >= 0.95
    bench.shard.close(bench.now_ms)


def test_measuring_leaves_most_of_the_time_to_those_who_search() -> None:
    """As a share of the time, whatever the machine: searches come all the time, and so does a turn to measure."""
    rng = np.random.default_rng(13)
    # Both by what this thread has worked: it may be held up at any line.
    bench = Bench("l2", 32, stopwatch=time.thread_time)
    bench.fill(gaussian(rng, ROWS))
    while bench.describe().tail_rows:
        bench.shard.maintain(bench.now_ms, 1)
    queries = gaussian(rng, QUERIES)
    measuring, began, turns = 0.0, time.thread_time(), 0
    while bench.describe().measured_recall is None:
        bench.search(queries[turns % QUERIES].reshape(1, -1))
        turns += 1
        asked = time.thread_time()
        # In many short slices: the first, before a search was noticed, and the last are not rested from.
        bench.shard.maintain(bench.now_ms, 2)
        measuring += time.thread_time() - asked
    assert turns > 10
    assert measuring < 0.4 * (time.thread_time() - began)
    bench.one(SetEf("c", 10))
    turns = 0
    while bench.describe().measured_recall is None:
        bench.shard.maintain(bench.now_ms, 20)
        bench.now_ms += 60_000
        turns += 1
    assert bench.describe().measured_recall, "with nobody searching there is no reason to rest"


def test_a_query_that_is_asked_again_and_again_says_no_more_than_once() -> None:
    sample = QuerySample()
    for number in range(10 * QuerySample.CAPACITY):
        sample.offer(np.full((1, 2), number % (QuerySample.CAPACITY // 2 - 1), np.float32))
    assert sample.queries() is None, "too few to tell how hard the questions are"
    for number in range(QuerySample.CAPACITY * QuerySample.STRIDE * 2):
        sample.offer(np.full((1, 2), number % 70, np.float32))
    distinct = sample.queries()
    assert distinct is not None and sorted(distinct[:, 0].tolist()) == list(range(70))


def test_the_sample_keeps_some_of_the_last_queries() -> None:
    sample = QuerySample()
    for number in range(QuerySample.CAPACITY - 1):
        sample.offer(np.full((1, 4), number, np.float32))
    assert sample.queries() is None
    sample.offer(np.full((1, 4), 500, np.float32))
    full = sample.queries()
    assert full is not None and set(full[:, 0]) == {*range(QuerySample.CAPACITY - 1), 500}
    taken = sample.taken
    for number in range(1000, 1000 + (QuerySample.CAPACITY + 1) * QuerySample.STRIDE):
        sample.offer(np.full((1, 4), number, np.float32))
    assert abs(sample.taken - taken - QuerySample.CAPACITY - 1) <= 1
    renewed = sample.queries()
    assert renewed is not None and renewed.min() >= 1000
    assert renewed.max() - renewed.min() > 900, "they are spread over the whole time"
    for number in range(QuerySample.CAPACITY * QuerySample.STRIDE * 2):
        sample.offer(np.full((1, 4), number % 128, np.float32))
    periodic = sample.queries()
    assert periodic is not None and len(periodic) > 100, "not always the same of those that come in turns"


def test_the_interval_holds_the_mean_and_narrows_with_agreement() -> None:
    rng = np.random.default_rng(9)
    wide = interval(np.where(rng.random(128) < 0.5, 0.9, 1.0) - np.where(rng.random(128) < 0.1, 0.6, 0.0))
    narrow = interval(np.where(rng.random(128) < 0.5, 0.9, 1.0))
    assert narrow[1] - narrow[0] < wide[1] - wide[0]
    assert interval(np.ones(128))[0] < 1.0, "that none was missed does not prove that none will be"
    assert interval(np.ones(128))[1] == 1.0
    low, high = interval(np.full(128, 0.9))
    assert low < 0.9 < high


def test_intervals_hold_the_truth_about_as_often_as_they_say() -> None:
    rng = np.random.default_rng(10)
    hits = rng.binomial(10, rng.beta(9, 1, size=(400, 128))) / 10
    held = np.mean([low <= 0.9 <= high for low, high in map(interval, hits)])
    assert held >= 0.9


def test_who_sets_the_depth() -> None:
    depth = SearchDepth(tuned=48)
    assert depth.in_force(64) == 48
    assert SearchDepth().in_force(64) == 64
    depth.alter(100)
    assert depth.in_force(64) == 100
    depth.set_override(20)
    assert depth.in_force(64) == 20
