"""Row sets against Python sets, whatever form they are in."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from pyroaring import BitMap
from random_examples import examples

from vecraft_shard.indexes.rowset import RowSet

N = 200


def _mask(rows: set[int]) -> RowSet:
    mask = np.zeros(N, np.bool_)
    mask[sorted(rows)] = True
    return RowSet.of_mask(mask)


FORMS: dict[str, Callable[[set[int]], RowSet]] = {
    "bitmap": lambda rows: RowSet.of_bitmap(BitMap(rows)),
    "mask": _mask,
    "rows": lambda rows: RowSet.of_rows(np.array(sorted(rows), np.uint32)),
}
row_sets = st.sets(st.integers(0, N - 1))
forms = st.sampled_from(sorted(FORMS))


@examples(200)
@given(left=row_sets, right=row_sets, left_form=forms, right_form=forms, n=st.integers(0, N + 50))
def test_equals_python_sets(left: set[int], right: set[int], left_form: str, right_form: str, n: int) -> None:
    a, b = FORMS[left_form](left), FORMS[right_form](right)
    assert a.count == len(a) == len(left)
    for made, want in ((a & b, left & right), (a | b, left | right), (a - b, left - right)):
        assert made.rows().tolist() == sorted(want) and made.count == len(want)
        assert sorted(made.bitmap()) == sorted(want)
        assert made.rows().dtype == np.int64
    assert np.flatnonzero(a.mask(n)).tolist() == sorted(row for row in left if row < n) and len(a.mask(n)) == n
    asked = np.array([5, 0, 199, 250, 5, 77], np.int64)
    assert a.contains(asked).tolist() == [row in left for row in asked.tolist()]
    low = {row for row in left if row < 150}
    rest = FORMS[left_form](low).complement(150)
    assert rest.rows().tolist() == sorted(set(range(150)) - low) and rest.count == 150 - len(low)
    assert (a == b) == (left == right)


def test_empty_and_full() -> None:
    assert RowSet.empty().rows().tolist() == [] and not RowSet.empty().contains(np.array([-1, 3])).any()
    assert RowSet.full(3).rows().tolist() == [0, 1, 2] and RowSet.full(0).count == 0
    assert RowSet.empty().complement(2).rows().tolist() == [0, 1]
    assert RowSet.full(70_000).nbytes < 70_000
