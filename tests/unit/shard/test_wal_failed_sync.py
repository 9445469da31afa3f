"""A sync that failed: the system takes the pages for clean afterwards, and later syncs write nothing of them."""

from __future__ import annotations

from typing import Any

import pytest

from vecraft_data_model.errors import StorageFailureException
from vecraft_shard.wal import Wal


def read(disk: Any, epoch: int) -> tuple[Wal, list[bytes]]:
    wal = Wal.open(disk, epoch=epoch)
    return wal, [bytes(record.payload) for record in wal.replay()]


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize("before", [0, 1, 3])
def test_what_recovery_found_after_a_failed_sync_survives_a_power_failure(
    faulty_disk: Any, seed: int, before: int
) -> None:
    wal, _ = read(faulty_disk, 1)
    expected = [b"synced %d" % number for number in range(before)]
    for payload in expected:
        wal.append([(1, [payload])])
        wal.sync()
    wal.append([(1, [b"doubtful"])])
    faulty_disk.fail_kind = "sync"
    with pytest.raises(StorageFailureException):
        wal.sync()
    faulty_disk.fail_kind = None
    for file in faulty_disk.files.values():
        file.pending.clear()
    wal, found = read(faulty_disk, 2)
    assert found == [*expected, b"doubtful"]
    wal.append([(1, [b"after"])])
    wal.sync()
    assert read(faulty_disk.lose_power(seed), 3)[1] == [*expected, b"doubtful", b"after"]
