"""May this transaction commit here? Everything that can stand against it is found out before anything is written.

Admission checks a transaction against the current state and returns it *resolved*: collections by id, what it will
replace, what it has to lock. The rules, in the order in which they are checked:

1. The snapshot is not below the safe point (else a tombstone that would show a conflict may be gone).
2. Names mean something, and nobody is about to change what they mean.
3. Vectors fit their collection, ids are ids, payloads are whole.
4. No key is locked by a prepared transaction. There is no waiting, hence no deadlock; the error says ``locked=True``,
   and a router may try again.
5. Under a snapshot: no key of the write set has a version that begins or ends after it (first committer wins), and no
   key that was read, under ``serializable``; and no name that is used means something else since.
6. ``expect`` holds.

A deletion by filter has no snapshot of its own to be validated against: it names what it found at one, and here it is
checked again, as PostgreSQL does under READ COMMITTED. What does not exist any more, or does not match any more, is
passed over, and stays as it is until the transaction is decided. So the transaction deletes exactly what matched at its
snapshot and matches at its commit. It is a conflict only if the collection's name means something else since.

A transaction may change the catalog in several steps, and use in one what an earlier one made: each step is checked
against a draft in which the earlier ones have happened. Under a snapshot, a change of the catalog is a write to what
the name meant: it is refused if the name was changed since, and, if it takes records out of sight (a drop, an alias
that moves away), if any of them was.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from vecraft_data_model.errors import (
    InvalidDataException,
    PreconditionFailedError,
    ReadWriteConflictException,
    WriteConflictException,
)
from vecraft_data_model.filter_match import matching_payloads
from vecraft_data_model.messages import (
    AlterCollection,
    CatalogMutation,
    CreateCollection,
    Delete,
    DropAlias,
    DropCollection,
    Expectation,
    Float32Array,
    Matched,
    Put,
    SetAlias,
    Transaction,
)
from vecraft_data_model.payload import reseal_payloads, verify_payloads
from vecraft_data_model.schema import CollectionSchema
from vecraft_data_model.validation import as_matrix, check_record_ids
from vecraft_shard.catalog import Catalog, CollectionEntry
from vecraft_shard.collection import Collection
from vecraft_shard.locks import Locks
from vecraft_shard.records import Resolved, ResolvedDelete, ResolvedPut
from vecraft_shard.timeline import CATALOG, Timeline
from vecraft_shard.versions import NO_ROW


@dataclass(frozen=True, slots=True)
class Admitted:
    """A transaction that may commit.

    Attributes:
        mutations: Resolved.
        reads: ``(collection id, record id)`` that must stay as they are until it is decided.
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


class _Steps:
    """What a transaction has done to the catalog so far.

    Attributes:
        catalog: As it is for the transaction's next step.
        names: That the transaction has changed the meaning of.
    """

    __slots__ = ("_base", "catalog", "names")

    def __init__(self, catalog: Catalog) -> None:
        self._base = catalog
        self.catalog = catalog
        self.names: set[str] = set()

    def take(self, mutation: CatalogMutation) -> None:
        """Check a step and let it have happened.

        Raises:
            VecraftError: What stands against it.
        """
        if self.catalog is self._base:
            self.catalog = self._base.draft()
        self.catalog.try_out(mutation)
        self.names.add(_changed_name(mutation))


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
        snapshot = txn.snapshot
        if snapshot is not None:
            self._timeline.check_readable(snapshot)
        steps = _Steps(self._catalog)
        mutations: list[Resolved] = []
        footprint: set[str] = set()
        replaced: list[tuple[Collection, list[int]]] = []
        passed_over: list[tuple[str, str]] = []
        count = 0
        for mutation in txn.mutations:
            match mutation:
                case Put():
                    collection_id, schema = self._target(mutation.collection, steps, snapshot)
                    mutations.append(self._put(mutation, collection_id, schema))
                    rows = self._keys(collection_id, mutation.ids, mutation.expect, snapshot)
                    count += len(mutation.ids)
                case Delete():
                    ids, matched = mutation.ids, mutation.matched
                    check_record_ids(ids)
                    if matched is None:
                        collection_id, _ = self._target(mutation.collection, steps, snapshot)
                        mutations.append(ResolvedDelete(collection_id, list(ids)))
                    else:
                        collection_id, _ = self._target(mutation.collection, steps, matched.snapshot)
                        ids, others = self._still_matching(collection_id, ids, matched)
                        passed_over += others
                        mutations.append(ResolvedDelete(collection_id, ids, matched.snapshot))
                    rows = self._keys(collection_id, ids, mutation.expect, snapshot) if ids else []
                    count += len(rows)
                case _:
                    self._check_catalog_mutation(mutation, steps, snapshot)
                    mutations.append(mutation)
                    footprint.add(CATALOG)
                    continue
            footprint.add(collection_id)
            if rows and txn.want_preimages:
                replaced.append((self._collections[collection_id], rows))
        reads = [(self._read_target(name, snapshot), record_id) for name, record_id in txn.reads]
        self._check_reads(reads, snapshot)
        names = {m.collection for m in txn.mutations if isinstance(m, Put | Delete)} | {name for name, _ in txn.reads}
        aliases = sorted(name for name in names if self._catalog.is_alias(name))
        return Admitted(mutations, reads + passed_over, frozenset(footprint), count, replaced, aliases)

    # ------------------------------------------------------------------------------------------- catalog

    def _target(self, name: str, steps: _Steps, snapshot: int | None) -> tuple[str, CollectionSchema]:
        """Return the id and schema of the collection that a write goes to."""
        self._check_name_free(name)
        entry = steps.catalog.resolve(name)
        if entry.schema.name != name:
            self._check_name_free(entry.schema.name)
        if snapshot is not None and name not in steps.names and not self._catalog.meant_the_same(name, snapshot):
            raise _changed_meaning(name, snapshot)
        return entry.collection_id, entry.schema

    def _read_target(self, name: str, snapshot: int | None) -> str:
        """Return the id of the collection that was read: as things were before this transaction's own steps."""
        self._check_name_free(name)
        entry = self._catalog.resolve(name)
        if entry.schema.name != name:
            self._check_name_free(entry.schema.name)
        if snapshot is not None and not self._catalog.meant_the_same(name, snapshot):
            raise ReadWriteConflictException(
                f"what {name!r} means, which this transaction read from, was changed after its snapshot {snapshot}",
                collection=name,
                snapshot=snapshot,
            )
        return entry.collection_id

    def _check_name_free(self, name: str) -> None:
        if name in self._locks.names:
            raise WriteConflictException(
                f"what {name!r} means is being changed by another transaction", collection=name, locked=True
            )

    def _check_catalog_mutation(self, mutation: CatalogMutation, steps: _Steps, snapshot: int | None) -> None:
        """Check a change of the catalog, and let it have happened in ``steps``."""
        for name in steps.catalog.names_of(mutation):
            self._check_name_free(name)
            if name in self._locks.aliases:
                raise WriteConflictException(
                    f"a transaction that is about to commit writes by the alias {name!r}", collection=name, locked=True
                )
        changed = _changed_name(mutation)
        if snapshot is not None and changed not in steps.names:
            if self._catalog.changed_after(changed, snapshot):
                raise _changed_meaning(changed, snapshot)
            self._check_hidden(mutation, snapshot)
        steps.take(mutation)
        if snapshot is not None and isinstance(mutation, SetAlias):
            target = mutation.name
            if target not in steps.names and not self._catalog.meant_the_same(target, snapshot):
                raise _changed_meaning(target, snapshot)
        if isinstance(mutation, DropCollection | AlterCollection) and mutation.name in self._catalog:
            self._check_unused(self._catalog.resolve(mutation.name))

    def _check_hidden(self, mutation: CatalogMutation, snapshot: int) -> None:
        """Refuse to take records out of sight that were written after the snapshot: nobody would find them again."""
        hidden: CollectionEntry | None = None
        match mutation:
            case DropCollection(name=name):
                hidden = self._catalog.resolve(name) if name in self._catalog else None
            case SetAlias(alias=alias) | DropAlias(alias=alias):
                hidden = self._catalog.target_of(alias)
                if isinstance(mutation, SetAlias) and hidden is not None and hidden.schema.name == mutation.name:
                    hidden = None
        if hidden is None:
            return
        self._check_unused(hidden)
        if self._collections[hidden.collection_id].versions.any_changed_after(snapshot):
            raise WriteConflictException(
                f"collection {hidden.schema.name!r}, which this transaction takes out of sight, was written to after "
                f"its snapshot {snapshot}",
                collection=hidden.schema.name,
                snapshot=snapshot,
            )

    def _check_unused(self, entry: CollectionEntry) -> None:
        if entry.collection_id in self._locks.written or entry.collection_id in self._locks.read:
            raise WriteConflictException(
                f"collection {entry.schema.name!r} is being used by another transaction",
                collection=entry.schema.name,
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
        _check_unlocked(self._locks.writer_of(collection_id, ids) or self._locks.reader_of(collection_id, ids))
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
        rows = versions.alive_rows(ids)
        if expect is not None:
            for record_id, row in zip(ids, rows, strict=True):
                _check_expectation(expect, record_id, None if row == NO_ROW else int(versions.begin[row]))
        return [row for row in rows if row != NO_ROW]

    def _still_matching(
        self, collection_id: str, ids: list[str], matched: Matched
    ) -> tuple[list[str], list[tuple[str, str]]]:
        """Return which of the records that a filter found match it still, and those that do not, as reads.

        Only what was written after the snapshot is looked at: a row does not change.
        """
        _check_unlocked(self._locks.writer_of(collection_id, ids))
        collection = self._collections.get(collection_id)
        if collection is None:
            return [], []
        versions = collection.versions
        rows = {record_id: versions.alive_row(record_id) for record_id in ids}
        written = [row for row in rows.values() if row != NO_ROW and versions.begin[row] > matched.snapshot]
        gone = {NO_ROW}
        if written:
            payloads = collection.rows_of(written).payloads or []
            keep = matching_payloads(payloads, matched.where, matched.where_document)
            gone.update(row for row, kept in zip(written, keep, strict=True) if not kept)
        others = [(collection_id, record_id) for record_id, row in rows.items() if row in gone]
        return [record_id for record_id, row in rows.items() if row not in gone], others

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


def _changed_name(mutation: CatalogMutation) -> str:
    """The name whose meaning a mutation changes."""
    match mutation:
        case CreateCollection(schema=schema):
            return schema.name
        case DropCollection(name=name) | AlterCollection(name=name):
            return name
        case SetAlias(alias=alias) | DropAlias(alias=alias):
            return alias


def _changed_meaning(name: str, snapshot: int) -> WriteConflictException:
    return WriteConflictException(
        f"what {name!r} means was changed after this transaction's snapshot {snapshot}",
        collection=name,
        snapshot=snapshot,
    )


def _check_unlocked(locked: str | None) -> None:
    if locked is not None:
        raise WriteConflictException(
            f"record {locked!r} is locked by a transaction that is about to commit", record_id=locked, locked=True
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
