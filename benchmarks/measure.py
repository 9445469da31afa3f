"""Rounds that alternate, medians, and rows of the report."""

from __future__ import annotations

import gc
import os
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import psutil


@dataclass(frozen=True)
class Sample:
    """One round of one side: its figure, and CPU seconds per operation."""

    figure: float
    cpu: float


@dataclass
class Row:
    """One line of the report.

    Attributes:
        key: As in the list of bars, for example ``1a``.
        what: In words.
        unit: Of both figures.
        better: Whether low or high figures are good; the ratio is ours over the reference's either way.
        bar: What the ratio has to reach.
        extra: Further figures.
    """

    key: str
    what: str
    unit: str
    better: Literal["low", "high"]
    bar: float | None
    ours: list[Sample] = field(default_factory=list)
    reference: list[Sample] = field(default_factory=list)
    extra: dict[str, Any] = field(default_factory=dict)
    fault: str | None = None

    @property
    def figures(self) -> tuple[float, float]:
        """Medians of both sides."""
        return tuple(statistics.median(sample.figure for sample in side) for side in (self.ours, self.reference))  # type: ignore[return-value]

    @property
    def ratio(self) -> float:
        """Median of the rounds' ratios: what disturbs a round disturbs both sides of it."""
        return statistics.median(a.figure / b.figure for a, b in zip(self.ours, self.reference, strict=True))

    @property
    def met(self) -> bool | None:
        """Whether the bar is reached; None without one."""
        if self.bar is None or not self.ours:
            return None
        return self.ratio <= self.bar if self.better == "low" else self.ratio >= self.bar

    def to_dict(self) -> dict[str, Any]:
        """Return the row with its medians, for JSON."""
        data = asdict(self)
        if self.ours and self.reference:
            data |= {"median_ours": self.figures[0], "median_reference": self.figures[1]}
            data |= {"ratio": self.ratio, "met": self.met}
        return data


class Stopwatch:
    """Wall and CPU seconds since it was made. CPU is this process's, or that of it and all it started (``family``)."""

    def __init__(self, family: bool = False) -> None:
        self._family = family
        self._cpu = self._cpu_now()
        self._wall = time.perf_counter()

    def read(self) -> tuple[float, float]:
        """Return wall and CPU seconds."""
        wall = time.perf_counter() - self._wall
        return wall, self._cpu_now() - self._cpu

    def _cpu_now(self) -> float:
        if not self._family:
            return time.process_time()
        total = 0.0
        me = psutil.Process(os.getpid())
        for process in [me, *me.children(recursive=True)]:
            try:
                times = process.cpu_times()
            except psutil.NoSuchProcess:
                continue
            total += times.user + times.system
        return total


def per_operation(run: Callable[[], object], operations: int, family: bool = False) -> Sample:
    """Run once; the figure is operations per second."""
    watch = Stopwatch(family)
    run()
    wall, cpu = watch.read()
    return Sample(operations / wall, cpu / operations)


def latencies(run: Callable[[int], object], times: int, family: bool = False) -> Sample:
    """Run so many times, with the number of the run; the figure is the median in milliseconds."""
    walls = []
    watch = Stopwatch(family)
    for number in range(times):
        began = time.perf_counter()
        run(number)
        walls.append(time.perf_counter() - began)
    _, cpu = watch.read()
    return Sample(statistics.median(walls) * 1000, cpu / times)


def alternate(row: Row, rounds: int, ours: Callable[[], Sample], reference: Callable[[], Sample]) -> Row:
    """Measure both sides in turn, the one that begins changing each round, after one round that does not count."""
    ours(), reference()
    for number in range(rounds):
        gc.collect()
        if number % 2:
            row.reference.append(reference())
            row.ours.append(ours())
        else:
            row.ours.append(ours())
            row.reference.append(reference())
    return row


def anonymous_mb() -> float:
    """Megabytes of this process that are not pages of files."""
    for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
        if line.startswith("RssAnon:"):
            return int(line.split()[1]) * 1024 / 1e6
    raise RuntimeError("/proc/self/status does not tell RssAnon")


Section = Iterator[Row]
