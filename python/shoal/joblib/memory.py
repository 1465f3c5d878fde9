"""`Memory`: function results kept on disk, and computed again only when something changed.

    memory = Memory("cache")

    @memory.cache
    def f(x): ...

A call is a hit if the function's own code has the same meaning (formatting, comments and line numbers do not count) and
the arguments are equal (see `hashing`). The results lie in `LOCATION/shoal`, beside joblib's own in `LOCATION/joblib`.
Arrays come back as views of the entry's file, private to the process: they can be written to, which changes nothing
on disk.
"""

from __future__ import annotations

import datetime
import functools
import inspect
import logging
import os
import pickle
import time
import warnings
from collections.abc import Callable
from typing import Any

from shoal import _engine
from shoal.joblib import _value, func_inspect
from shoal.joblib.func_inspect import function_name

__all__ = ["AsyncMemorizedFunc", "CacheWarning", "MemorizedFunc", "MemorizedResult", "Memory", "NotMemorizedFunc",
           "NotMemorizedResult", "expires_after"]  # fmt: skip

_NOTHING = object()
_MMAP_MODES = (None, "r", "r+", "w+", "c")


class CacheWarning(Warning):
    """A result could not be kept, or what was kept could not be used; the call itself is not affected."""


def _format_time(seconds: float) -> str:
    return f"{seconds:.1f}s, {seconds / 60:.1f}min"


class _Location:
    """The store of one location in this process, opened when it is first needed; shared by all that use the
    location."""

    _all: dict[tuple[str, int], _Location] = {}

    def __init__(self, path: str, flags: int) -> None:
        self.path = path
        self.flags = flags
        self._store: _engine.Store | None = None
        self._warned = False

    @classmethod
    def at(cls, path: str, flags: int) -> _Location:
        key = (os.path.abspath(os.path.expanduser(path)), flags)
        location = cls._all.get(key)
        if location is None:
            location = cls._all.setdefault(key, cls(*key))
        return location

    def store(self) -> _engine.Store | None:
        """The store, or None where the folder cannot be made (after one warning).

        Raises PermissionError where others could write to it.
        """
        if self._store is None:
            try:
                store = _engine.Store(self.path, self.flags)
            except PermissionError as error:
                if error.errno == 1:  # EPERM: not ours, as against EACCES: may not
                    raise
                self.warn(error)
                return None
            except OSError as error:
                self.warn(error)
                return None
            self._ignore_in_git()
            self._store = store
        return self._store

    def _ignore_in_git(self) -> None:
        try:
            with open(os.path.join(self.path, ".gitignore"), "x") as file:
                file.write("# Created by shoal.\n*\n")
        except OSError:
            pass

    def warn(self, error: BaseException) -> None:
        """Say, once, that nothing can be kept here."""
        if not self._warned:
            self._warned = True
            warnings.warn(
                f"Results cannot be kept in {self.path}: {error}. They are computed again each time.",
                CacheWarning,
                stacklevel=2,
            )


class _Speaker:
    """Log messages that name their object."""

    def warn(self, message: str) -> None:
        logging.getLogger("shoal").warning("[%s]: %s", self, message)

    def info(self, message: str) -> None:
        logging.getLogger("shoal").info("[%s]: %s", self, message)


class NotMemorizedResult:
    """A value that is kept nowhere: what `call_and_shelve` gives where there is no cache."""

    __slots__ = ("valid", "value")

    def __init__(self, value: Any) -> None:
        self.value = value
        self.valid = True

    def get(self) -> Any:
        """The value; KeyError after `clear`."""
        if not self.valid:
            raise KeyError("No value stored.")
        return self.value

    def clear(self) -> None:
        """Forget the value."""
        self.valid = False
        self.value = None

    def __repr__(self) -> str:
        name = type(self).__name__
        return f"{name}({_value.short_repr(self.value)})" if self.valid else f"{name} with no value"


class MemorizedResult(_Speaker):
    """A reference to a kept value: small, picklable, valid in every process that sees the location."""

    def __init__(
        self,
        location: str,
        call_id: tuple[str, str],
        backend: str = "local",
        mmap_mode: str | None = None,
        verbose: int = 0,
        timestamp: float | None = None,
        metadata: dict[str, Any] | None = None,
    ) -> None:
        self.location = str(location)
        self.backend = backend
        self.mmap_mode = mmap_mode
        self.verbose = verbose
        self.timestamp = timestamp
        self.metadata = metadata if metadata is not None else {}
        self.duration = self.metadata.get("duration")
        self._call_id = call_id

    @property
    def func(self) -> str:
        return self._call_id[0]

    @property
    def func_id(self) -> str:
        return self._call_id[0]

    @property
    def args_id(self) -> str:
        return self._call_id[1]

    def get(self) -> Any:
        """The value. KeyError where it is there no more, or cannot be read."""
        store = _Location.at(self.location, 0).store()
        if self.verbose > 1:
            print(f"[Memory]: Loading {self.func_id}...")
        try:
            parts = store.get(self.func_id, bytes.fromhex(self.args_id)) if store is not None else None
        except PermissionError:
            raise
        except OSError as error:
            raise KeyError(f"The value of {self!r} cannot be read: {error}") from error
        if parts is None:
            raise KeyError(f"Non-existing item (may have been cleared): {self!r}")
        buffers = [memoryview(part).toreadonly() if self.mmap_mode == "r" else part for part in parts[2:]]
        return pickle.loads(parts[1], buffers=buffers)

    def clear(self) -> None:
        """Remove the value from the cache."""
        store = _Location.at(self.location, 0).store()
        if store is not None:
            store.remove(self.func_id, bytes.fromhex(self.args_id))

    def __repr__(self) -> str:
        name = type(self).__name__
        return f'{name}(location="{self.location}", func="{self.func_id}", args_id="{self.args_id}")'


class NotMemorizedFunc:
    """A function with the interface of a cached one, where there is no cache (`Memory(None)`)."""

    def __init__(self, func: Callable[..., Any]) -> None:
        self.func = func

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.func(*args, **kwargs)

    def call_and_shelve(self, *args: Any, **kwargs: Any) -> Any:
        """Call the function; the value in a NotMemorizedResult."""
        return NotMemorizedResult(self.func(*args, **kwargs))

    def call(self, *args: Any, **kwargs: Any) -> tuple[Any, dict[str, Any]]:
        """Call the function; the value and no metadata."""
        return self.func(*args, **kwargs), {}

    def check_call_in_cache(self, *args: Any, **kwargs: Any) -> bool:
        """False."""
        return False

    def clear(self, warn: bool = True) -> None:
        """Nothing is kept, so nothing is removed."""

    def __repr__(self) -> str:
        return f"{type(self).__name__}(func={self.func})"


class AsyncNotMemorizedFunc(NotMemorizedFunc):
    """The same for a coroutine function."""

    async def call_and_shelve(self, *args: Any, **kwargs: Any) -> Any:
        return NotMemorizedResult(await self.func(*args, **kwargs))


def _rebuild(
    kind: type[MemorizedFunc], func: Any, location: str, flags: int, folder: str, options: dict[str, Any]
) -> Any:
    return kind(func, _Location.at(location, flags), folder=folder, **options)


class MemorizedFunc(_engine.Memo, _Speaker):
    """A function whose results are kept. Made by `Memory.cache`.

    func: the function itself.
    """

    func: Callable[..., Any]

    def __init__(
        self,
        func: Callable[..., Any],
        location: Any,
        backend: str = "local",
        ignore: list[str] | None = None,
        mmap_mode: str | None = None,
        compress: Any = False,
        verbose: int = 1,
        timestamp: float | None = None,
        cache_validation_callback: Callable[[dict[str, Any]], bool] | None = None,
        *,
        folder: str | None = None,
    ) -> None:
        try:
            functools.update_wrapper(self, func)  # type: ignore[arg-type]
        except Exception:  # some callables do not like it
            pass
        if isinstance(ignore, str):
            raise ValueError(f"ignore must be a list of parameters to ignore; {ignore!r} was given")
        self.func = func
        self.func_id = folder if folder is not None else function_name(func)
        self.backend = backend
        self.ignore = list(ignore) if ignore is not None else []
        self.mmap_mode = mmap_mode
        self.compress = compress
        self.timestamp = timestamp if timestamp is not None else time.time()
        self.cache_validation_callback = cache_validation_callback
        self._verbose = verbose
        self._location = location if isinstance(location, _Location) else _Location.at(_folder_in(location), 0)
        self._is_open = False
        self._warned = False
        self._parameters: func_inspect.Parameters | None = None

    # -- called by the engine's Memo (binding/memo.c) --

    def _refresh(self) -> None:
        """Look at the function, as it is new or has changed, and tell the engine what was seen."""
        if not self._is_open:
            store = self._location.store()
            if store is not None:
                self._open(store, self.func_id, pickle.loads)
                self._is_open = True
        seen = self._parameters = func_inspect.examine(self.func, self.ignore, _NOTHING)
        fully = self._verbose > 1 or self.cache_validation_callback is not None or not self._is_open
        self._describe(
            seen.watched, seen.cells, seen.identity, seen.names, seen.defaults, _NOTHING, seen.ignored, seen.leading,
            seen.keywords, seen.positional_only, seen.positional, seen.takes_args, seen.takes_keywords,
            self.mmap_mode is not None, fully, self.mmap_mode == "r",
        )  # fmt: skip

    def _call_unbound(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """The arguments do not fit: the function itself says so best."""
        return self.func(*args, **kwargs)

    def _call_fully(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        return self._cached_call(args, kwargs)[0]

    def _compute(self, args: tuple[Any, ...], kwargs: dict[str, Any], key: bytes, problem: Any) -> Any:
        if problem is not None:
            self._report(key, problem)
        return self._call(args, kwargs, key)[0]

    # -- the long way --

    def _report(self, key: bytes, problem: Any) -> None:
        """An entry cannot be used: say so. It is replaced when the value has been computed."""
        reason = f"{type(problem).__name__}: {problem}" if isinstance(problem, BaseException) else problem
        warnings.warn(
            f"The kept result {os.path.join(self._path(), key.hex())} of {self.func_id} cannot be used "
            f"({reason}). It is computed again.",
            CacheWarning,
            stacklevel=4,
        )

    def _metadata(self, key: bytes) -> dict[str, Any] | None:
        """What is known of an entry, or None where there is none that is sound."""
        about = self._about(key)
        if about is None:
            return None
        text, created, cost = about
        seen = self._parameters
        assert seen is not None
        try:
            arguments = _value.read_call(text, seen.names, len(seen.leading))
        except ValueError:
            arguments = {}
        return {"duration": cost / 1e9, "input_args": arguments, "time": created / 1e9}

    def _is_valid(self, key: bytes) -> bool:
        """Whether there is an entry that may be used; one that the user's callback refuses is removed."""
        if not self._is_open:
            return False
        if self.cache_validation_callback is None:
            return self._about(key) is not None
        metadata = self._metadata(key)
        if metadata is None:
            return False
        if self.cache_validation_callback(metadata):
            return True
        self._remove(key)
        return False

    def _print_duration(self, seconds: float, context: str = "") -> None:
        message = f"{getattr(self.func, '__name__', self.func_id)} {context}- {_format_time(seconds)}"
        print("_" * max(0, 80 - len(message)) + message)

    def _signature(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> str:
        given = [_value.short_repr(value) for value in args]
        given += [f"{name}={_value.short_repr(value)}" for name, value in kwargs.items()]
        return f"{getattr(self.func, '__name__', self.func_id)}({', '.join(given)})"

    def _cached_call(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        """A call with everything that may be wanted beside its value."""
        key = self._key(args, kwargs)
        if key is None:
            return self.func(*args, **kwargs), {}
        if self._is_open and (self.cache_validation_callback is None or self._is_valid(key)):
            started = time.time()
            found, value = self._look_up(key)
            if found:
                if self._verbose > 1:
                    place = f" from {self._path()}" if self._verbose >= 10 else "..."
                    print(f"[Memory]: Loading {self._signature(args, kwargs)}{place}")
                if self._verbose > 4:
                    self._print_duration(time.time() - started, "cache loaded ")
                return value, {}
            if value is not None:
                self._report(key, value)
        if self._verbose > 10:
            self.warn(f"Computing func {self.func_id}, argument hash {key.hex()} in location {self._location.path}")
        return self._call(args, kwargs, key)

    def _before_call(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if self._verbose > 0:
            print(f"{'_' * 80}\n[Memory] Calling {self.func_id}...\n{self._signature(args, kwargs)}")

    def _call(self, args: tuple[Any, ...], kwargs: dict[str, Any], key: bytes) -> tuple[Any, dict[str, Any]]:
        """Compute and keep. The value and what is known of the call."""
        self._before_call(args, kwargs)
        started = time.time()
        begun = time.perf_counter_ns()
        value = self.func(*args, **kwargs)
        return self._after_call(args, kwargs, key, value, started, time.perf_counter_ns() - begun)

    def _after_call(
        self, args: tuple[Any, ...], kwargs: dict[str, Any], key: bytes, value: Any, started: float, cost: int
    ) -> tuple[Any, dict[str, Any]]:
        kept = self._is_open and self._store_value(key, _value.describe_call(args, kwargs), value, cost)
        if self._verbose > 0:
            self._print_duration(time.time() - started)
        if kept and self.mmap_mode is not None:  # the first call gives the same kind of value as later ones
            found, again = self._look_up(key)
            value = again if found else value
        return value, {"duration": cost / 1e9, "time": started}

    def _store_value(self, key: bytes, about: bytes, value: Any, cost: int) -> bool:
        """Keep a value; where that fails, warn once. Whether it was kept."""
        try:
            pickled, buffers = _value.dump(value)
        except Exception as error:
            if not self._warned:
                self._warned = True
                warnings.warn(
                    f"The result of {self.func_id} cannot be kept, as it cannot be pickled "
                    f"({type(error).__name__}: {error}). It is computed again each time.",
                    CacheWarning,
                    stacklevel=5,
                )
            return False
        try:
            self._keep(key, about, pickled, buffers, cost)
        except (OSError, BufferError, MemoryError) as error:
            if isinstance(error, PermissionError) and error.errno == 1:
                raise
            self._location.warn(error)
            return False
        return True

    # -- for users --

    def call(self, *args: Any, **kwargs: Any) -> Any:
        """Compute, whether there is an entry or not, and keep the value. Returns it and a dict about the call."""
        key = self._key(args, kwargs)
        if key is None:
            return self.func(*args, **kwargs), {}
        return self._call(args, kwargs, key)

    def check_call_in_cache(self, *args: Any, **kwargs: Any) -> bool:
        """Whether a call with these arguments would be a hit. Nothing is computed."""
        key = self._key(args, kwargs)
        return key is not None and self._is_valid(key)

    def call_and_shelve(self, *args: Any, **kwargs: Any) -> Any:
        """Call, and give a reference to the kept value instead of the value.

        Where nothing can be kept, the value itself in a NotMemorizedResult.
        """
        key = self._key(args, kwargs)
        if key is None:
            return NotMemorizedResult(self.func(*args, **kwargs))
        if not self._is_valid(key):
            value, _ = self._call(args, kwargs, key)
            if not self._is_open or self._about(key) is None:
                return NotMemorizedResult(value)
        return self._result(key)

    def _result(self, key: bytes) -> MemorizedResult:
        return MemorizedResult(
            self._location.path,
            (self.func_id, key.hex()),
            self.backend,
            self.mmap_mode,
            self._verbose - 1,
            self.timestamp,
            self._metadata(key),
        )

    def clear(self, warn: bool = True) -> None:
        """Remove all results of the function, also those of its earlier versions."""
        if warn and self._verbose > 0:
            self.warn(f"Clearing function cache identified by {self.func_id}")
        store = self._location.store()
        if store is not None:
            store.clear(self.func_id)

    def __reduce__(self) -> Any:
        # Under its own name where it can be found by it (a module's decorated function): then pickling the function
        # inside, whose name is the same, would not work.
        module = getattr(self.func, "__module__", None)
        if module not in (None, "__main__", "__mp_main__"):
            import sys

            found: Any = sys.modules.get(module)
            for part in str(getattr(self.func, "__qualname__", "")).split("."):
                found = getattr(found, part, None)
            if found is self:
                return self.func.__qualname__
        options = {
            "backend": self.backend,
            "ignore": self.ignore,
            "mmap_mode": self.mmap_mode,
            "compress": self.compress,
            "verbose": self._verbose,
            "cache_validation_callback": self.cache_validation_callback,
        }
        return _rebuild, (type(self), self.func, self._location.path, self._location.flags, self.func_id, options)

    def __repr__(self) -> str:
        return f"{type(self).__name__}(func={self.func}, location={self._location.path})"


class AsyncMemorizedFunc(MemorizedFunc):
    """A coroutine function whose results are kept."""

    async def __call__(self, *args: Any, **kwargs: Any) -> Any:
        output = self._cached_call(args, kwargs)
        return (await output if inspect.iscoroutine(output) else output)[0]

    async def call(self, *args: Any, **kwargs: Any) -> Any:
        key = self._key(args, kwargs)
        if key is None:
            return await self.func(*args, **kwargs), {}
        return await self._call(args, kwargs, key)  # type: ignore[misc]

    async def call_and_shelve(self, *args: Any, **kwargs: Any) -> Any:
        key = self._key(args, kwargs)
        if key is None:
            return NotMemorizedResult(await self.func(*args, **kwargs))
        if not self._is_valid(key):
            value, _ = await self._call(args, kwargs, key)  # type: ignore[misc]
            if not self._is_open or self._about(key) is None:
                return NotMemorizedResult(value)
        return self._result(key)

    async def _call(  # type: ignore[override]
        self, args: tuple[Any, ...], kwargs: dict[str, Any], key: bytes
    ) -> tuple[Any, dict[str, Any]]:
        self._before_call(args, kwargs)
        started = time.time()
        begun = time.perf_counter_ns()
        value = await self.func(*args, **kwargs)
        return self._after_call(args, kwargs, key, value, started, time.perf_counter_ns() - begun)


def _folder_in(location: Any) -> str:
    return os.path.join(os.fspath(location), "shoal")


class Memory(_Speaker):
    """A place on disk where functions' results are kept.

    location: the folder (str or path); results lie in its sub-folder `shoal`. None: nothing is kept.
    backend: "local", the only one so far.
    mmap_mode: None, or as for numpy.load: arrays in results come back as views of the file in any case; with "r" they
        are read-only, with the other modes they can be written to, which never changes the file.
    compress: accepted; values are not compressed yet.
    verbose: 0 nothing is printed, 1 each call that is computed, 2 and more also each that is not.
    backend_options: {"durable": True} has each result survive a loss of power (0.3 ms and more each).
    """

    def __init__(
        self,
        location: Any = None,
        backend: str = "local",
        mmap_mode: str | None = None,
        compress: Any = False,
        verbose: int = 1,
        backend_options: dict[str, Any] | None = None,
    ) -> None:
        if mmap_mode not in _MMAP_MODES:
            raise ValueError(f"mmap_mode must be one of {_MMAP_MODES}, not {mmap_mode!r}")
        if compress and mmap_mode is not None:
            warnings.warn("Compressed results cannot be memmapped", stacklevel=2)
        self.location = location
        self.backend = backend
        self.mmap_mode = mmap_mode
        self.compress = compress
        self._verbose = verbose
        self.timestamp: float | None = time.time()
        self.backend_options = backend_options if backend_options is not None else {}
        self._location: _Location | None = None
        if location is None:
            return
        if not isinstance(location, (str, os.PathLike)):
            warnings.warn(
                f"Instantiating a backend using a {type(location).__name__} as a location is not supported. "
                "Nothing is kept.",
                UserWarning,
                stacklevel=2,
            )
            return
        if backend != "local":
            raise TypeError(f"Unknown location {location} or backend {backend}")
        flags = _engine.STORE_DURABLE if self.backend_options.get("durable") else 0
        self._location = _Location.at(_folder_in(location), flags)
        self._location.store()  # a folder that must not be used is told of at once

    def cache(
        self,
        func: Any = None,
        ignore: list[str] | None = None,
        verbose: int | None = None,
        mmap_mode: Any = False,
        cache_validation_callback: Callable[[dict[str, Any]], bool] | None = None,
    ) -> Any:
        """The function with its results kept; also a decorator, with and without arguments.

        ignore: names of parameters that do not count; "*" and "**" for the rest.
        verbose, mmap_mode: as of the Memory, by default its own.
        cache_validation_callback: called with {"duration" (seconds), "time" (seconds since 1970), "input_args"} of an
            entry before it is used; what is not true has the call computed again.
        """
        if cache_validation_callback is not None and not callable(cache_validation_callback):
            raise ValueError(f"cache_validation_callback needs to be callable. Got {cache_validation_callback}.")
        if func is None:
            return functools.partial(
                self.cache,
                ignore=ignore,
                verbose=verbose,
                mmap_mode=mmap_mode,
                cache_validation_callback=cache_validation_callback,
            )
        if isinstance(func, (MemorizedFunc, NotMemorizedFunc)):
            func = func.func
        is_async = inspect.iscoroutinefunction(func)
        if self._location is None:
            return AsyncNotMemorizedFunc(func) if is_async else NotMemorizedFunc(func)
        return (AsyncMemorizedFunc if is_async else MemorizedFunc)(
            func,
            self._location,
            backend=self.backend,
            ignore=ignore,
            mmap_mode=self.mmap_mode if mmap_mode is False else mmap_mode,
            compress=self.compress,
            verbose=self._verbose if verbose is None else verbose,
            timestamp=self.timestamp,
            cache_validation_callback=cache_validation_callback,
        )

    def eval(self, func: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """`self.cache(func)(*args, **kwargs)`."""
        return func(*args, **kwargs) if self._location is None else self.cache(func)(*args, **kwargs)

    def clear(self, warn: bool = True) -> None:
        """Remove all results."""
        if warn:
            self.warn("Flushing completely the cache")
        store = self._location.store() if self._location is not None else None
        if store is not None:
            store.clear()

    def __getstate__(self) -> dict[str, Any]:
        state = self.__dict__.copy()
        state["timestamp"] = None  # so that equal ones hash the same
        state["_location"] = None if self._location is None else (self._location.path, self._location.flags)
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        if state["_location"] is not None:
            self._location = _Location.at(*state["_location"])

    def __repr__(self) -> str:
        return f"{type(self).__name__}(location={None if self._location is None else self._location.path})"


def expires_after(
    days: float = 0,
    seconds: float = 0,
    microseconds: float = 0,
    milliseconds: float = 0,
    minutes: float = 0,
    hours: float = 0,
    weeks: float = 0,
) -> Callable[[dict[str, Any]], bool]:
    """A cache_validation_callback that has results computed again once they are older than this."""
    limit = datetime.timedelta(days, seconds, microseconds, milliseconds, minutes, hours, weeks).total_seconds()

    def cache_validation_callback(metadata: dict[str, Any]) -> bool:
        return bool(time.time() - metadata["time"] < limit)

    return cache_validation_callback
