"""Searches of one batch that ask the same are answered as one: one filter, one plan, one walk for all their queries.

Many callers search with the same ``k`` and no filter, or the same one. What they share is paid once, which matters when
a gateway brings dozens of them in one call. Searches that let the shard choose the snapshot share the newest one that
any of them needs; the answers of searches at a given snapshot are exactly what each would have got alone.

A router gives nearly every search a snapshot of its own. Those between which the collection did not change see the
same, so they are answered as one at the latest of them::

    snapshots   11 12 12 14 │ 19 21 22        17: the one commit to the collection in that time
    answered at          14 │       22

When those commits are looked up, more may be under way at or below the latest snapshot. Once the read has been answered
there are none, so it is looked up again; if there was one, each snapshot is read for itself.
"""

from __future__ import annotations

from bisect import bisect
from collections.abc import Callable, Hashable, Iterable, Sequence
from typing import TypeVar

import msgspec
import numpy as np

from vecraft_data_model.messages import CHOOSE_SNAPSHOT, Refused, Request, Response, Search, SearchReply

Answer = Callable[[Request], Response]

Changes = Callable[[str, int, int], Sequence[int] | None]
"""``(collection, first, last)`` → when the collection changed after snapshot ``first`` and up to ``last``, as far as
that is decided; None: that is not known."""

_MAX_QUERIES = 256
"""Together they hold the latch once, so that a writer waits for no more than this."""

_T = TypeVar("_T")


def answer_all(requests: Sequence[Request], answer: Answer, changes: Changes) -> list[Response]:
    """Answer read requests in order, like searches together."""
    responses: list[Response | None] = [None] * len(requests)
    for alike in _alike(requests):
        for group in _seeing_the_same(alike, changes):
            searches = [search for _, search in group]
            for (place, _), response in zip(group, _as_one(searches, answer, changes), strict=True):
                responses[place] = response
    return [answer(requests[i]) if response is None else response for i, response in enumerate(responses)]


Placed = tuple[int, Search]
"""A search, and its place among the requests."""


def _alike(requests: Sequence[Request]) -> list[list[Placed]]:
    """Searches that differ in nothing but their queries and moments; only those that have company."""
    searches = [
        (place, request)
        for place, request in enumerate(requests)
        if type(request) is Search and _may_share(request) and request.queries.ndim == 2
    ]
    groups = _grouped(
        searches,
        lambda placed: (
            placed[1].collection, placed[1].options, placed[1].snapshot == CHOOSE_SNAPSHOT, placed[1].queries.shape[1]
        ),
    )  # fmt: skip
    return [group for group in groups if len(group) > 1]


def _may_share(search: Search) -> bool:
    """Whether nothing but its vector is asked of a query by itself, and nothing is said of all of them."""
    return not search.options.explain and search.options.text is None and search.members_of is None


def _seeing_the_same(alike: Sequence[Placed], changes: Changes) -> Iterable[list[Placed]]:
    """Split alike searches by what they see, as far as that is known now, and so that none are too many."""
    snapshots = [search.snapshot for _, search in alike]
    moments = changes(alike[0][1].collection, min(snapshots), max(snapshots)) if len(set(snapshots)) > 1 else []
    if moments is None:
        groups = _grouped(alike, lambda placed: placed[1].snapshot)
    else:
        seen = sorted(moments)
        groups = _grouped(alike, lambda placed: bisect(seen, placed[1].snapshot)) if seen else [list(alike)]
    for group in groups:
        part: list[Placed] = []
        queries = 0
        for placed in group:
            count = len(placed[1].queries)
            if part and queries + count > _MAX_QUERIES:
                yield part
                part, queries = [], 0
            part.append(placed)
            queries += count
        yield part


def _as_one(group: Sequence[Search], answer: Answer, changes: Changes) -> list[Response]:
    if len(group) == 1:
        return [answer(group[0])]
    first, last = min(search.snapshot for search in group), max(search.snapshot for search in group)
    merged = msgspec.structs.replace(
        group[0],
        queries=np.concatenate([search.queries for search in group]),
        snapshot=last,
        min_ts=max(search.min_ts for search in group) if last == CHOOSE_SNAPSHOT else group[0].min_ts,
    )
    reply = answer(merged)
    if isinstance(reply, Refused):
        return [answer(search) for search in group]  # one bad query must not harm the others
    if first < last and (not isinstance(reply, SearchReply) or changes(merged.collection, first, last) != []):
        return _by_snapshot(group, answer, changes)
    if not isinstance(reply, SearchReply):
        return [reply] * len(group)
    responses: list[Response] = []
    begin = 0
    for search in group:
        end = begin + len(search.queries)
        responses.append(SearchReply(search.snapshot or reply.snapshot, reply.hits[begin:end]))
        begin = end
    return responses


def _by_snapshot(group: Sequence[Search], answer: Answer, changes: Changes) -> list[Response]:
    """Answer searches at several snapshots, those at each of them together."""
    responses: dict[int, Response] = {}
    for places in _grouped(range(len(group)), lambda place: group[place].snapshot):
        answers = _as_one([group[place] for place in places], answer, changes)
        responses.update(zip(places, answers, strict=True))
    return [responses[place] for place in range(len(group))]


def _grouped(items: Iterable[_T], key: Callable[[_T], Hashable]) -> list[list[_T]]:
    groups: dict[Hashable, list[_T]] = {}
    for item in items:
        groups.setdefault(key(item), []).append(item)
    return list(groups.values())
