"""Search: exact answers where they are asked for, filters that never cost a neighbour, parts as included."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from vecraft_data_model import DataPacket, QueryPacket
from vecraft_db.client.vecraft_client import VecraftClient

DIM, ROWS = 12, 400
WORDS = ["alpha", "Beta", "gamma", "delta", "naïve", "epsilon"]


def metadata_of(i: int) -> dict[str, Any]:
    return {
        "i": i,
        "half": i / 2,
        "even": i % 2 == 0,
        "word": WORDS[i % len(WORDS)],
        "tags": [WORDS[i % 3], i % 5],
        "when": datetime(2024, 1, 1 + i % 28, tzinfo=UTC).isoformat(),
        "nested": {"level": {"n": i % 7}},
        **({"rare": True} if i % 100 == 0 else {}),
    }


def document_of(i: int) -> str:
    return f"{WORDS[i % 6]} {WORDS[(i + 1) % 6]} number {i}"


VECTORS: npt.NDArray[np.float32] = np.random.default_rng(7).normal(size=(ROWS, DIM)).astype(np.float32)
QUERIES: npt.NDArray[np.float32] = np.random.default_rng(8).normal(size=(6, DIM)).astype(np.float32)


def exact(metric: str, query: npt.NDArray[np.float32]) -> npt.NDArray[np.float64]:
    """All distances, by definition, in double precision."""
    rows, q = VECTORS.astype(np.float64), query.astype(np.float64)
    if metric == "l2":
        return np.asarray(((rows - q) ** 2).sum(axis=1))
    products = rows @ q
    if metric == "ip":
        return np.asarray(1 - products)
    return np.asarray(1 - products / (np.linalg.norm(rows, axis=1) * np.linalg.norm(q)))


@pytest.fixture(scope="module")
def filled() -> dict[str, str]:
    """metric → collection, of the places that were filled already."""
    return {}


@pytest.fixture
def data(
    client: VecraftClient, filled: dict[str, str], where_it_runs: Any, make: Callable[..., str]
) -> Callable[[str], str]:
    """Return a collection of that metric with all records; shared by the tests of this module in one place."""

    def collection(metric: str = "l2") -> str:
        key = f"{where_it_runs.name}/{metric}"
        if key not in filled:
            filled[key] = make(dim=DIM, metric=metric)
            client.upsert(
                filled[key],
                ids=[f"r{i:03d}" for i in range(ROWS)],
                vectors=VECTORS,
                metadatas=[metadata_of(i) for i in range(ROWS)],
                documents=[document_of(i) for i in range(ROWS)],
            )
        return filled[key]

    return collection


@pytest.mark.parametrize("metric", ["l2", "cosine", "ip"])
def test_exact_search_is_exact(client: VecraftClient, data: Callable[[str], str], metric: str) -> None:
    for query in QUERIES:
        distances = exact(metric, query)
        order = np.argsort(distances, kind="stable")[:10]
        hits = client.search(data(metric), QueryPacket(query, k=10, exact=True))
        assert [hit.record_id for hit in hits] == [f"r{i:03d}" for i in order]
        np.testing.assert_allclose([hit.distance for hit in hits], distances[order], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("metric", ["l2", "cosine", "ip"])
def test_search_finds_the_nearest_also_after_indexing(
    client: VecraftClient, data: Callable[[str], str], metric: str
) -> None:
    name = data(metric)
    for _ in range(2):
        found = 0
        for query in QUERIES:
            nearest = {f"r{i:03d}" for i in np.argsort(exact(metric, query))[:10]}
            hits = client.search(name, QueryPacket(query, k=10, ef=200))
            assert [hit.distance for hit in hits] == sorted(hit.distance for hit in hits)
            found += len(nearest & {hit.record_id for hit in hits})
        assert found >= 0.95 * 10 * len(QUERIES)
        client.checkpoint(index=True)


FILTERS: list[tuple[dict[str, Any], Callable[[int], bool]]] = [
    ({"i": 17}, lambda i: i == 17),
    ({"rare": True}, lambda i: i % 100 == 0),
    ({"even": True, "i": {"$lt": 50}}, lambda i: i % 2 == 0 and i < 50),
    ({"word": ["alpha", "Beta"]}, lambda i: i % 6 < 2),
    ({"word": {"$nin": ["alpha", "Beta", "gamma"]}}, lambda i: i % 6 > 2),
    ({"half": {"$gte": 10, "$lte": 20.5}}, lambda i: 20 <= i <= 41),
    ({"rare": {"$exists": False}}, lambda i: i % 100 != 0),
    ({"tags": {"$contains": 3}}, lambda i: i % 5 == 3),
    ({"nested.level.n": {"$ne": 0}}, lambda i: i % 7 != 0),
    ({"when": {"$gt": datetime(2024, 1, 20, tzinfo=UTC)}}, lambda i: i % 28 > 19),
    ({"$or": [{"i": {"$lt": 5}}, {"$not": {"i": {"$lt": 395}}}]}, lambda i: i < 5 or i >= 395),
    ({"i": "17"}, lambda i: False),
    ({"even": 1}, lambda i: False),
]


@pytest.mark.parametrize(("where", "matches"), FILTERS, ids=[str(where)[:40] for where, _ in FILTERS])
def test_a_filtered_search_returns_the_nearest_of_those_that_match(
    client: VecraftClient, data: Callable[[str], str], where: dict[str, Any], matches: Callable[[int], bool]
) -> None:
    name = data("l2")
    matching = [i for i in range(ROWS) if matches(i)]
    assert client.count(name, where) == len(matching)
    for query in QUERIES[:3]:
        distances = exact("l2", query)
        nearest = sorted(matching, key=lambda i: distances[i])[:10]
        hits = client.search(name, QueryPacket(query, k=10, where=where, exact=True))
        assert [hit.record_id for hit in hits] == [f"r{i:03d}" for i in nearest]
        approximate = client.search(name, QueryPacket(query, k=10, where=where))
        assert len(approximate) == len(nearest)
        assert all(matches(hit.metadata["i"]) for hit in approximate if hit.metadata)


@pytest.mark.parametrize(
    ("where_document", "matches"),
    [
        ({"$contains": "number 17"}, lambda text: "number 17" in text),
        ({"$contains": "ta"}, lambda text: "ta" in text),
        ({"$contains": "a"}, lambda text: "a" in text),
        ({"$not_contains": "a"}, lambda text: "a" not in text),
        ({"$contains": "beta"}, lambda text: "beta" in text),
        ({"$matches": "BETA gamma"}, lambda text: {"beta", "gamma"} <= set(text.lower().split())),
        ({"$matches": "naive"}, lambda text: "naïve" in text),
        (
            {"$and": [{"$contains": "Beta"}, {"$not": {"$contains": "gamma"}}]},
            lambda text: "Beta" in text and "gamma" not in text,
        ),
        ({"$contains": '" OR * NEAR('}, lambda text: False),
        ({"$matches": '" OR * NEAR('}, lambda text: False),
    ],
    ids=str,
)  # fmt: skip
def test_documents_are_filtered_by_their_text(
    client: VecraftClient, data: Callable[[str], str], where_document: dict[str, Any], matches: Callable[[str], bool]
) -> None:
    name = data("l2")
    for _ in range(2):
        wanted = [f"r{i:03d}" for i in range(ROWS) if matches(document_of(i))]
        assert client.count(name, where_document=where_document) == len(wanted)
        assert [packet.record_id for packet in client.scan(name, where_document=where_document)] == wanted
        client.checkpoint()


def test_json_documents_are_filtered_by_their_fields(client: VecraftClient, collection: str) -> None:
    documents: list[Any] = [{"title": "a", "pages": 10}, {"title": "b", "pages": 20}, "pages", None]
    client.upsert(collection, ids=list("abcd"), vectors=np.ones((4, 4)), documents=documents)
    assert [packet.record_id for packet in client.scan(collection, where_document={"pages": {"$gt": 10}})] == ["b"]
    assert client.count(collection, where_document={"$or": [{"title": "a"}, {"pages": 20}]}) == 2


def test_both_filters_hold_together(client: VecraftClient, data: Callable[[str], str]) -> None:
    where, where_document = {"i": {"$lt": 100}}, {"$contains": "alpha"}
    wanted = [i for i in range(100) if "alpha" in document_of(i)]
    assert client.count(data("l2"), where, where_document) == len(wanted)
    hits = client.search(data("l2"), QueryPacket(QUERIES[0], 100, where, where_document, exact=True))
    assert {hit.record_id for hit in hits} == {f"r{i:03d}" for i in wanted}


def test_search_many_answers_each_query_as_search_does(client: VecraftClient, data: Callable[[str], str]) -> None:
    name = data("cosine")
    many = client.search_many(name, QUERIES, 5, exact=True, where={"even": True})
    for query, hits in zip(QUERIES, many, strict=True):
        assert hits == client.search(name, QueryPacket(query, k=5, exact=True, where={"even": True}))
    assert [len(hits) for hits in client.search_many(name, list(QUERIES), 3)] == [3] * len(QUERIES)
    assert client.search_many(name, []) == []


def test_results_carry_what_was_included(client: VecraftClient, data: Callable[[str], str]) -> None:
    name = data("l2")
    plain = client.search(name, QueryPacket(QUERIES[0], k=3, exact=True))
    for hit in plain:
        i = int(hit.record_id[1:])
        assert hit.metadata == metadata_of(i)
        assert hit.document == document_of(i)
        assert hit.vector is None
    nothing = client.search(name, QueryPacket(QUERIES[0], k=3, exact=True, include=[]))
    assert [(hit.record_id, hit.distance) for hit in nothing] == [(hit.record_id, hit.distance) for hit in plain]
    assert all(hit.metadata is None and hit.document is None and hit.vector is None for hit in nothing)
    all_parts = ["vector", "metadata", "document"]
    for hit in client.search(name, QueryPacket(QUERIES[0], k=3, exact=True, include=all_parts)):
        i = int(hit.record_id[1:])
        np.testing.assert_array_equal(hit.vector, VECTORS[i])
        packet = hit.data_packet
        assert isinstance(packet, DataPacket)
        assert packet.validate_checksum()
        assert packet.metadata == metadata_of(i)


def test_max_distance_leaves_out_what_is_farther(client: VecraftClient, data: Callable[[str], str]) -> None:
    distances = np.sort(exact("l2", QUERIES[0]))
    limit = float(distances[6] + distances[7]) / 2
    hits = client.search(data("l2"), QueryPacket(QUERIES[0], k=20, exact=True, max_distance=limit))
    assert len(hits) == 7
    assert client.search(data("l2"), QueryPacket(QUERIES[0], k=5, max_distance=-1.0)) == []


@pytest.mark.parametrize("metric", ["l2", "cosine", "ip"])
def test_max_distance_holds_wherever_it_is_asked(
    client: VecraftClient, data: Callable[[str], str], metric: str
) -> None:
    name = data(metric)
    every = client.search(name, QueryPacket(QUERIES[1], k=ROWS, exact=True, include=[]))
    limit = every[11].distance  # negative for ip, where there is no smallest distance
    wanted = [hit.record_id for hit in every[:12]]
    for exactly in (True, False):
        asked: dict[str, Any] = {"exact": exactly, "ef": ROWS, "max_distance": limit}
        for k, where, expected in (
            (30, None, wanted),
            (5, None, wanted[:5]),
            (30, {"even": True}, [i for i in wanted if int(i[1:]) % 2 == 0]),
        ):
            hits = client.search(name, QueryPacket(QUERIES[1], k, where, **asked))
            assert [hit.record_id for hit in hits] == expected
        (hits,) = client.search_many(name, QUERIES[1:2], 30, exact=exactly, ef=ROWS, max_distance=limit)
        assert [hit.record_id for hit in hits] == wanted
    with client.transaction() as tx:
        tx.delete(name, wanted[0])
        tx.insert(name, DataPacket("near", QUERIES[1] * 100 if metric == "ip" else QUERIES[1]))
        tx.insert(name, DataPacket("far", -QUERIES[1]))
        packet = QueryPacket(QUERIES[1], k=30, exact=True, max_distance=limit)
        assert [hit.record_id for hit in tx.search(name, packet)] == ["near", *wanted[1:]]
        tx.abort()


@pytest.mark.parametrize("metric", ["l2", "cosine", "ip"])
def test_half_precision_is_searched_as_it_is_stored(
    client: VecraftClient, make: Callable[..., str], metric: str
) -> None:
    name = make(dim=DIM, metric=metric, vector_type="float16")
    ids = [f"r{i:03d}" for i in range(ROWS)]
    client.upsert(name, ids=ids, vectors=VECTORS, metadatas=[{"i": i} for i in range(ROWS)])
    stored = VECTORS.astype(np.float16).astype(np.float64)
    for _ in range(2):
        for query in QUERIES[:3]:
            q = query.astype(np.float64)
            products = stored @ q
            lengths = np.linalg.norm(stored, axis=1) * np.linalg.norm(q)
            squares = ((stored - q) ** 2).sum(axis=1)
            distances = {"l2": squares, "ip": 1 - products, "cosine": 1 - products / lengths}[metric]
            order = np.argsort(distances, kind="stable")
            hits = client.search(name, QueryPacket(query, exact=True, include=["vector"]))
            assert [hit.record_id for hit in hits] == [f"r{i:03d}" for i in order[:10]]
            np.testing.assert_allclose([hit.distance for hit in hits], distances[order[:10]], rtol=1e-5, atol=1e-6)
            np.testing.assert_array_equal([hit.vector for hit in hits], stored[order[:10]].astype(np.float32))
            few = [i for i in order if i < 40][:10]
            hits = client.search(name, QueryPacket(query, where={"i": {"$lt": 40}}))
            assert [hit.record_id for hit in hits] == [f"r{i:03d}" for i in few]
            (hits,) = client.search_many(name, query[None], 10, ef=ROWS)
            assert len({hit.record_id for hit in hits} & {f"r{i:03d}" for i in order[:10]}) >= 9
        client.checkpoint(index=True)
    with client.transaction() as tx:
        tx.insert(name, DataPacket("mine", QUERIES[0]))
        hits = tx.search(name, QueryPacket(QUERIES[0] * (9 if metric == "ip" else 1), k=1, exact=True))
        assert metric == "ip" or [hit.record_id for hit in hits] == ["mine"]
        tx.abort()


@pytest.mark.parametrize("include", [["vector"], ["metadata"], ["document", "vector"], ("document",), []])
def test_every_way_to_search_carries_the_same_parts(
    client: VecraftClient, data: Callable[[str], str], include: Any
) -> None:
    name = data("l2")

    def check(hits: list[Any]) -> None:
        for hit in hits:
            i = int(hit.record_id[1:])
            assert hit.metadata == (metadata_of(i) if "metadata" in include else None)
            assert hit.document == (document_of(i) if "document" in include else None)
            assert (hit.vector is not None) == ("vector" in include)
            if hit.vector is not None:
                np.testing.assert_array_equal(hit.vector, VECTORS[i])

    check(client.search(name, QueryPacket(QUERIES[2], include=include)))
    check(client.search(name, QueryPacket(QUERIES[2], include=include, query_text="alpha", k=4)))
    check(client.search(name, QueryPacket(QUERIES[2], include=include, group_by="word")))
    for hits in client.search_many(name, QUERIES, 3, include=include):
        check(hits)
    with client.snapshot() as view:
        check(view.search(name, QueryPacket(QUERIES[2], include=include)))
    with client.transaction() as tx:
        tx.insert(name, DataPacket("r007", VECTORS[7], metadata_of(7), document_of(7)))
        check(tx.search(name, QueryPacket(VECTORS[7], include=include)))
        check(tx.search(name, QueryPacket(VECTORS[7], include=include, query_text="alpha")))
        check(tx.search_many(name, QUERIES, 3, include=include, group_by="word")[0])
        tx.abort()


def test_more_neighbours_than_records(client: VecraftClient, data: Callable[[str], str]) -> None:
    for exactly in (True, False):
        hits = client.search(data("l2"), QueryPacket(QUERIES[0], k=2**20, exact=exactly, include=[]))
        assert len(hits) == ROWS
        assert len({hit.record_id for hit in hits}) == ROWS


def test_ties_are_broken_by_id_however_records_are_spread(client: VecraftClient, collection: str) -> None:
    ids = [f"{i:02d}" for i in range(30)]
    client.upsert(collection, ids=ids[::-1], vectors=np.ones((30, 4)))
    for exactly in (True, False):
        hits = client.search(collection, QueryPacket([1, 1, 1, 1], k=10, exact=exactly))
        assert [hit.record_id for hit in hits] == ids[:10]
        assert {hit.distance for hit in hits} == {0.0}


def test_an_empty_collection_has_no_neighbours(client: VecraftClient, collection: str) -> None:
    assert client.search(collection, QueryPacket([1, 2, 3, 4])) == []
    assert client.search_many(collection, [[1, 2, 3, 4]] * 2) == [[], []]
    assert list(client.scan(collection)) == []


def test_deleted_and_replaced_records_leave_no_trace(client: VecraftClient, collection: str) -> None:
    client.upsert(collection, ids=[f"r{i}" for i in range(50)], vectors=np.ones((50, 4)) * np.arange(50)[:, None])
    client.checkpoint(index=True)
    client.delete_many(collection, [f"r{i}" for i in range(0, 50, 2)])
    client.insert(collection, DataPacket("r1", [100, 100, 100, 100]))
    for exactly in (True, False):
        hits = client.search(collection, QueryPacket([0, 0, 0, 0], k=50, exact=exactly))
        assert [hit.record_id for hit in hits] == [f"r{i}" for i in range(3, 50, 2)] + ["r1"]


@pytest.mark.needs("explain")
def test_a_search_can_say_how_it_went(client: VecraftClient, data: Callable[[str], str]) -> None:
    hits = client.search(data("l2"), QueryPacket(QUERIES[0], where={"i": 1}), explain=True)
    assert len(hits) == 1
    explain = hits.explain  # type: ignore[attr-defined]
    assert sum(plan["rows"] for plan in explain.values()) >= ROWS
    assert sum(plan["matching"] for plan in explain.values()) == sum(plan["found"] for plan in explain.values()) == 1
    searched = [plan for plan in explain.values() if plan["plan"] != "nothing"]
    assert searched and all(plan["estimated_us"]["exact"] > 0 for plan in searched)
    assert sum(plan["scanned"] + plan["candidates"] for plan in searched) >= 1


def test_searches_of_views_can_say_how_they_went(client: VecraftClient, data: Callable[[str], str]) -> None:
    collection = data("l2")
    query = QueryPacket(QUERIES[0], k=4)
    with client.snapshot() as view, client.transaction() as tx:
        nearest = view.search(collection, query)
        tx.delete(collection, nearest[0].record_id)
        for hits, expected in ((view.search(collection, query, explain=True), nearest), (
            tx.search(collection, query, explain=True), tx.search(collection, query),
        )):  # fmt: skip
            assert hits == expected
            explain = hits.explain  # type: ignore[attr-defined]
            assert sum(plan["rows"] for plan in explain.values()) >= ROWS
        tx.abort()


@pytest.mark.needs("partial")
def test_a_partial_search_names_what_is_missing(client: VecraftClient, data: Callable[[str], str]) -> None:
    hits = client.search(data("l2"), QueryPacket(QUERIES[0], k=4), partial=True)
    assert len(hits) == 4
    assert hits.missing == ()  # type: ignore[attr-defined]
