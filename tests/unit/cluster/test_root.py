"""The data directory is made once, refuses what does not fit it, and notices damage."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from vecraft_cluster.root import (
    ROOT_FILE,
    SystemClock,
    new_root,
    open_root,
    read_root,
    save_map,
    shard_path,
    write_root,
)
from vecraft_data_model.errors import CorruptionError, InvalidDataException, StorageFailureException
from vecraft_data_model.placement import ClusterMap


def test_a_new_root_is_found_again_as_it_was_made(tmp_path: Path) -> None:
    made = open_root(tmp_path / "a" / "b", 3)
    again = open_root(tmp_path / "a" / "b")
    assert again == made
    assert again.shards == 3
    assert len(again.secret) == 32
    assert (tmp_path / "a" / "b" / ROOT_FILE).stat().st_mode & 0o077 == 0, "the secret is for its owner only"


def test_the_default_shard_count_is_for_new_roots_only(tmp_path: Path) -> None:
    assert open_root(tmp_path, default_shards=2).shards == 2
    assert open_root(tmp_path, default_shards=5).shards == 2


def test_another_shard_count_is_refused(tmp_path: Path) -> None:
    open_root(tmp_path, 2)
    with pytest.raises(InvalidDataException, match=r"has 2 shard.*shards=3"):
        open_root(tmp_path, 3)


@pytest.mark.parametrize("shards", [0, -1, 1025, True, "2", 1.0])
def test_impossible_shard_counts_are_refused(tmp_path: Path, shards: object) -> None:
    with pytest.raises(InvalidDataException, match="from 1 to 1024"):
        open_root(tmp_path, shards)  # type: ignore[arg-type]
    assert list(tmp_path.iterdir()) == []


def test_a_directory_of_something_else_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("x")
    with pytest.raises(InvalidDataException, match=r"thesis\.tex"):
        open_root(tmp_path)
    assert [entry.name for entry in tmp_path.iterdir()] == ["thesis.tex"]


def test_shards_without_their_map_are_not_overwritten(tmp_path: Path) -> None:
    shard_path(tmp_path, 0).mkdir()
    with pytest.raises(CorruptionError, match="backup"):
        open_root(tmp_path)


def test_a_file_where_the_root_should_be(tmp_path: Path) -> None:
    (tmp_path / "root").write_text("")
    with pytest.raises(StorageFailureException, match="cannot open"):
        open_root(tmp_path / "root")


def test_every_damaged_byte_is_noticed(tmp_path: Path) -> None:
    open_root(tmp_path, 2)
    file = tmp_path / ROOT_FILE
    whole = file.read_bytes()
    state = read_root(tmp_path)
    for position in range(0, len(whole), 3):
        damaged = bytearray(whole)
        damaged[position] ^= 0x01
        file.write_bytes(bytes(damaged))
        try:
            # White space is not content: what still reads must say the same.
            assert read_root(tmp_path) == state
        except CorruptionError as error:
            assert ROOT_FILE in error.message
    for length in range(0, len(whole) - 1, 7):
        file.write_bytes(whole[:length])
        with pytest.raises(CorruptionError):
            read_root(tmp_path)


def test_a_later_format_is_named(tmp_path: Path) -> None:
    open_root(tmp_path)
    content = json.loads((tmp_path / ROOT_FILE).read_text())
    content["version"] = 2
    (tmp_path / ROOT_FILE).write_text(json.dumps(content))
    with pytest.raises(CorruptionError, match="version 2"):
        read_root(tmp_path)


def test_the_map_only_moves_forward(tmp_path: Path) -> None:
    state = open_root(tmp_path, 2)
    moved = ClusterMap(epoch=2, slots=[1] * 1024, shard_count=2)
    assert save_map(tmp_path, moved).cluster_map == moved
    assert read_root(tmp_path).database_id == state.database_id
    with pytest.raises(InvalidDataException, match="above 2"):
        save_map(tmp_path, moved)
    assert read_root(tmp_path).cluster_map == moved
    assert sorted(entry.name for entry in tmp_path.iterdir()) == [ROOT_FILE]


def test_a_copy_of_the_state_opens_elsewhere(tmp_path: Path) -> None:
    state = new_root(2)
    write_root(tmp_path, state)
    assert open_root(tmp_path) == state


def test_the_clock_tells_this_century_in_milliseconds() -> None:
    clock = SystemClock()
    assert 1.6e12 < clock.now_ms() < 4.2e12
    assert clock.monotonic() <= clock.monotonic()
