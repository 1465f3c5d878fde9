"""Cached functions in a store of another kind (register_store_backend): all that the engine does for its own store, by
the methods that such a store has. There are no claims: several may compute the same at the same time."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from typing import Any

from shoal.joblib import func_inspect
from shoal.joblib.memory import _NOTHING, AsyncMemorizedFunc, MemorizedFunc


class ForeignMemorizedFunc(MemorizedFunc):
    """A function whose results a registered store keeps."""

    def _refresh(self) -> None:
        seen = self._parameters = func_inspect.examine(self.func, self.ignore, _NOTHING, self.follow)
        self._is_open = True
        self._describe(
            seen.watched, seen.cells, seen.identity, seen.names, seen.defaults, _NOTHING, seen.ignored, seen.leading,
            seen.keywords, seen.positional_only, seen.positional, seen.takes_args, seen.takes_keywords,
            self.mmap_mode is not None, True, self.mmap_mode == "r", seen.watch, bool(seen.project),
        )  # fmt: skip

    def _call_id(self, key: bytes) -> list[str]:
        return [self.func_id, key.hex()]

    def _path(self) -> str:
        return os.path.join(str(self._location.location), self.func_id)

    def _look_up(self, key: bytes) -> tuple[bool, Any]:
        if not self._location.contains_item(self._call_id(key)):
            return False, None
        try:
            return True, self._location.load_item(self._call_id(key), verbose=0)
        except Exception as error:
            return False, error

    def _about(self, key: bytes) -> Any:
        if not self._location.contains_item(self._call_id(key)):
            return None
        metadata = self._location.get_metadata(self._call_id(key))
        seconds = metadata.get("duration", 0.0)
        return b"", int(metadata.get("time", 0) * 1e9), int(seconds * 1e9), b""

    def _metadata(self, key: bytes) -> dict[str, Any] | None:
        if not self._location.contains_item(self._call_id(key)):
            return None
        return dict(self._location.get_metadata(self._call_id(key)))

    def _store_value(self, key: bytes, about: bytes, value: Any, cost: int) -> bool:
        from shoal.joblib import _value

        self._location.dump_item(self._call_id(key), value, verbose=self._verbose)
        seen = self._parameters
        assert seen is not None
        arguments = _value.read_call(about, seen)
        metadata = {"duration": cost / 1e9, "input_args": arguments, "time": time.time() - cost / 1e9}
        self._location.store_metadata(self._call_id(key), metadata)
        return True

    def _remove(self, key: bytes) -> bool:
        self._location.clear_item(self._call_id(key))
        return True

    def _claim(self, key: bytes, timeout: int) -> Any:
        return None

    def clear(self, warn: bool = True) -> None:
        if warn and self._verbose > 0:
            self.warn(f"Clearing function cache identified by {self.func_id}")
        self._location.clear_path([self.func_id])

    def __reduce__(self) -> Any:
        return _rebuild, (type(self), self.func, self._location, {**self._options(), "folder": self.func_id})


class AsyncForeignMemorizedFunc(ForeignMemorizedFunc, AsyncMemorizedFunc):
    """The same for a coroutine function."""


def _rebuild(kind: Callable[..., Any], func: Any, location: Any, options: dict[str, Any]) -> Any:
    return kind(func, location, **options)
