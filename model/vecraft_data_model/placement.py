"""Which shard holds a record: ``slot = xxh3_64(record_id) mod 1024``, and a map from slots to shards.

The hash is fixed for ever: changing it would lose every record. The map changes, its epoch rises with each change,
and a shard refuses requests that were routed by another epoch than its own. How slots are moved from shard to shard is
not decided here; this module only says where things are.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import cached_property
from typing import Final

import msgspec
import numpy as np
import numpy.typing as npt
import xxhash

from vecraft_data_model.errors import InvalidDataException

SLOTS: Final = 1024
MAX_SHARDS: Final = SLOTS

_hash: Final = xxhash.xxh3_64_intdigest


def slot_of(record_id: str) -> int:
    """Return the slot of a record id, from 0 to 1023."""
    return _hash(record_id.encode()) % SLOTS


def slots_of(record_ids: Sequence[str]) -> npt.NDArray[np.int64]:
    """Return the slots of many record ids, (n,) int64."""
    hashes = np.fromiter(
        [_hash(record_id.encode()) for record_id in record_ids], dtype=np.uint64, count=len(record_ids)
    )
    return (hashes & np.uint64(SLOTS - 1)).astype(np.int64)


class ClusterMap(msgspec.Struct, frozen=True, dict=True):
    """Slot → shard, at one epoch.

    Attributes:
        epoch: Rises by one with every change; at least 1.
        slots: 1024 shard numbers.
        shard_count: Shards of the cluster, 0 to ``shard_count - 1``; some may own no slot yet.

    Raises:
        InvalidDataException: Not 1024 slots, or a slot on a shard that does not exist.
    """

    epoch: int
    slots: list[int]
    shard_count: int

    def __post_init__(self) -> None:
        if self.epoch < 1 or not 1 <= self.shard_count <= MAX_SHARDS:
            raise InvalidDataException(
                f"a cluster map needs an epoch of at least 1 and 1 to {MAX_SHARDS} shards; "
                f"got epoch {self.epoch} and {self.shard_count} shards"
            )
        if len(self.slots) != SLOTS or not all(0 <= shard < self.shard_count for shard in self.slots):
            raise InvalidDataException(
                f"a cluster map needs {SLOTS} slots on shards 0 to {self.shard_count - 1}; "
                f"got {len(self.slots)} slots on shards {sorted(set(self.slots))[:10]}"
            )

    @cached_property
    def _owner(self) -> npt.NDArray[np.int64]:
        return np.array(self.slots, dtype=np.int64)

    @cached_property
    def _owners(self) -> tuple[int, ...]:
        return tuple(sorted(set(self.slots)))

    def shard_of(self, record_id: str) -> int:
        """Return the shard that owns a record id."""
        return self.slots[_hash(record_id.encode()) % SLOTS]

    def shards(self) -> tuple[int, ...]:
        """Return the shards that own at least one slot, ascending: those a search must ask."""
        return self._owners

    def all_shards(self) -> range:
        """Return every shard of the cluster: those a catalog change must reach."""
        return range(self.shard_count)

    def split(self, record_ids: Sequence[str]) -> dict[int, npt.NDArray[np.int64]]:
        """Return, per shard that owns any of them, the ascending indices of its ids in ``record_ids``."""
        if not record_ids:
            return {}
        owners = self._owners
        if len(owners) == 1:
            return {owners[0]: np.arange(len(record_ids), dtype=np.int64)}
        shard = self._owner[slots_of(record_ids)]
        parts = {owner: np.flatnonzero(shard == owner) for owner in owners}
        return {owner: indices for owner, indices in parts.items() if len(indices)}

    def slots_owned(self, shard: int) -> npt.NDArray[np.int64]:
        """Return the slots of one shard, ascending."""
        return np.flatnonzero(self._owner == shard)


def initial_map(shards: int) -> ClusterMap:
    """Return the map of a new cluster: epoch 1, the slots in equal contiguous runs.

    Raises:
        InvalidDataException: ``shards`` is not an integer from 1 to 1024.
    """
    if isinstance(shards, bool) or not isinstance(shards, int) or not 1 <= shards <= MAX_SHARDS:
        raise InvalidDataException(f"shards must be an integer from 1 to {MAX_SHARDS}; got {shards!r}")
    return ClusterMap(epoch=1, slots=[slot * shards // SLOTS for slot in range(SLOTS)], shard_count=shards)


def primary_of(txn_id: str, shards: Iterable[int]) -> int:
    """Return the shard that decides a transaction: the same for everybody who knows its id and its participants.

    Raises:
        InvalidDataException: No shard given.
    """
    ordered = sorted(set(shards))
    if not ordered:
        raise InvalidDataException(f"transaction {txn_id!r} has no participants")
    return ordered[_hash(txn_id.encode()) % len(ordered)]
