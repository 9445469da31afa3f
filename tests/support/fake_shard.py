"""A shard for router tests: dictionaries instead of a disk, and the participant's contract of PROTOCOL §4 in full.

Exact where it matters (versions, locks, outcomes, in-doubt rules, snapshot waits), simple everywhere else: search is a
loop, the catalog is not versioned. Every request is durable when it is answered.
"""

from __future__ import annotations

from typing import Any

import msgspec
import numpy as np

from vecraft_data_model.distances import exact_distances
from vecraft_data_model.errors import (
    CollectionAlreadyExistedException,
    CollectionNotExistedException,
    InvalidDataException,
    PreconditionFailedError,
    ReadWriteConflictException,
    SnapshotTooOldError,
    StaleMapError,
    VecraftError,
    WriteConflictException,
)
from vecraft_data_model.filter_match import matching_payloads
from vecraft_data_model.filters import DocumentFilter, Filter, matches, matches_document
from vecraft_data_model.hlc import INFINITY_TS, HybridLogicalClock
from vecraft_data_model.messages import (
    Aborted,
    AbortTransaction,
    Acknowledge,
    Barrier,
    BarrierReply,
    Batch,
    BatchReply,
    CatalogReply,
    Checkpoint,
    CommitOne,
    Committed,
    Count,
    CountReply,
    CountWords,
    CreateCollection,
    Decide,
    Delete,
    Describe,
    DescribeReply,
    Done,
    DropAlias,
    DropCollection,
    Finish,
    Finished,
    Get,
    Hits,
    ListCollections,
    PinSnapshot,
    Prepare,
    Prepared,
    Put,
    ReadRequest,
    Refused,
    ReleaseSnapshot,
    Request,
    Resolve,
    Response,
    Rows,
    RowsReply,
    Scan,
    Search,
    SearchReply,
    SetAlias,
    SetEf,
    Status,
    StatusReply,
    Transaction,
    Undecided,
    WordsReply,
)  # fmt: skip
from vecraft_data_model.payload import decode_payload
from vecraft_data_model.schema import CollectionSchema
from vecraft_data_model.search_options import SearchOptions
from vecraft_data_model.text_ranking import Bm25, TextStatistics
from vecraft_router.merging import take_hits

RESOLVE_AFTER_MS = 1000


class Version:
    """One version of one record."""

    def __init__(self, begin: int, vector: Any, payload: bytes) -> None:
        self.begin, self.end, self.vector, self.payload = begin, INFINITY_TS, vector, payload


class Held:
    """A prepared transaction."""

    def __init__(self, txn: Transaction, ts: int, primary: int, participants: list[int], since_ms: int) -> None:
        self.txn, self.ts, self.primary, self.participants, self.since_ms = txn, ts, primary, participants, since_ms
        self.found_at: list[int] = []


class FakeShard:
    """One shard in memory."""

    def __init__(self, number: int) -> None:
        self.number = number
        self.clock = HybridLogicalClock()
        self.map_epoch = 0
        self.safe_point = 0
        self.records: dict[tuple[str, str], list[Version]] = {}
        self.schemas: dict[str, tuple[CollectionSchema, str, int]] = {}
        self.aliases: dict[str, str] = {}
        self.held: dict[str, Held] = {}
        self.outcomes: dict[str, tuple[int, bytes, int]] = {}
        self.unacknowledged: dict[str, set[int]] = {}
        self.pins: dict[str, int] = {}
        self.ef: dict[str, int | None] = {}
        self.log: list[Request] = []

    def execute(self, batch: Batch, now_ms: int) -> BatchReply:
        """Carry out a batch."""
        if self.map_epoch and batch.map_epoch and batch.map_epoch != self.map_epoch:
            stale = Refused(StaleMapError(f"map {batch.map_epoch} is stale, here it is {self.map_epoch}"))
            return BatchReply([stale] * len(batch.requests), self.clock.last)
        responses: list[Response] = []
        for request in batch.requests:
            self.log.append(request)
            try:
                self.clock.observe(batch.clock, now_ms)
                responses.append(self._handle(request, now_ms))
            except VecraftError as error:
                responses.append(Refused(error))
        return BatchReply(responses, self.clock.last)

    def _handle(self, request: Request, now_ms: int) -> Response:
        match request:
            case CommitOne(txn=txn):
                return self._commit_one(txn, now_ms)
            case Prepare(txn=txn):
                return self._prepare(request, txn, now_ms)
            case Decide(txn_id=txn_id, commit_ts=commit_ts):
                return self._decide(txn_id, commit_ts, now_ms)
            case AbortTransaction(txn_id=txn_id):
                return self._decided(txn_id) or self._abort(txn_id)
            case Resolve(txn_id=txn_id):
                return self._resolve(txn_id, now_ms)
            case Finish(txn_id=txn_id, commit_ts=commit_ts):
                held = self.held.get(txn_id)
                if held is not None and commit_ts:
                    self._apply(held.txn, commit_ts, now_ms)
                elif held is not None:
                    self._abort(txn_id)
                return Finished(txn_id)
            case Acknowledge(txn_id=txn_id, shards=shards):
                self.unacknowledged.get(txn_id, set()).difference_update(shards)
                return Done()
            case Barrier(waiting_for=wanted):
                open_now = [(i, h.primary) for i, h in self.held.items() if wanted is None or i in wanted]
                return Undecided(open_now) if open_now else BarrierReply(self.clock.now(now_ms))
            case PinSnapshot(pin_id=pin_id, snapshot=snapshot):
                self._check_safe(snapshot)
                self.pins[pin_id] = snapshot
                return Done()
            case ReleaseSnapshot(pin_id=pin_id):
                self.pins.pop(pin_id, None)
                return Done()
            case SetEf(collection=collection, ef=ef):
                self.ef[self._name(collection)] = ef
                return Done()
            case Checkpoint():
                return Done()
            case Status():
                return StatusReply(self.number, 1, len(self.log), {}, {})
            case _:
                assert isinstance(request, ReadRequest)
                return self._read(request, now_ms)

    # ------------------------------------------------------------------------------------------------ writes

    def _decided(self, txn_id: str, content_hash: bytes | None = None) -> Response | None:
        outcome = self.outcomes.get(txn_id)
        if outcome is None:
            return None
        if content_hash and outcome[1] and outcome[1] != content_hash:
            raise InvalidDataException(f"transaction id {txn_id!r} was used before with other content")
        return Committed(outcome[0], outcome[2]) if outcome[0] else Aborted(txn_id)

    def _abort(self, txn_id: str, content_hash: bytes = b"") -> Aborted:
        held = self.held.pop(txn_id, None)
        self.outcomes[txn_id] = (0, held.txn.content_hash if held else content_hash, 0)
        return Aborted(txn_id)

    def _commit_one(self, txn: Transaction, now_ms: int) -> Response:
        decided = self._decided(txn.txn_id, txn.content_hash)
        if decided is not None:
            return decided
        txn = self._checked_again(txn)
        try:
            preimages = self._admit(txn)
        except (WriteConflictException, ReadWriteConflictException, PreconditionFailedError) as error:
            if not error.details.get("locked"):
                self._abort(txn.txn_id, txn.content_hash)
            raise
        ts = self.clock.tick(now_ms)
        count = self._apply(txn, ts, now_ms)
        return Committed(ts, count, preimages if txn.want_preimages else None)

    def _prepare(self, request: Prepare, txn: Transaction, now_ms: int) -> Response:
        decided = self._decided(txn.txn_id, txn.content_hash)
        if decided is not None:
            return decided
        held = self.held.get(txn.txn_id)
        if held is None:
            found_at = [m.matched.snapshot for m in txn.mutations if isinstance(m, Delete) and m.matched is not None]
            txn = self._checked_again(txn)
            preimages = self._admit(txn)
            held = Held(txn, self.clock.tick(now_ms), request.primary, request.participants, now_ms)
            held.found_at = found_at
            self.held[txn.txn_id] = held
            return Prepared(held.ts, self._count(txn), preimages if txn.want_preimages else None)
        if held.txn.content_hash != txn.content_hash:
            raise InvalidDataException(f"transaction id {txn.txn_id!r} was used before with other content")
        found_at = [m.matched.snapshot for m in txn.mutations if isinstance(m, Delete) and m.matched is not None]
        if found_at != held.found_at:
            raise WriteConflictException(f"transaction {txn.txn_id!r} is under way with an earlier snapshot")
        held.since_ms = now_ms
        return Prepared(held.ts, self._count(held.txn))

    def _decide(self, txn_id: str, commit_ts: int, now_ms: int) -> Response:
        decided = self._decided(txn_id)
        if decided is not None:
            return decided
        held = self.held.get(txn_id)
        if held is None:
            return Undecided([(txn_id, self.number)])
        assert held.primary == self.number, "only the primary decides"
        count = self._apply(held.txn, commit_ts, now_ms)
        self.unacknowledged[txn_id] = {shard for shard in held.participants if shard != self.number}
        return Committed(commit_ts, count)

    def _resolve(self, txn_id: str, now_ms: int) -> Response:
        decided = self._decided(txn_id)
        if decided is not None:
            return decided
        held = self.held.get(txn_id)
        if held is not None and held.primary != self.number:
            raise InvalidDataException(f"shard {self.number} does not decide about {txn_id}")
        if held is not None and now_ms - held.since_ms < RESOLVE_AFTER_MS:
            return Undecided([(txn_id, self.number)])
        return self._abort(txn_id)

    def abort_abandoned(self, now_ms: int) -> None:
        """As the primary, abort what nobody has come back to."""
        for txn_id, held in list(self.held.items()):
            if held.primary == self.number:
                self._resolve(txn_id, now_ms)

    def _keys(self, txn: Transaction) -> list[tuple[str, str]]:
        return [
            (self._name(mutation.collection), record_id)
            for mutation in txn.mutations
            if isinstance(mutation, Put | Delete)
            for record_id in mutation.ids
        ]

    def _count(self, txn: Transaction) -> int:
        deleted = sum(
            self._current((self._name(mutation.collection), record_id)) is not None
            for mutation in txn.mutations
            if isinstance(mutation, Delete)
            for record_id in mutation.ids
        )
        return deleted + sum(len(mutation.ids) for mutation in txn.mutations if isinstance(mutation, Put))

    def _checked_again(self, txn: Transaction) -> Transaction:
        """Of what a filter found, keep what matches it still; lock the rest, too."""
        mutations, reads = [], list(txn.reads)
        for mutation in txn.mutations:
            if isinstance(mutation, Delete) and mutation.matched is not None:
                name, matched = self._name(mutation.collection), mutation.matched
                found = [(i, v) for i in mutation.ids if (v := self._current((name, i))) is not None]
                keep = matching_payloads([v.payload for _, v in found], matched.where, matched.where_document)
                ids = [i for (i, _), kept in zip(found, keep, strict=True) if kept]
                reads += [(mutation.collection, i) for i in mutation.ids if i not in ids]
                mutation = Delete(mutation.collection, ids)
            mutations.append(mutation)
        return msgspec.structs.replace(txn, mutations=mutations, reads=reads)

    def _admit(self, txn: Transaction) -> Rows:
        """Raise what stands against a transaction; return what it would replace."""
        names = {m.schema.name for h in self.held.values() for m in h.txn.mutations if isinstance(m, CreateCollection)}
        if any(isinstance(mutation, Put | Delete) and mutation.collection in names for mutation in txn.mutations):
            raise WriteConflictException("what the name means is about to change", locked=True)
        keys, reads = self._keys(txn), [(self._name(collection), record_id) for collection, record_id in txn.reads]
        written = {key for held in self.held.values() for key in self._keys(held.txn)}
        read = {(self._name(c), record_id) for held in self.held.values() for c, record_id in held.txn.reads}
        if not (written | read).isdisjoint(keys):
            raise WriteConflictException("a record is locked", locked=True)
        if not written.isdisjoint(reads):
            raise ReadWriteConflictException("a record that is to stay as it is is locked", locked=True)
        if txn.snapshot is not None:
            self._check_safe(txn.snapshot)
            if any(self._changed(key, txn.snapshot) for key in keys):
                raise WriteConflictException("a record was written after the snapshot")
            if any(key in written or self._changed(key, txn.snapshot) for key in reads):
                raise ReadWriteConflictException("a record that was read has changed")
        for mutation in txn.mutations:
            if isinstance(mutation, Put | Delete):
                for record_id in mutation.ids:
                    self._expect(mutation.expect, self._current((self._name(mutation.collection), record_id)))
            elif isinstance(mutation, CreateCollection):
                if mutation.schema.name in names:
                    raise WriteConflictException("the name is locked", locked=True)
                if mutation.schema.name in self.schemas:
                    raise CollectionAlreadyExistedException(f"collection {mutation.schema.name!r} exists")
            elif isinstance(mutation, DropCollection):
                self._name(mutation.name)
        found = [(key[1], version) for key in keys if (version := self._current(key)) is not None]
        return _rows(found, True, True)

    def _apply(self, txn: Transaction, ts: int, now_ms: int) -> int:
        self.clock.observe(ts, now_ms)
        self.held.pop(txn.txn_id, None)
        count = self._count(txn)
        self.outcomes[txn.txn_id] = (ts, txn.content_hash, count)
        for mutation in txn.mutations:
            match mutation:
                case Put() | Delete():
                    for row, record_id in enumerate(mutation.ids):
                        versions = self.records.setdefault((self._name(mutation.collection), record_id), [])
                        if versions and versions[-1].end == INFINITY_TS:
                            versions[-1].end = ts
                        if isinstance(mutation, Put):
                            versions.append(Version(ts, mutation.vectors[row], mutation.payloads[row]))
                case CreateCollection(schema=schema, collection_id=collection_id):
                    self.schemas[schema.name] = (schema, collection_id, ts)
                case DropCollection(name=name):
                    del self.schemas[self._name(name)]
                case SetAlias(alias=alias, name=name):
                    self.aliases[alias] = name
                case DropAlias(alias=alias):
                    del self.aliases[alias]
        return count

    def _current(self, key: tuple[str, str]) -> Version | None:
        versions = self.records.get(key)
        return versions[-1] if versions and versions[-1].end == INFINITY_TS else None

    def _changed(self, key: tuple[str, str], snapshot: int) -> bool:
        return any(v.begin > snapshot or snapshot < v.end < INFINITY_TS for v in self.records.get(key, ()))

    def _expect(self, expect: object, current: Version | None) -> None:
        if expect is None or expect == ("absent" if current is None else "present"):
            return
        if current is None or expect != current.begin:
            raise PreconditionFailedError(f"expected {expect!r}")

    # ------------------------------------------------------------------------------------------------- reads

    def _name(self, collection: str) -> str:
        name = self.aliases.get(collection, collection)
        if name not in self.schemas:
            raise CollectionNotExistedException(f"there is no collection {collection!r}")
        return name

    def _check_safe(self, snapshot: int) -> None:
        if snapshot < self.safe_point:
            raise SnapshotTooOldError(f"snapshot {snapshot} is below the safe point {self.safe_point}")

    def _read(self, request: ReadRequest, now_ms: int) -> Response:
        snapshot = request.snapshot
        if not snapshot:
            settled = min((held.ts for held in self.held.values()), default=self.clock.now(now_ms) + 1) - 1
            snapshot = max(settled, request.min_ts)
        self._check_safe(snapshot)
        self.clock.observe(snapshot, now_ms)
        waiting = [(txn_id, held.primary) for txn_id, held in self.held.items() if held.ts <= snapshot]
        if waiting:
            return Undecided(waiting)
        if isinstance(request, ListCollections):
            return CatalogReply(snapshot, [entry[0] for entry in self.schemas.values()], dict(self.aliases))
        name = self._name(request.collection)  # type: ignore[attr-defined]
        schema, collection_id, since = self.schemas[name]
        if since > snapshot:
            raise CollectionNotExistedException(f"there is no collection {name!r} at {snapshot}")
        match request:
            case Get():
                found = [(i, v) for i in request.ids if (v := self._at((name, i), snapshot)) is not None]
                return RowsReply(snapshot, _rows(found, True, request.with_vectors))
            case Search():
                options = request.options
                alive = self._matching(name, snapshot, options.where, options.where_document)
                if options.text is not None:
                    every = self._matching(name, snapshot, None, None)
                    statistics = options.text.statistics or _count_words(every, options.text.words)
                    hits = _rank(schema.metric, alive, request, options.text.words, statistics)
                    return SearchReply(snapshot, hits, None, statistics)
                return SearchReply(
                    snapshot,
                    [_nearest(schema.metric, alive, query, options) for query in request.queries],
                    {"plan": "exact"} if options.explain else None,
                )
            case Scan():
                page = request.options
                alive = self._matching(name, snapshot, page.where, page.where_document)
                alive = [item for item in alive if item[0] > (page.after or "")]
                rows = _rows(alive[: page.limit], page.with_payloads, page.with_vectors)
                return RowsReply(snapshot, rows, len(alive) > page.limit)
            case Count():
                return CountReply(snapshot, len(self._matching(name, snapshot, request.where, request.where_document)))
            case CountWords():
                return WordsReply(snapshot, _count_words(self._matching(name, snapshot, None, None), request.words))
            case Describe():
                count = len(self._matching(name, snapshot, None, None))
                return DescribeReply(snapshot, schema, collection_id, count, count, 0, 0, 50, None, 0)
        raise InvalidDataException(f"no such read: {request!r}")

    def _at(self, key: tuple[str, str], snapshot: int) -> Version | None:
        return next((v for v in self.records.get(key, ()) if v.begin <= snapshot < v.end), None)

    def _matching(
        self, name: str, snapshot: int, where: Filter | None, where_document: DocumentFilter | None
    ) -> list[tuple[str, Version]]:
        found = []
        for key in sorted(key for key in self.records if key[0] == name):
            version = self._at(key, snapshot)
            if version is not None:
                payload = decode_payload(version.payload)
                if (where is None or matches(where, payload.metadata)) and (
                    where_document is None or matches_document(where_document, payload.document)
                ):
                    found.append((key[1], version))
        return found


def _rows(found: list[tuple[str, Version]], with_payloads: bool, with_vectors: bool) -> Rows:
    return Rows(
        [record_id for record_id, _ in found],
        [version.begin for _, version in found],
        [version.payload for _, version in found] if with_payloads else None,
        np.array([version.vector for _, version in found], dtype=np.float32) if with_vectors else None,
    )


def _nearest(metric: str, alive: list[tuple[str, Version]], query: Any, options: SearchOptions) -> Hits:
    if not alive:
        return Hits([], [], [] if options.with_payloads else None, None)
    distances = exact_distances(metric, np.array([version.vector for _, version in alive], dtype=np.float32), query)
    order = sorted(range(len(alive)), key=lambda row: (distances[row], alive[row][0]))
    if options.max_distance is not None:
        order = [row for row in order if distances[row] <= options.max_distance]
    order = order[: options.k]
    return Hits(
        [alive[row][0] for row in order],
        [float(distances[row]) for row in order],
        [alive[row][1].payload for row in order] if options.with_payloads else None,
        np.array([alive[row][1].vector for row in order], dtype=np.float32) if options.with_vectors else None,
    )


def _count_words(found: list[tuple[str, Version]], words: tuple[str, ...]) -> TextStatistics:
    return TextStatistics.of_texts(words, [decode_payload(version.payload).document for _, version in found])


def _rank(
    metric: str, alive: list[tuple[str, Version]], request: Search, words: tuple[str, ...], statistics: TextStatistics
) -> list[Hits]:
    """The nearest, if there is a vector, then those whose texts score best."""
    by_vector = request.queries.shape[1] > 0
    query = request.queries[0] if by_vector else np.zeros(len(alive[0][1].vector) if alive else 0, np.float32)
    documents = [decode_payload(version.payload).document for _, version in alive]
    scores = dict(zip((i for i, _ in alive), Bm25(statistics).scores_of_texts(words, documents), strict=True))
    every = msgspec.structs.replace(request.options, k=max(len(alive), 1))
    near = _nearest(metric, alive, query, every)
    near = msgspec.structs.replace(near, scores=[scores[i] for i in near.ids])
    if not by_vector:
        near = msgspec.structs.replace(near, distances=[float("nan")] * len(near.ids))
    texts = sorted((-score, i) for i, score in scores.items() if score)
    places = [near.ids.index(i) for _, i in texts]
    k = request.options.k
    best = [take_hits(near, places[:k])]
    return [take_hits(near, range(min(k, len(near.ids)))), *best] if by_vector else best
