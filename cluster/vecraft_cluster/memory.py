"""How much memory this process has: a figure of a shard where a shard has a process of its own."""

from __future__ import annotations

import os
from pathlib import Path

import msgspec

from vecraft_data_model.messages import BatchReply, StatusReply

_STATM = Path("/proc/self/statm")


def resident_bytes() -> int | None:
    """Bytes of this process that are in memory, pages of mapped files included; None where the system does not say."""
    try:
        return int(_STATM.read_text(encoding="ascii").split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:
        return None


def with_memory(reply: BatchReply) -> BatchReply:
    """Return a reply whose ``StatusReply`` tells ``resident_memory_bytes``, too."""
    resident = resident_bytes()
    if resident is None:
        return reply
    responses = [
        msgspec.structs.replace(response, figures={**response.figures, "resident_memory_bytes": resident})
        if isinstance(response, StatusReply)
        else response
        for response in reply.responses
    ]
    return msgspec.structs.replace(reply, responses=responses)
