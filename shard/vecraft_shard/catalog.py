"""Which collections and aliases exist, from when to when.

Catalog entries are versioned like records: a name means at snapshot ``S`` the entry with ``begin_ts <= S < end_ts``. So
a search ``as_of`` a moment before a collection was dropped still finds it, and an alias switches for everybody at one
timestamp. Every shard holds the same entries, because catalog changes are transactions over all shards.

An altered schema is a new entry for the same collection id.

A transaction may change the catalog in several steps, and write by names that it makes itself. Its steps are checked
against a *draft*: a copy of the catalog in which the earlier ones have happened already.
"""

from __future__ import annotations

from collections.abc import Iterable

import msgspec

from vecraft_data_model.errors import (
    CollectionAlreadyExistedException,
    CollectionNotExistedException,
    InvalidDataException,
)
from vecraft_data_model.hlc import INFINITY_TS
from vecraft_data_model.messages import (
    AlterCollection,
    CatalogMutation,
    CreateCollection,
    DropAlias,
    DropCollection,
    SetAlias,
)
from vecraft_data_model.schema import CollectionSchema, altered_schema
from vecraft_data_model.validation import check_ef

_DRAFT_TS = INFINITY_TS - 1
"""When drafted changes happen: later than anything committed, and seen by those who ask for now."""


class CollectionEntry(msgspec.Struct):
    """A collection under one schema for one span of time. ``ef``: its search depth; None: measured."""

    collection_id: str
    schema: CollectionSchema
    begin_ts: int
    end_ts: int = INFINITY_TS
    ef: int | None = None

    def altered(self, changes: dict[str, object], ts: int = 0) -> CollectionEntry:
        """The entry that follows this one from ``ts`` on.

        Raises:
            InvalidDataException: A setting that cannot be altered, or a value that is not accepted.
        """
        schema = altered_schema(self.schema, changes)
        ef = check_ef(changes["ef"]) if "ef" in changes else self.ef
        return CollectionEntry(self.collection_id, schema, ts, ef=ef)


class AliasEntry(msgspec.Struct):
    """An alias meaning one collection name for one span of time."""

    alias: str
    name: str
    begin_ts: int
    end_ts: int = INFINITY_TS


class Catalog:
    """All entries, old and current."""

    def __init__(self, collections: Iterable[CollectionEntry] = (), aliases: Iterable[AliasEntry] = ()) -> None:
        self.collections = list(collections)
        self.aliases = list(aliases)
        self._current: dict[str, CollectionEntry] = {}
        self._current_aliases: dict[str, AliasEntry] = {}
        self._refresh()

    # ------------------------------------------------------------------------------------------- reading

    def resolve(self, name: str, snapshot: int = INFINITY_TS - 1) -> CollectionEntry:
        """Return what a collection name or alias means at ``snapshot`` (by default: now).

        Raises:
            CollectionNotExistedException: Nothing of that name then.
        """
        entry = self._current.get(name)
        if entry is None or entry.begin_ts > snapshot:
            entry = self._resolve_slowly(name, snapshot)
        return entry

    def listing(self, snapshot: int) -> tuple[list[CollectionSchema], dict[str, str]]:
        """The schemas, sorted by name, and the aliases that exist at ``snapshot``."""
        schemas = [e.schema for e in self.collections if e.begin_ts <= snapshot < e.end_ts]
        aliases = {a.alias: a.name for a in self.aliases if a.begin_ts <= snapshot < a.end_ts}
        return sorted(schemas, key=lambda schema: schema.name), aliases

    def __contains__(self, name: str) -> bool:
        """Whether a collection of that name exists now (an alias is none)."""
        return name in self._current

    def is_alias(self, name: str) -> bool:
        """Whether a name is an alias now."""
        return name in self._current_aliases

    def current(self) -> list[CollectionEntry]:
        """The entries that are valid now."""
        return list(self._current.values())

    def target_of(self, alias: str) -> CollectionEntry | None:
        """The collection that an alias means now; None if there is no such alias."""
        entry = self._current_aliases.get(alias)
        return None if entry is None else self._current.get(entry.name)

    def changed_after(self, name: str, snapshot: int) -> bool:
        """Whether a collection or alias of that name was made, altered, switched or dropped after ``snapshot``."""
        entries = [(e.begin_ts, e.end_ts) for e in self.collections if e.schema.name == name]
        entries += [(a.begin_ts, a.end_ts) for a in self.aliases if a.alias == name]
        return any(begin > snapshot or snapshot < end < INFINITY_TS for begin, end in entries)

    def meant_the_same(self, name: str, snapshot: int) -> bool:
        """Whether a name that means a collection now meant the same one at ``snapshot``, under whatever settings."""
        entry = self.resolve(name)
        if entry.begin_ts <= snapshot and name == entry.schema.name:
            return True  # the common case: a collection by its own name, older than the snapshot
        try:
            return self.resolve(name, snapshot).collection_id == entry.collection_id
        except CollectionNotExistedException:
            return False

    # ------------------------------------------------------------------------------------------- writing

    def draft(self) -> Catalog:
        """Return a copy, for trying out the steps of one transaction."""
        return Catalog(map(msgspec.structs.replace, self.collections), map(msgspec.structs.replace, self.aliases))

    def try_out(self, mutation: CatalogMutation) -> None:
        """On a draft: check a mutation, and let it have happened.

        Raises:
            VecraftError: What stands against it.
        """
        self.check(mutation)
        self.apply(mutation, _DRAFT_TS)

    def names_of(self, mutation: CatalogMutation) -> set[str]:
        """The names whose meaning a mutation changes or relies on: what it has to lock."""
        match mutation:
            case CreateCollection(schema=schema):
                return {schema.name}
            case DropCollection(name=name) | AlterCollection(name=name):
                return {name}
            case SetAlias(alias=alias, name=name):
                # The former target, too: what is written to it by its own name must not slip in behind the check that
                # nothing was.
                return {alias, name} | self._former_name(alias)
            case DropAlias(alias=alias):
                return {alias} | self._former_name(alias)

    def check(self, mutation: CatalogMutation) -> None:
        """Raise what stands against a mutation in the current state."""
        match mutation:
            case CreateCollection(schema=schema, collection_id=collection_id):
                self._check_free(schema.name)
                if any(entry.collection_id == collection_id for entry in self.collections):
                    raise InvalidDataException(f"collection id {collection_id} was used before")
            case DropCollection(name=name):
                self._entry(name)
                used_by = sorted(a.alias for a in self._current_aliases.values() if a.name == name)
                if used_by:
                    raise InvalidDataException(
                        f"collection {name!r} is the target of alias {used_by[0]!r}: drop or switch the alias first",
                        collection=name,
                        aliases=used_by,
                    )
            case AlterCollection(name=name, changes=changes):
                self._entry(name).altered(changes)
            case SetAlias(alias=alias, name=name):
                self._entry(name)
                if alias in self._current:
                    raise CollectionAlreadyExistedException(
                        f"{alias!r} is a collection, so it cannot become an alias", collection=alias
                    )
            case DropAlias(alias=alias):
                if alias not in self._current_aliases:
                    raise CollectionNotExistedException(f"there is no alias {alias!r}", alias=alias)

    def apply(self, mutation: CatalogMutation, ts: int) -> CollectionEntry | None:
        """Carry out a checked mutation at ``ts``. Returns the new entry of a collection, if it made one."""
        created = None
        match mutation:
            case CreateCollection(schema=schema, collection_id=collection_id):
                created = CollectionEntry(collection_id, schema, ts)
                self.collections.append(created)
            case DropCollection(name=name):
                self._entry(name).end_ts = ts
            case AlterCollection(name=name, changes=changes):
                old = self._entry(name)
                old.end_ts = ts
                created = old.altered(changes, ts)
                self.collections.append(created)
            case SetAlias(alias=alias, name=name):
                self._end_alias(alias, ts)
                self.aliases.append(AliasEntry(alias, name, ts))
            case DropAlias(alias=alias):
                self._end_alias(alias, ts)
        self._refresh()
        return created

    def forget(self, safe_point: int) -> list[str]:
        """Drop entries that no snapshot from the safe point on can see. Returns the collection ids left without any."""
        before = {e.collection_id for e in self.collections}
        self.collections = [e for e in self.collections if e.end_ts > safe_point]
        self.aliases = [a for a in self.aliases if a.end_ts > safe_point]
        return sorted(before - {e.collection_id for e in self.collections})

    # --------------------------------------------------------------------------------------------- inside

    def _refresh(self) -> None:
        self._current = {e.schema.name: e for e in self.collections if e.end_ts == INFINITY_TS}
        self._current_aliases = {a.alias: a for a in self.aliases if a.end_ts == INFINITY_TS}

    def _resolve_slowly(self, name: str, snapshot: int) -> CollectionEntry:
        target = name
        for alias in self.aliases:
            if alias.alias == name and alias.begin_ts <= snapshot < alias.end_ts:
                target = alias.name
        for entry in self.collections:
            if entry.schema.name == target and entry.begin_ts <= snapshot < entry.end_ts:
                return entry
        raise CollectionNotExistedException(
            f"there is no collection or alias {name!r}" + ("" if target == name else f" (alias of {target!r})"),
            collection=name,
        )

    def _entry(self, name: str) -> CollectionEntry:
        entry = self._current.get(name)
        if entry is None:
            hint = f" ({name!r} is an alias)" if name in self._current_aliases else ""
            raise CollectionNotExistedException(f"there is no collection {name!r}{hint}", collection=name)
        return entry

    def _former_name(self, alias: str) -> set[str]:
        entry = self._current_aliases.get(alias)
        return set() if entry is None else {entry.name}

    def _check_free(self, name: str) -> None:
        if name in self._current:
            raise CollectionAlreadyExistedException(f"collection {name!r} exists already", collection=name)
        if name in self._current_aliases:
            raise CollectionAlreadyExistedException(f"{name!r} exists already, as an alias", collection=name)

    def _end_alias(self, alias: str, ts: int) -> None:
        if alias in self._current_aliases:
            self._current_aliases[alias].end_ts = ts
