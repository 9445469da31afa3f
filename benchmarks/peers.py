"""Other databases that run inside a process, for the sweep: each is filled with the same vectors and then asked.

None of them is a dependency of VecraftDB: ``pip install -e '.[peers]'``, best into an environment of its own, brings
them, and one that is not installed is skipped by name. All keep their files in a directory that is removed afterwards,
get the same M, ef_construction and metric where they can be told, and finish indexing before they are asked. What one
cannot be told, it does its own way; the note behind it says so.

Queries go in and distances come out by each library's ordinary Python interface, whose cost is a part of what is
measured.
"""

from __future__ import annotations

import importlib
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.data import K
from benchmarks.search import EF_CONSTRUCTION, M
from examples.wordnet import WordNet

DEPTHS = (10, 16, 24, 32, 48, 64, 96, 128, 192, 256)

Ask = Callable[[Any], Any]
"""From a query (dim,) float32 to the distances (1 − cosine) of its ten nearest."""
Curve = Iterator[tuple[int, Ask]]
"""A contender at one depth after another; depth 0: it has none."""

_BATCH = 1000


class Skipped(Exception):
    """A contender cannot take part; the message says why."""


def library(name: str, package: str) -> Any:
    """Import a module, or say which package is missing.

    Raises:
        Skipped: It is not installed, or cannot be loaded.
    """
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise Skipped(f"{package} is not installed ({error})") from error


def chroma(data: WordNet) -> Curve:
    """Chroma, persistent. The depth is fixed when a collection is loaded, so there is one point: its default of 100."""
    chromadb = library("chromadb", "chromadb")
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        client = chromadb.PersistentClient(folder, chromadb.Settings(anonymized_telemetry=False))
        graph = {"space": "cosine", "max_neighbors": M, "ef_construction": EF_CONSTRUCTION}
        collection = client.create_collection("wordnet", configuration={"hnsw": graph})
        for first in range(0, len(data.ids), _BATCH):
            part = slice(first, first + _BATCH)
            collection.add(ids=data.ids[part], embeddings=data.vectors[part])

        def ask(query: Any) -> Any:
            found = collection.query(query_embeddings=[query], n_results=K, include=["distances"])
            return found["distances"][0]

        yield 100, ask


def lancedb(data: WordNet) -> Curve:
    """LanceDB on disk; its graph is over quantised vectors inside of one partition, with the hits measured again."""
    lance = library("lancedb", "lancedb")
    arrow = library("pyarrow", "pyarrow")
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        vectors = arrow.FixedSizeListArray.from_arrays(data.vectors.ravel(), data.vectors.shape[1])
        columns = arrow.table({"id": arrow.array(list(data.ids)), "vector": vectors})
        table = lance.connect(Path(folder)).create_table("t", columns)
        graph = importlib.import_module("lancedb.index").HnswSq(
            distance_type="cosine", num_partitions=1, m=M, ef_construction=EF_CONSTRUCTION
        )
        table.create_index("vector", config=graph)
        for depth in DEPTHS:

            def ask(query: Any, depth: int = depth) -> Any:
                search = table.search(query).distance_type("cosine").ef(depth).refine_factor(1)
                found = search.select(["id", "_distance"]).limit(K).to_arrow()
                return found["_distance"].to_pylist()

            yield depth, ask


def milvus_lite(data: WordNet) -> Curve:
    """Milvus Lite, in a file of its own, by its Python client."""
    pymilvus = library("pymilvus", "pymilvus")
    library("milvus_lite", "milvus-lite")
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        client = pymilvus.MilvusClient(f"{folder}/m.db")
        try:
            schema = client.create_schema(auto_id=False)
            schema.add_field("id", pymilvus.DataType.INT64, is_primary=True)
            schema.add_field("vector", pymilvus.DataType.FLOAT_VECTOR, dim=data.vectors.shape[1])
            index = client.prepare_index_params()
            index.add_index(
                "vector", index_type="HNSW", metric_type="COSINE", params={"M": M, "efConstruction": EF_CONSTRUCTION}
            )
            client.create_collection("c", schema=schema, index_params=index)
            for first in range(0, len(data.ids), _BATCH):
                rows = data.vectors[first : first + _BATCH]
                client.insert("c", [{"id": first + i, "vector": row.tolist()} for i, row in enumerate(rows)])
            client.flush("c")
            client.close()  # it indexes in the background, and scans meanwhile: opened again, it is done
            client = pymilvus.MilvusClient(f"{folder}/m.db")
            client.load_collection("c")
            for query in np.tile(data.queries, (2, 1)):  # the graph is loaded lazily: the first searches scan
                client.search("c", data=[query], limit=K)
            for depth in DEPTHS:

                def ask(query: Any, depth: int = depth) -> Any:
                    (hits,) = client.search("c", data=[query], limit=K, search_params={"params": {"ef": depth}})
                    return [1.0 - hit["distance"] for hit in hits]

                yield depth, ask
        finally:
            client.close()


def qdrant_edge(data: WordNet) -> Curve:
    """Qdrant Edge: one shard in this process, optimised, so that all of it is indexed."""
    edge = library("qdrant_edge", "qdrant-edge-py")
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        config = edge.EdgeConfig(
            vectors=edge.EdgeVectorParams(data.vectors.shape[1], edge.Distance.Cosine),
            # Both thresholds are in kilobytes of vectors: every collection that is worth measuring gets one graph.
            hnsw_config=edge.HnswIndexConfig(M, EF_CONSTRUCTION, 10),
            optimizers=edge.EdgeOptimizersConfig(default_segment_number=1, indexing_threshold=10),
            max_search_threads=1,
        )
        shard = edge.EdgeShard.create(folder, config)
        try:
            for first in range(0, len(data.ids), _BATCH):
                rows = data.vectors[first : first + _BATCH]
                points = [edge.Point(first + i, row.tolist(), {}) for i, row in enumerate(rows)]
                shard.update(edge.UpdateOperation.upsert_points(points))
            shard.optimize()
            for depth in DEPTHS:
                params = edge.SearchParams(hnsw_ef=depth)

                def ask(query: Any, params: Any = params) -> Any:
                    request = edge.SearchRequest(edge.Query.Nearest(query.tolist()), K, params=params)
                    return [1.0 - hit.score for hit in shard.search(request)]

                yield depth, ask
        finally:
            shard.close()


def zvec(data: WordNet) -> Curve:
    """Zvec, one collection on disk, optimised, so that all of it is in one graph."""
    vec = library("zvec", "zvec")
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        graph = vec.HnswIndexParam(metric_type=vec.MetricType.COSINE, m=M, ef_construction=EF_CONSTRUCTION)
        schema = vec.CollectionSchema(
            name="c", vectors=vec.VectorSchema("v", vec.DataType.VECTOR_FP32, data.vectors.shape[1], graph)
        )
        collection = vec.create_and_open(path=f"{folder}/c", schema=schema)
        try:
            for first in range(0, len(data.ids), _BATCH):
                rows = data.vectors[first : first + _BATCH]
                collection.insert([vec.Doc(id=str(first + i), vectors={"v": row}) for i, row in enumerate(rows)])
            collection.optimize()
            for depth in DEPTHS:
                params = vec.HnswQueryParam(ef=depth)

                def ask(query: Any, params: Any = params) -> Any:
                    found = collection.query(vec.Query(field_name="v", vector=query, param=params), topk=K)
                    return [hit.score for hit in found]

                yield depth, ask
        finally:
            collection.destroy()


PEERS: dict[str, Callable[[WordNet], Curve]] = {
    "chroma": chroma,
    "lancedb": lancedb,
    "milvus-lite": milvus_lite,
    "qdrant-edge": qdrant_edge,
    "zvec": zvec,
}
