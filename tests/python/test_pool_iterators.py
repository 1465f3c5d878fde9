"""A pool and the user's code that it runs: iterators and callbacks that block, raise, end the pool, or use it."""

from __future__ import annotations

import itertools
import multiprocessing
import os
import queue
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import shoal
from helpers import run_program
from shoal.multiprocessing import Pool


def square(x: int) -> int:
    return x * x


def nap(x: Any) -> Any:
    time.sleep(0.001)
    return x


@pytest.fixture
def pool() -> Any:
    with Pool(2) as made:
        yield made


def slowly(count: int, pause: float = 0.02) -> Iterator[int]:
    for item in range(count):
        time.sleep(pause)
        yield item


# -- iterators that are slow, or block --


def test_imap_returns_at_once_and_gives_results_while_its_iterator_goes_on(pool: Any) -> None:
    given = 0

    def items() -> Iterator[int]:
        nonlocal given
        for given in range(1, 101):
            time.sleep(0.01)
            yield given

    results = pool.imap(square, items())
    assert given < 50
    assert next(results) == 1
    assert given < 80
    assert list(results) == [x * x for x in range(2, 101)]


def test_a_blocked_iterator_does_not_hold_up_other_calls(pool: Any) -> None:
    source: queue.Queue[int | None] = queue.Queue()
    results = pool.imap(square, iter(source.get, None))
    assert pool.apply(square, (4,)) == 16
    source.put(3)
    assert next(results) == 9
    assert pool.map(square, range(10)) == [x * x for x in range(10)]
    source.put(None)
    assert list(results) == []


def test_a_worker_that_dies_is_seen_while_an_iterator_blocks(pool: Any) -> None:
    source: queue.Queue[int | None] = queue.Queue()
    source.put(5)
    results = pool.imap(os._exit, iter(source.get, None))
    with pytest.raises(shoal.WorkerDied):
        results.next(20)
    source.put(None)


def test_the_iterator_of_a_map_runs_in_the_thread_that_called_it(pool: Any) -> None:
    wrong: list[Any] = []

    def items(thread: int) -> Iterator[int]:
        for item in range(300):
            if threading.get_ident() != thread:
                wrong.append(item)
            yield item

    def use() -> None:
        for _ in range(5):
            if pool.map(square, items(threading.get_ident())) != [x * x for x in range(300)]:
                wrong.append("results")

    threads = [threading.Thread(target=use) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


# -- iterators that use their pool --


@pytest.mark.parametrize("count", [10, 2000])
def test_an_imap_may_be_the_iterator_of_another(pool: Any, count: int) -> None:
    assert list(pool.imap(square, pool.imap(square, range(count)))) == [x**4 for x in range(count)]


def test_a_generator_may_ask_its_own_pool(pool: Any) -> None:
    assert pool.map(square, (pool.apply(square, (x,)) for x in range(5))) == [x**4 for x in range(5)]


# -- iterators that raise --


def failing() -> Iterator[int]:
    yield 1
    yield 2
    raise LookupError("no more")


@pytest.mark.parametrize("values", [True, False])
def test_a_generators_own_error_is_the_maps(pool: Any, values: bool) -> None:
    with pytest.raises(LookupError, match="no more"):
        pool.map(square, failing(), return_exceptions=values)
    results = pool.imap(square, failing(), return_exceptions=values)
    assert [next(results), next(results)] == [1, 4]
    with pytest.raises(LookupError, match="no more"):
        next(results)
    assert list(results) == []


@pytest.mark.parametrize("values", [True, False])
def test_an_interrupt_inside_of_a_generator_is_no_items_value(pool: Any, values: bool) -> None:
    def items() -> Iterator[int]:
        yield from range(5)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        pool.map(square, items(), return_exceptions=values)
    assert pool.map(square, [3]) == [9]


# -- the end of the pool meanwhile --


@pytest.mark.parametrize("call", ["map", "imap"])
def test_a_pool_may_be_terminated_while_its_iterator_runs(call: str) -> None:
    for _ in range(5):
        with Pool(2) as pool:
            timer = threading.Timer(0.1, pool.terminate)
            timer.start()
            with pytest.raises((shoal.TaskCancelled, RuntimeError)):
                list(getattr(pool, call)(square, slowly(200), chunksize=20))
            timer.join()


def test_leaving_a_pool_while_a_progress_thread_feeds_is_sound() -> None:
    for _ in range(3):
        with Pool(2) as pool:
            results = pool.imap(square, slowly(1000, 0.005), chunksize=20, progress=lambda done, total: None)
            next(results)


def test_a_terminated_pools_results_are_there_as_errors() -> None:
    errors: list[BaseException] = []
    pool = Pool(1)
    result = pool.apply_async(time.sleep, (100,), callback=print, error_callback=errors.append)
    pool.terminate()
    with pytest.raises(shoal.TaskCancelled):
        result.get(10)
    assert result.ready()
    assert [type(error) for error in errors] == [shoal.TaskCancelled]


def test_results_outlive_a_pool_that_was_dropped() -> None:
    assert Pool(2).map_async(square, range(5)).get(20) == [x * x for x in range(5)]
    assert list(Pool(2).imap(square, range(500))) == [x * x for x in range(500)]


# -- signals --


@pytest.mark.parametrize("chunksize", [None, 1])
def test_a_signal_ends_a_busy_map_at_once(pool: Any, chunksize: int | None) -> None:

    class Enough(Exception):
        pass

    def stop(number: int, frame: Any) -> None:
        raise Enough

    before = signal.signal(signal.SIGALRM, stop)
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.3)
        with pytest.raises(Enough):
            pool.map(nap, range(20_000), chunksize)
        assert pool.apply(square, (3,)) == 9
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


# -- values that misbehave --


class Unprintable:
    def __reduce__(self) -> Any:
        raise ValueError("cannot be sent")

    def __repr__(self) -> str:
        raise ValueError("cannot be shown")


def give_unprintable(_: Any) -> Any:
    return Unprintable()


def test_a_result_that_can_neither_be_sent_nor_shown_is_its_items_error(pool: Any) -> None:
    pids = {process.pid for process in pool._pool}
    with pytest.raises(Exception, match="cannot be sent"):
        pool.map(give_unprintable, [1])
    assert {process.pid for process in pool._pool} == pids


class Counter:
    """Callable, found by a name, and with a state that changes."""

    __module__ = __name__
    __qualname__ = "counter"

    def __init__(self) -> None:
        self.step = 1

    def __call__(self, x: int) -> int:
        return x * self.step


counter = Counter()


def test_a_callable_object_is_sent_with_the_state_it_has_now(pool: Any) -> None:
    assert pool.map(counter, [1]) == [1]
    counter.step = 10
    assert pool.map(counter, [1]) == [10]


def test_a_pool_does_not_touch_the_parents_threads(tmp_path: Path) -> None:
    done = run_program(
        tmp_path,
        """
        import time, numpy, threadpoolctl
        from shoal.multiprocessing import Pool

        def numbers():
            return [pool["num_threads"] for pool in threadpoolctl.threadpool_info()]

        if __name__ == "__main__":
            before = numbers()
            with Pool(4, maxtasksperchild=1) as pool:
                pool.map(abs, range(20), chunksize=1)
                assert numbers() == before
            time.sleep(0.3)
            assert numbers() == before
            print("same")
        """,
    )
    assert done.stdout == "same\n", done.stderr


@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
def test_functions_of_a_prompt_work_with_every_start_method(tmp_path: Path, method: str) -> None:
    import subprocess
    import sys

    program = f"""
from shoal.multiprocessing import get_context
def f(x): return x + 1
pool = get_context({method!r}).Pool(2)
print(pool.map(f, [1, 2]))
def g(x): return x * 2
print(pool.map(g, [1, 2]))
def f(x): return x - 1
print(pool.map(f, [1, 2]))
pool.terminate()
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=50, cwd=tmp_path)
    assert done.stdout.splitlines() == ["[2, 3]", "[2, 4]", "[0, 1]"], done.stderr


def test_callbacks_run_while_an_iterator_blocks(pool: Any) -> None:
    source: queue.Queue[int | None] = queue.Queue()
    results = pool.imap(square, iter(source.get, None))
    called = threading.Event()
    pool.apply_async(square, (3,), callback=lambda value: called.set())
    assert called.wait(20)
    source.put(None)
    assert list(results) == []


def test_who_reads_an_iterator_that_was_cancelled_is_told_so(pool: Any) -> None:
    results = pool.imap(square, itertools.count())
    assert next(results) == 0
    assert results.cancel()
    outcomes: list[Any] = [0]  # what workers were at ends as usual, each item that was handed out to none is told of
    while True:
        try:
            outcomes.append(next(results))
        except StopIteration:
            break
        except shoal.TaskCancelled:
            outcomes.append(None)
    # Workers go on taking while it is taken back, so one that is taken may come after one that was taken back.
    assert all(outcome in (number**2, None) for number, outcome in enumerate(outcomes))
    assert None in outcomes
    assert pool.map(square, [3]) == [9]


@pytest.mark.parametrize("method", ["imap", "imap_unordered"])
def test_both_names_of_next_take_a_timeout(pool: Any, method: str) -> None:
    results = getattr(pool, method)(time.sleep, [0, 0, 0.5])
    assert results.__next__() is None
    assert results.__next__(20) is None
    for following in (results.next, results.__next__):
        with pytest.raises(multiprocessing.TimeoutError):
            following(0.01)
    assert list(results) == [None]
    with pytest.raises(StopIteration):
        results.__next__(timeout=0.01)


def raise_timeout(x: int) -> int:
    if x == 1:
        raise TimeoutError(x)
    return x


@pytest.mark.timeout(60)
@pytest.mark.parametrize("method", ["imap", "imap_unordered"])
def test_an_item_that_fails_by_a_timeout_of_its_own_is_told_so_by_a_next_with_a_timeout(pool: Any, method: str) -> None:
    def outcomes(results: Any) -> list[Any]:
        found: list[Any] = []
        while True:
            try:
                found.append(results.next(20))
            except StopIteration:
                return found
            except Exception as error:
                found.append(error)

    found = outcomes(getattr(pool, method)(raise_timeout, range(3)))
    assert sorted(x for x in found if isinstance(x, int)) == [0, 2]
    assert [(type(x), x.args) for x in found if not isinstance(x, int)] == [(TimeoutError, (1,))]
    (late,) = outcomes(getattr(pool, method)(time.sleep, [30], task_timeout=0.05))
    assert isinstance(late, shoal.TaskTimeout)

    def bare() -> Iterator[int]:
        yield 5
        raise TimeoutError

    found = outcomes(getattr(pool, method)(square, bare()))
    assert 25 in found
    assert [type(x) for x in found if x != 25] == [TimeoutError]


def test_a_sub_class_of_an_iterator_goes_on_as_it_says(pool: Any) -> None:
    class Doubling(type(pool.imap(abs, []))):  # type: ignore[misc]
        def next(self, timeout: float | None = None) -> Any:
            return 2 * super().next(timeout)

        __next__ = next

    results = pool.imap(square, range(3))
    results.__class__ = Doubling
    assert list(results) == [0, 2, 8]


@pytest.mark.parametrize(
    "numbers",
    [
        range(1000),
        range(1000, -1000, -7),
        range(5, 5),
        range(2**63 - 500, 2**63, 3),
        range(-(2**63), -(2**63) + 300),
        range(2**63 - 100, 2**63 + 100),
        range(2**70, 2**70 + 50, 7),
        range(-(2**63) + 10, -(2**63) - 40, -1),
        range(0, 2**63, 2**56),
    ],
    ids=repr,
)
def test_each_number_of_a_range_is_handed_out_as_it_is(numbers: range) -> None:
    with Pool(2) as pool:
        for chunksize in (None, 1, 7, 100):
            assert pool.map(str, numbers, chunksize) == [str(number) for number in numbers]
        assert list(pool.imap(str, numbers)) == [str(number) for number in numbers]
        assert sorted(pool.imap_unordered(int, numbers, 3)) == sorted(numbers)
        assert pool.map(type, numbers) == [int] * len(numbers)


@pytest.mark.parametrize("length", [10**12, 10**30])
@pytest.mark.parametrize("name", ["imap", "imap_unordered"])
def test_a_range_longer_than_memory_can_be_read_and_given_up(length: int, name: str) -> None:
    with Pool(2) as pool:
        results = getattr(pool, name)(abs, range(length))
        assert {next(results) for _ in range(10)} <= set(range(10_000))
        results.cancel()
        with pytest.raises(shoal.TaskCancelled):
            for _ in results:
                pass
        left = getattr(pool, name)(abs, range(length))
        assert next(left) < 10_000
    with pytest.raises(shoal.TaskCancelled):  # the pool was terminated
        for _ in left:
            pass


def test_an_iterable_that_takes_time_to_end_holds_up_no_other_call(own_pool: Any) -> None:
    ends, may_end = threading.Event(), threading.Event()

    def numbers() -> Iterator[int]:
        try:
            yield from itertools.count()
        finally:  # while another call, made before this one, is handed out to its end
            ends.set()
            may_end.wait(20)

    pauses = [0.0005] * 2000  # too many for all to be handed out at once
    before = own_pool.map_async(time.sleep, pauses, 1)
    given_up = own_pool.imap(abs, numbers())
    after = own_pool.map_async(time.sleep, pauses, 1)
    assert next(given_up) == 0  # its source was begun
    thread = threading.Thread(target=given_up.cancel)
    thread.start()
    try:
        assert ends.wait(20)
        assert before.get(20) == [None] * len(pauses)
    finally:
        may_end.set()
    thread.join(20)
    assert after.get(20) == [None] * len(pauses)
