"""The flows under faults, in virtual time. A failure names its seed; ``simulate(seed)`` replays it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from router_simulation import simulate

from vecraft_data_model.errors import VecraftError
from vecraft_data_model.messages import Committed, Decide, Request, Response
from vecraft_router import Flow, ReadOptions, Tell, attempt
from vecraft_router.attempt import Attempt, Failed
from vecraft_router.reads import Reader


@pytest.mark.parametrize("seed", range(16))
def test_nothing_goes_wrong(seed: int) -> None:
    problems, transactions, reads = simulate(seed)
    assert not problems, f"seed {seed}: {problems[:5]}"
    assert transactions > 5 and reads > 5, f"seed {seed} shows nothing: {transactions} transactions, {reads} reads"


def test_a_seed_is_the_whole_story() -> None:
    assert simulate(3) == simulate(3)


# ------------------------------------------------------------------------- planted bugs, which it has to find


def _told_before_it_is_durable(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(self: Attempt, error: VecraftError) -> Flow[Failed]:
        yield from ()
        return Failed(error, release=self._release())

    monkeypatch.setattr(Attempt, "_refuse", refuse)


def _answered_before_the_commit_point(monkeypatch: pytest.MonkeyPatch) -> None:
    honest = Attempt._until_answered

    def until_answered(self: Attempt, request: Request) -> Flow[Response | None]:
        if not isinstance(request, Decide):
            return (yield from honest(self, request))
        yield Tell({self._primary: request})
        return Committed(request.commit_ts)

    monkeypatch.setattr(Attempt, "_until_answered", until_answered)


def _unknown_is_taken_for_aborted(monkeypatch: pytest.MonkeyPatch) -> None:
    def run(self: Attempt) -> Flow[object]:
        try:
            return (yield from (self._together() if len(self._participants) > 1 else self._alone()))
        except VecraftError as error:
            return Failed(error, again=True, spent=False)

    monkeypatch.setattr(Attempt, "run", run)


def _commits_below_a_promise(monkeypatch: pytest.MonkeyPatch) -> None:
    def smallest(*values: Any, **key: Any) -> Any:
        return max(*values, **key) if key or len(values) > 1 else min(values[0])

    monkeypatch.setattr(attempt, "max", smallest, raising=False)


def _strong_without_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    def barrier(self: Reader, *_: object) -> Flow[int]:
        yield from ()
        return self._state.now()

    monkeypatch.setattr(Reader, "_barrier", barrier)


def _a_token_is_ignored(monkeypatch: pytest.MonkeyPatch) -> None:
    honest = Reader._when

    def when(self: Reader, options: ReadOptions, *rest: Any) -> Flow[tuple[int, int]]:
        return honest(self, ReadOptions(options.consistency), *rest)

    monkeypatch.setattr(Reader, "_when", when)


def _every_shard_at_a_time_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    honest = Reader._read

    def read(self: Reader, options: ReadOptions, targets: Any, request: Any, *rest: Any) -> Flow[Any]:
        asked: list[int] = []

        def skewed(part: object, snapshot: int, min_ts: int) -> Any:
            asked.append(0)
            return request(part, snapshot and snapshot - (len(asked) << 16), min_ts)

        return honest(self, options, targets, skewed, *rest)

    monkeypatch.setattr(Reader, "_read", read)


PLANTED = [
    _told_before_it_is_durable,
    _answered_before_the_commit_point,
    _unknown_is_taken_for_aborted,
    _commits_below_a_promise,
    _strong_without_waiting,
    _a_token_is_ignored,
    _every_shard_at_a_time_of_its_own,
]


@pytest.mark.parametrize("plant", PLANTED, ids=lambda plant: plant.__name__.strip("_"))
def test_a_planted_bug_is_found(plant: Callable[[pytest.MonkeyPatch], None], monkeypatch: pytest.MonkeyPatch) -> None:
    plant(monkeypatch)
    assert any(simulate(seed)[0] for seed in range(30))
