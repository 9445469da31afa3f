"""The checker that ignores timestamps: what clients saw of the lists must fit some order of their transactions.

Every element of a list names the operation that appended it, so the longest list that was seen shows in which order a
record's versions came, and every list that was seen shows which version it was. That gives the dependencies between
transactions (Adya; Kingsbury and Alvaro, "Elle", VLDB 2020):

* ``ww``: appended right after, ``wr``: saw what the other appended, ``rw``: did not see what the other appended next,
* ``so``: the same client did one after the other.

A cycle without ``rw`` is a dirty write or read (G0, G1), one with a single ``rw`` a read skew or lost update
(G-single). Snapshot isolation further forbids every cycle in which no two ``rw`` are neighbours, such as the long fork
(Cerone and Gotsman, PODC 2016). What remains, cycles with neighbouring ``rw``, is write skew: allowed under
``snapshot`` and not under ``serializable``.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Hashable, Iterable, Mapping
from itertools import pairwise
from typing import TypeVar

from tests.simulation.history import History, Operation

Node = TypeVar("Node", bound=Hashable)
Edges = dict[int, set[int]]


class Dependencies:
    """Dependencies between the operations on lists.

    Args:
        history: Complete, and at rest.
        final: The lists at the end.
    """

    def __init__(self, history: History, final: Mapping[str, tuple[int, ...]]) -> None:
        self._history = history
        self._final = final
        self._operations = {operation.serial: operation for operation in history.operations}
        self._nodes: list[Operation] = []
        self._plain: Edges = defaultdict(set)
        self._anti: Edges = defaultdict(set)
        self.write_skew: list[int] = []

    def check(self, *, serializable: bool) -> None:
        """Find what no order of the transactions explains; it is added to the history's problems."""
        self._check_lists()
        if self._history.problems:
            return  # without an order of versions there are no dependencies
        self._connect()
        cycle = cycle_of(
            {(node, False) for node in self._plain} | {(node, True) for node in self._plain}, self._snapshot_edges
        )
        if cycle:
            kind = self._kind([node for node, _ in cycle])
            self._history.problem(f"no order of transactions explains what was seen: {kind}")
            return
        self.write_skew = cycle_of(set(self._plain) | set(self._anti), self._all_edges)
        if self.write_skew and serializable:
            self._history.problem(f"write skew under serializable: {self._kind(self.write_skew)}")

    def _check_lists(self) -> None:
        problem = self._history.problem
        there = {(key, element) for key, elements in self._final.items() for element in elements}
        for key, elements in self._final.items():
            if len(set(elements)) != len(elements):
                problem(f"an element stands twice in {key}: {elements}")
            for element in elements:
                operation = self._operations.get(element)
                if operation is None or key not in operation.appended or operation.told == "aborted":
                    problem(f"{key} holds {element}, which was aborted or never appended to it")
        for operation in self._history.operations:
            for key, seen in (operation.seen or {}).items():
                if self._final.get(key, ())[: len(seen)] != seen:
                    problem(f"operation {operation.serial} saw {key} as {seen}, which became {self._final.get(key)}")
            missing = [key for key in operation.appended if (key, operation.serial) not in there]
            if missing and (operation.told == "committed" or len(missing) < len(operation.appended)):
                problem(f"operation {operation.serial} was committed, but is missing in {missing}")

    def _connect(self) -> None:
        for operation in self._history.operations:
            if operation.seen is not None and (self._committed(operation) or not operation.appended):
                self._nodes.append(operation)
        last: dict[int, Operation] = {}
        for operation in self._nodes:
            if operation.client in last:
                self._plain[last[operation.client].serial].add(operation.serial)
            if not operation.appended or operation.told == "committed":
                last[operation.client] = operation
            for key, seen in (operation.seen or {}).items():
                if seen:
                    self._plain[seen[-1]].add(operation.serial)
                elements = self._final.get(key, ())
                if len(seen) < len(elements) and elements[len(seen)] != operation.serial:
                    self._anti[operation.serial].add(elements[len(seen)])
        for elements in self._final.values():
            for one, other in pairwise(elements):
                self._plain[one].add(other)
        for node in list(self._anti):
            self._plain[node] |= set()

    def _committed(self, operation: Operation) -> bool:
        return bool(operation.appended) and operation.serial in self._final.get(operation.appended[0], ())

    def _snapshot_edges(self, state: tuple[int, bool]) -> list[tuple[int, bool]]:
        """A walk that never takes two ``rw`` in a row; the flag says whether the last one was."""
        node, after_anti = state
        steps = [(other, False) for other in sorted(self._plain.get(node, ()))]
        if not after_anti:
            steps += [(other, True) for other in sorted(self._anti.get(node, ()))]
        return steps

    def _all_edges(self, node: int) -> list[int]:
        return sorted(self._plain.get(node, set()) | self._anti.get(node, set()))

    def _kind(self, cycle: list[int]) -> str:
        antis = sum(
            other in self._anti.get(node, ()) and other not in self._plain.get(node, ())
            for node, other in zip(cycle, [*cycle[1:], cycle[0]], strict=True)
        )
        names = {0: "G0 or G1c", 1: "G-single (read skew or lost update)"}
        return f"{names.get(antis, f'a cycle with {antis} rw')}: operations {cycle}"


def cycle_of(nodes: set[Node], edges: Callable[[Node], Iterable[Node]]) -> list[Node]:
    """A cycle, or nothing. Depth first, without recursion."""
    done: set[Node] = set()
    for start in sorted(nodes):  # type: ignore[type-var]
        if start in done:
            continue
        path: list[Node] = [start]
        on_path = {start}
        ways = [iter(edges(start))]
        while path:
            following = next(ways[-1], None)
            if following is None:
                done.add(path[-1])
                on_path.discard(path.pop())
                ways.pop()
            elif following in on_path:
                return path[path.index(following) :]
            elif following not in done:
                path.append(following)
                on_path.add(following)
                ways.append(iter(edges(following)))
    return []
