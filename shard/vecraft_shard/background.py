"""What a shard does when nobody waits for it: indexing, checkpoints, compaction, measuring recall.

Each kind of work goes in slices, so that one slow kind does not hold up the others: :meth:`Background.work` is called
again and again with a budget. Indexing comes first, since the tail is what makes searches slower; a checkpoint is not
sliced, but keeps writers out only for its cut. Indexing and compaction do at least a slice each time: where writers
never pause, or the machine is so busy that the budget is over before anything was done, neither must stand still.

Indexing keeps those waiting who search the same collection, nobody else (see ``ShardState.graph_latch``). While there
are such searches, its slices are a row or two.

Background work and an explicit checkpoint may come from two threads; they take turns here. Requests go on meanwhile.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator

from vecraft_data_model.errors import ChecksumValidationFailureError, StorageFullError
from vecraft_shard.checkpoint import Checkpointer
from vecraft_shard.compaction import compact, forget_dropped, worth_compacting
from vecraft_shard.state import ShardState
from vecraft_shard.tuning import tune, worth_tuning

logger = logging.getLogger(__name__)

_FINISHED = object()

TUNING_SHARE = 0.2
"""Most of the time that is spent on measuring recall while others search: they would wait for a processor."""

_SEARCHED_MS = 1000
"""So long after the last search the next one is expected."""
_BESIDE_SEARCHES_MS = 0.5
"""A slice while searches come in, which wait for the one that is under way: a row or two."""

RETRY_COMPACTION_MS = 60_000
"""How long to wait after a compaction that there was no room for."""


class Background:
    """The background work of one shard.

    Args:
        state: What to work on.
    """

    def __init__(self, state: ShardState) -> None:
        self._state = state
        self._stopwatch = state.stopwatch
        self._checkpointer = Checkpointer(state)
        self._turn = threading.RLock()
        self._compaction: Iterator[None] | None = None
        self._tuning: Iterator[None] | None = None
        self._compact_from_ms = 0
        self._searches = 0
        self._tune_from = float("-inf")

    @property
    def checkpoints(self) -> int:
        """How many checkpoints were made."""
        return self._checkpointer.count

    def work(self, now_ms: int, budget_ms: float) -> bool:
        """Work for about ``budget_ms``. Returns whether there is more to do at once.

        Raises:
            StorageFailureException: The disk failed; nothing is lost.
        """
        with self._turn:
            deadline = self._stopwatch() + budget_ms / 1000
            self._checkpoint_if_due(now_ms)
            more = self._index(deadline, now_ms) or self._exchange_pages(deadline)
            more = self._compact(now_ms, deadline) or more
            return self._tune(now_ms, deadline) or more

    def checkpoint(
        self, now_ms: int, *, compact_first: bool = False, index_first: bool = False, final: bool = False
    ) -> None:
        """Make a checkpoint now.

        Args:
            now_ms: Physical time.
            compact_first: Give back the space of dead rows first.
            index_first: Index the tail first, and save all graphs.
            final: Save all graphs.

        Raises:
            StorageFailureException: The disk failed; nothing is lost.
        """
        with self._turn:
            state = self._state
            if compact_first:
                while self._compaction is not None:
                    self._advance_compaction(self._compaction, now_ms)
                for collection in list(state.collections.values()):
                    if collection.dead_rows:
                        for _ in compact(state, collection, now_ms):
                            pass
            if index_first:
                self._index(float("inf"), now_ms)
            self._checkpointer.run(now_ms, final=final or index_first)

    def _checkpoint_if_due(self, now_ms: int) -> None:
        try:
            if forget_dropped(self._state, now_ms) or self._checkpointer.is_due(now_ms):
                self._checkpointer.run(now_ms)
        except StorageFullError as error:
            # The last one and the log stand, and nothing is half done: it is tried again after a while.
            logger.error("shard %d makes no checkpoint: %s", self._state.shard_id, error.message)

    def _index(self, deadline: float, now_ms: int) -> bool:
        """Index in slices, each of which keeps those waiting who search the same collection."""
        state, more, begun = self._state, False, False
        longest_ms, min_rows = state.config.index_slice_ms, state.config.index_min_rows
        current = {entry.collection_id for entry in state.catalog.current()}
        for collection in list(state.collections.values()):
            if collection.collection_id not in current:
                continue  # dropped: still readable in the past, but not worth a graph
            searched = collection.depth.sample.searched_since(now_ms - _SEARCHED_MS, now_ms)
            latch = state.graph_latch(collection.collection_id)
            while collection.tail_rows and (collection.indexed or collection.versions.rows >= min_rows):
                if begun and self._stopwatch() >= deadline:
                    more = True
                    break
                asked = self._stopwatch()
                with latch.exclusive():
                    # Searches that take long, of a long tail, would otherwise leave hardly any time to shorten it.
                    waited_ms = (self._stopwatch() - asked) * 1000
                    slice_ms = max(_BESIDE_SEARCHES_MS, waited_ms) if searched else longest_ms
                    collection.index_slice(min(slice_ms, longest_ms), self._stopwatch)
                begun = True
        return more

    def _exchange_pages(self, deadline: float) -> bool:
        """Give graphs huge pages, when there is nothing to index: one that grows moves, and would lose them again."""
        for collection in list(self._state.collections.values()):
            while collection.hnsw.pages.exchange_one():
                if self._stopwatch() >= deadline:
                    return True
        return False

    def _compact(self, now_ms: int, deadline: float) -> bool:
        state = self._state
        if state.room.full is not None or now_ms < self._compact_from_ms:
            return False
        if self._compaction is None:
            worthy = next((c for c in list(state.collections.values()) if worth_compacting(state, c, now_ms)), None)
            if worthy is None:
                return False
            self._compaction = compact(state, worthy, now_ms)
        while self._compaction is not None and state.room.full is None:
            try:
                self._advance_compaction(self._compaction, now_ms)
            except ChecksumValidationFailureError as error:
                # Whoever reads the record is told, too; the shard goes on with the space it has.
                logger.error("shard %d does not compact a collection: %s", state.shard_id, error.message)
            except StorageFullError as error:
                logger.error("shard %d has no room to compact a collection: %s", state.shard_id, error.message)
                self._compact_from_ms = now_ms + RETRY_COMPACTION_MS
            if self._stopwatch() >= deadline:
                break
        return self._compaction is not None

    def _advance_compaction(self, compaction: Iterator[None], now_ms: int) -> None:
        try:
            if next(compaction, _FINISHED) is not _FINISHED:
                return
        except BaseException:
            self._compaction = None
            raise
        self._compaction = None
        self._checkpointer.run(now_ms)

    def _tune(self, now_ms: int, deadline: float) -> bool:
        if self._tuning is None:
            worthy = next((c for c in list(self._state.collections.values()) if worth_tuning(c, now_ms)), None)
            if worthy is None:
                return False
            self._tuning, self._searches = tune(self._state, worthy, now_ms), self._searches_so_far()
        begun, searches = self._stopwatch(), self._searches_so_far()
        if begun < self._tune_from:
            return False
        while self._tuning is not None and self._stopwatch() < deadline:
            if next(self._tuning, _FINISHED) is _FINISHED:
                self._tuning = None
        ended = self._stopwatch()
        if searches != self._searches:  # there were some since the last turn
            self._searches, self._tune_from = searches, ended + (ended - begun) * (1 / TUNING_SHARE - 1)
            return False
        return True  # also when it has just ended: another collection may be worth it

    def _searches_so_far(self) -> int:
        return sum(collection.depth.sample.offered for collection in list(self._state.collections.values()))
