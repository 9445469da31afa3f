"""The checkers see what they are for: histories that no right database gives are told from those that one may give."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import pytest

from tests.simulation.dependencies import Dependencies
from tests.simulation.history import History, Operation

Seen = Mapping[str, tuple[int, ...]]


def operation(serial: int, seen: Seen, appended: Sequence[str] = (), *, client: int = 0, told: str = "") -> Operation:
    made = Operation(serial, client or serial, "append", 0.0)
    made.seen, made.appended, made.told = dict(seen), appended, told or ("committed" if appended else "")
    return made


def problems(operations: list[Operation], final: Seen, *, serializable: bool = False) -> list[str]:
    history = History(operations)
    Dependencies(history, final).check(serializable=serializable)
    return history.problems


def test_one_after_the_other_is_right() -> None:
    first = operation(1, {"x": (), "y": ()}, ["x", "y"])
    second = operation(2, {"x": (1,)}, ["x"])
    reader = operation(3, {"x": (1, 2), "y": (1,)})
    assert problems([first, second, reader], {"x": (1, 2), "y": (1,)}, serializable=True) == []


def test_write_skew_is_seen_and_only_wrong_under_serializable() -> None:
    one = operation(1, {"x": (), "y": ()}, ["x"])
    other = operation(2, {"x": (), "y": ()}, ["y"])
    final = {"x": (1,), "y": (2,)}
    history = History([one, other])
    dependencies = Dependencies(history, final)
    dependencies.check(serializable=False)
    assert history.problems == []
    assert sorted(dependencies.write_skew) == [1, 2]
    assert "write skew" in problems([one, other], final, serializable=True)[0]


def test_a_fractured_read_is_found() -> None:
    writer = operation(1, {"x": (), "y": ()}, ["x", "y"])
    reader = operation(2, {"x": (1,), "y": ()})
    (found,) = problems([writer, reader], {"x": (1,), "y": (1,)})
    assert "G-single" in found


def test_a_lost_update_is_found() -> None:
    """Both saw nothing; the second nevertheless stands after the first."""
    found = problems([operation(1, {"x": ()}, ["x"]), operation(2, {"x": ()}, ["x"])], {"x": (1, 2)})
    assert any("G-single" in problem for problem in found)


def test_a_long_fork_is_found() -> None:
    """Two readers disagree about which of two writers came first."""
    writers = [operation(1, {"x": ()}, ["x"]), operation(2, {"y": ()}, ["y"])]
    readers = [operation(3, {"x": (1,), "y": ()}), operation(4, {"x": (), "y": (2,)})]
    (found,) = problems([*writers, *readers], {"x": (1,), "y": (2,)})
    assert "2 rw" in found


def test_a_session_that_goes_back_is_found() -> None:
    writer = operation(1, {"x": ()}, ["x"])
    reads = [operation(2, {"x": (1,)}, client=9), operation(3, {"x": ()}, client=9)]
    assert problems([writer, *reads], {"x": (1,)})


@pytest.mark.parametrize(
    ("operations", "final", "said"),
    [
        ([operation(1, {"x": ()}, ["x"], told="aborted")], {"x": (1,)}, "aborted or never appended"),
        ([operation(1, {"x": ()}, ["x"])], {"x": ()}, "is missing"),
        ([operation(1, {"x": (), "y": ()}, ["x", "y"], told=" ")], {"x": (1,), "y": ()}, "is missing"),
        ([operation(1, {"x": ()}, ["x"])], {"x": (1, 1)}, "stands twice"),
        ([operation(1, {"x": ()}, ["x"]), operation(2, {"x": (7,)})], {"x": (1,)}, "saw x as (7,)"),
    ],
    ids=["aborted", "lost", "torn", "twice", "dirty"],
)
def test_what_cannot_be_is_found(operations: list[Operation], final: Seen, said: str) -> None:
    assert any(said in problem for problem in problems(operations, final))
