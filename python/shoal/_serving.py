"""What the workers of a crew do (`serve`), and the errors of their items.

Each clean worker imports it at its start: nothing here, nor what it imports, may cost much. `threading` alone, with all
that it needs, would add a fifth to the start of a bare interpreter; who needs it in a worker imports it there.
"""

from __future__ import annotations

# The C module: the Python one makes enums of everything, at a cost to each start.
import _signal as signal  # type: ignore[import-not-found]
import faulthandler
import gc
import os
import sys

from shoal import _engine, _threads
from shoal.errors import TaskTimeout, WorkerDied

TYPE_CHECKING = False  # typing takes as long to import as everything here: a cost of each worker's start
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any


class Duties:
    """What a crew's workers do beside working; the same for all of them, and sent to each.

    initializer, initargs: called before the first task.
    worker_exit: called when the worker ends in order, after its last task.
    max_tasks: the worker ends after so many tasks (its place is filled again).
    memory_limit: bytes of private memory above which it ends after a task.
    cpus: the cpus that workers are pinned to, in turn; each an int or a collection of ints.
    threads: of the numerical libraries in each worker; None: as they are.
    keeps_exits: SystemExit, KeyboardInterrupt and the like in a task are its error, and do not end the worker.
    unreadable: makes the error of a call that cannot be unpickled from what that raised; None: that is the error.
    remote_error: makes what is sent of an error that a task raised; None: RemoteError.
    unsendable: makes the error of a result that cannot be pickled, from what that raised and the result; None:
        MaybeEncodingError.
    """

    def __reduce__(self) -> Any:
        # To a clean worker: functions of a notebook, lambdas and closures by value, as those that it is given to call.
        from shoal import _crew, _pickling

        dumps = _pickling.dumps_for_foreign_main if _crew.is_main_interactive() else _pickling.dumps
        return _load_duties, (dumps(vars(self), None),)

    def __init__(
        self,
        initializer: Callable[..., object] | None = None,
        initargs: tuple[Any, ...] = (),
        worker_exit: Callable[[], object] | None = None,
        max_tasks: int | None = None,
        memory_limit: int | None = None,
        cpus: tuple[frozenset[int], ...] | None = None,
        threads: int | None = None,
        keeps_exits: bool = False,
        unreadable: Callable[[BaseException], BaseException] | None = None,
        remote_error: Callable[[BaseException], Any] | None = None,
        unsendable: Callable[[BaseException, object], Any] | None = None,
    ) -> None:
        if initializer is not None:
            import shoal._functions  # noqa: F401  (here, or each worker that is forked would)
        self.initializer = initializer
        self.initargs = initargs
        self.worker_exit = worker_exit
        self.max_tasks = max_tasks
        self.memory_limit = memory_limit
        self.cpus = cpus
        self.threads = threads
        self.keeps_exits = keeps_exits
        self.unreadable = unreadable
        self.remote_error = remote_error
        self.unsendable = unsendable


def _load_duties(pickled: bytes) -> Duties:
    import shoal._pickling

    duties = Duties()
    vars(duties).update(shoal._pickling.loads(pickled, None))
    return duties


def serve(
    pool: _engine.Pool | tuple[int, int, int], place: int, owner: int, crash: int, duties: Duties | None = None
) -> None:
    """Run in a worker process: work until the pool shuts, or the worker's duties say that it ends.

    crash: the descriptor that the Python stack goes to when the process crashes; where the program has it go to a file
        of its own (`faulthandler.enable(file=...)`), it goes there.
    """
    crew = sys.modules.get("shoal._crew")
    if crew is not None and crew.is_supervisor():
        _forget_imports_of_other_threads()

    if "shoal._pickling" not in sys.modules:
        import shoal._pickling  # noqa: F401  (configures the codec)

    threading = sys.modules.get("threading")
    if threading is None or threading.current_thread() is threading.main_thread():
        # Ctrl-C goes to the whole foreground group; the parent decides what becomes of its workers. A handler, not
        # SIG_IGN: what a task starts by exec must not inherit it.
        global _handler_before
        before = signal.signal(signal.SIGINT, _ignore_interrupt)
        if not isinstance(pool, _engine.Pool):  # not forked: it is the zygote's
            _handler_before = None
        elif before is not _ignore_interrupt:  # else a worker forked this one, and it is there already
            _handler_before = before
        signal.pthread_sigmask(signal.SIG_UNBLOCK, (signal.SIGINT,))  # popen_fork.py blocked it
    if not _has_own_crash_file():
        faulthandler.enable(crash)
    # What this process has from its parent is no garbage of its own. To look through it would take as long here as it
    # does there (a third of a second with a few large packages), and copy each page that it lies in.
    gc.freeze()
    duties = duties or Duties()
    if duties.cpus:
        os.sched_setaffinity(0, duties.cpus[place % len(duties.cpus)])
    if duties.threads is not None:
        _threads.limit(duties.threads)
    # Also the usual ones: a worker of an executor or of `Parallel` that forks workers of a pool has set others.
    _engine.configure_pool(
        _worker_died, TaskTimeout, duties.remote_error or RemoteError, duties.unsendable or _unsendable
    )
    worker = _engine.Worker(pool, place, owner)
    if duties.initializer is not None:
        call_initializer(duties.initializer, duties.initargs)
    worker.run(duties.max_tasks or 0, duties.memory_limit or 0, duties.keeps_exits, duties.unreadable)
    if duties.worker_exit is not None:
        duties.worker_exit()


def _has_own_crash_file() -> bool:
    """Whether the program has crashes told to a file that it opened, rather than to standard error: there is one place
    that they are told to, and then that is it."""
    if not faulthandler.is_enabled():
        return False
    # Nothing tells the file but that the module holds it.
    for holding in gc.get_referents(faulthandler):
        if hasattr(holding, "fileno") and holding not in (sys.stderr, sys.__stderr__):
            return True
    return False


def call_initializer(initializer: Callable[..., object], initargs: tuple[Any, ...]) -> None:
    """In a worker: before its first task."""
    from shoal import _functions

    initializer(*initargs)
    _functions.keep_globals(initializer)


def _forget_imports_of_other_threads() -> None:
    """In a child that a supervisor thread forked: an import that another thread was in the middle of will never end
    here.

    Its lock would be waited for for ever. So the locks go, and the half-made modules, which are then imported anew
    when needed.
    """
    for name, module in list(sys.modules.items()):
        spec = getattr(module, "__dict__", {}).get("__spec__")
        if getattr(spec, "_initializing", False):
            del sys.modules[name]
    machinery = sys.modules.get("_frozen_importlib")
    for table in ("_module_locks", "_blocking_on"):
        getattr(machinery, table, {}).clear()


def _ignore_interrupt(signum: int, frame: object) -> None:
    pass


_handler_before: Any = None


def heed_interrupts() -> None:
    """In a process that a worker has forked, and that is none itself: Ctrl-C is for it, as for the program."""
    if signal.getsignal(signal.SIGINT) is _ignore_interrupt:
        signal.signal(signal.SIGINT, signal.default_int_handler if _handler_before is None else _handler_before)


class _LastWords:
    """What crashed workers left, by pid, until their items' errors are made; of the last some hundred only."""

    def __init__(self) -> None:
        self._texts: dict[int, str] = {}

    def keep(self, pid: int, text: str) -> None:
        self._texts.pop(pid, None)  # of an earlier process with this pid
        if text:
            self._texts[pid] = text
            for oldest in list(self._texts)[:-256]:  # a copy: several pools' supervisors are at it
                self._texts.pop(oldest, None)

    def of(self, pid: int) -> str:
        return self._texts.get(pid, "")


last_words = _LastWords()


def _worker_died(item: int, pid: int, code: int, signal: int) -> WorkerDied:
    return WorkerDied(item, pid, -signal if signal else code, last_words.of(pid))


class RemoteError:
    """A task's exception on its way to who asked, with its traceback as text.

    Pickled twice over: an exception that cannot be made again there (its class wants other arguments than it keeps, or
    is not to be found) must not take the traceback with it.
    """

    def __init__(self, error: BaseException) -> None:
        from multiprocessing.pool import ExceptionWithTraceback  # type: ignore[attr-defined]

        self._error = error
        self._text: str = ExceptionWithTraceback(error, error.__traceback__).tb

    def __reduce__(self) -> Any:
        import shoal._pickling

        kind = type(self._error)
        name = f"{kind.__module__}.{kind.__qualname__}"
        return _raise_again, (shoal._pickling.dumps(self._error, None), name, self._text)


def _raise_again(pickled: bytes, name: str, text: str) -> BaseException:
    """The exception, with the worker's traceback as its cause."""
    from multiprocessing.pool import RemoteTraceback  # type: ignore[attr-defined]

    import shoal._pickling

    try:
        error: BaseException = shoal._pickling.loads(pickled, None)
    except Exception as reason:
        from _pickle import UnpicklingError

        raise UnpicklingError(
            f"the task raised {name}, which cannot be unpickled here: {type(reason).__name__}: {reason}"
        ) from RemoteTraceback(text)
    error.__cause__ = RemoteTraceback(text)
    return error


def _unsendable(error: BaseException, value: object) -> BaseException:
    from multiprocessing.pool import MaybeEncodingError  # type: ignore[attr-defined]

    try:
        made: BaseException = MaybeEncodingError(error, value)
    except Exception:  # its repr() fails too
        made = MaybeEncodingError(error, f"<{type(value).__name__} object>")
    return made


_engine.configure_pool(_worker_died, TaskTimeout, RemoteError, _unsendable)
