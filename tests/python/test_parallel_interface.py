"""What `joblib.parallel` has beside `Parallel` itself: settings, back-ends of others, hooks that programs replace."""

from __future__ import annotations

import inspect
import os
import pickle
import threading
import time
import warnings
import weakref
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from helpers import run_program
from shoal.joblib import (
    Parallel,
    ParallelBackendBase,
    _workers,
    cpu_count,
    delayed,
    effective_n_jobs,
    parallel,
    parallel_backend,
    parallel_config,
    register_parallel_backend,
    wrap_non_picklable_objects,
)
from shoal.joblib._expression import evaluate


def square(x: int) -> int:
    return x * x


def add(a: int, b: int = 1) -> int:
    """Adds."""
    return a + b


def backend_here(n_jobs: int | None = None) -> tuple[str, int, int]:
    backend, _ = parallel.get_active_backend()
    return type(backend).__name__, backend.nesting_level or 0, Parallel(n_jobs=n_jobs)._effective_n_jobs()


class ExecutorBackend(ParallelBackendBase):
    """As a third party would write one."""

    supports_retrieve_callback = True

    def effective_n_jobs(self, n_jobs: int | None) -> int:
        return n_jobs or 1

    def configure(self, n_jobs: int = 1, parallel: Any = None, **kwargs: Any) -> int:
        self.parallel = parallel
        self.executor = ThreadPoolExecutor(n_jobs)
        self.submitted = 0
        return n_jobs

    def submit(self, func: Any, callback: Any = None) -> Any:
        self.submitted += 1
        future = self.executor.submit(func)
        future.add_done_callback(callback)
        return future

    def retrieve_result_callback(self, out: Any) -> Any:
        return out.result()

    def terminate(self) -> None:
        self.executor.shutdown()


class OldBackend(ExecutorBackend):
    """As they were written before joblib had callbacks for results."""

    supports_retrieve_callback = False

    def submit(self, func: Any, callback: Any = None) -> Any:
        return self.apply_async(func, callback)

    def apply_async(self, func: Any, callback: Any = None) -> Any:
        future = self.executor.submit(func)
        future.get = future.result  # type: ignore[attr-defined]
        future.add_done_callback(callback)
        return future


@pytest.mark.parametrize("kind", [ExecutorBackend, OldBackend])
@pytest.mark.parametrize("batch_size", ["auto", 1, 7])
def test_a_third_partys_backend_runs_the_tasks(kind: Any, batch_size: Any) -> None:
    register_parallel_backend("ours", kind)
    try:
        with parallel_config("ours", n_jobs=2):
            got = Parallel(batch_size=batch_size)(delayed(square)(i) for i in range(50))
        assert got == [i * i for i in range(50)]
        with pytest.raises(ZeroDivisionError):
            Parallel(n_jobs=2, backend="ours")(delayed(divmod)(1, i) for i in (1, 0, 1))
    finally:
        del parallel.BACKENDS["ours"]


def test_a_backend_class_that_derives_from_ours_keeps_its_hooks() -> None:
    class Counting(parallel.LokyBackend):
        batches = 0

        def batch_completed(self, batch_size: int, duration: float) -> None:
            Counting.batches += 1
            super().batch_completed(batch_size, duration)

    assert Parallel(n_jobs=2, backend=Counting(), batch_size=2)(delayed(square)(i) for i in range(8)) == [
        i * i for i in range(8)
    ]
    assert Counting.batches == 4


def test_settings_hold_in_their_block_and_explicit_ones_win() -> None:
    with parallel_config("threading", n_jobs=3, verbose=0) as config:
        assert config["n_jobs"] == 3
        assert Parallel().n_jobs == 3
        assert type(Parallel()._backend) is parallel.ThreadingBackend
        assert Parallel(n_jobs=2).n_jobs == 2
        assert effective_n_jobs(None) == 3
        assert type(Parallel(backend="loky")._backend) is parallel.LokyBackend
    assert Parallel().n_jobs == 1
    with parallel_backend("threading"):
        assert Parallel()._effective_n_jobs() == cpu_count()
    setting = parallel_config(n_jobs=2)
    assert Parallel().n_jobs == 2
    setting.unregister()
    assert Parallel().n_jobs == 1


def test_hints_choose_the_backend_where_none_is_given() -> None:
    assert type(Parallel(n_jobs=2, prefer="threads")._backend) is parallel.ThreadingBackend
    assert type(Parallel(n_jobs=2, require="sharedmem")._backend) is parallel.ThreadingBackend
    with parallel_config("loky", n_jobs=2):
        assert type(Parallel(prefer="threads")._backend) is parallel.LokyBackend
        assert Parallel(require="sharedmem").n_jobs == 1


@pytest.mark.parametrize("backend", ["loky", "multiprocessing", "threading"])
def test_calls_in_tasks_use_threads_and_below_these_nothing(backend: str) -> None:
    def nested() -> tuple[Any, Any]:
        return backend_here(), Parallel(n_jobs=2)(delayed(backend_here)() for _ in range(2))

    for outer, inner in Parallel(n_jobs=2, backend=backend)(delayed(nested)() for _ in range(4)):
        assert outer == ("ThreadingBackend", 1, 1)
        assert inner == [("SequentialBackend", 2, 1)] * 2


def test_wrong_settings_are_refused_in_joblibs_words() -> None:
    with pytest.raises(ValueError, match=r"Invalid backend: nope, expected one of \['loky', 'multiprocessing'"):
        parallel_config(backend="nope")
    with pytest.raises(ValueError, match="only supported when backend is not None"):
        parallel_config(inner_max_num_threads=2)
    with pytest.raises(AssertionError, match="does not accept setting the inner_max_num_threads"):
        parallel_config("threading", inner_max_num_threads=2)
    with pytest.raises(ValueError, match="n_jobs == 0 in Parallel has no meaning"):
        Parallel(n_jobs=0)([])
    with pytest.raises(ValueError, match="n_jobs could not be converted to int"):
        Parallel(n_jobs="many")
    with pytest.raises(ValueError, match="Invalid literal for size"):
        Parallel(max_nbytes="1T")
    with pytest.raises(ValueError, match="does not support return_as=generator"):
        Parallel(n_jobs=2, backend="multiprocessing", return_as="generator")
    with pytest.raises(ValueError, match="idle_worker_timeout"):
        Parallel(n_jobs=2, timeout=None, backend=parallel.LokyBackend(timeout=3))([])


@pytest.mark.parametrize("backend", ["loky", "multiprocessing", "threading"])
def test_odd_values_are_met_as_joblib_meets_them(backend: str) -> None:
    def run(**options: Any) -> Any:
        return Parallel(n_jobs=2, backend=backend, **options)(delayed(square)(i) for i in range(3))

    for below in (-1, "-n_jobs"):
        with pytest.raises(ValueError, match=r"islice\(\) must be None or an integer"):
            run(pre_dispatch=below)
    for none in (0, "0 * n_jobs", 0.5, "n_jobs // 4"):
        with pytest.warns(UserWarning, match="comes to 0: no task is run"):
            assert run(pre_dispatch=none) == []
    for some in (1, 2.9, "1.5 * n_jobs", "all"):
        assert run(pre_dispatch=some) == [0, 1, 4]
    with pytest.raises(ValueError, match="cannot convert float NaN to integer"):
        run(pre_dispatch=float("nan"))
    with pytest.raises(ValueError, match="Numeric literal 633825300114114700748351602688 is too large"):
        run(pre_dispatch="2 ** 99")
    with pytest.raises(TypeError, match="'>' not supported between instances of 'float' and 'str'"):
        run(timeout="soon")
    if backend == "loky":
        with pytest.warns(UserWarning, match="LokyBackend has no use for the argument 'task_timout'"):
            assert run(task_timout=1) == [0, 1, 4]
        with pytest.raises(TypeError, match="initializer must be a callable, got: 3"):
            run(initializer=3)
    elif backend == "multiprocessing":
        with pytest.raises(TypeError, match="got an unexpected keyword argument 'task_timout'"):
            run(task_timout=1)
    else:
        assert run(task_timout=1) == [0, 1, 4]
    if backend != "loky":  # joblib ignores it, without a word
        with pytest.warns(UserWarning, match="does not accept setting the inner_max_num_threads argument"):
            run(inner_max_num_threads=1)


def test_pre_dispatch_is_arithmetic_and_nothing_else() -> None:
    assert evaluate("2 * 3 + (1.5 - 4) / -5") == 6.5
    assert evaluate("7 // 2 + 9 % 4 + 2 ** 3") == 12
    for text in ("__import__('os')", "f(1)", "1 if 1 else 2", "'a' * 3", "1 +", "2 ** 999999", "9" * 31, "True + 1"):
        with pytest.raises(ValueError):
            evaluate(text)
    assert Parallel(n_jobs=2, pre_dispatch="1.5 * n_jobs")(delayed(square)(i) for i in range(9))[-1] == 64
    with pytest.raises(ValueError):
        Parallel(n_jobs=2, pre_dispatch="print(n_jobs)")(delayed(square)(i) for i in range(9))


@pytest.mark.parametrize("backend", ["loky", "multiprocessing", "threading"])
def test_the_iterable_is_read_no_further_than_pre_dispatch_says(backend: str) -> None:
    read = 0
    most = 0
    results = 0

    def tasks() -> Any:
        nonlocal read, most
        for i in range(40):
            read += 1
            most = max(most, read - results)
            yield delayed(square)(i)

    calls = Parallel(n_jobs=2, backend=backend, batch_size=1, pre_dispatch=3)

    class Counted(Parallel):
        def print_progress(self) -> None:
            nonlocal results
            results = self.n_completed_tasks

    calls = Counted(n_jobs=2, backend=backend, batch_size=1, pre_dispatch=3)
    assert calls(tasks()) == [i * i for i in range(40)]
    assert most <= 6  # all three may be done and not counted yet, when three others are handed out


def done_in(path: Path, i: int) -> int:
    time.sleep(0.04)
    with open(path, "ab", buffering=0) as file:
        file.write(b".")
    return i


@pytest.mark.parametrize("backend", ["loky", "multiprocessing", "threading"])
@pytest.mark.parametrize("settings", [{}, {"batch_size": 1}, {"pre_dispatch": "n_jobs"}])
def test_a_bar_around_the_iterable_tells_how_far_long_tasks_are(
    tmp_path: Path, backend: str, settings: dict[str, Any]
) -> None:
    done = tmp_path / "done"
    done.touch()
    ahead = []

    def tasks() -> Any:
        for i in range(24):
            ahead.append(i - done.stat().st_size)
            yield delayed(done_in)(done, i)

    assert list(Parallel(n_jobs=2, backend=backend, **settings)(tasks())) == list(range(24))
    assert max(ahead) <= (2 if "pre_dispatch" in settings else 4)


@pytest.mark.parametrize("batch_size", ["auto", 1])
def test_short_tasks_are_handed_out_far_enough_ahead(batch_size: Any) -> None:
    settled = 0
    most = 0

    class Counted(Parallel):
        def print_progress(self) -> None:
            nonlocal settled
            settled = self.n_completed_tasks

    def tasks() -> Any:
        nonlocal most
        for i in range(20_000):
            most = max(most, i - settled)
            yield delayed(square)(i)

    assert Counted(n_jobs=2, batch_size=batch_size)(tasks())[-1] == 19_999**2
    assert most >= 32


def test_a_replaced_callback_sees_every_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []

    class Callback(parallel.BatchCompletionCallBack):
        def __call__(self, *args: Any, **kwargs: Any) -> None:
            seen.append(self.batch_size)
            super().__call__(*args, **kwargs)

    monkeypatch.setattr(parallel, "BatchCompletionCallBack", Callback)
    for backend in ("loky", "threading", "multiprocessing"):
        seen.clear()
        assert Parallel(n_jobs=2, backend=backend)(delayed(square)(i) for i in range(20)) == [i * i for i in range(20)]
        assert sum(seen) == 20


@pytest.mark.parametrize("backend", ["loky", "multiprocessing", "threading", "executor", "old"])
@pytest.mark.parametrize("return_as", ["list", "generator_unordered"])
@pytest.mark.parametrize("when", ["made", "before", "after"])
def test_a_replaced_callback_that_raises_fails_the_call(
    monkeypatch: pytest.MonkeyPatch, backend: Any, return_as: str, when: str
) -> None:
    class Callback(parallel.BatchCompletionCallBack):
        made = 0

        def __init__(self, *args: Any) -> None:
            Callback.made += 1
            if when == "made" and Callback.made > 4:  # those before are made by the thread that calls
                raise ZeroDivisionError("the bar is broken")
            super().__init__(*args)

        def __call__(self, *args: Any, **kwargs: Any) -> None:
            if when == "before":
                raise ZeroDivisionError("the bar is broken")
            super().__call__(*args, **kwargs)
            if when == "after":
                raise ZeroDivisionError("the bar is broken")

    monkeypatch.setattr(parallel, "BatchCompletionCallBack", Callback)
    options: dict[str, Any] = {"n_jobs": 2, "batch_size": 1, "backend": backend}
    if backend in ("executor", "old"):
        options["backend"] = ExecutorBackend() if backend == "executor" else OldBackend()
    if backend not in ("multiprocessing", "old"):
        options["return_as"] = return_as
    call = Parallel(**options)
    with pytest.raises(ZeroDivisionError, match="the bar is broken"):
        list(call(delayed(square)(i) for i in range(50)))
    monkeypatch.undo()
    assert sorted(call(delayed(square)(i) for i in range(3))) == [0, 1, 4]


@pytest.mark.parametrize("kind", [ExecutorBackend, OldBackend])
def test_what_comes_late_of_a_call_that_failed_is_no_part_of_the_next(kind: Any) -> None:
    held: list[Any] = []
    calls = 0

    class Late(kind):  # type: ignore[misc]
        def submit(self, func: Any, callback: Any = None) -> Any:
            if calls == 1:
                future: Any = self.executor.submit(func)
                future.get = future.result
                if held or kind is OldBackend:  # all but the one whose error the call fails by
                    held.append((callback, future))
                else:
                    held.append(None)
                    future.add_done_callback(callback)
                return future
            while held:
                late = held.pop()
                if late is not None:
                    late[0](late[1])
            return super().submit(func, callback)

    call = Parallel(n_jobs=2, backend=Late(), batch_size=1, pre_dispatch=4)
    calls = 1
    with pytest.raises(ZeroDivisionError):
        call(delayed(divmod)(1, i) for i in range(4))
    calls = 2
    assert call(delayed(square)(i) for i in range(3)) == [0, 1, 4]
    assert (call.n_completed_tasks, call.n_dispatched_tasks) == (3, 3)


def test_a_callback_that_raises_when_all_is_read_is_told_of(monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[str] = []
    has_told, has_read = threading.Event(), threading.Event()

    def tell(args: Any) -> None:
        told.append(str(args.exc_value))
        has_told.set()

    class Callback(parallel.BatchCompletionCallBack):
        def __call__(self, *args: Any, **kwargs: Any) -> None:
            super().__call__(*args, **kwargs)
            has_read.wait(60)
            raise ZeroDivisionError("too late")

    monkeypatch.setattr(threading, "excepthook", tell)
    monkeypatch.setattr(parallel, "BatchCompletionCallBack", Callback)
    assert Parallel(n_jobs=2, backend="threading")([delayed(square)(3)]) == [9]
    has_read.set()
    assert has_told.wait(60)
    assert told == ["too late"]


def stop_at(x: int, at: int) -> int:
    if x == at:
        raise StopIteration("enough")
    return x


@pytest.mark.parametrize("backend", ["loky", "multiprocessing", "threading", "sequential"])
def test_a_task_that_raises_stop_iteration_fails_and_does_not_end_the_results(backend: str) -> None:
    for at in (0, 2, 4):
        with pytest.raises(RuntimeError, match="generator raised StopIteration") as caught:
            Parallel(n_jobs=2, backend=backend)(delayed(stop_at)(i, at) for i in range(5))
        assert isinstance(caught.value.__cause__, StopIteration)
        if backend != "multiprocessing":
            for kind in ("generator", "generator_unordered"):
                with pytest.raises(RuntimeError, match="generator raised StopIteration"):
                    list(Parallel(n_jobs=2, backend=backend, return_as=kind)(delayed(stop_at)(i, at) for i in range(5)))
    seen = Parallel(n_jobs=2, backend=backend, return_exceptions=True)(delayed(stop_at)(i, 1) for i in range(3))
    assert (seen[0], type(seen[1]), seen[2]) == (0, StopIteration, 2)


def test_a_generator_of_tasks_run_here_can_be_read_after_its_block() -> None:
    with Parallel(n_jobs=2, backend="sequential", return_as="generator") as call:
        results = call(delayed(square)(i) for i in range(4))
        assert next(results) == 0
    assert list(results) == [1, 4, 9]


@pytest.mark.parametrize("backend", ["loky", "multiprocessing", "threading", "sequential"])
def test_a_subclass_may_show_progress(backend: str) -> None:
    shown: list[tuple[int, int]] = []

    class Progress(Parallel):
        def print_progress(self) -> None:
            shown.append((self.n_completed_tasks, self.n_dispatched_tasks))

    Progress(n_jobs=2, backend=backend)(delayed(square)(i) for i in range(10))
    assert shown[-1] == (10, 10)
    assert [done for done, _ in shown] == sorted(done for done, _ in shown)


def test_one_object_runs_one_call_at_a_time() -> None:
    calls = Parallel(n_jobs=2, return_as="generator")
    first = calls(delayed(time.sleep)(0.05) for _ in range(4))
    with pytest.raises(RuntimeError, match="already running"):
        calls(delayed(square)(i) for i in range(3))
    assert list(first) == [None] * 4
    assert list(calls(delayed(square)(i) for i in range(3))) == [0, 1, 4]


def test_a_generator_that_is_dropped_warns_and_ends_its_tasks(tmp_path: Path) -> None:
    results = Parallel(n_jobs=2, return_as="generator", batch_size=1)(delayed(time.sleep)(30) for _ in range(4))
    with pytest.warns(UserWarning, match="have been cancelled"):
        del results
    started = time.monotonic()
    assert Parallel(n_jobs=2)(delayed(square)(i) for i in range(3)) == [0, 1, 4]
    assert time.monotonic() - started < 20


def test_workers_of_a_block_stay_and_are_given_back_after_it() -> None:
    with Parallel(n_jobs=2) as calls:
        workers = calls._backend._workers
        for _ in range(3):
            assert calls(delayed(square)(i) for i in range(4)) == [0, 1, 4, 9]
        assert calls._backend._workers is workers
        with pytest.raises(ZeroDivisionError):
            calls(delayed(divmod)(1, i) for i in (1, 0))
        assert calls(delayed(square)(i) for i in range(4)) == [0, 1, 4, 9]
    assert calls._backend._workers is None
    assert calls(delayed(square)(i) for i in range(4)) == [0, 1, 4, 9]


def pid_after(seconds: float) -> int:
    time.sleep(seconds)
    return os.getpid()


def test_idle_workers_go_and_the_next_call_has_others() -> None:
    calls = Parallel(n_jobs=2, idle_worker_timeout=0.2)
    pids = set(calls(delayed(pid_after)(0.01) for _ in range(8)))
    deadline = time.monotonic() + 20
    while any(os.path.exists(f"/proc/{pid}") for pid in pids) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert not [pid for pid in pids if os.path.exists(f"/proc/{pid}")]
    assert not _workers._crews
    assert pids.isdisjoint(calls(delayed(pid_after)(0.01) for _ in range(8)))


def environment(name: str) -> str | None:
    return os.environ.get(name)


def test_workers_have_the_threads_that_joblibs_have(monkeypatch: pytest.MonkeyPatch) -> None:
    def seen(**options: Any) -> list[str]:
        names = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "NUMBA_NUM_THREADS", "ENABLE_IPC")
        return Parallel(n_jobs=2, **options)(delayed(environment)(name) for name in names)  # type: ignore[no-any-return]

    for name in (*parallel.ParallelBackendBase.MAX_NUM_THREADS_VARS, "ENABLE_IPC"):
        monkeypatch.delenv(name, raising=False)
    fair = str(max(1, cpu_count() // 2))
    assert seen() == [fair, fair, fair, "1"]
    monkeypatch.setenv("NUMBA_NUM_THREADS", "8")  # what the program says of one holds for that one
    assert seen() == [fair, fair, "8", "1"]
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    assert seen() == ["7", fair, "8", "1"]
    with parallel_config("loky", inner_max_num_threads=3):
        assert seen() == ["3", "3", "3", "1"]


def threads_of_libraries() -> list[int]:
    import numpy
    import threadpoolctl

    numpy.ones((2, 2)) @ numpy.ones((2, 2))
    return sorted(found["num_threads"] for found in threadpoolctl.threadpool_info())


@pytest.mark.parametrize("backend", ["multiprocessing", "threading", "spawn"])
def test_other_backends_than_loky_leave_threads_as_they_are(monkeypatch: pytest.MonkeyPatch, backend: Any) -> None:
    for name in parallel.ParallelBackendBase.MAX_NUM_THREADS_VARS:
        monkeypatch.delenv(name, raising=False)
    if backend == "spawn":
        import multiprocessing

        backend = multiprocessing.get_context("spawn")
    here = threads_of_libraries()
    seen = Parallel(n_jobs=2, backend=backend)(delayed(threads_of_libraries)() for _ in range(3))
    assert seen == [here] * 3
    names = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMEXPR_NUM_THREADS")
    assert Parallel(n_jobs=2, backend=backend)(delayed(environment)(name) for name in names) == [None] * 3


def test_inner_threads_and_variables_reach_the_workers() -> None:
    with parallel_config("loky", n_jobs=2, inner_max_num_threads=3):
        assert Parallel()(delayed(environment)("OMP_NUM_THREADS") for _ in range(2)) == ["3", "3"]
    calls = Parallel(n_jobs=2, backend=parallel.LokyBackend(env={"SHOAL_TEST": "yes"}))
    assert calls(delayed(environment)("SHOAL_TEST") for _ in range(2)) == ["yes", "yes"]


_began: list[str] = []


def begin(word: str) -> None:
    _began.append(word)


def what_began() -> list[str]:
    import test_parallel_interface

    return test_parallel_interface._began


@pytest.mark.parametrize("backend", ["loky", "multiprocessing"])
def test_an_initializer_runs_once_in_each_worker(backend: str) -> None:
    calls = Parallel(n_jobs=2, backend=backend, initializer=begin, initargs=("yes",))
    assert calls(delayed(what_began)() for _ in range(10)) == [["yes"]] * 10


def test_a_call_in_a_thread_of_its_own_runs_in_processes() -> None:
    got: list[Any] = []
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        thread = threading.Thread(target=lambda: got.append(Parallel(n_jobs=2)(delayed(os.getpid)() for _ in range(4))))
        thread.start()
        thread.join()
    assert os.getpid() not in got[0]


class Unpicklable:
    def __reduce__(self) -> Any:
        raise RuntimeError("no")


def test_what_cannot_be_pickled_is_named() -> None:
    import pickle

    with pytest.raises(pickle.PicklingError, match=r"the task to send to the workers: a call of square: .*no"):
        Parallel(n_jobs=2)(delayed(square)(Unpicklable()) for _ in range(3))
    with pytest.raises(pickle.PicklingError, match="a call of lock: "):
        Parallel(n_jobs=2)(delayed(threading.Lock())(i) for i in range(3))  # type: ignore[arg-type]
    assert Parallel(n_jobs=2)(delayed(square)(i) for i in range(3)) == [0, 1, 4]


def test_delayed_looks_like_its_function() -> None:
    def documented(x: int, *, y: int = 2) -> int:
        """What it does."""
        return x + y

    captured = delayed(documented)
    assert captured.__name__ == "documented"
    assert captured.__doc__ == "What it does."
    assert captured.__module__ == __name__
    assert list(inspect.signature(captured).parameters) == ["x", "y"]
    assert captured(1, y=3) == (documented, (1,), {"y": 3})

    class Thing:
        @delayed
        def method(self, x: int) -> int:
            return x

    thing = Thing()
    _, args, kwargs = thing.method(4)  # type: ignore[call-arg, arg-type]
    assert (args, kwargs) == ((thing, 4), {})


def test_the_variables_of_joblib_count(tmp_path: Path) -> None:
    done = run_program(
        tmp_path,
        """
        import os, sys
        from shoal.joblib import Parallel, delayed, cpu_count, parallel
        results = Parallel(n_jobs=2)(delayed(abs)(-i) for i in range(3))
        print(cpu_count(), parallel.mp, sorted(parallel.BACKENDS), results)
        """,
        env={**os.environ, "JOBLIB_MULTIPROCESSING": "0"},
    )
    assert done.stdout == "1 None ['sequential', 'threading'] [0, 1, 2]\n", done.stderr
    done = run_program(
        tmp_path,
        """
        from shoal.joblib import Parallel, cpu_count
        print(Parallel(backend="multiprocessing")._backend_kwargs["context"].get_start_method(), cpu_count())
        """,
        env={**os.environ, "JOBLIB_START_METHOD": "spawn", "LOKY_MAX_CPU_COUNT": "1"},
    )
    assert done.stdout == "spawn 1\n", done.stderr


def test_wrapped_objects_can_be_pickled_and_look_like_themselves() -> None:
    import pickle

    @wrap_non_picklable_objects
    def local(x: int) -> int:
        return x + 1

    again = pickle.loads(pickle.dumps(pickle.loads(pickle.dumps(local))))
    assert again(1) == 2
    assert local.__name__ == "local"


def test_install_puts_joblibs_modules_in_place_and_gives_them_back(tmp_path: Path) -> None:
    done = run_program(
        tmp_path,
        """
        import sys
        import joblib.parallel, joblib._parallel_backends
        theirs = joblib.parallel, joblib.effective_n_jobs, joblib.parallel.LokyBackend
        class Derived(theirs[2]):
            pass
        import shoal
        shoal.install()
        from joblib.parallel import BatchCompletionCallBack, Parallel, delayed
        print(sys.modules["joblib.parallel"].__name__, joblib.parallel.__name__, joblib.effective_n_jobs.__module__)
        print(Parallel(n_jobs=2, backend=Derived())(delayed(abs)(-i) for i in range(3)))
        shoal.uninstall()
        print((sys.modules["joblib.parallel"], joblib.effective_n_jobs, joblib.parallel.LokyBackend) == theirs)
        """,
    )
    assert done.stdout.splitlines() == [
        "shoal.joblib.parallel shoal.joblib.parallel shoal.joblib._config",
        "[0, 1, 2]",
        "True",
    ], done.stderr


class Sums:
    @delayed
    def of(self, a: int, b: int = 1) -> int:
        """Adds."""
        return a + b


def test_delayed_looks_like_the_function_and_captures_its_calls() -> None:
    captured = delayed(add)
    assert (captured.__name__, captured.__doc__, captured.__module__) == (add.__name__, add.__doc__, add.__module__)
    assert captured.__wrapped__ is add  # type: ignore[attr-defined]
    assert captured(1, b=2) == (add, (1,), {"b": 2})
    assert delayed(function=add)() == (add, (), {})
    assert captured()[2] is not captured()[2]
    with pytest.raises(TypeError):
        delayed()  # type: ignore[call-arg]
    with pytest.raises(AttributeError):
        captured.nothing_of_that_name  # type: ignore[attr-defined]  # noqa: B018
    assert inspect.signature(captured) == inspect.signature(add)
    assert pickle.loads(pickle.dumps(captured))(3) == (add, (3,), {})
    assert weakref.ref(captured)() is captured
    sums = Sums()
    function, args, kwargs = sums.of(1, b=3)  # type: ignore[misc]
    assert function(*args, **kwargs) == 4
    assert Parallel(n_jobs=2)([sums.of(1), sums.of(2, b=5)]) == [2, 7]  # type: ignore[list-item]


def test_tasks_that_are_no_tasks_are_refused() -> None:
    for wrong in ([1], [(len,)], [(len, (), {}, 1)]):
        with pytest.raises((TypeError, ValueError)):
            Parallel(n_jobs=2)(wrong)  # type: ignore[arg-type]
