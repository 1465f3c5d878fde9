"""The worker processes of `Parallel`: how they start, which stay for the next call, and when they go.

Clean workers (back-end "loky") come from the zygote and are kept by what they were started with; after some minutes
without work they end, and with them all they and this process hold for them. Forked ones ("multiprocessing") are the
pool's of one call, as what they have of this program is outdated by the next.
"""

from __future__ import annotations

import atexit
import functools
import os
import sys
import threading
import time
import weakref

from shoal import _crew, _engine, _serving
from shoal._crew import Crew
from shoal._start_thread import start_thread
from shoal.errors import WorkerDied
from shoal.joblib import _in_worker

TYPE_CHECKING = False  # typing costs each start of a worker more than the rest of this file
if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Sequence
    from typing import Any

IDLE = 300.0  # seconds after which workers without work end, as loky's do
_CREWS_KEPT = 3  # for calls that differ (n_jobs, initializer …); the one that was used longest ago goes

_crews: dict[tuple[Any, ...], Crew] = {}
# While it is held processes start, and the collector may run a generator's end, which may want a crew. What an end
# itself does takes no lock: another thread may hold it, and wait for what the thread has that collects.
_lock = threading.RLock()
_reaper: threading.Thread | None = None
_reaper_wakes = _crew.Bell()
_ANY_TIME = float("inf")
_reaper_looks = _ANY_TIME  # when it looks again by itself


# ----------------------------------------------------------------- starting processes


class _CleanProcess:
    """A process that the zygote forked, as a crew wants it."""

    def __init__(self, process: _engine.Process) -> None:
        self._process = process

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def exitcode(self) -> int | None:
        try:
            return self._process.poll()
        except ChildProcessError:  # ended, and how is not known: the zygote is gone too
            return -9

    def join(self, timeout: float | None = None) -> None:
        try:
            self._process.wait(timeout)
        except ChildProcessError:
            pass

    def terminate(self) -> None:
        self._signal(15)

    def kill(self) -> None:
        self._signal(9)

    def _signal(self, number: int) -> None:
        try:
            self._process.signal(number)
        except ProcessLookupError:
            pass


def _is_installed() -> bool:
    install = sys.modules.get("shoal._install")
    return install is not None and install.is_installed()


class _Start:
    """Starts the clean workers of one crew. Holds the descriptor with their initializer as long as the crew lives."""

    def __init__(self, threads: int, unsaid: int, of_numba: int, nesting_level: int, begin: bytes) -> None:
        self._threads = (threads, unsaid, of_numba)  # as `_in_worker.main` wants them
        self._level = nesting_level
        self._fd = -1
        if begin:
            self._fd = os.memfd_create("shoal-begin")
            os.write(self._fd, begin)

    def __call__(self, orders: Sequence[tuple[_engine.Pool, int, int, int]]) -> Generator[_CleanProcess, None, None]:
        return (self._start(*order) for order in orders)

    def _start(self, engine: _engine.Pool, place: int, owner: int, crash: int) -> _CleanProcess:
        from shoal import _zygote

        payload = b"%d %d %d %d %d %d %d" % (place, owner, *self._threads, self._level, _is_installed())
        fds = (*engine.fds(), crash) if self._fd < 0 else (*engine.fds(), crash, self._fd)
        return _CleanProcess(_zygote.get().start("shoal.joblib._in_worker:main", payload, fds))

    def __del__(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)


def _beginning(
    initializer: Callable[..., object] | None, initargs: tuple[Any, ...], environment: dict[str, str]
) -> tuple[bytes, bytes]:
    """What workers do first, pickled, and the part of it that tells one kind of workers from another."""
    # A manager's proxies, which tasks may be given, need the program's key.
    managers = "multiprocessing.managers" in sys.modules
    if initializer is None and not environment and not managers:
        return b"", b""
    import pickle

    call = b""
    authkey = b""
    if managers:
        from multiprocessing import process

        authkey = bytes(process.current_process().authkey)
    if initializer is not None:
        from shoal import _pickling

        call = _pickling.dumps_for_foreign_main((initializer, initargs), None)
    return pickle.dumps((authkey, environment, call)), call


# --------------------------------------------------------------- crews that stay


def get_crew(
    n_jobs: int,
    nesting_level: int,
    *,
    threads: int | None = None,
    initializer: Callable[..., object] | None = None,
    initargs: tuple[Any, ...] = (),
    environment: dict[str, str] | None = None,
    idle: float = IDLE,
) -> Use:
    """Clean workers for such calls: those of an earlier call if there are any.

    threads: of the numerical libraries in each; None: the cpus shared out.
    idle: seconds without work after which they end.
    """
    from shoal import _threads, _zygote

    shared = _threads.share(n_jobs, threads)
    numba = os.environ.get("NUMBA_NUM_THREADS")
    key: tuple[Any, ...] = (n_jobs, nesting_level, shared, os.getpid(), _is_installed(), numba)
    begin = b""
    if shared is None:  # the user's variables say it, and may have been changed since
        key += tuple(os.environ.get(name) for name in _threads.VARIABLES)
    if initializer is not None or environment or "multiprocessing.managers" in sys.modules:
        begin, call = _beginning(initializer, initargs, environment or {})
        key += (tuple(sorted((environment or {}).items())), call)
    surplus = []
    with _lock:
        crew = _crews.pop(key, None)
        if crew is not None and (crew.state != _crew.RUN or crew.broken is not None):
            surplus.append(crew)
            crew = None
        is_new = crew is None
        if crew is None:
            # It starts while this process imports what the call itself takes, and pickling a program's own functions.
            _zygote.get().current()
            import opcode  # noqa: F401

            import shoal._functions
            import shoal._pickling
            import shoal.joblib._arrays  # noqa: F401

            unsaid = _threads.fair_share(n_jobs)
            of_numba = threads or (unsaid if numba is None else 0)
            start = _Start(shared or 0, unsaid, of_numba, nesting_level, begin)
            crew = Crew(n_jobs, start, foreign_main=True)
            crew.engine.unreadable = _unreadable
            crew.calls = set()  # type: ignore[attr-defined]  # the ids of its `Use`s
            # By code: the number of a function that workers keep from call to call, and what it is.
            crew.by_value = {}  # type: ignore[attr-defined]
        crew.idle = idle  # type: ignore[attr-defined]
        crew.used = time.monotonic()  # type: ignore[attr-defined]
        other = _crews.pop(key, None)
        if other is not None:  # of what this thread was interrupted by; perhaps it is still in use
            own_key = (*key, id(other))
            _crews[own_key] = other
        try:
            _crews[key] = crew  # the last one: the first is the one used longest ago
            if is_new:
                crew.start()
        except BaseException:
            if is_new:
                crew.terminate()  # Ctrl-C may have come just before, or after, it started
                _crews.pop(key, None)
            raise
        use = Use(crew)  # from here on it is busy: other threads look for what is idle
        surplus += _take_idle(list(_crews.items())[:-_CREWS_KEPT])
    for known in surplus:
        known.terminate()
    look_after(idle)
    return use


def forget_functions(crew: Any) -> bool:
    """Have the workers keep none of the functions that they keep. False: another call may be at it with one of them."""
    with _lock:
        if len(crew.calls) > 1:
            return False
        kept, crew.by_value = crew.by_value, {}
    for number, _ in kept.values():
        crew.engine.unshare(number)
    return True


def _unreadable(error: BaseException) -> BaseException:
    from shoal.joblib import _errors

    return _errors.unreadable(error)


def is_busy(crew: Any) -> bool:
    try:
        return bool(crew.calls) or not crew.engine.idle
    except ValueError:  # closed
        return False


def _take_idle(entries: list[tuple[tuple[Any, ...], Crew]]) -> list[Crew]:
    """Those of these crews that no call has in use, out of the table now. Locked; yet what the collector runs in this
    thread may take one out, too: then it is not ours."""
    return [crew for key, crew in entries if not is_busy(crew) and _crews.pop(key, None) is not None]


class Handle:
    """Workers in use: a call's, or a `with` block's."""

    def __init__(self, crew: Crew) -> None:
        self.crew = crew
        self._futures: weakref.WeakValueDictionary[int, Future] = weakref.WeakValueDictionary()  # by id

    def submit(
        self,
        function: Callable[[], Any],
        callback: Callable[[Any], object] | None,
        sharing: Any,
        *,
        task_timeout: float | None = None,
        retries: int = 0,
    ) -> Future:
        """Have `function()` called by a worker, and `callback` here with the future. sharing: of the call's arrays."""
        future = Future(self.crew, function, callback, sharing, task_timeout, retries)
        self._futures[id(future)] = future
        return future

    def abort(self) -> None:
        """What was submitted and is not done has no use any more."""
        for reference in self._futures.valuerefs():  # all in one step: another thread may be handing out
            future = reference()
            if future is not None:
                future.abort()
        self.end()

    def end(self) -> None:
        """The workers are not in use any more."""


class Use(Handle):
    """Of a crew that stays: while this lives its workers do not end for want of work. Made by `get_crew`."""

    def __init__(self, crew: Any) -> None:
        super().__init__(crew)
        self._ended = False
        crew.calls.add(id(self))

    def end(self) -> None:
        if not self._ended:
            self.crew.used = time.monotonic()  # type: ignore[attr-defined]
            self.crew.calls.discard(id(self))  # type: ignore[attr-defined]
            self._ended = True  # last: where Ctrl-C comes before, it is done once more when this is collected

    __del__ = end


class ForkedWorkers(Handle):
    """Processes of one call or `with` block, started as a multiprocessing context says; forked by default.

    The threads of their numerical libraries are left as they are, as joblib leaves them with this back-end.
    """

    def __init__(
        self,
        n_jobs: int,
        nesting_level: int,
        context: Any,
        *,
        initializer: Callable[..., object] | None,
        initargs: tuple[Any, ...],
        max_tasks: int | None,
    ) -> None:
        from shoal.multiprocessing import pool
        from shoal.multiprocessing.context import _default_context

        if (
            context is None or type(context).__module__ == "multiprocessing.context"
        ):  # one that starts processes as ours
            method = context.get_start_method() if context is not None else None
            context = _default_context.get_context(method)
        duties = _serving.Duties(
            initializer=_in_worker.begin_forked,
            initargs=(nesting_level, initializer, initargs),
            max_tasks=max_tasks,
            keeps_exits=True,
        )
        crew = Crew(
            n_jobs,
            pool._Starter(_make_process, context, duties),
            foreign_main=_crew.is_main_interactive() and context.get_start_method() != "fork",
        )
        super().__init__(crew)
        crew.serve(self)
        self._finalizer = weakref.finalize(self, Crew.terminate, crew)
        crew.start()

    def apply_async(
        self,
        func: Callable[..., Any],
        args: tuple[Any, ...] = (),
        callback: Callable[[Any], object] | None = None,
        error_callback: Callable[[Any], object] | None = None,
    ) -> Future:
        """As a pool's, for back-ends that derive from joblib's."""
        return self.submit(functools.partial(func, *args), callback, None)

    def close(self) -> None:
        pass

    def terminate(self) -> None:
        self._finalizer()

    end = terminate


def _make_process(context: Any, **options: Any) -> Any:
    return context.Process(**options)


def drop_crew(crew: Crew) -> None:
    """End the workers now; what they have not done fails."""
    with _lock:
        for key, known in list(_crews.items()):
            if known is crew:
                _crews.pop(key, None)
    crew.terminate()


def look_after(seconds: float) -> None:
    """Have somebody end what nobody needs any more, some of it in so many seconds."""
    global _reaper
    if _reaper is None or not _reaper.is_alive():
        # Without a lock, which Ctrl-C could leave taken: of two threads that come here at once one replaces what the
        # other has made, and that ends as soon as it sees so.
        _reaper = reaper = threading.Thread(target=_reap, name="shoal-idle-workers", daemon=True)
        start_thread(reaper)  # not at exit, when everything ends anyway
    elif time.monotonic() + seconds < _reaper_looks:  # to wake it costs a call as much as its tasks do
        _reaper_wakes.ring()


def _reap() -> None:
    global _reaper_looks
    while _reaper is threading.current_thread():
        _reaper_wakes.wait(0)  # what it was rung for is looked at now
        _reaper_looks = _ANY_TIME  # whoever comes from here on has it look once more
        now = time.monotonic()
        over = []
        wait = None
        with _lock:
            for key, crew in list(_crews.items()):
                left: float = crew.idle if is_busy(crew) else crew.used + crew.idle - now  # type: ignore[attr-defined]
                if left <= 0:
                    if _crews.pop(key, None) is not None:
                        over.append(crew)
                else:
                    wait = left if wait is None else min(wait, left)
        for crew in over:
            crew.terminate()
        over.clear()
        crew = None  # type: ignore[assignment]
        arrays = sys.modules.get("shoal.joblib._arrays")
        due = arrays.expire(now) if arrays is not None else None
        if due is not None:
            wait = due if wait is None else min(wait, due)
        if wait is None:
            wait = IDLE
        wait = max(wait, 0.05)
        _reaper_looks = now + wait
        _reaper_wakes.wait(wait)
    _reaper_wakes.ring()  # another one has its place, and this one may have taken what that was rung for


@atexit.register
def end_crews() -> None:
    for key, crew in list(_crews.items()):
        if key[3] == os.getpid():
            drop_crew(crew)


def end_idle_crews() -> None:
    """End the workers that no call, and no `with` block, has in use."""
    with _lock:
        idle = _take_idle(list(_crews.items()))
    for crew in idle:
        crew.terminate()


def _forget_crews() -> None:
    # In a child of fork: the crews are the parent's, and a lock may be held by a thread that is not here.
    global _lock, _reaper, _reaper_looks, _reaper_wakes
    _lock = threading.RLock()
    _reaper = None
    _reaper_wakes = _crew.Bell()
    _reaper_looks = _ANY_TIME
    _crews.clear()


os.register_at_fork(after_in_child=_forget_crews)


# ------------------------------------------------------- one call, for back-ends' `submit`


class Future:
    """A call that was handed to a crew; what back-ends return from `submit`."""

    def __init__(
        self,
        crew: Crew,
        function: Callable[[], Any],
        callback: Callable[[Any], object] | None,
        sharing: Any,
        task_timeout: float | None = None,
        retries: int = 0,
    ) -> None:
        from shoal import _pickling

        self._is_done = False
        self._crew = crew
        self._item: tuple[Any, ...] = (function, (), {})  # held: it may be pickled later
        self._job = _engine.Job(
            crew.engine,
            (self._item,),
            0,
            _crew.CALL_WHOLE,
            1,
            retries,
            time_limit=task_timeout,
            single=True,
            callback=None if callback is None else functools.partial(self._call_back, callback),
        )
        _pickling.particular[id(self._item)] = ItemPickler(sharing, function)
        self._job.submit()

    def __del__(self) -> None:
        self._forget()

    def _forget(self) -> None:
        pickling = sys.modules.get("shoal._pickling")
        if pickling is not None:
            pickling.particular.pop(id(self._item), None)

    def _call_back(self, callback: Callable[[Any], object], job: _engine.Job) -> None:
        self._is_done = True  # the job itself is only when its callback has ended
        callback(self)

    def result(self, timeout: float | None = None) -> Any:
        """What the call returned; raises what it raised, or TimeoutError after so many seconds."""
        if not self._is_done and not self._job.wait_ready(timeout):
            raise make_timeout()
        self._forget()
        error = self._job.error
        if error is not None:
            raise see_error(error, self._crew)
        return self._job.results()[0]

    get = result

    def done(self) -> bool:
        return self._is_done or self._job.is_ready

    def abort(self) -> None:
        """Fail it, if it is not done; a worker that runs it is replaced."""
        from shoal.errors import TaskCancelled

        try:
            self._job.withdraw(TaskCancelled("another task failed"), True)
        except (ValueError, RuntimeError):  # its workers have ended
            pass


def see_error(error: BaseException, crew: Crew) -> BaseException:
    """A task's error as its caller is to see it."""
    known = type(error) is WorkerDied or type(error).__name__ == "BrokenProcessPool" or crew.broke_by(error)
    if not known:
        return error
    from shoal.joblib import _errors

    return _errors.see_as_loky(error)


class ItemPickler:
    """Pickles one task: its large arrays are shared, and what cannot be pickled is said to be a task."""

    __slots__ = ("_function", "_habits", "_sharing")

    def __init__(self, sharing: Any, function: Any, habits: set[str] | None = None) -> None:
        self._habits = habits
        self._sharing = sharing
        self._function = function

    def __call__(self, item: Any, buffer_callback: Any, foreign_main: bool) -> bytes:
        from shoal import _pickling

        table = None
        if self._sharing is not None and "numpy" in sys.modules:
            table = self._sharing.table(_pickling._reducers())
        try:
            return _pickling.dumps_with(item, buffer_callback, foreign_main, table, self._habits)
        except Exception as error:
            import pickle

            name = getattr(self._function, "__qualname__", None) or type(self._function).__qualname__
            # By name it could not go, as lambdas cannot: what keeps it from going by value is what the user can mend.
            why = error.__context__ if isinstance(error.__context__, Exception) else error
            raise pickle.PicklingError(
                f"Could not pickle the task to send to the workers: a call of {name}: {type(why).__name__}: {why}"
            ) from error


class FunctionPickler(ItemPickler):
    """What stands for a function that is shared by value: pickled, it is that function."""

    __slots__ = ()

    def __call__(self, item: Any, buffer_callback: Any, foreign_main: bool) -> bytes:
        return super().__call__(self._function, buffer_callback, foreign_main)


def make_timeout() -> Exception:
    """What a wait that took too long raises: the standard library's error, by both of its names."""
    made: Exception = _timeout_class()()
    return made


@functools.lru_cache(None)
def _timeout_class() -> Any:
    import builtins
    import multiprocessing

    return type("TimeoutError", (multiprocessing.TimeoutError, builtins.TimeoutError), {"__module__": __name__})
