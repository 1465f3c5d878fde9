"""`shoal._openblas`: where the number of threads of a loaded OpenBLAS is found, and where it is not looked for."""

from __future__ import annotations

import ctypes
from pathlib import Path
from typing import Any

import numpy  # noqa: F401  (which loads an OpenBLAS)
import pytest
import threadpoolctl
from shoal import _openblas


@pytest.fixture
def library() -> Any:
    for library in threadpoolctl.ThreadpoolController().lib_controllers:
        if library.internal_api == "openblas" and library.threading_layer == "pthreads":
            return library
    pytest.skip("this NumPy has no OpenBLAS with threads of its own")


def test_the_number_is_the_librarys(library: Any) -> None:
    found = _openblas.OpenBLAS(library)
    before = library.num_threads
    assert found.number == before
    found.number = 1
    try:
        assert library.num_threads == 1
    finally:
        found.number = before
    assert library.num_threads == before


def test_the_table_of_symbols_has_it_where_it_is(library: Any) -> None:
    address = _openblas._find_hidden(library.filepath)
    assert ctypes.c_int.from_address(address).value == library.num_threads
    try:
        exported = ctypes.c_int.in_dll(library.dynlib, "blas_cpu_number")
    except ValueError:
        exported = _openblas.OpenBLAS(library)._number
    assert ctypes.addressof(exported) == address


@pytest.mark.parametrize("contents", [b"", b"no library", b"\x7fELF\x02\x01", b"\x7fELF\x02\x01" + bytes(70), None])
def test_what_cannot_be_read_has_none(tmp_path: Path, library: Any, contents: bytes | None) -> None:
    path = tmp_path / "libopenblas.so"
    if contents is not None:
        path.write_bytes(contents)
    with pytest.raises(ValueError):
        _openblas._find_hidden(str(path))


def test_a_copy_of_the_library_that_is_not_loaded_has_none(tmp_path: Path, library: Any) -> None:
    path = tmp_path / "libopenblas.so"
    path.write_bytes(Path(library.filepath).read_bytes())
    with pytest.raises(ValueError, match="not loaded"):
        _openblas._find_hidden(str(path))


def test_a_library_that_says_another_number_is_told_by_a_call(library: Any) -> None:
    class Other:
        internal_api, threading_layer, prefix = "openblas", "pthreads", "libopenblas"
        dynlib, filepath, num_threads = library.dynlib, library.filepath, library.num_threads + 1

    before = library.num_threads
    with pytest.raises(ValueError, match="another library's"):
        _openblas.OpenBLAS(Other)
    assert library.num_threads == before
