"""Log records that become durable together, and what to do once they are: group commit.

Order: room in the store files, then one frame of the log and one fsync for the whole group, then applying. Where there
is no room, nothing of what needs it was done, and it is refused (:class:`StorageFullError`); should the log itself be
full, the decisions among the records are written all the same, in the room that the ballast gives back.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from vecraft_data_model.errors import StorageFailureException, StorageFullError, VecraftError
from vecraft_shard.records import RecordType, Resolved, encode_timestamp
from vecraft_shard.state import ShardState

_DECISIONS = frozenset({RecordType.COMMIT, RecordType.ABORT})
"""Records that others wait for: they are written even when the disk is full."""


@dataclass(slots=True)
class _Entry:
    record_type: RecordType
    pieces: Sequence[bytes | memoryview]
    finish: Callable[[], None]
    refuse: Callable[[VecraftError], None]
    mutations: Sequence[Resolved]


class WriteGroup:
    """The records of one group.

    Args:
        state: Where they are written, and applied.
    """

    def __init__(self, state: ShardState) -> None:
        self._state = state
        self._entries: list[_Entry] = []
        self._ids: set[str] = set()
        self._catalog = False

    def add(
        self,
        record_type: RecordType,
        pieces: Sequence[bytes | memoryview],
        finish: Callable[[], None],
        refuse: Callable[[VecraftError], None],
        touches: Iterable[str] = (),
        *,
        catalog: bool = False,
        mutations: Sequence[Resolved] = (),
    ) -> None:
        """Queue a record.

        Args:
            record_type: What it is.
            pieces: Its payload.
            finish: Called after the fsync, in order.
            refuse: Called instead if there is no room for it: nothing of it was written, nor will be.
            touches: Record and transaction ids.
            catalog: Whether it changes the catalog.
            mutations: Those that need room that was not promised before.
        """
        self._entries.append(_Entry(record_type, pieces, finish, refuse, mutations))
        self._ids.update(touches)
        self._catalog = self._catalog or catalog

    def must_precede(self, touches: Iterable[str], *, catalog: bool) -> bool:
        """Whether this group has to be finished before a request touching those is looked at."""
        return bool(self._entries) and (self._catalog or catalog or not self._ids.isdisjoint(touches))

    def flush(self, now_ms: int) -> None:
        """Write, fsync, apply.

        Raises:
            StorageFailureException: The disk failed: what of the group was written is unknown.
        """
        entries, self._entries = self._entries, []
        self._ids, self._catalog = set(), False
        if entries:
            entries = self._with_room(entries)
        try:
            entries = self._written(entries, now_ms)
            if not entries:
                return
            self._state.wrote_at_ms = now_ms
            with self._state.latch.exclusive():
                for entry in entries:
                    entry.finish()
        except BaseException as error:
            self._state.half_applied = error
            if not isinstance(error, StorageFullError):
                raise
            # The log has it: whoever takes this for a refusal would be wrong.
            raise StorageFailureException(f"written, but not applied yet: {error.message}", **error.details) from error

    def _with_room(self, entries: list[_Entry]) -> list[_Entry]:
        """Take the room that applying will need; refuse the entries that there is none for, return the others."""
        room, collections = self._state.room, self._state.collections
        try:
            room.reserve((mutation for entry in entries for mutation in entry.mutations), collections)
        except StorageFullError as full:
            if room.is_short():
                room.turn_read_only(full)
                return _decisions(entries, full)
            kept: list[_Entry] = []
            mutations: list[Resolved] = []
            for entry in entries:
                try:
                    room.reserve([*mutations, *entry.mutations], collections)
                except StorageFullError as error:
                    entry.refuse(error)
                else:
                    kept.append(entry)
                    mutations += entry.mutations
            return kept
        return entries

    def _written(self, entries: list[_Entry], now_ms: int) -> list[_Entry]:
        """Write entries durably. If the disk is full, refuse all but decisions; return those that were written."""
        if not entries:
            return []
        try:
            self._append(entries, now_ms)
        except StorageFullError as error:
            self._state.room.turn_read_only(error)
            entries = _decisions(entries, error)
        else:
            return entries
        try:
            if entries:
                self._append(entries, now_ms)
        except StorageFullError as error:
            _refuse(entries, error)
            return []
        return entries

    def _append(self, entries: list[_Entry], now_ms: int) -> None:
        state = self._state
        records: list[tuple[int, Sequence[bytes | memoryview]]] = [(e.record_type, e.pieces) for e in entries]
        ceiling = None
        if state.timeline.ceiling_is_near(now_ms):
            ceiling = state.timeline.next_ceiling(now_ms)
            records.append((RecordType.CEILING, encode_timestamp(ceiling)))
        state.append(records)
        if ceiling is not None:
            state.timeline.ceiling = ceiling


def _decisions(entries: Iterable[_Entry], error: VecraftError) -> list[_Entry]:
    """Refuse all but the decisions, and return those."""
    entries = list(entries)
    _refuse((entry for entry in entries if entry.record_type not in _DECISIONS), error)
    return [entry for entry in entries if entry.record_type in _DECISIONS]


def _refuse(entries: Iterable[_Entry], error: VecraftError) -> None:
    for entry in entries:
        entry.refuse(error)
