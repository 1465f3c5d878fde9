"""`multiprocessing.pool` on Shoal's engine: `Pool`, its results and iterators. `ThreadPool` is the standard
library's."""

from __future__ import annotations

import _signal  # type: ignore[import-not-found]  # in C: nothing can come between the call and what it does
import abc
import contextlib
import os
import signal
import threading
import types
import warnings
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from multiprocessing import TimeoutError, pool, process, util
from multiprocessing.pool import (  # type: ignore[attr-defined]
    ExceptionWithTraceback,
    MaybeEncodingError,
    RemoteTraceback,
    ThreadPool,
    worker,
)
from typing import Any

from shoal import _crew, _engine, _options, _progress, _serving, _threads
from shoal._crew import CALL_ONE, CALL_STAR, CLOSE, RUN, TERMINATE
from shoal.errors import TaskCancelled
from shoal.multiprocessing.popen_fork import Siblings

__all__ = ["Pool", "ThreadPool"]

# Before `install()` puts ours in their place. Ours derive from these, so that isinstance agrees for whoever imported a
# name earlier; nothing of what they do inside is used.
_StandardPool: Any = pool.Pool
_StandardApplyResult: Any = pool.ApplyResult  # type: ignore[attr-defined]
_StandardMapResult: Any = pool.MapResult  # type: ignore[attr-defined]
_StandardIMapIterator: Any = pool.IMapIterator
_StandardIMapUnorderedIterator: Any = pool.IMapUnorderedIterator

_CHUNK_MOST = 2**31
_FEEDER_ANY, _FEEDER_CALLER, _FEEDER_OWN = range(3)  # as in the extension
# Iterators that any waiting thread may read on. Another may block, or be slow: a thread of its own does it.
_HARMLESS: tuple[Any, ...] = (range(1), range(2**70), [], (), "", b"", bytearray(), {}, {}.values(), {}.items(), set())
_NEVER_BLOCK = frozenset(type(iter(source)) for source in _HARMLESS)
_WINDOW = 4096  # items that imap hands out ahead of its reader

# Kept for programs that reach for them here, as in the standard library's module.
_REEXPORTED = (ExceptionWithTraceback, MaybeEncodingError, RemoteTraceback, worker)


class _EngineHandle:
    """The engine's pool and the worker's crash descriptor, on their way to it: inherited by fork, duplicated
    otherwise."""

    def __init__(self, engine: _engine.Pool, crash: int) -> None:
        self.engine = engine
        self.crash = crash

    def __reduce__(self) -> tuple[Any, ...]:
        from multiprocessing.reduction import DupFd

        return _attach, tuple(DupFd(fd) for fd in (*self.engine.fds(), self.crash))


class _Descriptors:
    def __init__(self, fds: tuple[int, int, int], crash: int) -> None:
        self.engine = fds
        self.crash = crash


def _attach(*duplicates: Any) -> _Descriptors:
    table, heap, attention, crash = (duplicate.detach() for duplicate in duplicates)
    return _Descriptors((table, heap, attention), crash)


def _worker_main(handle: _EngineHandle | _Descriptors, place: int, owner: int, duties: _serving.Duties) -> None:
    _serving.serve(handle.engine, place, owner, handle.crash, duties)


class Pool(_StandardPool, metaclass=abc.ABCMeta):  # type: ignore[misc]
    """A pool of worker processes; the interface of `multiprocessing.pool.Pool`. The keyword-only arguments are Shoal's.

    processes: how many; by default one a cpu.
    initializer, initargs: called in each worker before its first task.
    maxtasksperchild: a worker is replaced after so many tasks (chunks).
    context: a multiprocessing context, which says how workers start.
    task_timeout: seconds a single item may run; then its worker is killed and the item fails with `shoal.TaskTimeout`.
    retries: how often an item whose worker died is given out again; past that it fails with `shoal.WorkerDied`.
    worker_memory_limit: private memory (bytes, or text like "500M") above which a worker is replaced after its task.
    worker_exit: called, without arguments, by each worker that ends in order (after close(), or when it is replaced).
    cpus: the cpus that workers are pinned to, in turn: ints, or collections of ints for one worker each.
    threads: of BLAS and OpenMP in each worker; by default the cpus shared out, unless the user's environment
    (OMP_NUM_THREADS and the like) says something.

    `task_timeout` and `retries` are defaults for all calls; the mapping calls and `apply_async` take their own.
    """

    _wrap_exception = True
    _state = "INIT"  # for __del__, if __init__ raises, or never ran

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
        *,
        task_timeout: float | None = None,
        retries: int = 0,
        worker_memory_limit: int | str | None = None,
        worker_exit: Callable[[], object] | None = None,
        cpus: Iterable[int | Iterable[int]] | None = None,
        threads: int | None = None,
    ) -> None:
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
        if worker_exit is not None and not callable(worker_exit):
            raise TypeError("worker_exit must be a callable")
        self._processes = processes
        self._initializer = initializer
        self._initargs = tuple(initargs)
        self._maxtasksperchild = maxtasksperchild
        self._task_timeout = _options.seconds(task_timeout)
        self._retries = _options.retries(retries)
        duties = _serving.Duties(
            initializer=initializer,
            initargs=self._initargs,
            worker_exit=worker_exit,
            max_tasks=maxtasksperchild,
            memory_limit=_options.memory(worker_memory_limit),
            cpus=_options.cpus(cpus),
            threads=_threads.share(processes, threads),
        )
        self._crew = _crew.Crew(
            processes,
            _Starter(self.Process, context, duties),
            foreign_main=_crew.is_main_interactive(),
            forks_with=duties.threads if context.get_start_method() == "fork" else None,
        )
        self._crew.serve(self)  # before the finalizer, which then comes first
        self._terminate = util.Finalize(self, _crew.Crew.terminate, args=(self._crew,), exitpriority=15)
        self._crew.start()
        self._state = RUN

    def __del__(self, _warn: Any = warnings.warn, RUN: str = RUN) -> None:
        if self._state == RUN:
            _warn(f"unclosed running multiprocessing pool {self!r}", ResourceWarning, source=self)

    def __repr__(self) -> str:
        cls = type(self)
        # As in multiprocessing, one that was closed still shows the workers it had.
        size = len(self._pool) if self._state == RUN else self._processes
        return f"<{cls.__module__}.{cls.__qualname__} state={self._state} pool_size={size}>"

    @property
    def _pool(self) -> list[Any]:
        """The worker processes that run now."""
        return [worker for worker in self._crew.processes if worker is not None]

    def _repopulate_pool(self) -> None:
        """Start what is missing now, rather than when the supervisor comes to it."""
        self._crew.refill()

    def _check_running(self) -> None:
        if self._state != RUN:
            raise ValueError("Pool not running")
        if self._crew.broken is not None:
            raise self._crew.why_broken()

    def stats(self) -> list[dict[str, Any]]:
        """What each worker that runs now did so far: its `pid`; `tasks` (chunks) and `items` done; seconds `busy` and
        `idle`; `bytes_in` and `bytes_out`. Shared memory counts with the size of its blocks."""
        return self._crew.numbers()

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
        *,
        task_timeout: float | None = None,
        retries: int | None = None,
    ) -> ApplyResult:
        """Have `func(*args, **kwds)` called in a worker; the callbacks run in a thread of this process."""
        self._check_running()
        crew = self._crew
        retries = self._retries if retries is None else _options.retries(retries)
        limit = self._task_timeout if task_timeout is None else _options.seconds(task_timeout)
        called = None if callback is error_callback is None else _callback(callback, error_callback)
        # A pool that its user dropped ends its workers: not before its results are there, so each holds it.
        try:
            result: ApplyResult | None = crew.engine.call(
                ApplyResult, self, crew.functions, func, args, kwds, retries, called, limit
            )
            if result is None:
                item, mode, shared = crew.call_mode(func, args, kwds)
                result = ApplyResult(
                    crew.engine,
                    (item,),
                    shared,
                    mode,
                    1,
                    retries=retries,
                    callback=called,
                    time_limit=limit,
                    single=True,
                )
                _submit(self, result)
        finally:
            crew.engine.mind()
        return result

    # -- all results at once --

    def map(
        self,
        func: Callable[[Any], Any],
        iterable: Iterable[Any],
        chunksize: int | None = None,
        *,
        progress: Any = False,
        task_timeout: float | None = None,
        retries: int | None = None,
        return_exceptions: bool = False,
    ) -> list[Any]:
        """Apply `func` to each item in the workers; the results in order. The keyword-only arguments are Shoal's.

        chunksize: items a worker takes at once; by default chosen from the measured time of items.
        progress: True: a progress bar (tqdm's); or a callable that gets (items done, items in all or None).
        task_timeout, retries: as the pool's, for this call.
        return_exceptions: an item that fails has its exception as its result, and nothing is raised.

        Raises the first exception of an item, in order of the items, with the remote traceback as its cause.
        """
        options = _options.MapOptions(progress, task_timeout, retries, return_exceptions)
        return self._map(func, iterable, CALL_ONE, chunksize, options)

    def starmap(
        self,
        func: Callable[..., Any],
        iterable: Iterable[Iterable[Any]],
        chunksize: int | None = None,
        *,
        progress: Any = False,
        task_timeout: float | None = None,
        retries: int | None = None,
        return_exceptions: bool = False,
    ) -> list[Any]:
        """Like `map`, but each item is unpacked into arguments."""
        options = _options.MapOptions(progress, task_timeout, retries, return_exceptions)
        return self._map(func, iterable, CALL_STAR, chunksize, options)

    def map_async(
        self,
        func: Callable[[Any], Any],
        iterable: Iterable[Any],
        chunksize: int | None = None,
        callback: Callable[[list[Any]], object] | None = None,
        error_callback: Callable[[BaseException], object] | None = None,
        *,
        progress: Any = False,
        task_timeout: float | None = None,
        retries: int | None = None,
        return_exceptions: bool = False,
    ) -> MapResult:
        """`map` without waiting."""
        options = _options.MapOptions(progress, task_timeout, retries, return_exceptions)
        return self._map_async(func, iterable, CALL_ONE, chunksize, options, callback, error_callback)

    def starmap_async(
        self,
        func: Callable[..., Any],
        iterable: Iterable[Iterable[Any]],
        chunksize: int | None = None,
        callback: Callable[[list[Any]], object] | None = None,
        error_callback: Callable[[BaseException], object] | None = None,
        *,
        progress: Any = False,
        task_timeout: float | None = None,
        retries: int | None = None,
        return_exceptions: bool = False,
    ) -> MapResult:
        """`starmap` without waiting."""
        options = _options.MapOptions(progress, task_timeout, retries, return_exceptions)
        return self._map_async(func, iterable, CALL_STAR, chunksize, options, callback, error_callback)

    def _map(
        self,
        func: Callable[..., Any],
        iterable: Iterable[Any],
        mode: int,
        chunksize: int | None,
        options: _options.MapOptions,
    ) -> list[Any]:
        # What has no length is read as workers take it, in this thread; what has may change meanwhile: a copy.
        items = iter(iterable) if not hasattr(iterable, "__len__") else _as_sequence(iterable)
        result = self._make_map(func, items, mode, chunksize, options)
        try:
            _submit(self, result)
            if options.progress:
                _progress.wait(result, options.progress)
            return result.get()  # type: ignore[no-any-return]
        except BaseException:
            # Ctrl-C, or a progress function that raises: what is left is of no use to anybody.
            self._crew.engine.mind()
            result.cancel()
            raise

    def _map_async(
        self,
        func: Callable[..., Any],
        iterable: Iterable[Any],
        mode: int,
        chunksize: int | None,
        options: _options.MapOptions,
        callback: Callable[[list[Any]], object] | None,
        error_callback: Callable[[BaseException], object] | None,
    ) -> MapResult:
        items = _as_sequence(iterable)
        # As in multiprocessing: the callbacks of a map over nothing are not called.
        called = _callback(callback, error_callback) if len(items) > 0 else None
        result = self._make_map(func, items, mode, chunksize, options, called)
        try:
            _submit(self, result)
        finally:
            self._crew.engine.mind()
        if options.progress:
            _progress.follow(result, options.progress)
        return result

    def _make_map(
        self,
        func: Callable[..., Any],
        items: Any,
        mode: int,
        chunksize: int | None,
        options: _options.MapOptions,
        callback: Callable[[ApplyResult], None] | None = None,
    ) -> MapResult:
        self._check_running()
        if chunksize is not None and chunksize < 1:
            raise ValueError(f"Chunksize must be 1+, not {chunksize!r}")
        shared, owned = self._crew.share(func)
        result: MapResult = MapResult(
            self._crew.engine,
            items,
            shared,
            mode,
            min(chunksize or 0, _CHUNK_MOST),
            values=options.return_exceptions,
            callback=callback,
            owns_shared=owned,
            feeder=_FEEDER_ANY if type(items) in _PROMPT else _FEEDER_CALLER,
            **self._limits(options),
        )
        return result

    def _limits(self, options: _options.MapOptions) -> dict[str, Any]:
        return {
            "retries": self._retries if options.retries is None else options.retries,
            "time_limit": self._task_timeout if options.task_timeout is None else options.task_timeout,
        }

    # -- results as they come --

    def imap(
        self,
        func: Callable[[Any], Any],
        iterable: Iterable[Any],
        chunksize: int = 1,
        *,
        progress: Any = False,
        task_timeout: float | None = None,
        retries: int | None = None,
        return_exceptions: bool = False,
    ) -> IMapIterator:
        """`map` as an iterator over the results, in order; the items are taken as results are read."""
        options = _options.MapOptions(progress, task_timeout, retries, return_exceptions)
        return self._imap(IMapIterator, func, iterable, chunksize, 1, options)

    def imap_unordered(
        self,
        func: Callable[[Any], Any],
        iterable: Iterable[Any],
        chunksize: int = 1,
        *,
        progress: Any = False,
        task_timeout: float | None = None,
        retries: int | None = None,
        return_exceptions: bool = False,
    ) -> IMapIterator:
        """Like `imap`, with the results in the order in which they come."""
        options = _options.MapOptions(progress, task_timeout, retries, return_exceptions)
        return self._imap(IMapUnorderedIterator, func, iterable, chunksize, 2, options)

    def _imap(
        self,
        kind: type[IMapIterator],
        func: Callable[[Any], Any],
        iterable: Iterable[Any],
        chunksize: int,
        iterate: int,
        options: _options.MapOptions,
    ) -> IMapIterator:
        self._check_running()
        if chunksize < 1:
            raise ValueError(f"Chunksize must be 1+, not {chunksize!r}")
        iterator = iter(iterable)
        shared, owned = self._crew.share(func)
        result: IMapIterator = kind(
            self._crew.engine,
            iterator,
            shared,
            CALL_ONE,
            min(chunksize, _CHUNK_MOST),
            iterate=iterate,
            window=max(_WINDOW, 4 * chunksize * self._processes),
            values=options.return_exceptions,
            owns_shared=owned,
            feeder=_FEEDER_ANY if type(iterator) in _NEVER_BLOCK else _FEEDER_OWN,
            **self._limits(options),
        )
        try:
            _submit(self, result)
            if type(iterator) not in _NEVER_BLOCK:
                threading.Thread(target=_feed, args=(result,), name="shoal-feeder", daemon=True).start()
            if options.progress:
                total = len(iterable) if hasattr(iterable, "__len__") else None  # type: ignore[arg-type]
                _progress.follow(result, options.progress, total)
        except BaseException:
            result.cancel()  # nobody takes its items
            result._pool = None  # nor asks for results; but a thread that was not quite started still knows it
            raise
        finally:
            self._crew.engine.mind()
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
        self._crew.terminate()
        self._terminate.cancel()  # only now: Ctrl-C may have interrupted it

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


# It rests on the standard library's Pool. But there it is one: whoever looks for a pool means either.
Pool.register(ThreadPool)


def _submit(pool: Pool, result: Any) -> None:
    # A pool that its user dropped ends its workers: not before its results are there.
    result._pool = pool
    try:
        result.submit()
    except BaseException:
        result.cancel()
        raise


def _feed(result: Any) -> None:
    try:
        result.feed_source()
    except ValueError:  # the pool was closed
        pass


_PROMPT = (list, tuple, range)  # what gives its items without running any code of the user's


def _as_sequence(iterable: Iterable[Any]) -> Sequence[Any]:
    return iterable if type(iterable) in _PROMPT else list(iterable)  # type: ignore[return-value]


class _Starter:
    """Starts workers; it does not know its pool, so that a pool that is dropped can be collected."""

    def __init__(self, make_process: Callable[..., Any], context: Any, duties: _serving.Duties) -> None:
        self._make_process = make_process
        self._context = context
        self._duties = duties

    def _make(self, engine: _engine.Pool, place: int, owner: int, crash: int) -> Any:
        arguments = (_EngineHandle(engine, crash), place, owner, self._duties)
        worker = self._make_process(self._context, target=_worker_main, args=arguments)
        worker.name = worker.name.replace("Process", "PoolWorker")
        worker.daemon = True
        return worker

    def __call__(self, orders: Sequence[tuple[_engine.Pool, int, int, int]]) -> Generator[Any, None, None]:
        workers = [self._make(*order) for order in orders]
        return start_each(workers, self._context.get_start_method() == "fork", _children_allowed)


def start_each(
    workers: Sequence[Any], forks: bool, around: Callable[[], Any] = contextlib.nullcontext
) -> Generator[Any, None, None]:
    """Start processes, one at a time as the next is asked for; those that are forked at one go.

    As these are forked before they are asked for, Ctrl-C waits for the end: what became of each is known then.
    """
    if not forks:
        for worker in workers:
            with around():
                worker.start()
            yield worker
        return
    _threads.prepare_fork()
    mask = _signal.pthread_sigmask(_signal.SIG_BLOCK, ())  # first: the call that blocks it may raise KeyboardInterrupt
    try:
        signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGINT,))
        with Siblings(workers):
            for worker in workers:
                with around():
                    worker.start()
                yield worker
    finally:
        _signal.pthread_sigmask(_signal.SIG_SETMASK, mask)  # raises KeyboardInterrupt if one waited


_family_lock = threading.RLock()  # for moments only: while a worker starts, the collector may end another pool
_starters = 0  # how many threads are in _children_allowed()
_daemonic: Any = None  # what the first of them found


def _after_fork() -> None:
    # A child is forked while a thread is in there.
    global _family_lock, _starters
    _family_lock = threading.RLock()
    if _starters > 0:
        _starters = 0
        _mark_daemonic()


os.register_at_fork(after_in_child=_after_fork)


def _mark_daemonic() -> None:
    current: Any = process.current_process()
    if _daemonic is not None:
        current._config["daemon"] = _daemonic


@contextlib.contextmanager
def _children_allowed() -> Iterator[None]:
    """A worker of a pool is daemonic, so multiprocessing lets it have no children, lest they stay behind when it is
    killed. Workers of a pool of its own do not: they end with it."""
    global _daemonic, _starters
    current: Any = process.current_process()
    with _family_lock:
        if _starters == 0:
            _daemonic = current._config.pop("daemon", None)
        _starters += 1
    try:
        yield
    finally:
        with _family_lock:
            _starters -= 1
            if _starters == 0:
                _mark_daemonic()


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


class ApplyResult(_engine.Job, _StandardApplyResult):  # type: ignore[misc]
    """The result of `apply_async`, perhaps not there yet."""

    __init__ = _engine.Job.__init__  # that of the standard library's would come first otherwise

    def ready(self) -> bool:
        """Whether it is there; does not wait."""
        if not self.wait_ready(0):
            return False
        self._pool = None
        return True

    def successful(self) -> bool:
        """Whether the call returned rather than raised. ValueError while that is not known."""
        if not self.ready():
            raise ValueError(f"{self!r} not ready")
        return self.error is None

    def wait(self, timeout: float | None = None) -> None:
        """Wait until it is there, `timeout` seconds at the most."""
        if self.wait_ready(timeout):
            self._pool = None

    def cancel(self, *, kill: bool = False) -> bool:
        """Take back what no worker has begun: those items fail with `shoal.TaskCancelled`. What workers are at goes
        on, or, with `kill`, their workers are killed (and replaced). Whether there was anything to take back.
        """
        return self.withdraw(TaskCancelled("the task was cancelled"), kill)

    def _value(self) -> Any:
        return self.results()[0]

    __class_getitem__ = classmethod(types.GenericAlias)  # type: ignore[var-annotated]


AsyncResult = ApplyResult


class MapResult(ApplyResult, _StandardMapResult):  # type: ignore[misc]
    """The results of `map_async`, perhaps not all there yet."""

    def _value(self) -> list[Any]:
        return self.results()


class IMapIterator(_engine.Job, _StandardIMapIterator):  # type: ignore[misc]
    """Results of `imap`, as they come."""

    __init__ = _engine.Job.__init__  # that of the standard library's would come first otherwise

    def cancel(self, *, kill: bool = False) -> bool:
        """Take back what no worker has begun, as `AsyncResult.cancel`; results that are there can still be read."""
        return self.withdraw(TaskCancelled("the task was cancelled"), kill)

    def next(self, timeout: float | None = None) -> Any:
        """The next result; multiprocessing.TimeoutError if it does not come within `timeout` seconds."""
        if timeout is None:
            return super().__next__()
        return self.next_within(timeout, TimeoutError)

    __next__ = next  # as in the standard library, by which name both take a timeout


class IMapUnorderedIterator(IMapIterator, _StandardIMapUnorderedIterator):  # type: ignore[misc]
    """Results of `imap_unordered`, as they come."""


# A loop over either goes on without a call of Python's.
_engine.iterate_as_job(IMapIterator)
_engine.iterate_as_job(IMapUnorderedIterator)
