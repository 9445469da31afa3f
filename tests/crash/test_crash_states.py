"""A power failure at any system call: what was answered is there, what was under way is there as a whole or not at all.

A process with one shard writes, groups commits, prepares and decides transactions, makes checkpoints, saves graphs,
compacts, drops, closes and opens again. From the record of its system calls, the states are made in which its files can
be after a crash (:mod:`tests.support.crash_states` says which); the shard is opened on each of them.

``VECRAFT_CRASH_STATES`` says how many. Needs ``strace``.
"""

from __future__ import annotations

import os
import random
import re
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import track_record

from tests.support.crash_states import Call, CrashPoint, Name, Sync, Write, crash_points, record
from tests.support.crash_workload import CONFIG, FINISHED, Model, models, steps
from tests.support.shard_workbench import put
from vecraft_data_model.convert import packets_of_rows
from vecraft_data_model.errors import VecraftError
from vecraft_data_model.filters import parse_where
from vecraft_data_model.messages import Checkpoint, CommitOne, Committed, Count, Done, Search, Transaction
from vecraft_data_model.search_options import SearchOptions
from vecraft_shard.config import ShardConfig
from vecraft_shard.disk import OsDisk
from vecraft_shard.engine import Shard

STATES = int(os.environ.get("VECRAFT_CRASH_STATES", "1000"))
NOW_MS = 1_700_000_000_000 + 60_000
HAS_VALUE = parse_where({"v": {"$exists": True}})
pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(7200),
    pytest.mark.skipif(shutil.which("strace") is None, reason="strace, which records system calls, is not installed"),
]


@pytest.fixture(scope="module")
def memory(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A directory in memory, if that can be: every state is written out and synced."""
    shared = Path("/dev/shm")
    usable = shared.is_dir() and os.access(shared, os.W_OK)
    folder = shared / f"vecraft-crash-states-{os.getpid()}" if usable else tmp_path_factory.mktemp("states")
    folder.mkdir(exist_ok=True)
    yield folder
    shutil.rmtree(folder)


@pytest.fixture(scope="module")
def calls(memory: Path) -> list[Call]:
    """What the workload did."""
    root, marks = memory / "recorded", memory / "marks"
    command = ["-m", "tests.support.crash_workload", str(root), str(marks)]
    found = record(command, root, marks, memory / "trace")
    said = marks.read_text().split("\n")
    assert said[-2] == FINISHED and len(said) == 2 * len(steps()) + 2
    return found


def opened(folder: Path) -> Shard:
    return Shard.open(OsDisk(folder), 0, NOW_MS, ShardConfig(**CONFIG), stopwatch=time.perf_counter)  # type: ignore[arg-type]


def held_by(shard: Shard) -> Model:
    """Everything a shard holds, its checksums verified, whatever is prepared."""
    state = shard._state
    found = Model(prepared=dict.fromkeys(state.prepared))  # type: ignore[arg-type]
    for entry in state.catalog.current():
        collection = state.collections[entry.collection_id]
        versions = collection.versions
        rows = [row for row in map(versions.alive_row, versions.newest) if row >= 0]
        packets = packets_of_rows(collection.rows_of(rows, with_vectors=True))
        assert len(rows) == versions.alive
        found.records[entry.schema.name] = {packet.record_id: (packet.metadata or {})["v"] for packet in packets}
    return found


def differs(found: Model, expected: Model) -> bool:
    return found.records != expected.records or found.prepared.keys() != expected.prepared.keys()


def allowed(said: list[str]) -> list[Model]:
    """What may be there after these marks: everything answered, and any number of the requests under way."""
    done = sum(text.startswith("A") for text in said)
    if not said or not said[-1].startswith("B"):
        return [models(done) if done else Model()]
    return [models(done, part) for part in range(len(steps()[done].requests) + 1)]


def problem_of(folder: Path, said: list[str], *, thorough: bool) -> str | None:
    """Open a state and say what is wrong with it; None: nothing."""
    try:
        shard = opened(folder)
    except VecraftError as error:
        return f"it does not open: {error!r}"
    try:
        found = held_by(shard)
        possible = allowed(said)
        if all(differs(found, model) for model in possible):
            return f"it holds {found}, expected one of {possible}"
        return _answers(shard, found, said) or (_goes_on(shard, folder, found) if thorough else None)
    except VecraftError as error:
        return f"it cannot be read: {error!r}"
    finally:
        shard.abandon()


def _answers(shard: Shard, found: Model, said: list[str]) -> str | None:
    """Check the indexes against the records, and the outcome of the last commits that were answered."""
    for name, records in found.records.items():
        if found.prepared:
            break  # a read would wait for it
        everything: Any
        everything, near = shard.execute(
            [
                Count(collection=name, where=HAS_VALUE),
                Search(collection=name, queries=np.zeros((1, 4), np.float32), options=SearchOptions(k=100)),
            ],
            NOW_MS,
        )
        if everything.count != len(records) or sorted(near.hits[0].ids) != sorted(records):
            return f"the indexes of {name} find {everything}, {near}, and there are {records}"
    answered = [text.split() for text in said if text.startswith("A")]
    for _, number, *stamps in answered[-3:]:
        for request, stamp in zip(steps()[int(number)].requests, stamps, strict=False):
            if isinstance(request, CommitOne):
                outcome = shard._state.outcome_of(request.txn.txn_id)
                if outcome is None or outcome.ts != int(stamp):
                    return f"transaction {request.txn.txn_id} was committed at {stamp}, now it is {outcome}"
    return None


def _goes_on(shard: Shard, folder: Path, found: Model) -> str | None:
    """Open it again, and write to it: what recovery made of it must be as good as what it found."""
    shard.abandon()
    again = opened(folder)
    try:
        if differs(held_by(again), found):
            return f"opened once more, it holds {held_by(again)} instead of {found}"
        if "c" not in found.records:
            return None
        txn = Transaction("after", b"after".ljust(32), [put("after", value="after")])
        answers = again.execute([CommitOne(txn), Checkpoint()], NOW_MS)
        if not isinstance(answers[0], Committed) or not isinstance(answers[1], Done):
            return f"it cannot be written to: {answers}"
    finally:
        again.abandon()
    found.records["c"]["after"] = "after"
    last = opened(folder)
    try:
        return f"it lost what was written: {held_by(last)}" if differs(held_by(last), found) else None
    finally:
        last.abandon()


def described(point: CrashPoint, calls: list[Call], what: str) -> str:
    names = {change.inode: change.path for change in calls if isinstance(change, Name) and change.inode != -1}

    def shown(call: Call) -> str:
        name = Path(getattr(call, "path", "") or names.get(getattr(call, "inode", -1), "")).name
        size = f" {len(call.block)} at {call.offset}" if isinstance(call, Write) else ""
        return f"{type(call).__name__} {name}{size}"

    before = "; ".join(shown(call) for call in calls[max(0, point.call - 5) : point.call + 1])
    pending = "; ".join(f"{i}: {shown(change)}" for i, change in enumerate(point.pending))
    said = ", ".join(point.said[-2:])
    return f"after call {point.call} ({before}), of what is not durable ({pending}) there is {what}; said: {said}"


def test_every_kind_of_call_was_recorded(calls: list[Call]) -> None:
    kinds = {type(call).__name__ for call in calls}
    assert kinds == {"Write", "Resize", "Name", "Sync", "Mark"}
    names = " ".join(Path(call.path).name for call in calls if isinstance(call, Name | Sync))
    for kind in (".wal", "hnsw.", "vectors.2", "shard.sqlite-wal", "EPOCH.new", "shard.sqlite.sums", "BALLAST"):
        assert kind in names, kind
    assert sum(isinstance(call, Name) and call.old is not None for call in calls) >= 10
    assert sum(isinstance(call, Write) for call in calls) >= 300


def explore(calls: list[Call], memory: Path, limit: int, *, enough: int = 10) -> tuple[int, list[str]]:
    """Try at least ``limit`` different states, spread over all crash points, unless there are too few.

    Returns how many there were, and the problems, of which ``enough`` are.
    """
    plans = sum(len(list(point.subsets(0))) for point in crash_points(calls))
    share = min(1.0, 3 / 2 * limit / plans)  # of the plans, many of which make the same state
    chances = random.Random(1)
    seen: set[tuple[int, int]] = set()
    problems: list[str] = []
    at_random, before = 0, -1
    while before < len(seen) < limit:
        before = len(seen)
        for point in crash_points(calls):
            for what, kept in point.subsets(at_random):
                if chances.random() >= share:
                    continue
                state = point.durable.with_changes(kept)
                key = (state.fingerprint(), len(point.said))
                if key in seen:
                    continue
                seen.add(key)
                folder = memory / "state"
                state.write_out(memory / "recorded", folder)
                problem = problem_of(folder, point.said, thorough=len(seen) % 8 == 0)
                if problem is not None:
                    problems.append(f"{described(point, calls, what)}\n  {problem}")
                    if len(problems) == enough:
                        return len(seen), problems
        at_random += 4
    return len(seen), problems


def test_a_crash_at_any_call_loses_nothing_that_was_answered(calls: list[Call], memory: Path) -> None:
    tried, problems = explore(calls, memory, STATES)
    assert not problems, f"{tried} states:\n\n" + "\n\n".join(problems)
    assert tried >= STATES
    outcome = "each opened with what had been answered"
    track_record.record("processes", method="states of files after a crash", cases=tried, outcome=outcome)


@pytest.mark.parametrize(
    "forgotten",
    ["wal/.*wal", "vectors", "payloads", "shard.sqlite-wal", "EPOCH.new", "recorded", "wal"],
)
def test_a_sync_that_is_missing_would_be_found(calls: list[Call], memory: Path, forgotten: str) -> None:
    """The same without the syncs of some files, or directories: otherwise the test above would prove nothing."""
    careless = [c for c in calls if not (isinstance(c, Sync) and re.search(f"/{forgotten}[^/]*$", c.path))]
    assert len(careless) < len(calls)
    tried, problems = explore(careless, memory, 3000, enough=1)
    assert problems, f"{tried} states"
