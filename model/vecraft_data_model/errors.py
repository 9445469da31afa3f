"""Every error VecraftDB raises, classed by what the caller does next.

::

    VecraftError
    ├── fix the input (4xx)
    │   ├── InvalidDataException             a value that is not accepted, named with what is
    │   │   ├── VectorDimensionMismatchException
    │   │   ├── NullOrZeroVectorException
    │   │   ├── UnsupportedMetricException
    │   │   └── InvalidFilterError           where / where_document, with the path of the fault
    │   ├── CollectionNotExistedException
    │   ├── CollectionAlreadyExistedException
    │   ├── RecordNotFoundError
    │   ├── PreconditionFailedError          expect= did not hold
    │   ├── AuthenticationError              missing, wrong or forged key or token
    │   └── SnapshotTooOldError              the history asked for is reclaimed
    ├── retry the transaction (409)
    │   ├── WriteConflictException           first committer wins
    │   └── ReadWriteConflictException       serializable: a key that was read has changed
    ├── retry later, same request
    │   ├── TimeoutException                 the deadline passed; the outcome may be unknown
    │   ├── OverloadedError
    │   ├── ShardUnavailableError
    │   ├── StaleMapError                    the router refreshes its map and retries by itself
    │   └── ClockSkewError
    └── an operator has to look
        ├── StorageFailureException          the disk failed
        │   └── StorageFullError             the disk, or a quota, is full: the shard is read-only until there is room
        ├── CorruptionError                  a file does not say what was written, file and offset named
        ├── ChecksumValidationFailureError   a record does not match its checksum
        └── TsnePlotGeneratingFailureException

Errors cross process boundaries: they pickle, and ``to_dict``/``from_dict`` carry them through REST.
"""

from __future__ import annotations

from typing import Any, ClassVar


class VecraftError(Exception):
    """Base of all VecraftDB errors.

    Args:
        message: What was given, what is accepted, and for which record, in one sentence.
        details: JSON-able facts about the fault, for programs (for example ``record_id="a"``).
    """

    code: ClassVar[str] = "internal"
    retryable: ClassVar[bool] = False

    def __init__(self, message: str = "", **details: Any) -> None:
        super().__init__(message)
        self.message = message
        self.details = details

    def __reduce__(self) -> tuple[Any, ...]:
        return (_rebuild, (type(self), self.message, self.details))

    def to_dict(self) -> dict[str, Any]:
        """Return ``{"code", "message", "details"}``, the form errors travel in."""
        return {"code": self.code, "message": self.message, "details": self.details}

    @staticmethod
    def from_dict(data: dict[str, Any]) -> VecraftError:
        """Rebuild the error of that ``code``; an unknown code becomes a plain ``VecraftError``."""
        cls = ERRORS_BY_CODE.get(str(data.get("code")), VecraftError)
        return cls(str(data.get("message", "")), **dict(data.get("details") or {}))


def _rebuild(cls: type[VecraftError], message: str, details: dict[str, Any]) -> VecraftError:
    return cls(message, **details)


class InvalidDataException(VecraftError):
    """A value that is not accepted."""

    code = "invalid_argument"


class VectorDimensionMismatchException(InvalidDataException):
    """A vector whose length is not the collection's dimension."""

    code = "dimension_mismatch"


class NullOrZeroVectorException(InvalidDataException):
    """An empty vector, or a zero vector under cosine, which has no direction."""

    code = "null_or_zero_vector"


class UnsupportedMetricException(InvalidDataException):
    """A metric other than l2, cosine and ip."""

    code = "unsupported_metric"


class InvalidFilterError(InvalidDataException):
    """A filter that does not parse; the message names the path inside it."""

    code = "invalid_filter"


class CollectionNotExistedException(VecraftError):
    """No collection or alias of that name at that snapshot."""

    code = "collection_not_found"


class CollectionAlreadyExistedException(VecraftError):
    """A collection or alias of that name exists."""

    code = "collection_exists"


class RecordNotFoundError(VecraftError):
    """No record of that id at that snapshot."""

    code = "record_not_found"


class PreconditionFailedError(VecraftError):
    """A conditional write whose ``expect`` did not hold."""

    code = "precondition_failed"


class AuthenticationError(VecraftError):
    """A missing or wrong API key, or a token that this cluster did not sign."""

    code = "unauthenticated"


class SnapshotTooOldError(VecraftError):
    """The snapshot lies below the safe point: its history may be reclaimed."""

    code = "snapshot_too_old"


class WriteConflictException(VecraftError):
    """Another transaction wrote, or is about to write, a key of this one's write set."""

    code = "write_conflict"
    retryable = True


class ReadWriteConflictException(VecraftError):
    """Under ``serializable``: a key that this transaction read by id was changed since."""

    code = "read_write_conflict"
    retryable = True


class TimeoutException(VecraftError):
    """The deadline passed. A write may still have happened: retry it with the same ``txn_id``."""

    code = "deadline_exceeded"
    retryable = True


class OverloadedError(VecraftError):
    """Too much is queued; nothing was done."""

    code = "overloaded"
    retryable = True


class ShardUnavailableError(VecraftError):
    """A shard did not answer until the deadline."""

    code = "shard_unavailable"
    retryable = True


class StaleMapError(VecraftError):
    """The request was routed by an old cluster map."""

    code = "stale_map"
    retryable = True


class ClockSkewError(VecraftError):
    """A timestamp too far ahead of this node's physical clock."""

    code = "clock_skew"
    retryable = True


class StorageFailureException(VecraftError):
    """The disk failed. A shard that met it while writing stops itself and recovers from its files."""

    code = "storage_failure"


class StorageFullError(StorageFailureException):
    """The disk, or a quota, is full. Nothing of the request was done; reads go on, and writes once there is room."""

    code = "storage_full"


class CorruptionError(VecraftError):
    """A file does not say what was written to it."""

    code = "corruption"


class ChecksumValidationFailureError(VecraftError):
    """A record's bytes do not match the checksum that was computed where it was made."""

    code = "checksum_mismatch"


class TsnePlotGeneratingFailureException(VecraftError):
    """The plot could not be made."""

    code = "tsne_failure"


def _subclasses(cls: type[VecraftError]) -> list[type[VecraftError]]:
    return [cls, *(leaf for child in cls.__subclasses__() for leaf in _subclasses(child))]


ERRORS_BY_CODE: dict[str, type[VecraftError]] = {cls.code: cls for cls in _subclasses(VecraftError)}
