"""§4b: exact counts by every kind of filter at 100,000 records, each time by a filter that was never used before.

Records carry glosses as documents, and metadata that are made here, seeded: numbers, datetimes, a topic, a name of its
own for each record. The reference is what Python does without an index: a numpy mask for numbers, a loop over the
values for the rest. Every count is compared with the reference's. The bar is that a count takes less than a
millisecond (``below_a_millisecond``), whatever the reference takes; vectors have 4 dimensions, since no count looks at
them. The page of a scan is told, too: its first 100 records by the same filter.
"""

from __future__ import annotations

import itertools
import re
import time
from collections.abc import Callable, Iterator, Sequence, Set
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Any

import numpy as np

from benchmarks.measure import Row, Sample, alternate, latencies
from examples.wordnet import WordNet
from vecraft_data_model import CollectionSchema
from vecraft_data_model.filters import words
from vecraft_db.client.vecraft_client import VecraftClient

RECORDS, TIMES, SEED = 100_000, 40, 11
BATCH, PAGE = 5_000, 100
START = datetime(2020, 1, 1, tzinfo=UTC)


@dataclass(frozen=True)
class Records:
    """What is counted, column by column."""

    prices: Any
    minutes: Any
    topics: list[str]
    names: list[str]
    texts: list[str]

    def metadata(self, row: int) -> dict[str, Any]:
        """Of one record."""
        return {
            "price": float(self.prices[row]),
            "at": (START + timedelta(minutes=int(self.minutes[row]))).isoformat(),
            "topic": self.topics[row],
            "name": self.names[row],
        }


Asked = tuple[dict[str, Any] | None, dict[str, Any] | None, Callable[[], int]]
"""Filters on metadata and documents, and the reference's count."""


def made(data: WordNet) -> Records:
    """Make the records."""
    rng = np.random.default_rng(SEED)
    picks = rng.integers(0, len(data.glosses), RECORDS)
    return Records(
        prices=np.round(rng.gamma(2.0, 50.0, RECORDS), 2),
        minutes=rng.integers(0, 5 * 365 * 24 * 60, RECORDS),
        topics=[data.metadatas[i]["lexname"] for i in picks.tolist()],
        names=[f"name {i:06d}" for i in rng.permutation(RECORDS).tolist()],
        texts=[f"{data.glosses[i]} no. {row}" for row, i in enumerate(picks.tolist())],
    )


def questions(records: Records) -> dict[str, Iterator[Asked]]:
    """Endless questions of each kind; no two of a kind are alike."""
    rng = np.random.default_rng(SEED + 1)
    prices, minutes, texts = records.prices, records.minutes, records.texts
    topics = np.array(records.topics)
    known = sorted(set(records.topics))
    vocabulary = sorted({word for text in texts[:2000] for word in re.findall(r"[a-z]{6,}", text)})
    rng.shuffle(vocabulary)
    word_sets = [frozenset(words(text)) for text in texts]

    def ranges() -> Iterator[Asked]:
        for n in itertools.count():
            low, high = np.sort(rng.gamma(2.0, 50.0, 2)) + n * 1e-7
            where = {"price": {"$gte": float(low), "$lt": float(high)}}
            yield where, None, partial(_within, prices, low, high)

    def moments() -> Iterator[Asked]:
        while True:
            low, high = np.sort(rng.integers(0, 5 * 365 * 24 * 60, 2))
            where = {"at": {"$gte": START + timedelta(minutes=int(low)), "$lt": START + timedelta(minutes=int(high))}}
            yield where, None, partial(_within, minutes, low, high)

    def unique_names() -> Iterator[Asked]:
        for n in rng.permutation(RECORDS).tolist():
            name = f"name {n:06d}"
            yield {"name": name}, None, partial(records.names.count, name)

    def combinations() -> Iterator[Asked]:
        for n in itertools.count():
            topic, low = known[n % len(known)], float(rng.gamma(2.0, 50.0)) + n * 1e-7
            where = {"$or": [{"topic": topic, "price": {"$gt": low}}, {"$not": {"topic": {"$ne": known[n % 7]}}}]}

            def count(topic: str = topic, low: float = low, other: str = known[n % 7]) -> int:
                return int((((topics == topic) & (prices > low)) | (topics == other)).sum())

            yield where, None, count

    def substrings() -> Iterator[Asked]:
        for word in itertools.cycle(vocabulary):
            yield None, {"$contains": word[1:]}, partial(_containing, texts, word[1:])

    def by_words() -> Iterator[Asked]:
        for one, two in zip(itertools.cycle(vocabulary), itertools.cycle(vocabulary[1:]), strict=False):
            where_document = {"$or": [{"$matches": one}, {"$matches": two}]}
            yield None, where_document, partial(_with_word, word_sets, one, two)

    return {
        "a range of numbers": ranges(),
        "a range of datetimes": moments(),
        "one of 100,000 names": unique_names(),
        "topics and numbers, and-or-not": combinations(),
        "a substring of documents (trigrams)": substrings(),
        "words of documents": by_words(),
    }


def _within(column: Any, low: float, high: float) -> int:
    return int(((column >= low) & (column < high)).sum())


def _containing(texts: Sequence[str], part: str) -> int:
    return sum(part in text for text in texts)


def _with_word(word_sets: Sequence[Set[str]], one: str, two: str) -> int:
    return sum(one in text or two in text for text in word_sets)


def measure(data: WordNet, rounds: int) -> Iterator[Row]:
    """Yield the rows of this section."""
    records = made(data)
    with VecraftClient(root=":memory:") as client:
        client.create_collection(CollectionSchema("c", 4))
        vectors = np.random.default_rng(SEED).normal(size=(RECORDS, 4)).astype(np.float32)
        for first in range(0, RECORDS, BATCH):
            rows = range(first, first + BATCH)
            client.upsert(
                "c", ids=[f"r{row:06d}" for row in rows], vectors=vectors[first : first + BATCH],
                metadatas=[records.metadata(row) for row in rows], documents=records.texts[first : first + BATCH],
            )  # fmt: skip
        client.checkpoint(index=True, timeout=600)
        for number, (name, kind) in enumerate(questions(records).items()):
            yield _counted(client, f"4b·{number + 1}", name, kind, rounds)


def _counted(client: VecraftClient, key: str, name: str, kind: Iterator[Asked], rounds: int) -> Row:
    for _ in range(5):
        where, where_document, reference = next(kind)
        found, expected = client.count("c", where, where_document), reference()
        if found != expected:
            raise AssertionError(f"{name}: {where or where_document} counts {found} records, but there are {expected}")

    def ours() -> Sample:
        asked = list(itertools.islice(kind, TIMES))
        return latencies(lambda i: client.count("c", asked[i][0], asked[i][1]), TIMES)

    def theirs() -> Sample:
        asked = list(itertools.islice(kind, 3))
        return latencies(lambda i: asked[i][2](), 3)

    row = alternate(Row(key, f"count by {name}, 100,000 records, p50", "ms", "low", None), rounds, ours, theirs)
    where, where_document, _ = next(kind)
    began = time.perf_counter()
    page = sum(1 for _ in client.scan("c", where, where_document, limit=PAGE))
    row.extra = {
        "below_a_millisecond": row.figures[0] < 1.0,
        "first_page": page,
        "first_page_ms": (time.perf_counter() - began) * 1000,
    }
    return row
