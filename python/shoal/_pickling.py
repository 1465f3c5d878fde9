"""How Shoal pickles what its own encoding does not cover.

One place decides: reducers registered with multiprocessing's `ForkingPickler` count, functions and classes that
cannot be found by name in another process travel by value (plain functions as `_functions` says, all else by
cloudpickle), and large buffers travel beside the pickle (protocol 5). The extension calls `dumps`,
`dumps_for_foreign_main` and `loads`; nothing else should need them.
"""

from __future__ import annotations

import _pickle  # pickle itself imports re and struct, which cost a worker's start more than this whole package
import copyreg
import io
import sys

from shoal import _engine

TYPE_CHECKING = False  # typing costs each start of a worker more than the rest of this file
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from typing import Any

    BufferCallback = Callable[[_pickle.PickleBuffer], bool]

# The sizes of those that it was made of, and the table. One object: threads read and change it in one step.
_table: tuple[tuple[int, int], dict[type, Any]] = ((-1, -1), {})


def _reducers() -> dict[type, Any]:
    """copyreg's and ForkingPickler's reducers in one plain dict: looking each type up in a ChainMap costs more than
    pickling."""
    global _table
    reduction = sys.modules.get("multiprocessing.reduction")
    extra: dict[type, Any] = getattr(reduction.ForkingPickler, "_extra_reducers", {}) if reduction is not None else {}
    sizes = (len(copyreg.dispatch_table), len(extra))
    known = _table
    if known[0] != sizes:
        known = _table = sizes, {**copyreg.dispatch_table, **extra}
    return known[1]


BY_VALUE = "by value"  # the habit of what has to go so

particular: dict[int, Callable[[Any, Any, bool], bytes]] = {}
"""By id of an object that somebody holds meanwhile: what pickles it, from (object, buffer_callback, foreign_main)."""


def _dumps_by_reference(
    obj: Any, buffer_callback: BufferCallback | None, table: dict[type, Any] | None = None
) -> bytes:
    file = io.BytesIO()
    pickler = _pickle.Pickler(file, 5, buffer_callback=buffer_callback)
    pickler.dispatch_table = _reducers() if table is None else table
    pickler.dump(obj)
    return file.getvalue()  # the buffer's own bytes, not a copy


def _refuse(obj: Any) -> Any:
    raise TypeError(f"cannot pickle {type(obj).__name__!r} object")


def _forget_buffers(buffer_callback: BufferCallback | None) -> None:
    """Before another attempt: the buffers that the last one put aside, the callback's own list (take_buffer in
    codec.c)."""
    if buffer_callback is not None:
        buffer_callback.__self__.clear()  # type: ignore[attr-defined]


def _dumps_by_value(
    obj: Any, buffer_callback: BufferCallback | None, foreign_main: bool, table: dict[type, Any] | None = None
) -> bytes:
    from shoal import _functions

    _forget_buffers(buffer_callback)
    try:
        return _functions.dumps(obj, buffer_callback, _reducers() if table is None else table, foreign_main)
    except Exception:
        pass  # not for us: cloudpickle does it, or has the right words for why it cannot be done
    _forget_buffers(buffer_callback)
    file = io.BytesIO()
    _by_value_pickler(table)(file, 5, buffer_callback=buffer_callback).dump(obj)
    return file.getvalue()  # the buffer's own bytes, not a copy


_pickler: tuple[dict[type, Any] | None, Any] = (None, None)  # the table, and the class with it; one object, as above


def _by_value_pickler(own_table: dict[type, Any] | None = None) -> Any:
    """cloudpickle's pickler with the reducers that count here."""
    global _pickler
    table = _reducers() if own_table is None else own_table
    made = _pickler
    if made[0] is not table:
        import cloudpickle

        # A table of the class: cloudpickle's own is one, and hides what is set on an instance. It would send a copy of
        # an open file's text: not what a file handed to another process means.
        known = {**cloudpickle.Pickler.dispatch_table, io.TextIOWrapper: _refuse, **table}
        made = _pickler = table, type("_ByValuePickler", (cloudpickle.Pickler,), {"dispatch_table": known})
    return made[1]


def dumps(obj: Any, buffer_callback: BufferCallback | None) -> bytes:
    """Pickle for a process that has the same `__main__`; by value what cannot be found by name (lambdas, closures)."""
    if particular and (own := particular.get(id(obj))) is not None:
        return own(obj, buffer_callback, False)
    return dumps_with(obj, buffer_callback, False)


def dumps_for_foreign_main(obj: Any, buffer_callback: BufferCallback | None) -> bytes:
    """Pickle for a process whose `__main__` is another: what this one's defines goes by value too."""
    if particular and (own := particular.get(id(obj))) is not None:
        return own(obj, buffer_callback, True)
    return dumps_with(obj, buffer_callback, True)


def dumps_with(
    obj: Any,
    buffer_callback: BufferCallback | None,
    foreign_main: bool,
    table: dict[type, Any] | None = None,
    habits: set[str] | None = None,
) -> bytes:
    """As the two above. table: reducers by type, in place of the usual ones. habits: what is kept from one such object
    to the next: those after one that had to go by value do so at once."""
    if foreign_main and habits:
        return _dumps_by_value(obj, buffer_callback, True, table)
    try:
        pickled = _dumps_by_reference(obj, buffer_callback, table)
    except (_pickle.PicklingError, AttributeError, TypeError) as error:
        try:
            pickled = _dumps_by_value(obj, buffer_callback, False, table)
        except Exception as why:
            if isinstance(error, TypeError) or isinstance(why, ImportError):
                raise error from None
            # A function that is not to be found by name is no reason, where it is something else that could not go.
            why.__context__ = None
            raise
    # A reference to __main__ always spells the name; a string that merely contains it costs time, no more.
    if foreign_main and b"__main__" in pickled:
        if habits is not None:
            habits.add(BY_VALUE)
        return _dumps_by_value(obj, buffer_callback, True, table)
    return pickled


def explain(error: BaseException, obj: Any) -> BaseException:
    """Why `obj` could not be pickled, from what that raised: what keeps it from going by value too, if anything does.
    That it is not to be found by name is no reason, and nothing that a user could mend."""
    if isinstance(error, (_pickle.PicklingError, AttributeError, TypeError)):
        try:
            _dumps_by_value(obj, None, False)
        except Exception as why:
            return why
    return error


def loads(data: bytes, buffers: Iterable[Any] | None) -> Any:
    """Unpickle; `buffers` are what travelled beside the pickle, in order."""
    return _pickle.loads(data, buffers=buffers)


_engine.configure(dumps, dumps_for_foreign_main, loads)
