"""Searches that group: of the records with the same value of a metadata field only the nearest count.

The answer to a query is the nearest record, or the ``group_size`` nearest, of each of the k nearest groups; the nearest
record of a group says how near the group is.

1. *Groups.* The nearest records are asked for a few times as many at a time as are wanted: the first of each group
   among them is that group's nearest, since the list is in order. Groups that were found are left out of the next
   list, so a group of a million near records costs one more search and not a longer list; it ends when there are k
   groups, or nothing is left.
2. *Members.* Groups that have not shown enough of their records by then are searched together, by themselves, until
   each has; those that have drop out, and the list grows each time. A request with ``members_of`` is answered by this
   step alone.

Which group a record is of comes from the index of the field. With ``exact`` every list is exact, and so is the answer;
otherwise its recall is the search's own.

A group is a value as equality in filters sees it: ``1`` and ``1.0`` are one, ``1``, ``"1"`` and ``true`` three; null, a
list and an object are values, too. Records without the field are left out. (A dotted name that is reached by several
paths in one record counts by the first of them, and may be left out with the groups of the others.)
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Collection, Sequence
from typing import Any, Final

import msgspec
import numpy as np
import numpy.typing as npt

from vecraft_data_model.filters import And, Exists, Filter, Key, values_at
from vecraft_data_model.messages import Float32Array, Search
from vecraft_shard.indexes.metadata import MetadataIndex
from vecraft_shard.indexes.postings import HASHED, as_hashed, hashed_key
from vecraft_shard.indexes.rowset import RowSet
from vecraft_shard.indexes.tail import Found
from vecraft_shard.planner import Costs
from vecraft_shard.search import explain_search, run_search
from vecraft_shard.search_view import SearchView

_SPARE: Final = 5
"""A list is so many times as long as what is wanted of it."""
_LIST_MIN: Final = 32
_LONGER: Final = 4

MetadataOf = Callable[[Sequence[int]], Sequence[dict[str, Any] | None]]
Grouped = tuple[Found, list[Any]]
"""Rows and distances, nearest first, and each row's value of the field."""
_Member = tuple[float, str, int]
"""Distance, record id and row: members sort as answers do."""


def search_groups(
    view: SearchView,
    request: Search,
    index: MetadataIndex,
    metadata_of: MetadataOf,
    threads: int,
    costs: Costs,
) -> tuple[list[Grouped], dict[str, Any]]:
    """Find the nearest rows of each of the k nearest groups, per query; and how.

    Args:
        view: The collection at the snapshot.
        request: With ``options.group_by``.
        index: Of the collection's metadata.
        metadata_of: Returns the metadata of rows, for values that the index knows by a fingerprint only.
        threads: As for :func:`~vecraft_shard.search.run_search`.
        costs: Of this machine.
    """
    search = _GroupSearch(view, request, index, metadata_of, costs)
    answers = search.answers(threads)
    return answers, {**search.explain, "k": request.options.k, "queries": len(answers), "lists": search.lists}


class _GroupSearch:
    """One request. ``lists``: how many searches it took; ``explain``: how the first of them was done, if asked."""

    def __init__(
        self, view: SearchView, request: Search, index: MetadataIndex, metadata_of: MetadataOf, costs: Costs
    ) -> None:
        self._view, self._request, self._index, self._metadata_of = view, request, index, metadata_of
        self._costs = costs
        options = request.options
        self._k, self._per_group, self._field = options.k, options.group_size, options.group_by or ""
        has_field: Filter = Exists(self._field)
        self._where = has_field if options.where is None else And((options.where, has_field))
        self._candidates = view.matching(self._where, options.where_document) or RowSet.empty()
        self.lists = 0
        self.explain: dict[str, Any] = {}

    def answers(self, threads: int) -> list[Grouped]:
        """Return the members of the nearest groups of each query, or of those that are named, nearest first."""
        named = self._request.members_of
        if named is not None:
            return [self._named(query, keys) for query, keys in zip(self._request.queries, named, strict=True)]
        size = self._list_size(self._k)
        options = msgspec.structs.replace(self._request.options, k=size, group_by=None, group_size=1)
        everything = self._candidates.count == self._view.rows
        where, where_document = (None, None) if everything else (self._where, options.where_document)
        # What is deep enough for k neighbours is too thin where the list goes on behind them.
        depth = (options.ef or self._view.ef) + _SPARE * self._k
        options = msgspec.structs.replace(options, where=where, where_document=where_document, ef=depth)
        lists = self._searched(self._view, msgspec.structs.replace(self._request, options=options), threads)
        return [self._answer(query, first) for query, first in zip(self._request.queries, lists, strict=True)]

    def _answer(self, query: Float32Array, found: Found) -> Grouped:
        groups: dict[Key, list[_Member]] = {}
        size, left = self._list_size(self._k), self._candidates
        while True:
            fresh = {key: members for key, members in self._grouped(found).items() if key not in groups}
            groups |= fresh
            whole = len(found[0]) < size
            if whole or len(groups) >= self._k:
                break
            left = left - self._members_of(fresh)
            size = self._list_size(self._k - len(groups))
            found = self._nearest(query, left, size)
        nearest = sorted(groups, key=lambda key: groups[key][0])[: self._k]
        short = {key for key in nearest if len(groups[key]) < self._per_group}
        self._complete(query, groups, short - fresh.keys() if whole else short)
        return self._columns([(member, key) for key in nearest for member in groups[key][: self._per_group]])

    def _named(self, query: Float32Array, keys: Collection[Key]) -> Grouped:
        groups: dict[Key, list[_Member]] = {as_hashed(key): [] for key in keys}
        self._complete(query, groups, set(groups))
        return self._columns([(member, key) for key in groups for member in groups[key][: self._per_group]])

    def _complete(self, query: Float32Array, groups: dict[Key, list[_Member]], short: set[Key]) -> None:
        """Find more members of groups that have too few."""
        longer = 1
        while short:
            rows = self._candidates & self._members_of(short)
            if rows.count <= sum(len(groups[key]) for key in short):
                return
            size = self._list_size(len(short)) * longer
            found = self._nearest(query, rows, size)
            for key, members in self._grouped(found).items():
                if key in short:
                    groups[key] = sorted({*groups[key], *members})
            if len(found[0]) < size:
                return
            short = {key for key in short if len(groups[key]) < self._per_group}
            longer *= _LONGER

    def _list_size(self, groups: int) -> int:
        return max(_SPARE * self._per_group * groups, _LIST_MIN)

    def _nearest(self, query: Float32Array, rows: RowSet, k: int) -> Found:
        """Return the nearest of these rows, nearest first."""
        if not rows.count:
            return np.empty(0, np.int64), np.empty(0, np.float32)
        # A condition is named, whatever it is: without one nobody would ask the view what matches.
        options = msgspec.structs.replace(self._request.options, where=self._where, k=k, group_by=None, group_size=1)
        asked = msgspec.structs.replace(self._request, queries=query[None, :], options=options)
        return self._searched(_restricted(self._view, rows), asked)[0]

    def _searched(self, view: SearchView, asked: Search, threads: int = 1) -> list[Found]:
        self.lists += len(asked.queries)
        if self.explain or not asked.options.explain:
            return run_search(view, asked, threads, self._costs)
        found, self.explain = explain_search(view, asked, threads, self._costs)
        return found

    def _grouped(self, found: Found) -> dict[Key, list[_Member]]:
        """Return the first rows of each group in a list, nearest first, as many as are wanted."""
        groups: dict[Key, list[_Member]] = {}
        ids, rows, distances = self._view.ids, found[0].tolist(), found[1].tolist()
        for place, key in enumerate(self._keys_of(found[0])):
            members = groups.setdefault(key, [])
            if len(members) < self._per_group:
                members.append((distances[place], ids[rows[place]], rows[place]))
        return groups

    def _keys_of(self, rows: npt.NDArray[np.int64]) -> list[Key]:
        keys = self._index.keys_at(self._field, rows)
        if None in keys:
            unclear = [place for place, key in enumerate(keys) if key is None]
            for place, value in zip(unclear, self._values_of(rows[unclear].tolist()), strict=True):
                keys[place] = hashed_key(value)
        return [key for key in keys if key is not None]

    def _members_of(self, keys: Collection[Key]) -> RowSet:
        return self._index.rows_with(self._field, keys, self._view.rows)

    def _values_of(self, rows: Sequence[int]) -> list[Any]:
        """Return the rows' values of the field, as they are stored."""
        return [next(values_at(metadata, self._field)) for metadata in self._metadata_of(rows)]

    def _columns(self, chosen: list[tuple[_Member, Key]]) -> Grouped:
        chosen.sort(key=lambda entry: entry[0])
        rows = np.array([row for (_, _, row), _ in chosen], np.int64)
        distances = np.array([distance for (distance, _, _), _ in chosen], np.float32)
        values: list[Any] = [value for _, (_, value) in chosen]
        hashed = [place for place, (_, (kind, _)) in enumerate(chosen) if kind == HASHED]
        stored = self._values_of(rows[hashed].tolist()) if hashed else ()
        for place, value in zip(hashed, stored, strict=True):
            values[place] = value
        return (rows, distances), values


def _restricted(view: SearchView, rows: RowSet) -> SearchView:
    """The same view, in which just these rows match, whatever is asked."""
    restricted = copy.copy(view)
    restricted.hot_filters = None  # no filter that will be seen again
    restricted.matching = lambda where, where_document: rows  # type: ignore[method-assign]
    return restricted
