"""How `Memory` turns a value into the parts of an entry, and a call into a line that people can read."""

from __future__ import annotations

import json
import pickle
import reprlib
from typing import Any

PARTS = 64  # of what a function rests on, that an entry names
IN_BAND = 1024  # bytes up to which a buffer is better off inside the pickle

_SCALARS = frozenset((type(None), bool, int, float, complex, str, bytes))

_repr = reprlib.Repr()
_repr.maxlevel = 3
_repr.maxlist = _repr.maxtuple = _repr.maxset = _repr.maxfrozenset = _repr.maxdict = 10
_repr.maxstring = _repr.maxother = 200


def dump(value: Any) -> tuple[Any, list[pickle.PickleBuffer]]:
    """The pickled value, and the buffers that lie beside it.

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
        return pickle.dumps(value, 5, buffer_callback=take), buffers
    except (pickle.PicklingError, AttributeError, TypeError) as error:
        import cloudpickle

        buffers.clear()
        try:
            return cloudpickle.dumps(value, 5, buffer_callback=take), buffers
        except Exception:
            raise error from None


def short_repr(value: Any) -> str:
    """A value for people, in bounded time and length where its type allows it."""
    kind = type(value)
    if kind is int or kind is float or value is None or kind is bool:
        text = repr(value)
        return text if len(text) <= 200 else text[:197] + "..."
    if kind.__name__ == "ndarray":
        return f"array(shape={value.shape}, dtype={value.dtype})"
    try:
        return _repr.repr(value)
    except Exception as error:
        return f"<{kind.__name__}, whose repr raised {type(error).__name__}>"


def describe_call(args: tuple[Any, ...], kwargs: dict[str, Any], parts: dict[str, bytes]) -> bytes:
    """The arguments of a call, and what the function was made of, as an entry keeps them."""
    about: list[Any] = [[short_repr(value) for value in args], {name: short_repr(kwargs[name]) for name in kwargs}]
    about.append({name: parts[name][:4].hex() for name in list(parts)[:PARTS]})
    text = json.dumps(about)
    return text.encode("utf-8", "surrogatepass")


def read_call(about: bytes, names: tuple[str, ...], leading: int) -> dict[str, str]:
    """What describe_call wrote, by parameter; what is left of `*args` under "*"."""
    args, kwargs = json.loads(about)[:2]
    mine = names[leading:]
    result: dict[str, str] = dict(zip(mine, args, strict=False))
    if len(args) > len(mine):
        result["*"] = "[" + ", ".join(args[len(mine) :]) + "]"
    result.update(kwargs)
    return result


def read_parts(about: bytes) -> dict[str, str]:
    """What describe_call wrote of the function's parts: their names, and the beginnings of their digests in hex."""
    content = json.loads(about)
    return dict(content[2]) if len(content) > 2 else {}
