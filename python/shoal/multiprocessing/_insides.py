"""What programs touch of the insides of multiprocessing's queues, events and barriers, as far as ours can say the same.

A name that here means something is a view of the object's own state. One that could only pretend (a lock that would
keep nobody out, a condition that nobody would notify) raises an AttributeError that says what to use instead. An object
may have an attribute of its own by each name: the class's does not stand in its way.
"""

from __future__ import annotations

import abc
import types
from collections.abc import Callable
from typing import Any, NoReturn

__all__ = ["Absent", "KeepingType", "Number", "Unsent", "View", "derived_before", "kept", "make_class"]


class Absent:
    """A name that ours do not have. advice: what to use instead."""

    def __init__(self, advice: str) -> None:
        self._advice = advice

    def __set_name__(self, owner: type, name: str) -> None:
        self._name = name

    def __get__(self, instance: Any, owner: type | None = None) -> Any:
        where = owner.__name__ if owner is not None else type(instance).__name__
        raise AttributeError(f"{where} has no {self._name}: {self._advice}")


class View:
    """A name whose value is made when it is asked for."""

    def __init__(self, make: Callable[[Any], Any]) -> None:
        self._make = make

    def __get__(self, instance: Any, owner: type | None = None) -> Any:
        return self if instance is None else self._make(instance)


class Number:
    """What a semaphore inside of a queue, a condition or an event is asked for: its value. advice: what to use instead
    of taking it."""

    def __init__(self, value: int, advice: str = "it only shows a number") -> None:
        self._value = value
        self._advice = advice
        self._semlock = self

    def get_value(self) -> int:
        return self._value

    _get_value = get_value

    def _is_zero(self) -> bool:
        return self._value == 0

    def acquire(self, *args: Any, **keywords: Any) -> NoReturn:
        raise AttributeError(f"this semaphore cannot be taken: {self._advice}")

    def release(self) -> NoReturn:
        raise AttributeError(f"this semaphore cannot be released: {self._advice}")


class Unsent(tuple[Any, ...]):
    """What was put and is not in the queue yet: nothing, ever."""

    def clear(self) -> None:
        """Nothing to forget."""


# ------------------------------------------------ classes that were derived before install()

kept: set[tuple[str | None, str]] = set()  # (module, qualified name) of classes that rest on the standard library's own


def derived_before(bases: list[type]) -> list[tuple[str | None, str]]:
    """The classes of the program that are derived from these and not from ours: a process that is started makes them
    from the same bases, or what they send it would not be understood."""
    found: list[tuple[str | None, str]] = []
    seen: set[type] = set()
    left = list(bases)
    derived: Any
    while left:
        for derived in left.pop().__subclasses__():
            if derived in seen or derived.__module__.startswith("shoal."):
                continue
            seen.add(derived)
            left.append(derived)
            if not isinstance(derived, KeepingType) and not derived.__module__.startswith("multiprocessing."):
                found.append((_module(derived.__module__), derived.__qualname__))
    return found


def _module(name: str | None) -> str | None:
    return "__main__" if name == "__mp_main__" else name


class KeepingType(abc.ABCMeta):
    """The type of our classes: what is derived from them keeps the standard library's base where it has that in the
    process which started this one. (Derived from ABCMeta: programs combine their classes with abstract ones.)"""

    replaced: dict[type, Any] = {}  # by class of ours: the standard library's

    def __new__(mcs, name: str, bases: tuple[type, ...], namespace: dict[str, Any], **keywords: Any) -> Any:
        if kept and (_module(namespace.get("__module__")), namespace.get("__qualname__", name)) in kept:
            standard = tuple(KeepingType.replaced.get(base, base) for base in bases)
            if standard != bases:
                return make_class(name, standard, namespace, keywords)
        return super().__new__(mcs, name, bases, namespace, **keywords)


def make_class(name: str, bases: tuple[type, ...], namespace: dict[str, Any], keywords: dict[str, Any]) -> Any:
    """A class of whatever type these bases ask for."""
    return types.new_class(name, bases, keywords, lambda body: body.update(namespace))
