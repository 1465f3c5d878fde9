"""How a process is forked and watched: `multiprocessing.popen_fork` on the engine.

The sentinel is the child's pidfd, so its death is seen at once. A daemonic child is killed by the kernel when its
parent is gone, however
that happened; others live on, as in multiprocessing.
"""

from __future__ import annotations

import os
import signal
import sys
from multiprocessing import popen_fork, util
from typing import Any

from shoal import _engine
from shoal.multiprocessing import _child

__all__ = ["Popen"]


class Popen(popen_fork.Popen):
    """A forked child of multiprocessing's."""

    def _launch(self, process_obj: Any) -> None:
        _child.open_null_input()
        # The parent's end stays open as long as the child's parent_process() is to be found alive.
        parent_sentinel, parent_end = os.pipe()

        def run() -> int:
            os.close(parent_end)
            util._close_stdin = _child.take_null_input  # type: ignore[attr-defined]
            # What _bootstrap raises it prints itself.
            return _child.run_with_exit_functions(process_obj._bootstrap, parent_sentinel)

        # A pool's worker leaves Ctrl-C to its parent: until it has said so, the signal waits.
        crew = sys.modules.get("shoal._crew")
        mask = None
        if crew is not None and crew.is_starting():
            mask = signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGINT,))
        try:
            self._process = _engine.fork_process(run, bool(process_obj.daemon))
        except BaseException:
            os.close(parent_end)
            raise
        finally:
            os.close(parent_sentinel)
            if mask is not None:
                signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        self.pid = self._process.pid
        self.sentinel = self._process.fd
        self.finalizer = util.Finalize(self, _close, (self._process, parent_end))

    def poll(self, flag: int = os.WNOHANG) -> int | None:
        if self.returncode is None:
            try:
                self.returncode = self._process.poll() if flag == os.WNOHANG else self._process.wait()
            except ChildProcessError:
                self.returncode = self._unknown_end()
        return self.returncode

    def wait(self, timeout: float | None = None) -> int | None:
        if self.returncode is None:
            try:
                self.returncode = self._process.wait(timeout)
            except ChildProcessError:
                self.returncode = self._unknown_end()
        return self.returncode

    def _unknown_end(self) -> int | None:
        """The exit code of a process that somebody else reaped, who alone knows how it ended."""
        return None

    def _send_signal(self, sig: int) -> None:
        if self.returncode is None:
            try:
                self._process.signal(sig)
            except ProcessLookupError:
                pass

    def terminate(self) -> None:
        self._send_signal(signal.SIGTERM)

    def kill(self) -> None:
        self._send_signal(signal.SIGKILL)


def _close(process: _engine.Process, parent_end: int) -> None:
    process.close()
    os.close(parent_end)
