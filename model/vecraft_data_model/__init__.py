"""The words that all rooms of VecraftDB share: packets, schemas, filters, errors, messages, clocks, ports.

How a write and a search pass through the modules here:

1. A caller makes a :class:`DataPacket` (:mod:`~vecraft_data_model.data_packet`): its fields are checked
   (:mod:`~vecraft_data_model.validation`, :mod:`~vecraft_data_model.strict_json`), its vector becomes float32, its
   checksum is computed over its stored form (:mod:`~vecraft_data_model.payload`).
2. :mod:`~vecraft_data_model.convert` turns packets, or columns, into a ``Put`` message
   (:mod:`~vecraft_data_model.messages`); :mod:`~vecraft_data_model.placement` says which shard each record belongs to.
3. A search begins as a :class:`QueryPacket`; its ``where`` is parsed into nodes (:mod:`~vecraft_data_model.filters`).
   Shards compute :mod:`~vecraft_data_model.distances` and answer with ``Hits``, which become
   :class:`SearchResult` objects that decode metadata and documents when looked at.

Everything is a value or a function of values. No module here opens a file or a socket, starts a thread, or knows a
database; what lower rooms need from outside is described in :mod:`~vecraft_data_model.ports`.
"""

from vecraft_data_model.errors import (
    AuthenticationError,
    ChecksumValidationFailureError,
    ClockSkewError,
    CollectionAlreadyExistedException,
    CollectionNotExistedException,
    CorruptionError,
    InvalidDataException,
    InvalidFilterError,
    NullOrZeroVectorException,
    OverloadedError,
    PreconditionFailedError,
    ReadWriteConflictException,
    RecordNotFoundError,
    ShardUnavailableError,
    SnapshotTooOldError,
    StaleMapError,
    StorageFailureException,
    TimeoutException,
    TsnePlotGeneratingFailureException,
    UnsupportedMetricException,
    VecraftError,
    VectorDimensionMismatchException,
    WriteConflictException,
)
from vecraft_data_model.packets import (
    CollectionInfo,
    CommitResult,
    DataPacket,
    QueryPacket,
    SearchResult,
    VectorPacket,
)
from vecraft_data_model.schema import CollectionSchema

__all__ = [
    "AuthenticationError", "ChecksumValidationFailureError", "ClockSkewError", "CollectionAlreadyExistedException",
    "CollectionInfo", "CollectionNotExistedException", "CollectionSchema", "CommitResult", "CorruptionError",
    "DataPacket", "InvalidDataException", "InvalidFilterError", "NullOrZeroVectorException", "OverloadedError",
    "PreconditionFailedError", "QueryPacket", "ReadWriteConflictException", "RecordNotFoundError", "SearchResult",
    "ShardUnavailableError", "SnapshotTooOldError", "StaleMapError", "StorageFailureException", "TimeoutException",
    "TsnePlotGeneratingFailureException", "UnsupportedMetricException", "VecraftError",
    "VectorDimensionMismatchException", "VectorPacket", "WriteConflictException",
]  # fmt: skip
