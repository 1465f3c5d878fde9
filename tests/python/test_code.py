"""What a function's code means: how it is formatted does not count, what it does counts."""

from __future__ import annotations

import ast
import inspect
import types

import pytest
from shoal.joblib._code import code_digest

BROKEN_LINES = {
    "a condition": (
        "return [x for x in xs if x and x.y or z]",
        "return [x\n  for x in xs\n  if x\n  and x.y\n  or z]",
    ),
    "a generator": ("return list(x for x in xs if x and x.y)", "return list(x for x in xs\n  if x\n  and x.y)"),
    "and in or": ("return a or b and c(d) or e", "return (a or\n  b and\n  c(d) or\n  e)"),
    "arguments": ("a = b = 1; return g(a, b, c=a)", "a = b = 1\n return g(a,\n  b,\n  c=a)"),
    "a handler": (
        "try: g()\n except KeyError: return 1\n finally: h()",
        "try:\n  g()\n except KeyError:\n  return (\n   1)\n finally:\n  h(\n  )",
    ),
    "a loop": (
        "while a and b:\n  if c and d: continue\n  e()",
        "while (a\n  and b):\n  if (c\n    and d):\n   continue\n  e()",
    ),
    "a class": ("class A:\n  def m(self): self.y = 1\n return A",
                "# of a kind\n class A:\n\n  def m(self):\n   self.y = 1\n return A"),
}  # fmt: skip


def code_of(body):
    scope = {}
    exec(compile(f"def f(xs):\n {body}\n", "formatted.py", "exec"), scope)
    return scope["f"].__code__


@pytest.mark.parametrize("what", BROKEN_LINES)
def test_how_code_is_broken_into_lines_does_not_count(what):
    one, other = BROKEN_LINES[what]
    assert code_digest(code_of(one)) == code_digest(code_of(other))


def test_the_code_of_a_whole_module_means_the_same_after_it_was_formatted():
    source = inspect.getsource(inspect)

    def digests(text):
        codes = [compile(text, "formatted.py", "exec")]
        for code in codes:  # grows as we go
            codes += [constant for constant in code.co_consts if isinstance(constant, types.CodeType)]
        return {code.co_name + str(number): code_digest(code) for number, code in enumerate(codes)}

    before, after = digests(source), digests(ast.unparse(ast.parse(source)))
    assert [name for name in before if before[name] != after[name]] == []


def test_conditions_that_decide_otherwise_are_told_apart():
    conditions = ["a and b or c", "a or b and c", "a and (b or c)", "(a or b) and c", "a and b and c", "a or b or c",
                  "not a and b or c", "a and not b or c", "a is None and b or c",
                  "a is not None and b or c"]  # fmt: skip
    forms = ["return {}", "return [x for x in xs if {}]", "while {}: g()", "if {}: g()\n else: h()",
             "return g() if {} else h()"]  # fmt: skip
    digests = [code_digest(code_of(form.format(condition))) for form in forms for condition in conditions]
    assert len(set(digests)) == len(digests)
