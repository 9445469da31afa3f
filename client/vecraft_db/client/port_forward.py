"""A local TCP port whose connections come out somewhere else: for gateways inside a cluster, seen from outside of it.

It moves bytes and knows nothing of Kubernetes: it is handed a function that opens a socket to the far end. One thread
per direction of each connection: meant for a person's laptop, not for production traffic.
"""

from __future__ import annotations

import contextlib
import logging
import socket
import threading
from collections.abc import Callable
from typing import Any

CHUNK_BYTES = 64 * 1024

log = logging.getLogger(__name__)


class PortForward:
    """Listens on 127.0.0.1 and joins each connection to a new one made by ``connect``.

    Args:
        connect: Opens a socket to the far end; may raise ``OSError``, which closes the near one.
    """

    def __init__(self, connect: Callable[[], Any]) -> None:
        self._connect = connect
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._closed = threading.Event()
        self._open: set[Any] = set()
        self._lock = threading.Lock()
        self.port: int = self._listener.getsockname()[1]
        threading.Thread(target=self._accept, name="vecraft-port-forward", daemon=True).start()

    def close(self) -> None:
        """Stop listening and end all connections."""
        self._closed.set()
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        with self._lock:
            ends, self._open = self._open, set()
        for end in ends:
            _end(end)

    def _accept(self) -> None:
        while not self._closed.is_set():
            try:
                near, _ = self._listener.accept()
            except OSError:
                return
            try:
                far = self._connect()
            except Exception as error:  # the Kubernetes client's many kinds; the next connection may do better
                log.warning("cannot forward a connection: %s", error)
                _end(near)
                continue
            with self._lock:
                self._open |= {near, far}
            for source, target in ((near, far), (far, near)):
                threading.Thread(target=self._pump, args=(source, target), daemon=True).start()

    def _pump(self, source: Any, target: Any) -> None:
        try:
            while data := source.recv(CHUNK_BYTES):
                target.sendall(data)
        except OSError as error:
            log.debug("a forwarded connection ended: %s", error)
        finally:
            with self._lock:
                self._open -= {source, target}
            _end(source)
            _end(target)


def _end(end: Any) -> None:
    with contextlib.suppress(OSError):
        end.shutdown(socket.SHUT_RDWR)
    with contextlib.suppress(OSError):
        end.close()
