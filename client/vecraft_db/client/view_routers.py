"""Routers seen from inside a transaction or a snapshot.

Both have the flows of a router that :class:`~vecraft_db.client.operations.Operations` needs, so a method means the same
inside and outside::

    TransactionRouter   reads at the transaction's snapshot with its own writes laid over; writes go to its buffer
    SnapshotRouter      reads at one timestamp, whose history it keeps from being reclaimed for as long as it is used

What has no meaning in a view (a consistency level, another moment; in a snapshot, any change) its clients do not offer.
"""

from __future__ import annotations

from collections.abc import Sequence

from vecraft_data_model.errors import InvalidDataException
from vecraft_data_model.filters import DocumentFilter, Filter
from vecraft_data_model.messages import (
    CatalogReply,
    CountReply,
    Delete,
    Float32Array,
    Mutation,
    Put,
    Rows,
    RowsReply,
)
from vecraft_data_model.packets import CollectionInfo, CommitResult
from vecraft_data_model.scan_options import DEFAULT_PAGE, ScanOptions
from vecraft_data_model.search_options import SearchOptions
from vecraft_db.client.engine import Flow, FlowRouter
from vecraft_router.options import DEFAULT_OPTIONS, ReadOptions
from vecraft_router.pinning import HeldSnapshot
from vecraft_router.results import Commit, Found
from vecraft_router.transactions import InteractiveTransaction


class TransactionRouter:
    """The reads and writes of one interactive transaction.

    Args:
        router: The router that the transaction is built on.
        transaction: The transaction.
        timeout: Seconds for each call that does not say; None: the router's default.
    """

    def __init__(
        self, router: FlowRouter, transaction: InteractiveTransaction, timeout: float | None = None
    ) -> None:
        self._router = router
        self._timeout = timeout
        self.transaction = transaction

    def deadline(self, timeout: float | None = None) -> float:
        """As the router's, with this transaction's default."""
        return self._router.deadline(self._timeout if timeout is None else timeout)

    def _until(self, options: ReadOptions) -> float:
        return self.deadline() if options.deadline is None else options.deadline

    def commit(
        self,
        mutations: Sequence[Mutation],
        *,
        txn_id: str | None = None,
        snapshot: int | None = None,
        reads: Sequence[tuple[str, str]] = (),
        want_preimages: bool = False,
        deadline: float | None = None,
    ) -> Flow[Commit]:
        """Buffer writes. The timestamp in the result is 0: nothing is committed yet."""
        count, preimages = 0, None
        for mutation in mutations:
            if not isinstance(mutation, Put | Delete):
                yield from self.transaction.write(mutation, deadline=deadline)
                continue
            if want_preimages:
                reply = yield from self.transaction.get(mutation.collection, mutation.ids, deadline=deadline)
                preimages = reply.rows
            if isinstance(mutation, Put):
                count += len(mutation.ids)
            else:
                present: Rows = (
                    yield from self.transaction.get(
                        mutation.collection, mutation.ids, with_vectors=False, deadline=deadline
                    )
                ).rows
                count += len(present.ids)
            yield from self.transaction.write(mutation, deadline=deadline)
        return Commit(CommitResult(self.transaction.txn_id or "", 0, count), preimages)

    def delete_where(
        self,
        collection: str,
        *,
        where: Filter | None = None,
        where_document: DocumentFilter | None = None,
        txn_id: str | None = None,
        options: ReadOptions = DEFAULT_OPTIONS,
    ) -> Flow[Commit]:
        """Buffer the deletion of what matches, own writes included."""
        count = yield from self.transaction.delete_where(
            collection, where=where, where_document=where_document, deadline=self._until(options)
        )
        return Commit(CommitResult(self.transaction.txn_id or "", 0, count))

    def get(
        self, collection: str, ids: Sequence[str], options: ReadOptions = DEFAULT_OPTIONS, *, with_vectors: bool = True
    ) -> Flow[RowsReply]:
        """As the router's, own writes included."""
        return self.transaction.get(collection, ids, with_vectors=with_vectors, deadline=self._until(options))

    def search(
        self,
        collection: str,
        queries: Float32Array,
        wanted: SearchOptions,
        options: ReadOptions = DEFAULT_OPTIONS,
    ) -> Flow[Found]:
        """As the router's, own writes included."""
        return self.transaction.search(collection, queries, wanted, deadline=self._until(options))

    def scan_page(
        self, collection: str, wanted: ScanOptions = DEFAULT_PAGE, options: ReadOptions = DEFAULT_OPTIONS
    ) -> Flow[RowsReply]:
        """As the router's, own writes included."""
        return self.transaction.scan_page(collection, wanted, deadline=self._until(options))

    def count(
        self,
        collection: str,
        *,
        where: Filter | None = None,
        where_document: DocumentFilter | None = None,
        options: ReadOptions = DEFAULT_OPTIONS,
    ) -> Flow[CountReply]:
        """As the router's, own writes included."""
        return self.transaction.count(
            collection, where=where, where_document=where_document, deadline=self._until(options)
        )

    def list_collections(self, options: ReadOptions = DEFAULT_OPTIONS) -> Flow[CatalogReply]:
        """As the router's, own changes included."""
        return self.transaction.list_collections(deadline=self._until(options))

    def describe(self, collection: str, options: ReadOptions = DEFAULT_OPTIONS) -> Flow[CollectionInfo]:
        """As the router's, own changes included."""
        return self.transaction.describe(collection, deadline=self._until(options))


class SnapshotRouter:
    """Reads at one timestamp.

    Args:
        router: The router to read by.

    Attributes:
        held: The snapshot, and the lease on it.
    """

    def __init__(self, router: FlowRouter) -> None:
        self._router = router
        self.held = HeldSnapshot(router)

    def open(self, options: ReadOptions) -> Flow[int]:
        """Choose and pin the snapshot."""
        return self.held.open(options)

    def close(self) -> Flow[None]:
        """Let go of it."""
        return self.held.release()

    def deadline(self, timeout: float | None = None) -> float:
        """As the router's."""
        return self._router.deadline(timeout)

    def _at(self, options: ReadOptions) -> Flow[ReadOptions]:
        snapshot = self.held.snapshot
        if snapshot is None:
            raise InvalidDataException("this snapshot is not open: use it inside its with block")
        yield from self.held.keep(options.deadline)
        return ReadOptions(as_of=snapshot, deadline=options.deadline, partial=options.partial)

    def get(
        self, collection: str, ids: Sequence[str], options: ReadOptions = DEFAULT_OPTIONS, *, with_vectors: bool = True
    ) -> Flow[RowsReply]:
        """As the router's."""
        at = yield from self._at(options)
        return (yield from self._router.get(collection, ids, at, with_vectors=with_vectors))

    def search(
        self,
        collection: str,
        queries: Float32Array,
        wanted: SearchOptions,
        options: ReadOptions = DEFAULT_OPTIONS,
    ) -> Flow[Found]:
        """As the router's."""
        at = yield from self._at(options)
        return (yield from self._router.search(collection, queries, wanted, at))

    def scan_page(
        self, collection: str, wanted: ScanOptions = DEFAULT_PAGE, options: ReadOptions = DEFAULT_OPTIONS
    ) -> Flow[RowsReply]:
        """As the router's."""
        at = yield from self._at(options)
        return (yield from self._router.scan_page(collection, wanted, at))

    def count(
        self,
        collection: str,
        *,
        where: Filter | None = None,
        where_document: DocumentFilter | None = None,
        options: ReadOptions = DEFAULT_OPTIONS,
    ) -> Flow[CountReply]:
        """As the router's."""
        at = yield from self._at(options)
        return (yield from self._router.count(collection, where=where, where_document=where_document, options=at))

    def list_collections(self, options: ReadOptions = DEFAULT_OPTIONS) -> Flow[CatalogReply]:
        """As the router's."""
        at = yield from self._at(options)
        return (yield from self._router.list_collections(at))

    def describe(self, collection: str, options: ReadOptions = DEFAULT_OPTIONS) -> Flow[CollectionInfo]:
        """As the router's."""
        at = yield from self._at(options)
        return (yield from self._router.describe(collection, at))
