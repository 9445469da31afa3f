"""The write-ahead log under crashes at random disk operations, recovery included, many in a row."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import pytest

from vecraft_data_model.errors import StorageFailureException
from vecraft_shard.wal import Wal


def recover(disk: Any, **options: Any) -> tuple[Wal, list[tuple[int, bytes]]]:
    wal = Wal.open(disk, **options)
    return wal, [(record.lsn, bytes(record.payload)) for record in wal.replay()]


def run_until_it_breaks(disk: Any, rng: random.Random, epoch: int, model: list[bytes], base: int) -> tuple[int, int]:
    """Recover, compare with ``model`` (everything ever appended, by LSN), go on writing until the disk fails.

    Returns the highest LSN known durable, and the LSN up to which the log was trimmed.
    """
    options = {"segment_bytes": 4000, "zero_ahead": rng.choice([0, 4096, 65536]), "salt": rng.getrandbits(64)}
    durable = 0
    try:
        wal, found = recover(disk, epoch=epoch, after_lsn=base, **options)
        assert [lsn for lsn, _ in found] == list(range(base + 1, base + 1 + len(found)))
        assert [payload for _, payload in found] == model[base : base + len(found)]
        del model[base + len(found) :]
        durable = wal.next_lsn - 1
        while True:
            frame = [rng.randbytes(rng.choice([0, 5, 700, 3000])) for _ in range(rng.randint(1, 4))]
            model += frame
            wal.append([(rng.randrange(256), [payload[:2], payload[2:]]) for payload in frame])
            if rng.random() < 0.6:
                wal.sync()
                durable = wal.durable_lsn
            if rng.random() < 0.2:
                wal.rotate()
                durable = wal.durable_lsn
            if rng.random() < 0.1:
                base = rng.randint(base, durable)
                wal.trim(base)
    except StorageFailureException:
        return durable, base


@pytest.mark.parametrize("seed", range(150))
def test_crashes_anywhere_lose_nothing_durable(seed: int, new_faulty_disk: Callable[[], Any]) -> None:
    """Ten crashes in a row, each at a random disk operation (recovery included), by power loss or kill."""
    rng = random.Random(seed)
    disk, base, known = new_faulty_disk(), 0, 0
    model: list[bytes] = []
    for epoch in range(1, 11):
        disk.fail_at = disk.steps + rng.choice([3, 10, 40])
        durable, base = run_until_it_breaks(disk, rng, epoch, model, base)
        known = max(known, durable)
        disk = disk.kill() if rng.random() < 0.3 else disk.lose_power(rng.getrandbits(32))
        disk.fail_at = None
        kept = recover(disk.kill(), epoch=epoch, after_lsn=base)[1]
        assert base + len(kept) >= known, f"LSN {known} was durable, the log ends at {base + len(kept)}"
