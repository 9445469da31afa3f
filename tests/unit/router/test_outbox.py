"""What leaves together when much is asked in one turn of the event loop."""

from __future__ import annotations

import asyncio
import random
from typing import Any

import pytest

from vecraft_data_model.messages import Batch, BatchReply, Count, CountReply
from vecraft_data_model.placement import initial_map
from vecraft_router import Router, RouterConfig
from vecraft_router.outbox import Outbox


class _Clock:
    def now_ms(self) -> int:
        return 1_000

    def monotonic(self) -> float:
        return asyncio.get_running_loop().time()


class _Port:
    """Answers when the test says so."""

    def __init__(self) -> None:
        self.sizes: list[int] = []
        self.gate = asyncio.Event()

    async def execute(self, batch: Batch, timeout: float) -> BatchReply:
        self.sizes.append(len(batch.requests))
        await self.gate.wait()
        return BatchReply([CountReply(1, 7) for _ in batch.requests], 1)


def _outbox(port: _Port, **config: int) -> Outbox:
    router = Router(initial_map(1), _Clock(), random.Random(1), RouterConfig(**config))
    return Outbox(0, port, router.state)


def _asked(outbox: Outbox, times: int) -> list[asyncio.Future[Any]]:
    request = Count(snapshot=1, collection="things")
    answers = [outbox.submit(request, asyncio.get_running_loop().time() + 5.0) for _ in range(times)]
    return [answer for answer in answers if isinstance(answer, asyncio.Future)]


async def _counts(answers: list[asyncio.Future[Any]]) -> list[object]:
    return [getattr(answer, "count", answer) for answer in await asyncio.gather(*answers)]


@pytest.mark.parametrize(
    ("in_flight", "most", "at_once", "in_all"),
    [(1, 256, [9], [9]), (2, 256, [9], [9]), (1, 4, [4], [4, 4, 1]), (2, 4, [4, 4], [4, 4, 1])],
)
async def test_what_is_asked_in_one_turn_leaves_together_in_as_many_calls_as_it_needs_and_may_have(
    in_flight: int, most: int, at_once: list[int], in_all: list[int]
) -> None:
    port = _Port()
    outbox = _outbox(port, reads_in_flight=in_flight, max_batch_requests=most)
    answers = _asked(outbox, 9)
    assert len(answers) == outbox.queued == 9
    for _ in range(10):
        await asyncio.sleep(0)
    assert port.sizes == at_once
    assert outbox.queued == 9 - sum(at_once)
    port.gate.set()
    assert await _counts(answers) == [7] * 9
    assert port.sizes == in_all
    await outbox.close()


async def test_a_call_that_was_cancelled_before_it_began_does_not_stop_its_lane() -> None:
    port = _Port()
    outbox = _outbox(port)
    port.gate.set()
    answers = _asked(outbox, 1)
    for task in asyncio.all_tasks() - {asyncio.current_task()}:  # as when a loop is being shut down
        task.cancel()
    assert await _counts(answers) == [7]
    assert await _counts(_asked(outbox, 2)) == [7, 7]
    await outbox.close()
