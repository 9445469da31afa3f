"""A process of its own that opens what :mod:`benchmarks.growth` has written, and says what that took, as JSON."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

import hnswlib

from benchmarks.data import K
from benchmarks.growth import COLLECTION, DEPTH, DIM, rows_and_queries
from benchmarks.measure import anonymous_mb
from vecraft_data_model import QueryPacket
from vecraft_db.client.vecraft_client import VecraftClient

_SEARCHES = 20


def probe_database(root: Path) -> dict[str, float]:
    """Open a root and search it."""
    packets = [QueryPacket(query_vector=query, k=K, include=()) for query in rows_and_queries(1000, _SEARCHES)[1]]
    before, began, cpu = anonymous_mb(), time.perf_counter(), time.process_time()
    with VecraftClient(root=root) as client:
        client.search(COLLECTION, packets[0])
        first, spent = time.perf_counter() - began, time.process_time() - cpu
        for packet in packets:
            client.search(COLLECTION, packet)
        held = anonymous_mb() - before
    return {"first_answer_s": first, "cpu_s": spent, "anonymous_mb": held}


def probe_index(file: Path) -> dict[str, float]:
    """Load a bare index and search it."""
    queries: Any = rows_and_queries(1000, _SEARCHES)[1]
    before = anonymous_mb()
    index = hnswlib.Index(space="l2", dim=DIM)
    index.load_index(str(file))
    index.set_ef(DEPTH)
    for query in queries:
        index.knn_query(query.reshape(1, -1), K, num_threads=1)
    return {"anonymous_mb": anonymous_mb() - before}


if __name__ == "__main__":
    probes = {"database": probe_database, "index": probe_index}
    print(json.dumps(probes[sys.argv[1]](Path(sys.argv[2]))))
