"""`dot_product` for whatever shows its memory."""

from __future__ import annotations

import array
from typing import Any

import numpy as np
import pytest
import shoal
from hypothesis import given, settings
from hypothesis import strategies as st


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 70_000), st.integers(0, 2**32 - 1))
def test_it_is_numpys_result_to_rounding(count: int, seed: int) -> None:
    generator = np.random.default_rng(seed)
    a, b = generator.standard_normal(count), generator.standard_normal(count)
    assert shoal.dot_product(a, b) == pytest.approx(float(a @ b), rel=1e-9, abs=1e-9)


def test_it_does_not_depend_on_the_number_of_threads() -> None:
    generator = np.random.default_rng(1)
    a, b = generator.standard_normal(1_000_003), generator.standard_normal(1_000_003)
    results = {shoal.dot_product(a, b, threads=threads) for threads in (1, 2, 3, 8)} | {shoal.dot_product(a, b)}
    assert len(results) == 1


@pytest.mark.parametrize(
    "a, b, expected",
    [
        ([1, 2, 3], [4, 5, 6], 32.0),
        (range(4), (1, 1, 1, 1), 6.0),
        (array.array("d", [1.5, 2]), array.array("f", [2, 4]), 11.0),
        (np.arange(5), np.arange(5), 30.0),
        (np.arange(10.0)[::2], np.arange(5.0), 60.0),
        (np.ones(4, "f4"), np.ones(4, "f4"), 4.0),
        (np.ones(3, ">f8"), np.ones(3), 3.0),
        ([], [], 0.0),
    ],
)
def test_vectors_of_every_kind(a: Any, b: Any, expected: float) -> None:
    result = shoal.dot_product(a, b)
    assert type(result) is float
    assert result == expected


@pytest.mark.parametrize(
    "a, b, error, words",
    [
        ([1], [1, 2], ValueError, "1 and 2"),
        (np.ones((2, 2)), np.ones((2, 2)), ValueError, "one dimension"),
        ([1j], [1j], TypeError, "real numbers"),
        ("ab", "cd", TypeError, "real numbers"),
        (None, [1], TypeError, "NoneType"),
    ],
)
def test_what_is_no_vector_is_refused(a: Any, b: Any, error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        shoal.dot_product(a, b)


def test_the_number_of_threads_must_be_positive() -> None:
    with pytest.raises(ValueError, match="threads"):
        shoal.dot_product([1], [1], threads=0)


def test_a_vector_that_gives_fewer_numbers_than_it_has_is_refused() -> None:
    class Short(np.ndarray):
        def __iter__(self) -> Any:
            return iter([1.0])

    single = np.ones(20_000_000, np.float32).view(Short)  # is converted, item by item, for the other's sake
    with pytest.raises(ValueError, match="fewer or more numbers"):
        shoal.dot_product(single, np.ones(20_000_000))
