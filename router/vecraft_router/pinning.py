"""Keeping the history of a snapshot from being reclaimed for as long as somebody reads at it.

A pin is a lease: shards forget it :data:`PIN_TTL_MS` after they last heard of it, so that nobody who dies holds history
back for long. It is made and renewed by calls of whoever reads, when it is due; nothing runs in between. So a reader
that is silent for longer than that has only what the shards keep for everybody (``history_retention_s``).

Shards hold pins in memory: one that was started again does not know of a pin until it is renewed.
"""

from __future__ import annotations

import logging
from typing import Any, Protocol

from vecraft_data_model.errors import SnapshotTooOldError, VecraftError
from vecraft_router.effects import Flow
from vecraft_router.options import ReadOptions
from vecraft_router.results import Pin

logger = logging.getLogger(__name__)

PIN_TTL_MS = 450_000
RENEW_AFTER_S = PIN_TTL_MS / 1000 / 3
"""A call may come just before the pin is to be renewed: from then on it is left five minutes more."""

PIN_AFTER_S = 5.0
"""How long a transaction reads without a pin: a small part of any history that is worth keeping, and longer than nearly
all of them last, which thus cost no message more."""

PATIENCE_S = 1.0
"""How long a call that has other things to do waits for a pin."""


class _Router(Protocol):
    """What is needed of a router, or of its like over HTTP."""

    def moment(self) -> float: ...

    def deadline(self, timeout: float | None = None) -> float: ...

    def new_txn_id(self) -> str: ...

    def pin(
        self, snapshot: int | None = None, *, ttl_ms: int, pin_id: str | None = None, options: ReadOptions = ...
    ) -> Any: ...

    def release(self, pin_id: str, *, deadline: float | None = None) -> Any: ...


class HeldSnapshot:
    """One snapshot that is read at, and its pin.

    Args:
        router: The router that it is read by.

    Attributes:
        snapshot: The timestamp; None before :meth:`open` or :meth:`begin`, and after :meth:`release`.
        pin_id: The pin's, once shards may know of it.
    """

    def __init__(self, router: _Router) -> None:
        self._router = router
        self._due = 0.0
        self.snapshot: int | None = None
        self.pin_id: str | None = None

    def open(self, options: ReadOptions) -> Flow[int]:
        """Choose a snapshot and pin it at once; raises as ``Router.pin``."""
        pin_id = self._router.new_txn_id()
        pin: Pin = yield from self._router.pin(None, ttl_ms=PIN_TTL_MS, pin_id=pin_id, options=options)
        self.pin_id, self.snapshot = pin_id, pin.snapshot
        self._due = self._router.moment() + RENEW_AFTER_S
        return pin.snapshot

    def begin(self, snapshot: int) -> None:
        """Read at a snapshot that is to be pinned only if it is read at for longer than :data:`PIN_AFTER_S`."""
        self.snapshot = snapshot
        self._due = self._router.moment() + PIN_AFTER_S

    def keep(self, deadline: float | None) -> Flow[None]:
        """Pin it, or renew the pin, if that is due: every call at the snapshot begins with this.

        A shard that does not answer, or refuses, may have no part in what the caller does: a later call tries again.

        Raises:
            SnapshotTooOldError: Its history is reclaimed already.
        """
        now = self._router.moment()
        if self.snapshot is None or now < self._due:
            return
        until = self._router.deadline(PATIENCE_S)
        if self.pin_id is None:
            self.pin_id = self._router.new_txn_id()
        options = ReadOptions(deadline=until if deadline is None else min(until, deadline))
        try:
            yield from self._router.pin(self.snapshot, ttl_ms=PIN_TTL_MS, pin_id=self.pin_id, options=options)
        except SnapshotTooOldError:
            raise
        except VecraftError as error:
            logger.info("a snapshot could not be pinned; trying again", extra={"error": error.message})
            self._due = now + PIN_AFTER_S
        else:
            self._due = now + RENEW_AFTER_S

    def release(self) -> Flow[None]:
        """Let go of the pin, if there is one; where that does not arrive, it runs out."""
        pin_id, self.pin_id, self.snapshot = self.pin_id, None, None
        if pin_id is None:
            return
        try:
            yield from self._router.release(pin_id, deadline=self._router.deadline(PATIENCE_S))
        except VecraftError as error:  # whatever was read or committed before stands
            logger.info("a pin was not released; it runs out", extra={"error": error.message})
