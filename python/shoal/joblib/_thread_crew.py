"""The threads of the back-end `threading`: with the calls of `multiprocessing.pool.ThreadPool` that back-ends make of a
pool, and without its three threads that hand out tasks, hand back results and look after the others, each of which
costs a short call more than its tasks do.

A thread is started when a task has none that is free for it, and all end with the crew, or with the program. The
outcomes are told by the thread that has them, but one at a time and in order: programs that put a callback of their own
in joblib's place need not expect two at once. A callback that takes long (it takes the next tasks from the program's
iterator, which may be slow) would keep that thread from the tasks: from then on a thread of its own,
the clerk, tells. The first that is long costs one thread that time, once: those that follow come one after the other
anyway.
"""

from __future__ import annotations

import queue
import sys
import threading
import time
import weakref
from collections import deque

from shoal._start_thread import start_thread

TYPE_CHECKING = False  # typing costs each start of a program more than the rest of this file
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from typing import Any

_LONG = 0.001  # seconds in a callback, after which there is a clerk: a hundred times what one takes by itself


class Outcome:
    """What becomes of one call, as `multiprocessing.pool.AsyncResult` has it."""

    __slots__ = ("_error", "_pending", "_value")

    def __init__(self) -> None:
        self._value: Any = None
        self._error: BaseException | None = None
        self._pending = threading.Lock()  # held until it is known
        self._pending.acquire()

    def _set(self, value: Any, error: BaseException | None) -> None:
        self._value, self._error = value, error
        self._pending.release()

    def ready(self) -> bool:
        return not self._pending.locked()

    def successful(self) -> bool:
        if not self.ready():
            raise ValueError(f"{self!r} not ready")
        return self._error is None

    def wait(self, timeout: float | None = None) -> None:
        if self._pending.acquire(timeout=-1 if timeout is None else max(timeout, 0)):
            self._pending.release()

    def get(self, timeout: float | None = None) -> Any:
        """The result; raises what the call raised, or `multiprocessing.TimeoutError`."""
        self.wait(timeout)
        if not self.ready():
            from multiprocessing import TimeoutError

            raise TimeoutError
        if self._error is not None:
            raise self._error
        return self._value


class ThreadCrew:
    """Up to `threads` threads that run what is given to them."""

    def __init__(self, threads: int) -> None:
        self._threads = threads
        self._started = 0
        self._free = 0  # threads that wait for a task, less the tasks that wait for a thread
        self._lock = threading.Lock()  # of the numbers
        self._ended = False
        self._tasks: queue.SimpleQueue[tuple[Any, ...] | None] = queue.SimpleQueue()
        self._told: deque[tuple[Callable[[Any], object], Any]] = deque()  # outcomes whose callbacks are due
        self._telling = threading.Lock()  # held by the thread that calls them
        self._clerk: queue.SimpleQueue[bool | None] | None = None  # what the clerk, if there is one, is woken by

    def apply_async(
        self,
        func: Callable[..., Any],
        args: Sequence[Any] = (),
        kwds: Mapping[str, Any] | None = None,
        callback: Callable[[Any], object] | None = None,
        error_callback: Callable[[BaseException], object] | None = None,
    ) -> Outcome:
        outcome = Outcome()
        with self._lock:
            if self._ended:
                raise ValueError("the threads have ended")
            starts = self._free <= 0 and self._started < self._threads
            if starts:
                self._started += 1
            else:
                self._free -= 1
        self._tasks.put((outcome, func, args, kwds or {}, callback, error_callback))
        if starts and not start_thread(
            threading.Thread(target=_work, args=(weakref.ref(self), self._tasks), daemon=True)
        ):
            with self._lock:  # those that are there take it
                self._started -= 1
                self._free -= 1
                if self._started == 0:
                    self._tasks.get_nowait()  # nobody would
                    raise RuntimeError("can't start new thread")
        return outcome

    def close(self) -> None:
        """There will be no more tasks."""
        with self._lock:
            self._ended = True

    def terminate(self) -> None:
        """Tasks that have not begun are dropped; a thread ends when it is through with its own."""
        self.close()
        try:
            while True:
                self._tasks.get_nowait()
        except queue.Empty:
            pass
        for _ in range(self._started):
            self._tasks.put(None)
        if self._clerk is not None:
            self._clerk.put(None)

    def __del__(self) -> None:
        self.terminate()

    # -- in the threads --

    def _told_of(self, callback: Callable[[Any], object] | None, value: object) -> None:
        """A thread is through with a task, and free when this returns."""
        if callback is not None:
            self._told.append((callback, value))
        if self._clerk is None:
            self._tell()
        elif callback is not None:
            self._clerk.put(True)
        with self._lock:
            self._free += 1

    def _tell(self) -> None:
        """Call the callbacks that are due, unless another thread does."""
        # What is appended while another thread tells is seen by that one, or by this one once that has let go.
        while self._told and self._telling.acquire(blocking=False):
            try:
                leaves_rest = self._tell_until_long()
            finally:
                self._telling.release()
            if leaves_rest and self._clerk is not None:
                self._clerk.put(True)  # it may have looked while this thread told
                return

    def _tell_until_long(self) -> bool:
        """Whether there is a clerk from now on, who tells the rest."""
        while self._told:
            callback, value = self._told.popleft()
            began = time.monotonic()
            try:
                callback(value)
            except BaseException:  # nobody's: said as threads say it, and the next one is not kept waiting
                raised = (*sys.exc_info(), threading.current_thread())
                threading.excepthook(threading.ExceptHookArgs(raised))
            if self._clerk is None and time.monotonic() - began > _LONG and self._have_clerk():
                return True
        return False

    def _have_clerk(self) -> bool:
        due: queue.SimpleQueue[bool | None] = queue.SimpleQueue()
        with self._lock:
            if self._ended:
                return False
            if not start_thread(threading.Thread(target=_be_clerk, args=(weakref.ref(self), due), daemon=True)):
                return False  # the tasks' own go on telling
            self._clerk = due
        return True


def _be_clerk(owner: weakref.ref[ThreadCrew], due: queue.SimpleQueue[bool | None]) -> None:
    while due.get() is not None:
        crew = owner()
        if crew is not None:
            crew._tell()
        del crew


def _work(owner: weakref.ref[ThreadCrew], tasks: queue.SimpleQueue[tuple[Any, ...] | None]) -> None:
    """A thread's: it does not keep the crew alive while it waits."""
    while (task := tasks.get()) is not None:
        outcome, func, args, kwds, callback, error_callback = task
        value: object = None
        error = None
        try:
            value = func(*args, **kwds)
        except BaseException as raised:
            error = raised
            value, callback = raised, error_callback
        outcome._set(value, error)
        crew = owner()
        if crew is not None:
            crew._told_of(callback, value)
        # Or all this lives until the next task.
        del task, outcome, func, args, kwds, callback, error_callback, value, error, crew
