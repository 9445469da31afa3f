"""What the router's flows return, where a shard's own reply is not enough."""

from __future__ import annotations

from typing import Any

import msgspec

from vecraft_data_model.messages import Hits, Rows
from vecraft_data_model.packets import CommitResult
from vecraft_data_model.text_ranking import TextStatistics


class Commit(msgspec.Struct, frozen=True):
    """A durable commit.

    Attributes:
        result: Transaction id (as chosen by the caller), commit timestamp, records written or deleted.
        preimages: The records that were replaced or deleted, when asked for; those that did not exist are left out.
    """

    result: CommitResult
    preimages: Rows | None = None


class Found(msgspec.Struct, frozen=True, gc=False):
    """The answer to a search.

    Attributes:
        snapshot: The timestamp that every shard was read at.
        hits: One per query, nearest first, ties by record id.
        missing: Shards that could not be reached (only ever with ``partial=True``), ascending.
        explain: Shard → its plan, estimates and counts, when asked for.
        statistics: What texts were ranked by, in a search by text.
    """

    snapshot: int
    hits: list[Hits]
    missing: tuple[int, ...] = ()
    explain: dict[int, dict[str, Any]] | None = None
    statistics: TextStatistics | None = None


class Pin(msgspec.Struct, frozen=True):
    """A lease on a snapshot: until it runs out or is released, its history is kept."""

    pin_id: str
    snapshot: int
