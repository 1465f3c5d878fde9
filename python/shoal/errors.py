"""What Shoal raises beyond the exceptions of multiprocessing and joblib. Each names what failed and can be pickled."""

from __future__ import annotations

__all__ = ["TaskCancelled", "TaskTimeout", "WorkerDied"]


class WorkerDied(RuntimeError):
    """The worker that held an item died before it had its result.

    item: the item's number in the call (0 for a single call).
    pid: the worker's process id.
    exitcode: its exit status; negative: the signal that ended it.
    stack: where it was in Python when it crashed (segmentation fault, abort …); empty where that is not known.
    """

    def __init__(self, item: int, pid: int, exitcode: int, stack: str = "") -> None:
        super().__init__(item, pid, exitcode, stack)
        self.item = item
        self.pid = pid
        self.exitcode = exitcode
        self.stack = stack

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
        text = f"item {self.item} failed: the worker that held it (pid {self.pid}) {how}"
        return f"{text}\n\n{self.stack.rstrip()}" if self.stack else text


class TaskTimeout(TimeoutError):
    """An item took longer than its `task_timeout`; its worker was killed, and replaced by another.

    item: the item's number in the call (0 for a single call).
    pid: the worker's process id.
    seconds: how long it was allowed to take.
    """

    def __init__(self, item: int, pid: int, seconds: float) -> None:
        super().__init__(item, pid, seconds)
        self.item = item
        self.pid = pid
        self.seconds = seconds

    def __str__(self) -> str:
        return f"item {self.item} took longer than {self.seconds:g} s: its worker (pid {self.pid}) was killed"


class TaskCancelled(RuntimeError):
    """The task was taken back before it was done: cancelled, or its pool was terminated."""
