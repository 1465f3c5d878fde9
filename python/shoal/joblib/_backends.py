"""What runs the tasks of `Parallel`: joblib's protocol of back-ends, and those that come with it.

Others derive theirs from these classes, as joblib documents it: `configure` makes ready and says how many workers
there are, `submit` hands out one batch (a callable without arguments) and has a callback told of its outcome, which
`retrieve_result_callback` gets from what the callback was given; `terminate` ends a call or a `with` block,
`abort_everything` one that failed.
"""

from __future__ import annotations

import os
import sys
import threading
from abc import ABCMeta, abstractmethod

from shoal.joblib import _in_worker, _workers
from shoal.joblib._cpus import cpu_count

TYPE_CHECKING = False  # typing costs each start of a worker more than the rest of this file
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

_NO_JOBS = "n_jobs == 0 in Parallel has no meaning"
_CREW_OPTIONS = ("initializer", "initargs", "env", "idle_worker_timeout")
_ELSEWHERE = ("max_nbytes", "mmap_mode", "temp_folder", "verbose", "context", "prefer", "require", "maxtasksperchild")


replaced: Any = None  # joblib's own module, while this has its place: for what programs import from it besides


def __getattr__(name: str) -> Any:
    if replaced is not None and not name.startswith("__"):
        return getattr(replaced, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def has_processes() -> bool:
    """Whether JOBLIB_MULTIPROCESSING lets there be processes."""
    return os.environ.get("JOBLIB_MULTIPROCESSING", "1").strip() != "0"


def _is_daemon() -> bool:
    process = sys.modules.get("multiprocessing.process")
    return process is not None and process.current_process().daemon


def _warn(message: str) -> None:
    import warnings

    warnings.warn(message, stacklevel=4)


def parse_size(text: str) -> int:
    """Bytes of a size such as '10G', '500M', '50K'."""
    try:
        return int(float(text[:-1]) * {"K": 1024, "M": 1024**2, "G": 1024**3}[text[-1]])
    except (KeyError, ValueError, IndexError) as error:
        raise ValueError(
            f"Invalid literal for size give: {text} (type {type(text)}) should be alike '10G', '500M', '50K'."
        ) from error


class FallbackToBackend(Exception):
    """Raised by `configure`: another back-end fits better."""

    def __init__(self, backend: ParallelBackendBase) -> None:
        super().__init__(backend)
        self.backend = backend


class _NoContext:
    def __enter__(self) -> None:
        pass

    def __exit__(self, *details: object) -> None:
        pass


class ParallelBackendBase(metaclass=ABCMeta):
    """What a back-end is: see the top of this file for the order in which `Parallel` calls it.

    nesting_level: 0 outside of any task, one more in the tasks of each `Parallel`.
    inner_max_num_threads: threads of BLAS and OpenMP in each worker, where the class supports it.
    """

    default_n_jobs = 1
    supports_inner_max_num_threads = False
    supports_limits = False  # whether batches heed `task_timeout` and `retries` of `Parallel`
    # Whether results come through the callback of `submit`; if not, `retrieve_result` waits for each.
    supports_retrieve_callback = False
    nesting_level: int | None = None
    inner_max_num_threads: int | None = None
    parallel: Any = None

    MAX_NUM_THREADS_VARS = [
        "OMP_NUM_THREADS",
        "OPENBLAS_NUM_THREADS",
        "MKL_NUM_THREADS",
        "BLIS_NUM_THREADS",
        "VECLIB_MAXIMUM_THREADS",
        "NUMBA_NUM_THREADS",
        "NUMEXPR_NUM_THREADS",
    ]
    TBB_ENABLE_IPC_VAR = "ENABLE_IPC"

    def __init__(
        self, nesting_level: int | None = None, inner_max_num_threads: int | None = None, **backend_kwargs: Any
    ) -> None:
        super().__init__()
        self.nesting_level = nesting_level
        self.inner_max_num_threads = inner_max_num_threads
        self.backend_kwargs = backend_kwargs

    @property
    def supports_return_generator(self) -> bool:
        return self.supports_retrieve_callback

    @property
    def supports_timeout(self) -> bool:
        return self.supports_retrieve_callback

    @abstractmethod
    def effective_n_jobs(self, n_jobs: int | None) -> int:
        """How many tasks run at a time where `n_jobs` are asked for (-1: as many as there can be)."""

    def apply_async(self, func: Callable[[], Any], callback: Callable[[Any], Any] | None = None) -> Any:
        """The old name of `submit`."""
        raise NotImplementedError("Implement `submit` instead.")

    def submit(self, func: Callable[[], Any], callback: Callable[[Any], Any] | None = None) -> Any:
        """Have `func()` called, and `callback` after it with what `retrieve_result_callback` takes. What is returned
        goes to `retrieve_result`, where there is no retrieval by callback."""
        import warnings

        warnings.warn(
            "`apply_async` is deprecated, implement and use `submit` instead.", DeprecationWarning, stacklevel=2
        )
        return self.apply_async(func, callback)

    def retrieve_result_callback(self, out: Any) -> Any:  # noqa: B027
        """What the batch returned, from what the callback was given; raises what it raised."""

    def retrieve_result(self, out: Any, timeout: float | None = None) -> Any:
        """Wait for what the batch returned; `out` is what `submit` returned."""
        return out.get(timeout=timeout) if self.supports_timeout else out.get()

    def configure(
        self, n_jobs: int = 1, parallel: Any = None, prefer: Any = None, require: Any = None, **backend_kwargs: Any
    ) -> int:
        """Make ready for a call, or for those of a `with` block; how many workers there are."""
        self.parallel = parallel
        return self.effective_n_jobs(n_jobs)

    def start_call(self) -> None:  # noqa: B027
        """A call begins."""

    def stop_call(self) -> None:  # noqa: B027
        """A call has ended."""

    def terminate(self) -> None:  # noqa: B027
        """What `configure` made is not needed any more."""

    def compute_batch_size(self) -> int:
        """How many tasks the next batch has, where `batch_size` is "auto"."""
        return 1

    def batch_completed(self, batch_size: int, duration: float) -> None:  # noqa: B027
        """A batch came back so many seconds after it was handed out."""

    def abort_everything(self, ensure_ready: bool = True) -> None:  # noqa: B027
        """A task failed: what is out has no use. ensure_ready: other calls follow without `configure`."""

    def get_nested_backend(self) -> tuple[Any, int | None] | Any:
        """The back-end, and its number of jobs, for calls of `Parallel` in tasks: threads in the first level, nothing
        parallel below."""
        level = (self.nesting_level or 0) + 1
        return (SequentialBackend if level > 1 else ThreadingBackend)(nesting_level=level), None

    def _prepare_worker_env(self, n_jobs: int) -> dict[str, str]:
        """Environment variables for workers that start anew, so that their libraries' threads share the cpus."""
        fair = str(max(cpu_count() // n_jobs, 1))
        wanted = self.inner_max_num_threads
        env = {
            name: str(wanted) if wanted is not None else os.environ.get(name, fair)
            for name in self.MAX_NUM_THREADS_VARS
        }
        if self.TBB_ENABLE_IPC_VAR not in os.environ:
            env[self.TBB_ENABLE_IPC_VAR] = "1"
        return env

    def retrieval_context(self) -> Any:
        """A context manager around the wait for results."""
        return _NoContext()

    @staticmethod
    def in_main_thread() -> bool:
        return threading.current_thread() is threading.main_thread()


class SequentialBackend(ParallelBackendBase):
    """Runs each task in the calling thread."""

    uses_threads = True
    supports_sharedmem = True
    supports_timeout = False  # type: ignore[assignment]
    supports_retrieve_callback = False

    def effective_n_jobs(self, n_jobs: int | None) -> int:
        if n_jobs == 0:
            raise ValueError(_NO_JOBS)
        return 1

    def submit(self, func: Callable[[], Any], callback: Callable[[Any], Any] | None = None) -> Any:
        raise RuntimeError("Should never be called for SequentialBackend.")

    def retrieve_result_callback(self, out: Any) -> Any:
        raise RuntimeError("Should never be called for SequentialBackend.")

    def get_nested_backend(self) -> Any:
        # It changes nothing for those inside.
        from shoal.joblib._config import get_active_backend

        return get_active_backend()


# --------------------------------------------------------------------- pools of whatever kind


class _Failed:
    """An exception of a batch, with its traceback as text, on its way back from a pool of any kind."""

    def __init__(self, error: BaseException) -> None:
        import traceback

        self.error = error
        self.text = "".join(traceback.format_exception(type(error), error, error.__traceback__))

    def __reduce__(self) -> tuple[Any, ...]:
        return _rebuild_failed, (self.error, self.text)


def _rebuild_failed(error: BaseException, text: str) -> BaseException:
    from multiprocessing.pool import RemoteTraceback  # type: ignore[attr-defined]

    error.__cause__ = RemoteTraceback(f'\n"""\n{text}"""')
    return error


class _Capturing:
    """Calls a batch; what it raises, KeyboardInterrupt too, is its result, so that no pool loses it."""

    def __init__(self, func: Callable[[], Any]) -> None:
        self._func = func

    def __call__(self, **kwargs: Any) -> Any:
        try:
            return self._func(**kwargs)
        except BaseException as error:
            return _Failed(error)


class PoolManagerMixin:
    """For back-ends on a pool with the interface of `multiprocessing.Pool`, in `_pool`."""

    _pool: Any = None

    def effective_n_jobs(self, n_jobs: int | None) -> int:
        if n_jobs == 0:
            raise ValueError(_NO_JOBS)
        if n_jobs is None or not has_processes():
            return 1
        return max(cpu_count() + 1 + n_jobs, 1) if n_jobs < 0 else n_jobs

    def terminate(self) -> None:
        pool, self._pool = self._pool, None
        if pool is not None:
            pool.close()
            pool.terminate()

    def _get_pool(self) -> Any:
        """The pool, made at the first batch where that is soon enough."""
        return self._pool

    def submit(self, func: Callable[[], Any], callback: Callable[[Any], Any] | None = None) -> Any:
        # The callback for errors too: those of the pool itself.
        return self._get_pool().apply_async(_Capturing(func), (), callback=callback, error_callback=callback)

    def retrieve_result_callback(self, out: Any) -> Any:
        if isinstance(out, _workers.Future):
            return out.result()
        if isinstance(out, _Failed):
            out = _rebuild_failed(out.error, out.text)
        if isinstance(out, BaseException):
            raise out
        return out

    def abort_everything(self, ensure_ready: bool = True) -> None:
        self.terminate()
        if ensure_ready:
            parallel = self.parallel  # type: ignore[attr-defined]
            self.configure(n_jobs=parallel.n_jobs, parallel=parallel, **parallel._backend_kwargs)  # type: ignore[attr-defined]


class ThreadingBackend(PoolManagerMixin, ParallelBackendBase):
    """Threads of this process: for tasks that leave the interpreter's lock free, or share objects."""

    supports_retrieve_callback = True
    uses_threads = True
    supports_sharedmem = True
    _n_jobs = 1

    def configure(self, n_jobs: int = 1, parallel: Any = None, **backend_kwargs: Any) -> int:  # type: ignore[override]
        n_jobs = self.effective_n_jobs(n_jobs)
        if n_jobs == 1:
            raise FallbackToBackend(SequentialBackend(nesting_level=self.nesting_level))
        self.parallel = parallel
        self._n_jobs = n_jobs
        return n_jobs

    def _get_pool(self) -> Any:
        if self._pool is None:
            from shoal.joblib._thread_crew import ThreadCrew

            self._pool = ThreadCrew(self._n_jobs)
        return self._pool


class AutoBatchingMixin:
    """Batches that last about long enough to make up for handing them out. (Shoal's own workers measure by themselves;
    this is for back-ends that are given batches.)"""

    MIN_IDEAL_BATCH_DURATION = 0.2  # seconds
    MAX_IDEAL_BATCH_DURATION = 2.0

    _DEFAULT_EFFECTIVE_BATCH_SIZE = 1
    _DEFAULT_SMOOTHED_BATCH_DURATION = 0.0

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.reset_batch_stats()

    def reset_batch_stats(self) -> None:
        """Forget what was measured."""
        self._effective_batch_size = self._DEFAULT_EFFECTIVE_BATCH_SIZE
        self._smoothed_batch_duration = self._DEFAULT_SMOOTHED_BATCH_DURATION

    def compute_batch_size(self) -> int:
        size, duration = self._effective_batch_size, self._smoothed_batch_duration
        if duration <= 0:
            return size
        fitting = int(size * self.MIN_IDEAL_BATCH_DURATION / duration)
        wanted = size
        if duration < self.MIN_IDEAL_BATCH_DURATION:
            # Twice what would do, for fewer changes; not more than doubled at once, or some worker starves.
            wanted = max(min(2 * size, 2 * fitting), 1)
            said = "fast"
        elif duration > self.MAX_IDEAL_BATCH_DURATION and size >= 2:
            wanted = max(2 * fitting, 1)
            said = "slow"
        if wanted != size:
            parallel = self.parallel  # type: ignore[attr-defined]
            if parallel is not None and parallel.verbose >= 10:
                parallel._print(f"Batch computation too {said} ({duration}s.) Setting batch_size={wanted}.")
            self._effective_batch_size = wanted
            self._smoothed_batch_duration = self._DEFAULT_SMOOTHED_BATCH_DURATION  # of the new size
        return wanted

    def batch_completed(self, batch_size: int, duration: float) -> None:
        if batch_size != self._effective_batch_size:
            return
        old = self._smoothed_batch_duration
        first = old == self._DEFAULT_SMOOTHED_BATCH_DURATION
        self._smoothed_batch_duration = duration if first else 0.8 * old + 0.2 * duration


# ------------------------------------------------------------------- Shoal's own processes


class _CrewBackend(AutoBatchingMixin, ParallelBackendBase):
    """What the back-ends on a crew have in common. While one is configured `_handle` holds its workers."""

    supports_retrieve_callback = True
    _options: dict[str, Any] = {}
    _sharing: Any = None  # what stores the large arrays of the call that runs

    @property
    def _handle(self) -> Any:
        raise NotImplementedError

    def _take_options(self, given: dict[str, Any]) -> dict[str, Any]:
        options = {**self.backend_kwargs, **given}
        for name in options:
            if name not in _CREW_OPTIONS and name not in _ELSEWHERE:
                self._meet_unknown(name)
        initializer = options.get("initializer")
        if initializer is not None and not callable(initializer):
            raise TypeError(f"initializer must be a callable, got: {initializer!r}")
        self._options = options
        return options

    def _meet_unknown(self, name: str) -> None:
        raise TypeError(f"Pool.__init__() got an unexpected keyword argument {name!r}")

    def _make_sharing(self) -> Any:
        """What stores the large arrays of one call; None: none are shared."""
        limit, mode = self._options.get("max_nbytes", 1 << 20), self._options.get("mmap_mode", "r")
        if limit is None or mode is None:
            return None
        from shoal.joblib._arrays import Sharing

        return Sharing(parse_size(limit) if isinstance(limit, str) else limit, mode)

    def start_call(self) -> None:
        self._sharing = self._make_sharing()

    def stop_call(self) -> None:
        sharing, self._sharing = self._sharing, None
        if sharing is not None:
            sharing.end()

    def submit(self, func: Callable[[], Any], callback: Callable[[Any], Any] | None = None) -> Any:
        return self._handle.submit(func, callback, self._sharing)


class MultiprocessingBackend(PoolManagerMixin, _CrewBackend):
    """Processes that are forked from this one for a call or a `with` block, or started as a context says."""

    supports_return_generator = False  # type: ignore[assignment]

    @property
    def _handle(self) -> Any:
        return self._pool

    def effective_n_jobs(self, n_jobs: int | None) -> int:
        if not has_processes():
            return 1
        why = ""
        if _is_daemon():
            why = "Multiprocessing-backed parallel loops cannot be nested, setting n_jobs=1"
        elif _in_worker.processes_above > 0:
            why = "Multiprocessing-backed parallel loops cannot be nested, below loky, setting n_jobs=1"
        elif not (self.in_main_thread() or self.nesting_level == 0):
            why = "Multiprocessing-backed parallel loops cannot be nested below threads, setting n_jobs=1"
        if not why:
            return PoolManagerMixin.effective_n_jobs(self, n_jobs)
        if n_jobs != 1:
            _warn(_in_dask("DASK_DISTRIBUTED__WORKER__DAEMON") or why if _is_daemon() else why)
        return 1

    def configure(
        self, n_jobs: int = 1, parallel: Any = None, prefer: Any = None, require: Any = None, **pool_kwargs: Any
    ) -> int:
        n_jobs = self.effective_n_jobs(n_jobs)
        if n_jobs == 1:
            raise FallbackToBackend(SequentialBackend(nesting_level=self.nesting_level))
        options = self._take_options(pool_kwargs)
        self._pool = _workers.ForkedWorkers(
            n_jobs,
            self.nesting_level or 0,
            options.get("context"),
            initializer=options.get("initializer"),
            initargs=tuple(options.get("initargs") or ()),
            max_tasks=options.get("maxtasksperchild"),
        )
        self.parallel = parallel
        return n_jobs

    def submit(self, func: Callable[[], Any], callback: Callable[[Any], Any] | None = None) -> Any:
        if isinstance(self._pool, _workers.ForkedWorkers):
            return _CrewBackend.submit(self, func, callback)
        return PoolManagerMixin.submit(self, func, callback)  # of a class that derives from this, with its own pool

    def terminate(self) -> None:
        super().terminate()
        self.reset_batch_stats()


class LokyBackend(_CrewBackend):
    """Clean processes that stay for the next call; the default.

    Of its own arguments: `initializer`, `initargs`, `env` (variables for the workers), `idle_worker_timeout` (seconds
    without work after which they end; 300).
    """

    supports_inner_max_num_threads = True
    _workers: Any = None

    @property
    def _handle(self) -> Any:
        return self._workers

    def _meet_unknown(self, name: str) -> None:
        # joblib ignores it, so programs that have one run; a wrong name shall not go unseen for all that.
        _warn(f"LokyBackend has no use for the argument {name!r}")

    def effective_n_jobs(self, n_jobs: int | None) -> int:
        if n_jobs == 0:
            raise ValueError(_NO_JOBS)
        if n_jobs is None or not has_processes():
            return 1
        if _is_daemon():
            if n_jobs != 1:
                _warn(
                    _in_dask("DASK_DISTRIBUTED__WORKER__DAEMON")
                    or "Loky-backed parallel loops cannot be called in a multiprocessing, setting n_jobs=1"
                )
            return 1
        if not (self.in_main_thread() or self.nesting_level == 0):
            if n_jobs != 1:
                _warn("Loky-backed parallel loops cannot be nested below threads, setting n_jobs=1")
            return 1
        return max(cpu_count() + 1 + n_jobs, 1) if n_jobs < 0 else n_jobs

    def configure(
        self,
        n_jobs: int = 1,
        parallel: Any = None,
        prefer: Any = None,
        require: Any = None,
        idle_worker_timeout: float | None = None,
        **executor_kwargs: Any,
    ) -> int:
        n_jobs = self.effective_n_jobs(n_jobs)
        if n_jobs == 1:
            raise FallbackToBackend(SequentialBackend(nesting_level=self.nesting_level))
        if "timeout" in executor_kwargs or "timeout" in self.backend_kwargs:
            raise ValueError(
                "The 'timeout' parameter is not supported by the LokyBackend. "
                "Please use the `idle_worker_timeout` parameter instead."
            )
        options = self._take_options(executor_kwargs)
        if idle_worker_timeout is None:
            idle_worker_timeout = options.get("idle_worker_timeout")
        self._workers = _workers.get_crew(
            n_jobs,
            self.nesting_level or 0,
            threads=self.inner_max_num_threads,
            initializer=options.get("initializer"),
            initargs=tuple(options.get("initargs") or ()),
            environment=options.get("env"),
            idle=_workers.IDLE if idle_worker_timeout is None else idle_worker_timeout,
        )
        self.parallel = parallel
        return n_jobs

    def retrieve_result_callback(self, out: Any) -> Any:
        return out.result()

    def terminate(self) -> None:
        use, self._workers = self._workers, None
        if use is not None:
            use.end()
        self.reset_batch_stats()

    def abort_everything(self, ensure_ready: bool = True) -> None:
        use, self._workers = self._workers, None
        if use is not None:
            use.abort()
        if ensure_ready:
            self.configure(n_jobs=self.parallel.n_jobs, parallel=self.parallel, **self.parallel._backend_kwargs)


def _in_dask(variable: str) -> str:
    """What to say in a worker of Dask that is a daemon; empty elsewhere."""
    distributed = sys.modules.get("distributed")
    if distributed is None:
        return ""
    try:
        distributed.get_worker()
    except ValueError:
        return ""
    return (
        "Inside a Dask worker with daemon=True, setting n_jobs=1.\nPossible work-arounds:\n"
        "- dask.config.set({'distributed.worker.daemon': False})\n"
        f"- set the environment variable {variable}=False\nbefore creating your Dask cluster."
    )


def inside_dask_worker() -> bool:
    """Whether this is a task of Dask."""
    distributed = sys.modules.get("distributed")
    if distributed is None:
        return False
    try:
        distributed.get_worker()
    except ValueError:
        return False
    return True
