"""`multiprocessing.queues` on Shoal's engine: `Queue`. A put writes into shared memory in the caller's thread: there
is no
feeder thread, so nothing is lost when the producer exits, and joining a producer before reading cannot block.
"""

from __future__ import annotations

import types
from multiprocessing import context
from queue import Empty, Full
from typing import Any

import shoal._pickling  # noqa: F401  (configures the codec)
from shoal import _engine

__all__ = ["Queue"]

_engine.configure_queue(Full, Empty)

_SEM_VALUE_MAX = 2**31 - 1  # what multiprocessing shows for "no limit"


class Queue(_engine.Queue):
    """A queue of Python objects between processes; the interface of `multiprocessing.Queue`.

    maxsize: objects it may hold; 0 or less: as many as memory has room for.
    """

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


def _rebuild(cls: type[Queue], maxsize: int, *duplicates: Any) -> Queue:
    queue = cls.__new__(cls)
    queue._open(0, *(duplicate.detach() for duplicate in duplicates))
    queue._maxsize = maxsize
    return queue
