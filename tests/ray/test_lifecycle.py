"""Starting, joining, naming and ending clusters, and one directory format for embedded and Ray."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import psutil
import pytest
from ray_workbench import PATIENCE_S, eventually

from vecraft_cluster.launch import Cluster, clusters, connect, launch, name_of
from vecraft_data_model import CollectionSchema, QueryPacket
from vecraft_data_model.errors import (
    CorruptionError,
    InvalidDataException,
    ShardUnavailableError,
    StorageFailureException,
)
from vecraft_db.client.vecraft_client import VecraftClient

RNG = np.random.default_rng(7)


def test_a_cluster_is_named_after_its_root_and_joined_by_it(cluster: Cluster) -> None:
    root = Path(cluster.membership.root)
    assert cluster.name == name_of(root)
    assert cluster.name in clusters()
    by_name = connect("auto", name=cluster.name)
    by_root = connect("auto", root=root)
    again = launch(root, address="auto")
    for joined in (by_name, by_root, again):
        assert joined.membership == cluster.membership
        joined.close()
    assert cluster.name in clusters(), "closing what was joined ends nothing"


def test_what_does_not_fit_is_refused_and_harms_nothing(cluster: Cluster, tmp_path: Path) -> None:
    root = cluster.membership.root
    with pytest.raises(InvalidDataException, match="shards=3"):
        launch(root, 3, address="auto")
    with pytest.raises(InvalidDataException, match="choose another name"):
        launch(tmp_path / "other", address="auto", name=cluster.name)
    with pytest.raises(InvalidDataException, match="letters"):
        launch(tmp_path / "other", address="auto", name="a/b")
    with pytest.raises(InvalidDataException, match="REST"):
        connect("ray://127.0.0.1:10001")
    with pytest.raises(InvalidDataException, match="connected to the Ray at"):
        connect("127.0.0.1:1")
    with pytest.raises(ShardUnavailableError, match="nobody"):
        connect("auto", name="nobody")
    assert not (tmp_path / "other").exists()
    with VecraftClient(address="auto", cluster=cluster.name, timeout=PATIENCE_S) as client:
        assert client.list_collections() == []


def test_without_a_root_there_must_be_one_cluster_to_join(ray_session: Path, tmp_path: Path) -> None:
    running = clusters()
    if not running:
        with pytest.raises(InvalidDataException, match="none runs there"):
            connect("auto")
    with launch_all(tmp_path / "a", tmp_path / "b"), pytest.raises(InvalidDataException) as refusal:
        connect("auto")
    assert {name_of(tmp_path / "a"), name_of(tmp_path / "b")} <= set(refusal.value.details["clusters"])
    eventually(lambda: clusters() == running, "their names to be gone")


class launch_all:
    """Clusters over several roots, one shard each and no router actors."""

    def __init__(self, *roots: Path) -> None:
        self._roots = roots
        self.running: list[Cluster] = []

    def __enter__(self) -> list[Cluster]:
        for root in self._roots:
            self.running.append(launch(root, 1, address="local", routers=0, timeout=PATIENCE_S))
        return self.running

    def __exit__(self, *error: object) -> None:
        for cluster in self.running:
            cluster.close()


def test_one_directory_format_embedded_and_on_ray(ray_session: Path, tmp_path: Path) -> None:
    root = tmp_path / "data"
    vectors = RNG.normal(size=(60, 8)).astype(np.float32)
    ids = [f"r{number:02d}" for number in range(60)]
    with VecraftClient(root=root, shards=2) as embedded:
        embedded.create_collection(CollectionSchema(name="c", dim=8))
        embedded.upsert("c", ids=ids[:30], vectors=vectors[:30], metadatas=[{"half": 0}] * 30)
        with pytest.raises(StorageFailureException, match=f"in use by process {os.getpid()}"):
            launch(root, address="local", routers=0, timeout=PATIENCE_S).close()
    with VecraftClient(address="local", root=root, timeout=PATIENCE_S) as on_ray:
        assert on_ray.count("c") == 30
        on_ray.upsert("c", ids=ids[30:], vectors=vectors[30:], metadatas=[{"half": 1}] * 30)
        on_ray.delete("c", "r00")
        nearest = [hit.record_id for hit in on_ray.search("c", QueryPacket(vectors[40], k=3, exact=True))]
    with VecraftClient(root=root) as embedded:
        assert embedded.count("c") == 59
        assert embedded.count("c", where={"half": 1}) == 30
        assert [hit.record_id for hit in embedded.search("c", QueryPacket(vectors[40], k=3, exact=True))] == nearest


def test_a_damaged_root_is_reported_and_nothing_keeps_running(ray_session: Path, tmp_path: Path) -> None:
    root = tmp_path / "data"
    root.mkdir()
    (root / "vecraft.json").write_text('{"format": "vecraftdb-root"}')
    before = clusters()
    with pytest.raises(CorruptionError, match=r"vecraft\.json"):
        launch(root, address="auto")
    eventually(lambda: clusters() == before, "its name to be gone")


SCRIPT = """
    import json, os, sys
    import numpy as np
    from vecraft_data_model import CollectionSchema, DataPacket
    from vecraft_db.client.vecraft_client import VecraftClient
    client = VecraftClient(address="local", root=sys.argv[1], shards=1, timeout=180)
    client.create_collection(CollectionSchema(name="c", dim=2), if_not_exists=True)
    client.insert("c", DataPacket("a", np.array([1.0, 2.0])))
    import ray
    print(json.dumps({"count": client.count("c"), "session": ray._private.worker._global_node.get_session_dir_path()}))
    sys.stdout.flush()
    if sys.argv[2] == "close":
        client.close()
        assert not ray.is_initialized()
"""


@pytest.mark.parametrize("ending", ["close", "exit"])
def test_a_local_cluster_starts_and_ends_with_its_client(ray_session: Path, tmp_path: Path, ending: str) -> None:
    ray_directory = ray_session.with_name(f"{ray_session.name}-{ending}")
    environment = dict(os.environ, RAY_TMPDIR=str(ray_directory))
    try:
        done = subprocess.run(
            [sys.executable, "-c", textwrap.dedent(SCRIPT), str(tmp_path / "data"), ending],
            env=environment,
            capture_output=True,
            text=True,
            timeout=3 * PATIENCE_S,
        )
        assert done.returncode == 0, done.stderr
        (line,) = done.stdout.splitlines()  # Ray must not say anything there: it is the caller's
        said = json.loads(line)
        assert said["count"] == 1
        assert done.stderr == "", "starting and ending a cluster is nothing to warn about"
        eventually(lambda: _naming(said["session"]) == [], "all that was started to end")
        assert not list((tmp_path / "data").glob("**/*.tmp"))
    finally:
        for process in _naming(str(ray_directory)):
            process.kill()
        subprocess.run(["rm", "-rf", str(ray_directory)], check=True)


def _naming(path: str) -> list[psutil.Process]:
    return [
        process
        for process in psutil.process_iter(["cmdline", "status"])
        if process.info["status"] != psutil.STATUS_ZOMBIE
        and any(path in word for word in process.info["cmdline"] or ())
    ]
