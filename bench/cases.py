"""The cases. `python cases.py CASE IMPLEMENTATION SCALE` measures once and prints the figure as JSON.

A case gets the implementation's module (`multiprocessing`-like or `joblib`-like), so that all run the same code.
Figures are times per unit or
rates; which is better is said in CASES. SCALE shrinks the work for a quick run.
"""

from __future__ import annotations

import importlib
import json
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np

now = time.perf_counter
SCALE = 1.0


def scaled(count: int) -> int:
    return max(1, int(count * SCALE))


def f(x: int) -> int:
    return x * x


def array_in(array: Any) -> float:
    return float(array[0])


def array_out(value: float) -> Any:
    return np.full(1_000_000, value)


def best_of(measure: Callable[[], float], times: int = 3) -> float:
    """The best of a few in one process: what is left is the implementation's, not the start's."""
    return min(measure() for _ in range(times))


# -------------------------------------------------------------------------------- pools


def pool_of(name: str) -> Any:
    if name == "mpire":
        return importlib.import_module("mpire").WorkerPool(2)
    if name == "concurrent.futures":
        return importlib.import_module("concurrent.futures").ProcessPoolExecutor(2)
    if name == "loky":
        return importlib.import_module("loky").get_reusable_executor(max_workers=2)
    if name == "ray":
        # Its own Pool, on a cluster of this machine alone. That starts in some seconds, which are not measured.
        importlib.import_module("ray").init(num_cpus=2, include_dashboard=False, log_to_driver=False)
        return importlib.import_module("ray.util.multiprocessing").Pool(2)
    module = "shoal.multiprocessing" if name == "shoal" else name
    return importlib.import_module(module).Pool(2)


def map_with(name: str, pool: Any, function: Any, items: list[Any], chunksize: int | None) -> list[Any]:
    if name == "mpire":
        return pool.map(function, items, chunk_size=chunksize)  # type: ignore[no-any-return]
    if name in ("concurrent.futures", "loky"):
        return list(pool.map(function, items, chunksize=chunksize or max(1, len(items) // 8)))
    return pool.map(function, items, chunksize)  # type: ignore[no-any-return]


def map_case(name: str, count: int, chunksize: int | None) -> float:
    items = list(range(count))
    expected = [x * x for x in items]
    with pool_of(name) as pool:
        map_with(name, pool, f, items[:100], chunksize)

        def measure() -> float:
            started = now()
            result = map_with(name, pool, f, items, chunksize)
            took = now() - started
            assert result == expected
            return took / count * 1e6

        return best_of(measure)


def map_chunk_1(name: str) -> float:
    slow = name in ("concurrent.futures", "loky", "mpire", "ray")
    return map_case(name, scaled(5_000 if slow else 40_000), 1)


def map_default(name: str) -> float:
    return map_case(name, scaled(300_000), None)


def imap_unordered(name: str) -> float:
    count = scaled(40_000)
    with pool_of(name) as pool:
        pool.map(f, range(100))

        def measure() -> float:
            started = now()
            assert sum(1 for _ in pool.imap_unordered(f, range(count))) == count
            return (now() - started) / count * 1e6

        return best_of(measure)


def apply_round_trip(name: str) -> float:
    count = scaled(2_000)
    with pool_of(name) as pool:
        call = pool.apply if hasattr(pool, "apply") else lambda g, args: pool.submit(g, *args).result()
        call(f, (1,))

        def measure() -> float:
            started = now()
            for i in range(count):
                call(f, (i,))
            return (now() - started) / count * 1e6

        return best_of(measure)


def apply_async_many(name: str) -> float:
    count = scaled(10_000)
    with pool_of(name) as pool:
        pool.apply(f, (1,))

        def measure() -> float:
            started = now()
            results = [pool.apply_async(f, (i,)) for i in range(count)]
            assert sum(result.get() for result in results) == sum(i * i for i in range(count))
            return (now() - started) / count * 1e6

        return best_of(measure)


def arrays_into_workers(name: str) -> float:
    arrays = [np.full(1_000_000, i, dtype=float) for i in range(8)] * max(1, scaled(5))
    with pool_of(name) as pool:
        map_with(name, pool, array_in, arrays[:4], 1)

        def measure() -> float:
            started = now()
            assert map_with(name, pool, array_in, arrays, 1)[3] == 3.0
            return len(arrays) * 8e6 / (now() - started) / 1e9

        return max(measure() for _ in range(3))


def arrays_out_of_workers(name: str) -> float:
    values = list(range(max(4, scaled(40))))
    with pool_of(name) as pool:
        map_with(name, pool, array_out, values[:4], 1)

        def measure() -> float:
            started = now()
            for number, result in enumerate(pool.imap(array_out, values)):
                assert result[7] == number
            return len(values) * 8e6 / (now() - started) / 1e9

        return max(measure() for _ in range(3))


def pool_life(name: str) -> float:
    times = []
    for _ in range(max(3, scaled(10))):
        started = now()
        with pool_of(name) as pool:
            assert map_with(name, pool, f, [1, 2, 3, 4], None) == [1, 4, 9, 16]
        times.append(now() - started)
    return sorted(times)[len(times) // 2] * 1e3


def pool_life_by(name: str, method: str) -> float:
    """As pool_life, after one that starts what the method keeps (a fork server, a zygote)."""
    module = importlib.import_module("shoal.multiprocessing" if name == "shoal" else name)
    context = module.get_context(method)
    times = []
    for _ in range(max(3, scaled(10))):
        started = now()
        with context.Pool(2) as pool:
            assert pool.map(f, [1, 2, 3, 4]) == [1, 4, 9, 16]
        times.append(now() - started)
    return sorted(times[1:])[len(times[1:]) // 2] * 1e3


def pool_life_spawn(name: str) -> float:
    return pool_life_by(name, "spawn")


def pool_life_forkserver(name: str) -> float:
    return pool_life_by(name, "forkserver")


def work_1_ms(_: int) -> None:
    end = time.thread_time() + 1e-3
    while time.thread_time() < end:
        pass


def share_of_cores(name: str, workers: int) -> float:
    """Percent of the time of all cores that tasks of 1 ms of work got."""
    import os

    module = importlib.import_module("shoal.multiprocessing" if name == "shoal" else name)
    cores = len(os.sched_getaffinity(0))
    count = scaled(3_000)
    with module.Pool(workers) as pool:
        pool.map(work_1_ms, range(10 * workers))

        def measure() -> float:
            started = now()
            pool.map(work_1_ms, range(count), chunksize=1)
            return count * 1e-3 / (now() - started) / cores * 100

        return max(measure() for _ in range(3))


def short_tasks_2_workers(name: str) -> float:
    return share_of_cores(name, 2)


def short_tasks_8_workers(name: str) -> float:
    return share_of_cores(name, 8)


# ---------------------------------------------------------------------------- executors


def executor_of(name: str) -> Any:
    return importlib.import_module("shoal.futures" if name == "shoal" else name).ProcessPoolExecutor(2)


def futures_round_trip(name: str) -> float:
    count = scaled(2_000)
    with executor_of(name) as executor:
        executor.submit(f, 1).result()

        def measure() -> float:
            started = now()
            for i in range(count):
                executor.submit(f, i).result()
            return (now() - started) / count * 1e6

        return best_of(measure)


def futures_as_completed(name: str) -> float:
    from concurrent.futures import as_completed

    count = scaled(5_000)
    with executor_of(name) as executor:
        executor.submit(f, 1).result()

        def measure() -> float:
            started = now()
            futures = [executor.submit(f, i) for i in range(count)]
            assert sum(future.result() for future in as_completed(futures)) == sum(i * i for i in range(count))
            return (now() - started) / count * 1e6

        return best_of(measure)


def futures_map_chunk_1(name: str) -> float:
    count = scaled(40_000 if name == "shoal" else 5_000)
    with executor_of(name) as executor:
        executor.submit(f, 1).result()

        def measure() -> float:
            started = now()
            assert sum(executor.map(f, range(count))) == sum(i * i for i in range(count))
            return (now() - started) / count * 1e6

        return best_of(measure)


# ------------------------------------------------------------------------------- queues


def queue_of(name: str) -> Any:
    if name == "faster-fifo":
        queue = importlib.import_module("faster_fifo").Queue(max_size_bytes=100_000_000)
        importlib.import_module("faster_fifo_reduction")
        return queue
    return importlib.import_module("shoal.multiprocessing" if name == "shoal" else name).Queue()


def process_of(name: str, target: Any, *args: Any) -> Any:
    module = "shoal.multiprocessing" if name == "shoal" else "multiprocessing"
    process = importlib.import_module(module).get_context("fork").Process(target=target, args=args)
    process.start()
    return process


def put_numbers(queue: Any, count: int) -> None:
    for i in range(count):
        queue.put(i)
    getattr(queue, "close", lambda: None)()
    getattr(queue, "join_thread", lambda: None)()


def queue_small_items(name: str) -> float:
    count = scaled(200_000)
    queue = queue_of(name)

    def measure() -> float:
        started = now()
        process = process_of(name, put_numbers, queue, count)
        for i in range(count):
            assert queue.get(timeout=60) == i
        took = now() - started
        process.join()
        return took / count * 1e6

    return best_of(measure, 2)


def send_back(there: Any, back: Any) -> None:
    while (item := there.get(timeout=60)) is not None:
        back.put(item)


def queue_ping_pong(name: str) -> float:
    count = scaled(5_000)
    there, back = queue_of(name), queue_of(name)
    process = process_of(name, send_back, there, back)

    def measure() -> float:
        started = now()
        for i in range(count):
            there.put(i)
            assert back.get(timeout=60) == i
        return (now() - started) / count * 1e6

    result = best_of(measure)
    there.put(None)
    process.join()
    return result


# -------------------------------------------------------------------------------- locks


def fork_context(name: str) -> Any:
    return importlib.import_module("shoal.multiprocessing" if name == "shoal" else name).get_context("fork")


def per_turn(turns: Callable[[int], object], count: int) -> float:
    """Nanoseconds; the best of many short measurements, as each is shorter than what else the machine does."""
    best = float("inf")
    for _ in range(50):
        started = now()
        turns(count)
        best = min(best, now() - started)
    return best / count * 1e9


def lock_with(name: str) -> float:
    lock = fork_context(name).Lock()

    def turns(count: int) -> None:
        for _ in range(count):
            with lock:
                pass

    return per_turn(turns, scaled(10_000))


def lock_acquire_release(name: str) -> float:
    lock = fork_context(name).Lock()

    def turns(count: int) -> None:
        for _ in range(count):
            lock.acquire()
            lock.release()

    return per_turn(turns, scaled(10_000))


def value_increment(name: str) -> float:
    value = fork_context(name).Value("i", 0)

    def turns(count: int) -> None:
        for _ in range(count):
            with value.get_lock():
                value.value += 1

    return per_turn(turns, scaled(5_000))


def take_turns(lock: Any, start: Any, count: int) -> None:
    start.wait()
    for _ in range(count):
        with lock:
            pass


def lock_contended(name: str) -> float:
    """Nanoseconds for each time that one of two processes takes a lock that both want."""
    context, count = fork_context(name), scaled(100_000)

    def measure() -> float:
        lock, start = context.Lock(), context.Barrier(3)
        processes = [process_of(name, take_turns, lock, start, count) for _ in range(2)]
        start.wait()
        started = now()
        for process in processes:
            process.join()
        return (now() - started) / (2 * count) * 1e9

    return best_of(measure)


def move_to(cpu: int) -> None:
    """Go on from this core, free to leave it: who may use one core alone never looks before it sleeps."""
    import os

    all_of_them = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {cpu})
    os.sched_setaffinity(0, all_of_them)


def set_back(there: Any, back: Any, count: int, cpu: int) -> None:
    move_to(cpu)
    for _ in range(count):
        there.wait()
        there.clear()
        back.set()


def event_ping_pong(name: str) -> float:
    """Microseconds there and back, begun on two cores: on one core the scheduler alone is measured."""
    import os

    context, count = fork_context(name), scaled(3_000)
    cpus = sorted(os.sched_getaffinity(0))

    def measure() -> float:
        there, back = context.Event(), context.Event()
        process = process_of(name, set_back, there, back, count, cpus[-1])
        move_to(cpus[0])
        started = now()
        for _ in range(count):
            there.set()
            back.wait()
            back.clear()
        took = now() - started
        process.join()
        return took / count * 1e6

    return best_of(measure)


# ------------------------------------------------------------------------------- joblib


def joblib_of(name: str) -> Any:
    return importlib.import_module("shoal.joblib" if name == "shoal" else "joblib")


def parallel_first_result(name: str) -> float:
    module = joblib_of(name)
    parallel, delayed = module.Parallel, module.delayed
    started = now()
    assert parallel(n_jobs=2)(delayed(f)(i) for i in range(10)) == [i * i for i in range(10)]
    return (now() - started) * 1e3


def parallel_next_call(name: str) -> float:
    parallel_first_result(name)
    return min(parallel_first_result(name) for _ in range(10))


def parallel_trivial_tasks(name: str) -> float:
    module = joblib_of(name)
    parallel_first_result(name)
    count = scaled(100_000)

    def measure() -> float:
        started = now()
        module.Parallel(n_jobs=2)(module.delayed(f)(i) for i in range(count))
        return (now() - started) / count * 1e6

    return best_of(measure)


def parallel_single_tasks(name: str) -> float:
    """Microseconds a task, each handed out alone."""
    module = joblib_of(name)
    parallel_first_result(name)
    count = scaled(5_000 if name == "joblib" else 50_000)

    def measure() -> float:
        started = now()
        module.Parallel(n_jobs=2, batch_size=1)(module.delayed(f)(i) for i in range(count))
        return (now() - started) / count * 1e6

    return best_of(measure)


def first_of(array: Any) -> float:
    return float(array[0])


def parallel_large(name: str, again: bool) -> float:
    """Milliseconds for a call of ten tasks that all have one array of 800 MB (times the scale)."""
    module = joblib_of(name)
    parallel_first_result(name)
    array = np.ones(scaled(100_000_000))

    def call() -> float:
        started = now()
        module.Parallel(n_jobs=2)(module.delayed(first_of)(array) for _ in range(10))
        return (now() - started) * 1e3

    first = call()
    return min(call() for _ in range(3)) if again else first


def parallel_large_first(name: str) -> float:
    return parallel_large(name, False)


def parallel_large_again(name: str) -> float:
    return parallel_large(name, True)


def inner_call(name: str, count: int) -> int:
    module = joblib_of(name)
    return sum(module.Parallel(n_jobs=2)(module.delayed(f)(i) for i in range(count)))


def parallel_nested(name: str) -> float:
    """Milliseconds for ten tasks that each make a call of ten tasks."""
    module = joblib_of(name)
    parallel_first_result(name)

    def measure() -> float:
        started = now()
        module.Parallel(n_jobs=2)(module.delayed(inner_call)(name, 10) for _ in range(10))
        return (now() - started) * 1e3

    measure()
    return best_of(measure)


def parallel_program(name: str) -> float:
    """Milliseconds for a whole program that makes one call."""
    module = "shoal.joblib" if name == "shoal" else "joblib"
    script = (
        f"from {module} import Parallel, delayed\n"
        "def f(x):\n    return x * x\n"
        "Parallel(n_jobs=2)(delayed(f)(i) for i in range(10))\n"
    )
    started = now()
    subprocess.run([sys.executable, "-c", script], check=True)
    return (now() - started) * 1e3


def grid_search(name: str) -> float:
    """Milliseconds for scikit-learn's GridSearchCV on its digits, with 60 short tasks."""
    if name == "shoal":
        import shoal

        shoal.install()
    from sklearn.datasets import load_digits
    from sklearn.model_selection import GridSearchCV
    from sklearn.neighbors import KNeighborsClassifier

    data, target = load_digits(return_X_y=True)
    search = GridSearchCV(KNeighborsClassifier(), {"n_neighbors": list(range(1, 13))}, cv=5, n_jobs=2)

    def measure() -> float:
        started = now()
        search.fit(data, target)
        return (now() - started) * 1e3

    measure()
    return best_of(measure)


def cache_of(name: str, folder: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """What decorates a function so that its results are kept in the folder."""
    if name == "diskcache":
        import diskcache

        return diskcache.Cache(folder).memoize()
    return joblib_of(name).Memory(folder, verbose=0).cache


def memory_hit(name: str) -> float:
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        cached = cache_of(name, folder)(f)
        cached(3)
        count = scaled(2_000)

        def measure() -> float:
            started = now()
            for _ in range(count):
                cached(3)
            return (now() - started) / count * 1e6

        return best_of(measure)


def memory_miss(name: str) -> float:
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        cached = cache_of(name, folder)(f)
        count = scaled(2_000)
        begin = 0

        def measure() -> float:
            nonlocal begin
            started = now()
            for x in range(begin, begin + count):
                cached(x)
            begin += count
            return (now() - started) / count * 1e6

        return best_of(measure)


memory_hit_diskcache = memory_hit  # beside diskcache, which is no joblib


def memory_array_argument(name: str) -> float:
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        cached = cache_of(name, folder)(array_in)
        array = np.arange(1_000_000, dtype=float)
        cached(array)
        count = scaled(20)

        def measure() -> float:
            started = now()
            for _ in range(count):
                cached(array)
            return (now() - started) / count * 1e3

        return best_of(measure)


def large_array_out(value: float) -> Any:
    return np.full(10_000_000, value)


def memory_array_value(name: str) -> float:
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        cached = cache_of(name, folder)(large_array_out)
        cached(2.0)
        time.sleep(0.1)  # a file that is just written is verified again, for its times may not tell a change yet
        cached(2.0)

        def measure() -> float:
            started = now()
            cached(2.0)
            return (now() - started) * 1e3

        return best_of(measure, 5)


def memory_array_value_verified(name: str) -> float:
    """The first hit of a process: each measurement has a place of its own, in which nothing is known yet."""
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        cache_of(name, folder)(large_array_out)(2.0)
        script = (
            f"import sys, time; sys.path.insert(0, {str(__file__).rpartition('/')[0]!r}); import cases, numpy\n"
            f"f = cases.cache_of({name!r}, {folder!r})(cases.large_array_out)\n"
            "f.check_call_in_cache(3.0)\nstarted = time.perf_counter(); f(2.0)\n"
            "print((time.perf_counter() - started) * 1e3)"
        )

        def measure() -> float:

            return float(subprocess.run([sys.executable, "-c", script], capture_output=True, check=True).stdout)

        return best_of(measure)


def hash_of(name: str, value: Any, times: int) -> float:
    """Seconds for one digest."""
    module = importlib.import_module("shoal.joblib.hashing" if name == "shoal" else "joblib.hashing")

    def measure() -> float:
        started = now()
        for _ in range(times):
            module.hash(value)
        return (now() - started) / times

    return best_of(measure)


def hash_array(name: str) -> float:
    array = np.arange(scaled(100_000_000), dtype=float)
    return array.nbytes / 1e9 / hash_of(name, array, 1)


def hash_dict(name: str) -> float:
    value = {f"key {i}": {"number": i, "list": [i, str(i)]} for i in range(10_000)}
    return hash_of(name, value, 1) * 1e3


def file_speed(name: str, write: bool) -> float:
    """GB/s of a file in memory."""
    import os
    import tempfile

    module = joblib_of(name)
    array = np.arange(scaled(100_000_000), dtype=float)
    with tempfile.TemporaryDirectory(dir="/dev/shm") as folder:
        path = os.path.join(folder, "array")

        def measure() -> float:
            if write and os.path.exists(path):
                os.unlink(path)
            started = now()
            if write:
                module.dump(array, path)
            else:
                module.load(path)
            return now() - started

        if not write:
            module.dump(array, path)
        return array.nbytes / 1e9 / best_of(measure)


def dump_array(name: str) -> float:
    return file_speed(name, True)


def load_array(name: str) -> float:
    return file_speed(name, False)


# ------------------------------------------------------------------------------ kernels


def dot(name: str, threads: int) -> float:
    count = scaled(100_000_000)
    a, b = np.arange(count, dtype=float), np.arange(count, dtype=float)
    if name == "shoal":
        import shoal

        call = lambda: shoal.dot_product(a, b, threads=threads)  # noqa: E731
    else:
        call = lambda: float(a @ b)  # noqa: E731

    def measure() -> float:
        started = now()
        call()
        return (now() - started) * 1e3

    return best_of(measure, 5)


def dot_1(name: str) -> float:
    return dot(name, 1)


def dot_2(name: str) -> float:
    return dot(name, 2)


# ------------------------------------------------------------------------------- the list

STANDARD = ("multiprocessing", "shoal")
EXECUTORS = ("concurrent.futures", "shoal")
# case -> (title, unit, is lower better, implementations (the first is the baseline), the ratio aimed at)
CASES: dict[str, tuple[str, str, bool, tuple[str, ...], float]] = {
    "map_chunk_1": ("map, chunksize 1", "us/item", True, (*STANDARD, "concurrent.futures", "loky", "mpire", "ray"), 30),
    "map_default": ("map, default chunks", "us/item", True, (*STANDARD, "concurrent.futures", "mpire"), 2.5),
    "imap_unordered": ("imap_unordered, chunksize 1", "us/item", True, STANDARD, 30),
    "apply_round_trip": ("apply, round trip", "us", True, (*STANDARD, "concurrent.futures", "loky", "ray"), 30),
    "apply_async_many": ("10,000 apply_async, then get", "us/item", True, STANDARD, 15),
    "arrays_into_workers": ("8 MB arrays into workers", "GB/s", False, (*STANDARD, "concurrent.futures", "ray"), 10),
    "arrays_out_of_workers": ("8 MB arrays out of workers", "GB/s", False, (*STANDARD, "ray"), 20),
    "pool_life": ("pool: start, first result, stop", "ms", True, STANDARD, 1.5),
    "pool_life_spawn": ("pool of spawn: start to stop", "ms", True, STANDARD, 5),
    "pool_life_forkserver": ("pool of forkserver: start to stop", "ms", True, STANDARD, 3),
    "short_tasks_2_workers": ("1 ms tasks, 2 workers", "% of cores", False, STANDARD, 1),
    "short_tasks_8_workers": ("1 ms tasks, 8 workers", "% of cores", False, STANDARD, 1),
    "futures_round_trip": ("executor: submit, result", "us", True, EXECUTORS, 10),
    "futures_as_completed": ("executor: submit, as_completed", "us/item", True, EXECUTORS, 5),
    "futures_map_chunk_1": ("executor: map, chunksize 1", "us/item", True, EXECUTORS, 20),
    "queue_small_items": ("Queue, small items", "us/item", True, (*STANDARD, "faster-fifo"), 8),
    "queue_ping_pong": ("Queue, ping-pong", "us", True, (*STANDARD, "faster-fifo"), 10),
    "lock_with": ("with lock", "ns", True, STANDARD, 3),
    "lock_acquire_release": ("lock.acquire, lock.release", "ns", True, STANDARD, 1),
    "lock_contended": ("with lock, 2 processes", "ns", True, STANDARD, 2),
    "value_increment": ("Value += 1 under its lock", "ns", True, STANDARD, 3),
    "event_ping_pong": ("Event, ping-pong", "us", True, STANDARD, 30),
    "parallel_first_result": ("Parallel, first result", "ms", True, ("joblib", "shoal"), 10),
    "parallel_next_call": ("Parallel, next call", "ms", True, ("joblib", "shoal"), 10),
    "parallel_trivial_tasks": ("Parallel, trivial tasks", "us/task", True, ("joblib", "shoal"), 2),
    "parallel_single_tasks": ("Parallel, batch_size=1", "us/task", True, ("joblib", "shoal"), 80),
    "parallel_large_first": ("Parallel, one 800 MB array in 10 tasks", "ms", True, ("joblib", "shoal"), 2),
    "parallel_large_again": ("the same array again", "ms", True, ("joblib", "shoal"), 15),
    "parallel_nested": ("Parallel in Parallel", "ms", True, ("joblib", "shoal"), 4),
    "parallel_program": ("a program with one Parallel call", "ms", True, ("joblib", "shoal"), 4),
    "grid_search": ("scikit-learn's GridSearchCV, 60 short fits", "ms", True, ("joblib", "shoal"), 1),
    "memory_hit": ("Memory, hit of a small value", "us", True, ("joblib", "shoal"), 8),
    "memory_hit_diskcache": ("the same, beside diskcache", "us", True, ("diskcache", "shoal"), 2),
    "memory_miss": ("Memory, small value made and kept", "us", True, ("joblib", "shoal", "diskcache"), 4),
    "memory_array_argument": ("Memory, hit, 8 MB argument", "ms", True, ("joblib", "shoal"), 10),
    "memory_array_value": ("Memory, hit, 80 MB value", "ms", True, ("joblib", "shoal"), 30),
    "memory_array_value_verified": ("Memory, first hit, 80 MB value", "ms", True, ("joblib", "shoal"), 5),
    "hash_array": ("hash of 800 MB", "GB/s", False, ("joblib", "shoal"), 15),
    "hash_dict": ("hash of a nested dict of 10,000", "ms", True, ("joblib", "shoal"), 10),
    "dump_array": ("dump of 800 MB", "GB/s", False, ("joblib", "shoal"), 1.2),
    "load_array": ("load of 800 MB", "GB/s", False, ("joblib", "shoal"), 1.2),
    "dot_1": ("dot_product 1e8, 1 thread", "ms", True, ("numpy", "shoal"), 1),
    "dot_2": ("dot_product 1e8, 2 threads", "ms", True, ("numpy", "shoal"), 1),
}


def main() -> None:
    global SCALE
    case, implementation, SCALE = sys.argv[1], sys.argv[2], float(sys.argv[3])
    print(json.dumps({"value": globals()[case](implementation)}))


if __name__ == "__main__":
    main()
