"""One seed from beginning to end: faults, rest, and what the checkers say."""

from __future__ import annotations

import functools
import gc
import hashlib
import os
import shutil
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.simulation.clients import Client
from tests.simulation.content import ACCOUNTS, LISTS, OPENING_BALANCE, list_of, opening, value_of
from tests.simulation.dependencies import Dependencies
from tests.simulation.history import Operation, Read
from tests.simulation.miniature import in_miniature
from tests.simulation.routers import SimulatedRouter, cluster_map
from tests.simulation.shards import SimulatedShard
from tests.simulation.truth import FOREVER, Truth
from tests.simulation.world import World
from vecraft_data_model.messages import RowsReply
from vecraft_router import Flow, ReadOptions, Router
from vecraft_router.results import Found

HASH_SEED = "0"
"""Of the processes that simulate: sets of strings are walked in an order that depends on it."""
COLLECT_EVERY = 20
FOLDER = "vecraft-simulation-"
SETTLE_S = 10.0
"""By then nothing may be prepared, locked or unacknowledged any more."""


@dataclass(slots=True)
class Result:
    """What one seed gave.

    Attributes:
        problems: What is wrong; empty: nothing.
        digest: Of everything that clients saw: equal for equal runs.
        write_skew: Whether two transactions were skewed.
    """

    seed: int
    problems: list[str]
    digest: str = ""
    commits: int = 0
    reads: int = 0
    faults: int = 0
    events: int = 0
    write_skew: bool = False
    trace: list[str] = field(default_factory=list)


def simulate(seed: int, *, trace: bool = False) -> Result:
    """Run one seed."""
    with in_miniature():
        return _simulated(seed, trace)


def _simulated(seed: int, trace: bool) -> Result:
    folder = Path(tempfile.mkdtemp(prefix=f"{FOLDER}{os.getpid()}-", dir=workplace()))
    simulation = Simulation(World(seed, folder, trace=trace))
    try:
        return simulation.run(seed)
    finally:
        simulation.end()
        shutil.rmtree(folder)
        if seed % COLLECT_EVERY == 0:
            gc.collect()  # worlds are full of cycles, which Python does not count by their size


@functools.cache
def workplace() -> Path:
    """Where seeds keep their files: in memory, if there is such a place."""
    root = Path("/dev/shm") if Path("/dev/shm").is_dir() else Path(tempfile.gettempdir())
    sweep(root)
    return root


def sweep(root: Path) -> None:
    """Remove what processes that were killed have left there."""
    for folder in root.glob(f"{FOLDER}*"):
        owner = folder.name.removeprefix(FOLDER).partition("-")[0]
        if owner.isdigit() and not _lives(int(owner)):
            shutil.rmtree(folder, ignore_errors=True)  # another process may be about it, too


def _lives(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def outline(result: Any) -> object:
    """What an answer holds, without its vectors, whose text takes long to make."""
    if isinstance(result, RowsReply):
        return result.rows.ids, result.rows.payloads, result.rows.begin_ts, result.more
    if isinstance(result, Found):
        return [(hits.ids, hits.distances, hits.payloads) for hits in result.hits]
    return repr(result)


class Simulation:
    """A cluster, its clients, and the nemesis."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.shards: list[SimulatedShard] = []
        for number in range(world.swarm.shards):
            self.shards.append(SimulatedShard(world, number, self.shards))
        self.routers = [SimulatedRouter(world, number, self.shards) for number in range(world.swarm.routers)]

    def run(self, seed: int) -> Result:
        """From the first transaction to the verdict."""
        world = self.world
        for mutations in opening(world.swarm.keys, world.swarm.accounts, texts=world.swarm.texts):
            self._must("opening", lambda router, mutations=mutations: router.commit(mutations))  # type: ignore[misc]
        world.calm = False
        for number in range(world.swarm.clients):
            Client(world, number, self.routers)
        self._begin_faults()
        world.run(world.now + world.swarm.length)
        self._end_faults()
        world.run(world.now + SETTLE_S)
        dependencies = self._judge()
        history = world.history
        seen = [(read.kind, read.snapshot, outline(read.result)) for read in history.reads]
        told = [(operation.told, operation.txn_id, operation.commit_ts) for operation in history.operations]
        everything = repr((seen, told, world.events, world.rng.random(), history.problems))
        digest = hashlib.sha256(everything.encode()).hexdigest()[:16]
        return Result(
            seed,
            history.problems,
            digest,
            len({key for key, by_shard in history.decided.items() if any(by_shard.values())}),
            len(history.reads),
            world.faults,
            world.events,
            bool(dependencies.write_skew),
            world.trace or [],
        )

    def end(self) -> None:
        """Let go of what takes room."""
        for shard in self.shards:
            shard._close()
            shard.disk.files.clear()

    def _judge(self) -> Dependencies:
        """Let all checkers look. A damaged shard may have stopped for good, and others wait for it; nobody may err."""
        history, damaged = self.world.history, self.world.damaged
        history.check = "at rest"
        lists: Mapping[str, tuple[int, ...]] | None = None
        if not damaged:
            self._check_rest()
            lists = self._last_look()
        history.check = "timestamps"
        truth = Truth(history, damaged)
        truth.check()
        history.check = "balances"
        self._check_balances()
        history.check = "files"
        self._check_files(truth)
        if lists is None:
            lists = {key: tuple(value_of(payload)["l"]) for key, payload in truth.records(LISTS, FOREVER - 1).items()}
        history.check = "dependencies"
        dependencies = Dependencies(history, lists)
        dependencies.check(serializable=self.world.swarm.isolation == "serializable")
        return dependencies

    def _must(self, kind: str, flow: Callable[[Router], Flow[Any]]) -> Any:
        """Do something without faults, which therefore has to succeed."""
        world, answers = self.world, []
        operation = Operation(len(world.history.operations) + 1, -1, kind, world.now)
        world.history.operations.append(operation)
        router = self.routers[0]
        router.run(operation, flow(router.router), lambda result, error: answers.append((result, error)))
        until = world.now + 2 * world.swarm.router_timeout
        while not answers and world.now < until:
            world.run(world.now + 0.01)
        if not answers or answers[0][1] is not None:
            world.history.problem(f"{kind} failed without any faults: {answers}")
            return None
        return answers[0][0]

    # ----------------------------------------------------------------------------------------------- faults

    def _begin_faults(self) -> None:
        swarm = self.world.swarm
        for mean, what in (
            (swarm.crashes, self._crash),
            (swarm.router_crashes, lambda: self.world.rng.choice(self.routers).crash()),
            (swarm.blackouts, self._black_out),
            (swarm.partitions, self._partition),
            (swarm.clock_jumps, self._jump),
            (swarm.disk_errors, self._fail_disk),
            (swarm.full_disks, self._fill_disk),
            (0.5, self._administer),
        ):
            if mean:
                self._again(mean, what)

    def _again(self, mean: float, what: Callable[[], None]) -> None:
        def happen() -> None:
            if not self.world.calm:
                what()
                self._again(mean, what)

        self.world.after(self.world.rng.expovariate(1 / mean), happen)

    def _crash(self) -> None:
        rng, shard = self.world.rng, self.world.rng.choice(self.shards)
        if shard.shard is None:
            return
        if rng.random() < 0.3:
            shard.crash(power=rng.random() < self.world.swarm.power)
        else:
            shard.crash_soon()

    def _black_out(self) -> None:
        power = self.world.rng.random() < self.world.swarm.power
        for shard in self.shards:
            if shard.shard is not None:
                shard.crash(power=power)
        for router in self.routers:
            router.crash()

    def _partition(self) -> None:
        world = self.world
        names = [shard.name for shard in self.shards] + [router.name for router in self.routers]
        if len(names) < 2:
            return
        one, other = world.rng.sample(names, 2)
        cut = {(one, other)} if world.rng.random() < 0.4 else {(one, other), (other, one)}
        if world.rng.random() < 0.3:
            cut = {(one, name) for name in names} | {(name, one) for name in names}
        world.faults += 1
        world.cut |= cut
        world.note(f"cut off: {sorted(cut)}")
        world.after(world.rng.uniform(0.01, 0.8), lambda: world.cut.difference_update(cut))

    def _jump(self) -> None:
        self.world.faults += 1
        self.world.rng.choice([node.clock for node in self.shards] + [node.clock for node in self.routers]).jump()

    def _fail_disk(self) -> None:
        self.world.rng.choice(self.shards).fail_in = self.world.rng.randint(0, 5)

    def _fill_disk(self) -> None:
        world = self.world
        disk = world.rng.choice(self.shards).disk
        world.faults += 1
        disk.capacity = disk.used + world.rng.choice((0, 300, 5000, 50_000))

        def free() -> None:
            disk.capacity = None

        world.after(world.rng.uniform(0.02, 0.6), free)

    def _administer(self) -> None:
        rng = self.world.rng
        rng.choice(self.shards).checkpoint(compact=rng.random() < 0.5, index=rng.random() < 0.3)

    def _end_faults(self) -> None:
        world = self.world
        world.calm = True
        world.cut.clear()
        world.note("faults end")
        for shard in self.shards:
            shard.crash_in = shard.fail_in = shard.disk.capacity = None
            shard.clock.set()
            shard.start()
        for router in self.routers:
            router.clock.set()
            router.start()

    # ---------------------------------------------------------------------------------------------- at rest

    def _check_rest(self) -> None:
        problem = self.world.history.problem
        for simulated in self.shards:
            if simulated.shard is None:
                problem(f"{simulated.name} is down long after the faults ended")
                continue
            state = simulated.shard._state
            if state.prepared or state.timeline.undecided():
                problem(f"{simulated.name} still holds {list(state.prepared)}, undecided {state.timeline.undecided()}")
            if state.locks.written or state.locks.read or state.locks.names or state.locks.aliases:
                problem(f"{simulated.name} still locks {state.locks}")
            if state.unacknowledged:
                problem(f"{simulated.name} still waits for acknowledgements of {state.unacknowledged}")

    def _last_look(self) -> dict[str, tuple[int, ...]] | None:
        keys = [f"k{number}" for number in range(self.world.swarm.keys)]
        started = self.world.now
        reply = self._must("last look", lambda router: router.get(LISTS, keys, ReadOptions("strong")))
        if reply is None:
            return None
        operation = self.world.history.operations[-1]
        read = Read(operation, "get", LISTS, reply.snapshot, "strong", started, 0, keys, reply)
        self.world.history.reads.append(read)
        return list_of(reply.rows)

    def _check_balances(self) -> None:
        swarm = self.world.swarm
        for read in self.world.history.reads:
            if read.collection == ACCOUNTS and len(read.arguments) == swarm.accounts and read.result.rows.ids:
                total = sum(value_of(payload)["b"] for payload in read.result.rows.payloads)
                if total != OPENING_BALANCE * swarm.accounts:
                    self.world.history.problem(f"the balances at {read.snapshot} add up to {total}")

    def _check_files(self, truth: Truth) -> None:
        """Cut the power to all shards at last, and compare what they come back with."""
        swarm, world = self.world.swarm, self.world
        names = {record_id for _, record_id in truth.versions}
        owners = cluster_map(swarm.shards)
        for simulated in self.shards:
            if simulated.number in world.damaged:
                continue  # rows may be damaged, as long as nobody is given them
            for restart in (False, True):
                if restart:
                    simulated._close()
                    simulated.disk.lose_power()
                    simulated.start()
                if simulated.shard is None:
                    world.history.problem(f"{simulated.name} does not come back")
                    break
                if world.damaged and simulated.shard._state.prepared:
                    break  # it waits for the decision of one that damage has stopped for good
                owned = [name for name in names if owners.shard_of(name) == simulated.number]
                truth.check_shard(simulated.shard, owned)
