"""Campaigns of long use: pools are made and dropped, workers replaced, tasks run by the hundred thousand. Neither
memory nor descriptors, threads, processes or mappings grow.
"""

from __future__ import annotations

import gc
import os
import threading
import time
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
from campaign import LIMIT, ROUNDS, WORKERS, square
from shoal.multiprocessing import Pool, get_context

pytestmark = pytest.mark.timeout(3 * LIMIT)


def fill(x: int) -> Any:
    return np.full(1 << 18, x, dtype=np.float64)  # 2 MB


def heap_megabytes(pool: Any) -> int:
    """Memory that the pool's heap takes, whoever has touched it."""
    return os.fstat(pool._crew.engine.fds()[1]).st_blocks * 512 >> 20


def test_results_held_while_workers_are_replaced_need_no_more_memory_than_is_held() -> None:
    held: list[Any] = []
    most, items = 0, 600 if ROUNDS else 120
    with Pool(2, maxtasksperchild=1) as pool:
        for x, array in enumerate(pool.imap(fill, range(items), chunksize=1)):
            held.append(array)
            if len(held) > 4:
                del held[0]
            most = max(most, heap_megabytes(pool))
            assert all((one == y).all() for one, y in zip(held, range(x - len(held) + 1, x + 1), strict=True))
    print(f"{items} results of 2 MB, 4 held, by a worker each: {most} MB at most")
    assert most <= 100  # 240 MB came


# -- pools --


def standing() -> dict[str, int]:
    """What this process has open, runs and maps."""
    return {
        "descriptors": len(os.listdir("/proc/self/fd")),
        "threads": threading.active_count(),
        "kernel's threads": len(os.listdir("/proc/self/task")),
        "processes": len(psutil.Process().children(recursive=True)),
        "mappings": sum("shoal" in line for line in Path("/proc/self/maps").read_text().splitlines()),
    }


def settled(expected: dict[str, int]) -> dict[str, int]:
    """What there is, as soon as it is what is expected, or after some seconds."""
    deadline = time.monotonic() + 5
    while True:
        gc.collect()
        if (now := standing()) == expected or time.monotonic() > deadline:
            return now
        time.sleep(0.02)


def use_pool(context: Any, how: str) -> None:
    pool = context.Pool(2)
    assert pool.map(square, range(20), chunksize=5) == [x * x for x in range(20)]
    arrays = pool.map(np.ones, [20_000] * 3, chunksize=1)
    if how == "with":
        with pool:
            pass
    elif how == "closed":
        pool.close()
        pool.join()
    elif how == "busy":
        pool.map_async(time.sleep, [0.02] * 4, chunksize=1)  # holds the pool until it is done
    del pool
    assert sum(array.sum() for array in arrays) == 60_000


@pytest.mark.parametrize("method, usual", [("fork", 24), ("spawn", 8), ("forkserver", 8)])
def test_pools_that_are_made_and_dropped_leave_nothing(method: str, usual: int) -> None:
    context, count = get_context(method), 300 if ROUNDS else usual
    ways = ["with", "closed", "dropped", "busy"]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)
        for way in ways:  # what is made once a process
            use_pool(context, way)
        gc.collect()
        before = settled({})
        started = time.monotonic()
        for number in range(count):
            use_pool(context, ways[number % len(ways)])
        took = time.monotonic() - started
        after = settled(before)
    print(f"{method}: {count} pools in {took:.1f} s, before and after: {before}")
    assert after == before


# -- tasks --


def resident(pids: list[int]) -> int:
    """Kilobytes that these processes and this one have in memory."""
    total = 0
    for pid in [os.getpid(), *pids]:
        for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
            if line.startswith("Rss:"):
                total += int(line.split()[1])
    return total


def test_memory_is_flat_over_a_million_tasks() -> None:
    tasks = 1_000_000 if ROUNDS else 100_000
    with Pool(WORKERS) as pool:
        workers = [process.pid for process in pool._pool]

        def run(count: int) -> None:
            assert sum(pool.imap_unordered(abs, range(count), chunksize=1)) == count * (count - 1) // 2

        run(tasks // 5)
        before = resident(workers)
        run(tasks)
        gc.collect()
        after = resident(workers)
        assert [process.pid for process in pool._pool] == workers
    print(f"{tasks} tasks: {before} kB before, {after} kB after, in {WORKERS + 1} processes")
    assert after - before < 8_000  # kB; 8 bytes a task would not be seen, one small object would
