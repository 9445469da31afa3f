"""Who may speak on a shard's socket, and with whom: one key pair and one token per incarnation of a shard actor.

::

    shard actor    makes a key, a certificate for it and a random token; keeps the key in memory
    actor call     hands certificate and token to whoever Ray lets call the actor
    client         accepts no peer but the holder of that very certificate's key (TLS 1.3), then shows the token

So both sides know each other, everything between them is encrypted, and nothing has to be distributed, renewed or
revoked: a restarted shard has a new key, a new token and a new port, and the old ones are worth nothing.

There is no name, no authority and no expiry to check in a certificate that is compared byte by byte. It is made anew
with the process, so its dates only have to be wide enough for clocks that disagree.
"""

from __future__ import annotations

import datetime
import hmac
import os
import secrets
import ssl

import msgspec
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

TOKEN_BYTES = 32
_VALID = datetime.timedelta(days=3650)


class Endpoint(msgspec.Struct, frozen=True):
    """Where a shard serves batches, and how to know it and be known there. Whoever has this may read and write all.

    Attributes:
        host: Address it listens on.
        port: TCP port.
        certificate: The only certificate to accept there, DER.
        token: What to show after the handshake.
        shard: Its number.
        epoch: Of the shard's incarnation: raised at each start.
    """

    host: str
    port: int
    certificate: bytes
    token: bytes
    shard: int
    epoch: int

    def __repr__(self) -> str:
        return f"Endpoint({self.host}:{self.port}, shard {self.shard}, epoch {self.epoch})"  # no token in a log


class Identity:
    """A fresh key, its certificate and a token, for one process."""

    def __init__(self) -> None:
        key = ec.generate_private_key(ec.SECP256R1())
        name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "vecraft shard")])
        now = datetime.datetime.now(datetime.UTC)
        certificate = (
            x509.CertificateBuilder()
            .subject_name(name)
            .issuer_name(name)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - _VALID)
            .not_valid_after(now + _VALID)
            .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
            .sign(key, hashes.SHA256())
        )
        self.certificate = certificate.public_bytes(serialization.Encoding.DER)
        self.token = secrets.token_bytes(TOKEN_BYTES)
        self.context = _context(ssl.PROTOCOL_TLS_SERVER)
        # What a client could resume is of no use: it asks the actor for each connection. And a ticket would arrive
        # after the handshake, as something to read that is no answer.
        self.context.num_tickets = 0
        _load(
            self.context,
            key.private_bytes(
                serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
            )
            + certificate.public_bytes(serialization.Encoding.PEM),
        )

    def recognises(self, token: bytes) -> bool:
        """Whether that is the token, in a time that does not tell how much of it is right."""
        return hmac.compare_digest(token, self.token)


def client_context(certificate: bytes) -> ssl.SSLContext:
    """Return the TLS settings that accept the holder of that certificate (DER) and nobody else."""
    context = _context(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False  # it is the key that is known, not a name
    context.verify_mode = ssl.CERT_REQUIRED
    context.load_verify_locations(cadata=certificate)
    return context


def _context(protocol: int) -> ssl.SSLContext:
    context = ssl.SSLContext(protocol)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    return context


def _load(context: ssl.SSLContext, pem: bytes) -> None:
    """Give a context its key. The standard library reads keys from files only, so it gets one that is on no disk."""
    descriptor = os.memfd_create("vecraft-key", os.MFD_CLOEXEC)
    try:
        os.write(descriptor, pem)
        context.load_cert_chain(f"/proc/self/fd/{descriptor}")
    finally:
        os.close(descriptor)
