"""A shard whose system calls fail, one in each life: what it answered, refused and lost.

Run as ``python -m tests.support.fault_child FOLDER CALL COUNT`` under ``strace``, which is told to fail the call number
:data:`WHEN` of that kind in every process, and to say so in ``FOLDER/trace``. One life after another works undisturbed
for a term. Before each term, a life is forked for each call of that kind in it: it goes on from a copy of the files,
makes calls that do nothing until the one to fail is the ``WHEN``-th, works for that term, and concludes undisturbed. So
after ``COUNT`` lives each of the first ``COUNT`` calls has failed once. A life writes ``FOLDER/<number>.json``::

    {"problems": [...], "acknowledged": how many writes, "refused": …, "unknown": …,
     "failed_reads": …, "failed_upkeep": …, "failed_opens": …}
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import sys
import traceback
from collections.abc import Callable
from itertools import product
from pathlib import Path
from typing import Any, Protocol

import vecraft_cluster.host
from tests.support.shard_workbench import create, delete, put
from vecraft_cluster.host import ShardHost
from vecraft_data_model.convert import packets_of_rows
from vecraft_data_model.errors import StorageFailureException, StorageFullError
from vecraft_data_model.messages import Batch, Checkpoint, CommitOne, Committed, Mutation, Refused, Scan, Transaction
from vecraft_data_model.scan_options import ScanOptions
from vecraft_shard.config import ShardConfig
from vecraft_shard.disk import OsDisk

CONFIG = ShardConfig(ballast_bytes=1 << 16, checkpoint_interval_s=1e6, index_min_rows=4)
WHEN = 400
"""More calls of a kind than a life makes in its term."""

TERM = 8
"""Writes in a term, with two checkpoints, and an end."""

NO_FILE = 1_000_000
NOTHING: dict[str, Callable[[], Any]] = {
    "pwrite64": lambda: os.pwrite(NO_FILE, b"", 0),
    "write": lambda: os.write(NO_FILE, b""),
    "writev": lambda: os.writev(NO_FILE, [b""]),
    "pread64": lambda: os.pread(NO_FILE, 1, 0),
    "fdatasync": lambda: os.fdatasync(NO_FILE),
    "fsync": lambda: os.fsync(NO_FILE),
    "ftruncate": lambda: os.ftruncate(NO_FILE, 0),
    "fallocate": lambda: os.posix_fallocate(NO_FILE, 0, 1),
    "rename": lambda: os.rename("/nowhere/a", "/nowhere/b"),
    "unlink": lambda: os.unlink("/nowhere/a"),
}
"""Calls of each kind that fail without having done anything."""

LAST = 1_000_000
"""The write by which every life ends."""

State = dict[str, int]


class Life:
    """One process.

    Args:
        folder: The shard's.
        base: What it holds for certain.
    """

    def __init__(self, folder: Path, base: State | None = None) -> None:
        self.folder = folder
        self.base = base
        self.host: ShardHost | None = None
        self.history: list[tuple[int, bool | None]] = []  # write, whether it was acknowledged (None: unknown)
        self.failed_opens = 0
        self.failed_reads = 0
        self.failed_upkeep = 0
        self.problems: list[str] = []

    def open(self) -> ShardHost:
        """The host, opened (again) if need be: opening may meet the failure, too."""
        for _ in range(3):
            try:
                self.host = self.host or ShardHost(OsDisk(self.folder), 0, CONFIG, maintenance=False)
                return self.host
            except StorageFailureException as error:
                self.failed_opens += 1
                failure = error
        raise failure

    def write(self, number: int) -> None:
        """Make write ``number``, and note what became of it."""
        name = f"txn-{number}"
        txn = Transaction(name, name.encode().ljust(32), mutations_of(number))
        try:
            answer: Any = self.open().execute(Batch([CommitOne(txn)]), 5.0).responses[0]
        except StorageFailureException as error:
            answer = Refused(error)
        if isinstance(answer, Committed):
            self.history.append((number, True))
        elif isinstance(answer, Refused) and isinstance(answer.error, StorageFullError):
            self.history.append((number, False))
        elif isinstance(answer, Refused) and isinstance(answer.error, StorageFailureException):
            self.history.append((number, None))
        else:
            self.problems.append(f"write {number} was answered by {answer!r}")

    def read(self) -> State | None:
        """Everything that is there; None if there is no collection."""
        everything = Scan(collection="c", options=ScanOptions(with_vectors=True))
        answer: Any = self.open().execute(Batch([everything]), 5.0).responses[0]
        if isinstance(answer, Refused):
            if "c" in answer.error.message and not isinstance(answer.error, StorageFailureException):
                return None
            raise answer.error
        return {packet.record_id: (packet.metadata or {})["v"] for packet in packets_of_rows(answer.rows)}

    def look(self, *, must: bool = True) -> None:
        """Read what was acknowledged; one read may fail, while a shard that stopped itself opens again.

        Args:
            must: Whether reads have to go on.
        """
        for _ in range(3):
            try:
                found = self.read()
            except StorageFailureException:
                self.failed_reads += 1
                continue
            if found not in self.possible():
                self.problems.append(f"{found} is there, after {self.history}")
            return
        if must:
            self.problems.append("reads do not go on")

    def possible(self) -> list[State | None]:
        """What may be there: all that was acknowledged, nothing that was refused, any of what is unknown."""
        unknown = [number for number, known in self.history if known is None]
        states = []
        for chosen in product((True, False), repeat=len(unknown)):
            applied = dict(zip(unknown, chosen, strict=True))
            state = self.base
            for number, known in self.history:
                if known if known is not None else applied[number]:
                    state = after(state, number)
            states.append(state)
        return states

    def work(self, term: int) -> None:
        """Write, read, make checkpoints, and end: in order, or as in a crash."""
        if term == 0:
            self.create()
        for number in range(TERM * term + 1, TERM * (term + 1) + 1):
            self.write(number)
            self.look()
            if number % 4 == 0:
                self.maintain(checkpoint=True)
        self.end(orderly=term % 2 == 1)

    def create(self) -> None:
        """Make the collection, always by the same transaction, until it is acknowledged."""
        for _ in range(3):
            self.write(0)
            if self.history[-1][1]:
                break
            self.maintain()

    def conclude(self, term: int) -> None:
        """Go on undisturbed: what is there must be right, and stay so, and be written to."""
        self.look()
        self.work(term)
        self.look()
        self.maintain()
        for _ in range(3):
            self.write(LAST)
            if self.history[-1][1]:
                break
        if self.history[-1] != (LAST, True):
            self.problems.append(f"nothing can be written any more: {self.history[-3:]}")
        self.end(orderly=True)
        self.look()
        self.end(orderly=False)

    def maintain(self, *, checkpoint: bool = False) -> None:
        """What happens in the background. If it fails, the next look shows whether that has harmed anything."""
        try:
            if checkpoint:
                answer = self.open().execute(Batch([Checkpoint(index=True)]), 5.0).responses[0]
                self.failed_upkeep += isinstance(answer, Refused)
            self.open().maintain_once(5)
        except StorageFailureException:
            self.failed_upkeep += 1

    def end(self, *, orderly: bool) -> None:
        """Close the host, or drop it as a crash would."""
        host, self.host = self.host, None
        with contextlib.suppress(StorageFailureException):
            if host is not None:
                host.close() if orderly else host.kill()


def mutations_of(number: int) -> list[Mutation]:
    """What a write does: every one touches the record ``all``, so that half of it would be seen."""
    if number == 0:
        return [create("c")]
    if number % 7 == 0:
        return [delete(f"k{number % 4}"), put("all", value=number)]
    return [put("all", f"k{number % 4}", value=number)]


def after(state: State | None, number: int) -> State | None:
    """The state after a write."""
    if number == 0:
        return {}
    if state is None:
        return None  # there was no collection, so it came to nothing
    state = {**state, "all": number, f"k{number % 4}": number}
    if number % 7 == 0:
        del state[f"k{number % 4}"]
    return state


class Disturbance(Protocol):
    """What goes wrong in a life."""

    def begin(self, number: int, life: Life) -> None:
        """Let it go wrong at the ``number``-th occasion from now."""
        ...

    def happened(self) -> bool:
        """Whether it has gone wrong by now; then it does not again."""
        ...


class FailingCall:
    """The ``number``-th call of a kind fails: ``strace`` sees to it."""

    def __init__(self, call: str, trace: Path) -> None:
        self._call = call
        self._trace = trace
        self._begin = trace.stat().st_size

    def begin(self, number: int, life: Life) -> None:
        """Make calls that do nothing until ``number`` calls are left."""
        for _ in range(WHEN - number):
            with contextlib.suppress(OSError):
                NOTHING[self._call]()

    def happened(self) -> bool:
        """Whether ``strace`` says so."""
        with self._trace.open() as lines:
            lines.seek(self._begin)
            return any(line.startswith(f"{os.getpid()} ") and "INJECTED" in line for line in lines)


def live(life: Life, term: int, disturbance: Disturbance, number: int) -> dict[str, Any] | None:
    """One life, and what its successor finds; None: nothing went wrong."""
    try:
        disturbance.begin(number, life)
        life.work(term)
        if not disturbance.happened():
            return None
        life.conclude(term + 1)
    except Exception:
        life.problems.append(traceback.format_exc())
    known = [known for _, known in life.history]
    return {
        "problems": life.problems,
        "acknowledged": known.count(True),
        "refused": known.count(False),
        "unknown": known.count(None),
        "failed_reads": life.failed_reads,
        "failed_upkeep": life.failed_upkeep,
        "failed_opens": life.failed_opens,
    }


def forked(work: Callable[[], bool]) -> bool:
    """Run a function in a child of this process; return what it returns."""
    child = os.fork()
    if child == 0:
        code = 2
        try:
            code = 0 if work() else 1
        except BaseException:
            traceback.print_exc()
        os._exit(code)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    if code not in (0, 1):
        raise SystemExit(f"a life ended with {code}")
    return code == 0


def live_all(folder: Path, count: int, disturbance: Callable[[], Disturbance]) -> None:
    """Live ``count`` lives, one after the other."""
    vecraft_cluster.host.REOPEN_INTERVAL_S = 0.0
    files = folder / "files"
    files.mkdir()
    base: State | None = None
    lives = term = 0

    def disturbed(number: int) -> bool:
        copy = folder / f"{lives}"
        shutil.copytree(files, copy)
        found = live(Life(copy, base), term, disturbance(), number)
        if found is not None:
            (folder / f"{lives}.json").write_text(json.dumps(found))
        return found is not None

    def undisturbed() -> bool:
        life = Life(files, base)
        life.work(term)
        return not life.problems and all(known for _, known in life.history)

    while True:
        number = 1
        while forked(lambda: disturbed(number)):  # noqa: B023 -- it is run at once
            lives, number = lives + 1, number + 1
            if lives == count:
                return
        shutil.rmtree(folder / f"{lives}")
        if not forked(undisturbed):
            raise SystemExit(f"term {term} failed although nothing was made to fail")
        for each in range(TERM * term + (term > 0), TERM * (term + 1) + 1):
            base = after(base, each)
        term += 1


def main(folder: Path, call: str, count: int) -> None:
    """Live under ``strace``."""
    live_all(folder, count, lambda: FailingCall(call, folder / "trace"))


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]))
