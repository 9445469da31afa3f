"""Walks that are restricted to a mask: what they find, what the mask leaves out, and for whom it may."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st
from random_examples import examples

from vecraft_data_model.hlc import INFINITY_TS
from vecraft_shard.indexes.hnsw import HnswIndex
from vecraft_shard.indexes.hot import HotFilter, HotFilters
from vecraft_shard.indexes.rowset import RowSet
from vecraft_shard.indexes.walk_mask import WalkMask

DIM = 16
Float32Array = npt.NDArray[np.float32]


def vectors(n: int, seed: int = 0) -> Float32Array:
    return np.random.default_rng(seed).normal(size=(n, DIM)).astype(np.float32)


def graph(data: Float32Array, metric: str = "l2") -> HnswIndex:
    index = HnswIndex(DIM, metric)
    index.add(data)
    return index


@pytest.mark.parametrize("metric", ["l2", "cosine", "ip"])
def test_a_restricted_walk_finds_the_nearest_of_what_is_allowed(metric: str) -> None:
    data, queries = vectors(2000), vectors(20, seed=2)
    index = graph(data, metric)
    for share in (0.02, 0.3, 1.0):
        inside = np.random.default_rng(3).random(2000) < share
        labels, distances, visited = index.search_allowed(queries, 40, inside.tobytes())
        if share == 0.02:
            assert np.count_nonzero(inside) < 50, "nearly all that is allowed is asked for"
        assert labels.shape == distances.shape == (20, 40) and labels.dtype == np.int64
        assert inside[labels].all() and (np.diff(distances, axis=1) >= 0).all()
        assert 20 * 40 <= visited <= 20 * 2000
        unit = data / np.linalg.norm(data, axis=1, keepdims=True)
        measured = {
            "l2": ((data[None] - queries[:, None]) ** 2).sum(axis=2),
            "ip": -queries @ data.T,
            "cosine": -queries @ unit.T,
        }[metric]
        expected = np.argsort(np.where(inside, measured, np.inf), axis=1)[:, :10]
        right = sum(len(set(a) & set(b)) for a, b in zip(labels[:, :10].tolist(), expected.tolist(), strict=True))
        assert right >= 0.95 * 200


def test_queries_that_find_too_few_have_empty_lines_and_harm_no_others() -> None:
    data = np.concatenate([vectors(500), vectors(500, seed=1) + 1000])
    index = graph(data)
    allowed = np.zeros(1000, np.bool_)
    allowed[:30] = True
    labels, distances, _ = index.search_allowed(data[[0, 900]], 31, allowed.tobytes())
    assert (labels == -1).all() and np.isinf(distances).all()
    allowed[30:40] = True
    labels, _, visited = index.search_allowed(data[[0, 900]], 31, allowed.tobytes())
    assert labels[0, 0] == 0 and (labels[0] >= 0).all() and visited > 31
    labels, _, _ = index.search_allowed(data[:1], 41, allowed.tobytes())
    assert (labels == -1).all()


def test_a_mask_that_is_too_short_is_refused_before_the_walk() -> None:
    index = graph(vectors(100))
    with pytest.raises(ValueError, match="99 bytes for 100 labels"):
        index.search_allowed(vectors(1), 5, bytes(99))


@examples(200)
@given(seed=st.integers(0, 2**32 - 1), snapshot=st.integers(0, 60), later=st.integers(0, 60), filtered=st.booleans())
def test_a_mask_leaves_out_nothing_that_counts_for_any_snapshot_it_serves(
    seed: int, snapshot: int, later: int, filtered: bool
) -> None:
    rng = np.random.default_rng(seed)
    begin = np.sort(rng.integers(0, 60, 300))
    end = np.where(rng.random(300) < 0.5, begin + rng.integers(1, 30, 300), INFINITY_TS)
    indexed = int(rng.integers(1, 300))
    known = end > snapshot  # the ends of these come after the mask was made
    seen_then = np.where(known, INFINITY_TS, end)
    matching = RowSet.of_mask(rng.random(300) < 0.4) if filtered else None
    mask = WalkMask.of(matching, begin, seen_then, snapshot, 300, indexed, changes=7)
    inside = np.frombuffer(mask.allowed, np.bool_)
    matches = np.ones(300, np.bool_) if matching is None else matching.mask(300)
    at_once = matches & (begin <= snapshot) & (end > snapshot)
    assert mask.serves(snapshot, indexed, 7) and inside[:indexed][at_once[:indexed]].all()
    assert not inside[:indexed][~matches[:indexed]].any(), "what does not match is never worth a place"
    assert not inside[:indexed][seen_then[:indexed] <= snapshot].any(), "nor what has ended"
    assert inside[indexed:].all(), "of later rows nothing is known"
    if mask.serves(later, indexed, 7):
        counts = matches & (begin <= later) & (end > later)
        assert inside[:indexed][counts[:indexed]].all()


def test_masks_are_made_anew_after_changes_and_for_the_past() -> None:
    begin, end = np.arange(1, 1001), np.full(1000, INFINITY_TS)
    mask = WalkMask.of(None, begin, end, 1000, 1000, 1000, changes=1000)
    assert mask.count == 1000 and mask.serves(2000, 1000, 1062) and not mask.serves(2000, 1000, 1063)
    assert mask.serves(5, 1000, 1000), "it leaves nothing out"
    assert not mask.serves(1000, len(mask.allowed) + 1, 1000)
    end[:400] = 1500
    mask = WalkMask.of(None, begin, end, 1500, 1000, 1000, changes=1400)
    assert mask.count == 600 and mask.serves(1500, 1000, 1400) and not mask.serves(1499, 1000, 1400)
    past = WalkMask.of(None, begin, end, 500, 1000, 1000, changes=1400)
    assert past.count == 500 and past.serves(500, 1000, 1400) and not past.serves(501, 1000, 1400)


def test_masks_are_dropped_when_they_take_too_much() -> None:
    hot_filters = HotFilters()
    kept = [hot_filters.used(number) for number in range(6)]
    for hot in kept:
        hot_filters.keep_mask(hot, WalkMask(bytes(1 << 20), 0, INFINITY_TS, 1, 0), 1 << 20, 4)
    assert hot_filters.nbytes == 4 << 20
    assert [hot.mask is None for hot in kept] == [True, True, False, False, False, False]


def test_a_mask_may_be_dropped_while_another_thread_counts_its_bytes() -> None:
    class Dropped(HotFilter):
        """A filter whose mask a search drops as soon as somebody has looked at it."""

        def __init__(self, mask: WalkMask) -> None:
            self.there: list[WalkMask] = []
            super().__init__()
            self.there.append(mask)

        @property
        def mask(self) -> WalkMask | None:  # type: ignore[override]
            return self.there.pop() if self.there else None

        @mask.setter
        def mask(self, mask: WalkMask | None) -> None:
            assert mask is None

    assert Dropped(WalkMask(bytes(7), 0, 1, 7, 0)).nbytes == 7
