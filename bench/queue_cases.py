"""Queues: one producer and one consumer of items of several sizes, four of each, and there and back."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from typing import Any

import measuring
import numpy as np
from measuring import best_of, multiprocessing_of, now, scaled, stay_on


def queue_of(name: str, kind: str = "Queue") -> Any:
    if name == "faster-fifo":
        queue = importlib.import_module("faster_fifo").Queue(max_size_bytes=100_000_000)
        importlib.import_module("faster_fifo_reduction")
        return queue
    return getattr(multiprocessing_of(name), kind)()


def context_of(name: str) -> Any:
    """What starts processes and has barriers; its processes inherit their arguments as they are."""
    return multiprocessing_of("shoal" if name == "shoal" else "multiprocessing").get_context("fork")


def process_of(name: str, target: Any, *args: Any) -> Any:
    process = context_of(name).Process(target=target, args=args)
    process.start()
    return process


def put_all(queue: Any, items: Sequence[Any], start: Any) -> None:
    start.wait()
    for item in items:
        queue.put(item)
    getattr(queue, "close", lambda: None)()
    getattr(queue, "join_thread", lambda: None)()


def stream(name: str, items: Sequence[Any], kind: str = "Queue") -> float:
    """Seconds an item from one process to another."""
    queue = queue_of(name, kind)

    def measure() -> float:
        start = context_of(name).Barrier(2)
        process = process_of(name, put_all, queue, items, start)
        start.wait()
        started = now()
        for _ in items:
            item = queue.get()
        took = now() - started
        process.join()
        assert np.array_equal(item, items[-1])
        return took / len(items)

    return best_of(measure)


def queue_small_items(name: str) -> float:
    return stream(name, range(scaled(200_000))) * 1e6


def simple_queue_small_items(name: str) -> float:
    return stream(name, range(scaled(100_000)), "SimpleQueue") * 1e6


def queue_10_kb_items(name: str) -> float:
    return stream(name, [bytes(10_000)] * scaled(50_000)) * 1e6


def queue_1_mb_items(name: str) -> float:
    return stream(name, [bytes(1_000_000)] * scaled(500)) * 1e6


def queue_8_mb_arrays(name: str) -> float:
    return stream(name, [np.ones(1_000_000)] * scaled(100)) * 1e3


def add_up(queue: Any, sums: Any, count: int, start: Any) -> None:
    start.wait()
    sums.put(sum(queue.get() for _ in range(count)))


def queue_4_and_4(name: str) -> float:
    """Microseconds an item, with four producers and four consumers."""
    count = scaled(50_000)

    def measure() -> float:
        queue, sums, start = queue_of(name), queue_of(name), context_of(name).Barrier(9)
        processes = [process_of(name, put_all, queue, range(count), start) for _ in range(4)]
        processes += [process_of(name, add_up, queue, sums, count, start) for _ in range(4)]
        start.wait()
        started = now()
        assert sum(sums.get() for _ in range(4)) == 4 * sum(range(count))
        took = now() - started
        for process in processes:
            process.join()
        return took / (4 * count) * 1e6

    return best_of(measure)


def send_back(there: Any, back: Any) -> None:
    stay_on(1)
    while (item := there.get()) is not None:
        back.put(item)


def queue_ping_pong(name: str) -> float:
    """Microseconds there and back between two cores."""
    count = scaled(5_000)
    there, back = queue_of(name), queue_of(name)
    process = process_of(name, send_back, there, back)
    stay_on(0)

    def measure() -> float:
        started = now()
        for i in range(count):
            there.put(i)
            assert back.get() == i
        return (now() - started) / count * 1e6

    result = best_of(measure)
    there.put(None)
    process.join()
    return result


if __name__ == "__main__":
    measuring.main(globals())
