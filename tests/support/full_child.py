"""A database on a small file system of its own that becomes full.

Run as ``python -m tests.support.full_child FOLDER`` where ``FOLDER`` is the mount point. Says what it finds in one line
of JSON; what goes wrong is an exception.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

import numpy as np

from vecraft_data_model import CollectionSchema
from vecraft_data_model.errors import StorageFullError
from vecraft_db.client.vecraft_client import VecraftClient
from vecraft_db.config import Settings

SETTINGS = Settings(checkpoint_interval_s=3600.0, timeout=120.0)
READS_S = 3.0


def write(client: VecraftClient, number: int) -> None:
    """One write of about 20 kB over both shards."""
    ids = [f"r{number:05}-{i}" for i in range(4)]
    metadatas = [{"n": number, "filling": "x" * 5000}] * 4
    client.upsert("c", ids=ids, vectors=np.full((4, 8), number, np.float32), metadatas=metadatas)


def fill(path: Path) -> int:
    """Take all that is left of the file system."""
    size = 0
    with path.open("wb", buffering=0) as file:
        for block in (1 << 16, 1 << 12, 1):
            try:
                while True:
                    size += file.write(bytes(block))
            except OSError:
                continue
    return size


def read_for_a_while(client: VecraftClient, written: int) -> int:
    """Count, each time at a snapshot of its own, and beyond what the clock's ceiling covers; returns how often."""
    reads, until = 0, time.monotonic() + READS_S
    while reads < 10 or time.monotonic() < until:
        found = client.count("c")
        if found != 4 * written:
            raise SystemExit(f"{found} records are there, {4 * written} were acknowledged")
        reads += 1
        time.sleep(0.02)
    return reads


def main(folder: Path) -> None:
    """Fill the disk, read, open again, make room, write."""
    root = folder / "root"
    client = VecraftClient(root=root, shards=2, settings=SETTINGS)
    client.create_collection(CollectionSchema(name="c", dim=8))
    written = refused = 0
    while True:
        if written == 20:
            fill(folder / "filler")
        try:
            write(client, written)
            written += 1
        except StorageFullError:
            refused += 1
            if refused == 20:
                break
    reads = read_for_a_while(client, written)
    for host in client.engine.hosts.values():  # type: ignore[attr-defined]
        host.kill()  # as a crash would, while the disk is still full
    client.close()
    client = VecraftClient(root=root, settings=SETTINGS)
    reads += read_for_a_while(client, written)
    (folder / "filler").unlink()
    until = time.monotonic() + 120
    while True:
        try:
            write(client, written)
            break
        except StorageFullError:
            if time.monotonic() > until:
                raise
            time.sleep(0.05)
    reads += read_for_a_while(client, written + 1)
    client.close()
    print(json.dumps({"written": written, "refused": refused, "reads": reads}))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
