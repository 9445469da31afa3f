"""A shard's own socket for callers on an event loop, with actor calls to fall back on."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

from vecraft_cluster.links import Flight, Links
from vecraft_cluster.ports import AsyncRayShardPort, Directory, endpoint_of, shard_name
from vecraft_data_model.errors import VecraftError
from vecraft_data_model.messages import Batch, BatchReply
from vecraft_data_model.placement import ClusterMap
from vecraft_data_model.ports import AsyncShardPort
from vecraft_router.outbox import lane_of
from vecraft_router.runners import AsyncRunner, HasState


class AsyncSocketPort:
    """One shard, awaitable (:class:`vecraft_data_model.ports.AsyncShardPort`). To be used on one event loop.

    Args:
        links: The connections to the shard, closed with the port.
        actor: The other way there.
    """

    __slots__ = ("_actor", "links")

    def __init__(self, links: Links, actor: AsyncShardPort) -> None:
        self.links = links
        self._actor = actor

    async def execute(self, batch: Batch, timeout: float) -> BatchReply:
        """Carry a batch there and bring the reply back; errors as the port says."""
        if lane_of(batch.requests[0]) == "service":  # what may take minutes must not keep a connection
            return await self._actor.execute(batch, timeout)
        flight = self.links.launch((timeout, batch))
        if flight is None:
            return await self._actor.execute(batch, timeout)
        answer = await _landing(flight, timeout)
        if isinstance(answer, VecraftError):
            raise answer
        reply: BatchReply = answer
        return reply

    def close(self) -> None:
        """Close the connections; an attempt to make one is waited for."""
        self.links.close()


async def _landing(flight: Flight, timeout: float) -> Any:
    """Wait for a flight and let go of its connection, whatever happens."""
    loop = asyncio.get_running_loop()
    landed: asyncio.Future[None] = loop.create_future()
    descriptor = flight.fileno()
    writing = False

    def advance() -> None:
        nonlocal writing
        if flight.advance():
            if not landed.done():
                landed.set_result(None)
        elif writing and not flight.sending:
            writing = False
            loop.remove_writer(descriptor)

    def expire() -> None:
        if not landed.done():
            flight.give_up()
            landed.set_result(None)

    if flight.landed:  # it did not even leave
        flight.release()
        return flight.answer
    loop.add_reader(descriptor, advance)
    if flight.sending:
        writing = True
        loop.add_writer(descriptor, advance)
    timer = loop.call_later(timeout, expire)
    try:
        await landed
    finally:  # also when the caller was cancelled: the answer may come later, so this connection is of no use then
        timer.cancel()
        loop.remove_reader(descriptor)
        if writing:
            loop.remove_writer(descriptor)
        flight.give_up()
        flight.release()
    return flight.answer


class SocketRunner(AsyncRunner):
    """Runs a router's flows on one event loop, over the shard actors of a cluster.

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
        refresh: Callable[[], Awaitable[ClusterMap]],
        *,
        sockets: bool = True,
    ) -> None:
        ports: dict[int, AsyncShardPort] = {}
        self._sockets: list[AsyncSocketPort] = []
        for shard in router.state.cluster_map.all_shards():
            ports[shard] = AsyncRayShardPort(cluster, shard, directory)
            if sockets:
                ask_endpoint = endpoint_of(directory, shard_name(cluster, shard))
                port = AsyncSocketPort(Links(f"shard {shard}", ask_endpoint, shard=shard), ports[shard])
                ports[shard] = port
                self._sockets.append(port)
        super().__init__(router, ports, refresh=refresh)

    @property
    def flights(self) -> int:
        """How many calls travelled over sockets so far."""
        return sum(port.links.flights for port in self._sockets)

    async def close(self) -> None:
        """Give what was spawned a moment to finish, refuse what waits, close the connections."""
        await super().close()
        await asyncio.to_thread(self.hang_up)

    def hang_up(self) -> None:
        """Close the connections only: all that can be done for a loop that runs no more. Waits for no call."""
        for port in self._sockets:
            port.close()
