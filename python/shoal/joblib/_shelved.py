"""What stands for a kept value, and for functions whose values are kept nowhere."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

from shoal.joblib import _value
from shoal.joblib._store_backends import Location


class Speaker:
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


class MemorizedResult(Speaker):
    """A reference to a kept value: small, picklable, valid in every process that sees the location."""

    def __init__(
        self,
        location: Any,
        call_id: tuple[str, str],
        backend: str = "local",
        mmap_mode: str | None = None,
        verbose: int = 0,
        timestamp: float | None = None,
        metadata: dict[str, Any] | None = None,
    ) -> None:
        from shoal.joblib._store_backends import make_backend

        self._other = location if not isinstance(location, str) else None  # a store of another kind
        if self._other is None and backend != "local":
            self._other = make_backend(backend, location, verbose, {"mmap_mode": mmap_mode})
        if self._other is not None:
            location = self._other.location
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

    @property
    def store_backend(self) -> Any:
        """The place that the value is kept in."""
        return self._other if self._other is not None else Location.at(self.location)

    def get(self) -> Any:
        """The value. KeyError where it is there no more, or cannot be read."""
        if self._other is not None:
            return self._other.load_item([self.func_id, self.args_id], verbose=self.verbose)
        store = Location.at(self.location).store()
        if self.verbose > 1:
            print(f"[Memory]: Loading {self.func_id}...")
        try:
            parts = store.get(self.func_id, bytes.fromhex(self.args_id)) if store is not None else None
        except PermissionError:
            raise
        except OSError as error:
            raise KeyError(f"The value of {self!r} cannot be read, it is corrupted: {error}") from error
        if parts is None:
            raise KeyError(f"Non-existing item (may have been cleared): {self!r}")
        return _value.loader(self.mmap_mode)(parts[1], buffers=parts[2:])

    def clear(self) -> None:
        """Remove the value from the cache."""
        if self._other is not None:
            self._other.clear_item([self.func_id, self.args_id])
            return
        store = Location.at(self.location).store()
        if store is not None:
            store.remove(self.func_id, bytes.fromhex(self.args_id))

    def __reduce__(self) -> Any:
        options = (self.backend, self.mmap_mode, self.verbose, None, self.metadata)
        return type(self), (self.location, self._call_id, *options)

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
