"""The lock family where somebody waits: timeouts, interrupts, conditions and barriers."""

from __future__ import annotations

import multiprocessing
import multiprocessing.synchronize
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from helpers import run_program
from locks import end, fork, run_in_child, until
from shoal import multiprocessing as mp
from shoal.multiprocessing import synchronize

# -- waiting --


def test_a_wait_lets_other_threads_run() -> None:
    lock = fork.Lock()
    lock.acquire()
    thread = threading.Thread(target=lock.release)
    threading.Timer(0.1, thread.start).start()
    assert lock.acquire(timeout=20)
    until(lambda: not thread.is_alive())


WAITS = {
    "lock": "lock = mp.Lock(); lock.acquire(); wait = lock.acquire",
    "with": "lock = mp.Lock(); lock.acquire(); wait = lambda: lock.__enter__()",
    "rlock": "lock = mp.RLock(); mp.Process(target=hold, args=(lock,), daemon=True).start(); "
    "time.sleep(0.3); wait = lock.acquire",
    "semaphore": "wait = mp.Semaphore(0).acquire",
    "event": "wait = mp.Event().wait",
    "event with a timeout": "wait = lambda: mp.Event().wait(30)",
    "barrier": "wait = mp.Barrier(2).wait",
    "condition": "condition = mp.Condition(); condition.acquire(); wait = condition.wait",
}


@pytest.mark.parametrize("kind", WAITS)
def test_an_interrupt_ends_a_wait_at_once(tmp_path: Path, kind: str) -> None:
    done = run_program(
        tmp_path,
        f"""
        import os, signal, threading, time
        from shoal import multiprocessing as mp

        def hold(lock):
            lock.acquire()
            time.sleep(60)

        {WAITS[kind]}
        handled = []
        signal.signal(signal.SIGUSR1, lambda *_: handled.append(1))
        threading.Timer(0.3, os.kill, (os.getpid(), signal.SIGUSR1)).start()
        threading.Timer(0.6, os.kill, (os.getpid(), signal.SIGINT)).start()
        started = time.monotonic()
        try:
            wait()
        except KeyboardInterrupt:
            print("interrupted", time.monotonic() - started < 2, handled)
        if {kind == "condition"}:
            print(condition._lock._is_mine(), condition)
        """,
    )
    expected = "interrupted True [1]\n"
    if kind == "condition":
        expected += "True <Condition(<RLock(MainProcess, 1)>, 0)>\n"
    assert done.stdout == expected, done.stderr


def test_a_notification_reaches_those_who_wait_in_their_order() -> None:
    condition, order = fork.Condition(), fork.Array("i", 4)
    count = fork.Value("i", 0)

    def wait(number: int) -> None:
        with condition:
            assert condition.wait(20)
            order[count.value] = number
            count.value += 1

    processes = []
    for number in range(4):
        processes.append(run_in_child(wait, number))
        until(lambda: condition._waiting() == len(processes))
    assert repr(condition) == "<Condition(<RLock(None, 0)>, 4)>"
    for notified, call in (
        (1, lambda: condition.notify()),
        (3, lambda: condition.notify(2)),
        (4, condition.notify_all),
    ):
        with condition:
            call()
        until(lambda: count.value == notified)  # noqa: B023
        time.sleep(0.02)
        assert count.value == notified
    for process in processes:
        end(process)
    assert order[0] == 0 and sorted(order) == [0, 1, 2, 3] and order[3] == 3


def test_a_recursive_lock_is_given_up_wholly_while_its_condition_waits() -> None:
    condition = fork.Condition()

    def notify() -> None:
        with condition:
            condition.notify()

    with condition, condition:
        thread = threading.Timer(0.1, notify)
        thread.start()
        assert condition.wait(20)
        assert condition._lock._count() == 2
        thread.join()


def test_a_condition_over_what_is_no_lock_of_ours_is_multiprocessings() -> None:
    for lock in (multiprocessing.get_context("fork").RLock(), fork.BoundedSemaphore(1)):
        condition = fork.Condition(lock)
        assert type(condition) is multiprocessing.synchronize.Condition
        with condition:
            assert condition.wait(0.05) is False
    with pytest.raises(ValueError, match="not initialised"):
        fork.Condition(synchronize.Lock.__new__(synchronize.Lock))


@pytest.mark.parametrize("sender", ["fork", "spawn"])
def test_a_barrier_runs_its_action_once_a_round(sender: str) -> None:
    context = mp.get_context(sender)
    rounds, indices = context.Value("i", 0), context.Array("i", 3)
    barrier = context.Barrier(3, action=_Increment(rounds))
    processes = [run_in_child(pass_rounds, barrier, rounds, indices, context=context) for _ in range(3)]
    for process in processes:
        end(process)
    assert rounds.value == 5
    assert list(indices) == [5, 5, 5]


class _Increment:
    def __init__(self, value: Any) -> None:
        self.value = value

    def __call__(self) -> None:
        self.value.value += 1


def pass_rounds(barrier: Any, rounds: Any, indices: Any) -> None:
    for number in range(5):
        index = barrier.wait(20)
        assert rounds.value >= number + 1
        with indices:
            indices[index] += 1


def test_an_actions_exception_is_raised_where_it_ran_and_breaks_the_barrier() -> None:
    barrier = fork.Barrier(2, action=lambda: 1 / 0)
    errors: list[type] = []

    def wait() -> None:
        try:
            barrier.wait(20)
        except Exception as error:
            errors.append(type(error))

    threads = [threading.Thread(target=wait) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(error.__name__ for error in errors) == ["BrokenBarrierError", "ZeroDivisionError"]
    assert barrier.broken
    barrier.reset()
    assert not barrier.broken and barrier.n_waiting == 0 and barrier.parties == 2
    barrier.abort()
    with pytest.raises(threading.BrokenBarrierError):
        barrier.wait()
