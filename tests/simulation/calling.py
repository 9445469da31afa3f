"""How a simulated client calls: through any router, over the network, waiting for so long and no longer."""

from __future__ import annotations

from collections.abc import Callable, Generator
from functools import partial
from typing import Any

from tests.simulation.history import Operation
from tests.simulation.routers import SimulatedRouter
from tests.simulation.world import SimulatedClock, World
from vecraft_data_model.errors import VecraftError
from vecraft_router import Flow, Router

Call = tuple[Operation, Callable[[Router], Flow[Any]]]
Script = Generator[Call | list[Call] | float, Any, None]
"""What a client does, as straight code: yields calls and is sent ``(result, error)``, or yields seconds to wait.

For a list of calls, which are made at once, it is sent a list of such pairs.
"""


class NoAnswer(VecraftError):
    """The router died, or its answer got lost."""


class Caller:
    """One client: the part that calls. What it does stands in the methods ``_do_…``."""

    def __init__(self, world: World, number: int, routers: list[SimulatedRouter]) -> None:
        self._world, self._number, self._routers = world, number, routers
        self._clock = SimulatedClock(world)
        self._token = 0
        self._past: list[int] = []
        self._script = self._work()
        self._step(None)

    # --------------------------------------------------------------------------------------------- carrying

    def _step(self, value: Any) -> None:
        try:
            wanted = self._script.send(value)
        except StopIteration:
            return
        if isinstance(wanted, float):
            self._world.after(wanted, lambda: self._step(None))
        elif isinstance(wanted, list):
            self._call_all(wanted)
        else:
            self._call(*wanted, self._step)

    def _call_all(self, calls: list[Call]) -> None:
        answers: dict[int, Any] = {}

        def take(place: int, answer: Any) -> None:
            answers[place] = answer
            if len(answers) == len(calls):
                self._step([answers[i] for i in range(len(calls))])

        for place, (operation, flow) in enumerate(calls):
            self._call(operation, flow, partial(take, place))

    def _call(self, operation: Operation, flow: Callable[[Router], Flow[Any]], answer: Callable[[Any], None]) -> None:
        world, router = self._world, self._world.rng.choice(self._routers)
        name, over, begun = f"client {self._number}", False, False

        def hear(result: Any, error: VecraftError | None) -> None:
            nonlocal over
            if not over:
                over = True
                answer((result, error))

        def run() -> None:
            nonlocal begun
            if router.up and not begun:
                begun = True
                router.run(
                    operation,
                    flow(router.router),
                    lambda result, error: world.send(router.name, name, lambda: hear(result, error)),
                )

        world.after(world.swarm.patience, lambda: hear(None, NoAnswer("no answer")))
        world.send(name, router.name, run)

    def _work(self) -> Script:
        world, rng = self._world, self._world.rng
        weights = world.swarm.weights
        kinds = [kind for kind, weight in weights.items() if weight]
        yield rng.random() * 0.05
        while not world.calm:
            kind = rng.choices(kinds, [weights[each] for each in kinds])[0]
            yield from getattr(self, f"_do_{kind}")()
            yield rng.random() * 2 * world.swarm.think

    def _operation(self, kind: str) -> Operation:
        history = self._world.history
        operation = Operation(len(history.operations) + 1, self._number, kind, self._world.now, self._token)
        history.operations.append(operation)
        return operation
