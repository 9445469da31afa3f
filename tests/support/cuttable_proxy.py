"""A link that can be cut: a TCP proxy that passes on what it is given, until it is told to stop in the middle of it."""

from __future__ import annotations

import socket
import threading
from dataclasses import dataclass
from typing import Literal

Direction = Literal["there", "back"]


@dataclass
class _Cut:
    """What passes no more.

    Attributes:
        direction: Which way is cut.
        left: Bytes that still pass that way.
        hang_up: Whether connections end there; if not, what is behind the cut waits, and arrives when it is healed.
    """

    direction: Direction
    left: int
    hang_up: bool


class CuttableProxy:
    """Listens on a port of this machine and passes connections on to where :attr:`target` says."""

    def __init__(self) -> None:
        self.target = ("", 0)
        self.stopped_bytes = 0
        self._cut: _Cut | None = None
        self._healed = threading.Event()
        self._healed.set()
        self._lock = threading.Lock()
        self._sockets: set[socket.socket] = set()
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        threading.Thread(target=self._accept, name="proxy-accept", daemon=True).start()

    def cut(self, direction: Direction, *, after: int, hang_up: bool) -> None:
        """Let ``after`` more bytes pass that way, over all connections, and none behind them."""
        with self._lock:
            self._cut = _Cut(direction, after, hang_up)
            self._healed.clear()

    def heal(self) -> None:
        """Let everything pass; what waited is passed on now, late as it is."""
        with self._lock:
            self._cut = None
            self._healed.set()

    def close(self) -> None:
        """End every connection."""
        self.heal()
        self._listener.close()
        with self._lock:
            sockets = list(self._sockets)
        for each in sockets:
            _end(each)

    def _accept(self) -> None:
        while True:
            try:
                near, _ = self._listener.accept()
                far = socket.create_connection(self.target)
            except OSError:
                if self._listener.fileno() < 0:
                    return
                _end(near)
                continue
            with self._lock:
                self._sockets |= {near, far}
            for source, sink, direction in ((near, far, "there"), (far, near, "back")):
                threading.Thread(target=self._pass_on, args=(source, sink, direction), daemon=True).start()

    def _pass_on(self, source: socket.socket, sink: socket.socket, direction: Direction) -> None:
        try:
            while data := source.recv(1 << 16):
                passes, hang_up = self._passing(direction, len(data))
                sink.sendall(data[:passes])
                if passes == len(data):
                    continue
                if hang_up:
                    break
                self._healed.wait()
                sink.sendall(data[passes:])
        except OSError:
            return  # the other direction has ended both
        finally:
            _end(source)
            _end(sink)

    def _passing(self, direction: Direction, size: int) -> tuple[int, bool]:
        """How many of so many bytes pass, and whether the connection ends behind them."""
        with self._lock:
            cut = self._cut
            if cut is None or cut.direction != direction:
                return size, False
            passes = min(size, cut.left)
            cut.left -= passes
            self.stopped_bytes += size - passes
            return passes, cut.hang_up


def _end(connection: socket.socket) -> None:
    try:
        connection.shutdown(socket.SHUT_RDWR)
    except OSError:
        pass  # it has ended already
    finally:
        connection.close()
