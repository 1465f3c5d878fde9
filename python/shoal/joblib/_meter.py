"""The progress of one call of `Parallel`, shown by a thread of its own while the call runs."""

from __future__ import annotations

import threading
from typing import Any

from shoal import _progress


class _Look:
    """What `_progress` looks at."""

    def __init__(self, done: int, total: int | None) -> None:
        self.settled = done
        self.length = -1 if total is None else total


class Meter:
    """A context manager: shows how far `parallel` is some ten times a second, and at the end."""

    def __init__(self, parallel: Any, progress: Any) -> None:
        self._parallel = parallel
        self._shown = _progress._Shown(progress, parallel.n_tasks)
        self._over = threading.Event()
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._follow, name="shoal-progress", daemon=True)

    def __enter__(self) -> None:
        self._thread.start()

    def __exit__(self, exc_type: object, *details: object) -> None:
        self._over.set()
        self._thread.join()
        try:
            if self._error is None:
                self._look()
        finally:
            self._shown.close()
        if self._error is not None and exc_type is None:
            raise self._error

    def _follow(self) -> None:
        try:
            while not self._over.wait(_progress.INTERVAL):
                self._look()
        except BaseException as error:  # a progress function that raises: the call's error
            self._error = error

    def _look(self) -> None:
        self._shown.look(_Look(*self._parallel._done_and_total()))
