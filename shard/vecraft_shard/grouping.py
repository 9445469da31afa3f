"""Searches that group: of the records with the same value of a metadata field only the nearest count.

The answer to a query is the nearest record, or the ``group_size`` nearest, of each of the k nearest groups; the nearest
record of a group says how near the group is. The nearest records are asked for a few times k at a time: the first of
each group among them is that group's nearest, since the list is in order. Groups that were found are left out of the
next list, so a group of a million near records costs one more search and not a longer list; it ends when there are k
groups, or nothing is left. A group that has not shown enough of its records by then is searched by itself. With
``exact`` every list is exact, and so is the answer; otherwise its recall is the search's own.

A group is a value as equality in filters sees it: ``1`` and ``1.0`` are one, ``1``, ``"1"`` and ``true`` three; null, a
list and an object are values, too. Records without the field are left out. (A dotted name that is reached by several
paths in one record counts by the first of them, and may be left out with the groups of the others.)
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence, Set
from dataclasses import dataclass
from typing import Any, Final

import msgspec
import numpy as np

from vecraft_data_model.filters import And, Exists, Filter, In, Key, key_of, values_at
from vecraft_data_model.messages import Float32Array, Search
from vecraft_shard.indexes.rowset import RowSet
from vecraft_shard.indexes.tail import Found
from vecraft_shard.planner import Costs
from vecraft_shard.search import explain_search
from vecraft_shard.search_view import SearchView

_PER_GROUP: Final = 3
_LIST_MIN: Final = 32

MetadataOf = Callable[[Sequence[int]], Sequence[dict[str, Any] | None]]
Grouped = tuple[Found, list[Any]]
"""Rows and distances, nearest first, and each row's value of the field."""


@dataclass(frozen=True, slots=True)
class _Member:
    """A row that was found, and its value of the field."""

    row: int
    distance: np.float32
    value: Any


def search_groups(
    view: SearchView, request: Search, metadata_of: MetadataOf, costs: Costs
) -> tuple[list[Grouped], dict[str, Any]]:
    """Find the nearest rows of each of the k nearest groups, per query; and how.

    Args:
        view: The collection at the snapshot.
        request: With ``options.group_by``.
        metadata_of: Returns the metadata of rows.
        costs: Of this machine.
    """
    search = _GroupSearch(view, request, metadata_of, costs)
    answers = [search.answer(query) for query in request.queries]
    return answers, {**search.explain, "k": request.options.k, "queries": len(answers), "lists": search.lists}


class _GroupSearch:
    """One request. ``lists``: how many searches it took; ``explain``: how the first of them was done."""

    def __init__(self, view: SearchView, request: Search, metadata_of: MetadataOf, costs: Costs) -> None:
        self._view, self._request, self._metadata_of, self._costs = view, request, metadata_of, costs
        self._field = request.options.group_by or ""
        has_field: Filter = Exists(self._field)
        where = request.options.where
        self._candidates = self._rows_of(has_field if where is None else And((where, has_field)))
        self.lists = 0
        self.explain: dict[str, Any] = {}

    def answer(self, query: Float32Array) -> Grouped:
        """Return the members of the nearest groups, nearest first."""
        k, per_group = self._request.options.k, self._request.options.group_size
        groups: dict[Key, list[_Member]] = {}
        left, whole = self._candidates, False
        last: set[Key] = set()
        while left.count and len(groups) < k:
            size = max((_PER_GROUP + per_group) * (k - len(groups)), _LIST_MIN)
            members = self._nearest(query, left, size)
            seen = set(groups)
            for member in members:
                key = key_of(member.value)
                if key not in seen:
                    groups.setdefault(key, []).append(member)
            last, whole = groups.keys() - seen, len(members) < size
            if whole:
                break
            left = left - self._members_of(last)
        nearest = sorted(groups, key=lambda key: self._rank(groups[key][0]))[:k]
        chosen: list[_Member] = []
        for key in nearest:
            members = groups[key]
            if len(members) < per_group and not (whole and key in last):
                members = self._complete(query, key, members)
            chosen += members[:per_group]
        return _columns(sorted(chosen, key=self._rank))

    def _complete(self, query: Float32Array, key: Key, members: list[_Member]) -> list[_Member]:
        """Search one group by itself."""
        rows = self._candidates & self._members_of({key})
        if rows.count == len(members):
            return members
        found = {member.row: member for member in members}
        for member in self._nearest(query, rows, self._request.options.group_size):
            if key_of(member.value) == key:
                found[member.row] = member
        return sorted(found.values(), key=self._rank)

    def _nearest(self, query: Float32Array, rows: RowSet, k: int) -> list[_Member]:
        """Return the nearest of these rows, nearest first."""
        options = msgspec.structs.replace(self._request.options, k=k, group_by=None, group_size=1)
        asked = msgspec.structs.replace(self._request, queries=query[None, :], options=options)
        ((found, distances),), how = explain_search(_restricted(self._view, rows), asked, costs=self._costs)
        self.explain = self.explain or how
        self.lists += 1
        numbers = found.tolist()
        return [
            _Member(row, distance, next(values_at(metadata, self._field)))
            for row, distance, metadata in zip(numbers, distances, self._metadata_of(numbers), strict=True)
        ]

    def _members_of(self, keys: Set[Key]) -> RowSet:
        return (self._view.matching(In(self._field, frozenset(keys)), None)) or RowSet.empty()

    def _rows_of(self, where: Filter) -> RowSet:
        return self._view.matching(where, self._request.options.where_document) or RowSet.empty()

    def _rank(self, member: _Member) -> tuple[np.float32, str]:
        return member.distance, self._view.ids[member.row]


def _restricted(view: SearchView, rows: RowSet) -> SearchView:
    """The same view, in which just these rows match, whatever is asked."""
    restricted = copy.copy(view)
    restricted.hot_filters = None  # no filter that will be seen again
    restricted.matching = lambda where, where_document: rows  # type: ignore[method-assign]
    return restricted


def _columns(members: Sequence[_Member]) -> Grouped:
    rows = np.array([member.row for member in members], np.int64)
    distances = np.array([member.distance for member in members], np.float32)
    return (rows, distances), [member.value for member in members]
