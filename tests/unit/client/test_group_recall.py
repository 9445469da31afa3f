"""A depth that finds the nearest records finds the nearest of each group as well."""

from __future__ import annotations

import numpy as np
import pytest

from vecraft_data_model import CollectionSchema, QueryPacket
from vecraft_db.client.vecraft_client import VecraftClient
from vecraft_shard import engine
from vecraft_shard.planner import Costs

ROWS, DIM, QUERIES, GROUPS, K = 5000, 16, 200, 40, 10
DEPTH = 130
"""At which this sparse graph finds 95 of 100 neighbours."""


def test_groups_are_found_as_well_as_neighbours(monkeypatch: pytest.MonkeyPatch) -> None:
    """Groups lie together, so that the tenth begins some thirty records behind the tenth neighbour."""
    # Scans look dear, so that even these few rows are searched by the graph.
    monkeypatch.setattr(engine, "costs_of_this_machine", lambda stopwatch: Costs(stream_kb=1.0, gather_kb=2.0))
    rng = np.random.default_rng(5)
    vectors, queries = (rng.normal(size=(count, DIM)).astype(np.float32) for count in (ROWS, QUERIES))
    centres = rng.normal(size=(GROUPS, DIM))
    groups = ((vectors[:, None] - centres) ** 2).sum(-1).argmin(axis=1).tolist()
    nearest = ((vectors - queries[:, None]) ** 2).sum(-1).argsort(axis=1)
    firsts = []
    for ranking in nearest:
        first: dict[int, int] = {}
        for row in ranking.tolist():
            first.setdefault(groups[row], row)
        firsts.append(list(first.values())[:K])

    with VecraftClient(root=":memory:") as client:
        client.create_collection(CollectionSchema(name="c", dim=DIM, metric="l2", M=5, ef_construction=20))
        client.upsert("c", ids=[str(row) for row in range(ROWS)], vectors=vectors, metadatas=[{"g": g} for g in groups])
        client.checkpoint(index=True)

        def recall(right: list[list[int]], group_by: str | None) -> float:
            shares = []
            for query, rows in zip(queries, right, strict=True):
                hits = client.search("c", QueryPacket(query, K, ef=DEPTH, include=(), group_by=group_by))
                shares.append(len({int(hit.record_id) for hit in hits} & set(rows)) / K)
            return float(np.mean(shares))

        plain = recall(nearest[:, :K].tolist(), None)
        assert 0.92 < plain < 0.98
        assert recall(firsts, "g") >= plain - 0.005
