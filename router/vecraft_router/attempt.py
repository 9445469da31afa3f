"""One attempt at a transaction: PROTOCOL §4 from the router's side.

::

    one shard       CommitOne ─────────────────────────────────────────────▶ Committed

    several         Prepare ──▶ all shards, in parallel                       (a lock is a "no" at once; asked again)
                       │ all yes: commit_ts = the largest prepare_ts
                    Decide ───▶ the primary ══ commit point ══▶ Committed ──▶ the caller is answered
                       │                                                      in the background:
                       │ any no                                               Finish ▶ the others, Acknowledge ▶ primary
                    AbortTransaction ▶ the primary ▶ Aborted ─▶ the caller is told
                                                                              in the background: Finish(0) ▶ the others

What the router knows, and may tell:

* *Committed* once the primary (or the one shard) has said so. A repeated request is answered from its log.
* *Aborted* only once that is durable at the primary: a request that got lost may still be under way and win later.
  ``CommitOne`` refused for good (a conflict, a precondition) has been made durable by the shard itself.
* An input that can never be accepted (``InvalidDataException``) is told as it is: no copy of it can win.
* Otherwise *unknown*: the error carries ``outcome="unknown"`` and the ``txn_id`` to ask again with.

A participant that has voted asks for an abort when nobody comes back to it for a while. Where the id was chosen by the
caller, an abort would spend it; so the router comes back, by repeating ``Prepare``, while a shard that is being
restarted keeps it waiting. Participants allow that for a few seconds.

Every message may be repeated: all are idempotent under the transaction id. Not done here: new attempts after an abort
(:mod:`vecraft_router.commit`), and finishing for good, which the primary sees to by itself.
"""

from __future__ import annotations

import msgspec

from vecraft_data_model.errors import (
    InvalidDataException,
    OverloadedError,
    PreconditionFailedError,
    ReadWriteConflictException,
    ShardUnavailableError,
    SnapshotTooOldError,
    StaleMapError,
    StorageFailureException,
    TimeoutException,
    VecraftError,
    WriteConflictException,
)
from vecraft_data_model.messages import (
    Aborted,
    AbortTransaction,
    Acknowledge,
    CommitOne,
    Committed,
    Decide,
    Delete,
    Finish,
    Finished,
    Prepare,
    Prepared,
    Put,
    Refused,
    Request,
    Response,
    Transaction,
)
from vecraft_data_model.packets import CommitResult
from vecraft_data_model.placement import primary_of
from vecraft_router.asking import Patience
from vecraft_router.effects import Ask, Flow, RefreshMap, Spawn
from vecraft_router.merging import concat_rows
from vecraft_router.results import Commit
from vecraft_router.state import RouterState

LOST = (ShardUnavailableError, TimeoutException)
"""The request may have been carried out all the same, or be carried out later."""

_NEVER_ACCEPTED = (InvalidDataException, SnapshotTooOldError)
"""No copy of the request can be accepted later: nothing has to be aborted before this is told."""

_UNTOUCHED = (StaleMapError, OverloadedError)
"""The request was turned away, and no copy of it will be let in: it did not leave, or names a map that is outdated.

A full disk is none of these: a copy that is still on its way may find room.
"""

_FINAL_FOR_ONE = (WriteConflictException, ReadWriteConflictException, PreconditionFailedError)
"""What a shard refuses a ``CommitOne`` with after having made an ABORT durable (unless a key was merely locked)."""


class Failed(msgspec.Struct, frozen=True):
    """The attempt came to nothing, for certain.

    Attributes:
        error: Why.
        again: Whether another attempt may succeed without the caller having to look at anything anew.
        spent: Whether the id is used up: durably aborted. If not, no shard has heard of it.
        release: To be sent to shards that may hold locks for it still.
    """

    error: VecraftError
    again: bool = False
    spent: bool = True
    release: dict[int, Request] = {}


class Attempt:
    """One transaction id on its way.

    Args:
        state: The router's clock, map and settings.
        parts: Shard → its part of the transaction; all have the same id.
        deadline: Until when an answer is wanted.
        locks_until: Until when to wait for locks that others hold, with the same id. Of a transaction over several
            shards this must be soon: the locks that it has got already are held meanwhile.
        hold: Whether to keep the shards that have voted from giving up while others are away: for an id that cannot be
            replaced by another one.
    """

    def __init__(
        self,
        state: RouterState,
        parts: dict[int, Transaction],
        deadline: float,
        locks_until: float,
        *,
        hold: bool = False,
    ) -> None:
        self._state = state
        self._parts = parts
        self._participants = sorted(parts)
        self._txn_id = parts[self._participants[0]].txn_id
        self._content_hash = parts[self._participants[0]].content_hash
        self._primary = primary_of(self._txn_id, self._participants)
        self._deadline = deadline
        now = state.clock.monotonic()
        # Part of the time is kept for making an abort durable, so that its outcome can be told.
        self._give_up_at = deadline - min(state.config.abort_reserve_s, max(0.0, deadline - now) / 4)
        self._locks_until = min(locks_until, self._give_up_at)
        self._hold = hold
        self._votes: dict[int, Prepared | Committed] = {}
        self._in_doubt = False
        self._problem: VecraftError = TimeoutException("the deadline passed before the transaction was sent")

    def run(self) -> Flow[Commit | Failed]:
        """Carry the attempt through.

        Raises:
            VecraftError: With ``outcome="unknown"``: it may have been committed, or may be later.
        """
        if len(self._participants) == 1:
            return self._alone()
        return self._together()

    # ------------------------------------------------------------------------------------------- one shard

    def _alone(self) -> Flow[Commit | Failed]:
        shard = self._primary
        request: dict[int, Request] = {shard: CommitOne(self._parts[shard])}
        patience = Patience(self._state, self._give_up_at)
        while True:
            reply = (yield Ask(request, self._give_up_at))[shard]
            if isinstance(reply, Committed):
                return self._committed(reply.commit_ts, [reply])
            if isinstance(reply, Aborted):
                return self._was_aborted()
            if not isinstance(reply, Refused):
                self._problem = TimeoutException(f"shard {shard} had not decided before the deadline", shard=shard)
            elif isinstance(reply.error, LOST):
                self._lost(reply.error)
            elif self._may_wait(reply.error):
                self._problem = reply.error
            elif isinstance(reply.error, _FINAL_FOR_ONE) and not _is_locked(reply.error):
                return Failed(reply.error)
            elif isinstance(reply.error, _UNTOUCHED) and not self._in_doubt:
                return Failed(reply.error, again=isinstance(reply.error, StaleMapError), spent=False)
            else:
                return (yield from self._refuse(reply.error))
            if not (yield from patience.pause()):
                return (yield from self._refuse(self._problem))

    # --------------------------------------------------------------------------------------- several shards

    def _together(self) -> Flow[Commit | Failed]:
        refusals: dict[int, VecraftError] = {}
        waiting = set(self._participants)
        patience = Patience(self._state, self._give_up_at)
        while waiting and not refusals:
            replies = yield self._ask_for_votes(waiting)
            waiting = self._count_votes(replies, refusals)
            if waiting and not refusals and not (yield from patience.pause()):
                refusals[min(waiting)] = self._problem
        decided = next((vote for vote in self._votes.values() if isinstance(vote, Committed)), None)
        if decided is None and refusals:
            return (yield from self._no(refusals, bool(self._votes)))
        if decided is not None:
            commit_ts = decided.commit_ts
        else:
            commit_ts = max(vote.prepare_ts for vote in self._votes.values() if isinstance(vote, Prepared))
            decision = yield from self._until_answered(Decide(self._txn_id, commit_ts))
            if decision is None:
                raise self._unknown()
            if isinstance(decision, Aborted):
                return self._was_aborted()
            if not isinstance(decision, Committed):
                # It has not decided and will not do so: whatever came in between, only an abort is left.
                error = decision.error if isinstance(decision, Refused) else self._abandoned()
                return (yield from self._refuse(error))
            commit_ts = decision.commit_ts
        yield Spawn(self._spread(commit_ts))
        return (yield from self._complete(commit_ts))

    def _ask_for_votes(self, waiting: set[int]) -> Ask:
        """Ask whoever has not voted; under ``hold``, the others too, whom that keeps from asking for an abort."""
        if not self._hold:
            return Ask({shard: self._prepare(shard) for shard in sorted(waiting)}, self._give_up_at)
        renew_by = self._state.clock.monotonic() + self._state.config.resolve_after_ms / 2000
        asked = waiting | self._votes.keys()
        return Ask({shard: self._prepare(shard) for shard in sorted(asked)}, min(self._give_up_at, renew_by))

    def _prepare(self, shard: int) -> Prepare:
        return Prepare(self._parts[shard], self._primary, self._participants)

    def _count_votes(self, replies: dict[int, Response], refusals: dict[int, VecraftError]) -> set[int]:
        """Sort the replies into votes and refusals; return who has to be asked again."""
        again: set[int] = set()
        for shard, reply in replies.items():
            if isinstance(reply, Prepared | Committed):
                self._votes[shard] = self._better(shard, reply)
            elif isinstance(reply, Aborted):
                refusals[shard] = self._was_aborted().error
            elif not isinstance(reply, Refused):
                self._problem = TimeoutException(f"shard {shard} had not voted before the deadline", shard=shard)
                again.add(shard)
            elif isinstance(reply.error, LOST):
                self._lost(reply.error)
                again.add(shard)
            elif self._may_wait(reply.error):
                self._problem = reply.error
                again.add(shard)
            elif shard not in self._votes:
                refusals[shard] = reply.error
        return again - self._votes.keys()

    def _better(self, shard: int, vote: Prepared | Committed) -> Prepared | Committed:
        """Return a repeated vote, unless it knows less than the first one (which had the preimages)."""
        known = self._votes.get(shard)
        return known if isinstance(known, Prepared) and isinstance(vote, Prepared) and known.preimages else vote

    def _no(self, refusals: dict[int, VecraftError], some_yes: bool) -> Flow[Commit | Failed]:
        """Somebody voted no: abort, and say why."""
        error = max(refusals.values(), key=_weight)
        forgotten = [refusal for refusal in refusals.values() if refusal.details.get("forgotten")]
        if forgotten:
            return (yield from self._refuse(forgotten[0]))
        if not some_yes and not self._in_doubt and isinstance(error, _UNTOUCHED):
            return Failed(error, again=isinstance(error, StaleMapError), spent=False)
        if isinstance(refusals.get(self._primary), InvalidDataException):
            # The primary will never accept this, so nobody can commit it. It must not be asked to abort the id either:
            # if the id was used before with other content, that is another transaction.
            return Failed(error, release=self._release())
        return (yield from self._refuse(error))

    def _spread(self, commit_ts: int) -> Flow[None]:
        """Tell the others of the commit, and the primary that they know. The primary would do it, only later."""
        others = [shard for shard in self._participants if shard != self._primary]
        until = self._state.deadline(self._state.config.background_s)
        replies = yield Ask({shard: Finish(self._txn_id, commit_ts, self._content_hash) for shard in others}, until)
        known = [shard for shard, reply in replies.items() if isinstance(reply, Finished)]
        if known:
            yield Ask({self._primary: Acknowledge(self._txn_id, known)}, until)

    # ------------------------------------------------------------------------------------------ abort, in doubt

    def _refuse(self, error: VecraftError) -> Flow[Commit | Failed]:
        """Make the abort durable, then fail with ``error``; or find that it was committed after all.

        Raises:
            VecraftError: Neither is certain before the deadline.
        """
        if error.details.get("forgotten"):
            # It may be a repetition of what was committed long ago: there is nobody left who could tell.
            raise type(error)(error.message, **{**error.details, "txn_id": self._txn_id, "outcome": "unknown"})
        if isinstance(error, _NEVER_ACCEPTED) and len(self._participants) == 1:
            return Failed(error)
        self._problem = error
        decision = yield from self._until_answered(AbortTransaction(self._txn_id))
        if isinstance(decision, Committed):
            if decision.content_hash not in (b"", self._content_hash):
                return Failed(_used_before(self._txn_id), release=self._release())
            self._votes.setdefault(self._primary, decision)
            if len(self._participants) > 1:
                yield Spawn(self._spread(decision.commit_ts))
            return (yield from self._complete(decision.commit_ts))
        if isinstance(decision, Aborted):
            again = isinstance(error, StaleMapError) or self._lock_met(error)
            return Failed(error, again=again, release=self._release())
        if isinstance(decision, Refused):
            self._problem = decision.error
        raise self._unknown()

    def _complete(self, commit_ts: int) -> Flow[Commit]:
        """Return the commit, with what every shard wrote; those that were not heard of are asked for that.

        Raises:
            VecraftError: One of them does not say before the deadline: asked again, it will.
        """
        for shard, part in self._parts.items():
            if shard not in self._votes and not part.want_preimages:
                writes = [mutation for mutation in part.mutations if isinstance(mutation, Put | Delete)]
                if not any(isinstance(mutation, Delete) for mutation in writes):
                    # a put writes each of its records, whatever was there before
                    self._votes[shard] = Committed(commit_ts, sum(len(mutation.ids) for mutation in writes))
        patience = Patience(self._state, self._deadline)
        while missing := [shard for shard in self._participants if shard not in self._votes]:
            replies = yield Ask({shard: self._prepare(shard) for shard in missing}, self._deadline)
            for shard, reply in replies.items():
                if isinstance(reply, Prepared | Committed):
                    self._votes[shard] = reply
                elif isinstance(reply, Refused):
                    self._problem = reply.error
                    if isinstance(reply.error, StaleMapError):
                        self._state.adopt((yield RefreshMap()))
            if len(self._votes) < len(self._participants) and not (yield from patience.pause()):
                raise self._unknown(f"transaction {self._txn_id} was committed, but how many records it deleted")
        return self._committed(commit_ts, list(self._votes.values()))

    def _until_answered(self, request: Request) -> Flow[Response | None]:
        """Ask the primary until it answers, one way or the other; None when the deadline passes before."""
        patience = Patience(self._state, self._deadline)
        while True:
            reply: Response = (yield Ask({self._primary: request}, self._deadline))[self._primary]
            if isinstance(reply, Committed | Aborted):
                return reply
            if not isinstance(reply, Refused):
                if isinstance(request, Decide):
                    return reply
            elif isinstance(reply.error, LOST):
                self._lost(reply.error)
            elif isinstance(reply.error, StaleMapError):
                # the map has moved on, the transaction has not: the primary is who it was
                self._state.adopt((yield RefreshMap()))
            elif not isinstance(reply.error, OverloadedError):
                return reply
            if not (yield from patience.pause()):
                return None

    def _was_aborted(self) -> Failed:
        error = WriteConflictException(
            f"transaction {self._txn_id} was aborted before: it took too long to decide, or was given up by an "
            "earlier call with this id",
            txn_id=self._txn_id,
        )
        return Failed(error, again=True, release=self._release())

    def _abandoned(self) -> VecraftError:
        return TimeoutException(f"shard {self._primary} does not know transaction {self._txn_id} any more")

    def _unknown(self, what: str | None = None) -> VecraftError:
        """Return the error that says what nobody knows, and how to find out."""
        what = what or f"whether transaction {self._txn_id} was committed"
        problem = self._problem
        kind = type(problem) if isinstance(problem, (*LOST, StorageFailureException)) else TimeoutException
        return kind(
            f"{problem.message}; {what} is unknown: "
            "send it again with this txn_id to find out, it will be carried out at most once",
            **{**problem.details, "txn_id": self._txn_id, "outcome": "unknown"},
        )

    # -------------------------------------------------------------------------------------------------- parts

    def _may_wait(self, error: VecraftError) -> bool:
        """Whether to ask the same again: a write that only met a lock left no trace, and may succeed later."""
        return self._lock_met(error) and self._state.clock.monotonic() < self._locks_until

    def _lock_met(self, error: VecraftError) -> bool:
        """Whether only a lock stands in the way, which may be the caller's own last commit on its way to a participant.

        Once it is gone, a transaction with a snapshot is validated like any other, and meets its conflict if there is
        one.
        """
        return isinstance(error, WriteConflictException | ReadWriteConflictException) and _is_locked(error)

    def _lost(self, error: VecraftError) -> None:
        """Remember why there was no answer; that a shard is down says more than that time ran out."""
        self._in_doubt = True
        if not (isinstance(error, TimeoutException) and isinstance(self._problem, ShardUnavailableError)):
            self._problem = error

    def _release(self) -> dict[int, Request]:
        others = [shard for shard in self._participants if shard != self._primary]
        return {shard: Finish(self._txn_id, 0, self._content_hash) for shard in others}

    def _committed(self, commit_ts: int, votes: list[Prepared | Committed]) -> Commit:
        # The commit is a fact, wherever its timestamp lies: the clock moves if that is sound, and nothing else happens.
        self._state.overhear(commit_ts)
        preimages = [vote.preimages for vote in votes if vote.preimages is not None]
        return Commit(
            CommitResult(self._txn_id, commit_ts, sum(vote.count for vote in votes)),
            concat_rows(preimages) if len(preimages) == len(votes) else None,
        )


def _used_before(txn_id: str) -> VecraftError:
    return InvalidDataException(
        f"transaction id {txn_id!r} was used before with other content; an id names one transaction for ever",
        txn_id=txn_id,
    )


def _is_locked(error: VecraftError) -> bool:
    return bool(error.details.get("locked"))


def _weight(error: VecraftError) -> int:
    """Which of several refusals says most about what to do: an input to fix weighs more than something to retry."""
    order = (StaleMapError, OverloadedError, ShardUnavailableError, TimeoutException, WriteConflictException)
    for weight, kind in enumerate(order):
        if isinstance(error, kind):
            return weight
    return len(order) + isinstance(error, InvalidDataException)
