"""Reads a WordNet data set: the subset below ``examples/data``, or a larger one of the same layout."""

from __future__ import annotations

import gzip
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

EXAMPLE = Path(__file__).parent / "data" / "wordnet3k"
_FIELDS = ("lemma", "pos", "lexname", "gloss_len")


@dataclass(frozen=True)
class WordNet:
    """Glosses with their vectors, in row order, and queries.

    Attributes:
        name: Folder name, for reports.
        ids: Synset names, distinct.
        vectors: (n, 384) float32, unit length.
        metadatas: ``lemma``, ``pos``, ``lexname``, ``gloss_len`` of each.
        glosses: The definitions.
        queries: (q, 384) float32, unit length.
        query_texts: The sentences that the queries were made of.
    """

    name: str
    ids: list[str]
    vectors: npt.NDArray[np.float32]
    metadatas: list[dict[str, Any]]
    glosses: list[str]
    queries: npt.NDArray[np.float32]
    query_texts: list[str]


def load(folder: Path = EXAMPLE) -> WordNet:
    """Read the data set in ``folder``."""
    with gzip.open(folder / "records.jsonl.gz", "rt", encoding="utf-8") as lines:
        records = [json.loads(line) for line in lines]
    texts = [json.loads(line)["text"] for line in (folder / "queries.jsonl").read_text(encoding="utf-8").splitlines()]
    return WordNet(
        name=folder.name,
        ids=[str(record.get("synset", record["id"])) for record in records],
        vectors=_unit_length(np.load(folder / "vectors.npy")),
        metadatas=[{field: record[field] for field in _FIELDS} for record in records],
        glosses=[record["gloss"] for record in records],
        queries=_unit_length(np.load(folder / "queries.npy")),
        query_texts=texts,
    )


def _unit_length(stored: npt.NDArray[np.floating[Any]]) -> npt.NDArray[np.float32]:
    vectors = stored.astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    return vectors
