"""Shoal: multiprocessing and joblib programs, unchanged and many times faster, on a C engine that never hangs.

`python -m shoal SCRIPT` or `shoal.install()` puts a program on it; or import `shoal.multiprocessing`,
`shoal.ProcessPoolExecutor` and `shoal.joblib`.
"""

from __future__ import annotations

from shoal._engine import __version__, dot_product
from shoal.errors import OwnerDied, TaskCancelled, TaskTimeout, WorkerDied

TYPE_CHECKING = False  # typing costs each start of a worker more than the rest of this file
if TYPE_CHECKING:
    from typing import Any

    from shoal.futures import ProcessPoolExecutor

__all__ = [
    "OwnerDied",
    "ProcessPoolExecutor",
    "TaskCancelled",
    "TaskTimeout",
    "WorkerDied",
    "__version__",
    "dot_product",
    "install",
    "uninstall",
]


def __getattr__(name: str) -> Any:
    # concurrent.futures costs more than all of this package: only for whoever asks.
    if name == "ProcessPoolExecutor":
        from shoal.futures import ProcessPoolExecutor

        globals()[name] = ProcessPoolExecutor
        return ProcessPoolExecutor
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def install() -> None:
    """Have `multiprocessing`, `concurrent.futures`' process pool and `joblib` run on Shoal in this program and the
    processes it starts, whoever imports them.

    Where joblib is not installed, `import joblib` gives `shoal.joblib`. A second call does nothing.
    """
    from shoal import _install

    _install.install()


def uninstall() -> None:
    """Undo `install()`. Pools and queues that were made meanwhile go on working."""
    from shoal import _install

    _install.uninstall()
