"""How a code uses names: globals, closure variables and imports, found in its instructions without running it.

A *path* says where a value comes from, and the attributes that are loaded of it:

    ("global", "CONFIG", "rate")          a global name
    ("cell", "table")                     a variable of an enclosing function
    ("import", "0:package.module", "f")   what an import statement in the function loads; 0 is the statement's level

`getattr` with a constant name is an attribute like any other. What a function that lies in the code does counts as the
code's own. Of each path it is known whether the value is *read*, in whatever way, and whether the code *changes* it: an
item or attribute is assigned, or a method that changes a list, dict or set is called. `seen.append(x)`,
`groups[k].append(x)`, `counts[k] += 1` and `total += x` alone read nothing that a result could rest on.

Of attributes it is also known which are the state of a class: those that are assigned of what may be one (`Model.made`,
`cls.made`, `type(self).made`), and those whose contents are changed (`self.seen.append(x)`).
"""

from __future__ import annotations

import dis
import types
from dataclasses import dataclass, field
from typing import Any

Path = tuple[str, ...]

_SKIPPED = frozenset(("NOP", "EXTENDED_ARG", "CACHE", "PRECALL", "RESUME", "PUSH_NULL"))
_GLOBALS = frozenset(("LOAD_GLOBAL", "LOAD_NAME", "LOAD_FROM_DICT_OR_GLOBALS"))
_CELLS = frozenset(("LOAD_DEREF", "LOAD_CLASSDEREF", "LOAD_FROM_DICT_OR_DEREF"))
_LOCALS = frozenset(("LOAD_FAST", "LOAD_FAST_CHECK"))
_ATTRIBUTES = frozenset(("LOAD_ATTR", "LOAD_METHOD"))
_SIMPLE = _GLOBALS | _CELLS | _LOCALS | {"LOAD_CONST"}
_CHANGING = frozenset(("append", "appendleft", "add", "extend", "update", "insert", "clear", "discard", "remove", "pop",
                       "popitem", "popleft", "setdefault", "sort", "reverse", "difference_update",
                       "intersection_update", "symmetric_difference_update", "extendleft", "rotate"))  # fmt: skip
_SILENT = frozenset(("append", "appendleft", "add", "extend", "extendleft", "update", "insert", "clear", "discard"))
_DEEPEST = 6  # attributes of attributes
_KEPT_CODES = 4096


@dataclass
class Use:
    read: bool = False
    changed: bool = False
    assigned: set[str] = field(default_factory=set)  # its attributes that are assigned

    def add(self, other: Use) -> None:
        self.read |= other.read
        self.changed |= other.changed
        self.assigned |= other.assigned


@dataclass
class Uses:
    paths: dict[Path, Use] = field(default_factory=dict)
    stores: set[str] = field(default_factory=set)  # global names that are assigned to
    cells: dict[str, Use] = field(default_factory=dict)  # closure variables
    changes_first: bool = False  # whether what the first parameter holds (self) is changed
    assigned_of_first: set[str] = field(default_factory=set)  # attributes of the first parameter
    assigned_of_type: set[str] = field(default_factory=set)  # attributes of type(...), or of a __class__
    changed_inside: set[str] = field(default_factory=set)  # attributes of anything, whose contents are changed
    aliases: dict[str, set[Path]] = field(default_factory=dict)  # names that an import gives a value

    def note(self, path: Path, use: Use) -> None:
        self.paths.setdefault(path, Use()).add(use)


@dataclass
class _Step:
    name: str
    value: Any
    effect: int  # on the depth of the stack
    jumps: bool = False


_known: dict[int, tuple[types.CodeType, Uses]] = {}
_jumps = frozenset((*dis.hasjrel, *dis.hasjabs))


def _steps(code: types.CodeType) -> list[_Step]:
    steps: list[_Step] = []
    effect = 0  # of what is skipped
    for step in dis.get_instructions(code):
        name = step.opname
        if name in ("EXTENDED_ARG", "CACHE"):
            continue
        effect += dis.stack_effect(step.opcode, step.arg, jump=False)
        if name in _SKIPPED:
            continue
        if name in ("LOAD_FAST_LOAD_FAST", "STORE_FAST_LOAD_FAST", "STORE_FAST_STORE_FAST"):  # 3.13: two in one
            for half, value in zip((name[: name.index("_FAST_") + 5], name[name.index("_FAST_") + 6 :]), step.argval,
                                   strict=True):  # fmt: skip
                steps.append(_Step(half, value, 1 if half.startswith("LOAD") else -1))
        else:
            steps.append(_Step(name, step.argval, effect, step.opcode in _jumps))
        effect = 0
    return steps


def _statement_end(steps: list[_Step], at: int) -> tuple[int, int] | None:
    """What takes the value that the step `at` loads, or what was made from it, off the stack: the step's number, and
    the depth behind it, where 0 is that before the load. None where it cannot be told."""
    depth = 1
    for number in range(at + 1, min(at + 200, len(steps))):
        if steps[number].jumps:
            return None
        depth += steps[number].effect
        if depth <= 0:
            return number, depth
    return None


def _behind_items(steps: list[_Step], at: int, after: int) -> int:
    """The step behind value[index][index], for a value that the step `at` loads with its attributes up to `after`."""
    depth, position = 1, after
    for number in range(after, min(at + 200, len(steps))):
        step = steps[number]
        if step.jumps or step.name.startswith(("COPY", "SWAP", "DUP_", "ROT_")):
            break
        depth += step.effect
        if depth < 1 or (depth == 1 and step.name != "BINARY_SUBSCR"):
            break
        if depth == 1:
            position = number + 1
    return position


def _use_of(steps: list[_Step], at: int, after: int) -> Use:
    """How the value is used that the step `at` loads, of which attributes are loaded up to the step `after`."""
    if after >= len(steps):
        return Use(read=True)
    following = steps[after]
    if following.name in ("STORE_ATTR", "DELETE_ATTR"):
        return Use(changed=True, assigned={following.value})
    end = _statement_end(steps, at)
    method = steps[after - 1].value if steps[after - 1].name in _ATTRIBUTES and after - 1 > at else None
    behind = _behind_items(steps, at, after)
    if after < behind < len(steps):  # groups[key].append(x), groups[key].count = 1
        if steps[behind].name in ("STORE_ATTR", "DELETE_ATTR"):
            return Use(changed=True)
        if steps[behind].name in _ATTRIBUTES and steps[behind].value in _CHANGING:
            method = steps[behind].value
    if method in _CHANGING:
        silent = method in _SILENT and end is not None and steps[end[0]].name == "POP_TOP" and end[1] == 0
        return Use(read=not silent, changed=True)
    kind = _assigned_part(steps, at, after, end)
    return kind if kind is not None else Use(read=True)


def _is_copy(step: _Step, depth: int) -> bool:
    """Whether a step puts what lies so deep on the stack a second time, as += on an item (2) or attribute (1) does."""
    return (step.name == "COPY" and step.value == depth) or step.name == ("DUP_TOP", "DUP_TOP_TWO")[depth - 1]


def _assigned_part(steps: list[_Step], at: int, after: int, end: tuple[int, int] | None) -> Use | None:
    """Whether an item or attribute of the value is assigned, and nothing else is done with it."""
    if _is_copy(steps[after], 1) and after + 1 < len(steps) and steps[after + 1].name == "LOAD_ATTR":
        return Use(changed=True, assigned={steps[after + 1].value})  # value.attribute += ...
    depth = 1
    for number in range(at + 1, min(at + 200, len(steps))):
        step = steps[number]
        if _is_copy(step, 2) and depth == 2:
            return Use(changed=True)  # value[index] += ...: the value lies below the index
        if step.jumps or step.name.startswith(("COPY", "SWAP", "DUP_", "ROT_")):
            return None
        depth += step.effect
        if depth <= 0:
            break
    # value[index] = ...: below the value lies what is assigned, above it only the index.
    if end is not None and steps[end[0]].name in ("STORE_SUBSCR", "STORE_SLICE") and end[1] == -1:
        return Use(changed=True)
    if end is not None and steps[end[0]].name == "DELETE_SUBSCR" and end[1] == 0:
        return Use(read=True, changed=True)
    return None


def _is_count(steps: list[_Step], at: int) -> bool:
    """Whether the step `at` is the load in `name += something simple`."""
    after = [step.name for step in steps[at + 1 : at + 4]]
    return (
        len(after) == 3
        and after[0] in _SIMPLE
        and (after[1].startswith("INPLACE_") or after[1] == "BINARY_OP")
        and after[2].startswith("STORE_")
        and steps[at + 3].value == steps[at].value
        and steps[at + 1].value != steps[at].value
    )


def _note_import(uses: Uses, steps: list[_Step], at: int) -> None:
    """An import statement: what it loads, and the names it gives that."""
    level, names = steps[at - 2].value, steps[at - 1].value
    root = f"{level if isinstance(level, int) else 0}:"
    module: Path = ("import", root + steps[at].value)
    uses.note(module, Use())
    position = at + 1
    if names:
        while position + 1 < len(steps) and steps[position].name == "IMPORT_FROM":
            path = (*module, steps[position].value)
            uses.note(path, Use(read=True))
            uses.aliases.setdefault(steps[position + 1].value, set()).add(path)
            position += 2
        return
    whole = False
    while position < len(steps) and not steps[position].name.startswith("STORE_"):
        whole |= steps[position].name == "IMPORT_FROM"  # import a.b as c
        position += 1
    if position < len(steps):
        path = module if whole else ("import", root + steps[at].value.partition(".")[0])
        uses.aliases.setdefault(steps[position].value, set()).add(path)


def _roots(uses: Uses, code: types.CodeType, step: _Step) -> list[Path]:
    """Where the value comes from that a step loads."""
    roots: list[Path] = sorted(uses.aliases.get(step.value, ())) if isinstance(step.value, str) else []
    if step.name in _GLOBALS:
        roots.append(("global", step.value))
    elif step.name in _CELLS and step.value in code.co_freevars:
        roots.append(("cell", step.value))
    return roots


def _first_of(code: types.CodeType) -> str | None:
    return code.co_varnames[0] if code.co_argcount > 0 else None


def _attributes_of(steps: list[_Step], at: int) -> tuple[list[str], int]:
    """The attributes that are loaded of what the step `at` loads, and the number of the step behind them."""
    attributes: list[str] = []
    position = at + 1
    while position < len(steps) and steps[position].name in _ATTRIBUTES and len(attributes) < _DEEPEST:
        attributes.append(steps[position].value)
        position += 1
    return attributes, position


def _note_changed_inside(uses: Uses, attributes: list[str], use: Use) -> None:
    if use.changed and not use.assigned:
        places = attributes[:-1] if attributes and attributes[-1] in _CHANGING else attributes
        uses.changed_inside.update(places[-1:])


def _note_load(uses: Uses, code: types.CodeType, steps: list[_Step], at: int) -> None:
    step = steps[at]
    known = step.name in _GLOBALS or step.name in _CELLS or step.name in _LOCALS
    if not known or not isinstance(step.value, str):
        return
    first = step.value == _first_of(code) and step.name not in _GLOBALS and step.value not in code.co_freevars
    roots = _roots(uses, code, step)
    attributes, position = _attributes_of(steps, at)
    if not roots and not first and not attributes:
        return
    use = _use_of(steps, at, position)
    _note_changed_inside(uses, attributes, use)
    if attributes and attributes[-1] == "__class__":
        uses.assigned_of_type |= use.assigned
    if _is_count(steps, at):
        use = Use(changed=True)
    if first:
        uses.changes_first |= use.changed
        if not attributes:
            uses.assigned_of_first |= use.assigned
    before = steps[at - 1] if at > 0 else None
    if (
        before is not None and before.name in _GLOBALS and before.value == "getattr"
        and position < len(steps) and steps[position].name == "LOAD_CONST" and isinstance(steps[position].value, str)
    ):  # fmt: skip
        attributes.append(steps[position].value)
    for root in roots:
        for length in range(len(attributes) + 1):
            whole = length == len(attributes)
            uses.note((*root, *attributes[:length]), use if whole else Use(use.read, use.changed))
        if root[0] == "cell":
            uses.cells.setdefault(root[1], Use()).add(use)


def _note_type(uses: Uses, steps: list[_Step], at: int) -> None:
    """`type(self)`, where the step `at` is the call: what is assigned or changed is the class's."""
    attributes, position = _attributes_of(steps, at)
    use = _use_of(steps, at, position)
    _note_changed_inside(uses, attributes, use)
    if not attributes:
        uses.assigned_of_type |= use.assigned


def uses_of(code: types.CodeType) -> Uses:
    """What a code, and the codes in it, do with names."""
    known = _known.get(id(code))
    if known is not None and known[0] is code:
        return known[1]
    uses = _examine(code, {})
    if len(_known) >= _KEPT_CODES:
        _known.clear()
    _known[id(code)] = (code, uses)
    return uses


def _examine(code: types.CodeType, outer: dict[str, set[Path]]) -> Uses:
    """`outer`: names that imports of the enclosing functions give a value."""
    uses = Uses()
    steps = _steps(code)
    for name in code.co_freevars:
        if name in outer:
            uses.aliases[name] = set(outer[name])
    for number, step in enumerate(steps):
        if step.name == "IMPORT_NAME" and number >= 2:
            _note_import(uses, steps, number)
    for number, step in enumerate(steps):
        if step.name in ("STORE_GLOBAL", "DELETE_GLOBAL"):
            uses.stores.add(step.value)
        elif step.name.startswith("CALL") and number >= 2 and steps[number - 2].value == "type":
            _note_type(uses, steps, number)
        else:
            _note_load(uses, code, steps, number)
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            inner = _examine(constant, uses.aliases)
            uses.stores |= inner.stores
            uses.assigned_of_type |= inner.assigned_of_type
            uses.changed_inside |= inner.changed_inside
            held = inner.cells.get(_first_of(code) or "")
            uses.changes_first |= held is not None and held.changed
            own = set(code.co_freevars)  # its other free variables are our own variables
            for path, use in inner.paths.items():
                if path[0] != "cell" or path[1] in own:
                    uses.note(path, use)
            for name, use in inner.cells.items():
                if name in own:
                    uses.cells.setdefault(name, Use()).add(use)
    return uses
