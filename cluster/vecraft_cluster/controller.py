"""The controller: one named, detached actor per cluster that owns its map and keeps its actors alive.

Who brings what back::

    a shard's process dies        Ray starts it again (max_restarts=-1), with the same name and directory
    it is frozen, or failed       the controller kills that incarnation; Ray starts the next one
    its actor is gone for good    the controller makes a new one of the same name
    the controller dies           Ray starts it again; it reads the root and finds the actors by name

Invariants:

* The truth is the root's ``vecraft.json``: the controller holds nothing that a restart would lose.
* Killing too early costs seconds, never data: the next process waits for the directory's lock, and for the lease of the
  one before unless that is known to be dead (:mod:`vecraft_cluster.lease`).
* What stays broken is tried again ever more slowly, up to a minute apart.

It carries no data: routers talk to shards directly, and come here only for the map.
"""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import os
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import msgspec
import ray
from ray import exceptions as ray_errors
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from vecraft_cluster.ports import NAMESPACE, Handle, actor_class, decode, encode, look_up, router_name, shard_name
from vecraft_cluster.root import mark_peopled, open_root, read_root
from vecraft_cluster.router_actor import RouterPlan, router_actor_class
from vecraft_cluster.shard_actor import ShardPlan, shard_actor_class
from vecraft_data_model.errors import ShardUnavailableError, VecraftError
from vecraft_data_model.placement import ClusterMap
from vecraft_shard.config import ShardConfig

logger = logging.getLogger(__name__)

SHARD_LABEL = "vecraft.io/shard"
"""Node label (``ray start --labels=vecraft.io/shard=0``) that says whose disk a node holds."""


STARTING_PATIENCE_S = 120.0
"""How long an actor may take from being started to its first answer: Ray may have to start its process first."""


YOUNG_INTERVAL_S = 0.2
"""How often all are looked at while an actor is young: until it was heard of as serving, its silence says little."""


YOUNG = frozenset({"starting", "restarting", "opening"})
"""States in which an actor may be silent for so long: it reads its files, some of them with the interpreter held."""


class ClusterPlan(msgspec.Struct, frozen=True):
    """What a cluster is to be; all its actors are made from it.

    Attributes:
        cluster: Its name.
        root: The data directory, a path on the nodes.
        shards: How many shards it must have; ``None`` takes what is there.
        default_shards: How many a new root gets when ``shards`` is ``None``.
        routers: How many router actors to run.
        shard_config: The shards' settings; their map epoch is filled in from the root.
        shard_cpus: Ray CPUs that each shard actor reserves; 0 leaves them for tasks.
        sockets: Whether shards serve batches on sockets of their own, and routers use them.
        home_node: Node that runs what no label places; empty: wherever Ray likes.
        ping_interval_s: How often every actor is looked at.
        frozen_after_s: An actor that answered nothing for so long is killed and started again.
    """

    cluster: str
    root: str
    shards: int | None = None
    default_shards: int = 1
    routers: int = 1
    shard_config: ShardConfig = ShardConfig()
    shard_cpus: float = 0
    sockets: bool = True
    home_node: str = ""
    ping_interval_s: float = 1.0
    frozen_after_s: float = 10.0


class Membership(msgspec.Struct, frozen=True):
    """What a router needs to know of its cluster."""

    cluster: str
    root: str
    database_id: str
    cluster_map: ClusterMap
    secret: bytes
    routers: int
    max_clock_skew_ms: int
    sockets: bool = True


class _Ward:
    """One actor under supervision, and what is known of it."""

    def __init__(self, name: str, kind: str, number: int) -> None:
        self.name = name
        self.kind = kind
        self.number = number
        self.handle: Handle | None = None
        self.asked: Any = None  # the ping that was not answered yet
        self.state = "starting"
        self.pid = 0
        self.node = ""
        self.started = 0.0
        self.starts = 0
        self.seen = time.monotonic()
        self.error: dict[str, Any] | None = None
        self.trouble = 0
        self.not_before = 0.0

    def heard(self, answer: dict[str, Any]) -> None:
        if (answer["pid"], answer["started"]) != (self.pid, self.started):
            self.starts += 1
        self.pid, self.node, self.started = answer["pid"], answer["node"], answer["started"]
        self.state, self.error = answer["state"], answer["error"]
        self.seen = time.monotonic()
        if self.state == "serving":
            self.trouble = 0

    def may_act(self) -> bool:
        """Whether it is time for another attempt; if so the one after it waits longer."""
        now = time.monotonic()
        if now < self.not_before:
            return False
        self.not_before = now + min(60.0, 0.5 * 2**self.trouble)
        self.trouble = min(self.trouble + 1, 8)
        return True

    def view(self) -> dict[str, Any]:
        return {
            self.kind: self.number,
            "actor": self.name,
            "state": self.state,
            "pid": self.pid,
            "node": self.node,
            "started": self.started,
            "restarts": max(0, self.starts - 1),
            "error": self.error,
        }


class ControllerActor:
    """The controller of one cluster (see the module's docstring)."""

    def __init__(self, plan: ClusterPlan) -> None:
        self._plan = plan
        self._root = Path(plan.root)
        self._failure: VecraftError | None = None
        self._wards: list[_Ward] = []
        self._begun: set[int] = set()
        self._beginning = threading.Lock()
        self._stop = threading.Event()
        self._supervisor = threading.Thread(target=self._supervise, name="vecraft-supervisor", daemon=True)
        try:
            self._state = open_root(self._root, plan.shards, plan.default_shards)
        except VecraftError as error:
            # An exception here would only say that the actor died; whoever launches it shall hear why.
            self._failure = error
            return
        for shard in self._state.cluster_map.all_shards():
            self._wards.append(_Ward(shard_name(plan.cluster, shard), "shard", shard))
        for number in range(plan.routers):
            self._wards.append(_Ward(router_name(plan.cluster, number), "router", number))
        for ward in self._wards:
            self._make(ward)
        self._supervisor.start()

    def membership(self) -> bytes:
        """Return the encoded :class:`Membership`, or the error that kept the cluster from starting."""
        if self._failure is not None:
            return encode(self._failure)
        try:
            state = read_root(self._root)
        except (OSError, VecraftError) as error:
            logger.warning("the root cannot be read; going on with what it said before", extra={"error": str(error)})
            state = self._state
        return encode(
            Membership(
                self._plan.cluster,
                str(self._root),
                state.database_id,
                state.cluster_map,
                state.secret,
                self._plan.routers,
                self._plan.shard_config.max_clock_skew_ms,
                self._plan.sockets,
            )
        )

    def plan(self) -> bytes:
        """Return the encoded plan that the cluster was made from."""
        return encode(self._plan)

    def peopled(self) -> bool:
        """Return whether every shard has served once: from then on an empty directory has lost its files."""
        return self._state.peopled

    def begun(self, shard: int) -> None:
        """Hear that a shard has begun in an empty directory, which it says before it answers anybody.

        Once the last one has said so, that is noted durably before it answers: until then nothing was written, because
        a collection is made on all shards or on none.
        """
        self._note_begun([shard])

    def status(self) -> dict[str, Any]:
        """Return how the cluster and each of its actors are, as last seen."""
        views = [ward.view() for ward in self._wards]
        return {
            "cluster": self._plan.cluster,
            "root": str(self._root),
            "pid": os.getpid(),
            "map_epoch": self._state.cluster_map.epoch if self._failure is None else 0,
            "shards": [view for view in views if "shard" in view],
            "routers": [view for view in views if "router" in view],
        }

    def stop(self, timeout: float) -> list[dict[str, Any]]:
        """Let every shard make its checkpoint and end, then end the routers; returns the errors that shards reported.

        What does not close within ``timeout`` seconds is killed all the same: its log has everything.
        """
        self._stop.set()
        if self._supervisor.is_alive():
            self._supervisor.join(timeout)
        handles = {ward: ward.handle for ward in self._wards if ward.handle is not None}
        closing = {handle.close.remote(): ward for ward, handle in handles.items() if ward.kind == "shard"}
        errors: list[dict[str, Any]] = []
        ready, late = ray.wait(list(closing), num_returns=len(closing), timeout=timeout) if closing else ([], [])
        for ref in ready:
            try:
                error = ray.get(ref)
            except ray_errors.RayError as failure:
                error = ShardUnavailableError(f"{closing[ref].name} died while closing: {failure}").to_dict()
            if error is not None:
                errors.append(error)
        errors += [ShardUnavailableError(f"{closing[ref].name} did not close in {timeout} s").to_dict() for ref in late]
        for ward, handle in handles.items():
            ray.kill(handle, no_restart=True)
            ward.state = "closed"
        return errors

    # ------------------------------------------------------------------------------------------ supervision

    def _supervise(self) -> None:
        while self._pause():
            try:
                self._look_around()
            except Exception:  # the supervisor must outlive whatever Ray comes up with; it is logged and tried again
                logger.exception("supervision failed; trying again")

    def _pause(self) -> bool:
        """Wait until it is time for the next look around; whether there is to be one."""
        interval_s, began = self._interval_s(), time.monotonic()
        if self._stop.wait(interval_s):
            return False
        self._excuse(time.monotonic() - began, interval_s)
        return True

    def _excuse(self, took_s: float, planned_s: float) -> None:
        """See whether this process stood still while it waited: then what was not heard meanwhile says nothing."""
        late_s = took_s - planned_s
        if late_s > planned_s:
            for ward in self._wards:
                ward.seen += late_s

    def _look_around(self) -> None:
        """Ping every actor at once, then act on what came back and what did not.

        An answer counts whenever it comes: on a busy machine each may take longer than a look around.
        """
        asked: dict[Any, _Ward] = {}
        for ward in self._wards:
            if ward.handle is None:
                self._make(ward)
            if ward.handle is not None:
                if ward.asked is None:
                    ward.asked = ward.handle.ping.remote()
                asked[ward.asked] = ward
        if not asked:
            return
        patience_s, began = self._interval_s(), time.monotonic()
        ready, silent = ray.wait(list(asked), num_returns=len(asked), timeout=patience_s)
        self._excuse(time.monotonic() - began, patience_s)
        for ref in ready:
            asked[ref].asked = None
            self._hear(asked[ref], ref)
        for ref in silent:
            self._worry(asked[ref])
        if not self._state.peopled:
            self._note_begun([ward.number for ward in self._wards if (ward.kind, ward.state) == ("shard", "serving")])

    def _interval_s(self) -> float:
        """Return the seconds until the next look around."""
        longest = self._plan.ping_interval_s
        lately = time.monotonic() - self._plan.frozen_after_s
        young = any(ward.state in YOUNG and ward.seen > lately for ward in self._wards)
        return min(longest, YOUNG_INTERVAL_S) if young else longest

    def _note_begun(self, shards: Sequence[int]) -> None:
        with self._beginning:
            self._begun.update(shards)
            if not self._state.peopled and self._begun.issuperset(self._state.cluster_map.all_shards()):
                # From now on a shard that finds its directory empty is on the wrong disk, and must not begin anew.
                self._state = mark_peopled(self._root)

    def _hear(self, ward: _Ward, ref: Any) -> None:
        try:
            ward.heard(ray.get(ref, timeout=0))
        except ray_errors.ActorDiedError as error:
            ward.state = "dead"
            logger.warning("actor is gone; making it anew", extra={"actor": ward.name, "error": str(error)[:200]})
            ward.handle = None
            return
        except ray_errors.RayError:
            # It is being started again. What counts as frozen begins with its next incarnation.
            ward.state = "restarting"
            ward.seen = time.monotonic()
            return
        if ward.state == "failed" and ward.may_act():
            self._restart(ward, "it could not be opened")

    def _worry(self, ward: _Ward) -> None:
        silent_s = time.monotonic() - ward.seen
        young = ward.state in YOUNG
        patience_s = max(STARTING_PATIENCE_S, self._plan.frozen_after_s) if young else self._plan.frozen_after_s
        if silent_s > patience_s and ward.may_act():
            self._restart(ward, f"it has not answered for {silent_s:.0f} s")

    def _restart(self, ward: _Ward, why: str) -> None:
        if self._stop.is_set() or ward.handle is None:
            return
        logger.warning("ending an actor so that it is started again", extra={"actor": ward.name, "why": why})
        ray.kill(ward.handle, no_restart=False)
        ward.asked = None
        ward.state = "restarting"
        ward.seen = time.monotonic()

    def _make(self, ward: _Ward) -> None:
        """Make an actor, or find the one of that name."""
        if self._stop.is_set() or not ward.may_act():
            return
        options: dict[str, Any] = {
            "name": ward.name,
            "namespace": NAMESPACE,
            "lifetime": "detached",
            "get_if_exists": True,
            "num_cpus": self._plan.shard_cpus if ward.kind == "shard" else 0,
            **placement(ward.number if ward.kind == "shard" else None, self._plan.home_node),
        }
        try:
            if ward.kind == "shard":
                config = dataclasses.replace(self._plan.shard_config, map_epoch=self._state.cluster_map.epoch)
                plan = ShardPlan(self._plan.cluster, ward.number, str(self._root), config, self._plan.sockets)
                ward.handle = shard_actor_class().options(**options).remote(plan)
            else:
                ward.handle = router_actor_class().options(**options).remote(RouterPlan(self._plan.cluster))
        except (ValueError, ray_errors.RayError) as error:
            ward.error = ShardUnavailableError(f"{ward.name} cannot be placed: {error}").to_dict()
            logger.warning("actor cannot be made", extra={"actor": ward.name, "error": str(error)[:200]})
            return
        ward.state = "starting"
        ward.seen = time.monotonic()


def placement(shard: int | None, home_node: str) -> dict[str, Any]:
    """Return the scheduling options of an actor: the node that holds its disk.

    A node labelled ``vecraft.io/shard=<n>`` gets that shard. Without such labels everything stays on ``home_node``,
    where the root is: on another node a shard would find an empty directory and take it for a new one.
    """
    labelled = any(SHARD_LABEL in node.get("Labels", {}) for node in cast(Any, ray).nodes() if node["Alive"])
    if shard is not None and labelled:
        return {"label_selector": {SHARD_LABEL: str(shard)}}
    if home_node:
        return {"scheduling_strategy": NodeAffinitySchedulingStrategy(node_id=home_node, soft=False)}
    return {}


def controller_actor_class() -> Any:
    """Return the controller's actor class with the options that never vary."""
    return actor_class(ControllerActor, max_concurrency=4, num_cpus=0)


def fetch_membership(controller: Handle, timeout: float) -> Membership:
    """Ask a controller for its cluster's map and secret.

    Raises:
        VecraftError: What kept the cluster from starting.
        RayError: The controller did not answer.
    """
    answer = decode(ray.get(controller.membership.remote(), timeout=timeout))
    if isinstance(answer, VecraftError):
        raise answer
    membership: Membership = answer
    return membership


def kill_quietly(name: str) -> None:
    """End a named actor for good if it is there."""
    with contextlib.suppress(ShardUnavailableError):
        ray.kill(look_up(name), no_restart=True)
