"""The write-ahead log alone, under power failures and crashes at any operation of its disk, many in a row.

What a whole cluster meets once in many thousand seeds happens here in every few: frames of a few sizes only, several of
which are kept and lost in any order, and another end before much was written behind them.
"""

from __future__ import annotations

import random
from pathlib import Path

from tests.simulation.disk import Crash, SimulatedDisk
from tests.simulation.miniature import in_miniature
from vecraft_data_model.errors import VecraftError
from vecraft_shard.wal import Wal

LIVES = 12
SIZES = (0, 5, 700)


class Log:
    """One log through several lives of its process."""

    def __init__(self, seed: int) -> None:
        self._rng = random.Random(f"log {seed}")
        self._disk = SimulatedDisk(Path(), self._rng, self._step)
        self._left = 0
        self._written: list[bytes] = []
        self._durable = 0
        self._sizes = self._rng.sample(SIZES, self._rng.randint(1, 2))
        self._syncs = self._rng.choice((0.2, 0.5, 0.9))

    def run(self) -> list[str]:
        """Live, and return what is wrong."""
        with in_miniature():
            return self._run()

    def _run(self) -> list[str]:
        for epoch in range(1, LIVES + 1):
            self._left = self._rng.choice((4, 8, 16, 40))
            try:
                problem = self._live(epoch)
            except Crash:
                problem = ""
            except VecraftError as error:
                problem = f"{type(error).__name__}: {error}"
            if problem:
                return [f"[log] in its life {epoch}: {problem}"]
            if self._rng.random() < 0.7:
                self._disk.lose_power()
        return []

    def _live(self, epoch: int) -> str:
        """Recover, compare, and write until the disk ends it. Returns what is wrong."""
        rng = self._rng
        wal = Wal.open(self._disk, epoch=epoch, segment_bytes=4000, zero_ahead=2048, salt=rng.getrandbits(64))
        found = [bytes(record.payload) for record in wal.replay()]
        if found != self._written[: len(found)]:
            return "it gives back what was not written"
        if len(found) < self._durable:
            return f"{self._durable} records were durable, {len(found)} came back"
        self._written[len(found) :] = []
        self._durable = len(found)
        while True:
            self._written.append(rng.randbytes(rng.choice(self._sizes)))
            wal.append([(rng.randrange(8), [self._written[-1]])])
            if rng.random() < self._syncs:
                wal.sync()
                self._durable = wal.durable_lsn

    def _step(self, kind: str, name: str) -> None:
        self._left -= 1
        if self._left < 0:
            raise Crash
