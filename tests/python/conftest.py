"""What the tests of pools and executors work on."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest


@pytest.fixture(scope="module")
def pool() -> Iterator[Any]:
    """A pool for all tests of a module that leave it as it was."""
    from shoal.multiprocessing import Pool

    with Pool(2) as made:
        yield made


@pytest.fixture
def own_pool() -> Iterator[Any]:
    from shoal.multiprocessing import Pool

    with Pool(2) as made:
        yield made


@pytest.fixture(scope="module")
def shared_executor() -> Iterator[Any]:
    """An executor for all tests of a module that leave it as it was."""
    from shoal import ProcessPoolExecutor

    with ProcessPoolExecutor(2) as made:
        made.submit(abs, -1).result()  # its workers are there before a test begins
        yield made


@pytest.fixture
def executor() -> Iterator[Any]:
    from shoal import ProcessPoolExecutor

    with ProcessPoolExecutor(2) as made:
        yield made
