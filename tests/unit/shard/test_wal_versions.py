"""Logs of the former format version: read as they are, and never written to."""

from __future__ import annotations

import struct
from base64 import b64decode

import numpy as np
import pytest
from crc32c import crc32c

from vecraft_data_model.ports import Disk
from vecraft_shard.disk import MemoryDisk
from vecraft_shard.records import (
    RecordType,
    ResolvedDelete,
    ResolvedPut,
    TransactionRecord,
    decode_timestamp,
    decode_transaction,
    encode_transaction,
)
from vecraft_shard.wal import Wal, WalRecord
from vecraft_shard.wal_format import FORMAT_VERSION, SEGMENT_HEADER_BYTES, SegmentHeader

FORMER = b64decode(
    "VkNSRlRXQUwBAAAAAAAAAAEAAAAAAAAAAQAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA3yBnYFZDRlIBAAAAAQAAAAAAAAAAAAAA"
    "AAAAAAEAAAAAAAAAkAAAAAAAAAACAAAA3yBnYMSqjQwbITHgCAAAAAEAAAAAAGMAAAAAAHIAAAACAAAAVgAAAJjZJDAxOThjMGRlLTAwMDAtNzAwMC04"
    "MDAwLTAwMDAwMDAwMDAwMcQEaGFzaM4ATQAAAJCQkpWhcKJjMZKhYaFiAsQIAwAAAAUAAACToWSiYzGRoXqQAACAPwAAAEAAAEBAAACAQG9uZXRocmVl"
    "AAAAAAAA"
)
"""A segment that the program before wrote: a ceiling, and a transaction that puts "a" and "b" and deletes "z"."""


def former(segment: bytes = FORMER) -> MemoryDisk:
    disk = MemoryDisk()
    disk.open(f"wal/{1:020d}.wal").pwrite(segment, 0)
    return disk


def opened(disk: Disk, epoch: int, **options: int) -> tuple[Wal, list[WalRecord]]:
    wal = Wal.open(disk, epoch=epoch, **options)
    return wal, list(wal.replay())


def versions(disk: Disk) -> list[int]:
    return [struct.unpack("<I", disk.open(name).pread(4, 8))[0] for name in disk.list("wal")]


def deletion(matched_at: int) -> list[bytes | memoryview]:
    deleted = ResolvedDelete("c1", ["a"], matched_at)
    return encode_transaction(TransactionRecord("id", b"hash", 5, [deleted]))


def test_the_former_version_is_read() -> None:
    _, (ceiling, commit) = opened(former(), epoch=2)
    assert ceiling.type == RecordType.CEILING and decode_timestamp(ceiling.payload) == 99 << 16
    assert commit.type == RecordType.COMMIT_ONE
    transaction = decode_transaction(commit.payload)
    put, deleted = transaction.mutations
    assert isinstance(put, ResolvedPut) and put.ids == ["a", "b"] and put.payloads == [b"one", b"three"]
    assert np.array_equal(put.vectors, [[1, 2], [3, 4]])
    assert deleted == ResolvedDelete("c1", ["z"], matched_at=0)
    assert (transaction.txn_id[-4:], transaction.content_hash, transaction.ts) == ("0001", b"hash", 77 << 16)


def test_what_is_written_now_stands_in_a_segment_that_the_program_before_refuses() -> None:
    disk = former()
    wal, _ = opened(disk, epoch=2)
    wal.append([(RecordType.COMMIT_ONE, deletion(matched_at=4))])
    wal.sync()
    wal.close()
    assert versions(disk) == [1, FORMAT_VERSION] and FORMAT_VERSION > 1
    assert disk.open(disk.list("wal")[0]).pread(1000, 0) == FORMER
    wal, records = opened(disk, epoch=3)
    assert [record.lsn for record in records] == [1, 2, 3]
    assert decode_transaction(records[-1].payload).mutations == [ResolvedDelete("c1", ["a"], 4)]
    wal.close()
    assert len(disk.list("wal")) == 2, "nothing is left to be renewed"


@pytest.mark.parametrize("rest", [b"", bytes(5000), b"VCFR torn"])
def test_a_segment_of_the_former_version_without_a_frame_is_made_anew(rest: bytes) -> None:
    """A rotation before the program was exchanged leaves one, maybe with zeros or a torn frame in it."""
    last_crc = struct.unpack_from("<I", FORMER, SEGMENT_HEADER_BYTES + 52)[0]
    header = bytearray(SegmentHeader(first_lsn=3, epoch=1, salt=0, chain=last_crc).encode())
    struct.pack_into("<I", header, 8, 1)
    struct.pack_into("<I", header, 60, crc32c(bytes(header[:60])))
    disk = former()
    disk.open(f"wal/{3:020d}.wal").pwrite(bytes(header) + rest, 0)
    wal, records = opened(disk, epoch=2)
    assert len(records) == 2 and versions(disk) == [1, FORMAT_VERSION]
    wal.append([(RecordType.COMMIT_ONE, deletion(matched_at=4))])
    wal.sync()
    wal.trim(2)
    wal.close()
    _, records = opened(disk, epoch=3, after_lsn=2)
    assert [record.lsn for record in records] == [3]


def test_a_log_of_one_empty_segment_is_made_anew() -> None:
    disk = former(FORMER[:SEGMENT_HEADER_BYTES])
    for epoch in (2, 3):
        wal, records = opened(disk, epoch=epoch)
        wal.close()
        assert not records and versions(disk) == [FORMAT_VERSION]
