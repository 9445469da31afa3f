"""What a search sees of a collection."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np
import numpy.typing as npt

from vecraft_data_model.filters import DocumentFilter, Filter
from vecraft_data_model.schema import CollectionSchema
from vecraft_shard.indexes.hnsw import HnswIndex
from vecraft_shard.indexes.hot import HotFilters
from vecraft_shard.indexes.rowset import RowSet
from vecraft_shard.indexes.tail import VectorSource

Float32Array = npt.NDArray[np.float32]
Int64Array = npt.NDArray[np.int64]
BoolArray = npt.NDArray[np.bool_]


class SearchView(Protocol):
    """One collection at one snapshot. Nothing in it changes while a search runs: the owner holds the latch.

    Attributes:
        schema: Of the collection.
        snapshot: Row ``r`` is seen iff ``begin[r] <= snapshot < end[r]``.
        rows: Rows there are; ``begin``, ``end``, ``ids``, ``norms`` are at least as long.
        indexed: Rows below are in ``hnsw``.
        column: Their vectors.
        norms: Euclidean norms of the rows; without them a scan computes them on the way.
        hnsw: The graph; None: there is none.
        begin, end: Commit timestamps, int64.
        ids: Record ids.
        changes: How often a version was added or ended.
        alive: Rows whose ``end`` is infinite.
        all_visible: Whether the snapshot sees all rows.
        ef: Search depth where a request asks for none.
        hot_filters: What is known of filters used before; None: nothing is kept.
    """

    schema: CollectionSchema
    snapshot: int
    rows: int
    indexed: int
    column: VectorSource
    norms: Float32Array | None
    hnsw: HnswIndex | None
    begin: Int64Array
    end: Int64Array
    ids: Sequence[str]
    changes: int
    alive: int
    all_visible: bool
    ef: int
    hot_filters: HotFilters | None

    def matching(self, where: Filter | None, where_document: DocumentFilter | None) -> RowSet | None:
        """The rows, of any version, that match; None without a filter."""
        ...


def seen(view: SearchView, rows: Int64Array | slice) -> BoolArray:
    """For each of these rows: whether the snapshot sees it."""
    visible: BoolArray = (view.begin[rows] <= view.snapshot) & (view.end[rows] > view.snapshot)
    return visible
