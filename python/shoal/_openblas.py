"""The number of threads of a loaded OpenBLAS, read and set without a call. `_threads.py` says why, and alone uses it.

The number is a variable of the library's, `blas_cpu_number`. Until 0.3.33 or so it was exported; since then it is in
the table of symbols that is there for debuggers, unless somebody has stripped the library. Whether what was found is
what the library uses is tried before anything relies on it. Where it is not found, the library is told by a call.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import re
import struct

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

_NAME = b"blas_cpu_number"
# What an ELF file of 64 bits, little-endian, is made of, as far as it is of interest here.
_ELF = b"\x7fELF\x02\x01"
_HEADER = struct.Struct("<32xQQ6xHHHH2x")  # where the segments and the sections are; size and count of either
_SEGMENT = struct.Struct("<I4xQQ32x")  # kind, place in the file, address
_SECTION = struct.Struct("<4xI16xQQI20x")  # kind, place in the file, size, the section that its names are in
_SYMBOL = struct.Struct("<IBxHQQ")  # where its name is, kind, section, address, size
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
            if data[: len(_ELF)] != _ELF:
                raise ValueError("another format")
            segments, sections, _, segment_count, _, section_count = _HEADER.unpack_from(data)
            base = _find_base(places, _read_table(data, _SEGMENT, segments, segment_count))
            return base + _find_symbol(data, _read_table(data, _SECTION, sections, section_count))
    except (OSError, struct.error, IndexError) as error:
        raise ValueError(f"{path} cannot be read") from error


def _read_table(data: mmap.mmap, entry: struct.Struct, start: int, count: int) -> list[tuple[int, ...]]:
    return [entry.unpack_from(data, start + i * entry.size) for i in range(count)]


def _find_symbol(data: mmap.mmap, sections: list[tuple[int, ...]]) -> int:
    """What the table of symbols of a library's file has as the variable's address."""
    for kind, offset, size, link in sections:
        if kind != _SYMBOLS:
            continue
        symbols = data[offset : offset + size]
        _, names, names_size, _ = sections[link]
        for match in re.finditer(_NAME + b"\0", data[names : names + names_size]):  # at the end of another name, too
            wanted = struct.pack("<I", match.start())
            at = symbols.find(wanted)
            while at >= 0:
                if at % _SYMBOL.size == 0:
                    _, form, section, address, length = _SYMBOL.unpack_from(symbols, at)
                    if form & 0xF == _VARIABLE and section and length == ctypes.sizeof(ctypes.c_int):
                        return int(address)
                at = symbols.find(wanted, at + 1)
    raise ValueError("no such symbol")


def _find_places(path: str) -> list[tuple[int, int, int]]:
    """Where parts of a file lie in memory: first and last address, and the first one's place in the file."""
    places = []
    with open("/proc/self/maps", "rb") as maps:
        for line in maps:
            fields = line.rstrip(b"\n").split(None, 5)
            if len(fields) == 6 and fields[5] == os.fsencode(path):
                first, _, end = fields[0].partition(b"-")
                places.append((int(first, 16), int(end, 16) - 1, int(fields[2], 16)))
    return places


def _find_base(places: list[tuple[int, int, int]], segments: list[tuple[int, ...]]) -> int:
    """What is to be added to the addresses in the file. Others may have mapped the file as well: where all of its parts
    lie as they were to be loaded, it is."""
    parts = [(offset, address) for kind, offset, address in segments if kind == _LOADED]

    def is_there(offset: int, address: int) -> bool:
        return any(first <= address <= last and offset - at == address - first for first, last, at in places)

    for first, _, at in places:
        base = first - at + parts[0][0] - parts[0][1]
        if all(is_there(offset, base + address) for offset, address in parts):
            return base
    raise ValueError("not loaded")
