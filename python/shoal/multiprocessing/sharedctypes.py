"""`multiprocessing.sharedctypes` with synchronized wrappers that take the engine's locks without a call of Python's.
The ctypes objects in shared memory are the standard library's own."""

from __future__ import annotations

import ctypes
import weakref
from multiprocessing import context, sharedctypes
from multiprocessing.sharedctypes import RawArray, RawValue, copy
from typing import Any

from shoal import _engine

__all__ = ["Array", "RawArray", "RawValue", "Value", "copy", "synchronized"]

_standard_base = sharedctypes.SynchronizedBase
_fields: dict[str, Any] = {}
_classes: weakref.WeakKeyDictionary[type, type] = weakref.WeakKeyDictionary()


def make_property(name: str) -> Any:
    """A class attribute: that of the wrapped object, got and set under the lock."""
    try:
        return _fields[name]
    except KeyError:
        return _fields.setdefault(name, _engine.GuardedField(name))


class SynchronizedBase(_engine.Guarded, _standard_base):  # type: ignore[misc, override, type-arg]
    """A ctypes object and the lock that guards it."""

    def __init__(self, obj: Any, lock: Any = None, ctx: Any = None) -> None:
        from shoal.multiprocessing.synchronize import Lock, RLock

        if not lock:
            lock = (ctx or _default()).RLock()
        self._bind(obj, lock, type(lock) in (Lock, RLock))

    def __reduce__(self) -> tuple[Any, ...]:
        context.assert_spawning(self)
        return synchronized, (self._obj, self._lock)


class Synchronized(SynchronizedBase, sharedctypes.Synchronized):  # type: ignore[misc, override, type-arg]
    value = make_property("value")


class SynchronizedArray(SynchronizedBase, sharedctypes.SynchronizedArray):  # type: ignore[misc, override, type-arg]
    pass


class SynchronizedString(SynchronizedArray, sharedctypes.SynchronizedString):  # type: ignore[misc, override, type-arg]
    value = make_property("value")
    raw = make_property("raw")


def _default() -> Any:
    from shoal.multiprocessing.context import _default_context

    return _default_context.get_context()


def _guard(obj: Any, lock: Any, ctx: Any) -> Any:
    if lock is False:
        return obj
    if lock in (True, None):
        lock = (ctx or _default()).RLock()
    if not hasattr(lock, "acquire"):
        raise AttributeError(f"{lock!r} has no method 'acquire'")
    return synchronized(obj, lock, ctx=ctx)


def Value(typecode_or_type: Any, *args: Any, lock: Any = True, ctx: Any = None) -> Any:
    """A ctypes object in shared memory, with a lock unless `lock` is False."""
    return _guard(RawValue(typecode_or_type, *args), lock, ctx)


def Array(typecode_or_type: Any, size_or_initializer: Any, *, lock: Any = True, ctx: Any = None) -> Any:
    """A ctypes array in shared memory, with a lock unless `lock` is False."""
    return _guard(RawArray(typecode_or_type, size_or_initializer), lock, ctx)


def synchronized(obj: Any, lock: Any = None, ctx: Any = None) -> Any:
    """Wrap a ctypes object in shared memory: what is got and set of it is so under `lock` (an RLock by default)."""
    assert not isinstance(obj, _standard_base), "object already synchronized"
    if isinstance(obj, ctypes._SimpleCData):
        return Synchronized(obj, lock, ctx)
    if isinstance(obj, ctypes.Array):
        return (SynchronizedString if obj._type_ is ctypes.c_char else SynchronizedArray)(obj, lock, ctx)
    cls = type(obj)
    wrapper = _classes.get(cls)
    if wrapper is None:
        fields = {field[0]: make_property(field[0]) for field in cls._fields_}
        wrapper = _classes[cls] = type("Synchronized" + cls.__name__, (SynchronizedBase,), fields)
    return wrapper(obj, lock, ctx)
