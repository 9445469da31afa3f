"""Search by text, and by text and vector together, against BM25 and rank fusion as their definitions say them.

The reference counts words in all documents of the model, whatever shard they are on: so agreement in every place is
independence of the number of shards.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pytest

from vecraft_data_model import DataPacket, QueryPacket
from vecraft_data_model.errors import InvalidDataException
from vecraft_data_model.filters import words
from vecraft_db.client.vecraft_client import VecraftClient

DIM = 8
VOCABULARY = ["oak", "elm", "ash", "fir", "yew", "naïve", "Birch", "pine", "larch", "rowan", "alder", "hazel"]
QUERIES = ["oak", "elm ash", "NAIVE birch oak", "hazel nowhere", "oak oak oak pine", "nowhere"]

Record = tuple[list[float], dict[str, Any], Any]


def random_record(rng: random.Random, number: int) -> Record:
    length = rng.choice((0, 1, 3, 8, 30))
    text: Any = " ".join(rng.choices(VOCABULARY, weights=range(len(VOCABULARY), 0, -1), k=length))
    if number % 17 == 0:
        text = None
    elif number % 19 == 0:
        text = {"kind": "oak"}
    return [rng.gauss(0, 1) for _ in range(DIM)], {"n": number, "even": number % 2 == 0}, text


def model_of(count: int, seed: int) -> dict[str, Record]:
    rng = random.Random(seed)
    return {f"r{number:03d}": random_record(rng, number) for number in range(count)}


def write(client: VecraftClient, collection: str, model: Mapping[str, Record]) -> None:
    client.upsert(collection, [DataPacket(record_id, *record) for record_id, record in model.items()])


# ------------------------------------------------------------------------------------------------------ reference


def bm25(model: Mapping[str, Record], query: str) -> dict[str, float]:
    """Record id → score, of all that have one of the words."""
    texts = {i: found for i, (_, _, text) in model.items() if isinstance(text, str) and (found := words(text))}
    mean = sum(map(len, texts.values())) / len(texts) if texts else 1.0
    scores: dict[str, float] = {}
    for word in sorted(set(words(query))):
        having = [i for i, found in texts.items() if word in found]
        idf = math.log(1 + (len(texts) - len(having) + 0.5) / (len(having) + 0.5))
        for i in having:
            times, length = texts[i].count(word), len(texts[i])
            scores[i] = scores.get(i, 0.0) + idf * times * 2.2 / (times + 1.2 * (0.25 + 0.75 * length / mean))
    return {i: float(np.float32(score)) for i, score in scores.items()}


def distance(vector: list[float], query: list[float]) -> float:
    stored, asked = (np.array(v, np.float32).astype(np.float64) for v in (vector, query))
    return float(np.float32(((stored - asked) ** 2).sum()))


def expected(
    model: Mapping[str, Record],
    text: str,
    vector: list[float] | None = None,
    k: int = 10,
    fusion: Any = "rrf",
    keep: Callable[[Record], bool] = lambda record: True,
    max_distance: float = math.inf,
) -> list[tuple[str, float]]:
    """(record id, score), best first."""
    scores = {i: score for i, score in bm25(model, text).items() if keep(model[i])}
    if vector is None:
        return sorted(scores.items(), key=lambda pair: (-pair[1], pair[0]))[:k]
    distances = {i: distance(record[0], vector) for i, record in model.items() if keep(record)}
    distances = {i: d for i, d in distances.items() if d <= max_distance}
    scores = {i: score for i, score in scores.items() if i in distances}
    depth = max(4 * k, 50)
    by_text = sorted(scores, key=lambda i: (-scores[i], i))[:depth]
    by_vector = sorted(distances, key=lambda i: (distances[i], i))[:depth]
    candidates = {*by_text, *by_vector}
    if fusion == "rrf":
        joint = {
            i: sum(1 / (61 + ranking.index(i)) for ranking in (by_vector, by_text) if i in ranking) for i in candidates
        }
    else:
        near, far = (f((distances[i] for i in candidates), default=0.0) for f in (min, max))
        top = max((scores.get(i, 0.0) for i in candidates), default=0.0) or 1.0
        joint = {
            i: fusion[0] * (far - distances[i]) / (far - near or 1.0) + fusion[1] * scores.get(i, 0.0) / top
            for i in candidates
        }
    return sorted(joint.items(), key=lambda pair: (-pair[1], distances[pair[0]], pair[0]))[:k]


def check(hits: list[Any], wanted: list[tuple[str, float]], near: bool = False) -> None:
    assert [hit.record_id for hit in hits] == [record_id for record_id, _ in wanted]
    np.testing.assert_allclose([hit.score for hit in hits], [score for _, score in wanted], rtol=1e-5)
    assert all(math.isnan(hit.distance) is not near for hit in hits)


@pytest.fixture
def trees(client: VecraftClient, make: Callable[..., str]) -> tuple[str, dict[str, Record]]:
    """A collection, and what is in it."""
    collection, model = make(dim=DIM), model_of(120, 1)
    write(client, collection, model)
    return collection, model


# ---------------------------------------------------------------------------------------------------------- tests


def test_ranks_texts_as_bm25_says(client: VecraftClient, trees: tuple[str, dict[str, Record]]) -> None:
    collection, model = trees
    for _ in range(2):
        for text in QUERIES:
            check(client.search(collection, QueryPacket(None, query_text=text)), expected(model, text))
        client.checkpoint(index=True)


@pytest.mark.parametrize("fusion", ["rrf", {"vector": 0.6, "text": 0.4}, (0.0, 1.0), (1, 0)])
def test_joins_both_rankings(client: VecraftClient, trees: tuple[str, dict[str, Record]], fusion: Any) -> None:
    collection, model = trees
    weights = (fusion["vector"], fusion["text"]) if isinstance(fusion, dict) else fusion
    rng = random.Random(5)
    for text in QUERIES:
        for k in (3, 40):
            vector = [rng.gauss(0, 1) for _ in range(DIM)]
            hits = client.search(collection, QueryPacket(vector, k, exact=True, query_text=text, fusion=fusion))
            check(hits, expected(model, text, vector, k, weights), near=True)
            for hit in hits:
                record = model[hit.record_id]
                assert hit.distance == pytest.approx(distance(record[0], vector), rel=1e-5)
                assert (hit.metadata, hit.document) == record[1:]


def test_filters_choose_and_do_not_change_scores(
    client: VecraftClient, trees: tuple[str, dict[str, Record]]
) -> None:
    collection, model = trees
    vector = [1.0] * DIM
    cases: list[tuple[dict[str, Any], Callable[[Record], bool]]] = [
        ({"where": {"even": True}}, lambda record: record[1]["even"]),
        ({"where_document": {"$matches": "oak"}}, lambda r: isinstance(r[2], str) and "oak" in words(r[2])),
        (
            {"where": {"n": {"$lt": 30}}, "where_document": {"$contains": "ash"}},
            lambda r: r[1]["n"] < 30 and isinstance(r[2], str) and "ash" in r[2],
        ),
        ({"where": {"n": -1}}, lambda record: False),
    ]
    for filters, keep in cases:
        for text in QUERIES[:3]:
            packet = QueryPacket(None, query_text=text, **filters)
            check(client.search(collection, packet), expected(model, text, keep=keep))
            packet = QueryPacket(vector, exact=True, query_text=text, **filters)
            check(client.search(collection, packet), expected(model, text, vector, keep=keep), near=True)


def test_max_distance_leaves_out_before_ranking(client: VecraftClient, trees: tuple[str, dict[str, Record]]) -> None:
    collection, model = trees
    vector = [0.0] * DIM
    for limit in (3.0, 6.0, 0.0):
        packet = QueryPacket(vector, k=4, exact=True, max_distance=limit, query_text="oak elm")
        wanted = expected(model, "oak elm", vector, 4, max_distance=limit)
        check(client.search(collection, packet), wanted, near=True)


def test_follows_updates_deletes_and_snapshots(client: VecraftClient, trees: tuple[str, dict[str, Record]]) -> None:
    collection, before = trees
    now = dict(before)
    rng = random.Random(9)
    with client.snapshot() as earlier:
        changed = {i: random_record(rng, n) for n, i in enumerate(before) if n % 3 == 0}
        gone = [i for n, i in enumerate(before) if n % 3 == 1]
        write(client, collection, changed)
        client.delete_many(collection, gone)
        now = {**now, **changed, **{f"new{n}": random_record(rng, n) for n in range(20)}}
        write(client, collection, {i: record for i, record in now.items() if i.startswith("new")})
        now = {i: record for i, record in now.items() if i not in gone}
        for _ in range(2):
            for text in QUERIES:
                packet = QueryPacket(None, query_text=text)
                check(client.search(collection, packet), expected(now, text))
                check(earlier.search(collection, packet), expected(before, text))
                past = client.search(collection, packet, as_of=earlier.timestamp)
                assert past == earlier.search(collection, packet)
            client.checkpoint(index=True)


@pytest.mark.parametrize("fusion", ["rrf", (0.3, 0.7)])
def test_a_transaction_ranks_what_it_sees(
    client: VecraftClient, trees: tuple[str, dict[str, Record]], fusion: Any
) -> None:
    collection, before = trees
    rng = random.Random(11)
    vector = [0.2] * DIM
    with client.transaction() as tx:
        check(tx.search(collection, QueryPacket(None, query_text="oak elm")), expected(before, "oak elm"))
        gone = [hit.record_id for hit in tx.search(collection, QueryPacket(None, query_text="oak", k=5))]
        for record_id in gone:
            tx.delete(collection, record_id)
        changed = {i: random_record(rng, n) for n, i in enumerate(before) if n % 7 == 2 and i not in gone}
        changed |= {"new": ([0.2] * DIM, {"n": 500, "even": True}, "oak elm oak"), "absent": (vector, {}, None)}
        tx.upsert(collection, [DataPacket(i, *record) for i, record in changed.items()])
        tx.delete(collection, "never there")
        now = {i: record for i, record in before.items() if i not in gone} | changed
        seen = []
        for text in QUERIES:
            packet = QueryPacket(None, query_text=text)
            check(tx.search(collection, packet), expected(now, text))
            packet = QueryPacket(vector, 8, exact=True, query_text=text, fusion=fusion)
            seen.append(tx.search(collection, packet))
            check(seen[-1], expected(now, text, vector, 8, fusion), near=True)
            packet = QueryPacket(vector, 8, {"even": True}, exact=True, query_text=text, max_distance=9.0)
            wanted = expected(now, text, vector, 8, keep=lambda r: r[1].get("even") is True, max_distance=9.0)
            check(tx.search(collection, packet), wanted, near=True)
    for text, inside in zip(QUERIES, seen, strict=True):
        packet = QueryPacket(vector, 8, exact=True, query_text=text, fusion=fusion)
        assert client.search(collection, packet) == inside, "what it saw is what it left"


def test_a_walk_of_the_graph_finds_nearly_the_same(client: VecraftClient, make: Callable[..., str]) -> None:
    collection, model = make(dim=DIM), model_of(1500, 3)
    write(client, collection, model)
    client.checkpoint(index=True)
    vector = [0.1] * DIM
    exact = client.search(collection, QueryPacket(vector, exact=True, query_text="yew larch"))
    walked = client.search(collection, QueryPacket(vector, ef=200, query_text="yew larch"))
    assert len({hit.record_id for hit in exact} & {hit.record_id for hit in walked}) >= 9


def test_carries_what_is_included(client: VecraftClient, trees: tuple[str, dict[str, Record]]) -> None:
    collection, model = trees
    for vector in (None, [0.5] * DIM):
        bare = client.search(collection, QueryPacket(vector, query_text="oak", include=()))
        whole = client.search(
            collection, QueryPacket(vector, query_text="oak", include=("vector", "metadata", "document"))
        )
        assert [hit.record_id for hit in bare] == [hit.record_id for hit in whole]
        assert all(hit.metadata is None and hit.document is None and hit.vector is None for hit in bare)
        for hit in whole:
            np.testing.assert_allclose(hit.vector, model[hit.record_id][0], rtol=1e-6)
            assert hit.data_packet.metadata == model[hit.record_id][1]


def test_a_collection_without_texts_has_nothing_to_rank(client: VecraftClient, collection: str) -> None:
    assert client.search(collection, QueryPacket(None, query_text="oak")) == []
    client.upsert(collection, [DataPacket("a", [1, 0, 0, 0], None, {"text": "oak"}), DataPacket("b", [2, 0, 0, 0])])
    assert client.search(collection, QueryPacket(None, query_text="oak")) == []
    hits = client.search(collection, QueryPacket([0, 0, 0, 0], query_text="oak"))
    assert [hit.record_id for hit in hits] == ["a", "b"]


def test_explains_how_each_shard_ranked(client: VecraftClient, trees: tuple[str, dict[str, Record]]) -> None:
    collection, model = trees
    for vector in (None, [0.5] * DIM):
        answer: Any = client.search(collection, QueryPacket(vector, query_text="oak"), explain=True)
        texts = [text for _, _, text in model.values() if isinstance(text, str) and text]
        assert all(plan["texts"] == len(texts) for plan in answer.explain.values()), "of all shards together"
        assert sum(plan["texts_found"] for plan in answer.explain.values()) == sum("oak" in words(t) for t in texts)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"query_text": ""}, "query_text must have 1 to"),
        ({"query_text": "… —"}, "query_text must have 1 to"),
        ({"query_text": 3}, "query_text must be a string"),
        ({"query_text": " ".join(f"w{i}" for i in range(1025))}, "query_text must have 1 to"),
        ({"query_text": "oak", "fusion": "sum"}, "fusion must be"),
        ({"query_text": "oak", "fusion": (1, -1)}, "fusion must be"),
        ({"query_text": "oak", "fusion": (0, 0)}, "fusion must be"),
        ({"query_text": "oak", "fusion": {"vector": 1}}, "fusion must be"),
        ({"query_text": "oak", "fusion": (math.nan, 1)}, "fusion must be"),
        ({"fusion": (0.5, 0.5)}, "fusion joins"),
        ({"query_text": "oak", "group_by": "n"}, "group_by goes with a vector alone"),
    ],
)
def test_refuses_what_makes_no_sense(
    client: VecraftClient, guarded: str, arguments: dict[str, Any], message: str
) -> None:
    with pytest.raises(InvalidDataException, match=message):
        client.search(guarded, QueryPacket([1.0] * 4, **arguments))


def test_a_text_alone_has_no_distance(client: VecraftClient, guarded: str) -> None:
    with pytest.raises(InvalidDataException, match="needs a query_vector"):
        client.search(guarded, QueryPacket(None, query_text="text", max_distance=1.0))
    with pytest.raises(InvalidDataException):
        client.search(guarded, QueryPacket(None))
