"""The workload whose crash states are tried: what one shard does with its files, step by step, and what it then holds.

Run as ``python -m tests.support.crash_workload FOLDER MARKS``, under ``strace``. It writes a line to the file ``MARKS``
before each step, ``B <step>``, and after its answer, ``A <step> <commit timestamps>``: so the trace says what had been
answered when. The shard is driven directly, in one thread, by a clock of its own: every run makes the same calls.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from tests.support.shard_workbench import Bench, create, delete, put
from vecraft_data_model.messages import (
    AbortTransaction,
    Checkpoint,
    CommitOne,
    Committed,
    CreateCollection,
    Decide,
    Delete,
    DropCollection,
    Finish,
    Get,
    Prepare,
    Put,
    Refused,
    Request,
    SetAlias,
    Transaction,
)

CONFIG = {
    "ballast_bytes": 1 << 16,
    "checkpoint_interval_s": 1e6,
    "history_retention_s": 1.0,
    "compact_min_rows": 8,
    "index_min_rows": 16,
}
FINISHED = "finished"

Contents = dict[str, dict[str, Any]]
"""Collection → record id → value."""


@dataclass
class Model:
    """What the shard holds: records, and what is prepared."""

    records: Contents = field(default_factory=dict)
    prepared: dict[str, Transaction] = field(default_factory=dict)

    def copy(self) -> Model:
        """An independent one."""
        return Model({name: dict(found) for name, found in self.records.items()}, dict(self.prepared))

    def apply(self, request: Request) -> None:
        """Take up what a request does."""
        match request:
            case CommitOne(txn=txn):
                self._commit(txn)
            case Prepare(txn=txn):
                self.prepared[txn.txn_id] = txn
            case Decide(txn_id=txn_id):
                self._commit(self.prepared.pop(txn_id))
            case Finish(txn_id=txn_id, commit_ts=ts):
                txn = self.prepared.pop(txn_id)
                if ts:
                    self._commit(txn)
            case AbortTransaction(txn_id=txn_id):
                self.prepared.pop(txn_id, None)

    def _commit(self, txn: Transaction) -> None:
        for mutation in txn.mutations:
            match mutation:
                case Put(collection=name, ids=ids):
                    self.records[name].update(dict.fromkeys(ids, txn.txn_id))
                case Delete(collection=name, ids=ids):
                    for record_id in ids:
                        self.records[name].pop(record_id, None)
                case CreateCollection(schema=schema):
                    self.records[schema.name] = {}
                case DropCollection(name=name):
                    del self.records[name]


@dataclass
class Step:
    """One call: requests in one batch, or something else that changes nothing."""

    requests: list[Request] = field(default_factory=list)
    action: Callable[[Bench], None] | None = None


@cache
def steps() -> list[Step]:
    """The workload. In another process it is the same, but for the random ids of collections."""
    made: list[Step] = []
    numbers = iter(range(1000))

    def txn(*mutations: Any, name: str = "") -> Transaction:
        name = name or f"t{next(numbers)}"
        stamped = [
            put(*m.ids, value=name, collection=m.collection) if isinstance(m, Put) else m for m in mutations
        ]
        return Transaction(name, name.encode().ljust(32, b"-"), stamped)

    def one(*mutations: Any) -> Request:
        return CommitOne(txn(*mutations))

    def prepare(name: str, primary: int, *mutations: Any) -> Request:
        return Prepare(txn(*mutations, name=name), primary, [0, 1])

    def many(first: int, last: int, **options: Any) -> Any:
        return put(*(f"r{i:03}" for i in range(first, last)), **options)

    def batch(*requests: Request) -> None:
        made.append(Step(list(requests)))

    def do(action: Callable[[Bench], None]) -> None:
        made.append(Step([], action))

    def checkpoint(**options: bool) -> None:
        do(lambda bench: refuse_nothing(bench.batch(Checkpoint(**options))))

    batch(one(create("c")))
    batch(one(many(0, 5)), one(many(5, 10)), one(many(10, 12)))
    do(lambda bench: bench.shard.maintain(bench.now_ms, 5))
    batch(one(many(3, 20), delete("r000")))
    batch(prepare("ours", 0, many(20, 24)), prepare("theirs", 1, put("other")), one(put("r001")))
    checkpoint()
    batch(one(put("r002"), delete("r004")))
    do(lambda bench: refuse_nothing([bench.ask(Get(collection="c", ids=["r001"], snapshot=later(bench)))]))
    batch(Decide("ours", 1 << 62), one(put("r030")))
    checkpoint(index=True)
    batch(Finish("theirs", 1 << 62))
    batch(prepare("aborted", 0, delete("r001")))
    batch(AbortTransaction("aborted"), one(put("r031")))
    batch(one(create("d")), one(create("e")))
    batch(one(put("a", "b", collection="d"), put("a", collection="e"), many(0, 8)))
    batch(one(SetAlias("also", "d")))
    checkpoint()
    batch(one(many(0, 12)))
    do(lambda bench: bench.pass_time(5000))
    checkpoint(compact=True)
    batch(one(DropCollection("e")), one(put("c", collection="d")))
    do(lambda bench: bench.pass_time(5000))
    do(lambda bench: bench.shard.maintain(bench.now_ms, 5))
    batch(one(many(40, 60)))
    checkpoint(index=True)
    batch(one(many(50, 70), delete("r055")))
    do(lambda bench: bench.reopen())
    batch(one(put("r070")), one(put("r071", "r072")))
    do(lambda bench: bench.crash())
    batch(one(put("r073")))
    checkpoint()
    batch(prepare("open", 0, put("r074")), one(delete("r060", "r061")))
    return made


def refuse_nothing(answers: list[Any]) -> list[Any]:
    """Return answers, none of which may be a refusal."""
    for answer in answers:
        if isinstance(answer, Refused):
            raise answer.error
    return answers


def later(bench: Bench) -> int:
    """A snapshot that the clock's ceiling has to be raised for."""
    return (bench.now_ms + 400) << 16


@cache
def models(until: int, part: int = 0) -> Model:
    """What is held after ``until`` steps, and ``part`` requests of the next. Not to be changed."""
    model = Model()
    every = steps()
    for step in every[:until]:
        for request in step.requests:
            model.apply(request)
    for request in every[until].requests[:part] if part else ():
        model.apply(request)
    return model


def real(requests: list[Request], prepared_at: dict[str, int]) -> Iterator[Request]:
    """Put the commit timestamps into decisions, which are only known once all have prepared."""
    for request in requests:
        match request:
            case Decide(txn_id=txn_id):
                yield Decide(txn_id, prepared_at[txn_id])
            case Finish(txn_id=txn_id, commit_ts=ts):
                yield Finish(txn_id, prepared_at[txn_id] if ts else 0)
            case _:
                yield request


def main(folder: Path, marks: Path) -> None:
    """Do all steps, saying where it is."""
    fd = os.open(marks, os.O_WRONLY | os.O_CREAT)
    bench = Bench(folder, **CONFIG)
    prepared_at: dict[str, int] = {}
    for number, step in enumerate(steps()):
        os.write(fd, f"B {number}\n".encode())
        stamps: list[int] = []
        if step.action is not None:
            step.action(bench)
        if step.requests:
            answers = refuse_nothing(bench.batch(*real(step.requests, prepared_at)))
            for request, answer in zip(step.requests, answers, strict=True):
                if isinstance(request, Prepare):
                    prepared_at[request.txn.txn_id] = answer.prepare_ts
                stamps.append(answer.commit_ts if isinstance(answer, Committed) else 0)
        bench.pass_time(10)
        os.write(fd, f"A {number} {' '.join(map(str, stamps))}\n".encode())
    os.write(fd, f"{FINISHED}\n".encode())
    os._exit(0)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
