"""A log that fails stops its shard, whatever it was about to write: what runs the shard then opens it again."""

from __future__ import annotations

import time
from typing import Any

from shard_workbench import create, put

from vecraft_data_model.errors import StorageFailureException
from vecraft_data_model.messages import (
    Acknowledge,
    CommitOne,
    Committed,
    Decide,
    Prepare,
    Prepared,
    Refused,
    Transaction,
)
from vecraft_shard.config import ShardConfig
from vecraft_shard.engine import Shard

NOW_MS = 1_700_000_000_000


def test_a_record_that_nobody_waits_for_stops_it_too(faulty_disk: Any) -> None:
    """Else it refused every write until somebody happened to ask for one that has to be synced."""
    shard = Shard.open(faulty_disk, 0, NOW_MS, ShardConfig(), stopwatch=time.perf_counter)
    (created,) = shard.execute([CommitOne(Transaction("c", b"c", [create()]))], NOW_MS)
    (vote,) = shard.execute([Prepare(Transaction("t", b"t", [put("a")]), 0, [0, 1])], NOW_MS)
    assert isinstance(created, Committed) and isinstance(vote, Prepared)
    shard.execute([Decide("t", vote.prepare_ts)], NOW_MS)
    faulty_disk.fail_kind = "write"
    (answer,) = shard.execute([Acknowledge("t", [1])], NOW_MS)
    assert isinstance(answer, Refused)
    assert isinstance(shard.failed, StorageFailureException)
