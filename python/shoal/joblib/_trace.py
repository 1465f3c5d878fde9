"""`Parallel(trace=True)`: what each task of the last call did when, and where.

The caller makes a memory file, a sheet, with a record of 32 bytes for each task. Whoever runs a task opens the sheet
through /proc, as with large arrays (`_arrays.py`), and writes the record when it begins and again when it ends. So a
task whose worker was killed has its beginning on the sheet, and nothing depends on how results travel.

    0    16   random bytes that the tasks carry too: a worker knows by them that it opened the right file
    32 + 32 i   task i: begun, ended (nanoseconds of CLOCK_MONOTONIC), pid, outcome, thread
"""

from __future__ import annotations

import fcntl
import mmap
import os
import struct
import threading
import time
import weakref

from shoal.joblib import _around

TYPE_CHECKING = False  # typing costs each start of a worker more than the rest of this file
if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterable, Iterator
    from typing import Any

    from shoal.joblib._around import Task

_HEAD = 32
_RECORD = struct.Struct("<qqIIQ")
_MOST = 1 << 24  # tasks of a call that have a record; later ones are not in its timeline
_RUNNING, _DONE, _RAISED = 1, 2, 3  # 0: not begun


# --------------------------------------------------------------------- in the worker


class _Sheet:
    """The sheet of one call, mapped. Who runs a task holds it meanwhile, so that it stays."""

    def __init__(self, pid: int, fd: int, token: bytes) -> None:
        own = os.open(f"/proc/{pid}/fd/{fd}", os.O_RDWR | os.O_CLOEXEC)
        try:
            if os.pread(own, len(token), 0) != token:
                raise FileNotFoundError("another file has that number now")
            self._memory = mmap.mmap(own, 0)  # all of it; sealed, so that no page goes away
        finally:
            os.close(own)
        self._room = (len(self._memory) - _HEAD) // _RECORD.size

    def write(self, index: int, *record: int) -> None:
        if index < self._room:
            _RECORD.pack_into(self._memory, _HEAD + index * _RECORD.size, *record)


_last: tuple[Any, _Sheet | None] = (None, None)


def _open(place: tuple[int, int, bytes]) -> _Sheet | None:
    """The sheet, or None where it cannot be reached: on another machine, or when its call is over."""
    global _last
    known, sheet = _last
    if known != place:
        try:
            sheet = _Sheet(*place)
        except OSError:
            sheet = None
        _last = place, sheet
    return sheet


def timed(
    function: Callable[..., Any],
    place: tuple[int, int, bytes],
    index: int,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
) -> Any:
    """Call the function and write down when it began and ended."""
    sheet = _open(place)
    if sheet is None:
        return function(*args, **kwargs)
    pid, thread = os.getpid(), threading.get_native_id()
    outcome = _RAISED
    begun = time.monotonic_ns()
    sheet.write(index, begun, 0, pid, _RUNNING, thread)
    try:
        result = function(*args, **kwargs)
        outcome = _DONE
        return result
    finally:
        sheet.write(index, begun, time.monotonic_ns(), pid, outcome, thread)


timed.is_around = True  # type: ignore[attr-defined]


# --------------------------------------------------------------------- in the caller


def _make_file() -> int:
    """A memory file for the records of as many tasks as may be; its pages take memory as they are written."""
    fd = os.memfd_create("shoal-trace", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    try:
        size = _MOST * _RECORD.size
        while True:
            try:
                os.truncate(fd, size)
                break
            except OSError:  # RLIMIT_FSIZE
                if size <= mmap.PAGESIZE:
                    raise
                size //= 2
        fcntl.fcntl(fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW)
    except BaseException:
        os.close(fd)
        raise
    return fd


_recorders: weakref.WeakSet[Recorder] = weakref.WeakSet()


def _free_locks() -> None:
    # In a child of fork: the lock of a recording of the parent's may have been held by a thread that is not here.
    for recorder in _recorders:
        recorder._lock = threading.RLock()


os.register_at_fork(after_in_child=_free_locks)


class Recorder:
    """The recording of one call; `trace` can be made from it at any time."""

    _fd = -1

    def __init__(self, label: str) -> None:
        self._label = label
        # Of the file: another thread may be looking as the call ends.
        self._lock: Any = threading.RLock()
        token = os.urandom(16)
        self._fd = _make_file()
        os.pwrite(self._fd, token, 0)
        self._place = (os.getpid(), self._fd, token)
        self._around = _around.Around(timed)
        self._names: list[str] = []
        self._positions: list[int] = []
        self._submitted: list[int] = []
        self._failed: dict[int, int] = {}  # number of a task -> when it was learnt that its worker was gone
        self._records = b""
        self.begun = time.monotonic_ns()
        self.ended = 0
        _recorders.add(self)

    def tasks(self, iterable: Iterable[Task], resume: Any) -> Iterator[Task]:
        """The tasks with the writing around them. resume: of a call with `memory`, or None."""
        around, place = self._around, self._place
        for number, task in enumerate(iterable):
            self._names.append(_around.name_of_task(task))
            self._positions.append(number if resume is None else resume.position)
            self._submitted.append(time.monotonic_ns())
            function, args, kwargs = task
            yield around.task(function, place, number, args, kwargs)

    def follow(self, output: Generator[Any, None, None]) -> Generator[Any, None, None]:
        """The results; when they are all there, or the call has failed, the recording is over."""
        try:
            yield from output
        finally:
            self.end()

    def failed(self, error: BaseException) -> None:
        """A task failed in a way that its worker could not write down."""
        item = getattr(error, "item", None)
        if isinstance(item, int):
            self._failed.setdefault(item, time.monotonic_ns())

    def end(self) -> None:
        if self._fd < 0:  # perhaps it was never made
            return
        with self._lock:
            if self._fd >= 0:
                self.ended = time.monotonic_ns()
                self._records = self._read()
                fd, self._fd = self._fd, -1
                os.close(fd)

    __del__ = end

    def _read(self) -> bytes:
        if self._fd < 0:
            return self._records
        wanted, parts, offset = min(len(self._names), _MOST) * _RECORD.size, [], _HEAD
        while wanted > 0 and (part := os.pread(self._fd, min(wanted, 1 << 24), offset)):
            parts.append(part)
            offset += len(part)
            wanted -= len(part)
        return b"".join(parts)

    def trace(self) -> Any:
        """The timeline so far."""
        from shoal.joblib._timeline import Event, Trace

        with self._lock:
            content, start = self._read(), self.begun
        now = self.ended or time.monotonic_ns()
        events = []
        for number, (name, position, submitted) in enumerate(
            zip(self._names, self._positions, self._submitted, strict=False)  # another thread may append
        ):
            begun = ended = pid = state = thread = 0
            if len(content) >= (number + 1) * _RECORD.size:
                begun, ended, pid, state, thread = _RECORD.unpack_from(content, number * _RECORD.size)
            outcome = {_RUNNING: "running", _DONE: "done", _RAISED: "raised"}.get(state, "waiting")
            if outcome == "running":
                if number in self._failed:
                    outcome, ended = "lost", self._failed[number]
                elif self.ended:  # the call was given up meanwhile
                    outcome, ended = "lost", now
                else:
                    ended = now
            at = [(moment - start) / 1e9 if moment else None for moment in (submitted, begun, ended)]
            events.append(Event(position, name, pid, thread, at[0] or 0.0, at[1], at[2], outcome))
        return Trace(self._label, os.getpid(), start, (now - start) / 1e9, events)
