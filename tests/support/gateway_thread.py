"""A real gateway for tests: uvicorn on a free loopback port, on a thread of this process, in front of any engine."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from vecraft_db.client.opening import open_engine
from vecraft_db.config import Settings
from vecraft_db.server import gateway_app
from vecraft_router.gateway.door import Limits
from vecraft_router.gateway.protocol import GatewayServer, make_server


@contextmanager
def serving(keys: Sequence[str] = (), limits: Limits | None = None, **settings: Any) -> Iterator[str]:
    """Open a database (by default one in memory), serve it, yield the URL, and stop both."""
    loaded = Settings.load({}, **{"root": ":memory:"} | settings)
    engine = open_engine(loaded)
    try:
        with serving_app(gateway_app(engine, loaded, keys, limits)) as url:
            yield url
    finally:
        engine.close()


@contextmanager
def serving_app(app: Any) -> Iterator[str]:
    """Serve an ASGI application and yield its URL."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen(256)
        server = make_server(app, "127.0.0.1", 0)
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
        thread.start()
        try:
            _wait_started(server, thread)
            yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        finally:
            server.should_exit = True
            thread.join()


def _wait_started(server: GatewayServer, thread: threading.Thread) -> None:
    deadline = time.monotonic() + 30
    while not server.started:
        if not thread.is_alive() or time.monotonic() > deadline:
            raise RuntimeError("the gateway did not start")
        time.sleep(0.005)
