"""`multiprocessing.queues` on Shoal's engine: `Queue`, `JoinableQueue` and `SimpleQueue`. A put writes into shared
memory in the caller's thread: there is no feeder thread, so nothing is lost when the producer exits, and joining a
producer before reading cannot block.
"""

from __future__ import annotations

import os
import time
import types
from collections.abc import Iterable
from multiprocessing import connection, context
from multiprocessing import queues as _standard
from queue import Empty, Full
from typing import Any

import shoal._pickling  # noqa: F401  (configures the codec)
from shoal import _engine
from shoal.multiprocessing import _insides
from shoal.multiprocessing.synchronize import Lock

__all__ = ["JoinableQueue", "Queue", "SimpleQueue"]

_engine.configure_queue(Full, Empty)

_SEM_VALUE_MAX = 2**31 - 1  # what multiprocessing shows for "no limit"


# Before `install()` puts ours in their place. Ours derive from them, so that isinstance agrees for whoever imported
# a name earlier; nothing of what they do inside is used.
_standard_queue: Any = _standard.Queue
_standard_simple_queue: Any = _standard.SimpleQueue
_standard_joinable_queue: Any = _standard.JoinableQueue

_QUEUE_INSIDES = frozenset({"_feed", "_on_queue_feeder_error", "_start_thread", "_reset", "_after_fork"})
_SIMPLE_QUEUE_INSIDES = frozenset({"__getstate__", "__setstate__", "get", "put", "empty", "close"})


class _QueueType(_insides.KeepingType):
    """Classes that rest on how the standard library's queues are made inside (as that of concurrent.futures does, with
    its feeder thread) get those as their base, also where `install()` has put ours in their place."""

    def __new__(cls, name: str, bases: tuple[type, ...], namespace: dict[str, Any], **keywords: Any) -> Any:
        if bases[0] is not _engine.Queue:
            bases = tuple(_QueueType._base_for(base, namespace) for base in bases)
            if not any(isinstance(base, _QueueType) for base in bases):
                return _insides.make_class(name, bases, namespace, keywords)
        return super().__new__(cls, name, bases, namespace, **keywords)

    @staticmethod
    def _base_for(base: type, namespace: dict[str, Any]) -> Any:
        if base is Queue and not _QUEUE_INSIDES.isdisjoint(namespace):
            return _standard_queue
        if base is SimpleQueue and not _SIMPLE_QUEUE_INSIDES.isdisjoint(namespace):
            return _standard_simple_queue
        return base


class _End:
    """What programs do with the ends of multiprocessing's pipe: wait for the reading one, take and put by either."""

    def __init__(self, queue: _engine.Queue) -> None:
        self._queue = queue

    @property
    def closed(self) -> bool:
        return self._queue._closed

    def fileno(self) -> int:
        """Readable while something is in the queue. OSError: the queue is closed."""
        if self._queue._closed:
            raise OSError("handle is closed")
        return self._queue._watch()

    def poll(self, timeout: float | None = 0.0) -> bool:
        """Whether something is there, or comes within `timeout` seconds (None: however long that takes)."""
        return bool(connection.wait([self], timeout))  # type: ignore[list-item]

    def recv(self) -> Any:
        """As the queue's get()."""
        return self._queue.get()

    def send(self, obj: Any) -> None:
        """As the queue's put()."""
        self._queue.put(obj)

    def recv_bytes(self) -> bytes:
        """What the queue's get() gives, pickled."""
        from multiprocessing.reduction import ForkingPickler

        return bytes(ForkingPickler.dumps(self._queue.get()))

    def send_bytes(self, buf: Any) -> None:
        """Put the object that was pickled to these bytes."""
        from multiprocessing.reduction import ForkingPickler

        self._queue.put(ForkingPickler.loads(buf))

    def close(self) -> None:
        """As the queue's close()."""
        self._queue.close()


# A queue's `_reader` or `_writer`; what a sub-class puts there itself (as PyTorch's does) is there instead.
_an_end = _insides.View(_End)


def _pack(queue: Any) -> tuple[Any, ...]:
    """What a process that is being started makes the queue of; nobody else may have it."""
    context.assert_spawning(queue)
    from multiprocessing.reduction import DupFd

    return (queue._rlock, queue._wlock, *(DupFd(fd) for fd in queue._fds()))


def _unpack(queue: Any, packed: tuple[Any, ...]) -> None:
    queue._rlock, queue._wlock, *duplicates = packed
    queue._open(0, *(duplicate.detach() for duplicate in duplicates))


class Queue(_engine.Queue, _standard_queue, metaclass=_QueueType):  # type: ignore[misc]
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
        self._opid = os.getpid()
        # Nobody needs these to put and get. Programs hold them so that nobody is in the midst of it meanwhile.
        self._rlock, self._wlock = Lock(ctx=ctx), Lock(ctx=ctx)

    def __getstate__(self) -> tuple[Any, ...]:
        return self._maxsize, self._opid, *_pack(self)

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        self._maxsize, self._opid, *packed = state
        _unpack(self, tuple(packed))

    # What programs ask for of the insides; see docs/compatibility.md.
    _reader = _an_end
    _writer = _an_end
    _poll = _insides.View(lambda queue: queue._reader.poll)
    _recv_bytes = _insides.View(lambda queue: queue._reader.recv_bytes)
    _send_bytes = _insides.View(lambda queue: queue._writer.send_bytes)
    _sem = _insides.View(
        lambda queue: _insides.Number(max(0, queue._maxsize - queue.qsize()), "put() and get() take and give room")
    )
    _buffer = _insides.View(lambda queue: _insides.Unsent())
    _notempty = _insides.Absent(
        "put() writes into the queue itself, so there is no feeder thread to tell, and nothing in _buffer"
    )
    _thread = _jointhread = _close = None
    _joincancelled = _ignore_epipe = False

    def put_nowait(self, obj: Any) -> None:
        """`put` without waiting."""
        self.put(obj, False)

    def get_nowait(self) -> Any:
        """`get` without waiting."""
        return self.get(False)

    def empty(self) -> bool:
        """Whether there is nothing in it now. OSError: it is closed, and holds something that cannot be had here."""
        if self._closed and self.qsize() > 0:
            raise OSError(f"Queue {self!r} is closed")
        return self.qsize() == 0

    def full(self) -> bool:
        """Whether it holds as many objects as it may."""
        return self.qsize() >= self._maxsize

    def join_thread(self) -> None:
        """Nothing to wait for: a put is complete when it returns. Only after close(), as in multiprocessing."""
        assert self._closed, f"Queue {self!r} not closed"

    def cancel_join_thread(self) -> None:
        """Nothing to cancel."""
        self._joincancelled = True

    __class_getitem__ = classmethod(types.GenericAlias)  # type: ignore[var-annotated]


class SimpleQueue(_engine.Queue, _standard_simple_queue, metaclass=_QueueType):  # type: ignore[misc]
    """A queue without a bound and without timeouts; the interface of `multiprocessing.SimpleQueue`."""

    def __init__(self, *, ctx: Any) -> None:
        self._open(0)
        self._rlock, self._wlock = Lock(ctx=ctx), Lock(ctx=ctx)

    def __getstate__(self) -> tuple[Any, ...]:
        return _pack(self)

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        _unpack(self, state)

    _reader = _an_end
    _writer = _an_end
    _poll = _insides.View(lambda queue: queue._reader.poll)

    def empty(self) -> bool:
        """Whether there is nothing in it now. OSError: it is closed."""
        if self._closed:
            raise OSError("handle is closed")
        return self.qsize() == 0

    def get(self) -> Any:  # type: ignore[override]
        """Take the first object, waiting for one. OSError: it is closed."""
        if self._closed:
            raise OSError("handle is closed")
        return _engine.Queue.get(self)

    def put(self, obj: Any) -> None:  # type: ignore[override]
        """Put an object. OSError: it is closed."""
        if self._closed:
            raise OSError("handle is closed")
        _engine.Queue.put(self, obj)

    __class_getitem__ = classmethod(types.GenericAlias)  # type: ignore[var-annotated]


class StandardSimpleQueue(_standard_simple_queue):  # type: ignore[misc]
    """The standard library's, under a name that pickling finds also where `install()` has put ours in its place."""


class JoinableQueue(Queue, _standard_joinable_queue):  # type: ignore[misc]
    """A queue that also tells when all that was put has been dealt with; the interface of
    `multiprocessing.JoinableQueue`."""

    def __init__(self, maxsize: int = 0, *, ctx: Any) -> None:
        super().__init__(maxsize, ctx=ctx)
        self._unfinished_tasks = ctx.Semaphore(0)
        self._cond = ctx.Condition()

    def __getstate__(self) -> tuple[Any, ...]:
        return (*super().__getstate__(), self._cond, self._unfinished_tasks)

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        super().__setstate__(state[:-2])
        self._cond, self._unfinished_tasks = state[-2:]

    def put(self, obj: Any, block: bool = True, timeout: float | None = None) -> None:
        """`Queue.put`; the object counts as unfinished from now on."""
        # Counted first: a consumer may have it, and be done with it, before put returns.
        self._unfinished_tasks.release()
        try:
            super().put(obj, block, timeout)
        except BaseException:
            self.task_done()
            raise

    def put_many(self, objs: Iterable[Any], block: bool = True, timeout: float | None = None) -> None:
        """`Queue.put_many`; each of the objects counts as unfinished."""
        deadline = None if timeout is None else time.monotonic() + timeout
        for count, obj in enumerate(objs):
            try:
                self.put(obj, block, None if deadline is None else max(0.0, deadline - time.monotonic()))
            except Full:
                raise Full(count) from None

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


_insides.KeepingType.replaced.update(
    {Queue: _standard_queue, JoinableQueue: _standard_joinable_queue, SimpleQueue: _standard_simple_queue}
)
