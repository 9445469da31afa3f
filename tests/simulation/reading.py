"""How simulated clients read, and what they write down of it."""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from functools import partial
from typing import Any

import msgspec

from tests.simulation.calling import Call, Caller, Script
from tests.simulation.content import ACCOUNTS, ALIAS, BLIND, LISTS, PASSING, condition, list_of, records
from tests.simulation.history import Operation, Read
from vecraft_data_model.errors import (
    ChecksumValidationFailureError,
    CollectionNotExistedException,
    CorruptionError,
    SnapshotTooOldError,
    VecraftError,
)
from vecraft_data_model.messages import Float32Array, Rows
from vecraft_data_model.scan_options import ScanOptions
from vecraft_data_model.search_options import SearchOptions
from vecraft_data_model.text_ranking import TextQuery
from vecraft_router import Bounded, Flow, ReadOptions, Router

PIN_MS = 60_000


class ReadingClient(Caller):
    """The reading part of a client."""

    refusal: VecraftError | None = None
    """Why the last read was not answered."""
    last_put: tuple[str, str, int] | None = None
    """``(collection, record id, operation)`` of what this client wrote last."""

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
        reply, self.refusal = yield (operation, flow)
        if reply is None:
            self._refused(read, options, self.refusal)
            return None
        read.snapshot, read.result = reply.snapshot, reply
        self._world.history.reads.append(read)
        if level != "past":
            # stale levels may answer below the token, and are not bound by it
            self._token = max(self._token, reply.snapshot)
            self._past = [*self._past[-5:], reply.snapshot]
        return reply

    def _refused(self, read: Read, options: ReadOptions, error: VecraftError | None) -> None:
        world = self._world
        if isinstance(error, CollectionNotExistedException):
            read.snapshot = options.as_of if isinstance(options.as_of, int) else 0
            world.history.refused.append(read)
        if isinstance(error, CorruptionError | ChecksumValidationFailureError) and not world.damaged:
            world.history.problem(f"nothing is damaged, but operation {read.operation.serial} was told: {error}")

    def _get(
        self, operation: Operation, collection: str, ids: Sequence[str], options: ReadOptions
    ) -> Generator[Call, Any, Any]:
        reply = yield from self._recorded(
            operation, "get", collection, options, list(ids), lambda router: router.get(collection, ids, options)
        )
        return reply

    def _blind_name(self) -> str:
        names = (*BLIND, ALIAS, PASSING) if self._world.swarm.weights["catalog"] else (*BLIND, ALIAS)
        return self._world.rng.choice(names)

    def _keys(self, most: int = 4) -> list[str]:
        keys = [f"k{number}" for number in range(self._world.swarm.keys)]
        return self._world.rng.sample(keys, self._world.rng.randint(1, min(most, len(keys))))

    def _accounts(self) -> list[str]:
        return [f"a{number}" for number in range(self._world.swarm.accounts)]

    def _operator(self) -> str:
        """How to ask for a group: by metadata (empty), or by text."""
        return self._world.rng.choice(("", "$contains", "$matches")) if self._world.swarm.texts else ""

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

    def _do_pin(self) -> Script:
        """Hold a snapshot and read at it now and then: what it sees must not go away."""
        world, operation = self._world, self._operation("pin")
        restarts, options = world.restarts, ReadOptions("session", min_ts=self._token)
        pin, _ = yield (operation, lambda router: router.pin(ttl_ms=PIN_MS, options=options))
        if pin is None:
            return
        for _ in range(world.rng.randint(1, 4)):
            yield world.rng.random() * 0.6
            at = ReadOptions(as_of=pin.snapshot)
            yield from self._get(operation, self._blind_name(), self._keys(), at)
            # Pins live in memory: a shard that was restarted since does not know this one.
            if isinstance(self.refusal, SnapshotTooOldError) and restarts == world.restarts:
                world.history.problem(f"the pinned snapshot {pin.snapshot} cannot be read: {self.refusal}")
        if world.rng.random() < 0.5:
            yield (operation, lambda router: router.release(pin.pin_id))

    def _do_scan(self) -> Script:
        rng, name, options = self._world.rng, self._blind_name(), self._options()
        operation, limit = self._operation("scan"), self._world.rng.randint(1, 5)
        group = rng.choice((None, rng.randint(0, 3)))
        where, where_document = condition(group, self._operator())
        if rng.random() < 0.3:
            yield from self._recorded(
                operation,
                "count",
                name,
                options,
                group,
                lambda router: router.count(name, where=where, where_document=where_document, options=options),
            )
            return
        after: str | None = None
        for _ in range(6):
            flow = partial(
                Router.scan_page,
                collection=name,
                wanted=ScanOptions(after, limit, where, where_document),
                options=options,
            )
            page = yield from self._recorded(operation, "scan", name, options, (after, limit, group), flow)
            if page is None or not page.more:
                return
            after, options = page.rows.ids[-1], ReadOptions(as_of=page.snapshot)

    def _do_search(self) -> Script:
        rng, name, options = self._world.rng, self._blind_name(), self._options()
        k, group, query = rng.randint(1, 4), rng.choice((None, rng.randint(0, 3))), rng.randrange(1000)
        where, where_document = condition(group, self._operator())
        queries = records(name, ["query"], query).vectors
        wanted = SearchOptions(k=k, where=where, where_document=where_document, exact=True)
        kind = rng.random()
        if kind < 0.2:
            grouped = msgspec.structs.replace(wanted, group_by=rng.choice("gt"), group_size=rng.choice((1, 1, 2)))
            yield from self._ranked("grouped", name, queries, grouped, group, options)
            return
        if kind < 0.5 and self._world.swarm.texts:
            words = tuple(sorted({f"group{query % 4}", rng.choice(("wrote", f"k{query % 8}"))}))
            queries = queries[:, : rng.choice((0, 2))]
            by_text = msgspec.structs.replace(wanted, text=TextQuery(words))
            yield from self._ranked("text", name, queries, by_text, group, options)
            return
        yield from self._recorded(
            self._operation("search"),
            "search",
            name,
            options,
            (queries, k, group),
            lambda router: router.search(name, queries, wanted, options),
        )

    def _ranked(
        self,
        kind: str,
        name: str,
        queries: Float32Array,
        wanted: SearchOptions,
        group: int | None,
        options: ReadOptions,
    ) -> Script:
        """A search that is answered by more than the nearest records."""
        yield from self._recorded(
            self._operation("search"),
            kind,
            name,
            options,
            (queries.tolist(), wanted, group),
            lambda router: router.search(name, queries, wanted, options),
        )

    def _do_near(self) -> Script:
        """Search as users do, by the graph if there is one, near something that was just written."""
        if self.last_put is None:
            return
        rng, (name, key, serial) = self._world.rng, self.last_put
        k, group = rng.choice((1, 1, 3)), rng.choice((None, None, serial % 4))
        where, _ = condition(group, "")
        queries = records(name, [key], serial).vectors
        wanted = SearchOptions(k=k, where=where, ef=rng.choice((None, 1, 1, 4)))
        options = ReadOptions("session", min_ts=self._token)
        yield from self._recorded(
            self._operation("near"),
            "near",
            name,
            options,
            (queries, k, group),
            lambda router: router.search(name, queries, wanted, options),
        )

    def _do_list(self) -> Script:
        options = self._options()
        yield from self._recorded(
            self._operation("list"), "list", "", options, None, lambda router: router.list_collections(options)
        )
