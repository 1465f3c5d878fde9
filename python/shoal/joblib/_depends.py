"""What else a function's results rest on: what its closure holds, the functions of the same project that it calls, and
the globals that it reads.

Found in the code, without running it (`_uses.py`): global names, names that import statements in functions load (a
module of the project is imported for that), closure variables, and the attributes that are loaded of them; so on
through every function that is found. Counted are

- functions, classes (all their methods and values), methods and partials whose module lies in the project;
- the classes, of the project, of objects that are met: so what `model.run()` calls counts where `model` is a global;
- which function, class or module of another package a global name stands for, by its name;
- plain values that cannot change (numbers, texts, tuples of them), by their contents once;
- lists, dicts, sets, arrays and other values, and objects of the project's classes, by their contents at each call,
  where none of the code that was found changes them.

A closure is the function's own: what its variables hold counts whatever it is, unless the code only adds to it
(`seen.append(x)`, `count += 1`). What cannot be hashed makes the function `undecidable`.

Not counted: globals, and values of classes, that the code itself assigns to or changes, globals of other types, what is
called through a local variable or an unknown attribute, and everything outside of the project.
"""

from __future__ import annotations

import builtins
import functools
import importlib
import importlib.util
import sys
import types
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from shoal import _engine
from shoal.joblib._code import code_digest
from shoal.joblib._project import Project, package_of, usual_name
from shoal.joblib._uses import Path, Use, uses_of

_PLAIN = (type(None), bool, int, float, complex, str, bytes, type(Ellipsis))
_VALUES = frozenset(("builtins", "numpy", "pandas", "scipy", "polars", "torch", "collections", "decimal", "fractions",
                     "datetime", "pathlib", "uuid", "array", "re", "types", "_io"))  # fmt: skip
# What these hold is no value: locks, weak references, loggers, and where results are kept.
_NO_VALUES = frozenset(("_thread", "threading", "weakref", "_weakref", "logging", "asyncio", "shoal", "joblib"))
_MAKING = frozenset(("__init__", "__new__", "__post_init__", "__setstate__", "__init_subclass__", "__set_name__"))
_CLASS_MAKING = frozenset(("__new__", "__init_subclass__", "__class_getitem__"))  # their first parameter is a class
_CHANGING_MEMBERS = "_value2member_map_"  # of an enum: members that calls make are put there
_MOST = 10_000  # functions and values that are followed: it takes half a millisecond each


def _name(value: Any) -> str:
    return f"{usual_name(value.__module__)}.{value.__qualname__}"


def _outside_name(value: Any) -> str:
    if isinstance(value, types.ModuleType):
        return value.__name__
    return f"{getattr(value, '__module__', None)}.{getattr(value, '__qualname__', '')}"


def _wrapped(value: Any) -> Any:
    """What a wrapper of functools wraps; None for other values, also for those that raise what they like."""
    try:
        return getattr(value, "__wrapped__", None)
    except Exception:
        return None


def _is_fixed(value: Any) -> bool:
    """Whether a value and all in it can never change. Tuples may lie in each other, and in many at once."""
    seen: set[int] = set()
    pending = [value]
    while pending:
        item = pending.pop()
        if type(item) in _PLAIN or id(item) in seen:
            continue
        if type(item) not in (tuple, frozenset):
            return False
        seen.add(id(item))
        pending.extend(item)
    return True


def counted_cells(function: types.FunctionType) -> dict[str, types.CellType]:
    """The closure's variables whose contents count: all but those that the function only adds to."""
    uses = uses_of(function.__code__).cells
    cells = zip(function.__code__.co_freevars, function.__closure__ or (), strict=True)
    return {name: cell for name, cell in cells if uses.get(name, Use(read=True)).read}


class Undecidable(Exception):
    """A value in a closure cannot be told from another."""


@dataclass
class _Global:
    """A global that code uses, and how."""

    where: str
    holder: dict[str, Any]
    name: str
    value: Any
    use: Use
    counted: bool = False


def _defaults_of(function: types.FunctionType) -> dict[str, Any]:
    positional = function.__code__.co_varnames[: function.__code__.co_argcount]
    defaults = function.__defaults__ or ()
    return {**dict(zip(reversed(positional), reversed(defaults), strict=False)), **(function.__kwdefaults__ or {})}


class Depends:
    """What a function, or a class, rests on. `parts`: name -> digest; `watch`: what binding/memo_watch.c compares at
    each call; `undecidable`: what in the closure cannot be told from another, or None.

    own: whether the function's own code and closure are among the parts; else only what they use.
    """

    def __init__(self, root: Any, project: Project, nothing: object, own: bool = False) -> None:
        self._project = project
        self._nothing = nothing
        self._seen: dict[int, Any] = {}
        self._functions: list[types.FunctionType] = []
        self._strict: set[int] = set()  # functions whose closures must be decidable
        self._values: dict[tuple[int, str], _Global] = {}
        self._classes: dict[int, tuple[type, list[tuple[str, bytes]]]] = {}  # with those of their values that count
        self._class_values: list[tuple[type, str, Any]] = []  # that may count
        self._class_methods: set[int] = set()  # functions whose first parameter is a class
        self._assigned: set[tuple[int, str]] = set()  # attributes of classes that the code assigns to
        self._outside: dict[str, str] = {}  # what global names stand for that is of another package
        self._digests: dict[tuple[int, bool, bool], tuple[Any, bytes]] = {}
        self._watch: dict[tuple[int, ...], tuple[Any, ...]] = {}
        self._found: dict[str, list[bytes]] = {}
        self.undecidable: str | None = None
        if isinstance(root, type):
            self._count(root)
        elif isinstance(root, types.FunctionType):
            self._seen[id(root)] = root
            self._functions.append(root)
            if own:
                self._strict.add(id(root))
                self._meet_closure(root, "")
        self._go_on()
        for kind, values in self._classes.values():
            bases = [_name(base) for base in kind.__bases__]
            self._part(f"class {_name(kind)}", _engine.hash_object((sorted(values), bases)))
        if self._outside:
            self._part("names of other packages", _engine.hash_object(self._outside))
        self.parts = self._numbered()
        self.watch = tuple(self._watch.values())

    def _go_on(self) -> None:
        followed = 0
        while True:
            while followed < len(self._functions):  # grows as we go
                function = self._functions[followed]
                followed += 1
                if self._project.has(function.__module__):
                    self._follow(function)
            self._count_values()
            if followed == len(self._functions):
                return

    def _watch_for(self, *item: Any) -> None:
        of_contents = len(item) == 2 and not isinstance(item[0], types.CellType)
        self._watch[(id(item[0]),) if of_contents else (id(item[0]), id(item[1]))] = item

    def _part(self, name: str, digest: bytes) -> None:
        self._found.setdefault(name, []).append(digest)

    def _numbered(self) -> dict[str, bytes]:
        """Functions of one name may differ: made by one function, with different closures. They come in no order that
        another process would know, as out of a set."""
        parts: dict[str, bytes] = {}
        for name, digests in self._found.items():
            for number, digest in enumerate(sorted(digests), 1):
                parts[name if number == 1 else f"{name} ({number})"] = digest
        return parts

    # -- names in the code --

    def _follow(self, function: types.FunctionType) -> None:
        uses = uses_of(function.__code__)
        for path, use in sorted(uses.paths.items(), key=lambda item: (len(item[0]), item[0])):
            if len(self._functions) + len(self._values) > _MOST:
                return
            self._resolve(function, path, use)

    def _resolve(self, function: types.FunctionType, path: Path, use: Use) -> None:
        """Find what a path leads to, as far as it goes through modules."""
        kind, first, *attributes = path
        names: dict[str, Any] = function.__globals__
        if kind == "global":
            where, holder, rest = usual_name(names.get("__name__", "")), names, [first, *attributes]
        elif kind == "import":
            module = self._import(names, first)
            if module is None or not attributes:
                return
            if attributes[0] not in vars(module):
                self._import_module(f"{module.__name__}.{attributes[0]}")
            where, holder, rest = usual_name(module.__name__), vars(module), attributes
        else:
            module = self._content_of(function, first)
            if isinstance(module, type) and not attributes:
                self._note_assigned(module, use)
            if not isinstance(module, types.ModuleType) or not attributes:
                return
            where, holder, rest = usual_name(module.__name__), vars(module), attributes
        for number, name in enumerate(rest):
            if name not in holder:
                if not hasattr(builtins, name):
                    self._watch_for(holder, name, self._nothing)
                return
            value = holder[name]
            inside = kind == "global" and number == 0
            if not inside and not self._project.has(where):
                return
            if number == len(rest) - 1:
                self._meet_global(holder, where, name, use)
                return
            if not isinstance(value, types.ModuleType):
                return  # the shorter path met it
            if self._project.has(value.__name__):
                self._watch_for(holder, name, value)
            where, holder = usual_name(value.__name__), vars(value)

    def _content_of(self, function: types.FunctionType, name: str) -> Any:
        """What a variable of the closure holds; None where it has none."""
        names = function.__code__.co_freevars
        try:
            return (function.__closure__ or ())[names.index(name)].cell_contents
        except (ValueError, IndexError):
            return None

    def _note_assigned(self, kind: type, use: Use) -> None:
        self._assigned.update((id(base), name) for base in kind.__mro__ for name in use.assigned)

    def _import(self, names: dict[str, Any], statement: str) -> types.ModuleType | None:
        """What an import statement gives, if it is the project's."""
        level, _, name = statement.partition(":")
        package = names.get("__package__") or str(names.get("__name__", "")).rpartition(".")[0]
        try:
            full = importlib.util.resolve_name("." * int(level) + name, package)
        except (ImportError, ValueError):
            return None
        return self._import_module(full)

    def _import_module(self, name: str) -> types.ModuleType | None:
        if not self._project.has(name):
            return None
        try:
            module = importlib.import_module(name)
        except Exception:  # the function itself says so, if it comes there
            return None
        self._watch_for(sys.modules, name, module)
        return module

    # -- values --

    def _meet_global(self, holder: dict[str, Any], where: str, name: str, use: Use) -> None:
        value = holder[name]
        inner = self._inner(value)
        if inner is None:
            known = self._values.setdefault((id(holder), name), _Global(where, holder, name, value, Use()))
            known.use.add(use)
            return
        if isinstance(value, type):
            self._note_assigned(value, use)
        self._watch_for(holder, name, value)
        if not self._count(value):
            self._outside[f"{where}.{name}"] = _outside_name(inner)
        elif isinstance(inner, (types.FunctionType, type)) and _name(inner) != f"{where}.{name}":
            self._found.setdefault(f"name {where}.{name}", [_engine.hash_object(_name(inner))])

    def _inner(self, value: Any) -> Any:
        """The function or class that a value stands for, module for a module, or None: then it is any other value."""
        if isinstance(value, (types.FunctionType, type, types.ModuleType, types.BuiltinFunctionType)):
            return value
        if isinstance(value, _engine.Memo) or type(value).__name__ in ("NotMemorizedFunc", "AsyncNotMemorizedFunc"):
            return self._inner(getattr(value, "func", None))
        if isinstance(value, functools.partial):
            return self._inner(value.func)
        if isinstance(value, types.MethodType):
            return self._inner(value.__func__)
        if isinstance(value, (staticmethod, classmethod)):
            return self._inner(value.__func__)
        inner = _wrapped(value) if callable(value) else None  # of functools.lru_cache
        return inner if isinstance(inner, types.FunctionType) else None

    def _count(self, value: Any, always: bool = False, strict: bool = False) -> bool:
        """Count a function, class, method or partial of the project; `always`: of others too. Whether it is one."""
        if isinstance(value, functools.partial):
            if not self._count(value.func, always, strict):
                return False
            name = getattr(self._inner(value), "__qualname__", "")
            self._part(f"arguments of partial {name}", self._digest_leniently((value.args, value.keywords)))
            return True
        if isinstance(value, types.MethodType):
            if not self._count(value.__func__, always, strict):
                return False
            owner = value.__self__
            if isinstance(owner, type):
                self._count(owner)
            elif not self._has_state(type(owner)):
                self._part(f"object of {value.__func__.__qualname__}", self._digest_leniently(owner))
            else:
                self._count(type(owner))
            return True
        if not isinstance(value, (types.FunctionType, type)):
            inner = self._inner(value)
            return inner is not None and inner is not value and self._count(inner, always, strict)
        if not self._project.has(value.__module__) and not (always and isinstance(value, types.FunctionType)):
            return False
        if id(value) in self._seen:
            return True
        self._seen[id(value)] = value
        if isinstance(value, type):
            self._count_class(value)
        else:
            self._count_function(value, strict)
        return True

    def _count_function(self, function: types.FunctionType, strict: bool) -> None:
        self._functions.append(function)
        if strict:
            self._strict.add(id(function))
        self._part(f"function {_name(function)}", _engine.hash_object(code_digest(function.__code__)))
        for name, value in _defaults_of(function).items():
            self._part(f"the default of {name} of function {_name(function)}", self._digest_leniently(value, False))
        self._watch_for(function, function.__code__, function.__defaults__, function.__kwdefaults__)
        self._meet_closure(function, f" of {function.__qualname__}")

    def _meet_closure(self, function: types.FunctionType, of: str) -> None:
        for name, cell in counted_cells(function).items():
            try:
                content = cell.cell_contents
            except ValueError:  # not assigned yet
                self._watch_for(cell, self._nothing)
                continue
            self._watch_for(cell, content)
            try:
                digest = self._digest(content, id(function) in self._strict)
            except Undecidable as error:
                if id(function) in self._strict and self.undecidable is None:
                    self.undecidable = f"its variable {name!r}{of} holds {error}"
                digest = self._digest_of_type(content)
            self._part(f"closure variable {name}{of}", digest)

    def _digest_of_type(self, value: Any) -> bytes:
        return _engine.hash_object(("object", type(value).__module__, type(value).__qualname__))

    def _digest(self, value: Any, strict: bool, watch: bool = True) -> bytes:
        """A value by its contents; what can change is watched. Raises Undecidable for what cannot be hashed."""
        if _is_fixed(value):
            return self._digest_of_contents(value, strict, False)
        inner = self._inner(value)
        if inner is not None:
            self._count(value, always=True, strict=strict)
            if isinstance(inner, types.BuiltinFunctionType) and inner is value:
                return self._digest_of_contents(value, strict, watch)
            return _engine.hash_object(("name", getattr(inner, "__module__", None), getattr(inner, "__qualname__", "")))
        if package_of(type(value).__module__) in _NO_VALUES:
            return self._digest_of_type(value)
        return self._digest_of_contents(value, strict, watch)

    def _digest_of_contents(self, value: Any, strict: bool, watch: bool) -> bytes:
        known = self._digests.get((id(value), strict, watch))
        if known is not None:
            return known[1]
        met: list[Any] = []
        try:
            digest = _engine.hash_object(value, False, met)
        except Exception as error:
            kind = type(value)
            raise Undecidable(f"{kind.__module__}.{kind.__qualname__}, which cannot be hashed ({error})") from error
        functions = any(isinstance(inside, types.FunctionType) for inside in met)
        if watch:
            self._watch_for(value, _engine.hash_object(value, by_address=True) if functions else digest)
        for inside in met:
            self._count(inside, always=functions, strict=strict)
        self._digests[id(value), strict, watch] = (value, digest)
        return digest

    def _digest_leniently(self, value: Any, watch: bool = True) -> bytes:
        """The same; what cannot be hashed goes by its type."""
        try:
            return self._digest(value, False, watch)
        except Undecidable:
            return self._digest_of_type(value)

    def _has_state(self, kind: type) -> bool:
        """Whether methods of a class of the project change their object, other than to make it."""
        return any(
            uses_of(function.__code__).changes_first
            for base in kind.__mro__
            if self._project.has(base.__module__)
            for name, value in vars(base).items()
            if name not in _MAKING
            for function in self._functions_in(value)
        )

    def _is_value(self, value: Any) -> bool:
        """Whether a global is there for what it holds."""
        kind = type(value)
        if self._project.has(kind.__module__):
            return not self._has_state(kind)
        return package_of(kind.__module__) in _VALUES and not kind.__module__.startswith("numpy.random")

    def _count_values(self) -> None:
        assigned = {
            (id(function.__globals__), name)
            for function in self._functions
            for name in uses_of(function.__code__).stores
        }
        for (place, name), known in list(self._values.items()):
            if (place, name) in assigned or known.counted or not known.use.read or name.startswith("__"):
                continue
            if self._project.has(type(known.value).__module__):
                self._count(type(known.value))
            if known.use.changed:
                continue
            known.counted = True
            self._watch_for(known.holder, name, known.value)
            if not _is_fixed(known.value) and not self._is_value(known.value):
                continue
            try:
                self._found[f"global {known.where}.{name}"] = [self._digest(known.value, False)]
            except Undecidable:  # it holds what cannot be told apart
                continue
        self._count_class_values()

    # -- classes --

    def _functions_in(self, value: Any) -> Iterator[types.FunctionType]:
        if isinstance(value, types.FunctionType):
            yield value
        elif isinstance(value, property):
            for function in (value.fget, value.fset, value.fdel):
                yield from self._functions_in(function)
        elif isinstance(value, (staticmethod, classmethod)):
            yield from self._functions_in(value.__func__)
        elif isinstance(value, (functools.cached_property, functools.partialmethod, functools.singledispatchmethod)):
            yield from self._functions_in(value.func)
        elif isinstance(_wrapped(value), types.FunctionType):
            yield _wrapped(value)

    def _count_class(self, kind: type) -> None:
        values: list[tuple[str, bytes]] = []
        self._classes[id(kind)] = (kind, values)
        for name, value in sorted(vars(kind).items()):
            functions = list(self._functions_in(value))
            for function in functions:
                if isinstance(value, classmethod) or name in _CLASS_MAKING or issubclass(kind, type):
                    self._class_methods.add(id(function))
                self._count(function, always=True)
            if functions:
                self._watch_for(kind, name, value)
                values.append((name, _engine.hash_object([_name(function) for function in functions])))
            elif isinstance(value, type):
                self._watch_for(kind, name, value)
                self._count(value)
            elif not name.startswith("__") and name != _CHANGING_MEMBERS:
                self._class_values.append((kind, name, value))
        for base in (*kind.__bases__, type(kind)):
            self._count(base)

    def _count_registered(self, value: Any) -> None:
        """The functions and classes in a dict or list of a class whose code changes it: it may be a registry."""
        held = list(value.values()) if isinstance(value, dict) else value
        for item in list(held) if isinstance(held, (list, set)) else ():  # another thread may be adding to it
            if isinstance(item, (types.FunctionType, type)):
                self._count(item)

    def _count_class_values(self) -> None:
        """Those of the classes that were met, where none of the code that was found changes them."""
        changed: set[str] = set()  # what is in them
        assigned: set[str] = set()  # by functions that get the class from their caller
        for function in self._functions:
            uses = uses_of(function.__code__)
            changed |= uses.changed_inside
            assigned |= uses.assigned_of_type
            if id(function) in self._class_methods:
                assigned |= uses.assigned_of_first
        pending, self._class_values = self._class_values, []
        for kind, name, value in pending:
            is_fixed = _is_fixed(value)
            if name in assigned or (id(kind), name) in self._assigned or (name in changed and not is_fixed):
                self._count_registered(value)
            elif is_fixed or (self._is_value(value) and not isinstance(value, kind)):
                self._watch_for(kind, name, value)
                try:
                    self._classes[id(kind)][1].append((name, self._digest(value, False)))
                except Undecidable:
                    continue
