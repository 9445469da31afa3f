"""Which rows match a ``where``: an inverted index over the fields of metadata, or of JSON documents.

Each field, nested ones by their dotted name, has two :class:`~vecraft_shard.indexes.postings.Postings`: of its values,
and of the elements of its lists (for ``$contains``). A filter is a tree of set operations over what those answer, and
the answer equals :func:`vecraft_data_model.filters.matches` row by row; a row without metadata, or one that was
forgotten, counts as having no fields.

Rows never change, so an answer for the rows below ``n`` stays right until rows are forgotten: recent answers are kept,
together with whatever forms (mask, bitmap) searches have asked of them, within a budget.

A segment, as :meth:`MetadataIndex.dump` makes it, numbers little-endian::

    ┌──────────┬─────────┬──────────┬────────┬────────┬───────────────┬────────────────┬────────────────────┐
    │ "VCRFTMDX" │ version │ reserved │ lo     │ hi     │ body length   │ XXH3-64 of all │ body (MessagePack) │
    │ 8 bytes  │ u32     │ u32      │ u64    │ u64    │ u64           │ the rest, u64  │                    │
    └──────────┴─────────┴──────────┴────────┴────────┴───────────────┴────────────────┴────────────────────┘

``add`` and ``load`` need the index to themselves; otherwise any number of threads may ``evaluate`` meanwhile.
"""

from __future__ import annotations

import struct
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping, Sequence
from operator import itemgetter
from typing import Any, Final

import msgspec
import numpy as np
import numpy.typing as npt
import xxhash

from vecraft_data_model.errors import CorruptionError, InvalidDataException
from vecraft_data_model.filters import And, Compare, Contains, Eq, Exists, Filter, In, Key, Not, Or
from vecraft_shard.indexes.postings import Portion, Postings
from vecraft_shard.indexes.rowset import RowSet

MAGIC: Final = b"VCRFTMDX"
FORMAT_VERSION: Final = 1
_HEADER: Final = struct.Struct("<8sIIQQQQ")
_CHECKSUM_AT: Final = _HEADER.size - 8
_CACHED_ANSWERS: Final = 64
_CACHE_BYTES_MIN: Final = 4 << 20
_CACHE_BYTES_PER_ROW: Final = 32


class _Field:
    __slots__ = ("elements", "values")

    def __init__(self) -> None:
        self.values = Postings()
        self.elements = Postings()


class _FieldPortion(msgspec.Struct, array_like=True):
    name: str
    values: Portion | None
    elements: Portion | None


_encoder: Final = msgspec.msgpack.Encoder()
_decoder: Final = msgspec.msgpack.Decoder(list[_FieldPortion])


class MetadataIndex:
    """The index of one collection's metadata, or of its JSON documents.

    Attributes:
        rows: Rows below were added.
    """

    def __init__(self) -> None:
        self.rows = 0
        self._fields: dict[str, _Field] = {}
        self._answers: OrderedDict[Filter, tuple[int, RowSet]] = OrderedDict()
        self._lock = threading.Lock()

    # ------------------------------------------------------------------------------------------- writing

    def add(self, first_row: int, values: Sequence[Mapping[str, Any] | None]) -> None:
        """Add the rows ``first_row …``, not below those added before; None: a row without metadata.

        Raises:
            InvalidDataException: Rows that were added before.
        """
        self._advance(first_row, first_row + len(values))
        rows = np.arange(first_row, first_row + len(values), dtype=np.uint32)
        for name, (places, column) in _columns(values).items():
            field = self._field(name)
            at = rows if places is None else rows[places]
            kinds = set(map(type, column))
            field.values.add(at, column, kinds)
            if not kinds.isdisjoint(_LISTS):
                lists = [i for i, value in enumerate(column) if isinstance(value, list | tuple)]
                sizes = [len(column[i]) for i in lists]
                elements = [item for i in lists for item in column[i]]
                field.elements.add(np.repeat(at[lists], sizes), elements, set(map(type, elements)))

    # ----------------------------------------------------------------------------------------- answering

    def evaluate(self, where: Filter, n_rows: int) -> RowSet:
        """Return the rows below ``n_rows`` that match. The set may be shared: do not change what it hands out."""
        with self._lock:
            kept = self._answers.get(where)
            if kept is not None and kept[0] == n_rows:
                self._answers.move_to_end(where)
                return kept[1]
            found = self._evaluate(where, n_rows)
            self._keep(where, n_rows, found)
        return found

    def estimate(self, where: Filter, n_rows: int) -> int:
        """Return about how many rows below ``n_rows`` match. Exact at present: evaluating is cheap, and kept."""
        return self.evaluate(where, n_rows).count

    def keys_at(self, name: str, rows: npt.NDArray[np.integer]) -> list[Key | None]:
        """Return the value of a field in each of the rows, a list or an object by its fingerprint.

        Returns:
            As :func:`~vecraft_shard.indexes.postings.hashed_key`; None: the row has no value there, or several.
        """
        with self._lock:
            field = self._fields.get(name)
            return [None] * len(rows) if field is None else field.values.keys_at(rows)

    def rows_with(self, name: str, keys: Iterable[Key], n_rows: int) -> RowSet:
        """Return the rows below ``n_rows`` that have one of these values of a field; such answers are not kept.

        Args:
            name: Of the field.
            keys: As of filters, or as :meth:`keys_at` returns them.
            n_rows: As for :meth:`evaluate`.
        """
        with self._lock:
            field = self._fields.get(name)
            return RowSet.empty() if field is None else field.values.equal(keys, n_rows)

    def _evaluate(self, where: Filter, n_rows: int) -> RowSet:
        match where:
            case And(items):
                found = RowSet.full(n_rows) if not items else self._evaluate(items[0], n_rows)
                for item in items[1:]:
                    if not found.count:
                        break
                    found = found & self._evaluate(item, n_rows)
                return found
            case Or(items):
                found = RowSet.empty()
                for part in _merged(items):
                    found = found | self._evaluate(part, n_rows)
                return found
            case Not(item):
                return self._evaluate(item, n_rows).complement(n_rows)
            case Contains(name, key):
                known = self._fields.get(name)
                return RowSet.empty() if known is None else known.elements.equal((key,), n_rows)
            case Eq(name) | In(name) | Compare(name) | Exists(name):
                known = self._fields.get(name)
                if known is None:
                    return RowSet.empty()
                match where:
                    case Eq(value=key):
                        return known.values.equal((key,), n_rows)
                    case In(values=keys):
                        return known.values.equal(keys, n_rows)
                    case Compare():
                        return known.values.compare(where, n_rows)
                    case _:
                        return known.values.present(n_rows)

    def _keep(self, where: Filter, n_rows: int, found: RowSet) -> None:
        self._answers[where] = (n_rows, found)
        self._answers.move_to_end(where)
        budget = max(_CACHE_BYTES_MIN, _CACHE_BYTES_PER_ROW * self.rows)
        used = sum(kept.nbytes for _, kept in self._answers.values())
        while len(self._answers) > _CACHED_ANSWERS or (used > budget and len(self._answers) > 1):
            _, (_, dropped) = self._answers.popitem(last=False)
            used -= dropped.nbytes

    # --------------------------------------------------------------------------------------------- files

    def dump(self, lo: int, hi: int) -> bytes:
        """Return the entries of the rows ``[lo, hi)`` as one segment."""
        portions = []
        for name, field in self._fields.items():
            values, elements = field.values.portion(lo, hi), field.elements.portion(lo, hi)
            if values is not None or elements is not None:
                portions.append(_FieldPortion(name, values, elements))
        body = _encoder.encode(portions)
        header = _HEADER.pack(MAGIC, FORMAT_VERSION, 0, lo, hi, len(body), 0)[:_CHECKSUM_AT]
        return header + struct.pack("<Q", _checksum(header, body)) + body

    def load(self, blob: bytes) -> None:
        """Add the rows of a segment. Segments are loaded in order.

        Raises:
            CorruptionError: The segment is damaged, or not one, or not the next; nothing was added.
        """
        if len(blob) < _HEADER.size:
            raise CorruptionError(f"a metadata segment of {len(blob)} bytes: at least {_HEADER.size} are needed")
        magic, version, _, lo, hi, length, checksum = _HEADER.unpack_from(blob)
        body = memoryview(blob)[_HEADER.size :]
        if magic != MAGIC or version != FORMAT_VERSION:
            raise CorruptionError(f"not a metadata segment of version {FORMAT_VERSION}: begins with {blob[:12]!r}")
        if length != len(body) or checksum != _checksum(blob[:_CHECKSUM_AT], body):
            raise CorruptionError(f"the metadata segment of rows {lo} to {hi} does not match its checksum")
        if lo < self.rows or hi < lo:
            raise CorruptionError(f"the metadata segment of rows {lo} to {hi} does not follow row {self.rows}")
        portions = _decoder.decode(body)
        self._advance(lo, hi)
        for portion in portions:
            field = self._field(portion.name)
            if portion.values is not None:
                field.values.load(portion.values)
            if portion.elements is not None:
                field.elements.load(portion.elements)

    # --------------------------------------------------------------------------------------------- inside

    def _advance(self, first_row: int, rows: int) -> None:
        if first_row < self.rows:
            raise InvalidDataException(f"row {first_row} was added before: rows below {self.rows} are known")
        self.rows = rows

    def _field(self, name: str) -> _Field:
        field = self._fields.get(name)
        if field is None:
            field = self._fields[name] = _Field()
        return field


_LISTS: Final = frozenset({list, tuple})

_Column = tuple["list[int] | None", Sequence[Any]]
"""Places within the batch (None: all), and the value at each."""


def _columns(values: Sequence[Mapping[str, Any] | None]) -> dict[str, _Column]:
    """Turn records into columns by dotted field name, places ascending.

    Batches mostly look alike, record by record: then a column is one comprehension.
    """
    if not any(values):
        return {}
    columns = _columns_alike(values)
    if columns is None:
        scattered: dict[str, tuple[list[int], list[Any]]] = {}
        for place, value in enumerate(values):
            for name, item in value.items() if value else ():
                places, column = scattered.setdefault(name, ([], []))
                places.append(place)
                column.append(item)
        columns = dict(scattered)
    nested = [name for name, (_, column) in columns.items() if dict in set(map(type, column))]
    return _with_nested(columns, nested) if nested else columns


def _columns_alike(values: Sequence[Mapping[str, Any] | None]) -> dict[str, _Column] | None:
    """The columns of records that all have the same fields; None if they have not."""
    names = list(values[0] or ())
    if not names or not all(values) or sum(map(len, values)) != len(names) * len(values):  # type: ignore[arg-type]
        return None
    pick: Callable[[Any], Any] = itemgetter(*names)
    try:
        rows = map(pick, values)
        # one name gives values, several give tuples of them
        columns: Iterable[Sequence[Any]] = zip(*rows, strict=True) if len(names) > 1 else (list(rows),)
        return {name: (None, column) for name, column in zip(names, columns, strict=True)}
    except KeyError:
        return None


def _with_nested(columns: dict[str, _Column], nested: Sequence[str]) -> dict[str, _Column]:
    """Add the fields inside objects. One name can be reached by several paths (``"a.b"``, and ``b`` in ``a``)."""
    reached: dict[str, list[tuple[int, Any]]] = {}
    for name in nested:
        places, column = columns[name]
        for place, value in zip(range(len(column)) if places is None else places, column, strict=True):
            if isinstance(value, dict):
                _flatten(name, place, value, reached)
    for name, pairs in reached.items():
        if name in columns:
            places, column = columns[name]
            pairs.extend(zip(range(len(column)) if places is None else places, column, strict=True))
        pairs.sort(key=lambda pair: pair[0])
        columns[name] = ([place for place, _ in pairs], [value for _, value in pairs])
    return columns


def _flatten(prefix: str, place: int, value: dict[str, Any], reached: dict[str, list[tuple[int, Any]]]) -> None:
    for name, item in value.items():
        path = f"{prefix}.{name}"
        reached.setdefault(path, []).append((place, item))
        if isinstance(item, dict):
            _flatten(path, place, item, reached)


def _merged(items: Sequence[Filter]) -> list[Filter]:
    """Join equalities of one field under an ``$or`` into one ``$in``: thousands of them cost as much as one."""
    keys: dict[str, set[Key]] = {}
    others: list[Filter] = []
    for item in items:
        match item:
            case Eq(name, key):
                keys.setdefault(name, set()).add(key)
            case In(name, some):
                keys.setdefault(name, set()).update(some)
            case _:
                others.append(item)
    return [*(In(name, frozenset(some)) for name, some in keys.items()), *others]


def _checksum(header: bytes, body: bytes | memoryview) -> int:
    digest = xxhash.xxh3_64(header)
    digest.update(body)
    return digest.intdigest()
