"""Which modules are the user's own."""

from __future__ import annotations

import types
from collections.abc import Iterable
from typing import Any


def package_of(module: Any) -> str:
    return module.partition(".")[0] if isinstance(module, str) else ""


def usual_name(module: Any) -> str:
    """The name of a module; that of the script is the same in a worker that spawn made."""
    return "__main__" if module == "__mp_main__" else str(module)


class Project:
    """Which modules are the user's own: those of a function's top-level package, and those that were named."""

    def __init__(self, function: Any, follow: bool | Iterable[Any]) -> None:
        self._named: tuple[str, ...] = ()
        self._own = ""
        if follow is False:
            return
        self._own = package_of(usual_name(getattr(function, "__module__", None) or ""))
        if follow is not True:
            names = [follow] if isinstance(follow, (str, types.ModuleType)) else list(follow)
            self._named = tuple(name.__name__ if isinstance(name, types.ModuleType) else str(name) for name in names)

    def has(self, module: Any) -> bool:
        if not isinstance(module, str) or not module:
            return False
        module = usual_name(module)
        if self._own and package_of(module) == self._own:
            return True
        return any(module == name or module.startswith(name + ".") for name in self._named)

    def __bool__(self) -> bool:
        return bool(self._own or self._named)
