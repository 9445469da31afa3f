"""The queue in front of a shard's one writer: group commit without timers, and turns for maintenance.

While one caller's batch is being carried out, others queue up; whoever leads next takes all that is queued as one
group, so one log record group and one fsync serve them all. Nobody waits for company that is not there yet::

    caller A  ──leads──▶ [A]           answers A, hands the lead to B
    caller B  ──waits──▶ leads [B C D] answers B, C, D, hands the lead on
    caller C, D ─waits─▶ answered by B
    maintenance ─waits─▶ leads alone, hands the lead on

Invariants:

* Exactly one thread leads while anything is queued; the lead is handed over in order of arrival, so neither writers nor
  maintenance can starve each other.
* A caller that gives up while its batch is still queued takes it out: then nothing was done. Once it is in a group, the
  outcome is unknown to a caller that gives up, and the error says so.

It knows nothing of shards: what carries a group out is handed in.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from vecraft_data_model.errors import ShardUnavailableError, TimeoutException, VecraftError
from vecraft_data_model.messages import Batch, BatchReply

MAX_GROUP_REQUESTS = 1024
"""A group stops growing here, so that its answers do not wait for an endless one."""

Outcome = BatchReply | VecraftError


class _Ticket:
    """One place in the queue: a batch, or (``batch`` None) somebody who wants to be alone."""

    __slots__ = ("batch", "gate", "leads", "outcome", "solo")

    def __init__(self, batch: Batch | None, solo: bool) -> None:
        self.batch = batch
        self.solo = solo
        self.leads = False
        self.outcome: Outcome | None = None
        self.gate = threading.Lock()
        self.gate.acquire()


class WriteQueue:
    """Callers take turns; one turn carries out all batches that are queued.

    Args:
        carry_out: Called by one thread at a time with the batches of a group; returns one outcome for each, in order.
    """

    def __init__(self, carry_out: Callable[[list[Batch]], list[Outcome]]) -> None:
        self._carry_out = carry_out
        self._mutex = threading.Lock()
        self._waiting: deque[_Ticket] = deque()
        self._led = False

    def submit(self, batch: Batch, timeout: float, *, solo: bool = False) -> BatchReply:
        """Have a batch carried out, in a group with others unless ``solo``, and return its reply.

        Raises:
            TimeoutException: Not answered after ``timeout`` seconds; the message says whether anything was done.
            VecraftError: The batch failed as a whole.
        """
        ticket = _Ticket(batch, solo)
        if self._stand_in_line(ticket, timeout):
            self._lead(ticket)
        outcome = ticket.outcome
        if isinstance(outcome, BatchReply):
            return outcome
        if outcome is None:
            raise ShardUnavailableError("the write was interrupted; its outcome is unknown")
        raise outcome

    @contextmanager
    def turn(self, timeout: float = threading.TIMEOUT_MAX) -> Iterator[None]:
        """Keep every batch waiting while the body runs.

        Raises:
            TimeoutException: It was not our turn within ``timeout`` seconds.
        """
        self._stand_in_line(_Ticket(None, solo=True), timeout)
        try:
            yield
        finally:
            self._hand_over()

    def _stand_in_line(self, ticket: _Ticket, timeout: float) -> bool:
        """Wait until the ticket leads (True) or was answered by another leader (False)."""
        with self._mutex:
            if not self._led:
                self._led = True
                return True
            self._waiting.append(ticket)
        try:
            answered = ticket.gate.acquire(timeout=min(timeout, threading.TIMEOUT_MAX))
        except BaseException:  # interrupted: do not leave a place in line that nobody stands in
            self._give_up(ticket)
            if ticket.leads:
                self._hand_over()
            raise
        if not answered:
            if self._give_up(ticket):
                raise TimeoutException(f"the shard's writer was busy for {timeout:.3f} s; nothing was done", done=False)
            if ticket.leads:
                ticket.gate.acquire()  # the lead came at the last moment, and nobody else would take it
            elif not ticket.gate.acquire(blocking=False):
                raise TimeoutException(
                    f"the write was under way but not answered within {timeout:.3f} s; its outcome is unknown: "
                    "ask again with the same txn_id",
                    done=None,
                )
        return ticket.leads

    def _give_up(self, ticket: _Ticket) -> bool:
        with self._mutex:
            if ticket in self._waiting:
                self._waiting.remove(ticket)
                return True
            return False

    def _lead(self, ticket: _Ticket) -> None:
        group = [ticket]
        try:
            if not ticket.solo and self._waiting:
                group += self._take_company(ticket)
            outcomes = self._carry_out([member.batch for member in group if member.batch is not None])
            for member, outcome in zip(group, outcomes, strict=True):
                member.outcome = outcome
        finally:
            # A member without an outcome (the leader was interrupted) is told that it is unknown.
            for member in group[1:]:
                member.gate.release()
            self._hand_over()

    def _take_company(self, leader: _Ticket) -> list[_Ticket]:
        company: list[_Ticket] = []
        size = len(leader.batch.requests) if leader.batch is not None else 0
        with self._mutex:
            while self._waiting:
                member = self._waiting[0]
                if member.solo or member.batch is None or size + len(member.batch.requests) > MAX_GROUP_REQUESTS:
                    break
                size += len(member.batch.requests)
                company.append(self._waiting.popleft())
        return company

    def _hand_over(self) -> None:
        with self._mutex:
            if not self._waiting:
                self._led = False
                return
            ticket = self._waiting.popleft()
            ticket.leads = True
        ticket.gate.release()
