"""Transactions and snapshots as context managers of the synchronous client.

Both read with the client's own methods, at one timestamp::

    with client.transaction() as tx:          # commits on leaving, aborts on an exception
        packet = tx.get("accounts", "a")
        tx.upsert("accounts", [changed(packet)])

    with client.snapshot() as view:           # nothing that is committed meanwhile shows in it
        view.count("accounts")

A transaction is for one thread at a time; a snapshot may be shared.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager
from types import TracebackType
from typing import Any, Self

from vecraft_data_model.packets import CollectionInfo, CommitResult, DataPacket, QueryPacket, SearchResult
from vecraft_data_model.schema import CollectionSchema
from vecraft_data_model.search_options import DEFAULT_INCLUDE, INCLUDABLE, SearchOptions
from vecraft_db.client.engine import Engine
from vecraft_db.client.operations import Operations, make_put
from vecraft_db.client.scans import Scan, ScanPager
from vecraft_db.client.view_routers import SnapshotRouter, TransactionRouter
from vecraft_db.config import Settings
from vecraft_router.options import ReadOptions
from vecraft_router.transactions import InteractiveTransaction


class _Reads:
    """Reads at the one timestamp of a view. Every ``timeout`` is in seconds, by default the client's."""

    def __init__(self, engine: Engine, router: Any, settings: Settings) -> None:
        self._engine = engine
        self._router = router
        self._operations = Operations(router, settings)

    def get(self, collection: str, record_id: str, *, timeout: float | None = None) -> DataPacket:
        """Return a record.

        Raises:
            RecordNotFoundError: There is none of that id.
        """
        return self._engine.run(self._operations.get(collection, record_id, self._options(timeout)))

    def get_many(
        self, collection: str, ids: Iterable[str], *, timeout: float | None = None
    ) -> list[DataPacket | None]:
        """Return records in the order of ``ids``, None for the missing."""
        return self._engine.run(self._operations.get_many(collection, ids, self._options(timeout)))

    def search(
        self, collection: str, query: QueryPacket, *, timeout: float | None = None, explain: bool = False
    ) -> list[SearchResult]:
        """Return the k nearest records, nearest first; ``explain`` as for the client's own."""
        return self._engine.run(self._operations.search(collection, query, self._options(timeout), explain))

    def search_many(
        self,
        collection: str,
        queries: Any,
        k: int = 10,
        *,
        where: Any = None,
        where_document: Any = None,
        ef: int | None = None,
        exact: bool = False,
        max_distance: float | None = None,
        include: Iterable[str] = DEFAULT_INCLUDE,
        group_by: str | None = None,
        group_size: int = 1,
        timeout: float | None = None,
    ) -> list[list[SearchResult]]:
        """Return the k nearest records to each query (q, dim)."""
        wanted = SearchOptions.checked(
            k, where, where_document, ef, exact, max_distance, include, group_by=group_by, group_size=group_size
        )
        return self._engine.run(
            self._operations.search_many(collection, queries, wanted, self._options(timeout))
        )

    def scan(
        self,
        collection: str,
        where: Any = None,
        where_document: Any = None,
        include: Iterable[str] = INCLUDABLE,
        limit: int | None = None,
        cursor: str | None = None,
        *,
        timeout: float | None = None,
    ) -> Scan:
        """Iterate over records in id order. ``cursor`` must come from a scan at the same moment, so of this view."""
        pager = ScanPager(
            self._router,
            self._engine.tokens,
            collection,
            where,
            where_document,
            include,
            limit,
            cursor,
            self._operations.options(),
            timeout=timeout,
            pinned=True,
        )
        return Scan(self._engine, pager)

    def count(
        self, collection: str, where: Any = None, where_document: Any = None, *, timeout: float | None = None
    ) -> int:
        """Return how many records match, exactly."""
        return self._engine.run(self._operations.count(collection, where, where_document, self._options(timeout)))

    def list_collections(self, *, timeout: float | None = None) -> list[CollectionSchema]:
        """Return the schemas of all collections, by name."""
        return self._engine.run(self._operations.list_collections(self._options(timeout)))

    def list_aliases(self, *, timeout: float | None = None) -> dict[str, str]:
        """Return alias → collection."""
        return self._engine.run(self._operations.list_aliases(self._options(timeout)))

    def describe_collection(self, name: str, *, timeout: float | None = None) -> CollectionInfo:
        """Return the figures of a collection; a transaction sees its own changes in schema and count."""
        return self._engine.run(self._operations.describe_collection(name, self._options(timeout)))

    def _options(self, timeout: float | None) -> ReadOptions:
        return self._operations.options(timeout=timeout)


class Transaction(_Reads, AbstractContextManager["Transaction"]):
    """Reads at one snapshot that also see what is changed here, and changes that are committed all at once.

    Changes are records written and deleted, and collections and aliases made, altered and dropped.
    The snapshot stays readable for ``history_retention_s``, and, in a transaction that lasts, for five minutes from its
    last call, whichever is later; after that, reads and the commit fail with ``SnapshotTooOldError``.

    Attributes:
        result: The commit's id, timestamp and count; None until it is committed.
    """

    def __init__(
        self, engine: Engine, transaction: InteractiveTransaction, settings: Settings, timeout: float | None
    ) -> None:
        super().__init__(engine, TransactionRouter(engine.router, transaction, timeout), settings)
        self._transaction = transaction
        self._timeout = timeout
        self.result: CommitResult | None = None

    @property
    def snapshot(self) -> int | None:
        """The timestamp it reads at; None before the ``with`` block begins."""
        return self._transaction.snapshot

    def insert(
        self, collection: str, packet: DataPacket, *, expect: Any = None, timeout: float | None = None
    ) -> DataPacket | None:
        """Insert or replace a record; returns the one it replaces, as this transaction sees it."""
        return self._engine.run(self._operations.insert(collection, packet, expect, None, timeout))

    def upsert(
        self,
        collection: str,
        packets: Iterable[DataPacket] | None = None,
        *,
        ids: Iterable[str] | None = None,
        vectors: Any = None,
        metadatas: Sequence[Any] | None = None,
        documents: Sequence[Any] | None = None,
        expect: Any = None,
        timeout: float | None = None,
    ) -> int:
        """Insert or replace records; returns how many."""
        put = make_put(collection, packets, ids, vectors, metadatas, documents, expect)
        return self._engine.run(self._operations.upsert(put, None, timeout)).count

    def delete(
        self, collection: str, record_id: str, *, expect: Any = None, timeout: float | None = None
    ) -> DataPacket | None:
        """Delete a record; returns it as this transaction sees it, or None."""
        return self._engine.run(self._operations.delete(collection, record_id, expect, None, timeout))

    def delete_many(
        self,
        collection: str,
        ids: Iterable[str] | None = None,
        where: Any = None,
        where_document: Any = None,
        *,
        expect: Any = None,
        timeout: float | None = None,
    ) -> int:
        """Delete by id or by filter; returns how many were there."""
        flow = self._operations.delete_many(
            collection, ids, where, where_document, expect, None, self._options(timeout)
        )
        return self._engine.run(flow).count

    def create_collection(
        self, schema: CollectionSchema, if_not_exists: bool = False, *, timeout: float | None = None
    ) -> CollectionSchema:
        """Create a collection; until the commit only this transaction sees it, and can fill and search it.

        Raises:
            CollectionAlreadyExistedException: One of that name exists (with ``if_not_exists``: of another shape).
        """
        return self._engine.run(self._operations.create_collection(schema, if_not_exists, None, timeout))

    def drop_collection(self, name: str, *, timeout: float | None = None) -> None:
        """Drop a collection; should anybody write to it before the commit, that is a conflict."""
        self._engine.run(self._operations.drop_collection(name, None, timeout))

    def alter_collection(self, name: str, *, timeout: float | None = None, **changes: Any) -> None:
        """Change settings of a collection: ``target_recall=``, ``ef=``."""
        self._engine.run(self._operations.alter_collection(name, changes, None, timeout))

    def set_alias(self, alias: str, name: str, *, timeout: float | None = None) -> None:
        """Let ``alias`` name a collection; should anybody write to the one it named before the commit: a conflict."""
        self._engine.run(self._operations.set_alias(alias, name, None, timeout))

    def drop_alias(self, alias: str, *, timeout: float | None = None) -> None:
        """Remove an alias; as for :meth:`set_alias`, writes to what it named are conflicts."""
        self._engine.run(self._operations.drop_alias(alias, None, timeout))

    def commit(self) -> CommitResult:
        """Commit now; the ``with`` block then has nothing left to do.

        Raises:
            WriteConflictException: Somebody else committed one of these records first; nothing was written.
            ReadWriteConflictException: Under ``serializable``: a record read by id was changed; nothing was written.
            TimeoutException: If ``details["outcome"]`` is ``"unknown"``, call this again: it is carried out once.
        """
        if self.result is None:
            deadline = self._engine.router.deadline(self._timeout)
            self.result = self._engine.run(self._transaction.commit(deadline=deadline)).result
        return self.result

    def abort(self) -> None:
        """Drop all writes."""
        self._transaction.abort()

    def __enter__(self) -> Self:
        self._engine.run(self._transaction.begin(deadline=self._engine.router.deadline(self._timeout)))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if kind is not None:
                self.abort()
            elif self._transaction.ended is None:
                self.commit()
        finally:
            if self._transaction.pinned:
                self._engine.run(self._transaction.release())


class Snapshot(_Reads, AbstractContextManager["Snapshot"]):
    """A read-only view of all collections at one timestamp, kept readable while the ``with`` block lasts."""

    def __init__(self, engine: Engine, settings: Settings, options: ReadOptions) -> None:
        self._view = SnapshotRouter(engine.router)
        super().__init__(engine, self._view, settings)
        self._opening = options

    @property
    def timestamp(self) -> int:
        """The timestamp that is read at (the ``as_of`` of other reads); 0 outside the ``with`` block."""
        return self._view.held.snapshot or 0

    def __enter__(self) -> Self:
        self._engine.run(self._view.open(self._opening))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._engine.run(self._view.close())
