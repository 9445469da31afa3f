"""The embedded database: its directory, its owner, its ends; and the quickstart, word for word."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from gateway_thread import serving

from vecraft_data_model import CollectionSchema, DataPacket, QueryPacket
from vecraft_data_model.errors import (
    CorruptionError,
    InvalidDataException,
    ShardUnavailableError,
    SnapshotTooOldError,
    StorageFailureException,
    TimeoutException,
)
from vecraft_db.client.async_client import AsyncVecraftClient
from vecraft_db.client.vecraft_client import VecraftClient
from vecraft_router import pinning

QUICKSTART = """
import numpy as np
from vecraft_db.client.vecraft_client import VecraftClient
from vecraft_data_model import DataPacket, CollectionSchema, VectorPacket, QueryPacket

client = VecraftClient(root="./vecraft-data")
client.create_collection(CollectionSchema(name="images", dim=128, vector_type="float"))
client.insert("images", DataPacket(record_id="img-001",
              vector=VectorPacket.from_numpy(np.random.rand(128)), metadata={"label": "cat"}))
for r in client.search("images", QueryPacket(query_vector=np.random.rand(128), k=5)):
    print(r.record_id, r.distance)
"""


def python(code: str, folder: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, map(os.path.abspath, sys.path))), **environment},
        capture_output=True,
        text=True,
        timeout=800,
        check=False,
    )


def fill(client: VecraftClient, count: int = 100) -> None:
    client.create_collection(CollectionSchema(name="c", dim=4))
    rows = np.random.default_rng(0).normal(size=(count, 4))
    metadatas = [{"i": i} for i in range(count)]
    client.upsert("c", ids=[f"r{i:03d}" for i in range(count)], vectors=rows, metadatas=metadatas)


def test_the_quickstart_runs_and_runs_again(tmp_path: Path) -> None:
    first = python(QUICKSTART, tmp_path)
    assert first.returncode == 0, first.stderr
    assert first.stderr == ""
    record_id, distance = first.stdout.split()
    assert record_id == "img-001"
    assert float(distance) > 0
    again = python(QUICKSTART, tmp_path)
    assert again.returncode == 1
    assert again.stderr.splitlines()[-1].startswith("vecraft_data_model.errors.CollectionAlreadyExistedException: ")
    assert "images" in again.stderr.splitlines()[-1]


def test_what_was_written_is_there_the_next_time(tmp_path: Path) -> None:
    with VecraftClient(root=tmp_path / "data", shards=3) as client:
        fill(client)
        before = [packet.to_dict() for packet in client.scan("c")]
        nearest = client.search("c", QueryPacket([1, 2, 3, 4], exact=True))
    with VecraftClient(root=str(tmp_path / "data")) as client:
        assert [packet.to_dict() for packet in client.scan("c")] == before
        assert client.search("c", QueryPacket([1, 2, 3, 4], exact=True)) == nearest
        assert len(client.cluster_info()["shards"]) == 3
    with pytest.raises(InvalidDataException, match="3 shard"):
        VecraftClient(root=tmp_path / "data", shards=2)


def test_answers_do_not_depend_on_the_number_of_shards(tmp_path: Path) -> None:
    answers = []
    for shards in (1, 2, 5):
        with VecraftClient(root=":memory:", shards=shards) as client:
            fill(client)
            hits = client.search("c", QueryPacket([1, 2, 3, 4], k=20, exact=True, where={"i": {"$gte": 10}}))
            answers.append([(hit.record_id, hit.distance, hit.metadata) for hit in hits])
    assert answers[0] == answers[1] == answers[2]
    assert len(answers[0]) == 20


def test_a_root_has_one_owner_at_a_time(tmp_path: Path) -> None:
    with VecraftClient(root=tmp_path) as client:
        fill(client)
        with pytest.raises(StorageFailureException, match=str(os.getpid())):
            VecraftClient(root=tmp_path)
        code = "from vecraft_db.client.vecraft_client import VecraftClient; VecraftClient(root='.')"
        other = python(code, tmp_path)
        assert "StorageFailureException" in other.stderr
        assert str(os.getpid()) in other.stderr
        assert client.count("c") == 100
    with VecraftClient(root=tmp_path) as client:
        assert client.count("c") == 100


def test_a_client_that_nobody_closes_is_closed_at_the_end(tmp_path: Path) -> None:
    code = """
import numpy as np
from vecraft_db.client.vecraft_client import VecraftClient
from vecraft_data_model import CollectionSchema
client = VecraftClient(root="data")
client.create_collection(CollectionSchema(name="c", dim=8))
client.upsert("c", ids=[str(i) for i in range(3000)], vectors=np.random.default_rng(0).normal(size=(3000, 8)))
"""
    ended = python(code, tmp_path)
    assert (ended.returncode, ended.stderr) == (0, "")
    with VecraftClient(root=tmp_path / "data") as client:
        assert client.count("c") == 3000


def test_ctrl_c_leaves_a_root_that_opens(tmp_path: Path) -> None:
    code = """
import numpy as np, sys
from vecraft_db.client.vecraft_client import VecraftClient
from vecraft_data_model import CollectionSchema
client = VecraftClient(root="data")
client.create_collection(CollectionSchema(name="c", dim=8))
i = 0
while True:
    client.upsert("c", ids=[f"{i}-{j}" for j in range(10)], vectors=np.ones((10, 8), np.float32))
    print(i, flush=True)
    i += 1
"""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, map(os.path.abspath, sys.path)))}
    child = subprocess.Popen(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert child.stdout is not None
    for _ in range(20):
        child.stdout.readline()
    child.send_signal(signal.SIGINT)
    out, err = child.communicate(timeout=800)
    assert "KeyboardInterrupt" in err
    acknowledged = 20 + len(out.splitlines())
    with VecraftClient(root=tmp_path / "data") as client:
        found = client.count("c")
        assert found % 10 == 0
        assert found // 10 in (acknowledged, acknowledged + 1)


def test_memory_leaves_no_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with VecraftClient(root=":memory:", shards=2) as client:
        fill(client)
        client.checkpoint(compact=True, index=True)
        assert client.count("c") == 100
        with pytest.raises(InvalidDataException, match="memory"):
            client.backup(tmp_path / "backup")
    assert list(tmp_path.iterdir()) == []


def test_a_closed_client_refuses(tmp_path: Path) -> None:
    client = VecraftClient(root=tmp_path)
    fill(client)
    client.close()
    client.close()
    for call in (
        lambda: client.count("c"),
        lambda: client.insert("c", DataPacket("a", [1, 2, 3, 4])),
        lambda: client.backup(tmp_path / "b"),
    ):
        with pytest.raises(ShardUnavailableError):
            call()


def test_the_timeout_of_a_transaction_is_that_of_all_its_calls() -> None:
    with VecraftClient(root=":memory:", timeout=1e-6) as client:
        client.create_collection(CollectionSchema(name="c", dim=2), timeout=10)
        with pytest.raises(TimeoutException):
            client.count("c")
        with client.transaction(timeout=10) as tx:
            assert tx.insert("c", DataPacket("a", [1, 2])) is None
            tx.upsert("c", ids=["b", "d"], vectors=[[1, 2], [3, 4]])
            assert tx.delete("c", "b") is not None
            assert tx.delete_many("c", where={"x": 1}) == 0
            assert [packet.record_id for packet in tx.scan("c")] == ["a", "d"]
            assert tx.count("c") == 2
            assert tx.get("c", "a").record_id == "a"
            assert len(tx.search("c", QueryPacket([1, 2]))) == 2
            tx.set_alias("other", "c")
            assert tx.list_aliases() == {"other": "c"}
            with pytest.raises(TimeoutException):
                tx.count("c", timeout=1e-9)
        assert client.count("c", timeout=10) == 2


def test_a_damaged_file_is_named_and_nothing_else_is_opened(tmp_path: Path) -> None:
    with VecraftClient(root=tmp_path) as client:
        fill(client)
    (column,) = tmp_path.rglob("vectors.*")
    data = bytearray(column.read_bytes())
    data[0] ^= 0xFF
    column.write_bytes(bytes(data))
    with pytest.raises(CorruptionError, match=column.name):
        VecraftClient(root=tmp_path)
    data[0] ^= 0xFF
    column.write_bytes(bytes(data))
    with VecraftClient(root=tmp_path) as client:
        assert client.count("c") == 100


def test_places_that_exclude_each_other() -> None:
    with pytest.raises(InvalidDataException, match="url="):
        VecraftClient(root="x", url="http://127.0.0.1:1")
    with pytest.raises(InvalidDataException, match="colour"):
        VecraftClient(root=":memory:", colour="red")
    with pytest.raises(InvalidDataException, match="shards"):
        VecraftClient(root=":memory:", shards=0)


def test_settings_reach_the_collections(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("M", "32")
    monkeypatch.setenv("EF_CONSTRUCTION", "99")
    monkeypatch.setenv("EF_RUNTIME", "77")
    monkeypatch.setenv("VCRAFT_ROOT", ":memory:")
    with VecraftClient() as client:
        made = client.create_collection(CollectionSchema(name="c", dim=4))
        assert (made.M, made.ef_construction) == (32, 99)
        assert client.create_collection(CollectionSchema(name="d", dim=4, M=8)).M == 8
        info = client.describe_collection("c")
        assert info.schema == made
        assert info.ef == 77


def test_history_ends_where_it_was_told_to() -> None:
    with VecraftClient(root=":memory:", history_retention_s=0.2) as client:
        fill(client, 10)
        first = client.insert("c", DataPacket("a", [1, 2, 3, 4])) or client.get("c", "a")
        moment = first.commit_ts
        assert client.count("c", as_of=moment) == 11
        client.delete("c", "a")
        time.sleep(0.4)
        client.checkpoint(compact=True)
        with pytest.raises(SnapshotTooOldError):
            client.count("c", as_of=moment)
        with pytest.raises(SnapshotTooOldError), client.snapshot(as_of=moment):
            pass
        assert client.count("c") == 10


def test_a_snapshot_holds_its_history() -> None:
    with VecraftClient(root=":memory:", history_retention_s=0.2) as client:
        fill(client, 10)
        with client.snapshot() as view:
            client.delete_many("c", where={"i": {"$gte": 5}})
            time.sleep(0.4)
            client.checkpoint(compact=True)
            assert view.count("c") == 10
            assert len(list(view.scan("c"))) == 10
        assert client.count("c") == 5
        with pytest.raises(InvalidDataException, match="with"):
            view.count("c")


def test_a_transaction_that_lasts_holds_its_history(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(pinning, "PIN_AFTER_S", 0.0)
    with serving(root=str(tmp_path / "data"), shards=2, history_retention_s=0.4) as url:
        with VecraftClient(url=url) as remote:
            hold_and_release(remote)
    with VecraftClient(root=":memory:", history_retention_s=0.4) as client:
        hold_and_release(client)


def hold_and_release(client: VecraftClient) -> None:
    """Read at one snapshot for longer than history is kept for everybody, then let it go."""
    fill(client, 10)
    with client.transaction() as tx:
        assert tx.count("c") == 10
        client.delete_many("c", where={"i": {"$gte": 5}})
        time.sleep(0.6)
        client.checkpoint(compact=True)
        assert tx.count("c") == 10
        assert len(list(tx.scan("c"))) == 10
        tx.insert("c", DataPacket("own", [1, 2, 3, 4]))
        snapshot = tx.snapshot
    assert client.count("c") == 6
    client.checkpoint(compact=True)
    with pytest.raises(SnapshotTooOldError):
        client.count("c", as_of=snapshot)
    with pytest.raises(KeyError), client.transaction() as tx:
        assert tx.count("c") == 6
        raise KeyError("changed my mind")
    client.delete("c", "r000")
    time.sleep(0.6)
    client.checkpoint(compact=True)
    with pytest.raises(SnapshotTooOldError):
        client.count("c", as_of=tx.snapshot)


async def test_asynchronous_callers_share_one_client(tmp_path: Path) -> None:
    async with await AsyncVecraftClient.open(root=tmp_path, shards=2) as client:
        await client.create_collection(CollectionSchema(name="c", dim=2))
        packets = [DataPacket(f"r{i}", [i, 1]) for i in range(40)]
        await asyncio.gather(*(client.insert("c", packet) for packet in packets))
        hits = await asyncio.gather(*(client.search("c", QueryPacket([i, 1], k=1)) for i in range(40)))
        assert [hit[0].record_id for hit in hits] == [f"r{i}" for i in range(40)]
        assert [packet.record_id async for packet in client.scan("c", limit=3)] == ["r0", "r1", "r10"]
        async with client.transaction() as tx:
            await tx.upsert("c", packets[:2])
            await tx.delete("c", "r2")
        assert tx.result is not None
        assert await client.count("c") == 39
    with pytest.raises(ShardUnavailableError):
        await client.count("c")
