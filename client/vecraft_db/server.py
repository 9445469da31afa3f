"""``python -m vecraft_db.server``: a database and the REST gateway in front of it, until Ctrl-C or SIGTERM.

In order: settings → the port is bound (so that a port in use is known before a database is opened) → the database is
opened (``--embedded``: in this process; otherwise on Ray, started here or joined) → requests are served → on a signal:
no new connections, requests under way are finished (at most ten seconds), the database is closed, exit 0. A second
signal while the database is being closed cuts that short.

A plain process: signals, probes and TLS in front of it behave as everywhere. What it serves is decided in
:mod:`vecraft_router.gateway`.
"""

from __future__ import annotations

import argparse
import logging
import signal
import socket
import sys
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any

from vecraft_data_model.errors import InvalidDataException, VecraftError
from vecraft_db.client.engine import Engine, backup_engine
from vecraft_db.client.opening import open_engine
from vecraft_db.config import DEFAULT_ROOT, Settings
from vecraft_db.json_logs import log_as_json

if TYPE_CHECKING:
    from vecraft_router.gateway.context import Backups
    from vecraft_router.gateway.door import Limits

logger = logging.getLogger("vecraft.server")

LOOPBACK = ("127.0.0.1", "::1", "localhost")
EXIT_FAILED = 1
EXIT_USAGE = 2
EXIT_INTERRUPTED = 130


def main(argv: Sequence[str] | None = None) -> int:
    """Serve until told to stop. Returns 0 stopped, 1 could not start, 2 wrong arguments, 130 cut short."""
    try:
        settings, embedded = _settings(_parser().parse_args(argv))
        keys = [key for key in (settings.api_keys or "").split(",") if key]
    except InvalidDataException as error:
        print(f"vecraft server: {error.message}", file=sys.stderr)
        return EXIT_USAGE
    log_as_json(settings.log_level)
    try:
        listener = _listen(settings.host, settings.port)
    except OSError as error:
        print(f"vecraft server: cannot listen on {settings.host}:{settings.port}: {error.strerror}", file=sys.stderr)
        return EXIT_FAILED
    try:
        with listener, _on_signal(_interrupt):
            engine = _open(settings, embedded)
            try:
                _serve(engine, settings, keys, listener)
            finally:
                engine.close()
    except VecraftError as error:
        print(f"vecraft server: {error.message}", file=sys.stderr)
        return EXIT_FAILED
    except KeyboardInterrupt:
        logger.warning("interrupted while the database was being opened or closed; its log has all that was answered")
        return EXIT_INTERRUPTED
    logger.info("stopped")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m vecraft_db.server",
        description="Serve a database over REST. Every option is a setting too: VCRAFT_<NAME>, or in CONFIG_FILE.",
    )
    where = parser.add_mutually_exclusive_group()
    where.add_argument("--address", help="Ray cluster: local (started here, the default), auto, or host:port")
    where.add_argument("--embedded", action="store_true", help="no Ray: the shards run in this process")
    parser.add_argument("--root", help=f"data directory (default {DEFAULT_ROOT})")
    parser.add_argument("--shards", type=int, help="shards of a new root (default: one per CPU; embedded: 1)")
    parser.add_argument("--cluster", help="name of the database on a Ray cluster")
    parser.add_argument("--host", help="address to listen on (default 127.0.0.1)")
    parser.add_argument("--port", type=int, help="port to listen on (default 8000; 0: any free one)")
    parser.add_argument("--api-key", action="append", metavar="KEY", help="clients must send one; may be repeated")
    parser.add_argument("--backup-dir", help="where clients may have backups written (default: nowhere)")
    parser.add_argument("--log-level", choices=["DEBUG", "INFO", "WARNING", "ERROR"])
    return parser


def _settings(arguments: argparse.Namespace) -> tuple[Settings, bool]:
    """Return the settings, and whether the shards run in this process.

    Raises:
        InvalidDataException: A setting is unknown or not accepted.
    """
    settings = Settings.load(
        address=arguments.address,
        root=arguments.root,
        shards=arguments.shards,
        cluster=arguments.cluster,
        host=arguments.host,
        port=arguments.port,
        api_keys=",".join(arguments.api_key) if arguments.api_key else None,
        backup_dir=arguments.backup_dir,
        log_level=arguments.log_level,
    ).without("url")
    if arguments.embedded:
        settings = settings.without("address")
    elif settings.address is None:
        settings = settings.merged({"address": "local"})
    return settings, arguments.embedded


def _open(settings: Settings, embedded: bool) -> Engine:
    if embedded:
        from vecraft_db.embedded import open_embedded

        return open_embedded(settings, settings.root or DEFAULT_ROOT)
    return open_engine(settings)


def _listen(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((host, port))
        listener.listen(2048)
    except BaseException:
        listener.close()
        raise
    return listener


def _serve(engine: Engine, settings: Settings, keys: Sequence[str], listener: socket.socket) -> None:
    from vecraft_router.gateway.protocol import make_server

    port = listener.getsockname()[1]
    if settings.host not in LOOPBACK and not keys:
        logger.warning("anybody who reaches %s:%d may read and write: set an API key", settings.host, port)
    host = f"[{settings.host}]" if ":" in settings.host else settings.host

    async def announce() -> None:
        print(f"VecraftDB serves http://{host}:{port} (documentation: http://{host}:{port}/docs)", flush=True)

    server = make_server(gateway_app(engine, settings, keys), settings.host, port, on_started=announce)

    def stop(number: int, frame: FrameType | None) -> None:
        server.should_exit = True

    # uvicorn has handlers of its own while it serves, and raises what they caught again when it is done: that is
    # caught here, because the database must still be closed.
    with _on_signal(stop):
        server.run(sockets=[listener])


def gateway_app(engine: Engine, settings: Settings, keys: Sequence[str] = (), limits: Limits | None = None) -> Any:
    """Return the gateway in front of a client's engine, as an ASGI application.

    Args:
        engine: The database.
        settings: ``timeout``, ``max_body_bytes`` and ``backup_dir``.
        keys: Who may call.
        limits: Instead of those of the settings.

    Raises:
        InvalidDataException: An API key that no header could carry.
    """
    from vecraft_db.client.rest_engine import WallClock
    from vecraft_db.embedded import EmbeddedEngine
    from vecraft_db.threaded_ports import ThreadedRunner
    from vecraft_db.tsne import render_tsne
    from vecraft_router.gateway.app import create_app
    from vecraft_router.gateway.context import Engine as GatewayEngine
    from vecraft_router.gateway.door import Limits

    close: Callable[[], Awaitable[None]] | None = None
    runner: Any = _AsyncSide(engine)
    if isinstance(engine, EmbeddedEngine):
        runner = ThreadedRunner(engine.router, lambda: engine.hosts)
        close = runner.close
    return create_app(
        GatewayEngine(engine.router, runner, WallClock(), engine.tokens),
        api_keys=keys,
        limits=limits or Limits(body_bytes_max=settings.max_body_bytes, timeout_s=settings.timeout),
        plotter=render_tsne,
        backups=_backups(engine, settings.backup_dir),
        on_shutdown=close,
    )


def _backups(engine: Engine, directory: str | None) -> Backups:
    """Return what writes the backups that clients of the gateway ask for."""
    from vecraft_db.backups import place_for

    def write(path: str | None) -> dict[str, Any]:
        if directory is None:
            raise InvalidDataException(
                "this gateway has no directory for backups: start it with --backup-dir, or VCRAFT_BACKUP_DIR"
            )
        target = place_for(Path(directory), path)
        return {"path": str(target)} | backup_engine(engine, "backup").backup(target)

    return write


class _AsyncSide:
    """An engine as the gateway sees it: something that runs flows on its event loop."""

    def __init__(self, engine: Engine) -> None:
        self.run = engine.run_async


def _interrupt(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt


@contextmanager
def _on_signal(handler: Callable[[int, FrameType | None], None]) -> Iterator[None]:
    """Handle SIGINT and SIGTERM by ``handler`` for as long as the block runs."""
    before = {number: signal.signal(number, handler) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, previous in before.items():
            signal.signal(number, previous)


if __name__ == "__main__":
    sys.exit(main())
