"""Logs as JSON lines, one object per record, for a server's standard error.

    {"time": "2026-01-31T12:00:00.123Z", "level": "warning", "logger": "vecraft.gateway", "message": "…", "shard": 0}

Whatever a log call passes as ``extra`` becomes a key of its own (``collection``, ``shard``, ``txn_id``, ``lsn``,
``request_id``); a traceback becomes ``exception``. A record that cannot be written as JSON is written with its values
as text.
"""

from __future__ import annotations

import logging
import sys
from datetime import UTC, datetime
from typing import Any, TextIO

import msgspec

_STANDARD = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "color_message"}


class JsonFormatter(logging.Formatter):
    """Formats records as JSON lines."""

    def format(self, record: logging.LogRecord) -> str:
        """Return one line."""
        moment = datetime.fromtimestamp(record.created, UTC)
        line: dict[str, Any] = {
            "time": f"{moment:%Y-%m-%dT%H:%M:%S}.{moment.microsecond // 1000:03d}Z",
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        # Libraries hang marks of their own, with an underscore, on every record.
        given = {name: value for name, value in vars(record).items() if name not in _STANDARD and name[0] != "_"}
        line.update(given)
        if record.exc_info and record.exc_info[0] is not None:
            line["exception"] = self.formatException(record.exc_info)
        try:
            return msgspec.json.encode(line, enc_hook=repr).decode()
        except (UnicodeEncodeError, TypeError, ValueError, OverflowError):
            safe = {str(name): ascii(value) for name, value in line.items()}
            return msgspec.json.encode(safe).decode()


def log_as_json(level: str, stream: TextIO | None = None) -> None:
    """Send all logs of this process to ``stream`` (standard error) as JSON lines, from ``level`` up."""
    handler = logging.StreamHandler(stream or sys.stderr)
    handler.setFormatter(JsonFormatter())
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level)
    # httpx tells of every request at INFO; uvicorn's own lines say nothing a user needs to see twice.
    for noisy in ("httpx", "httpcore", "uvicorn.error", "matplotlib", "PIL"):
        logging.getLogger(noisy).setLevel(max(logging.WARNING, logging.getLevelName(level)))
