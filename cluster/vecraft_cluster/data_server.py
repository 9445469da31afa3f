"""A shard's own socket: the same ``execute(batch)`` as the actor call, without Ray in between.

::

    accept ──▶ a thread per connection:   TLS handshake ─▶ token ─▶ hello ─▶ call, answer, call, answer, …
                                          └── within ADMISSION_S, or closed ──┘

One call at a time is under way on a connection, and its thread carries it out itself: nothing is handed over between
its arrival and its answer. Routers open as many connections as they keep calls under way.

What somebody can do who reaches the port without the token: make a TLS handshake and send 32 bytes that are compared
with it. No byte of theirs is ever parsed. At most ``STRANGERS_MAX`` connections may be in that state; the next are
closed at once, which delays new routers (they use actor calls meanwhile) and no present one.

Not done here: deciding anything about a batch. The shard's host does, its lease and epoch included, as for actor calls.
"""

from __future__ import annotations

import logging
import socket
import ssl
import struct
import threading
import time
from collections.abc import Callable
from typing import Any, Final

from vecraft_cluster.codec import pack, unpack
from vecraft_cluster.credentials import TOKEN_BYTES, Endpoint, Identity
from vecraft_cluster.wire import Wire, set_up
from vecraft_data_model.errors import ShardUnavailableError, VecraftError

logger = logging.getLogger(__name__)

HELLO: Final = struct.Struct("<4sIQ")
"""What a shard says to whoever showed its token: ``b"VDH1"``, its number, its epoch."""

HELLO_MAGIC: Final = b"VDH1"
ADMISSION_S: Final = 5.0
STRANGERS_MAX: Final = 32
CONNECTIONS_MAX: Final = 1024


class DataServer:
    """Listens for routers of this cluster, and carries out what they ask.

    Args:
        address: Where to listen; the port is chosen by the system.
        shard: Its number.
        epoch: Its incarnation.
        execute: Carries out ``(timeout, batch)`` and returns the reply, or raises a ``VecraftError``. Called from many
            threads.

    Raises:
        OSError: There is nothing to listen on at that address.
    """

    def __init__(self, address: str, shard: int, epoch: int, execute: Callable[[Any], Any]) -> None:
        self._identity = Identity()
        self._shard = shard
        self._epoch = epoch
        self._execute = execute
        self._strangers = threading.BoundedSemaphore(STRANGERS_MAX)
        self._lock = threading.Lock()
        self._connections: set[socket.socket] = set()
        self._closed = False
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        self._listener = socket.create_server((address, 0), family=family, backlog=128)
        self.endpoint = Endpoint(
            address, self._listener.getsockname()[1], self._identity.certificate, self._identity.token, shard, epoch
        )
        threading.Thread(target=self._accept, name="vecraft-accept", daemon=True).start()

    @property
    def connections(self) -> int:
        """How many are open."""
        return len(self._connections)

    def close(self) -> None:
        """Stop listening, and hang up on everybody. Calls under way are carried out; their answers are lost."""
        with self._lock:
            self._closed = True
            connections = list(self._connections)
        _hang_up(self._listener)
        for connection in connections:
            _hang_up(connection)

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError as error:
                if self._closed:
                    self._listener.close()
                    return
                # Out of descriptors, most likely: those that are connected go on, and some will leave.
                logger.warning("a connection could not be accepted", extra={"shard": self._shard, "error": str(error)})
                time.sleep(0.1)
                continue
            if not self._strangers.acquire(blocking=False):
                connection.close()
                continue
            threading.Thread(target=self._serve, args=(connection,), name="vecraft-data", daemon=True).start()

    def _serve(self, connection: socket.socket) -> None:
        """Admit a peer, then answer it until it hangs up."""
        try:
            try:
                admitted = self._admit(connection)
            finally:
                self._strangers.release()
            if not self._keep(admitted):
                admitted.close()
                return
            try:
                self._answer_all(Wire(admitted))
            finally:
                with self._lock:
                    self._connections.discard(admitted)
                admitted.close()
        except OSError as error:  # the peer went away, or is none of ours
            logger.debug("a connection ended", extra={"shard": self._shard, "error": str(error)})
        except ValueError as error:  # it has the token, and says what cannot be read: another version, or a defect
            logger.warning("a peer sent no message", extra={"shard": self._shard, "error": str(error)})
        finally:
            connection.close()

    def _admit(self, connection: socket.socket) -> ssl.SSLSocket:
        """Make the handshake and check the token.

        Raises:
            OSError: No handshake, no token or the wrong one, or not in time.
        """
        deadline = time.monotonic() + ADMISSION_S
        connection.settimeout(ADMISSION_S)
        set_up(connection)
        admitted = self._identity.context.wrap_socket(connection, server_side=True)
        try:
            token = b""
            while len(token) < TOKEN_BYTES:
                admitted.settimeout(max(0.001, deadline - time.monotonic()))
                received = admitted.recv(TOKEN_BYTES - len(token))
                if not received:
                    raise ConnectionResetError("the peer left before it showed a token")
                token += received
            if not self._identity.recognises(token):
                raise ConnectionRefusedError("the peer has not the token of this shard")
            admitted.sendall(HELLO.pack(HELLO_MAGIC, self._shard, self._epoch))
            admitted.settimeout(None)
        except BaseException:
            admitted.close()
            raise
        return admitted

    def _keep(self, admitted: socket.socket) -> bool:
        """Enter a connection among the open ones; False if there is no room, or the server is closed."""
        with self._lock:
            if self._closed or len(self._connections) >= CONNECTIONS_MAX:
                return False
            self._connections.add(admitted)
            return True

    def _answer_all(self, wire: Wire) -> None:
        while True:
            frame = wire.receive()
            if frame is None:  # a blocking socket that has nothing to say has been made non-blocking by somebody else
                raise ConnectionAbortedError("the connection is in use elsewhere")
            wire.send(pack(frame.number, self._answer(unpack(frame))))

    def _answer(self, message: Any) -> Any:
        try:
            return self._execute(message)
        except VecraftError as error:
            return error
        except Exception as error:  # a defect: whoever asked must hear of it, as from a failed actor call
            logger.exception("a batch failed", extra={"shard": self._shard})
            return ShardUnavailableError(
                f"shard {self._shard} failed: {type(error).__name__}: {error}", shard=self._shard, outcome="unknown"
            )


def _hang_up(connection: socket.socket) -> None:
    """Wake whoever waits in a socket: it finds the connection ended, and closes it itself."""
    try:
        socket.socket.shutdown(connection, socket.SHUT_RDWR)  # not TLS's own, which would unwrap it under its user
    except OSError as error:
        logger.debug("already disconnected", extra={"error": str(error)})
