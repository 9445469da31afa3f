"""Import and export of whole files, through any client.

An import is atomic: all records of the file become visible at one commit, or none does. A file too large for one
transaction is imported in batches (``batch_size``), each atomic by itself. Either way an import can be resumed: a small
journal beside the file says which batches are committed and under which transaction id the next one was sent. Run again
after a crash or a lost connection, the import skips what is committed and retries that one under the same id, so that
it is not applied twice. An id whose transaction was aborted is spent: the batch gets another one. The journal goes away
when the import is complete; a file that changed meanwhile is imported from its beginning.

An export reads one snapshot from first to last record, and the file gets its name only when it is complete.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from vecraft_data_model.errors import InvalidDataException, VecraftError, WriteConflictException
from vecraft_data_model.validation import new_txn_id, txn_created_ms
from vecraft_db.bulk_formats import Columns, Source
from vecraft_db.bulk_writer import Writer
from vecraft_db.client.operations import backoff_s

Progress = Callable[[int, int], None]
"""Called with how many records are done, of how many."""

EXPORT_BLOCK = 1000
LOCKED_MAX = 20
"""How often one batch may meet somebody's locks before the import gives up."""
# Shards remember a transaction's outcome for an hour: a retry under an id older than this gets a fresh one.
RETRY_AGE_MS_MAX = 30 * 60 * 1000


class Journal(msgspec.Struct):
    """What an import has reached.

    Attributes:
        collection: Where it goes.
        fingerprint: SHA-256 of the file.
        batch_size: Records per transaction.
        committed: Records committed.
        txn_id: Under which the next batch was sent, or is about to be.
    """

    collection: str
    fingerprint: str
    batch_size: int
    committed: int
    txn_id: str


@dataclass(frozen=True)
class ImportResult:
    """Records written by this run, records an earlier run had written, and the last commit's timestamp."""

    written: int
    skipped: int
    commit_ts: int | None


def import_records(
    client: Any,
    collection: str,
    source: Source,
    *,
    batch_size: int | None = None,
    journal_path: Path | None = None,
    progress: Progress = lambda done, total: None,
    timeout: float | None = None,
) -> ImportResult:
    """Insert or replace all records of a file.

    Args:
        client: A :class:`VecraftClient`, of any kind.
        collection: Its name.
        source: The file.
        batch_size: Records per transaction, ≥ 1; ``None`` commits all at once.
        journal_path: Where to keep the journal; beside the file by default.
        progress: Told after each batch.
        timeout: Seconds for each transaction.

    Raises:
        InvalidDataException: The file, or a record in it, is not acceptable; earlier batches stay.
        VecraftError: Whatever the database says; run again to go on.
    """
    if batch_size is not None and (isinstance(batch_size, bool) or batch_size < 1):
        raise InvalidDataException(f"batch_size must be at least 1, got {batch_size!r}")
    size = batch_size or max(1, source.rows)
    path = journal_path or source.path.with_name(f".{source.path.name}.vecraft-import")
    fresh = Journal(collection, _fingerprint(source), size, 0, new_txn_id())
    journal = _read_journal(path, fresh)
    skipped = journal.committed
    progress(skipped, source.rows)

    commit_ts: int | None = None
    _write_journal(path, journal)
    for block in source.blocks(size, skipped):
        commit_ts = _write_block(client, block, journal, path, timeout)
        journal.committed += len(block.ids)
        journal.txn_id = new_txn_id()
        _write_journal(path, journal)
        progress(journal.committed, source.rows)
    path.unlink(missing_ok=True)
    return ImportResult(journal.committed - skipped, skipped, commit_ts)


def _write_block(client: Any, block: Columns, journal: Journal, path: Path, timeout: float | None) -> int:
    """Write one batch under the journal's id, or under another one if that comes to nothing; return the timestamp."""
    attempt = 0
    while True:
        try:
            result = client.upsert(
                journal.collection,
                ids=block.ids,
                vectors=block.vectors,
                metadatas=block.metadatas if any(value is not None for value in block.metadatas) else None,
                documents=block.documents if any(value is not None for value in block.documents) else None,
                txn_id=journal.txn_id,
                **({} if timeout is None else {"timeout": timeout}),
            )
        except VecraftError as error:
            if error.details.get("outcome") != "aborted":
                raise
            journal.txn_id = new_txn_id()
            _write_journal(path, journal)
            attempt += 1
            # Blind writes have no conflicts: somebody held a lock for too long.
            if not isinstance(error, WriteConflictException) or attempt >= LOCKED_MAX:
                raise
            time.sleep(backoff_s(attempt))
        else:
            return int(result.commit_ts)


def _fingerprint(source: Source) -> str:
    digest = hashlib.sha256()
    for path in (source.path, source.records):
        if path is not None:
            with open(path, "rb") as file:
                digest.update(hashlib.file_digest(file, "sha256").digest())
    digest.update(repr(source.fields).encode())
    return digest.hexdigest()


def _read_journal(path: Path, fresh: Journal) -> Journal:
    """Return the journal at ``path`` if it belongs to this import, else ``fresh``."""
    try:
        found = msgspec.json.decode(path.read_bytes(), type=Journal)
    except FileNotFoundError:
        return fresh
    except msgspec.MsgspecError as error:
        raise InvalidDataException(
            f"the import journal {str(path)!r} is damaged ({error}); remove it to import from the beginning"
        ) from error
    if (found.collection, found.fingerprint) != (fresh.collection, fresh.fingerprint):
        return fresh
    if found.batch_size != fresh.batch_size:
        raise InvalidDataException(
            f"this import was begun with batches of {found.batch_size}, not {fresh.batch_size}: "
            f"use the same, or remove {str(path)!r} to begin anew"
        )
    created = txn_created_ms(found.txn_id)
    if created is None or time.time() * 1000 - created > RETRY_AGE_MS_MAX:
        found.txn_id = fresh.txn_id  # records replace themselves: sent again, they are the same
    return found


def _write_journal(path: Path, journal: Journal) -> None:
    partial = path.with_name(path.name + ".partial")
    try:
        partial.write_bytes(msgspec.json.encode(journal))
        partial.replace(path)
    except OSError as error:
        raise VecraftError(
            f"cannot write the import journal {str(path)!r} ({error.strerror}): name another place for it"
        ) from error


def export_records(
    client: Any,
    collection: str,
    path: Path,
    *,
    where: dict[str, Any] | None = None,
    where_document: dict[str, Any] | None = None,
    progress: Progress = lambda done, total: None,
) -> tuple[int, list[Path]]:
    """Write the records of a collection that match, in id order, at one snapshot.

    Returns:
        How many records, and the files written.

    Raises:
        InvalidDataException: The file's name does not tell a format, or a filter is wrong.
    """
    with client.snapshot() as snapshot:
        total = int(snapshot.count(collection, where=where, where_document=where_document))
        dim = int(client.describe_collection(collection).schema.dim)
        writer = Writer(path, total, dim)
        try:
            done = 0
            records = snapshot.scan(
                collection, where=where, where_document=where_document, include=("vector", "metadata", "document")
            )
            for block in _blocks(records, dim):
                writer.write(block.ids, block.vectors, block.metadatas, block.documents)
                done += len(block.ids)
                progress(done, total)
            return done, writer.finish()
        except BaseException:
            writer.discard()
            raise


def _blocks(records: Iterator[Any], dim: int) -> Iterator[Columns]:
    while taken := list(islice(records, EXPORT_BLOCK)):
        vectors = np.empty((len(taken), dim), np.float32)
        for i, packet in enumerate(taken):
            vectors[i] = packet.vector.to_numpy()
        yield Columns(
            [packet.record_id for packet in taken],
            vectors,
            [packet.metadata for packet in taken],
            [packet.document for packet in taken],
        )
