"""Settings come from three sources, the later winning; whatever is unknown or out of range is an error that says so."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from vecraft_data_model.errors import InvalidDataException
from vecraft_db.config import Settings, shard_config


def test_nothing_given_takes_the_defaults() -> None:
    settings = Settings.load({})
    assert settings == Settings()
    assert settings.timeout == 10.0
    assert settings.m is None


def test_the_originals_variables_need_no_prefix() -> None:
    settings = Settings.load({"M": "32", "EF_CONSTRUCTION": "400", "EF_RUNTIME": "128", "PATH": "/bin"})
    assert (settings.m, settings.ef_construction, settings.ef_runtime) == (32, 400, 128)


@pytest.mark.parametrize(
    ("suffix", "text"),
    [(".yaml", "m: 8\nVCRAFT_PORT: 9000\n"), (".toml", "m = 8\nVCRAFT_PORT = 9000\n"), (".yml", "M: 8\nport: 9000\n")],
)
def test_a_file_wins_over_the_environment_and_arguments_over_both(tmp_path: Path, suffix: str, text: str) -> None:
    file = tmp_path / f"settings{suffix}"
    file.write_text(text)
    environ = {"CONFIG_FILE": str(file), "M": "4", "VCRAFT_PORT": "8001", "VCRAFT_ROOT": "/env"}
    settings = Settings.load(environ, root=None, port=9001)
    assert (settings.m, settings.port, settings.root) == (8, 9001, "/env")


@pytest.mark.parametrize(
    ("environ", "named"),
    [
        ({"VCRAFT_ROOTS": "x"}, "VCRAFT_ROOTS"),
        ({"M": "1"}, "from 2 to 512"),
        ({"M": "many"}, "'many'"),
        ({"VCRAFT_PORT": "65536"}, "65535"),
        ({"VCRAFT_DURABILITY": "maybe"}, "'fsync', 'os'"),
        ({"VCRAFT_TIMEOUT": "nan"}, "VCRAFT_TIMEOUT"),
        ({"VCRAFT_PORT_FORWARD": "perhaps"}, "true or false"),
        ({"VCRAFT_ROOT": ""}, "non-empty"),
    ],
)
def test_what_is_not_accepted_is_named(environ: dict[str, str], named: str) -> None:
    with pytest.raises(InvalidDataException, match=named):
        Settings.load(environ)


@pytest.mark.parametrize(
    ("name", "text", "named"),
    [
        ("a.yaml", "rooot: x\n", "rooot"),
        ("a.yaml", "- 1\n", "table"),
        ("a.yaml", "a: [", "does not parse"),
        ("a.toml", "root =", "does not parse"),
        ("a.json", "{}", "must end in"),
    ],
)
def test_a_bad_file_is_named(tmp_path: Path, name: str, text: str, named: str) -> None:
    file = tmp_path / name
    file.write_text(text)
    with pytest.raises(InvalidDataException, match=named):
        Settings.load({"CONFIG_FILE": str(file)})


def test_a_missing_file_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(InvalidDataException, match="cannot be read"):
        Settings.load({"CONFIG_FILE": str(tmp_path / "none.yaml")})


def test_an_unknown_argument_is_an_error() -> None:
    with pytest.raises(InvalidDataException, match="argument colour"):
        Settings.load({}, colour="red")


def test_shards_have_the_same_settings_wherever_they_run() -> None:
    """They differ in what they have to check, and in how many processors are theirs."""
    settings = Settings.load({}, history_retention_s=7.0, durability="os", max_clock_skew_ms=100, ef_runtime=33)
    here, there = shard_config(settings), shard_config(settings, remote=True)
    assert replace(here, search_threads=1, verify_writes=True, verify_queries=True) == there
    assert (there.history_retention_s, there.durability, there.ef_runtime) == (7.0, "os", 33)
    assert there.ceiling_ms < there.max_clock_skew_ms == 100
    assert (here.verify_writes, there.verify_writes, there.search_threads) == (False, True, 1)
    assert (here.verify_queries, there.verify_queries) == (False, True)
