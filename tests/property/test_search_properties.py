"""Filtered searches, whole databases: random records under random filter trees, and recall where filters are hardest.

The reference is the evaluator of one record at a time and a sort by distance: no index, no snapshot, no shard.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st
from random_examples import examples

from vecraft_data_model import CollectionSchema, DataPacket, QueryPacket
from vecraft_data_model.filters import key_of, matches, matches_document, parse_where, parse_where_document
from vecraft_db.client.vecraft_client import VecraftClient

Matrix = npt.NDArray[np.float32]

# ------------------------------------------------------------------------------- random records, random filter trees

scalars = st.one_of(
    st.none(), st.booleans(), st.integers(-2, 2), st.sampled_from([0.5, 1.0, 2.0**60]), st.sampled_from(["", "a", "1"])
)
values = st.one_of(scalars, st.lists(scalars, max_size=3), st.dictionaries(st.sampled_from("xy"), scalars, max_size=2))
metadata = st.one_of(st.none(), st.dictionaries(st.sampled_from(["a", "b", "c", "a.x"]), values, max_size=4))
TEXTS = ("", "oak", "Oak elm", "the elm, the oak", "naïve ash", "ashen", "elm elm elm")
documents = st.one_of(
    st.none(), st.sampled_from(TEXTS), st.dictionaries(st.sampled_from("ab"), scalars, max_size=2)
)
conditions = st.one_of(
    scalars,
    st.builds(lambda v: {"$ne": v}, scalars),
    st.builds(lambda v: {"$in": v}, st.lists(scalars, max_size=3)),
    st.builds(lambda op, v: {op: v}, st.sampled_from(["$gt", "$gte", "$lt", "$lte"]), st.integers(-2, 2)),
    st.builds(lambda v: {"$exists": v}, st.booleans()),
    st.builds(lambda v: {"$contains": v}, scalars),
)
wheres = st.recursive(
    st.dictionaries(st.sampled_from(["a", "b", "c", "a.x", "b.y", "nowhere"]), conditions, max_size=2),
    lambda inner: st.one_of(
        st.builds(lambda items: {"$and": items}, st.lists(inner, min_size=1, max_size=3)),
        st.builds(lambda items: {"$or": items}, st.lists(inner, min_size=1, max_size=3)),
        st.builds(lambda item: {"$not": item}, inner),
    ),
    max_leaves=4,
)
where_documents = st.one_of(
    st.none(),
    st.builds(lambda t: {"$contains": t}, st.sampled_from(["elm", "oak", "sh", ", the"])),
    st.builds(lambda t: {"$not": {"$matches": t}}, st.sampled_from(["elm", "naive", "OAK the"])),
    st.builds(lambda n: {"a": {"$gte": n}}, st.integers(-2, 2)),
)
records = st.tuples(st.lists(st.integers(-3, 3), min_size=3, max_size=3), metadata, documents)
batches = st.lists(
    st.tuples(st.dictionaries(st.sampled_from([f"r{n}" for n in range(12)]), records, max_size=8), st.booleans()),
    min_size=1,
    max_size=4,
)


@pytest.fixture(scope="module", params=[1, 3], ids=["1 shard", "3 shards"])
def client(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[VecraftClient]:
    root: Path = tmp_path_factory.mktemp("property") / "root"
    with VecraftClient(root=root, shards=request.param, index_min_rows=4) as client:
        yield client


_numbers = itertools.count()


def _filled(
    client: VecraftClient, batches: list[tuple[dict[str, Any], bool]], gone: set[str]
) -> tuple[str, dict[str, Any]]:
    """Write batches to a new collection, indexing after some, and delete; its name, and what is left in it."""
    name = f"c{next(_numbers)}"
    client.create_collection(CollectionSchema(name=name, dim=3))
    model: dict[str, Any] = {}
    for batch, settle in batches:
        if batch:
            client.upsert(name, [DataPacket(i, *record) for i, record in batch.items()])
            model |= batch
        if settle:
            client.checkpoint(index=True)
    client.delete_many(name, sorted(gone))
    return name, {i: record for i, record in model.items() if i not in gone}


@examples(60)
@given(
    batches=batches,
    gone=st.sets(st.sampled_from([f"r{n}" for n in range(12)]), max_size=4),
    filters=st.lists(st.tuples(wheres, where_documents), min_size=1, max_size=4),
    query=st.lists(st.integers(-3, 3), min_size=3, max_size=3),
    k=st.integers(1, 14),
)
def test_what_matches_is_found_whatever_the_filter(
    client: VecraftClient,
    batches: list[tuple[dict[str, Any], bool]],
    gone: set[str],
    filters: list[tuple[dict[str, Any], dict[str, Any] | None]],
    query: list[int],
    k: int,
) -> None:
    name, model = _filled(client, batches, gone)
    for where, where_document in filters:
        parsed = parse_where(where)
        document = None if where_document is None else parse_where_document(where_document)
        found = {
            i: float(sum((a - b) ** 2 for a, b in zip(vector, query, strict=True)))
            for i, (vector, fields, text) in model.items()
            if matches(parsed, fields) and (document is None or matches_document(document, text))
        }
        assert client.count(name, where, where_document) == len(found)
        assert [packet.record_id for packet in client.scan(name, where, where_document)] == sorted(found)
        nearest = sorted((far, i) for i, far in found.items())[:k]
        for exact in (True, False):
            hits = client.search(name, QueryPacket(query, k, where, where_document, exact=exact))
            assert [hit.distance for hit in hits] == [far for far, _ in nearest], "k of them whenever k match"
            if exact:
                assert [hit.record_id for hit in hits] == [i for _, i in nearest]
    client.drop_collection(name)


# ------------------------------------------------------------------------------------------------------------ groups


@examples(60)
@given(
    batches=batches,
    gone=st.sets(st.sampled_from([f"r{n}" for n in range(12)]), max_size=4),
    where=st.one_of(st.none(), wheres),
    query=st.lists(st.integers(-3, 3), min_size=3, max_size=3),
    field=st.sampled_from("abc"),
    k=st.integers(1, 6),
    size=st.integers(1, 5),
)
def test_the_nearest_of_each_of_the_nearest_groups(
    client: VecraftClient,
    batches: list[tuple[dict[str, Any], bool]],
    gone: set[str],
    where: dict[str, Any] | None,
    query: list[int],
    field: str,
    k: int,
    size: int,
) -> None:
    name, model = _filled(client, batches, gone)
    parsed = None if where is None else parse_where(where)
    ranked = sorted(
        (float(sum((a - b) ** 2 for a, b in zip(vector, query, strict=True))), i, key_of(fields[field]))
        for i, (vector, fields, _) in model.items()
        if fields is not None and field in fields and (parsed is None or matches(parsed, fields))
    )
    nearest = list(dict.fromkeys(key for _, _, key in ranked))[:k]
    places: dict[Any, int] = {}
    expected = []
    for _, i, key in ranked:
        places[key] = places.get(key, 0) + 1
        if key in nearest and places[key] <= size:
            expected.append(i)
    packet = QueryPacket(query, k, where, exact=True, group_by=field, group_size=size)
    assert [hit.record_id for hit in client.search(name, packet)] == expected
    client.drop_collection(name)


# -------------------------------------------------------------------------------------------- recall where it is hard

ROWS, DIM, TOPICS, K = 6000, 24, 30, 10


def vectors(rng: np.random.Generator, centres: Matrix, topics: npt.NDArray[np.int64]) -> Matrix:
    return (centres[topics] + 0.6 * rng.normal(size=(len(topics), DIM))).astype(np.float32)


def recall(client: VecraftClient, queries: Matrix, where: dict[str, Any] | None, ids: list[str], rows: Matrix) -> float:
    """Recall@10 over those of the records that match, which ``ids`` and ``rows`` are."""
    right = wanted = 0
    for query in queries:
        distances = np.sort(((rows.astype(np.float64) - query) ** 2).sum(axis=1))[:K]
        hits = client.search("c", QueryPacket(query, K, where))
        assert len(hits) == len({hit.record_id for hit in hits}) == len(distances), "k whenever k match"
        assert {hit.record_id for hit in hits} <= set(ids)
        right += sum(hit.distance <= distances[-1] * (1 + 1e-4) for hit in hits)
        wanted += len(distances)
    return right / wanted


@pytest.mark.parametrize("shards", [1, 2])
def test_recall_at_any_selectivity_also_after_half_was_replaced(tmp_path: Path, shards: int) -> None:
    rng = np.random.default_rng(5)
    centres = rng.normal(size=(TOPICS, DIM)).astype(np.float32) * 2
    with VecraftClient(root=tmp_path / "root", shards=shards) as client:
        client.create_collection(CollectionSchema(name="c", dim=DIM))
        topics = rng.integers(0, TOPICS, ROWS)
        order = rng.permutation(ROWS)
        rows, ids = vectors(rng, centres, topics), np.array([f"r{n:05d}" for n in range(ROWS)])
        alive = np.ones(ROWS, bool)

        def write(numbers: npt.NDArray[np.int64]) -> None:
            for first in range(0, len(numbers), 1000):
                part = numbers[first : first + 1000]
                client.upsert(
                    "c",
                    ids=ids[part].tolist(),
                    vectors=rows[part],
                    metadatas=[{"rank": int(order[n]), "topic": int(topics[n])} for n in part],
                )

        def check() -> None:
            asked = rng.integers(0, TOPICS, 12)
            queries = vectors(rng, centres, asked)
            assert recall(client, queries, None, ids[alive].tolist(), rows[alive]) >= 0.95
            for share in (0.001, 0.01, 0.1, 0.5, 0.9):
                below = alive & (order < share * ROWS)
                where: dict[str, Any] = {"rank": {"$lt": share * ROWS}}
                assert recall(client, queries, where, ids[below].tolist(), rows[below]) >= 0.95, share
            # The filter leaves over what is about the query's topic, or what is about anything but that.
            for topic, query in zip(asked[:4].tolist(), queries[:4], strict=True):
                for where, kept in (
                    ({"topic": topic}, topics == topic),
                    ({"topic": {"$ne": topic}}, topics != topic),
                    ({"topic": (topic + 1) % TOPICS}, topics == (topic + 1) % TOPICS),
                    ({"topic": {"$ne": topic}, "rank": {"$lt": 300}}, (topics != topic) & (order < 300)),
                ):
                    matching = alive & kept
                    assert recall(client, query[None], where, ids[matching].tolist(), rows[matching]) >= 0.9, where

        write(np.arange(ROWS))
        client.checkpoint(index=True, timeout=120)
        check()
        changed = rng.permutation(ROWS)
        moved, gone = changed[: ROWS // 4], changed[ROWS // 4 : ROWS // 2]
        topics[moved] = rng.integers(0, TOPICS, len(moved))
        rows[moved] = vectors(rng, centres, topics[moved])
        write(moved)
        client.delete_many("c", ids[gone].tolist())
        alive[gone] = False
        check()
        client.checkpoint(index=True, timeout=120)
        check()
