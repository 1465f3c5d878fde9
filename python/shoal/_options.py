"""What users pass to pools, checked and in the engine's units, with errors that say what is wrong."""

from __future__ import annotations

TYPE_CHECKING = False  # typing takes longer to import than the first call of Parallel does all else
if TYPE_CHECKING:
    from collections.abc import Iterable
    from typing import Any

_UNITS = {"K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}


class MapOptions:
    """Shoal's own keyword arguments of one mapping call."""

    def __init__(
        self, progress: Any, task_timeout: float | None, retries_wanted: int | None, return_exceptions: bool
    ) -> None:
        if progress is not None and not isinstance(progress, bool) and not callable(progress):
            raise TypeError(f"progress must be True, False or a callable (done, total), not {progress!r}")
        self.progress = progress or None
        self.task_timeout = seconds(task_timeout)
        self.retries = None if retries_wanted is None else retries(retries_wanted)
        self.return_exceptions = bool(return_exceptions)


def seconds(value: float | None) -> float | None:
    """A task's time limit: more than 0, or None for no limit."""
    if value is None:
        return None
    if not isinstance(value, (int, float)) and not hasattr(value, "__float__"):
        raise TypeError(f"task_timeout must be a number of seconds, not {value!r}")
    if not value > 0:  # also NaN
        raise ValueError(f"task_timeout must be more than 0 seconds, not {value!r}")
    return float(value)


def retries(value: int) -> int:
    """How often: 0 or more."""
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        raise ValueError(f"retries must be 0 or more, not {value!r}")
    return min(value, 2**31)


def memory(value: int | str | None) -> int | None:
    """Bytes: a number, or text with one of the units K, M, G, T (powers of 1024)."""
    if value is None:
        return None
    size: float
    if isinstance(value, str):
        text = value.strip().upper().removesuffix("B").removesuffix("I")
        try:
            size = float(text[:-1]) * _UNITS[text[-1]] if text[-1:] in _UNITS else float(text)
        except ValueError:
            raise ValueError(f"worker_memory_limit must be bytes or text like '500M', not {value!r}") from None
    elif isinstance(value, (int, float)) or hasattr(value, "__index__"):
        size = value
    else:
        raise TypeError(f"worker_memory_limit must be bytes or text like '500M', not {value!r}")
    if not 0 < size < 2**63:
        raise ValueError(f"worker_memory_limit must be more than 0 bytes, not {value!r}")
    return int(size)


def cpus(value: Iterable[int | Iterable[int]] | None) -> tuple[frozenset[int], ...] | None:
    """One set of cpus for each worker, in turn."""
    if value is None:
        return None
    import os

    allowed = os.sched_getaffinity(0)
    sets = tuple(frozenset([one]) if isinstance(one, int) else frozenset(one) for one in value)
    for one in sets:
        if not one or not one <= allowed:
            raise ValueError(f"cpus must be of those that this process may use {sorted(allowed)}, not {sorted(one)}")
    if not sets:
        raise ValueError("cpus must name at least one cpu")
    return sets
