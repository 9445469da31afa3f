"""One shard's side of every transaction: PROTOCOL §4, the participant's contract.

::

    CommitOne ──▶ COMMIT_ONE ───────────────────────────────▶ Committed          (this shard alone)

    Prepare ────▶ PREPARE, locks held ──▶ Prepared (a promise: never aborts on its own from here)
    Decide ─────▶ COMMIT at the primary: the commit point ──▶ Committed
    Finish ─────▶ COMMIT or ABORT at the others ────────────▶ Finished, then Acknowledge to the primary
    Abort… ─────▶ ABORT at the primary, also of an unknown id ▶ Aborted
    Resolve ────▶ the primary's answer from its log; if open and old, or never heard of: ABORT first

Who may refuse, and when: a participant may refuse a ``Prepare`` (or ``CommitOne``) for any reason, and leaves no trace.
Once it has answered ``Prepared``, only the primary decides. A repeated ``Prepare`` says that its router has not given
it up: for a few seconds, that keeps a participant from asking for a decision. The primary keeps an outcome until every
participant has acknowledged it *after its own fsync*, and for ``txn_retention_s`` for the sake of retries.

A refusal that is final to the client (a conflict, a precondition) is made durable as ABORT by ``CommitOne``, so that a
late duplicate of the request cannot win after the client was told. A key locked by somebody else is not final: the
router may try again with the same id.

Requests of one batch share one log frame and one fsync. What a request finds out about the state must be true when it
is applied, so the group written so far is finished first whenever the next request touches the same records, the same
transaction, or the catalog.
"""

from __future__ import annotations

from collections.abc import Callable

from vecraft_data_model.errors import (
    InvalidDataException,
    PreconditionFailedError,
    ReadWriteConflictException,
    VecraftError,
    WriteConflictException,
)
from vecraft_data_model.messages import (
    Aborted,
    AbortTransaction,
    Acknowledge,
    CommitOne,
    Committed,
    Decide,
    Delete,
    Done,
    DropCollection,
    Finish,
    Finished,
    Prepare,
    Prepared,
    Put,
    Refused,
    Resolve,
    Response,
    Rows,
    Transaction,
    Undecided,
    WriteRequest,
)
from vecraft_data_model.validation import txn_created_ms
from vecraft_shard.admission import Admitted
from vecraft_shard.collection import joined_rows
from vecraft_shard.identity import check_fresh, check_remembered, check_same, check_same_part
from vecraft_shard.locations import Outcome
from vecraft_shard.records import (
    DecisionRecord,
    RecordType,
    ResolvedDelete,
    ResolvedPut,
    TransactionRecord,
    encode_decision,
    encode_transaction,
)
from vecraft_shard.state import PreparedTransaction, ShardState
from vecraft_shard.write_group import WriteGroup

Answer = Callable[[Response], None]
_FINAL = (WriteConflictException, ReadWriteConflictException, PreconditionFailedError)


class Participant:
    """Write requests against the state of one shard."""

    def __init__(self, state: ShardState) -> None:
        self._state = state

    def touches(self, request: WriteRequest) -> tuple[list[str], bool]:
        """The record and transaction ids that a request touches, and whether it changes the catalog."""
        match request:
            case CommitOne(txn=txn) | Prepare(txn=txn):
                ids = [txn.txn_id]
                catalog = False
                for mutation in txn.mutations:
                    if isinstance(mutation, Put | Delete):
                        ids += mutation.ids
                    else:
                        catalog = True
                return ids + [record_id for _, record_id in txn.reads], catalog
            case _:
                return [request.txn_id], False

    def handle(self, request: WriteRequest, group: WriteGroup, answer: Answer, now_ms: int) -> None:
        """Answer a request, at once or when ``group`` is flushed.

        Raises:
            VecraftError: The request is refused.
        """
        match request:
            case CommitOne(txn=txn):
                self._commit_one(txn, group, answer, now_ms)
            case Prepare(txn=txn):
                self._prepare(request, txn, group, answer, now_ms)
            case Decide():
                self._decide(request, group, answer, now_ms)
            case AbortTransaction(txn_id=txn_id):
                self._abort(txn_id, group, answer, now_ms, held=False)
            case Resolve(txn_id=txn_id, held=held):
                self._resolve(txn_id, group, answer, now_ms, held=held)
            case Finish():
                self._finish(request, group, answer, now_ms)
            case Acknowledge():
                self._acknowledge(request, group, answer)

    # --------------------------------------------------------------------------------- one shard alone

    def _commit_one(self, txn: Transaction, group: WriteGroup, answer: Answer, now_ms: int) -> None:
        decided = self._decided(txn.txn_id, txn.content_hash)
        if decided is not None:
            answer(decided)
            return
        state = self._state
        prepared = state.prepared.get(txn.txn_id)
        if prepared is not None:
            # Nothing may be logged under this id but its decision: not even that this here is refused.
            check_same(txn.txn_id, prepared.record.content_hash, txn.content_hash)
            raise WriteConflictException(
                f"transaction {txn.txn_id!r} is under way over several shards", txn_id=txn.txn_id, locked=True
            )
        self._let_in(txn)
        check_fresh(txn, state.timeline, now_ms, state.config)
        try:
            admitted = state.admission.admit(txn)
        except _FINAL as error:
            if error.details.get("locked"):
                raise
            refused = Refused(error)
            self._log_abort(txn.txn_id, txn.content_hash, group, answer, refused, now_ms)
            return
        ts = state.timeline.assign(txn.txn_id, now_ms, state.shard_id, admitted.footprint)
        record = TransactionRecord(txn.txn_id, txn.content_hash, ts, admitted.mutations)
        preimages = preimages_of(admitted) if txn.want_preimages else None

        def finish() -> None:
            state.apply(record.mutations, ts)
            state.outcomes[txn.txn_id] = Outcome(ts, txn.content_hash, admitted.count, state.present_ms(now_ms))
            state.timeline.settle(txn.txn_id)
            answer(Committed(ts, admitted.count, preimages))

        def refuse(error: VecraftError) -> None:
            state.timeline.settle(txn.txn_id)
            answer(Refused(error))

        touches, catalog = self.touches(CommitOne(txn))
        pieces = encode_transaction(record)
        mutations = admitted.mutations
        group.add(RecordType.COMMIT_ONE, pieces, finish, refuse, touches, catalog=catalog, mutations=mutations)

    # ------------------------------------------------------------------------------------- first phase

    def _prepare(self, request: Prepare, txn: Transaction, group: WriteGroup, answer: Answer, now_ms: int) -> None:
        state = self._state
        decided = self._decided(txn.txn_id, txn.content_hash)
        if decided is not None:
            answer(decided)
            return
        prepared = state.prepared.get(txn.txn_id)
        if prepared is not None:
            check_same(txn.txn_id, prepared.record.content_hash, txn.content_hash)
            check_same_part(txn, prepared.record.mutations)
            state.keep_holding(txn.txn_id, now_ms)
            answer(Prepared(prepared.record.ts, prepared.count, prepared.preimages))
            return
        self._let_in(txn)
        check_fresh(txn, state.timeline, now_ms, state.config)
        admitted = state.admission.admit(txn)
        ts = state.timeline.assign(txn.txn_id, now_ms, request.primary, admitted.footprint)
        record = TransactionRecord(
            txn.txn_id,
            txn.content_hash,
            ts,
            admitted.mutations,
            request.primary,
            tuple(request.participants),
            tuple(admitted.reads),
            tuple(admitted.aliases),
        )
        preimages = preimages_of(admitted) if txn.want_preimages else None
        pieces = encode_transaction(record)

        def finish() -> None:
            state.hold(PreparedTransaction(record, now_ms, now_ms, admitted.count, preimages))
            answer(Prepared(ts, admitted.count, preimages))

        def refuse(error: VecraftError) -> None:
            state.timeline.settle(txn.txn_id)
            answer(Refused(error))

        touches, catalog = self.touches(request)
        mutations = admitted.mutations
        group.add(RecordType.PREPARE, pieces, finish, refuse, touches, catalog=catalog, mutations=mutations)

    # ------------------------------------------------------------------------------------ second phase

    def _decide(self, request: Decide, group: WriteGroup, answer: Answer, now_ms: int) -> None:
        decided = self._decided(request.txn_id)
        if decided is not None:
            answer(decided)
            return
        prepared = self._state.prepared.get(request.txn_id)
        if prepared is None:
            # A router decides only after our own yes, so it takes us for a primary that we are not.
            answer(Undecided([(request.txn_id, self._state.shard_id)]))
            return
        others = [shard for shard in prepared.record.participants if shard != self._state.shard_id]
        self._log_commit(prepared, request.commit_ts, others, group, answer, None, now_ms)

    def _finish(self, request: Finish, group: WriteGroup, answer: Answer, now_ms: int) -> None:
        prepared = self._state.prepared.get(request.txn_id)
        if prepared is None:
            # Decided here before: either the outcome is known still, or it is so old that it was forgotten.
            answer(Finished(request.txn_id))
            return
        done = Finished(request.txn_id)
        other = bool(request.content_hash) and request.content_hash != prepared.record.content_hash
        if other and not request.commit_ts:
            answer(done)  # the id was used for two contents, and it is the other one that came to nothing
            return
        # If the primary committed another content under this id, it will never commit this one. Nor will it if its
        # decision is older than this vote: the transaction was carried out here before, and its outcome is forgotten
        # here sooner than there.
        if request.commit_ts >= prepared.record.ts and not other:
            self._log_commit(prepared, request.commit_ts, [], group, answer, done, now_ms)
        else:
            content_hash = prepared.record.content_hash
            self._log_abort(request.txn_id, content_hash, group, answer, done, now_ms)

    def _log_commit(
        self,
        prepared: PreparedTransaction,
        commit_ts: int,
        others: list[int],
        group: WriteGroup,
        answer: Answer,
        done: Response | None,
        now_ms: int,
    ) -> None:
        state, record = self._state, prepared.record
        if commit_ts < record.ts:
            raise InvalidDataException(
                f"transaction {record.txn_id} was prepared here at {record.ts} and cannot commit at {commit_ts}"
            )
        state.timeline.clock.observe(commit_ts, now_ms)
        decision = DecisionRecord(record.txn_id, commit_ts, others, record.content_hash)

        def finish() -> None:
            state.let_go(record.txn_id)
            state.apply(record.mutations, commit_ts)
            state.outcomes[record.txn_id] = Outcome(
                commit_ts, record.content_hash, prepared.count, state.present_ms(now_ms), frozenset(others)
            )
            if others:
                state.unacknowledged.add(record.txn_id)
            state.timeline.settle(record.txn_id)
            answer(done or Committed(commit_ts, prepared.count, prepared.preimages))

        data = [m for m in record.mutations if isinstance(m, ResolvedPut | ResolvedDelete)]
        touches = [record.txn_id, *(record_id for mutation in data for record_id in mutation.ids)]
        catalog = len(data) < len(record.mutations)
        group.add(
            RecordType.COMMIT,
            encode_decision(decision),
            finish,
            lambda error: answer(Refused(error)),
            touches,
            catalog=catalog,
        )

    # ----------------------------------------------------------------------------------- abort, in doubt

    def _abort(self, txn_id: str, group: WriteGroup, answer: Answer, now_ms: int, *, held: bool) -> None:
        decided = self._answer_by_id(txn_id)
        if decided is not None:
            answer(decided)
            return
        self._check_primary(txn_id)
        prepared = self._state.prepared.get(txn_id)
        if prepared is None:
            try:
                # It may have been committed, and forgotten since. Of what is held somewhere, that cannot be.
                check_remembered(txn_id, self._state.timeline, now_ms, self._state.config)
            except InvalidDataException:
                if not held:
                    raise
                # Whoever still holds it may let go. Nothing is written down: so old an id is refused by itself, and
                # the question may have been on its way since before a commit was heard of and forgotten.
                answer(Aborted(txn_id))
                return
        content_hash = prepared.record.content_hash if prepared else b""
        self._log_abort(txn_id, content_hash, group, answer, Aborted(txn_id), now_ms)

    def _resolve(self, txn_id: str, group: WriteGroup, answer: Answer, now_ms: int, *, held: bool) -> None:
        decided = self._answer_by_id(txn_id)
        if decided is not None:
            answer(decided)
            return
        prepared = self._state.prepared.get(txn_id)
        if held and prepared is not None and prepared.record.primary != self._state.shard_id:
            # Who asks holds another content under this id, and takes this shard for its primary. That one will never be
            # voted for here: not while this one is held, which is durable, and not once it is decided.
            answer(Aborted(txn_id))
            return
        self._check_primary(txn_id)
        if prepared is not None:
            since = prepared.since_ms
        else:
            # A router that has not given it up comes back to a shard that was restarted, if it gets the time.
            since = max(txn_created_ms(txn_id) or 0, self._state.recovered_ms)
        if now_ms - since < self._state.config.resolve_after_ms:
            answer(Undecided([(txn_id, self._state.shard_id)]))
            return
        self._abort(txn_id, group, answer, now_ms, held=held)

    def _answer_by_id(self, txn_id: str) -> Response | None:
        """The outcome for somebody who may mean another content by that id: it says which it was."""
        outcome = self._state.outcome_of(txn_id)
        if outcome is None or not outcome.ts:
            return None if outcome is None else Aborted(txn_id)
        return Committed(outcome.ts, outcome.count, content_hash=outcome.content_hash)

    def _check_primary(self, txn_id: str) -> None:
        prepared = self._state.prepared.get(txn_id)
        if prepared is not None and prepared.record.primary != self._state.shard_id:
            raise InvalidDataException(
                f"shard {self._state.shard_id} does not decide about transaction {txn_id}: "
                f"its primary is shard {prepared.record.primary}"
            )

    def _log_abort(
        self, txn_id: str, content_hash: bytes, group: WriteGroup, answer: Answer, done: Response, now_ms: int
    ) -> None:
        state = self._state

        def finish() -> None:
            state.let_go(txn_id)
            state.outcomes[txn_id] = Outcome(0, content_hash, 0, state.present_ms(now_ms))
            state.timeline.settle(txn_id)
            state.aborts += 1
            answer(done)

        decision = encode_decision(DecisionRecord(txn_id, 0, [], content_hash))
        if txn_id not in state.prepared:
            state.room.spend(sum(map(len, decision)))
        group.add(RecordType.ABORT, decision, finish, lambda error: answer(Refused(error)), [txn_id])

    def _acknowledge(self, request: Acknowledge, group: WriteGroup, answer: Answer) -> None:
        state = self._state
        outcome = state.outcome_of(request.txn_id)
        if outcome is None or not outcome.unacknowledged:
            answer(Done())
            return
        left = outcome.unacknowledged - set(request.shards)
        state.outcomes[request.txn_id] = Outcome(
            outcome.ts, outcome.content_hash, outcome.count, outcome.decided_ms, left
        )
        if left:
            answer(Done())
            return
        state.unacknowledged.discard(request.txn_id)
        # Nobody waits for this record: losing it costs one more round of Finish and Acknowledge.
        decision = encode_decision(DecisionRecord(request.txn_id, outcome.ts))
        state.room.spend(sum(map(len, decision)))
        state.append_lazily(RecordType.ACKNOWLEDGED, decision)
        answer(Done())

    # --------------------------------------------------------------------------------------------- inside

    def _let_in(self, txn: Transaction) -> None:
        """Refuse what needs room while there is none. Dropping collections is how room comes back.

        Raises:
            StorageFullError: The shard is read-only.
        """
        if txn.mutations and all(isinstance(mutation, DropCollection) for mutation in txn.mutations):
            self._state.room.spend(0)
        else:
            self._state.room.check()

    def _decided(self, txn_id: str, content_hash: bytes | None = None) -> Response | None:
        outcome = self._state.outcome_of(txn_id)
        if outcome is None:
            return None
        if content_hash is not None and outcome.content_hash:
            check_same(txn_id, outcome.content_hash, content_hash)
        if not outcome.ts:
            return Aborted(txn_id)
        return Committed(outcome.ts, outcome.count)


def preimages_of(admitted: Admitted) -> Rows:
    """The records that an admitted transaction will replace or delete, as they are now."""
    return joined_rows([collection.rows_of(rows, with_vectors=True) for collection, rows in admitted.replaced])
