"""The list of cases. `python cases.py CASE IMPLEMENTATION SCALE` measures one once and prints the figure as JSON.

A case gets the name of an implementation and runs the same code on each. Its functions are the program's own: the file
that has the case is run as the main program, as a user's script is. Figures are times a unit or rates. SCALE shrinks
the work for a quick run.
"""

from __future__ import annotations

import os
import sys
from typing import NamedTuple


class Case(NamedTuple):
    title: str
    unit: str
    lower: bool  # is lower better
    implementations: tuple[str, ...]  # the first is the baseline
    target: float  # how many times better than the baseline Shoal is to be
    file: str


STANDARD = ("multiprocessing", "shoal")
EXECUTORS = ("concurrent.futures", "shoal")
FIFO = (*STANDARD, "faster-fifo")
JOBLIB = ("joblib", "shoal")
NUMPY = ("numpy", "shoal")
BARE = (*STANDARD, "plain processes")
ALL_POOLS = (*STANDARD, "concurrent.futures", "loky", "mpire", "ray")

POOL, PROCESS, QUEUE, LOCK = "pool_cases.py", "process_cases.py", "queue_cases.py", "lock_cases.py"
PARALLEL, STORE, KERNEL = "parallel_cases.py", "store_cases.py", "kernel_cases.py"

CASES = {
    "map_chunk_1": Case("map, chunksize 1", "us/item", True, ALL_POOLS, 30, POOL),
    "map_default": Case("map, default chunks", "us/item", True, (*STANDARD, "concurrent.futures", "mpire"), 2.5, POOL),
    "imap_unordered": Case("imap_unordered, chunksize 1", "us/item", True, STANDARD, 30, POOL),
    "apply_round_trip": Case(
        "apply, round trip", "us", True, (*STANDARD, "concurrent.futures", "loky", "ray"), 30, POOL
    ),
    "apply_async_many": Case("10,000 apply_async, then get", "us/item", True, STANDARD, 15, POOL),
    "arrays_into_workers": Case(
        "8 MB arrays into workers", "GB/s", False, (*STANDARD, "concurrent.futures", "ray"), 10, POOL
    ),
    "arrays_out_of_workers": Case("8 MB arrays out of workers", "GB/s", False, (*STANDARD, "ray"), 20, POOL),
    "short_tasks_2_workers": Case("1 ms tasks, 2 workers", "% of cores", False, BARE, 1, POOL),
    "short_tasks_8_workers": Case("1 ms tasks, 8 workers", "% of cores", False, BARE, 1, POOL),
    "futures_round_trip": Case("executor: submit, result", "us", True, EXECUTORS, 10, POOL),
    "futures_as_completed": Case("executor: submit, as_completed", "us/item", True, EXECUTORS, 5, POOL),
    "futures_map_chunk_1": Case("executor: map, chunksize 1", "us/item", True, EXECUTORS, 20, POOL),
    "pool_life": Case("pool: start, first result, stop", "ms", True, STANDARD, 1.5, PROCESS),
    "pool_life_spawn": Case("pool of spawn: start to stop", "ms", True, STANDARD, 5, PROCESS),
    "pool_life_forkserver": Case("pool of forkserver: start to stop", "ms", True, STANDARD, 3, PROCESS),
    "process_fork": Case("process of fork: start, join", "ms", True, STANDARD, 1.2, PROCESS),
    "process_spawn": Case("process of spawn: start, join", "ms", True, STANDARD, 8, PROCESS),
    "process_forkserver": Case("process of forkserver: start, join", "ms", True, STANDARD, 3, PROCESS),
    "queue_small_items": Case("Queue, small items", "us/item", True, FIFO, 12, QUEUE),
    "queue_10_kb_items": Case("Queue, items of 10 kB", "us/item", True, FIFO, 5, QUEUE),
    "queue_1_mb_items": Case("Queue, items of 1 MB", "us/item", True, FIFO, 6, QUEUE),
    "queue_8_mb_arrays": Case("Queue, arrays of 8 MB", "ms/item", True, FIFO, 8, QUEUE),
    "queue_4_and_4": Case("Queue, 4 producers, 4 consumers", "us/item", True, FIFO, 10, QUEUE),
    "queue_ping_pong": Case("Queue, ping-pong", "us", True, FIFO, 30, QUEUE),
    "simple_queue_small_items": Case("SimpleQueue, small items", "us/item", True, STANDARD, 8, QUEUE),
    "lock_with": Case("with lock", "ns", True, STANDARD, 3, LOCK),
    "lock_acquire_release": Case("lock.acquire, lock.release", "ns", True, STANDARD, 1, LOCK),
    "lock_contended": Case("with lock, 2 processes", "ns", True, STANDARD, 2, LOCK),
    "value_increment": Case("Value += 1 under its lock", "ns", True, STANDARD, 3, LOCK),
    "event_ping_pong": Case("Event, ping-pong", "us", True, STANDARD, 30, LOCK),
    "parallel_first_result": Case("Parallel, first result", "ms", True, JOBLIB, 15, PARALLEL),
    "parallel_next_call": Case("Parallel, next call", "ms", True, JOBLIB, 40, PARALLEL),
    "parallel_trivial_tasks": Case("Parallel, trivial tasks", "us/task", True, JOBLIB, 4, PARALLEL),
    "parallel_single_tasks": Case("Parallel, batch_size=1", "us/task", True, JOBLIB, 80, PARALLEL),
    "parallel_large_first": Case("Parallel, one 800 MB array in 10 tasks", "ms", True, JOBLIB, 2, PARALLEL),
    "parallel_large_again": Case("the same array again", "ms", True, JOBLIB, 15, PARALLEL),
    "parallel_nested": Case("Parallel in Parallel", "ms", True, JOBLIB, 4, PARALLEL),
    "parallel_program": Case("a program with one Parallel call", "ms", True, JOBLIB, 4, PARALLEL),
    "grid_search": Case("scikit-learn's GridSearchCV, 60 short fits", "ms", True, JOBLIB, 1, PARALLEL),
    "memory_hit": Case("Memory, hit of a small value", "us", True, JOBLIB, 8, STORE),
    "memory_hit_diskcache": Case("the same, beside diskcache", "us", True, ("diskcache", "shoal"), 2, STORE),
    "memory_miss": Case("Memory, small value made and kept", "us", True, JOBLIB, 4, STORE),
    "memory_miss_diskcache": Case("the same, beside diskcache", "us", True, ("diskcache", "shoal"), 2, STORE),
    "memory_array_argument": Case("Memory, hit, 8 MB argument", "ms", True, JOBLIB, 10, STORE),
    "memory_array_value": Case("Memory, hit, 80 MB value", "ms", True, JOBLIB, 30, STORE),
    "memory_array_value_verified": Case("Memory, first hit, 80 MB value", "ms", True, JOBLIB, 5, STORE),
    "hash_array": Case("hash of 800 MB", "GB/s", False, JOBLIB, 15, STORE),
    "hash_dict": Case("hash of a nested dict of 10,000", "ms", True, JOBLIB, 10, STORE),
    "dump_array": Case("dump of 800 MB", "GB/s", False, JOBLIB, 1.2, STORE),
    "load_array": Case("load of 800 MB", "GB/s", False, JOBLIB, 1.2, STORE),
    "dot_1": Case("dot_product 1e8, 1 thread", "ms", True, NUMPY, 1, KERNEL),
    "dot_2": Case("dot_product 1e8, 2 threads", "ms", True, NUMPY, 1, KERNEL),
}


def main() -> None:
    program = os.path.join(os.path.dirname(os.path.abspath(__file__)), CASES[sys.argv[1]].file)
    os.execv(sys.executable, [sys.executable, program, *sys.argv[1:]])


if __name__ == "__main__":
    main()
