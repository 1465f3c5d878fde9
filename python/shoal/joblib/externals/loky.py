"""`joblib.externals.loky` where joblib is not installed: `concurrent.futures`' names, cpus, and executors of Shoal's.

`get_reusable_executor().shutdown()`, by which programs have the workers of `Parallel` end now, does that to those that
no call has in use.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import (
    ALL_COMPLETED,
    FIRST_COMPLETED,
    FIRST_EXCEPTION,
    CancelledError,
    Executor,
    Future,
    TimeoutError,
    as_completed,
    wait,
)
from concurrent.futures.process import BrokenProcessPool
from typing import Any

from shoal.futures import ProcessPoolExecutor
from shoal.joblib import _workers
from shoal.joblib._cpus import cpu_count
from shoal.joblib._wrapping import wrap_non_picklable_objects

__all__ = [
    "ALL_COMPLETED",
    "FIRST_COMPLETED",
    "FIRST_EXCEPTION",
    "BrokenProcessPool",
    "CancelledError",
    "Executor",
    "Future",
    "ProcessPoolExecutor",
    "TimeoutError",
    "as_completed",
    "cpu_count",
    "get_reusable_executor",
    "set_loky_pickler",
    "wait",
    "wrap_non_picklable_objects",
]

_lock = threading.RLock()  # as loky's: a signal's handler, or the collector, may come back here
_executor: _Reusable | None = None


class _Reusable(ProcessPoolExecutor):
    asked: tuple[Any, ...]
    has_ended = False

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False, kill_workers: bool = False) -> None:
        self.has_ended = True
        super().shutdown(wait, cancel_futures=cancel_futures or kill_workers)
        _workers.end_idle_crews()


def get_reusable_executor(
    max_workers: int | None = None,
    context: Any = None,
    timeout: float | None = 10,
    kill_workers: bool = False,
    reuse: bool | str = "auto",
    initializer: Callable[..., object] | None = None,
    initargs: tuple[Any, ...] = (),
) -> ProcessPoolExecutor:
    """The executor of the last call if it is one as is asked for now, and was not shut down; or else a new one.

    timeout: not used, as workers stay until `shutdown`.
    """
    global _executor
    with _lock:
        known = _executor
        asked = (max_workers, context, initializer, initargs)
        usable = known is not None and not known.has_ended and not known._broken
        if (
            known is not None
            and usable
            and (reuse is True or (reuse and (max_workers is None or known.asked == asked)))
        ):
            return known
        if known is not None and usable:
            ProcessPoolExecutor.shutdown(known, cancel_futures=kill_workers)
        _executor = _Reusable(max_workers or cpu_count(), context, initializer, initargs)
        _executor.asked = asked
        return _executor


def set_loky_pickler(loky_pickler: str | None = None) -> None:
    """Changes nothing: what can be found by name in the workers goes so, all else by value, whichever module is named.

    ImportError, AttributeError: there is no such module, or it has no `Pickler`.
    """
    if loky_pickler:
        import importlib

        importlib.import_module(loky_pickler).Pickler  # noqa: B018
