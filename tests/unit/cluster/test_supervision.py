"""When the controller takes an actor for frozen, and when not. No Ray here: time and answers are the test's own."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from ray.exceptions import ActorUnavailableError

from vecraft_cluster import controller as module
from vecraft_cluster.controller import ClusterPlan, ControllerActor, _Ward
from vecraft_cluster.root import RootState, open_root, read_root
from vecraft_data_model.placement import initial_map

PEOPLED = RootState("id", initial_map(1), b"", peopled=True)
PLAN = ClusterPlan(cluster="c", root="/nowhere", ping_interval_s=1.0, frozen_after_s=10.0)


@dataclass(frozen=True, eq=False)
class Reference:
    """An answer that comes at its time."""

    ready_at: float
    value: Any


class Machine:
    """Time, and what the controller asks Ray for."""

    def __init__(self) -> None:
        self.now = 100.0
        self.killed = 0
        self.stopped_s = 0.0  # how long the controller's process stands still, the next time that it waits
        self.stopped_between_s = 0.0  # … the next time that it lets time pass before it looks around

    def monotonic(self) -> float:
        return self.now

    def wait(self, references: Sequence[Reference], num_returns: int, timeout: float) -> tuple[list[Any], list[Any]]:
        if self.stopped_s:
            # The wait is over before anything that came meanwhile has been looked at.
            self.now, self.stopped_s = self.now + timeout + self.stopped_s, 0.0
            return [], list(references)
        all_ready_at = max(reference.ready_at for reference in references)
        self.now = max(self.now, min(self.now + timeout, all_ready_at))
        ready = [reference for reference in references if reference.ready_at <= self.now]
        return ready, [reference for reference in references if reference not in ready]

    def pass_time(self, seconds: float) -> bool:
        """The ``wait`` of the event that says to stop, which nobody sets."""
        self.now, self.stopped_between_s = self.now + seconds + self.stopped_between_s, 0.0
        return False

    def get(self, reference: Reference, timeout: float) -> Any:
        if isinstance(reference.value, Exception):
            raise reference.value
        return reference.value

    def kill(self, handle: object, no_restart: bool) -> None:
        self.killed += 1


class Actor:
    """An actor that answers every ping after a while."""

    def __init__(self, machine: Machine, latency_s: float, state: str = "serving") -> None:
        self.ping = self
        self.machine = machine
        self.latency_s = latency_s
        self.state = state
        self.asked = 0

    def remote(self) -> Reference:
        self.asked += 1
        answer: Any = {"pid": 7, "node": "n", "started": 1.0, "state": self.state, "error": None}
        if self.state == "unavailable":
            answer = ActorUnavailableError("away", None)
        return Reference(self.machine.now + self.latency_s, answer)


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Machine:
    machine = Machine()
    monkeypatch.setattr(module.time, "monotonic", machine.monotonic)
    for name in ("wait", "get", "kill"):
        monkeypatch.setattr(module.ray, name, getattr(machine, name))
    return machine


def watch(machine: Machine, actor: Actor, seconds: float) -> _Ward:
    """Let a controller look at one actor for so long."""
    ward = _Ward("vecraft:c:shard-0000", "shard", 0)
    ward.handle, ward.state, ward.seen = actor, actor.state, machine.now
    controller = object.__new__(ControllerActor)
    controller._plan = PLAN
    controller._wards = [ward]
    controller._stop = threading.Event()
    controller._stop.wait = machine.pass_time  # type: ignore[method-assign,assignment]
    controller._state = PEOPLED
    end = machine.now + seconds
    while machine.now < end and controller._pause():
        controller._look_around()
    return ward


def test_an_actor_that_answers_late_but_always_is_not_killed(machine: Machine) -> None:
    """On a busy machine every answer may take longer than the controller waits for it."""
    actor = Actor(machine, latency_s=3.5)
    ward = watch(machine, actor, 120)
    assert machine.killed == 0
    assert ward.state == "serving" and ward.pid == 7
    assert actor.asked < 40, "no second question before the first is answered"


def test_an_actor_that_never_answers_is_killed_soon(machine: Machine) -> None:
    watch(machine, Actor(machine, latency_s=1e9), PLAN.frozen_after_s + 4)
    assert machine.killed == 1


def test_a_controller_that_was_stopped_itself_takes_nobody_for_frozen(machine: Machine) -> None:
    """It has not listened for so long: what it did not hear says nothing."""
    machine.stopped_s = 30.0
    ward = watch(machine, Actor(machine, latency_s=0.1), 60)
    assert machine.killed == 0 and ward.state == "serving"


def test_nor_does_one_that_was_stopped_between_two_looks(machine: Machine) -> None:
    """The answer to its next question may take longer than one look around."""
    machine.stopped_between_s = 30.0
    ward = watch(machine, Actor(machine, latency_s=1.5), 60)
    assert machine.killed == 0 and ward.state == "serving"


def test_one_that_was_stopped_between_two_looks_finds_a_frozen_actor_all_the_same(machine: Machine) -> None:
    machine.stopped_between_s = 30.0
    watch(machine, Actor(machine, latency_s=1e9), 30.0 + PLAN.frozen_after_s + 6)
    assert machine.killed == 1


def test_a_controller_that_was_stopped_finds_a_frozen_actor_all_the_same(machine: Machine) -> None:
    machine.stopped_s = 30.0
    watch(machine, Actor(machine, latency_s=1e9), 30.0 + PLAN.frozen_after_s + 6)
    assert machine.killed == 1


def test_an_actor_that_is_opening_its_files_is_given_time(machine: Machine) -> None:
    """Loading a large graph may keep the interpreter busy for long."""
    actor = Actor(machine, latency_s=0.1, state="opening")
    ward = watch(machine, actor, 5)
    assert ward.state == "opening"
    actor.latency_s = 60.0
    watch(machine, actor, 50)
    assert machine.killed == 0


def test_an_actor_that_is_being_started_again_is_not_killed(machine: Machine) -> None:
    ward = watch(machine, Actor(machine, latency_s=0.5, state="unavailable"), 60)
    assert machine.killed == 0
    assert ward.state == "restarting"


class FreezingActor(Actor):
    """One that opens its files, serves for a moment, and then never answers again."""

    def __init__(self, machine: Machine, opening_s: float, serving_s: float) -> None:
        super().__init__(machine, latency_s=0.01, state="opening")
        self.serves_at = machine.now + opening_s
        self.freezes_at = self.serves_at + serving_s

    def remote(self) -> Reference:
        if self.machine.now >= self.freezes_at:
            self.latency_s = 1e9
        elif self.machine.now >= self.serves_at:
            self.state = "serving"
        return super().remote()


def test_an_actor_that_freezes_right_after_its_start_is_killed_soon(machine: Machine) -> None:
    """What counts is that the controller has heard of it as serving: an actor that opens its files may be silent."""
    watch(machine, FreezingActor(machine, opening_s=3.3, serving_s=0.4), 4 + PLAN.frozen_after_s + 3)
    assert machine.killed == 1


def test_actors_that_are_settled_are_asked_no_oftener_for_a_silent_young_one(machine: Machine) -> None:
    """One that cannot be placed is young for hours."""
    actor = Actor(machine, latency_s=0.01, state="opening")
    ward = watch(machine, actor, 2)
    assert ward.state == "opening" and actor.asked >= 8
    ward.seen = machine.now - PLAN.frozen_after_s - 1
    controller = object.__new__(ControllerActor)
    controller._plan, controller._wards = PLAN, [ward]
    assert controller._interval_s() == PLAN.ping_interval_s


def test_the_root_knows_that_all_shards_have_begun_before_the_last_of_them_serves(tmp_path: Path) -> None:
    controller = object.__new__(ControllerActor)
    controller._root, controller._state = tmp_path, open_root(tmp_path, 3)
    controller._begun, controller._beginning = set(), threading.Lock()
    for shard in (2, 0, 0):
        controller.begun(shard)
        assert not controller.peopled() and not read_root(tmp_path).peopled
    controller.begun(1)
    assert controller.peopled() and read_root(tmp_path).peopled
