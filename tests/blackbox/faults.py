"""What happens to a cluster during a black-box run: kills, and processes that stop for a while and then go on."""

from __future__ import annotations

import os
import random
import signal
import threading
import time
from collections import Counter

from ray import exceptions as ray_errors

from tests.support.ray_workbench import kill_controller, ping
from vecraft_cluster.launch import Cluster
from vecraft_cluster.lease import LEASE_S
from vecraft_cluster.ports import router_name, shard_name
from vecraft_data_model.errors import ShardUnavailableError

KINDS = {
    "shard killed": 10,
    "router killed": 6,
    "shard stopped": 8,
    "router stopped": 4,
    "shard stopped beyond its lease": 1,
    "controller killed": 2,
}
"""What happens, and how often."""


class Faults(threading.Thread):
    """Breaks one thing after another until told to stop; then everything runs again.

    Args:
        cluster: Whose actors.
        seed: Of what is broken; when depends on chance.
        pause_s: Shortest and longest time between two faults.
    """

    def __init__(self, cluster: Cluster, seed: int, pause_s: tuple[float, float] = (0.5, 4.0)) -> None:
        super().__init__(name="faults", daemon=True)
        self.counts: Counter[str] = Counter()
        self._cluster = cluster
        self._random = random.Random(f"faults {seed}")
        self._pause_s = pause_s
        self._over = threading.Event()

    def run(self) -> None:
        """One fault after another."""
        while not self._over.wait(self._random.uniform(*self._pause_s)):
            kind = self._random.choices(list(KINDS), list(KINDS.values()))[0]
            try:
                self._break(kind)
            except (ProcessLookupError, ShardUnavailableError, ray_errors.RayError):
                continue  # it is gone already, and being brought back
            self.counts[kind] += 1

    def close(self) -> None:
        """Let the weather clear up."""
        self._over.set()
        self.join()

    def _break(self, kind: str) -> None:
        if kind == "controller killed":
            kill_controller(self._cluster)
            return
        if kind.startswith("shard"):
            shards = self._cluster.membership.cluster_map.all_shards()
            actor = shard_name(self._cluster.name, self._random.choice(list(shards)))
        else:
            actor = router_name(self._cluster.name, self._random.randrange(self._cluster.membership.routers))
        pid = int(ping(actor)["pid"])
        if kind.endswith("killed"):
            os.kill(pid, signal.SIGKILL)
        elif kind.endswith("lease"):
            self._freeze(pid, LEASE_S + 0.5)
        else:
            self._freeze(pid, self._random.choice((0.05, 0.3, 1.0, 3.0)))

    def _freeze(self, pid: int, seconds: float) -> None:
        os.kill(pid, signal.SIGSTOP)
        try:
            time.sleep(seconds)
        finally:
            os.kill(pid, signal.SIGCONT)
