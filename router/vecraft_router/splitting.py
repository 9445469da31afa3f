"""Cutting one transaction into the parts of its shards.

Records go where their slot lies; catalog changes go everywhere, since a collection exists on all shards or on none.
Within a part, mutations keep their order. Pure functions; columns are cut by index arrays, never record by record.
"""

from __future__ import annotations

from collections.abc import Sequence
from operator import itemgetter
from typing import Any

import msgspec
import xxhash

from vecraft_data_model.filter_nodes import Node
from vecraft_data_model.messages import CatalogMutation, CreateCollection, Delete, Expectation, Mutation, Put
from vecraft_data_model.placement import ClusterMap

_encode = msgspec.json.Encoder(order="deterministic").encode


def is_by_filter(mutation: Mutation) -> bool:
    """Whether a mutation deletes what a filter found: every shard has a part in it, and it is known by its filter."""
    return isinstance(mutation, Delete) and mutation.matched is not None


def split_mutations(mutations: Sequence[Mutation], cluster_map: ClusterMap) -> dict[int, list[Mutation]]:
    """Return, per shard that takes part, its mutations.

    Args:
        mutations: Of one transaction.
        cluster_map: Which shard owns which slot.
    """
    parts: dict[int, list[Mutation]] = {}
    if any(isinstance(mutation, CatalogMutation) or is_by_filter(mutation) for mutation in mutations):
        parts = {shard: [] for shard in cluster_map.all_shards()}
    for mutation in mutations:
        if isinstance(mutation, Put | Delete):
            split = dict(_split_records(mutation, cluster_map))
            if isinstance(mutation, Delete) and mutation.matched is not None:
                nothing = Delete(mutation.collection, [], matched=mutation.matched)
                split = {shard: split.get(shard, nothing) for shard in parts}
            for shard, part in split.items():
                parts.setdefault(shard, []).append(part)
        else:
            for own in parts.values():
                own.append(mutation)
    return parts


def split_reads(reads: Sequence[tuple[str, str]], cluster_map: ClusterMap) -> dict[int, list[tuple[str, str]]]:
    """Return, per shard, the ``(collection, record_id)`` that it has to validate."""
    parts: dict[int, list[tuple[str, str]]] = {}
    for read in reads:
        parts.setdefault(cluster_map.shard_of(read[1]), []).append(read)
    return parts


def content_hash(mutations: Sequence[Mutation]) -> bytes:
    """Return 16 bytes that tell one transaction's content from another's, however it was split.

    A payload holds a digest of its vector, so vectors need no hashing here. A collection's id is left out: it is made
    by the router, not by the client whose repetition is to be recognised. For the same reason a deletion by filter is
    known by its filter, not by what was found and when.
    """
    hasher = xxhash.xxh3_128()
    for mutation in mutations:
        if isinstance(mutation, Put):
            hasher.update(_head(b"put", mutation.collection, mutation.expect))
            hasher.update("\0".join(mutation.ids).encode())  # ids hold no NUL, payloads hold their own lengths
            hasher.update(b"".join(mutation.payloads))
        elif isinstance(mutation, Delete):
            hasher.update(_head(b"delete", mutation.collection, mutation.expect))
            if mutation.matched is None:
                hasher.update("\0".join(mutation.ids).encode())
            else:
                hasher.update(_canonical((mutation.matched.where, mutation.matched.where_document)).encode())
        else:
            if isinstance(mutation, CreateCollection):
                mutation = CreateCollection(mutation.schema, "")
            hasher.update(type(mutation).__name__.encode() + b"\0")
            hasher.update(_encode(mutation))
        hasher.update(b"\0\0")
    return hasher.digest()


def with_collection_ids(mutations: Sequence[Mutation], txn_id: str) -> list[Mutation]:
    """Fill in missing collection ids: made from the transaction id, so that every attempt of it makes the same."""
    filled: list[Mutation] = []
    for position, mutation in enumerate(mutations):
        if isinstance(mutation, CreateCollection) and not mutation.collection_id:
            # with its position, since one transaction may make, drop and make a collection of one name
            seed = f"{txn_id}\0{mutation.schema.name}" + (f"\0{position}" if position else "")
            mutation = CreateCollection(mutation.schema, xxhash.xxh3_128_hexdigest(seed.encode()))
        filled.append(mutation)
    return filled


def _head(kind: bytes, collection: str, expect: Expectation) -> bytes:
    return b"%b\0%b\0%b\0" % (kind, collection.encode(), repr(expect).encode())


def _canonical(value: Any) -> str:
    """Return a filter as text that is the same in every process: its sets have no order of their own."""
    if isinstance(value, Node):
        return f"{type(value).__name__}{_canonical(msgspec.structs.astuple(value))}"
    if isinstance(value, tuple):
        return f"({','.join(map(_canonical, value))})"
    if isinstance(value, frozenset):
        return f"{{{','.join(sorted(map(_canonical, value)))}}}"
    return repr(value)


def _split_records(mutation: Put | Delete, cluster_map: ClusterMap) -> list[tuple[int, Put | Delete]]:
    owners = cluster_map.shards()
    if len(owners) == 1 or not mutation.ids:
        return [(owners[0], mutation)]
    if len(mutation.ids) == 1:
        return [(cluster_map.shard_of(mutation.ids[0]), mutation)]
    split = cluster_map.split(mutation.ids)
    if len(split) == 1:
        return [(shard, mutation) for shard in split]
    parts: list[tuple[int, Put | Delete]] = []
    for shard, rows in split.items():
        indices = rows.tolist()
        ids = _pick(mutation.ids, indices)
        if isinstance(mutation, Put):
            payloads = _pick(mutation.payloads, indices)
            parts.append((shard, Put(mutation.collection, ids, mutation.vectors[rows], payloads, mutation.expect)))
        else:
            parts.append((shard, Delete(mutation.collection, ids, mutation.expect, mutation.matched)))
    return parts


def _pick(values: list[Any], indices: list[int]) -> list[Any]:
    return list(itemgetter(*indices)(values)) if len(indices) > 1 else [values[indices[0]]]
