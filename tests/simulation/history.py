"""What happened in one simulation: everything that the checkers look at afterwards."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from vecraft_data_model.messages import CommitOne, Prepare, Request, Transaction
from vecraft_shard.locations import Outcome

Lists = Mapping[str, tuple[int, ...]]


@dataclass(slots=True)
class Operation:
    """One thing that a client did.

    Attributes:
        serial: Unique; what a list-append operation appends.
        told: ``committed``, ``aborted``, or empty: the client does not know.
        commit_ts, txn_id: As told.
        answered: When, in virtual seconds.
        least: The client's session token before it.
        seen: Lists that it read; None: it read none.
        appended: Keys that it appended ``serial`` to.
    """

    serial: int
    client: int
    kind: str
    started: float
    least: int = 0
    told: str = ""
    count: int | None = None
    """How many records it was told that it wrote; None: that was not said."""
    commit_ts: int = 0
    txn_id: str = ""
    answered: float = 0.0
    seen: dict[str, tuple[int, ...]] | None = None
    appended: Sequence[str] = ()
    wrote: Sequence[tuple[str, str]] = ()
    """``(collection, record id)`` of the records that it was to write."""
    matched: tuple[str, int] | None = None
    """``(collection, group)``: it was to delete what matches."""


@dataclass(slots=True)
class Read:
    """An answered read. ``arguments`` and ``result`` depend on ``kind``: see ``truth``."""

    operation: Operation
    kind: str
    collection: str
    snapshot: int
    consistency: str
    started: float
    least: int
    arguments: Any
    result: Any


@dataclass(slots=True)
class Attempt:
    """A transaction as it was sent: id and content.

    ``parts``: by shard, as it was last handed to the shard before that held or decided it. A deletion by filter may be
    sent again under its id with other records.
    """

    txn_id: str
    content_hash: bytes
    operation: Operation
    parts: dict[int, Transaction] = field(default_factory=dict)


@dataclass(slots=True)
class History:
    """All of it."""

    operations: list[Operation] = field(default_factory=list)
    reads: list[Read] = field(default_factory=list)
    attempts: dict[tuple[str, bytes], Attempt] = field(default_factory=dict)
    decided: dict[tuple[str, bytes], dict[int, int]] = field(default_factory=dict)
    """Transaction → shard → commit timestamp (0: aborted), as the shards' logs have it."""
    problems: list[str] = field(default_factory=list)
    check: str = "on the way"
    """Who is looking now; named in front of every problem."""
    fresh: Sequence[tuple[str, str]] = ()
    """What was written by the last transaction that was acknowledged to anybody."""
    refused: list[Read] = field(default_factory=list)
    """Reads that were told that there is no such collection. ``snapshot`` 0: at a moment of the router's choice."""
    shared_ids: list[str] = field(default_factory=list)
    """Transaction ids that clients use for more than one content."""
    missed: list[bool] = field(default_factory=list)
    """For each search on a graph: whether the nearest record was missed, which may happen now and then."""

    def problem(self, text: str) -> None:
        """Something is wrong."""
        if len(self.problems) < 100:
            self.problems.append(f"[{self.check}] {text}")

    def sent(self, operation: Operation, shard: int, request: Request) -> None:
        """A router sends a request on behalf of an operation."""
        if isinstance(request, CommitOne | Prepare):
            txn = request.txn
            key = (txn.txn_id, txn.content_hash)
            attempt = self.attempts.get(key)
            if attempt is None:
                attempt = self.attempts[key] = Attempt(txn.txn_id, txn.content_hash, operation)
            attempt.parts.setdefault(shard, txn)

    def handed(self, shard: int, txn: Transaction) -> None:
        """A shard that neither holds nor has decided a transaction is about to look at it."""
        self.attempts[txn.txn_id, txn.content_hash].parts[shard] = txn

    def decision(self, shard: int, txn_id: str, outcome: Outcome) -> None:
        """A shard's log holds an outcome."""
        by_shard = self.decided.setdefault((txn_id, outcome.content_hash), {})
        known = by_shard.get(shard)
        if known is None:
            by_shard[shard] = outcome.ts
        elif known != outcome.ts:
            self.problem(f"shard {shard} decided {txn_id} twice: {known}, then {outcome.ts} (0: aborted)")


class Ledger(dict[str, Outcome]):
    """A shard's table of outcomes that tells the history what is put into it."""

    def __init__(self, history: History, shard: int, outcomes: Mapping[str, Outcome]) -> None:
        super().__init__()
        self._history = history
        self._shard = shard
        for txn_id, outcome in outcomes.items():
            self[txn_id] = outcome

    def __setitem__(self, txn_id: str, outcome: Outcome) -> None:
        super().__setitem__(txn_id, outcome)
        self._history.decision(self._shard, txn_id, outcome)
