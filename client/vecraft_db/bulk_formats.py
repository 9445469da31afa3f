"""Records in files: JSON lines, parquet and npy, read and written in blocks.

::

    .jsonl .jsonl.gz   one object per line: record_id (or id), vector (list of numbers), metadata, document
    .parquet           columns of the same names; vector is a list column, metadata JSON text or a struct
    .npy               an (n, dim) matrix; ids, metadata and documents come from JSON lines in row order beside it

A line or row without ``metadata`` gives all its other fields as metadata; one with it must have no others. Parquet has
a column ``document_json`` for documents that are JSON and not text. Values are checked where they enter the database;
here is checked that a file has the shape of its format, and the fault is named with file and line. What
:mod:`vecraft_db.bulk_writer` writes reads back to equal records.

Parquet needs pyarrow, the extra ``parquet``.
"""

from __future__ import annotations

import gzip
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, Literal

import msgspec
import numpy as np
import numpy.typing as npt

from vecraft_data_model.errors import InvalidDataException, VecraftError

Format = Literal["jsonl", "parquet", "npy"]


@dataclass(frozen=True)
class Fields:
    """Which field of a file is what. ``None`` takes the usual names."""

    record_id: str | None = None
    vector: str | None = None
    document: str | None = None


@dataclass(frozen=True)
class Columns:
    """A block of records: ``vectors`` (n, dim) or a list of n vectors, and one value per record in the rest."""

    ids: list[str]
    vectors: Any
    metadatas: list[dict[str, Any] | None]
    documents: list[Any]


@dataclass(frozen=True)
class Source:
    """A file of records.

    Attributes:
        path: The file.
        format: Of the file.
        rows: How many records it holds.
        fields: Names of its fields.
        records: For npy: JSON lines with id, metadata and document of each row; without it ids are row numbers.
    """

    path: Path
    format: Format
    rows: int
    fields: Fields = field(default_factory=Fields)
    records: Path | None = None

    def blocks(self, size: int, skip: int = 0) -> Iterator[Columns]:
        """Return the records in order, ``size`` at a time, after the first ``skip``."""
        if self.format == "parquet":
            return _parquet_blocks(self, size, skip)
        if self.format == "npy":
            return _npy_blocks(self, size, skip)
        return _jsonl_blocks(self, size, skip)


def format_of(path: Path) -> Format:
    """Return a file's format by its name.

    Raises:
        InvalidDataException: The name ends in none of the known ways.
    """
    name = path.name.removesuffix(".gz")
    for suffix, kind in ((".jsonl", "jsonl"), (".ndjson", "jsonl"), (".parquet", "parquet"), (".npy", "npy")):
        if name.endswith(suffix) and (kind == "jsonl" or name == path.name):
            return kind  # type: ignore[return-value]
    raise InvalidDataException(f"{path.name!r} must end in .jsonl, .jsonl.gz, .parquet or .npy, which tells its format")


def open_source(path: Path, fields: Fields | None = None, records: Path | None = None) -> Source:
    """Look at a file and return it as a source of records.

    Raises:
        InvalidDataException: It is missing, or not of the format that its name tells.
    """
    kind = format_of(path)
    for needed in (path, records):
        if needed is not None and not needed.is_file():
            raise InvalidDataException(f"there is no file {str(needed)!r}")
    if records is not None and kind != "npy":
        raise InvalidDataException(f"records= goes with a .npy file, and {path.name!r} is {kind}")
    if kind == "parquet":
        rows = int(_parquet_file(path).metadata.num_rows)
    elif kind == "npy":
        rows = len(_open_matrix(path))
    else:
        rows = _count_lines(path)
    return Source(path, kind, rows, fields or Fields(), records)


# ------------------------------------------------------------------------------------------------------- JSON lines


def open_lines(path: Path, mode: Literal["rb", "wb"]) -> IO[bytes]:
    """Open a file of lines, unpacked when its name ends in ``.gz`` (or ``.gz.partial``)."""
    if path.name.removesuffix(".partial").endswith(".gz"):
        return gzip.open(path, mode)  # type: ignore[return-value]
    return open(path, mode)


def _count_lines(path: Path) -> int:
    with open_lines(path, "rb") as lines:
        try:
            return sum(1 for line in lines if line.strip())
        except (OSError, EOFError) as error:
            raise InvalidDataException(f"{path.name!r} cannot be read: {error}") from error


def _objects(path: Path, skip: int = 0) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield line number and object of each line that is not blank, after the first ``skip`` of them."""
    with open_lines(path, "rb") as lines:
        seen = 0
        for number, line in enumerate(lines, 1):
            if not line.strip():
                continue
            seen += 1
            if seen <= skip:
                continue
            try:
                value = msgspec.json.decode(line)
            except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
                raise InvalidDataException(f"{path.name}:{number} is not JSON: {error}") from error
            if not isinstance(value, dict):
                raise InvalidDataException(f"{path.name}:{number} must be an object, got {type(value).__name__}")
            yield number, value


def _jsonl_blocks(source: Source, size: int, skip: int) -> Iterator[Columns]:
    block = Columns([], [], [], [])
    for number, value in _objects(source.path, skip):
        where = f"{source.path.name}:{number}"
        vector = _take(value, source.fields.vector, ("vector", "embedding"), where)
        if not isinstance(vector, list):
            raise InvalidDataException(f"{where}: the vector must be a list of numbers, got {type(vector).__name__}")
        _add(block, _take(value, source.fields.record_id, ("record_id", "id"), where), vector, value, source.fields)
        _check_rest(value, where)
        if len(block.ids) == size:
            yield block
            block = Columns([], [], [], [])
    if block.ids:
        yield block


def _take(value: dict[str, Any], name: str | None, usual: tuple[str, ...], where: str) -> Any:
    for candidate in (name,) if name is not None else usual:
        if candidate in value:
            return value.pop(candidate)
    wanted = repr(name) if name is not None else " or ".join(map(repr, usual))
    raise InvalidDataException(f"{where} must have a field {wanted}, and has {', '.join(map(repr, value)) or 'none'}")


def _add(block: Columns, record_id: Any, vector: Any, rest: dict[str, Any], fields: Fields) -> None:
    """Put a record into the block; what is left in ``rest`` is its metadata, unless it has one of its own."""
    block.ids.append(record_id)
    block.vectors.append(vector)
    block.documents.append(rest.pop(fields.document or "document", None))
    if "metadata" in rest:
        block.metadatas.append(rest.pop("metadata"))
    else:
        block.metadatas.append(dict(rest) or None)
        rest.clear()


def _check_rest(rest: dict[str, Any], where: str) -> None:
    if rest:
        raise InvalidDataException(
            f"{where} has metadata and beside it {', '.join(map(repr, rest))}: put all into metadata, or leave it out"
        )


# -------------------------------------------------------------------------------------------------------------- npy


def _open_matrix(path: Path) -> npt.NDArray[Any]:
    try:
        matrix = np.load(path, mmap_mode="r", allow_pickle=False)
    except (ValueError, OSError, EOFError) as error:
        raise InvalidDataException(f"{path.name!r} is not a .npy file of numbers: {error}") from error
    if matrix.ndim != 2:
        raise InvalidDataException(f"{path.name!r} must hold a matrix (n, dim), got shape {matrix.shape}")
    return matrix  # type: ignore[no-any-return]


def _npy_blocks(source: Source, size: int, skip: int) -> Iterator[Columns]:
    matrix = _open_matrix(source.path)
    lines = _objects(source.records, skip) if source.records is not None else None
    for start in range(skip, len(matrix), size):
        rows = np.array(matrix[start : start + size])
        block = Columns([], [], [], [])
        for row in range(start, start + len(rows)):
            if lines is None or source.records is None:
                _add(block, str(row), None, {}, source.fields)
                continue
            number, value = next(lines, (0, None))
            if value is None:
                raise InvalidDataException(
                    f"{source.records.name!r} has {row} lines, and {source.path.name!r} {len(matrix)} rows"
                )
            where = f"{source.records.name}:{number}"
            _add(block, _take(value, source.fields.record_id, ("record_id", "id"), where), None, value, source.fields)
            _check_rest(value, where)
        yield Columns(block.ids, rows, block.metadatas, block.documents)
    if lines is not None and source.records is not None and next(lines, None) is not None:
        raise InvalidDataException(
            f"{source.records.name!r} has more lines than the {len(matrix)} rows of {source.path.name!r}"
        )


# ---------------------------------------------------------------------------------------------------------- parquet


def pyarrow_module() -> Any:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        raise VecraftError("parquet files need pyarrow: pip install 'vecraftdb[parquet]'") from error
    return pyarrow


def _parquet_file(path: Path) -> Any:
    pyarrow = pyarrow_module()
    try:
        return pyarrow.parquet.ParquetFile(path)
    except (pyarrow.ArrowInvalid, OSError) as error:
        raise InvalidDataException(f"{path.name!r} is not a parquet file: {error}") from error


def _parquet_blocks(source: Source, size: int, skip: int) -> Iterator[Columns]:
    row = 0
    for batch in _parquet_file(source.path).iter_batches(batch_size=size):
        start, row = row, row + batch.num_rows
        if row <= skip:
            continue
        batch = batch.slice(max(0, skip - start))
        columns = dict(zip(batch.schema.names, batch.columns, strict=True))
        where = source.path.name
        ids = _take(columns, source.fields.record_id, ("record_id", "id"), where).to_pylist()
        vectors = _matrix_of(_take(columns, source.fields.vector, ("vector", "embedding"), where), where)
        texts = columns.pop(source.fields.document or "document", None)
        documents = texts.to_pylist() if texts is not None else [None] * len(ids)
        structured = columns.pop("document_json", None)
        if structured is not None:
            documents = [
                text if value is None else _json(value, "document_json", where)
                for text, value in zip(documents, structured.to_pylist(), strict=True)
            ]
        own = columns.pop("metadata", None)
        if own is not None:
            _check_rest(columns, where)
            metadatas = [_json(value, "metadata", where) for value in own.to_pylist()]
        else:
            lists = {name: column.to_pylist() for name, column in columns.items()}
            metadatas = [{name: values[i] for name, values in lists.items()} or None for i in range(len(ids))]
        yield Columns(ids, vectors, metadatas, documents)


def _matrix_of(column: Any, where: str) -> Any:
    """Return a list column as a matrix without going through Python numbers, when all lists are equally long."""
    pyarrow = pyarrow_module()
    if not (pyarrow.types.is_list(column.type) or pyarrow.types.is_large_list(column.type)
            or pyarrow.types.is_fixed_size_list(column.type)):  # fmt: skip
        raise InvalidDataException(f"{where}: the vector column must be a list of numbers, got {column.type}")
    flat = column.flatten()
    if column.null_count or flat.null_count or not len(column) or len(flat) % len(column):
        return column.to_pylist()
    lengths = pyarrow.compute.list_value_length(column).to_numpy(zero_copy_only=False)
    if (lengths != lengths[0]).any():
        return column.to_pylist()
    return flat.to_numpy(zero_copy_only=False).reshape(len(column), -1)


def _json(value: Any, name: str, where: str) -> Any:
    if not isinstance(value, str):
        return value
    try:
        return msgspec.json.decode(value)
    except msgspec.DecodeError as error:
        raise InvalidDataException(f"{where}: column {name} holds text that is not JSON: {error}") from error
