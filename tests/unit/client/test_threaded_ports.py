"""When a call to a shard of this process leaves the event loop, and when it stays."""

from __future__ import annotations

import asyncio
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from vecraft_data_model.errors import ShardUnavailableError
from vecraft_data_model.messages import Batch, BatchReply, Count, CountReply, Get, Search
from vecraft_data_model.search_options import SearchOptions
from vecraft_db.threaded_ports import QUICK_S, RECENT_CALLS, ThreadedPort


class Shard:
    """Notes which thread called it."""

    def __init__(self) -> None:
        self.seconds = 0.0
        self.threads: list[int] = []

    def execute(self, batch: Batch, timeout: float) -> BatchReply:
        self.threads.append(threading.get_ident())
        time.sleep(self.seconds)
        return BatchReply([CountReply(1, 0)] * len(batch.requests), 7)


def quick(port: ThreadedPort) -> None:
    """Make all recent calls have been quick, whatever this machine is busy with."""
    port._recent_s.extend([QUICK_S / 10] * RECENT_CALLS)


ONE = Batch([Search(collection="c", queries=np.zeros((1, 2), np.float32), options=SearchOptions(k=1))])
OTHERS = [
    Batch([Get(collection="c", ids=["a"])] * 2),
    Batch([Get(collection="c", ids=["a", "b"])]),
    Batch([Search(collection="c", queries=np.zeros((2, 2), np.float32), options=SearchOptions(k=1))]),
    Batch([Count(collection="c")]),
]


async def test_lone_reads_of_a_quick_shard_stay_on_the_loop() -> None:
    shard, here = Shard(), threading.get_ident()
    with ThreadPoolExecutor(2) as threads:
        port = ThreadedPort(lambda: shard, threads)
        for _ in range(RECENT_CALLS):
            await port.execute(ONE, 1.0)
        assert here not in shard.threads  # nothing was known of it
        quick(port)
        await port.execute(ONE, 1.0)
        assert shard.threads[-1] == here
        quick(port)
        for other in OTHERS:
            await port.execute(other, 1.0)
            assert shard.threads[-1] != here
        shard.seconds = 2 * QUICK_S
        await port.execute(ONE, 1.0)
        for _ in range(RECENT_CALLS):  # the slow one was the last on the loop
            await port.execute(ONE, 1.0)
            assert shard.threads[-1] != here


async def test_reads_beside_each_other_go_to_threads() -> None:
    shard, here = Shard(), threading.get_ident()
    with ThreadPoolExecutor(4) as threads:
        port = ThreadedPort(lambda: shard, threads)
        quick(port)
        shard.seconds = 0.01
        await asyncio.gather(port.execute(OTHERS[3], 1.0), *[port.execute(ONE, 1.0) for _ in range(3)])
        assert here not in shard.threads


async def test_a_closed_database_says_so() -> None:
    threads = ThreadPoolExecutor(1)
    port = ThreadedPort(Shard, threads)
    threads.shutdown()
    with pytest.raises(ShardUnavailableError, match="closed"):
        await port.execute(ONE, 1.0)

    def gone() -> Shard:
        raise KeyError(3)

    with pytest.raises(ShardUnavailableError, match="not there"):
        await ThreadedPort(gone, threads).execute(ONE, 1.0)
