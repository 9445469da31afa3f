"""Joining two rankings: by hand, and however the answers were cut."""

from __future__ import annotations

import pytest

from vecraft_data_model.messages import Hits
from vecraft_router.fusion import fuse, joined
from vecraft_router.merging import merge_hits, merge_texts

NEAR = Hits(["a", "b", "c"], [0.0, 1.0, 4.0], [b"a", b"b", b"c"], None, [0.0, 6.0, 3.0])
TEXTS = Hits(["b", "d", "c"], [1.0, 9.0, 4.0], [b"b", b"d", b"c"], None, [6.0, 4.0, 3.0])


def test_reciprocal_ranks_add_up() -> None:
    fused = fuse(NEAR, TEXTS, "rrf", 10)
    assert fused.ids == ["b", "c", "a", "d"]
    assert fused.scores == pytest.approx([1 / 62 + 1 / 61, 1 / 63 + 1 / 63, 1 / 61, 1 / 62])
    assert (fused.distances, fused.payloads) == ([1.0, 4.0, 0.0, 9.0], [b"b", b"c", b"a", b"d"])
    assert fuse(NEAR, TEXTS, "rrf", 2).ids == ["b", "c"]


def test_weights_count_normalised_scores() -> None:
    fused = fuse(NEAR, TEXTS, (0.5, 0.5), 10)
    assert fused.ids == ["b", "c", "a", "d"]
    assert fused.scores == pytest.approx([0.5 * 8 / 9 + 0.5, 0.5 * 5 / 9 + 0.25, 0.5, 0.5 * 4 / 6])
    assert fuse(NEAR, TEXTS, (1.0, 0.0), 10).ids == ["a", "b", "c", "d"]
    assert fuse(NEAR, TEXTS, (0.0, 1.0), 10).ids == ["b", "d", "c", "a"]


def test_ties_go_by_distance_then_by_id() -> None:
    near = Hits(["x", "y"], [1.0, 1.0], None, None, [0.0, 0.0])
    texts = Hits(["y", "x"], [1.0, 1.0], None, None, [2.0, 1.0])
    assert fuse(near, texts, "rrf", 2).ids == ["x", "y"]
    empty = Hits([], [], None, None, [])
    assert fuse(empty, empty, (0.3, 0.7), 5).ids == []
    assert fuse(near, empty, (0.3, 0.7), 5).ids == ["x", "y"]


def test_one_ranking_is_only_cut() -> None:
    assert joined([TEXTS], "rrf", 2).ids == ["b", "d"]
    assert joined([TEXTS], "rrf", 9) == TEXTS


def test_parts_of_shards_merge_by_score_or_distance() -> None:
    other = Hits(["e", "f"], [0.5, 2.0], [b"e", b"f"], None, [5.0, 3.0])
    merged = merge_texts([TEXTS, other], 4)
    assert (merged.ids, merged.scores) == (["b", "e", "d", "c"], [6.0, 5.0, 4.0, 3.0])
    assert merge_hits([NEAR, other], 3).ids == ["a", "e", "b"]
    assert merge_hits([NEAR, other], 3).scores == [0.0, 5.0, 6.0]
    assert merge_texts([Hits([], [], None, None, []), TEXTS], 2).payloads == [b"b", b"d"]
