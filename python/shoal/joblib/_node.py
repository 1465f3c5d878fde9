"""What the machines of a cluster do with the batches of a `Parallel` call: each runs them in Shoal's own pool.

The engines that reach other machines (`_dask.py`, `_mpi.py`) carry bytes: a batch is pickled once in the caller and
unpickled in the process that runs it, and so is its result on the way back. What is in between (a worker of Dask, a
rank of MPI) needs none of the caller's modules, and outlives whatever a task does to the process that runs it.
"""

from __future__ import annotations

import _pickle
import functools
import threading

from shoal.errors import TaskCancelled
from shoal.joblib import _in_worker, _workers
from shoal.joblib._backends import _Failed
from shoal.joblib._batches import BatchedCalls

TYPE_CHECKING = False  # typing costs each start of a worker more than the rest of this file
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from typing import Any

_ARRAYS = 1 << 20  # bytes above which an array that came by itself is shared between the processes of the node

_NONE: Any = {}

_uses: dict[str, set[_workers.Use]] = {}  # by call: the workers that are at its batches
_lock = threading.Lock()


class Payload:
    """A pickled batch: what carries it further puts its bytes beside its own pickle, not into it. In several parts
    where each task has limits of its own."""

    def __init__(self, *parts: Any) -> None:
        self.parts = parts  # of anything with the buffer interface

    def __reduce_ex__(self, protocol: Any) -> Any:
        return Payload, tuple(map(_pickle.PickleBuffer if protocol >= 5 else bytes, self.parts))


class Limits:
    """What a call of Parallel says of each of its tasks."""

    def __init__(self, task_timeout: float | None = None, retries: int = 0, return_exceptions: bool = False) -> None:
        self.task_timeout = task_timeout
        self.retries = retries
        self.return_exceptions = return_exceptions

    @classmethod
    def of(cls, parallel: Any) -> Limits:
        return cls(parallel._task_timeout, parallel._retries, parallel._return_exceptions)

    @property
    def are_set(self) -> bool:
        return self.task_timeout is not None or self.retries > 0


_NO_LIMITS = Limits()


class Apart:
    """Stands in a task for an argument that travels by itself."""

    def __init__(self, number: int) -> None:
        self.number = number


# --------------------------------------------------------------------- in the caller


def pack(
    batch: Callable[[], Any], limits: Limits = _NO_LIMITS, apart: Callable[[Any], Apart | None] | None = None
) -> Payload:
    """A batch on its way. apart: says of an argument what stands for it, where it is not to travel inside."""
    from shoal import _pickling

    if apart is not None and isinstance(batch, BatchedCalls):
        items = [
            (
                function,
                tuple(apart(value) or value for value in args),
                {name: apart(value) or value for name, value in kwargs.items()},
            )
            for function, args, kwargs in batch.items
        ]
        batch = BatchedCalls(items, (batch._backend, batch._n_jobs))
    parts = [batch]
    if limits.are_set and isinstance(batch, BatchedCalls):
        parts = [BatchedCalls([item], (batch._backend, batch._n_jobs)) for item in batch.items]
    return Payload(*(_pickling.dumps_for_foreign_main(part, None) for part in parts))


def unpack(parts: Sequence[bytes]) -> Any:
    """What a batch returned; raises what it raised, with the remote traceback as its cause."""
    from shoal import _pickling

    values = []
    for part in parts:
        done, value = _pickling.loads(part, None)
        if not done:
            raise value
        values.append(value)
    return values[0] if len(values) == 1 else [result for value in values for result in value]


# --------------------------------------------------------------------- on the node


def run(
    call: str,
    jobs: int,
    nesting_level: int,
    threads: int | None,
    payloads: Sequence[Payload],
    values: Mapping[int, Any] = _NONE,
    limits: Limits = _NO_LIMITS,
    place: Any = None,
    attend: Callable[[int], None] | None = None,
    done: Callable[[Any], object] | None = None,
) -> list[list[bytes]]:
    """Have some batches run by the node's pool, and wait for all of them. What each part of each returned, for
    `unpack`.

    call: names the call of Parallel, for `abandon`. jobs: processes of the pool; the same for all who use it.
    threads: of the numerical libraries in each; None: the cpus shared out.
    values: what travelled apart, by its numbers.
    place: the `_dask_task.Place` of the batches, where Dask brought them.
    attend: waits here until `done` was called so many times; it is called once for each part, in any thread.
    """
    sharing = None
    if values:
        from shoal.joblib._arrays import Sharing

        sharing = Sharing(_ARRAYS, "r")
    use = _workers.get_crew(jobs, nesting_level, threads=threads)
    with _lock:
        _uses.setdefault(call, set()).add(use)
    try:
        # All are handed out before the first is waited for.
        futures = [
            [
                use.submit(
                    functools.partial(_run_packed, Payload(part), values, place),
                    done,
                    sharing,
                    task_timeout=limits.task_timeout,
                    retries=limits.retries,
                )
                for part in payload.parts
            ]
            for payload in payloads
        ]
        if attend is not None:
            attend(sum(map(len, futures)))
        return [[_wait(future, limits) for future in parts] for parts in futures]
    finally:
        with _lock:
            uses = _uses.get(call, set())
            uses.discard(use)
            if not uses:
                _uses.pop(call, None)
        use.end()
        if sharing is not None:
            sharing.end()


def _wait(future: _workers.Future, limits: Limits) -> bytes:
    try:
        result: bytes = future.result()
        return result
    except Exception as error:  # its process died, it took too long, or the call was abandoned
        if limits.are_set and limits.return_exceptions and not isinstance(error, TaskCancelled):
            from shoal import _pickling

            return _pickling.dumps_for_foreign_main((True, [error]), None)
        return _pack_failure(error)


def abandon(call: str) -> None:
    """Nobody wants the results of a call any more: what runs is ended."""
    with _lock:
        uses = list(_uses.get(call, ()))
    for use in uses:
        use.abort()


# --------------------------------------------------------------------- in a process of the node's pool


def _run_packed(payload: Payload, values: Mapping[int, Any], place: Any = None) -> bytes:
    if place is not None:
        from shoal.joblib import _dask_task

        result: bytes = _dask_task.run_at(place, functools.partial(_run_packed, payload, values))
        return result
    from shoal import _pickling

    try:
        (part,) = payload.parts
        batch = _pickling.loads(part, None)
        if values:
            batch.items = [
                (
                    function,
                    tuple(_fill(value, values) for value in args),
                    {name: _fill(value, values) for name, value in kwargs.items()},
                )
                for function, args, kwargs in batch.items
            ]
        return _pickling.dumps_for_foreign_main((True, batch()), None)
    except Exception as error:
        return _pack_failure(error)


def make_nested_dask() -> Any:
    """The back-end of calls in a task that Dask brought: the cluster again, where this process can reach it."""
    from shoal.joblib import _dask_task

    if _dask_task.worker_here() is None:
        from shoal.joblib._backends import ThreadingBackend

        return ThreadingBackend(nesting_level=_in_worker.level)
    from shoal.joblib._dask import DaskDistributedBackend

    return DaskDistributedBackend(nesting_level=0)


def _fill(value: Any, values: Mapping[int, Any]) -> Any:
    return values[value.number] if type(value) is Apart else value


def _pack_failure(error: Exception) -> bytes:
    from shoal import _pickling

    failed = _Failed(error)
    try:
        packed = _pickling.dumps_for_foreign_main((False, failed), None)
        _pickling.loads(packed, None)  # some exceptions can be pickled, but not made again
        return packed
    except Exception:
        stand_in = RuntimeError(f"{type(error).__name__}: {error} (the exception itself cannot be pickled)")
        failed.error = stand_in
        return _pickling.dumps_for_foreign_main((False, failed), None)
