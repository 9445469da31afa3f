"""A shard whose lease ran out works and answers nothing; real processes that are stopped and go on too late."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import lease_child
import pytest
import standing_still
from lease_child import request_for

from vecraft_cluster.host import ShardHost
from vecraft_cluster.lease import Lease, LeaseFolder
from vecraft_data_model.errors import ShardUnavailableError, StorageFailureException
from vecraft_data_model.messages import Batch, Committed, Count, CountReply, Request, Response
from vecraft_shard.disk import OsDisk
from vecraft_shard.recovery import raise_epoch

LEASE_S = 1.0


class Clock:
    """Time that the test lets pass."""

    now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def lease(tmp_path: Path, clock: Clock) -> Lease:
    made = Lease(LeaseFolder(tmp_path / "lease"), clock, "here")
    assert made.try_acquire()
    return made


@pytest.fixture
def host(tmp_path: Path, lease: Lease, clock: Clock) -> Iterator[ShardHost]:
    """A shard with one collection and one record."""
    host = ShardHost(OsDisk(tmp_path), 0, lease=lease, maintenance=False)
    try:
        for command in (("create", "c"), ("write", "a")):
            assert isinstance(ask(host, request_for(*command)), Committed)
        yield host
    finally:
        clock.now = 0.0
        host.kill()


def ask(host: ShardHost, request: Request) -> Response:
    return host.execute(Batch([request]), 60.0).responses[0]


def test_without_a_valid_lease_nothing_is_read_written_or_maintained(
    host: ShardHost, lease: Lease, clock: Clock
) -> None:
    clock.now += 100
    for request in (Count(collection="c"), request_for("write", "b")):
        with pytest.raises(ShardUnavailableError, match="lease") as refusal:
            ask(host, request)
        assert refusal.value.details["outcome"] == "not done"
    with pytest.raises(ShardUnavailableError, match="lease"):
        host.maintain_once()
    assert lease.renew()
    reply = ask(host, Count(collection="c"))
    assert isinstance(reply, CountReply)
    assert reply.count == 1, "what was refused as not done was not done"


@pytest.mark.parametrize(
    ("request_", "outcome"), [(Count(collection="c"), "not done"), (request_for("write", "b"), "unknown")]
)
def test_an_answer_that_comes_too_late_is_not_given(
    host: ShardHost, clock: Clock, monkeypatch: pytest.MonkeyPatch, request_: Request, outcome: str
) -> None:
    """The process is stopped right after the shard has done its work."""
    execute = host.shard.execute

    def stopped(*arguments: Any) -> list[Response]:
        answers = execute(*arguments)
        clock.now += 100
        return answers

    monkeypatch.setattr(host.shard, "execute", stopped)
    with pytest.raises(ShardUnavailableError, match="lease") as refusal:
        ask(host, request_)
    assert refusal.value.details["outcome"] == outcome


def test_a_shard_that_may_have_been_replaced_leaves_the_files_alone(
    tmp_path: Path, host: ShardHost, clock: Clock
) -> None:
    files = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    clock.now += 100
    host.close()
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == files


def test_a_broken_shard_is_not_opened_again_without_a_lease(host: ShardHost, clock: Clock) -> None:
    host._broken = RuntimeError("a defect")
    clock.now += 100
    with pytest.raises(ShardUnavailableError, match="lease"):
        ask(host, Count(collection="c"))


class Child:
    """A process that runs a shard under a lease (see ``lease_child``)."""

    def __init__(self, directory: Path) -> None:
        command = [sys.executable, lease_child.__file__, str(directory), "elsewhere", str(LEASE_S)]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        assert self.hear() == "ready"

    def tell(self, line: str) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(line + "\n")
        self.process.stdin.flush()

    def insist(self, line: str) -> None:
        """Tell it until it is done: whoever has to wait long for its turn, or for the disk, loses so short a lease."""
        said = ""
        while said != "Committed":
            self.tell(line)
            said = self.hear()
            assert said == "Committed" or said.startswith("refused not done"), said

    def hear(self) -> str:
        assert self.process.stdout is not None
        return self.process.stdout.readline().strip()


@contextmanager
def child(directory: Path) -> Iterator[Child]:
    made = Child(directory)
    try:
        yield made
    finally:
        made.process.kill()
        made.process.communicate()


def test_a_stopped_process_answers_nothing_once_it_was_replaced(tmp_path: Path) -> None:
    with child(tmp_path) as old:
        for line in ("create c", "write a"):
            old.insist(line)
        standing_still.stop(old.process.pid)
        for line in ("count c", "write late", "count c"):  # on their way when it is stopped
            old.tell(line)
        # The new owner. It opens no files here: SQLite's locks hold it off on one machine, as they would not on two.
        lease = Lease(LeaseFolder(tmp_path / "lease"), kernel="here", lease_s=60.0, takeover_s=1.25 * LEASE_S)
        lease.acquire(60.0)
        raise_epoch(OsDisk(tmp_path))
        os.kill(old.process.pid, signal.SIGCONT)
        heard = list(iter(old.hear, ""))
        assert all(line.startswith("refused not done") for line in heard), heard
        assert old.process.wait(60) == 77, "it ended by itself"
        assert lease.renew()


def test_a_stopped_process_that_nobody_replaced_goes_on(tmp_path: Path) -> None:
    with child(tmp_path) as only:
        only.insist("create c")
        standing_still.stop(only.process.pid)
        watcher = Lease(LeaseFolder(tmp_path / "lease"), kernel="here", lease_s=LEASE_S, takeover_s=3600.0)
        with pytest.raises(StorageFailureException, match="another machine"):
            watcher.acquire(1.1 * LEASE_S)  # longer than the lease, shorter than the wait
        os.kill(only.process.pid, signal.SIGCONT)
        only.insist("write a")
