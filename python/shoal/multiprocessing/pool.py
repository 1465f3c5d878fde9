"""`multiprocessing.pool` on Shoal's engine: `Pool`, its results and iterators. `ThreadPool` is the standard
library's."""

from __future__ import annotations

import builtins
import os
import types
import warnings
from collections.abc import Callable, Iterable, Sequence
from multiprocessing import TimeoutError, util
from multiprocessing.pool import (  # type: ignore[attr-defined]
    ExceptionWithTraceback,
    MaybeEncodingError,
    RemoteTraceback,
    ThreadPool,
)
from typing import Any

from shoal import _crew, _engine
from shoal._crew import CALL_ONE, CALL_STAR, CLOSE, RUN, TERMINATE

__all__ = ["Pool", "ThreadPool"]

_WINDOW = 4096  # items that imap hands out ahead of its reader

# Kept for programs that reach for them here, as in the standard library's module.
_REEXPORTED = (ExceptionWithTraceback, MaybeEncodingError, RemoteTraceback)


class _EngineHandle:
    """The engine's pool, on its way to a worker: inherited by fork, as descriptors otherwise."""

    def __init__(self, engine: _engine.Pool) -> None:
        self.engine = engine

    def __reduce__(self) -> tuple[Any, ...]:
        from multiprocessing.reduction import DupFd

        return _attach, tuple(DupFd(fd) for fd in self.engine.fds())


class _Descriptors:
    def __init__(self, fds: tuple[int, int, int]) -> None:
        self.engine = fds


def _attach(*duplicates: Any) -> _Descriptors:
    table, heap, attention = (duplicate.detach() for duplicate in duplicates)
    return _Descriptors((table, heap, attention))


def _worker_main(
    handle: _EngineHandle | _Descriptors,
    place: int,
    owner: int,
    initializer: Callable[..., object] | None,
    initargs: tuple[Any, ...],
    maxtasks: int | None,
) -> None:
    _crew.serve(handle.engine, place, owner, initializer, initargs, maxtasks)


class Pool:
    """A pool of worker processes; the interface of `multiprocessing.pool.Pool`.

    processes: how many; by default one a cpu.
    initializer, initargs: called in each worker before its first task.
    maxtasksperchild: a worker is replaced after so many tasks (chunks).
    context: a multiprocessing context, which says how workers start.

    A worker that dies fails the item it held with `shoal.WorkerDied`, and is replaced.
    """

    _wrap_exception = True

    @staticmethod
    def Process(ctx: Any, *args: Any, **kwds: Any) -> Any:
        return ctx.Process(*args, **kwds)

    def __init__(
        self,
        processes: int | None = None,
        initializer: Callable[..., object] | None = None,
        initargs: Iterable[Any] = (),
        maxtasksperchild: int | None = None,
        context: Any = None,
    ) -> None:
        self._state = "INIT"  # for __del__, if something below raises
        if context is None:
            from shoal.multiprocessing.context import _default_context

            context = _default_context.get_context()
        self._ctx = context
        if processes is None:
            processes = getattr(os, "process_cpu_count", os.cpu_count)() or 1
        if processes < 1:
            raise ValueError("Number of processes must be at least 1")
        if maxtasksperchild is not None and (not isinstance(maxtasksperchild, int) or maxtasksperchild <= 0):
            raise ValueError("maxtasksperchild must be a positive int or None")
        if initializer is not None and not callable(initializer):
            raise TypeError("initializer must be a callable")
        self._processes = processes
        self._initializer = initializer
        self._initargs = tuple(initargs)
        self._maxtasksperchild = maxtasksperchild

        make_process, initargs = self.Process, self._initargs

        def start(engine: _engine.Pool, place: int, owner: int) -> Any:
            process = make_process(
                context,
                target=_worker_main,
                args=(_EngineHandle(engine), place, owner, initializer, initargs, maxtasksperchild),
            )
            process.name = process.name.replace("Process", "PoolWorker")
            process.daemon = True
            process.start()
            return process

        self._crew = _crew.Crew(processes, start)
        self._terminate = util.Finalize(self, _crew.Crew.terminate, args=(self._crew,), exitpriority=15)
        self._state = RUN

    def __del__(self, _warn: Any = warnings.warn, RUN: str = RUN) -> None:
        if self._state == RUN:
            _warn(f"unclosed running multiprocessing pool {self!r}", ResourceWarning, source=self)

    def __repr__(self) -> str:
        cls = type(self)
        return f"<{cls.__module__}.{cls.__qualname__} state={self._state} pool_size={len(self._pool)}>"

    @property
    def _pool(self) -> list[Any]:
        """The worker processes that run now."""
        return [process for process in self._crew.processes if process is not None]

    def _check_running(self) -> None:
        if self._state != RUN:
            raise ValueError("Pool not running")
        if self._crew.broken is not None:
            raise self._crew.broken

    # -- one call --

    def apply(self, func: Callable[..., Any], args: Sequence[Any] = (), kwds: dict[str, Any] = {}) -> Any:  # noqa: B006
        """Call `func(*args, **kwds)` in a worker and return its result."""
        return self.apply_async(func, args, kwds).get()

    def apply_async(
        self,
        func: Callable[..., Any],
        args: Sequence[Any] = (),
        kwds: dict[str, Any] = {},  # noqa: B006
        callback: Callable[[Any], object] | None = None,
        error_callback: Callable[[BaseException], object] | None = None,
    ) -> ApplyResult:
        """Have `func(*args, **kwds)` called in a worker; the callbacks run in a thread of this process."""
        self._check_running()
        crew = self._crew
        item, mode, shared = crew.call_mode(func, args, kwds)
        result = ApplyResult(crew.engine, (item,), shared, mode, 1, callback=_callback(callback, error_callback))
        result.submit()
        return result

    # -- all results at once --

    def map(self, func: Callable[[Any], Any], iterable: Iterable[Any], chunksize: int | None = None) -> list[Any]:
        """Apply `func` to each item in the workers; the results in order.

        chunksize: items a worker takes at once; by default chosen from the measured time of items.
        Raises the first exception of an item, in order of the items, with the remote traceback as its cause.
        """
        return self._map_async(func, iterable, CALL_ONE, chunksize).get()  # type: ignore[no-any-return]

    def starmap(
        self, func: Callable[..., Any], iterable: Iterable[Iterable[Any]], chunksize: int | None = None
    ) -> list[Any]:
        """Like `map`, but each item is unpacked into arguments."""
        return self._map_async(func, iterable, CALL_STAR, chunksize).get()  # type: ignore[no-any-return]

    def map_async(
        self,
        func: Callable[[Any], Any],
        iterable: Iterable[Any],
        chunksize: int | None = None,
        callback: Callable[[list[Any]], object] | None = None,
        error_callback: Callable[[BaseException], object] | None = None,
    ) -> MapResult:
        """`map` without waiting."""
        return self._map_async(func, iterable, CALL_ONE, chunksize, callback, error_callback)

    def starmap_async(
        self,
        func: Callable[..., Any],
        iterable: Iterable[Iterable[Any]],
        chunksize: int | None = None,
        callback: Callable[[list[Any]], object] | None = None,
        error_callback: Callable[[BaseException], object] | None = None,
    ) -> MapResult:
        """`starmap` without waiting."""
        return self._map_async(func, iterable, CALL_STAR, chunksize, callback, error_callback)

    def _map_async(
        self,
        func: Callable[..., Any],
        iterable: Iterable[Any],
        mode: int,
        chunksize: int | None = None,
        callback: Callable[[list[Any]], object] | None = None,
        error_callback: Callable[[BaseException], object] | None = None,
    ) -> MapResult:
        self._check_running()
        items = iterable if type(iterable) in (list, tuple) else list(iterable)
        if chunksize is not None and chunksize < 1 and items:
            raise ValueError(f"Chunksize must be 1+, not {chunksize!r}")
        shared, owned = self._crew.share(func)
        result = MapResult(
            self._crew.engine,
            items,
            shared,
            mode,
            chunksize or 0,
            callback=_callback(callback, error_callback),
            owns_shared=owned,
        )
        result.submit()
        return result

    # -- results as they come --

    def imap(self, func: Callable[[Any], Any], iterable: Iterable[Any], chunksize: int = 1) -> IMapIterator:
        """`map` as an iterator over the results, in order; the items are taken as results are read."""
        return self._imap(func, iterable, chunksize, 1)

    def imap_unordered(self, func: Callable[[Any], Any], iterable: Iterable[Any], chunksize: int = 1) -> IMapIterator:
        """Like `imap`, with the results in the order in which they come."""
        return self._imap(func, iterable, chunksize, 2)

    def _imap(self, func: Callable[[Any], Any], iterable: Iterable[Any], chunksize: int, iterate: int) -> IMapIterator:
        self._check_running()
        if chunksize < 1:
            raise ValueError(f"Chunksize must be 1+, not {chunksize!r}")
        iterator = iter(iterable)
        shared, owned = self._crew.share(func)
        result = IMapIterator(
            self._crew.engine,
            iterator,
            shared,
            CALL_ONE,
            chunksize,
            iterate=iterate,
            window=max(_WINDOW, 4 * chunksize * self._processes),
            owns_shared=owned,
        )
        result.submit()
        return result

    # -- the end --

    def close(self) -> None:
        """Take no more work; the workers end when all is done."""
        if self._state == RUN:
            self._state = CLOSE
            self._crew.close()

    def terminate(self) -> None:
        """End the workers at once; what is not done fails with `shoal.TaskCancelled`."""
        self._state = TERMINATE
        self._terminate()

    def join(self) -> None:
        """Wait for the workers to end."""
        if self._state == RUN:
            raise ValueError("Pool is still running")
        if self._state not in (CLOSE, TERMINATE):
            raise ValueError("In unknown state")
        self._crew.join()

    def __reduce__(self) -> Any:
        raise NotImplementedError("pool objects cannot be passed between processes or pickled")

    def __enter__(self) -> Pool:
        self._check_running()
        return self

    def __exit__(self, exc_type: object, exc_val: object, exc_tb: object) -> None:
        self.terminate()


def _callback(
    callback: Callable[[Any], object] | None, error_callback: Callable[[BaseException], object] | None
) -> Callable[[ApplyResult], None] | None:
    if callback is None and error_callback is None:
        return None

    def run(result: ApplyResult) -> None:
        if result.error is None:
            if callback is not None:
                callback(result._value())
        elif error_callback is not None:
            error_callback(result.error)

    return run


class ApplyResult(_engine.Job):
    """The result of `apply_async`, perhaps not there yet."""

    def ready(self) -> bool:
        """Whether it is there; does not wait."""
        return self.wait_ready(0)

    def successful(self) -> bool:
        """Whether the call returned rather than raised. ValueError while that is not known."""
        if not self.ready():
            raise ValueError(f"{self!r} not ready")
        return self.error is None

    def wait(self, timeout: float | None = None) -> None:
        """Wait until it is there, `timeout` seconds at the most."""
        self.wait_ready(timeout)

    def get(self, timeout: float | None = None) -> Any:
        """Wait and return the result, or raise what the call raised; multiprocessing.TimeoutError after `timeout`
        seconds."""
        if not self.wait_ready(timeout):
            raise TimeoutError
        return self._value()

    def _value(self) -> Any:
        return self.results()[0]

    __class_getitem__ = classmethod(types.GenericAlias)  # type: ignore[var-annotated]


AsyncResult = ApplyResult


class MapResult(ApplyResult):
    """The results of `map_async`, perhaps not all there yet."""

    def _value(self) -> list[Any]:
        return self.results()


class IMapIterator(_engine.Job):
    """Results of `imap` or `imap_unordered`, as they come."""

    def next(self, timeout: float | None = None) -> Any:
        """The next result; multiprocessing.TimeoutError if it does not come within `timeout` seconds."""
        if timeout is None:
            return self.__next__()
        try:
            return self.next_within(timeout)
        except builtins.TimeoutError:
            raise TimeoutError from None


IMapUnorderedIterator = IMapIterator
