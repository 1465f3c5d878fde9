"""`Pool` as its users see it."""

from __future__ import annotations

import gc
import multiprocessing
import os
import pickle
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import shoal
from helpers import run_program
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from shoal.multiprocessing import Pool, get_context


def square(x: int) -> int:
    return x * x


def echo(x: Any) -> Any:
    return x


def add(a: int, b: int = 1, *, c: int = 0) -> int:
    return a + b + c


def fail_on(x: int) -> int:
    if x in (7, 3):
        raise ValueError(f"item {x}")
    return x


def pid_of(_: Any) -> int:
    time.sleep(0.01)
    return os.getpid()


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


@pytest.fixture(scope="module")
def pool() -> Any:
    with Pool(2) as made:
        yield made


@pytest.fixture
def own_pool() -> Any:
    with Pool(2) as made:
        yield made


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
    result = pool.apply_async(echo, (Unpicklable(),))
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


# -- workers that die --


def die(how: str) -> Any:
    if how == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    if how == "exit":
        os._exit(3)
    if how == "segfault":
        import ctypes

        ctypes.string_at(0)
    if how == "sys.exit":
        raise SystemExit(4)
    return how


@pytest.mark.parametrize(
    "how, exitcode, shown",
    [("kill", -9, "SIGKILL"), ("exit", 3, "status 3"), ("segfault", -11, "SIGSEGV"), ("sys.exit", 4, "status 4")],
)
def test_a_dead_worker_fails_the_item_it_held_and_no_other(own_pool: Any, how: str, exitcode: int, shown: str) -> None:
    items = ["a", "b", how, "c", "d"]
    results = own_pool.imap(die, items)
    got: list[Any] = []
    started = time.monotonic()
    for _ in items:
        try:
            got.append(next(results))
        except shoal.WorkerDied as error:
            assert (error.item, error.exitcode) == (2, exitcode)
            assert shown in str(error)
            assert pickle.loads(pickle.dumps(error)).exitcode == exitcode
            got.append(None)
    assert got == ["a", "b", None, "c", "d"]
    assert time.monotonic() - started < 10
    assert own_pool.map(square, range(10)) == [x * x for x in range(10)]


def test_inside_a_chunk_too_only_the_item_that_was_held_fails(own_pool: Any) -> None:
    results = own_pool.imap(die, ["a", "b", "kill", "c", "d"], chunksize=5)
    got = []
    for _ in range(5):
        try:
            got.append(next(results))
        except shoal.WorkerDied:
            got.append("died")
    assert got == ["a", "b", "died", "c", "d"]


def test_an_idle_worker_that_is_killed_is_replaced(own_pool: Any) -> None:
    own_pool.map(square, [1])
    before = {process.pid for process in own_pool._pool}
    for pid in before:
        os.kill(pid, signal.SIGKILL)
    assert own_pool.map(square, range(100)) == [x * x for x in range(100)]
    deadline = time.monotonic() + 10
    # A dead one that the supervisor has not looked at yet is still listed.
    while len({process.pid for process in own_pool._pool} - before) < 2 and time.monotonic() < deadline:
        time.sleep(0.01)
    assert len({process.pid for process in own_pool._pool} - before) == 2


def give_up() -> None:
    raise SystemExit(5)


def test_workers_that_never_get_to_a_task_end_in_a_clear_error() -> None:
    pool = Pool(2, initializer=give_up)
    with pytest.raises(RuntimeError, match="before it finished a task"):
        pool.map(square, [1, 2])
    pool.terminate()
    pool.join()


# -- life --


def test_initializer_and_maxtasksperchild(own_pool: Any) -> None:
    with Pool(1, initializer=os.putenv, initargs=("SHOAL_TEST", "here"), maxtasksperchild=2) as pool:
        pids = pool.map(pid_of, range(6), chunksize=1)
    assert len(set(pids)) == 3


def test_callbacks_run_before_get_returns(own_pool: Any) -> None:
    got: list[Any] = []
    result = own_pool.apply_async(square, (3,), callback=got.append)
    assert result.get(10) == 9
    assert got == [9]
    failed = own_pool.apply_async(fail_on, (3,), error_callback=got.append)
    failed.wait(10)
    assert failed.ready()
    assert not failed.successful()
    assert isinstance(got[1], ValueError)
    mapped = own_pool.map_async(square, range(3000), callback=lambda values: got.append(len(values)))
    deadline = time.monotonic() + 10
    while len(got) < 3 and time.monotonic() < deadline:  # nobody waits for it
        time.sleep(0.01)
    assert got[2] == 3000
    assert mapped.successful()


def test_work_that_nobody_waits_for_is_done_all_the_same(own_pool: Any, tmp_path: Path) -> None:
    result = own_pool.map_async(square, range(30_000), chunksize=1)
    time.sleep(0.1)
    deadline = time.monotonic() + 20
    while result.settled < 28_000 and time.monotonic() < deadline:
        time.sleep(0.05)
    assert result.settled >= 28_000  # the table holds 1024 at a time, so somebody fed it


def test_get_and_next_obey_their_timeouts(own_pool: Any) -> None:
    slow = own_pool.apply_async(time.sleep, (5,))
    with pytest.raises(multiprocessing.TimeoutError):
        slow.get(0.05)
    with pytest.raises(ValueError, match="not ready"):
        slow.successful()
    results = own_pool.imap(time.sleep, [5])
    with pytest.raises(multiprocessing.TimeoutError):
        results.next(timeout=0.05)


def test_a_pool_can_be_joined_again(own_pool: Any) -> None:
    own_pool.close()
    own_pool.join()
    own_pool.join()
    own_pool.terminate()
    own_pool.join()


def test_a_wrong_argument_is_all_that_is_complained_of() -> None:
    program = "from shoal.multiprocessing.pool import Pool\ntry: Pool(no_such_argument=1)\nexcept TypeError: pass"
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=True)
    assert ended.stderr == ""


@pytest.mark.parametrize("threads", [0, 1.5, "2"])
def test_a_number_of_threads_is_a_number_of_threads(threads: Any) -> None:
    with pytest.raises(ValueError, match="threads must be at least 1"):
        Pool(1, threads=threads)


def test_close_and_join_do_what_was_handed_out(own_pool: Any) -> None:
    results = own_pool.imap(square, iter(range(20_000)))
    own_pool.close()
    with pytest.raises(ValueError, match="not running"):
        own_pool.map(square, [1])
    own_pool.join()
    assert sum(1 for _ in results) == 20_000


def test_terminate_fails_what_is_not_done() -> None:
    pool = Pool(2)
    slow = pool.map_async(time.sleep, [30] * 4)
    started = time.monotonic()
    pool.terminate()
    pool.join()
    assert time.monotonic() - started < 5
    with pytest.raises(shoal.TaskCancelled):
        slow.get(5)


def test_terminate_ends_a_worker_that_is_stopped() -> None:
    pool = Pool(2)
    pool.map(square, range(10))
    os.kill(pool._pool[0].pid, signal.SIGSTOP)
    started = time.monotonic()
    pool.terminate()
    assert time.monotonic() - started < 3


def test_a_pool_that_is_dropped_ends_its_workers() -> None:
    import gc

    pool = Pool(2)
    pids = [process.pid for process in pool._pool]
    with pytest.warns(ResourceWarning):
        del pool
        gc.collect()
    for pid in pids:
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)


@pytest.mark.parametrize(
    "arguments, error",
    [
        ({"processes": 0}, ValueError),
        ({"processes": 2, "maxtasksperchild": 0}, ValueError),
        ({"processes": 2, "initializer": 5}, TypeError),
    ],
)
def test_wrong_arguments_are_refused(arguments: dict[str, Any], error: type[Exception]) -> None:
    with pytest.raises(error):
        Pool(**arguments)


def test_chunksize_must_be_positive(pool: Any) -> None:
    with pytest.raises(ValueError, match="Chunksize"):
        pool.imap(square, [1], chunksize=0)
    with pytest.raises(ValueError, match="Chunksize"):
        pool.map(square, [1], chunksize=0)


def test_a_pool_cannot_be_pickled(pool: Any) -> None:
    with pytest.raises(NotImplementedError, match="cannot be passed"):
        pickle.dumps(pool)


def use_inherited_pool(pool: Any) -> str:
    try:
        pool.map(square, [1])
    except RuntimeError as error:
        return str(error)
    return "worked"


def nested(n: int) -> list[int]:
    with Pool(2) as inner:
        return inner.map(square, range(n))


def test_a_pool_belongs_to_the_process_that_made_it(own_pool: Any) -> None:
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        os.write(write, use_inherited_pool(own_pool).encode())
        os._exit(0)
    assert b"process that made it" in os.read(read, 1000)
    os.waitpid(child, 0)
    os.close(read)
    os.close(write)


@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
def test_every_start_method_works(tmp_path: Path, method: str) -> None:
    done = run_program(
        tmp_path,
        """
        import sys
        from shoal.multiprocessing import get_context

        def square(x):
            return x * x

        if __name__ == "__main__":
            with get_context(sys.argv[1]).Pool(2) as pool:
                print(pool.map(square, range(5)), pool.map(lambda x: -x, [1, 2]))
                print(sorted(process.name.split("-")[0] for process in pool._pool))
        """,
        method,
    )
    names = {"fork": "Fork", "spawn": "Spawn", "forkserver": "ForkServer"}
    assert done.stdout.splitlines() == ["[0, 1, 4, 9, 16] [-1, -2]", str([names[method] + "PoolWorker"] * 2)], (
        done.stderr
    )


def test_ctrl_c_ends_the_program_with_one_traceback(tmp_path: Path) -> None:
    import subprocess
    import sys

    program = tmp_path / "program.py"
    program.write_text(
        "import time\nfrom shoal.multiprocessing import Pool\n"
        "if __name__ == '__main__':\n    with Pool(2) as pool:\n"
        "        print('ready', flush=True)\n        pool.map(time.sleep, [30] * 4)\n"
    )
    process = subprocess.Popen(
        [sys.executable, str(program)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    time.sleep(0.3)
    started = time.monotonic()
    os.killpg(process.pid, signal.SIGINT)
    _, errors = process.communicate(timeout=20)
    assert time.monotonic() - started < 5
    assert errors.count("Traceback") == 1
    assert errors.rstrip().endswith("KeyboardInterrupt")
    with pytest.raises(ProcessLookupError):
        os.killpg(process.pid, 0)


def test_a_killed_parent_leaves_no_worker(tmp_path: Path) -> None:
    import subprocess
    import sys

    program = tmp_path / "program.py"
    program.write_text(
        "import time, threading\nfrom shoal.multiprocessing import Pool\n"
        "if __name__ == '__main__':\n    pool = Pool(2)\n    made = []\n"
        "    thread = threading.Thread(target=lambda: made.append(Pool(2)))\n    thread.start()\n    thread.join()\n"
        "    pool.map_async(time.sleep, [30] * 4)\n    made[0].map_async(time.sleep, [30] * 4)\n"
        "    time.sleep(0.2)\n"
        "    print(*[p.pid for one in (pool, made[0]) for p in one._pool], flush=True)\n    time.sleep(30)\n"
    )
    process = subprocess.Popen([sys.executable, str(program)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    pids = [int(pid) for pid in process.stdout.readline().split()]
    assert len(pids) == 4
    process.kill()
    process.wait()
    deadline = time.monotonic() + 5
    alive = pids
    while alive and time.monotonic() < deadline:
        alive = [pid for pid in alive if os.path.exists(f"/proc/{pid}") and "Z" not in _state(pid)]
        time.sleep(0.01)
    assert not alive
    process.stdout.close()


def _state(pid: int) -> str:
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rsplit(")", 1)[1].split()[0]
    except OSError:
        return "Z"


def test_a_pool_in_a_non_daemonic_child_works() -> None:
    context = get_context("fork")
    queue = context.Queue()
    process = context.Process(target=lambda: queue.put(nested(4)))
    process.start()
    assert queue.get(timeout=20) == [0, 1, 4, 9]
    process.join()


# -- pools in pools --


def sum_by_a_pool(count: int) -> int:
    with Pool(2) as pool:
        return sum(pool.map(square, range(count)))


def map_forever_in_a_pool(path: str) -> None:
    with Pool(2) as pool:
        Path(path).write_text(" ".join(str(process.pid) for process in pool._pool))
        pool.map(time.sleep, [60, 60], chunksize=1)


@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
def test_a_worker_may_have_a_pool_of_its_own(method: str) -> None:
    with get_context(method).Pool(2) as pool:
        assert pool.map(sum_by_a_pool, [3, 4, 5]) == [5, 14, 30]
        assert pool.apply(is_daemon)


def is_daemon() -> bool:
    return multiprocessing.current_process().daemon


def test_the_pool_of_a_killed_worker_ends_with_it(own_pool: Any, tmp_path: Path) -> None:
    path = tmp_path / "pids"
    result = own_pool.apply_async(map_forever_in_a_pool, (str(path),))
    while not path.exists() or not path.read_text():
        time.sleep(0.01)
    pids = [int(pid) for pid in path.read_text().split()]
    assert result.cancel(kill=True)
    deadline = time.monotonic() + 5
    while time.monotonic() < deadline and any(is_running(pid) for pid in pids):
        time.sleep(0.01)
    assert not any(is_running(pid) for pid in pids)


def is_running(pid: int) -> bool:
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False


# -- limits of the machine --


@pytest.mark.parametrize(
    "limit, value, error",
    [
        ("NOFILE", 12, OSError),
        ("NPROC", 1, OSError),
        ("AS", 20 << 20, (OSError, MemoryError)),
        ("FSIZE", 4096, OSError),
    ],
)
def test_a_pool_that_the_machine_has_no_room_for_says_so_and_leaves_nothing(
    tmp_path: Path, limit: str, value: int, error: Any
) -> None:
    names = error.__name__ if isinstance(error, type) else " ".join(one.__name__ for one in error)
    done = run_program(
        tmp_path,
        f"""
        import os, resource, sys, time, threading
        from shoal.multiprocessing import Pool

        if __name__ == "__main__":
            with Pool(1) as pool:  # all that is imported on need
                pool.map(abs, [-1])
            pool.join()
            if {limit!r} == "NPROC" and os.getuid() == 0:
                os.setuid(65534)  # the limit does not hold for root
            while threading.active_count() > 1:  # the first pool's helper ends by itself
                time.sleep(0.01)
            before = set(os.listdir("/proc/self/fd")), threading.active_count()
            with open("/proc/self/statm") as file:
                used = int(file.read().split()[0]) * 4096 if {limit!r} == "AS" else 0
            hard = resource.getrlimit(resource.RLIMIT_{limit})[1]
            resource.setrlimit(resource.RLIMIT_{limit}, (used + {value}, hard))
            started = time.monotonic()
            try:
                pool = Pool(30)
                print(pool.map(abs, [-1]))
            except Exception as error:
                print(type(error).__mro__)
                print(error)
            print(time.monotonic() - started < 5)
            resource.setrlimit(resource.RLIMIT_{limit}, (hard, hard))
            print(set(os.listdir("/proc/self/fd")) == before[0], threading.active_count() == before[1])
            with open(f"/proc/self/task/{{os.getpid()}}/children") as file:
                print(file.read().split())
        """,
    )
    lines = done.stdout.splitlines()
    assert any(name in lines[0] for name in names.split()), done.stdout + done.stderr
    assert lines[2:] == ["True", "True True", "[]"], done.stdout + done.stderr


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


def test_calls_are_handed_out_though_nobody_reads_their_results(own_pool: Any) -> None:
    # Many times what the table holds: what is done has to make room for what comes.
    results = [own_pool.apply_async(square, (i,)) for i in range(20_000)]
    own_pool.close()
    own_pool.join()
    assert all(result.ready() for result in results)
    assert [result.get() for result in results] == [i * i for i in range(20_000)]


def test_a_range_is_mapped_without_a_list_of_it(pool: Any) -> None:
    assert pool.map(square, range(10_000)) == [i * i for i in range(10_000)]
    assert pool.map(square, range(5, 0, -2), chunksize=1) == [25, 9, 1]
    assert pool.map(square, range(0)) == []
    assert pool.starmap_async(pow, [(2, 3)]).get() == [8]
    with pytest.raises(OverflowError):
        pool.map(square, range(2**70))


@pytest.mark.parametrize("how", ["apply_async", "map_async"])
def test_a_pool_that_is_dropped_with_its_result_ends(how: str) -> None:
    pool: Any = Pool(2)
    pool.map(square, [1])  # the workers have the function
    time.sleep(1)  # the supervisor has seen to that call: it looks at the next one only if it is told
    pids = [worker.pid for worker in pool._pool]
    result = getattr(pool, how)(square, (3,))
    del pool, result
    deadline = time.monotonic() + 20
    while any(is_running(pid) for pid in pids) and time.monotonic() < deadline:
        gc.collect()
        time.sleep(0.05)
    assert not any(is_running(pid) for pid in pids)


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
