"""A ranking by words depends on what is there alone: not on dead rows, checkpoints, compactions or restarts."""

from __future__ import annotations

import random
from pathlib import Path

from vecraft_data_model import CollectionSchema, DataPacket, QueryPacket
from vecraft_db.client.vecraft_client import VecraftClient

TREES = ["oak", "elm", "ash", "fir", "yew", "birch"]
QUERIES = [
    QueryPacket(None, query_text="oak elm", k=20),
    QueryPacket([0.5, 0.5], query_text="yew birch", k=20, exact=True),
    QueryPacket([0.5, 0.5], query_text="ash", k=20, exact=True, fusion=(0.5, 0.5)),
    QueryPacket([0.5, 0.5], k=20, exact=True, group_by="n"),
]


def packets(rng: random.Random, ids: range) -> list[DataPacket]:
    return [
        DataPacket(
            f"r{i:03d}",
            [rng.random(), rng.random()],
            {"n": rng.randrange(9)},
            " ".join(rng.choices(TREES, k=rng.randrange(1, 9))) if i % 10 else None,
        )
        for i in ids
    ]


def answers(client: VecraftClient) -> list[list[tuple[str, float | None]]]:
    return [[(hit.record_id, hit.score) for hit in client.search("c", query)] for query in QUERIES]


def test_what_was_deleted_and_reclaimed_does_not_count(tmp_path: Path) -> None:
    rng = random.Random(3)
    kept = packets(rng, range(300))
    with VecraftClient(root=":memory:") as plain:
        plain.create_collection(CollectionSchema(name="c", dim=2))
        plain.upsert("c", kept)
        wanted = answers(plain)
    root = tmp_path / "root"
    with VecraftClient(root=root, shards=2, history_retention_s=0.0, index_min_rows=1) as client:
        client.create_collection(CollectionSchema(name="c", dim=2))
        client.upsert("c", packets(rng, range(300)))
        client.checkpoint(index=True)
        client.upsert("c", packets(rng, range(100, 500)))
        client.delete_many("c", [f"r{i:03d}" for i in range(300, 500)])
        client.upsert("c", kept[:150])
        client.checkpoint()
        client.upsert("c", kept[150:])
        assert answers(client) == wanted
    with VecraftClient(root=root, history_retention_s=0.0, index_min_rows=1) as client:
        assert answers(client) == wanted
        assert client.describe_collection("c").dead_rows > 0
        client.checkpoint(compact=True, index=True)
        assert client.describe_collection("c").dead_rows == 0
        assert answers(client) == wanted
    with VecraftClient(root=root) as client:
        assert answers(client) == wanted
        client.upsert("c", [DataPacket("new", [0, 0], None, "willow")])
        assert [hit.record_id for hit in client.search("c", QueryPacket(None, query_text="willow oak", k=1))] == ["new"]
