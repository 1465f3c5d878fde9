"""How many threads the numerical libraries of a worker use.

Workers share the cores: with as many BLAS or OpenMP threads in each as the machine has cores, they get in each other's
way. A library that is loaded later reads its environment variable when it starts; one that a fork inherits is told
through threadpoolctl: in the parent, for the moment of the fork, as it may take milliseconds in the child (OpenBLAS
starts its threads anew there, only to stop them). Where the user has set one of the variables, nothing is changed.
"""

from __future__ import annotations

import os
import sys

TYPE_CHECKING = False  # typing costs each start of a worker more than the rest of this file
if TYPE_CHECKING:
    from typing import Any

VARIABLES = (
    "OMP_NUM_THREADS",
    "OPENBLAS_NUM_THREADS",
    "MKL_NUM_THREADS",
    "BLIS_NUM_THREADS",
    "VECLIB_MAXIMUM_THREADS",
    "NUMEXPR_NUM_THREADS",
    "SHOAL_NUM_THREADS",
)
_LIBRARIES = (b"openblas", b"mkl_rt", b"libgomp", b"libomp", b"libiomp", b"blis")

_controller: Any = None
_modules = 0  # how many there were when the list of mappings was read last
_loaded: tuple[int, ...] = ()  # how often the list of mappings named each library when the controller was made


def share(workers: int, wanted: int | None = None) -> int | None:
    """How many threads each of so many workers gets; None: the user has said it by an environment variable.

    wanted: what the caller asked for, which comes before everything else.
    """
    if wanted is not None:
        if wanted < 1:
            raise ValueError(f"threads must be at least 1, not {wanted}")
        return wanted
    if any(name in os.environ for name in VARIABLES):
        return None
    return max(1, len(os.sched_getaffinity(0)) // workers)


def prepare_fork() -> None:
    """In the parent, before workers are forked: find the libraries that are loaded, once for all workers."""
    global _controller, _loaded, _modules
    # Reading the list of mappings costs as much as a fork: only after something was imported that may load a library.
    if _modules == len(sys.modules) or ("ctypes" not in sys.modules and "numpy" not in sys.modules):
        return
    _modules = len(sys.modules)
    with open("/proc/self/maps", "rb") as maps:
        text = maps.read()
    loaded = tuple(text.count(name) for name in _LIBRARIES)
    if loaded == _loaded or not any(loaded):
        return
    try:
        import threadpoolctl
    except ImportError:
        return
    _controller = threadpoolctl.ThreadpoolController()
    _loaded = loaded


def limit(threads: int | None) -> None:
    """In a worker, before it loads anything: so many threads from now on."""
    if threads is None:
        return
    for name in VARIABLES:
        os.environ[name] = str(threads)
    if _controller is not None:
        _controller.limit(limits=threads)
