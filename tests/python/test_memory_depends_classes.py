"""Classes and objects that a cached function uses: what in them counts, and what of a class is only its state. A hit
looks at nothing again."""

from __future__ import annotations

import pytest
from shoal.joblib import Memory, func_inspect
from test_memory_depends import CALLS, project, run


@pytest.fixture(autouse=True)
def no_calls_yet():
    CALLS.clear()


@pytest.fixture
def memory(tmp_path):
    return Memory(tmp_path, verbose=0)


@pytest.fixture
def looks(monkeypatch):
    """How often functions were looked at, and what was met in arguments."""
    seen: list[object] = []
    for name in ("examine", "describe_met"):
        original = getattr(func_inspect, name)

        def counted(first, *args, original=original):
            seen.append(first)
            return original(first, *args)

        monkeypatch.setattr(func_inspect, name, counted)
    return seen


MEMBERS = {
    "a class method": "class C:\n    @classmethod\n    def g(cls): return {0}\ndef use(): return C.g()",
    "a static method": "class C:\n    @staticmethod\n    def g(): return {0}\ndef use(): return C.g()",
    "a property": "class C:\n    @property\n    def g(self): return {0}\ndef use(): return C().g",
    "a descriptor": "class D:\n    def __init__(self, v): self.v = v\n"
                    "    def __get__(self, owner, kind=None): return [self.v]\n"
                    "class C:\n    g = D({0})\ndef use(): return C().g[0]",
    "a named tuple": "from typing import NamedTuple\nclass C(NamedTuple):\n    g: int = {0}\ndef use(): return C().g",
    "a member of an enum": "import enum\nclass C(enum.Enum):\n    G = {0}\n    H = 77\ndef use(): return C.G.value",
    "a member of a flag": "import enum\nclass C(enum.Flag):\n    G = {0}\n    H = 64\n"
                          "def use(): return (C.G | C.H).value - 64",
    "which function a property calls": "class C:\n    def a1(self): return 1\n    def a2(self): return 2\n"
                                       "    g = property(a{0})\ndef use(): return C().g",
    "which function a special method is": "class C:\n    def a1(self): return 1\n    def a2(self): return 2\n"
                                          "    __len__ = a{0}\ndef use(): return len(C())",
    "a metaclass": "class M(type):\n    def g(cls): return {0}\nclass C(metaclass=M): pass\ndef use(): return C.g()",
    "a default that objects have instead": "class C:\n    g = {0}\n    def __init__(self, g=None):\n"
                                           "        if g is not None: self.g = g\ndef use(): return C().g",
    "a class in a registry": "class B:\n    known = {{}}\n    def __init_subclass__(cls): B.known[cls.__name__] = cls\n"
                             "class C(B):\n    def g(self): return {0}\ndef use(): return B.known['C']().g()",
    "a class that registers": "class B:\n    known = {{}}\n    @classmethod\n    def add(cls, kind):\n"
                              "        cls.known[kind.__name__] = kind\n        return kind\n"
                              "@B.add\nclass C:\n    def g(self): return {0}\ndef use(): return B.known['C']().g()",
    "the class of an object that is changed": "class C:\n    def g(self): return {0}\nOBJECT = C()\n"
                                              "def use():\n    OBJECT.used = True\n    return OBJECT.g()",
    "an object that lets no name be asked for": "class C:\n    def __getattr__(self, name): raise RuntimeError(name)\n"
                                                "    def __call__(self): return {0}\nOBJECT = C()\n"
                                                "def use(): return OBJECT()",
}  # fmt: skip


@pytest.mark.parametrize("what", MEMBERS)
def test_what_is_in_a_class_counts_and_is_looked_at_once(memory, looks, what):
    module = project(MEMBERS[what].format(1) + "\ndef f(x):\n    CALLS.append(x)\n    return use() + x")
    f = memory.cache(module.f)
    assert [f(1), f(1), f(1)] == [2, 2, 2] and len(CALLS) == 1
    assert len(looks) == 1
    run(module, MEMBERS[what].format(2))
    assert [f(1), f(1), f(1)] == [3, 3, 3] and len(CALLS) == 2


def test_an_argument_with_a_class_method_is_looked_at_once(memory, looks):
    module = project("class C:\n    @classmethod\n    def g(cls): return 1\n"
                     "def f(x):\n    CALLS.append(x)\n    return x.g()")  # fmt: skip
    f, value = memory.cache(module.f), module.C()
    assert [f(value), f(value), f(value)] == [1, 1, 1] and len(CALLS) == 1
    assert len(looks) == 2  # the function, and the class of its argument


STATE = {
    "a counter": ("made = 0", "def __init__(self): C.made += 1"),
    "a counter of a class method": ("made = 0", "@classmethod\n    def note(cls): cls.made += 1"),
    "a counter of the object's type": ("made = 0", "def note(self): type(self).made += 1"),
    "a counter of the object's class": ("made = 0", "def note(self): self.__class__.made += 1"),
    "a cache": ("kept = {}", "def note(self): self.kept[len(self.kept)] = 1"),
    "a list": ("kept = []", "def note(self): C.kept.append(1)"),
    "a list of the object's type": ("kept = []", "def note(self): type(self).kept.append(1)"),
    "a list in a variable": ("kept = []", "def note(self):\n        kind = type(self)\n        kind.kept.append(1)"),
    "lists in a dict": ("kept = {1: []}", "def note(self): self.kept[1].append(1)"),
    "the only object": ("only = None", "def __new__(cls):\n        if cls.only is None:\n"
                        "            cls.only = object.__new__(cls)\n        return cls.only"),
}  # fmt: skip


@pytest.mark.parametrize("what", STATE)
def test_the_state_of_a_class_does_not_count_but_its_methods_do(memory, what):
    value, method = STATE[what]
    note = "" if "def note" in method else "    def note(self): pass\n"
    module = project(
        f"class C:\n    {value}\n    {method}\n{note}    def g(self): return 1\n"
        "def f(x):\n    CALLS.append(x)\n    value = C()\n    value.note()\n    return value.g() + x"
    )
    f = memory.cache(module.f)
    assert [f(1), f(1), f(1)] == [2, 2, 2]
    assert len(CALLS) == 1
    module.C.g = lambda self: 5
    assert [f(1), f(1)] == [6, 6] and len(CALLS) == 2


def test_lists_in_a_global_that_is_added_to_are_state(memory):
    module = project("GROUPS = {1: []}\ndef f(x):\n    CALLS.append(x)\n    GROUPS[x].append(x)\n    return x")
    f = memory.cache(module.f)
    assert [f(1), f(1), f(1)] == [1, 1, 1] and len(CALLS) == 1
    run(module, "GROUPS = {1: [2]}")
    assert f(1) == 1 and len(CALLS) == 1


def test_what_a_name_stands_for_of_another_package_counts(memory):
    module = project("from statistics import mean as middle\nimport json as form\n"
                     "def f(x):\n    CALLS.append(x)\n    return middle([1, 2, 6]), form.dumps([x])")  # fmt: skip
    f = memory.cache(module.f)
    assert [f(1), f(1)] == [(3, "[1]")] * 2 and len(CALLS) == 1
    run(module, "from statistics import median as middle")
    assert f.explain(1).changed == ["names of other packages changed"]
    assert [f(1), f(1)] == [(2, "[1]")] * 2 and len(CALLS) == 2
    run(module, "import pickle as form")
    assert f(1)[1] != "[1]" and len(CALLS) == 3


def test_a_value_that_many_modules_have_is_looked_at_once_in_a_call(memory):
    package = project("TABLE = list(range(100))")
    for number in range(5):
        part = project(f"def g{number}(): return len(TABLE)", f"project_under_test.part{number}")
        part.TABLE = package.TABLE
        setattr(package, f"g{number}", getattr(part, f"g{number}"))
    run(package, "def f(x):\n    CALLS.append(x)\n    return g0() + g1() + g2() + g3() + g4() + x")
    f = memory.cache(package.f)
    assert [f(1), f(1)] == [501, 501] and len(CALLS) == 1
    assert sum(item[0] is package.TABLE for item in f._parameters.watch) == 1
    package.TABLE.append(1)
    assert f(1) == 506 and len(CALLS) == 2


@pytest.mark.timeout(20)
@pytest.mark.parametrize("step", ["(TABLE,)", "(TABLE, TABLE)"])
def test_tuples_may_lie_in_each_other_however_deep(memory, step):
    module = project(f"TABLE = (1,)\nfor _ in range({3000 if step == '(TABLE,)' else 60}):\n    TABLE = {step}\n"
                     "def f(x):\n    CALLS.append(x)\n    return len(TABLE) + x")  # fmt: skip
    f = memory.cache(module.f)
    expected = len(module.TABLE) + 1
    assert [f(1), f(1)] == [expected, expected] and len(CALLS) == 1


def test_functions_of_one_name_in_a_set_count_in_no_order(memory):
    source = "TABLE = {lambda x: x + 1, lambda x: x + 2, lambda x: x + 3}\ndef f(x): return sum(g(x) for g in TABLE)"
    kept = [project(source) for _ in range(20)]
    assert len({func_inspect.examine(module.f, [], object()).identity for module in kept}) == 1


def test_a_program_of_thousands_of_functions_is_followed_to_its_end(memory):
    chain = "\n".join(f"def g{number}(x): return g{number + 1}(x)" for number in range(3000))
    module = project(f"{chain}\ndef g3000(x): return x\ndef f(x):\n    CALLS.append(x)\n    return x")
    run(module, "def f(x):\n    CALLS.append(x)\n    return x or g0(x)")
    f = memory.cache(module.f)
    f(1), f(1)
    assert len(CALLS) == 1
    run(module, "def g3000(x): return -x")
    f(1), f(1)
    assert len(CALLS) == 2
