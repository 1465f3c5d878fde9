"""Locks, values and events."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import measuring
from measuring import best_of, multiprocessing_of, now, scaled, stay_on


def process_of(context: Any, target: Any, *args: Any) -> Any:
    process = context.Process(target=target, args=args)
    process.start()
    return process


def fork_context(name: str) -> Any:
    return multiprocessing_of(name).get_context("fork")


def per_turn(turns: Callable[[int], object], count: int) -> float:
    """Nanoseconds; the best of many short measurements, as each is shorter than what else the machine does."""
    best = float("inf")
    for _ in range(50):
        started = now()
        turns(count)
        best = min(best, now() - started)
    return best / count * 1e9


def lock_with(name: str) -> float:
    lock = fork_context(name).Lock()

    def turns(count: int) -> None:
        for _ in range(count):
            with lock:
                pass

    return per_turn(turns, scaled(10_000))


def lock_acquire_release(name: str) -> float:
    lock = fork_context(name).Lock()

    def turns(count: int) -> None:
        for _ in range(count):
            lock.acquire()
            lock.release()

    return per_turn(turns, scaled(10_000))


def value_increment(name: str) -> float:
    value = fork_context(name).Value("i", 0)

    def turns(count: int) -> None:
        for _ in range(count):
            with value.get_lock():
                value.value += 1

    return per_turn(turns, scaled(5_000))


def take_turns(lock: Any, start: Any, count: int) -> None:
    start.wait()
    for _ in range(count):
        with lock:
            pass


def lock_contended(name: str) -> float:
    """Nanoseconds for each time that one of two processes takes a lock that both want."""
    context, count = fork_context(name), scaled(100_000)

    def measure() -> float:
        lock, start = context.Lock(), context.Barrier(3)
        processes = [process_of(context, take_turns, lock, start, count) for _ in range(2)]
        start.wait()
        started = now()
        for process in processes:
            process.join()
        return (now() - started) / (2 * count) * 1e9

    return best_of(measure)


def set_back(there: Any, back: Any, count: int) -> None:
    stay_on(1)
    for _ in range(count):
        there.wait()
        there.clear()
        back.set()


def event_ping_pong(name: str) -> float:
    """Microseconds there and back between two cores."""
    context, count = fork_context(name), scaled(3_000)

    def measure() -> float:
        there, back = context.Event(), context.Event()
        process = process_of(context, set_back, there, back, count)
        stay_on(0)
        started = now()
        for _ in range(count):
            there.set()
            back.wait()
            back.clear()
        took = now() - started
        process.join()
        return took / count * 1e6

    return best_of(measure)


if __name__ == "__main__":
    measuring.main(globals())
