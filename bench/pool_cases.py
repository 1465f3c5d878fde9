"""Pools and executors: small tasks, arrays, and the share of the cores that short tasks get."""

from __future__ import annotations

import importlib
import os
import time
from collections.abc import Callable
from concurrent.futures import as_completed
from typing import Any

import measuring
import numpy as np
from measuring import best_of, multiprocessing_of, now, scaled


def f(x: int) -> int:
    return x * x


def array_in(array: Any) -> float:
    return float(array[0])


def array_out(value: float) -> Any:
    return np.full(1_000_000, value)


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
    return multiprocessing_of(name).Pool(2)


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


def work_1_ms(_: int) -> None:
    end = time.thread_time() + 1e-3
    while time.thread_time() < end:
        pass


def work_alone(begin: int, count: int) -> None:
    os.read(begin, 1)
    for number in range(count):
        work_1_ms(number)


def time_of_plain_processes(workers: int, count: int) -> float:
    """Seconds that the same work takes processes that are given their part before they begin: what the machine has."""
    context = multiprocessing_of("multiprocessing").get_context("fork")
    begin, go = os.pipe()
    processes = [context.Process(target=work_alone, args=(begin, count // workers)) for _ in range(workers)]
    for process in processes:
        process.start()
    time.sleep(0.1)  # until all of them wait
    started = now()
    os.write(go, bytes(workers))
    for process in processes:
        process.join()
    return now() - started


def share_of_cores(name: str, workers: int) -> float:
    """Percent of the time of all cores that tasks of 1 ms of work got."""
    cores = len(os.sched_getaffinity(0))
    count = scaled(3_000)
    if name == "plain processes":
        return max(count * 1e-3 / time_of_plain_processes(workers, count) / cores * 100 for _ in range(3))
    module = multiprocessing_of(name)
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


def executor_of(name: str) -> Any:
    return importlib.import_module("shoal.futures" if name == "shoal" else name).ProcessPoolExecutor(2)


def futures_case(name: str, count: int, run: Callable[[Any, range], int]) -> float:
    """Microseconds a call, of so many that `run` makes; it returns the sum of their results."""
    expected = sum(i * i for i in range(count))
    with executor_of(name) as executor:
        executor.submit(f, 1).result()

        def measure() -> float:
            started = now()
            assert run(executor, range(count)) == expected
            return (now() - started) / count * 1e6

        return best_of(measure)


def futures_round_trip(name: str) -> float:
    return futures_case(
        name, scaled(2_000), lambda executor, numbers: sum(executor.submit(f, i).result() for i in numbers)
    )


def futures_as_completed(name: str) -> float:
    def run(executor: Any, numbers: range) -> int:
        futures = [executor.submit(f, i) for i in numbers]
        return sum(future.result() for future in as_completed(futures))

    return futures_case(name, scaled(5_000), run)


def futures_map_chunk_1(name: str) -> float:
    count = scaled(40_000 if name == "shoal" else 5_000)
    return futures_case(name, count, lambda executor, numbers: sum(executor.map(f, numbers)))


if __name__ == "__main__":
    measuring.main(globals())
