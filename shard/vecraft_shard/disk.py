"""Disks: one directory of the operating system, or one in memory, behind the ports ``Disk`` and ``File``.

Invariants:

* Every failure of the operating system becomes a :class:`StorageFailureException` that names the file and carries
  ``details["errno"]``; a short write is continued, never reported as done. A full disk, or quota, is told apart as
  :class:`StorageFullError`: what was there before is still there, though a part of a write may stand behind it. A sync
  that fails for want of room is none of those: nobody knows what it has written.
* A file that was made, and every directory made for it, has its name synced before ``open`` returns; a rename before
  ``rename`` returns. What is *in* a file is durable after ``File.sync`` and not before. Removals are durable after
  ``sync_directory``.
* Files are written by position and mapped read-only, never written through a map: a full or failing disk is an error
  that can be caught, not a signal that kills the process.
* Names stay inside the directory: absolute names and ``..`` are refused.

It deliberately does no caching, no checksums (:mod:`vecraft_shard.wal`, :mod:`vecraft_shard.store`), and no locking
between threads: one writer per file; readers use ``map`` and ``pread``, which are safe beside it. Nobody may cut a file
that others still read beyond the cut: the operating system answers that with a bus error.
"""

from __future__ import annotations

import errno
import fcntl
import mmap
import os
import shutil
from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from types import TracebackType

import numpy as np
import numpy.typing as npt

from vecraft_data_model.errors import InvalidDataException, StorageFailureException, StorageFullError
from vecraft_data_model.ports import File

ByteArray = npt.NDArray[np.uint8]

LOCK_NAME = "LOCK"
_LOCK_TEXT_BYTES = 16

NO_ROOM = frozenset({errno.ENOSPC, errno.EDQUOT})
"""What the operating system says when a disk, or a quota, is full."""

_NO_PROMISES = frozenset({errno.EOPNOTSUPP, errno.EINVAL, errno.ENOSYS})
"""What a file system says that cannot set room aside."""


def failure(action: str, path: str | Path, error: OSError) -> StorageFailureException:
    """Return the error for a failed system call: what was tried, on which file, and why it failed."""
    kind = StorageFullError if error.errno in NO_ROOM else StorageFailureException
    return kind(f"cannot {action} {path}: {error.strerror or error}", path=str(path), errno=error.errno or 0)


def _sync_failure(path: Path, error: OSError) -> StorageFailureException:
    # Never StorageFullError: that would say that nothing has happened.
    return StorageFailureException(
        f"cannot sync {path}: {error.strerror or error}", path=str(path), errno=error.errno or 0
    )


def _checked(name: str) -> str:
    """Return ``name`` if it is relative and stays below its directory."""
    if name.startswith("/") or "\0" in name or ".." in PurePosixPath(name).parts:
        raise InvalidDataException(f"file name {name!r} is not a relative path below its directory", name=name)
    return name


def _sync_directory(path: Path) -> None:
    try:
        fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)
    except OSError as error:
        raise _sync_failure(path, error) from error


def _make_directory(path: Path) -> None:
    """Make a directory and its parents; the name of each one made is durable on return."""
    missing: list[Path] = []
    while not path.is_dir():
        missing.append(path)
        if path.parent == path:
            break
        path = path.parent
    for folder in reversed(missing):
        try:
            folder.mkdir(exist_ok=True)
        except OSError as error:
            raise failure("make directory", folder, error) from error
        _sync_directory(folder.parent)


class OsFile:
    """An open file of the operating system (see :class:`vecraft_data_model.ports.File`)."""

    def __init__(self, path: Path) -> None:
        """Open ``path`` for reading and writing, made empty and durably named if it is missing.

        Raises:
            StorageFailureException: The file cannot be opened or made.
        """
        self._path = path
        flags = os.O_RDWR | os.O_CLOEXEC
        try:
            try:
                self._fd = os.open(path, flags)
            except FileNotFoundError:
                _make_directory(path.parent)
                self._fd = os.open(path, flags | os.O_CREAT, 0o644)
                try:
                    _sync_directory(path.parent)
                except BaseException:
                    self.close()
                    raise
        except OSError as error:
            raise failure("open", path, error) from error

    def pwrite(self, data: bytes | memoryview, offset: int) -> None:
        """Write all of ``data`` at ``offset``. Raises StorageFailureException; part of it may then be written."""
        try:
            written = os.pwrite(self._fd, data, offset)
            size = data.nbytes if isinstance(data, memoryview) else len(data)
            if written < size:
                rest = memoryview(data).cast("B")
                while written < size:
                    count = os.pwrite(self._fd, rest[written:], offset + written)
                    if count == 0:
                        raise OSError(errno.EIO, "the device takes no more bytes")
                    written += count
        except OSError as error:
            raise failure("write to", self._path, error) from error

    def pread(self, size: int, offset: int) -> bytes:
        """Read ``size`` bytes, fewer only at the end of the file. Raises StorageFailureException."""
        try:
            data = os.pread(self._fd, size, offset)
            while 0 < len(data) < size:
                more = os.pread(self._fd, size - len(data), offset + len(data))
                if not more:
                    break
                data += more
            return data
        except OSError as error:
            raise failure("read", self._path, error) from error

    def sync(self) -> None:
        """Make the contents and the length durable (fdatasync). Raises StorageFailureException."""
        try:
            if self._fd < 0:  # fdatasync alone answers that with a ValueError
                raise OSError(errno.EBADF, os.strerror(errno.EBADF))
            os.fdatasync(self._fd)
        except OSError as error:
            raise _sync_failure(self._path, error) from error

    def truncate(self, size: int) -> None:
        """Cut the file, or extend it by zeros that take no room yet. Raises StorageFailureException."""
        try:
            os.ftruncate(self._fd, size)
        except OSError as error:
            raise failure("truncate", self._path, error) from error

    def allocate(self, start: int, stop: int) -> None:
        """Take the room for the bytes ``start … stop`` now, so that writing them cannot meet a full disk.

        A file system that copies on write (Btrfs, ZFS) does not keep that promise, and one that knows no such call
        does not make it.

        Raises:
            StorageFullError: There is not that much room.
        """
        if stop <= start:
            return
        size = self.size()
        try:
            os.posix_fallocate(self._fd, start, stop - start)
        except OSError as error:
            if error.errno in _NO_PROMISES:
                return
            self.truncate(size)  # some file systems keep what they could get
            raise failure("take room for", self._path, error) from error

    def size(self) -> int:
        """Length in bytes."""
        try:
            return os.fstat(self._fd).st_size
        except OSError as error:
            raise failure("stat", self._path, error) from error

    def map(self) -> ByteArray:
        """Return a read-only uint8 array over the whole file; later writes below its length show in it."""
        size = self.size()
        if size == 0:
            return _read_only(np.empty(0, dtype=np.uint8))
        try:
            mapped = mmap.mmap(self._fd, size, flags=mmap.MAP_SHARED, prot=mmap.PROT_READ)
        except OSError as error:
            raise failure("map", self._path, error) from error
        return np.frombuffer(mapped, dtype=np.uint8)

    def close(self) -> None:
        """Close; arrays handed out by ``map`` stay valid. Closing twice is harmless."""
        fd, self._fd = self._fd, -1
        if fd >= 0:
            try:
                os.close(fd)
            except OSError as error:
                raise failure("close", self._path, error) from error


class OsDisk:
    """One directory of the operating system (see :class:`vecraft_data_model.ports.Disk`)."""

    def __init__(self, root: Path) -> None:
        """Use ``root``, made if it is missing.

        Raises:
            StorageFailureException: The directory cannot be made.
        """
        self._root = Path(root)
        _make_directory(self._root)

    @property
    def durable(self) -> bool:
        """True: synced files outlive the process."""
        return True

    def open(self, name: str) -> OsFile:
        """Open for reading and writing, made empty if missing, with its parents."""
        return OsFile(self.path(name))

    def exists(self, name: str) -> bool:
        """Whether there is a file of that name."""
        return self.path(name).is_file()

    def list(self, folder: str = "") -> Sequence[str]:
        """Return the full names of the files directly in ``folder``, sorted; empty if there is no such folder."""
        path = self.path(folder)
        prefix = f"{folder.rstrip('/')}/" if folder else ""
        try:
            with os.scandir(path) as entries:
                return sorted(prefix + entry.name for entry in entries if entry.is_file())
        except FileNotFoundError:
            return []
        except OSError as error:
            raise failure("list", path, error) from error

    def remove(self, name: str) -> None:
        """Remove a file, or a folder with all it holds; nothing happens if it is missing."""
        path = self.path(name)
        try:
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            else:
                path.unlink(missing_ok=True)
        except OSError as error:
            raise failure("remove", path, error) from error

    def rename(self, old: str, new: str) -> None:
        """Rename a file over another atomically; the new name is durable on return."""
        source, target = self.path(old), self.path(new)
        _make_directory(target.parent)
        try:
            source.replace(target)
        except OSError as error:
            raise failure("rename", source, error) from error
        _sync_directory(target.parent)
        if source.parent != target.parent:
            _sync_directory(source.parent)

    def sync_directory(self, folder: str = "") -> None:
        """Make the names in ``folder`` durable; nothing happens if there is no such folder."""
        path = self.path(folder)
        if path.is_dir():
            _sync_directory(path)

    def path(self, name: str) -> Path:
        """Return the real path of ``name``."""
        return self._root / _checked(name)


class MemoryFile:
    """A file in memory: a numpy buffer with room to grow.

    An array handed out by ``map`` shares the buffer until the file outgrows it or is cut; from then on it keeps what it
    showed, and newer writes show in newer maps only.
    """

    def __init__(self) -> None:
        self._buffer: ByteArray = np.zeros(0, dtype=np.uint8)
        self._size = 0

    def pwrite(self, data: bytes | memoryview, offset: int) -> None:
        """Write all of ``data`` at ``offset``, extending the file if need be."""
        source = np.frombuffer(data, dtype=np.uint8)
        end = offset + source.size
        if end > self._size:
            self._extend(end)
        self._buffer[offset:end] = source

    def pread(self, size: int, offset: int) -> bytes:
        """Read up to ``size`` bytes (fewer at the end of the file)."""
        return self._buffer[offset : max(offset, min(offset + size, self._size))].tobytes()

    def sync(self) -> None:
        """Nothing to do: memory is as durable as it gets."""

    def truncate(self, size: int) -> None:
        """Cut the file, or extend it by zeros."""
        if size >= self._size:
            self._extend(size)
        else:
            # A fresh buffer, so that a later extension shows zeros, and arrays handed out keep their contents.
            self._replace(size, size)
            self._size = size

    def allocate(self, start: int, stop: int) -> None:
        """Nothing to do: memory is taken as it is written."""

    def size(self) -> int:
        """Length in bytes."""
        return self._size

    def map(self) -> ByteArray:
        """Return a read-only uint8 array over the file as long as it is now."""
        return _read_only(self._buffer[: self._size])

    def close(self) -> None:
        """Nothing to release: the disk keeps the contents."""

    def _extend(self, size: int) -> None:
        if size > self._buffer.size:
            # Zeroed memory costs nothing until it is touched, so the slack is free.
            self._replace(size + size // 2, self._size)
        self._size = size

    def _replace(self, capacity: int, keep: int) -> None:
        buffer = np.zeros(capacity, dtype=np.uint8)
        buffer[:keep] = self._buffer[:keep]
        self._buffer = buffer  # published complete: readers in other threads see the old buffer or the new one


class MemoryDisk:
    """A directory in memory (see :class:`vecraft_data_model.ports.Disk`). Opening a name twice gives the same file."""

    def __init__(self) -> None:
        self._files: dict[str, MemoryFile] = {}

    @property
    def durable(self) -> bool:
        """False: nothing outlives this object."""
        return False

    def open(self, name: str) -> File:
        """Open for reading and writing, made empty if missing."""
        return self._files.setdefault(_checked(name), MemoryFile())

    def exists(self, name: str) -> bool:
        """Whether there is a file of that name."""
        return _checked(name) in self._files

    def list(self, folder: str = "") -> Sequence[str]:
        """Return the full names of the files directly in ``folder``, sorted."""
        prefix = f"{_checked(folder).rstrip('/')}/" if folder else ""
        return sorted(name for name in self._files if name.startswith(prefix) and "/" not in name[len(prefix) :])

    def remove(self, name: str) -> None:
        """Remove a file, or a folder with all it holds; nothing happens if it is missing."""
        prefix = f"{_checked(name).rstrip('/')}/"
        self._files = {key: file for key, file in self._files.items() if key != name and not key.startswith(prefix)}

    def rename(self, old: str, new: str) -> None:
        """Rename a file over another.

        Raises:
            StorageFailureException: There is no file ``old``.
        """
        if _checked(old) not in self._files:
            raise failure("rename", old, FileNotFoundError(errno.ENOENT, "No such file or directory"))
        self._files[_checked(new)] = self._files.pop(old)

    def sync_directory(self, folder: str = "") -> None:
        """Nothing to do."""

    def path(self, name: str) -> Path | None:
        """None: files in memory have no path."""
        _checked(name)
        return None


class DirectoryLock:
    """The one owner of a directory, until ``close`` or the death of the process."""

    def __init__(self, path: Path, fd: int) -> None:
        self._path = path
        self._fd = fd

    def close(self) -> None:
        """Give the directory up. Closing twice is harmless."""
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)  # the file stays: removing it would let two owners lock two files of that name

    def __enter__(self) -> DirectoryLock:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def lock_directory(path: Path) -> DirectoryLock:
    """Become the one owner of a directory (made if missing), by an exclusive ``flock`` on its file ``LOCK``.

    The lock also excludes a second owner in the same process. A child made by ``fork`` shares it, after ``exec`` it
    does not.

    Raises:
        StorageFailureException: Somebody holds it; the message and ``details["pid"]`` say which process (0: unknown).
    """
    folder = Path(path)
    _make_directory(folder)
    lock_path = folder / LOCK_NAME
    try:
        fd = os.open(lock_path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    except OSError as error:
        raise failure("open", lock_path, error) from error
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        _write_pid(fd)
    except BlockingIOError as error:
        text = os.pread(fd, 32, 0).strip()
        os.close(fd)
        pid = int(text) if text.isdigit() else 0
        raise StorageFailureException(
            f"directory {folder} is in use by process {pid or 'unknown'}: a data directory has one owner at a time",
            path=str(folder),
            pid=pid,
        ) from error
    except OSError as error:
        os.close(fd)
        raise failure("lock", lock_path, error) from error
    return DirectoryLock(folder, fd)


def _write_pid(fd: int) -> None:
    """Say who holds the lock, for messages only: the lock holds without it, on a full disk, too."""
    try:
        # In place of what stands there: cutting the file first would give its room away.
        os.pwrite(fd, f"{os.getpid()}".ljust(_LOCK_TEXT_BYTES - 1).encode() + b"\n", 0)
    except OSError as error:
        if error.errno not in NO_ROOM:
            raise


def _read_only(array: ByteArray) -> ByteArray:
    view = array.view()
    view.flags.writeable = False
    return view
