"""`Memory`: the second call is a look-up, and its value is right, whatever happened in between."""

from __future__ import annotations

import asyncio
import functools
import os
import pickle
import resource
import signal
import stat
import subprocess
import sys
import textwrap
import threading
import time
import warnings

import cloudpickle
import numpy as np
import pytest
from shoal.joblib.memory import (
    AsyncMemorizedFunc,
    CacheWarning,
    MemorizedFunc,
    MemorizedResult,
    Memory,
    NotMemorizedFunc,
    NotMemorizedResult,
    expires_after,
)

CALLS: list[object] = []


@pytest.fixture(autouse=True)
def no_calls_yet():
    CALLS.clear()


@pytest.fixture
def memory(tmp_path):
    return Memory(tmp_path, verbose=0)


def add(x, y=1, *args, z=0, **kwargs):
    CALLS.append((x, y))
    return x + y + sum(args) + z + sum(kwargs.values())


def make_array(n):
    CALLS.append(n)
    return np.arange(n, dtype=float)


def entries(tmp_path):
    return [path for path in (tmp_path / "shoal").rglob("*") if path.is_file() and len(path.name) == 32]


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


def run(tmp_path, source, *arguments, name="program.py", **options):
    script = tmp_path / name
    script.write_text(textwrap.dedent(source))
    result = subprocess.run(
        [sys.executable, str(script), str(tmp_path / "cache"), *arguments],
        capture_output=True,
        text=True,
        timeout=50,
        **options,
    )
    assert result.returncode == 0, result.stderr
    return result.stdout


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
        return run(tmp_path, PROGRAM.format(**{**base, **changes})).split()

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
    assert run(tmp_path, CELL, "3").split() == ["computed", "42"]
    assert run(tmp_path, CELL, "8").split() == ["42"]
    assert run(tmp_path, CELL, "8", name="another.py").split() == ["42"]


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
    assert "add - 0.0s, 0.0min" in text
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


# ---- other processes and threads ----


def test_memory_and_cached_functions_can_be_pickled(memory, tmp_path):
    cached = memory.cache(add, ignore=["z"])
    cached(1)
    again = pickle.loads(pickle.dumps(cached))
    assert again(1) == 2
    assert pickle.loads(pickle.dumps(memory)).cache(add, ignore=["z"])(1) == 2
    assert len(CALLS) == 1
    by_value = cloudpickle.loads(cloudpickle.dumps(memory.cache(lambda x: x + 1)))
    assert by_value(1) == 2


def test_a_decorated_function_of_a_module_is_pickled_by_name(tmp_path):
    (tmp_path / "library.py").write_text(
        f"from shoal.joblib.memory import Memory\n@Memory({str(tmp_path)!r}, verbose=0).cache\ndef f(x): return x\n"
    )
    sys.path.insert(0, str(tmp_path))
    try:
        import library

        assert pickle.loads(pickle.dumps(library.f)) is library.f
    finally:
        sys.path.remove(str(tmp_path))


PARALLEL = """
    import sys, os, multiprocessing
    from shoal.joblib.memory import Memory
    memory = Memory(sys.argv[1], verbose=0)

    def f(x):
        with open(sys.argv[1] + "/calls", "a") as file:
            file.write("x")
        return x * 2
    cached = memory.cache(f)

    if __name__ == "__main__":
        with multiprocessing.get_context(sys.argv[2]).Pool(2) as pool:
            assert pool.map(cached, range(20), chunksize=1) == [2 * x for x in range(20)]
            assert pool.map(cached, range(20), chunksize=1) == [2 * x for x in range(20)]
        assert [cached(x) for x in range(20)] == [2 * x for x in range(20)]
        print(os.path.getsize(sys.argv[1] + "/calls"))
"""


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_workers_share_the_results(tmp_path, method):
    assert run(tmp_path, PARALLEL, method).split() == ["20"]


def test_threads_may_call_at_the_same_time(memory):
    cached = memory.cache(make_array)
    wrong = []

    def work():
        for turn in range(100):
            n = 20_000 * (turn % 3)
            if len(cached(n)) != n:
                wrong.append(n)
            if turn % 10 == 0:
                cached.clear(warn=False)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


def test_a_killed_writer_leaves_right_values_and_no_stray_file(tmp_path):
    script = tmp_path / "writer.py"
    script.write_text(
        textwrap.dedent("""
        import sys, numpy as np
        from shoal.joblib.memory import Memory
        f = Memory(sys.argv[1], verbose=0).cache(lambda n: np.full(100_000 + n, n))
        print("ready", flush=True)
        while True:
            for n in range(5):
                f.call(n)
    """)
    )
    for turn in range(12):
        process = subprocess.Popen([sys.executable, str(script), str(tmp_path)], stdout=subprocess.PIPE)
        process.stdout.readline()
        time.sleep(0.003 * turn)
        process.send_signal(signal.SIGKILL)
        process.wait()
        process.stdout.close()
    assert len([path for path in (tmp_path / "shoal").rglob("[!.]*") if path.is_file()]) <= 5
    cached = Memory(tmp_path, verbose=0).cache(lambda n: np.full(100_000 + n, n))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for n in range(5):
            assert (cached(n) == n).all()


# ---- damage, rights, room ----


@pytest.mark.parametrize("n", [10, 100_000])
def test_damage_is_a_miss_with_a_warning_and_is_repaired(memory, tmp_path, n):
    cached = memory.cache(make_array)
    cached(n)
    (path,) = entries(tmp_path)
    sound = path.read_bytes()
    damages = [b"", sound[:100], sound[:-1], sound + b"x", os.urandom(len(sound))]
    damages += [sound[:at] + bytes([sound[at] ^ 16]) + sound[at + 1 :] for at in range(0, len(sound), len(sound) // 20)]
    for number, damage in enumerate(damages):
        path.write_bytes(damage)
        with pytest.warns(CacheWarning, match="cannot be used"):
            assert np.array_equal(cached(n), np.arange(n, dtype=float))
        assert len(CALLS) == number + 2
        assert np.array_equal(cached(n), np.arange(n, dtype=float))
        assert len(CALLS) == number + 2


def test_a_value_whose_class_is_gone_is_computed_again(memory):
    class Gone:
        pass

    module = sys.modules[__name__]
    module.Gone, Gone.__qualname__ = Gone, "Gone"
    cached = memory.cache(lambda: module.__dict__.get("Gone", int)())
    assert isinstance(cached(), Gone)
    del module.Gone
    with pytest.warns(CacheWarning, match="cannot be used"):
        assert cached() == 0
    assert cached() == 0


def test_what_others_could_have_written_is_refused(memory, tmp_path):
    cached = memory.cache(add)
    cached(1)
    (path,) = entries(tmp_path)
    path.chmod(0o666)
    with pytest.raises(PermissionError, match="group or others may write"):
        cached(1)
    path.chmod(0o600)
    assert cached(1) == 2
    (tmp_path / "shoal").chmod(0o777)
    with pytest.raises(PermissionError, match="not used"):
        subprocess_memory(tmp_path)
    assert len(CALLS) == 1


def subprocess_memory(tmp_path):
    from shoal import _engine

    return _engine.Store(str(tmp_path / "shoal"))


def test_folders_and_files_are_the_users_alone_whatever_the_umask(tmp_path):
    before = os.umask(0)
    try:
        memory = Memory(tmp_path / "new", verbose=0)
        memory.cache(add)(1)
    finally:
        os.umask(before)
    for path in (tmp_path / "new").rglob("*"):
        assert stat.S_IMODE(path.stat().st_mode) == (0o700 if path.is_dir() else 0o600)


READ_ONLY = """
    import os, sys, warnings
    from shoal.joblib.memory import Memory
    os.makedirs(sys.argv[1])
    if sys.argv[2] == "folder":
        os.chmod(sys.argv[1], 0o555)
    if os.geteuid() == 0:
        os.chown(sys.argv[1], 12345, 12345)
        os.setgid(12345), os.setuid(12345)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        memory = Memory(sys.argv[1], verbose=0)
        if sys.argv[2] == "later":
            os.chmod(sys.argv[1] + "/shoal", 0o500)
        f = memory.cache(lambda x: x + 1)
        print([f(1), f(1), f(2), memory.cache(lambda x: x + 3)(1)])
    print(len(caught))
"""


@pytest.mark.parametrize("when", ["folder", "later"])
def test_in_a_read_only_folder_values_are_computed_with_one_warning(tmp_path, when):
    tmp_path.chmod(0o755)
    for parent in tmp_path.parents:
        if parent != parent.parent and parent.stat().st_uid == os.geteuid():
            parent.chmod(parent.stat().st_mode | 0o055)
    assert run(tmp_path, READ_ONLY, when).split("\n")[:2] == ["[2, 2, 3, 4]", "1"]


def test_where_there_is_no_room_values_are_computed_with_one_warning(tmp_path):
    cached = Memory(tmp_path, verbose=0).cache(make_array)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2000, before[1]))
    try:
        with pytest.warns(CacheWarning, match="cannot be kept") as caught:
            for _ in range(3):
                assert len(cached(5000)) == 5000
        assert len(caught) == 1
        cached(10), cached(10)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert CALLS == [5000, 5000, 5000, 10]


def test_a_value_that_cannot_be_pickled_is_returned_with_one_warning(memory):
    cached = memory.cache(lambda: threading.Lock())
    with pytest.warns(CacheWarning, match="cannot be pickled") as caught:
        assert cached() is not cached()
    assert len(caught) == 1


def test_a_cached_function_goes_away_with_its_last_reference(memory):
    import gc
    import weakref

    def cycle():
        @memory.cache
        def function(x):
            return function, x

        return function

    function = cycle()
    function(1) if False else function.check_call_in_cache(1)
    gone = weakref.ref(function)
    del function
    gc.collect()
    assert gone() is None
