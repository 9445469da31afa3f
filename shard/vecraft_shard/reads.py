"""Read requests: at one snapshot, the same rule everywhere.

1. Choose the snapshot, or take the given one; refuse it below the safe point.
2. See that it is not above the durable ceiling (else the engine raises that first).
3. Move the clock to it; if something undecided at or below it concerns the collection, answer ``Undecided``.
4. Read, under the shared latch.
5. Check the safe point once more: if it passed the snapshot meanwhile, the answer may miss what was reclaimed.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from heapq import nsmallest
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt

from vecraft_data_model.errors import CollectionNotExistedException, InvalidDataException
from vecraft_data_model.messages import (
    CHOOSE_SNAPSHOT,
    CatalogReply,
    Count,
    CountReply,
    CountWords,
    Describe,
    DescribeReply,
    Float32Array,
    Get,
    Hits,
    ListCollections,
    ReadRequest,
    Response,
    RowsReply,
    Scan,
    Search,
    SearchReply,
    Undecided,
    WordsReply,
)
from vecraft_data_model.payload import metadata_of
from vecraft_data_model.scan_options import ScanOptions
from vecraft_data_model.schema import CollectionSchema
from vecraft_data_model.search_options import SearchOptions
from vecraft_data_model.validation import MAX_NORM_SQUARED, as_matrix
from vecraft_shard.catalog import CollectionEntry
from vecraft_shard.collection import Collection
from vecraft_shard.grouping import search_groups
from vecraft_shard.indexes.hnsw import HnswIndex
from vecraft_shard.indexes.hot import HotFilters
from vecraft_shard.indexes.rowset import RowSet
from vecraft_shard.indexes.tail import Found, VectorSource
from vecraft_shard.planner import Costs
from vecraft_shard.search import explain_search, run_search
from vecraft_shard.state import ShardState
from vecraft_shard.text_search import best_texts, count_words, score_texts
from vecraft_shard.versions import NO_ROW

_QUERIES_WORTH_THREADS = 16


class CollectionView:
    """One collection at one snapshot, as the search executor sees it."""

    __slots__ = (
        "alive", "all_visible", "begin", "changes", "collection", "column", "ef", "end", "hnsw", "hot_filters", "ids",
        "indexed", "matching", "norms", "rows", "schema", "snapshot",
    )  # fmt: skip

    def __init__(self, collection: Collection, snapshot: int, ef: int) -> None:
        versions = collection.versions
        self.collection = collection
        self.snapshot = snapshot
        self.schema: CollectionSchema = collection.schema
        self.rows = versions.rows
        self.indexed = collection.indexed
        self.column: VectorSource = collection.column
        self.norms: Float32Array | None = collection.norms
        self.hnsw: HnswIndex | None = collection.hnsw
        self.begin = versions.begin
        self.end = versions.end
        self.ids: Sequence[str] = versions.ids
        self.changes = versions.changes
        self.alive = versions.alive
        self.all_visible = versions.all_visible(snapshot)
        self.ef = ef
        self.hot_filters: HotFilters | None = collection.hot_filters
        self.matching = collection.matching


class Reader:
    """Read requests against the state of one shard."""

    def __init__(self, state: ShardState, raise_ceiling: Callable[[int, int], None], costs: Costs) -> None:
        self._state = state
        self._shared = state.latch.shared()
        self._numbers_were_checked = not state.config.verify_queries
        self._costs = costs
        self._raise_ceiling = raise_ceiling

    def handle(self, request: ReadRequest, now_ms: int) -> Response:
        """Answer a read.

        Raises:
            VecraftError: The request is refused.
        """
        state = self._state
        timeline = state.timeline
        collection_id = self._footprint(request)
        if request.snapshot == CHOOSE_SNAPSHOT:
            snapshot, blocking = timeline.choose(request.min_ts, now_ms, collection_id)
        else:
            snapshot = request.snapshot
            timeline.check_readable(snapshot)
            blocking = timeline.admit(snapshot, now_ms, collection_id)
        if blocking:
            return Undecided(blocking)
        if snapshot > timeline.ceiling:
            self._raise_ceiling(snapshot, now_ms)
        with self._shared:
            timeline.check_readable(snapshot)
            if isinstance(request, ListCollections):
                return CatalogReply(snapshot, *state.catalog.listing(snapshot))
            entry = state.catalog.resolve(request.collection, snapshot)  # type: ignore[attr-defined]
            if entry.collection_id != collection_id:
                # The name meant another collection at the snapshot, and that one may have something undecided.
                blocking = timeline.admit(snapshot, now_ms, entry.collection_id)
                if blocking:
                    return Undecided(blocking)
            return self._read(request, entry, snapshot)

    def changes(self, name: str, first: int, last: int) -> list[int] | None:
        """Return when a collection changed after snapshot ``first`` and up to ``last``, in any order.

        What is undecided is not among it. None: that is not known (any more), or ``name`` meant something else.
        """
        state = self._state
        with state.latch.shared():
            try:
                entry = state.catalog.resolve(name)
            except CollectionNotExistedException:
                return None
            if entry.schema.name != name or entry.begin_ts > first or state.timeline.safe_point > first:
                return None
            return state.collections[entry.collection_id].versions.moments(first, last)

    def _footprint(self, request: ReadRequest) -> str | None:
        if isinstance(request, ListCollections):
            return None
        try:
            return self._state.catalog.resolve(request.collection).collection_id  # type: ignore[attr-defined]
        except CollectionNotExistedException:
            # It may exist at the snapshot, or be about to be created: only the catalog's own changes can tell.
            return None

    def _read(self, request: ReadRequest, entry: CollectionEntry, snapshot: int) -> Response:
        collection = self._state.collections[entry.collection_id]
        match request:
            case Search():
                if collection.indexed == collection.versions.rows:
                    return self._search(collection, request, snapshot)
                with self._state.graph_latch(collection.collection_id).shared():
                    return self._search(collection, request, snapshot)
            case Get():
                return _get(collection, request, snapshot)
            case Scan():
                return _scan(collection, request, snapshot)
            case Count():
                return _count(collection, request, snapshot)
            case Describe():
                return self._describe(collection, entry.schema, snapshot)
            case CountWords():
                view = CollectionView(collection, snapshot, self.ef_of(collection))
                statistics = count_words(collection.documents.words, view, request.words)
                if collection.integrity.payloads:  # met by now, if not before; likewise below
                    collection.integrity.refuse_texts(snapshot)
                return WordsReply(snapshot, statistics)
        raise InvalidDataException(f"a shard does not answer {type(request).__name__}")

    def _search(self, collection: Collection, request: Search, snapshot: int) -> SearchReply:
        schema, options = collection.schema, request.options
        if options.k < 1:
            raise InvalidDataException(f"k must be at least 1, got {options.k}")
        view = CollectionView(collection, snapshot, self.ef_of(collection))
        if options.text is not None:
            return self._search_texts(collection, request, view)
        self._check_queries(request.queries, schema)
        if options.group_by is not None:
            return self._search_groups(collection, request, view)
        if collection.integrity.vectors:
            collection.integrity.refuse_vectors(snapshot)
        collection.depth.sample.offer(request.queries)
        threads = self._threads_for(request)
        explain = None
        if options.explain:
            found, explain = explain_search(view, request, threads, self._costs)
        else:
            found = run_search(view, request, threads, self._costs)
        if collection.integrity.payloads and options.where_document is not None:
            collection.integrity.refuse_texts(snapshot)
        return SearchReply(snapshot, [_hits(collection, line, options) for line in found], explain)

    def _search_texts(self, collection: Collection, request: Search, view: CollectionView) -> SearchReply:
        """Search by a text, and by a vector if there is one."""
        options, text = request.options, request.options.text
        if text is None or len(request.queries) != 1:
            raise InvalidDataException("a search by text takes one query, with a vector or without")
        if options.max_distance is not None and not request.queries.shape[1]:
            raise InvalidDataException("max_distance is the distance of a vector: it needs a query_vector")
        if request.queries.shape[1]:
            self._check_queries(request.queries, collection.schema)
            if collection.integrity.vectors:
                collection.integrity.refuse_vectors(view.snapshot)
        ranked = score_texts(collection.documents.words, view, text)
        best, matching = best_texts(view, request, ranked.scores)
        explain: dict[str, Any] = {"plan": "text", "texts": ranked.statistics.documents, "texts_found": matching}
        found = [best]
        if request.queries.shape[1]:
            collection.depth.sample.offer(request.queries)
            if options.explain:
                near, how = explain_search(view, request, costs=self._costs)
                explain |= how
            else:
                near = run_search(view, request, costs=self._costs)
            found = [*near, best]
        if collection.integrity.payloads:
            collection.integrity.refuse_texts(view.snapshot)
        hits = [_hits(collection, line, options, ranked.scores) for line in found]
        return SearchReply(view.snapshot, hits, explain if options.explain else None, ranked.statistics)

    def _search_groups(self, collection: Collection, request: Search, view: CollectionView) -> SearchReply:
        """Search for the nearest of each group."""
        if collection.integrity.vectors:
            collection.integrity.refuse_vectors(view.snapshot)
        found, explain = search_groups(
            view,
            request,
            collection.metadata,
            lambda rows: metadata_of(collection.payloads_of(rows)),
            self._threads_for(request),
            self._costs,
        )
        if collection.integrity.payloads and request.options.where_document is not None:
            collection.integrity.refuse_texts(view.snapshot)
        hits = [
            msgspec.structs.replace(_hits(collection, line, request.options), groups=groups) for line, groups in found
        ]
        return SearchReply(view.snapshot, hits, explain if request.options.explain else None)

    def _check_queries(self, queries: Float32Array, schema: CollectionSchema) -> None:
        """Raise if a query is not of the collection's dimension, not finite, or has no direction under cosine."""
        if queries.shape == (1, schema.dim) and queries.dtype == np.float32:
            if self._numbers_were_checked and queries.item(0):  # so it is not zero, either
                return
            query = queries[0]
            # Not ``dot``: that would let go of the interpreter's lock, and many threads would pass it around.
            if 0 < float(query @ query) <= MAX_NORM_SQUARED:  # false for NaN, too
                return
        as_matrix(queries, schema.dim, metric=schema.metric, what="query")

    def _threads_for(self, request: Search) -> int:
        return self._state.config.search_threads if len(request.queries) >= _QUERIES_WORTH_THREADS else 1

    def ef_of(self, collection: Collection) -> int:
        """The search depth in force: override, else altered, else measured, else the default."""
        return collection.depth.in_force(self._state.config.ef_runtime)

    def _describe(self, collection: Collection, schema: CollectionSchema, snapshot: int) -> DescribeReply:
        return DescribeReply(
            snapshot,
            schema,
            collection.collection_id,
            int(np.count_nonzero(collection.versions.visible(snapshot, collection.versions.rows))),
            collection.tail_rows,
            collection.indexed,
            collection.dead_rows,
            self.ef_of(collection),
            collection.depth.recall,
            collection.disk_bytes,
            collection.depth.recall_interval,
        )


def _hits(
    collection: Collection, found: Found, options: SearchOptions, scores: Float32Array | None = None
) -> Hits:
    """Return rows and distances as hits, with what they shall carry."""
    rows, distances = found
    numbers = rows.tolist()
    payloads = vectors = None
    if options.include:
        if options.with_payloads:
            payloads = collection.payloads_of(numbers)
        if options.with_vectors:
            vectors = collection.vectors_of(numbers)
    ids = collection.versions.ids
    return Hits(
        [ids[row] for row in numbers],
        distances.tolist(),
        payloads,
        vectors,
        None if scores is None else scores[rows].tolist(),
    )


def _get(collection: Collection, request: Get, snapshot: int) -> RowsReply:
    rows = [collection.versions.row_at(record_id, snapshot) for record_id in request.ids]
    found = [row for row in rows if row != NO_ROW]
    return RowsReply(snapshot, collection.rows_of(found, with_vectors=request.with_vectors))


def _count(collection: Collection, request: Count, snapshot: int) -> CountReply:
    versions = collection.versions
    matching = _matching(collection, request, snapshot)
    if matching is None:
        if versions.max_begin <= snapshot and versions.alive == versions.rows:
            return CountReply(snapshot, versions.alive)
        return CountReply(snapshot, int(np.count_nonzero(versions.visible(snapshot, versions.rows))))
    if versions.all_visible(snapshot):
        return CountReply(snapshot, matching.count)
    return CountReply(snapshot, len(_visible_rows(collection, matching.rows(), snapshot)))


def _scan(collection: Collection, request: Scan, snapshot: int) -> RowsReply:
    page = request.options
    if page.limit < 1:
        raise InvalidDataException(f"limit must be at least 1, got {page.limit}")
    wanted = page.limit + 1
    matching = _matching(collection, page, snapshot)
    if matching is None or matching.count**2 > wanted * collection.versions.rows:
        rows = _first_by_walk(collection, page.after, snapshot, wanted, matching)
    else:
        rows = _first_by_sort(collection, page.after, snapshot, wanted, matching)
    found = collection.rows_of(
        rows[: page.limit], with_payloads=page.with_payloads, with_vectors=page.with_vectors
    )
    return RowsReply(snapshot, found, more=len(rows) > page.limit)


def _first_by_walk(
    collection: Collection, after: str | None, snapshot: int, wanted: int, matching: RowSet | None
) -> list[int]:
    """Go through the ids in order until enough match: for filters that many rows match, which come soon."""
    versions = collection.versions
    inside = None if matching is None else matching.mask(versions.rows)
    rows: list[int] = []
    for record_id in collection.ids_after(after):
        row = versions.row_at(record_id, snapshot)
        if row != NO_ROW and (inside is None or inside[row]):
            rows.append(row)
            if len(rows) == wanted:
                break
    return rows


def _first_by_sort(
    collection: Collection, after: str | None, snapshot: int, wanted: int, matching: RowSet
) -> list[int]:
    """Sort what matches: for filters that few rows match."""
    ids = collection.versions.ids
    visible = _visible_rows(collection, matching.rows(), snapshot).tolist()
    if after is not None:
        visible = [row for row in visible if ids[row] > after]
    return nsmallest(wanted, visible, key=ids.__getitem__)


def _matching(collection: Collection, filters: Count | ScanOptions, snapshot: int) -> RowSet | None:
    matching = collection.matching(filters.where, filters.where_document)
    if collection.integrity.payloads and filters.where_document is not None:
        collection.integrity.refuse_texts(snapshot)
    return matching


def _visible_rows(
    collection: Collection, rows: npt.NDArray[np.int64], snapshot: int
) -> npt.NDArray[np.int64]:
    versions = collection.versions
    kept: npt.NDArray[np.int64] = rows[(versions.begin[rows] <= snapshot) & (versions.end[rows] > snapshot)]
    return kept
