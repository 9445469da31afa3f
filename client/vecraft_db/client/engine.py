"""What a client needs of the place its database is in: a router that makes flows, and somebody to run them.

An :class:`Engine` is made by the module of its kind; :mod:`vecraft_db.client.opening` picks it.
"""

from __future__ import annotations

import os
from collections.abc import Generator, Sequence
from typing import Any, Protocol, TypeVar, runtime_checkable

from vecraft_data_model.errors import InvalidDataException, ShardUnavailableError
from vecraft_data_model.filters import DocumentFilter, Filter
from vecraft_data_model.messages import (
    CatalogReply,
    CountReply,
    Float32Array,
    Mutation,
    Refused,
    RowsReply,
    StatusReply,
)
from vecraft_data_model.packets import CollectionInfo
from vecraft_data_model.scan_options import DEFAULT_PAGE, ScanOptions
from vecraft_data_model.search_options import SearchOptions
from vecraft_router.options import DEFAULT_OPTIONS, ReadOptions
from vecraft_router.results import Commit, Found, Pin
from vecraft_router.session import SessionTokens

T = TypeVar("T")
Flow = Generator[Any, Any, T]
"""An operation as straight code; what it yields is between its router and its runner."""


class FlowRouter(Protocol):
    """The flows that operations are made of: :class:`vecraft_router.router.Router`, or its like over HTTP."""

    def deadline(self, timeout: float | None = None) -> float:
        """Return the moment that lies ``timeout`` seconds ahead (None: the configured default)."""
        ...

    def moment(self) -> float:
        """Return the present, in the seconds of deadlines."""
        ...

    def new_txn_id(self) -> str:
        """Return a fresh transaction id."""
        ...

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
        """Commit mutations, all or none."""
        ...

    def delete_where(
        self,
        collection: str,
        *,
        where: Filter | None = None,
        where_document: DocumentFilter | None = None,
        txn_id: str | None = None,
        options: ReadOptions = DEFAULT_OPTIONS,
    ) -> Flow[Commit]:
        """Delete what matches, atomically."""
        ...

    def get(
        self,
        collection: str,
        ids: Sequence[str],
        options: ReadOptions = DEFAULT_OPTIONS,
        *,
        with_vectors: bool = True,
    ) -> Flow[RowsReply]:
        """Return the records of those ids, the missing left out."""
        ...

    def search(
        self,
        collection: str,
        queries: Float32Array,
        wanted: SearchOptions,
        options: ReadOptions = DEFAULT_OPTIONS,
    ) -> Flow[Found]:
        """Return the nearest records to each query."""
        ...

    def scan_page(
        self, collection: str, wanted: ScanOptions = DEFAULT_PAGE, options: ReadOptions = DEFAULT_OPTIONS
    ) -> Flow[RowsReply]:
        """Return one page of records in id order."""
        ...

    def count(
        self,
        collection: str,
        *,
        where: Filter | None = None,
        where_document: DocumentFilter | None = None,
        options: ReadOptions = DEFAULT_OPTIONS,
    ) -> Flow[CountReply]:
        """Return the exact number of records that match."""
        ...

    def list_collections(self, options: ReadOptions = DEFAULT_OPTIONS) -> Flow[CatalogReply]:
        """Return the schemas of all collections, and the aliases."""
        ...

    def describe(self, collection: str, options: ReadOptions = DEFAULT_OPTIONS) -> Flow[CollectionInfo]:
        """Return a collection's figures."""
        ...

    def choose_snapshot(self, options: ReadOptions = DEFAULT_OPTIONS) -> Flow[int]:
        """Return a timestamp to read the whole database at."""
        ...

    def pin(
        self,
        snapshot: int | None = None,
        *,
        ttl_ms: int,
        pin_id: str | None = None,
        options: ReadOptions = DEFAULT_OPTIONS,
    ) -> Flow[Pin]:
        """Keep the history of a snapshot for ``ttl_ms``."""
        ...

    def release(self, pin_id: str, *, deadline: float | None = None) -> Flow[None]:
        """Let go of a pin."""
        ...

    def set_ef(self, collection: str, ef: int | None, *, deadline: float | None = None) -> Flow[None]:
        """Set a collection's search depth."""
        ...

    def checkpoint(self, compact: bool = False, index: bool = False, *, deadline: float | None = None) -> Flow[None]:
        """Make a checkpoint on every shard."""
        ...

    def status(self, *, deadline: float | None = None) -> Flow[dict[int, StatusReply | Refused]]:
        """Ask every shard for its figures."""
        ...


class Runner(Protocol):
    """Carries flows out."""

    def __call__(self, flow: Flow[T]) -> T:
        """Run a flow to its end, and return its result or raise its error."""
        ...


class Engine(Protocol):
    """A place where a database is. Safe to use from several threads.

    Attributes:
        router: Makes the flows.
        tokens: Seals and opens scan cursors.
    """

    router: Any  # a FlowRouter; engines differ in what their router can do beyond that
    tokens: SessionTokens

    def run(self, flow: Flow[T]) -> T:
        """Run a flow of this engine's router to its end, and return its result or raise its error."""
        ...

    async def run_async(self, flow: Flow[T]) -> T:
        """The same, without blocking the event loop."""
        ...

    def describe(self) -> dict[str, Any]:
        """Say where the database is: ``{"kind": …, …}``."""
        ...

    def close(self) -> None:
        """Let go of everything; closing twice does nothing."""
        ...


@runtime_checkable
class BackupEngine(Protocol):
    """An engine that can copy its database as a whole."""

    def backup(self, path: str | os.PathLike[str]) -> dict[str, Any]:
        """Write a consistent, verified copy into an empty directory; says what was written."""
        ...

    def restore(self, path: str | os.PathLike[str]) -> dict[str, Any]:
        """Replace the whole database by a backup."""
        ...


def refuse_closed(flow: Flow[T]) -> T:
    """The runner of a client that was closed.

    Raises:
        ShardUnavailableError: Always.
    """
    flow.close()
    raise ShardUnavailableError("this client is closed")


def backup_engine(engine: Engine, what: str) -> BackupEngine:
    """Return ``engine``, if it can make backups.

    Raises:
        InvalidDataException: It cannot.
    """
    if not isinstance(engine, BackupEngine):
        raise InvalidDataException(f"{what}() works on an embedded database (root=); this one is elsewhere")
    return engine
