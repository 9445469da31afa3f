"""One router's connections to one shard's socket, and the calls that travel over them.

Connections are made beside the calls, never in their way: a call that finds none free is told so, travels as an actor
call, and has one made for those that follow. So a shard that restarts, moves, or cannot be reached on its own port is
no case of its own: its connections end, and until there are new ones Ray carries the calls, and says what is wrong::

    take ──▶ a free connection ──▶ Flight ──▶ its answer; the connection is free again
      └────▶ none: "use an actor call" ┄┄▶ a thread asks the actor for its endpoint, connects, shows the token

Where the shard is, and its keys, are asked of the actor for each connection: nothing is remembered that could be old.

Invariants:

* One call is under way on a connection. One whose call was given up, or failed, is closed: its answer may still come.
* A call that was sent and not answered has an unknown outcome, as with an actor call that broke off.
"""

from __future__ import annotations

import logging
import socket
import threading
import time
from collections.abc import Callable
from typing import Any, Final

from vecraft_cluster.codec import pack, unpack
from vecraft_cluster.credentials import Endpoint, client_context
from vecraft_cluster.data_server import HELLO, HELLO_MAGIC
from vecraft_cluster.wire import Wire, set_up
from vecraft_data_model.errors import ShardUnavailableError, TimeoutException, VecraftError

logger = logging.getLogger(__name__)

CONNECTIONS_MAX: Final = 8
"""As many calls as a router's lanes keep under way at one shard: one of reads, four of scans, two of writes."""

CONNECT_TIMEOUT_S: Final = 5.0
RETRY_S: Final = (0.05, 5.0)
"""Shortest and longest pause after an attempt to connect that failed; it doubles in between."""

AskEndpoint = Callable[[Callable[[], bool]], Endpoint]
"""Asks the actor where its socket is; gives up once the function that it is handed returns True. May raise anything
that says why there is no answer."""


class Flight:
    """One call over one connection. Not thread-safe: it belongs to whoever drives it, which is::

        wait for flight.fileno() ─▶ advance() ─┬─ False: wait on
          until landed, or give_up()           └─ True: stop waiting, take `answer`, release()

    ``answer``, once it has landed: what the shard replied, or the ``VecraftError`` instead.
    """

    __slots__ = ("_links", "_number", "_usable", "_wire", "answer", "landed")

    def __init__(self, links: Links, wire: Wire, number: int, message: object) -> None:
        self._links = links
        self._wire = wire
        self._number = number
        self._usable = False
        self.landed = False
        self.answer: Any = None
        try:
            wire.send(pack(number, message))
        except OSError as error:
            self._break_off(error)

    def fileno(self) -> int:
        """What to wait for readability on."""
        return self._wire.fileno()

    @property
    def sending(self) -> bool:
        """Whether to wait for writability too."""
        return self._wire.sending

    def advance(self) -> bool:
        """Send and receive what can be by now; return whether the call has landed."""
        if self.landed:
            return True
        try:
            if not self._wire.flush():
                return False
            frame = self._wire.receive()
            if frame is None:
                return False
            if frame.number != self._number:
                raise ValueError(f"call {self._number} was answered by the answer to call {frame.number}")
            self.answer = unpack(frame)
        except (OSError, ValueError) as error:
            self._break_off(error)
            return True
        self.landed = True
        self._usable = True
        return True

    def give_up(self) -> None:
        """End a call that took too long."""
        if not self.landed:
            self.landed = True
            self.answer = TimeoutException(
                f"{self._links.who} did not answer in time; the outcome is unknown", **self._links.details
            )

    def release(self) -> None:
        """Let go of the connection, once nobody waits for anything on it any more: it may be closed here."""
        if self._usable:
            self._links.give_back(self._wire)
        else:
            self._links.drop(self._wire)

    def _break_off(self, error: BaseException) -> None:
        self.landed = True
        self.answer = ShardUnavailableError(
            f"{self._links.who} went away during the call ({error})", outcome="unknown", **self._links.details
        )


class Links:
    """The connections of one router to one shard. Safe to use from several threads.

    Args:
        who: The shard, for messages.
        ask_endpoint: Asks its actor where it listens.
        details: Go into errors.
    """

    def __init__(self, who: str, ask_endpoint: AskEndpoint, **details: Any) -> None:
        self.who = who
        self.details = details
        self.flights = 0
        self._ask_endpoint = ask_endpoint
        self._lock = threading.Lock()
        self._free: list[Wire] = []
        self._open = 0
        self._numbers = 0
        self._connector: threading.Thread | None = None
        self._pause_s = RETRY_S[0]
        self._not_before = 0.0
        self._closed = False

    def launch(self, message: object) -> Flight | None:
        """Send a message off if a connection is free; None: there is none now, but one is being made."""
        with self._lock:
            wire = self._take()
            if wire is None:
                self._want_one()
                return None
            self._numbers += 1
            number = self._numbers
            self.flights += 1
        try:
            return Flight(self, wire, number, message)
        except BaseException:  # the message cannot be packed, or we were interrupted: part of it may have left
            self.drop(wire)
            raise

    @property
    def free(self) -> bool:
        """Whether a connection is free."""
        return bool(self._free)

    def give_back(self, wire: Wire) -> None:
        """A call has landed: the connection is free."""
        with self._lock:
            if not self._closed:
                self._free.append(wire)
                return
        self.drop(wire)

    def drop(self, wire: Wire) -> None:
        """A connection is of no further use."""
        wire.close()
        with self._lock:
            self._open -= 1

    def close(self) -> None:
        """Close what is free and make no more. Calls under way land as they may."""
        with self._lock:
            self._closed = True
            free, self._free = self._free, []
            self._open -= len(free)
            connector = self._connector
        for wire in free:
            wire.close()
        if connector is not None:
            connector.join()

    def _take(self) -> Wire | None:
        """Return a free connection that the shard has not ended meanwhile; the lock is held."""
        while self._free:
            wire = self._free.pop()
            if not wire.readable():  # the peer's farewell, since nobody asked it anything
                return wire
            wire.close()
            self._open -= 1
        return None

    def _want_one(self) -> None:
        """Have a connection made unless one is being made, or one too many is open; the lock is held."""
        if self._closed or self._connector is not None or self._open >= CONNECTIONS_MAX:
            return
        if time.monotonic() < self._not_before:
            return
        self._connector = threading.Thread(target=self._connect, name="vecraft-connect", daemon=True)
        self._connector.start()

    def _connect(self) -> None:
        wire: Wire | None = None
        try:
            wire = connect(self._ask_endpoint(lambda: self._closed))
        except (OSError, ValueError, VecraftError) as error:
            logger.debug("no connection; actor calls go on", extra={"who": self.who, "error": str(error)})
        except Exception:  # Ray may come up with anything: calls go on as actor calls, and this is tried again
            logger.warning("no connection; actor calls go on", extra={"who": self.who}, exc_info=True)
        with self._lock:
            self._connector = None
            if wire is not None and not self._closed:
                self._free.append(wire)
                self._open += 1
                self._pause_s = RETRY_S[0]
                return
            self._not_before = time.monotonic() + self._pause_s
            self._pause_s = min(RETRY_S[1], 2 * self._pause_s)
        if wire is not None:
            wire.close()


def connect(endpoint: Endpoint, timeout: float = CONNECT_TIMEOUT_S) -> Wire:
    """Connect to a shard, make sure that it is the one, and show the token.

    Returns:
        A wire over a non-blocking connection.

    Raises:
        OSError: Nobody listens there, or it is somebody else, or the token was refused.
        TimeoutError: Not within ``timeout`` seconds.
    """
    deadline = time.monotonic() + timeout
    connection = socket.create_connection((endpoint.host, endpoint.port), timeout)
    try:
        set_up(connection)
        secured = client_context(endpoint.certificate).wrap_socket(connection)
    except BaseException:
        connection.close()
        raise
    try:
        if secured.getpeercert(binary_form=True) != endpoint.certificate:
            raise ConnectionRefusedError(f"whoever listens at {endpoint.host}:{endpoint.port} is not that shard")
        secured.sendall(endpoint.token)
        hello = b""
        while len(hello) < HELLO.size:
            secured.settimeout(max(0.001, deadline - time.monotonic()))
            received = secured.recv(HELLO.size - len(hello))
            if not received:
                raise ConnectionRefusedError(f"{endpoint.host}:{endpoint.port} hung up on this router")
            hello += received
        if HELLO.unpack(hello) != (HELLO_MAGIC, endpoint.shard, endpoint.epoch):
            raise ConnectionRefusedError(f"{endpoint.host}:{endpoint.port} is another shard, or another incarnation")
        secured.setblocking(False)
    except BaseException:
        secured.close()
        raise
    return Wire(secured)
