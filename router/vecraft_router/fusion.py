"""Joining the ranking by vector and the ranking by text of one search into one.

``"rrf"``: reciprocal rank fusion (Cormack, Clarke and Büttcher, "Reciprocal Rank Fusion outperforms Condorcet and
individual Rank Learning Methods", SIGIR 2009): a record's score is the sum of ``1 / (60 + rank)`` over the rankings it
is in, ranks from 1.

Weights: ``w_vector · v + w_text · t``, where ``v`` goes from 1 for the nearest candidate to 0 for the farthest, linear
in the distance (1 if all are equally far), and ``t`` is the BM25 score divided by the best candidate's.

Candidates are the :func:`~vecraft_data_model.text_ranking.fusion_depth` best of either ranking, of all shards together:
so a result does not show how many shards there are. Ties go by distance, then by record id.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import msgspec

from vecraft_data_model.messages import Hits
from vecraft_data_model.text_ranking import Fusion
from vecraft_router.merging import gather_hits, take_hits

RRF_K: Final = 60


def joined(rankings: Sequence[Hits], fusion: Fusion, k: int) -> Hits:
    """Return the k best of a search by text: of its two rankings joined, or of the one that there is."""
    if len(rankings) == 1:
        return take_hits(rankings[0], range(min(k, len(rankings[0].ids))))
    return fuse(rankings[0], rankings[1], fusion, k)


def fuse(near: Hits, texts: Hits, fusion: Fusion, k: int) -> Hits:
    """Return the k best by both rankings, with their joint scores.

    Args:
        near: The nearest, nearest first, each with the score of its text.
        texts: Those whose texts score best, best first, each with its distance.
        fusion: How to join them.
        k: Most results.
    """
    parts = (near, texts)
    ranks: dict[str, float] = {}
    places: dict[str, tuple[int, int]] = {}
    for number, part in enumerate(parts):
        for row, record_id in enumerate(part.ids):
            ranks[record_id] = ranks.get(record_id, 0.0) + 1.0 / (RRF_K + row + 1)
            places.setdefault(record_id, (number, row))
    distances = {record_id: parts[number].distances[row] for record_id, (number, row) in places.items()}
    scores = ranks if isinstance(fusion, str) else _weighted(parts, places, distances, fusion)
    best = sorted(places, key=lambda record_id: (-scores[record_id], distances[record_id], record_id))[:k]
    hits = gather_hits(parts, [places[record_id] for record_id in best])
    return msgspec.structs.replace(hits, scores=[scores[record_id] for record_id in best])


def _weighted(
    parts: tuple[Hits, Hits],
    places: dict[str, tuple[int, int]],
    distances: dict[str, float],
    weights: tuple[float, float],
) -> dict[str, float]:
    nearest, farthest = min(distances.values(), default=0.0), max(distances.values(), default=0.0)
    texts = {record_id: (parts[number].scores or [])[row] for record_id, (number, row) in places.items()}
    best = max(texts.values(), default=0.0)
    sums = {}
    for record_id, distance in distances.items():
        near = (farthest - distance) / (farthest - nearest) if farthest > nearest else 1.0
        text = texts[record_id] / best if best > 0 else 0.0
        sums[record_id] = weights[0] * near + weights[1] * text
    return sums
