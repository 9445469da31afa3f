"""A process that reads one collection at one timestamp, over and over, and prints a digest of all it saw each time."""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Iterator
from typing import Any

import numpy as np

from vecraft_data_model import DataPacket, QueryPacket
from vecraft_db.client.vecraft_client import VecraftClient

PAGE = 37
SEARCHES = 10


def pages(client: VecraftClient, collection: str, moment: int) -> Iterator[DataPacket]:
    """Scan in pages that are calls of their own, each going on where the last one's cursor points."""
    scan = client.scan(collection, limit=PAGE, as_of=moment)
    yield from scan
    while scan.cursor is not None:
        scan = client.scan(collection, limit=PAGE, cursor=scan.cursor)
        yield from scan


def digest(client: VecraftClient, collection: str, moment: int, dim: int) -> tuple[str, int]:
    """Return a digest of everything that can be read at a moment, and in how many reads."""
    hasher = hashlib.sha256()

    def take(*values: Any) -> None:
        hasher.update(repr(values).encode())

    packets = list(pages(client, collection, moment))
    reads = len(packets) // PAGE + 1
    for packet in packets:
        take(packet.record_id, packet.commit_ts, packet.checksum, packet.metadata)
    ids = [packet.record_id for packet in packets]
    take(client.count(collection, as_of=moment), client.count(collection, {"even": True}, as_of=moment))
    with client.snapshot(as_of=moment) as view:
        take(view.timestamp, view.count(collection), view.list_aliases())
        take([packet and packet.checksum for packet in view.get_many(collection, [*ids, "never"])])
    for record_id in ids[:: max(1, len(ids) // 20)]:
        take(client.get(collection, record_id, as_of=moment).checksum)
        reads += 1
    for query in np.random.default_rng(1).normal(size=(SEARCHES, dim)):
        hits = client.search(collection, QueryPacket(query, k=15, exact=True), as_of=moment)
        take([(hit.record_id, hit.distance, hit.metadata) for hit in hits])
    return hasher.hexdigest(), reads + SEARCHES + 5


def main(url: str, collection: str, moment: str, dim: str, rounds: str) -> None:
    """Read that many rounds; one line each."""
    with VecraftClient(url=url) as client:
        for _ in range(int(rounds)):
            print(*digest(client, collection, int(moment), int(dim)), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
