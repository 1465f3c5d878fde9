"""`dump` and `load`: what comes back is what was given, in joblib's files, whichever of the two wrote or reads them."""

from __future__ import annotations

import io
import pickle
import warnings

import joblib
import numpy as np
import pytest
from shoal.joblib import dump, load, register_compressor
from shoal.joblib.compressor import COMPRESSORS, CompressorWrapper

VALUES = {
    "number": 1,
    "nested": {"a": [1, 2, ("x", None)]},
    "array": np.arange(1000.0),
    "fortran": np.asfortranarray(np.arange(12).reshape(3, 4)),
    "arrays in a list": [np.arange(5), "x", np.array([], dtype=int), np.arange(6).reshape(2, 3)],
    "no dimension": np.array(3.5),
    "with gaps": np.arange(24).reshape(2, 3, 4)[:, ::2],
    "objects": np.array([{"a": 1}, None], dtype=object),
    "structure": np.zeros(3, dtype=[("a", "i4"), ("b", "f8")]),
    "dates": np.array(["2020-01-01", "2021-02-03"], dtype="M8[D]"),
    "one array twice": {"k": (np.arange(3),) * 2},
    "other byte order": np.arange(5, dtype=">i4"),
}
ARRAYS = [name for name, value in VALUES.items() if isinstance(value, np.ndarray)]


def same(one, other):
    if isinstance(one, np.ndarray):
        return one.dtype.newbyteorder("=") == other.dtype.newbyteorder("=") and np.array_equal(one, other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    if isinstance(one, (list, tuple)):
        return type(one) is type(other) and len(one) == len(other) and all(map(same, one, other))
    return type(one) is type(other) and one == other


@pytest.mark.parametrize("name", VALUES)
@pytest.mark.parametrize("compress", [0, True, "gzip", "bz2", "lzma", "xz", ("zlib", 9), ("gzip", 1)])
def test_shoal_and_joblib_read_each_others_files(tmp_path, name, compress):
    value, ours, theirs = VALUES[name], tmp_path / "ours", tmp_path / "theirs"
    for protocol in (None, *range(pickle.HIGHEST_PROTOCOL + 1)):
        assert dump(value, ours, compress=compress, protocol=protocol) == [str(ours)]
        joblib.dump(value, theirs, compress=compress, protocol=protocol)
        assert same(value, load(ours)) and same(value, load(theirs)) and same(value, joblib.load(ours))
        if compress == 0 and name in ARRAYS:
            assert ours.read_bytes() == theirs.read_bytes()


@pytest.mark.parametrize("compress", ["zstd", "lz4", ("zstd", 3), ("lz4", 1)])
def test_lz4_and_zstd_come_back_and_are_told_by_their_beginning(tmp_path, compress):
    path = tmp_path / "file"
    for value in (*VALUES.values(), np.zeros(3_000_000), b"x" * 9_000_000):
        dump(value, path, compress=compress)
        assert path.stat().st_size < 100_000 and same(value, load(path))


@pytest.mark.parametrize("ending", [".z", ".gz", ".bz2", ".xz", ".lzma", ".lz4", ".zst"])
def test_a_names_ending_chooses_the_compressor(tmp_path, ending):
    path = str(tmp_path / ("file" + ending))
    dump(list(range(10_000)), path)
    with open(path, "rb") as file:
        start = file.read(6)
    assert next(kind for kind in COMPRESSORS.values() if start.startswith(kind.prefix)).extension == ending
    assert load(path) == list(range(10_000))


@pytest.mark.parametrize("name", ["array", "fortran", "structure", "dates", "arrays in a list"])
@pytest.mark.parametrize("mode", ["r", "r+", "c", "w+"])
def test_arrays_are_mapped_where_that_is_asked(tmp_path, name, mode):
    path = tmp_path / "file"
    dump(VALUES[name], path)
    value = load(path, mmap_mode=mode)
    assert same(VALUES[name], value)
    for array in value if isinstance(value, list) else [value]:
        if isinstance(array, np.ndarray) and array.size:
            assert isinstance(array, np.memmap) and array.ctypes.data % 16 == 0
            assert array.flags.writeable == (mode != "r")


def test_several_values_go_through_one_file_object(tmp_path):
    with open(tmp_path / "file", "wb") as file:
        for value in VALUES.values():
            assert dump(value, file) is None
    with open(tmp_path / "file", "rb") as file:
        assert all(same(value, load(file)) for value in VALUES.values())
    block = io.BytesIO()
    dump(VALUES["array"], block)
    assert same(VALUES["array"], load(block))


@pytest.mark.parametrize("compress", [0, "zlib", "zstd", "lz4"])
def test_a_file_that_was_cut_short_is_an_error(tmp_path, compress):
    path = tmp_path / "file"
    dump(np.random.default_rng(1).random(50_000), path, compress=compress)
    content = path.read_bytes()
    for length in (1, 10, 100, len(content) // 2, len(content) - 1):
        path.write_bytes(content[:length])
        with pytest.raises((ValueError, EOFError, pickle.UnpicklingError)):
            load(path)


def test_wrong_arguments_say_so(tmp_path):
    for compress in (10, -1, ("zlib", 10), ("zlib", 1, 2)):
        with pytest.raises(ValueError):
            dump(1, tmp_path / "file", compress=compress)
    with pytest.raises(ValueError, match="Non valid compression method"):
        dump(1, tmp_path / "file", compress="rar")
    with pytest.raises(ValueError, match="filename or a file-like"):
        dump(1, 5)
    dump(np.arange(3), tmp_path / "file", compress=True)
    with pytest.warns(UserWarning, match="not compatible with compressed"):
        load(tmp_path / "file", mmap_mode="r")
    with pytest.raises(ValueError, match="byte ordering"):
        load(tmp_path / "file", mmap_mode="r", ensure_native_byte_order=True)


def test_a_compressor_can_be_registered(tmp_path):
    def opened(file, mode, compresslevel=1):
        return open(file, mode) if isinstance(file, str) else file

    kind = CompressorWrapper(opened)
    with pytest.raises(ValueError, match="should be a string"):
        register_compressor(3, kind)
    with pytest.raises(ValueError, match="CompressorWrapper"):
        register_compressor("mine", object())
    with pytest.raises(ValueError, match="already registered"):
        register_compressor("zlib", kind)
    register_compressor("mine", kind)
    try:
        dump([1, 2], str(tmp_path / "file"), compress="mine")
        assert load(tmp_path / "file") == [1, 2]
    finally:
        del COMPRESSORS["mine"]


def test_joblibs_own_old_files_can_be_read():
    """Files of joblib 0.8 to 0.11 that come with its tests: what is not of Python 2 is read, with a warning."""
    from pathlib import Path

    read = 0
    for path in sorted((Path(joblib.__file__).parent / "test" / "data").glob("*py3*")):
        if "_py3" in path.name and path.name.split(".")[-1] in ("pkl", "gz", "gzip", "bz2", "xz", "lzma"):
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                value = load(str(path))
            expected = joblib_reads(path)
            assert same([np.asarray(v) if isinstance(v, np.matrix) else v for v in expected][:2], value[:2])
            read += 1
    assert read >= 10


def joblib_reads(path):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return joblib.load(str(path))
