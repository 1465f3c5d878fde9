"""The tasks of a call of `Parallel`: `delayed`, which makes them, and their way through the engine and back."""

from __future__ import annotations

import itertools
import time
import types

from shoal import _engine, _pickling
from shoal._crew import CALL_NAMED, _found_by_name
from shoal.errors import TaskCancelled
from shoal.joblib import _in_worker, _workers
from shoal.joblib._reporting import Reporting

TYPE_CHECKING = False  # typing costs each start of a program more than the rest of this file
if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterable, Iterator
    from typing import Any

    Task = tuple[Callable[..., Any], tuple[Any, ...], dict[str, Any]]

DEFAULT_AHEAD = "2 * n_jobs"
_SHARED_FUNCTIONS = 64  # functions of one call that are sent once; past that they are sent with each task
_KEPT_FUNCTIONS = 64  # of a crew, for the calls that follow
_SENT_ONCE = (types.FunctionType, types.BuiltinFunctionType, type)  # what has no state that changes between tasks
_PLAIN = frozenset((int, float, str, bytes, bool, type(None)))


delayed = _engine.delayed

# ------------------------------------------------------------------------------- seeds


class Seed:
    """Stands for a task's Generator, which is made where the task runs."""

    __slots__ = ("entropy", "spawn_key")

    def __init__(self, entropy: Any, spawn_key: tuple[int, ...]) -> None:
        self.entropy = entropy
        self.spawn_key = spawn_key

    def __reduce__(self) -> Any:
        return _in_worker.make_generator, (self.entropy, self.spawn_key)


def check_seed(seed: Any) -> None:
    """Raise what numpy says of a seed that is none, before anything runs."""
    if seed is not None and not (type(seed) is int and seed >= 0):  # of these it is known without importing numpy
        for _ in with_seeds([(abs, (), {})], seed, _in_worker.make_generator):
            pass


def with_seeds(tasks: Iterable[Task], seed: Any, made: Callable[[Any, tuple[int, ...]], Any]) -> Iterator[Task]:
    # A SeedSequence has children of its own; the tasks' are counted on from none.
    entropy, above = (seed.entropy, tuple(seed.spawn_key)) if hasattr(seed, "spawn_key") else (seed, ())
    for index, (function, args, kwargs) in enumerate(tasks):
        if "rng" in kwargs:
            raise TypeError("with seed= a task is given its generator as the keyword argument rng, which this one has")
        yield function, args, {**kwargs, "rng": made(entropy, (*above, index))}


# -------------------------------------------------------------------- to the engine


class CrewTasks:
    """The tasks of one call on their way into the engine."""

    def __init__(self, parallel: Any, crew: Any, iterable: Iterable[Task]) -> None:
        self._parallel = parallel
        self._crew = crew
        self._sharing = parallel._backend._sharing
        self._functions: dict[int, tuple[int, Any]] = {}  # id(function) -> its number, and a hold on it
        self._own: list[int] = []  # numbers that are this call's alone
        self._habits: set[str] = set()
        self.items = _engine.Tasks(iterable, self._functions, self._prepare, self._release)
        self._whole = 0
        self._has_kept = False  # whether some of its functions are such as stay for the calls that follow

    def _prepare(self, task: Task) -> tuple[Any, ...]:
        """The item for a task that the engine leaves to us; `_release` ends what is begun here."""
        function, args, kwargs = task
        known = self._functions.get(id(function))
        item: tuple[Any, ...]
        if type(args) is not tuple or type(kwargs) is not dict:
            item = (self._share_whole(), function, args, kwargs)  # whether it can be called so is seen there
        elif known is None and not (known := self._share(function)):
            item = (self._share_whole(), function, args, kwargs)
        elif kwargs:
            item = (-known[0], args, kwargs)
        else:
            item = (known[0], *args)
            if _PLAIN.issuperset(map(type, args)):
                return item
        if self._sharing is not None:
            self._sharing.made = self.items.taken
        _pickling.particular[id(item)] = _workers.ItemPickler(self._sharing, function, self._habits)
        return item

    @staticmethod
    def _release(item: tuple[Any, ...]) -> None:
        _pickling.particular.pop(id(item), None)

    def tell(self) -> None:
        """Have the call know how far its tasks are handed out."""
        self._parallel.n_dispatched_tasks = self.items.taken
        if self.items.ended:
            self._parallel._iterating = False
            self._parallel._original_iterator = None

    def _share(self, function: Any) -> tuple[int, Any] | None:
        """Give a function to the workers, where it is one that is better sent once."""
        crew = self._crew
        foreign = crew.engine.foreign_main
        if isinstance(function, _SENT_ONCE) and len(self._functions) < _SHARED_FUNCTIONS:
            if _found_by_name(function) and not (foreign and function.__module__ in ("__main__", "__mp_main__")):
                number, own = crew.share(function)
            else:
                number, own = self._share_by_value(function, foreign)
            if own:
                self._own.append(number)
            self._functions[id(function)] = known = (number, function)
            return known
        return None

    def _share_whole(self) -> int:
        """The number of what calls a function that travels with its task."""
        if not self._whole:
            self._whole = self._crew.share(_in_worker.call)[0]
        return self._whole

    def _share_by_value(self, function: Any, foreign: bool) -> tuple[int, bool]:
        """Its number, and whether that is this call's alone. To send it, and to make it in each worker, takes longer
        than ten short tasks: one without a state stays for the calls that follow."""
        crew = self._crew
        kept: dict[Any, Any] | None = getattr(crew, "by_value", None)
        description = None
        if kept is not None and type(function) is types.FunctionType:
            from shoal import _functions

            description = _functions.describe_unchanging(function)
            if description is not None:
                known = kept.get(function.__code__)
                if known is not None and _functions.is_described_by(description, known[1]):
                    self._has_kept = True
                    return known[0], False
                is_full = known is not None or len(kept) >= _KEPT_FUNCTIONS
                if is_full and (self._has_kept or not _workers.forget_functions(crew)):
                    description = None
        habits = {_pickling.BY_VALUE} if foreign and _found_by_name(function) else None
        # By an object of this call's own: other threads may be sharing the same function, with arrays of theirs.
        stand_in = _workers.FunctionPickler(self._sharing, function, habits)
        _pickling.particular[id(stand_in)] = stand_in
        try:
            number = crew.engine.share(stand_in, foreign)
        finally:
            del _pickling.particular[id(stand_in)]
        if description is None or crew.by_value.setdefault(function.__code__, (number, description))[0] != number:
            return number, True  # another thread's call was quicker
        self._has_kept = True
        return number, False

    def end(self) -> None:
        self.tell()
        self.items.close()
        for number in self._own:
            try:
                self._crew.engine.unshare(number)
            except (ValueError, RuntimeError):  # closed
                pass


class Appearance:
    """Has lines of progress come when joblib's do, and say what they do.

    joblib hands out one batch for each that comes back, and prints when one has. The engine takes more ahead and knows
    no batches: so this counts as if there were that many.
    """

    _APART = 0.1  # seconds between lines where tasks are short: about those that joblib's batches are apart then

    def __init__(self, parallel: Any, tasks: CrewTasks) -> None:
        self._parallel = parallel
        self._items = tasks.items
        self._iterable = parallel._original_iterator
        self._size = parallel.batch_size  # of a batch, or "auto"
        self._batches = 0  # that came back
        self._next = 0.0  # when the next line is due, with batches of any size
        self.has_ended = False  # whether the last task was shown

    def shows(self, done: int) -> bool:
        """Whether a batch has come back with that task; the counts of the call are then as joblib's were."""
        parallel, taken, ended = self._parallel, self._items.taken, self._items.ended
        ahead = parallel._pre_dispatch_amount or taken
        is_last = self.has_ended = bool(ended) and done == taken
        if not is_last:
            if self._size == "auto":
                now = time.monotonic()
                if done > ahead and now < self._next:
                    return False
                self._next = now + self._APART
            elif done % self._size:
                return False
        self._batches += 1
        size = 1 if self._size == "auto" else self._size
        out = ahead + done - size
        is_over = is_last or (bool(ended) and out > taken)
        parallel.n_dispatched_tasks = taken if is_over else min(out, taken)
        parallel.n_dispatched_batches = self._batches - 1 + -(-ahead // size)
        parallel._iterating = not is_over and parallel._pre_dispatch_amount > 0
        parallel._original_iterator = self._iterable if parallel._iterating else None
        return True


class OnCrew(Reporting):
    """The part of `Parallel` that has Shoal's own processes run a call."""

    _backend: Any
    _exception: bool
    _aborted: bool
    _recorder: Any
    _running: bool
    _managed_backend: bool
    _nb_consumed: int
    _retries: int
    _return_exceptions: bool
    _task_timeout: float | None
    batch_size: Any
    pre_dispatch: Any
    return_generator: bool
    return_ordered: bool
    timeout: float | None
    _terminate_and_reset: Callable[[], None]
    _warn_exit_early: Callable[[], None]

    def _run_on_crew(self, iterable: Iterable[Task], ahead: int | None, whole: bool) -> Generator[Any, None, None]:
        """As one job of the engine. whole: the results are yielded as one list."""
        crew = self._backend._handle.crew
        engine = crew.engine
        size = self.batch_size if self.batch_size != "auto" else 0
        # By default the engine sees how much more short tasks need; another value counts where batches do not grow.
        window = ahead if ahead is not None and size and self.pre_dispatch != DEFAULT_AHEAD else 0
        tasks = CrewTasks(self, crew, list(iterable) if ahead is None else iterable)
        job = _engine.Job(
            engine,
            tasks.items,
            0,
            CALL_NAMED,
            size,
            retries=self._retries,
            iterate=1 if self.return_ordered else 2,
            window=max(window, size) if window else 0,
            time_limit=self._task_timeout,
            attended=whole and not self._shows_progress(),
            ahead=ahead or 0,
        )
        self._job: Any = job
        self._original_iterator = iterable
        self._iterating = True
        done = False
        try:
            job.submit()
            yield None
            if whole:
                yield list(itertools.chain.from_iterable(self._read(job, tasks, whole)))
            else:
                for result in self._read(job, tasks, whole):
                    self._nb_consumed += 1
                    yield result
            done = True
        except GeneratorExit:
            self.n_completed_tasks = job.settled  # before the next count, which goes on
            tasks.tell()
            self._exception = self._aborting = self._aborted = True
            if self.return_generator:
                self._warn_exit_early()
            raise
        except BaseException:
            self._exception = self._aborting = self._aborted = True
            raise
        finally:
            self._running = False
            self._iterating = False
            self._original_iterator = None
            self._job = None
            if not done:
                self._give_up(job)
            tasks.end()
            self._terminate_and_reset()

    def _read(self, job: _engine.Job, tasks: CrewTasks, lists: bool) -> Iterator[Any]:
        """The results of a job, with what goes along with them. lists: as many at once as are there, as a list."""
        count = 0
        take: Callable[[float | None], Any] = job.next_ready if lists else job.next_within
        shows = self._shows_progress()
        appearance = Appearance(self, tasks)
        sharing = self._backend._sharing
        timeout = self.timeout
        while True:
            try:
                taken = take(timeout)
            except Exception as error:
                if isinstance(error, StopIteration) and job.error is not error:  # which would be a task's
                    break
                if isinstance(error, TimeoutError) and timeout is not None and not job_raised(error):
                    raise _workers.make_timeout() from None
                if self._recorder is not None:
                    self._recorder.failed(error)
                seen = _workers.see_error(error, tasks._crew)
                if not self._return_exceptions:
                    if seen is error:
                        raise
                    raise seen from seen.__cause__
                taken = [seen] if lists else seen
            tasks.tell()
            if shows:
                for _ in range(len(taken) if lists else 1):
                    count += 1
                    self.n_completed_tasks = count
                    if appearance.shows(count):
                        self.print_progress()
            else:
                count += len(taken) if lists else 1
                self.n_completed_tasks = count
            if sharing is not None and sharing.has_deaths and self.return_ordered:
                sharing.received(count)
            yield taken
        if shows and count and not appearance.has_ended:  # the iterable said after its last task that it was that
            tasks.tell()
            if appearance.shows(count):
                self.print_progress()

    def _shows_progress(self) -> bool:
        return bool(self.verbose) or type(self).print_progress is not Reporting.print_progress

    def _give_up(self, job: _engine.Job) -> None:
        """What is out is of no use to anybody: an error, Ctrl-C, or a reader that had enough."""
        try:
            job.withdraw(TaskCancelled("another task of the call failed, or its results were given up"), True)
        except (ValueError, RuntimeError):  # the workers have ended
            pass
        if self._managed_backend:
            self._backend.abort_everything(ensure_ready=True)


def job_raised(error: BaseException) -> bool:
    """Whether an error is a task's own, not the wait's."""
    return error.__cause__ is not None or type(error) is not TimeoutError
