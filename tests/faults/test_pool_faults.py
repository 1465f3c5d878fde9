"""Campaigns of kills from Python: workers of a `Pool`, users of a `Queue` and the parent itself are killed with SIGKILL
at random instants. Each item is once right or told dead, the pool goes on, nothing hangs and nothing stays behind.

Bounded: some seconds each; SHOAL_FAULT_ROUNDS asks for more rounds, SHOAL_SEED repeats a run.
"""

from __future__ import annotations

import contextlib
import os
import queue
import random
import subprocess
import sys
import textwrap
import threading
import time
from pathlib import Path
from typing import Any

import psutil
import pytest
import shoal
from campaign import LIMIT, WORKERS, Killer, died, finish, outcomes, rounds, square
from shoal.multiprocessing import Pool, Process, Queue

pytestmark = pytest.mark.timeout(LIMIT)


def enlarge(x: int) -> bytes:
    """A result that does not fit into a slot, and now and then one that does not fit into a slab."""
    return bytes([x % 251]) * (200_000 if x % 20 == 0 else 3_000)


def fail_on_thirteens(x: int) -> int:
    if x % 13 == 0:
        raise ValueError(x)
    return x


# -- the pool --


def test_imap_gives_each_item_once_right_or_told_dead(dice: random.Random) -> None:
    pool, count, dead = Pool(WORKERS), 2000, 0
    with Killer(pool, dice, 0.02) as killer:
        for _ in killer.rounds(8):
            chunk = dice.choice([1, 1, 7, 40])
            got = list(outcomes(pool.imap(square, range(count), chunksize=chunk)))
            assert len(got) == count
            for x, value in enumerate(got):
                assert value == x * x or died(value, x), (x, value)
                dead += isinstance(value, shoal.WorkerDied)
    print(f"{killer.kills} kills, {dead} items died")
    assert dead <= killer.kills
    finish(pool)


def test_imap_unordered_gives_each_item_at_most_once_and_all_that_did_not_die(dice: random.Random) -> None:
    pool, count, dead = Pool(WORKERS), 2000, 0
    with Killer(pool, dice, 0.02) as killer:
        for _ in killer.rounds(8):
            got = list(outcomes(pool.imap_unordered(square, range(count), chunksize=dice.choice([1, 13]))))
            lost = {value.item for value in got if isinstance(value, shoal.WorkerDied)}
            right = [value for value in got if not isinstance(value, shoal.WorkerDied)]
            assert len(got) == count
            assert len(lost) + len(right) == count
            assert sorted(right) == [x * x for x in range(count) if x not in lost]
            dead += len(lost)
    print(f"{killer.kills} kills, {dead} items died")
    assert dead <= killer.kills
    finish(pool)


def test_map_is_right_or_says_which_item_died_and_with_retries_it_is_right(dice: random.Random) -> None:
    pool, count, dead = Pool(WORKERS), 3000, 0
    expected = [x * x for x in range(count)]
    with Killer(pool, dice, 0.02) as killer:
        for _ in killer.rounds(8):
            chunk = dice.choice([None, 1, 25])
            try:
                assert pool.map(square, range(count), chunk) == expected
            except shoal.WorkerDied as error:
                assert died(error, error.item)
                assert 0 <= error.item < count
                dead += 1
            assert pool.map(square, range(count), chunk, retries=1000) == expected
    print(f"{killer.kills} kills, {dead} maps died")
    finish(pool)


def test_large_results_come_whole_from_workers_that_are_killed_afterwards(dice: random.Random) -> None:
    pool, count, dead = Pool(WORKERS), 300, 0
    with Killer(pool, dice, 0.01) as killer:
        for _ in killer.rounds(12):
            got = list(outcomes(pool.imap(enlarge, range(count), chunksize=dice.choice([1, 10]))))
            assert len(got) == count
            for x, value in enumerate(got):
                assert died(value, x) or value == enlarge(x)
                dead += isinstance(value, shoal.WorkerDied)
    print(f"{killer.kills} kills, {dead} items died")
    assert dead <= killer.kills
    finish(pool)


def test_an_items_own_exception_is_told_apart_from_its_workers_death(dice: random.Random) -> None:
    pool, count = Pool(WORKERS), 1500
    with Killer(pool, dice, 0.02) as killer:
        for _ in killer.rounds(5):
            got = list(outcomes(pool.imap(fail_on_thirteens, range(count), chunksize=5)))
            assert len(got) == count
            for x, value in enumerate(got):
                if not died(value, x):
                    assert (isinstance(value, ValueError) and value.args == (x,)) if x % 13 == 0 else value == x
    print(f"{killer.kills} kills")
    finish(pool)


def test_each_apply_async_ends_once_with_its_result_or_its_workers_death(dice: random.Random) -> None:
    pool, dead = Pool(WORKERS), 0
    with Killer(pool, dice, 0.01) as killer:
        for _ in killer.rounds(6):
            calls: list[list[Any]] = [[] for _ in range(600)]
            results = [
                pool.apply_async(square, (x,), callback=calls[x].append, error_callback=calls[x].append)
                for x in range(600)
            ]
            for x, result in enumerate(results):
                result.wait(30)
                assert result.ready()
                try:
                    assert result.get(0) == x * x
                except shoal.WorkerDied as error:
                    assert died(error, 0)
                    dead += 1
            deadline = time.monotonic() + 10
            while not all(calls) and time.monotonic() < deadline:
                time.sleep(0.005)
            for x, told in enumerate(calls):
                assert len(told) == 1
                assert told[0] == x * x or isinstance(told[0], shoal.WorkerDied)
    print(f"{killer.kills} kills, {dead} calls died")
    assert dead <= killer.kills
    finish(pool)


def test_a_pool_may_be_terminated_while_its_workers_are_killed(dice: random.Random) -> None:
    for _ in range(rounds(10)):
        pool = Pool(WORKERS)
        workers = [process.pid for process in pool._pool]
        with Killer(pool, dice, 0.005):
            pending = pool.map_async(square, range(100_000), 1)
            time.sleep(dice.random() * 0.02)
            pool.terminate()
            pool.join()
        del pending
        assert not [pid for pid in workers if psutil.pid_exists(pid)]


# -- the queue --


def produce(items: Any, ledger: Any, producer: int) -> None:
    """Put numbers until killed, and tell by a pipe after each put that it returned."""
    number = 0
    while True:
        items.put((producer, number, b"x" * (number % 40 * 100)))
        os.write(ledger, b"%d %d\n" % (producer, number))
        number += 1


def consume(items: Any, ledger: Any) -> None:
    """Take until told to stop, and tell by a pipe what was taken."""
    while (item := items.get()) is not None:
        producer, number, text = item
        assert text == b"x" * (number % 40 * 100)
        os.write(ledger, b"%d %d\n" % (producer, number))


def read_pipe(end: int, lines: list[tuple[int, int]]) -> None:
    with os.fdopen(end) as file:
        for line in file:
            producer, number = line.split()
            lines.append((int(producer), int(number)))


def start_reader() -> tuple[int, list[tuple[int, int]], threading.Thread]:
    """A pipe whose lines (each written at once, and shorter than PIPE_BUF) are collected by a thread."""
    read, write = os.pipe()
    lines: list[tuple[int, int]] = []
    thread = threading.Thread(target=read_pipe, args=(read, lines), daemon=True)
    thread.start()
    return write, lines, thread


@pytest.mark.parametrize("maxsize", [0, 5])
def test_a_queue_loses_and_doubles_nothing_while_its_users_are_killed(dice: random.Random, maxsize: int) -> None:
    items: Any = Queue(maxsize)
    puts, put, put_thread = start_reader()
    takes, taken, take_thread = start_reader()
    producers: list[Any] = []
    consumers: list[Any] = []
    started = consumers_killed = 0

    def start_producer() -> Any:
        nonlocal started
        started += 1
        process = Process(target=produce, args=(items, puts, started), daemon=True)
        process.start()
        return process

    def start_consumer() -> Any:
        process = Process(target=consume, args=(items, takes), daemon=True)
        process.start()
        return process

    producers = [start_producer() for _ in range(2)]
    consumers = [start_consumer() for _ in range(2)]
    for _ in range(rounds(30)):
        time.sleep(dice.random() * 0.02)
        at = dice.randrange(2)
        if dice.random() < 0.5:
            producers[at].kill()
            producers[at].join()
            producers[at] = start_producer()
        else:
            consumers[at].kill()
            consumers[at].join()
            consumers_killed += 1
            consumers[at] = start_consumer()
    for process in producers:
        process.kill()
        process.join()
    for _ in consumers:
        items.put(None)
    for process in consumers:
        process.join(30)
        assert process.exitcode == 0
    # What a dead process held may come late, behind the ends: it is taken here.
    with pytest.raises(queue.Empty):
        while True:
            item = items.get(timeout=0.1)
            assert item is not None
            taken.append(item[:2])
    os.close(puts)
    os.close(takes)
    put_thread.join()
    take_thread.join()
    assert len(taken) == len(set(taken))
    lost = set(put) - set(taken)
    print(f"{len(put)} put, {len(lost)} lost with the {consumers_killed} consumers that were killed")
    assert len(lost) <= consumers_killed
    assert len(set(taken) - set(put)) <= started  # a put that was killed before it could tell
    assert items.qsize() == 0
    items.close()


# -- the parent --


Memory = tuple[int, int]  # what tells one memfd from another: device and inode


def shoals_memory_of(pid: int) -> set[Memory]:
    """The regions that a process has open or mapped."""
    found = set()
    with contextlib.suppress(OSError):
        for name in os.listdir(f"/proc/{pid}/fd"):
            with contextlib.suppress(OSError):
                path = f"/proc/{pid}/fd/{name}"
                if os.readlink(path).startswith("/memfd:shoal"):
                    status = os.stat(path)
                    found.add((status.st_dev, status.st_ino))
        for line in Path(f"/proc/{pid}/maps").read_text().splitlines():
            if "/memfd:shoal" in line:
                _, _, _, device, inode, *_ = line.split()
                major, minor = (int(part, 16) for part in device.split(":"))
                found.add((os.makedev(major, minor), int(inode)))
    return found


PARENT = """
    import os, sys, threading, time
    import shoal.multiprocessing as multiprocessing

    def square(x):
        return x * x

    def wait(queue):
        queue.get()

    if __name__ == "__main__":
        multiprocessing.set_start_method(sys.argv[1])
        pool = multiprocessing.Pool(3)
        queue = multiprocessing.Queue()
        multiprocessing.Process(target=wait, args=(queue,), daemon=True).start()
        print(os.getpid(), flush=True)
        while True:
            pool.map(square, range(1000), 1)
"""


@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
def test_a_killed_parent_leaves_no_process_and_nobody_who_holds_its_memory(
    dice: random.Random, tmp_path: Path, method: str
) -> None:
    program = tmp_path / "program.py"
    program.write_text(textwrap.dedent(PARENT))
    for _ in range(rounds(3)):
        parent = subprocess.Popen([sys.executable, str(program), method], stdout=subprocess.PIPE, text=True)
        assert parent.stdout is not None
        assert int(parent.stdout.readline()) == parent.pid
        time.sleep(dice.random() * 0.2)
        family = psutil.Process(parent.pid).children(recursive=True)
        memory = shoals_memory_of(parent.pid)
        assert len(family) >= 4
        assert len(memory) >= 4  # two of the pool, two of the queue
        parent.kill()
        parent.wait()
        parent.stdout.close()
        deadline = time.monotonic() + 5
        while time.monotonic() < deadline:
            left = [one for one in family if one.is_running() and one.status() != psutil.STATUS_ZOMBIE]
            holders = [pid for pid in psutil.pids() if shoals_memory_of(pid) & memory]
            if not left and not holders:
                break
            time.sleep(0.01)
        assert not left
        assert not holders
