"""Disks keep what the ports promise, and turn every failure into an error that names the file."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from vecraft_data_model.errors import InvalidDataException, StorageFailureException
from vecraft_data_model.ports import Disk
from vecraft_shard import disk as disk_module
from vecraft_shard.disk import MemoryDisk, OsDisk, OsFile, lock_directory


def test_bytes_are_read_where_they_were_written(any_disk: Disk) -> None:
    file = any_disk.open("a/b/c.bin")
    assert file.size() == 0 and file.pread(10, 0) == b"" and len(file.map()) == 0
    file.pwrite(b"hello", 3)
    file.pwrite(np.arange(3, dtype="<u2").data.cast("B"), 8)
    file.pwrite(b"", 5)
    file.sync()
    assert file.size() == 14
    assert file.pread(100, 0) == b"\0\0\0hello\0\0\1\0\2\0"
    assert file.pread(2, 4) == b"el" and file.pread(5, 14) == b"" and file.pread(5, 99) == b""
    file.close()
    file.close()
    assert any_disk.open("a/b/c.bin").pread(5, 3) == b"hello"


def test_cutting_and_extending_gives_zeros(any_disk: Disk) -> None:
    file = any_disk.open("f")
    file.pwrite(b"x" * 100, 0)
    file.truncate(10)
    assert file.size() == 10
    file.truncate(20)
    assert file.pread(30, 0) == b"x" * 10 + bytes(10)
    file.pwrite(b"y", 40)
    assert file.pread(50, 18) == bytes(22) + b"y"


def test_a_map_shows_later_writes_and_outlives_the_file(any_disk: Disk) -> None:
    file = any_disk.open("f")
    file.truncate(1000)
    array = file.map()
    assert array.dtype == np.uint8 and len(array) == 1000 and not array.any()
    file.pwrite(b"\7" * 10, 500)
    assert array[500:510].tolist() == [7] * 10
    with pytest.raises(ValueError, match="read-only"):
        array[0] = 1
    file.truncate(5_000_000)
    file.pwrite(b"\10", 4_999_999)
    longer = file.map()
    file.close()
    assert array[505] == 7 and longer[505] == 7 and longer[-1] == 8 and len(array) == 1000


def test_names(any_disk: Disk) -> None:
    for name in ("b", "a", "wal/2.wal", "wal/1.wal", "wal/deep/3.wal", "walrus"):
        any_disk.open(name).close()
    assert any_disk.list() == ["a", "b", "walrus"]
    assert any_disk.list("wal") == ["wal/1.wal", "wal/2.wal"]
    assert any_disk.list("nowhere") == []
    assert any_disk.exists("wal/1.wal") and not any_disk.exists("wal") and not any_disk.exists("wal/9.wal")
    any_disk.remove("wal/1.wal")
    any_disk.remove("wal/1.wal")
    assert any_disk.list("wal") == ["wal/2.wal"]
    any_disk.remove("wal")
    assert any_disk.list("wal") == [] and any_disk.list("wal/deep") == [] and any_disk.exists("walrus")
    any_disk.sync_directory()
    any_disk.sync_directory("nowhere")


def test_renaming_replaces_the_target(any_disk: Disk) -> None:
    any_disk.open("new").pwrite(b"new", 0)
    any_disk.open("folder/old").pwrite(b"old and longer", 0)
    any_disk.rename("new", "folder/old")
    assert not any_disk.exists("new") and any_disk.open("folder/old").pread(100, 0) == b"new"
    with pytest.raises(StorageFailureException, match="missing") as caught:
        any_disk.rename("missing", "x")
    assert caught.value.details["errno"] == errno.ENOENT


@pytest.mark.parametrize("name", ["../x", "a/../../x", "/etc/x", "a\0b"])
def test_names_stay_inside(any_disk: Disk, name: str) -> None:
    for use in (any_disk.open, any_disk.exists, any_disk.list, any_disk.remove, any_disk.path):
        with pytest.raises(InvalidDataException, match="relative"):
            use(name)


def test_paths(tmp_path: Path) -> None:
    assert OsDisk(tmp_path).path("a/b") == tmp_path / "a" / "b" and OsDisk(tmp_path).durable
    assert MemoryDisk().path("a/b") is None and not MemoryDisk().durable


def test_a_file_and_its_new_directories_are_durably_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced: list[Path] = []
    sync = disk_module._sync_directory

    def record(path: Path) -> None:
        if path.is_relative_to(tmp_path):
            synced.append(path)
        else:  # a database of another test is open beside
            sync(path)

    monkeypatch.setattr(disk_module, "_sync_directory", record)
    disk = OsDisk(tmp_path / "root")
    disk.open("a/b/f").close()
    assert synced == [tmp_path, tmp_path / "root", tmp_path / "root/a", tmp_path / "root/a/b"]
    disk.open("a/b/f").close()
    assert len(synced) == 4
    disk.rename("a/b/f", "a/f")
    assert synced[4:] == [tmp_path / "root/a", tmp_path / "root/a/b"]


def test_a_short_write_is_continued(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = os.pwrite
    calls: list[int] = []

    def short(fd: int, data: bytes | memoryview, offset: int) -> int:
        calls.append(offset)
        return whole(fd, memoryview(data)[:7], offset)

    monkeypatch.setattr(os, "pwrite", short)
    file = OsFile(tmp_path / "f")
    file.pwrite(b"0123456789abcdefghij", 100)
    assert calls == [100, 107, 114] and file.pread(20, 100) == b"0123456789abcdefghij"
    monkeypatch.setattr(os, "pwrite", lambda fd, data, offset: 0)
    with pytest.raises(StorageFailureException):
        file.pwrite(b"never", 0)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs the device that is always full")
def test_a_full_disk_can_be_told_from_other_failures() -> None:
    file = OsFile(Path("/dev/full"))
    with pytest.raises(StorageFailureException, match="/dev/full") as caught:
        file.pwrite(b"x", 0)
    assert caught.value.details["errno"] == errno.ENOSPC
    file.close()


def test_failures_name_the_file(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "plain").write_bytes(b"")
    disk = OsDisk(tmp_path)
    with pytest.raises(StorageFailureException, match="folder"):
        disk.open("folder")
    with pytest.raises(StorageFailureException, match="plain"):
        disk.open("plain/below")
    with pytest.raises(StorageFailureException, match="plain"):
        disk.list("plain")
    file = disk.open("f")
    file.close()
    for use in (lambda: file.pwrite(b"x", 0), lambda: file.pread(1, 0), file.sync, lambda: file.truncate(1), file.size):
        with pytest.raises(StorageFailureException, match=f"{tmp_path}/f") as caught:
            use()
        assert caught.value.details == {"path": f"{tmp_path}/f", "errno": errno.EBADF}


def test_a_directory_has_one_owner(tmp_path: Path) -> None:
    with lock_directory(tmp_path / "new"):
        with pytest.raises(StorageFailureException, match=f"in use by process {os.getpid()}") as caught:
            lock_directory(tmp_path / "new")
        assert caught.value.details["pid"] == os.getpid()
    lock = lock_directory(tmp_path / "new")
    lock.close()
    lock.close()


def test_the_death_of_its_owner_frees_a_directory(tmp_path: Path) -> None:
    code = (
        "import sys, time; from pathlib import Path; from vecraft_shard.disk import lock_directory\n"
        "lock = lock_directory(Path(sys.argv[1])); print('held', flush=True); time.sleep(60)"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    owner = subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE, env=environment)
    try:
        assert owner.stdout is not None and owner.stdout.readline() == b"held\n"
        with pytest.raises(StorageFailureException, match=f"process {owner.pid}"):
            lock_directory(tmp_path)
    finally:
        owner.send_signal(signal.SIGKILL)
        owner.communicate()
    lock_directory(tmp_path).close()
