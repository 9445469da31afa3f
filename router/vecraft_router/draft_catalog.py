"""The catalog as one interactive transaction sees it: as of its snapshot, with its own changes laid over.

A change is checked here when it is made, against what the transaction sees; what others have changed since the snapshot
is found out by the shards at the commit, and is a conflict. Nothing here is known to anybody else before that.
"""

from __future__ import annotations

from vecraft_data_model.errors import (
    CollectionAlreadyExistedException,
    CollectionNotExistedException,
    InvalidDataException,
)
from vecraft_data_model.messages import (
    AlterCollection,
    CatalogMutation,
    CatalogReply,
    CreateCollection,
    DropAlias,
    DropCollection,
    SetAlias,
)
from vecraft_data_model.schema import CollectionSchema, altered_schema
from vecraft_data_model.validation import check_ef


class DraftCatalog:
    """Collections and aliases of one transaction.

    Args:
        base: The catalog at its snapshot.

    Attributes:
        steps: The changes made here, in order.
        aliases: Alias → collection.
        renamed: Aliases that were set or dropped here.
    """

    def __init__(self, base: CatalogReply) -> None:
        self.steps: list[CatalogMutation] = []
        self.aliases = dict(base.aliases)
        self.renamed: set[str] = set()
        self._snapshot = base.snapshot
        self._schemas = {schema.name: schema for schema in base.collections}

    def reply(self) -> CatalogReply:
        """Return everything there is."""
        schemas = sorted(self._schemas.values(), key=lambda schema: schema.name)
        return CatalogReply(self._snapshot, schemas, dict(self.aliases))

    def resolve(self, name: str) -> CollectionSchema:
        """Return the collection that a name or alias means.

        Raises:
            CollectionNotExistedException: None.
        """
        schema = self._schemas.get(self.aliases.get(name, name))
        if schema is None:
            raise CollectionNotExistedException(
                f"there is no collection or alias {name!r} in this transaction", collection=name
            )
        return schema

    def take(self, mutation: CatalogMutation) -> None:
        """Check a change, and let it have happened.

        Raises:
            VecraftError: What stands against it, as a shard would say.
        """
        match mutation:
            case CreateCollection(schema=schema):
                self._create(schema)
            case DropCollection(name=name):
                self._drop(name)
            case AlterCollection(name=name, changes=changes):
                if "ef" in changes:
                    check_ef(changes["ef"])
                self._schemas[name] = altered_schema(self._collection(name), changes)
            case SetAlias(alias=alias, name=name):
                self._collection(name)
                if alias in self._schemas:
                    raise CollectionAlreadyExistedException(
                        f"{alias!r} is a collection, so it cannot become an alias", collection=alias
                    )
                self.aliases[alias] = name
                self.renamed.add(alias)
            case DropAlias(alias=alias):
                if self.aliases.pop(alias, None) is None:
                    raise CollectionNotExistedException(f"there is no alias {alias!r}", alias=alias)
                self.renamed.add(alias)
        self.steps.append(mutation)

    def _create(self, schema: CollectionSchema) -> None:
        if schema.name in self._schemas or schema.name in self.aliases:
            what = "" if schema.name in self._schemas else ", as an alias"
            raise CollectionAlreadyExistedException(
                f"collection {schema.name!r} exists already{what}", collection=schema.name
            )
        self._schemas[schema.name] = schema

    def _drop(self, name: str) -> None:
        self._collection(name)
        used_by = sorted(alias for alias, target in self.aliases.items() if target == name)
        if used_by:
            raise InvalidDataException(
                f"collection {name!r} is the target of alias {used_by[0]!r}: drop or switch the alias first",
                collection=name,
                aliases=used_by,
            )
        del self._schemas[name]

    def _collection(self, name: str) -> CollectionSchema:
        schema = self._schemas.get(name)
        if schema is None:
            hint = f" ({name!r} is an alias)" if name in self.aliases else ""
            raise CollectionNotExistedException(
                f"there is no collection {name!r} in this transaction{hint}", collection=name
            )
        return schema
