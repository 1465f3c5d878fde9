"""`multiprocessing` on Shoal's engine: `Pool`, `Queue` and `Process` are ours, everything else is the standard
library's own."""

from __future__ import annotations

import sys
from multiprocessing import context as _standard_context
from multiprocessing import process, reducer, reduction  # noqa: F401
from multiprocessing.process import active_children, current_process, parent_process  # noqa: F401
from typing import Any

from shoal.multiprocessing import context

_names = [name for name in dir(context._default_context) if not name.startswith("_")]
globals().update((name, getattr(context._default_context, name)) for name in _names)
__all__ = _names

SUBDEBUG = 5
SUBWARNING = 25

if "__main__" in sys.modules:
    sys.modules["__mp_main__"] = sys.modules["__main__"]

del _standard_context, Any
