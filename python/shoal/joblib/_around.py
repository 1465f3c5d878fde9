"""Tasks whose function is called by something around it that also runs in the worker: `memory=` and `trace=`.

The function and what is around it are one closure, so that, like any function, they are sent to the workers once a
call, and each task carries no more than what is its own.
"""

from __future__ import annotations

import types

TYPE_CHECKING = False  # typing costs each start of a worker more than the rest of this file
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    Task = tuple[Callable[..., Any], tuple[Any, ...], dict[str, Any]]
    # Called with the function, what is the same in all tasks of it, what is this task's own, and the arguments.
    Handler = Callable[[Callable[..., Any], Any, Any, tuple[Any, ...], dict[str, Any]], Any]

_SENT_ONCE = (types.FunctionType, types.BuiltinFunctionType, type)  # as in _tasks.py: nothing in them changes
_MOST = 64  # functions that are kept; past that each task brings its own


class Around:
    """Puts `handler` around the functions of one call's tasks."""

    def __init__(self, handler: Handler) -> None:
        self._handler = handler
        self._closures: dict[int, tuple[Any, Any]] = {}  # id(function) -> the closure, and a hold on the function

    def task(
        self, function: Callable[..., Any], fixed: Any, own: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Task:
        """The task of `handler(function, fixed, own, args, kwargs)`; `fixed` goes with the function's first task."""
        known = self._closures.get(id(function))
        if known is None:
            if not isinstance(function, _SENT_ONCE) or len(self._closures) >= _MOST:
                return self._handler, (function, fixed, own, args, kwargs), {}
            known = self._closures[id(function)] = (_close(self._handler, function, fixed), function)
        return known[0], (own, *args), kwargs


def _close(handler: Handler, function: Callable[..., Any], fixed: Any) -> Any:
    def call(own: Any, /, *args: Any, **kwargs: Any) -> Any:
        return handler(function, fixed, own, args, kwargs)

    # An error about the task names the user's function.
    call.__name__ = call.__qualname__ = name_of(function)
    return call


def name_of(function: Any) -> str:
    """What people know a task's function by: through partials, and the objects that scikit-learn's `delayed` makes."""
    for _ in range(8):
        name = getattr(function, "__qualname__", None)
        if isinstance(name, str):
            return name
        inner = getattr(function, "func", None) or getattr(function, "function", None)
        if inner is None:
            break
        function = inner
    return type(function).__qualname__


def name_of_task(task: Task) -> str:
    """The name of the function that the user had in mind, whatever is around it."""
    function, args, _ = task
    if getattr(function, "is_around", False):
        function = args[0]
    return name_of(function)
