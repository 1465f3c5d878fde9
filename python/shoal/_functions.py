"""Functions by value, without importing cloudpickle, which takes as long as a fresh interpreter's start, on both sides.

A script's own functions cannot be found by name in a clean worker, so almost every program that uses `Parallel` needs
one sent by value. `dumps` does that for functions and closures whose code, defaults and globals are themselves plain:
what pickle can find by name or copy, modules, and other such functions. All else it leaves to cloudpickle by raising
`NotPlain`; what a function means afterwards is the same either way: it gets the globals that its code names, functions
of one message that had their globals or a cell in common still do.
"""

from __future__ import annotations

import _pickle  # pickle itself imports re and struct, which cost a worker's start more than this whole package
import builtins
import io
import marshal
import sys
from _operator import is_  # the C module: the Python one costs each start of a worker
from types import CellType, CodeType, FunctionType, ModuleType

TYPE_CHECKING = False  # typing costs each start of a worker more than the rest of this file
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from typing import Any

_MODULE_NAMES = ("__name__", "__package__", "__path__", "__file__")  # what a module's own globals say of it

MAIN = ("__main__", "__mp_main__")


class NotPlain(Exception):
    """The object needs cloudpickle."""


class _Pickler(_pickle.Pickler):
    def __init__(
        self, file: io.BytesIO, buffer_callback: Callable[[Any], Any] | None, table: dict[Any, Any], foreign_main: bool
    ) -> None:
        super().__init__(file, 5, buffer_callback=buffer_callback)
        self.dispatch_table = table
        self._foreign_main = foreign_main
        self._globals: dict[int, tuple[dict[str, Any], dict[str, Any]]] = {}  # id -> (the copy, the original: held)

    def reducer_override(self, obj: Any) -> Any:
        kind = type(obj)
        if kind is FunctionType:
            return NotImplemented if self._found_by_name(obj) else self._reduce_function(obj)
        if kind is CellType:
            return _reduce_cell(obj)
        if kind is ModuleType:
            return _reduce_module(obj)
        if isinstance(obj, type) and not self._found_by_name(obj):
            raise NotPlain
        return NotImplemented

    def _found_by_name(self, obj: Any) -> bool:
        if obj is type(None) or obj is type(NotImplemented) or obj is type(...):
            return True  # pickle knows them, though no module shows them
        name = getattr(obj, "__module__", None)
        if not isinstance(name, str) or (self._foreign_main and name in MAIN):
            return False
        found: Any = sys.modules.get(name)
        for part in obj.__qualname__.split("."):
            found = getattr(found, part, None)
        return found is obj

    def _reduce_function(self, function: FunctionType) -> Any:
        if getattr(function, "__type_params__", None):
            raise NotPlain
        code, origin = function.__code__, function.__globals__
        known = self._globals.get(id(origin))
        if known is None:
            known = self._globals[id(origin)] = (
                {name: origin[name] for name in _MODULE_NAMES if name in origin},
                origin,
            )
        names = set(_global_names(code))
        used = {name: origin[name] for name in sorted(names) if name in origin}
        cells = function.__closure__ or ()
        values = [*used.values(), *(cell.cell_contents for cell in cells if _is_filled(cell))]
        state = (
            used,
            _submodules(values, code),
            function.__defaults__,
            function.__kwdefaults__,
            function.__dict__,
            function.__annotations__,
            function.__qualname__,
            function.__module__,
            function.__doc__,
        )
        made_from = (marshal.dumps(code), known[0], function.__name__, cells)
        # State after construction: a function may be among its own globals.
        return _make_function, made_from, state, None, None, _set_state


def _global_names(code: CodeType) -> Iterator[str]:
    """The names that a function's code, and the functions and classes inside of it, look up as globals.

    Not all of `co_names`: attributes are there too, and a large global that only shares its name with an attribute must
    not be sent along.
    """
    _, shifts = _name_operations()
    for operation, argument in _operations_of(code):
        if operation in shifts:
            yield code.co_names[argument >> shifts[operation]]
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _global_names(constant)


def _names_of_values(code: CodeType) -> Iterator[str]:
    """Those that are loaded for something else than a call (from CPython 3.11 on)."""
    _, shifts = _name_operations()
    for operation, argument in _operations_of(code):
        shift = shifts.get(operation)
        if shift is not None and not (shift and argument & 1):
            yield code.co_names[argument >> shift]
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _names_of_values(constant)


def _operations_of(code: CodeType) -> Iterator[tuple[int, int]]:
    """A code's operations with their whole arguments."""
    extended_argument, _ = _name_operations()
    extended = 0
    for operation, argument in zip(code.co_code[::2], code.co_code[1::2], strict=True):
        argument |= extended
        extended = argument << 8 if operation == extended_argument else 0
        yield operation, argument


_BY_NAME = (
    "LOAD_GLOBAL",
    "STORE_GLOBAL",
    "DELETE_GLOBAL",
    "LOAD_NAME",
    "STORE_NAME",
    "DELETE_NAME",
    "LOAD_FROM_DICT_OR_GLOBALS",
)
_operations: tuple[int, dict[int, int]] | None = None


def _name_operations() -> tuple[int, dict[int, int]]:
    """EXTENDED_ARG, and for each operation that has a global's name by how many bits its argument is to be shifted."""
    global _operations
    if _operations is None:
        from opcode import opmap  # here: readers have no use for it

        # From 3.11 on the lowest bit of LOAD_GLOBAL's says something else.
        bits = {"LOAD_GLOBAL": 1} if sys.version_info >= (3, 11) else {}
        _operations = opmap["EXTENDED_ARG"], {opmap[name]: bits.get(name, 0) for name in _BY_NAME if name in opmap}
    return _operations


def _submodules(values: list[Any], code: CodeType) -> list[str]:
    """Modules that the code reaches as attributes of packages: `import a.b` makes a global of `a` only."""
    names: set[str] | None = None
    found = []
    for package in values:
        if type(package) is not ModuleType or not hasattr(package, "__path__"):
            continue
        if names is None:
            names = set(_all_names(code))
        prefix = package.__name__ + "."
        for name in list(sys.modules):
            if name.startswith(prefix) and names.issuperset(name[len(prefix) :].split(".")):
                found.append(name)
    return found


def _all_names(code: CodeType) -> Iterator[str]:
    yield from code.co_names
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _all_names(constant)


def _is_filled(cell: CellType) -> bool:
    try:
        cell.cell_contents  # noqa: B018
    except ValueError:
        return False
    return True


def _reduce_cell(cell: CellType) -> Any:
    if not _is_filled(cell):
        return _make_cell, ()
    # Contents after construction: a function may be in its own cell.
    return _make_cell, (), (cell.cell_contents,), None, None, _fill_cell


def _reduce_module(module: ModuleType) -> Any:
    if sys.modules.get(module.__name__) is not module or module.__name__ in MAIN:
        raise NotPlain
    if getattr(module, "__spec__", None) is None:
        raise NotPlain
    return _import_module, (module.__name__,)


# -- functions that need be sent once only --

_CONSTANTS = (int, float, complex, str, bytes, bool, type(None))  # what nobody can change
_CONSTANT_MOST = 1 << 14  # bytes; what is larger would stay in memory, here and in shared memory, after its call
_DESCRIPTION_MOST = 2000  # objects; it is made in each call, one function within the other
_REACH_GLOBALS = frozenset(("globals", "locals", "vars", "eval", "exec", "__import__"))
_REACH_STATE = frozenset(("__globals__", "f_globals", "__dict__", "__defaults__", "__kwdefaults__"))  # as attributes
_SETS = frozenset(("setattr", "delattr", "__setattr__", "update_wrapper", "wraps"))
_SEES_CALLS = sys.version_info >= (3, 11)  # whether LOAD_GLOBAL says that what it loads is called
_BUILTIN = type(len)
_KNOWN_MOST = 256
_known: dict[int, tuple[CodeType, _Reading]] = {}  # by id of the code, which is held
_END = object()  # of what there may be more or less of
_OWN = object()  # for a function of the program's, which is told by what it is made of


def describe_unchanging(function: FunctionType) -> tuple[int, list[Any]] | None:
    """What a function of ours is: a number, and objects that say it by their identity. A worker that has one for which
    all are the same needs no other. None: it has a state, or cannot be told so soon.

    A state would be a closure, attributes, or defaults and globals that can change: what a call leaves there in a
    worker the next call would find, and with a function that is sent anew it does not. So would be what others do to a
    function of the program's that they are handed (functools.update_wrapper): its own may only be called.

    No function or namespace is among the objects: what a program has dropped is not held by this.
    """
    cloudpickle = sys.modules.get("cloudpickle")
    if cloudpickle is not None and cloudpickle.list_registry_pickle_by_value():
        return None
    description = _Description()
    if not description.add(function) or description.hands_own:
        return None
    # What of a package is imported there depends on what is here.
    return len(sys.modules) if description.has_packages else 0, description.found


def is_described_by(now: tuple[int, list[Any]], before: tuple[int, list[Any]]) -> bool:
    """Whether the two are of one function, which has not changed."""
    return now[0] == before[0] and len(now[1]) == len(before[1]) and all(map(is_, now[1], before[1]))


class _Description:
    """Objects by whose identity a function, and those of the program's that it names, can be told."""

    def __init__(self) -> None:
        self.found: list[Any] = []
        self.has_packages = False
        self.hands_own = False  # whether others may be handed functions of the program's
        self._names_own = False
        self._sets_attributes = False
        self._seen: dict[FunctionType, str] = {}  # not by code: functions that one `def` made share theirs

    def add(self, function: FunctionType) -> bool:
        """False: it has a state."""
        self._seen[function] = sys.intern(f"own {len(self._seen)}")
        found, code, origin = self.found, function.__code__, function.__globals__
        reading = _read_code(code)
        if not reading.is_harmless or function.__closure__ is not None or function.__dict__:
            return False
        if len(found) > _DESCRIPTION_MOST or getattr(function, "__type_params__", None):
            return False
        found += (code, function.__module__, function.__qualname__, function.__name__, function.__doc__)
        found += [origin.get(name) for name in _MODULE_NAMES]
        for value in function.__defaults__ or ():
            if not _is_constant(value):
                return False
            found.append(value)
        found.append(_END)
        for name, value in (function.__kwdefaults__ or {}).items():
            if not _is_constant(value):
                return False
            found += (name, value)
        found.append(_END)
        for name, value in function.__annotations__.items():
            if not _is_constant(value) and not _is_elsewhere(value):
                return False
            found += (name, value)
        found.append(reading.names)
        self._sets_attributes |= reading.sets_attributes
        for name in reading.names:
            value = origin.get(name, _END)
            if value is _END:  # a builtin's name, or nobody's
                continue
            if type(value) is FunctionType and not _is_elsewhere(value):
                self._names_own = True
                self.hands_own |= name in reading.handed
                found += (name, _OWN)
                if value in self._seen:
                    found.append(self._seen[value])
                elif not self.add(value):
                    return False
            elif not self._add_global(name, value):
                return False
        self.hands_own |= not _SEES_CALLS and self._names_own and self._sets_attributes
        return True

    def _add_global(self, name: str, value: Any) -> bool:
        self.found += (name, value)
        if type(value) is ModuleType:
            self.has_packages |= hasattr(value, "__path__")
            # One that is not found by its name is sent as it is now.
            return sys.modules.get(getattr(value, "__name__", "")) is value
        return _is_constant(value) or _is_elsewhere(value)


def _is_constant(value: Any) -> bool:
    return type(value) in _CONSTANTS and sys.getsizeof(value) <= _CONSTANT_MOST


def _is_elsewhere(value: Any) -> bool:
    """Whether this is a function or class of a module, which workers find by its name."""
    if type(value) is FunctionType or type(value) is _BUILTIN or isinstance(value, type):
        module = value.__module__
        return module not in MAIN and getattr(sys.modules.get(module), value.__qualname__, None) is value
    return False


class _Reading:
    """What is seen of a function in its code."""

    __slots__ = ("handed", "is_harmless", "names", "sets_attributes")

    def __init__(self, code: CodeType) -> None:
        from opcode import opmap

        names, attributes = set(_global_names(code)), set(_all_names(code))
        self.names = tuple(sorted(names))  # the globals that it reads
        self.handed = frozenset(_names_of_values(code)) if _SEES_CALLS else frozenset()  # not only to be called
        # Whether it can neither change globals nor get at them all.
        self.is_harmless = (
            _REACH_GLOBALS.isdisjoint(names)
            and _REACH_STATE.isdisjoint(attributes)
            and not _has(code, {opmap["STORE_GLOBAL"], opmap["DELETE_GLOBAL"]})
        )
        self.sets_attributes = not _SETS.isdisjoint(attributes) or _has(
            code, {opmap["STORE_ATTR"], opmap["DELETE_ATTR"]}
        )


def _read_code(code: CodeType) -> _Reading:
    known = _known.get(id(code))
    if known is None:
        if len(_known) >= _KNOWN_MOST:
            _known.clear()
        known = _known[id(code)] = code, _Reading(code)
    return known[1]


def _has(code: CodeType, operations: set[int]) -> bool:
    return not operations.isdisjoint(code.co_code[::2]) or any(
        isinstance(constant, CodeType) and _has(constant, operations) for constant in code.co_consts
    )


# -- the reader's side --


def _make_function(code: bytes, namespace: dict[str, Any], name: str, cells: tuple[CellType, ...]) -> FunctionType:
    namespace.setdefault("__builtins__", builtins)
    return FunctionType(marshal.loads(code), namespace, name, None, cells or None)


def _set_state(function: FunctionType, state: tuple[Any, ...]) -> None:
    used, submodules, defaults, keyword_defaults, attributes, annotations, qualified_name, module, text = state
    function.__globals__.update(used)
    if _kept and module in MAIN:
        function.__globals__.update(_kept)
    for name in submodules:
        __import__(name)
    function.__defaults__ = defaults
    function.__kwdefaults__ = keyword_defaults
    function.__dict__.update(attributes)
    function.__annotations__ = annotations
    function.__qualname__ = qualified_name
    function.__module__ = module
    function.__doc__ = text


_kept: dict[str, Any] = {}  # globals of `__main__` that hold for functions that come later


def keep_globals(initializer: Any) -> None:
    """In a worker: an initializer of `__main__` has run. What it names, and the functions that it names, but for
    functions, classes and modules, is what the functions that come after it find, whatever they bring along."""
    if type(initializer) is not FunctionType or initializer.__module__ not in MAIN:
        return
    namespace = initializer.__globals__
    seen: set[FunctionType] = set()
    ahead = [initializer]
    while ahead:
        function = ahead.pop()
        if function in seen or function.__globals__ is not namespace:
            continue
        seen.add(function)
        for name in _global_names(function.__code__):
            value = namespace.get(name, _kept)
            if type(value) is FunctionType:
                ahead.append(value)
            elif value is not _kept and not isinstance(value, (type, ModuleType)):
                _kept[name] = value


def _make_cell() -> CellType:
    return CellType()


def _fill_cell(cell: CellType, contents: tuple[Any]) -> None:
    cell.cell_contents = contents[0]


def _import_module(name: str) -> ModuleType:
    __import__(name)
    return sys.modules[name]


# -- the writer's side --


def dumps(obj: Any, buffer_callback: Callable[[Any], Any] | None, table: dict[Any, Any], foreign_main: bool) -> bytes:
    """Pickle with functions by value where they cannot be found by name in the reader.

    table: reducers by type, as a pickler's dispatch_table.
    foreign_main: the reader's `__main__` is another program's: nothing of ours is found in it.

    Raises NotPlain, or what pickle raises, where cloudpickle must do it (or say why not).
    """
    cloudpickle = sys.modules.get("cloudpickle")
    if cloudpickle is not None and cloudpickle.list_registry_pickle_by_value():
        raise NotPlain  # the program asked for modules by value
    file = io.BytesIO()
    _Pickler(file, buffer_callback, table, foreign_main).dump(obj)
    return file.getvalue()
