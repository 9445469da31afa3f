"""Writes records as JSON lines, parquet or npy, so that :mod:`vecraft_db.bulk_formats` reads equal records back.

float32 survives JSON and parquet exactly, no metadata stays apart from empty metadata, and a JSON document from a text.
A file gets its name only when it is complete; until then it is ``<name>.partial``.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import IO, Any

import msgspec
import numpy as np
import numpy.typing as npt

from vecraft_db.bulk_formats import format_of, open_lines, pyarrow_module

Float32Array = npt.NDArray[np.float32]


class Writer:
    """Writes records to a file that appears under its name only when it is complete.

    Args:
        path: The file; its name tells the format. For ``vectors.npy`` a ``vectors.records.jsonl`` is written beside it.
        rows: How many records will come.
        dim: Length of their vectors.
    """

    def __init__(self, path: Path, rows: int, dim: int) -> None:
        self.path, self._rows, self._dim, self._written = path, rows, dim, 0
        self._format = format_of(path)
        self._partial = path.with_name(path.name + ".partial")
        self._lines: IO[bytes] | None = None
        self._parquet: Any = None
        self._matrix: npt.NDArray[np.float32] | None = None
        if self._format == "npy":
            self._records = path.with_suffix(".records.jsonl")
            self._records_partial = self._records.with_name(self._records.name + ".partial")
            self._matrix = np.lib.format.open_memmap(self._partial, "w+", np.float32, (rows, dim))
            self._lines = open_lines(self._records_partial, "wb")
        elif self._format == "jsonl":
            self._lines = open_lines(self._partial, "wb")
        else:
            pyarrow = pyarrow_module()
            text = pyarrow.string()
            self._schema = pyarrow.schema(
                [
                    pyarrow.field("record_id", text, nullable=False),
                    pyarrow.field("vector", pyarrow.list_(pyarrow.float32(), dim), nullable=False),
                    pyarrow.field("metadata", text),
                    pyarrow.field("document", text),
                    pyarrow.field("document_json", text),
                ]
            )
            self._parquet = pyarrow.parquet.ParquetWriter(self._partial, self._schema)

    def write(
        self, ids: Sequence[str], vectors: Float32Array, metadatas: Sequence[Any], documents: Sequence[Any]
    ) -> None:
        """Write a block of records, ``vectors`` (n, dim)."""
        if self._parquet is not None:
            self._write_parquet(ids, vectors, metadatas, documents)
        else:
            self._write_lines(ids, vectors, metadatas, documents)
        self._written += len(ids)

    def _write_lines(
        self, ids: Sequence[str], vectors: Float32Array, metadatas: Sequence[Any], documents: Sequence[Any]
    ) -> None:
        if self._lines is None:
            raise ValueError("the writer is closed")
        if self._matrix is not None:
            self._matrix[self._written : self._written + len(ids)] = vectors
        for i, record_id in enumerate(ids):
            line: dict[str, Any] = {"record_id": record_id, "metadata": metadatas[i], "document": documents[i]}
            if self._matrix is None:
                line["vector"] = vectors[i].tolist()
            self._lines.write(msgspec.json.encode(line) + b"\n")

    def _write_parquet(
        self, ids: Sequence[str], vectors: Float32Array, metadatas: Sequence[Any], documents: Sequence[Any]
    ) -> None:
        pyarrow = pyarrow_module()
        flat = pyarrow.array(np.ascontiguousarray(vectors, dtype=np.float32).reshape(-1))
        columns = [
            pyarrow.array(ids, pyarrow.string()),
            pyarrow.FixedSizeListArray.from_arrays(flat, self._dim),
            pyarrow.array([_text_of(value) for value in metadatas], pyarrow.string()),
            pyarrow.array([value if isinstance(value, str) else None for value in documents], pyarrow.string()),
            pyarrow.array(
                [None if isinstance(value, str) else _text_of(value) for value in documents], pyarrow.string()
            ),
        ]
        self._parquet.write_batch(pyarrow.record_batch(columns, schema=self._schema))

    def finish(self) -> list[Path]:
        """Complete the file and give it its name; return the files written."""
        if self._written != self._rows:
            raise ValueError(f"{self._rows} records were announced, {self._written} came")
        self._close()
        self._partial.replace(self.path)
        if self._format != "npy":
            return [self.path]
        self._records_partial.replace(self._records)
        return [self.path, self._records]

    def discard(self) -> None:
        """Leave nothing behind of a file that was not completed."""
        self._close()
        self._partial.unlink(missing_ok=True)
        if self._format == "npy":
            self._records_partial.unlink(missing_ok=True)

    def _close(self) -> None:
        if self._matrix is not None:
            self._matrix.flush()  # type: ignore[attr-defined]
            self._matrix = None
        if self._lines is not None:
            self._lines.close()
            self._lines = None
        if self._parquet is not None:
            self._parquet.close()
            self._parquet = None


def _text_of(value: Any) -> str | None:
    return None if value is None else msgspec.json.encode(value).decode()
