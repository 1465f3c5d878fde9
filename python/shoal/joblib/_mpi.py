"""`parallel_config(backend="mpi")`: batches go to the ranks of an MPI program, each of which has them run by Shoal's
own pool on its machine (`_node.py`).

    mpiexec -n 5 python -m mpi4py.futures script.py

runs the script in rank 0; the other ranks wait for work. mpi4py's executor does the rest. A rank does one thing at a
time, so as many batches as its pool has processes go to it together. A thread collects them: the first ones of a call
come one by one, and a rank that got a single batch would be taken.
"""

from __future__ import annotations

import functools
import os
import sys
import threading
import uuid
from collections import deque
from collections.abc import Callable
from typing import Any

from shoal.joblib import _node
from shoal.joblib._backends import AutoBatchingMixin, ParallelBackendBase
from shoal.joblib._cpus import cpu_count

try:
    from mpi4py import MPI
    from mpi4py.futures import MPIPoolExecutor
except (ImportError, RuntimeError) as error:  # RuntimeError: there is mpi4py, but no MPI library
    raise ImportError(
        f"The back-end 'mpi' needs the package mpi4py and an MPI library, such as Open MPI: {error}"
    ) from error

_START = "start the program with: mpiexec -n RANKS python -m mpi4py.futures SCRIPT"
_MORE = 0.002  # seconds without another batch after which a rank gets what there is

_lock = threading.Lock()
_executor: Any = None


def _find_executor() -> Any:
    """The program's executor on all its ranks but the first."""
    global _executor
    if MPI.COMM_WORLD.Get_size() < 2:
        raise RuntimeError(f"The back-end 'mpi' has no rank to send work to: {_START}, with RANKS at least 2")
    if "mpi4py.futures" not in sys.orig_argv:
        raise RuntimeError(
            f"The back-end 'mpi' finds that every rank runs the program, and none waits for work: {_START}; or pass "
            "the executor of an MPICommExecutor: parallel_config('mpi', executor=executor)"
        )
    with _lock:
        if _executor is None:
            _executor = MPIPoolExecutor(main=False)  # tasks are unpickled elsewhere, so no rank needs the script
        return _executor


# --------------------------------------------------------------------- on a rank


def _count_jobs() -> int:
    """How many processes the pool of this rank is to have: its share of the machine's cpus."""
    cpus = cpu_count()
    if cpus < (os.cpu_count() or 1):  # bound to some of them: its own
        return cpus
    here = os.environ.get("OMPI_COMM_WORLD_LOCAL_SIZE") or os.environ.get("MPI_LOCALNRANKS") or "1"
    return max(cpus // max(int(here), 1), 1)


def _run_on_rank(
    call: str,
    jobs: int,
    nesting_level: int,
    threads: int | None,
    path: list[str],
    limits: _node.Limits,
    payloads: list[_node.Payload],
) -> list[list[bytes]]:
    sys.path += [entry for entry in path if entry not in sys.path]  # where tasks find the program's modules
    if threads is None:
        threads = max(_count_jobs() // jobs, 1)
    return _node.run(call, jobs, nesting_level, threads, payloads, limits=limits)


# --------------------------------------------------------------------- in rank 0


class MPIBackend(AutoBatchingMixin, ParallelBackendBase):
    """The ranks of an MPI program, with a pool of Shoal's each.

    executor: an mpi4py executor to use; by default that of `python -m mpi4py.futures`.
    jobs_per_rank: processes of each rank's pool; by default the cpus of its machine shared out among its ranks there.

    A batch that has been handed to a rank is not ended when the call fails: the rank is free again when it is done.

    RuntimeError: there are no ranks to send work to. ImportError, where it is registered: no mpi4py, or no MPI.
    """

    supports_retrieve_callback = True
    supports_inner_max_num_threads = True
    supports_limits = True
    default_n_jobs = -1

    def __init__(
        self,
        executor: Any = None,
        jobs_per_rank: int | None = None,
        nesting_level: int | None = None,
        inner_max_num_threads: int | None = None,
    ) -> None:
        super().__init__(nesting_level=nesting_level, inner_max_num_threads=inner_max_num_threads)
        if jobs_per_rank is not None and jobs_per_rank < 1:
            raise ValueError(f"jobs_per_rank must be at least 1, not {jobs_per_rank}")
        self._executor = executor if executor is not None else _find_executor()
        self._jobs = jobs_per_rank or 0  # 0: not asked yet
        self._ranks = 0
        self._sender: _Sender | None = None
        self._n_jobs = 0

    def effective_n_jobs(self, n_jobs: int | None) -> int:
        """As many as are asked for, and no more than the ranks' pools have processes together."""
        if n_jobs == 0:
            raise ValueError("n_jobs == 0 in Parallel has no meaning")
        if not self._ranks:
            self._ranks = self._executor.num_workers
        if not self._jobs:
            self._jobs = self._executor.submit(_count_jobs).result()
        total = self._ranks * self._jobs
        if n_jobs is None or n_jobs < 0:
            # At least 2: a single job would be done by rank 0.
            return max(total + 1 + (n_jobs or -1), 2 if n_jobs in (None, -1) else 1)
        return min(n_jobs, max(total, 2))

    def configure(self, n_jobs: int = 1, parallel: Any = None, **options: Any) -> int:  # type: ignore[override]
        self.parallel = parallel
        self._n_jobs = self.effective_n_jobs(n_jobs)
        return self._n_jobs

    def start_call(self) -> None:
        self._sender = _Sender(self, self._n_jobs)

    def stop_call(self) -> None:
        sender, self._sender = self._sender, None
        if sender is not None:
            sender.end()

    def terminate(self) -> None:
        self.reset_batch_stats()

    def submit(self, func: Callable[[], Any], callback: Callable[[Any], Any] | None = None) -> Any:
        sender = self._sender
        if sender is not None:  # else the call was given up just now
            sender.put(_node.pack(func, _node.Limits.of(self.parallel)), callback)

    def retrieve_result_callback(self, out: Any) -> Any:
        if isinstance(out, BaseException):
            raise out
        return _node.unpack(out)

    def abort_everything(self, ensure_ready: bool = True) -> None:
        self.stop_call()
        if ensure_ready:
            self.start_call()


class _Sender:
    """Hands the batches of one call to ranks that are free."""

    def __init__(self, backend: MPIBackend, limit: int) -> None:
        self._submit, self._rank_jobs, self._free = backend._executor.submit, backend._jobs, backend._ranks
        self._fixed = (
            uuid.uuid4().hex, backend._jobs, backend.nesting_level or 0, backend.inner_max_num_threads, list(sys.path),
            _node.Limits.of(backend.parallel),
        )  # fmt: skip
        self._limit = limit  # batches that may be out
        self._out: dict[Any, int] = {}  # a future -> how many batches it has
        self._pending: deque[tuple[_node.Payload, Any]] = deque()
        self._over = False
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._send, name="shoal-mpi", daemon=True)
        self._thread.start()

    def put(self, payload: _node.Payload, callback: Any) -> None:
        with self._changed:
            self._pending.append((payload, callback))
            self._changed.notify()

    def end(self) -> None:
        """What is not with a rank yet is dropped; what comes back now is not told of."""
        with self._changed:
            self._over = True
            self._pending.clear()
            self._changed.notify()
            out = list(self._out)
        for future in out:
            future.cancel()
        if threading.current_thread() is not self._thread:
            self._thread.join()

    def _send(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._over or (self._pending and self._free and self._left() > 0))
                if self._over:
                    return
                count = -1
                while len(self._pending) not in (count, 0) and len(self._pending) < self._rank_jobs * self._free:
                    count = len(self._pending)
                    self._changed.wait_for(lambda before=count: self._over or len(self._pending) > before, _MORE)  # type: ignore[misc]
                if self._over:
                    return
                even = -(-len(self._pending) // self._free)
                size = min(self._rank_jobs, self._left(), max(even, 1))
                group = [self._pending.popleft() for _ in range(size)]
                self._free -= 1
                try:
                    future = self._submit(_run_on_rank, *self._fixed, [payload for payload, _ in group])
                except RuntimeError as error:  # shut down, or broken
                    self._over = True
                    failure: BaseException = error
                    break
                self._out[future] = size
            future.add_done_callback(functools.partial(self._done, [callback for _, callback in group]))
        for _, callback in [*group, *self._pending]:
            callback(failure)

    def _left(self) -> int:
        """How many more batches may be out."""
        return self._limit - sum(self._out.values())

    def _done(self, callbacks: list[Any], future: Any) -> None:
        with self._changed:
            self._out.pop(future, None)
            self._free += 1
            over = self._over
            self._changed.notify()
        if over or future.cancelled():
            return
        error = future.exception()
        for callback, out in zip(callbacks, [error] * len(callbacks) if error else future.result(), strict=True):
            callback(out)
