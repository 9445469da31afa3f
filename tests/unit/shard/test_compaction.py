"""A compaction that is under way when its shard is given up."""

from __future__ import annotations

import gc
import os
from collections import Counter
from pathlib import Path

import pytest
from shard_workbench import Bench, create, put

from vecraft_data_model.messages import Checkpoint

IDS = [f"r{i}" for i in range(600)]


def half_compacted(folder: Path) -> Bench:
    """A shard whose collection is being copied into its next generation."""
    bench = Bench(folder, history_retention_s=0.0, compact_min_rows=1, compact_dead_ratio=0.01)
    bench.commit(create())
    for value in range(2):
        bench.commit(put(*IDS, value=value))
        bench.pass_time(1000)
    bench.ask(Checkpoint())
    bench.shard.maintain(bench.now_ms, 0.0)
    assert len(list(folder.rglob("vectors.*"))) == 2
    return bench


@pytest.mark.parametrize("cleanly", [True, False])
def test_a_compaction_that_was_given_up_leaves_the_files_of_the_next_owner_alone(tmp_path: Path, cleanly: bool) -> None:
    """Python ends the suspended compaction whenever it collects the shard: long after, or never."""
    bench = half_compacted(tmp_path)
    given_up = bench.shard
    if cleanly:
        bench.reopen()
    else:
        bench.crash()
    bench.ask(Checkpoint(compact=True))
    del given_up
    gc.collect()
    bench.crash()
    assert bench.scan() == sorted(IDS) and bench.get("r1") == {"r1": {"v": 1}}


def test_a_shard_that_is_given_up_closes_the_files_of_its_compaction(tmp_path: Path) -> None:
    """Maps keep descriptors of their own, for as long as somebody may look at them."""
    bench = half_compacted(tmp_path)
    bench.shard.abandon()
    opened = [os.readlink(path) for path in Path("/proc/self/fd").iterdir() if path.is_symlink()]
    of_file = Counter(Path(name).name for name in opened if name.startswith(str(tmp_path)))
    assert of_file["vectors.2.f32"] == of_file["vectors.1.f32"] and of_file["payloads.2.log"] == 1
