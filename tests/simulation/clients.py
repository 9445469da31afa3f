"""Simulated clients: each does one thing after another through any router, and writes down what it was told.

The database they work on: ``lists`` (records that hold a list, for appending), ``bank`` (accounts whose sum never
changes), ``red`` and ``blue`` (records that are written blindly), and the alias ``current`` for one of the last two.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from functools import partial
from typing import Any

from tests.simulation.calling import Call, Caller, NoAnswer, Script
from tests.simulation.content import (
    ACCOUNTS,
    ALIAS,
    BLIND,
    LISTS,
    deletion,
    list_of,
    records,
    tag_query,
    value_of,
)
from tests.simulation.history import Operation, Read
from vecraft_data_model.errors import InvalidDataException, VecraftError
from vecraft_data_model.filters import parse_where
from vecraft_data_model.messages import Aborted, Committed, Delete, Mutation, Put, Rows, SetAlias
from vecraft_data_model.search_options import SearchOptions
from vecraft_data_model.validation import new_txn_id
from vecraft_router import Bounded, Commit, Flow, InteractiveTransaction, ReadOptions, Router

TRIES = 4


class Client(Caller):
    """One client."""

    # ---------------------------------------------------------------------------------------------- reading

    def _options(self) -> ReadOptions:
        level = self._world.rng.choice(("session", "session", "session", "strong", "eventual", Bounded(200)))
        return ReadOptions(level, min_ts=self._token)

    def _recorded(
        self,
        operation: Operation,
        kind: str,
        collection: str,
        options: ReadOptions,
        arguments: Any,
        flow: Callable[[Router], Flow[Any]],
    ) -> Generator[Call, Any, Any]:
        """Read; return the reply, or None. ``flow`` returns something with a snapshot."""
        level = options.consistency if isinstance(options.consistency, str) else "bounded"
        level = "past" if options.as_of is not None else level
        read = Read(operation, kind, collection, 0, level, self._world.now, options.min_ts, arguments, None)
        reply, _ = yield (operation, flow)
        if reply is None:
            return None
        read.snapshot, read.result = reply.snapshot, reply
        self._world.history.reads.append(read)
        if level != "past":
            # stale levels may answer below the token, and are not bound by it
            self._token = max(self._token, reply.snapshot)
            self._past = [*self._past[-5:], reply.snapshot]
        return reply

    def _get(
        self, operation: Operation, collection: str, ids: Sequence[str], options: ReadOptions
    ) -> Generator[Call, Any, Any]:
        reply = yield from self._recorded(
            operation, "get", collection, options, list(ids), lambda router: router.get(collection, ids, options)
        )
        return reply

    def _blind_name(self) -> str:
        return self._world.rng.choice((*BLIND, ALIAS))

    def _keys(self, most: int = 4) -> list[str]:
        keys = [f"k{number}" for number in range(self._world.swarm.keys)]
        return self._world.rng.sample(keys, self._world.rng.randint(1, min(most, len(keys))))

    def _accounts(self) -> list[str]:
        return [f"a{number}" for number in range(self._world.swarm.accounts)]

    def _do_get(self) -> Script:
        rng, operation, options = self._world.rng, self._operation("get"), self._options()
        kind = rng.random()
        if kind < 0.3:
            yield from self._get(operation, ACCOUNTS, self._accounts(), options)
        elif kind < 0.6:
            yield from self._get(operation, self._blind_name(), self._keys(), options)
        else:
            reply = yield from self._get(operation, LISTS, self._keys(), options)
            if reply is not None and options.consistency in ("session", "strong"):
                self._saw_lists(operation, reply.rows, ())

    def _saw_lists(self, operation: Operation, rows: Rows, asked: Sequence[str]) -> None:
        operation.seen = dict.fromkeys(asked, ()) | list_of(rows)

    def _do_fresh(self) -> Script:
        """Read what somebody has just written."""
        fresh = self._world.history.fresh
        if fresh:
            name = fresh[0][0]
            keys = [key for collection, key in fresh if collection == name]
            keys = self._world.rng.sample(keys, self._world.rng.choice((1, 1, len(keys))))
            # It is not told what this client has seen: a strong read has to find that out by itself.
            yield from self._get(self._operation("fresh"), name, keys, ReadOptions("strong"))

    def _do_past(self) -> Script:
        if self._past:
            options = ReadOptions(as_of=self._world.rng.choice(self._past))
            yield from self._get(self._operation("past"), self._blind_name(), self._keys(), options)

    def _do_scan(self) -> Script:
        rng, name, options = self._world.rng, self._blind_name(), self._options()
        operation, limit = self._operation("scan"), self._world.rng.randint(1, 5)
        where = rng.choice((None, rng.randint(0, 3)))
        parsed = None if where is None else parse_where(tag_query(where))
        if rng.random() < 0.3:
            yield from self._recorded(
                operation,
                "count",
                name,
                options,
                where,
                lambda router: router.count(name, where=parsed, options=options),
            )
            return
        after: str | None = None
        for _ in range(6):
            page = yield from self._recorded(
                operation,
                "scan",
                name,
                options,
                (after, limit, where),
                partial(Router.scan_page, collection=name, after=after, limit=limit, where=parsed, options=options),
            )
            if page is None or not page.more:
                return
            after, options = page.rows.ids[-1], ReadOptions(as_of=page.snapshot)

    def _do_search(self) -> Script:
        rng, name, options = self._world.rng, self._blind_name(), self._options()
        k, where, query = rng.randint(1, 4), rng.choice((None, rng.randint(0, 3))), rng.randrange(1000)
        parsed = None if where is None else parse_where(tag_query(where))
        queries = records(name, ["query"], query).vectors
        yield from self._recorded(
            self._operation("search"),
            "search",
            name,
            options,
            (queries, k, where),
            lambda router: router.search(name, queries, SearchOptions(k=k, where=parsed, exact=True), options),
        )

    # ---------------------------------------------------------------------------------------------- writing

    def _chosen_id(self) -> str | None:
        world, rng = self._world, self._world.rng
        if rng.random() >= world.swarm.chosen_ids:
            return None
        if world.swarm.foreign_ids:
            off_ms = rng.choice((0, 0, -2000, 5000, 60_000))
            if rng.random() < 0.3:
                return f"own-{rng.getrandbits(64):x}"
            return new_txn_id(self._clock.now_ms() + off_ms, rng)
        return new_txn_id(self._clock.now_ms(), rng)

    def _commit(
        self,
        operation: Operation,
        mutations: Sequence[Mutation],
        snapshot: int | None = None,
        reads: Sequence[tuple[str, str]] = (),
    ) -> Script:
        txn_id, attempt_id = self._chosen_id(), None
        operation.wrote = [(m.collection, key) for m in mutations if isinstance(m, Put | Delete) for key in m.ids]
        preimages = self._world.rng.random() < 0.2
        for attempt in range(TRIES):
            known = attempt_id or txn_id
            commit, error = yield (
                operation,
                partial(
                    Router.commit,
                    mutations=mutations,
                    txn_id=known,
                    snapshot=snapshot,
                    reads=reads,
                    want_preimages=preimages,
                ),
            )
            if not self._unknown(operation, commit, error, first=attempt == 0):
                if commit is not None and self._world.rng.random() < self._world.swarm.at_once:
                    yield from self._do_fresh()
                return
            attempt_id = error.details.get("txn_id", attempt_id)
            if known is None and attempt_id is None:
                return  # nobody can say which attempt it was
            if self._world.rng.random() < 0.2 and attempt_id is not None:
                yield from self._resolve(operation, attempt_id)
                return
            yield self._world.rng.random() * 0.3

    def _unknown(
        self, operation: Operation, commit: Commit | None, error: VecraftError | None, *, first: bool = True
    ) -> bool:
        """Write down what the client was told; return whether that was nothing."""
        operation.answered = self._world.now
        if commit is not None:
            self._told_committed(operation, commit.result.txn_id, commit.result.commit_ts)
            return False
        assert error is not None
        if isinstance(error, NoAnswer) or error.details.get("outcome") == "unknown":
            return True
        if "outcome" not in error.details and not first:
            return True  # this call was refused before anything was sent; the ones before may have done something
        if isinstance(error, InvalidDataException) and operation.kind == "reuse":
            return False
        operation.told = "aborted"
        operation.txn_id = str(error.details.get("txn_id", ""))
        self._world.note(f"client {self._number}: {operation.serial} aborted: {error}")
        return False

    def _told_committed(self, operation: Operation, txn_id: str, commit_ts: int) -> None:
        operation.told, operation.txn_id, operation.commit_ts = "committed", txn_id, commit_ts
        self._token = max(self._token, commit_ts)
        self._world.history.fresh = operation.wrote or self._world.history.fresh
        self._world.note(f"client {self._number}: {operation.serial} committed as {txn_id} at {commit_ts}")

    def _resolve(self, operation: Operation, txn_id: str) -> Script:
        decision, _ = yield (operation, lambda router: router.resolve(txn_id))
        operation.answered = self._world.now
        if isinstance(decision, Committed):
            self._told_committed(operation, txn_id, decision.commit_ts)
        elif isinstance(decision, Aborted):
            operation.told, operation.txn_id = "aborted", txn_id

    def _do_blind(self) -> Script:
        rng, operation = self._world.rng, self._operation("blind")
        mutations: list[Mutation] = []
        for name in rng.sample((*BLIND, ALIAS), rng.choice((1, 1, 2))):
            keys = self._keys()
            expect = rng.choice((None, None, None, "absent", "present"))
            if rng.random() < 0.3:
                mutations.append(deletion(name, keys, expect))
            else:
                mutations.append(records(name, keys, operation.serial, expect=expect))
        if len(mutations) == 2 and {mutations[0].collection, mutations[1].collection} != set(BLIND):  # type: ignore[union-attr]
            mutations.pop()  # one transaction must not write a record twice, by name and by alias
        yield from self._commit(operation, mutations)

    def _do_reuse(self) -> Script:
        """Use one id for two contents, which must never both be carried out, nor halves of them."""
        txn_id = new_txn_id(self._clock.now_ms(), self._world.rng)
        for _ in range(2):
            operation = self._operation("reuse")
            mutations = [records(self._world.rng.choice(BLIND), self._keys(), operation.serial)]
            commit, error = yield (operation, partial(Router.commit, mutations=mutations, txn_id=txn_id))
            self._unknown(operation, commit, error)

    def _do_alias(self) -> Script:
        operation = self._operation("alias")
        yield from self._commit(operation, [SetAlias(ALIAS, self._world.rng.choice(BLIND))])

    def _do_append(self) -> Script:
        operation, keys = self._operation("append"), self._keys()
        written = self._world.rng.sample(keys, self._world.rng.randint(1, len(keys)))
        yield from self._append(operation, keys, written)

    def _do_skew(self) -> Script:
        """Read two lists, append to one: two of these make a write skew."""
        keys = self._keys(2)
        yield from self._append(self._operation("append"), keys, keys[:1])

    def _append(self, operation: Operation, keys: list[str], written: Sequence[str]) -> Script:
        level = self._world.rng.choice(("session", "session", "strong"))
        reply = yield from self._get(operation, LISTS, keys, ReadOptions(level, min_ts=self._token))
        if reply is None:
            return
        self._saw_lists(operation, reply.rows, keys)
        assert operation.seen is not None
        longer = [[*operation.seen[key], operation.serial] for key in written]
        operation.appended = written
        put = records(LISTS, written, operation.serial, lists=longer)
        yield self._world.rng.random() * self._world.swarm.think
        yield from self._commit(operation, [put], reply.snapshot, self._validated(LISTS, keys))

    def _validated(self, collection: str, keys: Sequence[str]) -> list[tuple[str, str]]:
        return [(collection, key) for key in keys] if self._world.swarm.isolation == "serializable" else []

    def _do_transfer(self) -> Script:
        rng, operation = self._world.rng, self._operation("transfer")
        pair = rng.sample(self._accounts(), 2)
        reply = yield from self._get(operation, ACCOUNTS, pair, ReadOptions(min_ts=self._token))
        if reply is None or len(reply.rows.ids) < 2:
            return  # a new session may begin before the accounts were opened
        first, second = (value_of(payload)["b"] for payload in reply.rows.payloads)
        amount = rng.randint(1, 10)
        put = records(ACCOUNTS, pair, operation.serial, balances=[first - amount, second + amount])
        yield from self._commit(operation, [put], reply.snapshot, self._validated(ACCOUNTS, pair))

    def _do_interactive(self) -> Script:
        """The whole transaction on one router, with a search that has to see its own writes."""
        operation, keys = self._operation("append"), self._keys()
        operation.appended = keys[:1]
        txn_id, isolation, token = self._chosen_id(), self._world.swarm.isolation, self._token
        history, rng = self._world.history, self._world.rng
        look = rng.random() < 0.5

        def flow(router: Router) -> Flow[Commit]:
            txn = router.transaction(isolation=isolation, txn_id=txn_id, options=ReadOptions(min_ts=token))
            read = Read(operation, "get", LISTS, 0, "session", self._world.now, token, keys, None)
            reply = yield from txn.get(LISTS, keys)
            read.snapshot, read.result = reply.snapshot, reply
            history.reads.append(read)
            operation.seen = dict.fromkeys(keys, ()) | list_of(reply.rows)
            longer = [[*operation.seen[keys[0]], operation.serial]]
            put = records(LISTS, keys[:1], operation.serial, lists=longer)
            yield from txn.put(put)
            if look:
                yield from self._sees_itself(txn, keys[0], put.payloads[0])
            return (yield from txn.commit())

        commit, error = yield (operation, flow)
        if commit is None and txn_id is None:
            return  # a later attempt of the same flow would be another transaction
        if commit is not None or not isinstance(error, NoAnswer):
            self._unknown(operation, commit, error)

    def _sees_itself(self, txn: InteractiveTransaction, key: str, payload: bytes) -> Flow[None]:
        rows = (yield from txn.get(LISTS, [key])).rows
        if rows.payloads != [payload]:
            self._world.history.problem(f"a transaction did not see its own write of {key}")
        count = (yield from txn.count(LISTS)).count
        page = yield from txn.scan_page(LISTS, limit=100)
        if count != len(page.rows.ids) or key not in page.rows.ids:
            self._world.history.problem(f"a transaction counts {count} records and scans {page.rows.ids}")
