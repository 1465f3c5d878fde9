"""How many threads the numerical libraries of a worker use.

Workers share the cores: with as many BLAS or OpenMP threads in each as the machine has cores, they get in each other's
way. A library that is loaded later reads its environment variable when it starts; one that a fork inherited is told
through threadpoolctl: in the parent, around the fork of all of a pool's first workers; in the worker, where it is
forked later by another thread (from which OpenBLAS would not take its number back). Where the user has set one of the
variables, nothing is changed; the clean workers of `Parallel` have joblib's rule, by which each variable is looked at
by itself.

OpenBLAS ends its threads at a fork, in the parent too, and starts them anew at its next product. Whoever tells it a
number before that has it start them at once, and each looks for work for 25 ms before it sleeps: on all cores, while
the workers begin. So it is not told: `_openblas.py` sets the number itself, which is all that a call would do beside.
"""

from __future__ import annotations

import _thread
import os
import sys

TYPE_CHECKING = False  # typing costs each start of a worker more than the rest of this file
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

VARIABLES = (
    "OMP_NUM_THREADS",
    "OPENBLAS_NUM_THREADS",
    "MKL_NUM_THREADS",
    "BLIS_NUM_THREADS",
    "VECLIB_MAXIMUM_THREADS",
    "NUMEXPR_NUM_THREADS",
    "SHOAL_NUM_THREADS",
)
_VARIABLES = frozenset(VARIABLES) | frozenset(map(os.fsencode, VARIABLES))
_LIBRARIES = (b"openblas", b"mkl_rt", b"libgomp", b"libomp", b"libiomp", b"blis")

_controller: Any = None
_forked_with: int | None = None  # what the libraries are limited to at the moment of a fork, or were at our own
_modules = 0  # how many there were when the list of mappings was read last
_loaded: tuple[int, ...] = ()  # how often the list of mappings named each library when the controller was made


def share(workers: int, wanted: int | None = None) -> int | None:
    """How many threads each of so many workers gets; None: the user has said it by an environment variable.

    wanted: what the caller asked for, which comes before everything else.
    """
    if wanted is not None:
        if not isinstance(wanted, int) or wanted < 1:
            raise ValueError(f"threads must be at least 1, not {wanted!r}")
        return wanted
    # To ask for each, or to have the names as text, costs every call of Parallel as much as its tasks do.
    if not _VARIABLES.isdisjoint(getattr(os.environ, "_data", os.environ)):
        return None
    return fair_share(workers)


def fair_share(workers: int) -> int:
    return max(1, len(os.sched_getaffinity(0)) // workers)


def prepare_fork() -> None:
    """In the parent, before workers are forked: find the libraries that are loaded, once for all workers."""
    global _controller, _loaded, _modules
    # Reading the list of mappings costs as much as a fork: only after something was imported that may load a library.
    if _modules == len(sys.modules) or ("ctypes" not in sys.modules and "numpy" not in sys.modules):
        return
    _modules = len(sys.modules)
    with open("/proc/self/maps", "rb") as maps:
        text = maps.read()
    loaded = tuple(text.count(name) for name in _LIBRARIES)
    if loaded == _loaded or not any(loaded):
        return
    try:
        import threadpoolctl
    except ImportError:
        return
    _controller = _Libraries(threadpoolctl.ThreadpoolController())
    _loaded = loaded


class _Libraries:
    """All numerical libraries that are loaded."""

    def __init__(self, controller: Any) -> None:
        from shoal._openblas import OpenBLAS

        self._controller = controller
        self._own: list[OpenBLAS] = []
        self._others: set[str] = set()  # by what their names begin with, as threadpoolctl has it
        for library in controller.lib_controllers:
            try:
                self._own.append(OpenBLAS(library))
            except ValueError:
                self._others.add(library.prefix)

    def limit(self, threads: int) -> Callable[[], None]:
        """Have each use so many threads from now on. Returns what undoes it."""
        told = self._others | {library.prefix for library in self._own if library.number < threads}
        limiter = self._controller.limit(limits=dict.fromkeys(told, threads)) if told else None
        before = [(library, library.number) for library in self._own if library.prefix not in told]
        for library, _ in before:
            library.number = threads

        def undo() -> None:
            for library, number in before:
                library.number = number
            if limiter is not None:
                limiter.restore_original_limits()

        return undo


def forking(threads: int | None) -> Any:
    """Around forks of workers, in one thread: they start with so many threads, the parent has its own again after."""
    if threads is not None:
        prepare_fork()
    return _nothing if threads is None or _controller is None else _Forking(threads)


_forkings: set[int] = set()  # the ids of the `_Forking`s that are entered: each of a thread that forks workers now
_undoings: list[Callable[[], None]] = []  # what brings back the number that was there before the first of them
_lock = _thread.RLock()


def _after_fork() -> None:
    # In a child: only the thread that forked it is here, and it has the number that it is to have.
    global _lock
    _forkings.clear()
    _undoings.clear()
    _lock = _thread.RLock()


os.register_at_fork(after_in_child=_after_fork)


class _Forking:
    def __init__(self, threads: int) -> None:
        self._threads = threads

    def __enter__(self) -> None:
        global _forked_with
        with _lock:
            _forkings.add(id(self))
            _undoings.extend(map(_controller.limit, (self._threads,)))  # in one step: Ctrl-C in between would lose it
            _forked_with = self._threads

    def __exit__(self, *details: object) -> None:
        global _forked_with
        with _lock:
            _forkings.discard(id(self))
            if not _forkings:
                _forked_with = None
                while _undoings:
                    _undoings[-1]()
                    _undoings.pop()

    def __del__(self) -> None:  # where Ctrl-C came as it was entered, or left
        if _forkings or _undoings:
            self.__exit__()


class _Nothing:
    def __enter__(self) -> None:
        pass

    def __exit__(self, *details: object) -> None:
        pass


_nothing = _Nothing()


def limit(threads: int | None) -> None:
    """In a worker, before it loads anything: so many threads from now on."""
    if threads is None:
        return
    for name in VARIABLES:
        os.environ[name] = str(threads)
    if _controller is not None and _forked_with != threads:
        _controller.limit(threads)
