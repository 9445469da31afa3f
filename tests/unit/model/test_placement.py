"""Slots are fixed for ever; maps say who owns them."""

from __future__ import annotations

import pickle
from typing import Any

import numpy as np
import pytest

from vecraft_data_model.errors import InvalidDataException
from vecraft_data_model.placement import SLOTS, ClusterMap, initial_map, primary_of, slot_of, slots_of

IDS = [f"record-{i}" for i in range(5000)] + ["é", "e\u0301", "", "🙂", "a/b"]


def test_slots_never_change() -> None:
    # Written down once from the reference implementation: a record must be found again by every later version.
    assert [slot_of(record_id) for record_id in ("", "a", "img-001", "é", "e\u0301")] == [194, 543, 431, 179, 424]


def test_many_slots_at_once_are_the_same() -> None:
    assert slots_of(IDS).tolist() == [slot_of(record_id) for record_id in IDS]
    counts = np.bincount(slots_of(IDS), minlength=SLOTS)
    assert counts.max() < 25  # spread: 5 expected


@pytest.mark.parametrize("shards", [1, 2, 3, 7, 1024])
def test_the_initial_map_is_even_and_splitting_loses_nothing(shards: int) -> None:
    cluster_map = initial_map(shards)
    owned = np.bincount(cluster_map.slots, minlength=shards)
    assert owned.max() - owned.min() <= 1
    assert cluster_map.shards() == tuple(range(shards))
    assert cluster_map.all_shards() == range(shards)
    parts = cluster_map.split(IDS)
    assert sorted(int(i) for part in parts.values() for i in part) == list(range(len(IDS)))
    for shard, part in parts.items():
        assert len(part) > 0
        assert (np.diff(part) > 0).all()
        assert all(cluster_map.shard_of(IDS[i]) == shard for i in part)
    assert sum(len(cluster_map.slots_owned(shard)) for shard in range(shards)) == SLOTS
    assert cluster_map.split([]) == {}
    assert set(cluster_map.split(["a"])) == {cluster_map.shard_of("a")}


def test_a_shard_may_own_nothing_yet() -> None:
    cluster_map = ClusterMap(epoch=3, slots=[2] * SLOTS, shard_count=4)
    assert cluster_map.shards() == (2,)
    assert cluster_map.all_shards() == range(4)
    assert list(cluster_map.split(["a", "b"])) == [2]


def test_maps_are_values() -> None:
    cluster_map = initial_map(3)
    cluster_map.split(IDS)
    again = pickle.loads(pickle.dumps(cluster_map))
    assert again == cluster_map
    assert {shard: part.tolist() for shard, part in again.split(IDS).items()} == {
        shard: part.tolist() for shard, part in cluster_map.split(IDS).items()
    }


@pytest.mark.parametrize("shards", [0, -1, 1025, True, 2.0, "2", None])
def test_numbers_of_shards_that_are_refused(shards: Any) -> None:
    with pytest.raises(InvalidDataException, match="from 1 to 1024"):
        initial_map(shards)


@pytest.mark.parametrize(
    ("epoch", "slots", "shard_count"),
    [(0, [0] * SLOTS, 1), (1, [0] * 10, 1), (1, [1] * SLOTS, 1), (1, [-1] * SLOTS, 1), (1, [0] * SLOTS, 0)],
)
def test_maps_that_are_refused(epoch: int, slots: list[int], shard_count: int) -> None:
    with pytest.raises(InvalidDataException, match="a cluster map needs"):
        ClusterMap(epoch, slots, shard_count)


def test_everybody_finds_the_same_primary() -> None:
    primaries = [primary_of(f"txn-{i}", [5, 2, 9]) for i in range(300)]
    assert primaries == [primary_of(f"txn-{i}", {9, 5, 2}) for i in range(300)]
    assert set(primaries) == {2, 5, 9}
    assert primary_of("t", [4]) == 4
    with pytest.raises(InvalidDataException, match="no participants"):
        primary_of("t", [])
