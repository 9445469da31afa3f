"""One shard: a synchronous state machine over injected time, disk and locks.

``execute`` carries out a batch of requests in order, ``maintain`` does background work for a while. Neither starts a
thread, reads a clock or opens a socket; what runs a shard decides when. The same batch on the same state gives the same
bytes in the log and the same answers.

Reads may be executed by several threads beside one write batch, if a real latch was handed in.

Work that other shards have to hear of does not happen here either: ``outgoing`` says what to send to whom, and
``deliver`` takes the answers.
"""

from __future__ import annotations

import logging
import secrets
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext

from vecraft_data_model.errors import (
    CorruptionError,
    InvalidDataException,
    ShardUnavailableError,
    StaleMapError,
    StorageFailureException,
    StorageFullError,
    VecraftError,
    WriteConflictException,
)
from vecraft_data_model.messages import (
    Aborted,
    AbortTransaction,
    Acknowledge,
    Barrier,
    BarrierReply,
    Checkpoint,
    CommitOne,
    Committed,
    Decide,
    Done,
    Finish,
    Finished,
    PinSnapshot,
    Prepare,
    ReadRequest,
    Refused,
    ReleaseSnapshot,
    Request,
    Resolve,
    Response,
    SetEf,
    Status,
    Undecided,
)
from vecraft_data_model.ports import Disk, Latch
from vecraft_data_model.validation import check_ef
from vecraft_shard.audit import audit_records
from vecraft_shard.background import Background
from vecraft_shard.batching import answer_all
from vecraft_shard.config import ShardConfig
from vecraft_shard.participant import Participant
from vecraft_shard.planner import costs_of_this_machine
from vecraft_shard.reads import Reader
from vecraft_shard.recovery import EPOCH_FILE, recover
from vecraft_shard.state import ShardState
from vecraft_shard.status import status_of
from vecraft_shard.write_group import WriteGroup

logger = logging.getLogger(__name__)

WRITES = (CommitOne, Prepare, Decide, AbortTransaction, Resolve, Finish, Acknowledge)
"""Requests that may append to the log."""

READS = (ReadRequest, Barrier, Status, PinSnapshot, ReleaseSnapshot)
"""Requests that may be executed beside a write batch."""


class NoLatch:
    """For a shard that one thread runs alone."""

    def writer(self) -> AbstractContextManager[None]:
        """Nothing."""
        return nullcontext()

    shared = exclusive = writer

    def another(self) -> NoLatch:
        """Itself will do."""
        return self


class Shard:
    """One shard; made by :meth:`open`."""

    def __init__(self, state: ShardState) -> None:
        self._state = state
        self._participant = Participant(state)
        self._reader = Reader(state, self._raise_ceiling, costs_of_this_machine(state.stopwatch))
        self._background = Background(state)
        self._last_read_ms = 0
        self._asked: dict[tuple[str, int], int] = {}
        self._clean = False
        self._failure: VecraftError | None = None

    @classmethod
    def open(
        cls,
        disk: Disk,
        shard_id: int,
        now_ms: int,
        config: ShardConfig | None = None,
        latch: Latch | None = None,
        *,
        stopwatch: Callable[[], float],
        salt: int | None = None,
    ) -> Shard:
        """Open the shard whose directory ``disk`` is, or begin one; recovers from its log.

        Args:
            disk: The shard's own directory, locked by the caller.
            shard_id: Its number in the cluster.
            now_ms: Physical time, milliseconds since the epoch.
            config: Settings.
            latch: For running on several threads.
            stopwatch: Seconds, for sizing slices of background work; never part of the state.
            salt: 64 unpredictable bits for new log segments; None: from the operating system.

        Raises:
            CorruptionError: A file does not say what was written, beyond what a crash explains.
            StorageFailureException: The disk failed.
        """
        if salt is None:
            salt = secrets.randbits(64)
        if config is not None and config.must_exist and not disk.exists(EPOCH_FILE):
            raise CorruptionError(
                f"shard {shard_id} was here before, but its directory has no {EPOCH_FILE} file: "
                "its files are missing, or this is not the disk they are on",
                shard=shard_id,
                file=EPOCH_FILE,
            )
        state = recover(disk, shard_id, now_ms, config or ShardConfig(), latch or NoLatch(), stopwatch, salt)
        return cls(state)

    @property
    def clock_last(self) -> int:
        """The shard's clock, for the reply."""
        return self._state.timeline.clock.last

    @property
    def failed(self) -> VecraftError | None:
        """Why the shard has stopped writing, if it has: what runs it should open it again."""
        return self._failure

    @property
    def in_doubt(self) -> bool:
        """Whether there are prepared transactions, whose decision readers may have to wait for."""
        return bool(self._state.prepared)

    # ------------------------------------------------------------------------------------------ requests

    def execute(
        self, requests: Sequence[Request], now_ms: int, clock: int = 0, map_epoch: int = 0
    ) -> list[Response]:
        """Carry out requests in order; each is answered, and fails, by itself.

        Args:
            requests: From one batch.
            now_ms: Physical time.
            clock: The sender's clock.
            map_epoch: The cluster map the batch was routed by; 0 is not checked.
        """
        if len(requests) == 1 and isinstance(requests[0], ReadRequest):  # the common case, kept short
            return [self._guarded(requests[0], now_ms, clock, map_epoch)]
        answers: list[Response] = [_UNANSWERED] * len(requests)
        refusal = self._refusal(now_ms, clock, map_epoch)
        if refusal is not None:
            return [refusal] * len(requests)
        if not any(isinstance(request, WRITES) for request in requests):
            return answer_all(requests, lambda request: self._guarded(request, now_ms), self._reader.changes)
        with self._state.latch.writer():
            self._state.batches += 1
            self._state.requests += len(requests)
            group = WriteGroup(self._state)
            for i, request in enumerate(requests):
                self._execute_in_group(i, request, group, answers, now_ms)
            self._flush(group, answers, now_ms)
        return answers

    def _execute_in_group(
        self, i: int, request: Request, group: WriteGroup, answers: list[Response], now_ms: int
    ) -> None:
        if not isinstance(request, WRITES):
            self._flush(group, answers, now_ms)
            answers[i] = self._guarded(request, now_ms)
            return
        touches, catalog = self._participant.touches(request)
        if group.must_precede(touches, catalog=catalog):
            self._flush(group, answers, now_ms)
        if self._failure is not None:
            answers[i] = Refused(self._failure)
            return
        try:
            self._participant.handle(request, group, lambda answer: answers.__setitem__(i, answer), now_ms)
        except VecraftError as error:
            if isinstance(error, WriteConflictException):
                self._state.conflicts += 1
            if isinstance(error, StorageFailureException) and not isinstance(error, StorageFullError):
                self._failure = error  # of a record that nobody waits for: the log is broken all the same
            answers[i] = Refused(error)

    def _flush(self, group: WriteGroup, answers: list[Response], now_ms: int) -> None:
        """Finish the group; if the log fails, the outcome of what waited for it is unknown."""
        try:
            group.flush(now_ms)
        except StorageFailureException as error:
            self._failure = error
            for i, answer in enumerate(answers):
                if answer is _UNANSWERED:
                    answers[i] = Refused(error)

    def _guarded(self, request: Request, now_ms: int, clock: int = 0, map_epoch: int = 0) -> Response:
        try:
            if clock > self._state.timeline.clock.last or (map_epoch and self._state.config.map_epoch):
                refusal = self._refusal(now_ms, clock, map_epoch)
                if refusal is not None:
                    return refusal
            if isinstance(request, ReadRequest):
                self._last_read_ms = now_ms
                return self._reader.handle(request, now_ms)
            return self._service(request, now_ms)
        except VecraftError as error:
            return Refused(error)

    def _refusal(self, now_ms: int, clock: int, map_epoch: int) -> Response | None:
        own = self._state.config.map_epoch
        if own and map_epoch and map_epoch != own:
            return Refused(
                StaleMapError(
                    f"the request was routed by cluster map {map_epoch}, shard {self._state.shard_id} has map {own}",
                    given=map_epoch,
                    expected=own,
                )
            )
        if clock:
            try:
                self._state.timeline.clock.observe(clock, now_ms)
            except VecraftError as error:
                return Refused(error)
        return None

    def _service(self, request: Request, now_ms: int) -> Response:
        state = self._state
        match request:
            case Barrier(waiting_for=None):
                waiting = state.timeline.undecided()
                return Undecided(waiting) if waiting else self._barrier_reply(now_ms)
            case Barrier(waiting_for=list(asked_for)):
                waiting = state.timeline.still_undecided(asked_for)
                return Undecided(waiting) if waiting else self._barrier_reply(now_ms)
            case PinSnapshot():
                state.timeline.pin(request.pin_id, request.snapshot, now_ms + request.ttl_ms)
            case ReleaseSnapshot():
                state.timeline.release(request.pin_id)
            case SetEf():
                collection = state.collections[state.catalog.resolve(request.collection).collection_id]
                collection.depth.set_override(None if request.ef is None else check_ef(request.ef))
            case Checkpoint():
                self.checkpoint(now_ms, compact_first=request.compact, index_first=request.index)
            case Status():
                return status_of(state, now_ms, self._background.checkpoints, failed=self._failure is not None)
            case _:
                raise InvalidDataException(f"a shard does not answer {type(request).__name__}")
        return Done()

    def _barrier_reply(self, now_ms: int) -> BarrierReply:
        clock = self._state.timeline.clock.now(now_ms)
        if clock > self._state.timeline.ceiling:
            self._raise_ceiling(clock, now_ms)
        return BarrierReply(clock)

    # ---------------------------------------------------------------------------------------- background

    def maintain(self, now_ms: int, budget_ms: float) -> bool:
        """Do background work for about ``budget_ms``: ceiling, stuck transactions, and what :mod:`background` does.

        Returns:
            Whether there is more to do at once.

        Raises:
            StorageFailureException: The disk failed; nothing is lost.
        """
        state = self._state
        if self._failure is not None:
            return False
        state.room.look(now_ms)
        if now_ms - self._last_read_ms < state.config.ceiling_ms and state.timeline.ceiling_is_near(now_ms):
            try:
                self._raise_ceiling(0, now_ms)
            except StorageFullError as error:
                logger.error("shard %d cannot raise its ceiling: %s", state.shard_id, error.message)
        self._abort_abandoned(now_ms)
        return self._background.work(now_ms, budget_ms)

    def checkpoint(self, now_ms: int, *, compact_first: bool = False, index_first: bool = False) -> None:
        """Make a checkpoint now, optionally with everything compacted and indexed first.

        Raises:
            StorageFailureException: The disk failed; nothing is lost.
        """
        self._background.checkpoint(now_ms, compact_first=compact_first, index_first=index_first)

    def _raise_ceiling(self, snapshot: int, now_ms: int) -> None:
        """Make a ceiling durable that is above ``snapshot`` and the clock."""
        state = self._state
        if self._failure is not None:
            raise self._failure
        with state.latch.writer():
            ceiling = max(state.timeline.next_ceiling(now_ms), snapshot)
            if ceiling > state.timeline.ceiling:
                try:
                    state.raise_ceiling(ceiling)
                except StorageFullError:
                    raise  # nothing has happened: this read has to wait for room
                except StorageFailureException as error:
                    self._failure = error
                    raise

    def _abort_abandoned(self, now_ms: int) -> None:
        """As the primary, abort transactions whose router did not come back to decide."""
        state = self._state
        limit = now_ms - state.config.resolve_after_ms
        stuck = [
            txn_id
            for txn_id, prepared in list(state.prepared.items())
            if prepared.record.primary == state.shard_id and prepared.since_ms <= limit
        ]
        if stuck:
            self.execute([Resolve(txn_id) for txn_id in stuck], now_ms)

    # --------------------------------------------------------------------------------------------- peers

    def outgoing(self, now_ms: int) -> list[tuple[int, Request]]:
        """What other shards have to be asked or told now: in-doubt transactions, and decisions not yet acknowledged."""
        state, messages = self._state, []
        every_ms = state.config.resolve_after_ms
        wanted: list[tuple[str, int, Request]] = []
        for txn_id, prepared in list(state.prepared.items()):
            primary = prepared.record.primary
            due = prepared.recovered or now_ms - prepared.since_ms >= every_ms
            if primary != state.shard_id and due:
                wanted.append((txn_id, primary, Resolve(txn_id)))
        for txn_id in list(state.unacknowledged):
            outcome = state.outcome_of(txn_id)
            if outcome is not None and now_ms - outcome.decided_ms >= every_ms:
                wanted += [(txn_id, shard, Finish(txn_id, outcome.ts)) for shard in outcome.unacknowledged]
        for txn_id, shard, request in wanted:
            if now_ms - self._asked.get((txn_id, shard), 0) >= every_ms:
                self._asked[txn_id, shard] = now_ms
                messages.append((shard, request))
        if len(self._asked) > 10_000:
            self._asked = {key: at for key, at in self._asked.items() if now_ms - at < 2 * every_ms}
        return messages

    def deliver(self, shard: int, request: Request, response: Response, now_ms: int) -> None:
        """Take a peer's answer to one of the messages of :meth:`outgoing`."""
        match request, response:
            case Resolve(txn_id=txn_id), Committed(commit_ts=commit_ts, content_hash=content_hash):
                # the primary asks, too, and learns of it then
                self.execute([Finish(txn_id, commit_ts, content_hash)], now_ms)
            case Resolve(txn_id=txn_id), Aborted():
                self.execute([Finish(txn_id, 0)], now_ms)
            case Finish(txn_id=txn_id), Finished():
                self.execute([Acknowledge(txn_id, [shard])], now_ms)
            case _:
                pass  # not decided yet, or no answer: asked again after a while

    def audit(self) -> Iterator[str]:
        """Compare every version of every record with its digest. Yields what does not match."""
        return audit_records(self._state)

    # ---------------------------------------------------------------------------------------------- ends

    def close(self, now_ms: int) -> None:
        """Make a last checkpoint, so that the next start is quick, and close all files."""
        try:
            if self._failure is None:
                # Nothing is served or issued any more, so the next start need not begin ahead of the wall clock.
                self._state.timeline.ceiling = self._state.timeline.clock.last
                self._background.checkpoint(now_ms, final=True)
                self._clean = not self._state.prepared
        finally:
            self.abandon()

    def abandon(self) -> None:
        """Close all files as they are: what a crash would leave."""
        self._failure = self._failure or ShardUnavailableError(f"shard {self._state.shard_id} is closed")
        self._state.wal.close()
        for collection in self._state.collections.values():
            collection.close(keep_room=not self._clean)
        for unused in (*self._state.shadows, *self._state.retired):
            unused.close(keep_room=True)
        self._state.locations.close()
        self._state.room.close()


_UNANSWERED: Response = Undecided([])
