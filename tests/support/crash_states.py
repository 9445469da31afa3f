"""The states in which a power failure can leave the files of a process, from a byte-exact record of its system calls.

``strace`` records every call that changes a file, SQLite's and hnswlib's included. The record is replayed on a model of
a file system that promises what POSIX does, and no more::

    bytes, lengths    are durable after fsync or fdatasync of the file
    names             (made, renamed, removed) are durable after fsync of the directory
    all else          may be there after the crash or not, each call by itself, a write by sectors of 512 bytes

A crash point lies after every call; at each, there are as many states as there are subsets of what is not durable. Some
are tried always (all of it, as after ``kill -9``; none; all but one; a torn last write; names without contents, and
contents without names), others at random.

Not recorded: ``shard.sqlite-shm``, which SQLite maps, and makes again when it is opened first after a crash.
"""

from __future__ import annotations

import os
import random
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

SECTOR = 512
CALLS = (
    "openat,open,creat,close,write,pwrite64,writev,pwritev,pwritev2,ftruncate,truncate,fallocate,fsync,fdatasync,"
    "rename,renameat,renameat2,unlink,unlinkat,mkdir,mkdirat,rmdir,dup,dup2,dup3,mmap,link,linkat,copy_file_range,"
    "sendfile"
)
_LINE = re.compile(r"\d+ +(\w+)\((.*)\) += (-?\d+)")


class Inode:
    """A file: its bytes, zeros behind those that were written."""

    def __init__(self) -> None:
        self.data = bytearray()
        self.length = 0

    def copy(self) -> Inode:
        """An independent one."""
        other = Inode()
        other.data, other.length = bytearray(self.data), self.length
        return other

    def write(self, offset: int, block: bytes) -> None:
        """Take up a write."""
        if offset > len(self.data):
            self.data.extend(bytes(offset - len(self.data)))
        self.data[offset : offset + len(block)] = block
        self.length = max(self.length, len(self.data))

    def resize(self, length: int) -> None:
        """Take up a new length."""
        del self.data[length:]
        self.length = length


@dataclass(frozen=True)
class Write:
    """Bytes written."""

    inode: int
    offset: int
    block: bytes

    def pieces(self) -> list[Write]:
        """The sectors of it."""
        found, at = [], 0
        while at < len(self.block):
            size = min(SECTOR - (self.offset + at) % SECTOR, len(self.block) - at)
            found.append(Write(self.inode, self.offset + at, self.block[at : at + size]))
            at += size
        return found


@dataclass(frozen=True)
class Resize:
    """A length set; ``grow_only``: room taken, which never cuts."""

    inode: int
    length: int
    grow_only: bool = False


@dataclass(frozen=True)
class Name:
    """A name that now means a file (``inode``) or a directory (-1), or (None) nothing; ``old``: it was called so."""

    path: str
    inode: int | None
    old: str | None = None


@dataclass(frozen=True)
class Sync:
    """A file (``inode``) or directory (``path``) made durable."""

    inode: int | None
    path: str = ""


@dataclass(frozen=True)
class Mark:
    """What the process said of itself at this point."""

    text: str


Change = Write | Resize | Name
Call = Change | Sync | Mark


def record(command: Sequence[str], root: Path, marks: Path, trace: Path) -> list[Call]:
    """Run a Python program under strace; return what it did to the files below ``root``, and its marks, in order."""
    tracer = ["strace", "-f", "-qq", "-xx", "-s", str(1 << 26), "-e", f"trace={CALLS}", "-e", "signal=none"]
    full = [*tracer, "-o", str(trace), sys.executable, *command]
    environment = {**os.environ, "PYTHONDONTWRITEBYTECODE": "1"}
    ran = subprocess.run(full, capture_output=True, text=True, env=environment, check=False)
    if ran.returncode != 0:
        raise RuntimeError(f"the workload failed: {ran.stderr}")
    return list(_Reader(root, marks).calls(trace))


class _Reader:
    """Turns lines of strace into calls."""

    def __init__(self, root: Path, marks: Path) -> None:
        self._root = str(root)
        self._marks = str(marks)
        self._open: dict[int, tuple[str, int | None]] = {}  # descriptor → path, inode (None: a directory)
        self._at: dict[int, int] = {}
        self._names: dict[str, int] = {}
        self._next = 0

    def calls(self, trace: Path) -> Iterator[Call]:
        """Yield the calls of a trace."""
        with trace.open(encoding="ascii") as lines:
            for line in lines:
                if "unfinished" in line or "resumed" in line:
                    raise RuntimeError(f"calls of several threads overlap: {line[:100]}")
                match = _LINE.match(line)
                if match is None or int(match[3]) < 0:
                    continue
                yield from self._call(match[1], _arguments(match[2]), int(match[3]))

    def _call(self, name: str, given: list[str], result: int) -> Iterator[Call]:
        if name in ("openat", "open", "creat"):
            yield from self._opened(given, result)
        elif name in ("rename", "renameat", "renameat2", "unlink", "unlinkat", "mkdir", "mkdirat", "rmdir"):
            yield from self._renamed(name, given)
        elif name in ("link", "linkat", "truncate", "copy_file_range", "sendfile", "dup", "dup2", "dup3"):
            touched = any(self._root in _text(part) for part in given) or _number(given[0]) in self._open
            if touched:
                raise RuntimeError(f"{name} is not modelled")
        elif name == "mmap":
            known = self._open.get(_number(given[4]))
            if known and "PROT_WRITE" in given[2] and "MAP_SHARED" in given[3]:
                raise RuntimeError(f"{known[0]} is written through a map")
        elif _number(given[0]) in self._open:
            yield from self._used(name, _number(given[0]), given, result)

    def _opened(self, given: list[str], fd: int) -> Iterator[Call]:
        if given[0] == "AT_FDCWD" or not given[0].startswith('"'):
            given = [self._path(given[0], given[1]), *given[2:]]
        else:
            given = [_text(given[0]), *given[1:]]
        path = given[0]
        self._open.pop(fd, None)
        if path == self._marks:
            self._open[fd] = (path, None)
            return
        if not self._is_ours(path):
            return
        if "O_DIRECTORY" in given[1]:
            self._open[fd] = (path, None)
            return
        inode = self._names.get(path)
        if inode is None:
            if "O_CREAT" not in given[1]:
                return
            inode = self._names[path] = self._next
            self._next += 1
            yield Name(path, inode)
        if "O_TRUNC" in given[1]:
            yield Resize(inode, 0)
        self._open[fd] = (path, inode)
        self._at[fd] = 0

    def _used(self, name: str, fd: int, given: list[str], result: int) -> Iterator[Call]:
        path, inode = self._open[fd]
        if name == "close":
            del self._open[fd]
        elif path == self._marks:
            yield Mark(_bytes(given[1]).decode().strip())
        elif name in ("fsync", "fdatasync"):
            yield Sync(inode, path)
        elif inode is None:
            raise RuntimeError(f"{name} of a directory")
        elif name in ("pwrite64", "write"):
            at = int(given[3]) if name == "pwrite64" else self._at[fd]
            self._at[fd] += 0 if name == "pwrite64" else result
            yield Write(inode, at, _bytes(given[1])[:result])
        elif name == "writev":
            block = b"".join(_bytes(part) for part in re.findall(r'iov_base="((?:\\x..)*)"', given[1]))
            yield Write(inode, self._at[fd], block[:result])
            self._at[fd] += result
        elif name == "ftruncate":
            yield Resize(inode, int(given[1]))
        elif name == "fallocate":
            yield Resize(inode, int(given[2]) + int(given[3]), grow_only=True)
        else:
            raise RuntimeError(f"{name} is not modelled")

    def _renamed(self, name: str, given: list[str]) -> Iterator[Call]:
        if name.endswith(("at", "at2")):
            paths = [self._path(given[i], given[i + 1]) for i in range(0, len(given) - 1, 2) if '"' in given[i + 1]]
        else:
            paths = [_text(part) for part in given if part.startswith('"')]
        if not self._is_ours(paths[0]):
            return
        if name.startswith("mkdir"):
            if paths[0] != self._root:  # which is there, whatever happens
                yield Name(paths[0], -1)
        elif name.startswith("rename"):
            inode = self._names.pop(paths[0])
            self._names[paths[1]] = inode
            yield Name(paths[1], inode, paths[0])
        else:
            self._names.pop(paths[0], None)
            yield Name(paths[0], None)

    def _path(self, directory: str, name: str) -> str:
        path = _text(name)
        if path.startswith("/") or directory == "AT_FDCWD":
            return path
        return f"{self._open.get(_number(directory), ('?', None))[0]}/{path}"

    def _is_ours(self, path: str) -> bool:
        inside = path == self._root or path.startswith(self._root + "/")
        return inside and not path.endswith("-shm")


def _arguments(text: str) -> list[str]:
    """Split the arguments of a call; strings are hexadecimal, so that no comma is inside of one."""
    depth, start, found = 0, 0, []
    for match in re.finditer(r"[\[\]{}]|, ", text):
        if match[0] in "[{":
            depth += 1
        elif match[0] in "]}":
            depth -= 1
        elif not depth:
            found.append(text[start : match.start()])
            start = match.end()
    return [*found, text[start:]]


def _bytes(text: str) -> bytes:
    return bytes.fromhex(text.strip('"').replace("\\x", ""))


def _text(text: str) -> str:
    return os.fsdecode(_bytes(text)) if text.startswith('"') else text


def _number(text: str) -> int:
    return int(text) if text.lstrip("-").isdigit() else -2


@dataclass
class FileSystem:
    """Which files there are, and what they hold."""

    names: dict[str, int] = field(default_factory=dict)
    inodes: dict[int, Inode] = field(default_factory=dict)

    def apply(self, change: Change) -> None:
        """Let a change happen."""
        match change:
            case Write(inode, offset, block):
                self.inodes.setdefault(inode, Inode()).write(offset, block)
            case Resize(inode, length, grow_only):
                file = self.inodes.setdefault(inode, Inode())
                if not grow_only or length > file.length:
                    file.resize(length)
            case Name(path, inode, old):
                if old is not None and self.names.get(old) == inode:
                    del self.names[old]
                if inode is None:
                    self.names.pop(path, None)
                else:
                    self.names[path] = inode

    def with_changes(self, changes: Sequence[Change]) -> FileSystem:
        """Another one, in which these changes have happened."""
        touched = {change.inode for change in changes if isinstance(change, Write | Resize)}
        inodes = {n: inode.copy() if n in touched else inode for n, inode in self.inodes.items()}
        after = FileSystem(dict(self.names), inodes)
        for change in changes:
            after.apply(change)
        return after

    def write_out(self, root: Path, target: Path) -> None:
        """Make the files for real, in place of ``target``; what is in no directory that is there is lost."""
        shutil.rmtree(target, ignore_errors=True)
        folders = {path for path, inode in self.names.items() if inode == -1}
        target.mkdir()
        for path in sorted(folders):
            if Path(path).parent == root or str(Path(path).parent) in folders:
                (target / Path(path).relative_to(root)).mkdir(parents=True, exist_ok=True)
        for path, number in self.names.items():
            real = target / Path(path).relative_to(root)
            if number == -1 or not real.parent.is_dir():
                continue
            inode = self.inodes.get(number, Inode())
            with real.open("wb") as file:
                file.write(inode.data)
                file.truncate(inode.length)

    def fingerprint(self) -> int:
        """A number that is the same for the same files."""
        empty = Inode()
        parts = []
        for path, number in sorted(self.names.items()):
            inode = self.inodes.get(number, empty)
            parts.append((path, number == -1, inode.length, bytes(inode.data).rstrip(b"\0")))
        return hash(tuple(parts))


@dataclass
class CrashPoint:
    """Where a crash may come: after ``call`` calls.

    Attributes:
        durable: What is certainly there.
        pending: What may be there, in order.
        said: The last mark before.
    """

    call: int
    durable: FileSystem
    pending: list[Change]
    said: list[str]

    def subsets(self, at_random: int) -> Iterator[tuple[str, list[Change]]]:
        """Yield ``(description, what of the pending changes is there)``."""
        pending = self.pending
        yield "everything", pending
        if not pending:
            return
        yield "nothing", []
        yield "names only", [change for change in pending if isinstance(change, Name)]
        yield "contents only", [change for change in pending if not isinstance(change, Name)]
        last = pending[-1]
        if isinstance(last, Write):
            pieces = last.pieces()
            for cut in sorted({1, len(pieces) // 2, len(pieces) - 1} - {0, len(pieces)}):
                yield f"the first {cut} sectors of the last write", [*pending[:-1], *pieces[:cut]]
                yield f"all but the first {cut} sectors of the last write", [*pending[:-1], *pieces[cut:]]
        for i in range(len(pending) - 1):
            yield f"all but {i}", [*pending[:i], *pending[i + 1 :]]
        for seed in range(at_random):
            rng = random.Random(f"{self.call} {seed}")
            share = rng.choice((0.2, 0.5, 0.8))
            kept: list[Change] = []
            for change in pending:
                if isinstance(change, Write) and len(change.block) > SECTOR and rng.random() < 0.5:
                    kept += [piece for piece in change.pieces() if rng.random() < share]
                elif rng.random() < share:
                    kept.append(change)
            yield f"at random {seed}", kept


def crash_points(calls: Sequence[Call]) -> Iterator[CrashPoint]:
    """Yield every crash point of a recording. What it holds is changed when the next one is asked for."""
    durable, pending, said = FileSystem(), list[Change](), list[str]()
    for number, call in enumerate(calls):
        match call:
            case Mark(text):
                said.append(text)
                continue
            case Sync(None, path):
                done = [c for c in pending if isinstance(c, Name) and str(Path(c.path).parent) == path]
            case Sync(inode):
                done = [c for c in pending if isinstance(c, Write | Resize) and c.inode == inode]
            case _:
                done = []
                pending.append(call)
        if done:
            for change in done:
                durable.apply(change)
            settled = {id(change) for change in done}
            pending = [change for change in pending if id(change) not in settled]
        yield CrashPoint(number, durable, pending, said)
