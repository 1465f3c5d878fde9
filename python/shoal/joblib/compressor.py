"""File objects that compress: what `dump` writes through and `load` reads through.

A compressor has a name, the bytes that its files begin with, and the ending of their names. zlib, gzip, bz2, lzma, xz
are the standard library's; lz4 and zstd the engine's. `register_compressor` adds one.
"""

from __future__ import annotations

import io
import zlib
from collections.abc import Callable
from typing import Any

from shoal import _engine

ZLIB, GZIP = zlib.MAX_WBITS, zlib.MAX_WBITS | 16  # zlib's names for the two forms
_BLOCK = 1 << 20  # bytes that are read at once
_FRAME = 4 << 20  # bytes of the value in a frame of lz4 or zstd


class _Expanding(io.RawIOBase):
    """Reads what compressed files hold, several after each other too."""

    def __init__(self, file: Any, start: Callable[[], Any], owns: bool) -> None:
        self._file = file
        self._start = start
        self._owns = owns
        self._expander: Any = None
        self._data = b""  # compressed, not used yet
        self._made = b""  # expanded, not read yet
        self._at = 0

    def readable(self) -> bool:
        return True

    def _fill(self) -> bool:
        """Have some more expanded bytes in `_made`; False at the end."""
        while True:
            if not self._data:
                self._data = self._file.read(_BLOCK)
                if not self._data:
                    if self._expander is not None:
                        raise EOFError("the compressed file ended before its end")
                    return False
            if self._expander is None:
                self._expander = self._start()
            self._made, self._data, ended = self._expander.expand(self._data)
            self._at = 0
            if ended:
                self._expander = None
            if self._made:
                return True

    def readinto(self, buffer: Any) -> int:
        if self._at == len(self._made) and not self._fill():
            return 0
        view = memoryview(buffer).cast("B")
        count = min(len(view), len(self._made) - self._at)
        view[:count] = memoryview(self._made)[self._at : self._at + count]
        self._at += count
        return count

    def close(self) -> None:
        if not self.closed:
            super().close()
            if self._owns:
                self._file.close()


class _Zlib:
    def __init__(self, form: int) -> None:
        self._object = zlib.decompressobj(form)

    def expand(self, data: bytes) -> tuple[bytes, bytes, bool]:
        made = self._object.decompress(data, _FRAME)
        if self._object.eof:
            return made, self._object.unused_data, True
        return made, self._object.unconsumed_tail, False


class _Engine:
    def __init__(self, method: int) -> None:
        self._own = _engine.expander(method)

    def expand(self, data: bytes) -> tuple[bytes, bytes, bool]:
        made, used, ended = _engine.expand(self._own, data, 0)
        return made, data[used:], ended


class _Compressing(io.RawIOBase):
    """Writes compressed: `compress` makes some of some, `finish` the rest."""

    def __init__(self, file: Any, compress: Callable[[Any], bytes], finish: Callable[[], bytes], owns: bool) -> None:
        self._file = file
        self._compress = compress
        self._finish = finish
        self._owns = owns

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        view = memoryview(data).cast("B")
        made = self._compress(view)
        if made:
            self._file.write(made)
        return len(view)

    def close(self) -> None:
        if self.closed:
            return
        try:
            self._file.write(self._finish())
        finally:
            super().close()
            if self._owns:
                self._file.close()


class _Frames:
    """The engine's compression: each 4 MiB of the value, or the rest, are a frame."""

    def __init__(self, method: int, level: int) -> None:
        self._method, self._level = method, level
        self._waiting = bytearray()

    def compress(self, data: memoryview) -> bytes:
        made = []
        while len(self._waiting) + len(data) >= _FRAME:
            room = _FRAME - len(self._waiting)
            if self._waiting:
                self._waiting += data[:room]
                made.append(_engine.compress(self._method, self._level, self._waiting))
                self._waiting = bytearray()
            else:
                made.append(_engine.compress(self._method, self._level, data[:room]))
            data = data[room:]
        self._waiting += data
        return b"".join(made)

    def finish(self) -> bytes:
        return _engine.compress(self._method, self._level, self._waiting) if self._waiting else b""


class CompressorWrapper:
    """How files of one kind are told, read and written; to be sub-classed or given a class of file objects.

    obj: called with a file (or its name), the mode and, for writing, `compresslevel`.
    prefix: the bytes such files begin with. extension: the ending of their names, with the dot.
    """

    def __init__(self, obj: Any, prefix: bytes = b"", extension: str = "") -> None:
        self.fileobj_factory = obj
        self.prefix = prefix
        self.extension = extension

    def compressor_file(self, fileobj: Any, compresslevel: int | None = None) -> Any:
        """A file object that compresses into `fileobj`."""
        if compresslevel is None:
            return self.fileobj_factory(fileobj, "wb")
        return self.fileobj_factory(fileobj, "wb", compresslevel=compresslevel)

    def decompressor_file(self, fileobj: Any) -> Any:
        """A file object that reads what `fileobj` holds compressed."""
        return self.fileobj_factory(fileobj, "rb")


def _opened(file: Any, mode: str) -> tuple[Any, bool]:
    return (file, False) if hasattr(file, "read") or hasattr(file, "write") else (open(file, mode), True)


def _zlib_file(form: int) -> Any:
    def make(file: Any, mode: str, compresslevel: int = 3) -> Any:
        file, owns = _opened(file, mode)
        if mode == "rb":
            return _Expanding(file, lambda: _Zlib(form), owns)
        own = zlib.compressobj(compresslevel, zlib.DEFLATED, form)
        return _Compressing(file, own.compress, own.flush, owns)

    return make


def _engine_file(method: int) -> Any:
    def make(file: Any, mode: str, compresslevel: int = 0) -> Any:
        file, owns = _opened(file, mode)
        if mode == "rb":
            return _Expanding(file, lambda: _Engine(method), owns)
        frames = _Frames(method, compresslevel)
        return _Compressing(file, frames.compress, frames.finish, owns)

    return make


def _bz2_file(file: Any, mode: str, compresslevel: int = 9) -> Any:
    import bz2

    make: Any = bz2.BZ2File
    return make(file, mode, compresslevel=max(compresslevel, 1))


class _Lzma(CompressorWrapper):
    def __init__(self, form: str, prefix: bytes, extension: str) -> None:
        super().__init__(None, prefix, extension)
        self._form = form

    def compressor_file(self, fileobj: Any, compresslevel: int | None = None) -> Any:
        import lzma

        form = lzma.FORMAT_ALONE if self._form == "lzma" else lzma.FORMAT_XZ
        return lzma.LZMAFile(fileobj, "wb", format=form, preset=compresslevel)

    def decompressor_file(self, fileobj: Any) -> Any:
        import lzma

        return lzma.LZMAFile(fileobj, "rb")


# Looked through by way of a copy: another thread may be registering one.
COMPRESSORS: dict[str, Any] = {
    "zlib": CompressorWrapper(_zlib_file(ZLIB), b"\x78", ".z"),
    "gzip": CompressorWrapper(_zlib_file(GZIP), b"\x1f\x8b", ".gz"),
    "bz2": CompressorWrapper(_bz2_file, b"BZ", ".bz2"),
    "lzma": _Lzma("lzma", b"\x5d\x00", ".lzma"),
    "xz": _Lzma("xz", b"\xfd7zXZ", ".xz"),
    "lz4": CompressorWrapper(_engine_file(_engine.COMPRESS_LZ4), b"\x04\x22\x4d\x18", ".lz4"),
    "zstd": CompressorWrapper(_engine_file(_engine.COMPRESS_ZSTD), b"\x28\xb5\x2f\xfd", ".zst"),
}


def register_compressor(compressor_name: str, compressor: Any, force: bool = False) -> None:
    """Add a compressor, for `dump(…, compress=(name, level))` and for `load`.

    compressor: a CompressorWrapper, or an object with its methods. force: replace one of that name.
    ValueError where any of it does not fit.
    """
    if not isinstance(compressor_name, str):
        raise ValueError(f"Compressor name should be a string, '{compressor_name}' given.")
    if not all(hasattr(compressor, name) for name in ("compressor_file", "decompressor_file", "prefix")):
        raise ValueError(f"Compressor should implement the CompressorWrapper interface, '{compressor}' given.")
    factory = getattr(compressor, "fileobj_factory", None)
    if factory is not None and isinstance(factory, type):
        missing = [name for name in ("read", "write", "seek", "tell") if not hasattr(factory, name)]
        if missing:
            raise ValueError(
                f"Compressor 'fileobj_factory' attribute should implement the file object interface, '{factory}' given."
            )
    if compressor_name in COMPRESSORS and not force:
        raise ValueError(f"Compressor '{compressor_name}' already registered.")
    COMPRESSORS[compressor_name] = compressor
