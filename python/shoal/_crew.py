"""The workers of one pool and the thread that looks after them.

`multiprocessing.Pool`, `ProcessPoolExecutor` and `joblib.Parallel` all stand on a `Crew`: it starts the processes (how
is the caller's affair), replaces those that die, runs callbacks, and ends everything. Handing out work and collecting
it is the engine's, in the thread that waits for it. A crew does not know its pool, so a pool that is dropped can be
collected. `_serving.serve` is what its workers run.
"""

from __future__ import annotations

import _signal  # type: ignore[import-not-found]  # as in _serving
import errno
import os
import sys
import threading
import time
from _weakref import ref
from _weakrefset import WeakSet  # that of weakref, without the rest of it
from types import BuiltinFunctionType, FunctionType

from shoal import _engine, _threads
from shoal._serving import last_words
from shoal._start_thread import start_thread
from shoal.errors import TaskCancelled

TYPE_CHECKING = False  # typing takes as long to import as everything here: a cost of each worker's start
if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Sequence
    from typing import Any, Protocol

    class WorkerProcess(Protocol):
        """What a crew needs of a process: `multiprocessing.Process` and the zygote's processes have it."""

        @property
        def pid(self) -> int | None: ...
        @property
        def exitcode(self) -> int | None: ...
        def join(self, timeout: float | None = None) -> None: ...
        def terminate(self) -> None: ...
        def kill(self) -> None: ...

    StartWorkers = Callable[[Sequence[tuple[_engine.Pool, int, int, int]]], Generator[WorkerProcess, None, None]]
    """[(engine, place, owner, crash), …] -> the started processes, each of which runs `_serving.serve` with the same
    three numbers; one is started as it is asked for, or before."""

CALL_ONE, CALL_STAR, CALL_APPLY, CALL_WHOLE, CALL_NAMED = range(5)

RUN, CLOSE, TERMINATE = "RUN", "CLOSE", "TERMINATE"

_ATTENTION, _WORKER_DYING = 2, 3  # kinds of events; 1: a worker ended
_TERM_GRACE = 0.25  # seconds between SIGTERM and SIGKILL: a stopped process heeds only the latter
_RETRY_START = 0.1  # seconds until a worker that could not be started is tried again
_START_LONGEST = 60.0  # seconds that a user's thread tries for
_ECANCELED = 125  # errno of a start that was not waited for
_MIND_EVERY = 0.25  # seconds between looks for results that nobody waits for
_TURN = 0.0003  # seconds in which a thread that was woken gets the GIL and a result
_FUNCTIONS_SHARED = 1024
_FUNCTION_TYPES = (FunctionType, BuiltinFunctionType, type)  # what has no state of its own that may change
_KILLS_FOR_ONE = 16  # workers that were killed count as one that ended by itself


def is_main_interactive() -> bool:
    """Whether this program's `__main__` is a notebook or a prompt: no other process can import it, and what a forked
    one has of it may be outdated."""
    return not hasattr(sys.modules.get("__main__"), "__file__")


# .supervises: this thread is a supervisor, which imports nothing; .starts_for: the crew that it starts a worker for.
_thread = threading.local()


def is_starting() -> bool:
    """Whether this thread starts a worker, which leaves Ctrl-C to its parent from its first instruction on."""
    return _crew_to_start_for() is not None


def _crew_to_start_for() -> Crew | None:
    crew: Crew | None = getattr(_thread, "starts_for", None)
    return crew if crew is not None and crew._owner == os.getpid() else None  # a forked worker has its parent's


def is_supervisor() -> bool:
    """Whether this thread is a crew's supervisor, or was in the process that forked this one."""
    return getattr(_thread, "supervises", False)


def outer_mask() -> set[int] | None:
    """In a supervisor: the signals that were blocked before it blocked Ctrl-C; what it starts must not inherit that."""
    mask: set[int] | None = getattr(_thread, "mask", None)
    return mask


def is_start_wanted() -> bool:
    """Whether the worker that this thread starts, and that takes its time, is to be waited for."""
    crew = _crew_to_start_for()
    return crew is None or crew._waits_for_start()


def make_engine_pool(workers: int) -> _engine.Pool:
    import shoal._pickling  # noqa: F401  (configures the codec)

    if workers > _engine.POOL_WORKERS:
        raise ValueError(f"a pool has {_engine.POOL_WORKERS} workers at the most, not {workers}")
    return _engine.Pool(workers)


def _found_by_name(function: Any) -> bool:
    """Whether a pickle of the function is its name and nothing more, so that one copy serves for good."""
    name = getattr(function, "__qualname__", None)
    module = sys.modules.get(getattr(function, "__module__", None) or "")
    return (
        isinstance(function, _FUNCTION_TYPES)
        and name is not None
        and module is not None
        and "." not in name
        and getattr(function, "__closure__", None) is None
        and module.__dict__.get(name) is function
    )


class Bell:
    """What one thread waits for and others ring. A lock alone: an Event's methods are Python's, and a signal handler
    that raises in one (Ctrl-C) would leave its lock taken, at which the other thread then waits for ever."""

    def __init__(self) -> None:
        self._silence = threading.Lock()
        self._silence.acquire()

    def ring(self) -> None:
        try:
            self._silence.release()
        except RuntimeError:  # it was rung already
            pass

    def wait(self, seconds: float = -1) -> None:
        self._silence.acquire(timeout=seconds)


_crews: WeakSet[Crew] = WeakSet()


def _free_locks() -> None:
    """In a child of fork: the lock of a crew of the parent's may have been held by a thread that is not here."""
    for crew in _crews:
        crew._lock = _engine.WantedLock()


os.register_at_fork(after_in_child=_free_locks)


class Crew:
    """Workers in `size` places, each started by `start`, and the threads that look after them.

    The supervisor sees to deaths and time limits, and never runs the user's code. What nobody waits for (callbacks, the
    rest of an iterator) is done by a second thread, the helper, once there is such a thing.

    Made, it has neither threads nor processes: whoever makes it first sees to it that it will be ended, then calls
    start(). Ctrl-C may come between any two steps. What must be done all the same, whoever asked for it, is done by
    the supervisor, in whose thread no signal handler runs.

    begin: how many places are filled at first, all by default; grow() fills more.
    forks_with: where workers are forked from this process: the threads of their numerical libraries.
    """

    def __init__(
        self,
        size: int,
        start: StartWorkers,
        *,
        foreign_main: bool = False,
        restarts: bool = True,
        begin: int | None = None,
        forks_with: int | None = None,
    ) -> None:
        self.engine = make_engine_pool(size)
        self.engine.foreign_main = foreign_main
        self.size = size
        self.wanted = size if begin is None else begin
        self.state = RUN
        self.processes: list[WorkerProcess | None] = [None] * size
        self._crashes: list[int] = [-1] * size  # what each worker writes when it crashes: descriptors
        self.broken: BaseException | None = None
        self._foreign_main = foreign_main
        self._start = start
        self._forks_with = forks_with
        self._restarts = restarts
        self._lock = _engine.WantedLock()  # held while workers start: one that takes long is given up for who waits
        self._ending = False
        self._put_off: list[tuple[int, int, int, int]] = []  # what the supervisor was told of while a start took long
        self._owner = os.getpid()
        self.functions: dict[Any, int] = {}
        self._fruitless = 0  # workers in a row that ended before they finished a task, weighed
        self._shut = False
        self._thread: threading.Thread | None = None
        self._helper: threading.Thread | None = None
        self._mask: set[int] = set()
        _crews.add(self)
        self._help_wanted = Bell()
        self._user: object = None  # a weak reference, kept for its callback
        self._told = False  # the workers were told to end at once
        self._over = False  # the supervisor has ended
        self._closed = False  # so has everything

    def serve(self, user: object) -> None:
        """Have the crew end when `user`, whose pool this is, was collected, even where Ctrl-C came in between."""
        self._user = ref(user, self.engine.forsake)

    def start(self) -> None:
        """Start the supervisor and the first workers. If that fails, all is ended."""
        thread = threading.Thread(target=self._supervise, name="shoal-supervisor", daemon=True)
        try:
            # Before the workers: with these on all cores it takes its time to begin, and start() waits for that.
            self._start_supervisor(thread)
            with _threads.forking(self._forks_with):
                self._begin(self._fill_first)
        except BaseException:
            self.terminate()
            raise

    def _start_supervisor(self, thread: threading.Thread) -> None:
        # With Ctrl-C blocked, from its first instruction on. Else it would take it while the main thread, which forks,
        # has it blocked, and that would be told of it in the middle of os.register_at_fork's functions: these lose the
        # exception, and logging's then keeps its lock.
        self._mask = _signal.pthread_sigmask(_signal.SIG_BLOCK, ())
        try:
            _signal.pthread_sigmask(_signal.SIG_BLOCK, (_signal.SIGINT,))
            thread.start()
            self._thread = thread
        except RuntimeError as error:
            if "can't start" not in str(error):  # but "at interpreter shutdown", or what Ctrl-C in start() becomes
                raise
            # The same want that a process fails of, and one error for both.
            raise BlockingIOError(
                errno.EAGAIN, "cannot start the pool's own thread: the limit of processes and threads is reached"
            ) from error
        finally:
            _signal.pthread_sigmask(_signal.SIG_SETMASK, self._mask)  # raises KeyboardInterrupt if one waited

    # -- functions --

    def share(self, function: Callable[..., Any]) -> tuple[int, bool]:
        """Give a function to the workers: its id, and whether it is the asking job's alone, to be dropped with it."""
        try:
            known = self.functions.get(function)
            if known is not None:
                return known, False
            cacheable = len(self.functions) < _FUNCTIONS_SHARED and _found_by_name(function)
        except TypeError:  # not hashable
            cacheable = False
        number = self.engine.share(function, self._foreign_main)
        if cacheable:
            self.functions[function] = number
        return number, not cacheable

    def call_mode(self, function: Callable[..., Any], args: Any, kwargs: Any) -> tuple[Any, int, int]:
        """How one call is best sent: (item, mode, shared id). A function that is not found by name travels with its
        call."""
        try:
            known = self.functions.get(function)
        except TypeError:
            known = None
        if known is None:
            if len(self.functions) >= _FUNCTIONS_SHARED or not _found_by_name(function):
                return (function, tuple(args), dict(kwargs)), CALL_WHOLE, 0
            known, _ = self.share(function)
        if kwargs:
            return (tuple(args), dict(kwargs)), CALL_APPLY, known
        return tuple(args), CALL_STAR, known

    # -- the workers --

    def hold(self) -> _engine.WantedLock:
        """The crew's lock, for a `with` of others. Nobody waits at it for a worker that takes its time to start."""
        return self._lock

    def _waits_for_start(self) -> bool:
        """Whether nobody needs the lock, or the supervisor, more than the worker that is being started."""
        if self._lock.wanted or self._ending:
            return False
        if threading.current_thread() is self._thread:
            try:
                self._put_off += self.engine.supervise(0)
            except ValueError:  # closed
                return False
        return not self._put_off

    def numbers(self) -> list[dict[str, Any]]:
        """What each worker that runs now did so far; see `Pool.stats`."""
        with self._lock:
            return [self.engine.numbers(place) for place, process in enumerate(self.processes) if process is not None]

    def _fill(self, places: Sequence[int]) -> None:
        """Start a worker in each of these places. What fails is raised; the workers before that are there."""
        orders = []
        for place in places:
            if self._crashes[place] < 0:
                # In one step, with nothing of Python's between: Ctrl-C there would lose it.
                self._crashes[place : place + 1] = map(os.memfd_create, ("shoal-crash",))
            orders.append((self.engine, place, self.engine.enlist(place), self._crashes[place]))
        before, _thread.starts_for = getattr(_thread, "starts_for", None), self
        try:
            starting = self._start(orders)
            try:
                for place, process in zip(places, starting, strict=False):
                    self._watch(place, process)
            finally:
                starting.close()  # raises KeyboardInterrupt if one waited
        finally:
            _thread.starts_for = before

    def _watch(self, place: int, process: WorkerProcess) -> None:
        assert process.pid is not None
        opened: list[int] = []
        try:
            try:
                opened.extend(map(os.pidfd_open, (process.pid,)))  # in one step, as above
            except ProcessLookupError:  # it has ended, and the zygote whose child it was has reaped it
                self.processes[place] = process
                self._bury(place)
                self.engine.call_supervisor()  # which starts another one there
                return
            self.engine.watch(place, process.pid, opened[0])
            self.processes[place] = process
        except BaseException:
            # Nobody would see it die.
            process.kill()
            process.join()
            self.engine.bury(place, process.exitcode)
            raise
        finally:
            for descriptor in opened:
                os.close(descriptor)

    def _fill_first(self) -> None:
        if self.broken is None:  # others may have needed the lock: the supervisor, for those that died at once
            self._fill([place for place in range(self.wanted) if self.processes[place] is None])

    def grow(self) -> None:
        """Fill one more place, where there is one."""
        self._begin(self._grow_once)

    def _grow_once(self) -> None:
        if self.wanted < self.size and self.state == RUN and self.broken is None:
            if self.processes[self.wanted] is None:  # else Ctrl-C came as it had been filled
                self._fill([self.wanted])
            self.wanted += 1

    def _begin(self, start: Callable[[], None]) -> None:
        """Start workers from a thread of the user's: again and again where others needed the lock meanwhile."""
        deadline = time.monotonic() + _START_LONGEST
        while True:
            with self._lock:
                try:
                    return start()
                except OSError as error:
                    if error.errno != _ECANCELED or self._ending or time.monotonic() > deadline:
                        raise
            time.sleep(0.001)  # theirs now

    def _settle(self, place: int, pid: int, exitcode: int) -> None:
        """Fail what a worker holds that is dying, some milliseconds before it has ended: that long it takes the kernel
        to take its memory down."""
        process = self.processes[place]
        if process is not None and process.pid == pid:
            self._keep_last_words(place, pid)
            self.engine.settle(place, exitcode)

    def _bury(self, place: int) -> None:
        """Settle what a worker that has ended leaves; its place is to be filled again."""
        process = self.processes[place]
        if process is None:
            return
        process.join(5)  # it has ended: this reaps it
        took_tasks = self.engine.numbers(place)["tasks"] > 0
        if process.pid is not None:
            self._keep_last_words(place, process.pid)
        crash = self._crashes[place]
        if crash >= 0 and os.fstat(crash).st_size != 0:  # the next one there gets a fresh descriptor
            self._crashes[place] = -1
            os.close(crash)
        held = self.engine.bury(place, process.exitcode)
        self.processes[place] = None
        # One that was killed from outside says little about the next one.
        weight = 1 if process.exitcode in (-9, -15) else _KILLS_FOR_ONE
        self._fruitless = 0 if held or took_tasks else self._fruitless + weight
        if self._fruitless > _KILLS_FOR_ONE * (8 + 2 * self.size) and not (self._ending or self._shut):
            self._break(
                RuntimeError(
                    "one worker after the other ended before it finished a task (the last one with exit code "
                    f"{process.exitcode}); see what they wrote to stderr: does the initializer fail?"
                )
            )

    def _keep_last_words(self, place: int, pid: int) -> None:
        """What the worker wrote about its crash, if anything."""
        crash = self._crashes[place]
        last_words.keep(pid, os.pread(crash, 20_000, 0).decode(errors="replace") if crash >= 0 else "")

    def _break(self, error: BaseException) -> None:
        self.broken = error
        self.engine.abandon(self.why_broken())

    def why_broken(self) -> BaseException:
        """What to raise where the crew is broken: a copy.

        What is raised holds the frames that it came through, and with them the pool, which could never be collected if
        its own crew held it in this way.
        """
        assert self.broken is not None
        try:
            reduced: Any = self.broken.__reduce_ex__(4)  # as copy.copy() does, which a supervisor does not import
            make, arguments, *state = reduced
            error: BaseException = make(*arguments)
            error.__dict__.update(*state)
        except Exception:  # one of the program's own, of a class that cannot be made from its arguments
            error = RuntimeError(f"{type(self.broken).__name__}: {self.broken}")
        error.__cause__ = self.broken.__cause__
        return error

    def broke_by(self, error: BaseException) -> bool:
        """Whether this is why the crew is broken."""
        return self.broken is not None and type(error) is type(self.broken) and error.args == self.broken.args

    def refill(self) -> None:
        """Start what is missing. OSError where that fails."""
        self._begin(self._refill_all)

    def _refill_all(self) -> None:
        if self._thread is not None and not self._refill():
            raise OSError("cannot start a worker process")

    def _refill(self) -> bool:
        """Start what could not be started; whether all places are filled."""
        if self._ending or self._shut or self.broken is not None or not self._restarts:
            return True
        for place, process in enumerate(self.processes[: self.wanted]):
            if process is None:
                try:
                    self._fill([place])
                except OSError as error:
                    if error.errno == _ECANCELED:  # put off
                        return False
                    if all(other is None for other in self.processes):
                        self._break(error)
                        return True
                    return False
        return True

    # -- the supervisor --

    def _supervise(self) -> None:
        _thread.mask = self._mask
        try:
            self._see_to_workers()
        finally:
            _signal.pthread_sigmask(_signal.SIG_SETMASK, self._mask)
            _thread.mask = None
            self._over = True
            self._help_wanted.ring()  # the helper ends too
        self._finish()

    def _finish(self) -> None:
        """The supervisor's last act: what nobody else may come to do."""
        if self.engine.forsaken:
            with self._lock:
                self._close()

    def _see_to_workers(self) -> None:
        _thread.supervises = True
        complete = True
        while True:
            try:
                events = self.engine.supervise(0 if self._put_off else self._pause(complete))
            except ValueError:  # closed
                return
            events, self._put_off = self._put_off + events, []
            with self._lock:
                if self._closed:  # by a finalizer that ran in this thread
                    return
                if self.engine.forsaken:
                    self._end_forsaken()
                if self.state == TERMINATE:
                    if not self._told:  # whoever was to was interrupted
                        self._end_workers()
                    self._bury_all()
                    self._close_crashes()
                    return
                try:
                    complete = self._see_to(events)
                except Exception as error:  # nobody would see to anything any more: say so to all who wait
                    if not self._closed:
                        self._break(error)
                if self._closed:  # as above
                    return
                self._collect_unread()
                self._shut_if_idle()
                if self._shut and all(process is None for process in self.processes):
                    self._close_crashes()
                    return

    def _pause(self, complete: bool) -> float | None:
        if not complete:
            return _RETRY_START
        return _MIND_EVERY if self.engine.minded else None

    def _collect_unread(self) -> None:
        """Where engine.mind() was called, collect what nobody waits for, as that holds its pool."""
        if self.engine.minded:
            self.engine.minded = False
            # In this order: mind() comes after its work was handed out; it sees the flag taken back, or we its work.
            if not self.engine.idle:
                self.engine.minded = True
                self._call_helper()

    def _end_forsaken(self) -> None:
        """Locked. The pool was collected: end, as terminate() does, which perhaps was interrupted."""
        self._ending = True
        self.state = TERMINATE

    def _see_to(self, events: list[tuple[int, int, int, int]]) -> bool:
        """Whether all places are filled."""
        held = False
        for kind, place, pid, code in events:
            if kind == _ATTENTION:
                self._call_helper()
                continue
            if kind == _WORKER_DYING:
                self._settle(place, pid, code)
            else:
                self._bury(place)
            if not self.engine.idle:  # what the worker held has an outcome now
                self._call_helper()
                held = True
        if held:
            # A fork holds the GIL for milliseconds. Who waits for that outcome was woken just now: its turn first.
            time.sleep(_TURN)
        return self._refill()

    def _shut_if_idle(self) -> None:
        """Locked. A closed crew whose work is done ends its workers."""
        if self.state == CLOSE and not self._shut and self.engine.idle:
            self._shut = True
            self.engine.shut(1)

    # -- the helper --

    def _call_helper(self) -> None:
        if self._helper is None:
            helper = threading.Thread(target=self._help, name="shoal-helper", daemon=True)
            if not start_thread(helper):
                self._help_once()
                return
            self._helper = helper
        self._help_wanted.ring()

    def _help(self) -> None:
        _signal.pthread_sigmask(_signal.SIG_SETMASK, self._mask)  # the supervisor started it; callbacks start processes
        while True:
            self._help_wanted.wait()
            if not self._help_once():
                return

    def _help_once(self) -> bool:
        """Whether there may be more to do later."""
        try:
            self._close_if_forsaken()
            self._run_callbacks(self.engine.pump())
        except ValueError:  # closed
            return False
        except BaseException:  # an iterator's or a pickle's: its item has it; what is left is reported as of any thread
            threading.excepthook(threading.ExceptHookArgs([*sys.exc_info(), threading.current_thread()]))
        with self._lock:
            if self._over:
                return False
            try:
                self._shut_if_idle()
            except ValueError:
                return False
        return True

    def _close_if_forsaken(self) -> None:
        """What _end_forsaken() leaves to the helper."""

    @staticmethod
    def _run_callbacks(jobs: list[Any]) -> None:
        for job in jobs:
            try:
                job.callback(job)
            except BaseException:  # like an exception in any thread: reported, and the others go on
                threading.excepthook(threading.ExceptHookArgs([*sys.exc_info(), threading.current_thread()]))
            finally:
                job.finish_callback()

    # -- the end --

    def close(self) -> None:
        """No new work. Workers end once all of it is done."""
        with self._lock:
            if self.state != RUN:
                return
            self.state = CLOSE
        try:
            try:
                self.engine.hurry()
            finally:
                self.engine.call_supervisor()
        except ValueError:
            with self._lock:
                if not self._closed:  # by the supervisor, as all was done, or by another thread's terminate()
                    raise

    def join(self) -> None:
        """Wait until the workers have ended; close() or terminate() came before."""
        if os.getpid() != self._owner:  # nor are they this process's to end
            raise RuntimeError("a pool can be joined only by the process that made it")
        thread = self._thread
        if self._closed:
            return
        try:
            if self.state == CLOSE:
                self.engine.wait_idle()
                self.engine.call_supervisor()
        except ValueError:  # closed by another thread's terminate()
            pass
        if thread is not None and threading.current_thread() not in (thread, self._helper):
            while thread.is_alive():
                thread.join(0.1 if self.state == CLOSE else None)
                try:
                    if self.state == CLOSE:
                        self.engine.call_supervisor()
                except ValueError:  # as above
                    pass
            if self._helper is not None and self.state == CLOSE:
                self._help_wanted.ring()  # it ends; a callback that runs is waited for
                self._helper.join()
        with self._lock:
            self._signal_all()
            self._bury_all()
            self._close()

    def terminate(self) -> None:
        """Fail what is not done, end the workers at once."""
        if os.getpid() != self._owner:
            return
        self._ending = True
        if threading.current_thread() is self._thread and _crew_to_start_for() is self:
            # A finalizer, in the midst of a worker's start, which still needs all of it: the supervisor does it then.
            self.engine.forsake(None)
            return
        with self._lock:
            self.state = TERMINATE
            if self._closed:
                return
            try:
                if not self._told:  # else by an earlier call, which Ctrl-C interrupted
                    self._end_workers()
                self.engine.call_supervisor()
            except ValueError:  # closed by join()
                return
        # The helper does not wait: as a finalizer it may have come to this with the lock held.
        if self._thread is not None and threading.current_thread() not in (self._thread, self._helper):
            self._thread.join()
        with self._lock:
            self._bury_all()
        try:
            self._run_callbacks(self.engine.pump())  # of the calls that failed just now
        except ValueError:
            pass
        self._help_wanted.ring()
        with self._lock:
            self._close()

    def _end_workers(self) -> None:
        self.engine.abandon(TaskCancelled("the pool was terminated before the task was done"))
        # The signal first: a worker that sleeps is gone at once, and is not woken only to end in order.
        self._signal_all()
        self.engine.shut(2)
        self._told = True

    def _close(self) -> None:
        if self._closed:
            return
        self._close_crashes()
        self.engine.close()
        self._closed = True

    def _close_crashes(self) -> None:
        for place, crash in enumerate(self._crashes):
            self._crashes[place] = -1
            if crash >= 0:
                os.close(crash)

    def _signal_all(self) -> None:
        for process in self.processes:
            if process is not None and process.exitcode is None:
                process.terminate()

    def _bury_all(self) -> None:
        """Wait for all that were told to end, and kill those that do not."""
        alive = [process for process in self.processes if process is not None]
        deadline = time.monotonic() + _TERM_GRACE
        for process in alive:
            process.join(max(0.0, deadline - time.monotonic()))
            if process.exitcode is None:
                process.kill()
        for process in alive:
            process.join()
        self.processes = [None] * self.size
