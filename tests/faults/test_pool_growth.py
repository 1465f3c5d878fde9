"""Campaigns of long use: pools are made and dropped, workers replaced, tasks run by the hundred thousand. Neither
memory nor descriptors, threads, processes or mappings grow.
"""

from __future__ import annotations

import os
from typing import Any

import numpy as np
import pytest
from campaign import LIMIT, ROUNDS
from shoal.multiprocessing import Pool

pytestmark = pytest.mark.timeout(LIMIT)


def fill(x: int) -> Any:
    return np.full(1 << 18, x, dtype=np.float64)  # 2 MB


def heap_megabytes(pool: Any) -> int:
    """Memory that the pool's heap takes, whoever has touched it."""
    return os.fstat(pool._crew.engine.fds()[1]).st_blocks * 512 >> 20


def test_results_held_while_workers_are_replaced_need_no_more_memory_than_is_held() -> None:
    held: list[Any] = []
    most, items = 0, 600 if ROUNDS else 200
    with Pool(2, maxtasksperchild=1) as pool:
        for x, array in enumerate(pool.imap(fill, range(items), chunksize=1)):
            held.append(array)
            if len(held) > 4:
                del held[0]
            most = max(most, heap_megabytes(pool))
            assert all((one == y).all() for one, y in zip(held, range(x - len(held) + 1, x + 1), strict=True))
    print(f"{items} results of 2 MB, 4 held, by a worker each: {most} MB at most")
    assert most <= 100  # 400 MB came
