"""The command line, run in this process: answers, JSON, exit codes, the shell, verify."""

from __future__ import annotations

import io
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from vecraft_data_model import CollectionSchema, DataPacket
from vecraft_db.cli.app import run
from vecraft_db.client.vecraft_client import VecraftClient

Command = Callable[..., tuple[int, str, str]]


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A data directory with a collection of 20 records over two shards."""
    path = tmp_path / "data"
    with VecraftClient(root=path, shards=2) as client:
        client.create_collection(CollectionSchema(name="things", dim=3))
        client.upsert(
            "things",
            ids=[f"t{i:02}" for i in range(20)],
            vectors=np.eye(3, dtype=np.float32)[np.arange(20) % 3] * np.arange(1, 21, dtype=np.float32)[:, None],
            metadatas=[{"n": i, "kind": "even" if i % 2 == 0 else "odd"} for i in range(20)],
            documents=[f"thing number {i}" for i in range(20)],
        )
    return path


@pytest.fixture
def vecraft(root: Path, capfd: pytest.CaptureFixture[str]) -> Command:
    """Run a command on the root; returns exit code, standard output, standard error."""

    def command(*arguments: str, at: Path = root, json: bool = False) -> tuple[int, str, str]:
        code = run([*(["--json"] if json else []), "--root", str(at), *arguments])
        captured = capfd.readouterr()
        return code, captured.out, captured.err

    return command


def lines_of(text: str) -> list[Any]:
    return [json.loads(line) for line in text.splitlines()]


@pytest.mark.parametrize("shell", [False, True], ids=["one command", "shell"])
def test_what_others_print_does_not_spoil_the_answer(
    vecraft: Command, monkeypatch: pytest.MonkeyPatch, shell: bool
) -> None:
    """Ray tells of its workers on whatever ``sys.stdout`` is, from a thread of its own."""
    count = VecraftClient.count

    def noisy(self: VecraftClient, *arguments: Any, **options: Any) -> int:
        print("(raylet) A worker died")
        return count(self, *arguments, **options)

    monkeypatch.setattr(VecraftClient, "count", noisy)
    before = sys.stdout
    if shell:
        monkeypatch.setattr(sys, "stdin", io.StringIO("count things --json\n"))
        code, out, err = vecraft("shell")
    else:
        code, out, err = vecraft("count", "things", json=True)
    assert code == 0
    assert lines_of(out) == [{"count": 20}]
    assert "(raylet)" in err
    assert sys.stdout is before


def test_a_collection_from_beginning_to_end(vecraft: Command) -> None:
    code, out, _ = vecraft("create-collection", "new", "--dim", "2", "--metric", "cosine", "--M", "8", json=True)
    assert code == 0
    assert lines_of(out)[0] | {"name": "new", "dim": 2, "metric": "cosine", "M": 8} == lines_of(out)[0]
    assert (
        vecraft("create-collection", "new", "--dim", "2", "--metric", "cosine", "--M", "8", "--if-not-exists")[0] == 0
    )
    code, out, _ = vecraft("list-collections", json=True)
    assert [line["name"] for line in lines_of(out)] == ["new", "things"]
    code, out, err = vecraft("insert", "new", "a", "--vector", "0.5,1", "--metadata", '{"x": [1]}', "--document", "hi")
    assert (code, out) == (0, "")
    assert "inserted 'a'" in err
    code, out, _ = vecraft("insert", "new", "a", "--vector", "[1, 2]", json=True)
    preimage = lines_of(out)[0]["preimage"]
    assert (preimage["document"], preimage["vector"]) == ("hi", [0.5, 1.0])
    code, out, _ = vecraft("get", "new", "a", json=True)
    assert lines_of(out) == [{"record_id": "a", "metadata": None, "document": None, "vector": [1.0, 2.0]}]
    code, out, _ = vecraft("delete", "new", "a", json=True)
    assert lines_of(out)[0]["preimage"]["record_id"] == "a"
    code, out, _ = vecraft("describe-collection", "new", json=True)
    assert (lines_of(out)[0]["count"], lines_of(out)[0]["schema"]["dim"]) == (0, 2)
    assert vecraft("drop-collection", "new", "--yes")[0] == 0
    assert vecraft("describe-collection", "new")[0] == 3


def test_search_scan_and_count(vecraft: Command, tmp_path: Path) -> None:
    _, out, _ = vecraft("search", "things", "--vector", "[4, 0, 0]", "-k", "2", json=True)
    assert [(line["record_id"], line["distance"]) for line in lines_of(out)] == [("t03", 0.0), ("t00", 9.0)]
    _, out, _ = vecraft("search", "things", "--like", "t03", "-k", "1", "--where", '{"kind": "even"}', json=True)
    assert [line["record_id"] for line in lines_of(out)] == ["t00"]
    np.save(tmp_path / "q.npy", np.array([[0, 2, 0]], np.float32))
    _, out, _ = vecraft(
        "search", "things", "--vector", f"@{tmp_path / 'q.npy'}", "-k", "1", "--vectors", "--exact", json=True
    )
    assert lines_of(out)[0]["vector"] == [0.0, 2.0, 0.0]
    (tmp_path / "where.json").write_text('{"n": {"$lt": 3}}')
    _, out, _ = vecraft("scan", "things", "--where", f"@{tmp_path / 'where.json'}", json=True)
    assert [line["record_id"] for line in lines_of(out)] == ["t00", "t01", "t02"]
    _, out, _ = vecraft("scan", "things", "--limit", "2")
    assert [line.split()[0] for line in out.splitlines()] == ["record_id", "t00", "t01"]
    assert vecraft("count", "things")[1] == "20\n"
    assert vecraft("count", "things", "--where-document", '{"$contains": "number 1"}')[1] == "11\n"


def test_search_by_text_and_by_group(vecraft: Command) -> None:
    _, out, _ = vecraft("search", "things", "--text", "number 3", "-k", "2", json=True)
    best, second = lines_of(out)
    assert best["record_id"] == "t03" and best["distance"] is None and best["score"] > second["score"] > 0
    arguments = ("search", "things", "--vector", "4,0,0", "--text", "13", "-k", "1", "--fusion")
    assert lines_of(vecraft(*arguments, "[0, 1]", json=True)[1])[0]["record_id"] == "t13"
    assert lines_of(vecraft(*arguments, "[1, 0]", json=True)[1])[0]["record_id"] == "t03"
    _, out, _ = vecraft("search", "things", "--like", "t03", "--group-by", "kind", json=True)
    assert [line["record_id"] for line in lines_of(out)] == ["t03", "t00"]


def test_tables_for_people_are_not_cut_in_a_file(vecraft: Command) -> None:
    _, out, _ = vecraft("search", "things", "--vector", "4,0,0", "-k", "1", "--vectors")
    header, row = out.splitlines()
    assert header.split() == ["record_id", "distance", "metadata", "document", "vector"]
    assert "thing number 3" in row and '{"n":3,"kind":"odd"}' in row and "[4,0,0]" in row.replace(".0", "")


def test_deleting_by_ids_and_by_filter(vecraft: Command) -> None:
    assert lines_of(vecraft("delete", "things", "t00", "t01", "nope", json=True)[1])[0]["count"] == 2
    assert lines_of(vecraft("delete", "things", "--where", '{"kind": "odd"}', json=True)[1])[0]["count"] == 9
    assert vecraft("count", "things")[1] == "9\n"
    assert vecraft("delete", "things")[0] == 2
    assert vecraft("delete", "things", "t02", "--where", "{}")[0] == 2


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["frobnicate"], 2, "No such command"),
        (["count"], 2, "Missing"),
        (["create-collection", "x"], 2, "dim"),
        (["get", "things", "nope"], 3, "record_not_found"),
        (["count", "nope"], 3, "collection_not_found"),
        (["create-collection", "things", "--dim", "3"], 4, "collection_exists"),
        (["insert", "things", "t01", "--vector", "1,2,3", "--expect", "absent"], 4, "precondition_failed"),
        (["insert", "things", "x", "--vector", "1,2"], 2, "dimension"),
        (["insert", "things", "x", "--vector", "1,nan,2"], 2, "--vector must be JSON"),
        (["insert", "things", "x", "--vector", "@missing.npy"], 2, "cannot be read"),
        (["search", "things"], 2, "--vector, or --like"),
        (["search", "things", "--vector", "1,2,3", "-k", "0"], 2, "k must be"),
        (["search", "things", "--vector", "1,2,3", "--where", "{"], 2, "--where must be JSON"),
        (["search", "things", "--vector", "1,2,3", "--where", '{"n": {"$near": 1}}'], 2, "where.n.$near"),
        (["scan", "things", "--where", "[1]"], 2, "--where must be a JSON object"),
        (["--url", "http://127.0.0.1:9", "count", "things"], 2, "name one place"),
    ],
)
def test_exit_codes_and_one_sentence(vecraft: Command, arguments: list[str], code: int, said: str) -> None:
    answered, out, err = vecraft(*arguments)
    assert (answered, out) == (code, "")
    assert said in err
    assert "Traceback" not in err
    answered, out, err = vecraft(*arguments, json=True)
    assert answered == code


def test_json_may_be_asked_for_after_the_command_too(vecraft: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    assert lines_of(vecraft("count", "things", "--json")[1]) == [{"count": 20}]
    monkeypatch.setattr(sys, "stdin", io.StringIO("count things --json\ncount things\n"))
    assert vecraft("shell")[1] == '{"count":20}\n20\n'


def test_errors_for_programs(vecraft: Command) -> None:
    _, out, _ = vecraft("get", "things", "nope", json=True)
    assert lines_of(out)[0]["error"]["code"] == "record_not_found"


def test_an_unreachable_gateway_is_worth_another_try(capfd: pytest.CaptureFixture[str]) -> None:
    assert run(["--url", "http://127.0.0.1:9", "--timeout", "2", "count", "things"]) == 5
    assert "no gateway could be reached" in capfd.readouterr().err


def test_import_export_and_tsne(vecraft: Command, tmp_path: Path) -> None:
    code, out, _ = vecraft("export", "things", str(tmp_path / "out.jsonl"), json=True)
    assert lines_of(out) == [{"written": 20, "files": [str(tmp_path / "out.jsonl")]}]
    vecraft("create-collection", "copy", "--dim", "3")
    code, out, _ = vecraft("import", "copy", str(tmp_path / "out.jsonl"), "--batch-size", "7", json=True)
    assert (code, lines_of(out)[0]["written"]) == (0, 20)
    assert vecraft("count", "copy")[1] == "20\n"
    code, out, _ = vecraft("tsne", "things", "--outfile", str(tmp_path / "t.png"), "--color-by", "kind")
    assert (code, out) == (0, f"{tmp_path / 't.png'}\n")
    assert (tmp_path / "t.png").read_bytes().startswith(b"\x89PNG")


def test_backup_restore_and_cluster_status(vecraft: Command, tmp_path: Path) -> None:
    code, out, _ = vecraft("backup", str(tmp_path / "backup"))
    assert code == 0 and "database_id" in out and "sha256" not in out
    code, out, _ = vecraft("backup", str(tmp_path / "again"), json=True)
    assert code == 0 and any("sha256" in file for file in lines_of(out)[0]["files"].values())
    vecraft("drop-collection", "things", "-y")
    assert vecraft("restore", str(tmp_path / "backup"), "--yes")[0] == 0
    assert vecraft("count", "things")[1] == "20\n"
    _, out, _ = vecraft("cluster", "status")
    assert "shard 0  shard 1" in out
    _, out, _ = vecraft("cluster", "status", json=True)
    assert [shard["shard"] for shard in lines_of(out)[0]["shards"]] == [0, 1]


def test_the_shell_runs_lines_and_goes_on_after_errors(vecraft: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    lines = """count things

# a remark
get things nope
get 'things
count things --where '{"kind": "odd"}'
exit
count x
"""
    monkeypatch.setattr(sys, "stdin", io.StringIO(lines))
    code, out, err = vecraft("shell")
    assert out == "20\n10\n"
    assert "no record 'nope'" in err and "does not parse" in err
    assert code == 2  # of the last line that failed
    monkeypatch.setattr(sys, "stdin", io.StringIO("help\ncount things"))
    code, out, _ = vecraft("shell")
    assert code == 0
    assert "list-collections" in out and out.endswith("20\n")


def test_as_a_program(root: Path) -> None:
    """A closed pipe is no traceback; Python's module form works."""
    command = [sys.executable, "-m", "vecraft_db.cli", "--root", str(root), "scan", "things"]
    done = subprocess.run([*command, "--limit", "1"], capture_output=True, text=True, timeout=800, check=True)
    assert "t00" in done.stdout
    piped = subprocess.run(
        f"{' '.join(command)} | head -c 1", shell=True, capture_output=True, text=True, timeout=800, check=True
    )
    assert "Traceback" not in piped.stderr


# ------------------------------------------------------------------------------------------------------------ verify


def damage(path: Path, offset: int) -> None:
    data = bytearray(path.read_bytes())
    data[offset] ^= 0xFF
    path.write_bytes(data)


def payload_with(root: Path, text: bytes) -> tuple[Path, int]:
    """Return the payload file, and the offset in it, of a text."""
    for path in root.glob("shard-*/*/payloads*"):
        at = path.read_bytes().find(text)
        if at >= 0:
            return path, at
    raise AssertionError(f"{text!r} is in no file")


def test_verify_finds_nothing_wrong_with_a_good_root(vecraft: Command, root: Path) -> None:
    code, out, _ = vecraft("verify", json=True)
    report = lines_of(out)[0]
    assert (code, report["ok"], report["findings"]) == (0, True, [])
    (collection,) = report["collections"]
    assert (collection["records"], collection["recall"]) == (20, 1.0)
    assert collection["filters"] > 40


def test_verify_names_every_damaged_record(vecraft: Command, root: Path) -> None:
    for text in (b"thing number 4", b"thing number 17"):
        damage(*payload_with(root, text))
    code, out, _ = vecraft("verify", json=True)
    findings = lines_of(out)[0]["findings"]
    assert code == 6
    assert len(findings) == 2
    assert {record for record in ("t04", "t17") if any(f"'{record}'" in finding for finding in findings)} == {
        "t04",
        "t17",
    }


def test_verify_finds_a_damaged_vector_graph_database_and_log(vecraft: Command, root: Path) -> None:
    with VecraftClient(root=root, index_min_rows=1) as client:
        client.checkpoint(index=True)
    vectors = next(iter(root.glob("shard-0000/*/vectors*")))
    damage(vectors, 64 + 5)
    graph = next(iter(root.glob("shard-0001/*/hnsw*")))
    damage(graph, graph.stat().st_size // 2)
    code, out, _ = vecraft("verify", json=True)
    findings = " ".join(lines_of(out)[0]["findings"])
    assert code == 6
    assert "checksum" in findings and graph.name in findings
    damage(root / "shard-0001" / "shard.sqlite", 2 * 4096)  # the kind of a page
    code, out, _ = vecraft("verify", json=True)
    assert code == 6
    assert "shard.sqlite" in " ".join(lines_of(out)[0]["findings"])


def test_verify_needs_a_directory_that_nobody_has_open(vecraft: Command, root: Path, tmp_path: Path) -> None:
    assert vecraft("verify", at=tmp_path / "nowhere")[0] == 2
    assert run(["--url", "http://x:1", "verify"]) == 2
    with VecraftClient(root=root) as client:
        client.insert("things", DataPacket("open", np.ones(3)))
        code, _, err = vecraft("verify")
    assert code == 6
    assert "storage_failure" in err


def test_verify_names_a_shard_that_is_missing(vecraft: Command, root: Path) -> None:
    (root / "shard-0001").rename(root / "elsewhere")
    code, out, _ = vecraft("verify", json=True)
    assert code == 6
    assert "shard-0001 is missing" in lines_of(out)[0]["findings"][0]
