"""`multiprocessing.queues` on Shoal's engine: `Queue` and `JoinableQueue`. A put writes into shared memory in the
caller's thread: there is no feeder thread, so nothing is lost when the producer exits, and joining a producer before
reading cannot block.
"""

from __future__ import annotations

import types
from multiprocessing import context
from multiprocessing import queues as _standard
from queue import Empty, Full
from typing import Any

import shoal._pickling  # noqa: F401  (configures the codec)
from shoal import _engine

__all__ = ["JoinableQueue", "Queue"]

_engine.configure_queue(Full, Empty)

_SEM_VALUE_MAX = 2**31 - 1  # what multiprocessing shows for "no limit"


_STANDARD_INSIDES = frozenset({"_feed", "_on_queue_feeder_error", "_start_thread", "_reset", "_after_fork"})
_standard_queue = _standard.Queue  # before `install()` puts ours in its place


class _QueueType(type):
    """Classes that rest on how the standard library's queue is made inside (as that of concurrent.futures does, with
    its feeder thread) get that one as their base, also where `install()` has put ours in its place."""

    def __new__(cls, name: str, bases: tuple[type, ...], namespace: dict[str, Any], **keywords: Any) -> Any:
        if bases != (_engine.Queue,) and not _STANDARD_INSIDES.isdisjoint(namespace):
            bases = tuple(_standard_queue if base is Queue else base for base in bases)
            if not any(isinstance(base, _QueueType) for base in bases):
                return types.new_class(name, bases, keywords, lambda body: body.update(namespace))
        return super().__new__(cls, name, bases, namespace, **keywords)


class Queue(_engine.Queue, metaclass=_QueueType):
    """A queue of Python objects between processes; the interface of `multiprocessing.Queue`.

    maxsize: objects it may hold; 0 or less: as many as memory has room for.
    """

    # The standard library's own queue, where something rests on its insides, asks the class of this name for them.
    _after_fork, _feed, _finalize_join, _finalize_close = (
        _standard_queue.__dict__[name] for name in ("_after_fork", "_feed", "_finalize_join", "_finalize_close")
    )

    def __init__(self, maxsize: int = 0, *, ctx: Any) -> None:
        self._open(maxsize)
        self._maxsize = maxsize if maxsize > 0 else _SEM_VALUE_MAX

    def __reduce__(self) -> tuple[Any, ...]:
        context.assert_spawning(self)
        from multiprocessing.reduction import DupFd

        return _rebuild, (type(self), self._maxsize, *(DupFd(fd) for fd in self._fds()))

    def put_nowait(self, obj: Any) -> None:
        """`put` without waiting."""
        self.put(obj, False)

    def get_nowait(self) -> Any:
        """`get` without waiting."""
        return self.get(False)

    def empty(self) -> bool:
        """Whether there is nothing in it now."""
        return self.qsize() == 0

    def full(self) -> bool:
        """Whether it holds as many objects as it may."""
        return self.qsize() >= self._maxsize

    def join_thread(self) -> None:
        """Nothing to wait for: a put is complete when it returns. Only after close(), as in multiprocessing."""
        assert self._closed, f"Queue {self!r} not closed"

    def cancel_join_thread(self) -> None:
        """Nothing to cancel."""

    __class_getitem__ = classmethod(types.GenericAlias)  # type: ignore[var-annotated]


class JoinableQueue(Queue):
    """A queue that also tells when all that was put has been dealt with; the interface of
    `multiprocessing.JoinableQueue`."""

    def __init__(self, maxsize: int = 0, *, ctx: Any) -> None:
        super().__init__(maxsize, ctx=ctx)
        self._unfinished_tasks = ctx.Semaphore(0)
        self._cond = ctx.Condition()

    def __reduce__(self) -> tuple[Any, ...]:
        return (*super().__reduce__(), (self._unfinished_tasks, self._cond))

    def __setstate__(self, state: tuple[Any, Any]) -> None:
        self._unfinished_tasks, self._cond = state

    def put(self, obj: Any, block: bool = True, timeout: float | None = None) -> None:
        """`Queue.put`; the object counts as unfinished from now on."""
        # Counted first: a consumer may have it, and be done with it, before put returns.
        self._unfinished_tasks.release()
        try:
            super().put(obj, block, timeout)
        except BaseException:
            self.task_done()
            raise

    def task_done(self) -> None:
        """One of the objects that were taken is dealt with. ValueError: more than were put."""
        with self._cond:
            if not self._unfinished_tasks.acquire(False):
                raise ValueError("task_done() called too many times")
            if self._unfinished_tasks._semlock._is_zero():
                self._cond.notify_all()

    def join(self) -> None:
        """Wait until all objects that were put are dealt with."""
        with self._cond:
            if not self._unfinished_tasks._semlock._is_zero():
                self._cond.wait()


def _rebuild(cls: type[Queue], maxsize: int, *duplicates: Any) -> Queue:
    queue = cls.__new__(cls)
    queue._open(0, *(duplicate.detach() for duplicate in duplicates))
    queue._maxsize = maxsize
    return queue
