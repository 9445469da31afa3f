"""Values as they are typed on the command line: vectors, filters, metadata, documents.

Wherever JSON is expected, ``@FILE`` reads it from a file and ``@-`` from standard input. A vector may also be
``@FILE.npy``.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from vecraft_data_model.errors import InvalidDataException


def json_value(text: str, option: str) -> Any:
    """Parse JSON, or the JSON in the file that ``@`` names.

    Raises:
        InvalidDataException: It is not JSON, or the file cannot be read.
    """
    if text.startswith("@"):
        text = _file_text(text[1:], option)
    try:
        return msgspec.json.decode(text)
    except (msgspec.DecodeError, RecursionError) as error:
        shown = text if len(text) <= 60 else text[:57] + "…"
        raise InvalidDataException(f"{option} must be JSON: {error}; got {shown!r}") from error


def json_object(text: str | None, option: str) -> dict[str, Any] | None:
    """Parse a JSON object; ``None`` stays ``None``."""
    if text is None:
        return None
    value = json_value(text, option)
    if not isinstance(value, dict):
        raise InvalidDataException(f"{option} must be a JSON object, got {value!r}")
    return value


def vector_value(text: str, option: str = "--vector") -> Any:
    """Parse a vector: a JSON list, numbers separated by commas, or ``@FILE`` (.npy or JSON)."""
    if text.startswith("@") and text.endswith(".npy"):
        try:
            array = np.load(text[1:], allow_pickle=False)
        except (OSError, ValueError, EOFError) as error:
            raise InvalidDataException(f"{option}: {text[1:]!r} cannot be read as .npy: {error}") from error
        return array.reshape(-1) if array.ndim == 2 and len(array) == 1 else array
    if not text.startswith(("[", "@")):
        text = f"[{text}]"
    value = json_value(text, option)
    if not isinstance(value, list):
        raise InvalidDataException(f"{option} must be a list of numbers, got {value!r}")
    return value


def document_value(text: str | None, is_json: bool) -> Any:
    """Return a document: the text itself, the text of the file that ``@`` names, or JSON."""
    if text is None:
        return None
    if is_json:
        return json_value(text, "--document")
    return _file_text(text[1:], "--document") if text.startswith("@") else text


def _file_text(name: str, option: str) -> str:
    try:
        return sys.stdin.read() if name == "-" else Path(name).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidDataException(f"{option}: {name!r} cannot be read: {error}") from error
