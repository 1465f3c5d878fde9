"""What `Parallel` says while it runs: joblib's lines of progress, and Shoal's progress bar."""

from __future__ import annotations

import sys
import time
from math import floor, log10, sqrt

from shoal.joblib.logger import Logger, short_format_time

TYPE_CHECKING = False  # typing costs each start of a program more than the rest of this file
if TYPE_CHECKING:
    from collections.abc import Generator
    from typing import Any


class Reporting(Logger):
    """The part of `Parallel` that reports. Classes that derive from joblib's know its names."""

    verbose: Any
    n_tasks: int | None
    n_completed_tasks: int
    n_dispatched_tasks: int
    n_dispatched_batches: int
    _iterating: bool
    _aborting: bool
    _original_iterator: Any
    _pre_dispatch_amount: int
    _progress: Any
    _start_time: float
    _resume: Any

    def _is_completed(self) -> bool:
        return self.n_completed_tasks == self.n_dispatched_tasks and not (self._iterating or self._aborting)

    # -- progress --

    def _show(self, output: Generator[Any, None, None]) -> Generator[Any, None, None]:
        """The results of `output`, with the progress shown meanwhile."""
        from shoal.joblib._meter import Meter

        with Meter(self, self._progress):
            yield from output

    def _done_and_total(self) -> tuple[int, int | None]:
        job = getattr(self, "_job", None)
        total = self.n_tasks
        if total is None and self._original_iterator is None and not self._iterating:
            total = self.n_dispatched_tasks
        found = self._count_found()
        if total is not None and self.n_tasks is None:
            total += found
        return (job.settled if job is not None else self.n_completed_tasks) + found, total

    def _count_found(self) -> int:
        """How many tasks were not run, as `memory` had their results."""
        return self._resume.found if self._resume is not None else 0

    def _print(self, msg: str) -> None:
        if not self.verbose:
            return
        stream = sys.stdout if self.verbose >= 50 else sys.stderr
        stream.write(f"[{self}]: {msg}\n")

    def print_progress(self) -> None:
        """Print how far the call is: the more often, the higher `verbose`."""
        if not self.verbose:
            return
        width = floor(log10(self.n_tasks)) + 1 if self.n_tasks else 3
        elapsed = time.time() - self._start_time
        took = f"| elapsed: {short_format_time(elapsed)}"
        found = self._count_found()
        done = self.n_completed_tasks + found
        if self._is_completed():
            self._print(f"Done {done:{width}d} out of {done:{width}d} {took} finished")
        elif self._original_iterator is not None:
            if _is_quiet(self.n_dispatched_batches, self.verbose):
                return
            if self.n_tasks is not None:
                self._print(f"Done {done:{width}d} out of {self.n_tasks:{width}d} {took}")
            else:
                self._print(f"Done {done:{width}d} tasks {' ' * (width + 2)}{took}")
        else:
            total = self.n_dispatched_tasks + found
            # All is handed out: now and then, counted from the end of that.
            if done and (
                (total - done + 1 - self._pre_dispatch_amount) % (total // self.verbose + 1) or done + 1 == total
            ):
                return
            remaining = elapsed / max(done, 1) * (total - done)
            self._print(
                f"Done {done:{width}d} out of {total:{width}d} {took} remaining: {short_format_time(remaining)}"
            )


def _is_quiet(index: int, verbose: int) -> bool:
    """Whether to leave out a line: ever more of them, as the square of the index."""
    if not verbose:
        return True
    if verbose > 10:
        return False
    if index == 0:
        return False
    scale = 0.5 * (11 - verbose) ** 2
    return int(sqrt((index + 1) / scale)) == int(sqrt(index / scale))
