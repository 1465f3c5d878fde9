"""The lock family when one of its users dies."""

from __future__ import annotations

import os
import pickle
import signal
import threading
import time
from typing import Any

import pytest
import shoal
from locks import end, fork, run_in_child, until


def die_holding(lock: Any) -> None:
    """In a child: take it and be killed."""
    lock.acquire()
    os.kill(os.getpid(), signal.SIGKILL)


# -- death --


def test_a_lock_whose_owner_died_says_so_to_everybody_until_it_is_reset() -> None:
    for kind in ("Lock", "RLock"):
        lock = getattr(fork, kind)()
        process = run_in_child(die_holding, lock)
        end(process, -signal.SIGKILL)
        for attempt in (lock.acquire, lambda: lock.acquire(timeout=20), lock.__enter__):  # noqa: B023
            with pytest.raises(shoal.OwnerDied) as caught:
                attempt()
            assert (caught.value.pid, caught.value.what) == (process.pid, "lock")
            assert str(process.pid) in str(caught.value) and "half done" in str(caught.value)
            assert str(pickle.loads(pickle.dumps(caught.value))) == str(caught.value)
        lock.reset()
        with lock:
            pass


def test_who_waits_for_a_lock_whose_owner_dies_is_told_soon() -> None:
    lock = fork.Lock()

    def hold() -> None:
        lock.acquire()
        time.sleep(60)

    process = run_in_child(hold)
    until(lambda: lock._get_value() == 0)
    threading.Timer(0.2, process.kill).start()
    started = time.monotonic()
    with pytest.raises(shoal.OwnerDied):
        lock.acquire()
    assert time.monotonic() - started < 5
    end(process, -signal.SIGKILL)


def test_a_robust_lock_is_handed_over_and_tells_once() -> None:
    for kind in ("Lock", "RLock"):
        lock = getattr(fork, kind)(robust=True)
        end(run_in_child(die_holding, lock), -signal.SIGKILL)
        assert not lock.inherited
        with lock:
            assert lock.inherited
            if kind == "RLock":
                with lock:
                    assert lock.inherited
                assert lock.inherited
        with lock:
            assert not lock.inherited


def test_a_process_may_take_a_lock_end_and_another_release_it() -> None:
    lock = fork.Lock()
    end(run_in_child(lock.acquire))
    lock.release()
    assert lock.acquire(False)


def test_a_plain_semaphore_counts_on_when_a_process_dies_and_an_owned_one_says_so() -> None:
    plain, owned, robust = fork.Semaphore(1), fork.Semaphore(2, owned=True), fork.BoundedSemaphore(1, robust=True)
    end(run_in_child(die_holding, plain), -signal.SIGKILL)
    assert not plain.acquire(timeout=0.1)
    end(run_in_child(die_holding, owned), -signal.SIGKILL)
    assert owned.acquire(timeout=20)
    with pytest.raises(shoal.OwnerDied, match="semaphore"):
        owned.acquire(timeout=20)
    assert owned.reset() == 1
    assert owned.acquire(False)
    owned.release()
    owned.release()
    with pytest.raises(ValueError, match="holds no unit"):
        owned.release()
    end(run_in_child(die_holding, robust), -signal.SIGKILL)
    assert robust.acquire(timeout=20) and robust.inherited


@pytest.mark.parametrize("kind", ["Lock", "RLock"])
def test_a_condition_tells_of_the_death_of_its_locks_owner(kind: str) -> None:
    for robust in (False, True):
        condition = fork.Condition(getattr(fork, kind)(robust=robust))
        with condition:
            process = run_in_child(die_holding, condition)
            if robust:
                assert condition.wait(20) is True
                assert condition._lock.inherited and condition._lock._is_mine()
        end(process, -signal.SIGKILL)
        if not robust:
            with pytest.raises(shoal.OwnerDied), condition:
                pytest.fail("it was taken")
            condition._lock.reset()
            with condition:
                condition.notify_all()


@pytest.mark.parametrize("kind", ["Lock", "RLock"])
def test_a_wait_that_ends_with_its_locks_owner_leaves_the_lock_to_the_dead(kind: str) -> None:
    condition = fork.Condition(getattr(fork, kind)())
    with pytest.raises(shoal.OwnerDied), condition:
        process = run_in_child(die_holding, condition)
        condition.wait(20)
    end(process, -signal.SIGKILL)
    with pytest.raises(shoal.OwnerDied):
        condition.acquire()


def test_what_a_waiter_was_told_that_died_is_told_to_another() -> None:
    condition, woken = fork.Condition(), fork.Event()

    def wait() -> None:
        with condition:
            assert condition.wait(30)
        woken.set()

    first = run_in_child(wait)
    until(lambda: condition._waiting() == 1)
    second = run_in_child(wait)
    until(lambda: condition._waiting() == 2)
    os.kill(first.pid, signal.SIGSTOP)
    with condition:
        condition.notify()
    time.sleep(0.1)
    assert not woken.is_set()
    first.kill()
    end(second)
    end(first, -signal.SIGKILL)
    assert woken.is_set()


def test_a_party_that_dies_breaks_the_barrier() -> None:
    barrier = fork.Barrier(3)
    process = run_in_child(barrier.wait)
    until(lambda: barrier.n_waiting == 1)
    threading.Timer(0.2, process.kill).start()
    with pytest.raises(threading.BrokenBarrierError) as caught:
        barrier.wait(30)
    assert isinstance(caught.value, shoal.OwnerDied) and caught.value.what == "barrier"
    assert type(pickle.loads(pickle.dumps(caught.value))) is type(caught.value)
    end(process, -signal.SIGKILL)
    assert barrier.broken
