"""What all cases share: the clock, the scale, the best of a few, and the entry point of a file of cases."""

from __future__ import annotations

import importlib
import json
import os
import sys
import time
from collections.abc import Callable
from typing import Any

now = time.perf_counter
SCALE = 1.0
CORES = sorted(os.sched_getaffinity(0))


def scaled(count: int) -> int:
    """So many, times the SCALE of this run."""
    return max(1, int(count * SCALE))


def best_of(measure: Callable[[], float], times: int = 3) -> float:
    """The best of a few in one process: what is left is the implementation's, not the start's."""
    return min(measure() for _ in range(times))


def stay_on(core: int) -> None:
    """Run on this core alone from here on: two sides of a ping-pong on one core measure the scheduler, no more."""
    os.sched_setaffinity(0, {CORES[core % len(CORES)]})


def multiprocessing_of(name: str) -> Any:
    """The module that an implementation has in multiprocessing's place."""
    return importlib.import_module("shoal.multiprocessing" if name == "shoal" else name)


def joblib_of(name: str) -> Any:
    """The module that an implementation has in joblib's place."""
    return importlib.import_module("shoal.joblib" if name == "shoal" else name)


def main(cases: dict[str, Any]) -> None:
    """Measure once: FILE CASE IMPLEMENTATION SCALE, with the cases that the file has."""
    global SCALE
    case, implementation, SCALE = sys.argv[1], sys.argv[2], float(sys.argv[3])
    print(json.dumps({"value": cases[case](implementation)}))
