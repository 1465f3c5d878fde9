"""Which back-end and settings `Parallel` takes where it is not told: `parallel_config`, `parallel_backend`,
`effective_n_jobs`.

Settings are a thread's own, as a dictionary with one entry each; an entry that nobody set is the very default object,
so that setting a default's value counts as setting it. In a worker, what nobody set is what its parent's back-end says
of nested calls.
"""

from __future__ import annotations

import threading

from shoal.joblib import _in_worker

TYPE_CHECKING = False  # typing costs each start of a worker more than the rest of this file
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from shoal.joblib._backends import ParallelBackendBase


class Unset:
    """The default of a setting that may come from the surrounding `parallel_config`."""

    def __init__(self, default_value: Any) -> None:
        self.default_value = default_value

    def __repr__(self) -> str:
        return f"default({self.default_value!r})"

    def __reduce__(self) -> Any:  # it is compared by identity
        for name, value in default_parallel_config.items():
            if value is self:
                return _get_default, (name,)
        return Unset, (self.default_value,)


def _get_default(name: str) -> Unset:
    return default_parallel_config[name]  # type: ignore[no-any-return]


default_parallel_config: dict[str, Any] = {
    "backend": Unset(None),
    "n_jobs": Unset(None),
    "verbose": Unset(0),
    "temp_folder": Unset(None),
    "max_nbytes": Unset("1M"),
    "mmap_mode": Unset("r"),
    "prefer": Unset(None),
    "require": Unset(None),
}

VALID_BACKEND_HINTS = ("processes", "threads", None)
VALID_BACKEND_CONSTRAINTS = ("sharedmem", None)

_backend = threading.local()


class Later:
    """A back-end that is made when the first call of Parallel wants it: `make()` may take long."""

    def __init__(self, make: Callable[[], ParallelBackendBase], nesting_level: int) -> None:
        self._make = make
        self._made: ParallelBackendBase | None = None
        self.nesting_level = nesting_level

    def __reduce__(self) -> Any:
        return Later, (self._make, self.nesting_level)

    def get(self) -> ParallelBackendBase:
        if self._made is None:
            self._made = self._make()
        return self._made


def _current() -> dict[str, Any]:
    """This thread's settings."""
    config = getattr(_backend, "config", None)
    if config is not None:
        return config  # type: ignore[no-any-return]
    if _in_worker.level == 0:
        return default_parallel_config
    from shoal.joblib._backends import SequentialBackend, ThreadingBackend

    kind = SequentialBackend if _in_worker.level > 1 else ThreadingBackend
    return {**default_parallel_config, "backend": kind(nesting_level=_in_worker.level)}


def get_param(param: Any, config: dict[str, Any], key: str) -> Any:
    """What holds: what was passed, or else the surrounding setting, or else the default."""
    unset = default_parallel_config[key]
    if param is not unset:
        return param
    return unset.default_value if config[key] is unset else config[key]


def check_hints(prefer: Any, require: Any) -> None:
    if prefer not in VALID_BACKEND_HINTS:
        raise ValueError(f"prefer={prefer} is not a valid backend hint, expected one of {VALID_BACKEND_HINTS}")
    if require not in VALID_BACKEND_CONSTRAINTS:
        raise ValueError(
            f"require={require} is not a valid backend constraint, expected one of {VALID_BACKEND_CONSTRAINTS}"
        )
    if prefer == "processes" and require == "sharedmem":
        raise ValueError("prefer == 'processes' and require == 'sharedmem' are inconsistent settings")


def find_backend(
    prefer: Any = default_parallel_config["prefer"],
    require: Any = default_parallel_config["require"],
    verbose: Any = default_parallel_config["verbose"],
) -> tuple[Any, dict[str, Any]]:
    """The back-end for a call with these wishes, and the settings that go with it."""
    from shoal.joblib import parallel

    config = _current()
    prefer = get_param(prefer, config, "prefer")
    require = get_param(require, config, "require")
    check_hints(prefer, require)
    backend = get_param(default_parallel_config["backend"], config, "backend")
    if type(backend) is Later:
        backend = backend.get()
    chosen = backend is not None
    if not chosen:
        backend = parallel.BACKENDS[parallel.DEFAULT_BACKEND](nesting_level=0)
    level = backend.nesting_level
    if require == "sharedmem" and not getattr(backend, "supports_sharedmem", False):
        threads = parallel.BACKENDS[parallel.DEFAULT_THREAD_BACKEND](nesting_level=level)
        if chosen and get_param(verbose, config, "verbose") >= 10:
            print(
                f"Using {type(threads).__name__} as joblib backend instead of {type(backend).__name__} "
                "as the latter does not provide shared memory semantics."
            )
        return threads, {**config, "n_jobs": 1}  # how many was meant for the other back-end
    if not chosen:
        uses_threads = getattr(backend, "uses_threads", False)
        if prefer == "threads" and not uses_threads:
            return parallel.BACKENDS[parallel.DEFAULT_THREAD_BACKEND](nesting_level=level), {**config, "n_jobs": 1}
        if prefer == "processes" and uses_threads:
            return parallel.BACKENDS[parallel.DEFAULT_PROCESS_BACKEND](nesting_level=level), dict(config)
    return backend, config


def get_active_backend(
    prefer: Any = default_parallel_config["prefer"],
    require: Any = default_parallel_config["require"],
    verbose: Any = default_parallel_config["verbose"],
) -> tuple[ParallelBackendBase, int | None]:
    """The back-end that `Parallel` would take here, and its number of jobs."""
    backend, config = find_backend(prefer, require, verbose)
    return backend, get_param(default_parallel_config["n_jobs"], config, "n_jobs")


class parallel_config:
    """Settings for every `Parallel` in this thread that does not say otherwise: from now on, or in a `with` block.

    backend: a name ("loky", "threading", "multiprocessing", or one that was registered), or an instance.
    n_jobs, verbose, temp_folder, max_nbytes, mmap_mode, prefer, require: as `Parallel`'s.
    inner_max_num_threads: threads of BLAS and OpenMP in each worker, for back-ends that can limit them.
    backend_params: arguments for the back-end, where it is given by name.

    `unregister()` puts back what was before. ValueError: there is no such back-end.
    """

    def __init__(
        self,
        backend: Any = default_parallel_config["backend"],
        *,
        n_jobs: Any = default_parallel_config["n_jobs"],
        verbose: Any = default_parallel_config["verbose"],
        temp_folder: Any = default_parallel_config["temp_folder"],
        max_nbytes: Any = default_parallel_config["max_nbytes"],
        mmap_mode: Any = default_parallel_config["mmap_mode"],
        prefer: Any = default_parallel_config["prefer"],
        require: Any = default_parallel_config["require"],
        inner_max_num_threads: int | None = None,
        **backend_params: Any,
    ) -> None:
        self._before = getattr(_backend, "config", None)
        self.old_parallel_config = _current()
        wanted = {
            "backend": self._make_backend(backend, inner_max_num_threads, backend_params),
            "n_jobs": n_jobs,
            "verbose": verbose,
            "temp_folder": temp_folder,
            "max_nbytes": max_nbytes,
            "mmap_mode": mmap_mode,
            "prefer": prefer,
            "require": require,
        }
        said = {name: value for name, value in wanted.items() if value is not default_parallel_config[name]}
        self.parallel_config = {**self.old_parallel_config, **said}
        _backend.config = self.parallel_config

    def _make_backend(self, backend: Any, inner_max_num_threads: int | None, params: dict[str, Any]) -> Any:
        if backend is default_parallel_config["backend"]:
            if inner_max_num_threads is not None or params:
                raise ValueError(
                    "inner_max_num_threads and other constructor parameters backend_params are only supported "
                    "when backend is not None."
                )
            return backend
        if isinstance(backend, str):
            backend = backend_factory(backend)(**params)
        elif params:
            raise ValueError("Constructor parameters backend_params are only supported when backend is a string.")
        if inner_max_num_threads is not None:
            assert backend.supports_inner_max_num_threads, (
                f"{type(backend).__name__} does not accept setting the inner_max_num_threads argument."
            )
            backend.inner_max_num_threads = inner_max_num_threads
        if backend.nesting_level is None:
            outer = get_param(default_parallel_config["backend"], self.old_parallel_config, "backend")
            backend.nesting_level = 0 if outer is None else outer.nesting_level
        return backend

    def __enter__(self) -> Any:
        return self.parallel_config

    def __exit__(self, exc_type: object, exc_value: object, traceback: object) -> None:
        self.unregister()

    def unregister(self) -> None:
        """Put back the settings that were there before this."""
        _backend.config = self._before


class parallel_backend(parallel_config):
    """Set the default back-end: the older form of `parallel_config`, with all cpus unless `n_jobs` says otherwise."""

    def __init__(
        self, backend: Any, n_jobs: int = -1, inner_max_num_threads: int | None = None, **backend_params: Any
    ) -> None:
        super().__init__(backend=backend, n_jobs=n_jobs, inner_max_num_threads=inner_max_num_threads, **backend_params)
        self.old_backend_and_jobs = (self.old_parallel_config["backend"], self.old_parallel_config["n_jobs"])
        self.new_backend_and_jobs = (self.parallel_config["backend"], self.parallel_config["n_jobs"])

    def __enter__(self) -> Any:
        return self.new_backend_and_jobs


def backend_factory(name: str, stacklevel: int = 4) -> Any:
    """What makes the back-end of that name. ValueError where there is none."""
    from shoal.joblib import parallel

    factory = parallel.BACKENDS.get(name)
    if factory is not None:
        return factory
    if name in parallel.EXTERNAL_BACKENDS:
        parallel.EXTERNAL_BACKENDS[name]()
        return parallel.BACKENDS[name]
    if name in parallel.MAYBE_AVAILABLE_BACKENDS:
        import warnings

        warnings.warn(
            f"joblib backend '{name}' is not available on your system, falling back to {parallel.DEFAULT_BACKEND}.",
            UserWarning,
            stacklevel=stacklevel,
        )
        parallel.BACKENDS[name] = parallel.BACKENDS[parallel.DEFAULT_BACKEND]
        return parallel.BACKENDS[name]
    raise ValueError(f"Invalid backend: {name}, expected one of {sorted(parallel.BACKENDS)}")


def register_parallel_backend(name: str, factory: Any, make_default: bool = False) -> None:
    """Have a back-end chosen by that name. factory: a callable that returns a `ParallelBackendBase`; make_default: it
    is what `Parallel` takes where nobody says otherwise."""
    from shoal.joblib import parallel

    parallel.BACKENDS[name] = factory
    if make_default:
        parallel.DEFAULT_BACKEND = name


def effective_n_jobs(n_jobs: int | None = -1) -> int:
    """How many jobs the back-end of this place would run at a time for that `n_jobs`."""
    if n_jobs == 1:
        return 1
    backend, of_backend = get_active_backend()
    return backend.effective_n_jobs(n_jobs=of_backend if n_jobs is None else n_jobs)
