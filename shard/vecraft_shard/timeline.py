"""One shard's sense of time: its clock, its durable ceiling, what is undecided, and how far back history reaches.

Three rules of the protocol live here, and nowhere else:

* **The ceiling.** A shard that has served a read at ``S`` must never commit at or below ``S``, across restarts too. So
  no timestamp above the durable ceiling is issued or served, and a restarted clock starts at the ceiling. The ceiling
  runs ``ceiling_ms`` ahead, which must stay below the accepted clock skew: otherwise peers would refuse the timestamps
  of a shard that was restarted at once.
* **Undecided from assignment.** A transaction counts as undecided from the moment its timestamp is *assigned*, so
  assigning and registering are one step under one lock, and so are moving the clock to a read's snapshot and looking
  for undecided transactions below it. Between the two there is no moment in which a reader could slip through.
* **The safe point** only moves forward, and is held back by pinned snapshots.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass

from vecraft_data_model.errors import SnapshotTooOldError
from vecraft_data_model.hlc import HybridLogicalClock, timestamp

_LOGICAL_STEP_MS = 5
"""Room for 327,680 timestamps."""

CATALOG = ""
"""The footprint of a transaction that changes the catalog: every read could see it."""


@dataclass(frozen=True, slots=True)
class Undecidedness:
    """A transaction with a timestamp and no outcome yet: what a reader needs to know of it."""

    ts: int
    primary: int
    footprint: frozenset[str]
    """Ids of the collections it writes to; :data:`CATALOG` if it changes the catalog."""

    def concerns(self, collection_id: str | None) -> bool:
        """Whether a read of that collection (None: of the catalog) could see it."""
        return CATALOG in self.footprint or (collection_id is not None and collection_id in self.footprint)


class Timeline:
    """The clock of one shard with everything that is ordered by it. Safe to use from several threads."""

    def __init__(self, clock: HybridLogicalClock, *, ceiling: int, safe_point: int, ceiling_ms: int) -> None:
        self.clock = clock
        self.ceiling = ceiling
        self.safe_point = safe_point
        self._ceiling_ms = ceiling_ms
        self._lock = threading.Lock()
        self._undecided: dict[str, Undecidedness] = {}
        self._pins: dict[str, tuple[int, int]] = {}

    # ------------------------------------------------------------------------------------------- writing

    def assign(self, txn_id: str, now_ms: int, primary: int, footprint: frozenset[str]) -> int:
        """Issue the transaction's timestamp and register it as undecided, in one step."""
        with self._lock:
            ts = self.clock.tick(now_ms)
            self._undecided[txn_id] = Undecidedness(ts, primary, footprint)
            return ts

    def restore(self, txn_id: str, ts: int, primary: int, footprint: frozenset[str]) -> None:
        """Register a prepared transaction found in the log."""
        with self._lock:
            self._undecided[txn_id] = Undecidedness(ts, primary, footprint)

    def settle(self, txn_id: str) -> None:
        """The transaction is applied, or aborted: readers need not wait for it any more."""
        with self._lock:
            self._undecided.pop(txn_id, None)

    # ------------------------------------------------------------------------------------------- reading

    def admit(self, snapshot: int, now_ms: int, collection_id: str | None) -> list[tuple[str, int]]:
        """Move the clock to ``snapshot``; return what is undecided at or below it and could be visible to the read."""
        with self._lock:
            self.clock.observe(snapshot, now_ms)
            return self._blocking(snapshot, collection_id)

    def choose(self, min_ts: int, now_ms: int, collection_id: str | None) -> tuple[int, list[tuple[str, int]]]:
        """Choose the newest snapshot at which nothing that concerns the read is undecided, but at least ``min_ts``.

        Returns:
            The snapshot, and what stands in its way: empty unless ``min_ts`` forced it up.
        """
        with self._lock:
            snapshot = self.clock.now(now_ms)
            for pending in self._undecided.values():
                if pending.ts <= snapshot and pending.concerns(collection_id):
                    snapshot = pending.ts - 1
            if snapshot >= min_ts:
                return snapshot, []
            self.clock.observe(min_ts, now_ms)
            return min_ts, self._blocking(min_ts, collection_id)

    def undecided(self) -> list[tuple[str, int]]:
        """All undecided transactions, as ``(txn_id, primary)``."""
        with self._lock:
            return [(txn_id, pending.primary) for txn_id, pending in self._undecided.items()]

    def still_undecided(self, txn_ids: list[str]) -> list[tuple[str, int]]:
        """Those of ``txn_ids`` that are undecided, as ``(txn_id, primary)``."""
        with self._lock:
            return [(t, self._undecided[t].primary) for t in txn_ids if t in self._undecided]

    def _blocking(self, snapshot: int, collection_id: str | None) -> list[tuple[str, int]]:
        if not self._undecided:
            return []
        return [
            (txn_id, pending.primary)
            for txn_id, pending in self._undecided.items()
            if pending.ts <= snapshot and pending.concerns(collection_id)
        ]

    # ------------------------------------------------------------------------------------------- ceiling

    def next_ceiling(self, now_ms: int) -> int:
        """The ceiling to make durable next: well ahead of the wall clock, and a little ahead of the logical one.

        Only a little: a restarted clock begins at the ceiling, ahead of the wall clock. Were the ceiling to run far
        ahead of *that*, a few restarts in a row would drive the clock beyond the accepted skew.
        """
        return max(timestamp(now_ms + self._ceiling_ms), self.clock.last + (_LOGICAL_STEP_MS << 16))

    def ceiling_is_near(self, now_ms: int) -> bool:
        """Whether less than half of the distance to the ceiling is left."""
        return max(timestamp(now_ms), self.clock.last) + (self._ceiling_ms << 15) > self.ceiling

    # ---------------------------------------------------------------------------------------- safe point

    def check_readable(self, snapshot: int) -> None:
        """Raise ``SnapshotTooOldError`` if history at ``snapshot`` may be reclaimed already."""
        if snapshot < self.safe_point:
            raise SnapshotTooOldError(
                f"snapshot {snapshot} lies below the safe point {self.safe_point}: its history is reclaimed; "
                f"read at {self.safe_point} or later",
                snapshot=snapshot,
                safe_point=self.safe_point,
            )

    def pin(self, pin_id: str, snapshot: int, until_ms: int) -> None:
        """Hold the safe point at or below ``snapshot`` until ``until_ms``."""
        with self._lock:
            self.check_readable(snapshot)
            self._pins[pin_id] = (snapshot, until_ms)

    def release(self, pin_id: str) -> None:
        """Let go of a pin; nothing happens if there is none."""
        with self._lock:
            self._pins.pop(pin_id, None)

    def next_safe_point(self, now_ms: int, retention_ms: int) -> int:
        """How far the safe point may move now: behind all pins, all undecided transactions, and the retention."""
        with self._lock:
            self._pins = {k: pin for k, pin in self._pins.items() if pin[1] > now_ms}
            bounds = [timestamp(now_ms - retention_ms), *(snapshot for snapshot, _ in self._pins.values())]
            bounds += [pending.ts - 1 for pending in self._undecided.values()]
            return max(self.safe_point, min(bounds))
