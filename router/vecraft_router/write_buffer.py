"""What an interactive transaction has written to one collection, and how it shows in that transaction's reads.

Invariants: a record id is either put or deleted here, never both, and the last write counts. What is committed is what
the caller handed in; what is *read* is what the store will answer later (a float16 collection rounds).

Not done here: anything about shards, snapshots or conflicts.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from vecraft_data_model.distances import exact_distances
from vecraft_data_model.errors import NullOrZeroVectorException, VectorDimensionMismatchException
from vecraft_data_model.filter_match import matching_payloads
from vecraft_data_model.filters import DocumentFilter, Filter
from vecraft_data_model.messages import DataMutation, Delete, Float32Array, Hits, Put, Rows
from vecraft_data_model.payload import reseal_payloads
from vecraft_data_model.schema import CollectionSchema
from vecraft_data_model.search_options import SearchOptions
from vecraft_data_model.validation import as_matrix


class WriteBuffer:
    """Uncommitted writes to one collection.

    Args:
        schema: The collection's, as the transaction sees it.
        made_here: Whether the transaction makes the collection: then there is nothing in it but what is here.
    """

    def __init__(self, schema: CollectionSchema, *, made_here: bool = False) -> None:
        self.schema = schema
        self.made_here = made_here
        self._alias_of: dict[str, str] = {}  # record id → the alias by which it was written, if it was by one
        self.puts: dict[str, tuple[Float32Array, bytes]] = {}
        self.deletes: dict[str, None] = {}  # a set that keeps its order, so that a commit is the same each time

    def __contains__(self, record_id: str) -> bool:
        return record_id in self.puts or record_id in self.deletes

    def __len__(self) -> int:
        return len(self.puts) + len(self.deletes)

    def ids(self) -> list[str]:
        """Return every id that was put or deleted."""
        return [*self.puts, *self.deletes]

    def put(self, put: Put, name: str | None = None) -> None:
        """Take over a put (its ``expect`` has been dealt with).

        Args:
            put: What to write.
            name: Which name it is to be committed under: one of the collection's aliases, or None for its own. An
                alias must then mean what it meant at the snapshot.

        Raises:
            VectorDimensionMismatchException: The vectors do not have the collection's dimension.
            NullOrZeroVectorException: A zero vector under cosine.
        """
        dim = self.schema.dim
        if put.vectors.ndim != 2 or put.vectors.shape[1] != dim:
            raise VectorDimensionMismatchException(
                f"collection {self.schema.name!r} holds vectors of {dim} dimensions, got shape {put.vectors.shape}"
            )
        if self.schema.metric == "cosine":
            zero = np.flatnonzero(~_stored(self.schema, put.vectors).any(axis=1))
            if len(zero):
                record_id = put.ids[int(zero[0])]
                raise NullOrZeroVectorException(
                    f"the vector of record {record_id!r} is zero, which has no direction under cosine",
                    record_id=record_id,
                )
        for record_id, vector, payload in zip(put.ids, put.vectors, put.payloads, strict=True):
            self.deletes.pop(record_id, None)
            self.puts[record_id] = (vector, payload)
        self._written_as(put.ids, name)

    def delete(self, ids: Sequence[str], name: str | None = None) -> None:
        """Take over a deletion; ``name`` as for :meth:`put`."""
        for record_id in ids:
            self.puts.pop(record_id, None)
            self.deletes[record_id] = None
        self._written_as(ids, name)

    def forget_alias(self, alias: str) -> None:
        """Commit under the collection's own name what was written by an alias that the transaction itself changes."""
        self._alias_of = {record_id: name for record_id, name in self._alias_of.items() if name != alias}

    def mutations(self) -> list[DataMutation]:
        """Return what is to be committed, under the names by which it was written."""
        own = self.schema.name
        mutations: list[DataMutation] = []
        for name in dict.fromkeys([own, *self._alias_of.values()]):
            puts = [record_id for record_id in self.puts if self._alias_of.get(record_id, own) == name]
            if puts:
                vectors, payloads = zip(*(self.puts[record_id] for record_id in puts), strict=True)
                mutations.append(Put(name, puts, np.stack(vectors), list(payloads)))
            deletes = [record_id for record_id in self.deletes if self._alias_of.get(record_id, own) == name]
            if deletes:
                mutations.append(Delete(name, deletes))
        return mutations

    def _written_as(self, ids: Sequence[str], name: str | None) -> None:
        for record_id in ids:
            if name is None or name == self.schema.name:
                self._alias_of.pop(record_id, None)
            else:
                self._alias_of[record_id] = name

    def rows(self, ids: Sequence[str], *, with_payloads: bool = True, with_vectors: bool = True) -> Rows:
        """Return some of the records put here as reads show them; ``begin_ts`` is 0, for not committed."""
        original = [self.puts[record_id] for record_id in ids]
        vectors = np.zeros((0, self.schema.dim), dtype=np.float32)
        if original:
            vectors = _stored(self.schema, np.stack([vector for vector, _ in original]))
        payloads = [payload for _, payload in original]
        if with_payloads and self.schema.dtype != np.float32:
            payloads = reseal_payloads(payloads, vectors)
        return Rows(list(ids), [0] * len(ids), payloads if with_payloads else None, vectors if with_vectors else None)

    def matching(self, where: Filter | None, where_document: DocumentFilter | None) -> list[str]:
        """Return the ids put here whose records match, in id order."""
        return self._matching(sorted(self.puts), where, where_document)

    def page(
        self, after: str | None, limit: int, where: Filter | None, where_document: DocumentFilter | None
    ) -> tuple[list[str], str | None]:
        """Return the first ``limit`` of the matching ids after ``after``, and up to which id these are all (None: all).

        It looks at no more records than it takes to find these.
        """
        ids = sorted(record_id for record_id in self.puts if after is None or record_id > after)
        found: list[str] = []
        for begin in range(0, len(ids), limit):
            found += self._matching(ids[begin : begin + limit], where, where_document)
            if len(found) > limit:
                return found[:limit], found[limit - 1]
        return found, None

    def _matching(
        self, ids: Sequence[str], where: Filter | None, where_document: DocumentFilter | None
    ) -> list[str]:
        keep = matching_payloads([self.puts[record_id][1] for record_id in ids], where, where_document)
        return [record_id for record_id, wanted in zip(ids, keep, strict=True) if wanted]

    def nearest(self, queries: Float32Array, wanted: SearchOptions) -> list[Hits]:
        """Return, per query, the nearest of the records put here that match, by exact distance.

        Raises:
            VectorDimensionMismatchException: Queries (q, dim) of another dimension than the collection's.
            NullOrZeroVectorException: A zero query under cosine.
        """
        queries = as_matrix(queries, self.schema.dim, metric=self.schema.metric, what="query")
        ids = self.matching(wanted.where, wanted.where_document)
        rows = self.rows(ids, with_payloads=wanted.with_payloads)
        if rows.vectors is None:
            raise RuntimeError("rows are read with their vectors unless said otherwise")
        answers = []
        for query in queries:
            distances = exact_distances(self.schema.metric, rows.vectors, query)
            order = sorted(range(len(ids)), key=lambda row: (distances[row], ids[row]))
            if wanted.max_distance is not None:
                order = [row for row in order if distances[row] <= wanted.max_distance]
            order = order[: wanted.k]
            answers.append(
                Hits(
                    [ids[row] for row in order],
                    [float(distances[row]) for row in order],
                    None if rows.payloads is None else [rows.payloads[row] for row in order],
                    rows.vectors[order] if wanted.with_vectors else None,
                )
            )
        return answers


def _stored(schema: CollectionSchema, vectors: Float32Array) -> Float32Array:
    """Return vectors as the collection will answer them."""
    if schema.dtype == np.float32:
        return vectors
    return vectors.astype(schema.dtype).astype(np.float32)
