"""Processes that use locks, and waiting for what they do."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from shoal import multiprocessing as mp

fork = mp.get_context("fork")


def run_in_child(target: Callable[..., object], *args: Any, context: Any = fork) -> Any:
    process = context.Process(target=target, args=args)
    process.start()
    return process


def end(process: Any, code: int = 0) -> None:
    process.join(20)
    assert process.exitcode == code


def until(condition: Callable[[], object], seconds: float = 10) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.002)
