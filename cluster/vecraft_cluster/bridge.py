"""Runs the router's flows on Ray for callers that block: threads on one side, shard actors on the other.

The router is an object in this process. A flow runs on its caller's own thread; what it asks of shards goes through
lanes (:mod:`vecraft_cluster.lanes`), where it meets the requests of other threads, and from there over the shards'
sockets or as actor calls (:mod:`vecraft_cluster.carriers`). There is no event loop between: handing over to one and
back costs a third of a whole actor call. (Callers on an event loop use the router's own ``AsyncRunner``.)
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any, TypeVar

from vecraft_cluster.carriers import LATE, ActorCarrier, SocketCarrier, bring_all
from vecraft_cluster.lanes import Call, Gate, Lane, Launcher, Ticket
from vecraft_cluster.links import Links
from vecraft_cluster.ports import Directory, endpoint_of, shard_name
from vecraft_cluster.reactor import Reactor
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
)
from vecraft_data_model.placement import ClusterMap
from vecraft_router.effects import Ask, Effect, Flow, RefreshMap, Sleep, Spawn, Tell
from vecraft_router.outbox import PATIENCE_S, lane_of
from vecraft_router.runners import HasState

T = TypeVar("T")
ShardCarrier = ActorCarrier | SocketCarrier

SERVICE_IN_FLIGHT = 8
SERVICE_CALL_S = 24 * 3600.0
SPAWN_THREADS = 4


class RayRunner:
    """Runs flows on the calling thread. Safe to use from several threads at once.

    Args:
        router: Whose flows are run.
        cluster: The cluster's name.
        directory: Finds its actors.
        refresh: Fetches the newest cluster map.
        sockets: Whether to use the shards' own sockets; if not, every call is an actor call.
    """

    def __init__(
        self,
        router: HasState,
        cluster: str,
        directory: Directory,
        refresh: Callable[[], ClusterMap],
        *,
        sockets: bool = True,
    ) -> None:
        self._state = router.state
        self._cluster = cluster
        self._directory = directory
        self._refresh = refresh
        self._launcher = Launcher("vecraft-send")
        self._spawned = ThreadPoolExecutor(SPAWN_THREADS, thread_name_prefix="vecraft-spawned")
        self._reactor = Reactor() if sockets else None
        self._links: dict[int, Links] = {}
        self._lanes: dict[tuple[int, str], Lane[ShardCarrier]] = {}
        self._making = threading.Lock()
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
        if self._reactor is not None:
            self._reactor.close()
        for links in self._links.values():
            links.close()

    @property
    def flights(self) -> int:
        """How many calls travelled over sockets so far."""
        return sum(links.flights for links in self._links.values())

    def _ask(self, ask: Ask) -> dict[int, Response]:
        requests, deadline = ask.requests, ask.deadline
        gate = Gate(len(requests))
        tickets: dict[int, Ticket] = {}
        departed: list[tuple[Lane[ShardCarrier], Call]] = []
        for shard, request in requests.items():
            tickets[shard] = ticket = Ticket(request, deadline, gate)
            lane = self._lane(shard, request)
            patience_s = PATIENCE_S.get(type(request))
            if patience_s is not None:
                lane.send_lazily(ticket, patience_s)
            elif (call := lane.depart(ticket)) is not None:
                departed.append((lane, call))
        if departed:
            _await(departed, deadline)
        if requests and not gate.wait(deadline - time.monotonic()):
            for shard, request in requests.items():
                self._lane(shard, request).give_up(tickets[shard])
        return {
            shard: Refused(ticket.answer) if isinstance(ticket.answer, VecraftError) else ticket.answer
            for shard, ticket in tickets.items()
        }

    def _lane(self, shard: int, request: Request) -> Lane[ShardCarrier]:
        group = lane_of(request)
        if group == "reads":
            self._hurry_writes(shard)
        lane = self._lanes.get((shard, group))
        if lane is None:
            with self._making:
                lane = self._lanes.get((shard, group))
                if lane is None:
                    lane = self._lanes[shard, group] = self._new_lane(shard, group)
        return lane

    def _hurry_writes(self, shard: int) -> None:
        """A read is about to ask this shard: let it hear of the decisions that would keep the read waiting."""
        writes = self._lanes.get((shard, "writes"))
        if writes is not None and writes.queued:
            self._launcher.submit(writes.nudge)

    def _new_lane(self, shard: int, group: str) -> Lane[ShardCarrier]:
        config = self._state.config
        service = group == "service"
        in_flight = {
            "reads": config.reads_in_flight,
            "scans": config.scans_in_flight,
            "writes": config.writes_in_flight,
            "service": SERVICE_IN_FLIGHT,
        }
        return Lane(
            self._carrier(shard, group),
            f"shard {shard}",
            self._pack,
            partial(self._unpack, shard),
            self._launcher,
            in_flight_max=in_flight[group],
            batch_max=1 if service else config.max_batch_requests,
            queued_max=config.max_queued,
            weigh=vector_bytes,
            bytes_max=config.max_batch_bytes,
            call_max_s=SERVICE_CALL_S if service else config.max_call_s,
            details={"shard": shard},
        )

    def _carrier(self, shard: int, group: str) -> ShardCarrier:
        name = shard_name(self._cluster, shard)
        actor = ActorCarrier(self._directory, name, f"shard {shard}", "execute", shard=shard)
        if self._reactor is None or group == "service":  # what may take minutes must not keep a connection
            return actor
        links = self._links.get(shard)
        if links is None:
            ask_endpoint = endpoint_of(self._directory, name)
            links = self._links[shard] = Links(f"shard {shard}", ask_endpoint, shard=shard)
        return SocketCarrier(links, self._reactor, actor)

    def _pack(self, requests: Sequence[Request], timeout: float) -> tuple[float, Batch]:
        state = self._state
        return timeout, Batch(list(requests), state.hlc.last, state.cluster_map.epoch, state.clock.now_ms())

    def _unpack(self, shard: int, reply: BatchReply, count: int) -> list[Any]:
        self._state.hear(shard, reply)
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
                self._lane(shard, request).send(Ticket(request, deadline, None))
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


def _await(departed: list[tuple[Lane[ShardCarrier], Call]], deadline: float) -> None:
    """Wait for calls that nobody else waits for, and land them; those that are late stay under way."""
    answers = bring_all([(lane.carrier, call.flight) for lane, call in departed], deadline)
    for (lane, call), answer in zip(departed, answers, strict=True):
        if answer is LATE:
            lane.late(call)
        else:
            lane.arrived(call, answer)


def vector_bytes(request: Request) -> int:
    """Return about how many bytes a request's vectors weigh."""
    if isinstance(request, Search):
        return request.queries.nbytes
    if isinstance(request, CommitOne | Prepare):
        return sum(mutation.vectors.nbytes for mutation in request.txn.mutations if isinstance(mutation, Put))
    return 0
