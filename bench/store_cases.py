"""The store: `Memory`, `hash`, `dump` and `load`."""

from __future__ import annotations

import importlib
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from typing import Any

import measuring
import numpy as np
from measuring import best_of, joblib_of, now, scaled


def f(x: int) -> int:
    return x * x


def array_in(array: Any) -> float:
    return float(array[0])


def cache_of(name: str, folder: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """What decorates a function so that its results are kept in the folder."""
    if name == "diskcache":
        import diskcache

        return diskcache.Cache(folder).memoize()
    return joblib_of(name).Memory(folder, verbose=0).cache


def memory_hit(name: str) -> float:
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
memory_miss_diskcache = memory_miss


def memory_array_argument(name: str) -> float:
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


def first_hit(name: str, folder: str) -> float:
    """Milliseconds of this process's first call; the very first of all makes the entry."""
    cached = cache_of(name, folder)(large_array_out)
    cached.check_call_in_cache(3.0)  # type: ignore[attr-defined]
    started = now()
    cached(2.0)
    return (now() - started) * 1e3


def memory_array_value_verified(name: str) -> float:
    """Each measurement is a process of its own, in which nothing is known of the entry yet."""
    program = (
        "import sys; sys.path.insert(0, sys.argv[1]); import store_cases; print(store_cases.first_hit(*sys.argv[2:]))"
    )
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-c", program, os.path.dirname(os.path.abspath(__file__)), name, folder]

        def measure() -> float:
            return float(subprocess.run(command, capture_output=True, check=True).stdout)

        measure()
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


if __name__ == "__main__":
    measuring.main(globals())
