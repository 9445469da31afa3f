"""Searches against numpy brute force: random filters, versions, tails, metrics, depths."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st
from random_examples import examples

from vecraft_data_model.distances import exact_distances, norms
from vecraft_data_model.filters import DocumentFilter, Filter, matches, parse_where
from vecraft_data_model.hlc import INFINITY_TS
from vecraft_data_model.messages import Search
from vecraft_data_model.schema import CollectionSchema
from vecraft_data_model.search_options import SearchOptions
from vecraft_shard.indexes.hnsw import HnswIndex
from vecraft_shard.indexes.hot import HotFilters
from vecraft_shard.indexes.metadata import MetadataIndex
from vecraft_shard.indexes.rowset import RowSet
from vecraft_shard.indexes.tail import Found, VectorSource
from vecraft_shard.planner import NOMINAL_COSTS as NOMINAL
from vecraft_shard.planner import Costs
from vecraft_shard.search import explain_search, run_search

Float32Array = npt.NDArray[np.float32]

SCAN_IS_DEAR = Costs(scan_call=1e6, stream_kb=1e6, gather_kb=1e6, multiply_million=1e9)
GRAPH_IS_DEAR = Costs(walk_call=1e9)
ASKING_AGAIN_IS_DEAR = Costs(scan_call=1e9, stream_kb=1e6, gather_kb=1e6, multiply_million=1e9, walk_call=1e5)


class Column:
    """Vectors in memory."""

    def __init__(self, vectors: npt.NDArray[np.floating]) -> None:
        self.vectors = vectors

    def view(self, lo: int, hi: int) -> npt.NDArray[np.floating]:
        return self.vectors[lo:hi]


class View:
    """A collection in memory, at one snapshot."""

    def __init__(
        self,
        vectors: Float32Array,
        metadata: Sequence[dict[str, Any] | None],
        metric: str = "l2",
        indexed: int | None = None,
        vector_type: str = "float32",
    ) -> None:
        self.schema = CollectionSchema(name="c", dim=vectors.shape[1], metric=metric, vector_type=vector_type)
        stored = vectors.astype(self.schema.dtype)
        self.vectors: Float32Array = stored.astype(np.float32)
        self.metadata = metadata
        self.rows = len(vectors)
        self.indexed = self.rows if indexed is None else indexed
        self.column: VectorSource = Column(stored)
        self.norms: Float32Array | None = norms(self.vectors) if metric == "cosine" else None
        graph = HnswIndex(self.schema.dim, metric)
        graph.add(stored[: self.indexed])
        self.hnsw: HnswIndex | None = graph
        self.begin = np.ones(self.rows, np.int64)
        self.end = np.full(self.rows, INFINITY_TS)
        self.ids: Sequence[str] = [f"r{i * 7919 % 100_003:06d}" for i in range(self.rows)]
        self.snapshot = 100
        self.changes = self.rows
        self.alive = self.rows
        self.all_visible = True
        self.ef = 64
        self.hot_filters: HotFilters | None = HotFilters()
        self.index = MetadataIndex()
        self.index.add(0, metadata)

    def matching(self, where: Filter | None, where_document: DocumentFilter | None) -> RowSet | None:
        return None if where is None else self.index.evaluate(where, self.rows)

    def expected(self, request: Search) -> list[list[tuple[float, str]]]:
        options = request.options
        rows = [
            row
            for row in range(self.rows)
            if self.begin[row] <= self.snapshot < self.end[row]
            and (options.where is None or matches(options.where, self.metadata[row]))
        ]
        answers = []
        for query in request.queries:
            measured = exact_distances(self.schema.metric, self.vectors[rows], query).tolist() if rows else []
            ranked = sorted(zip(measured, (self.ids[row] for row in rows), strict=True))[: options.k]
            limit = options.max_distance
            answers.append([pair for pair in ranked if limit is None or pair[0] <= limit])
        return answers

    def answers(self, found: list[Found]) -> list[list[tuple[float, str]]]:
        for rows, distances in found:
            assert rows.dtype == np.int64 and distances.dtype == np.float32 and len(rows) == len(distances)
        return [
            [(d, self.ids[r]) for r, d in zip(rows.tolist(), distances.tolist(), strict=True)]
            for rows, distances in found
        ]


def search(view: View, asked: Search, costs: Costs = NOMINAL, threads: int = 1) -> list[list[tuple[float, str]]]:
    """Search, the view kept in step with its timestamps; (distance, id) per query."""
    view.all_visible = bool(((view.begin <= view.snapshot) & (view.end > view.snapshot))[: view.rows].all())
    view.alive = int((view.end[: view.rows] == INFINITY_TS).sum())
    found = run_search(view, asked, threads, costs)
    for rows in (rows.tolist() for rows, _ in found):
        assert len(set(rows)) == len(rows)
        assert all(view.begin[row] <= view.snapshot < view.end[row] for row in rows), "only what the snapshot sees"
        where = asked.options.where
        assert where is None or all(matches(where, view.metadata[row]) for row in rows), "only what matches"
    return view.answers(found)


def request(queries: Float32Array, k: int = 10, where: dict[str, Any] | None = None, **options: Any) -> Search:
    parsed = None if where is None else parse_where(where)
    wanted = SearchOptions(k=k, where=parsed, **options)
    return Search(collection="c", queries=np.ascontiguousarray(queries), options=wanted)


def recall(found: list[list[tuple[float, str]]], expected: list[list[tuple[float, str]]]) -> float:
    """Share of answers that are as near as the expected ones; by distance, so that ties count as right."""
    right = wanted = 0
    for line, exact in zip(found, expected, strict=True):
        if exact:
            right += sum(d <= exact[-1][0] * (1 + 1e-4) + 1e-5 for d, _ in line[: len(exact)])
            wanted += len(exact)
    return right / wanted if wanted else 1.0


@examples(120)
@given(
    seed=st.integers(0, 2**32 - 1),
    n=st.sampled_from([0, 1, 7, 60, 400]),
    metric=st.sampled_from(["l2", "cosine", "ip"]),
    vector_type=st.sampled_from(["float32", "float16"]),
    k=st.sampled_from([1, 3, 10, 500]),
    many=st.booleans(),
    exact=st.booleans(),
    where=st.sampled_from(
        [None, {"n": 0}, {"n": {"$lt": 2}}, {"n": {"$ne": 1}}, {"n": 99}, {"tag": "a", "n": [0, 1, 2]}]
    ),
    changed=st.sampled_from([0.0, 0.1, 0.95]),
    costs=st.sampled_from([Costs(), SCAN_IS_DEAR, GRAPH_IS_DEAR]),
    far=st.booleans(),
)
def test_small_collections_are_answered_in_full(
    seed: int, n: int, metric: str, vector_type: str, k: int, many: bool, exact: bool, where: dict[str, Any] | None,
    changed: float, costs: Costs, far: bool,
) -> None:  # fmt: skip
    rng = np.random.default_rng(seed)
    vectors = rng.normal(size=(n, 8)).astype(np.float32)
    vectors[rng.random(n) < 0.2] = 1  # ties
    metadata = [
        None if rng.random() < 0.05 else {"n": int(rng.integers(0, 4)), "tag": "ab"[int(rng.integers(0, 2))]}
        for _ in range(n)
    ]
    view = View(vectors, metadata, metric, int(rng.integers(0, n + 1)), vector_type)
    view.end[rng.random(n) < changed] = 50
    view.begin[rng.random(n) < changed / 2] = 150
    queries = rng.normal(size=(5 if many else 1, 8)).astype(np.float32)
    limit = float(rng.uniform(0, 10)) if far else None
    asked = request(queries, k, where, exact=exact, max_distance=limit)
    expected = view.expected(asked)
    for _ in range(3):  # what is learnt of a filter must not change what it finds
        found = search(view, asked, costs=costs)
        if exact or costs is GRAPH_IS_DEAR:
            assert found == expected
            continue
        if limit is None:
            assert [len(line) for line in found] == [len(line) for line in expected], "k of them whenever k match"
        for line, want in zip(found, expected, strict=True):
            assert [d for d, _ in line] == sorted(d for d, _ in line)
            if len(want) == len(line) and limit is None:
                np.testing.assert_allclose([d for d, _ in line], [d for d, _ in want], rtol=0.5, atol=0.5)


@pytest.fixture(scope="module")
def clustered() -> tuple[View, Float32Array]:
    """8,000 vectors in 40 topics, and queries near them; metadata of known selectivity, one field being the topic."""
    rng = np.random.default_rng(11)
    centres = rng.normal(size=(40, 32))
    topic = rng.integers(0, 40, size=8_000)
    vectors = (centres[topic] + rng.normal(size=(8_000, 32)) * 0.7).astype(np.float32)
    length = rng.permutation(8_000)
    metadata = [{"topic": int(t), "length": int(x)} for t, x in zip(topic, length, strict=True)]
    view = View(vectors, metadata, "cosine")
    queries = (centres[rng.integers(0, 40, size=30)] + rng.normal(size=(30, 32)) * 0.9).astype(np.float32)
    return view, queries


FILTERS: dict[str, dict[str, Any] | None] = {
    "none": None,
    "length 0.1%": {"length": {"$lt": 10}},
    "length 1%": {"length": {"$lt": 80}},
    "length 10%": {"length": {"$lt": 800}},
    "length 50%": {"length": {"$lt": 4000}},
    "topic 2.5%": {"topic": 3},
    "topics 10%": {"topic": [0, 1, 2, 3]},
    "topics 70%": {"topic": {"$gte": 12}},
}


@pytest.mark.parametrize("name", FILTERS)
@pytest.mark.parametrize("costs", [Costs(), SCAN_IS_DEAR], ids=["planned", "by graph"])
@pytest.mark.parametrize("together", [True, False])
def test_recall_under_every_filter(
    clustered: tuple[View, Float32Array], name: str, costs: Costs, together: bool
) -> None:
    view, queries = clustered
    asked = request(queries, 10, FILTERS[name])
    if together:
        found = search(view, asked, threads=2, costs=costs)
    else:
        found = [
            search(view, request(query[None], 10, FILTERS[name]), costs=costs)[0] for query in queries
        ]
    assert all(len(line) == 10 for line in found)
    assert recall(found, view.expected(asked)) >= 0.95


@pytest.mark.parametrize("costs", [Costs(), SCAN_IS_DEAR], ids=["planned", "by graph"])
def test_recall_with_dead_rows_and_old_snapshots(clustered: tuple[View, Float32Array], costs: Costs) -> None:
    view, queries = clustered
    rng = np.random.default_rng(3)
    begin, end = view.begin, view.end
    try:
        view.begin = np.sort(rng.integers(1, 1000, size=view.rows))
        view.end = np.where(rng.random(view.rows) < 0.4, view.begin + 200, INFINITY_TS)
        for snapshot in (30, 500, 5000):
            view.snapshot = snapshot
            for where in (None, {"length": {"$lt": 4000}}, {"topic": 3}):
                asked = request(queries, 10, where)
                found, expected = search(view, asked, costs), view.expected(asked)
                assert [len(line) for line in found] == [len(line) for line in expected]
                assert recall(found, expected) >= 0.95, (snapshot, where)
    finally:
        view.begin, view.end, view.snapshot = begin, end, 100


def test_a_filter_far_from_the_query_still_yields_k() -> None:
    rng = np.random.default_rng(2)
    near = rng.normal(size=(9000, 16)).astype(np.float32)
    far = (rng.normal(size=(3000, 16)) + 50).astype(np.float32)
    metadata = [{"far": i >= 9000} for i in range(12_000)]
    view = View(np.concatenate([near, far]), metadata)
    asked = request(near[:20], 10, {"far": True})
    for costs in (Costs(), ASKING_AGAIN_IS_DEAR):
        found = search(view, asked, costs=costs)
        assert all(len(line) == 10 for line in found)
        assert recall(found, view.expected(asked)) >= 0.95
        answered, explained = explain_search(view, asked, costs=costs)
        assert view.answers(answered) == found
        assert explained["matching"] == 3000 and explained["queries"] == 20
    assert explained["plan"] == "hnsw_restricted", "experience tells how far it is"
    assert explained["queries_repaired"] == 0
    assert explained["visited"] > 20 * 9000


@pytest.mark.parametrize("metric", ["l2", "cosine"])
def test_dead_rows_around_the_query_are_walked_past(metric: str) -> None:
    rng = np.random.default_rng(21)
    topic = np.repeat(np.arange(10), 800)
    vectors = (3 * rng.normal(size=(10, 24))[topic] + rng.normal(size=(8000, 24))).astype(np.float32)
    view = View(vectors, [{"topic": int(t)} for t in topic], metric)
    view.begin = rng.integers(1, 50, 8000)
    view.end = np.where((topic == 4) & (rng.random(8000) < 0.95), 60, INFINITY_TS)
    view.changes += 760
    queries = vectors[topic == 4][:16]
    for where in (None, {"topic": {"$lte": 5}}, {"topic": {"$ne": 4}}):
        asked = request(queries, 10, where)
        found, expected = search(view, asked, ASKING_AGAIN_IS_DEAR), view.expected(asked)
        assert all(len(line) == 10 for line in found) and recall(found, expected) >= 0.95, where
        _, explained = explain_search(view, asked, costs=ASKING_AGAIN_IS_DEAR)
        assert explained["visited"] > 16 * 64 and explained["scanned"] == 0, where


def test_rows_that_died_since_the_mask_was_made_do_not_hide_the_others() -> None:
    rng = np.random.default_rng(22)
    vectors = rng.normal(size=(6000, 12)).astype(np.float32)
    view = View(vectors, [{"n": i % 4} for i in range(6000)])
    view.end[rng.random(6000) < 0.5] = 50
    view.changes += 3000
    query = vectors[:1]
    order = np.argsort(((vectors - query) ** 2).sum(axis=1))
    hot = view.hot_filters
    assert hot is not None
    plans = set()
    for turn in range(8):  # each time the 30 nearest of those alive are replaced
        for where in (None, {"n": {"$lte": 2}}):
            asked = request(query, 10, where, ef=16)
            assert recall(search(view, asked, ASKING_AGAIN_IS_DEAR), view.expected(asked)) == 1.0, (turn, where)
            plans.add(explain_search(view, asked, costs=ASKING_AGAIN_IS_DEAR)[1]["plan"])
        nearest = [row for row in order.tolist() if view.end[row] > view.snapshot][:30]
        view.snapshot += 1
        view.end[nearest] = view.snapshot
        view.changes += 30
    assert plans == {"hnsw_overfetch", "hnsw_restricted"}, "experience has told how far it is"


def test_what_asking_again_took_is_remembered() -> None:
    rng = np.random.default_rng(23)
    vectors = rng.normal(size=(12_000, 16)).astype(np.float32)
    order = np.argsort(((vectors - vectors[0]) ** 2).sum(axis=1))
    hole = np.zeros(12_000, bool)
    hole[order[:1500]] = True
    view = View(vectors, [{"hole": bool(inside)} for inside in hole])
    costs = Costs(stream_kb=10.0, gather_kb=10.0, visit=1e6)  # neither a scan nor a look at a mask
    seen = [
        explain_search(view, request(vectors[row : row + 1], 10, {"hole": False}), costs=costs)[1]
        for row in order[:20].tolist()
    ]
    assert {each["plan"] for each in seen} == {"hnsw_overfetch"}
    assert sum(each["queries_repaired"] for each in seen) >= 5 and not any(each["scanned"] for each in seen)
    worst = max(each["estimated_us"]["graph"] for each in seen)
    assert worst > seen[-1]["estimated_us"]["exact"] * 0.05, "at first, asking again is taken for a scan"
    assert seen[-1]["estimated_us"]["graph"] < worst / 5


def test_a_filter_that_is_scanned_is_tried_on_the_graph_now_and_then() -> None:
    rng = np.random.default_rng(24)
    vectors = rng.normal(size=(20_000, 32)).astype(np.float32)
    view = View(vectors, [{"n": i % 10} for i in range(20_000)])
    costs = Costs(stream_kb=0.9, link_kb=0.01)  # a scan seems to be cheaper while many queries are expected to fail
    plans = [
        explain_search(view, request(vectors[i : i + 1], 10, {"n": 3}), costs=costs)[1]["plan"] for i in range(400)
    ]
    assert plans[2:7] == ["exact"] * 5
    assert "hnsw_overfetch" in plans[:20]
    assert plans[-20:] == ["hnsw_overfetch"] * 20, "none has failed"
    dear = [
        explain_search(view, request(vectors[i : i + 1], 10, {"n": 4}), costs=GRAPH_IS_DEAR)[1]["plan"]
        for i in range(40)
    ]
    assert set(dear) == {"exact"}, "but not where it would cost a lot"


def test_says_what_was_planned_and_what_it_took() -> None:
    rng = np.random.default_rng(14)
    vectors = rng.normal(size=(6000, 16)).astype(np.float32)
    view = View(vectors, [{"n": i % 100} for i in range(6000)], indexed=5900)
    queries = rng.normal(size=(3, 16)).astype(np.float32)
    _, exact = explain_search(view, request(queries, 10, {"n": {"$lt": 5}}, exact=True))
    assert (exact["plan"], exact["matching"], exact["scanned"], exact["candidates"]) == ("exact", 300, 900, 0)
    _, walk = explain_search(view, request(queries, 10, ef=50), costs=SCAN_IS_DEAR)
    assert (walk["plan"], walk["depth"], walk["candidates"], walk["scanned"]) == ("hnsw", 50, 150, 300)
    assert walk["estimated_us"]["graph"] < walk["estimated_us"]["exact"]
    far, cut = explain_search(view, request(queries, 10, max_distance=0.0, exact=True))
    assert exact["found"] == walk["found"] == 30 and cut["found"] == sum(len(rows) for rows, _ in far) == 0


def test_fresh_rows_are_found_at_once() -> None:
    rng = np.random.default_rng(4)
    vectors = rng.normal(size=(6000, 16)).astype(np.float32)
    view = View(vectors, [{"n": i} for i in range(6000)], indexed=5000)
    queries = vectors[5500:5520]
    found = search(view, request(queries, 1))
    assert [line[0][1] for line in found] == [view.ids[row] for row in range(5500, 5520)]
    found = search(view, request(queries, 1, {"n": {"$lt": 5510}}))
    assert [line[0][1] for line in found[:10]] == [view.ids[row] for row in range(5500, 5510)]
    assert all(line[0][0] > 0 for line in found[10:])


def test_the_short_cut_orders_ties_by_id_and_keeps_distances_in_range() -> None:
    rng = np.random.default_rng(6)
    vectors = np.repeat(rng.normal(size=(1500, 16)), 4, axis=0).astype(np.float32)
    for metric in ("l2", "cosine", "ip"):
        view = View(vectors, [None] * 6000, metric)
        single = [search(view, request(vectors[i : i + 1], 4))[0] for i in range(0, 200, 10)]
        together = search(view, request(vectors[0:200:10], 4))
        assert single == together
        for line in together:
            assert line == sorted(line)
            assert metric == "ip" or line[0][0] >= 0


class Bypassed(Exception):
    """The short cut was not taken."""


@pytest.fixture
def only_short_cuts(monkeypatch: pytest.MonkeyPatch) -> None:
    def planned(*_: object) -> None:
        raise Bypassed

    monkeypatch.setattr("vecraft_shard.search._Execution", planned)


@pytest.mark.usefixtures("only_short_cuts")
@pytest.mark.parametrize("metric", ["l2", "cosine"])
def test_old_versions_and_fresh_rows_leave_the_short_cut_open(metric: str) -> None:
    rng = np.random.default_rng(31)
    vectors = rng.normal(size=(6000, 16)).astype(np.float32)
    view = View(vectors, [None] * 6000, metric, indexed=5800)
    view.begin = np.arange(6000) + 1
    view.end[rng.random(6000) < 0.15] = 6100
    for snapshot in (7000, 5700):  # the second is older than the newest rows
        view.snapshot = snapshot
        for queries in (vectors[100:101], vectors[5650:5651], vectors[:5990:300]):
            asked = request(queries, 10, max_distance=30.0)
            found, expected = search(view, asked), view.expected(asked)
            assert [len(line) for line in found] == [len(line) for line in expected]
            assert recall(found, expected) >= 0.97
    for change in ("indexed", "alive", "snapshot"):
        before = view.indexed, view.end.copy(), view.snapshot
        view.snapshot = 7000
        match change:
            case "indexed":
                view.indexed = 5000
            case "alive":
                view.end[::3] = 6100
            case "snapshot":
                view.snapshot = 3000
        with pytest.raises(Bypassed):
            search(view, request(vectors[:1], 10))
        view.indexed, view.end, view.snapshot = before


def test_queries_among_dead_rows_leave_the_short_cut_alone() -> None:
    rng = np.random.default_rng(32)
    vectors = rng.normal(size=(6000, 16)).astype(np.float32)
    vectors[:600] *= 0.01
    view = View(vectors, [None] * 6000)
    view.end[:595] = 50
    queries = np.concatenate((vectors[1000:1020], vectors[:5], vectors[2000:2010]))
    asked = request(queries, 10)
    found, expected = search(view, asked), view.expected(asked)
    assert all(len(line) == 10 for line in found) and recall(found, expected) >= 0.97
    found = search(view, request(queries, 10, max_distance=expected[0][4][0]))
    assert [len(line) for line in found] == [
        sum(distance <= expected[0][4][0] for distance, _ in line) for line in expected
    ]


@examples(80)
@given(
    seed=st.integers(0, 2**32 - 1),
    metric=st.sampled_from(["l2", "cosine", "ip"]),
    k=st.sampled_from([1, 3, 10]),
    count=st.sampled_from([1, 7]),
    snapshot=st.integers(900, 1000),
    fresh=st.integers(0, 20),
)
def test_the_short_cut_answers_as_brute_force_does(
    seed: int, metric: str, k: int, count: int, snapshot: int, fresh: int
) -> None:
    rng = np.random.default_rng(seed)
    vectors = rng.normal(size=(500, 6)).astype(np.float32)
    vectors[rng.random(500) < 0.1] = 1  # ties, some of them dead
    view = View(vectors, [None] * 500, metric, indexed=500 - fresh)
    view.begin = np.sort(rng.integers(1, 1000, 500))
    view.end[rng.random(500) < 0.2] = rng.integers(900, 1000)
    view.end = np.maximum(view.end, view.begin + 1)
    view.snapshot = snapshot
    asked = request(rng.normal(size=(count, 6)).astype(np.float32), k, ef=200)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("vecraft_shard.short_cut._ROWS_PER_STEP", 1)
        found = search(view, asked)
    expected = view.expected(asked)
    for line, want in zip(found, expected, strict=True):
        assert line == sorted(line), "ties by record id"
        np.testing.assert_allclose([d for d, _ in line], [d for d, _ in want], rtol=1e-3, atol=1e-4)


def test_copies_of_hot_filters_stay_right_while_rows_are_added() -> None:
    rng = np.random.default_rng(8)
    vectors = rng.normal(size=(20_000, 24)).astype(np.float32)
    view = View(vectors, [{"n": i % 10} for i in range(20_000)], indexed=0)
    view.hnsw = None
    queries = rng.normal(size=(1, 24)).astype(np.float32)
    hot = view.hot_filters
    assert hot is not None
    for rows in (9000, 9000, 9000, 9500, 9501, 12_000, 20_000, 19_000):
        view.rows = view.indexed = rows
        for n in (3, 4):
            asked = request(queries, 10, {"n": n})
            assert search(view, asked) == view.expected(asked)
    assert 0 < hot.nbytes <= 4 << 20
