"""The runners: the same flows on threads and on an event loop, and ports that misbehave."""

from __future__ import annotations

import asyncio
import random
import threading
import time
from collections.abc import Callable
from typing import get_args

import numpy as np
import pytest
from fake_shard import FakeShard
from router_workbench import vectors_of

from vecraft_data_model.convert import put_of_columns
from vecraft_data_model.errors import OverloadedError, ShardUnavailableError, TimeoutException, VecraftError
from vecraft_data_model.hlc import timestamp
from vecraft_data_model.messages import (
    Batch,
    BatchReply,
    Count,
    CreateCollection,
    Put,
    Refused,
    ServiceRequest,
    Status,
    WriteRequest,
)
from vecraft_data_model.placement import ClusterMap, initial_map
from vecraft_data_model.schema import CollectionSchema
from vecraft_data_model.search_options import SearchOptions
from vecraft_router import AsyncRunner, Flow, ReadOptions, RefreshMap, Router, RouterConfig, Sleep, SyncRunner, outbox
from vecraft_router.effects import Ask, Spawn
from vecraft_router.outbox import Outbox
from vecraft_router.results import Found


class RealClock:
    def now_ms(self) -> int:
        return int(time.time() * 1000)

    def monotonic(self) -> float:
        return time.monotonic()


class Port:
    """A fake shard behind a port, blocking or awaitable; counts its calls."""

    def __init__(self, number: int) -> None:
        self.shard = FakeShard(number)
        self.batches: list[Batch] = []
        self.lock = threading.Lock()
        self.before: Callable[[Batch], object] = lambda batch: None
        self.gate: asyncio.Event | None = None

    def execute(self, batch: Batch, timeout: float) -> BatchReply:
        self.before(batch)
        with self.lock:
            self.batches.append(batch)
            return self.shard.execute(batch, int(time.time() * 1000))


class AsyncPort(Port):
    async def execute(self, batch: Batch, timeout: float) -> BatchReply:  # type: ignore[override]
        self.batches.append(batch)
        self.before(batch)
        if self.gate is not None:
            await asyncio.wait_for(self.gate.wait(), timeout)
        await asyncio.sleep(0)
        return self.shard.execute(batch, int(time.time() * 1000))


def new_router(shards: int, **config: float) -> Router:
    return Router(initial_map(shards), RealClock(), random.Random(7), RouterConfig(**config))  # type: ignore[arg-type]


def put(*ids: str) -> Put:
    return put_of_columns("things", list(ids), vectors_of(ids), [{"id": i} for i in ids])


async def until(holds: Callable[[], bool]) -> None:
    """Let the loop go on until something holds."""
    give_up_at = time.monotonic() + 60
    while not holds():
        assert time.monotonic() < give_up_at, "it never came to hold"
        await asyncio.sleep(0)


def create() -> CreateCollection:
    return CreateCollection(CollectionSchema(name="things", dim=4), "")


IDS = [f"r{n}" for n in range(50)]


# --------------------------------------------------------------------------------------------------- on threads


def test_flows_run_on_threads() -> None:
    router = new_router(3)
    ports = {number: Port(number) for number in range(3)}
    runner = SyncRunner(router, ports)
    runner.run(router.commit([create()]))
    runner.run(router.commit([put(*IDS)]))
    assert runner.run(router.count("things", options=ReadOptions("strong"))).count == 50
    found = runner.run(router.search("things", vectors_of(IDS[:2]), SearchOptions(k=3)))
    assert [hits.ids[0] for hits in found.hits] == IDS[:2]
    runner.close()
    assert not any(port.shard.held for port in ports.values())  # what was spawned was finished first


def test_many_threads_share_a_runner() -> None:
    router = new_router(2)
    runner = SyncRunner(router, {number: Port(number) for number in range(2)})
    runner.run(router.commit([create()]))
    failures: list[BaseException] = []

    def work(worker: int) -> None:
        try:
            for n in range(10):
                commit = runner.run(router.commit([put(f"w{worker}-{n}", f"v{worker}-{n}", "shared")]))
                seen = runner.run(router.get("things", [f"w{worker}-{n}"]))
                assert seen.rows.begin_ts == [commit.result.commit_ts]
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=work, args=(worker,)) for worker in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures
    assert runner.run(router.count("things")).count == 121
    runner.close()


def test_several_shards_are_asked_at_once() -> None:
    router = new_router(3)
    ports = {number: Port(number) for number in range(3)}
    meeting = threading.Barrier(3, timeout=60)
    runner = SyncRunner(router, ports)
    runner.run(router.commit([create()]))
    for port in ports.values():
        port.before = lambda batch: meeting.wait() if isinstance(batch.requests[0], Count) else None
    assert runner.run(router.count("things")).count == 0
    runner.close()


def test_batches_carry_clock_and_epoch_and_move_the_clock() -> None:
    router = new_router(1)
    port = Port(0)
    runner = SyncRunner(router, {0: port})
    ahead = timestamp(int(time.time() * 1000) + 300)
    port.shard.clock.observe(ahead, int(time.time() * 1000))
    runner.run(router.status())
    assert router.state.hlc.last == ahead
    runner.run(router.status())
    assert port.batches[-1].clock == ahead and port.batches[-1].map_epoch == 1
    port.shard.clock.observe(timestamp(2**42), 2**42)  # a clock that has run away does not drag ours along
    runner.run(router.status())
    assert router.state.hlc.last == ahead
    runner.close()


@pytest.mark.parametrize("shards", [1, 3])
def test_failures_of_ports_are_values_to_a_flow(shards: int) -> None:
    router = new_router(shards)
    ports = {number: Port(number) for number in range(shards)}
    runner = SyncRunner(router, ports)
    runner.run(router.commit([create()]))

    def fail(batch: Batch) -> None:
        raise ShardUnavailableError("down")

    ports[0].before = fail
    status = runner.run(router.status())
    assert isinstance(status[0], Refused) and isinstance(status[0].error, ShardUnavailableError)
    status = runner.run(router.status(deadline=time.monotonic() - 1))
    assert all(isinstance(reply, Refused) and isinstance(reply.error, TimeoutException) for reply in status.values())
    del ports[0]
    with pytest.raises(ShardUnavailableError, match="no connection to shard 0"):
        runner.run(router.count("things", options=ReadOptions(deadline=time.monotonic() + 1.0)))
    runner.close()


def test_a_port_that_overruns_does_not_hold_the_flow() -> None:
    router = new_router(2)
    ports = {number: Port(number) for number in range(2)}
    free = threading.Event()
    ports[0].before = lambda batch: free.wait()
    runner = SyncRunner(router, ports)
    status = runner.run(router.status(deadline=time.monotonic() + 0.05))  # while the port overruns
    assert isinstance(status[0], Refused)
    free.set()
    runner.close()


def test_a_fault_in_a_port_is_raised() -> None:
    router = new_router(1)
    port = Port(0)

    def fail(batch: Batch) -> None:
        raise ZeroDivisionError("a bug")

    port.before = fail
    runner = SyncRunner(router, {0: port})
    with pytest.raises(ZeroDivisionError):
        runner.run(router.status())
    runner.close()


def test_after_close_nothing_is_spawned() -> None:
    router = new_router(2)
    runner = SyncRunner(router, {number: Port(number) for number in range(2)})
    runner.close()
    ran = []

    def background() -> Flow[None]:
        ran.append(1)
        yield Sleep(0)

    def flow() -> Flow[None]:
        yield Spawn(background())
        replies = yield Ask({0: Status(), 1: Status()}, time.monotonic() + 1)
        assert isinstance(replies[0], Refused)

    runner.run(flow())
    assert not ran


def test_maps_are_refreshed_through_the_runner() -> None:
    router = new_router(2)
    newer = ClusterMap(2, initial_map(2).slots, 2)
    runner = SyncRunner(router, {number: Port(number) for number in range(2)}, refresh=lambda: newer)

    def flow() -> Flow[ClusterMap | None]:
        newest: ClusterMap | None = yield RefreshMap()
        return newest

    assert runner.run(flow()) is newer
    runner.close()


# ------------------------------------------------------------------------------------------------ on a loop


async def test_flows_run_on_a_loop() -> None:
    router = new_router(3)
    ports = {number: AsyncPort(number) for number in range(3)}
    runner = AsyncRunner(router, ports)
    await runner.run(router.commit([create()]))
    await asyncio.gather(*(runner.run(router.commit([put(*IDS[n::5])])) for n in range(5)))
    assert (await runner.run(router.count("things", options=ReadOptions("strong")))).count == 50
    nearest = SearchOptions(k=1)
    found = await asyncio.gather(*(runner.run(router.search("things", vectors_of([i]), nearest)) for i in IDS))
    assert [answer.hits[0].ids[0] for answer in found] == IDS
    await runner.close()
    assert not any(port.shard.held for port in ports.values())


async def test_what_queues_while_a_call_is_under_way_leaves_together() -> None:
    router = new_router(1, reads_in_flight=1)
    port = AsyncPort(0)
    runner = AsyncRunner(router, {0: port})
    await runner.run(router.commit([create()]))
    port.gate = asyncio.Event()
    port.batches.clear()
    query = np.zeros((1, 4), np.float32)

    def search() -> asyncio.Task[Found]:
        return asyncio.create_task(runner.run(router.search("things", query, SearchOptions(k=1))))

    queries = [search()]
    await until(lambda: bool(port.batches))
    queries += [search() for _ in range(8)]
    await until(lambda: runner.queued()[0] == 8)
    port.gate.set()
    await asyncio.gather(*queries)
    assert [len(batch.requests) for batch in port.batches] == [1, 8]
    await runner.close()


async def test_reads_do_not_wait_behind_writes_nor_anything_behind_checkpoints() -> None:
    router = new_router(1, reads_in_flight=1, writes_in_flight=1)
    port = AsyncPort(0)
    runner = AsyncRunner(router, {0: port})
    await runner.run(router.commit([create()]))
    gate = port.gate = asyncio.Event()
    slow = [asyncio.create_task(runner.run(router.checkpoint())) for _ in range(3)]
    slow += [asyncio.create_task(runner.run(router.commit([put("a")]))) for _ in range(3)]  # type: ignore[arg-type]
    await until(lambda: len(port.batches) >= 5)
    port.gate = None
    assert (await runner.run(router.count("things"))).count == 0
    await runner.run(router.status())
    gate.set()
    await asyncio.gather(*slow)
    await runner.close()


async def test_large_requests_do_not_share_a_call() -> None:
    router = new_router(1, max_batch_bytes=100, reads_in_flight=1)
    port = AsyncPort(0)
    runner = AsyncRunner(router, {0: port})
    await runner.run(router.commit([create()]))
    port.batches.clear()
    queries = np.zeros((4, 4), np.float32)
    await asyncio.gather(*(runner.run(router.search("things", queries, SearchOptions(k=1))) for _ in range(5)))
    assert [len(batch.requests) for batch in port.batches] == [1] * 5
    await runner.close()


async def test_a_full_lane_refuses() -> None:
    router = new_router(1, max_queued=2, reads_in_flight=1)
    port = AsyncPort(0)
    port.gate = asyncio.Event()
    runner = AsyncRunner(router, {0: port})
    tasks = [asyncio.create_task(runner.run(router.count("things")))]
    await until(lambda: bool(port.batches))
    tasks += [asyncio.create_task(runner.run(router.count("things"))) for _ in range(4)]
    await until(lambda: sum(task.done() for task in tasks) >= 2)
    await asyncio.sleep(0.01)
    refused = [task for task in tasks if task.done()]
    assert len(refused) == 2
    for task in refused:
        with pytest.raises(OverloadedError, match="2 requests already wait"):
            task.result()
    waiting = [task for task in tasks if not task.done()]
    for task in waiting:
        task.cancel()
    await asyncio.gather(*waiting, return_exceptions=True)
    port.gate.set()
    port.shard.schemas["things"] = (CollectionSchema(name="things", dim=4), "x", 1)
    assert (await runner.run(router.count("things"))).count == 0  # the cancelled ones have made room
    await runner.close()


async def test_a_cancelled_request_that_was_not_sent_is_not_sent() -> None:
    router = new_router(1, writes_in_flight=1)
    port = AsyncPort(0)
    runner = AsyncRunner(router, {0: port})
    await runner.run(router.commit([create()]))
    port.gate = asyncio.Event()
    port.batches.clear()
    first = asyncio.create_task(runner.run(router.commit([put("a")])))
    await until(lambda: bool(port.batches))
    second = asyncio.create_task(runner.run(router.commit([put("b")])))
    await until(lambda: runner.queued()[0] == 1)
    second.cancel()
    port.gate.set()
    await first
    await asyncio.sleep(0.01)
    assert (await runner.run(router.get("things", ["a", "b"]))).rows.ids == ["a"]
    assert second.cancelled()
    await runner.close()


async def test_deadlines_hold_whatever_the_port_does() -> None:
    router = new_router(1, reads_in_flight=1, max_call_s=3600)
    port = AsyncPort(0)
    port.gate = asyncio.Event()
    runner = AsyncRunner(router, {0: port})
    late = time.monotonic() + 3600  # whoever waits for the one that hangs does not come back
    long = asyncio.create_task(runner.run(router.count("things", options=ReadOptions(deadline=late))))
    await until(lambda: bool(port.batches))
    for _ in range(3):  # these wait behind the one that hangs
        with pytest.raises(TimeoutException):
            await runner.run(router.count("things", options=ReadOptions(deadline=time.monotonic() + 0.03)))
    long.cancel()
    await runner.close()


async def test_a_port_that_hangs_does_not_block_its_lane_for_ever() -> None:
    router = new_router(1, reads_in_flight=1, max_call_s=0.05)
    port = AsyncPort(0)
    port.gate = asyncio.Event()
    port.shard.schemas["things"] = (CollectionSchema(name="things", dim=4), "x", 1)
    runner = AsyncRunner(router, {0: port})
    late = time.monotonic() + 600
    task = asyncio.create_task(runner.run(router.count("things", options=ReadOptions(deadline=late))))
    await until(lambda: len(port.batches) >= 2)  # tried again on a call of its own
    port.gate.set()
    assert (await task).count == 0
    await runner.close()


class Faulty:
    """A port with one fault."""

    def __init__(self, fault: Callable[[Batch], BatchReply]) -> None:
        self.fault = fault

    async def execute(self, batch: Batch, timeout: float) -> BatchReply:
        return self.fault(batch)


def _raise(error: Exception) -> Callable[[Batch], BatchReply]:
    def fault(batch: Batch) -> BatchReply:
        raise error

    return fault


@pytest.mark.parametrize(
    ("fault", "expected"),
    [
        (_raise(ShardUnavailableError("down")), ShardUnavailableError),
        (_raise(VecraftError("odd")), VecraftError),
        (lambda batch: BatchReply([]), ShardUnavailableError),
    ],
)
async def test_everybody_hears_of_a_failed_call(
    fault: Callable[[Batch], BatchReply], expected: type[VecraftError]
) -> None:
    router = new_router(1)
    box = Outbox(0, Faulty(fault), router.state)
    futures = [box.submit(Status(), time.monotonic() + 5) for _ in range(3)]
    for future in futures:
        assert isinstance(future, asyncio.Future)
        reply = await future
        assert isinstance(reply, Refused) and type(reply.error) is expected
    await box.close()


async def test_a_bug_in_a_port_is_raised_where_it_is_waited_for() -> None:
    router = new_router(1)
    runner = AsyncRunner(router, {0: Faulty(_raise(ZeroDivisionError("a bug")))})
    for _ in range(2):  # the lane goes on
        with pytest.raises(ZeroDivisionError):
            await runner.run(router.status())
    await runner.close()


async def test_close_refuses_what_waits() -> None:
    router = new_router(1, reads_in_flight=1)
    port = AsyncPort(0)
    port.gate = asyncio.Event()
    runner = AsyncRunner(router, {0: port})
    tasks = [
        asyncio.create_task(runner.run(router.count("things", options=ReadOptions(deadline=time.monotonic() + 3.0))))
        for _ in range(3)
    ]
    await asyncio.sleep(0.01)
    await runner.close()
    for task in tasks:
        with pytest.raises(ShardUnavailableError):
            await task
    with pytest.raises(ShardUnavailableError, match="closed"):
        await runner.run(router.count("things", options=ReadOptions(deadline=time.monotonic() + 1.0)))


async def test_nothing_is_left_on_the_loop() -> None:
    router = new_router(2)
    runner = AsyncRunner(router, {number: AsyncPort(number) for number in range(2)})
    await runner.run(router.commit([create()]))
    await runner.run(router.commit([put(*IDS)]))
    await runner.close()
    assert asyncio.all_tasks() == {asyncio.current_task()}


def test_requests_go_to_their_lanes() -> None:
    """Every message that a shard takes is known to the outbox as a read, a write or a service request."""
    assert set(get_args(WriteRequest)) == outbox._WRITES
    assert set(get_args(ServiceRequest)) == outbox._SERVICE


def test_a_bug_in_a_background_flow_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    router = new_router(1)

    def background() -> Flow[None]:
        yield Sleep(0)
        raise ZeroDivisionError("a bug")

    def flow() -> Flow[None]:
        yield Spawn(background())

    runner = SyncRunner(router, {})
    runner.run(flow())
    runner.close()

    async def on_a_loop() -> None:
        runner = AsyncRunner(router, {})
        await runner.run(flow())
        await runner.close()

    asyncio.run(on_a_loop())
    assert [record.exc_info is not None for record in caplog.records] == [True, True]
