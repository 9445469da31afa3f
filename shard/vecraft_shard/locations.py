"""``shard.sqlite``: what a checkpoint says, in one SQLite transaction.

A checkpoint *is* the commit of one SQLite transaction. After it, the file holds everything up to its LSN::

    meta              key → value: format, checkpoint LSN, ceiling, safe point
    collections       ordinal, id, generation of files, rows, payload bytes, saved HNSW file with rows and checksum
    recall_intervals  ordinal → 95% confidence interval of the measured recall
    catalog, aliases  versioned entries (schema as JSON)
    row_segments_<ordinal>  first row → ids, begins, payload sizes of the rows from there to the next segment
    ends_<ordinal>    row → end, of the versions that were replaced or deleted
    spans_<ordinal>     first row → last row and checksums of what the store files hold of them
    postings_<ordinal>  first row → the metadata postings of the rows from there to the next segment
    terms_…, text_lengths_…, trigrams_…, json_documents_…  documents, made by their index
    transactions      undecided PREPAREs, whole
    outcomes          txn id → commit timestamp (0: aborted), content hash, who has not acknowledged

One connection per file, shared by the threads of a shard. Names of tables hold an ordinal, never a user's string.

Format version 1 had one table row per version, ``rows_<ordinal>`` (row, record id, begin, end, payload offset, size),
instead of segments. It is read, and stays as it is beside the segments of later rows, until a compaction.

SQLite does not notice a flipped bit; :mod:`vecraft_shard.page_sums` does, whenever the file is opened.
"""

from __future__ import annotations

import json
import logging
import sqlite3
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from vecraft_data_model.errors import CorruptionError, StorageFailureException
from vecraft_data_model.hlc import INFINITY_TS
from vecraft_data_model.schema import CollectionSchema
from vecraft_shard.catalog import AliasEntry, Catalog, CollectionEntry
from vecraft_shard.disk import OsDisk
from vecraft_shard.integrity import Span
from vecraft_shard.page_sums import PageSums
from vecraft_shard.row_segments import StoredRows, decode_segment, encode_segments
from vecraft_shard.sqlite_errors import as_our_own

logger = logging.getLogger(__name__)

FORMAT_VERSION = 2
_READABLE_VERSIONS = (1, FORMAT_VERSION)

_TABLES = """
CREATE TABLE IF NOT EXISTS meta (key TEXT PRIMARY KEY, value INTEGER NOT NULL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS collections (
    ordinal INTEGER PRIMARY KEY, collection_id TEXT NOT NULL UNIQUE, generation INTEGER NOT NULL,
    rows INTEGER NOT NULL, payload_bytes INTEGER NOT NULL,
    hnsw_file TEXT, hnsw_rows INTEGER NOT NULL DEFAULT 0, hnsw_checksum INTEGER NOT NULL DEFAULT 0,
    ef INTEGER, measured_recall REAL, tuned_rows INTEGER NOT NULL DEFAULT 0);
CREATE TABLE IF NOT EXISTS recall_intervals (ordinal INTEGER PRIMARY KEY, low REAL NOT NULL, high REAL NOT NULL);
CREATE TABLE IF NOT EXISTS catalog (
    collection_id TEXT NOT NULL, schema TEXT NOT NULL, begin_ts INTEGER NOT NULL, end_ts INTEGER NOT NULL, ef INTEGER);
CREATE TABLE IF NOT EXISTS aliases (
    alias TEXT NOT NULL, name TEXT NOT NULL, begin_ts INTEGER NOT NULL, end_ts INTEGER NOT NULL);
CREATE TABLE IF NOT EXISTS transactions (txn_id TEXT PRIMARY KEY, record BLOB NOT NULL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS outcomes (
    txn_id TEXT PRIMARY KEY, ts INTEGER NOT NULL, content_hash BLOB NOT NULL, count INTEGER NOT NULL,
    decided_ms INTEGER NOT NULL, unacknowledged TEXT NOT NULL) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS outcomes_by_age ON outcomes (decided_ms);
"""


@dataclass(slots=True)
class Outcome:
    """How a transaction ended here. ``ts`` 0: aborted. ``unacknowledged``: whom the primary still has to tell."""

    ts: int
    content_hash: bytes
    count: int
    decided_ms: int
    unacknowledged: frozenset[int] = frozenset()


@dataclass(frozen=True, slots=True)
class StoredCollection:
    """A row of ``collections``."""

    ordinal: int
    collection_id: str
    generation: int
    rows: int
    payload_bytes: int
    hnsw_file: str | None
    hnsw_rows: int
    hnsw_checksum: int
    ef: int | None
    measured_recall: float | None
    tuned_rows: int
    recall_interval: tuple[float, float] | None = None


class Locations:
    """The one connection to ``shard.sqlite`` (``path`` None: in memory)."""

    def __init__(self, path: Path | None) -> None:
        self._name = str(path) if path is not None else ":memory:"
        self._sums = None if path is None else PageSums(path)
        if self._sums is not None and path is not None:
            self._sums.check_start()
            # SQLite makes the name of its log durable, not that of the file; and the one without the other is damage.
            OsDisk(path.parent).open(path.name).close()
        with self._guard():
            self.connection = sqlite3.connect(self._name, check_same_thread=False, isolation_level=None)
        try:
            self._start()
        except BaseException:
            self.close()
            raise

    def _start(self) -> None:
        """Fold what a crash left in SQLite's log, verify, and make the tables of a new file.

        Raises:
            CorruptionError: A page is damaged, or the file is of another format version.
            StorageFailureException: SQLite's log could not be begun, or another process has the file open.
        """
        with self._guard():
            (mode,) = self.connection.execute("PRAGMA journal_mode=WAL").fetchone()
            if self._sums is not None and mode != "wal":  # SQLite tells a write that failed here in no other way
                raise StorageFailureException(f"{self._name}: SQLite could not begin its log", file=self._name)
            self.connection.execute("PRAGMA synchronous=FULL")
            self.connection.execute("PRAGMA cache_size=-4096")
            self.connection.execute("PRAGMA wal_autocheckpoint=0")  # the sums of the pages come first
            if self._sums is not None and self._sums.pending:
                busy, pages, folded = self.connection.execute("PRAGMA wal_checkpoint(FULL)").fetchone()
                if busy or pages != folded:
                    raise StorageFailureException(f"{self._name} is in use by another process", file=self._name)
                self._sums.verify()
            self.connection.executescript(_TABLES)
            self._fold()
            found = self.meta("format_version", 1)  # version 1 did not say so
        if found not in _READABLE_VERSIONS:
            raise CorruptionError(
                f"{self._name} has format version {found}; this release reads versions "
                f"{' and '.join(map(str, _READABLE_VERSIONS))}",
                file=self._name,
            )

    def close(self) -> None:
        """Close the connection, folding SQLite's own log into the file."""
        try:
            with self._guard():
                self.connection.close()
        finally:
            if self._sums is not None:
                self._sums.close()

    def _fold(self, *, committed: bool = True) -> None:
        """After a transaction: take up the checksums of its pages, fold SQLite's log into the file, and empty it.

        A commit stands either way. If one of the two cannot be done now (the disk is full, a reader is at work), the
        log keeps the pages, and the next commit does it for both. What was rolled back may stand in SQLite's log all
        the same, even with the end of a commit that failed: it takes room, and must not be taken up.
        """
        if self._sums is None:
            return
        try:
            if committed:
                self._sums.follow()
            self.connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
        except (sqlite3.OperationalError, StorageFailureException) as error:
            logger.info("the log of %s is folded later: %s", self._name, error)

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """All of it or nothing, durable when it is left."""
        with self._guard():
            self.connection.execute("BEGIN IMMEDIATE")
            try:
                yield
                self.connection.execute("COMMIT")
            except BaseException:
                if self.connection.in_transaction:
                    self.connection.execute("ROLLBACK")
                self._fold(committed=False)
                raise
            self._fold()

    def verify(self) -> None:
        """Let SQLite check the whole file.

        Raises:
            CorruptionError: What SQLite found.
        """
        with self._guard():
            findings = [row[0] for row in self.connection.execute("PRAGMA integrity_check(5)")]
        if findings != ["ok"]:
            raise CorruptionError(f"{self._name} is damaged: {'; '.join(findings)}", file=self._name)

    # ---------------------------------------------------------------------------------------------- meta

    def meta(self, key: str, default: int) -> int:
        """A number of the last checkpoint."""
        row = self._one("SELECT value FROM meta WHERE key = ?", key)
        return default if row is None else int(row[0])

    def set_meta(self, **values: int) -> None:
        """Write numbers, inside a transaction."""
        self.connection.executemany(
            "INSERT INTO meta VALUES (?, ?) ON CONFLICT (key) DO UPDATE SET value = excluded.value", values.items()
        )

    # ------------------------------------------------------------------------------------------- catalog

    def load_catalog(self) -> Catalog:
        """The catalog of the last checkpoint."""
        with self._guard():
            collections = [
                CollectionEntry(row[0], CollectionSchema.from_dict(json.loads(row[1])), *row[2:])
                for row in self.connection.execute("SELECT * FROM catalog ORDER BY rowid")
            ]
            aliases = [AliasEntry(*row) for row in self.connection.execute("SELECT * FROM aliases ORDER BY rowid")]
        return Catalog(collections, aliases)

    def save_catalog(self, collections: Iterable[CollectionEntry], aliases: Iterable[AliasEntry]) -> None:
        """Replace the catalog, inside a transaction: it is small."""
        self.connection.execute("DELETE FROM catalog")
        self.connection.execute("DELETE FROM aliases")
        self.connection.executemany(
            "INSERT INTO catalog VALUES (?, ?, ?, ?, ?)",
            ((e.collection_id, json.dumps(e.schema.to_dict()), e.begin_ts, e.end_ts, e.ef) for e in collections),
        )
        self.connection.executemany(
            "INSERT INTO aliases VALUES (?, ?, ?, ?)", (msgspec.structs.astuple(alias) for alias in aliases)
        )

    # --------------------------------------------------------------------------------------- collections

    def load_collections(self) -> list[StoredCollection]:
        """All collections of the last checkpoint."""
        with self._guard():
            intervals = {
                ordinal: (low, high)
                for ordinal, low, high in self.connection.execute("SELECT ordinal, low, high FROM recall_intervals")
            }
            rows = self.connection.execute("SELECT * FROM collections").fetchall()
        return [replace(StoredCollection(*row), recall_interval=intervals.get(row[0])) for row in rows]

    def save_collection(self, stored: StoredCollection) -> None:
        """Write a collection's line, and make its tables if it is new; inside a transaction."""
        self.set_meta(format_version=FORMAT_VERSION)
        n = stored.ordinal
        for statement in (
            f"CREATE TABLE IF NOT EXISTS row_segments_{n} (first_row INTEGER PRIMARY KEY, segment BLOB NOT NULL)",
            f"CREATE TABLE IF NOT EXISTS ends_{n} (row INTEGER PRIMARY KEY, end_ts INTEGER NOT NULL)",
            f"CREATE TABLE IF NOT EXISTS spans_{n} (first_row INTEGER PRIMARY KEY, last_row INTEGER NOT NULL,"
            " vectors INTEGER NOT NULL, payloads INTEGER NOT NULL)",
            f"CREATE TABLE IF NOT EXISTS postings_{n} (first_row INTEGER PRIMARY KEY, segment BLOB NOT NULL)",
        ):
            self.connection.execute(statement)
        self.connection.execute(
            "INSERT OR REPLACE INTO collections VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
            (
                n,
                stored.collection_id,
                stored.generation,
                stored.rows,
                stored.payload_bytes,
                stored.hnsw_file,
                stored.hnsw_rows,
                stored.hnsw_checksum,
                stored.ef,
                stored.measured_recall,
                stored.tuned_rows,
            ),
        )
        self.connection.execute("DELETE FROM recall_intervals WHERE ordinal = ?", (n,))
        if stored.recall_interval is not None:
            self.connection.execute("INSERT INTO recall_intervals VALUES (?, ?, ?)", (n, *stored.recall_interval))

    def drop_collection(self, ordinal: int) -> None:
        """Forget a collection and its tables, inside a transaction."""
        for table in ("rows", "row_segments", "ends", "postings", "spans"):
            self.connection.execute(f"DROP TABLE IF EXISTS {table}_{ordinal}")
        self.connection.execute("DELETE FROM recall_intervals WHERE ordinal = ?", (ordinal,))
        self.connection.execute("DELETE FROM collections WHERE ordinal = ?", (ordinal,))

    def load_rows(self, stored: StoredCollection) -> StoredRows:
        """All rows of a collection.

        Raises:
            CorruptionError: Rows are missing, or a segment is damaged.
        """
        count, ordinal = stored.rows, stored.ordinal
        rows = StoredRows(
            [],
            np.empty(count, np.int64),
            np.full(count, INFINITY_TS, np.int64),
            np.empty(count, np.int64),
            np.empty(count, np.int32),
        )
        with self._guard():
            if self._has(f"rows_{ordinal}"):
                self._load_version_1(ordinal, rows)
            if self._has(f"row_segments_{ordinal}"):
                self._load_segments(ordinal, rows)
        if len(rows.ids) != count:
            raise CorruptionError(
                f"{self._name} has {len(rows.ids)} rows of collection {stored.collection_id}, expected {count}",
                file=self._name,
            )
        return rows

    def _load_segments(self, ordinal: int, rows: StoredRows) -> None:
        found = self.connection.execute(f"SELECT first_row, segment FROM row_segments_{ordinal} ORDER BY first_row")
        for first, blob in found:
            try:
                segment = decode_segment(blob)
            except CorruptionError as error:
                raise CorruptionError(f"{self._name}, rows from {first}: {error.message}", file=self._name) from error
            last = first + len(segment.ids)
            if first != len(rows.ids) or last > len(rows.begin):
                raise CorruptionError(
                    f"{self._name} has rows {first} to {last} after {len(rows.ids)} of {len(rows.begin)}",
                    file=self._name,
                )
            rows.ids.extend(segment.ids)
            rows.begin[first:last], rows.offset[first:last] = segment.begin, segment.offset
            rows.size[first:last] = segment.size
        ended = self.connection.execute(f"SELECT row, end_ts FROM ends_{ordinal} WHERE row < ?", (len(rows.end),))
        for row, end in ended:
            rows.end[row] = end

    def _load_version_1(self, ordinal: int, rows: StoredRows) -> None:
        found = self.connection.execute(
            f"SELECT row, record_id, begin_ts, end_ts, offset, size FROM rows_{ordinal} ORDER BY row"
        )
        for row, record_id, begin, end, offset, size in found:
            if row != len(rows.ids) or row >= len(rows.begin):
                raise CorruptionError(f"{self._name} has row {row} after {len(rows.ids)} rows", file=self._name)
            rows.ids.append(record_id)
            rows.begin[row], rows.end[row], rows.offset[row], rows.size[row] = begin, end, offset, size

    def save_rows(self, ordinal: int, first_row: int, rows: StoredRows, ended: dict[int, int]) -> None:
        """Add rows from ``first_row`` on, and the ``end`` of older rows; inside a transaction."""
        self.connection.executemany(
            f"INSERT INTO row_segments_{ordinal} VALUES (?, ?)",
            ((first_row + place, segment) for place, segment in encode_segments(rows)),
        )
        places = np.flatnonzero(rows.end != INFINITY_TS)
        fresh = zip((places + first_row).tolist(), rows.end[places].tolist(), strict=True)
        self.connection.executemany(
            f"INSERT OR REPLACE INTO ends_{ordinal} VALUES (?, ?)", [*fresh, *ended.items()]
        )

    def load_spans(self, ordinal: int) -> list[Span]:
        """The checksums of the store files, span by span, in row order."""
        if not self._has(f"spans_{ordinal}"):  # written by a version that kept none
            return []
        with self._guard():
            found = self.connection.execute(f"SELECT * FROM spans_{ordinal} ORDER BY first_row")
            return [Span(*row) for row in found]

    def save_spans(self, ordinal: int, spans: Iterable[Span]) -> None:
        """Add the checksums of new rows, inside a transaction."""
        self.connection.executemany(f"INSERT INTO spans_{ordinal} VALUES (?, ?, ?, ?)", spans)

    def load_postings(self, ordinal: int) -> Iterator[bytes]:
        """The posting segments in row order."""
        with self._guard():
            yield from (
                row[0]
                for row in self.connection.execute(f"SELECT segment FROM postings_{ordinal} ORDER BY first_row")
            )

    def save_postings(self, ordinal: int, first_row: int, segment: bytes) -> None:
        """Add the postings of the rows from ``first_row`` on, inside a transaction."""
        self.connection.execute(f"INSERT INTO postings_{ordinal} VALUES (?, ?)", (first_row, segment))

    # -------------------------------------------------------------------------------------- transactions

    def load_prepared(self) -> list[bytes]:
        """The undecided PREPARE records."""
        with self._guard():
            return [row[0] for row in self.connection.execute("SELECT record FROM transactions ORDER BY txn_id")]

    def save_prepared(self, records: dict[str, bytes]) -> None:
        """Make the stored PREPAREs equal to ``records``, inside a transaction."""
        stored = {row[0] for row in self.connection.execute("SELECT txn_id FROM transactions")}
        self.connection.executemany(
            "DELETE FROM transactions WHERE txn_id = ?", ((txn_id,) for txn_id in stored - records.keys())
        )
        self.connection.executemany(
            "INSERT INTO transactions VALUES (?, ?)",
            ((txn_id, record) for txn_id, record in records.items() if txn_id not in stored),
        )

    def outcome(self, txn_id: str) -> Outcome | None:
        """How a transaction ended, if the last checkpoint knew it."""
        row = self._one(
            "SELECT ts, content_hash, count, decided_ms, unacknowledged FROM outcomes WHERE txn_id = ?", txn_id
        )
        return None if row is None else _outcome(row)

    def unacknowledged(self) -> dict[str, Outcome]:
        """Outcomes that participants have to be told of."""
        with self._guard():
            return {
                row[0]: _outcome(row[1:])
                for row in self.connection.execute(
                    "SELECT txn_id, ts, content_hash, count, decided_ms, unacknowledged FROM outcomes"
                    " WHERE unacknowledged != ''"
                )
            }

    def save_outcomes(self, outcomes: dict[str, Outcome], forget_before_ms: int) -> None:
        """Add outcomes and drop old ones that everybody has acknowledged, inside a transaction."""
        self.connection.executemany(
            "INSERT OR REPLACE INTO outcomes VALUES (?, ?, ?, ?, ?, ?)",
            (
                (txn_id, o.ts, o.content_hash, o.count, o.decided_ms, ",".join(map(str, sorted(o.unacknowledged))))
                for txn_id, o in outcomes.items()
            ),
        )
        self.connection.execute(
            "DELETE FROM outcomes WHERE decided_ms < ? AND unacknowledged = ''", (forget_before_ms,)
        )

    # --------------------------------------------------------------------------------------------- inside

    def _has(self, table: str) -> bool:
        return self._one("SELECT 1 FROM sqlite_master WHERE name = ?", table) is not None

    def _one(self, statement: str, *values: object) -> tuple[Any, ...] | None:
        with self._guard():
            row: tuple[Any, ...] | None = self.connection.execute(statement, values).fetchone()
            return row

    def _guard(self) -> AbstractContextManager[None]:
        return as_our_own(self._name)


def _outcome(row: tuple[Any, ...]) -> Outcome:
    ts, content_hash, count, decided_ms, waiting = row
    shards = frozenset(int(part) for part in str(waiting).split(",") if part)
    return Outcome(ts, content_hash, count, decided_ms, shards)
