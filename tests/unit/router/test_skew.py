"""A router whose own clock is off refuses to write, and only then."""

from __future__ import annotations

import asyncio
import random
from typing import Any

import pytest
from fake_shard import FakeShard
from router_workbench import START_MS, Workbench

from vecraft_data_model.errors import ClockSkewError
from vecraft_data_model.messages import Batch, BatchReply, CommitOne, Prepare
from vecraft_data_model.placement import initial_map
from vecraft_router import AsyncRunner, Router, RouterConfig
from vecraft_router.skew import SkewWatch


def heard(*offsets: int) -> SkewWatch:
    """A node that heard from shards whose clocks show that much less than its own; each answer took 10 ms."""
    watch = SkewWatch(500)
    for shard, offset in enumerate(offsets):
        watch.note(shard, 1000, 1005 - offset, 1010)
    return watch


@pytest.mark.parametrize(
    ("offsets", "off", "off_ms"),
    [
        ((), False, 0),
        ((0,), False, 0),
        ((5,), False, 0),  # the answer may have taken that long
        ((-5,), False, 0),
        ((405,), False, 400),
        ((406,), True, 401),
        ((-405,), False, -400),
        ((-406,), True, -401),
        ((10_000, 0), False, 0),  # that shard's clock is off, or this one's: the other says this one's is right
        ((10_000, 10_000), True, 9995),
        ((10_000, 700), True, 695),
        ((-10_000, -700), True, -695),
        ((10_000, 10_000, 0), True, 9995),
        ((10_000, 0, 0), False, 0),
        ((10_000, -10_000), False, 0),
        ((10_000, 0, -10_000), False, 0),
    ],
)
def test_the_majority_of_shards_is_believed(offsets: tuple[int, ...], off: bool, off_ms: int) -> None:
    watch = heard(*offsets)
    assert (watch.is_off, watch.off_ms) == (off, off_ms)


def test_the_last_answer_counts() -> None:
    watch = heard(1000)
    assert watch.is_off
    watch.note(0, 2000, 2001, 2002)
    assert not watch.is_off


def test_a_slow_answer_proves_nothing() -> None:
    watch = SkewWatch(500)
    watch.note(0, 1000, 1001, 60_000)
    watch.note(1, 1000, 59_999, 60_000)
    assert watch.off_ms == 0


class Clock:
    """This node's clock, which may be off."""

    def __init__(self) -> None:
        self.off_ms = 0

    def now_ms(self) -> int:
        return START_MS + self.off_ms

    def monotonic(self) -> float:
        return asyncio.get_running_loop().time()


class Port:
    """A shard with a clock of its own, which is right."""

    def __init__(self, number: int) -> None:
        self.shard = FakeShard(number)
        self.asked: list[Any] = []

    async def execute(self, batch: Batch, timeout: float) -> BatchReply:
        self.asked += batch.requests
        reply = self.shard.execute(batch, START_MS)
        return BatchReply(reply.responses, reply.clock, START_MS, batch.sent_ms)


@pytest.mark.parametrize("off_ms", [450, -450])
async def test_a_router_whose_clock_is_off_refuses_to_write_until_it_is_set(off_ms: int) -> None:
    clock, ports = Clock(), {shard: Port(shard) for shard in range(3)}
    router = Router(initial_map(3), clock, random.Random(2), RouterConfig())
    runner = AsyncRunner(router, ports)
    bench = Workbench()
    for port, shard in zip(ports.values(), bench.shards, strict=True):
        port.shard = shard
    bench.create()
    put = bench.put(*bench.one_on_each())
    await runner.run(router.commit([put]))
    clock.off_ms = off_ms
    await runner.run(router.status())
    for port in ports.values():
        port.asked.clear()
    with pytest.raises(ClockSkewError, match=r"450 ms (ahead|behind).*set this node's clock") as caught:
        await runner.run(router.commit([put]))
    assert caught.value.details == {"off_ms": off_ms}
    assert not any(isinstance(request, CommitOne | Prepare) for port in ports.values() for request in port.asked)
    assert (await runner.run(router.count("things"))).count == 3
    clock.off_ms = 0
    assert (await runner.run(router.commit([put]))).result.count == 3
    await runner.close()


async def test_a_clock_that_is_off_by_less_writes() -> None:
    clock, ports = Clock(), {shard: Port(shard) for shard in range(3)}
    router = Router(initial_map(3), clock, random.Random(2), RouterConfig())
    runner = AsyncRunner(router, ports)
    bench = Workbench()
    for port, shard in zip(ports.values(), bench.shards, strict=True):
        port.shard = shard
    bench.create()
    clock.off_ms = 390
    await runner.run(router.status())
    assert (await runner.run(router.commit([bench.put("a")]))).result.count == 1
    await runner.close()
