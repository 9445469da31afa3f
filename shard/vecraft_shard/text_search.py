"""Ranking the texts of one collection by the words of a query, at one snapshot.

1. *Statistics.* Those that came with the query, of all shards together, or else this shard's own.
2. *Score.* Every text that has one of the words, by BM25 (:mod:`vecraft_data_model.text_ranking`), from their postings.
3. *Select.* Of those that match the filters and that the snapshot sees, the k best, ties by record id; and their
   distances, where the query has a vector.

Scores are rounded to float32, as distances are: what should tie does. Which results follow from this ranking and the
vector's is decided where all shards' answers meet.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from vecraft_data_model.distances import exact_distances
from vecraft_data_model.messages import Float32Array, Search
from vecraft_data_model.text_ranking import Bm25, TextQuery, TextStatistics
from vecraft_shard.indexes.tail import Found, nearest, take
from vecraft_shard.indexes.words import WordIndex
from vecraft_shard.search_view import SearchView

Int64Array = npt.NDArray[np.int64]
BoolArray = npt.NDArray[np.bool_]

_DISTANCES_AT_ONCE = 4096


@dataclass(frozen=True, slots=True)
class TextScores:
    """How the texts of a collection score.

    Attributes:
        scores: Of each row, float32; 0: it has none of the words, or does not count.
        statistics: What they were ranked by.
    """

    scores: Float32Array
    statistics: TextStatistics


def count_words(index: WordIndex, view: SearchView, words: tuple[str, ...]) -> TextStatistics:
    """Return the statistics of what the snapshot sees."""
    return _counted(index, view, words)[0]


def score_texts(index: WordIndex, view: SearchView, text: TextQuery) -> TextScores:
    """Score the rows that the snapshot sees."""
    statistics, postings, lengths = _counted(index, view, text.words)
    if text.statistics is not None:
        statistics = text.statistics
    ranking = Bm25(statistics)
    scores = np.zeros(view.rows)
    for place, (rows, counts) in enumerate(postings):
        scores[rows] += ranking.scores(place, counts, lengths[rows])
    return TextScores(scores.astype(np.float32), statistics)


def best_texts(view: SearchView, request: Search, scores: Float32Array) -> tuple[Found, int]:
    """Return the k rows that score best and match, with their distances (NaN without a vector); and how many match.

    ``max_distance`` leaves out rows before the best are chosen.
    """
    options = request.options
    candidates = np.flatnonzero(scores > 0)  # of a mask they are found several times faster than of numbers
    matching = view.matching(options.where, options.where_document)
    if matching is not None:
        candidates = candidates[matching.contains(candidates)]
    if options.max_distance is not None:
        measured = _distances(view, request, candidates).astype(np.float64)
        candidates = candidates[measured <= options.max_distance]
    rows, _ = nearest(candidates, -scores[candidates], options.k, view.ids)
    return (rows, _distances(view, request, rows)), len(candidates)


def _counted(
    index: WordIndex, view: SearchView, words: tuple[str, ...]
) -> tuple[TextStatistics, list[tuple[Int64Array, Int64Array]], npt.NDArray[np.uint32]]:
    """Statistics of what the snapshot sees, the postings of each word in it, and the length of every row."""
    lengths = index.lengths(view.rows)
    postings = [index.postings(word, view.rows) for word in words]
    seen: BoolArray | None = None
    if not view.all_visible:
        seen = (view.begin[: view.rows] <= view.snapshot) & (view.end[: view.rows] > view.snapshot)
        postings = [(rows[seen[rows]], counts[seen[rows]]) for rows, counts in postings]
    if seen is None:
        documents, total = index.totals(view.rows)
    else:
        documents, total = int(np.count_nonzero(lengths[seen])), int(lengths[seen].sum(dtype=np.int64))
    return TextStatistics(documents, total, tuple(len(rows) for rows, _ in postings)), postings, lengths


def _distances(view: SearchView, request: Search, rows: Int64Array) -> Float32Array:
    if not request.queries.shape[1]:
        return np.full(len(rows), np.nan, np.float32)
    parts = [
        exact_distances(
            view.schema.metric, take(view.column, rows[first : first + _DISTANCES_AT_ONCE]), request.queries[0]
        )
        for first in range(0, len(rows), _DISTANCES_AT_ONCE)
    ]
    return np.concatenate(parts) if parts else np.empty(0, np.float32)
