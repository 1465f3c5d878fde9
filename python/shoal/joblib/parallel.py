"""`joblib.Parallel`, `delayed` and all of `joblib.parallel` on Shoal's engine.

With Shoal's own processes a call is one job of the engine, whose items are tasks, each the number of a function and its
arguments; the engine chooses how many a worker takes at once and collects in the thread that reads the results. Other
back-ends are given batches by joblib's protocol (`_batches.py`). `install()` puts this module in the place of
`joblib.parallel`: names that programs change there (`DEFAULT_BACKEND`, `BatchCompletionCallBack`) are looked up here.
"""

from __future__ import annotations

import functools
import itertools
import operator
import os
import time
import warnings
import weakref

from shoal import _options
from shoal.joblib import _config, _in_worker, _workers
from shoal.joblib._backends import (
    AutoBatchingMixin,
    FallbackToBackend,
    LokyBackend,
    MultiprocessingBackend,
    ParallelBackendBase,
    SequentialBackend,
    ThreadingBackend,
    has_processes,
    parse_size,
)
from shoal.joblib._batches import (
    TASK_DONE,
    TASK_ERROR,
    TASK_PENDING,
    BatchCompletionCallBack,
    BatchedCalls,
    Dispatching,
)
from shoal.joblib._config import (
    _backend,
    default_parallel_config,
    effective_n_jobs,
    get_active_backend,
    parallel_backend,
    parallel_config,
    register_parallel_backend,
)
from shoal.joblib._cpus import cpu_count
from shoal.joblib._tasks import DEFAULT_AHEAD, OnCrew, Seed, check_seed, delayed, with_seeds

TYPE_CHECKING = False  # typing costs each start of a program more than the rest of this file
if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterable, Iterator
    from typing import Any

    Task = tuple[Callable[..., Any], tuple[Any, ...], dict[str, Any]]

__all__ = [
    "BACKENDS",
    "EXTERNAL_BACKENDS",
    "MAYBE_AVAILABLE_BACKENDS",
    "TASK_DONE",
    "TASK_ERROR",
    "TASK_PENDING",
    "AutoBatchingMixin",
    "BatchCompletionCallBack",
    "BatchedCalls",
    "FallbackToBackend",
    "LokyBackend",
    "MultiprocessingBackend",
    "Parallel",
    "ParallelBackendBase",
    "SequentialBackend",
    "ThreadingBackend",
    "_backend",
    "cpu_count",
    "default_parallel_config",
    "delayed",
    "effective_n_jobs",
    "get_active_backend",
    "parallel_backend",
    "parallel_config",
    "register_parallel_backend",
]

BACKENDS: dict[str, Any] = {"threading": ThreadingBackend, "sequential": SequentialBackend}
DEFAULT_BACKEND = DEFAULT_THREAD_BACKEND = DEFAULT_PROCESS_BACKEND = "threading"
MAYBE_AVAILABLE_BACKENDS = {"multiprocessing", "loky"}
if has_processes():
    BACKENDS |= {"multiprocessing": MultiprocessingBackend, "loky": LokyBackend}
    DEFAULT_BACKEND = DEFAULT_PROCESS_BACKEND = "loky"


def _register_dask() -> None:
    from shoal.joblib._dask import DaskDistributedBackend

    register_parallel_backend("dask", DaskDistributedBackend)


def _register_mpi() -> None:
    from shoal.joblib._mpi import MPIBackend

    register_parallel_backend("mpi", MPIBackend)


EXTERNAL_BACKENDS = {"dask": _register_dask, "mpi": _register_mpi}

_OurCallBack = BatchCompletionCallBack


# Names of joblib's module that programs import from it, and nobody here needs: where they are.
_ELSEWHERE = {
    "Logger": ("shoal.joblib.logger", "Logger"),
    "short_format_time": ("shoal.joblib.logger", "short_format_time"),
    "memstr_to_bytes": ("shoal.joblib._backends", "parse_size"),
    "eval_expr": ("shoal.joblib._expression", "evaluate"),
    "_Sentinel": ("shoal.joblib._config", "Unset"),
    "VALID_BACKEND_CONSTRAINTS": ("shoal.joblib._config", "VALID_BACKEND_CONSTRAINTS"),
    "VALID_BACKEND_HINTS": ("shoal.joblib._config", "VALID_BACKEND_HINTS"),
    "_get_active_backend": ("shoal.joblib._config", "find_backend"),
    "_get_config_param": ("shoal.joblib._config", "get_param"),
    "_verbosity_filter": ("shoal.joblib._reporting", "_is_quiet"),
}
replaced: Any = None  # joblib's own module, while this has its place


def __getattr__(name: str) -> Any:
    if name in _ELSEWHERE:
        import importlib

        home, there = _ELSEWHERE[name]
        return getattr(importlib.import_module(home), there)
    if name == "mp":  # importing it takes time that most programs need not spend
        if not has_processes():
            return None
        import multiprocessing

        return multiprocessing
    if name == "DEFAULT_MP_CONTEXT":
        return _default_context()
    if name == "TimeoutError":
        import multiprocessing

        return multiprocessing.TimeoutError
    if replaced is not None and not name.startswith("__"):
        return getattr(replaced, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def _default_context() -> Any:
    method = os.environ.get("JOBLIB_START_METHOD", "").strip()
    if not method or not has_processes():
        return None
    import multiprocessing

    return multiprocessing.get_context(method)


# ---------------------------------------------------------------------------- Parallel


class Parallel(OnCrew, Dispatching):
    """Run many calls over the cores of the machine; the interface of `joblib.Parallel`.

    n_jobs: processes (or threads) at a time; -1: one a cpu, -2: one less …; None or 1: run in this thread, unless a
    `parallel_config` says more.
    backend: "loky" (clean processes that stay for the next call; the default), "multiprocessing" (forked for each
    call), "threading", "sequential", a name that was registered, an instance, or a multiprocessing context.
    return_as: "list"; "generator": results in order as they come; "generator_unordered": as they are ready.
    verbose: above 0, progress lines; the more the higher, from 50 on stdout.
    timeout: seconds to wait for each next result; then TimeoutError.
    pre_dispatch: tasks that are taken from the iterable before workers ask for more: a number, "all", or arithmetic
    with n_jobs. Shoal's own processes have more ahead where tasks are shorter than some milliseconds, unless this and
    batch_size are both given.
    batch_size: tasks a worker takes at once; "auto": chosen from their measured time.
    max_nbytes: arrays among the arguments that are larger (bytes, or "1M") are stored once in shared memory for all
    tasks of a call; None: none are. An array that many tasks have is written when the first of them is sent.
    mmap_mode: how workers have these: "r" (read-only), "c" (own copy of what they write), "r+" or "w+" (writes are seen
    by other workers, not by the caller), None: not shared.
    temp_folder: not used, as no file is needed.
    prefer: "processes" or "threads", where backend is not given; require: "sharedmem" for threads.
    backend_kwargs: for the back-end: `initializer`, `initargs`, `idle_worker_timeout`, `inner_max_num_threads` …

    Shoal's own, for its processes (`seed` and `progress` everywhere):

    progress: True: a progress bar (tqdm's); or a callable that gets (tasks done, tasks in all or None).
    task_timeout: seconds a single task may run; then its worker is killed and the task fails with `shoal.TaskTimeout`.
    retries: how often a task whose worker died is given out again; past that it fails with `shoal.WorkerDied`.
    return_exceptions: a task that fails has its exception as its result, and nothing is raised.
    seed: an int, or a numpy SeedSequence: each task is called with one more keyword argument, `rng`, a numpy Generator
    of its own that depends on the seed and the task's place among the tasks alone: the same for any `n_jobs` and
    back-end.
    memory: a folder, or a `Memory`: what each task returns is kept there as soon as it has ended, by the worker; a task
    whose result is there already is not run. So a call that was interrupted or killed goes on where it stopped.
    trace: True: `Parallel(…).trace` is the timeline of the last call, also while it runs: which worker ran which task
    when. It can be saved as a picture, a page, or a file for Perfetto. Workers of other machines are not in it.

    A call raises the first exception of a task, in order, with the remote traceback as its cause, and ends the rest. A
    worker that dies fails the task it held alone, and the error says which. One object runs one call at a time
    (RuntimeError).
    """

    def __init__(
        self,
        n_jobs: Any = default_parallel_config["n_jobs"],
        backend: Any = default_parallel_config["backend"],
        return_as: str = "list",
        verbose: Any = default_parallel_config["verbose"],
        timeout: float | None = None,
        pre_dispatch: int | str = DEFAULT_AHEAD,
        batch_size: int | str = "auto",
        temp_folder: Any = default_parallel_config["temp_folder"],
        max_nbytes: Any = default_parallel_config["max_nbytes"],
        mmap_mode: Any = default_parallel_config["mmap_mode"],
        prefer: Any = default_parallel_config["prefer"],
        require: Any = default_parallel_config["require"],
        *,
        progress: Any = False,
        task_timeout: float | None = None,
        retries: int = 0,
        return_exceptions: bool = False,
        seed: Any = None,
        memory: Any = None,
        trace: bool = False,
        **backend_kwargs: Any,
    ) -> None:
        if n_jobs is None:
            n_jobs = default_parallel_config["n_jobs"]
        active, config = _config.find_backend(prefer, require, verbose)
        self.verbose = _config.get_param(verbose, config, "verbose")
        self.timeout = timeout
        self.pre_dispatch: Any = pre_dispatch
        if return_as not in ("list", "generator", "generator_unordered"):
            raise ValueError(
                'Expected `return_as` parameter to be a string equal to "list","generator" or "generator_unordered", '
                f"but got {return_as} instead."
            )
        self.return_as = return_as
        self.return_generator = return_as != "list"
        self.return_ordered = return_as != "generator_unordered"
        threads = backend_kwargs.pop("inner_max_num_threads", None)
        given = {"max_nbytes": max_nbytes, "temp_folder": temp_folder, "mmap_mode": mmap_mode}
        given |= {"prefer": prefer, "require": require, "verbose": verbose}
        self._backend_kwargs = backend_kwargs | {
            name: _config.get_param(value, config, name) for name, value in given.items()
        }
        if isinstance(self._backend_kwargs["max_nbytes"], str):
            self._backend_kwargs["max_nbytes"] = parse_size(self._backend_kwargs["max_nbytes"])
        self._backend_kwargs["verbose"] = max(0, self._backend_kwargs["verbose"] - 50)
        self._backend = self._choose_backend(backend, active)
        if threads is not None:
            if self._backend.supports_inner_max_num_threads:
                self._backend.inner_max_num_threads = threads
            else:  # as what no back-end knows, which joblib ignores here, but not in `parallel_config`
                name = type(self._backend).__name__
                warnings.warn(f"{name} does not accept setting the inner_max_num_threads argument.", stacklevel=2)
        n_jobs = _config.get_param(n_jobs, config, "n_jobs")
        try:
            self.n_jobs = int(self._backend.default_n_jobs if n_jobs is None else n_jobs)
        except ValueError:
            raise ValueError("n_jobs could not be converted to int") from None
        if require == "sharedmem" and not getattr(self._backend, "supports_sharedmem", False):
            raise ValueError(f"Backend {self._backend} does not support shared memory")
        if batch_size != "auto" and not (_is_integer(batch_size) and batch_size > 0):  # type: ignore[operator]
            raise ValueError(f"batch_size must be 'auto' or a positive integer, got: {batch_size!r}")
        self.batch_size = batch_size
        if (
            self.return_generator
            and not isinstance(self._backend, SequentialBackend)
            and not self._backend.supports_return_generator
        ):
            raise ValueError(f"Backend {self._backend} does not support return_as={return_as}")
        self._progress = progress
        self._task_timeout = _options.seconds(task_timeout)
        self._retries = _options.retries(retries)
        self._return_exceptions = return_exceptions
        check_seed(seed)
        self._seed = seed
        self._memory: Any = None
        if memory is not None:
            from shoal.joblib import _resume

            self._memory = _resume.open_memory(memory)
        self._resume: Any = None
        self._traced = bool(trace)
        self._recorder: Any = None
        self._prepare_batches()
        self._running = False
        self._managed_backend = False
        self._calling = False
        self._id = os.urandom(16).hex()
        self._call_id: Any = None
        self._call_ref: Any = None
        self.n_tasks: int | None = None
        self._reset_counters()

    def _choose_backend(self, backend: Any, active: Any) -> Any:
        level = active.nesting_level
        if backend is default_parallel_config["backend"] or backend is None:
            backend = active
        elif isinstance(backend, ParallelBackendBase):
            if backend.nesting_level is None:
                backend.nesting_level = level
        elif hasattr(backend, "Pool") and hasattr(backend, "Lock"):  # a multiprocessing context
            self._backend_kwargs["context"] = backend
            return MultiprocessingBackend(nesting_level=level)
        else:
            backend = _config.backend_factory(backend)(nesting_level=level)
        if type(backend) not in (LokyBackend, ThreadingBackend, SequentialBackend) and has_processes():
            import multiprocessing

            self._backend_kwargs["context"] = _default_context() or multiprocessing.get_context()
        return backend

    def _initialize_backend(self) -> int:
        """Make the back-end ready; how many jobs it runs at a time."""
        try:
            n_jobs: int = self._backend.configure(n_jobs=self.n_jobs, parallel=self, **self._backend_kwargs)
        except Exception as other:
            # By name: joblib's own class of it may be about, in back-ends that were derived before install().
            if type(other).__name__ != FallbackToBackend.__name__:
                raise
            self._backend = other.backend  # type: ignore[attr-defined]
            return self._initialize_backend()
        asked = (("timeout", self.timeout), ("task_timeout", self._task_timeout), ("retries", self._retries or None))
        for name, value in asked:
            if value is None:
                continue
            has_limits = self._is_on_crew() or getattr(self._backend, "supports_limits", False)
            if not (self._backend.supports_timeout if name == "timeout" else has_limits):
                warnings.warn(
                    f"The backend class {type(self._backend).__name__!r} does not support {name}. You have set "
                    f"'{name}={value}' in Parallel but the '{name}' parameter will not be used.",
                    stacklevel=3,
                )
        return n_jobs

    def _effective_n_jobs(self) -> int:
        return self._backend.effective_n_jobs(self.n_jobs) if self._backend else 1

    def __enter__(self) -> Parallel:
        self._managed_backend = True
        self._calling = False
        self._initialize_backend()
        return self

    def __exit__(self, exc_type: object, exc_value: object, traceback: object) -> None:
        self._managed_backend = False
        output = self._call_ref() if self._call_ref is not None else None
        if output is not None and self._running and self._calling:  # what is run here goes on as it is read
            output.close()
        self._terminate_and_reset()

    def __repr__(self) -> str:
        return f"{type(self).__name__}(n_jobs={self.n_jobs})"

    def _reset_counters(self) -> None:
        self.n_dispatched_batches = 0
        self.n_dispatched_tasks = 0
        self.n_completed_tasks = 0
        self._nb_consumed = 0
        self._exception = False
        self._aborting = False
        self._aborted = False
        self._iterating = False
        self._original_iterator: Any = None
        self._pre_dispatch_amount = 0
        self._cached_effective_n_jobs = 1
        self._start_time = time.time()

    def _reset_run_tracking(self) -> None:
        with self._lock:
            if self._running:
                message = "This Parallel instance is already running !"
                if self.return_generator:
                    message += (
                        " Before submitting new tasks, you must wait for the completion of all the previous tasks, "
                        "or clean all references to the output generator."
                    )
                raise RuntimeError(message)
            self._running = True
        self._reset_counters()

    # -- a call --

    def __call__(self, iterable: Iterable[Task]) -> Any:
        self._reset_run_tracking()
        is_ready = False  # whether there is a back-end to end, and nobody else who does
        try:
            self.n_tasks = len(iterable) if hasattr(iterable, "__len__") else None  # type: ignore[arg-type]
            n_jobs = self._effective_n_jobs() if self._managed_backend else self._initialize_backend()
            is_ready = True
            on_crew = n_jobs > 1 and self._is_on_crew()
            whole = on_crew and not self.return_generator and not self._progress and self._memory is None
            if self._seed is not None:
                iterable = with_seeds(iterable, self._seed, Seed if on_crew else _in_worker.make_generator)
            self._resume = None
            if self._memory is not None:
                from shoal.joblib._resume import Resume

                self._resume = Resume(self._memory, self._seed)
                iterable = self._resume.tasks(iterable)
            self._recorder = None
            if self._traced:
                from shoal.joblib._trace import Recorder

                self._recorder = Recorder(f"{self}")
                iterable = self._recorder.tasks(iterable, self._resume)
            if self._return_exceptions and n_jobs > 1 and not on_crew:
                iterable = ((_in_worker.call_guarded, task, {}) for task in iterable)
            if n_jobs == 1:
                output = self._run_here(iterable)
            else:
                self._call_id = object()
                self._cached_effective_n_jobs = n_jobs
                name = type(self._backend).__name__
                if n_jobs == 0:
                    raise RuntimeError(f"{name} has no active worker.")
                if self.timeout is not None and self._backend.supports_timeout:
                    operator.gt(0.0, self.timeout)  # joblib's error for what is no number; before anything runs
                self._print(f"Using backend {name} with {n_jobs} concurrent workers.")
                if hasattr(self._backend, "start_call"):
                    self._backend.start_call()
                self._calling = True
                ahead = self._count_ahead(n_jobs)
                if ahead == 0:
                    iterable = ()
                if on_crew:
                    output = self._run_on_crew(iterable, ahead, whole)
                else:
                    output = self._run_batches(iter(iterable), ahead)
            if self._recorder is not None:
                output = self._recorder.follow(output)
            if self._resume is not None:
                output = self._resume.merge(output, self.return_ordered)
            if self._progress:
                output = self._show(output)
            self._call_ref = weakref.ref(output)
            is_ready = False
            next(output)  # the work begins now, not when the first result is asked for
        except BaseException:
            self._running = False
            if is_ready:
                self._terminate_and_reset()
            raise
        if whole:
            (results,) = output
            return results
        return output if self.return_generator else list(output)

    def _count_ahead(self, n_jobs: int) -> int | None:
        """How many tasks are taken from the iterable at first; None: all."""
        amount = self.pre_dispatch
        if amount == "all":
            return None
        if amount == DEFAULT_AHEAD:
            amount = 2 * n_jobs  # importing a parser takes as long as starting a worker
        elif hasattr(amount, "endswith"):
            from shoal.joblib._expression import evaluate

            amount = evaluate(amount.replace("n_jobs", str(n_jobs)))
        self._pre_dispatch_amount = amount = int(amount)
        itertools.islice((), amount)  # what joblib raises for a negative one
        if amount == 0:  # joblib says nothing, as where "n_jobs // 4" comes to a machine of two cpus
            warnings.warn(f"pre_dispatch={self.pre_dispatch!r} comes to 0: no task is run", stacklevel=3)
        return amount

    # -- the three ways of running: generators that yield None once the work has begun, then the results --

    def _run_here(self, iterable: Iterable[Task]) -> Generator[Any, None, None]:
        try:
            self._iterating = True
            self._original_iterator = iterable
            yield None
            size = self._get_batch_size()
            tasks: Iterator[Task] = iter(iterable)
            if size != 1:
                tasks = itertools.chain.from_iterable(iter(functools.partial(_slice, tasks, size), ()))
            for function, args, kwargs in tasks:
                self.n_dispatched_batches += 1
                self.n_dispatched_tasks += 1
                try:
                    result = function(*args, **kwargs)
                except Exception as error:
                    if not self._return_exceptions:
                        raise
                    result = error
                self.n_completed_tasks += 1
                self.print_progress()
                yield result
                self._nb_consumed += 1
        except BaseException:
            self._exception = self._aborting = self._aborted = True
            raise
        finally:
            self._running = False
            self._iterating = False
            self._original_iterator = None
            self.print_progress()

    def _run_batches(self, tasks: Iterator[Task], ahead: int | None) -> Generator[Any, None, None]:
        try:
            self._start_batches(tasks, ahead)
            yield None
            with self._backend.retrieval_context():
                for result in self._retrieve():
                    self._nb_consumed += 1
                    yield result
        except GeneratorExit:
            self._exception = True
            self._abort()
            if self.return_generator:
                self._warn_exit_early()
            raise
        except BaseException:
            self._exception = True
            self._abort()
            raise
        finally:
            with self._lock:
                self._call_id = None  # what threads of it still do must not reach the next call
                self._jobs.clear()
                self._jobs_set.clear()
            self._running = False
            self._terminate_and_reset()

    def _is_on_crew(self) -> bool:
        """Whether Shoal's own processes run the tasks, and nobody wants to see each batch."""
        backend = self._backend
        home: type
        if isinstance(backend, LokyBackend):
            home = LokyBackend
        elif isinstance(backend, MultiprocessingBackend):
            home = MultiprocessingBackend
        else:
            return False
        if BatchCompletionCallBack is not _OurCallBack:
            return False
        kind = type(backend)
        return (
            (kind is home or all(getattr(kind, name) is getattr(home, name) for name in _BACKEND_HOOKS))
            and (type(self) is Parallel or all(getattr(type(self), n) is getattr(Parallel, n) for n in _HOOKS))
            and (home is LokyBackend or backend._pool is None or isinstance(backend._pool, _workers.ForkedWorkers))
        )

    def _abort(self) -> None:
        """The call has failed: no more batches, and what is out is ended where the back-end can."""
        self._aborting = True
        if not self._aborted and hasattr(self._backend, "abort_everything"):
            self._backend.abort_everything(ensure_ready=self._managed_backend)
        self._aborted = True

    def _terminate_and_reset(self) -> None:
        if self._calling and hasattr(self._backend, "stop_call"):
            self._backend.stop_call()
        self._calling = False
        if not self._managed_backend:
            self._backend.terminate()

    def _warn_exit_early(self) -> None:
        """A generator was dropped before its end: say what was done in vain."""
        unread = self.n_completed_tasks - self._nb_consumed
        parts = []
        if unread:
            parts.append(f"{unread} tasks have been successfully executed  but not used.")
        if not self._is_completed():
            left = self.n_dispatched_tasks - self.n_completed_tasks
            parts.append(
                ("Additionally, " if parts else "")
                + f"{left} tasks which were still being processed by the workers have been cancelled."
            )
        if parts:
            parts.append(
                "You could benefit from adjusting the input task iterator to limit unnecessary computation time."
            )
            warnings.warn(" ".join(parts), stacklevel=2)

    @property
    def trace(self) -> Any:
        """The timeline of the last call, or of the one that runs: a `Trace`, whose `save` writes it to a file.

        RuntimeError: nothing was recorded.
        """
        recorder = self._recorder  # the next call may be beginning
        if recorder is None:
            raise RuntimeError(
                "there was no call yet whose timeline could be shown"
                if self._traced
                else "no timeline is recorded: make it with Parallel(..., trace=True)"
            )
        return recorder.trace()


# Whoever changes one of these wants to see batches.
_HOOKS = ("_dispatch", "_retrieve", "_register_new_job", "dispatch_next", "dispatch_one_batch", "_abort")
_BACKEND_HOOKS = (
    "submit",
    "apply_async",
    "retrieve_result_callback",
    "get_nested_backend",
    "compute_batch_size",
    "batch_completed",
    "retrieval_context",
    "abort_everything",
)


def _slice(tasks: Iterator[Task], size: int) -> tuple[Task, ...]:
    return tuple(itertools.islice(tasks, size))


def _is_integer(value: Any) -> bool:
    return hasattr(value, "__index__")


# The tests' look at what is left behind (tests/conftest.py) knows it by this name.
_end_crews = _workers.end_crews
