"""`joblib.externals` where joblib is not installed: `cloudpickle`, which is the installed one, and of `loky` what rests
on Shoal."""

from __future__ import annotations

from typing import Any


def __getattr__(name: str) -> Any:
    import importlib

    if name == "cloudpickle":
        return importlib.import_module(name)
    if name == "loky":
        return importlib.import_module(f"{__name__}.{name}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
