"""How simulated clients write: under which ids, how often again, and what they take for the outcome."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

from tests.simulation.calling import Call, NoAnswer, Script
from tests.simulation.content import ALIAS, BLIND, PASSING, condition, deletion, records
from tests.simulation.history import Operation, Read
from tests.simulation.reading import ReadingClient
from vecraft_data_model.errors import InvalidDataException, VecraftError
from vecraft_data_model.messages import Aborted, Committed, Delete, Mutation, Put
from vecraft_data_model.validation import new_txn_id
from vecraft_router import Commit, Flow, ReadOptions, Router

TRIES = 4
TIMELESS = "own-"
"""How ids begin that do not say when they were made: nobody can ask about those when their outcome may be forgotten."""
Send = Callable[[Router, str | None], Flow[Commit]]
"""Makes the flow that commits under an id."""


class WritingClient(ReadingClient):
    """The writing part of a client."""

    def _chosen_id(self) -> str | None:
        world, rng = self._world, self._world.rng
        if rng.random() >= world.swarm.chosen_ids:
            return None
        if world.swarm.foreign_ids:
            off_ms = rng.choice((0, 0, -2000, 5000, 60_000))
            if rng.random() < 0.3:
                return f"{TIMELESS}{rng.getrandbits(64):x}"
            return new_txn_id(self._clock.now_ms() + off_ms, rng)
        return new_txn_id(self._clock.now_ms(), rng)

    def _commit(
        self,
        operation: Operation,
        mutations: Sequence[Mutation],
        snapshot: int | None = None,
        reads: Sequence[tuple[str, str]] = (),
    ) -> Script:
        operation.wrote = [(m.collection, key) for m in mutations if isinstance(m, Put | Delete) for key in m.ids]
        preimages = self._world.rng.random() < 0.2

        def send(router: Router, txn_id: str | None) -> Flow[Commit]:
            return router.commit(mutations, txn_id=txn_id, snapshot=snapshot, reads=reads, want_preimages=preimages)

        yield from self._insist(operation, self._chosen_id(), send)
        puts = [m for m in mutations if isinstance(m, Put)]
        if puts and operation.told == "committed":
            self.last_put = (puts[0].collection, puts[0].ids[0], operation.serial)

    def _insist(self, operation: Operation, txn_id: str | None, send: Send) -> Script:
        """Send until the outcome is known, or patience is at its end."""
        attempt_id = None
        for attempt in range(TRIES):
            known = attempt_id or txn_id
            commit, error = yield (operation, lambda router, known=known: send(router, known))  # type: ignore[misc]
            if not self._unknown(operation, commit, error, first=attempt == 0):
                if commit is not None and known is None and not commit.result.count and operation.matched:
                    operation.told = ""  # nothing matched, and no shard has heard of that id
                if commit is not None and self._world.rng.random() < self._world.swarm.at_once:
                    yield from self._do_fresh()
                return
            attempt_id = error.details.get("txn_id", attempt_id)
            if known is None and attempt_id is None:
                return  # nobody can say which attempt it was
            if self._world.rng.random() < 0.2 and attempt_id is not None and not attempt_id.startswith(TIMELESS):
                yield from self._resolve(operation, attempt_id)
                return
            yield self._world.rng.random() * 0.3

    def _unknown(
        self, operation: Operation, commit: Commit | None, error: VecraftError | None, *, first: bool = True
    ) -> bool:
        """Write down what the client was told; return whether that was nothing."""
        operation.answered = self._world.now
        if commit is not None:
            self._told_committed(operation, commit.result.txn_id, commit.result.commit_ts, commit.result.count)
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

    def _told_committed(self, operation: Operation, txn_id: str, commit_ts: int, count: int | None = None) -> None:
        operation.told, operation.txn_id, operation.commit_ts = "committed", txn_id, commit_ts
        operation.count = count
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

    # --------------------------------------------------------------------------------------- blind writes

    def _put(self, name: str, keys: Sequence[str], operation: Operation, expect: str | None = None) -> Put:
        return records(name, keys, operation.serial, expect=expect, texts=self._world.swarm.texts)

    def _do_blind(self) -> Script:
        rng, operation = self._world.rng, self._operation("blind")
        mutations: list[Mutation] = []
        for name in rng.sample((*BLIND, ALIAS), rng.choice((1, 1, 2))):
            keys = self._keys()
            expect = rng.choice((None, None, None, "absent", "present"))
            if rng.random() < 0.3:
                mutations.append(deletion(name, keys, expect))
            else:
                mutations.append(self._put(name, keys, operation, expect))
        if len(mutations) == 2 and {mutations[0].collection, mutations[1].collection} != set(BLIND):  # type: ignore[union-attr]
            mutations.pop()  # one transaction must not write a record twice, by name and by alias
        if self._world.swarm.weights["catalog"] and rng.random() < 0.3:
            mutations.append(self._put(PASSING, self._keys(), operation))
            mutations = [m for m in mutations if m.collection != ALIAS]  # type: ignore[union-attr]
        # Under a snapshot the names have to mean what they did then, too.
        yield from self._commit(operation, mutations, self._token if self._token and rng.random() < 0.3 else None)

    def _do_witness(self) -> Script:
        """Write records all over the shards, and let others look at each of them as soon as that is acknowledged."""
        world, operation = self._world, self._operation("witness")
        keys = self._keys(8)
        yield from self._commit(operation, [self._put(BLIND[0], keys, operation)])
        if operation.told != "committed":
            return
        options = ReadOptions("strong")
        looks = [Read(self._operation("look"), "get", BLIND[0], 0, "strong", world.now, 0, [key], None) for key in keys]
        answers = yield [
            (look.operation, partial(Router.get, collection=BLIND[0], ids=look.arguments, options=options))
            for look in looks
        ]
        for look, (reply, _) in zip(looks, answers, strict=True):
            if reply is not None:
                look.snapshot, look.result = reply.snapshot, reply
                world.history.reads.append(look)

    def _do_claim(self) -> Script:
        """Take one record, or give it back: what was refused at one moment would be accepted at the next."""
        rng, operation = self._world.rng, self._operation("claim")
        key = [f"k{rng.randrange(2)}"]
        if rng.random() < 0.5:
            yield from self._commit(operation, [self._put(BLIND[1], key, operation, "absent")])
        else:
            yield from self._commit(operation, [deletion(BLIND[1], key, "present")])

    def _do_reuse(self) -> Script:
        """Use one id for several contents, which must never all be carried out, nor halves of them."""
        world, ids = self._world, self._world.history.shared_ids
        if not ids or world.rng.random() < 0.7:
            ids.append(new_txn_id(self._clock.now_ms(), world.rng))
            txn_id = ids[-1]
        else:
            txn_id = world.rng.choice(ids[-2:])
        keys = self._keys()
        contents = world.rng.choice(((keys[:1], keys), (keys, keys), (self._keys(1), keys)))
        sent = [self._operation("reuse") for _ in contents]
        calls: list[Call] = []
        for operation, written in zip(sent, contents, strict=True):
            put = self._put(BLIND[0], written, operation, world.rng.choice((None, None, "absent", "present")))
            calls.append((operation, partial(Router.commit, mutations=[put], txn_id=txn_id)))
        if world.rng.random() < 0.5:
            answers = yield calls  # at once: while one is under way, the other is refused, and releases what it holds
        else:
            answers = []
            for call in calls:
                answers.append((yield call))
        for operation, (commit, error) in zip(sent, answers, strict=True):
            self._unknown(operation, commit, error)

    def _do_waver(self) -> Script:
        """Write one record again and again, which deletions by filter find, and do not find any more."""
        name, keys = self._world.rng.choice(BLIND), self._keys(1)
        for _ in range(4):
            operation = self._operation("waver")
            yield from self._commit(operation, [self._put(name, keys, operation)])

    def _do_delete_where(self) -> Script:
        rng, operation = self._world.rng, self._operation("delete_where")
        name, group = rng.choice((*BLIND, ALIAS, ALIAS)), rng.randrange(4)
        operation.matched = (name, group)
        where, where_document = condition(group, self._operator())
        options = ReadOptions(min_ts=self._token)

        def send(router: Router, txn_id: str | None) -> Flow[Commit]:
            return router.delete_where(name, where=where, where_document=where_document, txn_id=txn_id, options=options)

        yield from self._insist(operation, self._chosen_id(), send)
