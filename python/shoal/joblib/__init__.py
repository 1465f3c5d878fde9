"""`joblib` on Shoal's engine: `Parallel`, `delayed`, `Memory`."""

from __future__ import annotations

TYPE_CHECKING = False  # typing costs each start of a worker more than the rest of this file
if TYPE_CHECKING:
    from typing import Any

    from shoal.joblib.memory import Memory
    from shoal.joblib.parallel import Parallel, delayed

__all__ = ["Memory", "Parallel", "cpu_count", "delayed"]

_HOMES = {
    "Memory": "shoal.joblib.memory",
    "Parallel": "shoal.joblib.parallel",
    "delayed": "shoal.joblib.parallel",
}


def cpu_count() -> int:
    """How many cpus this process may use."""
    import os

    return len(os.sched_getaffinity(0))


def __getattr__(name: str) -> Any:
    # Each part is imported when it is first used: a program that only caches pays nothing for workers.
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    import importlib

    value = getattr(importlib.import_module(home), name)
    globals()[name] = value
    return value
