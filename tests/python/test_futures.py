"""`shoal.ProcessPoolExecutor` as its users see it."""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import gc
import inspect
import multiprocessing
import os
import pickle
import signal
import subprocess
import sys
import textwrap
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from concurrent.futures import CancelledError, as_completed, wait
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any

import pytest
import shoal
import shoal.futures
from helpers import run_program
from shoal import ProcessPoolExecutor, _zygote
from shoal.multiprocessing import get_context

METHODS = ["fork", "spawn", "forkserver"]


def square(x: int) -> int:
    return x * x


def echo(x: Any) -> Any:
    return x


def capture(*args: Any, **kwargs: Any) -> Any:
    return args, kwargs


def nap(x: Any) -> Any:
    time.sleep(0.02)
    return x


def sleep(seconds: float) -> float:
    time.sleep(seconds)
    return seconds


def fail_on_3(x: int) -> int:
    if x == 3:
        raise KeyError(x)
    return x


def die_on_3(x: int) -> int:
    if x == 3:
        os.kill(os.getpid(), signal.SIGKILL)
    return x


def kill_self() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def raise_(error: BaseException) -> None:
    raise error


class Unpicklable:
    def __reduce__(self) -> Any:
        raise pickle.PicklingError("not me")


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


def wait_until(condition: Callable[[], bool], limit: float = 10) -> None:
    deadline = time.monotonic() + limit
    while not condition():
        assert time.monotonic() < deadline, "it did not come to pass"
        time.sleep(0.005)


def is_alive(pid: int) -> bool:
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


@pytest.fixture(scope="module")
def shared_executor() -> Iterator[Any]:
    with ProcessPoolExecutor(2) as made:
        made.submit(square, 1).result()  # its workers are there before a test begins
        yield made


@pytest.fixture
def executor() -> Iterator[Any]:
    with ProcessPoolExecutor(2) as made:
        yield made


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


# -- workers that die --


@pytest.mark.parametrize("method", METHODS)
def test_a_dead_worker_fails_the_call_it_held_and_the_executor_goes_on(method: str) -> None:
    with ProcessPoolExecutor(2, mp_context=get_context(method)) as executor:
        futures = [executor.submit(nap, x) for x in range(10)]
        dying = executor.submit(kill_self)
        futures += [executor.submit(nap, x) for x in range(10, 20)]
        with pytest.raises(BrokenProcessPool) as caught:
            dying.result(20)
        assert isinstance(caught.value, shoal.WorkerDied)
        assert caught.value.signal == "SIGKILL"
        again = pickle.loads(pickle.dumps(caught.value))
        assert isinstance(again, BrokenProcessPool)
        assert str(again) == str(caught.value)
        assert [future.result(20) for future in futures] == list(range(20))
        assert not executor._broken
        assert executor.submit(square, 3).result(20) == 9


def test_a_dead_worker_is_seen_by_wait_and_by_callbacks(executor: Any) -> None:
    errors: list[Any] = []
    called = threading.Event()
    future = executor.submit(os._exit, 5)
    future.add_done_callback(lambda f: (errors.append(f.exception()), called.set()))
    assert wait([future], timeout=20).done == {future}
    assert called.wait(10)
    assert errors[0].exitcode == 5


def test_a_worker_that_dies_in_a_map_fails_its_item_only(executor: Any) -> None:
    for chunksize in (1, 3):
        results = executor.map(die_on_3, range(6), chunksize=chunksize)
        assert [next(results) for _ in range(3)] == [0, 1, 2]
        with pytest.raises(BrokenProcessPool) as caught:
            next(results)
        assert isinstance(caught.value, shoal.WorkerDied)
        assert caught.value.item == 3
        with pytest.raises(StopIteration):
            next(results)
    values = list(executor.map(die_on_3, range(6), return_exceptions=True))
    assert isinstance(values.pop(3), BrokenProcessPool)
    assert values == [0, 1, 2, 4, 5]


def test_an_idle_worker_that_is_killed_is_replaced(executor: Any) -> None:
    executor.submit(square, 1).result()
    killed = set(executor._processes)
    for pid in killed:
        os.kill(pid, signal.SIGKILL)
    assert list(executor.map(square, range(100), timeout=20)) == [x * x for x in range(100)]
    wait_until(lambda: len(executor._processes) == 2 and not killed & set(executor._processes))


def test_a_crash_shows_where_in_python_it_happened(executor: Any) -> None:
    with pytest.raises(BrokenProcessPool, match="in kill_by_abort"):
        executor.submit(kill_by_abort).result(20)


def kill_by_abort() -> None:
    os.abort()


# -- initializers, and a broken executor --

initialized = None


def initialize(value: Any) -> None:
    global initialized
    initialized = value


def give_initialized() -> Any:
    return initialized


def fail_to_initialize(how: str) -> None:
    time.sleep(0.05)
    if how == "exit":
        os._exit(3)
    if how == "abort":
        os.abort()
    raise ValueError("error in initializer")


@pytest.mark.parametrize("method", METHODS)
def test_each_worker_is_initialized_before_its_first_call(method: str) -> None:
    context = get_context(method)
    with ProcessPoolExecutor(2, context, initialize, ("yes",)) as executor:
        assert {executor.submit(give_initialized).result(20) for _ in range(10)} == {"yes"}
        for pid in executor._processes:
            os.kill(pid, signal.SIGKILL)
        assert list(executor.map(lambda _: give_initialized(), range(10))) == ["yes"] * 10


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("how", ["raise", "exit", "abort"])
def test_an_initializer_that_fails_breaks_the_executor(method: str, how: str, capfd: Any) -> None:
    with ProcessPoolExecutor(2, get_context(method), fail_to_initialize, (how,)) as executor:
        futures = [executor.submit(square, x) for x in range(5)]
        watched: list[Any] = []
        futures[0].add_done_callback(lambda f: watched.append(f.exception()))
        for future in futures:
            with pytest.raises(BrokenProcessPool, match="terminated abruptly while the future was running or pending"):
                future.result(20)
        with pytest.raises(BrokenProcessPool, match="A child process terminated abruptly, the process pool is not"):
            executor.submit(square, 3)
        with pytest.raises(BrokenProcessPool):
            executor.map(square, [3])
        assert "not usable anymore" in str(executor._broken)
        cause = str(futures[0].exception().__cause__)
        wait_until(lambda: bool(watched))
        assert isinstance(watched[0], BrokenProcessPool)
    if how != "exit":
        assert "in fail_to_initialize" in cause
    if how == "raise" and method != "fork":  # what pytest does to logging is inherited by fork
        error = capfd.readouterr().err
        assert "Exception in initializer:" in error
        assert "ValueError: error in initializer" in error


def test_an_executor_whose_workers_cannot_be_started_any_more_is_broken(monkeypatch: pytest.MonkeyPatch) -> None:
    with ProcessPoolExecutor(1) as executor:
        assert executor.submit(square, 2).result() == 4
        pending = executor.submit(sleep, 30)

        def refuse(*args: Any) -> Any:
            raise BlockingIOError(11, "no processes left")

        monkeypatch.setattr(executor._crew, "_start", refuse)
        os.kill(next(iter(executor._processes)), signal.SIGKILL)
        with pytest.raises(BrokenProcessPool):
            pending.result(20)
        wait_until(lambda: bool(executor._broken))
        with pytest.raises(BrokenProcessPool) as caught:
            executor.submit(square, 3)
        assert isinstance(caught.value.__cause__, BlockingIOError)


def test_a_first_start_that_fails_is_raised_and_may_be_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    context = get_context("fork")
    with ProcessPoolExecutor(1, context) as executor:
        with monkeypatch.context() as patch:
            patch.setattr(context.Process, "start", lambda self: raise_(BlockingIOError(11, "no processes left")))
            with pytest.raises(BlockingIOError):
                executor.submit(square, 2)
        assert executor.submit(square, 2).result(20) == 4


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


def test_map_raises_the_exception_of_an_item_in_its_place(shared_executor: Any) -> None:
    results = shared_executor.map(fail_on_3, range(6))
    assert [next(results) for _ in range(3)] == [0, 1, 2]
    with pytest.raises(KeyError) as caught:
        next(results)
    assert "in fail_on_3" in str(caught.value.__cause__)
    with pytest.raises(StopIteration):
        next(results)


def test_map_gives_up_after_its_timeout_from_the_call(executor: Any) -> None:
    results = executor.map(sleep, [0, 0, 1.5], timeout=0.5)
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


# -- shutdown --


def test_shutdown_finishes_what_was_submitted_and_takes_no_more() -> None:
    executor = ProcessPoolExecutor(2)
    futures = [executor.submit(nap, x) for x in range(20)]
    results = executor.map(nap, range(20))
    pids = list(executor._processes)
    executor.shutdown()
    executor.shutdown()
    assert not any(is_alive(pid) for pid in pids)
    assert executor._processes is None
    assert [future.result(0) for future in futures] == list(range(20))
    assert list(results) == list(range(20))
    for use in (lambda: executor.submit(square, 1), lambda: executor.map(square, [1])):
        with pytest.raises(RuntimeError, match="cannot schedule new futures after shutdown"):
            use()


def test_shutdown_of_an_executor_that_was_not_used_starts_nothing() -> None:
    executor = ProcessPoolExecutor(2)
    assert executor._processes == {}
    executor.shutdown()
    with pytest.raises(RuntimeError, match="cannot schedule new futures after shutdown"):
        executor.submit(square, 1)


def test_shutdown_without_waiting_returns_at_once_and_all_is_done_in_the_end() -> None:
    executor = ProcessPoolExecutor(2)
    called = threading.Event()
    futures = [executor.submit(sleep, 0.2) for _ in range(4)]
    futures[3].add_done_callback(lambda f: called.set())
    pids = list(executor._processes)
    crew = executor._crew
    started = time.monotonic()
    executor.shutdown(wait=False)
    assert time.monotonic() - started < 0.2
    assert called.wait(10)
    assert [future.result(10) for future in futures] == [0.2] * 4
    wait_until(lambda: not any(is_alive(pid) for pid in pids))
    wait_until(lambda: not crew._thread.is_alive())
    assert crew._crashes == [-1, -1]
    executor.shutdown(wait=True)


def test_shutdown_can_cancel_what_no_worker_has_begun() -> None:
    executor = ProcessPoolExecutor(2)
    futures = [executor.submit(sleep, 0.1) for _ in range(50)]
    results = executor.map(nap, range(1000))
    told: list[bool] = []
    futures[-1].add_done_callback(lambda f: told.append(f.cancelled()))
    wait_until(futures[0].running)
    executor.shutdown(cancel_futures=True)
    cancelled = [future for future in futures if future.cancelled()]
    assert len(cancelled) > 40
    others = [future for future in futures if not future.cancelled()]
    assert len(others) >= 1
    assert all(future.done() and future.exception() is None for future in others)
    assert told == [True]
    with pytest.raises(CancelledError):
        list(results)


def test_cancelled_then_shut_down_does_not_hang() -> None:
    executor = ProcessPoolExecutor(1)
    executor.submit(square, 1).cancel()
    executor.shutdown()


def test_a_dropped_executor_finishes_its_work_and_ends_its_workers() -> None:
    before = len(os.listdir("/proc/self/fd"))
    executor: Any = ProcessPoolExecutor(2)
    futures = [executor.submit(nap, x) for x in range(20)]
    results = executor.map(square, range(10))
    pids = list(executor._processes)
    thread = executor._crew._thread
    del executor
    gc.collect()
    assert [future.result(10) for future in futures] == list(range(20))
    assert list(results) == [x * x for x in range(10)]
    thread.join(10)
    assert not thread.is_alive()
    assert not any(is_alive(pid) for pid in pids)
    del futures, results
    gc.collect()
    assert len(os.listdir("/proc/self/fd")) <= before + 1


def test_many_executors_leave_no_descriptors_behind() -> None:
    def use() -> None:
        with ProcessPoolExecutor(1) as executor:
            executor.submit(square, 1).result()

    use()
    gc.collect()
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(20):
        use()
    gc.collect()
    assert len(os.listdir("/proc/self/fd")) <= before


PROGRAM = """
    import atexit, sys, time
    from concurrent.futures import ProcessPoolExecutor, Future
    import multiprocessing

    def say(x):
        time.sleep(0.3)
        print(x, flush=True)

    if __name__ == "__main__":
        method, how = sys.argv[1:]
        executor = ProcessPoolExecutor(2, mp_context=multiprocessing.get_context(method))
        first = executor.submit(say, "said")
        first.add_done_callback(lambda f: print("called", flush=True))
        if how == "shut":
            executor.shutdown(wait=False)
        elif how == "dropped":
            del executor, first
        elif how == "late":
            @atexit.register
            def late():
                try:
                    executor.submit(say, "never")
                except RuntimeError as error:
                    print(error)
"""


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("how", ["left", "shut", "dropped", "late"])
def test_the_end_of_the_program_finishes_what_was_submitted(tmp_path: Path, method: str, how: str) -> None:
    done = run_program(tmp_path, PROGRAM, method, how, shoal=True)
    lines = ["said", "called"]
    if how == "late":
        lines.append("cannot schedule new futures after interpreter shutdown")
    assert done.stdout.splitlines() == lines, done.stderr
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("where", ["result", "map", "wait", "shutdown", "exit"])
def test_ctrl_c_leaves_nothing_behind(tmp_path: Path, where: str) -> None:
    program = tmp_path / "program.py"
    program.write_text(
        textwrap.dedent(
            """
            import sys, time, concurrent.futures
            from shoal import ProcessPoolExecutor, _zygote

            if __name__ == "__main__":
                where = sys.argv[1]
                if where == "exit":
                    executor = ProcessPoolExecutor(2)
                    futures = [executor.submit(time.sleep, 60) for _ in range(10)]
                    print(*executor._processes, flush=True)
                    futures[0].result()
                with ProcessPoolExecutor(2) as executor:
                    futures = [executor.submit(time.sleep, 60) for _ in range(10)]
                    print(*executor._processes, flush=True)
                    if where == "result":
                        futures[0].result()
                    elif where == "map":
                        list(executor.map(time.sleep, [60] * 10))
                    elif where == "wait":
                        concurrent.futures.wait(futures)
            """
        )
    )
    process = subprocess.Popen(
        [sys.executable, str(program), where],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    assert process.stdout is not None
    pids = [int(pid) for pid in process.stdout.readline().split()]
    assert len(pids) == 2
    time.sleep(0.5)
    os.killpg(process.pid, signal.SIGINT)
    _, error = process.communicate(timeout=20)
    assert "KeyboardInterrupt" in error
    assert process.returncode != 0
    wait_until(lambda: not any(is_alive(pid) for pid in pids))


@pytest.mark.parametrize("method", METHODS)
def test_workers_end_with_a_parent_that_is_killed(tmp_path: Path, method: str) -> None:
    done = run_program(
        tmp_path,
        """
        import os, signal, sys, time
        import shoal
        from shoal.multiprocessing import get_context

        if __name__ == "__main__":
            executor = shoal.ProcessPoolExecutor(2, get_context(sys.argv[1]))
            futures = [executor.submit(time.sleep, 60) for _ in range(2)]
            while not all(future.running() for future in futures):
                time.sleep(0.01)
            print(*executor._processes, flush=True)
            os.kill(os.getpid(), signal.SIGKILL)
        """,
        method,
    )
    pids = [int(pid) for pid in done.stdout.split()]
    assert len(pids) == 2
    wait_until(lambda: not any(is_alive(pid) for pid in pids))


# -- what it is made of --


def test_the_interface_is_the_standard_ones() -> None:
    standard = ProcessPoolExecutor.__mro__[1]
    assert standard.__module__ == "concurrent.futures.process"
    assert issubclass(ProcessPoolExecutor, concurrent.futures.Executor)
    names = ["max_workers", "mp_context", "initializer", "initargs"]
    assert list(inspect.signature(ProcessPoolExecutor).parameters)[:4] == names
    for name in ("__init__", "submit", "map", "shutdown"):
        ours = inspect.signature(getattr(ProcessPoolExecutor, name)).parameters
        theirs = inspect.signature(getattr(standard, name)).parameters
        assert set(theirs) <= set(ours)
        for parameter in theirs:
            assert ours[parameter].kind == theirs[parameter].kind
            assert ours[parameter].default == theirs[parameter].default


def test_wrong_arguments_are_refused_as_by_the_standard_one() -> None:
    for number in (0, -1):
        with pytest.raises(ValueError, match="max_workers must be greater than 0"):
            ProcessPoolExecutor(number)
    with pytest.raises(TypeError, match="initializer must be a callable"):
        ProcessPoolExecutor(1, initializer=3)
    with pytest.raises(TypeError, match="max_tasks_per_child must be an integer"):
        ProcessPoolExecutor(1, max_tasks_per_child="3")
    with pytest.raises(ValueError, match="max_tasks_per_child must be >= 1"):
        ProcessPoolExecutor(1, max_tasks_per_child=0)
    with pytest.raises(ValueError, match="max_tasks_per_child is incompatible with the 'fork'"):
        ProcessPoolExecutor(1, get_context("fork"), max_tasks_per_child=3)
    with pytest.raises(TypeError, match="worker_exit must be a callable"):
        ProcessPoolExecutor(1, worker_exit=3)


def test_the_defaults_are_this_pythons() -> None:
    executor = ProcessPoolExecutor()
    assert executor._max_workers == (getattr(os, "process_cpu_count", os.cpu_count)() or 1)
    assert executor._mp_context.get_start_method() == multiprocessing.get_start_method()
    assert ProcessPoolExecutor(1, max_tasks_per_child=3)._mp_context.get_start_method() == "spawn"
    context = get_context("spawn")
    assert ProcessPoolExecutor(1, context)._mp_context is context


def test_a_start_method_that_the_program_set_counts(tmp_path: Path) -> None:
    done = run_program(
        tmp_path,
        """
        import sys, multiprocessing
        import shoal, shoal.multiprocessing

        def method():
            return multiprocessing.current_process().__class__.__name__

        if __name__ == "__main__":
            (shoal.multiprocessing if sys.argv[1] == "ours" else multiprocessing).set_start_method("spawn")
            with shoal.ProcessPoolExecutor(1) as executor:
                print(executor.submit(method).result())
        """,
        "ours",
    )
    assert done.stdout == "SpawnProcess\n", done.stderr
    done = run_program(tmp_path, (tmp_path / "program.py").read_text(), "theirs")
    assert done.stdout == "SpawnProcess\n", done.stderr


@pytest.mark.parametrize("method", METHODS)
def test_the_standard_librarys_contexts_serve_too(method: str) -> None:
    from multiprocessing import forkserver

    with ProcessPoolExecutor(2, multiprocessing.get_context(method)) as executor:
        assert list(executor.map(square, range(10))) == [x * x for x in range(10)]
    forkserver._forkserver._stop()  # type: ignore[attr-defined]  # it would stay as long as this program


@pytest.mark.parametrize("method", ["spawn", "forkserver"])
def test_a_worker_is_replaced_after_max_tasks_per_child(method: str) -> None:
    with ProcessPoolExecutor(1, get_context(method), max_tasks_per_child=3) as executor:
        pids = [executor.submit(os.getpid).result(20) for _ in range(7)]
        assert len(executor._processes) == 1
    assert pids[0] == pids[1] == pids[2] != pids[3]
    assert pids[3] == pids[4] == pids[5] != pids[6]


def test_its_processes_can_be_reached_by_pid(executor: Any) -> None:
    assert executor._processes == {}
    pid = executor.submit(os.getpid).result()
    assert len(executor._processes) == 2
    assert executor._processes[pid].pid == pid
    assert executor._processes[pid].is_alive()


@pytest.mark.parametrize("method", ["spawn", "forkserver"])
def test_clean_workers_are_started_as_they_are_needed(method: str) -> None:
    with ProcessPoolExecutor(4, get_context(method)) as executor:
        for x in range(5):
            assert executor.submit(square, x).result() == x * x
        assert len(executor._processes) == 1
        futures = [executor.submit(nap, x) for x in range(10)]
        assert len(executor._processes) == 4
        assert [future.result() for future in futures] == list(range(10))
    with ProcessPoolExecutor(4, get_context(method)) as executor:
        assert list(executor.map(nap, range(10), chunksize=4)) == list(range(10))
        assert len(executor._processes) == 3


def start_a_child() -> Any:
    with get_context("fork").Pool(1) as pool:
        inner = pool.apply(square, (3,))
        try:
            pool.map(give_unpicklable_for, [1])
        except Exception as error:
            failed = type(error).__name__
    with ProcessPoolExecutor(1) as executor:
        nested = executor.submit(square, 4).result()
    process = multiprocessing.Process(target=square, args=(1,))
    process.start()
    process.join()
    return inner, nested, failed, process.exitcode


def give_unpicklable_for(x: int) -> Any:
    return Unpicklable()


@pytest.mark.parametrize("method", METHODS)
def test_tasks_may_start_processes_pools_and_executors_of_their_own(method: str) -> None:
    with ProcessPoolExecutor(1, get_context(method)) as executor:
        assert executor.submit(start_a_child).result(40) == (9, 16, "MaybeEncodingError", 0)


def test_an_executor_of_the_parents_is_refused_in_a_forked_child(executor: Any) -> None:
    future = executor.submit(sleep, 0.5)
    read, write = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            assert not future.done()
            assert not future.cancel()
            executor.shutdown()
            with ProcessPoolExecutor(1) as own:
                assert own.submit(square, 3).result(10) == 9
            try:
                future.result(1)
            except RuntimeError as error:
                os.write(write, str(error).encode())
        finally:
            os._exit(0)
    os.waitpid(pid, 0)
    assert b"only by the process that made it" in os.read(read, 1000)
    os.close(read)
    os.close(write)
    assert future.result(10) == 0.5


# -- Shoal's own arguments --


def test_a_call_that_takes_too_long_fails_alone() -> None:
    with ProcessPoolExecutor(2, task_timeout=0.3) as executor:
        slow, quick = executor.submit(sleep, 30), executor.submit(sleep, 0.1)
        with pytest.raises(shoal.TaskTimeout):
            slow.result(20)
        assert quick.result(20) == 0.1
        assert list(executor.map(sleep, [0.5, 0.1], task_timeout=10)) == [0.5, 0.1]
        values = list(executor.map(sleep, [0.1, 30], return_exceptions=True))
        assert values[0] == 0.1
        assert isinstance(values[1], shoal.TaskTimeout)


def die_once(mark: str) -> str:
    if not os.path.exists(mark):
        Path(mark).touch()
        kill_self()
    return "done"


def test_a_call_whose_worker_died_is_given_out_again(tmp_path: Path) -> None:
    with ProcessPoolExecutor(2, retries=1) as executor:
        assert executor.submit(die_once, str(tmp_path / "a")).result(20) == "done"
        assert list(executor.map(die_once, [str(tmp_path / "b")])) == ["done"]
        with pytest.raises(shoal.WorkerDied):
            executor.submit(kill_self).result(20)
        with pytest.raises(shoal.WorkerDied):
            list(executor.map(die_once, [str(tmp_path / "c")], retries=0))


def test_map_shows_its_progress(executor: Any) -> None:
    seen: list[Any] = []
    results = executor.map(nap, range(20), progress=lambda done, total: seen.append((done, total)))
    assert list(results) == list(range(20))
    wait_until(lambda: bool(seen) and seen[-1] == (20, 20))
    with pytest.raises(TypeError, match="progress"):
        executor.map(nap, [1], progress="yes")


def test_map_can_give_exceptions_as_results(shared_executor: Any) -> None:
    values = list(shared_executor.map(fail_on_3, range(6), return_exceptions=True, timeout=20))
    assert isinstance(values.pop(3), KeyError)
    assert values == [0, 1, 2, 4, 5]


def test_workers_are_limited_pinned_and_told_of_their_end(tmp_path: Path) -> None:
    cpu = min(os.sched_getaffinity(0))
    path = tmp_path / "ended"
    with ProcessPoolExecutor(1, cpus=[cpu], threads=1, worker_memory_limit="1G", worker_exit=path.touch) as executor:
        assert executor.submit(os.sched_getaffinity, 0).result() == {cpu}
        assert executor.submit(os.getenv, "OMP_NUM_THREADS").result() == "1"
    assert path.exists()
    with pytest.raises(ValueError, match="worker_memory_limit"):
        ProcessPoolExecutor(1, worker_memory_limit="much")


# -- installed --


def test_importing_shoal_does_not_import_concurrent_futures(tmp_path: Path) -> None:
    done = run_program(
        tmp_path,
        """
        import sys, shoal
        print([name for name in sys.modules if name.startswith(("concurrent", "shoal.futures", "typing"))])
        from shoal import ProcessPoolExecutor, _zygote
        print(ProcessPoolExecutor.__module__)
        try:
            shoal.nonsense
        except AttributeError as error:
            print(error)
        """,
    )
    assert done.stdout.splitlines() == ["[]", "shoal.futures", "module 'shoal' has no attribute 'nonsense'"], (
        done.stderr
    )


INSTALLED = """
    import sys

    def names():
        import concurrent.futures, concurrent.futures.process
        return [concurrent.futures.ProcessPoolExecutor.__module__,
                concurrent.futures.process.ProcessPoolExecutor.__module__]

    if __name__ == "__main__":
        how, method = sys.argv[1:]
        if how == "package":
            import concurrent.futures
        elif how == "process":
            import concurrent.futures.process
        elif how == "name":
            from concurrent.futures import ProcessPoolExecutor as before
        elif how == "ours":
            import shoal.futures
        import shoal
        print("concurrent.futures.process" in sys.modules)
        shoal.install()
        if how == "ours later":
            import shoal.futures
        import multiprocessing
        from concurrent.futures import ProcessPoolExecutor
        from concurrent.futures.process import ProcessPoolExecutor as same
        import concurrent.futures
        print(ProcessPoolExecutor.__module__, same is ProcessPoolExecutor, names())
        if how == "name":
            print(issubclass(ProcessPoolExecutor, before))
        multiprocessing.set_start_method(method)
        with ProcessPoolExecutor(1) as executor:
            print(executor._mp_context.get_start_method(), executor.submit(names).result())
        shoal.uninstall()
        print(names())
        shoal.install()
        print(names())
        shoal.uninstall()
        print(names(), [name for name in map(repr, sys.meta_path) if "Patching" in name])
"""


@pytest.mark.parametrize("how", ["nothing", "package", "process", "name", "ours", "ours later"])
@pytest.mark.parametrize("method", METHODS)
def test_install_gives_both_names_our_class_in_children_too(tmp_path: Path, how: str, method: str) -> None:
    lines = run_program(tmp_path, INSTALLED, how, method).stdout.splitlines()
    ours, theirs = ["shoal.futures"] * 2, ["concurrent.futures.process"] * 2
    expected = [str(how in ("process", "name", "ours")), f"shoal.futures True {ours}"]
    if how == "name":
        expected.append("True")
    assert lines == [*expected, f"{method} {ours}", str(theirs), str(ours), f"{theirs} []"]


def test_a_program_runs_on_shoal_unchanged(tmp_path: Path) -> None:
    done = run_program(
        tmp_path,
        """
        import concurrent.futures as cf

        class Mine(cf.ProcessPoolExecutor):
            def submit(self, fn, /, *args, **kwargs):
                return super().submit(fn, *args, **kwargs)

        if __name__ == "__main__":
            with Mine(2) as executor:
                print(type(executor).__mro__[1].__module__, isinstance(executor, cf.process.ProcessPoolExecutor))
                futures = [executor.submit(pow, 2, x) for x in range(5)]
                print(sorted(f.result() for f in cf.as_completed(futures)), list(executor.map(abs, [-1, -2])))
        """,
        shoal=True,
    )
    assert done.stdout.splitlines() == ["shoal.futures True", "[1, 2, 4, 8, 16] [1, 2]"], done.stderr


@pytest.mark.parametrize("method", ["spawn", "forkserver"])
def test_a_stopped_zygote_holds_up_a_call_that_needs_another_worker_for_some_seconds_at_most(method: str) -> None:
    with ProcessPoolExecutor(3, mp_context=get_context(method)) as executor:
        assert executor.submit(abs, -1).result(30) == 1
        zygote = _zygote._zygotes[method]
        os.kill(zygote.pid, signal.SIGSTOP)
        try:
            # The worker that there is has enough to do for a second one to be started, and a third.
            for duration in (2, 0.5, 0):
                started = time.monotonic()
                future = executor.submit(time.sleep, duration)
                assert time.monotonic() - started < 15
            assert future.result(30) is None
            assert len(executor._processes or ()) == 3
        finally:
            os.kill(zygote.pid, signal.SIGCONT)
