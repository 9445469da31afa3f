"""Searches and their answers in a form of their own: what nearly all messages are, column by column, as msgpack.

::

    Batch of alike searches      →  Asked      options and collection once, snapshots, all queries as one matrix
    BatchReply with plain hits   →  Answered   snapshots, ids, distances, payloads

Reading checks every type and knows no others: nothing can be named that would be made or called. For 64 searches in a
call, writing and reading take a fifth of a pickle's time. What does not fit (texts, groups, vectors in hits, errors, …)
is somebody else's: see :mod:`vecraft_cluster.codec`.
"""

from __future__ import annotations

from typing import Any, Final

import msgspec
import numpy as np

from vecraft_cluster.filter_codec import read_document, read_where, written_document, written_where
from vecraft_data_model.messages import Batch, BatchReply, Hits, Search, SearchReply
from vecraft_data_model.search_options import SearchOptions


class _Asked(msgspec.Struct, frozen=True, array_like=True, tag="asked"):
    """A batch of searches and its timeout. ``queries``: all of them, float32, unless they travel beside.

    ``rows``: queries of each search. ``where``, ``where_document``: see :mod:`vecraft_cluster.filter_codec`.
    """

    timeout: float
    clock: int
    map_epoch: int
    sent_ms: int
    collection: str
    k: int
    where: Any
    where_document: Any
    ef: int | None
    exact: bool
    max_distance: float | None
    include: tuple[str, ...]
    dim: int
    rows: list[int]
    snapshots: list[int]
    min_ts: list[int]
    queries: memoryview


class _Answered(msgspec.Struct, frozen=True, array_like=True, tag="answered"):
    """A reply to searches. ``lines``: answered queries of each search; then each line's hits."""

    clock: int
    now_ms: int
    sent_ms: int
    snapshots: list[int]
    lines: list[int]
    ids: list[list[str]]
    distances: list[list[float]]
    payloads: list[list[bytes] | None]


_NOTHING: Final = memoryview(b"")
_GROUP_SIZE: Final = SearchOptions().group_size
_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(_Asked | _Answered)


def encode_brief(message: object, inline_bytes: int) -> tuple[bytes, memoryview | None] | None:
    """Return a message as bytes, and its queries if they are larger than ``inline_bytes``; None: it does not fit."""
    if type(message) is tuple and len(message) == 2 and type(message[1]) is Batch:
        return _encode_asked(message[0], message[1], inline_bytes)
    if type(message) is BatchReply:
        return _encode_answered(message)
    return None


def decode_brief(head: Any, buffers: list[Any]) -> Any:
    """Return the message.

    Raises:
        ValueError: It is damaged, or not one of these two.
    """
    brief = _decoder.decode(head)
    return _read_answered(brief) if type(brief) is _Answered else _read_asked(brief, buffers)


def _encode_asked(timeout: float, batch: Batch, inline_bytes: int) -> tuple[bytes, memoryview | None] | None:
    first = batch.requests[0] if batch.requests else None
    if type(first) is not Search or first.queries.ndim != 2:
        return None
    options, collection, dim = first.options, first.collection, first.queries.shape[1]
    if not _fits(options):
        return None
    searches: list[Search] = []
    for request in batch.requests:
        if (
            type(request) is not Search
            or request.collection != collection
            or (request.options is not options and request.options != options)
            or request.queries.ndim != 2
            or request.queries.shape[1] != dim
            or request.members_of is not None
        ):
            return None
        searches.append(request)
    matrix = first.queries if len(searches) == 1 else np.concatenate([search.queries for search in searches])
    if matrix.dtype != np.float32:
        return None
    data = np.ascontiguousarray(matrix).data.cast("B") if matrix.size else _NOTHING
    beside = data.nbytes > inline_bytes
    head = _written(
        _Asked(
            timeout, batch.clock, batch.map_epoch, batch.sent_ms, collection, options.k,
            None if options.where is None else written_where(options.where),
            None if options.where_document is None else written_document(options.where_document),
            options.ef, options.exact, options.max_distance, options.include, dim,
            [len(search.queries) for search in searches],
            [search.snapshot for search in searches],
            [search.min_ts for search in searches],
            _NOTHING if beside else data,
        )
    )  # fmt: skip
    return None if head is None else (head, data if beside else None)


def _read_asked(brief: _Asked, buffers: list[Any]) -> tuple[float, Batch]:
    if brief.dim < 0 or min(brief.rows, default=0) < 0:
        raise ValueError("a matrix of queries has a negative size")
    matrix = np.frombuffer(buffers[0] if buffers else brief.queries, np.float32)
    if not buffers:
        matrix = matrix.copy()  # inside the message it stands where it happens to, not where floats should
    matrix = matrix.reshape(sum(brief.rows), brief.dim)
    options = SearchOptions(
        brief.k,
        None if brief.where is None else read_where(brief.where),
        None if brief.where_document is None else read_document(brief.where_document),
        brief.ef,
        brief.exact,
        brief.max_distance,
        brief.include,
    )
    requests: list[Any] = []
    begin = 0
    for rows, snapshot, min_ts in zip(brief.rows, brief.snapshots, brief.min_ts, strict=True):
        end = begin + rows
        requests.append(
            Search(
                collection=brief.collection, queries=matrix[begin:end], options=options, snapshot=snapshot,
                min_ts=min_ts,
            )
        )  # fmt: skip
        begin = end
    return brief.timeout, Batch(requests, brief.clock, brief.map_epoch, brief.sent_ms)


def _fits(options: SearchOptions) -> bool:
    """Whether nothing is asked for that this form has no place for."""
    return (
        not options.explain and options.text is None and options.group_by is None and options.group_size == _GROUP_SIZE
    )


def _encode_answered(reply: BatchReply) -> tuple[bytes, None] | None:
    snapshots, lines, ids, distances, payloads = [], [], [], [], []
    for response in reply.responses:
        if type(response) is not SearchReply or response.explain is not None or response.statistics is not None:
            return None
        snapshots.append(response.snapshot)
        lines.append(len(response.hits))
        for hits in response.hits:
            if hits.vectors is not None or hits.scores is not None or hits.groups is not None:
                return None
            ids.append(hits.ids)
            distances.append(hits.distances)
            payloads.append(hits.payloads)
    brief = _Answered(reply.clock, reply.now_ms, reply.sent_ms, snapshots, lines, ids, distances, payloads)
    head = _written(brief)
    return None if head is None else (head, None)


def _written(brief: _Asked | _Answered) -> bytes | None:
    """Return it as msgpack; None: it holds what that has no form for, such as half of a surrogate pair."""
    try:
        return _encoder.encode(brief)
    except (TypeError, UnicodeEncodeError, OverflowError):
        return None


def _read_answered(brief: _Answered) -> BatchReply:
    if min(brief.lines, default=0) < 0 or not (
        sum(brief.lines) == len(brief.ids) == len(brief.distances) == len(brief.payloads)
    ):
        raise ValueError(f"an answer of {sum(brief.lines)} lines has {len(brief.ids)} of ids, which do not fit")
    for ids, distances, payloads in zip(brief.ids, brief.distances, brief.payloads, strict=True):
        if len(distances) != len(ids) or (payloads is not None and len(payloads) != len(ids)):
            raise ValueError(f"a line of an answer has {len(ids)} ids, and other numbers of distances or payloads")
    hits = list(map(Hits, brief.ids, brief.distances, brief.payloads))
    responses: list[Any] = []
    begin = 0
    for snapshot, lines in zip(brief.snapshots, brief.lines, strict=True):
        responses.append(SearchReply(snapshot, hits[begin : begin + lines]))
        begin += lines
    return BatchReply(responses, brief.clock, brief.now_ms, brief.sent_ms)
