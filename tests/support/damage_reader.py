"""Reads everything a database holds, and holds each answer against the model.

Every answer is judged by itself: it is right, or it is an error that says which file or record is damaged, or it is a
finding. What a right answer is, is computed from the model alone, with the reference evaluators of filters.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from damage_root import SCHEMAS, Model, Record

from vecraft_data_model import QueryPacket
from vecraft_data_model.errors import (
    ChecksumValidationFailureError,
    CorruptionError,
    RecordNotFoundError,
    StorageFailureException,
    VecraftError,
)
from vecraft_data_model.filters import matches, matches_document, parse_where, parse_where_document
from vecraft_data_model.messages import Batch, Search
from vecraft_data_model.search_options import SearchOptions
from vecraft_db.client.vecraft_client import VecraftClient

HONEST = (CorruptionError, ChecksumValidationFailureError, StorageFailureException)
Records = dict[str, Record]
Question = tuple[str, Callable[[], Any], Callable[[Any], str | None]]
"""What is asked, how, and what is wrong with an answer (None: nothing)."""

FILTERS: dict[str, list[tuple[dict[str, Any] | None, dict[str, Any] | None]]] = {
    "plain": [({"colour": "cedar"}, None), ({"n": {"$gte": 1400}}, None), ({"version": 3}, None)],
    "texts": [
        (None, {"$contains": "grove h"}),
        (None, {"$matches": "lagoon fjord"}),
        (None, {"$not_contains": "ember"}),
        (None, {"$contains": "v3"}),
        ({"tags": {"$contains": "birch"}}, None),
        ({"in.depth": {"$lt": 7}}, {"$matches": "meadow"}),
    ],
    "things": [
        (None, {"kind": "delta"}),
        (None, {"size": {"$gt": 500}}),
        (None, {"parts.left": 3}),
        ({"n": {"$exists": False}}, None),
    ],
}


def is_honest(error: VecraftError) -> bool:
    """Whether an error says that something is damaged, and what."""
    named = error.details.get("file") or error.details.get("path") or error.details.get("record_id")
    return isinstance(error, HONEST) and bool(named)


def ask(questions: Iterator[Question]) -> tuple[list[str], list[str]]:
    """Ask every question. Returns what is wrong, and the errors that were honest about it."""
    wrong, honest = [], []
    for what, question, judge in questions:
        try:
            verdict = judge(question())
        except VecraftError as error:
            if is_honest(error):
                honest.append(f"{what}: {error.code}: {error.message}")
                continue
            verdict = f"{error.code}: {error.message} {error.details}"
        except Exception as error:
            verdict = f"{type(error).__module__}.{type(error).__name__}: {error}"
        if verdict is not None:
            wrong.append(f"{what}: {verdict}")
    return wrong, honest


def everything(client: VecraftClient, model: Model) -> Iterator[Question]:
    """All questions, about the end and about the past."""
    names = sorted(SCHEMAS)
    yield "collections", lambda: [s.name for s in client.list_collections()], _equal(names)
    yield "aliases", lambda: client.list_aliases(), _equal(model.aliases)
    for name in names:
        yield from _about(client, name, model.records[name], {}, "")
        past = {"as_of": model.middle}
        yield from _about(client, name, model.records_then[name], past, " as of the middle")
    yield "count by alias", lambda: client.count("words"), _equal(len(model.records["texts"]))


def _about(client: VecraftClient, name: str, records: Records, past: dict[str, Any], when: str) -> Iterator[Question]:
    what = f"{name}{when}"
    ids = sorted(records)
    yield f"count {what}", lambda: client.count(name, **past), _equal(len(ids))
    yield f"scan {what}", lambda: list(client.scan(name, **past)), _is_all(records)
    bare = {"include": (), **past}
    yield f"scan ids {what}", lambda: [p.record_id for p in client.scan(name, **bare)], _equal(ids)
    for record_id in (ids[0], ids[len(ids) // 2], ids[-1]):
        one = {record_id: records[record_id]}
        yield f"get {record_id} {what}", lambda i=record_id: [client.get(name, i, **past)], _is_all(one)
    for record_id in (f"{name[0]}9999", "p0003", "t0012", "t0091", "p2000", "p2010"):
        if record_id not in records:
            yield f"get {record_id} {what}", lambda i=record_id: _missing(client, name, i, past), _equal(None)
    schema, rng = SCHEMAS[name], np.random.default_rng(len(name))
    queries = rng.normal(size=(4, schema.dim)).astype(np.float32)
    for where, where_document in [(None, None), *FILTERS[name]][: 3 if past else None]:
        chosen = _matching(records, where, where_document)
        filters = {"where": where, "where_document": where_document}
        told = f"{what} {where or ''}{where_document or ''}"
        yield f"count {told}", lambda f=filters: client.count(name, **f, **past), _equal(len(chosen))
        if where or where_document:
            yield f"scan {told}", lambda f=filters: list(client.scan(name, **f, **past)), _is_all(chosen)
        includes: list[tuple[str, ...]] = [(), ("vector", "metadata", "document")]
        for exact, include in ((True, includes[bool(past)]), (False, includes[not past])):
            options = {"exact": exact, "include": include, **filters, **past}
            yield (
                f"search {told} exact={exact} include={include}",
                lambda o=options: client.search_many(name, queries, k=7, **o),
                _is_nearest(schema.metric, chosen, queries, 7, exact, include),
            )
    # One by one and shallow: that is when the graph is walked, rather than everything scanned.
    packets = [QueryPacket(query_vector=query, k=3, ef=8, include=("metadata",)) for query in queries]
    nearest = _is_nearest(schema.metric, records, queries, 3, False, ("metadata",))
    yield f"search one by one {what}", lambda: [client.search(name, packet, **past) for packet in packets], nearest


def _missing(client: VecraftClient, name: str, record_id: str, past: dict[str, Any]) -> Any:
    try:
        return client.get(name, record_id, **past)
    except RecordNotFoundError:
        return None


def walks_the_graph(client: VecraftClient) -> bool:
    """Whether the searches one by one are what they are meant to be; otherwise damaged graphs would prove nothing."""
    query = np.ones((1, SCHEMAS["plain"].dim), np.float32)
    engine: Any = client.engine
    asked = Search(collection="plain", queries=query, options=SearchOptions(k=3, ef=8, explain=True))
    reply = engine.hosts[0].execute(Batch([asked]), 10.0)
    return str(reply.responses[0].explain["plan"]).startswith("hnsw")


def _matching(records: Records, where: Any, where_document: Any) -> Records:
    # Computed once for each state of the model, which only grows: before the fork, for all cases.
    key = (id(records), len(records), repr(where), repr(where_document))
    if key not in _MATCHING:
        _MATCHING[key] = _match(records, where, where_document)
    return _MATCHING[key]


_MATCHING: dict[tuple[int, int, str, str], Records] = {}


def _match(records: Records, where: Any, where_document: Any) -> Records:
    condition = None if where is None else parse_where(where)
    text = None if where_document is None else parse_where_document(where_document)
    return {
        record_id: record
        for record_id, record in records.items()
        if (condition is None or matches(condition, record.metadata))
        and (text is None or matches_document(text, record.document))
    }


def _equal(expected: Any) -> Callable[[Any], str | None]:
    return lambda got: None if got == expected else f"got {str(got)[:200]}, expected {str(expected)[:200]}"


def _is_all(records: Records) -> Callable[[Any], str | None]:
    """The packets are these records, in order of their ids."""

    def judge(packets: Any) -> str | None:
        ids = [packet.record_id for packet in packets]
        if ids != sorted(records):
            return f"missing {sorted(set(records) - set(ids))[:5]}, too many {sorted(set(ids) - set(records))[:5]}"
        for packet in packets:
            record = records[packet.record_id]
            same = packet.metadata == record.metadata and packet.document == record.document
            if not same or not np.array_equal(packet.vector.to_numpy(), record.vector):
                return f"{packet.record_id} is {packet.metadata}, {packet.document}; expected {record}"
        return None

    return judge


def _is_nearest(
    metric: str, records: Records, queries: np.ndarray, k: int, exact: bool, include: tuple[str, ...]
) -> Callable[[Any], str | None]:
    """The hits exist, have the distances they say, and are the nearest (nearly all of them, if not exact)."""
    ids = sorted(records)
    matrix = np.stack([records[i].vector for i in ids]).astype(np.float64) if ids else np.empty((0, queries.shape[1]))
    wide = queries.astype(np.float64)
    if metric == "cosine":
        unit = matrix / np.linalg.norm(matrix, axis=1, keepdims=True)
        table = 1 - wide @ unit.T / np.linalg.norm(wide, axis=1, keepdims=True)
    else:
        table = ((wide[:, None, :] - matrix[None]) ** 2).sum(axis=2)

    def judge(answers: Any) -> str | None:
        right = 0
        for line, hits in zip(table, answers, strict=True):
            true = dict(zip(ids, line.tolist(), strict=True))
            found = [hit.record_id for hit in hits]
            if len(found) != min(k, len(ids)) or len(set(found)) != len(found):
                return f"found {found}, expected {min(k, len(ids))} of {len(ids)}"
            for hit in hits:
                if hit.record_id not in true:
                    return f"found {hit.record_id}, which does not exist or does not match"
                if abs(hit.distance - true[hit.record_id]) > 1e-4 * max(1.0, true[hit.record_id]):
                    return f"{hit.record_id} is at {true[hit.record_id]}, not at {hit.distance}"
                record = records[hit.record_id]
                if "document" in include and hit.document != record.document:
                    return f"{hit.record_id} holds {hit.document!r}, expected {record.document!r}"
                if "metadata" in include and hit.metadata != record.metadata:
                    return f"{hit.record_id} holds {hit.metadata!r}, expected {record.metadata!r}"
                if "vector" in include and not np.array_equal(hit.vector, record.vector):
                    return f"{hit.record_id} holds another vector"
            bound = np.sort(line)[: len(found)].max(initial=0.0) + 1e-4
            right += sum(hit.distance <= bound for hit in hits)
        wanted = len(answers) * min(k, len(ids))
        if right < wanted * (1.0 if exact else 0.7):
            return f"{right} of {wanted} hits are right"
        return None

    return judge
