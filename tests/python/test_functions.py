"""Functions by value: what arrives means what was sent, with cloudpickle only where it is needed."""

from __future__ import annotations

import _pickle
import gc
import os.path
import sys
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from helpers import run_program
from shoal import _functions

FACTOR = 3


def sent(obj: Any) -> Any:
    """As it arrives, by our own way (NotPlain where that is not for us)."""
    return _pickle.loads(_functions.dumps(obj, None, {}, False))


def test_a_lambda_arrives() -> None:
    arrived = sent(lambda x, y=2, *, z=5: (x, y, z, FACTOR))
    assert arrived(1) == (1, 2, 5, 3)
    assert arrived(1, 7, z=0) == (1, 7, 0, 3)


def test_globals_are_a_copy_of_those_the_code_names() -> None:
    arrived = sent(lambda: FACTOR)
    assert "FACTOR" in arrived.__globals__ and "Path" not in arrived.__globals__
    arrived.__globals__["FACTOR"] = 4
    assert (arrived(), FACTOR) == (4, 3)
    assert arrived.__globals__["__name__"] == __name__


def test_a_recursive_closure_calls_itself() -> None:
    def factorial(n: int) -> int:
        return 1 if n == 0 else n * factorial(n - 1)

    arrived = sent(factorial)
    assert arrived(10) == 3628800
    assert arrived.__closure__[0].cell_contents is arrived


def test_functions_of_one_message_share_their_globals_and_cells() -> None:
    count = 0

    def add() -> None:
        nonlocal count
        count += 1

    def read() -> int:
        return count

    arrived_add, arrived_read = sent([add, read])
    arrived_add()
    arrived_add()
    assert (arrived_read(), read()) == (2, 0)
    assert arrived_add.__globals__ is arrived_read.__globals__


def test_an_empty_cell_stays_empty() -> None:
    def outer() -> Callable[[], int]:
        def inner() -> int:
            return late

        if FACTOR < 0:
            late = 1
        return inner

    with pytest.raises(NameError, match="late"):
        sent(outer())()


def test_what_describes_a_function_arrives_with_it() -> None:
    def described(x: int) -> str:
        """What it is for."""
        return str(x)

    described.note = [1, 2]  # type: ignore[attr-defined]
    arrived = sent(described)
    assert arrived.__doc__ == "What it is for."
    assert arrived.__name__ == "described"
    assert arrived.__qualname__ == described.__qualname__
    assert arrived.__module__ == __name__
    assert arrived.__annotations__ == described.__annotations__
    assert arrived.note == [1, 2]


def test_names_inside_of_inner_functions_and_comprehensions_count() -> None:
    assert sent(lambda: [FACTOR * i for i in range(2)] + (lambda: [os.path.sep])())() == [0, 3, "/"]


def test_a_submodule_that_the_code_reaches_through_its_package_is_imported() -> None:
    import xml.dom.minidom

    function = lambda: xml.dom.minidom.parseString("<a/>").documentElement.tagName  # noqa: E731
    pickled = _functions.dumps(function, None, {}, False)
    assert b"xml.dom.minidom" in pickled
    assert _pickle.loads(pickled)() == "a"


def test_types_that_no_module_shows_are_found() -> None:
    assert sent([lambda: None, type(None), type(...), type(NotImplemented), int])[1:] == [
        type(None),
        type(...),
        type(NotImplemented),
        int,
    ]


@pytest.mark.parametrize("what", ["class", "method", "module"])
def test_what_is_not_plain_is_left_to_cloudpickle(what: str) -> None:
    import types

    class Local:
        def method(self) -> int:
            return 1

    value = {"class": Local, "method": Local().method, "module": types.ModuleType("made_up")}[what]
    with pytest.raises(_functions.NotPlain):
        sent(lambda: value)


PROGRAM = """
    import sys
    from shoal.joblib import Parallel, delayed

    LIMIT = 4

    def helper(x):
        return x + LIMIT

    def even(n):
        return True if n == 0 else odd(n - 1)

    def odd(n):
        return False if n == 0 else even(n - 1)

    {extra}

    def work(x):
        return helper(x), even(x), "cloudpickle" in sys.modules, {use}

    if __name__ == "__main__":
        print(Parallel(n_jobs=2)(delayed(work)(i) for i in range(4)))
        print("cloudpickle" in sys.modules)
"""


def test_a_programs_plain_functions_need_no_cloudpickle(tmp_path: Path) -> None:
    done = run_program(tmp_path, PROGRAM.format(extra="", use="None"))
    assert done.stdout.splitlines() == [
        str([(i + 4, i % 2 == 0, False, None) for i in range(4)]),
        "False",
    ], done.stderr


def test_a_programs_classes_go_by_cloudpickle(tmp_path: Path) -> None:
    done = run_program(tmp_path, PROGRAM.format(extra="class Point:\n        x = 5", use="Point().x"))
    assert done.stdout.splitlines() == [
        str([(i + 4, i % 2 == 0, True, 5) for i in range(4)]),
        "True",
    ], done.stderr


def test_modules_that_the_program_wants_by_value_are_left_to_cloudpickle() -> None:
    import cloudpickle

    module = sys.modules[__name__]
    cloudpickle.register_pickle_by_value(module)
    try:
        with pytest.raises(_functions.NotPlain):
            sent(lambda: FACTOR)
    finally:
        cloudpickle.unregister_pickle_by_value(module)


values = list(range(100_000))


def test_a_global_that_shares_its_name_with_an_attribute_stays_at_home() -> None:
    assert len(_functions.dumps(lambda x: x.values, None, {}, False)) < 2000
    assert "values" in sent(lambda: values).__globals__


def test_names_beyond_the_256th_are_found() -> None:
    names = [f"name_{i}" for i in range(400)]
    namespace: dict[str, Any] = {name: i for i, name in enumerate(names)}
    namespace["__name__"] = "elsewhere"
    exec(f"def function(): return [{', '.join(names)}]", namespace)
    assert sent(namespace["function"])() == list(range(400))


def test_decorated_functions_generators_and_coroutines_arrive() -> None:
    import asyncio
    import functools

    def twice(function: Any) -> Any:
        @functools.wraps(function)
        def wrapper(*args: Any) -> Any:
            return 2 * function(*args)

        return wrapper

    @twice
    def decorated(x: int) -> int:
        return x + FACTOR

    async def coroutine(x: int) -> int:
        await asyncio.sleep(0)
        return x

    arrived = sent(decorated)
    assert arrived(1) == 8
    assert arrived.__wrapped__(1) == 4
    assert list(sent(lambda: (yield FACTOR))()) == [3]
    assert asyncio.run(sent(coroutine)(5)) == 5


# ------------------------------------------------------------ sent once, or each time


def stays(function: Any) -> bool:
    """Whether workers keep a function from call to call, as it is now."""
    before = _functions.describe_unchanging(function)
    now = _functions.describe_unchanging(function)
    return before is not None and now is not None and _functions.is_described_by(now, before)


def make(source: str, name: str = "f", **given: Any) -> Any:
    """A function of a program."""
    namespace: dict[str, Any] = {"__name__": "__main__", **given}
    exec(source, namespace)
    return namespace[name]


@pytest.mark.parametrize(
    "source",
    [
        "def f(x: int = 3, *, y=None) -> float:\n    return x * scale\nscale = 2.5",
        "import math, os.path\ndef f(x):\n    return math.sqrt(len(os.path.basename(x)))",
        "def f(x):\n    return g(x) + g(x)\ndef g(x):\n    return f(x - 1) if x else 0",
        "f = lambda x: [y for y in range(x)]",
        "from collections import OrderedDict\ndef f(x):\n    made = OrderedDict()\n    made.extra = x\n    return made",
    ],
)
def test_a_function_without_a_state_need_be_sent_once(source: str) -> None:
    assert stays(make(source))


@pytest.mark.parametrize(
    "source",
    [
        "seen = []\ndef f(x):\n    seen.append(x)",
        "count = 0\ndef f(x):\n    global count\n    count += 1",
        "def f(x):\n    def inner():\n        global made\n        made = x\n    inner()",
        "def f(x, seen=[]):\n    seen.append(x)",
        "def f(x, *, seen=[]):\n    seen.append(x)",
        "def f(x):\n    f.calls = x",
        "def f(x):\n    setattr(f, 'calls', x)",
        "def f(x):\n    globals()['count'] = x",
        "def f(x):\n    exec('count = 1', globals())",
        "def f(x):\n    return x\nf.calls = 0",
        "def outer():\n    count = 0\n    def f(x):\n        return count\n    return f\nf = outer()",
        "class Own:\n    calls = 0\ndef f(x):\n    Own.calls += 1",
        "import functools\n@functools.lru_cache\ndef g(x):\n    return x\ndef f(x):\n    return g(x)",
        "def g(x, seen=[]):\n    seen.append(x)\ndef f(x):\n    return g(x)",
        "def make(y):\n    def g(x, seen=y):\n        return seen\n    return g\na, b = make(1), make([])\n"
        "def f(x):\n    return a(x), b(x)",
        "def mark(g):\n    g.calls = 1\ndef f(x):\n    mark(f)",
        "import functools\ndef g():\n    pass\ndef f(x):\n    functools.update_wrapper(g, abs)",
        "from functools import wraps\ndef g():\n    pass\ndef f(x):\n    wraps(abs)(g)",
        "def f(x):\n    f.__globals__['calls'] = x",
        "def g():\n    pass\ndef f(x):\n    g.__dict__['calls'] = x",
        "import types\nsettings = types.ModuleType('settings')\nsettings.a = 1\ndef f(x):\n    return settings.a",
        "text = 'x' * 100_000\ndef f(x):\n    return len(text)",
        "".join(f"def g{i}(x):\n    return g{i + 1}(x)\n" for i in range(900)) + "def g900(x):\n    return x\nf = g0",
    ],
)
def test_a_function_that_may_have_a_state_is_sent_each_time(source: str) -> None:
    assert _functions.describe_unchanging(make(source)) is None


def test_a_function_of_the_programs_that_others_are_handed_is_sent_each_time() -> None:
    calls = "def g(x):\n    return x\ndef f(x, own):\n    own.seen = "
    # Before 3.11 code does not tell calls from other uses.
    assert stays(make(calls + "g(x) + g(*x) + g(**x) + [g(y) for y in x]")) == (sys.version_info >= (3, 11))
    for handed in ("map(g, x)", "[g]", "g.attribute", "{x: g}", "x(key=g)", "(lambda y=g: y)", "(lambda: g)"):
        assert _functions.describe_unchanging(make(calls + handed)) is None, handed


def test_what_a_program_has_dropped_is_not_held_by_the_description_of_its_function() -> None:
    class Large:
        pass

    large = Large()
    function = make("def g(x):\n    return f(x)\ndef f(x):\n    return g(x)", large=large)
    description = _functions.describe_unchanging(function)
    dropped = weakref.ref(large), weakref.ref(function)
    del large, function
    gc.collect()
    assert description is not None
    assert [reference() for reference in dropped] == [None, None]


def test_functions_that_differ_in_which_of_two_they_name_are_told_apart() -> None:
    source = "def make():\n    def g(x):\n        return x\n    return g\na, b = make(), make()\n"
    function = make(source + "def f():\n    return a(b(1))")
    before = _functions.describe_unchanging(function)
    function.__globals__["b"] = function.__globals__["a"]
    now = _functions.describe_unchanging(function)
    assert before is not None and now is not None
    assert not _functions.is_described_by(now, before)


def test_a_change_of_what_a_function_is_made_of_shows() -> None:
    function = make("import math\nscale = 2\ndef g(x):\n    return x\ndef f(x, y=1):\n    return g(x) * scale", "f")
    namespace = function.__globals__
    changes: list[Callable[[], object]] = [
        lambda: namespace.update(scale=1000.5),
        lambda: namespace.update(scale=namespace["math"]),
        lambda: namespace.update(g=abs),
        lambda: namespace.pop("g"),
        lambda: setattr(function, "__defaults__", (7000,)),
        lambda: setattr(function, "__code__", make("def f(x, y=1):\n    return x").__code__),
        lambda: setattr(function, "__doc__", "Something."),
        lambda: setattr(function, "__name__", "another"),
        lambda: (setattr(function, "__defaults__", ("y", 1)), setattr(function, "__kwdefaults__", {})),
        lambda: (setattr(function, "__defaults__", ()), setattr(function, "__kwdefaults__", {"y": 1})),
    ]
    for change in changes:
        before = _functions.describe_unchanging(function)
        assert before is not None
        change()
        now = _functions.describe_unchanging(function)
        assert now is not None
        assert not _functions.is_described_by(now, before)


def test_a_change_of_one_of_two_functions_with_the_same_code_shows() -> None:
    source = "def make(y):\n    def g(x, y=y):\n        return x + y\n    return g\na, b = make(1), make(2)\n"
    function = make(source + "def f(x):\n    return a(x), b(x)")
    before = _functions.describe_unchanging(function)
    function.__globals__["b"].__defaults__ = (3,)
    now = _functions.describe_unchanging(function)
    assert before is not None and now is not None
    assert not _functions.is_described_by(now, before)
