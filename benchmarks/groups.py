"""§G: searches that group by a metadata field, against the same searches without groups.

``lexname`` (some forty topics, one of them common) is what is grouped by. The reference is a search for as many hits as
the grouped one returns: the ratio is what grouping costs. Answers are compared with exact ones, group by group.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import numpy as np

from benchmarks.data import K
from benchmarks.measure import Row, alternate, latencies
from benchmarks.search import fill, tune_client
from examples.wordnet import WordNet
from vecraft_data_model import QueryPacket
from vecraft_db.client.vecraft_client import VecraftClient

FIELD = "lexname"


def measure(data: WordNet, rounds: int) -> Iterator[Row]:
    """Yield the rows of this section."""
    with VecraftClient(root=":memory:") as client:
        fill(client, data)
        tune_client(data, client)
        for size in (1, 3):
            grouped = [QueryPacket(query, K, group_by=FIELD, group_size=size, include=()) for query in data.queries]
            plain = [QueryPacket(query, K * size, include=()) for query in data.queries]
            row = Row(f"G{size}", f"{K} groups, best {size} of each, p50, against {K * size} hits", "ms", "low", None)
            row.extra = {"recall": _recall(client, data, size)}
            yield alternate(
                row,
                rounds,
                partial(latencies, partial(_ask, client, grouped), len(grouped)),
                partial(latencies, partial(_ask, client, plain), len(plain)),
            )


def _ask(client: VecraftClient, queries: list[QueryPacket], number: int) -> None:
    client.search("wordnet", queries[number])


def _recall(client: VecraftClient, data: WordNet, size: int) -> float:
    """The share of the exact answers' records that are found; what is as near in the same group is as right."""
    found = total = 0
    topics = np.array([metadata[FIELD] for metadata in data.metadatas])
    topic_of = dict(zip(data.ids, topics.tolist(), strict=True))
    for query in data.queries:
        distances = 1.0 - data.vectors @ query
        best = {topic: np.sort(distances[topics == topic])[:size] for topic in set(topics.tolist())}
        nearest = dict(sorted(best.items(), key=lambda item: float(item[1][0]))[:K])
        total += sum(map(len, nearest.values()))
        for hit in client.search("wordnet", QueryPacket(query, K, group_by=FIELD, group_size=size, include=())):
            wanted = nearest.get(topic_of[hit.record_id])
            found += wanted is not None and hit.distance <= wanted[-1] + 1e-4
    return float(found / total)
