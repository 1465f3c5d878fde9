"""Several threads in one part of Shoal at once, and what the collector, or a signal's handler, does in between."""

from __future__ import annotations

import io
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import shoal.joblib
from helpers import Interruption, run_program
from shoal import _pickling, _serving
from shoal.joblib import _arrays, _depends, _resume, _trace, _workers, compressor
from shoal.joblib.externals import loky


def returns(call: Callable[[], object]) -> bool:
    """Whether it does, rather than wait for ever."""
    errors: list[BaseException] = []

    def run() -> None:
        try:
            call()
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(10)
    if errors:
        raise errors[0]
    return not thread.is_alive()


def test_the_programs_own_number_of_threads_comes_back_where_two_threads_fork_workers(tmp_path: Path) -> None:
    pytest.importorskip("threadpoolctl")
    source = """
        import os
        os.environ["OPENBLAS_NUM_THREADS"] = os.environ["OMP_NUM_THREADS"] = "2"
        import numpy
        import threadpoolctl
        from shoal import _threads

        numbers = lambda: [library["num_threads"] for library in threadpoolctl.threadpool_info()]
        numpy.ones((300, 300)) @ numpy.ones((300, 300))
        before = numbers()
        one, other = _threads.forking(1), _threads.forking(1)
        one.__enter__()
        other.__enter__()
        one.__exit__()
        between = numbers()
        other.__exit__()
        print(len(before) > 0, set(between), numbers() == before)
    """
    result = run_program(tmp_path, source)
    assert result.stdout.split() == ["True", "{1}", "True"], result.stdout + result.stderr


