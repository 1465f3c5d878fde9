"""How a process is forked and watched: `multiprocessing.popen_fork` on the engine.

The sentinel is the child's pidfd, so its death is seen at once. A daemonic child is killed by the kernel when its
parent is gone, however
that happened; others live on, as in multiprocessing.
"""

from __future__ import annotations

import _signal  # type: ignore[import-not-found]  # in C: nothing can come between the call and what it does
import itertools
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from multiprocessing import popen_fork, util
from multiprocessing.process import BaseProcess
from typing import Any

from shoal import _engine
from shoal.multiprocessing import _child
from shoal.multiprocessing.context import ForkProcess

__all__ = ["Popen", "Siblings"]

_RESTED_FORKS = 2
_LONGEST_REST = 0.003  # seconds


class Siblings:
    """Processes of the fork method that are started one after the other, and forked at one go when the first one is.

    After a fork each page that the parent writes to is copied, for as long as a child has it too: what start() does
    around its fork costs as much as the fork. So nothing is done between two of them. Use it in a `with`; in its end
    those that were forked and not started after all are killed.

    The first begins at once. Where there are fewer cores than processes, this one included, the others rest for as long
    as two forks take before they begin: in each other's way all would be there late.
    """

    def __init__(self, processes: Sequence[Any]) -> None:
        self._processes = {id(process): process for process in processes if _starts_as_usual(process)}
        self._forked: dict[int, _engine.Process] | None = None  # what start() is to find
        self._error: OSError | None = None
        self._parent = os.getpid()

    def __enter__(self) -> None:
        _thread.siblings = self

    def __exit__(self, *details: object) -> None:
        _thread.siblings = None
        _kill((self._forked or {}).values())

    def take(self, process_obj: Any, mask: set[int]) -> _engine.Process | None:
        """What was forked for `process_obj`; None: it is none of these."""
        number = id(process_obj)
        if number not in self._processes or os.getpid() != self._parent:  # one of them may start processes itself
            return None
        if self._forked is None:
            self._forked, self._error = _fork(list(self._processes.values()), mask)
        if number not in self._forked:
            assert self._error is not None
            raise self._error
        return self._forked.pop(number)


_thread = threading.local()  # .siblings: those whose turn it is in this thread


def _starts_as_usual(process_obj: Any) -> bool:
    """Whether start() of this process's class does nothing of its own before the fork."""
    kind: Any = type(process_obj)
    return kind.start is BaseProcess.start and kind._Popen is ForkProcess._Popen


def _fork(processes: Sequence[Any], mask: set[int]) -> tuple[dict[int, _engine.Process], OSError | None]:
    """Fork these: what came of each, by id, up to the first that failed, and why that did. Ctrl-C is blocked.

    mask: the signals that were blocked before.
    """
    _child.open_null_input()
    # The parent's end stays open as long as a child's parent_process() is to be found alive: each keeps one.
    parent_sentinel, parent_end = os.pipe()

    def runner(process_obj: Any) -> Callable[[], int]:
        def run() -> int:
            if not starts_worker:
                if serving is not None:
                    serving.heed_interrupts()
                _signal.pthread_sigmask(signal.SIG_SETMASK, mask)  # raises KeyboardInterrupt if one waited
            os.close(parent_end)
            util._close_stdin = _child.take_null_input  # type: ignore[attr-defined]
            # What _bootstrap raises it prints itself.
            return _child.run_with_exit_functions(process_obj._bootstrap, parent_sentinel)

        return run

    # A pool's worker leaves Ctrl-C to its parent: it stays blocked, as it is here, until the worker has said so.
    crew = sys.modules.get("shoal._crew")
    starts_worker = crew is not None and crew.is_starting()
    serving = sys.modules.get("shoal._serving")
    forked: list[_engine.Process] = []
    found: dict[int, _engine.Process] = {}
    error: OSError | None = None
    try:
        try:
            orders = [(runner(process_obj), bool(process_obj.daemon)) for process_obj in processes]
            scarce = len(orders) > 1 and len(orders) >= len(os.sched_getaffinity(0))
            began = time.perf_counter()
            # In this way each is in the list as soon as it is there: another thread may be told of Ctrl-C meanwhile.
            forked.extend(itertools.starmap(_engine.fork_process, [(*orders[0], 0.0)]))
            rest = min(_RESTED_FORKS * (time.perf_counter() - began), _LONGEST_REST) if scarce else 0.0
            forked.extend(itertools.starmap(_engine.fork_process, [(*order, rest) for order in orders[1:]]))
        except OSError as failure:
            error = failure
        finally:
            os.close(parent_sentinel)
        for process_obj, process in zip(processes, forked, strict=False):
            try:
                process.keep(os.dup(parent_end))
            except OSError as failure:
                error = failure
                _kill([process])
            else:
                found[id(process_obj)] = process
    except BaseException:
        _kill(forked)
        raise
    finally:
        os.close(parent_end)
    return found, error


def _kill(processes: Iterable[_engine.Process]) -> None:
    """End processes that nobody will hear of."""
    for process in processes:
        try:
            process.signal(signal.SIGKILL)
        except ProcessLookupError:
            pass
        process.wait()
        process.close()


class Popen(popen_fork.Popen):
    """A forked child of multiprocessing's."""

    sentinel: Any = None  # until there is a process
    finalizer: Any

    def _launch(self, process_obj: Any) -> None:
        # Ctrl-C waits until the child is there, and is this object's: the functions of os.register_at_fork lose it, and
        # may leave logging's lock taken by it. (A thread that one of them starts has it blocked for good.)
        # Asked for first: the call that blocks it may raise KeyboardInterrupt, and has blocked it then.
        mask = _signal.pthread_sigmask(signal.SIG_BLOCK, ())
        try:
            try:
                signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGINT,))
                self._take(process_obj, mask)
            finally:
                _signal.pthread_sigmask(signal.SIG_SETMASK, mask)  # raises KeyboardInterrupt if one waited
        except BaseException:
            if self.sentinel is not None:  # nobody will hear of it
                _kill([self._process])
            raise

    def _take(self, process_obj: Any, mask: set[int]) -> None:
        siblings: Siblings | None = getattr(_thread, "siblings", None)
        taken = None if siblings is None else siblings.take(process_obj, mask)
        if taken is None:
            found, error = _fork([process_obj], mask)
            if error is not None:
                raise error
            taken = found[id(process_obj)]
        self._process = taken
        self.pid = self._process.pid
        self.sentinel = self._process.fd
        # In C, as is what closes it when this object is collected: Ctrl-C cannot come between its steps.
        self.finalizer = self._process.close

    def poll(self, flag: int = os.WNOHANG) -> int | None:
        return self._learn(self._process.poll if flag == os.WNOHANG else self._process.wait)

    def wait(self, timeout: float | None = None) -> int | None:
        return self._learn(self._process.wait, timeout)

    def _learn(self, ask: Callable[..., int | None], *arguments: Any) -> int | None:
        """The exit code if it is known, or `ask` knows it now."""
        if self.returncode is None:
            try:
                self.returncode = ask(*arguments)
            except ChildProcessError:
                self.returncode = self._unknown_end()
            except ValueError:  # closed by another thread, which it is only when that knows the end
                if self.returncode is None:
                    raise
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
