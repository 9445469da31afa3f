"""The graph over a collection's settled rows: hnswlib, with what it leaves out.

Rows ``[0, count)`` are in the graph, the label of each is its row number, and only ``add`` at the end makes it longer.

hnswlib trusts its callers, so nothing unchecked reaches it: not a query of another dimension (it would read beyond the
array), not NaN, not a file that was damaged (it would load it, or crash). Four habits of it shape this module:

* The search depth ``ef`` is one setting of the whole index, so that two threads asking for different depths would race.
  But a search for ``k`` neighbours goes ``max(ef, k)`` deep: the setting is left at 1, every search asks for as many
  neighbours as it wants depth, and takes the first ``k`` of them. No lock is needed.
* If it finds fewer neighbours than asked for (a thin graph) it raises instead of answering: then it is
  asked for fewer, at a greater depth.
* Its predicate filters are called once per visited node, with the interpreter's lock taken each time. A function in
  Python would cost more than the walk; looking up a byte of a ``bytes``, which runs no Python code, costs a tenth of a
  microsecond. More threads than one would only wait for that lock.
* If the predicate raises, hnswlib loses the memory of the walk. So the mask must have a byte for every label.

Not for use during ``add``: the owner's latch keeps searches out. Deletions and versions are the caller's business, too.

Saved graphs leave out the vectors (:mod:`vecraft_shard.indexes.graph_file`): whoever loads one hands them in again.
Under cosine hnswlib keeps them normalised, by a sum in single precision; normalised anew they differ in the last bits.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import lru_cache
from pathlib import Path

import hnswlib
import numpy as np
import numpy.typing as npt
import xxhash

from vecraft_data_model.distances import norms as norms_of
from vecraft_data_model.errors import CorruptionError, InvalidDataException, UnsupportedMetricException
from vecraft_shard.disk import failure
from vecraft_shard.indexes.graph_file import is_packed, pack, unpack
from vecraft_shard.indexes.huge_pages import HugePages

Float32Array = npt.NDArray[np.float32]
Int64Array = npt.NDArray[np.int64]

_SPACES = {"l2": "l2", "cosine": "cosine", "ip": "ip"}
_GROWTH = 1.5
_INITIAL_CAPACITY = 1024
_SEED = 100
_READ_BYTES = 1 << 20
_TINY_SQUARE = 1e-30
_SURELY_LONG = 2e-15
"""One number of this size already makes a square above the tiny ones."""
_SHORTEST = np.float32(1e-45)


class HnswIndex:
    """One graph.

    Args:
        dim: Length of the vectors.
        metric: ``l2`` (squared Euclidean), ``cosine`` (1 − cosine) or ``ip`` (1 − inner product).
        M: Links per node and level.
        ef_construction: Depth of the searches that place a new node.

    Raises:
        UnsupportedMetricException: Any other metric.
    """

    def __init__(self, dim: int, metric: str, M: int = 16, ef_construction: int = 200) -> None:
        if metric not in _SPACES:
            raise UnsupportedMetricException(f"metric must be one of {', '.join(_SPACES)}, got {metric!r}")
        self.dim = dim
        self.metric = metric
        self.M = M
        self.ef_construction = ef_construction
        self.count = 0
        """Rows in the graph."""
        self.pages = HugePages()
        self._index = self._fresh()  # takes room (2.6 MB of locks alone) only when the first rows come

    def add(self, vectors: npt.NDArray[np.floating], threads: int = 1) -> None:
        """Append the next rows: (n, dim), any float type, finite (and not zero under cosine)."""
        batch = self._checked(vectors)
        if not len(batch):
            return
        needed = self.count + len(batch)
        if not self.count:
            self._index = self._fresh()
            capacity = max(needed, _INITIAL_CAPACITY)
            with self.pages.taking_room(self._bytes_of(capacity)):
                self._index.init_index(capacity, M=self.M, ef_construction=self.ef_construction, random_seed=_SEED)
            self._configure()
        elif needed > self._index.get_max_elements():
            capacity = max(needed, int(self._index.get_max_elements() * _GROWTH))
            with self.pages.taking_room(self._bytes_of(capacity)):
                self._index.resize_index(capacity)
        self._index.add_items(batch, np.arange(self.count, needed), num_threads=threads)
        self.count = needed

    def search(self, queries: Float32Array, k: int, ef: int, threads: int = 1) -> tuple[Int64Array, Float32Array]:
        """Find the nearest rows.

        Args:
            queries: (q, dim) float32, C-contiguous, finite.
            k: At most so many neighbours each.
            ef: Depth: how many candidates are kept while searching; at least ``k`` is used.
            threads: To spread the queries over.

        Returns:
            Labels (q, k′) int64 and distances (q, k′) float32, nearest first; k′ ≤ k is the same for all queries. A
            query that finds fewer has its line filled up with label −1, distance inf.
        """
        depth = min(max(k, ef), self.count)
        if depth <= 0:
            return np.empty((len(queries), 0), np.int64), np.empty((len(queries), 0), np.float32)
        queries = self._askable(queries)
        try:
            labels, distances = self._index.knn_query(queries, depth, threads)
        except RuntimeError:
            labels, distances = self._search_thin(queries, min(k, self.count), depth)
        labels = labels.view(np.int64)
        if labels.shape[1] > k:
            return labels[:, :k], distances[:, :k]
        return labels, distances

    def search_allowed(
        self, queries: Float32Array, count: int, allowed: bytes
    ) -> tuple[Int64Array, Float32Array, int]:
        """Walk until so many allowed rows are found that nothing nearer is left to look at.

        Args:
            queries: As for :meth:`search`.
            count: How many allowed rows to find; the search depth, but of allowed rows.
            allowed: For each label one byte: 0 for those that are passed through but not answered.

        Returns:
            Labels (q, count) int64 and distances (q, count) float32, nearest first, and how many nodes were visited in
            all. A query for which the walk met fewer allowed rows has a line of label −1, distance inf.

        Raises:
            ValueError: ``allowed`` is too short.
        """
        if len(allowed) < self.count:
            raise ValueError(f"the mask has {len(allowed)} bytes for {self.count} labels")
        queries = self._askable(queries)
        # Without a cache, this wrapper does nothing but count the calls, and needs no Python code for it.
        visit = lru_cache(maxsize=0)(allowed.__getitem__)
        labels = np.full((len(queries), count), -1, np.int64)
        distances = np.full((len(queries), count), np.inf, np.float32)
        try:
            found, measured = self._index.knn_query(queries, count, 1, visit)
            labels, distances = found.view(np.int64), measured
        except RuntimeError:  # at least one query found fewer: the others are asked alone
            for i in range(len(queries) if len(queries) > 1 else 0):
                with suppress(RuntimeError):
                    found, measured = self._index.knn_query(queries[i : i + 1], count, 1, visit)
                    labels[i], distances[i] = found[0].view(np.int64), measured[0]
        return labels, distances, visit.cache_info().misses

    # ---------------------------------------------------------------------------------------------- files

    def save(self, path: str | Path) -> int:
        """Write the graph to a file, synced. Returns its checksum, to be kept elsewhere.

        hnswlib's own file is written on the way, beside it. The checksum is the XXH3-64 of the whole file without its
        highest bit, so that SQLite can hold it.

        Raises:
            StorageFullError: There is no room for it; what is there of the file is of no use.
            StorageFailureException: The disk failed.
        """
        file, size = Path(path), self._index.index_file_size()
        with _beside(file) as whole:
            self._index.save_index(os.fspath(whole))
            written = whole.stat().st_size
            if written != size:  # hnswlib does not look whether it could write it
                raise OSError(errno.ENOSPC, f"hnswlib could write {written} of {size} bytes")
            if not pack(whole, file, self.dim):
                whole.replace(file)
            return _digest(file, sync=True)

    def load(
        self, path: str | Path, checksum: int, count: int, vectors: Callable[[int, int], npt.NDArray[np.floating]]
    ) -> None:
        """Replace the contents by a saved graph.

        Args:
            path: The file. hnswlib's own is written beside it for as long as this takes.
            checksum: What :meth:`save` returned.
            count: Rows that it holds.
            vectors: Returns those of the rows ``[first, last)`` that were added, (last − first, dim), any float type.

        Raises:
            CorruptionError: The file is missing, is not what was saved, or holds something else; nothing has changed.
            StorageFullError: There is no room for hnswlib's own file; nothing has changed.
            StorageFailureException: The disk failed.
        """
        file = Path(path)
        verify_saved(file, checksum)
        with _beside(file) as whole:
            if is_packed(file):
                unpack(file, whole, self.dim, lambda first, last: self._as_held(vectors(first, last)))
                index = self._read(whole, count)
            else:
                index = self._read(file, count)
        self._index, self.count = index, count
        self._configure()

    # --------------------------------------------------------------------------------------------- inside

    def _read(self, file: Path, count: int) -> hnswlib.Index:
        index = self._fresh()
        try:
            with self.pages.taking_room(self._bytes_of(count)):
                index.load_index(os.fspath(file), max_elements=count)
        except RuntimeError as error:
            raise CorruptionError(f"{file}: hnswlib does not accept the index file: {error}", file=str(file)) from error
        if index.get_current_count() != count or index.M != self.M:
            raise CorruptionError(
                f"{file}: holds {index.get_current_count()} rows with M={index.M}, expected {count} with M={self.M}",
                file=str(file),
            )
        return index

    def _as_held(self, vectors: npt.NDArray[np.floating]) -> Float32Array:
        """Vectors as hnswlib holds them once they were added."""
        batch = self._checked(vectors)
        if self.metric != "cosine":
            return batch
        held: Float32Array = batch / (np.sqrt(np.vecdot(batch, batch))[:, None] + _SHORTEST)
        return held

    def _askable(self, queries: Float32Array) -> Float32Array:
        """Queries as hnswlib may be asked; raises if they have another shape."""
        if queries.dtype != np.float32 or queries.ndim != 2 or queries.shape[1] != self.dim:
            raise InvalidDataException(
                f"queries must be float32 of shape (q, {self.dim}), got {queries.dtype} of shape {queries.shape}"
            )
        return _lengthened(queries) if self.metric == "cosine" else queries

    def _bytes_of(self, rows: int) -> int:
        """About how much room so many rows take: vectors and links of the lowest level."""
        return rows * (4 * self.dim + 8 * self.M)

    def _fresh(self) -> hnswlib.Index:
        return hnswlib.Index(space=_SPACES[self.metric], dim=self.dim)

    def _configure(self) -> None:
        self._index.set_ef(1)
        self._index.set_num_threads(1)

    def _checked(self, vectors: npt.NDArray[np.floating]) -> Float32Array:
        batch = np.ascontiguousarray(vectors, np.float32)
        if batch.ndim != 2 or batch.shape[1] != self.dim:
            raise InvalidDataException(f"vectors must have shape (n, {self.dim}), got {batch.shape}")
        if not np.isfinite(batch).all():
            raise InvalidDataException("vectors must be finite: NaN would corrupt the graph")
        return _lengthened(batch) if self.metric == "cosine" else batch

    def _search_thin(self, queries: Float32Array, k: int, depth: int) -> tuple[npt.NDArray[np.uint64], Float32Array]:
        """Search where some query finds fewer than ``depth`` rows: each for itself, for as many as it can reach."""
        found = [self._search_one(queries[i : i + 1], k, depth) for i in range(len(queries))]
        width = max(len(labels) for labels, _ in found)
        all_labels = np.full((len(found), width), np.uint64(2**64 - 1))
        all_distances = np.full((len(found), width), np.inf, np.float32)
        for i, (labels, distances) in enumerate(found):
            all_labels[i, : len(labels)], all_distances[i, : len(labels)] = labels, distances
        return all_labels, all_distances

    def _search_one(self, query: Float32Array, k: int, depth: int) -> tuple[npt.NDArray[np.uint64], Float32Array]:
        # A shortfall means that the part of the graph that can be reached is used up: what is left is to ask for less.
        # Halving keeps the number of attempts small.
        while depth > 0:
            try:
                labels, distances = self._index.knn_query(query, depth, 1)
                return labels[0], distances[0]
            except RuntimeError:
                depth = max(k, depth // 2) if depth > k else depth // 2
        return np.empty(0, np.uint64), np.empty(0, np.float32)


def _lengthened(vectors: Float32Array) -> Float32Array:
    """Make very short vectors unit ones: hnswlib, which normalises under cosine, would lose them to underflow."""
    if len(vectors) == 1:
        # The common query is told by its first number. ``dot`` would let go of the interpreter's lock, and a search
        # that other threads run beside has to wait for it then.
        if abs(vectors.item(0)) >= _SURELY_LONG:
            return vectors
        shortest = vectors[0] @ vectors[0]
    else:
        shortest = np.vecdot(vectors, vectors).min(initial=np.inf)
    if shortest >= _TINY_SQUARE:
        return vectors
    return np.divide(vectors, np.maximum(norms_of(vectors), _SHORTEST)[:, None], dtype=np.float32)


def verify_saved(path: Path, checksum: int) -> None:
    """Check the file of a saved graph.

    Raises:
        CorruptionError: It is missing, or not what was saved.
    """
    try:
        found = _digest(path)
    except OSError as error:
        raise CorruptionError(f"{path}: the index file cannot be read ({error})", file=str(path)) from error
    if found != checksum:
        raise CorruptionError(
            f"{path}: the index file does not match its checksum: {checksum:016x} was saved, {found:016x} is there",
            file=str(path),
        )


@contextmanager
def _beside(path: Path) -> Iterator[Path]:
    """Where hnswlib's own form of a saved graph is written; removed in the end. Raises what a failing disk means."""
    whole = path.with_name(f"{path.name}.whole")
    try:
        try:
            yield whole
        finally:
            whole.unlink(missing_ok=True)
    except OSError as error:
        raise failure("write or remove", whole, error) from error


def _digest(path: Path, sync: bool = False) -> int:
    """Checksum of a file, which is made durable on the way if ``sync``."""
    digest = xxhash.xxh3_64()
    with path.open("r+b" if sync else "rb") as file:
        while block := file.read(_READ_BYTES):
            digest.update(block)
        if sync:
            os.fsync(file.fileno())
    return digest.intdigest() & (2**63 - 1)
