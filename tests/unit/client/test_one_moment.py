"""Many processes read at one timestamp, while everything changes: all of them read the same, every time."""

from __future__ import annotations

import os
import random
import subprocess
import sys
import threading
from pathlib import Path

import moment_reader
import numpy as np
import pytest
from gateway_thread import serving

from vecraft_data_model import CollectionSchema
from vecraft_data_model.errors import SnapshotTooOldError
from vecraft_db.client.vecraft_client import VecraftClient

DIM = 8
PROCESSES = int(os.environ.get("VECRAFT_MOMENT_PROCESSES", "3"))
ROUNDS = int(os.environ.get("VECRAFT_MOMENT_ROUNDS", "8"))
RECORDS = 300


def change_everything(client: VecraftClient, alias: str, stop: threading.Event, errors: list[BaseException]) -> None:
    """Replace, delete and make records, alter and switch; reclaim space in between."""
    rng, number = random.Random(5), 0
    try:
        while not stop.is_set():
            number += 1
            ids = [f"r{rng.randrange(RECORDS * 2):04}" for _ in range(20)]
            ids = list(dict.fromkeys(ids))
            vectors = np.random.default_rng(number).normal(size=(len(ids), DIM))
            client.upsert(alias, ids=ids, vectors=vectors, metadatas=[{"even": rng.random() < 0.5} for _ in ids])
            client.delete_many(alias, [f"r{rng.randrange(RECORDS):04}"])
            if number % 5 == 0:
                client.checkpoint(compact=True, index=True, timeout=300)
            if number % 8 == 0:
                client.create_collection(CollectionSchema(name=f"other{number}", dim=DIM))
                client.set_alias("second", f"other{number}")
    except BaseException as error:
        errors.append(error)


def test_many_processes_agree_on_a_moment(tmp_path: Path) -> None:
    with serving(root=str(tmp_path / "data"), shards=3, index_min_rows=50) as url, VecraftClient(url=url) as client:
        client.create_collection(CollectionSchema(name="things", dim=DIM))
        client.set_alias("alias", "things")
        moment = client.upsert(
            "things",
            ids=[f"r{number:04}" for number in range(RECORDS)],
            vectors=np.random.default_rng(0).normal(size=(RECORDS, DIM)),
            metadatas=[{"even": number % 2 == 0} for number in range(RECORDS)],
        ).commit_ts
        expected, _ = moment_reader.digest(client, "alias", moment, DIM)
        stop, errors = threading.Event(), list[BaseException]()
        writer = threading.Thread(target=change_everything, args=(client, "alias", stop, errors))
        writer.start()
        arguments = [url, "alias", str(moment), str(DIM), str(ROUNDS)]
        readers = [
            subprocess.Popen(
                [sys.executable, moment_reader.__file__, *arguments],
                stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
            )
            for _ in range(PROCESSES)
        ]  # fmt: skip
        try:
            answers = [reader.communicate(timeout=800) for reader in readers]
        finally:
            stop.set()
            writer.join()
            for reader in readers:
                reader.kill()
                reader.wait()
        assert errors == []
        assert [stderr for _, stderr in answers] == [""] * PROCESSES
        lines = [line.split() for out, _ in answers for line in out.splitlines()]
        assert len(lines) == PROCESSES * ROUNDS
        assert {found for found, _ in lines} == {expected}
        assert sum(int(reads) for _, reads in lines) > 40 * PROCESSES * ROUNDS
        assert client.count("alias") != RECORDS or client.get("alias", "r0001").commit_ts != moment


def test_a_moment_whose_history_is_reclaimed_is_refused_not_answered(tmp_path: Path) -> None:
    with serving(root=str(tmp_path / "data"), shards=2, history_retention_s=0.05) as url:
        with VecraftClient(url=url) as client:
            client.create_collection(CollectionSchema(name="things", dim=1))
            first = client.upsert("things", ids=["a", "b"], vectors=[[1], [2]]).commit_ts
            with client.snapshot() as held:
                client.upsert("things", ids=["a"], vectors=[[3]])
                for _ in range(3):
                    client.checkpoint(compact=True)
                    threading.Event().wait(0.1)
                assert [packet.commit_ts for packet in held.scan("things")] == [first, first]
            for _ in range(200):
                client.upsert("things", ids=["a"], vectors=[[4]])
                client.checkpoint(compact=True)
                try:
                    client.count("things", as_of=first)
                except SnapshotTooOldError:
                    break
                threading.Event().wait(0.02)
            with pytest.raises(SnapshotTooOldError, match="safe point"), client.snapshot(as_of=first):
                pass
            with pytest.raises(SnapshotTooOldError):
                client.get("things", "a", as_of=first)
            assert client.count("things") == 2
