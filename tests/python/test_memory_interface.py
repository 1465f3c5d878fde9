"""`Memory`: all of its interface beside the call."""

from __future__ import annotations

import asyncio
import pickle
import re
import time

import numpy as np
import pytest
from cached_calls import CALLS, add, make_array
from helpers import entries
from shoal.joblib.memory import (
    AsyncMemorizedFunc,
    MemorizedResult,
    Memory,
    NotMemorizedFunc,
    NotMemorizedResult,
    expires_after,
)


@pytest.fixture(autouse=True)
def no_calls_yet():
    CALLS.clear()


@pytest.fixture
def memory(tmp_path):
    return Memory(tmp_path, verbose=0)


# ---- the rest of the interface ----


def test_nothing_is_kept_without_a_location():
    memory = Memory(None, verbose=0)
    cached = memory.cache(add)
    assert isinstance(cached, NotMemorizedFunc)
    assert cached(1) == cached(1) == memory.eval(add, 1) == 2
    assert len(CALLS) == 3
    assert cached.call(1) == (2, {})
    assert not cached.check_call_in_cache(1)
    shelved = cached.call_and_shelve(1)
    assert isinstance(shelved, NotMemorizedResult)
    assert shelved.get() == 2
    shelved.clear()
    with pytest.raises(KeyError):
        shelved.get()
    cached.clear()
    memory.clear(warn=False)


def test_call_computes_in_any_case_and_keeps_the_value(memory):
    cached = memory.cache(lambda: CALLS.append(1) or len(CALLS))
    assert cached() == 1
    value, metadata = cached.call()
    assert value == 2
    assert metadata["duration"] >= 0
    assert cached() == 2


def test_check_call_in_cache_tells_without_computing(memory):
    cached = memory.cache(add)
    assert not cached.check_call_in_cache(1)
    cached(1)
    assert cached.check_call_in_cache(1)
    assert cached.check_call_in_cache(x=1, y=1)
    assert not cached.check_call_in_cache(2)
    assert len(CALLS) == 1


def test_a_shelved_result_travels_and_can_be_cleared(memory):
    cached = memory.cache(make_array)
    shelved = pickle.loads(pickle.dumps(cached.call_and_shelve(1000)))
    assert isinstance(shelved, MemorizedResult)
    assert np.array_equal(shelved.get(), np.arange(1000.0))
    assert np.array_equal(cached.call_and_shelve(1000).get(), np.arange(1000.0))
    assert len(CALLS) == 1
    assert shelved.duration >= 0
    assert shelved.metadata["input_args"] == {"n": "1000"}
    shelved.clear()
    with pytest.raises(KeyError):
        shelved.get()
    cached(1000)
    assert len(CALLS) == 2


def test_clear_removes_one_function_or_all(memory, tmp_path):
    one, two = memory.cache(add), memory.cache(make_array)
    one(1), two(1)
    one.clear(warn=False)
    one(1), two(1)
    assert len(CALLS) == 3
    memory.clear(warn=False)
    assert entries(tmp_path) == []
    one(1), two(1)
    assert len(CALLS) == 5


def test_eval_is_a_cached_call(memory):
    assert memory.eval(add, 1, y=4) == memory.eval(add, 1, 4) == 5
    assert len(CALLS) == 1


def test_a_validation_callback_decides(memory):
    seen = []
    answer = True

    def check(metadata):
        seen.append(metadata)
        return answer

    cached = memory.cache(add, cache_validation_callback=check)
    cached(1, 2), cached(1, 2)
    assert len(CALLS) == 1
    assert seen[0]["input_args"] == {"x": "1", "y": "2", "z": "0", "*": "[]", "**": "{}"}
    assert abs(seen[0]["time"] - time.time()) < 60
    answer = False
    assert not cached.check_call_in_cache(1, 2)
    cached(1, 2)
    assert len(CALLS) == 2
    with pytest.raises(ValueError, match="callable"):
        memory.cache(add, cache_validation_callback=3)


def test_results_expire(memory):
    cached = memory.cache(add, cache_validation_callback=expires_after(milliseconds=100))
    cached(1), cached(1)
    assert len(CALLS) == 1
    time.sleep(0.15)
    cached(1)
    assert len(CALLS) == 2


def test_read_only_mapping_gives_read_only_arrays_from_the_first_call_on(tmp_path):
    cached = Memory(tmp_path, mmap_mode="r", verbose=0).cache(make_array)
    for n in (1000, 100_000):
        for _ in range(2):
            array = cached(n)
            with pytest.raises(ValueError, match="read-only"):
                array[0] = 1
    assert Memory(tmp_path, mmap_mode="c", verbose=0).cache(make_array)(1000).flags.writeable
    with pytest.raises(ValueError, match="mmap_mode"):
        Memory(tmp_path, mmap_mode="x")


def test_what_is_printed(tmp_path, capsys):
    cached = Memory(tmp_path).cache(add)
    cached(1, y=2)
    text = capsys.readouterr().out
    assert "[Memory] Calling " in text
    assert "add(1, y=2)" in text
    assert re.search(r"add - \d+\.\ds, \d+\.\dmin", text)
    cached(1, 2)
    assert capsys.readouterr().out == ""
    Memory(tmp_path, verbose=5).cache(add)(1, 2)
    text = capsys.readouterr().out
    assert "Loading add(1, 2)" in text
    assert "cache loaded" in text


def test_coroutine_functions_are_cached_too(memory):
    @memory.cache
    async def function(x):
        CALLS.append(x)
        await asyncio.sleep(0)
        return x * 2

    async def main():
        results = [await function(2), await function(2)]
        shelved = await function.call_and_shelve(2)
        value, _ = await function.call(2)
        return [*results, shelved.get(), value]

    assert isinstance(function, AsyncMemorizedFunc)
    assert asyncio.run(main()) == [4, 4, 4, 4]
    assert CALLS == [2, 2]
    assert asyncio.run(Memory(None).cache(function.func)(3)) == 6


def test_wrong_locations_and_backends_say_so(tmp_path):
    with pytest.raises(TypeError, match="Unknown location"):
        Memory(tmp_path, backend="cloud")
    with pytest.warns(UserWarning, match="not supported"):
        assert Memory(3).cache(add)(1) == 2
