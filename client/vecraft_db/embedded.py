"""The embedded database: shards, router and runner in this process, no daemon.

Opening, in order: the root's state (made if new) → each shard's directory locked → each shard recovered and put on its
threads → a router over all of them. Closing undoes that in reverse, with a checkpoint of every shard. A database that
nobody closes is closed when the interpreter ends.

``:memory:`` is the same with disks that live in memory: nothing is locked, nothing is left behind.
"""

from __future__ import annotations

import asyncio
import atexit
import dataclasses
import os
import random
import threading
import weakref
from collections.abc import Generator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

from vecraft_cluster.host import ShardHost, port_lookup
from vecraft_cluster.root import RootState, SystemClock, mark_peopled, new_root, open_root, shard_path
from vecraft_data_model.errors import InvalidDataException, ShardUnavailableError
from vecraft_data_model.ports import Disk
from vecraft_db.backups import copy_root, replace_root
from vecraft_db.client.engine import Runner, refuse_closed
from vecraft_db.config import Settings, shard_config
from vecraft_router.config import RouterConfig
from vecraft_router.router import Router
from vecraft_router.runners import SyncRunner
from vecraft_router.session import SessionTokens
from vecraft_shard.disk import DirectoryLock, MemoryDisk, OsDisk, lock_directory

T = TypeVar("T")
Flow = Generator[Any, Any, T]

MEMORY = ":memory:"
ASYNC_THREADS = 32
"""Flows of asynchronous callers under way at once; further ones wait for a thread."""


class EmbeddedEngine:
    """An engine over shards in this process.

    Args:
        root: The data directory; None for memory.
        settings: Shards of a new root, durability, timeouts and the like.

    Attributes:
        router: Makes the flows; the same for as long as the engine lives.
        tokens: Seals cursors and session tokens.
        state: Cluster map and secret of the root.
        hosts: The shards, by number.

    Raises:
        InvalidDataException: The root has another number of shards, or is a directory of something else.
        StorageFailureException: It is in use by another process, or cannot be read.
        CorruptionError: Its files are damaged.
    """

    def __init__(self, root: Path | None, settings: Settings) -> None:
        self._root = root
        self._settings = settings
        self._shard_config = shard_config(settings)
        self._clock = SystemClock()
        self._lock = threading.RLock()
        self._directories: list[DirectoryLock] = []
        self._threads: ThreadPoolExecutor | None = None
        self._closed = False
        self.hosts: dict[int, ShardHost] = {}
        self.state = self._open_shards(settings.shards)
        self.tokens = SessionTokens(self.state.secret)
        config = RouterConfig(timeout_s=settings.timeout, max_clock_skew_ms=settings.max_clock_skew_ms)
        self.router = Router(self.state.cluster_map, self._clock, random.Random(), config)
        self._runner = SyncRunner(self.router, self.hosts)
        self.run: Runner = self._runner.run
        # A shard that was killed starts its clock ahead of the wall clock. A router that has heard of it sees at once
        # what was committed there; one that has not would read below that for a moment.
        self.run(self.router.status())
        _open_engines.add(self)

    async def run_async(self, flow: Flow[T]) -> T:
        """Run a flow on a thread of this engine's."""
        with self._lock:
            if self._closed:
                raise ShardUnavailableError("this database is closed")
            if self._threads is None:
                self._threads = ThreadPoolExecutor(ASYNC_THREADS, thread_name_prefix="vecraft-async")
            threads = self._threads
        return await asyncio.get_running_loop().run_in_executor(threads, self.run, flow)

    def describe(self) -> dict[str, Any]:
        """Say where the database is."""
        return {"kind": "embedded", "root": MEMORY if self._root is None else str(self._root)}

    def backup(self, path: str | os.PathLike[str]) -> dict[str, Any]:
        """Write a consistent, verified copy into a new or empty directory; writes wait meanwhile, reads do not.

        Raises:
            InvalidDataException: The directory is not empty, or the database is in memory.
            CorruptionError: What was read back is not what was written.
            StorageFailureException: The disk failed.
        """
        with self._lock:
            return copy_root(self._with_files("backup"), self.state, self.hosts, Path(path))

    def restore(self, path: str | os.PathLike[str]) -> dict[str, Any]:
        """Replace the whole database by a backup, after verifying it.

        Calls that come while files are exchanged wait for the restored database. A crash in between leaves either the
        old database or the new one, which the next start completes.

        Raises:
            InvalidDataException: That is no backup, or the database is in memory.
            CorruptionError: The backup is damaged; the database is as before.
        """
        root = self._with_files("restore")
        with self._lock:
            try:
                return replace_root(root, Path(path), self._close_shards)
            finally:
                if not self.hosts:
                    self.state = self._open_shards(None)
                    self.tokens = SessionTokens(self.state.secret)
                    # Clients hold this router: it stays. Its clock has only moved forward, and the shards' will follow.
                    self.router.state.cluster_map = self.state.cluster_map

    def close(self) -> None:
        """Close all shards, each with a checkpoint. Closing twice does nothing."""
        with self._lock:
            if self._closed:
                return
            self._closed = True
            self.run = refuse_closed
            _open_engines.discard(self)
            if self._threads is not None:
                self._threads.shutdown(wait=True)
            self._runner.close()
            self._close_shards()

    def _with_files(self, what: str) -> Path:
        if self._closed:
            raise ShardUnavailableError("this database is closed")
        if self._root is None:
            raise InvalidDataException(f"a database in memory has no files: {what}() needs root= to be a directory")
        return self._root

    def _open_shards(self, shards: int | None) -> RootState:
        state = new_root(shards or 1) if self._root is None else open_root(self._root, shards)
        try:
            disks = [self._disk(shard) for shard in range(state.shards)]
            peers = port_lookup(self.hosts)
            config = dataclasses.replace(self._shard_config, must_exist=state.peopled)
            for shard, disk in enumerate(disks):
                self.hosts[shard] = ShardHost(disk, shard, config, peers, self._clock)
            if self._root is not None and not state.peopled:
                state = mark_peopled(self._root)
        except BaseException:
            self._close_shards()
            raise
        return state

    def _disk(self, shard: int) -> Disk:
        if self._root is None:
            return MemoryDisk()
        path = shard_path(self._root, shard)
        self._directories.append(lock_directory(path))
        return OsDisk(path)

    def _close_shards(self) -> None:
        """Close every shard and give up every directory, also when one of them fails; then raise the first failure."""
        errors: list[Exception] = []
        for host in self.hosts.values():
            try:
                host.close()
            except Exception as error:
                errors.append(error)
        self.hosts.clear()
        for directory in self._directories:
            directory.close()
        self._directories.clear()
        if errors:
            raise errors[0]


def open_embedded(settings: Settings, root: str) -> EmbeddedEngine:
    """Open or make the database in a directory, or one in memory (``":memory:"``)."""
    return EmbeddedEngine(None if root == MEMORY else Path(root).expanduser(), settings)


_open_engines: weakref.WeakSet[EmbeddedEngine] = weakref.WeakSet()


def _close_all() -> None:
    """Threads of shards must not run while the interpreter is taken apart: some are in C++ code then."""
    for engine in list(_open_engines):
        engine.close()


atexit.register(_close_all)
