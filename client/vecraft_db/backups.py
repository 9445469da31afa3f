"""Backups of an embedded database: a copy of its root, made at one moment, that proves itself.

::

    backup/
      backup.json        format, version, when, and for every file: length and SHA-256; a checksum over all of it
      vecraft.json       as in the root
      shard-0000/ …      the shards' files after a checkpoint, without LOCK, BALLAST and lease

*Backup*: all shards' writers are held, each shard makes a checkpoint, the files are copied. Holding all of them at once
makes the copy one consistent cut: a distributed transaction is in it as it was, and if undecided then, it is decided as
after a crash. Every file is hashed while it is read and again after it was written and synced.

*Restore*: the backup is verified and copied to ``restore.partial`` inside the root, which is then renamed to
``restore.ready``: that rename is the point of no return. Then the old files are removed and the new ones moved into
place by :func:`vecraft_cluster.root.finish_restore`, which every start calls, should a crash have come in between.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Protocol

from vecraft_cluster.lease import LEASE_FOLDER
from vecraft_cluster.root import (
    READY,
    ROOT_FILE,
    RootState,
    finish_restore,
    shard_path,
    sync_directory,
    write_root,
)
from vecraft_data_model.errors import CorruptionError, InvalidDataException, StorageFailureException
from vecraft_data_model.messages import Batch, BatchReply, Checkpoint, Refused
from vecraft_shard.ballast import BALLAST
from vecraft_shard.disk import LOCK_NAME, lock_directory

MANIFEST = "backup.json"
FORMAT = "vecraftdb-backup"
VERSION = 1
PARTIAL = "restore.partial"
_CHECKPOINT_TIMEOUT_S = 3600.0
_CHUNK = 1 << 20
_NOT_COPIED = (LOCK_NAME, BALLAST)
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,127}", re.ASCII)


class Pausable(Protocol):
    """A shard whose files can be copied: in this process, or an actor."""

    def execute(self, batch: Batch, timeout: float) -> BatchReply:
        """As :meth:`vecraft_data_model.ports.ShardPort.execute`."""
        ...

    def paused(self) -> AbstractContextManager[object]:
        """Keep writers and maintenance waiting while the body runs."""
        ...


def copy_root(root: Path, state: RootState, hosts: Mapping[int, Pausable], target: Path) -> dict[str, Any]:
    """Write a backup of a running database into a new or empty directory and return its manifest.

    Raises:
        InvalidDataException: The directory is not empty.
        CorruptionError: What was read back is not what was written.
        StorageFailureException: The disk failed, or a shard could not make its checkpoint.
    """
    try:
        target.mkdir(parents=True, exist_ok=True)
        if any(target.iterdir()):
            raise InvalidDataException(f"a backup is written into a new or empty directory; {target} is not empty")
        files: dict[str, dict[str, Any]] = {}
        with ExitStack() as held:
            for shard in sorted(hosts):
                _checkpoint(hosts[shard])  # most of the work, while writers may go on
            for shard in sorted(hosts):
                held.enter_context(hosts[shard].paused())
            for shard in sorted(hosts):
                for source in _files(shard_path(root, shard)):
                    name = source.relative_to(root).as_posix()
                    files[name] = _copy(source, target / name)
        write_root(target, state)
        files[ROOT_FILE] = _fingerprint(target / ROOT_FILE)
        manifest = {
            "format": FORMAT,
            "version": VERSION,
            "created": datetime.now(UTC).isoformat(timespec="milliseconds"),
            "database_id": state.database_id,
            "shards": state.shards,
            "bytes": sum(entry["bytes"] for entry in files.values()),
            "files": files,
        }
        for name, entry in files.items():
            if _fingerprint(target / name) != entry:
                raise CorruptionError(f"{target / name} does not hold what was written to it", file=name)
        _write_manifest(target, manifest)
        _sync_tree(target)
    except OSError as error:
        raise StorageFailureException(f"the backup to {target} failed: {error}", errno=error.errno) from error
    return manifest


def place_for(directory: Path, given: str | None) -> Path:
    """Return where in ``directory`` a backup that somebody else asks for is written.

    Args:
        directory: What the operator has set apart for backups.
        given: A name, or the path of that name in ``directory``; None: a name made of the time.

    Raises:
        InvalidDataException: It is not one plain name inside ``directory``.
    """
    directory = directory.expanduser().absolute()
    if given is None:
        return directory / datetime.now(UTC).strftime("backup-%Y%m%dT%H%M%S.%fZ")
    name = given.removeprefix(f"{directory}{os.sep}")
    if _NAME.fullmatch(name) is None:
        raise InvalidDataException(
            "a backup's path must be one name of up to 128 ASCII letters, digits, '_', '.' and '-' "
            f"(a letter or digit first), in the gateway's backup directory; got {given[:100]!r}"
        )
    return directory / name


def read_backup(path: Path) -> dict[str, Any]:
    """Verify every file of a backup and return its manifest.

    Raises:
        InvalidDataException: That is no backup.
        CorruptionError: A file is missing, damaged, or too much.
    """
    file = path / MANIFEST
    if not file.is_file():
        raise InvalidDataException(f"{path} is not a backup: it has no {MANIFEST}")
    try:
        manifest: dict[str, Any] = json.loads(file.read_bytes())
        claimed = manifest.pop("checksum")
        if claimed != _checksum(manifest):
            raise CorruptionError(f"{file} does not match its checksum", file=str(file))
        if manifest["format"] != FORMAT or manifest["version"] != VERSION:
            raise CorruptionError(
                f"{file}: this program reads {FORMAT} version {VERSION}, "
                f"not {manifest['format']!r} version {manifest['version']!r}",
                file=str(file),
            )
        files: dict[str, dict[str, Any]] = manifest["files"]
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise CorruptionError(f"{file} is damaged: {error!r}", file=str(file)) from error
    for name, entry in files.items():
        member = path / name
        if not _is_inside(name):
            raise CorruptionError(f"{file} names a file outside of the backup: {name!r}", file=name)
        if not member.is_file():
            raise CorruptionError(f"{member} is missing from the backup", file=name)
        if _fingerprint(member) != entry:
            raise CorruptionError(f"{member} does not match the backup's manifest", file=name)
    return manifest


def replace_root(root: Path, backup: Path, close_files: Callable[[], None]) -> dict[str, Any]:
    """Put a backup in the place of the database in ``root`` and return its manifest.

    Args:
        root: The data directory.
        backup: The backup.
        close_files: Called when the backup is verified and copied, and only the exchange is left to do.

    Raises:
        InvalidDataException: That is no backup.
        CorruptionError: It is damaged; nothing was changed.
        StorageFailureException: The disk failed.
    """
    manifest = read_backup(backup)
    partial = root / PARTIAL
    try:
        shutil.rmtree(partial, ignore_errors=True)
        for name, entry in manifest["files"].items():
            if _copy(backup / name, partial / name) != entry:
                raise CorruptionError(f"{backup / name} changed while it was restored", file=name)
        _sync_tree(partial)
        close_files()
        with lock_directory(root):
            partial.rename(root / READY)
            sync_directory(root)
    except OSError as error:
        raise StorageFailureException(f"restoring {backup} failed: {error}", errno=error.errno) from error
    finish_restore(root)
    return manifest


def _checkpoint(host: Pausable) -> None:
    reply = host.execute(Batch([Checkpoint()]), _CHECKPOINT_TIMEOUT_S)
    answer = reply.responses[0]
    if isinstance(answer, Refused):
        raise answer.error


def _files(folder: Path) -> Iterator[Path]:
    for path in sorted(folder.rglob("*")):
        if path.is_file() and path.name not in _NOT_COPIED and path.parent.name != LEASE_FOLDER:
            yield path


def _is_inside(name: str) -> bool:
    return not name.startswith("/") and not {"", ".", ".."} & set(name.split("/"))


def _copy(source: Path, target: Path) -> dict[str, Any]:
    """Copy a file, durably, and return the fingerprint of what was read."""
    target.parent.mkdir(parents=True, exist_ok=True)
    digest, size = hashlib.sha256(), 0
    with source.open("rb") as reading, target.open("wb") as writing:
        while chunk := reading.read(_CHUNK):
            digest.update(chunk)
            size += len(chunk)
            writing.write(chunk)
        writing.flush()
        os.fsync(writing.fileno())
    return {"bytes": size, "sha256": digest.hexdigest()}


def _fingerprint(file: Path) -> dict[str, Any]:
    with file.open("rb") as reading:
        digest = hashlib.file_digest(reading, "sha256")
        return {"bytes": reading.tell(), "sha256": digest.hexdigest()}


def _checksum(manifest: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(manifest, sort_keys=True).encode()).hexdigest()


def _write_manifest(target: Path, manifest: dict[str, Any]) -> None:
    with (target / MANIFEST).open("wb") as writing:
        writing.write(json.dumps(manifest | {"checksum": _checksum(manifest)}, indent=1).encode() + b"\n")
        writing.flush()
        os.fsync(writing.fileno())


def _sync_tree(top: Path) -> None:
    for folder in [top, *(path for path in top.rglob("*") if path.is_dir())]:
        sync_directory(folder)
    sync_directory(top.parent)
