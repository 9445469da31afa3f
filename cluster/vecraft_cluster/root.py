"""The data directory of a database: made once, opened by an embedded process or by a Ray cluster alike.

::

    root/
      vecraft.json      format, version, database id, shard of every slot, map epoch, secret, whether the shards were
                        opened before; a checksum over all of it
      shard-0000/       one directory per shard, owned by one process at a time (its LOCK)
      shard-0001/
      restore.ready/    only while a restore is being finished

``vecraft.json`` is replaced as a whole: written beside, synced, renamed, and the directory synced. It is the durable
home of the cluster map; its epoch only rises. The slots stand in it run-length encoded: ``[[shard, how many], …]``.

This module starts nothing and locks nothing: whoever runs a shard locks that shard's directory.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import shutil
import time
from collections.abc import Sequence
from hashlib import sha256
from itertools import groupby
from pathlib import Path
from typing import Any

import msgspec

from vecraft_data_model.errors import CorruptionError, InvalidDataException, StorageFailureException
from vecraft_data_model.placement import MAX_SHARDS, ClusterMap, initial_map
from vecraft_shard.disk import lock_directory

ROOT_FILE = "vecraft.json"
READY = "restore.ready"
"""A whole root that is to take the place of the one it stands in: a restore past its point of no return."""

FORMAT = "vecraftdb-root"
VERSION = 1
_OLD_IS_GONE = "old-is-gone"


class SystemClock:
    """The machine's own time (a :class:`vecraft_data_model.ports.Clock`)."""

    __slots__ = ()

    def now_ms(self) -> int:
        """Milliseconds since the Unix epoch."""
        return time.time_ns() // 1_000_000

    monotonic = staticmethod(time.monotonic)


class RootState(msgspec.Struct, frozen=True):
    """What ``vecraft.json`` says.

    Attributes:
        database_id: Random, chosen when the root was made; hexadecimal.
        cluster_map: The shard of every slot, and the map's epoch.
        secret: Signs session tokens; never leaves the machine.
        peopled: Whether every shard has opened its directory once. From then on an empty one has lost its files.
    """

    database_id: str
    cluster_map: ClusterMap
    secret: bytes
    peopled: bool = False

    @property
    def shards(self) -> int:
        """How many shards the root has."""
        return self.cluster_map.shard_count


def shard_path(root: Path, shard: int) -> Path:
    """Return the directory of a shard."""
    return root / f"shard-{shard:04d}"


def check_shard_count(shards: object) -> int:
    """Return ``shards`` if a root can have so many.

    Raises:
        InvalidDataException: It is not an integer from 1 to 1024.
    """
    if isinstance(shards, bool) or not isinstance(shards, int) or not 1 <= shards <= MAX_SHARDS:
        raise InvalidDataException(f"shards must be an integer from 1 to {MAX_SHARDS}, got {shards!r}")
    return shards


def new_root(shards: int) -> RootState:
    """Return the state of a database that does not exist yet, with its slots spread evenly."""
    return RootState(secrets.token_hex(16), initial_map(check_shard_count(shards)), secrets.token_bytes(32))


def open_root(root: Path, shards: int | None = None, default_shards: int = 1) -> RootState:
    """Open a data directory, made if it is missing or empty.

    Args:
        root: The directory.
        shards: How many shards it must have; ``None`` takes what is there.
        default_shards: How many a new one gets when ``shards`` is ``None``.

    Raises:
        InvalidDataException: It has another number of shards, or is a directory of something else.
        CorruptionError: ``vecraft.json`` is damaged, missing beside shards, or of a later version.
        StorageFailureException: It cannot be read or made.
    """
    wanted = None if shards is None else check_shard_count(shards)
    file = root / ROOT_FILE
    finish_restore(root)
    try:
        root.mkdir(parents=True, exist_ok=True)
        if not file.exists():
            _refuse_foreign(root)
            _write(root, new_root(wanted or default_shards), replace=False)
        state = read_root(root)
    except OSError as error:
        raise StorageFailureException(f"cannot open {root}: {error}", path=str(root), errno=error.errno) from error
    if wanted is not None and wanted != state.shards:
        raise InvalidDataException(
            f"{root} has {state.shards} shard(s), but shards={wanted} was asked for; leave it out to open what is",
            shards=state.shards,
        )
    return state


def read_root(root: Path) -> RootState:
    """Read and verify ``vecraft.json``.

    Raises:
        CorruptionError: It does not say what was written.
        OSError: It cannot be read.
    """
    file = root / ROOT_FILE
    data = file.read_bytes()
    try:
        content = json.loads(data)
        claimed = content.pop("checksum")
        if content["format"] != FORMAT:
            raise CorruptionError(f"{file} is no VecraftDB root: its format is {content['format']!r}", file=file.name)
        if content["version"] != VERSION:
            raise CorruptionError(
                f"{file} has format version {content['version']!r}; this program reads version {VERSION}",
                file=file.name,
            )
        if claimed != _checksum(content):
            raise CorruptionError(f"{file} does not match its checksum", file=str(file))
        slots = [int(shard) for shard, length in content["slots"] for _ in range(length)]
        cluster_map = ClusterMap(epoch=content["epoch"], slots=slots, shard_count=content["shards"])
        secret = bytes.fromhex(content["secret"])
        return RootState(content["database_id"], cluster_map, secret, bool(content["peopled"]))
    except (ValueError, TypeError, KeyError, AttributeError, InvalidDataException) as error:
        raise CorruptionError(f"{file} is damaged: {error!r}", file=str(file)) from error


def save_map(root: Path, cluster_map: ClusterMap) -> RootState:
    """Make a newer cluster map durable, and return the new state.

    Raises:
        InvalidDataException: Its epoch is not above the present one's.
    """
    present = read_root(root)
    if cluster_map.epoch <= present.cluster_map.epoch:
        raise InvalidDataException(
            f"the map's epoch must be above {present.cluster_map.epoch}, got {cluster_map.epoch}"
        )
    state = msgspec.structs.replace(present, cluster_map=cluster_map)
    _write(root, state, replace=True)
    return state


def mark_peopled(root: Path) -> RootState:
    """Note durably that every shard has opened its directory, and return the new state."""
    state = msgspec.structs.replace(read_root(root), peopled=True)
    _write(root, state, replace=True)
    return state


def write_root(root: Path, state: RootState) -> None:
    """Write ``vecraft.json`` into a directory that has none (a backup); durable on return."""
    _write(root, state, replace=False)


def finish_restore(root: Path) -> None:
    """Put ``restore.ready`` in the place of what is in the root; nothing happens if there is none.

    First the old files are removed, then a mark is made, then the new ones are moved: so it can be interrupted anywhere
    and begun again.

    Raises:
        StorageFailureException: The disk failed (begin again), or another process is doing it.
    """
    ready = root / READY
    if not ready.is_dir():
        return
    with lock_directory(root):
        try:
            mark = ready / _OLD_IS_GONE
            if ready.is_dir() and not mark.exists():
                (root / ROOT_FILE).unlink(missing_ok=True)
                for entry in root.glob("shard-*"):
                    shutil.rmtree(entry)
                sync_directory(root)
                mark.touch()
                sync_directory(ready)
            if ready.is_dir():
                for entry in sorted(ready.iterdir(), key=lambda entry: entry.name == ROOT_FILE):
                    if entry != mark:
                        entry.rename(root / entry.name)
                sync_directory(root)
                shutil.rmtree(ready)
                sync_directory(root)
        except OSError as error:
            raise StorageFailureException(
                f"finishing a restore in {root} failed: {error}", path=str(root), errno=error.errno
            ) from error


def sync_directory(folder: Path) -> None:
    """Make the names in a directory durable."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _refuse_foreign(root: Path) -> None:
    """A root without its file must be empty: anything else is not ours to fill, or has lost its map."""
    names = sorted(name for name in os.listdir(root) if not name.startswith((".", ROOT_FILE)) and name != "LOCK")
    if any(name.startswith("shard-") for name in names):
        raise CorruptionError(f"{root} has shards but no {ROOT_FILE}: restore that file from a backup", file=str(root))
    if names:
        raise InvalidDataException(
            f"{root} is neither empty nor a VecraftDB root (it holds {names[0]!r}): choose another directory"
        )


def _content(state: RootState) -> dict[str, Any]:
    return {
        "format": FORMAT,
        "version": VERSION,
        "database_id": state.database_id,
        "shards": state.shards,
        "epoch": state.cluster_map.epoch,
        "slots": _runs(state.cluster_map.slots),
        "secret": state.secret.hex(),
        "peopled": state.peopled,
    }


def _runs(slots: Sequence[int]) -> list[list[int]]:
    return [[shard, len(list(run))] for shard, run in groupby(slots)]


def _checksum(content: dict[str, Any]) -> str:
    return sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _write(root: Path, state: RootState, *, replace: bool) -> None:
    content = _content(state)
    content["checksum"] = _checksum(_content(state))
    temporary = root / f"{ROOT_FILE}.{os.getpid()}.{secrets.token_hex(4)}"
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        with os.fdopen(descriptor, "wb") as out:
            out.write(json.dumps(content, indent=2).encode() + b"\n")
            out.flush()
            os.fsync(out.fileno())
        if replace:
            os.replace(temporary, root / ROOT_FILE)
        else:
            # A link fails if somebody else was first; then theirs counts, and both go on with it.
            with contextlib.suppress(FileExistsError):
                os.link(temporary, root / ROOT_FILE)
            temporary.unlink()
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    sync_directory(root)
