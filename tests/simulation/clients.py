"""Simulated clients: each does one thing after another through any router, and writes down what it was told.

The database they work on: ``lists`` (records that hold a list, for appending), ``bank`` (accounts whose sum never
changes), ``red`` and ``blue`` (records that are written blindly), ``green``, which comes and goes, and the alias
``current`` for one of the last three.
"""

from __future__ import annotations

from collections.abc import Sequence

from tests.simulation.calling import NoAnswer, Script
from tests.simulation.content import ACCOUNTS, ALIAS, BLIND, LISTS, PASSING, list_of, records, schema_of, value_of
from tests.simulation.history import Operation, Read
from tests.simulation.writing import WritingClient
from vecraft_data_model.errors import (
    CollectionAlreadyExistedException,
    CollectionNotExistedException,
    InvalidDataException,
)
from vecraft_data_model.messages import (
    AlterCollection,
    CreateCollection,
    Delete,
    DropAlias,
    DropCollection,
    Mutation,
    Put,
    SetAlias,
)
from vecraft_data_model.scan_options import ScanOptions
from vecraft_router import Commit, Flow, InteractiveTransaction, ReadOptions, Router


class Client(WritingClient):
    """One client."""

    # ---------------------------------------------------------------------------------------------- catalog

    def _do_alias(self) -> Script:
        operation = self._operation("alias")
        yield from self._commit(operation, [SetAlias(ALIAS, self._world.rng.choice(BLIND))])

    def _do_catalog(self) -> Script:
        """Let a collection come and go under load, and with it what names mean."""
        rng = self._world.rng
        if rng.random() < 0.4:
            operation = self._operation("append")
            yield from self._interactive(operation, self._catalog_steps(operation))
            return
        operation = self._operation("catalog")
        kind = rng.choice(("create", "create", "drop", "drop", "alter", "alias", "unalias", "swap", "list"))
        mutations: list[Mutation] = []
        if kind == "create":
            mutations = [CreateCollection(schema_of(PASSING), "")]
            if rng.random() < 0.5:
                mutations.append(self._put(PASSING, self._keys(), operation))
        elif kind == "drop":
            mutations = [DropCollection(PASSING)]
        elif kind == "alter":
            name = rng.choice((*BLIND, PASSING))
            mutations = [AlterCollection(name, {"ef": rng.choice((None, 8, 32))})]
        elif kind == "alias":
            mutations = [SetAlias(ALIAS, PASSING)]
        elif kind == "unalias":
            mutations = [DropAlias(ALIAS)]
        elif kind == "swap":
            # The end of a re-embedding: the alias moves, and the collection it leaves goes, in one transaction.
            mutations = [SetAlias(ALIAS, BLIND[0]), DropCollection(PASSING)]
        else:
            yield from self._do_list()
            return
        yield from self._commit(operation, mutations)

    # ------------------------------------------------------------------------------------ read, then write

    def _do_append(self) -> Script:
        operation, keys = self._operation("append"), self._keys()
        written = self._world.rng.sample(keys, self._world.rng.randint(1, len(keys)))
        yield from self._append(operation, keys, written)

    def _do_skew(self) -> Script:
        """Read two lists, append to one: two of these make a write skew."""
        first = [f"k{number}" for number in range(min(4, self._world.swarm.keys))]
        keys = self._world.rng.sample(first, 2)
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
        """The whole transaction on one router; its reads have to see its own writes."""
        operation = self._operation("append")
        steps: list[Mutation] = []
        if self._world.swarm.weights["catalog"] and self._world.rng.random() < 0.3:
            steps = self._catalog_steps(operation)
        yield from self._interactive(operation, steps)

    def _interactive(self, operation: Operation, steps: list[Mutation]) -> Script:
        """Append to a list, and change the catalog by these steps."""
        keys = self._keys()
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
            yield from self._take_steps(txn, steps)
            if look:
                yield from self._sees_itself(txn, keys[0], put.payloads[0])
            return (yield from txn.commit())

        commit, error = yield (operation, flow)
        if commit is None and txn_id is None:
            return  # a later attempt of the same flow would be another transaction
        if commit is not None or not isinstance(error, NoAnswer):
            self._unknown(operation, commit, error)

    def _catalog_steps(self, operation: Operation) -> list[Mutation]:
        """Changes that make one transaction."""
        create, filled = CreateCollection(schema_of(PASSING), ""), self._put(PASSING, self._keys(), operation)
        return self._world.rng.choice(
            [
                [create, filled],
                [create, filled, SetAlias(ALIAS, PASSING)],  # a re-embedding, in one transaction
                [SetAlias(ALIAS, BLIND[0]), DropCollection(PASSING)],
                [DropCollection(PASSING), create],
                [DropAlias(ALIAS)],
            ]
        )

    def _take_steps(self, txn: InteractiveTransaction, steps: list[Mutation]) -> Flow[None]:
        """Change the catalog, as far as it is what the transaction takes it for, and look whether that is seen."""
        try:
            for step in steps:
                if isinstance(step, Put):
                    yield from txn.put(step)
                    count = (yield from txn.count(PASSING)).count
                    if count != len(step.ids):
                        self._world.history.problem(f"a transaction counts {count} in what it made with {step.ids}")
                elif not isinstance(step, Delete):
                    yield from txn.change_catalog(step)
        except (CollectionAlreadyExistedException, CollectionNotExistedException, InvalidDataException) as error:
            self._world.note(f"client {self._number}: no such step: {error}")

    def _sees_itself(self, txn: InteractiveTransaction, key: str, payload: bytes) -> Flow[None]:
        rows = (yield from txn.get(LISTS, [key])).rows
        if rows.payloads != [payload]:
            self._world.history.problem(f"a transaction did not see its own write of {key}")
        count = (yield from txn.count(LISTS)).count
        page = yield from txn.scan_page(LISTS, ScanOptions(limit=100))
        if count != len(page.rows.ids) or key not in page.rows.ids:
            self._world.history.problem(f"a transaction counts {count} records and scans {page.rows.ids}")
