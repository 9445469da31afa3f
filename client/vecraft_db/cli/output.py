"""How answers are shown: tables for people, JSON for programs. Progress and notes go to standard error."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, TextIO

import msgspec
import numpy as np
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

VECTOR_NUMBERS_SHOWN = 4
WIDTH_OF_FILES = 10_000


class Printer:
    """Shows answers on standard output.

    Args:
        json: One JSON value per line instead of tables.
        stream: Standard output; None: what it is now. It stays so whatever ``sys.stdout`` becomes.
    """

    def __init__(self, json: bool = False, stream: TextIO | None = None) -> None:
        self.json = json
        self.stream = stream or sys.stdout
        # Into a pipe or a file, a row is one line however long it is.
        self.out = Console(file=self.stream, highlight=False, width=None if self.stream.isatty() else WIDTH_OF_FILES)
        self.err = Console(stderr=True, highlight=False, soft_wrap=True)

    def rows(self, rows: Iterable[Mapping[str, Any]], empty: str = "none") -> None:
        """Show records of equal shape: a table, or a JSON object per line, written as they come."""
        if self.json:
            for row in rows:
                self.value(row)
            return
        listed = list(rows)
        if listed:
            self._table(listed)
        else:
            self.note(empty)

    def value(self, value: Any) -> None:
        """Show one value: an object's fields line by line, lists of objects in it as tables; or a line of JSON."""
        simple = plain(value)
        if self.json:
            self.stream.write(msgspec.json.encode(simple).decode() + "\n")
            self.stream.flush()
        elif isinstance(simple, Mapping):
            tables = {name: field for name, field in simple.items() if _is_table(field)}
            fields = Table(show_header=False, box=None, pad_edge=False)
            for name, field in simple.items():
                if name not in tables:
                    fields.add_row(f"[bold]{name}[/bold]", cell(field))
            self.out.print(fields)
            for name, rows in tables.items():
                self.out.print(f"\n[bold]{name}[/bold]")
                self._table(rows)
        else:
            self.out.print(simple if isinstance(simple, str) else cell(simple), markup=False)

    def _table(self, rows: Sequence[Mapping[str, Any]]) -> None:
        names = list(dict.fromkeys(name for row in rows for name in row))
        table = Table(box=None, pad_edge=False, header_style="bold")
        for name in names:
            table.add_column(name, overflow="fold")
        for row in rows:
            table.add_row(*(cell(row.get(name)) for name in names))
        self.out.print(table)

    def note(self, text: str) -> None:
        """Say something to the person in front of it, beside the answer."""
        self.err.print(text, markup=False)

    def progress(self, what: str) -> Progress:
        """Return a progress bar on standard error, shown only to people."""
        return Progress(
            TextColumn(what, markup=False),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            console=self.err,
            disable=self.json or not self.err.is_terminal,
        )


def plain(value: Any) -> Any:
    """Return a value made of JSON's kinds only: structs and dataclasses as objects, arrays as lists."""
    if isinstance(value, np.ndarray):
        return value.tolist()
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, msgspec.Struct):
        return {name: plain(field) for name, field in msgspec.structs.asdict(value).items()}
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {str(name): plain(field) for name, field in value.items()}
    if isinstance(value, list | tuple | set):
        return [plain(item) for item in value]
    return value


def _is_table(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(item, Mapping) for item in value)


def cell(value: Any) -> str:
    """Return a value as a table shows it, with long vectors shortened."""
    if value is None:
        return ""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, int):
        return f"{value:,}" if abs(value) < 10**12 else str(value)
    if isinstance(value, str):
        return value.replace("[", r"\[")
    simple = plain(value)
    if isinstance(simple, list) and len(simple) > VECTOR_NUMBERS_SHOWN and isinstance(simple[0], float):
        shown = ", ".join(f"{number:.4g}" for number in simple[:VECTOR_NUMBERS_SHOWN])
        return rf"\[{shown}, … {len(simple)} numbers]"
    return msgspec.json.encode(simple).decode().replace("[", r"\[")


def packet_row(packet: Any, vector: bool = True) -> dict[str, Any]:
    """Return a :class:`DataPacket` as a row to show."""
    row = {"record_id": packet.record_id, "metadata": packet.metadata, "document": packet.document}
    if vector and packet.vector is not None:
        row["vector"] = packet.vector.to_numpy().tolist()
    return row
