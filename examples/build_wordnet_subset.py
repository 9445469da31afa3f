"""Cuts the WordNet subset that ships with the examples out of a larger set of the same layout.

    python examples/build_wordnet_subset.py SOURCE TARGET [--rows 3000] [--queries 100] [--seed 7]

``SOURCE`` holds ``vectors.npy`` (n, 384) float16, ``records.jsonl.gz``, ``queries.npy`` (q, 384) float32,
``queries.jsonl``, ``gt.npy`` (q, 100) int32 and ``WORDNET-LICENSE.txt``. The subset takes the first queries, the five
glosses nearest to each of them, so that the example's answers read well, and fills up with seeded random rows. Same
source and seed, same bytes.
"""

from __future__ import annotations

import argparse
import gzip
import json
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

NEIGHBOURS_KEPT = 5


def build(source: Path, target: Path, rows: int, queries: int, seed: int) -> None:
    """Write the subset of ``rows`` records and ``queries`` queries to the folder ``target``."""
    vectors = np.load(source / "vectors.npy")
    nearest = np.load(source / "gt.npy")[:queries, :NEIGHBOURS_KEPT]
    with gzip.open(source / "records.jsonl.gz", "rt", encoding="utf-8") as lines:
        records = [json.loads(line) for line in lines]

    kept = np.unique(nearest)
    if len(kept) > rows:
        raise SystemExit(f"--rows must be at least {len(kept)}, the neighbours of {queries} queries, got {rows}")
    others = np.setdiff1d(np.arange(len(vectors)), kept)
    filling = np.random.default_rng(seed).choice(others, rows - len(kept), replace=False)
    chosen = np.sort(np.concatenate([kept, filling]))

    target.mkdir(parents=True, exist_ok=True)
    np.save(target / "vectors.npy", vectors[chosen])
    np.save(target / "queries.npy", np.load(source / "queries.npy")[:queries].astype(np.float16))
    fields = ("lemma", "pos", "lexname", "gloss_len", "gloss")
    text = json_lines({"id": records[row]["synset"]} | {name: records[row][name] for name in fields} for row in chosen)
    # No name and no time in the header: the same input gives the same file.
    with open(target / "records.jsonl.gz", "wb") as raw, gzip.GzipFile("", "wb", 9, raw, mtime=0) as packed:
        packed.write(text.encode())
    texts = [json.loads(line)["text"] for line in (source / "queries.jsonl").read_text().splitlines()[:queries]]
    (target / "queries.jsonl").write_text(json_lines({"text": text} for text in texts), encoding="utf-8")
    shutil.copyfile(source / "WORDNET-LICENSE.txt", target / "WORDNET-LICENSE.txt")


def json_lines(values: Iterable[dict[str, Any]]) -> str:
    """Return one line of JSON per value."""
    return "".join(json.dumps(value, ensure_ascii=False) + "\n" for value in values)


def main() -> None:
    """Parse the command line and build."""
    parser = argparse.ArgumentParser(description="Cut a WordNet subset for the examples.")
    parser.add_argument("source", type=Path)
    parser.add_argument("target", type=Path)
    parser.add_argument("--rows", type=int, default=3000)
    parser.add_argument("--queries", type=int, default=100)
    parser.add_argument("--seed", type=int, default=7)
    arguments = parser.parse_args()
    build(arguments.source, arguments.target, arguments.rows, arguments.queries, arguments.seed)


if __name__ == "__main__":
    main()
