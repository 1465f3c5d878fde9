"""joblib's own tests of its store, run on joblib and then on Shoal (under `shoal.install()`), and compared.

    .venv/bin/python tests/peers/joblib_store.py [--json FILE] [-k EXPRESSION]

Each test has a limit of a minute. What passes on joblib and not on Shoal must be listed in DIFFERENCES, with why; what is
listed and passes is told too. Ends with 1 if there is a difference that is not listed, or fewer than 95% of what
applies pass. A test "applies" unless its reason begins with NOT_OURS: it looks at what joblib's own files or internals
are, which no program sees.
"""

from __future__ import annotations

import argparse
import fnmatch
import json
import os
import subprocess
import sys
import tempfile

MODULES = (
    "test_memory", "test_memory_async", "test_hashing", "test_numpy_pickle", "test_numpy_pickle_compat",
    "test_numpy_pickle_utils", "test_func_inspect", "test_func_inspect_special_encoding", "test_store_backends",
)  # fmt: skip
NEEDED = 95.0  # per cent of what applies
LIMIT = 1500  # seconds for a run

NOT_OURS = "looks inside: "

# A pattern of names -> why it does not pass. Patterns are those of fnmatch; "[" stands for itself.
DIFFERENCES: dict[str, str] = {}

_RUN = """
import json, sys
where, install, arguments = sys.argv[1], sys.argv[2] == "shoal", sys.argv[3:]
if install:
    import shoal
    shoal.install()
import pytest

class Results:
    def __init__(self):
        self.outcomes, self.reasons = {}, {}
    def pytest_runtest_logreport(self, report):
        name = report.nodeid.rpartition("/")[2]
        if report.when == "call" or report.outcome != "passed":
            self.outcomes[name] = report.outcome
            if report.outcome == "failed":
                self.reasons[name] = str(report.longrepr)[-300:]

results = Results()
status = pytest.main(arguments, plugins=[results])
with open(where, "w") as file:
    json.dump({"outcomes": results.outcomes, "reasons": results.reasons, "status": int(status)}, file)
"""


def run(on: str, modules: tuple[str, ...], expression: str | None) -> dict[str, dict[str, str]]:
    """Outcome and reason of each test, run on "joblib" or on "shoal"."""
    with tempfile.TemporaryDirectory() as folder:
        results = os.path.join(folder, "results.json")
        arguments = ["-q", "-p", "no:cacheprovider", "--timeout=60", "--no-header", "--tb=line", "--pyargs"]
        arguments += ["-W", "ignore::pytest.PytestUnknownMarkWarning"]
        arguments += [f"joblib.test.{name}" for name in modules]
        if expression:
            arguments += ["-k", expression]
        # A folder of their own: they write to the current one.
        subprocess.run(
            [sys.executable, "-c", _RUN, results, on, *arguments],
            cwd=folder, timeout=LIMIT, check=False, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        with open(results) as file:
            return json.load(file)


def reason_for(name: str) -> str | None:
    for pattern, reason in DIFFERENCES.items():
        if fnmatch.fnmatchcase(name, pattern.replace("[", "[[]")):
            return reason
    return None


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", help="write all outcomes to this file")
    parser.add_argument("-k", dest="expression", help="only the tests that pytest's -k would take")
    options = parser.parse_args()
    theirs = run("joblib", MODULES, options.expression)["outcomes"]
    ours = run("shoal", MODULES, options.expression)
    outcomes = ours["outcomes"]
    base = [name for name, outcome in theirs.items() if outcome == "passed"]
    different = [name for name in base if outcomes.get(name) != "passed"]
    listed = {name: reason for name in different if (reason := reason_for(name)) is not None}
    applies = [name for name in base if not (reason_for(name) or "").startswith(NOT_OURS) or name not in different]
    passed = [name for name in applies if name not in different]
    for name in different:
        what = listed.get(name)
        print(f"{'listed  ' if what else 'UNLISTED'} {name}: {what or ours['reasons'].get(name, 'did not run')[-200:]}")
    for name in base:
        if name not in different and reason_for(name):
            print(f"passes, though listed: {name}")
    share = 100 * len(passed) / max(len(applies), 1)
    print(
        f"{len(theirs)} tests, {len(base)} pass on joblib; on Shoal {len(base) - len(different)} of these "
        f"({100 * (len(base) - len(different)) / max(len(base), 1):.1f}%); {len(base) - len(applies)} look inside of "
        f"joblib; of the {len(applies)} that apply {len(passed)} pass ({share:.1f}%)"
    )
    if options.json:
        with open(options.json, "w") as file:
            json.dump({"joblib": theirs, "shoal": outcomes, "different": different}, file, indent=1)
    return 0 if len(listed) == len(different) and share >= NEEDED and base else 1


if __name__ == "__main__":
    sys.exit(main())
