"""The values of one field, column-wise: which rows have which value.

Entries are appended in row order and answered by vectorised passes, which beat one posting list per value on every
count that matters here: adding costs a few nanoseconds an entry, memory is 8 to 12 bytes an entry, and a million
entries are searched in well under a millisecond. Two columns, by kind of value::

    codes     row (uint32) │ code (uint32)      strings, null, booleans, and fingerprints of lists and objects:
                                                a dictionary gives each distinct value a code
    numbers   row (uint32) │ value (float64)    numbers that float64 holds exactly
    integers  row (uint32) │ value (int64)      integers beyond ±2**53, which it may not

A condition is decided once per distinct value where there is a dictionary, then looked up per entry. A row may occur
several times in a column (elements of a list; one name reached by two paths), but entries stay in row order.

Nothing here locks: see :class:`vecraft_shard.indexes.metadata.MetadataIndex`.
"""

from __future__ import annotations

import hashlib
import math
import operator
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence, Set
from itertools import count, islice
from typing import Any, Final

import msgspec
import numpy as np
import numpy.typing as npt

from vecraft_data_model.filters import (
    BOOL,
    DICT,
    INSTANT,
    LIST,
    NULL,
    NUMBER,
    STRING,
    Compare,
    Key,
    key_of,
    parse_instant,
)
from vecraft_shard.indexes.columns import GrowingArray, RowColumn
from vecraft_shard.indexes.rowset import BoolArray, RowSet

Code = str | bytes | bool | None
"""What the dictionary holds: a string, null, a boolean, or the fingerprint of a list or object."""

HASHED: Final = -1
"""The kind of a list or an object that is known by its fingerprint alone; in keys that stay within the shard."""

_EXACT: Final = 2**53
_INT64_MIN: Final = -(2**63)
_INT64_MAX: Final = 2**63 - 1
_NO_INSTANT: Final = _INT64_MIN

_SIDES: Final[dict[str, Callable[[Any, Any], Any]]] = {
    "gt": operator.gt, "gte": operator.ge, "lt": operator.lt, "lte": operator.le,
}  # fmt: skip


class _Codes(defaultdict[Code, int]):
    """The dictionary: an unknown value gets the next code when it is looked up by ``[]``, without a call in Python."""

    def __init__(self) -> None:
        super().__init__(count().__next__)


class Portion(msgspec.Struct, array_like=True):
    """The entries of some rows, as they are dumped. Arrays are little-endian bytes; codes count within ``values``."""

    values: list[Any]
    code_rows: bytes
    codes: bytes
    number_rows: bytes
    numbers: bytes
    integer_rows: bytes
    integers: bytes


class Postings:
    """The entries of one field."""

    __slots__ = (
        "_code_rows", "_codes", "_dictionary", "_instants", "_integer_rows", "_integers", "_known_values",
        "_number_rows", "_numbers",
    )  # fmt: skip

    def __init__(self) -> None:
        self._dictionary = _Codes()
        self._code_rows = RowColumn()
        self._codes = GrowingArray(np.uint32)
        self._number_rows = RowColumn()
        self._numbers = GrowingArray(np.float64)
        self._integer_rows = RowColumn()
        self._integers = GrowingArray(np.int64)
        self._instants = GrowingArray(np.int64)
        self._known_values: list[Code] = []

    # ------------------------------------------------------------------------------------------- writing

    def add(self, rows: npt.NDArray[np.integer], values: Sequence[Any], kinds: Set[type]) -> None:
        """Add JSON values, of these types together, of rows (ascending, not below those added before)."""
        if kinds <= _CODED:
            self._add_codes(rows, values)
        elif kinds == {float}:
            self._number_rows.extend(rows)
            self._numbers.extend(np.array(values, np.float64))
        elif kinds == {int}:
            self._add_ints(rows, values)
        else:
            self._add_mixed(rows, values)

    def _add_codes(self, rows: npt.NDArray[np.integer], values: Iterable[Code]) -> None:
        self._code_rows.extend(rows)
        self._codes.extend(np.fromiter(map(self._dictionary.__getitem__, values), np.uint32, len(rows)))

    def _add_ints(self, rows: npt.NDArray[np.integer], values: Sequence[int]) -> None:
        exact = np.array(values, np.int64)
        large = (exact > _EXACT) | (exact < -_EXACT)
        if large.any():
            self._integer_rows.extend(rows[large])
            self._integers.extend(exact[large])
            rows, exact = rows[~large], exact[~large]
        self._number_rows.extend(rows)
        self._numbers.extend(exact.astype(np.float64))

    def _add_mixed(self, rows: npt.NDArray[np.integer], values: Sequence[Any]) -> None:
        coded: list[tuple[int, Code]] = []
        ints: list[tuple[int, int]] = []
        floats: list[tuple[int, float]] = []
        for row, value in zip(rows.tolist(), values, strict=True):
            if value is None or isinstance(value, str | bool):
                coded.append((row, value))
            elif isinstance(value, int):
                (ints if abs(value) > _EXACT else floats).append((row, value))
            elif isinstance(value, float):
                floats.append((row, value))
            else:
                coded.append((row, _fingerprint(key_of(value))))
        if coded:
            self._add_codes(_rows_of(coded), [value for _, value in coded])
        if ints:
            self._add_ints(_rows_of(ints), [value for _, value in ints])
        if floats:
            self._number_rows.extend(_rows_of(floats))
            self._numbers.extend(np.array([value for _, value in floats], np.float64))

    # ----------------------------------------------------------------------------------------- answering

    def present(self, n_rows: int) -> RowSet:
        """The rows that have any entry."""
        found = RowSet.empty()
        for row_column, _ in self._columns():
            found = found | _to_set(row_column, None, n_rows)
        return found

    def equal(self, keys: Iterable[Key], n_rows: int) -> RowSet:
        """The rows with an entry equal to one of the keys."""
        codes: list[int] = []
        numbers: list[int | float] = []
        for kind, value in keys:
            if kind == NUMBER:
                numbers.append(value)  # type: ignore[arg-type]
            else:
                code = self._dictionary.get(_code_of(kind, value))
                if code is not None:
                    codes.append(code)
        found = RowSet.empty()
        if codes:
            found = _to_set(self._code_rows, _any_of(self._codes.array, codes, len(self._dictionary)), n_rows)
        if numbers:
            found = found | self._equal_numbers(numbers, n_rows)
        return found

    def _equal_numbers(self, numbers: Sequence[int | float], n_rows: int) -> RowSet:
        found = RowSet.empty()
        floats = [float(v) for v in numbers if not isinstance(v, int) or abs(v) <= _EXACT]
        # A float is never equal to an integer that has no float64, but beyond 2**53 some have one, in either column.
        floats += [float(v) for v in numbers if isinstance(v, int) and abs(v) > _EXACT and float(v) == v]
        if floats and self._numbers.size:
            found = found | _to_set(self._number_rows, _is_in(self._numbers.array, np.array(floats)), n_rows)
        if self._integers.size:
            ints = [int(v) for v in numbers if abs(v) > _EXACT and v == int(v) and _INT64_MIN <= v <= _INT64_MAX]
            if ints:
                hit = _is_in(self._integers.array, np.array(ints, np.int64))
                found = found | _to_set(self._integer_rows, hit, n_rows)
        return found

    def compare(self, condition: Compare, n_rows: int) -> RowSet:
        """The rows with an entry of the operand's kind and on that side of it."""
        side = _SIDES[condition.operator]
        if condition.kind == NUMBER:
            return self._compare_numbers(condition.operator, condition.operand, n_rows)  # type: ignore[arg-type]
        if not self._codes.size:
            return RowSet.empty()
        if condition.kind == INSTANT:
            instants = self._instants_of_dictionary()
            table = side(instants, condition.operand) & (instants != _NO_INSTANT)
        else:
            operand = condition.operand
            table = np.fromiter(
                (type(value) is str and side(value, operand) for value in self._dictionary),
                np.bool_,
                len(self._dictionary),
            )
        return _to_set(self._code_rows, table[self._codes.array], n_rows)

    def _compare_numbers(self, name: str, operand: int | float, n_rows: int) -> RowSet:
        found = RowSet.empty()
        if self._numbers.size:
            hit = _SIDES[_side_of_float(name, operand)](self._numbers.array, _float_below(operand))
            found = _to_set(self._number_rows, hit, n_rows)
        if self._integers.size:
            hit = _compare_integers(self._integers.array, name, operand)
            found = found | _to_set(self._integer_rows, hit, n_rows)
        return found

    def _instants_of_dictionary(self) -> npt.NDArray[np.int64]:
        """The instant of each value in the dictionary; those added since the last time are parsed now."""
        known = self._instants.size
        if known < len(self._dictionary):
            fresh = (parse_instant(v) if type(v) is str else None for v in islice(self._dictionary, known, None))
            parsed = [_NO_INSTANT if instant is None else instant for instant in fresh]
            self._instants.extend(np.array(parsed, np.int64))
        return self._instants.array

    def keys_at(self, rows: npt.NDArray[np.integer]) -> list[Key | None]:
        """Return the value of each row, as :func:`hashed_key` gives it; None: the row has none, or several."""
        columns: list[tuple[RowColumn, GrowingArray[Any], Callable[[list[Any]], list[Key]]]] = [
            (self._code_rows, self._codes, self._keys_of_codes),
            (self._number_rows, self._numbers, _keys_of_numbers),
            (self._integer_rows, self._integers, _keys_of_numbers),
        ]
        columns = [entry for entry in columns if entry[0].size]
        if len(columns) == 1 and len(rows):
            row_column, column, keys_of = columns[0]
            if row_column.dense and int(rows.max()) < row_column.size:
                return [*keys_of(column.array[rows].tolist())]
        keys: list[Key | None] = [None] * len(rows)
        entries = np.zeros(len(rows), np.int64)
        wanted = rows.astype(np.uint32)
        for row_column, column, keys_of in columns:
            known = row_column.array
            first = np.searchsorted(known, wanted)
            found = np.searchsorted(known, wanted, side="right") - first
            entries += found
            at = np.flatnonzero(found)
            for place, key in zip(at.tolist(), keys_of(column.array[first[at]].tolist()), strict=True):
                keys[place] = key
        for place in np.flatnonzero(entries > 1).tolist():
            keys[place] = None
        return keys

    def _keys_of_codes(self, codes: list[int]) -> list[Key]:
        values = self._known_values
        if len(values) < len(self._dictionary):
            values.extend(islice(self._dictionary, len(values), None))
        keys = {code: _key_of_code(values[code]) for code in set(codes)}
        return [keys[code] for code in codes]

    # --------------------------------------------------------------------------------------------- files

    def portion(self, lo: int, hi: int) -> Portion | None:
        """The entries of the rows ``[lo, hi)``; None if there are none."""
        parts = [_cut(rows.array, column.array, lo, hi) for rows, column in self._columns()]
        if not any(len(rows) for rows, _ in parts):
            return None
        (code_rows, codes), *others = parts
        used, local = np.unique(codes, return_inverse=True)
        values = list(self._dictionary)
        arrays = [code_rows, local.astype("<u4"), *(array for pair in others for array in pair)]
        packed = (a.astype(a.dtype.newbyteorder("<"), copy=False).tobytes() for a in arrays)
        return Portion([values[code] for code in used.tolist()], *packed)

    def load(self, portion: Portion) -> None:
        """Add what ``portion`` returned."""
        codes = np.array([self._dictionary[value] for value in portion.values], np.uint32)
        self._code_rows.extend(np.frombuffer(portion.code_rows, "<u4"))
        self._codes.extend(codes[np.frombuffer(portion.codes, "<u4")])
        self._number_rows.extend(np.frombuffer(portion.number_rows, "<u4"))
        self._numbers.extend(np.frombuffer(portion.numbers, "<f8"))
        self._integer_rows.extend(np.frombuffer(portion.integer_rows, "<u4"))
        self._integers.extend(np.frombuffer(portion.integers, "<i8"))

    def _columns(self) -> tuple[tuple[RowColumn, GrowingArray[Any]], ...]:
        return (
            (self._code_rows, self._codes),
            (self._number_rows, self._numbers),
            (self._integer_rows, self._integers),
        )


_CODED: Final = frozenset({str, bool, type(None)})


def _rows_of(pairs: Sequence[tuple[int, Any]]) -> npt.NDArray[np.uint32]:
    return np.fromiter((row for row, _ in pairs), np.uint32, len(pairs))


def _to_set(column: RowColumn, hit: BoolArray | None, n_rows: int) -> RowSet:
    """The rows at which ``hit`` is true (None: everywhere), below ``n_rows``."""
    rows = column.array
    if len(rows) and rows[-1] >= n_rows:
        size = int(np.searchsorted(rows, n_rows))
        rows = rows[:size]
        hit = None if hit is None else hit[:size]
    if not len(rows):
        return RowSet.empty()
    if column.distinct and len(rows) == n_rows:  # every row has an entry, so entry and row numbers agree
        return RowSet.full(n_rows) if hit is None else RowSet.of_mask(hit)
    picked = rows if hit is None else rows[np.flatnonzero(hit)]
    if not column.distinct and len(picked) > 1:
        picked = picked[np.concatenate(([True], picked[1:] > picked[:-1]))]
    return RowSet.of_rows(picked)


def _any_of(column: npt.NDArray[np.uint32], codes: Sequence[int], distinct: int) -> BoolArray:
    if len(codes) == 1:
        hit: BoolArray = np.equal(column, codes[0])
        return hit
    table = np.zeros(distinct, np.bool_)
    table[codes] = True
    return table[column]


def _is_in(column: npt.NDArray[Any], wanted: npt.NDArray[Any]) -> BoolArray:
    hit: BoolArray = np.equal(column, wanted[0]) if len(wanted) == 1 else np.isin(column, wanted)
    return hit


def _float_below(operand: int | float) -> float:
    """The largest float that is not above the operand."""
    below = float(operand)
    return math.nextafter(below, -math.inf) if below > operand else below


def _side_of_float(name: str, operand: int | float) -> str:
    """The operator that, against :func:`_float_below`, says for floats what ``name`` says against the operand."""
    if float(operand) == operand:
        return name
    return "gt" if name in ("gt", "gte") else "lte"


def _compare_integers(column: npt.NDArray[np.int64], name: str, operand: int | float) -> BoolArray:
    """Compare integers with any number, exactly: against the integer next to it, if that is an int64."""
    bound = math.ceil(operand) if name in ("gte", "lt") else math.floor(operand)
    above = name in ("gt", "gte")
    if bound > _INT64_MAX:
        return np.full(len(column), not above)
    if bound < _INT64_MIN:
        return np.full(len(column), above)
    hit: BoolArray = _SIDES[name](column, np.int64(bound))
    return hit


def _cut(
    rows: npt.NDArray[np.uint32], column: npt.NDArray[Any], lo: int, hi: int
) -> tuple[npt.NDArray[np.uint32], npt.NDArray[Any]]:
    first, last = np.searchsorted(rows, (lo, hi))
    return rows[first:last], column[first:last]


def hashed_key(value: Any) -> Key:
    """Return the key of a JSON value; that of a list or an object is ``(HASHED, its fingerprint)``."""
    return as_hashed(key_of(value))


def as_hashed(key: Key) -> Key:
    """Return a filter's key as :func:`hashed_key` returns it for that value."""
    return (HASHED, _fingerprint(key)) if key[0] in (LIST, DICT) else key


def _key_of_code(value: Code) -> Key:
    return (HASHED, value) if isinstance(value, bytes) else key_of(value)


def _keys_of_numbers(numbers: list[int | float]) -> list[Key]:
    return [(NUMBER, number) for number in numbers]


def _code_of(kind: int, value: Any) -> Code:
    if kind in (STRING, NULL, BOOL, HASHED):
        return value  # type: ignore[no-any-return]
    return _fingerprint((kind, value))


def _fingerprint(key: Key) -> bytes:
    """128 bits that are the same for equal lists or objects, and for no others that anybody will meet."""
    return hashlib.blake2b(_canonical(key).encode(), digest_size=16).digest()


def _canonical(key: Key) -> str:
    """One spelling of a value: numbers that are equal look equal, members of objects stand in order."""
    kind, value = key
    if kind == NUMBER:
        number: Any = value
        return f"{kind}:{int(number) if number == int(number) else number!r}"
    if kind == LIST:
        items: Any = value
        return f"{kind}:[{','.join(map(_canonical, items))}]"
    if kind == DICT:
        members: Any = value
        return f"{kind}:{{{','.join(sorted(repr(name) + _canonical(item) for name, item in members))}}}"
    return f"{kind}:{value!r}"
