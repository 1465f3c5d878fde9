"""Numbers, which have a way of their own through the worker: what that may not change."""

from __future__ import annotations

import multiprocessing.pool
import signal
import time
import traceback
import weakref
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from shoal.errors import WorkerDied
from shoal.multiprocessing import Pool


def changed(x: Any) -> Any:
    if x == 7:
        raise ValueError(x)
    if x == 8:
        raise StopIteration(x)
    if x == 9:
        return None
    return [x] if x == 10 else x * 2


def as_value(x: Any) -> Any:
    try:
        return changed(x)
    except Exception as error:
        return repr(error)


class Holder:
    def changed(self, x: Any) -> Any:
        return changed(x)


@pytest.fixture(scope="module")
def pool() -> Any:
    with Pool(2) as pool:
        yield pool


@given(
    numbers=st.lists(
        st.integers(0, 12) | st.floats(allow_nan=False) | st.booleans() | st.text(max_size=2), max_size=40
    ),
    chunk=st.integers(1, 50),
)
@settings(max_examples=80, deadline=None)
def test_each_gets_its_own_result_or_error(pool: Any, numbers: list[Any], chunk: int) -> None:
    expected = [as_value(x) for x in numbers]
    for function in (changed, Holder().changed):
        results = pool.map(function, numbers, chunk, return_exceptions=True)
        assert [repr(r) if isinstance(r, Exception) else r for r in results] == expected


def fails_deep(x: int) -> int:
    return changed(7) if x == 50 else x


def test_a_traceback_begins_with_the_function(pool: Any) -> None:
    with pytest.raises(ValueError) as raised:
        pool.map(fails_deep, range(100), 100)
    remote = str(raised.value.__cause__)
    assert remote.index("in fails_deep") < remote.index("in changed")
    assert remote.count('  File "') == 2, remote


class Result:
    alive: weakref.WeakSet[Result] = weakref.WeakSet()

    def __init__(self) -> None:
        self.alive.add(self)


def count_alive(x: int) -> Any:
    """How many earlier results are still in this process, and one more."""
    alive = len(Result.alive)
    return alive, Result()


def test_a_result_is_gone_before_the_next_call(pool: Any) -> None:
    assert [alive for alive, _ in pool.map(count_alive, range(40), 20)] == [0] * 40


def set_alarm(x: int) -> int:
    if x == 0:
        signal.signal(signal.SIGALRM, raise_lookup_error)
        signal.setitimer(signal.ITIMER_REAL, 0.002, 0.002)
    end = time.monotonic() + 0.0005
    while time.monotonic() < end:
        pass
    if x == 199:
        signal.setitimer(signal.ITIMER_REAL, 0)
    return x


# The handler may raise in the function, between two, or while the result is being sent.
ERRORS = (LookupError, WorkerDied, multiprocessing.pool.MaybeEncodingError)


def raise_lookup_error(*_: Any) -> None:
    raise LookupError("alarm")


def test_what_a_signals_handler_raises_is_an_items_error_or_ends_the_worker_and_no_result_is_another_ones() -> None:
    in_the_function = 0  # the first one may come between two items: then the worker is over, and its timer with it
    for _ in range(5):
        with Pool(1) as pool:
            results = pool.map(set_alarm, range(200), 200, return_exceptions=True)
        in_the_function += sum(isinstance(result, LookupError) for result in results)
        for i, result in enumerate(results):
            assert result == i if isinstance(result, int) else isinstance(result, ERRORS), (i, result)
    assert in_the_function >= 1


def test_traceback_of_an_error_as_a_value_is_the_functions(pool: Any) -> None:
    (error,) = [r for r in pool.map(changed, range(5, 8), 3, return_exceptions=True) if isinstance(r, Exception)]
    assert "in changed" in "".join(traceback.format_exception(error.__cause__))
