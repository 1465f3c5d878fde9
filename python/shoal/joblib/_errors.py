"""What calls on clean workers raise where something cannot be sent or a worker dies: errors that are also the ones
that joblib's loky raises then, for programs that look for those.

Those are joblib's own where it is imported, and else `concurrent.futures`', which joblib's derive from. Imported when
there is such an error: what it needs takes time.
"""

from __future__ import annotations

import functools
import sys
from concurrent.futures.process import BrokenProcessPool
from typing import Any

from shoal import errors

__all__ = ["see_as_loky", "unreadable"]


def _of_loky(name: str) -> Any:
    return getattr(sys.modules.get("joblib.externals.loky.process_executor"), name, BrokenProcessPool)


@functools.lru_cache(None)
def _died_class(base: type) -> Any:
    return type(
        "WorkerDied",
        (errors.WorkerDied, base),
        {
            "__module__": "shoal.errors",
            "__doc__": "The worker that held the task died before it had its result. The other tasks are not hurt.",
            "__reduce__": lambda self: (_make_died, self.args),
        },
    )


def _make_died(*arguments: Any) -> Any:
    return _died_class(_of_loky("TerminatedWorkerError"))(*arguments)


def see_as_loky(error: BaseException) -> BaseException:
    """The error of a task as the caller is to see it."""
    if type(error) is errors.WorkerDied:
        made: BaseException = _make_died(*error.args)
    elif type(error) is RuntimeError:  # the crew's: its workers end before they do anything
        made = _of_loky("TerminatedWorkerError")(*error.args)
    elif type(error) is BrokenProcessPool:  # made in a worker, which has not imported joblib
        made = _of_loky("BrokenProcessPool")(*error.args)
    else:
        return error
    made.__cause__ = error.__cause__
    return made


def unreadable(error: BaseException) -> BaseException:
    """The error of a task that raised this when it, or its result, was unpickled: what loky breaks all of its workers
    with, for this task alone."""
    what = f"a task or its result could not be unpickled: {type(error).__name__}: {error}"
    broken: BaseException = _of_loky("BrokenProcessPool")(what)
    broken.__cause__ = error
    return broken
