"""``VecraftClient``: the synchronous client, the same in front of every kind of database.

Each method makes a flow of :mod:`vecraft_db.client.operations` and has the engine run it. Common arguments:

* ``timeout``: seconds the call may take; by default the client's. A write that times out may have happened: send it
  again with the same ``txn_id``.
* ``txn_id``: makes a write exactly-once: sent again with the same content, it is not carried out again.
* ``expect``: ``"absent"``, ``"present"``, or the commit timestamp a record must have for the write to happen.
* ``consistency``: ``"session"`` (reads its own writes), ``"strong"`` (everybody's acknowledged ones), ``"eventual"`` or
  ``Bounded(ms)`` (never waits). ``as_of``: a commit timestamp or a datetime to read at instead.

Thread-safe. A context manager; a client that is not closed is closed when the interpreter ends.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager
from datetime import datetime
from types import TracebackType
from typing import Any, Self, TypeVar

from vecraft_data_model.errors import ReadWriteConflictException, WriteConflictException
from vecraft_data_model.packets import CollectionInfo, CommitResult, DataPacket, QueryPacket, SearchResult
from vecraft_data_model.schema import CollectionSchema
from vecraft_data_model.search_options import DEFAULT_INCLUDE, INCLUDABLE, SearchOptions
from vecraft_data_model.validation import check_integer, check_timeout, check_txn_id
from vecraft_db.client.engine import (
    BackupEngine,
    Engine,
    Runner,
    backup_engine,
    refuse_closed,
)
from vecraft_db.client.opening import open_engine, settings_for_client
from vecraft_db.client.operations import Operations, backoff_s, make_put
from vecraft_db.client.plots import drawn_positions, existing, write_plot
from vecraft_db.client.scans import Scan, ScanPager
from vecraft_db.client.views import Snapshot, Transaction
from vecraft_db.config import Settings
from vecraft_router.options import Consistency, ReadOptions

T = TypeVar("T")


class VecraftClient(AbstractContextManager["VecraftClient"]):
    """A database: in this process, on a Ray cluster, or behind a REST gateway.

    Args:
        root: Data directory of a database in this process (or of the Ray cluster that is started); ``":memory:"`` for
            one that leaves no files.
        shards: Shards of a new root.
        address: Ray cluster: ``"auto"`` joins the one that runs, ``"local"`` starts one, ``"host:port"`` joins
            that one.
        url: REST gateway.
        api_key: For the gateway.
        timeout: Seconds a call may take unless it says so.
        settings: Instead of environment and ``CONFIG_FILE``.
        options: Any other setting of :class:`vecraft_db.config.Settings`.

    Raises:
        InvalidDataException: Arguments that are not accepted, or exclude each other.
        StorageFailureException: The directory is in use by another process, or cannot be read.
        CorruptionError: Its files are damaged.
    """

    def __init__(
        self,
        root: str | os.PathLike[str] | None = None,
        *,
        shards: int | None = None,
        address: str | None = None,
        url: str | None = None,
        api_key: str | None = None,
        timeout: float | None = None,
        settings: Settings | None = None,
        **options: Any,
    ) -> None:
        self._settings = settings_for_client(
            settings, root=root, shards=shards, address=address, url=url, api_key=api_key, timeout=timeout, **options
        )
        self._engine: Engine = self._open(self._settings)
        self._operations = Operations(self._engine.router, self._settings)
        self._run: Runner = self._engine.run

    def _open(self, settings: Settings) -> Engine:
        """Open the place that the settings name; a client that finds it in another way has its own."""
        return open_engine(settings)

    @property
    def engine(self) -> Engine:
        """The place the database is in: for gateways and tools that run flows of their own."""
        return self._engine

    @property
    def settings(self) -> Settings:
        """What this client goes by."""
        return self._settings

    # ----------------------------------------------------------------------------------------------- catalog

    def create_collection(
        self,
        schema: CollectionSchema,
        if_not_exists: bool = False,
        *,
        txn_id: str | None = None,
        timeout: float | None = None,
    ) -> CollectionSchema:
        """Create a collection; returns its schema.

        Raises:
            CollectionAlreadyExistedException: One of that name exists (with ``if_not_exists``: of another shape).
        """
        return self._run(self._operations.create_collection(schema, if_not_exists, txn_id, timeout))

    def drop_collection(self, name: str, *, txn_id: str | None = None, timeout: float | None = None) -> None:
        """Drop a collection with all its records; snapshots taken before still see it."""
        self._run(self._operations.drop_collection(name, txn_id, timeout))

    def alter_collection(
        self, name: str, *, txn_id: str | None = None, timeout: float | None = None, **changes: Any
    ) -> None:
        """Change settings of a collection, durably: ``target_recall=``, ``ef=`` (None: tuned to the target)."""
        self._run(self._operations.alter_collection(name, changes, txn_id, timeout))

    def set_alias(self, alias: str, name: str, *, txn_id: str | None = None, timeout: float | None = None) -> None:
        """Let ``alias`` name a collection, from one moment on everywhere; an alias that exists is switched."""
        self._run(self._operations.set_alias(alias, name, txn_id, timeout))

    def drop_alias(self, alias: str, *, txn_id: str | None = None, timeout: float | None = None) -> None:
        """Remove an alias."""
        self._run(self._operations.drop_alias(alias, txn_id, timeout))

    def list_collections(
        self,
        *,
        consistency: Consistency | None = None,
        as_of: int | datetime | None = None,
        timeout: float | None = None,
    ) -> list[CollectionSchema]:
        """Return the schemas of all collections, by name."""
        return self._run(self._operations.list_collections(self._options(consistency, as_of, timeout)))

    def list_aliases(
        self,
        *,
        consistency: Consistency | None = None,
        as_of: int | datetime | None = None,
        timeout: float | None = None,
    ) -> dict[str, str]:
        """Return alias → collection."""
        return self._run(self._operations.list_aliases(self._options(consistency, as_of, timeout)))

    def describe_collection(
        self,
        name: str,
        *,
        consistency: Consistency | None = None,
        as_of: int | datetime | None = None,
        timeout: float | None = None,
    ) -> CollectionInfo:
        """Return a collection's schema and figures, in all and by shard."""
        return self._run(self._operations.describe_collection(name, self._options(consistency, as_of, timeout)))

    def set_ef(self, collection: str, ef: int | None, *, timeout: float | None = None) -> None:
        """Set the search depth of a collection until its shards restart; None goes back to its own."""
        self._run(self._operations.set_ef(collection, ef, timeout))

    # ------------------------------------------------------------------------------------------------ writes

    def insert(
        self,
        collection: str,
        packet: DataPacket,
        *,
        expect: Any = None,
        txn_id: str | None = None,
        timeout: float | None = None,
    ) -> DataPacket | None:
        """Insert or replace a record; returns the one it replaced, or None."""
        return self._run(self._operations.insert(collection, packet, expect, txn_id, timeout))

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
        txn_id: str | None = None,
        timeout: float | None = None,
    ) -> CommitResult:
        """Insert or replace records, all or none, however many shards they live on.

        Either ``packets``, or columns: ``ids`` and ``vectors`` (n, dim), and optionally ``metadatas`` and
        ``documents`` with n entries. Columns with a float32 array are the fast path.
        """
        put = make_put(collection, packets, ids, vectors, metadatas, documents, expect)
        return self._run(self._operations.upsert(put, txn_id, timeout))

    def delete(
        self,
        collection: str,
        record_id: str,
        *,
        expect: Any = None,
        txn_id: str | None = None,
        timeout: float | None = None,
    ) -> DataPacket | None:
        """Delete a record; returns what was there, or None."""
        return self._run(self._operations.delete(collection, record_id, expect, txn_id, timeout))

    def delete_many(
        self,
        collection: str,
        ids: Iterable[str] | None = None,
        where: Any = None,
        where_document: Any = None,
        *,
        expect: Any = None,
        txn_id: str | None = None,
        timeout: float | None = None,
    ) -> CommitResult:
        """Delete by id, or exactly what matches a filter at one snapshot and still at the commit; all or none."""
        options = ReadOptions(deadline=self._engine.router.deadline(check_timeout(timeout)))
        return self._run(
            self._operations.delete_many(collection, ids, where, where_document, expect, txn_id, options)
        )

    # ------------------------------------------------------------------------------------------------- reads

    def get(
        self,
        collection: str,
        record_id: str,
        *,
        consistency: Consistency | None = None,
        as_of: int | datetime | None = None,
        timeout: float | None = None,
    ) -> DataPacket:
        """Return a record, its checksum verified.

        Raises:
            RecordNotFoundError: There is none of that id.
        """
        return self._run(self._operations.get(collection, record_id, self._options(consistency, as_of, timeout)))

    def get_many(
        self,
        collection: str,
        ids: Iterable[str],
        *,
        consistency: Consistency | None = None,
        as_of: int | datetime | None = None,
        timeout: float | None = None,
    ) -> list[DataPacket | None]:
        """Return records in the order of ``ids``, None for the missing."""
        return self._run(self._operations.get_many(collection, ids, self._options(consistency, as_of, timeout)))

    def search(
        self,
        collection: str,
        query: QueryPacket,
        *,
        consistency: Consistency | None = None,
        as_of: int | datetime | None = None,
        timeout: float | None = None,
        partial: bool = False,
        explain: bool = False,
    ) -> list[SearchResult]:
        """Return the k nearest records that match, nearest first, ties by record id.

        With ``partial`` the answer does without shards that cannot be reached, and names them in its ``missing``;
        with ``explain`` its ``explain`` says how each shard searched.
        """
        operations = self._operations
        if consistency is None and as_of is None and timeout is None and partial is False:
            options = operations.default_options
        else:
            options = operations.options(consistency, as_of, timeout, partial)
        return self._run(operations.search(collection, query, options, explain))

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
        consistency: Consistency | None = None,
        as_of: int | datetime | None = None,
        timeout: float | None = None,
        partial: bool = False,
    ) -> list[list[SearchResult]]:
        """Return the k nearest records to each of ``queries`` (q, dim), all at one snapshot."""
        wanted = SearchOptions.checked(
            k, where, where_document, ef, exact, max_distance, include, group_by=group_by, group_size=group_size
        )
        options = self._options(consistency, as_of, timeout, partial)
        return self._run(self._operations.search_many(collection, queries, wanted, options))

    def scan(
        self,
        collection: str,
        where: Any = None,
        where_document: Any = None,
        include: Iterable[str] = INCLUDABLE,
        limit: int | None = None,
        cursor: str | None = None,
        *,
        consistency: Consistency | None = None,
        as_of: int | datetime | None = None,
        timeout: float | None = None,
    ) -> Scan:
        """Iterate over records in id order, all at one snapshot.

        The iterator's ``cursor`` goes on behind the last record it handed out, at the same snapshot, in another call
        with the same filters; ``consistency`` and ``as_of`` cannot go with it. ``timeout`` is for each page.
        """
        options = self._operations.options_of_scan(cursor, consistency, as_of)
        pager = ScanPager(
            self._engine.router,
            self._engine.tokens,
            collection,
            where,
            where_document,
            include,
            limit,
            cursor,
            options,
            timeout=timeout,
        )
        return Scan(self._engine, pager)

    def count(
        self,
        collection: str,
        where: Any = None,
        where_document: Any = None,
        *,
        consistency: Consistency | None = None,
        as_of: int | datetime | None = None,
        timeout: float | None = None,
    ) -> int:
        """Return how many records match, exactly."""
        options = self._options(consistency, as_of, timeout)
        return self._run(self._operations.count(collection, where, where_document, options))

    # ------------------------------------------------------------------------------------------------- views

    def transaction(
        self, isolation: str = "snapshot", txn_id: str | None = None, *, timeout: float | None = None
    ) -> Transaction:
        """Return a transaction, for a ``with`` block: commits on leaving it, aborts on an exception.

        Args:
            isolation: ``"snapshot"``, or ``"serializable"``: records read by id must be unchanged at the commit.
            txn_id: For exactly-once retries.
            timeout: Seconds for each of its calls, and for the commit.
        """
        check_timeout(timeout)
        interactive = self._engine.router.transaction(
            isolation=isolation,
            txn_id=None if txn_id is None else check_txn_id(txn_id),
            options=self._operations.default_options,
        )
        return Transaction(self._engine, interactive, self._settings, timeout)

    def run_transaction(
        self,
        body: Callable[[Transaction], T],
        retries: int = 10,
        *,
        isolation: str = "snapshot",
        timeout: float | None = None,
    ) -> T:
        """Run ``body`` in a transaction, again on a newer snapshot after each conflict; returns what it returns.

        Raises:
            WriteConflictException, ReadWriteConflictException: Still in conflict after so many ``retries``.
        """
        check_integer(retries, "retries", 0, 1_000_000)
        attempt = 0
        while True:
            try:
                with self.transaction(isolation, timeout=timeout) as transaction:
                    return body(transaction)
            except (WriteConflictException, ReadWriteConflictException):
                if attempt >= retries:
                    raise
            attempt += 1
            time.sleep(backoff_s(attempt))

    def snapshot(self, as_of: int | datetime | None = None, *, timeout: float | None = None) -> Snapshot:
        """Return a read-only view of all collections at one timestamp, for a ``with`` block.

        Args:
            as_of: A commit timestamp or a datetime; None: now.
            timeout: Seconds for choosing the snapshot.
        """
        return Snapshot(self._engine, self._settings, self._options(None, as_of, timeout))

    # ----------------------------------------------------------------------------------------------- service

    def generate_tsne_plot(
        self,
        collection: str,
        record_ids: Iterable[str] | None = None,
        perplexity: float = 30,
        random_state: int = 42,
        outfile: str | os.PathLike[str] = "tsne.png",
        color_by: str | None = None,
        *,
        timeout: float | None = None,
    ) -> str:
        """Draw records as points in the plane by t-SNE, all read at one snapshot; returns the path of the picture.

        Args:
            collection: Its name.
            record_ids: Which records; None for all (a seeded sample of them when there are too many to draw).
            perplexity: How many neighbours count as near.
            random_state: Same records and same number, same picture.
            outfile: Where to write the PNG.
            color_by: A metadata field whose values colour the points.
            timeout: Seconds for each page that is read.

        Raises:
            TsnePlotGeneratingFailureException: It could not be drawn.
            RecordNotFoundError: One of ``record_ids`` does not exist.
        """
        with self.snapshot(timeout=timeout) as view:
            if record_ids is not None:
                ids = list(record_ids)
                packets = existing(view.get_many(collection, ids, timeout=timeout), ids, collection)
            else:
                drawn = drawn_positions(view.count(collection, timeout=timeout), random_state)
                scan = view.scan(collection, include=("vector", "metadata"), timeout=timeout)
                packets = [packet for i, packet in enumerate(scan) if drawn is None or i in drawn]
        return write_plot(packets, collection, perplexity, random_state, outfile, color_by)

    def backup(self, path: str | os.PathLike[str]) -> dict[str, Any]:
        """Write a consistent, verified copy of the database into a new or empty directory; says what it holds."""
        return self._backup_engine("backup").backup(path)

    def restore(self, path: str | os.PathLike[str]) -> dict[str, Any]:
        """Replace the whole database by a backup, after verifying it; says what it holds."""
        return self._backup_engine("restore").restore(path)

    def checkpoint(self, *, compact: bool = False, index: bool = False, timeout: float | None = None) -> None:
        """Make a checkpoint on every shard.

        Args:
            compact: Reclaim the rows of replaced and deleted records first.
            index: Bring all rows into the graph first.
            timeout: Seconds it may take.
        """
        self._run(self._operations.checkpoint(compact, index, timeout))

    def cluster_info(self, *, timeout: float | None = None) -> dict[str, Any]:
        """Say where the database is, whether every shard answers (``ready``), and each shard's figures."""
        return self._run(self._operations.cluster_info(self._engine.describe(), timeout))

    def close(self) -> None:
        """Let go of the database; closing twice does nothing. Later calls are refused at once."""
        self._run = refuse_closed
        self._engine.close()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __enter__(self) -> Self:
        return self

    def _options(
        self,
        consistency: Consistency | None = None,
        as_of: int | datetime | None = None,
        timeout: float | None = None,
        partial: bool = False,
    ) -> ReadOptions:
        return self._operations.options(consistency, as_of, timeout, partial)

    def _backup_engine(self, what: str) -> BackupEngine:
        return backup_engine(self._engine, what)
