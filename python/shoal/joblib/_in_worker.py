"""In a worker process of `Parallel`: how it begins, how deep it is, and what tasks are called by.

Imported by each clean worker at its start: nothing here may cost much to import.
"""

from __future__ import annotations

import os
import sys

from shoal import _serving, _threads

TYPE_CHECKING = False  # typing costs each start of a worker more than the rest of this file
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

level = 0  # how deep in calls of Parallel this process is: 1 in a worker of this program's, 2 in a worker's worker …
processes_above = 0  # of these, how many are processes


def enter(nesting_level: int) -> None:
    """This process is a worker of a back-end of that nesting level."""
    global level, processes_above
    level = nesting_level + 1
    processes_above += 1
    config = sys.modules.get("shoal.joblib._config")
    if config is not None:  # a forked worker's: what holds for its parent's calls does not hold here
        config._backend.__dict__.clear()


def call(function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    return function(*args, **kwargs)


def call_guarded(function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """As `call`, but an exception is the result."""
    try:
        return function(*args, **kwargs)
    except Exception as error:
        return error


def make_generator(entropy: Any, spawn_key: tuple[int, ...]) -> Any:
    """The numpy Generator of one task."""
    import numpy

    return numpy.random.default_rng(numpy.random.SeedSequence(entropy, spawn_key=spawn_key))


def begin_forked(nesting_level: int, initializer: Callable[..., object] | None, initargs: tuple[Any, ...]) -> None:
    """The initializer of a worker of a `multiprocessing` pool."""
    enter(nesting_level)
    if initializer is not None:
        initializer(*initargs)


def main(payload: bytes, fds: tuple[int, ...]) -> int:
    """What a worker that the zygote forked runs. A fifth descriptor holds what could not go in a few bytes."""
    place, owner, threads, unsaid, of_numba, nesting_level, installed = (int(number) for number in payload.split())
    table, heap, attention, crash, *more = fds
    enter(nesting_level)
    _share_threads(unsaid, of_numba)
    if installed:
        sys.meta_path.insert(0, _InstallingFinder())  # type: ignore[arg-type]
    duties = _serving.Duties(threads=threads or None, keeps_exits=True, unreadable=_unreadable, unsendable=_unsendable)
    if more:
        duties.initializer, duties.initargs = _begin_clean, (more[0],)
    _serving.serve((table, heap, attention), place, owner, crash, duties)
    return 0


def _unreadable(error: BaseException) -> BaseException:
    """What loky has for a task that cannot be unpickled."""
    from shoal.joblib import _errors

    return _errors.unreadable(error)


def _unsendable(error: BaseException, value: object) -> Any:
    """What pickling a result raised is the task's error, as with loky. value: the result, or what the task raised."""
    from shoal import _pickling

    error = _pickling.explain(error, value)
    if isinstance(value, BaseException) and value.__traceback__ is not None:
        error.__cause__ = value  # its traceback is to be seen too
    elif hasattr(error, "add_note"):
        try:
            error.add_note(f"This was raised as the result of the task was pickled: {value!r}")
        except Exception:  # its repr() fails
            pass
    try:
        _pickling.loads(_pickling.dumps(error, None), None)
    except Exception:
        return _serving._unsendable(error, value)
    return _serving.RemoteError(error)


def _share_threads(unsaid: int, of_numba: int) -> None:
    """As loky's workers have them: each variable that the program has not set says so many threads; and TBB's
    libraries, which count their threads over all processes, are asked to. 0: Numba has the program's number."""
    environ = os.environ
    for name in _threads.VARIABLES:
        environ.setdefault(name, str(unsaid))
    if of_numba:
        environ["NUMBA_NUM_THREADS"] = str(of_numba)
    environ.setdefault("ENABLE_IPC", "1")


class _InstallingFinder:
    """Has Shoal installed when a task imports joblib: its nested calls are ours then. Not before, as it takes time."""

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> Any:
        if name != "joblib":
            return None
        sys.meta_path.remove(self)  # type: ignore[arg-type]
        import importlib.util

        import shoal

        shoal.install()
        return importlib.util.find_spec(name)


def _begin_clean(fd: int) -> None:
    import pickle

    with open(fd, "rb", closefd=False) as file:
        file.seek(0)
        authkey, environment, call = pickle.loads(file.read())
    os.environ.update(environment)
    if authkey:
        from multiprocessing import process

        process.current_process().authkey = authkey
    if call:
        initializer, initargs = pickle.loads(call)
        initializer(*initargs)
