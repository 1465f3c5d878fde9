"""How soon a death is seen: from the kill to the item's failure, and to the replacement's first task. Figures are
printed; what is asserted is what a loaded machine meets as well.
"""

from __future__ import annotations

import os
import random
import signal
import time
from typing import Any

import numpy as np
import pytest
import shoal
from campaign import LIMIT, rounds
from shoal.multiprocessing import Pool

pytestmark = pytest.mark.timeout(LIMIT)


def told(times: list[float]) -> str:
    ordered = sorted(times)
    return (
        f"median {ordered[len(ordered) // 2] * 1000:.2f} ms, "
        f"99th percentile {ordered[min(len(ordered) - 1, len(ordered) * 99 // 100)] * 1000:.2f} ms, "
        f"worst {ordered[-1] * 1000:.2f} ms of {len(ordered)}"
    )


def median(times: list[float]) -> float:
    return sorted(times)[len(times) // 2]


def complete(pool: Any) -> None:
    """Wait until the dead worker's replacement is there: while it is forked, this process does nothing else."""
    while len(pool.stats()) < 2 or not all(worker["pid"] for worker in pool.stats()):
        time.sleep(0.005)


def hold(end: int) -> None:
    os.write(end, b"%d\n" % os.getpid())
    time.sleep(30)


def pid(_: int = 0) -> int:
    return os.getpid()


def enlarge(end: int) -> Any:
    """16 MB, of whose making the parent is told: it then kills us as we write them."""
    array = np.zeros(16 << 20, dtype=np.uint8)
    os.write(end, b"%d\n" % os.getpid())
    return array


@pytest.fixture
def pipe() -> Any:
    read, write = os.pipe()
    yield read, write
    os.close(read)
    os.close(write)


def test_a_death_is_told_soon(dice: random.Random, pipe: tuple[int, int]) -> None:
    read, write = pipe
    times = []
    with Pool(2) as pool:
        for _ in range(20 * rounds(1)):
            result = pool.apply_async(hold, (write,))
            victim = int(os.read(read, 100))
            time.sleep(dice.random() * 0.01)
            started = time.perf_counter()
            os.kill(victim, signal.SIGKILL)
            with pytest.raises(shoal.WorkerDied):
                result.get(30)
            times.append(time.perf_counter() - started)
            complete(pool)
    print(f"from kill to failure: {told(times)}")
    assert median(times) < 0.5


def test_a_death_in_the_middle_of_a_transfer_is_told_soon(dice: random.Random, pipe: tuple[int, int]) -> None:
    read, write = pipe
    times, whole = [], 0
    with Pool(2) as pool:
        for _ in range(20 * rounds(1)):
            result = pool.apply_async(enlarge, (write,))
            victim = int(os.read(read, 100))
            time.sleep(dice.random() * 0.008)
            started = time.perf_counter()
            os.kill(victim, signal.SIGKILL)
            try:
                assert result.get(30).shape == (16 << 20,)
                whole += 1
            except shoal.WorkerDied:
                times.append(time.perf_counter() - started)
            complete(pool)
    print(f"16 MB, {whole} came whole; from kill to failure: {told(times)}" if times else f"{whole} came whole")
    assert not times or median(times) < 0.5


def test_a_replacement_is_there_soon() -> None:
    """From the kill of the only worker to the result of a task that its replacement runs."""
    times = []
    with Pool(1) as pool:
        for _ in range(20 * rounds(1)):
            victim = pool.apply(pid)
            started = time.perf_counter()
            os.kill(victim, signal.SIGKILL)
            while (now := pool.map(pid, [0], retries=100)[0]) == victim:
                pass
            times.append(time.perf_counter() - started)
            assert now != victim
    print(f"from kill to the replacement's first result: {told(times)}")
    assert median(times) < 0.5


def test_a_death_is_told_soon_to_a_callback(pipe: tuple[int, int]) -> None:
    read, write = pipe
    times: list[float] = []
    with Pool(2) as pool:
        for _ in range(10 * rounds(1)):
            result = pool.apply_async(hold, (write,), error_callback=lambda _: times.append(time.perf_counter()))
            victim = int(os.read(read, 100))
            count, started = len(times), time.perf_counter()
            os.kill(victim, signal.SIGKILL)
            while len(times) == count and time.perf_counter() - started < 30:
                time.sleep(0.0005)
            times[-1] -= started
            assert result.ready()
            complete(pool)
    print(f"from kill to the callback: {told(times)}")
    assert median(times) < 0.5
