"""The checksums of SQLite's pages: every flip is found, no crash is taken for one."""

from __future__ import annotations

import random
import shutil
import sqlite3
from pathlib import Path

import pytest

import vecraft_shard.disk
from vecraft_data_model.errors import CorruptionError, StorageFailureException
from vecraft_shard.disk import OsDisk
from vecraft_shard.locations import Locations
from vecraft_shard.page_sums import PageSums

SUMS = "shard.sqlite.sums"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "shard"


def opened(folder: Path) -> Locations:
    folder.mkdir(exist_ok=True)
    return Locations(folder / "shard.sqlite")


def fill(locations: Locations, number: int, size: int = 9000) -> None:
    """One transaction that touches several pages."""
    with locations.transaction():
        locations.set_meta(number=number)
        locations.save_prepared({f"txn-{i}": random.Random(i).randbytes(size) for i in range(number)})


def number_of(folder: Path) -> int:
    locations = opened(folder)
    try:
        number = locations.meta("number", 0)
        assert len(locations.load_prepared()) == number
        return number
    finally:
        locations.close()


def crashed(folder: Path) -> Path:
    """What is on disk now, as a kill would leave it."""
    copy = folder.with_name("crashed")
    shutil.rmtree(copy, ignore_errors=True)
    shutil.copytree(folder, copy)
    (copy / "shard.sqlite-shm").unlink(missing_ok=True)
    return copy


def test_a_flip_in_any_page_is_found(folder: Path) -> None:
    locations = opened(folder)
    for number in range(1, 4):
        fill(locations, number)
    locations.close()
    path = folder / "shard.sqlite"
    content, rng = path.read_bytes(), random.Random(1)
    assert len(content) > 10 * 4096
    for page in range(len(content) // 4096):
        at = page * 4096 + rng.randrange(4096)
        path.write_bytes(content[:at] + bytes([content[at] ^ 1 << rng.randrange(8)]) + content[at + 1 :])
        with pytest.raises(CorruptionError, match=f"shard.sqlite at {page * 4096}: page {page + 1} does not match"):
            opened(folder)
    path.write_bytes(content)
    assert number_of(folder) == 3


@pytest.mark.parametrize("damage", ["truncated", "emptied", "missing", "longer"])
def test_a_file_of_another_length_is_found(folder: Path, damage: str) -> None:
    locations = opened(folder)
    fill(locations, 3)
    locations.close()
    path = folder / "shard.sqlite"
    content = path.read_bytes()
    for _ in range(2):  # being refused must not make it acceptable
        if damage == "missing":
            path.unlink(missing_ok=True)
        else:
            path.write_bytes({"truncated": content[:-4096], "emptied": b"", "longer": content + b"x" * 5000}[damage])
        with pytest.raises(CorruptionError, match=r"shard\.sqlite at \d+"):
            opened(folder)


def test_sums_that_are_missing_or_damaged_are_made_again(folder: Path) -> None:
    locations = opened(folder)
    fill(locations, 2)
    locations.close()
    good = (folder / SUMS).read_bytes()
    for bad in (None, b"", good[:-4], good[:20], good[:40] + b"\xff" + good[41:], good + b"1234"):
        (folder / SUMS).unlink(missing_ok=True)
        if bad is not None:
            (folder / SUMS).write_bytes(bad)
        assert number_of(folder) == 2
        assert (folder / SUMS).read_bytes() == good


@pytest.mark.parametrize(
    "damage",
    [
        "INSERT INTO aliases VALUES (CAST(X'8A65' AS TEXT), 'red', 1, 2)",
        "UPDATE sqlite_master SET sql = CAST(replace(CAST(sql AS BLOB), 'alias TEXT', X'8A6C696173' || ' TEXT')"
        " AS TEXT) WHERE name = 'aliases'",
    ],
    ids=["a value", "a column's name"],
)
def test_a_text_that_is_none_is_damage(folder: Path, damage: str) -> None:
    """Seed 396 of the simulator: a page and the checksums were damaged, and opening ended in a UnicodeDecodeError."""
    locations = opened(folder)
    with locations.transaction():
        locations.connection.execute("INSERT INTO aliases VALUES ('current', 'red', 1, 2)")
        locations.connection.execute("PRAGMA writable_schema=ON")
        locations.connection.execute(damage)
    locations.close()
    (folder / SUMS).unlink()
    with pytest.raises(CorruptionError, match=r"shard\.sqlite"):
        locations = opened(folder)
        try:
            locations.load_catalog()
        finally:
            locations.close()


def test_crashes_between_the_steps_of_a_commit(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    locations = opened(folder)
    fill(locations, 1)
    followed = PageSums.follow
    seen = []

    def look(self: PageSums) -> bool:
        monkeypatch.undo()  # the copies below are opened as ever
        seen.append(number_of(crashed(folder)))  # committed, the sums are old
        found = followed(self)
        seen.append(number_of(crashed(folder)))  # the sums are new, nothing is folded
        copy = crashed(folder)
        other = sqlite3.connect(copy / "shard.sqlite")
        other.execute("PRAGMA wal_checkpoint(FULL)")
        twice = shutil.copytree(copy, folder.with_name("twice"), dirs_exist_ok=True)
        other.close()
        (twice / "shard.sqlite-shm").unlink(missing_ok=True)
        seen.append(number_of(twice))  # folded, the log is not emptied
        return found

    monkeypatch.setattr(PageSums, "follow", look)
    fill(locations, 2)
    seen.append(number_of(crashed(folder)))
    fill(locations, 3)
    locations.close()
    seen.append(number_of(crashed(folder)))
    assert seen == [2, 2, 2, 2, 3]


@pytest.mark.parametrize("seed", range(12))
def test_a_fold_that_a_crash_cut_short_is_done_again(folder: Path, seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Any part of the pages may have been written to the file: the log has them all."""
    locations = opened(folder)
    fill(locations, 2)
    monkeypatch.setattr(Locations, "_fold", lambda self: None)
    if seed % 2:
        monkeypatch.setattr(Locations, "_fold", lambda self: self._sums and self._sums.follow())
    fill(locations, 4)
    copy = crashed(folder)
    monkeypatch.undo()
    before, rng = (copy / "shard.sqlite").read_bytes(), random.Random(seed)
    locations.close()
    after = (folder / "shard.sqlite").read_bytes()
    mixed = bytearray(before)
    for page in range(len(after) // 4096):
        if rng.random() < 0.5:
            mixed[page * 4096 : (page + 1) * 4096] = after[page * 4096 : (page + 1) * 4096]
    (copy / "shard.sqlite").write_bytes(mixed)
    assert number_of(copy) == 4


def test_damage_is_found_beside_a_log_with_other_pages(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    locations = opened(folder)
    fill(locations, 4)
    monkeypatch.setattr(Locations, "_fold", lambda self: None)
    with locations.transaction():
        locations.set_meta(other=1)
    copy = crashed(folder)
    monkeypatch.undo()
    locations.close()
    path = copy / "shard.sqlite"
    content = bytearray(path.read_bytes())
    content[-100] ^= 4
    path.write_bytes(content)
    with pytest.raises(CorruptionError, match="does not match its checksum"):
        opened(copy)


def test_a_log_without_its_file_is_not_thrown_away(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    locations = opened(folder)
    monkeypatch.setattr(Locations, "_fold", lambda self: None)
    fill(locations, 1)
    copy = crashed(folder)
    locations.close()
    log = (copy / "shard.sqlite-wal").read_bytes()
    for empty in (True, False):
        if empty:
            (copy / "shard.sqlite").write_bytes(b"")
        else:
            (copy / "shard.sqlite").unlink()
        with pytest.raises(CorruptionError, match="the file is missing or empty"):
            opened(copy)
        assert (copy / "shard.sqlite-wal").read_bytes() == log


def test_a_commit_stands_when_the_sums_cannot_be_written(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    locations = opened(folder)
    fill(locations, 1)

    def full(self: OsDisk, old: str, new: str) -> None:
        raise StorageFailureException("no space left on device", path=new)

    monkeypatch.setattr(OsDisk, "rename", full)
    fill(locations, 2)
    assert locations.meta("number", 0) == 2
    copy = crashed(folder)
    locations.close()
    monkeypatch.undo()
    assert number_of(copy) == 2
    assert number_of(folder) == 2
    assert (folder / SUMS).exists()


def test_a_rolled_back_transaction_leaves_no_sums(folder: Path) -> None:
    locations = opened(folder)
    fill(locations, 1)
    with pytest.raises(ZeroDivisionError), locations.transaction():
        locations.save_prepared({f"txn-{i}": bytes(9000) for i in range(2000)})  # more than the cache: spills
        raise ZeroDivisionError
    fill(locations, 2)
    copy = crashed(folder)
    locations.close()
    assert number_of(copy) == 2
    assert number_of(folder) == 2


def unfolded(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy in which SQLite's log holds three transactions, the last of many pages."""
    locations = opened(folder)
    fill(locations, 2)
    monkeypatch.setattr(Locations, "_fold", lambda self, committed=True: None)
    for number in (3, 4, 9):
        fill(locations, number)
    copy = crashed(folder)
    monkeypatch.undo()
    locations.close()
    return copy


def test_what_counts_in_the_log_is_what_sqlite_counts(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    copy = unfolded(folder, monkeypatch)
    log, rng = (copy / "shard.sqlite-wal").read_bytes(), random.Random(5)
    counts = set()
    for attempt in range(60):
        torn = bytearray(log)
        if attempt % 3 == 0:
            torn[rng.randrange(len(log))] ^= 1 << rng.randrange(8)
        elif attempt % 3 == 1:
            at = rng.randrange(len(log) // 512) * 512
            torn[at : at + 512] = bytes(512)
        else:
            del torn[rng.randrange(len(log)) :]
        other = copy.with_name(f"attempt{attempt}")
        shutil.copytree(copy, other)
        (other / "shard.sqlite-wal").write_bytes(torn)
        ours = len(list(PageSums(other / "shard.sqlite")._frames()))
        connection = sqlite3.connect(other / "shard.sqlite")
        _, frames, _ = connection.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchone()
        connection.close()
        assert ours == frames, attempt
        counts.add(ours)
    assert len(counts) > 2


def test_a_commit_that_a_crash_tore_is_not_taken_up(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    copy = unfolded(folder, monkeypatch)
    log = bytearray((copy / "shard.sqlite-wal").read_bytes())
    log[-9000:-8000] = bytes(1000)  # the end of the commit is there, a page before it is not
    (copy / "shard.sqlite-wal").write_bytes(log)
    for _ in range(3):
        assert number_of(copy) == 4


def test_the_name_of_the_file_is_durable_before_that_of_the_log(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """SQLite sees to its log's name only; a log without the file would be taken for damage."""
    synced: list[list[str]] = []
    original = vecraft_shard.disk._sync_directory

    def sync(path: Path) -> None:
        original(path)
        synced.append(sorted(entry.name for entry in path.iterdir()))

    monkeypatch.setattr(vecraft_shard.disk, "_sync_directory", sync)
    opened(folder).close()
    assert ["shard.sqlite"] in synced


def test_a_file_that_sqlite_cannot_begin_a_log_for_is_refused(folder: Path) -> None:
    """Its pages would change without their checksums. SQLite says so by its answer alone."""
    folder.mkdir()
    other = sqlite3.connect(folder / "shard.sqlite", isolation_level=None)
    other.execute("CREATE TABLE t (x)")
    other.execute("BEGIN EXCLUSIVE")
    with pytest.raises(StorageFailureException):
        opened(folder)
    other.close()
    opened(folder).close()
