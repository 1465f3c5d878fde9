"""What a function's code means: a digest of its instructions with the constants and names that they use.

Formatting must not count, and it shows in more than line numbers. The compiler keeps instructions that do nothing but
stand for a line; it shortens the way of a jump that leads to another jump, and makes one instruction of two, only where
both are in one line; and from 3.13 on a class says in which line it begins. So `if a and b` is other code when it is
broken after the `and`. Here each jump leads where it ends up in the end, what nothing leads to any more is left out,
and double instructions are two.
"""

from __future__ import annotations

import dis
import types
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from shoal import _engine

_DOCSTRING_FLAG = 0x4000000  # CO_HAS_DOCSTRING of 3.13: a docstring is a comment to us
_CONSTANTS = frozenset(dis.hasconst)
_JUMPS = frozenset((*dis.hasjrel, *dis.hasjabs))
_NAMES = frozenset((*dis.hasname, *dis.haslocal, *dis.hasfree))
_LINES_ONLY = frozenset(("NOP", "EXTENDED_ARG", "CACHE"))
_GO = "JUMP"  # what all unconditional jumps are called here
_ENDS = frozenset((_GO, "RETURN_VALUE", "RETURN_CONST", "RAISE_VARARGS", "RERAISE"))  # nothing goes on to what follows
# Jumps that leave the value they looked at, and those that do not.
_OR_POP = {"JUMP_IF_TRUE_OR_POP": True, "JUMP_IF_FALSE_OR_POP": False}
_POP_JUMP = {True: "POP_JUMP_IF_TRUE", False: "POP_JUMP_IF_FALSE"}
_OPPOSITE = {"POP_JUMP_IF_TRUE": "POP_JUMP_IF_FALSE", "POP_JUMP_IF_FALSE": "POP_JUMP_IF_TRUE",
             "POP_JUMP_IF_NONE": "POP_JUMP_IF_NOT_NONE", "POP_JUMP_IF_NOT_NONE": "POP_JUMP_IF_NONE"}  # fmt: skip
_DOUBLE = {f"{one}_{two}": (one, two) for one, two in (
    ("LOAD_FAST", "LOAD_FAST"), ("STORE_FAST", "LOAD_FAST"), ("STORE_FAST", "STORE_FAST"),
    ("LOAD_FAST_BORROW", "LOAD_FAST_BORROW"))}  # fmt: skip
_THREADED = frozenset((_GO, "FOR_ITER", *_OR_POP, *_OPPOSITE))
_KEPT_CODES = 4096

_codes: dict[int, tuple[types.CodeType, bytes]] = {}


@dataclass
class _Step:
    """An instruction; `target` is the number of the one that a jump leads to."""

    name: str
    argument: Any
    target: int | None = None


def _exception_ranges(table: bytes) -> Iterator[tuple[int, int, int, int]]:
    """Start, end and handler (byte offsets) and depth of each range of a code's exception table (3.11 and later)."""
    numbers: list[Any] = []
    number = 0
    for position, byte in enumerate(table):
        if byte & 0x80 and position:  # the first byte of an entry
            yield numbers[0] * 2, (numbers[0] + numbers[1]) * 2, numbers[2] * 2, numbers[3]
            numbers = []
        number = (number << 6) | (byte & 0x3F)
        if not byte & 0x40:
            numbers.append(number)
            number = 0
    if numbers:
        yield numbers[0] * 2, (numbers[0] + numbers[1]) * 2, numbers[2] * 2, numbers[3]


def _constant(value: Any) -> Any:
    return code_digest(value) if isinstance(value, types.CodeType) else value


def _jump_name(name: str) -> str:
    """A jump's name without its direction, which its target tells."""
    name = name.replace("_FORWARD", "").replace("_BACKWARD", "")
    return _GO if name in ("JUMP_NO_INTERRUPT", "JUMP_ABSOLUTE") else name


def _follow(steps: list[_Step], step: _Step) -> None:
    """Have a jump lead where it ends up in the end."""
    for _ in range(len(steps)):  # jumps may go round in a circle
        if step.target is None or step.target >= len(steps) or step.name not in _THREADED:
            return
        there = steps[step.target]
        if there is step:
            return
        if there.name == _GO:
            step.target = there.target
        elif step.name in _OR_POP and (there.name in _OR_POP or there.name in _POP_JUMP.values()):
            # The value decides at the second jump as it did at this one.
            wanted = _OR_POP[step.name]
            if there.name == step.name:
                step.target = there.target
                continue
            goes = there.name == _POP_JUMP[wanted]
            step.name, step.target = _POP_JUMP[wanted], there.target if goes else step.target + 1
        else:
            return


def _shorten(steps: list[_Step], ranges: list[tuple[int, int, int, int]]) -> list[int]:
    """Have all jumps lead where they end up, and drop those that nothing leads to or that lead to what follows.

    "Go to A if so; go to B; A:" becomes "go to B if not; A:", as the compiler writes it where B is not behind it.
    Returns the new number of each old one, and of the end.
    """
    kept = [True] * len(steps)
    changed = True
    while changed:
        changed = False
        for step in steps:
            _follow(steps, step)
        targets = {step.target for step, keep in zip(steps, kept, strict=True) if keep}
        targets.update(handler for _, _, handler, _ in ranges)
        following = len(steps)  # the next that is kept
        before = _previous(kept)
        for number in range(len(steps) - 1, -1, -1):
            step = steps[number]
            if not kept[number]:
                continue
            if step.name == _GO:
                previous = before[number]
                dead = number not in targets and previous is not None and steps[previous].name in _ENDS
                if previous is not None and number not in targets:
                    around = steps[previous]
                    if around.name in _OPPOSITE and number < (around.target or 0) <= following:
                        around.name, around.target = _OPPOSITE[around.name], step.target
                        dead = True
                if dead or (step.target is not None and number < step.target <= following):
                    kept[number] = False
                    changed = True
                    continue
            following = number
    numbers = [0]
    for keep in kept:
        numbers.append(numbers[-1] + keep)
    steps[:] = [step for step, keep in zip(steps, kept, strict=True) if keep]
    return numbers


def _previous(kept: list[bool]) -> list[int | None]:
    """For each instruction the nearest one before it that is kept."""
    result: list[int | None] = []
    last: int | None = None
    for number, keep in enumerate(kept):
        result.append(last)
        if keep:
            last = number
    return result


def _examine(code: types.CodeType) -> bytes:
    instructions = [step for step in dis.get_instructions(code) if step.opname not in _LINES_ONLY]
    index: dict[int, int] = {}
    count = 0
    for step in instructions:
        index[step.offset] = count
        count += 2 if step.opname in _DOUBLE else 1
    last = len(code.co_code)

    def number_at(offset: int) -> int:
        while offset not in index and offset < last:
            offset += 2
        return index.get(offset, count)

    steps: list[_Step] = []
    for step in instructions:
        argument: Any = step.arg
        if step.opcode in _JUMPS:
            steps.append(_Step(_jump_name(step.opname), None, number_at(step.argval)))
            continue
        if step.opcode in _CONSTANTS:
            argument = _constant(step.argval)
        elif step.opcode in _NAMES:
            # 3.11 and later keep flags in the low bits of some; the text tells them apart.
            argument = (step.argval, step.argrepr)
            if step.opname in _DOUBLE:
                for name, variable in zip(_DOUBLE[step.opname], step.argval, strict=True):
                    steps.append(_Step(name, (variable, variable)))
                continue
            if step.argval == "__firstlineno__" and step.opname == "STORE_NAME":
                steps[-1].argument = None
        steps.append(_Step(step.opname, argument))
    ranges = [
        (number_at(start), number_at(end), number_at(handler), depth)
        for start, end, handler, depth in _exception_ranges(getattr(code, "co_exceptiontable", b""))
    ]
    numbers = _shorten(steps, ranges)
    meaning = [(step.name, step.argument if step.target is None else numbers[step.target]) for step in steps]
    covered: list[tuple[int, int, int, int]] = []
    for start, end, handler, depth in ranges:
        start, end, handler = numbers[start], numbers[end], numbers[handler]
        if covered and covered[-1][1:] == (start, handler, depth):
            start = covered.pop()[0]
        if start < end:
            covered.append((start, end, handler, depth))
    arguments = code.co_argcount + code.co_kwonlyargcount
    parts = (
        (code.co_argcount, code.co_posonlyargcount, code.co_kwonlyargcount, code.co_flags & ~_DOCSTRING_FLAG),
        code.co_varnames[:arguments],
        code.co_freevars,
        meaning,
        covered,
    )
    return _engine.hash_object(parts)


def code_digest(code: types.CodeType) -> bytes:
    """16 bytes that are equal for code of equal meaning, in any process of the same Python version."""
    entry = _codes.get(id(code))
    if entry is None or entry[0] is not code:
        if len(_codes) >= _KEPT_CODES:
            _codes.clear()
        entry = _codes[id(code)] = (code, _examine(code))
    return entry[1]
