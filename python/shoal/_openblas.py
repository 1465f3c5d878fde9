"""The number of threads of a loaded OpenBLAS, read and set without a call. `_threads.py` says why, and alone uses it.

The number is a variable of the library's, `blas_cpu_number`. Until 0.3.33 or so it was exported; since then it is in
the table of symbols that is there for debuggers, unless somebody has stripped the library. Whether what was found is
what the library uses is tried before anything relies on it. Where it is not found, the library is told by a call.
"""

from __future__ import annotations

import ctypes
import mmap
import re
import struct

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

_NAME = b"blas_cpu_number"
_SYMBOL = struct.Struct("<IBBHQQ")  # name, kind, visibility, section, address, size
_SECTION = struct.Struct("<IIQQQQIIQQ")  # name, kind, flags, address, offset, size, link, information, alignment, entry
_SEGMENT = struct.Struct(
    "<IIQQQQQQ"
)  # kind, flags, offset, address, physical address, size in the file and in memory, …
_LOADED, _SYMBOLS, _VARIABLE = 1, 2, 1  # kinds of a segment, a section and a symbol


class OpenBLAS:
    """One loaded OpenBLAS. Its number is only ever made smaller, or what it was: where there are too few threads, more
    must be started."""

    def __init__(self, library: Any) -> None:
        """library: threadpoolctl's controller of it. ValueError: its number cannot be set from outside."""
        if library.internal_api != "openblas" or getattr(library, "threading_layer", "") != "pthreads":
            raise ValueError("not an OpenBLAS with threads of its own")
        try:
            self._number = ctypes.c_int.in_dll(library.dynlib, _NAME.decode())
        except ValueError:
            self._number = ctypes.c_int.from_address(_find_hidden(library.filepath))
        self.prefix = library.prefix
        before = self.number
        # Is it this one's? Of two OpenBLAS the second may use the first one's.
        if library.num_threads != before:
            raise ValueError("another library's number")
        if before > 1:
            self.number = 1
            found = library.num_threads
            self.number = before
            if found != 1:
                raise ValueError("another library's number")

    @property
    def number(self) -> int:
        return int(self._number.value)

    @number.setter
    def number(self, number: int) -> None:
        self._number.value = number


def _find_hidden(path: str) -> int:
    """The address of the variable in this process. ValueError: it is not known."""
    try:
        places = _find_places(path)  # before the file is mapped once more
        with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ) as data:
            if data[:6] != b"\x7fELF\x02\x01":  # 64 bits, little-endian
                raise ValueError("another format")
            return _find_base(places, data) + _find_symbol(data)
    except (OSError, struct.error) as error:
        raise ValueError(f"{path} cannot be read") from error


def _find_symbol(data: mmap.mmap) -> int:
    """What the table of symbols of a library's file has as the variable's address."""
    (table,) = struct.unpack_from("<Q", data, 0x28)
    (count,) = struct.unpack_from("<H", data, 0x3C)
    sections = [_SECTION.unpack_from(data, table + i * _SECTION.size) for i in range(count)]
    for _, kind, _, _, offset, size, link, *_ in sections:
        if kind != _SYMBOLS:
            continue
        symbols = data[offset : offset + size]
        names = data[sections[link][4] : sections[link][4] + sections[link][5]]
        for match in re.finditer(_NAME + b"\0", names):  # at the end of another name, too
            wanted = struct.pack("<I", match.start())
            at = symbols.find(wanted)
            while at >= 0:
                if at % _SYMBOL.size == 0:
                    _, kind, _, section, address, length = _SYMBOL.unpack_from(symbols, at)
                    if kind & 0xF == _VARIABLE and section and length == ctypes.sizeof(ctypes.c_int):
                        return int(address)
                at = symbols.find(wanted, at + 1)
    raise ValueError("no such symbol")


def _find_places(path: str) -> list[tuple[int, int, int]]:
    """Where parts of a file lie in memory: first and last address, and the first one's place in the file."""
    places = []
    with open("/proc/self/maps", "rb") as maps:
        for line in maps:
            fields = line.rstrip(b"\n").split(None, 5)
            if len(fields) == 6 and fields[5] == path.encode():
                first, _, end = fields[0].partition(b"-")
                places.append((int(first, 16), int(end, 16) - 1, int(fields[2], 16)))
    return places


def _find_base(places: list[tuple[int, int, int]], data: mmap.mmap) -> int:
    """What is to be added to the addresses in the file. Others may have mapped the file as well: where all of its parts
    lie as they were to be loaded, it is."""
    (table,) = struct.unpack_from("<Q", data, 0x20)
    (count,) = struct.unpack_from("<H", data, 0x38)
    segments = [_SEGMENT.unpack_from(data, table + i * _SEGMENT.size) for i in range(count)]
    parts = [(int(offset), int(address)) for kind, _, offset, address, *_ in segments if kind == _LOADED]

    def is_there(offset: int, address: int) -> bool:
        return any(first <= address <= last and offset - at == address - first for first, last, at in places)

    for first, _, at in places:
        base = first - at + parts[0][0] - parts[0][1]
        if all(is_there(offset, base + address) for offset, address in parts):
            return base
    raise ValueError("not loaded")
