"""A shard whose system calls fail, one in each life: what it answered, refused and lost.

Run as ``python -m tests.support.fault_child FOLDER CALL WHEN FIRST COUNT ROUNDS`` under ``strace``, which is told to
fail the call number ``WHEN`` of that kind in every process. Each life is a fork, so that all of them share one start:
life ``n`` makes calls that do nothing, until its own call number ``n`` is the one to fail, and writes ``FOLDER/n.json``

::

    {"problems": [...], "acknowledged": how many writes, "refused": …, "unknown": …, "failed_reads": …}
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
import traceback
from collections.abc import Callable
from itertools import product
from pathlib import Path
from typing import Any

import vecraft_cluster.host
from tests.support.shard_workbench import create, delete, put
from vecraft_cluster.host import ShardHost
from vecraft_data_model.convert import packets_of_rows
from vecraft_data_model.errors import StorageFailureException, StorageFullError
from vecraft_data_model.messages import Batch, Checkpoint, CommitOne, Committed, Mutation, Refused, Scan, Transaction
from vecraft_shard.config import ShardConfig
from vecraft_shard.disk import OsDisk

CONFIG = ShardConfig(ballast_bytes=1 << 16, checkpoint_interval_s=1e6, index_min_rows=8)
NO_FILE = 1_000_000
NOTHING: dict[str, Callable[[], Any]] = {
    "pwrite64": lambda: os.pwrite(NO_FILE, b"", 0),
    "fdatasync": lambda: os.fdatasync(NO_FILE),
    "fsync": lambda: os.fsync(NO_FILE),
    "ftruncate": lambda: os.ftruncate(NO_FILE, 0),
    "fallocate": lambda: os.posix_fallocate(NO_FILE, 0, 1),
    "rename": lambda: os.rename("/nowhere/a", "/nowhere/b"),
    "unlink": lambda: os.unlink("/nowhere/a"),
}
"""Calls of each kind that fail without having done anything."""

State = dict[str, int]


class Life:
    """One process."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.host: ShardHost | None = None
        self.history: list[tuple[int, bool | None]] = []  # write, whether it was acknowledged (None: unknown)
        self.failed_reads = 0
        self.problems: list[str] = []

    def open(self) -> ShardHost:
        """The host, opened (again) if need be: opening may meet the failure, too."""
        for _ in range(3):
            try:
                self.host = self.host or ShardHost(OsDisk(self.folder), 0, CONFIG, maintenance=False)
                return self.host
            except StorageFailureException as error:
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
        answer: Any = self.open().execute(Batch([Scan(collection="c", with_vectors=True)]), 5.0).responses[0]
        if isinstance(answer, Refused):
            if "c" in answer.error.message and not isinstance(answer.error, StorageFailureException):
                return None
            raise answer.error
        return {packet.record_id: (packet.metadata or {})["v"] for packet in packets_of_rows(answer.rows)}

    def look(self) -> None:
        """Read what was acknowledged; one read may fail, while a shard that stopped itself opens again."""
        for _ in range(3):
            try:
                found = self.read()
            except StorageFailureException:
                self.failed_reads += 1
                continue
            if found not in self.possible():
                self.problems.append(f"{found} is there, after {self.history}")
            return
        self.problems.append("reads do not go on")

    def possible(self) -> list[State | None]:
        """What may be there: all that was acknowledged, nothing that was refused, any of what is unknown."""
        unknown = [number for number, known in self.history if known is None]
        states = []
        for chosen in product((True, False), repeat=len(unknown)):
            applied = dict(zip(unknown, chosen, strict=True))
            state: State | None = None
            for number, known in self.history:
                if known if known is not None else applied[number]:
                    state = after(state, number)
            states.append(state)
        return states

    def work(self, rounds: int) -> None:
        """Write, read, make checkpoints, close, open again."""
        for _ in range(3):
            self.write(0)  # until it is acknowledged: always the same transaction
            if self.history[-1][1]:
                break
            self.maintain()
        for number in range(1, 4 * rounds + 1):
            self.write(number)
            self.look()
            if number % 4 == 0:
                self.maintain(checkpoint=True)
            if number % 8 == 0:
                self.end(orderly=number % 16 == 0)
                self.look()

    def maintain(self, *, checkpoint: bool = False) -> None:
        """What happens in the background. If it fails, the next look shows whether that has harmed anything."""
        with contextlib.suppress(StorageFailureException):
            if checkpoint:
                self.open().execute(Batch([Checkpoint(index=True)]), 5.0)
            self.open().maintain_once(5)

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


def live(folder: Path, rounds: int) -> dict[str, Any]:
    """One life, and what its successor finds."""
    life = Life(folder)
    try:
        life.work(rounds)
        life.end(orderly=False)
        life.look()
        life.maintain()
        for _ in range(3):
            life.write(10_000)
            if life.history[-1][1]:
                break
        if life.history[-1] != (10_000, True):
            life.problems.append(f"nothing can be written any more: {life.history[-3:]}")
        life.end(orderly=True)
        life.look()
        life.end(orderly=False)
    except Exception:
        life.problems.append(traceback.format_exc())
    known = [known for _, known in life.history]
    return {
        "problems": life.problems,
        "acknowledged": known.count(True),
        "refused": known.count(False),
        "unknown": known.count(None),
        "failed_reads": life.failed_reads,
    }


def main(folder: Path, call: str, when: int, first: int, count: int, rounds: int) -> None:
    """Live ``count`` lives, one after the other."""
    vecraft_cluster.host.REOPEN_INTERVAL_S = 0.0
    for number in range(first, first + count):
        child = os.fork()
        if child == 0:
            for _ in range(when - number):
                try:
                    NOTHING[call]()
                except OSError:
                    continue
            found = live(folder / str(number), rounds)
            (folder / f"{number}.json").write_text(json.dumps({**found, "pid": os.getpid()}))
            os._exit(0)
        os.waitpid(child, 0)


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2], *map(int, sys.argv[3:7]))
