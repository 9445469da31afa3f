"""Commits: cut a transaction into its shards' parts, and make attempts at it until one is decided.

Which id an attempt has is what makes retries exactly-once:

* The caller chose no id: every attempt gets a fresh one. The next begins only when the abort of the last one is
  durable, so at most one is ever committed. What the caller gets, with the result or with an error that says
  "unknown", is the id of the last attempt: the only one that can have been committed.
* The caller chose the id: it names this transaction for ever, so there is one attempt, which any number of calls may
  take up again: each finds what the last one left, a commit included. Messages are repeated until the deadline, and a
  shard that dies half-way is waited for. Should it meet locks, it waits a little (``lock_wait_s``) and is then aborted
  for good; the error says so, and that another id is needed to try again. Trying on under an id derived from the
  caller's would not do: of two calls with the same id, one could be told "aborted" while the other goes on and commits.

Only an attempt that no shard has looked at (stale map) is repeated under the same id.

Blind writes are last-writer-wins, so meeting a lock is no conflict, only bad timing: they are tried again, with
jittered pauses, until the deadline. Over several shards an attempt gives up what it has locked at the first lock that
it meets, since two that wait for each other get nowhere. But who meets locks for longer than ``lock_wait_s``, or has
searched for what it writes (a deletion by filter), waits for them a little, and holds its own meanwhile: writers who
never pause could keep it from ever finding all shards free at once. Snapshot transactions are told.

Limits: a repetition of a chosen id must reach the same shards as before, so it is not recognised across a change of the
cluster map that moved its slots.
"""

from __future__ import annotations

from collections.abc import Sequence

from vecraft_data_model.errors import (
    ClockSkewError,
    InvalidDataException,
    StaleMapError,
    TimeoutException,
    VecraftError,
    WriteConflictException,
)
from vecraft_data_model.hlc import physical_ms
from vecraft_data_model.messages import (
    Aborted,
    Committed,
    Mutation,
    Refused,
    Request,
    Resolve,
    Status,
    Transaction,
    Undecided,
)
from vecraft_data_model.packets import CommitResult
from vecraft_data_model.placement import primary_of
from vecraft_data_model.validation import check_txn_id
from vecraft_router.asking import Asker, Patience
from vecraft_router.attempt import LOST, Attempt, Failed
from vecraft_router.effects import Ask, Flow, Tell
from vecraft_router.results import Commit
from vecraft_router.splitting import content_hash, is_by_filter, split_mutations, split_reads, with_collection_ids
from vecraft_router.state import RouterState

_RELEASE_S = 1.0
_COMPARE_S = 1.0


class Committer:
    """Flows that commit.

    Args:
        state: The router's clock, map and settings.
    """

    def __init__(self, state: RouterState) -> None:
        self._state = state
        self._asker = Asker(state)

    def commit(
        self,
        mutations: Sequence[Mutation],
        *,
        txn_id: str | None = None,
        snapshot: int | None = None,
        reads: Sequence[tuple[str, str]] = (),
        want_preimages: bool = False,
        deadline: float | None = None,
    ) -> Flow[Commit]:
        """See ``Router.commit``."""
        state = self._state
        if txn_id is not None:
            check_txn_id(txn_id)
        self._check_snapshot(snapshot, reads)
        deadline = state.deadline() if deadline is None else deadline
        if not mutations:
            return Commit(CommitResult(txn_id or state.new_txn_id(), snapshot or state.now(), 0))
        if state.skew.is_off:
            yield from self._check_clock(deadline)
        digest = content_hash(mutations)
        searched = any(map(is_by_filter, mutations))
        patience = Patience(state, deadline)
        began = state.clock.monotonic()
        while True:
            attempt_id = txn_id or state.new_txn_id()
            parts = self._parts(mutations, reads, attempt_id, digest, snapshot, want_preimages)
            locks_until = deadline
            if len(parts) > 1:
                now = state.clock.monotonic()
                waits = txn_id is not None or searched or now - began > state.config.lock_wait_s
                locks_until = now + self._lock_wait_s() if waits else 0.0
            outcome = yield from Attempt(state, parts, deadline, locks_until, hold=txn_id is not None).run()
            if isinstance(outcome, Commit):
                return outcome
            again = outcome.again and not (txn_id and outcome.spent)
            if outcome.release:
                yield from self._release(outcome.release, deadline, wait=again)
            if again and isinstance(outcome.error, StaleMapError):
                yield from self._asker.refresh_map(deadline, _told(outcome, attempt_id, chosen=bool(txn_id)))
            if not again or not (yield from patience.pause()):
                raise _told(outcome, attempt_id, chosen=bool(txn_id))

    def resolve(
        self, txn_id: str, *, participants: Sequence[int] | None, deadline: float | None
    ) -> Flow[Committed | Aborted]:
        """See ``Router.resolve``.

        When the participants are not known, every shard is asked: the primary is among them, and its answer is the one
        that counts. The others either say the same, or say who the primary is, or have never heard of it.
        """
        check_txn_id(txn_id)
        deadline = self._state.deadline() if deadline is None else deadline
        asked = list(self._state.cluster_map.all_shards())
        if participants is not None:
            asked = [primary_of(txn_id, participants)]
        patience = Patience(self._state, deadline)
        open_at: dict[int, Request] = {shard: Resolve(txn_id, held=False) for shard in asked}
        problem: VecraftError | None = None
        while True:
            replies = yield Ask(open_at, deadline)
            committed = next((reply for reply in replies.values() if isinstance(reply, Committed)), None)
            if committed is not None:
                return committed
            for shard, reply in replies.items():
                if isinstance(reply, Refused) and reply.error.details.get("forgotten"):
                    raise type(reply.error)(reply.error.message, **reply.error.details, outcome="unknown")
                if isinstance(reply, Aborted) or (
                    # it holds a part of the transaction but does not decide about it
                    isinstance(reply, Refused) and isinstance(reply.error, InvalidDataException)
                ):
                    del open_at[shard]
                elif isinstance(reply, Undecided):
                    problem = None
                elif isinstance(reply, Refused):
                    problem = reply.error
                    if isinstance(problem, StaleMapError):
                        yield from self._asker.refresh_map(deadline, problem)
                    elif not isinstance(problem, LOST):
                        raise problem.with_traceback(None)
            if not open_at:
                return Aborted(txn_id)
            if not (yield from patience.pause()):
                raise problem or _undecided(txn_id)

    def _parts(
        self,
        mutations: Sequence[Mutation],
        reads: Sequence[tuple[str, str]],
        txn_id: str,
        digest: bytes,
        snapshot: int | None,
        want_preimages: bool,
    ) -> dict[int, Transaction]:
        cluster_map = self._state.cluster_map
        by_shard = split_mutations(with_collection_ids(mutations, txn_id), cluster_map)
        reads_by_shard = split_reads(reads, cluster_map) if reads else {}
        return {
            shard: Transaction(
                txn_id, digest, by_shard.get(shard, []), snapshot, reads_by_shard.get(shard, []), want_preimages
            )
            for shard in sorted(by_shard.keys() | reads_by_shard.keys())
        }

    def _check_clock(self, deadline: float) -> Flow[None]:
        """Refuse to write with a wall clock that is off, unless it turns out that it was set meanwhile.

        Raises:
            ClockSkewError: It is off by more than 80% of the accepted skew.
        """
        state = self._state
        soon = min(deadline, state.clock.monotonic() + _COMPARE_S)
        yield Ask({shard: Status() for shard in state.cluster_map.all_shards()}, soon)
        if state.skew.is_off:
            off_ms = state.skew.off_ms
            raise ClockSkewError(
                f"this router does not write: its clock is at least {abs(off_ms)} ms "
                f"{'ahead of' if off_ms > 0 else 'behind'} the shards', and {state.config.max_clock_skew_ms} ms are "
                "accepted between any two; set this node's clock",
                off_ms=off_ms,
            )

    def _lock_wait_s(self) -> float:
        """Two that wait for each other's locks must not give up at the same moment, or neither would get anywhere."""
        return self._state.config.lock_wait_s * (0.5 + 0.5 * self._state.rng.random())

    def _release(self, requests: dict[int, Request], deadline: float, *, wait: bool) -> Flow[None]:
        """Have the locks of an aborted attempt released; wait for that if another attempt would meet them."""
        if wait:
            yield Ask(requests, min(deadline, self._state.clock.monotonic() + _RELEASE_S))
        else:
            yield Tell(requests)

    def _check_snapshot(self, snapshot: int | None, reads: Sequence[tuple[str, str]]) -> None:
        if snapshot is None:
            if reads:
                raise InvalidDataException("reads can only be validated against the snapshot that they were read at")
            return
        latest_ms = self._state.clock.now_ms() + self._state.config.max_clock_skew_ms
        if snapshot < 1 or (snapshot > self._state.hlc.last and physical_ms(snapshot) > latest_ms):
            raise InvalidDataException(
                f"snapshot {snapshot} is none that a transaction can have read at; now is {self._state.now()}",
                snapshot=snapshot,
            )


def _told(outcome: Failed, txn_id: str, *, chosen: bool) -> VecraftError:
    """Return the error as the caller gets it: with the id, with what became of it, and what to do."""
    error = outcome.error
    details = {**error.details, "txn_id": txn_id, "outcome": "aborted"}
    if isinstance(error, StaleMapError) and outcome.spent:
        return WriteConflictException(
            f"transaction {txn_id} was aborted: slots moved to other shards meanwhile. "
            "Send it again with another txn_id",
            **details,
        )
    message = error.message
    if isinstance(error, LOST):
        message = f"{message}; transaction {txn_id} was aborted"
    if chosen and outcome.spent and not isinstance(error, InvalidDataException):
        message = f"{message}. Nothing of transaction {txn_id} was written; to try again, send it with another txn_id"
    return type(error)(message, **details)


def _undecided(txn_id: str) -> VecraftError:
    return TimeoutException(f"transaction {txn_id} was not decided before the deadline", txn_id=txn_id)
