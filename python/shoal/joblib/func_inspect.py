"""What tells one function from another, and one version of it from the next.

A function's *name* (module and qualified name, for a script's functions its file) chooses the folder of the cache. Its
*identity* becomes part of every key: the meaning of its code (`_code.py`: no line numbers, comments,
formatting or docstrings), what its closure holds, and what else it rests on (`_depends.py`).
"""

from __future__ import annotations

import functools
import inspect
import os
import re
import sys
import types
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from shoal import _engine
from shoal.joblib._code import code_digest
from shoal.joblib._depends import Depends, counted_cells
from shoal.joblib._project import Project

_BUILT_IN = (type, types.BuiltinFunctionType, types.MethodWrapperType, types.MethodDescriptorType,
             types.WrapperDescriptorType, types.ClassMethodDescriptorType)  # fmt: skip


def describe_argument(function: types.FunctionType, contents: bool = True) -> tuple[Any, ...]:
    """What a function that is itself a value (an argument, an item of one) is equal to: its name, as with joblib, for
    the same text means something else beside other globals; its code; and, with `contents`, all that it holds at this
    moment, by contents: unlike the cached function, which is looked at once, an argument is looked at in each call."""
    module = "__main__" if function.__module__ == "__mp_main__" else function.__module__
    names = (module, function.__qualname__)
    if not contents:
        return "function", *names, code_digest(function.__code__)
    held: list[tuple[Any, ...]] = []
    for cell in function.__closure__ or ():
        try:
            held.append((cell.cell_contents,))
        except ValueError:  # not assigned yet
            held.append(())
    keyword_defaults = function.__kwdefaults__ or {}
    return "function", *names, code_digest(function.__code__), function.__defaults__, keyword_defaults, held


def _main_name(filename: str) -> str:
    """What stands for `__main__` in a folder's name: the script, or that it is a notebook."""
    if re.match(r"<ipython-input-|<stdin>|<string>|<", filename) or "ipykernel_" in filename:
        # A cell's file has another name in each session: the function's name and code must do.
        return "__main__"
    specification = getattr(sys.modules.get("__main__"), "__spec__", None)
    if specification is not None and specification.origin == filename and specification.name != "__main__":
        return str(specification.name)  # python -m package.module
    return "__main__-" + os.path.abspath(filename).removesuffix(".py").replace(os.sep, "-")


def function_name(function: Any) -> str:
    """The name under which a function's entries lie: module and qualified name; the file's for a script's functions."""
    while isinstance(function, functools.partial):
        function = function.func
    named = function if hasattr(function, "__qualname__") else type(function)
    module = getattr(named, "__module__", None) or "unknown"
    if module in ("__main__", "__mp_main__"):
        code = getattr(inspect.unwrap(function) if callable(function) else function, "__code__", None)
        if code is None:
            code = getattr(function, "__code__", None)
        module = _main_name(code.co_filename) if code is not None else "__main__"
    qualified = str(named.__qualname__).replace("<locals>", "locals").replace("<lambda>", "lambda")
    return f"{module}.{qualified}".replace("\0", "?")


@dataclass
class Parameters:
    """How a call's arguments are told apart: see binding/memo.c, which uses it."""

    watched: Any  # the Python function underneath, or None
    cells: tuple[types.CellType, ...]
    identity: bytes
    names: tuple[str, ...]
    defaults: tuple[Any, ...]
    ignored: bytes
    leading: tuple[Any, ...]
    keywords: dict[str, Any]
    positional_only: int
    positional: int
    takes_args: bool
    takes_keywords: bool
    watch: tuple[tuple[Any, ...], ...]
    parts: dict[str, bytes]  # what the identity is made of, by name
    nothing: object  # stands for "no default" in `defaults`
    undecidable: str | None  # why no call can be told from another
    project: Project


def _signature(function: Callable[..., Any]) -> inspect.Signature | None:
    try:
        return inspect.signature(function)
    except (TypeError, ValueError):  # built in
        return None


def examine(function: Any, ignore: list[str], nothing: object, follow: Any = True) -> Parameters:
    """Look at a callable: what it is, which of its parameters count, and what else its results rest on.

    `nothing` stands for "no default". `follow`: as of Memory.

    Raises ValueError for names in `ignore` that the function has not.
    """
    leading: tuple[Any, ...] = ()
    keywords: dict[str, Any] = {}
    inner = function
    while True:
        if isinstance(inner, functools.partial):
            leading = (*inner.args, *leading)
            keywords = {**inner.keywords, **keywords}
            inner = inner.func
        elif isinstance(inner, types.MethodType):
            leading = (inner.__self__, *leading)
            inner = inner.__func__
        elif isinstance(inner, _engine.Memo):
            inner = inner.func  # type: ignore[attr-defined]
        else:
            break

    cells: tuple[types.CellType, ...] = ()
    watched = undecidable = None
    if isinstance(inner, types.FunctionType):
        watched, cells = inner, tuple(counted_cells(inner).values())
        meaning: Any = ("function", code_digest(inner.__code__))
    elif isinstance(inner, _BUILT_IN):
        owner = getattr(inner, "__self__", getattr(inner, "__objclass__", None))
        meaning = ("name", getattr(inner, "__module__", None), inner.__qualname__)
        if owner is not None and not isinstance(owner, types.ModuleType):
            leading = (owner, *leading)  # "-".join
    else:  # an object that can be called, whatever name it has: its type's code, and it itself as the first argument
        call = getattr(type(inner), "__call__", None)  # noqa: B004
        meaning = ("call", code_digest(call.__code__)) if isinstance(call, types.FunctionType) else type(inner)
        leading = (inner, *leading)
        try:
            _engine.hash_object(inner)
        except Exception as error:
            undecidable = f"it is a {type(inner).__qualname__}, which cannot be hashed ({error})"

    signature = _signature(inner) if watched is not None else None
    names: list[str] = []
    defaults: list[Any] = []
    positional_only = positional = 0
    star = double_star = None
    if signature is None:
        star, double_star = "*", "**"
    else:
        for name, parameter in signature.parameters.items():
            if parameter.kind is parameter.VAR_POSITIONAL:
                star = name
            elif parameter.kind is parameter.VAR_KEYWORD:
                double_star = name
            else:
                names.append(name)
                defaults.append(nothing if parameter.default is parameter.empty else parameter.default)
                positional_only += parameter.kind is parameter.POSITIONAL_ONLY
                positional += parameter.kind is not parameter.KEYWORD_ONLY
    known = [*names, star and "*", double_star and "**"]
    for name in ignore:
        if name not in known:
            raise ValueError(
                f"Ignore list: argument '{name}' is not defined for function {function_name(function)}{signature or ''}"
            )
    ignored = bytes(name in ignore for name in (*names, "*", "**"))
    project = Project(inner if hasattr(inner, "__qualname__") else type(inner), follow)
    depends = Depends(inner, project, nothing, own=True)
    identity_of: tuple[Any, ...] = ("shoal-memory-2", meaning, tuple(names), star, double_star, ignored)
    parts = {"the function's own code": _engine.hash_object(identity_of), **depends.parts}
    if depends.parts:
        identity_of = (*identity_of, depends.parts)
    identity = _engine.hash_object(identity_of)
    return Parameters(
        watched, cells, identity, tuple(names), tuple(defaults), ignored, leading, keywords,
        positional_only, positional, star is not None, double_star is not None, depends.watch, parts,
        nothing, undecidable or depends.undecidable, project,
    )  # fmt: skip


class ArgumentsError(TypeError, ValueError):
    """Arguments that do not fit a cached function: a TypeError, as its own call raises, and a ValueError, as joblib's
    does."""


def check_misfit(function: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    """Raise ArgumentsError for arguments that a function cannot be called with."""
    signature = _signature(function)
    try:
        # What a decorator takes itself is not in the signature that it shows.
        inspect.signature(function, follow_wrapped=False).bind(*args, **kwargs)
    except TypeError as error:
        given = ", ".join([*(repr(value) for value in args), *(f"{name}={value!r}" for name, value in kwargs.items())])
        problem = str(error)
        kind = {"missing a required": "Wrong number of arguments", "too many positional": "Too many arguments",
                "got an unexpected": "Too many keyword arguments"}  # fmt: skip
        what = next((text for start, text in kind.items() if problem.startswith(start)), "The arguments do not fit")
        name = getattr(function, "__name__", type(function).__name__)
        raise ArgumentsError(
            f"{what} for {name}{signature}: {name}({given}) was called, {problem or 'which does not fit'}"
        ) from None
    except ValueError:  # built in: it has no signature
        return


def describe_met(met: Any, project: Project, nothing: object) -> tuple[bytes | None, tuple[tuple[Any, ...], ...]]:
    """What a class or function means that was met in an argument: the digest of what it rests on, None for what lies
    outside of the project; and what has to stay as it is for that to hold."""
    if not project.has(met.__module__):
        return None, ()
    depends = Depends(met, project, nothing)
    return _engine.hash_object(depends.parts) if depends.parts else None, depends.watch


_engine.configure_store(describe_argument)
