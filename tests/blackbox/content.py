"""What the records of the black-box workload hold: values that say which transaction wrote them.

Three collections: ``lists`` (appended to under snapshot isolation), ``strict`` (the same, serializable) and ``bank``
(accounts whose sum never changes).
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping
from typing import Any, NamedTuple

from vecraft_data_model import DataPacket

LISTS, STRICT, BANK = "lists", "strict", "bank"
COLLECTIONS = (LISTS, STRICT, BANK)
ISOLATION = {LISTS: "snapshot", STRICT: "serializable", BANK: "snapshot"}
OPENING_BALANCE = 100
GROUPS = 3
DIM = 2


class State(NamedTuple):
    """A record's value: the transaction that wrote it, and the list or the balance that it wrote."""

    tag: int
    value: tuple[int, ...] | int


def vector_of(record_id: str, tag: int) -> list[float]:
    """Small whole numbers, so that distances are exact and often equal."""
    mixed = zlib.crc32(f"{record_id} {tag}".encode())
    return [float(mixed % 8), float(mixed // 8 % 8)]


def metadata_of(state: State) -> dict[str, Any]:
    """What is stored of a state."""
    kept: dict[str, Any] = {"t": state.tag, "g": state.tag % GROUPS}
    if isinstance(state.value, int):
        return kept | {"b": state.value}
    return kept | {"l": list(state.value)}


def state_of(packet: DataPacket | None) -> State | None:
    """What a record holds; None: there is none."""
    return None if packet is None else state_in(packet.metadata)


def state_in(metadata: Mapping[str, Any] | None) -> State:
    """Read :func:`metadata_of` back."""
    if metadata is None:
        raise ValueError("a record of the workload has metadata")
    value = metadata.get("b")
    return State(metadata["t"], tuple(metadata["l"]) if value is None else value)
