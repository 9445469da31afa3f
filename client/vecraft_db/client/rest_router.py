"""The router's flows, spoken over HTTP: what lets one set of operations serve a database behind a gateway.

:class:`RestRouter` has the methods of :class:`vecraft_router.router.Router`, with the same arguments, results and
errors. Its flows yield :class:`~vecraft_db.client.http_runner.Http` instead of shard requests. Records travel as
columns, vectors in base64, and payloads as they were encoded, so checksums hold from this process to the disk and back.

What it knows: a session token (the newest timestamp this client has seen, signed by the cluster), so that it reads its
own writes through any gateway. What it decides: whether to send again. A request that cannot have arrived is sent again
until the deadline; one that may have arrived too, because reads change nothing and every write carries a transaction
id, which makes it happen once. When time is up, a write whose fate is unknown says so.
"""

from __future__ import annotations

import random
import threading
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, TypeVar, cast
from urllib.parse import quote

import msgspec

from vecraft_data_model.errors import ReadWriteConflictException, VecraftError, WriteConflictException
from vecraft_data_model.filters import DocumentFilter, Filter
from vecraft_data_model.hlc import timestamp_of
from vecraft_data_model.messages import (
    CatalogReply,
    CountReply,
    Float32Array,
    Mutation,
    Refused,
    RowsReply,
    StatusReply,
)
from vecraft_data_model.packets import CollectionInfo
from vecraft_data_model.ports import Clock
from vecraft_data_model.scan_options import DEFAULT_PAGE, ScanOptions
from vecraft_data_model.schema import CollectionSchema
from vecraft_data_model.search_options import SearchOptions
from vecraft_data_model.text_ranking import TextStatistics
from vecraft_data_model.validation import check_timeout, new_txn_id
from vecraft_db.client.http_runner import Answer, Http, HttpFlow, NoAnswer
from vecraft_db.client.rest_wire import (
    commit_of,
    decoded,
    encoded,
    error_of,
    filters,
    is_problem,
    operation,
    parts,
    quoted,
    search_body,
    snapshot_of,
    status_of,
    timestamp_in,
    unanswered,
)
from vecraft_router.effects import Sleep
from vecraft_router.gateway.columns import hits_from_columns, rows_from_columns
from vecraft_router.gateway.vectors import to_base64
from vecraft_router.options import DEFAULT_OPTIONS, Bounded, ReadOptions
from vecraft_router.results import Commit, Found, Pin
from vecraft_router.transactions import InteractiveTransaction

if TYPE_CHECKING:
    from vecraft_router.router import Router

T = TypeVar("T")

RETRY_FIRST_S = 0.02
RETRY_MAX_S = 0.5
_BUSY = frozenset({502, 503})


class RestRouter:
    """Flows over a gateway. Safe to use from several threads.

    Args:
        clock: Time, for deadlines and transaction ids.
        rng: Jitter of retries.
        timeout_s: Deadline of calls that name none.
    """

    def __init__(self, clock: Clock, rng: random.Random, timeout_s: float) -> None:
        self._clock = clock
        self._rng = rng
        self._timeout_s = timeout_s
        self._lock = threading.Lock()
        self._token: str | None = None
        self._seen = 0

    def deadline(self, timeout: float | None = None) -> float:
        """Return the moment, in ``Clock.monotonic`` seconds, that lies ``timeout`` seconds (default: configured) ahead.

        Raises:
            InvalidDataException: ``timeout`` is not a number above 0 and at most a day.
        """
        seconds = check_timeout(timeout)
        return self._clock.monotonic() + (self._timeout_s if seconds is None else seconds)

    def moment(self) -> float:
        """Return the present, in the ``Clock.monotonic`` seconds of deadlines."""
        return self._clock.monotonic()

    def new_txn_id(self) -> str:
        """Return a fresh transaction id (UUIDv7)."""
        return new_txn_id(self._clock.now_ms())

    # ------------------------------------------------------------------------------------------------ writes

    def commit(
        self,
        mutations: Sequence[Mutation],
        *,
        txn_id: str | None = None,
        snapshot: int | None = None,
        reads: Sequence[tuple[str, str]] = (),
        want_preimages: bool = False,
        deadline: float | None = None,
    ) -> HttpFlow[Commit]:
        """Commit mutations, all or none; as ``Router.commit``."""
        until = self._until(deadline)
        body: dict[str, Any] = {"operations": [operation(mutation) for mutation in mutations], "format": "columns"}
        if want_preimages:
            body["preimages"] = True
        if snapshot is not None:
            body["snapshot"] = snapshot
        if reads:
            body["isolation"] = "serializable"
            body["reads"] = [list(pair) for pair in reads]

        def again(error: VecraftError) -> bool:
            # As in a router of one's own: a lock is only in the way for a moment, and a blind write has no conflicts.
            blind = snapshot is None and isinstance(error, WriteConflictException)
            return blind or bool(error.details.get("locked"))

        return (yield from self._carry_out("/transactions", body, txn_id, until, again))

    def delete_where(
        self,
        collection: str,
        *,
        where: Filter | None = None,
        where_document: DocumentFilter | None = None,
        txn_id: str | None = None,
        options: ReadOptions = DEFAULT_OPTIONS,
    ) -> HttpFlow[Commit]:
        """Delete what matches, atomically; as ``Router.delete_where``."""
        path = f"/collections/{quoted(collection)}/delete"
        until, headers = self._until(options.deadline), self._headers(options)

        def again(error: VecraftError) -> bool:
            return isinstance(error, WriteConflictException)  # somebody wrote one of them since: look again

        return (yield from self._carry_out(path, filters(where, where_document), txn_id, until, again, headers))

    def transaction(
        self,
        *,
        isolation: str = "snapshot",
        txn_id: str | None = None,
        options: ReadOptions = DEFAULT_OPTIONS,
    ) -> InteractiveTransaction:
        """Return a transaction that reads at one snapshot, sees its own writes and commits them at once.

        Its writes stay in this process until it commits; no gateway holds anything for it.
        """
        return InteractiveTransaction(cast("Router", self), isolation=isolation, txn_id=txn_id, options=options)

    # ------------------------------------------------------------------------------------------------- reads

    def get(
        self,
        collection: str,
        ids: Sequence[str],
        options: ReadOptions = DEFAULT_OPTIONS,
        *,
        with_vectors: bool = True,
    ) -> HttpFlow[RowsReply]:
        """Return the records of those ids, in that order, the missing left out."""
        include = ["metadata", "document", "vector"] if with_vectors else ["metadata", "document"]
        body = {"ids": list(ids), "include": include, "format": "columns"}
        data = yield from self._read("POST", f"/collections/{quoted(collection)}/get", body, options)
        return RowsReply(data["snapshot"], rows_from_columns(data["rows"]))

    def search(
        self,
        collection: str,
        queries: Float32Array,
        wanted: SearchOptions,
        options: ReadOptions = DEFAULT_OPTIONS,
    ) -> HttpFlow[Found]:
        """Return the nearest records to each row of ``queries`` (q, dim) float32."""
        body = {"format": "columns", "partial": options.partial, **search_body(wanted)}
        if queries.shape[1]:
            body["queries"] = to_base64(queries)
        data = yield from self._read("POST", f"/collections/{quoted(collection)}/search_many", body, options)
        explained = data["explain"]
        return Found(
            snapshot=data["snapshot"],
            hits=[hits_from_columns(hits) for hits in data["hits"]],
            missing=tuple(data["missing"]),
            explain=None if explained is None else {int(shard): plan for shard, plan in explained.items()},
            statistics=msgspec.convert(data["statistics"], TextStatistics | None),
        )

    def scan_page(
        self, collection: str, wanted: ScanOptions = DEFAULT_PAGE, options: ReadOptions = DEFAULT_OPTIONS
    ) -> HttpFlow[RowsReply]:
        """Return one page of records in id order."""
        body: dict[str, Any] = {
            "limit": wanted.limit,
            "include": parts(wanted.with_payloads, wanted.with_vectors),
            "format": "columns",
            **filters(wanted.where, wanted.where_document),
        }
        if wanted.after is not None:
            body["after"] = wanted.after
        data = yield from self._read("POST", f"/collections/{quoted(collection)}/scan", body, options)
        return RowsReply(data["snapshot"], rows_from_columns(data["rows"]), data["more"])

    def count(
        self,
        collection: str,
        *,
        where: Filter | None = None,
        where_document: DocumentFilter | None = None,
        options: ReadOptions = DEFAULT_OPTIONS,
    ) -> HttpFlow[CountReply]:
        """Return the exact number of records that match."""
        body = filters(where, where_document)
        answer = yield from self._ask("POST", f"/collections/{quoted(collection)}/count", body, options)
        return CountReply(snapshot_of(answer), decoded(answer)["count"])

    def list_collections(self, options: ReadOptions = DEFAULT_OPTIONS) -> HttpFlow[CatalogReply]:
        """Return the schemas of all collections, and the aliases, both at one snapshot."""
        answer = yield from self._ask("GET", "/collections", None, options)
        snapshot = snapshot_of(answer)
        schemas = [CollectionSchema.from_dict(fields) for fields in decoded(answer)]
        aliases = yield from self._read("GET", "/aliases", None, ReadOptions(as_of=snapshot, deadline=options.deadline))
        return CatalogReply(snapshot, schemas, aliases)

    def describe(self, collection: str, options: ReadOptions = DEFAULT_OPTIONS) -> HttpFlow[CollectionInfo]:
        """Return a collection's figures."""
        data = yield from self._read("GET", f"/collections/{quoted(collection)}", None, options)
        return msgspec.convert(data, CollectionInfo)

    def choose_snapshot(self, options: ReadOptions = DEFAULT_OPTIONS) -> HttpFlow[int]:
        """Return a timestamp to read the whole database at."""
        data = yield from self._read("GET", "/snapshots", None, options)
        snapshot: int = data["snapshot"]
        return snapshot

    # ----------------------------------------------------------------------------------------------- service

    def pin(
        self,
        snapshot: int | None = None,
        *,
        ttl_ms: int,
        pin_id: str | None = None,
        options: ReadOptions = DEFAULT_OPTIONS,
    ) -> HttpFlow[Pin]:
        """Keep the history of a snapshot for ``ttl_ms``."""
        body: dict[str, Any] = {"ttl_ms": ttl_ms, "pin_id": pin_id or self.new_txn_id()}
        if snapshot is not None:
            body["as_of"] = snapshot
        data = yield from self._read("POST", "/snapshots", body, options)
        return Pin(data["pin_id"], data["snapshot"])

    def release(self, pin_id: str, *, deadline: float | None = None) -> HttpFlow[None]:
        """Let go of a pin."""
        path = f"/snapshots/1?pin_id={quote(pin_id, safe='')}"
        yield from self._read("DELETE", path, None, ReadOptions(deadline=deadline))

    def set_ef(self, collection: str, ef: int | None, *, deadline: float | None = None) -> HttpFlow[None]:
        """Set a collection's search depth, not durably."""
        path = f"/collections/{quoted(collection)}/ef"
        yield from self._read("PUT", path, {"ef": ef}, ReadOptions(deadline=deadline))

    def checkpoint(
        self, compact: bool = False, index: bool = False, *, deadline: float | None = None
    ) -> HttpFlow[None]:
        """Make a checkpoint on every shard."""
        body = {"compact": compact, "index": index}
        yield from self._read("POST", "/admin/checkpoint", body, ReadOptions(deadline=deadline))

    def backup(self, path: str, *, deadline: float) -> HttpFlow[dict[str, Any]]:
        """Have the gateway write a backup into its backup directory. Sent once: a second one would find it there.

        Raises:
            InvalidDataException: The gateway has no backup directory, or ``path`` is no new name in it.
            TimeoutException: There was no answer; the backup may have been written.
        """
        headers = {"X-Timeout-Ms": str(max(1, int((deadline - self._clock.monotonic()) * 1000)))}
        answer = yield Http("POST", "/admin/backup", encoded({"path": path}), headers, deadline)
        if isinstance(answer, NoAnswer):
            raise unanswered(answer, {})
        if answer.status >= 400:
            raise error_of(answer)
        written: dict[str, Any] = decoded(answer)
        return written

    def status(self, *, deadline: float | None = None) -> HttpFlow[dict[int, StatusReply | Refused]]:
        """Ask every shard for its figures."""
        data = yield from self._read("GET", "/cluster", None, ReadOptions(deadline=deadline))
        return {entry["shard"]: status_of(entry) for entry in data["shards"]}

    # ----------------------------------------------------------------------------------------------- inside

    def _until(self, deadline: float | None) -> float:
        return self.deadline() if deadline is None else deadline

    def _headers(self, options: ReadOptions) -> dict[str, str]:
        """Return what a read's options are in HTTP."""
        if options.as_of is not None:
            return {"X-Vecraft-Snapshot": str(timestamp_of(options.as_of))}
        consistency = options.consistency
        if isinstance(consistency, Bounded):
            return {"X-Consistency-Level": "bounded", "X-Max-Staleness-Ms": str(consistency.max_staleness_ms)}
        if consistency != "session":
            return {"X-Consistency-Level": consistency}
        with self._lock:
            if options.min_ts > self._seen:
                # Nobody has signed that timestamp for us; strong sees whatever was acknowledged, so that one too.
                return {"X-Consistency-Level": "strong"}
            return {} if self._token is None else {"X-Session-Token": self._token}

    def _read(self, method: str, path: str, body: dict[str, Any] | None, options: ReadOptions) -> HttpFlow[Any]:
        return decoded((yield from self._ask(method, path, body, options)))

    def _ask(self, method: str, path: str, body: dict[str, Any] | None, options: ReadOptions) -> HttpFlow[Answer]:
        answer = yield from self._send(method, path, body, self._headers(options), self._until(options.deadline))
        if isinstance(answer, NoAnswer):
            raise unanswered(answer, {})
        if answer.status >= 400:
            raise error_of(answer)
        return answer

    def _carry_out(
        self,
        path: str,
        body: dict[str, Any],
        txn_id: str | None,
        deadline: float,
        again: Callable[[VecraftError], bool],
        headers: dict[str, str] | None = None,
    ) -> HttpFlow[Commit]:
        """Have a transaction carried out; if it may be tried ``again`` after a durable abort, under another id.

        An id stands for one attempt, so only where the caller left it to us.
        """
        attempt = 0
        while True:
            chosen = self.new_txn_id() if txn_id is None else txn_id
            try:
                data = yield from self._write(path, {**body, "txn_id": chosen}, chosen, deadline, headers or {})
            except (WriteConflictException, ReadWriteConflictException) as error:
                pause = self._pause(attempt)
                if txn_id is not None or not again(error) or self._clock.monotonic() + pause >= deadline:
                    raise
                attempt += 1
                yield Sleep(pause)
            else:
                return commit_of(data)

    def _write(
        self, path: str, body: dict[str, Any], txn_id: str, deadline: float, headers: dict[str, str]
    ) -> HttpFlow[Any]:
        with self._lock:
            if self._token is not None:  # so that it is committed above everything this client has seen
                headers = {"X-Session-Token": self._token, **headers}
        answer = yield from self._send("POST", path, body, headers, deadline)
        if isinstance(answer, NoAnswer):
            outcome = "unknown" if answer.sent else "aborted"
            raise unanswered(answer, {"txn_id": txn_id, "outcome": outcome})
        if answer.status >= 400:
            raise error_of(answer)
        return decoded(answer)

    def _send(
        self, method: str, path: str, body: dict[str, Any] | None, headers: dict[str, str], deadline: float
    ) -> HttpFlow[Answer | NoAnswer]:
        """Send until there is an answer or no time left; ``NoAnswer.sent``: some attempt may have arrived."""
        content = None if body is None else encoded(body)
        sent = False
        attempt = 0
        while True:
            left_ms = max(1, int((deadline - self._clock.monotonic()) * 1000))
            answer: Answer | NoAnswer = yield Http(
                method, path, content, {**headers, "X-Timeout-Ms": str(left_ms)}, deadline
            )
            if isinstance(answer, Answer):
                self._learn(answer)
                # A proxy, or a gateway that is full, spoke: no shard has decided anything.
                if answer.status not in _BUSY or is_problem(answer):
                    return answer
                reason = f"the gateway answered {answer.status}"
            else:
                sent = sent or answer.sent
                if answer.given_up == "late" and attempt:  # what went wrong before is the reason
                    return NoAnswer(sent, reason)
                reason = answer.reason
                if answer.given_up is not None:
                    return NoAnswer(sent, reason, answer.given_up)
            pause = self._pause(attempt)
            attempt += 1
            if self._clock.monotonic() + pause >= deadline:
                return NoAnswer(sent=sent, reason=reason)
            yield Sleep(pause)

    def _pause(self, attempt: int) -> float:
        """Return the seconds before another attempt: exponential, jittered by half."""
        return min(RETRY_MAX_S, RETRY_FIRST_S * 2.0 ** min(attempt, 16)) * (0.5 + 0.5 * self._rng.random())

    def _learn(self, answer: Answer) -> None:
        token = answer.headers.get("x-session-token")
        if token is None:
            return
        ts = timestamp_in(token)
        with self._lock:
            if ts > self._seen:
                self._seen = ts
                self._token = token
