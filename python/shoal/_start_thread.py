"""Starting a thread where there may be none to be had."""

from __future__ import annotations

import threading

__all__ = ["start_thread"]


def start_thread(thread: threading.Thread) -> bool:
    """Start it. False: the limit of threads is reached, or the interpreter is ending (CPython 3.12).

    Both are a RuntimeError; so is what a signal handler's exception (Ctrl-C) in the middle of `start()` may become,
    which is raised.
    """
    try:
        thread.start()
    except RuntimeError as error:
        if str(error).startswith("can't"):
            return False
        raise
    return True
