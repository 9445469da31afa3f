"""Interactive transactions: one snapshot, buffered writes that its own reads see, one atomic commit.

::

    begin ── snapshot S, catalog at S ──┬── get · search · scan · count   at S, own writes laid over
                                        ├── put · delete                  into the buffer; no shard hears of them
                                        ├── change_catalog                into the draft of the catalog, likewise
                                        └── commit                        all of it, validated against S

Names are resolved in the catalog at ``S`` with the transaction's own changes laid over, so a record has one place in
the buffer whatever name it was written under. It is committed under the name that was used: an alias that somebody
else has switched since is a conflict. ``expect`` is checked at once, against ``S`` and the buffer: should the record
change before the commit, that is a conflict anyway (first committer wins).

Isolation: ``snapshot`` (no lost updates; write skew is possible) or ``serializable`` (records read *by id* are
validated too; searches, scans and counts are not predicate-locked).

A transaction that lasts pins its snapshot (:mod:`vecraft_router.pinning`), so that its history stays readable.

A commit changes the catalog first and then writes records, in one step for everybody else: what was written to a
collection before this transaction dropped it needs not be written at all.

Not done here: use from several threads at once.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import msgspec

from vecraft_data_model.errors import (
    InvalidDataException,
    PreconditionFailedError,
    ShardUnavailableError,
    TimeoutException,
    VecraftError,
)
from vecraft_data_model.filter_match import matching_payloads
from vecraft_data_model.filters import DocumentFilter, Filter
from vecraft_data_model.messages import (
    AlterCollection,
    CatalogMutation,
    CatalogReply,
    CountReply,
    CreateCollection,
    Delete,
    DropAlias,
    DropCollection,
    Expectation,
    Float32Array,
    Mutation,
    Put,
    RowsReply,
    SetAlias,
)
from vecraft_data_model.packets import CollectionInfo, CommitResult
from vecraft_data_model.scan_options import DEFAULT_PAGE, ScanOptions
from vecraft_data_model.search_options import SearchOptions
from vecraft_router.buffered_search import search_buffered
from vecraft_router.draft_catalog import DraftCatalog
from vecraft_router.effects import Flow
from vecraft_router.merging import concat_rows, in_order_of, merge_pages, take_rows
from vecraft_router.options import DEFAULT_OPTIONS, ReadOptions
from vecraft_router.pinning import HeldSnapshot
from vecraft_router.results import Commit, Found
from vecraft_router.write_buffer import WriteBuffer

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
        self._catalog: DraftCatalog | None = None
        self._buffers: dict[str, WriteBuffer] = {}
        self._reads: dict[tuple[str, str], None] = {}
        self._held = HeldSnapshot(router)

    def begin(self, *, deadline: float | None = None) -> Flow[int]:
        """Choose the snapshot, if that was not done yet, and return it. Every other method begins with this."""
        if self.ended is not None:
            raise InvalidDataException(f"this transaction is over: it was {self.ended}")
        if self.snapshot is None:
            options = msgspec.structs.replace(self._options, deadline=deadline)
            self.snapshot = yield from self._router.choose_snapshot(options)
            self._held.begin(self.snapshot)
        if self._catalog is None:
            self._catalog = DraftCatalog((yield from self._router.list_collections(self._at(deadline))))
        return self.snapshot

    # ------------------------------------------------------------------------------------------------ writes

    def put(self, put: Put, *, deadline: float | None = None) -> Flow[None]:
        """Insert or replace records.

        Raises:
            PreconditionFailedError: ``put.expect`` does not hold for one of them; nothing is buffered.
        """
        buffer = yield from self._buffer(put.collection, deadline)
        yield from self._check_expected(buffer, put.collection, put.ids, put.expect, deadline)
        buffer.put(put, self._committed_as(put.collection))

    def delete(self, delete: Delete, *, deadline: float | None = None) -> Flow[None]:
        """Delete records by id; those that do not exist are passed over.

        Raises:
            PreconditionFailedError: ``delete.expect`` does not hold for one of them; nothing is buffered.
        """
        buffer = yield from self._buffer(delete.collection, deadline)
        yield from self._check_expected(buffer, delete.collection, delete.ids, delete.expect, deadline)
        buffer.delete(delete.ids, self._committed_as(delete.collection))

    def write(self, mutation: Mutation, *, deadline: float | None = None) -> Flow[None]:
        """Make any change: :meth:`put`, :meth:`delete` or :meth:`change_catalog`."""
        if isinstance(mutation, Put):
            return self.put(mutation, deadline=deadline)
        if isinstance(mutation, Delete):
            return self.delete(mutation, deadline=deadline)
        return self.change_catalog(mutation, deadline=deadline)

    def mutations(self) -> list[Mutation]:
        """Return what is to be committed: all changes of the catalog, then each record's last write."""
        mutations: list[Mutation] = [] if self._catalog is None else list(self._catalog.steps)
        for name in sorted(self._buffers):
            mutations.extend(self._buffers[name].mutations())
        return mutations

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
            after = doomed[-1] if doomed else None
            wanted = ScanOptions(after, _DELETE_WHERE_PAGE, where, where_document, with_payloads=False)
            page = yield from self.scan_page(collection, wanted, deadline=deadline)
            doomed.extend(page.rows.ids)
            more = page.more
        buffer.delete(doomed, self._committed_as(collection))
        return len(doomed)

    def change_catalog(self, mutation: CatalogMutation, *, deadline: float | None = None) -> Flow[None]:
        """Create, alter or drop a collection, set or drop an alias: seen here at once, by others from the commit on.

        Raises:
            CollectionAlreadyExistedException, CollectionNotExistedException, InvalidDataException: What stands against
                it, as this transaction sees the catalog; nothing is changed.
        """
        catalog = yield from self._drafted(deadline)
        catalog.take(mutation)
        match mutation:
            case CreateCollection(schema=schema):
                self._buffers[schema.name] = WriteBuffer(schema, made_here=True)
            case DropCollection(name=name):
                self._buffers.pop(name, None)
            case SetAlias(alias=alias) | DropAlias(alias=alias):
                for buffer in self._buffers.values():
                    buffer.forget_alias(alias)
            case AlterCollection(name=name):
                if name in self._buffers:
                    self._buffers[name].schema = catalog.resolve(name)

    def commit(self, *, deadline: float | None = None) -> Flow[Commit]:
        """Commit all changes of the catalog and all buffered writes, or nothing.

        Raises as ``Router.commit``. If an error says that the outcome is unknown, the transaction is not over: call
        this again, and it is carried out once.
        """
        snapshot = yield from self.begin(deadline=deadline)
        mutations = self.mutations()
        if not mutations:
            # what was read is one consistent cut already: a transaction that only reads is serializable as it is
            self.ended = "committed"
            return Commit(CommitResult(self.txn_id or self._router.new_txn_id(), snapshot, 0))
        try:
            commit = yield from self._router.commit(
                mutations, txn_id=self.txn_id, snapshot=snapshot, reads=list(self._reads), deadline=deadline
            )
        except VecraftError as error:
            outcome = error.details.get("outcome")
            if outcome == "unknown":
                self.txn_id = str(error.details["txn_id"])
            elif outcome is not None or not isinstance(error, TimeoutException | ShardUnavailableError):
                self.ended = "aborted"
            raise
        self.ended = "committed"
        return commit

    def abort(self) -> None:
        """Drop everything. No shard has to be told, but of the pin (:meth:`release`)."""
        if self.ended is None:
            self.ended = "aborted"
            self._buffers.clear()
            self._catalog = None

    @property
    def pinned(self) -> bool:
        """Whether shards may keep history for it, until they hear of its end by :meth:`release`, or for minutes."""
        return self._held.pin_id is not None

    def release(self) -> Flow[None]:
        """Let go of the snapshot's pin, if it has one. Raises nothing: a pin runs out by itself."""
        return self._held.release()

    # ------------------------------------------------------------------------------------------------- reads

    def list_collections(self, *, deadline: float | None = None) -> Flow[CatalogReply]:
        """Return the schemas and the aliases, own changes included."""
        return (yield from self._drafted(deadline)).reply()

    def describe(self, collection: str, *, deadline: float | None = None) -> Flow[CollectionInfo]:
        """Return a collection's figures at the snapshot; its schema and count with own changes included.

        A collection that this transaction makes is nowhere yet: it has no files, no shards and no id.
        """
        buffer = yield from self._buffer(collection, deadline)
        count = (yield from self.count(collection, deadline=deadline)).count
        if buffer.made_here:
            return CollectionInfo(buffer.schema, "", count, 0, 0, 0, 0, None, 0, [])
        info = yield from self._router.describe(buffer.schema.name, self._at(deadline))
        return msgspec.structs.replace(info, schema=buffer.schema, count=count)

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
        return (yield from self._get(buffer, collection, ids, with_vectors, deadline))

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
        return (yield from search_buffered(self._router, buffer, queries, wanted, self._at(deadline)))

    def scan_page(
        self, collection: str, wanted: ScanOptions = DEFAULT_PAGE, *, deadline: float | None = None
    ) -> Flow[RowsReply]:
        """Return one page of records in id order, own writes included."""
        buffer = yield from self._buffer(collection, deadline)
        own, own_reach = buffer.page(wanted.after, wanted.limit, wanted.where, wanted.where_document)
        own_rows = buffer.rows(own, with_payloads=wanted.with_payloads, with_vectors=wanted.with_vectors)
        if buffer.made_here:
            return RowsReply(self._snapshot(), *merge_pages([(own_rows, own_reach)], wanted.limit))
        while True:
            page = yield from self._router.scan_page(buffer.schema.name, wanted, self._at(deadline))
            theirs = [row for row, record_id in enumerate(page.rows.ids) if record_id not in buffer]
            reach = page.rows.ids[-1] if page.more else None
            rows, more = merge_pages([(take_rows(page.rows, theirs), reach), (own_rows, own_reach)], wanted.limit)
            if rows.ids or not more:
                return RowsReply(page.snapshot, rows, more)
            wanted = msgspec.structs.replace(wanted, after=reach)  # all of that page was replaced or deleted here

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
        if buffer.made_here:
            return CountReply(self._snapshot(), len(buffer.matching(where, where_document)))
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

    def _snapshot(self) -> int:
        if self.snapshot is None:
            raise RuntimeError("a transaction with a buffer has begun")
        return self.snapshot

    def _drafted(self, deadline: float | None) -> Flow[DraftCatalog]:
        """Return the catalog as this transaction sees it."""
        yield from self.begin(deadline=deadline)
        yield from self._held.keep(deadline)
        if self._catalog is None:
            raise RuntimeError("a transaction that has begun knows the catalog")
        return self._catalog

    def _buffer(self, collection: str, deadline: float | None) -> Flow[WriteBuffer]:
        """Return the buffer of a collection, by its name or an alias of it."""
        schema = (yield from self._drafted(deadline)).resolve(collection)
        buffer = self._buffers.get(schema.name)
        if buffer is None:
            buffer = self._buffers[schema.name] = WriteBuffer(schema)
        return buffer

    def _committed_as(self, collection: str) -> str | None:
        """Return the alias to commit under; None for the collection's own name, where the alias is changed here."""
        renamed = self._catalog is not None and collection in self._catalog.renamed
        return None if renamed else collection

    def _get(
        self,
        buffer: WriteBuffer,
        collection: str,
        ids: Sequence[str],
        with_vectors: bool,
        deadline: float | None,
    ) -> Flow[RowsReply]:
        parts = [buffer.rows([record_id for record_id in ids if record_id in buffer.puts], with_vectors=with_vectors)]
        theirs = [] if buffer.made_here else [record_id for record_id in ids if record_id not in buffer]
        if theirs:
            if self.isolation == "serializable":
                name = self._committed_as(collection) or buffer.schema.name
                self._reads.update(dict.fromkeys((name, record_id) for record_id in theirs))
            reply = yield from self._router.get(
                buffer.schema.name, theirs, self._at(deadline), with_vectors=with_vectors
            )
            parts.append(reply.rows)
        return RowsReply(self._snapshot(), in_order_of(ids, concat_rows(parts)))

    def _check_expected(
        self, buffer: WriteBuffer, collection: str, ids: Sequence[str], expect: Expectation, deadline: float | None
    ) -> Flow[None]:
        if expect is None:
            return
        current = yield from self._get(buffer, collection, ids, False, deadline)
        begin_ts = dict(zip(current.rows.ids, current.rows.begin_ts, strict=True))
        for record_id in ids:
            holds = begin_ts.get(record_id) == expect
            if isinstance(expect, str):
                holds = (record_id in begin_ts) == (expect == "present")
            if not holds:
                found = f"it has commit timestamp {begin_ts[record_id]}" if record_id in begin_ts else "it is absent"
                if record_id in buffer.puts:
                    found = "this transaction has written it"
                raise PreconditionFailedError(
                    f"record {record_id!r} was expected to be {expect!r}, but {found}",
                    collection=buffer.schema.name,
                    record_id=record_id,
                )
