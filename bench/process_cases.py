"""Starting and ending: processes, and pools from start to stop.

Imports nothing large: each clean start would measure that import again.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable

import measuring
from measuring import multiprocessing_of, now, scaled


def f(x: int) -> int:
    return x * x


def nothing() -> None:
    pass


def life(once: Callable[[], object]) -> float:
    """Milliseconds, the median of some after a first that starts what the method keeps (a fork server, a zygote)."""
    once()
    times = []
    for _ in range(max(3, scaled(20))):
        started = now()
        once()
        times.append(now() - started)
    return statistics.median(times) * 1e3


def pool_life_by(name: str, method: str) -> float:
    context = multiprocessing_of(name).get_context(method)

    def once() -> None:
        with context.Pool(2) as pool:
            assert pool.map(f, [1, 2, 3, 4]) == [1, 4, 9, 16]

    return life(once)


def pool_life(name: str) -> float:
    return pool_life_by(name, "fork")


def pool_life_spawn(name: str) -> float:
    return pool_life_by(name, "spawn")


def pool_life_forkserver(name: str) -> float:
    return pool_life_by(name, "forkserver")


def process_by(name: str, method: str) -> float:
    context = multiprocessing_of(name).get_context(method)

    def once() -> None:
        process = context.Process(target=nothing)
        process.start()
        process.join()
        assert process.exitcode == 0

    return life(once)


def process_fork(name: str) -> float:
    return process_by(name, "fork")


def process_spawn(name: str) -> float:
    return process_by(name, "spawn")


def process_forkserver(name: str) -> float:
    return process_by(name, "forkserver")


if __name__ == "__main__":
    measuring.main(globals())
