"""SQLite's errors as ours: nobody above this room has to know which library failed."""

from __future__ import annotations

import errno
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager

from vecraft_data_model.errors import CorruptionError, StorageFailureException, StorageFullError

DATABASE = "shard.sqlite"
"""The one SQLite file of a shard."""


@contextmanager
def as_our_own(name: str) -> Iterator[None]:
    """Turn what SQLite raises while it works on the file ``name`` into an error that names it.

    Raises:
        StorageFullError: The disk is full; the transaction that met this is to be rolled back.
        StorageFailureException: The disk failed, or another process holds the file.
        CorruptionError: SQLite cannot read what is there.
    """
    try:
        yield
    except sqlite3.OperationalError as error:
        if getattr(error, "sqlite_errorcode", None) == sqlite3.SQLITE_FULL:
            raise StorageFullError(f"{name}: SQLite found the disk full", file=name, errno=errno.ENOSPC) from error
        if not hasattr(error, "sqlite_errorcode"):  # said by Python: SQLite gave it a text that is not UTF-8
            raise CorruptionError(f"{name}: SQLite cannot read it: {error}", file=name) from error
        raise StorageFailureException(f"{name}: SQLite failed: {error}", file=name) from error
    except (sqlite3.Error, UnicodeDecodeError) as error:  # the latter of a column's name
        raise CorruptionError(f"{name}: SQLite cannot read it: {error}", file=name) from error
