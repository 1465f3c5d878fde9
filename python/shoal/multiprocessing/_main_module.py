"""How a clean process comes by the program's main module: compiled once, in the program, and run in each process.

`multiprocessing.spawn` has each process read and compile the file anew, which takes longer than everything else at such
a process's start. A file that cannot be compiled here (a zip archive, a folder, one that is gone) is left to it, and so
is a program that was started by `-m`, whose compiled code is on the disk.
"""

from __future__ import annotations

import io
import marshal
import os
import sys
import types
from multiprocessing import spawn
from typing import Any

__all__ = ["pack", "run"]

_compiled: tuple[tuple[str, int, int, int], bytes] | None = None  # which file, as it was; its code


def pack(preparation: dict[str, Any]) -> None:
    """In the program: put the code in the place of the path that `spawn.get_preparation_data` has the process read."""
    path = preparation.get("init_main_from_path")
    code = None if path is None else _code_of(path)
    if code is not None:
        del preparation["init_main_from_path"]
        preparation["shoal_main"] = path, code


def _code_of(path: str) -> bytes | None:
    global _compiled
    try:
        status = os.stat(path)
        version = path, status.st_ino, status.st_size, status.st_mtime_ns
        if _compiled is None or _compiled[0] != version:
            with io.open_code(path) as file:
                code = compile(file.read(), path, "exec", dont_inherit=True)
            _compiled = version, marshal.dumps(code)
        return _compiled[1]
    except (OSError, SyntaxError, ValueError):
        return None  # the process says what is the matter


def run(path: str, code: bytes) -> None:
    """In the process, after `spawn.prepare`: what that does with a path."""
    current = sys.modules["__main__"]
    if os.path.splitext(os.path.basename(path))[0] == "ipython" or getattr(current, "__file__", None) == path:
        return  # IPython's own script, or run already by the zygote of a fork server
    module = types.ModuleType("__mp_main__")
    vars(module).update(__file__=path, __cached__=None, __package__="")
    spawn.old_main_modules.append(current)  # type: ignore[attr-defined]
    sys.modules["__mp_main__"] = module
    program, sys.argv[0] = sys.argv[0], path
    try:
        exec(marshal.loads(code), vars(module))
    finally:
        sys.argv[0] = program
    sys.modules["__main__"] = module
