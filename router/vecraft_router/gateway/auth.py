"""Who may call: API keys, compared in constant time.

A key comes as ``Authorization: Bearer <key>`` or ``X-Api-Key: <key>``, exactly as configured: case counts, nothing is
trimmed. With no keys configured everybody may call (the default binding is the loopback interface). Probes and the
documentation need no key. Signed web tokens (JWT) are not offered: one that is sent as a key is a wrong key, whatever
its header claims, so ``alg=none`` and the like have nothing to attack.
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Sequence

from vecraft_data_model.errors import AuthenticationError, InvalidDataException

DOCS_FILES = "/docs/files"
OPEN_PATHS = frozenset(
    {"/healthz", "/readyz", "/docs", "/openapi.json"}
    | {f"{DOCS_FILES}/{name}" for name in ("swagger-ui-bundle.js", "swagger-ui.css", "favicon.png")}
)


class ApiKeys:
    """The keys that are accepted, held as digests.

    Args:
        keys: Printable ASCII without spaces, at least one character each; an empty sequence lets everybody in.

    Raises:
        InvalidDataException: A key that no header could carry unchanged.
    """

    def __init__(self, keys: Sequence[str] = ()) -> None:
        for key in keys:
            if not key or not all("!" <= char <= "~" for char in key):
                raise InvalidDataException("an API key must be printable ASCII without spaces, and not empty")
        self._digests = [hashlib.sha256(key.encode()).digest() for key in keys]

    def check(self, path: str, headers: dict[bytes, bytes]) -> None:
        """Let the request pass.

        Raises:
            AuthenticationError: No key, or a wrong one. It does not say how close it was.
        """
        if not self._digests or path in OPEN_PATHS:
            return
        given = headers.get(b"x-api-key")
        if given is None:
            scheme, _, given = headers.get(b"authorization", b"").partition(b" ")
            if scheme.lower() != b"bearer":
                raise AuthenticationError("an API key is needed: Authorization: Bearer <key>, or X-Api-Key: <key>")
        digest = hashlib.sha256(given).digest()
        # Every key is compared, so that the time does not tell which one was nearly right.
        matches = [hmac.compare_digest(digest, known) for known in self._digests]
        if not any(matches):
            raise AuthenticationError("the API key is not accepted")
