"""Checkpoints: make the store files durable, then say so in one SQLite transaction.

Steps, of which only the cut keeps writers out, for as long as it takes to copy a few columns:

0. **Graphs** that have grown enough are saved, beside the ones that the last checkpoint refers to.
1. **Cut** (writer latch held): note the LSN, how many rows each collection has, which older rows were ended since the
   last checkpoint, what is prepared and decided; begin a new log segment.
2. **Write**: fsync the store files; rows below the cut never change, so writers may go on. Then one SQLite transaction:
   rows, ends, postings, full text, catalog, outcomes, LSN. Its commit *is* the checkpoint.
3. **Trim**: delete log segments wholly below the LSN, and files of older generations.

A crash before the commit leaves the last checkpoint and a log that begins after it; a crash after it leaves files that
nothing refers to, which the next checkpoint removes.

The undecided PREPAREs and the outcomes that must be kept go into SQLite whole, so no log segment has to be kept for
their sake.
"""

from __future__ import annotations

import logging
import sqlite3
from dataclasses import dataclass

import msgspec

from vecraft_data_model.errors import StorageFailureException, StorageFullError
from vecraft_shard.catalog import AliasEntry, CollectionEntry
from vecraft_shard.collection import Collection
from vecraft_shard.locations import Outcome, StoredCollection
from vecraft_shard.records import encode_transaction
from vecraft_shard.row_segments import StoredRows
from vecraft_shard.state import ShardState

logger = logging.getLogger(__name__)

_GRAPH_GROWTH = 1.2
_RETRY_MS = 5000
"""How long to wait after a checkpoint that there was no room for."""


@dataclass(frozen=True, slots=True)
class _CollectionCut:
    collection: Collection
    first_row: int
    last_row: int
    payload_bytes: int
    rows: StoredRows
    ended: dict[int, int]


@dataclass(frozen=True, slots=True)
class _Cut:
    lsn: int
    ceiling: int
    safe_point: int
    next_ordinal: int
    entries: list[CollectionEntry]
    aliases: list[AliasEntry]
    changed: list[_CollectionCut]
    prepared: dict[str, bytes]
    outcomes: dict[str, Outcome]
    retired: list[Collection]


class Checkpointer:
    """Makes checkpoints of one shard."""

    def __init__(self, state: ShardState) -> None:
        self._state = state
        self.last_lsn = 0
        self.count = 0
        self._not_before_ms = 0

    def is_due(self, now_ms: int) -> bool:
        """Whether the log has grown enough, or is old enough, or a graph has grown that long since."""
        state = self._state
        if now_ms < self._not_before_ms:
            return False
        if state.wal.size_bytes >= state.config.checkpoint_wal_bytes:
            return True
        if now_ms - state.checkpoint_ms < state.config.checkpoint_interval_s * 1000:
            return False
        if state.wal.next_lsn - 1 > self.last_lsn and state.wrote_at_ms > state.checkpoint_ms:
            return True
        # Indexing goes on long after the last write: a crash must not cost all of it.
        return any(self._outgrown(collection) for collection in list(state.collections.values()))

    def run(self, now_ms: int, *, final: bool = False) -> None:
        """Make a checkpoint. ``final``: also save graphs that have grown little, for a quick start.

        Raises:
            StorageFullError: There is no room for it; none is due again at once.
            StorageFailureException: Nothing is lost: the last checkpoint and the log stand.
        """
        try:
            self._run(now_ms, final=final)
        except StorageFullError:
            self._not_before_ms = now_ms + _RETRY_MS
            raise
        except StorageFailureException as error:
            # SQLite takes an exceeded quota for a disk that fails; the disk itself knows.
            if not isinstance(error.__cause__, sqlite3.OperationalError) or not self._state.room.is_short():
                raise
            self._not_before_ms = now_ms + _RETRY_MS
            raise StorageFullError(f"there is no room for a checkpoint: {error.message}", **error.details) from error

    def _run(self, now_ms: int, *, final: bool) -> None:
        state = self._state
        for collection in list(state.collections.values()):
            self._save_graph(collection, final=final)
        with state.latch.writer():
            cut = self._cut()
        try:
            for part in cut.changed:
                part.collection.column.sync()
                part.collection.payloads.sync()
            self._commit(cut, now_ms)
        except BaseException:
            for part in cut.changed:
                part.collection.versions.give_back_ended(part.ended)
                part.collection.changed = True
            raise
        with state.latch.writer():
            for part in cut.changed:
                part.collection.checkpointed = max(part.collection.checkpointed, part.last_row)
            for txn_id, outcome in cut.outcomes.items():
                if state.outcomes.get(txn_id) is outcome:
                    del state.outcomes[txn_id]
            state.retired = [collection for collection in state.retired if collection not in cut.retired]
            state.checkpoint_ms, state.checkpoint_ceiling = now_ms, cut.ceiling
            self.last_lsn = cut.lsn
            self.count += 1
            state.wal.trim(cut.lsn)
        self._remove_strays(cut)

    # --------------------------------------------------------------------------------------------- steps

    def _cut(self) -> _Cut:
        state = self._state
        if state.half_applied is not None:  # known only now: the one who failed had the latch before
            raise StorageFailureException(
                f"the shard must be opened again: something that was written is not applied ({state.half_applied})"
            ) from state.half_applied
        lsn = state.wal.next_lsn - 1
        state.wal.rotate()
        changed = []
        for collection in state.collections.values():
            if not collection.changed:
                continue
            collection.changed = False
            first, last = collection.checkpointed, collection.versions.rows
            ended = {row: end for row, end in collection.versions.take_ended().items() if row < first}
            changed.append(
                _CollectionCut(
                    collection, first, last, collection.payloads.end, collection.rows_since(first, last), ended
                )
            )
        return _Cut(
            lsn,
            state.timeline.ceiling,
            state.timeline.safe_point,
            state.next_ordinal,
            [msgspec.structs.replace(entry) for entry in state.catalog.collections],
            [msgspec.structs.replace(alias) for alias in state.catalog.aliases],
            changed,
            {
                txn_id: b"".join(encode_transaction(prepared.record))
                for txn_id, prepared in state.prepared.items()
            },
            dict(state.outcomes),
            list(state.retired),
        )

    def _commit(self, cut: _Cut, now_ms: int) -> None:
        state, locations = self._state, self._state.locations
        texts = [(part, self._texts(part)) for part in cut.changed]
        with locations.transaction():
            locations.set_meta(
                checkpoint_lsn=cut.lsn,
                ceiling=cut.ceiling,
                safe_point=cut.safe_point,
                next_ordinal=cut.next_ordinal,
                checkpoint_ms=now_ms,
            )
            locations.save_catalog(cut.entries, cut.aliases)
            for collection in cut.retired:
                collection.documents.drop_tables()
                locations.drop_collection(collection.ordinal)
            for part, documents in texts:
                self._save_part(part, documents)
            locations.save_prepared(cut.prepared)
            # An id may have been made ahead of its outcome, by a node whose clock is ahead: it is refused for its age
            # before its outcome is forgotten.
            kept_ms = int(state.config.txn_retention_s * 1000) + 2 * state.config.max_clock_skew_ms
            locations.save_outcomes(cut.outcomes, now_ms - kept_ms)
        for part in cut.changed:
            part.collection.documents.settle(part.last_row)

    def _texts(self, part: _CollectionCut) -> list[str | None]:
        return part.collection.texts_between(part.first_row, part.last_row)

    def _save_part(self, part: _CollectionCut, documents: list[str | None]) -> None:
        collection, locations = part.collection, self._state.locations
        name, rows, checksum = collection.hnsw_saved or (None, 0, 0)
        recall, interval = collection.depth.lasting
        locations.save_collection(
            StoredCollection(
                collection.ordinal,
                collection.collection_id,
                collection.generation,
                part.last_row,
                part.payload_bytes,
                name,
                rows,
                checksum,
                collection.depth.tuned,
                recall,
                collection.depth.rows,
                interval,
            )
        )
        if part.first_row == 0:
            collection.documents.create_tables()
        locations.save_rows(collection.ordinal, part.first_row, part.rows, part.ended)
        if part.last_row > part.first_row:
            locations.save_spans(collection.ordinal, collection.integrity.spans_of(part.first_row, part.last_row))
            with self._state.latch.shared():
                segment = collection.metadata.dump(part.first_row, part.last_row)
            locations.save_postings(collection.ordinal, part.first_row, segment)
            collection.documents.index_text(part.first_row, documents)

    def _outgrown(self, collection: Collection, *, final: bool = False) -> bool:
        """Whether the graph is worth saving again, or at all; ``final``: whatever it has grown by."""
        saved = collection.hnsw_saved[1] if collection.hnsw_saved else 0
        grown = collection.indexed > (saved if final else saved * _GRAPH_GROWTH)
        return grown and self._state.disk.durable and self._state.disk.path(collection.folder) is not None

    def _save_graph(self, collection: Collection, *, final: bool) -> None:
        """Save the graph if it has grown enough since it was last saved. Only this thread adds to graphs."""
        if not self._outgrown(collection, final=final):
            return
        name = f"hnsw.{collection.generation}.{collection.indexed}"
        fresh = f"{collection.folder}/{name}.new"
        path = self._state.disk.path(fresh)
        if path is None:
            return
        rows = collection.indexed
        try:
            checksum = collection.hnsw.save(path)
            self._state.disk.rename(fresh, f"{collection.folder}/{name}")
        except StorageFullError as error:
            # The checkpoint is worth more: it gives room back, and the graph can be made again.
            logger.warning("a graph of %s is not saved: %s", collection.schema.name, error.message)
            self._state.disk.remove(fresh)
            return
        collection.hnsw_saved = (name, rows, checksum)
        collection.changed = True

    def _remove_strays(self, cut: _Cut) -> None:
        """Remove what no checkpoint refers to: older generations and graphs, folders of dropped collections."""
        state = self._state
        for collection in cut.retired:
            collection.close()
            if collection.collection_id not in state.collections:
                state.disk.remove(collection.folder)
        for collection in list(state.collections.values()):
            kept = set(collection.files)
            for shadow in state.shadows:
                kept.update(shadow.files)
            if collection.hnsw_saved:
                kept.add(collection.hnsw_saved[0])
            for name in state.disk.list(collection.folder):
                if name.rsplit("/", 1)[-1] not in kept:
                    state.disk.remove(name)
