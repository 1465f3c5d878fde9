"""Large arrays among the arguments of a call of `Parallel`: stored once in shared memory, views in the workers.

What joblib does with memory-mapped files, in memory files without a name: an array above `max_nbytes` is written to one
when the first task that has it is pickled, and the tasks carry its descriptor's number in this process. A worker opens
it through /proc, checks that it is that file, and maps it as `mmap_mode` says; its array is a `numpy.memmap`. What is
mapped stays whole for as long as somebody has it, whatever becomes of this process. Of very large arrays several
threads write parts, to a file each (binding/files.c); the parts are mapped one behind the other.

A file lives as long as tasks of the call may need it. That of an array which is still there after the call is kept some
seconds longer: if the same array comes again, and its digest says that nothing has changed, nothing is written.
"""

from __future__ import annotations

import functools
import math
import os
import time
import weakref

TYPE_CHECKING = False  # typing costs each start of a worker more than the rest of this file
if TYPE_CHECKING:
    from typing import Any

KEPT = 10.0  # seconds that the file of a living array is kept after the call
_BESIDE = 1 << 16  # bytes from which buffers travel beside the pickle
_PART = 1 << 25  # bytes from which a part of an array is worth a file and a thread of its own
_PARTS = 8

# By id of the array, which is alive: files of calls that have ended. Without a lock, as the collector may end a call at
# any moment, in any thread: whoever takes a segment out has it for itself.
_kept: dict[int, _Segment] = {}


class _Segment:
    """Memory files with one array's bytes."""

    def __init__(self, array: Any) -> None:
        from shoal import _engine

        self.kind, data = _parts_of(array)
        self.files: list[tuple[int, int]] = []  # descriptor, inode
        try:
            parts = min(len(os.sched_getaffinity(0)), _PARTS, array.nbytes // _PART)
            for _ in range(max(parts, 1)):
                fd = os.memfd_create("shoal-array")
                self.files.append((fd, os.fstat(fd).st_ino))
            self.digest: bytes = _engine.write_files(data, [fd for fd, _ in self.files])
        except BaseException:
            self.close()
            raise
        self.array = weakref.ref(array)
        self.until = 0.0  # when kept: until then

    def holds(self, array: Any) -> bool:
        """Whether this is what the array is like now."""
        from shoal import _engine

        kind, data = _parts_of(array)
        return kind == self.kind and _engine.digest_bytes(data) == self.digest

    def close(self) -> None:
        files, self.files = self.files, []
        for fd, _ in files:
            os.close(fd)

    __del__ = close


def _parts_of(array: Any) -> tuple[tuple[Any, ...], Any]:
    """What an array is beside its bytes (type, shape, order), and these in order."""
    import numpy

    order = "F" if array.flags.f_contiguous and not array.flags.c_contiguous else "C"
    contiguous = numpy.ascontiguousarray(array.T if order == "F" else array)
    return (array.dtype, array.shape, order), contiguous.reshape(-1).view(numpy.uint8)


class Sharing:
    """The arrays of one call.

    limit: bytes above which an array is shared. mode: as numpy.memmap's.
    """

    def __init__(self, limit: int, mode: str) -> None:
        self._limit = limit
        self._mode = mode
        self._reuses = mode in ("r", "c")  # nobody can have written to the files
        self._segments: dict[int, _Segment] = {}  # by id of the array, which is alive
        self._loose: list[tuple[int, _Segment]] = []  # their arrays died when so many tasks had been made
        self._deaths: list[_Segment] = []  # told by the collector, at any moment
        self.made = 0  # tasks so far

    # -- pickling --

    def table(self, common: dict[type, Any]) -> dict[type, Any]:
        """Reducers by type for what has arrays."""
        import numpy

        return {**common, numpy.ndarray: self._reduce, numpy.memmap: self._reduce_memmap}

    def _reduce_memmap(self, array: Any) -> Any:
        return reduce_file(array) or self._reduce(array)

    def _reduce(self, array: Any) -> Any:
        if array.nbytes <= self._limit or array.dtype.hasobject:
            if array.nbytes >= _BESIDE and not (array.flags.c_contiguous or array.flags.f_contiguous):
                import numpy

                array = numpy.ascontiguousarray(
                    array
                )  # goes beside the pickle; one with gaps goes into it, copied twice
            return array.__reduce_ex__(5)
        if (file := reduce_file(array)) is not None:
            return file
        try:
            segment = self._segment(array)
        except OSError:  # too many descriptors, or no memory for files: it goes with the task
            return array.__reduce_ex__(5)
        return load, (os.getpid(), tuple(segment.files), *segment.kind, self._mode)

    def _segment(self, array: Any) -> _Segment:
        number = id(array)
        segment = self._segments.get(number)
        if segment is not None and segment.array() is array:
            return segment
        segment = _kept.pop(number, None)
        if segment is not None and not (segment.array() is array and self._reuses and segment.holds(array)):
            segment.close()
            segment = None
        if segment is None:
            segment = _Segment(array)
        dead = self._deaths
        one = segment
        segment.array = weakref.ref(array, lambda _: dead.append(one))
        self._segments[number] = segment
        return segment

    # -- the life of the files --

    def received(self, results: int) -> None:
        """So many results are there, of the first tasks: files of dead arrays that no other task has can go."""
        while (segment := _take_last(self._deaths)) is not None:
            for number, known in list(self._segments.items()):
                if known is segment:
                    self._segments.pop(number, None)
            self._loose.append((self.made, segment))
        if self._loose:
            for made, segment in list(self._loose):
                if made <= results:
                    segment.close()
            self._loose = [entry for entry in self._loose if entry[0] > results]

    @property
    def has_deaths(self) -> bool:
        return bool(self._deaths or self._loose)

    def end(self) -> None:
        """The call is over: no task will be decoded any more."""
        self.received(self.made)
        until = time.monotonic() + KEPT
        segments, self._segments = self._segments, {}  # another thread may be pickling a task of it in vain
        for number, segment in segments.items():
            array = segment.array()
            if array is None or not self._reuses:
                segment.close()
                continue
            segment.array = weakref.ref(array, functools.partial(_forget, number))
            segment.until = until
            old = _kept.pop(number, None)
            if old is not None and old is not segment:
                old.close()
            if _kept.setdefault(number, segment) is not segment:  # another call of the same array was quicker
                segment.close()
        if segments:
            from shoal.joblib import _workers

            _workers.look_after(KEPT)


def _take_last(segments: list[_Segment]) -> _Segment | None:
    try:
        return segments.pop()
    except IndexError:  # another thread, or the collector, was quicker
        return None


def _forget(number: int, dead: object) -> None:
    # Called by the collector.
    segment = _kept.pop(number, None)
    if segment is not None:
        segment.close()


def expire(now: float) -> float | None:
    """Close the files that were kept long enough; seconds until the next one is due."""
    wait = None
    for number, segment in list(_kept.items()):
        if segment.until > now:
            wait = min(wait, segment.until - now) if wait is not None else segment.until - now
        elif (taken := _kept.pop(number, None)) is not None:
            taken.close()
    return wait


def _forget_all() -> None:
    # In a child of fork: the numbers are its own, but not what its parent told its workers.
    _kept.clear()


os.register_at_fork(after_in_child=_forget_all)


# ---------------------------------------------------------------- arrays in the user's files


def _memmap_below(array: Any) -> Any:
    """The memmap whose memory an array is a view of, or None."""
    import numpy

    below = array
    while below is not None:
        if isinstance(below, numpy.memmap) and getattr(below, "_mmap", None) is not None:
            base = below.base
            if not isinstance(base, numpy.ndarray):
                return below
        below = getattr(below, "base", None)
    return None


def reduce_file(array: Any) -> Any:
    """How to make an array again that is a view of a file which is mapped as such, by its name; None: it is not one.

    One that is mapped for copy on write is none either: what was changed is not in the file.
    """
    below = _memmap_below(array)
    if below is None or below.filename is None or below.mode == "c" or array.dtype.hasobject:
        return None
    if str(below.filename).startswith("/proc/"):
        return None  # one of ours: the file may be gone before the other side opens it
    start = array.__array_interface__["data"][0] - below.__array_interface__["data"][0]
    mode = "r+" if below.mode == "w+" else below.mode
    if start < 0 or any(stride < 0 for stride in array.strides):
        return None
    return load_file, (str(below.filename), mode, below.offset + start, array.dtype, array.shape, array.strides)


def load_file(filename: str, mode: str, offset: int, dtype: Any, shape: Any, strides: Any) -> Any:
    import numpy

    # Of views with gaps as many bytes as they span.
    span = dtype.itemsize + sum((count - 1) * stride for count, stride in zip(shape, strides, strict=True) if count)
    if 0 in shape:
        return numpy.empty(shape, dtype)
    below = numpy.memmap(filename, numpy.uint8, mode, offset, (span,))  # type: ignore[call-overload]
    array = numpy.ndarray.__new__(numpy.memmap, shape, dtype, below, 0, strides)
    array.filename, array.offset, array.mode = below.filename, offset, mode  # type: ignore[attr-defined]
    return array


# --------------------------------------------------------------------------- in a worker

_loaded: weakref.WeakValueDictionary[tuple[Any, ...], Any] = weakref.WeakValueDictionary()
_results_registered = False


def load(pid: int, files: tuple[tuple[int, int], ...], dtype: Any, shape: Any, order: str, mode: str) -> Any:
    """Map an array that the process `pid` has stored in `files` (its descriptors, and their inodes)."""
    import numpy

    from shoal import _engine

    _register_results()
    mode = "r+" if mode == "w+" else mode  # as in joblib: its contents are there already
    key = (pid, files, shape, dtype.str, order, mode)
    known = _loaded.get(key) if mode != "c" else None  # each one's own copy
    if known is not None:
        return known.view()
    ours: list[int] = []
    try:
        for fd, inode in files:
            path = f"/proc/{pid}/fd/{fd}"
            ours.append(os.open(path, os.O_RDWR | os.O_CLOEXEC))
            if os.fstat(ours[-1]).st_ino != inode:
                raise OSError(f"{path} is not the array that the task was given: it was closed before the task began")
        memory = _engine.Mapping(ours, math.prod(shape) * dtype.itemsize, mode)
    finally:
        for fd in ours:
            os.close(fd)
    array = numpy.ndarray.__new__(numpy.memmap, shape, dtype, memory, 0, None, order)  # type: ignore[call-overload, arg-type]
    array._mmap, array.filename, array.offset, array.mode = memory, path, 0, mode
    if mode != "c":
        _loaded[key] = array
        return array.view()
    return array


def _register_results() -> None:
    """A result that is such a view goes back as an array: nobody else can open what it is a view of."""
    global _results_registered
    if not _results_registered:
        import copyreg

        import numpy

        copyreg.pickle(numpy.memmap, _reduce_result)  # type: ignore[arg-type]
        _results_registered = True


def _reduce_result(array: Any) -> Any:
    import numpy

    return reduce_file(array) or numpy.asarray(array).__reduce_ex__(5)
