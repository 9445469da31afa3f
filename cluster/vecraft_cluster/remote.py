"""The router as an actor, seen from a process that holds only a handle to it.

``RemoteRouter`` makes deadlines, transaction ids and arguments here; each of its flows is one ``RouterCall``, which a
runner sends to a router actor. Calls of many threads share one actor call. Clocks travel with them both ways, so a
client reads its own writes whichever router actor answers.

A call that is lost with its router actor is sent to the next one, until its deadline: a read as it is, a commit under
the same transaction id, which is chosen here. A deletion by filter is not: it chooses its ids over there.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Callable, Generator, Sequence
from typing import Any, TypeVar, cast

import msgspec
from ray import exceptions as ray_errors

from vecraft_cluster.carriers import ActorCarrier
from vecraft_cluster.lanes import Gate, Lane, Launcher, Ticket
from vecraft_cluster.ports import Directory, Handle, call, encode, router_name, translate, unwrap
from vecraft_data_model.errors import (
    ReadWriteConflictException,
    ShardUnavailableError,
    TimeoutException,
    VecraftError,
    WriteConflictException,
)
from vecraft_data_model.placement import ClusterMap
from vecraft_data_model.ports import Clock
from vecraft_router.asking import Patience
from vecraft_router.config import RouterConfig
from vecraft_router.effects import Sleep
from vecraft_router.options import ReadOptions
from vecraft_router.router import Router
from vecraft_router.runners import HasState
from vecraft_router.state import RouterState

T = TypeVar("T")

IN_FLIGHT = 4
LATEST_S = 24 * 3600.0


class RouterCall(msgspec.Struct, frozen=True):
    """The one effect of a remote router's flows: run the router's method of that name there → its result.

    Attributes:
        method: One of :data:`REMOTE_METHODS`.
        deadline: Seconds of this process's ``Clock.monotonic``; it is sent as the seconds that are left.
    """

    method: str
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    deadline: float


REMOTE_METHODS = frozenset(
    {
        "commit", "delete_where", "resolve", "get", "search", "scan_page", "count", "list_collections", "describe",
        "choose_snapshot", "pin", "release", "set_ef", "checkpoint", "status",
    }
)  # fmt: skip
"""What a router actor runs for others: the router's methods that return flows."""

REPEATABLE = REMOTE_METHODS - {"commit", "delete_where"}
"""Those that may be carried out twice: another router is asked when one is lost."""


class RemoteRouter(Router):
    """A router whose flows run in a router actor; everything else about it is local.

    Args:
        cluster_map: For what is decided locally.
        clock: As for :class:`~vecraft_router.router.Router`.
        rng: Likewise.
        config: Likewise.
    """

    def __init__(
        self, cluster_map: ClusterMap, clock: Clock, rng: random.Random, config: RouterConfig | None = None
    ) -> None:
        super().__init__(cluster_map, clock, rng, config)
        # The public methods of Router hand over to these three; here they all lead to the actor.
        remote = cast(Any, _Remote(self.state))
        self._commits = cast(Any, _RemoteCommits(self.state))
        self._reads = remote
        self._service = remote


class _Remote:
    """Turns a method call into a flow of one ``RouterCall``."""

    def __init__(self, state: RouterState) -> None:
        self._state = state

    def __getattr__(self, method: str) -> Callable[..., Generator[Any, Any, Any]]:
        if method not in REMOTE_METHODS:
            raise AttributeError(f"a router actor has no method {method!r}")

        def flow(*args: Any, **kwargs: Any) -> Generator[Any, Any, Any]:
            call = RouterCall(method, args, kwargs, deadline_of(args, kwargs) or self._state.deadline())
            patience = Patience(self._state, call.deadline)
            while True:
                try:
                    return (yield call)
                except ShardUnavailableError:
                    if method not in REPEATABLE or not (yield from patience.pause()):
                        raise

        return flow


class _RemoteCommits(_Remote):
    """Chooses transaction ids on this side: when a router actor dies, the same is asked again under the same id.

    It is carried out once, by whichever router; and a caller who has to be told "unknown" is told the id to ask with.
    As in a router of one's own (:mod:`vecraft_router.commit`), an attempt that met a lock, and is durably aborted, is
    followed by one under another id, unless the caller chose it.
    """

    def commit(self, mutations: Any, **kwargs: Any) -> Generator[Any, Any, Any]:
        """See ``Router.commit``."""
        deadline = kwargs["deadline"] = kwargs.get("deadline") or self._state.deadline()
        chosen, blind = kwargs.pop("txn_id", None), kwargs.get("snapshot") is None
        patience = Patience(self._state, deadline)
        txn_id = chosen or self._state.new_txn_id()
        while True:
            try:
                return (yield RouterCall("commit", (mutations,), {**kwargs, "txn_id": txn_id}, deadline))
            except (WriteConflictException, ReadWriteConflictException) as error:
                only_locked = error.details.get("locked") or (blind and isinstance(error, WriteConflictException))
                if chosen or not only_locked or not (yield from patience.pause()):
                    raise
                txn_id = self._state.new_txn_id()
            except (ShardUnavailableError, TimeoutException) as error:
                if "txn_id" in error.details:  # it is the router that says so, after having tried for as long
                    raise
                if not (yield from patience.pause()):
                    details = {**error.details, "txn_id": txn_id, "outcome": "unknown"}
                    raise type(error)(
                        f"{error.message}; whether transaction {txn_id} was committed is unknown: send it again with "
                        "this txn_id to find out, it will be carried out at most once",
                        **details,
                    ) from error


RETURN_S = 0.25
"""How much longer than the deadline a router actor is waited for: it tells best what became of a late call."""


class RemoteRunner:
    """Runs the flows of a :class:`RemoteRouter` on the calling thread. Safe to use from several threads at once.

    Args:
        router: Whose flows are run.
        cluster: The cluster's name.
        directory: Finds its actors.
        routers: How many router actors there are; calls take turns.
    """

    def __init__(self, router: HasState, cluster: str, directory: Directory, routers: int) -> None:
        self._state = router.state
        self._launcher = Launcher("vecraft-send")
        self._lanes = [
            Lane(
                ActorCarrier(directory, router_name(cluster, number), f"router {number}", "run"),
                f"router {number}",
                self._pack,
                self._unpack,
                self._launcher,
                in_flight_max=IN_FLIGHT,
                batch_max=self._state.config.max_batch_requests,
                queued_max=self._state.config.max_queued,
                call_max_s=LATEST_S,
            )
            for number in range(routers)
        ]
        self._turn = self._state.rng.randrange(routers)

    def run(self, flow: Generator[Any, Any, T]) -> T:
        """Run a flow to its end and return its result, or raise its error."""
        try:
            effect = next(flow)
            while True:
                try:
                    answer = self._perform(effect)
                except VecraftError as error:
                    effect = flow.throw(error)
                else:
                    effect = flow.send(answer)
        except StopIteration as stop:
            result: T = stop.value
            return result

    def close(self) -> None:
        """Stop sending."""
        self._launcher.close()

    def _perform(self, effect: Any) -> Any:
        if isinstance(effect, Sleep):
            time.sleep(effect.seconds)
            return None
        if not isinstance(effect, RouterCall):
            raise TypeError(f"not an effect of a remote router: {effect!r}")
        gate = Gate(1)
        ticket = Ticket(effect, effect.deadline + RETURN_S, gate)
        self._turn = (self._turn + 1) % len(self._lanes)
        lane = self._lanes[self._turn]
        lane.send(ticket)
        if not gate.wait(ticket.deadline - time.monotonic()):
            lane.give_up(ticket)
        if isinstance(ticket.answer, VecraftError):
            raise ticket.answer
        return ticket.answer

    def _pack(self, calls: Sequence[RouterCall], timeout: float) -> tuple[int, list[Any]]:
        return outgoing(calls, self._state)

    def _unpack(self, message: tuple[int, list[Any]], count: int) -> list[Any]:
        return incoming(message, self._state)


class AsyncRemoteRunner:
    """Runs the flows of a :class:`RemoteRouter` on an event loop. To be used on one loop only.

    Args:
        router: Whose flows are run.
        cluster: The cluster's name.
        directory: Finds its actors.
        routers: How many router actors there are; calls take turns.
    """

    def __init__(self, router: HasState, cluster: str, directory: Directory, routers: int) -> None:
        self._state = router.state
        self._directory = directory
        self._names = [router_name(cluster, number) for number in range(routers)]
        self._turn = self._state.rng.randrange(routers)

    async def run(self, flow: Generator[Any, Any, T]) -> T:
        """Run a flow to its end and return its result, or raise its error."""
        try:
            effect = next(flow)
            while True:
                try:
                    answer = await self._perform(effect)
                except VecraftError as error:
                    effect = flow.throw(error)
                else:
                    effect = flow.send(answer)
        except StopIteration as stop:
            result: T = stop.value
            return result
        finally:
            flow.close()

    async def _perform(self, effect: Any) -> Any:
        if isinstance(effect, Sleep):
            return await asyncio.sleep(effect.seconds)
        if not isinstance(effect, RouterCall):
            raise TypeError(f"not an effect of a remote router: {effect!r}")
        self._turn = (self._turn + 1) % len(self._names)
        name = self._names[self._turn]
        handle: Handle = self._directory.known(name)
        if handle is None:
            handle = await asyncio.to_thread(self._directory.find, name)
        left_s = max(0.001, effect.deadline + RETURN_S - time.monotonic())
        try:
            data = await call(handle.run, encode(outgoing([effect], self._state)), timeout=left_s)
        except (ray_errors.RayError, TimeoutError) as error:
            self._directory.gone(name, error)
            raise translate(error, f"router {self._turn}") from error
        answer = incoming(unwrap(data), self._state)[0]
        if isinstance(answer, VecraftError):
            raise answer
        return answer


def outgoing(calls: Sequence[RouterCall], state: RouterState) -> tuple[int, list[Any]]:
    """Return calls as a router actor takes them: with the seconds they have left, and this side's clock."""
    now = time.monotonic()
    return state.hlc.last, [(call.method, call.args, call.kwargs, call.deadline - now) for call in calls]


def incoming(message: tuple[int, list[Any]], state: RouterState) -> list[Any]:
    """Return the answers (or errors in their place), and move this side's clock to the router actor's."""
    clock, answers = message
    state.overhear(clock)
    return answers


def deadline_of(args: tuple[Any, ...], kwargs: dict[str, Any]) -> float | None:
    """Return the deadline among a router method's arguments: ``deadline=``, or that of its read options."""
    deadline: float | None = kwargs.get("deadline")
    if deadline is None:
        for value in (*args, *kwargs.values()):
            if isinstance(value, ReadOptions) and value.deadline is not None:
                return value.deadline
    return deadline
