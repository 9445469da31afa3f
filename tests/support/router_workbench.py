"""A router over fake shards on one thread, in a time of its own, with faults on demand."""

from __future__ import annotations

import random
import zlib
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import numpy as np
from fake_shard import FakeShard

from vecraft_data_model.convert import put_of_columns
from vecraft_data_model.errors import ShardUnavailableError, TimeoutException, VecraftError
from vecraft_data_model.messages import Batch, BatchReply, CreateCollection, Put, Refused, Request, Response
from vecraft_data_model.placement import ClusterMap, initial_map
from vecraft_data_model.schema import CollectionSchema
from vecraft_router import Ask, Flow, RefreshMap, Router, RouterConfig, Sleep, Spawn, Tell

T = TypeVar("T")
START_MS = 1_800_000_000_000
DIM = 4
LOSE_REQUEST = "the request is lost"
LOSE_REPLY = "the reply is lost"
Fault = Callable[[int, Request], str | VecraftError | None]


class ManualClock:
    """Time that passes when it is told to."""

    def __init__(self) -> None:
        self.now = 0.0

    def now_ms(self) -> int:
        return START_MS + int(self.now * 1000)

    def monotonic(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds


class Workbench:
    """Shards, a router, and a runner that does one thing after another.

    Attributes:
        fault: Asked before each request is delivered; what it returns happens to it.
        asked: Every request that a flow sent, with its shard.
        spawned: Background flows that were not run yet.
    """

    def __init__(self, shards: int = 3, seed: int = 1, **config: Any) -> None:
        self.clock = ManualClock()
        self.shards = [FakeShard(number) for number in range(shards)]
        self.router = Router(initial_map(shards), self.clock, random.Random(seed), RouterConfig(**config))
        self.newest_map: ClusterMap | None = None
        self.fault: Fault = lambda shard, request: None
        self.asked: list[tuple[int, Request]] = []
        self.spawned: list[Flow[Any]] = []
        self.background = True

    # ---------------------------------------------------------------------------------------------- running

    def run(self, flow: Flow[T]) -> T:
        """Run a flow to its end, then what it spawned (if ``background``)."""
        try:
            result = self._drive(flow)
        finally:
            if self.background:
                self.drain()
        return result

    def drain(self) -> None:
        """Run the background flows."""
        while self.spawned:
            self._drive(self.spawned.pop(0))

    def _drive(self, flow: Flow[T]) -> T:
        value: Any = None
        while True:
            try:
                effect = flow.send(value)
            except StopIteration as stop:
                result: T = stop.value
                return result
            value = None
            if isinstance(effect, Ask):
                value = {shard: self._deliver(shard, r, effect.deadline) for shard, r in effect.requests.items()}
            elif isinstance(effect, Tell):
                for shard, request in effect.requests.items():
                    self._deliver(shard, request, self.clock.now + 1)
            elif isinstance(effect, Spawn):
                self.spawned.append(effect.flow)
            elif isinstance(effect, Sleep):
                self.clock.sleep(effect.seconds)
            elif isinstance(effect, RefreshMap):
                value = self.newest_map

    def _deliver(self, shard: int, request: Request, deadline: float) -> Response:
        if self.clock.now >= deadline:
            return Refused(TimeoutException("out of time"))
        self.asked.append((shard, request))
        fault = self.fault(shard, request)
        if isinstance(fault, VecraftError):
            return Refused(fault)
        if fault == LOSE_REQUEST:
            return Refused(ShardUnavailableError(f"shard {shard} is down"))
        reply = self.execute(shard, request)
        if fault == LOSE_REPLY:
            return Refused(ShardUnavailableError(f"shard {shard} is down"))
        self.router.state.overhear(reply.clock)
        return reply.responses[0]

    def execute(self, shard: int, request: Request) -> BatchReply:
        """Carry out one request at a shard, past the router and all faults."""
        state = self.router.state
        return self.shards[shard].execute(
            Batch([request], state.hlc.last, state.cluster_map.epoch), self.clock.now_ms()
        )

    # ---------------------------------------------------------------------------------------------- contents

    def create(self, name: str = "things", **schema: Any) -> CollectionSchema:
        """Create a collection."""
        made = CollectionSchema(name=name, **{"dim": DIM, **schema})
        self.run(self.router.commit([CreateCollection(made, "")]))
        return made

    def put(self, *ids: str, collection: str = "things", value: int = 0, expect: Any = None) -> Put:
        """Return a put of records with vectors made from their ids, and ``{"value": value}`` as metadata."""
        return put_of_columns(
            collection, list(ids), vectors_of(ids), [{"value": value, "id": i} for i in ids], None, expect
        )

    def ids_on(self, shard: int, count: int = 1, prefix: str = "r") -> list[str]:
        """Return record ids that live on that shard."""
        numbers = (f"{prefix}{number}" for number in range(10_000))
        mine = (record_id for record_id in numbers if self.router.state.cluster_map.shard_of(record_id) == shard)
        return [next(mine) for _ in range(count)]

    def one_on_each(self, prefix: str = "r") -> list[str]:
        """Return one record id per shard."""
        return [self.ids_on(shard.number, prefix=prefix)[0] for shard in self.shards]

    def values(self, *ids: str, collection: str = "things") -> list[int | None]:
        """Return the ``value`` of records as the shards have them now, None for the missing; no router involved."""
        from vecraft_data_model.payload import decode_payload

        found: list[int | None] = []
        for record_id in ids:
            shard = self.shards[self.router.state.cluster_map.shard_of(record_id)]
            version = shard._current((collection, record_id))
            metadata = None if version is None else decode_payload(version.payload).metadata
            found.append(None if metadata is None else metadata["value"])
        return found

    def sent(self, kind: type) -> list[int]:
        """Return the shards that requests of a kind were sent to, in order."""
        return [shard for shard, request in self.asked if isinstance(request, kind)]


def vectors_of(ids: Sequence[str]) -> np.ndarray[Any, np.dtype[np.float32]]:
    """Return a vector per id, always the same for the same id: (n, DIM) float32."""
    return np.array([np.random.default_rng(zlib.crc32(i.encode())).normal(size=DIM) for i in ids], dtype=np.float32)


def fail_times(times: int, what: str | VecraftError, kind: type | None = None, shard: int | None = None) -> Fault:
    """Return a fault that happens to the first ``times`` requests of that kind to that shard."""
    left = [times]

    def fault(number: int, request: Request) -> str | VecraftError | None:
        if left[0] and (kind is None or isinstance(request, kind)) and (shard is None or number == shard):
            left[0] -= 1
            return what
        return None

    return fault
