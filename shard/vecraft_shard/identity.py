"""What the id of a transaction promises: one id, one content, once.

An outcome is kept for ``txn_retention_s`` and recognised for as long. An id that says when it was made is refused when
it is older than that, since it could be a repetition whose outcome is forgotten; and when it lies in the future, since
it would outlive its outcome. An id that does not say it (chosen freely by a client) is recognised for as long as its
outcome is kept, and no longer. If it read at a snapshot, that says as much: it was not committed before.
"""

from __future__ import annotations

from collections.abc import Sequence

from vecraft_data_model.errors import InvalidDataException, WriteConflictException
from vecraft_data_model.hlc import physical_ms
from vecraft_data_model.messages import Delete, Transaction
from vecraft_data_model.validation import txn_created_ms
from vecraft_shard.config import ShardConfig
from vecraft_shard.records import Resolved, ResolvedDelete
from vecraft_shard.timeline import Timeline


def check_fresh(txn: Transaction, timeline: Timeline, now_ms: int, config: ShardConfig) -> None:
    """Refuse a transaction whose outcome may be forgotten, and an id from the future.

    Raises:
        InvalidDataException: It was made too long ago, or too far ahead of this shard's clock.
    """
    txn_id = txn.txn_id
    created = txn_created_ms(txn_id)
    if created is None:
        if txn.snapshot is not None:
            _check_age(txn_id, physical_ms(txn.snapshot), timeline, now_ms, config)
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
    if created is not None:
        _check_age(txn_id, created, timeline, now_ms, config)


def _check_age(txn_id: str, created: int, timeline: Timeline, now_ms: int, config: ShardConfig) -> None:
    age_ms = max(now_ms, physical_ms(timeline.clock.last)) - created
    retention_ms = int(config.txn_retention_s * 1000)
    if age_ms > retention_ms:
        raise InvalidDataException(
            f"transaction {txn_id!r} began {age_ms // 1000} s ago; outcomes are kept for "
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
    """Refuse a repetition that rests on another snapshot than what is held under its id.

    A deletion by filter is known by its filter. Repeated before it was decided, it has looked again, at a later
    snapshot: a shard that holds what was found at the earlier one must not vote for it.

    Raises:
        WriteConflictException: The snapshots differ.
    """
    given = [m.matched.snapshot for m in txn.mutations if isinstance(m, Delete) and m.matched is not None]
    if given != [m.matched_at for m in held if isinstance(m, ResolvedDelete) and m.matched_at]:
        raise WriteConflictException(
            f"transaction {txn.txn_id!r} is under way with what matched at an earlier snapshot", txn_id=txn.txn_id
        )
