"""The record as users hold it: id, vector, metadata, document, and the checksum that proves them end to end.

The checksum is computed where the packet is made, over exactly what is stored (:mod:`vecraft_data_model.payload`); it
is checked when the packet is written, kept on disk, and checked again when it is read. Fields may be assigned to, but
then the checksum no longer holds and a write refuses the packet: make a new one instead.

Bytes of a packet (``to_bytes``)::

    "VDP" 1 │ payload length u32 │ vector length u32, 2**32-1 for none │ payload │ vector, float32 little-endian
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from vecraft_data_model.checksums import DEFAULT_ALGORITHM, check_algorithm
from vecraft_data_model.errors import (
    ChecksumValidationFailureError,
    CorruptionError,
    InvalidDataException,
    NullOrZeroVectorException,
)
from vecraft_data_model.payload import (
    HEADER,
    NONEXISTENT,
    RECORD,
    TOMBSTONE,
    Json,
    Payload,
    encode_payload,
    verify_payload,
)
from vecraft_data_model.validation import check_record_id, shown
from vecraft_data_model.vector_packet import VectorPacket, vector_from_json

Float32Array = npt.NDArray[np.float32]

_HEADER: Final = struct.Struct("<4sII")
_MAGIC: Final = b"VDP\x01"
_NO_VECTOR: Final = 2**32 - 1
_TYPES: Final = {RECORD: "RECORD", TOMBSTONE: "TOMBSTONE", NONEXISTENT: "NONEXISTENT"}
_KINDS: Final = {name: kind for kind, name in _TYPES.items()}
_KEYS: Final = (
    "type", "record_id", "vector", "metadata", "document", "checksum_algorithm", "checksum", "commit_ts",
)  # fmt: skip


class DataPacket:
    """One record.

    Args:
        record_id: 1 to 1024 bytes in UTF-8.
        vector: A :class:`VectorPacket`, an array or a list of numbers.
        metadata: A JSON object, at most 1 MiB.
        document: Text or a JSON object, at most 16 MiB.
        checksum_algorithm: ``sha256``, ``sha512``, ``blake2b``, ``blake2s``, ``md5`` or ``sha1``.

    Attributes:
        vector: A :class:`VectorPacket`; None for what is not a record, and for one that was read without its vector.
        checksum: The digest, in hexadecimal.
        commit_ts: When it was written, if it came from the database; may be given as ``expect``.

    Raises:
        InvalidDataException: A field that is not accepted (or one of its subclasses, for the vector).
    """

    __slots__ = (
        "_kind", "checksum", "checksum_algorithm", "commit_ts", "document", "metadata", "record_id", "vector",
    )  # fmt: skip

    _kind: int
    record_id: str
    vector: VectorPacket | None
    metadata: dict[str, Json] | None
    document: str | dict[str, Json] | None
    checksum_algorithm: str
    checksum: str
    commit_ts: int | None

    def __init__(
        self,
        record_id: str,
        vector: VectorPacket | npt.ArrayLike,
        metadata: dict[str, Json] | None = None,
        document: str | dict[str, Json] | None = None,
        checksum_algorithm: str = DEFAULT_ALGORITHM,
    ) -> None:
        if vector is None:
            raise NullOrZeroVectorException(f"record {shown(record_id)} needs a vector; got None")
        self._kind = RECORD
        self.record_id = check_record_id(record_id)
        self.vector = vector if isinstance(vector, VectorPacket) else VectorPacket(vector)
        self.metadata = metadata
        self.document = document
        self.checksum_algorithm = check_algorithm(checksum_algorithm)
        self.commit_ts = None
        self.checksum = self._computed().hex()

    # ------------------------------------------------------------------------------------------ constructors

    @classmethod
    def create_record(
        cls,
        record_id: str,
        vector: VectorPacket | npt.ArrayLike,
        metadata: dict[str, Json] | None = None,
        document: str | dict[str, Json] | None = None,
        checksum_algorithm: str = DEFAULT_ALGORITHM,
    ) -> DataPacket:
        """Make a record; the same as calling the class."""
        return cls(record_id, vector, metadata, document, checksum_algorithm)

    @classmethod
    def create_tombstone(cls, record_id: str, checksum_algorithm: str = DEFAULT_ALGORITHM) -> DataPacket:
        """Make the mark of a deleted record."""
        return cls._empty(TOMBSTONE, record_id, checksum_algorithm)

    @classmethod
    def create_nonexistent(cls, record_id: str, checksum_algorithm: str = DEFAULT_ALGORITHM) -> DataPacket:
        """Make the mark of a record that never was."""
        return cls._empty(NONEXISTENT, record_id, checksum_algorithm)

    @classmethod
    def _empty(cls, kind: int, record_id: str, algorithm: str) -> DataPacket:
        packet = cls.__new__(cls)
        packet._kind = kind
        packet.record_id = check_record_id(record_id)
        packet.vector = packet.metadata = packet.document = packet.commit_ts = None
        packet.checksum_algorithm = check_algorithm(algorithm)
        packet.checksum = packet._computed().hex()
        return packet

    @classmethod
    def from_payload(
        cls, data: bytes | Payload, vector: Float32Array | None, commit_ts: int | None = None, verify: bool = True
    ) -> DataPacket:
        """Rebuild a packet from stored bytes.

        Args:
            data: The payload.
            vector: (dim,) float32, or None when it was not read; then the checksum cannot be checked.
            commit_ts: When it was written.
            verify: Whether to check the checksum; False if that was just done.

        Raises:
            ChecksumValidationFailureError: Payload and vector do not match.
            CorruptionError: These bytes are no payload.
        """
        payload = data if isinstance(data, Payload) else Payload(data)
        if verify and (vector is not None or payload.kind != RECORD):
            verify_payload(payload.data, vector)
        packet = cls.__new__(cls)
        packet._kind = payload.kind
        packet.record_id = payload.record_id
        packet.vector = None if vector is None else VectorPacket.of_valid(vector)
        packet.metadata = payload.metadata
        packet.document = payload.document
        packet.checksum_algorithm = payload.algorithm
        packet.checksum = payload.digest.hex()
        packet.commit_ts = commit_ts
        return packet

    # -------------------------------------------------------------------------------------------- what it is

    @property
    def type(self) -> str:
        """``"RECORD"``, ``"TOMBSTONE"`` or ``"NONEXISTENT"``."""
        return _TYPES[self._kind]

    def is_record(self) -> bool:
        """Whether it is a record."""
        return self._kind == RECORD

    def is_tombstone(self) -> bool:
        """Whether it marks a deleted record."""
        return self._kind == TOMBSTONE

    def is_nonexistent(self) -> bool:
        """Whether it marks a record that never was."""
        return self._kind == NONEXISTENT

    def validate_checksum(self) -> bool:
        """Compute the checksum again and return True if it still holds.

        Raises:
            ChecksumValidationFailureError: It does not.
            InvalidDataException: A field was changed to what is not accepted, or the vector was not read.
        """
        if self._computed().hex() != self.checksum:
            raise checksum_failure(self)
        return True

    def to_payload(self) -> bytes:
        """Return the bytes that are stored (all but the vector), having checked the checksum.

        Raises:
            ChecksumValidationFailureError: As :meth:`validate_checksum`.
        """
        payload = self._encoded()
        if _digest_of(payload).hex() != self.checksum:
            raise checksum_failure(self)
        return payload

    # ------------------------------------------------------------------------------------- bytes and JSON

    def to_bytes(self) -> bytes:
        """Return the whole packet as bytes; see the module for their layout."""
        payload = self.to_payload()
        if self.vector is None:
            return _HEADER.pack(_MAGIC, len(payload), _NO_VECTOR) + payload
        values = _packed(self.vector)
        return _HEADER.pack(_MAGIC, len(payload), values.dim) + payload + values.to_bytes()

    @classmethod
    def from_bytes(cls, data: bytes) -> DataPacket:
        """Rebuild a packet from ``to_bytes``.

        Raises:
            CorruptionError: These bytes are no packet.
            ChecksumValidationFailureError: They are, but damaged.
        """
        data = bytes(data)
        if len(data) < _HEADER.size or data[: len(_MAGIC)] != _MAGIC:
            raise CorruptionError(f"these {len(data)} bytes are no data packet: they begin with {data[:12].hex()}")
        _, payload_size, dim = _HEADER.unpack_from(data)
        end = _HEADER.size + payload_size
        if len(data) != end + (0 if dim == _NO_VECTOR else 4 * dim):
            raise CorruptionError(
                f"a data packet of {len(data)} bytes cannot hold a payload of {payload_size} and {dim} dimensions"
            )
        payload = Payload(data[_HEADER.size : end])
        if (dim == _NO_VECTOR) == (payload.kind == RECORD):
            raise CorruptionError(
                f"a data packet of kind {_TYPES[payload.kind]} with{'out' * (dim == _NO_VECTOR)} vector"
            )
        vector = None if dim == _NO_VECTOR else np.frombuffer(data, dtype="<f4", offset=end).astype(np.float32)
        return cls.from_payload(payload, vector)

    def to_dict(self) -> dict[str, Any]:
        """Return the packet as JSON values, the vector with its exact bytes in base64."""
        data: dict[str, Any] = {
            "type": self.type,
            "record_id": self.record_id,
            "vector": None if self.vector is None else _packed(self.vector).to_dict(),
            "metadata": self.metadata,
            "document": self.document,
            "checksum_algorithm": self.checksum_algorithm,
            "checksum": self.checksum,
        }
        if self.commit_ts is not None:
            data["commit_ts"] = self.commit_ts
        return data

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> DataPacket:
        """Build a packet from a dict: ``to_dict``'s, or one with ``record_id`` and ``vector`` (a list, too) at least.

        Raises:
            InvalidDataException: Not an object, an unknown or missing key, a bad value.
            ChecksumValidationFailureError: It comes with a checksum that does not hold.
        """
        if not isinstance(data, Mapping):
            raise InvalidDataException(f"a packet must be an object; got {shown(data)}")
        unknown = [key for key in data if key not in _KEYS]
        if unknown:
            raise InvalidDataException(f"unknown packet key {shown(unknown[0])}; accepted are {', '.join(_KEYS)}")
        if "record_id" not in data:
            raise InvalidDataException("a packet needs a record_id")
        kind = data.get("type") or "RECORD"
        if not isinstance(kind, str) or kind not in _KINDS:
            raise InvalidDataException(f"type must be one of {', '.join(_KINDS)}; got {shown(kind)}")
        algorithm = data.get("checksum_algorithm") or DEFAULT_ALGORITHM
        if _KINDS[kind] == RECORD:
            vector = vector_from_json(data.get("vector"))
            packet = cls(data["record_id"], vector, data.get("metadata"), data.get("document"), algorithm)
        else:
            packet = cls._empty(_KINDS[kind], data["record_id"], algorithm)
        if data.get("checksum") not in (None, packet.checksum):
            raise ChecksumValidationFailureError(
                f"record {packet.record_id!r} came with the {algorithm} checksum {shown(data['checksum'])}, "
                f"but its contents have {packet.checksum}",
                record_id=packet.record_id,
            )
        packet.commit_ts = data.get("commit_ts")
        return packet

    # ---------------------------------------------------------------------------------------------- a value

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, DataPacket):
            return NotImplemented
        return (self._kind, self.record_id, self.checksum_algorithm, self.checksum, self.metadata, self.document) == (
            other._kind, other.record_id, other.checksum_algorithm, other.checksum, other.metadata, other.document,
        ) and self.vector == other.vector  # fmt: skip

    __hash__ = None  # type: ignore[assignment]  # fields may be assigned to

    def __reduce__(self) -> tuple[Any, ...]:
        return (_restored, tuple(getattr(self, name) for name in DataPacket.__slots__))

    def __repr__(self) -> str:
        dim = "no vector" if self.vector is None else f"dim={len(self.vector)}"
        shown_fields = f"{self.record_id!r}, {dim}, metadata={self.metadata!r}, document={self.document!r}"
        return f"DataPacket({shown_fields if self.is_record() else f'{self.type}, {self.record_id!r}'})"

    def _encoded(self) -> bytes:
        if self.vector is None:
            if self._kind == RECORD:
                raise InvalidDataException(
                    f"record {self.record_id!r} was read without its vector, which its checksum covers",
                    record_id=self.record_id,
                )
            return encode_payload(self.record_id, None, None, None, self.checksum_algorithm, self._kind)
        values = _packed(self.vector).to_numpy()
        return encode_payload(self.record_id, values, self.metadata, self.document, self.checksum_algorithm, self._kind)

    def _computed(self) -> bytes:
        return _digest_of(self._encoded())


def checksum_failure(packet: DataPacket) -> ChecksumValidationFailureError:
    """Return the error for a packet whose contents do not match its checksum."""
    return ChecksumValidationFailureError(
        f"record {packet.record_id!r} does not match its {packet.checksum_algorithm} checksum "
        f"{shown(packet.checksum)}: it was changed after it was made",
        record_id=packet.record_id,
    )


def _digest_of(payload: bytes) -> bytes:
    # The digest's length stands in the header, at offset 5.
    return payload[HEADER.size : HEADER.size + payload[5]]


def _packed(vector: VectorPacket | npt.ArrayLike) -> VectorPacket:
    # An array assigned to the field is as good as a packet.
    return vector if isinstance(vector, VectorPacket) else VectorPacket(vector)


def _restored(*values: Any) -> DataPacket:
    packet = DataPacket.__new__(DataPacket)
    for name, value in zip(DataPacket.__slots__, values, strict=True):
        setattr(packet, name, value)
    return packet
