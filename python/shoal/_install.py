"""`shoal.install()`: has `multiprocessing`, `concurrent.futures` and `joblib` run on Shoal, and undoes it.

The standard library's factories look their classes up in the modules that define them at each call (`Pool` in
multiprocessing.pool, `Queue` in
multiprocessing.queues, `Popen` in multiprocessing.popen_fork). So these three names are what is changed, and whoever
imported multiprocessing
before sees ours too. Interpreters that multiprocessing starts (spawn, forkserver) install it before they do anything.
`concurrent.futures.process` and joblib, which cost time to import, are changed when the program imports them.
"""

from __future__ import annotations

import _thread
import functools
import importlib.machinery
import importlib.util
import os
import sys
import weakref
from collections.abc import Callable, Sequence
from types import FunctionType, ModuleType
from typing import Any

_undo: list[tuple[Any, str, Any]] = []
_MISSING = object()
_lock = _thread.RLock()  # of install() and uninstall(), each of which is one step to other threads


def _after_fork() -> None:
    global _lock
    _lock = _thread.RLock()


os.register_at_fork(after_in_child=_after_fork)


def _set(holder: Any, name: str, value: Any) -> None:
    # As it stands in there: a static method must not come back as a plain function.
    _undo.append((holder, name, vars(holder).get(name, _MISSING)))
    setattr(holder, name, value)


def install() -> None:
    """See shoal.install()."""
    with _lock:
        if _undo:
            return
        _install_multiprocessing()
        _install_futures()
        _install_joblib()


def is_installed() -> bool:
    """Whether install() was called, and not undone."""
    return bool(_undo)


def uninstall() -> None:
    """See shoal.uninstall()."""
    with _lock:
        while _undo:
            _put_back(*_undo.pop())


def _put_back(holder: Any, name: str, value: Any) -> None:
    if holder is sys.modules:
        if value is None:
            sys.modules.pop(name, None)
        else:
            sys.modules[name] = value
    elif holder is sys.meta_path:
        sys.meta_path.remove(value)
    elif holder is _preloads():
        holder.remove(value)
    elif value is _MISSING:
        delattr(holder, name)
    else:
        setattr(holder, name, value)


# ---------------------------------------------------------------------- multiprocessing


def _preloads() -> list[str]:
    from multiprocessing import forkserver

    return forkserver._forkserver._preload_modules  # type: ignore[attr-defined, no-any-return]


def _keep_the_insides_of(module: ModuleType) -> None:
    """Have the functions of this module's classes find each other as before, whatever its names are set to:
    `ThreadPool` is the standard library's own, and rests on its `Pool` and results by their names."""
    names = dict(vars(module))

    def keep(function: Any) -> Any:
        kept = FunctionType(function.__code__, names, function.__name__, function.__defaults__, function.__closure__)
        return functools.update_wrapper(kept, function, (*functools.WRAPPER_ASSIGNMENTS, "__kwdefaults__"))

    for holder in names.values():
        if not isinstance(holder, type) or holder.__module__ != module.__name__:
            continue
        for name, value in list(vars(holder).items()):
            if isinstance(value, FunctionType):
                _set(holder, name, keep(value))
            elif isinstance(value, (staticmethod, classmethod)) and isinstance(value.__func__, FunctionType):
                _set(holder, name, type(value)(keep(value.__func__)))


def _redirect_the_pool_that_others_hold(standard: Any, simple_queue: Any) -> None:
    """Whoever imported the class itself before makes one of ours by it. What was derived from it before stays the
    standard library's, on the standard library's queues: it rests on their insides."""
    begin = standard.__init__

    def __init__(self: Any, *args: Any, **keywords: Any) -> None:
        if type(self) is standard:
            import shoal.multiprocessing.pool

            self.__class__ = shoal.multiprocessing.pool.Pool
            self.__init__(*args, **keywords)
        else:
            begin(self, *args, **keywords)

    def _setup_queues(self: Any) -> None:
        self._inqueue = simple_queue(ctx=self._ctx)
        self._outqueue = simple_queue(ctx=self._ctx)
        self._quick_put = self._inqueue._writer.send
        self._quick_get = self._outqueue._reader.recv

    _set(standard, "__init__", functools.update_wrapper(__init__, begin))
    _set(standard, "_setup_queues", _setup_queues)


def _redirect_the_class_that_others_hold(standard: Any, ours: Any) -> None:
    """As that of the pool, for classes whose objects are made in C: what is made by the standard library's class is
    one of ours from the beginning."""

    def make_as_before(cls: Any, *args: Any, **keywords: Any) -> Any:
        base = super(standard, cls).__new__
        return base(cls) if base is object.__new__ else base(cls, *args, **keywords)

    def make(cls: Any, *args: Any, **keywords: Any) -> Any:
        return ours.__new__(ours, *args, **keywords) if cls is standard else make_as_before(cls, *args, **keywords)

    _set(standard, "__new__", make)
    # Once a class had a __new__ it needs one for good: without, object's complains of the arguments of __init__.
    _undo[-1] = standard, "__new__", staticmethod(make_as_before)


def _install_multiprocessing() -> None:
    # The standard library's other Popen classes derive from its own popen_fork.Popen: they must have done so before
    # it changes.
    from multiprocessing import (  # noqa: F401
        pool,
        popen_fork,
        popen_forkserver,
        popen_spawn_posix,
        queues,
        sharedctypes,
        spawn,
        synchronize,
    )

    import shoal.multiprocessing.context
    import shoal.multiprocessing.pool
    import shoal.multiprocessing.popen_fork
    import shoal.multiprocessing.queues
    import shoal.multiprocessing.sharedctypes
    import shoal.multiprocessing.synchronize

    _keep_the_insides_of(pool)
    _redirect_the_pool_that_others_hold(pool.Pool, shoal.multiprocessing.queues.StandardSimpleQueue)
    _set(pool, "Pool", shoal.multiprocessing.pool.Pool)
    # The factories of the standard library know nothing of Shoal's own keyword arguments.
    import multiprocessing
    from multiprocessing import context

    for name in ("Pool", "Lock", "RLock", "Semaphore", "BoundedSemaphore"):
        _set(context.BaseContext, name, getattr(shoal.multiprocessing.context._Methods, name))
        _set(multiprocessing, name, getattr(context._default_context, name))  # type: ignore[attr-defined]
    for name in ("ApplyResult", "AsyncResult", "MapResult", "IMapIterator", "IMapUnorderedIterator"):
        _set(pool, name, getattr(shoal.multiprocessing.pool, name))
    _keep_the_insides_of(queues)
    for name in ("Queue", "JoinableQueue", "SimpleQueue"):
        _redirect_the_class_that_others_hold(getattr(queues, name), getattr(shoal.multiprocessing.queues, name))
        _set(queues, name, getattr(shoal.multiprocessing.queues, name))
    for name in ("Lock", "RLock", "Semaphore", "BoundedSemaphore", "Condition", "Event", "Barrier"):
        ours = getattr(shoal.multiprocessing.synchronize, name)
        _redirect_the_class_that_others_hold(getattr(synchronize, name), ours)
        _set(synchronize, name, ours)
    # What wraps ctypes objects finds its classes by name at each call.
    for name in ("make_property", "SynchronizedBase", "Synchronized", "SynchronizedArray", "SynchronizedString"):
        _set(sharedctypes, name, getattr(shoal.multiprocessing.sharedctypes, name))
    _set(sharedctypes, "class_cache", weakref.WeakKeyDictionary())
    _set(popen_fork, "Popen", shoal.multiprocessing.popen_fork.Popen)

    for name in ("SpawnProcess", "ForkServerProcess"):
        _set(getattr(context, name), "_Popen", vars(getattr(shoal.multiprocessing.context, name))["_Popen"])

    command_line = spawn.get_command_line

    def get_command_line(**keywords: Any) -> list[str]:
        command = command_line(**keywords)
        if "-c" in command:
            at = command.index("-c") + 1
            command[at] = (
                "import importlib.util as u; u.find_spec('shoal') and __import__('shoal').install(); " + command[at]
            )
        return command

    _set(spawn, "get_command_line", get_command_line)
    preloads = _preloads()
    preloads.insert(0, "shoal._installed")
    _undo.append((preloads, "", "shoal._installed"))


# ------------------------------------------------------------------- concurrent.futures


def patch_futures() -> None:
    """Once `concurrent.futures.process` and `shoal.futures`, which needs it, are both loaded: both names of the class
    are ours."""
    import concurrent.futures
    from concurrent.futures import process

    # Not there yet where its import began this; it calls again at its end.
    ours = getattr(importlib.import_module("shoal.futures"), "ProcessPoolExecutor", None)
    if _undo and ours is not None and process.ProcessPoolExecutor is not ours:
        # This one first: where nobody asked for it yet, it is fetched from the other.
        _redirect_the_class_that_others_hold(process.ProcessPoolExecutor, ours)
        _set(concurrent.futures, "ProcessPoolExecutor", ours)
        _set(process, "ProcessPoolExecutor", ours)


def _install_futures() -> None:
    if "concurrent.futures.process" in sys.modules:
        patch_futures()
    else:
        _patch_when_imported("concurrent.futures.process", lambda module: patch_futures())


# ------------------------------------------------------------------------------- joblib


_PARALLEL_NAMES = (
    "Parallel",
    "ParallelBackendBase",
    "cpu_count",
    "delayed",
    "effective_n_jobs",
    "parallel_backend",
    "parallel_config",
    "register_parallel_backend",
)
_REPLACED = {"parallel": "shoal.joblib.parallel", "_parallel_backends": "shoal.joblib._backends"}


def _patch_joblib(joblib: ModuleType) -> None:
    # Whole modules: programs change names in joblib.parallel, and derive from classes in either.
    for name, home in _REPLACED.items():
        theirs, ours = sys.modules[f"joblib.{name}"], importlib.import_module(home)
        # Back-ends that were derived from joblib's own class before are back-ends here too.
        ours.ParallelBackendBase.register(theirs.ParallelBackendBase)
        _set(ours, "replaced", theirs)
        _set_module(f"joblib.{name}", ours)
        _set(joblib, name, ours)
        for known in _PARALLEL_NAMES if name == "parallel" else ():
            _set(theirs, known, getattr(ours, known))  # for those who hold the module
            _set(joblib, known, getattr(ours, known))
    _have_lokys_shutdown_end_workers()
    _patch_joblib_store(joblib)


def _have_lokys_shutdown_end_workers() -> None:
    """`get_reusable_executor().shutdown()` is how programs have the workers of `Parallel` give their memory back."""
    module = sys.modules.get("joblib.externals.loky.reusable_executor")
    if module is None:  # JOBLIB_MULTIPROCESSING is 0
        return
    executor: Any = module._ReusablePoolExecutor
    theirs = executor.shutdown

    def shutdown(self: Any, *args: Any, **keywords: Any) -> None:
        theirs(self, *args, **keywords)
        from shoal.joblib import _workers

        _workers.end_idle_crews()

    _set(executor, "shutdown", functools.update_wrapper(shutdown, theirs))


def _patch_joblib_store(joblib: ModuleType) -> None:
    """Memory, hash, dump and load. What joblib's other modules define beside these stays, and is not used."""
    from shoal.joblib import _store_backends, compressor, hashing, memory, numpy_pickle

    for name in memory.__all__:
        for holder in (joblib, sys.modules["joblib.memory"]):
            if hasattr(holder, name):
                _set(holder, name, getattr(memory, name))
    theirs = sys.modules["joblib.memory"]._STORE_BACKENDS  # type: ignore[attr-defined]
    _store_backends.STORE_BACKENDS.update({name: theirs[name] for name in theirs})
    _set(sys.modules["joblib.memory"], "_STORE_BACKENDS", _store_backends.STORE_BACKENDS)
    for holder in (joblib, sys.modules["joblib.hashing"]):
        _set(holder, "hash", hashing.hash)
    for holder in (joblib, sys.modules["joblib.numpy_pickle"]):
        _set(holder, "dump", numpy_pickle.dump)
        _set(holder, "load", numpy_pickle.load)
    for name in ("joblib", "joblib.compressor", "joblib.numpy_pickle", "joblib.numpy_pickle_utils"):
        holder = sys.modules[name]
        if hasattr(holder, "register_compressor"):
            _set(holder, "register_compressor", compressor.register_compressor)
        if hasattr(holder, "_COMPRESSORS"):
            _set(holder, "_COMPRESSORS", compressor.COMPRESSORS)


def _set_module(name: str, module: ModuleType) -> None:
    _undo.append((sys.modules, name, sys.modules.get(name)))
    sys.modules[name] = module


class _AliasFinder:
    """Where joblib is not installed: `joblib.parallel` is `shoal.joblib.parallel`, not another copy of it."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if not fullname.startswith("joblib."):
            return None
        try:
            found = importlib.util.find_spec(_home_of(fullname))
        except ModuleNotFoundError:  # of the package that it would lie in
            found = None
        loader: Any = self  # not importlib.abc's: to import that takes as long as a third of what is imported here
        return importlib.machinery.ModuleSpec(fullname, loader) if found is not None else None

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> ModuleType | None:
        return None

    def exec_module(self, module: ModuleType) -> None:
        _set_module(module.__name__, importlib.import_module(_home_of(module.__name__)))


def _home_of(name: str) -> str:
    short = name.partition(".")[2]
    if short.startswith("externals.cloudpickle"):  # the installed one
        return short.partition(".")[2]
    return _REPLACED.get(short, f"shoal.joblib.{short}")


class _PatchingLoader:
    """Runs the real loader, then patches what it loaded."""

    def __init__(self, loader: Any, patch: Callable[[ModuleType], None]) -> None:
        self._loader = loader
        self._patch = patch

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> ModuleType | None:
        return self._loader.create_module(spec)  # type: ignore[no-any-return]

    def exec_module(self, module: ModuleType) -> None:
        self._loader.exec_module(module)
        if _undo:
            self._patch(module)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._loader, name)


class _PatchingFinder:
    """Has one module patched when it is imported."""

    def __init__(self, name: str, patch: Callable[[ModuleType], None]) -> None:
        self._name = name
        self._patch = patch
        self._busy = False

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if fullname != self._name or self._busy:
            return None
        self._busy = True
        try:
            spec = importlib.util.find_spec(fullname)
        finally:
            self._busy = False
        if spec is not None and spec.loader is not None:
            patching: Any = _PatchingLoader(spec.loader, self._patch)
            spec.loader = patching
        return spec


def _patch_when_imported(name: str, patch: Callable[[ModuleType], None]) -> None:
    finder = _PatchingFinder(name, patch)
    sys.meta_path.insert(0, finder)
    _undo.append((sys.meta_path, "", finder))


def _install_joblib() -> None:
    loaded = sys.modules.get("joblib")
    if loaded is not None:
        _patch_joblib(loaded)
    elif importlib.util.find_spec("joblib") is not None:
        _patch_when_imported("joblib", _patch_joblib)
    else:
        import shoal.joblib

        _set_module("joblib", shoal.joblib)
        finder = _AliasFinder()
        sys.meta_path.insert(0, finder)
        _undo.append((sys.meta_path, "", finder))
