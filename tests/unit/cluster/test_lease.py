"""The lease: never two holders at once, whatever stops, however clocks run; and no longer a wait than that needs."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path

import pytest

from vecraft_cluster.lease import Claim, Lease, LeaseFolder, LeaseKeeper
from vecraft_data_model.errors import StorageFailureException

LEASE_S, TAKEOVER_S = 8.0, 10.0


class MovableClock:
    """Time that the test lets pass."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> MovableClock:
    return MovableClock()


@pytest.fixture
def lease(tmp_path: Path, clock: MovableClock) -> Callable[[str], Lease]:
    """Makes a process's lease; processes on the same kernel are only started once the one before is dead."""

    def make(kernel: str) -> Lease:
        return Lease(LeaseFolder(tmp_path / "lease"), clock, kernel, lease_s=LEASE_S, takeover_s=TAKEOVER_S)

    return make


def test_the_first_holder_waits_for_nobody_and_answers_for_as_long_as_it_renews(
    lease: Callable[[str], Lease], clock: MovableClock
) -> None:
    mine = lease("a")
    assert not mine.valid()
    assert mine.try_acquire()
    for _ in range(5):
        assert mine.valid()
        clock.now += LEASE_S - 0.1
        assert mine.renew()
    clock.now += LEASE_S
    assert not mine.valid()
    assert mine.renew(), "nobody took it: what is in memory is what is true"
    assert mine.valid()


def test_a_holder_elsewhere_is_waited_for_and_then_answers_nothing_for_ever(
    lease: Callable[[str], Lease], clock: MovableClock
) -> None:
    old, new = lease("a"), lease("b")
    assert old.try_acquire()
    assert not new.try_acquire()
    clock.now += TAKEOVER_S - 0.1
    assert old.renew()
    assert not new.try_acquire(), "it was renewed: the wait begins anew"
    clock.now += TAKEOVER_S - 0.1
    assert not new.try_acquire()
    assert not old.valid(), "between the two nobody answers"
    clock.now += 0.2
    assert new.try_acquire()
    assert new.valid()
    assert not old.valid()
    assert not old.renew()
    assert not old.valid()
    clock.now += TAKEOVER_S
    assert new.renew()
    assert not old.renew()


def test_a_holder_known_to_be_dead_is_not_waited_for(lease: Callable[[str], Lease]) -> None:
    assert lease("a").try_acquire()
    assert lease("a").try_acquire(), "it ran on this kernel, and its lock is ours"


def test_a_released_lease_is_not_waited_for(lease: Callable[[str], Lease]) -> None:
    old, new = lease("a"), lease("b")
    assert old.try_acquire()
    old.release()
    assert not old.valid()
    assert new.try_acquire()
    old.release()
    assert new.valid()
    assert new.renew()


def test_who_cannot_get_it_says_so(lease: Callable[[str], Lease], monkeypatch: pytest.MonkeyPatch) -> None:
    old, new = lease("a"), lease("b")
    assert old.try_acquire()
    with pytest.raises(StorageFailureException, match="another machine"):
        new.acquire(0.0)


def test_the_time_begins_before_the_disk_is_asked(tmp_path: Path, clock: MovableClock) -> None:
    """A rename that takes long must not make the lease longer: others count from when they see it."""

    class SlowFolder(LeaseFolder):
        def rename(self, old: str, new: str) -> bool:
            done = super().rename(old, new)
            clock.now += LEASE_S
            return done

    mine = Lease(SlowFolder(tmp_path / "lease"), clock, "a", lease_s=LEASE_S, takeover_s=TAKEOVER_S)
    assert mine.try_acquire()
    assert not mine.valid()


def test_a_renewal_that_failed_after_the_rename_is_taken_up_again(tmp_path: Path, clock: MovableClock) -> None:
    class FailingFolder(LeaseFolder):
        failing = False

        def rename(self, old: str, new: str) -> bool:
            done = super().rename(old, new)
            if self.failing:
                raise OSError("the disk is on fire")
            return done

    folder = FailingFolder(tmp_path / "lease")
    mine = Lease(folder, clock, "a", lease_s=LEASE_S, takeover_s=TAKEOVER_S)
    assert mine.try_acquire()
    clock.now += 2
    folder.failing = True
    with pytest.raises(OSError, match="fire"):
        mine.renew()
    clock.now += LEASE_S - 3
    assert mine.valid(), "what it was granted before still counts"
    clock.now += 2
    assert not mine.valid(), "what is not durable does not count"
    folder.failing = False
    assert mine.renew()
    assert mine.valid()


def test_the_folder_always_holds_one_lease(tmp_path: Path) -> None:
    folder = LeaseFolder(tmp_path / "lease")
    assert folder.all() == []
    folder.begin("first")
    folder.begin("second")
    assert folder.all() == ["first"], "who comes second finds what there is"
    assert not folder.rename("second", "third")
    assert folder.rename("first", "third")
    assert folder.all() == ["third"]
    assert [path.name for path in tmp_path.iterdir()] == ["lease"]


@pytest.mark.parametrize("name", ["", "7", "7.a", "x.a.b", "7..b", "7.a."])
def test_other_files_are_no_leases(name: str) -> None:
    assert Claim.of(name) is None
    assert Claim.of(Claim(7, "a", "b").name) == Claim(7, "a", "b")


def test_the_keeper_renews_and_releases(tmp_path: Path) -> None:
    mine = Lease(LeaseFolder(tmp_path / "lease"), kernel="a")
    mine.acquire(60.0)
    before = LeaseFolder(tmp_path / "lease").all()
    keeper = LeaseKeeper(mine, lambda: None, every_s=0.001)
    while LeaseFolder(tmp_path / "lease").all() == before:
        pass
    keeper.close()
    assert not mine.valid()
    other = Lease(LeaseFolder(tmp_path / "lease"), kernel="b")
    assert other.try_acquire(), "it was released"


# --------------------------------------------------------------------------------------------------- simulated


class World:
    """Processes with clocks of their own rates, that may be stopped before, in the middle of and after any disk access.

    A process that stops lets the others run; so what they do happens inside what it does, and one thread is enough.
    """

    def __init__(self, seed: int, drift: float) -> None:
        self.random = random.Random(seed)
        self.time = 0.0
        self.names: set[str] = set()
        self.processes = [Process(self, number, drift) for number in range(3)]
        self.depth = 0
        self.answers = 0
        self.takeovers = 0
        self.last: Process | None = None

    def stop(self) -> None:
        """Time passes for the one that asks; the others do whatever they do."""
        if self.random.random() < 0.7:
            return
        self.time += self.random.choice((0.001, 0.1, 1.0, 4.0, 12.0))
        if self.depth < 4:
            self.depth += 1
            for _ in range(self.random.randrange(4)):
                self.random.choice(self.processes).step()
                self.time += self.random.random()
            self.depth -= 1
        self.check()

    def check(self) -> None:
        holders = [process for process in self.processes if process.lease.valid()]
        assert len(holders) <= 1, f"{len(holders)} processes may answer at {self.time}: {sorted(self.names)}"
        if holders:
            self.answers += 1
            self.takeovers += self.last is not holders[0]
            self.last = holders[0]

    # The folder, as a process sees it.
    def all(self) -> list[str]:
        self.stop()
        names = sorted(self.names)
        self.stop()
        return names

    def begin(self, name: str) -> None:
        self.stop()
        if not self.names:
            self.names.add(name)
        self.stop()

    def rename(self, old: str, new: str) -> bool:
        self.stop()
        found = old in self.names
        if found:
            self.names.remove(old)
            self.names.add(new)
        self.stop()
        if found and self.random.random() < 0.05:
            raise OSError("the answer of the disk got lost")
        return found


class Process:
    """Tries to get the lease, keeps it for a while, and forgets everything now and then."""

    def __init__(self, world: World, number: int, drift: float) -> None:
        self.world = world
        self.number = number
        self.rate = 1.0 + world.random.uniform(-drift, drift)
        self.inside = False
        self.fresh()

    def fresh(self) -> None:
        self.lease = Lease(
            self.world, self.clock, f"kernel{self.number}", lease_s=LEASE_S, takeover_s=TAKEOVER_S
        )
        self.held = False

    def clock(self) -> float:
        return self.world.time * self.rate

    def step(self) -> None:
        if self.inside:
            return  # it is stopped
        self.inside = True
        try:
            if self.held and self.world.random.random() < 0.02:
                self.lease.release()
                self.fresh()
            elif self.held and not self.lease.renew():
                self.fresh()
            elif not self.held:
                self.held = self.lease.try_acquire()
        except OSError:
            if not self.held:
                self.fresh()
        finally:
            self.inside = False


@pytest.mark.parametrize("drift", [0.0, 0.1], ids=["exact clocks", "clocks off by a tenth"])
def test_never_two_holders_whatever_stops_when(drift: float) -> None:
    answers = takeovers = 0
    for seed in range(150):
        world = World(seed, drift)
        for _ in range(150):
            world.time += world.random.choice((0.1, 1.0, 3.0))
            world.random.choice(world.processes).step()
            world.check()
        answers += world.answers
        takeovers += world.takeovers
    assert answers > 5000
    assert takeovers > 300, "nothing was at stake"


def test_the_simulation_finds_a_lease_that_is_counted_wrongly(monkeypatch: pytest.MonkeyPatch) -> None:
    """The two rules that keep holders apart, each broken once."""
    advance = Lease._advance

    def counted_from_after(self: Lease, old: Claim, new: Claim) -> bool:
        done = advance(self, old, new)
        if done:
            self._until = self._clock() + self._lease_s
        return done

    monkeypatch.setattr(Lease, "_advance", counted_from_after)
    with pytest.raises(AssertionError, match="2 processes may answer"):
        test_never_two_holders_whatever_stops_when(0.0)
    monkeypatch.undo()
    with pytest.raises(AssertionError, match="2 processes may answer"):
        test_never_two_holders_whatever_stops_when(0.4)
