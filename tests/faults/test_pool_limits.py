"""The parent is killed or interrupted, workers that do nothing are killed, and the machine runs out of descriptors or
memory in the middle of work: no task is harmed that was not held, errors are clear and soon, nothing stays behind.
"""

from __future__ import annotations

import contextlib
import os
import random
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path
from typing import Any

import psutil
import pytest
from campaign import LIMIT, WORKERS, finish, rounds, square
from helpers import run_program
from shoal.multiprocessing import Pool

pytestmark = pytest.mark.timeout(LIMIT)


# -- the parent --

LONG_TASKS = """
    import os, sys, threading, time
    from shoal.multiprocessing import get_context

    def sleep(seconds):
        os.write(1, b"task\\n")
        time.sleep(seconds)

    if __name__ == "__main__":
        context = get_context(sys.argv[1])
        pools = [context.Pool(2)]
        thread = threading.Thread(target=lambda: pools.append(context.Pool(2)))
        thread.start()
        thread.join()
        results = [pool.map_async(sleep, [30] * 2, chunksize=1) for pool in pools]
        results[0].get()
"""


def start_parent(folder: Path, method: str) -> tuple[Any, list[psutil.Process]]:
    """A program whose four workers, of two pools, are in the middle of 30 s tasks; and all of its descendants."""
    program = folder / "program.py"
    program.write_text(textwrap.dedent(LONG_TASKS))
    parent = subprocess.Popen(
        [sys.executable, str(program), method],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    assert parent.stdout is not None
    for _ in range(4):
        assert parent.stdout.readline() == "task\n"
    family = psutil.Process(parent.pid).children(recursive=True)
    assert len(family) >= 4
    return parent, family


def time_until_gone(family: list[psutil.Process], started: float) -> float:
    """Seconds from `started` until none of them runs; at most 10."""
    while time.perf_counter() - started < 10:
        if not any(one.is_running() and one.status() != psutil.STATUS_ZOMBIE for one in family):
            break
        time.sleep(0.001)
    return time.perf_counter() - started


@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
def test_nobody_outlives_a_parent_that_was_killed_by_more_than_a_moment(tmp_path: Path, method: str) -> None:
    times = []
    for _ in range(rounds(2)):
        parent, family = start_parent(tmp_path, method)
        started = time.perf_counter()
        parent.kill()
        times.append(time_until_gone(family, started))
        parent.communicate()
    times.sort()
    print(f"{method}: the last descendant was gone after {times[0] * 1000:.1f} to {times[-1] * 1000:.1f} ms")
    assert times[len(times) // 2] < 1  # 100 ms on a machine with nothing else to do


@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
def test_ctrl_c_ends_a_program_at_once_with_one_traceback(tmp_path: Path, method: str) -> None:
    times = []
    for _ in range(rounds(2)):
        parent, family = start_parent(tmp_path, method)
        time.sleep(0.05)
        started = time.perf_counter()
        os.killpg(parent.pid, signal.SIGINT)
        _, errors = parent.communicate(timeout=30)
        times.append(time.perf_counter() - started)
        assert errors.count("Traceback") == 1, errors
        assert errors.rstrip().endswith("KeyboardInterrupt")
        assert time_until_gone(family, started) < 10
    times.sort()
    print(f"{method}: out {times[0] * 1000:.0f} to {times[-1] * 1000:.0f} ms after Ctrl-C")
    assert times[len(times) // 2] < 3


# -- workers that do nothing, and workers that are stopped --


def test_the_death_of_idle_workers_harms_no_task(dice: random.Random) -> None:
    pool, kills = Pool(WORKERS), 0
    for _ in range(15 * rounds(1)):
        pool._repopulate_pool()
        workers = [process.pid for process in pool._pool]
        for victim in dice.sample(workers, min(len(workers), dice.randrange(1, WORKERS + 1))):
            with contextlib.suppress(ProcessLookupError):
                os.kill(victim, signal.SIGKILL)
                kills += 1
            with contextlib.suppress(psutil.NoSuchProcess):
                while psutil.Process(victim).status() not in (psutil.STATUS_ZOMBIE, psutil.STATUS_DEAD):
                    time.sleep(0.0005)
        time.sleep(dice.choice([0, 0, 0.005, 0.02]))  # its place may be filled by now, or not
        assert pool.map(square, range(100), chunksize=1) == [x * x for x in range(100)]
    print(f"{kills} idle workers killed")
    finish(pool)


def test_terminate_ends_all_workers_that_are_stopped() -> None:
    times = []
    for _ in range(rounds(2)):
        pool = Pool(WORKERS)
        pool.map_async(time.sleep, [30] * WORKERS, chunksize=1)
        workers = [psutil.Process(process.pid) for process in pool._pool]
        for worker in workers:
            worker.suspend()
        started = time.perf_counter()
        pool.terminate()
        times.append(time.perf_counter() - started)
        assert not any(worker.is_running() for worker in workers)
        pool.join()
    times.sort()
    print(f"terminate with {WORKERS} stopped workers took {times[0] * 1000:.0f} to {times[-1] * 1000:.0f} ms")
    assert times[len(times) // 2] < 2


# -- a machine that is full --


def test_without_descriptors_workers_that_die_are_replaced_when_there_are_some_again(tmp_path: Path) -> None:
    done = run_program(
        tmp_path,
        """
        import os, resource, signal, time
        from shoal.multiprocessing import Pool

        if __name__ == "__main__":
            with Pool(2) as pool:
                pool.map(abs, range(10))
                before = sorted(os.listdir("/proc/self/fd"))
                soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
                resource.setrlimit(resource.RLIMIT_NOFILE, (3, hard))
                victim = pool._pool[0].pid
                os.kill(victim, signal.SIGKILL)
                time.sleep(0.5)
                print(pool.map(abs, range(-3, 0)))  # the other one works on
                resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
                deadline = time.monotonic() + 10
                while len(pool._pool) < 2 and time.monotonic() < deadline:
                    time.sleep(0.01)
                print(len(pool._pool), victim in [process.pid for process in pool._pool])
                print(pool.map(abs, range(-3, 0)))
            pool.join()
        """,
    )
    assert done.stdout.splitlines() == ["[3, 2, 1]", "2 False", "[3, 2, 1]"], done.stdout + done.stderr
    assert done.stderr == ""


def test_without_memory_an_item_fails_and_the_others_do_not(tmp_path: Path) -> None:
    done = run_program(
        tmp_path,
        """
        import os, resource, time
        from shoal.multiprocessing import Pool

        def take(megabytes):
            return len(bytearray(megabytes << 20))

        def limit():
            with open("/proc/self/statm") as file:
                used = int(file.read().split()[0]) * 4096
            resource.setrlimit(resource.RLIMIT_AS, (used + (200 << 20), -1))

        if __name__ == "__main__":
            with Pool(2, limit) as pool:
                started = time.monotonic()
                got = pool.map(take, [1, 1000, 2, 2000, 3], chunksize=1, return_exceptions=True)
                print([one if isinstance(one, int) else type(one).__name__ for one in got])
                print(time.monotonic() - started < 5)
                print(pool.map(take, [1, 2]))
            pool.join()
        """,
    )
    assert done.stdout.splitlines() == [
        str([1 << 20, "MemoryError", 2 << 20, "MemoryError", 3 << 20]),
        "True",
        str([1 << 20, 2 << 20]),
    ], done.stdout + done.stderr


def test_results_that_the_heap_has_no_room_for_fail_alone(tmp_path: Path) -> None:
    """The pool's heap is no larger than the address space allows when it is made."""
    done = run_program(
        tmp_path,
        """
        import os, resource, time
        import numpy as np
        from shoal.multiprocessing import Pool

        def make(megabytes):
            return np.ones(megabytes << 20, dtype=np.uint8)

        if __name__ == "__main__":
            with Pool(1) as pool:
                pool.map(abs, [1])
            with open("/proc/self/statm") as file:
                used = int(file.read().split()[0]) * 4096
            soft, hard = resource.getrlimit(resource.RLIMIT_AS)
            resource.setrlimit(resource.RLIMIT_AS, (used + (600 << 20), hard))
            pool = Pool(2)
            resource.setrlimit(resource.RLIMIT_AS, (soft, hard))
            held = pool.map(make, [100] * 8, chunksize=1, return_exceptions=True)
            right = [one for one in held if isinstance(one, np.ndarray)]
            print(all(one.all() and one.size == 100 << 20 for one in right), 0 < len(right) < 8)
            print({str(one.args[0]) for one in held if not isinstance(one, np.ndarray)})
            del held, right
            print(pool.apply(make, (100,)).size == 100 << 20)
            pool.terminate()
            pool.join()
        """,
    )
    lines = done.stdout.splitlines()
    assert lines[0] == "True True", done.stdout + done.stderr
    assert "memory" in lines[1].lower(), done.stdout + done.stderr
    assert lines[2] == "True", done.stdout + done.stderr
