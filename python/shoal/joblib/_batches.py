"""Handing out batches to a back-end by joblib's protocol: for threads, others' back-ends, and programs that replace
`BatchCompletionCallBack`. Shoal's own processes need none of this (`parallel.py`).

At first as many tasks as `pre_dispatch` says are handed out; each batch that comes back hands out the next one, in
whatever thread its callback runs. All state is changed under `_lock`; who waits for results sleeps on `_changed`.
"""

from __future__ import annotations

import itertools
import sys
import threading
import time
from collections import deque

from shoal.joblib import _config, _workers

TYPE_CHECKING = False  # typing costs each start of a worker more than the rest of this file
if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterable, Iterator
    from typing import Any

    Task = tuple[Callable[..., Any], tuple[Any, ...], dict[str, Any]]

TASK_DONE = "Done"
TASK_ERROR = "Error"
TASK_PENDING = "Pending"

_LOOK = 0.5  # seconds between two looks of who waits: should a back-end's callback not come through `_changed`


class BatchedCalls:
    """Some tasks as one callable without arguments; their results are a list."""

    def __init__(
        self,
        iterator_slice: Iterable[Task],
        backend_and_jobs: Any,
        reducer_callback: Callable[[], object] | None = None,
        pickle_cache: dict[Any, Any] | None = None,
    ) -> None:
        self.items = list(iterator_slice)
        self._size = len(self.items)
        self._reducer_callback = reducer_callback
        # Older back-ends say no number of jobs for nested calls.
        pair = backend_and_jobs if isinstance(backend_and_jobs, tuple) else (backend_and_jobs, None)
        self._backend, self._n_jobs = pair
        self._pickle_cache = pickle_cache if pickle_cache is not None else {}

    def __call__(self) -> list[Any]:
        with _config.parallel_config(backend=self._backend, n_jobs=self._n_jobs):
            return [function(*args, **kwargs) for function, args, kwargs in self.items]

    def __reduce__(self) -> Any:
        if self._reducer_callback is not None:
            self._reducer_callback()
        return BatchedCalls, (self.items, (self._backend, self._n_jobs), None, self._pickle_cache)

    def __len__(self) -> int:
        return self._size


class BatchCompletionCallBack:
    """What a back-end calls when a batch is done, well or not: keeps its outcome and has the next one handed out.

    Programs derive from it and put theirs in its place, to follow the progress: each has `batch_size` and `parallel`.
    """

    def __init__(self, dispatch_timestamp: float, batch_size: int, parallel: Any) -> None:
        self.dispatch_timestamp = dispatch_timestamp
        self.batch_size = batch_size
        self.parallel = parallel
        self.parallel_call_id = parallel._call_id
        self.job: Any = None  # what `submit` returned, until the outcome is there
        self.status: str | None = TASK_PENDING if parallel._backend.supports_retrieve_callback else None
        self._result: Any = None
        self._waited_since: float | None = None

    def register_job(self, job: Any) -> None:
        """`job` is what `submit` returned for the batch."""
        if self.status in (TASK_PENDING, None):
            self.job = job

    # -- in the thread that wants the results --

    def get_result(self, timeout: float | None) -> Any:
        """The results of the batch; raises what one of its tasks raised."""
        backend = self.parallel._backend
        if not backend.supports_retrieve_callback:
            try:
                self._register_outcome({"status": TASK_DONE, "result": backend.retrieve_result(self.job, timeout)})
            except BaseException as error:
                self._register_outcome({"status": TASK_ERROR, "result": error})
        result, self._result = self._result, None
        if self.status == TASK_ERROR:
            raise result
        return result

    def get_status(self, timeout: float | None) -> str | None:
        """TASK_DONE, TASK_ERROR or TASK_PENDING; pending for longer than `timeout` since this was asked first is an
        error."""
        if timeout is not None and self.status == TASK_PENDING:
            now = time.monotonic()
            if self._waited_since is None:
                self._waited_since = now
            elif now - self._waited_since > timeout:
                self._register_outcome({"status": TASK_ERROR, "result": _workers.make_timeout()})
        return self.status

    # -- in whatever thread the back-end calls --

    def __call__(self, *args: Any, **kwargs: Any) -> None:
        parallel = self.parallel
        with parallel._lock:
            # Of an earlier call of the same object, or of one that has failed already.
            if self._is_late() or parallel._aborting:
                return
        if not parallel._backend.supports_retrieve_callback or self._retrieve_result(*args, **kwargs):
            self._dispatch_new()

    def _is_late(self) -> bool:
        """Locked. Whether the call that it is of is over, and `parallel` perhaps at another."""
        return bool(self.parallel._call_id != self.parallel_call_id)

    def _retrieve_result(self, out: Any) -> bool:
        """Keep the outcome; whether it is a result."""
        try:
            outcome = {"status": TASK_DONE, "result": self.parallel._backend.retrieve_result_callback(out)}
        except BaseException as error:
            error.__traceback__ = None  # its frames hold the call
            outcome = {"status": TASK_ERROR, "result": error}
        self._register_outcome(outcome)
        return bool(outcome["status"] == TASK_DONE)

    def _dispatch_new(self) -> None:
        parallel = self.parallel
        try:
            parallel._backend.batch_completed(self.batch_size, time.time() - self.dispatch_timestamp)
            with parallel._lock:
                if self._is_late():
                    return
                parallel.n_completed_tasks += self.batch_size
                parallel.print_progress()
                if parallel._original_iterator is not None:
                    parallel.dispatch_next()
                parallel._wake_reader()
        except BaseException as error:  # of the iterator, the back-end, a sub-class: nobody would hand out the rest
            with parallel._lock:
                if not self._is_late():
                    parallel._register_failure(error)

    def _register_outcome(self, outcome: dict[str, Any]) -> None:
        """The first outcome counts: a timeout and a result may come at the same time."""
        parallel = self.parallel
        with parallel._lock:
            if self.status not in (TASK_PENDING, None) or self._is_late():
                return
            self._result = outcome["result"]
            self.status = outcome["status"]
            self.job = None
            if self.status == TASK_ERROR:
                parallel._exception = True
                parallel._aborting = True
            if not parallel.return_ordered:
                parallel._jobs.append(self)
            parallel._wake_reader()


class _Guarded:
    """A program's own callback as a back-end is given it. What it raises ends the call: no back-end would tell, and who
    waits for a result that was never registered would wait for ever."""

    def __init__(self, tracker: Any, parallel: Any) -> None:
        self._tracker = tracker
        self._parallel = parallel
        self._call_id = parallel._call_id

    def __call__(self, *args: Any, **kwargs: Any) -> None:
        try:
            self._tracker(*args, **kwargs)
        except BaseException as error:
            self._parallel._callback_failed(self._call_id, error)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._tracker, name)


class Dispatching:
    """The part of `Parallel` that hands out batches. Callbacks, and classes that derive from joblib's, know its
    names."""

    _backend: Any
    n_tasks: int | None
    timeout: float | None
    return_ordered: bool
    _managed_backend: bool
    batch_size: Any
    n_completed_tasks: int
    n_dispatched_tasks: int
    n_dispatched_batches: int
    _aborting: bool
    _iterating: bool
    _original_iterator: Any
    _cached_effective_n_jobs: int
    _call_id: object

    def _prepare_batches(self) -> None:
        self._lock = threading.RLock()
        self._changed = threading.Condition(self._lock)
        self._jobs: deque[Any] = deque()  # in order of their tasks, or, unordered, of their ends
        self._jobs_set: set[Any] = set()  # unordered: those that are out
        self._ready_batches: deque[BatchedCalls] = deque()
        self._reducer_callback: Callable[[], object] | None = None
        self._pickle_cache: dict[Any, Any] = {}
        self._failed_call_id: object = None  # of the call that failed by a program's callback

    def _get_batch_size(self) -> int:
        return self._backend.compute_batch_size() if self.batch_size == "auto" else self.batch_size  # type: ignore[no-any-return]

    def dispatch_next(self) -> None:
        """Hand out one more batch, if there is one."""
        if not self.dispatch_one_batch(self._original_iterator):
            self._iterating = False
            self._original_iterator = None

    def dispatch_one_batch(self, iterator: Iterator[Task]) -> bool:
        """Make a batch of the iterator's next tasks and hand it out; False: there are none, or the call has failed."""
        if self._aborting:
            return False
        size = self._get_batch_size()
        with self._lock:
            if not self._ready_batches and not self._make_batches(iterator, size):
                return False
            if self._ready_batches:
                self._dispatch(self._ready_batches.popleft())
            return True

    def _make_batches(self, iterator: Iterator[Task], size: int) -> bool:
        """A batch for each worker, so that the last tasks are shared out evenly; whether there is anything to do."""
        n_jobs = self._cached_effective_n_jobs
        try:
            tasks = list(itertools.islice(iterator, size * n_jobs))
        except Exception as error:
            # This may be any thread: raised where the results are read, after those of the tasks before it.
            self._register_failure(error)
            return True
        if not tasks:
            return False
        is_last = iterator is self._original_iterator and len(tasks) < size * n_jobs
        size = max(1, len(tasks) // ((10 if is_last else 1) * n_jobs))
        for start in range(0, len(tasks), size):
            batch = tasks[start : start + size]
            nested = self._backend.get_nested_backend()  # each its own: threads may use two at a time
            self._ready_batches.append(BatchedCalls(batch, nested, self._reducer_callback, self._pickle_cache))
        return True

    def _dispatch(self, batch: BatchedCalls) -> None:
        if self._aborting:
            return
        self.n_dispatched_tasks += len(batch)
        self.n_dispatched_batches += 1
        tracker = _own_callback()(time.time(), len(batch), self)
        self._register_new_job(tracker)
        callback = tracker if type(tracker) is BatchCompletionCallBack else _Guarded(tracker, self)
        tracker.register_job(self._backend.submit(batch, callback=callback))

    def _register_failure(self, error: BaseException) -> None:
        """What is no task's error ends the call: raised where the results are read."""
        with self._lock:
            tracker = BatchCompletionCallBack(0, 0, self)  # not the program's own: that one may be what fails
            self._register_new_job(tracker)
            tracker._register_outcome({"status": TASK_ERROR, "result": error})

    def _callback_failed(self, call_id: object, error: BaseException) -> None:
        """A program's own callback raised: the call fails by that; if all its results are read, a thread says so."""
        with self._lock:
            if self._call_id is call_id:
                self._failed_call_id = call_id
                if not self._aborting:  # else it fails already
                    self._register_failure(error)
            if self._failed_call_id is call_id:
                return
        threading.excepthook(threading.ExceptHookArgs((*sys.exc_info(), threading.current_thread())))

    def _register_new_job(self, tracker: Any) -> None:
        if self.return_ordered:
            self._jobs.append(tracker)
        else:
            self._jobs_set.add(tracker)

    # -- the call --

    def _start_batches(self, tasks: Iterator[Task], ahead: int | None) -> None:
        """Hand out the first tasks. ahead: how many; None: all."""
        self._ready_batches.clear()
        first: Iterator[Task] = tasks
        self._original_iterator = None
        if ahead is not None:
            self._original_iterator = tasks
            first = itertools.islice(tasks, ahead)
        self._iterating = False
        if self.dispatch_one_batch(first):
            with self._lock:  # a callback may be at the iterator's end
                self._iterating = self._original_iterator is not None
        while self.dispatch_one_batch(first):
            pass
        if ahead is None:
            self._iterating = False

    def _wait_retrieval(self) -> bool:
        """Whether there are results to come."""
        if self._iterating or self.n_completed_tasks < self.n_dispatched_tasks:
            return True
        return bool(self._jobs)

    def _retrieve(self) -> Generator[Any, None, None]:
        while True:
            with self._lock:
                tracker = self._next_tracker()
                if tracker is None:
                    self._call_id = None  # what comes now comes too late
                    return
            yield from tracker.get_result(self.timeout)

    def _wake_reader(self) -> None:
        """Locked. Wake who waits for results if that would go on: to be woken for each batch costs short ones more than
        they take."""
        jobs = self._jobs
        if self._aborting or not self._wait_retrieval() or (jobs and jobs[0].get_status(None) != TASK_PENDING):
            self._changed.notify_all()

    def _next_tracker(self) -> Any:
        """Locked. The batch whose results come next; None: there is none."""
        began = time.monotonic()
        while self._wait_retrieval():
            if self._aborting:
                # The error of whichever task it was, at once; without one the call was ended from outside.
                failed = next((tracker for tracker in self._jobs if tracker.status == TASK_ERROR), None)
                return failed
            if self._jobs:
                tracker = self._jobs[0]
                if not self.return_ordered or tracker.get_status(timeout=self.timeout) != TASK_PENDING:
                    self._jobs.popleft()
                    self._jobs_set.discard(tracker)
                    return tracker
                if self._aborting:  # it took too long
                    continue
            elif self.timeout is not None and time.monotonic() - began > self.timeout and not self.return_ordered:
                raise _workers.make_timeout()
            # Not for longer than until the next timeout is due.
            self._changed.wait(_LOOK if self.timeout is None else max(min(_LOOK, self.timeout / 2), 0.001))
        return None


def _own_callback() -> Any:
    """The class of callbacks: whatever has that name in `joblib.parallel` now."""
    from shoal.joblib import parallel

    return parallel.BatchCompletionCallBack
