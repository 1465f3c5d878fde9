"""One child of the runner: `child.py list MODULE…`, or `child.py run [--shoal] EVENTS MODULE CLASS TEST…`.

It runs tests of one class in their order and appends a line of JSON to EVENTS when a test begins and when it ends, so
that the runner knows which one hangs. With --shoal all of it, and every Python that the tests start as a program, runs
on Shoal.
"""

from __future__ import annotations

import faulthandler
import importlib
import json
import os
import pkgutil
import subprocess
import sys
import unittest
from typing import Any


def _modules(name: str) -> list[str]:
    module = importlib.import_module(name)
    if not hasattr(module, "__path__"):
        return [name]
    return [f"{name}.{part.name}" for part in pkgutil.iter_modules(module.__path__) if part.name.startswith("test_")]


def _flat(suite: unittest.TestSuite) -> list[unittest.TestCase]:
    cases: list[unittest.TestCase] = []
    for item in suite:
        cases.extend(_flat(item) if isinstance(item, unittest.TestSuite) else [item])
    return cases


def list_tests(names: list[str]) -> None:
    """Print [module, class, [test, …]] of all classes in these modules as one line of JSON."""
    classes: dict[tuple[str, str], list[str]] = {}
    for name in names:
        for module_name in _modules(name):
            module = importlib.import_module(module_name)
            for case in _flat(unittest.defaultTestLoader.loadTestsFromModule(module)):
                key = (module_name, type(case).__qualname__)
                classes.setdefault(key, []).append(case._testMethodName)
    print(json.dumps([[*key, tests] for key, tests in classes.items()]))


class Result(unittest.TestResult):
    """Writes down each event at once."""

    def __init__(self, path: str) -> None:
        super().__init__()
        self._file = open(path, "a", buffering=1)  # noqa: SIM115
        os.set_inheritable(self._file.fileno(), False)
        self._owner = os.getpid()
        self._outcome = "passed"
        self._text = ""

    def _write(self, **event: Any) -> None:
        if os.getpid() == self._owner:  # not a forked child that came back into the test
            self._file.write(json.dumps(event) + "\n")

    def startTest(self, test: unittest.TestCase) -> None:
        super().startTest(test)
        self._outcome, self._text = "passed", ""
        self._write(begin=test._testMethodName)

    def stopTest(self, test: unittest.TestCase) -> None:
        super().stopTest(test)
        self._write(end=test._testMethodName, outcome=self._outcome, text=self._text)

    def _note(self, test: Any, outcome: str, text: str) -> None:
        if isinstance(test, unittest.TestCase):
            self._outcome, self._text = outcome, text
        else:  # what sets up or cleans up a class or a module
            self._write(around=str(test), outcome=outcome, text=text)

    def addError(self, test: Any, err: Any) -> None:
        self._note(test, "failed", self._exc_info_to_string(err, test))  # type: ignore[attr-defined]

    addFailure = addError

    def addSubTest(self, test: Any, subtest: Any, err: Any) -> None:
        if err is not None:
            self._note(test, "failed", self._exc_info_to_string(err, test))  # type: ignore[attr-defined]

    def addSkip(self, test: Any, reason: str) -> None:
        if self._outcome == "passed":
            self._note(test, "skipped", reason)

    def addExpectedFailure(self, test: Any, err: Any) -> None:
        pass

    def addUnexpectedSuccess(self, test: Any) -> None:
        self._note(test, "failed", "unexpected success")


def run_programs_on_shoal() -> None:
    """Has each Python that is started as a program from here on run it by `-m shoal`."""
    original = subprocess.Popen.__init__

    def popen(self: Any, args: Any, *rest: Any, **keywords: Any) -> None:
        if isinstance(args, (list, tuple)) and args and args[0] == sys.executable:
            args, at = list(args), 1
            while at < len(args) and args[at].startswith("-") and args[at] not in ("-c", "-m", "-"):
                at += 2 if args[at] in ("-X", "-W") else 1
            if at < len(args):
                args[at:at] = ["-m", "shoal"]
        original(self, args, *rest, **keywords)

    subprocess.Popen.__init__ = popen  # type: ignore[method-assign]


def run_tests(arguments: list[str]) -> None:
    """Run these tests."""
    if arguments[0] == "--shoal":
        arguments = arguments[1:]
        import shoal

        shoal.install()
        run_programs_on_shoal()
    events, module_name, class_name, *tests = arguments
    module = importlib.import_module(module_name)
    holder: Any = module
    for part in class_name.split("."):
        holder = getattr(holder, part)
    unittest.TestSuite(map(holder, tests)).run(Result(events))


if __name__ == "__main__":
    faulthandler.enable()
    sys.path[0] = os.path.join(os.path.dirname(os.path.abspath(__file__)), "suites")
    list_tests(sys.argv[2:]) if sys.argv[1] == "list" else run_tests(sys.argv[2:])
