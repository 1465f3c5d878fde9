"""What the campaigns in Python share: how long they go on, whom they harm and how, and what is right afterwards.

`dice`, the fixture that prints its seed, is in tests/conftest.py.
"""

from __future__ import annotations

import contextlib
import os
import random
import signal
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import psutil
import shoal

ROUNDS = int(os.environ.get("SHOAL_FAULT_ROUNDS", "0"))
WORKERS = 3

LIMIT = 60 + 10 * ROUNDS  # seconds for each test


def rounds(usual: int) -> int:
    return ROUNDS or usual


def square(x: int) -> int:
    """Takes up to some 100 us now and then, so that kills find items of all lengths."""
    if x % 5 == 0:
        end = time.perf_counter() + x % 7 * 2e-5
        while time.perf_counter() < end:
            pass
    return x * x


def kill(process: psutil.Process) -> bool:
    try:
        # psutil compares the start time: never a stranger's process that has the same pid by now.
        process.kill()
        return True
    except psutil.NoSuchProcess:
        return False


def stop_and_continue(process: psutil.Process, seconds: float) -> bool:
    """Stop a process for so long."""
    try:
        process.suspend()
        time.sleep(seconds)
        process.resume()
        return True
    except psutil.NoSuchProcess:  # while it was stopped it was ended by others
        return False


class Killer:
    """A thread that kills a random worker of the pool every few milliseconds, or does to it what `harm` does."""

    def __init__(
        self, pool: Any, dice: random.Random, pause: float, harm: Callable[[psutil.Process], bool] = kill
    ) -> None:
        self.kills = 0
        self._pool, self._dice, self._pause = pool, random.Random(dice.random()), pause
        self._harm = harm
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def _run(self) -> None:
        me = os.getpid()
        while not self._stop.wait(self._dice.random() * self._pause):
            pids = [process.pid for process in self._pool._pool if process.pid]
            if not pids:
                continue
            with contextlib.suppress(psutil.NoSuchProcess):
                victim = psutil.Process(self._dice.choice(pids))
                if victim.ppid() == me:
                    self.kills += self._harm(victim)

    def rounds(self, usual: int) -> Iterator[int]:
        """The campaign's rounds; more where it has killed hardly anybody, and so would prove nothing."""
        done = 0
        while done < rounds(usual) or self.kills < 5:
            yield done
            done += 1

    def until(self, kills: int) -> Iterator[int]:
        """Rounds until so many were killed."""
        done = 0
        while self.kills < kills:
            yield done
            done += 1

    def __enter__(self) -> Killer:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()


def outcomes(results: Iterator[Any]) -> Iterator[Any]:
    """What an iterator over results gives or raises, item by item."""
    while True:
        try:
            yield next(results)
        except StopIteration:
            return
        except (shoal.WorkerDied, ValueError) as error:
            yield error


def died(got: Any, item: int) -> bool:
    return isinstance(got, shoal.WorkerDied) and got.item == item and got.exitcode == -signal.SIGKILL


def finish(pool: Any) -> None:
    """The pool goes on after the campaign, and then leaves no process."""
    workers = [process.pid for process in pool._pool]
    assert pool.map(square, range(1000)) == [x * x for x in range(1000)]
    pool.close()
    pool.join()
    workers += [process.pid for process in pool._pool]
    deadline = time.monotonic() + 5
    while (left := [pid for pid in workers if psutil.pid_exists(pid)]) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not left
