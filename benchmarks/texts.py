"""§T: searches by words and by words and vector together, against SQLite's FTS5, bm25s and the parts one by one.

The texts are the glosses; the questions are sentences, of which any word counts, rare ones more (BM25, k1 = 1.2,
b = 0.75 everywhere). FTS5 gets the same words, joined by OR, and the tokenizer that comes nearest to ours (unicode61,
accents removed). Rankings are compared, too: how many of the ten best texts are the same; the scores differ, since each
library has its own idf, and ties fall differently.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import numpy as np

from benchmarks.data import K
from benchmarks.measure import Row, alternate, latencies
from benchmarks.peers import Skipped, library
from benchmarks.search import build_reference, fill, tune_client, tune_reference
from examples.wordnet import WordNet
from vecraft_data_model import QueryPacket
from vecraft_data_model.filters import words
from vecraft_db.client.vecraft_client import VecraftClient

Ranking = Callable[[str], list[int]]
"""From a question to the rows of the ten best texts, best first."""


def measure(data: WordNet, rounds: int) -> Iterator[Row]:
    """Yield the rows of this section."""
    texts = data.query_texts
    with VecraftClient(root=":memory:") as client:
        fill(client, data)
        tune_client(data, client)
        by_text = [QueryPacket(None, K, query_text=text, include=()) for text in texts]
        row_of = {name: row for row, name in enumerate(data.ids)}

        def ours(i: int) -> list[int]:
            return [row_of[hit.record_id] for hit in client.search("wordnet", by_text[i])]

        best = [set(ours(i)) for i in range(len(texts))]
        fts = full_text_table(data)

        def against(key: str, name: str, rank: Ranking) -> Row:
            row = Row(key, f"search by words, best 10, p50, against {name}", "ms", "low", None)
            row.extra = {"same_rows": _shared(best, [set(rank(text)) for text in texts])}
            theirs = partial(latencies, lambda i: rank(texts[i]), len(texts))
            return alternate(row, rounds, partial(latencies, ours, len(texts)), theirs)

        yield against("T1", "SQLite FTS5", fts)
        try:
            yield against("T1·bm25s", "bm25s", bm25s_index(data))
        except Skipped as reason:
            yield Row("T1·bm25s", f"skipped: {reason}", "", "low", None)
        yield _hybrid(client, data, rounds, fts)


def _hybrid(client: VecraftClient, data: WordNet, rounds: int, fts: Ranking) -> Row:
    """Both rankings and their fusion, against what bare hnswlib and FTS5 take one after the other, without a fusion."""
    index = build_reference(data)
    tune_reference(data, index)
    both = [
        QueryPacket(query, K, query_text=text, include=())
        for query, text in zip(data.queries, data.query_texts, strict=True)
    ]

    def apart(i: int) -> None:
        index.knn_query(data.queries[i : i + 1], K, num_threads=1)
        fts(data.query_texts[i])

    return alternate(
        Row("T2", "hybrid search (RRF), p50, against hnswlib and then FTS5", "ms", "low", None),
        rounds,
        lambda: latencies(lambda i: client.search("wordnet", both[i]), len(both)),
        lambda: latencies(apart, len(both)),
    )


def _shared(ours: list[set[int]], theirs: list[set[int]]) -> float:
    return float(np.mean([len(a & b) / max(1, len(a | b)) for a, b in zip(ours, theirs, strict=True)]))


def full_text_table(data: WordNet) -> Ranking:
    """Return how SQLite ranks the glosses, which it holds in memory."""
    connection = sqlite3.connect(":memory:")
    connection.execute("CREATE VIRTUAL TABLE t USING fts5(text, content='', tokenize='unicode61 remove_diacritics 2')")
    connection.executemany("INSERT INTO t (rowid, text) VALUES (?, ?)", enumerate(data.glosses))
    connection.execute("INSERT INTO t (t) VALUES ('optimize')")

    def rank(text: str) -> list[int]:
        asked = " OR ".join(f'"{word}"' for word in dict.fromkeys(words(text)))
        found = connection.execute("SELECT rowid FROM t WHERE t MATCH ? ORDER BY rank LIMIT ?", (asked, K))
        return [row for (row,) in found]

    return rank


def bm25s_index(data: WordNet) -> Ranking:
    """Return how bm25s ranks the glosses, by the same words."""
    bm25s: Any = library("bm25s", "bm25s")
    retriever = bm25s.BM25(k1=1.2, b=0.75)
    retriever.index([words(text) for text in data.glosses], show_progress=False)

    def rank(text: str) -> list[int]:
        asked = [list(dict.fromkeys(words(text)))]
        rows, scores = retriever.retrieve(asked, k=K, show_progress=False, n_threads=0)
        return [int(row) for row, score in zip(rows[0], scores[0], strict=True) if score > 0]

    return rank
