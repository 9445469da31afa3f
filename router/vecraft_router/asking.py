"""Reading from shards that may be restarting, moving, or waiting for a decision.

What may stand between a read and its answer, and what is done about it:

* ``Undecided``: a prepared transaction that the read might have to see. It is waited for, in short pauses; once it is
  older than ``resolve_after_ms``, its primary is asked to decide, and the shard is told the decision.
* ``ShardUnavailableError``, ``TimeoutException``: the shard is asked again until the deadline (somebody is restarting
  it).
* ``StaleMapError``: a newer map is fetched and :class:`MapChanged` raised: the read has to be planned again.

Every other refusal is the answer. A read is never answered by skipping what stands in its way.
"""

from __future__ import annotations

from vecraft_data_model.errors import (
    ShardUnavailableError,
    StaleMapError,
    TimeoutException,
    VecraftError,
)
from vecraft_data_model.messages import (
    Aborted,
    Barrier,
    Committed,
    Finish,
    Refused,
    Request,
    Resolve,
    Response,
    Undecided,
)
from vecraft_data_model.validation import txn_created_ms
from vecraft_router.effects import Ask, Flow, RefreshMap, Sleep
from vecraft_router.state import RouterState

_STALE_PAUSE_ATTEMPT = 5
_OPEN = frozenset({Refused, Undecided})
"""Replies that are not answers yet."""


class MapChanged(Exception):
    """Plan again: the cluster map at hand was stale, and a newer one has been asked for."""


class Patience:
    """Pauses between attempts, longer and longer, until a deadline."""

    __slots__ = ("_attempt", "_state", "deadline")

    def __init__(self, state: RouterState, deadline: float) -> None:
        self._state = state
        self._attempt = 0
        self.deadline = deadline

    def pause(self) -> Flow[bool]:
        """Let some time pass; return whether there is any left to try again in."""
        self._attempt += 1
        pause = self._state.backoff_s(self._attempt)
        remaining = self.deadline - self._state.clock.monotonic()
        if remaining <= pause:
            # A last try at the very end would only time out; do not sleep for it either.
            return False
        yield Sleep(pause)
        return True


class Asker:
    """Gets answers out of shards.

    Args:
        state: The router's clock, map and settings.
    """

    def __init__(self, state: RouterState) -> None:
        self._state = state

    def ask(
        self, requests: dict[int, Request], deadline: float, unreachable: set[int] | None = None
    ) -> Flow[dict[int, Response]]:
        """Ask, and :meth:`settle` the replies."""
        if not requests:
            return {}
        replies: dict[int, Response] = yield Ask(requests, deadline)
        if _OPEN.isdisjoint(map(type, replies.values())):
            return replies
        return (yield from self.settle(requests, replies, deadline, unreachable))

    def settle(
        self,
        requests: dict[int, Request],
        replies: dict[int, Response],
        deadline: float,
        unreachable: set[int] | None = None,
    ) -> Flow[dict[int, Response]]:
        """Ask again until every shard has answered.

        Args:
            requests: What was asked.
            replies: What came back.
            deadline: Until when to try.
            unreachable: If given, shards that cannot be reached are put here and left out, instead of being retried.

        Raises:
            MapChanged: The requests were routed by a stale map.
            TimeoutException, ShardUnavailableError: The deadline passed.
            VecraftError: What a shard refused its request with.
        """
        answers: dict[int, Response] = {}
        patience = Patience(self._state, deadline)
        first_met: dict[str, float] = {}
        lost: dict[int, VecraftError] = {}
        while True:
            again: dict[int, Request] = {}
            doubts: dict[int, list[tuple[str, int]]] = {}
            for shard, reply in replies.items():
                if isinstance(reply, Undecided):
                    doubts[shard] = reply.transactions
                    again[shard] = _ask_again(requests[shard], reply)
                elif not isinstance(reply, Refused):
                    answers[shard] = reply
                elif isinstance(reply.error, StaleMapError):
                    yield from self.refresh_map(deadline, reply.error)
                    raise MapChanged
                elif not isinstance(reply.error, ShardUnavailableError | TimeoutException):
                    raise reply.error.with_traceback(None)
                elif unreachable is not None:
                    unreachable.add(shard)
                else:
                    # That a shard was down says more, in the end, than that time ran out.
                    if shard not in lost or isinstance(reply.error, ShardUnavailableError):
                        lost[shard] = reply.error
                    again[shard] = requests[shard]
            if not again:
                return answers
            if not (yield from patience.pause()):
                raise _out_of_time(lost, doubts)
            if doubts:
                yield from self._resolve(doubts, first_met, deadline)
            requests = again
            replies = yield Ask(requests, deadline)

    def refresh_map(self, deadline: float, error: VecraftError) -> Flow[None]:
        """Fetch a newer map; if there is none yet, let some time pass.

        Raises:
            StaleMapError: ``error``, when there is no time left.
        """
        if not self._state.adopt((yield RefreshMap())):
            pause = self._state.backoff_s(_STALE_PAUSE_ATTEMPT)
            if self._state.clock.monotonic() + pause >= deadline:
                raise error.with_traceback(None)
            yield Sleep(pause)

    def _resolve(
        self, doubts: dict[int, list[tuple[str, int]]], first_met: dict[str, float], deadline: float
    ) -> Flow[None]:
        """Have those transactions decided that are old enough, and tell the shards that wait."""
        state = self._state
        now, now_ms = state.clock.monotonic(), state.clock.now_ms()
        due: dict[int, list[tuple[str, int]]] = {}
        for shard, transactions in doubts.items():
            for txn_id, primary in transactions:
                met = first_met.setdefault(txn_id, now)
                age_ms = max((now - met) * 1000.0, now_ms - (txn_created_ms(txn_id) or now_ms))
                if age_ms >= state.config.resolve_after_ms:
                    due.setdefault(primary, []).append((txn_id, shard))
        while due:
            # one question per primary at a time; what is not decided now is met again by the next attempt
            asked = {primary: transactions.pop() for primary, transactions in due.items()}
            due = {primary: transactions for primary, transactions in due.items() if transactions}
            # Whether the shard that waits still holds it, only that shard knows, and it asks by itself.
            questions: dict[int, Request] = {
                primary: Resolve(txn_id, held=False) for primary, (txn_id, _) in asked.items()
            }
            decisions = yield Ask(questions, deadline)
            for primary, (txn_id, shard) in asked.items():
                decision = decisions[primary]
                if isinstance(decision, Committed | Aborted) and shard != primary:
                    finish = Finish(txn_id, 0)
                    if isinstance(decision, Committed):
                        finish = Finish(txn_id, decision.commit_ts, decision.content_hash)
                    yield Ask({shard: finish}, deadline)


def _ask_again(request: Request, reply: Undecided) -> Request:
    """Return the request to repeat: a barrier waits for what was undecided when it first arrived, and no more."""
    if isinstance(request, Barrier) and request.waiting_for is None:
        return Barrier([txn_id for txn_id, _ in reply.transactions])
    return request


def _out_of_time(lost: dict[int, VecraftError], doubts: dict[int, list[tuple[str, int]]]) -> VecraftError:
    for error in lost.values():
        return error.with_traceback(None)
    waiting = sorted({txn_id for transactions in doubts.values() for txn_id, _ in transactions})
    return TimeoutException(
        f"the read waited for {len(waiting)} undecided transactions until its deadline: {', '.join(waiting[:5])}",
        transactions=waiting[:100],
    )


def unexpected(answer: Response) -> VecraftError:
    """Return the error for an answer of a kind that the question does not have."""
    return ShardUnavailableError(f"a shard gave a {type(answer).__name__} for an answer, which is not one")
