"""How the calls of a lane travel: as actor calls, or over a shard's own socket with actor calls to fall back on.

Both bring back the same: the message that the shard answered, or the ``VecraftError`` instead. Whoever waits for calls
of several carriers at once uses :func:`bring_all`.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from typing import Any, Final, Protocol

import ray
from ray.exceptions import GetTimeoutError

from vecraft_cluster.links import Flight, Links
from vecraft_cluster.ports import Directory, decode, encode, translate
from vecraft_cluster.reactor import Reactor, land_all
from vecraft_data_model.errors import VecraftError

LATE: Final = object()
"""Instead of an answer that did not come in time."""


class ActorCarrier:
    """Calls one method of a named actor.

    Args:
        directory: Where its handle is found.
        actor: The actor's name.
        who: The same for people, in errors.
        method: Takes and returns encoded messages.
        details: Go into errors.
    """

    def __init__(self, directory: Directory, actor: str, who: str, method: str, **details: Any) -> None:
        self._directory = directory
        self._actor = actor
        self._who = who
        self._method = method
        self._details = details

    def send(self, message: Any) -> Any:
        """Make the actor call; see :class:`vecraft_cluster.lanes.Carrier`."""
        try:
            return getattr(self._directory.find(self._actor), self._method).remote(encode(message))
        except ray.exceptions.RayError as error:
            raise self.meaning(error) from error

    def watch(self, flight: Any, until: float, landed: Callable[[Any], None]) -> None:
        """Have Ray's own thread hand the answer over."""

        def hand_over(future: Future[Any]) -> None:
            error = future.exception()
            landed(self.answer(future.result()) if error is None else self.meaning(error))

        flight.future().add_done_callback(hand_over)

    def is_instant(self) -> bool:
        """A handle may have to be looked up first."""
        return False

    def answer(self, value: Any) -> Any:
        """Return the message that an actor call returned."""
        try:
            return decode(value)
        except Exception as error:  # it is no message of this version
            return translate(error, self._who, **self._details)

    def meaning(self, error: BaseException) -> VecraftError:
        """Return what the failure of a call means; an actor that is gone for good is looked up again next time."""
        self._directory.gone(self._actor, error)
        return translate(error, self._who, **self._details)


class SocketCarrier:
    """Sends over a connection of ``links`` if one is free, and as an actor call otherwise.

    Args:
        links: The connections to the shard.
        reactor: Lands flights that nobody waits for.
        actor: The other way there.
    """

    def __init__(self, links: Links, reactor: Reactor, actor: ActorCarrier) -> None:
        self._links = links
        self._reactor = reactor
        self._actor = actor

    def send(self, message: Any) -> Any:
        """Send over a socket, or make an actor call."""
        flight = self._links.launch(message)
        return flight if flight is not None else self._actor.send(message)

    def watch(self, flight: Any, until: float, landed: Callable[[Any], None]) -> None:
        """Have the reactor, or Ray's thread, hand the answer over."""
        if isinstance(flight, Flight):
            self._reactor.watch(flight, until, lambda: landed(flight.answer))
        else:
            self._actor.watch(flight, until, landed)

    def is_instant(self) -> bool:
        """Whether a connection is free."""
        return self._links.free

    def answer(self, value: Any) -> Any:
        """Return the message that an actor call returned."""
        return self._actor.answer(value)

    def meaning(self, error: BaseException) -> VecraftError:
        """Return what the failure of an actor call means."""
        return self._actor.meaning(error)


class _Reads(Protocol):
    def answer(self, value: Any) -> Any: ...

    def meaning(self, error: BaseException) -> VecraftError: ...


def bring_all(sent: Sequence[tuple[_Reads, Any]], deadline: float) -> list[Any]:
    """Wait on this thread for calls of its own, until ``deadline`` (monotonic).

    Args:
        sent: Carriers, and the flights they returned.
        deadline: When to stop waiting.

    Returns:
        Answers in that order, :data:`LATE` for each that has not come: it is still under way, and has to be watched.
    """
    flights = [flight for _, flight in sent if isinstance(flight, Flight)]
    if flights:
        land_all(flights, deadline)
    references = [flight for _, flight in sent if not isinstance(flight, Flight)]
    values = dict(zip(references, _get_all(references, deadline), strict=True)) if references else {}
    answers: list[Any] = []
    for carrier, flight in sent:
        if isinstance(flight, Flight):
            answers.append(flight.answer if flight.landed else LATE)
        elif isinstance(value := values[flight], GetTimeoutError):
            answers.append(LATE)
        else:
            answers.append(carrier.meaning(value) if isinstance(value, BaseException) else carrier.answer(value))
    return answers


def _get_all(references: list[Any], deadline: float) -> list[Any]:
    """Return what those actor calls returned, or the exceptions instead."""
    try:
        values: list[Any] = ray.get(references, timeout=max(0.0, deadline - time.monotonic()))
        return values
    except Exception:  # of which call it was, and what became of the others, is asked below
        values = []
    for reference in references:
        try:
            values.append(ray.get(reference, timeout=max(0.0, deadline - time.monotonic())))
        except Exception as error:
            values.append(error)
    return values
