"""Virtual time, the network, and clocks that disagree. Everything follows from the seed."""

from __future__ import annotations

import heapq
import random
from collections.abc import Callable
from pathlib import Path

from tests.simulation.history import History
from tests.simulation.swarm import Swarm

START_MS = 1_800_000_000_000
SLOW_LINK = 20.0


class World:
    """What all simulated processes live in.

    Attributes:
        now: Virtual seconds.
        calm: Whether faults have ended.
        history: What clients did and saw, what shards decided, and what is wrong already.
        restarts: How often a shard was opened.
        damaged: Shards of which a file was damaged.
        trace: Lines for whoever replays a seed; None: not wanted.
    """

    def __init__(self, seed: int, folder: Path, *, trace: bool = False) -> None:
        self.rng = random.Random(seed)
        self.swarm = Swarm.of(seed)
        self.folder = folder
        self.now = 0.0
        self.calm = True
        self.history = History()
        self.faults = 0
        self.events = 0
        self.restarts = 0
        self.damaged: set[int] = set()
        self.cut: set[tuple[str, str]] = set()
        self.trace: list[str] | None = [] if trace else None
        self._queue: list[tuple[float, int, Callable[[], None]]] = []
        self._count = 0
        self._links: dict[tuple[str, str], float] = {}

    def after(self, seconds: float, what: Callable[[], None]) -> None:
        """Have something happen later."""
        self._count += 1
        heapq.heappush(self._queue, (self.now + seconds, self._count, what))

    def run(self, until: float) -> None:
        """Let time pass."""
        queue = self._queue
        while queue and queue[0][0] <= until:
            self.now, _, what = heapq.heappop(queue)
            self.events += 1
            what()
        self.now = until

    def send(self, sender: str, receiver: str, deliver: Callable[[], None]) -> None:
        """Deliver a message some time: perhaps never, perhaps twice, perhaps after a later one."""
        swarm, rng = self.swarm, self.rng
        if self.calm:
            self.after(swarm.latency * (0.5 + rng.random()), deliver)
            return
        if (sender, receiver) in self.cut or rng.random() < swarm.loss:
            return
        latency = swarm.latency * self._link(sender, receiver)
        delay = latency if rng.random() >= swarm.slow else rng.choice((0.05, 0.5, 2.0))
        self.after(delay * (0.2 + 1.6 * rng.random()), deliver)
        if rng.random() < swarm.duplicates:
            delay = latency if rng.random() >= swarm.late else rng.choice((0.05, 0.3, 1.5))
            self.after(delay * (0.2 + 1.6 * rng.random()), deliver)

    def _link(self, sender: str, receiver: str) -> float:
        link = self._links.get((sender, receiver))
        if link is None:
            slow = self.rng.random() < self.swarm.slow_links
            link = self._links[sender, receiver] = SLOW_LINK if slow else 1.0
        return link

    def note(self, text: str) -> None:
        """Leave a line for whoever replays the seed."""
        if self.trace is not None:
            self.trace.append(f"{self.now:9.5f} {text}")


class SimulatedClock:
    """One node's clock: off by less than the accepted skew, and by another amount after a jump."""

    def __init__(self, world: World) -> None:
        self._world = world
        self.offset_ms = 0
        self.set()

    def set(self) -> None:
        """Be off by an amount that is accepted."""
        skew = self._world.swarm.skew_ms
        self.offset_ms = self._world.rng.randint(-skew, skew)

    def jump(self) -> None:
        """Be off by another amount from now on; in some configurations by more than is accepted."""
        self.set()
        if self._world.swarm.wild_clocks and self._world.rng.random() < 0.3:
            self.offset_ms = self._world.rng.choice((-5000, -700, 700, 1500, 4000))

    def now_ms(self) -> int:
        return START_MS + int(self._world.now * 1000) + self.offset_ms

    def monotonic(self) -> float:
        return self._world.now
