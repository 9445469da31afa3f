"""Reads: choose one snapshot, ask every shard that may hold something, merge.

The snapshot ``S`` is fixed before the first shard is asked, and late or repeated answers never change it. When only one
shard is asked, that shard may choose (``CHOOSE_SNAPSHOT``): its newest timestamp that needs no waiting, at or above
what the client and this router have seen. How ``S`` is chosen otherwise:

=============  =======================================================================================
``session``    the router's clock, raised to the client's session token
``strong``     the largest clock of the shards, each reported after all it held prepared was decided
``Bounded``    that many milliseconds ago
``eventual``   far enough in the past never to wait
``as_of``      what the caller says
=============  =======================================================================================

A collection younger than a stale ``S`` does not exist there; since staleness is allowed, not demanded, such a read is
done again at a fresh one.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import msgspec

from vecraft_data_model.errors import (
    CollectionNotExistedException,
    InvalidDataException,
    ShardUnavailableError,
    VecraftError,
)
from vecraft_data_model.filters import DocumentFilter, Filter, Key
from vecraft_data_model.hlc import physical_ms, timestamp_of
from vecraft_data_model.messages import (
    CHOOSE_SNAPSHOT,
    Barrier,
    BarrierReply,
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
    WordsReply,
)
from vecraft_data_model.packets import CollectionInfo
from vecraft_data_model.placement import ClusterMap
from vecraft_data_model.scan_options import ScanOptions
from vecraft_data_model.search_options import SearchOptions
from vecraft_data_model.text_ranking import TextQuery, TextStatistics, fusion_depth
from vecraft_router.asking import Asker, MapChanged, Patience, unexpected
from vecraft_router.effects import Ask, Flow
from vecraft_router.fusion import joined
from vecraft_router.merging import (
    concat_rows,
    in_order_of,
    lacking_groups,
    merge_groups,
    merge_hits,
    merge_texts,
)
from vecraft_router.options import Bounded, ReadOptions
from vecraft_router.paging import Pages
from vecraft_router.results import Found
from vecraft_router.state import RouterState

_Part = TypeVar("_Part")


class Reader:
    """Flows that read.

    Args:
        state: The router's clock, map and settings.
    """

    def __init__(self, state: RouterState) -> None:
        self._state = state
        self._asker = Asker(state)

    # ------------------------------------------------------------------------------------------------ search

    def search(
        self,
        collection: str,
        queries: Float32Array,
        wanted: SearchOptions,
        options: ReadOptions,
    ) -> Flow[Found]:
        """See ``Router.search``."""
        state = self._state
        text = wanted.text
        if text is not None and text.fusion is not None:
            return (yield from self._search_texts(collection, queries, wanted, text, options))

        shards = state.cluster_map.shards()
        if len(shards) == 1 and options.consistency == "session" and options.as_of is None:
            # The hot path of an embedded database: one question, no planning. Anything unusual goes the long way.
            shard = shards[0]
            deadline = options.deadline or state.clock.monotonic() + state.config.timeout_s
            if options.min_ts > state.hlc.last:
                state.observe(options.min_ts)
            asked = Search(min_ts=state.hlc.last, collection=collection, queries=queries, options=wanted)
            replies = yield Ask({shard: asked}, deadline)
            reply = replies[shard]
            if type(reply) is SearchReply:
                if reply.snapshot > state.hlc.last:
                    state.observe(reply.snapshot)
                explain = None if reply.explain is None else {shard: reply.explain}
                return Found(reply.snapshot, reply.hits, (), explain, reply.statistics)

        def request(_: object, snapshot: int, min_ts: int) -> Search:
            return Search(snapshot=snapshot, min_ts=min_ts, collection=collection, queries=queries, options=wanted)

        missing: set[int] | None = set() if options.partial else None
        if text is not None or wanted.group_by is not None:
            options = _until(options, self._deadline(options))  # for all questions together
        if text is not None and text.statistics is None and len(shards) > 1:
            snapshot, statistics = yield from self._count_words(collection, text.words, options, missing)
            wanted = msgspec.structs.replace(wanted, text=msgspec.structs.replace(text, statistics=statistics))
            options = ReadOptions(as_of=snapshot, deadline=options.deadline, partial=options.partial)
        snapshot, answers = yield from self._read(options, _every_owner, request, missing)
        parts = [answer for answer in answers.values() if isinstance(answer, SearchReply)]
        hits = parts[0].hits
        if len(parts) > 1 and wanted.group_by is not None:
            found = {shard: answer.hits for shard, answer in answers.items() if isinstance(answer, SearchReply)}
            at = ReadOptions(as_of=snapshot, deadline=options.deadline)
            hits = yield from self._merge_groups(request(None, snapshot, 0), found, at, missing)
        elif len(parts) > 1:
            hits = [merge_hits(rivals, wanted.k) for rivals in zip(*(part.hits for part in parts), strict=True)]
            if text is not None:
                hits[-1] = merge_texts([part.hits[-1] for part in parts], wanted.k)
        plans = None
        if wanted.explain:
            plans = {
                shard: answer.explain
                for shard, answer in answers.items()
                if isinstance(answer, SearchReply) and answer.explain is not None
            }
        return Found(snapshot, hits, tuple(sorted(missing)) if missing else (), plans, parts[0].statistics)

    def _search_texts(
        self, collection: str, queries: Float32Array, wanted: SearchOptions, text: TextQuery, options: ReadOptions
    ) -> Flow[Found]:
        """Get both rankings, from all shards by the same statistics, and join them."""
        apart = msgspec.structs.replace(text, fusion=None)
        both = msgspec.structs.replace(wanted, k=fusion_depth(wanted.k), text=apart)
        found = yield from self.search(collection, queries, both, options)
        return msgspec.structs.replace(found, hits=[joined(found.hits, text.fusion or "rrf", wanted.k)])

    def _merge_groups(
        self, search: Search, found: Mapping[int, Sequence[Hits]], at: ReadOptions, missing: set[int] | None
    ) -> Flow[list[Hits]]:
        """Merge the groups of all shards, per query, and ask each shard for its members of groups it did not name.

        Args:
            search: What was asked.
            found: The answers of each shard, one per query.
            at: The snapshot they were given at, and until when to ask for more.
            missing: As for :meth:`_read`.
        """
        k, size = search.options.k, search.options.group_size
        merged: list[Hits] = []
        asked: dict[int, dict[int, frozenset[Key]]] = {}  # of a shard: for which queries, which groups
        for number in range(len(search.queries)):
            parts = {shard: hits[number] for shard, hits in found.items()}
            merged.append(merge_groups(list(parts.values()), k, size))
            if size > 1:
                for shard, keys in lacking_groups(merged[-1], parts, k).items():
                    asked.setdefault(shard, {})[number] = keys
        if not asked:
            return merged

        options = msgspec.structs.replace(search.options, explain=False)

        def request(groups: dict[int, frozenset[Key]], snapshot: int, _: int) -> Search:
            queries, members_of = search.queries[list(groups)], tuple(groups.values())
            return msgspec.structs.replace(
                search, snapshot=snapshot, queries=queries, options=options, members_of=members_of
            )

        try:
            _, answers = yield from self._read(at, lambda _: asked, request, missing)
        except ShardUnavailableError:
            if missing is None:
                raise
            missing |= asked.keys()  # none of those that were asked again
            return merged
        for shard, answer in answers.items():
            if isinstance(answer, SearchReply):
                for number, hits in zip(asked[shard], answer.hits, strict=True):
                    merged[number] = merge_groups([merged[number], hits], k, size)
        return merged

    def _count_words(
        self, collection: str, words: tuple[str, ...], options: ReadOptions, missing: set[int] | None
    ) -> Flow[tuple[int, TextStatistics]]:
        """Return a snapshot, and the statistics of all shards at it."""

        def request(_: object, snapshot: int, min_ts: int) -> CountWords:
            return CountWords(snapshot=snapshot, min_ts=min_ts, collection=collection, words=words)

        snapshot, answers = yield from self._read(options, _every_owner, request, missing)
        statistics = TextStatistics(0, 0, (0,) * len(words))
        for answer in answers.values():
            if isinstance(answer, WordsReply):
                statistics = statistics.plus(answer.statistics)
        return snapshot, statistics

    # ---------------------------------------------------------------------------------------- other reads

    def get(self, collection: str, ids: Sequence[str], options: ReadOptions, *, with_vectors: bool) -> Flow[RowsReply]:
        """See ``Router.get``."""
        wanted = list(ids)

        def request(part: list[str], snapshot: int, min_ts: int) -> Get:
            return Get(snapshot=snapshot, min_ts=min_ts, collection=collection, ids=part, with_vectors=with_vectors)

        snapshot, answers = yield from self._read(options, lambda now: _ids_by_shard(now, wanted), request)
        parts = [answer.rows for answer in answers.values() if isinstance(answer, RowsReply)]
        return RowsReply(snapshot, in_order_of(wanted, concat_rows(parts)))

    def scan_page(self, collection: str, wanted: ScanOptions, options: ReadOptions) -> Flow[RowsReply]:
        """See ``Router.scan_page``."""
        deadline = self._deadline(options)
        options = _until(options, deadline)
        pages = Pages(self._state, wanted)

        def request(start: str | None, snapshot: int, min_ts: int) -> Scan:
            part = msgspec.structs.replace(wanted, after=start, limit=pages.share)
            return Scan(snapshot=snapshot, min_ts=min_ts, collection=collection, options=part)

        while True:
            snapshot, answers = yield from self._read(options, pages.targets, request)
            rows, more = pages.add(answers)
            if len(rows.ids) >= wanted.limit or not more:
                return RowsReply(snapshot, rows, more)
            options = ReadOptions(as_of=snapshot, deadline=deadline)

    def count(
        self,
        collection: str,
        *,
        where: Filter | None,
        where_document: DocumentFilter | None,
        options: ReadOptions,
    ) -> Flow[CountReply]:
        """See ``Router.count``."""

        def request(_: object, snapshot: int, min_ts: int) -> Count:
            return Count(
                snapshot=snapshot, min_ts=min_ts, collection=collection, where=where, where_document=where_document
            )

        snapshot, answers = yield from self._read(options, _every_owner, request)
        return CountReply(snapshot, sum(answer.count for answer in answers.values() if isinstance(answer, CountReply)))

    def list_collections(self, options: ReadOptions) -> Flow[CatalogReply]:
        """See ``Router.list_collections``: every shard has the whole catalog, so any that can be reached will do."""
        state = self._state
        options = _until(options, self._deadline(options))
        patience = Patience(state, self._deadline(options))
        first = state.rng.randrange(len(state.cluster_map.all_shards()))
        while True:
            shards = state.cluster_map.all_shards()
            for shard in [*shards[first:], *shards[:first]]:
                unreachable: set[int] = set()
                try:
                    _, answers = yield from self._read(options, _only(shard), _list_request, unreachable)
                except ShardUnavailableError as error:
                    problem = error
                    continue
                answer = answers[shard]
                if not isinstance(answer, CatalogReply):
                    raise unexpected(answer)
                return answer
            if not (yield from patience.pause()):
                raise problem.with_traceback(None)

    def describe(self, collection: str, options: ReadOptions) -> Flow[CollectionInfo]:
        """See ``Router.describe``."""

        def request(_: object, snapshot: int, min_ts: int) -> Describe:
            return Describe(snapshot=snapshot, min_ts=min_ts, collection=collection)

        _, answers = yield from self._read(options, _every_owner, request)
        return CollectionInfo.of_replies(
            {shard: answer for shard, answer in answers.items() if isinstance(answer, DescribeReply)}
        )

    def choose_snapshot(self, options: ReadOptions) -> Flow[int]:
        """See ``Router.choose_snapshot``."""
        deadline = self._deadline(options)
        while True:
            try:
                chosen = self._when(options, one=False)
                if chosen is None:
                    return (yield from self._barrier(self._state.cluster_map.shards(), deadline, None))
            except MapChanged:
                continue
            return chosen[0]

    # -------------------------------------------------------------------------------------------------- parts

    def _read(
        self,
        options: ReadOptions,
        targets: Callable[[ClusterMap], Mapping[int, _Part]],
        request: Callable[[_Part, int, int], ReadRequest],
        unreachable: set[int] | None = None,
    ) -> Flow[tuple[int, dict[int, Response]]]:
        """Ask the shards that ``targets`` names, all at one snapshot.

        Args:
            options: How fresh, until when.
            targets: From the map at hand: shard → its part of the question. Asked again when the map changes.
            request: From a part, a snapshot and a least timestamp: the message.
            unreachable: If given, shards that cannot be reached are put here and left out of the answer.

        Returns:
            The snapshot, and the answers by shard.
        """
        state = self._state
        deadline = self._deadline(options)
        fixed: int | None = None
        while True:
            try:
                parts = targets(state.cluster_map)
                snapshot, min_ts = fixed, 0
                if snapshot is None:
                    chosen = self._when(options, len(parts) == 1)
                    snapshot, min_ts = chosen or ((yield from self._barrier(tuple(parts), deadline, unreachable)), 0)
                    fixed = snapshot if snapshot != CHOOSE_SNAPSHOT else None
                if not parts:
                    return (state.now() if snapshot == CHOOSE_SNAPSHOT else snapshot), {}
                requests: dict[int, Any] = {shard: request(part, snapshot, min_ts) for shard, part in parts.items()}
                answers = yield from self._asker.ask(requests, deadline, unreachable)
            except MapChanged:
                continue
            except CollectionNotExistedException:
                if not _may_be_stale(options):
                    raise
                options = _fresh(options, deadline)
                fixed = None
                continue
            if not answers:
                raise _nobody(tuple(parts))
            if snapshot == CHOOSE_SNAPSHOT:
                for answer in answers.values():
                    snapshot = answer.snapshot  # type: ignore[union-attr]
            state.observe(snapshot)
            return snapshot, answers

    def _when(self, options: ReadOptions, one: bool) -> tuple[int, int] | None:
        """Return the snapshot to read at, and the least timestamp if the one shard is to choose; None: ask all shards.

        Args:
            options: How fresh.
            one: Whether a single shard is asked, which may choose.
        """
        state = self._state
        if options.as_of is not None:
            return self._checked(timestamp_of(options.as_of)), 0
        if options.min_ts:
            state.observe(options.min_ts)
        consistency = options.consistency
        if consistency == "session":
            return (CHOOSE_SNAPSHOT, state.hlc.last) if one else (state.now(), 0)
        if consistency == "strong":
            return None
        staleness_ms = (
            consistency.max_staleness_ms if isinstance(consistency, Bounded) else state.config.eventual_staleness_ms
        )
        if not one:
            return state.past(staleness_ms), 0
        return CHOOSE_SNAPSHOT, (state.past(staleness_ms) if isinstance(consistency, Bounded) else 0)

    def _barrier(self, shards: Sequence[int], deadline: float, unreachable: set[int] | None) -> Flow[int]:
        """Return a timestamp at or above every commit that was acknowledged before, on those shards."""
        answers = yield from self._asker.ask({shard: Barrier() for shard in shards}, deadline, unreachable)
        clocks = [answer.clock for answer in answers.values() if isinstance(answer, BarrierReply)]
        if not clocks:
            if not shards:
                return self._state.now()
            raise _nobody(shards)
        self._state.observe(max(clocks))
        return max(clocks)

    def _checked(self, as_of: int) -> int:
        """Return a timestamp that the caller chose; it may be ahead of this clock by the accepted skew at most."""
        state = self._state
        latest_ms = max(state.clock.now_ms(), physical_ms(state.hlc.last)) + state.config.max_clock_skew_ms
        if physical_ms(as_of) > latest_ms:
            raise InvalidDataException(
                f"snapshot {as_of} lies in the future; the latest that can be read now is {state.now()}", as_of=as_of
            )
        return max(1, as_of)  # 0 would let the shard choose

    def _deadline(self, options: ReadOptions) -> float:
        return self._state.deadline() if options.deadline is None else options.deadline


def _list_request(_: object, snapshot: int, min_ts: int) -> ListCollections:
    return ListCollections(snapshot=snapshot, min_ts=min_ts)


def _only(shard: int) -> Callable[[ClusterMap], dict[int, None]]:
    return lambda _: {shard: None}


def _every_owner(cluster_map: ClusterMap) -> dict[int, None]:
    return dict.fromkeys(cluster_map.shards())


def _ids_by_shard(cluster_map: ClusterMap, ids: list[str]) -> dict[int, list[str]]:
    if len(cluster_map.shards()) == 1:
        return {cluster_map.shards()[0]: ids}
    return {shard: [ids[row] for row in rows.tolist()] for shard, rows in cluster_map.split(ids).items()}


def _may_be_stale(options: ReadOptions) -> bool:
    return options.as_of is None and (options.consistency == "eventual" or isinstance(options.consistency, Bounded))


def _fresh(options: ReadOptions, deadline: float) -> ReadOptions:
    return ReadOptions(min_ts=options.min_ts, deadline=deadline, partial=options.partial)


def _until(options: ReadOptions, deadline: float) -> ReadOptions:
    return msgspec.structs.replace(options, deadline=deadline)


def _nobody(shards: Sequence[int]) -> VecraftError:
    return ShardUnavailableError(
        f"none of the shards {', '.join(map(str, shards))} could be reached", shards=list(shards)
    )
