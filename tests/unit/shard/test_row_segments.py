"""Version columns in ``shard.sqlite``: segments of rows, ends beside them, and files of format version 1."""

from __future__ import annotations

import sqlite3
import zlib
from pathlib import Path

import msgspec
import numpy as np
import pytest
from shard_workbench import Bench, create, delete, put

from vecraft_data_model.errors import CorruptionError
from vecraft_data_model.hlc import INFINITY_TS
from vecraft_data_model.messages import Checkpoint
from vecraft_shard import row_segments
from vecraft_shard.locations import Locations, StoredCollection
from vecraft_shard.row_segments import StoredRows, decode_segment, encode_segments


def rows_of(ids: list[str], first: int = 0) -> StoredRows:
    """Rows whose every number follows from their place; each third has ended."""
    places = np.arange(first, first + len(ids), dtype=np.int64)
    size = (7 + places % 5).astype(np.int32)
    offset = 64 + np.cumsum(size, dtype=np.int64) - size
    return StoredRows(ids, places // 4 + 2**60, np.where(places % 3, INFINITY_TS, 2**60 + places), offset, size)


def assert_same(found: StoredRows, expected: StoredRows) -> None:
    assert found.ids == expected.ids
    for name in ("begin", "end", "offset", "size"):
        column = getattr(found, name)
        assert column.tolist() == getattr(expected, name).tolist() and column.flags.writeable, name


def stored(rows: int) -> StoredCollection:
    return StoredCollection(3, "c", 1, rows, 1000, None, 0, 0, None, None, 0)


@pytest.fixture
def short_segments(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(row_segments, "SEGMENT_ROWS", 4)


@pytest.mark.usefixtures("short_segments")
@pytest.mark.parametrize("count", [0, 1, 3, 4, 5, 8, 13])
def test_rows_come_back_from_segments(count: int) -> None:
    rows = rows_of([f"äöü-{i}" for i in range(count)])
    segments = list(encode_segments(rows))
    assert [first for first, _ in segments] == list(range(0, count, 4))
    decoded = [decode_segment(blob) for _, blob in segments]
    assert [record_id for segment in decoded for record_id in segment.ids] == rows.ids
    for name in ("begin", "offset", "size"):
        assert [v for segment in decoded for v in getattr(segment, name).tolist()] == getattr(rows, name).tolist()


def test_damaged_segments_are_named() -> None:
    ((_, good),) = encode_segments(rows_of(["a", "b", "c"]))
    refused = 0
    for place in range(len(good)):
        damaged = bytearray(good)
        damaged[place] ^= 0x10
        try:
            assert decode_segment(bytes(damaged)) == decode_segment(good)  # a bit that fills up the last byte
        except CorruptionError as error:
            assert "not a segment of rows" in error.message
            refused += 1
    assert refused >= len(good) - 1
    with pytest.raises(CorruptionError, match="not a segment of rows"):
        decode_segment(good[:-5])
    for body in (b"\xc1", msgspec.msgpack.encode([["a"], b"12345678", 64, b"123"])):
        with pytest.raises(CorruptionError, match="not a segment of rows"):
            decode_segment(zlib.compress(body))
    uneven = msgspec.msgpack.encode([["a", "b"], b"12345678", 64, b"1234"])
    with pytest.raises(CorruptionError, match="differ in length"):
        decode_segment(zlib.compress(uneven))


@pytest.mark.usefixtures("short_segments")
def test_rows_and_later_ends_are_kept(tmp_path: Path) -> None:
    first, second = rows_of(["a", "b", "c", "d", "e"]), rows_of(["a", "f"], first=5)
    second.offset[:] += int(first.size.sum())
    locations = Locations(tmp_path / "shard.sqlite")
    with locations.transaction():
        locations.save_collection(stored(5))
        locations.save_rows(3, 0, first, {})
    with locations.transaction():
        locations.save_collection(stored(7))
        locations.save_rows(3, 5, second, {1: 77, 3: 78})
    locations.close()
    locations = Locations(tmp_path / "shard.sqlite")
    found = locations.load_rows(stored(7))
    both = [np.concatenate([getattr(first, n), getattr(second, n)]) for n in ("begin", "end", "offset", "size")]
    both[1][[1, 3]] = 77, 78
    assert_same(found, StoredRows([*first.ids, *second.ids], *both))
    with pytest.raises(CorruptionError, match="7 rows of collection c, expected 9"):
        locations.load_rows(stored(9))
    with pytest.raises(CorruptionError, match="rows 5 to 7"):
        locations.load_rows(stored(6))
    with locations.transaction():
        locations.connection.execute("DELETE FROM row_segments_3 WHERE first_row = 0")
    with pytest.raises(CorruptionError, match="rows 4 to 5 after 0"):
        locations.load_rows(stored(7))
    with locations.transaction():
        locations.drop_collection(3)
    names = {name for (name,) in locations.connection.execute("SELECT name FROM sqlite_master")}
    assert not [name for name in names if name.endswith("_3")]
    locations.close()


def test_a_damaged_segment_is_named_with_its_file(tmp_path: Path) -> None:
    locations = Locations(tmp_path / "shard.sqlite")
    with locations.transaction():
        locations.save_collection(stored(2))
        locations.save_rows(3, 0, rows_of(["a", "b"]), {})
        locations.connection.execute("UPDATE row_segments_3 SET segment = x'0102'")
    with pytest.raises(CorruptionError, match=r"shard\.sqlite, rows from 0: not a segment") as caught:
        locations.load_rows(stored(2))
    assert caught.value.details["file"] == str(tmp_path / "shard.sqlite")
    locations.close()


def make_version_1(folder: Path) -> None:
    """Write the versions of a closed shard as format version 1 did."""
    file = folder / "shard.sqlite"
    connection = sqlite3.connect(file)
    ((ordinal, count),) = connection.execute("SELECT ordinal, rows FROM collections").fetchall()
    connection.close()
    locations = Locations(file)
    rows = locations.load_rows(StoredCollection(ordinal, "", 1, count, 0, None, 0, 0, None, None, 0))
    locations.close()
    connection = sqlite3.connect(file)
    connection.executescript(
        f"DROP TABLE row_segments_{ordinal}; DROP TABLE ends_{ordinal}; DELETE FROM meta WHERE key = 'format_version';"
        f"CREATE TABLE rows_{ordinal} (row INTEGER PRIMARY KEY, record_id TEXT NOT NULL,"
        " begin_ts INTEGER NOT NULL, end_ts INTEGER NOT NULL, offset INTEGER NOT NULL, size INTEGER NOT NULL)"
    )
    columns = (getattr(rows, name).tolist() for name in ("begin", "end", "offset", "size"))
    connection.executemany(
        f"INSERT INTO rows_{ordinal} VALUES (?, ?, ?, ?, ?, ?)", zip(range(count), rows.ids, *columns, strict=True)
    )
    connection.commit()
    connection.close()
    (folder / "shard.sqlite.sums").unlink()  # made again from the file as it is


def version_of(folder: Path) -> list[tuple[int]]:
    connection = sqlite3.connect(folder / "shard.sqlite")
    found = connection.execute("SELECT value FROM meta WHERE key = 'format_version'").fetchall()
    connection.close()
    return found


def test_a_file_of_version_1_is_read_written_on_and_compacted(tmp_path: Path) -> None:
    bench = Bench(tmp_path, history_retention_s=0.0, compact_min_rows=1, compact_dead_ratio=0.01)
    bench.commit(create())
    bench.commit(put("a", "b", "c", value=1))
    bench.commit(put("b", value=2))
    bench.shard.close(bench.now_ms)
    make_version_1(bench.folder)
    bench.shard = bench._open()
    expected = {"a": {"v": 1}, "b": {"v": 2}, "c": {"v": 1}}
    assert bench.get("a", "b", "c") == expected and bench.count() == 3
    bench.commit(put("c", "d", value=3))
    bench.commit(delete("a"))
    bench.shard.close(bench.now_ms)
    assert version_of(bench.folder) == [(2,)]
    bench.shard = bench._open()
    expected = {"b": {"v": 2}, "c": {"v": 3}, "d": {"v": 3}}
    assert bench.get("a", "b", "c", "d") == expected and bench.count() == 3
    bench.pass_time(1000)
    bench.ask(Checkpoint(compact=True))
    bench.reopen()
    assert bench.get("a", "b", "c", "d") == expected and bench.count() == 3
    names = bench.shard._state.locations.connection.execute("SELECT name FROM sqlite_master").fetchall()
    assert not [name for (name,) in names if name.startswith("rows_")]
    bench.shard.close(bench.now_ms)


def test_a_version_of_the_future_is_refused(tmp_path: Path) -> None:
    locations = Locations(tmp_path / "shard.sqlite")
    with locations.transaction():
        locations.set_meta(format_version=3)
    locations.close()
    with pytest.raises(CorruptionError, match="format version 3; this release reads versions 1 and 2"):
        Locations(tmp_path / "shard.sqlite")
