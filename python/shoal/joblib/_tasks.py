"""The tasks of a call of `Parallel`: `delayed`, which makes them, and their way into the engine."""

from __future__ import annotations

import types

from shoal import _engine, _pickling
from shoal._crew import _found_by_name
from shoal.joblib import _workers

TYPE_CHECKING = False  # typing costs each start of a program more than the rest of this file
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from typing import Any

    Task = tuple[Callable[..., Any], tuple[Any, ...], dict[str, Any]]

_SHARED_FUNCTIONS = 64  # functions of one call that are sent once; past that they are sent with each task
_SENT_ONCE = (types.FunctionType, types.BuiltinFunctionType, type)  # what has no state that changes between tasks
_PLAIN = frozenset((int, float, str, bytes, bool, type(None)))


delayed = _engine.delayed

# ------------------------------------------------------------------------------- seeds


class Seed:
    """Stands for a task's Generator, which is made where the task runs."""

    __slots__ = ("entropy", "spawn_key")

    def __init__(self, entropy: Any, spawn_key: tuple[int, ...]) -> None:
        self.entropy = entropy
        self.spawn_key = spawn_key

    def __reduce__(self) -> Any:
        return _workers.make_generator, (self.entropy, self.spawn_key)


def with_seeds(tasks: Iterable[Task], seed: Any, made: Callable[[Any, tuple[int, ...]], Any]) -> Iterator[Task]:
    # A SeedSequence has children of its own; the tasks' are counted on from none.
    entropy, above = (seed.entropy, tuple(seed.spawn_key)) if hasattr(seed, "spawn_key") else (seed, ())
    for index, (function, args, kwargs) in enumerate(tasks):
        if "rng" in kwargs:
            raise TypeError("with seed= a task is given its generator as the keyword argument rng, which this one has")
        yield function, args, {**kwargs, "rng": made(entropy, (*above, index))}


# -------------------------------------------------------------------- to the engine


class CrewTasks:
    """The tasks of one call on their way into the engine."""

    def __init__(self, parallel: Any, crew: Any, iterable: Iterable[Task]) -> None:
        self._parallel = parallel
        self._crew = crew
        self._sharing = parallel._backend._sharing
        self._functions: dict[int, tuple[int, Any]] = {}  # id(function) -> its number, and a hold on it
        self._own: list[int] = []  # numbers that are this call's alone
        self._habits: set[str] = set()
        self.items = _engine.Tasks(iterable, self._functions, self._prepare, self._release)
        self._whole = 0  # the number of what calls a function that travels with its task

    def _prepare(self, task: Task) -> tuple[Any, ...]:
        """The item for a task that the engine leaves to us; `_release` ends what is begun here."""
        function, args, kwargs = task
        known = self._functions.get(id(function))
        item: tuple[Any, ...]
        if known is None and not (known := self._share(function)):
            item = (self._whole, function, args, kwargs)
        elif kwargs:
            item = (-known[0], args, kwargs)
        else:
            item = (known[0], *args)
            if _PLAIN.issuperset(map(type, args)):
                return item
        if self._sharing is not None:
            self._sharing.made = self.items.taken
        _pickling.particular[id(item)] = _workers.ItemPickler(self._sharing, function, self._habits)
        return item

    @staticmethod
    def _release(item: tuple[Any, ...]) -> None:
        _pickling.particular.pop(id(item), None)

    def tell(self) -> None:
        """Have the call know how far its tasks are handed out."""
        self._parallel.n_dispatched_tasks = self.items.taken
        if self.items.ended:
            self._parallel._iterating = False
            self._parallel._original_iterator = None

    def _share(self, function: Any) -> tuple[int, Any] | None:
        """Give a function to the workers, where it is one that is better sent once."""
        crew = self._crew
        foreign = crew.engine.foreign_main
        if isinstance(function, _SENT_ONCE) and len(self._functions) < _SHARED_FUNCTIONS:
            if _found_by_name(function) and not (foreign and function.__module__ in ("__main__", "__mp_main__")):
                number, own = crew.share(function)
            else:
                _pickling.particular[id(function)] = _workers.ItemPickler(self._sharing, function)
                try:
                    number, own = crew.engine.share(function, foreign), True
                finally:
                    del _pickling.particular[id(function)]
            if own:
                self._own.append(number)
            self._functions[id(function)] = known = (number, function)
            return known
        if not self._whole:
            self._whole = crew.share(_workers.call)[0]
        return None

    def end(self) -> None:
        self.tell()
        self.items.close()
        for number in self._own:
            try:
                self._crew.engine.unshare(number)
            except (ValueError, RuntimeError):  # closed
                pass
