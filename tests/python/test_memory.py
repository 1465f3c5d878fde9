"""`Memory`: what is a hit, for any kind of value and function, and what change of the code is not."""

from __future__ import annotations

import functools
import threading

import numpy as np
import pytest
from cached_calls import CALLS, add, make_array
from helpers import run_with_cache
from shoal.joblib.memory import (
    CacheWarning,
    MemorizedFunc,
    Memory,
)


@pytest.fixture(autouse=True)
def no_calls_yet():
    CALLS.clear()


@pytest.fixture
def memory(tmp_path):
    return Memory(tmp_path, verbose=0)


# ---- what is a hit ----


def test_a_call_is_computed_once_however_its_arguments_are_written(memory):
    cached = memory.cache(add)
    assert [cached(3), cached(3, 1), cached(x=3), cached(y=1, x=3), cached(3, z=0)] == [4] * 5
    assert len(CALLS) == 1
    assert cached(3, 2) == 5
    assert cached(3, 1, 5) == 9
    assert cached(3, 1, 5, 6, w=2) == 17
    assert cached(3, 1, 5, 6, w=2) == 17
    assert cached(3, 1, w=2) == 6
    assert cached(3.0) == 4.0
    assert len(CALLS) == 6


@pytest.mark.parametrize(
    "value",
    [None, True, 0, 1 << 200, 1.5, "text", b"bytes", (1, [2, {"a": {3}}]), {"k": None}, range(3), np.float32(2), int],
)
def test_any_picklable_value_comes_back_as_it_was(memory, value):
    cached = memory.cache(lambda: value)
    for _ in range(3):
        result = cached()
        assert result == value
        assert type(result) is type(value)


def test_functions_as_values_come_back_working(memory):
    cached = memory.cache(lambda n: lambda x: x + n)
    cached(3)
    assert cached(3)(4) == 7


@pytest.mark.parametrize("n", [0, 3, 1000, 100_000, 3_000_000])
def test_arrays_come_back_writable_and_writing_to_them_changes_nothing(memory, n):
    cached = memory.cache(make_array)
    for _ in range(3):
        array = cached(n)
        assert np.array_equal(array, np.arange(n, dtype=float))
        array += 1
    assert [n] == CALLS


@pytest.mark.parametrize(
    "array",
    [
        np.asfortranarray(np.arange(100_000.0).reshape(100, 1000)),
        np.arange(200_000.0).reshape(100, 2000)[:, ::2],
        np.arange(30_000).astype("M8[s]"),
        np.array(["a", None, 3] * 5000, dtype=object),
        np.zeros(20_000, dtype=[("a", "f8"), ("b", "i4")]),
        np.ma.array(np.arange(20_000), mask=np.arange(20_000) % 3 == 0),
    ],
    ids=["fortran", "strided", "dates", "objects", "records", "masked"],
)
def test_arrays_of_any_kind_come_back_equal(memory, array):
    cached = memory.cache(lambda: {"first": array, "again": [array, array]})
    cached()
    result = cached()
    for copy in (result["first"], result["again"][1]):
        assert copy.dtype == array.dtype
        assert copy.shape == array.shape
        assert (copy == array).all()
        assert copy.flags.f_contiguous == array.flags.f_contiguous or not array.flags.forc
    assert result["first"] is result["again"][0]


def test_arrays_as_arguments_are_told_apart_by_their_contents(memory):
    cached = memory.cache(lambda a: CALLS.append(1) or float(a.sum()))
    big = np.arange(1_000_000.0)
    assert cached(big) == cached(big.copy()) == big.sum()
    assert len(CALLS) == 1
    big[777_777] += 1
    assert cached(big) == big.sum()
    assert len(CALLS) == 2


def test_a_kept_large_array_is_a_view_of_its_file(memory):
    cached = memory.cache(make_array)
    cached(500_000)
    array = cached(500_000)
    with open("/proc/self/maps") as maps:
        assert any("/shoal/" in line and "make_array" in line for line in maps)
    assert array.ctypes.data % 64 == 0


def test_ignored_parameters_do_not_count(memory):
    cached = memory.cache(add, ignore=["y"])
    assert cached(1, 2) == cached(1, 3) == cached(1, y=50) == 3
    everything = memory.cache(add, ignore=["*", "**"])
    assert everything(1, 1, 5, q=1) == everything(1, 1, 6) == 8
    with pytest.raises(ValueError, match="argument 'nope' is not defined"):
        memory.cache(add, ignore=["nope"])(1)
    with pytest.raises(ValueError, match="must be a list"):
        memory.cache(add, ignore="y")


def test_ignored_parameters_are_found_through_a_decorator(memory):
    def decorate(function):
        @functools.wraps(function)
        def wrapper(*args, **kwargs):
            return function(*args, **kwargs)

        return wrapper

    @memory.cache(ignore=["y"])
    @decorate
    def function(x, y=None):
        CALLS.append(x)
        return x

    assert function(1, y=2) == function(1, y=3) == function(x=1) == 1
    assert CALLS == [1]


def test_arguments_that_do_not_fit_are_the_functions_own_error(memory):
    cached = memory.cache(lambda x, /, y: x)
    for call in (
        lambda: cached(),
        lambda: cached(1),
        lambda: cached(x=1, y=2),
        lambda: cached(1, 2, 3),
        lambda: cached(1, 2, y=3),
    ):
        with pytest.raises(TypeError):
            call()


def test_an_exception_is_not_kept(memory):
    @memory.cache
    def fails(x):
        CALLS.append(x)
        raise ValueError("as always")

    for _ in range(3):
        with pytest.raises(ValueError, match="as always"):
            fails(1)
    assert len(CALLS) == 3


def test_a_function_that_calls_itself_is_kept_at_each_step(memory):
    @memory.cache
    def fibonacci(n):
        CALLS.append(n)
        return n if n < 2 else fibonacci(n - 1) + fibonacci(n - 2)

    assert fibonacci(30) == 832040
    assert len(CALLS) == 31


# ---- kinds of functions ----


class Scale:
    def __init__(self, factor):
        self.factor = factor

    def times(self, x):
        CALLS.append(x)
        return self.factor * x

    def __call__(self, x):
        return self.times(x)

    @classmethod
    def named(cls, x):
        CALLS.append(x)
        return cls.__name__ * x


def test_methods_depend_on_their_object(memory):
    two, three = memory.cache(Scale(2).times), memory.cache(Scale(3).times)
    assert [two(5), two(5), three(5), memory.cache(Scale(2).times)(5)] == [10, 10, 15, 10]
    assert len(CALLS) == 2
    instance = Scale(4)
    method = memory.cache(instance.times)
    assert method(1) == 4
    instance.factor = 5
    assert method(1) == 5
    named = memory.cache(Scale.named)
    assert named(2) == named(2) == "ScaleScale"
    assert len(CALLS) == 5


def test_objects_that_can_be_called_depend_on_themselves(memory):
    two, three = memory.cache(Scale(2)), memory.cache(Scale(3))
    assert [two(5), two(5), three(5)] == [10, 10, 15]
    assert len(CALLS) == 2


class KeepsItsOwn:
    def __init__(self, memory, n):
        self.n = n
        self.times = memory.cache(self.times)

    def times(self, x):
        CALLS.append(x)
        return self.n * x


def test_a_method_that_is_cached_in_its_own_object_works(memory):
    assert [KeepsItsOwn(memory, 2).times(3), KeepsItsOwn(memory, 2).times(3), KeepsItsOwn(memory, 4).times(3)] == [
        6,
        6,
        12,
    ]
    assert len(CALLS) == 2


def test_partials_are_calls_of_the_function_inside(memory):
    cached = memory.cache(functools.partial(add, 1, z=5))
    assert cached(2) == cached(2) == 8
    assert cached(2, z=0) == 3
    assert memory.cache(functools.partial(add, 2, z=5))(2) == 9
    assert memory.cache(add)(1, 2, z=5) == 8
    assert len(CALLS) == 3


def test_built_in_functions_can_be_cached(memory):
    cached = memory.cache(max)
    assert cached(1, 5, 3) == cached(1, 5, 3) == 5
    assert memory.cache(np.add)(1, 2) == memory.cache(np.add)(1, 2) == 3


class Wrapper:
    """As many decorators are: an object with the name of the function inside."""

    def __init__(self, function):
        functools.update_wrapper(self, function)
        self.function = function

    def __call__(self, x):
        CALLS.append(x)
        return self.function(x)


@pytest.mark.parametrize("wrap", [Wrapper, np.vectorize, functools.lru_cache])
def test_wrappers_of_one_name_are_told_apart_by_what_they_wrap(memory, wrap):
    one, two = memory.cache(wrap(lambda x: x)), memory.cache(wrap(lambda x: x + 1))
    for _ in range(3):
        assert (int(one(1)), int(two(1))) == (1, 2)
    assert len(CALLS) == (2 if wrap is Wrapper else 0)


def test_methods_of_built_in_objects_depend_on_their_object(memory):
    assert [memory.cache(text.join)(["x", "y"]) for text in ("a", "b", "a")] == ["xay", "xby", "xay"]
    assert memory.cache([1, 2].__len__)() == 2 and memory.cache([1].__len__)() == 1
    assert memory.cache(str.upper)("a") == "A" and memory.cache(bytes.upper)(b"a") == b"A"
    assert memory.cache((2).__add__)(3) == 5 and memory.cache((4).__add__)(3) == 7


def test_an_object_that_can_be_called_and_not_be_hashed_is_called_each_time(memory):
    def hold(lock):
        wrapper = Wrapper(lambda x: x)
        wrapper.lock = lock
        return wrapper

    cached = memory.cache(hold(threading.Lock()))
    with pytest.warns(CacheWarning, match="it is a Wrapper, which cannot be hashed") as caught:
        assert [cached(1), cached(1)] == [1, 1]
    assert len(caught) == 1 and len(CALLS) == 2


def test_lambdas_and_functions_of_one_name_do_not_disturb_each_other(memory):
    one, two = memory.cache(lambda x: CALLS.append(1) or x), memory.cache(lambda x: CALLS.append(2) or x + 1)
    for _ in range(3):
        assert (one(1), two(1)) == (1, 2)
    assert CALLS == [1, 2]


def test_a_closure_depends_on_the_plain_values_in_it(memory):
    def make(n, f=None):
        @memory.cache
        def inner(x):
            CALLS.append(x)
            return x + n + (f(x) if f else 0)

        return inner

    assert [make(1)(1), make(2)(1), make(1)(1)] == [2, 3, 2]
    assert len(CALLS) == 2
    assert make(1, lambda x: 10)(1) == 12
    assert make(1, lambda x: 20)(1) == 22
    assert make(1, lambda x: 20)(1) == 22
    assert len(CALLS) == 4


def test_a_closure_that_counts_its_calls_is_still_a_hit(memory):
    count = 0
    seen = []

    @memory.cache
    def function(x):
        nonlocal count
        count += 1
        seen.append(x)
        return x

    for _ in range(3):
        assert function(1) == 1
    assert (count, seen) == (1, [1])


def test_a_closure_whose_variable_was_given_another_value_is_computed_again(memory):
    factor = 2

    @memory.cache
    def function(x):
        CALLS.append(x)
        return factor * x

    assert function(5) == 10
    factor = 3
    assert function(5) == 15
    factor = 2
    assert function(5) == 10
    assert len(CALLS) == 2


def test_decorators_with_and_without_arguments_keep_name_and_documentation(memory):
    @memory.cache
    def one(x):
        """Number one."""

    @memory.cache(verbose=0, ignore=["x"])
    def two(x):
        """Number two."""

    assert (one.__name__, one.__doc__, two.__name__) == ("one", "Number one.", "two")
    assert isinstance(one, MemorizedFunc)
    assert memory.cache(one).func is one.func
    assert repr(one).startswith("MemorizedFunc(func=")


# ---- changes of the code ----


PROGRAM = """
    import sys
    from shoal.joblib.memory import Memory
    memory = Memory(sys.argv[1], verbose=0)
    {before}
    @memory.cache
    def f(x):
        {documentation}
        print("computed")
        {remark}
        return x + {constant}
    print(f(1))
"""


def test_only_a_change_of_meaning_has_a_call_computed_again(tmp_path):
    base = {"before": "", "documentation": "", "remark": "", "constant": 1}

    def output(**changes):
        return run_with_cache(tmp_path, PROGRAM.format(**{**base, **changes})).split()

    assert output() == ["computed", "2"]
    assert output() == ["2"]
    assert output(remark="# a remark") == ["2"]
    assert output(before="import os, re\n\n") == ["2"]
    assert output(documentation="'''What it does.'''") == ["2"]
    assert output(constant="(\n         1)") == ["2"]
    assert output(constant=2) == ["computed", "3"]
    assert output() == ["2"]


def test_a_function_whose_code_is_replaced_is_computed_again(memory):
    def function(x):
        return x

    def other(x):
        return -x

    cached = memory.cache(function)
    assert cached(1) == 1
    function.__code__ = other.__code__
    assert cached(1) == -1
    function.__defaults__ = (7,)
    assert cached() == -7


def test_a_changed_default_counts(memory):
    def make(n):
        def function(x=n):
            CALLS.append(x)
            return x

        return memory.cache(function)

    assert [make(1)(), make(2)(), make(1)()] == [1, 2, 1]
    assert len(CALLS) == 2


CELL = """
import sys
from shoal.joblib.memory import Memory

def cell(number, source):
    scope = sys.modules["__main__"].__dict__
    exec(compile(source, f"/tmp/ipykernel_{number}/{number}.py", "exec"), scope)

memory = Memory(sys.argv[1], verbose=0)
SOURCE = "@memory.cache\\ndef f(x):\\n    print('computed')\\n    return x * 2\\n"
cell(int(sys.argv[2]), "\\n" * int(sys.argv[2]) + SOURCE)
print(f(21))
"""


def test_a_notebook_function_is_known_again_in_the_next_session(tmp_path):
    assert run_with_cache(tmp_path, CELL, "3").split() == ["computed", "42"]
    assert run_with_cache(tmp_path, CELL, "8").split() == ["42"]
    assert run_with_cache(tmp_path, CELL, "8", name="another.py").split() == ["42"]
