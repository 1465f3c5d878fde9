"""Campaigns against the workers of a `Pool` during every way to hand out work: they are killed (2,000 in the long
run), stopped and continued, exit by themselves, and are killed while they write an 8 MB array.

Nothing hangs; every item is right once, or told dead; with retries all are right.
"""

from __future__ import annotations

import os
import random
from collections.abc import Callable
from typing import Any

import numpy as np
import psutil
import pytest
import shoal
from campaign import LIMIT, WORKERS, Killer, died, finish, outcomes, rounds, square, stop_and_continue
from shoal.multiprocessing import Pool

pytestmark = pytest.mark.timeout(LIMIT)

COUNT = 1500


def by_imap(pool: Any, dice: random.Random) -> int:
    got = list(outcomes(pool.imap(square, range(COUNT), chunksize=dice.choice([1, 9]))))
    assert len(got) == COUNT
    wrong = [(x, value) for x, value in enumerate(got) if value != x * x]
    assert all(died(value, x) for x, value in wrong), wrong
    return len(wrong)


def by_imap_unordered(pool: Any, dice: random.Random) -> int:
    got = list(outcomes(pool.imap_unordered(square, range(COUNT), chunksize=dice.choice([1, 9]))))
    lost = {value.item for value in got if isinstance(value, shoal.WorkerDied)}
    assert sorted(value for value in got if not isinstance(value, shoal.WorkerDied)) == [
        x * x for x in range(COUNT) if x not in lost
    ]
    assert len(got) == COUNT
    return len(lost)


def by_map(pool: Any, dice: random.Random, retries: int = 0) -> int:
    got = pool.map(square, range(COUNT), dice.choice([None, 1, 25]), retries=retries, return_exceptions=True)
    assert len(got) == COUNT
    wrong = [(x, value) for x, value in enumerate(got) if value != x * x]
    assert all(died(value, x) for x, value in wrong), wrong
    return len(wrong)


def by_apply_async(pool: Any, dice: random.Random, retries: int = 0) -> int:
    dead = 0
    pending = [pool.apply_async(square, (x,), retries=retries) for x in range(COUNT // 3)]
    for x, result in enumerate(pending):
        result.wait(60)
        try:
            assert result.get(0) == x * x
        except shoal.WorkerDied as error:
            assert died(error, 0)
            dead += 1
    return dead


WAYS: dict[str, Callable[[Any, random.Random], int]] = {
    "imap": by_imap,
    "imap_unordered": by_imap_unordered,
    "map": by_map,
    "apply_async": by_apply_async,
    "map with retries": lambda pool, dice: by_map(pool, dice, 1000),
    "apply_async with retries": lambda pool, dice: by_apply_async(pool, dice, 1000),
}


def test_whatever_way_work_is_handed_out_kills_cost_the_items_held_and_no_more(dice: random.Random) -> None:
    kills, dead, items = 100 * rounds(1), dict.fromkeys(WAYS, 0), 0
    pool = Pool(WORKERS)
    with Killer(pool, dice, 0.015) as killer:
        for _ in killer.until(kills):
            for name, way in WAYS.items():
                dead[name] += way(pool, dice)
                items += COUNT
    print(f"{killer.kills} kills, died of {items} items at most: {dead}")
    assert sum(dead.values()) <= killer.kills
    assert all(dead[name] == 0 for name in WAYS if "retries" in name)
    finish(pool)


def test_workers_that_are_stopped_and_continued_lose_nothing(dice: random.Random) -> None:
    stops = 60 * rounds(1)
    pool = Pool(WORKERS)
    workers = [process.pid for process in pool._pool]

    def harm(process: psutil.Process) -> bool:
        return stop_and_continue(process, dice.random() * 0.02)

    with Killer(pool, dice, 0.01, harm) as stopper:
        for _ in stopper.until(stops):
            assert sum(way(pool, dice) for way in WAYS.values()) == 0
    print(f"{stopper.kills} stops")
    assert [process.pid for process in pool._pool] == workers
    finish(pool)


def exit_now_and_then(x: int) -> int:
    if os.urandom(1)[0] < 3:
        os._exit(x % 100 + 1)
    return x * x


def test_tasks_that_exit_are_told_with_their_code_and_retried_as_kills_are(dice: random.Random) -> None:
    pool, exits, runs = Pool(WORKERS), 0, 0
    for _ in range(3 * rounds(1)):
        got = pool.map(exit_now_and_then, range(500), dice.choice([None, 1, 10]), return_exceptions=True)
        for x, value in enumerate(got):
            if isinstance(value, shoal.WorkerDied):
                assert (value.item, value.exitcode) == (x, x % 100 + 1)
                exits += 1
            else:
                assert value == x * x
        got = pool.map(exit_now_and_then, range(500), dice.choice([None, 1, 10]), retries=1000)
        assert got == [x * x for x in range(500)]
        runs += 2
    print(f"{exits} items died of {runs // 2 * 500}, none of as many with retries")
    assert exits > 0
    finish(pool)


MEGABYTES = 8


def fill(x: int) -> Any:
    return np.full(MEGABYTES << 17, x, dtype=np.float64)


def is_full_of(value: Any, x: int) -> bool:
    return isinstance(value, np.ndarray) and value.shape == (MEGABYTES << 17,) and bool((value == x).all())


def test_workers_that_are_killed_as_they_write_an_array_cost_that_one(dice: random.Random) -> None:
    pool, dead, items, kills = Pool(WORKERS), 0, 0, 10 * rounds(1)
    with Killer(pool, dice, 0.03) as killer:
        for _ in killer.until(kills):
            for x, value in enumerate(outcomes(pool.imap(fill, range(30)))):
                assert is_full_of(value, x) or died(value, x), (x, value)
                dead += isinstance(value, shoal.WorkerDied)
                items += 1
            for x, value in enumerate(pool.imap(fill, range(15), retries=1000)):
                assert is_full_of(value, x)
                items += 1
    print(f"{killer.kills} kills, {dead} of {items} arrays of {MEGABYTES} MB died")
    assert 0 < dead <= killer.kills
    finish(pool)
