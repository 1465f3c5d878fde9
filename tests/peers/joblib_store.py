"""joblib's own tests of its store, run on joblib and then on Shoal (under `shoal.install()`), and compared.

    .venv/bin/python tests/peers/joblib_store.py [--json FILE] [-k EXPRESSION] [--module MODULE]…

Each test has a limit of a minute. What passes on joblib and not on Shoal must be listed in DIFFERENCES, with why; what
is listed and passes is told too. Ends with 1 if there is a difference that is not listed, or fewer than 95% of what
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
from collections.abc import Mapping, Sequence

MODULES = (
    "test_memory", "test_memory_async", "test_hashing", "test_numpy_pickle", "test_numpy_pickle_compat",
    "test_numpy_pickle_utils", "test_func_inspect", "test_func_inspect_special_encoding", "test_store_backends",
)  # fmt: skip
NEEDED = 95.0  # per cent of what applies
LIMIT = 900  # seconds for a module

# Fixtures that a module uses and does not import: without them its tests are errors on joblib itself.
PLUGINS = {"test_dask": ["-p", "distributed.utils_test"]}

NOT_OURS = "looks inside: "

# A pattern of names -> why it does not pass. Patterns are those of fnmatch; "[" stands for itself.
LAYOUT = NOT_OURS + "the names of joblib's own files and of its classes' private methods"
VERSIONS = "the values are right; no warning, as results of different code lie beside each other and none is lost"
DIFFERENCES: dict[str, str] = {
    "*::test_parallel_call_cached_function_defined_in_jupyter[*": LAYOUT,
    "*::test_func_dir": LAYOUT,
    "*::test_persistence": LAYOUT,
    "*::test_call_and_shelve_lazily_load_stored_result": LAYOUT,
    "*::test__get_items*": LAYOUT,
    "*::test_memory_clear": LAYOUT,
    "*::test_memory_recomputes_after_an_error_while_loading_results": LAYOUT,
    "*::test_memorized_result_forwards_mmap_mode": LAYOUT,
    "*::test_lz4_compression": NOT_OURS + "which Python class writes lz4",
    "*::test_lz4_compression_without_lz4": "the engine has lz4 itself: it is there without Python's package of it",
    "*::TestAutoGitignore::test_memory_creates_gitignore": (
        "the file lies in Shoal's own folder, LOCATION/shoal: in LOCATION it has git ignore what else is there, as a "
        "program whose cache is Memory('.')"
    ),
    "*::test_memory_name_collision": VERSIONS,
    "*::test_memory_warning_lambda_collisions": VERSIONS,
    "*::test_memory_warning_collision_detection": VERSIONS,
    "*::test_memory_in_memory_function_code_change": VERSIONS,
    "*::test_memory_numpy_check_mmap_mode": LAYOUT,
    "*::test_memory_numpy_check_mmap_mode_async": LAYOUT,
    "*::test_hash_numpy_performance": "it asks that hashing takes as long as MD5; ours takes a fraction",
    "*::test_hashes_stay_the_same[*": NOT_OURS + "joblib's own digests, which are MD5 of its pickles",
    "*::test_hashing_pickling_error": "a function that was made in a function can be hashed: by its code",
}

_RUN = """
import json, sys
where, install, known, arguments = sys.argv[1], sys.argv[2] == "shoal", set(sys.argv[3].split("\\n")), sys.argv[4:]
if install:
    import child, shoal
    shoal.install()
    child.run_programs_on_shoal()
import pytest

class Results:
    def __init__(self):
        self.file = open(where, "a")
    def note(self, name, outcome, reason=""):
        print(json.dumps([name, outcome, reason]), file=self.file, flush=True)
    def pytest_collection_modifyitems(self, items):
        items[:] = [item for item in items if item.nodeid not in known]
    def pytest_runtest_logstart(self, nodeid):
        self.note(nodeid, "died")
    def pytest_runtest_logreport(self, report):
        if report.when == "call" or report.outcome != "passed":
            self.note(report.nodeid, report.outcome, str(report.longrepr)[-300:] if report.failed else "")

results = Results()
status = pytest.main(arguments, plugins=[results])
results.note("", "ended")
"""


def run(on: str, expression: str | None, modules: Sequence[str], limit: int) -> dict[str, tuple[str, str]]:
    """Outcome and reason of each test, run on "joblib" or on "shoal". A test that its process dies in has "died".
    limit: seconds for a module."""
    outcomes: dict[str, tuple[str, str]] = {}
    with tempfile.TemporaryDirectory() as folder:
        for module in modules:
            results = os.path.join(folder, f"{module}.results")
            arguments = ["-q", "-p", "no:cacheprovider", "--timeout=60", "--no-header", "--tb=line", "--pyargs"]
            arguments += [f"joblib.test.{module}", *(["-k", expression] if expression else [])]
            arguments += PLUGINS.get(module, [])
            found: dict[str, tuple[str, str]] = {}
            for _ in range(10):  # goes on behind a test that the process died in
                # A folder of their own: they write to the current one.
                subprocess.run(
                    [sys.executable, "-c", _RUN, results, on, "\n".join(found), *arguments],
                    cwd=folder, timeout=limit, check=False, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
                    env={**os.environ, "PYTHONPATH": os.path.dirname(os.path.abspath(__file__))},
                )  # fmt: skip
                with open(results) as file:
                    lines = [json.loads(line) for line in file]
                found = {name: (outcome, reason) for name, outcome, reason in lines if name}
                if lines and lines[-1][1] == "ended":
                    break
            outcomes.update({f"{module}{name[name.index('::') :]}": value for name, value in found.items()})
    return outcomes


def reason_for(name: str, differences: Mapping[str, str]) -> str | None:
    for pattern, reason in differences.items():
        if fnmatch.fnmatchcase(name, pattern.replace("[", "[[]")):
            return reason
    return None


def main(modules: Sequence[str], differences: Mapping[str, str], limit: int) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", help="write all outcomes to this file")
    parser.add_argument("-k", dest="expression", help="only the tests that pytest's -k would take")
    parser.add_argument("--module", action="append", choices=modules, help="only this one (may be given again)")
    options = parser.parse_args()
    modules = options.module or modules
    theirs = run("joblib", options.expression, modules, limit)
    ours = run("shoal", options.expression, modules, limit)
    missing = ("did not run", "")
    base = [name for name, (outcome, _) in theirs.items() if outcome == "passed"]
    different = [name for name in base if ours.get(name, missing)[0] != "passed"]
    for name in [name for name in different if reason_for(name, differences) is None]:
        # Once more by itself: joblib's own fail now and then where the machine is busy.
        module, _, test = name.partition("::")
        again = run("shoal", test.partition("[")[0], [module], limit).get(name, missing)
        if again[0] == "passed":
            ours[name] = again
            different.remove(name)
    listed = {name: reason for name in different if (reason := reason_for(name, differences)) is not None}
    applies = [
        name for name in base if not (reason_for(name, differences) or "").startswith(NOT_OURS) or name not in different
    ]
    passed = [name for name in applies if name not in different]
    for name in different:
        what = listed.get(name)
        print(f"{'listed  ' if what else 'UNLISTED'} {name}: {what or ' '.join(ours.get(name, missing))[-200:]}")
    for name in base:
        if name not in different and reason_for(name, differences):
            print(f"passes, though listed: {name}")
    share = 100 * len(passed) / max(len(applies), 1)
    print(
        f"{len(theirs)} tests, {len(base)} pass on joblib; on Shoal {len(base) - len(different)} of these "
        f"({100 * (len(base) - len(different)) / max(len(base), 1):.1f}%); {len(base) - len(applies)} look inside of "
        f"joblib; of the {len(applies)} that apply {len(passed)} pass ({share:.1f}%)"
    )
    if options.json:
        with open(options.json, "w") as file:
            json.dump({"joblib": theirs, "shoal": ours, "different": different}, file, indent=1)
    return 0 if len(listed) == len(different) and share >= NEEDED and base else 1


if __name__ == "__main__":
    sys.exit(main(MODULES, DIFFERENCES, LIMIT))
