"""What the machines of a cluster do with the batches of a `Parallel` call: each runs them in Shoal's own pool.

The engines that reach other machines (`_dask.py`, `_mpi.py`) carry bytes: a batch is pickled once in the caller and
unpickled in the process that runs it, and so is its result on the way back. What is in between (a worker of Dask, a
rank of MPI) needs none of the caller's modules, and outlives whatever a task does to the process that runs it.
"""

from __future__ import annotations

import _pickle
import functools
import threading

from shoal.joblib import _workers
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
    """A pickled batch: what carries it further puts its bytes beside its own pickle, not into it."""

    def __init__(self, data: Any) -> None:
        self.data = data  # anything with the buffer interface

    def __reduce_ex__(self, protocol: Any) -> Any:
        return Payload, (_pickle.PickleBuffer(self.data) if protocol >= 5 else bytes(self.data),)


class Apart:
    """Stands in a task for an argument that travels by itself."""

    def __init__(self, number: int) -> None:
        self.number = number


# --------------------------------------------------------------------- in the caller


def pack(batch: Callable[[], Any], apart: Callable[[Any], Apart | None] | None = None) -> Payload:
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
    return Payload(_pickling.dumps_for_foreign_main(batch, None))


def unpack(data: bytes) -> Any:
    """What a batch returned; raises what it raised, with the remote traceback as its cause."""
    from shoal import _pickling

    done, value = _pickling.loads(data, None)
    if not done:
        raise value
    return value


# --------------------------------------------------------------------- on the node


def run(
    call: str,
    jobs: int,
    nesting_level: int,
    threads: int | None,
    payloads: Sequence[Payload],
    values: Mapping[int, Any] = _NONE,
) -> list[bytes]:
    """Have some batches run by the node's pool, and wait for all of them.

    call: names the call of Parallel, for `abandon`. jobs: processes of the pool; the same for all who use it.
    threads: of the numerical libraries in each; None: the cpus shared out.
    values: what travelled apart, by its numbers.
    """
    sharing = None
    if values:
        from shoal.joblib._arrays import Sharing

        sharing = Sharing(_ARRAYS, "r")
    use = _workers.Use(_workers.get_crew(jobs, nesting_level, threads=threads))
    with _lock:
        _uses.setdefault(call, set()).add(use)
    try:
        futures = [use.submit(functools.partial(_run_packed, payload, values), None, sharing) for payload in payloads]
        return [_wait(future) for future in futures]
    finally:
        with _lock:
            uses = _uses.get(call, set())
            uses.discard(use)
            if not uses:
                _uses.pop(call, None)
        use.end()
        if sharing is not None:
            sharing.end()


def _wait(future: _workers.Future) -> bytes:
    try:
        result: bytes = future.result()
        return result
    except Exception as error:  # its process died, or the call was abandoned
        return _pack_failure(error)


def abandon(call: str) -> None:
    """Nobody wants the results of a call any more: what runs is ended."""
    with _lock:
        uses = list(_uses.get(call, ()))
    for use in uses:
        use.abort()


# --------------------------------------------------------------------- in a process of the node's pool


def _run_packed(payload: Payload, values: Mapping[int, Any]) -> bytes:
    from shoal import _pickling

    try:
        batch = _pickling.loads(payload.data, None)
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
