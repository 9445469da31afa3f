"""Room on a shard's disk: promised before it is needed, and what happens when there is none.

::

    writes let in ──▶ the disk is full ──▶ READ-ONLY: the ballast is given back
          ▲                                    │  reads go on; the clock's ceiling is written in place
          │                                    │  decisions of prepared transactions go into the log
          └── room for the ballast, and as much ──┘  everything else is refused: StorageFullError, nothing was done
                again

* A write is let in only if the store files have room for it: that is taken before the log is touched. What is merely
  too large is refused by itself. A PREPARE takes the room for its commit as well, and holds it until it is decided.
* While the shard is read-only, what may be written is small: decisions, acknowledgements, collections being dropped. Of
  the ballast's room, half is for transactions that are prepared here; the rest is for whoever comes first.
* How full a disk is is never estimated: it is full when it says so, and has room again when it gives that much.

A transaction that both creates a collection and fills it cannot have its room taken before. Should the disk become full
at that very moment, the shard stops, and opens again once there is room for what its log says.
"""

from __future__ import annotations

import errno
import logging
from collections.abc import Iterable, Mapping
from typing import Protocol

from vecraft_data_model.errors import StorageFullError
from vecraft_shard.ballast import Ballast
from vecraft_shard.records import Resolved, ResolvedPut

logger = logging.getLogger(__name__)

RETRY_MS = 1000
"""How often to look whether there is room again."""

_RECORD_BYTES = 128
"""What a record takes in the log beyond its own bytes, generously."""


class Rows(Protocol):
    """What rows are added to: a collection."""

    def reserve(self, rows: int, payload_bytes: int) -> None:
        """Take room on the disk for that much more. Raises StorageFullError."""
        ...


class Room:
    """The room of one shard.

    Args:
        shard_id: For messages.
        ballast: None for a disk that is only memory.
        ballast_bytes: Its size.

    Attributes:
        full: Why the shard is read-only; None: it is not.
    """

    def __init__(self, shard_id: int, ballast: Ballast | None, ballast_bytes: int) -> None:
        self.full: StorageFullError | None = None
        self._shard_id = shard_id
        self._ballast = ballast
        self._spare = 0
        self._ballast_bytes = ballast_bytes
        self._promised: dict[str, tuple[int, int]] = {}
        self._looked_ms = 0

    @property
    def ceiling(self) -> int:
        """The highest ceiling of the clock that was written while the disk was full; 0: none."""
        return 0 if self._ballast is None else self._ballast.ceiling

    # ------------------------------------------------------------------------------------------ promises

    def forget_promises(self) -> None:
        """Begin anew: recovery counts them in again."""
        self._promised.clear()

    def promise(self, mutations: Iterable[Resolved], sign: int = 1) -> None:
        """Count in the rows of a transaction that is prepared, or (``sign`` -1) that is decided."""
        for mutation in mutations:
            if isinstance(mutation, ResolvedPut):
                rows, size = self._promised.get(mutation.collection_id, (0, 0))
                rows += sign * len(mutation.ids)
                size += sign * sum(map(len, mutation.payloads))
                if rows:
                    self._promised[mutation.collection_id] = (rows, size)
                else:
                    self._promised.pop(mutation.collection_id, None)

    def promised(self, collection_id: str) -> tuple[int, int]:
        """Rows, and bytes of their payloads, that prepared transactions will add to a collection."""
        return self._promised.get(collection_id, (0, 0))

    def reserve(self, mutations: Iterable[Resolved], collections: Mapping[str, Rows]) -> None:
        """Take the room that applying these mutations, and all that is promised, will need.

        Raises:
            StorageFullError: There is not that much room.
        """
        needed: dict[str, tuple[int, int]] = {}
        for mutation in mutations:
            if isinstance(mutation, ResolvedPut):
                rows, size = needed.get(mutation.collection_id) or self.promised(mutation.collection_id)
                size += sum(map(len, mutation.payloads))
                needed[mutation.collection_id] = (rows + len(mutation.ids), size)
        for collection_id, (rows, size) in needed.items():
            collection = collections.get(collection_id)
            if collection is not None:  # else it is made when the transaction is applied
                collection.reserve(rows, size)

    def reserve_promised(self, collections: Mapping[str, Rows]) -> None:
        """Take the room for all that is promised. Raises StorageFullError."""
        for collection_id, (rows, size) in self._promised.items():
            if collection_id in collections:
                collections[collection_id].reserve(rows, size)

    # ----------------------------------------------------------------------------------------- read-only

    def check(self) -> None:
        """Raise what stands against a write.

        Raises:
            StorageFullError: The shard is read-only.
        """
        if self.full is not None:
            raise self._refusal(self.full)

    def spend(self, size: int) -> None:
        """Account for a small record that is not about a transaction prepared here.

        Raises:
            StorageFullError: The shard is read-only, and what is left is kept for such transactions.
        """
        if self.full is None:
            return
        self._spare -= size + _RECORD_BYTES
        if self._spare < 0:
            raise self._refusal(self.full)

    def begin(self) -> None:
        """Take the ballast when a shard opens; begin read-only if there is no room for it.

        Raises:
            StorageFailureException: The disk failed.
        """
        if self.full is None and self._ballast is not None and not self._ballast.take():
            self.turn_read_only(StorageFullError("there is no room for the ballast", errno=errno.ENOSPC))

    def is_short(self) -> bool:
        """Whether the disk has less room than for another ballast.

        Raises:
            StorageFailureException: The disk failed.
        """
        return self.full is not None or (self._ballast is not None and not self._ballast.can_double())

    def turn_read_only(self, error: StorageFullError) -> None:
        """Refuse writes from now on, and give the ballast back. Nothing happens if that was done before.

        Raises:
            StorageFailureException: The disk failed.
        """
        if self.full is None:
            logger.error("shard %d is read-only: %s", self._shard_id, error.message)
            self.full = error
            self._spare = self._ballast_bytes // 2
            self._looked_ms = 0
            if self._ballast is not None:
                self._ballast.give_back()

    def look(self, now_ms: int) -> None:
        """Let writes in again if there is room; looks at once, then once in a while.

        Raises:
            StorageFailureException: The disk failed.
        """
        if self.full is None or abs(now_ms - self._looked_ms) < RETRY_MS:
            return
        self._looked_ms = now_ms
        if self._ballast is not None and not (self._ballast.take() and self._ballast.can_double()):
            self._ballast.give_back()
            return
        self.full = None
        logger.warning("shard %d has room again and takes writes", self._shard_id)

    def write_ceiling(self, ceiling: int) -> None:
        """Make the clock's ceiling durable without taking room.

        Raises:
            StorageFullError: There is no place for it.
            StorageFailureException: The disk failed.
        """
        if self._ballast is None:
            self.check()
            return
        self._ballast.write_ceiling(ceiling)

    def close(self) -> None:
        """Close the ballast's file."""
        if self._ballast is not None:
            self._ballast.close()

    def _refusal(self, cause: StorageFullError) -> StorageFullError:
        return StorageFullError(
            f"shard {self._shard_id} is read-only until there is room on its disk: {cause.message}",
            shard=self._shard_id,
            errno=cause.details.get("errno", errno.ENOSPC),
        )
