"""May this transaction commit here? Everything that can stand against it is found out before anything is written.

Admission checks a transaction against the current state and returns it *resolved*: collections by id, what it will
replace, what it has to lock. The rules, in the order in which they are checked:

1. The snapshot is not below the safe point (else a tombstone that would show a conflict may be gone).
2. Names mean something, and nobody is about to change what they mean.
3. Vectors fit their collection, ids are ids, payloads are whole.
4. No key is locked by a prepared transaction. There is no waiting, hence no deadlock; the error says ``locked=True``,
   and a router may try again.
5. Under a snapshot: no key of the write set has a version that begins or ends after it (first committer wins), and no
   key that was read, under ``serializable``.
6. ``expect`` holds.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from vecraft_data_model.errors import (
    InvalidDataException,
    PreconditionFailedError,
    ReadWriteConflictException,
    WriteConflictException,
)
from vecraft_data_model.messages import (
    AlterCollection,
    CatalogMutation,
    CreateCollection,
    Delete,
    DropCollection,
    Expectation,
    Float32Array,
    Put,
    Transaction,
)
from vecraft_data_model.payload import reseal_payloads, verify_payloads
from vecraft_data_model.schema import CollectionSchema
from vecraft_data_model.validation import as_matrix, check_record_ids
from vecraft_shard.catalog import Catalog
from vecraft_shard.collection import Collection
from vecraft_shard.records import Resolved, ResolvedDelete, ResolvedPut, TransactionRecord
from vecraft_shard.timeline import CATALOG, Timeline
from vecraft_shard.versions import NO_ROW


@dataclass(slots=True)
class Locks:
    """What prepared transactions hold until they are decided.

    Keys they write (exclusive), keys they read under ``serializable`` (shared), names whose meaning they change, and
    aliases by which they name what they write or read (shared: those must mean the same until they are decided).
    """

    written: dict[str, dict[str, str]] = field(default_factory=dict)
    read: dict[str, dict[str, set[str]]] = field(default_factory=dict)
    names: dict[str, str] = field(default_factory=dict)
    aliases: dict[str, set[str]] = field(default_factory=dict)

    def acquire(self, txn: TransactionRecord, catalog: Catalog) -> None:
        """Lock everything that an admitted transaction touches."""
        for mutation in txn.mutations:
            if isinstance(mutation, ResolvedPut | ResolvedDelete):
                self.written.setdefault(mutation.collection_id, {}).update(dict.fromkeys(mutation.ids, txn.txn_id))
            else:
                self.names.update(dict.fromkeys(catalog.names_of(mutation), txn.txn_id))
        for collection_id, record_id in txn.reads:
            self.read.setdefault(collection_id, {}).setdefault(record_id, set()).add(txn.txn_id)
        for alias in txn.aliases:
            self.aliases.setdefault(alias, set()).add(txn.txn_id)

    def release(self, txn: TransactionRecord) -> None:
        """Let go of everything a transaction holds."""
        self.names = {name: holder for name, holder in self.names.items() if holder != txn.txn_id}
        for mutation in txn.mutations:
            if isinstance(mutation, ResolvedPut | ResolvedDelete):
                held = self.written.get(mutation.collection_id, {})
                for record_id in mutation.ids:
                    held.pop(record_id, None)
                if not held:
                    self.written.pop(mutation.collection_id, None)
        for collection_id, record_id in txn.reads:
            readers = self.read.get(collection_id, {})
            holders = readers.get(record_id, set())
            holders.discard(txn.txn_id)
            if not holders:
                readers.pop(record_id, None)
            if not readers:
                self.read.pop(collection_id, None)
        for alias in txn.aliases:
            users = self.aliases.get(alias, set())
            users.discard(txn.txn_id)
            if not users:
                self.aliases.pop(alias, None)

    def writer_of(self, collection_id: str, record_ids: list[str]) -> str | None:
        """The first of these records that somebody is about to write."""
        held = self.written.get(collection_id)
        if held is None or held.keys().isdisjoint(record_ids):
            return None
        return next(record_id for record_id in record_ids if record_id in held)

    def reader_of(self, collection_id: str, record_ids: list[str]) -> str | None:
        """The first of these records that a prepared serializable transaction has read."""
        held = self.read.get(collection_id)
        if held is None or held.keys().isdisjoint(record_ids):
            return None
        return next(record_id for record_id in record_ids if record_id in held)


@dataclass(frozen=True, slots=True)
class Admitted:
    """A transaction that may commit.

    Attributes:
        mutations: Resolved.
        reads: ``(collection id, record id)``.
        footprint: Ids of the collections it writes to, and :data:`CATALOG` if it changes the catalog.
        count: Records it will write or delete.
        replaced: Per collection, the rows it will end: the preimages.
        aliases: By which it names collections.
    """

    mutations: list[Resolved]
    reads: list[tuple[str, str]]
    footprint: frozenset[str]
    count: int
    replaced: list[tuple[Collection, list[int]]]
    aliases: list[str]


class Admission:
    """The checks, over the state of one shard."""

    def __init__(
        self,
        catalog: Catalog,
        collections: Mapping[str, Collection],
        locks: Locks,
        timeline: Timeline,
        verify_payloads: bool,
    ) -> None:
        self._catalog = catalog
        self._collections = collections
        self._locks = locks
        self._timeline = timeline
        self._verify_payloads = verify_payloads

    def admit(self, txn: Transaction) -> Admitted:
        """Return the transaction resolved.

        Raises:
            VecraftError: What stands against it; nothing was changed.
        """
        if txn.snapshot is not None:
            self._timeline.check_readable(txn.snapshot)
        created: dict[str, CreateCollection] = {}
        mutations: list[Resolved] = []
        footprint: set[str] = set()
        replaced: list[tuple[Collection, list[int]]] = []
        count = 0
        for mutation in txn.mutations:
            match mutation:
                case Put():
                    collection_id, schema = self._target(mutation.collection, created)
                    mutations.append(self._put(mutation, collection_id, schema))
                    rows = self._keys(collection_id, mutation.ids, mutation.expect, txn.snapshot)
                    count += len(mutation.ids)
                case Delete():
                    collection_id, _ = self._target(mutation.collection, created)
                    check_record_ids(mutation.ids)
                    mutations.append(ResolvedDelete(collection_id, list(mutation.ids)))
                    rows = self._keys(collection_id, mutation.ids, mutation.expect, txn.snapshot)
                    count += len(rows)
                case _:
                    self._check_catalog_mutation(mutation)
                    mutations.append(mutation)
                    footprint.add(CATALOG)
                    if isinstance(mutation, CreateCollection):
                        created[mutation.schema.name] = mutation
                    continue
            footprint.add(collection_id)
            if rows and txn.want_preimages:
                replaced.append((self._collections[collection_id], rows))
        reads = [(self._target(name, created)[0], record_id) for name, record_id in txn.reads]
        self._check_reads(reads, txn.snapshot)
        names = {m.collection for m in txn.mutations if isinstance(m, Put | Delete)} | {name for name, _ in txn.reads}
        aliases = sorted(name for name in names if self._catalog.is_alias(name))
        return Admitted(mutations, reads, frozenset(footprint), count, replaced, aliases)

    # ------------------------------------------------------------------------------------------- catalog

    def _target(self, name: str, created: Mapping[str, CreateCollection]) -> tuple[str, CollectionSchema]:
        if name in created:
            return created[name].collection_id, created[name].schema
        self._check_name_free(name)
        entry = self._catalog.resolve(name)
        if entry.schema.name != name:
            self._check_name_free(entry.schema.name)
        return entry.collection_id, entry.schema

    def _check_name_free(self, name: str) -> None:
        if name in self._locks.names:
            raise WriteConflictException(
                f"what {name!r} means is being changed by another transaction", collection=name, locked=True
            )

    def _check_catalog_mutation(self, mutation: CatalogMutation) -> None:
        for name in self._catalog.names_of(mutation):
            self._check_name_free(name)
            if name in self._locks.aliases:
                raise WriteConflictException(
                    f"a transaction that is about to commit writes by the alias {name!r}", collection=name, locked=True
                )
        self._catalog.check(mutation)
        if isinstance(mutation, DropCollection | AlterCollection):
            entry = self._catalog.resolve(mutation.name)
            if entry.collection_id in self._locks.written:
                raise WriteConflictException(
                    f"collection {mutation.name!r} is being written to by another transaction",
                    collection=mutation.name,
                    locked=True,
                )

    # ---------------------------------------------------------------------------------------------- keys

    def _put(self, put: Put, collection_id: str, schema: CollectionSchema) -> ResolvedPut:
        if not put.ids:
            raise InvalidDataException(f"a write to collection {schema.name!r} names no records")
        if not len(put.ids) == len(put.payloads) == len(put.vectors):
            raise InvalidDataException(
                f"a write needs one vector and one payload per id, got {len(put.ids)} ids, "
                f"{len(put.vectors)} vectors and {len(put.payloads)} payloads"
            )
        check_record_ids(put.ids)
        vectors = as_matrix(put.vectors, schema.dim, metric=schema.metric, ids=put.ids)
        payloads = put.payloads
        if self._verify_payloads:
            verify_payloads(payloads, vectors)
        if schema.dtype == np.float16:
            # The checksum covers what is stored, so it is computed anew from the rounded vectors.
            vectors = as_matrix(_rounded(vectors), schema.dim, metric=schema.metric, ids=put.ids)
            payloads = reseal_payloads(payloads, vectors)
        return ResolvedPut(collection_id, put.ids, vectors, payloads)

    def _keys(self, collection_id: str, ids: list[str], expect: Expectation, snapshot: int | None) -> list[int]:
        """Check the keys of a write; return the rows that it will end."""
        locked = self._locks.writer_of(collection_id, ids) or self._locks.reader_of(collection_id, ids)
        if locked is not None:
            raise WriteConflictException(
                f"record {locked!r} is locked by a transaction that is about to commit",
                record_id=locked,
                locked=True,
            )
        collection = self._collections.get(collection_id)
        if collection is None:
            _check_expectation(expect, ids[0], None)
            return []
        versions = collection.versions
        if snapshot is not None:
            for record_id in ids:
                if versions.changed_after(record_id, snapshot):
                    raise WriteConflictException(
                        f"record {record_id!r} was written after this transaction's snapshot {snapshot}",
                        record_id=record_id,
                        snapshot=snapshot,
                    )
        rows = []
        for record_id in ids:
            row = versions.alive_row(record_id)
            if expect is not None:
                _check_expectation(expect, record_id, None if row == NO_ROW else int(versions.begin[row]))
            if row != NO_ROW:
                rows.append(row)
        return rows

    def _check_reads(self, reads: list[tuple[str, str]], snapshot: int | None) -> None:
        for collection_id, record_id in reads:
            locked = self._locks.writer_of(collection_id, [record_id]) is not None
            collection = self._collections.get(collection_id)
            changed = (
                snapshot is not None
                and collection is not None
                and collection.versions.changed_after(record_id, snapshot)
            )
            if locked or changed:
                raise ReadWriteConflictException(
                    f"record {record_id!r}, which this transaction read, was changed after its snapshot {snapshot}",
                    record_id=record_id,
                    snapshot=snapshot,
                    locked=locked and not changed,
                )


def _check_expectation(expect: Expectation, record_id: str, found: int | None) -> None:
    if expect is None or (expect == "absent" and found is None) or (expect == "present" and found is not None):
        return
    if expect in ("absent", "present") or (isinstance(expect, int) and not isinstance(expect, bool)):
        if found is not None and found == expect:
            return
        actual = "does not exist" if found is None else f"has commit timestamp {found}"
        raise PreconditionFailedError(
            f"record {record_id!r} was expected to be {expect!r}, but it {actual}", record_id=record_id, expect=expect
        )
    raise InvalidDataException(
        f"expect must be 'absent', 'present' or a commit timestamp, got {expect!r}", record_id=record_id
    )


def _rounded(vectors: Float32Array) -> Float32Array:
    """The values that a float16 collection stores."""
    with np.errstate(over="ignore"):
        stored = vectors.astype(np.float16).astype(np.float32)
    if not np.isfinite(stored).all():
        raise InvalidDataException("a vector value is beyond the range of float16 (±65504) that the collection stores")
    return stored
