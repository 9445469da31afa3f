"""What the store files held at the last checkpoint, checksummed in spans of rows, and which records do not match.

A record's own digest covers its payload and its vector, but is looked at only when the record is read. An exact search
looks at every vector and reads the records of the winners only; a full-text condition looks at every text. So that
neither can be misled by a damaged record that it does not return, each checkpoint keeps two checksums for every span of
up to ``SPAN_ROWS`` rows (XXH3-64 without its highest bit, so that SQLite can hold it)::

    vectors    of the span's bytes in the vector column     checked when the collection is opened
    payloads   of the span's bytes in the payload log       checked before the first text of the span is looked at

Where a span does not match, the digests of its records say which of them are damaged. The collection stays open:
everything else can be read and written. A search, or a full-text condition, is refused for as long as its snapshot sees
a damaged record; replacing or deleting the record heals the collection.

It deliberately does not watch for damage after that: while the collection is open, records are checked as they are
read.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import xxhash

from vecraft_data_model.errors import ChecksumValidationFailureError, CorruptionError
from vecraft_data_model.payload import verify_payload
from vecraft_shard.store import PayloadLog, VectorColumn
from vecraft_shard.versions import VersionTable

SPAN_ROWS = 4096


class Span(NamedTuple):
    """The checksums of the rows ``[first, last)``."""

    first: int
    last: int
    vectors: int
    payloads: int


class Integrity:
    """The integrity of one collection's store files.

    Attributes:
        vectors: Rows whose vector is damaged, with what to say of them.
        payloads: Rows whose payload is, as far as it was looked at.
    """

    def __init__(self, column: VectorColumn, payloads: PayloadLog, versions: VersionTable) -> None:
        self.vectors: dict[int, str] = {}
        self.payloads: dict[int, str] = {}
        self._column = column
        self._log = payloads
        self._versions = versions
        self._unread: list[Span] = []  # spans whose payloads nobody has looked at since the collection was opened
        self._lock = threading.Lock()

    def spans_of(self, first: int, last: int) -> list[Span]:
        """Return the checksums of the rows ``[first, last)``, which do not change any more."""
        found = []
        for lo in range(first, last, SPAN_ROWS):
            hi = min(last, lo + SPAN_ROWS)
            found.append(Span(lo, hi, _digest(self._column.view(lo, hi)), self._payload_digest(lo, hi)))
        return found

    def check_vectors(self, spans: Sequence[Span]) -> Iterator[tuple[int, int]]:
        """Check the vectors of a collection that is being opened, span by span.

        Args:
            spans: What the last checkpoint knows, ascending. Rows that it knows nothing of pass.

        Yields:
            The rows looked at, as ``(first, last)``; together they are all.
        """
        self._unread = list(spans)
        at = 0
        for span in spans:
            if at < span.first:
                yield at, span.first
            if _digest(self._column.view(span.first, span.last)) != span.vectors:
                self.vectors |= self.damaged(range(span.first, span.last))
            at = span.last
            yield span.first, span.last
        rows = self._versions.rows
        for first in range(at, rows, SPAN_ROWS):
            yield first, min(rows, first + SPAN_ROWS)

    def check_payloads(self, rows: Sequence[int]) -> None:
        """Check the payloads of the spans that ``rows`` (ascending) lie in, unless that was done."""
        if not self._unread or not len(rows):
            return
        with self._lock:
            index, left = np.asarray(rows, np.int64), []
            for span in self._unread:
                lo, hi = np.searchsorted(index, (span.first, span.last))
                if lo == hi:
                    left.append(span)
                elif self._payload_digest(span.first, span.last) != span.payloads:
                    self.payloads |= self.damaged(range(span.first, span.last))
            self._unread = left

    def damaged(self, rows: Sequence[int]) -> dict[int, str]:
        """Compare records with their digests. Returns the rows that do not match, with what to say of them."""
        versions, found = self._versions, {}
        for row in rows:
            try:
                payload = self._log.read(int(versions.offset[row]), int(versions.size[row]))
                vector = np.ascontiguousarray(self._column.view(row, row + 1)[0], np.float32)
                verify_payload(payload, vector)
            except (ChecksumValidationFailureError, CorruptionError) as error:
                found[row] = (
                    f"record {versions.ids[row]!r} is damaged, in {self._column.name} or {self._log.name}: "
                    f"{error.message}"
                )
        return found

    def raise_damaged(self, rows: Sequence[int]) -> None:
        """Raise the error of the first of ``rows`` that is damaged, if one is.

        Raises:
            ChecksumValidationFailureError: Names the record and the files.
        """
        for row, message in self.damaged(rows).items():
            raise ChecksumValidationFailureError(message, record_id=self._versions.ids[row], file=self._log.name)

    def refuse_vectors(self, snapshot: int) -> None:
        """Raise what stands against a search at ``snapshot``: a damaged vector that it would have to look at."""
        self._refuse(self.vectors, snapshot)

    def refuse_texts(self, snapshot: int) -> None:
        """Raise what stands against a full-text condition at ``snapshot`` that was just evaluated."""
        self._refuse(self.payloads, snapshot)

    def _refuse(self, damaged: dict[int, str], snapshot: int) -> None:
        versions = self._versions
        for row, message in list(damaged.items()):
            if versions.begin[row] <= snapshot < versions.end[row]:
                raise ChecksumValidationFailureError(
                    f"{message}; until it is replaced (upsert) or deleted (delete_many), what would have to look at it "
                    "is refused",
                    record_id=versions.ids[row],
                )

    def _payload_digest(self, first: int, last: int) -> int:
        # Payloads lie one after the other, in the order of the rows.
        versions = self._versions
        start = int(versions.offset[first])
        return _digest(self._log.view(start, int(versions.offset[last - 1]) + int(versions.size[last - 1])))


def _digest(data: Any) -> int:
    """Checksum of an array or a view that is contiguous."""
    return xxhash.xxh3_64_intdigest(data) & (2**63 - 1)
