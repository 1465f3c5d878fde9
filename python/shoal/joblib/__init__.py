"""`joblib` on Shoal's engine: `Parallel`, `delayed`, `Memory`, `hash`, `dump`, `load`."""

from __future__ import annotations

TYPE_CHECKING = False  # typing costs each start of a worker more than the rest of this file
if TYPE_CHECKING:
    from typing import Any

    from shoal.joblib._backends import ParallelBackendBase
    from shoal.joblib._config import effective_n_jobs, parallel_backend, parallel_config, register_parallel_backend
    from shoal.joblib._cpus import cpu_count
    from shoal.joblib._store_backends import StoreBackendBase
    from shoal.joblib._wrapping import wrap_non_picklable_objects
    from shoal.joblib.compressor import register_compressor
    from shoal.joblib.hashing import hash
    from shoal.joblib.logger import Logger, PrintTime
    from shoal.joblib.memory import MemorizedResult, Memory, expires_after, register_store_backend
    from shoal.joblib.numpy_pickle import dump, load
    from shoal.joblib.parallel import Parallel, delayed

__version__ = "1.6.0"  # joblib's, whose interface this is: where it is not installed, programs ask for this one's

__all__ = [
    "Logger",
    "MemorizedResult",
    "Memory",
    "Parallel",
    "ParallelBackendBase",
    "PrintTime",
    "StoreBackendBase",
    "cpu_count",
    "delayed",
    "dump",
    "effective_n_jobs",
    "expires_after",
    "hash",
    "load",
    "parallel_backend",
    "parallel_config",
    "register_compressor",
    "register_parallel_backend",
    "register_store_backend",
    "wrap_non_picklable_objects",
]

_HOMES = {
    "Logger": "shoal.joblib.logger",
    "PrintTime": "shoal.joblib.logger",
    "MemorizedResult": "shoal.joblib.memory",
    "Memory": "shoal.joblib.memory",
    "StoreBackendBase": "shoal.joblib._store_backends",
    "dump": "shoal.joblib.numpy_pickle",
    "expires_after": "shoal.joblib.memory",
    "hash": "shoal.joblib.hashing",
    "load": "shoal.joblib.numpy_pickle",
    "register_compressor": "shoal.joblib.compressor",
    "register_store_backend": "shoal.joblib.memory",
    "Parallel": "shoal.joblib.parallel",
    "ParallelBackendBase": "shoal.joblib._backends",
    "cpu_count": "shoal.joblib._cpus",
    "delayed": "shoal.joblib.parallel",
    "effective_n_jobs": "shoal.joblib._config",
    "parallel_backend": "shoal.joblib._config",
    "parallel_config": "shoal.joblib._config",
    "register_parallel_backend": "shoal.joblib._config",
    "wrap_non_picklable_objects": "shoal.joblib._wrapping",
}


def __getattr__(name: str) -> Any:
    # Each part is imported when it is first used: a program that only caches pays nothing for workers.
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    import importlib

    value = getattr(importlib.import_module(home), name)
    globals()[name] = value
    return value
