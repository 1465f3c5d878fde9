"""The judge: CPython's own tests of `multiprocessing` and `concurrent.futures`, on the standard library and on Shoal.

    run.py [--only PATTERN…] [--limit SECONDS] [--jobs N] [--no-standard] [--json FILE] [--verbose]

The tests are run from where this Python has them installed; nothing of them is here. Each class runs in a child
process in a session of its own; a test that takes longer than the limit hangs: the child is killed with all of its
session, and the rest of the class goes on in another. A test that fails is run once more by itself, on either side: one
that fails now and then on the standard library too says nothing.

At the end stand a table of counts and what failed. The exit code is 1 if fewer than 97 % of the tests that pass on the
standard library pass on Shoal, if one fails that `differences.py` does not list, or if one hangs.
"""

from __future__ import annotations

import argparse
import concurrent.futures
import dataclasses
import fnmatch
import importlib.util
import json
import os
import platform
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from differences import DIFFERENCES

HERE = Path(__file__).resolve().parent
TARGET = 0.97
STANDARD, SHOAL = "standard", "shoal"


@dataclasses.dataclass(frozen=True)
class Test:
    """One test. `suite` is what the table counts by."""

    suite: str
    module: str
    holder: str
    name: str

    def __str__(self) -> str:
        return f"{self.suite}:{self.holder}.{self.name}"


@dataclasses.dataclass
class Outcome:
    """How it went: passed, failed, skipped, hung or, where the child ended in its midst, crashed."""

    result: str
    seconds: float = 0.0
    text: str = ""
    again: bool = False  # it failed first, and passed when it was run by itself


def suites() -> dict[str, str]:
    """Name in the table -> module, for what this Python has."""
    found = {}
    for method in ("fork", "spawn", "forkserver"):
        own = f"test.test_multiprocessing_{method}"
        found[method] = own if importlib.util.find_spec(own) is not None else f"peer_{method}"
    for name in ("main_handling", "futures"):
        module = {"main_handling": "test.test_multiprocessing_main_handling", "futures": "test.test_concurrent_futures"}
        if importlib.util.find_spec(module[name]) is not None:
            found[name] = module[name]
    return found


def collect(patterns: list[str]) -> list[Test]:
    """All tests whose name fits one of the patterns, in their order."""
    tests = []
    for suite, module in suites().items():
        listing = subprocess.run(
            [sys.executable, str(HERE / "child.py"), "list", module], capture_output=True, text=True, timeout=120
        )
        if listing.returncode != 0:
            raise SystemExit(f"cannot list the tests of {module}:\n{listing.stderr}")
        for module_name, holder, names in json.loads(listing.stdout.splitlines()[-1]):
            for name in names:
                test = Test(suite, module_name, holder, name)
                if suite == "futures" and not _is_about_processes(test):
                    continue
                if not patterns or any(fnmatch.fnmatchcase(str(test), pattern) for pattern in patterns):
                    tests.append(test)
    return tests


def _is_about_processes(test: Test) -> bool:
    return test.holder.startswith("Process") and "Thread" not in test.holder


# ------------------------------------------------------------------------- running


def _kill_session(session: int) -> None:
    """Kill what is left of a child's session: the child, what it started, and what those started. Resource trackers
    come last: they end by themselves when the others have, and remove what those left in /dev/shm."""
    for attempt in range(40):
        left, trackers = [], []
        for entry in os.listdir("/proc"):
            if not entry.isdigit():
                continue
            try:
                fields = Path("/proc", entry, "stat").read_text().rpartition(")")[2].split()
                command = Path("/proc", entry, "cmdline").read_bytes()
            except OSError:
                continue
            if int(fields[3]) == session and fields[0] not in "ZX":
                (trackers if b"resource_tracker" in command else left).append(int(entry))
        for pid in left if attempt < 30 else left + trackers:
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                pass
        if not left and not trackers:
            return
        time.sleep(0.05)


class Events:
    """What a child wrote about its tests, read as it grows."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._at = 0
        self.running: str | None = None
        self.since = time.monotonic()
        self.outcomes: dict[str, Outcome] = {}
        self.around: str = ""  # what set-up of the class or the module said when it failed
        self.around_result = "crashed"

    def read(self) -> None:
        if not self._path.exists():
            return
        with open(self._path) as file:
            file.seek(self._at)
            while (line := file.readline()).endswith("\n"):
                self._at = file.tell()
                event = json.loads(line)
                now = time.monotonic()
                if "begin" in event:
                    self.running, self.since = event["begin"], now
                elif "end" in event:
                    self.outcomes[event["end"]] = Outcome(event["outcome"], now - self.since, event["text"])
                    self.running, self.since = None, now
                else:
                    self.around, self.around_result = f"{event['around']}: {event['text']}", event["outcome"]


def run_child(side: str, module: str, holder: str, names: list[str], limit: float) -> dict[str, Outcome]:
    """Run tests of one class; the outcomes of those that were reached."""
    folder = Path(tempfile.mkdtemp(prefix="peers-"))
    log = folder / "log"
    events = Events(folder / "events")
    command = [sys.executable, str(HERE / "child.py"), "run", *(["--shoal"] if side == SHOAL else [])]
    (folder / "work").mkdir()
    environment = {**os.environ, "TMPDIR": str(folder)}
    try:
        with open(log, "wb") as output:
            child = subprocess.Popen(
                [*command, str(folder / "events"), module, holder, *names],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                cwd=folder / "work",
                env=environment,
                start_new_session=True,
            )
        hung = False
        while child.poll() is None:
            time.sleep(0.05)
            events.read()
            if time.monotonic() - events.since > limit:
                hung = True
                child.send_signal(signal.SIGABRT)  # its faulthandler says where it stands
                try:
                    child.wait(2)
                except subprocess.TimeoutExpired:
                    pass
                break
        _kill_session(child.pid)
        child.wait()
        events.read()
        if events.running is not None:
            text = log.read_text(errors="replace")[-6000:]
            result = "hung" if hung else "crashed"
            events.outcomes[events.running] = Outcome(result, limit if hung else 0, text)
        elif len(events.outcomes) < len(names):
            text = events.around or log.read_text(errors="replace")[-6000:]
            result = "hung" if hung else events.around_result
            reached = next(name for name in names if name not in events.outcomes)
            for name in names if events.around else [reached]:
                events.outcomes.setdefault(name, Outcome(result, 0, text))
        return events.outcomes
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def run_class(side: str, module: str, holder: str, names: list[str], limit: float) -> dict[str, Outcome]:
    """Run tests of one class, going on after those that hang; those that failed once more."""
    outcomes: dict[str, Outcome] = {}
    while remaining := [name for name in names if name not in outcomes]:
        outcomes.update(run_child(side, module, holder, remaining, limit))
    for name, outcome in outcomes.items():
        if outcome.result not in ("passed", "skipped"):
            second = run_child(side, module, holder, [name], limit)[name]
            if second.result == "passed":
                second.again = True
                outcomes[name] = second
    return outcomes


def run(side: str, tests: list[Test], limit: float, jobs: int, verbose: bool) -> dict[Test, Outcome]:
    """Run all these tests on one side."""
    classes: dict[tuple[str, str, str], list[str]] = {}
    for test in tests:
        classes.setdefault((test.suite, test.module, test.holder), []).append(test.name)
    outcomes = {}
    with concurrent.futures.ThreadPoolExecutor(jobs) as pool:
        running = {
            pool.submit(run_class, side, module, holder, names, limit): (suite, module, holder)
            for (suite, module, holder), names in classes.items()
        }
        for done in concurrent.futures.as_completed(running):
            suite, module, holder = running[done]
            for name, outcome in done.result().items():
                outcomes[Test(suite, module, holder, name)] = outcome
            if verbose:
                results = [outcome.result for outcome in done.result().values()]
                counts = ", ".join(f"{results.count(kind)} {kind}" for kind in sorted(set(results)))
                print(f"  {side}: {suite}:{holder}: {counts}", file=sys.stderr, flush=True)
    return outcomes


# ----------------------------------------------------------------------- judgement


def reason_for(test: Test) -> str | None:
    """Why the list says that this test does not apply."""
    for pattern, reason in DIFFERENCES.items():
        if fnmatch.fnmatchcase(str(test), pattern):
            return reason
    return None


def judge(tests: list[Test], standard: dict[Test, Outcome] | None, shoal: dict[Test, Outcome], whole: bool) -> bool:
    """Print the table and what failed. Whether all is as it must be."""
    counted = [test for test in tests if (standard is None or standard[test].result == "passed")]
    if standard is None:
        counted = [test for test in counted if shoal[test].result != "skipped"]
    passed = [test for test in counted if shoal[test].result == "passed"]
    failed = [test for test in counted if shoal[test].result != "passed"]

    print(f"\nCPython {platform.python_version()}: tests that pass on the standard library, and on Shoal")
    print(f"  {'':24}{'standard':>9}{'shoal':>9}{'':>9}")
    for suite in dict.fromkeys(test.suite for test in tests):
        ours = sum(test.suite == suite for test in passed)
        theirs = sum(test.suite == suite for test in counted)
        if theirs:
            print(f"  {suite:24}{theirs:9}{ours:9}{100 * ours / theirs:8.1f}%")
    share = len(passed) / len(counted) if counted else 0.0
    print(f"  {'all':24}{len(counted):9}{len(passed):9}{100 * share:8.1f}%")
    skipped = sum(outcome.result == "skipped" for outcome in (standard or shoal).values())
    print(f"  of {len(tests)} tests; {skipped} are skipped by themselves", end="")
    if standard is not None:
        print(f", {len(tests) - len(counted) - skipped} do not pass on the standard library either", end="")
    print()

    unexplained = [test for test in failed if reason_for(test) is None or shoal[test].result == "hung"]
    for test in failed:
        reason = reason_for(test)
        print(f"\n{shoal[test].result}: {test}" + (f"\n  by design: {reason}" if reason else ""))
        if test in unexplained:
            print("  | " + shoal[test].text.strip()[-3000:].replace("\n", "\n  | "))
    for test, outcome in shoal.items():
        if outcome.again:
            print(f"\npassed when it was run again, by itself: {test}")
        if outcome.result == "passed" and reason_for(test) is not None:
            print(f"\nlisted as a difference, and passed: {test}")
    if whole:
        for pattern in DIFFERENCES:
            if not any(fnmatch.fnmatchcase(str(test), pattern) for test in tests):
                print(f"\nlisted as a difference, but not among this Python's tests: {pattern}")
    print(f"\n{len(failed)} failed, {len(unexplained)} of them without a reason or hanging")
    return share >= TARGET and not unexplained


def main() -> int:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="*", default=[], help="patterns such as 'fork:WithProcessesTestPool.*'")
    parser.add_argument("--limit", type=float, default=90, help="seconds for each test")
    parser.add_argument("--jobs", type=int, default=(os.cpu_count() or 1) + 1, help="classes at a time")
    parser.add_argument("--no-standard", action="store_true", help="do not run the standard library's side")
    parser.add_argument("--json", help="a file for all outcomes")
    parser.add_argument("--verbose", action="store_true", help="print each class as it is done")
    options = parser.parse_args()

    tests = collect(options.only)
    if not tests:
        raise SystemExit("no such tests here")
    began = time.monotonic()
    standard = None
    if not options.no_standard:
        standard = run(STANDARD, tests, options.limit, options.jobs, options.verbose)
    shoal = run(SHOAL, tests, options.limit, options.jobs, options.verbose)
    sound = judge(tests, standard, shoal, not options.only)
    print(f"in {time.monotonic() - began:.0f} s")
    if options.json:
        sides = {STANDARD: standard or {}, SHOAL: shoal}
        report = {
            side: {str(test): dataclasses.asdict(outcome) for test, outcome in outcomes.items()}
            for side, outcomes in sides.items()
        }
        Path(options.json).write_text(json.dumps({"python": platform.python_version(), **report}, indent=1))
    return 0 if sound else 1


if __name__ == "__main__":
    raise SystemExit(main())
