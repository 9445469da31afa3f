"""One simulated shard: the real ``Shard`` with what ``ShardHost`` does around it, in virtual time.

Threads are imitated where they matter. Writes queue while a group is being carried out, and become the next group.
Reads may be *parked*: they are then carried out in the middle of a disk operation of the writer or of maintenance, as
another thread would, unless the latch forbids it; so are writes in the middle of a checkpoint.
"""

from __future__ import annotations

import errno
import traceback
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any

from tests.simulation.disk import Crash, SimulatedDisk
from tests.simulation.history import Ledger
from tests.simulation.promises import Promises, check_tail
from tests.simulation.world import SimulatedClock, World
from vecraft_data_model.errors import (
    ChecksumValidationFailureError,
    ClockSkewError,
    CorruptionError,
    StorageFailureException,
    VecraftError,
)
from vecraft_data_model.messages import (
    Barrier,
    Batch,
    BatchReply,
    Checkpoint,
    CommitOne,
    PinSnapshot,
    Prepare,
    ReadRequest,
    Refused,
    ReleaseSnapshot,
    Request,
    Response,
)
from vecraft_shard.config import ShardConfig
from vecraft_shard.engine import Shard

TICK_S = 0.1
BALLAST_BYTES = 64 << 10
MAX_PARKED_S = 0.02
COLLECTED_S = 0.3
Answer = Callable[[BatchReply | None], None]
"""Takes the reply, or None: there is no shard at this address now."""


class WouldWait(BaseException):
    """The imitated thread would have to wait for another one here."""


class Stopwatch:
    """Seconds that pass by being looked at, so that slices of work end at the same point in every run."""

    def __init__(self) -> None:
        self._looks = 0

    def __call__(self) -> float:
        self._looks += 1
        return self._looks / 8192


READ_LIKE = ReadRequest | Barrier | PinSnapshot | ReleaseSnapshot
"""What need not queue with the writes."""
STOPWATCH = Stopwatch()
"""One for all: the planner measures the machine once per stopwatch."""


class SimulatedLatch:
    """Knows who holds what, and what an imitated reader may do meanwhile."""

    def __init__(self, root: SimulatedLatch | None = None) -> None:
        self.writing = 0
        self.excluding = 0
        self.nested = False
        self.root = root or self

    @contextmanager
    def writer(self) -> Iterator[None]:
        if self.root.nested and self.writing:
            raise WouldWait
        self.writing += 1
        try:
            yield
        finally:
            self.writing -= 1

    def shared(self) -> SharedLatch:
        return SharedLatch(self)

    @contextmanager
    def exclusive(self) -> Iterator[None]:
        self.excluding += 1
        try:
            yield
        finally:
            self.excluding -= 1

    def another(self) -> SimulatedLatch:
        return SimulatedLatch(self.root)


class SharedLatch:
    """What a reader holds; a shard has one, and enters it again and again."""

    def __init__(self, latch: SimulatedLatch) -> None:
        self._latch = latch

    def __enter__(self) -> None:
        if self._latch.root.nested and self._latch.excluding:
            raise WouldWait

    def __exit__(self, *_: object) -> None:
        return None


class SimulatedShard:
    """A shard process that dies and comes back."""

    def __init__(self, world: World, number: int, peers: list[SimulatedShard]) -> None:
        self.world, self.number, self.name, self.peers = world, number, f"shard {number}", peers
        self.clock = SimulatedClock(world)
        folder = world.folder / str(number)
        folder.mkdir()
        self.disk = SimulatedDisk(folder, world.rng, self._step)
        self.shard: Shard | None = None
        self.life = 0
        self.crash_in: int | None = None
        self.loses_power = False
        self.fail_in: int | None = None
        self._busy = False
        self._writes: list[tuple[Batch, Answer]] = []
        self._parked: dict[int, tuple[Batch, Answer]] = {}
        self._promises = Promises(world.history, number)
        self._arrivals = 0
        self._inside = False
        self._latch = SimulatedLatch()
        swarm = world.swarm
        self._config = ShardConfig(
            checkpoint_interval_s=swarm.checkpoint_interval,
            history_retention_s=swarm.history,
            txn_retention_s=swarm.retention,
            resolve_after_ms=swarm.resolve_after_ms,
            compact_min_rows=swarm.compact_rows,
            index_min_rows=swarm.index_rows,
            index_slice_ms=swarm.index_slice_ms,
            ballast_bytes=BALLAST_BYTES,
            verify_writes=True,
        )
        self.start()
        world.after(world.rng.random() * TICK_S, self._tick)

    # ------------------------------------------------------------------------------------------ life, death

    def start(self) -> None:
        """Open the shard, unless it is open; it may die on the way."""
        if self.shard is not None:
            return
        self.life += 1
        self._latch = SimulatedLatch()
        self._writes, self._parked, self._busy = [], {}, False
        if not self.world.calm and self.world.rng.random() < self.world.swarm.relapses:
            self.crash_soon()
        try:
            shard = Shard.open(
                self.disk,
                self.number,
                self.clock.now_ms(),
                self._config,
                self._latch,
                stopwatch=STOPWATCH,
                salt=self.world.rng.getrandbits(64),
            )
        except Crash:
            self._die()
        except StorageFailureException as error:
            # The epoch of a damaged file is told from a new owner's by nothing: there is no way on either.
            if self.number not in self.world.damaged or "epoch" not in error.details:
                self.world.after(0.2, self.start)
        except Exception as error:
            if not self._damage_found(error):
                self.world.history.problem(f"{self.name} does not start: {traceback.format_exc()}")
        else:
            self.world.restarts += 1
            state = shard._state
            state.outcomes = Ledger(self.world.history, self.number, state.outcomes)
            state.locations.transaction = self._stepped(state.locations.transaction)  # type: ignore[method-assign]
            self.shard = shard
            self.world.note(f"{self.name} started: prepared {list(state.prepared)} clock {shard.clock_last}")

    def crash_soon(self) -> None:
        """Die at one of the next operations of the disk."""
        rng = self.world.rng
        self.loses_power = rng.random() < self.world.swarm.power
        self.crash_in = rng.choice((0, 1, 2, 3, 5, 8, 13, 30))

    def _stepped(self, transaction: Callable[[], AbstractContextManager[None]]) -> Callable[[], Any]:
        """SQLite's commit is an operation of the disk, too: the process may end right before it."""

        @contextmanager
        def stepped() -> Iterator[None]:
            with transaction():
                yield
                self._step("commit", "shard.sqlite")

        return stepped

    def crash(self, *, power: bool) -> None:
        """Die now."""
        self.loses_power = power
        self._die()

    def _die(self) -> None:
        world = self.world
        world.faults += 1
        world.note(f"{self.name} dies, power lost: {self.loses_power}")
        self.crash_in = self.fail_in = None
        self._close()
        if self.loses_power:
            self.disk.lose_power()
        elif world.swarm.flips and world.damaged <= {self.number} and not world.calm:
            # What a power failure leaves of the last frames of the log may look like damage: this is not about that.
            world.damaged.add(self.number)
            for _ in range(world.swarm.flips):
                world.note(f"{self.name} is damaged: {self.disk.flip()}")
        world.after(world.rng.choice((0.001, 0.003, 0.01, 0.1, 0.6)) * (0.5 + world.rng.random()), self.start)

    def _close(self) -> None:
        shard, self.shard = self.shard, None
        self.life += 1
        if shard is not None:
            shard._state.locations.connection.close()  # rolls back what was not committed
            compaction = shard._background._compaction
            if isinstance(compaction, Generator):
                # Python ends it when it collects the shard: here at a time that follows from the seed.
                self.world.after(COLLECTED_S, compaction.close)

    def _damage_found(self, error: Exception) -> bool:
        """Whether this says that files are damaged, and they are."""
        told = isinstance(error, CorruptionError | ChecksumValidationFailureError)
        if told and self.number in self.world.damaged:
            self.world.note(f"{self.name} finds damage: {error}")
            return True
        return False

    def _step(self, kind: str, name: str) -> None:
        """Called before every operation of the disk."""
        if self.crash_in is not None:
            self.crash_in -= 1
            if self.crash_in < 0:
                self.crash_in = None
                self.world.note(f"{self.name} crashes at {kind} {name}")
                raise Crash
        if self.fail_in is not None:
            self.fail_in -= 1
            if self.fail_in < 0:
                self.fail_in = None
                self.world.faults += 1
                raise StorageFailureException(f"cannot {kind} {name}: told to fail", path=name, errno=errno.EIO)
        if (self._parked or self._writes) and not self._inside and not self._latch.excluding:
            self._others_go_on()

    def _others_go_on(self) -> None:
        """Somebody waits for the disk: let other threads do what they can."""
        shard = self.shard
        if shard is None:
            return
        self._inside = self._latch.nested = True
        done: list[tuple[Answer, BatchReply]] = []
        try:
            for arrival, (batch, answer) in list(self._parked.items()):
                try:
                    done.append((answer, self._execute(shard, [batch])[0]))
                except WouldWait:
                    continue
                del self._parked[arrival]
            self._latch.nested = False
            if self._writes and not self._latch.writing:
                group, self._writes = self._writes, []
                replies = self._execute(shard, [batch for batch, _ in group])
                done += zip((answer for _, answer in group), replies, strict=True)
        finally:
            self._inside = self._latch.nested = False
        for answer, reply in done:
            self._later(0.0, lambda answer=answer, reply=reply: answer(reply))  # type: ignore[misc]

    def _run(self, what: Callable[[Shard], None]) -> None:
        """Do something with the shard, which may be its end."""
        shard = self.shard
        if shard is None:
            return
        try:
            what(shard)
        except Crash:
            self._die()
        except StorageFailureException:
            self._stopped()
        except Exception as error:
            if not self._damage_found(error):
                self.world.history.problem(f"{self.name} failed: {traceback.format_exc()}")
            self._stopped()
        else:
            if shard.failed is not None and self.shard is shard:
                self._stopped()

    def _stopped(self) -> None:
        """The shard stopped itself: the host opens it again after a while."""
        self.world.note(f"{self.name} stopped itself")
        self._close()
        self.world.after(0.3, self.start)

    # --------------------------------------------------------------------------------------------- requests

    def receive(self, batch: Batch, answer: Answer) -> None:
        """Take a batch from the network."""
        if self.shard is None:
            if not self.world.swarm.silent:
                answer(None)
            return
        if all(isinstance(request, READ_LIKE) for request in batch.requests):
            if self.world.rng.random() < self.world.swarm.park:
                self._park(batch, answer)
            else:
                self._run(lambda shard: answer(self._execute(shard, [batch])[0]))
            return
        self._writes.append((batch, answer))
        if not self._busy:
            self._busy = True
            self._later(self._sync_time(), self._work)

    def _park(self, batch: Batch, answer: Answer) -> None:
        self._arrivals += 1
        arrival = self._arrivals
        self._parked[arrival] = (batch, answer)

        def at_last() -> None:
            if self._parked.pop(arrival, None) is not None:
                self._run(lambda shard: answer(self._execute(shard, [batch])[0]))

        self._later(self.world.rng.random() * MAX_PARKED_S, at_last)

    def _later(self, seconds: float, what: Callable[[], None]) -> None:
        """Do something later, unless this process has died by then."""
        life = self.life
        self.world.after(seconds, lambda: what() if self.life == life else None)

    def _sync_time(self) -> float:
        """Time passes before what is written can be seen, and again before anybody hears of it."""
        return self.world.swarm.sync_time * self.world.rng.random()

    def _work(self) -> None:
        """Carry out what is queued as one group."""
        group, self._writes = self._writes, []
        if not group:
            self._busy = False
            return

        def carry_out(shard: Shard) -> None:
            replies = self._execute(shard, [batch for batch, _ in group])

            def finished() -> None:
                for (_, answer), reply in zip(group, replies, strict=True):
                    answer(reply)
                self._later(self._sync_time(), self._work)

            self._later(self._sync_time(), finished)

        self._run(carry_out)

    def _note_handed(self, shard: Shard, requests: Sequence[Request]) -> bool:
        """Write down what transactions the shard is about to look at. Returns whether it is one twice."""
        state, seen = shard._state, set()
        if not self.world.swarm.weights["delete_where"]:
            return False  # only those may be sent again with other records
        for request in requests:
            if isinstance(request, CommitOne | Prepare):
                txn = request.txn
                if txn.txn_id in seen:
                    return True
                seen.add(txn.txn_id)
                if txn.txn_id not in state.prepared and state.outcome_of(txn.txn_id) is None:
                    self.world.history.handed(self.number, txn)
        return False

    def _execute(self, shard: Shard, batches: Sequence[Batch]) -> list[BatchReply]:
        requests = [request for batch in batches for request in batch.requests]
        if self._note_handed(shard, requests) and len(batches) > 1:
            return [reply for batch in batches for reply in self._execute(shard, [batch])]
        clock = max(batch.clock for batch in batches)
        served, undecided = self._promises.served, self._promises.undecided(shard, requests)
        responses = shard.execute(requests, self.clock.now_ms(), clock)
        self._promises.check(served, undecided, requests, responses)
        if self.world.swarm.weights["near"] and self.number not in self.world.damaged:
            check_tail(self.world.history, shard, requests, responses)
        if self.world.trace is not None:
            for request, response in zip(requests, responses, strict=True):
                self.world.note(f"{self.name}: {shown(request)} -> {shown(response)}")
        if len(batches) > 1 and isinstance(responses[0], Refused) and isinstance(responses[0].error, ClockSkewError):
            return [reply for batch in batches for reply in self._execute(shard, [batch])]
        replies, start = [], 0
        for batch in batches:
            end = start + len(batch.requests)
            replies.append(BatchReply(responses[start:end], shard.clock_last))
            start = end
        return replies

    # ------------------------------------------------------------------------------------------- background

    def checkpoint(self, *, compact: bool, index: bool) -> None:
        """What an administrator may ask for at any time."""
        request = Checkpoint(compact, index)
        self._run(lambda shard: self._check(shard.execute([request], self.clock.now_ms())[0]))

    def _check(self, response: Response) -> None:
        if isinstance(response, Refused) and isinstance(response.error, StorageFailureException):
            raise response.error

    def _tick(self) -> None:
        pause = TICK_S if not self.world.calm else 5 * TICK_S
        self.world.after(pause * (0.5 + self.world.rng.random()), self._tick)
        self._run(self._maintain)

    def _maintain(self, shard: Shard) -> None:
        shard.maintain(self.clock.now_ms(), self.world.swarm.maintain_ms)
        by_shard: dict[int, list[Request]] = {}
        for target, request in sorted(shard.outgoing(self.clock.now_ms()), key=repr):
            by_shard.setdefault(target, []).append(request)
        for target, requests in by_shard.items():
            self._ask_peer(target, Batch(requests, shard.clock_last))

    def _ask_peer(self, target: int, batch: Batch) -> None:
        peer, life = self.peers[target], self.life

        def hear(reply: BatchReply | None) -> None:
            if reply is None or self.life != life:
                return
            for request, response in zip(batch.requests, reply.responses, strict=True):
                if not isinstance(response, Refused):
                    self._run(lambda shard, q=request, r=response: self._deliver(shard, target, q, r))  # type: ignore[misc]

        def answer(reply: BatchReply | None) -> None:
            self.world.send(peer.name, self.name, lambda: hear(reply))

        self.world.send(self.name, peer.name, lambda: peer.receive(batch, answer))

    def _deliver(self, shard: Shard, target: int, request: Request, response: Response) -> None:
        self.world.note(f"{self.name} hears from {target}: {shown(request)} -> {shown(response)}")
        shard.deliver(target, request, response, self.clock.now_ms())


def shown(message: object) -> str:
    """One line about a message."""
    if isinstance(message, Refused):
        error: VecraftError = message.error
        return f"Refused({type(error).__name__}: {error.message[:100]})"
    return repr(message)[:220]
