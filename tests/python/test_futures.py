"""`shoal.ProcessPoolExecutor`: calls, futures, maps, and how they fail."""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import gc
import os
import pickle
import signal
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from concurrent.futures import CancelledError, as_completed, wait
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any

import pytest
from futures_calls import METHODS, Unpicklable, fail_on_3, nap, raise_, sleep, square, wait_until
from shoal import ProcessPoolExecutor
from shoal.multiprocessing import get_context


def echo(x: Any) -> Any:
    return x


def capture(*args: Any, **kwargs: Any) -> Any:
    return args, kwargs


class ExitsOnTheOtherSide:
    def __reduce__(self) -> Any:
        return raise_, (SystemExit(3),)


class UnpicklableOnTheOtherSide:
    def __reduce__(self) -> Any:
        return raise_, (pickle.UnpicklingError("nor me"),)


def give_unpicklable() -> Any:
    return Unpicklable()


class Set(set):  # type: ignore[type-arg]
    """May be referred to weakly."""


@contextlib.contextmanager
def busy_executor(workers: int = 1) -> Iterator[tuple[Any, Callable[[], None]]]:
    """An executor whose workers are all at a call, and what lets them go on."""
    read, write = os.pipe()
    with ProcessPoolExecutor(workers, mp_context=get_context("fork")) as made:
        futures = [made.submit(os.read, read, 1) for _ in range(workers)]
        wait_until(lambda: all(future.running() for future in futures))
        released = False

        def release() -> None:
            nonlocal released
            if not released:
                released = True
                os.write(write, b"x" * workers)

        try:
            yield made, release
        finally:
            release()
    os.close(read)
    os.close(write)


# -- submit and the future --


def test_submit_gives_a_standard_future_with_the_result(shared_executor: Any) -> None:
    future = shared_executor.submit(square, 7)
    assert isinstance(future, concurrent.futures.Future)
    assert future.result() == 49
    assert future.exception() is None
    assert (future.done(), future.running(), future.cancelled(), future.cancel()) == (True, False, False, False)
    assert "state=finished returned int" in repr(future)


def test_submit_passes_all_arguments_and_keywords(shared_executor: Any) -> None:
    future = shared_executor.submit(capture, 1, self=2, fn=3)
    assert future.result() == ((1,), {"self": 2, "fn": 3})
    with pytest.raises(TypeError):
        shared_executor.submit(fn=capture, arg=1)


def test_thousands_of_futures_may_be_outstanding(shared_executor: Any) -> None:
    futures = [shared_executor.submit(square, x) for x in range(6000)]
    assert [future.result() for future in reversed(futures)] == [x * x for x in reversed(range(6000))]


def test_a_future_that_nobody_waits_for_is_done_when_it_is_looked_at(shared_executor: Any) -> None:
    future = shared_executor.submit(square, 3)
    time.sleep(0.3)
    assert future.done()
    assert future._state == "FINISHED"


def test_result_and_exception_give_up_after_their_timeout() -> None:
    with busy_executor() as (executor, release):
        future = executor.submit(square, 3)
        started = time.monotonic()
        for ask in (future.result, future.exception):
            for timeout in (0.05, 0, -1):
                with pytest.raises(concurrent.futures.TimeoutError):
                    ask(timeout)
        assert time.monotonic() - started < 5
        assert not future.done()
        release()
        assert future.result(10) == 9


def test_the_states_are_pending_running_finished() -> None:
    with busy_executor() as (executor, release):
        first = executor.submit(sleep, 0.3)
        second = executor.submit(sleep, 0)
        assert not first.running()
        assert not first.done()
        assert "state=pending" in repr(first)
        release()
        wait_until(first.running)
        assert not first.done()
        assert "state=running" in repr(first)
        assert not second.running()
        assert first.result() == 0.3
        assert not first.running()


def test_a_call_that_no_worker_has_begun_can_be_cancelled_and_no_other() -> None:
    with busy_executor() as (executor, release):
        running = executor.submit(sleep, 0.3)
        pending = executor.submit(sleep, 0)
        release()
        wait_until(running.running)
        assert not running.cancel()
        assert pending.cancel()
        assert pending.cancel()
        assert pending.cancelled()
        assert pending.done()
        for ask in (pending.result, pending.exception):
            with pytest.raises(CancelledError):
                ask()
        assert running.result() == 0.3
        assert not running.cancel()
        assert not running.cancelled()


def test_a_failed_cancel_changes_nothing_about_a_worker_that_dies() -> None:
    with ProcessPoolExecutor(1) as executor:
        future = executor.submit(sleep, 30)
        wait_until(future.running)
        assert not future.cancel()
        os.kill(next(iter(executor._processes)), signal.SIGKILL)
        with pytest.raises(BrokenProcessPool):
            future.result(10)


def test_a_thread_that_waits_is_woken_by_a_cancel_in_another() -> None:
    with busy_executor() as (executor, release):
        future = executor.submit(square, 3)
        outcome: list[str] = []

        def ask() -> None:
            try:
                future.result(20)
            except CancelledError:
                outcome.append("cancelled")

        thread = threading.Thread(target=ask)
        thread.start()
        time.sleep(0.1)
        assert future.cancel()
        thread.join(10)
        assert outcome == ["cancelled"]
        release()


def test_callbacks_run_in_order_with_the_future_and_outside_of_the_waiting_thread(executor: Any) -> None:
    seen: list[Any] = []
    done = threading.Event()
    future = executor.submit(nap, 5)
    future.add_done_callback(lambda f: seen.append((f, threading.current_thread())))
    future.add_done_callback(lambda f: seen.append(f.result()))
    future.add_done_callback(lambda f: done.set())
    assert future.result() == 5
    assert done.wait(10)
    assert seen[0][0] is future
    assert seen[0][1] is not threading.current_thread()
    assert seen[1] == 5
    future.add_done_callback(lambda f: seen.append(threading.current_thread()))
    assert seen[2] is threading.current_thread()


def test_a_callback_is_called_though_nobody_keeps_the_future(executor: Any) -> None:
    done = threading.Event()
    executor.submit(nap, 5).add_done_callback(lambda f: done.set())
    gc.collect()
    assert done.wait(10)


def test_a_callback_that_raises_is_logged_and_the_others_run(executor: Any, caplog: pytest.LogCaptureFixture) -> None:
    done = threading.Event()
    future = executor.submit(nap, 5)
    future.add_done_callback(lambda f: 1 / 0)
    future.add_done_callback(lambda f: done.set())
    assert done.wait(10)
    assert "exception calling callback" in caplog.text


def test_callbacks_of_a_cancelled_future_are_called() -> None:
    with busy_executor() as (executor, release):
        seen: list[bool] = []
        future = executor.submit(square, 3)
        future.add_done_callback(lambda f: seen.append(f.cancelled()))
        assert future.cancel()
        assert seen == [True]
        release()
        assert executor.submit(square, 4).result(10) == 16
    assert seen == [True]


def test_a_callback_may_submit_and_ask_for_other_results(executor: Any) -> None:
    results: list[int] = []
    done = threading.Event()

    def more(future: Any) -> None:
        results.append(executor.submit(square, future.result()).result(10))
        done.set()

    executor.submit(nap, 3).add_done_callback(more)
    assert done.wait(10)
    assert results == [9]


def test_a_callback_may_need_a_lock_that_the_waiting_thread_holds(executor: Any) -> None:
    lock = threading.Lock()
    done = threading.Event()

    def callback(_: Any) -> None:
        with lock:
            done.set()

    with lock:
        future = executor.submit(nap, 3)
        future.add_done_callback(callback)
        assert future.result(10) == 3
    assert done.wait(10)


@pytest.mark.parametrize("return_when", ["ALL_COMPLETED", "FIRST_COMPLETED", "FIRST_EXCEPTION"])
def test_wait_sees_what_is_done(executor: Any, return_when: str) -> None:
    futures = [executor.submit(fail_on_3, x) for x in range(5)] + [executor.submit(sleep, 0.3)]
    done, pending = wait(futures, timeout=20, return_when=return_when)
    assert done | pending == set(futures)
    assert len(done) == 6 if return_when == "ALL_COMPLETED" else len(done) >= 1
    if return_when == "FIRST_EXCEPTION":
        assert futures[3] in done


def test_wait_without_time_sees_what_is_done_already(executor: Any) -> None:
    futures = [executor.submit(square, x) for x in range(5)]
    slow = executor.submit(sleep, 1)
    time.sleep(0.3)
    done, pending = wait([*futures, slow], timeout=0)
    assert (done, pending) == (set(futures), {slow})


def test_as_completed_gives_futures_in_the_order_of_their_ends(executor: Any) -> None:
    futures = {executor.submit(sleep, seconds): seconds for seconds in (0.5, 0.1)}
    assert [futures[future] for future in as_completed(futures, timeout=20)] == [0.1, 0.5]
    many = [executor.submit(square, x) for x in range(3000)]
    assert sum(future.result() for future in as_completed(many, timeout=30)) == sum(x * x for x in range(3000))


def test_wait_and_as_completed_see_cancelled_futures() -> None:
    with busy_executor() as (executor, release):
        futures = [executor.submit(square, x) for x in range(10)]
        timer = threading.Timer(0.1, lambda: [future.cancel() for future in futures])
        timer.start()
        assert len(wait(futures, timeout=10).done) == 10
        timer.join()
        assert len(list(as_completed(futures, timeout=10))) == 10
        release()


def test_many_threads_may_wait_for_the_same_futures(executor: Any) -> None:
    futures = [executor.submit(nap, x) for x in range(30)]
    sums: list[int] = []

    def collect(how: int) -> None:
        if how % 3 == 0:
            sums.append(sum(future.result(20) for future in futures))
        elif how % 3 == 1:
            sums.append(sum(future.result() for future in as_completed(futures, timeout=20)))
        else:
            sums.append(sum(future.result() for future in wait(futures, timeout=20).done))

    threads = [threading.Thread(target=collect, args=(how,)) for how in range(9)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert sums == [sum(range(30))] * 9


def test_many_threads_may_submit_at_once(executor: Any) -> None:
    wrong: list[int] = []

    def use(number: int) -> None:
        for x in range(number, number + 300):
            if executor.submit(square, x).result(20) != x * x:
                wrong.append(x)

    threads = [threading.Thread(target=use, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(40)
    assert not any(thread.is_alive() for thread in threads)
    assert not wrong


def test_asyncio_awaits_its_futures(executor: Any) -> None:
    async def main() -> Any:
        loop = asyncio.get_running_loop()
        first = loop.run_in_executor(executor, square, 5)
        second = asyncio.wrap_future(executor.submit(square, 6))
        third = loop.run_in_executor(executor, fail_on_3, 3)
        values = await asyncio.wait_for(asyncio.gather(first, second, third, return_exceptions=True), 20)
        return values, await asyncio.gather(*(loop.run_in_executor(executor, square, x) for x in range(200)))

    (first, second, third), many = asyncio.run(main())
    assert (first, second) == (25, 36)
    assert isinstance(third, KeyError)
    assert many == [x * x for x in range(200)]


def test_arguments_are_let_go_though_the_future_was_dropped(executor: Any) -> None:
    held = Set([1])
    gone = weakref.ref(held)
    executor.submit(len, held)
    del held
    wait_until(lambda: gone() is None)


# -- errors --


def test_an_exception_comes_with_the_remote_traceback_as_its_cause(shared_executor: Any) -> None:
    future = shared_executor.submit(fail_on_3, 3)
    with pytest.raises(KeyError) as caught:
        future.result()
    assert type(caught.value.__cause__).__name__ == "_RemoteTraceback"
    assert "in fail_on_3" in str(caught.value.__cause__)
    assert future.exception() is caught.value
    assert "raised KeyError" in repr(future)


@pytest.mark.parametrize("error", [SystemExit(3), KeyboardInterrupt(), GeneratorExit()])
def test_what_ends_a_process_elsewhere_is_a_calls_outcome_here(shared_executor: Any, error: BaseException) -> None:
    before = set(shared_executor._processes)
    future = shared_executor.submit(raise_, error)
    assert type(future.exception(10)) is type(error)
    assert shared_executor.submit(square, 2).result(10) == 4
    assert set(shared_executor._processes) == before


@pytest.mark.parametrize("method", METHODS)
def test_what_cannot_be_pickled_fails_its_own_future_only(method: str) -> None:
    with ProcessPoolExecutor(2, mp_context=get_context(method)) as executor:
        with pytest.raises(pickle.PicklingError, match="not me"):
            executor.submit(echo, Unpicklable()).result(20)
        with pytest.raises(pickle.PicklingError, match="not me"):
            executor.submit(give_unpicklable).result(20)
        # concurrent.futures has these two break the executor; programs that look for that find it.
        with pytest.raises(BrokenProcessPool, match="UnpicklingError: nor me") as caught:
            executor.submit(echo, UnpicklableOnTheOtherSide()).result(20)
        assert "nor me" in str(caught.value.__cause__)
        with pytest.raises(BrokenProcessPool, match="UnpicklingError: nor me") as caught:
            executor.submit(UnpicklableOnTheOtherSide).result(20)
        assert isinstance(caught.value.__cause__, pickle.UnpicklingError)
        with pytest.raises(BrokenProcessPool, match="SystemExit: 3"):
            executor.submit(echo, ExitsOnTheOtherSide()).result(20)
        with pytest.raises(BrokenProcessPool, match="SystemExit: 3"):
            executor.submit(ExitsOnTheOtherSide).result(20)
        with pytest.raises(BrokenProcessPool, match="nor me"):
            list(executor.map(echo, [1, UnpicklableOnTheOtherSide()]))
        lock = threading.Lock()
        with pytest.raises((TypeError, AttributeError), match="pickle"):
            executor.submit(lambda: lock).result(20)
        with pytest.raises((TypeError, AttributeError), match="pickle"):
            list(executor.map(lambda x: (lock, x), [1]))
        with pytest.raises(TypeError, match="pickle"):
            list(executor.map(echo, [1, lock]))
        assert executor.submit(square, 3).result(20) == 9


@pytest.mark.parametrize("method", METHODS)
def test_lambdas_and_closures_work_with_every_start_method(method: str) -> None:
    offset = 10
    with ProcessPoolExecutor(2, mp_context=get_context(method)) as executor:
        assert executor.submit(lambda x: x + offset, 1).result(20) == 11
        assert list(executor.map(lambda x: x + offset, [1, 2])) == [11, 12]


# -- map --


@pytest.mark.parametrize("chunksize", [1, 7, 1000])
def test_map_gives_results_in_order(shared_executor: Any, chunksize: int) -> None:
    assert list(shared_executor.map(square, range(500), chunksize=chunksize)) == [x * x for x in range(500)]
    results = shared_executor.map(pow, range(100), range(150), chunksize=chunksize)
    assert list(results) == [x**x for x in range(100)]
    assert list(shared_executor.map(square, [], chunksize=chunksize)) == []
    assert list(shared_executor.map(square, chunksize=chunksize)) == []


def test_map_takes_its_inputs_at_once_and_works_before_it_is_read(executor: Any, tmp_path: Path) -> None:
    taken = []
    results = executor.map(lambda x: (tmp_path / str(x)).touch(), (taken.append(x) or x for x in range(3000)))
    assert taken == list(range(3000))
    wait_until(lambda: len(os.listdir(tmp_path)) == 3000, 30)
    assert next(results) is None


def test_map_checks_its_chunksize(shared_executor: Any) -> None:
    for wrong in (0, -1):
        with pytest.raises(ValueError, match=r"chunksize must be >= 1\."):
            shared_executor.map(square, [1], chunksize=wrong)


@pytest.mark.parametrize("timeout", [None, 30])
def test_an_item_of_a_map_that_raises_stop_iteration_fails_it(shared_executor: Any, timeout: float | None) -> None:
    results = shared_executor.map(raise_, [StopIteration("enough")] * 3, timeout=timeout)
    with pytest.raises(RuntimeError, match="generator raised StopIteration") as caught:
        list(results)
    assert isinstance(caught.value.__cause__, StopIteration)


class Bare(StopIteration):
    """One whose copy was made without `__init__`, as tblib has it: CPython's own pickles have not."""

    def __reduce__(self) -> Any:
        return make_bare, self.args


class RaisesBare:
    def __reduce__(self) -> Any:
        raise Bare.__new__(Bare, "here")


def make_bare(*args: object) -> Bare:
    return Bare.__new__(Bare, *args)


def test_a_stop_iteration_without_its_value_is_no_crash(shared_executor: Any) -> None:
    with pytest.raises(RuntimeError, match="generator raised StopIteration") as caught:
        list(shared_executor.map(raise_, [Bare("enough")] * 3))
    cause = caught.value.__cause__
    assert isinstance(cause, Bare) and cause.value == "enough"
    with pytest.raises(RuntimeError, match="generator raised StopIteration"):
        list(shared_executor.map(abs, [1, RaisesBare(), 2]))
    error = shared_executor.submit(raise_, Bare()).exception()
    assert isinstance(error, Bare) and error.value is None


def test_map_raises_the_exception_of_an_item_in_its_place(shared_executor: Any) -> None:
    results = shared_executor.map(fail_on_3, range(6))
    assert [next(results) for _ in range(3)] == [0, 1, 2]
    with pytest.raises(KeyError) as caught:
        next(results)
    assert "in fail_on_3" in str(caught.value.__cause__)
    with pytest.raises(StopIteration):
        next(results)


def test_map_gives_up_after_its_timeout_from_the_call(executor: Any) -> None:
    results = executor.map(sleep, [0, 0, 4], timeout=2)
    assert [next(results), next(results)] == [0, 0]
    with pytest.raises(concurrent.futures.TimeoutError):
        next(results)
    assert list(executor.map(square, range(10), timeout=20)) == [x * x for x in range(10)]


def test_a_timeout_that_an_item_raised_is_the_items(executor: Any) -> None:
    with pytest.raises(TimeoutError, match="mine"):
        list(executor.map(raise_, [TimeoutError("mine")], timeout=20))


@pytest.mark.parametrize("how", ["error", "close", "drop"])
def test_what_is_left_of_a_map_that_ended_early_is_cancelled(tmp_path: Path, how: str) -> None:
    def work(x: int) -> int:
        time.sleep(0.01)
        (tmp_path / str(x)).touch()
        return fail_on_3(x)

    with ProcessPoolExecutor(2) as executor:
        results = executor.map(work, range(1000))
        next(results)
        if how == "error":
            with pytest.raises(KeyError):
                list(results)
        elif how == "close":
            results.close()
        else:
            del results
            gc.collect()
    assert 1 <= len(os.listdir(tmp_path)) < 500


def test_results_of_map_are_the_readers_alone(shared_executor: Any) -> None:
    for result in shared_executor.map(make_set, range(10)):
        gone = weakref.ref(result)
        del result
        assert gone() is None


def make_set(x: int) -> Set:
    return Set([x])


def test_a_subclass_that_submits_in_its_own_way_maps_in_that_way() -> None:
    calls: list[Any] = []

    class Own(ProcessPoolExecutor):
        def submit(self, fn: Any, /, *args: Any, **kwargs: Any) -> Any:
            calls.append(fn)
            return super().submit(fn, *args, **kwargs)

    with Own(2) as executor:
        assert list(executor.map(square, range(6), chunksize=2)) == [x * x for x in range(6)]
    assert len(calls) == 3
