"""An executor's interface: the standard one's, Shoal's own arguments, and what `shoal.install` makes of it."""

from __future__ import annotations

import concurrent.futures
import inspect
import multiprocessing
import os
import signal
import threading
import time
from pathlib import Path
from typing import Any

import pytest
import shoal
import shoal.futures
from futures_calls import METHODS, Unpicklable, fail_on_3, kill_self, nap, sleep, square, wait_until
from helpers import run_program
from shoal import ProcessPoolExecutor, _zygote
from shoal.multiprocessing import get_context

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


class Slow:
    """Takes its time to be pickled."""

    begun, over = threading.Event(), threading.Event()

    def __reduce__(self) -> Any:
        self.begun.set()
        self.over.wait(30)
        return int, (3,)


@pytest.mark.timeout(60)
def test_a_child_does_not_wait_for_the_thread_that_had_an_executor_in_use_as_it_was_forked(executor: Any) -> None:
    submitting = threading.Thread(target=executor.submit, args=(square, Slow()))
    submitting.start()
    Slow.begun.wait()
    child = os.fork()
    if child == 0:
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        signal.alarm(20)
        executor.shutdown()
        os._exit(0)
    Slow.over.set()
    submitting.join()
    assert os.waitpid(child, 0)[1] == 0


# -- Shoal's own arguments --


def test_a_call_that_takes_too_long_fails_alone() -> None:
    with ProcessPoolExecutor(2, task_timeout=1.5) as executor:
        slow, quick = executor.submit(sleep, 30), executor.submit(sleep, 0.1)
        with pytest.raises(shoal.TaskTimeout):
            slow.result(20)
        assert quick.result(20) == 0.1
        assert list(executor.map(sleep, [1.7, 0.1], task_timeout=20)) == [1.7, 0.1]
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
