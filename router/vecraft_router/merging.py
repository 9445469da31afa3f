"""Putting the answers of several shards together, so that nobody can tell how many there were.

Hits merge by (distance, record id), rows by record id. All functions are pure and leave their arguments alone.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence, Set
from itertools import chain, count, repeat
from typing import TypeVar

import numpy as np

from vecraft_data_model.filters import Key, key_of
from vecraft_data_model.messages import Float32Array, Hits, Rows

_T = TypeVar("_T")

NO_ROWS = Rows([], [], [], None)


def merge_hits(parts: Sequence[Hits], k: int) -> Hits:
    """Return the k nearest of several answers to one query, nearest first, ties by record id."""
    return _merged(parts, k, [part.distances for part in parts])


def merge_texts(parts: Sequence[Hits], k: int) -> Hits:
    """Return the k hits of several answers that score best, best first, ties by record id."""
    return _merged(parts, k, [[-score for score in part.scores or ()] for part in parts])


def merge_groups(parts: Sequence[Hits], k: int, size: int) -> Hits:
    """Return the nearest hits, up to ``size``, of each of the k nearest groups in any of the answers, nearest first."""
    ranked = _merged(parts, sum(len(part.ids) for part in parts), [part.distances for part in parts])
    chosen: dict[Key, int] = {}
    rows = []
    for row, key in enumerate(group_keys(ranked)):
        taken = chosen.get(key, 0)
        if taken < size and (taken or len(chosen) < k):
            chosen[key] = taken + 1
            rows.append(row)
    return take_hits(ranked, rows)


def lacking_groups(merged: Hits, parts: Mapping[int, Hits], k: int) -> dict[int, frozenset[Key]]:
    """Return which shards may have more of the groups that were chosen, and of which groups each.

    A shard that named fewer than k groups has no others; one with k may have passed over a group of which other shards
    have nearer members.

    Args:
        merged: What :func:`merge_groups` made of the parts.
        parts: The answer of each shard.
        k: How many groups were asked for.
    """
    chosen = frozenset(group_keys(merged))
    named = {shard: set(group_keys(part)) for shard, part in parts.items()}
    return {shard: chosen - keys for shard, keys in named.items() if len(keys) >= k and chosen - keys}


def only_groups(hits: Hits, keys: Set[Key]) -> Hits:
    """Return the hits that are of these groups."""
    return take_hits(hits, [row for row, key in enumerate(group_keys(hits)) if key in keys])


def group_keys(hits: Hits) -> list[Key]:
    """Return the group of each hit, of a search that groups."""
    return [key_of(value) for value in hits.groups or ()]


def _merged(parts: Sequence[Hits], k: int, keys: Sequence[Sequence[float]]) -> Hits:
    """Return the first k hits by key and record id."""
    entries: list[tuple[float, str, int, int]] = []
    for number, part in enumerate(parts):
        entries.extend(zip(keys[number], part.ids, repeat(number), count()))
    entries.sort()
    return gather_hits(parts, [(number, row) for _, _, number, row in entries[:k]])


def take_hits(hits: Hits, order: Sequence[int]) -> Hits:
    """Return some of the hits, in the order given."""
    return gather_hits((hits,), [(0, row) for row in order])


def gather_hits(parts: Sequence[Hits], picks: Sequence[tuple[int, int]]) -> Hits:
    """Return the hits ``(part, place in it)``, in that order. What one of them lacks none of them carries."""
    ids, distances = [part.ids for part in parts], [part.distances for part in parts]
    return Hits(
        [ids[number][row] for number, row in picks],
        [distances[number][row] for number, row in picks],
        _gather([part.payloads for part in parts], picks),
        _stacked([part.vectors for part in parts], picks),
        _gather([part.scores for part in parts], picks),
        _gather([part.groups for part in parts], picks),
    )


def concat_rows(parts: Sequence[Rows]) -> Rows:
    """Return the rows of all parts, one part after another."""
    parts = [part for part in parts if part.ids] or list(parts[:1])
    if not parts:
        return NO_ROWS
    if len(parts) == 1:
        return parts[0]
    payloads = [part.payloads for part in parts if part.payloads is not None]
    vectors = [part.vectors for part in parts if part.vectors is not None]
    return Rows(
        list(chain.from_iterable(part.ids for part in parts)),
        list(chain.from_iterable(part.begin_ts for part in parts)),
        list(chain.from_iterable(payloads)) if len(payloads) == len(parts) else None,
        np.concatenate(vectors) if len(vectors) == len(parts) else None,
    )


def take_rows(rows: Rows, order: Sequence[int]) -> Rows:
    """Return some of the rows, in the order given."""
    return Rows(
        [rows.ids[row] for row in order],
        [rows.begin_ts[row] for row in order],
        None if rows.payloads is None else [rows.payloads[row] for row in order],
        None if rows.vectors is None else rows.vectors[list(order)],
    )


def in_order_of(ids: Sequence[str], rows: Rows) -> Rows:
    """Return rows in the order in which ``ids`` names them."""
    if len(rows.ids) < 2 or rows.ids == ids:
        return rows
    position = {record_id: place for place, record_id in enumerate(ids)}
    places = [position[record_id] for record_id in rows.ids]
    order = sorted(range(len(places)), key=places.__getitem__)
    return take_rows(rows, order)


def merge_pages(pages: Sequence[tuple[Rows, str | None]], limit: int) -> tuple[Rows, bool]:
    """Merge pages of disjoint ids into one in id order, of at most ``limit`` rows.

    Args:
        pages: Rows in any order, and the id up to which that source is complete (None: to its end).
        limit: Most rows wanted.

    Returns:
        The rows, and whether others may follow. Fewer than ``limit`` rows do not mean that none follow: a row is only
        known to be next if every source is complete up to it.
    """
    rows = concat_rows([page for page, _ in pages])
    end = min((reach for _, reach in pages if reach is not None), default=None)
    order = sorted(range(len(rows.ids)), key=rows.ids.__getitem__)
    if end is not None:
        order = [row for row in order if rows.ids[row] <= end]
    return take_rows(rows, order[:limit]), end is not None or len(order) > limit


def _gather(columns: Sequence[list[_T] | None], picks: Sequence[tuple[int, int]]) -> list[_T] | None:
    """Return the values ``(column, place in it)``; None if a column that is needed is missing."""
    if not picks and columns[0] is None:
        return None
    gathered = []
    for number, row in picks:
        column = columns[number]
        if column is None:
            return None
        gathered.append(column[row])
    return gathered


def _stacked(sources: Sequence[Float32Array | None], picks: Sequence[tuple[int, int]]) -> Float32Array | None:
    """The same for vectors."""
    gathered = []
    for number, row in picks:
        source = sources[number]
        if source is None:
            return None
        gathered.append(source[row])
    if not gathered:
        return None if sources[0] is None else sources[0][:0]
    return np.stack(gathered)
