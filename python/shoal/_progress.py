"""Progress of a mapping call, shown while it runs: tqdm's bar, or whatever a function of the user's makes of it.

What is shown is how many items have a result or an error (the job's own count), some ten times a second; the workers
and the way of a task know nothing of it.
"""

from __future__ import annotations

import sys
import threading
import weakref
from collections.abc import Callable
from typing import Any

INTERVAL = 0.1  # seconds between two looks


class _Bar:
    """tqdm's bar, fit for a terminal or a notebook."""

    def __init__(self, total: int | None) -> None:
        try:
            from tqdm.auto import tqdm
        except ImportError:
            raise ImportError(
                "progress=True needs tqdm (pip install tqdm); or pass a function that takes (done, total)"
            ) from None
        self._bar = tqdm(total=total)

    def __call__(self, done: int, total: int | None) -> None:
        if total is not None and self._bar.total != total:
            self._bar.total = total
        self._bar.update(done - self._bar.n)
        self._bar.refresh()

    def close(self) -> None:
        self._bar.close()


class _Shown:
    """Tells of changes only, and the end in any case."""

    def __init__(self, progress: Any, total: int | None) -> None:
        self._bar = _Bar(total) if progress is True else None
        self._show: Callable[[int, int | None], object] = self._bar or progress
        self._total = total
        self._last = -1

    def look(self, job: Any) -> None:
        total = job.length if job.length >= 0 else self._total
        done = job.settled
        if done != self._last:
            self._last = done
            self._show(done, total)

    def close(self) -> None:
        if self._bar is not None:
            self._bar.close()


def wait(job: Any, progress: Any) -> None:
    """Show the progress of `job` until it is done, in the calling thread."""
    shown = _Shown(progress, job.length if job.length >= 0 else None)
    try:
        shown.look(job)
        while not job.wait_ready(INTERVAL):
            shown.look(job)
        shown.look(job)
    finally:
        shown.close()


def follow(job: Any, progress: Any, total: int | None = None) -> None:
    """Show the progress of `job` from a thread, until it is done or nobody holds it any more."""
    shown = _Shown(progress, job.length if job.length >= 0 else total)
    thread = threading.Thread(target=_follow, args=(weakref.ref(job), shown), name="shoal-progress", daemon=True)
    thread.start()


def _follow(reference: Any, shown: _Shown) -> None:
    try:
        done = False
        while not done:
            job = reference()
            if job is None:
                return
            shown.look(job)
            try:
                done = job.wait_ready(INTERVAL)
            except (ValueError, RuntimeError):  # its pool was closed
                done = True
            if done:
                shown.look(job)
            del job
    except BaseException:  # a progress function that raises: reported as of any thread; the work goes on
        threading.excepthook(threading.ExceptHookArgs([*sys.exc_info(), threading.current_thread()]))
    finally:
        shown.close()
