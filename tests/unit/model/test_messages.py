"""Messages are values: what is sent must not hold on to where it was made."""

from __future__ import annotations

import gc
import weakref

from vecraft_data_model.errors import ShardUnavailableError, WriteConflictException
from vecraft_data_model.messages import BatchReply, Refused


class Request:
    """Something that a shard has at hand while it answers."""


def answered_batch() -> tuple[BatchReply, weakref.ref[Request]]:
    request = Request()
    try:
        try:
            raise ShardUnavailableError("the cause")
        except ShardUnavailableError as cause:
            raise WriteConflictException("somebody else was first") from cause
    except WriteConflictException as error:
        reply = BatchReply([Refused(error)])
    return reply, weakref.ref(request)


def test_a_refusal_does_not_keep_alive_where_it_was_raised() -> None:
    """A traceback holds frames, a frame holds the batch, and batches are invisible to the garbage collector."""
    reply, request = answered_batch()
    assert isinstance(reply.responses[0], Refused)
    assert request() is None
    del reply
    gc.collect()
    assert request() is None
