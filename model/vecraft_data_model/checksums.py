"""The checksum algorithms a record may carry: their names, their codes on disk, and what computes them.

A code is one byte of every payload header, so codes are never reused or renumbered.
Keyed or truncated digests are deliberately not offered: a checksum here finds damage, it authenticates nobody.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from typing import Any, Final

from vecraft_data_model.errors import InvalidDataException

DEFAULT_ALGORITHM: Final = "sha256"

CODES: Final[dict[str, int]] = {"sha256": 1, "sha512": 2, "blake2b": 3, "blake2s": 4, "md5": 5, "sha1": 6}
"""Algorithm name → code in a payload header."""

NAMES: Final[dict[int, str]] = {code: name for name, code in CODES.items()}

# Constructors taken from hashlib by attribute: they skip the lookup by name that hashlib.new makes on every call.
HASHES: Final[dict[str, Callable[..., Any]]] = {
    "sha256": hashlib.sha256,
    "sha512": hashlib.sha512,
    "blake2b": hashlib.blake2b,
    "blake2s": hashlib.blake2s,
    "md5": lambda data=b"": hashlib.md5(data, usedforsecurity=False),
    "sha1": lambda data=b"": hashlib.sha1(data, usedforsecurity=False),
}
"""Algorithm name → a function that starts a hash over some first bytes."""

DIGEST_SIZES: Final[dict[str, int]] = {name: int(make(b"").digest_size) for name, make in HASHES.items()}
"""Algorithm name → digest length in bytes."""


def check_algorithm(algorithm: object, what: str = "checksum_algorithm") -> str:
    """Return ``algorithm`` if it is one of the supported names.

    Raises:
        InvalidDataException: It is not.
    """
    if not isinstance(algorithm, str) or algorithm not in CODES:
        raise InvalidDataException(f"{what} must be one of {', '.join(CODES)}; got {algorithm!r}")
    return algorithm
