"""`parallel_config(backend="dask")`: batches go to the workers of a Dask cluster, each of which has them run by Shoal's
own pool on its machine (`_node.py`).

Dask does what it is there for: it knows the machines, moves data, gives out again what was lost with a worker. The
pool of a worker has a process for each of the worker's threads, which wait for it: so tasks run in parallel whatever
they do with the interpreter's lock, and one that crashes takes only its own batch with it.
"""

from __future__ import annotations

import asyncio
import contextlib
import pickle
import queue
import threading
import uuid
import weakref
from collections.abc import Callable, Iterator
from typing import Any

from shoal.joblib import _around, _dask_task, _in_worker, _node
from shoal.joblib._backends import AutoBatchingMixin, ParallelBackendBase
from shoal.joblib._batches import BatchedCalls
from shoal.joblib._config import Later

try:
    import distributed
    from dask.sizeof import sizeof
except ImportError as error:
    raise ImportError("The back-end 'dask' needs the packages dask and distributed: pip install distributed") from error

_WORTH_A_NAME = 1000  # bytes above which what is an argument a second time travels apart from then on; as joblib's
_NEVER_APART = (int, float, complex, str, bytes, bool, type(None), list, tuple, dict, set, frozenset, type)


def _probe() -> None:
    """A task that shows that there is a worker."""


def _run_on_worker(
    call: str,
    depth: int,
    threads: int | None,
    limits: _node.Limits,
    payload: _node.Payload,
    numbers: list[int],
    *values: Any,
) -> list[bytes]:
    """A batch, in a thread of a Dask worker.

    depth: in how many tasks, one in the other, the call was made; each depth has a pool of its own.
    values: what travelled apart, under these numbers.
    """
    worker = distributed.get_worker()
    jobs = worker.state.nthreads
    known = dict(zip(numbers, values, strict=True))
    with _Seat(depth) as seat:
        place = _find_place(worker, seat.name)
        return _node.run(call, jobs, depth, threads, [payload], known, limits, place, seat.attend, seat.done)[0]


def _find_place(worker: Any, seat: str) -> _dask_task.Place | None:
    """What a process of the pool must know to be a part of the cluster; None: it cannot be, as this very process is
    all of it."""
    scheduler = worker.scheduler.address
    if scheduler.startswith("inproc:"):
        return None
    return _dask_task.Place(
        scheduler=scheduler,
        address=worker.address,
        name=worker.name,
        threads=worker.state.nthreads,
        directory=worker.local_directory,
        key=worker.get_current_task(),
        seat=seat,
        security=pickle.dumps(worker.security) if scheduler.startswith("tls:") else None,
    )


class _Seat:
    """A thread of a Dask worker while it waits for the batch that it brought to the pool.

    A batch that waits for calls of its own leaves the thread's place to them: they may have no other. The threads that
    wait for the same pool do so too, as their batches may be behind it; so the places that are taken are always those
    of batches whose processes get on.
    """

    def __init__(self, depth: int) -> None:
        self.name = uuid.uuid4().hex
        self.depth = depth
        self.has_calls = False  # its batch waits, or has waited, for calls of its own
        self.events: queue.SimpleQueue[str] = queue.SimpleQueue()
        self._has_seceded = False

    def __enter__(self) -> _Seat:
        with _seats_lock:
            is_behind = any(other.has_calls and other.depth == self.depth for other in _seats.values())
            _seats[self.name] = self
        if is_behind:
            self._secede()
        return self

    def __exit__(self, *details: object) -> None:
        with _seats_lock:
            del _seats[self.name]

    def done(self, future: Any) -> None:
        self.events.put("done")

    def attend(self, parts: int) -> None:
        while parts:
            if self.events.get() == "done":
                parts -= 1
            else:
                self._secede()

    def _secede(self) -> None:
        if not self._has_seceded:
            self._has_seceded = True
            with contextlib.suppress(AttributeError, KeyError):  # no thread of those that Dask counts
                distributed.secede()


_seats: dict[str, _Seat] = {}
_seats_lock = threading.Lock()


def give_up_seat(name: str) -> None:
    """In a Dask worker: the batch that this seat waits for has begun to wait itself."""
    with _seats_lock:
        seat = _seats.get(name)
        if seat is None:
            return
        seat.has_calls = True
        for other in _seats.values():
            if other.depth == seat.depth:
                other.events.put("secede")


def _name_of(batch: Callable[[], Any]) -> str:
    """What Dask's dashboard and logs call a batch; the names are those that joblib's back-end gives."""
    if not isinstance(batch, BatchedCalls) or not batch.items:
        return "batch"
    names = [_around.name_of_task(item) for item in batch.items]
    kind = "batch" if len(set(names)) == 1 else "mixed_batch"
    # Up to the first "-" is what Dask shows as one kind of task.
    return f"{kind}_of_{names[0].replace('-', '_')}_{len(names)}_calls"


async def _abandon(call: str) -> None:
    await asyncio.to_thread(_node.abandon, call)


class DaskDistributedBackend(AutoBatchingMixin, ParallelBackendBase):
    """The workers of a Dask cluster, with a pool of Shoal's each.

    client: the `distributed.Client` to use; by default that of this place, or one for `scheduler_host`, an address.
    scatter: a list of objects that tasks get as arguments and that all workers are sent beforehand, once. Others above
    `max_nbytes`, and smaller ones that many tasks have, go to the workers that need them, once a call.
    wait_for_workers_timeout: seconds to wait for a first worker where there is none; then TimeoutError.
    submit_kwargs: for `Client.submit`: `resources`, `priority`, `workers`, `retries` …

    ValueError: there is no client.
    """

    MAX_IDEAL_BATCH_DURATION = 1.0
    supports_retrieve_callback = True
    supports_inner_max_num_threads = True
    supports_limits = True
    default_n_jobs = -1

    def __init__(
        self,
        scheduler_host: Any = None,
        scatter: Any = None,
        client: Any = None,
        loop: Any = None,
        wait_for_workers_timeout: float | None = 10,
        nesting_level: int | None = None,
        inner_max_num_threads: int | None = None,
        **submit_kwargs: Any,
    ) -> None:
        super().__init__(nesting_level=nesting_level, inner_max_num_threads=inner_max_num_threads)
        if scatter is not None and not isinstance(scatter, (list, tuple)):
            raise TypeError(f"scatter must be a list/tuple, got `{type(scatter).__name__}`")
        self.client = client if client is not None else _find_client(scheduler_host, loop)
        self.wait_for_workers_timeout = wait_for_workers_timeout
        self.submit_kwargs = submit_kwargs
        self._limit: int | None = 1 << 20
        self._call = ""
        self._depth = _in_worker.level
        self._lock = threading.Lock()
        self._out: weakref.WeakSet[Any] = weakref.WeakSet()
        self._scattered: list[Any] = list(scatter or ())  # held, so that their ids stay theirs
        futures = self.client.scatter(self._scattered, broadcast=True) if self._scattered else []
        self._everywhere = {id(value): future for value, future in zip(self._scattered, futures, strict=True)}
        self._apart: dict[
            int, tuple[Any, Any]
        ] = {}  # by id of a living object: a weak reference, and its future, or None

    def __reduce__(self) -> Any:
        return DaskDistributedBackend, ()

    # -- how many --

    def effective_n_jobs(self, n_jobs: int | None) -> int:
        """The threads of all workers, however many are asked for: Dask decides. At least 2, as a single job would be
        done here and not by the cluster."""
        total = self._count_threads()
        if total == 0 and self.wait_for_workers_timeout:
            # A task, not a look: a cluster that grows with its work starts a worker for it.
            try:
                self.client.submit(_probe, key=f"shoal-probe-{uuid.uuid4().hex}").result(
                    timeout=self.wait_for_workers_timeout
                )
            except (TimeoutError, distributed.TimeoutError) as error:
                wait = self.wait_for_workers_timeout
                raise TimeoutError(
                    f"DaskDistributedBackend has no worker after {wait} seconds. Start workers that can reach the "
                    "scheduler, or wait longer for them: "
                    f"parallel_config(backend='dask', wait_for_workers_timeout={max(10, 2 * wait)})"
                ) from error
            total = self._count_threads()
        return max(total, 2) if total else 0

    def _count_threads(self) -> int:
        return sum(self.client.nthreads().values())

    def get_nested_backend(self) -> tuple[Any, int | None]:
        # Calls in tasks go to the cluster again. Of level 0, as with joblib: where it is that counts levels, not depth.
        return Later(_node.make_nested_dask, 0), -1

    # -- a call --

    def configure(  # type: ignore[override]
        self, n_jobs: int = 1, parallel: Any = None, max_nbytes: int | None = 1 << 20, **options: Any
    ) -> int:
        self.parallel = parallel
        self._limit = max_nbytes
        return self.effective_n_jobs(n_jobs)

    def start_call(self) -> None:
        self._call = uuid.uuid4().hex

    def stop_call(self) -> None:
        with self._lock:
            self._apart.clear()

    def terminate(self) -> None:
        self.reset_batch_stats()

    def submit(self, func: Callable[[], Any], callback: Callable[[Any], Any] | None = None) -> Any:
        futures: dict[int, Any] = {}
        limits = _node.Limits.of(self.parallel)
        payload = _node.pack(func, limits, lambda value: self._put_apart(value, futures))
        future = self.client.submit(
            _run_on_worker,
            self._call,
            self._depth,
            self.inner_max_num_threads,
            limits,
            payload,
            list(futures),
            *futures.values(),
            key=f"{_name_of(func)}-{uuid.uuid4().hex}",
            pure=False,
            **self.submit_kwargs,
        )
        self._out.add(future)
        if callback is not None:
            future.add_done_callback(callback)
        return future

    def retrieve_result_callback(self, out: Any) -> Any:
        return _node.unpack(out.result())

    def abort_everything(self, ensure_ready: bool = True) -> None:
        call, self._call = self._call, uuid.uuid4().hex
        with contextlib.suppress(Exception):  # the cluster may be what failed
            self.client.cancel(list(self._out), asynchronous=False)
            # Dask lets a task that runs go on; the pool that is at it can end it.
            self.client.run(_abandon, call, wait=False, on_error="ignore")

    @contextlib.contextmanager
    def retrieval_context(self) -> Iterator[None]:
        """In a task of Dask: while it waits for its results another may have its thread, or these might never run."""
        try:
            worker = distributed.get_worker()
        except ValueError:
            yield
            return
        if isinstance(worker, _dask_task.Worker):
            worker.secede()
            yield
            return
        distributed.secede()
        try:
            yield
        finally:
            distributed.rejoin()

    # -- large arguments --

    def _put_apart(self, value: Any, futures: dict[int, Any]) -> _node.Apart | None:
        """What stands for an argument that goes to the workers by itself, whose future is put to `futures`."""
        future = self._everywhere.get(id(value))
        if future is None:
            future = self._scatter(value)
        if future is None:
            return None
        futures[id(value)] = future
        return _node.Apart(id(value))

    def _scatter(self, value: Any) -> Any:
        if self._limit is None or isinstance(value, _NEVER_APART):
            return None
        number = id(value)
        with self._lock:
            reference, future = self._apart.get(number, (None, None))
            is_known = reference is not None and reference() is value
            if is_known and future is not None:
                return future
            try:
                size = sizeof(value)
                if size <= min(self._limit, _WORTH_A_NAME):
                    return None
                if not is_known:
                    reference = weakref.ref(value, lambda _: self._apart.pop(number, None))
            except Exception:  # of which nobody can tell when it is gone, or how large it is
                return None
            if is_known or size > self._limit:
                future = self.client.scatter(value, hash=False)
            self._apart[number] = (reference, future)
            return future


def _find_client(scheduler_host: Any, loop: Any) -> Any:
    if scheduler_host:
        return distributed.Client(scheduler_host, loop=loop, set_as_default=False)
    try:
        return distributed.get_client()
    except ValueError as error:
        raise ValueError(
            "To use Joblib with Dask first create a Dask Client\n\n"
            "    from dask.distributed import Client\n    client = Client()\nor\n"
            "    client = Client('scheduler-address:8786')"
        ) from error
