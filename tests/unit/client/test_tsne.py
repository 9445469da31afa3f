"""The t-SNE picture: real neighbourhoods, the same bytes each time, and clear refusals."""

from __future__ import annotations

import builtins
import io
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from vecraft_data_model.errors import InvalidDataException, TsnePlotGeneratingFailureException
from vecraft_db.tsne import field_of, render_tsne, write_tsne_plot


@pytest.fixture(scope="module")
def blobs() -> npt.NDArray[np.float32]:
    """60 vectors of dimension 16 in three far groups."""
    rng = np.random.default_rng(5)
    centres = rng.normal(size=(3, 16)) * 20
    return (np.repeat(centres, 20, axis=0) + rng.normal(size=(60, 16))).astype(np.float32)


def pixels(png: bytes) -> npt.NDArray[np.float64]:
    """Decode a PNG to (height, width, channels) in 0..1."""
    from matplotlib.image import imread

    return np.asarray(imread(io.BytesIO(png), format="png"), dtype=np.float64)


def test_the_picture_is_written_whole_and_is_the_same_each_time(blobs: npt.NDArray[np.float32], tmp_path: Path) -> None:
    path = write_tsne_plot(blobs, ["a", "b", "c"] * 20, outfile=tmp_path / "plot.png", label_name="kind")
    assert path == str(tmp_path / "plot.png")
    png = Path(path).read_bytes()
    assert png.startswith(b"\x89PNG\r\n")
    assert png == render_tsne(blobs, ["a", "b", "c"] * 20, label_name="kind")
    assert list(tmp_path.iterdir()) == [tmp_path / "plot.png"]


def test_groups_apart_in_space_stay_apart_in_the_picture(blobs: npt.NDArray[np.float32]) -> None:
    """Each colour's points lie together: their spread is small against the distance between the colours' centres."""
    image = pixels(render_tsne(blobs, [0] * 20 + [1] * 20 + [2] * 20))[:, :, :3]
    image = image[:, : int(image.shape[1] * 0.925)]  # without the legend
    centres, spreads = [], []
    for colour in ((0.122, 0.467, 0.706), (1.0, 0.498, 0.055), (0.173, 0.627, 0.173)):  # tab10
        near = np.argwhere(np.abs(image - colour).max(axis=2) < 0.25)
        assert len(near) > 100
        centres.append(near.mean(axis=0))
        spreads.append(near.std(axis=0).mean())
    gaps = [float(np.linalg.norm(centres[a] - centres[b])) for a, b in ((0, 1), (0, 2), (1, 2))]
    assert min(gaps) > 3 * max(spreads)


def test_many_numbers_make_a_scale_and_many_names_share_a_colour(blobs: npt.NDArray[np.float32]) -> None:
    scale = render_tsne(blobs, [float(i) for i in range(60)], label_name="length")
    names = render_tsne(blobs, [f"name-{i}" for i in range(60)])
    assert scale != names != render_tsne(blobs)


@pytest.mark.parametrize("count", [2, 3, 4])
def test_a_handful_of_vectors_is_enough(count: int) -> None:
    assert render_tsne(np.eye(count, 8, dtype=np.float32)).startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("vectors", "arguments", "named"),
    [
        (np.zeros((1, 4), np.float32), {}, "from 2 to 20,000"),
        (np.zeros(4, np.float32), {}, r"shape \(4,\)"),
        (np.eye(4, dtype=np.float32), {"perplexity": 0}, "perplexity must be a number above 0, got 0"),
        (np.eye(4, dtype=np.float32), {"perplexity": "5"}, "perplexity"),
        (np.eye(4, dtype=np.float32), {"perplexity": float("nan")}, "perplexity"),
        (np.eye(4, dtype=np.float32), {"random_state": -1}, "random_state"),
        (np.eye(4, dtype=np.float32), {"labels": ["a"]}, "one label per vector, got 1 for 4"),
    ],
)
def test_bad_input_is_named(vectors: npt.NDArray[np.float32], arguments: dict[str, Any], named: str) -> None:
    with pytest.raises(InvalidDataException, match=named):
        render_tsne(vectors, **arguments)


def test_a_folder_that_is_not_there_is_named(blobs: npt.NDArray[np.float32], tmp_path: Path) -> None:
    with pytest.raises(TsnePlotGeneratingFailureException, match=r"nowhere.*No such file"):
        write_tsne_plot(blobs, outfile=tmp_path / "nowhere" / "plot.png")


def test_a_missing_library_says_how_to_install_it(
    blobs: npt.NDArray[np.float32], monkeypatch: pytest.MonkeyPatch
) -> None:
    real = builtins.__import__

    def without_sklearn(name: str, *rest: Any) -> Any:
        if name.startswith("sklearn"):
            raise ImportError(f"No module named {name!r}", name="sklearn")
        return real(name, *rest)

    monkeypatch.setattr(builtins, "__import__", without_sklearn)
    with pytest.raises(
        TsnePlotGeneratingFailureException, match=r"sklearn is missing: pip install .vecraftdb\[plots\]"
    ):
        render_tsne(blobs)


def test_dotted_names_reach_into_objects() -> None:
    metadata = {"a": {"b": 1}, "x.y": 2}
    assert (field_of(metadata, "a.b"), field_of(metadata, "x.y"), field_of(metadata, "a.c"), field_of(None, "a")) == (
        1,
        2,
        None,
        None,
    )
