"""Scans: records in id order, page by page, all at one snapshot.

:class:`ScanPager` is the part without input or output: it makes the flow for the next page and the cursor for where
things stand. The iterators run those flows. A scan that needs more than one page pins its snapshot for as long as it
goes on, so that history it still needs is not reclaimed; an iterator that is dropped half way lets the lease run out.

A cursor is good for as long as its snapshot's history is kept (``history_retention_s``); it is not a lease.
"""

from __future__ import annotations

import hashlib
from collections import deque
from collections.abc import AsyncIterator, Iterable, Iterator
from typing import Any

import msgspec

from vecraft_data_model.convert import packets_of_rows
from vecraft_data_model.errors import InvalidDataException
from vecraft_data_model.packets import DataPacket
from vecraft_data_model.scan_options import ScanOptions
from vecraft_data_model.schema import validate_name
from vecraft_data_model.search_options import check_include
from vecraft_data_model.validation import check_limit, check_timeout
from vecraft_db.client.engine import Engine, Flow, FlowRouter
from vecraft_db.client.operations import parse_document_filter, parse_filter
from vecraft_router.gateway.cursors import Cursor, seal, unseal
from vecraft_router.options import ReadOptions
from vecraft_router.session import SessionTokens

PAGE_ROWS = 1000
PIN_TTL_MS = 60_000


class ScanPager:
    """One scan: which page is next, and where it stands.

    Args:
        router: Makes the flows.
        tokens: Seals cursors.
        options: How the snapshot is chosen, unless a cursor brings it.
        timeout: Seconds for each page.
        pinned: Whether somebody else holds the snapshot already.
    """

    def __init__(
        self,
        router: FlowRouter,
        tokens: SessionTokens,
        collection: str,
        where: Any,
        where_document: Any,
        include: Iterable[str],
        limit: int | None,
        cursor: str | None,
        options: ReadOptions,
        *,
        timeout: float | None = None,
        pinned: bool = False,
    ) -> None:
        self._timeout = check_timeout(timeout)
        self._router = router
        self._tokens = tokens
        self._collection = validate_name(collection)
        self._parts = check_include(include)
        self._page = ScanOptions(
            where=parse_filter(where),
            where_document=parse_document_filter(where_document),
            with_vectors="vector" in self._parts,
        )
        self._filters = _digest(self._page.where, self._page.where_document)
        self._remaining = check_limit(limit)
        self._options = options
        self._pinned = pinned
        self._pin_id: str | None = None
        self._after: str | None = None
        self.snapshot: int | None = None
        self.more = True
        if cursor is not None:
            place = unseal(cursor, self._collection, self._filters, tokens)
            self._after, self.snapshot = place.after, place.snapshot

    def next_page(self) -> Flow[list[DataPacket]]:
        """Read the next page; an empty one is the last."""
        if not self.more or self._remaining == 0:
            return []
        rows = PAGE_ROWS if self._remaining is None else min(PAGE_ROWS, self._remaining)
        deadline = None if self._timeout is None else self._router.deadline(self._timeout)
        if self.snapshot is None:
            options = msgspec.structs.replace(self._options, deadline=deadline)
        else:
            options = ReadOptions(as_of=self.snapshot, deadline=deadline)
        page = msgspec.structs.replace(self._page, after=self._after, limit=rows)
        reply = yield from self._router.scan_page(self._collection, page, options)
        if self.snapshot not in (None, reply.snapshot):
            raise InvalidDataException(
                f"this cursor goes on at snapshot {self.snapshot}, but this view reads at {reply.snapshot}"
            )
        self.snapshot = reply.snapshot
        self.more = reply.more
        if reply.rows.ids:
            self._after = reply.rows.ids[-1]
        if self._remaining is not None:
            self._remaining -= len(reply.rows.ids)
        if self.more and self._remaining != 0 and not self._pinned:
            pin = yield from self._router.pin(self.snapshot, ttl_ms=PIN_TTL_MS, pin_id=self._pin_id)
            self._pin_id = pin.pin_id
        elif self._pin_id is not None:
            yield from self.finish()
        return self._cut_down(packets_of_rows(reply.rows))

    def _cut_down(self, packets: list[DataPacket]) -> list[DataPacket]:
        """Drop the parts that were not asked for; a packet that lacks any cannot prove its checksum any more."""
        for part in ("metadata", "document"):
            if part not in self._parts:
                for packet in packets:
                    setattr(packet, part, None)
        return packets

    def finish(self) -> Flow[None]:
        """Let go of the snapshot."""
        pin_id, self._pin_id = self._pin_id, None
        if pin_id is not None:
            yield from self._router.release(pin_id)

    def cursor_after(self, record_id: str) -> str:
        """Return the cursor that goes on behind a record of this scan."""
        return seal(Cursor(self._collection, self.snapshot or 0, record_id, self._filters), self._tokens)


class _Position:
    """What both iterators share: the page at hand, and the cursor."""

    def __init__(self, pager: ScanPager) -> None:
        self._pager = pager
        self._page: deque[DataPacket] = deque()
        self._last: str | None = None
        self._closed = False

    @property
    def snapshot(self) -> int | None:
        """The timestamp that is read at; None before the first record was asked for."""
        return self._pager.snapshot

    @property
    def cursor(self) -> str | None:
        """Where to go on behind the last record that was handed out; None when there is nothing behind it.

        A scan that was closed early still knows.
        """
        if self._last is None or not (self._page or self._pager.more):
            return None
        return self._pager.cursor_after(self._last)

    def _take(self) -> DataPacket:
        packet = self._page.popleft()
        self._last = packet.record_id
        return packet


class Scan(_Position, Iterator[DataPacket]):
    """The records of a scan. ``close()`` ends it early; reading it to the end does so too."""

    def __init__(self, engine: Engine, pager: ScanPager) -> None:
        super().__init__(pager)
        self._engine = engine

    def __next__(self) -> DataPacket:
        if self._closed:
            raise StopIteration
        if not self._page:
            self._page.extend(self._engine.run(self._pager.next_page()))
            if not self._page:
                raise StopIteration
        return self._take()

    def close(self) -> None:
        """Let go of the snapshot. There are no further records."""
        self._closed = True
        self._engine.run(self._pager.finish())


class AsyncScan(_Position, AsyncIterator[DataPacket]):
    """As :class:`Scan`, awaitable."""

    def __init__(self, engine: Engine, pager: ScanPager) -> None:
        super().__init__(pager)
        self._engine = engine

    async def __anext__(self) -> DataPacket:
        if self._closed:
            raise StopAsyncIteration
        if not self._page:
            self._page.extend(await self._engine.run_async(self._pager.next_page()))
            if not self._page:
                raise StopAsyncIteration
        return self._take()

    async def close(self) -> None:
        """As :meth:`Scan.close`."""
        self._closed = True
        await self._engine.run_async(self._pager.finish())


def _digest(where: Any, where_document: Any) -> bytes:
    if where is None and where_document is None:
        return b""
    return hashlib.sha256(repr((where, where_document)).encode()).digest()[:16]


__all__ = ["AsyncScan", "Scan", "ScanPager"]
