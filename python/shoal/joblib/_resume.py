"""`Parallel(memory=…)`: a map that goes on where it stopped.

Each task has a key in the store of a `Memory`: that of a cached call of its function with its arguments, so a function
cached there and a map over it share their results. Of tasks of one call that are equal, the second, third … have keys
of their own: a map over a function that draws random numbers keeps each draw. A task with a key that the store has is
not handed out. Of the others the worker that computed one keeps it, before it answers: what was finished is kept
whatever becomes of this process.
"""

from __future__ import annotations

import os
import pickle
import time
from collections import deque

from shoal.joblib import _around

TYPE_CHECKING = False  # typing costs each start of a worker more than the rest of this file
if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterable, Iterator
    from typing import Any

    from shoal.joblib._around import Task

_KEPT_PLACES = 64  # functions whose folder in the store a worker holds open


# --------------------------------------------------------------------- in the worker

_places: dict[Any, Any] = {}


def _open_place(path: str, options: tuple[int, ...], folder: str, identity: bytes) -> Any:
    """The engine's half of a cached function: enough of it to keep values. None: nothing can be kept there."""
    key = (path, options, folder, identity, os.getpid())
    known = _places.get(key, _places)  # in one step: with threads as workers another may be clearing it
    if known is not _places:
        return known
    from shoal import _engine
    from shoal.joblib._store_backends import Location

    memo = None
    store = Location.at(path, options).store()
    if store is not None:
        memo = _engine.Memo()
        memo._open(store, folder, pickle.loads)
        memo._describe(None, (), identity, (), (), None, b"\0\0", (), {}, 0, 0, 0, 0, 0, 0, 0, (), False)
    if len(_places) >= _KEPT_PLACES:
        _places.clear()
    _places[key] = memo
    return memo


def keep(
    function: Callable[..., Any], fixed: tuple[Any, ...], key: bytes, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> Any:
    """Call the function and keep what it returns."""
    begun = time.perf_counter_ns()
    value = function(*args, **kwargs)
    cost = time.perf_counter_ns() - begun
    place, parts = fixed
    memo = _open_place(*place)
    if memo is None:
        return value
    from shoal.joblib import _value

    try:
        pickled, buffers = _value.dump(value)
    except Exception as error:
        _warn(
            f"The result of {_around.name_of(function)} cannot be kept, as it cannot be pickled "
            f"({type(error).__name__}: {error}). It is computed again in each run."
        )
        return value
    try:
        memo._keep(key, _value.describe_call(args, kwargs, parts), pickled, buffers, cost)
    except (OSError, BufferError, MemoryError) as error:
        if isinstance(error, PermissionError) and error.errno == 1:
            raise
        _warn(f"Results cannot be kept in {place[0]}: {error}. They are computed again in the next run.")
    return value


keep.is_around = True  # type: ignore[attr-defined]


def _warn(message: str) -> None:
    import warnings

    from shoal.joblib._store_backends import CacheWarning

    warnings.warn(message, CacheWarning, stacklevel=3)


# --------------------------------------------------------------------- in the caller


def open_memory(memory: Any) -> Any:
    """A `Memory` from what was passed as `memory=`: one, or a folder. None where nothing is to be kept."""
    if memory is None:
        return None
    from shoal.joblib._store_backends import Location
    from shoal.joblib.memory import Memory

    if isinstance(memory, (str, os.PathLike)):
        memory = Memory(memory, verbose=0)
    if not isinstance(memory, Memory):
        raise TypeError(f"memory= takes a folder or a Memory of shoal.joblib, not {type(memory).__name__}")
    if memory.store_backend is None:
        return None
    if not isinstance(memory.store_backend, Location):
        raise ValueError(f"memory= takes a Memory in Shoal's own store, not one with the back-end {memory.backend!r}")
    return memory


class Resume:
    """The tasks and results of one call.

    position: the place among all tasks of the one that was handed out last.
    found: how many tasks had their result in the store.
    """

    def __init__(self, memory: Any, seed: Any) -> None:
        self._memory = memory
        self._seed = seed
        self._around = _around.Around(keep)
        self._cached: dict[int, tuple[Any, Any, Any]] = {}  # id(function) -> it, as cached, what its tasks carry
        self._times: dict[bytes, int] = {}  # how many tasks so far had that key
        # In the order of the tasks: (True, the value) of what was found, (False, None) for what was handed out.
        self._ledger: deque[tuple[bool, Any]] = deque()
        self.position = -1
        self.found = 0

    def tasks(self, iterable: Iterable[Task]) -> Iterator[Task]:
        """The tasks that are still to be done."""
        seed = self._seed
        for index, (function, args, kwargs) in enumerate(iterable):
            keyed = kwargs
            if seed is not None:
                # The generator's own state cannot be told from another's; what it is made from can.
                entropy = getattr(seed, "entropy", seed)
                keyed = {**kwargs, "rng": ("seed", entropy, (*getattr(seed, "spawn_key", ()), index))}
            cached, fixed = self._cache(function)
            key = self._find_key(cached, args, keyed)
            if key is not None and (cached.cache_validation_callback is None or cached._is_valid(key)):
                there, value = cached._look_up(key)
                if there:
                    self.found += 1
                    self._ledger.append((True, value))
                    continue
                if value is not None:
                    cached._report(key, value)
            self.position = index
            self._ledger.append((False, None))
            if key is None:
                yield function, args, kwargs
            else:
                yield self._around.task(cached.func, fixed, key, args, kwargs)

    def _cache(self, function: Any) -> tuple[Any, Any]:
        known = self._cached.get(id(function))
        if known is None:
            from shoal.joblib._store_backends import Location
            from shoal.joblib.memory import MemorizedFunc

            cached = function
            if not (isinstance(function, MemorizedFunc) and isinstance(function.store_backend, Location)):
                cached = self._memory.cache(function)
            cached._refresh()
            seen, location = cached._parameters, cached.store_backend
            place = (location.path, tuple(location.options), cached.func_id, seen.identity)
            known = (function, cached, (place, seen.parts))
            # Others may not be what they were when the next task comes.
            if cached is function or isinstance(function, _around._SENT_ONCE):
                self._cached[id(function)] = known
        return known[1], known[2]

    def _find_key(self, cached: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bytes | None:
        if not cached._is_open:  # the folder cannot be used, which was said
            return None
        try:
            key: bytes | None = cached._key_of(args, kwargs)
        except TypeError:
            return None
        if key is None:  # the arguments do not fit the function, which says so best; or its closure cannot be hashed
            return None
        times = self._times[key] = self._times.get(key, 0) + 1
        if times == 1:
            return key
        from shoal import _engine

        identity = _engine.hash_object((cached._parameters.identity, times))
        return cached._key(args, kwargs, identity)  # type: ignore[no-any-return]

    def merge(self, output: Generator[Any, None, None], ordered: bool) -> Generator[Any, None, None]:
        """The results of all tasks, from those that were handed out. As `output`, its first value is None."""
        ledger = self._ledger
        try:
            yield next(output)
            while True:
                while ledger and (ledger[0][0] or not ordered):
                    found, value = ledger.popleft()
                    if found:
                        yield value
                try:
                    value = next(output)
                except StopIteration:
                    break
                # What comes before it in the order is there by now.
                while ordered and ledger[0][0]:
                    yield ledger.popleft()[1]
                if ordered:
                    ledger.popleft()
                yield value
            while ledger:
                found, value = ledger.popleft()
                if found:
                    yield value
        finally:
            output.close()
