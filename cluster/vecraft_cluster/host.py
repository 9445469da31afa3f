"""One shard on threads: what turns the synchronous state machine into something many callers may use at once.

Three kinds of threads meet here::

    reads        on their caller's thread, beside each other and beside the writer (the shard's latch orders them)
    writes       queue up; one caller at a time carries out all that is queued as one group (``write_queue``)
    maintenance  one thread: indexing, checkpoints, compaction, the clock's ceiling, messages to peer shards; it works
                 beside both, and the shard takes the latch where they must not meet

A host may be given a lease (:mod:`vecraft_cluster.lease`). Without a valid one it neither works nor answers.

A shard that stopped itself (a failed write or fsync, an interrupt in the middle of a write) is opened again from its
files by the next call, at most once a second: recovery is the only way back to a state that can be trusted.

The host does not know Ray, and does not decide anything about data: it only says who runs when.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager

from vecraft_cluster.latch import ReadWriteLatch
from vecraft_cluster.lease import Lease
from vecraft_cluster.root import SystemClock
from vecraft_cluster.write_queue import Outcome, WriteQueue
from vecraft_data_model.errors import ClockSkewError, ShardUnavailableError, StorageFailureException, VecraftError
from vecraft_data_model.messages import (
    Barrier,
    Batch,
    BatchReply,
    Checkpoint,
    Count,
    Describe,
    Get,
    ListCollections,
    PinSnapshot,
    Refused,
    ReleaseSnapshot,
    Request,
    Response,
    Scan,
    Search,
    Status,
)
from vecraft_data_model.ports import Clock, Disk, ShardPort
from vecraft_shard.config import ShardConfig
from vecraft_shard.engine import Shard

logger = logging.getLogger(__name__)

READS: frozenset[type] = frozenset(
    {Get, Search, Scan, Count, ListCollections, Describe, Barrier, Status, PinSnapshot, ReleaseSnapshot}
)
"""Requests that run on their caller's thread."""

MAINTENANCE_BUDGET_MS = 20
"""How long maintenance may keep writers waiting at a time."""

IDLE_S = 0.1
"""How often maintenance looks around when there is nothing to do: well below the clock ceiling's reach."""

DRAIN_S = 2.0
"""How long a pause waits for a moment without prepared transactions: who reads those would wait for its end."""

DRAIN_POLL_S = 0.005
REOPEN_INTERVAL_S = 1.0
PEER_TIMEOUT_S = 5.0


class ShardHost:
    """A shard that many threads may call; a :class:`vecraft_data_model.ports.ShardPort`.

    Args:
        disk: The shard's directory, which the caller has locked.
        shard_id: Its number, from 0.
        config: Its settings.
        peers: The port of another shard, for the messages by which shards finish each other's transactions.
        clock: Time.
        lease: Without which nothing is done, and nothing answered; None: the directory's lock is enough.
        maintenance: Whether to run the maintenance thread (tests may do without).

    Raises:
        CorruptionError: The shard's files are damaged.
        StorageFailureException: They cannot be read or written.
    """

    def __init__(
        self,
        disk: Disk,
        shard_id: int,
        config: ShardConfig | None = None,
        peers: Callable[[int], ShardPort] | None = None,
        clock: Clock | None = None,
        *,
        lease: Lease | None = None,
        maintenance: bool = True,
    ) -> None:
        self.shard_id = shard_id
        self._disk = disk
        self._config = config or ShardConfig()
        self._peers = peers
        self._clock = clock or SystemClock()
        self._lease = lease
        self._door = ReadWriteLatch()
        self._queue = WriteQueue(self._carry_out)
        self._maintaining = threading.Lock()
        self._closed = False
        self._broken: BaseException | None = None
        self._opened_at = self._clock.monotonic()
        self._shard = self._open()
        self._stop = threading.Event()
        self._wake = threading.Event()
        self._thread: threading.Thread | None = None
        if maintenance:
            self._thread = threading.Thread(target=self._maintain, name=f"vecraft-shard-{shard_id}", daemon=True)
            self._thread.start()

    @property
    def shard(self) -> Shard:
        """The shard itself, for whoever holds :meth:`paused`."""
        return self._shard

    def execute(self, batch: Batch, timeout: float) -> BatchReply:
        """Carry out a batch: reads on this thread, anything else in turn with other writers.

        Raises:
            ShardUnavailableError: The host is closed, or its lease has run out.
            TimeoutException: A write was not answered within ``timeout`` seconds.
            StaleMapError: The batch was routed by another cluster map.
            StorageFailureException: The disk failed.
        """
        if self._broken is not None:
            self._revive()
        door = self._door
        door.enter_shared()
        try:
            if self._closed or self._broken is not None:
                raise self._no_shard()
            if self._lease is not None:
                self._check_lease("not done")
            requests = batch.requests
            for request in requests:
                if type(request) not in READS:
                    break
            else:
                shard = self._shard
                now_ms = self._clock.now_ms()
                responses = shard.execute(requests, now_ms, batch.clock, batch.map_epoch)
                if self._lease is not None:
                    self._check_lease("not done")
                return BatchReply(responses, shard.clock_last, now_ms, batch.sent_ms)
            solo = any(type(request) is Checkpoint for request in requests)
            reply = self._queue.submit(batch, timeout, solo=solo)
        finally:
            door.leave_shared()
        self._check_lease("unknown")
        self._wake.set()
        return reply

    @contextmanager
    def paused(self) -> Iterator[Shard]:
        """Keep writers and maintenance waiting while the body runs, so that no file changes; reads go on.

        It begins when no transaction is prepared here, if there is such a moment within :data:`DRAIN_S`: a decision
        is a write, too, and whoever reads what is undecided would wait for the end of the pause.
        """
        with self._inside():
            patience = self._clock.monotonic() + DRAIN_S
            while True:
                with self._maintaining, self._queue.turn():
                    if not self._shard.in_doubt or self._clock.monotonic() >= patience:
                        with self._latch.writer():
                            yield self._shard
                        return
                time.sleep(DRAIN_POLL_S)

    def maintain_once(self, budget_ms: float = MAINTENANCE_BUDGET_MS) -> bool:
        """Do one slice of maintenance, deliver messages to peers, and return whether there is more to do."""
        with self._inside():
            self._check_lease("not done")
            shard = self._shard
            try:
                with self._maintaining:
                    more = shard.maintain(self._clock.now_ms(), budget_ms)
            except BaseException as error:
                # What maintenance changes, a checkpoint may make durable: do not go on from half a change. What is in
                # memory alone has nothing to be recovered from, and no checkpoint that matters: it goes on.
                if self._disk.durable:
                    self._broken = shard.failed or error
                raise
            if shard.failed is not None:
                self._broken = shard.failed
            messages = shard.outgoing(self._clock.now_ms())
            if messages:
                self._deliver(shard, messages)
            return more

    def close(self) -> None:
        """Finish what is under way, make a checkpoint, close the files. Closing twice does nothing."""
        self._stop_maintenance()
        with self._door.exclusive():
            if self._closed:
                return
            self._closed = True
            if self._lease is not None and not self._lease.valid():
                # Even closing would touch files that may be somebody else's: give room back, checkpoint SQLite's log.
                logger.error("shard left as it is: its lease has run out", extra={"shard": self.shard_id})
            elif self._broken is None:
                self._shard.close(self._clock.now_ms())
            else:
                self._shard.abandon()

    def kill(self) -> None:
        """Drop the shard as a crash would: no checkpoint, nothing flushed. For tests of recovery."""
        self._stop_maintenance()
        with self._door.exclusive():
            if not self._closed:
                self._closed = True
                self._shard.abandon()

    def _open(self) -> Shard:
        # A new latch for each incarnation: nobody can still hold the old one, because the door is ours or the host new.
        self._latch = ReadWriteLatch()
        now_ms = self._clock.now_ms()
        return Shard.open(
            self._disk, self.shard_id, now_ms, self._config, self._latch, stopwatch=time.perf_counter
        )

    @contextmanager
    def _inside(self) -> Iterator[None]:
        """Be where the shard is neither closed nor opened again; raises if there is no shard that works."""
        if self._broken is not None:
            self._revive()
        with self._door.shared():
            if self._closed or self._broken is not None:
                raise self._no_shard()
            yield

    def _check_lease(self, outcome: str) -> None:
        """Let nobody hear of what this process knows unless no other can have taken over.

        Checked last before an answer, because the process may be stopped for any time before that; and first, so that
        nothing is written in vain.
        """
        if self._lease is not None and not self._lease.valid():
            raise ShardUnavailableError(
                f"shard {self.shard_id} has not renewed its lease in time, and may have been replaced",
                shard=self.shard_id,
                outcome=outcome,
            )

    def _no_shard(self) -> VecraftError:
        if self._closed or self._broken is None:
            return ShardUnavailableError(f"shard {self.shard_id} is closed", shard=self.shard_id)
        return _as_failure(self.shard_id, self._broken)

    def _revive(self) -> None:
        """Recover a shard that stopped itself, when nobody is inside any more."""
        with self._door.exclusive():
            if self._broken is None or self._closed:
                return
            self._check_lease("not done")
            if not self._disk.durable:
                raise StorageFailureException(
                    f"shard {self.shard_id}, which is in memory only, stopped in the middle of a write "
                    f"({type(self._broken).__name__}): there is no log to recover it from; open a new database",
                    shard=self.shard_id,
                ) from self._broken
            now = self._clock.monotonic()
            if now - self._opened_at < REOPEN_INTERVAL_S:
                raise self._no_shard() from self._broken
            self._opened_at = now
            self._shard.abandon()
            self._shard = self._open()
            self._broken = None
            logger.warning("shard recovered", extra={"shard": self.shard_id})

    def _carry_out(self, batches: list[Batch]) -> list[Outcome]:
        """Run a group in the shard; the batches of a group share one log write."""
        if len(batches) > 1 and any(batch.map_epoch != batches[0].map_epoch for batch in batches):
            return [outcome for batch in batches for outcome in self._carry_out([batch])]
        requests: Sequence[Request] = batches[0].requests
        if len(batches) > 1:
            requests = [request for batch in batches for request in batch.requests]
        clock = max(batch.clock for batch in batches)
        shard = self._shard
        self._check_lease("not done")
        try:
            now_ms = self._clock.now_ms()
            responses = shard.execute(requests, now_ms, clock, batches[0].map_epoch)
        except BaseException as error:
            # A defect, or an interrupt in the middle of applying: memory may now differ from the log.
            self._broken = error
            raise
        if shard.failed is not None:
            self._broken = shard.failed
        if len(batches) > 1 and isinstance(responses[0], Refused) and isinstance(responses[0].error, ClockSkewError):
            # The group was refused for one sender's clock, before anything was done: only that one shall hear of it.
            return [outcome for batch in batches for outcome in self._carry_out([batch])]
        return _share_out(batches, responses, shard.clock_last, now_ms)

    def _maintain(self) -> None:
        failures = 0
        while not self._stop.is_set():
            try:
                more = self.maintain_once()
                failures = 0
            except Exception:  # the thread must outlive any failure; what failed is logged and tried again
                more = False
                failures += 1
                if failures == 1 or failures % 100 == 0:
                    logger.exception("maintenance failed", extra={"shard": self.shard_id, "failures": failures})
            if more:
                continue
            self._wake.wait(IDLE_S if failures == 0 else REOPEN_INTERVAL_S)
            self._wake.clear()

    def _deliver(self, shard: Shard, messages: Sequence[tuple[int, Request]]) -> None:
        by_shard: dict[int, list[Request]] = {}
        for target, request in messages:
            by_shard.setdefault(target, []).append(request)
        for target, requests in by_shard.items():
            for request, answer in self._ask_peer(shard, target, requests):
                shard.deliver(target, request, answer, self._clock.now_ms())

    def _ask_peer(self, shard: Shard, target: int, requests: list[Request]) -> list[tuple[Request, Response]]:
        if self._peers is None:
            return []
        batch = Batch(requests, shard.clock_last, self._config.map_epoch)
        try:
            reply = self._peers(target).execute(batch, PEER_TIMEOUT_S)
        except VecraftError as error:
            # The shard keeps what it has to say until it is answered, and says it again.
            logger.info("peer did not answer", extra={"shard": self.shard_id, "peer": target, "error": error.message})
            return []
        return [pair for pair in zip(requests, reply.responses, strict=True) if not isinstance(pair[1], Refused)]

    def _stop_maintenance(self) -> None:
        self._stop.set()
        self._wake.set()
        if self._thread is not None and self._thread is not threading.current_thread():
            self._thread.join()


def port_lookup(hosts: Mapping[int, ShardPort]) -> Callable[[int], ShardPort]:
    """Return a peer lookup over hosts that may still be filling up.

    The lookup raises ``ShardUnavailableError`` for a shard that is not there (yet).
    """

    def peer(shard: int) -> ShardPort:
        port = hosts.get(shard)
        if port is None:
            raise ShardUnavailableError(f"shard {shard} is not running here", shard=shard)
        return port

    return peer


def _share_out(batches: list[Batch], responses: Sequence[Response], clock: int, now_ms: int) -> list[Outcome]:
    if len(batches) == 1:
        return [BatchReply(list(responses), clock, now_ms, batches[0].sent_ms)]
    outcomes: list[Outcome] = []
    start = 0
    for batch in batches:
        end = start + len(batch.requests)
        outcomes.append(BatchReply(list(responses[start:end]), clock, now_ms, batch.sent_ms))
        start = end
    return outcomes


def _as_failure(shard: int, cause: BaseException) -> VecraftError:
    if isinstance(cause, VecraftError):
        return cause
    return StorageFailureException(
        f"shard {shard} stopped in the middle of a write ({type(cause).__name__}) and recovers from its log; try again",
        shard=shard,
    )
