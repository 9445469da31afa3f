"""Searches of a transaction: what the shards answer at its snapshot, with its own writes laid over.

The answer is the one that a search after the commit would give, if nobody else wrote:

* Of the shards as many more are asked for as records were replaced or deleted here, which are then left out. Own
  records are compared exactly.
* Texts are ranked by the statistics of the documents as this transaction sees them: the shards' without the documents
  that were replaced or deleted here, and with those that were written.
* In a search that groups, a group one of whose records was replaced or deleted here is searched again by itself. So is
  one that own records bring near, for its other members, which the shards did not name.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np

from vecraft_data_model.distances import exact_distances
from vecraft_data_model.filters import And, Eq, Filter, Key, values_at
from vecraft_data_model.messages import Float32Array, Hits
from vecraft_data_model.payload import documents_of, metadata_of
from vecraft_data_model.search_options import SearchOptions
from vecraft_data_model.text_ranking import Bm25, TextQuery, TextStatistics, fusion_depth
from vecraft_data_model.validation import as_matrix
from vecraft_router.effects import Flow
from vecraft_router.fusion import joined
from vecraft_router.merging import group_keys, merge_groups, merge_hits, merge_texts, only_groups, take_hits
from vecraft_router.options import ReadOptions
from vecraft_router.results import Found
from vecraft_router.write_buffer import WriteBuffer

if TYPE_CHECKING:
    from vecraft_router.router import Router


def search_buffered(
    router: Router, buffer: WriteBuffer, queries: Float32Array, wanted: SearchOptions, at: ReadOptions
) -> Flow[Found]:
    """Search a collection as a transaction sees it.

    Args:
        router: Whose flows it is built on.
        buffer: What was written here.
        queries: As for ``Router.search``.
        wanted: Likewise.
        at: The transaction's snapshot.
    """
    if wanted.text is not None and wanted.text.fusion is not None:
        return (yield from _search_texts(router, buffer, queries, wanted, wanted.text, at))
    found = yield from _search_shards(router, buffer, queries, wanted, at)
    if not len(buffer):
        return found
    hits = []
    for number, theirs in enumerate(found.hits):
        query = queries[number : number + 1]
        if wanted.group_by is None:
            (own,) = buffer.nearest(query, wanted)
            hits.append(merge_hits([_without(theirs, buffer), own], wanted.k))
        else:
            hits.append((yield from _with_own_groups(router, buffer, query, wanted, wanted.group_by, at, theirs)))
    return msgspec.structs.replace(found, hits=hits)


def _search_shards(
    router: Router, buffer: WriteBuffer, queries: Float32Array, wanted: SearchOptions, at: ReadOptions
) -> Flow[Found]:
    """Ask the shards for as many more as may have been replaced or deleted here."""
    if buffer.made_here:
        snapshot = at.as_of if isinstance(at.as_of, int) else 0
        return Found(snapshot, [Hits([], [], [] if wanted.with_payloads else None) for _ in queries])
    more = msgspec.structs.replace(wanted, k=wanted.k + len(buffer))
    return (yield from router.search(buffer.schema.name, queries, more, at))


def _without(hits: Hits, buffer: WriteBuffer) -> Hits:
    """Return hits without the records that were replaced or deleted here."""
    keep = [row for row, record_id in enumerate(hits.ids) if record_id not in buffer]
    return hits if len(keep) == len(hits.ids) else take_hits(hits, keep)


# ------------------------------------------------------------------------------------------------------- texts


def _search_texts(
    router: Router,
    buffer: WriteBuffer,
    queries: Float32Array,
    wanted: SearchOptions,
    text: TextQuery,
    at: ReadOptions,
) -> Flow[Found]:
    both = msgspec.structs.replace(
        wanted, k=fusion_depth(wanted.k), text=msgspec.structs.replace(text, fusion=None)
    )
    rankings = 2 if queries.shape[1] else 1
    nothing = Hits([], [], [] if wanted.with_payloads else None, None, [])
    found = Found(0, [nothing] * rankings, statistics=TextStatistics(0, 0, (0,) * len(text.words)))
    if not buffer.made_here:
        found = yield from router.search(buffer.schema.name, queries, both, at)
    if found.statistics is None:
        raise RuntimeError("a search by text comes with the statistics it was ranked by")
    if len(buffer):
        own = documents_of([payload for _, payload in buffer.puts.values()])
        statistics = found.statistics.plus(TextStatistics.of_texts(text.words, own))
        if not buffer.made_here:
            hidden = yield from router.get(buffer.schema.name, buffer.ids(), at, with_vectors=False)
            replaced = TextStatistics.of_texts(text.words, documents_of(hidden.rows.payloads or []))
            statistics = statistics.plus(replaced, -1)
            known = msgspec.structs.replace(text, fusion=None, statistics=statistics)
            more = msgspec.structs.replace(both, k=both.k + len(buffer), text=known)
            found = yield from router.search(buffer.schema.name, queries, more, at)
        ours = _own_rankings(buffer, queries, both, text.words, Bm25(statistics))
        merges = (merge_hits, merge_texts)[-rankings:]
        hits = [
            merge([_without(theirs, buffer), mine], both.k)
            for merge, theirs, mine in zip(merges, found.hits, ours, strict=True)
        ]
        found = msgspec.structs.replace(found, hits=hits)
    return msgspec.structs.replace(found, hits=[joined(found.hits, text.fusion or "rrf", wanted.k)])


def _own_rankings(
    buffer: WriteBuffer, queries: Float32Array, wanted: SearchOptions, words: Sequence[str], ranking: Bm25
) -> list[Hits]:
    """Return the records put here that match, ranked by vector, if there is one, and by text."""
    hits = _measured(buffer, queries, wanted)
    payloads = [buffer.puts[record_id][1] for record_id in hits.ids]
    hits = msgspec.structs.replace(hits, scores=ranking.scores_of_texts(words, documents_of(payloads)))
    with_words = take_hits(hits, [row for row, score in enumerate(hits.scores or ()) if score])
    rankings = [merge_texts([with_words], wanted.k)]
    return [merge_hits([hits], wanted.k), *rankings] if queries.shape[1] else rankings


def _measured(buffer: WriteBuffer, queries: Float32Array, wanted: SearchOptions) -> Hits:
    """Return all records put here that match, in the order of their ids, with their distances."""
    ids = buffer.matching(wanted.where, wanted.where_document)
    rows = buffer.rows(ids, with_payloads=wanted.with_payloads)
    vectors = rows.vectors
    distances = np.full(len(ids), np.nan, np.float32)
    if vectors is not None and queries.shape[1]:
        schema = buffer.schema
        checked = as_matrix(queries, schema.dim, metric=schema.metric, what="query")
        distances = exact_distances(schema.metric, vectors, checked[0])
    hits = Hits(ids, distances.tolist(), rows.payloads, vectors if wanted.with_vectors else None)
    limit = wanted.max_distance
    return hits if limit is None else take_hits(hits, [row for row, far in enumerate(hits.distances) if far <= limit])


# ------------------------------------------------------------------------------------------------------ groups


def _with_own_groups(
    router: Router,
    buffer: WriteBuffer,
    query: Float32Array,
    wanted: SearchOptions,
    field: str,
    at: ReadOptions,
    theirs: Hits,
) -> Flow[Hits]:
    """Return the nearest groups of the shards' records, without those replaced or deleted here, and of own ones."""
    named = set(group_keys(theirs))
    touched = {
        key: value
        for record_id, key, value in zip(theirs.ids, group_keys(theirs), theirs.groups or (), strict=True)
        if record_id in buffer
    }
    parts = [only_groups(theirs, named - touched.keys()), _own_groups(buffer, query, wanted, field)]
    parts += yield from _members_of(router, buffer, query, wanted, field, at, touched)
    merged = merge_groups(parts, wanted.k, wanted.group_size)
    if wanted.group_size == 1:
        return merged
    brought = {
        key: value
        for key, value in zip(group_keys(merged), merged.groups or (), strict=True)
        if key not in named
    }
    others = yield from _members_of(router, buffer, query, wanted, field, at, brought)
    return merge_groups([merged, *others], wanted.k, wanted.group_size)


def _members_of(
    router: Router,
    buffer: WriteBuffer,
    query: Float32Array,
    wanted: SearchOptions,
    field: str,
    at: ReadOptions,
    groups: Mapping[Key, Any],
) -> Flow[list[Hits]]:
    """Return the shards' nearest records of each of these groups (by key: the value), without those written here."""
    parts = []
    for key, value in groups.items():
        of_group: Filter = Eq(field, key)
        where = of_group if wanted.where is None else And((wanted.where, of_group))
        members = msgspec.structs.replace(wanted, where=where, group_by=None, group_size=1, k=wanted.group_size)
        found = yield from _search_shards(router, buffer, query, members, at)
        others = _without(found.hits[0], buffer)
        parts.append(msgspec.structs.replace(others, groups=[value] * len(others.ids)))
    return parts


def _own_groups(buffer: WriteBuffer, query: Float32Array, wanted: SearchOptions, field: str) -> Hits:
    hits = _measured(buffer, query, wanted)
    values: list[list[Any]] = [
        list(values_at(metadata, field))[:1]
        for metadata in metadata_of([buffer.puts[record_id][1] for record_id in hits.ids])
    ]
    in_group = take_hits(hits, [row for row, found in enumerate(values) if found])
    return msgspec.structs.replace(in_group, groups=[found[0] for found in values if found])
