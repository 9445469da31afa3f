"""Settings: where they come from, what they are called, and which values they take.

Three sources, the later winning::

    environment      M, EF_CONSTRUCTION, EF_RUNTIME, and VCRAFT_<NAME> for everything else
    CONFIG_FILE      a YAML or TOML file named by that variable: one table of names, with or without the prefix
    arguments        of the client, the server or the command line; ``None`` counts as not given

Every setting is a field of :class:`Settings`. A name that is not, a value that does not parse and one outside its
range are errors that name the source, the value and what is accepted. Nothing is read at import.
"""

from __future__ import annotations

import os
import tomllib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import yaml

from vecraft_data_model.errors import InvalidDataException
from vecraft_shard.config import ShardConfig

PREFIX = "VCRAFT_"
CONFIG_FILE = "CONFIG_FILE"
UNPREFIXED = {"M": "m", "EF_CONSTRUCTION": "ef_construction", "EF_RUNTIME": "ef_runtime"}
DEFAULT_ROOT = "./vecraft-data"

Parser = Callable[[Any], Any]


def _integer(low: int, high: int) -> Parser:
    def parse(value: Any) -> int:
        if isinstance(value, str):
            value = int(value.strip())
        if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
            raise ValueError
        return int(value)

    parse.__doc__ = f"an integer from {low} to {high}"
    return parse


def _number(low: float, high: float) -> Parser:
    def parse(value: Any) -> float:
        if isinstance(value, str):
            value = float(value.strip())
        if isinstance(value, bool) or not isinstance(value, int | float) or not low <= value <= high:
            raise ValueError
        return float(value)

    parse.__doc__ = f"a number from {low:g} to {high:g}"
    return parse


def _text(*accepted: str) -> Parser:
    def parse(value: Any) -> str:
        if isinstance(value, os.PathLike):
            value = os.fspath(value)
        if not isinstance(value, str) or not value or (accepted and value not in accepted):
            raise ValueError
        return value

    parse.__doc__ = "one of " + ", ".join(repr(name) for name in accepted) if accepted else "a non-empty string"
    return parse


_TRUTH = {"1": True, "true": True, "yes": True, "on": True, "0": False, "false": False, "no": False, "off": False}


def _boolean(value: Any) -> bool:
    """true or false"""
    if isinstance(value, bool):
        return value
    if isinstance(value, str) and value.strip().lower() in _TRUTH:
        return _TRUTH[value.strip().lower()]
    raise ValueError


def _setting(default: Any, parser: Parser) -> Any:
    return field(default=default, metadata={"parse": parser})


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """All settings, in one place; ``None`` means: not set, whoever uses it has the default.

    Attributes:
        m: HNSW links per node of new collections whose schema does not say.
        ef_construction: HNSW build depth of new collections whose schema does not say.
        ef_runtime: HNSW search depth of collections that have none of their own.
        root: Data directory; ``:memory:`` for a database without files.
        shards: Shards of a new root; for an existing one it must match.
        address: Ray cluster: ``local``, ``auto``, or ``host:port``.
        cluster: Name of the database on a Ray cluster.
        data_plane: How routers reach the shards of a Ray cluster: ``socket``, over sockets of the shards' own and by
            actor calls where that does not work, or ``actor``, by actor calls only.
        via_router_actor: Route through a router actor of the Ray cluster instead of in this process.
        url: REST gateway.
        api_key: Key sent to the gateway.
        api_keys: Keys the gateway accepts, separated by commas.
        backup_dir: Directory that the gateway writes backups into for its clients; without one it writes none.
        timeout: Seconds that an operation may take unless it says so itself.
        consistency: Consistency of reads that do not say.
        durability: ``fsync``: answered writes survive a power cut; ``os``: they survive the process.
        history_retention_s: Seconds for which replaced versions stay readable.
        txn_retention_s: Seconds for which a retry with the same ``txn_id`` is recognised.
        checkpoint_interval_s: Seconds between checkpoints when there were writes.
        checkpoint_wal_bytes: Log growth that starts a checkpoint.
        index_min_rows: Rows of a collection on a shard below which it is scanned and gets no graph.
        max_clock_skew_ms: Milliseconds that nodes' clocks may differ.
        host: Address the server listens on.
        port: Port the server listens on.
        max_body_bytes: Largest request body the server takes.
        log_level: Least severe log lines written.
        namespace: Kubernetes namespace of the gateways.
        service: Kubernetes service of the gateways.
        kubeconfig: Path of a kubeconfig, outside a cluster.
        port_forward: Reach gateways by port-forwarding through the Kubernetes API, outside a cluster.
    """

    m: int | None = _setting(None, _integer(2, 512))
    ef_construction: int | None = _setting(None, _integer(1, 10_000))
    ef_runtime: int | None = _setting(None, _integer(1, 10_000))
    root: str | None = _setting(None, _text())
    shards: int | None = _setting(None, _integer(1, 1024))
    address: str | None = _setting(None, _text())
    cluster: str | None = _setting(None, _text())
    data_plane: str = _setting("socket", _text("socket", "actor"))
    via_router_actor: bool = _setting(False, _boolean)
    url: str | None = _setting(None, _text())
    api_key: str | None = _setting(None, _text())
    api_keys: str | None = _setting(None, _text())
    backup_dir: str | None = _setting(None, _text())
    timeout: float = _setting(10.0, _number(1e-6, 86_400))
    consistency: str = _setting("session", _text("session", "strong", "eventual"))
    durability: str = _setting("fsync", _text("fsync", "os"))
    history_retention_s: float = _setting(600.0, _number(0, 10 * 365 * 86_400))
    txn_retention_s: float = _setting(3600.0, _number(0, 10 * 365 * 86_400))
    checkpoint_interval_s: float = _setting(60.0, _number(0.01, 86_400))
    checkpoint_wal_bytes: int = _setting(64 << 20, _integer(1 << 16, 1 << 40))
    index_min_rows: int = _setting(1000, _integer(1, 1 << 40))
    max_clock_skew_ms: int = _setting(500, _integer(2, 60_000))
    host: str = _setting("127.0.0.1", _text())
    port: int = _setting(8000, _integer(0, 65_535))
    max_body_bytes: int = _setting(64 << 20, _integer(1024, 1 << 34))
    log_level: str = _setting("INFO", _text("DEBUG", "INFO", "WARNING", "ERROR"))
    namespace: str | None = _setting(None, _text())
    service: str | None = _setting(None, _text())
    kubeconfig: str | None = _setting(None, _text())
    port_forward: bool = _setting(False, _boolean)

    @classmethod
    def load(cls, environ: Mapping[str, str] | None = None, **arguments: Any) -> Settings:
        """Gather the settings from the environment, the file it names, and ``arguments``.

        Args:
            environ: Instead of the process's environment.
            arguments: By field name; ``None`` counts as not given.

        Raises:
            InvalidDataException: An unknown name, or a value that is not accepted; names its source.
        """
        environ = os.environ if environ is None else environ
        values = _from_environment(environ)
        path = environ.get(CONFIG_FILE)
        if path:
            values |= _from_file(Path(path))
        return cls(**values).merged(arguments)

    def merged(self, arguments: Mapping[str, Any]) -> Settings:
        """Return these settings with ``arguments`` over them; ``None`` counts as not given.

        Raises:
            InvalidDataException: An unknown name, or a value that is not accepted.
        """
        given = {name: value for name, value in arguments.items() if value is not None}
        return replace(self, **_parse(given, "argument {}"))

    def without(self, *names: str) -> Settings:
        """Return these settings with those of ``names`` back at their defaults."""
        defaults: dict[str, Any] = {name: _FIELDS[name].default for name in names}
        return replace(self, **defaults)


def shard_config(settings: Settings, *, remote: bool = False) -> ShardConfig:
    """Return the settings of the shards of a database.

    Args:
        settings: The database's.
        remote: Whether shards run in processes of their own. Then they check what arrives, because it has crossed a
            process boundary, and each takes one processor: the other shards have the others. Shards in the caller's
            own process need not check what it has just checked, and share its processors.
    """
    default = ShardConfig()
    return ShardConfig(
        durability=settings.durability,
        checkpoint_wal_bytes=settings.checkpoint_wal_bytes,
        index_min_rows=settings.index_min_rows,
        checkpoint_interval_s=settings.checkpoint_interval_s,
        history_retention_s=settings.history_retention_s,
        txn_retention_s=settings.txn_retention_s,
        max_clock_skew_ms=settings.max_clock_skew_ms,
        ceiling_ms=min(default.ceiling_ms, settings.max_clock_skew_ms - 1),
        ef_runtime=settings.ef_runtime or default.ef_runtime,
        search_threads=1 if remote else os.cpu_count() or 1,
        verify_writes=remote,
        verify_queries=remote,
    )


_FIELDS = {entry.name: entry for entry in fields(Settings)}


def _from_environment(environ: Mapping[str, str]) -> dict[str, Any]:
    parsed: dict[str, Any] = {}
    for variable, value in environ.items():
        if variable in UNPREFIXED:
            parsed |= _parse({UNPREFIXED[variable]: value}, f"environment variable {variable}")
        elif variable.startswith(PREFIX):
            parsed |= _parse({variable.removeprefix(PREFIX).lower(): value}, f"environment variable {variable}")
    return parsed


def _from_file(path: Path) -> dict[str, Any]:
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidDataException(f"{CONFIG_FILE} {str(path)!r} cannot be read: {error}") from error
    try:
        if path.suffix.lower() == ".toml":
            content: Any = tomllib.loads(text)
        elif path.suffix.lower() in (".yaml", ".yml"):
            content = yaml.safe_load(text)
        else:
            raise InvalidDataException(f"{CONFIG_FILE} must end in .yaml, .yml or .toml, got {str(path)!r}")
    except (tomllib.TOMLDecodeError, yaml.YAMLError) as error:
        raise InvalidDataException(f"{CONFIG_FILE} {str(path)!r} does not parse: {error}") from error
    if content is None:
        return {}
    if not isinstance(content, dict):
        raise InvalidDataException(
            f"{CONFIG_FILE} {str(path)!r} must hold one table of settings, got {type(content).__name__}"
        )
    names = {str(name).lower().removeprefix(PREFIX.lower()): value for name, value in content.items()}
    return _parse(names, f"{path!s}: {{}}")


def _parse(given: Mapping[str, Any], where: str) -> dict[str, Any]:
    """Parse values by name; ``where`` says where they stand, with ``{}`` for the name."""
    parsed: dict[str, Any] = {}
    for name, value in given.items():
        shown = where.format(name)
        if name not in _FIELDS:
            raise InvalidDataException(f"{shown} is not a setting; known are {', '.join(sorted(_FIELDS))}")
        parser: Parser = _FIELDS[name].metadata["parse"]
        try:
            parsed[name] = parser(value)
        except (ValueError, TypeError) as error:
            raise InvalidDataException(f"{shown} must be {parser.__doc__}, got {value!r}") from error
    return parsed
