"""What Shoal raises beyond the exceptions of multiprocessing and joblib. Each names what failed and can be pickled."""

from __future__ import annotations

__all__ = ["OwnerDied", "TaskCancelled", "TaskTimeout", "WorkerDied"]


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


class OwnerDied(RuntimeError):
    """The process that held a lock, a semaphore's units, or a place at a barrier, died.

    What the lock protects may be half done. Where that is repaired, or does no harm, `reset()` makes it usable again.

    pid: the process's id; 0 where it is not known.
    what: "lock", "semaphore" or "barrier".
    """

    def __init__(self, pid: int, what: str = "lock") -> None:
        super().__init__(pid, what)
        self.pid = pid
        self.what = what

    def __str__(self) -> str:
        who = f" (pid {self.pid})" if self.pid else ""
        if self.what == "barrier":
            return f"a process{who} that waited at the barrier died; reset() begins anew"
        if self.what == "semaphore":
            return f"all units of the semaphore are held, some by processes{who} that died; reset() frees those"
        return (
            f"the process{who} that held the {self.what} died; what it protects may be half done. "
            f"reset() frees it, robust=True hands it over"
        )
