"""`multiprocessing.context` with Shoal's `Pool`, `Queue`, locks and start of processes. The contexts are sub-classes
of the standard library's, so that `isinstance` agrees; what is not ours yet is theirs.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from multiprocessing import context as _standard
from multiprocessing import process as _process
from typing import Any

__all__ = ["DefaultContext", "ForkContext", "ForkServerContext", "Process", "SpawnContext"]

AuthenticationError = _standard.AuthenticationError
BufferTooShort = _standard.BufferTooShort
ProcessError = _standard.ProcessError
TimeoutError = _standard.TimeoutError
BaseContext = _standard.BaseContext
assert_spawning = _standard.assert_spawning
get_spawning_popen = _standard.get_spawning_popen
set_spawning_popen = _standard.set_spawning_popen


class _Methods:
    """What a context makes on the engine."""

    def Queue(self, maxsize: int = 0) -> Any:
        """A queue between processes."""
        from shoal.multiprocessing.queues import Queue

        return Queue(maxsize, ctx=self.get_context())  # type: ignore[attr-defined]

    def JoinableQueue(self, maxsize: int = 0) -> Any:
        """A queue that also tells when all that was put has been dealt with."""
        from shoal.multiprocessing.queues import JoinableQueue

        return JoinableQueue(maxsize, ctx=self.get_context())  # type: ignore[attr-defined]

    def SimpleQueue(self) -> Any:
        """A queue without a bound and without timeouts."""
        from shoal.multiprocessing.queues import SimpleQueue

        return SimpleQueue(ctx=self.get_context())  # type: ignore[attr-defined]

    def Lock(self, *, robust: bool = False) -> Any:
        """A lock; `robust`: handed over when its owner dies (`shoal.multiprocessing.synchronize`)."""
        from shoal.multiprocessing.synchronize import Lock

        return Lock(robust=robust, ctx=self.get_context())  # type: ignore[attr-defined]

    def RLock(self, *, robust: bool = False) -> Any:
        """A lock that its owner may acquire again."""
        from shoal.multiprocessing.synchronize import RLock

        return RLock(robust=robust, ctx=self.get_context())  # type: ignore[attr-defined]

    def Semaphore(self, value: int = 1, *, owned: bool = False, robust: bool = False) -> Any:
        """A semaphore; `owned`: each unit is the process's that acquired it; `robust`: and handed over when it dies."""
        from shoal.multiprocessing.synchronize import Semaphore

        return Semaphore(value, owned=owned, robust=robust, ctx=self.get_context())  # type: ignore[attr-defined]

    def BoundedSemaphore(self, value: int = 1, *, owned: bool = False, robust: bool = False) -> Any:
        """A semaphore that never has more units than it began with."""
        from shoal.multiprocessing.synchronize import BoundedSemaphore

        return BoundedSemaphore(value, owned=owned, robust=robust, ctx=self.get_context())  # type: ignore[attr-defined]

    def Condition(self, lock: Any = None) -> Any:
        """A condition over `lock`, an RLock of its own by default."""
        from shoal.multiprocessing.synchronize import Condition

        return Condition(lock, ctx=self.get_context())  # type: ignore[attr-defined]

    def Event(self) -> Any:
        """A flag that can be waited for."""
        from shoal.multiprocessing.synchronize import Event

        return Event(ctx=self.get_context())  # type: ignore[attr-defined]

    def Barrier(self, parties: int, action: Callable[[], object] | None = None, timeout: float | None = None) -> Any:
        """A number of parties that wait for each other."""
        from shoal.multiprocessing.synchronize import Barrier

        return Barrier(parties, action, timeout, ctx=self.get_context())  # type: ignore[attr-defined]

    def Value(self, typecode_or_type: Any, *args: Any, lock: Any = True) -> Any:
        """A ctypes object in shared memory, with a lock unless `lock` is False."""
        from shoal.multiprocessing.sharedctypes import Value

        return Value(typecode_or_type, *args, lock=lock, ctx=self.get_context())  # type: ignore[attr-defined]

    def Array(self, typecode_or_type: Any, size_or_initializer: Any, *, lock: Any = True) -> Any:
        """A ctypes array in shared memory, with a lock unless `lock` is False."""
        from shoal.multiprocessing.sharedctypes import Array

        return Array(typecode_or_type, size_or_initializer, lock=lock, ctx=self.get_context())  # type: ignore[attr-defined]

    def Pool(
        self,
        processes: int | None = None,
        initializer: Callable[..., object] | None = None,
        initargs: Iterable[Any] = (),
        maxtasksperchild: int | None = None,
        **options: Any,
    ) -> Any:
        """A pool of worker processes; `options` are the keyword-only arguments of `shoal.multiprocessing.pool.Pool`."""
        from shoal.multiprocessing.pool import Pool

        context = self.get_context()  # type: ignore[attr-defined]
        return Pool(processes, initializer, initargs, maxtasksperchild, context=context, **options)


class _AfterFork:
    @staticmethod
    def _after_fork() -> None:
        """In a new process: what was the parent's to see to is forgotten. A registry that is empty is not gone through:
        each page that a forked process touches first costs it a fault."""
        from multiprocessing import util

        util._finalizer_registry.clear()  # type: ignore[attr-defined]
        if util._afterfork_registry.data:  # type: ignore[attr-defined]
            util._run_after_forkers()  # type: ignore[attr-defined]


class Process(_AfterFork, _standard.Process):
    """A process that runs `target`, or the `run` method of a sub-class; started by the default context's method."""

    @staticmethod
    def _Popen(process_obj: Any) -> Any:
        return _default_context.get_context().Process._Popen(process_obj)


class ForkProcess(_AfterFork, _standard.ForkProcess):
    @staticmethod
    def _Popen(process_obj: Any) -> Any:
        from shoal.multiprocessing.popen_fork import Popen

        return Popen(process_obj)


class ForkContext(_Methods, _standard.ForkContext):
    Process = ForkProcess


# Before `install()` sets them to ours.
_standard_popen = {"spawn": _standard.SpawnProcess._Popen, "forkserver": _standard.ForkServerProcess._Popen}


def _clean_popen(process_obj: Any, method: str) -> Any:
    """Started by a warm zygote; by the standard library's own way where the user named another interpreter."""
    import sys
    from multiprocessing import spawn

    if os.fsdecode(spawn.get_executable()) != sys.executable:
        return _standard_popen[method](process_obj)
    from shoal.multiprocessing import popen_clean

    return popen_clean.PopenSpawn(process_obj) if method == "spawn" else popen_clean.PopenForkServer(process_obj)


class SpawnProcess(_AfterFork, _standard.SpawnProcess):
    @staticmethod
    def _Popen(process_obj: Any) -> Any:
        return _clean_popen(process_obj, "spawn")


class ForkServerProcess(_AfterFork, _standard.ForkServerProcess):
    @staticmethod
    def _Popen(process_obj: Any) -> Any:
        return _clean_popen(process_obj, "forkserver")


class SpawnContext(_Methods, _standard.SpawnContext):
    Process = SpawnProcess


class ForkServerContext(_Methods, _standard.ForkServerContext):
    Process = ForkServerProcess


_concrete_contexts: dict[str, Any] = {
    "fork": ForkContext(),
    "spawn": SpawnContext(),
    "forkserver": ForkServerContext(),
}


class DefaultContext(_Methods, _standard.DefaultContext):
    """The context whose methods the package shows. Its start method is the standard library's: whichever of the two it
    is set or asked by, there is one."""

    Process = Process

    def __init__(self, context: Any) -> None:
        self._default_context = context

    @property
    def _actual_context(self) -> Any:
        theirs = _standard._default_context._actual_context  # type: ignore[attr-defined]
        return None if theirs is None else _concrete_contexts.get(theirs._name, theirs)

    @_actual_context.setter
    def _actual_context(self, context: Any) -> None:
        _standard._default_context._actual_context = (  # type: ignore[attr-defined]
            None if context is None else _standard._concrete_contexts[context._name]  # type: ignore[attr-defined]
        )

    def get_context(self, method: str | None = None) -> Any:
        if method is None:
            if self._actual_context is None:
                self._actual_context = self._default_context
            return self._actual_context
        try:
            context = _concrete_contexts[method]
        except KeyError:
            raise ValueError(f"cannot find context for {method!r}") from None
        context._check_available()
        return context

    def set_start_method(self, method: str | None, force: bool = False) -> None:
        if self._actual_context is not None and not force:
            raise RuntimeError("context has already been set")
        self._actual_context = None if method is None and force else self.get_context(method)


# The standard library's own default for this Python and platform.
_default_method = _standard._default_context._default_context.get_start_method()  # type: ignore[attr-defined]
_default_context = DefaultContext(_concrete_contexts[_default_method])

_current_process = _process.current_process
