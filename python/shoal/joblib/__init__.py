"""`joblib` on Shoal's engine: `Parallel`, `delayed`, `Memory`, `hash`, `dump`, `load`."""

from __future__ import annotations

TYPE_CHECKING = False  # typing costs each start of a worker more than the rest of this file
if TYPE_CHECKING:
    from typing import Any

    from shoal.joblib.compressor import register_compressor
    from shoal.joblib.hashing import hash
    from shoal.joblib.memory import MemorizedResult, Memory, expires_after, register_store_backend
    from shoal.joblib.numpy_pickle import dump, load
    from shoal.joblib.parallel import Parallel, delayed

__all__ = ["MemorizedResult", "Memory", "Parallel", "cpu_count", "delayed", "dump", "expires_after", "hash", "load",
           "register_compressor", "register_store_backend"]  # fmt: skip

_HOMES = {
    "MemorizedResult": "shoal.joblib.memory",
    "Memory": "shoal.joblib.memory",
    "dump": "shoal.joblib.numpy_pickle",
    "expires_after": "shoal.joblib.memory",
    "hash": "shoal.joblib.hashing",
    "load": "shoal.joblib.numpy_pickle",
    "register_compressor": "shoal.joblib.compressor",
    "register_store_backend": "shoal.joblib.memory",
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
