"""``AsyncVecraftClient``: the methods of :class:`~vecraft_db.client.vecraft_client.VecraftClient`, awaitable.

The same flows, run without blocking the event loop: on a Ray cluster and behind a gateway by asynchronous calls, for an
embedded database on threads of its own. Arguments, results and errors are those of the synchronous client and are
described there; ``scan`` is an asynchronous iterator, ``transaction`` and ``snapshot`` are asynchronous context
managers.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Awaitable, Callable, Iterable, Sequence
from contextlib import AbstractAsyncContextManager
from datetime import datetime
from types import TracebackType
from typing import Any, Self, TypeVar

from vecraft_data_model.errors import ReadWriteConflictException, WriteConflictException
from vecraft_data_model.packets import CollectionInfo, CommitResult, DataPacket, QueryPacket, SearchResult
from vecraft_data_model.schema import CollectionSchema
from vecraft_data_model.search_options import DEFAULT_INCLUDE, INCLUDABLE, SearchOptions
from vecraft_data_model.validation import check_integer, check_timeout, check_txn_id
from vecraft_db.client.async_views import AsyncSnapshot, AsyncTransaction
from vecraft_db.client.engine import (
    BackupEngine,
    Engine,
    Flow,
    backup_engine,
    refuse_closed,
)
from vecraft_db.client.opening import open_engine, settings_for_client
from vecraft_db.client.operations import Operations, backoff_s, make_put
from vecraft_db.client.plots import drawn_positions, existing, write_plot
from vecraft_db.client.scans import AsyncScan, ScanPager
from vecraft_db.config import Settings
from vecraft_router.options import Consistency, ReadOptions

T = TypeVar("T")


class AsyncVecraftClient(AbstractAsyncContextManager["AsyncVecraftClient"]):
    """A database: in this process, on a Ray cluster, or behind a REST gateway.

    Opening an embedded database or starting a cluster blocks for as long as it takes; :meth:`open` does it on a thread.

    Args: as for :class:`~vecraft_db.client.vecraft_client.VecraftClient`.
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
        self._engine: Engine = open_engine(self._settings)
        self._operations = Operations(self._engine.router, self._settings)
        self._closed = False

    @classmethod
    async def open(cls, *arguments: Any, **named: Any) -> Self:
        """Make a client without blocking the event loop; arguments as for the class."""
        return await asyncio.to_thread(cls, *arguments, **named)

    @property
    def engine(self) -> Engine:
        """The place the database is in: for gateways and tools that run flows of their own."""
        return self._engine

    @property
    def settings(self) -> Settings:
        """What this client goes by."""
        return self._settings

    # ----------------------------------------------------------------------------------------------- catalog

    async def create_collection(
        self,
        schema: CollectionSchema,
        if_not_exists: bool = False,
        *,
        txn_id: str | None = None,
        timeout: float | None = None,
    ) -> CollectionSchema:
        """As ``VecraftClient.create_collection``."""
        return await self._run(self._operations.create_collection(schema, if_not_exists, txn_id, timeout))

    async def drop_collection(self, name: str, *, txn_id: str | None = None, timeout: float | None = None) -> None:
        """As ``VecraftClient.drop_collection``."""
        await self._run(self._operations.drop_collection(name, txn_id, timeout))

    async def alter_collection(
        self, name: str, *, txn_id: str | None = None, timeout: float | None = None, **changes: Any
    ) -> None:
        """As ``VecraftClient.alter_collection``."""
        await self._run(self._operations.alter_collection(name, changes, txn_id, timeout))

    async def set_alias(
        self, alias: str, name: str, *, txn_id: str | None = None, timeout: float | None = None
    ) -> None:
        """As ``VecraftClient.set_alias``."""
        await self._run(self._operations.set_alias(alias, name, txn_id, timeout))

    async def drop_alias(self, alias: str, *, txn_id: str | None = None, timeout: float | None = None) -> None:
        """As ``VecraftClient.drop_alias``."""
        await self._run(self._operations.drop_alias(alias, txn_id, timeout))

    async def list_collections(
        self,
        *,
        consistency: Consistency | None = None,
        as_of: int | datetime | None = None,
        timeout: float | None = None,
    ) -> list[CollectionSchema]:
        """As ``VecraftClient.list_collections``."""
        return await self._run(self._operations.list_collections(self._options(consistency, as_of, timeout)))

    async def list_aliases(
        self,
        *,
        consistency: Consistency | None = None,
        as_of: int | datetime | None = None,
        timeout: float | None = None,
    ) -> dict[str, str]:
        """As ``VecraftClient.list_aliases``."""
        return await self._run(self._operations.list_aliases(self._options(consistency, as_of, timeout)))

    async def describe_collection(
        self,
        name: str,
        *,
        consistency: Consistency | None = None,
        as_of: int | datetime | None = None,
        timeout: float | None = None,
    ) -> CollectionInfo:
        """As ``VecraftClient.describe_collection``."""
        return await self._run(self._operations.describe_collection(name, self._options(consistency, as_of, timeout)))

    async def set_ef(self, collection: str, ef: int | None, *, timeout: float | None = None) -> None:
        """As ``VecraftClient.set_ef``."""
        await self._run(self._operations.set_ef(collection, ef, timeout))

    # ------------------------------------------------------------------------------------------------ writes

    async def insert(
        self,
        collection: str,
        packet: DataPacket,
        *,
        expect: Any = None,
        txn_id: str | None = None,
        timeout: float | None = None,
    ) -> DataPacket | None:
        """As ``VecraftClient.insert``."""
        return await self._run(self._operations.insert(collection, packet, expect, txn_id, timeout))

    async def upsert(
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
        """As ``VecraftClient.upsert``."""
        put = make_put(collection, packets, ids, vectors, metadatas, documents, expect)
        return await self._run(self._operations.upsert(put, txn_id, timeout))

    async def delete(
        self,
        collection: str,
        record_id: str,
        *,
        expect: Any = None,
        txn_id: str | None = None,
        timeout: float | None = None,
    ) -> DataPacket | None:
        """As ``VecraftClient.delete``."""
        return await self._run(self._operations.delete(collection, record_id, expect, txn_id, timeout))

    async def delete_many(
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
        """As ``VecraftClient.delete_many``."""
        options = ReadOptions(deadline=self._engine.router.deadline(check_timeout(timeout)))
        return await self._run(
            self._operations.delete_many(collection, ids, where, where_document, expect, txn_id, options)
        )

    # ------------------------------------------------------------------------------------------------- reads

    async def get(
        self,
        collection: str,
        record_id: str,
        *,
        consistency: Consistency | None = None,
        as_of: int | datetime | None = None,
        timeout: float | None = None,
    ) -> DataPacket:
        """As ``VecraftClient.get``."""
        return await self._run(self._operations.get(collection, record_id, self._options(consistency, as_of, timeout)))

    async def get_many(
        self,
        collection: str,
        ids: Iterable[str],
        *,
        consistency: Consistency | None = None,
        as_of: int | datetime | None = None,
        timeout: float | None = None,
    ) -> list[DataPacket | None]:
        """As ``VecraftClient.get_many``."""
        return await self._run(self._operations.get_many(collection, ids, self._options(consistency, as_of, timeout)))

    async def search(
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
        """As ``VecraftClient.search``."""
        options = self._options(consistency, as_of, timeout, partial)
        return await self._run(self._operations.search(collection, query, options, explain))

    async def search_many(
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
        """As ``VecraftClient.search_many``."""
        wanted = SearchOptions.checked(
            k, where, where_document, ef, exact, max_distance, include, group_by=group_by, group_size=group_size
        )
        options = self._options(consistency, as_of, timeout, partial)
        return await self._run(self._operations.search_many(collection, queries, wanted, options))

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
    ) -> AsyncScan:
        """As ``VecraftClient.scan``: ``async for packet in client.scan(…)``."""
        pager = ScanPager(
            self._engine.router,
            self._engine.tokens,
            collection,
            where,
            where_document,
            include,
            limit,
            cursor,
            self._operations.options_of_scan(cursor, consistency, as_of),
            timeout=timeout,
        )
        return AsyncScan(self._engine, pager)

    async def count(
        self,
        collection: str,
        where: Any = None,
        where_document: Any = None,
        *,
        consistency: Consistency | None = None,
        as_of: int | datetime | None = None,
        timeout: float | None = None,
    ) -> int:
        """As ``VecraftClient.count``."""
        options = self._options(consistency, as_of, timeout)
        return await self._run(self._operations.count(collection, where, where_document, options))

    # ------------------------------------------------------------------------------------------------- views

    def transaction(
        self, isolation: str = "snapshot", txn_id: str | None = None, *, timeout: float | None = None
    ) -> AsyncTransaction:
        """As ``VecraftClient.transaction``: ``async with client.transaction() as tx``."""
        check_timeout(timeout)
        interactive = self._engine.router.transaction(
            isolation=isolation,
            txn_id=None if txn_id is None else check_txn_id(txn_id),
            options=self._operations.default_options,
        )
        return AsyncTransaction(self._engine, interactive, self._settings, timeout)

    async def run_transaction(
        self,
        body: Callable[[AsyncTransaction], Awaitable[T]],
        retries: int = 10,
        *,
        isolation: str = "snapshot",
        timeout: float | None = None,
    ) -> T:
        """As ``VecraftClient.run_transaction``; ``body`` is awaited."""
        check_integer(retries, "retries", 0, 1_000_000)
        attempt = 0
        while True:
            try:
                async with self.transaction(isolation, timeout=timeout) as transaction:
                    return await body(transaction)
            except (WriteConflictException, ReadWriteConflictException):
                if attempt >= retries:
                    raise
            attempt += 1
            await asyncio.sleep(backoff_s(attempt))

    def snapshot(self, as_of: int | datetime | None = None, *, timeout: float | None = None) -> AsyncSnapshot:
        """As ``VecraftClient.snapshot``: ``async with client.snapshot() as view``."""
        return AsyncSnapshot(self._engine, self._settings, self._options(None, as_of, timeout))

    # ----------------------------------------------------------------------------------------------- service

    async def generate_tsne_plot(
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
        """As ``VecraftClient.generate_tsne_plot``; drawn on a thread."""
        packets: list[DataPacket] = []
        async with self.snapshot(timeout=timeout) as view:
            if record_ids is not None:
                ids = list(record_ids)
                packets = existing(await view.get_many(collection, ids, timeout=timeout), ids, collection)
            else:
                drawn = drawn_positions(await view.count(collection, timeout=timeout), random_state)
                position = 0
                async for packet in view.scan(collection, include=("vector", "metadata"), timeout=timeout):
                    if drawn is None or position in drawn:
                        packets.append(packet)
                    position += 1
        return await asyncio.to_thread(
            write_plot, packets, collection, perplexity, random_state, outfile, color_by
        )

    async def backup(self, path: str | os.PathLike[str]) -> dict[str, Any]:
        """As ``VecraftClient.backup``."""
        return await asyncio.to_thread(self._backup_engine("backup").backup, path)

    async def restore(self, path: str | os.PathLike[str]) -> dict[str, Any]:
        """As ``VecraftClient.restore``."""
        return await asyncio.to_thread(self._backup_engine("restore").restore, path)

    async def checkpoint(self, *, compact: bool = False, index: bool = False, timeout: float | None = None) -> None:
        """As ``VecraftClient.checkpoint``."""
        await self._run(self._operations.checkpoint(compact, index, timeout))

    async def cluster_info(self, *, timeout: float | None = None) -> dict[str, Any]:
        """As ``VecraftClient.cluster_info``."""
        about = await asyncio.to_thread(self._engine.describe)
        return await self._run(self._operations.cluster_info(about, timeout))

    async def close(self) -> None:
        """As ``VecraftClient.close``."""
        self._closed = True
        await asyncio.to_thread(self._engine.close)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def _run(self, flow: Flow[T]) -> T:
        if self._closed:
            refuse_closed(flow)
        return await self._engine.run_async(flow)

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
