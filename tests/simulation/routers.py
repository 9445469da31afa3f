"""Simulated routers: the real ``Router`` and its flows, with a runner in virtual time."""

from __future__ import annotations

import random
import traceback
from collections.abc import Callable
from functools import lru_cache, partial
from typing import Any

from tests.simulation.history import Operation
from tests.simulation.shards import SimulatedShard
from tests.simulation.world import SimulatedClock, World
from vecraft_data_model.errors import ShardUnavailableError, TimeoutException, VecraftError
from vecraft_data_model.messages import Batch, BatchReply, Refused, Request, Response
from vecraft_data_model.placement import initial_map
from vecraft_router import Ask, Effect, Flow, RefreshMap, Router, RouterConfig, Sleep, Spawn, Tell

cluster_map = lru_cache(initial_map)
Done = Callable[[Any, VecraftError | None], None]
NO_ANSWER_S = 0.3
"""After so long without an answer, the transport takes a shard for dead."""


class SimulatedRouter:
    """A router process. A crash forgets everything; clients then hear nothing more."""

    def __init__(self, world: World, number: int, shards: list[SimulatedShard]) -> None:
        self.world, self.name, self.shards = world, f"router {number}", shards
        self.clock = SimulatedClock(world)
        self.up = False
        self.life = 0
        self.start()

    def start(self) -> None:
        """Begin anew, knowing nothing."""
        if self.up:
            return
        self.up = True
        swarm = self.world.swarm
        config = RouterConfig(
            timeout_s=swarm.router_timeout,
            resolve_after_ms=swarm.resolve_after_ms,
            abort_reserve_s=swarm.router_timeout / 4,
            background_s=swarm.router_timeout,
        )
        rng = random.Random(self.world.rng.getrandbits(64))
        self.router = Router(cluster_map(swarm.shards), self.clock, rng, config)

    def crash(self) -> None:
        """Die now, and come back after a while."""
        self.up = False
        self.life += 1
        self.world.faults += 1
        self.world.note(f"{self.name} dies")
        self.world.after(self.world.rng.choice((0.001, 0.1)), self.start)

    def run(self, operation: Operation, flow: Flow[Any], done: Done) -> None:
        """Run a flow to its end."""
        Task(self, operation, flow, done).step(None)


class Task:
    """A flow on its way."""

    def __init__(self, owner: SimulatedRouter, operation: Operation, flow: Flow[Any], done: Done) -> None:
        self._world, self._owner, self._life = owner.world, owner, owner.life
        self._state = owner.router.state
        self._operation, self._flow, self._done = operation, flow, done

    def step(self, value: Any) -> None:
        """Go on with the result of the last effect."""
        if self._owner.life != self._life:
            return
        try:
            effect = self._flow.send(value)
        except StopIteration as stop:
            self._done(stop.value, None)
        except VecraftError as error:
            self._done(None, error)
        except Exception:
            self._world.history.problem(f"a flow failed: {traceback.format_exc()}")
            self._done(None, VecraftError("the flow failed"))
        else:
            self._perform(effect)

    def _perform(self, effect: Effect) -> None:
        match effect:
            case Ask():
                self._ask(effect)
            case Sleep(seconds=seconds):
                self._world.after(seconds, lambda: self.step(None))
            case Spawn(flow=flow):
                self._owner.run(self._operation, flow, lambda result, error: None)
                self._soon()
            case Tell(requests=requests):
                for shard, request in requests.items():
                    self._transmit(shard, request, lambda reply: None)
                self._soon()
            case RefreshMap():
                self._soon()

    def _soon(self) -> None:
        self._world.after(0.0, lambda: self.step(None))

    def _ask(self, effect: Ask) -> None:
        replies: dict[int, Response] = {}

        def take(shard: int, response: Response) -> None:
            if shard not in replies:
                replies[shard] = response
                if len(replies) == len(effect.requests):
                    self.step({shard: replies[shard] for shard in effect.requests})

        def hear(shard: int, reply: BatchReply | None) -> None:
            if reply is None:
                take(shard, Refused(ShardUnavailableError(f"shard {shard} is not there", shard=shard)))
            elif shard not in replies and self._owner.life == self._life:
                self._state.overhear(reply.clock)
                take(shard, reply.responses[0])

        for shard, request in effect.requests.items():
            self._transmit(shard, request, partial(hear, shard))
            remaining = max(0.0, effect.deadline - self._world.now)
            error: VecraftError = TimeoutException("out of time", shard=shard)
            if remaining > NO_ANSWER_S:
                remaining, error = NO_ANSWER_S, ShardUnavailableError(f"shard {shard} does not answer", shard=shard)
            self._world.after(remaining, partial(take, shard, Refused(error)))
        if not effect.requests:
            self._world.after(0.0, lambda: self.step({}))

    def _transmit(self, shard: int, request: Request, hear: Callable[[BatchReply | None], None]) -> None:
        world, peer, me = self._world, self._owner.shards[shard], self._owner.name
        world.history.sent(self._operation, shard, request)
        batch = Batch([request], self._state.hlc.last, self._state.cluster_map.epoch)

        def answer(reply: BatchReply | None) -> None:
            world.send(peer.name, me, lambda: hear(reply))

        world.send(me, peer.name, lambda: peer.receive(batch, answer))
