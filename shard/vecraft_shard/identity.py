"""What the id of a transaction promises: one id, one content, once.

An outcome is kept for ``txn_retention_s`` and recognised for as long. An id that says when it was made is refused when
it is older than that, since it could be a repetition whose outcome is forgotten; and when it lies in the future, since
it would outlive its outcome. An id that does not say it (chosen freely by a client) is recognised for as long as its
outcome is kept, and no longer.
"""

from __future__ import annotations

from collections.abc import Sequence

from vecraft_data_model.errors import InvalidDataException, WriteConflictException
from vecraft_data_model.hlc import physical_ms
from vecraft_data_model.messages import Delete, Put, Transaction
from vecraft_data_model.validation import txn_created_ms
from vecraft_shard.config import ShardConfig
from vecraft_shard.records import Resolved, ResolvedDelete, ResolvedPut
from vecraft_shard.timeline import Timeline


def check_fresh(txn_id: str, timeline: Timeline, now_ms: int, config: ShardConfig) -> None:
    """Refuse an id whose outcome may be forgotten, and one from the future.

    Raises:
        InvalidDataException: It was made too long ago, or too far ahead of this shard's clock.
    """
    created = txn_created_ms(txn_id)
    if created is None:
        return
    now_ms = max(now_ms, physical_ms(timeline.clock.last))  # the wall clock may have jumped back
    if created - now_ms > config.max_clock_skew_ms:
        raise InvalidDataException(
            f"transaction id {txn_id!r} was made {created - now_ms} ms in the future; at most "
            f"{config.max_clock_skew_ms} ms are accepted: set the clock of the client that made it",
            txn_id=txn_id,
            ahead_ms=created - now_ms,
        )
    check_remembered(txn_id, timeline, now_ms, config)


def check_remembered(txn_id: str, timeline: Timeline, now_ms: int, config: ShardConfig) -> None:
    """Refuse an id that is unknown and so old that its outcome may be forgotten: nothing can be said of it.

    Raises:
        InvalidDataException: It was made too long ago; ``details["forgotten"]`` is set.
    """
    created = txn_created_ms(txn_id)
    if created is None:
        return
    age_ms = max(now_ms, physical_ms(timeline.clock.last)) - created
    retention_ms = int(config.txn_retention_s * 1000)
    if age_ms > retention_ms:
        raise InvalidDataException(
            f"transaction id {txn_id!r} was made {age_ms // 1000} s ago; outcomes are kept for "
            f"{retention_ms // 1000} s, so an older id cannot be told from a repetition",
            txn_id=txn_id,
            forgotten=True,
        )


def check_same(txn_id: str, known: bytes, given: bytes) -> None:
    """Refuse a second content for an id.

    Raises:
        InvalidDataException: The contents differ.
    """
    if known != given:
        raise InvalidDataException(
            f"transaction id {txn_id!r} was used before with other content; an id names one transaction for ever",
            txn_id=txn_id,
        )


def check_same_part(txn: Transaction, held: Sequence[Resolved]) -> None:
    """Refuse a repetition that names other records than what is held under its id.

    A deletion by filter is known by its filter. Repeated before it was decided, it has looked again, at a later
    snapshot: a shard that holds what was found at the earlier one must not vote for it.

    Raises:
        WriteConflictException: The records differ.
    """
    given = [mutation.ids for mutation in txn.mutations if isinstance(mutation, Put | Delete)]
    if given != [mutation.ids for mutation in held if isinstance(mutation, ResolvedPut | ResolvedDelete)]:
        raise WriteConflictException(
            f"transaction {txn.txn_id!r} is under way with what matched at an earlier snapshot", txn_id=txn.txn_id
        )
