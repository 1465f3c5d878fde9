"""`concurrent.futures` on Shoal's engine: `ProcessPoolExecutor`.

Who completes a future: a thread that waits in `result()` or `exception()` collects by itself, so a call costs no switch
of threads. One that has callbacks, or that `wait()` or `as_completed()` looks after, is completed by the supervisor
thread, which alone runs callbacks. Any other is completed when it is looked at.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
import weakref
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import _base, process
from concurrent.futures._base import as_completed, wait
from concurrent.futures.process import BrokenProcessPool
from typing import Any

from shoal import _crew, _engine, _options, _progress, _serving, _threads, errors
from shoal._crew import CALL_ONE, CALL_STAR, CLOSE, RUN, TERMINATE
from shoal._start_thread import start_thread
from shoal.errors import TaskCancelled
from shoal.multiprocessing.pool import _Descriptors, _EngineHandle, start_each

__all__ = ["BrokenProcessPool", "Future", "ProcessPoolExecutor", "WorkerDied", "as_completed", "wait"]

_BROKEN = "A child process terminated abruptly, the process pool is not usable anymore"
_BROKEN_PENDING = "A process in the process pool was terminated abruptly while the future was running or pending."
_SHUT = "cannot schedule new futures after shutdown"
_EXITING = "cannot schedule new futures after interpreter shutdown"
_INITIALIZING = b"in the initializer of the worker:\n"  # lies where a crash would, as long as the initializer runs

_CANCELLED = TaskCancelled("the future was cancelled")
_DONE = (_base.CANCELLED, _base.CANCELLED_AND_NOTIFIED, _base.FINISHED)


class WorkerDied(errors.WorkerDied, BrokenProcessPool):
    """The worker that held the call died before it had its result. The executor goes on with another one.

    It is `BrokenProcessPool` too, for programs that look for that.
    """


def _unreadable(error: BaseException) -> BaseException:
    """The error of a call that raised this when it, or its result, was unpickled: what concurrent.futures breaks the
    whole executor with, for this call alone."""
    broken = BrokenProcessPool(f"a call or its result could not be unpickled: {type(error).__name__}: {error}")
    broken.__cause__ = error
    return broken


def _outcome(error: BaseException) -> BaseException:
    """What users of an executor are to see of a job's error."""
    if error.__cause__ is not None:  # raised in a worker, by the user's own code
        return error
    if type(error) is errors.WorkerDied:
        return WorkerDied(*error.args)
    if isinstance(error, TaskCancelled):
        return _base.CancelledError()
    return error


# --------------------------------------------------------------------------- in the worker


def _worker_main(handle: _EngineHandle | _Descriptors, place: int, owner: int, duties: _serving.Duties) -> None:
    from multiprocessing import current_process

    # It ends with its parent like a daemon, but tasks may start processes of their own.
    current_process()._config["daemon"] = False  # type: ignore[attr-defined]
    duties.remote_error, duties.unsendable = _remote_error, _unsendable
    if duties.initializer is not None:
        duties.initializer, duties.initargs = _initialize, (handle.crash, duties.initializer, duties.initargs)
    _serving.serve(handle.engine, place, owner, handle.crash, duties)


def _remote_error(error: BaseException) -> Any:
    return process._ExceptionWithTraceback(error, error.__traceback__)  # type: ignore[arg-type]


def _unsendable(error: BaseException, value: object) -> Any:
    return _remote_error(error)


def _initialize(crash: int, initializer: Callable[..., object], initargs: tuple[Any, ...]) -> None:
    os.write(crash, _INITIALIZING)
    try:
        _serving.call_initializer(initializer, initargs)
    except BaseException:
        import traceback

        _base.LOGGER.critical("Exception in initializer:", exc_info=True)
        os.write(crash, traceback.format_exc().encode(errors="backslashreplace"))
        raise SystemExit(1) from None
    os.ftruncate(crash, 0)
    os.lseek(crash, 0, os.SEEK_SET)


def _starter(context: Any, duties: _serving.Duties) -> _crew.StartWorkers:
    """What starts a worker; it does not know its executor, so that one that is dropped can be collected."""

    def make(engine: _engine.Pool, place: int, owner: int, crash: int) -> Any:
        arguments = (_EngineHandle(engine, crash), place, owner, duties)
        return context.Process(target=_worker_main, args=arguments, daemon=True)

    def start(orders: Sequence[tuple[_engine.Pool, int, int, int]]) -> Generator[Any, None, None]:
        return start_each([make(*order) for order in orders], context.get_start_method(allow_none=False) == "fork")

    return start


# -------------------------------------------------------------------------------- the crew


class _Crew(_crew.Crew):
    """A crew that finishes its work and ends by itself once it is closed, whether or not somebody waits for that."""

    def __init__(self, size: int, start: _crew.StartWorkers, **options: Any) -> None:
        self.ended = False  # no callback is run any more
        super().__init__(size, start, **options)
        self.engine.unreadable = _unreadable

    def start(self) -> None:
        _alive.add(self)
        try:
            super().start()
        except BaseException:
            _alive.discard(self)
            raise

    def grow_for(self, tasks: int) -> None:
        """So many more tasks are about to be handed out: start workers for them where none is idle."""
        for _ in range(self.wanted, min(self.size, self.engine.outstanding + tasks)):
            try:
                self.grow()
            except OSError:  # those that there are will do
                return

    def cancel_pending(self) -> None:
        """Cancel what no worker has begun."""
        for job in {id(job): job for job in self.engine.jobs()}.values():
            job.recall(_CANCELLED)

    def join(self) -> None:
        """Wait until all is done, callbacks too, and the workers have ended; close() or terminate() came before. Ctrl-C
        ends them."""
        thread = self._thread
        if thread is None or thread is threading.current_thread():
            return
        try:
            while thread.is_alive():
                try:
                    self.engine.wait_idle()
                    self.engine.call_supervisor()
                except ValueError:  # closed by the supervisor, which is about to end
                    pass
                thread.join(0.1)
            helper = self._helper
            if helper is not None and helper is not threading.current_thread():
                self._help_wanted.ring()  # it ends; a callback that it runs is waited for
                helper.join()
        except KeyboardInterrupt:
            self.terminate()
            raise

    def _end_forsaken(self) -> None:
        """Nobody will hand out work any more: what there is is done. By the helper: it may take encoding arguments."""
        if self.state == RUN:
            self._call_helper()

    def _close_if_forsaken(self) -> None:
        if self.engine.forsaken:
            self.close()

    def _see_to_workers(self) -> None:
        try:
            super()._see_to_workers()
        except BaseException as error:
            with self._lock:
                self._break(error)

    def _finish(self) -> None:
        try:
            self._call_back()
            self.ended = True
            self._call_back()  # for whoever did not see yet that it has ended
        finally:
            self.ended = True
            if self.state != TERMINATE or self.engine.forsaken:  # else terminate() closes
                with self._lock:
                    self._close()
            if self._helper is None:
                _alive.discard(self)
            else:
                self._help_wanted.ring()  # it ends, after the callback that it may be running

    def _help(self) -> None:
        super()._help()
        _alive.discard(self)

    def _call_back(self) -> None:
        try:
            while due := self.engine.pump():
                self._run_callbacks(due)
        except ValueError:  # closed
            pass

    def _bury(self, place: int) -> None:
        worker = self.processes[place]
        if worker is not None and self.broken is None and self.state != TERMINATE:
            worker.join(5)
            # A worker that was killed from outside while it began is replaced.
            if worker.exitcode not in (-signal.SIGKILL, -signal.SIGTERM):
                words = self._words_of_initializer(place)
                if words is not None:
                    self._break(process._RemoteTraceback(f"\n'''\n{words}'''"))  # type: ignore[arg-type]
                    return
        super()._bury(place)

    def _words_of_initializer(self, place: int) -> str | None:
        crash = self._crashes[place]
        left = os.pread(crash, 20_000, 0) if crash >= 0 else b""
        return left.decode(errors="replace") if left.startswith(_INITIALIZING) else None

    def _break(self, error: BaseException) -> None:
        self._restarts = False
        self.broken = error
        pending = BrokenProcessPool(_BROKEN_PENDING)
        pending.__cause__ = error
        try:
            self.engine.abandon(pending)
        except ValueError:  # closed
            pass
        self._signal_all()
        self._bury_all()
        if self.state != TERMINATE:
            self.state = CLOSE  # the supervisor ends


_alive: set[_Crew] = set()  # crews whose work, callbacks too, the end of the interpreter waits for
_exiting = False


def _finish_at_exit() -> None:
    """Before the interpreter waits for its threads: what was submitted is done, but for after a Ctrl-C."""
    global _exiting
    _exiting = True
    interrupted = getattr(sys, "last_type", None) is KeyboardInterrupt and not hasattr(sys, "ps1")
    for crew in list(_alive):
        if interrupted:
            crew.terminate()
        else:
            crew.close()
            crew.join()


threading._register_atexit(_finish_at_exit)  # type: ignore[attr-defined]
os.register_at_fork(after_in_child=_alive.clear)  # they are the parent's


# ------------------------------------------------------------------------------ the future


class Future(_base.Future):  # type: ignore[type-arg]
    """The result of `submit`, perhaps not there yet; a `concurrent.futures.Future`.

    What the functions of `concurrent.futures` look at (the condition, the state, the list of waiters) are properties
    here: looking brings the future up to date, and asking for the waiters has the supervisor thread see to it.
    """

    # What most futures never change, so that making one costs little. The first three are the base's.
    _result: Any = None
    _exception: BaseException | None = None
    _done_callbacks: Sequence[Callable[[Any], object]] = ()
    _status = _base.PENDING
    _made_condition: threading.Condition | None = None
    _watchers: list[Any] | None = None
    _watched = False

    def __init__(self, job: _engine.Job, crew: _Crew) -> None:
        # The condition's. Taken by itself here: a condition's methods are Python's, and Ctrl-C in one of them would
        # leave it taken.
        self._lock = threading.RLock()
        self._job: _engine.Job | None = job  # until its outcome was taken over
        self._crew: _Crew | None = crew

    # -- what concurrent.futures looks at --

    @property
    def _condition(self) -> threading.Condition:  # type: ignore[override]
        self._look()
        with self._lock:
            if self._made_condition is None:
                self._made_condition = threading.Condition(self._lock)
        return self._made_condition

    @property
    def _state(self) -> str:
        self._look()
        if self._status == _base.PENDING and self._job is not None and self._job.begun:
            return _base.RUNNING
        return self._status

    @_state.setter
    def _state(self, state: str) -> None:
        self._status = state

    @property
    def _waiters(self) -> list[Any]:  # type: ignore[override]
        with self._lock:
            self._watch()
            if self._watchers is None:
                self._watchers = []
        return self._watchers

    def _look(self) -> None:
        """Take over the outcome if it is there; not while this thread holds the condition, under which a future keeps
        its state."""
        job = self._job
        if job is None or self._lock._is_owned():  # type: ignore[attr-defined]
            return
        try:
            if job.wait_ready(0):
                self._take_over(job)
        except (ValueError, RuntimeError):  # another process's
            pass

    def _watch(self) -> None:
        """Have the supervisor thread complete this future, also if nobody looks at it."""
        with self._lock:
            job, crew = self._job, self._crew
            if job is None or crew is None or self._watched:
                return
            self._watched = True
            try:
                job.watch(self._complete)
                late = crew.ended
            except (ValueError, RuntimeError):
                late = True
            if late and crew._owner == os.getpid():  # done, and the supervisor has gone since this thread looked
                thread = threading.Thread(target=self._complete, args=(job,), name="shoal-callbacks", daemon=True)
                if not start_thread(thread):
                    self._complete(job)

    def _complete(self, job: _engine.Job) -> None:
        """Called by the supervisor once the job is done."""
        self._take_over(job)
        self._call_back()

    def _take_over(self, job: _engine.Job) -> None:
        """The job is done: its outcome is this future's, and whoever waits is told. The first one to come does it."""
        with self._lock:
            if self._job is None:
                return
            self._job = self._crew = None
            error = job.error
            if error is None:
                self._result = job.results()[0]
                self._end(_base.FINISHED, "add_result")
                return
            error = _outcome(error)
            if isinstance(error, _base.CancelledError) and error.__cause__ is None:
                self._end(_base.CANCELLED_AND_NOTIFIED, "add_cancelled")
            else:
                self._exception = error
                self._end(_base.FINISHED, "add_exception")

    def _end(self, state: str, tell: str) -> None:
        self._status = state
        for waiter in self._watchers or ():
            getattr(waiter, tell)(self)
        if self._made_condition is not None:
            self._made_condition.notify_all()

    def _call_back(self) -> None:
        with self._lock:
            callbacks, self._done_callbacks = self._done_callbacks, ()
        for callback in callbacks:
            self._call(callback)

    def _call(self, callback: Callable[[Any], object]) -> None:
        try:
            callback(self)
        except Exception:
            _base.LOGGER.exception("exception calling callback for %r", self)

    # -- the interface, where it is not the base's --

    def cancel(self) -> bool:
        """Take the call back if no worker has begun it. Whether the future is cancelled."""
        self._look()
        with self._lock:
            if self._status in (_base.CANCELLED, _base.CANCELLED_AND_NOTIFIED):
                return True
            job = self._job
            if job is None:
                return False
            try:
                if not job.recall(_CANCELLED):
                    return False
            except (ValueError, RuntimeError):  # another process's
                return False
            self._job = self._crew = None
            self._end(_base.CANCELLED_AND_NOTIFIED, "add_cancelled")
        self._call_back()
        return True

    def add_done_callback(self, fn: Callable[[Any], object]) -> None:
        """Have `fn(future)` called once the future is done or cancelled, by a thread of this process; now, if it is."""
        self._look()
        with self._lock:
            if self._status not in _DONE:
                self._done_callbacks = (*self._done_callbacks, fn)
                self._watch()
                return
        self._call(fn)

    def result(self, timeout: float | None = None) -> Any:
        """Wait and return what the call returned, or raise what it raised.

        concurrent.futures.TimeoutError: it is not done after `timeout` seconds; CancelledError: it was cancelled.
        """
        try:
            self._wait(timeout)
            if self._status == _base.FINISHED and self._exception is None:
                return self._result
            return super().result(0)
        finally:
            del self  # the exception's traceback refers to this frame

    def exception(self, timeout: float | None = None) -> BaseException | None:
        """Wait and return what the call raised, or None. Raises as `result` where there is no outcome."""
        self._wait(timeout)
        return super().exception(0)

    def _wait(self, timeout: float | None) -> None:
        job = self._job
        if job is None:
            return
        if not job.wait_ready(timeout):
            raise _base.TimeoutError()
        self._take_over(job)


# ---------------------------------------------------------------------------- the executor


def _default_context(method: str | None) -> Any:
    """Where the program names no context: the one that it has set, in multiprocessing or in shoal.multiprocessing."""
    import multiprocessing

    installed = sys.modules.get("shoal._install")
    if installed is not None and installed._undo:
        return multiprocessing.get_context(method)
    from shoal.multiprocessing.context import _default_context as ours

    if method is None and ours._actual_context is None:
        method = multiprocessing.get_start_method(allow_none=True) or ours._default_context.get_start_method()  # type: ignore[attr-defined]
    return ours.get_context(method)


_executors: weakref.WeakSet[ProcessPoolExecutor] = weakref.WeakSet()


def _free_locks() -> None:
    """In a child of fork: an executor of the parent's may have been in use by a thread that is not here."""
    for executor in _executors:
        executor._shutdown_lock = threading.RLock()  # type: ignore[assignment]


os.register_at_fork(after_in_child=_free_locks)


class ProcessPoolExecutor(process.ProcessPoolExecutor):
    """An executor of worker processes; the interface of `concurrent.futures.ProcessPoolExecutor`.

    max_workers: how many; by default one a cpu. With "fork" they start at the first call, else as they are needed.
    mp_context: a multiprocessing context, which says how workers start.
    initializer, initargs: called in each worker before its first call. If it fails, the executor is broken.
    max_tasks_per_child: a worker is replaced after so many calls (chunks of `map`); not with "fork".

    The other arguments are Shoal's, as those of `shoal.multiprocessing.Pool`: task_timeout and retries of each call,
    worker_memory_limit, worker_exit, cpus, threads.

    A worker that dies fails the call that it held, with `shoal.WorkerDied`, which is `BrokenProcessPool` as well; it is
    replaced, and the other calls go on. A call that cannot be unpickled in its worker, or whose result cannot be here,
    fails alone with `BrokenProcessPool`, and what was raised as its cause. The executor as a whole is broken only when
    an initializer fails, or workers cannot be started any more. Leaving the `with` block by Ctrl-C ends the workers at
    once.
    """

    def __init__(
        self,
        max_workers: int | None = None,
        mp_context: Any = None,
        initializer: Callable[..., object] | None = None,
        initargs: Iterable[Any] = (),
        *,
        max_tasks_per_child: int | None = None,
        task_timeout: float | None = None,
        retries: int = 0,
        worker_memory_limit: int | str | None = None,
        worker_exit: Callable[[], object] | None = None,
        cpus: Iterable[int | Iterable[int]] | None = None,
        threads: int | None = None,
    ) -> None:
        if max_workers is None:
            max_workers = getattr(os, "process_cpu_count", os.cpu_count)() or 1
        elif max_workers <= 0:
            raise ValueError("max_workers must be greater than 0")
        if mp_context is None:
            mp_context = _default_context(None if max_tasks_per_child is None else "spawn")
        if initializer is not None and not callable(initializer):
            raise TypeError("initializer must be a callable")
        if worker_exit is not None and not callable(worker_exit):
            raise TypeError("worker_exit must be a callable")
        if max_tasks_per_child is not None:
            if not isinstance(max_tasks_per_child, int):
                raise TypeError("max_tasks_per_child must be an integer")
            if max_tasks_per_child <= 0:
                raise ValueError("max_tasks_per_child must be >= 1")
            if mp_context.get_start_method(allow_none=False) == "fork":
                raise ValueError(
                    "max_tasks_per_child is incompatible with the 'fork' multiprocessing start method; "
                    "supply a different mp_context."
                )
        self._max_workers: int = max_workers
        self._mp_context: Any = mp_context
        self._initializer: Any = initializer
        self._initargs = tuple(initargs)
        self._max_tasks_per_child = max_tasks_per_child
        self._task_timeout = _options.seconds(task_timeout)
        self._retries = _options.retries(retries)
        self._duties = _serving.Duties(
            initializer=initializer,
            initargs=self._initargs,
            worker_exit=worker_exit,
            max_tasks=max_tasks_per_child,
            memory_limit=_options.memory(worker_memory_limit),
            cpus=_options.cpus(cpus),
            threads=_threads.share(max_workers, threads),
            keeps_exits=True,
            unreadable=_unreadable,
        )
        self._crew: _Crew | None = None
        self._starting = 0  # the thread that starts the first workers
        self._shutdown_thread = False
        # Encoding arguments runs the user's code, which may come back here.
        self._shutdown_lock = threading.RLock()  # type: ignore[assignment]
        _executors.add(self)

    def _ready_crew(self) -> _Crew:
        """The crew that takes work, started if need be. Locked."""
        crew = self._crew
        if crew is not None and crew.broken is not None:
            raise BrokenProcessPool(_BROKEN) from crew.broken
        if self._shutdown_thread:
            raise RuntimeError(_SHUT)
        if _exiting:
            raise RuntimeError(_EXITING)
        if crew is None:
            # As in the standard library: with "fork" all at once, before there are threads; else as they are needed.
            forks = self._mp_context.get_start_method(allow_none=False) == "fork"
            crew = _Crew(
                self._max_workers,
                _starter(self._mp_context, self._duties),
                foreign_main=_crew.is_main_interactive(),
                begin=None if forks else 1,
                forks_with=self._duties.threads if forks else None,
            )
            crew.serve(self)
            try:
                self._starting, self._crew = threading.get_ident(), crew  # before: workers that are forked know it
                crew.start()
            except BaseException:
                crew.terminate()
                self._crew = None
                raise
            finally:
                self._starting = 0
            if self._shutdown_thread:  # by a signal's handler
                raise RuntimeError(_SHUT)
        return crew

    def _submit_job(self, crew: _Crew, job: _engine.Job) -> None:
        try:
            job.submit()
        except ValueError:  # it was ended between
            if crew.broken is not None:
                raise BrokenProcessPool(_BROKEN) from crew.broken
            raise RuntimeError(_SHUT) from None

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future:
        """Have `fn(*args, **kwargs)` called in a worker."""
        with self._shutdown_lock:
            crew = self._ready_crew()
            if crew.wanted < crew.size:
                crew.grow_for(1)
            item, mode, shared = crew.call_mode(fn, args, kwargs)
            job = _engine.Job(
                crew.engine, (item,), shared, mode, 1, retries=self._retries, time_limit=self._task_timeout
            )
            self._submit_job(crew, job)
            return Future(job, crew)

    def map(
        self,
        fn: Callable[..., Any],
        *iterables: Iterable[Any],
        timeout: float | None = None,
        chunksize: int = 1,
        progress: Any = False,
        task_timeout: float | None = None,
        retries: int | None = None,
        return_exceptions: bool = False,
    ) -> Iterator[Any]:
        """Apply `fn` to the items of the iterables, which are read now; an iterator over the results, in order.

        timeout: seconds from now after which a result that is not there raises concurrent.futures.TimeoutError.
        chunksize: items that a worker takes at once.
        progress: True: a progress bar (tqdm's); or a callable that gets (items done, items in all).
        task_timeout, retries: as the executor's, for this call.
        return_exceptions: an item that fails has its exception as its result, and the others come after it.

        An item that fails ends the iterator with its exception, with the remote traceback as its cause. What no worker
        has begun when the iterator ends or is dropped is cancelled.
        """
        end_time = None if timeout is None else time.monotonic() + timeout
        if chunksize < 1:
            raise ValueError("chunksize must be >= 1.")
        options = _options.MapOptions(progress, task_timeout, retries, return_exceptions)
        if type(self).submit is not ProcessPoolExecutor.submit:
            # A sub-class that has its own way of submitting: its map must go that way.
            return super().map(fn, *iterables, timeout=timeout, chunksize=chunksize)
        items = list(iterables[0]) if len(iterables) == 1 else list(zip(*iterables))  # noqa: B905
        with self._shutdown_lock:
            crew = self._ready_crew()
            try:
                shared, owned = crew.share(fn)
            except Exception as error:
                return _raising(error)
            job = _MapJob(
                crew.engine,
                items,
                shared,
                CALL_ONE if len(iterables) == 1 else CALL_STAR,
                min(chunksize, 2**31),
                retries=self._retries if options.retries is None else options.retries,
                iterate=1,
                values=options.return_exceptions,
                owns_shared=owned,
                time_limit=self._task_timeout if options.task_timeout is None else options.task_timeout,
            )
            crew.grow_for(-(-len(items) // chunksize))
            self._submit_job(crew, job)
        if options.progress:
            _progress.follow(job, options.progress, len(items))
        return _results(job, end_time, options.return_exceptions)

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Take no more work; the workers end when all is done.

        wait: return when they have.
        cancel_futures: cancel what no worker has begun.
        """
        with self._shutdown_lock:
            self._shutdown_thread = True
            crew = self._crew
            if crew is None or crew._owner != os.getpid():
                return
            if cancel_futures:
                crew.cancel_pending()
            crew.close()
        # A signal's handler in the thread that starts the workers would wait for itself.
        if wait and self._starting != threading.get_ident():
            crew.join()

    def __exit__(self, exc_type: Any, exc_val: Any, exc_tb: Any) -> None:
        if exc_type is not None and issubclass(exc_type, KeyboardInterrupt) and self._crew is not None:
            self._crew.terminate()
        self.shutdown(wait=True)

    # -- what programs reach for, though it is private --

    @property
    def _processes(self) -> dict[int, Any] | None:  # type: ignore[override]
        """The worker processes that run now, by pid; None once the executor was shut down."""
        crew = self._crew
        if self._shutdown_thread:
            return None
        if crew is None:
            return {}
        with crew.hold():  # one that is just being replaced is there before it is looked for
            running = [worker for worker in crew.processes if worker is not None]
        return {worker.pid: worker for worker in running if worker.pid is not None}

    @property
    def _broken(self) -> str | bool:  # type: ignore[override]
        return _BROKEN if self._crew is not None and self._crew.broken is not None else False

    @property
    def _call_queue(self) -> _CallQueue | None:  # type: ignore[override]
        return None if self._shutdown_thread else _CallQueue()

    @property
    def _executor_manager_thread(self) -> threading.Thread | None:  # type: ignore[override]
        return None if self._crew is None or self._shutdown_thread else self._crew._thread


class _CallQueue:
    """Stands where concurrent.futures has the queue to its workers. Calls are handed out by the thread that submits
    them, so there is no thread of the queue's that could be waited for."""

    def join_thread(self) -> None:
        """Return at once: what was submitted is handed out already."""

    def close(self) -> None:
        """Nothing to close: shutdown() does it all."""


class _MapJob(_engine.Job):
    """The job of one `map`; unlike its base it can be referred to weakly, as showing its progress does."""


def _raising(error: Exception) -> Iterator[Any]:
    """Results of a call whose function cannot be sent."""
    raise error
    yield


def _results(job: _engine.Job, end_time: float | None, values: bool) -> Iterator[Any]:
    # No name is bound to a result here: it is the reader's alone.
    try:
        if end_time is None and not values:
            yield from job
            if job.error is not None:
                raise job.error  # an item's StopIteration, which is a RuntimeError as of any generator
            return
        late = _base.TimeoutError  # another class than the built-in one before Python 3.11
        while True:
            try:
                timeout = None if end_time is None else end_time - time.monotonic()
                yield _value(job.next_within(timeout, late)) if values else job.next_within(timeout, late)
            except StopIteration:
                if job.error is not None:
                    raise
                return
    except (errors.WorkerDied, TaskCancelled) as error:
        raise _outcome(error) from error.__cause__
    finally:
        try:
            job.recall(_CANCELLED)
        except (ValueError, RuntimeError):  # closed, or another process's
            pass


def _value(value: Any) -> Any:
    return _outcome(value) if isinstance(value, BaseException) else value


if (_install := sys.modules.get("shoal._install")) is not None:
    _install.patch_futures()
