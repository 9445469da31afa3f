"""What the clients of a black-box run did and were told: all that the checkers know."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from tests.blackbox.content import State

Hit = tuple[str, float, int]
"""Record id, distance, tag."""


@dataclass(slots=True)
class SearchSeen:
    """A search inside a transaction.

    ``own``: what the transaction had written before it. Unless ``exact``, it may go through a graph and miss some.
    """

    query: list[float]
    k: int
    group: int | None
    exact: bool
    own: dict[str, State]
    hits: list[Hit]


@dataclass(slots=True)
class Txn:
    """One transaction, or (``strong``) one strong read.

    Attributes:
        serial: Unique; what it appends to lists, and tags what it writes with.
        client: Whose; one client does one thing after another.
        started, answered: Seconds of this process.
        least: The highest timestamp that the client had been told before.
        snapshot: What it read at; 0 if it never got that far, or was not told.
        reads: What it saw, by record id.
        counts: ``(group, own, count)``: how many records of a group it counted.
        told: ``committed``, ``aborted``, or empty: it is not known.
        commit_ts: As told.
        tries: Calls of ``commit`` that it took.
    """

    serial: int
    client: int
    kind: str
    collection: str
    isolation: str
    started: float
    least: int = 0
    answered: float = 0.0
    snapshot: int = 0
    reads: dict[str, State | None] = field(default_factory=dict)
    searches: list[SearchSeen] = field(default_factory=list)
    counts: list[tuple[int, dict[str, State], int]] = field(default_factory=list)
    writes: dict[str, State] = field(default_factory=dict)
    told: str = ""
    commit_ts: int = 0
    tries: int = 0
    strong: bool = False


@dataclass(slots=True)
class Events:
    """All of it."""

    transactions: list[Txn] = field(default_factory=list)
    unexpected: list[str] = field(default_factory=list)
    """Errors that no client should ever be told, however bad the weather."""
    abandoned: int = 0
    """Transactions that were given up before anything was sent, because reading failed."""

    def told(self, what: str) -> Sequence[Txn]:
        """The transactions that ended so."""
        return [txn for txn in self.transactions if txn.told == what]
