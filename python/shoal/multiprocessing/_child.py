"""What a started process does around `BaseProcess._bootstrap`, with as little of it left to the process as can be.

In a forked process the first write to a page copies it, and the first look at a page of code is a fault as well: the
start and end of `Process(target=...)` has some 390 of these, and on a virtual machine they take longer than all else
that it does. So the standard input that multiprocessing gives its processes is opened before the fork, once for all of
them.
"""

from __future__ import annotations

import atexit
import os
import sys
from collections.abc import Callable
from multiprocessing import util
from typing import Any, TextIO

__all__ = ["keep_null_input", "open_null_input", "run_with_exit_functions", "take_null_input"]

# What reads as empty; its descriptor, and the device and inode that this had when it was opened: a program may close
# descriptors that it knows nothing of, and have another file under the number.
_null_input: tuple[TextIO, int, tuple[int, int]] | None = None


def open_null_input() -> None:
    """Before a fork: what take_null_input() takes. OSError: there is no descriptor left."""
    global _null_input
    if _null_input is not None:
        file, descriptor, identity = _null_input
        try:
            kept = _identity(descriptor) == identity
        except OSError:
            kept = False
        if kept:
            if file.closed:  # it was this process's sys.stdin, and the program closed that
                _null_input = _text_of(descriptor), descriptor, identity
            return
    descriptor = os.open(os.devnull, os.O_RDONLY)
    _null_input = _text_of(descriptor), descriptor, _identity(descriptor)


def _identity(descriptor: int) -> tuple[int, int]:
    status = os.fstat(descriptor)
    return status.st_dev, status.st_ino


def _text_of(descriptor: int) -> TextIO:
    return open(descriptor, encoding="utf-8", closefd=False)


def take_null_input() -> None:
    """In the forked process, in the place of `util._close_stdin`: no two processes read from one terminal."""
    if sys.stdin is None or _null_input is None or sys.stdin is _null_input[0]:  # the last: its parent took it
        return
    try:
        sys.stdin.close()
    except (OSError, ValueError):
        pass
    sys.stdin = _null_input[0]


def keep_null_input() -> None:
    """In a zygote's process, in the same place: its descriptor 0 is the null device already."""


def run_with_exit_functions(bootstrap: Callable[[int], Any], parent_sentinel: int, fresh: bool = False) -> int:
    """In the process: `bootstrap(parent_sentinel)`, then what was registered with atexit in this process, as the
    standard library has it: from CPython 3.13 on always, before only in an interpreter that was started afresh (which
    this stands for where `fresh` is set)."""
    if sys.version_info < (3, 13) and not fresh:
        return int(bootstrap(parent_sentinel) or 0)
    atexit._clear()
    atexit.register(util._exit_function)  # type: ignore[attr-defined]
    try:
        return int(bootstrap(parent_sentinel) or 0)
    finally:
        atexit._run_exitfuncs()
        util._flush_std_streams()  # type: ignore[attr-defined]
