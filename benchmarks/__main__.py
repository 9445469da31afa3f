"""``make bench``: measure, print the table, write it as text and JSON to ``benchmarks/results/``."""

from __future__ import annotations

import argparse
import importlib
import json
import os
import platform
import sys
import time
import traceback
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from benchmarks.data import load_data
from benchmarks.measure import Row
from benchmarks.plots import draw

RESULTS = Path("benchmarks/results")
SECTIONS = (
    "search", "batches", "writes", "cluster", "filters", "plans", "counts", "texts", "groups", "recall", "growth",
    "ingest", "sweep",
)  # fmt: skip
SLOWING = ("OPENBLAS_CORETYPE", "OPENBLAS_L2_SIZE")
NOT_MEASURED: dict[str, str] = {}


def main() -> int:
    """Run the chosen sections; returns 0 also when a bar is missed: that is a figure, not a failure."""
    parser = argparse.ArgumentParser(prog="make bench", description="Measure against references in the same run.")
    parser.add_argument("sections", nargs="*", metavar="SECTION", help=f"{', '.join(SECTIONS)}; all by default")
    parser.add_argument("--rounds", type=int, default=5, help="rounds per figure (default 5)")
    parser.add_argument("--data", type=Path, help="folder of a data set, instead of the largest that is there")
    arguments = parser.parse_args()
    chosen = arguments.sections or list(SECTIONS)
    if unknown := set(chosen) - set(SECTIONS):
        parser.error(f"unknown section {sorted(unknown)[0]!r}; there are {', '.join(SECTIONS)}")
    if arguments.rounds < 1:
        parser.error("--rounds must be at least 1")
    if any(name in os.environ for name in SLOWING):  # they are read when numpy is loaded
        environment = {name: value for name, value in os.environ.items() if name not in SLOWING}
        os.execve(sys.executable, [sys.executable, "-m", "benchmarks", *sys.argv[1:]], environment)

    console = Console(width=None if sys.stdout.isatty() else 160, highlight=False)
    data = load_data(arguments.data)
    about = _about(data.name, len(data.ids), data.vectors.shape[1], arguments.rounds)
    console.print(f"data: [bold]{about['data']}[/bold]; medians of {arguments.rounds} rounds; {about['machine']}")
    rows: list[Row] = []
    failed = False
    for section in chosen:
        console.print(f"[dim]{section} …[/dim]")
        try:
            for row in importlib.import_module(f"benchmarks.{section}").measure(data, arguments.rounds):
                rows.append(row)
                console.print(f"  {row.key}: {_said(row)}")
        except Exception:  # the other sections' figures are worth having; the exit code tells
            failed = True
            console.print(f"[red]{section} broke off:[/red]\n{traceback.format_exc()}", markup=False)
    _tie_mixed_to_searches(rows)
    console.print(_table(rows))
    _write(about, rows)
    return 1 if failed else 0


def _about(name: str, rows: int, dim: int, rounds: int) -> dict[str, Any]:
    return {
        "data": f"{name}, {rows:,} x {dim}, cosine",
        "rounds": rounds,
        "machine": f"{platform.machine()}, {os.cpu_count()} CPUs, load {os.getloadavg()[0]:.1f}, "
        f"Python {platform.python_version()}",
        "when": datetime.now(UTC).isoformat(timespec="seconds"),
        "versions": {each: version(each) for each in ("vecraftdb", "numpy", "hnswlib", "ray")},
        "not_measured": NOT_MEASURED,
    }


def _tie_mixed_to_searches(rows: list[Row]) -> None:
    """Say of row 3e what share of row 3b's rate it is, too: its own reference searches what the upserts have left."""
    by_key = {row.key: row for row in rows}
    if "3b" in by_key and "3e" in by_key:
        by_key["3e"].extra["share_of_3b"] = round(by_key["3e"].figures[0] / by_key["3b"].figures[0], 3)


def _said(row: Row) -> str:
    if not row.ours and not row.extra:
        return row.what
    if not row.ours:
        return ", ".join(f"{name} {value}" for name, value in row.extra.items())
    ours, reference = row.figures
    return f"{_number(ours)} {row.unit}, reference {_number(reference)}, ratio {row.ratio:.2f}"


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def _table(rows: list[Row]) -> Table:
    table = Table(box=None, header_style="bold", pad_edge=False)
    for name in ("§", "what", "unit"):
        table.add_column(name)
    for name in ("ours", "reference", "ratio", "bar", "CPU ms/op", "reference"):
        table.add_column(name, justify="right")
    table.add_column("")
    for row in rows:
        if not row.ours and not row.extra:
            table.add_row(row.key, row.what)
            continue
        if not row.ours:
            met = "[green]✓[/green]" if row.extra.get("always") else "[red]✗[/red]"
            table.add_row(row.key, row.what, row.unit, "", "", "", "always", "", "", met)
            continue
        ours, reference = row.figures
        bar = "" if row.bar is None else f"{'≤' if row.better == 'low' else '≥'} {row.bar:.2f}"
        cpu = [sorted(sample.cpu for sample in side)[len(side) // 2] * 1000 for side in (row.ours, row.reference)]
        met = {True: "[green]✓[/green]", False: "[red]✗[/red]", None: ""}[row.met]
        table.add_row(
            row.key, row.what, row.unit, _number(ours), _number(reference), f"{row.ratio:.2f}", bar,
            f"{cpu[0]:.3g}", f"{cpu[1]:.3g}", met,
        )  # fmt: skip
    return table


def _write(about: dict[str, Any], rows: list[Row]) -> None:
    RESULTS.mkdir(parents=True, exist_ok=True)
    stamp = time.strftime("%Y%m%d-%H%M%S")
    text = json.dumps(about | {"rows": [row.to_dict() for row in rows]}, indent=1)
    with open(RESULTS / f"{stamp}.txt", "w", encoding="utf-8") as file:
        out = Console(file=file, width=170)
        out.print(f"{about['data']}; {about['rounds']} rounds; {about['machine']}; {about['when']}")
        out.print(_table(rows))
        for key, why in NOT_MEASURED.items():
            out.print(f"{key}: {why}")
    (RESULTS / f"{stamp}.json").write_text(text, encoding="utf-8")
    (RESULTS / "latest.json").write_text(text, encoding="utf-8")
    pictures = draw(rows, RESULTS, stamp)
    print(f"written: {RESULTS / stamp}.txt and .json", *(f"and {path}" for path in pictures))


if __name__ == "__main__":
    sys.exit(main())
