"""Collections: made, found, described, changed, renamed by alias, dropped."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from vecraft_data_model import CollectionSchema, DataPacket, QueryPacket
from vecraft_data_model.errors import (
    CollectionAlreadyExistedException,
    CollectionNotExistedException,
    InvalidDataException,
)
from vecraft_db.client.vecraft_client import VecraftClient


def test_a_collection_is_made_once(client: VecraftClient, name: str) -> None:
    schema = CollectionSchema(name=name, dim=3, vector_type="float", metric="cosine", M=8, ef_construction=50)
    assert client.create_collection(schema) == schema
    with pytest.raises(CollectionAlreadyExistedException, match=name):
        client.create_collection(schema)
    assert client.create_collection(schema, if_not_exists=True) == schema
    assert client.list_collections().count(schema) == 1


def test_making_it_again_if_missing_does_not_hide_another_shape(client: VecraftClient, collection: str) -> None:
    with pytest.raises(CollectionAlreadyExistedException, match="dim"):
        client.create_collection(CollectionSchema(name=collection, dim=5), if_not_exists=True)


def test_a_dropped_collection_is_gone_and_its_name_is_free(client: VecraftClient, collection: str) -> None:
    client.insert(collection, DataPacket("a", [1, 2, 3, 4]))
    client.drop_collection(collection)
    assert collection not in [schema.name for schema in client.list_collections()]
    for use in (
        lambda: client.count(collection),
        lambda: client.get(collection, "a"),
        lambda: client.search(collection, QueryPacket([1, 2, 3, 4])),
        lambda: client.insert(collection, DataPacket("a", [1, 2, 3, 4])),
        lambda: client.describe_collection(collection),
        lambda: client.drop_collection(collection),
        lambda: list(client.scan(collection)),
    ):
        with pytest.raises(CollectionNotExistedException, match=collection):
            use()
    client.create_collection(CollectionSchema(name=collection, dim=2))
    assert client.count(collection) == 0
    client.insert(collection, DataPacket("a", [1, 2]))


def test_describe_counts_what_is_there(client: VecraftClient, collection: str) -> None:
    client.upsert(collection, ids=["a", "b", "c"], vectors=np.eye(3, 4))
    client.delete(collection, "b")
    info = client.describe_collection(collection)
    assert info.schema == CollectionSchema(name=collection, dim=4)
    assert info.count == 2
    assert info.bytes > 0
    assert info.ef > 0
    assert sum(shard.count for shard in info.shards) == 2


def test_alter_changes_what_may_change(client: VecraftClient, collection: str) -> None:
    client.alter_collection(collection, target_recall=0.99)
    assert client.describe_collection(collection).schema.target_recall == 0.99
    client.alter_collection(collection, ef=77)
    assert client.describe_collection(collection).ef == 77
    with pytest.raises(InvalidDataException, match="dim"):
        client.alter_collection(collection, dim=5)
    with pytest.raises(InvalidDataException, match="target_recall"):
        client.alter_collection(collection)
    with pytest.raises(InvalidDataException, match="target_recall"):
        client.alter_collection(collection, target_recall=1.5)
    with pytest.raises(InvalidDataException, match="ef"):
        client.alter_collection(collection, ef=0)
    assert client.describe_collection(collection).schema.target_recall == 0.99


def test_set_ef_changes_the_search_depth(client: VecraftClient, collection: str) -> None:
    client.set_ef(collection, 123)
    assert client.describe_collection(collection).ef == 123
    client.set_ef(collection, None)
    assert client.describe_collection(collection).ef != 123


@pytest.mark.parametrize("metric", ["l2", "cosine", "ip"])
@pytest.mark.parametrize("vector_type", ["float32", "float16"])
def test_every_metric_and_type_holds_records(
    client: VecraftClient, make: Callable[..., str], metric: str, vector_type: str
) -> None:
    name = make(metric=metric, vector_type=vector_type)
    client.upsert(name, ids=["a", "b"], vectors=[[1, 0, 0, 0], [0, 2, 0, 0]])
    assert [hit.record_id for hit in client.search(name, QueryPacket([0, 1, 0, 0], k=1))] == ["b"]


@pytest.mark.needs("aliases")
def test_an_alias_is_usable_wherever_a_name_is(client: VecraftClient, make: Callable[..., str], name: str) -> None:
    old, new = make(), make()
    client.insert(old, DataPacket("old", [1, 0, 0, 0]))
    client.insert(new, DataPacket("new", [1, 0, 0, 0]))
    alias = f"{name}-alias"
    client.set_alias(alias, old)
    assert client.get(alias, "old").record_id == "old"
    client.insert(alias, DataPacket("more", [0, 1, 0, 0]))
    assert client.count(old) == 2
    assert [packet.record_id for packet in client.scan(alias)] == ["more", "old"]
    client.set_alias(alias, new)
    assert client.get(alias, "new").record_id == "new"
    assert [hit.record_id for hit in client.search(alias, QueryPacket([1, 0, 0, 0]))] == ["new"]
    client.drop_alias(alias)
    with pytest.raises(CollectionNotExistedException, match=alias):
        client.count(alias)
    assert client.count(new) == 1


@pytest.mark.needs("aliases")
def test_an_alias_needs_a_target_and_a_free_name(client: VecraftClient, make: Callable[..., str], name: str) -> None:
    first, second = make(), make()
    with pytest.raises(CollectionNotExistedException):
        client.set_alias(f"{name}-alias", f"{name}-none")
    with pytest.raises(CollectionAlreadyExistedException):
        client.set_alias(first, second)
    with pytest.raises(CollectionNotExistedException):
        client.drop_alias(f"{name}-none")
    client.set_alias(f"{name}-alias", first)
    with pytest.raises(CollectionAlreadyExistedException):
        client.create_collection(CollectionSchema(name=f"{name}-alias", dim=4))


def test_names_are_data(client: VecraftClient, name: str) -> None:
    for odd in (f"{name}.v1", f"{name}_ü", f"数据-{name}", f"{name}".upper()):
        client.create_collection(CollectionSchema(name=odd, dim=1))
        client.insert(odd, DataPacket("x", [1.0]))
        assert client.count(odd) == 1


def test_the_cluster_says_how_it_is(client: VecraftClient, collection: str) -> None:
    client.insert(collection, DataPacket("a", [1, 2, 3, 4]))
    info = client.cluster_info()
    assert info["ready"] is True
    assert len(info["shards"]) >= 1
    assert sum(shard["collections"].get(collection, 0) for shard in info["shards"]) == 1


def test_a_checkpoint_changes_nothing_that_can_be_seen(client: VecraftClient, collection: str) -> None:
    client.upsert(collection, ids=["a", "b"], vectors=np.eye(2, 4), metadatas=[{"n": 1}, None])
    before = [packet.to_dict() for packet in client.scan(collection)]
    client.checkpoint()
    assert [packet.to_dict() for packet in client.scan(collection)] == before
