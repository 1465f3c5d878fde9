"""In a process of the pool of a Dask worker: what makes a task one of Dask's, from the moment that it asks.

There `distributed.get_worker()` gives a stand-in that knows the worker's address, name and threads, and `get_client()`
a client of the same scheduler, made when it is first asked for. `secede()` reaches the thread of Dask that waits for
the batch (`_dask.py`): another task may have its place while this one waits for tasks of its own.

Nothing of distributed is imported before a task does so: it takes most of a second, and few need it.
"""

from __future__ import annotations

import contextlib
import contextvars
import functools
import importlib.util
import sys
import threading

TYPE_CHECKING = False  # typing costs each start of a worker more than the rest of this file
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

_here = threading.local()  # `worker`: of the task that this thread runs
_client: Any = None  # of this process; it stays for the tasks that come


class Place:
    """Where a batch runs, as Dask sees it."""

    def __init__(self, **about: Any) -> None:
        self.scheduler: str = about["scheduler"]  # its address
        self.address: str = about["address"]  # the worker's
        self.name: Any = about["name"]
        self.threads: int = about["threads"]
        self.directory: str = about["directory"]
        self.key: Any = about["key"]  # the batch's
        self.seat: str = about["seat"]  # names the thread that waits for it
        self.security: bytes | None = about["security"]  # pickled; None: the scheduler asks for nothing


class Worker:
    """The part of `distributed.Worker` that a task in another process can have."""

    def __init__(self, place: Place) -> None:
        import types

        self._place = place
        self._has_seceded = False
        self.address = self.contact_address = place.address
        self.name = place.name
        self.nthreads = place.threads
        self.thread_id = 0  # of its loop, which is no thread of this process
        self.local_directory = place.directory
        self.state = types.SimpleNamespace(address=place.address, nthreads=place.threads)

    def __getattr__(self, name: str) -> Any:
        raise AttributeError(
            f"this task runs in a process of the pool of Dask's worker {self.__dict__.get('address')}, and has no "
            f"{name!r} of the worker itself"
        )

    def _get_client(self, timeout: float | None = None) -> Any:
        global _client
        if _client is None or _client.status != "running" or _client.scheduler.address != self._place.scheduler:
            security = None
            if self._place.security is not None:
                import pickle

                security = pickle.loads(self._place.security)
            options: dict[str, Any] = {} if timeout is None else {"timeout": timeout}
            _client = _client_class()(
                self._place.scheduler, security=security, direct_to_workers=True, name="shoal-task", **options
            )
        return _client

    @property
    def scheduler(self) -> Any:
        return self._get_client().scheduler

    @property
    def client(self) -> Any:
        return self._get_client()

    @property
    def rpc(self) -> Any:
        return self._get_client().rpc

    @property
    def loop(self) -> Any:
        return self._get_client().loop

    def get_current_task(self) -> Any:
        return self._place.key

    def log_event(self, topic: Any, msg: Any) -> None:
        self._get_client().log_event(topic, msg)

    def handle_stimulus(self, *events: Any) -> None:
        """What a task that secedes tells its worker; here `secede` has done so."""

    def secede(self) -> None:
        """Let another task have the place of this batch in Dask's worker, until the batch ends."""
        if not self._has_seceded:
            self._has_seceded = True
            from shoal.joblib import _dask

            self._get_client().run(_dask.give_up_seat, self._place.seat, workers=[self.address])


@functools.cache
def _client_class() -> Any:
    from distributed import Client, utils

    def from_outside(function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Call it as one who is in no task: in one it would reach for the data of the worker, as for its own."""
        state = utils.thread_state
        seen = state.__dict__.pop("execution_state", None)
        try:
            return contextvars.Context().run(function, *args, **kwargs)
        finally:
            if seen is not None:
                state.execution_state = seen

    class TaskClient(Client):  # type: ignore[misc]
        def scatter(self, *args: Any, **kwargs: Any) -> Any:
            return from_outside(super().scatter, *args, **kwargs)

        def gather(self, *args: Any, **kwargs: Any) -> Any:
            return from_outside(super().gather, *args, **kwargs)

    return TaskClient


class _Seat:
    """Stands where `distributed.secede` and `rejoin` expect the pool of threads that the task runs in."""

    def __init__(self, worker: Worker) -> None:
        self._worker = worker
        self._threads = self
        self._rejoin_lock = threading.Lock()
        self._rejoin_list: list[tuple[Any, threading.Event]] = []

    def remove(self, thread: Any) -> None:
        self._worker.secede()

    def add(self, thread: Any) -> None:
        pass

    def _adjust_thread_count(self) -> None:
        pass

    def submit(self, function: Any) -> None:
        # The place is not taken again: as many tasks as the pool has processes run in any case.
        while self._rejoin_list:
            self._rejoin_list.pop()[1].set()


def worker_here() -> Worker | None:
    """The worker whose task this thread runs."""
    return getattr(_here, "worker", None)


def run_at(place: Place, function: Callable[[], Any]) -> Any:
    """Call `function()` as a task that Dask brought to that place."""
    _here.worker = Worker(place)
    try:
        # What is announced in a context of its own goes with it.
        return contextvars.copy_context().run(_run, function)
    finally:
        _here.worker = None
        if "distributed" in sys.modules:
            _withdraw()


def _run(function: Callable[[], Any]) -> Any:
    if "distributed" in sys.modules:
        _announce()
    elif not any(isinstance(finder, _Finder) for finder in sys.meta_path):
        sys.meta_path.insert(0, _Finder())  # type: ignore[arg-type]
    return function()


class _Finder:
    """Has distributed know of the task as soon as it was imported. It stays until then: many only ask whether there is
    such a package."""

    def __init__(self) -> None:
        self._thread = 0  # that asks the other finders

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> Any:
        if name != "distributed" or self._thread == threading.get_ident():
            return None
        self._thread = threading.get_ident()
        try:
            spec = importlib.util.find_spec(name)
        finally:
            self._thread = 0
        if spec is not None and spec.loader is not None:
            execute = spec.loader.exec_module

            def execute_and_announce(module: Any) -> None:
                with contextlib.suppress(ValueError):
                    sys.meta_path.remove(self)  # type: ignore[arg-type]
                execute(module)
                _announce()

            spec.loader.exec_module = execute_and_announce  # type: ignore[method-assign]
        return spec


def _announce() -> None:
    """Put the task where distributed looks for that of a thread."""
    worker = worker_here()
    if worker is None:
        return
    import time

    from distributed import threadpoolexecutor, utils
    from distributed import worker as of_workers

    state = utils.thread_state
    state.execution_state = {"worker": worker}
    state.key = worker.get_current_task()
    state.start_time = time.time()
    threadpoolexecutor.thread_state.executor = _Seat(worker)
    variable = getattr(of_workers, "_worker_cvar", None)  # newer versions look there, older ones in the state
    if variable is not None:
        variable.set(worker)


def _withdraw() -> None:
    from distributed import threadpoolexecutor, utils

    for state, names in (
        (utils.thread_state, ("execution_state", "key", "start_time")),
        (threadpoolexecutor.thread_state, ("executor", "proceed")),
    ):
        for name in names:
            state.__dict__.pop(name, None)
