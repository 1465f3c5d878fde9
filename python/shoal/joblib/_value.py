"""How `Memory` turns a value into the parts of an entry, and a call into a line that people can read."""

from __future__ import annotations

import collections
import contextlib
import functools
import io
import json
import pickle
import reprlib
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from shoal import _engine

if TYPE_CHECKING:
    from shoal.joblib.func_inspect import Parameters

PARTS = 64  # of what a function rests on, that an entry names
IN_BAND = 1024  # bytes up to which a buffer is better off inside the pickle

_SCALARS = frozenset((type(None), bool, int, float, complex, str, bytes))

_repr = reprlib.Repr()
_repr.maxlevel = 3
_repr.maxlist = _repr.maxtuple = _repr.maxset = _repr.maxfrozenset = _repr.maxdict = 10
_repr.maxstring = _repr.maxother = 200


class _MappablePickler(pickle.Pickler):
    """Arrays that are not contiguous become so, as with joblib: then each can be a map of the file."""

    def reducer_override(self, value: Any) -> Any:
        if type(value).__name__ != "ndarray" or value.flags.forc or value.dtype.hasobject:
            return NotImplemented
        import numpy

        return numpy.ascontiguousarray(value).__reduce_ex__(5)


def dump(value: Any, mappable: bool = False) -> tuple[Any, list[pickle.PickleBuffer]]:
    """The pickled value, and the buffers that lie beside it. mappable: its arrays will be read with an mmap_mode.

    What plain pickling cannot do (lambdas, functions and classes that were made in a function) cloudpickle does.
    """
    buffers: list[pickle.PickleBuffer] = []
    if type(value) in _SCALARS:
        return pickle.dumps(value, 5), buffers

    def take(buffer: pickle.PickleBuffer) -> bool:
        if memoryview(buffer).nbytes <= IN_BAND:
            return True
        buffers.append(buffer)
        return False

    try:
        if mappable:
            file = io.BytesIO()
            _MappablePickler(file, 5, buffer_callback=take).dump(value)
            return file.getvalue(), buffers
        return pickle.dumps(value, 5, buffer_callback=take), buffers
    except (pickle.PicklingError, AttributeError, TypeError) as error:
        buffers.clear()
        try:
            return _pickle_by_value(value, take), buffers
        except Exception:
            raise error from None


def _pickle_by_value(value: Any, take: Callable[[pickle.PickleBuffer], bool]) -> bytes:
    """By cloudpickle; but what it makes other things of (a memoryview bytes, a file a text in memory) is refused."""
    import cloudpickle

    def refuse(other: Any) -> Any:
        raise pickle.PicklingError(f"a {type(other).__name__} would not come back as one")

    class Pickler(cloudpickle.CloudPickler):  # type: ignore[misc]
        dispatch_table = collections.ChainMap(
            {memoryview: refuse, io.TextIOWrapper: refuse}, cloudpickle.CloudPickler.dispatch_table
        )

    file = io.BytesIO()
    Pickler(file, 5, buffer_callback=take).dump(value)
    return file.getvalue()


class _MappingUnpickler(pickle.Unpickler):
    """Arrays are `numpy.memmap`s with the mode that was asked for, read-only with "r", as joblib gives them."""

    def __init__(self, data: Any, buffers: Any, mode: str) -> None:
        super().__init__(io.BytesIO(data), buffers=buffers)
        self.mode = "r+" if mode == "w+" else mode
        self.others: list[Any] = []

    def find_class(self, module: str, name: str) -> Any:
        found = super().find_class(module, name)
        if module in ("numpy.core.numeric", "numpy._core.numeric") and name == "_frombuffer":
            return functools.partial(self._from_buffer, found)
        if module in ("numpy.core.multiarray", "numpy._core.multiarray") and name == "_reconstruct":
            return functools.partial(self._reconstruct, found)
        return found

    def _from_buffer(self, make: Callable[..., Any], *description: Any) -> Any:
        import numpy

        array = make(*description)
        if self.mode != "r" and not array.flags.writeable:
            array = array.copy("K")
        array = array.view(numpy.memmap)
        array.mode = self.mode
        array.flags.writeable = self.mode != "r"
        return array

    def _reconstruct(self, make: Callable[..., Any], *description: Any) -> Any:
        array = make(*description)
        self.others.append(array)
        return array


def load_mapped(mode: str, data: Any, buffers: Any = ()) -> Any:
    """What `dump` pickled, with arrays as of `numpy.load(mmap_mode=mode)`."""
    unpickler = _MappingUnpickler(data, buffers, mode)
    value = unpickler.load()
    for array in unpickler.others if mode == "r" else ():
        if not array.dtype.hasobject:
            array.flags.writeable = False
    return value


def loader(mode: str | None) -> Callable[..., Any]:
    """What unpickles an entry: called with the pickle and, if there are any, `buffers`."""
    return pickle.loads if mode is None else functools.partial(load_mapped, mode)


def short_repr(value: Any) -> str:
    """A value for people, in bounded time and length where its type allows it."""
    kind = type(value)
    if kind is int and value.bit_length() > 2000:  # Python refuses to write out what is much longer
        return f"<int of {value.bit_length()} bits>"
    if kind is int or kind is float or value is None or kind is bool:
        text = repr(value)
        return text if len(text) <= 200 else text[:197] + "..."
    if kind.__name__ == "ndarray":
        return f"array(shape={value.shape}, dtype={value.dtype})"
    try:
        return _repr.repr(value)
    except Exception as error:
        return f"<{kind.__name__}, whose repr raised {type(error).__name__}>"


def _used_defaults(args: tuple[Any, ...], kwargs: dict[str, Any], seen: Parameters) -> dict[str, list[str]]:
    """The defaults that a call leaves as they are: each as a text, and what tells it from others with that text."""
    used: dict[str, list[str]] = {}
    first = min(len(seen.leading) + len(args), seen.positional)
    if first == len(seen.names):
        return used
    for name, default, ignored in zip(seen.names[first:], seen.defaults[first:], seen.ignored[first:], strict=False):
        if default is seen.nothing or ignored or name in kwargs or name in seen.keywords:
            continue
        digest = ""
        if type(default) not in _SCALARS:
            with contextlib.suppress(Exception):  # it cannot be hashed: the text must do
                digest = _engine.hash_object(default)[:4].hex()
        used[name] = [short_repr(default), digest]
    return used


def describe_call(
    args: tuple[Any, ...], kwargs: dict[str, Any], parts: dict[str, bytes], seen: Parameters | None = None
) -> bytes:
    """The arguments of a call, and what the function was made of, as an entry keeps them.

    seen: the function's parameters, for the defaults that the call used to be kept too.
    """
    about: list[Any] = [[short_repr(value) for value in args], {name: short_repr(kwargs[name]) for name in kwargs}]
    about.append({name: parts[name][:4].hex() for name in list(parts)[:PARTS]})
    if seen is not None and (used := _used_defaults(args, kwargs, seen)):
        about.append(used)
    text = json.dumps(about)
    return text.encode("utf-8", "surrogatepass")


def read_call(about: bytes, seen: Parameters) -> dict[str, str]:
    """What describe_call wrote, by parameter, defaults included; the rest under "*" and "**". No ignored ones."""
    args, kwargs, *more = json.loads(about)
    used = {name: text for name, (text, _) in (more[1] if len(more) > 1 else {}).items()}
    names = seen.names[len(seen.leading) :]
    given: dict[str, str] = dict(zip(seen.names[len(seen.leading) : seen.positional], args, strict=False))
    others = {name: text for name, text in kwargs.items() if name not in seen.names[seen.positional_only :]}
    result: dict[str, str] = {}
    for name, default in zip(names, seen.defaults[len(seen.leading) :], strict=True):
        text = given.get(name, None if name in others else kwargs.get(name))
        if text is None and name in seen.keywords:
            text = short_repr(seen.keywords[name])
        if text is None:
            text = used.get(name)
        if text is not None or default is not seen.nothing:
            result[name] = text if text is not None else short_repr(default)
    if seen.takes_args:
        result["*"] = "[" + ", ".join(args[len(given) :]) + "]"
    if seen.takes_keywords:
        result["**"] = "{" + ", ".join(f"{name!r}: {text}" for name, text in others.items()) + "}"
    for name, ignored in zip((*seen.names, "*", "**"), seen.ignored, strict=True):
        if ignored:
            result.pop(name, None)
    return result


def read_parts(about: bytes) -> dict[str, str]:
    """What describe_call wrote of the function's parts: their names, and the beginnings of their digests in hex."""
    content = json.loads(about)
    return dict(content[2]) if len(content) > 2 else {}


def changed_defaults(old: bytes, new: bytes, seen: Parameters) -> list[str]:
    """Which parameters' defaults differ between two calls that give the same arguments; none where they give others."""
    were, are = (content[3] if len(content := json.loads(about)) > 3 else {} for about in (old, new))
    before, now = read_call(old, seen), read_call(new, seen)
    if before.keys() != now.keys() or any(
        before[name] != now[name] for name in now if not (name in were and name in are)
    ):
        return []
    return [name for name in are if name in were and _telling(were[name]) != _telling(are[name])]


def _telling(default: list[str]) -> str:
    """The digest, where there is one: the text of a function, say, has its address in it."""
    text, digest = default
    return digest or text
