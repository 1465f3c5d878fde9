"""`joblib.Parallel` and `delayed` on Shoal's engine.

The default back-end runs tasks in clean processes that a zygote forks and that stay for the next call; what a function
needs of `__main__` goes to them by value. `multiprocessing` forks this program, `threading` uses threads,
`sequential` none.
"""

from __future__ import annotations

import atexit
import builtins
import functools
import os
import sys
import threading
import time
from math import floor, log10

from shoal import _crew, _engine
from shoal._crew import CALL_NAMED, Crew

TYPE_CHECKING = False  # typing costs each start of a worker more than the rest of this file
if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterable, Iterator
    from typing import Any

    Task = tuple[Callable[..., Any], tuple[Any, ...], dict[str, Any]]

__all__ = ["Parallel", "delayed"]

_BACKENDS = ("loky", "multiprocessing", "threading", "sequential")
_SHARED_FUNCTIONS = 64  # functions of one call that are sent once; past that they are sent with each task

_in_worker = False
_crews: dict[tuple[int, str, int], Crew] = {}
_crews_lock = threading.Lock()


def delayed(function: Callable[..., Any]) -> Callable[..., Task]:
    """Capture a call: `delayed(f)(x, y=1)` is the task of calling `f(x, y=1)`, for `Parallel`."""

    def delayed_function(*args: Any, **kwargs: Any) -> Task:
        return function, args, kwargs

    try:
        return functools.wraps(function)(delayed_function)
    except AttributeError:  # a callable without the attributes of a function
        return delayed_function


# ------------------------------------------------------------------- worker processes


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


def _clean_main(payload: bytes, fds: tuple[int, ...]) -> int:
    """What a worker that the zygote forked runs."""
    global _in_worker
    _in_worker = True
    place, owner, threads = (int(number) for number in payload.split())
    table, heap, attention, crash = fds
    _crew.serve((table, heap, attention), place, owner, crash, _crew.Duties(threads=threads or None))
    return 0


def _start_clean(threads: int | None, engine: _engine.Pool, place: int, owner: int, crash: int) -> _CleanProcess:
    from shoal import _zygote

    payload = b"%d %d %d" % (place, owner, threads or 0)
    fds = (*engine.fds(), crash)
    return _CleanProcess(_zygote.get().start("shoal.joblib.parallel:_clean_main", payload, fds))


def _forked_main(engine: _engine.Pool, place: int, owner: int, crash: int, threads: int | None) -> None:
    global _in_worker
    _in_worker = True
    _crew.serve(engine, place, owner, crash, _crew.Duties(threads=threads))


def _start_forked(threads: int | None, engine: _engine.Pool, place: int, owner: int, crash: int) -> Any:
    from shoal.multiprocessing.context import _default_context

    process = _default_context.get_context("fork").Process(
        target=_forked_main, args=(engine, place, owner, crash, threads), daemon=True
    )
    process.start()
    return process


def _get_crew(n_jobs: int, backend: str) -> Crew:
    """The crew for such calls, kept from the last one if there was one."""
    key = (n_jobs, backend, os.getpid())
    with _crews_lock:
        crew = _crews.get(key)
        if crew is None or crew.state != _crew.RUN or crew.broken is not None:
            from shoal import _threads

            start = _start_clean if backend == "loky" else _start_forked
            threads = _threads.share(n_jobs)
            clean = backend == "loky"
            crew = Crew(
                n_jobs,
                functools.partial(start, threads),
                foreign_main=clean,
                forks_with=None if clean else threads,
            )
            _crews[key] = crew
        return crew


def _drop_crew(crew: Crew) -> None:
    with _crews_lock:
        for key, known in list(_crews.items()):
            if known is crew:
                del _crews[key]
    crew.terminate()


@atexit.register
def _end_crews() -> None:
    for key, crew in list(_crews.items()):
        if key[2] == os.getpid():
            _drop_crew(crew)


def _forget_crews() -> None:
    # In a child of fork: the crews are the parent's, and a lock may be held by a thread that is not here.
    global _crews_lock
    _crews_lock = threading.Lock()
    _crews.clear()


os.register_at_fork(after_in_child=_forget_crews)


# ---------------------------------------------------------------------------- Parallel


def _count_jobs(n_jobs: int | None) -> int:
    if n_jobs is None:
        return 1
    n_jobs = int(n_jobs)
    if n_jobs == 0:
        raise ValueError("n_jobs == 0 in Parallel has no meaning")
    return max((os.cpu_count() or 1) + 1 + n_jobs, 1) if n_jobs < 0 else n_jobs


class Parallel:
    """Run many calls over the cores of the machine; the interface of `joblib.Parallel`.

    n_jobs: processes (or threads); -1: one a cpu; None or 1: run in this thread.
    backend: "loky" (clean processes that stay for the next call; the default), "multiprocessing" (forks),
    "threading", "sequential".
    return_as: "list", "generator" or "generator_unordered".
    verbose: above 0, progress lines; above 50 on stdout.
    timeout: seconds to wait for each result.
    batch_size: calls a worker takes at once; "auto": chosen from their measured time.
    prefer: "processes" or "threads", where backend is not given; require: "sharedmem" for threads.

    A call raises the first exception of a task, in order, with the remote traceback as its cause. A worker that dies
    fails the task
    it held with `shoal.WorkerDied`.
    """

    def __init__(
        self,
        n_jobs: int | None = None,
        backend: str | None = None,
        return_as: str = "list",
        verbose: int = 0,
        timeout: float | None = None,
        pre_dispatch: int | str = "2 * n_jobs",
        batch_size: int | str = "auto",
        temp_folder: str | None = None,
        max_nbytes: int | str | None = "1M",
        mmap_mode: str | None = "r",
        prefer: str | None = None,
        require: str | None = None,
        **backend_kwargs: Any,
    ) -> None:
        if return_as not in ("list", "generator", "generator_unordered"):
            raise ValueError(
                'Expected `return_as` parameter to be a string equal to "list","generator" or "generator_unordered", '
                f"but got {return_as} instead."
            )
        if batch_size != "auto" and not (isinstance(batch_size, int) and batch_size > 0):
            raise ValueError(f"batch_size must be 'auto' or a positive integer, got: {batch_size!r}")
        if prefer not in (None, "processes", "threads"):
            raise ValueError(
                f"prefer={prefer} is not a valid backend hint, expected one of ('processes', 'threads', None)"
            )
        if require not in (None, "sharedmem"):
            raise ValueError(
                f"require={require} is not a valid backend constraint, expected one of ('sharedmem', None)"
            )
        if prefer == "processes" and require == "sharedmem":
            raise ValueError("prefer == 'processes' and require == 'sharedmem' are inconsistent settings")
        self.n_jobs = n_jobs
        self.return_as = return_as
        self.return_generator = return_as != "list"
        self.verbose = verbose
        self.timeout = timeout
        self.pre_dispatch = pre_dispatch
        self.batch_size = batch_size
        self._jobs = _count_jobs(n_jobs)
        self._backend = self._choose_backend(backend, prefer, require)
        self.n_completed_tasks = 0
        self.n_tasks: int | None = None
        self._started = 0.0

    def _choose_backend(self, backend: str | None, prefer: str | None, require: str | None) -> str:
        if backend is not None and backend not in _BACKENDS:
            raise ValueError(f"Invalid backend: {backend}, expected one of {sorted(_BACKENDS)}")
        if require == "sharedmem" and backend in ("loky", "multiprocessing"):
            raise ValueError(f"Backend {backend} does not support shared memory")
        if backend is None:
            # Inside a worker the cores are taken: threads, as joblib does.
            threads = prefer == "threads" or require == "sharedmem" or _in_worker
            backend = "threading" if threads else "loky"
        return "sequential" if self._jobs == 1 else backend

    def __enter__(self) -> Parallel:
        return self

    def __exit__(self, exc_type: object, exc_value: object, traceback: object) -> None:
        pass  # the workers stay for whoever comes next

    def __repr__(self) -> str:
        return f"{type(self).__name__}(n_jobs={self.n_jobs})"

    def __call__(self, iterable: Iterable[Task]) -> Any:
        self.n_completed_tasks = 0
        self.n_tasks = len(iterable) if hasattr(iterable, "__len__") else None  # type: ignore[arg-type]
        self._started = time.time()
        if self._backend == "sequential":
            results = self._run_here(iter(iterable))
        elif self._backend == "threading":
            results = self._run_in_threads(iter(iterable))
        else:
            results = self._run_in_processes(iter(iterable))
        results = self._report(results)
        if self.return_generator:
            # The work begins now, not when the first result is asked for.
            next(results)
            return results
        next(results)
        return list(results)

    # -- the three ways of running: generators that yield None once the work has begun, then the results --

    def _run_here(self, tasks: Iterator[Task]) -> Generator[Any, None, None]:
        yield None
        for function, args, kwargs in tasks:
            yield function(*args, **kwargs)

    def _run_in_threads(self, tasks: Iterator[Task]) -> Generator[Any, None, None]:
        from multiprocessing.pool import ThreadPool

        with ThreadPool(self._jobs) as pool:
            ahead: list[Any] = []
            limit = 8 * self._jobs
            yield None
            while True:
                for task in tasks:
                    ahead.append(pool.apply_async(task[0], task[1], task[2]))
                    if len(ahead) >= limit:
                        break
                if not ahead:
                    return
                index = 0
                if self.return_as == "generator_unordered":
                    index = next((i for i, result in enumerate(ahead) if result.ready()), 0)
                yield ahead.pop(index).get(self.timeout)

    def _run_in_processes(self, tasks: Iterator[Task]) -> Generator[Any, None, None]:
        crew = _get_crew(self._jobs, self._backend)
        shared: dict[int, tuple[int, Any]] = {}  # id(function) -> its number, and a hold on it

        def items() -> Iterator[tuple[Any, ...]]:
            for function, args, kwargs in tasks:
                number = shared.get(id(function))
                if number is None:
                    if len(shared) < _SHARED_FUNCTIONS:
                        number = shared[id(function)] = (
                            crew.engine.share(function, crew.engine.foreign_main),
                            function,
                        )
                    else:
                        number = (
                            shared[-1]
                            if -1 in shared
                            else shared.setdefault(-1, (crew.engine.share(_call, crew.engine.foreign_main), _call))
                        )
                        args, kwargs = (function, args, kwargs), {}
                yield (-number[0], args, kwargs) if kwargs else (number[0], *args)

        job = _engine.Job(
            crew.engine,
            items(),
            0,
            CALL_NAMED,
            self.batch_size if isinstance(self.batch_size, int) else 0,
            iterate=2 if self.return_as == "generator_unordered" else 1,
        )
        done = False
        try:
            job.submit()
            yield None
            if self.timeout is None:
                yield from job
            else:
                while True:
                    try:
                        yield job.next_within(self.timeout)
                    except StopIteration:
                        break
            done = True
        finally:
            if done or job.settled == job.length:
                for number, _ in shared.values():
                    crew.engine.unshare(number)
            else:
                # An error, Ctrl-C or a reader that had enough: what is out is of no use to anybody.
                _drop_crew(crew)

    # -- progress --

    def _report(self, results: Generator[Any, None, None]) -> Generator[Any, None, None]:
        next(results)
        if self.verbose:
            names = {"loky": "LokyBackend", "multiprocessing": "MultiprocessingBackend"}
            names |= {"threading": "ThreadingBackend", "sequential": "SequentialBackend"}
            self._print(f"Using backend {names[self._backend]} with {self._jobs} concurrent workers.")
        yield None
        try:
            for result in results:
                self.n_completed_tasks += 1
                if self.verbose:
                    self.print_progress()
                yield result
        except builtins.TimeoutError:
            raise
        if self.verbose:
            width = floor(log10(max(self.n_completed_tasks, 1))) + 1
            done = f"{self.n_completed_tasks:{width}d}"
            self._print(f"Done {done} out of {done} | elapsed: {_short_time(time.time() - self._started)} finished")

    def print_progress(self) -> None:
        """Print how far the call is: the more often, the higher `verbose`."""
        done, total = self.n_completed_tasks, self.n_tasks
        if self.verbose <= 10:
            # Ever more rarely: after 1, 4, 9 … tasks, scaled by how quiet it should be.
            scale = 11 - self.verbose
            root = int((done / scale) ** 0.5)
            if int(((done - 1) / scale) ** 0.5) == root and done != 1:
                return
        elapsed = time.time() - self._started
        if total is None:
            self._print(f"Done {done:3d} tasks      | elapsed: {_short_time(elapsed)}")
        elif done < total:
            remaining = elapsed / done * (total - done)
            width = floor(log10(total)) + 1
            self._print(
                f"Done {done:{width}d} out of {total:{width}d} | elapsed: {_short_time(elapsed)} "
                f"remaining: {_short_time(remaining)}"
            )

    def _print(self, message: str) -> None:
        stream = sys.stdout if self.verbose > 50 else sys.stderr
        stream.write(f"[{self}]: {message}\n")
        stream.flush()


def _call(function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    return function(*args, **kwargs)


def _short_time(seconds: float) -> str:
    return f"{seconds / 60.0:4.1f}min" if seconds > 60 else f" {seconds:5.1f}s"
