"""The version table: what a checkpoint held is seen as it was before."""

from __future__ import annotations

import numpy as np

from vecraft_data_model.hlc import INFINITY_TS
from vecraft_shard.versions import NO_ROW, VersionTable


def test_a_loaded_table_answers_as_the_one_that_was_saved() -> None:
    """Records replaced and deleted on the way, one of them written again after its deletion."""
    written = VersionTable()
    for ts, ids in [(10, ["a", "b"]), (20, ["a", "c"]), (40, ["a", "d"])]:
        written.append(ids, ts, np.arange(len(ids), dtype=np.int64), np.ones(len(ids), np.int32))
        if ts == 20:
            written.delete(["c", "b"], 30)
    written.append(["b"], 50, np.zeros(1, np.int64), np.ones(1, np.int32))
    n = written.rows
    loaded = VersionTable()
    columns = [column[:n].copy() for column in (written.begin, written.end, written.offset, written.size)]
    loaded.load(list(written.ids), *columns)
    for record_id in "abcdx":
        for snapshot in range(5, 60, 5):
            assert loaded.row_at(record_id, snapshot) == written.row_at(record_id, snapshot)
            assert loaded.changed_after(record_id, snapshot) == written.changed_after(record_id, snapshot)
        assert loaded.alive_row(record_id) == written.alive_row(record_id)
    assert loaded.previous.tolist() == written.previous[:n].tolist() == [-1, -1, 0, -1, 2, -1, 1]
    assert (loaded.alive, loaded.max_begin, loaded.rows) == (written.alive, 50, n) == (3, 50, 7)
    assert loaded.moments(50, 60) == [] and loaded.moments(49, 60) is None  # moment by moment it knows nothing


def test_a_loaded_table_grows() -> None:
    loaded = VersionTable()
    one = np.ones(1, np.int64)
    loaded.load(["a"], one * 10, one * INFINITY_TS, one * 64, np.ones(1, np.int32))
    loaded.append(["a", "b"], 20, np.array([65, 66]), np.ones(2, np.int32))
    assert loaded.row_at("a", 19) == 0 and loaded.row_at("a", 20) == 1 and loaded.row_at("b", 20) == 2
    assert loaded.end[:3].tolist() == [20, INFINITY_TS, INFINITY_TS]
    assert loaded.take_ended() == {0: 20}
    assert VersionTable().row_at("a", 20) == NO_ROW
