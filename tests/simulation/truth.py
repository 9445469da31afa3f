"""The checker that trusts timestamps.

From what the shards decided, and what was sent to them, it rebuilds the database as it must have been at every moment,
and compares: every read with the state at its snapshot, every commit with the rules that it had to pass, everything
that a client was told with what became of it, and the rows and names of every shard with the whole history.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import defaultdict
from collections.abc import Iterable
from functools import lru_cache
from typing import Any

from tests.simulation import rankings
from tests.simulation.content import ALIAS, GROUPS, value_of, vector_of
from tests.simulation.history import Attempt, History, Operation, Read
from vecraft_data_model.messages import (
    CatalogMutation,
    CreateCollection,
    Delete,
    DropAlias,
    DropCollection,
    Mutation,
    Put,
    SetAlias,
)
from vecraft_shard.engine import Shard

Version = tuple[int, bytes | None]
"""Commit timestamp and payload; None: deleted."""
FOREVER = 2**63 - 1


class Truth:
    """The database at every moment.

    Args:
        history: Complete, and at rest.
        lost: Shards that damage has stopped for good: they may owe their part of a transaction.

    Attributes:
        commits: Transaction → commit timestamp.
        versions: ``(collection id, record id)`` → what it was, from when on.
    """

    def __init__(self, history: History, lost: Iterable[int] = ()) -> None:
        self._history = history
        self._lost = set(lost)
        self.commits: dict[tuple[str, bytes], int] = {}
        self.versions: dict[tuple[str | None, str], list[Version]] = defaultdict(list)
        self._aliases: list[tuple[int, str | None]] = []
        self._spans: dict[str, list[tuple[int, int, str]]] = defaultdict(list)
        self._of_operation: dict[int, list[Attempt]] = defaultdict(list)
        self._find_commits()
        in_order = sorted(self.commits.items(), key=lambda item: item[1])
        for key, ts in in_order:
            self._apply_names(history.attempts[key], ts)
        for key, ts in in_order:
            self._apply_data(history.attempts[key], ts)
        self._ids: dict[str | None, list[str]] = defaultdict(list)
        for collection_id, record_id in sorted(self.versions, key=str):
            self._ids[collection_id].append(record_id)
        for (_, record_id), versions in self.versions.items():
            times = [ts for ts, _ in versions]
            if len(set(times)) != len(times):
                history.problem(f"two commits of {record_id} have the same timestamp: {times}")

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
        for read in self._history.refused:
            self._check_refused(read)
        missed = self._history.missed
        if sum(missed) > 2 + len(missed) // 10:
            self._history.problem(f"{sum(missed)} of {len(missed)} searches missed the nearest record")

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
            if torn and not self._lost:
                history.problem(f"{key[0]} was committed at {committed}, but not on shards {torn}")
            for shard in committed.keys() & history.decided.get((key[0], b""), {}).keys():
                if history.decided[key[0], b""][shard] == 0:
                    history.problem(f"shard {shard} committed {key[0]} and aborted it")
            self.commits[key] = min(committed.values())
            self._of_operation[attempt.operation.serial].append(attempt)

    def _apply_names(self, attempt: Attempt, ts: int) -> None:
        for mutation in next(iter(attempt.parts.values())).mutations:
            match mutation:
                case CreateCollection(schema=schema, collection_id=collection_id):
                    if self.resolve(schema.name, ts) is not None:
                        self._history.problem(f"{attempt.txn_id} created {schema.name}, which existed")
                    self._spans[schema.name].append((ts, FOREVER, collection_id))
                case DropCollection(name=name):
                    spans = self._spans[name]
                    if not spans or spans[-1][1] != FOREVER:
                        self._history.problem(f"{attempt.txn_id} dropped {name}, which did not exist")
                    else:
                        spans[-1] = (spans[-1][0], ts, spans[-1][2])
                case SetAlias(name=name):
                    self._aliases.append((ts, name))
                case DropAlias():
                    self._aliases.append((ts, None))

    def _apply_data(self, attempt: Attempt, ts: int) -> None:
        for shard in sorted(attempt.parts):
            for mutation in attempt.parts[shard].mutations:
                if isinstance(mutation, CatalogMutation):
                    continue
                collection_id = self.resolve(mutation.collection, ts)
                if collection_id is None:
                    self._history.problem(f"{attempt.txn_id} wrote to {mutation.collection}, which did not exist")
                ids = self._written_ids(mutation, attempt.operation, ts)
                payloads = mutation.payloads if isinstance(mutation, Put) else [None] * len(ids)
                for record_id, payload in zip(ids, payloads, strict=True):
                    self.versions[collection_id, record_id].append((ts, payload))

    def _written_ids(self, mutation: Put | Delete, operation: Operation, ts: int) -> list[str]:
        """The records that a mutation writes: of what a filter found, what matches it right before the commit."""
        if isinstance(mutation, Put) or mutation.matched is None or operation.matched is None:
            return mutation.ids
        meant, group = self.resolve(mutation.collection, ts), operation.matched[1]
        found = [(record_id, self.at((meant, record_id), ts - 1)) for record_id in mutation.ids]
        return [record_id for record_id, payload in found if payload is not None and tag_of(payload) % GROUPS == group]

    def _check_commit(self, attempt: Attempt, ts: int) -> None:
        for txn in attempt.parts.values():
            keys: list[tuple[str | None, str]] = []
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
            names = {name for name, _ in txn.reads}
            names |= {mutation.collection for mutation in txn.mutations if isinstance(mutation, Put | Delete)}
            for name in sorted(names):
                if self.resolve(name, txn.snapshot) != self.resolve(name, ts - 1):
                    self._history.problem(f"{attempt.txn_id} took {name} for what it was at {txn.snapshot}")
            read = [(self.resolve(name, txn.snapshot), record_id) for name, record_id in txn.reads]
            for what, checked in (("lost update", keys), ("read-write conflict", read)):
                for key in checked:
                    if self._changed(key, txn.snapshot, ts):
                        self._history.problem(f"{what} on {key} by {attempt.txn_id}, {txn.snapshot} to {ts}")
        some = next(iter(attempt.parts.values()))
        if some.snapshot is not None:
            self._check_names(attempt, some.mutations, some.snapshot, ts)
        if attempt.operation.matched is not None:
            self._check_deletion(attempt, *attempt.operation.matched, ts)

    def _check_names(self, attempt: Attempt, steps: list[Mutation], snapshot: int, ts: int) -> None:
        """With a snapshot, a change of the catalog is a write to what its name meant."""
        for step in steps:
            hidden: str | None = None
            match step:
                case CreateCollection(schema=schema):
                    times = [moment for span in self._spans[schema.name] for moment in span[:2]]
                case DropCollection(name=name):
                    times = [moment for span in self._spans[name] for moment in span[:2]]
                    hidden = self.resolve(name, ts - 1)
                case SetAlias() | DropAlias():
                    times = [moment for moment, _ in self._aliases]
                    hidden = self.resolve(ALIAS, ts - 1)
                    hidden = None if hidden == self.resolve(ALIAS, ts) else hidden
                case _:
                    continue
            if any(snapshot < moment < ts for moment in times):
                self._history.problem(f"{attempt.txn_id} missed a change of the name in {step}, {snapshot} to {ts}")
            for record_id in self._ids[hidden] if hidden is not None else ():
                if self._changed((hidden, record_id), snapshot, ts):
                    self._history.problem(f"{attempt.txn_id} hid {record_id}, written after {snapshot}, by {step}")

    def _check_deletion(self, attempt: Attempt, name: str, group: int, ts: int) -> None:
        """A deletion by filter is handed what matched at one snapshot, in the collection that was meant then."""
        deletes = [m for txn in attempt.parts.values() for m in txn.mutations if isinstance(m, Delete) and m.matched]
        snapshots = {delete.matched.snapshot for delete in deletes if delete.matched is not None}
        if len(snapshots) != 1 or len(deletes) != len(attempt.parts):
            self._history.problem(f"{attempt.txn_id} looked at {sorted(snapshots)}, on {len(deletes)} shards")
            return
        snapshot = snapshots.pop()
        meant = self.resolve(name, snapshot)
        found = {(self.resolve(delete.collection, ts), record_id) for delete in deletes for record_id in delete.ids}
        wanted = {(meant, record_id) for record_id in self.records(name, snapshot, group)}
        if found != wanted:
            self._history.problem(
                f"{attempt.txn_id} was to delete {sorted(found, key=str)} instead of {sorted(wanted, key=str)}, "
                f"which matched at {snapshot}"
            )

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
            if operation.count is not None and attempts:
                written = sum(self._count(attempts[0], key) for key in self._written_by(operation.serial, found[0]))
                if operation.count != written:
                    problem(f"operation {operation.serial} was told that it wrote {operation.count}, it was {written}")
        if operation.told == "aborted" and attempts:
            problem(f"operation {operation.serial} was told aborted, but {attempts[0].txn_id} is committed")

    # ------------------------------------------------------------------------------------------------ reads

    def resolve(self, name: str, snapshot: int) -> str | None:
        """The id of the collection that a name means at a moment; None: there is none."""
        meant: str | None = name
        if name == ALIAS:
            place = bisect_right(self._aliases, snapshot, key=lambda entry: entry[0])
            meant = self._aliases[place - 1][1] if place else None
        for begin, end, collection_id in self._spans.get(meant, ()) if meant is not None else ():
            if begin <= snapshot < end:
                return collection_id
        return None

    def at(self, key: tuple[str | None, str], snapshot: int) -> bytes | None:
        """The payload of a record at a moment; None: there is none."""
        versions = self.versions.get(key, [])
        place = bisect_right(versions, snapshot, key=lambda version: version[0])
        return versions[place - 1][1] if place else None

    def _changed(self, key: tuple[str | None, str], after: int, before: int) -> bool:
        """Whether a record was written or deleted in between; a deletion of what is not there changes nothing."""
        return any(
            after < ts < before and (payload is not None or self.at(key, ts - 1) is not None)
            for ts, payload in self.versions[key]
        )

    def records(self, name: str, snapshot: int, group: int | None = None) -> dict[str, bytes]:
        """All records of a collection at a moment, in id order, those of ``group`` only if there is one."""
        meant = self.resolve(name, snapshot)
        found: dict[str, bytes] = {}
        for record_id in self._ids[meant]:
            payload = self.at((meant, record_id), snapshot)
            if payload is not None and (group is None or tag_of(payload) % GROUPS == group):
                found[record_id] = payload
        return found

    def _check_read(self, read: Read) -> None:
        if read.kind == "list":
            self._compare(read, self._listing(read.snapshot), self._listed(read))
            return
        meant = self.resolve(read.collection, read.snapshot)
        if meant is None:
            self._history.problem(f"{read.collection} was read at {read.snapshot}, but did not exist then")
            return
        if read.kind == "near":
            self._check_near(read)
            return
        if read.kind in ("grouped", "text"):
            self._check_ranked(read)
            return
        wanted: Any
        found: Any
        if read.kind == "get":
            wanted = {
                record_id: payload
                for record_id in read.arguments
                if (payload := self.at((meant, record_id), read.snapshot)) is not None
            }
            found = dict(zip(read.result.rows.ids, read.result.rows.payloads, strict=True))
        elif read.kind == "count":
            wanted, found = len(self.records(read.collection, read.snapshot, read.arguments)), read.result.count
        elif read.kind == "scan":
            after, limit, group = read.arguments
            records = self.records(read.collection, read.snapshot, group)
            rest = [item for item in records.items() if after is None or item[0] > after]
            wanted = (rest[:limit], len(rest) > limit)
            rows = read.result.rows
            found = (list(zip(rows.ids, rows.payloads, strict=True)), read.result.more)
        else:
            queries, k, group = read.arguments
            records = self.records(read.collection, read.snapshot, group)
            wanted = nearest(records, queries[0].tolist())[:k]
            hits = read.result.hits[0]
            found = list(zip(hits.distances, hits.ids, hits.payloads, strict=True))
        self._compare(read, wanted, found)

    def _compare(self, read: Read, wanted: object, found: object) -> None:
        if wanted != found:
            self._history.problem(
                f"{read.kind} of {read.collection} {read.arguments} at {read.snapshot}, {read.consistency}, "
                f"operation {read.operation.serial}: saw {shown(found)} instead of {shown(wanted)}"
            )

    def _check_ranked(self, read: Read) -> None:
        """A search by text, or one that groups: the same records in the same order."""
        (query,), options, group = read.arguments
        records = self.records(read.collection, read.snapshot, group)
        hits = read.result.hits[0]
        if read.kind == "grouped":
            ranked = rankings.grouped(records, query, options.group_by, options.k, options.group_size)
        else:
            everything = self.records(read.collection, read.snapshot)
            ranked = rankings.by_text(everything, records, options.text.words)
            if query:
                fused = rankings.fused(rankings.distances(records, query), ranked)
                ranked = [(0.0, record_id) for record_id in fused]
            ranked = ranked[: options.k]
        self._compare(
            read,
            [(record_id, records[record_id]) for _, record_id in ranked],
            list(zip(hits.ids, hits.payloads, strict=True)),
        )

    def _check_near(self, read: Read) -> None:
        """An answer of the graph: what it holds is right, in order, and enough; the nearest may be missed."""
        queries, k, group = read.arguments
        wanted = nearest(self.records(read.collection, read.snapshot, group), queries[0].tolist())
        hits = read.result.hits[0]
        found = list(zip(hits.distances, hits.ids, hits.payloads, strict=True))
        right = len(found) == min(k, len(wanted)) and found == sorted(found) and set(found) <= set(wanted)
        if not right or len(set(hits.ids)) < len(found):
            self._compare(read, wanted[:k], found)
        self._history.missed += [found[0][0] > wanted[0][0]] if found and wanted else []

    def _listing(self, snapshot: int) -> tuple[list[str], str | None]:
        names = [name for name in sorted(self._spans) if self.resolve(name, snapshot) is not None]
        place = bisect_right(self._aliases, snapshot, key=lambda entry: entry[0])
        return names, self._aliases[place - 1][1] if place else None

    @staticmethod
    def _listed(read: Read) -> tuple[list[str], str | None]:
        return [schema.name for schema in read.result.collections], read.result.aliases.get(ALIAS)

    def _check_refused(self, read: Read) -> None:
        """A read was told that there is no such collection: there must have been a moment that it can have meant."""
        moments = [read.snapshot]
        if not read.snapshot:
            changes = [ts for spans in self._spans.values() for span in spans for ts in span[:2]]
            changes += [ts for ts, _ in self._aliases]
            moments = [read.least, *(ts for ts in changes if ts > read.least)]
        if all(self.resolve(read.collection, ts) is not None for ts in moments if ts != FOREVER):
            self._history.problem(
                f"{read.collection} exists at {read.snapshot or f'every moment from {read.least} on'}, but operation "
                f"{read.operation.serial} was told that it does not"
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

    def _written_by(self, serial: int, commit_ts: int) -> set[tuple[str | None, str]]:
        return {
            (self.resolve(mutation.collection, commit_ts), record_id)
            for attempt in self._of_operation[serial]
            for txn in attempt.parts.values()
            for mutation in txn.mutations
            if isinstance(mutation, Put | Delete)
            for record_id in self._written_ids(mutation, attempt.operation, commit_ts)
        }

    def _count(self, attempt: Attempt, key: tuple[str | None, str]) -> bool:
        """Whether a record that a transaction wrote counts: a deletion of nothing does not."""
        ts = self.commits[attempt.txn_id, attempt.content_hash]
        return self.at(key, ts) is not None or self.at(key, ts - 1) is not None

    def _concerns(self, read: Read, commit_ts: int, written: set[tuple[str | None, str]]) -> None:
        """A strong read is below an acknowledged commit: that is wrong if it asked for what that one wrote."""
        meant = self.resolve(read.collection, read.snapshot)
        for where, record_id in sorted(written, key=str):
            if where == meant and (read.kind != "get" or record_id in read.arguments):
                self._history.problem(
                    f"a strong read of {read.collection}/{record_id} at {read.snapshot}, begun at {read.started:.5f}, "
                    f"misses the commit at {commit_ts} that was acknowledged before"
                )

    # ---------------------------------------------------------------------------------------------- at rest

    def check_shard(self, shard: Shard, owned: Iterable[str]) -> None:
        """Compare the names and every row of a shard with the history; versions below its safe point may be gone."""
        state, owned = shard._state, set(owned)
        safe_point = state.timeline.safe_point
        names = {entry.schema.name: entry.collection_id for entry in state.catalog.current()}
        known = {name: meant for name in self._spans if (meant := self.resolve(name, FOREVER - 1)) is not None}
        if names != known or state.catalog.listing(FOREVER - 1)[1].get(ALIAS) != self._listing(FOREVER - 1)[1]:
            self._history.problem(f"shard {state.shard_id} knows the collections {names} instead of {known}")
        for entry in state.catalog.current():
            collection, name = state.collections[entry.collection_id], entry.schema.name
            versions = collection.versions
            rows: dict[str, list[tuple[int, int, bytes]]] = defaultdict(list)
            for row in range(versions.rows):
                payload = collection.payloads.read(int(versions.offset[row]), int(versions.size[row]))
                rows[versions.ids[row]].append((int(versions.begin[row]), int(versions.end[row]), payload))
            for record_id in sorted(owned | rows.keys()):
                wanted = spans(self.versions.get((entry.collection_id, record_id), []))
                found = sorted(rows.get(record_id, []))
                kept = [span for span in wanted if span[1] > safe_point]
                if [span for span in found if span[1] > safe_point] != kept or not set(found) <= set(wanted):
                    self._history.problem(
                        f"shard {state.shard_id} has of {name}/{record_id} {shown(found)} instead of {shown(wanted)}, "
                        f"safe point {safe_point}"
                    )


@lru_cache(maxsize=4096)
def tag_of(payload: bytes) -> int:
    """The operation that wrote a record."""
    return int(value_of(payload)["t"])


def spans(versions: list[Version]) -> list[tuple[int, int, bytes]]:
    """``(begin, end, payload)`` of each version that was written."""
    ends = [ts for ts, _ in versions[1:]] + [FOREVER]
    return [(ts, end, payload) for (ts, payload), end in zip(versions, ends, strict=False) if payload is not None]


def nearest(records: dict[str, bytes], query: list[float]) -> list[tuple[float, str, bytes]]:
    """All records by brute force, the nearest first."""
    found = []
    for record_id, payload in records.items():
        vector = vector_of(record_id, tag_of(payload))
        found.append((sum((a - b) ** 2 for a, b in zip(vector, query, strict=True)), record_id, payload))
    return sorted(found)


def shown(value: Any) -> str:
    """Payloads as what they hold."""
    if isinstance(value, bytes):
        return str(value_of(value))
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key}: {shown(item)}" for key, item in value.items()) + "}"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(map(shown, value)) + "]"
    return repr(value)
