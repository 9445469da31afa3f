"""Pictures of a report: recall against rate, rate against selectivity, cost against the number of rows."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.measure import Row


def draw(rows: Sequence[Row], folder: Path, stamp: str) -> list[Path]:
    """Draw what the rows have figures for; returns the files. Without matplotlib (extra ``plots``) there are none."""
    try:
        import matplotlib

        matplotlib.use("Agg")
        from matplotlib import pyplot
    except ImportError:
        return []
    drawn = []
    for name, picture in (("recall", _recall), ("selectivity", _selectivity), ("rows", _growth)):
        figure, axes = pyplot.subplots(figsize=(7, 4.5), layout="constrained")
        if picture(axes, rows):
            path = folder / f"{stamp}-{name}.png"
            figure.savefig(path, dpi=120)
            drawn.append(path)
        pyplot.close(figure)
    return drawn


def _recall(axes: Any, rows: Sequence[Row]) -> bool:
    curves = {row.key.partition("·")[2]: row.extra["curve"] for row in rows if "curve" in row.extra}
    if not curves:
        return False
    for name, curve in curves.items():
        axes.plot([point[1] for point in curve], [point[2] for point in curve], marker="o", markersize=3, label=name)
    axes.set(xlabel="recall@10", ylabel="searches per second, hnswlib at 0.95 = 1", yscale="log")
    _finish(axes, "Recall against rate: up and to the right is better")
    return True


def _selectivity(axes: Any, rows: Sequence[Row]) -> bool:
    of_data = [row for row in rows if "selectivity" in row.extra and row.key.count("·") == 1]  # not the made-up rows
    points = sorted((row.extra["selectivity"], *row.figures) for row in of_data)
    if not points:
        return False
    shares, filtered, unfiltered = zip(*points, strict=True)
    axes.plot(shares, filtered, marker="o", label="with the filter")
    axes.plot(shares, unfiltered, linestyle="--", label="without")
    axes.set(xlabel="share of the rows that match", ylabel="searches per second", xscale="log", yscale="log")
    _finish(axes, "Filtered searches at recall@10 ≥ 0.95")
    return True


def _growth(axes: Any, rows: Sequence[Row]) -> bool:
    points = [(row.extra["rows"], *row.figures) for row in rows if row.key.startswith("5a") and "rows" in row.extra]
    if len(points) < 2:
        return False
    sizes, ours, reference = zip(*sorted(points), strict=True)
    axes.plot(sizes, ours, marker="o", label="VecraftDB")
    axes.plot(sizes, reference, marker="o", label="hnswlib")
    axes.set(xlabel="rows (128-d)", ylabel="one search, p50, ms", xscale="log")
    _finish(axes, "Cost against the number of rows, at one depth")
    return True


def _finish(axes: Any, title: str) -> None:
    axes.set_title(title, loc="left")
    axes.grid(alpha=0.3)
    axes.legend(frameon=False)
