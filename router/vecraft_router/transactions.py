"""Interactive transactions: one snapshot, buffered writes that its own reads see, one atomic commit.

::

    begin ── snapshot S, catalog at S ──┬── get · search · scan · count   at S, own writes laid over
                                        ├── put · delete                  into the buffer; no shard hears of them
                                        └── commit                        all buffered writes, validated against S

Aliases are resolved once, in the catalog at ``S``, so a record has one place in the buffer whatever name it was written
under. ``expect`` is checked at once, against ``S`` and the buffer: should the record change before the commit, that is
a conflict anyway (first committer wins).

Isolation: ``snapshot`` (no lost updates; write skew is possible) or ``serializable`` (records read *by id* are
validated too; searches, scans and counts are not predicate-locked).

Not done here: catalog changes inside a transaction, and use from several threads at once.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import msgspec

from vecraft_data_model.errors import (
    CollectionNotExistedException,
    InvalidDataException,
    PreconditionFailedError,
    VecraftError,
)
from vecraft_data_model.filters import DocumentFilter, Filter
from vecraft_data_model.messages import (
    CatalogReply,
    CountReply,
    Delete,
    Expectation,
    Float32Array,
    Hits,
    Mutation,
    Put,
    RowsReply,
)
from vecraft_data_model.packets import CommitResult
from vecraft_data_model.search_options import SearchOptions
from vecraft_router.effects import Flow
from vecraft_router.merging import concat_rows, in_order_of, merge_hits, merge_pages, take_hits, take_rows
from vecraft_router.options import DEFAULT_OPTIONS, ReadOptions
from vecraft_router.results import Commit, Found
from vecraft_router.write_buffer import WriteBuffer, matching_payloads

if TYPE_CHECKING:
    from vecraft_router.router import Router

ISOLATION_LEVELS = ("snapshot", "serializable")
_DELETE_WHERE_PAGE = 10_000


class InteractiveTransaction:
    """One transaction. Its methods return flows, to be run one after another by the router's runner.

    Every ``deadline`` is in seconds of ``Clock.monotonic``; None: the router's default timeout from now. After the
    end, every method raises ``InvalidDataException``.

    Args:
        router: Whose flows it is built on.
        isolation: ``"snapshot"`` or ``"serializable"``.
        txn_id: Chosen by the client for exactly-once retries; None: the router chooses.
        options: How the snapshot is chosen, at first use.

    Attributes:
        snapshot: The timestamp that everything is read at; None before first use.
        ended: ``"committed"`` or ``"aborted"`` once it is over, else None.

    Raises:
        InvalidDataException: Another isolation level.
    """

    def __init__(
        self,
        router: Router,
        *,
        isolation: str = "snapshot",
        txn_id: str | None = None,
        options: ReadOptions = DEFAULT_OPTIONS,
    ) -> None:
        if isolation not in ISOLATION_LEVELS:
            raise InvalidDataException(f"isolation must be one of {', '.join(ISOLATION_LEVELS)}, got {isolation!r}")
        self.isolation = isolation
        self.txn_id = txn_id
        self.snapshot: int | None = None
        self.ended: str | None = None
        self._router = router
        self._options = options
        self._catalog: CatalogReply | None = None
        self._buffers: dict[str, WriteBuffer] = {}
        self._reads: dict[tuple[str, str], None] = {}

    def begin(self, *, deadline: float | None = None) -> Flow[int]:
        """Choose the snapshot, if that was not done yet, and return it. Every other method begins with this."""
        if self.ended is not None:
            raise InvalidDataException(f"this transaction is over: it was {self.ended}")
        if self.snapshot is None:
            options = msgspec.structs.replace(self._options, deadline=deadline)
            self.snapshot = yield from self._router.choose_snapshot(options)
        if self._catalog is None:
            self._catalog = yield from self._router.list_collections(self._at(deadline))
        return self.snapshot

    # ------------------------------------------------------------------------------------------------ writes

    def put(self, put: Put, *, deadline: float | None = None) -> Flow[None]:
        """Insert or replace records.

        Raises:
            PreconditionFailedError: ``put.expect`` does not hold for one of them; nothing is buffered.
        """
        buffer = yield from self._buffer(put.collection, deadline)
        yield from self._check_expected(buffer, put.ids, put.expect, deadline)
        buffer.put(put)

    def delete(self, delete: Delete, *, deadline: float | None = None) -> Flow[None]:
        """Delete records by id; those that do not exist are passed over.

        Raises:
            PreconditionFailedError: ``delete.expect`` does not hold for one of them; nothing is buffered.
        """
        buffer = yield from self._buffer(delete.collection, deadline)
        yield from self._check_expected(buffer, delete.ids, delete.expect, deadline)
        buffer.delete(delete.ids)

    def delete_where(
        self,
        collection: str,
        *,
        where: Filter | None = None,
        where_document: DocumentFilter | None = None,
        deadline: float | None = None,
    ) -> Flow[int]:
        """Delete what matches at this transaction's snapshot, own writes included; return how many."""
        buffer = yield from self._buffer(collection, deadline)
        doomed: list[str] = []
        more = True
        while more:
            page = yield from self.scan_page(
                collection,
                after=doomed[-1] if doomed else None,
                limit=_DELETE_WHERE_PAGE,
                where=where,
                where_document=where_document,
                with_payloads=False,
                deadline=deadline,
            )
            doomed.extend(page.rows.ids)
            more = page.more
        buffer.delete(doomed)
        return len(doomed)

    def commit(self, *, deadline: float | None = None) -> Flow[Commit]:
        """Commit all buffered writes, or none.

        Raises as ``Router.commit``. If an error says that the outcome is unknown, the transaction is not over: call
        this again, and it is carried out once.
        """
        snapshot = yield from self.begin(deadline=deadline)
        mutations: list[Mutation] = []
        for name in sorted(self._buffers):
            mutations.extend(self._buffers[name].mutations())
        if not mutations:
            # what was read is one consistent cut already: a transaction that only reads is serializable as it is
            self.ended = "committed"
            return Commit(CommitResult(self.txn_id or self._router.new_txn_id(), snapshot, 0))
        try:
            commit = yield from self._router.commit(
                mutations, txn_id=self.txn_id, snapshot=snapshot, reads=list(self._reads), deadline=deadline
            )
        except VecraftError as error:
            if error.details.get("outcome") == "unknown":
                self.txn_id = str(error.details["txn_id"])
            else:
                self.ended = "aborted"
            raise
        self.ended = "committed"
        return commit

    def abort(self) -> None:
        """Drop everything. No shard has to be told."""
        if self.ended is None:
            self.ended = "aborted"
            self._buffers.clear()

    # ------------------------------------------------------------------------------------------------- reads

    def get(
        self,
        collection: str,
        ids: Sequence[str],
        *,
        with_vectors: bool = True,
        deadline: float | None = None,
    ) -> Flow[RowsReply]:
        """Return the records of those ids, in that order, the missing left out. Own writes have ``begin_ts`` 0."""
        buffer = yield from self._buffer(collection, deadline)
        return (yield from self._get(buffer, ids, with_vectors, deadline))

    def search(
        self,
        collection: str,
        queries: Float32Array,
        wanted: SearchOptions,
        *,
        deadline: float | None = None,
    ) -> Flow[Found]:
        """Return the nearest records to each row of ``queries`` (q, dim) float32, own writes included (exactly)."""
        buffer = yield from self._buffer(collection, deadline)
        more = msgspec.structs.replace(wanted, k=wanted.k + len(buffer))  # so many may be replaced or deleted here
        found = yield from self._router.search(buffer.schema.name, queries, more, self._at(deadline))
        if not len(buffer):
            return found
        merged = [
            merge_hits([_without(theirs, buffer), ours], wanted.k)
            for theirs, ours in zip(found.hits, buffer.nearest(queries, wanted), strict=True)
        ]
        return Found(found.snapshot, merged, found.missing, found.explain)

    def scan_page(
        self,
        collection: str,
        *,
        after: str | None = None,
        limit: int = 1000,
        where: Filter | None = None,
        where_document: DocumentFilter | None = None,
        with_payloads: bool = True,
        with_vectors: bool = False,
        deadline: float | None = None,
    ) -> Flow[RowsReply]:
        """Return up to ``limit`` records after ``after`` in id order, own writes included."""
        buffer = yield from self._buffer(collection, deadline)
        own = [record_id for record_id in buffer.matching(where, where_document) if after is None or record_id > after]
        own_rows = buffer.rows(own, with_payloads=with_payloads, with_vectors=with_vectors)
        while True:
            page = yield from self._router.scan_page(
                buffer.schema.name,
                after=after,
                limit=limit,
                where=where,
                where_document=where_document,
                with_payloads=with_payloads,
                with_vectors=with_vectors,
                options=self._at(deadline),
            )
            theirs = [row for row, record_id in enumerate(page.rows.ids) if record_id not in buffer]
            reach = page.rows.ids[-1] if page.more else None
            rows, more = merge_pages([(take_rows(page.rows, theirs), reach), (own_rows, None)], limit)
            if rows.ids or not more:
                return RowsReply(page.snapshot, rows, more)
            after = reach  # all of that page was replaced or deleted here

    def count(
        self,
        collection: str,
        *,
        where: Filter | None = None,
        where_document: DocumentFilter | None = None,
        deadline: float | None = None,
    ) -> Flow[CountReply]:
        """Return the exact number of records that match, own writes included."""
        buffer = yield from self._buffer(collection, deadline)
        options = self._at(deadline)
        reply = yield from self._router.count(
            buffer.schema.name, where=where, where_document=where_document, options=options
        )
        if not len(buffer):
            return reply
        hidden = yield from self._router.get(buffer.schema.name, buffer.ids(), options, with_vectors=False)
        before = sum(matching_payloads(hidden.rows.payloads or [], where, where_document))
        now = len(buffer.matching(where, where_document))
        return CountReply(reply.snapshot, reply.count - before + now)

    # -------------------------------------------------------------------------------------------------- parts

    def _at(self, deadline: float | None) -> ReadOptions:
        return ReadOptions(as_of=self.snapshot, deadline=deadline)

    def _buffer(self, collection: str, deadline: float | None) -> Flow[WriteBuffer]:
        """Return the buffer of a collection, by its name or an alias of it."""
        yield from self.begin(deadline=deadline)
        if self._catalog is None:
            raise RuntimeError("a transaction that has begun knows the catalog")
        name = self._catalog.aliases.get(collection, collection)
        buffer = self._buffers.get(name)
        if buffer is None:
            schema = next((schema for schema in self._catalog.collections if schema.name == name), None)
            if schema is None:
                raise CollectionNotExistedException(
                    f"there is no collection or alias {collection!r} at this transaction's snapshot",
                    collection=collection,
                )
            buffer = self._buffers[name] = WriteBuffer(schema)
        return buffer

    def _get(
        self, buffer: WriteBuffer, ids: Sequence[str], with_vectors: bool, deadline: float | None
    ) -> Flow[RowsReply]:
        if self.snapshot is None:
            raise RuntimeError("a transaction with a buffer has begun")
        theirs = [record_id for record_id in ids if record_id not in buffer]
        parts = [buffer.rows([record_id for record_id in ids if record_id in buffer.puts], with_vectors=with_vectors)]
        if theirs:
            if self.isolation == "serializable":
                self._reads.update(dict.fromkeys((buffer.schema.name, record_id) for record_id in theirs))
            reply = yield from self._router.get(
                buffer.schema.name, theirs, self._at(deadline), with_vectors=with_vectors
            )
            parts.append(reply.rows)
        return RowsReply(self.snapshot, in_order_of(ids, concat_rows(parts)))

    def _check_expected(
        self, buffer: WriteBuffer, ids: Sequence[str], expect: Expectation, deadline: float | None
    ) -> Flow[None]:
        if expect is None:
            return
        current = yield from self._get(buffer, ids, False, deadline)
        begin_ts = dict(zip(current.rows.ids, current.rows.begin_ts, strict=True))
        for record_id in ids:
            holds = begin_ts.get(record_id) == expect
            if isinstance(expect, str):
                holds = (record_id in begin_ts) == (expect == "present")
            if not holds:
                found = f"it has commit timestamp {begin_ts[record_id]}" if record_id in begin_ts else "it is absent"
                raise PreconditionFailedError(
                    f"record {record_id!r} was expected to be {expect!r}, but {found}",
                    collection=buffer.schema.name,
                    record_id=record_id,
                )


def _without(hits: Hits, buffer: WriteBuffer) -> Hits:
    """Return hits without the records that were replaced or deleted here."""
    keep = [row for row, record_id in enumerate(hits.ids) if record_id not in buffer]
    return hits if len(keep) == len(hits.ids) else take_hits(hits, keep)
