"""Tokens that clients outside the cluster carry: signed, so that a forged one is refused.

A token is ``base64url(payload ‖ HMAC-SHA256(secret, purpose ‖ 0 ‖ payload)[:16])`` without padding. The purpose keeps
a token of one kind from being taken for another. It hides nothing; it only proves that this cluster made it.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import struct

from vecraft_data_model.errors import AuthenticationError, InvalidDataException
from vecraft_data_model.hlc import INFINITY_TS

SECRET_BYTES_MIN = 16
TOKEN_LENGTH_MAX = 8192
_MAC_BYTES = 16
_SESSION = "session"
_TIMESTAMP = struct.Struct(">Q")


class SessionTokens:
    """Makes and checks tokens.

    Args:
        secret: The cluster's secret, at least 16 bytes; all gateways of a cluster share it.

    Raises:
        InvalidDataException: The secret is too short.
    """

    def __init__(self, secret: bytes) -> None:
        if len(secret) < SECRET_BYTES_MIN:
            raise InvalidDataException(
                f"a cluster secret must have at least {SECRET_BYTES_MIN} bytes, got {len(secret)}"
            )
        self._secret = bytes(secret)

    def issue(self, ts: int) -> str:
        """Return the session token for the highest timestamp that a client has seen (0 to 2**63-1)."""
        return self.sign(_SESSION, _TIMESTAMP.pack(ts))

    def read(self, token: str) -> int:
        """Return the timestamp in a session token.

        Raises:
            AuthenticationError: This cluster did not make it.
        """
        payload = self.verify(_SESSION, token)
        if len(payload) != _TIMESTAMP.size:
            raise _forged(_SESSION)
        ts: int = _TIMESTAMP.unpack(payload)[0]
        if ts > INFINITY_TS:
            raise _forged(_SESSION)
        return ts

    def sign(self, purpose: str, payload: bytes) -> str:
        """Return a token that carries ``payload`` in the open (for scan cursors and the like)."""
        return base64.urlsafe_b64encode(payload + self._mac(purpose, payload)).rstrip(b"=").decode("ascii")

    def verify(self, purpose: str, token: str) -> bytes:
        """Return the payload of a token made by :meth:`sign` for the same purpose.

        Raises:
            AuthenticationError: This cluster did not make it, or made it for something else.
        """
        if not isinstance(token, str) or len(token) > TOKEN_LENGTH_MAX:
            raise _forged(purpose)
        try:
            data = base64.b64decode(token.encode("ascii") + b"=" * (-len(token) % 4), altchars=b"-_", validate=True)
        except (UnicodeEncodeError, binascii.Error) as error:
            raise _forged(purpose) from error
        payload, mac = data[:-_MAC_BYTES], data[-_MAC_BYTES:]
        if not hmac.compare_digest(mac, self._mac(purpose, payload)):
            raise _forged(purpose)
        # base64 has spare bits in its last digit, and the standard alphabet is not ours: only one spelling counts
        if base64.urlsafe_b64encode(data).rstrip(b"=") != token.encode("ascii"):
            raise _forged(purpose)
        return payload

    def _mac(self, purpose: str, payload: bytes) -> bytes:
        return hmac.digest(self._secret, b"vecraft\x00" + purpose.encode() + b"\x00" + payload, hashlib.sha256)[
            :_MAC_BYTES
        ]


def _forged(purpose: str) -> AuthenticationError:
    return AuthenticationError(f"the {purpose} token was not issued by this cluster", purpose=purpose)
