"""Draws vectors as points in the plane by t-SNE (van der Maaten, Hinton 2008), one picture per call.

It takes plain arrays: whoever calls it reads the records, at one snapshot. scikit-learn and matplotlib are the extra
``plots`` and are imported when a picture is asked for. matplotlib's global state (pyplot) is not touched, so pictures
may be drawn in several threads. A picture depends only on its input and ``random_state``.

t-SNE keeps neighbours together; distances between far groups, and their sizes, mean nothing. It is not a measurement.
"""

from __future__ import annotations

import io
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from vecraft_data_model.errors import InvalidDataException, TsnePlotGeneratingFailureException

if TYPE_CHECKING:
    from matplotlib.axes import Axes

POINTS_MAX = 20_000
COLOURS_MAX = 18
_OTHER = "other"
_MISSING = "none"


def field_of(metadata: Mapping[str, Any] | None, path: str) -> Any:
    """Return the value of a metadata field, dotted names reaching into nested objects; ``None`` when it is missing."""
    value: Any = metadata
    if metadata is not None and path in metadata:
        return metadata[path]
    for name in path.split("."):
        if not isinstance(value, Mapping) or name not in value:
            return None
        value = value[name]
    return value


def write_tsne_plot(
    vectors: npt.NDArray[np.float32],
    labels: Sequence[Any] | None = None,
    *,
    perplexity: float = 30,
    random_state: int = 42,
    outfile: str | os.PathLike[str] = "tsne.png",
    title: str | None = None,
    label_name: str | None = None,
) -> str:
    """Write the picture to ``outfile`` (replaced as a whole, never half written) and return its path.

    Args: as :func:`render_tsne`.

    Raises:
        TsnePlotGeneratingFailureException: Also when the file cannot be written.
    """
    png = render_tsne(
        vectors, labels, perplexity=perplexity, random_state=random_state, title=title, label_name=label_name
    )
    path = Path(outfile)
    partial = path.with_name(path.name + ".partial")
    try:
        partial.write_bytes(png)
        partial.replace(path)
    except OSError as error:
        raise TsnePlotGeneratingFailureException(
            f"cannot write the picture to {str(path)!r}: {error.strerror}", outfile=str(path)
        ) from error
    return str(path)


def render_tsne(
    vectors: npt.NDArray[np.float32],
    labels: Sequence[Any] | None = None,
    *,
    perplexity: float = 30,
    random_state: int = 42,
    title: str | None = None,
    label_name: str | None = None,
) -> bytes:
    """Return a PNG of the vectors in the plane.

    Args:
        vectors: (n, dim) float32, 2 ≤ n ≤ 20,000.
        labels: One value per vector. Up to 18 distinct values get a colour each and further ones share one; more
            than 18 different numbers get a colour scale.
        perplexity: About how many neighbours count, > 0; lowered to (n - 1) / 3 when there are few vectors.
        random_state: Seed, 0 to 2**32 - 1.
        title: Above the picture.
        label_name: What the labels are, for the legend.

    Raises:
        InvalidDataException: An argument is out of its range.
        TsnePlotGeneratingFailureException: scikit-learn or matplotlib is missing, or failed.
    """
    count = _checked(vectors, labels, perplexity, random_state)
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
        from sklearn.manifold import TSNE
    except ImportError as error:
        raise TsnePlotGeneratingFailureException(
            f"pictures need scikit-learn and matplotlib; {error.name} is missing: pip install 'vecraftdb[plots]'"
        ) from error

    try:
        points = TSNE(
            n_components=2,
            perplexity=min(float(perplexity), max(1.0, (count - 1) / 3)),
            init="pca" if min(vectors.shape) >= 2 else "random",
            random_state=random_state,
        ).fit_transform(np.ascontiguousarray(vectors, dtype=np.float32))
    except (ValueError, MemoryError, FloatingPointError) as error:
        raise TsnePlotGeneratingFailureException(f"t-SNE of {count} vectors failed: {error}") from error

    figure = Figure(figsize=(10, 8), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    _scatter(axes, points, labels, label_name)
    axes.set_xticks([])
    axes.set_yticks([])
    axes.set_title(title or f"t-SNE of {count:,} vectors")
    picture = io.BytesIO()
    figure.savefig(picture, format="png", metadata={"Software": None})
    return picture.getvalue()


def _checked(vectors: npt.NDArray[np.float32], labels: Sequence[Any] | None, perplexity: float, seed: int) -> int:
    """Return the number of vectors; raise ``InvalidDataException`` for what is out of range."""
    if vectors.ndim != 2 or not 2 <= len(vectors) <= POINTS_MAX:
        raise InvalidDataException(
            f"a t-SNE plot takes from 2 to {POINTS_MAX:,} vectors, got an array of shape {vectors.shape}"
        )
    if labels is not None and len(labels) != len(vectors):
        raise InvalidDataException(f"there must be one label per vector, got {len(labels)} for {len(vectors)} vectors")
    number = isinstance(perplexity, int | float) and not isinstance(perplexity, bool)
    if not number or not 0 < perplexity < float("inf"):
        raise InvalidDataException(f"perplexity must be a number above 0, got {perplexity!r}")
    if isinstance(seed, bool) or not isinstance(seed, int) or not 0 <= seed < 2**32:
        raise InvalidDataException(f"random_state must be an integer from 0 to 2**32 - 1, got {seed!r}")
    return len(vectors)


def _scatter(axes: Axes, points: npt.NDArray[np.float32], labels: Sequence[Any] | None, name: str | None) -> None:
    """Draw the points, coloured by label: a colour per value, or a scale for many different numbers."""
    size = float(np.clip(20_000 / len(points), 4, 40))
    if labels is None:
        axes.scatter(points[:, 0], points[:, 1], s=size, alpha=0.8, linewidths=0)
        return
    numeric = all(isinstance(label, int | float) and not isinstance(label, bool) for label in labels)
    if numeric and len(set(labels)) > COLOURS_MAX:
        values = np.array(labels, dtype=np.float64)
        drawn = axes.scatter(points[:, 0], points[:, 1], c=values, s=size, alpha=0.8, linewidths=0, cmap="viridis")
        axes.figure.colorbar(drawn, ax=axes, label=name or "")
        return

    texts = np.array([_MISSING if label is None else str(label) for label in labels], dtype=object)
    counts = Counter(texts.tolist())
    shown = [text for text, _ in counts.most_common(COLOURS_MAX if len(counts) <= COLOURS_MAX else COLOURS_MAX - 1)]
    numbers = {str(label): label for label in labels} if numeric else {}
    shown.sort(key=lambda text: (numbers.get(text, 0), text))
    from matplotlib import colormaps

    # Grey is kept for the rest: numbers 14 and 15 of tab20 are grey.
    few = len(counts) <= 10
    palette = colormaps["tab10" if few else "tab20"]
    numbers_of_colours = range(10) if few else [*range(14), *range(16, 20)]
    rest = ~np.isin(texts, shown)
    if rest.any():
        label = f"{_OTHER} ({int(rest.sum()):,})"
        axes.scatter(points[rest, 0], points[rest, 1], s=size, color="0.8", linewidths=0, label=label)
    for text, number in zip(shown, numbers_of_colours, strict=False):
        chosen = texts == text
        colour = palette(number)
        axes.scatter(points[chosen, 0], points[chosen, 1], s=size, color=colour, alpha=0.85, linewidths=0, label=text)
    axes.legend(title=name, loc="center left", bbox_to_anchor=(1.0, 0.5), markerscale=2, frameon=False)
