"""The router: many shards seen as one database.

Every public method that returns a ``Flow`` is one operation, to be run by a runner::

    router = Router(cluster_map, clock, random.Random(), RouterConfig())
    runner = SyncRunner(router, ports)
    found = runner.run(router.search("images", queries, SearchOptions(k=10)))

The methods only hand over to :mod:`vecraft_router.commit`, :mod:`vecraft_router.reads` and
:mod:`vecraft_router.service`, which hold the flows. Arguments are taken as checked and converted (by
``vecraft_db.client.operations`` or the gateway): vectors are C-contiguous float32, filters are parsed.

What a router knows may be lost at any moment: truth is in the shards' logs. It is safe to use from several threads.
"""

from __future__ import annotations

import random
from collections.abc import Sequence

from vecraft_data_model.filters import DocumentFilter, Filter
from vecraft_data_model.messages import (
    Aborted,
    CatalogReply,
    Committed,
    CountReply,
    Float32Array,
    Mutation,
    Refused,
    RowsReply,
    StatusReply,
)
from vecraft_data_model.packets import CollectionInfo
from vecraft_data_model.placement import ClusterMap
from vecraft_data_model.ports import Clock
from vecraft_data_model.scan_options import DEFAULT_PAGE, ScanOptions
from vecraft_data_model.search_options import SearchOptions
from vecraft_router.commit import Committer
from vecraft_router.config import RouterConfig
from vecraft_router.effects import Flow
from vecraft_router.options import DEFAULT_OPTIONS, ReadOptions
from vecraft_router.reads import Reader
from vecraft_router.results import Commit, Found, Pin
from vecraft_router.service import Service
from vecraft_router.state import RouterState
from vecraft_router.transactions import InteractiveTransaction


class Router:
    """Flows over the shards of one cluster.

    Args:
        cluster_map: Which shard owns which slot; replaced by newer ones as they turn up.
        clock: Physical time for timestamps, monotonic time for deadlines.
        rng: Source of jitter, transaction ids and pin ids.
        config: Settings.
    """

    def __init__(
        self, cluster_map: ClusterMap, clock: Clock, rng: random.Random, config: RouterConfig | None = None
    ) -> None:
        self.state = RouterState(cluster_map, clock, rng, config or RouterConfig())
        self._commits = Committer(self.state)
        self._reads = Reader(self.state)
        self._service = Service(self.state, self._reads, self._commits)

    def deadline(self, timeout: float | None = None) -> float:
        """Return the deadline that lies ``timeout`` seconds ahead (None: the configured default).

        Raises:
            InvalidDataException: ``timeout`` is not a number above 0 and at most a week.
        """
        return self.state.deadline(timeout)

    def moment(self) -> float:
        """Return the present, in the ``Clock.monotonic`` seconds of deadlines."""
        return self.state.clock.monotonic()

    def new_txn_id(self) -> str:
        """Return a fresh transaction id (UUIDv7)."""
        return self.state.new_txn_id()

    # ------------------------------------------------------------------------------------------------ writes

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
        """Commit mutations of any collections and shards, all or none.

        Args:
            mutations: In order. A ``CreateCollection`` may leave ``collection_id`` empty: it is then made from the
                transaction id, so that a retry makes the same collection.
            txn_id: Chosen by the client; the same id with the same mutations is carried out once, however often it
                is sent. None: a fresh one.
            snapshot: What the transaction read at; None: blind writes, which meet no conflicts (locks are waited out).
            reads: ``(collection, record_id)`` to validate as unchanged since ``snapshot``.
            want_preimages: Return the records that were replaced or deleted.
            deadline: Seconds of ``Clock.monotonic``.

        Raises:
            WriteConflictException: Aborted, durably: somebody else wrote, or is writing, the same records.
            ReadWriteConflictException: Aborted, durably: a record in ``reads`` has changed.
            PreconditionFailedError, CollectionNotExistedException, …: Refused by a shard; nothing was written.
            TimeoutException, ShardUnavailableError: The deadline passed. ``details["outcome"]`` says ``"unknown"`` or
                ``"aborted"``; if unknown, send the same again with ``details["txn_id"]``.
        """
        return self._commits.commit(
            mutations,
            txn_id=txn_id,
            snapshot=snapshot,
            reads=reads,
            want_preimages=want_preimages,
            deadline=deadline,
        )

    def delete_where(
        self,
        collection: str,
        *,
        where: Filter | None = None,
        where_document: DocumentFilter | None = None,
        txn_id: str | None = None,
        options: ReadOptions = DEFAULT_OPTIONS,
    ) -> Flow[Commit]:
        """Delete what matches, atomically: exactly the records that match at one snapshot, and at the commit, too.

        Records that come to match in between stay (PostgreSQL's READ COMMITTED does the same); the count is of what was
        deleted. Meets no conflicts: locks are waited out. Raises as :meth:`commit`, and ``WriteConflictException`` if
        the collection's name was given another meaning meanwhile and ``txn_id`` does not allow to look again.
        """
        return self._service.delete_where(
            collection, where=where, where_document=where_document, txn_id=txn_id, options=options
        )

    def resolve(
        self, txn_id: str, *, participants: Sequence[int] | None = None, deadline: float | None = None
    ) -> Flow[Committed | Aborted]:
        """Find out, for good, what became of a transaction; if nothing was decided yet it is aborted.

        Args:
            txn_id: The id of the attempt (``details["attempt_id"]`` of an error that said "unknown").
            participants: Its shards, if known; otherwise every shard is asked.
            deadline: Seconds of ``Clock.monotonic``.
        """
        return self._commits.resolve(txn_id, participants=participants, deadline=deadline)

    def transaction(
        self,
        *,
        isolation: str = "snapshot",
        txn_id: str | None = None,
        options: ReadOptions = DEFAULT_OPTIONS,
    ) -> InteractiveTransaction:
        """Return a transaction that reads at one snapshot, sees its own writes and commits them at once.

        Args:
            isolation: ``"snapshot"`` or ``"serializable"`` (records read by id are validated at commit).
            txn_id: As for :meth:`commit`.
            options: How its snapshot is chosen, at first use.
        """
        return InteractiveTransaction(self, isolation=isolation, txn_id=txn_id, options=options)

    # ------------------------------------------------------------------------------------------------- reads

    def get(
        self,
        collection: str,
        ids: Sequence[str],
        options: ReadOptions = DEFAULT_OPTIONS,
        *,
        with_vectors: bool = True,
    ) -> Flow[RowsReply]:
        """Return the records of those ids, in that order, the missing left out."""
        return self._reads.get(collection, ids, options, with_vectors=with_vectors)

    def search(
        self,
        collection: str,
        queries: Float32Array,
        wanted: SearchOptions,
        options: ReadOptions = DEFAULT_OPTIONS,
    ) -> Flow[Found]:
        """Return the nearest records to each row of ``queries`` (q, dim) float32, merged over all shards."""
        return self._reads.search(collection, queries, wanted, options)

    def scan_page(
        self, collection: str, wanted: ScanOptions = DEFAULT_PAGE, options: ReadOptions = DEFAULT_OPTIONS
    ) -> Flow[RowsReply]:
        """Return one page of records in id order; ``more`` says whether others follow.

        For the next page, ask for what is ``after`` the last id, with the reply's ``snapshot`` as ``options.as_of``.
        """
        return self._reads.scan_page(collection, wanted, options)

    def count(
        self,
        collection: str,
        *,
        where: Filter | None = None,
        where_document: DocumentFilter | None = None,
        options: ReadOptions = DEFAULT_OPTIONS,
    ) -> Flow[CountReply]:
        """Return the exact number of records that match."""
        return self._reads.count(collection, where=where, where_document=where_document, options=options)

    def list_collections(self, options: ReadOptions = DEFAULT_OPTIONS) -> Flow[CatalogReply]:
        """Return the schemas of all collections, and the aliases (alias → name)."""
        return self._reads.list_collections(options)

    def describe(self, collection: str, options: ReadOptions = DEFAULT_OPTIONS) -> Flow[CollectionInfo]:
        """Return a collection's figures, added up over its shards."""
        return self._reads.describe(collection, options)

    def choose_snapshot(self, options: ReadOptions = DEFAULT_OPTIONS) -> Flow[int]:
        """Return a timestamp to read the whole database at, as fresh as ``options`` asks."""
        return self._reads.choose_snapshot(options)

    # ----------------------------------------------------------------------------------------------- service

    def pin(
        self,
        snapshot: int | None = None,
        *,
        ttl_ms: int,
        pin_id: str | None = None,
        options: ReadOptions = DEFAULT_OPTIONS,
    ) -> Flow[Pin]:
        """Keep the history of a snapshot (None: one chosen by ``options``) for ``ttl_ms``; ask again to renew.

        Raises:
            SnapshotTooOldError: Some of that history may be gone already; nothing stays pinned.
        """
        return self._service.pin(snapshot, ttl_ms=ttl_ms, pin_id=pin_id, options=options)

    def release(self, pin_id: str, *, deadline: float | None = None) -> Flow[None]:
        """Let go of a pin; unknown pins are passed over."""
        return self._service.release(pin_id, deadline=deadline)

    def set_ef(self, collection: str, ef: int | None, *, deadline: float | None = None) -> Flow[None]:
        """Set a collection's search depth on every shard, until they restart; None: back to the default."""
        return self._service.set_ef(collection, ef, deadline=deadline)

    def checkpoint(self, compact: bool = False, index: bool = False, *, deadline: float | None = None) -> Flow[None]:
        """Make a checkpoint on every shard; ``compact`` reclaims dead rows first, ``index`` indexes the tail first."""
        return self._service.checkpoint(compact, index, deadline=deadline)

    def status(self, *, deadline: float | None = None) -> Flow[dict[int, StatusReply | Refused]]:
        """Ask every shard for its figures, once: what does not answer stands there as ``Refused``."""
        return self._service.status(deadline=deadline)
