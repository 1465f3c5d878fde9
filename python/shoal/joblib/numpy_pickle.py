"""`dump` and `load`: any value in one file, arrays as they lie in memory. The files are joblib's, in both directions.

A file is a pickle in which a small object, the *head*, stands in each array's place; the array's bytes follow right
behind it, after one byte that says how many more bytes fill up to a multiple of 16. So only a pickler in Python can
write it. A value without arrays is an ordinary pickle, and goes through the interpreter's own pickler, which is many
times faster; a file without heads is read by the interpreter's own unpickler.
"""

from __future__ import annotations

import io
import os
import pickle
import sys
import warnings
import zlib
from typing import TYPE_CHECKING, Any

from shoal.joblib.compressor import COMPRESSORS

if TYPE_CHECKING:
    import numpy as np

__all__ = ["dump", "load"]

# The interpreter's pickler and unpickler in Python: only they can be told to do more at an object.
_PythonPickler: Any = pickle._Pickler  # type: ignore[attr-defined]
_PythonUnpickler: Any = pickle._Unpickler  # type: ignore[attr-defined]

_ALIGNMENT = 16
_BUFFER = 1 << 20  # bytes of our own buffer around a file object
_COPY = 16 << 20  # bytes of an array that are written at once where it does not lie together
_HEAD_NAME = b"NumpyArrayWrapper"
_LOOK = 1 << 18  # bytes that are looked through for it at once
_OLD_COMPRESSED = b"ZF"  # what compressed files of joblib before 0.10 begin with
_OLD_LENGTH = 19  # characters of the length that follows


class NumpyArrayHead:
    """What stands for an array in a file: under joblib's name for it, so that either reads the other's."""

    def __init__(self, array: np.ndarray[Any, Any], mappable: bool, aligned: bool) -> None:
        flags = array.flags
        self.subclass: Any = type(array)
        self.shape = array.shape
        self.order = "F" if flags.f_contiguous and not flags.c_contiguous else "C"
        self.dtype: Any = array.dtype
        self.allow_mmap = mappable and not array.dtype.hasobject
        self.numpy_array_alignment_bytes = _ALIGNMENT if aligned else None


class _HasArrays(Exception):
    pass


def _array_types() -> tuple[type, ...]:
    numpy = sys.modules.get("numpy")  # nobody has an array who has not imported it
    return () if numpy is None else (numpy.ndarray, numpy.matrix, numpy.memmap)


class _PlainPickler(pickle.Pickler):
    """The interpreter's own, which gives up at the first array."""

    def reducer_override(self, value: Any) -> Any:
        if type(value) in self.arrays:
            raise _HasArrays
        return NotImplemented

    arrays: tuple[type, ...] = ()


class _ArrayPickler(_PythonPickler):  # type: ignore[misc]
    def __init__(self, file: Any, protocol: int | None, mappable: bool) -> None:
        super().__init__(file, protocol)
        self._out = file
        self._mappable = mappable
        self._arrays = _array_types()
        try:
            file.tell()
            self._aligned = True
        except (OSError, io.UnsupportedOperation):
            self._aligned = False

    def save(self, value: Any, save_persistent_id: bool = True) -> None:
        if type(value) not in self._arrays:
            super().save(value, save_persistent_id)
            return
        import numpy

        if type(value) is numpy.memmap:
            value = numpy.asanyarray(value)
        head = NumpyArrayHead(value, self._mappable, self._aligned)
        super().save(head)
        if self.proto >= 4:
            self.framer.commit_frame(force=True)
        if value.dtype.hasobject:
            pickle.dump(value, self._out, 5)
            return
        if self._aligned:
            fill = _ALIGNMENT - (self._out.tell() + 1) % _ALIGNMENT
            self._out.write(bytes((fill,)) + b"\xff" * fill)
        _write_elements(self._out, value, head.order)

    def save_global(self, value: Any, name: str | None = None) -> None:
        if value is not NumpyArrayHead:
            super().save_global(value, name)
            return
        # joblib need not be installed, so the name cannot be looked up.
        if self.proto >= 4:
            super().save("joblib.numpy_pickle")
            super().save("NumpyArrayWrapper")
            self.write(pickle.STACK_GLOBAL)
        else:
            self.write(pickle.GLOBAL + b"joblib.numpy_pickle\nNumpyArrayWrapper\n")
        self.memoize(value)

    dispatch = dict(_PythonPickler.dispatch)


def _write_elements(file: Any, array: np.ndarray[Any, Any], order: str) -> None:
    import numpy

    if array.size == 0:
        return
    if array.flags.c_contiguous or array.flags.f_contiguous:
        flat = numpy.asarray(array).reshape(-1, order="F" if order == "F" else "C")
        if flat.dtype.itemsize:
            file.write(flat.view(numpy.uint8).data)
        return
    count = max(_COPY // max(array.itemsize, 1), 1)
    chunk: Any
    for chunk in numpy.nditer(array, ["external_loop", "buffered", "zerosize_ok"], buffersize=count, order="C"):
        file.write(chunk.tobytes("C"))


def _choose(filename: Any, compress: Any) -> tuple[str | None, int | None]:
    """The compressor's name and level, from what `dump` was given. Name None: none."""
    name: str | None = None
    level: int | None = None
    if isinstance(compress, tuple):
        if len(compress) != 2:
            raise ValueError(
                "Compress argument tuple should contain exactly 2 elements: (compress method, compress level), "
                f"you passed {compress}"
            )
        name, level = compress
    elif isinstance(compress, str):
        name = compress
    elif compress is True:
        level = None
        name = "zlib"
    elif compress is not False and compress is not None:
        level = compress
        name = "zlib" if level != 0 else None
    if level is not None and (level is True or level is False or level not in range(10)):
        raise ValueError(f'Non valid compress level given: "{level}". Possible values are {list(range(10))}.')
    if name is not None and name not in COMPRESSORS:
        raise ValueError(f'Non valid compression method given: "{name}". Possible values are {list(COMPRESSORS)}.')
    if isinstance(filename, str) and not isinstance(compress, (tuple, str)):
        for known, compressor in list(COMPRESSORS.items()):
            if compressor.extension and filename.endswith(compressor.extension):
                name = known
                level = level if level not in (0, None) else (3 if known not in ("lz4", "zstd") else None)
                break
    if name == "zlib" and level is None:
        level = 3
    if isinstance(compress, tuple) and level == 0:
        name = None
    return name, level


def dump(value: Any, filename: Any, compress: Any = 0, protocol: int | None = None) -> list[str] | None:
    """Write a value into a file.

    filename: a name (str or path) or a file object that is open for writing bytes.
    compress: 0 or False: no. A level from 1 to 9, True (3), a compressor's name, or (name, level). Where it is not
        given, the name's ending (.z .gz .bz2 .xz .lzma .lz4 .zst) tells.
    protocol: pickle's; by default its own default.

    Returns a list with the name, or None for a file object. ValueError where an argument is wrong.
    """
    if isinstance(filename, os.PathLike):
        filename = os.fspath(filename)
    is_file = hasattr(filename, "write")
    if not isinstance(filename, str) and not is_file:
        raise ValueError(
            f"Second argument should be a filename or a file-like object, {filename} (type {type(filename)}) was given."
        )
    name, level = _choose(filename, compress)
    if name is not None:
        with io.BufferedWriter(COMPRESSORS[name].compressor_file(filename, compresslevel=level), _BUFFER) as file:
            _write(value, file, protocol, False)
    elif is_file:
        _write(value, filename, protocol, True)
    else:
        with open(filename, "wb") as file:
            _write(value, file, protocol, True)
    return None if is_file else [filename]


def _write(value: Any, file: Any, protocol: int | None, mappable: bool) -> None:
    arrays = _array_types()
    if type(value) not in arrays and type(value) is not list:
        block = io.BytesIO()
        plain = _PlainPickler(block, protocol)
        plain.arrays = arrays
        try:
            plain.dump(value)
        except _HasArrays:
            pass
        else:
            file.write(block.getbuffer())
            return
    _ArrayPickler(file, protocol, mappable).dump(value)


# ----------------------------------------------------------------------------- reading


class _Head:
    """A head that was read; its attributes are what NumpyArrayHead's are."""

    subclass: Any
    shape: tuple[int, ...]
    order: str
    dtype: Any
    allow_mmap: bool = False
    numpy_array_alignment_bytes: int | None = None


class _OldHead:
    """What files of joblib before 0.10 hold: the name of another file with the array."""

    filename: str
    subclass: Any
    allow_mmap: bool = True


class _OldCompressedHead:
    """The same where that file is compressed: it holds elements only."""

    filename: str
    init_args: Any
    state: Any


_HEADS: dict[tuple[str, str], type] = {
    ("joblib.numpy_pickle", "NumpyArrayWrapper"): _Head,
    ("joblib.numpy_pickle", "NDArrayWrapper"): _OldHead,
    ("joblib.numpy_pickle", "ZNDArrayWrapper"): _OldCompressedHead,
    ("joblib.numpy_pickle_compat", "NDArrayWrapper"): _OldHead,
    ("joblib.numpy_pickle_compat", "ZNDArrayWrapper"): _OldCompressedHead,
}


def _fill(file: Any, view: memoryview) -> None:
    """Read until the memory is full. ValueError where the file ends before."""
    done = 0
    into = getattr(file, "readinto", None)
    while done < len(view):
        if into is not None:
            count = into(view[done:]) or 0
        else:
            data = file.read(len(view) - done)
            count = len(data)
            view[done : done + count] = data
        if count == 0:
            raise ValueError(f"EOF: reading array data, expected {len(view)} bytes got {done}")
        done += count


class _ArrayUnpickler(_PythonUnpickler):  # type: ignore[misc]
    def __init__(self, file: Any, name: str, mmap_mode: str | None, native: bool) -> None:
        super().__init__(file)
        self._in = file
        self._name = name
        self._mmap_mode = mmap_mode
        self._native = native
        self.old = False  # it held a head of joblib before 0.10

    def find_class(self, module: str, name: str) -> Any:
        return _HEADS.get((module, name)) or super().find_class(module, name)

    def load_build(self) -> None:
        super().load_build()
        head = self.stack[-1]
        if isinstance(head, _Head):
            self.stack[-1] = self._read(head)
        elif isinstance(head, _OldHead):
            self.stack[-1] = self._read_old(head)
        elif isinstance(head, _OldCompressedHead):
            self.stack[-1] = self._read_old_compressed(head)

    dispatch = {**_PythonUnpickler.dispatch, pickle.BUILD[0]: load_build}

    def _read(self, head: _Head) -> Any:
        import numpy

        if head.dtype.hasobject:
            inner = _PythonUnpickler(self._in)
            inner.find_class = self.find_class
            return inner.load()
        mapped = self._mmap_mode is not None and head.allow_mmap
        start = self._in.tell() if mapped else 0
        fill = 0
        if head.numpy_array_alignment_bytes is not None:
            fill = 1 + self._in.read(1)[0]
            if not mapped and fill > 1:
                self._in.read(fill - 1)
        count = 1
        for length in head.shape:
            count *= int(length)
        if mapped:
            return self._map(head, start + fill, count)
        array: Any = numpy.empty(count, dtype=head.dtype)
        if array.nbytes:
            _fill(self._in, memoryview(array.view(numpy.uint8)))
        array = array.reshape(head.shape[::-1]).transpose() if head.order == "F" else array.reshape(head.shape)
        return _to_native(array) if self._native else array

    def _map(self, head: _Head, offset: int, count: int) -> Any:
        import numpy

        if offset % _ALIGNMENT and head.numpy_array_alignment_bytes is None:
            warnings.warn(
                f"The memmapped array loaded from the file {self._name} is not byte aligned. This may cause "
                "segmentation faults if this memmapped array is used in some libraries. Dump it again to be rid of "
                "this warning.",
                stacklevel=6,
            )
        mode: Any = "r+" if self._mmap_mode == "w+" else self._mmap_mode
        if count * head.dtype.itemsize == 0:
            self._in.seek(offset)
            return numpy.empty(head.shape, dtype=head.dtype)
        order: Any = head.order
        array = numpy.memmap(self._name, head.dtype, mode, offset, head.shape, order)
        self._in.seek(offset + array.nbytes)
        return array

    def _read_old(self, head: _OldHead) -> Any:
        import numpy

        self.old = True
        path = os.path.join(os.path.dirname(self._name), head.filename)
        array = numpy.load(path, mmap_mode=self._mmap_mode if head.allow_mmap else None, allow_pickle=True)  # type: ignore[arg-type]
        return _to_native(array) if self._native and self._mmap_mode is None else array

    def _read_old_compressed(self, head: _OldCompressedHead) -> Any:
        import numpy

        self.old = True
        with open(os.path.join(os.path.dirname(self._name), head.filename), "rb") as file:
            data = _read_old_file(file)
        reconstruct: Any = numpy.ndarray.__reduce__(numpy.empty(0))[0]
        array = reconstruct(*head.init_args)
        array.__setstate__((*head.state, data))
        return _to_native(array) if self._native else array


def _to_native(array: Any) -> Any:
    """The same values in this machine's byte order."""
    dtype = array.dtype.newbyteorder("=")
    return array if dtype == array.dtype else array.astype(dtype, order="A")


def _read_old_file(file: Any) -> bytes:
    """What a compressed file of joblib before 0.10 holds: a text with the length, then zlib."""
    start = file.read(len(_OLD_COMPRESSED) + _OLD_LENGTH)
    length = int(start[len(_OLD_COMPRESSED) :].rstrip(b"L ").decode(), 16)
    if file.read(1) != b" ":  # some wrote one more
        file.seek(len(start))
    data = zlib.decompress(file.read(), 15, length)
    if len(data) != length:
        raise ValueError(f"Incorrect data length while decompressing {file}. The file could be corrupted.")
    return data


def _kind_of(file: Any) -> str | None:
    """Which compressor wrote a file: its name, "old", or None."""
    most = max(max(len(compressor.prefix) for compressor in list(COMPRESSORS.values())), len(_OLD_COMPRESSED))
    if hasattr(file, "peek"):
        start = file.peek(most)
    else:
        start = file.read(most)
        # A file in memory that was just written stands at its end: what it holds is meant, as with joblib.
        file.seek(-len(start), 1) if start else file.seek(0)
        if not start and (start := file.read(most)):
            file.seek(0)
    if start.startswith(_OLD_COMPRESSED):
        return "old"
    return next(
        (name for name, kind in list(COMPRESSORS.items()) if kind.prefix and start.startswith(kind.prefix)), None
    )


def _has_heads(file: Any) -> bool:
    """Whether arrays are in a regular file from here on. True where that cannot be told cheaply."""
    if isinstance(file, io.BytesIO):
        return file.getvalue().find(_HEAD_NAME, file.tell()) >= 0
    if not isinstance(getattr(file, "raw", None), io.FileIO):
        return True
    words, before = (b"NumpyArrayWrapper", b"NDArrayWrapper"), b""
    try:
        start = file.tell()
        # Its arrays come after its head: what is looked through is not more than what is unpickled. Read, not mapped:
        # the file may be cut short meanwhile.
        while chunk := os.pread(file.fileno(), _LOOK, start):
            content = before + chunk
            if any(word in content for word in words):
                return True
            before = chunk[1 - max(map(len, words)) :]
            start += len(chunk)
    except (OSError, ValueError):
        return True
    return False


def _unpickle(file: Any, name: str, mmap_mode: str | None, native: bool, old: bool = False) -> Any:
    unpickler = _ArrayUnpickler(file, name, mmap_mode, native)
    try:
        value = unpickler.load()
    except UnicodeDecodeError as error:
        raise ValueError(
            "You may be trying to read with python 3 a joblib pickle generated with python 2. "
            "This feature is not supported by joblib."
        ) from error
    if old or unpickler.old:
        warnings.warn(
            f"The file '{name}' has been generated with a joblib version less than 0.10. Please regenerate this "
            "pickle file.",
            DeprecationWarning,
            stacklevel=4,
        )
    return value


def _read(file: Any, name: str, mmap_mode: str | None, native: bool, whole: bool) -> Any:
    kind = _kind_of(file)
    if kind == "old":
        return _unpickle(io.BytesIO(_read_old_file(file)), name, None, native, True)
    if kind is not None:
        if mmap_mode is not None:
            warnings.warn(
                f'mmap_mode "{mmap_mode}" is not compatible with compressed file {name}. "{mmap_mode}" flag will be '
                "ignored.",
                stacklevel=3,
            )
        with io.BufferedReader(COMPRESSORS[kind].decompressor_file(file), _BUFFER) as expanded:
            value = _unpickle(expanded, name, None, native)
            if whole:  # to the compressor's own end: a cut or a wrong checksum there is seen
                expanded.read(1)
            return value
    if mmap_mode is not None:
        what = None
        if isinstance(file, io.BytesIO):
            what = f'In memory persistence is not compatible with mmap_mode "{mmap_mode}" flag passed. mmap_mode option'
        elif not isinstance(getattr(file, "raw", file), io.FileIO):
            what = f'"{file!r}" is not a raw file, mmap_mode "{mmap_mode}" flag'
        if what is not None:
            warnings.warn(what + " will be ignored.", stacklevel=3)
            mmap_mode = None
    if not _has_heads(file):
        return pickle.load(file)
    return _unpickle(file, name, mmap_mode, native and mmap_mode is None)


def load(filename: Any, mmap_mode: str | None = None, ensure_native_byte_order: Any = "auto") -> Any:
    """Read a value from a file that `dump` (Shoal's or joblib's) wrote. As with pickle, only from whom you trust.

    filename: a name (str or path) or a file object that is open for reading bytes.
    mmap_mode: None, "r", "r+", "w+" or "c": arrays are maps of the file, where it is not compressed.
    ensure_native_byte_order: arrays come in this machine's byte order; "auto": unless they are mapped.

    ValueError where the file ends too early or an argument is wrong; what unpickling raises.
    """
    if ensure_native_byte_order == "auto":
        ensure_native_byte_order = mmap_mode is None
    if ensure_native_byte_order and mmap_mode is not None:
        raise ValueError(
            "Native byte ordering can only be enforced if 'mmap_mode' parameter is set to None, but got "
            f"'mmap_mode={mmap_mode}' instead."
        )
    if isinstance(filename, os.PathLike):
        filename = os.fspath(filename)
    if hasattr(filename, "read"):
        return _read(filename, str(getattr(filename, "name", "")), mmap_mode, bool(ensure_native_byte_order), False)
    with open(filename, "rb") as file:
        return _read(file, filename, mmap_mode, bool(ensure_native_byte_order), True)
