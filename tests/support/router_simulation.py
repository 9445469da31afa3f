"""The router's own flows in virtual time: several routers and clients, a network that loses, repeats and delays, shards
and routers that stop and come back, clocks that disagree.

Everything follows from the seed. :func:`simulate` runs one and returns what went wrong, in words; the checks trust the
shards' versions, rebuilt after everything has come to rest:

* atomic and durable: whatever was committed stands on every key of its transaction, at one timestamp, once;
* told is true: committed if told so, not if told "aborted";
* first committer wins: no version of a key between a transaction's snapshot and its commit;
* a read at ``S`` saw exactly the versions that were alive at ``S``; a strong one everything acknowledged before it;
* nothing stays locked.
"""

from __future__ import annotations

import heapq
import random
from collections.abc import Callable
from typing import Any

from fake_shard import RESOLVE_AFTER_MS, FakeShard
from router_workbench import START_MS, vectors_of

from vecraft_data_model.convert import put_of_columns
from vecraft_data_model.errors import ShardUnavailableError, TimeoutException, VecraftError
from vecraft_data_model.messages import (
    Aborted,
    Acknowledge,
    Batch,
    BatchReply,
    Committed,
    Finish,
    Finished,
    Put,
    Refused,
    Request,
    Resolve,
    Response,
    Rows,
)
from vecraft_data_model.payload import decode_payload
from vecraft_data_model.placement import initial_map
from vecraft_data_model.schema import CollectionSchema
from vecraft_router import Ask, Flow, ReadOptions, RefreshMap, Router, RouterConfig, Sleep, Spawn, Tell

SHARDS, ROUTERS, CLIENTS = 3, 2, 4
KEYS = [f"k{number}" for number in range(10)]
FAULTS_UNTIL_S, QUIET_AT_S = 8.0, 25.0
CALL_TIMEOUT_S = 0.4
Done = Callable[[Any, BaseException | None], None]


class Crashed(Exception):
    """The router that ran a flow is gone."""


class World:
    """Virtual time, and everything that lives in it."""

    def __init__(self, seed: int) -> None:
        self.rng = random.Random(seed)
        self.now = 0.0
        self._events: list[tuple[float, int, Callable[[], None]]] = []
        self._count = 0
        self.loss = self.rng.choice((0.0, 0.02, 0.1))
        self.repeats = self.rng.choice((0.0, 0.05))
        self.slow = self.rng.choice((0.0, 0.1, 0.3))
        self.timeout_s = self.rng.choice((0.7, 3.0))
        self.lock_wait_s = self.rng.choice((0.05, 0.5))
        self.cut: set[str] = set()
        self.shards = [SimulatedShard(self, number) for number in range(SHARDS)]
        self.routers = [SimulatedRouter(self, number) for number in range(ROUTERS)]
        self.clients = [Client(self, number) for number in range(CLIENTS)]
        self.acknowledged: dict[str, int] = {}

    def after(self, seconds: float, what: Callable[[], None]) -> None:
        self._count += 1
        heapq.heappush(self._events, (self.now + seconds, self._count, what))

    def run(self, until: float) -> None:
        while self._events and self._events[0][0] <= until:
            self.now, _, what = heapq.heappop(self._events)
            what()
        self.now = until

    def send(self, sender: str, receiver: str, deliver: Callable[[], None]) -> None:
        """Deliver a message some time, perhaps never, perhaps twice."""
        if self.rng.random() < self.loss or sender in self.cut or receiver in self.cut:
            return
        for _ in range(2 if self.rng.random() < self.repeats else 1):
            delay = 1.5 if self.rng.random() < self.slow * 0.1 else 0.05 if self.rng.random() < self.slow else 0.001
            self.after(delay * (0.5 + self.rng.random()), deliver)

    def trouble(self) -> None:
        """Now and then, stop or cut off somebody for a while."""
        if self.now > FAULTS_UNTIL_S:
            return
        self.after(self.rng.uniform(0.2, 4.0), self.trouble)
        kind = self.rng.random()
        length = self.rng.choice((0.05, 0.5, 3.0))
        if kind < 0.4:
            shard = self.rng.choice(self.shards)
            shard.up = False
            self.after(length, lambda: setattr(shard, "up", True))
        elif kind < 0.6:
            self.rng.choice(self.routers).crash()
        else:
            name = self.rng.choice([shard.name for shard in self.shards] + [router.name for router in self.routers])
            self.cut.add(name)
            self.after(length, lambda: self.cut.discard(name))


class SimulatedClock:
    """A clock that is off by a constant."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._offset_ms = world.rng.randint(-150, 150)

    def now_ms(self) -> int:
        return START_MS + int(self._world.now * 1000) + self._offset_ms

    def monotonic(self) -> float:
        return self._world.now


class SimulatedShard:
    """A fake shard that can be away, and does what a primary and a participant do by themselves."""

    def __init__(self, world: World, number: int) -> None:
        self.world, self.name, self.up = world, f"shard {number}", True
        self.state = FakeShard(number)
        self.clock = SimulatedClock(world)
        world.after(0.1, self._tick)

    def take(self, batch: Batch, answer: Callable[[BatchReply], None]) -> None:
        if self.up:
            answer(self.state.execute(batch, self.clock.now_ms()))

    def _tick(self) -> None:
        self.world.after(0.1, self._tick)
        if not self.up:
            return
        state, now_ms = self.state, self.clock.now_ms()
        for txn_id, held in list(state.held.items()):
            if now_ms - held.since_ms >= RESOLVE_AFTER_MS:
                self._ask(held.primary, Resolve(txn_id))
        for txn_id, shards in state.unacknowledged.items():
            for shard in shards:
                self._ask(shard, Finish(txn_id, state.outcomes[txn_id][0]))

    def _ask(self, shard: int, request: Request) -> None:
        peer, clock = self.world.shards[shard], self.state.clock.last

        def answer(reply: BatchReply) -> None:
            self.world.send(peer.name, self.name, lambda: self._hear(shard, request, reply.responses[0]))

        self.world.send(self.name, peer.name, lambda: peer.take(Batch([request], clock), answer))

    def _hear(self, shard: int, request: Request, response: Response) -> None:
        match request, response:
            case Resolve(txn_id=txn_id), Committed(commit_ts=commit_ts):
                self.take(Batch([Finish(txn_id, commit_ts)]), lambda _: None)
            case Resolve(txn_id=txn_id), Aborted():
                self.take(Batch([Finish(txn_id, 0)]), lambda _: None)
            case Finish(txn_id=txn_id), Finished():
                self.take(Batch([Acknowledge(txn_id, [shard])]), lambda _: None)


class SimulatedRouter:
    """A router and its runner. A crash forgets everything."""

    def __init__(self, world: World, number: int) -> None:
        self.world, self.name = world, f"router {number}"
        self.crash()

    def crash(self) -> None:
        tasks = getattr(self, "tasks", [])
        self.tasks: list[Task] = []
        clock = SimulatedClock(self.world)
        config = RouterConfig(timeout_s=self.world.timeout_s, lock_wait_s=self.world.lock_wait_s)
        self.router = Router(initial_map(SHARDS), clock, random.Random(self.world.rng.random()), config)
        for task in tasks:
            task.end(None, Crashed())

    def run(self, flow: Flow[Any], done: Done) -> None:
        task = Task(self, flow, done)
        self.tasks.append(task)
        task.step(None)


class Task:
    """A flow on its way."""

    def __init__(self, router: SimulatedRouter, flow: Flow[Any], done: Done) -> None:
        self._world, self._owner, self._router = router.world, router, router.router
        self._flow, self._done, self._over = flow, done, False

    def end(self, result: Any, error: BaseException | None) -> None:
        self._over = True
        if self in self._owner.tasks:
            self._owner.tasks.remove(self)
        self._done(result, error)

    def step(self, value: Any) -> None:
        if self._over:
            return
        try:
            effect = self._flow.send(value)
        except StopIteration as stop:
            self.end(stop.value, None)
            return
        except VecraftError as error:
            self.end(None, error)
            return
        if isinstance(effect, Ask):
            self._ask(effect)
        elif isinstance(effect, Sleep):
            self._world.after(effect.seconds, lambda: self.step(None))
        else:
            if isinstance(effect, Spawn):
                self._owner.run(effect.flow, lambda result, error: None)
            elif isinstance(effect, Tell):
                for shard, request in effect.requests.items():
                    self._transmit(shard, request, lambda reply: None)
            else:
                assert isinstance(effect, RefreshMap)
            self._world.after(0, lambda: self.step(None))

    def _ask(self, effect: Ask) -> None:
        replies: dict[int, Response] = {}

        def take(shard: int, response: Response) -> None:
            if shard not in replies:
                replies[shard] = response
                if len(replies) == len(effect.requests):
                    self.step({shard: replies[shard] for shard in effect.requests})

        def hear(shard: int) -> Callable[[BatchReply], None]:
            def take_reply(reply: BatchReply) -> None:
                self._router.state.overhear(reply.clock)
                take(shard, reply.responses[0])

            return take_reply

        for shard, request in effect.requests.items():
            self._transmit(shard, request, hear(shard))
            remaining = max(0.0, effect.deadline - self._world.now)
            if remaining <= CALL_TIMEOUT_S:
                error: VecraftError = TimeoutException("out of time")
            else:
                remaining, error = CALL_TIMEOUT_S, ShardUnavailableError(f"shard {shard} does not answer")
            self._world.after(remaining, lambda shard=shard, error=error: take(shard, Refused(error)))  # type: ignore[misc]
        if not effect.requests:
            self._world.after(0, lambda: self.step({}))

    def _transmit(self, shard: int, request: Request, hear: Callable[[BatchReply], None]) -> None:
        world, peer, me = self._world, self._world.shards[shard], self._owner.name
        batch = Batch([request], self._router.state.hlc.last, 1)

        def answer(reply: BatchReply) -> None:
            world.send(peer.name, me, lambda: hear(reply))

        world.send(me, peer.name, lambda: peer.take(batch, answer))


class Client:
    """Does one thing after another: reads, blind writes, read-modify-write; writes what it was told into a history."""

    def __init__(self, world: World, number: int) -> None:
        self.world, self.number, self.serial, self.token = world, number, 0, 0
        self.reads: list[tuple[int, dict[str, str], list[str], int]] = []
        self.told: dict[str, tuple[str, int, float]] = {}
        self.writes: dict[str, tuple[list[str], int | None]] = {}

    def next(self) -> None:
        world, rng = self.world, self.world.rng
        if world.now > FAULTS_UNTIL_S + 2:
            return
        self.serial += 1
        keys = rng.sample(KEYS, rng.randint(1, 4))
        if rng.random() < 0.3:
            self._write(f"w{self.number}.{self.serial}", keys, None, chosen=rng.random() < 0.5)
        else:
            self._read(keys)

    def _router(self) -> SimulatedRouter:
        return self.world.rng.choice(self.world.routers)

    def _later(self) -> None:
        self.world.after(self.world.rng.uniform(0, 0.05), self.next)

    def _read(self, keys: list[str]) -> None:
        world = self.world
        strong = world.rng.random() < 0.3
        # what has to be seen: everything that was acknowledged on these keys, or only what this client has seen
        least = max((world.acknowledged.get(key, 0) for key in keys), default=0) if strong else 0
        least = max(least, self.token)
        router = self._router()
        options = ReadOptions("strong" if strong else "session", min_ts=self.token)

        def done(reply: Any, error: BaseException | None) -> None:
            if error is not None:
                self._later()
                return
            self.reads.append((reply.snapshot, tags_of(reply.rows), keys, least))
            self.token = max(self.token, reply.snapshot)
            if world.rng.random() < 0.5:
                self._write(f"u{self.number}.{self.serial}", keys, reply.snapshot, chosen=world.rng.random() < 0.5)
            else:
                self._later()

        router.run(router.router.get("things", keys, options), done)

    def _write(self, tag: str, keys: list[str], snapshot: int | None, *, chosen: bool) -> None:
        self.writes[tag] = (keys, snapshot)
        put = put_of_columns("things", keys, vectors_of(keys), [{"tag": tag}] * len(keys))
        self._attempt(tag, put, snapshot, tag if chosen else None, 4)

    def _attempt(self, tag: str, put: Put, snapshot: int | None, txn_id: str | None, tries: int) -> None:
        router = self._router()

        def done(commit: Any, error: BaseException | None) -> None:
            unknown = isinstance(error, Crashed)
            if isinstance(error, VecraftError):
                unknown = error.details.get("outcome") == "unknown"
            if error is None:
                self.told[tag] = ("committed", commit.result.commit_ts, self.world.now)
                self.token = max(self.token, commit.result.commit_ts)
                for key in put.ids:
                    self.world.acknowledged[key] = max(self.world.acknowledged.get(key, 0), commit.result.commit_ts)
            elif not unknown:
                self.told[tag] = ("aborted", 0, self.world.now)
            else:
                # after "unknown" the same id is sent again; a crashed router cannot even say which id that was
                again = error.details["txn_id"] if isinstance(error, VecraftError) else txn_id
                if again is not None and tries:
                    wait = self.world.rng.uniform(0, 0.5)
                    self.world.after(wait, lambda: self._attempt(tag, put, snapshot, again, tries - 1))
                    return
            self._later()

        router.run(router.router.commit([put], txn_id=txn_id, snapshot=snapshot), done)


def tags_of(rows: Rows) -> dict[str, str]:
    """Return record id → the transaction that wrote it."""
    assert rows.payloads is not None
    metadata = (decode_payload(payload).metadata or {} for payload in rows.payloads)
    return {record_id: data["tag"] for record_id, data in zip(rows.ids, metadata, strict=True)}


def simulate(seed: int) -> tuple[list[str], int, int]:
    """Run one seed; return what went wrong, and how many transactions and reads there were."""
    world = World(seed)
    schema = CollectionSchema(name="things", dim=4)
    for shard in world.shards:
        shard.take(Batch([]), lambda _: None)
        shard.state.schemas["things"] = (schema, "0", 1)
    for client in world.clients:
        world.after(world.rng.random() * 0.1, client.next)
    world.after(1.0, world.trouble)
    world.run(FAULTS_UNTIL_S + 2)
    world.loss = world.repeats = 0.0
    world.cut.clear()
    for shard in world.shards:
        shard.up = True
    world.run(QUIET_AT_S)
    return check(world)


def check(world: World) -> tuple[list[str], int, int]:
    """Compare what clients were told and saw with what the shards hold."""
    problems: list[str] = []
    owner = initial_map(SHARDS).shard_of
    versions: dict[str, list[tuple[int, int, str]]] = {}
    stands: dict[str, dict[str, list[int]]] = {}
    for key in KEYS:
        rows = world.shards[owner(key)].state.records.get(("things", key), [])
        tags = [(decode_payload(version.payload).metadata or {})["tag"] for version in rows]
        versions[key] = [(version.begin, version.end, tag) for version, tag in zip(rows, tags, strict=True)]
        for begin, _, tag in versions[key]:
            stands.setdefault(tag, {}).setdefault(key, []).append(begin)
    writes = {tag: write for client in world.clients for tag, write in client.writes.items()}
    for tag, found in stands.items():
        keys, snapshot = writes[tag]
        times = {ts for each in found.values() for ts in each}
        if set(found) != set(keys) or len(times) != 1 or any(len(each) != 1 for each in found.values()):
            problems.append(f"{tag} is torn or was applied twice: {found} of {keys}")
        if snapshot is not None:
            lost = [key for key in keys if any(snapshot < begin < max(times) for begin, _, _ in versions[key])]
            problems += [f"lost update on {key} by {tag}" for key in lost]
    for client in world.clients:
        for tag, (what, ts, _) in client.told.items():
            if what == "committed" and not all(ts in stands.get(tag, {}).get(key, ()) for key in writes[tag][0]):
                problems.append(f"{tag} was told committed at {ts} and is not there")
            if what == "aborted" and tag in stands:
                problems.append(f"{tag} was told aborted and is there")
        for snapshot, seen, keys, least in client.reads:
            for key in keys:
                wanted = next((tag for begin, end, tag in versions[key] if begin <= snapshot < end), None)
                if seen.get(key) != wanted:
                    problems.append(f"a read of {key} at {snapshot} saw {seen.get(key)}, not {wanted}")
            if snapshot < least:
                problems.append(f"a read at {snapshot} is older than {least}, which had been acknowledged or seen")
    problems += [f"{shard.name} still holds {list(shard.state.held)}" for shard in world.shards if shard.state.held]
    return problems, len(stands), sum(len(client.reads) for client in world.clients)
