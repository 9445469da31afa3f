"""What a black-box run must not show: the checker that trusts timestamps, and the one that does not.

*Timestamps*: the database at every moment is rebuilt from what was told committed; every read, search and count must be
what it was at its snapshot, every commit must have been allowed, no session may go back.

*Dependencies*: timestamps are ignored; what clients saw of the lists must fit an order of their transactions
(:mod:`tests.simulation.dependencies`). Strong reads must see what was acknowledged before they began.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field

from tests.blackbox.content import GROUPS, ISOLATION, LISTS, OPENING_BALANCE, STRICT, State, vector_of
from tests.blackbox.events import Events, Hit, SearchSeen, Txn
from tests.blackbox.workload import ACCOUNTS
from tests.simulation.dependencies import Dependencies
from tests.simulation.history import History, Operation

Final = Mapping[str, Mapping[str, State]]
"""Collection → record id → its value at the end."""

PROBLEMS_MAX = 100


@dataclass
class Verdict:
    """What the checkers found.

    Attributes:
        problems: Every one is a violation.
        write_skew: Whether there was a write skew among the transactions under snapshot isolation, as there should be.
        checked: How much was compared, by kind.
    """

    problems: list[str] = field(default_factory=list)
    write_skew: bool = False
    checked: dict[str, int] = field(default_factory=lambda: defaultdict(int))

    def problem(self, text: str) -> None:
        """Something is wrong."""
        if len(self.problems) < PROBLEMS_MAX:
            self.problems.append(text)


def check(events: Events, final: Final) -> Verdict:
    """Run all checkers over a run that is at rest."""
    verdict = Verdict()
    for text in events.unexpected:
        verdict.problem(f"a client was told an error that it should never be told: {text}")
    for txn in events.told(""):
        verdict.problem(f"nobody could tell what became of transaction {txn.serial}")
    Timestamps(events, final, verdict).check()
    for collection in (LISTS, STRICT):
        check_dependencies(events, collection, final[collection], verdict)
        check_freshness(events, collection, final[collection], verdict)
    return verdict


class Timestamps:
    """The database at every moment.

    Args:
        events: Of the run.
        final: What was read at its end.
        verdict: Where problems go.
    """

    def __init__(self, events: Events, final: Final, verdict: Verdict) -> None:
        self._events = events
        self._final = final
        self._verdict = verdict
        self._versions: dict[str, dict[str, list[tuple[int, State]]]] = {name: {} for name in ISOLATION}
        for txn in sorted(events.told("committed"), key=lambda each: each.commit_ts):
            for key, state in txn.writes.items():
                self._versions[txn.collection].setdefault(key, []).append((txn.commit_ts, state))

    def check(self) -> None:
        """Compare everything."""
        for collection, records in self._versions.items():
            for key, versions in records.items():
                times = [ts for ts, _ in versions]
                if len(set(times)) != len(times):
                    self._verdict.problem(f"two commits of {collection}/{key} have one timestamp: {times}")
            last = {key: versions[-1][1] for key, versions in records.items()}
            found = dict(self._final[collection])
            for key in sorted(last.keys() | found.keys()):
                self._verdict.checked["records at the end"] += 1
                if last.get(key) != found.get(key):
                    self._verdict.problem(
                        f"in the end {collection}/{key} is {found.get(key)}; acknowledged was {last.get(key)}"
                    )
        for txn in self._events.transactions:
            if txn.strong or not txn.snapshot:
                continue
            self._check_reads(txn)
            if txn.snapshot < txn.least:
                self._verdict.problem(f"client {txn.client} went back in time: {txn.snapshot} after {txn.least}")
            if txn.told == "committed" and txn.writes:
                self._check_commit(txn)

    def _check_reads(self, txn: Txn) -> None:
        for key, seen in txn.reads.items():
            self._verdict.checked["reads"] += 1
            wanted = self._at(txn.collection, key, txn.snapshot)
            if seen != wanted:
                self._verdict.problem(
                    f"transaction {txn.serial} saw {txn.collection}/{key} as {seen} at {txn.snapshot}, it was {wanted}"
                )
        if txn.kind == "audit" and txn.reads:
            total = sum(seen.value for seen in txn.reads.values() if seen is not None and isinstance(seen.value, int))
            if total != len(ACCOUNTS) * OPENING_BALANCE:
                self._verdict.problem(f"transaction {txn.serial} found {total} in all accounts at {txn.snapshot}")
        for search in txn.searches:
            self._check_search(txn, search)
        for group, own, count in txn.counts:
            self._verdict.checked["counts"] += 1
            states = self._all(txn.collection, txn.snapshot) | own
            wanted_count = sum(state.tag % GROUPS == group for state in states.values())
            if count != wanted_count:
                self._verdict.problem(f"transaction {txn.serial} counted {count} in group {group}: {wanted_count}")

    def _check_search(self, txn: Txn, search: SearchSeen) -> None:
        """An exact search finds the nearest; any other may miss some, but nothing that it finds may be wrong."""
        checked = self._verdict.checked
        checked["searches"] += 1
        candidates = self._candidates(txn, search)
        nearest = candidates[: search.k]
        sound = search.hits == nearest
        if not search.exact and not sound:
            checked["approximate searches that missed some"] += 1
            known = set(candidates)
            in_order = sorted(search.hits, key=_by_distance) == search.hits
            sound = in_order and len(search.hits) == len(nearest) == len(known & set(search.hits))
        if not sound:
            self._verdict.problem(
                f"transaction {txn.serial} found {search.hits} at {txn.snapshot} in {txn.collection} "
                f"(k={search.k}, group={search.group}, exact={search.exact}, own={search.own}), it was {nearest}"
            )

    def _check_commit(self, txn: Txn) -> None:
        self._verdict.checked["commits"] += 1
        keys = set(txn.writes) | (set(txn.reads) if txn.isolation == "serializable" else set())
        for key in sorted(keys):
            for ts, state in self._versions[txn.collection].get(key, []):
                if txn.snapshot < ts < txn.commit_ts:
                    self._verdict.problem(
                        f"transaction {txn.serial} read {txn.collection}/{key} at {txn.snapshot} and committed at "
                        f"{txn.commit_ts}, although transaction {state.tag} changed it at {ts}"
                    )

    def _at(self, collection: str, key: str, snapshot: int) -> State | None:
        versions = self._versions[collection].get(key, [])
        place = bisect_right(versions, snapshot, key=lambda version: version[0])
        return versions[place - 1][1] if place else None

    def _all(self, collection: str, snapshot: int) -> dict[str, State]:
        states = ((key, self._at(collection, key, snapshot)) for key in self._versions[collection])
        return {key: state for key, state in states if state is not None}

    def _candidates(self, txn: Txn, search: SearchSeen) -> list[Hit]:
        """Everything that matches, nearest first."""
        hits: list[Hit] = []
        for key, state in (self._all(txn.collection, txn.snapshot) | search.own).items():
            if search.group is None or state.tag % GROUPS == search.group:
                vector = vector_of(key, state.tag)
                distance = sum((a - b) ** 2 for a, b in zip(vector, search.query, strict=True))
                hits.append((key, distance, state.tag))
        return sorted(hits, key=_by_distance)


def _by_distance(hit: Hit) -> tuple[float, str]:
    return hit[1], hit[0]


def check_dependencies(events: Events, collection: str, final: Mapping[str, State], verdict: Verdict) -> None:
    """What was seen of the lists of one collection must fit some order of the transactions."""
    history = History()
    for txn in events.transactions:
        if txn.collection == collection and (txn.reads or txn.writes):
            operation = Operation(txn.serial, txn.client, txn.kind, txn.started, told=txn.told)
            operation.seen = {key: list_in(seen) for key, seen in txn.reads.items()}
            operation.appended = list(txn.writes)
            history.operations.append(operation)
    dependencies = Dependencies(history, {key: list_in(state) for key, state in final.items()})
    dependencies.check(serializable=ISOLATION[collection] == "serializable")
    verdict.checked["transactions on lists"] += len(history.operations)
    for problem in history.problems:
        verdict.problem(f"{collection}: {problem}")
    if collection == LISTS:
        verdict.write_skew = bool(dependencies.write_skew)


def check_freshness(events: Events, collection: str, final: Mapping[str, State], verdict: Verdict) -> None:
    """A strong read sees every append that was acknowledged before it began."""
    of_key: dict[str, list[tuple[float, int]]] = defaultdict(list)
    for txn in events.told("committed"):
        if txn.collection == collection:
            for key in txn.writes:
                of_key[key].append((txn.answered, txn.serial))
    for appends in of_key.values():
        appends.sort()
    for txn in events.transactions:
        if txn.strong and txn.collection == collection:
            for key, seen in txn.reads.items():
                verdict.checked["strong reads"] += 1
                before = of_key[key][: bisect_right(of_key[key], (txn.started, 0))]
                missing = {serial for _, serial in before} - set(list_in(seen))
                if missing:
                    verdict.problem(f"strong read {txn.serial} of {collection}/{key} misses {sorted(missing)}")


def list_in(state: State | None) -> tuple[int, ...]:
    """The list that a record holds."""
    return state.value if state is not None and isinstance(state.value, tuple) else ()
