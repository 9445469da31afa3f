"""Damaged records in the store files: what is refused, what goes on, and what heals them."""

from __future__ import annotations

import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from shard_workbench import DIM, Bench, create, delete, put, vector_of

from vecraft_data_model.errors import ChecksumValidationFailureError
from vecraft_data_model.filters import parse_where, parse_where_document
from vecraft_data_model.messages import (
    CHOOSE_SNAPSHOT,
    Checkpoint,
    Committed,
    Count,
    Describe,
    Done,
    Get,
    Refused,
    Scan,
    Search,
    Status,
)
from vecraft_data_model.scan_options import ScanOptions
from vecraft_data_model.search_options import SearchOptions
from vecraft_data_model.text_ranking import TextQuery
from vecraft_shard import integrity
from vecraft_shard.store import HEADER_BYTES

IDS = [f"r{i}" for i in range(12)]


@pytest.fixture(autouse=True)
def short_spans(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(integrity, "SPAN_ROWS", 5)


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    """Twelve records in two checkpoints."""
    bench = Bench(tmp_path, history_retention_s=0.0, compact_min_rows=1, compact_dead_ratio=0.01, index_min_rows=1)
    bench.commit(create())
    bench.commit(put(*IDS[:7]))
    bench.ask(Checkpoint(index=True))
    bench.commit(put(*IDS[7:]))
    bench.ask(Checkpoint(index=True))
    return bench


def while_closed(bench: Bench, change: Callable[[Path], None]) -> None:
    """Close the shard, change a file of the collection, and open it again."""
    bench.shard.close(bench.now_ms)
    (folder,) = (path for path in bench.folder.iterdir() if path.is_dir() and path.name != "wal")
    change(folder)
    bench.shard = bench._open()


def set_vector(row: int, value: float) -> Callable[[Path], None]:
    """Overwrite the second number of a row."""

    def change(folder: Path) -> None:
        with (folder / "vectors.1.f32").open("r+b") as file:
            file.seek(HEADER_BYTES + row * DIM * 4 + 4)
            file.write(struct.pack("<f", value))

    return change


def flip_text(record_id: str) -> Callable[[Path], None]:
    """Change one letter of a document."""

    def change(folder: Path) -> None:
        path = folder / "payloads.1.log"
        content = path.read_bytes()
        text = f"text {record_id}".encode()
        assert content.count(text) >= 1
        path.write_bytes(content.replace(text, text.replace(b"x", b"y"), 1))

    return change


def refusal(bench: Bench, request: Any) -> str:
    """The record that stands in the way of a request."""
    reply = bench.ask(request)
    assert isinstance(reply, Refused), reply
    assert isinstance(reply.error, ChecksumValidationFailureError)
    assert repr(reply.error.details["record_id"]) in reply.error.message
    return str(reply.error.details["record_id"])


def search(snapshot: int = CHOOSE_SNAPSHOT, **options: Any) -> Search:
    query = np.array([vector_of("r1")], np.float32)
    return Search(collection="c", queries=query, snapshot=snapshot, options=SearchOptions(k=3, **options))


@pytest.mark.parametrize("value", [0.25, float("nan"), float("inf"), 3e38])
@pytest.mark.parametrize("exact", [True, False])
def test_a_damaged_vector_refuses_searches_until_it_is_replaced(bench: Bench, value: float, exact: bool) -> None:
    expected = bench.search(vector_of("r1"), exact=exact)
    while_closed(bench, set_vector(8, value))
    assert refusal(bench, search(exact=exact, include=())) == "r8"
    assert refusal(bench, search(exact=exact)) == "r8"
    assert refusal(bench, Get(collection="c", ids=["r8"])) == "r8"
    assert bench.get("r7", "r1") == {"r7": {"v": 0}, "r1": {"v": 0}}
    assert bench.count() == 12 and bench.count(where=parse_where({"v": 0})) == 12
    damaged_at: Any = bench.commit(put("new"))
    assert isinstance(bench.commit(put("r8", value=2)), Committed)
    assert bench.get("r8") == {"r8": {"v": 2}}
    assert bench.search(vector_of("r1"), exact=exact) == expected
    assert refusal(bench, search(exact=exact, snapshot=damaged_at.commit_ts)) == "r8"
    status: Any = bench.ask(Status())
    assert status.figures["damaged_rows"] == 1


def test_a_graph_can_be_built_over_a_damaged_vector(bench: Bench) -> None:
    def lose_graph(folder: Path) -> None:
        (graph,) = folder.glob("hnsw*")
        graph.unlink()
        set_vector(3, float("nan"))(folder)

    while_closed(bench, lose_graph)
    while bench.shard.maintain(bench.now_ms, 50):
        pass
    described: Any = bench.ask(Describe(collection="c"))
    assert described.indexed_rows == 12
    assert refusal(bench, search()) == "r3"
    bench.commit(delete("r3"))
    assert bench.search(vector_of("r1"), k=20) == bench.search(vector_of("r1"), k=20, exact=True)
    assert "r3" not in bench.search(vector_of("r1"), k=20)


def test_a_damaged_text_refuses_full_text_until_it_is_deleted(bench: Bench) -> None:
    while_closed(bench, flip_text("r3"))
    condition = parse_where_document({"$contains": "text"})  # longer than a trigram: found texts are looked at
    count = Count(collection="c", where_document=condition)
    for request in (count, Scan(collection="c", options=ScanOptions(where_document=condition))):
        assert refusal(bench, request) == "r3"
    assert refusal(bench, search(where_document=condition)) == "r3"
    assert refusal(bench, search(where_document=parse_where_document({"$not_contains": "text r3"}))) == "r3"
    assert bench.count(where=parse_where({"v": 0})) == 12
    assert refusal(bench, Scan(collection="c")) == "r3"
    bench.commit(delete("r3"))
    assert bench.count(where_document=condition) == 11
    assert bench.scan() == sorted(set(IDS) - {"r3"})


@pytest.mark.parametrize(
    "options",
    [{}, {"group_by": "v"}, {"text": TextQuery(("nowhere",))}],
    ids=["plain", "grouped", "hybrid"],
)
def test_a_search_that_is_the_first_to_look_at_a_damaged_text_is_refused(bench: Bench, options: dict[str, Any]) -> None:
    """Seed 4301 of the simulator: the damage was met while the condition was evaluated, and nobody asked afterwards."""
    while_closed(bench, flip_text("r3"))
    condition = parse_where_document({"$contains": "text"})
    assert refusal(bench, search(where_document=condition, **options)) == "r3"


def test_a_dead_record_may_be_damaged(bench: Bench) -> None:
    bench.commit(put("r2", value=1))
    bench.commit(delete("r5"))
    while_closed(bench, flip_text("r2"))
    while_closed(bench, set_vector(5, float("nan")))
    assert len(bench.search(vector_of("r1"), k=20, exact=True)) == 11
    assert bench.count(where_document=parse_where_document({"$contains": "text"})) == 11


def test_compaction_stops_at_a_damaged_record(bench: Bench) -> None:
    while_closed(bench, flip_text("r3"))
    bench.commit(delete("r9"))
    bench.pass_time(1000)
    assert refusal(bench, Checkpoint(compact=True)) == "r3"
    for _ in range(3):
        while bench.shard.maintain(bench.now_ms, 50):
            pass
        bench.pass_time(1000)
    assert bench.count() == 11 and refusal(bench, Get(collection="c", ids=["r3"])) == "r3"
    assert bench.shard.failed is None
    bench.commit(put("r3", value=7))
    bench.pass_time(1000)
    assert isinstance(bench.ask(Checkpoint(compact=True)), Done)
    assert bench.get("r3") == {"r3": {"v": 7}}
    bench.reopen()
    assert bench.get("r3") == {"r3": {"v": 7}} and bench.count() == 11
    generations = sorted(path.name for path in bench.folder.glob("*/payloads*"))
    assert len(generations) == 1 and generations != ["payloads.1.log"]


def test_spans_are_kept_over_checkpoints_and_generations(bench: Bench) -> None:
    def spans() -> list[tuple[int, int]]:
        (collection,) = bench.shard._state.collections.values()
        return [(span.first, span.last) for span in bench.shard._state.locations.load_spans(collection.ordinal)]

    assert spans() == [(0, 5), (5, 7), (7, 12)]
    bench.commit(delete(*IDS[:4]))
    bench.pass_time(1000)
    bench.ask(Checkpoint(compact=True))
    assert spans() == [(0, 5), (5, 8)]
    bench.reopen()
    assert spans() == [(0, 5), (5, 8)] and bench.count() == 8


def test_what_the_log_still_has_is_not_damaged(bench: Bench) -> None:
    """Rows after the checkpoint are written again from the log."""
    bench.commit(put("late"))
    bench.shard.abandon()
    (folder,) = (path for path in bench.folder.iterdir() if path.is_dir() and path.name != "wal")
    set_vector(12, 9.0)(folder)
    flip_text("late")(folder)
    bench.shard = bench._open()
    assert bench.get("late") == {"late": {"v": 0}}
    assert bench.search(vector_of("late"), k=1) == ["late"]
