"""The arithmetic that `pre_dispatch` may be written in: numbers, `n_jobs`, + - * / // % **, brackets. Nothing is
evaluated but that."""

from __future__ import annotations

import operator

TYPE_CHECKING = False
if TYPE_CHECKING:
    import ast
    from typing import Any

_LONGEST = 30  # characters
_LARGEST = 10**6
_LARGEST_POWER = 600  # what 10**6 to it still prints as


def evaluate(text: str) -> Any:
    """The value of an expression of numbers. ValueError: it is none, too long, or its value too large."""
    import ast

    if len(text) > _LONGEST:
        raise ValueError(f"Expression {text[:_LONGEST]!r}... is too long. Max length is {_LONGEST}, got {len(text)}.")
    try:
        return _value(ast.parse(text, mode="eval").body)
    except (TypeError, SyntaxError, OverflowError, KeyError, ZeroDivisionError) as error:
        raise ValueError(f"{text!r} is not a valid or supported arithmetic expression.") from error


def _value(node: ast.AST) -> Any:
    import ast

    operators: dict[type, Any] = {
        ast.Add: operator.add,
        ast.Sub: operator.sub,
        ast.Mult: operator.mul,
        ast.Div: operator.truediv,
        ast.FloorDiv: operator.floordiv,
        ast.Mod: operator.mod,
        ast.Pow: operator.pow,
    }
    if isinstance(node, ast.Constant) and type(node.value) in (int, float):
        value = node.value
    elif isinstance(node, ast.BinOp):
        left, right = _value(node.left), _value(node.right)
        if isinstance(node.op, ast.Pow) and abs(right) > _LARGEST_POWER:
            raise OverflowError("the power is too large to be worked out")
        value = operators[type(node.op)](left, right)
    elif isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
        value = -_value(node.operand)
    else:
        raise TypeError(type(node).__name__)
    if isinstance(value, complex) or abs(value) > _LARGEST:  # type: ignore[arg-type, operator]
        raise ValueError(f"Numeric literal {value!r} is too large, max is {_LARGEST}.")
    return value
