"""Shoal: multiprocessing and joblib programs, unchanged and many times faster, on a C engine that never hangs.

`python -m shoal SCRIPT` or `shoal.install()` puts a program on it; or import `shoal.multiprocessing` and
`shoal.joblib`.
"""

from __future__ import annotations

from shoal._engine import __version__, dot_product
from shoal.errors import TaskCancelled, TaskTimeout, WorkerDied

__all__ = ["TaskCancelled", "TaskTimeout", "WorkerDied", "__version__", "dot_product", "install", "uninstall"]


def install() -> None:
    """Have `multiprocessing` and `joblib` run on Shoal in this program and the processes it starts, whoever imports
    them.

    Where joblib is not installed, `import joblib` gives `shoal.joblib`. A second call does nothing.
    """
    from shoal import _install

    _install.install()


def uninstall() -> None:
    """Undo `install()`. Pools and queues that were made meanwhile go on working."""
    from shoal import _install

    _install.uninstall()
