"""The vectors that are measured with: 20,000 WordNet glosses if they lie beside the repository, else the examples'."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt

from examples.wordnet import EXAMPLE, WordNet, load

LARGE = Path(__file__).resolve().parents[2] / "shared" / "data" / "wordnet20k"
K = 10


def load_data(folder: Path | None = None) -> WordNet:
    """Return the data set in ``folder``; by default the larger one that is there."""
    if folder is not None:
        return load(folder)
    return load(LARGE if LARGE.is_dir() else EXAMPLE)


def tenth_distances(data: WordNet) -> npt.NDArray[np.float32]:
    """Return the cosine distance of each query's true tenth neighbour, (q,) float32."""
    distances: npt.NDArray[np.float32] = 1.0 - data.queries @ data.vectors.T
    return np.partition(distances, K - 1, axis=1)[:, K - 1]


def recall(data: WordNet, distances: npt.ArrayLike, tenth: npt.NDArray[np.float32]) -> float:
    """Return recall@10 of distances (q, 10): equal glosses are equally right."""
    return float((np.asarray(distances) <= tenth[:, None] + 1e-4).mean())
