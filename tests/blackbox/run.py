"""A black-box run on a Ray cluster: clients, faults, then calm, both checkers, and a record of it."""

from __future__ import annotations

import datetime
import subprocess
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from tests.blackbox.checking import Verdict, check
from tests.blackbox.content import COLLECTIONS, State, state_of
from tests.blackbox.faults import Faults
from tests.blackbox.workload import Workload
from tests.support.ray_workbench import insist
from vecraft_cluster.launch import Cluster, launch
from vecraft_db.client.vecraft_client import VecraftClient
from vecraft_shard.config import ShardConfig

SHARDS = 3
ROUTERS = 2
WORKERS = 24


@contextmanager
def cluster_for(root: Path, data_plane: str = "socket") -> Iterator[Cluster]:
    """A cluster of three shards that makes checkpoints all the time, with two router actors."""
    config = ShardConfig(verify_writes=True, checkpoint_interval_s=3.0)
    cluster = launch(
        root, SHARDS, address="local", routers=ROUTERS, shard_config=config, data_plane=data_plane, timeout=180
    )
    try:
        yield cluster
    finally:
        cluster.close()


def run_on_ray(
    cluster: Cluster, transactions: int, seed: int, *, kills: bool = True, limit_s: float = 1e9
) -> tuple[Verdict, dict[str, Any]]:
    """Run the workload on a cluster while it is being broken.

    Half of the clients route in this process, the others through router actors.

    Args:
        cluster: Of this run alone.
        transactions: Committed ones after which it ends.
        seed: Of what clients do and what is broken.
        kills: Whether to kill and stop processes.
        limit_s: End after so many seconds at any rate.

    Returns:
        What the checkers found, and the record of the run.
    """
    began = time.monotonic()
    with ExitStack() as stack:
        clients = [
            stack.enter_context(VecraftClient(address="auto", cluster=cluster.name, via_router_actor=remote))
            for remote in (False, True, False, True)
        ]
        work = Workload(clients, WORKERS, transactions, seed, limit_s)
        work.prepare(clients[0])
        faults = Faults(cluster, seed)
        if kills:
            faults.start()
        try:
            work.run()
        finally:
            if kills:
                faults.close()
        worked_s = time.monotonic() - began
        work.settle()
        final = insist(lambda: contents(clients[0]), 120.0)
    verdict = check(work.events, final)
    events = work.events
    reads_only = sum(not txn.writes for txn in events.told("committed"))
    record = {
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "commit": _commit(),
        "method": "black box",
        "transactions": len(events.told("committed")),
        "of them read-only": reads_only,
        "aborted by conflict": len(events.told("aborted")) - events.abandoned,
        "never sent": events.abandoned,
        "asked again": sum(max(0, txn.tries - 1) for txn in events.transactions),
        "clients": WORKERS,
        "shards": SHARDS,
        "seconds": round(worked_s),
        "seed": seed,
        "faults": dict(faults.counts),
        "checked": dict(verdict.checked),
        "write skew seen": verdict.write_skew,
        "violations": len(verdict.problems),
    }
    return verdict, record


def contents(client: VecraftClient) -> dict[str, dict[str, State]]:
    """All records, by collection."""
    return {
        name: {
            packet.record_id: state
            for packet in client.scan(name, consistency="strong")
            if (state := state_of(packet)) is not None
        }
        for name in COLLECTIONS
    }


def _commit() -> str:
    here = Path(__file__).parent
    done = subprocess.run(["git", "rev-parse", "--short", "HEAD"], cwd=here, capture_output=True, text=True)
    return done.stdout.strip() or "unknown"
