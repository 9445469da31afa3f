"""Ranking texts by the words of a query, and what it takes to do so alike on every shard.

Score of a document *D* for the distinct words *t* of a query, Okapi BM25 (Robertson and Zaragoza, "The Probabilistic
Relevance Framework: BM25 and Beyond", 2009), with the inverse document frequency that is never negative::

    score = Σ idf(t) · n(t, D) · (k1 + 1) / (n(t, D) + k1 · (1 − b + b · |D| / mean length))
    idf(t) = ln(1 + (N − N(t) + ½) / (N(t) + ½))

``N``, ``N(t)`` and the mean length are those of the whole collection at the snapshot: of every text document that has a
word, whatever a filter leaves over, on whichever shard. :class:`TextStatistics` of parts add up, so routers collect
them first and send them along; a score then depends neither on the number of shards nor on what deleted rows held.

Words are those of :func:`vecraft_data_model.filters.words`. JSON documents are not ranked.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise
from typing import Any, Final

import msgspec
import numpy as np
import numpy.typing as npt

from vecraft_data_model.errors import InvalidDataException
from vecraft_data_model.filters import words
from vecraft_data_model.validation import shown

Float64Array = npt.NDArray[np.float64]

K1: Final = 1.2
B: Final = 0.75
MAX_QUERY_WORDS: Final = 1024
FUSION_SPARE: Final = 4
FUSION_MIN: Final = 50

Fusion = str | tuple[float, float]
"""``"rrf"``, or the weights of the vector's and the text's normalised scores."""


class TextStatistics(msgspec.Struct, frozen=True, gc=False):
    """What BM25 has to know of all documents.

    Attributes:
        documents: Text documents that have a word.
        words: Words of all of them together.
        frequencies: For each word of the query, in its order: how many of them have it.
    """

    documents: int
    words: int
    frequencies: tuple[int, ...]

    def plus(self, other: TextStatistics, sign: int = 1) -> TextStatistics:
        """Return the statistics of both parts together; with ``sign`` −1, of this one without the other."""
        return TextStatistics(
            self.documents + sign * other.documents,
            self.words + sign * other.words,
            tuple(mine + sign * theirs for mine, theirs in zip(self.frequencies, other.frequencies, strict=True)),
        )

    def checked(self, wanted: Sequence[str]) -> TextStatistics:
        """Return these statistics, if they can be some of a query of these words.

        Raises:
            InvalidDataException: They cannot.
        """
        bounds = (0, *sorted(self.frequencies), self.documents, self.words)
        if len(self.frequencies) != len(wanted) or any(low > high for low, high in pairwise(bounds)):
            raise InvalidDataException(f"statistics of {len(wanted)} words cannot be {shown(str(self))}")
        return self

    @staticmethod
    def of_texts(wanted: Sequence[str], texts: Iterable[object]) -> TextStatistics:
        """Count some documents; what is no text counts as none."""
        counted = [found for text in texts if isinstance(text, str) and (found := words(text))]
        sets = list(map(set, counted))
        return TextStatistics(
            len(counted), sum(map(len, counted)), tuple(sum(word in found for found in sets) for word in wanted)
        )


class TextQuery(msgspec.Struct, frozen=True, gc=False):
    """The words of a search, and how their ranking is joined with the vector's.

    Attributes:
        words: Distinct, sorted.
        fusion: How both rankings become one; None: they are not, the answer has one after the other.
        statistics: Of the whole collection; None: the shard that is asked is the whole.
    """

    words: tuple[str, ...]
    fusion: Fusion | None = "rrf"
    statistics: TextStatistics | None = None

    @staticmethod
    def checked(query_text: object, fusion: object) -> TextQuery | None:
        """Return what these arguments, as a user gave them, ask for; None without a text.

        Raises:
            InvalidDataException: A text that is none or has no words, or too many; a fusion that is not known.
        """
        if query_text is None:
            if fusion != "rrf":
                raise InvalidDataException("fusion joins the rankings of a vector and a text: it goes with query_text")
            return None
        if not isinstance(query_text, str):
            raise InvalidDataException(f"query_text must be a string; got {shown(query_text)}")
        wanted = tuple(sorted(set(words(query_text))))
        if not 1 <= len(wanted) <= MAX_QUERY_WORDS:
            raise InvalidDataException(
                f"query_text must have 1 to {MAX_QUERY_WORDS} different words; {shown(query_text)} has {len(wanted)}"
            )
        return TextQuery(wanted, check_fusion(fusion))


class Bm25:
    """Scores by given statistics.

    Args:
        statistics: Of the whole collection.
    """

    def __init__(self, statistics: TextStatistics) -> None:
        total = statistics.documents
        self._idf = [math.log(1 + (total - found + 0.5) / (found + 0.5)) for found in statistics.frequencies]
        self._mean = statistics.words / total if total else 1.0

    def scores(self, word: int, counts: npt.NDArray[np.integer], lengths: npt.NDArray[np.integer]) -> Float64Array:
        """Return what one word adds to the scores of documents.

        Args:
            word: Its place in the query.
            counts: How often each document has it.
            lengths: How many words each document has.
        """
        saturation = K1 * (1 - B + B * lengths / self._mean)
        scores: Float64Array = self._idf[word] * counts * (K1 + 1) / (counts + saturation)
        return scores

    def scores_of_texts(self, wanted: Sequence[str], texts: Sequence[object]) -> list[float]:
        """Return the scores of some documents, as float32 values; 0 for what has none of the words."""
        counted = [words(text) if isinstance(text, str) else [] for text in texts]
        lengths = np.array([len(found) for found in counted], np.int64)
        totals = np.zeros(len(texts))
        for place, word in enumerate(wanted):
            counts = np.array([found.count(word) for found in counted], np.int64)
            has = np.flatnonzero(counts)
            totals[has] += self.scores(place, counts[has], lengths[has])
        rounded: list[float] = totals.astype(np.float32).tolist()
        return rounded


def fusion_depth(k: int) -> int:
    """Return how many of each ranking are joined for ``k`` results."""
    return max(FUSION_SPARE * k, FUSION_MIN)


def check_fusion(fusion: object) -> Fusion:
    """Return ``"rrf"``, or the two weights: a pair, or ``{"vector": …, "text": …}``.

    Raises:
        InvalidDataException: Anything else.
    """
    if fusion == "rrf":
        return "rrf"
    pair: Any = fusion
    if isinstance(fusion, Mapping) and fusion.keys() == {"vector", "text"}:
        pair = (fusion["vector"], fusion["text"])
    if isinstance(pair, list | tuple) and len(pair) == 2 and all(map(_is_weight, pair)) and any(pair):
        return float(pair[0]), float(pair[1])
    raise InvalidDataException(
        'fusion must be "rrf" or two weights, not negative and not both 0, as {"vector": 0.7, "text": 0.3}; '
        f"got {shown(fusion)}"
    )


def _is_weight(value: object) -> bool:
    number = isinstance(value, int | float | np.number) and not isinstance(value, bool)
    return number and math.isfinite(value) and value >= 0  # type: ignore[arg-type, operator]
