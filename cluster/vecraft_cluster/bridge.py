"""Runs the router's flows on Ray for callers that block: threads on one side, actor calls on the other.

``RayRunner``: the router is an object in this process. A flow runs on its caller's own thread; what it asks of shards
goes through lanes (:mod:`vecraft_cluster.lanes`), where it meets the requests of other threads. There is no event loop
between: handing over to one and back costs a third of a whole actor call.

``RemoteRouter`` with ``RemoteRunner``: the router is an actor, for processes that hold only a handle. The local object
makes deadlines, transaction ids and arguments; each flow becomes one ``RouterCall``, and calls of many threads share
one actor call. Clocks travel with them both ways, so a client reads its own writes whichever router actor answers.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar, cast, get_args

import msgspec

from vecraft_cluster.lanes import Gate, Lane, Launcher, Ticket
from vecraft_cluster.ports import Directory, encode, router_name, shard_name, unwrap
from vecraft_data_model.errors import ShardUnavailableError, TimeoutException, VecraftError
from vecraft_data_model.messages import (
    Batch,
    BatchReply,
    CommitOne,
    Prepare,
    Put,
    Refused,
    Request,
    Response,
    Search,
    ServiceRequest,
    WriteRequest,
)
from vecraft_data_model.placement import ClusterMap
from vecraft_data_model.ports import Clock
from vecraft_router.config import RouterConfig
from vecraft_router.effects import Ask, Effect, Flow, RefreshMap, Sleep, Spawn, Tell
from vecraft_router.options import ReadOptions
from vecraft_router.router import Router
from vecraft_router.runners import HasState
from vecraft_router.state import RouterState

T = TypeVar("T")

WRITES: frozenset[type] = frozenset(get_args(WriteRequest))
SERVICE: frozenset[type] = frozenset(get_args(ServiceRequest))
SERVICE_IN_FLIGHT = 8
SERVICE_CALL_S = 24 * 3600.0
REMOTE_IN_FLIGHT = 4
SPAWN_THREADS = 4


class RayRunner:
    """Runs flows on the calling thread. Safe to use from several threads at once.

    Args:
        router: Whose flows are run.
        cluster: The cluster's name.
        directory: Finds its actors.
        refresh: Fetches the newest cluster map.
    """

    def __init__(self, router: HasState, cluster: str, directory: Directory, refresh: Callable[[], ClusterMap]) -> None:
        self._state = router.state
        self._cluster = cluster
        self._directory = directory
        self._refresh = refresh
        self._launcher = Launcher("vecraft-send")
        self._spawned = ThreadPoolExecutor(SPAWN_THREADS, thread_name_prefix="vecraft-spawned")
        self._lanes: dict[tuple[int, str], Lane] = {}
        self._closed = False

    def run(self, flow: Flow[T]) -> T:
        """Run a flow to its end and return its result, or raise its error."""
        try:
            effect = next(flow)
            while True:
                effect = flow.send(self._ask(effect) if type(effect) is Ask else self._perform(effect))
        except StopIteration as stop:
            result: T = stop.value
            return result

    def close(self) -> None:
        """Finish what was spawned and stop. Flows that still run end with ``ShardUnavailableError``."""
        self._closed = True
        self._spawned.shutdown(wait=True)
        self._launcher.close()

    def _ask(self, ask: Ask) -> dict[int, Response]:
        requests, deadline = ask.requests, ask.deadline
        gate = Gate(len(requests))
        tickets: dict[int, Ticket] = {}
        for shard, request in requests.items():
            tickets[shard] = ticket = Ticket(request, deadline, gate)
            self._lane(shard, type(request)).send(ticket)
        if requests and not gate.wait(deadline - time.monotonic()):
            for shard, request in requests.items():
                self._lane(shard, type(request)).give_up(tickets[shard])
        return {
            shard: Refused(ticket.answer) if isinstance(ticket.answer, VecraftError) else ticket.answer
            for shard, ticket in tickets.items()
        }

    def _lane(self, shard: int, kind: type) -> Lane:
        group = "writes" if kind in WRITES else "service" if kind in SERVICE else "reads"
        lane = self._lanes.get((shard, group))
        if lane is None:
            lane = self._lanes.setdefault((shard, group), self._new_lane(shard, group))
        return lane

    def _new_lane(self, shard: int, group: str) -> Lane:
        config = self._state.config
        service = group == "service"
        in_flight = config.writes_in_flight if group == "writes" else config.reads_in_flight
        return Lane(
            self._directory,
            shard_name(self._cluster, shard),
            f"shard {shard}",
            "execute",
            self._pack,
            self._unpack,
            self._launcher,
            in_flight_max=SERVICE_IN_FLIGHT if service else in_flight,
            batch_max=1 if service else config.max_batch_requests,
            queued_max=config.max_queued,
            weigh=vector_bytes,
            bytes_max=config.max_batch_bytes,
            call_max_s=SERVICE_CALL_S if service else config.max_call_s,
            details={"shard": shard},
        )

    def _pack(self, requests: Sequence[Request], timeout: float) -> bytes:
        state = self._state
        return encode((timeout, Batch(list(requests), state.hlc.last, state.cluster_map.epoch)))

    def _unpack(self, data: bytes, count: int) -> list[Any]:
        reply: BatchReply = unwrap(data)
        self._state.overhear(reply.clock)
        return reply.responses

    def _perform(self, effect: Effect) -> ClusterMap | None:
        if isinstance(effect, Sleep):
            time.sleep(effect.seconds)
        elif isinstance(effect, Spawn):
            self._background(effect.flow)
        elif isinstance(effect, Tell):
            # Nobody waits for these tickets; their lane answers them and lets them go.
            deadline = self._state.deadline(self._state.config.background_s)
            for shard, request in effect.requests.items():
                self._lane(shard, type(request)).send(Ticket(request, deadline, None))
        elif isinstance(effect, RefreshMap):
            try:
                return self._refresh()
            except (ShardUnavailableError, TimeoutException):
                return None  # the flow goes on with the map it has, and asks again
        else:
            raise TypeError(f"not an effect: {effect!r}")
        return None

    def _background(self, flow: Flow[None]) -> None:
        try:
            self._spawned.submit(self.run, flow)
        except RuntimeError:  # closed meanwhile: what is spawned may be lost at any time
            flow.close()


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
        self._commits = remote
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
            result = yield RouterCall(method, args, kwargs, deadline_of(args, kwargs) or self._state.deadline())
            return result

        return flow


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
                directory,
                router_name(cluster, number),
                f"router {number}",
                "run",
                self._pack,
                self._unpack,
                self._launcher,
                in_flight_max=REMOTE_IN_FLIGHT,
                batch_max=self._state.config.max_batch_requests,
                queued_max=self._state.config.max_queued,
                call_max_s=SERVICE_CALL_S,
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

    def _pack(self, calls: Sequence[RouterCall], timeout: float) -> bytes:
        return pack_calls(calls, self._state)

    def _unpack(self, data: bytes, count: int) -> list[Any]:
        return unpack_answers(data, self._state)


RETURN_S = 0.25
"""How much longer than the deadline a router actor is waited for: it tells best what became of a late call."""


def pack_calls(calls: Sequence[RouterCall], state: RouterState) -> bytes:
    """Return calls as they travel to a router actor: with the seconds they have left, and this side's clock."""
    now = time.monotonic()
    return encode((state.hlc.last, [(call.method, call.args, call.kwargs, call.deadline - now) for call in calls]))


def unpack_answers(data: bytes, state: RouterState) -> list[Any]:
    """Return the answers (or errors in their place), and move this side's clock to the router actor's."""
    clock, answers = unwrap(data)
    state.overhear(clock)
    return cast(list[Any], answers)


def deadline_of(args: tuple[Any, ...], kwargs: dict[str, Any]) -> float | None:
    """Return the deadline among a router method's arguments: ``deadline=``, or that of its read options."""
    deadline: float | None = kwargs.get("deadline")
    if deadline is None:
        for value in (*args, *kwargs.values()):
            if isinstance(value, ReadOptions) and value.deadline is not None:
                return value.deadline
    return deadline


def vector_bytes(request: Request) -> int:
    """Return about how many bytes a request's vectors weigh."""
    if isinstance(request, Search):
        return request.queries.nbytes
    if isinstance(request, CommitOne | Prepare):
        return sum(mutation.vectors.nbytes for mutation in request.txn.mutations if isinstance(mutation, Put))
    return 0
