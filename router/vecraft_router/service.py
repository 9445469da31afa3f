"""Administrative flows: pins, search depth, checkpoints, status, and deletion by filter.

Most of them ask every shard the same, and succeed when all have answered.
"""

from __future__ import annotations

from vecraft_data_model.errors import SnapshotTooOldError, VecraftError, WriteConflictException
from vecraft_data_model.filters import DocumentFilter, Filter
from vecraft_data_model.messages import (
    Checkpoint,
    Delete,
    Matched,
    PinSnapshot,
    Refused,
    ReleaseSnapshot,
    Request,
    SetEf,
    Status,
    StatusReply,
)
from vecraft_data_model.scan_options import ScanOptions
from vecraft_router.asking import Asker, MapChanged, Patience
from vecraft_router.commit import Committer
from vecraft_router.effects import Ask, Flow, Tell
from vecraft_router.options import DEFAULT_OPTIONS, ReadOptions
from vecraft_router.reads import Reader
from vecraft_router.results import Commit, Pin
from vecraft_router.state import RouterState

_PIN_ID_BITS = 128


class Service:
    """Flows that look after the shards.

    Args:
        state: The router's clock, map and settings.
        reads: For the reads inside a deletion by filter.
        commits: For its commit.
    """

    def __init__(self, state: RouterState, reads: Reader, commits: Committer) -> None:
        self._state = state
        self._reads = reads
        self._commits = commits
        self._asker = Asker(state)

    def delete_where(
        self,
        collection: str,
        *,
        where: Filter | None,
        where_document: DocumentFilter | None,
        txn_id: str | None,
        options: ReadOptions,
    ) -> Flow[Commit]:
        """See ``Router.delete_where``.

        What matched at one snapshot is handed to its shards together with the filter; they pass over what matches no
        more when they admit it. So it is a blind write, and whoever rewrites the same records cannot keep it from its
        end. It looks again only if the collection's name meant something else by then.

        The transaction is known by its filter, and all shards take part: which records match may differ when it is
        repeated, and with the shards that hold them its primary would.
        """
        state = self._state
        deadline = state.deadline() if options.deadline is None else options.deadline
        patience = Patience(state, deadline)
        while True:
            snapshot = yield from self._reads.choose_snapshot(_until(options, deadline))
            doomed: list[str] = []
            more = True
            while more:
                after = doomed[-1] if doomed else None
                page = yield from self._reads.scan_page(
                    collection,
                    ScanOptions(after, state.config.scan_rows_max, where, where_document, with_payloads=False),
                    ReadOptions(as_of=snapshot, deadline=deadline),
                )
                doomed.extend(page.rows.ids)
                more = page.more
            matched = Matched(snapshot, where, where_document)
            try:
                return (
                    yield from self._commits.commit(
                        [Delete(collection, doomed, matched=matched)] if doomed or txn_id is not None else [],
                        txn_id=txn_id,
                        deadline=deadline,
                    )
                )
            except WriteConflictException:
                # The name means another collection now: look again, unless the caller's id is spent.
                if txn_id is not None or not (yield from patience.pause()):
                    raise
                options = DEFAULT_OPTIONS

    def pin(self, snapshot: int | None, *, ttl_ms: int, pin_id: str | None, options: ReadOptions) -> Flow[Pin]:
        """See ``Router.pin``."""
        state = self._state
        deadline = state.deadline() if options.deadline is None else options.deadline
        pin_id = pin_id or state.random_hex(_PIN_ID_BITS)
        # one far in the future is refused, before it drags any clock along
        moment = _until(options, deadline) if snapshot is None else ReadOptions(as_of=snapshot, deadline=deadline)
        snapshot = yield from self._reads.choose_snapshot(moment)
        try:
            yield from self._ask_all(PinSnapshot(pin_id, snapshot, ttl_ms), deadline)
        except SnapshotTooOldError:
            yield Tell({shard: ReleaseSnapshot(pin_id) for shard in state.cluster_map.all_shards()})
            raise
        return Pin(pin_id, snapshot)

    def release(self, pin_id: str, *, deadline: float | None) -> Flow[None]:
        """See ``Router.release``."""
        yield from self._ask_all(ReleaseSnapshot(pin_id), deadline)

    def set_ef(self, collection: str, ef: int | None, *, deadline: float | None) -> Flow[None]:
        """See ``Router.set_ef``."""
        # A read first: it waits for what a shard has only promised yet, such as the collection's own creation.
        yield from self._reads.describe(collection, ReadOptions(deadline=deadline))
        yield from self._ask_all(SetEf(collection, ef), deadline)

    def checkpoint(self, compact: bool, index: bool, *, deadline: float | None) -> Flow[None]:
        """See ``Router.checkpoint``."""
        yield from self._ask_all(Checkpoint(compact, index), deadline)

    def status(self, *, deadline: float | None) -> Flow[dict[int, StatusReply | Refused]]:
        """See ``Router.status``."""
        state = self._state
        until = state.deadline() if deadline is None else deadline
        replies = yield Ask({shard: Status() for shard in state.cluster_map.all_shards()}, until)
        status: dict[int, StatusReply | Refused] = {}
        for shard, reply in replies.items():
            if isinstance(reply, StatusReply | Refused):
                status[shard] = reply
            else:
                status[shard] = Refused(VecraftError(f"shard {shard} answered {type(reply).__name__} to Status"))
        return status

    def _ask_all(self, request: Request, deadline: float | None) -> Flow[None]:
        """Ask every shard the same; on a new map, all of them again (all these requests may be repeated)."""
        until = self._state.deadline() if deadline is None else deadline
        while True:
            try:
                yield from self._asker.ask(dict.fromkeys(self._state.cluster_map.all_shards(), request), until)
            except MapChanged:
                continue
            return


def _until(options: ReadOptions, deadline: float) -> ReadOptions:
    return ReadOptions(options.consistency, options.as_of, options.min_ts, deadline, options.partial)
