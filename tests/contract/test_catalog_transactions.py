"""Collections and aliases changed inside transactions: all or nothing, seen inside at once, conflicts found."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from vecraft_data_model import CollectionSchema, DataPacket, QueryPacket
from vecraft_data_model.errors import (
    CollectionAlreadyExistedException,
    CollectionNotExistedException,
    InvalidDataException,
    ReadWriteConflictException,
    RecordNotFoundError,
    VectorDimensionMismatchException,
    WriteConflictException,
)
from vecraft_db.client.vecraft_client import VecraftClient

pytestmark = pytest.mark.needs("transactions")


def put(record_id: str, value: int) -> DataPacket:
    return DataPacket(record_id, [value, 0, 0, 0], {"value": value})


def names(client: VecraftClient, prefix: str) -> set[str]:
    return {schema.name for schema in client.list_collections() if schema.name.startswith(prefix)}


@pytest.fixture
def alias(client: VecraftClient, make: Callable[..., str], name: str) -> str:
    """An alias of a collection ``<name>.0`` with ten records."""
    old = make()
    client.upsert(old, [put(f"r{i}", i) for i in range(10)])
    client.set_alias(f"{name}-alias", old)
    return f"{name}-alias"


def test_a_collection_is_made_filled_and_named_at_one_moment(client: VecraftClient, alias: str, name: str) -> None:
    old, new = f"{name}.0", f"{name}.new"
    with client.transaction() as tx:
        schema = tx.create_collection(CollectionSchema(name=new, dim=2, metric="ip"))
        assert schema.name == new
        tx.upsert(new, ids=[f"n{i}" for i in range(20)], vectors=np.ones((20, 2)))
        tx.set_alias(alias, new)
        assert new not in names(client, name)
        assert client.count(alias) == 10
    assert tx.result is not None
    assert tx.result.count == 20
    assert client.count(alias) == 20
    assert client.list_aliases()[alias] == new
    before = tx.result.commit_ts - 1
    assert client.count(alias, as_of=before) == 10
    with pytest.raises(CollectionNotExistedException):
        client.count(new, as_of=before)
    assert client.count(old) == 10


def test_own_changes_of_the_catalog_show_inside(client: VecraftClient, alias: str, name: str) -> None:
    old, new = f"{name}.0", f"{name}.new"
    with client.transaction() as tx:
        tx.create_collection(CollectionSchema(name=new, dim=4))
        assert tx.count(new) == 0
        assert tx.search(new, QueryPacket([0, 0, 0, 0])) == []
        assert list(tx.scan(new)) == []
        with pytest.raises(RecordNotFoundError):
            tx.get(new, "a")
        assert tx.insert(new, put("a", 1)) is None
        tx.upsert(new, [put(f"b{i}", i) for i in range(5)])
        assert tx.delete(new, "b4") == put("b4", 4)
        tx.set_alias(alias, new)
        assert tx.get(alias, "a").metadata == {"value": 1}
        assert tx.get_many(alias, ["a", "r1"])[1] is None
        assert tx.count(alias) == 5
        assert tx.count(alias, {"value": {"$gte": 2}}) == 2
        assert [hit.record_id for hit in tx.search(alias, QueryPacket([3, 0, 0, 0], k=2))] == ["b3", "b2"]
        assert [[hit.record_id for hit in hits] for hits in tx.search_many(alias, [[0, 0, 0, 0]], 1)] == [["b0"]]
        assert [packet.record_id for packet in tx.scan(alias, limit=2)] == ["a", "b0"]
        assert tx.delete_many(alias, where={"value": 0}) == 1
        assert tx.count(old) == 10
        assert {schema.name for schema in tx.list_collections()} >= {old, new}
        assert tx.list_aliases()[alias] == new
        assert tx.describe_collection(alias).count == 4
        tx.alter_collection(old, target_recall=0.99)
        assert tx.describe_collection(old).schema.target_recall == 0.99
        tx.drop_collection(old)
        with pytest.raises(CollectionNotExistedException, match=old):
            tx.count(old)
        with pytest.raises(VectorDimensionMismatchException):
            tx.search(new, QueryPacket([1, 2]))
    assert names(client, name) == {new}
    assert [packet.record_id for packet in client.scan(alias)] == ["a", "b1", "b2", "b3"]


def test_an_exception_leaves_the_catalog_as_it_was(client: VecraftClient, alias: str, name: str) -> None:
    with pytest.raises(KeyError), client.transaction() as tx:
        tx.create_collection(CollectionSchema(name=f"{name}.new", dim=4))
        tx.upsert(f"{name}.new", [put("a", 1)])
        tx.set_alias(alias, f"{name}.new")
        tx.drop_collection(f"{name}.0")
        raise KeyError("changed my mind")
    assert names(client, name) == {f"{name}.0"}
    assert client.count(alias) == 10


def test_what_cannot_be_is_refused_at_once(client: VecraftClient, alias: str, name: str) -> None:
    old = f"{name}.0"
    with client.transaction() as tx:
        with pytest.raises(CollectionAlreadyExistedException):
            tx.create_collection(CollectionSchema(name=old, dim=4))
        assert tx.create_collection(CollectionSchema(name=old, dim=4), if_not_exists=True).dim == 4
        with pytest.raises(CollectionAlreadyExistedException):
            tx.create_collection(CollectionSchema(name=alias, dim=4))
        with pytest.raises(InvalidDataException, match="alias"):
            tx.drop_collection(old)
        with pytest.raises(CollectionNotExistedException):
            tx.set_alias(f"{name}-other", f"{name}.none")
        with pytest.raises(CollectionAlreadyExistedException):
            tx.set_alias(old, old)
        with pytest.raises(CollectionNotExistedException):
            tx.drop_alias(f"{name}-none")
        with pytest.raises(InvalidDataException, match="dim"):
            tx.alter_collection(old, dim=5)
        with pytest.raises(InvalidDataException, match="ef"):
            tx.alter_collection(old, ef=0)
        with pytest.raises(CollectionNotExistedException):
            tx.drop_collection(alias)
        tx.insert(old, put("good", 1))
    assert client.count(alias) == 11


def test_a_name_is_given_to_another_collection(client: VecraftClient, collection: str) -> None:
    client.insert(collection, put("a", 1))
    with client.transaction() as tx:
        tx.insert(collection, put("lost", 1))
        tx.drop_collection(collection)
        tx.create_collection(CollectionSchema(name=collection, dim=2))
        assert tx.count(collection) == 0
        tx.upsert(collection, ids=["b"], vectors=[[1, 2]])
    assert [packet.record_id for packet in client.scan(collection)] == ["b"]
    assert client.describe_collection(collection).schema.dim == 2


def test_a_write_to_what_is_switched_away_from_is_a_conflict(client: VecraftClient, alias: str, name: str) -> None:
    """Else it would be lost: readers come by the alias."""
    new = f"{name}.new"

    def switch(by: str) -> None:
        with client.transaction() as tx:
            tx.create_collection(CollectionSchema(name=new, dim=4), if_not_exists=True)
            tx.upsert(new, list(tx.scan(alias)))
            tx.set_alias(alias, new)
            if by:
                client.insert(by, put("late", 99))

    for by in (alias, f"{name}.0"):
        with pytest.raises(WriteConflictException, match="out of sight"):
            switch(by)
        assert names(client, name) == {f"{name}.0"}
    switch("")
    assert client.count(alias) == 11


def test_a_switch_is_a_conflict_for_who_wrote_by_the_alias(
    client: VecraftClient, alias: str, make: Callable[..., str]
) -> None:
    new = make()
    with pytest.raises(WriteConflictException), client.transaction() as tx:
        tx.insert(alias, put("mine", 1))
        client.set_alias(alias, new)
    assert client.count(alias) == 0


def test_a_switch_is_a_conflict_for_who_read_by_the_alias(
    client: VecraftClient, alias: str, make: Callable[..., str]
) -> None:
    new, other = make(), make()
    with pytest.raises(ReadWriteConflictException), client.transaction("serializable") as tx:
        tx.get(alias, "r1")
        tx.insert(other, put("mine", 1))
        client.set_alias(alias, new)


def test_of_two_that_change_one_name_the_first_committer_wins(
    client: VecraftClient, alias: str, make: Callable[..., str], name: str
) -> None:
    new, newer = make(), make()
    with pytest.raises(WriteConflictException, match=alias), client.transaction() as tx:
        tx.set_alias(alias, new)
        client.set_alias(alias, newer)
    assert client.list_aliases()[alias] == newer
    with pytest.raises(WriteConflictException), client.transaction() as tx:
        tx.create_collection(CollectionSchema(name=f"{name}.mine", dim=4))
        client.create_collection(CollectionSchema(name=f"{name}.mine", dim=3))
    assert client.describe_collection(f"{name}.mine").schema.dim == 3


def test_a_collection_dropped_meanwhile_is_not_written_to(client: VecraftClient, collection: str) -> None:
    with pytest.raises((CollectionNotExistedException, WriteConflictException)), client.transaction() as tx:
        tx.insert(collection, put("a", 1))
        client.drop_collection(collection)
        client.create_collection(CollectionSchema(name=collection, dim=4))
    assert client.count(collection) == 0


def test_changes_of_the_catalog_with_an_id_are_carried_out_once(client: VecraftClient, alias: str, name: str) -> None:
    new, txn_id = f"{name}.new", f"tx-{name}"
    with client.transaction(txn_id=txn_id) as tx:
        tx.create_collection(CollectionSchema(name=new, dim=4))
        tx.upsert(new, [put("a", 1)])
        tx.set_alias(alias, new)
        first = tx.commit()
    assert first.txn_id == txn_id
    with pytest.raises(InvalidDataException, match=txn_id), client.transaction(txn_id=txn_id) as other:
        other.upsert(new, [put("b", 1)])
    assert client.count(alias) == 1


def test_run_transaction_retries_a_switch(client: VecraftClient, alias: str, name: str) -> None:
    new = f"{name}.new"
    attempts: list[int] = []

    def switch(tx: object) -> None:
        tx.create_collection(CollectionSchema(name=new, dim=4))  # type: ignore[attr-defined]
        tx.upsert(new, list(tx.scan(alias)))  # type: ignore[attr-defined]
        tx.set_alias(alias, new)  # type: ignore[attr-defined]
        if not attempts:
            client.insert(alias, put("late", 99))
        attempts.append(1)

    client.run_transaction(switch)
    assert len(attempts) == 2
    assert client.get(alias, "late").metadata == {"value": 99}
    assert client.list_aliases()[alias] == new
