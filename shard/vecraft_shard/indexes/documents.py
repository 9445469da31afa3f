"""Which rows match a ``where_document``: words and trigrams of texts, and the fields of JSON documents.

``$matches`` is answered by :mod:`~vecraft_shard.indexes.words`, exactly. For ``$contains``, texts of *settled* rows
(those in the last checkpoint) are in an FTS5 table that holds no copy of them, but every three characters in a row: it
yields candidates, which are then verified in the text. In a large collection only the rarest trigrams of what is
searched for are looked up, going by a sample of the texts, until few candidates are to be expected: the others would
cost more to look up than they spare in texts to look at. Trigrams are made by SQLite; it stops at NUL, which is
replaced before, in texts and in what is searched for. Query strings are made of quoted tokens only: text never becomes
syntax.

Texts of rows after those, and any text when a substring is shorter than three characters, are read and looked at. What
was found is kept per condition with the number of rows it holds for: rows never change, so only later rows are looked
at the next time.

The answer equals :func:`vecraft_data_model.filters.matches_document` row by row; a row without a document counts as
one. JSON documents are in a :class:`~vecraft_shard.indexes.metadata.MetadataIndex`, saved in segments beside the
tables.

``add``, ``restore`` and ``create_tables`` need the index to themselves; ``evaluate`` may run in many threads, and
``settle`` beside them.
"""

from __future__ import annotations

import sqlite3
import threading
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from heapq import nsmallest
from itertools import chain
from typing import Any, Final

import numpy as np

from vecraft_data_model.filters import (
    DocumentAnd,
    DocumentFilter,
    DocumentNot,
    DocumentOr,
    DocumentWhere,
    TextContains,
    TextMatches,
)
from vecraft_shard.indexes.metadata import MetadataIndex
from vecraft_shard.indexes.rowset import RowSet
from vecraft_shard.indexes.words import WordIndex
from vecraft_shard.sqlite_errors import DATABASE, as_our_own

_TRIGRAM: Final = 3
_TOKENS_ASKED: Final = 64
"""Some of a long condition's tokens narrow it down as well as all of them, which SQLite would refuse."""
_TEXTS_SAMPLED: Final = 256
_CHARS_SAMPLED: Final = 4096
_ROWS_PER_SAMPLED: Final = 16
"""A sample is taken from so many times as many rows; of fewer all trigrams are looked up, which costs little there."""
_CACHED_ANSWERS: Final = 64
_TEXTS_AT_ONCE: Final = 1024
_TextCondition = TextContains | TextMatches


class DocumentIndex:
    """The index of one collection's documents.

    Args:
        connection: The shard's SQLite connection, usable from all threads.
        ordinal: Number of the collection in table names.
        texts: Returns the text documents of rows, None for rows with another document or none.

    Attributes:
        settled: Texts of rows below are in the table of trigrams.
        json: The index of JSON documents.
        words: The index of the words of texts.
    """

    def __init__(
        self, connection: sqlite3.Connection, ordinal: int, texts: Callable[[Sequence[int]], list[str | None]]
    ) -> None:
        self.settled = 0
        self.json = MetadataIndex()
        self.words = WordIndex(connection, ordinal, texts)
        self._connection = connection
        self._texts = texts
        self._has_text = False
        """Whether there is a table of trigrams: no row below ``settled`` has a text until then."""
        self._trigrams = f"trigrams_{int(ordinal)}"
        self._segments = f"json_documents_{int(ordinal)}"
        self._answers: OrderedDict[_TextCondition, tuple[int, RowSet]] = OrderedDict()
        self._sample: tuple[int, Counter[str]] = (0, Counter())
        """Rows that the sample is of, and in how many of its texts each trigram is."""
        self._lock = threading.Lock()

    # ------------------------------------------------------------------------------------------- tables

    def create_tables(self) -> None:
        """Make the tables, empty, inside the caller's transaction; that of trigrams, which costs most, with a text."""
        self.drop_tables()
        self.words.create_tables()
        self._connection.execute(
            f"CREATE TABLE {self._segments} (first_row INTEGER PRIMARY KEY, segment BLOB NOT NULL)"
        )

    def drop_tables(self) -> None:
        """Remove the tables, inside the caller's transaction."""
        self.words.drop_tables()
        for table in (self._trigrams, self._segments):
            self._connection.execute(f"DROP TABLE IF EXISTS {table}")

    def index_text(self, first_row: int, texts: Sequence[str | None]) -> None:
        """Put the documents of the rows ``first_row …`` into the tables, inside the caller's transaction.

        Searches rely on them only after ``settle``, when the transaction is committed.

        Args:
            first_row: Not below the rows indexed before.
            texts: Text of each row, or None. JSON documents are known already, from ``add``.
        """
        if not texts:
            return
        rows = [(row, text) for row, text in enumerate(texts, first_row) if text]
        self.words.index_text(first_row, texts)
        if rows:
            self._connection.execute(
                f"CREATE VIRTUAL TABLE IF NOT EXISTS {self._trigrams} USING fts5"
                "(text, content='', columnsize=0, detail=none, tokenize='trigram case_sensitive 1')"
            )
            self._connection.executemany(
                f"INSERT INTO {self._trigrams} (rowid, text) VALUES (?, ?)",
                ((row, text.replace("\0", "\ufffd")) for row, text in rows),
            )
        segment = self.json.dump(first_row, first_row + len(texts))
        self._connection.execute(f"INSERT INTO {self._segments} VALUES (?, ?)", (first_row, segment))

    def settle(self, rows: int) -> None:
        """Texts of the rows below ``rows`` are in the tables from now on, committed."""
        self._has_text = self._has(self._trigrams)  # first: who reads `settled` next relies on it
        self.words.settle(rows)
        self.settled = rows

    def restore(self, rows: int) -> None:
        """Take up what the tables hold, of the rows below ``rows``, when a collection is opened.

        Raises:
            CorruptionError: A segment of JSON documents is damaged.
        """
        query = f"SELECT segment FROM {self._segments} WHERE first_row < ? ORDER BY first_row"
        known = self._has(self._segments)
        with as_our_own(DATABASE):
            segments = self._connection.execute(query, (rows,)).fetchall() if known else []
        for (segment,) in segments:
            self.json.load(segment)
        if known:
            self.settled = rows
            self._has_text = self._has(self._trigrams)
            self.words.restore(rows)

    # ------------------------------------------------------------------------------------------- writing

    def add(self, first_row: int, documents: Sequence[Mapping[str, Any] | None]) -> None:
        """Add the JSON documents of the rows ``first_row …``; None: a row without one, or with a text.

        Texts need nothing: they are read when asked about.
        """
        self.json.add(first_row, documents)

    # ----------------------------------------------------------------------------------------- answering

    def evaluate(self, where_document: DocumentFilter, n_rows: int) -> RowSet:
        """Return the rows below ``n_rows`` that match."""
        match where_document:
            case DocumentAnd(items):
                found = RowSet.full(n_rows) if not items else self.evaluate(items[0], n_rows)
                for item in items[1:]:
                    if not found.count:
                        break
                    found = found & self.evaluate(item, n_rows)
                return found
            case DocumentOr(items):
                found = RowSet.empty()
                for item in items:
                    found = found | self.evaluate(item, n_rows)
                return found
            case DocumentNot(item):
                return self.evaluate(item, n_rows).complement(n_rows)
            case DocumentWhere(where):
                return self.json.evaluate(where, n_rows)
            case TextContains() | TextMatches():
                return self._text(where_document, n_rows)

    def _text(self, condition: _TextCondition, n_rows: int) -> RowSet:
        with self._lock:
            known, found = self._answers.get(condition, (0, RowSet.empty()))
        if known > n_rows:
            return RowSet.of_rows(found.rows()[: int(np.searchsorted(found.rows(), n_rows))])
        if known == n_rows:
            return found
        if isinstance(condition, TextMatches):
            found = RowSet.of_rows(self.words.rows_with_all(condition.words, n_rows))
        else:
            parts = [found.rows()]
            settled = min(self.settled, n_rows)
            if known < settled:
                parts.append(self._search_table(condition.text, known, settled))
                known = settled
            if known < n_rows:
                parts.append(self._read(condition.text, np.arange(known, n_rows)))
            found = RowSet.of_rows(np.concatenate(parts))
        with self._lock:
            self._answers[condition] = (n_rows, found)
            self._answers.move_to_end(condition)
            if len(self._answers) > _CACHED_ANSWERS:
                self._answers.popitem(last=False)
        return found

    def _search_table(self, wanted: str, lo: int, hi: int) -> np.ndarray[Any, np.dtype[np.int64]]:
        """The rows ``[lo, hi)`` whose text holds a substring, by the table of trigrams."""
        text = wanted.replace("\0", "\ufffd")
        if len(text) < _TRIGRAM:
            return self._read(wanted, np.arange(lo, hi))
        rows = self._query(self._rarest(list(dict.fromkeys(_trigrams(text)))), lo, hi)
        if len(text) == _TRIGRAM and "\ufffd" not in text:
            return rows
        return self._read(wanted, rows)

    def _rarest(self, trigrams: Sequence[str]) -> Sequence[str]:
        """Return those of the trigrams that are to be looked up."""
        if self.settled < _TEXTS_SAMPLED * _ROWS_PER_SAMPLED:
            return trigrams[:: -(-len(trigrams) // _TOKENS_ASKED)]
        rows, counts = self._sample
        if rows * 2 <= self.settled:
            sampled = self._texts(range(0, self.settled, self.settled // _TEXTS_SAMPLED))
            counts = Counter(chain.from_iterable(set(_trigrams(text[:_CHARS_SAMPLED])) for text in sampled if text))
            self._sample = self.settled, counts
        chosen: list[str] = []
        expected = float(self.settled)
        for trigram in nsmallest(_TOKENS_ASKED, trigrams, key=counts.__getitem__):
            chosen.append(trigram)
            expected *= (counts[trigram] + 0.5) / _TEXTS_SAMPLED
            if expected < 1:
                break
        return chosen

    def _query(self, tokens: Sequence[str], lo: int, hi: int) -> np.ndarray[Any, np.dtype[np.int64]]:
        """The rows ``[lo, hi)`` that have all trigrams, ascending."""
        table = self._trigrams
        if not self._has_text:
            return np.empty(0, np.int64)
        quoted = " AND ".join('"' + token.replace('"', '""') + '"' for token in tokens)
        with as_our_own(DATABASE):
            found = self._connection.execute(
                f"SELECT rowid FROM {table} WHERE {table} MATCH ? AND rowid >= ? AND rowid < ? ORDER BY rowid",
                (quoted, lo, hi),
            ).fetchall()
        return np.fromiter((row for (row,) in found), np.int64, len(found))

    def _has(self, table: str) -> bool:
        with as_our_own(DATABASE):
            found = self._connection.execute("SELECT 1 FROM sqlite_master WHERE name = ?", (table,))
            return found.fetchone() is not None

    def _read(self, wanted: str, rows: np.ndarray[Any, np.dtype[np.int64]]) -> np.ndarray[Any, np.dtype[np.int64]]:
        """Those of ``rows`` whose text holds a substring, by reading it."""
        kept: list[int] = []
        for first in range(0, len(rows), _TEXTS_AT_ONCE):
            part = rows[first : first + _TEXTS_AT_ONCE].tolist()
            texts = zip(part, self._texts(part), strict=True)
            kept += [row for row, text in texts if text is not None and wanted in text]
        return np.array(kept, np.int64)


def _trigrams(text: str) -> Iterator[str]:
    return (text[i : i + _TRIGRAM] for i in range(len(text) - _TRIGRAM + 1))
