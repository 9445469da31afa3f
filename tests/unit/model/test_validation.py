"""Checks of ids, vectors and arguments: the hostile ones, by their error."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from vecraft_data_model.errors import (
    InvalidDataException,
    NullOrZeroVectorException,
    VectorDimensionMismatchException,
)
from vecraft_data_model.validation import (
    as_matrix,
    as_vector,
    check_ef,
    check_expect,
    check_flag,
    check_k,
    check_limit,
    check_max_distance,
    check_record_id,
    check_record_ids,
    check_timeout,
    check_txn_id,
    new_txn_id,
    shown,
    txn_created_ms,
)

NAN, INF = float("nan"), float("inf")


# ------------------------------------------------------------------------------------------------------ ids


@pytest.mark.parametrize("ids", [[], ["a"], ("a", "b"), ["e\u0301", "é"], iter(["a"]), np.array(["a", "b"]),
                                 ["x" * 1024], ["/../%2F", "' OR 1=1", "🙂" * 256]])  # fmt: skip
def test_ids_that_are_fine(ids: Any) -> None:
    checked = check_record_ids(ids)
    assert all(type(record_id) is str for record_id in checked)


@pytest.mark.parametrize(
    ("ids", "said"),
    [
        (["a", -1], "record id 1 must be a string"),
        ([2**63], "must be a string"),
        ([2**64], "got 18446744073709551616"),
        ([10**5000], "an integer of 16610 bits"),
        ([None], "must be a string"),
        ([b"a"], "must be a string"),
        (["a", ""], "record id 1 must be 1 to 1024 bytes long in UTF-8, not 0"),
        (["x" * 1025], "not 1025"),
        (["é" * 513], "not 1026"),
        (["x" * (1 << 20)], "not 1048576"),
        (["a\0b"], "without NUL"),
        (["\ud800"], "lone surrogates"),
        (["a", "b", "a"], "'a' stands at 0 and 2"),
        (["é", "x", "é"], "'é' stands at 0 and 2"),
        ("abc", "must be a list of strings"),
        (b"abc", "must be a list of strings"),
        ({"a": 1}, "must be a list of strings"),
        (7, "must be a list of strings"),
        (None, "must be a list of strings"),
    ],
)
def test_ids_that_are_refused(ids: Any, said: str) -> None:
    with pytest.raises(InvalidDataException) as caught:
        check_record_ids(ids)
    assert said in caught.value.message
    assert len(caught.value.message) < 400


def test_ids_may_repeat_where_they_are_only_read() -> None:
    assert check_record_ids(["a", "a"], distinct=False) == ["a", "a"]
    assert check_record_id(np.str_("a")) == "a"


@given(st.lists(st.text(max_size=4), max_size=6))
def test_the_short_way_for_batches_agrees_with_the_check_of_one(ids: list[str]) -> None:
    def fine(record_id: str) -> bool:
        try:
            check_record_id(record_id)
        except InvalidDataException:
            return False
        return True

    if all(map(fine, ids)) and len(set(ids)) == len(ids):
        assert check_record_ids(ids) == ids
    else:
        with pytest.raises(InvalidDataException):
            check_record_ids(ids)


# -------------------------------------------------------------------------------------------------- vectors


@pytest.mark.parametrize(
    "vectors",
    [[[1, 2], [3, 4]], np.array([[1, 2], [3, 4]], np.int8), np.array([[1, 2], [3, 4]], np.float16),
     np.array([[1.0, 3.0], [2.0, 4.0]]).T, [np.array([1, 2]), [3.0, 4]], ((1, 2), (3, 4)),
     np.array([[1, 9, 2, 9], [3, 9, 4, 9]], np.float32)[:, ::2]],
)  # fmt: skip
def test_matrices_come_out_as_contiguous_float32(vectors: Any) -> None:
    matrix = as_matrix(vectors, 2)
    assert matrix.dtype == np.float32
    assert matrix.flags.c_contiguous
    assert matrix.tolist() == [[1, 2], [3, 4]]


def test_float32_is_not_copied() -> None:
    vectors = np.ones((3, 4), np.float32)
    assert as_matrix(vectors, 4) is vectors


@pytest.mark.parametrize("empty", [[], np.empty((0, 3)), np.empty((0, 3), np.float32)])
def test_no_vectors_are_fine(empty: Any) -> None:
    assert as_matrix(empty, 3).shape == (0, 3)


@pytest.mark.parametrize(
    ("vectors", "error", "said"),
    [
        ([[1, 2, NAN]], InvalidDataException, "vectors must be finite in float32; got nan at position 2"),
        ([[1, 2, 3], [1, INF, 3]], InvalidDataException, "row 1, must be finite in float32; got inf at position 1"),
        ([[1, 2, 3], [-INF, 2, 3]], InvalidDataException, "got -inf"),
        ([[1e300, 0, 0]], InvalidDataException, "got 1e+300 at position 0"),
        ([[3e38, 3e38, 3e38]], InvalidDataException, "too large: its norm may be at most 9.223e+18"),
        ([[1, 2]], VectorDimensionMismatchException, "must have 3 dimensions; got 2"),
        ([[1, 2, 3, 4]], VectorDimensionMismatchException, "must have 3 dimensions; got 4"),
        ([[1, 2, 3], [1, 2]], VectorDimensionMismatchException, "as many in each vector"),
        ([1, 2, 3], VectorDimensionMismatchException, "shape (n, 3); got shape (3,)"),
        ([[[1, 2, 3]]], VectorDimensionMismatchException, "got shape (1, 1, 3)"),
        ([[], []], NullOrZeroVectorException, "must not be empty"),
        (np.empty((2, 0)), NullOrZeroVectorException, "must not be empty"),
        ([["1", "2", "3"]], InvalidDataException, "must be numbers"),
        ([[1, None, 3]], InvalidDataException, "must be numbers"),
        ([[True, False, True]], InvalidDataException, "got booleans"),
        ([[1.0, True, 3]], InvalidDataException, "got booleans"),
        (np.ones((1, 3), bool), InvalidDataException, "type bool"),
        (np.ones((1, 3), complex), InvalidDataException, "type complex128"),
        (np.array([[1, 2, 3]], dtype=object), InvalidDataException, "nulls, objects"),
        (np.array(["2020-01-01"] * 3, dtype="datetime64[D]").reshape(1, 3), InvalidDataException, "datetime64"),
        ([[10**400, 1, 2]], InvalidDataException, "must be numbers"),
        ("abc", InvalidDataException, "an array or a list of numbers; got 'abc'"),
        (None, NullOrZeroVectorException, "got None"),
        (5, InvalidDataException, "an array or a list of numbers; got 5"),
        ({"b64": ""}, InvalidDataException, "an array or a list of numbers"),
        (np.ones((1, 1_000_000), np.float32), VectorDimensionMismatchException, "must have 3 dimensions; got 1000000"),
    ],
)
def test_vectors_that_are_refused(vectors: Any, error: type[InvalidDataException], said: str) -> None:
    with pytest.raises(error) as caught:
        as_matrix(vectors, 3)
    assert type(caught.value) is error
    assert said in caught.value.message


def test_the_record_is_named() -> None:
    with pytest.raises(InvalidDataException, match=r"row 1 of record 'b' must be finite"):
        as_matrix([[1, 2], [NAN, 2]], 2, ids=["a", "b"])
    with pytest.raises(InvalidDataException, match=r"vector of record 'b' must be finite"):
        as_vector([NAN, 2], 2, record_id="b")


def test_zero_vectors_only_matter_under_cosine() -> None:
    zeros = np.array([[1, 0], [0, 0]], np.float32)
    assert as_matrix(zeros, 2, metric="l2").shape == (2, 2)
    with pytest.raises(NullOrZeroVectorException, match="row 1, is zero"):
        as_matrix(zeros, 2, metric="cosine")
    with pytest.raises(NullOrZeroVectorException):
        as_vector([0.0, -0.0], 2, metric="cosine")
    denormal = np.full((1, 2), 1e-40, np.float32)
    assert as_matrix(denormal, 2, metric="cosine").tolist() == denormal.tolist()


def test_float16_rounds_and_has_its_own_range() -> None:
    assert as_vector([1.0001, 2], 2, vector_type="float16").tolist() == [1.0, 2.0]
    with pytest.raises(InvalidDataException, match=r"finite in float16; got 70000\.0"):
        as_vector([70000, 1], 2, vector_type="float16")
    with pytest.raises(NullOrZeroVectorException):
        as_vector([1e-9, 0], 2, metric="cosine", vector_type="float16")


@pytest.mark.parametrize(
    ("vector", "error"),
    [([], NullOrZeroVectorException), ([[1, 2]], VectorDimensionMismatchException), (NAN, InvalidDataException),
     ([1], VectorDimensionMismatchException), ([NAN, 1], InvalidDataException), ([1e200, 1], InvalidDataException),
     ([True, 1], InvalidDataException), (None, NullOrZeroVectorException)],
)  # fmt: skip
def test_one_vector(vector: Any, error: type[Exception]) -> None:
    assert as_vector(np.array([1.5, 2.0]), 2).tolist() == [1.5, 2.0]
    with pytest.raises(error):
        as_vector(vector, 2)


@given(hnp.arrays(np.float64, st.integers(1, 5), elements=st.floats(allow_nan=True, allow_infinity=True)))
def test_one_vector_and_a_matrix_of_one_agree(vector: Any) -> None:
    try:
        row = as_matrix(vector.reshape(1, -1), metric="cosine")[0]
    except InvalidDataException as error:
        with pytest.raises(type(error)):
            as_vector(vector, metric="cosine")
    else:
        assert as_vector(vector, metric="cosine").tobytes() == row.tobytes()
        assert np.isfinite(np.float32(4) * np.dot(row, row))


# ------------------------------------------------------------------------------------------------ arguments


@pytest.mark.parametrize(
    "value", [0, -1, 10**9, 1.5, "10", True, None, NAN, [1], pytest.param(10**5000, id="5001 digits")]
)
def test_k_that_is_refused(value: Any) -> None:
    with pytest.raises(InvalidDataException, match="k must be an integer from 1 to 1048576"):
        check_k(value)


def test_arguments_that_are_fine() -> None:
    assert check_k(np.int32(10)) == 10
    assert type(check_k(np.int64(3))) is int
    assert [check_ef(None), check_ef(65536), check_limit(None), check_limit(1)] == [None, 65536, None, 1]
    assert [check_max_distance(None), check_max_distance(-1), check_max_distance(np.float32(0.5))] == [None, -1.0, 0.5]
    assert [check_timeout(None), check_timeout(1), check_timeout(0.25)] == [None, 1.0, 0.25]
    assert [check_expect(value) for value in (None, "absent", "present", 5)] == [None, "absent", "present", 5]
    assert [check_flag(True, "exact"), check_flag(np.bool_(False), "exact")] == [True, False]


@pytest.mark.parametrize(
    ("check", "value"),
    [
        (check_ef, 0), (check_ef, 10**9), (check_ef, "5"), (check_ef, True), (check_limit, 0), (check_limit, -1),
        (check_limit, 1.0), (check_max_distance, NAN), (check_max_distance, INF), (check_max_distance, "1"),
        (check_max_distance, True), (check_max_distance, 10**400), (check_timeout, 0), (check_timeout, -1),
        (check_timeout, 10**18), (check_timeout, NAN), (check_timeout, "1"), (check_timeout, True),
        (check_expect, "maybe"), (check_expect, True), (check_expect, 0), (check_expect, -5), (check_expect, 2**63),
        (check_expect, 1.0), (check_txn_id, ""), (check_txn_id, "x" * 129), (check_txn_id, "a\nb"),
        (check_txn_id, "\ud800"), (check_txn_id, 5), (check_txn_id, None),
    ],
)  # fmt: skip
def test_arguments_that_are_refused(check: Any, value: Any) -> None:
    with pytest.raises(InvalidDataException, match="must be"):
        check(value)


@pytest.mark.parametrize("value", [1, "true", None, 0.0])
def test_flags_are_bools(value: Any) -> None:
    with pytest.raises(InvalidDataException, match="exact must be true or false"):
        check_flag(value, "exact")


# ------------------------------------------------------------------------------------------ transaction ids


def test_a_transaction_id_holds_its_time() -> None:
    txn_id = new_txn_id(1_700_000_000_123, random.Random(1))
    assert txn_created_ms(txn_id) == 1_700_000_000_123
    assert txn_id == new_txn_id(1_700_000_000_123, random.Random(1))
    assert check_txn_id(txn_id) == txn_id
    assert new_txn_id(1_700_000_000_124, random.Random(2)) > txn_id


def test_transaction_ids_differ_and_foreign_ones_say_no_time() -> None:
    assert len({new_txn_id() for _ in range(1000)}) == 1000
    for foreign in ("order-17", "", "6ba7b810-9dad-11d1-80b4-00c04fd430c8", "x" * 128):
        assert txn_created_ms(foreign) is None


@pytest.mark.parametrize(
    "value",
    [
        "x" * 10**6,
        b"y" * 10**6,
        pytest.param(10**5000, id="5001 digits"),
        [0] * 10**6,
        np.ones((1000, 1000)),
        object(),
        NAN,
    ],
)
def test_whatever_is_shown_is_short(value: Any) -> None:
    assert len(shown(value)) < 130
