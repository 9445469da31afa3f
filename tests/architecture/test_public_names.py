"""The public surface: names that users import do not come and go unnoticed."""

from __future__ import annotations

import importlib
import inspect

import pytest

import vecraft_data_model
from vecraft_db.client.async_client import AsyncVecraftClient
from vecraft_db.client.k8s_aware_vecraft_client import K8sAwareVecraftClient
from vecraft_db.client.vecraft_client import VecraftClient

METHODS = {
    "create_collection", "drop_collection", "list_collections", "describe_collection", "alter_collection",
    "set_alias", "drop_alias", "insert", "upsert", "get", "get_many", "delete", "delete_many", "search", "search_many",
    "scan", "count", "transaction", "run_transaction", "snapshot", "generate_tsne_plot", "backup", "restore",
    "checkpoint", "cluster_info", "set_ef", "close",
}  # fmt: skip
ARGUMENTS = {
    "create_collection": ["schema", "if_not_exists"],
    "insert": ["collection", "packet", "expect", "txn_id", "timeout"],
    "upsert": ["collection", "packets", "ids", "vectors", "metadatas", "documents", "expect", "txn_id", "timeout"],
    "delete": ["collection", "record_id", "expect", "txn_id", "timeout"],
    "delete_many": ["collection", "ids", "where", "where_document"],
    "get": ["collection", "record_id", "consistency", "as_of", "timeout"],
    "get_many": ["collection", "ids"],
    "search_many": ["collection", "queries", "k", "where", "where_document", "ef", "exact", "max_distance", "include"],
    "scan": ["collection", "where", "where_document", "include", "limit", "cursor"],
    "count": ["collection", "where", "where_document"],
    "transaction": ["isolation", "txn_id"],
    "snapshot": ["as_of"],
    "generate_tsne_plot": ["collection", "record_ids", "perplexity", "random_state", "outfile", "color_by"],
}
EXPORTED = {
    "DataPacket", "VectorPacket", "QueryPacket", "SearchResult", "CollectionSchema", "CommitResult", "CollectionInfo",
}  # fmt: skip
ERRORS = {
    "VecraftError", "RecordNotFoundError", "ChecksumValidationFailureError", "TimeoutException", "InvalidDataException",
    "VectorDimensionMismatchException", "NullOrZeroVectorException", "UnsupportedMetricException",
    "CollectionNotExistedException", "CollectionAlreadyExistedException", "StorageFailureException",
    "TsnePlotGeneratingFailureException", "WriteConflictException", "ReadWriteConflictException", "InvalidFilterError",
    "CorruptionError", "SnapshotTooOldError", "ShardUnavailableError", "StaleMapError", "ClockSkewError",
    "OverloadedError", "PreconditionFailedError",
}  # fmt: skip


@pytest.mark.parametrize("client", [VecraftClient, AsyncVecraftClient, K8sAwareVecraftClient])
def test_every_client_has_the_documented_methods(client: type) -> None:
    public = {name for name in dir(client) if not name.startswith("_")}
    assert public >= METHODS


@pytest.mark.parametrize("client", [VecraftClient, AsyncVecraftClient])
@pytest.mark.parametrize("method", sorted(ARGUMENTS))
def test_arguments_have_the_documented_names_and_order(client: type, method: str) -> None:
    names = [name for name in inspect.signature(getattr(client, method)).parameters if name != "self"]
    wanted = ARGUMENTS[method]
    assert [name for name in names if name in wanted] == wanted


def test_both_clients_take_the_same_arguments() -> None:
    for method in METHODS:
        sync, other = (inspect.signature(getattr(client, method)) for client in (VecraftClient, AsyncVecraftClient))
        assert list(sync.parameters) == list(other.parameters), method


def test_the_model_exports_its_words() -> None:
    assert set(vecraft_data_model.__all__) == EXPORTED | (set(vecraft_data_model.__all__) & ERRORS) | {
        "AuthenticationError"
    }
    for name in vecraft_data_model.__all__:
        assert hasattr(vecraft_data_model, name)


def test_the_errors_are_all_there_and_children_of_one() -> None:
    errors = importlib.import_module("vecraft_data_model.errors")
    for name in ERRORS:
        assert issubclass(getattr(errors, name), errors.VecraftError), name


def test_importing_the_client_loads_neither_ray_nor_what_extras_bring() -> None:
    """Starting a program that embeds the database must not cost seconds."""
    import subprocess
    import sys

    heavy = ("ray", "fastapi", "kubernetes", "matplotlib", "sklearn", "pyarrow")
    program = (
        "import sys; from vecraft_db.client.vecraft_client import VecraftClient; import vecraft_data_model; "
        "VecraftClient(root=':memory:').close(); "
        f"print([name for name in {heavy!r} if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=800, check=True)
    assert done.stdout.strip() == "[]"
