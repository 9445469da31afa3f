"""What a flow may ask of the world.

A *flow* is a generator: one operation of the router, written as straight code, that yields effects and is sent their
results. It decides; whoever runs it (:mod:`vecraft_router.runners`, or a simulator) acts. So one and the same commit
protocol runs on threads, on an event loop and in virtual time.

Invariants: a flow never blocks, starts no thread, reads no clock but the one handed to its router and draws no random
number but from the generator handed to it. A failure of the transport is a value (``Refused``), never an exception
inside a flow, because "no answer" is an outcome that the protocol has to reason about.
"""

from __future__ import annotations

from collections.abc import Generator
from typing import Any, TypeVar

import msgspec

from vecraft_data_model.messages import Request


class Ask(msgspec.Struct, frozen=True, gc=False):
    """Send one request to each of some shards, in parallel → ``dict[int, Response]`` with the same keys.

    What did not come back by ``deadline`` (seconds of ``Clock.monotonic``), or could not be delivered, stands there as
    ``Refused`` with a ``TimeoutException``, ``ShardUnavailableError``, ``StaleMapError`` or ``OverloadedError``. After
    the first two the request may have been carried out all the same, or be carried out later.
    """

    requests: dict[int, Request]
    deadline: float


class Tell(msgspec.Struct, frozen=True, gc=False):
    """Send and forget → ``None`` at once. Nothing may depend on whether it arrives."""

    requests: dict[int, Request]


class Spawn(msgspec.Struct, frozen=True):
    """Run another flow on its own → ``None`` at once. Nothing may depend on whether it gets anywhere."""

    flow: Generator[Any, Any, Any]


class Sleep(msgspec.Struct, frozen=True, gc=False):
    """Let that many seconds pass → ``None``."""

    seconds: float


class RefreshMap(msgspec.Struct, frozen=True, gc=False):
    """Fetch the newest cluster map from whoever owns it → ``ClusterMap``, or ``None`` when there is none to be had."""


Effect = Ask | Tell | Spawn | Sleep | RefreshMap

T = TypeVar("T")
Flow = Generator[Effect, Any, T]
"""An operation of the router: yields effects, is sent their results, returns a ``T`` or raises a ``VecraftError``."""
