"""`shoal.install()`: has `multiprocessing`, `concurrent.futures` and `joblib` run on Shoal, and undoes it.

The standard library's factories look their classes up in the modules that define them at each call (`Pool` in
multiprocessing.pool, `Queue` in
multiprocessing.queues, `Popen` in multiprocessing.popen_fork). So these three names are what is changed, and whoever
imported multiprocessing
before sees ours too. Interpreters that multiprocessing starts (spawn, forkserver) install it before they do anything.
`concurrent.futures.process` and joblib, which cost time to import, are changed when the program imports them.
"""

from __future__ import annotations

import importlib.abc
import importlib.machinery
import importlib.util
import sys
from collections.abc import Callable, Sequence
from types import ModuleType
from typing import Any

_undo: list[tuple[Any, str, Any]] = []
_MISSING = object()


def _set(holder: Any, name: str, value: Any) -> None:
    _undo.append((holder, name, getattr(holder, name, _MISSING)))
    setattr(holder, name, value)


def install() -> None:
    """See shoal.install()."""
    if _undo:
        return
    _install_multiprocessing()
    _install_futures()
    _install_joblib()


def uninstall() -> None:
    """See shoal.uninstall()."""
    while _undo:
        holder, name, value = _undo.pop()
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


def _install_multiprocessing() -> None:
    # The standard library's other Popen classes derive from its own popen_fork.Popen: they must have done so before
    # it changes.
    from multiprocessing import (  # noqa: F401
        pool,
        popen_fork,
        popen_forkserver,
        popen_spawn_posix,
        queues,
        spawn,
    )

    import shoal.multiprocessing.context
    import shoal.multiprocessing.pool
    import shoal.multiprocessing.popen_fork
    import shoal.multiprocessing.queues

    _set(pool, "Pool", shoal.multiprocessing.pool.Pool)
    # The factories of the standard library know nothing of Shoal's own keyword arguments.
    import multiprocessing
    from multiprocessing import context

    _set(context.BaseContext, "Pool", shoal.multiprocessing.context._Methods.Pool)
    _set(multiprocessing, "Pool", context._default_context.Pool)  # type: ignore[attr-defined]
    for name in ("ApplyResult", "AsyncResult", "MapResult", "IMapIterator", "IMapUnorderedIterator"):
        _set(pool, name, getattr(shoal.multiprocessing.pool, name))
    _set(queues, "Queue", shoal.multiprocessing.queues.Queue)
    _set(queues, "JoinableQueue", shoal.multiprocessing.queues.JoinableQueue)
    _set(popen_fork, "Popen", shoal.multiprocessing.popen_fork.Popen)

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
    from shoal.joblib.memory import Memory

    # Whole modules: programs change names in joblib.parallel, and derive from classes in either.
    for name, home in _REPLACED.items():
        theirs, ours = sys.modules[f"joblib.{name}"], importlib.import_module(home)
        # Back-ends that were derived from joblib's own class before are back-ends here too.
        ours.ParallelBackendBase.register(theirs.ParallelBackendBase)
        _set_module(f"joblib.{name}", ours)
        _set(joblib, name, ours)
        for known in _PARALLEL_NAMES if name == "parallel" else ():
            _set(theirs, known, getattr(ours, known))  # for those who hold the module
            _set(joblib, known, getattr(ours, known))
    for holder in (joblib, sys.modules["joblib.memory"]):
        _set(holder, "Memory", Memory)


def _set_module(name: str, module: ModuleType) -> None:
    _undo.append((sys.modules, name, sys.modules.get(name)))
    sys.modules[name] = module


class _AliasFinder(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Where joblib is not installed: `joblib.parallel` is `shoal.joblib.parallel`, not another copy of it."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if not fullname.startswith("joblib."):
            return None
        home = _home_of(fullname)
        return importlib.machinery.ModuleSpec(fullname, self) if importlib.util.find_spec(home) is not None else None

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> ModuleType | None:
        return None

    def exec_module(self, module: ModuleType) -> None:
        _set_module(module.__name__, importlib.import_module(_home_of(module.__name__)))


def _home_of(name: str) -> str:
    short = name.partition(".")[2]
    return _REPLACED.get(short, f"shoal.joblib.{short}")


class _PatchingLoader(importlib.abc.Loader):
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


class _PatchingFinder(importlib.abc.MetaPathFinder):
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
            spec.loader = _PatchingLoader(spec.loader, self._patch)
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
