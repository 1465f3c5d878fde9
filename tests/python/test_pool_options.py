"""What Shoal's pools do beyond multiprocessing's: limits, retries, progress, cancelling, statistics, crashes."""

from __future__ import annotations

import itertools
import os
import pickle
import signal
import threading
import time
from pathlib import Path
from typing import Any

import pytest
import shoal
from helpers import run_program
from shoal.multiprocessing import Pool, get_context

METHODS = ["fork", "spawn", "forkserver"]


def square(x: int) -> int:
    return x * x


def sleep_if_large(x: float) -> float:
    time.sleep(x if x >= 1 else 0.01)
    return x


def nap(x: Any) -> Any:
    time.sleep(0.02)
    return x


def die_or_sleep(x: int) -> None:
    if x == 0:
        os.kill(os.getpid(), signal.SIGKILL)
    time.sleep(60)


def fail_on_3(x: int) -> int:
    if x == 3:
        raise KeyError(x)
    return x


@pytest.fixture
def pool() -> Any:
    with Pool(2) as made:
        yield made


# -- task_timeout --


@pytest.mark.parametrize(
    "options, words",
    [
        ({"task_timeout": "1"}, "task_timeout must be a number of seconds, not '1'"),
        ({"worker_memory_limit": []}, r"worker_memory_limit must be bytes or text like '500M', not \[\]"),
    ],
)
def test_options_of_the_wrong_type_are_named(options: dict[str, Any], words: str) -> None:
    with pytest.raises(TypeError, match=words):
        Pool(1, **options)


@pytest.mark.parametrize("chunksize", [None, 1, 3])
def test_an_item_that_takes_too_long_fails_alone(pool: Any, chunksize: int | None) -> None:
    items = [0.1, 0.2, 30, 0.3, 0.4, 0.5]
    results = pool.map(sleep_if_large, items, chunksize, task_timeout=1.5, return_exceptions=True)
    error = results.pop(2)
    assert results == [0.1, 0.2, 0.3, 0.4, 0.5]
    assert isinstance(error, shoal.TaskTimeout)
    assert (error.item, error.seconds) == (2, 1.5)
    assert "item 2 took longer than 1.5 s" in str(error)


def test_a_time_limit_is_an_items_not_a_chunks(pool: Any) -> None:
    assert pool.map(nap, range(240), chunksize=120, task_timeout=1.5) == list(range(240))


def test_a_pools_time_limit_holds_for_all_calls_but_those_that_have_their_own() -> None:
    with Pool(1, task_timeout=1) as pool:
        with pytest.raises(shoal.TaskTimeout):
            pool.apply(time.sleep, (30,))
        assert pool.apply_async(sleep_if_large, (1.3,), task_timeout=20).get() == 1.3
        results = pool.imap(sleep_if_large, [0.1, 30, 0.2])
        assert next(results) == 0.1
        with pytest.raises(shoal.TaskTimeout):
            next(results)
        assert next(results) == 0.2


def test_a_task_that_nobody_waits_for_is_limited_too(pool: Any) -> None:
    errors: list[BaseException] = []
    called = threading.Event()
    pool.apply_async(time.sleep, (30,), error_callback=lambda e: (errors.append(e), called.set()), task_timeout=0.1)
    assert called.wait(10)
    assert isinstance(errors[0], shoal.TaskTimeout)


@pytest.mark.parametrize("wrong", [0, -1, float("nan")])
def test_a_time_limit_is_more_than_nothing(pool: Any, wrong: float) -> None:
    with pytest.raises(ValueError, match="task_timeout"):
        pool.map(square, [1], task_timeout=wrong)


# -- retries --


def die_once(arguments: tuple[str, int]) -> int:
    folder, item = arguments
    mark = Path(folder, str(item))
    if item % 5 == 0 and not mark.exists():
        mark.touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return item


@pytest.mark.parametrize("chunksize", [None, 1, 4])
def test_an_item_whose_worker_died_is_given_out_again(pool: Any, tmp_path: Path, chunksize: int | None) -> None:
    items = [(str(tmp_path), item) for item in range(20)]
    assert pool.map(die_once, items, chunksize, retries=1) == list(range(20))


def test_an_item_that_kills_every_worker_fails_after_its_retries(pool: Any) -> None:
    results = pool.map(os._exit, [5], retries=3, return_exceptions=True)
    assert isinstance(results[0], shoal.WorkerDied)
    assert results[0].exitcode == 5
    assert pool.map(square, [5]) == [25]


# -- return_exceptions --


def test_errors_are_values_in_their_items_places_if_asked(pool: Any) -> None:
    results = pool.map(fail_on_3, range(6), return_exceptions=True)
    assert [type(result) for result in results] == [int, int, int, KeyError, int, int]
    assert "in fail_on_3" in str(results[3].__cause__)
    results = list(pool.imap(fail_on_3, range(6), return_exceptions=True))
    assert [type(result) for result in results] == [int, int, int, KeyError, int, int]
    assert pool.starmap_async(fail_on_3, [(3,)], return_exceptions=True).get()[0].args == (3,)


# -- progress --


@pytest.mark.parametrize("call", ["map", "starmap", "map_async", "starmap_async", "imap", "imap_unordered"])
def test_every_mapping_call_shows_its_progress(pool: Any, call: str) -> None:
    seen: list[tuple[int, int | None]] = []
    items: Any = range(20) if "star" not in call else [(i,) for i in range(20)]
    result = getattr(pool, call)(nap, items, progress=lambda done, total: seen.append((done, total)))
    values = result.get() if "async" in call else list(result)
    assert sorted(values) == list(range(20))
    deadline = time.monotonic() + 10
    while (not seen or seen[-1] != (20, 20)) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert seen[-1] == (20, 20)
    assert seen == sorted(seen)
    assert len(seen) > 1


def test_a_progress_bar_is_tqdms(pool: Any, capsys: pytest.CaptureFixture[str]) -> None:
    assert pool.map(nap, range(20), progress=True) == list(range(20))
    assert "20/20" in capsys.readouterr().err


def test_a_progress_function_that_raises_ends_the_call(pool: Any) -> None:
    def stop(done: int, total: int | None) -> None:
        raise RuntimeError("enough")

    with pytest.raises(RuntimeError, match="enough"):
        pool.map(nap, range(1000), progress=stop)
    assert pool.map(square, [5]) == [25]


def test_progress_is_a_truth_or_a_function(pool: Any) -> None:
    with pytest.raises(TypeError, match="progress"):
        pool.map(square, [1], progress="yes")


# -- generators --


def test_map_begins_before_a_generator_has_ended(pool: Any, tmp_path: Path) -> None:
    mark = tmp_path / "begun"

    def items() -> Any:
        for item in range(20_000):
            if item == 19_999:
                deadline = time.monotonic() + 20
                while not mark.exists() and time.monotonic() < deadline:
                    time.sleep(0.01)
                assert mark.exists()
            yield item

    def touch(item: int) -> int:
        if item == 0:
            mark.touch()
        return item

    assert pool.map(touch, items()) == list(range(20_000))


@pytest.mark.parametrize("read", [0, 3])
def test_close_and_join_run_all_that_an_iterator_holds(tmp_path: Path, read: int) -> None:
    with Pool(2) as pool:
        results = pool.imap(lambda x: (tmp_path / str(x)).touch(), iter(range(6000)))
        for _ in range(read):
            next(results)
        pool.close()
        pool.join()
    assert len(list(tmp_path.iterdir())) == 6000


# -- cancel --


def test_a_call_that_has_not_begun_can_be_cancelled() -> None:
    with Pool(1) as pool:
        busy = pool.apply_async(time.sleep, (0.3,))
        waiting = pool.apply_async(square, (3,))
        time.sleep(0.05)
        assert waiting.cancel()
        with pytest.raises(shoal.TaskCancelled):
            waiting.get(10)
        assert busy.get(10) is None
        assert not busy.cancel()
        assert pool.apply(square, (4,)) == 16


def test_cancelling_a_map_lets_the_items_at_hand_finish() -> None:
    with Pool(2) as pool:
        result = pool.map_async(nap, range(10_000), return_exceptions=True)
        time.sleep(0.2)
        assert result.cancel()
        values = result.get(10)
        assert len(values) == 10_000
        assert sum(isinstance(value, shoal.TaskCancelled) for value in values) > 9000
        assert any(isinstance(value, int) for value in values)
        assert pool.map(square, range(5)) == [0, 1, 4, 9, 16]


def test_cancelling_with_kill_ends_what_is_running() -> None:
    with Pool(2) as pool:
        result = pool.apply_async(time.sleep, (60,))
        other = pool.apply_async(sleep_if_large, (1,))
        time.sleep(0.1)
        assert result.cancel(kill=True)
        with pytest.raises(shoal.TaskCancelled):
            result.get(10)
        assert other.get(10) == 1


def test_what_a_dead_worker_left_is_not_given_out_where_it_is_cancelled_as_its_error_is_made(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    make = shoal.WorkerDied.__init__
    with Pool(1) as pool:

        def cancel_and_make(self: shoal.WorkerDied, *args: Any) -> None:
            other = threading.Thread(target=lambda: result.cancel(kill=True))
            other.start()
            other.join()
            make(self, *args)

        monkeypatch.setattr(shoal.WorkerDied, "__init__", cancel_and_make)
        result = pool.map_async(die_or_sleep, [0, 1], chunksize=2, return_exceptions=True)
        died, cancelled = result.get(10)
        assert isinstance(died, shoal.WorkerDied)
        assert isinstance(cancelled, shoal.TaskCancelled)
        assert pool.apply(square, (4,)) == 16


@pytest.mark.parametrize("wait", [0.0, 0.2])
def test_a_pool_whose_imap_was_cancelled_can_be_joined(wait: float) -> None:
    pool = Pool(2)
    results = pool.imap(abs, (number for number in itertools.count()))
    assert next(results) == 0
    time.sleep(wait)  # the iterator's thread sleeps by then, as its window is full
    assert results.cancel()
    pool.close()
    pool.join()


def test_an_endless_imap_can_be_cancelled() -> None:
    with Pool(2) as pool:
        results = pool.imap_unordered(nap, itertools.count())
        next(results)
        results.cancel()
        ended = 0
        try:
            for _ in range(20_000):
                try:
                    next(results)
                except shoal.TaskCancelled:
                    ended += 1
        except AssertionError:
            raise
        except StopIteration:
            pass
        assert ended > 0
        assert pool.map(square, [5]) == [25]


# -- what workers are and do --


def grow(size: int) -> int:
    global kept
    kept = bytearray(size)
    return os.getpid()


def test_a_worker_above_its_memory_limit_is_replaced_after_its_task() -> None:
    with Pool(1, worker_memory_limit="300M") as pool:
        first = pool.apply(grow, (1000,))
        assert pool.apply(grow, (2000,)) == first
        assert pool.apply(grow, (400 << 20,)) == first  # its result arrives all the same
        assert pool.apply(grow, (1000,)) != first


@pytest.mark.parametrize("wrong", ["much", -5, 0, "5X"])
def test_a_memory_limit_is_a_size(wrong: Any) -> None:
    with pytest.raises(ValueError, match="worker_memory_limit"):
        Pool(1, worker_memory_limit=wrong)


def note_end(path: str) -> None:
    with open(path, "a") as file:
        file.write(f"{os.getpid()}\n")


@pytest.mark.parametrize("method", METHODS)
def test_each_worker_runs_its_exit_function(tmp_path: Path, method: str) -> None:
    import functools

    path = tmp_path / "ends"
    pool = get_context(method).Pool(2, worker_exit=functools.partial(note_end, str(path)), maxtasksperchild=3)
    pids = set(pool.map(worker_pid, range(12), chunksize=1))
    pool.close()
    pool.join()
    assert pids <= set(map(int, path.read_text().split()))


def worker_pid(_: Any) -> int:
    time.sleep(0.01)
    return os.getpid()


def worker_cpus(_: Any) -> list[int]:
    time.sleep(0.01)
    return sorted(os.sched_getaffinity(0))


def test_workers_are_pinned_to_the_cpus_they_are_given() -> None:
    mine = sorted(os.sched_getaffinity(0))
    with Pool(2, cpus=mine[:2]) as pool:
        assert {tuple(cpus) for cpus in pool.map(worker_cpus, range(40), chunksize=1)} == {(cpu,) for cpu in mine[:2]}
    with pytest.raises(ValueError, match="cpus"):
        Pool(1, cpus=[99_999])


def switches(pid: int) -> int:
    """How often the process went to sleep."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith("voluntary")).split()[1])


@pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="on the parent's own cpu a worker is not to look for work")
def test_a_pinned_worker_looks_for_work_before_it_sleeps_as_others_do() -> None:
    cpu = max(os.sched_getaffinity(0))
    fewest = 2000
    with Pool(1, cpus=[cpu]) as pool:
        pid = pool.apply(os.getpid)
        end = time.monotonic() + 30
        while fewest >= 200 and time.monotonic() < end:  # other processes may be on the cpus
            before = switches(pid)
            for _ in range(2000):
                pool.apply(square, (1,))
            fewest = min(fewest, switches(pid) - before)
    assert fewest < 200


def thread_numbers(_: Any) -> list[int]:
    import numpy  # noqa: F401
    import threadpoolctl

    return [pool["num_threads"] for pool in threadpoolctl.threadpool_info()]


@pytest.mark.parametrize("method", METHODS)
def test_the_numerical_libraries_of_workers_share_the_cores(method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from shoal import _threads

    for name in _threads.VARIABLES:
        monkeypatch.delenv(name, raising=False)
    cores = len(os.sched_getaffinity(0))
    context = get_context(method)
    with context.Pool(cores) as pool:
        assert set(pool.apply(thread_numbers, (0,))) == {1}
    with context.Pool(1, threads=2) as pool:
        assert set(pool.apply(thread_numbers, (0,))) == {min(2, cores)}


THREADS_OF_BLAS = """
    import os, time
    import numpy
    from shoal.multiprocessing import get_context
    from threadpoolctl import threadpool_info

    matrix = numpy.ones((600, 600))

    def threads():
        return len(os.listdir("/proc/self/task"))

    def started_by_a_product(_):
        before = threads()
        assert (matrix @ matrix == 600).all()
        return threads() - before

    if __name__ == "__main__":
        layers = [pool.get("threading_layer") for pool in threadpool_info()]
        assert layers == ["pthreads"], f"this NumPy has another library than the test is about: {layers}"
        numbers = [pool["num_threads"] for pool in threadpool_info()]
        started_by_a_product(0)
        context = get_context(METHOD)
        for _ in range(2):
            with context.Pool(2) as pool:
                print(pool.map(started_by_a_product, range(4), 1))
            time.sleep(0.3)  # the engine's own thread may be about to end
            print(threads(), started_by_a_product(0), [pool["num_threads"] for pool in threadpool_info()] == numbers)
"""


@pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="OpenBLAS has one thread anyhow")
@pytest.mark.parametrize("method", METHODS)
def test_a_pool_starts_no_threads_of_openblas(tmp_path: Path, method: str) -> None:
    """They would all look for work, on all cores, for 25 ms. The parent's are there again at its next product."""
    environment = {name: value for name, value in os.environ.items() if not name.endswith("_THREADS")}
    done = run_program(tmp_path, THREADS_OF_BLAS.replace("METHOD", repr(method)), env=environment)
    more = len(os.sched_getaffinity(0)) - 1
    gone, again = (1, more) if method == "fork" else (1 + more, 0)  # at a fork they end in the parent too
    assert done.stdout == f"[0, 0, 0, 0]\n{gone} {again} True\n" * 2, (done.stdout, done.stderr)


def variable(name: str) -> str | None:
    return os.environ.get(name)


def test_a_users_own_thread_numbers_are_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    from shoal import _threads

    for name in _threads.VARIABLES:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    with Pool(2) as pool:
        assert pool.map(variable, ["OMP_NUM_THREADS", "MKL_NUM_THREADS"]) == ["7", None]


# -- crashes --


def crash(how: str) -> None:
    if how == "segfault":
        import ctypes

        ctypes.string_at(0)
    os.abort()


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("how, signal_name", [("segfault", "SIGSEGV"), ("abort", "SIGABRT")])
def test_a_crash_shows_where_in_python_it_happened(method: str, how: str, signal_name: str) -> None:
    with get_context(method).Pool(1) as pool:
        with pytest.raises(shoal.WorkerDied) as caught:
            pool.apply(crash, (how,))
        assert caught.value.signal == signal_name
        assert "in crash" in str(caught.value)
        with pytest.raises(shoal.WorkerDied) as caught:  # by a killed one's successor: nothing left over
            pool.apply(os.kill, (pool.apply(os.getpid), signal.SIGKILL))
        assert "in crash" not in str(caught.value)


@pytest.mark.parametrize("method", METHODS)
def test_a_crash_is_told_to_the_file_that_the_program_chose(method: str, tmp_path: Path) -> None:
    done = run_program(
        tmp_path,
        f"""
        import ctypes, faulthandler, os
        file = open("crash.txt", "a")
        faulthandler.enable(file=file)
        import shoal
        from shoal.multiprocessing import get_context

        def crash():
            ctypes.string_at(0)

        if __name__ == "__main__":
            with get_context({method!r}).Pool(1) as pool:
                try:
                    pool.apply(crash)
                except shoal.WorkerDied as error:
                    print(error.signal)
            print("in crash" in open("crash.txt").read())
        """,
        cwd=tmp_path,
    )
    assert done.stdout == "SIGSEGV\nTrue\n", done.stderr


# -- stats --


def test_statistics_tell_what_each_worker_did(pool: Any) -> None:
    import numpy

    pool.map(nap, range(20), chunksize=1)
    pool.map(numpy.sum, [numpy.zeros(100_000)] * 4, chunksize=1)
    stats = pool.stats()
    assert sorted(entry["pid"] for entry in stats) == sorted(process.pid for process in pool._pool)
    assert sum(entry["items"] for entry in stats) == 24
    assert sum(entry["tasks"] for entry in stats) == 24
    assert sum(entry["busy"] for entry in stats) >= 20 * 0.02
    assert all(entry["idle"] >= 0 for entry in stats)
    assert sum(entry["bytes_in"] for entry in stats) >= 4 * 800_000
    assert sum(entry["bytes_out"] for entry in stats) > 0


# -- installed --


def test_an_installed_programs_pool_takes_them_too(tmp_path: Path) -> None:
    done = run_program(
        tmp_path,
        """
        import multiprocessing, time
        if __name__ == "__main__":
            for method in ("fork", "spawn"):
                with multiprocessing.get_context(method).Pool(2, retries=1, task_timeout=1) as pool:
                    print(pool.map(time.sleep, [0, 30], return_exceptions=True, chunksize=1))
            with multiprocessing.Pool(1, threads=1) as pool:
                print(pool.map(abs, [-1]))
        """,
        shoal=True,
    )
    lines = done.stdout.splitlines()
    assert lines[0].startswith("[None, TaskTimeout(1, "), done.stderr
    assert lines[1].startswith("[None, TaskTimeout(1, ")
    assert lines[2] == "[1]"


class TwoWords(Exception):
    """Cannot be unpickled: it keeps one argument, and wants two."""

    def __init__(self, first: str, second: str) -> None:
        super().__init__(f"{first} {second}")


def raise_two_words(x: int) -> int:
    raise TwoWords("really", "happened")


def test_of_an_exception_that_cannot_be_made_again_name_and_traceback_are_there(pool: Any) -> None:
    with pytest.raises(pickle.UnpicklingError, match=r"TwoWords, which cannot be unpickled here: TypeError") as raised:
        pool.apply(raise_two_words, (1,))
    remote = str(raised.value.__cause__)
    assert "in raise_two_words" in remote
    assert "TwoWords: really happened" in remote
    assert pool.map(square, [2]) == [4]
