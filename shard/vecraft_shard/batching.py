"""Searches of one batch that ask the same are answered as one: one filter, one plan, one walk for all their queries.

Many callers search with the same ``k`` and no filter, or the same one. What they share is paid once, which matters when
a gateway brings dozens of them in one call. Searches that let the shard choose the snapshot share the newest one that
any of them needs; the answers of searches at a given snapshot are exactly what each would have got alone.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import msgspec
import numpy as np

from vecraft_data_model.messages import CHOOSE_SNAPSHOT, Refused, Request, Response, Search, SearchReply
from vecraft_data_model.search_options import SearchOptions

Answer = Callable[[Request], Response]
_MAX_QUERIES = 256
"""Together they hold the latch once, so that a writer waits for no more than this."""


def answer_all(requests: Sequence[Request], answer: Answer) -> list[Response]:
    """Answer read requests in order, like searches together."""
    responses: list[Response | None] = [None] * len(requests)
    for places in _alike(requests):
        searches = [request for place in places if isinstance(request := requests[place], Search)]
        for place, response in zip(places, _together(searches, answer), strict=True):
            responses[place] = response
    return [answer(requests[i]) if response is None else response for i, response in enumerate(responses)]


def _alike(requests: Sequence[Request]) -> list[list[int]]:
    """Places of searches that differ in nothing but their queries; only those that have company."""
    groups: dict[object, list[int]] = {}
    for place, request in enumerate(requests):
        if isinstance(request, Search) and _may_share(request.options) and request.queries.ndim == 2:
            key = (request.collection, request.options, request.snapshot, request.queries.shape[1])
            groups.setdefault(key, []).append(place)
    return [places for places in groups.values() if len(places) > 1]


def _may_share(options: SearchOptions) -> bool:
    """Whether the answer has one entry per query, and nothing that is said of all of them."""
    return not options.explain and options.text is None


def _together(searches: Sequence[Search], answer: Answer) -> list[Response]:
    """Answer alike searches, as few at a time as the bound on queries asks."""
    responses: list[Response] = []
    group: list[Search] = []
    for search in searches:
        if group and sum(len(member.queries) for member in group) + len(search.queries) > _MAX_QUERIES:
            responses += _as_one(group, answer)
            group = []
        group.append(search)
    return responses + _as_one(group, answer)


def _as_one(group: Sequence[Search], answer: Answer) -> list[Response]:
    if len(group) == 1:
        return [answer(group[0])]
    merged = msgspec.structs.replace(
        group[0],
        queries=np.concatenate([search.queries for search in group]),
        min_ts=max(search.min_ts for search in group) if group[0].snapshot == CHOOSE_SNAPSHOT else group[0].min_ts,
    )
    reply = answer(merged)
    if isinstance(reply, Refused):
        return [answer(search) for search in group]  # one bad query must not harm the others
    if not isinstance(reply, SearchReply):
        return [reply] * len(group)
    responses: list[Response] = []
    first = 0
    for search in group:
        last = first + len(search.queries)
        responses.append(SearchReply(reply.snapshot, reply.hits[first:last]))
        first = last
    return responses
