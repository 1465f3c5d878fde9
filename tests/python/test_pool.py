"""`Pool` as its users see it: results, arrays, errors."""

from __future__ import annotations

import gc
import multiprocessing
import os
import pickle
import threading
import time
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pool_calls import fail_on, square
from shoal.multiprocessing import Pool


def echo(x: Any) -> Any:
    return x


def add(a: int, b: int = 1, *, c: int = 0) -> int:
    return a + b + c


class Unpicklable:
    def __reduce__(self) -> Any:
        raise RuntimeError("not me")


class OddError(Exception):
    """Cannot be unpickled: pickle calls it with one argument."""

    def __init__(self, a: int, b: int) -> None:
        super().__init__(f"{a} {b}")


def give_unpicklable(x: int) -> Any:
    return Unpicklable() if x == 2 else x


def raise_odd(x: int) -> Any:
    if x == 1:
        raise OddError(1, 2)
    return x


def raise_unpicklable(x: int) -> Any:
    if x == 1:
        error = ValueError("with a lock")
        error.lock = threading.Lock()  # type: ignore[attr-defined]
        raise error
    return x


class FailsToLoad:
    """A callable whose unpickling fails."""

    def __reduce__(self) -> Any:
        return fail_on, (3,)

    def __call__(self, x: int) -> int:
        return x


def odd_ones_in_words(x: int) -> Any:
    """What is no word, between words of each kind."""
    kinds = [x, float(x), x % 2 == 0, None, str(x), 1 << 70, (x, x)]
    return kinds[x // 3 % len(kinds)]


# -- results --


@pytest.mark.parametrize("count", [0, 1, 2, 4, 100, 5000])
@pytest.mark.parametrize("chunksize", [None, 1, 7])
def test_map_gives_each_result_in_its_place(pool: Any, count: int, chunksize: int | None) -> None:
    assert pool.map(square, range(count), chunksize) == [x * x for x in range(count)]


def test_map_takes_a_generator(pool: Any) -> None:
    assert pool.map(square, (x for x in range(50))) == [x * x for x in range(50)]


def test_starmap_unpacks_its_items(pool: Any) -> None:
    assert pool.starmap(add, [(1, 2), (3, 4), [5]]) == [3, 7, 6]


def test_imap_gives_results_in_order_and_imap_unordered_gives_all(pool: Any) -> None:
    assert list(pool.imap(square, range(3000))) == [x * x for x in range(3000)]
    assert list(pool.imap(square, range(100), chunksize=9)) == [x * x for x in range(100)]
    assert sorted(pool.imap_unordered(square, range(3000))) == sorted(x * x for x in range(3000))


def test_imap_takes_no_more_of_an_endless_iterator_than_a_bounded_number_of_items(own_pool: Any) -> None:
    taken = 0

    def endless() -> Any:
        nonlocal taken
        while True:
            taken += 1
            yield taken

    results = own_pool.imap(square, endless())
    assert [next(results) for _ in range(10)] == [x * x for x in range(1, 11)]
    time.sleep(0.2)
    assert taken < 10_000


def test_apply_passes_arguments_and_keywords(pool: Any) -> None:
    assert pool.apply(add, (1,), {"c": 5}) == 7
    assert pool.apply(add, (1, 2)) == 3


def test_thousands_of_apply_async_may_be_outstanding(pool: Any) -> None:
    results = [pool.apply_async(square, (x,)) for x in range(6000)]
    assert [result.get() for result in results] == [x * x for x in range(6000)]


def test_lambdas_closures_and_partials_work(pool: Any) -> None:
    import functools

    offset = 10
    assert pool.map(lambda x: x + offset, [1, 2]) == [11, 12]
    assert pool.map(functools.partial(add, c=1), [1, 2]) == [3, 4]
    assert pool.apply(lambda: [offset]) == [10]


def test_several_threads_may_use_one_pool(pool: Any) -> None:
    wrong: list[Any] = []

    def use(number: int) -> None:
        for _ in range(20):
            if pool.map(square, range(number, number + 200), 3) != [x * x for x in range(number, number + 200)]:
                wrong.append(number)

    threads = [threading.Thread(target=use, args=(number,)) for number in range(5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


_plain = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text() | st.binary(max_size=300)
_values = st.recursive(
    _plain,
    lambda inner: st.lists(inner, max_size=4) | st.tuples(inner, inner) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=10,
)


def test_words_and_others_in_turn() -> None:
    numbers = list(range(5_000))
    mixed = [odd_ones_in_words(x) for x in numbers]
    with Pool(2) as pool:
        assert pool.map(odd_ones_in_words, numbers) == mixed
        assert pool.map(odd_ones_in_words, numbers, chunksize=7) == mixed
        assert pool.map(echo, mixed) == mixed
        assert pool.map(echo, mixed, chunksize=50) == mixed


def test_each_item_of_a_function_that_cannot_be_loaded_fails_with_it() -> None:
    with Pool(1) as pool:
        errors = pool.map(FailsToLoad(), range(20), chunksize=10, return_exceptions=True)
    assert [(type(error), str(error)) for error in errors] == [(ValueError, "item 3")] * 20


def test_the_collector_shows_no_list_that_is_not_full() -> None:
    """Places for results that are not there yet are nobody's to see: a list with holes in it ends the interpreter."""
    with Pool(2) as pool:
        job = pool.map_async(time.sleep, [0.0] * 50 + [0.2] * 4, chunksize=1)
        for _ in range(20):
            lists = [found for found in gc.get_objects() if type(found) is list]
            assert all(len(repr(found)) > 0 for found in lists if len(found) == 54)
            assert all(len(repr(found)) > 0 for found in gc.get_referents(job) if type(found) is list)
            time.sleep(0.005)
        gc.collect()
        result = job.get()
        assert result == [None] * 54
        assert gc.is_tracked(result)
        unknown = pool.map(echo, ([x] for x in range(300)))
        assert unknown == [[x] for x in range(300)]
        assert gc.is_tracked(unknown)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(_values, max_size=8))
def test_any_value_comes_back_equal_and_of_its_type(pool: Any, values: list[Any]) -> None:
    back = pool.map(echo, values, chunksize=3)
    assert back == values
    assert [type(value) for value in back] == [type(value) for value in values]


@pytest.mark.parametrize(
    "value", ["\ud800", "é" * 70000, b"x" * 200_000, 2**200, -(2**63), (1, (2, 3)), (), float("inf")]
)
def test_values_at_the_borders_of_the_encoding_come_back(pool: Any, value: Any) -> None:
    assert pool.apply(echo, (value,)) == value


# -- arrays --


@pytest.mark.parametrize("dtype", ["f8", "i2", "?", "c16", "S5", "M8[s]", [("a", "i4"), ("b", "f8")], "O"])
@pytest.mark.parametrize("shape", [(0,), (3,), (300, 500), (70_000,)])
def test_arrays_come_back_equal(pool: Any, dtype: Any, shape: Any) -> None:
    array = np.zeros(shape, dtype=dtype)
    back = pool.apply(echo, (array,))
    assert back.dtype == array.dtype
    assert back.shape == array.shape
    assert np.array_equal(back, array)
    assert back.flags.writeable


def test_a_result_array_outlives_the_pool_and_may_be_written(own_pool: Any) -> None:
    arrays = own_pool.map(np.arange, [100_000, 200_000])
    own_pool.close()
    own_pool.join()
    arrays[0][5] = -1
    assert arrays[0][5] == -1
    assert arrays[1][-1] == 199_999


def change(array: Any) -> float:
    array[:] = 7
    return float(array.sum())


def test_a_worker_changes_its_own_copy(pool: Any) -> None:
    array = np.zeros(100_000)
    assert pool.apply(change, (array,)) == 700_000
    assert array.sum() == 0


def keep(array: Any) -> int:
    global kept
    if "kept" not in globals():
        kept = []
    kept.append(array)
    return sum(int(one[0]) for one in kept)


def test_a_worker_may_keep_its_argument_beyond_the_task() -> None:
    with Pool(1) as pool:
        sums = [pool.apply(keep, (np.full(50_000, number),)) for number in range(1, 6)]
    assert sums == [1, 3, 6, 10, 15]


def test_a_process_that_is_forked_later_does_not_share_a_result_array(own_pool: Any) -> None:
    array = own_pool.apply(np.zeros, (100_000,))
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        array[:] = 9
        os.write(write, b"x")
        os._exit(0 if array.sum() == 900_000 else 1)
    os.read(read, 1)
    assert array.sum() == 0
    assert os.waitpid(child, 0)[1] == 0
    os.close(read)
    os.close(write)


def test_memory_is_given_back_with_the_arrays(own_pool: Any) -> None:
    for _ in range(30):
        results = own_pool.map(np.ones, [500_000] * 8, chunksize=1)
        assert sum(array.sum() for array in results) == 4_000_000
        del results
    with open(f"/proc/{os.getpid()}/smaps_rollup") as file:
        shared = next(int(line.split()[1]) for line in file if line.startswith("Pss_Shmem"))
    assert shared < 400_000  # kB; 30 rounds of 32 MB would be 960 MB


# -- errors --


def test_an_exception_arrives_with_the_remote_traceback(pool: Any) -> None:
    with pytest.raises(ValueError, match="item 3") as caught:
        pool.map(fail_on, range(20), chunksize=1)
    assert "in fail_on" in str(caught.value.__cause__)


def test_the_first_failing_item_in_order_is_the_one_that_is_raised(pool: Any) -> None:
    for chunksize in (1, 4, None):
        with pytest.raises(ValueError, match="item 3"):
            pool.map(fail_on, range(200), chunksize)


def test_imap_raises_at_the_item_and_goes_on(pool: Any) -> None:
    results = pool.imap(fail_on, range(5))
    assert [next(results) for _ in range(3)] == [0, 1, 2]
    with pytest.raises(ValueError, match="item 3"):
        next(results)
    assert next(results) == 4
    with pytest.raises(StopIteration):
        next(results)


@pytest.mark.parametrize(
    "function, expected",
    [(give_unpicklable, "not me"), (raise_odd, "OddError|argument"), (raise_unpicklable, "with a lock|pickle")],
)
def test_what_cannot_be_sent_back_is_an_error_of_its_item(pool: Any, function: Any, expected: str) -> None:
    with pytest.raises(Exception, match=expected):
        pool.map(function, range(4), chunksize=1)
    assert pool.map(square, [5]) == [25]


def test_an_argument_that_cannot_be_sent_is_an_error_of_its_item(pool: Any) -> None:
    with pytest.raises(RuntimeError, match="not me"):
        pool.map(echo, [1, Unpicklable(), 3])
    for function in (echo, lambda x: x):
        result = pool.apply_async(function, (Unpicklable(),))
        with pytest.raises(RuntimeError, match="not me"):
            result.get(10)
    assert pool.map(square, [5]) == [25]


def test_an_iterators_own_error_comes_at_its_place(pool: Any) -> None:
    def items() -> Any:
        yield 1
        yield 2
        raise KeyError("no more")

    results = pool.imap(square, items())
    assert [next(results), next(results)] == [1, 4]
    with pytest.raises(KeyError, match="no more"):
        next(results)
    assert list(results) == []


# -- timeouts and ranges --


def test_get_takes_its_timeout_by_name_and_nothing_else(pool: Any) -> None:
    result = pool.apply_async(square, (3,))
    assert result.get(timeout=20) == 9
    assert result.get(None) == 9
    with pytest.raises(TypeError):
        result.get(1, 2)
    with pytest.raises(TypeError):
        result.get(limit=1)
    slow = pool.apply_async(time.sleep, (0.5,))
    with pytest.raises(multiprocessing.TimeoutError):
        slow.get(timeout=0.01)
    assert slow.get() is None


def test_a_range_is_mapped_without_a_list_of_it(pool: Any) -> None:
    assert pool.map(square, range(10_000)) == [i * i for i in range(10_000)]
    assert pool.map(square, range(5, 0, -2), chunksize=1) == [25, 9, 1]
    assert pool.map(square, range(0)) == []
    assert pool.starmap_async(pow, [(2, 3)]).get() == [8]
    with pytest.raises(OverflowError):
        pool.map(square, range(2**70))


# -- buffers by themselves --


def tell_of_buffer(buffer: Any) -> tuple[int, bytes, bool]:
    view = memoryview(buffer)
    if not view.readonly:
        buffer[0:1] = b"x"
    return len(buffer), bytes(buffer[:2]), view.readonly


def send_buffer(size: int) -> pickle.PickleBuffer:
    return pickle.PickleBuffer(bytearray(size))


@pytest.mark.parametrize("size", [10, 1_000_000])
def test_a_bare_pickle_buffer_arrives_as_memory_that_can_be_used(size: int) -> None:
    with Pool(1) as pool:
        sent = bytearray(size)
        assert pool.apply(tell_of_buffer, (pickle.PickleBuffer(sent),)) == (size, b"x\0", False)
        assert sent[0] == 0
        assert pool.apply(tell_of_buffer, (pickle.PickleBuffer(bytes(size)),)) == (size, b"\0\0", True)
        back = pool.apply(send_buffer, (size,))
        back[:2] = b"ab"
    assert len(back) == size
    assert bytes(back[:3]) == b"ab\0"
