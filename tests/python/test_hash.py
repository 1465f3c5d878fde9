"""`hash`: equal values have equal digests, others have not, and joblib agrees on which is which."""

from __future__ import annotations

import collections
import copy
import datetime
import decimal
import functools
import io
import os
import pathlib
import pickle
import subprocess
import sys

import joblib
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from shoal.joblib.hashing import hash


def fresh(value):
    """A copy that shares nothing with anything: joblib's digests depend on what is shared within a value."""
    kind = type(value)
    if kind is list:
        return [fresh(item) for item in value]
    if kind is tuple:
        return tuple([fresh(item) for item in value])
    if kind is dict:
        return {fresh(key): fresh(item) for key, item in value.items()}
    if kind is set:
        return {fresh(item) for item in value}
    return value


scalars = (
    st.none()
    | st.booleans()
    | st.integers(-3, 3)
    | st.integers()
    | st.sampled_from([0.0, -0.0, 1.0, float("nan"), float("inf"), 1e300])
    | st.floats()
    | st.complex_numbers(max_magnitude=3)
    | st.text(max_size=3)
    | st.binary(max_size=3)
)
keys = st.integers(-3, 3) | st.integers()  # one orderable type: only there joblib's dicts and sets are sound
values = st.recursive(
    scalars,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.tuples(inner, inner)
        | st.dictionaries(keys, inner, max_size=3)
        | st.dictionaries(st.text(max_size=2), inner, max_size=3)
        | st.sets(keys, max_size=3)
    ),
    max_leaves=8,
)


@settings(max_examples=400, deadline=None)
@given(values, values)
def test_two_values_have_one_digest_here_exactly_if_they_have_one_in_joblib(one, other):
    assert (hash(fresh(one)) == hash(fresh(other))) == (joblib.hash(fresh(one)) == joblib.hash(fresh(other)))


@settings(max_examples=200, deadline=None)
@given(values)
def test_a_copy_has_the_digest_of_its_original(value):
    assert hash(value) == hash(copy.deepcopy(value)) == hash(fresh(value))
    assert hash(value) == hash(pickle.loads(pickle.dumps(value)))


@settings(max_examples=100, deadline=None)
@given(st.dictionaries(st.text(max_size=3) | keys | st.tuples(keys), values, max_size=6), st.randoms())
def test_the_order_of_a_dict_and_a_set_does_not_count(mapping, random):
    items = list(mapping.items())
    random.shuffle(items)
    assert hash(dict(items)) == hash(mapping)
    assert hash({key for key, _ in items}) == hash(set(mapping))
    assert hash(frozenset(key for key, _ in items)) == hash(frozenset(mapping))


EXAMPLES = [
    1, 2, True, False, None, 0, 1.0, -0.0, 0.0, 1 + 0j, "a", "b", "ab", b"a", bytearray(b"a"), "", b"", (), [], {},
    set(),
    frozenset(), (1,), [1], {1}, frozenset({1}), {1: 1}, {1: 2}, {2: 1}, (1, 1), [1, [1]], [[1], 1], [[1, 1]], ("ab",),
    ("a", "b"), [1, 2], [2, 1], 2**63, -(2**63), 2**64, 2**64 + 1, 2**2000, -(2**2000), "\ud800", "é", "漢", "😀",
    len, sum, [].append, [1].append, np.add, np.sum, int, str, collections, datetime.date(2020, 1, 1),
    datetime.date(2020, 1, 2), decimal.Decimal("1.0"), decimal.Decimal("1"), range(3), range(4), slice(1), Ellipsis,
    pathlib.PurePosixPath("a"), collections.OrderedDict(a=1), collections.defaultdict(int, a=1), {"a": 1},
    collections.Counter("a"), collections.deque([1]), np.float64(1), np.float32(1), np.int64(1), np.bool_(True),
    np.datetime64("2020-01-01"), np.datetime64("2020-01-02"), np.str_("a"), np.dtype("f8"), np.dtype("f4"),
    np.dtype(">f8"),
    np.dtype([("a", "f8")]), np.dtype([("b", "f8")]), np.array(1.0), np.array([1.0]), np.array([[1.0]]), np.array([1]),
    np.array([1], "i4"), np.array([True]), np.array(["a"]), np.array(["a"], object), np.array([], "f8"), np.zeros((0,
    3)),
    np.zeros((3, 0)), np.arange(6.0).reshape(2, 3), np.arange(6.0).reshape(3, 2), np.arange(6.0), np.arange(6.0)[::-1],
    np.asfortranarray(np.arange(6.0).reshape(2, 3)), np.arange(12.0).reshape(2, 6)[:, ::2], np.array([1], ">i8"),
    np.array(["2020"], "M8[Y]"), np.array(["2020"], "M8[D]"), np.array([1], "m8[s]"), np.array([(1, 2)], "i4,i4"),
    np.ma.array([1, 2], mask=[0, 1]), np.ma.array([1, 2], mask=[1, 0]), memoryview(b"a"), memoryview(b"b"),
    functools.partial(max, 1), functools.partial(max, 2), lambda x: x, lambda x: x + 1,
]  # fmt: skip


def test_values_that_differ_have_different_digests():
    digests = collections.defaultdict(list)
    for example in EXAMPLES:
        digests[hash(example)].append(example)
    assert [same for same in digests.values() if len(same) > 1] == []


def test_a_digest_is_the_same_twice_and_after_pickling():
    for example in EXAMPLES:
        assert hash(example) == hash(example)
        try:
            again = pickle.loads(pickle.dumps(example))
        except (TypeError, AttributeError, pickle.PicklingError):
            continue
        if type(example).__name__ == "builtin_function_or_method" or not isinstance(example, np.ndarray):
            assert hash(again) == hash(example)


def test_a_digest_is_the_same_in_another_process_whatever_its_hash_seed():
    program = (
        "from shoal.joblib.hashing import hash; import collections, datetime, functools\n"
        "def f(x, y=[1]):\n    return [i + x for i in range(3)]\n"
        "print(hash([{'a', 'b', 'cd'}, {'x': 1, 2: ('y', frozenset('uvw'))}, f, len, datetime.date(2020, 1, 1),"
        " collections.OrderedDict(a=1, b=2), functools.partial(f, 3), 'x' * 3000000, 2.5]))"
    )
    outputs = {
        subprocess.run(
            [sys.executable, "-c", program], env={**os.environ, "PYTHONHASHSEED": seed}, capture_output=True, check=True
        ).stdout
        for seed in ("0", "1", "77")
    }
    assert len(outputs) == 1


@pytest.mark.parametrize("size", [10, 100_000, 500_000])
def test_arrays_are_told_apart_as_joblib_does(size):
    base = np.arange(size * 4, dtype="f8").reshape(size, 4)
    arrays = [
        base, base.copy(), base.T, np.asfortranarray(base), base[:, :2], base[:, :2].copy(), base[::2],
        base[::2].copy(),
        base[::-1], base.astype("f4"), base.view("i8"), base.ravel(), base.reshape(2, -1), base[:, :1], base + 1,
        np.lib.stride_tricks.as_strided(base, (size, 4), (0, 8)), base[:, ::-1], base.reshape(size, 2, 2)[:, :, 0],
    ]  # fmt: skip
    ours, theirs = [hash(array) for array in arrays], [joblib.hash(array) for array in arrays]
    for i in range(len(arrays)):
        for k in range(len(arrays)):
            assert (ours[i] == ours[k]) == (theirs[i] == theirs[k]), (i, k)


def test_equal_views_that_are_not_contiguous_are_equal_and_one_changed_element_is_seen():
    base = np.arange(4_000_000, dtype="f8").reshape(2000, 2000)
    other = base.copy()
    assert hash(base[::2, ::3]) == hash(other[::2, ::3])
    other[0, 1] = -1  # not in the view
    assert hash(base[::2, ::3]) == hash(other[::2, ::3])
    other[1998, 1998] = -1
    assert hash(base[::2, ::3]) != hash(other[::2, ::3])


def test_a_mapped_array_is_an_array_only_if_coerced(tmp_path):
    mapped = np.memmap(tmp_path / "file", shape=(10, 10), mode="w+")
    array = np.asarray(mapped)
    assert hash(mapped) != hash(array)
    assert hash(mapped, coerce_mmap=True) == hash(array, coerce_mmap=True)


def test_what_is_shared_within_a_value_does_not_count_and_is_gone_through_once():
    pair = [1, 2]
    assert hash([pair, pair]) == hash([[1, 2], [1, 2]])
    tower = []
    for _ in range(200):
        tower = [tower, tower]
    assert len(hash(tower)) == 32  # 2^200 lists, if each were gone into


class Node:
    def __init__(self, name):
        self.name = name
        self.links = []


def _circle(names):
    nodes = [Node(name) for name in names]
    for node in nodes:
        node.links = list(nodes)
    return nodes


def test_values_that_contain_themselves_have_digests():
    one, other, longer = [1], [1], [1, 2]
    for value in (one, other, longer):
        value.append(value)
    assert hash(one) == hash(other) != hash(longer)
    mapping = {"b": 1, "a": 2}
    mapping["self"] = mapping
    turned = {"a": 2, "b": 1}
    turned["self"] = turned
    assert hash(mapping) == hash(turned)
    assert hash(_circle("abc")) == hash(_circle("abc")) != hash(_circle("abd"))
    assert len(hash(_circle(str(i) for i in range(60)))) == 32  # as many ways through it as 60! would be too many


class WithMethod:
    def __init__(self, value):
        self.value = value
        self.bound = self.method

    def method(self):
        return self.value


def test_methods_go_by_name_object_and_type():
    assert hash(WithMethod(1).method) == hash(WithMethod(1).method) != hash(WithMethod(2).method)
    assert hash(io.StringIO("a").flush) == hash(io.StringIO("a").flush)
    assert hash(collections.deque(range(10)).extend) != hash(collections.deque(range(9)).extend)


def test_functions_go_by_what_they_do():
    def make(text, **names):
        scope = dict(names)
        exec(compile(text, f"<{id(text)}>", "exec"), scope)
        return scope["f"]

    plain = make("def f(x): return x + 1")
    assert hash(plain) == hash(make("\n\ndef f(x):\n    # a remark\n    '''What it does.'''\n    return (x +\n   1)\n"))
    assert hash(plain) != hash(make("def f(x): return x + 2"))
    assert hash(plain) != hash(make("def f(x): return x - 1"))
    assert hash(plain) != hash(make("def f(x, y=1): return x + 1"))
    tried = "def f(x):\n try:\n  a(x)\n {0}b(x)\n except E:\n  pass\n"
    assert hash(make(tried.format(" "))) != hash(make("def f(x):\n try:\n  a(x)\n except E:\n  pass\n b(x)\n"))

    def adder(n):
        return lambda x: x + n

    assert hash(adder(1)) == hash(adder(1)) != hash(adder(2))


def test_functions_go_by_their_names_and_all_they_hold():
    def make(module, name="f", text="def {0}(x): return helper(x)"):
        scope = {"__name__": module}
        exec(text.format(name), scope)
        return scope[name]

    assert hash(make("a")) == hash(make("a"))
    assert hash(make("a")) != hash(make("b"))  # `helper` is another there
    assert hash(make("a")) != hash(make("a", "g"))
    assert hash(make("__mp_main__")) == hash(make("__main__"))
    assert hash(functools.partial(make("a"))) != hash(functools.partial(make("b")))
    assert hash(functools.lru_cache(make("a"))) == hash(functools.lru_cache(make("a")))
    assert hash(functools.lru_cache(make("a"))) != hash(functools.lru_cache(make("b")))
    assert hash(functools.lru_cache(lambda x: x + 1)) != hash(functools.lru_cache(lambda x: x + 2))

    def holding(value):
        return lambda x: x + value

    def with_default(value):
        def inner(x, y=value, *, z=value):
            return x, y, z

        return inner

    for make_one in (holding, with_default):
        for one, other in (([1], [2]), (np.ones(3), np.zeros(3)), (WithMethod(1), WithMethod(2)), ({"a": 1}, {"a": 2})):
            assert hash(make_one(one)) == hash(make_one(copy.deepcopy(one))) != hash(make_one(other))

    def recursive(end):
        def inner(x):
            return inner(x - 1) if x > end else end

        return inner

    assert hash(recursive(1)) == hash(recursive(1)) != hash(recursive(2))


def test_what_cannot_be_reduced_says_so():
    with pytest.raises(TypeError, match="cannot pickle"):
        hash(i for i in range(3))
    with pytest.raises(ValueError, match="Valid options"):
        hash(1, hash_name="crc")
    deep = []
    for _ in range(1_000_000):
        deep = [deep]
    with pytest.raises(RecursionError):
        hash(deep)
    while deep:
        deep = deep.pop()


class Restless:
    """Changes a container while it is gone through."""

    def __init__(self, what):
        self.what = what

    def __reduce__(self):
        self.what.clear()
        return (Restless, (None,))


def test_a_container_that_changes_meanwhile_does_no_harm():
    for _ in range(20):
        items = [1, 2]
        items[1:1] = [Restless(items)] * 3
        hash(items)
        mapping = {}
        mapping.update({i: Restless(mapping) for i in range(50)})
        hash(mapping)
