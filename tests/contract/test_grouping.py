"""Searches that group by a metadata field: exactly the best, or the best few, of each of the k best groups."""

from __future__ import annotations

import json
import random
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pytest

from vecraft_data_model import DataPacket, QueryPacket
from vecraft_data_model.errors import InvalidDataException
from vecraft_db.client.vecraft_client import VecraftClient

DIM = 6
VALUES: list[Any] = ["a", "b", "c", 1, 1.0, "1", True, False, None, 2.5, [1, 2], {"x": 1}, "d", "e", 2**60]
Record = tuple[list[float], dict[str, Any] | None]


def random_record(rng: random.Random) -> Record:
    if rng.random() < 0.1:
        return [rng.gauss(0, 1) for _ in range(DIM)], None
    metadata: dict[str, Any] = {"n": rng.randrange(8)}
    if rng.random() < 0.8:
        metadata["group"] = rng.choice(VALUES)
        metadata["deep"] = {"n": rng.randrange(30)}
    # Most records of one group lie together, so that one group can be nearer than all others.
    centre = 0.0 if metadata.get("group") == "a" else 2.0
    return [rng.gauss(centre, 1) for _ in range(DIM)], metadata


def write(client: VecraftClient, collection: str, model: Mapping[str, Record]) -> None:
    client.upsert(collection, [DataPacket(i, vector, metadata) for i, (vector, metadata) in model.items()])


def key(value: Any) -> str:
    """One spelling per group: kinds never mix, numbers that are equal are one."""
    if isinstance(value, float) and value == int(value):
        value = int(value)
    return json.dumps(value, sort_keys=True)


def expected(
    model: Mapping[str, Record],
    query: list[float],
    k: int,
    field: str = "group",
    keep: Callable[[dict[str, Any]], bool] = lambda metadata: True,
    size: int = 1,
) -> list[str]:
    ranked = []
    for record_id, (vector, metadata) in model.items():
        if metadata is not None and keep(metadata):
            value: Any = metadata
            for part in field.split("."):
                value = value[part] if isinstance(value, dict) and part in value else ...
            if value is not ...:
                difference = np.array(vector, np.float32).astype(np.float64) - np.array(query, np.float32)
                ranked.append((float(np.float32((difference**2).sum())), record_id, key(value)))
    ranked.sort()
    best = list(dict.fromkeys(group for _, _, group in ranked))[:k]
    found = []
    for _, record_id, group in ranked:
        if group in best and sum(of == group for _, of in found) < size:
            found.append((record_id, group))
    return [record_id for record_id, _ in found]


def ids(hits: list[Any]) -> list[str]:
    assert [hit.distance for hit in hits] == sorted(hit.distance for hit in hits)
    return [hit.record_id for hit in hits]


@pytest.fixture
def grouped(client: VecraftClient, make: Callable[..., str]) -> tuple[str, dict[str, Record]]:
    rng = random.Random(4)
    collection, model = make(dim=DIM), {f"r{n:03d}": random_record(rng) for n in range(300)}
    write(client, collection, model)
    return collection, model


@pytest.mark.parametrize("field", ["group", "deep.n", "deep", "n", "absent"])
def test_the_best_of_each_of_the_best_groups(
    client: VecraftClient, grouped: tuple[str, dict[str, Record]], field: str
) -> None:
    collection, model = grouped
    rng = random.Random(1)
    for _ in range(2):
        for k in (1, 5, 100):
            query = [rng.gauss(0, 1) for _ in range(DIM)]
            hits = client.search(collection, QueryPacket(query, k, exact=True, group_by=field))
            assert ids(hits) == expected(model, query, k, field)
            for hit in hits:
                assert hit.metadata == model[hit.record_id][1]
        client.checkpoint(index=True)


@pytest.mark.parametrize("field", ["group", "deep.n", "n"])
def test_the_best_few_of_each_of_the_best_groups(
    client: VecraftClient, grouped: tuple[str, dict[str, Record]], field: str
) -> None:
    collection, model = grouped
    rng = random.Random(3)
    for _ in range(2):
        for k, size in ((1, 2), (5, 3), (3, 40), (100, 2)):
            query = [rng.gauss(0, 1) for _ in range(DIM)]
            packet = QueryPacket(query, k, exact=True, group_by=field, group_size=size)
            hits = client.search(collection, packet)
            assert ids(hits) == expected(model, query, k, field, size=size)
            for hit in hits:
                assert hit.metadata == model[hit.record_id][1]
        client.checkpoint(index=True)


def test_a_group_of_few_is_whole_and_others_are_full(
    client: VecraftClient, grouped: tuple[str, dict[str, Record]]
) -> None:
    collection, model = grouped
    query = [0.2] * DIM
    packet = QueryPacket(
        query, 4, where={"n": {"$lt": 3}}, exact=True, group_by="group", group_size=5, include=["vector"]
    )
    hits = client.search(collection, packet)
    assert ids(hits) == expected(model, query, 4, keep=lambda m: m["n"] < 3, size=5)
    for hit in hits:
        assert hit.vector is not None and np.array_equal(hit.vector, np.array(model[hit.record_id][0], np.float32))
    limit = hits[6].distance
    near = client.search(
        collection,
        QueryPacket(
            query, 4, where={"n": {"$lt": 3}}, exact=True, group_by="group", group_size=5, max_distance=limit
        ),
    )
    assert ids(near) == ids(hits[:7])


def test_only_what_matches_is_grouped(client: VecraftClient, grouped: tuple[str, dict[str, Record]]) -> None:
    collection, model = grouped
    query = [0.0] * DIM
    packet = QueryPacket(query, 20, where={"n": {"$lt": 3}}, exact=True, group_by="group")
    assert ids(client.search(collection, packet)) == expected(model, query, 20, keep=lambda m: m["n"] < 3)
    packet = QueryPacket(query, 20, where={"n": -1}, exact=True, group_by="group")
    assert client.search(collection, packet) == []
    near = client.search(collection, QueryPacket(query, 20, exact=True, group_by="group"))
    limit = near[2].distance
    packet = QueryPacket(query, 20, exact=True, group_by="group", max_distance=limit)
    assert ids(client.search(collection, packet)) == [hit.record_id for hit in near[:3]]


def test_several_queries_are_grouped_each_for_itself(
    client: VecraftClient, grouped: tuple[str, dict[str, Record]]
) -> None:
    collection, model = grouped
    queries = np.random.default_rng(2).normal(size=(7, DIM)).astype(np.float32)
    answers = client.search_many(collection, queries, k=4, exact=True, group_by="group")
    assert [ids(hits) for hits in answers] == [expected(model, query.tolist(), 4) for query in queries]
    answers = client.search_many(collection, queries, k=4, exact=True, group_by="group", group_size=3)
    assert [ids(hits) for hits in answers] == [expected(model, query.tolist(), 4, size=3) for query in queries]


def test_groups_follow_updates_and_deletes(client: VecraftClient, grouped: tuple[str, dict[str, Record]]) -> None:
    collection, before = grouped
    rng = random.Random(8)
    query = [0.3] * DIM
    packet = QueryPacket(query, 30, exact=True, group_by="group")
    with client.snapshot() as earlier:
        now = dict(before)
        for n, record_id in enumerate(list(now)):
            if n % 2:
                now[record_id] = random_record(rng)
        write(client, collection, {i: record for i, record in now.items() if record is not before[i]})
        gone = [hit.record_id for hit in client.search(collection, packet)]
        client.delete_many(collection, gone)
        now = {i: record for i, record in now.items() if i not in gone}
        assert ids(client.search(collection, packet)) == expected(now, query, 30)
        assert ids(earlier.search(collection, packet)) == expected(before, query, 30)


def test_a_graph_walk_finds_the_groups_of_a_large_collection(client: VecraftClient, make: Callable[..., str]) -> None:
    rng = np.random.default_rng(6)
    vectors = rng.normal(size=(4000, DIM)).astype(np.float32)
    groups = np.where(np.linalg.norm(vectors, axis=1) < 3.0, 0, rng.integers(1, 40, 4000)).tolist()
    collection = make(dim=DIM)
    for first in range(0, 4000, 1000):
        part = range(first, first + 1000)
        client.upsert(
            collection,
            ids=[f"r{n:04d}" for n in part],
            vectors=vectors[first : first + 1000],
            metadatas=[{"group": groups[n]} for n in part],
        )
    client.checkpoint(index=True)
    found = right = 0
    for query in rng.normal(size=(20, DIM)).astype(np.float32):
        exact = client.search(collection, QueryPacket(query, exact=True, group_by="group"))
        hits = client.search(collection, QueryPacket(query, ef=100, group_by="group"))
        assert len(hits) == len({hit.metadata["group"] for hit in hits}) == 10
        right += len(set(ids(exact)) & set(ids(hits)))
        found += len(hits)
    assert right >= 0.95 * found
    # Groups that have not shown enough are searched together, not one by one.
    packet = QueryPacket([0.0] * DIM, 10, ef=40, group_by="group", group_size=4)
    several: Any = client.search(collection, packet, explain=True)
    assert Counter(hit.metadata["group"] for hit in several).most_common()[-1][1] == 4
    assert all(2 <= plan["lists"] <= 4 for plan in several.explain.values())


def test_a_group_that_crowds_out_another(client: VecraftClient, make: Callable[..., str]) -> None:
    far = {"near": [0.0] * 60, "crowd": [0.1, *[1.0] * 300], "other": [0.1, *[2.0] * 90], "last": [0.2, 3.0, 3.0, 4.0]}
    collection = make(dim=DIM)
    model: dict[str, Record] = {
        f"{group}{n:03d}": ([0.0] * (DIM - 1) + [distance], {"group": group})
        for group, distances in far.items()
        for n, distance in enumerate(distances)
    }
    write(client, collection, model)
    packet = QueryPacket([0.0] * DIM, 4, exact=True, group_by="group", group_size=3)
    assert ids(client.search(collection, packet)) == expected(model, [0.0] * DIM, 4, size=3)


def test_a_transaction_groups_what_it_sees(client: VecraftClient, grouped: tuple[str, dict[str, Record]]) -> None:
    collection, before = grouped
    rng = random.Random(12)
    query = [0.1] * DIM
    packet = QueryPacket(query, 12, exact=True, group_by="group")
    with client.transaction() as tx:
        assert ids(tx.search(collection, packet)) == expected(before, query, 12)
        now = dict(before)
        for hit in client.search(collection, QueryPacket(query, 4, exact=True, group_by="group")):
            tx.delete(collection, hit.record_id)
            del now[hit.record_id]
        changed = {i: random_record(rng) for i in list(now)[::40]}
        changed |= {"new": ([0.1] * DIM, {"group": "new"}), "plain": ([0.1] * DIM, None)}
        tx.upsert(collection, [DataPacket(i, vector, metadata) for i, (vector, metadata) in changed.items()])
        now |= changed
        inside = tx.search(collection, packet)
        assert ids(inside) == expected(now, query, 12)
        filtered = QueryPacket(query, 12, where={"n": {"$gte": 4}}, exact=True, group_by="group")
        wanted = expected(now, query, 12, keep=lambda metadata: metadata.get("n", 0) >= 4)
        assert ids(tx.search(collection, filtered)) == wanted
        for k, size in ((2, 2), (5, 4), (30, 50)):
            several = QueryPacket(query, k, exact=True, group_by="group", group_size=size)
            assert ids(tx.search(collection, several)) == expected(now, query, k, size=size)
    assert client.search(collection, packet) == inside


def test_an_own_record_brings_the_rest_of_its_group_near(
    client: VecraftClient, make: Callable[..., str]
) -> None:
    collection = make(dim=DIM)
    model: dict[str, Record] = {f"near{i}": ([i / 100] * DIM, {"group": i, "n": 0}) for i in range(30)}
    model |= {f"far{i}": ([50.0 + i] * DIM, {"group": "far", "n": i % 2}) for i in range(6)}
    write(client, collection, model)
    query = [-0.1] * DIM
    with client.transaction() as tx:
        own: dict[str, Record] = {"own": ([-0.1] * DIM, {"group": "far", "n": 1})}
        tx.upsert(collection, [DataPacket(i, vector, metadata) for i, (vector, metadata) in own.items()])
        tx.delete(collection, "far1")
        now = {i: record for i, record in (model | own).items() if i != "far1"}
        for k, size in ((1, 2), (2, 5), (3, 9)):
            packet = QueryPacket(query, k, exact=True, group_by="group", group_size=size)
            assert ids(tx.search(collection, packet)) == expected(now, query, k, size=size)
        odd = QueryPacket(query, 2, where={"n": 1}, exact=True, group_by="group", group_size=3)
        wanted = expected(now, query, 2, keep=lambda metadata: metadata["n"] == 1, size=3)
        assert ids(tx.search(collection, odd)) == wanted


@pytest.mark.parametrize("group_by", ["", 3, ["group"], "x" * 5000])
def test_refuses_what_is_no_field(client: VecraftClient, guarded: str, group_by: Any) -> None:
    with pytest.raises(InvalidDataException, match="group_by must be"):
        client.search(guarded, QueryPacket([1.0] * 4, group_by=group_by))
    with pytest.raises(InvalidDataException, match="group_by must be"):
        client.search_many(guarded, [[1.0] * 4], group_by=group_by)


@pytest.mark.parametrize("group_size", [0, -1, 1.5, "2", True, 2**20 + 1])
def test_refuses_what_is_no_size(client: VecraftClient, guarded: str, group_size: Any) -> None:
    with pytest.raises(InvalidDataException, match="group_size must be"):
        client.search(guarded, QueryPacket([1.0] * 4, group_by="label", group_size=group_size))
    with pytest.raises(InvalidDataException, match="group_size must be"):
        client.search_many(guarded, [[1.0] * 4], group_by="label", group_size=group_size)


def test_refuses_a_size_without_groups_and_more_hits_than_a_search_may_have(
    client: VecraftClient, guarded: str
) -> None:
    with pytest.raises(InvalidDataException, match="group_size goes with group_by"):
        client.search(guarded, QueryPacket([1.0] * 4, group_size=2))
    with pytest.raises(InvalidDataException, match="k x group_size"):
        client.search(guarded, QueryPacket([1.0] * 4, 2**12, group_by="label", group_size=2**9))


def test_explains_how_it_grouped(client: VecraftClient, grouped: tuple[str, dict[str, Record]]) -> None:
    collection, _ = grouped
    answer: Any = client.search(collection, QueryPacket([0.0] * DIM, 5, group_by="group"), explain=True)
    assert all(plan["k"] == 5 and plan["lists"] >= 1 and plan["plan"] for plan in answer.explain.values())
