"""An executor's life: workers that die, initializers, shutdown and the program's end."""

from __future__ import annotations

import gc
import os
import pickle
import signal
import subprocess
import sys
import textwrap
import threading
import time
from concurrent.futures import CancelledError, wait
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any

import pytest
import shoal
import shoal.futures
from futures_calls import METHODS, kill_self, nap, raise_, sleep, square, wait_until
from helpers import run_program
from shoal import ProcessPoolExecutor
from shoal.multiprocessing import get_context


def die_on_3(x: int) -> int:
    if x == 3:
        os.kill(os.getpid(), signal.SIGKILL)
    return x


def is_alive(pid: int) -> bool:
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


# -- workers that die --


def say_how_it_takes_ctrl_c() -> None:
    blocked = signal.SIGINT in signal.pthread_sigmask(signal.SIG_BLOCK, ())
    heard = signal.getsignal(signal.SIGINT) is signal.default_int_handler
    os._exit(10 + 2 * blocked + heard)


def start_one_that_says() -> int | None:
    process = get_context("fork").Process(target=say_how_it_takes_ctrl_c)
    process.start()
    process.join(30)
    return process.exitcode


@pytest.mark.parametrize("method", METHODS)
def test_a_process_that_a_worker_forks_heeds_ctrl_c(method: str) -> None:
    with ProcessPoolExecutor(1, mp_context=get_context(method)) as executor:
        assert executor.submit(start_one_that_says).result(40) == 11


def test_a_dropped_executor_that_is_terminated_completes_its_futures() -> None:
    executor = ProcessPoolExecutor(1)
    crew: Any = executor._crew or executor._ready_crew()
    futures = [executor.submit(sleep, 30) for _ in range(6)]
    called: list[Any] = []
    for future in futures[3:]:
        future.add_done_callback(called.append)
    del executor
    gc.collect()
    wait_until(lambda: crew.state != "RUN")
    waiting = threading.Thread(target=wait, args=(futures[:3],))
    waiting.start()
    crew.terminate()  # as Ctrl-C at the program's end has it
    waiting.join(20)
    assert not waiting.is_alive()
    wait_until(lambda: len(called) == 3)
    assert all(future.cancelled() for future in futures)


def test_a_handler_may_shut_the_executor_down_as_its_workers_start(tmp_path: Path) -> None:
    done = run_program(
        tmp_path,
        """
        import os, signal
        from shoal import ProcessPoolExecutor

        executor = ProcessPoolExecutor(2)
        signal.signal(signal.SIGTERM, lambda *_: executor.shutdown())
        os.register_at_fork(after_in_parent=lambda: os.kill(os.getpid(), signal.SIGTERM))
        try:
            executor.submit(abs, -1)
        except RuntimeError as error:
            print(error)
        """,
    )
    assert done.stdout == "cannot schedule new futures after shutdown\n", done.stderr


class ExitsAsItIsPickled:
    def __reduce__(self) -> Any:
        raise SystemExit(3)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_dropped_executor_ends_though_an_argument_raises_system_exit() -> None:
    executor = ProcessPoolExecutor(2)
    results = executor.map(square, [*range(5000), ExitsAsItIsPickled()])
    future = executor.submit(nap, 1)
    called = threading.Event()
    future.add_done_callback(lambda _: called.set())
    crew: Any = executor._crew
    del executor
    gc.collect()
    assert called.wait(30)
    crew._thread.join(30)
    assert not crew._thread.is_alive()
    del results


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
    futures = [executor.submit(sleep, 0.6) for _ in range(4)]
    futures[3].add_done_callback(lambda f: called.set())
    pids = list(executor._processes)
    crew = executor._crew
    executor.shutdown(wait=False)
    assert not called.is_set()
    assert called.wait(10)
    assert [future.result(10) for future in futures] == [0.6] * 4
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


@pytest.mark.parametrize("pause", [0.0, 0.1])
def test_shutdown_waits_for_callbacks(pause: float) -> None:
    """Whichever thread has one in hand, and whether or not its call was done before."""
    called: list[int] = []

    def call(future: Any) -> None:
        time.sleep(0.5)
        called.append(future.result())

    executor = ProcessPoolExecutor(1)
    executor.submit(abs, -1).add_done_callback(call)
    time.sleep(pause)
    executor.shutdown(wait=True)
    assert called == [1]


@pytest.mark.parametrize("pause", [0.0, 0.2])
def test_the_end_of_the_program_waits_for_callbacks(tmp_path: Path, pause: float) -> None:
    program = f"""
    import atexit, time
    from shoal import ProcessPoolExecutor
    def call(future):
        time.sleep(0.6)
        print("called", flush=True)
    if __name__ == "__main__":
        atexit.register(print, "end", flush=True)
        executor = ProcessPoolExecutor(1)
        executor.submit(abs, -1).add_done_callback(call)
        executor.shutdown(wait=False)
        time.sleep({pause})
    """
    done = run_program(tmp_path, program)
    assert (done.stdout.splitlines(), done.stderr) == (["called", "end"], "")


def test_a_callback_may_shut_its_executor_down_and_wait() -> None:
    called = threading.Event()
    executor = ProcessPoolExecutor(1)

    def call(future: Any) -> None:
        executor.shutdown(wait=True)
        called.set()

    executor.submit(abs, -1).add_done_callback(call)
    assert called.wait(30)
    executor.shutdown(wait=True)


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
