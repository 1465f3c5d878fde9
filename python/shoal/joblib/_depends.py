"""What else a function's results rest on: the functions of the same project that it calls, and the globals it reads.

Found in the code, without running it: the global names that it loads, and for modules of the project the attributes
that it loads of them; so on through every function that is found. Counted are

- functions, classes (their methods and plain values) and partials whose module lies in the project;
- plain values that cannot change (numbers, texts, tuples of them);
- lists, dicts and sets by their contents, where all the code that was found only reads them.

Not counted: what the code itself assigns to, what it may change (a list that it appends to, an object of any other
type), what is called through a variable or an attribute of an object, and everything outside of the project.
"""

from __future__ import annotations

import dis
import functools
import types
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

from shoal import _engine

_PLAIN = (type(None), bool, int, float, complex, str, bytes, tuple, frozenset)
_CONTAINERS = (list, dict, set)
_READING = frozenset(("get", "items", "keys", "values", "index", "count", "copy"))
_SKIPPED = frozenset(("NOP", "EXTENDED_ARG", "CACHE", "PRECALL", "PUSH_NULL", "RESUME"))
_LOADS = frozenset(("LOAD_GLOBAL", "LOAD_NAME"))
_STORES = frozenset(("STORE_GLOBAL", "DELETE_GLOBAL"))
_ATTRIBUTES = frozenset(("LOAD_ATTR", "LOAD_METHOD"))
_MOST = 1000  # functions and values that are followed
_KEPT_CODES = 4096


@dataclass
class _Uses:
    """How a code, and the codes in it, use global names."""

    loads: set[tuple[str, ...]] = field(default_factory=set)  # a name, and the attributes that are loaded of it
    stores: set[str] = field(default_factory=set)
    changed: set[tuple[str, ...]] = field(default_factory=set)  # what may be done more with than reading


_uses: dict[int, tuple[types.CodeType, _Uses]] = {}


def _only_reads(steps: list[dis.Instruction], after: int) -> bool:
    """Whether what follows the load of a container reads it: an index, an iteration, `in`, a method that reads."""
    following = steps[after : after + 2]
    if not following:
        return False
    name = following[0].opname
    if name in ("GET_ITER", "CONTAINS_OP"):
        return True
    if name in _ATTRIBUTES:
        return following[0].argval in _READING
    if len(following) == 2 and name.startswith("LOAD_") and name not in _ATTRIBUTES:
        operation = following[1]
        return operation.opname == "BINARY_SUBSCR" or (operation.opname == "BINARY_OP" and operation.argrepr == "[]")
    return False


def _uses_of(code: types.CodeType) -> _Uses:
    known = _uses.get(id(code))
    if known is not None and known[0] is code:
        return known[1]
    uses = _Uses()
    steps = [step for step in dis.get_instructions(code) if step.opname not in _SKIPPED]
    for number, step in enumerate(steps):
        if step.opname in _STORES:
            uses.stores.add(step.argval)
        if step.opname not in _LOADS:
            continue
        path = [step.argval]
        uses.loads.add(tuple(path))
        position = number + 1
        if not _only_reads(steps, position):
            uses.changed.add(tuple(path))
        while position < len(steps) and steps[position].opname in _ATTRIBUTES and len(path) < 6:
            path.append(steps[position].argval)
            position += 1
            uses.loads.add(tuple(path))
            if not _only_reads(steps, position):
                uses.changed.add(tuple(path))
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            inner = _uses_of(constant)
            uses.loads |= inner.loads
            uses.stores |= inner.stores
            uses.changed |= inner.changed
    if len(_uses) >= _KEPT_CODES:
        _uses.clear()
    _uses[id(code)] = (code, uses)
    return uses


def _package(module: Any) -> str:
    return module.partition(".")[0] if isinstance(module, str) else ""


class Project:
    """Which modules are the user's own: those of a function's top-level package, and those that were named."""

    def __init__(self, function: Any, follow: bool | Iterable[Any]) -> None:
        self._named: tuple[str, ...] = ()
        self._own = ""
        if follow is False:
            return
        self._own = _package(getattr(function, "__module__", None))
        if self._own == "__mp_main__":
            self._own = "__main__"
        if follow is not True:
            names = [follow] if isinstance(follow, (str, types.ModuleType)) else list(follow)
            self._named = tuple(name.__name__ if isinstance(name, types.ModuleType) else str(name) for name in names)

    def has(self, module: Any) -> bool:
        if not isinstance(module, str) or not module:
            return False
        if module == "__mp_main__":
            module = "__main__"
        if self._own and _package(module) == self._own:
            return True
        return any(module == name or module.startswith(name + ".") for name in self._named)

    def __bool__(self) -> bool:
        return bool(self._own or self._named)


class Depends:
    """What a function rests on. `parts`: name -> digest; `watch`: what binding/memo.c compares at each call."""

    def __init__(self, function: Any, project: Project, nothing: object) -> None:
        from shoal.joblib import func_inspect

        self._describe = func_inspect.describe_function
        self._content = func_inspect._content
        self._project = project
        self._nothing = nothing
        self._seen: set[int] = set()
        self._functions: list[types.FunctionType] = []
        self._values: dict[tuple[int, str], tuple[str, dict[str, Any], str, Any, bool]] = {}
        self._watch: list[tuple[Any, ...]] = []
        self.parts: dict[str, bytes] = {}
        if isinstance(function, types.FunctionType) and project:
            self._seen.add(id(function))
            self._functions.append(function)
            for found in self._functions:  # grows as we go
                self._follow(found)
            self._count_values()
        self.watch = tuple(self._watch)

    def _follow(self, function: types.FunctionType) -> None:
        uses = _uses_of(function.__code__)
        for path in sorted(uses.loads, key=len):
            if len(self._functions) + len(self._values) > _MOST:
                return
            holder: dict[str, Any] = function.__globals__
            where = str(holder.get("__name__", ""))
            for name in path[:-1]:
                module = holder.get(name)
                if not isinstance(module, types.ModuleType):
                    break
                holder, where = module.__dict__, module.__name__
            else:
                if path[-1] in holder and (len(path) == 1 or self._project.has(where)):
                    self._meet(holder, where, path[-1], path in uses.changed)

    def _meet(self, holder: dict[str, Any], where: str, name: str, changed: bool) -> None:
        value = holder[name]
        if isinstance(value, _PLAIN) or type(value) in _CONTAINERS:
            before = self._values.get((id(holder), name))
            self._values[id(holder), name] = (where, holder, name, value, changed or (before is not None and before[4]))
        elif self._count(value):
            self._watch.append((holder, name, value))

    def _count(self, value: Any) -> bool:
        """Count a function, class or partial of the project. Whether it is one."""
        if isinstance(value, _engine.Memo) or type(value).__name__ in ("NotMemorizedFunc", "AsyncNotMemorizedFunc"):
            return self._count(getattr(value, "func", None))
        if isinstance(value, functools.partial):
            return self._count(value.func)
        if isinstance(value, types.MethodType):
            return self._count(value.__func__)
        if not isinstance(value, (types.FunctionType, type)):
            inner = getattr(value, "__wrapped__", None)  # of functools.lru_cache
            return isinstance(inner, types.FunctionType) and self._count(inner)
        if not self._project.has(value.__module__):
            return False
        if id(value) in self._seen:
            return True
        self._seen.add(id(value))
        if isinstance(value, type):
            self._count_class(value)
            return True
        inner = getattr(value, "__wrapped__", None)
        if isinstance(inner, types.FunctionType):
            self._count(inner)
        self._functions.append(value)
        self.parts[f"function {value.__module__}.{value.__qualname__}"] = _engine.hash_object(self._describe(value))
        self._watch.append((value, value.__code__, value.__defaults__, value.__kwdefaults__))
        return True

    def _functions_in(self, value: Any) -> Iterator[types.FunctionType]:
        if isinstance(value, types.FunctionType):
            yield value
        elif isinstance(value, (staticmethod, classmethod)):
            yield from self._functions_in(value.__func__)
        elif isinstance(value, property):
            for function in (value.fget, value.fset, value.fdel):
                yield from self._functions_in(function)

    def _count_class(self, kind: type) -> None:
        plain: list[tuple[str, Any]] = []
        for name, value in sorted(vars(kind).items()):
            for function in self._functions_in(value):
                self._count(function)
            if isinstance(value, _PLAIN) and not name.startswith("__"):
                plain.append((name, self._content(value, frozenset())))
        bases = [f"{base.__module__}.{base.__qualname__}" for base in kind.__bases__]
        self.parts[f"class {kind.__module__}.{kind.__qualname__}"] = _engine.hash_object((plain, bases))
        for base in kind.__bases__:
            self._count(base)

    def _count_values(self) -> None:
        assigned = {
            (id(function.__globals__), name)
            for function in self._functions
            for name in _uses_of(function.__code__).stores
        }
        for (place, name), (where, holder, _, value, changed) in self._values.items():
            if (place, name) in assigned or name.startswith("__"):
                continue
            if type(value) in _CONTAINERS:
                if changed:
                    continue
                try:
                    digest = _engine.hash_object(value)
                except Exception:  # it holds what cannot be told apart
                    continue
                self._watch.append((value, digest))
            else:
                digest = _engine.hash_object(self._content(value, frozenset()))
            self._watch.append((holder, name, value))
            self.parts[f"global {where}.{name}"] = digest
