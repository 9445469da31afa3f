"""Planted bugs: each breaks one rule of the product, from outside, for as long as its context lasts.

``rule`` says which promise it breaks; those marked ◆ were found to matter by breaking them in a model of the protocol.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import vecraft_router.asking
import vecraft_router.attempt
import vecraft_router.merging
import vecraft_router.reads
import vecraft_shard.engine
import vecraft_shard.participant
import vecraft_shard.recovery
import vecraft_shard.state
from vecraft_data_model.errors import VecraftError
from vecraft_data_model.hlc import HybridLogicalClock
from vecraft_data_model.messages import (
    Aborted,
    Committed,
    Decide,
    Finish,
    Finished,
    Get,
    Request,
)
from vecraft_router.attempt import Attempt, Failed
from vecraft_router.effects import Flow, Sleep, Spawn
from vecraft_router.state import RouterState
from vecraft_shard.admission import Admission
from vecraft_shard.engine import Shard
from vecraft_shard.locks import Locks
from vecraft_shard.participant import Participant
from vecraft_shard.state import ShardState
from vecraft_shard.timeline import Timeline
from vecraft_shard.versions import VersionTable
from vecraft_shard.write_group import WriteGroup

Patch = tuple[Any, str, Any]
"""Where, which name, what instead."""


@dataclass(frozen=True, slots=True)
class Mutant:
    """A planted bug.

    ``focus``: it shows in seeds that are about this, if anywhere (see ``swarm``); empty: in any. ``log_alone``: it is
    hunted with logs instead of whole clusters, which tear their log in the same place only once in very many seeds.
    """

    name: str
    rule: str
    patches: Callable[[], list[Patch]]
    focus: str = ""
    log_alone: bool = False

    @contextlib.contextmanager
    def planted(self) -> Iterator[None]:
        """Have the bug for a while."""
        with contextlib.ExitStack() as stack:
            for owner, name, value in self.patches():
                missing = object()
                before = owner.__dict__.get(name, missing)
                setattr(owner, name, value)
                if before is missing:
                    stack.callback(delattr, owner, name)
                else:
                    stack.callback(setattr, owner, name, before)
            yield


MUTANTS: dict[str, Mutant] = {}


def mutant(
    rule: str, *, focus: str = "", log_alone: bool = False
) -> Callable[[Callable[[], list[Patch]]], Callable[[], list[Patch]]]:
    """Enter a planted bug into the list, under the name of the function."""

    def enter(patches: Callable[[], list[Patch]]) -> Callable[[], list[Patch]]:
        name = patches.__name__.replace("_", "-")
        MUTANTS[name] = Mutant(name, rule, patches, focus, log_alone)
        return patches

    return enter


def nothing(*_: Any, **__: Any) -> None:
    """Do nothing."""


# ---------------------------------------------------------------------------------------------------------- time


@mutant("◆ a restarted clock begins at the durable ceiling")
def no_ceiling() -> list[Patch]:
    original = vecraft_shard.recovery.recover

    def recover(*arguments: Any) -> ShardState:
        state = original(*arguments)
        ends = [int(c.versions.max_begin) for c in state.collections.values()]
        prepared = [p.record.ts for p in state.prepared.values()]
        last = max([0, *ends, *prepared])
        state.timeline.clock = HybridLogicalClock(last, state.config.max_clock_skew_ms)
        state.timeline.ceiling = 2**62
        return state

    return [(vecraft_shard.engine, "recover", recover)]


@mutant("◆ nothing is served above the durable ceiling")
def ceiling_not_raised_by_reads() -> list[Patch]:
    return [(Shard, "_raise_ceiling", nothing), (Timeline, "ceiling_is_near", lambda *_: False)]


@mutant("◆ a shard that served a read at S does not commit at or below S")
def reads_do_not_move_the_clock() -> list[Patch]:
    def admit(self: Timeline, snapshot: int, now_ms: int, collection_id: str | None) -> list[tuple[str, int]]:
        return self._blocking(snapshot, collection_id)

    return [(Timeline, "admit", admit), (HybridLogicalClock, "now", lambda self, now_ms: max(self.last, now_ms << 16))]


@mutant("◆ a transaction counts as undecided from the moment its timestamp is assigned")
def registered_late() -> list[Patch]:
    def assign(self: Timeline, txn_id: str, now_ms: int, primary: int, footprint: frozenset[str]) -> int:
        return self.clock.tick(now_ms)

    original = ShardState.hold

    def hold(self: ShardState, prepared: Any) -> None:
        original(self, prepared)
        record = prepared.record
        footprint = vecraft_shard.state.footprint_of(record.mutations)
        self.timeline.restore(record.txn_id, record.ts, record.primary, footprint)

    return [(Timeline, "assign", assign), (ShardState, "hold", hold)]


@mutant("a read waits for what is undecided at or below its snapshot")
def reads_do_not_wait() -> list[Patch]:
    return [(Timeline, "_blocking", lambda *_: [])]


@mutant("a read waits for what is undecided at its snapshot, not only below it")
def undecided_off_by_one() -> list[Patch]:
    def blocking(self: Timeline, snapshot: int, collection_id: str | None) -> list[tuple[str, int]]:
        return [
            (txn_id, pending.primary)
            for txn_id, pending in self._undecided.items()
            if pending.ts + (1 << 16) <= snapshot and pending.concerns(collection_id)
        ]

    return [(Timeline, "_blocking", blocking)]


@mutant("◆ a strong read waits for all that was prepared on its arrival")
def no_barrier() -> list[Patch]:
    return [(Timeline, "undecided", lambda self: [])]


@mutant("a strong read is at the largest clock of its shards")
def strong_reads_at_the_smallest_clock() -> list[Patch]:
    return [(vecraft_router.reads, "max", min)]


@mutant("◆ a snapshot is fixed before the first shard is asked")
def snapshot_moves_on_retry() -> list[Patch]:
    def ask_again(request: Request, reply: Any) -> Request:
        if isinstance(request, Get):
            return Get(collection=request.collection, ids=request.ids, min_ts=request.snapshot)
        return request

    return [(vecraft_router.asking, "_ask_again", ask_again)]


@mutant("a session's reads are at or above its token")
def token_ignored() -> list[Patch]:
    return [(RouterState, "observe", nothing), (RouterState, "overhear", lambda *_: False)]


# ---------------------------------------------------------------------------------------------------- two phases


@mutant("a repeated transaction is recognised")
def no_dedupe() -> list[Patch]:
    return [(Participant, "_decided", lambda *_: None), (Participant, "_answer_by_id", lambda *_: None)]


@mutant("a repeated transaction is recognised after a checkpoint")
def dedupe_lost_at_checkpoint() -> list[Patch]:
    return [(ShardState, "outcome_of", lambda self, txn_id: self.outcomes.get(txn_id))]


@mutant("◆ the primary keeps an outcome until all participants hold it")
def forgotten_early() -> list[Patch]:
    original = Participant._log_commit

    def log_commit(self: Participant, prepared: Any, ts: int, others: Any, group: Any, answer: Any, *rest: Any) -> None:
        def answer_and_forget(response: Any) -> None:
            answer(response)
            dict.pop(self._state.outcomes, prepared.record.txn_id, None)

        original(self, prepared, ts, [], group, answer_and_forget if others else answer, *rest)

    return [(Participant, "_log_commit", log_commit)]


@mutant("◆ a participant acknowledges after its own fsync, and only then the primary may forget")
def acknowledged_before_fsync() -> list[Patch]:
    original, acknowledge = Participant._finish, Participant._acknowledge

    def finish(self: Participant, request: Finish, group: Any, answer: Any, now: int) -> None:
        answer(Finished(request.txn_id))
        if request.txn_id in self._state.prepared and now % 2:
            return  # it crashes before it gets round to it
        original(self, request, group, lambda _: None, now)

    def forget(self: Participant, request: Any, group: Any, answer: Any) -> None:
        acknowledge(self, request, group, answer)
        if request.txn_id not in self._state.unacknowledged:
            dict.pop(self._state.outcomes, request.txn_id, None)

    return [(Participant, "_finish", finish), (Participant, "_acknowledge", forget)]


@mutant("◆ who has voted yes never aborts on its own")
def unilateral_abort() -> list[Patch]:
    def abort_abandoned(self: Shard, now_ms: int) -> None:
        limit = now_ms - self._state.config.resolve_after_ms
        stuck = [txn_id for txn_id, p in self._state.prepared.items() if p.since_ms <= limit]
        self.execute([Finish(txn_id, 0) for txn_id in stuck], now_ms)

    return [(Shard, "_abort_abandoned", abort_abandoned)]


@mutant("◆ before the primary says aborted it writes that down, also of ids that it never heard of")
def no_tombstone() -> list[Patch]:
    original = Participant._abort

    def abort(self: Participant, txn_id: str, *arguments: Any, **options: Any) -> None:
        if self._state.outcome_of(txn_id) is None and txn_id not in self._state.prepared:
            arguments[1](Aborted(txn_id))
        else:
            original(self, txn_id, *arguments, **options)

    return [(Participant, "_abort", abort)]


@mutant("◆ a final refusal of a one-shard commit is durable before it is told")
def soft_refusal() -> list[Patch]:
    return [(vecraft_shard.participant, "_FINAL", ())]


@mutant("◆ a router says aborted only once that is durable at the primary")
def aborted_told_early() -> list[Patch]:
    def refuse(self: Attempt, error: VecraftError) -> Flow[Failed]:
        yield Sleep(0.0)
        return Failed(error, again=self._lock_met(error), release=self._release())

    return [(Attempt, "_refuse", refuse)]


@mutant("a router says committed only once the primary has decided")
def committed_told_early() -> list[Patch]:
    original = Attempt._until_answered

    def until_answered(self: Attempt, request: Request) -> Flow[Any]:
        if isinstance(request, Decide):
            yield Spawn(original(self, request))
            return Committed(request.commit_ts)
        return (yield from original(self, request))

    return [(Attempt, "_until_answered", until_answered)]


@mutant("all participants commit at one timestamp")
def own_timestamps() -> list[Patch]:
    original = Participant._log_commit

    def log_commit(self: Participant, prepared: Any, ts: int, *rest: Any) -> None:
        original(self, prepared, max(prepared.record.ts, min(ts, prepared.record.ts)), *rest)

    return [(Participant, "_log_commit", log_commit)]


@mutant("a decision about one content of an id does not touch another")
def contents_confused() -> list[Patch]:
    original = Participant._finish

    def finish(self: Participant, request: Finish, *rest: Any) -> None:
        original(self, Finish(request.txn_id, request.commit_ts), *rest)

    return [(Participant, "_finish", finish)]


@mutant("nothing is logged of another content of an id while one is prepared under it")
def refused_over_the_prepared() -> list[Patch]:
    original = Participant._commit_one

    def commit_one(self: Participant, txn: Any, *rest: Any) -> None:
        prepared = self._state.prepared
        held = prepared.pop(txn.txn_id, None)
        try:
            original(self, txn, *rest)
        finally:
            if held is not None:
                prepared[txn.txn_id] = held

    return [(Participant, "_commit_one", commit_one)]


# ------------------------------------------------------------------------------------------------------ conflicts


@mutant("prepared transactions hold locks")
def no_locks() -> list[Patch]:
    return [(Locks, "acquire", nothing)]


@mutant("prepared serializable transactions lock what they read")
def no_read_locks() -> list[Patch]:
    return [(Locks, "reader_of", nothing)]


@mutant("serializable transactions validate what they read")
def reads_not_validated() -> list[Patch]:
    return [(Admission, "_check_reads", nothing)]


@mutant("first committer wins")
def last_committer_wins() -> list[Patch]:
    return [(VersionTable, "changed_after", lambda *_: False)]


@mutant("what a batch has not applied yet is finished before a request that touches it")
def groups_overlap() -> list[Patch]:
    return [(WriteGroup, "must_precede", lambda *_, **__: False)]
