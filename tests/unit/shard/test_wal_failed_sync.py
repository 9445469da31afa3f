"""A sync that failed: the system takes the pages for clean afterwards, and later syncs write nothing of them."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from tests.simulation.disk import SimulatedDisk
from vecraft_data_model.errors import StorageFailureException
from vecraft_shard.wal import Wal


def read(disk: SimulatedDisk, epoch: int) -> tuple[Wal, list[bytes]]:
    wal = Wal.open(disk, epoch=epoch)
    return wal, [bytes(record.payload) for record in wal.replay()]


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize("before", [0, 1, 3])
def test_what_recovery_found_after_a_failed_sync_survives_a_power_failure(
    tmp_path: Path, seed: int, before: int
) -> None:
    failing = False

    def step(kind: str, name: str) -> None:
        if failing and kind == "sync":
            raise StorageFailureException(f"cannot sync {name}: told to fail")

    disk = SimulatedDisk(tmp_path, random.Random(seed), step)
    wal, _ = read(disk, 1)
    expected = [b"synced %d" % number for number in range(before)]
    for payload in expected:
        wal.append([(1, [payload])])
        wal.sync()
    wal.append([(1, [b"doubtful"])])
    failing = True
    with pytest.raises(StorageFailureException):
        wal.sync()
    failing = False
    wal, found = read(disk, 2)
    assert found == [*expected, b"doubtful"]
    wal.append([(1, [b"after"])])
    wal.sync()
    disk.lose_power()
    assert read(disk, 3)[1] == [*expected, b"doubtful", b"after"]
