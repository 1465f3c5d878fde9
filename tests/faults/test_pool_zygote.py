"""The helper process of `spawn` and `forkserver` is stopped or killed: no task is harmed, and nothing waits for it."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import shoal
from campaign import LIMIT, died, rounds, square
from shoal import _zygote
from shoal.multiprocessing import get_context

pytestmark = pytest.mark.timeout(LIMIT)

METHODS = ["spawn", "forkserver"]


@contextlib.contextmanager
def stopped_zygote(method: str) -> Iterator[psutil.Process]:
    zygote = psutil.Process(_zygote._zygotes[method].pid)
    zygote.suspend()
    try:
        yield zygote
    finally:
        zygote.resume()


def sleep_and_tell(path: str) -> None:
    Path(path).write_text(str(os.getpid()))
    time.sleep(30)


def lose_a_worker(pool: Any) -> None:
    """Kill one, and give the supervisor the time to begin to replace it."""
    victim = pool._pool[0].pid
    os.kill(victim, signal.SIGKILL)
    deadline = time.monotonic() + 10
    while victim in [process.pid for process in pool._pool] and time.monotonic() < deadline:
        time.sleep(0.01)
    time.sleep(0.05)


@pytest.mark.parametrize("method", METHODS)
def test_terminate_does_not_wait_for_a_zygote_that_is_stopped(method: str) -> None:
    pool = get_context(method).Pool(3)
    slow = pool.map_async(time.sleep, [30] * 6, chunksize=1)
    with stopped_zygote(method):
        lose_a_worker(pool)
        workers = [process.pid for process in pool._pool]
        started = time.monotonic()
        pool.terminate()
        took = time.monotonic() - started
        pool.join()
        with pytest.raises((shoal.TaskCancelled, shoal.WorkerDied)):
            slow.get(5)
        print(f"{method}: terminate took {took * 1000:.0f} ms")
        assert took < 3
        assert not [pid for pid in workers if psutil.pid_exists(pid) and psutil.Process(pid).status() != "zombie"]


def blocked_signals(_: int = 0) -> set[int]:
    return set(signal.pthread_sigmask(signal.SIG_BLOCK, ()))


def exit_unless_nothing_is_blocked() -> None:
    os._exit(len(blocked_signals()))


@pytest.mark.parametrize("method", METHODS)
def test_processes_of_a_zygote_that_a_pool_had_to_replace_have_no_signal_blocked(method: str) -> None:
    context = get_context(method)
    with context.Pool(1) as pool:
        pool.map(square, range(10))
        os.kill(_zygote._zygotes[method].pid, signal.SIGKILL)
        lose_a_worker(pool)
        assert pool.apply(blocked_signals) == set()
        process = context.Process(target=exit_unless_nothing_is_blocked)
        process.start()
        process.join(30)
        assert process.exitcode == 0


@pytest.mark.parametrize("first", [True, False])
@pytest.mark.parametrize("method", METHODS)
def test_a_worker_that_is_killed_before_it_is_watched_is_replaced(
    method: str, first: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    victims: list[int] = []

    def kill_first(pid: int, flags: int = 0) -> int:
        if not victims:
            victims.append(pid)
            os.kill(pid, signal.SIGKILL)
            deadline = time.monotonic() + 20
            while psutil.pid_exists(pid) and time.monotonic() < deadline:  # until its zygote has reaped it
                time.sleep(0.001)
        return pidfd_open(pid, flags)

    pidfd_open = os.pidfd_open
    if first:
        monkeypatch.setattr(os, "pidfd_open", kill_first)
    with get_context(method).Pool(1) as pool:
        if not first:
            pool.map(square, range(10))
            monkeypatch.setattr(os, "pidfd_open", kill_first)
            lose_a_worker(pool)
        assert pool.map(square, range(100)) == [x * x for x in range(100)]
        assert len(victims) == 1


@pytest.mark.parametrize("method", METHODS)
def test_a_pool_goes_on_with_the_workers_it_has_while_the_zygote_is_stopped(method: str, tmp_path: Path) -> None:
    with get_context(method).Pool(3) as pool:
        pool.map(square, range(10))
        with stopped_zygote(method):
            lose_a_worker(pool)
            assert pool.map(square, range(1000)) == [x * x for x in range(1000)]
            # Deaths are still seen, callbacks still run, the pool can still be asked.
            told: list[Any] = []
            path = tmp_path / "pid"
            pool.apply_async(sleep_and_tell, (str(path),), error_callback=told.append)
            while not path.exists() or not path.read_text():
                time.sleep(0.01)
            assert len(pool.stats()) == 2
            os.kill(int(path.read_text()), signal.SIGKILL)
            started = time.monotonic()
            while not told and time.monotonic() - started < 10:
                time.sleep(0.01)
            print(f"{method}: a death was told after {(time.monotonic() - started) * 1000:.0f} ms")
            assert died(told[0], 0) or told[0].exitcode == 255  # only the zygote knows how it ended
            assert time.monotonic() - started < 5
        deadline = time.monotonic() + 30
        while len(pool._pool) < 3 and time.monotonic() < deadline:
            time.sleep(0.01)
        assert len(pool._pool) == 3
        assert pool.map(square, range(1000)) == [x * x for x in range(1000)]


@pytest.mark.parametrize("method", METHODS)
def test_a_pool_may_be_made_while_the_zygote_is_stopped_for_a_moment(method: str) -> None:
    with get_context(method).Pool(1) as pool:
        pool.map(square, range(3))
    zygote = psutil.Process(_zygote._zygotes[method].pid)
    zygote.suspend()
    threading.Timer(0.5, zygote.resume).start()
    with get_context(method).Pool(2) as pool:
        assert pool.map(square, range(10)) == [x * x for x in range(10)]


def test_ctrl_c_ends_the_wait_for_a_stopped_zygote(tmp_path: Path) -> None:
    program = tmp_path / "program.py"
    program.write_text(
        textwrap.dedent(
            """
            import os, signal, threading
            from shoal import _zygote
            from shoal.multiprocessing import get_context

            if __name__ == "__main__":
                context = get_context("spawn")
                with context.Pool(1) as pool:
                    pool.map(abs, [-1])
                os.kill(_zygote._zygotes["spawn"].pid, signal.SIGSTOP)
                threading.Timer(0.3, os.kill, (os.getpid(), signal.SIGINT)).start()
                try:
                    context.Pool(2)
                except KeyboardInterrupt:
                    print("interrupted")
                _zygote._drop()
            """
        )
    )
    started = time.monotonic()
    done = subprocess.run([sys.executable, str(program)], capture_output=True, text=True, timeout=40)
    assert (done.stdout, done.stderr) == ("interrupted\n", "")
    assert time.monotonic() - started < 20


@pytest.mark.parametrize("method", METHODS)
def test_tasks_are_right_or_told_dead_while_workers_and_zygotes_are_killed_and_stopped(
    dice: random.Random, method: str
) -> None:
    count, dead, harmed, killed = 300, 0, 0, 0
    with get_context(method).Pool(3) as pool:
        for _ in range(rounds(3)):
            result = pool.map_async(square, range(count), chunksize=3, return_exceptions=True)
            zygote = _zygote._zygotes.get(method)
            if zygote is not None:
                with contextlib.suppress(psutil.NoSuchProcess):
                    process = psutil.Process(zygote.pid)
                    if dice.random() < 0.5:
                        process.kill()
                    else:
                        process.suspend()
                        time.sleep(dice.random() * 0.1)
                        process.resume()
                    harmed += 1
            workers = [one.pid for one in pool._pool if one.pid]
            if workers:
                with contextlib.suppress(psutil.NoSuchProcess, ProcessLookupError):
                    os.kill(dice.choice(workers), signal.SIGKILL)
                    killed += 1
            got = result.get(60)
            assert len(got) == count
            for x, value in enumerate(got):
                assert value == x * x or (isinstance(value, shoal.WorkerDied) and value.item == x), (x, value)
                dead += isinstance(value, shoal.WorkerDied)
            assert pool.map(square, range(count), retries=100) == [x * x for x in range(count)]
        print(f"{method}: {harmed} zygotes killed or stopped, {killed} workers killed, {dead} items died")
        assert dead <= killed
        pool.close()
        pool.join()
