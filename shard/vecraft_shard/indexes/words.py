"""Which text documents have a word, and how often: postings of words, for ``$matches`` and for ranking by BM25.

Words of *settled* rows (those in the last checkpoint) are in two tables, one segment per checkpoint::

    terms_<n>         word, first row of the segment → the rows that have it, and how often each has it
    text_lengths_<n>  first row of the segment → words of each of its rows (0: no text, or one without words)

Numbers are little-endian, after a byte that says how many bytes each of them has: 1, 2 or 4. Rows are the distances
from one to the next, the first from the segment's first row. How often is empty where it is once in each; a segment
without words has no lengths.

Rows after those are read and counted in memory when they are first asked about, each once. So are the postings of
words asked about lately, in a small room: the commonest words are in most questions, and have the longest postings.

What a word is, :func:`vecraft_data_model.filters.words` says. Rows never change, and what is said here holds for all of
them; whether a snapshot sees them is the caller's business.

Any number of threads may ask; ``create_tables``, ``drop_tables`` and ``index_text`` are for the one that makes
checkpoints.
"""

from __future__ import annotations

import sqlite3
import threading
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterator, Sequence
from itertools import chain, repeat

import numpy as np
import numpy.typing as npt

from vecraft_data_model.filters import words
from vecraft_shard.indexes.columns import GrowingArray
from vecraft_shard.sqlite_errors import DATABASE, as_our_own

Int64Array = npt.NDArray[np.int64]

_Postings = tuple[Int64Array, Int64Array]
"""Rows, and a number for each."""

_NOTHING: _Postings = (np.empty(0, np.int64), np.empty(0, np.int64))
_TEXTS_AT_ONCE = 1024
_KEPT_MIN = 1 << 17
"""Of the words asked about last, so many entries stay in memory (16 bytes each), or half as many as there are rows."""
_WORD_SIZE = 32
"""A word counts as so many entries besides."""
_WIDTHS = {width: bytes([width]) for width in (1, 2, 4)}


class WordIndex:
    """The words of one collection's text documents.

    Args:
        connection: The shard's SQLite connection, usable from all threads.
        ordinal: Number of the collection in table names.
        texts: Returns the text documents of rows, None for rows with another document or none.

    Attributes:
        settled: Words of rows below are in the tables, committed.
    """

    def __init__(
        self, connection: sqlite3.Connection, ordinal: int, texts: Callable[[Sequence[int]], list[str | None]]
    ) -> None:
        self.settled = 0
        self._connection = connection
        self._texts = texts
        self._terms = f"terms_{int(ordinal)}"
        self._lengths = f"text_lengths_{int(ordinal)}"
        self._before = f"words_{int(ordinal)}"  # what files of an earlier state of this format have instead
        self._known_lengths = GrowingArray(np.uint32)
        self._known_totals = (0, 0, 0)
        """Of so many rows: see :meth:`totals`."""
        self._fresh = _Fresh(0)
        self._kept: OrderedDict[str, _Postings] = OrderedDict()
        self._kept_size = 0
        self._lock = threading.Lock()

    # ------------------------------------------------------------------------------------------- tables

    def create_tables(self) -> None:
        """Make the tables, empty, inside the caller's transaction."""
        self.drop_tables()
        self._connection.execute(
            f"CREATE TABLE {self._terms} (word TEXT NOT NULL, first_row INTEGER NOT NULL, rows BLOB NOT NULL,"
            " counts BLOB NOT NULL, PRIMARY KEY (word, first_row)) WITHOUT ROWID"
        )
        self._connection.execute(
            f"CREATE TABLE {self._lengths} (first_row INTEGER PRIMARY KEY, lengths BLOB NOT NULL)"
        )

    def drop_tables(self) -> None:
        """Remove the tables, inside the caller's transaction."""
        for table in (self._terms, self._lengths, self._before):
            self._connection.execute(f"DROP TABLE IF EXISTS {table}")

    def index_text(self, first_row: int, texts: Sequence[str | None]) -> None:
        """Put the words of the rows ``first_row …`` into the tables, inside the caller's transaction."""
        if not self._has_tables():
            self.create_tables()
            texts = [*self._texts(range(first_row)), *texts]
            first_row = 0
        counted = [words(text) if text else [] for text in texts]
        lengths = np.fromiter(map(len, counted), np.int64, len(counted))
        flat = list(chain.from_iterable(counted))
        vocabulary = sorted(set(flat))
        codes = dict(zip(vocabulary, range(len(vocabulary)), strict=True))
        places = np.fromiter(map(codes.__getitem__, flat), np.int64, len(flat)) * len(texts)
        places += np.repeat(np.arange(len(texts)), lengths)
        entries, counts = np.unique(places, return_counts=True)
        owners, rows = np.divmod(entries, max(len(texts), 1))
        bounds = np.searchsorted(owners, np.arange(len(codes) + 1))
        self._connection.executemany(
            f"INSERT INTO {self._terms} VALUES (?, ?, ?, ?)",
            zip(vocabulary, repeat(first_row), _packed_rows(rows, bounds), _packed_counts(counts, bounds)),
        )
        if flat:
            (packed,) = _packed(lengths, np.array([0, len(lengths)]))
            self._connection.execute(f"INSERT INTO {self._lengths} VALUES (?, ?)", (first_row, packed))

    def settle(self, rows: int) -> None:
        """Words of the rows below ``rows`` are in the tables from now on, committed."""
        with self._lock:
            self.settled = rows
            self._fresh = _Fresh(rows)
            self._kept.clear()
            self._kept_size = 0

    def restore(self, rows: int) -> None:
        """Take up what the tables hold, of the rows below ``rows``, when a collection is opened."""
        if self._has_tables():
            self.settle(rows)

    def _has_tables(self) -> bool:
        with as_our_own(DATABASE):
            found = self._connection.execute("SELECT 1 FROM sqlite_master WHERE name = ?", (self._lengths,))
            return found.fetchone() is not None

    # ----------------------------------------------------------------------------------------- answering

    def postings(self, word: str, n_rows: int) -> _Postings:
        """Return the rows below ``n_rows`` that have a word, ascending, and how often each has it.

        What is returned may be shared: it is not to be changed.
        """
        with self._lock:
            settled, kept = self.settled, self._kept.get(word)
            if kept is not None:
                self._kept.move_to_end(word)
            fresh = self._up_to(n_rows).postings.get(word)
        rows, counts = self._read(word, settled) if kept is None else kept
        if fresh is not None:
            rows = np.concatenate((rows, np.array(fresh[0], np.int64)))
            counts = np.concatenate((counts, np.array(fresh[1], np.int64)))
        if len(rows) and rows[-1] >= n_rows:
            size = int(np.searchsorted(rows, n_rows))
            rows, counts = rows[:size], counts[:size]
        return rows, counts

    def _read(self, word: str, settled: int) -> _Postings:
        """Return what the tables hold of a word, and keep it until they grow, if there is room."""
        if not settled:
            return _NOTHING
        with as_our_own(DATABASE):
            stored = self._connection.execute(
                f"SELECT first_row, rows, counts FROM {self._terms} WHERE word = ? AND first_row < ?"
                " ORDER BY first_row",
                (word, settled),
            ).fetchall()
        parts = []
        for first_row, packed_rows, packed_counts in stored:
            found = first_row + np.cumsum(_unpacked(packed_rows))
            parts.append((found, _unpacked(packed_counts) if packed_counts else np.ones(len(found), np.int64)))
        rows, counts = parts[0] if len(parts) == 1 else map(np.concatenate, zip(*(parts or [_NOTHING]), strict=True))
        with self._lock:
            if self.settled == settled and word not in self._kept:
                self._kept[word] = rows, counts
                self._kept_size += _WORD_SIZE + len(rows)
                while self._kept_size > max(_KEPT_MIN, settled // 2):
                    self._kept_size -= _WORD_SIZE + len(self._kept.popitem(last=False)[1][0])
        return rows, counts

    def rows_with_all(self, wanted: Sequence[str], n_rows: int) -> Int64Array:
        """Return the rows below ``n_rows`` that have every one of the words, ascending."""
        rows, _ = self.postings(wanted[0], n_rows)
        for word in wanted[1:]:
            if not len(rows):
                break
            rows = np.intersect1d(rows, self.postings(word, n_rows)[0], assume_unique=True)
        return rows

    def lengths(self, n_rows: int) -> npt.NDArray[np.uint32]:
        """Return the number of words of each row below ``n_rows``; 0: no text, or no words. Not to be changed."""
        with self._lock:
            fresh = self._up_to(n_rows)
            if self._known_lengths.size < self.settled:
                self._load_lengths()
            known = self._known_lengths.array[: self.settled]
            if n_rows > self.settled:
                known = np.concatenate((known, np.array(fresh.lengths, np.uint32)))
            return known[:n_rows]

    def totals(self, n_rows: int) -> tuple[int, int]:
        """Return how many rows below ``n_rows`` have a word, and how many words they have together."""
        known = self._known_totals
        if known[0] != n_rows:
            lengths = self.lengths(n_rows)
            known = self._known_totals = n_rows, int(np.count_nonzero(lengths)), int(lengths.sum(dtype=np.int64))
        return known[1:]

    def _load_lengths(self) -> None:
        known = self._known_lengths
        with as_our_own(DATABASE):
            segments = self._connection.execute(
                f"SELECT first_row, lengths FROM {self._lengths} WHERE first_row >= ? AND first_row < ?"
                " ORDER BY first_row",
                (known.size, self.settled),
            ).fetchall()
        for first_row, packed in segments:
            known.extend(np.zeros(first_row - known.size, np.uint32))
            known.extend(_unpacked(packed))
        known.extend(np.zeros(self.settled - known.size, np.uint32))

    def _up_to(self, n_rows: int) -> _Fresh:
        """Count the rows that are neither in the tables nor counted yet. The lock is held."""
        fresh = self._fresh
        for first in range(fresh.rows, n_rows, _TEXTS_AT_ONCE):
            fresh.add(self._texts(range(first, min(first + _TEXTS_AT_ONCE, n_rows))))
        return fresh


class _Fresh:
    """The words of rows that are not settled, from ``first_row`` on."""

    def __init__(self, first_row: int) -> None:
        self.rows = first_row
        """Rows below are counted."""
        self.lengths: list[int] = []
        self.postings: dict[str, tuple[list[int], list[int]]] = {}

    def add(self, texts: Sequence[str | None]) -> None:
        """Count the documents of the next rows."""
        for row, text in enumerate(texts, self.rows):
            found = words(text) if text else []
            self.lengths.append(len(found))
            for word, count in Counter(found).items():
                rows, counts = self.postings.setdefault(word, ([], []))
                rows.append(row)
                counts.append(count)
        self.rows += len(texts)


def _packed_rows(rows: Int64Array, bounds: Int64Array) -> Iterator[bytes]:
    """Pack the rows of each word as distances."""
    steps = np.diff(rows, prepend=0)
    first = bounds[:-1]
    steps[first] = rows[first]
    return _packed(steps, bounds)


def _packed_counts(counts: Int64Array, bounds: Int64Array) -> Iterator[bytes]:
    once = np.bincount(np.repeat(np.arange(len(bounds) - 1), np.diff(bounds)), counts > 1) == 0
    return (b"" if never else packed for never, packed in zip(once.tolist(), _packed(counts, bounds), strict=True))


def _packed(numbers: npt.NDArray[np.integer], bounds: Int64Array) -> Iterator[bytes]:
    """Pack the numbers between each two bounds, in as few bytes each as the largest of them needs."""
    if not len(numbers):
        return
    forms = {width: numbers.astype(f"<u{width}").tobytes() for width in _WIDTHS}
    largest = np.maximum.reduceat(numbers, bounds[:-1])
    widths = np.where(largest < 1 << 8, 1, np.where(largest < 1 << 16, 2, 4))
    for width, lo, hi in zip(widths.tolist(), bounds[:-1].tolist(), bounds[1:].tolist(), strict=True):
        yield _WIDTHS[width] + forms[width][lo * width : hi * width]


def _unpacked(packed: bytes) -> Int64Array:
    return np.frombuffer(packed, f"<u{packed[0]}", offset=1).astype(np.int64)
