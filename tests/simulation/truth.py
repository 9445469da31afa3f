"""The checker that trusts timestamps.

From what the shards decided, and what was sent to them, it rebuilds the database as it must have been at every moment,
and compares: every read with the state at its snapshot, every commit with the rules that it had to pass, everything
that a client was told with what became of it, and the rows of every shard with the whole history.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import defaultdict
from collections.abc import Iterable
from typing import Any

from tests.simulation.content import ALIAS, value_of, vector_of
from tests.simulation.history import Attempt, History, Operation, Read
from vecraft_data_model.messages import Delete, Put, SetAlias
from vecraft_shard.engine import Shard

Version = tuple[int, bytes | None]
"""Commit timestamp and payload; None: deleted."""


class Truth:
    """The database at every moment.

    Args:
        history: Complete, and at rest.
    """

    def __init__(self, history: History) -> None:
        self._history = history
        self.commits: dict[tuple[str, bytes], int] = {}
        self.versions: dict[tuple[str, str], list[Version]] = defaultdict(list)
        self._aliases: list[tuple[int, str]] = []
        self._of_operation: dict[int, list[Attempt]] = defaultdict(list)
        self._find_commits()
        self._aliases.sort()
        self._apply()

    def check(self) -> None:
        """Find everything that is wrong; it is added to the history's problems."""
        for key, ts in self.commits.items():
            self._check_commit(self._history.attempts[key], ts)
        for operation in self._history.operations:
            self._check_told(operation)
        acknowledged = sorted(
            (operation.answered, operation.commit_ts, operation.serial)
            for operation in self._history.operations
            if operation.told == "committed"
        )
        for read in self._history.reads:
            self._check_read(read)
            self._check_fresh(read, acknowledged)

    # ---------------------------------------------------------------------------------------------- commits

    def _find_commits(self) -> None:
        history = self._history
        for key, by_shard in history.decided.items():
            committed = {shard: ts for shard, ts in by_shard.items() if ts}
            if not committed:
                continue
            attempt = history.attempts.get(key)
            if attempt is None:
                history.problem(f"{key[0]} was committed, but nobody sent it")
                continue
            if len(set(committed.values())) > 1:
                history.problem(f"{key[0]} has more than one commit timestamp: {committed}")
            torn = sorted(attempt.parts.keys() - committed.keys())
            if torn:
                history.problem(f"{key[0]} was committed at {committed}, but not on shards {torn}")
            for shard in committed.keys() & history.decided.get((key[0], b""), {}).keys():
                if history.decided[key[0], b""][shard] == 0:
                    history.problem(f"shard {shard} committed {key[0]} and aborted it")
            self.commits[key] = min(committed.values())
            self._of_operation[attempt.operation.serial].append(attempt)
            for mutation in next(iter(attempt.parts.values())).mutations:
                if isinstance(mutation, SetAlias):
                    self._aliases.append((self.commits[key], mutation.name))

    def _apply(self) -> None:
        for key, ts in sorted(self.commits.items(), key=lambda item: item[1]):
            attempt = self._history.attempts[key]
            for shard in sorted(attempt.parts):
                for mutation in attempt.parts[shard].mutations:
                    if isinstance(mutation, Put):
                        name = self.resolve(mutation.collection, ts)
                        for record_id, payload in zip(mutation.ids, mutation.payloads, strict=True):
                            self.versions[name, record_id].append((ts, payload))
                    elif isinstance(mutation, Delete):
                        name = self.resolve(mutation.collection, ts)
                        for record_id in mutation.ids:
                            self.versions[name, record_id].append((ts, None))
        for (name, record_id), versions in self.versions.items():
            times = [ts for ts, _ in versions]
            if len(set(times)) != len(times):
                self._history.problem(f"two commits of {name}/{record_id} have the same timestamp: {times}")

    def _check_commit(self, attempt: Attempt, ts: int) -> None:
        for txn in attempt.parts.values():
            keys: list[tuple[str, str]] = []
            for mutation in txn.mutations:
                if isinstance(mutation, Put | Delete):
                    written = [(self.resolve(mutation.collection, ts), record_id) for record_id in mutation.ids]
                    keys += written
                    for key in written:
                        there = self.at(key, ts - 1) is not None
                        if mutation.expect in ("absent", "present") and there != (mutation.expect == "present"):
                            self._history.problem(f"{attempt.txn_id} expected {key} to be {mutation.expect}")
            if txn.snapshot is None:
                continue
            for what, checked in (("lost update", keys), ("read-write conflict", txn.reads)):
                for key in checked:
                    if any(txn.snapshot < other < ts for other, _ in self.versions[key]):
                        self._history.problem(f"{what} on {key} by {attempt.txn_id}, {txn.snapshot} to {ts}")

    def _check_told(self, operation: Operation) -> None:
        problem = self._history.problem
        attempts = self._of_operation[operation.serial]
        if len(attempts) > 1:
            problem(f"operation {operation.serial} was executed {len(attempts)} times")
        if operation.told == "committed" and operation.txn_id:
            found = [self.commits[a.txn_id, a.content_hash] for a in attempts if a.txn_id == operation.txn_id]
            if found != [operation.commit_ts]:
                problem(
                    f"operation {operation.serial} was told committed as {operation.txn_id} at {operation.commit_ts}, "
                    f"the shards say {found}"
                )
        if operation.told == "aborted" and attempts:
            problem(f"operation {operation.serial} was told aborted, but {attempts[0].txn_id} is committed")

    # ------------------------------------------------------------------------------------------------ reads

    def resolve(self, name: str, snapshot: int) -> str:
        """The collection that a name means at a moment."""
        if name != ALIAS:
            return name
        place = bisect_right(self._aliases, snapshot, key=lambda entry: entry[0])
        return self._aliases[place - 1][1] if place else ALIAS

    def at(self, key: tuple[str, str], snapshot: int) -> bytes | None:
        """The payload of a record at a moment; None: there is none."""
        versions = self.versions.get(key, [])
        place = bisect_right(versions, snapshot, key=lambda version: version[0])
        return versions[place - 1][1] if place else None

    def records(self, name: str, snapshot: int, group: int | None) -> dict[str, bytes]:
        """All records of a collection at a moment, in id order, those of ``group`` only if there is one."""
        name = self.resolve(name, snapshot)
        found: dict[str, bytes] = {}
        for collection, record_id in sorted(self.versions):
            if collection == name:
                payload = self.at((name, record_id), snapshot)
                if payload is not None and (group is None or value_of(payload)["g"] == group):
                    found[record_id] = payload
        return found

    def _check_read(self, read: Read) -> None:
        name = self.resolve(read.collection, read.snapshot)
        wanted: Any
        found: Any
        if read.kind == "get":
            wanted = {
                record_id: payload
                for record_id in read.arguments
                if (payload := self.at((name, record_id), read.snapshot)) is not None
            }
            found = dict(zip(read.result.rows.ids, read.result.rows.payloads, strict=True))
        elif read.kind == "count":
            wanted, found = len(self.records(name, read.snapshot, read.arguments)), read.result.count
        elif read.kind == "scan":
            after, limit, group = read.arguments
            records = self.records(name, read.snapshot, group)
            rest = [item for item in records.items() if after is None or item[0] > after]
            wanted = (rest[:limit], len(rest) > limit)
            rows = read.result.rows
            found = (list(zip(rows.ids, rows.payloads, strict=True)), read.result.more)
        else:
            queries, k, group = read.arguments
            records = self.records(name, read.snapshot, group)
            wanted = nearest(records, queries[0].tolist(), k)
            hits = read.result.hits[0]
            found = list(zip(hits.distances, hits.ids, hits.payloads, strict=True))
        if wanted != found:
            self._history.problem(
                f"{read.kind} of {read.collection} ({name}) {read.arguments} at {read.snapshot}, {read.consistency}, "
                f"operation {read.operation.serial}: saw {shown(found)} instead of {shown(wanted)}"
            )

    def _check_fresh(self, read: Read, acknowledged: list[tuple[float, int, int]]) -> None:
        if read.consistency in ("session", "strong") and read.snapshot < read.least:
            self._history.problem(f"a session went back in time: {read.snapshot} after {read.least}")
        if read.consistency == "strong":
            for answered, commit_ts, serial in acknowledged:
                if answered > read.started:
                    break
                if commit_ts > read.snapshot:
                    self._concerns(read, commit_ts, self._written_by(serial, commit_ts))

    def _written_by(self, serial: int, commit_ts: int) -> set[tuple[str, str]]:
        return {
            (self.resolve(mutation.collection, commit_ts), record_id)
            for attempt in self._of_operation[serial]
            for txn in attempt.parts.values()
            for mutation in txn.mutations
            if isinstance(mutation, Put | Delete)
            for record_id in mutation.ids
        }

    def _concerns(self, read: Read, commit_ts: int, written: set[tuple[str, str]]) -> None:
        """A strong read is below an acknowledged commit: that is wrong if it asked for what that one wrote."""
        name = self.resolve(read.collection, read.snapshot)
        for where, record_id in sorted(written):
            if where == name and (read.kind != "get" or record_id in read.arguments):
                self._history.problem(
                    f"a strong read of {name}/{record_id} at {read.snapshot}, begun at {read.started:.5f}, misses the "
                    f"commit at {commit_ts} that was acknowledged before"
                )

    # ---------------------------------------------------------------------------------------------- at rest

    def check_shard(self, shard: Shard, owned: Iterable[str]) -> None:
        """Compare every row of a shard with the history; versions below its safe point may be gone."""
        state, owned = shard._state, set(owned)
        safe_point = state.timeline.safe_point
        for entry in state.catalog.current():
            collection, name = state.collections[entry.collection_id], entry.schema.name
            versions = collection.versions
            rows: dict[str, list[tuple[int, int, bytes]]] = defaultdict(list)
            for row in range(versions.rows):
                payload = collection.payloads.read(int(versions.offset[row]), int(versions.size[row]))
                rows[versions.ids[row]].append((int(versions.begin[row]), int(versions.end[row]), payload))
            for record_id in sorted(owned | rows.keys()):
                wanted = spans(self.versions.get((name, record_id), []))
                found = sorted(rows.get(record_id, []))
                kept = [span for span in wanted if span[1] > safe_point]
                if [span for span in found if span[1] > safe_point] != kept or not set(found) <= set(wanted):
                    self._history.problem(
                        f"shard {state.shard_id} has of {name}/{record_id} {shown(found)} instead of {shown(wanted)}, "
                        f"safe point {safe_point}"
                    )


def spans(versions: list[Version]) -> list[tuple[int, int, bytes]]:
    """``(begin, end, payload)`` of each version that was written."""
    ends = [ts for ts, _ in versions[1:]] + [2**63 - 1]
    return [(ts, end, payload) for (ts, payload), end in zip(versions, ends, strict=False) if payload is not None]


def nearest(records: dict[str, bytes], query: list[float], k: int) -> list[tuple[float, str, bytes]]:
    """The k nearest records by brute force."""
    found = []
    for record_id, payload in records.items():
        vector = vector_of(record_id, value_of(payload)["t"])
        found.append((sum((a - b) ** 2 for a, b in zip(vector, query, strict=True)), record_id, payload))
    return sorted(found)[:k]


def shown(value: Any) -> str:
    """Payloads as what they hold."""
    if isinstance(value, bytes):
        return str(value_of(value))
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key}: {shown(item)}" for key, item in value.items()) + "}"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(map(shown, value)) + "]"
    return repr(value)
