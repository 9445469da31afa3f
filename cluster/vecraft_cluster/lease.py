"""The lease: which process may answer for a shard, settled in the shard's own directory.

A file lock keeps a second process from opening the directory, but it does not reach a first one that no longer has it:
an actor on a node that was cut off, whose volume was attached elsewhere, goes on answering from memory. So an actor
also holds a lease, which runs out by itself unless it is renewed on the very disk that holds the data::

    shard-0000/lease/00000000000000000041.3f0c9a51b7e2d684.6b1e…     one empty file; its name is the lease:
                     number               holder           kernel     the boot id of the machine the holder runs on

    renew       rename 41.me.kernel   → 42.me.kernel       every RENEW_S
    take over   rename 41.them.kernel → 42.me.kernel       when the name has stayed the same for TAKEOVER_S
    release     rename 42.me.kernel   → 43.free.free       in an orderly end

A rename happens whole or not at all, and only to a file that is there: of those who rename the same name exactly one
succeeds. It needs no room, so a full disk does not end a lease.

Why no two processes hold it at once: a holder counts LEASE_S from *before* its rename; who wants to take over counts
TAKEOVER_S from *after* it first saw that name, and its own rename fails if the holder has renewed meanwhile. Only the
rates of two clocks are compared, never their readings; they may differ by a quarter (TAKEOVER_S / LEASE_S). The clock
goes on while the process is stopped and while the machine sleeps, and nobody can set it.

Not waited for: a lease that was released, and one whose holder is known to be dead, because it ran under this very
kernel and we have got the lock that it held.

A holder that lost its lease never gets it back: what it has in memory may be out of date. One whose lease merely ran
out (it was stopped, or the disk was slow) and that nobody took over from renews it and goes on.

What a lease cannot do: stop a write that was under way when the process was stopped. That is the file lock's part, or
that of whatever takes the volume away from the old node.
"""

from __future__ import annotations

import errno
import logging
import os
import secrets
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple, Protocol

from vecraft_data_model.errors import StorageFailureException

logger = logging.getLogger(__name__)

LEASE_FOLDER = "lease"
LEASE_S = 8.0
"""How long a holder may answer after the beginning of its last renewal."""

TAKEOVER_S = 10.0
"""How long a lease must stay unchanged before another process takes it."""

RENEW_S = 2.0
_POLL_S = 0.1
_FREE = "free"
_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")


def seconds_awake_or_not() -> float:
    """Seconds since the machine was started, including those it slept; never set, never stopped with a process."""
    return time.clock_gettime(getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC))


def this_kernel() -> str:
    """Return what tells this running kernel from every other, as hexadecimal digits."""
    return _BOOT_ID.read_text().strip().replace("-", "") if _BOOT_ID.exists() else secrets.token_hex(16)


class Names(Protocol):
    """A folder of empty files, as far as a lease needs one."""

    def all(self) -> list[str]:
        """The names in it."""
        ...

    def begin(self, name: str) -> None:
        """Make the folder with one file in it, all at once, unless there is one that holds a file."""
        ...

    def rename(self, old: str, new: str) -> bool:
        """Give a file another name, durably; False if there is none of the old name.

        Raises:
            OSError: It may or may not have been renamed.
        """
        ...


class LeaseFolder:
    """A folder on disk (see :class:`Names`)."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def all(self) -> list[str]:
        """The names in it."""
        return os.listdir(self._path) if self._path.exists() else []

    def begin(self, name: str) -> None:
        """Make the folder with one file in it, all at once, unless there is one that holds a file."""
        fresh = self._path.with_name(f"{self._path.name}.{secrets.token_hex(4)}.new")
        fresh.mkdir()
        (fresh / name).touch()
        try:
            os.rename(fresh, self._path)  # takes the place of an empty folder, never of another
        except OSError as error:
            (fresh / name).unlink()
            fresh.rmdir()
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                raise

    def rename(self, old: str, new: str) -> bool:
        """Give a file another name, durably; False if there is none of the old name."""
        try:
            os.rename(self._path / old, self._path / new)
        except FileNotFoundError:
            return False
        folder = os.open(self._path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
        return True


class Claim(NamedTuple):
    """A lease's name, taken apart."""

    number: int
    holder: str
    kernel: str

    @property
    def name(self) -> str:
        """The file's name."""
        return f"{self.number:020d}.{self.holder}.{self.kernel}"

    @staticmethod
    def of(name: str) -> Claim | None:
        """Read a name; None: it is none of ours."""
        number, dot, rest = name.partition(".")
        holder, other_dot, kernel = rest.partition(".")
        if not (dot and other_dot and holder and kernel and number.isdigit()):
            return None
        return Claim(int(number), holder, kernel)


_FIRST = Claim(0, _FREE, _FREE)


class Lease:
    """One process's share in the question who holds a shard's lease. :meth:`valid` may be asked by any thread.

    Args:
        names: The shard's lease folder.
        clock: Seconds that go on whatever happens to the process.
        kernel: See :func:`this_kernel`.
        lease_s: See :data:`LEASE_S`.
        takeover_s: See :data:`TAKEOVER_S`.
    """

    def __init__(
        self,
        names: Names,
        clock: Callable[[], float] = seconds_awake_or_not,
        kernel: str | None = None,
        *,
        lease_s: float = LEASE_S,
        takeover_s: float = TAKEOVER_S,
    ) -> None:
        self._names = names
        self._clock = clock
        self._kernel = this_kernel() if kernel is None else kernel
        self._lease_s = lease_s
        self._takeover_s = takeover_s
        self._holder = secrets.token_hex(8)
        self._mine: Claim | None = None
        self._until = float("-inf")
        self._watched: Claim | None = None
        self._watched_since = 0.0

    def valid(self) -> bool:
        """Whether this process may answer now."""
        return self._clock() < self._until

    def acquire(self, patience_s: float) -> None:
        """Wait until the lease is ours. The directory's lock must be ours already.

        Raises:
            StorageFailureException: Another process kept renewing it for ``patience_s`` seconds.
            OSError: The disk failed.
        """
        give_up_at = self._clock() + patience_s
        while not self.try_acquire():
            if self._clock() >= give_up_at:
                raise StorageFailureException(
                    f"another process renews the lease of this directory ({self._watched}): it runs on another "
                    "machine, and the file lock does not reach it there",
                )
            time.sleep(_POLL_S)

    def try_acquire(self) -> bool:
        """Take the lease if that is safe by now; to be called again and again, which is how time is measured."""
        present = self._present()
        if present is None:
            self._names.begin(_FIRST.name)
            present = self._present()
        if present is None:  # somebody renamed it while we looked
            return False
        if not self._is_free(present):
            seen_at = self._clock()
            if present != self._watched:
                self._watched, self._watched_since = present, seen_at
                return False
            if seen_at - self._watched_since < self._takeover_s:
                return False
        self._watched = None
        return self._advance(present, Claim(present.number + 1, self._holder, self._kernel))

    def renew(self) -> bool:
        """Begin the time anew; False: somebody else has taken the lease, for good.

        Raises:
            OSError: The disk failed: the lease runs out unless a later renewal succeeds.
        """
        mine = self._mine
        if mine is None:
            return False
        if self._advance(mine, Claim(mine.number + 1, self._holder, self._kernel)):
            return True
        # A rename that failed half-way may have happened: then the file is where it was to go.
        present = self._present()
        if present is None:
            raise FileNotFoundError(errno.ENOENT, "the lease's file is not to be seen")
        if present.holder == self._holder and self._advance(present, present._replace(number=present.number + 1)):
            return True
        self._mine, self._until = None, float("-inf")
        return False

    def release(self) -> None:
        """Let the next process begin at once. To be called when this one has stopped answering."""
        mine, self._mine, self._until = self._mine, None, float("-inf")
        if mine is not None:
            self._names.rename(mine.name, Claim(mine.number + 1, _FREE, _FREE).name)

    def _advance(self, old: Claim, new: Claim) -> bool:
        began = self._clock()
        if not self._names.rename(old.name, new.name):
            return False
        self._mine, self._until = new, began + self._lease_s
        return True

    def _is_free(self, claim: Claim) -> bool:
        return claim.holder == _FREE or claim.kernel == self._kernel

    def _present(self) -> Claim | None:
        """The claim that counts; None: there is none, or it was renamed while the folder was read."""
        return max((claim for claim in map(Claim.of, self._names.all()) if claim is not None), default=None)


class LeaseKeeper:
    """Renews a lease in the background, on a thread of its own.

    Args:
        lease: Acquired.
        lost: Called once, on that thread, when another process has taken the lease.
        every_s: See :data:`RENEW_S`.
    """

    def __init__(self, lease: Lease, lost: Callable[[], None], every_s: float = RENEW_S) -> None:
        self._lease = lease
        self._lost = lost
        self._every_s = every_s
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="vecraft-lease", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Stop renewing, and release the lease."""
        self._stop.set()
        self._thread.join()
        try:
            self._lease.release()
        except OSError:
            logger.exception("the lease could not be released; it runs out by itself")

    def _run(self) -> None:
        while not self._stop.wait(self._every_s):
            lapsed = not self._lease.valid()
            try:
                held = self._lease.renew()
            except OSError:
                logger.exception("the lease could not be renewed; trying again")
                continue
            if not held:
                logger.error("another process has taken this shard's lease")
                self._lost()
                return
            if lapsed:
                logger.warning("the lease had run out, and nobody took it meanwhile: going on")
