"""The arithmetic of the benchmark: alternation, medians, ratios, bars; and that a whole section runs."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any, Literal

import pytest

ROOT = Path(__file__).resolve().parents[3]
EXAMPLE = ROOT / "examples" / "data" / "wordnet3k"


@pytest.fixture(autouse=True)
def benchmarks_importable(monkeypatch: pytest.MonkeyPatch) -> None:
    """As in ``python -m benchmarks`` from the repository's root."""
    monkeypatch.syspath_prepend(str(ROOT))


@pytest.mark.parametrize(
    ("better", "bar", "ours", "reference", "met"),
    [
        ("low", 1.25, [2.0, 2.4, 9.0], [2.0, 2.0, 2.0], True),
        ("low", 1.15, [2.0, 2.4, 9.0], [2.0, 2.0, 2.0], False),
        ("high", 0.8, [80.0, 90.0, 10.0], [100.0, 100.0, 100.0], True),
        ("high", 0.9, [80.0, 90.0, 10.0], [100.0, 100.0, 100.0], False),
    ],
)
def test_a_row_is_the_median_of_its_rounds(
    better: Literal["low", "high"], bar: float, ours: list[float], reference: list[float], met: bool
) -> None:
    from benchmarks.measure import Row, Sample

    row = Row("x", "something", "ms", better, bar, [Sample(v, 0) for v in ours], [Sample(v, 0) for v in reference])
    assert row.met is met
    assert row.to_dict()["median_ours"] == sorted(ours)[1]


def test_sides_alternate_after_a_round_that_does_not_count() -> None:
    from benchmarks.measure import Row, Sample, alternate

    order = ""

    def side(name: str) -> Sample:
        nonlocal order
        order += name
        return Sample(1.0, 0.0)

    row = alternate(Row("x", "", "", "low", 1.0), 3, lambda: side("o"), lambda: side("r"))
    assert order == "or" + "or" + "ro" + "or"
    assert (len(row.ours), len(row.reference), row.ratio) == (3, 3, 1.0)


def test_latencies_are_medians_in_milliseconds() -> None:
    import time

    from benchmarks.measure import latencies

    sample = latencies(lambda i: time.sleep(0.05 if i == 0 else 0.002), 9)
    assert 1.9 < sample.figure < 40


@pytest.mark.slow
def test_a_section_runs_and_writes_table_and_json(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks", "writes", "--rounds", "1", "--data", str(EXAMPLE)],
        cwd=tmp_path, env={"PATH": "/usr/bin:/bin", "PYTHONPATH": str(ROOT), "OPENBLAS_CORETYPE": "Haswell"},
        capture_output=True, text=True, timeout=800, check=True,
    )  # fmt: skip
    assert "wordnet3k, 3,000 x 384" in done.stdout
    report = json.loads((tmp_path / "benchmarks/results/latest.json").read_text())
    rows = {row["key"]: row for row in report["rows"]}
    assert set(rows) == {"2a", "2b", "2c", "2d"}
    assert rows["2d"]["extra"]["always"] is True
    assert rows["2a"]["median_ours"] > 100
    assert sorted(path.name for path in (tmp_path / "benchmarks/results").iterdir() if path.is_dir()) == []


@pytest.mark.slow
def test_filtered_searches_are_right_whatever_their_selectivity(tmp_path: Path) -> None:
    rows = _report(tmp_path, "filters", VECRAFT_BENCH_ROWS="12000")
    filtered = [row["extra"] for key, row in rows.items() if key.startswith("4a·") and row["extra"]]
    assert len(filtered) == 10 and {"4a·new", "4a·12k·new", "4b", "4b·12k"} < set(rows)
    assert all(facts["recall_reached"] and facts["answers_that_came_short"] == 0 for facts in filtered), filtered
    shares = [facts["selectivity"] for facts in filtered]
    assert min(shares) < 0.01 < 0.5 < max(shares)


@pytest.mark.slow
def test_growth_is_measured_in_processes_of_their_own(tmp_path: Path) -> None:
    rows = _report(tmp_path, "growth", VECRAFT_BENCH_ROWS="3000")
    assert set(rows) == {"5a·3k", "5b", "5c", "5d", "5f·3k"}
    assert rows["5c"]["median_ours"] > rows["5c"]["median_reference"] > 1.5, "3,000 vectors of 128 floats take 1.5 MB"
    assert rows["5b"]["median_ours"] > 0


@pytest.mark.slow
def test_searches_beside_ingest_are_held_to_searches_in_peace(tmp_path: Path) -> None:
    rows = _report(tmp_path, "ingest", VECRAFT_BENCH_ROWS="2000")
    assert set(rows) == {"5e", "5e·same"}
    for row in rows.values():
        (facts,) = row["extra"]["rounds"]
        assert facts["searches"] > 0 and row["median_ours"] >= facts["p50_ms"] > 0


@pytest.mark.slow
def test_every_plan_is_tried_on_every_filter(tmp_path: Path) -> None:
    rows = _report(tmp_path, "plans", VECRAFT_BENCH_ROWS="3000")
    assert len(rows) == 20
    for row in rows.values():
        plans = row["extra"]["plans"]
        assert plans["exact"]["recall"] == 1.0 and row["extra"]["recall"] >= 0.95
        cheapest = plans[row["extra"]["cheapest"]]
        assert cheapest["recall"] >= 0.95 and cheapest["cpu_ms"] == pytest.approx(row["median_reference"])
        assert sum(row["extra"]["picked"].values()) == 50


def test_a_curve_is_compared_at_the_fastest_point_that_reaches_the_recall() -> None:
    from benchmarks.measure import Sample
    from benchmarks.sweep import Point, _at_recall

    def point(depth: int, recall: float, rate: float) -> Point:
        return Point(depth, recall, [Sample(rate, 0)] * 3, [Sample(100.0, 0)] * 3)

    curve = [point(10, 0.90, 900.0), point(20, 0.96, 500.0), point(30, 0.99, 300.0)]
    assert _at_recall(curve).depth == 20
    assert _at_recall(curve[:1]).depth == 10, "nothing reaches it: the best there is"


def _report(folder: Path, section: str, **environment: str) -> dict[str, dict[str, Any]]:
    """Run a section on the examples' data and return its rows by key."""
    subprocess.run(
        [sys.executable, "-m", "benchmarks", section, "--rounds", "1", "--data", str(EXAMPLE)],
        cwd=folder, env={"PATH": "/usr/bin:/bin", "PYTHONPATH": str(ROOT), **environment},
        capture_output=True, text=True, timeout=800, check=True,
    )  # fmt: skip
    report = json.loads((folder / "benchmarks/results/latest.json").read_text())
    return {row["key"]: row for row in report["rows"]}
