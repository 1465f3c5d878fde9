"""What Shoal raises beyond the exceptions of multiprocessing and joblib. Each names what failed and can be pickled."""

from __future__ import annotations

__all__ = ["TaskCancelled", "WorkerDied"]


class WorkerDied(RuntimeError):
    """The worker that held an item died before it had its result.

    item: the item's number in the call (0 for a single call).
    pid: the worker's process id.
    exitcode: its exit status; negative: the signal that ended it.
    """

    def __init__(self, item: int, pid: int, exitcode: int) -> None:
        super().__init__(item, pid, exitcode)
        self.item = item
        self.pid = pid
        self.exitcode = exitcode

    @property
    def signal(self) -> str | None:
        """The name of the signal that ended the worker, or None if it exited."""
        if self.exitcode >= 0:
            return None
        import signal as _signal  # only here: it costs each start of a worker more than the rest of this file

        try:
            return _signal.Signals(-self.exitcode).name
        except ValueError:
            return f"signal {-self.exitcode}"

    def __str__(self) -> str:
        how = f"was killed by {self.signal}" if self.exitcode < 0 else f"exited with status {self.exitcode}"
        return f"item {self.item} failed: the worker that held it (pid {self.pid}) {how}"


class TaskCancelled(RuntimeError):
    """The task was taken back before it was done, as when its pool is terminated."""
