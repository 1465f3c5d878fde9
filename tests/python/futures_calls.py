"""What the tests of executors have called, and what they wait with."""

from __future__ import annotations

import os
import pickle
import signal
import time
from collections.abc import Callable
from typing import Any

METHODS = ["fork", "spawn", "forkserver"]


def square(x: int) -> int:
    return x * x


def nap(x: Any) -> Any:
    time.sleep(0.02)
    return x


def sleep(seconds: float) -> float:
    time.sleep(seconds)
    return seconds


def fail_on_3(x: int) -> int:
    if x == 3:
        raise KeyError(x)
    return x


def kill_self() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def raise_(error: BaseException) -> None:
    raise error


class Unpicklable:
    def __reduce__(self) -> Any:
        raise pickle.PicklingError("not me")


def wait_until(condition: Callable[[], bool], limit: float = 10) -> None:
    deadline = time.monotonic() + limit
    while not condition():
        assert time.monotonic() < deadline, "it did not come to pass"
        time.sleep(0.005)
