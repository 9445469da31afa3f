"""What prepared transactions hold until they are decided. Nobody waits for a lock here: it is a no, at once.

Rebuilt at recovery from the prepared transactions themselves; nothing of it is on disk.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from vecraft_shard.catalog import Catalog
from vecraft_shard.records import ResolvedDelete, ResolvedPut, TransactionRecord


@dataclass(slots=True)
class Locks:
    """The locks of one shard.

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
