"""What a cached function's results rest on: the project's code and globals it uses, however it reaches them, and what
its closure holds. After a change there a call is computed again, and never before."""

from __future__ import annotations

import functools
import subprocess
import sys
import textwrap
import threading
import types
import warnings

import numpy as np
import pytest
from shoal.joblib import Memory
from shoal.joblib.memory import CacheWarning

CALLS: list[object] = []


@pytest.fixture(autouse=True)
def no_calls_yet():
    CALLS.clear()


@pytest.fixture
def memory(tmp_path):
    return Memory(tmp_path, verbose=0)


def double(x):
    CALLS.append(x)
    return x * 2


def project(source, name="project_under_test"):
    """A module of its own, whose code can be run anew."""
    module = types.ModuleType(name)
    sys.modules[name] = module
    if "." in name:
        parent, _, last = name.rpartition(".")
        setattr(sys.modules[parent], last, module)
    module.CALLS = CALLS
    run(module, source)
    return module


def run(module, source):
    exec(compile(textwrap.dedent(source), f"{module.__name__}.py", "exec"), module.__dict__)


# ---- the project's code and plain globals ----

BASE = """
    RATE = 3
    TABLE = {"a": 1, "b": [2]}
    SEEN = []
    COUNT = 0

    class Model:
        FACTOR = 2
        def __init__(self, x):
            self.x = x
        def run(self):
            return self.x * self.FACTOR

    def deepest(x):
        return x + 1

    def helper(x):
        SEEN.append(x)
        return deepest(x) * RATE + TABLE["a"]

    def f(x):
        global COUNT
        COUNT += 1
        CALLS.append(x)
        return helper(x) + Model(x).run()
"""


@pytest.mark.parametrize(
    ("change", "counts"),
    [
        ("def deepest(x):\n    return x + 2", True),
        ("def helper(x):\n    return deepest(x)", True),
        ("RATE = 4", True),
        ("TABLE = {'a': 5}", True),
        ("TABLE['b'].append(1)", True),
        ("class Model:\n    FACTOR = 3\n    def __init__(self, x):\n        self.x = x\n"
         "    def run(self):\n        return self.x * self.FACTOR", True),
        ("def deepest(x):\n    'documented now'\n\n    # and commented\n    return x + 1", False),
        ("RATE = 3", False),
        ("SEEN.append(1)", False),
        ("COUNT = 17", False),
        ("UNUSED = 1", False),
        ("def unused(): pass", False),
    ],
)  # fmt: skip
def test_a_call_depends_on_the_projects_functions_and_globals_it_uses(tmp_path, change, counts):
    module = project(BASE)
    f = Memory(tmp_path, verbose=0).cache(module.f)
    f(1), f(1)
    assert CALLS == [1]
    run(module, change)
    assert bool(f.explain(1)) is not counts
    f(1), f(1)
    assert len(CALLS) == (2 if counts else 1)


def test_another_process_with_the_same_code_finds_the_results(tmp_path):
    module = project(BASE)
    Memory(tmp_path, verbose=0).cache(module.f)(1)
    again = project(BASE)
    Memory(tmp_path, verbose=0).cache(again.f)(1)
    assert CALLS == [1]


def test_what_is_outside_of_the_project_counts_when_it_is_named(tmp_path):
    other = project("def outer(x):\n    return x", "other_project")
    module = project("import other_project\nfrom other_project import outer\n"
                     "def f(x):\n    CALLS.append(x)\n    return outer(x) + other_project.outer(x)")  # fmt: skip
    memory = Memory(tmp_path, verbose=0)
    own, named, alone = memory.cache(module.f), memory.cache(module.f, follow=["other_project"]), None
    alone = memory.cache(follow=False)(module.f)
    own(1), named(1), alone(1)
    assert len(CALLS) == 3
    run(other, "def outer(x):\n    return x + 1")
    module.outer = other.outer
    own(1), alone(1)
    assert len(CALLS) == 3
    named(1)
    assert len(CALLS) == 4


def test_following_can_be_turned_off(tmp_path):
    module = project(BASE)
    f = Memory(tmp_path, verbose=0, follow=False).cache(module.f)
    f(1)
    run(module, "RATE = 99")
    f(1)
    assert CALLS == [1]


def test_explain_says_what_changed_and_what_was_nearest(tmp_path):
    module = project(BASE)
    memory = Memory(tmp_path, verbose=0)
    f = memory.cache(module.f)
    assert "no call of this function" in f.explain(1).reason
    f(1)
    assert f.explain(1).hit and "a hit" in str(f.explain(1))
    assert "x was 1" in f.explain(2).reason
    assert "do not fit" in f.explain(1, 2, 3).reason
    run(module, "RATE = 4\ndef deepest(x):\n    return x - 1")
    assert sorted(f.explain(1).changed) == [
        "function project_under_test.deepest changed", "global project_under_test.RATE changed",
    ]  # fmt: skip
    assert CALLS == [1]
    refusing = memory.cache(double, cache_validation_callback=lambda metadata: False)
    refusing(3)
    assert "cache_validation_callback" in refusing.explain(3).reason


DEFAULTS = """
def helper(a, k=1, *, z=3):
    return a * k + z
def f(x, y=2, *, w=(1, 2)):
    return helper(x) + y + w[0]
"""


@pytest.mark.parametrize(
    ("old", "new", "named"),
    [
        ("y=2", "y=3", ["the default of y changed"]),
        ("w=(1, 2)", "w=(1, 3)", ["the default of w changed"]),
        ("y=2", "y=list(range(1000))", ["the default of y changed"]),
        ("k=1", "k=4", ["the default of k of function project_under_test.helper changed"]),
        ("z=3", "z=4", ["the default of z of function project_under_test.helper changed"]),
        ("x, y=2, *, w=(1, 2)", "x, y=5, *, w=()", ["the default of y changed", "the default of w changed"]),
    ],
)
def test_explain_names_a_default_that_changed(tmp_path, old, new, named):
    memory = Memory(tmp_path, verbose=0)
    memory.cache(project(DEFAULTS).f)(1)
    assert old in DEFAULTS
    f = memory.cache(project(DEFAULTS.replace(old, new)).f)
    explanation = f.explain(1)
    assert not explanation and explanation.changed == named
    assert named[0] in explanation.reason and "looked the same" not in explanation.reason
    given = f.explain(2)  # another call: no default is to blame
    assert (not given and "x was 1" in given.reason) or "other arguments" in given.reason


def test_explain_names_a_default_whose_text_is_the_same_and_what_it_was_where_it_is_given(tmp_path):
    memory = Memory(tmp_path, verbose=0)
    memory.cache(project(DEFAULTS).f)(1)
    assert "y was 2" in memory.cache(project(DEFAULTS).f).explain(1, 7).reason
    long = "def f(x, y=[*range(1000), {}]):\n    return x"
    memory.cache(project(long.format(1)).f)(1)
    assert memory.cache(project(long.format(2)).f).explain(1).changed == ["the default of y changed"]
    function = "def f(x, y=2, *, key=lambda value: value):\n    return x"  # whose text is another each time
    memory.cache(project(function).f)(1)
    assert memory.cache(project(function.replace("y=2", "y=3")).f).explain(1).changed == ["the default of y changed"]


def test_functions_that_use_each_other_are_no_trouble(tmp_path):
    module = project("""
        def even(n):
            CALLS.append(n)
            return n == 0 or odd(n - 1)
        def odd(n):
            return n != 0 and even(n - 1)
    """)
    module.even = Memory(tmp_path, verbose=0).cache(module.even)
    assert module.even(10) is True and module.even(10) is True
    assert len(CALLS) == 6


# ---- however they are reached ----

HELPER = "def helper(x):\n    return x + {}"

WAYS = {
    "from import": "from project_under_test.inner import helper\n    return helper(x)",
    "from import as": "from project_under_test.inner import helper as other\n    return other(x)",
    "relative import": "from .inner import helper\n    return helper(x)",
    "from package": "from . import inner\n    return inner.helper(x)",
    "import": "import project_under_test.inner\n    return project_under_test.inner.helper(x)",
    "import as": "import project_under_test.inner as i\n    return i.helper(x)",
    "import for an inner function": "import project_under_test.inner as i\n    return (lambda y: i.helper(y))(x)",
    "import in an inner function": "def g(y):\n        from .inner import helper\n"
                                   "        return helper(y)\n    return g(x)",
    "getattr of a module": "import project_under_test.inner as i\n    return getattr(i, 'helper')(x)",
    "getattr with default": "from . import inner\n    return getattr(inner, 'helper', None)(x)",
}  # fmt: skip


@pytest.mark.parametrize("way", WAYS)
def test_helpers_that_are_imported_in_a_function_count(memory, way):
    package = project("")
    package.__path__ = []
    inner = project(HELPER.format(1), "project_under_test.inner")
    package.__package__ = "project_under_test"
    run(package, f"def f(x):\n    CALLS.append(x)\n    {WAYS[way]}")
    f = memory.cache(package.f)
    assert [f(1), f(1)] == [2, 2] and len(CALLS) == 1
    run(inner, HELPER.format(5))
    assert [f(1), f(1)] == [6, 6] and len(CALLS) == 2
    run(inner, HELPER.format("1  # as at first"))
    assert f(1) == 2 and len(CALLS) == 2


def test_a_module_that_the_first_call_would_import_counts_from_the_first_call_on(tmp_path):
    folder = tmp_path / "lazy_package"
    folder.mkdir()
    (folder / "__init__.py").write_text("")
    (folder / "main.py").write_text(
        f"from shoal.joblib import Memory\n@Memory({str(tmp_path)!r}, verbose=0).cache\n"
        "def f(x):\n    from lazy_package.late import helper\n    print('computed')\n    return helper(x)\n"
    )

    def output(constant):
        (folder / "late.py").write_text(f"def helper(x):\n    return x + {constant}\n# {constant * 'x'}")
        return subprocess.run(
            [sys.executable, "-B", "-c", "from lazy_package.main import f; print(f(1)); print(f(1))"],
            cwd=tmp_path, capture_output=True, text=True, check=True, timeout=50,
        ).stdout.split()  # fmt: skip

    assert output(1) == ["computed", "2", "2"]
    assert output(1) == ["2", "2"]
    assert output(22) == ["computed", "23", "23"]


def test_an_import_that_fails_is_the_functions_own_error(memory):
    module = project("def f(x):\n    from project_under_test.missing import y\n    return y")
    f = memory.cache(module.f)
    with pytest.raises(ModuleNotFoundError):
        f(1)


CLASSES = """
    class Base:
        def deepest(self, x):
            return x + {0}

    class Model(Base):
        def __init__(self, factor):
            self.factor = factor
        def run(self, x):
            return self._step(x)
        def _step(self, x):
            return self.deepest(x) * self.factor
"""
OBJECTS = {
    "a global": ("MODEL = Model(2)\ndef f(x):\n    CALLS.append(x)\n    return MODEL.run(x)", "f(1)"),
    "an argument": ("def f(x, model):\n    CALLS.append(x)\n    return model.run(x)", "f(1, module.Model(2))"),
    "in an argument": ("def f(x, models):\n    CALLS.append(x)\n    return models['a'][0].run(x)",
                       "f(1, {'a': [module.Model(2)]})"),
    "in a global": ("MODELS = [Model(2)]\ndef f(x):\n    CALLS.append(x)\n    return MODELS[0].run(x)", "f(1)"),
    "getattr": ("MODEL = Model(2)\ndef f(x):\n    CALLS.append(x)\n    return getattr(MODEL, 'run')(x)", "f(1)"),
    "a class as an argument": ("def f(x, kind):\n    CALLS.append(x)\n    return kind(2).run(x)", "f(1, module.Model)"),
    "a global method": ("RUN = Model(2).run\ndef f(x):\n    CALLS.append(x)\n    return RUN(x)", "f(1)"),
}  # fmt: skip


@pytest.mark.parametrize("way", OBJECTS)
def test_methods_of_objects_count(memory, way):
    function, call = OBJECTS[way]
    module = project(CLASSES.format(1) + textwrap.indent(function, "    "))

    def result():
        return eval(call, {"f": f, "module": module})

    f = memory.cache(module.f)
    assert [result(), result()] == [4, 4] and len(CALLS) == 1
    run(module, CLASSES.format(2) + textwrap.indent(function, "    "))
    f = memory.cache(module.f)
    assert [result(), result()] == [6, 6] and len(CALLS) == 2
    module.Base.deepest.__code__ = (lambda self, x: x + 3).__code__
    assert [result(), result()] == [8, 8] and len(CALLS) == 3
    module.Model._step = lambda self, x: -x
    assert [result(), result()] == [-1, -1] and len(CALLS) == 4


def test_a_method_depends_on_the_other_methods_of_its_object(memory):
    module = project(CLASSES.format(1))
    run(module, "def count(self, x):\n    CALLS.append(x)\n    return self.run(x)\nModel.count = count")
    instance = module.Model(2)
    f = memory.cache(instance.count)
    assert [f(1), f(1)] == [4, 4] and len(CALLS) == 1
    module.Base.deepest.__code__ = (lambda self, x: x + 2).__code__
    assert [f(1), f(1)] == [6, 6] and len(CALLS) == 2


def test_what_a_function_among_the_arguments_calls_counts(memory):
    module = project("def deep(x):\n    return x\ndef helper(x):\n    return deep(x)\n"
                     "def f(g, x):\n    CALLS.append(x)\n    return g(x)")  # fmt: skip
    f = memory.cache(module.f)
    assert [f(module.helper, 1), f(module.helper, 1)] == [1, 1] and len(CALLS) == 1
    run(module, "def deep(x):\n    return x + 1")
    assert [f(module.helper, 1), f(module.helper, 1)] == [2, 2] and len(CALLS) == 2


VALUES = {
    "an item of an array": ("TABLE = numpy.arange(5.0)", "TABLE[x]", "TABLE[1] += 1"),
    "an array that is handed on": ("TABLE = numpy.arange(5.0)", "numpy.dot(TABLE, TABLE)", "TABLE[1] += 1"),
    "an array's method": ("TABLE = numpy.arange(5.0)", "TABLE.sum()", "TABLE[1] += 1"),
    "another array": ("TABLE = numpy.arange(5.0)", "TABLE.sum()", "TABLE = numpy.arange(6.0)"),
    "a list that is handed on": ("TABLE = [1, 2]", "sum(TABLE)", "TABLE.append(3)"),
    "a dict that is handed on": ("TABLE = {'a': 1}", "len(TABLE)", "TABLE['b'] = 3"),
    "a list under another name": ("TABLE = [1, 2]", "[t for u in (TABLE,) for t in u][0]", "TABLE[0] = 3"),
    "an array in a list": ("TABLE = [numpy.arange(5.0)]", "TABLE[0].sum()", "TABLE[0][1] += 1"),
    "a tuple with a list": ("TABLE = (1, [2])", "TABLE[1][0]", "TABLE[1][0] = 3"),
    "a partial": ("def g(a, b): return a + b\nTABLE = functools.partial(g, 1)", "TABLE(x)",
                  "TABLE = functools.partial(g, 2)"),
    "which of two functions": ("def a(): return 1\ndef b(): return 2\nTABLE, OTHER = a, b", "TABLE() - 2 * OTHER()",
                               "TABLE, OTHER = b, a"),
    "a dict of functions": ("def a(): return 1\nTABLE = {'a': a}", "TABLE['a']()", "def a(): return 2\nTABLE['a'] = a"),
    "an object": ("class C:\n    pass\nTABLE = C()\nTABLE.rate = 1", "TABLE.rate", "TABLE.rate = 2"),
    "an attribute of a class": ("class C:\n    rate = 1", "C.rate", "C.rate = 2"),
    "a list in a class": ("class C:\n    rates = [1]", "C.rates[0]", "C.rates[0] = 2"),
    "a name that was not there": ("", "TABLE if 'TABLE' in globals() else 0", "TABLE = 1"),
    "a closure's variable": ("def make(n):\n    def g(x): return x + n\n    return g\nTABLE = make(1)", "TABLE(x)",
                             "TABLE = make(2)"),
    "one of two closures": ("def make(n):\n    def g(x): return x + n\n    return g\nTABLE, OTHER = make(1), make(5)",
                            "(TABLE(x), OTHER(x))", "TABLE = make(2)"),
    "a default that can change": ("def g(x, a=[1]): return a[0]", "g(x)", "def g(x, a=[2]): return a[0]"),
    "what is wrapped": ("def wrap(g):\n    @functools.wraps(g)\n    def h(*a): return g(*a)\n    return h\n"
                        "def deep(x): return x\n@wrap\ndef g(x): return deep(x)", "g(x)", "def deep(x): return -x"),
    "a cached property": ("class C:\n    @functools.cached_property\n    def p(self): return deep()\n"
                          "def deep(): return 1", "C().p", "def deep(): return 2"),
}  # fmt: skip


@pytest.mark.parametrize("what", VALUES)
def test_what_a_function_reads_counts(memory, what):
    before, expression, after = VALUES[what]
    module = project("import functools, numpy\n" + before, "project_under_test")
    run(module, f"def f(x):\n    CALLS.append(x)\n    return {expression}")
    f = memory.cache(module.f)
    first = f(1)
    assert f(1) == first and len(CALLS) == 1
    run(module, after)
    assert not f.explain(1)
    assert f(1) == module.f.__call__(1) != first
    CALLS.clear()
    assert f(1) != first and not CALLS


STATE = {
    "a list it adds to": ("SEEN = []", "SEEN.append(x)"),
    "a count": ("COUNT = 0", "global COUNT\n    COUNT += 1"),
    "counts": ("COUNTS = {}", "COUNTS[x] = COUNTS.get(x, 0) + 1"),
    "a table of its own": ("TABLE = {}", "if x not in TABLE:\n        TABLE[x] = x\n    x = TABLE[x]"),
    "an object with state": ("class C:\n    def step(self):\n        self.n = 1\nOBJECT = C()", "OBJECT.step()"),
    "a generator of numbers": ("import numpy\nRNG = numpy.random.default_rng(0)", "RNG.random()"),
    "a count in an object": (
        "class C:\n    n = 0\n    def step(self):\n        self.n += 1\nOBJECT = C()",
        "OBJECT.step()",
    ),
    "counts by a computed key": ("COUNTS = {2: 0}", "COUNTS[x + len(str(x))] += 1"),
    "a lock": ("import threading\nLOCK = threading.Lock()", "with LOCK:\n        pass"),
}


@pytest.mark.parametrize("what", STATE)
def test_what_a_function_itself_changes_does_not_count(memory, what):
    before, statement = STATE[what]
    module = project(f"{before}\ndef f(x):\n    CALLS.append(x)\n    {statement}\n    return x")
    f = memory.cache(module.f)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert [f(1), f(1), f(1)] == [1, 1, 1]
    assert len(CALLS) == 1


def test_a_cached_class_depends_on_its_code(memory):
    source = "class C:\n    def __init__(self, x):\n        CALLS.append(x)\n        self.x = x + {}"
    module = project(source.format(1))
    assert [memory.cache(module.C)(1).x, memory.cache(module.C)(1).x] == [2, 2] and len(CALLS) == 1
    run(module, source.format(2))
    assert memory.cache(module.C)(1).x == 3 and len(CALLS) == 2


def test_a_value_that_is_also_an_index_of_a_count_counts(memory):
    module = project("RATE, COUNTS = 1, [0, 0, 0]\n"
                     "def f(x):\n    CALLS.append(x)\n    COUNTS[RATE] += 1\n    return x * RATE")  # fmt: skip
    f = memory.cache(module.f)
    assert [f(3), f(3)] == [3, 3] and len(CALLS) == 1
    module.RATE = 2
    assert f(3) == 6


# ---- closures ----


def closure_over(value, memory):
    @memory.cache
    def inner(x):
        CALLS.append(x)
        return value[x]

    return inner


@pytest.mark.parametrize(
    "values",
    [([1, 2], [1, 3]), ({1: 2}, {1: 3}), (np.array([1, 2]), np.array([1, 3])), (([1], [2]), ([1], [3])),
     (bytearray(b"ab"), bytearray(b"ac"))],
    ids=["list", "dict", "array", "tuple of lists", "bytearray"],
)  # fmt: skip
def test_closures_over_different_values_do_not_share_results(memory, values):
    one, other = (closure_over(value, memory) for value in values)
    for _ in range(2):
        assert one(1) == values[0][1]
        assert other(1) == values[1][1]
    assert closure_over(values[0], memory)(1) == values[0][1]
    assert len(CALLS) == 2


def test_a_closures_value_that_changes_has_the_call_computed_again(memory):
    values = [1, 2]
    f = closure_over(values, memory)
    assert f(1) == 2
    values[1] = 5
    assert "closure variable value changed" in f.explain(1).changed
    assert f(1) == 5
    values[1] = 2
    assert f(1) == 2 and len(CALLS) == 2


def test_closures_over_objects_and_functions_are_told_apart(memory):
    class Thing:
        def __init__(self, n):
            self.n = n

    def make(thing, functions):
        @memory.cache
        def inner(x):
            CALLS.append(x)
            return thing.n + functions["f"](x)

        return inner

    assert make(Thing(1), {"f": lambda x: x})(1) == 2
    assert make(Thing(2), {"f": lambda x: x})(1) == 3
    assert make(Thing(2), {"f": lambda x: x * 10})(1) == 12
    by = [functools.partial(lambda n, x: n * x, n) for n in (3, 4)]
    assert [make(Thing(1), {"f": f})(1) for f in by] == [4, 5]


def test_counters_and_lists_that_a_closure_adds_to_do_not_count(memory):
    def make(start):
        count, seen, counts = start, [start], {0: start}

        @memory.cache
        def inner(x):
            nonlocal count
            count += 1
            seen.append(x)
            counts[0] += 1
            CALLS.append(x)
            return x

        return inner

    assert [make(1)(1), make(2)(1), make(3)(1)] == [1, 1, 1] and len(CALLS) == 1


def test_a_counter_that_the_result_rests_on_counts(memory):
    def make(count):
        @memory.cache
        def inner(x):
            nonlocal count
            count += 1
            return x + count

        return inner

    assert [make(1)(1), make(5)(1)] == [3, 7]


def test_a_closure_over_what_cannot_be_hashed_is_computed_each_time_with_one_warning(memory):
    source = (n for n in range(10))

    @memory.cache
    def inner(x):
        return next(source)

    with pytest.warns(CacheWarning, match="'source' holds builtins.generator, which cannot be hashed") as w:
        assert [inner(1), inner(1), inner(1)] == [0, 1, 2]
    assert len(w) == 1
    assert not inner.check_call_in_cache(1) and "computed each time" in inner.explain(1).reason
    assert inner.call_and_shelve(1).get() == 3 and inner.call(1)[0] == 4


def test_a_closure_over_a_lock_is_kept(memory):
    lock = threading.Lock()

    @memory.cache
    def inner(x):
        CALLS.append(x)
        with lock:
            return x

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert [inner(1), inner(1)] == [1, 1]
    assert len(CALLS) == 1
