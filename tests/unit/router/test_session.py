"""Tokens: what this cluster did not make is refused, down to the last bit."""

from __future__ import annotations

import base64

import pytest

from vecraft_data_model.errors import AuthenticationError, InvalidDataException
from vecraft_router import SessionTokens

TOKENS = SessionTokens(b"a secret of a cluster")


@pytest.mark.parametrize("ts", [0, 1, 12345678901234567, 2**63 - 1])
def test_round_trip(ts: int) -> None:
    token = TOKENS.issue(ts)
    assert TOKENS.read(token) == ts
    assert SessionTokens(b"a secret of a cluster").read(token) == ts


def test_any_changed_bit_is_refused() -> None:
    data = bytearray(base64.urlsafe_b64decode(TOKENS.issue(77 << 40)))
    for bit in range(len(data) * 8):
        data[bit // 8] ^= 1 << bit % 8
        with pytest.raises(AuthenticationError):
            TOKENS.read(base64.urlsafe_b64encode(bytes(data)).decode())
        data[bit // 8] ^= 1 << bit % 8
    for payload in (b"", b"abc", b"\xff" * 31):  # also in the spare bits of the last digit
        token = TOKENS.sign("cursor", payload)
        for digit in "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_":
            if digit != token[-1]:
                with pytest.raises(AuthenticationError):
                    TOKENS.verify("cursor", token[:-1] + digit)


@pytest.mark.parametrize("token", ["", "x", "=", "é", "A" * 32, "A" * 10**6, "\n", TOKENS.issue(5) + "\n", None, 5])
def test_garbage_is_refused(token: str) -> None:
    with pytest.raises(AuthenticationError, match="session token"):
        TOKENS.read(token)


def test_truncated_padded_and_respelled_tokens_are_refused() -> None:
    token = SessionTokens(b"0" * 16).issue(2**62 + 12345)
    for other in (token[:-1], token + "=", token[:-4], " " + token, token.replace("-", "+").replace("_", "/") + "A"):
        with pytest.raises(AuthenticationError):
            SessionTokens(b"0" * 16).read(other)


def test_a_token_is_for_one_cluster_and_one_purpose() -> None:
    with pytest.raises(AuthenticationError):
        SessionTokens(b"a secret of another").read(TOKENS.issue(5))
    cursor = TOKENS.sign("cursor", (5).to_bytes(8, "big"))
    assert TOKENS.verify("cursor", cursor) == (5).to_bytes(8, "big")
    with pytest.raises(AuthenticationError):
        TOKENS.read(cursor)
    with pytest.raises(AuthenticationError):
        TOKENS.read(TOKENS.sign("session", b"short"))


def test_a_short_secret_is_refused() -> None:
    with pytest.raises(InvalidDataException, match="16 bytes"):
        SessionTokens(b"short")
