"""Searches that group: of the records with the same value of a metadata field only the nearest counts.

The answer to a query is the nearest record of each of the k nearest groups. The nearest records are asked for a few
times k at a time: the first of each group among them is that group's nearest, since the list is in order. Groups that
were found are left out of the next list, so a group of a million near records costs one more search and not a longer
list; it ends when there are k groups, or nothing is left. With ``exact`` every list is exact, and so is the answer;
otherwise its recall is the search's own.

A group is a value as equality in filters sees it: ``1`` and ``1.0`` are one, ``1``, ``"1"`` and ``true`` three; null, a
list and an object are values, too. Records without the field are left out. (A dotted name that is reached by several
paths in one record counts by the first of them.)
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any, Final

import msgspec
import numpy as np

from vecraft_data_model.filters import And, Exists, Filter, In, Key, key_of, values_at
from vecraft_data_model.messages import Search
from vecraft_shard.indexes.rowset import RowSet
from vecraft_shard.indexes.tail import Found
from vecraft_shard.planner import Costs
from vecraft_shard.search import SearchView, explain_search

_PER_GROUP: Final = 4
_LIST_MIN: Final = 32

MetadataOf = Callable[[Sequence[int]], Sequence[dict[str, Any] | None]]
Grouped = tuple[Found, list[Any]]
"""Rows and distances, nearest first, and each row's value of the field."""


def search_groups(
    view: SearchView, request: Search, metadata_of: MetadataOf, costs: Costs
) -> tuple[list[Grouped], dict[str, Any]]:
    """Find the nearest row of each of the k nearest groups, per query; and how.

    Args:
        view: The collection at the snapshot.
        request: With ``options.group_by``.
        metadata_of: Returns the metadata of rows.
        costs: Of this machine.
    """
    options = request.options
    field = options.group_by or ""
    has_field: Filter = Exists(field)
    where = has_field if options.where is None else And((options.where, has_field))
    candidates = view.matching(where, options.where_document) or RowSet.empty()
    lists = 0
    answers = []
    explain: dict[str, Any] = {}
    for query in request.queries:
        best: dict[Key, tuple[int, np.float32, Any]] = {}
        left = candidates
        while left.count:
            size = max(_PER_GROUP * (options.k - len(best)), _LIST_MIN)
            asked = msgspec.structs.replace(
                request, queries=query[None, :], options=msgspec.structs.replace(options, k=size, group_by=None)
            )
            ((rows, distances),), how = explain_search(_restricted(view, left), asked, costs=costs)
            explain = explain or how
            lists += 1
            found: set[Key] = set()
            for row, distance, metadata in zip(rows.tolist(), distances, metadata_of(rows.tolist()), strict=True):
                value = next(values_at(metadata, field))
                key = key_of(value)
                if key not in best:
                    best[key] = (row, distance, value)
                    found.add(key)
            if len(rows) < size or len(best) >= options.k:
                break
            left = left - (view.matching(In(field, frozenset(found)), None) or RowSet.empty())
        answers.append(_nearest_groups(view, list(best.values()), options.k))
    return answers, {**explain, "k": options.k, "queries": len(request.queries), "lists": lists}


def _restricted(view: SearchView, rows: RowSet) -> SearchView:
    """The same view, in which just these rows match, whatever is asked."""
    restricted = copy.copy(view)
    restricted.hot_filters = None  # no filter that will be seen again
    restricted.matching = lambda where, where_document: rows  # type: ignore[method-assign]
    return restricted


def _nearest_groups(view: SearchView, best: Sequence[tuple[int, np.float32, Any]], k: int) -> Grouped:
    ranked = sorted(best, key=lambda entry: (entry[1], view.ids[entry[0]]))[:k]
    rows = np.array([row for row, _, _ in ranked], np.int64)
    distances = np.array([distance for _, distance, _ in ranked], np.float32)
    return (rows, distances), [value for _, _, value in ranked]
