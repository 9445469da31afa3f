"""Searches that group, whole databases of some hundred records: so many that one list of neighbours is not enough.

The reference sorts all records by distance. ``test_search_properties`` has smaller collections and odder fields.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from random_examples import examples

from vecraft_data_model import CollectionSchema, QueryPacket
from vecraft_data_model.filters import key_of
from vecraft_db.client.vecraft_client import VecraftClient

DIM = 3
VALUES: tuple[Any, ...] = (
    "a", "b", "1", 1, 1.0, 2.5, True, False, None, [1, 2], [1.0, 2], {"x": 1}, 2**60, 2.0**60, 2**62 + 1,
    *range(3, 40),
)  # fmt: skip


@pytest.fixture(scope="module", params=[1, 3], ids=["1 shard", "3 shards"])
def client(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[VecraftClient]:
    root: Path = tmp_path_factory.mktemp("property") / "root"
    with VecraftClient(root=root, shards=request.param) as client:
        yield client


_names = itertools.count()


@examples(25)
@given(
    seed=st.integers(0, 2**32 - 1),
    rows=st.integers(40, 500),
    values=st.integers(1, len(VALUES)),
    together=st.sampled_from([0.0, 1.0, 20.0]),
    mixed=st.booleans(),
    settle=st.booleans(),
)
def test_groups_of_any_size_anywhere(
    client: VecraftClient, seed: int, rows: int, values: int, together: float, mixed: bool, settle: bool
) -> None:
    """``together``: how far the groups lie apart; ``mixed``: whether there are records of no group between them."""
    rng = np.random.default_rng(seed)
    name = f"c{next(_names)}"
    client.create_collection(CollectionSchema(name=name, dim=DIM))
    numbers = np.minimum(rng.zipf(1.3, rows) - 1, values - 1)  # few large groups, many small ones
    vectors = (rng.normal(size=(rows, DIM)) + together * numbers[:, None]).astype(np.float32)
    metadatas: list[Any] = [{"g": VALUES[number], "n": row % 5} for row, number in enumerate(numbers.tolist())]
    if mixed:
        for row in rng.choice(rows, rows // 10, replace=False).tolist():
            metadatas[row] = {"n": row % 5} if row % 2 else None
    ids = [f"r{row:03d}" for row in rng.permutation(rows).tolist()]
    client.upsert(name, ids=ids, vectors=vectors[::-1].copy(), metadatas=[{"g": "old"}] * rows)
    client.upsert(name, ids=ids, vectors=vectors, metadatas=metadatas)
    if settle:
        client.checkpoint(index=True)
    gone = set(rng.choice(rows, rows // 20, replace=False).tolist())
    client.delete_many(name, [ids[row] for row in gone])

    queries = vectors[rng.integers(0, rows, 3)] + rng.normal(size=(3, DIM)).astype(np.float32)
    for k, size, where in ((3, 1, None), (10, 3, None), (4, 30, None), (60, 2, None), (5, 4, {"n": {"$lt": 3}})):
        kept = [
            (row, key_of(metadata["g"]))
            for row, metadata in enumerate(metadatas)
            if row not in gone and metadata and "g" in metadata and (where is None or metadata["n"] < 3)
        ]
        expected = []
        for query in queries:
            far = ((vectors.astype(np.float64) - query) ** 2).sum(axis=1).astype(np.float32)
            ranked = sorted((float(far[row]), ids[row], key) for row, key in kept)
            nearest = list(dict.fromkeys(key for _, _, key in ranked))[:k]
            members = [[entry for entry in ranked if entry[2] == key][:size] for key in nearest]
            expected.append([record_id for _, record_id, _ in sorted(itertools.chain(*members))])
        packet = {"where": where, "exact": True, "group_by": "g", "group_size": size}
        found = client.search_many(name, queries, k=k, **packet)
        assert [[hit.record_id for hit in hits] for hits in found] == expected, (k, size, where)
        for hits in found:
            assert all(hit.metadata == metadatas[ids.index(hit.record_id)] for hit in hits)
        walked = client.search(name, QueryPacket(queries[0], k, where, group_by="g", group_size=size))
        groups = Counter(key_of(hit.metadata["g"]) for hit in walked if hit.metadata is not None)
        there_are = Counter(key for _, key in kept)
        assert len(groups) == min(k, len(there_are)), "k groups whenever there are k"
        assert groups == {key: min(size, there_are[key]) for key in groups}, "and as many of each as there are"
    client.drop_collection(name)
