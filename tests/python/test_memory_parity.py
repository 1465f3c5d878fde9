"""Where programs expect of `Memory`, `hash` and `dump` what joblib does."""

from __future__ import annotations

import asyncio
import datetime
import os
import re
import stat

import joblib
import numpy as np
import pytest
from shoal import _cache_command
from shoal.joblib import Memory, dump, hash
from shoal.joblib.memory import JobLibCollisionWarning

CALLS: list[object] = []


@pytest.fixture(autouse=True)
def no_calls_yet():
    CALLS.clear()


def arrays(n):
    CALLS.append(n)
    return {
        "plain": np.arange(n, dtype=float),
        "strided": np.arange(20.0)[::2],
        "fortran": np.asfortranarray(np.ones((3, 4))),
        "objects": np.array([None, 1], dtype=object),
        "empty": np.zeros(0),
    }


@pytest.mark.parametrize("n", [3, 100_000])
@pytest.mark.parametrize("mode", ["r", "r+", "w+", "c"])
def test_with_an_mmap_mode_arrays_are_what_joblib_gives(tmp_path, mode, n):
    theirs = joblib.Memory(tmp_path / "theirs", mmap_mode=mode, verbose=0).cache(arrays)
    ours = Memory(tmp_path / "ours", mmap_mode=mode, verbose=0).cache(arrays)
    for turn in range(3):
        their = theirs(n)
        our = ours.call_and_shelve(n).get() if turn == 2 else ours(n)
        assert list(our) == list(their)
        for name, array in our.items():
            other = their[name]
            assert type(array) is type(other), name
            assert getattr(array, "mode", None) == getattr(other, "mode", None)
            assert array.flags.writeable == other.flags.writeable
            assert (array.flags.c_contiguous, array.flags.f_contiguous) == (
                other.flags.c_contiguous,
                other.flags.f_contiguous,
            )
            assert np.array_equal(array, other)


def test_what_is_written_to_a_map_never_changes_the_kept_result(tmp_path):
    f = Memory(tmp_path, mmap_mode="r+", verbose=0).cache(arrays)
    for _ in range(3):
        array = f(100_000)["plain"]
        assert array[5] == 5
        array[5] = 17
        array.flush()
    assert CALLS == [100_000]


def test_arrays_of_entries_kept_without_a_mode_are_read_only_with_r(tmp_path):
    Memory(tmp_path, verbose=0).cache(arrays)(3)
    found = Memory(tmp_path, mmap_mode="r", verbose=0).cache(arrays)(3)
    assert CALLS == [3]
    assert [name for name, array in found.items() if array.flags.writeable] == ["objects"]


def function(a, b=2, *args, k=3, **kw):
    """What it does."""
    return a


def narrow(a, b, *, kw1, kw2=3):
    return a


@pytest.mark.parametrize("ignore", [[], ["b"], ["*", "k"]])
@pytest.mark.parametrize(("args", "kwargs"), [((1,), {}), ((1, 5, 6), {"k": 4, "z": 7}), ((), {"b": "x", "a": 0})])
def test_call_says_what_it_was_called_with(tmp_path, ignore, args, kwargs):
    theirs = joblib.Memory(tmp_path / "theirs", verbose=0).cache(function, ignore=ignore)
    seen = []
    ours = Memory(tmp_path / "ours", verbose=0).cache(
        function, ignore=ignore, cache_validation_callback=lambda metadata: seen.append(metadata) or True
    )
    _, metadata = ours.call(*args, **kwargs)
    expected = theirs.call(*args, **kwargs)[1]
    assert metadata.keys() == expected.keys() and metadata["input_args"] == expected["input_args"]
    ours(*args, **kwargs)
    assert seen[0]["input_args"] == expected["input_args"]

    async def later(a, b=2, *args, k=3, **kw):
        return a

    f = Memory(tmp_path / "ours", verbose=0).cache(later, ignore=ignore)
    assert asyncio.run(f.call(*args, **kwargs))[1]["input_args"] == expected["input_args"]


@pytest.mark.parametrize(
    ("args", "kwargs"),
    [((1,), {}), ((1, 2, 3), {"kw2": 4}), ((1, 2), {"a": 3, "kw1": 1}), ((1, 2), {"kw1": 1, "z": 3}), ((1, 2), {})],
)
@pytest.mark.parametrize("method", ["__call__", "call", "call_and_shelve", "check_call_in_cache"])
def test_arguments_that_do_not_fit_raise_what_joblib_raises_and_a_type_error(tmp_path, method, args, kwargs):
    theirs = getattr(joblib.Memory(tmp_path / "theirs", verbose=0).cache(narrow), method)
    ours = getattr(Memory(tmp_path / "ours", verbose=0).cache(narrow), method)
    with pytest.raises(Exception) as expected:
        theirs(*args, **kwargs)
    assert expected.type is ValueError
    with pytest.raises(ValueError) as raised:
        ours(*args, **kwargs)
    assert isinstance(raised.value, TypeError)
    words = re.match("Wrong number of|Too many keyword|Too many", str(expected.value))
    assert words is None or str(raised.value).startswith(words[0])


def test_a_decorator_may_take_other_arguments_than_it_shows(tmp_path):
    import functools

    def with_connection(inner):
        @functools.wraps(inner)
        def outer(x):
            return inner(x, "connection")

        return outer

    @Memory(tmp_path, verbose=0).cache
    @with_connection
    def f(x, connection):
        return x, connection

    assert f(1) == (1, "connection")


def test_the_documentation_of_a_function_is_kept(tmp_path):
    assert Memory(tmp_path, verbose=0).cache(function).__doc__ == "What it does."


def test_options_and_limits_are_taken_as_joblib_takes_them(tmp_path):
    for location in (tmp_path, None):
        with pytest.raises(TypeError, match="must be a mapping"):
            Memory(location, backend_options=3)
    for limit in ({"items_limit": -1}, {"bytes_limit": -1}):
        for kind in (Memory, joblib.Memory):
            memory = kind(tmp_path, verbose=0)
            f = memory.cache(function)
            f(1)
            memory.reduce_size(**limit)
            assert not f.check_call_in_cache(1)
    for limit in ({"bytes_limit": 1e9}, {"bytes_limit": 10**30}, {"items_limit": 2.5}, {"items_limit": 10**30}):
        for kind in (Memory, joblib.Memory):
            memory = kind(tmp_path, verbose=0)
            f = memory.cache(function)
            f(1)
            memory.reduce_size(**limit)
            assert f.check_call_in_cache(1), limit
    Memory(tmp_path, verbose=0).reduce_size(age_limit=datetime.timedelta.max)


def test_the_warning_of_collisions_can_be_named():
    assert issubclass(JobLibCollisionWarning, UserWarning)


def test_masked_arrays_that_are_equal_are_one_argument(tmp_path):
    def make():
        return np.ma.array([1.0, 2.0, 3.0], mask=[0, 1, 0])

    f = Memory(tmp_path, verbose=0).cache(lambda a: CALLS.append(1) or a)
    array = make()
    assert np.ma.allequal(f(array), array) and np.ma.allequal(f(array), f(make()))
    assert CALLS == [1]
    repr(array)  # gives it its fill value
    assert hash(array) == hash(make()) != hash(np.ma.array([1.0, 2.0, 3.0], mask=[0, 0, 0]))
    assert hash(make()) != hash(np.ma.array([1.0, 2.0, 3.0], mask=[0, 1, 0], fill_value=7))


@pytest.mark.parametrize("name", ["md5", "sha1"])
def test_digests_are_as_long_as_those_of_their_names(name):
    ours, theirs = hash([1, "a"], name), joblib.hash([1, "a"], name)
    assert re.fullmatch("[0-9a-f]+", ours) and len(ours) == len(theirs)
    assert ours == hash([1, "a"], name) != hash([2, "a"], name)


def test_names_of_files_are_texts_or_paths(tmp_path):
    with pytest.raises(ValueError, match="filename or a file-like object"):
        dump(1, os.fsencode(tmp_path / "x"))


def test_all_files_in_the_store_are_the_users_alone(tmp_path):
    before = os.umask(0)
    try:
        Memory(tmp_path, verbose=0).cache(function)(1)
    finally:
        os.umask(before)
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in (tmp_path / "shoal").rglob("*") if path.is_file()}
    assert ".gitignore" in modes and set(modes.values()) == {0o600}


def test_the_command_leaves_other_folders_as_they_are(tmp_path):
    (tmp_path / "inner").mkdir()
    (tmp_path / "inner" / "file").write_text("")
    for command in ("ls", "stat", "verify", "rm"):
        with pytest.raises(SystemExit, match="is no cache"):
            _cache_command.main([command, str(tmp_path)])
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["file", "inner"]
