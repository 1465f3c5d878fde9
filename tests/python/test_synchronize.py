"""The lock family, as its users see it: between threads, forked and spawned processes."""

from __future__ import annotations

import ctypes
import multiprocessing
import multiprocessing.synchronize
import pickle
import threading
import time
from multiprocessing import sharedctypes
from pathlib import Path
from typing import Any

import pytest
from helpers import run_program
from hypothesis import given, settings
from hypothesis import strategies as st
from locks import end, fork, run_in_child
from shoal import multiprocessing as mp
from shoal.multiprocessing import synchronize

METHODS = ["fork", "spawn", "forkserver"]


def make_all(context: Any) -> dict[str, Any]:
    lock = context.Lock()
    return {
        "lock": lock,
        "rlock": context.RLock(),
        "semaphore": context.Semaphore(0),
        "bounded": context.BoundedSemaphore(2),
        "condition": context.Condition(),
        "condition_of_lock": context.Condition(lock),
        "event": context.Event(),
        "barrier": context.Barrier(2, timeout=10),
        "value": context.Value("i", 5),
        "array": context.Array("d", [1, 2, 3]),
        "string": context.Array("c", 4),
    }


# -- what multiprocessing promises --


@pytest.mark.parametrize("method", METHODS)
def test_types_signatures_and_reprs_are_multiprocessings(method: str) -> None:
    ours, theirs = make_all(mp.get_context(method)), make_all(multiprocessing.get_context(method))
    for name, made in ours.items():
        assert isinstance(made, type(theirs[name])), name
        assert type(made).__module__.startswith("shoal."), name
        if name not in ("event", "barrier", "array", "string", "value"):
            assert repr(made) == repr(theirs[name]), name
    # Not in all versions of Python has an event a repr of its own.
    assert repr(ours["event"]).endswith(" unset>") == repr(theirs["event"]).endswith(" unset>")
    assert ours["lock"]._semlock.SEM_VALUE_MAX == theirs["lock"]._semlock.SEM_VALUE_MAX
    for attribute in ("kind", "maxvalue"):
        for name in ("lock", "rlock", "semaphore", "bounded"):
            assert getattr(ours[name]._semlock, attribute) == getattr(theirs[name]._semlock, attribute)


def user(given: dict[str, Any]) -> None:
    """In a child: each is the one that the parent has."""
    assert not given["lock"].acquire(block=False)
    assert given["condition_of_lock"]._lock._get_value() == 0
    assert given["rlock"].acquire(timeout=0.01) is False
    given["lock"].release()  # the parent's: legal
    with given["value"].get_lock():
        given["value"].value += 1
    given["array"][1] = 7.5
    given["string"].value = b"abc"
    given["semaphore"].release()
    given["bounded"].acquire()
    given["barrier"].wait()
    with given["condition"]:
        given["event"].set()
        assert given["condition"].wait(20)


@pytest.mark.parametrize("method", METHODS)
def test_each_reaches_a_process_however_it_starts(method: str) -> None:
    context = mp.get_context(method)
    shared = make_all(context)
    shared["lock"].acquire()
    shared["rlock"].acquire()
    process = run_in_child(user, shared, context=context)
    shared["barrier"].wait()
    assert shared["event"].wait(20)
    with shared["condition"]:
        shared["condition"].notify()
    end(process)
    assert shared["value"].value == 6
    assert list(shared["array"]) == [1, 7.5, 3]
    assert shared["string"].value == b"abc"
    assert shared["semaphore"].get_value() == 1
    assert shared["bounded"].get_value() == 1
    assert shared["lock"].acquire(False)


def test_the_insides_of_events_and_barriers_say_what_is_so_or_what_to_use() -> None:
    event, barrier = mp.Event(), mp.Barrier(3)
    assert event._flag._semlock._is_zero()
    event.set()
    assert event._flag.get_value() == 1
    for use in (event._flag.acquire, event._flag.release):
        with pytest.raises(AttributeError, match=r"use set\(\), clear\(\)"):
            use()
    with pytest.raises(AttributeError, match="Event has no _cond: use set"):
        _ = event._cond
    assert (barrier._parties, barrier._count, barrier._state) == (3, 0, 0)
    barrier.abort()
    assert barrier._state == -2
    with pytest.raises(AttributeError, match="Barrier has no _cond: use wait"):
        _ = barrier._cond


def test_none_can_be_pickled_but_for_a_process_that_starts() -> None:
    for name, made in make_all(fork).items():
        with pytest.raises(RuntimeError, match="objects should only be shared between processes through inheritance"):
            pickle.dumps(made)
        if name == "lock":
            with pytest.raises(RuntimeError, match=r"^Lock objects"):
                pickle.dumps(made)


def test_a_locks_owner_shows_in_its_repr_and_counts() -> None:
    lock, rlock = fork.Lock(), fork.RLock()
    assert (repr(lock), repr(rlock)) == ("<Lock(owner=None)>", "<RLock(None, 0)>")
    with lock, rlock, rlock:
        assert (repr(lock), repr(rlock)) == ("<Lock(owner=MainProcess)>", "<RLock(MainProcess, 2)>")
        assert (lock._semlock._is_mine(), rlock._semlock._count()) == (True, 2)
        seen: list[str] = []
        thread = threading.Thread(target=lambda: seen.extend((repr(lock), repr(rlock))))
        thread.start()
        thread.join()
        assert seen == ["<Lock(owner=SomeOtherThread)>", "<RLock(SomeOtherThread, nonzero)>"]
        reader, writer = fork.Pipe()
        end(run_in_child(lambda: writer.send((repr(lock), repr(rlock), rlock._semlock._count()))))
        assert reader.recv() == ("<Lock(owner=SomeOtherProcess)>", "<RLock(SomeOtherProcess, nonzero)>", 0)
    thread = threading.Thread(target=lambda: lock.acquire() and seen.append(repr(lock)), name="T1")
    thread.start()
    thread.join()
    assert seen[-1] == "<Lock(owner=MainProcess|T1)>"


def test_misuse_raises_what_multiprocessing_raises() -> None:
    with pytest.raises(ValueError, match="semaphore or lock released too many times"):
        fork.Lock().release()
    with pytest.raises(ValueError, match="semaphore or lock released too many times"):
        fork.BoundedSemaphore(1).release()
    with pytest.raises(AssertionError, match="attempt to release recursive lock not owned by thread"):
        fork.RLock().release()
    with pytest.raises(AssertionError, match=r"must acquire\(\) condition before using wait\(\)"):
        fork.Condition().wait()
    with pytest.raises(AssertionError, match="lock is not owned"):
        fork.Condition().notify()
    with pytest.raises(AssertionError, match="lock is not owned"):
        fork.Condition().notify_all()
    with pytest.raises(OSError, match="Errno 22"):
        fork.Semaphore(-1)
    with pytest.raises(OverflowError):
        fork.Semaphore(2**31)
    with pytest.raises(TypeError):
        fork.Lock().acquire(None)
    with pytest.raises(TypeError):
        fork.Lock().acquire(True, "soon")
    with pytest.raises(TypeError, match="at most 2 arguments"):
        fork.Lock().acquire(True, 1, 2)
    with pytest.raises(TypeError, match="by name"):
        fork.Lock().acquire(True, block=True)
    with pytest.raises(TypeError, match="invalid keyword"):
        fork.Lock().acquire(blocking=False)
    with pytest.raises(TypeError):
        synchronize.Lock()  # type: ignore[call-arg]
    with pytest.raises(ValueError, match="parties"):
        fork.Barrier(0)
    with pytest.raises(ValueError, match="not initialised"):
        synchronize.Lock.__new__(synchronize.Lock).acquire()
    held = fork.Lock()
    held.acquire()
    with pytest.raises(ValueError, match="owner lives"):
        held.reset()
    with pytest.raises(ValueError, match="owned=True"):
        fork.Semaphore().reset()


def test_enter_and_exit_are_methods_like_others() -> None:
    lock = fork.Lock()
    enter, leave = lock.__enter__, lock.__exit__
    assert enter() is True
    assert leave(None, None, None) is None
    assert (enter.__name__, enter.__self__) == ("__enter__", lock)
    assert type(lock).__enter__(lock) is True
    type(lock).__exit__(lock, None, None, None)
    for wrong in (
        lambda: enter(1),
        lambda: enter(a=1),
        synchronize.Lock.__enter__,
        lambda: synchronize.Lock.__enter__(1),
    ):
        with pytest.raises(TypeError):
            wrong()
    del lock
    assert enter()  # the method holds the lock
    leave()

    class Mine(synchronize.Lock):
        def __enter__(self) -> bool:
            self.entered = True
            return super().__enter__()

    mine = Mine(ctx=fork)
    with mine:
        assert mine.entered and mine._is_mine()


def test_a_lock_lives_no_longer_than_its_users() -> None:
    import gc
    import weakref

    for make in (fork.Lock, fork.RLock, fork.Semaphore, fork.Condition, fork.Event, lambda: fork.Barrier(1)):
        made = make()
        if hasattr(made, "acquire"):
            with made:
                pass
        gone = weakref.ref(made)
        del made
        assert gone() is None
    condition = fork.Condition()
    condition._lock.me = condition  # a cycle
    gone = weakref.ref(condition)
    del condition
    gc.collect()
    assert gone() is None


def test_timeouts_are_obeyed() -> None:
    lock, semaphore, event, condition = fork.Lock(), fork.Semaphore(0), fork.Event(), fork.Condition()
    barrier = fork.Barrier(2)
    lock.acquire()
    for wait in (
        lambda: lock.acquire(True, 0.3),
        lambda: lock.acquire(timeout=0.3),
        lambda: semaphore.acquire(True, 0.3),
        lambda: event.wait(0.3),
        lambda: event.wait(timeout=0.3),
    ):
        started = time.monotonic()
        assert wait() is False
        assert 0.3 <= time.monotonic() - started < 5
    with condition:
        started = time.monotonic()
        assert condition.wait(0.6) is False
        assert 0.6 <= time.monotonic() - started < 5
        assert condition.wait_for(lambda: False, 0.1) is False
    with pytest.raises(threading.BrokenBarrierError):
        barrier.wait(0.6)
    assert barrier.broken
    started = time.monotonic()
    assert not lock.acquire(False)
    assert not lock.acquire(True, -1)
    assert not lock.acquire(True, 0)
    assert not event.wait(0)
    assert time.monotonic() - started < 5


# -- counting --


def add(value: Any, lock: Any, times: int) -> None:
    for _ in range(times):
        with lock:
            value.value += 1


@pytest.mark.parametrize("kind", ["Lock", "RLock", "Semaphore"])
def test_processes_and_their_threads_exclude_each_other(kind: str) -> None:
    lock, value = getattr(fork, kind)(), fork.Value("i", 0, lock=False)

    def work() -> None:
        threads = [threading.Thread(target=add, args=(value, lock, 2000)) for _ in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    processes = [run_in_child(work) for _ in range(3)]
    for process in processes:
        end(process)
    assert value.value == 12000


def test_a_values_lock_guards_its_value() -> None:
    value = fork.Value("i", 0)
    assert type(value.get_lock()) is synchronize.RLock
    processes = [run_in_child(add, value, value.get_lock(), 3000) for _ in range(3)]
    for process in processes:
        end(process)
    assert value.value == 9000


class Point(ctypes.Structure):
    _fields_ = [("x", ctypes.c_int), ("y", ctypes.c_double)]


class CountingLock:
    """A lock of the user's own."""

    def __init__(self) -> None:
        self.taken = self.given = 0

    def acquire(self) -> None:
        self.taken += 1

    def release(self) -> None:
        self.given += 1

    def __enter__(self) -> None:
        self.acquire()

    def __exit__(self, *_: object) -> None:
        self.release()


def test_what_wraps_ctypes_objects_takes_any_lock() -> None:
    lock = CountingLock()
    value = fork.Value(Point, 1, 2.5, lock=lock)
    assert (value.x, value.y) == (1, 2.5)
    value.x = 7
    assert value.get_obj().x == 7
    with value:
        pass
    assert lock.taken == lock.given == 4
    with pytest.raises(TypeError):
        value.x = "seven"
    assert lock.taken == lock.given == 5
    with pytest.raises(AttributeError):
        del value.x
    assert "SynchronizedPoint wrapper" in repr(value)
    with pytest.raises(AttributeError, match="acquire"):
        fork.Value("i", lock=3)
    mine = fork.Lock()
    assert fork.Value("i", lock=mine).get_lock() is mine
    array = fork.Array("i", range(5))
    assert (len(array), array[1:3], list(array)) == (5, [1, 2], [0, 1, 2, 3, 4])
    assert isinstance(array, sharedctypes.SynchronizedArray)
    assert type(fork.Value("i", lock=False)).__name__ == "c_int"
    guarded = fork.Value("i")
    with pytest.raises(TypeError):
        guarded.value = "text"
    assert guarded.get_lock()._get_value() == 1, "the lock was given back"


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.sampled_from(["take", "give"]), max_size=40), st.sampled_from(["Lock", "RLock", "Semaphore", "Bounded"])
)
def test_any_sequence_of_calls_gives_what_multiprocessing_gives(calls: list[str], kind: str) -> None:
    def outcomes(module: Any) -> list[Any]:
        context = module.get_context("fork")
        made = {
            "Lock": context.Lock,
            "RLock": context.RLock,
            "Semaphore": lambda: context.Semaphore(3),
            "Bounded": lambda: context.BoundedSemaphore(3),
        }[kind]()
        found: list[Any] = []
        for call in calls:
            try:
                found.append(made.acquire(False) if call == "take" else made.release())
            except Exception as error:
                found.append((type(error), str(error)))
            found.append((repr(made), made._semlock._is_zero(), made._semlock._get_value()))
        return found

    assert outcomes(mp) == outcomes(multiprocessing)


# -- many, and handed on --


def test_a_joinable_queue_is_joined(tmp_path: Path) -> None:
    queue = fork.JoinableQueue()

    def consume() -> None:
        for _ in range(20):
            queue.get(timeout=20)
            queue.task_done()

    for i in range(20):
        queue.put(i)
    process = run_in_child(consume)
    queue.join()
    end(process)
    assert isinstance(queue._cond, synchronize.Condition)
    with pytest.raises(ValueError, match="too many times"):
        queue.task_done()


def test_thousands_of_locks_take_few_descriptors_here_and_in_a_child(tmp_path: Path) -> None:
    done = run_program(
        tmp_path,
        """
        import os, resource, sys
        from shoal.multiprocessing import get_context

        def use(locks, events, values):
            assert len(os.listdir("/proc/self/fd")) < 150
            for lock, event, value in zip(locks, events, values):
                lock.release()
                event.set()
                with value:
                    value.value += 1

        if __name__ == "__main__":
            context = get_context(sys.argv[1])
            resource.setrlimit(resource.RLIMIT_NOFILE, (200, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))
            locks = [context.Lock() for _ in range(2000)]
            events = [context.Event() for _ in range(2000)]
            values = [context.Value("i", i) for i in range(2000)]
            for lock in locks:
                lock.acquire()
            process = context.Process(target=use, args=(locks, events, values))
            process.start()
            process.join()
            print(process.exitcode, all(lock.acquire(False) for lock in locks), all(e.is_set() for e in events))
            print(sum(value.value for value in values))
        """,
        "spawn",
    )
    assert done.stdout == f"0 True True\n{sum(range(1, 2001))}\n", done.stderr


_given: Any = None


def keep(lock: Any) -> None:
    global _given
    _given = lock


def try_given(_: int) -> bool:
    return bool(_given.acquire(False))


@pytest.mark.parametrize("method", METHODS)
def test_pools_workers_get_locks_as_initial_arguments(method: str) -> None:
    context = mp.get_context(method)
    lock, condition = context.Lock(), context.Condition()
    lock.acquire()
    with context.Pool(1, keep, (lock,)) as pool:
        assert pool.map(try_given, [1]) == [False]
    with context.Pool(1, keep, (condition,)) as pool:
        assert pool.map(try_given, [1]) == [True]


# -- install --


def test_install_puts_them_in_multiprocessings_place(tmp_path: Path) -> None:
    done = run_program(
        tmp_path,
        """
        import multiprocessing, sys
        import multiprocessing.synchronize as s, multiprocessing.sharedctypes as c
        from multiprocessing import Lock
        from multiprocessing.synchronize import Lock as Standard
        import shoal

        def show(lock, value):
            with lock, value:
                value.value += 1

        if __name__ == "__main__":
            originals = [s.Lock, s.Condition, c.Synchronized, c.make_property]
            shoal.install()
            multiprocessing.set_start_method(sys.argv[1])
            lock, value = Lock(), multiprocessing.Value("i")
            print(type(lock) is s.Lock, type(lock).__module__, isinstance(lock, Standard), isinstance(lock, s.SemLock))
            print(type(value) is c.Synchronized, type(value.get_lock()) is s.RLock, multiprocessing.Lock(robust=True))
            event, barrier = multiprocessing.get_context("fork").Event(), multiprocessing.Barrier(2)
            print(type(event) is s.Event, type(barrier) is s.Barrier)
            process = multiprocessing.Process(target=show, args=(lock, value))
            process.start()
            process.join()
            print(process.exitcode, value.value)
            shoal.uninstall()
            print([s.Lock, s.Condition, c.Synchronized, c.make_property] == originals)
            print(type(multiprocessing.Lock()) is Standard)
        """,
        "spawn",
    )
    assert done.stdout.splitlines() == [
        "True shoal.multiprocessing.synchronize True True",
        "True True <Lock(owner=None)>",
        "True True",
        "0 1",
        "True",
        "True",
    ], done.stderr


@pytest.mark.parametrize("name", ["value", "array", "string"])
def test_a_lock_that_others_may_wait_for_is_not_replaced(name: str) -> None:
    made = make_all(mp)[name]
    lock = made.get_lock()
    with pytest.raises(ValueError, match="has its lock"):
        made.__init__(made.get_obj())
    assert made.get_lock() is lock
