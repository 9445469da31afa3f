"""The answers that searches by text, and searches that group, have to give: by brute force over all records."""

from __future__ import annotations

from collections.abc import Mapping

from tests.simulation.content import value_of, vector_of
from vecraft_data_model.payload import decode_payload
from vecraft_data_model.text_ranking import Bm25, TextStatistics
from vecraft_router.fusion import RRF_K

Records = Mapping[str, bytes]
Ranked = list[tuple[float, str]]


def distances(records: Records, query: list[float]) -> Ranked:
    """Distance and id of all records, the nearest first."""
    found = []
    for record_id, payload in records.items():
        vector = vector_of(record_id, int(value_of(payload)["t"]))
        found.append((sum((a - b) ** 2 for a, b in zip(vector, query, strict=True)), record_id))
    return sorted(found)


def grouped(records: Records, query: list[float], field: str, k: int, size: int) -> Ranked:
    """The nearest of each of the k nearest groups, up to ``size`` of each."""
    taken: dict[int, int] = {}
    chosen = []
    for distance, record_id in distances(records, query):
        group = int(value_of(records[record_id])[field])
        if taken.get(group, 0) < size and (group in taken or len(taken) < k):
            taken[group] = taken.get(group, 0) + 1
            chosen.append((distance, record_id))
    return chosen


def by_text(everything: Records, matching: Records, words: tuple[str, ...]) -> Ranked:
    """Score and id of the matching records that have any of the words, the best first.

    Args:
        everything: Whose statistics count: all records at that moment.
        matching: Of those, the ones that match the filter.
        words: Of the query.
    """
    statistics = TextStatistics.of_texts(words, [document_of(payload) for payload in everything.values()])
    scores = Bm25(statistics).scores_of_texts(words, [document_of(payload) for payload in matching.values()])
    return sorted((-score, record_id) for score, record_id in zip(scores, matching, strict=True) if score)


def fused(near: Ranked, texts: Ranked) -> list[str]:
    """Ids by the sum of their reciprocal ranks, the best first; ties by distance, then id."""
    scores: dict[str, float] = {}
    for ranking in (near, texts):
        for rank, (_, record_id) in enumerate(ranking, 1):
            scores[record_id] = scores.get(record_id, 0.0) + 1.0 / (RRF_K + rank)
    far = {record_id: distance for distance, record_id in near}
    return sorted(scores, key=lambda record_id: (-scores[record_id], far[record_id], record_id))


def document_of(payload: bytes) -> str | None:
    """A record's text."""
    document = decode_payload(payload).document
    return document if isinstance(document, str) else None
