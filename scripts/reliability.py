"""Write ``docs/reliability.md`` from the records in ``reliability/``; with ``--check`` say whether it is up to date.

Each record is one line of JSON, left by a long run (``make torture``), or, for bugs, by whoever mended one. The page
holds nothing that is not in them, apart from the words around the figures, which are in ``reliability/page.md``.
"""

from __future__ import annotations

import json
import sys
from collections import Counter
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
RECORDS = ROOT / "reliability"
PAGE = ROOT / "docs" / "reliability.md"

TEMPLATE = RECORDS / "page.md"


def records(kind: str) -> list[dict[str, Any]]:
    """All records of a kind, oldest first."""
    path = RECORDS / f"{kind}.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def table(head: list[str], rows: list[list[Any]]) -> str:
    """A table in Markdown."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(map(str, line)) + " |" for line in lines)


def number(value: int) -> str:
    """With a separator for thousands."""
    return f"{value:,}"


def simulator(runs: list[dict[str, Any]]) -> str:
    """What the seeds gave, by day, and in all."""
    if not runs:
        return "No runs are recorded."
    days = sorted({run["date"] for run in runs})
    rows = []
    for day in [*days, ""]:
        of_day = [run for run in runs if day in ("", run["date"])]
        totals: Counter[str] = Counter()
        for run in of_day:
            totals.update({name: run[name] for name in ("seeds", "commits", "reads", "faults", "write_skew")})
        failed = sum(len(run["failed"]) for run in of_day)
        figures = (totals["seeds"], failed, totals["commits"], totals["reads"], totals["faults"], totals["write_skew"])
        rows.append([day or "**in all**", *map(number, figures)])
    head = ["day", "seeds", "failed", "transactions committed", "reads compared", "faults", "seeds with write skew"]
    return table(head, rows)


def speed(runs: list[dict[str, Any]]) -> str:
    """Seeds and events per second of the processor, by day."""
    lines = []
    for day in sorted({run["date"] for run in runs}):
        of_day = [run for run in runs if run["date"] == day]
        spent = sum(run["cpu_seconds"] for run in of_day)
        seeds, events = (sum(run[name] for run in of_day) / spent for name in ("seeds", "events"))
        lines.append(f"{day}: {seeds:.1f} seeds and {events:,.0f} events per second of one core.")
    return " ".join(lines) or "Nothing is recorded."


def mutants(hunts: list[dict[str, Any]]) -> str:
    """The last hunt of each planted bug."""
    if not hunts:
        return "No hunts are recorded."
    last = {hunt["name"]: hunt for hunt in hunts}
    caught = [hunt for hunt in last.values() if hunt["caught_after"] is not None]
    rows = [
        [
            hunt["name"],
            hunt["rule"],
            "**missed** in " + number(hunt["seeds"]) if hunt["caught_after"] is None else number(hunt["caught_after"]),
            number(hunt.get("simulated", hunt["caught_after"] or hunt["seeds"])),  # early hunts ran all of them
            hunt["check"],
            hunt["date"],
        ]
        for hunt in sorted(last.values(), key=lambda hunt: (not hunt["rule"].startswith("◆"), hunt["name"]))
    ]
    within = sorted(hunt["caught_after"] for hunt in caught)
    middle = within[len(within) // 2] if within else 0
    return f"{len(caught)} of {len(last)} were caught, half of them within {middle} seeds.\n\n" + table(
        ["planted bug", "the rule that it breaks", "seeds", "of these run", "found by the check", "day"], rows
    )


def runs(processes: list[dict[str, Any]], damage: list[dict[str, Any]], blackbox: list[dict[str, Any]]) -> str:
    """What killing processes and damaging files gave."""
    rows = [[run["date"], run["method"], number(run["cases"]), run["outcome"]] for run in processes]
    for run in blackbox:
        faults = ", ".join(f"{number(count)} {kind}" for kind, count in sorted(run["faults"].items()))
        faults = faults or f"dropped: {run['dropped']}"
        outcome = f"{run['violations']} violations, write skew seen: {run['write skew seen']}; {faults}"
        rows.append([run["date"], "black box on Ray, transactions", number(run["transactions"]), outcome])
    for run in damage:
        outcomes = ", ".join(f"{number(count)} {kind}" for kind, count in sorted(run["outcomes"].items()))
        rows.append([run["date"], f"damaged files, {run['how']}", number(sum(run["outcomes"].values())), outcomes])
    if not rows:
        return "No runs are recorded."
    return table(["day", "method", "cases", "outcome"], sorted(rows, key=lambda row: (row[0], row[1])))


def bugs(found: list[dict[str, Any]]) -> str:
    """The bugs, by the method that found them."""
    counts = Counter(bug["method"] for bug in found)
    rows = [[bug["date"], bug["method"], bug["bug"], bug["commit"], f"`{bug['shown_by']}`"] for bug in found]
    summary = ", ".join(f"{method} {count}" for method, count in counts.most_common())
    return f"{len(found)} in all: {summary}.\n\n" + table(["day", "method", "bug", "mended in", "shown by"], rows)


def render() -> str:
    """The whole page."""
    seeds = records("simulator")
    return TEMPLATE.read_text().format(
        simulator=simulator(seeds),
        speed=speed(seeds),
        mutants=mutants(records("mutants")),
        runs=runs(records("processes"), records("damage"), records("blackbox")),
        bugs=bugs(records("bugs")),
    )


def main() -> int:
    """Write the page, or compare it."""
    if "--check" not in sys.argv[1:]:
        PAGE.write_text(render())
        return 0
    if PAGE.exists() and PAGE.read_text() == render():
        return 0
    print(f"{PAGE.relative_to(ROOT)} is not what the records say: run scripts/reliability.py", file=sys.stderr)
    return 1


if __name__ == "__main__":
    sys.exit(main())
