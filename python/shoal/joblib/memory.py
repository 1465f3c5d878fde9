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

import asyncio
import contextlib
import contextvars
import datetime
import functools
import inspect
import os
import time
import warnings
from collections.abc import Callable, Mapping
from typing import Any

from shoal import _engine
from shoal.joblib import _explain, _value, func_inspect
from shoal.joblib._explain import Explanation
from shoal.joblib._shelved import (
    AsyncNotMemorizedFunc,
    MemorizedResult,
    NotMemorizedFunc,
    NotMemorizedResult,
    Speaker,
)
from shoal.joblib._store_backends import (
    CacheWarning,
    Location,
    Options,
    make_backend,
    parse_compress,
    parse_size,
    register_store_backend,
)
from shoal.joblib.func_inspect import function_name

__all__ = ["AsyncMemorizedFunc", "AsyncNotMemorizedFunc", "CacheWarning", "Explanation", "JobLibCollisionWarning",
           "MemorizedFunc", "MemorizedResult", "Memory", "NotMemorizedFunc", "NotMemorizedResult", "expires_after",
           "register_store_backend"]  # fmt: skip

_NOTHING = object()


class JobLibCollisionWarning(UserWarning):
    """joblib's warning that two functions of one name replace each other's results. Here none does, so it is never
    given; it is there for programs that filter it."""


_MMAP_MODES = (None, "r", "r+", "w+", "c")
_CLAIM_WAIT = 600  # seconds to wait for another who computes the same; then we do it too

# Whether this thread or task is in the midst of a cached call. Only the outermost call waits for another process: two
# that wait for each other's results would wait for ever.
_computing: contextvars.ContextVar[bool] = contextvars.ContextVar("shoal_computing", default=False)


def _format_time(seconds: float) -> str:
    return f"{seconds:.1f}s, {seconds / 60:.1f}min"


def _rebuild(
    kind: type[MemorizedFunc],
    func: Any,
    location: str,
    store_options: tuple[int, ...],
    folder: str,
    options: dict[str, Any],
) -> Any:
    return kind(func, Location.at(location, store_options), folder=folder, **options)


class MemorizedFunc(_engine.Memo, Speaker):
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
        follow: Any = True,
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
        self.follow = follow
        self._location: Any = location
        if isinstance(location, (str, os.PathLike)):
            self._location = Location.at(_folder_in(location), Options(0, *parse_compress(compress)))
        self._is_open = False
        self._warned = False
        self._parameters: func_inspect.Parameters | None = None

    @property
    def store_backend(self) -> Any:
        """The place that results are kept in."""
        return self._location

    # -- called by the engine's Memo (binding/memo.c) --

    def _refresh(self) -> None:
        """Look at the function, as it is new or has changed, and tell the engine what was seen."""
        if not self._is_open:
            store = self._location.store()
            if store is not None:
                self._open(store, self.func_id, _value.loader(self.mmap_mode))
                self._is_open = True
        seen = self._parameters = func_inspect.examine(self.func, self.ignore, _NOTHING, self.follow)
        fully = self._verbose > 1 or self.cache_validation_callback is not None or not self._is_open
        fully = fully or seen.undecidable is not None
        self._describe(
            seen.watched, seen.cells, seen.identity, seen.names, seen.defaults, _NOTHING, seen.ignored, seen.leading,
            seen.keywords, seen.positional_only, seen.positional, seen.takes_args, seen.takes_keywords,
            self.mmap_mode is not None, fully, self.mmap_mode == "r", seen.watch, bool(seen.project),
        )  # fmt: skip

    def _meet(self, met: Any) -> tuple[bytes | None, tuple[tuple[Any, ...], ...]]:
        """What a class or function among the arguments means beyond its name."""
        seen = self._parameters
        assert seen is not None
        return func_inspect.describe_met(met, seen.project, _NOTHING)

    def _call_unbound(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """The arguments do not fit the parameters that the function shows."""
        func_inspect.check_misfit(self.func, args, kwargs)
        return self.func(*args, **kwargs)

    def _call_fully(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if self._verbose >= 20:
            self.info(f"Querying {self._signature(args, kwargs)}")
        return self._cached_call(args, kwargs)[0]

    def _compute(self, args: tuple[Any, ...], kwargs: dict[str, Any], key: bytes, problem: Any) -> Any:
        if problem is not None:
            self._report(key, problem)
        return self._call_once(args, kwargs, key)[0]

    # -- the long way --

    def _report(self, key: bytes, problem: Any, stacklevel: int = 4) -> None:
        """An entry cannot be used: say so. It is replaced when the value has been computed."""
        reason = f"{type(problem).__name__}: {problem}" if isinstance(problem, BaseException) else problem
        warnings.warn(
            f"The kept result {os.path.join(self._path(), key.hex())} of {self.func_id} cannot be used "
            f"({reason}). It is computed again.",
            CacheWarning,
            stacklevel=stacklevel,
        )

    def _report_damage(self, key: bytes, stacklevel: int = 4) -> None:
        """Say so if what is in an entry's place cannot be used."""
        if self._is_open:
            found, problem = self._look_up(key)
            if not found and problem is not None:
                self._report(key, problem, stacklevel)

    def _metadata(self, key: bytes) -> dict[str, Any] | None:
        """What is known of an entry, or None where there is none that is sound."""
        about = self._about(key)
        if about is None:
            return None
        text, created, cost, _ = about
        seen = self._parameters
        assert seen is not None
        try:
            arguments = _value.read_call(text, seen)
        except ValueError:
            arguments = {}
        return {"duration": cost / 1e9, "input_args": arguments, "time": created / 1e9}

    def _undecidable(self) -> str | None:
        return self._parameters.undecidable if self._parameters is not None else None

    def _key_of(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bytes | None:
        """The key of a call; None where it has none and the function is to be called: its closure cannot be hashed, or
        it takes arguments that it does not show. Raises ArgumentsError for arguments that do not fit."""
        try:
            key = self._key(args, kwargs)  # looks at the function, if it has changed
        except Exception:
            if self._undecidable() is None:
                raise
            key = b""
        if key is None:
            func_inspect.check_misfit(self.func, args, kwargs)
        undecidable = self._undecidable()
        if undecidable is None:
            return key
        if not self._warned:
            self._warned = True
            warnings.warn(
                f"Results of {self.func_id} are not kept, as they may rest on what cannot be told apart: {undecidable}."
                " Hand it over as a parameter (which may be ignored), or make it a global.",
                CacheWarning,
                stacklevel=4,
            )
        return None

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
        key = self._key_of(args, kwargs)
        if key is None:
            return self.func(*args, **kwargs), {}
        if self.cache_validation_callback is not None and not self._is_valid(key):
            self._report_damage(key, 5)
        elif self._is_open:
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
        return self._call_once(args, kwargs, key)

    def _found_now(self, key: bytes) -> tuple[bool, Any]:
        """Whether another has made the value since we missed it, and the value."""
        if self.cache_validation_callback is not None and not self._is_valid(key):
            return False, None
        return self._look_up(key)

    def _call_once(self, args: tuple[Any, ...], kwargs: dict[str, Any], key: bytes) -> tuple[Any, dict[str, Any]]:
        """Compute and keep, unless another thread or process is computing the same: then wait for its value."""
        if not self._is_open:
            return self._call(args, kwargs, key)
        nested = _computing.get()
        claim = self._claim(key, 0)
        if claim is False and not nested:
            claim = self._claim(key, _CLAIM_WAIT * 1_000_000_000)
        try:
            found, value = self._found_now(key) if claim else (False, None)
            return (value, {}) if found else self._call(args, kwargs, key)
        finally:
            if claim:
                self._release(claim)

    def _before_call(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if self._verbose > 0:
            print(f"{'_' * 80}\n[Memory] Calling {self.func_id}...\n{self._signature(args, kwargs)}")

    def _call(self, args: tuple[Any, ...], kwargs: dict[str, Any], key: bytes) -> tuple[Any, dict[str, Any]]:
        """Compute and keep. The value and what is known of the call."""
        self._before_call(args, kwargs)
        started = time.time()
        begun = time.perf_counter_ns()
        outside = _computing.set(True)
        try:
            value = self.func(*args, **kwargs)
        finally:
            _computing.reset(outside)
        return self._after_call(args, kwargs, key, value, started, time.perf_counter_ns() - begun)

    def _after_call(
        self, args: tuple[Any, ...], kwargs: dict[str, Any], key: bytes, value: Any, started: float, cost: int
    ) -> tuple[Any, dict[str, Any]]:
        kept = self._is_open and self._store_value(key, self._about_call(args, kwargs), value, cost)
        if self._verbose > 0:
            self._print_duration(time.time() - started)
        if kept and self.mmap_mode is not None:  # the first call gives the same kind of value as later ones
            found, again = self._look_up(key)
            value = again if found else value
        return value, {"duration": cost / 1e9, "time": started}

    def _input_args(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, str]:
        """The arguments of a call by parameter, as texts."""
        assert self._parameters is not None
        return _value.read_call(_value.describe_call(args, kwargs, {}), self._parameters)

    def _about_call(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bytes:
        seen = self._parameters
        return _value.describe_call(args, kwargs, seen.parts if seen is not None else {}, seen)

    def _store_value(self, key: bytes, about: bytes, value: Any, cost: int) -> bool:
        """Keep a value; where that fails, warn once. Whether it was kept."""
        try:
            pickled, buffers = _value.dump(value, self.mmap_mode is not None)
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
        key = self._key_of(args, kwargs)
        if key is None:
            return self.func(*args, **kwargs), {}
        value, metadata = self._call(args, kwargs, key)
        return value, {**metadata, "input_args": self._input_args(args, kwargs)}

    def check_call_in_cache(self, *args: Any, **kwargs: Any) -> bool:
        """Whether a call with these arguments would be a hit. Nothing is computed."""
        key = self._key_of(args, kwargs)
        return key is not None and self._is_valid(key)

    def call_and_shelve(self, *args: Any, **kwargs: Any) -> Any:
        """Call, and give a reference to the kept value instead of the value.

        Where nothing can be kept, the value itself in a NotMemorizedResult.
        """
        key = self._key_of(args, kwargs)
        if key is None:
            return NotMemorizedResult(self.func(*args, **kwargs))
        if not self._is_valid(key):
            self._report_damage(key)
            value, _ = self._call(args, kwargs, key)
            if not self._is_open or self._about(key) is None:
                return NotMemorizedResult(value)
        return self._result(key)

    def _result(self, key: bytes) -> MemorizedResult:
        return MemorizedResult(
            self._location.path if isinstance(self._location, Location) else self._location,
            (self.func_id, key.hex()),
            self.backend,
            self.mmap_mode,
            self._verbose - 1,
            self.timestamp,
            self._metadata(key),
        )

    def _get_args_id(self, *args: Any, **kwargs: Any) -> str:
        """joblib's name for what tells a call's result from the others of the function."""
        key = self._key_of(args, kwargs)
        return key.hex() if key is not None else ""

    def explain(self, *args: Any, **kwargs: Any) -> Explanation:
        """Why a call with these arguments would be a hit, or be computed again. Nothing is computed or removed."""
        return _explain.explain(self, args, kwargs)

    def clear(self, warn: bool = True) -> None:
        """Remove all results of the function, also those of its earlier versions."""
        if warn and self._verbose > 0:
            self.warn(f"Clearing function cache identified by {self.func_id}")
        self._location.clear_path((self.func_id,))

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
        place = self._location
        return _rebuild, (type(self), self.func, place.path, tuple(place.options), self.func_id, self._options())

    def _options(self) -> dict[str, Any]:
        """What another one like it is made with."""
        return {
            "backend": self.backend,
            "ignore": self.ignore,
            "mmap_mode": self.mmap_mode,
            "compress": self.compress,
            "verbose": self._verbose,
            "cache_validation_callback": self.cache_validation_callback,
            "follow": self.follow,
        }

    def __repr__(self) -> str:
        return f"{type(self).__name__}(func={self.func}, location={self._location.location})"


class AsyncMemorizedFunc(MemorizedFunc):
    """A coroutine function whose results are kept."""

    async def __call__(self, *args: Any, **kwargs: Any) -> Any:
        output = self._cached_call(args, kwargs)
        return (await output if inspect.iscoroutine(output) else output)[0]

    async def call(self, *args: Any, **kwargs: Any) -> Any:
        key = self._key_of(args, kwargs)
        if key is None:
            return await self.func(*args, **kwargs), {}
        value, metadata = await self._call(args, kwargs, key)  # type: ignore[misc]
        return value, {**metadata, "input_args": self._input_args(args, kwargs)}

    async def call_and_shelve(self, *args: Any, **kwargs: Any) -> Any:
        key = self._key_of(args, kwargs)
        if key is None:
            return NotMemorizedResult(await self.func(*args, **kwargs))
        if not self._is_valid(key):
            self._report_damage(key)
            value, _ = await self._call(args, kwargs, key)  # type: ignore[misc]
            if not self._is_open or self._about(key) is None:
                return NotMemorizedResult(value)
        return self._result(key)

    async def _call_once(  # type: ignore[override]
        self, args: tuple[Any, ...], kwargs: dict[str, Any], key: bytes
    ) -> tuple[Any, dict[str, Any]]:
        claim = self._claim(key, 0) if self._is_open else None
        pause, until = 0.0001, time.monotonic() + _CLAIM_WAIT
        while claim is False and not _computing.get() and time.monotonic() < until:
            try:
                await asyncio.sleep(pause)
            except RuntimeError:  # another library's event loop
                break
            pause = min(pause * 1.2, 0.02)
            claim = self._claim(key, 0)
        try:
            found, value = self._found_now(key) if claim else (False, None)
            return (value, {}) if found else await self._call(args, kwargs, key)
        finally:
            if claim:
                self._release(claim)

    async def _call(  # type: ignore[override]
        self, args: tuple[Any, ...], kwargs: dict[str, Any], key: bytes
    ) -> tuple[Any, dict[str, Any]]:
        self._before_call(args, kwargs)
        started = time.time()
        begun = time.perf_counter_ns()
        outside = _computing.set(True)
        try:
            value = await self.func(*args, **kwargs)
        finally:
            # ValueError: closed in another context, by the collector perhaps: its own is gone.
            with contextlib.suppress(ValueError):
                _computing.reset(outside)
        return self._after_call(args, kwargs, key, value, started, time.perf_counter_ns() - begun)


def _folder_in(location: Any) -> str:
    return os.path.join(os.fspath(location), "shoal")


class Memory(Speaker):
    """A place on disk where functions' results are kept.

    location: the folder (str or path); results lie in its sub-folder `shoal`. None: nothing is kept.
    backend: "local", or a name that register_store_backend was given.
    mmap_mode: None, or as for numpy.load: arrays in results come back as views of the file in any case; with a mode
        they are numpy.memmap from the first call on, read-only with "r". With the other modes they can be written to,
        which never changes the file: unlike with joblib's "r+", results are what the function returned.
    compress: False, True (zstd), a level, "zstd" or "lz4", or a pair of name and level.
    verbose: 0 nothing is printed, 1 each call that is computed, 2 and more also each that is not.
    backend_options: {"durable": True} has each result survive a loss of power (0.3 ms and more each). {"mapped": False}
        gives arrays memory of their own instead of views, so that not even a program that cuts the files short can do
        harm; a hit then takes as long as reading all of it.
    bytes_limit: bytes, or a text such as "2G". What was used longest ago is removed, in the background, when results
        take more. It may be passed by a sixteenth for each process that writes.
    follow: True: what a function's results rest on beside its own code are the functions of its top-level package that
        it calls and the globals it reads; a list of modules' names: theirs too; False: its own code alone.
    """

    def __init__(
        self,
        location: Any = None,
        backend: str = "local",
        mmap_mode: str | None = None,
        compress: Any = False,
        verbose: int = 1,
        backend_options: dict[str, Any] | None = None,
        *,
        bytes_limit: int | str | None = None,
        follow: Any = True,
    ) -> None:
        if backend_options is not None and not isinstance(backend_options, Mapping):
            raise TypeError(f"backend_options must be a mapping, not {type(backend_options).__name__}")
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
        self.bytes_limit = bytes_limit
        self.follow = follow
        self._location: Any = None
        if location is None:
            return
        limit = parse_size(bytes_limit) or 0
        if limit < 0:
            raise ValueError(f"bytes_limit must not be negative, not {bytes_limit!r}")
        if backend != "local":
            options = {**self.backend_options, "compress": compress, "mmap_mode": mmap_mode}
            self._location = make_backend(backend, location, verbose, options)
            return
        if not isinstance(location, (str, os.PathLike)):
            warnings.warn(
                f"Instantiating a backend using a {type(location).__name__} as a location is not supported. "
                "Nothing is kept.",
                UserWarning,
                stacklevel=2,
            )
            return
        flags = _engine.STORE_DURABLE if self.backend_options.get("durable") else 0
        flags |= 0 if self.backend_options.get("mapped", True) else _engine.STORE_COPIES
        self._location = Location.at(_folder_in(location), Options(flags, *parse_compress(compress), limit))
        self._location.store()  # a folder that must not be used is told of at once

    def cache(
        self,
        func: Any = None,
        ignore: list[str] | None = None,
        verbose: int | None = None,
        mmap_mode: Any = False,
        cache_validation_callback: Callable[[dict[str, Any]], bool] | None = None,
        *,
        follow: Any = None,
    ) -> Any:
        """The function with its results kept; also a decorator, with and without arguments.

        ignore: names of parameters that do not count; "*" and "**" for the rest.
        verbose, mmap_mode: as of the Memory, by default its own.
        cache_validation_callback: called with {"duration" (seconds), "time" (seconds since 1970), "input_args"} of an
            entry before it is used; what is not true has the call computed again.
        follow: as of the Memory, by default its own.
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
                follow=follow,
            )
        if isinstance(func, (MemorizedFunc, NotMemorizedFunc)):
            func = func.func
        is_async = inspect.iscoroutinefunction(func)
        if self._location is None:
            return AsyncNotMemorizedFunc(func) if is_async else NotMemorizedFunc(func)
        kind: Any = AsyncMemorizedFunc if is_async else MemorizedFunc
        if not isinstance(self._location, Location):
            from shoal.joblib import _foreign

            kind = _foreign.AsyncForeignMemorizedFunc if is_async else _foreign.ForeignMemorizedFunc
        return kind(
            func,
            self._location,
            backend=self.backend,
            ignore=ignore,
            mmap_mode=self.mmap_mode if mmap_mode is False else mmap_mode,
            compress=self.compress,
            verbose=self._verbose if verbose is None else verbose,
            timestamp=self.timestamp,
            cache_validation_callback=cache_validation_callback,
            follow=self.follow if follow is None else follow,
        )

    @property
    def store_backend(self) -> Any:
        """The place that results are kept in; None where they are not."""
        return self._location

    def eval(self, func: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """`self.cache(func)(*args, **kwargs)`."""
        return func(*args, **kwargs) if self._location is None else self.cache(func)(*args, **kwargs)

    def clear(self, warn: bool = True) -> None:
        """Remove all results."""
        if warn:
            self.warn("Flushing completely the cache")
        if self._location is not None:
            self._location.clear()

    def reduce_size(
        self,
        bytes_limit: int | str | None = None,
        items_limit: int | None = None,
        age_limit: datetime.timedelta | None = None,
    ) -> None:
        """Remove the results that were used longest ago until all limits hold.

        bytes_limit: bytes of all results, or a text such as "500M".
        items_limit: how many results.
        age_limit: how long ago a result may have been used last.
        """
        if self._location is not None:
            self._location.enforce_store_limits(bytes_limit, items_limit, age_limit)

    def __getstate__(self) -> dict[str, Any]:
        state = self.__dict__.copy()
        state["timestamp"] = None  # so that equal ones hash the same
        if isinstance(self._location, Location):
            state["_location"] = (self._location.path, tuple(self._location.options))
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        if isinstance(state["_location"], tuple):
            self._location = Location.at(*state["_location"])

    def __repr__(self) -> str:
        return f"{type(self).__name__}(location={None if self._location is None else self._location.location})"


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
