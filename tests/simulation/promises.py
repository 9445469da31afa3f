"""What each shard promises, looked at while it answers.

By serving a read at ``S``: never to commit at or below ``S`` later, whatever happens to it. By answering a search: that
rows which are not in the graph yet were all compared.
"""

from __future__ import annotations

from collections.abc import Sequence

from tests.simulation.history import History
from vecraft_data_model.messages import (
    CatalogReply,
    CommitOne,
    Committed,
    CountReply,
    Prepare,
    Prepared,
    Request,
    Response,
    RowsReply,
    Search,
    SearchReply,
)
from vecraft_shard.engine import Shard

ReadReply = RowsReply | SearchReply | CountReply | CatalogReply


class Promises:
    """The reads of one shard, over all its lives, and the timestamps that it issued since.

    Decisions of several shards are not looked at: a read waits for those that concern it, and others pass it by. But
    their timestamps begin with one that each shard issues.
    """

    def __init__(self, history: History, shard: int) -> None:
        self._history = history
        self._shard = shard
        self.served = 0

    def undecided(self, shard: Shard, requests: Sequence[Request]) -> set[tuple[str, bytes]]:
        """Those of the transactions in a batch, by id and content, for which it has not issued a timestamp before."""
        held, decided, own = shard._state.prepared, self._history.decided, self._shard
        return {
            key_of(request)
            for request in requests
            if isinstance(request, CommitOne | Prepare)
            and request.txn.txn_id not in held
            and own not in decided.get((request.txn.txn_id, request.txn.content_hash), ())
        }

    def check(
        self, served: int, undecided: set[tuple[str, bytes]], requests: Sequence[Request], responses: Sequence[Response]
    ) -> None:
        """Compare what the shard issued for ``undecided`` with what it had ``served`` before; note what it serves."""
        for request, response in zip(requests, responses, strict=True):
            if isinstance(response, ReadReply):
                self.served = max(self.served, response.snapshot)
            elif isinstance(request, CommitOne | Prepare) and key_of(request) in undecided:
                issued = None
                if isinstance(request, CommitOne) and isinstance(response, Committed):
                    issued = response.commit_ts
                elif isinstance(response, Prepared):
                    issued = response.prepare_ts
                if issued is not None and issued <= served:
                    self._history.problem(
                        f"shard {self._shard} served a read at {served}, and then issued {issued} for "
                        f"{request.txn.txn_id}"
                    )


def key_of(request: CommitOne | Prepare) -> tuple[str, bytes]:
    """Id and content: clients use one id for several."""
    return request.txn.txn_id, request.txn.content_hash


def check_tail(history: History, shard: Shard, requests: Sequence[Request], responses: Sequence[Response]) -> None:
    """Compare the answers to searches without a filter with the rows that no graph holds."""
    for request, response in zip(requests, responses, strict=True):
        if not isinstance(request, Search) or not isinstance(response, SearchReply):
            continue
        options = request.options
        if options.where is not None or options.where_document is not None:
            continue
        if options.text is not None or options.group_by is not None:
            continue
        state, hits, snapshot = shard._state, response.hits[0], response.snapshot
        entry = state.catalog.resolve(request.collection, snapshot)
        collection = state.collections[entry.collection_id]
        versions, query = collection.versions, request.queries[0].tolist()
        for row in range(collection.hnsw.count, versions.rows):
            if not versions.begin[row] <= snapshot < versions.end[row] or versions.ids[row] in hits.ids:
                continue
            vector = collection.vectors_of([row])[0].tolist()
            distance = sum((a - b) ** 2 for a, b in zip(vector, query, strict=True))
            if len(hits.ids) < request.options.k or distance < hits.distances[-1]:
                history.problem(
                    f"a search of {request.collection} at {snapshot} missed {versions.ids[row]!r}, row {row}"
                )
