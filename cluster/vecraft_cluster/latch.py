"""The read-write latch that lets many readers and one writer work on one shard at a time.

Three doors (see :class:`vecraft_data_model.ports.Latch`)::

    writer     one thread: a write batch, or a step of maintenance; re-entrant
    shared     any number of threads, re-entrant; no exclusive holder meanwhile
    exclusive  one thread and nobody in ``shared``; taken briefly by the writer

Invariants:

* An exclusive holder that waits turns new readers away, so readers cannot starve it.
* Whoever leaves ``exclusive`` lets in every reader that was turned away, and then hands over to whoever has waited for
  ``exclusive`` longest. So somebody who takes it again and again (an indexer, slice by slice) starves neither.
* A thread that already reads is never turned away: reading twice cannot deadlock.

Entering ``shared`` touches no lock unless somebody wants ``exclusive``: the reader puts itself on record, then looks
whether the latch is closed, while the other side closes the latch and then looks who is on record (Dekker's pattern;
both steps are single operations on a dict and an attribute, which the interpreter orders). That keeps a search, which
enters a latch several times, below a microsecond spent here.

It does not let ``shared`` become ``exclusive``: two readers that tried would wait for each other, so it raises.
"""

from __future__ import annotations

import threading
from collections import deque
from contextlib import AbstractContextManager
from threading import get_ident
from types import TracebackType
from typing import cast


class ReadWriteLatch:
    """Readers beside readers, a writer alone; fair between phases."""

    __slots__ = (
        "_closed", "_condition", "_drained", "_exclusive", "_line", "_owner", "_readers", "_shared", "_waiting",
        "_writer",
    )  # fmt: skip

    def __init__(self) -> None:
        self._writer = threading.RLock()
        self._readers: dict[int, int] = {}
        self._closed = False
        self._owner: int | None = None
        self._waiting: set[int] = set()
        self._line: deque[int] = deque()
        self._condition = threading.Condition(threading.Lock())
        self._drained = threading.Event()
        self._shared = _Shared(self)
        self._exclusive = _Exclusive(self)

    def writer(self) -> AbstractContextManager[None]:
        """One writer at a time. Re-entrant."""
        return cast(AbstractContextManager[None], self._writer)  # what it yields is of no use to anybody

    def shared(self) -> AbstractContextManager[None]:
        """Many readers, no exclusive holder. Re-entrant."""
        return self._shared

    def exclusive(self) -> AbstractContextManager[None]:
        """Nobody else.

        Raises:
            RuntimeError: On entering, if this thread reads, or holds ``exclusive`` already.
        """
        return self._exclusive

    def another(self) -> ReadWriteLatch:
        """One of the same kind, for something else."""
        return ReadWriteLatch()

    def enter_shared(self) -> None:
        """Begin to read; waits while somebody holds, or waits for, ``exclusive``."""
        me = get_ident()
        readers = self._readers
        depth = readers.get(me)
        if depth is not None:
            readers[me] = depth + 1
            return
        readers[me] = 1
        if self._closed and self._owner != me:
            self._wait_to_read(me)

    def leave_shared(self) -> None:
        """Stop reading."""
        me = get_ident()
        readers = self._readers
        depth = readers[me]
        if depth > 1:
            readers[me] = depth - 1
            return
        del readers[me]
        if self._closed and not readers:
            self._drained.set()

    def _wait_to_read(self, me: int) -> None:
        del self._readers[me]
        if not self._readers:
            self._drained.set()
        with self._condition:
            if not self._closed:
                self._readers[me] = 1
                return
            self._waiting.add(me)
            # Whoever leaves `exclusive` puts us on record itself, so that we cannot be overtaken before we wake.
            try:
                while me in self._waiting:
                    self._condition.wait()
            except BaseException:  # interrupted: neither wait nor stand on record any more
                self._waiting.discard(me)
                if self._readers.pop(me, None) is not None:
                    self._drained.set()
                raise

    def enter_exclusive(self) -> None:
        """Turn new readers away and wait until the present ones have left."""
        me = get_ident()
        if me in self._readers or self._owner == me:
            raise RuntimeError("a thread that reads, or holds exclusive access, cannot ask for exclusive access")
        with self._condition:
            if self._closed:
                self._stand_in_line(me)
            else:
                self._closed = True
                self._owner = me
        try:
            while True:
                self._drained.clear()
                if not self._readers:
                    return
                self._drained.wait()
        except BaseException:  # interrupted: let the others in again
            self.leave_exclusive()
            raise

    def _stand_in_line(self, me: int) -> None:
        self._line.append(me)
        try:
            while self._owner != me:
                self._condition.wait()
        except BaseException:  # interrupted: leave the line, or pass on what was just handed over
            if self._owner == me:
                self._pass_on()
            else:
                self._line.remove(me)
            raise

    def leave_exclusive(self) -> None:
        """Let in the readers that were turned away, then the next in line."""
        with self._condition:
            self._pass_on()

    def _pass_on(self) -> None:
        for reader in self._waiting:
            self._readers[reader] = 1
        self._waiting.clear()
        if self._line:
            self._owner = self._line.popleft()  # who first waits for the readers just let in
        else:
            self._owner = None
            self._closed = False
        self._condition.notify_all()


class _Shared(AbstractContextManager[None]):
    """``enter_shared`` and ``leave_shared``, written out: every search passes here, right after the graph's walk has
    emptied the processor's caches, so each call that is saved counts several times over."""

    __slots__ = ("_latch", "_readers")

    def __init__(self, latch: ReadWriteLatch) -> None:
        self._latch = latch
        self._readers = latch._readers

    def __enter__(self) -> None:
        me = get_ident()
        readers = self._readers
        if me in readers:
            readers[me] += 1
            return
        readers[me] = 1
        latch = self._latch
        if latch._closed and latch._owner != me:
            latch._wait_to_read(me)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        me = get_ident()
        readers = self._readers
        depth = readers[me]
        if depth > 1:
            readers[me] = depth - 1
            return
        del readers[me]
        if self._latch._closed and not readers:
            self._latch._drained.set()


class _Exclusive(AbstractContextManager[None]):
    __slots__ = ("_enter", "_leave")

    def __init__(self, latch: ReadWriteLatch) -> None:
        self._enter = latch.enter_exclusive
        self._leave = latch.leave_exclusive

    def __enter__(self) -> None:
        self._enter()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._leave()
