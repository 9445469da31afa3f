"""What each method of a client means: arguments checked and converted once, then one flow of the router.

The same flows run under every client, so this module is the one place where a method's meaning stands. It does no input
or output and starts nothing: an operation is a generator that some engine's runner carries out.

Arguments are refused here, before anything is sent, when that needs no knowledge of the collection; what does (its
dimension, whether it exists) the shard refuses, before anything is written. Names of collections are checked here too:
they are data, and never become paths.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Sequence
from datetime import datetime
from typing import Any

import msgspec

from vecraft_data_model.convert import packets_of_rows, put_of_columns, put_of_packets, results_of_hits
from vecraft_data_model.errors import (
    CollectionAlreadyExistedException,
    InvalidDataException,
    RecordNotFoundError,
)
from vecraft_data_model.filters import DocumentFilter, Filter, parse_where, parse_where_document
from vecraft_data_model.messages import (
    AlterCollection,
    CreateCollection,
    Delete,
    DropAlias,
    DropCollection,
    Put,
    Refused,
    SetAlias,
)
from vecraft_data_model.packets import CollectionInfo, CommitResult, DataPacket, QueryPacket, SearchResult
from vecraft_data_model.schema import CollectionSchema, check_same_shape, validate_name
from vecraft_data_model.search_options import QUERIES_MAX, SearchOptions
from vecraft_data_model.validation import (
    as_matrix,
    check_ef,
    check_expect,
    check_flag,
    check_record_ids,
    check_timeout,
    check_txn_id,
    shown,
)
from vecraft_db.client.engine import Flow, FlowRouter
from vecraft_db.config import Settings
from vecraft_router.options import Consistency, ReadOptions

_NAMES_KEPT = 1000


class SearchAnswer(list[SearchResult]):
    """The hits of a search that was asked how it went, or whether all shards were there.

    Attributes:
        missing: Shards whose records are not among the hits (only with ``partial=True``).
        explain: Shard → its plan, estimates and counts (only with ``explain=True``).
        snapshot: The timestamp that was read at.
    """

    missing: tuple[int, ...]
    explain: dict[int, dict[str, Any]] | None
    snapshot: int


class Operations:
    """Flows on packets, over a router's flows on messages.

    Args:
        router: Makes the flows.
        settings: Defaults: consistency, index parameters of new collections.
    """

    def __init__(self, router: FlowRouter, settings: Settings) -> None:
        self.router = router
        self._settings = settings
        self.default_options = ReadOptions(consistency=settings.consistency)
        self._names: set[str] = set()  # that were found to be names, so that a search need not check again

    # ----------------------------------------------------------------------------------------------- catalog

    def create_collection(
        self, schema: CollectionSchema, if_not_exists: bool, txn_id: str | None, timeout: float | None
    ) -> Flow[CollectionSchema]:
        """Create on all shards or on none."""
        if not isinstance(schema, CollectionSchema):
            raise InvalidDataException(f"create_collection takes a CollectionSchema, got {shown(schema)}")
        check_flag(if_not_exists, "if_not_exists")
        wanted = self._with_configured_index(schema)
        deadline = self.router.deadline(check_timeout(timeout))
        try:
            yield from self.router.commit([CreateCollection(wanted, "")], txn_id=_txn(txn_id), deadline=deadline)
        except CollectionAlreadyExistedException:
            if not if_not_exists:
                raise
            info = yield from self.router.describe(schema.name, ReadOptions("strong", deadline=deadline))
            check_same_shape(schema, info.schema)
            return info.schema
        return wanted

    def drop_collection(self, name: str, txn_id: str | None, timeout: float | None) -> Flow[None]:
        """Drop on all shards or on none."""
        yield from self._change_catalog(DropCollection(validate_name(name)), txn_id, timeout)

    def alter_collection(
        self, name: str, changes: dict[str, Any], txn_id: str | None, timeout: float | None
    ) -> Flow[None]:
        """Change settings that may change; the shard checks their values."""
        if not changes:
            raise InvalidDataException("alter_collection needs something to change: target_recall= or ef=")
        yield from self._change_catalog(AlterCollection(validate_name(name), changes), txn_id, timeout)

    def set_alias(self, alias: str, name: str, txn_id: str | None, timeout: float | None) -> Flow[None]:
        """Point an alias at a collection, on all shards at one moment."""
        yield from self._change_catalog(SetAlias(validate_name(alias), validate_name(name)), txn_id, timeout)

    def drop_alias(self, alias: str, txn_id: str | None, timeout: float | None) -> Flow[None]:
        """Remove an alias."""
        yield from self._change_catalog(DropAlias(validate_name(alias)), txn_id, timeout)

    def list_collections(self, options: ReadOptions) -> Flow[list[CollectionSchema]]:
        """All collections, by name."""
        reply = yield from self.router.list_collections(options)
        return sorted(reply.collections, key=lambda schema: schema.name)

    def list_aliases(self, options: ReadOptions) -> Flow[dict[str, str]]:
        """Alias → collection."""
        reply = yield from self.router.list_collections(options)
        return dict(sorted(reply.aliases.items()))

    def describe_collection(self, name: str, options: ReadOptions) -> Flow[CollectionInfo]:
        """Figures of a collection."""
        return (yield from self.router.describe(validate_name(name), options))

    def _change_catalog(
        self,
        mutation: DropCollection | AlterCollection | SetAlias | DropAlias,
        txn_id: str | None,
        timeout: float | None,
    ) -> Flow[None]:
        deadline = self.router.deadline(check_timeout(timeout))
        yield from self.router.commit([mutation], txn_id=_txn(txn_id), deadline=deadline)

    def _with_configured_index(self, schema: CollectionSchema) -> CollectionSchema:
        """Fill in M and EF_CONSTRUCTION from the settings where the schema has left them at their defaults."""
        changes: dict[str, int] = {}
        if self._settings.m is not None and _DEFAULTS["M"] == schema.M:
            changes["M"] = self._settings.m
        if self._settings.ef_construction is not None and schema.ef_construction == _DEFAULTS["ef_construction"]:
            changes["ef_construction"] = self._settings.ef_construction
        return msgspec.structs.replace(schema, **changes) if changes else schema

    # ------------------------------------------------------------------------------------------------ writes

    def insert(
        self, collection: str, packet: DataPacket, expect: Any, txn_id: str | None, timeout: float | None
    ) -> Flow[DataPacket | None]:
        """Insert or replace one record; the record it replaced, or None."""
        if not isinstance(packet, DataPacket):
            raise InvalidDataException(f"insert takes a DataPacket, got {shown(packet)}")
        put = put_of_packets(validate_name(collection), [packet], check_expect(expect))
        commit = yield from self.router.commit(
            [put], txn_id=_txn(txn_id), want_preimages=True, deadline=self._deadline(timeout)
        )
        return _only(packets_of_rows(commit.preimages)) if commit.preimages is not None else None

    def upsert(self, put: Put, txn_id: str | None, timeout: float | None) -> Flow[CommitResult]:
        """Insert or replace records, atomically."""
        commit = yield from self.router.commit([put], txn_id=_txn(txn_id), deadline=self._deadline(timeout))
        return commit.result

    def delete(
        self, collection: str, record_id: str, expect: Any, txn_id: str | None, timeout: float | None
    ) -> Flow[DataPacket | None]:
        """Delete one record; the record that was there, or None."""
        commit = yield from self.router.commit(
            [Delete(validate_name(collection), check_record_ids([record_id]), check_expect(expect))],
            txn_id=_txn(txn_id),
            want_preimages=True,
            deadline=self._deadline(timeout),
        )
        return _only(packets_of_rows(commit.preimages)) if commit.preimages is not None else None

    def delete_many(
        self,
        collection: str,
        ids: Iterable[str] | None,
        where: Any,
        where_document: Any,
        expect: Any,
        txn_id: str | None,
        options: ReadOptions,
    ) -> Flow[CommitResult]:
        """Delete by id or by filter, atomically."""
        name = validate_name(collection)
        if (ids is None) == (where is None and where_document is None):
            raise InvalidDataException("delete_many takes either ids= or a filter (where=, where_document=)")
        if ids is not None:
            delete = Delete(name, check_record_ids(ids), check_expect(expect))
            commit = yield from self.router.commit([delete], txn_id=_txn(txn_id), deadline=options.deadline)
        else:
            if expect is not None:
                raise InvalidDataException("expect= goes with ids=; a filter is a condition already")
            commit = yield from self.router.delete_where(
                name,
                where=parse_filter(where),
                where_document=parse_document_filter(where_document),
                txn_id=_txn(txn_id),
                options=options,
            )
        return commit.result

    # ------------------------------------------------------------------------------------------------- reads

    def get(self, collection: str, record_id: str, options: ReadOptions) -> Flow[DataPacket]:
        """One record, its checksum verified."""
        ids = check_record_ids([record_id])
        reply = yield from self.router.get(validate_name(collection), ids, options)
        packets = packets_of_rows(reply.rows)
        if not packets:
            raise RecordNotFoundError(
                f"no record {record_id!r} in collection {collection!r}", collection=collection, record_id=record_id
            )
        return packets[0]

    def get_many(self, collection: str, ids: Iterable[str], options: ReadOptions) -> Flow[list[DataPacket | None]]:
        """Records by id, in that order, None for the missing."""
        wanted = check_record_ids(ids, distinct=False)
        reply = yield from self.router.get(validate_name(collection), list(dict.fromkeys(wanted)), options)
        found = {packet.record_id: packet for packet in packets_of_rows(reply.rows)}
        return [found.get(record_id) for record_id in wanted]

    def search(
        self, collection: str, query: QueryPacket, options: ReadOptions, explain: bool = False
    ) -> Flow[list[SearchResult]]:
        """The k nearest records that match."""
        if not isinstance(query, QueryPacket):
            raise InvalidDataException(f"search takes a QueryPacket, got {shown(query)}")
        if explain is not False:
            check_flag(explain, "explain")
        name = collection if type(collection) is str and collection in self._names else self._checked_name(collection)
        found = yield from self.router.search(name, query.queries(), query.options(explain), options)
        results = results_of_hits(found.hits[0], query.include)
        if options.partial or explain:
            answer = SearchAnswer(results)
            answer.missing, answer.explain, answer.snapshot = found.missing, found.explain, found.snapshot
            return answer
        return results

    def search_many(
        self, collection: str, queries: Any, wanted: SearchOptions, options: ReadOptions
    ) -> Flow[list[list[SearchResult]]]:
        """The k nearest to each of several queries, all at one snapshot."""
        matrix = as_matrix(queries, what="queries")
        if len(matrix) > QUERIES_MAX:
            raise InvalidDataException(f"at most {QUERIES_MAX} queries are accepted at once, got {len(matrix)}")
        if not len(matrix):
            yield from self.router.describe(validate_name(collection), options)
            return []
        found = yield from self.router.search(validate_name(collection), matrix, wanted, options)
        return [results_of_hits(hits, wanted.include) for hits in found.hits]

    def count(self, collection: str, where: Any, where_document: Any, options: ReadOptions) -> Flow[int]:
        """How many records match, exactly."""
        reply = yield from self.router.count(
            validate_name(collection),
            where=parse_filter(where),
            where_document=parse_document_filter(where_document),
            options=options,
        )
        return reply.count

    # ----------------------------------------------------------------------------------------------- service

    def set_ef(self, collection: str, ef: int | None, timeout: float | None) -> Flow[None]:
        """Set a collection's search depth until its shards restart."""
        yield from self.router.set_ef(validate_name(collection), check_ef(ef), deadline=self._deadline(timeout))

    def checkpoint(self, compact: bool, index: bool, timeout: float | None) -> Flow[None]:
        """Make a checkpoint on every shard."""
        yield from self.router.checkpoint(
            check_flag(compact, "compact"), check_flag(index, "index"), deadline=self._deadline(timeout)
        )

    def cluster_info(self, about: dict[str, Any], timeout: float | None) -> Flow[dict[str, Any]]:
        """Where the database is and how each shard does."""
        replies = yield from self.router.status(deadline=self._deadline(timeout))
        shards: list[dict[str, Any]] = []
        placed = {entry["shard"]: entry for entry in about.get("shards", ())}
        for shard, reply in sorted(replies.items()):
            where = placed.get(shard, {"shard": shard})
            if isinstance(reply, Refused):
                shards.append(where | {"ready": False, "error": reply.error.to_dict(), "collections": {}})
            else:
                shards.append(where | {"ready": True} | msgspec.to_builtins(reply))
        return {**about, "ready": all(shard["ready"] for shard in shards), "shards": shards}

    # ----------------------------------------------------------------------------------------------- options

    def options(
        self,
        consistency: Consistency | None = None,
        as_of: int | datetime | None = None,
        timeout: float | None = None,
        partial: bool = False,
    ) -> ReadOptions:
        """Return read options; what is not given is as configured."""
        if consistency is None and as_of is None and timeout is None and partial is False:
            return self.default_options
        if consistency is not None and as_of is not None:
            raise InvalidDataException("give consistency= or as_of=, not both: as_of= names the moment itself")
        return ReadOptions(
            consistency=self._settings.consistency if consistency is None else consistency,
            as_of=as_of,
            deadline=None if timeout is None else self._deadline(timeout),
            partial=check_flag(partial, "partial"),
        )

    def options_of_scan(
        self, cursor: str | None, consistency: Consistency | None, as_of: int | datetime | None
    ) -> ReadOptions:
        """As :meth:`options`. A cursor brings its snapshot, so whatever is configured is not asked for beside it.

        Raises:
            InvalidDataException: A cursor, and another moment or a level beside it.
        """
        if cursor is not None and not (consistency is None and as_of is None):
            other = "as_of=" if consistency is None else "consistency="
            raise InvalidDataException(f"give cursor= or {other}, not both: a cursor goes on at its own snapshot")
        return self.options(consistency, as_of)

    def _checked_name(self, collection: str) -> str:
        name = validate_name(collection)
        if len(self._names) >= _NAMES_KEPT:
            self._names.clear()
        self._names.add(name)
        return name

    def _deadline(self, timeout: float | None) -> float:
        return self.router.deadline(check_timeout(timeout))


_DEFAULTS = {field.name: field.default for field in msgspec.structs.fields(CollectionSchema)}


def make_put(
    collection: str,
    packets: Iterable[DataPacket] | None,
    ids: Iterable[str] | None,
    vectors: Any,
    metadatas: Sequence[Any] | None,
    documents: Sequence[Any] | None,
    expect: Any,
    checksum_algorithm: str = "sha256",
) -> Put:
    """Return the mutation of an ``upsert``, from packets or from columns.

    Raises:
        InvalidDataException: Both or neither are given, nothing is to be written, or a record is not accepted.
    """
    name = validate_name(collection)
    columns = {"ids": ids, "vectors": vectors, "metadatas": metadatas, "documents": documents}
    given = [column for column, value in columns.items() if value is not None]
    if (packets is None) == (not given):
        raise InvalidDataException(
            "upsert takes either a list of DataPacket or columns (ids=, vectors=, metadatas=, documents=)"
        )
    if packets is None:
        if ids is None or vectors is None:
            raise InvalidDataException(f"upsert by columns needs ids= and vectors=, got {', '.join(given)}")
        listed = _listed(ids, "ids")
        put = put_of_columns(name, listed, vectors, metadatas, documents, check_expect(expect), checksum_algorithm)
    else:
        if isinstance(packets, DataPacket | str | bytes | dict) or not isinstance(packets, Iterable):
            raise InvalidDataException(f"upsert takes a list of DataPacket, got {shown(packets)}")
        batch = list(packets)
        for position, packet in enumerate(batch):
            if not isinstance(packet, DataPacket):
                raise InvalidDataException(f"packets[{position}] must be a DataPacket, got {shown(packet)}")
        put = put_of_packets(name, batch, check_expect(expect))
    if not put.ids:
        raise InvalidDataException("upsert needs at least one record, got none")
    return put


def parse_filter(where: Any) -> Filter | None:
    """Return a metadata filter, parsed; None for none."""
    return None if where is None else parse_where(where)


def parse_document_filter(where_document: Any) -> DocumentFilter | None:
    """Return a document filter, parsed; None for none."""
    return None if where_document is None else parse_where_document(where_document)


def _listed(ids: Iterable[str], what: str) -> Sequence[str]:
    if isinstance(ids, str | bytes) or not isinstance(ids, Iterable):
        raise InvalidDataException(f"{what} must be a list of record ids, got {shown(ids)}")
    return ids if isinstance(ids, Sequence) else list(ids)


def _txn(txn_id: str | None) -> str | None:
    return None if txn_id is None else check_txn_id(txn_id)


def _only(packets: list[DataPacket]) -> DataPacket | None:
    return packets[0] if packets else None


def backoff_s(attempt: int) -> float:
    """Return how long to wait before running a transaction again: exponential, jittered, at most 0.25 s."""
    return min(0.25, 0.001 * 2.0 ** min(attempt, 16)) * (0.5 + 0.5 * random.random())
