"""The process that opens damaged data directories: one fork for each, so that none can spoil the next.

Run as ``python damage_child.py ROOT SEED FIRST [COUNT [SCRATCH [verify]]]``.
``ROOT`` is what ``damage_root.py`` made. Case 0 is the undamaged directory; every other one is chosen by ``SEED`` and
its number. One line of JSON is written for each::

    {"case", "damage", "outcome": right | refused | partial | wrong | crashed, "wrong": […], "honest": […]}

A case has two acts. In the first the directory is opened and read; then it is written to, compacted, indexed and
checkpointed, which must not turn damage into data. In the second it is opened and read again.

With ``verify``, the damage is of a kind that must be found, and ``verify_root`` has to.
"""

from __future__ import annotations

import faulthandler
import json
import os
import pickle
import random
import select
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import numpy as np
from damage_reader import ask, everything, is_honest, walks_the_graph
from damage_root import Model, make, settings

from vecraft_data_model.errors import VecraftError
from vecraft_db import embedded
from vecraft_db.client.vecraft_client import VecraftClient
from vecraft_db.verify import verify_root
from vecraft_shard import engine
from vecraft_shard.planner import Costs

SECONDS = 120.0
SECTOR = 512
HEADER = 64
KINDS = ("flip", "flip", "sector", "truncate", "missing", "garbage")


# ------------------------------------------------------------------------------------------------------------ damage


def copy_sparse(source: Path, target: Path) -> None:
    """Copy a directory; room that was reserved and never written stays a hole."""
    for path in sorted(source.rglob("*")):
        there = target / path.relative_to(source)
        if path.is_dir():
            there.mkdir(parents=True, exist_ok=True)
            continue
        there.parent.mkdir(parents=True, exist_ok=True)
        data = path.read_bytes()
        with there.open("wb") as out:
            for start in range(0, len(data), 1 << 16):
                block = data[start : start + (1 << 16)]
                if block.count(0) != len(block):
                    out.seek(start)
                    out.write(block)
            out.truncate(len(data))


def files_of(data: Path) -> list[str]:
    """All files that may be damaged. ``LOCK`` and SQLite's ``-shm`` hold nothing."""
    names = (path.relative_to(data).as_posix() for path in data.rglob("*") if path.is_file())
    return sorted(name for name in names if not name.endswith(("LOCK", "-shm")))


def damage(data: Path, rng: random.Random, *, certain: bool = False) -> str:
    """Damage one file. Returns what was done. ``certain``: in a way that has to be found, whatever is read."""
    names = files_of(data)
    if certain:  # nothing hangs on a file that is empty but for its header, or on EPOCH if it is not too low
        names = [name for name in names if name.endswith(".durable") or (data / name).stat().st_size > HEADER]
    name = rng.choice(names)
    kind = rng.choice(("flip", "truncate", "missing") if certain else KINDS)
    path = data / name
    size = path.stat().st_size
    content = np.fromfile(path, np.uint8)
    used = np.flatnonzero(content)
    if kind == "missing" or size == 0:
        path.unlink()
        return f"{name}: removed"
    with path.open("r+b") as file:
        if kind == "garbage":
            count = rng.choice([1, 7, 56, 512, 5000])
            file.seek(size)
            file.write(rng.randbytes(count))
            return f"{name}: {count} random bytes appended"
        # Mostly where something is: the room that was reserved ahead is large.
        at = int(rng.choice(used)) if len(used) and (certain or rng.random() < 0.9) else rng.randrange(size)
        if kind == "truncate":
            file.truncate(at)
            return f"{name}: cut from {size} to {at} bytes"
        if kind == "sector":
            at -= at % SECTOR
            file.seek(at)
            file.write(bytes(min(SECTOR, size - at)))
            return f"{name}: sector at {at} zeroed"
        bit = rng.randrange(8)
        file.seek(at)
        file.write(bytes([content[at] ^ (1 << bit)]))
        return f"{name}: bit {bit} of byte {at} of {size} flipped"


# ------------------------------------------------------------------------------------------------------------- acts


class Report:
    """What was found in one case."""

    def __init__(self) -> None:
        self.wrong: list[str] = []
        self.honest: list[str] = []
        self.refused = False

    def attempt(self, act: str, step: Callable[[], Any]) -> Any:
        """Do a step; an error that says what is damaged is honest, any other is a finding."""
        try:
            return step()
        except VecraftError as error:
            if is_honest(error):
                self.honest.append(f"{act}: {error.code}: {error.message}")
            else:
                self.wrong.append(f"{act}: {error.code}: {error.message} {error.details}")
        except Exception:
            self.wrong.append(f"{act}: {traceback.format_exc()}")
        return None

    def read(self, act: str, client: VecraftClient, model: Model) -> None:
        """Read everything."""
        wrong, honest = ask(everything(client, model))
        self.wrong += [f"{act}: {line}" for line in wrong]
        self.honest += [f"{act}: {line}" for line in honest]


def write(client: VecraftClient, model: Model) -> None:
    """Write one new record to each collection; what is acknowledged is in the model from then on."""
    for name, records in model.records.items():
        record_id, record = f"{name[0]}8000", make(name, 8000, 9)
        client.upsert(
            name, ids=[record_id], vectors=[record.vector], metadatas=[record.metadata], documents=[record.document]
        )
        records[record_id] = record


def play(data: Path, model: Model, *, lost_graph: bool = False) -> Report:
    """The two acts. ``lost_graph``: a graph was damaged, so it may not be there (yet)."""
    report = Report()
    for act in ("first", "second"):
        client = report.attempt(f"{act} open", lambda: VecraftClient(root=data, settings=settings()))
        if client is None:
            report.refused = True
            continue  # being refused must not have changed anything: so once more
        report.read(f"{act} read", client, model)
        if act == "first":
            if not report.honest and not lost_graph and not walks_the_graph(client):
                report.wrong.append("no search walks the graph")
            change(report, client, model)
        report.attempt(f"{act} close", client.close)
    return report


def change(report: Report, client: VecraftClient, model: Model) -> None:
    """Write something, and let everything be written anew."""
    report.attempt("write", lambda: write(client, model))
    report.attempt("compact", lambda: client.checkpoint(compact=True, index=True))


def look_for(data: Path, what: str) -> Report:
    """Let the directory be verified; nothing found is wrong."""
    report = Report()
    verified = report.attempt("verify", lambda: verify_root(data))
    if verified is not None:
        report.honest += verified.findings
    if not report.honest and what != "nothing":
        report.wrong.append("not found")
    elif report.honest and what == "nothing":
        report.wrong.append(f"found {report.honest}")
    return report


def _in_fork(data: Path, model: Model, out: int, what: str, *, verify: bool) -> None:
    faulthandler.dump_traceback_later(SECONDS - 5, exit=True)
    default = embedded.shard_config
    # What is undecided is decided soon, so that nobody has to wait for it.
    embedded.shard_config = lambda given: replace(default(given), resolve_after_ms=20)
    # Scans look dear, so that even these few rows are searched by the graph unless an exact answer is asked for.
    engine.costs_of_this_machine = lambda stopwatch: Costs(stream_kb=1.0, gather_kb=2.0)
    report = look_for(data, what) if verify else play(data, model, lost_graph="hnsw" in what)
    outcome = "wrong" if report.wrong else "refused" if report.refused else "partial" if report.honest else "right"
    line = {"outcome": outcome, "wrong": report.wrong[:5], "honest": report.honest[:5]}
    os.write(out, json.dumps(line).encode())


def run_case(root: Path, model: Model, seed: int, case: int, scratch: Path, *, verify: bool) -> dict[str, Any]:
    """Copy, damage, open in a fork, and say what came of it."""
    data = scratch / f"case-{case}"
    copy_sparse(root / "data", data)
    what = "nothing" if case == 0 else damage(data, random.Random(f"{seed}/{case}"), certain=verify)
    line: dict[str, Any] = {
        "case": case,
        "verify": verify,
        "damage": what,
        "outcome": "crashed",
        "wrong": [],
        "honest": [],
    }
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            os.close(reading)
            _in_fork(data, model, writing, what, verify=verify)
            code = 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(code)
    os.close(writing)
    said, deadline = b"", time.monotonic() + SECONDS
    while select.select([reading], [], [], max(0.0, deadline - time.monotonic()))[0]:
        block = os.read(reading, 1 << 16)
        if not block:
            break
        said += block
    else:
        os.kill(pid, signal.SIGKILL)
        line["wrong"] = [f"no answer in {SECONDS} s"]
    os.close(reading)
    status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    if said:
        line |= json.loads(said)
    if status and not line["wrong"]:
        line |= {"outcome": "crashed", "wrong": [f"the interpreter ended with {status}"]}
    shutil.rmtree(data, ignore_errors=True)
    return line


def main(root: Path, seed: int, first: int, count: int, scratch: Path, *, verify: bool) -> None:
    """Run the cases and say each outcome."""
    model = pickle.loads((root / "model.pickle").read_bytes())
    list(everything(cast(VecraftClient, None), model))  # makes the questions, and so what they are compared with
    for case in range(first, first + count):
        print(json.dumps(run_case(root, model, seed, case, scratch, verify=verify)), flush=True)


if __name__ == "__main__":
    _root, _seed, _first = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
    _count = int(sys.argv[4]) if len(sys.argv) > 4 else 1
    with tempfile.TemporaryDirectory() as _temporary:
        _scratch = Path(sys.argv[5] if len(sys.argv) > 5 else _temporary)
        main(_root, _seed, _first, _count, _scratch, verify="verify" in sys.argv[6:])
